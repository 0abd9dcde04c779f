//! Choosing the next token.
//!
//! The draw for token `n` of a sequence depends on the seed, `n`, the logits and the form only: the same seed
//! gives the same text whatever else is in the batch.

use std::collections::HashMap;

use crate::ask::{Ask, Penalties, Sampling, TokenId};
use crate::form::Guide;
use crate::ops::cuda::draw::Draw;
use crate::tokens::Logprob;
use row::{DEPTHS, NEGLIGIBLE, Row, largest};

mod row;

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    options: Sampling,
    bias: Vec<(TokenId, f32)>,
    logprobs: Option<u32>,
    seed: u64,
    drawn: u64,
    /// How often each token that was there before was generated; 0 if it was in the prompt only.
    seen: HashMap<u32, u32>,
    /// The logits after penalties and bias.
    adjusted: Vec<f32>,
}

impl Sampler {
    /// For what `ask` wants, after the tokens of `prompt`; `fresh` is the seed where it names none.
    pub(crate) fn new(ask: &Ask, prompt: &[TokenId], fresh: u64) -> Self {
        let seen = match ask.sampling.penalties == Penalties::default() {
            true => HashMap::new(),
            false => prompt.iter().map(|id| (id.0, 0)).collect(),
        };
        Self {
            options: ask.sampling,
            bias: ask.logit_bias.clone(),
            logprobs: ask.logprobs,
            seed: ask.sampling.seed.unwrap_or(fresh),
            drawn: 0,
            seen,
            adjusted: Vec::new(),
        }
    }

    /// How many of the largest logits its next draw may come to look at, if not at all of them.
    ///
    /// What penalties and bias lower can make room for as many others, and no more; what they raise can come from anywhere.
    pub(crate) fn best(&self) -> Option<usize> {
        let Sampling { temperature, top_k, penalties: Penalties { repetition, presence, frequency }, .. } =
            self.options;
        let only_lowers =
            repetition >= 1.0 && presence >= 0.0 && frequency >= 0.0 && self.bias.iter().all(|(_, bias)| *bias <= 0.0);
        let most = if temperature == 0.0 { 1 } else { top_k as usize };
        (only_lowers && most > 0 && self.logprobs.is_none()).then(|| most + self.seen.len() + self.bias.len())
    }

    /// The next token, given one logit for each token of the vocabulary.
    #[cfg(test)]
    pub(crate) fn choose(&mut self, logits: &[f32]) -> TokenId {
        self.choose_in(logits, None)
    }

    /// The same, within what `guide` allows.
    ///
    /// What is drawn from all tokens is taken if it is allowed, which costs less than to know all that is; else a second draw is from those
    /// only. So each token has the probability that it has among those allowed: with `p` for one, and `a` for all, in the first
    /// draw, `p + (1 - a) p / a = p / a`. The likeliest, if it is allowed, is the likeliest of those. The filters look at all tokens in the
    /// first draw, as llama.cpp's do.
    pub(crate) fn choose_in(&mut self, logits: &[f32], guide: Option<&mut Guide>) -> TokenId {
        let penalised = self.options.penalties != Penalties::default();
        let adjusts = penalised || !self.bias.is_empty();
        if adjusts {
            self.adjust(logits);
        }
        let mut chosen = draw(if adjusts { &self.adjusted } else { logits }, &self.options, self.seed, self.drawn);
        if let Some(guide) = guide
            && !guide.allows(TokenId(chosen as u32))
        {
            if !adjusts {
                self.adjusted.clear();
                self.adjusted.extend_from_slice(logits);
            }
            guide.apply(&mut self.adjusted);
            chosen = draw(&self.adjusted, &self.options, self.seed ^ AGAIN, self.drawn);
        }
        self.drawn += 1;
        if penalised {
            *self.seen.entry(chosen as u32).or_default() += 1;
        }
        TokenId(chosen as u32)
    }

    /// Whether its draws look at the logits as they are, and tell nothing about them: then a card does what [`Self::draw_on_card`] says.
    pub(crate) fn is_plain(&self) -> bool {
        self.options.penalties == Penalties::default() && self.bias.is_empty() && self.logprobs.is_none()
    }

    /// How a card is to draw the next token, in place of [`Self::choose_in`].
    pub(crate) fn draw_on_card(&mut self) -> Draw {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.options;
        let at = bits(self.seed, self.drawn);
        self.drawn += 1;
        match temperature == 0.0 {
            true => Draw::LIKELIEST,
            // A card takes what is much smaller for nothing, and divides by it.
            false => Draw { temperature: temperature.max(1e-6), top_p, depth: -min_p.ln(), top_k, at },
        }
    }

    /// What the model itself, before penalties, bias and filters, thought of `chosen` and of the likeliest.
    pub(crate) fn logprob(&self, logits: &[f32], chosen: TokenId) -> Option<Logprob> {
        let n = self.logprobs? as usize;
        let row = Row::new(logits);
        let max = row.max();
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let of = |id: usize| (f64::from(logits[id]) - f64::from(max) - sum.ln()) as f32;
        let top = largest(row.all(), n).into_iter().map(|(id, _)| (TokenId(id), of(id as usize))).collect();
        Some(Logprob { id: chosen, logprob: of(chosen.0 as usize), top })
    }

    fn adjust(&mut self, logits: &[f32]) {
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        let Penalties { repetition, presence, frequency } = self.options.penalties;
        for (id, times) in &self.seen {
            // The ids come from this vocabulary: a prompt's are checked, the others were chosen here.
            let logit = &mut self.adjusted[*id as usize];
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            if *times > 0 {
                *logit -= presence + frequency * *times as f32;
            }
        }
        for (id, bias) in &self.bias {
            self.adjusted[id.0 as usize] += bias;
        }
    }
}

/// Parts the numbers of second draws from those of the first.
const AGAIN: u64 = 0x5851_f42d_4c95_7f2d;

fn draw(logits: &[f32], options: &Sampling, seed: u64, n: u64) -> usize {
    let row = Row::new(logits);
    match options.temperature == 0.0 {
        true => row.likeliest(),
        false => sample(&row, options, uniform(seed, n)),
    }
}

fn sample(row: &Row<'_>, options: &Sampling, draw: f64) -> usize {
    let Sampling { temperature, top_k, top_p, min_p, .. } = *options;
    let max = row.max();
    let floor = |depth: f32| max - depth * temperature.max(1.0);
    let (mut of_model, mut of_draw) = (None, None);
    for depth in DEPTHS {
        let kept = row.above(floor(depth));
        if kept.is_empty() {
            break;
        }
        let most = if top_k == 0 { usize::MAX } else { top_k as usize };
        // Whether nothing that may be drawn is missing.
        let mut whole = kept.len() >= most || depth == NEGLIGIBLE;
        if top_k > 0 && !whole {
            continue;
        }
        let mut kept = largest(kept, most);
        if top_p < 1.0 {
            let p = weights(&kept, max, 1.0);
            let all = if top_k > 0 { p.iter().sum() } else { *of_model.get_or_insert_with(|| row.total(1.0)) };
            if let Some(last) = reach(&p, f64::from(top_p) * all) {
                kept.truncate(last + 1);
                whole = true;
            }
        }
        if min_p > 0.0 {
            let least = max + min_p.ln();
            kept.truncate(kept.partition_point(|(_, logit)| *logit >= least).max(1));
            whole |= least >= floor(depth);
        }
        let filtered = top_k > 0 || top_p < 1.0 || min_p > 0.0;
        if filtered && !whole {
            continue;
        }
        let p = weights(&kept, max, temperature);
        let all = if filtered { p.iter().sum() } else { *of_draw.get_or_insert_with(|| row.total(temperature)) };
        match reach(&p, draw * all) {
            Some(at) => return kept[at].0 as usize,
            None if whole => return kept[kept.len() - 1].0 as usize,
            None => {}
        }
    }
    row.likeliest()
}

/// `e^((logit - max) / temperature)` of the kept tokens.
fn weights(kept: &[(u32, f32)], max: f32, temperature: f32) -> Vec<f64> {
    kept.iter().map(|(_, logit)| f64::from((logit - max) / temperature).exp()).collect()
}

/// The first index at which the running sum of `p` exceeds `target`, if one does.
fn reach(p: &[f64], target: f64) -> Option<usize> {
    let mut sum = 0.0;
    p.iter().position(|p| {
        sum += p;
        sum > target
    })
}

/// The `n`-th number in 0..1 of `seed`.
fn uniform(seed: u64, n: u64) -> f64 {
    (bits(seed, n) >> 11) as f64 / (1u64 << 53) as f64
}

/// The `n`-th number of `seed`: splitmix64, entered at any place.
fn bits(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Prompt;

    fn sampler(options: Sampling) -> Sampler {
        let ask = Ask { sampling: options, ..Ask::new(Prompt::Raw(String::new())) };
        Sampler::new(&ask, &[], 7)
    }

    fn counts(options: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = sampler(options);
        for _ in 0..10_000 {
            counts[sampler.choose(logits).0 as usize] += 1;
        }
        counts
    }

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, 2.0];

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(counts(Sampling::default(), &LOGITS), [0, 10_000, 0, 0]);
        assert_eq!(Row::new(&[f32::NAN, 1.0]).likeliest(), 1);
        assert_eq!(Row::new(&[f32::NAN]).likeliest(), 0);
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

    /// All sorted, as the equations have it.
    fn sorted(logits: &[f32], options: &Sampling, draw: f64) -> usize {
        let row = Row::new(logits);
        let max = row.max();
        let most = if options.top_k == 0 { logits.len() } else { options.top_k as usize };
        let mut kept = largest(row.all(), most);
        let p = weights(&kept, max, 1.0);
        if options.top_p < 1.0 {
            let enough = f64::from(options.top_p) * p.iter().sum::<f64>();
            kept.truncate(reach(&p, enough).map_or(p.len(), |last| last + 1));
        }
        if options.min_p > 0.0 {
            kept.retain(|(_, logit)| *logit >= max + options.min_p.ln());
        }
        let p = weights(&kept, max, options.temperature);
        kept[reach(&p, draw * p.iter().sum::<f64>()).unwrap_or(p.len() - 1)].0 as usize
    }

    #[test]
    fn what_is_drawn_is_what_it_would_be_if_all_were_sorted() {
        let mut drawn = 0;
        let mut random = || {
            drawn += 1;
            uniform(5, drawn)
        };
        for round in 0..4000 {
            // From almost certain to almost flat.
            let spread = [0.1, 3.0, 12.0, 60.0][round % 4];
            let logits: Vec<f32> = (0..1 + round % 700).map(|_| (spread * random()) as f32).collect();
            let options = Sampling {
                temperature: [0.3, 1.0, 1.7][round % 3],
                top_k: [0, 0, 1, 40, 1000][round % 5],
                top_p: [1.0, 1.0, 0.2, 0.95, 0.999_999][round / 5 % 5],
                min_p: [0.0, 0.0, 0.05, 1e-4, 1.0][round / 25 % 5],
                ..Sampling::default()
            };
            let draw = [random(), 1.0 - random() * 1e-6, random() * 1e-6][round / 7 % 3];
            let want = sorted(&logits, &options, draw);
            assert_eq!(sample(&Row::new(&logits), &options, draw), want, "{options:?} {draw}");
        }
    }

    #[test]
    fn what_is_not_among_the_best_changes_nothing() {
        let penalties = |presence| Penalties { repetition: 1.3, presence, frequency: 0.1 };
        let mut partial = 0;
        for round in 0..2000u32 {
            let logits: Vec<f32> =
                (0..200).map(|n| (9.0 * uniform(3, u64::from(round * 200 + n))) as f32 - 2.0).collect();
            let mut ask = Ask::new(Prompt::Raw(String::new()));
            ask.sampling = Sampling {
                temperature: [0.0, 1.0, 1.7][round as usize % 3],
                top_k: [0, 1, 20][round as usize / 3 % 3],
                top_p: [1.0, 0.9][round as usize / 9 % 2],
                penalties: [Penalties::default(), penalties(0.0), penalties(1.0), penalties(-1.0)]
                    [round as usize / 18 % 4],
                seed: Some(u64::from(round)),
                ..Sampling::default()
            };
            let bias = [vec![], vec![(TokenId(7), -100.0), (TokenId(9), -0.5)], vec![(TokenId(7), 1.0)]];
            ask.logit_bias = bias[round as usize / 72 % 3].clone();
            let prompt: Vec<TokenId> = (0..5).map(|n| TokenId((round + 31 * n) % 200)).collect();
            let (mut a, mut b) = (Sampler::new(&ask, &prompt, 1), Sampler::new(&ask, &prompt, 1));
            for _ in 0..4 {
                let mut some = logits.clone();
                if let Some(most) = b.best() {
                    let least = largest((0..).zip(logits.iter().copied()).collect(), most).last().unwrap().1;
                    some.iter_mut().filter(|logit| **logit < least).for_each(|logit| *logit = f32::NEG_INFINITY);
                    partial += 1;
                }
                assert_eq!(a.choose(&logits), b.choose(&some), "{:?}", ask.sampling);
            }
        }
        assert!((2000..6000).contains(&partial), "{partial}");
    }

    #[test]
    fn a_seed_is_a_text() {
        let options = Sampling { temperature: 1.0, seed: Some(3), ..Sampling::default() };
        let run = |fresh| {
            let mut s = Sampler::new(&Ask { sampling: options, ..Ask::new(Prompt::Raw(String::new())) }, &[], fresh);
            (0..50).map(|_| s.choose(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn penalties_hold_back_what_was_there() {
        let with = |penalties| sampler(Sampling { penalties, ..Sampling::default() });
        let greedy = |mut s: Sampler| (0..5).map(|_| s.choose(&LOGITS).0).collect::<Vec<_>>();
        let none = Penalties::default();
        assert_eq!(greedy(with(none)), [1; 5]);
        assert_eq!(greedy(with(Penalties { presence: 1.5, ..none })), [1, 3, 2, 1, 1], "each is held back once");
        assert_eq!(greedy(with(Penalties { frequency: 0.9, ..none })), [1, 3, 1, 3, 2], "and again each time");
        let ask = Ask {
            sampling: Sampling { penalties: Penalties { repetition: 2.0, ..none }, ..Sampling::default() },
            ..Ask::new(Prompt::Raw(String::new()))
        };
        let after_prompt = Sampler::new(&ask, &[TokenId(1)], 7).choose(&LOGITS);
        assert_eq!(after_prompt, TokenId(3), "the prompt counts for repetition");
    }

    #[test]
    fn bias_forbids_and_prefers_and_logprobs_are_the_models_own() {
        let mut ask = Ask::new(Prompt::Raw(String::new()));
        ask.logit_bias = vec![(TokenId(1), -100.0), (TokenId(0), 1.9), (TokenId(3), -1.5)];
        ask.logprobs = Some(2);
        ask.check(4).unwrap();
        let mut sampler = Sampler::new(&ask, &[], 7);
        let chosen = sampler.choose(&LOGITS);
        assert_eq!(chosen, TokenId(0));
        let Logprob { logprob, top, .. } = sampler.logprob(&LOGITS, chosen).unwrap();
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        assert!((f64::from(logprob) + total.ln()).abs() < 1e-6, "{logprob}");
        assert_eq!(top.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 3]);
        assert!((f64::from(top[0].1) - (2.0 - total.ln())).abs() < 1e-6);
        ask.logit_bias = vec![(TokenId(4), 0.0)];
        assert!(ask.check(4).is_err(), "not in the vocabulary");
        ask.logit_bias = vec![(TokenId(0), 101.0)];
        assert!(ask.check(4).is_err());
        ask = Ask { logprobs: Some(21), ..Ask::new(Prompt::Raw(String::new())) };
        assert!(ask.check(4).is_err());
    }

    /// After the formulas, with nothing of the code above: the logits after penalties and bias.
    fn adjusted(logits: &[f32], ask: &Ask, prompt: &[TokenId], generated: &[TokenId]) -> Vec<f32> {
        let Penalties { repetition, presence, frequency } = ask.sampling.penalties;
        let one = |(n, logit): (usize, &f32)| {
            let id = TokenId(n as u32);
            let times = generated.iter().filter(|other| **other == id).count() as f32;
            let mut logit = *logit;
            if times > 0.0 || prompt.contains(&id) {
                logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
            }
            if times > 0.0 {
                logit -= presence + frequency * times;
            }
            let bias = ask.logit_bias.iter().filter(|(other, _)| *other == id);
            bias.fold(logit, |logit, (_, bias)| logit + bias)
        };
        logits.iter().enumerate().map(one).collect()
    }

    #[test]
    fn any_penalties_and_bias_are_the_formulas() {
        let mut drawn = 0;
        let mut random = || {
            drawn += 1;
            uniform(11, drawn) as f32
        };
        for round in 0..300 {
            let mut ask = Ask::new(Prompt::Raw(String::new()));
            ask.sampling.penalties = Penalties {
                repetition: if round % 3 == 0 { 1.0 } else { 0.5 + 1.5 * random() },
                presence: if round % 4 == 0 { 0.0 } else { 4.0 * random() - 2.0 },
                frequency: if round % 5 == 0 { 0.0 } else { 4.0 * random() - 2.0 },
            };
            let token = |x: f32| TokenId((x * 12.0) as u32);
            ask.logit_bias = (0..round % 4).map(|_| (token(random()), 10.0 * random() - 5.0)).collect();
            ask.logit_bias.push((TokenId(2), -100.0));
            ask.check(12).unwrap();
            let prompt: Vec<TokenId> = (0..round % 6).map(|_| token(random())).collect();
            let (mut sampler, mut generated) = (Sampler::new(&ask, &prompt, 7), Vec::new());
            for _ in 0..20 {
                let logits: Vec<f32> = (0..12).map(|_| 8.0 * random() - 4.0).collect();
                let chosen = sampler.choose(&logits);
                let want = adjusted(&logits, &ask, &prompt, &generated);
                let best = want.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert!(best - want[chosen.0 as usize] < 1e-5, "{chosen:?} of {want:?} with {ask:?}");
                assert!(chosen != TokenId(2), "a bias of -100 forbids");
                generated.push(chosen);
            }
        }
    }

    #[test]
    fn a_draw_depends_on_seed_place_and_logits_only() {
        for seed in 0..50 {
            let options = Sampling {
                temperature: 0.2 + uniform(seed, 0) as f32,
                top_p: 0.3 + 0.7 * uniform(seed, 1) as f32,
                top_k: (seed % 5) as u32,
                seed: Some(seed),
                ..Sampling::default()
            };
            let logits = |n: u64| -> Vec<f32> { (0..30).map(|i| 6.0 * uniform(n, i) as f32).collect() };
            let ask = Ask { sampling: options, ..Ask::new(Prompt::Raw(String::new())) };
            let (mut a, mut b) = (Sampler::new(&ask, &[], 1), Sampler::new(&ask, &[TokenId(3)], 2));
            // The first answers without interruption, the second beside a third.
            let alone: Vec<_> = (0..40).map(|n| a.choose(&logits(n))).collect();
            let mut other = Sampler::new(&Ask::new(Prompt::Raw(String::new())), &[], seed);
            let beside = (0..40).map(|n| {
                other.choose(&logits(n + 1));
                b.choose(&logits(n))
            });
            assert!(beside.eq(alone), "seed {seed}");
        }
    }
}
