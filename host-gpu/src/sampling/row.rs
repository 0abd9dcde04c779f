//! The logits of a row, as a draw looks at them.

/// A logit by this much below the largest is not looked at, at a temperature of 1: e^-32 is 1.3e-14. All that is left out
/// comes to less than a millionth of a millionth for each token: nobody would see it drawn.
pub(super) const NEGLIGIBLE: f32 = 32.0;

/// How far below the largest is looked for what is drawn, one after the other. Mostly it is among a few hundred tokens, and these
/// are sorted in a fraction of the time that all of a vocabulary takes.
pub(super) const DEPTHS: [f32; 4] = [3.0, 6.0, 12.0, NEGLIGIBLE];

/// A row.
pub(super) struct Row<'a> {
    logits: &'a [f32],
    max: f32,
}

impl<'a> Row<'a> {
    pub(super) fn new(logits: &'a [f32]) -> Self {
        Self { logits, max: maximum(logits) }
    }

    /// Each token and its logit.
    pub(super) fn all(&self) -> Vec<(u32, f32)> {
        (0..).zip(self.logits.iter().copied()).collect()
    }

    /// The largest.
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    /// The first place of the largest.
    pub(super) fn likeliest(&self) -> usize {
        self.logits.iter().position(|logit| *logit == self.max).unwrap_or(0)
    }

    /// The tokens whose logits are at least `floor`, and these.
    pub(super) fn above(&self, floor: f32) -> Vec<(u32, f32)> {
        (0..).zip(self.logits.iter().copied()).filter(|(_, logit)| *logit >= floor).collect()
    }

    /// The sum of `e^((logit - max) / temperature)` over all that is not negligible.
    pub(super) fn total(&self, temperature: f32) -> f64 {
        let kept = self.logits.iter().filter(|logit| **logit >= self.max - NEGLIGIBLE * temperature.max(1.0));
        kept.map(|logit| f64::from((logit - self.max) / temperature).exp()).sum()
    }
}

/// The largest value. In sixteen lanes: one comparison need not wait for the one before.
fn maximum(logits: &[f32]) -> f32 {
    let (lanes, rest) = logits.as_chunks::<16>();
    let mut max = [f32::NEG_INFINITY; 16];
    for lane in lanes {
        for (max, logit) in max.iter_mut().zip(lane) {
            *max = if *logit > *max { *logit } else { *max };
        }
    }
    rest.iter().chain(&max).copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// The `n` largest of `kept`, largest first; equal ones by token, so that the order is always the same.
pub(super) fn largest(mut kept: Vec<(u32, f32)>, n: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if n < kept.len() {
        kept.select_nth_unstable_by(n, order);
        kept.truncate(n);
    }
    kept.sort_unstable_by(order);
    kept
}
