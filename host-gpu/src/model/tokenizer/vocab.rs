//! The tokens of a model: their texts, what kind each is, and which token a text is.

use crate::ask::TokenId;
use crate::format::FormatError;
use crate::format::gguf::{Gguf, Header, wrong};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";

/// Turn markers that some converters took for text.
const TURN_MARKS: &[&str] = &["<start_of_turn>", "<end_of_turn>"];

/// What a token is. The numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text.
    Normal = 1,
    /// Stands for what has no token.
    Unknown = 2,
    /// Steers the model: no text produces it unless the caller says so, and it is no text.
    Control = 3,
    /// Text that is always one token.
    User = 4,
    /// Text that training never saw.
    Unused = 5,
    /// One byte, `<0x00>` to `<0xFF>`.
    Byte = 6,
}

impl Kind {
    fn new(number: i64) -> Option<Self> {
        Some(match number {
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::User,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// The bytes in which the tokens' texts stand.
pub(super) enum Source {
    /// A model file, which stays mapped.
    File(Arc<Gguf>),
    /// Bytes of our own.
    Owned(Vec<u8>),
}

impl Source {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::File(file) => file.bytes(),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Texts and kinds by token, tokens by text.
///
/// Nothing is copied out of the file: a large vocabulary costs one hash table of numbers.
pub(super) struct Vocab {
    source: Source,
    texts: Vec<Range<usize>>,
    kinds: Vec<Kind>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Vocab {
    /// Reads the vocabulary that `header`, the header of `source`, describes.
    ///
    /// # Errors
    /// `Metadata` if arrays are missing or do not fit each other, or two tokens have one text.
    pub(super) fn read(header: &Header, source: Source) -> Result<Self, FormatError> {
        let texts = header.texts(TOKENS)?.ok_or_else(|| wrong(TOKENS, "is missing"))?.to_vec();
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(wrong(TOKENS, &format!("has {} entries", texts.len())));
        }
        let kinds = match header.numbers(KINDS)? {
            Some(numbers) => kinds(numbers, texts.len())?,
            None => vec![Kind::Normal; texts.len()],
        };
        Self::new(source, texts, kinds)
    }

    /// A vocabulary whose token `n` has the text at `texts[n]` of `source`, which is UTF-8.
    ///
    /// # Errors
    /// `Metadata` if two tokens have one text.
    pub(super) fn new(source: Source, texts: Vec<Range<usize>>, kinds: Vec<Kind>) -> Result<Self, FormatError> {
        let hasher = DefaultHashBuilder::default();
        let mut vocab = Self { index: HashTable::with_capacity(texts.len()), source, texts, kinds, hasher };
        for id in 0..vocab.texts.len() as u32 {
            vocab.add(id)?;
        }
        (0..vocab.texts.len()).for_each(|n| vocab.promote(n));
        Ok(vocab)
    }

    fn add(&mut self, id: u32) -> Result<(), FormatError> {
        let (bytes, hasher, texts) = (self.source.bytes(), &self.hasher, &self.texts);
        let text = &bytes[texts[id as usize].clone()];
        if text.is_empty() {
            return Ok(()); // a gap in the numbers: no text is this token
        }
        if let Some(first) = self.find(text) {
            let text = String::from_utf8_lossy(text);
            return Err(wrong(TOKENS, &format!("has `{text}` twice, as {first} and as {id}")));
        }
        let hash = |id: &u32| hasher.hash_one(&bytes[texts[*id as usize].clone()]);
        self.index.insert_unique(hash(&id), id, hash);
        Ok(())
    }

    /// Makes text that is plainly a mark of the chat format a control token, whatever the file calls
    /// it: otherwise the content of a message could end its turn.
    fn promote(&mut self, n: usize) {
        let text = self.text(n as u32);
        let bars = [("<|", "|>"), ("<｜", "｜>")];
        let is_mark = |(open, close): (&str, &str)| text.starts_with(open) && text.ends_with(close);
        if self.kinds[n] == Kind::User && (bars.into_iter().any(is_mark) || TURN_MARKS.contains(&text)) {
            self.kinds[n] = Kind::Control;
        }
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The bytes in which the texts stand.
    pub(super) fn source(&self) -> &[u8] {
        self.source.bytes()
    }

    /// The token whose text is `text`, of whatever kind.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        let is = |id: &u32| self.bytes(*id) == text;
        self.index.find(self.hasher.hash_one(text), is).copied()
    }

    /// The token that plain text `text` may become.
    pub(super) fn find_plain(&self, text: &[u8]) -> Option<u32> {
        let is_text = |id: &u32| matches!(self.kind(*id), Kind::Normal | Kind::User | Kind::Unused);
        self.find(text).filter(is_text)
    }

    /// The text of `id`; empty for a number that is no token.
    pub(super) fn text(&self, id: u32) -> &str {
        std::str::from_utf8(self.bytes(id)).expect("the reader checked every text")
    }

    fn bytes(&self, id: u32) -> &[u8] {
        let range = self.texts.get(id as usize).cloned().unwrap_or(0..0);
        &self.source.bytes()[range]
    }

    /// What `id` is.
    pub(super) fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }

    /// The tokens of one kind.
    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = u32> + Clone + '_ {
        self.kinds.iter().zip(0..).filter(move |(k, _)| **k == kind).map(|(_, id)| id)
    }

    /// The token that the metadata `key` names.
    ///
    /// # Errors
    /// `Metadata` if it is no token.
    pub(super) fn named(&self, header: &Header, key: &str) -> Result<Option<TokenId>, FormatError> {
        // u32::MAX means "none" to some converters.
        let number = header.number(key, u32::MAX.into())?.filter(|n| *n != u64::from(u32::MAX));
        match number {
            Some(n) if n >= self.len() as u64 => {
                Err(wrong(key, &format!("is {n}, and there are {} tokens", self.len())))
            }
            number => Ok(number.map(|n| TokenId(n as u32))),
        }
    }
}

fn kinds(numbers: &[i64], tokens: usize) -> Result<Vec<Kind>, FormatError> {
    same_length(KINDS, numbers.len(), tokens)?;
    let kind = |(n, number): (usize, &i64)| {
        Kind::new(*number).ok_or_else(|| wrong(KINDS, &format!("has {number} for token {n}, which is no type")))
    };
    numbers.iter().enumerate().map(kind).collect()
}

/// Refuses an array that does not have one entry for each token.
pub(super) fn same_length(key: &str, entries: usize, tokens: usize) -> Result<(), FormatError> {
    if entries == tokens {
        return Ok(());
    }
    Err(wrong(key, &format!("has {entries} entries for {tokens} tokens")))
}
