//! Hugging Face's `tokenizer.json`, which safetensors checkpoints carry, through the library that defines it.
//!
//! The library trusts its files and we do not: what it would take on faith is checked first.

use super::bpe::Alphabet;
use super::spm::Spm;
use super::vocab::{Kind, Source, Vocab};
use crate::ask::TokenId;
use crate::format::FormatError;
use crate::format::gguf::wrong;
use serde_json::Value;
use std::collections::HashMap;

/// Numbers without a token that a vocabulary may have: room for tokens that were taken out.
const MOST_GAPS: usize = 1 << 16;

/// What texts and words may go through: what the classes of models that we run have, and little more.
const NORMALIZERS: &[&str] =
    &["BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Sequence", "Strip"];
const PRE_TOKENIZERS: &[&str] =
    &["BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split"];

/// The library's tokenizer, for text without special tokens.
pub(super) struct Json {
    inner: Box<tokenizers::Tokenizer>,
    /// How tokens spell bytes, if not as SentencePiece does.
    alphabet: Option<Alphabet>,
    strips_space: bool,
    /// What begins a piece that goes on a word, where all others begin one.
    goes_on: Option<String>,
}

/// What the file says beyond how text becomes tokens.
pub(super) struct Parts {
    pub(super) json: Json,
    pub(super) vocab: Vocab,
    /// The tokens that go before and after every sequence.
    pub(super) around: Vec<TokenId>,
    /// Tokens that swallow the white space after them.
    pub(super) swallowing: Vec<TokenId>,
}

impl Json {
    /// Reads a whole `tokenizer.json`.
    ///
    /// # Errors
    /// `Metadata` if it is damaged, `Unsupported` if its model is neither BPE nor WordPiece.
    pub(super) fn read(json: &[u8]) -> Result<Parts, FormatError> {
        let bad = |problem: &str| wrong("tokenizer.json", problem);
        let mut value: Value = serde_json::from_slice(json).map_err(|e| bad(&e.to_string()))?;
        let goes_on = check_model(&value["model"])?;
        check_kinds("normalizer", &value["normalizer"], NORMALIZERS)?;
        check_kinds("pre_tokenizer", &value["pre_tokenizer"], PRE_TOKENIZERS)?;
        value["model"]["dropout"] = Value::Null; // chance is for training
        let fields = value.as_object_mut().ok_or_else(|| bad("is no object"))?;
        // What goes around and what comes back we do ourselves: the library would trust these.
        let mut taken = |key| fields.remove(key).unwrap_or_default();
        let (processor, decoder) = (taken("post_processor"), taken("decoder").to_string());
        for unused in ["padding", "truncation"] {
            taken(unused);
        }
        let inner: tokenizers::Tokenizer = serde_json::from_value(value).map_err(|e| bad(&e.to_string()))?;
        let mut parts = Self::with(inner, &processor, &decoder)?;
        parts.json.goes_on = goes_on;
        Ok(parts)
    }

    fn with(mut inner: tokenizers::Tokenizer, processor: &Value, decoder: &str) -> Result<Parts, FormatError> {
        inner.set_encode_special_tokens(true);
        let alphabet = decoder.contains("ByteLevel").then(Alphabet::new);
        let added = inner.get_added_tokens_decoder();
        let kind = |id: u32, text: &str| match added.get(&id) {
            Some(token) if token.special => Kind::Control,
            Some(_) => Kind::User,
            None if alphabet.is_none() && super::spm::byte_of(text).is_some() => Kind::Byte,
            None => Kind::Normal,
        };
        let vocab = vocab(&inner.get_vocab(true), kind)?;
        let around = around(processor, vocab.len(), 0)?;
        let swallowing = added.iter().filter(|(_, token)| token.rstrip).map(|(id, _)| TokenId(*id)).collect();
        let strips_space = decoder.contains("\"Strip\"") || decoder.contains("\"Metaspace\"");
        Ok(Parts {
            json: Self { inner: Box::new(inner), alphabet, strips_space, goes_on: None },
            vocab,
            around,
            swallowing,
        })
    }

    /// Appends the tokens of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<TokenId>) {
        let encoding = self.inner.encode_fast(text, false);
        // BPE fails only for an unknown token that is not in the vocabulary, which was checked.
        ids.extend(encoding.iter().flat_map(|encoding| encoding.get_ids()).map(|id| TokenId(*id)));
    }

    /// Appends the bytes that `id`, which is no special token, stands for.
    pub(super) fn decode_to(&self, vocab: &Vocab, id: TokenId, out: &mut Vec<u8>) {
        match (&self.alphabet, &self.goes_on) {
            (Some(alphabet), _) => alphabet.spelled(vocab.text(id.0), out),
            (None, None) => Spm::decode_to(vocab, id, out),
            (None, Some(goes_on)) => match vocab.text(id.0).strip_prefix(goes_on) {
                Some(rest) => out.extend_from_slice(rest.as_bytes()),
                None => {
                    out.push(b' ');
                    out.extend_from_slice(vocab.text(id.0).as_bytes());
                }
            },
        }
    }

    /// Whether a whole text starts with a space that nobody wrote.
    pub(super) fn has_space_prefix(&self) -> bool {
        self.strips_space || self.goes_on.is_some()
    }
}

/// Longest word that is split into pieces; each of its beginnings is looked up.
const MOST_WORD: u64 = 1000;

/// Refuses what the library would panic on or fail at later. Gives what begins a piece that goes on a word, if the model
/// has such.
fn check_model(model: &Value) -> Result<Option<String>, FormatError> {
    match model["type"].as_str().unwrap_or("BPE") {
        "BPE" => check_bpe(model).map(|()| None),
        "WordPiece" => check_word_piece(model).map(Some),
        kind => {
            let what = format!("tokenizer.json with a model of type {:?}", kind.chars().take(40).collect::<String>());
            Err(FormatError::Unsupported { what, supported: "BPE, WordPiece".into() })
        }
    }
}

fn check_word_piece(model: &Value) -> Result<String, FormatError> {
    let bad = |problem: &str| wrong("tokenizer.json", problem);
    let tokens = model["vocab"].as_object().ok_or_else(|| bad("has no model.vocab"))?;
    let unknown = model["unk_token"].as_str().ok_or_else(|| bad("has no model.unk_token"))?;
    if !tokens.contains_key(unknown) {
        return Err(bad("has a model.unk_token that is no token"));
    }
    if model["max_input_chars_per_word"].as_u64().is_none_or(|most| most > MOST_WORD) {
        return Err(bad(&format!("has no model.max_input_chars_per_word of up to {MOST_WORD}")));
    }
    let goes_on = model["continuing_subword_prefix"].as_str().filter(|prefix| !prefix.is_empty());
    Ok(goes_on.ok_or_else(|| bad("has no model.continuing_subword_prefix"))?.to_owned())
}

fn check_bpe(model: &Value) -> Result<(), FormatError> {
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(wrong("tokenizer.json", &format!("has a model.{key}, which is not supported")));
        }
    }
    let tokens = model["vocab"].as_object().ok_or_else(|| wrong("tokenizer.json", "has no model.vocab"))?;
    if let Some(unknown) = model["unk_token"].as_str().filter(|text| !tokens.contains_key(*text)) {
        return Err(wrong("tokenizer.json", &format!("has the unk_token `{unknown}`, which is no token")));
    }
    let merges = model["merges"].as_array().ok_or_else(|| wrong("tokenizer.json", "has no model.merges"))?;
    for merge in merges {
        let joined = match merge {
            Value::String(line) => line.replacen(' ', "", 1),
            pair => pair[0].as_str().unwrap_or_default().to_owned() + pair[1].as_str().unwrap_or_default(),
        };
        if !tokens.contains_key(&joined) {
            return Err(wrong("tokenizer.json", &format!("merges {merge}, and `{joined}` is no token")));
        }
    }
    Ok(())
}

/// Refuses parts of other kinds than `known`: the library has many, and not all were made for files like these.
fn check_kinds(key: &str, part: &Value, known: &[&str]) -> Result<(), FormatError> {
    if part.is_null() {
        return Ok(());
    }
    let kind = part["type"].as_str().unwrap_or("(none)");
    if !known.contains(&kind) {
        let what = format!("tokenizer.json with a {key} of type {:?}", kind.chars().take(40).collect::<String>());
        return Err(FormatError::Unsupported { what, supported: known.join(", ") });
    }
    let inner = part.get("normalizers").or(part.get("pretokenizers")).and_then(Value::as_array);
    inner.into_iter().flatten().try_for_each(|part| check_kinds(key, part, known))
}

/// The tokens that `processor` puts around every sequence, in order.
fn around(processor: &Value, tokens: usize, depth: usize) -> Result<Vec<TokenId>, FormatError> {
    let bad = |problem: &str| wrong("tokenizer.json", &format!("has a post_processor {problem}"));
    let token = |id: &Value| {
        let id = id.as_u64().filter(|id| *id < tokens as u64);
        id.map(|id| TokenId(id as u32)).ok_or_else(|| bad("that adds something that is no token"))
    };
    match processor["type"].as_str() {
        None | Some("ByteLevel") => Ok(Vec::new()),
        Some("TemplateProcessing") => {
            let pieces = processor["single"].as_array().ok_or_else(|| bad("without a template"))?;
            let special = |piece: &Value| processor["special_tokens"][piece.as_str()?]["ids"].as_array().cloned();
            let specials =
                pieces.iter().filter_map(|piece| piece.get("SpecialToken")).map(|piece| special(&piece["id"]));
            let ids: Option<Vec<_>> = specials.collect();
            ids.ok_or_else(|| bad("with an unknown special token"))?.iter().flatten().map(token).collect()
        }
        Some("RobertaProcessing" | "BertProcessing") => {
            [&processor["cls"], &processor["sep"]].into_iter().map(|pair| token(&pair[1])).collect()
        }
        Some("Sequence") if depth == 0 => {
            let parts = processor["processors"].as_array().ok_or_else(|| bad("without parts"))?;
            let parts = parts.iter().map(|part| around(part, tokens, depth + 1)).collect::<Result<Vec<_>, _>>()?;
            let mut adding = parts.into_iter().filter(|ids| !ids.is_empty());
            match (adding.next(), adding.next()) {
                (_, Some(_)) => Err(bad("of which more than one part adds tokens")),
                (ids, None) => Ok(ids.unwrap_or_default()),
            }
        }
        Some(_) => Err(bad("of a type that is not supported")),
    }
}

fn vocab(tokens: &HashMap<String, u32>, kind: impl Fn(u32, &str) -> Kind) -> Result<Vocab, FormatError> {
    let len = tokens.values().max().map_or(0, |id| *id as usize + 1);
    if len == 0 || len > tokens.len() + MOST_GAPS {
        let problem = format!("has {} tokens with numbers up to {}", tokens.len(), len.saturating_sub(1));
        return Err(wrong("tokenizer.json", &problem));
    }
    let mut source = Vec::new();
    let (mut texts, mut kinds) = (vec![0..0; len], vec![Kind::Unused; len]);
    for (text, id) in tokens {
        if !texts[*id as usize].is_empty() {
            return Err(wrong("tokenizer.json", &format!("gives the number {id} twice, once to `{text}`")));
        }
        let start = source.len();
        source.extend_from_slice(text.as_bytes());
        texts[*id as usize] = start..source.len();
        kinds[*id as usize] = kind(*id, text);
    }
    Vocab::new(Source::Owned(source), texts, kinds)
}
