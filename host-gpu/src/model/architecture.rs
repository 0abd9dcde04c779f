//! What sets the architectures apart, as data that one forward pass reads.
//!
//! A file says how large it is; much else it leaves unsaid, because every program that runs it
//! knows it by the architecture's name. That knowledge is [`ARCHITECTURES`], and nowhere else.
//! Sources: the conversion and graph code of llama.cpp, which defined these names, and the
//! models' own code in Hugging Face transformers. Both were run against ours: see
//! `tests/golden/README.md`.

use crate::format::FormatError;
pub use crate::ops::cpu::vector::Pairs;

/// One architecture: how it differs from the others.
#[derive(Debug, PartialEq)]
pub struct Architecture {
    /// `general.architecture` in the file.
    pub name: &'static str,
    /// Whether it reads a text as a whole and gives what it means, and no next token: every token attends to all others.
    pub encoder: bool,
    /// Which numbers of a head turn together.
    pub pairs: Pairs,
    /// What the feed-forward part does to its gate.
    pub gate: Gate,
    /// Whether a token's embedding is multiplied by the root of the width.
    pub scaled_embedding: bool,
    /// Whether q, k, v are one tensor, and gate and up another.
    pub fused: bool,
    /// Whether each query and key head is normed before it turns.
    pub head_norms: bool,
    /// Whether what attention and feed-forward give is normed before it joins the residual stream.
    pub post_norms: bool,
    /// Which layers see only the last tokens.
    pub windows: Windows,
    /// The base of the rotation in layers with a window, if it is another one there.
    pub local_rope_base: Option<f64>,
    /// Limits attention scores, unless the file has its own limit.
    pub score_cap: Option<f64>,
    /// Limits logits, unless the file has its own limit.
    pub logit_cap: Option<f64>,
    /// A model of that many layers divides scores by the root of width / heads, not of a head's
    /// length, and its file does not say so.
    pub width_scaled_layers: Option<usize>,
}

/// What the feed-forward part does to its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU with the tanh in place of the error function.
    GeluTanh,
}

/// Which layers see only the last tokens. How many is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    Never,
    /// All, if the file has a window.
    Always,
    /// All but every `period`-th; `tokens` is the window of files that have none.
    Most {
        /// Of so many layers, the last sees everything.
        period: usize,
        /// `None`: without a window in the file there is none.
        tokens: Option<usize>,
    },
}

/// Most architectures are this one and a little more.
pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    encoder: false,
    // The conversion permutes q and k so that neighbours turn together.
    pairs: Pairs::Neighbours,
    gate: Gate::Silu,
    scaled_embedding: false,
    fused: false,
    head_norms: false,
    post_norms: false,
    // Mistral 7B v0.1 was trained with a window of 4096, but its files do not carry one.
    windows: Windows::Never,
    local_rope_base: None,
    score_cap: None,
    logit_cap: None,
    width_scaled_layers: None,
};

/// GGUF has Gemma's norms with the one that its equations add already added; checkpoints have not.
pub(super) const GEMMA: Architecture =
    Architecture { name: "gemma", pairs: Pairs::Halves, gate: Gate::GeluTanh, scaled_embedding: true, ..LLAMA };

/// Qwen2 and 2.5: biases on q, k and v, which any architecture may have here.
pub(super) const QWEN2: Architecture = Architecture { name: "qwen2", pairs: Pairs::Halves, ..LLAMA };

pub(super) const QWEN3: Architecture = Architecture { name: "qwen3", head_norms: true, ..QWEN2 };

/// The first layer has a window, the second sees everything, and so on. The 27B model has 46
/// layers and `query_pre_attn_scalar` 144 = 4608 / 32.
pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    post_norms: true,
    windows: Windows::Most { period: 2, tokens: Some(4096) },
    score_cap: Some(50.0),
    logit_cap: Some(30.0),
    width_scaled_layers: Some(46),
    ..GEMMA
};

/// Head norms in place of score caps. The 27B model has 62 layers and `query_pre_attn_scalar`
/// 168 = 5376 / 32. The local base is not in GGUF files, nor is it ever stretched.
pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    head_norms: true,
    post_norms: true,
    windows: Windows::Most { period: 6, tokens: None },
    local_rope_base: Some(10_000.0),
    width_scaled_layers: Some(62),
    ..GEMMA
};

/// llama.cpp ignores the window of Phi-3; transformers does not, and the model was trained with it.
pub(super) const PHI3: Architecture =
    Architecture { name: "phi3", pairs: Pairs::Halves, fused: true, windows: Windows::Always, ..LLAMA };

/// BERT (arXiv 1810.04805), of which checkpoints run and GGUF files do not yet. Its forward pass is `encoder`'s; of what else
/// stands here only the name counts.
pub(super) const BERT: Architecture = Architecture { name: "bert", encoder: true, ..LLAMA };

/// Every architecture that runs, as its GGUF files have it. Llama is Llama 2 to 3.2, Mistral, SmolLM2;
/// the stretched rotation of Llama 3.1 is a tensor of the file.
pub static ARCHITECTURES: &[Architecture] = &[LLAMA, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3];

/// The architecture called `name`.
///
/// # Errors
/// `Unsupported`, with what there is.
pub fn find(name: &str) -> Result<&'static Architecture, FormatError> {
    let names = || ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", ");
    let unknown = || FormatError::Unsupported { what: format!("architecture `{name}`"), supported: names() };
    ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(unknown)
}

impl Windows {
    /// Whether layer `layer` has one.
    pub fn cover(self, layer: usize) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Most { period, .. } => !(layer + 1).is_multiple_of(period),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_layers_they_should() {
        let covered = |name: &str| -> Vec<bool> { (0..7).map(|n| find(name).unwrap().windows.cover(n)).collect() };
        assert_eq!(covered("llama"), [false; 7]);
        assert_eq!(covered("phi3"), [true; 7]);
        assert_eq!(covered("gemma2"), [true, false, true, false, true, false, true]);
        assert_eq!(covered("gemma3"), [true, true, true, true, true, false, true]);
    }

    #[test]
    fn an_unknown_architecture_is_refused_with_what_there_is() {
        let refusal = find("bert").unwrap_err().to_string();
        let list = "llama, qwen2, qwen3, gemma, gemma2, gemma3, phi3";
        assert_eq!(refusal, format!("architecture `bert` is not supported; supported: {list}"));
    }
}
