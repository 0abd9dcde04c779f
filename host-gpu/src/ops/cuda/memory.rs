//! Memory of a card, and memory that it copies from at full speed.

#![expect(unsafe_code, reason = "gives memory back to the driver, which takes addresses")]

use super::device::{CudaError, Device};
use super::wait::Mark;
use bytemuck::Pod;
use cudarc::driver::result;
use std::marker::PhantomData;
use std::ops::Range;

/// Memory of the card, for values of one type. Given back when dropped, after what was asked for before.
#[derive(Debug)]
pub struct Buffer<T> {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) bytes: u64,
    pub(super) device: Device,
    pub(super) of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, of: PhantomData }
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it has no such part.
    pub fn part(&self, range: Range<usize>) -> View<'_, T> {
        self.view().part(range)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the address came from the driver and goes back once; nothing else has it.
        unsafe { self.device.give_back(self.address, self.bytes) };
    }
}

/// Memory of this process that the driver has locked.
#[derive(Debug)]
pub struct Pinned {
    pub(super) address: *mut u8,
    pub(super) len: usize,
    pub(super) device: Device,
}

// SAFETY: it is memory like any other, and its own.
unsafe impl Send for Pinned {}
// SAFETY: who shares it only reads.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the driver gave so many bytes, which were written.
        unsafe { std::slice::from_raw_parts(self.address, self.len) }
    }

    /// All of it, once the card has read what it was asked to.
    ///
    /// # Errors
    /// What went wrong until now.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], CudaError> {
        self.device.wait()?;
        // SAFETY: nothing reads it any more.
        Ok(unsafe { self.bytes_now() })
    }

    /// All of it, once what was asked for before `mark` is done.
    ///
    /// # Errors
    /// What went wrong until then.
    ///
    /// # Safety
    /// Nothing that reads or writes it was asked for after `mark`, but as after this.
    pub(crate) unsafe fn bytes_after(&mut self, mark: &Mark) -> Result<&mut [u8], CudaError> {
        self.device.rest_until(mark)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { self.bytes_now() })
    }

    /// All of it, whatever the card does.
    ///
    /// # Safety
    /// The card neither reads nor writes it while these are used but as it was asked to after this.
    pub(super) unsafe fn bytes_now(&mut self) -> &mut [u8] {
        // SAFETY: the driver gave so many bytes, which were written.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // An error here is the context's, and the next call tells it. A card that has hung may still write to it.
        let _ = self.device.wait();
        if self.device.is_hung() {
            return;
        }
        // SAFETY: the address came from the driver and goes back once; nothing reads it any more.
        let _ = unsafe { result::free_host(self.address.cast()) };
    }
}

/// Some values in a [`Buffer`], which lives as long. Kernels write through it: they run one after the other.
#[derive(Debug)]
pub struct View<'a, T> {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) of: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T: Pod> View<'a, T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it has no such part.
    pub fn part(self, range: Range<usize>) -> View<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let address = self.address + (range.start * size_of::<T>()) as u64;
        View { address, len: range.len(), of: PhantomData }
    }

    /// The same bytes as values of another type of the same size, or as whole ones of another size.
    ///
    /// # Panics
    /// If they do not come out even, or begin where no such value may.
    pub fn cast<U: Pod>(self) -> View<'a, U> {
        let bytes = self.len * size_of::<T>();
        let aligned = self.address.is_multiple_of(align_of::<U>() as u64);
        assert!(aligned && bytes.is_multiple_of(size_of::<U>()), "whole values");
        View { address: self.address, len: bytes / size_of::<U>(), of: PhantomData }
    }
}
