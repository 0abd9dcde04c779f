//! Who runs next: decisions only, no clock, no device.
//!
//! Sequences wait, those of each account in order of arrival. One is admitted when there is a place in the batch and there
//! are pages for its prompt and a good piece of answer; a beginning that the pages know is not computed again. Of several
//! accounts the one comes first that was given least (`share`). Who is due a place or pages that
//! others have beyond their own part gets them: one of the others is preempted. A higher class of priority goes first in
//! all of this, and takes what it needs from lower ones.
//!
//! A step gives decoding sequences their next token first. It has those that are due it; of the others, where some account
//! has more than its part, as many as the caller allows. Then it spends a budget of tokens on prompts, or takes some of a prompt
//! through a few layers (`stretch`).
//!
//! A sequence that outgrows its pages takes more. Where there are none, one of the account that holds most for its weight
//! is preempted. Who is preempted lets go of its pages and waits with all its tokens, which are processed again, like a prompt,
//! when it comes back; it is the youngest of its account, so that the oldest sequence of all is never preempted but by a
//! higher class: since alone it can have every page, it ends, and so does the next.

use crate::ask::TokenId;
use crate::kv::{PageId, PagePool, PageTable, Realm};
use crate::terms::Priority;
use std::cmp::Reverse;
use std::collections::BTreeMap;

mod plan;
mod share;
mod stretch;

pub(crate) use plan::{Allowance, Item};
pub(crate) use share::Share;
use share::{Served, Standing, mark_due, standings};
pub(crate) use stretch::{Chunk, Stretch};

/// The number of a sequence; later ones have higher numbers.
pub(crate) type SeqId = u64;
/// The number of a resident model.
pub(crate) type ModelKey = u64;

/// On admission a sequence gets pages for this many tokens beyond those it has, or for all it may
/// come to if these are fewer. More would hold places in the batch for answers that are mostly shorter
/// than their limit; fewer would admit what is preempted soon, and computed twice.
pub(crate) const RESERVE_TOKENS: usize = 256;
/// While one that comes first waits for pages, others that are due theirs may pass it, until they were given so much more
/// for a weight of one hundred: a thousand tokens of answers.
const PASSING: f64 = 20.0;
/// How far an account that asks for more may be behind the one that was given most, in the same measure: what it saves up
/// is a burst, not an hour.
const CREDIT: f64 = 20.0;

/// What is known of a sequence when it arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Its model, and who may share its pages.
    pub(crate) realm: Realm,
    /// Whom it is for.
    pub(crate) share: Share,
    pub(crate) max_tokens: Option<usize>,
    /// The model's longest sequence, longer than the prompt.
    pub(crate) context: usize,
    /// The prompt is processed in one step, however small the allowance, and nothing of it is kept for others: its keys and
    /// values depend on all of it.
    pub(crate) whole: bool,
    /// The layers of its model if a step may take a prompt through some of them, else 1.
    pub(crate) layers: usize,
}

/// One sequence: waiting -> prefilling until its last token is next -> decoding; back to waiting if preempted.
#[derive(Debug)]
struct Sequence {
    id: SeqId,
    realm: Realm,
    share: Share,
    /// The prompt, then what was generated.
    tokens: Vec<TokenId>,
    /// How many of these are the prompt.
    prompt: usize,
    /// The most tokens it can come to.
    most: usize,
    /// See [`Need::whole`].
    whole: bool,
    /// See [`Need::layers`].
    layers: usize,
    /// Empty while it waits.
    table: PageTable,
    /// Tokens whose keys and values are in the pages.
    done: usize,
    /// The tokens behind those that are in the pages of some layers, and of how many.
    begun: Option<(usize, usize)>,
    /// The turn in which it decoded last.
    turn: u64,
    /// Whether the step that comes has it if it decodes.
    due: bool,
    /// Whether no step has it any more.
    closed: bool,
}

/// A sequence that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) id: SeqId,
    /// Its first tokens that are in the pages already.
    pub(crate) found: usize,
}

/// What happened to a sequence between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is in the batch now.
    Admitted(Admitted),
    /// It is back in the queue.
    Preempted(SeqId),
}

/// What there is to do for one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Sequences that decode.
    pub(crate) decoding: usize,
    /// Those of them that the next step has in any case.
    pub(crate) due: usize,
    /// Sequences with prompts to process.
    pub(crate) prompting: usize,
}

/// The state of the queue and the batch.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// In order of admission.
    running: Vec<Sequence>,
    /// In order of arrival.
    waiting: BTreeMap<SeqId, Sequence>,
    pool: PagePool,
    max_running: usize,
    served: Served,
    turn: u64,
}

impl Scheduler {
    pub(crate) fn new(pages: usize, max_running: usize) -> Self {
        let (running, waiting, served) = Default::default();
        Self { running, waiting, pool: PagePool::new(pages), max_running: max_running.max(1), served, turn: 0 }
    }

    /// Puts a sequence at the end of the queue. `prompt` has at least one token, and its keys and
    /// values would fit in all pages.
    pub(crate) fn submit(&mut self, id: SeqId, need: Need, prompt: Vec<TokenId>) {
        let asked = need.max_tokens.map_or(usize::MAX, |max| prompt.len().saturating_add(max));
        // Nothing follows the last token: it needs no place in the pages.
        let room = (self.pool.total() * need.realm.page_tokens).saturating_add(1);
        let present: Vec<u64> = self.running.iter().chain(self.waiting.values()).map(|s| s.share.account).collect();
        if !present.contains(&need.share.account) {
            self.served.arrive(need.share.account, &present);
        }
        // Who wanted little while others had what was left is owed no more than this for it.
        let most = present.iter().map(|account| self.served.of(*account)).reduce(f64::max);
        self.served.lift(need.share.account, most.map_or(0.0, |most| most - CREDIT));
        let sequence = Sequence {
            id,
            realm: need.realm,
            share: need.share,
            prompt: prompt.len(),
            tokens: prompt,
            most: need.context.min(asked).min(room),
            whole: need.whole,
            layers: need.layers,
            table: PageTable::new(need.realm),
            done: 0,
            begun: None,
            turn: 0,
            due: false,
            closed: false,
        };
        self.waiting.insert(id, sequence);
    }

    /// Gives each running sequence the pages that its tokens need, and preempts as long as there are too few. Gives
    /// those preempted.
    pub(crate) fn make_room(&mut self) -> Vec<SeqId> {
        let mut preempted = Vec::new();
        let mut n = 0;
        while let Some(s) = self.running.get_mut(n) {
            let pages = s.pages(s.tokens.len());
            if s.closed || self.pool.grow(&mut s.table, pages).is_ok() {
                n += 1;
                continue;
            }
            let Some(victim) = self.holds_most() else { break };
            n -= usize::from(victim < n);
            preempted.push(self.preempt(victim));
        }
        preempted
    }

    /// Whom to take pages from: of the lowest class and the account that has most for its weight the youngest, but never the
    /// oldest of all.
    fn holds_most(&self) -> Option<usize> {
        let standings = self.standings();
        let oldest = self.running.iter().map(|s| (Reverse(s.share.priority), s.id)).min()?.1;
        let load = |s: &Sequence| standings[&s.share.account].page_load();
        let others = self.running.iter().enumerate().filter(|(_, s)| s.id != oldest);
        let first = |a: &Sequence, b: &Sequence| {
            let by_class = b.share.priority.cmp(&a.share.priority);
            by_class.then(load(a).total_cmp(&load(b))).then(a.id.cmp(&b.id))
        };
        others.max_by(|(_, a), (_, b)| first(a, b)).map(|(at, _)| at)
    }

    fn preempt(&mut self, at: usize) -> SeqId {
        let mut gone = self.running.remove(at);
        self.pool.release(&mut gone.table);
        (gone.done, gone.begun) = (0, None);
        let id = gone.id;
        self.waiting.insert(id, gone);
        id
    }

    /// Admits what fits, in the order of what accounts are due.
    pub(crate) fn admit(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while !self.waiting.is_empty() && self.admit_one(&mut changes) {}
        changes
    }

    /// Admits the first that fits; says whether one did.
    ///
    /// One that does not fit gets its pages as others leave: whoever comes after it may pass only if it takes what it is
    /// due in any case, and not for ever.
    fn admit_one(&mut self, changes: &mut Vec<Change>) -> bool {
        let standings = self.standings();
        let mut blocked: Option<(Priority, f64)> = None;
        for (id, share, served) in self.queue(&standings) {
            let need = self.waiting[&id].reserve();
            let due = standings[&share.account].is_due(need);
            if let Some((class, first)) = blocked
                && (!due || share.priority < class || served > first + PASSING)
            {
                continue;
            }
            let room = self.victims(&share, need, due, &standings);
            for victim in room.into_iter().flatten() {
                let at = self.running.iter().position(|s| s.id == victim).expect("victims run");
                changes.push(Change::Preempted(self.preempt(at)));
            }
            if let Some(found) = self.open(id) {
                changes.push(Change::Admitted(Admitted { id, found }));
                return true;
            }
            blocked.get_or_insert((share.priority, served));
        }
        false
    }

    /// The first in the line of each account, in the order in which they come.
    fn queue(&self, standings: &BTreeMap<u64, Standing>) -> Vec<(SeqId, Share, f64)> {
        let mut first: BTreeMap<u64, (SeqId, Share)> = BTreeMap::new();
        for s in self.waiting.values().filter(|s| !s.closed) {
            let best = first.entry(s.share.account).or_insert((s.id, s.share));
            if s.share.priority > best.1.priority {
                *best = (s.id, s.share);
            }
        }
        let served = |share: &Share| standings[&share.account].served;
        let mut queue: Vec<_> = first.into_values().map(|(id, share)| (id, share, served(&share))).collect();
        queue.sort_by(|a, b| b.1.priority.cmp(&a.1.priority).then(a.2.total_cmp(&b.2)).then(a.0.cmp(&b.0)));
        queue
    }

    /// Whom to preempt so that a sequence of `share` gets a place and `need` pages: nobody if there are such, `None` if
    /// even that would not help. Lower classes give what they have; accounts what they have beyond what they are due, to one
    /// that is due it.
    fn victims(
        &self,
        share: &Share,
        need: usize,
        due: bool,
        standings: &BTreeMap<u64, Standing>,
    ) -> Option<Vec<SeqId>> {
        let mut places = (self.running.len() + 1).saturating_sub(self.max_running);
        let mut pages = (need + self.spare()).saturating_sub(self.pool.available());
        let (mut standings, mut victims) = (standings.clone(), Vec::new());
        while places > 0 || pages > 0 {
            let may_go = |s: &&Sequence| {
                let (places_over, pages_over) = standings[&s.share.account].excess();
                let over = if pages > 0 { pages_over > 0.0 } else { places_over > 0.0 };
                let lower = s.share.priority < share.priority;
                let same = s.share.priority == share.priority && s.share.account != share.account;
                !victims.contains(&s.id) && (lower || same && due && over)
            };
            let weight = |s: &Sequence| {
                let (places_over, pages_over) = standings[&s.share.account].excess();
                if pages > 0 { pages_over } else { places_over }
            };
            let order = |a: &&Sequence, b: &&Sequence| {
                let by_class = b.share.priority.cmp(&a.share.priority);
                by_class.then(weight(a).total_cmp(&weight(b))).then(a.id.cmp(&b.id))
            };
            let victim = self.running.iter().filter(may_go).max_by(order)?;
            victims.push(victim.id);
            places = places.saturating_sub(1);
            pages = pages.saturating_sub(self.pool.freed_by(&victim.table));
            let standing = standings.get_mut(&victim.share.account).expect("who runs has a standing");
            standing.leaves(victim.table.pages().len());
        }
        Some(victims)
    }

    /// Pages that are not given away: the next page of each that may outgrow what it has. Who got one would be the first
    /// to be preempted.
    fn spare(&self) -> usize {
        self.running.iter().filter(|s| s.may_outgrow()).count()
    }

    /// Takes one from the queue into the batch if there is room; gives how many of its tokens are in the pages already.
    fn open(&mut self, id: SeqId) -> Option<usize> {
        let spare = self.spare();
        let next = self.waiting.get_mut(&id).filter(|_| self.running.len() < self.max_running)?;
        // The last token is computed in any case, since it gives the logits.
        let known = if next.whole { 0 } else { next.tokens.len() - 1 };
        let (known, pages) = (&next.tokens[..known], next.reserve());
        self.pool.open(&mut next.table, known, pages, spare).ok()?;
        let mut next = self.waiting.remove(&id)?;
        let found = next.table.named_tokens();
        next.done = found;
        self.running.push(next);
        Some(found)
    }

    fn standings(&self) -> BTreeMap<u64, Standing> {
        standings(&self.running, self.waiting.values(), &self.served, (self.max_running, self.pool.total()))
    }

    /// What there is to do for each model that has work. It is another's turn now.
    pub(crate) fn loads(&mut self) -> BTreeMap<ModelKey, Load> {
        self.turn += 1;
        mark_due(self.running.iter_mut().filter(|s| s.decodes()));
        let mut loads: BTreeMap<ModelKey, Load> = BTreeMap::new();
        for s in self.running.iter().filter(|s| !s.closed) {
            let load = loads.entry(s.realm.model).or_default();
            match s.decodes() {
                true => (load.decoding, load.due) = (load.decoding + 1, load.due + usize::from(s.due)),
                false => load.prompting += 1,
            }
        }
        loads
    }

    /// Notes that `item` was processed.
    pub(crate) fn done(&mut self, item: &Item) {
        if let Some(s) = self.running.iter_mut().find(|s| s.id == item.id) {
            s.begun = item.stretch.filter(|stretch| !stretch.is_last()).map(|stretch| (item.tokens, stretch.to));
            if s.begun.is_some() {
                return;
            }
            s.done += item.tokens;
            match item.decodes {
                true => self.served.charge(&s.share, 0, item.tokens),
                false => self.served.charge(&s.share, item.tokens, 0),
            }
            if item.decodes {
                s.turn = self.turn;
            }
            if !s.whole {
                self.pool.fill(&mut s.table, &s.tokens[..s.done]);
            }
        }
    }

    /// Adds the token that `id` was given; says whether it can have another.
    pub(crate) fn push(&mut self, id: SeqId, token: TokenId) -> bool {
        let Some(s) = self.running.iter_mut().find(|s| s.id == id) else { return false };
        s.tokens.push(token);
        s.tokens.len() < s.most
    }

    /// Has no step process the newest token of `id`: nothing comes after it.
    pub(crate) fn close(&mut self, id: SeqId) {
        if let Some(s) = self.running.iter_mut().find(|s| s.id == id) {
            s.closed = true;
        }
    }

    /// Says which token the newest one of `id` is, wherever that is by now; says whether it can have another.
    pub(crate) fn know(&mut self, id: SeqId, token: TokenId) -> bool {
        let running = self.running.iter_mut().find(|s| s.id == id);
        let Some(s) = running.or_else(|| self.waiting.get_mut(&id)) else { return false };
        if let Some(newest) = s.tokens.last_mut() {
            *newest = token;
        }
        s.tokens.len() < s.most
    }

    /// Forgets `id` and takes its pages back; says whether it was waiting.
    pub(crate) fn remove(&mut self, id: SeqId) -> bool {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut gone = self.running.remove(at);
            self.pool.release(&mut gone.table);
            return false;
        }
        self.waiting.remove(&id).is_some()
    }

    /// Forgets what is kept for `model`, which is gone. Says whether all pages are free now.
    pub(crate) fn forget(&mut self, model: ModelKey) -> bool {
        self.pool.forget(model)
    }

    /// The tokens that `item` processes, and the pages of its sequence.
    pub(crate) fn input(&self, item: &Item) -> (&[TokenId], &[PageId]) {
        let s = self.running.iter().find(|s| s.id == item.id).expect("what is planned runs until its step is done");
        (&s.tokens[item.position..][..item.tokens], s.table.pages())
    }

    /// All sequences, and how many pages each holds.
    pub(crate) fn held(&self) -> impl Iterator<Item = (SeqId, usize)> {
        self.running.iter().chain(self.waiting.values()).map(|s| (s.id, s.table.pages().len()))
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Pages that nobody holds, and how many of these keep a prefix.
    pub(crate) fn free_pages(&self) -> (usize, usize) {
        (self.pool.available(), self.pool.cached())
    }

    fn of(&self, model: ModelKey) -> impl Iterator<Item = &Sequence> {
        self.running.iter().filter(move |s| s.realm.model == model && !s.closed)
    }
}

impl Sequence {
    /// Pages for `tokens` tokens.
    fn pages(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.realm.page_tokens)
    }

    /// Pages it gets on admission.
    fn reserve(&self) -> usize {
        let end = self.most.min(self.tokens.len() + RESERVE_TOKENS);
        self.pages((end - 1).max(self.tokens.len()))
    }

    fn may_outgrow(&self) -> bool {
        self.pages(self.most - 1) > self.table.pages().len()
    }

    fn decodes(&self) -> bool {
        !self.closed && self.done >= self.prompt && self.done + 1 == self.tokens.len()
    }
}

#[cfg(test)]
mod fair;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
