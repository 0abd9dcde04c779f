//! How fast a model runs on its engine: what `hob bench` prints, and the benchmarks of this repository.
//!
//! Each run brings sequences that the engine has never seen, for accounts it has never seen, so that no prefix is
//! known; they do not end of themselves. Times are those that the engine took down: a late reader lengthens none.

use crate::ask::{Ask, Prompt, Refusal, TokenId};
use crate::model::Model;
use crate::tokens::{Event, Tokens};
use memmap2::MmapMut;
use std::future::poll_fn;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What a run reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// Tokens, of all sequences.
    pub tokens: u64,
    /// The time that they took.
    pub time: Duration,
}

impl Speed {
    /// Tokens a second.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Why nothing was measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The engine does not take the sequences.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// They ended early; the text is for the operator.
    #[error("generation ended early: {0}; measure fewer tokens or sequences")]
    Ended(String),
}

/// Bytes a second that `threads` threads read from memory, each a part of its own, huge pages where there are any: the
/// limit of decoding, which reads all weights for each token. The best of some passes over 256 MiB.
///
/// # Errors
/// If there is no memory for it, or no thread.
pub fn read_rate(threads: usize) -> std::io::Result<f64> {
    const BYTES: usize = 256 << 20;
    const PASSES: usize = 8;
    let mut map = MmapMut::map_anon(BYTES)?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    map.chunks_mut(4096).for_each(|page| page[0] = 1);
    let words: &[u64] = bytemuck::cast_slice(&map);
    let parts: Vec<&[u64]> = words.chunks(words.len().div_ceil(threads.max(1))).collect();
    let barrier = Barrier::new(parts.len());
    // Each takes down its own times: a thread that only watches may come late.
    let pass = |part: &[u64]| {
        let mut times = Vec::new();
        for _ in 0..PASSES {
            barrier.wait();
            let started = Instant::now();
            std::hint::black_box(sum(std::hint::black_box(part)));
            times.push((started, Instant::now()));
        }
        times
    };
    let times: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(|| pass(part))).collect();
        threads.into_iter().map(|thread| thread.join().expect("sums do not fail")).collect()
    });
    let mut best = f64::MAX;
    for n in 0..PASSES {
        let began = times.iter().map(|times| times[n].0).min();
        let ended = times.iter().map(|times| times[n].1).max();
        if let (Some(began), Some(ended)) = (began, ended) {
            best = best.min((ended - began).as_secs_f64());
        }
    }
    Ok(BYTES as f64 / best)
}

/// In eight sums, which the compiler makes vectors of.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    for eight in words.as_chunks::<8>().0 {
        for (sum, word) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Lets `model` answer, and waits until its weights are where they are read fast, some seconds at most.
///
/// # Errors
/// If the engine refuses a sequence, or fails.
pub async fn warm_up(model: &Model) -> Result<(), MeasureError> {
    prefill(model, 32).await?;
    decode(model, 1, 1, 8).await?;
    let started = Instant::now();
    while !model.is_settled() && started.elapsed() < Duration::from_secs(10) {
        // Nothing else runs while something is measured.
        std::thread::sleep(Duration::from_millis(10));
    }
    decode(model, 1, 1, 8).await.map(drop)
}

/// Processes a prompt of `tokens`, alone.
///
/// # Errors
/// If the engine refuses the prompt, or fails.
pub async fn prefill(model: &Model, tokens: usize) -> Result<Speed, MeasureError> {
    let mut sequence = start(model, tokens, 1)?.1;
    loop {
        match sequence.next().await {
            Event::Text(_) => {}
            Event::Finished(_) => break,
            Event::Busy { .. } => unreachable!("it has no deadline"),
            Event::Fault(why) => return Err(MeasureError::Ended(why)),
        }
    }
    Ok(Speed { tokens: tokens as u64, time: sequence.timing().prefill })
}

/// Generates in `sequences` sequences at once, each after a prompt of `prompt` tokens.
///
/// The time begins when each has its first token and ends when `generate` more have come for each, on average, so that all of
/// them run all of the time.
///
/// # Errors
/// If the engine refuses a sequence, or fails.
pub async fn decode(model: &Model, sequences: usize, prompt: usize, generate: u32) -> Result<Speed, MeasureError> {
    // The first to start are ahead of the last; that many tokens is far more than enough.
    let most = generate.saturating_mul(4).saturating_add(1024);
    let mut running = Running(Vec::new());
    for _ in 0..sequences {
        running.0.push(start(model, prompt, most)?);
    }
    let wanted = sequences as u64 * u64::from(generate);
    let mut begin = None;
    let (begin, end) = poll_fn(|cx| {
        let over = match running.poll(cx) {
            Ok(over) => over,
            Err(why) => return Poll::Ready(Err(why)),
        };
        let now = running.progress();
        let Some(begin) = begin else {
            begin = now;
            return if over { Poll::Ready(Err(too_short())) } else { Poll::Pending };
        };
        match now {
            Some(now) if now.0 >= begin.0 + wanted => Poll::Ready(Ok((begin, now))),
            _ if over => Poll::Ready(Err(too_short())),
            _ => Poll::Pending,
        }
    })
    .await?;
    Ok(Speed { tokens: end.0 - begin.0, time: end.1 - begin.1 })
}

fn too_short() -> MeasureError {
    MeasureError::Ended("a sequence has no room for more tokens".into())
}

/// Sequences, and when they were submitted.
struct Running(Vec<(Instant, Tokens)>);

impl Running {
    /// Reads what there is; `true` if a sequence has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Result<bool, MeasureError> {
        let mut over = false;
        for (_, tokens) in &mut self.0 {
            loop {
                match tokens.poll_next(cx) {
                    Poll::Ready(Event::Text(_)) => {}
                    Poll::Ready(Event::Finished(_)) => break over = true,
                    Poll::Ready(Event::Busy { .. }) => unreachable!("they have no deadline"),
                    Poll::Ready(Event::Fault(why)) => return Err(MeasureError::Ended(why)),
                    Poll::Pending => break,
                }
            }
        }
        Ok(over)
    }

    /// Tokens so far and when the last of them came; `None` until each sequence has one.
    fn progress(&self) -> Option<(u64, Instant)> {
        let mut sum = (0, None);
        for (submitted, tokens) in &self.0 {
            let (usage, timing) = (tokens.usage(), tokens.timing());
            let at = *submitted + timing.first_token? + timing.decode;
            sum = (sum.0 + u64::from(usage.generated_tokens), sum.1.max(Some(at)));
        }
        Some((sum.0, sum.1?))
    }
}

/// A new sequence of an account of its own.
fn start(model: &Model, prompt: usize, max_tokens: u32) -> Result<(Instant, Tokens), Refusal> {
    // Accounts of people are small numbers, or hashes.
    static ACCOUNTS: AtomicU64 = AtomicU64::new(0xbe9c << 48);
    let account = ACCOUNTS.fetch_add(1, Ordering::Relaxed);
    let vocab = u64::from(model.info().vocab);
    let tokens = (0..prompt as u64).map(|n| TokenId((mixed(account + (n << 24)) % vocab) as u32)).collect();
    let mut ask = Ask::new(Prompt::Tokens(tokens));
    ask.max_tokens = Some(max_tokens);
    ask.account = account;
    ask.ignore_end = true;
    Ok((Instant::now(), model.generate(ask)?))
}

/// SplitMix64: any two inputs have unlike outputs.
fn mixed(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Bytes that the system could give to programs without taking any away, if it says so.
pub(crate) fn available_memory() -> Option<u64> {
    meminfo("MemAvailable:")
}

/// Bytes for models where nobody says how many: four fifths of what the process may have, less `kv_bytes`, but at least a
/// third of it.
pub(crate) fn memory_for_models(kv_bytes: u64) -> u64 {
    // What control groups allow, where they do: version 2, then 1. "max" is no number.
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let allowed = limits.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    let all = allowed.chain(meminfo("MemTotal:")).min();
    all.map_or(u64::MAX, |all: u64| (all / 5 * 4).saturating_sub(kv_bytes).max(all / 3))
}

fn meminfo(what: &str) -> Option<u64> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = all.lines().find_map(|line| line.strip_prefix(what))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Gives memory that was freed back to the system: what allocators keep for later, scattered over the heaps of the threads that loaded
/// models. Takes some milliseconds, and nobody has to wait for it.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "no library has this call")]
        // SAFETY: it may be called at any time by any thread, and touches nothing that is allocated.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

/// Large allocations of this process have memory of their own from now on, which goes back to the system as they are freed. For a
/// program to call as it begins.
///
/// The allocator begins like that, but takes each large piece that is freed as a reason to have the next ones in its heaps: after some
/// models have come and gone, what is left of them lies there between small things that stay.
pub fn keep_large_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 1 << 20;
        #[expect(unsafe_code, reason = "no library has this call")]
        // SAFETY: it may be called at any time by any thread, and touches nothing that is allocated.
        let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_at_some_rate() {
        let rate = read_rate(2).unwrap();
        assert!((1e8..1e13).contains(&rate), "{rate} bytes a second");
        assert_eq!(sum(&[3; 24]), 72);
    }
}
