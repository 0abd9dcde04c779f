//! Revisions that wait for their models: loaded behind the scenes, then put into service.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::Host;
use super::function::Function;
use crate::models::{JoinRefusal, Library};
use crate::names::{FunctionName, ModelName};
use crate::traffic::Traffic;

/// Longest wait before a model that found no room is tried again.
const RETRY: Duration = Duration::from_secs(5);

impl Host {
    /// Loads the models of the revisions that `pending` names, on a thread of its own, and then shares requests out so.
    pub(super) fn warm(&self, function: &Function, pending: Traffic) {
        let revisions = pending.shares().filter_map(|(id, _)| function.revisions.get(&id));
        let models: Vec<_> = revisions.flat_map(|revision| revision.record.config.models.clone()).collect();
        let (host, library, name) = (self.me.clone(), self.services.library.clone(), function.record.name.clone());
        let work = move || warm_up(&host, &library, &name, &models, &pending);
        if let Err(error) = std::thread::Builder::new().name("hob-warm".into()).spawn(work) {
            self.note_warming(&function.record.name, format!("no thread to load its models: {error}"));
        }
    }

    fn note_warming(&self, name: &FunctionName, why: String) {
        tracing::warn!(function = %name, why, "its new revision does not take over");
        self.warming.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), why);
    }
}

fn warm_up(host: &Weak<Host>, library: &Arc<Library>, name: &FunctionName, models: &[ModelName], pending: &Traffic) {
    let mut leases = Vec::new();
    for model in models {
        match join(host, library, name, model, pending) {
            Some(Ok(lease)) => leases.push(lease),
            Some(Err(why)) => {
                if let Some(host) = host.upgrade() {
                    host.note_warming(name, why);
                }
                return;
            }
            None => return,
        }
    }
    // With the leases in hand: no model goes between being loaded and being wanted.
    if let Some(host) = host.upgrade()
        && let Err(error) = host.take_over(name, pending)
    {
        host.note_warming(name, error.to_string());
    }
}

/// Joins a model, trying again while there is no room. `None` once nobody wants it any more.
fn join(
    host: &Weak<Host>,
    library: &Library,
    name: &FunctionName,
    model: &ModelName,
    pending: &Traffic,
) -> Option<Result<hob_gpu::Model, String>> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Some(Err(format!("model {model} cannot be joined: {error}"))),
    };
    loop {
        match runtime.block_on(library.join(model)) {
            Err(JoinRefusal::Busy(wait)) => std::thread::sleep(wait.min(RETRY)),
            joined => return Some(joined.map_err(|error| error.to_string())),
        }
        let host = host.upgrade()?;
        let table = host.table.load();
        table.get(name).filter(|function| function.record.pending.as_ref() == Some(pending))?;
    }
}
