//! Lives of models that are numbers.

use super::*;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::thread::sleep;
use tokio::runtime::{Builder, Runtime};

type Numbers = Residency<Number>;

/// Counts those that live.
#[derive(Debug)]
struct Number(u64, Arc<AtomicUsize>);

impl Number {
    fn new(n: u64, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(n, alive.clone())
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

fn numbers(budget: u64) -> Numbers {
    Numbers::new(EngineDevice::Cpu, budget, Arc::new(watch::Sender::new(0)))
}

fn source(name: &str) -> ModelSource {
    ModelSource { name: name.into(), path: PathBuf::new(), digest: format!("digest of {name}") }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Whether a future that is polled for the first time has to wait.
fn futures_are_pending(future: std::pin::Pin<&mut impl Future>) -> bool {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending()
}

/// Joins a model of `bytes`.
async fn join(
    all: &Numbers,
    name: &str,
    bytes: u64,
    policy: Option<Policy>,
    alive: &Arc<AtomicUsize>,
) -> Result<Lease<Number>, JoinError> {
    let alive = alive.clone();
    let load = move |_: &ModelSource, loading: &Loading<'_, Number>| {
        loading.reserve(bytes)?;
        loading.at(bytes, bytes);
        Ok(Number::new(bytes, &alive))
    };
    all.join(&source(name), policy, load).await
}

fn states(all: &Numbers) -> Vec<(String, u64)> {
    all.list().into_iter().map(|m| (format!("{} {}", m.name, m.state), m.bytes)).collect()
}

#[test]
fn the_longest_unused_goes_and_who_is_used_stays() {
    let (all, alive) = (numbers(100), Arc::default());
    let quick = &alive;
    runtime().block_on(async {
        let a = join(&all, "a", 40, None, quick).await.unwrap();
        drop(join(&all, "b", 40, None, quick).await.unwrap());
        assert_eq!(a.0, 40);
        assert_eq!(states(&all), [("a resident".into(), 40), ("b resident".into(), 40)]);
        let refusal = join(&all, "c", 61, None, quick).await.unwrap_err();
        assert!(matches!(
            refusal,
            JoinError::NoRoom { needed: 61, available: 60, budget: 100, retry_after: Some(_), .. }
        ));
        let refusal = join(&all, "c", 101, None, quick).await.unwrap_err();
        assert!(matches!(refusal, JoinError::NoRoom { retry_after: None, .. }), "it never fits: {refusal}");
        assert_eq!(states(&all).len(), 2, "a refusal costs nobody anything");
        let c = join(&all, "c", 60, None, quick).await.unwrap();
        assert_eq!(states(&all), [("a resident".into(), 40), ("c resident".into(), 60)]);
        assert_eq!(alive.load(Ordering::SeqCst), 2);
        assert_eq!(all.evict("digest of a"), Err(EvictError::InUse { leases: 1 }));
        drop((a, c));
        sleep(Duration::from_millis(5));
        drop(join(&all, "a", 40, None, quick).await.unwrap());
        drop(join(&all, "d", 40, None, quick).await.unwrap());
        assert_eq!(states(&all), [("a resident".into(), 40), ("d resident".into(), 40)], "c was unused for longer");
        assert_eq!(all.evict("digest of a"), Ok(true));
        assert_eq!(all.evict("digest of a"), Ok(false));
    });
    assert_eq!(alive.load(Ordering::SeqCst), 1);
}

#[test]
fn one_load_serves_all_and_outlives_who_began_it() {
    let (all, alive) = (numbers(100), Arc::default());
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (wait, own) = (Arc::new(Mutex::new(wait)), Arc::clone(&alive));
    let load = move |_: &ModelSource, loading: &Loading<'_, Number>| {
        loading.reserve(40)?;
        loading.at(10, 40);
        let _ = wait.lock().unwrap().recv();
        Ok(Number::new(40, &own))
    };
    runtime().block_on(async {
        let mut changes = all.watch();
        let a = source("a");
        {
            let mut first = std::pin::pin!(all.join(&a, None, load.clone()));
            assert!(futures_are_pending(first.as_mut()));
        }
        // Who began it is gone; it goes on, and has room.
        while all.list()[0].state != (ModelState::Loading { done: 10, total: 40 }) {
            changes.changed().await.unwrap();
        }
        assert_eq!(states(&all), [("a loading".into(), 40)]);
        changes.borrow_and_update();
        let both = async { tokio::join!(all.join(&a, None, load.clone()), all.join(&a, None, load.clone())) };
        let (both, ()) = tokio::join!(both, async { go.send(()).unwrap() });
        assert!(both.0.is_ok() && both.1.is_ok());
        assert!(changes.has_changed().unwrap(), "its end is seen");
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        // Two that do not fit beside each other: the one that comes later finds room when the other is unused.
        drop(both);
        let b = join(&all, "b", 80, None, &alive).await.unwrap();
        assert_eq!(states(&all), [("b resident".into(), 80)]);
        drop(b);
    });
}

#[test]
fn what_fails_fails_alone_and_is_tried_again_after_a_while() {
    let (all, alive, tries) = (numbers(100), Arc::default(), Arc::new(AtomicUsize::new(0)));
    runtime().block_on(async {
        let bad = |tries: Arc<AtomicUsize>| {
            move |source: &ModelSource, loading: &Loading<'_, Number>| {
                loading.reserve(30)?;
                match tries.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("out of luck"),
                    _ => Err(fault(source, "no")),
                }
            }
        };
        let _other = join(&all, "a", 40, None, &alive).await.unwrap();
        let error = all.join(&source("bad"), None, bad(tries.clone())).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        for _ in 0..100 {
            let error = all.join(&source("bad"), None, bad(tries.clone())).await.unwrap_err();
            assert!(
                matches!(&error, JoinError::Failed { attempts: 1, retry_after, .. } if *retry_after <= RETRY_FIRST)
            );
        }
        assert_eq!(tries.load(Ordering::SeqCst), 1);
        assert_eq!(states(&all), [("a resident".into(), 40), ("bad failed".into(), 0)]);
        sleep(RETRY_FIRST);
        let error = all.join(&source("bad"), None, bad(tries.clone())).await.unwrap_err();
        assert!(matches!(error, JoinError::Fault { .. }), "{error}");
        let error = all.join(&source("bad"), None, bad(tries.clone())).await.unwrap_err();
        assert!(matches!(&error, JoinError::Failed { attempts: 2, retry_after, .. } if *retry_after > RETRY_FIRST));
        assert_eq!(tries.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn policies_say_who_goes_and_when() {
    let (all, alive) = (numbers(100), Arc::default());
    let quick = &alive;
    let idle = |time| Policy { idle: Some(time), ..Policy::default() };
    runtime().block_on(async {
        let a = join(&all, "a", 20, Some(idle(Duration::ZERO)), quick).await.unwrap();
        let pinned = Policy { pinned: true, ..idle(Duration::ZERO) };
        drop(join(&all, "b", 20, Some(pinned), quick).await.unwrap());
        drop(join(&all, "c", 20, None, quick).await.unwrap());
        assert_eq!(all.evict_expired(), 0, "a is used, b is pinned, c has no time");
        let hour = Duration::from_secs(3600);
        all.set_policy("digest of a", idle(hour));
        drop(a);
        assert_eq!(all.evict_expired(), 0, "not yet");
        let a = &all.list()[0];
        assert!(a.expires_in.is_some_and(|left| left <= hour && left > hour / 2) && a.leases == 0, "{a:?}");
        all.set_policy("digest of a", idle(Duration::ZERO));
        assert_eq!(all.evict_expired(), 1);
        assert_eq!(states(&all), [("b resident".into(), 20), ("c resident".into(), 20)]);
        // Who joins what is there changes nothing for it.
        drop(join(&all, "b", 20, Some(Policy::default()), quick).await.unwrap());
        let refusal = join(&all, "d", 90, None, quick).await.unwrap_err();
        assert!(matches!(refusal, JoinError::NoRoom { available: 80, retry_after: None, .. }), "{refusal}");
        all.set_policy("digest of b", Policy::default());
        drop(join(&all, "d", 90, None, quick).await.unwrap());
        assert_eq!(states(&all), [("d resident".into(), 90)]);
    });
}

#[test]
fn a_load_that_is_stopped_leaves_nothing_and_may_begin_again() {
    let (all, alive) = (numbers(100), Arc::default());
    runtime().block_on(async {
        let own: Arc<AtomicUsize> = Arc::clone(&alive);
        // It looks now and then whether it is wanted, as loads do; one that has just ended cannot.
        for looks in [true, false] {
            let own = own.clone();
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let wait = Arc::new(Mutex::new(wait));
            let load = move |_: &ModelSource, loading: &Loading<'_, Number>| {
                loading.reserve(40)?;
                let _ = wait.lock().unwrap().recv();
                while looks && loading.at(1, 40) {
                    sleep(Duration::from_millis(1));
                }
                Ok(Number::new(40, &own))
            };
            let a = source("a");
            let mut join = std::pin::pin!(all.join(&a, None, load));
            assert!(futures_are_pending(join.as_mut()));
            assert_eq!(all.evict(&a.digest), Ok(true));
            go.send(()).unwrap();
            let error = join.await.unwrap_err();
            assert!(matches!(&error, JoinError::Stopped { name } if name == "a"), "{error}");
            assert_eq!((states(&all).len(), alive.load(Ordering::SeqCst)), (0, 0));
            assert_eq!(all.moves(&a.digest).loads, 0);
        }
        // At once, and with all of the room.
        drop(join(&all, "a", 100, None, &alive).await.unwrap());
        assert_eq!(states(&all), [("a resident".into(), 100)]);
    });
}

#[test]
fn a_thousand_turns_of_two_where_one_fits() {
    let (all, alive) = (numbers(100), Arc::default());
    runtime().block_on(async {
        for turn in 0..1000 {
            let name = if turn % 2 == 0 { "a" } else { "b" };
            let lease = join(&all, name, 60, None, &alive).await.unwrap();
            assert_eq!((lease.0, alive.load(Ordering::SeqCst)), (60, 1));
        }
    });
}

#[test]
fn threads_that_join_and_evict_at_random_never_overdraw_the_budget() {
    let (all, alive) = (numbers(100), Arc::default());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (all, alive) = (&all, &alive);
            scope.spawn(move || {
                let mut state = thread + 1;
                runtime().block_on(async {
                    for _ in 0..300 {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        let n = (state >> 33) % 5;
                        let joined = join(all, &format!("m{n}"), 15 + 10 * n, None, alive).await;
                        let taken: u64 =
                            all.list().iter().filter(|m| m.state != ModelState::Evicting).map(|m| m.bytes).sum();
                        assert!(taken <= 100, "{taken}");
                        match joined {
                            Ok(lease) => assert_eq!(lease.0, 15 + 10 * n),
                            Err(error) => {
                                // Another thread may evict what is loading.
                                let busy = matches!(error, JoinError::NoRoom { retry_after: Some(_), .. });
                                assert!(busy || matches!(error, JoinError::Stopped { .. }), "{error}")
                            }
                        }
                        if state % 7 == 0 {
                            let _ = all.evict(&format!("digest of m{n}"));
                        }
                    }
                });
            });
        }
    });
    assert!(all.list().iter().all(|m| m.leases == 0 && m.state == ModelState::Resident));
    assert_eq!(alive.load(Ordering::SeqCst), all.list().len());
}
