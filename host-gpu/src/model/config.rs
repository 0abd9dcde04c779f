//! The shape of a model, from the metadata of its file. Every number is bounded here, so that
//! later products of them cannot overflow.

use crate::format::gguf::{FormatError, Header, TensorInfo, wrong};

/// No model is larger in any dimension; products of three of these fit 64 bits.
const MAX_DIM: u64 = 1 << 20;

/// What the forward pass must know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
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
    /// Length of a query, key and value.
    pub head_dim: usize,
    /// How many numbers of a head are rotated.
    pub rope_dims: usize,
    /// The base of the rotation's frequencies.
    pub rope_base: f64,
    /// Added to the mean square of a norm.
    pub norm_eps: f32,
    /// The longest sequence.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

/// What `hob models show` prints.
#[derive(Clone, Debug, PartialEq)]
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
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Transformer layers.
    pub layers: u32,
    /// Whether the file carries a chat template.
    pub has_chat_template: bool,
}

impl Config {
    /// Reads the shape.
    ///
    /// # Errors
    /// `Unsupported` for what the forward pass cannot compute, `Metadata` for missing or absurd numbers.
    pub fn read(header: &Header) -> Result<Self, FormatError> {
        let arch = architecture(header)?;
        if arch != "llama" {
            return Err(FormatError::Unsupported { what: format!("architecture `{arch}`"), supported: "llama".into() });
        }
        refuse_scaling(header, arch)?;
        let key = |name: &str| format!("{arch}.{name}");
        let optional = |name: &str| header.number(&key(name), MAX_DIM);
        let need = |name: &str| positive(optional(name)?, &key(name));
        let (width, heads) = (need("embedding_length")?, need("attention.head_count")?);
        let head_dim = match optional("attention.key_length")? {
            Some(n) => n as usize,
            None => width / heads,
        };
        let config = Self {
            layers: need("block_count")?,
            width,
            ff: need("feed_forward_length")?,
            heads,
            kv_heads: optional("attention.head_count_kv")?.map_or(heads, |n| n as usize),
            head_dim,
            rope_dims: optional("rope.dimension_count")?.map_or(head_dim, |n| n as usize),
            rope_base: header.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            norm_eps: header.float(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5) as f32,
            context: positive(header.number(&key("context_length"), 1 << 24)?, &key("context_length"))?,
            vocab: vocab(header)?,
        };
        config.check(arch)?;
        Ok(config)
    }

    fn check(&self, arch: &str) -> Result<(), FormatError> {
        let fail = |name: &str, problem: String| Err(wrong(&format!("{arch}.{name}"), &problem));
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
        if self.rope_base <= 1.0 {
            return fail("rope.freq_base", format!("is {}, not over 1", self.rope_base));
        }
        if self.norm_eps < 0.0 {
            return fail("attention.layer_norm_rms_epsilon", "is negative".into());
        }
        Ok(())
    }

    /// Floats of keys and values for one token, over all layers.
    pub fn kv_floats(&self) -> usize {
        self.layers * self.kv_heads * self.head_dim * 2
    }
}

/// The architecture's name.
fn architecture(header: &Header) -> Result<&str, FormatError> {
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

/// Stretched rotations would run and give nonsense: refuse them by name.
fn refuse_scaling(header: &Header, arch: &str) -> Result<(), FormatError> {
    let key = format!("{arch}.rope.scaling.type");
    let scaled = header.text(&key)?.filter(|kind| *kind != "none");
    if scaled.is_some() || header.tensors.contains_key("rope_freqs.weight") {
        return Err(FormatError::Unsupported {
            what: format!("rope scaling `{}`", scaled.unwrap_or("rope_freqs")),
            supported: "none".into(),
        });
    }
    Ok(())
}

impl ModelInfo {
    /// Reads what there is to show; works for architectures that we cannot run, too.
    ///
    /// # Errors
    /// `Metadata` for missing or absurd numbers.
    pub fn read(header: &Header) -> Result<Self, FormatError> {
        let arch = architecture(header)?;
        let number = |name: &str| header.number(&format!("{arch}.{name}"), u32::MAX.into());
        // The reader bounded every tensor by the length of the file, so these sums cannot overflow.
        let sum = |f: fn(&TensorInfo) -> u64| header.tensors.values().map(f).sum();
        Ok(Self {
            architecture: arch.into(),
            parameters: sum(TensorInfo::elements),
            quantization: main_type(header),
            context_tokens: number("context_length")?.unwrap_or(0) as u32,
            vocab: vocab(header)? as u32,
            weight_bytes: sum(|t| t.bytes.len() as u64),
            layers: number("block_count")?.unwrap_or(0) as u32,
            has_chat_template: header.text("tokenizer.chat_template")?.is_some(),
        })
    }
}

/// The type that most matrices have: one large embedding does not name a model.
fn main_type(header: &Header) -> String {
    let matrices = || header.tensors.values().filter(|t| t.dims.len() > 1);
    let count = |name: &str| matrices().filter(|t| t.row.name == name).count();
    let names = matrices().map(|t| t.row.name);
    names.max_by_key(|name| (count(name), *name)).unwrap_or("F32").into()
}
