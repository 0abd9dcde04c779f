//! The shape of a model, from the metadata of its file. Every number is bounded here, so that
//! later products of them cannot overflow. `checkpoint` reads the same from a `config.json`.

use super::architecture::{self, Architecture, Windows};
use crate::format::FormatError;
use crate::format::gguf::{Header, wrong};
use crate::format::tensor::TensorInfo;
use crate::kv::{KvShape, KvType};
use std::collections::HashMap;

/// No model is larger in any dimension; products of three of these fit 64 bits.
pub(super) const MAX_DIM: u64 = 1 << 20;
/// No sequence is longer.
pub(super) const MAX_CONTEXT: u64 = 1 << 24;

/// What the forward pass must know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the architecture's name alone says.
    pub architecture: &'static Architecture,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward part.
    pub ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Length of a query, key and value. `heads * head_dim` need not be the width.
    pub head_dim: usize,
    /// How many numbers of a head are rotated.
    pub rope_dims: usize,
    /// The rotation of layers that see everything, and of all if there is no other.
    pub rope: Rope,
    /// The rotation of layers with a window, where it is another one.
    pub local_rope: Option<Rope>,
    /// How many tokens, the newest included, a layer with a window attends to.
    pub window: Option<usize>,
    /// Which layers have a window, if there is one.
    pub windowed: Vec<bool>,
    /// Attention scores are products times this.
    pub score_scale: f32,
    /// Attention scores become `cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// Added to the mean square of a norm.
    pub norm_eps: f32,
    /// The longest sequence.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Positions that have an embedding of their own; none where heads turn.
    pub positions: usize,
    /// Which of a text's tokens its embedding is made of.
    pub pooling: Pooling,
}

/// Which of a text's tokens its embedding is made of. Whichever they are, it is scaled to the length 1 then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The first.
    First,
    /// The last, which alone has seen all others where a token sees only those before it.
    #[default]
    Last,
}

/// How heads turn with their position: pair `i` by `position * base^(-2i / rope_dims)`, stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub base: f64,
    /// Every frequency is divided by this.
    pub stretch: f64,
    /// One more divisor for each pair.
    pub factors: Option<Factors>,
    /// What turns is multiplied by this, too.
    pub magnitude: f64,
}

/// Divisors of the frequencies, one for each pair.
#[derive(Clone, Debug, PartialEq)]
pub enum Factors {
    /// In the tensor of this name.
    Tensor(&'static str),
    /// As they are.
    Given(Vec<f32>),
}

/// What `hob models show` prints.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The architecture's name in the file.
    pub architecture: String,
    /// How many weights there are.
    pub parameters: u64,
    /// The element type that holds most of the weights.
    pub quantization: String,
    /// The longest sequence.
    pub context_tokens: u32,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Numbers in the embedding of a text.
    pub embedding: u32,
    /// Whether it generates; if not, it only embeds.
    pub generates: bool,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Transformer layers.
    pub layers: u32,
    /// How many files the weights are in.
    pub files: u32,
    /// Whether there is a chat template.
    pub has_chat_template: bool,
    /// Whose turns the chat template writes, where we know them.
    pub chat_template: Option<&'static str>,
    /// What running it takes beside the weights; the reason if it cannot run.
    pub memory: Result<Memory, FormatError>,
}

/// What a model needs beside its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// Bytes of keys and values for one token, as f16.
    pub kv_token: u64,
    /// The same for the whole context.
    pub kv_context: u64,
    /// Bytes of activations for each token of a step.
    pub activations_token: u64,
    /// Bytes of the logits after one token.
    pub logits_token: u64,
}

impl Memory {
    /// Bytes of activations for a step of so many tokens, of which some give logits.
    pub fn activations(&self, (tokens, logits): (usize, usize)) -> u64 {
        self.activations_token * tokens as u64 + self.logits_token * logits as u64
    }
}

impl Config {
    /// Reads the shape.
    ///
    /// # Errors
    /// `Unsupported` for what the forward pass cannot compute, `Metadata` for missing or absurd numbers.
    pub fn read(header: &Header) -> Result<Self, FormatError> {
        let architecture = architecture::find(architecture_name(header)?)?;
        let arch = architecture.name;
        let key = |name: &str| format!("{arch}.{name}");
        let optional = |name: &str| header.number(&key(name), MAX_DIM);
        let need = |name: &str| positive(optional(name)?, &key(name));
        let float = |name: &str| header.float(&key(name));
        // A limit of zero is none.
        let cap = |name: &str, default: Option<f64>| -> Result<Option<f32>, FormatError> {
            Ok(float(name)?.or(default).filter(|cap| *cap != 0.0).map(|cap| cap as f32))
        };
        let (layers, width, heads) = (need("block_count")?, need("embedding_length")?, need("attention.head_count")?);
        let head_dim = match optional("attention.key_length")? {
            Some(n) => n as usize,
            None => width / heads,
        };
        let context = positive(header.number(&key("context_length"), MAX_CONTEXT)?, &key("context_length"))?;
        let scored = match architecture.width_scaled_layers {
            Some(n) if n == layers => width / heads,
            _ => head_dim,
        };
        let window = match architecture.windows {
            Windows::Never => None,
            Windows::Always | Windows::Most { .. } => header.number(&key("attention.sliding_window"), MAX_CONTEXT)?,
        };
        let usual = match architecture.windows {
            Windows::Most { tokens, .. } => tokens,
            Windows::Never | Windows::Always => None,
        };
        let config = Self {
            architecture,
            layers,
            width,
            ff: need("feed_forward_length")?,
            heads,
            kv_heads: optional("attention.head_count_kv")?.map_or(heads, |n| n as usize),
            head_dim,
            rope_dims: optional("rope.dimension_count")?.map_or(head_dim, |n| n as usize),
            rope: rope(header, arch, context)?,
            local_rope: match architecture.local_rope_base {
                None => None,
                Some(base) => Some(Rope::plain(float("rope.freq_base_swa")?.unwrap_or(base))),
            },
            window: window.map(|n| n as usize).or(usual).filter(|tokens| *tokens > 0),
            windowed: (0..layers).map(|layer| architecture.windows.cover(layer)).collect(),
            score_scale: (scored as f32).sqrt().recip(),
            score_cap: cap("attn_logit_softcapping", architecture.score_cap)?,
            logit_cap: cap("final_logit_softcapping", architecture.logit_cap)?,
            embedding_scale: if architecture.scaled_embedding { (width as f32).sqrt() } else { 1.0 },
            norm_eps: float("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5) as f32,
            context,
            vocab: vocab(header)?,
            positions: 0,
            pooling: Pooling::Last,
        };
        config.check().map_err(|(name, problem)| wrong(&key(name), &problem))?;
        match optional("attention.value_length")? {
            Some(n) if n as usize != head_dim => Err(FormatError::Unsupported {
                what: format!("`{}` of {n} where keys have {head_dim}", key("attention.value_length")),
                supported: "values as long as keys".into(),
            }),
            _ => Ok(config),
        }
    }

    /// Whether the forward pass can compute this; otherwise the key, as GGUF calls it, and what is wrong.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let fail = |name, problem| Err((name, problem));
        if self.layers > 1024 {
            return fail("block_count", format!("is {}, more than 1024", self.layers));
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("is {}, which does not divide {} heads", self.kv_heads, self.heads);
            return fail("attention.head_count_kv", problem);
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(16) || self.head_dim > 1024 {
            let problem = format!("gives heads of {}, not a multiple of 16 up to 1024", self.head_dim);
            return fail("attention.key_length", problem);
        }
        if self.heads > 1024 {
            return fail("attention.head_count", format!("is {}, more than 1024", self.heads));
        }
        if self.rope_dims > self.head_dim || !self.rope_dims.is_multiple_of(2) {
            let problem = format!("is {}, not an even number up to {}", self.rope_dims, self.head_dim);
            return fail("rope.dimension_count", problem);
        }
        if self.rope.base <= 1.0 {
            return fail("rope.freq_base", format!("is {}, not over 1", self.rope.base));
        }
        if let Some(local) = self.local_rope.as_ref().filter(|local| local.base <= 1.0) {
            return fail("rope.freq_base_swa", format!("is {}, not over 1", local.base));
        }
        if self.rope.stretch <= 0.0 {
            return fail("rope.scaling.factor", format!("stretches by {}, not over 0", self.rope.stretch));
        }
        if self.score_cap.is_some_and(|cap| cap < 0.0) {
            return fail("attn_logit_softcapping", "is negative".into());
        }
        if self.logit_cap.is_some_and(|cap| cap < 0.0) {
            return fail("final_logit_softcapping", "is negative".into());
        }
        if self.norm_eps < 0.0 {
            return fail("attention.layer_norm_rms_epsilon", "is negative".into());
        }
        Ok(())
    }

    /// How many tokens layer `layer` attends to, if not all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| self.windowed[layer])
    }

    /// What its keys and values depend on.
    pub(crate) fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// What running the model takes beside its weights.
    pub fn memory(&self) -> Memory {
        let bytes = |floats: usize| (floats * size_of::<f32>()) as u64;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        // The residual stream and its norm; q, k, v; what attention gives; gate and up; the product of these.
        let floats = 2 * self.width + (q + 2 * kv) + q + 2 * self.ff + self.ff;
        let kv_token = self.kv_shape().token_bytes(KvType::default()) as u64;
        Memory {
            kv_token,
            kv_context: kv_token * self.context as u64,
            activations_token: bytes(floats),
            logits_token: bytes(self.vocab),
        }
    }
}

impl Rope {
    /// Neither stretched nor anything else.
    pub(super) fn plain(base: f64) -> Self {
        Self { base, stretch: 1.0, factors: None, magnitude: 1.0 }
    }
}

/// The architecture's name.
fn architecture_name(header: &Header) -> Result<&str, FormatError> {
    let key = "general.architecture";
    header.text(key)?.ok_or_else(|| wrong(key, "is missing"))
}

fn positive(n: Option<u64>, key: &str) -> Result<usize, FormatError> {
    match n {
        Some(0) => Err(wrong(key, "is zero")),
        Some(n) => Ok(n as usize),
        None => Err(wrong(key, "is missing")),
    }
}

fn vocab(header: &Header) -> Result<usize, FormatError> {
    let key = "tokenizer.ggml.tokens";
    let count = header.texts(key)?.ok_or_else(|| wrong(key, "is missing"))?.len();
    if count as u64 > MAX_DIM {
        return Err(wrong(key, &format!("has {count} tokens, more than {MAX_DIM}")));
    }
    positive(Some(count as u64), key)
}

/// The rotation, as stretched for contexts longer than it was trained on.
fn rope(header: &Header, arch: &str, context: usize) -> Result<Rope, FormatError> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let float = |name: &str| header.float(&key(name));
    // As in llama.cpp, a factor alone is linear; files of early days have it under the other name.
    let kind = header.text(&key("scaling.type"))?.unwrap_or("linear");
    let stretch = match kind {
        "none" | "longrope" => None,
        "linear" => float("scaling.factor")?.or(float("scale_linear")?),
        _ => {
            let (what, supported) = (format!("rope scaling `{kind}`"), "none, linear, longrope".into());
            return Err(FormatError::Unsupported { what, supported });
        }
    };
    let has = |name: &&'static str| header.tensors.contains_key(*name);
    // As llama.cpp does, the long or the short factors serve the whole context: were the choice the
    // sequence's, keys that are stored would have to turn anew where it outgrows the short ones.
    let original = header.number(&key("scaling.original_context_length"), MAX_CONTEXT)?;
    let outgrown = original.is_some_and(|original| context as u64 > original);
    let chosen = if outgrown { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
    Ok(Rope {
        base: float("freq_base")?.unwrap_or(10_000.0),
        stretch: stretch.filter(|factor| *factor != 0.0).unwrap_or(1.0),
        factors: ["rope_freqs.weight", chosen].into_iter().find(has).map(Factors::Tensor),
        magnitude: float("scaling.attn_factor")?.unwrap_or(1.0),
    })
}

impl ModelInfo {
    /// Reads what there is to show; works for architectures that we cannot run, too.
    ///
    /// # Errors
    /// `Metadata` for missing or absurd numbers.
    pub fn read(header: &Header) -> Result<Self, FormatError> {
        let arch = architecture_name(header)?;
        let number = |name: &str| header.number(&format!("{arch}.{name}"), u32::MAX.into());
        let template = header.text("tokenizer.chat_template")?;
        Ok(Self {
            architecture: arch.into(),
            context_tokens: number("context_length")?.unwrap_or(0) as u32,
            vocab: vocab(header)? as u32,
            layers: number("block_count")?.unwrap_or(0) as u32,
            embedding: number("embedding_length")?.unwrap_or(0) as u32,
            has_chat_template: template.is_some(),
            chat_template: template.and_then(super::template::family),
            memory: Config::read(header).map(|config| config.memory()),
            ..Self::of_tensors(&header.tensors)
        })
    }

    /// What the tensors alone say.
    pub(super) fn of_tensors(tensors: &HashMap<String, TensorInfo>) -> Self {
        // The reader bounded every tensor by the length of its file, so these sums cannot overflow.
        let sum = |f: fn(&TensorInfo) -> u64| tensors.values().map(f).sum();
        Self {
            architecture: String::new(),
            parameters: sum(TensorInfo::elements),
            quantization: main_type(tensors),
            context_tokens: 0,
            vocab: 0,
            embedding: 0,
            generates: true,
            weight_bytes: sum(|t| t.bytes.len() as u64),
            layers: 0,
            files: tensors.values().map(|t| t.file as u32 + 1).max().unwrap_or(1),
            has_chat_template: false,
            chat_template: None,
            memory: Err(wrong("general.architecture", "is missing")),
        }
    }
}

/// The type that most matrices have: one large embedding does not name a model.
fn main_type(tensors: &HashMap<String, TensorInfo>) -> String {
    let matrices = || tensors.values().filter(|t| t.dims.len() > 1);
    let count = |name: &str| matrices().filter(|t| t.row.name == name).count();
    let names = matrices().map(|t| t.row.name);
    names.max_by_key(|name| (count(name), *name)).unwrap_or("F32").into()
}
