//! Choosing the next token.
//!
//! The draw for token `n` of a sequence depends on the seed, `n` and the logits only: the same seed
//! gives the same text whatever else is in the batch.

use crate::ask::{Sampling, TokenId};

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    options: Sampling,
    seed: u64,
    drawn: u64,
}

impl Sampler {
    /// `fresh` is the seed where the options name none.
    pub(crate) fn new(options: Sampling, fresh: u64) -> Self {
        Self { options, seed: options.seed.unwrap_or(fresh), drawn: 0 }
    }

    /// The next token, given one logit for each token of the vocabulary.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> TokenId {
        let chosen = if self.options.temperature == 0.0 {
            likeliest(logits)
        } else {
            let draw = uniform(self.seed, self.drawn);
            sample(logits, &self.options, draw)
        };
        self.drawn += 1;
        TokenId(chosen as u32)
    }
}

/// The first index of the largest value.
fn likeliest(logits: &[f32]) -> usize {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    logits.iter().position(|l| *l == max).unwrap_or(0)
}

fn sample(logits: &[f32], options: &Sampling, draw: f64) -> usize {
    // Largest first; equal ones by index, so that the order is always the same.
    let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut kept: Vec<usize> = (0..logits.len()).collect();
    let k = options.top_k as usize;
    if k > 0 && k < kept.len() {
        kept.select_nth_unstable_by(k - 1, order);
        kept.truncate(k);
    }
    kept.sort_unstable_by(order);
    let max = logits[kept[0]];
    if options.top_p < 1.0 {
        let p = weights(logits, &kept, max, 1.0);
        let enough = f64::from(options.top_p) * p.iter().sum::<f64>();
        kept.truncate(1 + reach(&p, enough));
    }
    if options.min_p > 0.0 {
        let floor = max + options.min_p.ln();
        kept.truncate(kept.partition_point(|i| logits[*i] >= floor).max(1));
    }
    let p = weights(logits, &kept, max, options.temperature);
    kept[reach(&p, draw * p.iter().sum::<f64>())]
}

/// `e^((logit - max) / temperature)` of the kept tokens.
fn weights(logits: &[f32], kept: &[usize], max: f32, temperature: f32) -> Vec<f64> {
    kept.iter().map(|i| f64::from((logits[*i] - max) / temperature).exp()).collect()
}

/// The first index at which the running sum of `p` exceeds `target`; the last one if none does.
fn reach(p: &[f64], target: f64) -> usize {
    let mut sum = 0.0;
    let found = p.iter().position(|p| {
        sum += p;
        sum > target
    });
    found.unwrap_or(p.len() - 1)
}

/// The `n`-th number in 0..1 of `seed`: splitmix64, entered at any place.
fn uniform(seed: u64, n: u64) -> f64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(options: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(options, 7);
        for _ in 0..10_000 {
            counts[sampler.choose(logits).0 as usize] += 1;
        }
        counts
    }

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, 2.0];

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(counts(Sampling::default(), &LOGITS), [0, 10_000, 0, 0]);
        assert_eq!(likeliest(&[f32::NAN, 1.0]), 1);
        assert_eq!(likeliest(&[f32::NAN]), 0);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let got = counts(Sampling { temperature: 1.0, ..Sampling::default() }, &LOGITS);
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (count, logit) in got.iter().zip(LOGITS) {
            let want = 10_000.0 * f64::from(logit).exp() / total;
            assert!((*count as f64 - want).abs() < 250.0, "{count} {want}");
        }
    }

    #[test]
    fn filters_keep_the_likeliest() {
        let all = Sampling { temperature: 2.0, ..Sampling::default() };
        assert!(counts(Sampling { top_k: 2, ..all }, &LOGITS)[2] == 0);
        assert!(counts(Sampling { top_p: 0.5, ..all }, &LOGITS)[2] == 0);
        assert!(counts(Sampling { min_p: 0.5, ..all }, &LOGITS)[2] == 0);
        assert!(counts(Sampling { min_p: 0.3, ..all }, &LOGITS)[2] > 0);
        assert_eq!(counts(Sampling { top_p: 1e-9, ..all }, &LOGITS)[1], 10_000);
    }

    #[test]
    fn a_seed_is_a_text() {
        let options = Sampling { temperature: 1.0, seed: Some(3), ..Sampling::default() };
        let run = |fresh| {
            let mut s = Sampler::new(options, fresh);
            (0..50).map(|_| s.choose(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(2));
    }
}
