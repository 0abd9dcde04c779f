//! What sets the classes of transformers apart, and what it calls the tensors: two tables.

use crate::model::architecture::{Architecture, GEMMA, GEMMA2, GEMMA3, LLAMA, PHI3, Pairs, QWEN2, QWEN3};
use crate::model::weights::Naming;

/// A class of models.
pub(super) struct Class {
    /// The entry of `architectures` in `config.json`.
    pub(super) name: &'static str,
    pub(super) architecture: &'static Architecture,
    pub(super) naming: &'static Naming,
    pub(super) windows: Windows,
    /// What `sliding_window` is if the file does not have it.
    pub(super) window: Option<u64>,
    /// What `head_dim` is if the file does not have it: this, or width / heads.
    pub(super) head_dim: Option<u64>,
    /// What `rope_theta` is if the file does not have it.
    pub(super) theta: f64,
    /// Whether the head is the embedding, unless the file says otherwise.
    pub(super) tied: bool,
}

/// Which layers have a window, if the file does not list them.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Windows {
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
pub(super) static CLASSES: &[Class] = &[
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
