//! What is asked of the books, and what is answered.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::record::{Key, Record, Sums, Totals};
use super::when;
use crate::names::{FunctionName, ModelName, Tenant};

/// Which usage is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Only this tenant's.
    pub tenant: Option<Tenant>,
    /// Only this function's.
    pub function: Option<FunctionName>,
    /// Only this model's.
    pub model: Option<ModelName>,
    /// From then on, in seconds since 1970; of sums, from the hour that it is in.
    pub since: Option<u64>,
    /// Until before then; of sums, until the end of the hour that it is in.
    pub until: Option<u64>,
    /// How sums are told apart by time.
    pub by: By,
}

/// How sums are told apart by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Not at all.
    #[default]
    Total,
    /// By hours of UTC.
    Hour,
    /// By days of UTC.
    Day,
}

impl std::str::FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "total" => Ok(Self::Total),
            "hour" => Ok(Self::Hour),
            "day" => Ok(Self::Day),
            _ => Err("give hour, day or total".into()),
        }
    }
}

/// Up to where usage is durable: it counts, whatever happens to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BilledThrough {
    /// The number of the last record.
    pub record: u64,
    /// When that was written, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Sums of usage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is in `rows` is all usage up to here, and nothing beyond.
    pub billed_through: BilledThrough,
    /// Sums, by time, tenant, function and model.
    pub rows: Vec<UsageRow>,
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// When the hour or day begins, as in `2026-11-25T03:00:00Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Who pays.
    pub tenant: String,
    /// The function.
    pub function: String,
    /// The model; none for what is no model's: the invocations themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The sums.
    #[serde(flatten)]
    pub totals: Totals,
}

/// A record with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedRecord {
    /// Ascending, over restarts too; never used for another. Whoever reads on after the last one it has seen gets each once.
    pub record: u64,
    /// The record.
    #[serde(flatten)]
    pub of: Record,
}

impl Query {
    /// The hours that are asked for.
    pub(super) fn hours(&self) -> Range<u32> {
        let hour = |seconds: u64| u32::try_from(seconds / 3600).unwrap_or(u32::MAX);
        let until = self.until.map_or(u32::MAX, |until| hour(until.saturating_add(3599)));
        self.since.map_or(0, hour)..until
    }

    /// Whether sums under `key` are asked for.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.hours().contains(&key.hour)
            && self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == key.tenant)
            && self.function.as_ref().is_none_or(|function| function.as_str() == key.function)
            && self.model.as_ref().is_none_or(|model| model.as_str() == key.model)
    }

    /// Whether a record is asked for.
    pub(super) fn has_record(&self, record: &Record) -> bool {
        let ended_s = record.started_ms.saturating_add(record.wall_us / 1000) / 1000;
        self.since.is_none_or(|since| ended_s >= since)
            && self.until.is_none_or(|until| ended_s < until)
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
            && self.function.as_ref().is_none_or(|function| *function == record.function)
            && self.model.as_ref().is_none_or(|model| record.models.iter().any(|of| of.model == *model))
    }

    /// The key under which sums of `key` are told.
    pub(super) fn group(&self, key: Key) -> Key {
        let hour = match self.by {
            By::Total => 0,
            By::Hour => key.hour,
            By::Day => key.hour - key.hour % 24,
        };
        Key { hour, ..key }
    }

    /// Sums as rows.
    pub(super) fn rows(&self, sums: Sums) -> Vec<UsageRow> {
        let from = |hour: u32| (self.by != By::Total).then(|| when::show(u64::from(hour) * 3600));
        let row = |(key, totals): (Key, Totals)| UsageRow {
            from: from(key.hour),
            tenant: key.tenant,
            function: key.function,
            model: Some(key.model).filter(|model| !model.is_empty()),
            totals,
        };
        sums.into_iter().map(row).collect()
    }
}
