//! How much a step takes beyond what is due, so that those who already get tokens hardly notice: prompt tokens, and
//! sequences of accounts that have more than their part.
//!
//! A step over `n` decoding sequences takes a time of its own, known from steps without prompts;
//! what a step with prompts takes beyond that is what its prompt tokens cost. Both are moving
//! averages, for each model: how far into its sequence a token is counts only through them. Where
//! prompts never end, a step goes without them now and then, so that both stay known.

use super::{EngineConfig, EngineDevice};
use crate::schedule::{Allowance, Chunk, Load, ModelKey};
use std::collections::{BTreeMap, HashMap};
use std::f64::consts::GOLDEN_RATIO;
use std::time::{Duration, Instant};

/// Prompt tokens in a step, whatever they cost: a prompt always gets on, and there is always
/// something to measure. Far into a long prompt a few of them cost as much as all that decodes.
const MIN_TOKENS: usize = 1;
/// Prompt tokens that go through some layers in a step, where so many through all of them would take too long. With more, there is more
/// to do again when their sequence is preempted; with fewer, keys and values before them are read more often.
pub(super) const CHUNK_TOKENS: usize = 64;
/// What prompts take of a step in any case, in seconds, if `max_stall` is not less.
const LEAST: f64 = 0.005;
/// How long what is not due takes, in the time that decoding what is due takes. Where there are prompts and sequences that are
/// not due, each has half.
const SHARE: f64 = 0.75;
/// How much longer a step takes with prompts than one without usually does, if that is more than [`LEAST`]: they are through
/// sooner with a larger share, and what decodes has grown less meanwhile: with a smaller one the longest steps are longer in the end.
const PROMPT_SHARE: f64 = 1.0;
/// What prompts have of the time that decoding takes where that is longer than usual.
const LEAST_PROMPT_SHARE: f64 = 0.25;
/// A step without prompts changes what is usual by one part in so many. Beside prompts one in [`REMEASURE_STEPS`] is such a step.
const USUAL_STEPS: f64 = 256.0;
/// After this many prompt tokens half of the average is news.
const MEMORY_TOKENS: f64 = 32.0;
/// After this many steps what a step without prompts takes is measured again: contexts grow.
const REMEASURE_STEPS: u64 = 16;
/// What a step took tells nothing any more after so many others.
const STALE_STEPS: u64 = 256;
/// Models of which the pace is known. Beyond that all are forgotten, and measured anew in a few steps.
const MAX_MODELS: usize = 64;

/// What is known of each model's steps.
pub(super) struct Paces {
    max_stall: Duration,
    prefill_tokens: usize,
    models: HashMap<ModelKey, Pace>,
}

/// A model that is about to have a step, and what there is to do for it.
pub(super) type Work = (ModelKey, Load);

impl Paces {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let (max_stall, prefill_tokens) = (config.max_stall, config.prefill_tokens.max(1));
        Self { max_stall, prefill_tokens, models: HashMap::new() }
    }

    /// What each model's step may have, when all of these have one in turn.
    ///
    /// While anything decodes, prompts together take at most `max_stall`, and beyond [`LEAST`] no more than [`PROMPT_SHARE`] of
    /// the time that decoding takes: a token then comes within twice its usual time. What is usual follows slowly: contexts grow
    /// while a long prompt is read, and so does what decoding takes. Prompts then get less, down to [`LEAST_PROMPT_SHARE`]. Where
    /// sequences decode that are not due, tokens come within 1.75 times their time (1.88 with prompts); one of them always does.
    pub(super) fn allowances(&self, work: &[Work]) -> Vec<Allowance> {
        if work.iter().all(|(_, load)| load.decoding == 0) {
            return vec![Allowance { decoding: 0, prompt_tokens: self.prefill_tokens, chunk: None }; work.len()];
        }
        let sum = |of: fn(&Decode) -> f64| {
            let each = |(model, load): &Work| match load.due {
                0 => Some(0.0),
                n => self.models.get(model)?.known(n).map(of),
            };
            work.iter().map(each).sum::<Option<f64>>()
        };
        let max = self.max_stall.as_secs_f64();
        let for_prompts = sum(|decode| decode.time).zip(sum(|decode| decode.usual)).map_or(max, |(due, usual)| {
            let share = (usual * (1.0 + PROMPT_SHARE) - due).clamp(due * LEAST_PROMPT_SHARE, due * PROMPT_SHARE);
            max.min(share.max(LEAST))
        });
        let prompting = work.iter().filter(|(_, load)| load.prompting > 0).count();
        let crowded = work.iter().any(|(_, load)| load.decoding > load.due);
        let part = if crowded && prompting > 0 { 0.5 } else { 1.0 };
        let each = part * for_prompts / prompting.max(1) as f64;
        let fit = |(model, load): &Work| {
            let pace = self.models.get(model);
            if load.due > 0 && pace.is_none_or(|pace| pace.due(load.due)) {
                return Allowance { decoding: load.due, prompt_tokens: 0, chunk: None };
            }
            let limit = pace.and_then(|pace| pace.decode(load.due)).map_or(max, |due| due * (1.0 + SHARE * part));
            let most = pace.map_or(0, |pace| pace.most(load, limit));
            let decoding = most.max(load.due + 1).min(load.decoding);
            if decoding > load.due && pace.is_none_or(|pace| pace.due(decoding)) {
                return Allowance { decoding, prompt_tokens: 0, chunk: None };
            }
            let fits = pace.map_or(0, |pace| pace.prompt_tokens(each));
            let prompt_tokens = fits.max(MIN_TOKENS).min(self.prefill_tokens);
            let worth = pace.and_then(|pace| pace.token).map_or(0.0, |token| each / token).max(MIN_TOKENS as f64);
            let chunk = Chunk { tokens: self.prefill_tokens.min(CHUNK_TOKENS), worth };
            Allowance { decoding, prompt_tokens, chunk: Some(chunk) }
        };
        work.iter().map(fit).collect()
    }

    /// Notes that a step begins, with prompts or without: the next one may be planned before it is known what this one takes.
    pub(super) fn began(&mut self, model: ModelKey, prompts: bool) {
        self.of(model).without = !prompts;
    }

    /// Notes what a step took.
    ///
    /// `prompt`: tokens, those that went through some layers by their share of them.
    pub(super) fn note(&mut self, model: ModelKey, decoding: usize, prompt: f64, time: Duration) {
        self.of(model).note(decoding, prompt, time.as_secs_f64());
    }

    fn of(&mut self, model: ModelKey) -> &mut Pace {
        if self.models.len() == MAX_MODELS && !self.models.contains_key(&model) {
            self.models.clear();
        }
        self.models.entry(model).or_default()
    }
}

/// What a step without prompts takes.
#[derive(Clone, Copy)]
struct Decode {
    /// Now.
    time: f64,
    /// On average over a longer time.
    usual: f64,
    /// After which step it was seen.
    seen: u64,
}

/// The pace of one model, in seconds.
#[derive(Default)]
struct Pace {
    /// What a prompt token costs, if one was measured.
    token: Option<f64>,
    /// Steps without prompts, by their sequences.
    decode: BTreeMap<usize, Decode>,
    steps: u64,
    /// Whether the last step that began had none.
    without: bool,
}

impl Pace {
    /// A step over `n` decoding sequences: as measured, or at least as long as one with fewer.
    fn decode(&self, n: usize) -> Option<f64> {
        self.known(n).map(|decode| decode.time)
    }

    fn known(&self, n: usize) -> Option<&Decode> {
        self.decode.range(..=n).next_back().map(|(_, decode)| decode)
    }

    /// How many prompt tokens take `time` seconds, as far as is known: on average over some steps, since what is left of a token
    /// is now and then one more. So two are tried where one and a half would fit: a step's first prompt token costs more than
    /// the next ones, the more the further it is into its sequence, and it alone does not tell what those cost.
    fn prompt_tokens(&self, time: f64) -> usize {
        // Multiples of the golden ratio are spread evenly between whole numbers.
        self.token.map_or(0, |token| (time / token + (self.steps as f64 * GOLDEN_RATIO).fract()) as usize)
    }

    /// Whether a step over `n` decoding sequences is to go without prompts, for what it tells. Never two in turn: where `n`
    /// changes all the time, prompts get on.
    fn due(&self, n: usize) -> bool {
        !self.without && self.decode.get(&n).is_none_or(|decode| self.steps - decode.seen >= REMEASURE_STEPS)
    }

    /// How many sequences decode within `limit` seconds, as far as is known: between two numbers that were seen, along a line.
    fn most(&self, load: &Load, limit: f64) -> usize {
        let fresh = |(n, decode): (&usize, &Decode)| {
            (self.steps - decode.seen < STALE_STEPS).then_some((*n as f64, decode.time))
        };
        let estimate = |n: usize| {
            let below = self.decode.range(..=n).rev().find_map(fresh).unwrap_or((0.0, 0.0));
            let above = self.decode.range(n..).find_map(fresh);
            // Beyond the last, as from the first that is due to the last; or in proportion.
            let first = self.decode.get(&load.due).map_or((0.0, 0.0), |decode| (load.due as f64, decode.time));
            let (from, to) = match above {
                Some(above) => (below, above),
                None if below.0 > first.0 => (first, below),
                None => ((0.0, 0.0), below),
            };
            match to.0 > from.0 {
                true => from.1 + (n as f64 - from.0) * (to.1 - from.1) / (to.0 - from.0),
                false => to.1,
            }
        };
        (load.due + 1..=load.decoding).rev().find(|n| estimate(*n) <= limit).unwrap_or(load.due)
    }

    fn note(&mut self, decoding: usize, prompt: f64, time: f64) {
        self.steps += 1;
        if prompt == 0.0 {
            let new = Decode { time, usual: time, seen: self.steps };
            let known = self.decode.entry(decoding).or_insert(new);
            if self.steps - known.seen >= STALE_STEPS {
                *known = new;
            }
            known.time += (time - known.time) / 2.0;
            known.usual += (time - known.usual) / USUAL_STEPS;
            known.seen = self.steps;
            return;
        }
        let token = match self.decode(decoding) {
            Some(decode) => (time - decode).max(0.0) / prompt,
            None => time / (decoding as f64 + prompt),
        };
        let old = self.token.unwrap_or(token);
        let news = prompt / (prompt + MEMORY_TOKENS);
        // Above zero, since times are divided by it.
        self.token = Some((old + (token - old) * news).max(1e-9));
    }
}

/// For so long the engine leaves the cores alone after somebody's first token.
const RESPITE: Duration = Duration::from_millis(1);
/// And not again for so long: it costs others at most a twentieth of their rate.
const RESPITE_EVERY: Duration = Duration::from_millis(20);

/// When the engine leaves the cores to those who hand a first token on: a guest, its host, sockets, a client.
///
/// Where it computes on every core, each of these would wait until the kernel takes one from it, which can be a whole tick.
pub(super) struct Respite {
    on_all_cores: bool,
    last: Option<Instant>,
}

impl Respite {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { on_all_cores: config.device == EngineDevice::Cpu && config.threads >= cores, last: None }
    }

    /// How long to leave them, when somebody got a first token at `now`.
    pub(super) fn due(&mut self, now: Instant) -> Option<Duration> {
        let lately = self.last.is_some_and(|last| now.saturating_duration_since(last) < RESPITE_EVERY);
        if !self.on_all_cores || lately {
            return None;
        }
        self.last = Some(now);
        Some(RESPITE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_left_alone_now_and_then_where_all_are_taken() {
        let (mut now, config) = (Instant::now(), EngineConfig::default());
        let mut some = Respite::new(&EngineConfig { threads: 0, ..config.clone() });
        assert_eq!(some.due(now), None);
        let mut all = Respite::new(&EngineConfig { threads: 1 << 20, ..config });
        let times = 1000;
        let mut left = Duration::ZERO;
        for _ in 0..times {
            left += all.due(now).unwrap_or_default();
            now += Duration::from_millis(3);
        }
        assert!(
            left >= Duration::from_millis(times * 3 / 22) && left <= Duration::from_millis(times * 3 / 20),
            "{left:?}"
        );
    }

    fn ms(n: f64) -> Duration {
        Duration::from_secs_f64(n / 1e3)
    }

    /// Sequences that decode, all of them due, and sequences with prompts.
    fn load(decoding: usize, prompting: usize) -> Load {
        Load { decoding, due: decoding, prompting }
    }

    fn budgets(paces: &Paces, work: &[(ModelKey, (usize, usize))]) -> Vec<usize> {
        let work: Vec<Work> = work.iter().map(|(model, (decoding, n))| (*model, load(*decoding, *n))).collect();
        let allowed = paces.allowances(&work);
        assert!(allowed.iter().zip(&work).all(|(allowed, (_, load))| allowed.decoding == load.decoding));
        allowed.iter().map(|allowed| allowed.prompt_tokens).collect()
    }

    impl Paces {
        /// A step that begins, and ends.
        fn step(&mut self, model: ModelKey, decoding: usize, prompt: usize, time: Duration) {
            self.began(model, prompt > 0);
            self.note(model, decoding, prompt as f64, time);
        }
    }

    fn paces() -> Paces {
        let config = EngineConfig { prefill_tokens: 500, max_stall: ms(10.0), ..EngineConfig::default() };
        Paces::new(&config)
    }

    #[test]
    fn alone_a_prompt_gets_the_whole_step() {
        assert_eq!(budgets(&paces(), &[(1, (0, 1)), (2, (0, 2))]), [500, 500]);
    }

    #[test]
    fn beside_others_prompts_take_the_time_they_may() {
        let mut paces = paces();
        assert_eq!(budgets(&paces, &[(1, (8, 1)), (2, (0, 1))]), [0, MIN_TOKENS], "nothing is known");
        paces.step(1, 0, 500, ms(250.0)); // 0.5 ms a token
        assert_eq!(budgets(&paces, &[(1, (8, 1))]), [0], "what eight take is measured first");
        paces.step(1, 8, 0, ms(100.0));
        assert_eq!(budgets(&paces, &[(1, (8, 1))]), [20], "10 ms");
        paces.step(1, 4, 0, ms(8.0));
        assert_eq!(budgets(&paces, &[(1, (4, 1))]), [16], "as long as decoding takes");
        let shared = budgets(&paces, &[(1, (4, 1)), (2, (0, 1))]);
        assert!([7, 8, 9].contains(&shared[0]) && shared[1] == MIN_TOKENS, "two models share the time: {shared:?}");
        paces.step(1, 2, 0, ms(4.0));
        assert_eq!(budgets(&paces, &[(1, (2, 1))]), [10], "5 ms in any case");
        assert_eq!(budgets(&paces, &[(1, (8, 1)), (2, (0, 0))])[0], 20);
    }

    #[test]
    fn what_decoding_takes_is_measured_again_now_and_then() {
        let mut paces = paces();
        paces.step(1, 8, 0, ms(20.0));
        let mut without = 0;
        for step in 0..1000 {
            // The sequences grow: what eight take doubles meanwhile.
            let decode = 20.0 + step as f64 / 50.0;
            let budget = budgets(&paces, &[(1, (8, 1))])[0];
            paces.step(1, 8, budget, ms(decode + 0.25 * budget as f64));
            without += u32::from(budget == 0);
            assert!(step < 100 || budget == 0 || (28..=44).contains(&budget), "{budget} tokens in step {step}");
        }
        assert_eq!(without, 58, "one in seventeen");
    }

    #[test]
    fn a_step_hardly_grows_while_a_long_prompt_is_read() {
        let config = EngineConfig { prefill_tokens: 500, max_stall: ms(1000.0), ..EngineConfig::default() };
        let mut paces = Paces::new(&config);
        (0..100).for_each(|_| paces.step(1, 8, 0, ms(20.0)));
        let mut left = 4000.0;
        for step in 0.. {
            let decode = 20.0 + 0.015 * f64::from(step);
            let allowed = paces.allowances(&[(1, load(8, 1))])[0];
            let worth = if allowed.prompt_tokens == 0 { 0.0 } else { allowed.chunk.expect("others decode").worth };
            let time = decode + 2.0 * worth;
            paces.began(1, worth > 0.0);
            paces.note(1, 8, worth, ms(time));
            assert!(step < 20 || time <= 20.0 * 2.1, "{time} ms in step {step}");
            left -= worth;
            if left <= 0.0 {
                assert!(step < 800, "{step} steps");
                break;
            }
        }
        // Where contexts stay as long, that is what is usual in the end.
        for step in 0..20_000 {
            let allowed = paces.allowances(&[(1, load(8, 1))])[0];
            let worth = if allowed.prompt_tokens == 0 { 0.0 } else { allowed.chunk.expect("others decode").worth };
            paces.began(1, worth > 0.0);
            paces.note(1, 8, worth, ms(40.0 + 2.0 * worth));
            let least = if step < 19_000 { 5.0 } else { 16.0 };
            assert!(step < 100 || worth == 0.0 || worth >= least * 0.9, "{worth} tokens in step {step}");
        }
    }

    #[test]
    fn what_is_not_due_takes_part_as_long_as_the_due_hardly_notice() {
        // Each sequence takes 1 ms beyond the first millisecond, or all take the same.
        for (of_each, expected) in [(1.0, 6), (0.0, 32)] {
            let mut paces = paces();
            let takes = |n: usize| 4.0 + of_each * n as f64;
            let work = [(1, Load { decoding: 32, due: 4, prompting: 0 })];
            let mut decoding = 0;
            for _ in 0..100 {
                decoding = paces.allowances(&work)[0].decoding;
                paces.step(1, decoding, 0, ms(takes(decoding)));
            }
            let most = paces.allowances(&work)[0].decoding.max(decoding);
            let fits = |n: usize| takes(n) <= takes(4) * (1.0 + SHARE);
            assert!(most >= 4 + expected.min(28) && fits(most), "{most} at {of_each} ms");
        }
    }

    #[test]
    fn what_is_not_due_always_gets_on_and_leaves_time_to_prompts() {
        let mut paces = paces();
        let work = [(1, Load { decoding: 8, due: 1, prompting: 1 })];
        let (mut others, mut prompts) = (0, 0);
        for _ in 0..1000 {
            let Allowance { decoding, prompt_tokens, .. } = paces.allowances(&work)[0];
            others += decoding - 1;
            prompts += prompt_tokens;
            // Any other sequence takes longer than it may.
            paces.step(1, decoding, prompt_tokens, ms(10.0 * decoding as f64 + 0.1 * prompt_tokens as f64));
        }
        assert!(others >= 850, "{others} tokens of others");
        assert!(prompts >= 20_000, "{prompts} tokens of prompts"); // 2.5 to 3.75 ms each time
        let none_due = [(1, Load { decoding: 3, due: 0, prompting: 0 })];
        assert!(paces.allowances(&none_due)[0].decoding >= 1);
    }

    #[test]
    fn the_average_finds_the_cost_of_a_token_from_any_start() {
        // A step takes 20 ms, and 0.25 ms for each prompt token: 10 ms are 40 tokens.
        for start in [0.001, 10.0] {
            let mut paces = paces();
            paces.step(1, 8, 0, ms(20.0));
            paces.step(1, 8, 10, ms(20.0 + 10.0 * start));
            let mut budget = 0;
            for _ in 0..200 {
                budget = budgets(&paces, &[(1, (8, 1))])[0];
                paces.step(1, 8, budget, ms(20.0 + 0.25 * budget as f64));
            }
            assert!((36..=44).contains(&budget), "{budget} tokens, from {start} ms");
        }
    }

    #[test]
    fn what_the_first_token_costs_beyond_the_others_stops_no_prompt() {
        // Far into its sequence the first takes 6 ms, each other one 0.5: nine fit into 10 ms, and at first one is known.
        let mut paces = paces();
        paces.step(1, 8, 0, ms(30.0));
        let (mut tokens, mut longest) = (0, 0);
        for step in 0..400 {
            let budget = budgets(&paces, &[(1, (8, 1))])[0];
            let time = if budget == 0 { 30.0 } else { 35.5 + 0.5 * budget as f64 };
            paces.step(1, 8, budget, ms(time));
            if step >= 100 {
                tokens += budget;
                longest = longest.max(budget);
            }
        }
        assert!(tokens >= 300 * 7 && longest <= 10, "{tokens} tokens in 300 steps, {longest} at most");
    }

    #[test]
    fn a_small_step_is_kept_and_prompts_never_stop() {
        let config = EngineConfig { prefill_tokens: 2, max_stall: Duration::ZERO, ..EngineConfig::default() };
        let mut paces = Paces::new(&config);
        paces.step(1, 1, 2, ms(1000.0));
        paces.step(1, 1, 0, ms(1000.0));
        assert_eq!(budgets(&paces, &[(1, (1, 1))]), [MIN_TOKENS], "whatever it costs");
        assert_eq!(budgets(&paces, &[(1, (0, 1))]), [2]);
        for model in 0..1000 {
            paces.step(model, 1, 2, ms(1.0));
        }
        assert!(paces.models.len() <= MAX_MODELS);
    }
}
