//! Answers of a given form: before each token, those that would leave it are ruled out.
//!
//! Grammars are compiled where a generation is asked for, not on the engine's thread; a token is looked at as it is chosen, on all
//! threads of the batch. All that is allowed next is computed only where the model chose what is not (`sampling.rs`). A grammar has
//! bounds on what it may cost, so that none holds up others.

use crate::ask::{Refusal, TokenId};
use crate::model::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::sync::Arc;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any JSON object.
    Object,
    /// What this JSON schema accepts, on one line.
    Schema(serde_json::Value),
    /// What a grammar accepts, in llguidance's dialect of Lark.
    Grammar(String),
}

/// What forms of one model's answers are made with.
pub(crate) struct Forms(ParserFactory);

impl Forms {
    /// For a model that gives `vocab` logits.
    pub(crate) fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self, Refusal> {
        let Some(end) = tokenizer.ends().first() else {
            return Err(Refusal::Invalid(
                "this model has no token that ends an answer, so none can have a form".into(),
            ));
        };
        let word = |id: u32| {
            let mut bytes = Vec::new();
            let special = tokenizer.is_special(TokenId(id)) || tokenizer.is_end(TokenId(id));
            if special {
                bytes.push(TokTrie::SPECIAL_TOKEN_MARKER); // no text is such a token
            }
            tokenizer.decode_to(TokenId(id), &mut bytes);
            if special && bytes.len() == 1 { Vec::new() } else { bytes }
        };
        let vocab = u32::try_from(vocab).map_err(fault)?;
        let words: Vec<Vec<u8>> = (0..vocab).map(word).collect();
        let ends: Vec<u32> = tokenizer.ends().iter().map(|id| id.0).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab, end.0), &words).with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(fault)?;
        factory.quiet();
        let limits = factory.limits_mut();
        // Forms are the callers': a step waits for each, and each keeps its states, of one or two kilobytes, to its end.
        limits.initial_lexer_fuel = 500_000;
        limits.step_lexer_fuel = 50_000;
        limits.step_max_items = 20_000;
        limits.max_lexer_states = 20_000;
        limits.verbose_errors = false;
        Ok(Self(factory))
    }

    /// Compiles a form.
    ///
    /// # Errors
    /// `Invalid` if it says nothing that can be, or what is not understood.
    pub(crate) fn compile(&self, form: &Form) -> Result<Guide, Refusal> {
        let grammar = match form {
            Form::Object => TopLevelGrammar::from_json_schema(on_one_line(serde_json::json!({ "type": "object" }))),
            Form::Schema(schema) => TopLevelGrammar::from_json_schema(on_one_line(schema.clone())),
            Form::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let mut matcher = Matcher::new(self.0.create_parser(grammar));
        match matcher.compute_mask_or_eos() {
            Ok(_) => Ok(Guide { matcher, failed: None }),
            Err(error) => Err(Refusal::Invalid(format!("the answer cannot have this form: {error}"))),
        }
    }
}

/// Small models like to go on with spaces for ever: there are none but one after each comma and colon.
fn on_one_line(mut schema: serde_json::Value) -> serde_json::Value {
    if let Some(schema) = schema.as_object_mut()
        && !schema.contains_key("x-guidance")
    {
        let style = serde_json::json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        schema.insert("x-guidance".into(), style);
    }
    schema
}

fn fault(error: impl std::fmt::Display) -> Refusal {
    Refusal::Fault(format!("no form can be made for this model: {error}"))
}

/// Where one answer stands in its form.
pub(crate) struct Guide {
    matcher: Matcher,
    failed: Option<String>,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Guide {
    /// One for another answer of the same form: it shares nothing with this one, so neither waits for the other.
    pub(crate) fn fresh(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), failed: self.failed.clone() }
    }

    /// Whether `id` may come next.
    pub(crate) fn allows(&mut self, id: TokenId) -> bool {
        self.matcher.validate_tokens(&[id.0]).is_ok_and(|valid| valid == 1)
    }

    /// Rules out what cannot come next.
    pub(crate) fn apply(&mut self, logits: &mut [f32]) {
        match self.matcher.compute_mask_or_eos() {
            Ok(allowed) => {
                for (word, logits) in allowed.as_slice().iter().zip(logits.chunks_mut(32)) {
                    match *word {
                        u32::MAX => {}
                        0 => logits.fill(f32::NEG_INFINITY),
                        word => logits.iter_mut().enumerate().for_each(|(bit, logit)| {
                            if word >> bit & 1 == 0 {
                                *logit = f32::NEG_INFINITY;
                            }
                        }),
                    }
                }
            }
            Err(error) => self.failed = Some(error.to_string()),
        }
    }

    /// Goes on with the token that was chosen; says whether nothing can follow.
    pub(crate) fn take(&mut self, id: TokenId) -> bool {
        if self.failed.is_none() && !self.matcher.is_stopped() {
            self.failed = self.matcher.consume_token(id.0).err().map(|error| error.to_string());
        }
        self.failed.is_some() || self.matcher.is_stopped()
    }

    /// Why the form is lost, if it is.
    pub(crate) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Sampler;
    use crate::{Ask, Prompt};

    /// Letters and JSON's signs, two of them as one token, and an end.
    fn forms() -> (Forms, Vec<Vec<u8>>) {
        let mut words: Vec<Vec<u8>> = (0..=127u8).map(|byte| vec![byte]).collect();
        words.push(b"\": ".to_vec());
        words.push(b"\xffend".to_vec());
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, 129), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[]).unwrap();
        (Forms(factory), words)
    }

    fn warm() -> Ask {
        let mut ask = Ask::new(Prompt::Raw(String::new()));
        ask.sampling.temperature = 1.0;
        ask
    }

    /// What noise becomes in this form; `None` if it is not at its end by then.
    fn generate(form: &Form, seed: u64, most: usize) -> Option<String> {
        let (forms, words) = forms();
        let mut guide = forms.compile(form).unwrap();
        let mut sampler = Sampler::new(&warm(), &[], seed);
        let mut text = Vec::new();
        for n in 0..most as u64 {
            let noise = |i: u64| (seed * 31 + n * 17 + i * 7919) % 101;
            let logits: Vec<f32> = (0..words.len() as u64).map(|i| noise(i) as f32 / 25.0).collect();
            let id = sampler.choose_in(&logits, Some(&mut guide));
            assert_eq!(guide.failed(), None);
            if id.0 as usize != words.len() - 1 {
                text.extend_from_slice(&words[id.0 as usize]);
            }
            if guide.take(id) {
                return Some(String::from_utf8(text).unwrap());
            }
        }
        None
    }

    #[test]
    fn noise_becomes_what_the_schema_says() {
        let schema = serde_json::json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "maxLength": 8 },
                "age": { "type": "integer", "minimum": 0, "maximum": 99 },
                "kind": { "enum": ["cat", "dog"] },
                "tags": { "type": "array", "items": { "type": "boolean" }, "maxItems": 3 },
            },
            "required": ["name", "age", "kind", "tags"],
            "additionalProperties": false,
        });
        for seed in 0..50 {
            let text = generate(&Form::Schema(schema.clone()), seed, 200).expect("all of it is bounded");
            let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["name", "age", "kind", "tags"], "{text}");
            assert!(value["age"].as_u64().is_some_and(|age| age < 100), "{text}");
            assert!(["cat", "dog"].contains(&value["kind"].as_str().unwrap()), "{text}");
            assert!(value["tags"].as_array().unwrap().len() <= 3, "{text}");
        }
    }

    #[test]
    fn what_is_allowed_is_what_is_not_ruled_out() {
        let schema = serde_json::json!({ "type": "object", "properties": {
            "a": { "type": "string", "maxLength": 6 }, "n": { "type": "integer", "minimum": -3, "maximum": 120 },
        }, "required": ["a", "n"] });
        let grammar = "start: \"<x>\" (\"a\" | \"ab\")+ \"</x>\"";
        let (forms, words) = forms();
        let end = words.len() - 1;
        for (seed, form) in
            (0..20).flat_map(|n| [(n, Form::Schema(schema.clone())), (n, Form::Grammar(grammar.into()))])
        {
            let mut guide = forms.compile(&form).unwrap();
            let mut sampler = Sampler::new(&warm(), &[], seed);
            for n in 0.. {
                let mut mask = vec![0.0; words.len()];
                guide.apply(&mut mask);
                for (id, logit) in mask.iter().enumerate() {
                    let (allowed, word) = (*logit == 0.0, String::from_utf8_lossy(&words[id]));
                    assert_eq!(guide.allows(TokenId(id as u32)), allowed, "{word:?} as token {n} of {form:?}");
                }
                let mut logits = vec![0.0; words.len()];
                logits[end] = if n < 60 { 0.0 } else { 20.0 };
                let chosen = sampler.choose_in(&logits, Some(&mut guide));
                if guide.take(chosen) || n == 200 {
                    break;
                }
            }
            assert_eq!(guide.failed(), None);
        }
    }

    #[test]
    fn what_is_allowed_is_as_likely_as_among_itself() {
        let (forms, words) = forms();
        let guide = forms.compile(&Form::Grammar("start: \"a\" | \"b\" | \"c\"".into())).unwrap();
        let mut logits = vec![0.0; words.len()];
        for (word, logit) in [(b'a', 3.0), (b'b', 4.0), (b'c', 2.0), (b'x', 4.5), (b'y', 1.0)] {
            logits[usize::from(word)] = logit;
        }
        let mut counts = [0; 3];
        let mut sampler = Sampler::new(&warm(), &[], 3);
        for _ in 0..6000 {
            let chosen = sampler.choose_in(&logits, Some(&mut guide.fresh()));
            counts[chosen.0 as usize - usize::from(b'a')] += 1;
        }
        let weights = [3.0, 4.0, 2.0].map(f64::exp);
        for (count, weight) in counts.iter().zip(weights) {
            let want = 6000.0 * weight / weights.iter().sum::<f64>();
            assert!((f64::from(*count) - want).abs() < 120.0, "{counts:?}: {want}");
        }
    }

    #[test]
    fn a_grammar_holds_between_its_marks() {
        let grammar = "start: \"<tool_call>\\n\" body \"\\n</tool_call>\"\nbody: %json {\"enum\": [\"x\", \"y\"]}\n";
        let text = generate(&Form::Grammar(grammar.into()), 3, 100).unwrap();
        assert!(["<tool_call>\n\"x\"\n</tool_call>", "<tool_call>\n\"y\"\n</tool_call>"].contains(&&*text), "{text}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |form: Form| match forms().0.compile(&form) {
            Err(Refusal::Invalid(why)) => why,
            other => panic!("{form:?} gave {:?}", other.map(|_| ())),
        };
        refused(Form::Schema(serde_json::json!({ "type": "colour" })));
        refused(Form::Schema(serde_json::json!({ "$ref": "#/definitions/none" })));
        refused(Form::Grammar("start: nothing".into()));
    }
}
