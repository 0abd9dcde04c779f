//! A storm of aborts: a thousand streams, each cut by its client at some moment - before it is answered, in the queue, in
//! its prompt, while it generates. Then streams that are cut all at once, to see how soon the engine has noticed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hob_tests::{Connection, Hob};

use super::{counter, wait_until_idle};
use crate::report::{Measure, Report};

const STREAMS: usize = 1_000;
/// Clients at once: more than the batch takes, so that some wait.
const CLIENTS: usize = 48;
/// Streams that are cut at once, and how often.
const LAST: usize = 24;
const ROUNDS: usize = 20;

pub fn run(report: &mut Report) -> Result<()> {
    let hob = Hob::with_model();
    hob.deploy_with_model("guest-infer");
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= STREAMS {
                        break;
                    }
                    cut_one(hob.address(), n);
                }
            });
        }
    });
    wait_until_idle(&hob)?;
    let took = started.elapsed();
    let steps = (0..ROUNDS).map(|_| steps_after_a_cut(&hob)).collect::<Result<Vec<_>>>()?;
    // The clerk looks four times a second; some clients left before their request was one.
    let metered = || -> Result<u64> {
        let mut metered = 0;
        for line in hob.client().usage_records(&[])?.lines() {
            let record: hob::usage::NumberedRecord = serde_json::from_str(line)?;
            metered += record.of.models.iter().map(|of| of.generated_tokens).sum::<u64>();
        }
        Ok(metered)
    };
    std::thread::sleep(Duration::from_secs(2));
    let metered = metered()?;
    let made = counter(&hob, "hob_engine_tokens_generated_total")?;
    ensure!(made > STREAMS as u64, "only {made} tokens were made");
    let leaked = counter(&hob, "hob_engine_kv_pages")? - counter(&hob, "hob_engine_kv_pages_free")?;
    let name = "1,000 streams cut";
    report.add(Measure::new(format!("{name}: KV pages leaked"), leaked as f64, "pages").at_most(0.0));
    let billed = Measure::new(format!("{name}: tokens metered"), metered as f64, "tokens");
    report.add(billed.peer(Some(("tokens made".into(), made as f64))).equal());
    let most = steps.iter().copied().max().unwrap_or(0);
    report.add(
        Measure::new(format!("steps until idle after {LAST} are cut at once, most of {ROUNDS}"), most as f64, "steps")
            .at_most(2.0),
    );
    report.add(Measure::new("  the storm itself", took.as_secs_f64(), "s"));
    Ok(())
}

/// Begins a stream and leaves.
fn cut_one(address: SocketAddr, n: usize) {
    let random = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    // 1 to about 700 tokens of prompt.
    let prompt = "and%20so%20on%20".repeat(if random.is_multiple_of(4) { (random >> 4) as usize % 170 } else { 2 });
    let mut connection = Connection::open(address);
    connection.get(&format!("/guest-infer?do=stream&max_tokens=2000&text=Stream%20{n}%20{prompt}"));
    let pieces = match random % 3 {
        // Whatever it is at after so long.
        0 => {
            std::thread::sleep(Duration::from_micros((random >> 12) % 60_000));
            return;
        }
        _ => (random >> 12) % 12,
    };
    if connection.try_head().is_ok_and(|head| head.status == 200) {
        for _ in 0..pieces {
            if !connection.try_chunk().is_ok_and(|chunk| chunk.is_some()) {
                break;
            }
        }
    }
}

/// Steps that the engine makes from when all its streams are cut until it is idle. Those count, too, that it makes while the
/// number of its steps is asked for, and while the kernel tells the server that its clients are gone.
fn steps_after_a_cut(hob: &Hob) -> Result<u64> {
    let mut streams: Vec<Connection> = (0..LAST).map(|_| Connection::open(hob.address())).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.get(&format!("/guest-infer?do=stream&max_tokens=2000&text=1,%202,%203,%204,%20{n},%206,%207,"));
    }
    for stream in &mut streams {
        ensure!(stream.head().status == 200 && stream.chunk().is_some(), "it runs");
    }
    let before = counter(hob, "hob_engine_steps_total")?;
    drop(streams);
    wait_until_idle(hob)?;
    Ok(counter(hob, "hob_engine_steps_total")? - before)
}
