//! Text to tokens and back.
//!
//! The vocabulary and merges come from the model file, the algorithm from the `tokenizers` crate.
//! Special tokens are split off here, before it runs, because only the caller knows which parts
//! of a text may contain them.

use crate::ask::TokenId;
use crate::format::gguf::{FormatError, Gguf, wrong};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{Model as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

/// Names under which files keep the tokens that end an answer, beside `eos_token_id`.
const END_NAMES: &[&str] =
    &["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"];

/// A piece of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// Its text.
    pub text: &'a str,
    /// Whether special tokens in it are recognised; otherwise it is plain text.
    pub special: bool,
}

/// A model's vocabulary.
pub struct Tokenizer {
    file: Arc<Gguf>,
    /// Where each token's text stands in the file.
    tokens: Vec<Range<usize>>,
    /// Tokens that text never produces, longest first.
    specials: Vec<(String, TokenId)>,
    /// Whether each token is one of `specials`.
    is_special: Vec<bool>,
    ends: Vec<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    bpe: BPE,
    split: PreTokenizerWrapper,
    /// The byte that a character of the byte-level alphabet stands for.
    bytes: HashMap<char, u8>,
}

impl Tokenizer {
    /// Builds the tokenizer that `file` describes.
    ///
    /// # Errors
    /// `Unsupported` names the tokenizer model or pre-tokenizer we do not have.
    pub fn read(file: Arc<Gguf>) -> Result<Self, FormatError> {
        let header = file.header();
        let need = |key: &str| wrong(key, "is missing");
        supported(header.text("tokenizer.ggml.model")?, "tokenizer model", &["gpt2"])?;
        let split = splitter(header.text("tokenizer.ggml.pre")?)?;
        let key = "tokenizer.ggml.tokens";
        let tokens = header.texts(key)?.ok_or_else(|| need(key))?.to_vec();
        let key = "tokenizer.ggml.merges";
        let merges = header.texts(key)?.ok_or_else(|| need(key))?;
        let id = |key: &str| -> Result<Option<TokenId>, FormatError> {
            let last = tokens.len().saturating_sub(1) as u64;
            Ok(header.number(key, last)?.map(|id| TokenId(id as u32)))
        };
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let add_bos = header.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
        let specials = specials(&file, &tokens)?;
        let mut is_special = vec![false; tokens.len()];
        specials.iter().for_each(|(_, id)| is_special[id.0 as usize] = true);
        let named = specials.iter().filter(|(text, _)| END_NAMES.contains(&text.as_str()));
        let ends = named.map(|(_, id)| *id).chain(eos).collect();
        let bpe = bpe(&file, &tokens, merges)?;
        let bytes = byte_alphabet();
        Ok(Self { tokens, specials, is_special, ends, bos, eos, add_bos, bpe, split, bytes, file })
    }

    /// The tokens of `text`; `special` says whether special tokens in it are recognised.
    pub fn encode(&self, text: &str, special: bool) -> Vec<TokenId> {
        self.encode_spans(&[Span { text, special }])
    }

    /// The tokens of `spans` as one text: only special tokens end where a span does.
    pub fn encode_spans(&self, spans: &[Span<'_>]) -> Vec<TokenId> {
        let mut ids = Vec::new();
        ids.extend(self.bos.filter(|_| self.add_bos));
        let mut plain = String::new();
        for span in spans {
            for piece in self.pieces(*span) {
                match piece {
                    Piece::Plain(text) => plain.push_str(text),
                    Piece::Special(id) => {
                        self.encode_plain(&std::mem::take(&mut plain), &mut ids);
                        ids.push(id);
                    }
                }
            }
        }
        self.encode_plain(&plain, &mut ids);
        ids
    }

    /// Cuts the special tokens out, the longest ones first.
    fn pieces<'a>(&self, span: Span<'a>) -> Vec<Piece<'a>> {
        let mut pieces = vec![Piece::Plain(span.text)];
        if !span.special {
            return pieces;
        }
        for (text, id) in self.specials.iter().filter(|(text, _)| span.text.contains(text)) {
            let cut = |piece| match piece {
                Piece::Plain(plain) => cut_out(plain, text, *id),
                special => vec![special],
            };
            pieces = pieces.into_iter().flat_map(cut).collect();
        }
        pieces
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        let mut pieces = PreTokenizedString::from(text);
        // Byte-level splitting and merging have no failure on valid text.
        let split = self.split.pre_tokenize(&mut pieces);
        split.expect("the byte-level splitter accepts every text");
        for (word, ..) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            let tokens = self.bpe.tokenize(word);
            let tokens = tokens.expect("no unknown token is configured that could be missing");
            ids.extend(tokens.iter().map(|t| TokenId(t.id)));
        }
    }

    /// The text of a token as the file has it; empty for a number that is none.
    pub fn token(&self, id: TokenId) -> &str {
        let range = self.tokens.get(id.0 as usize).cloned().unwrap_or(0..0);
        std::str::from_utf8(&self.file.bytes()[range]).expect("the reader checked every text")
    }

    /// Appends the bytes that `id` stands for.
    pub fn decode_to(&self, id: TokenId, out: &mut Vec<u8>) {
        let text = self.token(id);
        if self.is_special(id) {
            out.extend_from_slice(text.as_bytes());
            return;
        }
        for c in text.chars() {
            match self.bytes.get(&c) {
                Some(byte) => out.push(*byte),
                None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    /// The text of `ids`, special tokens as the file has them.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut bytes = Vec::new();
        ids.iter().for_each(|id| self.decode_to(*id, &mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether `id` is a token that text never produces.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.is_special.get(id.0 as usize).copied().unwrap_or(false)
    }

    /// The texts of all special tokens.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> + Clone {
        self.specials.iter().map(|(text, _)| text.as_str())
    }

    /// Whether `id` ends an answer.
    pub fn is_end(&self, id: TokenId) -> bool {
        self.ends.contains(&id)
    }

    /// The text of the token that begins every sequence; empty if there is none.
    pub fn bos(&self) -> &str {
        self.bos.map_or("", |id| self.token(id))
    }

    /// The text of the token that ends every sequence; empty if there is none.
    pub fn eos(&self) -> &str {
        self.eos.map_or("", |id| self.token(id))
    }

    /// Whether every sequence begins with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }
}

enum Piece<'a> {
    Plain(&'a str),
    Special(TokenId),
}

fn cut_out<'a>(plain: &'a str, special: &str, id: TokenId) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    for (n, part) in plain.split(special).enumerate() {
        if n > 0 {
            pieces.push(Piece::Special(id));
        }
        if !part.is_empty() {
            pieces.push(Piece::Plain(part));
        }
    }
    pieces
}

fn supported(found: Option<&str>, what: &str, names: &[&str]) -> Result<(), FormatError> {
    let found = found.unwrap_or("(none)");
    if names.contains(&found) {
        return Ok(());
    }
    Err(FormatError::Unsupported { what: format!("{what} `{found}`"), supported: names.join(", ") })
}

/// How text is cut into words, by the name in the file.
fn splitter(name: Option<&str>) -> Result<PreTokenizerWrapper, FormatError> {
    let gpt2 = ByteLevel::new(false, true, true);
    let name = name.unwrap_or("default");
    Ok(match name {
        "default" | "gpt-2" => gpt2.into(),
        "smollm" => Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
        _ => {
            supported(Some(name), "pre-tokenizer", &["smollm", "gpt-2", "default"])?;
            gpt2.into()
        }
    })
}

fn text<'a>(file: &'a Gguf, range: &Range<usize>) -> &'a str {
    std::str::from_utf8(&file.bytes()[range.clone()]).expect("the reader checked every text")
}

/// Tokens of the kinds control (3) and user-defined (4), longest first.
fn specials(file: &Gguf, tokens: &[Range<usize>]) -> Result<Vec<(String, TokenId)>, FormatError> {
    let key = "tokenizer.ggml.token_type";
    let Some(kinds) = file.header().numbers(key)? else { return Ok(Vec::new()) };
    if kinds.len() != tokens.len() {
        let problem = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
        return Err(wrong(key, &problem));
    }
    let all = tokens.iter().zip(kinds).enumerate();
    let mut specials: Vec<_> = all
        .filter(|(_, (range, kind))| matches!(kind, 3 | 4) && !range.is_empty())
        .map(|(id, (range, _))| (text(file, range).to_owned(), TokenId(id as u32)))
        .collect();
    specials.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    Ok(specials)
}

fn bpe(file: &Gguf, tokens: &[Range<usize>], merges: &[Range<usize>]) -> Result<BPE, FormatError> {
    let vocab = tokens.iter().enumerate().map(|(id, t)| (text(file, t).to_owned(), id as u32));
    let pair = |range: &Range<usize>| {
        let merge = text(file, range);
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| wrong("tokenizer.ggml.merges", &format!("has `{merge}`, which is not two tokens")))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    let merges = merges.iter().map(pair).collect::<Result<_, FormatError>>()?;
    BPE::builder()
        .vocab_and_merges(vocab.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .build()
        .map_err(|e| wrong("tokenizer.ggml.merges", &e.to_string().to_lowercase()))
}

/// The inverse of the byte-level alphabet: printable bytes stand for themselves, the others for
/// the characters from U+0100 on, in order.
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|b| !printable(b)).zip('\u{100}'..);
    let same = (0..=255u8).filter(printable).map(|b| (b, char::from(b)));
    same.chain(others).map(|(byte, c)| (c, byte)).collect()
}

/// Collects the bytes of tokens and gives whole characters only.
#[derive(Debug, Default)]
pub struct Utf8 {
    held: Vec<u8>,
}

impl Utf8 {
    /// The buffer to which the next token's bytes are appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.held
    }

    /// What is complete. Bytes that can never become a character turn into U+FFFD.
    pub fn take(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let bad = chunk.invalid();
            if bad.is_empty() || (used + bad.len() == self.held.len() && may_grow(bad)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += bad.len();
        }
        self.held.drain(..used);
        text
    }

    /// What is left when nothing more comes.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Whether more bytes could make `bytes` a character.
fn may_grow(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_whole_wherever_the_bytes_are_cut() {
        let text = "aé€🦀\u{fffd}z";
        for size in 1..5 {
            let mut utf8 = Utf8::default();
            let mut got = String::new();
            for part in text.as_bytes().chunks(size) {
                utf8.buffer().extend_from_slice(part);
                got.push_str(&utf8.take());
            }
            assert_eq!(got + &utf8.finish(), text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_become_replacements() {
        let mut utf8 = Utf8::default();
        utf8.buffer().extend_from_slice(b"a\xffb\xe2\x82");
        assert_eq!(utf8.take(), "a\u{fffd}b");
        assert_eq!(utf8.finish(), "\u{fffd}");
    }

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = byte_alphabet();
        let bytes: std::collections::HashSet<u8> = alphabet.values().copied().collect();
        assert_eq!((alphabet.len(), bytes.len()), (256, 256));
        assert_eq!(alphabet[&'Ġ'], b' ');
    }
}
