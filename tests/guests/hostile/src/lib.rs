//! Misbehaves in the way that the last part of its path names; says what the host let it do, where it gets that far.

#![allow(clippy::print_stdout, clippy::empty_loop)]

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};

use wasip2::clocks::monotonic_clock;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::poll;
use wasip2::io::streams::OutputStream;
use wasip2::random::random;
use wasip2::sockets;

struct Hostile;

/// Requests that this instance has counted.
static SERVED: AtomicU32 = AtomicU32::new(0);

wasip2::http::proxy::export!(Hostile);

impl Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        match name {
            // Time.
            "spin" => loop {
                black_box(0);
            },
            "spin-in-calls" => loop {
                black_box(monotonic_clock::now());
            },
            "yield" => loop {
                monotonic_clock::subscribe_duration(0).block();
            },
            "sleep" => monotonic_clock::subscribe_duration(u64::MAX).block(),
            "never-read" => monotonic_clock::subscribe_duration(3_600_000_000_000).block(),
            "drip" => drip(out),
            "endless-random" => loop {
                black_box(random::get_random_bytes(1 << 20));
            },
            // Memory.
            "allocate" => answer(out, &allocate()),
            "allocate-or-die" => drop(black_box(vec![1u8; 3 << 30])),
            "recurse" => drop(black_box(recurse(1))),
            "giant-random" => drop(black_box(random::get_random_bytes(u64::MAX))),
            "giant-string" => drop(Fields::new().append("x", &vec![b'x'; 200 << 20])),
            "many-strings" => drop(Fields::from_list(&vec![("x".to_owned(), vec![b'x'; 1 << 10]); 100_000])),
            "print-flood" => print_flood(out),
            "print-line" => print_line(),
            // Handles.
            "fields" => hoard(Fields::new),
            "pollables" => hoard(|| monotonic_clock::subscribe_duration(u64::MAX)),
            "clones" => clones(),
            "poll-many" => poll_many(),
            "poll-none" => drop(poll::poll(&[])),
            // Answers.
            "big-header" => big_header(out, 1, 1 << 20),
            "many-headers" => big_header(out, 10_000, 64),
            "split-header" => {
                let split = Fields::new().append("x", b"a\r\nset-cookie: b").is_err();
                answer(out, &format!("refused: {split}"));
            }
            "forbidden-header" => {
                let refused = ["connection", "transfer-encoding", "upgrade", "host", "keep-alive"]
                    .map(|name| Fields::new().append(name, b"x").is_err());
                answer(out, &format!("refused: {}", refused.iter().all(|refused| *refused)));
            }
            "flood" => flood(out),
            "announce-much" => announce(out, "10000000000", b"", false),
            "announce-more" => announce(out, "10", b"short", false),
            "announce-less" => announce(out, "2", b"longer", false),
            "trap-in-body" => announce(out, "", b"the beginning", true),
            "no-answer" => {}
            "odd-status" => {
                let response = OutgoingResponse::new(Fields::new());
                answer(out, &format!("refused: {}", response.set_status_code(1).is_err()));
            }
            "count" => answer(out, &(SERVED.fetch_add(1, Ordering::Relaxed) + 1).to_string()),
            // Ends.
            "trap" => panic!("this guest always traps"),
            "exit" => std::process::exit(3),
            "exit-well" => std::process::exit(0),
            "panic-much" => panic!("{}", "x".repeat(10 << 20)),
            // What is not its own.
            "files" => answer(out, &files()),
            "sockets" => answer(out, &sockets()),
            other => answer(out, &format!("nothing is called {other:?}")),
        }
        drop(request);
    }
}

fn answer(out: ResponseOutparam, text: &str) {
    let (body, stream) = begin(out, Fields::new());
    for piece in text.as_bytes().chunks(4096) {
        let _ = stream.blocking_write_and_flush(piece);
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

fn begin(out: ResponseOutparam, headers: Fields) -> (OutgoingBody, OutputStream) {
    let response = OutgoingResponse::new(headers);
    let body = response.body().expect("the first time");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the first time");
    (body, stream)
}

/// A byte now and then, for ever.
fn drip(out: ResponseOutparam) {
    let (_body, stream) = begin(out, Fields::new());
    while stream.blocking_write_and_flush(b".").is_ok() {
        monotonic_clock::subscribe_duration(20_000_000).block();
    }
}

/// As much as the client, or the host, takes.
fn flood(out: ResponseOutparam) {
    let (_body, stream) = begin(out, Fields::new());
    while stream.blocking_write_and_flush(&[b'x'; 4096]).is_ok() {}
}

/// A body that is not what its head says.
fn announce(out: ResponseOutparam, length: &str, bytes: &[u8], trap: bool) {
    let headers = Fields::new();
    if !length.is_empty() {
        headers.append("content-length", length.as_bytes()).expect("it is a number");
    }
    let (body, stream) = begin(out, headers);
    let _ = stream.blocking_write_and_flush(bytes);
    if trap {
        panic!("in the middle of the answer");
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

/// Memory until the host refuses.
fn allocate() -> String {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(1 << 20).is_err() {
            return format!("{} MiB", taken.len());
        }
        block.resize(1 << 20, 1);
        taken.push(black_box(block));
    }
}

#[allow(unconditional_recursion)]
fn recurse(n: u64) -> u64 {
    black_box(recurse(black_box(n + 1))) + n
}

fn hoard<T>(one: impl Fn() -> T) {
    let mut held = Vec::new();
    loop {
        held.push(one());
    }
}

/// Each a copy of all headers of the one before.
fn clones() {
    let fields = Fields::new();
    let mut held = Vec::new();
    for n in 0.. {
        let _ = fields.append("x", &[b'x'; 1000]);
        held.push(fields.clone());
        black_box(n);
    }
}

fn poll_many() {
    let pollables: Vec<_> = (0..500).map(|_| monotonic_clock::subscribe_duration(0)).collect();
    let all: Vec<_> = (0..1_000_000).map(|n| &pollables[n % pollables.len()]).collect();
    loop {
        black_box(poll::poll(&all));
    }
}

fn big_header(out: ResponseOutparam, count: usize, bytes: usize) {
    let headers = Fields::new();
    let taken = (0..count).take_while(|n| headers.append(&format!("x-{n}"), &vec![b'x'; bytes]).is_ok()).count();
    answer(out, &format!("{taken} of {count}"));
}

fn print_flood(out: ResponseOutparam) {
    for n in 0..15_000 {
        println!("flood {n} {}", "x".repeat(100));
    }
    answer(out, "printed");
}

fn print_line() {
    print!("{}", "y".repeat(50 << 20));
}

fn files() -> String {
    let tried = ["/etc/passwd", "../../etc/passwd", ".", "/", "/proc/self/environ"].map(|path| {
        (std::fs::read(path).is_ok() || std::fs::read_dir(path).is_ok() || std::fs::write(path, "x").is_ok())
            .then_some(path)
    });
    format!("opened: {:?}", tried.into_iter().flatten().collect::<Vec<_>>())
}

fn sockets() -> String {
    use sockets::network::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
    let network = sockets::instance_network::instance_network();
    let address = IpSocketAddress::Ipv4(Ipv4SocketAddress { port: 80, address: (127, 0, 0, 1) });
    let tcp = sockets::tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4).and_then(|socket| {
        socket.start_connect(&network, address).and_then(|()| {
            socket.subscribe().block();
            socket.finish_connect().map(drop)
        })
    });
    let udp = sockets::udp_create_socket::create_udp_socket(IpAddressFamily::Ipv4)
        .and_then(|socket| socket.start_bind(&network, address).and_then(|()| socket.finish_bind()));
    let name = sockets::ip_name_lookup::resolve_addresses(&network, "localhost").and_then(|found| {
        found.subscribe().block();
        found.resolve_next_address().map(drop)
    });
    format!("tcp {} udp {} name {}", tcp.is_ok(), udp.is_ok(), name.is_ok())
}
