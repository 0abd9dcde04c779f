//! The wasmtime engine: pooled slots, copy-on-write images, epochs.

use std::sync::OnceLock;

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::linked::Linkers;
use super::ticker::Ticker;

/// Linear memory that stays mapped in a slot between two instances; what a small guest dirties is cheaper
/// to copy back over than to unmap.
const KEEP_RESIDENT: usize = 512 << 10;
/// The same for a slot's tables and its stack.
const KEEP_RESIDENT_SMALL: usize = 64 << 10;

/// How many instances can live at once, and how large one may be.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Slots for instances, in each of the two engines; a request beyond them is refused as busy.
    pub instances: u32,
    /// Most linear memory that any function's limit may allow, in MiB.
    pub memory_mib: u32,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { instances: 1000, memory_mib: 1024 }
    }
}

/// The engines that compile and run all components of a host, and the clock behind their deadlines.
///
/// There are two, because the bookkeeping of WASI 0.3's tasks costs each call something, and components of WASI 0.2
/// need not pay for it. The second one reserves its slots when it is first needed.
pub struct WasmEngine {
    plain: Engine,
    concurrent: OnceLock<Engine>,
    pool: PoolConfig,
    free: bool,
    compatibility: String,
    pub(super) linkers: Linkers,
    ticker: Ticker,
}

impl WasmEngine {
    /// Reserves the pool and starts the epoch clock. If it is `free`, code does not look at that.
    ///
    /// # Errors
    /// When the address space for the pool cannot be reserved.
    pub fn start(pool: PoolConfig, free: bool) -> wasmtime::Result<Self> {
        let plain = Engine::new(&config(pool, free, false))?;
        let compatibility = compatibility(&plain);
        let ticker = Ticker::start(plain.clone());
        let (concurrent, linkers) = (OnceLock::new(), Linkers::default());
        Ok(Self { plain, concurrent, pool, free, compatibility, linkers, ticker })
    }

    /// The engine of WASI 0.2 components.
    pub fn wasmtime(&self) -> &Engine {
        &self.plain
    }

    /// The engine of WASI 0.3 components.
    ///
    /// # Errors
    /// When the address space for its pool cannot be reserved.
    pub fn concurrent(&self) -> wasmtime::Result<&Engine> {
        if let Some(engine) = self.concurrent.get() {
            return Ok(engine);
        }
        let engine = Engine::new(&config(self.pool, self.free, true))?;
        Ok(self.concurrent.get_or_init(|| {
            self.ticker.add(engine.clone());
            engine
        }))
    }

    /// Names what compiled code must have been compiled for, to be loaded here; the same for both engines.
    pub fn compatibility(&self) -> &str {
        &self.compatibility
    }
}

fn config(pool: PoolConfig, free: bool, concurrency: bool) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(concurrency)
        .epoch_interruption(!free)
        .memory_init_cow(true)
        // Only debuggers would read it; without it code is smaller, and mapped faster.
        .native_unwind_info(false)
        // A guest's trap is its own affair: a bounded trace is enough to find it, and cheap to take.
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16))
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pooling(pool)));
    config
}

fn pooling(pool: PoolConfig) -> PoolingAllocationConfig {
    // Components built by componentisers hold two to four core instances (the module, shims, fix-ups).
    const CORE_INSTANCES: u32 = 4;
    let mut config = PoolingAllocationConfig::default();
    config
        .total_component_instances(pool.instances)
        .total_core_instances(pool.instances * CORE_INSTANCES)
        .total_memories(pool.instances)
        .total_tables(pool.instances * 2)
        .total_stacks(pool.instances)
        .max_memory_size((pool.memory_mib as usize) << 20)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(KEEP_RESIDENT_SMALL)
        .async_stack_keep_resident(KEEP_RESIDENT_SMALL)
        .pagemap_scan(Enabled::Auto);
    config
}

/// Compiled code is only as good as the engine it was compiled for: its version, settings and processor features.
fn compatibility(engine: &Engine) -> String {
    use std::hash::{Hash as _, Hasher as _};
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
