//! Well-behaved clients of a well-behaved function, whose answers are timed while others misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Connection;

/// Some connections that ask all the time.
pub struct Neighbours {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Duration>>>,
}

impl Neighbours {
    /// `count` connections ask for `path`, which must answer `body`, with a pause after each answer.
    pub fn start(address: SocketAddr, path: &'static str, body: &'static str, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut connection = Connection::open(address);
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    connection.get(path);
                    let head = connection.head();
                    assert_eq!((head.status, connection.body().as_str()), (200, body), "a neighbour's answer");
                    times.push(asked.elapsed());
                    std::thread::sleep(Duration::from_millis(2));
                }
                times
            })
        };
        let clients = (0..count).map(client).collect();
        Self { stop, clients }
    }

    /// Ends them; the time within which 99 of 100 answers came, and how many there were.
    pub fn stop(self) -> (Duration, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let times = self.clients.into_iter().flat_map(|client| client.join().expect("every answer was right"));
        let mut times: Vec<_> = times.collect();
        times.sort();
        (times[(times.len() - 1) * 99 / 100], times.len())
    }
}
