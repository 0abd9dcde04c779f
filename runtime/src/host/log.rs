//! What a guest prints goes to the host's log, line by line, under the invocation that printed it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};

use crate::request::Invocation;

/// Longest line kept; what follows becomes the next one.
const MAX_LINE: usize = 4096;
/// Most bytes that one invocation can put into the log.
const MAX_LOGGED: usize = 1 << 20;

/// The two output streams of an instance.
pub fn streams(invocation: &Arc<Invocation>) -> (Printed, Printed) {
    let printed = |stream| Printed { stream, invocation: invocation.clone() };
    (printed("stdout"), printed("stderr"))
}

/// One of an instance's output streams.
#[derive(Clone)]
pub struct Printed {
    stream: &'static str,
    invocation: Arc<Invocation>,
}

impl IsTerminal for Printed {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printed {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Lines { to: self.clone(), line: Vec::new(), logged: 0 })
    }
}

struct Lines {
    to: Printed,
    line: Vec<u8>,
    logged: usize,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() >= MAX_LINE {
                self.log();
            }
        }
    }

    fn log(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.logged += line.len() + 1;
        if self.logged > MAX_LOGGED {
            return;
        }
        let Invocation { id, function, .. } = &*self.to.invocation;
        tracing::info!(target: "hob::guest", %function, %id, stream = self.to.stream, "{}", String::from_utf8_lossy(&line));
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.log();
        }
    }
}

impl AsyncWrite for Lines {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
