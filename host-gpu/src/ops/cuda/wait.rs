//! Waiting for a card, which may never answer.
//!
//! The driver's own waits end when the card has done its work, and never where that hangs. So an event is asked again and again, for as long as
//! [`Device::open_with`] was told.

use super::device::{CudaError, Device, failed};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Who waits for copies of megabytes looks this often; the core is others' meanwhile.
const REST: Duration = Duration::from_micros(50);

/// A place in what was asked for.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Mark {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        context.new_event(None).map(Self).map_err(failed("making an event"))
    }

    /// From now on it is behind all that was asked for on this stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn set(&self, device: &Device) -> Result<(), CudaError> {
        self.set_on(&device.stream)
    }

    fn set_on(&self, stream: &CudaStream) -> Result<(), CudaError> {
        self.0.record(stream).map_err(failed("marking a place"))
    }
}

impl Device {
    /// A place in what is asked for, to wait for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn mark(&self) -> Result<Mark, CudaError> {
        Mark::new(&self.inner.context)
    }

    /// Waits until all that was asked for is done. Other threads get the core meanwhile.
    ///
    /// # Errors
    /// What went wrong; `Hung` if it takes too long.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.bind()?;
        self.end.set(self)?;
        self.wait_for(&self.end)
    }

    /// Waits until what is before `mark` is done; for nothing, if it was never set.
    ///
    /// # Errors
    /// Those of [`Device::wait`].
    pub fn wait_for(&self, mark: &Mark) -> Result<(), CudaError> {
        self.until(mark, std::thread::yield_now)
    }

    /// The same for who is in no hurry, and sleeps meanwhile.
    ///
    /// # Errors
    /// Those of [`Device::wait`].
    pub(super) fn rest_until(&self, mark: &Mark) -> Result<(), CudaError> {
        self.until(mark, || std::thread::sleep(REST))
    }

    /// Waits until all that was asked for on `stream` is done.
    ///
    /// # Errors
    /// Those of [`Device::wait`].
    pub(super) fn wait_on(&self, stream: &CudaStream) -> Result<(), CudaError> {
        self.bind()?;
        let mark = self.mark()?;
        mark.set_on(stream)?;
        self.wait_for(&mark)
    }

    fn until(&self, mark: &Mark, between: fn()) -> Result<(), CudaError> {
        self.bind()?;
        let since = Instant::now();
        while !mark.0.try_is_complete().map_err(failed("computing"))? {
            if since.elapsed() > self.inner.patience {
                self.inner.hung.store(true, Ordering::Relaxed);
                return Err(self.hung());
            }
            between();
        }
        Ok(())
    }

    /// Whether something has hung: the driver is asked for nothing more.
    pub(crate) fn is_hung(&self) -> bool {
        self.inner.hung.load(Ordering::Relaxed)
    }

    pub(super) fn hung(&self) -> CudaError {
        CudaError::Hung { seconds: self.inner.patience.as_secs() }
    }
}
