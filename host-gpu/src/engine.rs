//! The clonable handle to the engine thread.
//!
//! One thread owns the device and runs batches (`worker`); handles send it sequences and read
//! their tokens. Nothing here blocks: a full queue is a refusal.

use crate::ask::{Ask, Refusal, TokenId};
use crate::form::Guide;
use crate::format::huge;
use crate::format::quantize::Quantize;
use crate::kv::{Arena, KvType};
use crate::measure;
use crate::model::card::{self, CardArena, OnCardState, OtherCard, Split};
use crate::model::forward::Compute;
use crate::model::{Loaded, Model, ModelSource, Room};
use crate::ops::cpu::{Activations, CodePath, Cpu};
use crate::ops::cuda::copies::Copies;
use crate::ops::cuda::{CudaError, Device};
use crate::ops::pool::Pool;
use crate::residency::{EvictError, JoinError, Lease, Loading, ModelState, ModelStatus, Moves, Policy, Residency};
use crate::schedule::ModelKey;
use crate::terms::Terms;
use crate::tokens::{Tokens, channel};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::watch;

mod device;
mod door;
mod job;
mod pace;
mod several;
mod worker;

pub use device::EngineDevice;
use door::Door;
use job::Job;
pub use several::Engines;
use worker::Worker;

/// How large the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// What computes; default the processor.
    pub device: EngineDevice,
    /// Threads that compute; the default is one for each core that the process may use.
    pub threads: usize,
    /// Memory for models: weights, vocabularies and what a step computes. The default leaves a fifth of what the process
    /// may have, and `kv_bytes`, to others. Models that nobody uses go when another needs their room.
    pub model_bytes: Option<u64>,
    /// Locked memory of the host for copies of what is on a card: a model that has one comes back to the card at the bus's rate. Default
    /// none: then the system's page cache is what is between the card and the disk.
    pub copy_bytes: u64,
    /// What a card has not ended after this long has hung, and the card is lost to the process; default a minute.
    pub card_patience: Duration,
    /// Memory for KV over all models, committed as it is used; default 1 GiB. What no sequence
    /// needs keeps the prefixes of earlier ones.
    pub kv_bytes: u64,
    /// The unit in which KV memory is given out; default 1 MiB.
    pub kv_page_bytes: u64,
    /// How keys and values are stored; default f16.
    pub kv_type: KvType,
    /// Sequences in a batch; default 32.
    pub max_running: usize,
    /// Sequences that wait beyond those; default 256. An account that has not its part of these places finds one even if
    /// others have taken all.
    pub max_waiting: usize,
    /// Prompt tokens that go through all layers in a step, at most; default 256.
    pub prefill_tokens: usize,
    /// How long others' prompts may delay a token, about; default 30 ms. While sequences
    /// generate, a step with prompts is to take twice as long as one usually does: prompts have what is left of that, at
    /// least 5 ms or a quarter of the time that generating takes now, and at most this. On the processor
    /// up to 64 of their tokens go through some layers, where that is all that fits. A step takes one through all layers at least, or as
    /// much, but for one in 16 that shows what generating takes.
    pub max_stall: Duration,
    /// Quantises matrices that files have as floats, as models are loaded; the default leaves them in the files.
    pub quantize: Option<Quantize>,
    /// Copies weights to huge pages once a model has answered, where the system has such: they are read up to twice as
    /// fast. The mapped pages are let go, so this takes no more memory, but memory of this process's own. Default true.
    /// Keys and values lie there in any case.
    pub huge_pages: bool,
    /// Forces a code path; the default is the best that the processor has.
    pub code_path: Option<CodePath>,
    /// What activations become before they meet quantised weights; default bytes.
    pub activations: Activations,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: EngineDevice::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            model_bytes: None,
            copy_bytes: 0,
            card_patience: crate::ops::cuda::PATIENCE,
            kv_bytes: 1 << 30,
            kv_page_bytes: 1 << 20,
            kv_type: KvType::default(),
            max_running: 32,
            max_waiting: 256,
            prefill_tokens: 256,
            max_stall: Duration::from_millis(30),
            quantize: None,
            huge_pages: true,
            code_path: None,
            activations: Activations::default(),
        }
    }
}

impl EngineConfig {
    /// Computes with floats throughout: what all faster settings are compared with.
    pub fn exact() -> Self {
        Self { activations: Activations::F32, kv_type: KvType::F32, ..Self::default() }
    }

    /// Whether weights move to huge pages once a model has answered.
    pub(crate) fn moves_weights(&self) -> bool {
        // Only kernels for quantised activations read what is woven.
        self.device == EngineDevice::Cpu && self.huge_pages && self.activations == Activations::Q8 && huge::available()
    }

    /// The tokens of the largest step that there can be, and how many of these give logits: what
    /// memory for activations is computed from.
    pub fn largest_step(&self) -> (usize, usize) {
        let (sequences, prompts) = (self.max_running.max(1), self.prefill_tokens.max(1));
        let through_some_layers = match self.device {
            EngineDevice::Cpu => prompts.min(pace::CHUNK_TOKENS),
            _ => 0,
        };
        (sequences + prompts + through_some_layers, sequences)
    }
}

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The processor lacks the forced code path.
    #[error("this processor cannot run the {path} code path; leave the setting out")]
    CodePath {
        /// The path.
        path: CodePath,
    },
    /// The budget has no whole page.
    #[error("a kv budget of {budget} bytes has no room for a page of {page}; raise the budget")]
    Budget {
        /// The budget.
        budget: u64,
        /// A page.
        page: u64,
    },
    /// The card that was asked for cannot be had.
    #[error("cannot start on {device}: {reason}")]
    Card {
        /// What was asked for.
        device: EngineDevice,
        /// Why not.
        reason: CudaError,
    },
    /// A device is to have two engines.
    #[error("{device} is named twice; one engine serves all models of a device")]
    Twice {
        /// Which.
        device: EngineDevice,
    },
    /// The system gives no memory or no thread.
    #[error("cannot start {what}: {reason}; lower the engine's threads or kv budget")]
    System {
        /// What was being started.
        what: &'static str,
        /// What the system said.
        reason: std::io::Error,
    },
}

/// The engine at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// KV pages that no sequence holds.
    pub free_pages: usize,
    /// Those of them that keep a prefix for who comes next.
    pub cached_pages: usize,
    /// All KV pages.
    pub total_pages: usize,
    /// Steps so far.
    pub steps: u64,
    /// Those of them that a card did as one graph, not kernel by kernel.
    pub graph_steps: u64,
    /// Those of them that a card was given before what the one before gave was known.
    pub ahead_steps: u64,
    /// Those of them for which the processor read a part of the head alone, since few logits were looked at.
    pub few_logits_steps: u64,
    /// Those of them that took some tokens of a prompt through a part of the layers.
    pub stretched_steps: u64,
    /// Tokens generated so far.
    pub generated_tokens: u64,
    /// Prompt tokens processed so far, and tokens of preempted sequences that were processed again.
    pub prefilled_tokens: u64,
    /// Tokens that were found in the pages and not processed.
    pub cached_tokens: u64,
    /// How often a sequence gave its pages to an older one and waited.
    pub preemptions: u64,
}

/// Numbers that the engine thread writes and handles read.
#[derive(Default)]
struct Counters {
    running: AtomicUsize,
    free_pages: AtomicUsize,
    cached_pages: AtomicUsize,
    steps: AtomicU64,
    graph_steps: AtomicU64,
    ahead_steps: AtomicU64,
    few_logits_steps: AtomicU64,
    stretched_steps: AtomicU64,
    generated: AtomicU64,
    prefilled: AtomicU64,
    cached: AtomicU64,
    preemptions: AtomicU64,
    /// Whether the card has failed for good.
    lost: AtomicBool,
}

/// What the engine thread is told.
enum Arrival {
    /// Somebody asks, with this prompt.
    Asked(Box<Job>, Vec<TokenId>),
    /// Nobody has this model any more, and it is not in memory.
    Gone(ModelKey),
}

/// Part of a model: tells the engine when that is gone.
pub(crate) struct Farewell {
    model: ModelKey,
    engine: mpsc::Sender<Arrival>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // Without an engine nothing is kept for it.
        let _ = self.engine.send(Arrival::Gone(self.model));
    }
}

struct Shared {
    config: EngineConfig,
    cpu: Cpu,
    card: Option<Device>,
    copies: Option<Arc<Copies>>,
    total_pages: usize,
    residency: Residency,
    next_key: AtomicU64,
    commands: mpsc::Sender<Arrival>,
    door: Arc<Door>,
    counters: Arc<Counters>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.residency.close();
    }
}

/// A handle to the engine thread. The thread ends when the last handle and [`Model`] are gone and
/// what was running has finished.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// A checked request.
pub(crate) struct Submission {
    pub(crate) loaded: Lease<Loaded>,
    pub(crate) prompt: Vec<TokenId>,
    /// Who may find its KV, and whose it may find.
    pub(crate) scope: u64,
    /// The rest of it; its own prompt has become `prompt`.
    pub(crate) ask: Ask,
    pub(crate) terms: Terms,
    /// Where the answer stands in its form.
    pub(crate) guide: Option<Guide>,
    /// Whether an embedding of the prompt is wanted, and no token.
    pub(crate) embeds: bool,
}

impl Engine {
    /// Starts the engine thread and its compute threads.
    ///
    /// # Errors
    /// If the configuration cannot be met on this machine.
    pub fn start(config: EngineConfig) -> Result<Self, StartError> {
        Self::start_watched(config, Arc::new(watch::Sender::new(0)))
    }

    /// The same, with what counts changes of models' states.
    fn start_watched(config: EngineConfig, changes: Arc<watch::Sender<u64>>) -> Result<Self, StartError> {
        let cpu = match (Cpu::new(config.code_path), config.code_path) {
            (Some(cpu), _) => cpu.with_activations(config.activations),
            (None, path) => {
                return Err(StartError::CodePath { path: path.unwrap_or(CodePath::Portable) });
            }
        };
        let page_bytes = config.kv_page_bytes as usize;
        let total_pages = config.kv_bytes.checked_div(config.kv_page_bytes).unwrap_or(0);
        if page_bytes == 0 || total_pages == 0 || total_pages > u32::MAX.into() {
            let (budget, page) = (config.kv_bytes, config.kv_page_bytes);
            return Err(StartError::Budget { budget, page });
        }
        let system = |what| move |reason| StartError::System { what, reason };
        let total_pages = total_pages as usize;
        // A card has its own.
        let here = if config.device == EngineDevice::Cpu { total_pages } else { 0 };
        let arena = Arena::new(here, page_bytes).map_err(system("kv memory"))?;
        let on_card = |reason| StartError::Card { device: config.device, reason };
        let card = match config.device {
            EngineDevice::Cpu => None,
            EngineDevice::Cuda { ordinal } => {
                Some(Device::open_with(ordinal, None, config.card_patience).map_err(on_card)?)
            }
        };
        let state = match &card {
            None => None,
            Some(card) => {
                if config.activations == Activations::F32 {
                    let what = "quantised weights with activations as f32; choose q8".into();
                    return Err(on_card(CudaError::Shape { what }));
                }
                card::check_pages(config.kv_type, page_bytes).map_err(on_card)?;
                let arena = CardArena::new(card, total_pages, page_bytes).map_err(on_card)?;
                Some(OnCardState::new(card, arena, config.kv_type).map_err(on_card)?)
            }
        };
        let pool = Pool::new(config.threads).map_err(system("compute threads"))?;
        let counters = Arc::new(Counters::default());
        counters.free_pages.store(total_pages, Ordering::Relaxed);
        let (commands, inbox) = mpsc::channel();
        let door = Arc::new(Door::new(config.max_waiting, config.max_running));
        let worker = Worker::new(
            &config,
            Compute { cpu, pool, kv_type: config.kv_type },
            (arena, state),
            total_pages,
            inbox,
            counters.clone(),
            door.clone(),
        );
        std::thread::Builder::new()
            .name("hob-engine".into())
            .spawn(move || worker.run())
            .map_err(system("the engine thread"))?;
        // What is on a card is what its memory allows, KV and buffers taken off.
        let most = match &card {
            None => measure::memory_for_models(config.kv_bytes),
            Some(card) => card.memory().0 - card.memory().1,
        };
        let budget = config.model_bytes.unwrap_or(most);
        let (residency, next_key) = (Residency::new(config.device, budget, changes), AtomicU64::new(0));
        let copies = (card.is_some() && config.copy_bytes > 0).then(|| Arc::new(Copies::new(config.copy_bytes)));
        let shared = Shared { config, cpu, card, copies, total_pages, residency, next_key, commands, door, counters };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Leases a model. A resident one is there at once; an absent one is loaded, once however
    /// many wait, and the load goes on if this future is dropped.
    ///
    /// # Errors
    /// If the file is no model that we can run, or there is no room for it. A later join tries again.
    pub async fn join(&self, source: &ModelSource) -> Result<Model, JoinError> {
        self.join_as(source, None).await
    }

    /// The same, with a policy that holds for the model if it is this join that has it loaded.
    ///
    /// # Errors
    /// Those of [`Engine::join`].
    pub async fn join_as(&self, source: &ModelSource, policy: Option<Policy>) -> Result<Model, JoinError> {
        self.join_over(source, policy, &[]).await
    }

    /// The same, over the cards of `others`, too, if it does not fit on this one's.
    async fn join_over(
        &self,
        source: &ModelSource,
        policy: Option<Policy>,
        others: &[&Self],
    ) -> Result<Model, JoinError> {
        let key = self.shared.next_key.fetch_add(1, Ordering::Relaxed);
        let config = &self.shared.config;
        let (kv_type, page_bytes, step) = (config.kv_type, config.kv_page_bytes as usize, config.largest_step());
        let (card, copies) = (self.shared.card.clone(), self.shared.copies.clone());
        let pages = self.shared.total_pages;
        let others: Vec<OtherCard> = others.iter().filter_map(|other| other.as_other()).collect();
        let split = (!others.is_empty()).then_some(Split { others, pages, page_bytes, kv_type });
        let (room, quantize) = (Room { kv_type, page_bytes, step, card, copies, split }, config.quantize);
        let engine = self.shared.commands.clone();
        let load = move |source: &ModelSource, loading: &Loading<'_>| {
            let mut loaded = Loaded::load(source, key, &room, quantize, loading)?;
            loaded.farewell = Some(Farewell { model: key, engine });
            Ok(loaded)
        };
        let loaded = self.shared.residency.join(source, policy, load).await?;
        Ok(Model::new(self.clone(), &source.name, loaded))
    }

    /// Drops the weights of an idle model; of one that is loading, stops that, and who waits for it is told so. `false` if it is
    /// neither.
    ///
    /// # Errors
    /// `InUse` while a [`Model`] or a running sequence holds it.
    pub fn evict(&self, digest: &str) -> Result<bool, EvictError> {
        self.shared.residency.evict(digest)
    }

    /// What holds for a model from now on; nothing happens if it is absent.
    pub fn set_policy(&self, digest: &str, policy: Policy) {
        self.shared.residency.set_policy(digest, policy);
    }

    /// Drops the weights of models that nobody has used for as long as their policies say; how many those were. Call
    /// now and then.
    pub fn evict_expired(&self) -> usize {
        self.shared.residency.evict_expired()
    }

    /// The models in memory, by name.
    pub fn resident(&self) -> Vec<ModelStatus> {
        self.models().into_iter().filter(|model| model.state == ModelState::Resident).collect()
    }

    /// All models but those that are absent, by name.
    pub fn models(&self) -> Vec<ModelStatus> {
        self.shared.residency.list()
    }

    /// How a model came and went, and how long that took; also of one that is absent.
    pub fn moves(&self, digest: &str) -> Moves {
        self.shared.residency.moves(digest)
    }

    /// As a card that may have a part of another engine's model.
    fn as_other(&self) -> Option<OtherCard> {
        let device = self.shared.card.clone()?;
        Some(OtherCard { device, residency: self.shared.residency.clone() })
    }

    /// Whether a model is in memory.
    fn is_resident(&self, digest: &str) -> bool {
        self.shared.residency.is_resident(digest)
    }

    /// The same, or on its way there or away. One that failed says so, and perhaps tries again, in its turn.
    fn has(&self, digest: &str) -> bool {
        self.shared.residency.has(digest)
    }

    /// Bytes for models that none has.
    fn room(&self) -> u64 {
        self.shared.residency.room()
    }

    /// Whether there is a copy of a model in the host's locked memory: see [`EngineConfig::copy_bytes`].
    pub fn has_copy(&self, digest: &str) -> bool {
        self.shared.copies.as_ref().is_some_and(|copies| copies.has(digest))
    }

    /// How often models were evicted. When it changes, [`crate::measure::give_back`] may have much to give.
    pub fn evictions(&self) -> u64 {
        self.shared.residency.evictions()
    }

    /// Changes whenever a model's state does, or the progress of a load.
    pub fn watch_models(&self) -> watch::Receiver<u64> {
        self.shared.residency.watch()
    }

    /// What it was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Whether the card has failed for good: nothing is computed until the process is started again.
    pub fn is_lost(&self) -> bool {
        self.shared.counters.lost.load(Ordering::Relaxed) || self.shared.card.as_ref().is_some_and(Device::is_hung)
    }

    /// Which instructions the kernels use.
    pub fn code_path(&self) -> CodePath {
        self.shared.cpu.path()
    }

    /// What computes, for people: a card by its name, or the processor by its instructions.
    pub fn runs_on(&self) -> String {
        match &self.shared.card {
            Some(card) => format!("{} ({})", self.shared.config.device, card.card().name),
            None => self.code_path().to_string(),
        }
    }

    /// Bytes of the card's memory that we may use, and that we use; `None` where no card computes.
    pub fn card_memory(&self) -> Option<(u64, u64)> {
        self.shared.card.as_ref().map(Device::memory)
    }

    /// The engine at a glance.
    pub fn stats(&self) -> EngineStats {
        let c = &self.shared.counters;
        EngineStats {
            running: c.running.load(Ordering::Relaxed),
            waiting: self.shared.door.waiting(),
            free_pages: c.free_pages.load(Ordering::Relaxed),
            cached_pages: c.cached_pages.load(Ordering::Relaxed),
            total_pages: self.shared.total_pages,
            steps: c.steps.load(Ordering::Relaxed),
            graph_steps: c.graph_steps.load(Ordering::Relaxed),
            ahead_steps: c.ahead_steps.load(Ordering::Relaxed),
            few_logits_steps: c.few_logits_steps.load(Ordering::Relaxed),
            stretched_steps: c.stretched_steps.load(Ordering::Relaxed),
            generated_tokens: c.generated.load(Ordering::Relaxed),
            prefilled_tokens: c.prefilled.load(Ordering::Relaxed),
            cached_tokens: c.cached.load(Ordering::Relaxed),
            preemptions: c.preemptions.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn cpu(&self) -> Cpu {
        self.shared.cpu
    }

    /// The card that computes, if one does.
    pub(crate) fn card(&self) -> Option<&Device> {
        self.shared.card.as_ref()
    }

    pub(crate) fn kv_type(&self) -> KvType {
        self.shared.config.kv_type
    }

    pub(crate) fn threads(&self) -> usize {
        self.shared.config.threads
    }

    pub(crate) fn total_pages(&self) -> usize {
        self.shared.total_pages
    }

    /// Queues a sequence, or refuses if there is no place in the queue or it would wait for too long.
    pub(crate) fn submit(&self, submission: Submission) -> Result<Tokens, Refusal> {
        if self.is_lost() {
            return Err(Refusal::Fault(
                "the card has failed, and is lost to this process until it is started again".into(),
            ));
        }
        let (account, door) = (submission.ask.account, &self.shared.door);
        let (now, terms) = (Instant::now(), &submission.terms);
        let patience = terms.start_by.map(|by| by.saturating_duration_since(now));
        door.enter(account, terms.weight, patience)?;
        let (writer, tokens) = channel();
        let (job, prompt) = Job::new(submission, writer, now);
        self.shared.commands.send(Arrival::Asked(Box::new(job), prompt)).map_err(|_| {
            door.left(account, true, None);
            Refusal::Fault("the engine thread has ended".into())
        })?;
        Ok(tokens)
    }
}
