//! WASI 0.3 middleware: hands requests on to the next handler.
//!
//! It tells the next one how deep it is in the chain (`x-depth`), and the client which depths its answer has passed
//! (`x-passed`). At the depth that a header of the request names it refuses (`x-refuse-at`), traps (`x-trap-at`),
//! spins (`x-spin-at`) or makes the answer's letters large as they pass (`x-shout-at`).

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wasip3::wit_bindgen::generate!({
        inline: "package hob:middleware; world middleware { import wasi:http/handler@0.3.2; }",
        path: "../../../wit/wasi-http",
        world: "hob:middleware/middleware",
        with: {
            "wasi:clocks/types@0.3.2": wasip3::clocks::types,
            "wasi:http/types@0.3.2": wasip3::http::types,
        },
        runtime_path: "wasip3::wit_bindgen::rt",
        generate_all,
    });
}

use std::cell::Cell;

use bindings::wasi::http::handler;
use wasip3::http::types::{ErrorCode, Fields, Request, RequestOptions, Response};
use wasip3::wit_bindgen::rt::async_support::{StreamReader, StreamResult};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Middleware;

wasip3::http::service::export!(Middleware);

thread_local! {
    /// Requests that came through this instance: each part of a chain has memory of its own.
    static SEEN: Cell<u32> = const { Cell::new(0) };
}

impl wasip3::exports::http::handler::Guest for Middleware {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        SEEN.set(SEEN.get() + 1);
        let headers = request.get_headers();
        let depth = number(&headers, "x-depth").unwrap_or(0) + 1;
        let is_told_to = |what: &str| number(&headers, what) == Some(depth);
        if is_told_to("x-refuse-at") {
            return Ok(refused(depth));
        }
        if is_told_to("x-trap-at") {
            panic!("middleware traps at depth {depth}");
        }
        while is_told_to("x-spin-at") {
            std::hint::black_box(0);
        }
        let shouts = is_told_to("x-shout-at");
        let response = handler::handle(deeper(request, depth)).await?;
        Ok(passed(response, depth, shouts))
    }
}

fn number(headers: &Fields, name: &str) -> Option<u32> {
    String::from_utf8(headers.get(name).into_iter().next()?).ok()?.parse().ok()
}

fn refused(depth: u32) -> Response {
    let headers = Fields::new();
    headers.append("x-refused", depth.to_string().as_bytes()).expect("it is a header");
    let response = Response::new(headers, None, wit_future::new(|| Ok(None)).1).0;
    response.set_status_code(403).expect("it is a status");
    response
}

/// The same request for the next handler, with its depth.
fn deeper(request: Request, depth: u32) -> Request {
    let headers = request.get_headers().clone();
    headers.set("x-depth", &[depth.to_string().into_bytes()]).expect("it is a header");
    let (method, path) = (request.get_method(), request.get_path_with_query());
    let (scheme, authority) = (request.get_scheme(), request.get_authority());
    let (_, received) = wit_future::new(|| Ok(()));
    let (body, trailers) = Request::consume_body(request, received);
    let (next, _) = Request::new(headers, Some(body), trailers, None::<RequestOptions>);
    next.set_method(&method).expect("it was one");
    next.set_path_with_query(path.as_deref()).expect("it was one");
    next.set_scheme(scheme.as_ref()).expect("it was one");
    next.set_authority(authority.as_deref()).expect("it was one");
    next
}

/// The same answer, with a header more.
fn passed(response: Response, depth: u32, shouts: bool) -> Response {
    let (status, headers) = (response.get_status_code(), response.get_headers().clone());
    let mark = format!("{depth} (request {})", SEEN.get());
    headers.append("x-passed", mark.as_bytes()).expect("it is a header");
    let (_, received) = wit_future::new(|| Ok(()));
    let (body, trailers) = Response::consume_body(response, received);
    let body = if shouts { shouted(body) } else { body };
    let (next, _) = Response::new(headers, Some(body), trailers);
    next.set_status_code(status).expect("it was one");
    next
}

/// The same bytes, as they come, in capitals.
fn shouted(mut from: StreamReader<u8>) -> StreamReader<u8> {
    let (mut write, body) = wit_stream::new();
    wit_bindgen::spawn_local(async move {
        loop {
            let (result, mut bytes) = from.read(Vec::with_capacity(4096)).await;
            bytes.make_ascii_uppercase();
            if !write.write_all(bytes).await.is_empty() || matches!(result, StreamResult::Dropped) {
                break;
            }
        }
    });
    body
}
