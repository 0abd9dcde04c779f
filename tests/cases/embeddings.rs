//! Embeddings, through every way that leads to them: they are the same numbers, and are billed.

use std::collections::BTreeMap;

use hob_tests::{EMBEDDER, Hob, MODEL, ServeOptions, get, post, root};
use serde_json::{Value, json};

fn with_embedders() -> Hob {
    Hob::with(ServeOptions { model: true, embedders: true, ..ServeOptions::default() })
}

fn ask(hob: &Hob, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = post(&hob.url(path), &body.to_string());
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn row(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("{value}")).iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn same(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-4), "{a:?}\n{b:?}");
}

/// What transformers says of the small model: texts and their embeddings.
fn golden() -> Vec<(String, Vec<f64>)> {
    let text = std::fs::read_to_string(root().join("tests/golden/embeddings.json")).unwrap();
    let mut all: BTreeMap<String, Vec<Value>> = serde_json::from_str(&text).unwrap();
    let of = |one: Value| (one["text"].as_str().unwrap().to_owned(), row(&one["embedding"]));
    all.remove("bert").unwrap().into_iter().map(of).filter(|(text, _)| !text.is_empty() && text.len() < 200).collect()
}

#[test]
fn every_api_gives_what_transformers_gives() {
    let (hob, golden) = (with_embedders(), golden());
    let texts: Vec<&str> = golden.iter().map(|(text, _)| text.as_str()).collect();
    let (status, list) = ask(&hob, "/v1/embeddings", &json!({ "model": EMBEDDER, "input": texts }));
    assert_eq!((status, &list["object"], &list["model"]), (200, &json!("list"), &json!(EMBEDDER)), "{list}");
    assert!(list["usage"]["prompt_tokens"].as_u64() > Some(20) && list["usage"]["total_tokens"].is_u64(), "{list}");
    for (n, (_, expected)) in golden.iter().enumerate() {
        let item = &list["data"][n];
        assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(n)));
        same(&row(&item["embedding"]), expected);
    }
    let (status, answer) = ask(&hob, "/api/embed", &json!({ "model": EMBEDDER, "input": texts }));
    assert_eq!(status, 200, "{answer}");
    assert!(answer["prompt_eval_count"] == list["usage"]["prompt_tokens"] && answer["total_duration"].is_u64());
    golden.iter().enumerate().for_each(|(n, (_, expected))| same(&row(&answer["embeddings"][n]), expected));
    let (text, expected) = &golden[0];
    let (_, answer) = ask(&hob, "/api/embeddings", &json!({ "model": EMBEDDER, "prompt": text }));
    same(&row(&answer["embedding"]), expected);
    // A single text, and tokens of a model that generates.
    let (_, answer) = ask(&hob, "/v1/embeddings", &json!({ "model": EMBEDDER, "input": text }));
    same(&row(&answer["data"][0]["embedding"]), expected);
    let (status, answer) = ask(&hob, "/v1/embeddings", &json!({ "model": MODEL, "input": [[1, 2, 3], [4]] }));
    assert_eq!((status, row(&answer["data"][1]["embedding"]).len()), (200, 576), "{answer}");
}

#[test]
fn a_function_embeds_through_hob_infer_and_wasi_nn() {
    let (hob, golden) = (with_embedders(), golden());
    for package in ["guest-infer", "guest-nn"] {
        hob.deploy(package, &["--model", EMBEDDER, "--model", MODEL]);
    }
    let (text, expected) = &golden[1];
    let query = |path: &str| format!("{}&model={EMBEDDER}&text={}", hob.url(path), text.replace(' ', "%20"));
    let (status, rows) = get(&query("/guest-infer?do=embed&n=3"));
    assert_eq!(status, 200, "{rows}");
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    assert_eq!(rows.len(), 3);
    rows.iter().for_each(|one| same(&row(one), expected));
    let (status, outputs) = get(&query("/guest-nn?do=embed"));
    assert_eq!(status, 200, "{outputs}");
    let outputs: Value = serde_json::from_str(&outputs).unwrap();
    let tensor: Value = serde_json::from_str(outputs["outputs"]["0"].as_str().unwrap()).unwrap();
    assert_eq!(tensor["dimensions"], json!([1, 64]), "{tensor}");
    same(&row(&tensor["row"]), expected);
    let (status, refused) = get(&format!("{}&model={EMBEDDER}", hob.url("/guest-infer?do=raw")));
    assert!(status == 400 && refused.contains("gives embeddings and generates nothing"), "{status} {refused}");
    // What was embedded is on the bill, to the token: three times through one interface and once through the other; what
    // gives no row costs nothing.
    hob.until("the bill is written", || {
        let usage = hob.ok(&["usage", "--model", EMBEDDER, "--format", "jsonl"]);
        let rows = usage.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let prompt: u64 = rows.filter_map(|row| row["prompt_tokens"].as_u64()).sum();
        assert!(prompt <= 4 * 12, "{usage}");
        (prompt == 4 * 12).then_some(())
    });
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let hob = with_embedders();
    let long = "word ".repeat(400);
    for (more, param) in [
        (json!({ "input": "" }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({}), "input"),
        (json!({ "input": vec!["a"; 2049] }), "input"),
        (json!({ "input": "a", "dimensions": 8 }), "dimensions"),
        (json!({ "input": "a", "encoding_format": "hex" }), "encoding_format"),
        (json!({ "input": "a", "model": "nope" }), "model"),
    ] {
        let mut body = json!({ "model": EMBEDDER });
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        let (status, answer) = ask(&hob, "/v1/embeddings", &body);
        assert!([400, 404].contains(&status) && answer["error"]["param"] == param, "{body}: {status} {answer}");
    }
    let (status, answer) = ask(&hob, "/v1/embeddings", &json!({ "model": EMBEDDER, "input": long }));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")), "{answer}");
    // Ollama's clients count on texts being cut.
    let (status, answer) = ask(&hob, "/api/embed", &json!({ "model": EMBEDDER, "input": long }));
    assert_eq!((status, &answer["prompt_eval_count"]), (200, &json!(128)), "{answer}");
    let (status, _) = ask(&hob, "/api/embed", &json!({ "model": EMBEDDER, "input": long, "truncate": false }));
    assert_eq!(status, 400);
    let chat = json!({ "model": EMBEDDER, "messages": [{ "role": "user", "content": "hi" }] });
    let (status, answer) = ask(&hob, "/v1/chat/completions", &chat);
    assert_eq!(status, 400, "{answer}");
}
