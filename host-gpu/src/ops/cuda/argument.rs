//! What kernels take.

use super::memory::{Buffer, View};
use bytemuck::Pod;

/// No kernel takes more.
pub(super) const MOST_ARGUMENTS: usize = 32;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// Memory of the card, or none.
    Address(u64),
    I32(i32),
    U64(u64),
    F32(f32),
}

impl Arg {
    pub(super) fn size(&self) -> u8 {
        match self {
            Self::Address(_) | Self::U64(_) => 8,
            Self::I32(_) | Self::F32(_) => 4,
        }
    }

    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Address(bits) | Self::U64(bits) => bits,
            Self::I32(value) => u64::from(value as u32),
            Self::F32(value) => u64::from(value.to_bits()),
        }
    }
}

impl<T: Pod> From<View<'_, T>> for Arg {
    fn from(view: View<'_, T>) -> Self {
        Self::Address(view.address)
    }
}

impl<T: Pod> From<Option<View<'_, T>>> for Arg {
    fn from(view: Option<View<'_, T>>) -> Self {
        Self::Address(view.map_or(0, |view| view.address))
    }
}

impl<T: Pod> From<&Buffer<T>> for Arg {
    fn from(buffer: &Buffer<T>) -> Self {
        Self::Address(buffer.address)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::I32(value)
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}
