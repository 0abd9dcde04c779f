//! A folder as Hugging Face has models: `config.json`, tokenizer and templates beside safetensors.
//!
//! What sets the classes of models apart is the table [`CLASSES`]; the sizes are in `config.json`,
//! with the names that transformers gives them. Unlike GGUF, q and k turn in halves everywhere, norms of
//! Gemma lack the one that is added, and the factors of a stretched rotation are computed here.

use super::architecture::{Architecture, GEMMA, GEMMA2, GEMMA3, Gate, LLAMA, PHI3, Pairs, QWEN2, QWEN3};
use super::config::{Config, MAX_CONTEXT, MAX_DIM, ModelInfo};
use super::tokenizer::Tokenizer;
use super::weights::{Naming, Weights};
use crate::ask::TokenId;
use crate::format::FormatError;
use crate::format::safetensors::{Safetensors, json_error, read_text};
use serde_json::Value;
use settings::Settings;
use std::path::{Path, PathBuf};

mod rope;
mod settings;

/// A class of models.
struct Class {
    /// The entry of `architectures` in `config.json`.
    name: &'static str,
    architecture: &'static Architecture,
    naming: &'static Naming,
    windows: Windows,
    /// What `sliding_window` is if the file does not have it.
    window: Option<u64>,
    /// What `head_dim` is if the file does not have it: this, or width / heads.
    head_dim: Option<u64>,
    /// What `rope_theta` is if the file does not have it.
    theta: f64,
    /// Whether the head is the embedding, unless the file says otherwise.
    tied: bool,
}

/// Which layers have a window, if the file does not list them.
#[derive(Clone, Copy, PartialEq)]
enum Windows {
    Never,
    /// All, and the list does not count.
    Always,
    /// All but every so many; the file may have another number.
    Most(usize),
    /// Those from `max_window_layers` on, if `use_sliding_window`.
    Late,
}

/// Checkpoints have q and k as they were trained: halves turn together.
static LLAMA_IN_HALVES: Architecture = Architecture { pairs: Pairs::Halves, ..LLAMA };

const LLAMA_CLASS: Class = Class {
    name: "LlamaForCausalLM",
    architecture: &LLAMA_IN_HALVES,
    naming: &PLAIN,
    windows: Windows::Never,
    window: None,
    head_dim: None,
    theta: 10_000.0,
    tied: false,
};

/// After the configuration classes of transformers 5.24.0.
static CLASSES: &[Class] = &[
    LLAMA_CLASS,
    Class { name: "MistralForCausalLM", windows: Windows::Always, window: Some(4096), ..LLAMA_CLASS },
    Class { name: "Qwen2ForCausalLM", architecture: &QWEN2, windows: Windows::Late, window: Some(4096), ..LLAMA_CLASS },
    Class {
        name: "Qwen3ForCausalLM",
        architecture: &QWEN3,
        windows: Windows::Late,
        window: Some(4096),
        head_dim: Some(128),
        ..LLAMA_CLASS
    },
    GEMMA_CLASS,
    Class {
        name: "Gemma2ForCausalLM",
        architecture: &GEMMA2,
        naming: &BETWEEN_NORMS,
        windows: Windows::Most(2),
        window: Some(4096),
        ..GEMMA_CLASS
    },
    Class {
        name: "Gemma3ForCausalLM",
        architecture: &GEMMA3,
        naming: &BETWEEN_NORMS,
        windows: Windows::Most(6),
        window: Some(4096),
        theta: 1_000_000.0,
        ..GEMMA_CLASS
    },
    Class { name: "Phi3ForCausalLM", architecture: &PHI3, naming: &FUSED, windows: Windows::Always, ..LLAMA_CLASS },
];

const GEMMA_CLASS: Class = Class {
    name: "GemmaForCausalLM",
    architecture: &GEMMA,
    naming: &ONE_ADDED,
    head_dim: Some(256),
    tied: true,
    ..LLAMA_CLASS
};

const PLAIN: Naming = Naming {
    of: |name| named(name, "post_attention_layernorm"),
    // Early checkpoints stored the frequencies, and a head that is the embedding may be there once more.
    counts: |name| !name.ends_with(".rotary_emb.inv_freq") && name != "lm_head.weight",
    tied: None,
    norm_offset: 0.0,
};

const ONE_ADDED: Naming = Naming { norm_offset: 1.0, ..PLAIN };

/// With norms after attention and feed-forward, the one before the latter has another name.
const BETWEEN_NORMS: Naming = Naming { of: |name| named(name, "pre_feedforward_layernorm"), ..ONE_ADDED };

/// Gate and up are one tensor, which llama.cpp calls by the name of the second.
const FUSED: Naming =
    Naming { of: |name| named(name, "post_attention_layernorm").replace("mlp.up_proj", "mlp.gate_up_proj"), ..PLAIN };

/// The parts of a layer: llama.cpp's names, by which we call them, and transformers'.
const PARTS: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// What transformers calls the tensor that llama.cpp calls `name`.
fn named(name: &str, ff_norm: &str) -> String {
    let whole = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => "",
    };
    let mut parts = name.splitn(4, '.');
    let (Some("blk"), Some(layer), Some(part), Some(kind)) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return whole.to_owned();
    };
    let part = match part {
        "ffn_norm" => ff_norm,
        _ => PARTS.iter().find(|(ours, _)| *ours == part).map_or(part, |(_, theirs)| theirs),
    };
    format!("model.layers.{layer}.{part}.{kind}")
}

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
        let text = read_text(folder, CONFIG, MAX_CONFIG)?.ok_or_else(|| missing(CONFIG))?;
        let (config, naming, mut ends) = read_config(&text)?;
        if let Some(more) = json(folder, "generation_config.json", MAX_CONFIG)? {
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

    /// Brings all files into memory.
    pub(crate) fn populate(&self) {
        self.weights.files.iter().for_each(|file| file.populate());
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
        let text = read_text(&self.folder, NAME, MAX_TOKENIZER)?.ok_or_else(|| FormatError::Io {
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
fn json(folder: &Path, name: &'static str, most: u64) -> Result<Option<Value>, FormatError> {
    let Some(text) = read_text(folder, name, most)? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).map_err(|e| json_error(name, &text, 0, &e))
}

/// The chat template: a file of its own, or in the tokenizer's configuration, where it may be one of several.
fn template(folder: &Path) -> Result<Option<String>, FormatError> {
    const FILE: &str = "chat_template.jinja";
    const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
    if let Some(text) = read_text(folder, FILE, MAX_CONFIG)? {
        let unsound = |e: std::string::FromUtf8Error| FormatError::Corrupt {
            what: FILE.into(),
            offset: e.utf8_error().valid_up_to() as u64,
            problem: "not utf-8".into(),
        };
        return String::from_utf8(text).map(Some).map_err(unsound);
    }
    let Some(config) = json(folder, TOKENIZER_CONFIG, MAX_TOKENIZER)? else { return Ok(None) };
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
    let value: Value = serde_json::from_slice(text).map_err(|e| json_error(CONFIG, text, 0, &e))?;
    let settings = Settings::new(CONFIG, &value);
    let class = class(settings)?;
    let config = shape(class, settings)?;
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

fn class(settings: Settings<'_>) -> Result<&'static Class, FormatError> {
    let name = settings.value("architectures").and_then(|list| list[0].as_str());
    let name = name.ok_or_else(|| settings.wrong("architectures", "names no class".into()))?;
    let names = || CLASSES.iter().map(|class| class.name).collect::<Vec<_>>().join(", ");
    let class = CLASSES.iter().find(|class| class.name == name);
    let class = class.ok_or_else(|| FormatError::Unsupported {
        what: format!("class {:?}", name.chars().take(60).collect::<String>()),
        supported: names(),
    })?;
    if settings.value("quantization_config").is_some() {
        let what = "a checkpoint with a `quantization_config`".into();
        let supported = "F32, F16 and BF16, to be quantised as they are loaded; or GGUF".into();
        return Err(FormatError::Unsupported { what, supported });
    }
    if settings.flag("use_bidirectional_attention")? == Some(true) {
        let (what, supported) = ("`use_bidirectional_attention`", "causal attention");
        return Err(FormatError::Unsupported { what: what.into(), supported: supported.into() });
    }
    Ok(class)
}

fn shape(class: &Class, s: Settings<'_>) -> Result<Config, FormatError> {
    let a = class.architecture;
    check_gate(a, s)?;
    let need = |key| s.need(key, MAX_DIM);
    let (layers, width, heads) = (need("num_hidden_layers")?, need("hidden_size")?, need("num_attention_heads")?);
    if layers > 1024 {
        return Err(s.wrong("num_hidden_layers", format!("is {layers}, more than 1024")));
    }
    let head_dim = s.number("head_dim", MAX_DIM)?.or(class.head_dim).map_or(width / heads, |n| n as usize);
    let context = s.need("max_position_embeddings", MAX_CONTEXT)?;
    let scored = match a.name {
        "gemma2" | "gemma3" => s.float("query_pre_attn_scalar")?.unwrap_or(256.0),
        _ => head_dim as f64,
    };
    if !(1e-6..=1e6).contains(&scored) {
        return Err(s.wrong("query_pre_attn_scalar", format!("is {scored}, not from 1e-6 to 1e6")));
    }
    // `null` is no limit; a file that lacks the key has the class's.
    let cap = |key, usual: Option<f64>| -> Result<Option<f32>, FormatError> {
        let given = if s.has(key) { s.float(key)? } else { usual };
        Ok(given.filter(|cap| *cap != 0.0).map(|cap| cap as f32))
    };
    let (window, windowed) = windows(class, s, layers)?;
    let rope_dims = rope::dims(s, head_dim)?;
    let config = Config {
        architecture: a,
        layers,
        width,
        ff: need("intermediate_size")?,
        heads,
        kv_heads: s.number("num_key_value_heads", MAX_DIM)?.map_or(heads, |n| n as usize),
        head_dim,
        rope_dims,
        rope: rope::read(s, class.theta, rope_dims, context)?,
        local_rope: a.local_rope_base.map(|base| rope::local(s, base)).transpose()?,
        window,
        windowed,
        score_scale: (scored as f32).sqrt().recip(),
        score_cap: cap("attn_logit_softcapping", a.score_cap)?,
        logit_cap: cap("final_logit_softcapping", a.logit_cap)?,
        embedding_scale: if a.scaled_embedding { (width as f32).sqrt() } else { 1.0 },
        norm_eps: s.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        context,
        vocab: need("vocab_size")?,
    };
    config.check().map_err(|(key, problem)| s.wrong(called(key), problem))?;
    Ok(config)
}

/// What `config.json` calls what GGUF calls `key`.
fn called(key: &'static str) -> &'static str {
    match key {
        "block_count" => "num_hidden_layers",
        "attention.head_count" => "num_attention_heads",
        "attention.head_count_kv" => "num_key_value_heads",
        "attention.key_length" => "head_dim",
        "attention.layer_norm_rms_epsilon" => "rms_norm_eps",
        "rope.dimension_count" => "partial_rotary_factor",
        "rope.freq_base" => "rope_theta",
        "rope.freq_base_swa" => "rope_local_base_freq",
        "rope.scaling.factor" => "rope_scaling.factor",
        other => other,
    }
}

/// Refuses another activation than the one that the class is known for.
fn check_gate(a: &Architecture, s: Settings<'_>) -> Result<(), FormatError> {
    // The first Gemma's files say `gelu` and mean the other.
    let known: &[&str] = match a.gate {
        Gate::Silu => &["silu", "swish"],
        Gate::GeluTanh if a.name == "gemma" => &["gelu_pytorch_tanh", "gelu"],
        Gate::GeluTanh => &["gelu_pytorch_tanh"],
    };
    for key in ["hidden_activation", "hidden_act"] {
        // Gemma 2 and 3 go by the first and may have the other.
        let counts = key == "hidden_activation" || s.value("hidden_activation").is_none();
        if let Some(name) = s.text(key)?.filter(|name| counts && !known.contains(name)) {
            let what = format!("`{key}` {:?} in this architecture", name.chars().take(40).collect::<String>());
            return Err(FormatError::Unsupported { what, supported: known[0].into() });
        }
    }
    Ok(())
}

/// The window, and the layers that have it.
fn windows(class: &Class, s: Settings<'_>, layers: usize) -> Result<(Option<usize>, Vec<bool>), FormatError> {
    const KEY: &str = "sliding_window";
    let tokens = if s.has(KEY) { s.number(KEY, MAX_CONTEXT)? } else { class.window };
    let tokens = match class.windows {
        Windows::Never => None,
        Windows::Late if s.flag("use_sliding_window")? != Some(true) => None,
        Windows::Most(_) => Some(tokens.ok_or_else(|| s.wrong(KEY, "is null".into()))?),
        Windows::Always | Windows::Late => tokens,
    };
    if tokens == Some(0) {
        return Err(s.wrong(KEY, "is zero".into()));
    }
    let listed = s.value("layer_types").filter(|_| matches!(class.windows, Windows::Most(_) | Windows::Late));
    let covered = match (listed, class.windows) {
        (Some(types), _) => layer_types(s, types, layers)?,
        (None, Windows::Never) => vec![false; layers],
        (None, Windows::Always) => vec![true; layers],
        (None, Windows::Most(usual)) => {
            let period = s.number("sliding_window_pattern", MAX_DIM)?.map_or(usual, |n| n as usize).max(1);
            (0..layers).map(|layer| !(layer + 1).is_multiple_of(period)).collect()
        }
        (None, Windows::Late) => {
            let first = s.number("max_window_layers", MAX_DIM)?.unwrap_or(28) as usize;
            (0..layers).map(|layer| layer >= first).collect()
        }
    };
    Ok((tokens.map(|n| n as usize), covered))
}

fn layer_types(s: Settings<'_>, types: &Value, layers: usize) -> Result<Vec<bool>, FormatError> {
    const KEY: &str = "layer_types";
    let types = types.as_array().filter(|types| types.len() == layers);
    let types = types.ok_or_else(|| s.wrong(KEY, format!("is no list with an entry for each of {layers} layers")))?;
    let covers = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(FormatError::Unsupported {
            what: "an entry of `layer_types`".into(),
            supported: "sliding_attention, full_attention".into(),
        }),
    };
    types.iter().map(covers).collect()
}
