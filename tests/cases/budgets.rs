//! No more is generated than a function, and its tenant, may use; and what ends for that says so.

use hob::config::{Budget, FunctionConfig};
use hob_tests::{Hob, MODEL, get};
use serde_json::Value;

/// A server with a function `infer` that is held to `budget`.
fn held_to(budget: Budget) -> Hob {
    let hob = Hob::with_model();
    deploy(&hob, "guest-infer", "infer", budget);
    hob
}

fn deploy(hob: &Hob, guest: &str, name: &str, budget: Budget) {
    let models = vec![MODEL.parse().expect("it is a name")];
    hob.deploy_as(guest, name, FunctionConfig { models, budget, ..FunctionConfig::default() });
}

fn ask(hob: &Hob, path: &str) -> (u16, Value) {
    let (status, body) = get(&hob.url(path));
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
}

/// Tokens of the prompt, and generated.
fn used(answer: &Value) -> (u64, u64) {
    let of = |key: &str| answer["usage"][key].as_u64().unwrap_or_else(|| panic!("{answer}"));
    (of("prompt_tokens"), of("generated_tokens"))
}

#[test]
fn a_request_ends_where_its_tokens_do() {
    let hob = held_to(Budget { request_tokens: 20, ..Budget::default() });
    let (status, answer) = ask(&hob, "/infer?do=raw&max_tokens=100");
    let (prompt, generated) = used(&answer);
    assert_eq!((status, &answer["finish"], prompt + generated), (200, &"budget".into(), 20), "{answer}");
    assert!(answer["text"].as_str().is_some_and(|text| text.contains("Paris")), "what came is whole: {answer}");
    let (_, answer) = ask(&hob, "/infer?do=raw&max_tokens=3");
    assert_eq!((used(&answer).1, &answer["finish"]), (3, &"length".into()), "the next request has its own");
    // All generations of a request together: of the second only what the first left.
    let (_, both) = ask(&hob, "/infer?do=many&n=2&max_tokens=6&text=Hi");
    let tokens: Vec<_> = both.as_array().expect("two came").iter().map(used).collect();
    assert_eq!((tokens.len(), tokens.iter().map(|(p, g)| p + g).sum::<u64>() <= 20), (2, true), "{both}");
    let (status, error) = ask(&hob, &format!("/infer?do=raw&text={}", "word%20".repeat(30)));
    assert_eq!((status, &error["error"]["code"]), (413, &"too-long".into()), "{error}");
    assert!(hob.ok(&["logs", "infer"]).contains("a request may take 20 tokens"));

    deploy(&hob, "guest-nn", "nn", Budget { request_tokens: 12, ..Budget::default() });
    let answer = ask(&hob, "/nn?do=ok").1;
    let metadata: Value =
        serde_json::from_str(answer["outputs"]["1"].as_str().expect("it is text")).expect("it is JSON");
    assert_eq!(metadata["finish_reason"], "budget", "{metadata}");
}

#[test]
fn a_day_is_kept_to_the_token_also_by_those_who_ask_at_once_and_over_restarts() {
    let mut hob = held_to(Budget { day_tokens: 200, ..Budget::default() });
    let (_, all) = ask(&hob, "/infer?do=many&n=8&max_tokens=40");
    let all = all.as_array().expect("all came").clone();
    let answers: Vec<_> = all.iter().filter(|end| end.is_object()).collect();
    let tokens: u64 = answers.iter().map(|answer| used(answer).0 + used(answer).1).sum();
    assert_eq!(tokens, 200, "{all:?}");
    assert!(answers.iter().any(|answer| answer["finish"] == "budget"), "{all:?}");
    for restart in ["no", "asked to stop", "killed"] {
        match restart {
            "asked to stop" => {
                assert!(hob.terminate());
                hob.restart();
            }
            "killed" => {
                hob.until("what was used is billed", || {
                    let rows = hob.client().usage(&[]).expect("it runs").rows;
                    rows.iter().any(|row| row.totals.generated_tokens > 0).then_some(())
                });
                hob.kill();
                hob.restart();
            }
            _ => {}
        }
        let mut connection = hob_tests::Connection::open(hob.address());
        connection.get("/infer?do=raw&max_tokens=1");
        let head = connection.head();
        let retry: u64 = head.header("retry-after").expect("it says when").parse().expect("in seconds");
        assert!(head.status == 503 && (1..=86_400).contains(&retry), "{restart}: {} {retry}", head.status);
    }
    assert!(hob.ok(&["logs", "infer"]).contains("the function has taken the 200 tokens that it may a day"));
    // Another function of the tenant has its own.
    deploy(&hob, "guest-infer", "other", Budget { day_tokens: 50, ..Budget::default() });
    assert_eq!(ask(&hob, "/other?do=raw&max_tokens=1").0, 200);
}

#[test]
fn generations_and_kv_at_once_are_bounded() {
    let hob = held_to(Budget { sequences: 2, ..Budget::default() });
    let ends = |hob: &Hob, query: &str| {
        let (status, ends) = ask(hob, &format!("/infer?{query}"));
        assert_eq!(status, 200, "{ends}");
        let ends = ends.as_array().expect("it is a list").clone();
        let kind = |end: &Value| end.as_str().unwrap_or_else(|| end["finish"].as_str().expect("it ended")).to_owned();
        ends.iter().map(kind).collect::<Vec<_>>()
    };
    assert_eq!(ends(&hob, "do=many&n=4&max_tokens=5"), ["length", "length", "busy", "busy"]);
    assert_eq!(ends(&hob, "do=many&n=2&max_tokens=5"), ["length", "length"], "those that ended make room");
    // A page is a MiB, and has 45 tokens of this model: one for each of these.
    deploy(&hob, "guest-infer", "infer", Budget { kv_bytes: 2 << 20, ..Budget::default() });
    assert_eq!(ends(&hob, "do=many&n=4&max_tokens=5"), ["length", "length", "busy", "busy"]);
    let (status, error) = ask(&hob, "/infer?do=raw&max_tokens=500");
    assert_eq!((status, &error["error"]["code"]), (413, &"too-long".into()), "it never fits: {error}");
    // Six pages at first, and an eighth would be too much.
    deploy(&hob, "guest-infer", "infer", Budget { kv_bytes: 7 << 20, ..Budget::default() });
    let (_, answer) = ask(&hob, "/infer?do=raw&max_tokens=2000&text=1,%202,%203,%204,%205,%206,%207,%208,%209,");
    let tokens = used(&answer).0 + used(&answer).1;
    assert!(answer["finish"] == "budget" && (300..=330).contains(&tokens), "{answer}");
}

#[test]
fn a_tenant_has_a_quota_over_all_its_functions() {
    let mut hob = Hob::with_model();
    for name in ["one", "two"] {
        deploy(&hob, "guest-infer", name, Budget::default());
    }
    hob.ok(&["tenants", "quota", "default", "--day-tokens", "60"]);
    let tokens = |answer: &Value| used(answer).0 + used(answer).1;
    let (_, first) = ask(&hob, "/one?do=raw&max_tokens=30");
    let (_, second) = ask(&hob, "/two?do=raw&max_tokens=100");
    assert_eq!((tokens(&first) + tokens(&second), &second["finish"]), (60, &"budget".into()), "{first} {second}");
    assert_eq!(ask(&hob, "/one?do=raw").0, 503);
    let list = hob.ok(&["tenants", "list"]);
    assert!(list.lines().any(|line| line.starts_with("default") && line.contains("60 of 60")), "{list}");
    // It is raised while the server runs, and is there after a restart, with what was taken.
    hob.ok(&["tenants", "quota", "default", "--day-tokens", "90"]);
    assert_eq!(tokens(&ask(&hob, "/one?do=raw&max_tokens=5").1), 10);
    assert!(hob.terminate());
    hob.restart();
    let tenants = hob.client().tenants().expect("the server runs");
    let default = tenants.iter().find(|tenant| tenant.name.as_str() == "default").expect("it is there");
    assert_eq!((default.quota.day_tokens, default.used.day_tokens), (90, 70));
    assert_eq!((default.used.sequences, default.used.kv_bytes), (0, 0));
    hob.ok(&["tenants", "quota", "default"]);
    assert_eq!(ask(&hob, "/two?do=raw&max_tokens=100").0, 200, "without a quota");
    assert!(hob.refused(&["tenants", "quota", "default", "--day-tokens", "0"]).contains("it can be 1 to"));

    // Only an administrator sets one; a tenant sees its own.
    let key = hob.ok(&["keys", "create", "k", "--scope", "deploy", "--tenant", "acme"]);
    let file = std::fs::read(hob.home.path().join("control.json")).expect("the server wrote it");
    let file: hob::api::ControlFile = serde_json::from_slice(&file).expect("it is JSON");
    let acme = hob::client::Client::at(&format!("http://{}", file.address), key.trim().to_owned());
    let names = |tenants: Vec<hob::function_host::TenantStatus>| -> Vec<String> {
        tenants.into_iter().map(|tenant| tenant.name.to_string()).collect()
    };
    assert_eq!(names(acme.tenants().expect("it may")), ["acme"]);
    assert_eq!(names(hob.client().tenants().expect("it may")), ["acme", "default"]);
    let refused = acme.set_quota(&"acme".parse().unwrap(), &Budget::default()).expect_err("it may not");
    assert!(refused.to_string().contains("scope admin"), "{refused}");
}

#[test]
fn a_minute_and_a_day_are_known_after_a_kill_but_for_a_second() {
    let most = 1_000_000;
    let mut hob = held_to(Budget { minute_tokens: most, day_tokens: most, ..Budget::default() });
    assert_eq!(ask(&hob, "/infer?do=raw&max_tokens=1").0, 200, "the model is there");
    let used = |hob: &Hob| {
        let tenants = hob.client().tenants().expect("the server runs");
        tenants.iter().find(|tenant| tenant.name.as_str() == "default").expect("it is there").used
    };
    let second = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // All within one minute.
    while second() % 60 > 50 {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let (mut before, minute) = (0, second() / 60);
    for round in 0..3 {
        // One that ended, and one that runs as the host is killed: of that, what it had a second before.
        assert_eq!(ask(&hob, "/infer?do=raw&max_tokens=40").0, 200);
        let ended = used(&hob).day_tokens;
        let mut stream = hob_tests::Connection::open(hob.address());
        stream.get("/infer?do=stream&max_tokens=8000&text=1,%202,%203,%204,%205,%206,%207,%208,%209,");
        assert_eq!(stream.head().status, 200);
        std::thread::sleep(std::time::Duration::from_millis(300));
        let early = used(&hob).day_tokens;
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let late = used(&hob).day_tokens;
        hob.kill();
        hob.restart();
        let after = used(&hob);
        assert!(early > ended && ended > before, "{before}, {ended}, {early}");
        // All of it was in this minute, too, if that still runs.
        if second() / 60 == minute {
            assert!((early..=late + 300).contains(&after.minute_tokens), "round {round}: {early} to {late}: {after:?}");
        }
        assert!((early..=late + 300).contains(&after.day_tokens), "round {round}: {early} to {late}: {after:?}");
        before = after.day_tokens;
    }
}

#[test]
fn a_minute_is_bounded() {
    let hob = held_to(Budget { minute_tokens: 30, ..Budget::default() });
    let second = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() % 60;
    assert_eq!(ask(&hob, "/infer?do=raw&max_tokens=1").0, 200, "the model is there");
    // Both within one minute, or the second finds the next one: then it is tried again.
    let (answer, refused) = loop {
        let began = second();
        let answer = ask(&hob, "/infer?do=raw&max_tokens=100").1;
        let refused = ask(&hob, "/infer?do=raw&max_tokens=1");
        if second() >= began && answer.get("usage").is_some() {
            break (answer, refused);
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    };
    assert_eq!(answer["finish"], "budget");
    assert_eq!((refused.0, &refused.1["error"]["code"]), (503, &"busy".into()), "{refused:?}");
}
