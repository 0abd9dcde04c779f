//! Prompts that go through the layers a few at a time.
//!
//! Far into a long prompt one token may take longer than a step can spare, most of it for reading all keys and values before it.
//! So a step need not take its prompt tokens through all layers: it takes more of them, a chunk, through some layers, and the next steps
//! take the same chunk through those that follow. Keys and values are then read once for the chunk, and a step
//! ends when it should, to within a layer of a chunk. What is computed for each token is the same.

/// The layers that a step takes some tokens through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// The first layer.
    pub(crate) from: usize,
    /// The one behind the last.
    pub(crate) to: usize,
    /// All layers of the model.
    pub(crate) of: usize,
}

/// What a step may take through some layers only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chunk {
    /// Tokens, at most.
    pub(crate) tokens: usize,
    /// The step has time for so many tokens through all layers, not rounded.
    pub(crate) worth: f64,
}

impl Chunk {
    /// What is left of it when the step does `done` tokens besides, for a prompt of which `left` are to be done: as many as a step has
    /// time for in a few of `layers`, so many that hardly any are over in the last step.
    pub(super) fn after(self, done: f64, left: usize, layers: usize) -> Self {
        let worth = (self.worth - done).max(0.0);
        let work = worth * layers as f64;
        let fewest = ((work / self.tokens as f64).ceil() as usize).clamp(1, layers);
        let over = |at_once: &usize| layers.div_ceil(*at_once) * at_once;
        let at_once = (fewest..=layers.min(2 * fewest)).min_by_key(over).unwrap_or(fewest);
        let tokens = (work / at_once as f64) as usize;
        Self { tokens: tokens.clamp(1, self.tokens).min(left), worth }
    }

    /// Whether there is no time to take it through all layers.
    pub(super) fn is_too_much(&self) -> bool {
        self.worth < self.tokens as f64
    }

    /// The next layers of `tokens` tokens that were in the first `from` of `of`: as many as there is time for, at least one, and no
    /// more than would leave less for the last step.
    pub(super) fn stretch(&self, tokens: usize, from: usize, of: usize) -> Stretch {
        let left = of - from;
        // What there is time for is known to a tenth or so.
        let at_once = (self.worth * of as f64 / tokens as f64 + 0.3).floor().clamp(1.0, left as f64) as usize;
        Stretch { from, to: from + left.div_ceil(left.div_ceil(at_once)), of }
    }
}

impl Stretch {
    /// Whether all layers are done after it.
    pub(crate) fn is_last(&self) -> bool {
        self.to == self.of
    }

    /// Its part of all layers.
    pub(crate) fn share(&self) -> f64 {
        (self.to - self.from) as f64 / self.of as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_goes_through_all_layers_in_even_steps() {
        for (tokens, worth, of, expected) in [
            (32, 8.0, 30, vec![6, 6, 6, 6, 6]),
            (32, 40.0, 30, vec![30]),
            (32, 31.8, 30, vec![30]),
            (5, 1e-9, 4, vec![1, 1, 1, 1]),
            (5, 0.0, 4, vec![1, 1, 1, 1]),
            (16, 16.0, 1, vec![1]),
        ] {
            let (chunk, mut steps, mut from) = (Chunk { tokens, worth }, Vec::new(), 0);
            while from < of {
                let stretch = chunk.stretch(tokens, from, of);
                assert_eq!((stretch.from, stretch.of), (from, of));
                steps.push(stretch.to - from);
                from = stretch.to;
                assert_eq!(stretch.is_last(), from == of);
            }
            assert_eq!(steps, expected, "{tokens} tokens, worth {worth}");
        }
    }

    #[test]
    fn a_chunk_is_what_some_steps_have_time_for() {
        let chunk = Chunk { tokens: 64, worth: 8.5 };
        assert_eq!(chunk.after(0.0, 1000, 30), Chunk { tokens: 51, worth: 8.5 }, "five layers at once");
        assert_eq!(chunk.after(2.0, 1000, 4), Chunk { tokens: 26, worth: 6.5 }, "one layer");
        assert_eq!(chunk.after(2.0, 10, 4), Chunk { tokens: 10, worth: 6.5 });
        assert_eq!(chunk.after(9.0, 10, 4), Chunk { tokens: 1, worth: 0.0 });
        assert!(chunk.after(0.0, 9, 4).is_too_much() && !chunk.after(0.0, 8, 4).is_too_much());
        // Where a step has time for more than half of a chunk it takes what it has time for.
        for worth in [33.0, 50.5, 64.0, 1e9] {
            assert!(!Chunk { tokens: 64, worth }.after(0.0, 1000, 30).is_too_much(), "{worth}");
        }
        for (worth, layers) in
            (1..32).map(f64::from).flat_map(|worth| [18, 30, 32, 61, 80].map(|layers| (worth, layers)))
        {
            let chunk = Chunk { tokens: 64, worth }.after(0.0, 1000, layers);
            let (mut from, mut steps) = (0, 0.0);
            while from < layers {
                let stretch = chunk.stretch(chunk.tokens, from, layers);
                let used = stretch.share() * chunk.tokens as f64;
                assert!(used <= 1.1 * worth + 0.01, "{used} of {worth} in {layers} layers");
                (from, steps) = (stretch.to, steps + 1.0);
            }
            let each = chunk.tokens as f64 / steps;
            assert!(each >= 0.85 * worth, "{each} of {worth} in each step, {layers} layers");
        }
    }
}
