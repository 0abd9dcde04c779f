//! Sends `?n=` requests to `?url=`, all at once, and gives what came of each: `{"status": ..., "body": ...}`, or
//! `{"error": ...}`.

use std::collections::BTreeMap;

use hob_sdk::json::{Value, json};
use hob_sdk::{Json, Query, handler};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{ErrorCode, Fields, FutureIncomingResponse, Method, OutgoingRequest, Scheme};

#[handler]
async fn fetch(Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let url = query.get("url").cloned().unwrap_or_default();
    let n = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(1);
    let sent: Vec<_> = (0..n).map(|_| send(&url)).collect();
    let answers = sent.into_iter().map(|sent| match sent.and_then(|sent| answer(&sent)) {
        Ok(answer) => answer,
        Err(error) => json!({ "error": format!("{error:?}") }),
    });
    Json(answers.collect())
}

fn send(url: &str) -> Result<FutureIncomingResponse, ErrorCode> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let request = OutgoingRequest::new(Fields::new());
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    };
    let bad = |()| ErrorCode::HttpRequestUriInvalid;
    request.set_method(&Method::Get).map_err(bad)?;
    request.set_scheme(Some(&scheme)).map_err(bad)?;
    request.set_authority(Some(authority)).map_err(bad)?;
    request.set_path_with_query(Some(path)).map_err(bad)?;
    outgoing_handler::handle(request, None)
}

fn answer(sent: &FutureIncomingResponse) -> Result<Value, ErrorCode> {
    sent.subscribe().block();
    let response = sent.get().expect("it is ready").expect("the first time")?;
    let status = response.status();
    let body = response.consume().expect("the first time");
    let stream = body.stream().expect("the first time");
    let mut bytes = Vec::new();
    while let Ok(piece) = stream.blocking_read(1 << 16) {
        bytes.extend(piece);
    }
    Ok(json!({ "status": status, "body": String::from_utf8_lossy(&bytes) }))
}
