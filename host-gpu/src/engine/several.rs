//! Several devices: one engine for each, and a model on one of them.

use super::{Engine, EngineConfig, EngineDevice, EngineStats, StartError};
use crate::model::{Model, ModelSource};
use crate::residency::{EvictError, JoinError, ModelState, ModelStatus, Moves, Policy};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The engines of a host. A model is loaded to one of them: the one with most room among those of its kind, cards and processors in the
/// order in which they were given. Where it does not fit or cannot run, the next is asked. One that no card has room for is split over
/// the cards, by layers.
#[derive(Clone)]
pub struct Engines {
    all: Arc<[Engine]>,
    /// Whom those who are joining a model now ask, and how many these are: they all ask the same, who loads it once.
    asked: Arc<Mutex<HashMap<String, (usize, usize)>>>,
}

/// Somebody who is joining a model.
struct Asking<'a> {
    engines: &'a Engines,
    digest: &'a str,
}

impl<'a> Asking<'a> {
    /// With the engines to ask, one after the other.
    fn new(engines: &'a Engines, digest: &'a str) -> (Self, Vec<usize>) {
        let mut asked = engines.asked();
        let mut order = engines.for_model(digest);
        if let Some((number, count)) = asked.get_mut(digest) {
            *count += 1;
            order.sort_by_key(|n| n != number);
        } else {
            asked.insert(digest.to_owned(), (order[0], 1));
        }
        (Self { engines, digest }, order)
    }

    fn asks(&self, engine: usize) {
        if let Some((number, _)) = self.engines.asked().get_mut(self.digest) {
            *number = engine;
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.engines.asked();
        match asked.get_mut(self.digest) {
            Some((_, count)) if *count > 1 => *count -= 1,
            _ => drop(asked.remove(self.digest)),
        }
    }
}

impl From<Engine> for Engines {
    fn from(engine: Engine) -> Self {
        Self { all: Arc::new([engine]), asked: Arc::default() }
    }
}

impl Engines {
    /// Starts an engine for each of `devices`, or for the one that `config` names if there are none.
    ///
    /// # Errors
    /// If the configuration cannot be met on this machine, or a device is named twice.
    pub fn start(config: &EngineConfig, devices: &[EngineDevice]) -> Result<Self, StartError> {
        let named = if devices.is_empty() { std::slice::from_ref(&config.device) } else { devices };
        if let Some(twice) = named.iter().enumerate().find(|(n, device)| named[..*n].contains(device)) {
            return Err(StartError::Twice { device: *twice.1 });
        }
        let changes = Arc::new(watch::Sender::new(0));
        let start = |device: &EngineDevice| {
            Engine::start_watched(EngineConfig { device: *device, ..config.clone() }, changes.clone())
        };
        Ok(Self { all: named.iter().map(start).collect::<Result<_, _>>()?, asked: Arc::default() })
    }

    /// Each of them, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &Engine> {
        self.all.iter()
    }

    /// The first one.
    pub fn first(&self) -> &Engine {
        &self.all[0]
    }

    /// Leases a model: see [`Engine::join`].
    ///
    /// # Errors
    /// Those of [`Engine::join`]; of several engines the first's, unless another has room later.
    pub async fn join(&self, source: &ModelSource) -> Result<Model, JoinError> {
        self.join_as(source, None).await
    }

    /// The same, with a policy: see [`Engine::join_as`].
    ///
    /// # Errors
    /// Those of [`Engines::join`].
    pub async fn join_as(&self, source: &ModelSource, policy: Option<Policy>) -> Result<Model, JoinError> {
        // Each request comes here, and nearly always the model is there.
        if let Some(engine) = self.all.iter().find(|engine| self.all.len() == 1 || engine.is_resident(&source.digest)) {
            return engine.join_as(source, policy).await;
        }
        let (asking, order) = Asking::new(self, &source.digest);
        let mut refused: Option<JoinError> = None;
        for same in order.chunk_by(|a, b| self.is_card(*a) == self.is_card(*b)) {
            for number in same {
                asking.asks(*number);
                match self.all[*number].join_as(source, policy).await {
                    Err(error) if may_be_elsewhere(&error) => refused = Some(worth_telling(refused, error)),
                    joined => return joined,
                }
            }
            // No card has room for all of it.
            if self.is_card(same[0])
                && same.len() > 1
                && matches!(refused, Some(JoinError::NoRoom { retry_after: None, .. }))
            {
                let others: Vec<&Engine> = same[1..].iter().map(|number| &self.all[*number]).collect();
                asking.asks(same[0]);
                match self.all[same[0]].join_over(source, policy, &others).await {
                    Err(error) if may_be_elsewhere(&error) => refused = Some(worth_telling(refused, error)),
                    joined => return joined,
                }
            }
        }
        Err(refused.expect("there is an engine"))
    }

    fn is_card(&self, number: usize) -> bool {
        self.all[number].config().device != EngineDevice::Cpu
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<String, (usize, usize)>> {
        // Nothing that runs under the lock can leave it half changed.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is to be asked for a model, one after the other: who has it, or is about to; else all of them.
    fn for_model(&self, digest: &str) -> Vec<usize> {
        if let Some(number) = self.all.iter().position(|engine| engine.has(digest)) {
            return vec![number];
        }
        let numbers = 0..self.all.len();
        let kind = |number: usize| numbers.clone().find(|first| self.is_card(*first) == self.is_card(number));
        let mut all: Vec<_> = numbers.clone().map(|number| (kind(number), self.all[number].room(), number)).collect();
        all.sort_by_key(|(kind, room, _)| (*kind, Reverse(*room)));
        all.into_iter().map(|(_, _, number)| number).collect()
    }

    /// Drops the weights of an idle model, or stops its load: see [`Engine::evict`].
    ///
    /// # Errors
    /// `InUse` while a [`Model`] or a running sequence holds it.
    pub fn evict(&self, digest: &str) -> Result<bool, EvictError> {
        let mut gone = false;
        for engine in self.all.iter() {
            gone |= engine.evict(digest)?;
        }
        Ok(gone)
    }

    /// What holds for a model from now on; nothing happens if it is absent.
    pub fn set_policy(&self, digest: &str, policy: Policy) {
        self.all.iter().for_each(|engine| engine.set_policy(digest, policy));
    }

    /// Drops the weights of models that nobody has used for as long as their policies say; how many those were. Call
    /// now and then.
    pub fn evict_expired(&self) -> usize {
        self.all.iter().map(Engine::evict_expired).sum()
    }

    /// The models in memory, by name.
    pub fn resident(&self) -> Vec<ModelStatus> {
        self.models().into_iter().filter(|model| model.state == ModelState::Resident).collect()
    }

    /// All models but those that are absent, by name.
    pub fn models(&self) -> Vec<ModelStatus> {
        let mut all: Vec<_> = self.all.iter().flat_map(Engine::models).collect();
        // One that this device could not have and that one has is there.
        let there: Vec<_> =
            all.iter().filter(|m| m.state == ModelState::Resident).map(|model| model.digest.clone()).collect();
        all.retain(|m| !matches!(m.state, ModelState::Failed { .. }) || !there.contains(&m.digest));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// How a model came and went on all devices, and how long that took; also of one that is absent.
    pub fn moves(&self, digest: &str) -> Moves {
        self.all.iter().map(|engine| engine.moves(digest)).fold(Moves::default(), |all, one| Moves {
            loads: all.loads + one.loads,
            last_load: one.last_load.or(all.last_load),
            evictions: all.evictions + one.evictions,
            last_eviction: one.last_eviction.or(all.last_eviction),
        })
    }

    /// Whether there is a copy of a model in the host's locked memory: see [`EngineConfig::copy_bytes`].
    pub fn has_copy(&self, digest: &str) -> bool {
        self.all.iter().any(|engine| engine.has_copy(digest))
    }

    /// How often models were evicted. When it changes, [`crate::measure::give_back`] may have much to give.
    pub fn evictions(&self) -> u64 {
        self.all.iter().map(Engine::evictions).sum()
    }

    /// Changes whenever a model's state does, or the progress of a load.
    pub fn watch_models(&self) -> watch::Receiver<u64> {
        self.first().watch_models()
    }

    /// What they were started with, but for the device.
    pub fn config(&self) -> &EngineConfig {
        self.first().config()
    }

    /// Whether a card has failed for good: see [`Engine::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.all.iter().any(Engine::is_lost)
    }

    /// What computes, for people.
    pub fn runs_on(&self) -> String {
        self.all.iter().map(Engine::runs_on).collect::<Vec<_>>().join(", ")
    }

    /// All of them at a glance.
    pub fn stats(&self) -> EngineStats {
        self.all.iter().map(Engine::stats).fold(EngineStats::default(), |all, one| EngineStats {
            running: all.running + one.running,
            waiting: all.waiting + one.waiting,
            free_pages: all.free_pages + one.free_pages,
            cached_pages: all.cached_pages + one.cached_pages,
            total_pages: all.total_pages + one.total_pages,
            steps: all.steps + one.steps,
            graph_steps: all.graph_steps + one.graph_steps,
            ahead_steps: all.ahead_steps + one.ahead_steps,
            few_logits_steps: all.few_logits_steps + one.few_logits_steps,
            stretched_steps: all.stretched_steps + one.stretched_steps,
            generated_tokens: all.generated_tokens + one.generated_tokens,
            prefilled_tokens: all.prefilled_tokens + one.prefilled_tokens,
            cached_tokens: all.cached_tokens + one.cached_tokens,
            preemptions: all.preemptions + one.preemptions,
        })
    }
}

/// Whether another device may do what this one cannot.
fn may_be_elsewhere(error: &JoinError) -> bool {
    use JoinError::{Activations, Card, Failed, NoRoom};
    matches!(error, NoRoom { .. } | Card { .. } | Activations { .. } | Failed { .. })
}

/// Of two refusals the one that says when there is room; else the first.
fn worth_telling(before: Option<JoinError>, now: JoinError) -> JoinError {
    let later = |error: &JoinError| matches!(error, JoinError::NoRoom { retry_after: Some(_), .. });
    match before {
        Some(before) if later(&before) || !later(&now) => before,
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::path::Path;
    use std::pin::pin;
    use std::task::{Context, Waker};

    const LLAMA: &str = "llama.gguf";

    fn source(file: &str, digest: &str) -> ModelSource {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/arch").join(file);
        ModelSource { name: digest.into(), digest: digest.into(), path }
    }

    /// Two of a kind, with so much room each.
    fn two(first: u64, second: u64) -> Engines {
        let changes = Arc::new(watch::Sender::new(0));
        let start = |bytes| {
            let config =
                EngineConfig { threads: 1, kv_bytes: 1 << 20, model_bytes: Some(bytes), ..EngineConfig::default() };
            Engine::start_watched(config, changes.clone()).unwrap()
        };
        Engines { all: Arc::new([start(first), start(second)]), asked: Arc::default() }
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn on(engines: &Engines) -> Vec<usize> {
        engines.iter().map(|engine| engine.models().len()).collect()
    }

    #[test]
    fn a_model_goes_where_most_room_is_and_is_found_there() {
        let engines = two(1 << 30, (1 << 30) + 1);
        let a = wait(engines.join(&source(LLAMA, "a"))).unwrap();
        assert_eq!(on(&engines), [0, 1]);
        let b = wait(engines.join(&source(LLAMA, "b"))).unwrap();
        assert_eq!(on(&engines), [1, 1]);
        drop(wait(engines.join(&source(LLAMA, "a"))).unwrap());
        assert_eq!(on(&engines), [1, 1]);
        assert_eq!((engines.moves("a").loads, engines.resident().len()), (1, 2));
        drop((a, b));
        while engines.evict("a") != Ok(true) {}
        assert_eq!((on(&engines), engines.evictions()), (vec![1, 0], 1));
    }

    #[test]
    fn who_has_no_room_leaves_it_to_another() {
        // The one with more room has not enough either, as long as somebody uses what is there.
        let size = {
            let one = two(1 << 30, 1);
            drop(wait(one.join(&source(LLAMA, "a"))).unwrap());
            one.models()[0].bytes
        };
        let engines = two(size + size / 2, 10);
        let a = wait(engines.join(&source(LLAMA, "a"))).unwrap();
        let refused = wait(engines.join(&source(LLAMA, "b"))).err().unwrap();
        assert!(
            matches!(refused, JoinError::NoRoom { retry_after: Some(_), .. }),
            "the first has room later: {refused}"
        );
        let engines = Engines { all: Arc::new([engines.all[0].clone(), two(size, 0).all[0].clone()]), ..engines };
        let b = wait(engines.join(&source(LLAMA, "b"))).unwrap();
        assert_eq!(on(&engines), [1, 1]);
        drop((a, b));
    }

    #[test]
    fn those_who_come_at_once_have_one_load() {
        let engines = two(1 << 30, 1 << 30);
        let source = source(LLAMA, "a");
        let joins: Vec<_> = (0..8).map(|_| engines.join(&source)).collect();
        let mut joins: Vec<_> = joins.into_iter().map(Box::pin).collect();
        for join in &mut joins {
            drop(join.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        }
        let models: Vec<_> = joins.into_iter().map(|join| wait(join).unwrap()).collect();
        assert_eq!((engines.moves("a").loads, engines.models().len(), models.len()), (1, 1, 8));
        assert!(engines.asked().is_empty());
        // One that leaves before it has an answer leaves nothing.
        drop(pin!(engines.join(&source)).poll(&mut Context::from_waker(Waker::noop())));
        assert!(engines.asked().is_empty());
    }

    #[test]
    fn a_device_has_one_engine() {
        let refused = Engines::start(&EngineConfig::default(), &[EngineDevice::Cpu, EngineDevice::Cpu]).err().unwrap();
        assert!(refused.to_string().starts_with("cpu is named twice"), "{refused}");
    }
}
