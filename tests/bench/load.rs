//! A load generator: keep-alive connections that ask again as soon as they are answered, all on one thread.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a load reached.
pub struct Load {
    /// Answers a second.
    pub rate: f64,
    /// Time of one answer in microseconds, at the median and at 99 %.
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Asks for `path` over `connections` connections for `time`; the first fifth is not counted.
pub fn run(address: SocketAddr, path: &str, connections: usize, time: Duration) -> Result<Load> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
    runtime.block_on(async {
        let (counted_from, until) = (Instant::now() + time / 5, Instant::now() + time);
        let clients: Vec<_> = (0..connections)
            .map(|_| tokio::spawn(client(address, request.clone().into_bytes(), counted_from, until)))
            .collect();
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.await??);
        }
        if times.is_empty() {
            bail!("nothing was answered in time");
        }
        let rate = times.len() as f64 / (time * 4 / 5).as_secs_f64();
        let p50_us = super::report::quantile(&mut times, 0.5);
        Ok(Load { rate, p50_us, p99_us: super::report::quantile(&mut times, 0.99) })
    })
}

async fn client(address: SocketAddr, request: Vec<u8>, counted_from: Instant, until: Instant) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address).await.context("the server does not listen")?;
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    while Instant::now() < until {
        let asked = Instant::now();
        stream.write_all(&request).await?;
        answer(&mut stream, &mut buffer).await?;
        if asked >= counted_from {
            times.push(asked.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(times)
}

/// Reads one whole answer, of known length or in chunks.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the server closed the connection");
        }
        let Some(head) = find(buffer, b"\r\n\r\n") else { continue };
        if !buffer.starts_with(b"HTTP/1.1 200") {
            bail!("not a 200: {}", String::from_utf8_lossy(buffer));
        }
        let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = match length {
            Some(length) => buffer.len() >= head + 4 + length.trim().parse::<usize>()?,
            None => buffer.ends_with(b"0\r\n\r\n"),
        };
        if whole {
            return Ok(());
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
