//! Opens TCP connections (WASI 0.3): `/<what>?<where>` connects, looks up, listens, or speaks TLS; gives what came of it.

mod bindings {
    #![allow(missing_docs, clippy::all)]
    wasip3::wit_bindgen::generate!({
        path: "wit",
        world: "wasi:tls/imports",
        runtime_path: "wasip3::wit_bindgen::rt",
        generate_all,
    });
}

use std::net::SocketAddr;

use bindings::wasi::tls::client::Connector;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{self, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket, UdpSocket};
use wasip3::wit_bindgen::rt::async_support::{StreamReader, StreamResult};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Sockets;

wasip3::http::service::export!(Sockets);

impl wasip3::exports::http::handler::Guest for Sockets {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, place) = target.split_once('?').unwrap_or((&target, ""));
        let done = match path.rsplit('/').next().unwrap_or_default() {
            "lookup" => {
                resolve_addresses(place.into()).await.map(|found| format!("{found:?}")).map_err(|e| format!("{e:?}"))
            }
            "tls" => secured(place).await,
            "listen" => listen(place).map_err(|error| format!("{error:?}")),
            "udp" => udp(place).map_err(|error| format!("{error:?}")),
            _ => ask(place).await.map_err(|error| format!("{error:?}")),
        };
        Ok(text(done.unwrap_or_else(|error| error)))
    }
}

fn text(text: String) -> Response {
    let (mut write, body) = wit_stream::new();
    wit_bindgen::spawn_local(async move {
        write.write_all(text.into_bytes()).await;
    });
    Response::new(Fields::new(), Some(body), wit_future::new(|| Ok(None)).1).0
}

fn address(text: &str) -> Result<IpSocketAddress, types::ErrorCode> {
    match text.parse::<SocketAddr>() {
        Ok(SocketAddr::V4(v4)) => {
            let [a, b, c, d] = v4.ip().octets();
            Ok(IpSocketAddress::Ipv4(Ipv4SocketAddress { port: v4.port(), address: (a, b, c, d) }))
        }
        _ => Err(types::ErrorCode::InvalidArgument),
    }
}

async fn connect(to: &str) -> Result<TcpSocket, types::ErrorCode> {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4)?;
    socket.connect(address(to)?).await?;
    Ok(socket)
}

async fn ask(to: &str) -> Result<String, types::ErrorCode> {
    let socket = connect(to).await?;
    let (mut write, data) = wit_stream::new();
    let sent = socket.send(data);
    write.write_all(b"ping\n".to_vec()).await;
    let (mut received, _) = socket.receive();
    let (_, answer) = received.read(Vec::with_capacity(1024)).await;
    drop(write);
    sent.await?;
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

/// `address:port/name`
async fn secured(place: &str) -> Result<String, String> {
    let (to, name) = place.split_once('/').unwrap_or((place, ""));
    let socket = connect(to).await.map_err(|error| format!("{error:?}"))?;
    let connector = Connector::new();
    let (mut write, cleartext) = wit_stream::new();
    let (to_network, _sent) = connector.send(cleartext);
    let (from_network, _) = socket.receive();
    let (answers, _received) = connector.receive(from_network);
    let _written = socket.send(to_network);
    Connector::connect(connector, name.into()).await.map_err(|error| error.to_debug_string())?;
    let request = format!("GET /hello HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    write.write_all(request.into_bytes()).await;
    Ok(read(answers).await)
}

async fn read(mut from: StreamReader<u8>) -> String {
    let mut whole = Vec::new();
    loop {
        let (result, bytes) = from.read(Vec::with_capacity(4096)).await;
        whole.extend(bytes);
        if matches!(result, StreamResult::Dropped) {
            return String::from_utf8_lossy(&whole).into_owned();
        }
    }
}

fn listen(to: &str) -> Result<String, types::ErrorCode> {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4)?;
    socket.bind(address(to)?)?;
    socket.listen().map(|_| "listening".into())
}

fn udp(to: &str) -> Result<String, types::ErrorCode> {
    UdpSocket::create(IpAddressFamily::Ipv4)?.connect(address(to)?).map(|()| "connected".into())
}
