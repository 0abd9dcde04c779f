//! The loop that both kinds of tokenizer share: the best pair of neighbours becomes one, again and again.
//!
//! SentencePiece and byte-level BPE differ in what pairs may merge and in which order; that is the
//! caller's rule. Among pairs of one rank the leftmost goes first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No neighbour, or no token.
const NONE: usize = usize::MAX;

/// A part of the text that is, or may become part of, one token.
#[derive(Clone, Debug)]
pub(super) struct Symbol {
    /// Where its bytes start in the text.
    pub(super) start: usize,
    /// Where they end; at `start` once a neighbour took them over.
    pub(super) end: usize,
    /// The token it is, if it is one.
    pub(super) id: Option<u32>,
    previous: usize,
    next: usize,
}

impl Symbol {
    fn is_gone(&self) -> bool {
        self.start == self.end
    }
}

/// The symbols of one text, in order.
#[derive(Default)]
pub(super) struct Symbols(Vec<Symbol>);

impl Symbols {
    /// Appends what stands at `start..end`; `end` is greater than `start`.
    pub(super) fn push(&mut self, start: usize, end: usize, id: Option<u32>) {
        let n = self.0.len();
        if let Some(last) = self.0.last_mut() {
            last.next = n;
        }
        self.0.push(Symbol { start, end, id, previous: n.checked_sub(1).unwrap_or(NONE), next: NONE });
    }

    /// Merges until no pair is left for which `rule` gives a rank (small ones go first) and a token.
    pub(super) fn merge(&mut self, rule: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        let mut queue = BinaryHeap::new();
        let consider = |symbols: &[Symbol], left: usize, queue: &mut BinaryHeap<_>| {
            let Some(a) = symbols.get(left) else { return };
            let Some(b) = symbols.get(a.next) else { return };
            if let Some((rank, id)) = rule(a, b) {
                queue.push(Reverse((rank, left, a.next, b.end, id)));
            }
        };
        (0..self.0.len()).for_each(|left| consider(&self.0, left, &mut queue));
        while let Some(Reverse((_, left, right, end, id))) = queue.pop() {
            let other = self.0[right].clone();
            // Neighbours merged since this pair was queued.
            if self.0[left].is_gone() || other.is_gone() || other.end != end {
                continue;
            }
            self.0[right].end = other.start;
            (self.0[left].end, self.0[left].id, self.0[left].next) = (end, Some(id), other.next);
            if let Some(after) = self.0.get_mut(other.next) {
                after.previous = left;
            }
            consider(&self.0, self.0[left].previous, &mut queue);
            consider(&self.0, left, &mut queue);
        }
    }

    /// What is left, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.0.iter().filter(|symbol| !symbol.is_gone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges `text` where `rule` names the pairs, best first.
    fn merged(text: &str, pairs: &[&str]) -> Vec<String> {
        let mut symbols = Symbols::default();
        (0..text.len()).for_each(|n| symbols.push(n, n + 1, None));
        symbols.merge(|a, b| {
            let rank = pairs.iter().position(|pair| *pair == &text[a.start..b.end])?;
            Some((rank as u32, rank as u32))
        });
        symbols.iter().map(|s| text[s.start..s.end].to_owned()).collect()
    }

    #[test]
    fn ranks_decide_and_the_leftmost_of_equals_goes_first() {
        assert_eq!(merged("aaa", &["aa"]), ["aa", "a"]);
        assert_eq!(merged("abc", &["bc", "ab", "abc"]), ["abc"]);
        assert_eq!(merged("abc", &["ab", "bc"]), ["ab", "c"]);
        assert_eq!(merged("abcd", &["bc", "ab", "cd", "bcd"]), ["a", "bcd"]);
        assert_eq!(merged("", &["a"]), [""; 0]);
    }

    #[test]
    fn a_pair_whose_right_side_grew_is_not_merged() {
        // "bc" goes first, then "ab" is no longer a pair of neighbours.
        assert_eq!(merged("abc", &["bc", "ab"]), ["a", "bc"]);
    }
}
