//! What goes on: numbers for Prometheus, and the lines that functions print.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use tokio::sync::mpsc;

use super::access::Caller;
use super::{ApiError, App};
use crate::keys::Scope;
use crate::names::FunctionName;
use crate::telemetry::{Line, Watched};

/// A key that reads gets the numbers of its tenant's functions, an administrator's those of the whole host.
pub(super) async fn metrics(State(app): State<App>, caller: Caller) -> Response {
    let tenant = (caller.scope < Scope::Admin).then_some(&caller.tenant);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.host.metrics(tenant)).into_response()
}

pub(super) async fn logs(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let name: FunctionName = name.parse().map_err(invalid)?;
    let wanted: Wanted = query.unwrap_or_default().parse()?;
    let watched = app.host.watch(&caller.tenant_of(&app, &name), &name)?;
    let mut read = watched.log.read(0);
    read.lines.retain(|line| wanted.has(line));
    let skip = wanted.last.map_or(0, |last| read.lines.len().saturating_sub(last));
    let begin = text(&read.lines[skip..]);
    let body = if wanted.follow { follow(watched, wanted, begin, read.last) } else { Body::from(begin) };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Which lines a reader wants.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Those to come, too.
    follow: bool,
    /// Those of one invocation.
    id: Option<String>,
    /// Of those there are, only the last so many.
    last: Option<usize>,
}

impl Wanted {
    fn has(&self, line: &Line) -> bool {
        self.id.as_ref().is_none_or(|id| line.id == *id)
    }
}

impl std::str::FromStr for Wanted {
    type Err = ApiError;

    fn from_str(query: &str) -> Result<Self, ApiError> {
        let mut wanted = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "true")) {
                ("follow", "true") => wanted.follow = true,
                ("follow", "false") => wanted.follow = false,
                ("id", id) if id.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-') => wanted.id = Some(id.into()),
                ("id", _) => return Err(invalid("id: write what `x-hob-invocation` has, as in 6744a1c0-1f")),
                ("last", last) => {
                    wanted.last = Some(last.parse().map_err(|_| invalid("last: write a number of lines"))?);
                }
                (key, _) => {
                    return Err(invalid(format!("`{key}`: there are follow=true, id=INVOCATION and last=LINES")));
                }
            }
        }
        Ok(wanted)
    }
}

/// `begin`, and then each line as it comes, until the reader leaves or the function is removed.
fn follow(watched: Arc<Watched>, wanted: Wanted, begin: Bytes, mut last: u64) -> Body {
    // One piece waits at most: who reads slowly misses lines, and holds up nobody.
    let (send, pieces) = mpsc::channel(1);
    tokio::spawn(async move {
        if !begin.is_empty() && send.send(begin).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                () = watched.log.grown(last) => {}
                () = send.closed() => return,
            }
            let mut read = watched.log.read(last);
            last = read.last;
            read.lines.retain(|line| wanted.has(line));
            if read.missed > 0 {
                read.lines.insert(0, missed(read.missed, &read.lines));
            }
            if !read.lines.is_empty() && send.send(text(&read.lines)).await.is_err() || read.closed {
                return;
            }
        }
    });
    Body::new(Pieces(pieces))
}

fn missed(lines: u64, rest: &[Line]) -> Line {
    let text = format!("{lines} lines came too fast for this reader and are gone");
    let (n, at_ms) = rest.first().map_or((0, 0), |line| (line.n - 1, line.at_ms));
    Line { n, at_ms, id: String::new(), stream: "host".into(), text }
}

/// A line of JSON for each.
fn text(lines: &[Line]) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).expect("a line is strings and numbers");
        text.push(b'\n');
    }
    text.into()
}

/// A body whose frames are what a channel gives.
pub(super) struct Pieces(pub(super) mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

fn invalid(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_wants() {
        let wanted = Wanted { follow: true, id: Some("6a-1f".into()), last: Some(5) };
        assert_eq!("follow=true&id=6a-1f&last=5".parse::<Wanted>().unwrap(), wanted);
        assert_eq!("".parse::<Wanted>().unwrap(), Wanted::default());
        for bad in ["follow=maybe", "id=x;y", "last=-1", "tail=3"] {
            let error = bad.parse::<Wanted>().unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }
}
