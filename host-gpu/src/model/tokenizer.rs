//! Text to tokens and back.
//!
//! Everything comes from the model file, which is hostile until checked. Special tokens are split
//! off first, because only the caller knows which parts of a text may contain them; what is left goes
//! to the kind of model that the file names: `bpe`, `spm` or `json`.

use crate::ask::TokenId;
use crate::format::FormatError;
use crate::format::gguf::{Gguf, Header, wrong};
use bpe::Bpe;
use json::{Json, Parts};
use specials::{Piece, Specials};
use spm::Spm;
use std::sync::Arc;
use vocab::{Kind, Source, Vocab};

mod bpe;
mod json;
mod merge;
mod specials;
mod split;
mod spm;
mod utf8;
mod vocab;

pub use utf8::Utf8;

/// Names under which files keep the tokens that end an answer, beside the ones in [`END_KEYS`].
const END_NAMES: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<｜end▁of▁sentence｜>",
];
/// Metadata that names tokens that end an answer.
const END_KEYS: &[&str] =
    &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// Phi-3's special tokens that leave the white space after them alone; the others swallow it.
const PHI3_KEEPS_SPACE: &[&str] = &["<unk>", "<s>", "<|endoftext|>"];

/// A piece of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// Its text.
    pub text: &'a str,
    /// Whether special tokens in it are recognised; otherwise it is plain text.
    pub special: bool,
}

/// A model's vocabulary.
///
/// A special token is one that steers the model and that text never produces. Tokens that the
/// file calls user-defined are text: they are recognised everywhere and written out.
pub struct Tokenizer {
    vocab: Vocab,
    model: Kinds,
    specials: Specials,
    ends: Vec<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    add_eos: bool,
    /// Tokens that swallow the white space after them.
    swallowing: Vec<TokenId>,
}

/// What becomes of text between special tokens.
enum Kinds {
    Bpe(Bpe),
    Spm(Spm),
    Json(Json),
}

impl Tokenizer {
    /// Builds the tokenizer that `file` describes.
    ///
    /// # Errors
    /// `Unsupported` names the tokenizer model or pre-tokenizer we do not have, `Metadata` the key that
    /// cannot be.
    pub fn read(file: Arc<Gguf>) -> Result<Self, FormatError> {
        Self::build(file.header(), Source::File(file.clone()))
    }

    /// As [`Tokenizer::read`], from a GGUF file in memory; it need not have the tensors' data.
    ///
    /// # Errors
    /// As [`Tokenizer::read`], and for bytes that are no GGUF file.
    pub fn read_bytes(file: Vec<u8>) -> Result<Self, FormatError> {
        Self::build(&Header::parse(&file)?, Source::Owned(file))
    }

    /// Builds the tokenizer that a whole `tokenizer.json` describes.
    ///
    /// `ends` are the tokens that end an answer, `eos_token_id` in the checkpoint's `config.json`, the
    /// usual one first.
    ///
    /// # Errors
    /// `Metadata` if the file is damaged or does not have `ends`, `Unsupported` if its model is neither BPE nor WordPiece.
    pub fn from_json(json: &[u8], ends: &[TokenId]) -> Result<Self, FormatError> {
        let Parts { json, vocab, around, swallowing } = Json::read(json)?;
        if let Some(end) = ends.iter().find(|id| id.0 as usize >= vocab.len()) {
            let problem = format!("is {}, and there are {} tokens", end.0, vocab.len());
            return Err(wrong("eos_token_id", &problem));
        }
        let eos = ends.first().or(around.get(1)).copied();
        // What the file puts around every sequence: the first token, the last, or both.
        let bos = around.first().copied().filter(|id| Some(*id) != eos || around.len() > 1);
        Ok(Self {
            add_bos: bos.is_some(),
            add_eos: eos.is_some() && around.len() > usize::from(bos.is_some()),
            ends: end_names(&vocab).chain(ends.iter().copied()).collect(),
            specials: Specials::new(&vocab),
            vocab,
            model: Kinds::Json(json),
            swallowing,
            bos,
            eos,
        })
    }

    fn build(header: &Header, source: Source) -> Result<Self, FormatError> {
        let name = header.text("tokenizer.ggml.model")?.unwrap_or("(none)");
        let is_spm = match name {
            "llama" => true,
            "gpt2" => false,
            _ => {
                let what = format!("tokenizer model `{name}`");
                return Err(FormatError::Unsupported { what, supported: "gpt2, llama".into() });
            }
        };
        let vocab = Vocab::read(header, source)?;
        // SentencePiece files that name none mean these three.
        let named = |key: &str, usual: u32| -> Result<Option<TokenId>, FormatError> {
            let usual = Some(usual).filter(|id| is_spm && is_special(vocab.kind(*id)));
            Ok(vocab.named(header, key)?.or(usual.map(TokenId)))
        };
        let unknown = named("tokenizer.ggml.unknown_token_id", 0)?;
        let bos = named("tokenizer.ggml.bos_token_id", 1)?;
        let eos = named(END_KEYS[0], 2)?;
        let model = match is_spm {
            true => Kinds::Spm(Spm::read(header, &vocab, unknown)?),
            false => Kinds::Bpe(Bpe::read(header, &vocab)?),
        };
        let usual = match &model {
            Kinds::Bpe(bpe) => bpe.adds_bos(),
            _ => true,
        };
        Ok(Self {
            add_bos: header.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(usual),
            add_eos: header.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            ends: ends(header, &vocab, eos)?,
            swallowing: if is_spm { swallowing(header, &vocab)? } else { Vec::new() },
            specials: Specials::new(&vocab),
            vocab,
            model,
            bos,
            eos,
        })
    }

    /// The tokens of `text`; `special` says whether special tokens in it are recognised.
    pub fn encode(&self, text: &str, special: bool) -> Vec<TokenId> {
        self.encode_spans(&[Span { text, special }])
    }

    /// The tokens of `spans` as one text: only special tokens end where a span does.
    pub fn encode_spans(&self, spans: &[Span<'_>]) -> Vec<TokenId> {
        let mut ids = Vec::new();
        ids.extend(self.bos.filter(|_| self.add_bos));
        let mut text = Plain { text: String::new(), trim: false };
        for piece in spans.iter().flat_map(|span| self.specials.cut(span.text, span.special)) {
            match piece {
                Piece::Plain(part) => text.push(part),
                Piece::Token(id) => {
                    self.encode_plain(&text, &mut ids);
                    ids.push(id);
                    text = Plain { text: String::new(), trim: self.swallowing.contains(&id) };
                }
            }
        }
        self.encode_plain(&text, &mut ids);
        ids.extend(self.eos.filter(|_| self.add_eos));
        ids
    }

    fn encode_plain(&self, plain: &Plain, ids: &mut Vec<TokenId>) {
        if plain.text.is_empty() {
            return;
        }
        match &self.model {
            Kinds::Bpe(bpe) => bpe.encode(&self.vocab, &plain.text, ids),
            Kinds::Spm(spm) => spm.encode(&self.vocab, &plain.text, ids),
            Kinds::Json(json) => json.encode(&plain.text, ids),
        }
    }

    /// The text of a token as the file has it; empty for a number that is none.
    pub fn token(&self, id: TokenId) -> &str {
        self.vocab.text(id.0)
    }

    /// Appends the bytes that `id` stands for.
    pub fn decode_to(&self, id: TokenId, out: &mut Vec<u8>) {
        match (self.vocab.kind(id.0), &self.model) {
            (Kind::Control | Kind::Unknown | Kind::User, _) => out.extend_from_slice(self.token(id).as_bytes()),
            (_, Kinds::Bpe(bpe)) => bpe.decode_to(&self.vocab, id, out),
            (_, Kinds::Spm(_)) => Spm::decode_to(&self.vocab, id, out),
            (_, Kinds::Json(json)) => json.decode_to(&self.vocab, id, out),
        }
    }

    /// The text of `ids`, special tokens as the file has them.
    ///
    /// The space that SentencePiece puts before a text is taken off again at the very start.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut bytes = Vec::new();
        ids.iter().for_each(|id| self.decode_to(*id, &mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let prefixed = match &self.model {
            Kinds::Bpe(_) => false,
            Kinds::Spm(spm) => spm.has_space_prefix(),
            Kinds::Json(json) => json.has_space_prefix(),
        };
        match text.strip_prefix(' ') {
            Some(rest) if prefixed => rest.to_owned(),
            _ => text.into_owned(),
        }
    }

    /// Whether `id` is a token that text never produces.
    pub fn is_special(&self, id: TokenId) -> bool {
        is_special(self.vocab.kind(id.0))
    }

    /// Whether a special token has this text.
    pub fn find_special(&self, text: &str) -> bool {
        self.vocab.find(text.as_bytes()).is_some_and(|id| is_special(self.vocab.kind(id)))
    }

    /// The texts of all special tokens.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> + Clone {
        let specials = self.vocab.of_kind(Kind::Control).chain(self.vocab.of_kind(Kind::Unknown));
        specials.map(|id| self.vocab.text(id)).filter(|text| !text.is_empty())
    }

    /// Whether `id` ends an answer.
    pub fn is_end(&self, id: TokenId) -> bool {
        self.ends.contains(&id)
    }

    /// The tokens that end an answer.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// How many tokens there are.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
    }

    /// The text of the token that begins every sequence; empty if there is none.
    pub fn bos(&self) -> &str {
        self.bos.map_or("", |id| self.token(id))
    }

    /// The text of the token that ends every sequence; empty if there is none.
    pub fn eos(&self) -> &str {
        self.eos.map_or("", |id| self.token(id))
    }

    /// Cuts `ids`, a whole sequence, to at most `most` tokens; the one that ends every sequence stays.
    pub fn cut(&self, ids: &mut Vec<TokenId>, most: usize) {
        if ids.len() > most {
            ids.truncate(most);
            if let (Some(last), Some(eos)) = (ids.last_mut(), self.eos.filter(|_| self.add_eos)) {
                *last = eos;
            }
        }
    }

    /// Whether every sequence begins with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }
}

/// Text between two special tokens.
struct Plain {
    text: String,
    /// White space at its start does not count.
    trim: bool,
}

impl Plain {
    fn push(&mut self, part: &str) {
        let skip = self.trim && self.text.is_empty();
        self.text.push_str(if skip { part.trim_start() } else { part });
    }
}

fn is_special(kind: Kind) -> bool {
    matches!(kind, Kind::Control | Kind::Unknown)
}

/// The tokens that end an answer by their names.
fn end_names(vocab: &Vocab) -> impl Iterator<Item = TokenId> + '_ {
    // `</s>` is a tag of HTML to Gemma: a name counts only where the token is no text.
    let found = END_NAMES.iter().filter_map(|name| vocab.find(name.as_bytes()));
    found.filter(|id| is_special(vocab.kind(*id))).map(TokenId)
}

/// The tokens that end an answer.
fn ends(header: &Header, vocab: &Vocab, eos: Option<TokenId>) -> Result<Vec<TokenId>, FormatError> {
    let mut ends: Vec<TokenId> = end_names(vocab).chain(eos).collect();
    for key in END_KEYS {
        ends.extend(vocab.named(header, key)?);
    }
    Ok(ends)
}

/// Phi-3's special tokens swallow the white space after them, which its GGUF files cannot say.
fn swallowing(header: &Header, vocab: &Vocab) -> Result<Vec<TokenId>, FormatError> {
    let name = header.text("general.name")?.unwrap_or_default().to_lowercase();
    if !name.contains("phi-3") && !name.contains("phi3") {
        return Ok(Vec::new());
    }
    let swallows = |id: &u32| !PHI3_KEEPS_SPACE.contains(&vocab.text(*id));
    Ok(vocab.of_kind(Kind::Control).filter(swallows).map(TokenId).collect())
}
