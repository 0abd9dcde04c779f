//! Tokens that were taken since a moment a little while ago: what a host that starts must know of the minute that runs.
//!
//! A record says what an invocation used in all, not when. But one that runs on is written down more than twice a second, so each frame of
//! the journal tells what came since the frame before it: that counts for the time at which the frame was written.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::frame::Frame;
use super::journal::{self, Frames};
use crate::names::{FunctionName, Tenant};

/// Tokens of prompts and answers, by whose they are, that were told of after `since_ms`.
pub(super) fn tokens(folder: &Path, since_ms: u64) -> io::Result<Vec<(Tenant, FunctionName, u64)>> {
    let mut files = Vec::new();
    for (_, path) in journal::files(folder)?.into_iter().rev() {
        if std::fs::metadata(&path)?.modified()? < UNIX_EPOCH + Duration::from_millis(since_ms) {
            break;
        }
        // One that began before then says what ran at its beginning, and had used by then.
        let is_old = Frames::open(&path)?.next().is_some_and(|first| first.at_ms < since_ms);
        files.push(path);
        if is_old {
            break;
        }
    }
    let mut taken = Taken { since_ms, told: HashMap::new(), sums: BTreeMap::new() };
    for path in files.into_iter().rev() {
        Frames::open(&path)?.for_each(|frame| taken.note(&frame));
    }
    Ok(taken.sums.into_iter().map(|((tenant, function), tokens)| (tenant, function, tokens)).collect())
}

struct Taken {
    since_ms: u64,
    /// What each invocation was last said to have used: by what its process's ids begin with, and its number.
    told: HashMap<(u32, u64), u64>,
    sums: BTreeMap<(Tenant, FunctionName), u64>,
}

impl Taken {
    fn note(&mut self, frame: &Frame) {
        for row in frame.running.iter().chain(&frame.ended) {
            let tokens = row.tokens();
            let told = self.told.entry((frame.start, row.number)).or_default();
            let more = tokens.saturating_sub(*told);
            *told += more;
            if more > 0
                && frame.at_ms >= self.since_ms
                && let Some((function, tenant)) = frame.owner(row)
            {
                *self.sums.entry((tenant.clone(), function.clone())).or_default() += more;
            }
        }
    }
}
