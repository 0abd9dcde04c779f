//! Keys and values as they stand in a page.

use crate::kv::{HeadLayout, SCALED};
use crate::ops::cpu::lanes::{LANES, Lanes};
use std::marker::PhantomData;

/// How numbers are stored, and how a vector of them is read.
pub(super) trait Stored {
    /// Whether each [`SCALED`] numbers have a scale, behind the numbers.
    const HAS_SCALES: bool;
    /// Bytes of a number.
    const BYTES: usize;
    /// So many rows read them as they are, even if that is done twice.
    const FEW_ROWS: usize;
    /// Sixteen numbers from number `at` on.
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V;
}

/// Pieces of a side at equal distances. That all lie inside is checked when it is made, and not again for each.
pub(super) struct Pieces<'a> {
    next: *const u8,
    step: usize,
    left: usize,
    width: usize,
    side: PhantomData<&'a [u8]>,
}

impl<'a> Pieces<'a> {
    /// `count` pieces of `width` bytes, `step` bytes from one to the next, the first at `from`.
    ///
    /// # Panics
    /// If one is not inside.
    #[inline(always)]
    pub(super) fn new(side: &'a [u8], from: usize, step: usize, count: usize, width: usize) -> Self {
        assert!(count == 0 || from + (count - 1) * step + width <= side.len(), "pieces are inside");
        Self { next: side.as_ptr().wrapping_add(from), step, left: count, width, side: PhantomData }
    }

    /// What stands `by` bytes from the next one: it may be anything, and is only asked for.
    #[inline(always)]
    pub(super) fn ahead(&self, by: isize) -> *const u8 {
        self.next.wrapping_offset(by)
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let piece = self.next;
        self.next = piece.wrapping_add(self.step);
        #[expect(unsafe_code, reason = "a check for each vector would take as long as what is computed with it")]
        // SAFETY: it is one of the pieces that `new` found to be inside the slice, which is borrowed for as long.
        Some(unsafe { std::slice::from_raw_parts(piece, self.width) })
    }
}

/// `N` bytes from `at` on.
#[inline(always)]
pub(super) fn bytes_at<const N: usize>(side: &[u8], at: usize) -> &[u8; N] {
    side[at..].first_chunk().expect("vectors are read where READ_BEYOND allows")
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Q8;

impl Stored for F32 {
    const HAS_SCALES: bool = false;
    const BYTES: usize = 4;
    const FEW_ROWS: usize = 8;
    #[inline(always)]
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V {
        L::floats(bytemuck::cast_ref(bytes_at::<64>(side, 4 * at)))
    }
}

impl Stored for F16 {
    const HAS_SCALES: bool = false;
    const BYTES: usize = 2;
    const FEW_ROWS: usize = 8;
    #[inline(always)]
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V {
        L::halves(bytemuck::cast_ref(bytes_at::<32>(side, 2 * at)))
    }
}

impl Stored for Q8 {
    const HAS_SCALES: bool = true;
    const BYTES: usize = 1;
    // Scales take as long to apply as numbers.
    const FEW_ROWS: usize = 4;
    #[inline(always)]
    fn read<L: Lanes>(side: &[u8], at: usize) -> L::V {
        L::bytes(bytemuck::cast_ref(bytes_at::<16>(side, at)))
    }
}

/// `S` vectors, from vector `first` on, of the value of token `at` of the page; `piece` begins with them.
#[inline(always)]
pub(super) fn values<L: Lanes, C: Stored, const S: usize>(
    layout: &HeadLayout,
    side: &[u8],
    at: usize,
    piece: &[u8],
    first: usize,
) -> [L::V; S] {
    let mut v = [L::splat(0.0); S];
    for s in 0..S {
        v[s] = C::read::<L>(piece, s * LANES);
        if C::HAS_SCALES {
            let scale = at * layout.head_dim.div_ceil(SCALED) + (first + s) * LANES / SCALED;
            let scale = L::half(*bytes_at(side, layout.scales_at() + 2 * scale));
            v[s] = L::mul(v[s], L::splat(scale));
        }
    }
    v
}
