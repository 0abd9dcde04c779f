//! Two models in a budget that holds one: they take turns, and the memory of each comes back.

use hob_gpu::{Engine, EngineConfig, Event, JoinError, ModelSource, ModelState};
use support::wait;
use toy::{Bench, Toy, ask, small};

mod support;
#[expect(dead_code, reason = "shared with other tests")]
#[path = "engine/toy.rs"]
mod toy;

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).map_or(0, |pages| pages.parse::<u64>().expect("a number") * 4096)
}

#[test]
fn a_thousand_turns_of_two_models_leave_no_memory_behind() {
    let bench = Bench::new(small());
    drop(bench.model());
    let bytes = bench.engine.resident()[0].bytes;
    let room = EngineConfig { model_bytes: Some(bytes * 3 / 2), ..small() };
    let engine = Engine::start(room).expect("the engine starts");
    let sources = ["one", "two"].map(|name| {
        let path = bench.folder.path().join(format!("{name}.gguf"));
        Toy::write(&path);
        ModelSource { name: name.into(), path, digest: name.into() }
    });
    let turn = |n: usize| {
        let model = wait(engine.join(&sources[n % 2])).expect("there is room when nobody uses the other");
        let mut tokens = model.generate(ask(n as u32, 5, 3)).expect("it is not busy");
        while matches!(wait(tokens.next()), Event::Text(_)) {}
        drop((tokens, model));
        // The engine thread has its lease for a moment longer.
        while engine.resident().iter().any(|model| model.leases > 0) {
            std::thread::yield_now();
        }
    };
    (0..20).for_each(turn);
    let before = resident();
    (0..1000).for_each(turn);
    let after = resident();
    assert!(after <= before + (1 << 20), "{before} bytes became {after}");
    assert_eq!(engine.resident().len(), 1);

    let held = wait(engine.join(&sources[0])).expect("it loads");
    let refusal = wait(engine.join(&sources[1])).err().expect("the other is in use");
    assert!(matches!(refusal, JoinError::NoRoom { retry_after: Some(_), .. }), "{refusal}");
    assert!(refusal.to_string().contains("try again"), "{refusal}");
    assert_eq!(engine.models().iter().filter(|model| model.state == ModelState::Resident).count(), 1);
    drop(held);
}
