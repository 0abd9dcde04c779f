//! The queue, the batch and steps of one account.

use super::*;

const REALM: Realm = Realm { model: 1, scope: 1, page_tokens: 4 };

fn need(max_tokens: Option<usize>) -> Need {
    Need { realm: REALM, share: share(1, 100), max_tokens, context: 200, whole: false, layers: 1 }
}

fn share(account: u64, weight: u32) -> Share {
    Share { account, weight, priority: Priority::Normal }
}

fn all(prompt_tokens: usize) -> Allowance {
    Allowance { decoding: usize::MAX, prompt_tokens, chunk: None }
}

/// What a step with all that decodes and so many tokens of prompts does.
fn plan(s: &mut Scheduler, prompt_tokens: usize) -> Vec<Item> {
    s.loads();
    s.plan(1, all(prompt_tokens))
}

/// A prompt that no other begins like.
fn prompt(id: SeqId, tokens: usize) -> Vec<TokenId> {
    (0..tokens as u32).map(|n| TokenId(1000 * id as u32 + n)).collect()
}

fn admit(s: &mut Scheduler) -> Vec<SeqId> {
    let admitted = |change: Change| match change {
        Change::Admitted(admitted) => admitted.id,
        Change::Preempted(id) => panic!("{id} is preempted"),
    };
    s.admit().into_iter().map(admitted).collect()
}

/// A step with a budget of 1000; those that end go.
fn step(s: &mut Scheduler) {
    for item in plan(s, 1000) {
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
    let first = plan(&mut s, 10);
    assert_eq!(first, [Item { id: 1, position: 0, tokens: 4, decodes: false, gives_token: true, stretch: None }]);
    s.done(&first[0]);
    s.push(1, TokenId(9));
    s.submit(2, need(Some(1)), prompt(2, 7));
    s.submit(3, need(Some(1)), prompt(3, 9));
    s.admit();
    assert_eq!(s.loads()[&1], Load { decoding: 1, due: 1, prompting: 2 });
    let sizes: Vec<_> = plan(&mut s, 10).iter().map(|i| (i.id, i.tokens, i.decodes, i.gives_token)).collect();
    assert_eq!(sizes, [(1, 1, true, true), (2, 7, false, true), (3, 3, false, false)]);
}

#[test]
fn what_is_whole_is_never_cut_nor_kept() {
    let mut s = Scheduler::new(100, 8);
    let whole = Need { whole: true, ..need(Some(0)) };
    for (id, tokens) in [(1, 30), (2, 4), (3, 20)] {
        s.submit(id, whole, prompt(1, tokens)); // they begin alike
    }
    assert_eq!(admit(&mut s), [1, 2, 3]);
    let sizes = |items: &[Item]| items.iter().map(|i| (i.id, i.tokens, i.gives_token)).collect::<Vec<_>>();
    // One that is too long for any step goes, and takes all of it.
    let first = plan(&mut s, 10);
    assert_eq!(sizes(&first), [(1, 30, true)]);
    s.done(&first[0]);
    s.remove(1);
    assert_eq!(sizes(&plan(&mut s, 10)), [(2, 4, true)], "the next does not fit beside it");
    assert_eq!(sizes(&plan(&mut s, 24)), [(2, 4, true), (3, 20, true)]);
    assert_eq!(plan(&mut s, 0), []);
    assert_eq!(s.free_pages().1, 0, "nothing is cached");
    s.submit(4, need(Some(1)), prompt(1, 30));
    assert_eq!(s.admit(), [Change::Admitted(Admitted { id: 4, found: 0 })]);
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
        let Change::Admitted(admitted) = admitted[0] else { panic!("{admitted:?}") };
        admitted.found
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
    let tokens = s.waiting[&2].tokens.clone();
    assert_eq!((tokens.len(), &tokens[..10]), (321, &prompt(2, 10)[..]));
    assert_eq!((s.running[0].id, s.waiting.keys().collect::<Vec<_>>()), (1, vec![&2, &3]));
    // Not before there are pages for its tokens and the reserve.
    let back = loop {
        if let Some(Change::Admitted(back)) = s.admit().first().copied() {
            break back;
        }
        assert!(s.make_room().is_empty());
        step(&mut s);
    };
    assert_eq!((back.id, s.running.len()), (2, 1), "it came back when the first had ended");
    assert!(back.found > 0, "some of its pages were still there");
    assert_eq!(s.running[0].tokens, tokens);
    let item = plan(&mut s, 1000)[0];
    assert_eq!((item.position, item.tokens, item.gives_token), (back.found, 321 - back.found, true));
}
