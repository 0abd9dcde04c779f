//! How many prompt tokens a step takes, so that those who already get tokens hardly notice.
//!
//! A step over `n` decoding sequences takes a time of its own, known from steps without prompts;
//! what a step with prompts takes beyond that is what its prompt tokens cost. Both are moving
//! averages, for each model: how far into its sequence a token is counts only through them. Where
//! prompts never end, a step goes without them now and then, so that both stay known.

use super::EngineConfig;
use crate::schedule::ModelKey;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Prompt tokens in a step, whatever they cost: a prompt always gets on, and there is always
/// something to measure.
const MIN_TOKENS: usize = 4;
/// How long prompts take beside decoding, in the time that decoding takes, if that is more than half of `max_stall`.
const SHARE: f64 = 0.75;
/// After this many prompt tokens half of the average is news.
const MEMORY_TOKENS: f64 = 32.0;
/// After this many steps what a step without prompts takes is measured again: contexts grow.
const REMEASURE_STEPS: u64 = 16;
/// Models of which the pace is known. Beyond that all are forgotten, and measured anew in a few steps.
const MAX_MODELS: usize = 64;

/// What is known of each model's steps.
pub(super) struct Paces {
    max_stall: Duration,
    prefill_tokens: usize,
    models: HashMap<ModelKey, Pace>,
}

/// A model that is about to have a step, and how many of its sequences decode and have prompts.
pub(super) type Work = (ModelKey, (usize, usize));

impl Paces {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let (max_stall, prefill_tokens) = (config.max_stall, config.prefill_tokens.max(1));
        Self { max_stall, prefill_tokens, models: HashMap::new() }
    }

    /// The prompt tokens that each model's step may have, when all of these have one in turn.
    ///
    /// While anything decodes, prompts together take at most `max_stall`. Of the second half of that they take what is
    /// less than [`SHARE`] of the time that decoding takes: a token then comes within 1.75 times its usual time.
    pub(super) fn budgets(&self, work: &[Work]) -> Vec<usize> {
        if work.iter().all(|(_, (decoding, _))| *decoding == 0) {
            return vec![self.prefill_tokens; work.len()];
        }
        let decode = |(model, (decoding, _)): &Work| match decoding {
            0 => Some(0.0),
            n => self.models.get(model)?.decode(*n),
        };
        let max = self.max_stall.as_secs_f64();
        let all =
            work.iter().map(decode).sum::<Option<f64>>().map_or(max, |decode| max.min((decode * SHARE).max(max / 2.0)));
        let prompting = work.iter().filter(|(_, (_, prompts))| *prompts > 0).count().max(1);
        let each = all / prompting as f64;
        let fit = |(model, (decoding, _)): &Work| {
            let pace = self.models.get(model);
            if *decoding > 0 && pace.is_none_or(|pace| pace.due(*decoding)) {
                return 0;
            }
            let fits = pace.and_then(|pace| pace.token).map_or(0, |token| (each / token) as usize);
            fits.max(MIN_TOKENS).min(self.prefill_tokens)
        };
        work.iter().map(fit).collect()
    }

    /// Notes what a step took.
    pub(super) fn note(&mut self, model: ModelKey, decoding: usize, prompt: usize, time: Duration) {
        if self.models.len() == MAX_MODELS && !self.models.contains_key(&model) {
            self.models.clear();
        }
        self.models.entry(model).or_default().note(decoding, prompt, time.as_secs_f64());
    }
}

/// The pace of one model, in seconds.
#[derive(Default)]
struct Pace {
    /// What a prompt token costs, if one was measured.
    token: Option<f64>,
    /// What a step without prompts takes, by its sequences, and after which step that was seen.
    decode: BTreeMap<usize, (f64, u64)>,
    steps: u64,
}

impl Pace {
    /// A step over `n` decoding sequences: as measured, or at least as long as one with fewer.
    fn decode(&self, n: usize) -> Option<f64> {
        self.decode.range(..=n).next_back().map(|(_, (time, _))| *time)
    }

    /// Whether a step over `n` decoding sequences is to go without prompts, for what it tells.
    fn due(&self, n: usize) -> bool {
        self.decode.get(&n).is_none_or(|(_, seen)| self.steps - seen >= REMEASURE_STEPS)
    }

    fn note(&mut self, decoding: usize, prompt: usize, time: f64) {
        self.steps += 1;
        if prompt == 0 {
            let (old, seen) = self.decode.entry(decoding).or_insert((time, 0));
            *old += (time - *old) / 2.0;
            *seen = self.steps;
            return;
        }
        let token = match self.decode(decoding) {
            Some(decode) => (time - decode).max(0.0) / prompt as f64,
            None => time / (decoding + prompt) as f64,
        };
        let old = self.token.unwrap_or(token);
        let news = prompt as f64 / (prompt as f64 + MEMORY_TOKENS);
        // Above zero, since times are divided by it.
        self.token = Some((old + (token - old) * news).max(1e-9));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: f64) -> Duration {
        Duration::from_secs_f64(n / 1e3)
    }

    fn paces() -> Paces {
        let config = EngineConfig { prefill_tokens: 500, max_stall: ms(10.0), ..EngineConfig::default() };
        Paces::new(&config)
    }

    #[test]
    fn alone_a_prompt_gets_the_whole_step() {
        assert_eq!(paces().budgets(&[(1, (0, 1)), (2, (0, 2))]), [500, 500]);
    }

    #[test]
    fn beside_others_prompts_take_the_time_they_may() {
        let mut paces = paces();
        assert_eq!(paces.budgets(&[(1, (8, 1)), (2, (0, 1))]), [0, MIN_TOKENS], "nothing is known");
        paces.note(1, 0, 500, ms(250.0)); // 0.5 ms a token
        assert_eq!(paces.budgets(&[(1, (8, 1))]), [0], "what eight take is measured first");
        paces.note(1, 8, 0, ms(100.0));
        assert_eq!(paces.budgets(&[(1, (8, 1))]), [20], "10 ms");
        paces.note(1, 4, 0, ms(10.0));
        assert_eq!(paces.budgets(&[(1, (4, 1))]), [15], "three quarters of what decoding takes");
        assert_eq!(paces.budgets(&[(1, (4, 1)), (2, (0, 1))]), [7, MIN_TOKENS], "two models share the time");
        paces.note(1, 2, 0, ms(4.0));
        assert_eq!(paces.budgets(&[(1, (2, 1))]), [10], "half of 10 ms in any case");
        assert_eq!(paces.budgets(&[(1, (8, 1)), (2, (0, 0))])[0], 20);
    }

    #[test]
    fn what_decoding_takes_is_measured_again_now_and_then() {
        let mut paces = paces();
        paces.note(1, 8, 0, ms(20.0));
        let mut without = 0;
        for step in 0..1000 {
            // The sequences grow: what eight take doubles meanwhile.
            let decode = 20.0 + step as f64 / 50.0;
            let budget = paces.budgets(&[(1, (8, 1))])[0];
            paces.note(1, 8, budget, ms(decode + 0.25 * budget as f64));
            without += u32::from(budget == 0);
            assert!(step < 100 || budget == 0 || (28..=44).contains(&budget), "{budget} tokens in step {step}");
        }
        assert_eq!(without, 58, "one in seventeen");
    }

    #[test]
    fn the_average_finds_the_cost_of_a_token_from_any_start() {
        // A step takes 20 ms, and 0.25 ms for each prompt token: 10 ms are 40 tokens.
        for start in [0.001, 10.0] {
            let mut paces = paces();
            paces.note(1, 8, 0, ms(20.0));
            paces.note(1, 8, 10, ms(20.0 + 10.0 * start));
            let mut budget = 0;
            for _ in 0..200 {
                budget = paces.budgets(&[(1, (8, 1))])[0];
                paces.note(1, 8, budget, ms(20.0 + 0.25 * budget as f64));
            }
            assert!((36..=44).contains(&budget), "{budget} tokens, from {start} ms");
        }
    }

    #[test]
    fn a_small_step_is_kept_and_prompts_never_stop() {
        let config = EngineConfig { prefill_tokens: 2, max_stall: Duration::ZERO, ..EngineConfig::default() };
        let mut paces = Paces::new(&config);
        paces.note(1, 1, 2, ms(1000.0));
        paces.note(1, 1, 0, ms(1000.0));
        assert_eq!(paces.budgets(&[(1, (1, 1))]), [2]);
        assert_eq!(paces.budgets(&[(1, (0, 1))]), [2]);
        for model in 0..1000 {
            paces.note(model, 1, 2, ms(1.0));
        }
        assert!(paces.models.len() <= MAX_MODELS);
    }
}
