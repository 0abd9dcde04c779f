//! Probabilities of tokens, in both of OpenAI's shapes.

use serde_json::{Map, Value, json};

use crate::model_api::reply::Likely;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// For chat: an object for each token.
pub(super) fn chat(tokens: &[Likely]) -> Value {
    let one =
        |(bytes, logprob): (&[u8], f32)| json!({ "token": text(bytes), "logprob": finite(logprob), "bytes": bytes });
    let token = |likely: &Likely| {
        let mut token = one((&likely.bytes, likely.logprob));
        let top = likely.top.iter().map(|(bytes, logprob)| one((bytes, *logprob)));
        token["top_logprobs"] = top.collect();
        token
    };
    json!({ "content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null })
}

/// For plain completions: a list for each property. `offset` is where the text of these tokens begins.
pub(super) fn plain(tokens: &[Likely], offset: usize) -> Value {
    let mut at = offset;
    let offsets = tokens.iter().map(|token| {
        let here = at;
        at += text(&token.bytes).chars().count();
        here
    });
    let offsets: Vec<usize> = offsets.collect();
    let top = |token: &Likely| {
        let pairs = token.top.iter().map(|(bytes, logprob)| (text(bytes), finite(*logprob)));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    json!({
        "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| finite(token.logprob)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// JSON has no infinity; OpenAI says -9999 for what is all but impossible.
fn finite(logprob: f32) -> Value {
    json!(if logprob.is_finite() { logprob } else { -9999.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_say_the_same() {
        let token = |text: &str, logprob| Likely {
            bytes: text.as_bytes().to_vec(),
            logprob,
            top: vec![(text.as_bytes().to_vec(), logprob), (vec![0xff], f32::NEG_INFINITY)],
        };
        let tokens = [token("é", -0.5), token(" b", -1.0)];
        let said = chat(&tokens);
        assert_eq!(said["content"][0]["bytes"], json!([195, 169]));
        assert_eq!(
            said["content"][1]["top_logprobs"][1],
            json!({ "token": "\u{fffd}", "logprob": -9999.0, "bytes": [255] })
        );
        let said = plain(&tokens, 10);
        assert_eq!((&said["text_offset"], &said["tokens"]), (&json!([10, 11]), &json!(["é", " b"])));
        assert_eq!(said["top_logprobs"][1][" b"], json!(-1.0));
    }
}
