//! OpenAI's API, by the bytes that clients see.

use hob_tests::{Connection, Hob, MODEL, ServeOptions, get, post};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// Posts JSON; status, headers and JSON.
fn ask(hob: &Hob, path: &str, body: &Value) -> (u16, Value) {
    let (status, text) = post(&hob.url(path), &body.to_string());
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": MODEL, "temperature": 0, "max_tokens": 12,
        "messages": [{ "role": "user", "content": "What is the capital of France?" }],
    });
    more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
    body
}

/// The events of a stream, the last of which is `[DONE]`.
fn stream(hob: &Hob, path: &str, body: &Value) -> Vec<Value> {
    let mut connection = Connection::open(hob.address());
    connection.post(path, &body.to_string());
    let head = connection.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let text = connection.body();
    let events: Vec<&str> = text.trim_end().split("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{text}");
    events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// The tokens that `text` is, by the model's own tokenizer.
fn token_ids(text: &str) -> Vec<u32> {
    let file = hob_gpu::format::gguf::Gguf::open(&hob_tests::weights()).unwrap();
    let tokenizer = hob_gpu::model::tokenizer::Tokenizer::read(std::sync::Arc::new(file)).unwrap();
    tokenizer.encode(text, false).into_iter().map(|id| id.0).collect()
}

#[test]
fn a_chat_is_answered_whole_and_in_pieces_and_is_billed() {
    let hob = Hob::with_model();
    let (status, whole) = ask(&hob, CHAT, &chat(json!({})));
    assert_eq!((status, &whole["object"]), (200, &json!("chat.completion")), "{whole}");
    let choice = &whole["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty() && choice["message"]["role"] == "assistant", "{whole}");
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64(), "{usage}");

    let events = stream(&hob, CHAT, &chat(json!({ "stream": true, "stream_options": { "include_usage": true } })));
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event["id"] == events[0]["id"]));
    let (last, rest) = events.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &usage["completion_tokens"]));
    assert!(rest.iter().all(|event| event["usage"].is_null()));
    let said: String = rest.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text, "the same, greedily");
    let ended = &rest.last().unwrap()["choices"][0];
    assert_eq!((&ended["delta"], &ended["finish_reason"]), (&json!({}), &choice["finish_reason"]));
    let without = stream(&hob, CHAT, &chat(json!({ "stream": true })));
    assert!(without.iter().all(|event| event.get("usage").is_none() && event["choices"] != json!([])));

    hob.until("all three are billed", || {
        let text = hob.ok(&["usage"]);
        (text.contains("model-api") && text.contains(MODEL)).then_some(())
    });
    let id = whole["id"].as_str().unwrap().trim_start_matches("chatcmpl-").to_owned();
    let ended = hob.ended(|summary| summary.id == id);
    assert!(ended.outcome == "ok" && u64::from(ended.generated_tokens) == usage["completion_tokens"], "{ended:?}");
}

#[test]
fn options_do_what_they_say() {
    let hob = Hob::with_model();
    let (_, cut) = ask(&hob, CHAT, &chat(json!({ "max_tokens": 2 })));
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]),
        (&json!("length"), &json!(2))
    );
    let (_, whole) = ask(&hob, CHAT, &chat(json!({})));
    let word =
        whole["choices"][0]["message"]["content"].as_str().unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let (_, stopped) = ask(&hob, CHAT, &chat(json!({ "stop": [word] })));
    let text = stopped["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.contains(&word) && stopped["choices"][0]["finish_reason"] == "stop", "{stopped}");

    let several = json!({ "n": 3, "temperature": 1.5, "seed": 11 });
    let (_, first) = ask(&hob, CHAT, &chat(several.clone()));
    let texts = |answer: &Value| -> Vec<String> {
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["message"]["content"].to_string()).collect()
    };
    assert!(texts(&first).len() == 3 && texts(&first)[0] != texts(&first)[1], "{first}");
    assert_eq!(texts(&ask(&hob, CHAT, &chat(several.clone())).1), texts(&first), "the same seed");
    let mut pieces = vec![String::new(); 3];
    let mut streamed = chat(several);
    streamed["stream"] = true.into();
    for event in stream(&hob, CHAT, &streamed) {
        let choice = &event["choices"][0];
        pieces[choice["index"].as_u64().unwrap() as usize] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(pieces.iter().map(|text| json!(text).to_string()).collect::<Vec<_>>(), texts(&first));

    let (_, likely) = ask(&hob, CHAT, &chat(json!({ "logprobs": true, "top_logprobs": 2 })));
    let tokens = likely["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let joined: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(joined, likely["choices"][0]["message"]["content"].as_str().unwrap());
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert!(
            top.len() == 2 && top[0]["token"] == token["token"] && token["logprob"].as_f64().unwrap() <= 0.0,
            "{token}"
        );
    }

    // The likeliest first token, forbidden.
    let bias = json!({ "temperature": 0, "max_tokens": 1, "logprobs": true });
    let (_, first) = ask(&hob, CHAT, &chat(bias.clone()));
    let best = first["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let mut forbidden = chat(bias);
    // SmolLM2's first tokens are bytes and marks; nothing below 49152 but the one that says this is touched.
    let ids = token_ids(&best);
    forbidden["logit_bias"] =
        ids.iter().map(|id| (id.to_string(), json!(-100))).collect::<serde_json::Map<_, _>>().into();
    let (_, other) = ask(&hob, CHAT, &forbidden);
    assert_ne!(other["choices"][0]["message"]["content"], json!(best));

    let (_, plain) = ask(
        &hob,
        "/v1/completions",
        &json!({ "model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 1, "logprobs": 1 }),
    );
    assert_eq!(plain["choices"][0]["text"], " Paris");
    let (status, all) = ask(
        &hob,
        "/v1/completions",
        &json!({ "model": MODEL, "prompt": ["The capital of France is", "One, two,"], "temperature": 0, "max_tokens": 3, "echo": true }),
    );
    assert_eq!(status, 200);
    let text = |n: usize| all["choices"][n]["text"].as_str().unwrap();
    assert!(text(0).starts_with("The capital of France is Paris") && text(1).starts_with("One, two,"), "{all}");
    let events = stream(
        &hob,
        "/v1/completions",
        &json!({ "model": MODEL, "prompt": "One, two,", "temperature": 0, "max_tokens": 3, "stream": true }),
    );
    let said: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(format!("One, two,{said}"), text(1), "the same, greedily");
}

#[test]
fn errors_have_all_fields_and_the_right_status() {
    let hob = Hob::with_model();
    let many = json!({ "model": MODEL, "prompt": vec!["x"; 5], "n": 16 }).to_string();
    for (path, body, status, param, why) in [
        (CHAT, "{", 400, Value::Null, "cannot be read"),
        (
            CHAT,
            r#"{"model":"nope","messages":[{"role":"user","content":"x"}]}"#,
            404,
            json!("model"),
            "'nope' not found",
        ),
        (CHAT, r#"{"model":"smollm2:135m","messages":[]}"#, 400, json!("messages"), "empty"),
        (
            CHAT,
            r#"{"model":"smollm2:135m","messages":[{"role":"user","content":"x"}],"top_logprobs":3}"#,
            400,
            json!("top_logprobs"),
            "logprobs",
        ),
        (
            CHAT,
            r#"{"model":"smollm2:135m","messages":[{"role":"user","content":"x"}],"temperature":9}"#,
            400,
            json!("temperature"),
            "9",
        ),
        (
            CHAT,
            r#"{"model":"smollm2:135m","messages":[{"role":"user","content":"x"}],"logit_bias":{"999999":1}}"#,
            400,
            Value::Null,
            "999999",
        ),
        ("/v1/completions", r#"{"model":"smollm2:135m"}"#, 400, json!("prompt"), "empty"),
        ("/v1/completions", &many, 400, json!("prompt"), "at most 64"),
    ] {
        let (got, text) = post(&hob.url(path), body);
        let error = &serde_json::from_str::<Value>(&text).unwrap()["error"];
        assert_eq!((got, &error["param"], error.as_object().unwrap().len()), (status, &param, 4), "{body}: {text}");
        assert!(error["message"].as_str().unwrap().contains(why) && error["type"] == "invalid_request_error", "{text}");
    }
    let long = chat(json!({ "messages": [{ "role": "user", "content": "word ".repeat(9000) }] }));
    let (status, error) = ask(&hob, CHAT, &long);
    assert_eq!((status, &error["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(get(&hob.url(CHAT)).0, 405);
    let unknown = chat(json!({ "some_new_field": { "a": [1] }, "user": "me", "store": true, "metadata": {} }));
    assert_eq!(ask(&hob, CHAT, &unknown).0, 200, "what is not known is ignored");
}

#[test]
fn models_are_listed_and_found_by_name() {
    let hob = Hob::with_model();
    let list: Value = serde_json::from_str(&get(&hob.url("/v1/models")).1).unwrap();
    assert_eq!(
        (&list["object"], &list["data"][0]["id"], &list["data"][0]["object"]),
        (&json!("list"), &json!(MODEL), &json!("model"))
    );
    for (path, status) in [("smollm2:135m", 200), ("smollm2%3A135m", 200), ("nope", 404)] {
        assert_eq!(get(&hob.url(&format!("/v1/models/{path}"))).0, status, "{path}");
    }
    hob_tests::lend_model_as(hob.home.path(), "short");
    let (status, answer) = ask(&hob, CHAT, &chat(json!({ "model": "short:latest", "max_tokens": 1 })));
    assert_eq!((status, &answer["model"]), (200, &json!("short")));
}

#[test]
fn a_client_that_leaves_ends_its_generation() {
    let hob = Hob::with_model();
    let mut connection = Connection::open(hob.address());
    connection.post(
        CHAT,
        &chat(json!({ "stream": true, "max_tokens": 4000, "temperature": 1, "logit_bias": { "2": -100, "0": -100 } }))
            .to_string(),
    );
    assert_eq!(connection.head().status, 200);
    for _ in 0..4 {
        connection.chunk().unwrap();
    }
    drop(connection);
    let ended = hob.ended(|summary| summary.function.as_str() == "model-api");
    assert!(ended.outcome == "client-left" && ended.generated_tokens < 2000, "{ended:?}");
}

#[test]
fn keys_tenants_and_budgets_hold() {
    let hob = Hob::with(ServeOptions {
        model: true,
        args: ["--model-keys", "required"].map(str::to_owned).to_vec(),
        ..Default::default()
    });
    let key = hob.ok(&["keys", "create", "app", "--tenant", "acme", "--scope", "read"]);
    let key = key.split_whitespace().find(|word| word.starts_with("hob_")).unwrap().to_owned();
    let with = |key: &str, body: &Value| {
        let mut connection = Connection::open(hob.address());
        let bearer = format!("Bearer {key}");
        connection.request("POST", CHAT, &[("authorization", bearer.as_str())], body.to_string().as_bytes());
        let head = connection.head();
        (head.status, head.header("retry-after").map(str::to_owned), connection.body())
    };
    let (status, text) = post(&hob.url(CHAT), &chat(json!({})).to_string());
    assert!(status == 401 && text.contains("authentication_error") && text.contains("invalid_api_key"), "{text}");
    assert_eq!(with("hob_wrong", &chat(json!({}))).0, 401);
    assert_eq!(with(&key, &chat(json!({}))).0, 200);
    hob.until("acme is billed", || hob.ok(&["usage"]).contains("acme").then_some(()));
    hob.ok(&["tenants", "quota", "acme", "--day-tokens", "60"]);
    let (status, _, text) = with(&key, &chat(json!({ "max_tokens": 400, "stop": ["never ever"] })));
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert!(status == 429 || answer["choices"][0]["finish_reason"] == "length", "{text}");
    let (status, retry_after, text) = with(&key, &chat(json!({})));
    assert!(status == 429 && retry_after.is_some() && text.contains("rate_limit_error"), "{status} {text}");
}

#[test]
fn paths_are_reserved_where_that_is_wanted() {
    let deployed = |args: &[&str]| {
        let hob = Hob::with(ServeOptions {
            model: true,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Default::default()
        });
        hob.deploy("hello", &["--route", "/"]);
        hob
    };
    let hob = deployed(&[]);
    assert!(get(&hob.url("/v1/models")).1.contains(MODEL), "not even a function on `/` has it");
    assert!(!get(&hob.url("/v1/other")).1.contains("error") && !get(&hob.url("/health")).1.contains("status"));
    for path in
        ["/v1/moderations", "/v1/files/x", "/v1/audio/speech", "/v1//models", "/v1/messages/batches", "/api/push"]
    {
        let (status, text) = post(&hob.url(path), "{}");
        assert!(status == 404 && text.contains("\"error\"") && text.contains("there is no call"), "{path}: {text}");
    }
    let refused = hob.refused(&["deploy", hob_tests::component("hello").to_str().unwrap(), "--name", "model-api"]);
    assert!(refused.contains("choose another name"), "{refused}");
    let hob = deployed(&["--no-model-api"]);
    assert!(!get(&hob.url("/v1/models")).1.contains(MODEL));
    let hob = deployed(&["--model-host", "models.example"]);
    assert!(!get(&hob.url("/v1/models")).1.contains(MODEL));
    let mut connection = Connection::open(hob.address());
    connection.send(b"GET /v1/models HTTP/1.1\r\nhost: models.example:80\r\n\r\n");
    assert_eq!(connection.head().status, 200);
    assert!(connection.body().contains(MODEL));
    let hob = deployed(&["--model-listen", "127.0.0.1:0"]);
    assert!(!get(&hob.url("/v1/models")).1.contains(MODEL));
    hob.logged("a listener of their own");
    let log = hob.log();
    let own = log.lines().find(|line| line.contains("of their own")).unwrap();
    let address = own.split("127.0.0.1:").nth(1).unwrap();
    let address: String = address.chars().take_while(char::is_ascii_digit).collect();
    let url = |path: &str| format!("http://127.0.0.1:{address}{path}");
    assert!(get(&url("/v1/models")).1.contains(MODEL));
    assert_eq!((get(&url("/hello")).0, get(&url("/health")).0), (404, 200));
}

#[test]
fn pages_of_elsewhere_are_refused_and_browsers_are_told() {
    let hob = Hob::with(ServeOptions {
        model: true,
        args: ["--model-origin", "https://ui.example"].map(str::to_owned).to_vec(),
        ..Default::default()
    });
    let from = |method: &str, origin: &str| {
        let mut connection = Connection::open(hob.address());
        let headers = [("origin", origin), ("access-control-request-headers", "authorization, x-stainless-os")];
        connection.request(method, CHAT, &headers, chat(json!({ "max_tokens": 1 })).to_string().as_bytes());
        connection.head()
    };
    for origin in ["https://ui.example", "http://localhost:3000"] {
        let head = from("OPTIONS", origin);
        assert_eq!((head.status, head.header("access-control-allow-origin")), (204, Some(origin)));
        assert_eq!(head.header("access-control-allow-headers"), Some("authorization, x-stainless-os"));
        assert_eq!(from("POST", origin).header("access-control-allow-origin"), Some(origin));
    }
    let refused = from("POST", "https://evil.example");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None));
}

#[test]
fn answers_keep_to_their_form_and_tools_are_called_as_they_are() {
    let hob = Hob::with_model();
    let schema = json!({
        "type": "object", "required": ["city", "population"], "additionalProperties": false,
        "properties": { "city": { "type": "string", "maxLength": 20 }, "population": { "type": "integer", "maximum": 99999999 } },
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "city", "schema": schema, "strict": true } });
    for temperature in [0.0, 1.0] {
        let (_, answer) =
            ask(&hob, CHAT, &chat(json!({ "response_format": format, "temperature": temperature, "max_tokens": 200 })));
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let object: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert!(object["city"].is_string() && object["population"].is_i64(), "{object}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let tool = json!({ "type": "function", "function": { "name": "get_weather", "description": "the weather of a city", "parameters": {
        "type": "object", "properties": { "city": { "type": "string", "maxLength": 16 }, "unit": { "enum": ["C", "F"] } },
        "required": ["city", "unit"], "additionalProperties": false } } });
    let with_tool = |choice: Value| {
        chat(json!({ "tools": [tool], "tool_choice": choice, "max_tokens": 200, "parallel_tool_calls": false }))
    };
    let (_, answer) = ask(&hob, CHAT, &with_tool(json!("required")));
    let choice = &answer["choices"][0];
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&choice["finish_reason"], &call["function"]["name"]),
        (&json!("tool_calls"), &json!("get_weather")),
        "{answer}"
    );
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"].is_string() && ["C", "F"].contains(&arguments["unit"].as_str().unwrap()), "{arguments}");
    let mut streamed = with_tool(json!({ "type": "function", "function": { "name": "get_weather" } }));
    streamed["stream"] = true.into();
    let (mut joined, mut first) = (String::new(), None);
    for event in stream(&hob, CHAT, &streamed) {
        for part in event["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten() {
            assert_eq!(part["index"], 0, "{part}");
            first.get_or_insert_with(|| part.clone());
            joined += part["function"]["arguments"].as_str().unwrap();
        }
    }
    let first = first.unwrap();
    assert!(first["id"].is_string() && first["function"]["name"] == "get_weather", "{first}");
    assert!(serde_json::from_str::<Value>(&joined).unwrap()["city"].is_string(), "{joined}");
    // What a tool has answered goes back to the model; it may say anything now.
    let mut back = with_tool(json!("none"));
    let said = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
    back["messages"]
        .as_array_mut()
        .unwrap()
        .extend([said, json!({ "role": "tool", "tool_call_id": call["id"], "content": "12 C" })]);
    let (status, answer) = ask(&hob, CHAT, &back);
    assert!(status == 200 && answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    let (status, free) = ask(&hob, CHAT, &with_tool(json!("auto")));
    assert!(status == 200 && free["choices"][0]["finish_reason"].is_string(), "{free}");
    for (body, param) in [
        (chat(json!({ "tool_choice": "required" })), "tool_choice"),
        (chat(json!({ "response_format": { "type": "xml" } })), "response_format"),
    ] {
        let (status, error) = ask(&hob, CHAT, &body);
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)));
    }
    let wrong = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "colour" } } });
    assert_eq!(ask(&hob, CHAT, &chat(json!({ "response_format": wrong }))).0, 400);
}

#[test]
fn responses_are_answered_in_items_and_events() {
    let hob = Hob::with_model();
    let body = |more: Value| {
        let mut body = json!({ "model": MODEL, "input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 12 });
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let (status, whole) = ask(&hob, "/v1/responses", &body(json!({})));
    assert_eq!((status, &whole["object"]), (200, &json!("response")), "{whole}");
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty() && whole["usage"]["output_tokens"].as_u64() > Some(0), "{whole}");
    let mut connection = Connection::open(hob.address());
    connection.post("/v1/responses", &body(json!({ "stream": true })).to_string());
    assert_eq!(connection.head().status, 200);
    let stream = connection.body();
    let events: Vec<Value> =
        stream.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        &names[..4],
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    assert_eq!(names.last().unwrap().trim_start_matches("response."), whole["status"].as_str().unwrap());
    assert!(events.iter().enumerate().all(|(n, event)| event["sequence_number"] == n));
    let said: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(said, text);
    let (status, error) = ask(&hob, "/v1/responses", &body(json!({ "previous_response_id": "resp_1" })));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("previous_response_id")));
}

#[test]
fn gateways_find_the_names_that_they_read() {
    let hob = Hob::with_model();
    ask(&hob, CHAT, &chat(json!({})));
    let text = hob.until("it is counted", || {
        let text = hob.client().metrics().ok()?;
        let ended = |how: &str| {
            text.contains(&format!("vllm:request_success_total{{model_name=\"all\",finished_reason=\"{how}\"}} 1"))
        };
        // What models made is known when it is billed.
        let billed = text.contains("\nvllm:generation_tokens_total{");
        (billed && (ended("length") || ended("stop"))).then_some(text)
    });
    for name in [
        "num_requests_waiting",
        "num_requests_running",
        "kv_cache_usage_perc",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "prefix_cache_hits_total",
        "generation_tokens_total",
    ] {
        assert!(text.contains(&format!("\nvllm:{name}{{")), "{name} in {text}");
    }
    assert_eq!(text.matches("# EOF").count(), 1);
}

#[test]
fn a_host_is_ready_when_its_warm_models_have_answered() {
    let mut hob = Hob::with_model();
    for path in ["/health", "/v1/health/live", "/v1/health/ready"] {
        assert_eq!(get(&hob.url(path)).0, 200, "{path}: none is kept warm");
    }
    hob.ok(&["models", "keep", MODEL, "--warm"]);
    hob.kill();
    hob.restart();
    let mut seen = Vec::new();
    let started = std::time::Instant::now();
    while seen.last() != Some(&200) && started.elapsed().as_secs() < 30 {
        seen.push(get(&hob.url("/health")).0);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(seen.len() > 1 && seen[..seen.len() - 1].iter().all(|status| *status == 503), "{seen:?}");
    assert_eq!(get(&hob.url("/v1/health/live")).0, 200);
}

#[test]
fn requests_have_a_limit() {
    let args = ["--model-request-bytes", "300"].map(str::to_owned).to_vec();
    let hob = Hob::with(ServeOptions { model: true, args, ..Default::default() });
    assert_eq!(ask(&hob, CHAT, &chat(json!({ "max_tokens": 1 }))).0, 200);
    let (status, error) = ask(&hob, CHAT, &chat(json!({ "user": "x".repeat(300) })));
    assert_eq!((status, &error["error"]["type"]), (413, &json!("invalid_request_error")));
}
