//! Who runs next: decisions only, no clock, no device.
//!
//! Sequences wait in order of arrival. One is admitted when there is a place in the batch and the
//! pages it may need are free; it holds them from then on, so an admitted sequence always ends.
//! A step gives every decoding sequence its next token first, then spends a budget of tokens on
//! prompts, in order of admission, so that a long prompt delays nobody by more than that budget.

use crate::kv::{PageId, PagePool, PageTable};
use std::collections::VecDeque;

/// The number of a sequence.
pub(crate) type SeqId = u64;
/// The number of a resident model.
pub(crate) type ModelKey = u64;

/// Without `max_tokens` a sequence gets pages for its prompt and this many tokens; beyond that it
/// goes on while pages are free, so that one chat never takes all KV in advance.
pub(crate) const OPEN_END_TOKENS: usize = 1024;

/// What is known of a sequence when it arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) model: ModelKey,
    /// Tokens of the prompt, at least one.
    pub(crate) prompt: usize,
    pub(crate) max_tokens: Option<usize>,
    /// The model's longest sequence, longer than the prompt.
    pub(crate) context: usize,
    /// Tokens in a page of this model.
    pub(crate) page_tokens: usize,
}

impl Need {
    /// The most tokens the sequence can come to.
    fn most(&self) -> usize {
        self.max_tokens.map_or(self.context, |max| self.context.min(self.prompt.saturating_add(max)))
    }

    /// Pages it holds from its admission on.
    fn pages(&self, total: usize) -> usize {
        let open_end = self.prompt.saturating_add(self.max_tokens.unwrap_or(OPEN_END_TOKENS));
        self.most().min(open_end).div_ceil(self.page_tokens).min(total)
    }
}

/// One sequence: waiting while `table` is empty -> prefilling while `done < prompt` -> decoding.
#[derive(Debug)]
struct Sequence {
    id: SeqId,
    need: Need,
    table: PageTable,
    /// Tokens whose keys and values are in the pages.
    done: usize,
    generated: usize,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: SeqId,
    /// Tokens that are in the pages already.
    pub(crate) position: usize,
    /// Tokens to process now.
    pub(crate) tokens: usize,
    /// Whether the last of them gives the sequence's next token.
    pub(crate) gives_token: bool,
}

/// The state of the queue and the batch.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    pool: PagePool,
    max_running: usize,
    prefill_tokens: usize,
}

impl Scheduler {
    pub(crate) fn new(pages: usize, max_running: usize, prefill_tokens: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            pool: PagePool::new(pages),
            max_running: max_running.max(1),
            prefill_tokens: prefill_tokens.max(1),
        }
    }

    /// Puts a sequence at the end of the queue.
    pub(crate) fn submit(&mut self, id: SeqId, need: Need) {
        let table = PageTable::default();
        self.waiting.push_back(Sequence { id, need, table, done: 0, generated: 0 });
    }

    /// Admits from the front of the queue what fits. Nobody overtakes: a large sequence at the
    /// front gets its pages as the others leave.
    pub(crate) fn admit(&mut self) -> Vec<SeqId> {
        let mut admitted = Vec::new();
        while self.running.len() < self.max_running {
            let Some(mut next) = self.waiting.pop_front() else { break };
            let pages = next.need.pages(self.pool.total());
            if self.pool.grow(&mut next.table, pages).is_err() {
                self.waiting.push_front(next);
                break;
            }
            admitted.push(next.id);
            self.running.push(next);
        }
        admitted
    }

    /// The models that have work, each once.
    pub(crate) fn models(&self) -> Vec<ModelKey> {
        let mut models: Vec<ModelKey> = self.running.iter().map(|s| s.need.model).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// What the next step of `model` does.
    pub(crate) fn plan(&self, model: ModelKey) -> Vec<Item> {
        let ours = || self.running.iter().filter(move |s| s.need.model == model);
        let decoding = ours().filter(|s| s.done >= s.need.prompt).map(|s| s.item(1));
        let mut items: Vec<Item> = decoding.collect();
        let mut budget = self.prefill_tokens;
        for s in ours().filter(|s| s.done < s.need.prompt) {
            let tokens = budget.min(s.need.prompt - s.done);
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
            s.generated += usize::from(item.gives_token);
        }
    }

    /// Whether `id` can have another token; takes a page for it if one is needed and free.
    pub(crate) fn extend(&mut self, id: SeqId) -> bool {
        let Some(s) = self.running.iter_mut().find(|s| s.id == id) else { return false };
        let tokens = s.need.prompt + s.generated;
        let pages = tokens.div_ceil(s.need.page_tokens);
        tokens < s.need.most() && self.pool.grow(&mut s.table, pages).is_ok()
    }

    /// Forgets `id`, wherever it is, and takes its pages back.
    pub(crate) fn remove(&mut self, id: SeqId) {
        self.waiting.retain(|s| s.id != id);
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut gone = self.running.remove(at);
            self.pool.release(&mut gone.table);
        }
    }

    /// The pages of a running sequence.
    pub(crate) fn pages(&self, id: SeqId) -> &[PageId] {
        self.running.iter().find(|s| s.id == id).map_or(&[], |s| s.table.pages())
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.pool.free()
    }
}

impl Sequence {
    fn item(&self, tokens: usize) -> Item {
        let gives_token = self.done + tokens >= self.need.prompt;
        Item { id: self.id, position: self.done, tokens, gives_token }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(prompt: usize, max_tokens: Option<usize>) -> Need {
        Need { model: 1, prompt, max_tokens, context: 200, page_tokens: 4 }
    }

    #[test]
    fn decode_goes_first_and_prompts_share_a_budget() {
        let mut s = Scheduler::new(100, 8, 10);
        s.submit(1, need(4, Some(8)));
        assert_eq!(s.admit(), [1]);
        let first = s.plan(1);
        assert_eq!(first, [Item { id: 1, position: 0, tokens: 4, gives_token: true }]);
        s.done(&first[0]);
        s.submit(2, need(7, Some(1)));
        s.submit(3, need(9, Some(1)));
        s.admit();
        let plan = s.plan(1);
        let sizes: Vec<_> = plan.iter().map(|i| (i.id, i.tokens, i.gives_token)).collect();
        assert_eq!(sizes, [(1, 1, true), (2, 7, true), (3, 3, false)]);
    }

    #[test]
    fn nobody_overtakes_and_an_open_end_does_not_take_everything() {
        let mut s = Scheduler::new(50, 8, 10);
        s.submit(1, need(100, None)); // the context, 200 tokens: all 50 pages
        s.submit(2, need(150, Some(1)));
        s.submit(3, need(1, Some(1)));
        assert_eq!(s.admit(), [1]);
        assert_eq!(s.admit(), [0u64; 0]);
        s.remove(1);
        assert_eq!(s.admit(), [2, 3]);
        let open = Need { context: 100_000, page_tokens: 4, ..need(10, None) };
        assert_eq!(open.pages(100_000), (10 + OPEN_END_TOKENS).div_ceil(4));
    }

    #[test]
    fn an_open_end_grows_while_pages_are_free() {
        let mut s = Scheduler::new(300, 8, 1000);
        s.submit(1, Need { context: 100_000, ..need(10, None) });
        s.admit();
        let mut tokens = 0;
        loop {
            let item = s.plan(1)[0];
            s.done(&item);
            tokens += 1;
            if !s.extend(1) {
                break;
            }
            assert!(s.pages(1).len() * 4 > item.position + item.tokens);
        }
        // 1200 places: ten for the prompt; the token after the last place is never processed.
        assert_eq!(tokens, 1191);
    }

    #[test]
    fn random_walk_keeps_every_invariant() {
        let mut s = Scheduler::new(40, 4, 16);
        let mut state = 7u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let (mut next, mut alive) = (0, Vec::new());
        for _ in 0..100_000 {
            match random(4) {
                0 if alive.len() < 12 => {
                    let max = (random(2) == 0).then(|| 1 + random(60) as usize);
                    let model = random(2);
                    s.submit(next, Need { model, ..need(1 + random(100) as usize, max) });
                    alive.push(next);
                    next += 1;
                }
                1 if !alive.is_empty() => {
                    let id = alive.swap_remove(random(alive.len() as u64) as usize);
                    s.remove(id);
                }
                _ => {
                    s.admit();
                    for model in s.models() {
                        for item in s.plan(model) {
                            let room = s.pages(item.id).len() * 4;
                            assert!(item.position + item.tokens <= room, "{item:?} has room");
                            s.done(&item);
                            if item.gives_token && !s.extend(item.id) {
                                s.remove(item.id);
                                alive.retain(|id| *id != item.id);
                            }
                        }
                    }
                }
            }
            let held: usize = s.running.iter().map(|r| r.table.pages().len()).sum();
            assert_eq!(held + s.free_pages(), 40);
            assert!(s.running() <= 4 && s.running() + s.waiting.len() == alive.len());
            assert!(s.running() > 0 || s.waiting.is_empty() || !s.admit().is_empty());
        }
        alive.into_iter().for_each(|id| s.remove(id));
        assert_eq!(s.free_pages(), 40);
    }
}
