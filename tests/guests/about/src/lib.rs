//! Says how it was asked: method, scheme, authority, path. With `?after` it goes on after its answer, with
//! `?outparam-error` it answers with an error, with `?trap-after` it traps when its answer is whole.

#![allow(clippy::print_stdout)]

use wasip2::clocks::monotonic_clock;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct About;

wasip2::http::proxy::export!(About);

impl Guest for About {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        if path.ends_with("?outparam-error") {
            return ResponseOutparam::set(out, Err(ErrorCode::InternalError(Some("no answer today".into()))));
        }
        answer(out, &format!("{:?} {:?} {:?} {path}", request.method(), request.scheme(), request.authority()));
        if path.ends_with("?after") {
            monotonic_clock::subscribe_duration(100_000_000).block();
            println!("still here after the answer");
        }
        if path.ends_with("?trap-after") {
            panic!("after the answer");
        }
    }
}

fn answer(out: ResponseOutparam, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("the first time");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the first time");
    stream.blocking_write_and_flush(text.as_bytes()).expect("somebody reads");
    drop(stream);
    OutgoingBody::finish(body, None).expect("it is whole");
}
