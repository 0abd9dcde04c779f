//! A model that is on this machine already: a file, all shards of one, or a folder with a checkpoint.

use std::path::Path;

use super::checkpoint::{self, Choice};
use crate::models::error::PullError;
use crate::models::plan::{Content, Plan, Planned};
use crate::models::shards;
use crate::models::store::{Defaults, FilePath};

/// A folder with more files is no model's.
const MOST_ENTRIES: usize = 10_000;

/// The files at `path`.
pub(super) fn plan(path: &Path) -> Result<Plan, PullError> {
    let shown = path.display().to_string();
    let unreadable = |why| PullError::File { path: shown.clone(), why };
    let choice = |why: String| PullError::Choice { what: shown.clone(), why };
    let path = path.canonicalize().map_err(unreadable)?;
    let (folder, names) = if path.is_dir() {
        let mut names = Vec::new();
        for (number, entry) in std::fs::read_dir(&path).map_err(unreadable)?.enumerate() {
            if number == MOST_ENTRIES {
                return Err(choice(format!("has more than {MOST_ENTRIES} files: it is no model's folder")));
            }
            let entry = entry.map_err(unreadable)?;
            if entry.path().is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        if path.join("1_Pooling/config.json").is_file() {
            names.push("1_Pooling/config.json".into());
        }
        names.sort();
        let chosen = match checkpoint::choose(&names, None).map_err(choice)? {
            Choice::Gguf(files) | Choice::Checkpoint(files) => files,
            Choice::Indexed(mut files) => {
                let index = std::fs::read(path.join(checkpoint::INDEX)).map_err(unreadable)?;
                files.extend(checkpoint::indexed(&index, &names).map_err(choice)?);
                files
            }
        };
        (path.clone(), chosen)
    } else {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| choice("has no plain name".into()))?;
        let names = shards::of(name).map_or(vec![name.to_owned()], |shard| shard.all());
        (path.parent().unwrap_or(&path).to_owned(), names)
    };
    let mut files = Vec::new();
    for name in names {
        let from = folder.join(&name);
        if !from.is_file() {
            return Err(choice(format!("is one file of several, and {} is not there", from.display())));
        }
        let path: FilePath = name.try_into().map_err(|error| choice(format!("has a file that {error}")))?;
        files.push(Planned { path, content: Content::Disk(from) });
    }
    Ok(Plan {
        files,
        source: format!("file:{}", path.display()),
        exact: false,
        gate: None,
        defaults: Defaults::default(),
    })
}
