//! What a tenant can learn of another's prompts: nothing, unless the model says that all share.

use hob::config::{FunctionConfig, RouteConfig};
use hob::function_host::DeployRequest;
use hob::usage::NumberedRecord;
use hob_tests::{Hob, MODEL, component, get};

/// A text that fills some pages.
fn prompt(n: u32) -> String {
    format!("Report%20{n}:{}", "%20and%20so%20on".repeat(150))
}

/// A server with a function for each of these tenants, named as they are.
fn server(tenants: &[&str]) -> Hob {
    let hob = Hob::with_model();
    let file = std::fs::read(hob.home.path().join("control.json")).expect("the server wrote it");
    let file: hob::api::ControlFile = serde_json::from_slice(&file).expect("it is JSON");
    let bytes = std::fs::read(component("guest-infer")).expect("it was built");
    for tenant in tenants {
        for name in [(*tenant).to_owned(), format!("{tenant}-too")] {
            let key = hob.ok(&["keys", "create", &name, "--scope", "deploy", "--tenant", tenant]);
            let client = hob::client::Client::at(&format!("http://{}", file.address), key.trim().to_owned());
            let component = client.upload(&bytes).expect("it may");
            let routes = vec![RouteConfig::path(format!("/{name}").parse().unwrap())];
            let models = vec![MODEL.parse().unwrap()];
            let config = FunctionConfig { routes, models, ..FunctionConfig::default() };
            client.deploy(&name.parse().unwrap(), &DeployRequest::new(component, config)).expect("it may");
        }
    }
    hob
}

/// Asks, and gives what the meter says of it: tokens of its prompt, those of them that were found, and how long the prompt took, in ms.
fn ask(hob: &Hob, function: &str, prompt: &str) -> (u64, u64, f64) {
    let (status, body) = get(&hob.url(&format!("/{function}?do=raw&max_tokens=2&text={prompt}")));
    assert_eq!(status, 200, "{body}");
    let record = hob.until("it is billed", || {
        let text = hob.client().usage_records(&[]).expect("the server runs");
        let mut records =
            text.lines().map(|line| serde_json::from_str::<NumberedRecord>(line).expect("it is a record"));
        let known = SEEN.with(|seen| seen.get());
        let newest = records.next_back().filter(|record| record.record > known)?;
        SEEN.with(|seen| seen.set(newest.record));
        Some(newest)
    });
    assert_eq!(record.of.function.as_str(), function);
    let of = &record.of.models[0];
    (of.prompt_tokens, of.cached_tokens, of.prefill_us as f64 / 1e3)
}

thread_local! {
    /// The number of the last record that was looked at.
    static SEEN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn engine_counter(hob: &Hob, name: &str) -> u64 {
    let metrics = hob.client().metrics().expect("the server runs");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("it is there").parse().expect("it is a number")
}

#[test]
fn neither_tokens_nor_time_tell_of_another_tenants_prompt() {
    let hob = server(&["acme", "globex"]);
    ask(&hob, "acme", "Hi");
    let (mut strangers, mut fresh, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..8 {
        let (tokens, cached, first) = ask(&hob, "acme", &prompt(n));
        assert_eq!(cached, 0);
        // The same tenant finds it, from another function, too.
        let (_, cached, again) = ask(&hob, "acme-too", &prompt(n));
        assert!(cached * 10 >= tokens * 8 && cached < tokens, "{cached} of {tokens}");
        // Another one has all of it computed, and as many steps for it.
        let prefilled = engine_counter(&hob, "hob_engine_tokens_prefilled_total");
        let (_, cached, stranger) = ask(&hob, "globex", &prompt(n));
        assert_eq!(cached, 0);
        assert_eq!(engine_counter(&hob, "hob_engine_tokens_prefilled_total") - prefilled, tokens);
        fresh.push(first);
        own.push(again);
        strangers.push(stranger);
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (fresh, own, strangers) = (median(&mut fresh), median(&mut own), median(&mut strangers));
    assert!(own < fresh / 2.0, "what was found is not computed: {own} of {fresh} ms");
    assert!(strangers > fresh / 2.0, "a stranger takes as long as the first: {strangers} of {fresh} ms");
}

#[test]
fn a_model_whose_policy_says_so_is_shared_by_all() {
    let hob = server(&["acme", "globex"]);
    let said = hob.ok(&["models", "keep", MODEL, "--share", "all"]);
    assert!(said.contains("prefixes shared by all tenants"), "{said}");
    let (tokens, cached, _) = ask(&hob, "acme", &prompt(1));
    assert_eq!(cached, 0);
    let (_, cached, _) = ask(&hob, "globex", &prompt(1));
    assert!(cached * 10 >= tokens * 8, "{cached} of {tokens}");
    // It holds for who joins from now on; nobody finds then what was shared, or not.
    hob.ok(&["models", "keep", MODEL, "--share", "tenant"]);
    for function in ["acme", "globex"] {
        assert_eq!(ask(&hob, function, &prompt(1)).1, 0, "{function}");
    }
    assert!(hob.refused(&["models", "keep", MODEL, "--share", "some"]).contains("tenant, all"));
}
