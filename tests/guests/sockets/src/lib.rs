//! Opens TCP connections (WASI 0.2): does what `?do=` names with `?to=`, an address and a port, or `?name=`.

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({
        path: "wit",
        world: "wasi:tls/imports",
        with: {
            "wasi:io/error@0.2.12": wasip2::io::error,
            "wasi:io/poll@0.2.12": wasip2::io::poll,
            "wasi:io/streams@0.2.12": wasip2::io::streams,
        },
        generate_all,
    });
}

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bindings::wasi::tls::types::ClientHandshake;
use hob_sdk::json::{Value, json};
use hob_sdk::{Json, Query, handler};
use wasip2::io::streams::{InputStream, OutputStream};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};
use wasip2::sockets::tcp::TcpSocket;
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp_create_socket::create_udp_socket;

#[handler]
async fn sockets(Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let get = |name: &str| query.get(name).cloned().unwrap_or_default();
    let to = get("to");
    let done = match get("do").as_str() {
        "lookup" => look_up(&get("name")).map(|addresses| json!(addresses)),
        // A name's addresses first, as a client of a database does.
        "named" => look_up(&get("name")).and_then(|found| ask(&format!("{}:{}", found[0], get("port")))),
        "tls" => connect(&to).map(|connection| secured(&get("name"), connection)),
        "many" => Ok(many(&to)),
        "bind" => bind(&to).map(|_| json!("bound")),
        "listen" => listen(&to).map(|()| json!("listening")),
        "udp" => udp(&to).map(|()| json!("sent")),
        _ => ask(&to),
    };
    Json(done.unwrap_or_else(|error| json!({ "error": error.name() })))
}

fn look_up(name: &str) -> Result<Vec<String>, ErrorCode> {
    let found = resolve_addresses(&instance_network(), name)?;
    found.subscribe().block();
    let mut addresses = Vec::new();
    while let Some(address) = found.resolve_next_address()? {
        addresses.push(match address {
            wasip2::sockets::network::IpAddress::Ipv4((a, b, c, d)) => format!("{a}.{b}.{c}.{d}"),
            wasip2::sockets::network::IpAddress::Ipv6(_) => continue,
        });
    }
    Ok(addresses)
}

fn address(text: &str) -> Result<(IpSocketAddress, IpAddressFamily), ErrorCode> {
    Ok(match text.parse::<SocketAddr>().map_err(|_| ErrorCode::InvalidArgument)? {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            let address = Ipv4SocketAddress { port: v4.port(), address: (a, b, c, d) };
            (IpSocketAddress::Ipv4(address), IpAddressFamily::Ipv4)
        }
        SocketAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.ip().segments();
            let address = (a, b, c, d, e, f, g, h);
            let address = Ipv6SocketAddress { port: v6.port(), flow_info: 0, address, scope_id: 0 };
            (IpSocketAddress::Ipv6(address), IpAddressFamily::Ipv6)
        }
    })
}

/// Its parts go in this order: a socket must not go before its streams.
struct Connection {
    input: InputStream,
    output: OutputStream,
    _socket: TcpSocket,
}

fn connect(to: &str) -> Result<Connection, ErrorCode> {
    let (address, family) = address(to)?;
    let socket = create_tcp_socket(family)?;
    socket.start_connect(&instance_network(), address)?;
    socket.subscribe().block();
    let (input, output) = socket.finish_connect()?;
    Ok(Connection { input, output, _socket: socket })
}

/// Sends a line, and gives the line that comes back.
fn ask(to: &str) -> Result<Value, ErrorCode> {
    let Connection { _socket, input, output } = connect(to)?;
    output.blocking_write_and_flush(b"ping\n").map_err(|_| ErrorCode::ConnectionReset)?;
    let answer = input.blocking_read(1024).map_err(|_| ErrorCode::ConnectionReset)?;
    Ok(json!({ "answer": String::from_utf8_lossy(&answer).trim_end() }))
}

/// A request over HTTPS, as a program does that brings its own HTTP.
fn secured(name: &str, connection: Connection) -> Value {
    let Connection { _socket, input, output } = connection;
    let future = ClientHandshake::finish(ClientHandshake::new(name, input, output));
    future.subscribe().block();
    let (connection, input, output) = match future.get() {
        Some(Ok(Ok(streams))) => streams,
        Some(Ok(Err(error))) => return json!({ "error": error.to_debug_string() }),
        _ => return json!({ "error": "not ready" }),
    };
    let request = format!("GET /hello HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    if output.blocking_write_and_flush(request.as_bytes()).is_err() {
        return json!({ "error": "not sent" });
    }
    let mut answer = Vec::new();
    while let Ok(piece) = input.blocking_read(4096) {
        answer.extend(piece);
    }
    drop((input, output));
    drop(connection);
    json!({ "answer": String::from_utf8_lossy(&answer) })
}

/// Connections held at once, until there may be no more.
fn many(to: &str) -> Value {
    let mut held = Vec::new();
    let error = loop {
        match connect(to) {
            Ok(connection) => held.push(connection),
            Err(error) => break error,
        }
    };
    json!({ "held": held.len(), "error": error.name() })
}

fn bind(to: &str) -> Result<TcpSocket, ErrorCode> {
    let (address, family) = address(to)?;
    let socket = create_tcp_socket(family)?;
    socket.start_bind(&instance_network(), address)?;
    socket.subscribe().block();
    socket.finish_bind()?;
    Ok(socket)
}

fn listen(to: &str) -> Result<(), ErrorCode> {
    let socket = bind(to)?;
    socket.start_listen()?;
    socket.subscribe().block();
    socket.finish_listen()
}

fn udp(to: &str) -> Result<(), ErrorCode> {
    let (address, family) = address(to)?;
    let socket = create_udp_socket(family)?;
    socket.stream(Some(address)).map(drop)
}
