//! The OpenAI API under streaming clients, beside llama-server; and what it costs to hold answers to a form.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hob_gpu::{Ask, Engine, EngineConfig, Event, Form, Message, Model, ModelSource, Prompt, Role, TokenId, Tokens};
use hob_tests::{Connection, Hob, MODEL, weights};
use serde_json::{Value, json};

use crate::peers::Peer;
use crate::process::Server;
use crate::report::{Measure, Report, quantile};

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 8, 32];
/// Tokens of each answer.
const TOKENS: u32 = 64;
/// Rounds, in each of which hob, its engine alone and the peer are measured in turn; the median of them counts.
const ROUNDS: usize = 5;
/// Generations held to a form, over all schemas.
const GENERATIONS: usize = 1000;

pub fn run(report: &mut Report) -> Result<()> {
    report.note("api: streaming clients");
    clients(report)?;
    report.note("api: answers of a given form");
    forms(report)
}

fn clients(report: &mut Report) -> Result<()> {
    let threads = EngineConfig::default().threads;
    let hob = Hob::with_model();
    report.code_path(hob.client().status()?.code_path);
    let peer = Peer::find("llama-server", "HOB_PEER_LLAMA_SERVER");
    let server = match &peer {
        Some(peer) => Some(Server::start_for(peer, &weights(), threads, "32768", "32")?),
        None => None,
    };
    stream(hob.address(), 0)?;
    let (engine, runtime) = (Engine::start(EngineConfig::default())?, runtime()?);
    let model = runtime.block_on(engine.join(&source()))?;
    alone(&model, 0..1)?;
    // Nobody is asked the same twice: what either server finds in its cache is the head of the template.
    let mut asked = 1;
    for count in CLIENTS {
        let (mut ours, mut theirs) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        let mut of_engine = Vec::new();
        for _ in 0..ROUNDS {
            let questions = asked..asked + count;
            asked = questions.end;
            let (rate, first) = load(hob.address(), questions.clone())?;
            ours.0.push(rate);
            ours.1.push(first);
            // Of what was measured a moment ago: the machine's own pace changes from minute to minute.
            of_engine.push(100.0 * rate / alone(&model, questions.clone())?);
            if let Some(server) = &server {
                let (rate, first) = load(server.address(), questions)?;
                theirs.0.push(rate);
                theirs.1.push(first);
            }
        }
        let their =
            |values: &mut Vec<f64>| (!values.is_empty()).then(|| ("llama-server".to_owned(), quantile(values, 0.5)));
        let rate = quantile(&mut ours.0, 0.5);
        let row = Measure::new(format!("{count} streaming clients, total"), rate, "tokens/s");
        report.add(row.peer(their(&mut theirs.0)));
        let row = format!("{count} streaming clients, total, of the engine's without them");
        report.add(Measure::new(row, quantile(&mut of_engine, 0.5), "%").at_least(95.0));
        let first = Measure::new(format!("{count} streaming clients, first token"), quantile(&mut ours.1, 0.5), "ms");
        report.add(first.peer(their(&mut theirs.1)));
    }
    Ok(())
}

/// Tokens a second of all clients together, one for each question, and the median time until the first token in milliseconds.
fn load(address: SocketAddr, questions: Range<usize>) -> Result<(f64, f64)> {
    let started = Instant::now();
    let clients: Vec<_> = questions.map(|n| std::thread::spawn(move || stream(address, n))).collect();
    let (mut tokens, mut firsts) = (0, Vec::new());
    for client in clients {
        let (count, first) = client.join().expect("a client does not panic")?;
        tokens += count;
        firsts.push(first.as_secs_f64() * 1e3);
    }
    Ok((tokens as f64 / started.elapsed().as_secs_f64(), quantile(&mut firsts, 0.5)))
}

/// Tokens a second that the engine makes of the same questions where nobody speaks HTTP.
fn alone(model: &Model, questions: Range<usize>) -> Result<f64> {
    let started = Instant::now();
    let ask = |n| {
        let message = Message { role: Role::User, content: question(n) };
        let ask = Ask::new(Prompt::Chat(vec![message]));
        let logit_bias = [0, 2].map(|id| (TokenId(id), -100.0)).into();
        model.generate(Ask { max_tokens: Some(TOKENS), logit_bias, ..ask })
    };
    let answers = questions.map(ask).collect::<Result<Vec<_>, _>>()?;
    let read = |mut answer: Tokens| {
        std::thread::spawn(move || -> Result<u64> {
            let runtime = runtime()?;
            while let Event::Text(_) = runtime.block_on(answer.next()) {}
            Ok(answer.usage().generated_tokens.into())
        })
    };
    let readers: Vec<_> = answers.into_iter().map(read).collect();
    let mut tokens = 0;
    for reader in readers {
        tokens += reader.join().expect("a reader does not panic")?;
    }
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}

fn question(n: usize) -> String {
    format!("{n} is a number; tell me a long story about it.")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?)
}

fn source() -> ModelSource {
    ModelSource { name: MODEL.into(), path: weights(), digest: "bench".into() }
}

/// One answer: its tokens, as the server counts them, and the time until the first text.
fn stream(address: SocketAddr, n: usize) -> Result<(u64, Duration)> {
    let body = json!({
        "model": MODEL, "stream": true, "stream_options": { "include_usage": true }, "max_tokens": TOKENS, "temperature": 0,
        "logit_bias": { "2": -100, "0": -100 }, "cache_prompt": true,
        "messages": [{ "role": "user", "content": question(n) }],
    });
    let started = Instant::now();
    let mut connection = Connection::open(address);
    connection.request(
        "POST",
        "/v1/chat/completions",
        &[("content-type", "application/json")],
        body.to_string().as_bytes(),
    );
    let head = connection.head();
    ensure!(head.status == 200, "the server answered {}: {}", head.status, connection.body());
    let (mut first, mut tokens) = (None, 0);
    while let Some(piece) = connection.chunk() {
        for event in piece.lines().filter_map(|line| line.strip_prefix("data: ")) {
            let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
            let said = event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty());
            if said && first.is_none() {
                first = Some(started.elapsed());
            }
            tokens = event["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
        }
    }
    Ok((tokens, first.context("an answer had no text")?))
}

/// Twenty schemas, all of them bounded: every answer comes to its end.
fn schemas() -> Vec<Value> {
    let object = |properties: Value| {
        let required: Vec<String> = properties.as_object().expect("it is an object").keys().cloned().collect();
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    };
    let text = |most: u32| json!({ "type": "string", "maxLength": most });
    let number = |most: u32| json!({ "type": "integer", "minimum": 0, "maximum": most });
    let list = |items: Value, most: u32| json!({ "type": "array", "items": items, "maxItems": most });
    let mut all = vec![
        object(json!({ "name": text(20) })),
        object(json!({ "name": text(12), "age": number(120) })),
        object(json!({ "ok": { "type": "boolean" }, "why": text(30) })),
        object(json!({ "kind": { "enum": ["cat", "dog", "bird"] } })),
        object(json!({ "tags": list(text(8), 4) })),
        object(json!({ "numbers": list(number(1000), 6) })),
        object(json!({ "nested": object(json!({ "a": number(9), "b": text(5) })) })),
        object(json!({ "people": list(object(json!({ "name": text(10), "age": number(99) })), 3) })),
        object(json!({ "nothing": { "type": "null" }, "maybe": { "type": ["string", "null"], "maxLength": 6 } })),
        object(json!({ "always": { "const": "this" }, "then": number(5) })),
        list(object(json!({ "id": number(100) })), 4),
        list(list(number(9), 3), 3),
        json!({ "enum": ["yes", "no", "perhaps"] }),
        text(40),
        json!({ "anyOf": [number(99), { "type": "boolean" }, text(6)] }),
        object(json!({ "date": { "type": "string", "format": "date" } })),
        object(json!({ "id": { "type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$" } })),
        // Bounded, too, since a number may have any count of digits; and by halves of halves, which doubles have exactly.
        object(json!({ "score": { "type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25 } })),
        object(json!({ "x": { "$ref": "#/$defs/p" }, "y": { "$ref": "#/$defs/p" } })),
        object(json!({ "a": number(9), "b": number(99), "c": number(999), "d": text(4), "e": { "type": "boolean" } })),
    ];
    all[18]["$defs"] = json!({ "p": { "type": "integer", "minimum": 0, "maximum": 50 } });
    all
}

fn forms(report: &mut Report) -> Result<()> {
    let engine = Engine::start(EngineConfig::default())?;
    let runtime = runtime()?;
    let model = runtime.block_on(engine.join(&source()))?;
    let schemas = schemas();
    let judge = |schema| jsonschema::options().should_validate_formats(true).build(schema).map_err(Box::new);
    let judges = schemas.iter().map(judge).collect::<Result<Vec<_>, _>>()?;
    let mut good = 0;
    for batch in 0..GENERATIONS / schemas.len() {
        let asks = schemas.iter().map(|schema| Ok(model.generate(ask(schema, batch as u64))?));
        let all: Vec<_> = asks.collect::<Result<_>>()?;
        for ((judge, schema), tokens) in judges.iter().zip(&schemas).zip(all) {
            let (text, _) = runtime.block_on(tokens.text())?;
            match serde_json::from_str(&text) {
                Ok(value) if judge.is_valid(&value) => good += 1,
                _ => report.note(&format!("api: one that is not valid: {text} for {schema}")),
            }
        }
    }
    report.add(
        Measure::new("answers held to 20 schemas that are valid", 100.0 * good as f64 / GENERATIONS as f64, "%")
            .at_least(100.0),
    );
    cost(report, &runtime, &model)
}

fn ask(schema: &Value, seed: u64) -> Ask {
    let content = format!("Answer in JSON that fits this schema: {schema}");
    let mut ask = Ask::new(Prompt::Chat(vec![Message { role: Role::User, content }]));
    ask.sampling.temperature = 1.0;
    ask.sampling.seed = Some(seed);
    ask.max_tokens = Some(600);
    ask.form = Some(Form::Schema(schema.clone()));
    ask
}

/// The same long text with a form and without, in turn; only decoding counts.
fn cost(report: &mut Report, runtime: &tokio::runtime::Runtime, model: &Model) -> Result<()> {
    let schema = json!({ "type": "array", "items": { "type": "object", "properties": {
        "name": { "type": "string", "maxLength": 20 }, "age": { "type": "integer", "maximum": 99 } },
        "required": ["name", "age"], "additionalProperties": false }, "minItems": 400 });
    for sequences in [1, 8] {
        let (mut free, mut held) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (times, form) in [(&mut free, None), (&mut held, Some(Form::Schema(schema.clone())))] {
                let one = |n: u64| {
                    let mut ask = Ask { form: form.clone(), ..ask(&schema, n) };
                    ask.max_tokens = Some(200);
                    // It goes on to its limit either way.
                    ask.logit_bias = model.end_tokens().iter().map(|id| (*id, -100.0)).collect();
                    model.generate(ask)
                };
                let all = (0..sequences).map(one).collect::<Result<Vec<_>, _>>()?;
                let mut each = Vec::new();
                for mut tokens in all {
                    while let Event::Text(_) = runtime.block_on(tokens.next()) {}
                    let generated = tokens.usage().generated_tokens;
                    ensure!(generated == 200, "an answer ended after {generated} tokens");
                    each.push(tokens.timing().decode.as_secs_f64() / f64::from(generated - 1) * 1e3);
                }
                times.push(quantile(&mut each, 0.5));
            }
        }
        let (free, held) = (quantile(&mut free, 0.5), quantile(&mut held, 0.5));
        let row = format!("a token held to a form, {sequences} at once, beyond a free one");
        report.add(Measure::new(row, 100.0 * (held / free - 1.0), "%").at_most(10.0));
    }
    Ok(())
}
