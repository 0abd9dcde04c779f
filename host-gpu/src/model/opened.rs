//! A model's files in whichever format, opened and checked as far as their headers go.

use super::checkpoint::Checkpoint;
use super::config::{Config, ModelInfo};
use super::tokenizer::Tokenizer;
use super::weights::{self, Weights};
use crate::format::FormatError;
use crate::format::gguf::Gguf;
use std::path::Path;
use std::sync::Arc;

pub(super) enum Opened {
    Gguf(Arc<Gguf>),
    Checkpoint(Box<Checkpoint>),
}

impl Opened {
    /// Opens a GGUF file, all shards of one, or a folder with a checkpoint.
    pub(super) fn open(path: &Path) -> Result<Self, FormatError> {
        match path.is_dir() {
            true => Ok(Self::Checkpoint(Checkpoint::open(path)?.into())),
            false => Ok(Self::Gguf(Gguf::open(path)?.into())),
        }
    }

    pub(super) fn config(&self) -> Result<Config, FormatError> {
        match self {
            Self::Gguf(file) => Config::read(file.header()),
            Self::Checkpoint(checkpoint) => Ok(checkpoint.config().clone()),
        }
    }

    pub(super) fn info(&self) -> Result<ModelInfo, FormatError> {
        match self {
            Self::Gguf(file) => ModelInfo::read(file.header()),
            Self::Checkpoint(checkpoint) => Ok(checkpoint.info()),
        }
    }

    /// Brings the weights into memory; `at` is told how many bytes of how many are there, and says whether to go on.
    pub(super) fn populate(&self, at: impl Fn(u64, u64) -> bool) {
        let files = match self {
            Self::Gguf(file) => file.files(),
            Self::Checkpoint(checkpoint) => checkpoint.files(),
        };
        let total = files.iter().map(|file| file.bytes().len() as u64).sum();
        let mut before = 0;
        for file in files.iter() {
            if !file.populate(|done| at(before + done as u64, total)) {
                return;
            }
            before += file.bytes().len() as u64;
        }
    }

    pub(super) fn weights(&self, config: &Config) -> Result<Weights, FormatError> {
        match self {
            Self::Gguf(file) => Weights::find(file.files().clone(), &file.header().tensors, &weights::GGUF, config),
            Self::Checkpoint(checkpoint) => checkpoint.weights(),
        }
    }

    pub(super) fn tokenizer(&self) -> Result<Tokenizer, FormatError> {
        match self {
            Self::Gguf(file) => Tokenizer::read(file.clone()),
            Self::Checkpoint(checkpoint) => checkpoint.tokenizer(),
        }
    }

    /// The source of the chat template.
    pub(super) fn template(&self) -> Option<String> {
        match self {
            Self::Gguf(file) => file.header().text("tokenizer.chat_template").ok().flatten().map(str::to_owned),
            Self::Checkpoint(checkpoint) => checkpoint.template().map(str::to_owned),
        }
    }
}
