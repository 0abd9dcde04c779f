//! Starting again in place, after a card has failed.
//!
//! What a kernel's fault leaves of a process can use no card any more, and CUDA's manual is plain about it: "to continue using CUDA, the
//! process must be terminated and relaunched" (`CUresult`, `CUDA_ERROR_LAUNCH_FAILED`). So the process becomes a new one: the same
//! number, arguments and listeners, so that who connects meanwhile waits a moment in the listeners' queues and is served. Functions,
//! traffic and bills are on disk, as always.

#![allow(unsafe_code)] // takes over file descriptors by number

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;

/// Names the listeners that a process starts with: `data=7 control=8`.
const LISTENERS: &str = "HOB_LISTENERS";
/// How often in a row that has happened.
const TIMES: &str = "HOB_STARTED_AGAIN";
/// One that goes well for so long has not failed in a row.
const GOES_WELL: Duration = Duration::from_secs(60);
/// The longest wait before the next time.
const MOST: Duration = Duration::from_secs(60);

/// The listeners of this process, and what it takes to hand them on.
#[derive(Debug)]
pub(super) struct Again {
    started: Instant,
    times: u32,
    inherited: HashMap<String, TcpListener>,
    listeners: Vec<(&'static str, TcpListener)>,
}

impl Again {
    /// With what the process before has left. To be called once: the listeners are then taken.
    pub(super) fn from_environment() -> Self {
        let listeners = std::env::var(LISTENERS).unwrap_or_default();
        let inherited = parse(&listeners).filter_map(|(name, fd)| Some((name.to_owned(), take(fd)?))).collect();
        let times = std::env::var(TIMES).ok().and_then(|times| times.parse().ok()).unwrap_or(0);
        Self { started: Instant::now(), times, inherited, listeners: Vec::new() }
    }

    /// Whether the process has started in place of one whose card had failed.
    pub(super) fn is_again(&self) -> bool {
        self.times > 0
    }

    /// The listener of this name: the one that was there before, or a new one on `address`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(super) async fn listen(&mut self, name: &'static str, address: SocketAddr) -> io::Result<TcpListener> {
        let listener = match self.inherited.remove(name) {
            Some(listener) => listener,
            None => tokio::net::TcpListener::bind(address).await?.into_std()?,
        };
        self.listeners.push((name, listener.try_clone()?));
        Ok(listener)
    }

    /// How long to wait first, so that a card that fails at once does not keep the host busy.
    pub(super) fn pause(&self) -> Duration {
        match self.times {
            _ if self.started.elapsed() >= GOES_WELL => Duration::ZERO,
            0 => Duration::ZERO,
            times => Duration::from_secs(1).saturating_mul(1 << times.min(10)).min(MOST),
        }
    }

    /// Becomes a new process. Returns only if that cannot be, with the reason.
    pub(super) fn start(&self) -> io::Error {
        let hand_on = |(name, listener): &(&str, TcpListener)| {
            rustix::io::fcntl_setfd(listener, FdFlags::empty())?;
            Ok(format!("{name}={}", listener.as_raw_fd()))
        };
        let names: io::Result<Vec<String>> = self.listeners.iter().map(hand_on).collect();
        let names = match names {
            Ok(names) => names.join(" "),
            Err(error) => return error,
        };
        let times = if self.started.elapsed() >= GOES_WELL { 1 } else { self.times + 1 };
        // The file may have been replaced by another version, or have gone.
        let here = if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
        let mut again = match here {
            Ok(program) => Command::new(program),
            Err(error) => return error,
        };
        again.args(std::env::args_os().skip(1)).env(LISTENERS, names).env(TIMES, times.to_string());
        if let Some(name) = std::env::args_os().next() {
            again.arg0(name);
        }
        again.exec()
    }
}

fn parse(listeners: &str) -> impl Iterator<Item = (&str, RawFd)> {
    listeners.split_whitespace().filter_map(|one| {
        let (name, fd) = one.split_once('=')?;
        // What belongs to the terminal or a log is no listener, whoever says so.
        Some((name, fd.parse().ok().filter(|fd| *fd > 2)?))
    })
}

/// The listener of this number, closed to processes that this one starts.
fn take(fd: RawFd) -> Option<TcpListener> {
    // SAFETY: a socket of this number is one that the process began with, and nobody else takes it. What is none is given back below.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    if listener.local_addr().is_err() || rustix::io::fcntl_setfd(&listener, FdFlags::CLOEXEC).is_err() {
        let _ = listener.into_raw_fd();
        return None;
    }
    Some(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_named_by_number() {
        assert_eq!(parse("data=7 x models=2 control=9 8= =").collect::<Vec<_>>(), [("data", 7), ("control", 9)]);
    }

    #[test]
    fn only_sockets_are_taken() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(take(file.as_raw_fd()).is_none());
        assert!(file.metadata().is_ok(), "it is open still");
        assert!(take(999_999).is_none());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(take(listener.into_raw_fd()).unwrap().local_addr().unwrap(), address);
    }

    #[test]
    fn a_card_that_fails_again_and_again_is_waited_for() {
        let pause =
            |times| Again { started: Instant::now(), times, inherited: HashMap::new(), listeners: Vec::new() }.pause();
        assert_eq!([0, 1, 2, 5, 40].map(|times| pause(times).as_secs()), [0, 2, 4, 32, 60]);
    }
}
