//! The element types of weights: block sizes as a table, block layouts as bytes.
//!
//! A quantised row is a run of blocks. A block of 32 weights carries its own scale; a superblock of
//! 256 weights (the `K` types) carries one or two f16 and a small integer scale for each 16 or 32 of
//! them. Adding a type is one line in [`TYPES`], one layout here and its decoding in
//! `ops::cpu::blocks`. Where a bit of a weight stands is said on the layout's fields.

use bytemuck::{Pod, Zeroable};

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quant {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, IEEE.
    F16,
    /// 16-bit floats, the upper half of an `f32`.
    Bf16,
    /// 4 bits and a scale: `w = d * (q - 8)`.
    Q4_0,
    /// 4 bits, a scale and a minimum: `w = d * q + m`.
    Q4_1,
    /// 5 bits and a scale: `w = d * (q - 16)`.
    Q5_0,
    /// 5 bits, a scale and a minimum: `w = d * q + m`.
    Q5_1,
    /// 8 bits and a scale: `w = d * q`.
    Q8_0,
    /// 2 bits; 4 bits of scale and of minimum for each 16 weights: `w = d * s * q - dmin * m`.
    Q2K,
    /// 3 bits; 6 bits of scale for each 16 weights: `w = d * (s - 32) * (q - 4)`.
    Q3K,
    /// 4 bits; 6 bits of scale and of minimum for each 32 weights: `w = d * s * q - dmin * m`.
    Q4K,
    /// 5 bits, otherwise as `Q4K`.
    Q5K,
    /// 6 bits; 8 bits of scale for each 16 weights: `w = d * s * (q - 32)`.
    Q6K,
    /// 4 bits that name a value, and a scale: `w = d * CODEBOOK[q]`.
    Iq4Nl,
    /// 4 bits that name a value; 6 bits of scale for each 32: `w = d * (s - 32) * CODEBOOK[q]`.
    Iq4Xs,
}

/// The values that the nibbles of `IQ4` types name.
pub const CODEBOOK: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// One row of the table of types.
#[derive(Clone, Copy, Debug)]
pub struct TypeRow {
    /// The number that stands for this type in a GGUF file.
    pub code: u32,
    /// The name people know.
    pub name: &'static str,
    /// Weights in a block.
    pub weights: usize,
    /// Bytes in a block.
    pub bytes: usize,
    /// What our kernels call it; `None` is a type that we can measure and name but not compute with.
    pub quant: Option<Quant>,
}

const fn row(code: u32, name: &'static str, weights: usize, bytes: usize, quant: Option<Quant>) -> TypeRow {
    TypeRow { code, name, weights, bytes, quant }
}

/// Every type that GGUF files in circulation carry.
pub const TYPES: &[TypeRow] = &[
    row(0, "F32", 1, 4, Some(Quant::F32)),
    row(1, "F16", 1, 2, Some(Quant::F16)),
    row(2, "Q4_0", 32, 18, Some(Quant::Q4_0)),
    row(3, "Q4_1", 32, 20, Some(Quant::Q4_1)),
    row(6, "Q5_0", 32, 22, Some(Quant::Q5_0)),
    row(7, "Q5_1", 32, 24, Some(Quant::Q5_1)),
    row(8, "Q8_0", 32, 34, Some(Quant::Q8_0)),
    row(10, "Q2_K", 256, 84, Some(Quant::Q2K)),
    row(11, "Q3_K", 256, 110, Some(Quant::Q3K)),
    row(12, "Q4_K", 256, 144, Some(Quant::Q4K)),
    row(13, "Q5_K", 256, 176, Some(Quant::Q5K)),
    row(14, "Q6_K", 256, 210, Some(Quant::Q6K)),
    row(20, "IQ4_NL", 32, 18, Some(Quant::Iq4Nl)),
    row(23, "IQ4_XS", 256, 136, Some(Quant::Iq4Xs)),
    row(30, "BF16", 1, 2, Some(Quant::Bf16)),
];

/// The table row of GGUF's type number `code`.
pub fn find(code: u32) -> Option<&'static TypeRow> {
    TYPES.iter().find(|t| t.code == code)
}

impl Quant {
    /// The table row of this type.
    pub fn row(self) -> &'static TypeRow {
        TYPES.iter().find(|t| t.quant == Some(self)).expect("every variant has a row, tested below")
    }
}

/// `w = d * (q - 8)`; weight `i` is the low nibble of byte `i`, weight `16 + i` the high one.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// 32 nibbles.
    pub q: [u8; 16],
}

/// `w = d * q + m`; nibbles as in [`BlockQ4_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// The minimum, an f16.
    pub m: [u8; 2],
    /// 32 nibbles.
    pub q: [u8; 16],
}

/// `w = d * (q - 16)`; nibbles as in [`BlockQ4_0`], the fifth bit of weight `i` is bit `i` of `h`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// 32 upper bits, a little-endian `u32`.
    pub h: [u8; 4],
    /// 32 nibbles.
    pub q: [u8; 16],
}

/// `w = d * q + m`; nibbles and fifth bits as in [`BlockQ5_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// The minimum, an f16.
    pub m: [u8; 2],
    /// 32 upper bits, a little-endian `u32`.
    pub h: [u8; 4],
    /// 32 nibbles.
    pub q: [u8; 16],
}

/// `w = d * q`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// 32 signed bytes.
    pub q: [i8; 32],
}

/// `w = d * s * q - dmin * m`; `s`, `m` of sixteen weights are the low and high nibble of a byte.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// `s` and `m` of weights `16 i..16 i + 16` in byte `i`.
    pub scales: [u8; 16],
    /// Bits `2 j` and `2 j + 1` of byte `32 c + i` are weight `128 c + 32 j + i`.
    pub q: [[u8; 32]; 2],
    /// The scale of scales, an f16.
    pub d: [u8; 2],
    /// The scale of minima, an f16.
    pub dmin: [u8; 2],
}

/// `w = d * (s - 32) * (q - 4)`; `q` has its third bit in `h`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// Bit `g` of byte `i` is the third bit of weight `32 g + i`.
    pub h: [u8; 32],
    /// Lower bits as in [`BlockQ2K`].
    pub q: [[u8; 32]; 2],
    /// Lower four bits of scales `i` and `8 + i` in byte `i < 8`; bits `2 j`, `2 j + 1` of byte
    /// `8 + i` are the upper two of scale `4 j + i`.
    pub scales: [u8; 12],
    /// The scale of scales, an f16.
    pub d: [u8; 2],
}

/// `w = d * s * q - dmin * m`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// The scale of scales, an f16.
    pub d: [u8; 2],
    /// The scale of minima, an f16.
    pub dmin: [u8; 2],
    /// Byte `i < 4`: scale `i` and, above it, the upper two bits of scale `4 + i`. Byte `4 + i`:
    /// the same of the minima. Byte `8 + i`: the lower four bits of scale and minimum `4 + i`.
    pub scales: [u8; 12],
    /// The nibbles of byte `i` of part `p` are weights `64 p + i` and `64 p + 32 + i`.
    pub q: [[u8; 32]; 4],
}

/// `w = d * s * q - dmin * m`; scales and nibbles as in [`BlockQ4K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// The scale of scales, an f16.
    pub d: [u8; 2],
    /// The scale of minima, an f16.
    pub dmin: [u8; 2],
    /// Eight scales and minima of six bits.
    pub scales: [u8; 12],
    /// Bit `g` of byte `i` is the fifth bit of weight `32 g + i`.
    pub h: [u8; 32],
    /// Lower four bits.
    pub q: [[u8; 32]; 4],
}

/// `w = d * s * (q - 32)`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// The nibbles of byte `i < 64` of part `c` are the lower bits of weights `128 c + i` and
    /// `128 c + 64 + i`.
    pub q: [[u8; 64]; 2],
    /// Bits `2 j`, `2 j + 1` of byte `i` of part `c` are the upper two of weight `128 c + 32 j + i`.
    pub h: [[u8; 32]; 2],
    /// One for each sixteen weights.
    pub scales: [i8; 16],
    /// The scale of scales, an f16.
    pub d: [u8; 2],
}

/// `w = d * CODEBOOK[q]`; nibbles as in [`BlockQ4_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Nl {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// 32 nibbles.
    pub q: [u8; 16],
}

/// `w = d * (s - 32) * CODEBOOK[q]`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Xs {
    /// The scale of scales, an f16.
    pub d: [u8; 2],
    /// The upper two bits of scale `g` are bits `2 g`, `2 g + 1` of this little-endian `u16`.
    pub scales_high: [u8; 2],
    /// The lower four bits of scales `2 i` and `2 i + 1` in byte `i`.
    pub scales_low: [u8; 4],
    /// The nibbles of 32 weights, each as in [`BlockQ4_0`].
    pub q: [[u8; 16]; 8],
}

/// 32 floats of a row that is not quantised; bytes, so that no alignment is asked of the file.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockF32 {
    /// 32 little-endian floats.
    pub w: [[u8; 4]; 32],
}

/// 32 halves of a row that is not quantised.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockF16 {
    /// 32 little-endian f16.
    pub w: [[u8; 2]; 32],
}

/// 32 bfloat16 of a row that is not quantised.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockBf16 {
    /// 32 little-endian bfloat16.
    pub w: [[u8; 2]; 32],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_size_the_table_says() {
        for row in TYPES {
            let (weights, bytes) = match row.quant.expect("every type is computable") {
                Quant::F32 => (32, size_of::<BlockF32>()),
                Quant::F16 => (32, size_of::<BlockF16>()),
                Quant::Bf16 => (32, size_of::<BlockBf16>()),
                Quant::Q4_0 => (32, size_of::<BlockQ4_0>()),
                Quant::Q4_1 => (32, size_of::<BlockQ4_1>()),
                Quant::Q5_0 => (32, size_of::<BlockQ5_0>()),
                Quant::Q5_1 => (32, size_of::<BlockQ5_1>()),
                Quant::Q8_0 => (32, size_of::<BlockQ8_0>()),
                Quant::Q2K => (256, size_of::<BlockQ2K>()),
                Quant::Q3K => (256, size_of::<BlockQ3K>()),
                Quant::Q4K => (256, size_of::<BlockQ4K>()),
                Quant::Q5K => (256, size_of::<BlockQ5K>()),
                Quant::Q6K => (256, size_of::<BlockQ6K>()),
                Quant::Iq4Nl => (32, size_of::<BlockIq4Nl>()),
                Quant::Iq4Xs => (256, size_of::<BlockIq4Xs>()),
            };
            assert_eq!(bytes * row.weights, row.bytes * weights, "{}", row.name);
        }
    }
}
