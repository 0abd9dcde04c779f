//! What is written at once: a batch of invocations, small because names stand in it once, and as it is read again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::record::{Key, ModelUse, Record, Sums, Totals};
use super::tab::{Owner, Reading};
use crate::names::{FunctionName, RevisionId, Tenant};

/// A batch. Numbers of records go on from one batch to the next without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frame {
    /// The number of the first of `ended`.
    pub first: u64,
    /// What runs, and was written before this frame, is in it: nothing before it must be read to know that.
    pub begins: bool,
    /// What the ids of these invocations begin with.
    pub start: u32,
    /// When it was made, in milliseconds since 1970.
    pub at_ms: u64,
    pub owners: Vec<(FunctionName, RevisionId, Tenant)>,
    /// Models and outcomes.
    pub words: Vec<String>,
    /// Those that ended.
    pub ended: Vec<Row>,
    /// Those that run, with what they used so far.
    pub running: Vec<Row>,
}

/// One invocation in a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    pub number: u64,
    owner: u32,
    outcome: u32,
    /// When it started, before the frame was made.
    age_us: u64,
    wall_us: u64,
    queue_us: u64,
    cpu_us: u64,
    memory_peak_bytes: u64,
    bytes_in: u64,
    bytes_out: u64,
    models: Vec<ModelRow>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ModelRow {
    model: u32,
    sequences: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    generated_tokens: u64,
    queue_us: u64,
    prefill_us: u64,
    decode_us: u64,
    device_us: u64,
    kv_byte_seconds: u64,
}

/// The outcome of an invocation that runs.
pub(super) const RUNNING: &str = "running";
/// The outcome of one that ran when its host died.
pub(super) const HOST_KILLED: &str = "host-killed";

impl Frame {
    /// The number of the last of `ended`, or of the one before `first`.
    pub fn last(&self) -> u64 {
        (self.first + self.ended.len() as u64).saturating_sub(1)
    }

    /// Whether there is nobody in it.
    pub fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.running.is_empty()
    }

    /// The records of those that ended, with their numbers.
    pub fn records(&self) -> impl Iterator<Item = (u64, Record)> {
        (self.first..).zip(self.ended.iter().filter_map(|row| self.record(row)))
    }

    /// A row as a record. `None` where it names what is not in the frame: it was not written by us.
    pub fn record(&self, row: &Row) -> Option<Record> {
        let (function, revision, tenant) = self.owners.get(row.owner as usize)?.clone();
        let word = |n: u32| self.words.get(n as usize).cloned();
        let model = |of: &ModelRow| {
            Some(ModelUse {
                model: word(of.model)?.parse().ok()?,
                sequences: of.sequences,
                prompt_tokens: of.prompt_tokens,
                cached_tokens: of.cached_tokens,
                generated_tokens: of.generated_tokens,
                queue_us: of.queue_us,
                prefill_us: of.prefill_us,
                decode_us: of.decode_us,
                device_us: of.device_us,
                kv_byte_seconds: of.kv_byte_seconds,
            })
        };
        Some(Record {
            id: crate::request::invocation_id(self.start, row.number),
            function,
            revision,
            tenant,
            outcome: word(row.outcome)?,
            started_ms: self.at_ms.saturating_sub(row.age_us / 1000),
            wall_us: row.wall_us,
            queue_us: row.queue_us,
            cpu_us: row.cpu_us,
            memory_peak_bytes: row.memory_peak_bytes,
            bytes_in: row.bytes_in,
            bytes_out: row.bytes_out,
            models: row.models.iter().map(model).collect::<Option<_>>()?,
        })
    }
}

impl Frame {
    /// Whose a row is. `None` where it names nobody in the frame: it was not written by us.
    pub fn owner(&self, row: &Row) -> Option<(&FunctionName, &Tenant)> {
        self.owners.get(row.owner as usize).map(|(function, _, tenant)| (function, tenant))
    }

    /// What those that ended have used together.
    pub fn sums(&self) -> Sums {
        let mut by_number: HashMap<(u32, u32, Option<u32>), Totals> = HashMap::new();
        for row in &self.ended {
            let hour = self.hour(row);
            let mut add = |model, totals: &Totals| by_number.entry((hour, row.owner, model)).or_default().add(totals);
            let word = self.words.get(row.outcome as usize).map_or("", String::as_str);
            add(None, &row.totals(!matches!(word, "ok" | "client-left")));
            row.models.iter().for_each(|of| add(Some(of.model), &of.totals()));
        }
        let named = by_number.into_iter().filter_map(|((hour, owner, model), totals)| {
            let (function, _, tenant) = self.owners.get(owner as usize)?;
            let model = model.map_or(Some(String::new()), |model| self.words.get(model as usize).cloned())?;
            Some((Key { hour, tenant: tenant.to_string(), function: function.to_string(), model }, totals))
        });
        let mut sums = Sums::new();
        // Revisions of a function are summed up together.
        named.for_each(|(key, totals)| sums.entry(key).or_default().add(&totals));
        sums
    }

    /// The hour in which it ended.
    fn hour(&self, row: &Row) -> u32 {
        let ended_ms = self.at_ms.saturating_sub(row.age_us / 1000).saturating_add(row.wall_us / 1000);
        u32::try_from(ended_ms / 3_600_000).unwrap_or(u32::MAX)
    }
}

impl Row {
    /// Tokens of prompts and answers.
    pub fn tokens(&self) -> u64 {
        self.models.iter().map(|of| of.prompt_tokens.saturating_add(of.generated_tokens)).sum()
    }

    fn totals(&self, failed: bool) -> Totals {
        Totals {
            invocations: 1,
            failed: failed.into(),
            wall_us: self.wall_us,
            cpu_us: self.cpu_us,
            memory_peak_bytes: self.memory_peak_bytes,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            queue_us: self.queue_us,
            ..Totals::default()
        }
    }
}

impl ModelRow {
    fn totals(&self) -> Totals {
        Totals {
            queue_us: self.queue_us,
            sequences: self.sequences,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            generated_tokens: self.generated_tokens,
            prefill_us: self.prefill_us,
            decode_us: self.decode_us,
            device_us: self.device_us,
            kv_byte_seconds: self.kv_byte_seconds,
            ..Totals::default()
        }
    }
}

/// Makes a frame.
pub(super) struct FrameBuilder {
    frame: Frame,
    now: Instant,
    /// By their place in memory, which is theirs as long as they are kept here.
    owners: HashMap<*const Owner, (Arc<Owner>, u32)>,
    words: HashMap<String, u32>,
}

impl FrameBuilder {
    /// A frame that is made now.
    pub fn new(first: u64, start: u32, at_ms: u64, now: Instant) -> Self {
        let frame = Frame { first, start, at_ms, ..Frame::default() };
        Self { frame, now, owners: HashMap::new(), words: HashMap::new() }
    }

    /// Adds one that ended, or, if it still runs, how far it is. `outcome` is what it is said to have come to, if that
    /// is not known from its tab.
    pub fn add(&mut self, reading: &Reading, outcome: Option<&str>) {
        let row = self.row(reading, outcome);
        if self.frame.words[row.outcome as usize] == RUNNING {
            self.frame.running.push(row);
        } else {
            self.frame.ended.push(row);
        }
    }

    /// Adds one as if it had used so many tokens of a model.
    #[cfg(test)]
    pub fn add_with_tokens(&mut self, reading: &Reading, outcome: &str, tokens: u64) {
        let model = self.word("m");
        self.add(reading, Some(outcome));
        let rows = if outcome == RUNNING { &mut self.frame.running } else { &mut self.frame.ended };
        let row = rows.last_mut().expect("it was added");
        row.models = vec![ModelRow { model, generated_tokens: tokens, ..ModelRow::default() }];
    }

    /// Adds one that another process left running, as read from its frame.
    pub fn add_killed(&mut self, from: &Frame, row: &Row) {
        let row = self.carry(from, row, HOST_KILLED);
        self.frame.ended.extend(row);
    }

    /// Adds those of a frame that has not been written, as running, if an earlier one may have said that they run: began at least `ago`
    /// before it.
    pub fn add_unwritten(&mut self, from: &Frame, ago: Duration) {
        for row in from.ended.iter().filter(|row| row.age_us >= us(ago)) {
            let row = self.carry(from, row, RUNNING);
            self.frame.running.extend(row);
        }
    }

    /// A row of another frame. `None` where it names nobody there: it was not written by us.
    fn carry(&mut self, from: &Frame, row: &Row, outcome: &str) -> Option<Row> {
        let owner = from.owners.get(row.owner as usize)?;
        let known = self.frame.owners.iter().position(|known| known == owner);
        let owner = known.unwrap_or_else(|| {
            self.frame.owners.push(owner.clone());
            self.frame.owners.len() - 1
        });
        let mut row = Row { owner: owner as u32, outcome: self.word(outcome), ..row.clone() };
        row.age_us += self.frame.at_ms.saturating_sub(from.at_ms) * 1000;
        for model in &mut row.models {
            model.model = self.word(from.words.get(model.model as usize).map_or("", String::as_str));
        }
        Some(row)
    }

    fn row(&mut self, read: &Reading, outcome: Option<&str>) -> Row {
        let outcome = self.word(outcome.or(read.end.map(|end| end.outcome)).unwrap_or(RUNNING));
        let models = read.models.iter().map(|(model, used)| ModelRow {
            model: self.word(model.as_str()),
            sequences: used.sequences,
            prompt_tokens: used.prompt_tokens,
            cached_tokens: used.cached_tokens,
            generated_tokens: used.generated_tokens,
            queue_us: us(used.queue),
            prefill_us: us(used.prefill),
            decode_us: us(used.decode),
            device_us: us(used.device),
            kv_byte_seconds: used.kv_byte_seconds,
        });
        let models = models.collect();
        let age = self.now.saturating_duration_since(read.started);
        Row {
            number: read.number,
            owner: self.owner(&read.owner),
            outcome,
            age_us: us(age),
            wall_us: us(read.end.map_or(age, |end| end.wall)),
            queue_us: us(read.end.map_or(Duration::ZERO, |end| end.queue)),
            cpu_us: us(read.cpu),
            memory_peak_bytes: read.memory_peak,
            bytes_in: read.bytes_in,
            bytes_out: read.bytes_out,
            models,
        }
    }

    fn owner(&mut self, owner: &Arc<Owner>) -> u32 {
        let (_, number) = self.owners.entry(Arc::as_ptr(owner)).or_insert_with(|| {
            let Owner { function, revision, tenant } = &**owner;
            self.frame.owners.push((function.clone(), *revision, tenant.clone()));
            (owner.clone(), self.frame.owners.len() as u32 - 1)
        });
        *number
    }

    fn word(&mut self, word: &str) -> u32 {
        if let Some(known) = self.words.get(word) {
            return *known;
        }
        let n = self.frame.words.len() as u32;
        self.frame.words.push(word.to_owned());
        self.words.insert(word.to_owned(), n);
        n
    }

    /// The frame.
    pub fn build(self) -> Frame {
        self.frame
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Meter;
    use crate::usage::tab::End;
    use crate::usage::tray::Tray;

    #[test]
    fn owners_that_come_and_go_are_not_taken_for_each_other() {
        let mut builder = FrameBuilder::new(1, 1, 0, Instant::now());
        let names: Vec<String> = (0..50).map(|n| format!("tenant-{n}")).collect();
        for (number, name) in names.iter().enumerate() {
            let (function, revision, tenant) = ("f".parse().unwrap(), RevisionId::FIRST, name.parse().unwrap());
            let owner = Arc::new(Owner { function, revision, tenant });
            let meter = Arc::new(Meter::new(Instant::now()));
            let tab = Arc::new(Tray::default()).open(owner, number as u64, Instant::now(), meter);
            // Once it is closed nobody else has the owner: its memory is the next one's, if it is not kept.
            tab.close(End { outcome: "ok", wall: Duration::ZERO, queue: Duration::ZERO });
            builder.add(&tab.read(), None);
        }
        let frame = builder.build();
        let tenants: Vec<_> = frame.records().map(|(_, record)| record.tenant.to_string()).collect();
        assert_eq!(tenants, names);
    }
}
