//! A random walk over queue, batch and pages. Its memory holds tokens in place of their keys and
//! values, so that it sees whether each sequence finds exactly its own.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const PAGES: usize = 60;
const MAX_RUNNING: usize = 5;
const CONTEXT: usize = 700;
/// Of each model: prompts of the second go through some layers at a time.
const LAYERS: [usize; 2] = [1, 5];

/// What the scheduler must not lose of a sequence.
struct Known {
    realm: Realm,
    tokens: Vec<TokenId>,
    most: usize,
}

/// What happened on the way.
#[derive(Debug, Default)]
struct Seen {
    finished: u32,
    cancelled: u32,
    forked: u32,
    preempted: u32,
    found_again: u32,
    found_of_others: u32,
    shared_while_running: u32,
    stretched: u32,
    begun_in_vain: u32,
}

struct Walk {
    s: Scheduler,
    /// For each layer and page whose it is, and its tokens.
    memory: Vec<Vec<(Option<Realm>, Vec<TokenId>)>>,
    /// Who has tokens in some layers only.
    begun: BTreeSet<SeqId>,
    alive: BTreeMap<SeqId, Known>,
    preempted: Vec<SeqId>,
    texts: Vec<Vec<TokenId>>,
    next: SeqId,
    state: u64,
    seen: Seen,
}

impl Walk {
    fn new() -> Self {
        let mut walk = Self {
            s: Scheduler::new(PAGES, MAX_RUNNING),
            memory: vec![vec![(None, Vec::new()); PAGES]; LAYERS[1]],
            begun: BTreeSet::new(),
            alive: BTreeMap::new(),
            preempted: Vec::new(),
            texts: Vec::new(),
            next: 0,
            state: 7,
            seen: Seen::default(),
        };
        walk.texts = (0..3).map(|_| walk.text(300)).collect();
        walk
    }

    fn random(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) as usize % n
    }

    fn text(&mut self, tokens: usize) -> Vec<TokenId> {
        (0..tokens).map(|_| TokenId(self.random(2) as u32)).collect()
    }

    /// A beginning of `text`, and a few tokens more or none.
    fn branch(&mut self, text: &[TokenId]) -> Vec<TokenId> {
        let (kept, more) = (1 + self.random(text.len()), self.random(20));
        [&text[..kept], &self.text(more)].concat()
    }

    fn join(&mut self) {
        let model = self.random(2) as u64;
        let realm = Realm { model, scope: self.random(2) as u64, page_tokens: [16, 24][model as usize] };
        let text = self.random(3);
        let prompt = self.branch(&self.texts[text].clone());
        self.submit(realm, prompt);
    }

    fn fork(&mut self) {
        let Some(parent) = self.s.running.first() else { return };
        let (realm, text) = (parent.realm, parent.tokens.clone());
        let mut prompt = self.branch(&text);
        prompt.truncate(CONTEXT - 1);
        self.seen.forked += 1;
        self.submit(realm, prompt);
    }

    fn submit(&mut self, realm: Realm, tokens: Vec<TokenId>) {
        let max_tokens = (self.random(4) > 0).then(|| 1 + self.random(600));
        let most = max_tokens.map_or(CONTEXT, |max| CONTEXT.min(tokens.len() + max));
        let priority = [Priority::Normal, Priority::Low, Priority::High][self.random(8) / 3 % 3];
        let share = Share { account: realm.scope, weight: [100, 250][realm.scope as usize], priority };
        let need =
            Need { realm, share, max_tokens, context: CONTEXT, whole: false, layers: LAYERS[realm.model as usize] };
        self.s.submit(self.next, need, tokens.clone());
        self.alive.insert(self.next, Known { realm, tokens, most });
        self.next += 1;
    }

    fn cancel(&mut self) {
        let Some(n) = self.alive.len().checked_sub(1).map(|last| self.random(last + 1)) else { return };
        let id = *self.alive.keys().nth(n).expect("n is below the length");
        let waits = self.s.waiting.contains_key(&id);
        assert_eq!(self.s.remove(id), waits);
        self.alive.remove(&id);
        self.seen.cancelled += 1;
        self.seen.begun_in_vain += u32::from(self.begun.remove(&id));
    }

    /// What the engine does between two looks at its inbox.
    fn round(&mut self) {
        let grown = self.s.make_room().into_iter().map(Change::Preempted);
        for change in grown.chain(self.s.admit()).collect::<Vec<_>>() {
            match change {
                Change::Preempted(id) => {
                    self.seen.preempted += 1;
                    self.seen.begun_in_vain += u32::from(self.begun.remove(&id));
                    self.preempted.push(id);
                }
                Change::Admitted(Admitted { id, found }) => {
                    let again = self.preempted.contains(&id);
                    self.preempted.retain(|preempted| *preempted != id);
                    let seen = if again { &mut self.seen.found_again } else { &mut self.seen.found_of_others };
                    *seen += u32::from(found > 0);
                }
            }
        }
        self.nobody_is_kept_from_their_part();
        let mut moved = 0;
        for (model, load) in self.s.loads() {
            let (decoding, prompt_tokens) = (load.due + self.random(3), 1 + self.random(64) / [1, 32][self.random(2)]);
            let worth = prompt_tokens as f64 - self.random(2) as f64 / 2.0;
            let chunk = (self.random(8) > 0).then_some(Chunk { tokens: 40, worth });
            let allowance = Allowance { decoding, prompt_tokens, chunk };
            let plan = self.s.plan(model, allowance);
            let (decodes, prompts): (Vec<&Item>, Vec<&Item>) = plan.iter().partition(|item| item.decodes);
            let stretch = plan.iter().filter_map(|item| item.stretch).count();
            let last = plan.last().is_some_and(|item| item.stretch.is_some());
            assert!(stretch == usize::from(last), "one at most goes through some layers, the last: {plan:?}");
            let prompts: usize = prompts.iter().filter(|item| item.stretch.is_none()).map(|item| item.tokens).sum();
            assert!(prompts <= allowance.prompt_tokens && plan.len() <= MAX_RUNNING);
            assert_eq!(decodes.len(), allowance.decoding.min(load.decoding));
            moved += plan.len();
            plan.iter().for_each(|item| self.process(item));
            for item in plan {
                self.s.done(&item);
                self.seen.stretched += u32::from(item.stretch.is_some());
                match item.completes() {
                    true => self.begun.remove(&item.id),
                    false => self.begun.insert(item.id),
                };
                if item.gives_token {
                    self.give(item.id);
                }
            }
        }
        assert!(moved > 0 || self.alive.is_empty(), "somebody always gets on");
    }

    /// Who waits has as many places as it is due, or nobody of its class or below has more than that.
    fn nobody_is_kept_from_their_part(&self) {
        let standings = self.s.standings();
        let full = self.s.running.len() == MAX_RUNNING && self.s.pool.available() > PAGES / 2;
        for s in self.s.waiting.values().filter(|_| full) {
            let lower = self.s.running.iter().any(|other| other.share.priority < s.share.priority);
            assert!(!lower, "{} waits for a place that a lower class has", s.id);
            let due = standings[&s.share.account].is_due(s.reserve());
            let other = |r: &&Sequence| r.share.priority == s.share.priority && r.share.account != s.share.account;
            let over = self.s.running.iter().filter(other).any(|r| standings[&r.share.account].excess().0 > 0.0);
            let first = self.s.waiting.values().all(|o| o.share.priority <= s.share.priority);
            assert!(!(due && over && first), "{} waits for a place that is due to it", s.id);
        }
    }

    /// Writes the item's tokens to its pages in each of its layers, then reads all of the sequence so far.
    fn process(&mut self, item: &Item) {
        let known = &self.alive[&item.id];
        let of = LAYERS[known.realm.model as usize];
        let end = item.position + item.tokens;
        assert_eq!(item.gives_token, end == known.tokens.len() && item.completes());
        assert!(item.stretch.is_none_or(|stretch| stretch.of == of && of > 1));
        let begun = item.stretch.is_some_and(|stretch| stretch.from > 0);
        assert_eq!(begun, self.begun.contains(&item.id), "no layer is left out or done again");
        item.stretch.map_or(0..of, |stretch| stretch.from..stretch.to).for_each(|layer| self.process_in(layer, item));
    }

    fn process_in(&mut self, layer: usize, item: &Item) {
        let (tokens, pages) = self.s.input(item);
        let known = &self.alive[&item.id];
        let (size, end) = (known.realm.page_tokens, item.position + item.tokens);
        assert_eq!(tokens, &known.tokens[item.position..end], "no token is lost or changed");
        for (n, token) in tokens.iter().enumerate() {
            let (n, page) = (item.position + n, pages[(item.position + n) / size]);
            let holders = self.s.running.iter().filter(|s| s.table.pages().contains(&page)).count();
            assert_eq!(holders, 1, "a shared page is not written");
            let (owner, held) = &mut self.memory[layer][page as usize];
            if n % size == 0 {
                *owner = Some(known.realm);
                held.clear();
            }
            assert_eq!((*owner, held.len()), (Some(known.realm), n % size));
            held.push(*token);
        }
        for (tokens, page) in known.tokens[..end].chunks(size).zip(pages) {
            let (owner, held) = &self.memory[layer][*page as usize];
            assert_eq!((*owner, &held[..]), (Some(known.realm), tokens), "a sequence reads its own past");
        }
        let others = self.s.running.iter().filter(|s| s.id != item.id && s.table.pages()[0] == pages[0]).count();
        self.seen.shared_while_running += u32::from(others > 0);
    }

    fn give(&mut self, id: SeqId) {
        let token = TokenId(self.random(2) as u32);
        let known = self.alive.get_mut(&id).expect("it runs");
        known.tokens.push(token);
        let ends = known.tokens.len() == known.most;
        assert_eq!(self.s.push(id, token), !ends);
        if ends {
            self.s.remove(id);
            self.alive.remove(&id);
            self.seen.finished += 1;
        }
    }

    fn check(&self) {
        let s = &self.s;
        let mut ids: Vec<SeqId> = s.running.iter().chain(s.waiting.values()).map(|s| s.id).collect();
        ids.sort_unstable();
        assert!(ids.iter().eq(self.alive.keys()), "all are there: {ids:?}");
        assert!(s.running.len() <= MAX_RUNNING);
        assert!(s.waiting.values().all(|s| s.table.pages().is_empty() && s.done == 0));
        s.pool.check(s.running.iter().map(|s| &s.table));
    }

    /// Goes on until all have finished.
    fn drain(&mut self) {
        // Each round gives somebody a token, or a prompt some; what is preempted is processed again.
        let mut rounds = 20 * self.alive.values().map(|known| known.most).sum::<usize>();
        while !self.alive.is_empty() {
            rounds = rounds.checked_sub(1).expect("all end");
            self.round();
            self.check();
        }
        assert_eq!(self.s.free_pages().0, PAGES, "no page is lost");
    }
}

#[test]
fn a_random_walk_of_100_000_steps_keeps_every_invariant() {
    let mut walk = Walk::new();
    for step in 0..100_000 {
        match walk.random(60) {
            0..3 if walk.alive.len() < 12 => walk.join(),
            3 if walk.alive.len() < 12 => walk.fork(),
            4 if walk.random(2) == 0 => walk.cancel(),
            _ => walk.round(),
        }
        walk.check();
        if step % 10_000 == 9_999 {
            walk.drain();
        }
    }
    let Seen { finished, cancelled, forked, preempted, found_again, found_of_others, .. } = walk.seen;
    let Seen { shared_while_running, stretched, begun_in_vain, .. } = walk.seen;
    for (what, times) in [
        ("finished", finished),
        ("cancelled", cancelled),
        ("forked", forked),
        ("preempted", preempted),
        ("found their own pages again", found_again),
        ("found pages of others", found_of_others),
        ("shared while running", shared_while_running),
        ("went through some layers", stretched),
    ] {
        assert!(times > 50, "{times} {what}");
    }
    assert!(begun_in_vain > 20, "{begun_in_vain} went when they were through some layers");
}
