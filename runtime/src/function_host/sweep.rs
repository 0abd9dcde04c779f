//! What no revision names any more: its component, what that was compiled to, and its secrets are removed.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Host;
use super::function::Revision;
use super::table::Table;
use crate::digest::Digest;

/// A component that was uploaded is kept this long for the deployment that is to follow.
const UPLOADED: Duration = Duration::from_secs(3600);
/// What a component that no revision names compiled to is kept this long after its last use.
const COMPILED: Duration = Duration::from_secs(30 * 24 * 3600);

impl Host {
    /// Removes what only `dropped` revisions named.
    pub(super) fn sweep(&self, table: &Table, dropped: &[Arc<Revision>]) {
        for revision in dropped {
            if !revision.record.config.secrets.is_empty() {
                remove(&self.data.secrets(&revision.function, revision.record.id));
            }
        }
        let mut gone: HashSet<Digest> = dropped.iter().flat_map(|revision| components_of(revision)).collect();
        if gone.is_empty() {
            return;
        }
        for digest in named(table) {
            gone.remove(&digest);
        }
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.retain(|_, at| at.elapsed() < UPLOADED);
        for digest in gone.iter().filter(|digest| !uploads.contains_key(digest)) {
            tracing::info!(component = digest.short(), "no revision names it any more: removed");
            remove(&self.data.component(digest));
            remove(&self.data.compiled(self.components.engine().compatibility(), digest));
        }
    }

    /// Removes what a process that died left behind: it owns the directory now.
    pub(super) fn sweep_all(&self, table: &Table) {
        let named: HashSet<Digest> = named(table).collect();
        let engine = self.components.engine().compatibility();
        for (path, digest) in self.data.kept_components() {
            if !named.contains(&digest) && is_older(&path, UPLOADED) {
                remove(&path);
                remove(&self.data.compiled(engine, &digest));
            }
        }
        self.data.remove_compiled_but_for(engine);
        // What programs that embed the host called, and `hob run` ran, is named nowhere.
        for (path, digest) in self.data.kept_compiled(engine) {
            if !named.contains(&digest) && is_older(&path, COMPILED) {
                remove(&path);
            }
        }
        self.data.remove_secrets_but_for(|function, revision| {
            table.get(function).is_some_and(|function| function.revisions.contains_key(&revision))
        });
    }
}

fn named(table: &Table) -> impl Iterator<Item = Digest> + '_ {
    table.functions().flat_map(|function| function.revisions.values().flat_map(|revision| components_of(revision)))
}

/// The component of a revision, and what that was made of.
fn components_of(revision: &Revision) -> impl Iterator<Item = Digest> + '_ {
    let record = &revision.record;
    [record.component].into_iter().chain(record.parts.iter().map(|part| part.component))
}

fn is_older(path: &Path, most: Duration) -> bool {
    let modified = path.metadata().and_then(|file| file.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > most))
}

/// What cannot be removed only takes room; the next start tries again.
fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "left-over file could not be removed");
    }
}
