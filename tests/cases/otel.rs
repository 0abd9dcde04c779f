//! `wasi:otel`: spans of a guest's own, within its invocation's.

use hob_tests::{Collector, Connection, Hob, ServeOptions, get};
use serde_json::{Value, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn ask(hob: &Hob, query: &str, sampled: &str) -> Value {
    let mut connection = Connection::open(hob.address());
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-{sampled}");
    connection.request("GET", &format!("/guest-otel?{query}"), &[("traceparent", &parent)], b"");
    assert_eq!(connection.head().status, 200);
    serde_json::from_str(&connection.body()).unwrap()
}

#[test]
pub fn otel() {
    let collector = Collector::start();
    let args = vec!["--otlp-endpoint".into(), collector.endpoint.clone()];
    let mut hob = Hob::with(ServeOptions { args, ..ServeOptions::default() });
    hob.deploy("guest-otel", &[]);
    let told = ask(&hob, "", "01");
    let outer = told["outer"][1].as_str().unwrap().to_owned();
    assert_eq!((&told["outer"][0], &told["outer"][2]), (&json!(TRACE), &json!(1)));
    assert_ne!(outer, "00f067aa0ba902b7", "it runs in the invocation's span, not in the caller's");
    assert_eq!(told["current"][1], "00000000000000aa");
    assert_eq!(told["innermost"][1], "00000000000000bb");
    assert_eq!(told["after"], told["outer"], "what has ended is not current");
    let find = |name: &'static str| {
        hob.until(&format!("the collector has {name}"), || {
            collector.spans().into_iter().find(|span| span["name"] == name)
        })
    };
    let (work, query) = (find("work"), find("query"));
    assert_eq!([&work["traceId"], &work["parentSpanId"], &work["spanId"]], [TRACE, &outer, "00000000000000aa"]);
    assert_eq!([&query["parentSpanId"], &query["status"]["message"]], ["00000000000000aa", "no such table"]);
    assert_eq!(
        (&work["kind"], &work["status"], &query["status"]["code"]),
        (&json!(3), &json!({ "code": 1 }), &json!(2))
    );
    assert_eq!(work["startTimeUnixNano"], "1700000000000000005");
    let attributes = json!([
        { "key": "db.rows", "value": { "intValue": "7" } },
        { "key": "db.name", "value": { "stringValue": "shop" } },
        { "key": "odd", "value": { "stringValue": "not JSON" } },
        { "key": "faas.name", "value": { "stringValue": "guest-otel" } },
    ]);
    assert_eq!((&work["attributes"], &work["droppedAttributesCount"]), (&attributes, &json!(3)));
    assert_eq!(work["events"][0]["name"], "retry");
    hob.logged("a log record");
    // So many, and no more; of a trace that nobody samples, none.
    ask(&hob, "more=1000", "01");
    ask(&hob, "more=1000", "00");
    assert!(hob.terminate());
    let spans = collector.spans();
    let named = |name: &str| spans.iter().filter(|span| span["name"] == name).count();
    assert_eq!((named("work"), named("more")), (2, 254), "256 for an invocation");
    assert_eq!((named("forged"), named("nameless")), (0, 0));
}

#[test]
fn without_a_collector_nothing_is_kept() {
    let hob = Hob::start();
    hob.deploy("guest-otel", &[]);
    let (status, body) = get(&hob.url("/guest-otel"));
    assert_eq!(status, 200, "{body}");
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(told["outer"], json!(["0".repeat(32), "0".repeat(16), 0]));
}
