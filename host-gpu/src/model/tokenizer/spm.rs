//! SentencePiece models (Llama 2, Mistral, Gemma, Phi-3): characters merge by the score of what they become.
//!
//! The algorithm is that of SentencePiece's BPE: of all neighbours whose joint text is a token, the
//! pair with the highest score merges first. A character that is no token becomes its bytes.

use super::merge::Symbols;
use super::vocab::{Kind, Vocab, same_length};
use crate::ask::TokenId;
use crate::format::FormatError;
use crate::format::gguf::{Header, wrong};

const SCORES: &str = "tokenizer.ggml.scores";
/// What a space is in a token's text.
const SPACE: &str = "▁";

/// Scores, and what stands for a byte.
pub(super) struct Spm {
    /// By token; a higher score has a smaller rank.
    ranks: Vec<u32>,
    /// The token of each byte: its own, or the one for what is unknown.
    bytes: Vec<u32>,
    /// A space goes before text at the start and after a special token.
    space_prefix: bool,
}

impl Spm {
    /// Reads what `header` says beyond `vocab`.
    ///
    /// # Errors
    /// `Metadata` if scores are missing or no numbers, or a byte has no token.
    pub(super) fn read(header: &Header, vocab: &Vocab, unknown: Option<TokenId>) -> Result<Self, FormatError> {
        let scores = header.floats(SCORES)?.ok_or_else(|| wrong(SCORES, "is missing"))?;
        same_length(SCORES, scores.len(), vocab.len())?;
        if let Some(n) = scores.iter().position(|score| score.is_nan()) {
            return Err(wrong(SCORES, &format!("has no number for token {n}")));
        }
        let space_prefix = header.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut bytes = vec![0; 256];
        for (byte, id) in (0..=255u8).zip(&mut bytes) {
            *id = byte_token(vocab, byte).or(unknown.map(|id| id.0)).ok_or_else(|| {
                wrong("tokenizer.ggml.tokens", &format!("has no <0x{byte:02X}> and nothing for unknown bytes"))
            })?;
        }
        Ok(Self { ranks: scores.iter().map(|score| rank(*score)).collect(), bytes, space_prefix })
    }

    /// Appends the tokens of `text`, which follows a special token or nothing.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<TokenId>) {
        let prefix = if self.space_prefix { SPACE } else { "" };
        let text = prefix.to_owned() + &text.replace(' ', SPACE);
        let mut symbols = Symbols::default();
        for (start, c) in text.char_indices() {
            let end = start + c.len_utf8();
            symbols.push(start, end, vocab.find_plain(&text.as_bytes()[start..end]));
        }
        symbols.merge(|left, right| {
            let id = vocab.find_plain(&text.as_bytes()[left.start..right.end])?;
            Some((self.ranks[id as usize], id))
        });
        for symbol in symbols.iter() {
            match symbol.id {
                Some(id) => ids.push(TokenId(id)),
                None => ids.extend(text[symbol.start..symbol.end].bytes().map(|b| TokenId(self.bytes[usize::from(b)]))),
            }
        }
    }

    /// Appends the bytes that `id`, which is no special token, stands for.
    pub(super) fn decode_to(vocab: &Vocab, id: TokenId, out: &mut Vec<u8>) {
        let text = vocab.text(id.0);
        match byte_of(text).filter(|_| vocab.kind(id.0) == Kind::Byte) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
        }
    }

    /// Whether a whole text starts with a space that nobody wrote.
    pub(super) fn has_space_prefix(&self) -> bool {
        self.space_prefix
    }
}

/// The order of floats as that of integers, upside down.
fn rank(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // minus zero becomes zero
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

fn byte_token(vocab: &Vocab, byte: u8) -> Option<u32> {
    vocab.find(format!("<0x{byte:02X}>").as_bytes()).filter(|id| vocab.kind(*id) == Kind::Byte)
}

/// The byte that a text like `<0x0A>` names.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_as_scores_do() {
        let scores = [f32::INFINITY, 3.5, 1e-30, 0.0, -1e-30, -1000.0, -236_280.0, f32::NEG_INFINITY];
        assert!(scores.map(rank).is_sorted_by(|a, b| a < b));
        assert_eq!(rank(-0.0), rank(0.0));
    }
}
