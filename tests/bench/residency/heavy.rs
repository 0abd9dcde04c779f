//! A tenant with 32 streams over prompts of 4,000 tokens, beside eight that chat.
//!
//! "Running alone at fair share" is what a light tenant has when all nine use no more than their share: when in place of the
//! heavy tenant there is a ninth light one. Its tokens then come as often as a ninth of the device, in one batch with eight
//! equals, can give them. (A tenant with the whole device to itself has more than its share; one that is slowed down to a ninth
//! of its lone speed would be nine times slower than that, since a batch reads the weights once for all: that comparison would
//! forgive nearly anything, and is not made.) What eight alone have is shown as well.
//!
//! The heavy tenant begins first, and has filled the batch and the KV memory by the time that the others come. When one of
//! its streams ends another begins, with a prompt that nothing is known of. A light chat's time between two tokens is what its client
//! sees between two pieces of text; also the time that it still waits for the next one when the measurement ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hob::names::Tenant;
use hob_tests::{Connection, Hob, ServeOptions, get};

use super::{counter, wait_until_idle, with_model};
use crate::fleet::Fleet;
use crate::report::{Measure, Report, quantile};

const LIGHT: usize = 8;
const HEAVY: usize = 32;
/// Words of a heavy prompt, a token each.
const WORDS: usize = 4_000;
/// The heavy tenant is alone for so long.
const BEFORE: Duration = Duration::from_secs(5);
/// For so long the light ones chat.
const TIME: Duration = Duration::from_secs(25);
/// Tokens of a light chat's answer; then it asks again.
const ANSWER: usize = 200;

pub fn run(report: &mut Report) -> Result<()> {
    let tenant = |n| format!("tenant-{n}").parse::<Tenant>().expect("it is a name");
    let functions = LIGHT + 1;
    let fleet = Fleet { package: "guest-infer", functions, apart: false, config: with_model(), tenant };
    let hob = fleet.start(ServeOptions { model: true, ..ServeOptions::default() })?.hob;
    for _ in 0..20 {
        ensure!(get(&hob.url("/function-0?do=raw&max_tokens=20")).0 == 200, "the model answers");
    }
    let mut eight = chats(&hob, LIGHT, 0)?;
    let mut nine = chats(&hob, LIGHT + 1, 0)?;
    let prefilled = counter(&hob, "hob_engine_tokens_prefilled_total")?;
    let mut beside = chats(&hob, LIGHT, HEAVY)?;
    let prefilled = counter(&hob, "hob_engine_tokens_prefilled_total")? - prefilled;
    let fair = nine.gap(0.99);
    let name = format!("token of {LIGHT} light tenants beside a heavy one");
    let peer = Some((format!("the same beside a {}th light one", LIGHT + 1), fair));
    report.add(Measure::new(format!("{name}, p99"), beside.gap(0.99), "ms").peer(peer).ratio_at_most(2.0));
    let peer = Some((format!("the same beside a {}th light one", LIGHT + 1), nine.gap(0.5)));
    report.add(Measure::new(format!("{name}, p50"), beside.gap(0.5), "ms").peer(peer));
    report.add(Measure::new(format!("  {LIGHT} light tenants and nobody else, p99"), eight.gap(0.99), "ms"));
    let peer = Some((format!("beside a {}th light one", LIGHT + 1), quantile(&mut nine.firsts, 0.5)));
    report.add(Measure::new("  a light tenant's first token, p50", quantile(&mut beside.firsts, 0.5), "ms").peer(peer));
    let of_light = beside.gaps.len() as f64 / TIME.as_secs_f64();
    let peer = Some((format!("beside a {}th light one", LIGHT + 1), nine.gaps.len() as f64 / TIME.as_secs_f64()));
    report.add(Measure::new("  light tenants' tokens", of_light, "tokens/s").peer(peer));
    let rate = prefilled as f64 / (BEFORE + TIME).as_secs_f64();
    report.add(Measure::new("  prompts read meanwhile", rate, "tokens/s"));
    Ok(())
}

/// What light tenants' clients saw, in milliseconds.
#[derive(Default)]
struct Seen {
    /// From one piece of text to the next.
    gaps: Vec<f64>,
    /// From a request to its first.
    firsts: Vec<f64>,
}

impl Seen {
    fn gap(&mut self, q: f64) -> f64 {
        if self.gaps.is_empty() { f64::INFINITY } else { quantile(&mut self.gaps, q) }
    }
}

/// What `light` tenants see who chat, beside `heavy` streams of one more.
fn chats(hob: &Hob, light: usize, heavy: usize) -> Result<Seen> {
    let over = AtomicBool::new(false);
    let prompts = AtomicUsize::new(0);
    let (address, over, prompts) = (hob.address(), &over, &prompts);
    let seen = std::thread::scope(|scope| {
        for _ in 0..heavy {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let _ = heavy_stream(address, prompts.fetch_add(1, Ordering::Relaxed), over);
                }
            });
        }
        if heavy > 0 {
            std::thread::sleep(BEFORE);
        }
        let began = Instant::now();
        // Function 0 is the heavy tenant's; without it, that is the ninth light one.
        let first = usize::from(light == LIGHT);
        let chats: Vec<_> = (0..light).map(|n| scope.spawn(move || chat(address, first + n, began))).collect();
        let mut seen = Seen::default();
        for chat in chats {
            let of_one = chat.join().expect("it does not panic");
            seen.gaps.extend(of_one.gaps);
            seen.firsts.extend(of_one.firsts);
        }
        over.store(true, Ordering::Relaxed);
        seen
    });
    wait_until_idle(hob)?;
    Ok(seen)
}

/// One prompt that nobody has sent before, and its answer.
fn heavy_stream(address: SocketAddr, n: usize, over: &AtomicBool) -> std::io::Result<()> {
    let mut connection = Connection::try_open(address)?;
    connection.limit(Duration::from_millis(200))?;
    let text = format!("Report%20{n}:{}", "%20word".repeat(WORDS));
    connection.try_get(&format!("/function-0?do=stream&max_tokens=64&text={text}"))?;
    let wait = |over: &AtomicBool, connection: &mut Connection| {
        while !connection.has_answer() && !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        !over.load(Ordering::Relaxed)
    };
    if wait(over, &mut connection) && connection.try_head()?.status != 200 {
        // Refused: as a client does that waits.
        std::thread::sleep(Duration::from_millis(500));
        return Ok(());
    }
    while wait(over, &mut connection) && connection.try_chunk()?.is_some() {}
    Ok(())
}

/// A chat of function `n` for [`TIME`].
fn chat(address: SocketAddr, n: usize, began: Instant) -> Seen {
    hob_gpu::short_turns();
    let mut seen = Seen::default();
    let left = || TIME.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
    let mut asked = 0;
    while began.elapsed() < TIME {
        asked += 1;
        let text = format!("1,%202,%203,%20{n},%20{asked},%205,%206,%207,%208,%209,");
        let path = format!("/function-{n}?do=stream&max_tokens={ANSWER}&text={text}");
        let Ok(mut connection) = Connection::try_open(address) else { break };
        let mut last = Instant::now();
        if connection.try_get(&path).is_err() {
            break;
        }
        let mut pieces = 0;
        loop {
            let piece = match pieces {
                _ if connection.limit(left()).is_err() => break,
                0 => connection.try_head().and_then(|head| match head.status {
                    200 => connection.try_chunk(),
                    _ => Ok(None),
                }),
                _ => connection.try_chunk(),
            };
            let time = last.elapsed().as_secs_f64() * 1e3;
            let ended = !matches!(piece, Ok(Some(_)));
            if ended && began.elapsed() < TIME {
                break;
            }
            if pieces == 0 {
                seen.firsts.push(time)
            } else {
                seen.gaps.push(time)
            }
            if ended {
                break;
            }
            (last, pieces) = (Instant::now(), pieces + 1);
        }
    }
    seen
}
