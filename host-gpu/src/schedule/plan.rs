//! What a step does: a token for each of some sequences that decode, then some tokens of prompts.

use super::share::cost;
use super::{Chunk, ModelKey, Scheduler, SeqId, Sequence, Stretch};
use std::collections::BTreeMap;

/// How large a step may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Allowance {
    /// Decoding sequences, those that are due among them; they come in any case.
    pub(crate) decoding: usize,
    /// Tokens of prompts.
    pub(crate) prompt_tokens: usize,
    /// Where others wait for the step: what goes through some layers only, if there is no time to take it through all.
    pub(crate) chunk: Option<Chunk>,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: SeqId,
    /// Tokens that are in the pages already.
    pub(crate) position: usize,
    /// Tokens to process now.
    pub(crate) tokens: usize,
    /// Whether this is the newest token of a decoding sequence, rather than some of a prompt.
    pub(crate) decodes: bool,
    /// Whether the last of them gives the sequence's next token.
    pub(crate) gives_token: bool,
    /// The layers that they go through now, if not all.
    pub(crate) stretch: Option<Stretch>,
}

impl Item {
    /// Whether its tokens are in all layers' pages after it.
    pub(crate) fn completes(&self) -> bool {
        self.stretch.is_none_or(|stretch| stretch.is_last())
    }

    /// Its tokens by their part of all layers.
    pub(crate) fn work(&self) -> f64 {
        self.tokens as f64 * self.stretch.map_or(1.0, |stretch| stretch.share())
    }
}

impl Scheduler {
    /// What the next step of `model` does.
    pub(crate) fn plan(&self, model: ModelKey, allowance: Allowance) -> Vec<Item> {
        let mut items = self.decodes(model, allowance.decoding);
        let mut prompts: Vec<&Sequence> = self.of(model).filter(|s| !s.decodes()).collect();
        let served = |s: &Sequence| self.served.of(s.share.account);
        prompts.sort_by(|a, b| b.share.priority.cmp(&a.share.priority).then(served(a).total_cmp(&served(b))));
        let (mut used, mut stretched) = (0.0, None);
        for s in prompts {
            let left = s.tokens.len() - s.done;
            let budget = (allowance.prompt_tokens as f64 - used) as usize;
            let chunk =
                allowance.chunk.filter(|_| s.layers > 1 && !s.whole).map(|chunk| chunk.after(used, left, s.layers));
            if s.begun.is_some() || chunk.is_some_and(|chunk| chunk.is_too_much()) {
                // A step has one such at most.
                if budget == 0 || stretched.is_some() {
                    break;
                }
                let item = s.next_stretch(chunk);
                used += item.work();
                stretched = Some(item);
                continue;
            }
            let tokens = match s.whole {
                // One that is too long for any step goes alone.
                true if left > budget && budget < allowance.prompt_tokens => continue,
                true if budget > 0 => left,
                _ => budget.min(left),
            };
            if tokens == 0 {
                break;
            }
            used += tokens as f64;
            items.push(s.item(tokens));
        }
        // What goes through some layers only is the last.
        items.extend(stretched);
        items
    }

    /// The sequences of `model` that decode: those that are due, and up to `most` in all of the others, each time one of the account
    /// that was given least, and of these the one that had no turn for longest.
    fn decodes(&self, model: ModelKey, most: usize) -> Vec<Item> {
        let (due, mut others): (Vec<&Sequence>, Vec<&Sequence>) =
            self.of(model).filter(|s| s.decodes()).partition(|s| s.due);
        let mut items: Vec<Item> = due.iter().map(|s| s.item(1)).collect();
        let room = most.saturating_sub(items.len());
        if room >= others.len() {
            items.extend(others.iter().map(|s| s.item(1)));
            return items;
        }
        let mut added: BTreeMap<u64, f64> = BTreeMap::new();
        for _ in 0..room {
            let served =
                |s: &Sequence| self.served.of(s.share.account) + added.get(&s.share.account).copied().unwrap_or(0.0);
            let order = |a: &&Sequence, b: &&Sequence| {
                let by_class = b.share.priority.cmp(&a.share.priority);
                by_class.then(served(a).total_cmp(&served(b))).then(a.turn.cmp(&b.turn))
            };
            let next = others.iter().enumerate().min_by(|(_, a), (_, b)| order(a, b)).map(|(at, _)| at);
            let Some(next) = next.map(|at| others.remove(at)) else { break };
            *added.entry(next.share.account).or_default() += cost(&next.share, 0, 1);
            items.push(next.item(1));
        }
        items
    }
}

impl Sequence {
    fn item(&self, tokens: usize) -> Item {
        let (position, decodes, stretch) = (self.done, self.decodes(), None);
        let gives_token = position + tokens == self.tokens.len();
        Item { id: self.id, position, tokens, decodes, gives_token, stretch }
    }

    /// The next layers of what was begun, or the first of the chunk: all, if there is no limit.
    fn next_stretch(&self, chunk: Option<Chunk>) -> Item {
        let (tokens, from) = self.begun.or(chunk.map(|chunk| (chunk.tokens, 0))).expect("something is to be done");
        let all = Stretch { from, to: self.layers, of: self.layers };
        let stretch = chunk.map_or(all, |chunk| chunk.stretch(tokens, from, self.layers));
        let item = self.item(tokens);
        Item { gives_token: item.gives_token && stretch.is_last(), stretch: Some(stretch), ..item }
    }
}
