//! What a host shows of itself while it runs: numbers for Prometheus, what guests print, traces.
//!
//! Each function that was called is [`Watched`]: its counters and its last lines. A request is handed that at its
//! beginning and writes to it without a lock; only a line that a guest prints takes one, its function's own.

mod collector;
mod exposition;
mod log;
mod metrics;
mod otlp;
mod serving;
mod timing;
mod trace;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::names::FunctionName;

pub(crate) use collector::unescaped;
pub use collector::{Collector, VariableError};
pub use exposition::{Gauges, Load, UsageCounts, exposition};
pub use log::{Line, Log, Room};
pub use metrics::{Codes, Metrics};
pub use otlp::{Exporter, ExporterError};
pub use serving::Serving;
pub(crate) use timing::{SERVER_TIMING, server_timing};
pub use trace::{TRACEPARENT, Trace};

/// Functions that have metrics under their own name. Those called later, while so many are there, are counted together
/// as `other`: a scrape stays within some megabytes however many functions there are.
pub const MAX_NAMED: usize = 1000;

/// All that is watched.
#[derive(Debug, Default)]
pub struct Telemetry {
    functions: Mutex<Functions>,
    other: Arc<Metrics>,
    /// Requests that led to no function.
    pub lost: Codes,
    /// What became of generations.
    pub serving: Arc<Serving>,
    room: Arc<Room>,
}

#[derive(Debug, Default)]
struct Functions {
    watched: HashMap<FunctionName, Arc<Watched>>,
    named: usize,
}

/// What is seen of one function, through all its revisions.
#[derive(Debug)]
pub struct Watched {
    /// The function.
    pub function: FunctionName,
    /// Its numbers; shared with others if there are very many functions.
    pub metrics: Arc<Metrics>,
    /// What it printed last.
    pub log: Log,
    /// What became of generations, all functions'.
    pub serving: Arc<Serving>,
    named: bool,
}

impl Telemetry {
    /// What is seen of a function, from its first call or its first reader on.
    pub fn watch(&self, function: &FunctionName) -> Arc<Watched> {
        let mut functions = self.functions();
        if let Some(watched) = functions.watched.get(function) {
            return watched.clone();
        }
        let named = functions.named < MAX_NAMED;
        functions.named += usize::from(named);
        let metrics = if named { Arc::default() } else { self.other.clone() };
        let (log, serving) = (Log::new(self.room.clone()), self.serving.clone());
        let watched = Watched { function: function.clone(), metrics, log, serving, named };
        let watched = Arc::new(watched);
        functions.watched.insert(function.clone(), watched.clone());
        watched
    }

    /// Forgets a function that was removed. Who reads its lines is told that there will be no more.
    pub fn forget(&self, function: &FunctionName) {
        let mut functions = self.functions();
        if let Some(watched) = functions.watched.remove(function) {
            functions.named -= usize::from(watched.named);
            watched.log.close();
        }
    }

    /// Those with metrics of their own, by name.
    fn named(&self) -> Vec<Arc<Watched>> {
        let functions = self.functions();
        let mut named: Vec<_> = functions.watched.values().filter(|watched| watched.named).cloned().collect();
        drop(functions);
        named.sort_by(|a, b| a.function.cmp(&b.function));
        named
    }

    fn functions(&self) -> MutexGuard<'_, Functions> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_functions_have_a_name() {
        let telemetry = Telemetry::default();
        let name = |n: usize| format!("f{n}").parse::<FunctionName>().unwrap();
        let all: Vec<_> = (0..MAX_NAMED + 10).map(|n| telemetry.watch(&name(n))).collect();
        assert_eq!(telemetry.named().len(), MAX_NAMED);
        assert!(Arc::ptr_eq(&all[MAX_NAMED].metrics, &all[MAX_NAMED + 9].metrics), "counted together");
        assert!(Arc::ptr_eq(&all[3], &telemetry.watch(&name(3))), "the same whoever asks");
        telemetry.forget(&name(MAX_NAMED + 5));
        telemetry.forget(&name(5));
        telemetry.watch(&name(5000));
        assert_eq!(telemetry.named().len(), MAX_NAMED, "one that goes makes room for one");
    }
}
