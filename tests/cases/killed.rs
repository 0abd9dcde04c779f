//! A host that is killed at any moment starts clean, and bills once.

use hob_tests::{Deaths, kill_over_and_over};

#[test]
fn loads_evictions_and_the_meter_survive_a_hundred_kills() {
    let servers = [1, 2].map(|seed| std::thread::spawn(move || kill_over_and_over(50, seed)));
    let deaths = servers.into_iter().fold(Deaths::default(), |sum, server| sum.and(server.join().expect("it starts")));
    assert_eq!(deaths.rounds, 100);
    assert_eq!(deaths.errors, [""; 0], "a start is clean");
    assert_eq!(deaths.wrong, [""; 0], "and it serves");
    assert_eq!((deaths.doubled, deaths.lost, deaths.wrong_sums), (0, 0, 0), "{deaths:?}");
    assert!(deaths.moving >= 20, "only in {} rounds a model was on its way", deaths.moving);
    assert!(deaths.long_ago >= 100 && deaths.records > deaths.long_ago, "{deaths:?}");
    assert!(deaths.killed >= 5, "only {} were running and known of", deaths.killed);
}
