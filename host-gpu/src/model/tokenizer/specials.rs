//! Cutting out the parts of a text that are one token whatever surrounds them.
//!
//! At each place the longest one wins, from left to right, as in SentencePiece and Hugging Face's tokenizers.

use super::vocab::{Kind, Vocab};
use crate::ask::TokenId;

/// A part of a text.
pub(super) enum Piece<'a> {
    /// For the tokenizer's model.
    Plain(&'a str),
    /// One token.
    Token(TokenId),
}

/// The tokens to cut out: all of them, and those that are cut out of plain text, too.
pub(super) struct Specials {
    all: Texts,
    user: Texts,
}

impl Specials {
    pub(super) fn new(vocab: &Vocab) -> Self {
        let user = || vocab.of_kind(Kind::User);
        let all = user().chain(vocab.of_kind(Kind::Control)).chain(vocab.of_kind(Kind::Unknown));
        Self { all: Texts::new(vocab, all), user: Texts::new(vocab, user()) }
    }

    /// Cuts `text`; control tokens in it count only if `special`.
    pub(super) fn cut<'a>(&self, text: &'a str, special: bool) -> Vec<Piece<'a>> {
        let texts = if special { &self.all } else { &self.user };
        let mut pieces = Vec::new();
        let (mut done, mut at) = (0, 0);
        while at < text.len() {
            let Some((len, id)) = texts.longest_at(&text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            // A token's text is UTF-8 and so starts and ends between characters of `text`.
            pieces.extend(Some(&text[done..at]).filter(|plain| !plain.is_empty()).map(Piece::Plain));
            pieces.push(Piece::Token(TokenId(id)));
            at += len;
            done = at;
        }
        pieces.extend(Some(&text[done..]).filter(|plain| !plain.is_empty()).map(Piece::Plain));
        pieces
    }
}

/// Texts in order, so that those that start alike stand together.
struct Texts {
    sorted: Vec<(Box<[u8]>, u32)>,
    /// Whether some text starts with this byte: most places in a text are done with one look.
    starts: [bool; 256],
}

impl Texts {
    fn new(vocab: &Vocab, ids: impl Iterator<Item = u32>) -> Self {
        let entry = |id| (Box::<[u8]>::from(vocab.text(id).as_bytes()), id);
        let mut sorted: Vec<_> = ids.map(entry).filter(|(text, _)| !text.is_empty()).collect();
        sorted.sort_unstable();
        let mut starts = [false; 256];
        sorted.iter().for_each(|(text, _)| starts[usize::from(text[0])] = true);
        Self { sorted, starts }
    }

    /// The longest entry that `text` starts with: its length and token.
    fn longest_at(&self, text: &[u8]) -> Option<(usize, u32)> {
        if !self.starts[usize::from(*text.first()?)] {
            return None;
        }
        let mut best = None;
        // Invariant: `range` has the entries that start with `text[..depth]`, a shorter one first.
        let mut range = self.sorted.as_slice();
        for (depth, byte) in text.iter().enumerate() {
            range = &range[range.partition_point(|(entry, _)| entry.get(depth) < Some(byte))..];
            range = &range[..range.partition_point(|(entry, _)| entry.get(depth) == Some(byte))];
            let Some((first, id)) = range.first() else { break };
            if first.len() == depth + 1 {
                best = Some((first.len(), *id));
            }
        }
        best
    }
}
