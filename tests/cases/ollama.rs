//! Ollama's API and Anthropic's, by the bytes that clients see.

use hob_tests::{Connection, Hob, MODEL, PackageIndex, ServeOptions, get, post};
use serde_json::{Value, json};

fn ask(hob: &Hob, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = post(&hob.url(path), &body.to_string());
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// The lines of a stream.
fn lines(hob: &Hob, path: &str, body: &Value) -> Vec<Value> {
    let mut connection = Connection::open(hob.address());
    connection.post(path, &body.to_string());
    let head = connection.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/x-ndjson")));
    connection.body().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": MODEL, "options": { "temperature": 0, "num_predict": 12 },
        "messages": [{ "role": "user", "content": "What is the capital of France?" }],
    });
    more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
    body
}

#[test]
fn chats_and_prompts_are_answered_in_lines_and_whole() {
    let hob = Hob::with_model();
    assert_eq!(get(&hob.url("/")), (200, "Ollama is running".into()));
    assert!(get(&hob.url("/api/version")).1.contains("version"));
    let (status, whole) = ask(&hob, "/api/chat", &chat(json!({ "stream": false })));
    let text = whole["message"]["content"].as_str().unwrap();
    assert!(status == 200 && !text.is_empty() && whole["done"] == true, "{whole}");
    for number in
        ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"]
    {
        assert!(whole[number].as_u64().is_some_and(|number| number > 0), "{number}: {whole}");
    }
    let all = lines(&hob, "/api/chat", &chat(json!({})));
    let (last, rest) = all.split_last().unwrap();
    assert!(last["done"] == true && last["done_reason"] == whole["done_reason"], "{last}");
    assert_eq!(last["eval_count"], whole["eval_count"]);
    assert!(rest.iter().all(|line| line["done"] == false && line["model"] == MODEL && line["created_at"].is_string()));
    let said: String = rest.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(said, text);

    let generate = json!({ "model": MODEL, "prompt": "The capital of France is", "raw": true, "options": { "temperature": 0, "num_predict": 2 } });
    let all = lines(&hob, "/api/generate", &generate);
    let said: String = all.iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert!(said.contains("Paris"), "{said}");
    let (_, object) = ask(
        &hob,
        "/api/generate",
        &json!({ "model": MODEL, "prompt": "Name a city.", "format": {
        "type": "object", "properties": { "city": { "type": "string", "maxLength": 12 } }, "required": ["city"], "additionalProperties": false },
        "stream": false, "options": { "temperature": 0 } }),
    );
    let object: Value = serde_json::from_str(object["response"].as_str().unwrap()).unwrap();
    assert!(object["city"].is_string(), "{object}");
    for (body, status, why) in [
        (json!({ "model": "nope", "prompt": "x" }), 404, "model 'nope' not found"),
        (json!({ "model": MODEL, "prompt": "x", "think": true }), 400, "does not support thinking"),
        (json!({ "model": MODEL, "prompt": "x", "format": "xml" }), 400, "invalid format"),
        (json!({ "model": MODEL, "prompt": "x", "keep_alive": "soon" }), 400, "keep_alive"),
    ] {
        let (got, error) = ask(&hob, "/api/generate", &body);
        assert!(got == status && error["error"].as_str().unwrap().contains(why), "{got} {error}");
    }
}

#[test]
fn models_come_go_and_stay_as_callers_say() {
    let hob = Hob::with_model();
    let load = |keep: Value| ask(&hob, "/api/generate", &json!({ "model": MODEL, "keep_alive": keep })).1;
    let here =
        || serde_json::from_str::<Value>(&get(&hob.url("/api/ps")).1).unwrap()["models"].as_array().unwrap().clone();
    assert_eq!(load(json!("10m"))["done_reason"], "load");
    let model = here().pop().unwrap();
    assert!(
        model["name"] == MODEL && model["size"].as_u64().unwrap() > 90_000_000 && model["expires_at"].is_string(),
        "{model}"
    );
    assert_eq!(load(json!(0))["done_reason"], "unload");
    hob.until("it is gone", || here().is_empty().then_some(()));
    // One that was asked for with an end goes by itself.
    ask(&hob, "/api/chat", &chat(json!({ "stream": false, "keep_alive": "1s" })));
    assert_eq!(here().len(), 1);
    hob.until("it went by itself", || here().is_empty().then_some(()));

    let tags: Value = serde_json::from_str(&get(&hob.url("/api/tags")).1).unwrap();
    let tag = &tags["models"][0];
    assert_eq!(
        (&tag["model"], &tag["details"]["family"], &tag["details"]["quantization_level"]),
        (&json!(MODEL), &json!("llama"), &json!("Q4_1"))
    );
    assert_eq!(tag["digest"].as_str().unwrap().len(), 64);
    let (_, shown) = ask(&hob, "/api/show", &json!({ "model": MODEL }));
    assert!(
        shown["template"].as_str().unwrap().contains("im_start") && shown["capabilities"][0] == "completion",
        "{shown}"
    );
    assert_eq!(shown["model_info"]["llama.context_length"], 8192);

    assert_eq!(post(&hob.url("/api/copy"), &json!({ "source": MODEL, "destination": "mine" }).to_string()).0, 200);
    let made = json!({ "model": "pirate:latest", "from": MODEL, "system": "Talk like a pirate.", "parameters": { "num_predict": 3, "temperature": 0 } });
    assert_eq!(lines(&hob, "/api/create", &made).last().unwrap()["status"], "success");
    let (_, said) = ask(
        &hob,
        "/api/chat",
        &json!({ "model": "pirate", "stream": false, "messages": [{ "role": "user", "content": "hi" }] }),
    );
    let plain = ask(&hob, "/api/chat", &json!({ "model": "mine", "stream": false, "options": { "num_predict": 3 }, "messages": [{ "role": "user", "content": "hi" }] })).1;
    assert!(
        said["eval_count"] == 3 && said["prompt_eval_count"].as_u64() != plain["prompt_eval_count"].as_u64(),
        "{said} {plain}"
    );
    let mut connection = Connection::open(hob.address());
    connection.request("DELETE", "/api/delete", &[], json!({ "model": "pirate" }).to_string().as_bytes());
    assert_eq!(connection.head().status, 200);
    assert_eq!(ask(&hob, "/api/show", &json!({ "model": "pirate" })).0, 404);
    assert_eq!(here().len(), 1, "it is there under other names");
}

#[test]
fn a_pull_tells_how_far_it_is() {
    let index = PackageIndex::start();
    let variables = vec![("HOB_PYPI_INDEX".to_owned(), index.url().to_owned())];
    let hob = Hob::with(ServeOptions { variables, ..Default::default() });
    let all = lines(&hob, "/api/pull", &json!({ "model": MODEL }));
    assert_eq!(all.last().unwrap(), &json!({ "status": "success" }));
    assert!(all.iter().any(|line| line["total"].is_u64()), "{all:?}");
    assert!(get(&hob.url("/api/tags")).1.contains(MODEL));
    let (_, error) = ask(&hob, "/api/pull", &json!({ "model": "no-such-model:1", "stream": false }));
    assert!(error["error"].is_string(), "{error}");
}

#[test]
fn a_model_is_created_from_files_that_are_sent() {
    let hob = Hob::start();
    let (tiny, page) = (hob_tests::tiny(), b"<html>".to_vec());
    let blob = |method: &str, digest: &str, body: &[u8]| {
        let mut connection = Connection::open(hob.address());
        connection.request(method, &format!("/api/blobs/{digest}"), &[], body);
        let status = connection.head().status;
        (status, if method == "HEAD" { String::new() } else { connection.body() })
    };
    let digest = |bytes: &[u8]| hob::digest::Digest::of(bytes).to_string();
    assert_eq!(blob("HEAD", &digest(&tiny), b"").0, 404);
    let made = json!({ "model": "mine", "files": { "m.gguf": digest(&tiny) }, "system": "Arr.",
        "parameters": { "temperature": 0.5 }, "license": ["MIT", "and more"], "stream": false });
    let (status, error) = ask(&hob, "/api/create", &made);
    assert!(status == 400 && error["error"].as_str().unwrap().contains("POST /api/blobs/sha256:"), "{error}");
    let (status, error) = blob("POST", &digest(&tiny), &tiny[1..]);
    assert!(status == 400 && error.contains("nothing was kept"), "{error}");
    assert_eq!(blob("POST", &digest(&tiny), &tiny).0, 201);
    assert_eq!(blob("HEAD", &digest(&tiny), b"").0, 200);
    assert_eq!(blob("POST", &digest(&tiny), &tiny).0, 200, "it is here");
    assert_eq!(blob("POST", "sha256:7", b"").0, 400);
    assert_eq!(ask(&hob, "/api/create", &made), (200, json!({ "status": "success" })));
    let shown = ask(&hob, "/api/show", &json!({ "model": "mine" })).1;
    assert_eq!((&shown["system"], &shown["license"]), (&json!("Arr."), &json!("MIT\n\nand more")), "{shown}");
    let child = json!({ "model": "child", "from": "mine", "system": "Yes.", "stream": false });
    assert_eq!(ask(&hob, "/api/create", &child).0, 200);
    let shown = ask(&hob, "/api/show", &json!({ "model": "child" })).1;
    assert_eq!((&shown["details"]["parent_model"], &shown["system"]), (&json!("mine"), &json!("Yes.")), "{shown}");

    assert_eq!(blob("POST", &digest(&page), &page).0, 201);
    for (more, why) in [
        (json!({ "files": { "m.gguf": digest(&page) } }), "no model"),
        (json!({ "files": { "../m.gguf": digest(&tiny) } }), "no file of a model"),
        (json!({ "files": { "m.gguf": "7" } }), "no digest"),
        (json!({ "files": {} }), "no model"),
        (json!({ "from": "mine", "files": { "m.gguf": digest(&tiny) } }), "either"),
        (json!({ "from": "mine", "quantize": "q4_0" }), "not supported"),
    ] {
        let mut body = json!({ "model": "bad", "stream": false });
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        let (status, error) = ask(&hob, "/api/create", &body);
        assert!(status == 400 && error["error"].as_str().unwrap().contains(why), "{why}: {error}");
    }
    assert!(hob.ok(&["models", "gc"]).contains("one file less"), "the page");
}

#[test]
fn only_who_manages_changes_models() {
    let hob = Hob::with(ServeOptions {
        model: true,
        args: ["--model-keys", "required"].map(str::to_owned).to_vec(),
        ..Default::default()
    });
    let key = hob.ok(&["keys", "create", "app", "--tenant", "acme", "--scope", "read"]);
    let key = key.split_whitespace().find(|word| word.starts_with("hob_")).unwrap().to_owned();
    let mut connection = Connection::open(hob.address());
    let body = json!({ "model": MODEL }).to_string();
    connection.request("DELETE", "/api/delete", &[("authorization", &format!("Bearer {key}"))], body.as_bytes());
    assert_eq!(connection.head().status, 403);
    assert!(connection.body().contains("scope admin"));
    let mut connection = Connection::open(hob.address());
    let path = format!("/api/blobs/{}", hob::digest::Digest::of(b"x"));
    connection.request("POST", &path, &[("authorization", &format!("Bearer {key}"))], b"x");
    assert_eq!(connection.head().status, 403);
    // Others use the same models: who only uses them decides neither that one goes nor that it stays.
    let load = |keep: Value, prompt: &str| {
        let body = json!({ "model": MODEL, "keep_alive": keep, "prompt": prompt, "options": { "num_predict": 1 } });
        let mut connection = Connection::open(hob.address());
        let bearer = format!("Bearer {key}");
        connection.request("POST", "/api/generate", &[("authorization", &bearer)], body.to_string().as_bytes());
        connection.head().status
    };
    assert_eq!((load(json!(0), ""), load(json!(-1), ""), load(json!(-1), "x")), (403, 200, 200));
    let models: Value = serde_json::from_str(&hob.ok(&["models", "ps", "--json"])).unwrap();
    assert_eq!((&models[0]["name"], &models[0]["pinned"]), (&json!(MODEL), &json!(false)));
}

#[test]
fn pages_use_models_and_only_those_that_were_named_change_them() {
    let args = ["--model-origin", "http://localhost:3000"].map(str::to_owned).to_vec();
    let hob = Hob::with(ServeOptions { model: true, args, ..Default::default() });
    let copy = |headers: &[(&str, &str)]| {
        let mut connection = Connection::open(hob.address());
        let body = json!({ "source": MODEL, "destination": "mine" }).to_string();
        connection.request("POST", "/api/copy", headers, body.as_bytes());
        connection.head().status
    };
    let own = hob.url("");
    assert_eq!(copy(&[("origin", own.trim_end_matches('/'))]), 403, "functions serve pages there");
    assert_eq!(copy(&[("sec-fetch-site", "same-site")]), 403);
    assert_eq!((copy(&[("origin", "http://localhost:3000")]), copy(&[])), (200, 200));
}

#[test]
fn messages_of_anthropics_are_answered() {
    let hob = Hob::with_model();
    let body = |more: Value| {
        let mut body = json!({ "model": MODEL, "max_tokens": 12, "temperature": 0, "messages": [{ "role": "user", "content": "What is the capital of France?" }] });
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let (status, whole) = ask(&hob, "/v1/messages", &body(json!({})));
    assert_eq!((status, &whole["type"]), (200, &json!("message")), "{whole}");
    assert!(["end_turn", "max_tokens"].contains(&whole["stop_reason"].as_str().unwrap()));
    let text = whole["content"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty() && whole["usage"]["output_tokens"].as_u64() > Some(0), "{whole}");
    let mut connection = Connection::open(hob.address());
    connection.post("/v1/messages", &body(json!({ "stream": true })).to_string());
    assert_eq!(connection.head().status, 200);
    let stream = connection.body();
    let names: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(&names[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(&names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let said: String = stream
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok()?["delta"]["text"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(said, text);
    let (_, begun) = ask(
        &hob,
        "/v1/messages",
        &body(json!({ "messages": [
        { "role": "user", "content": "What is the capital of France?" }, { "role": "assistant", "content": "The capital of France is" }], "max_tokens": 2 })),
    );
    assert!(begun["content"][0]["text"].as_str().unwrap().starts_with(" Paris"), "{begun}");
    let (_, counted) = ask(&hob, "/v1/messages/count_tokens", &body(json!({})));
    let usage = &whole["usage"];
    let input = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted["input_tokens"].as_u64(), Some(input));
    let begun: Vec<Value> =
        stream.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert_eq!(begun[0]["message"]["usage"]["input_tokens"].as_u64(), Some(input));
    let (status, error) = ask(&hob, "/v1/messages", &body(json!({ "model": "nope" })));
    assert_eq!((status, &error["type"], &error["error"]["type"]), (404, &json!("error"), &json!("not_found_error")));
}
