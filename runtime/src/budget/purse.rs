//! What one sequence may use: asked by the engine for each token it makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hob_gpu::{Grant, Refusal};

use super::{Allowance, Holder, now};

/// When a sequence or KV is likely to be free again.
const SOON: Duration = Duration::from_secs(1);

/// What one sequence may use. What it holds goes back when it is dropped.
pub struct Purse {
    allowance: Arc<Allowance>,
    /// What its request has taken.
    request: Arc<AtomicU64>,
    /// Who is told why a sequence is refused; until it is open.
    told: Option<Box<dyn Fn(String) + Send>>,
    /// Holders, in order, among whose sequences it counts.
    counted: usize,
    /// Bytes of KV that count with each of those holders.
    kv_bytes: [u64; 2],
    /// Tokens of a prompt that has not begun: taken, but not used.
    prompt: u64,
    /// Holders, in order, of whom `prompt` was taken; and whether of the request.
    taken: (usize, bool),
}

impl Purse {
    /// A purse for a sequence of a request that has taken `request` so far.
    pub fn new(allowance: Arc<Allowance>, request: Arc<AtomicU64>, told: impl Fn(String) + Send + 'static) -> Self {
        let (counted, kv_bytes, prompt, taken) = Default::default();
        Self { allowance, request, told: Some(Box::new(told)), counted, kv_bytes, prompt, taken }
    }

    fn try_open(&mut self, prompt: u64, kv_bytes: u64) -> Result<(), (Refusal, String)> {
        let now = now();
        let whole = |available: u64| Refusal::TooLong { needed: small(prompt + 1), available: small(available) };
        let most = self.allowance.request_tokens();
        self.prompt = prompt;
        // One more token must be left: a prompt that no answer follows is of no use.
        let take = |taken: u64| taken.checked_add(prompt).filter(|taken| *taken < most);
        if let Err(taken) = self.request.fetch_update(Relaxed, Relaxed, take) {
            let left = most.saturating_sub(taken);
            return Err((whole(left), format!("a request may take {most} tokens, and has {left} left")));
        }
        self.taken.1 = true;
        let allowance = self.allowance.clone();
        for (n, holder) in allowance.holders.iter().enumerate() {
            let (limits, counts, whose) = (holder.limits.load(), &holder.counts, holder.whose);
            let busy = |retry_after| Refusal::Busy { retry_after };
            if kv_bytes > limits.kv_bytes {
                let fits = (u128::from(prompt) * u128::from(limits.kv_bytes) / u128::from(kv_bytes)) as u64;
                return Err((
                    whole(fits),
                    format!("the {whose} may hold {} bytes of KV, less than this needs", limits.kv_bytes),
                ));
            }
            let one_more = |open| (open < u64::from(limits.sequences)).then_some(open + 1);
            if counts.sequences.fetch_update(Relaxed, Relaxed, one_more).is_err() {
                return Err((busy(SOON), format!("the {whose} has {} sequences, as many as it may", limits.sequences)));
            }
            self.counted = n + 1;
            if !self.hold_with(n, holder, kv_bytes, limits.kv_bytes) {
                return Err((
                    busy(SOON),
                    format!("the {whose} holds KV near the {} bytes that it may", limits.kv_bytes),
                ));
            }
            let of_minute = (&counts.minute, limits.minute_tokens, "a minute");
            let of_day = (&counts.day, limits.day_tokens, "a day");
            for (_, most, time) in [of_minute, of_day] {
                if prompt >= most {
                    let why = format!("the {whose} may take {most} tokens {time}, less than this needs");
                    return Err((whole(most), why));
                }
            }
            if counts.take(prompt, limits.minute_tokens - 1, limits.day_tokens - 1, now).is_none() {
                let minute_is_full = counts.minute.used(now) + prompt >= limits.minute_tokens;
                let (window, most, time) = if minute_is_full { of_minute } else { of_day };
                let why = format!("the {whose} has taken the {most} tokens that it may {time}");
                return Err((busy(window.ends_in(now)), why));
            }
            self.taken.0 = n + 1;
        }
        Ok(())
    }

    /// Whether so much may be held with a holder; it counts from now on if so.
    fn hold_with(&mut self, n: usize, holder: &Holder, kv_bytes: u64, most: u64) -> bool {
        let before = self.kv_bytes[n];
        let change = |held: u64| {
            let after = (held - before).checked_add(kv_bytes)?;
            (kv_bytes <= before || after <= most).then_some(after)
        };
        let held = holder.counts.kv_bytes.fetch_update(Relaxed, Relaxed, change).is_ok();
        if held {
            self.kv_bytes[n] = kv_bytes;
        }
        held
    }

    /// Takes one token of all, or of none. What the one with the least has left.
    fn take_one(&self) -> Option<u64> {
        let now = now();
        let most = self.allowance.request_tokens();
        let before = self.request.fetch_update(Relaxed, Relaxed, |taken| (taken < most).then_some(taken + 1)).ok()?;
        let mut least = most - before - 1;
        for (n, holder) in self.allowance.holders.iter().enumerate() {
            let limits = holder.limits.load();
            match holder.counts.take(1, limits.minute_tokens, limits.day_tokens, now) {
                Some(left) => least = least.min(left),
                None => {
                    self.request.fetch_sub(1, Relaxed);
                    self.allowance.holders[..n].iter().for_each(|holder| holder.counts.give_back(1, now));
                    return None;
                }
            }
        }
        Some(least)
    }
}

impl hob_gpu::Budget for Purse {
    fn open(&mut self, prompt_tokens: u32, kv_bytes: u64) -> Result<(), Refusal> {
        let told = self.told.take();
        self.try_open(prompt_tokens.into(), kv_bytes).map_err(|(refusal, why)| {
            told.iter().for_each(|told| told(format!("a generation is refused: {why}")));
            refusal
        })
    }

    fn begin(&mut self) {
        (self.prompt, self.taken) = Default::default();
    }

    fn take(&mut self) -> Grant {
        match self.take_one() {
            Some(0) => Grant::LastToken,
            Some(_) => Grant::Token,
            None => Grant::Nothing,
        }
    }

    fn hold(&mut self, kv_bytes: u64) -> bool {
        let allowance = self.allowance.clone();
        let mut holders = allowance.holders.iter().enumerate();
        holders.all(|(n, holder)| self.hold_with(n, holder, kv_bytes, holder.limits.load().kv_bytes))
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        let now = now();
        for (n, holder) in self.allowance.holders.iter().enumerate() {
            if n < self.counted {
                holder.counts.sequences.fetch_sub(1, Relaxed);
                holder.counts.kv_bytes.fetch_sub(self.kv_bytes[n], Relaxed);
            }
            if n < self.taken.0 {
                holder.counts.give_back(self.prompt, now);
            }
        }
        if self.taken.1 {
            self.request.fetch_sub(self.prompt, Relaxed);
        }
    }
}

fn small(tokens: u64) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
