//! The element types of weights: block sizes as a table, block layouts as bytes.
//!
//! A quantised row is a run of blocks; a block of 32 weights carries its own scale. Adding a
//! type is one line in [`TYPES`], one layout here and its decoding in `ops::cpu::blocks`.

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
    /// 8 bits and a scale: `w = d * q`.
    Q8_0,
}

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
    row(7, "Q5_1", 32, 24, None),
    row(8, "Q8_0", 32, 34, Some(Quant::Q8_0)),
    row(10, "Q2_K", 256, 84, None),
    row(11, "Q3_K", 256, 110, None),
    row(12, "Q4_K", 256, 144, None),
    row(13, "Q5_K", 256, 176, None),
    row(14, "Q6_K", 256, 210, None),
    row(20, "IQ4_NL", 32, 18, None),
    row(23, "IQ4_XS", 256, 136, None),
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

/// `w = d * q`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// The scale, an f16.
    pub d: [u8; 2],
    /// 32 signed bytes.
    pub q: [i8; 32],
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
        for quant in [Quant::F32, Quant::F16, Quant::Bf16, Quant::Q4_0, Quant::Q4_1, Quant::Q5_0, Quant::Q8_0] {
            let row = quant.row();
            let (weights, bytes) = match quant {
                Quant::F32 => (32, size_of::<BlockF32>()),
                Quant::F16 => (32, size_of::<BlockF16>()),
                Quant::Bf16 => (32, size_of::<BlockBf16>()),
                Quant::Q4_0 => (32, size_of::<BlockQ4_0>()),
                Quant::Q4_1 => (32, size_of::<BlockQ4_1>()),
                Quant::Q5_0 => (32, size_of::<BlockQ5_0>()),
                Quant::Q8_0 => (32, size_of::<BlockQ8_0>()),
            };
            assert_eq!(bytes * row.weights, row.bytes * weights, "{}", row.name);
        }
    }
}
