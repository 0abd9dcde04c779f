//! What the modules of one instance may hold: linear memory, tables, core instances.
//!
//! A growth that is refused is an answer to the guest (`memory.grow` gives -1), not its end.

use std::sync::Arc;

use wasmtime::{ResourceLimiter, Result};

use super::meter::Meter;
use crate::config::Limits;

/// Linear memories of one instance: one is usual, and adapters may bring theirs.
const MEMORIES: usize = 8;

/// Asked by the store before anything grows.
pub struct Limiter {
    limits: Limits,
    meter: Arc<Meter>,
    memory: Growth,
    elements: Growth,
}

/// What is held together, and the step taken last, in case it turns out that it could not be taken.
#[derive(Default)]
struct Growth {
    held: usize,
    step: usize,
}

impl Growth {
    fn grow(&mut self, current: usize, desired: usize, most: usize) -> bool {
        self.step = desired.saturating_sub(current);
        let held = self.held.saturating_add(self.step);
        let fits = held <= most;
        if fits {
            self.held = held;
        } else {
            self.step = 0;
        }
        fits
    }

    fn undo(&mut self) {
        self.held -= std::mem::take(&mut self.step);
    }
}

impl Limiter {
    /// A limiter that notes memory in `meter`.
    pub fn new(limits: Limits, meter: Arc<Meter>) -> Self {
        Self { limits, meter, memory: Growth::default(), elements: Growth::default() }
    }

    /// From now on another meter takes note: the instance serves another request.
    pub fn renew(&mut self, meter: Arc<Meter>) {
        meter.memory(self.memory.held);
        self.meter = meter;
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let fits = self.memory.grow(current, desired, (self.limits.memory_mib as usize) << 20);
        if fits {
            self.meter.memory(self.memory.held);
        }
        Ok(fits)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> Result<()> {
        self.memory.undo();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let each = self.limits.table_elements as usize;
        Ok(desired <= each && self.elements.grow(current, desired, each * self.limits.tables as usize))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> Result<()> {
        self.elements.undo();
        Ok(())
    }

    fn instances(&self) -> usize {
        self.limits.core_instances as usize
    }

    fn tables(&self) -> usize {
        self.limits.tables as usize
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn memory_is_counted_over_all_memories() {
        let meter = Arc::new(Meter::new(Instant::now()));
        let limits = Limits { memory_mib: 4, table_elements: 10, ..Limits::default() };
        let mut limiter = Limiter::new(limits, meter.clone());
        assert!(limiter.memory_growing(0, 3 << 20, None).unwrap());
        assert!(!limiter.memory_growing(0, 2 << 20, None).unwrap(), "a second memory is no way around");
        assert!(limiter.memory_growing(3 << 20, 4 << 20, None).unwrap());
        assert_eq!(meter.memory_peak(), 4 << 20);
        limiter.memory_grow_failed(wasmtime::Error::msg("the system said no")).unwrap();
        assert!(limiter.memory_growing(0, 1 << 20, None).unwrap(), "what failed is not held");
        assert!(limiter.table_growing(0, 10, None).unwrap() && !limiter.table_growing(10, 11, None).unwrap());
    }
}
