//! Who is due what: what each account was given, and what its share of the batch and the pages is.
//!
//! Each account has a virtual counter: the tokens that it was given, over its weight (Sheng et al., "Fairness in Serving
//! Large Language Models", OSDI 2024, section 4). Who was given least comes first, and who comes back after a pause
//! is owed nothing for it: its counter is lifted to the least of those who stayed.

use super::Sequence;
use crate::terms::Priority;
use std::collections::BTreeMap;

/// What one sequence says of whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) account: u64,
    /// An account that has twice the weight of another is due twice as much.
    pub(crate) weight: u32,
    pub(crate) priority: Priority,
}

/// A token of a prompt, which is processed beside others of it, and one of an answer, which is not: as in the paper.
const PROMPT_TOKEN: f64 = 1.0;
const ANSWER_TOKEN: f64 = 2.0;

/// The virtual counters.
#[derive(Debug, Default)]
pub(super) struct Served(BTreeMap<u64, f64>);

impl Served {
    /// An account comes that had no sequence, beside those of `present`.
    pub(super) fn arrive(&mut self, account: u64, present: &[u64]) {
        let least = present.iter().map(|other| self.of(*other)).reduce(f64::min);
        // What is below the least would be lifted to it: it need not be known.
        self.0.retain(|other, served| least.is_some_and(|least| *served > least) || present.contains(other));
        if let Some(least) = least {
            let own = self.0.entry(account).or_insert(least);
            *own = own.max(least);
        }
    }

    /// From now on an account was given so much at least.
    pub(super) fn lift(&mut self, account: u64, least: f64) {
        let own = self.0.entry(account).or_default();
        *own = own.max(least);
    }

    pub(super) fn of(&self, account: u64) -> f64 {
        self.0.get(&account).copied().unwrap_or(0.0)
    }

    pub(super) fn charge(&mut self, share: &Share, prompt_tokens: usize, answer_tokens: usize) {
        *self.0.entry(share.account).or_default() += cost(share, prompt_tokens, answer_tokens);
    }
}

/// What tokens add to the counter of an account.
pub(super) fn cost(share: &Share, prompt_tokens: usize, answer_tokens: usize) -> f64 {
    (prompt_tokens as f64 * PROMPT_TOKEN + answer_tokens as f64 * ANSWER_TOKEN) / f64::from(share.weight.max(1))
}

/// What one account has, and is due.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    weight: u32,
    /// Its counter, and what its running prompts will add to it.
    pub(super) served: f64,
    pub(super) running: usize,
    /// Pages that its sequences hold; those that two of them share count twice.
    pub(super) pages: usize,
    /// Of the places in the batch, and of the pages: its weight among those of all who have sequences.
    due: (f64, f64),
}

impl Standing {
    /// Whether it is due one place more, and `pages` pages. One place is due to everybody, and what one sequence needs.
    pub(super) fn is_due(&self, pages: usize) -> bool {
        self.running == 0 || (self.running as f64 + 1.0 <= self.due.0 && (self.pages + pages) as f64 <= self.due.1)
    }

    /// By how much it has more places, and pages, than it is due; at most zero if it has not. Who has one
    /// sequence has no more than it is due.
    pub(super) fn excess(&self) -> (f64, f64) {
        let (places, pages) = (self.running as f64 - self.due.0, self.pages as f64 - self.due.1);
        if self.running < 2 { (places.min(0.0), pages.min(0.0)) } else { (places, pages) }
    }

    /// Pages for each unit of weight.
    pub(super) fn page_load(&self) -> f64 {
        self.pages as f64 / f64::from(self.weight.max(1))
    }

    pub(super) fn leaves(&mut self, pages: usize) {
        self.running -= 1;
        self.pages -= pages;
    }
}

/// How all accounts stand that have sequences, with so many places and pages in all.
pub(super) fn standings<'a>(
    running: &'a [Sequence],
    waiting: impl Iterator<Item = &'a Sequence>,
    served: &Served,
    (places, pages): (usize, usize),
) -> BTreeMap<u64, Standing> {
    let mut all: BTreeMap<u64, Standing> = BTreeMap::new();
    let mut account = |s: &Sequence| {
        let new = || Standing { served: served.of(s.share.account), ..Standing::default() };
        let standing = all.entry(s.share.account).or_insert_with(new);
        standing.weight = standing.weight.max(s.share.weight);
        let (own, unprocessed) = (s.table.pages().len(), s.prompt.saturating_sub(s.done));
        if own > 0 {
            standing.running += 1;
            standing.pages += own;
            standing.served += cost(&s.share, unprocessed, 0);
        }
    };
    running.iter().chain(waiting).for_each(&mut account);
    let weights: f64 = all.values().map(|standing| f64::from(standing.weight)).sum();
    for standing in all.values_mut() {
        let part = f64::from(standing.weight) / weights;
        standing.due = (part * places as f64, part * pages as f64);
    }
    all
}

/// Says which of `decoding` every step has, so that each account gets its part: as many of each as its weight allows where the
/// account that wants least for its weight has all of its own. Only the highest class has any; who had no turn for longest
/// comes first.
pub(super) fn mark_due<'a>(decoding: impl Iterator<Item = &'a mut Sequence>) {
    let mut decoding: Vec<&mut Sequence> = decoding.collect();
    let Some(class) = decoding.iter().map(|s| s.share.priority).max() else { return };
    let mut wanted: BTreeMap<u64, (usize, u32)> = BTreeMap::new();
    for s in decoding.iter_mut() {
        s.due = false;
        if s.share.priority == class {
            let (sequences, weight) = wanted.entry(s.share.account).or_default();
            *sequences += 1;
            *weight = s.share.weight.max(*weight).max(1);
        }
    }
    let level = wanted.values().map(|(n, weight)| *n as f64 / f64::from(*weight)).fold(f64::INFINITY, f64::min);
    decoding.sort_by_key(|s| s.turn);
    for s in decoding {
        if s.share.priority != class {
            continue;
        }
        let (left, weight) = wanted.get_mut(&s.share.account).expect("all of the class are there");
        // From now on `left` says how many it may have.
        if *weight > 0 {
            // Rounding must not take one away where the level is this account's own.
            *left = (*left).min((level * f64::from(*weight) - 1e-9).ceil() as usize);
            *weight = 0;
        }
        s.due = *left > 0;
        *left = left.saturating_sub(1);
    }
}
