//! A pull that somebody elsewhere waits for.

use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::error::PullError;
use super::progress::PullLine;
use super::pull::{PullRequest, Puller};
use super::settings::PullSettings;
use super::store::ModelStore;

/// Pulls a model, and tells how far it is line by line, as Ollama's clients read them; the last one says `success`, or has an
/// `error`. Dropping the lines stops the pull.
pub fn follow(store: ModelStore, request: PullRequest) -> mpsc::Receiver<PullLine> {
    let (send, lines) = mpsc::channel(16);
    tokio::task::spawn_blocking(move || {
        let last = match tell(&store, &request, &send) {
            Ok(()) => PullLine::success(),
            Err(error) => {
                tracing::warn!(model = %request.wanted, %error, "not pulled");
                PullLine::error(&error)
            }
        };
        let _ = send.blocking_send(last);
    });
    lines
}

fn tell(store: &ModelStore, request: &PullRequest, send: &mpsc::Sender<PullLine>) -> Result<(), PullError> {
    let settings = PullSettings::from_environment()?;
    let puller = Puller::new(store, &settings)?;
    let stop = puller.stop();
    let mut last = PullLine::default();
    let pulled = puller.pull(request, &mut |progress| {
        let line = PullLine::from(progress);
        if send.is_closed() {
            stop.store(true, Ordering::Relaxed);
        } else if line.status == last.status && line.completed.is_some() && line.completed != line.total {
            // Who reads slowly misses some of the numbers, and holds up nothing.
            let _ = send.try_send(line.clone());
        } else if line != last {
            let _ = send.blocking_send(line.clone());
        }
        last = line;
    })?;
    tracing::info!(model = %pulled.manifest.name, from = pulled.manifest.source, "pulled");
    Ok(())
}
