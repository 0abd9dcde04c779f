//! BERT's class of checkpoints, with what sentence-transformers keeps beside them: how a text's tokens are pooled, and how
//! many of them count.

use super::parsed;
use super::settings::Settings;
use crate::format::FormatError;
use crate::model::architecture::BERT;
use crate::model::config::{Config, MAX_DIM, Pooling, Rope};
use crate::model::weights::Naming;
use serde_json::Value;
use std::path::Path;

/// The entry of `architectures` in `config.json`.
pub(super) const CLASS: &str = "BertModel";

/// Whether `config.json` is one of this class.
pub(super) fn is_encoder(value: &Value) -> bool {
    value["architectures"][0] == CLASS
}

/// The shape, after `BertConfig` of transformers 5.24.0.
///
/// # Errors
/// `Setting` with the key, `Unsupported` for what the forward pass cannot compute.
pub(super) fn shape(s: Settings<'_>) -> Result<Config, FormatError> {
    let need = |key| s.need(key, MAX_DIM);
    for (key, only) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
        if let Some(other) = s.text(key)?.filter(|given| *given != only) {
            let what = format!("`{key}` {:?} in this class", other.chars().take(40).collect::<String>());
            return Err(FormatError::Unsupported { what, supported: only.into() });
        }
    }
    let (width, heads, layers) = (need("hidden_size")?, need("num_attention_heads")?, need("num_hidden_layers")?);
    if !width.is_multiple_of(heads) {
        return Err(s.wrong("num_attention_heads", format!("is {heads}, which does not divide a width of {width}")));
    }
    if layers > 1024 {
        return Err(s.wrong("num_hidden_layers", format!("is {layers}, more than 1024")));
    }
    let (head_dim, positions) = (width / heads, s.need("max_position_embeddings", 1 << 16)?);
    let config = Config {
        architecture: &BERT,
        layers,
        width,
        ff: need("intermediate_size")?,
        heads,
        kv_heads: heads,
        head_dim,
        rope_dims: 0,
        rope: Rope::plain(10_000.0),
        local_rope: None,
        window: None,
        windowed: vec![false; layers],
        score_scale: (head_dim as f32).sqrt().recip(),
        score_cap: None,
        logit_cap: None,
        embedding_scale: 1.0,
        norm_eps: s.float("layer_norm_eps")?.unwrap_or(1e-12) as f32,
        context: positions,
        vocab: need("vocab_size")?,
        positions,
        pooling: Pooling::Mean,
    };
    let called = |key| match key {
        "attention.key_length" => "num_attention_heads",
        "attention.layer_norm_rms_epsilon" => "layer_norm_eps",
        other => other,
    };
    config.check().map_err(|(key, problem)| s.wrong(called(key), problem))?;
    Ok(config)
}

/// What sentence-transformers has beside the checkpoint in `folder`: pooling, and fewer tokens than there are positions.
///
/// # Errors
/// `Unsupported` for other poolings than those that are computed here.
pub(super) fn sentences(folder: &Path, config: &mut Config) -> Result<(), FormatError> {
    const POOLING: &str = "1_Pooling/config.json";
    const SENTENCES: &str = "sentence_bert_config.json";
    if let Some(value) = parsed(folder, POOLING, super::MAX_CONFIG)? {
        config.pooling = pooling(Settings::new(POOLING, &value))?;
    }
    if let Some(value) = parsed(folder, SENTENCES, super::MAX_CONFIG)? {
        let most = Settings::new(SENTENCES, &value).number("max_seq_length", MAX_DIM)?;
        config.context = most.map_or(config.context, |most| config.context.min(most.max(3) as usize));
    }
    Ok(())
}

fn pooling(s: Settings<'_>) -> Result<Pooling, FormatError> {
    const KNOWN: [(&str, Pooling); 3] = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let mut chosen = Vec::new();
    for (key, pooling) in KNOWN {
        if s.flag(key)? == Some(true) {
            chosen.push(pooling);
        }
    }
    let others = ["pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"];
    let other = others.into_iter().find(|key| s.value(key) == Some(&Value::Bool(true)));
    match (chosen.as_slice(), other) {
        ([pooling], None) => Ok(*pooling),
        ([], None) => Ok(Pooling::Mean),
        _ => Err(FormatError::Unsupported {
            what: format!("`{}`", other.unwrap_or("more than one pooling")),
            supported: "one of the mean, the first and the last token".into(),
        }),
    }
}

/// What transformers calls the tensors.
pub(super) const NAMING: Naming = Naming {
    of: named,
    // What pools for the next-sentence task is not part of an embedding, and positions are counted, not stored.
    counts: |name| {
        (name.starts_with("embeddings.") || name.starts_with("encoder.")) && name != "embeddings.position_ids"
    },
    tied: Some(true),
    norm_offset: 0.0,
};

/// The parts of a layer: llama.cpp's names, by which we call them, and transformers'.
const PARTS: [(&str, &str); 8] = [
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("attn_output_norm", "attention.output.LayerNorm"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
    ("layer_output_norm", "output.LayerNorm"),
];

/// What transformers calls the tensor that llama.cpp calls `name`.
fn named(name: &str) -> String {
    let whole = match name {
        "token_embd.weight" => "embeddings.word_embeddings.weight",
        "position_embd.weight" => "embeddings.position_embeddings.weight",
        "token_types.weight" => "embeddings.token_type_embeddings.weight",
        "token_embd_norm.weight" => "embeddings.LayerNorm.weight",
        "token_embd_norm.bias" => "embeddings.LayerNorm.bias",
        _ => "",
    };
    let mut parts = name.splitn(4, '.');
    let (Some("blk"), Some(layer), Some(part), Some(kind)) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return whole.to_owned();
    };
    let part = PARTS.iter().find(|(ours, _)| *ours == part).map_or(part, |(_, theirs)| theirs);
    format!("encoder.layer.{layer}.{part}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> Result<Config, String> {
        shape(Settings::new("config.json", value)).map_err(|error| error.to_string())
    }

    fn minilm() -> Value {
        json!({
            "architectures": ["BertModel"], "hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 6,
            "intermediate_size": 1536, "max_position_embeddings": 512, "vocab_size": 30522, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "position_embedding_type": "absolute",
        })
    }

    #[test]
    fn a_shape_is_read_or_refused_by_its_key() {
        let config = read(&minilm()).unwrap();
        assert!(is_encoder(&minilm()) && config.architecture.encoder);
        assert_eq!((config.head_dim, config.context, config.positions), (32, 512, 512));
        for (key, value, says) in [
            ("hidden_act", json!("relu"), "`hidden_act` \"relu\""),
            ("position_embedding_type", json!("relative_key"), "position_embedding_type"),
            ("num_attention_heads", json!(7), "does not divide"),
            ("num_attention_heads", json!(48), "num_attention_heads"),
            ("max_position_embeddings", json!(0), "max_position_embeddings"),
        ] {
            let mut bad = minilm();
            bad[key] = value;
            let error = read(&bad).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn one_pooling_is_chosen() {
        let read = |value: &Value| pooling(Settings::new("1_Pooling/config.json", value));
        assert_eq!(read(&json!({ "pooling_mode_cls_token": true })).unwrap(), Pooling::First);
        assert_eq!(read(&json!({ "pooling_mode_mean_tokens": true })).unwrap(), Pooling::Mean);
        for bad in [
            json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true }),
            json!({ "pooling_mode_max_tokens": true }),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }
}
