//! That every account gets its part, whatever others send.

use super::*;

const REALM: Realm = Realm { model: 1, scope: 1, page_tokens: 4 };

/// A scheduler, and what each account was given.
struct Host {
    s: Scheduler,
    next: SeqId,
    answers: BTreeMap<u64, usize>,
    prompts: BTreeMap<u64, usize>,
    preempted: usize,
    steps: usize,
    /// For each account the longest that one of its sequences which decode had no token.
    gaps: BTreeMap<u64, usize>,
    last: BTreeMap<SeqId, usize>,
}

impl Host {
    fn new(pages: usize, places: usize) -> Self {
        let (answers, prompts, gaps, last) = Default::default();
        Self { s: Scheduler::new(pages, places), next: 0, answers, prompts, preempted: 0, steps: 0, gaps, last }
    }

    /// Queues a sequence with a prompt like no other.
    fn ask(&mut self, share: Share, prompt: usize, answer: usize) -> SeqId {
        self.next += 1;
        let tokens = (0..prompt as u32).map(|n| TokenId(self.next as u32 * 10_000 + n)).collect();
        let realm = Realm { scope: share.account, ..REALM };
        self.s.submit(
            self.next,
            Need { realm, share, max_tokens: Some(answer), context: 100_000, whole: false, layers: 1 },
            tokens,
        );
        self.next
    }

    /// A step that has what is due and `more` sequences, and so many tokens of prompts. Gives who ended.
    fn step(&mut self, more: usize, prompt_tokens: usize) -> Vec<SeqId> {
        self.preempted += self.s.make_room().len();
        self.preempted += self.s.admit().iter().filter(|change| matches!(change, Change::Preempted(_))).count();
        let mut ended = Vec::new();
        self.steps += 1;
        for (model, load) in self.s.loads() {
            for item in self.s.plan(model, Allowance { decoding: load.due + more, prompt_tokens, chunk: None }) {
                let account = self.s.running.iter().find(|s| s.id == item.id).unwrap().share.account;
                let given = if item.decodes { &mut self.answers } else { &mut self.prompts };
                *given.entry(account).or_default() += item.tokens;
                self.s.done(&item);
                if item.gives_token {
                    let before = self.last.insert(item.id, self.steps).unwrap_or(self.steps);
                    let gap = self.gaps.entry(account).or_default();
                    *gap = (*gap).max(self.steps - before);
                }
                if item.gives_token && !self.s.push(item.id, TokenId(item.position as u32)) {
                    self.s.remove(item.id);
                    ended.push(item.id);
                }
            }
        }
        ended
    }

    fn running(&self, account: u64) -> usize {
        self.s.running.iter().filter(|s| s.share.account == account).count()
    }
}

fn of(account: u64, weight: u32) -> Share {
    Share { account, weight, priority: Priority::Normal }
}

fn class(account: u64, priority: Priority) -> Share {
    Share { account, weight: 100, priority }
}

#[test]
fn who_has_all_places_gives_others_theirs_at_once() {
    let mut host = Host::new(10_000, 8);
    for _ in 0..50 {
        host.ask(of(1, 100), 10, 5000);
    }
    host.step(99, 1000);
    assert_eq!(host.running(1), 8);
    for account in 2..=4 {
        host.ask(of(account, 100), 10, 5000);
    }
    host.step(99, 1000);
    assert_eq!((host.running(1), host.running(2), host.running(3), host.running(4)), (5, 1, 1, 1));
    assert_eq!(host.preempted, 3);
    host.ask(of(2, 100), 10, 5000);
    host.ask(of(2, 100), 10, 5000);
    host.step(99, 1000);
    assert_eq!((host.running(1), host.running(2)), (4, 2), "two of eight places are due to a quarter");
    for _ in 0..500 {
        host.step(99, 1000);
    }
    assert_eq!((host.running(1), host.running(2), host.preempted), (4, 2, 4), "and so it stays");
}

#[test]
fn pages_are_shared_as_places_are() {
    let mut host = Host::new(400, 32);
    for _ in 0..10 {
        host.ask(of(1, 100), 300, 2000); // 139 pages on admission
    }
    host.step(99, 10_000);
    assert_eq!(host.running(1), 2, "there are pages for two");
    host.ask(of(2, 100), 100, 100); // 50 pages
    host.ask(of(2, 100), 100, 100);
    host.step(99, 10_000);
    assert_eq!((host.running(1), host.running(2)), (2, 2), "they fit beside");
    host.ask(of(2, 100), 100, 100);
    host.step(99, 10_000);
    assert_eq!((host.running(1), host.running(2)), (1, 3), "150 of 200 pages are due to it");
    let tokens = host.s.running[0].tokens.len();
    for _ in 0..50 {
        host.step(99, 10_000);
    }
    assert_eq!(host.preempted, 1);
    assert_eq!(host.s.running[0].tokens.len(), tokens + 50, "the oldest goes on");
}

#[test]
fn a_step_has_as_much_of_each_as_its_weight_says() {
    for (weights, more) in [([100, 100, 100], 0), ([100, 100, 100], 3), ([100, 200, 400], 0), ([100, 300, 50], 4)] {
        let mut host = Host::new(100_000, 40);
        for (account, (weight, sequences)) in weights.into_iter().zip([2, 8, 24]).enumerate() {
            for _ in 0..sequences {
                host.ask(of(account as u64, weight), 10, 50_000);
            }
        }
        host.step(99, 1000);
        host.answers.clear();
        for _ in 0..2000 {
            host.step(more, 0);
        }
        let given = |account: u64| host.answers[&account] as f64 / f64::from(weights[account as usize]);
        let least = given(0).min(given(1)).min(given(2));
        // Who wants no more than its part has all of it; what the others get beyond that is shared by weight.
        assert!(host.answers[&0] == 4000 || given(0) >= least * 0.99, "{weights:?} {more}: {:?}", host.answers);
        if more > 0 && host.answers[&1] < 8 * 2000 {
            let (second, third) = (given(1), given(2));
            assert!((second / third - 1.0).abs() < 0.35, "{weights:?} {more}: {:?}", host.answers);
        }
        // Within an account all get on alike.
        assert!(host.gaps.values().all(|gap| *gap <= 50), "{:?}", host.gaps);
    }
}

#[test]
fn who_was_given_least_comes_first_and_is_owed_nothing_for_a_pause() {
    let mut host = Host::new(10_000, 1);
    // One place: two accounts take turns, though one asks for four times as much each time.
    for _ in 0..400 {
        host.ask(of(1, 100), 40, 40);
        host.ask(of(2, 100), 10, 10);
    }
    for _ in 0..20_000 {
        if host.s.waiting.values().filter(|s| s.share.account == 2).count() < 20 {
            host.ask(of(2, 100), 10, 10);
        }
        host.step(0, 1000);
        if host.s.waiting.values().filter(|s| s.share.account == 1).count() < 20 {
            break;
        }
    }
    let (first, second) = (host.answers[&1] as f64, host.answers[&2] as f64);
    assert!((first / second - 1.0).abs() < 0.1, "{first} and {second} tokens");
    // A third that was away all the time gets its turn, and no more.
    let before = host.answers.clone();
    for _ in 0..50 {
        host.ask(of(3, 100), 10, 10);
    }
    let mut steps = 0;
    while host.answers.get(&3).copied().unwrap_or(0) < 300 && steps < 5000 {
        host.ask(of(1, 100), 40, 40);
        host.ask(of(2, 100), 10, 10);
        host.step(0, 1000);
        steps += 1;
    }
    let since = |account: u64| host.answers[&account] - before[&account];
    assert!(since(1) > 150 && since(2) > 150, "{} and {}", since(1), since(2));
}

#[test]
fn who_trickles_saves_up_no_more_than_a_burst() {
    let mut host = Host::new(100_000, 8);
    // One stream of one account beside all that another can send, for long.
    host.ask(of(1, 100), 4, 90_000);
    for step in 0..20_000 {
        if step % 100 == 0 {
            host.ask(of(2, 100), 1000, 20);
        }
        host.step(99, 256);
    }
    assert!(host.prompts[&2] > 150_000, "{:?}", host.prompts);
    // Now it sends as much as it can, too: after a burst both get on alike.
    host.prompts.clear();
    for _ in 0..400 {
        host.ask(of(1, 100), 1000, 1);
        host.ask(of(2, 100), 1000, 1);
        host.step(99, 256);
    }
    let (first, second) = (host.prompts[&1], host.prompts.get(&2).copied().unwrap_or(0));
    assert!(second * 3 > first, "{first} tokens of one and {second} of the other");
}

#[test]
fn a_large_one_is_passed_by_those_who_are_due_theirs_but_not_for_ever() {
    let mut host = Host::new(200, 8);
    // It needs nearly all pages, far beyond its part.
    host.ask(of(2, 100), 200, 400);
    host.step(99, 1000);
    let large = host.ask(of(1, 100), 700, 50);
    let mut passed = 0;
    for step in 0.. {
        while host.s.waiting.values().filter(|s| s.share.account != 1).count() < 4 {
            host.ask(of(2 + host.next % 2, 100), 40, 20);
        }
        passed += host.step(99, 1000).iter().filter(|id| **id != large).count();
        if host.s.running.iter().any(|s| s.id == large) {
            break;
        }
        assert!(step < 5000, "it waits for ever; {passed} passed");
    }
    assert!(passed >= 2, "{passed} passed");
}

#[test]
fn a_higher_class_comes_first_and_lower_ones_get_the_rest() {
    let mut host = Host::new(10_000, 4);
    for _ in 0..6 {
        host.ask(class(1, Priority::Low), 10, 3000);
    }
    host.step(99, 1000);
    assert_eq!(host.running(1), 4);
    for _ in 0..2 {
        host.ask(class(1, Priority::Normal), 10, 3000); // of the same account
        host.ask(class(2, Priority::High), 10, 3000);
    }
    host.step(99, 1000);
    let classes = |host: &Host| {
        let mut all: Vec<Priority> = host.s.running.iter().map(|s| s.share.priority).collect();
        all.sort();
        all
    };
    use Priority::{High, Low, Normal};
    assert_eq!(classes(&host), [Normal, Normal, High, High]);
    assert_eq!(host.preempted, 4);
    host.ask(class(3, High), 10, 20);
    host.step(99, 1000);
    assert_eq!(classes(&host), [Normal, High, High, High]);
    // Only the highest class is due a token in each step; others have what steps take beyond that.
    host.answers.clear();
    for _ in 0..10 {
        host.step(0, 0);
    }
    assert_eq!(host.answers, BTreeMap::from([(2, 10), (3, 10)]), "as many of either, whatever they have");
    while host.running(3) > 0 {
        host.step(1, 0);
    }
    host.step(0, 1000);
    assert_eq!(classes(&host), [Normal, Normal, High, High], "and back, before the low ones");
    assert_eq!(host.s.waiting.values().filter(|s| s.share.priority == Low).count(), 6);
}

#[test]
fn prompts_take_turns() {
    let mut host = Host::new(100_000, 16);
    for _ in 0..4 {
        host.ask(of(1, 100), 4000, 10);
    }
    host.step(99, 256);
    let light = host.ask(of(2, 100), 300, 10);
    for _ in 0..6 {
        host.step(99, 128);
    }
    let light = host.s.running.iter().find(|s| s.id == light).unwrap();
    assert!(light.done >= 300, "{} tokens: it waits behind 16,000 of another", light.done);
    assert!(host.prompts[&1] >= 256 + 6 * 128 - 310, "and the other has the rest");
}
