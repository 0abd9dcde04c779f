//! Compiled components in memory: mapped at the first call, shared by all functions over them, let go when there are
//! more than the process may map.
//!
//! Compiling happens at deploy time, on threads that serve nobody, at most one component a core at a time. What it
//! makes is kept by the component's digest and the engine's compatibility hash (`instance/component.rs`), so that
//! starting again compiles nothing; only after the engine itself changed are components compiled behind the scenes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use wasmtime::component::Component;

use crate::config::Grants;
use crate::data::DataDir;
use crate::digest::Digest;
use crate::function_host::function::Revision;
use crate::instance::Linked;
use crate::instance::component::{self, ComponentError};
use crate::instance::engine::WasmEngine;

/// Most components that are mapped at once, on a machine that sets no lower bound.
const MOST_MAPPED: usize = 4096;
/// Regions of address space that a mapped component takes, and its instances beside it.
const MAPS_EACH: usize = 12;
/// What nobody calls for this long, or twice as long at most, is let go of.
const IDLE: Duration = Duration::from_secs(300);
/// Compiled code up to this size is mapped where it is called: a hop to another thread would take longer.
const QUICK_BYTES: u64 = 4 << 20;

/// The components of a host, compiled and linked.
pub struct Components {
    wasm: WasmEngine,
    data: DataDir,
    compiling: OneEach<Digest>,
    cores: Permits,
    slots: Mutex<Slots>,
    most: usize,
    /// Counts mappings. What was used since the last one was used now.
    clock: AtomicU64,
    /// When what was idle was let go of last.
    swept: AtomicU64,
}

/// The components that are mapped or were, each with what it was granted.
type Slots = HashMap<(Digest, Grants), Arc<Mutex<Slot>>>;

/// One component with one set of grants. It stays mapped while a revision, or a request, holds it.
#[derive(Default)]
struct Slot {
    linked: Weak<Linked>,
    users: Vec<Weak<Revision>>,
}

impl Components {
    /// The components kept in `data`, none of them mapped; at most `most` will be, but for those that are called.
    pub fn new(wasm: WasmEngine, data: DataDir, most: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            wasm,
            data,
            compiling: OneEach::default(),
            cores: Permits::new(cores),
            slots: Mutex::default(),
            most: most.unwrap_or_else(most_mapped).max(1),
            clock: AtomicU64::new(1),
            swept: AtomicU64::new(0),
        }
    }

    /// The engine that they are compiled for.
    pub fn engine(&self) -> &WasmEngine {
        &self.wasm
    }

    /// The time by which it is told what was used last.
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Whether a component needs no compilation.
    pub fn is_compiled(&self, digest: &Digest) -> bool {
        self.data.compiled(self.wasm.compatibility(), digest).exists()
    }

    /// Whether a component can be mapped in less time than going to another thread takes.
    pub fn is_quick(&self, digest: &Digest) -> bool {
        let compiled = self.data.compiled(self.wasm.compatibility(), digest);
        compiled.metadata().is_ok_and(|file| file.len() <= QUICK_BYTES)
    }

    /// Compiles a component, unless that was done. Blocks.
    ///
    /// # Errors
    /// See [`ComponentError`].
    pub fn compile(&self, digest: &Digest) -> Result<(), ComponentError> {
        self.load(digest).map(drop)
    }

    /// A component linked with what `grants` says, for `user`. Blocks, if only for a moment when it is compiled.
    ///
    /// # Errors
    /// See [`ComponentError`].
    pub fn link(
        &self,
        digest: &Digest,
        grants: Grants,
        user: Option<&Arc<Revision>>,
    ) -> Result<Arc<Linked>, ComponentError> {
        let slot = locked(&self.slots).entry((*digest, grants)).or_default().clone();
        let linked = {
            let mut slot = locked(&slot);
            slot.add_user(user);
            match slot.linked.upgrade() {
                Some(linked) => return Ok(linked),
                None => {
                    let linked = Arc::new(self.link_anew(digest, grants)?);
                    slot.linked = Arc::downgrade(&linked);
                    linked
                }
            }
        };
        self.clock.fetch_add(1, Ordering::Relaxed);
        self.make_room();
        Ok(linked)
    }

    /// Lets go of what nobody has called since this was done last. The next call maps it again, in less than a
    /// millisecond.
    pub fn let_go_idle(&self) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        let since = self.swept.swap(now, Ordering::Relaxed);
        let is_left = |slot: &mut Arc<Mutex<Slot>>| {
            let idle = Arc::strong_count(slot) == 1 && free(slot).is_some_and(|slot| slot.last_use() < since);
            !(idle && free(slot).is_some_and(|mut slot| slot.let_go()))
        };
        locked(&self.slots).retain(|_, slot| is_left(slot));
    }

    /// How many are mapped.
    pub fn mapped(&self) -> usize {
        locked(&self.slots).values().filter(|slot| free(slot).is_none_or(|slot| slot.is_mapped())).count()
    }

    fn link_anew(&self, digest: &Digest, grants: Grants) -> Result<Linked, ComponentError> {
        let started = Instant::now();
        let component = self.load(digest)?;
        let mapped = started.elapsed();
        let linked = Linked::new(&self.wasm, &component, grants)?;
        let us = |time: Duration| time.as_micros() as u64;
        tracing::debug!(
            component = digest.short(),
            map_us = us(mapped),
            link_us = us(started.elapsed() - mapped),
            "mapped"
        );
        Ok(linked)
    }

    /// Maps a component; compiles it first, if that was not done, one at a time for each core.
    fn load(&self, digest: &Digest) -> Result<Component, ComponentError> {
        self.load_from(digest, || std::fs::read(self.data.component(digest)))
    }

    /// Maps a component whose bytes are at hand; compiles it first, if that was not done. Blocks.
    ///
    /// # Errors
    /// See [`ComponentError`].
    pub fn load_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<Component, ComponentError> {
        self.load_from(digest, || Ok(bytes.to_owned()))
    }

    fn load_from(
        &self,
        digest: &Digest,
        read: impl FnOnce() -> std::io::Result<Vec<u8>>,
    ) -> Result<Component, ComponentError> {
        if self.is_compiled(digest) {
            return component::load_from(&self.wasm, &self.data, digest, read);
        }
        self.compiling.run(*digest, || {
            if self.is_compiled(digest) {
                return component::load_from(&self.wasm, &self.data, digest, read);
            }
            let _core = self.cores.take();
            let started = Instant::now();
            let component = component::load_from(&self.wasm, &self.data, digest, read)?;
            tracing::info!(component = digest.short(), ms = started.elapsed().as_millis() as u64, "compiled");
            Ok(component)
        })
    }

    /// Lets go of the components that were called longest ago and that nobody is calling, if there are too many.
    fn make_room(&self) {
        let mut slots = locked(&self.slots);
        if slots.len() <= self.most {
            return;
        }
        // Those that are in somebody's hands are being mapped, or even compiled: nobody waits for that here.
        slots.retain(|_, slot| free(slot).is_none_or(|free| Arc::strong_count(slot) > 1 || free.is_mapped()));
        let last_use = |slot: &Arc<Mutex<Slot>>| free(slot).map_or(u64::MAX, |slot| slot.last_use());
        let mut by_use: Vec<_> = slots.iter().map(|(key, slot)| (last_use(slot), *key)).collect();
        by_use.sort_unstable_by_key(|(used, _)| *used);
        // Some more than one, so that this is not done at each mapping.
        let surplus = slots.len().saturating_sub(self.most - self.most / 8);
        for (_, key) in by_use.into_iter().take(surplus) {
            let empty = slots.get(&key).and_then(free).is_some_and(|mut slot| slot.let_go());
            if empty {
                slots.remove(&key);
            }
        }
    }
}

impl Slot {
    fn add_user(&mut self, user: Option<&Arc<Revision>>) {
        let Some(user) = user else { return };
        if self.users.len() == self.users.capacity() {
            self.users.retain(|user| user.strong_count() > 0);
        }
        if !self.users.iter().rev().take(8).any(|known| known.as_ptr() == Arc::as_ptr(user)) {
            self.users.push(Arc::downgrade(user));
        }
    }

    fn is_mapped(&self) -> bool {
        self.linked.strong_count() > 0
    }

    fn last_use(&self) -> u64 {
        self.users.iter().filter_map(Weak::upgrade).map(|user| user.last_use()).max().unwrap_or(0)
    }

    /// Takes it from the revisions that nobody calls. Whether it is mapped no more.
    fn let_go(&mut self) -> bool {
        self.users.retain(|user| user.upgrade().is_some_and(|user| !user.let_go_if_idle()));
        !self.is_mapped()
    }
}

/// The thread that lets go of what is idle; it ends when this is dropped.
pub struct Sweeper(#[allow(dead_code)] Sender<()>); // held, never used

impl Sweeper {
    /// Looks after `components`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(components: &Arc<Components>) -> std::io::Result<Self> {
        let components = Arc::downgrade(components);
        let (held, dropped) = mpsc::channel::<()>();
        std::thread::Builder::new().name("hob-idle".into()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = dropped.recv_timeout(IDLE) {
                let Some(components) = components.upgrade() else { return };
                components.let_go_idle();
            }
        })?;
        Ok(Self(held))
    }
}

/// How many components may be mapped: each takes regions of address space, and a file descriptor.
fn most_mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let maps = maps.and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(65_530);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    let files: usize = files.unwrap_or(1024);
    // Half of either is left to instances and connections.
    MOST_MAPPED.min(maps / 2 / MAPS_EACH).min(files / 2).max(16)
}

/// Work that is done once at a time for each key.
struct OneEach<K>(Mutex<HashMap<K, Arc<Mutex<()>>>>);

impl<K> Default for OneEach<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> OneEach<K> {
    fn run<T>(&self, key: K, work: impl FnOnce() -> T) -> T {
        let turn = locked(&self.0).entry(key).or_default().clone();
        let done = {
            let _turn = locked(&turn);
            work()
        };
        let mut turns = locked(&self.0);
        if Arc::strong_count(&turn) == 2 {
            turns.remove(&key);
        }
        done
    }
}

/// So many at once; the others wait.
struct Permits {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Permits {
    fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    fn take(&self) -> Permit<'_> {
        let free = locked(&self.free);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Permit(self)
    }
}

struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *locked(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

/// A slot that nobody holds.
fn free(slot: &Arc<Mutex<Slot>>) -> Option<MutexGuard<'_, Slot>> {
    match slot.try_lock() {
        Ok(slot) => Some(slot),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn one_each_and_so_many_at_once() {
        let (each, permits) = (OneEach::default(), Permits::new(2));
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let per_key: [AtomicUsize; 3] = Default::default();
        std::thread::scope(|scope| {
            for n in 0..24 {
                let (each, permits, now, most, per_key) = (&each, &permits, &now, &most, &per_key);
                scope.spawn(move || {
                    each.run(n % 3, || {
                        assert_eq!(per_key[n % 3].fetch_add(1, Ordering::SeqCst), 0, "one at a time for each key");
                        let _permit = permits.take();
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        per_key[n % 3].fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert!(most.into_inner() <= 2);
        assert!(locked(&each.0).is_empty(), "nothing is left behind");
    }
}
