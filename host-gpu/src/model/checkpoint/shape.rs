//! The shape of a model, from `config.json`.

use super::class::{CLASSES, Class, Windows};
use super::encoder;
use super::rope;
use super::settings::Settings;
use crate::format::FormatError;
use crate::model::architecture::{Architecture, Gate};
use crate::model::config::{Config, MAX_CONTEXT, MAX_DIM, Pooling};
use serde_json::Value;

/// The class that the file names, if nothing in it says that it is more than that.
pub(super) fn class(settings: Settings<'_>) -> Result<&'static Class, FormatError> {
    let name = settings.value("architectures").and_then(|list| list[0].as_str());
    let name = name.ok_or_else(|| settings.wrong("architectures", "names no class".into()))?;
    let names = || CLASSES.iter().map(|class| class.name).chain([encoder::CLASS]).collect::<Vec<_>>().join(", ");
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

/// The model's shape.
pub(super) fn shape(class: &Class, s: Settings<'_>) -> Result<Config, FormatError> {
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
        positions: 0,
        pooling: Pooling::Last,
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
