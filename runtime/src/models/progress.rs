//! How far a pull is: for a progress bar, and as the lines of JSON that Ollama's clients read.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What a pull is doing.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// It asks what there is to get.
    Looking,
    /// Another pull gets the same file; this one waits for it.
    Waiting {
        /// The file.
        name: &'a str,
    },
    /// Bytes of a file come.
    File {
        /// The file.
        name: &'a str,
        /// What it will be, if that is known.
        digest: Option<Digest>,
        /// Bytes that are here.
        done: u64,
        /// All of them, if that is known.
        total: Option<u64>,
    },
    /// A file is read to see whether it is right.
    Checking {
        /// The file.
        name: &'a str,
        /// Bytes that were looked at.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// A file is taken out of an archive, or copied.
    Unpacking {
        /// The file.
        name: &'a str,
        /// Bytes that are out.
        done: u64,
        /// All of them.
        total: u64,
    },
    /// All files are here; the name gets its meaning.
    Naming,
}

/// A line as Ollama's `/api/pull` streams them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullLine {
    /// What is done: `pulling manifest`, `pulling 6a1b2c3d4e5f`, `verifying sha256 digest`, `writing manifest`, `success`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// The file's digest, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Those that are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
    /// Why it failed; the last line then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PullLine {
    /// A line with nothing but what is done.
    pub fn status(status: impl Into<String>) -> Self {
        Self { status: status.into(), ..Self::default() }
    }

    /// The last line of a pull that succeeded.
    pub fn success() -> Self {
        Self::status("success")
    }

    /// The last line of one that did not.
    pub fn error(error: &dyn std::fmt::Display) -> Self {
        Self { error: Some(error.to_string()), ..Self::default() }
    }
}

impl From<&Progress<'_>> for PullLine {
    fn from(progress: &Progress<'_>) -> Self {
        match *progress {
            Progress::Looking => Self::status("pulling manifest"),
            Progress::Waiting { name } => Self::status(format!("waiting for another pull of {name}")),
            Progress::File { name, digest, done, total } => Self {
                status: format!("pulling {}", digest.map_or(name.to_owned(), |digest| digest.short())),
                digest,
                total,
                completed: Some(done),
                error: None,
            },
            Progress::Checking { .. } => Self::status("verifying sha256 digest"),
            Progress::Unpacking { name, done, total } => {
                Self { total: Some(total), completed: Some(done), ..Self::status(format!("unpacking {name}")) }
            }
            Progress::Naming => Self::status("writing manifest"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_ollamas_clients_read_them() {
        let digest = Digest::of(b"abc");
        let line = |progress: &Progress<'_>| serde_json::to_value(PullLine::from(progress)).unwrap();
        assert_eq!(line(&Progress::Looking), serde_json::json!({ "status": "pulling manifest" }));
        let file = Progress::File { name: "x", digest: Some(digest), done: 5, total: Some(9) };
        let expected = serde_json::json!({
            "status": "pulling ba7816bf8f01", "digest": digest.to_string(), "total": 9, "completed": 5,
        });
        assert_eq!(line(&file), expected);
        let unnamed = Progress::File { name: "config.json", digest: None, done: 5, total: None };
        assert_eq!(line(&unnamed), serde_json::json!({ "status": "pulling config.json", "completed": 5 }));
        let error = serde_json::to_string(&PullLine::error(&"no room")).unwrap();
        assert_eq!(error, r#"{"error":"no room"}"#);
    }
}
