//! A card: its driver, its memory, and the stream on which its work is done in order.

#![expect(unsafe_code, reason = "calls the driver, which takes addresses")]

use super::argument::{Arg, MOST_ARGUMENTS};
use super::memory::{Buffer, Pinned, View};
use super::ptx::{self, Entry, MODULES};
use super::wait::Mark;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Why a card does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver.
    #[error("no NVIDIA driver is here (libcuda.so is not found); install it, or choose the processor as device")]
    NoDriver,
    /// The driver does not know our kernels' PTX.
    #[error("the NVIDIA driver is for CUDA {found} and 12.2 is needed (R535 or newer); update it")]
    OldDriver {
        /// As in `12.1`.
        found: String,
    },
    /// There is a driver and no such card.
    #[error("there is no card {ordinal}: the driver sees {count}")]
    NoCard {
        /// The card that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The card is too old.
    #[error("card {name} has compute capability {major}.{minor} and 8.0 is needed (Ampere or newer)")]
    OldCard {
        /// The card.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// Our own account of its memory has no room, or the driver has none.
    #[error("the card has no room for {needed} more bytes: {used} are in use of {budget}")]
    NoMemory {
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes that are in use by us.
        used: u64,
        /// Bytes that we may use.
        budget: u64,
    },
    /// The system locks no more memory for it.
    #[error(
        "the system gives no {needed} bytes of memory that a card reads directly; lower the copies in the host's memory, or raise what may be locked"
    )]
    NoLocked {
        /// Bytes that were asked for.
        needed: u64,
    },
    /// A model's file could not be read.
    #[error("its file cannot be read: {reason}")]
    File {
        /// What the system said.
        reason: String,
    },
    /// A load was stopped, since nobody is there any more to use the model.
    #[error("the load was stopped")]
    Stopped,
    /// A model or a request that the kernels do not serve.
    #[error("the card's kernels cannot do this: {what}")]
    Shape {
        /// What is wrong.
        what: String,
    },
    /// What was asked for did not end. The card is lost to this process then, as after a fault.
    #[error("the card has not ended in {seconds} s what it was asked for, and counts as hung")]
    Hung {
        /// For how long it was waited for.
        seconds: u64,
    },
    /// What the driver said. After a kernel's fault the card's context is lost, and every later call says so.
    #[error("the driver failed {doing}: {code}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// Its word for it.
        code: String,
    },
}

impl CudaError {
    /// Whether the card answers nothing more in this process.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, Self::Driver { .. } | Self::Hung { .. })
    }
}

pub(super) fn failed(doing: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { doing, code: format!("{:?}", error.0) }
}

/// A card as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Card {
    /// Its number.
    pub ordinal: usize,
    /// What NVIDIA calls it.
    pub name: String,
    /// Its compute capability.
    pub capability: (i32, i32),
    /// How many multiprocessors it has.
    pub multiprocessors: i32,
    /// Bytes of memory, and how many of them nobody uses.
    pub memory: (u64, u64),
    /// The newest CUDA that the driver knows, as in 12020.
    pub driver: i32,
}

/// Every card that the driver sees.
///
/// # Errors
/// `NoDriver`, `OldDriver`, or what the driver says.
pub fn cards() -> Result<Vec<Card>, CudaError> {
    let driver = driver()?;
    let count = result::device::get_count().map_err(failed("counting cards"))?;
    let card = |ordinal: usize| describe(&*context(ordinal)?, ordinal, driver);
    (0..count.max(0) as usize).map(card).collect()
}

/// The newest CUDA that the driver knows.
fn driver() -> Result<i32, CudaError> {
    // SAFETY: loads a library by the driver's name, as any program on this machine would.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes one number, and needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed("telling its version"))?;
    if version < 12_020 {
        return Err(CudaError::OldDriver { found: format!("{}.{}", version / 1000, version % 1000 / 10) });
    }
    match result::init() {
        Ok(()) => Ok(version),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(CudaError::NoCard { ordinal: 0, count: 0 }),
        Err(error) => Err(failed("starting")(error)),
    }
}

fn context(ordinal: usize) -> Result<Arc<CudaContext>, CudaError> {
    CudaContext::new(ordinal).map_err(failed("opening the card"))
}

fn describe(context: &CudaContext, ordinal: usize, driver: i32) -> Result<Card, CudaError> {
    let ask = failed("describing the card");
    let (free, total) = context.mem_get_info().map_err(&ask)?;
    let multiprocessors = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    Ok(Card {
        ordinal,
        name: context.name().map_err(&ask)?,
        capability: context.compute_capability().map_err(&ask)?,
        multiprocessors: context.attribute(multiprocessors).map_err(&ask)?,
        memory: (total as u64, free as u64),
        driver,
    })
}

/// A kernel, once somebody used it.
struct Kernel {
    entry: Entry,
    function: OnceLock<CudaFunction>,
}

pub(super) struct Inner {
    pub(super) context: Arc<CudaContext>,
    /// The first of its streams, on which models compute.
    pub(super) main: Arc<CudaStream>,
    card: Card,
    kernels: HashMap<&'static str, Kernel>,
    modules: Mutex<HashMap<usize, Arc<CudaModule>>>,
    budget: u64,
    used: AtomicU64,
    /// How long what is asked for may take.
    pub(super) patience: Duration,
    /// Set once that was not enough. The driver waits for a hung kernel wherever it waits, so it is asked for nothing more.
    pub(super) hung: AtomicBool,
}

/// A card that is open, and a stream of it; clones are the same ones.
#[derive(Clone)]
pub struct Device {
    pub(super) inner: Arc<Inner>,
    /// What is asked for happens on it, in order.
    pub(super) stream: Arc<CudaStream>,
    /// A place on it, for who waits.
    pub(super) end: Arc<Mark>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(&self.inner.card).finish()
    }
}

/// Work that was put together once and is launched as a whole.
pub struct Graph(CudaGraph);

// SAFETY: nothing of a graph belongs to a thread; who has it is the only one to use it.
unsafe impl Send for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

/// How long what a card is asked for may take, unless it is said: the largest steps of large models take seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// So much of a card's memory is left to the driver: contexts, code and stacks.
const LEFT_TO_DRIVER: u64 = 512 << 20;

impl Device {
    /// Opens card `ordinal`. `budget` is what we may take of its memory; by default all that is free now but 512 MiB.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn open(ordinal: usize, budget: Option<u64>) -> Result<Self, CudaError> {
        Self::open_with(ordinal, budget, PATIENCE)
    }

    /// The same; what does not end in `patience` has hung.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn open_with(ordinal: usize, budget: Option<u64>, patience: Duration) -> Result<Self, CudaError> {
        let driver = driver()?;
        let count = result::device::get_count().map_err(failed("counting cards"))?.max(0) as usize;
        if ordinal >= count {
            return Err(CudaError::NoCard { ordinal, count });
        }
        let context = context(ordinal)?;
        let card = describe(&context, ordinal, driver)?;
        let (major, minor) = card.capability;
        if major < 8 {
            return Err(CudaError::OldCard { name: card.name, major, minor });
        }
        // SAFETY: what one stream makes is used by another only after the first was waited for.
        unsafe { context.disable_event_tracking() };
        let main = context.new_stream().map_err(failed("making a stream"))?;
        let kernel = |(name, entry)| (name, Kernel { entry, function: OnceLock::new() });
        let kernels = ptx::entries().into_iter().map(kernel).collect();
        let left = LEFT_TO_DRIVER.min(card.memory.1 / 8);
        let budget = budget.unwrap_or(card.memory.1 - left);
        let (modules, used) = (Mutex::default(), AtomicU64::new(0));
        let (stream, end, hung) = (main.clone(), Mark::new(&context)?.into(), AtomicBool::new(false));
        let inner = Inner { context, main, card, kernels, modules, budget, used, patience, hung };
        Ok(Self { inner: Arc::new(inner), stream, end })
    }

    /// The same card with a stream of its own: what is asked for there happens beside what is asked for here. What one makes,
    /// another uses after [`Device::wait`].
    ///
    /// # Errors
    /// What the driver says.
    pub fn beside(&self) -> Result<Self, CudaError> {
        let stream = self.inner.context.new_stream().map_err(failed("making a stream"))?;
        Ok(Self { inner: self.inner.clone(), stream, end: self.mark()?.into() })
    }

    /// Puts the launches of `work` together, and does not run them. `None` if there are none. They must be on this stream, on
    /// which nothing else is asked for meanwhile, and all their kernels were launched before.
    ///
    /// # Errors
    /// Those of `work`; what the driver says.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<Option<Graph>, CudaError> {
        // Other threads may ask the driver for memory meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed("beginning a graph"))?;
        let done = work();
        // It ends in any case: a stream that captures can do nothing else.
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(failed("making a graph"));
        done?;
        Ok(graph?.map(Graph))
    }

    /// Launches `graph` on this stream.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// All buffers that its launches name live.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the graph is whole, and its kernels' arguments are good as the caller promises.
        unsafe { result::graph::launch(graph.0.cu_graph_exec(), self.stream.cu_stream()) }
            .map_err(failed("launching a graph"))
    }

    /// Has the driver compile these modules, unless it has: see [`ptx::MODULES`].
    ///
    /// # Errors
    /// `Shape` if there is none of that name; what the driver says.
    pub fn compile(&self, modules: &[&str]) -> Result<(), CudaError> {
        self.bind()?;
        for name in modules {
            let module = MODULES.iter().position(|module| module.name == *name);
            self.module(module.ok_or_else(|| shape(format!("there are no kernels {name}")))?)?;
        }
        Ok(())
    }

    /// What the driver says of it.
    pub fn card(&self) -> &Card {
        &self.inner.card
    }

    /// Bytes that we may use, and that we use.
    pub fn memory(&self) -> (u64, u64) {
        (self.inner.budget, self.inner.used.load(Ordering::Relaxed))
    }

    /// Room for `len` values, all zero: what was there before is nobody else's business.
    ///
    /// # Errors
    /// `NoMemory`, before the driver is asked if our own account says so.
    pub fn buffer<T: Pod>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let inner = &*self.inner;
        let bytes = (len.max(1) as u64).checked_mul(size_of::<T>() as u64).map(|bytes| bytes.next_multiple_of(256));
        let no_memory = |needed| {
            let used = inner.used.load(Ordering::Relaxed);
            CudaError::NoMemory { needed, used, budget: inner.budget }
        };
        let bytes = bytes.ok_or_else(|| no_memory(u64::MAX))?;
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= inner.budget);
        inner.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| no_memory(bytes))?;
        let give_back = |error| {
            inner.used.fetch_sub(bytes, Ordering::Relaxed);
            error
        };
        inner.context.bind_to_thread().map_err(failed("being bound")).map_err(give_back)?;
        // SAFETY: asks for memory.
        let address = unsafe { result::malloc_sync(bytes as usize) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => give_back(no_memory(bytes)),
            _ => give_back(failed("giving memory")(error)),
        })?;
        let buffer = Buffer { address, len, bytes, device: self.clone(), of: PhantomData };
        // SAFETY: the address was given for so many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes as usize, self.stream.cu_stream()) }
            .map_err(failed("clearing memory"))?;
        Ok(buffer)
    }

    /// A buffer with these values.
    ///
    /// # Errors
    /// Those of [`Device::buffer`] and [`Device::write`].
    pub fn put<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>, CudaError> {
        let buffer = self.buffer(values.len())?;
        self.write(buffer.view(), values)?;
        Ok(buffer)
    }

    /// Copies `values` to the beginning of `to`. When it returns, they may change, unless they are [`Pinned`]: then that is so when what was
    /// asked for until then is done.
    ///
    /// # Errors
    /// `Shape` if there is no room for them.
    pub fn write<T: Pod>(&self, to: View<'_, T>, values: &[T]) -> Result<(), CudaError> {
        if values.len() > to.len {
            return Err(shape(format!("{} values to a place for {}", values.len(), to.len)));
        }
        self.bind()?;
        // SAFETY: the view is of a buffer that lives and has so many values.
        unsafe { result::memcpy_htod_async(to.address, values, self.stream.cu_stream()) }
            .map_err(failed("copying to the card"))
    }

    /// Copies the beginning of `from` to `values`, once all that was asked for before is done.
    ///
    /// # Errors
    /// `Shape` if there are not as many; and what went wrong on the card until now.
    pub fn read<T: Pod>(&self, from: View<'_, T>, values: &mut [T]) -> Result<(), CudaError> {
        if values.len() > from.len {
            return Err(shape(format!("{} values of {}", values.len(), from.len)));
        }
        // The driver waits for what is before the copy, for ever if that hangs.
        self.wait()?;
        // SAFETY: the view is of a buffer that lives and has so many values; `values` stays until the stream is done.
        unsafe { result::memcpy_dtoh_async(values, from.address, self.stream.cu_stream()) }
            .map_err(failed("copying from the card"))?;
        self.wait()
    }

    /// Asks for a copy of all of `from` at the beginning of `to`. It is there after [`Device::wait`].
    ///
    /// # Errors
    /// `Shape` if there is no room for it; what the driver says.
    ///
    /// # Safety
    /// Until then nobody looks at `to`, and both live.
    pub unsafe fn fetch<T: Pod>(&self, from: View<'_, T>, to: &mut Pinned) -> Result<(), CudaError> {
        // SAFETY: nothing else writes to it: earlier copies are on this stream.
        let to = unsafe { to.bytes_now() };
        let bytes: View<'_, u8> = from.cast();
        let len = to.len();
        let to = to.get_mut(..bytes.len).ok_or_else(|| shape(format!("{} bytes to a place for {len}", bytes.len)))?;
        self.bind()?;
        // SAFETY: the view is of a buffer that has so many bytes; the rest is the caller's promise.
        unsafe { result::memcpy_dtoh_async(to, bytes.address, self.stream.cu_stream()) }
            .map_err(failed("copying from the card"))
    }

    /// All of a buffer.
    ///
    /// # Errors
    /// Those of [`Device::read`].
    pub fn get<T: Pod + Zeroable>(&self, from: View<'_, T>) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); from.len];
        self.read(from, &mut values)?;
        Ok(values)
    }

    /// Copies all of `from` to the beginning of `to`.
    ///
    /// # Errors
    /// `Shape` if there is no room for it.
    pub fn copy<T: Pod>(&self, from: View<'_, T>, to: View<'_, T>) -> Result<(), CudaError> {
        if from.len > to.len {
            return Err(shape(format!("{} values to a place for {}", from.len, to.len)));
        }
        self.bind()?;
        let bytes = from.len * size_of::<T>();
        // SAFETY: both views are of buffers that live and have so many bytes.
        unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, self.stream.cu_stream()) }
            .map_err(failed("copying on the card"))
    }

    /// Memory of this process that the driver has locked, all zero: it is copied from several times as fast.
    ///
    /// # Errors
    /// `NoLocked`; what the driver says.
    pub fn pinned(&self, len: usize) -> Result<Pinned, CudaError> {
        self.bind()?;
        // SAFETY: asks for memory, and then clears it.
        let address = unsafe {
            let address = result::malloc_host(len.max(1), 0).map_err(|error| match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => CudaError::NoLocked { needed: len as u64 },
                _ => failed("locking memory")(error),
            })?;
            let address = address.cast::<u8>();
            address.write_bytes(0, len);
            address
        };
        Ok(Pinned { address, len, device: self.clone() })
    }

    /// Makes all bytes of `view` zero.
    ///
    /// # Errors
    /// What the driver says.
    pub fn clear<T: Pod>(&self, view: View<'_, T>) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the view is of a buffer that lives and has so many bytes.
        unsafe { result::memset_d8_async(view.address, 0, view.len * size_of::<T>(), self.stream.cu_stream()) }
            .map_err(failed("clearing memory"))
    }

    /// Gives memory back to the driver, once nothing that was asked for uses it.
    ///
    /// # Safety
    /// The driver gave it, so many bytes, and nobody has it any more.
    pub(super) unsafe fn give_back(&self, address: u64, bytes: u64) {
        // An error here is the context's, and the next call tells it. What has hung keeps its memory until the process ends.
        if let Err(CudaError::Hung { .. }) = self.wait_on(&self.inner.main).and(self.wait_on(&self.stream)) {
            return;
        }
        // SAFETY: the caller's promise.
        let _ = unsafe { result::free_sync(address) };
        self.inner.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn bind(&self) -> Result<(), CudaError> {
        if self.is_hung() {
            return Err(self.hung());
        }
        self.inner.context.bind_to_thread().map_err(failed("being bound"))
    }

    /// Launches kernel `name` on so many blocks of so many threads.
    ///
    /// # Safety
    /// The arguments are in the order of the kernel, and every index that it forms of them is inside their buffers, which
    /// live.
    pub(super) unsafe fn launch(
        &self,
        name: &str,
        grid: [usize; 3],
        threads: u32,
        arguments: &[Arg],
    ) -> Result<(), CudaError> {
        let kernel = self.inner.kernels.get(name).ok_or_else(|| shape(format!("there is no kernel {name}")))?;
        let sizes = arguments.iter().map(Arg::size);
        if arguments.len() > MOST_ARGUMENTS || !sizes.eq(kernel.entry.params.iter().copied()) {
            return Err(shape(format!("kernel {name} takes other arguments than {arguments:?}")));
        }
        if grid.contains(&0) || grid[0] > i32::MAX as usize || grid[1] > 65_535 || grid[2] > 65_535 {
            return Err(shape(format!("kernel {name} on {grid:?} blocks")));
        }
        self.bind()?;
        let function = self.function(name, kernel)?;
        let mut slots = [0u64; MOST_ARGUMENTS];
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST_ARGUMENTS];
        for ((slot, pointer), argument) in slots.iter_mut().zip(&mut pointers).zip(arguments) {
            *slot = argument.bits();
            *pointer = std::ptr::from_mut(slot).cast();
        }
        let [x, y, z] = grid.map(|n| n as u32);
        let stream = self.stream.cu_stream();
        // SAFETY: the kernel takes as many arguments of these sizes; the rest is the caller's promise.
        unsafe {
            let pointers = &mut pointers[..arguments.len()];
            result::launch_kernel(function.cu_function(), (x, y, z), (threads, 1, 1), 0, stream, pointers)
        }
        .map_err(failed("launching a kernel"))
    }

    /// Has the driver compile the kernel's module, the first time.
    fn function<'a>(&self, name: &str, kernel: &'a Kernel) -> Result<&'a CudaFunction, CudaError> {
        if let Some(function) = kernel.function.get() {
            return Ok(function);
        }
        let module = self.module(kernel.entry.module)?;
        let function = module.load_function(name).map_err(failed("finding a kernel"))?;
        Ok(kernel.function.get_or_init(|| function))
    }

    /// One of [`MODULES`], compiled.
    fn module(&self, number: usize) -> Result<Arc<CudaModule>, CudaError> {
        let mut modules = self.inner.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&number) {
            return Ok(module.clone());
        }
        let text = Ptx::from_src(MODULES[number].text);
        let module = self.inner.context.load_module(text).map_err(failed("compiling kernels"))?;
        modules.insert(number, module.clone());
        Ok(module)
    }
}

pub(super) fn shape(what: String) -> CudaError {
    CudaError::Shape { what }
}

/// `n` as kernels count.
pub(super) fn int(n: usize) -> Result<i32, CudaError> {
    i32::try_from(n).map_err(|_| shape(format!("{n} is too many")))
}
