//! What a guest prints goes to the host's log and to its function's, line by line, under the invocation that printed it.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};

use crate::request::Invocation;

/// Longest line kept; what follows becomes the next one.
const MAX_LINE: usize = 4096;
/// Most bytes that one invocation can put into the log.
const MAX_LOGGED: usize = 1 << 20;

/// Under whose name an instance prints now, and how much it has printed under that name.
#[derive(Clone)]
pub struct Printing(Arc<Inner>);

struct Inner {
    invocation: Mutex<Arc<Invocation>>,
    logged: AtomicUsize,
}

impl Printing {
    /// An instance that prints for `invocation`.
    pub fn new(invocation: Arc<Invocation>) -> Self {
        Self(Arc::new(Inner { invocation: Mutex::new(invocation), logged: AtomicUsize::new(0) }))
    }

    /// From now on it prints for another.
    pub fn renew(&self, invocation: Arc<Invocation>) {
        *self.0.invocation.lock().unwrap_or_else(PoisonError::into_inner) = invocation;
        self.0.logged.store(0, Ordering::Relaxed);
    }

    /// The two output streams of the instance.
    pub fn streams(&self) -> (Printed, Printed) {
        let printed = |stream| Printed { stream, printing: self.clone() };
        (printed("stdout"), printed("stderr"))
    }

    /// What may be logged of a message: all, its beginning, or nothing.
    pub fn admit(&self, mut message: String) -> Option<String> {
        message.truncate(message.floor_char_boundary(MAX_LINE));
        self.has_room(message.len()).then_some(message)
    }

    fn has_room(&self, bytes: usize) -> bool {
        let before = self.0.logged.fetch_add(bytes + 1, Ordering::Relaxed);
        let fits = before + bytes < MAX_LOGGED;
        if !fits && before < MAX_LOGGED {
            self.0.logged.store(MAX_LOGGED, Ordering::Relaxed);
            self.invocation().print("host", format!("it printed {} KiB; the rest is dropped", MAX_LOGGED >> 10));
        }
        fits
    }

    fn invocation(&self) -> Arc<Invocation> {
        self.0.invocation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One of an instance's output streams.
#[derive(Clone)]
pub struct Printed {
    stream: &'static str,
    printing: Printing,
}

impl IsTerminal for Printed {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printed {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Lines { to: self.clone(), line: Vec::new() })
    }
}

struct Lines {
    to: Printed,
    line: Vec<u8>,
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
        if !self.to.printing.has_room(line.len()) {
            return;
        }
        let invocation = self.to.printing.invocation();
        let line = String::from_utf8_lossy(&line);
        let Invocation { id, function, .. } = &*invocation;
        tracing::info!(target: "hob::guest", %function, %id, stream = self.to.stream, "{line}");
        invocation.print(self.to.stream, line);
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
