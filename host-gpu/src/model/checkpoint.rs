//! A folder as Hugging Face has models: `config.json`, tokenizer and templates beside safetensors.
//!
//! What sets the classes of models apart is the table in `class`; the sizes are in `config.json`, with
//! the names that transformers gives them, which `shape` and `rope` read. Unlike GGUF, q and k turn in halves
//! everywhere, norms of Gemma lack the one that is added, and the factors of a stretched rotation are computed.

use super::config::{Config, ModelInfo};
use super::tokenizer::Tokenizer;
use super::weights::{Naming, Weights};
use crate::ask::TokenId;
use crate::format::FormatError;
use crate::format::json;
use crate::format::mapped::Mapped;
use crate::format::safetensors::Safetensors;
use serde_json::Value;
use settings::Settings;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod class;
mod encoder;
mod rope;
mod settings;
mod shape;

/// No `config.json` is longer; `tokenizer.json` of Gemma has 33 MB.
const MAX_CONFIG: u64 = 4 << 20;
const MAX_TOKENIZER: u64 = 256 << 20;
const CONFIG: &str = "config.json";

/// A checkpoint whose headers and configuration were read.
pub(crate) struct Checkpoint {
    folder: PathBuf,
    weights: Safetensors,
    config: Config,
    naming: Naming,
    /// The tokens that end an answer, the usual one first.
    ends: Vec<TokenId>,
    template: Option<String>,
}

impl Checkpoint {
    /// Reads the checkpoint in `folder`, without tokenizer and weights.
    ///
    /// # Errors
    /// Names the file, and the key or tensor in it, that is missing, damaged or not supported.
    pub(crate) fn open(folder: &Path) -> Result<Self, FormatError> {
        let missing = |name: &str| FormatError::Io {
            path: folder.join(name).display().to_string(),
            reason: "there is no such file; a checkpoint has it beside its weights".into(),
        };
        let text = json::read(folder, CONFIG, MAX_CONFIG)?.ok_or_else(|| missing(CONFIG))?;
        let (mut config, naming, mut ends) = read_config(&text)?;
        if config.architecture.encoder {
            encoder::sentences(folder, &mut config)?;
        }
        if let Some(more) = parsed(folder, "generation_config.json", MAX_CONFIG)? {
            let more = eos(Settings::new("generation_config.json", &more), config.vocab)?;
            ends.retain(|end| !more.contains(end));
            ends.splice(0..0, more);
        }
        Ok(Self {
            folder: folder.into(),
            weights: Safetensors::open(folder)?,
            config,
            naming,
            ends,
            template: template(folder)?,
        })
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The mapped files of the weights.
    pub(crate) fn files(&self) -> &Arc<[Mapped]> {
        &self.weights.files
    }

    /// The source of the chat template.
    pub(crate) fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// What there is to show.
    pub(crate) fn info(&self) -> ModelInfo {
        ModelInfo {
            architecture: self.config.architecture.name.into(),
            context_tokens: self.config.context as u32,
            vocab: self.config.vocab as u32,
            layers: self.config.layers as u32,
            embedding: self.config.width as u32,
            generates: !self.config.architecture.encoder,
            has_chat_template: self.template.is_some(),
            chat_template: self.template().and_then(super::template::family),
            memory: Ok(self.config.memory()),
            ..ModelInfo::of_tensors(&self.weights.tensors)
        }
    }

    /// Finds every tensor.
    ///
    /// # Errors
    /// As [`Weights::find`].
    pub(crate) fn weights(&self) -> Result<Weights, FormatError> {
        Weights::find(self.weights.files.clone(), &self.weights.tensors, &self.naming, &self.config)
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::from_json`]; `Setting` if it has more tokens than the model.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, FormatError> {
        const NAME: &str = "tokenizer.json";
        let text = json::read(&self.folder, NAME, MAX_TOKENIZER)?.ok_or_else(|| FormatError::Io {
            path: self.folder.join(NAME).display().to_string(),
            reason: "there is no such file; save the tokenizer in its fast form".into(),
        })?;
        let tokenizer = Tokenizer::from_json(&text, &self.ends)?;
        if tokenizer.vocab_len() > self.config.vocab {
            let problem = format!("is {}, and {NAME} has {} tokens", self.config.vocab, tokenizer.vocab_len());
            return Err(FormatError::Setting { file: CONFIG, key: "vocab_size".into(), problem });
        }
        Ok(tokenizer)
    }
}

/// The JSON file `name` in `folder`.
fn parsed(folder: &Path, name: &'static str, most: u64) -> Result<Option<Value>, FormatError> {
    let Some(text) = json::read(folder, name, most)? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).map_err(|e| json::unsound(name, &text, 0, &e))
}

/// The chat template: a file of its own, or in the tokenizer's configuration, where it may be one of several.
fn template(folder: &Path) -> Result<Option<String>, FormatError> {
    const FILE: &str = "chat_template.jinja";
    const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
    if let Some(text) = json::read(folder, FILE, MAX_CONFIG)? {
        let unsound = |e: std::string::FromUtf8Error| FormatError::Corrupt {
            what: FILE.into(),
            offset: e.utf8_error().valid_up_to() as u64,
            problem: "not utf-8".into(),
        };
        return String::from_utf8(text).map(Some).map_err(unsound);
    }
    let Some(config) = parsed(folder, TOKENIZER_CONFIG, MAX_TOKENIZER)? else { return Ok(None) };
    match &config["chat_template"] {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            Ok(default.and_then(|entry| entry["template"].as_str()).map(str::to_owned))
        }
        _ => Err(FormatError::Setting {
            file: TOKENIZER_CONFIG,
            key: "chat_template".into(),
            problem: "is no text".into(),
        }),
    }
}

/// The tokens that end an answer.
fn eos(settings: Settings<'_>, vocab: usize) -> Result<Vec<TokenId>, FormatError> {
    const KEY: &str = "eos_token_id";
    let listed = match settings.value(KEY) {
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    let token = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab as u64);
        let id = id.ok_or_else(|| settings.wrong(KEY, format!("is {value}, and there are {vocab} tokens")))?;
        Ok(TokenId(id as u32))
    };
    listed.iter().take(64).map(token).collect()
}

/// What a whole `config.json` says: the shape, the names, and the tokens that end an answer.
fn read_config(text: &[u8]) -> Result<(Config, Naming, Vec<TokenId>), FormatError> {
    let value: Value = serde_json::from_slice(text).map_err(|e| json::unsound(CONFIG, text, 0, &e))?;
    let settings = Settings::new(CONFIG, &value);
    if encoder::is_encoder(&value) {
        return Ok((encoder::shape(settings)?, encoder::NAMING, Vec::new()));
    }
    let class = shape::class(settings)?;
    let config = shape::shape(class, settings)?;
    let tied = Some(settings.flag("tie_word_embeddings")?.unwrap_or(class.tied));
    let ends = eos(settings, config.vocab)?;
    Ok((config, Naming { tied, ..*class.naming }, ends))
}

/// Reads a whole `config.json`: what fuzzing and `Checkpoint::open` share.
///
/// # Errors
/// `Corrupt` where it is no JSON, `Setting` with the key, `Unsupported` for what the forward pass cannot compute.
pub fn parse_config(text: &[u8]) -> Result<Config, FormatError> {
    read_config(text).map(|(config, ..)| config)
}
