//! `options`, `format` and `think`, read.

use hob_gpu::{Ask, Form, Penalties, Prompt, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::model_api::openai::OneOrMany;
use crate::model_api::refused::Refused;

/// How tokens are chosen. Others, as `num_ctx` or `num_gpu`, are the operator's here: they are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    num_predict: Option<i64>,
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
}

impl Options {
    /// What the call says, over what comes with the model.
    pub fn read(asked: Option<Map<String, Value>>, defaults: &Map<String, Value>) -> Result<Self, Refused> {
        let mut all = defaults.clone();
        all.extend(asked.unwrap_or_default());
        serde_json::from_value(all.into()).map_err(|error| Refused::invalid("options", format!("options: {error}")))
    }

    /// The ask, but for its prompt.
    pub fn ask(self) -> Ask {
        let mut ask = Ask::new(Prompt::Tokens(Vec::new()));
        // -1 and -2 are "until it ends" and "until the context is full".
        ask.max_tokens = self.num_predict.and_then(|most| u32::try_from(most).ok()).filter(|most| *most > 0);
        ask.stop =
            self.stop.map(OneOrMany::all).unwrap_or_default().into_iter().filter(|stop| !stop.is_empty()).collect();
        ask.sampling = Sampling {
            temperature: self.temperature.unwrap_or(0.8).clamp(0.0, 2.0),
            top_k: self.top_k.map_or(40, |k| u32::try_from(k).unwrap_or(0)),
            top_p: self.top_p.unwrap_or(0.9).clamp(f32::MIN_POSITIVE, 1.0),
            min_p: self.min_p.unwrap_or(0.0).clamp(0.0, 1.0),
            // A negative one draws afresh.
            seed: self.seed.and_then(|seed| u64::try_from(seed).ok()),
            penalties: Penalties {
                repetition: self.repeat_penalty.unwrap_or(1.0).clamp(0.01, 2.0),
                presence: self.presence_penalty.unwrap_or(0.0).clamp(-2.0, 2.0),
                frequency: self.frequency_penalty.unwrap_or(0.0).clamp(-2.0, 2.0),
            },
        };
        ask
    }
}

/// `"json"`, or a schema.
pub(super) fn format(format: Option<&Value>) -> Result<Option<Form>, Refused> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(Form::Object)),
        Some(schema @ Value::Object(_)) => Ok(Some(Form::Schema(schema.clone()))),
        Some(other) => {
            Err(Refused::invalid("format", format!("invalid format: {other}; give \"json\" or a JSON schema")))
        }
    }
}

/// Whether the model is to think: a switch, or how much.
pub(super) fn think(think: Option<&Value>) -> Result<Option<bool>, Refused> {
    match think {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(on)) => Ok(Some(*on)),
        Some(Value::String(much)) if ["low", "medium", "high"].contains(&much.as_str()) => Ok(Some(true)),
        Some(other) => Err(Refused::invalid(
            "think",
            format!("invalid think value: {other}; give true, false, low, medium or high"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_call_goes_before_the_model() {
        let defaults = json!({ "temperature": 0.1, "stop": ["</s>"], "num_ctx": 99 });
        let options = |asked: Value| Options::read(asked.as_object().cloned(), defaults.as_object().unwrap());
        let ask = options(json!({ "temperature": 0, "num_predict": -1, "seed": 5, "stop": "x" })).unwrap().ask();
        assert_eq!((ask.sampling.temperature, ask.max_tokens, ask.sampling.seed), (0.0, None, Some(5)));
        assert_eq!(ask.stop, ["x"]);
        let ask = options(Value::Null).unwrap().ask();
        assert_eq!((ask.sampling.temperature, ask.sampling.top_k, &ask.stop[..]), (0.1, 40, &["</s>".to_owned()][..]));
        assert_eq!(options(json!({ "top_k": "many" })).unwrap_err().status.as_u16(), 400);
    }

    #[test]
    fn formats_and_thoughts_are_read_or_refused() {
        assert_eq!(format(Some(&json!("json"))).unwrap(), Some(Form::Object));
        assert!(matches!(format(Some(&json!({ "type": "object" }))).unwrap(), Some(Form::Schema(_))));
        assert_eq!((format(Some(&json!(""))).unwrap(), think(Some(&json!("high"))).unwrap()), (None, Some(true)));
        assert!(format(Some(&json!("xml"))).is_err() && think(Some(&json!("much"))).is_err());
    }
}
