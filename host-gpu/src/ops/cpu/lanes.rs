//! Sixteen floats at a time, on what the processor has.
//!
//! A kernel is written once over [`Lanes`] and compiled once for each code path. The methods of
//! [`Avx512Vnni`], [`Avx2`] and `neon::Neon` may be inlined only into functions that enable those features;
//! only `ops::cpu` names such functions, after it asked the processor. A closure does not count as such
//! a function: kernels use loops where `map` or `from_fn` would read better.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vendor intrinsics; each is one instruction on values or checked arrays")
)]

/// How many floats a vector of any path holds.
pub const LANES: usize = 16;
/// Bytes that a prefetch brings.
pub const CACHE_LINE: usize = 64;

/// A vector of sixteen floats and what kernels do with it.
pub trait Lanes: Copy {
    /// The vector.
    type V: Copy;
    /// All lanes `x`.
    fn splat(x: f32) -> Self::V;
    /// Sixteen floats from memory.
    fn load(from: &[f32; LANES]) -> Self::V;
    /// Sixteen floats to memory.
    fn store(v: Self::V, to: &mut [f32; LANES]);
    /// `a + b`.
    fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the path has such an instruction.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of the lanes, always in the same order.
    fn sum(v: Self::V) -> f32;
    /// The larger of both in each lane.
    fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The largest magnitude in two vectors.
    fn max_abs(a: Self::V, b: Self::V) -> f32;
    /// The nearest whole numbers, which are -128 to 127; halves go to the even one.
    fn rounded(v: Self::V) -> [i8; LANES];
    /// `low * d + m` and `high * d + m` of the nibbles of sixteen bytes.
    fn nibbles(q: &[u8; 16], d: f32, m: f32) -> [Self::V; 2];
    /// The entries of `table` that the low and the high nibbles of sixteen bytes name, as floats.
    fn lookup(q: &[u8; 16], table: &[i8; 16]) -> [Self::V; 2];
    /// Sixteen signed bytes as floats.
    fn bytes(q: &[i8; 16]) -> Self::V;
    /// Sixteen f16 as floats.
    fn halves(h: &[[u8; 2]; 16]) -> Self::V;
    /// Sixteen little-endian floats, wherever they stand.
    #[inline(always)]
    fn floats(from: &[[u8; 4]; 16]) -> Self::V {
        let mut floats = [0.0; LANES];
        for i in 0..LANES {
            floats[i] = f32::from_le_bytes(from[i]);
        }
        Self::load(&floats)
    }
    /// One f16 as a float.
    fn half(h: [u8; 2]) -> f32;
    /// Two f16 that stand side by side as floats.
    fn two_halves(h: [[u8; 2]; 2]) -> [f32; 2];
    /// `a * b + c` on single floats, rounded as `fma` does.
    fn fma1(a: f32, b: f32, c: f32) -> f32;
    /// Asks for the cache line at `address`, which may be any number: nothing is read.
    fn prefetch(address: *const u8);
    /// Asks for so many bytes from `address` on.
    #[inline(always)]
    fn prefetch_bytes(address: *const u8, bytes: usize) {
        for line in 0..bytes.div_ceil(CACHE_LINE) {
            Self::prefetch(address.wrapping_add(line * CACHE_LINE));
        }
    }
}

/// Plain arrays: any processor.
#[derive(Clone, Copy)]
pub struct Portable;

impl Lanes for Portable {
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self::V {
        *from
    }

    #[inline(always)]
    fn store(v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }

    // Two roundings: where there is no such instruction, `mul_add` is a call into libm.
    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        let mut half = LANES / 2;
        let mut v = v;
        while half > 0 {
            for i in 0..half {
                v[i] += v[i + half];
            }
            half /= 2;
        }
        v[0]
    }

    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn max_abs(a: Self::V, b: Self::V) -> f32 {
        a.iter().chain(&b).fold(0.0, |max, x| x.abs().max(max))
    }

    #[inline(always)]
    fn rounded(v: Self::V) -> [i8; LANES] {
        // 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits.
        std::array::from_fn(|i| (v[i] + 12_582_912.0).to_bits() as i8)
    }

    #[inline(always)]
    fn nibbles(q: &[u8; 16], d: f32, m: f32) -> [Self::V; 2] {
        [std::array::from_fn(|i| f32::from(q[i] & 15) * d + m), std::array::from_fn(|i| f32::from(q[i] >> 4) * d + m)]
    }

    #[inline(always)]
    fn lookup(q: &[u8; 16], table: &[i8; 16]) -> [Self::V; 2] {
        let value = |i: u8| f32::from(table[usize::from(i)]);
        [std::array::from_fn(|i| value(q[i] & 15)), std::array::from_fn(|i| value(q[i] >> 4))]
    }

    #[inline(always)]
    fn bytes(q: &[i8; 16]) -> Self::V {
        std::array::from_fn(|i| f32::from(q[i]))
    }

    #[inline(always)]
    fn halves(h: &[[u8; 2]; 16]) -> Self::V {
        std::array::from_fn(|i| Self::half(h[i]))
    }

    #[inline(always)]
    fn half(h: [u8; 2]) -> f32 {
        half::f16::from_le_bytes(h).to_f32_const()
    }

    #[inline(always)]
    fn two_halves(h: [[u8; 2]; 2]) -> [f32; 2] {
        [Self::half(h[0]), Self::half(h[1])]
    }

    #[inline(always)]
    fn fma1(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512Vnni};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes};
    use std::arch::x86_64::*;

    /// 512-bit registers: one vector is one register.
    #[derive(Clone, Copy)]
    pub struct Avx512Vnni;

    /// 256-bit registers with fused multiply-add: one vector is two registers.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// One f16 to a float.
    ///
    /// # Safety
    /// The processor must have F16C.
    #[inline(always)]
    unsafe fn half_to_f32(h: [u8; 2]) -> f32 {
        let bits = i32::from(u16::from_le_bytes(h));
        // SAFETY: values only; the caller vouches for the features.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))) }
    }

    /// Two f16 to floats with one conversion.
    ///
    /// # Safety
    /// The processor must have F16C.
    #[inline(always)]
    unsafe fn two_halves_to_f32(h: [[u8; 2]; 2]) -> [f32; 2] {
        let bits = i32::from_le_bytes([h[0][0], h[0][1], h[1][0], h[1][1]]);
        // SAFETY: values only; the caller vouches for the features.
        unsafe {
            let both = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
            [_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both))]
        }
    }

    /// The sum of eight lanes: halves, then quarters, then neighbours.
    ///
    /// # Safety
    /// The processor must have AVX.
    #[inline(always)]
    unsafe fn sum8(v: __m256) -> f32 {
        // SAFETY: values only; the caller vouches for the features.
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    // SAFETY of every block below: this type is named only inside functions that enable
    // avx512f/bw/vl/dq/vnni, avx2, fma and f16c (see the module's head); loads and stores are
    // unaligned ones on arrays of exactly the length that the instruction touches.
    impl Lanes for Avx512Vnni {
        type V = __m512;

        #[inline(always)]
        fn splat(x: f32) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(v: __m512, to: &mut [f32; LANES]) {
            // SAFETY: as said above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }

        #[inline(always)]
        fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn sum(v: __m512) -> f32 {
            // SAFETY: as said above.
            unsafe {
                let high = _mm512_extractf32x8_ps::<1>(v);
                sum8(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            }
        }

        #[inline(always)]
        fn max(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_max_ps(a, b) }
        }

        #[inline(always)]
        fn floats(from: &[[u8; 4]; 16]) -> __m512 {
            // SAFETY: as said above; x86 is little-endian.
            unsafe { _mm512_loadu_ps(from.as_ptr().cast()) }
        }

        #[inline(always)]
        fn max_abs(a: __m512, b: __m512) -> f32 {
            // SAFETY: as said above.
            unsafe { _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b))) }
        }

        #[inline(always)]
        fn rounded(v: __m512) -> [i8; LANES] {
            let mut out = [0; LANES];
            // SAFETY: as said above. The conversion rounds to the nearest, by default.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) };
            out
        }

        // The sixteen values `d * q + m` are a table in one register, and a nibble looks its
        // value up: no masking (a lookup reads four bits), no conversion, no multiplication.
        #[inline(always)]
        fn nibbles(q: &[u8; 16], d: f32, m: f32) -> [__m512; 2] {
            // SAFETY: as said above.
            unsafe {
                let steps = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
                let table = _mm512_fmadd_ps(steps, _mm512_set1_ps(d), _mm512_set1_ps(m));
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(q.as_ptr().cast()));
                [_mm512_permutexvar_ps(bytes, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table)]
            }
        }

        #[inline(always)]
        fn lookup(q: &[u8; 16], table: &[i8; 16]) -> [__m512; 2] {
            let table = Self::bytes(table);
            // SAFETY: as said above.
            unsafe {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(q.as_ptr().cast()));
                [_mm512_permutexvar_ps(bytes, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table)]
            }
        }

        #[inline(always)]
        fn bytes(q: &[i8; 16]) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q.as_ptr().cast()))) }
        }

        #[inline(always)]
        fn halves(h: &[[u8; 2]; 16]) -> __m512 {
            // SAFETY: as said above.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(h.as_ptr().cast())) }
        }

        #[inline(always)]
        fn half(h: [u8; 2]) -> f32 {
            // SAFETY: as said above.
            unsafe { half_to_f32(h) }
        }

        #[inline(always)]
        fn two_halves(h: [[u8; 2]; 2]) -> [f32; 2] {
            // SAFETY: as said above.
            unsafe { two_halves_to_f32(h) }
        }

        #[inline(always)]
        fn fma1(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        fn prefetch(address: *const u8) {
            // SAFETY: as said above; a prefetch of an address that is not mapped does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }

    /// Sixteen bytes as floats, times `d` plus `m`.
    ///
    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[inline(always)]
    unsafe fn spread(n: __m128i, d: __m256, m: __m256) -> [__m256; 2] {
        // SAFETY: values only; the caller vouches for the features.
        unsafe {
            let first = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(n));
            let second = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(n)));
            [_mm256_fmadd_ps(first, d, m), _mm256_fmadd_ps(second, d, m)]
        }
    }

    // SAFETY of every block below: this type is named only inside functions that enable avx2,
    // fma and f16c; loads and stores are unaligned ones on arrays long enough.
    impl Lanes for Avx2 {
        type V = [__m256; 2];

        #[inline(always)]
        fn splat(x: f32) -> Self::V {
            // SAFETY: as said above.
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self::V {
            // SAFETY: as said above.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }

        #[inline(always)]
        fn store(v: Self::V, to: &mut [f32; LANES]) {
            // SAFETY: as said above.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
            }
        }

        #[inline(always)]
        fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as said above.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }

        #[inline(always)]
        fn mul(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as said above.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }

        #[inline(always)]
        fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: as said above.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }

        #[inline(always)]
        fn sum(v: Self::V) -> f32 {
            // SAFETY: as said above.
            unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
        }

        #[inline(always)]
        fn max(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: as said above.
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }

        #[inline(always)]
        fn floats(from: &[[u8; 4]; 16]) -> Self::V {
            // SAFETY: as said above; x86 is little-endian.
            unsafe { [_mm256_loadu_ps(from.as_ptr().cast()), _mm256_loadu_ps(from.as_ptr().add(8).cast())] }
        }

        #[inline(always)]
        fn max_abs(a: Self::V, b: Self::V) -> f32 {
            // SAFETY: as said above.
            unsafe {
                let sign = _mm256_set1_ps(-0.0);
                let a = _mm256_max_ps(_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1]));
                let b = _mm256_max_ps(_mm256_andnot_ps(sign, b[0]), _mm256_andnot_ps(sign, b[1]));
                let mut eight = [0.0; 8];
                _mm256_storeu_ps(eight.as_mut_ptr(), _mm256_max_ps(a, b));
                let mut half = 4;
                while half > 0 {
                    for i in 0..half {
                        eight[i] = f32::max(eight[i], eight[i + half]);
                    }
                    half /= 2;
                }
                eight[0]
            }
        }

        #[inline(always)]
        fn rounded(v: Self::V) -> [i8; LANES] {
            let mut out = [0; LANES];
            // SAFETY: as said above. The conversion rounds to the nearest, by default.
            unsafe {
                let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            }
            out
        }

        #[inline(always)]
        fn nibbles(q: &[u8; 16], d: f32, m: f32) -> [Self::V; 2] {
            // SAFETY: as said above.
            unsafe {
                let (d, m) = (_mm256_set1_ps(d), _mm256_set1_ps(m));
                let all = _mm_loadu_si128(q.as_ptr().cast());
                let mask = _mm_set1_epi8(15);
                let low = _mm_and_si128(all, mask);
                let high = _mm_and_si128(_mm_srli_epi16::<4>(all), mask);
                [spread(low, d, m), spread(high, d, m)]
            }
        }

        #[inline(always)]
        fn lookup(q: &[u8; 16], table: &[i8; 16]) -> [Self::V; 2] {
            let (mut low, mut high) = ([0; 16], [0; 16]);
            // SAFETY: as said above.
            unsafe {
                let (all, mask) = (_mm_loadu_si128(q.as_ptr().cast()), _mm_set1_epi8(15));
                let table = _mm_loadu_si128(table.as_ptr().cast());
                let values = _mm_shuffle_epi8(table, _mm_and_si128(all, mask));
                _mm_storeu_si128(low.as_mut_ptr().cast(), values);
                let values = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16::<4>(all), mask));
                _mm_storeu_si128(high.as_mut_ptr().cast(), values);
            }
            [Self::bytes(&low), Self::bytes(&high)]
        }

        #[inline(always)]
        fn bytes(q: &[i8; 16]) -> Self::V {
            // SAFETY: as said above.
            unsafe {
                let all = _mm_loadu_si128(q.as_ptr().cast());
                [
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all))),
                ]
            }
        }

        #[inline(always)]
        fn halves(h: &[[u8; 2]; 16]) -> Self::V {
            // SAFETY: as said above.
            unsafe {
                let from = h.as_ptr().cast::<__m128i>();
                [_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))]
            }
        }

        #[inline(always)]
        fn half(h: [u8; 2]) -> f32 {
            // SAFETY: as said above.
            unsafe { half_to_f32(h) }
        }

        #[inline(always)]
        fn two_halves(h: [[u8; 2]; 2]) -> [f32; 2] {
            // SAFETY: as said above.
            unsafe { two_halves_to_f32(h) }
        }

        #[inline(always)]
        fn fma1(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        fn prefetch(address: *const u8) {
            // SAFETY: as said above; a prefetch of an address that is not mapped does nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::Bytes;
    use super::super::{CodePath, Cpu, Task};
    use super::*;

    #[test]
    fn every_f16_becomes_the_same_float_on_every_path() {
        struct All;
        impl Task for All {
            #[inline(always)]
            fn run<L: Bytes, const R: usize, const T: usize, const S: usize>(self) {
                for first in (0..=u16::MAX).step_by(LANES) {
                    let (mut halves, mut pairs) = ([[0; 2]; LANES], [0; LANES]);
                    for i in 0..LANES {
                        let bits = first + i as u16;
                        halves[i] = bits.to_le_bytes();
                        pairs[i] = u32::from(bits) << 16 | u32::from(!bits);
                    }
                    let (mut all, mut lower, mut upper) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
                    L::store(L::halves(&halves), &mut all);
                    let [low, high] = L::pairs_of_halves(&pairs);
                    L::store(low, &mut lower);
                    L::store(high, &mut upper);
                    for i in 0..LANES {
                        let [single, next] = L::two_halves([halves[i], halves[(i + 1) % LANES]]);
                        for (got, bits) in [
                            (all[i], first + i as u16),
                            (upper[i], first + i as u16),
                            (lower[i], !(first + i as u16)),
                            (L::half(halves[i]), first + i as u16),
                            (single, first + i as u16),
                            (next, first + ((i + 1) % LANES) as u16),
                        ] {
                            let want = half::f16::from_bits(bits).to_f32_const();
                            assert!(
                                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                                "{bits:#x} {got}"
                            );
                        }
                    }
                }
            }
        }
        for cpu in CodePath::ALL.iter().filter_map(|path| Cpu::new(Some(*path))) {
            cpu.run(All);
        }
    }
}
