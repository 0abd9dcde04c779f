//! One invocation as it is billed, and sums of many.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::{FunctionName, ModelName, RevisionId, Tenant};

/// What one invocation has used. Times in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The invocation, as its answer's `x-hob-invocation` has it.
    pub id: String,
    /// The function.
    pub function: FunctionName,
    /// Which of its revisions.
    pub revision: RevisionId,
    /// Who pays.
    pub tenant: Tenant,
    /// How it ended: `ok`, `client-left`, the code of an error, `shutdown`, or `host-killed`: then it is as it was a moment
    /// before.
    pub outcome: String,
    /// When its request had been read, in milliseconds since 1970.
    pub started_ms: u64,
    /// From there to its end.
    pub wall_us: u64,
    /// Of this, before its function's gate.
    pub queue_us: u64,
    /// For which its guest computed.
    pub cpu_us: u64,
    /// Its guest's linear memory at its most.
    pub memory_peak_bytes: u64,
    /// Of the request's body.
    pub bytes_in: u64,
    /// Of the answer's body.
    pub bytes_out: u64,
    /// What it used of models.
    pub models: Vec<ModelUse>,
}

/// What one invocation has used of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUse {
    /// The model.
    pub model: ModelName,
    /// Generations that were begun.
    pub sequences: u64,
    /// Prompt tokens, processed or found.
    pub prompt_tokens: u64,
    /// Those of them that were found.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// In the engine's queue.
    pub queue_us: u64,
    /// From admission until the prompt was processed.
    pub prefill_us: u64,
    /// From the first token until the last.
    pub decode_us: u64,
    /// Its share of the device's time.
    pub device_us: u64,
    /// Bytes of KV it held, times the seconds for which it held them.
    pub kv_byte_seconds: u64,
}

/// What is summed up together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The hour since 1970 in which invocations ended: an hour that is over changes no more.
    pub hour: u32,
    /// Who pays.
    pub tenant: String,
    /// The function.
    pub function: String,
    /// The model; empty for what is no model's: the invocations themselves.
    pub model: String,
}

/// Sums of many invocations. Of what is a model's only the last nine are set, of the rest only the others: nothing
/// is counted twice when both are added. Times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Invocations.
    pub invocations: u64,
    /// Those that ended otherwise than `ok` or `client-left`.
    pub failed: u64,
    /// See [`Record::wall_us`].
    pub wall_us: u64,
    /// See [`Record::cpu_us`].
    pub cpu_us: u64,
    /// See [`Record::memory_peak_bytes`]; the most of all.
    pub memory_peak_bytes: u64,
    /// See [`Record::bytes_in`].
    pub bytes_in: u64,
    /// See [`Record::bytes_out`].
    pub bytes_out: u64,
    /// See [`Record::queue_us`], and [`ModelUse::queue_us`].
    pub queue_us: u64,
    /// See [`ModelUse::sequences`].
    pub sequences: u64,
    /// See [`ModelUse::prompt_tokens`].
    pub prompt_tokens: u64,
    /// See [`ModelUse::cached_tokens`].
    pub cached_tokens: u64,
    /// See [`ModelUse::generated_tokens`].
    pub generated_tokens: u64,
    /// See [`ModelUse::prefill_us`].
    pub prefill_us: u64,
    /// See [`ModelUse::decode_us`].
    pub decode_us: u64,
    /// See [`ModelUse::device_us`].
    pub device_us: u64,
    /// See [`ModelUse::kv_byte_seconds`].
    pub kv_byte_seconds: u64,
}

impl Totals {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.memory_peak_bytes = self.memory_peak_bytes.max(other.memory_peak_bytes);
        for (sum, more) in self.sums().into_iter().zip({ *other }.sums()) {
            *sum = sum.saturating_add(*more);
        }
    }

    fn sums(&mut self) -> [&mut u64; 15] {
        [
            &mut self.invocations,
            &mut self.failed,
            &mut self.wall_us,
            &mut self.cpu_us,
            &mut self.bytes_in,
            &mut self.bytes_out,
            &mut self.queue_us,
            &mut self.sequences,
            &mut self.prompt_tokens,
            &mut self.cached_tokens,
            &mut self.generated_tokens,
            &mut self.prefill_us,
            &mut self.decode_us,
            &mut self.device_us,
            &mut self.kv_byte_seconds,
        ]
    }
}

/// Sums by what is summed up together.
pub type Sums = BTreeMap<Key, Totals>;
