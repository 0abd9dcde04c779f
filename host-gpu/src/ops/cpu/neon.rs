//! [`Lanes`] and [`Bytes`] on NEON: one vector is four registers of 128 bits, of which there are 32.
//!
//! Nothing beyond the first ARMv8 is used: a dot product is widening multiplications and pairwise sums.

#![expect(unsafe_code, reason = "vendor intrinsics; each is one instruction on values or checked arrays")]

use super::bytes::{BYTES, Bytes, NOT_RAISED};
use super::lanes::{LANES, Lanes};
use std::arch::aarch64::*;
use std::arch::asm;

/// 128-bit registers with fused multiply-add.
#[derive(Clone, Copy)]
pub struct Neon;

/// The array of `$value` for each of a vector's registers. Not `from_fn`: a closure is not inlined into code compiled for
/// a path.
macro_rules! each {
    (|$i:ident| $value:expr) => {
        [each!($i = 0, $value), each!($i = 1, $value), each!($i = 2, $value), each!($i = 3, $value)]
    };
    ($i:ident = $n:literal, $value:expr) => {{
        let $i = $n;
        $value
    }};
}

/// `out[c][r] = rows[r][c]` of four by four.
///
/// # Safety
/// The processor must have NEON.
#[inline(always)]
unsafe fn turn(rows: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    // SAFETY: values only; the caller vouches for the features.
    unsafe {
        // Even and odd columns of two rows: `a` has r0c0 r1c0 r0c2 r1c2.
        let (a, b) = (vtrn1q_u32(rows[0], rows[1]), vtrn2q_u32(rows[0], rows[1]));
        let (c, d) = (vtrn1q_u32(rows[2], rows[3]), vtrn2q_u32(rows[2], rows[3]));
        let [a, b, c, d] =
            [vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b), vreinterpretq_u64_u32(c), vreinterpretq_u64_u32(d)];
        [
            vreinterpretq_u32_u64(vtrn1q_u64(a, c)),
            vreinterpretq_u32_u64(vtrn1q_u64(b, d)),
            vreinterpretq_u32_u64(vtrn2q_u64(a, c)),
            vreinterpretq_u32_u64(vtrn2q_u64(b, d)),
        ]
    }
}

/// Four f16 to floats.
///
/// # Safety
/// The processor must have NEON.
#[inline(always)]
unsafe fn widen(h: uint16x4_t) -> float32x4_t {
    // SAFETY: values only; the caller vouches for the features.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(h)) }
}

/// Sixteen unsigned bytes as floats, times `d` plus `m`.
///
/// # Safety
/// The processor must have NEON.
#[inline(always)]
unsafe fn spread(n: uint8x16_t, d: float32x4_t, m: float32x4_t) -> [float32x4_t; 4] {
    // SAFETY: values only; the caller vouches for the features.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(n)), vmovl_high_u8(n));
        let words =
            [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)];
        each!(|i| vfmaq_f32(m, vcvtq_f32_u32(words[i]), d))
    }
}

/// Sixteen signed bytes as floats.
///
/// # Safety
/// The processor must have NEON.
#[inline(always)]
unsafe fn signed(n: int8x16_t) -> [float32x4_t; 4] {
    // SAFETY: values only; the caller vouches for the features.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(n)), vmovl_high_s8(n));
        let words =
            [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)];
        each!(|i| vcvtq_f32_s32(words[i]))
    }
}

// SAFETY of every block below: this type is named only inside functions that enable neon (see the head of `lanes`);
// loads and stores are ones of any alignment on arrays of exactly the length that the instructions touch.
impl Lanes for Neon {
    type V = [float32x4_t; 4];

    #[inline(always)]
    fn splat(x: f32) -> Self::V {
        // SAFETY: as said above.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self::V {
        // SAFETY: as said above.
        unsafe { each!(|i| vld1q_f32(from.as_ptr().add(4 * i))) }
    }

    #[inline(always)]
    fn store(v: Self::V, to: &mut [f32; LANES]) {
        // SAFETY: as said above.
        unsafe { each!(|i| vst1q_f32(to.as_mut_ptr().add(4 * i), v[i])) };
    }

    #[inline(always)]
    fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as said above.
        unsafe { each!(|i| vaddq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as said above.
        unsafe { each!(|i| vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as said above.
        unsafe { each!(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }

    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        // SAFETY: as said above.
        unsafe {
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }

    #[inline(always)]
    fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as said above.
        unsafe { each!(|i| vmaxq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    fn floats(from: &[[u8; 4]; 16]) -> Self::V {
        // SAFETY: as said above; the path is available on little-endian processors only.
        unsafe { each!(|i| vreinterpretq_f32_u8(vld1q_u8(from.as_ptr().cast::<u8>().add(16 * i)))) }
    }

    #[inline(always)]
    fn max_abs(a: Self::V, b: Self::V) -> f32 {
        // SAFETY: as said above.
        unsafe {
            let both = each!(|i| vmaxq_f32(vabsq_f32(a[i]), vabsq_f32(b[i])));
            vmaxvq_f32(vmaxq_f32(vmaxq_f32(both[0], both[1]), vmaxq_f32(both[2], both[3])))
        }
    }

    #[inline(always)]
    fn rounded(v: Self::V) -> [i8; LANES] {
        let mut out = [0; LANES];
        // SAFETY: as said above.
        unsafe {
            let words = each!(|i| vcvtnq_s32_f32(v[i]));
            let low = vqmovn_high_s32(vqmovn_s32(words[0]), words[1]);
            let high = vqmovn_high_s32(vqmovn_s32(words[2]), words[3]);
            vst1q_s8(out.as_mut_ptr(), vqmovn_high_s16(vqmovn_s16(low), high));
        }
        out
    }

    #[inline(always)]
    fn nibbles(q: &[u8; 16], d: f32, m: f32) -> [Self::V; 2] {
        // SAFETY: as said above.
        unsafe {
            let (d, m) = (vdupq_n_f32(d), vdupq_n_f32(m));
            let all = vld1q_u8(q.as_ptr());
            [spread(vandq_u8(all, vdupq_n_u8(15)), d, m), spread(vshrq_n_u8::<4>(all), d, m)]
        }
    }

    #[inline(always)]
    fn lookup(q: &[u8; 16], table: &[i8; 16]) -> [Self::V; 2] {
        // SAFETY: as said above.
        unsafe {
            let (all, table) = (vld1q_u8(q.as_ptr()), vld1q_s8(table.as_ptr()));
            let (low, high) = (vandq_u8(all, vdupq_n_u8(15)), vshrq_n_u8::<4>(all));
            [signed(vqtbl1q_s8(table, low)), signed(vqtbl1q_s8(table, high))]
        }
    }

    #[inline(always)]
    fn bytes(q: &[i8; 16]) -> Self::V {
        // SAFETY: as said above.
        unsafe { signed(vld1q_s8(q.as_ptr())) }
    }

    #[inline(always)]
    fn halves(h: &[[u8; 2]; 16]) -> Self::V {
        // SAFETY: as said above; the path is available on little-endian processors only.
        unsafe { each!(|i| widen(vreinterpret_u16_u8(vld1_u8(h.as_ptr().cast::<u8>().add(8 * i))))) }
    }

    #[inline(always)]
    fn half(h: [u8; 2]) -> f32 {
        // SAFETY: as said above.
        unsafe { vgetq_lane_f32::<0>(widen(vdup_n_u16(u16::from_le_bytes(h)))) }
    }

    #[inline(always)]
    fn two_halves(h: [[u8; 2]; 2]) -> [f32; 2] {
        let bits = u32::from_le_bytes([h[0][0], h[0][1], h[1][0], h[1][1]]);
        // SAFETY: as said above.
        unsafe {
            let both = widen(vreinterpret_u16_u32(vdup_n_u32(bits)));
            [vgetq_lane_f32::<0>(both), vgetq_lane_f32::<1>(both)]
        }
    }

    #[inline(always)]
    fn fma1(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a hint; one for an address that is not mapped does nothing.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) address.addr(), options(nomem, nostack, preserves_flags)) }
    }
}

// SAFETY of every block below: as above.
impl Bytes for Neon {
    type B = [uint8x16_t; 4];
    type I = [int32x4_t; 4];
    const RAISED: u32 = NOT_RAISED;

    #[inline(always)]
    fn gather(rows: [&[u8; 16]; 4]) -> Self::B {
        // SAFETY: as said above.
        unsafe { each!(|i| vld1q_u8(rows[i].as_ptr())) }
    }

    #[inline(always)]
    fn load_bytes(from: &[u8; BYTES]) -> Self::B {
        // SAFETY: as said above.
        unsafe { each!(|i| vld1q_u8(from.as_ptr().add(16 * i))) }
    }

    #[inline(always)]
    fn store_bytes(b: Self::B, to: &mut [u8; BYTES]) {
        // SAFETY: as said above.
        unsafe { each!(|i| vst1q_u8(to.as_mut_ptr().add(16 * i), b[i])) };
    }

    #[inline(always)]
    fn shift_mask(b: Self::B, by: u32, mask: u8) -> Self::B {
        // SAFETY: as said above. A shift to the left by less than nothing is one to the right.
        unsafe {
            let (by, mask) = (vdupq_n_s8(-(by as i8)), vdupq_n_u8(mask));
            each!(|i| vandq_u8(vshlq_u8(b[i], by), mask))
        }
    }

    #[inline(always)]
    fn join(low: Self::B, high: Self::B, by: u32) -> Self::B {
        // SAFETY: as said above.
        unsafe {
            let by = vdupq_n_s8(by as i8);
            each!(|i| vorrq_u8(low[i], vshlq_u8(high[i], by)))
        }
    }

    #[inline(always)]
    fn add_where(low: Self::B, bits: [u16; 4], value: u8) -> Self::B {
        // SAFETY: as said above.
        unsafe {
            // Each byte gets a copy of the byte of `bits` that has its bit, which is then looked at alone.
            let which = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let value = vdupq_n_u8(value);
            each!(|i| {
                let [first, second] = bits[i].to_le_bytes();
                let set = vtstq_u8(vcombine_u8(vdup_n_u8(first), vdup_n_u8(second)), which);
                vaddq_u8(low[i], vandq_u8(set, value))
            })
        }
    }

    #[inline(always)]
    fn entries(table: &[i8; 16], b: Self::B) -> Self::B {
        // SAFETY: as said above.
        unsafe {
            let table = vreinterpretq_u8_s8(vld1q_s8(table.as_ptr()));
            each!(|i| vqtbl1q_u8(table, b[i]))
        }
    }

    #[inline(always)]
    fn biased(b: Self::B) -> Self::B {
        b
    }

    #[inline(always)]
    fn lowered(b: Self::B) -> Self::B {
        // SAFETY: as said above.
        unsafe { each!(|i| veorq_u8(b[i], vdupq_n_u8(0x80))) }
    }

    #[inline(always)]
    fn transpose(q: [Self::B; 4]) -> [Self::B; 4] {
        let mut out = q;
        for l in 0..4 {
            // SAFETY: as said above.
            unsafe {
                let columns = turn(each!(|i| vreinterpretq_u32_u8(q[i][l])));
                for j in 0..4 {
                    out[j][l] = vreinterpretq_u8_u32(columns[j]);
                }
            }
        }
        out
    }

    #[inline(always)]
    fn zero() -> Self::I {
        // SAFETY: as said above.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    fn splat_shifted(x: u32, by: u32) -> Self::I {
        // SAFETY: as said above. What is shifted by all its bits is zero.
        unsafe { [vshlq_s32(vdupq_n_s32(x as i32), vdupq_n_s32(by as i32)); 4] }
    }

    #[inline(always)]
    fn dot(sum: Self::I, w: Self::B, x: i32) -> Self::I {
        Self::dot_signed(sum, w, x)
    }

    // Pairs of products are added in 16 bits: 2 * 128 * 127 fits.
    #[inline(always)]
    fn dot_signed(sum: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: as said above.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            each!(|i| {
                let w = vreinterpretq_s8_u8(w[i]);
                let (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
                vpadalq_s16(sum[i], vpaddq_s16(low, high))
            })
        }
    }

    #[inline(always)]
    fn floats_of(sum: Self::I) -> Self::V {
        // SAFETY: as said above.
        unsafe { each!(|i| vcvtq_f32_s32(sum[i])) }
    }

    #[inline(always)]
    fn pairs_of_halves(pairs: &[u32; LANES]) -> [Self::V; 2] {
        // SAFETY: as said above.
        unsafe {
            let pairs = each!(|i| vld1q_u32(pairs.as_ptr().add(4 * i)));
            [each!(|i| widen(vmovn_u32(pairs[i]))), each!(|i| widen(vshrn_n_u32::<16>(pairs[i])))]
        }
    }

    #[inline(always)]
    fn transpose_floats(rows: &[[f32; LANES]; LANES], out: &mut [[f32; LANES]; LANES]) {
        for r in 0..4 {
            for c in 0..4 {
                // SAFETY: as said above; four floats from `4 c` and `4 r` on end in their rows.
                unsafe {
                    let columns = turn(each!(|i| vld1q_u32(rows[4 * r + i].as_ptr().add(4 * c).cast())));
                    each!(|i| vst1q_u32(out[4 * c + i].as_mut_ptr().add(4 * r).cast(), columns[i]));
                }
            }
        }
    }
}
