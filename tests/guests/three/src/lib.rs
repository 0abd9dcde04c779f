//! A WASI 0.3 service: does what the last part of its path names.

#![allow(clippy::print_stdout)]

use std::cell::Cell;

use wasip3::clocks::monotonic_clock;
use wasip3::filesystem::preopens;
use wasip3::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::wit_bindgen::rt::async_support::StreamReader;
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Three;

wasip3::http::service::export!(Three);

thread_local! {
    /// Requests that this instance has begun, and those that run in it.
    static SERVED: Cell<u32> = const { Cell::new(0) };
    static RUNNING: Cell<u32> = const { Cell::new(0) };
}

impl wasip3::exports::http::handler::Guest for Three {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        SERVED.set(SERVED.get() + 1);
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path.rsplit('/').next().unwrap_or_default() {
            "echo" => Ok(echo(request)),
            "file" => file().await,
            "about" => {
                let (scheme, authority) = (request.get_scheme(), request.get_authority());
                Ok(text(format!("{:?} {scheme:?} {authority:?} {target}", request.get_method())))
            }
            "depth" => {
                let depth = request.get_headers().get("x-depth").into_iter().next().unwrap_or_default();
                Ok(text(String::from_utf8_lossy(&depth).into_owned()))
            }
            "count" => Ok(text(SERVED.get().to_string())),
            "wait" => {
                RUNNING.set(RUNNING.get() + 1);
                monotonic_clock::wait_for(query.parse::<u64>().unwrap_or(0) * 1_000_000).await;
                let together = RUNNING.get();
                RUNNING.set(together - 1);
                Ok(text(together.to_string()))
            }
            "drip" => Ok(drip()),
            "trap-in-body" => Ok(trap_in_body()),
            "error" => Err(ErrorCode::InternalError(Some("no answer today".into()))),
            "after" => {
                wit_bindgen::spawn_local(async {
                    monotonic_clock::wait_for(100_000_000).await;
                    println!("still here after the answer");
                });
                Ok(text("an answer".into()))
            }
            "trap" => panic!("this guest always traps"),
            "never" => loop {
                monotonic_clock::wait_for(u64::MAX).await;
            },
            "spin" => loop {
                std::hint::black_box(0);
            },
            "fork" => fork().await,
            "streams" => streams(),
            _ => Ok(text("hello from WASI 0.3\n".into())),
        }
    }
}

fn text(text: String) -> Response {
    let (mut write, body) = wit_stream::new();
    wit_bindgen::spawn_local(async move {
        write.write_all(text.into_bytes()).await;
    });
    respond(body)
}

fn respond(body: StreamReader<u8>) -> Response {
    Response::new(Fields::new(), Some(body), wit_future::new(|| Ok(None)).1).0
}

/// The request's own body and trailers, passed on.
fn echo(request: Request) -> Response {
    let (_, received) = wit_future::new(|| Ok(()));
    let (body, trailers) = Request::consume_body(request, received);
    Response::new(Fields::new(), Some(body), trailers).0
}

/// A stream that the host makes, passed on; this task ends long before the stream does.
async fn file() -> Result<Response, ErrorCode> {
    let internal = |what: &str| ErrorCode::InternalError(Some(what.to_owned()));
    let (directory, _) = preopens::get_directories().into_iter().next().ok_or_else(|| internal("no directory"))?;
    let (flags, read) = (PathFlags::empty(), DescriptorFlags::READ);
    let file = directory.open_at(flags, "large.bin".into(), OpenFlags::empty(), read).await;
    let (body, _) = file.map_err(|_| internal("no such file"))?.read_via_stream(0);
    Ok(respond(body))
}

/// A piece now and then, for ever.
fn drip() -> Response {
    let (mut write, body) = wit_stream::new();
    wit_bindgen::spawn_local(async move {
        while write.write_all(b".".to_vec()).await.is_empty() {
            monotonic_clock::wait_for(20_000_000).await;
        }
    });
    respond(body)
}

fn trap_in_body() -> Response {
    let (mut write, body) = wit_stream::new();
    wit_bindgen::spawn_local(async move {
        write.write_all(b"the beginning".to_vec()).await;
        panic!("in the middle of the answer");
    });
    respond(body)
}

/// More and more tasks of the host, none of which ends.
async fn fork() -> ! {
    loop {
        for _ in 0..100 {
            wit_bindgen::spawn_local(monotonic_clock::wait_for(u64::MAX));
        }
        monotonic_clock::wait_for(0).await;
    }
}

fn streams() -> ! {
    let mut held = Vec::new();
    loop {
        held.push(wit_stream::new::<u8>());
    }
}
