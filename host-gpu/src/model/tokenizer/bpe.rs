//! Byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen, Mistral Nemo, DeepSeek): bytes merge by a list of pairs.

use super::merge::Symbols;
use super::split::Split;
use super::vocab::Vocab;
use crate::ask::TokenId;
use crate::format::FormatError;
use crate::format::gguf::{Header, wrong};
use hashbrown::HashMap;

const MERGES: &str = "tokenizer.ggml.merges";

/// Words, and which pairs merge.
pub(super) struct Bpe {
    split: Split,
    /// By two tokens: when they merge, small numbers first, and what they become.
    pairs: HashMap<(u32, u32), (u32, u32)>,
    /// The token of each byte. Bytes that occur in no text may have none.
    tokens: Vec<Option<u32>>,
    alphabet: Alphabet,
}

impl Bpe {
    /// Reads what `header`, the header of `vocab`'s file, says beyond `vocab`.
    ///
    /// # Errors
    /// `Metadata` if a merge is not about tokens, `Unsupported` for an unknown pre-tokenizer.
    pub(super) fn read(header: &Header, vocab: &Vocab) -> Result<Self, FormatError> {
        let split = Split::new(header.text("tokenizer.ggml.pre")?)?;
        let merges = header.texts(MERGES)?.ok_or_else(|| wrong(MERGES, "is missing"))?;
        let mut pairs = HashMap::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, range) in (0..).zip(merges) {
            let (pair, id) = merge(vocab, &vocab.source()[range.clone()], &mut joined)?;
            // Of a pair that is listed twice the last counts, as in Hugging Face's library.
            pairs.insert(pair, (rank, id));
        }
        let alphabet = Alphabet::new();
        let token = |c: char| vocab.find(c.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(Self { split, pairs, tokens: alphabet.chars.iter().map(|c| token(*c)).collect(), alphabet })
    }

    /// Whether sequences begin with the first token unless the file says otherwise.
    pub(super) fn adds_bos(&self) -> bool {
        self.split.adds_bos
    }

    /// Appends the tokens of `text`.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<TokenId>) {
        for word in self.split.words(text) {
            self.encode_word(vocab, &text.as_bytes()[word], ids);
        }
    }

    fn encode_word(&self, vocab: &Vocab, word: &[u8], ids: &mut Vec<TokenId>) {
        if self.split.ignores_merges {
            let spelled: String = word.iter().map(|byte| self.alphabet.chars[usize::from(*byte)]).collect();
            if let Some(id) = vocab.find_plain(spelled.as_bytes()) {
                return ids.push(TokenId(id));
            }
        }
        let mut symbols = Symbols::default();
        for (at, byte) in word.iter().enumerate() {
            if let Some(id) = self.tokens[usize::from(*byte)] {
                symbols.push(at, at + 1, Some(id));
            }
        }
        symbols.merge(|left, right| self.pairs.get(&(left.id?, right.id?)).copied());
        ids.extend(symbols.iter().filter_map(|symbol| symbol.id).map(TokenId));
    }

    /// Appends the bytes that `id`, which is no special token, stands for.
    pub(super) fn decode_to(&self, vocab: &Vocab, id: TokenId, out: &mut Vec<u8>) {
        self.alphabet.spelled(vocab.text(id.0), out);
    }
}

/// The two tokens that a line of merges names and the token that they become.
fn merge(vocab: &Vocab, line: &[u8], joined: &mut Vec<u8>) -> Result<((u32, u32), u32), FormatError> {
    let bad = |problem: &str| {
        let line = String::from_utf8_lossy(line);
        wrong(MERGES, &format!("has `{line}`, {problem}"))
    };
    // A token may start with a space, but is never empty.
    let space = line.iter().skip(1).position(|byte| *byte == b' ').ok_or_else(|| bad("which is not two tokens"))?;
    let (left, right) = (&line[..space + 1], &line[space + 2..]);
    joined.clear();
    joined.extend_from_slice(left);
    joined.extend_from_slice(right);
    let find = |text: &[u8]| {
        vocab.find(text).ok_or_else(|| bad(&format!("and `{}` is no token", String::from_utf8_lossy(text))))
    };
    Ok(((find(left)?, find(right)?), find(joined)?))
}

/// The characters in which vocabularies spell bytes: printable bytes stand for themselves, the others
/// for the characters from U+0100 on, in order.
pub(super) struct Alphabet {
    chars: Vec<char>,
    bytes: Vec<Option<u8>>,
}

impl Alphabet {
    pub(super) fn new() -> Self {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut others = '\u{100}'..;
        let mut chars = vec!['\0'; 256];
        let mut bytes = vec![None; 512];
        for (byte, c) in (0..=255u8).zip(&mut chars) {
            *c = if printable(byte) { char::from(byte) } else { others.next().expect("there are more characters") };
            bytes[*c as usize] = Some(byte);
        }
        Self { chars, bytes }
    }

    /// Appends the bytes that `text` spells; other characters stand for themselves.
    pub(super) fn spelled(&self, text: &str, out: &mut Vec<u8>) {
        for c in text.chars() {
            match self.byte(c) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    /// The byte that `c` stands for.
    fn byte(&self, c: char) -> Option<u8> {
        self.bytes.get(c as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = Alphabet::new();
        assert!((0..=255).all(|byte: u8| alphabet.byte(alphabet.chars[usize::from(byte)]) == Some(byte)));
        assert_eq!((alphabet.byte('Ġ'), alphabet.byte('Ċ'), alphabet.byte('日')), (Some(b' '), Some(b'\n'), None));
    }
}
