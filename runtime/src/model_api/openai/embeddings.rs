//! `/v1/embeddings`: what texts mean, as points on a sphere.

use hob_gpu::TokenId;
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::host::embed::{MAX_TEXTS, Text};
use crate::model_api::ask::{Call, Found};
use crate::model_api::body::Given;
use crate::model_api::refused::Refused;
use crate::request::Body;
use crate::sources::auth::base64;

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    model: String,
    input: Option<Inputs>,
    encoding_format: Option<String>,
    dimensions: Option<u64>,
}

/// Texts, as text or tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Inputs {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl Inputs {
    fn texts(self) -> Vec<Text> {
        let tokens = |ids: Vec<u32>| Text::Tokens(ids.into_iter().map(TokenId).collect());
        match self {
            Self::Text(text) => vec![Text::Words(text)],
            Self::Texts(texts) => texts.into_iter().map(Text::Words).collect(),
            Self::Tokens(ids) => vec![tokens(ids)],
            Self::TokenLists(lists) => lists.into_iter().map(tokens).collect(),
        }
    }
}

/// Answers a call.
pub(in crate::model_api) async fn answer(call: &Call, body: Given) -> Result<Response<Body>, Refused> {
    let asked: Asked = body.json().await?;
    let texts = asked.input.map(Inputs::texts).unwrap_or_default();
    check_input(&texts)?;
    let packed = match asked.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Refused::invalid("encoding_format", "encoding_format is float or base64")),
    };
    let found = call.join(&asked.model).await?;
    check_width(&found, asked.dimensions)?;
    let embedded = call.embed(&found, texts, false).await?;
    let item = |(n, row): (usize, &Vec<f32>)| {
        let embedding = if packed { packed_row(row).into() } else { floats(row) };
        json!({ "object": "embedding", "index": n, "embedding": embedding })
    };
    let data: Vec<Value> = embedded.rows.iter().enumerate().map(item).collect();
    let usage = json!({ "prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens });
    Ok(call.whole(&json!({ "object": "list", "data": data, "model": found.name, "usage": usage })))
}

fn check_input(texts: &[Text]) -> Result<(), Refused> {
    let empty = |text: &Text| match text {
        Text::Words(text) => text.is_empty(),
        Text::Tokens(ids) => ids.is_empty(),
    };
    if texts.is_empty() || texts.iter().any(empty) {
        return Err(Refused::invalid("input", "the input is empty; give a text, or several, none of them empty"));
    }
    if texts.len() > MAX_TEXTS {
        let why = format!("{} texts; at most {MAX_TEXTS} are embedded at once", texts.len());
        return Err(Refused::invalid("input", why));
    }
    Ok(())
}

/// Models here were not trained to be cut short.
pub(in crate::model_api) fn check_width(found: &Found, wanted: Option<u64>) -> Result<(), Refused> {
    let width = found.model.info().embedding;
    match wanted {
        Some(wanted) if wanted != u64::from(width) => {
            let why = format!("dimensions is {wanted}; embeddings of {} have {width}: leave it out", found.name);
            Err(Refused::invalid("dimensions", why))
        }
        _ => Ok(()),
    }
}

/// Little-endian floats in base64: a third of the bytes, which OpenAI's own client asks for.
fn packed_row(row: &[f32]) -> String {
    base64(&row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// Numbers with the digits that tell them apart, and no more.
pub(in crate::model_api) fn floats(row: &[f32]) -> Value {
    row.iter().map(|x| Value::from(x.to_string().parse::<f64>().unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_in_all_four_forms() {
        let read = |input: Value| serde_json::from_value::<Asked>(json!({ "input": input })).unwrap().input.unwrap();
        assert!(matches!(&read(json!("a")).texts()[..], [Text::Words(a)] if a == "a"));
        assert_eq!(read(json!(["a", "b"])).texts().len(), 2);
        assert!(matches!(&read(json!([1, 2])).texts()[..], [Text::Tokens(ids)] if ids.len() == 2));
        assert_eq!(read(json!([[1], [2, 3]])).texts().len(), 2);
        for bad in [json!(""), json!([]), json!(["a", ""]), json!([[]])] {
            let refused = check_input(&read(bad.clone()).texts()).unwrap_err();
            assert_eq!(refused.param.as_deref(), Some("input"), "{bad}");
        }
    }

    #[test]
    fn floats_have_no_more_digits_than_they_need() {
        assert_eq!(floats(&[0.1, -0.034477, 1.0]).to_string(), "[0.1,-0.034477,1.0]");
    }
}
