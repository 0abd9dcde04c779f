//! Who runs next: decisions only, no clock, no device.
//!
//! Sequences wait in order of arrival. One is admitted when there is a place in the batch and there
//! are pages for its prompt and a good piece of answer; a beginning that the pages know is not computed
//! again. A step gives every decoding sequence its next token first, then spends a budget of tokens
//! on prompts, in order of admission.
//!
//! A sequence that outgrows its pages takes more. Where there are none, the one admitted last is
//! preempted: it lets go of its pages and waits at the front of the queue with all its tokens, which
//! are processed again, like a prompt, when it comes back. So those in the batch came before those
//! that wait, each in order of arrival; the oldest of all is never preempted by another, and since
//! alone it can have every page, it ends, and so does the next.

use crate::ask::TokenId;
use crate::kv::{PageId, PagePool, PageTable, Realm};
use std::collections::VecDeque;

/// The number of a sequence; later ones have higher numbers.
pub(crate) type SeqId = u64;
/// The number of a resident model.
pub(crate) type ModelKey = u64;

/// On admission a sequence gets pages for this many tokens beyond those it has, or for all it may
/// come to if these are fewer. More would hold places in the batch for answers that are mostly shorter
/// than their limit; fewer would admit what is preempted soon, and computed twice.
pub(crate) const RESERVE_TOKENS: usize = 256;

/// What is known of a sequence when it arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Its model, and who may share its pages.
    pub(crate) realm: Realm,
    pub(crate) max_tokens: Option<usize>,
    /// The model's longest sequence, longer than the prompt.
    pub(crate) context: usize,
}

/// One sequence: waiting -> prefilling until its last token is next -> decoding; back to waiting if preempted.
#[derive(Debug)]
struct Sequence {
    id: SeqId,
    realm: Realm,
    /// The prompt, then what was generated.
    tokens: Vec<TokenId>,
    /// How many of these are the prompt.
    prompt: usize,
    /// The most tokens it can come to.
    most: usize,
    /// Empty while it waits.
    table: PageTable,
    /// Tokens whose keys and values are in the pages.
    done: usize,
}

/// A sequence that was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) id: SeqId,
    /// Its first tokens that are in the pages already.
    pub(crate) found: usize,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: SeqId,
    /// Tokens that are in the pages already.
    pub(crate) position: usize,
    /// Tokens to process now.
    pub(crate) tokens: usize,
    /// Whether this is the newest token of a decoding sequence, rather than some of a prompt.
    pub(crate) decodes: bool,
    /// Whether the last of them gives the sequence's next token.
    pub(crate) gives_token: bool,
}

/// The state of the queue and the batch.
///
/// Invariant: ids ascend from the first running to the last waiting sequence.
#[derive(Debug)]
pub(crate) struct Scheduler {
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    pool: PagePool,
    max_running: usize,
}

impl Scheduler {
    pub(crate) fn new(pages: usize, max_running: usize) -> Self {
        let pool = PagePool::new(pages);
        Self { running: Vec::new(), waiting: VecDeque::new(), pool, max_running: max_running.max(1) }
    }

    /// Puts a sequence at the end of the queue. `prompt` has at least one token, and its keys and
    /// values would fit in all pages.
    pub(crate) fn submit(&mut self, id: SeqId, need: Need, prompt: Vec<TokenId>) {
        let asked = need.max_tokens.map_or(usize::MAX, |max| prompt.len().saturating_add(max));
        // Nothing follows the last token: it needs no place in the pages.
        let room = (self.pool.total() * need.realm.page_tokens).saturating_add(1);
        self.waiting.push_back(Sequence {
            id,
            realm: need.realm,
            prompt: prompt.len(),
            tokens: prompt,
            most: need.context.min(asked).min(room),
            table: PageTable::new(need.realm),
            done: 0,
        });
    }

    /// Gives each running sequence the pages that its tokens need, the oldest first, and preempts from
    /// the other end as long as there are too few. Gives those preempted.
    pub(crate) fn make_room(&mut self) -> Vec<SeqId> {
        let (mut preempted, mut n) = (Vec::new(), 0);
        while let Some(s) = self.running.get_mut(n) {
            let pages = s.pages(s.tokens.len());
            if self.pool.grow(&mut s.table, pages).is_ok() {
                n += 1;
            } else if let Some(mut last) = self.running.pop() {
                self.pool.release(&mut last.table);
                last.done = 0;
                preempted.push(last.id);
                self.waiting.push_front(last);
            }
        }
        preempted
    }

    /// Admits from the front of the queue what fits. Nobody overtakes: a large sequence at the
    /// front gets its pages as the others leave.
    pub(crate) fn admit(&mut self) -> Vec<Admitted> {
        let mut admitted = Vec::new();
        while self.running.len() < self.max_running {
            let Some(mut next) = self.waiting.pop_front() else { break };
            // The next page of each that may outgrow what it has is not given away: who gets it
            // would be the first to be preempted.
            let spare = self.running.iter().filter(|s| s.may_outgrow()).count();
            // The last token is computed in any case, since it gives the logits.
            let (known, pages) = (&next.tokens[..next.tokens.len() - 1], next.reserve());
            if self.pool.open(&mut next.table, known, pages, spare).is_err() {
                self.waiting.push_front(next);
                break;
            }
            next.done = next.table.named_tokens();
            admitted.push(Admitted { id: next.id, found: next.done });
            self.running.push(next);
        }
        admitted
    }

    /// The models that have work, each once.
    pub(crate) fn models(&self) -> Vec<ModelKey> {
        let mut models: Vec<ModelKey> = self.running.iter().map(|s| s.realm.model).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// How many sequences of `model` decode, and how many have prompts to process.
    pub(crate) fn load(&self, model: ModelKey) -> (usize, usize) {
        let all = self.of(model).count();
        let decoding = self.of(model).filter(|s| s.decodes()).count();
        (decoding, all - decoding)
    }

    /// What the next step of `model` does, with at most `budget` tokens of prompts.
    pub(crate) fn plan(&self, model: ModelKey, mut budget: usize) -> Vec<Item> {
        let mut items: Vec<Item> = self.of(model).filter(|s| s.decodes()).map(|s| s.item(1)).collect();
        for s in self.of(model).filter(|s| !s.decodes()) {
            let tokens = budget.min(s.tokens.len() - s.done);
            if tokens == 0 {
                break;
            }
            budget -= tokens;
            items.push(s.item(tokens));
        }
        items
    }

    /// Notes that `item` was processed.
    pub(crate) fn done(&mut self, item: &Item) {
        if let Some(s) = self.running.iter_mut().find(|s| s.id == item.id) {
            s.done += item.tokens;
            self.pool.fill(&mut s.table, &s.tokens[..s.done]);
        }
    }

    /// Adds the token that `id` was given; says whether it can have another.
    pub(crate) fn push(&mut self, id: SeqId, token: TokenId) -> bool {
        let Some(s) = self.running.iter_mut().find(|s| s.id == id) else { return false };
        s.tokens.push(token);
        s.tokens.len() < s.most
    }

    /// Forgets `id` and takes its pages back; says whether it was waiting.
    pub(crate) fn remove(&mut self, id: SeqId) -> bool {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut gone = self.running.remove(at);
            self.pool.release(&mut gone.table);
            return false;
        }
        let before = self.waiting.len();
        self.waiting.retain(|s| s.id != id);
        self.waiting.len() < before
    }

    /// The tokens that `item` processes, and the pages of its sequence.
    pub(crate) fn input(&self, item: &Item) -> (&[TokenId], &[PageId]) {
        let s = self.running.iter().find(|s| s.id == item.id).expect("what is planned runs until its step is done");
        (&s.tokens[item.position..][..item.tokens], s.table.pages())
    }

    /// All sequences, and how many pages each holds.
    pub(crate) fn held(&self) -> impl Iterator<Item = (SeqId, usize)> {
        self.running.iter().chain(&self.waiting).map(|s| (s.id, s.table.pages().len()))
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Pages that nobody holds, and how many of these keep a prefix.
    pub(crate) fn free_pages(&self) -> (usize, usize) {
        (self.pool.available(), self.pool.cached())
    }

    fn of(&self, model: ModelKey) -> impl Iterator<Item = &Sequence> {
        self.running.iter().filter(move |s| s.realm.model == model)
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
        self.done >= self.prompt && self.done + 1 == self.tokens.len()
    }

    fn item(&self, tokens: usize) -> Item {
        let (position, decodes) = (self.done, self.decodes());
        Item { id: self.id, position, tokens, decodes, gives_token: position + tokens == self.tokens.len() }
    }
}

#[cfg(test)]
mod walk;

#[cfg(test)]
mod tests {
    use super::*;

    const REALM: Realm = Realm { model: 1, scope: 1, page_tokens: 4 };

    fn need(max_tokens: Option<usize>) -> Need {
        Need { realm: REALM, max_tokens, context: 200 }
    }

    /// A prompt that no other begins like.
    fn prompt(id: SeqId, tokens: usize) -> Vec<TokenId> {
        (0..tokens as u32).map(|n| TokenId(1000 * id as u32 + n)).collect()
    }

    fn admit(s: &mut Scheduler) -> Vec<SeqId> {
        s.admit().into_iter().map(|admitted| admitted.id).collect()
    }

    /// A step with a budget of 1000; those that end go.
    fn step(s: &mut Scheduler) {
        for item in s.plan(1, 1000) {
            s.done(&item);
            if item.gives_token && !s.push(item.id, TokenId(item.position as u32)) {
                s.remove(item.id);
            }
        }
    }

    #[test]
    fn decode_goes_first_and_prompts_share_a_budget() {
        let mut s = Scheduler::new(100, 8);
        s.submit(1, need(Some(8)), prompt(1, 4));
        assert_eq!(admit(&mut s), [1]);
        let first = s.plan(1, 10);
        assert_eq!(first, [Item { id: 1, position: 0, tokens: 4, decodes: false, gives_token: true }]);
        s.done(&first[0]);
        s.push(1, TokenId(9));
        s.submit(2, need(Some(1)), prompt(2, 7));
        s.submit(3, need(Some(1)), prompt(3, 9));
        s.admit();
        assert_eq!(s.load(1), (1, 2));
        let sizes: Vec<_> = s.plan(1, 10).iter().map(|i| (i.id, i.tokens, i.decodes, i.gives_token)).collect();
        assert_eq!(sizes, [(1, 1, true, true), (2, 7, false, true), (3, 3, false, false)]);
    }

    #[test]
    fn nobody_overtakes_and_what_is_reserved_is_bounded() {
        let mut s = Scheduler::new(50, 8);
        s.submit(1, need(None), prompt(1, 100)); // the context, 200 tokens: all 50 pages
        s.submit(2, need(Some(1)), prompt(2, 150));
        s.submit(3, need(Some(1)), prompt(3, 1));
        assert_eq!(admit(&mut s), [1]);
        assert_eq!(admit(&mut s), [0; 0]);
        s.remove(1);
        assert_eq!(admit(&mut s), [2, 3]);
        let mut s = Scheduler::new(10_000, 8);
        for (max, tokens) in [(None, 10 + RESERVE_TOKENS - 1), (Some(7), 16), (Some(1), 10)] {
            s.submit(1, Need { context: 100_000, ..need(max) }, prompt(1, 10));
            s.admit();
            assert_eq!(s.running[0].table.pages().len(), tokens.div_ceil(4));
            s.remove(1);
        }
    }

    #[test]
    fn alone_a_sequence_grows_to_the_last_page() {
        let mut s = Scheduler::new(300, 8);
        // What others left in the cache is in nobody's way.
        s.submit(1, need(Some(1)), prompt(1, 150));
        s.admit();
        step(&mut s);
        assert_eq!(s.free_pages(), (300, 37));
        s.submit(2, Need { context: 100_000, ..need(None) }, prompt(2, 10));
        s.admit();
        let mut tokens = 0;
        while s.running() > 0 {
            assert!(s.make_room().is_empty());
            step(&mut s);
            tokens += 1;
        }
        // 1200 places: ten for the prompt; the token after the last place is never processed.
        assert_eq!(tokens, 1191);
    }

    #[test]
    fn a_known_beginning_is_not_computed_again_but_the_last_token_is() {
        let mut s = Scheduler::new(100, 8);
        let mut found = |id, prompt: Vec<TokenId>, max| {
            s.submit(id, need(Some(max)), prompt);
            let admitted = s.admit();
            step(&mut s);
            admitted[0].found
        };
        assert_eq!(found(1, prompt(1, 16), 1), 0);
        assert_eq!(found(2, prompt(1, 16), 9), 12); // of four pages the last has the last token
        assert_eq!(found(3, prompt(1, 17), 1), 16); // while the one before still runs
        assert_eq!(found(4, prompt(1, 15), 1), 12);
        assert_eq!(found(5, prompt(2, 16), 1), 0);
    }

    #[test]
    fn the_last_admitted_waits_in_front_and_comes_back_with_all_its_tokens() {
        let mut s = Scheduler::new(160, 8); // 640 places
        for id in 1..=2 {
            s.submit(id, Need { context: 1000, ..need(Some(500)) }, prompt(id, 10));
        }
        assert_eq!(admit(&mut s), [1, 2]);
        s.submit(3, need(Some(500)), prompt(3, 100)); // never overtakes
        while s.make_room().is_empty() {
            assert!(s.admit().is_empty());
            step(&mut s);
        }
        let tokens = s.waiting[0].tokens.clone();
        assert_eq!((tokens.len(), &tokens[..10]), (321, &prompt(2, 10)[..]));
        assert_eq!((s.running[0].id, s.waiting[0].id, s.waiting[1].id), (1, 2, 3));
        // Not before there are pages for its tokens and the reserve.
        let back = loop {
            if let Some(back) = s.admit().first().copied() {
                break back;
            }
            assert!(s.make_room().is_empty());
            step(&mut s);
        };
        assert_eq!((back.id, s.running.len()), (2, 1), "it came back when the first had ended");
        assert!(back.found > 0, "some of its pages were still there");
        assert_eq!(s.running[0].tokens, tokens);
        let item = s.plan(1, 1000)[0];
        assert_eq!((item.position, item.tokens, item.gives_token), (back.found, 321 - back.found, true));
    }
}
