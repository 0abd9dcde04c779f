//! What there is to get for a model: files, each with where its bytes come from and what they must be.

use std::path::PathBuf;

use super::fetch::Remote;
use super::store::{Defaults, FilePath};
use super::wanted::Package;
use crate::digest::Digest;

/// No model has more files.
pub const MOST_FILES: usize = 4096;

/// The files of a model, and what comes with them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The files.
    pub files: Vec<Planned>,
    /// Where exactly they come from, as it is written down.
    pub source: String,
    /// Whether nothing else will ever come from there.
    pub exact: bool,
    /// What to do when files are refused.
    pub gate: Option<Gate>,
    /// What its maker says about using it.
    pub defaults: Defaults,
}

/// What it means when a server refuses the files that it lists.
#[derive(Clone, Debug)]
pub struct Gate {
    /// What its addresses begin with.
    pub server: String,
    /// The way out.
    pub way: String,
}

/// A file of a model.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What it is called among the model's files.
    pub path: FilePath,
    /// Where its bytes come from.
    pub content: Content,
}

/// Where a file's bytes come from.
#[derive(Clone, Debug)]
pub enum Content {
    /// A server.
    Remote(Remote),
    /// Members of archives, joined in order.
    Joined {
        /// The archives, and the member that is taken of each.
        parts: Vec<(Remote, Package)>,
        /// What comes out, where that is known.
        expect: Option<Digest>,
        /// Its bytes, where that is known.
        bytes: Option<u64>,
    },
    /// A folder of an archive, and what makes up a model there: known when the archive is here.
    Folder {
        /// The archive.
        archive: Remote,
        /// The folder, with a slash at its end.
        folder: String,
    },
    /// A file of this machine.
    Disk(PathBuf),
}

impl Content {
    /// Its digest, where that is known before it is here.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Remote(remote) => remote.digest(),
            Self::Joined { expect, .. } => *expect,
            Self::Folder { .. } | Self::Disk(_) => None,
        }
    }

    /// How many bytes it has, where that is known before it is here.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Remote(remote) => remote.bytes,
            Self::Joined { bytes, .. } => *bytes,
            Self::Folder { .. } | Self::Disk(_) => None,
        }
    }
}

impl Plan {
    /// One file.
    pub fn one(path: FilePath, content: Content, source: String) -> Self {
        Self { files: vec![Planned { path, content }], source, exact: true, gate: None, defaults: Defaults::default() }
    }
}
