//! Sixty-four small integers at a time, and their products with quantised activations.
//!
//! What [`lanes`](super::lanes) is for floats, this is for the integers that quantised weights are made of. A vector
//! holds sixteen bytes of each of four rows while it is unpacked; [`Bytes::transpose`] turns four of these into vectors
//! that hold four neighbouring weights of each of sixteen rows, which is what [`Bytes::dot`] multiplies.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vendor intrinsics; each is one instruction on values or checked arrays")
)]

use super::lanes::{LANES, Lanes, Portable};

/// Bytes that a vector of any path holds.
pub const BYTES: usize = 64;

/// The power of two for numbers that are what they stand for: shifted so far, nothing is left of 32 bits.
pub const NOT_RAISED: u32 = 32;

/// A vector of bytes, a vector of sixteen sums, and what kernels do with them.
pub trait Bytes: Lanes {
    /// 64 bytes.
    type B: Copy;
    /// Sixteen 32-bit integers.
    type I: Copy;
    /// The power of two that [`Bytes::biased`] adds to signed weights so that the path's instruction can take them, or
    /// [`NOT_RAISED`].
    const RAISED: u32;

    /// Sixteen bytes of each of four rows.
    fn gather(rows: [&[u8; 16]; 4]) -> Self::B;
    /// 64 bytes from memory.
    fn load_bytes(from: &[u8; BYTES]) -> Self::B;
    /// 64 bytes to memory.
    fn store_bytes(b: Self::B, to: &mut [u8; BYTES]);
    /// `b >> by & mask` of each byte; `mask` has no bit that a neighbour's could come to.
    fn shift_mask(b: Self::B, by: u32, mask: u8) -> Self::B;
    /// `low | high << by` of each byte; nothing is shifted out of a byte.
    fn join(low: Self::B, high: Self::B, by: u32) -> Self::B;
    /// `low`, with `value` added to byte `16 r + i` where bit `i` of `bits[r]` is set.
    fn add_where(low: Self::B, bits: [u16; 4], value: u8) -> Self::B;
    /// The entries of `table` that the bytes, below 16, name.
    fn entries(table: &[i8; 16], b: Self::B) -> Self::B;
    /// Signed bytes as [`Bytes::dot_signed`] takes them: raised by [`Bytes::RAISED`].
    fn biased(b: Self::B) -> Self::B;
    /// The same of bytes that are 128 above what they stand for.
    fn lowered(b: Self::B) -> Self::B;
    /// From four vectors of (row, 4 groups of 4 bytes), rows `q`, `4 + q`, `8 + q`, `12 + q` in vector `q`, to four
    /// vectors of (sixteen rows, 4 bytes).
    fn transpose(quads: [Self::B; 4]) -> [Self::B; 4];
    /// Sixteen zeros.
    fn zero() -> Self::I;
    /// Sixteen times `x << by`; zeros if `by` is [`NOT_RAISED`].
    fn splat_shifted(x: u32, by: u32) -> Self::I;
    /// Adds to lane `r` the products of bytes `4 r..4 r + 4` of `w`, 0 to 127, with the four signed bytes of `x`,
    /// which are not -128.
    fn dot(sum: Self::I, w: Self::B, x: i32) -> Self::I;
    /// The same for any bytes that come from [`Bytes::biased`].
    fn dot_signed(sum: Self::I, w: Self::B, x: i32) -> Self::I;
    /// The sums as floats.
    fn floats_of(sum: Self::I) -> Self::V;
    /// The lower and the upper f16 of each of sixteen little-endian pairs.
    #[inline(always)]
    fn pairs_of_halves(pairs: &[u32; LANES]) -> [Self::V; 2] {
        let (mut lower, mut upper) = ([[0; 2]; LANES], [[0; 2]; LANES]);
        for i in 0..LANES {
            let [a, b, c, d] = pairs[i].to_le_bytes();
            (lower[i], upper[i]) = ([a, b], [c, d]);
        }
        [Self::halves(&lower), Self::halves(&upper)]
    }
    /// `out[c][r] = rows[r][c]`.
    #[inline(always)]
    fn transpose_floats(rows: &[[f32; LANES]; LANES], out: &mut [[f32; LANES]; LANES]) {
        for c in 0..LANES {
            for r in 0..LANES {
                out[c][r] = rows[r][c];
            }
        }
    }
}

// Calls, not inlined: each is a loop that the compiler vectorises by itself, and copies of 64 steps in every kernel would
// take it minutes.
impl Bytes for Portable {
    type B = [u8; BYTES];
    type I = [i32; LANES];
    const RAISED: u32 = NOT_RAISED;

    #[inline(never)]
    fn gather(rows: [&[u8; 16]; 4]) -> Self::B {
        let mut out = [0; BYTES];
        for (out, row) in out.as_chunks_mut::<16>().0.iter_mut().zip(rows) {
            *out = *row;
        }
        out
    }

    #[inline(never)]
    fn load_bytes(from: &[u8; BYTES]) -> Self::B {
        *from
    }

    #[inline(never)]
    fn store_bytes(b: Self::B, to: &mut [u8; BYTES]) {
        *to = b;
    }

    #[inline(never)]
    fn shift_mask(b: Self::B, by: u32, mask: u8) -> Self::B {
        std::array::from_fn(|i| b[i] >> by & mask)
    }

    #[inline(never)]
    fn join(low: Self::B, high: Self::B, by: u32) -> Self::B {
        std::array::from_fn(|i| low[i] | high[i] << by)
    }

    #[inline(never)]
    fn add_where(low: Self::B, bits: [u16; 4], value: u8) -> Self::B {
        std::array::from_fn(|i| low[i] + (bits[i / 16] >> (i % 16) & 1) as u8 * value)
    }

    #[inline(never)]
    fn entries(table: &[i8; 16], b: Self::B) -> Self::B {
        std::array::from_fn(|i| table[usize::from(b[i] & 15)] as u8)
    }

    #[inline(never)]
    fn biased(b: Self::B) -> Self::B {
        b
    }

    #[inline(never)]
    fn lowered(b: Self::B) -> Self::B {
        b.map(|b| b ^ 0x80)
    }

    #[inline(never)]
    fn transpose(quads: [Self::B; 4]) -> [Self::B; 4] {
        let mut out = [[0; BYTES]; 4];
        for (q, quad) in quads.iter().enumerate() {
            for (l, row) in quad.as_chunks::<16>().0.iter().enumerate() {
                for (j, four) in row.as_chunks::<4>().0.iter().enumerate() {
                    out[j].as_chunks_mut::<4>().0[4 * l + q] = *four;
                }
            }
        }
        out
    }

    #[inline(never)]
    fn zero() -> Self::I {
        [0; LANES]
    }

    #[inline(never)]
    fn splat_shifted(x: u32, by: u32) -> Self::I {
        [x.checked_shl(by).unwrap_or(0) as i32; LANES]
    }

    #[inline(never)]
    fn dot(sum: Self::I, w: Self::B, x: i32) -> Self::I {
        Self::dot_signed(sum, w, x)
    }

    #[inline(never)]
    fn dot_signed(mut sum: Self::I, w: Self::B, x: i32) -> Self::I {
        let x = x.to_le_bytes();
        for (r, sum) in sum.iter_mut().enumerate() {
            for (j, x) in x.iter().enumerate() {
                *sum += i32::from(w[4 * r + j] as i8) * i32::from(*x as i8);
            }
        }
        sum
    }

    #[inline(never)]
    fn floats_of(sum: Self::I) -> Self::V {
        std::array::from_fn(|i| sum[i] as f32)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::lanes::{Avx2, Avx512Vnni};
    use super::{BYTES, Bytes, LANES, NOT_RAISED};
    use std::arch::x86_64::*;

    // SAFETY of every block below: this type is named only inside functions that enable its features (see the head
    // of `lanes`); loads and stores are unaligned ones on arrays of exactly the length that the instruction touches.
    impl Bytes for Avx512Vnni {
        type B = __m512i;
        type I = __m512i;
        // `vpdpbusd` takes unsigned bytes on its left: signed ones are raised by 128.
        const RAISED: u32 = 7;

        #[inline(always)]
        fn gather(rows: [&[u8; 16]; 4]) -> __m512i {
            // SAFETY: as said above.
            unsafe {
                let load = |row: &[u8; 16]| _mm_loadu_si128(row.as_ptr().cast());
                let first = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(rows[0])), load(rows[1]));
                let second = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(rows[2])), load(rows[3]));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
            }
        }

        #[inline(always)]
        fn load_bytes(from: &[u8; BYTES]) -> __m512i {
            // SAFETY: as said above.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }

        #[inline(always)]
        fn store_bytes(b: __m512i, to: &mut [u8; BYTES]) {
            // SAFETY: as said above.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), b) }
        }

        #[inline(always)]
        fn shift_mask(b: __m512i, by: u32, mask: u8) -> __m512i {
            // SAFETY: as said above.
            unsafe {
                let shifted = _mm512_srl_epi16(b, _mm_cvtsi32_si128(by as i32));
                _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
            }
        }

        #[inline(always)]
        fn join(low: __m512i, high: __m512i, by: u32) -> __m512i {
            // SAFETY: as said above.
            unsafe { _mm512_or_si512(low, _mm512_sll_epi16(high, _mm_cvtsi32_si128(by as i32))) }
        }

        #[inline(always)]
        fn add_where(low: __m512i, bits: [u16; 4], value: u8) -> __m512i {
            let mask = bits.iter().rev().fold(0u64, |mask, bits| mask << 16 | u64::from(*bits));
            // SAFETY: as said above.
            unsafe { _mm512_mask_add_epi8(low, mask, low, _mm512_set1_epi8(value as i8)) }
        }

        #[inline(always)]
        fn entries(table: &[i8; 16], b: __m512i) -> __m512i {
            // SAFETY: as said above.
            unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), b) }
        }

        #[inline(always)]
        fn biased(b: __m512i) -> __m512i {
            // SAFETY: as said above.
            unsafe { _mm512_xor_si512(b, _mm512_set1_epi8(-128)) }
        }

        #[inline(always)]
        fn lowered(b: __m512i) -> __m512i {
            b
        }

        #[inline(always)]
        fn transpose(q: [__m512i; 4]) -> [__m512i; 4] {
            // SAFETY: as said above.
            unsafe {
                let (a, b) = (_mm512_unpacklo_epi32(q[0], q[1]), _mm512_unpackhi_epi32(q[0], q[1]));
                let (c, d) = (_mm512_unpacklo_epi32(q[2], q[3]), _mm512_unpackhi_epi32(q[2], q[3]));
                [
                    _mm512_unpacklo_epi64(a, c),
                    _mm512_unpackhi_epi64(a, c),
                    _mm512_unpacklo_epi64(b, d),
                    _mm512_unpackhi_epi64(b, d),
                ]
            }
        }

        #[inline(always)]
        fn zero() -> __m512i {
            // SAFETY: as said above.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        fn splat_shifted(x: u32, by: u32) -> __m512i {
            // SAFETY: as said above.
            unsafe { _mm512_sll_epi32(_mm512_set1_epi32(x as i32), _mm_cvtsi32_si128(by as i32)) }
        }

        #[inline(always)]
        fn dot(sum: __m512i, w: __m512i, x: i32) -> __m512i {
            // SAFETY: as said above.
            unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x)) }
        }

        #[inline(always)]
        fn dot_signed(sum: __m512i, w: __m512i, x: i32) -> __m512i {
            Self::dot(sum, w, x)
        }

        #[inline(always)]
        fn floats_of(sum: __m512i) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_cvtepi32_ps(sum) }
        }

        #[inline(always)]
        fn pairs_of_halves(pairs: &[u32; LANES]) -> [__m512; 2] {
            // SAFETY: as said above.
            unsafe {
                let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
                let lower = _mm512_cvtepi32_epi16(pairs);
                let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs));
                [_mm512_cvtph_ps(lower), _mm512_cvtph_ps(upper)]
            }
        }

        #[inline(always)]
        fn transpose_floats(rows: &[[f32; LANES]; LANES], out: &mut [[f32; LANES]; LANES]) {
            // SAFETY: as said above.
            unsafe {
                let mut quads = [[_mm512_setzero_si512(); 4]; 4];
                for (q, quad) in quads.iter_mut().enumerate() {
                    for (j, part) in quad.iter_mut().enumerate() {
                        // Floats 4 j to 4 j + 4 of rows q, 4 + q, 8 + q, 12 + q.
                        let load = |row: usize| _mm_loadu_si128(rows[row].as_ptr().add(4 * j).cast());
                        let first = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(q)), load(4 + q));
                        let second = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(8 + q)), load(12 + q));
                        *part = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
                    }
                }
                for j in 0..4 {
                    let columns = Self::transpose([quads[0][j], quads[1][j], quads[2][j], quads[3][j]]);
                    for (c, column) in columns.iter().enumerate() {
                        _mm512_storeu_si512(out[4 * j + c].as_mut_ptr().cast(), *column);
                    }
                }
            }
        }
    }

    // SAFETY of every block below: as above, for AVX2.
    impl Bytes for Avx2 {
        type B = [__m256i; 2];
        type I = [__m256i; 2];
        const RAISED: u32 = NOT_RAISED;

        #[inline(always)]
        fn gather(rows: [&[u8; 16]; 4]) -> Self::B {
            // SAFETY: as said above.
            unsafe {
                let load = |row: &[u8; 16]| _mm_loadu_si128(row.as_ptr().cast());
                [
                    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(rows[0])), load(rows[1])),
                    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(rows[2])), load(rows[3])),
                ]
            }
        }

        #[inline(always)]
        fn load_bytes(from: &[u8; BYTES]) -> Self::B {
            // SAFETY: as said above.
            unsafe {
                let from = from.as_ptr().cast::<__m256i>();
                [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))]
            }
        }

        #[inline(always)]
        fn store_bytes(b: Self::B, to: &mut [u8; BYTES]) {
            // SAFETY: as said above.
            unsafe {
                let to = to.as_mut_ptr().cast::<__m256i>();
                _mm256_storeu_si256(to, b[0]);
                _mm256_storeu_si256(to.add(1), b[1]);
            }
        }

        #[inline(always)]
        fn shift_mask(mut b: Self::B, by: u32, mask: u8) -> Self::B {
            // SAFETY: as said above.
            unsafe {
                let (by, mask) = (_mm_cvtsi32_si128(by as i32), _mm256_set1_epi8(mask as i8));
                for b in &mut b {
                    *b = _mm256_and_si256(_mm256_srl_epi16(*b, by), mask);
                }
            }
            b
        }

        #[inline(always)]
        fn join(mut low: Self::B, high: Self::B, by: u32) -> Self::B {
            // SAFETY: as said above.
            unsafe {
                let by = _mm_cvtsi32_si128(by as i32);
                for (low, high) in low.iter_mut().zip(high) {
                    *low = _mm256_or_si256(*low, _mm256_sll_epi16(high, by));
                }
            }
            low
        }

        #[inline(always)]
        fn add_where(mut low: Self::B, bits: [u16; 4], value: u8) -> Self::B {
            // SAFETY: as said above.
            unsafe {
                // Each byte gets a copy of the byte of `bits` that has its bit, then keeps that bit alone.
                let which = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0, 0x0101_0101_0101_0101);
                for (half, low) in low.iter_mut().enumerate() {
                    let pair = |bits: u16| _mm_set1_epi16(bits as i16);
                    let both = _mm256_castsi128_si256(pair(bits[2 * half]));
                    let both = _mm256_inserti128_si256::<1>(both, pair(bits[2 * half + 1]));
                    let own = _mm256_and_si256(_mm256_shuffle_epi8(both, spread), which);
                    let set = _mm256_cmpeq_epi8(own, which);
                    *low = _mm256_add_epi8(*low, _mm256_and_si256(set, _mm256_set1_epi8(value as i8)));
                }
            }
            low
        }

        #[inline(always)]
        fn entries(table: &[i8; 16], mut b: Self::B) -> Self::B {
            // SAFETY: as said above.
            unsafe {
                let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                for b in &mut b {
                    *b = _mm256_shuffle_epi8(table, *b);
                }
            }
            b
        }

        #[inline(always)]
        fn biased(b: Self::B) -> Self::B {
            b
        }

        #[inline(always)]
        fn lowered(mut b: Self::B) -> Self::B {
            for b in &mut b {
                // SAFETY: as said above.
                *b = unsafe { _mm256_xor_si256(*b, _mm256_set1_epi8(-128)) };
            }
            b
        }

        #[inline(always)]
        fn transpose(q: [Self::B; 4]) -> [Self::B; 4] {
            let mut out = [q[0]; 4];
            // SAFETY: as said above.
            unsafe {
                for half in 0..2 {
                    let [q0, q1, q2, q3] = [q[0][half], q[1][half], q[2][half], q[3][half]];
                    let (a, b) = (_mm256_unpacklo_epi32(q0, q1), _mm256_unpackhi_epi32(q0, q1));
                    let (c, d) = (_mm256_unpacklo_epi32(q2, q3), _mm256_unpackhi_epi32(q2, q3));
                    out[0][half] = _mm256_unpacklo_epi64(a, c);
                    out[1][half] = _mm256_unpackhi_epi64(a, c);
                    out[2][half] = _mm256_unpacklo_epi64(b, d);
                    out[3][half] = _mm256_unpackhi_epi64(b, d);
                }
            }
            out
        }

        #[inline(always)]
        fn zero() -> Self::I {
            // SAFETY: as said above.
            unsafe { [_mm256_setzero_si256(); 2] }
        }

        #[inline(always)]
        fn splat_shifted(x: u32, by: u32) -> Self::I {
            // SAFETY: as said above.
            unsafe { [_mm256_sll_epi32(_mm256_set1_epi32(x as i32), _mm_cvtsi32_si128(by as i32)); 2] }
        }

        // Pairs of products are added in 16 bits: 2 * 127 * 127 fits.
        #[inline(always)]
        fn dot(mut sum: Self::I, w: Self::B, x: i32) -> Self::I {
            // SAFETY: as said above.
            unsafe {
                let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
                for (sum, w) in sum.iter_mut().zip(w) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
                }
            }
            sum
        }

        // The sign of the weight moves to the activation: 2 * 128 * 127 fits 16 bits.
        #[inline(always)]
        fn dot_signed(mut sum: Self::I, w: Self::B, x: i32) -> Self::I {
            // SAFETY: as said above.
            unsafe {
                let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
                for (sum, w) in sum.iter_mut().zip(w) {
                    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, ones));
                }
            }
            sum
        }

        #[inline(always)]
        fn floats_of(sum: Self::I) -> Self::V {
            // SAFETY: as said above.
            unsafe { [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])] }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CodePath, Cpu, Task};
    use super::*;

    #[test]
    fn products_of_the_largest_numbers_are_exact_on_every_path() {
        struct All;
        impl Task for All {
            #[inline(always)]
            fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
                let raised = 1i16.checked_shl(L::RAISED).unwrap_or(0);
                let (weights, xs) = ([-128i8, -127, -1, 0, 1, 126, 127], [-127i8, -126, 0, 1, 127]);
                for n in 0..weights.len() * 625 {
                    // Each row has weights of its own, and those of a row stand in many orders.
                    let mut w = [0i8; BYTES];
                    for i in 0..BYTES {
                        w[i] = weights[(n + i * i / 7) % weights.len()];
                    }
                    let x = [xs[n % 5], xs[n / 5 % 5], xs[n / 25 % 5], xs[n / 125 % 5]];
                    let word = i32::from_le_bytes(x.map(|x| x as u8));
                    let signed = L::biased(L::load_bytes(bytemuck::cast_ref(&w)));
                    let small = L::shift_mask(L::load_bytes(bytemuck::cast_ref(&w)), 1, 127);
                    let (mut of_signed, mut of_small) = ([0.0; LANES], [0.0; LANES]);
                    L::store(L::floats_of(L::dot_signed(L::zero(), signed, word)), &mut of_signed);
                    L::store(L::floats_of(L::dot(L::zero(), small, word)), &mut of_small);
                    for r in 0..LANES {
                        let (mut signed, mut small) = (0.0, 0.0);
                        for j in 0..4 {
                            let (w, x) = (w[4 * r + j], f32::from(x[j]));
                            signed += f32::from(i16::from(w) + raised) * x;
                            small += f32::from(w as u8 >> 1) * x;
                        }
                        assert!(of_signed[r] == signed && of_small[r] == small, "row {r} of {n}: {w:?} {x:?}");
                    }
                }
            }
        }
        for cpu in CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path))) {
            cpu.run(All);
        }
    }
}
