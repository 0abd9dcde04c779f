//! A server that is killed over and over, while models are loaded and evicted and what is used is written down.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hob::config::FunctionConfig;
use hob::usage::{NumberedRecord, Totals};

use crate::{Connection, Hob, MODEL, ServeOptions, TWIN, lend_twin};

/// Room for one of the two models, and not for both.
const ROOM: &str = "180MB";
/// What may be lost.
const SECOND: Duration = Duration::from_secs(1);
/// Between two requests that use no model.
const PACE: Duration = Duration::from_millis(4);

/// What became of a server, and of what it had billed.
#[derive(Debug, Default)]
pub struct Deaths {
    /// How often it was killed.
    pub rounds: usize,
    /// Models that were being loaded or evicted a moment before.
    pub moving: usize,
    /// How long it took from each start until it served.
    pub starts: Vec<Duration>,
    /// Lines of its log that say an error.
    pub errors: Vec<String>,
    /// Answers after a start that were not as they should be.
    pub wrong: Vec<String>,
    /// Records.
    pub records: usize,
    /// Of these, those that say the host was killed.
    pub killed: usize,
    /// Records of an invocation that had one already, and numbers of records that are not the next one.
    pub doubled: usize,
    /// Requests that were answered more than a second before the end.
    pub long_ago: usize,
    /// Those of them that have no record.
    pub lost: usize,
    /// Starts after which the sums were not those of the records.
    pub wrong_sums: usize,
}

impl Deaths {
    /// These and those of another server.
    pub fn and(mut self, other: Self) -> Self {
        self.starts.extend(other.starts);
        self.errors.extend(other.errors);
        self.wrong.extend(other.wrong);
        self.rounds += other.rounds;
        self.moving += other.moving;
        self.records += other.records;
        self.killed += other.killed;
        self.doubled += other.doubled;
        self.long_ago += other.long_ago;
        self.lost += other.lost;
        self.wrong_sums += other.wrong_sums;
        self
    }
}

/// Kills a server `rounds` times, at moments that follow from `seed`.
pub fn kill_over_and_over(rounds: usize, seed: u64) -> Deaths {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    lend_twin(home.path());
    let args = vec!["--model-memory".into(), ROOM.into()];
    let mut hob = Hob::on(home, ServeOptions { model: true, args, ..ServeOptions::default() });
    let models = [MODEL, TWIN].map(|name| name.parse().expect("it is a name")).to_vec();
    hob.deploy_as("guest-infer", "infer", FunctionConfig { models, ..FunctionConfig::default() });
    hob.deploy("hello", &[]);
    let (mut deaths, mut books) = (Deaths::default(), Books::default());
    for round in 0..rounds {
        let mut random = seed.wrapping_add(round as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        random ^= random >> 29;
        // At any moment of the first loads and evictions; now and then late enough for something to be a second old.
        let lives = Duration::from_micros(random % 400_000) + if round % 8 == 7 { SECOND } else { Duration::ZERO };
        let (answered, killed) = std::thread::scope(|scope| {
            let address = hob.address();
            scope.spawn(move || use_models_in_turn(address));
            // It cannot be evicted while this lasts, and counting has no end: only where there is time enough for both.
            if round % 4 == 3 {
                let counts =
                    format!("/infer?do=raw&max_tokens=2000&model={MODEL}&text=1,%202,%203,%204,%205,%206,%207,");
                scope.spawn(move || ask(address, &counts).err());
            }
            let pinger = scope.spawn(move || ask_until_it_dies(address));
            std::thread::sleep(lives);
            let models = hob.client().models().unwrap_or_default();
            deaths.moving += models.iter().filter(|m| matches!(m.state.as_str(), "loading" | "evicting")).count();
            let killed = Instant::now();
            hob.kill();
            (pinger.join().expect("it gives up"), killed)
        });
        let old = |at: Instant| killed.saturating_duration_since(at) > SECOND;
        books.long_ago.extend(answered.into_iter().filter(|(_, at)| old(*at)).map(|(id, _)| id));
        let log = hob.log().len();
        let started = Instant::now();
        hob.restart();
        deaths.starts.push(started.elapsed());
        books.check(&hob, &mut deaths);
        look_whether_it_serves(&hob, &mut deaths);
        let log = hob.log()[log..].to_owned();
        deaths.errors.extend(log.lines().filter(|l| l.contains("ERROR") || l.contains("panicked")).map(String::from));
    }
    deaths.rounds = rounds;
    (deaths.records, deaths.long_ago) = (books.ids.len(), books.long_ago.len());
    deaths.lost = books.long_ago.difference(&books.ids).count();
    deaths
}

/// A token of one model, then of the other, for which the first must go, and so on.
fn use_models_in_turn(address: SocketAddr) {
    for n in 0.. {
        let model = [MODEL, TWIN][n % 2];
        if ask(address, &format!("/infer?do=raw&max_tokens=1&model={model}")).is_err() {
            return;
        }
    }
}

/// Invocations that were answered, and when.
fn ask_until_it_dies(address: SocketAddr) -> Vec<(String, Instant)> {
    let mut answered = Vec::new();
    while let Ok((id, _)) = ask(address, "/hello") {
        answered.push((id, Instant::now()));
        std::thread::sleep(PACE);
    }
    answered
}

/// Asks on a connection of its own; the invocation's id and the body.
fn ask(address: SocketAddr, path: &str) -> io::Result<(String, String)> {
    let mut connection = Connection::try_open(address)?;
    connection.try_get(path)?;
    let head = connection.try_head()?;
    let id = head.header("x-hob-invocation").ok_or(io::ErrorKind::InvalidData)?.to_owned();
    Ok((id, connection.try_body()?))
}

fn look_whether_it_serves(hob: &Hob, deaths: &mut Deaths) {
    for (path, wanted) in
        [("/hello".to_owned(), "hello from hob"), (format!("/infer?do=raw&max_tokens=8&model={MODEL}"), "Paris")]
    {
        match ask(hob.address(), &path) {
            Ok((_, body)) if body.contains(wanted) => {}
            other => deaths.wrong.push(format!("{path}: {other:?}")),
        }
    }
}

/// What is known of the records so far.
#[derive(Default)]
struct Books {
    ids: BTreeSet<String>,
    /// The number of the last record.
    last: u64,
    sums: Totals,
    long_ago: BTreeSet<String>,
}

impl Books {
    /// Reads the records that came since the last time.
    fn check(&mut self, hob: &Hob, deaths: &mut Deaths) {
        let client = hob.client();
        loop {
            let text = client.usage_records(&[("after", &self.last.to_string())]).expect("the server runs");
            let before = self.last;
            for line in text.lines() {
                let record: NumberedRecord = serde_json::from_str(line).expect("it is a record");
                deaths.doubled += usize::from(record.record != self.last + 1);
                deaths.doubled += usize::from(!self.ids.insert(record.of.id.clone()));
                deaths.killed += usize::from(record.of.outcome == "host-killed");
                self.last = record.record;
                self.sums.invocations += 1;
                self.sums.generated_tokens += record.of.models.iter().map(|of| of.generated_tokens).sum::<u64>();
            }
            if self.last == before {
                break;
            }
        }
        let mut sums = Totals::default();
        client.usage(&[]).expect("the server runs").rows.iter().for_each(|row| sums.add(&row.totals));
        let of = |sums: &Totals| (sums.invocations, sums.generated_tokens);
        deaths.wrong_sums += usize::from(of(&sums) != of(&self.sums));
    }
}
