//! Why a model's files cannot be used: one enum for all readers.

/// Why a file is not a usable model.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a gguf file: it starts with {found:02x?} instead of \"GGUF\"; give a .gguf model")]
    NotGguf {
        /// The bytes that are there.
        found: Vec<u8>,
    },
    /// A version this reader does not know.
    #[error("gguf version {found} is not supported (2 and 3 are); convert the model again")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The file ends before something it announces.
    #[error("the file is truncated: {what} at byte {offset} needs {needed} bytes, the file has {len}; pull it again")]
    Truncated {
        /// The field or tensor.
        what: String,
        /// Where it starts.
        offset: u64,
        /// How long it is.
        needed: u64,
        /// How long the file is.
        len: u64,
    },
    /// A field holds a value that cannot be.
    #[error("the file is corrupt: {what} at byte {offset}: {problem}; pull it again")]
    Corrupt {
        /// The field or tensor.
        what: String,
        /// Where it stands.
        offset: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A metadata key that this model must have is absent or of another type.
    #[error("metadata `{key}`: {problem}; convert the model again")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A key of a JSON file beside the weights is absent or of another type.
    #[error("{file}: `{key}` {problem}; get the checkpoint again")]
    Setting {
        /// The file.
        file: &'static str,
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The files of a model do not belong together.
    #[error("{file} {problem}; get all files of the model, and keep them in one folder under their own names")]
    Shards {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// One of the files of a model is unsound.
    #[error("{file}: {why}")]
    InFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: Box<FormatError>,
    },
    /// The file is sound, and needs something we do not have.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// What the file needs.
        what: String,
        /// What would work.
        supported: String,
    },
}

impl FormatError {
    /// The same, in `file`.
    pub(crate) fn within(self, file: &std::path::Path) -> Self {
        Self::InFile { file: file_name(file), why: Box::new(self) }
    }
}

/// The last part of a path, for messages.
pub(crate) fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
