//! `/api/blobs/sha256:...`: files that `/api/create` makes models of, sent by who manages models.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt as _;

use crate::digest::Digest;
use crate::function_host::Host;
use crate::model_api::body;
use crate::model_api::refused::Refused;
use crate::models::pull::PullSettings;
use crate::models::upload::{CreateError, Upload, UploadError};
use crate::request::{Body, BoxError};

/// What is written to disk at once.
const GATHER: usize = 1 << 20;
/// A sender that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

impl From<UploadError> for Refused {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Wrong { .. } | UploadError::Length { .. } => Self::invalid("digest", error.to_string()),
            UploadError::Room(_) | UploadError::Disk(_) => Self::no_room(error.to_string()),
        }
    }
}

impl From<CreateError> for Refused {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Store(error) => error.into(),
            error => Self::invalid("files", error.to_string()),
        }
    }
}

/// The digest that a path, or a field, names.
pub(super) fn digest(text: &str) -> Result<Digest, Refused> {
    // Some clients write it as Ollama's files are called.
    text.replacen("sha256-", "sha256:", 1).parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Refused::invalid("digest", format!("`{shown}` is no digest; write one as in sha256: and 64 hexadecimal digits"))
    })
}

/// `HEAD /api/blobs/...`: whether it is here.
pub(in crate::model_api) fn here(host: &Arc<Host>, named: &str) -> Result<Response<Body>, Refused> {
    match host.library().store().has_blob(&digest(named)?, None) {
        true => Ok(body::text(StatusCode::OK, "")),
        false => Err(Refused::no_blob()),
    }
}

/// `POST /api/blobs/...`: takes it.
pub(in crate::model_api) async fn take<B>(
    host: &Arc<Host>,
    named: &str,
    headers: &HeaderMap,
    body: B,
) -> Result<Response<Body>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (digest, store) = (digest(named)?, host.library().store().clone());
    let total = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if store.has_blob(&digest, total) {
        return Ok(body::text(StatusCode::OK, ""));
    }
    let limit = PullSettings::from_environment().map_err(|error| Refused::fault(error.to_string()))?.limit;
    let mut upload = on_disk(move || store.upload(digest, total, limit)).await?;
    let mut body = Box::pin(body);
    let mut gathered = BytesMut::new();
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| late())? {
        let frame = frame.map_err(|error| broken(&error.into()))?;
        gathered.extend_from_slice(&frame.into_data().unwrap_or_default());
        if gathered.len() >= GATHER {
            upload = write(upload, gathered.split().freeze()).await?;
        }
    }
    upload = write(upload, gathered.freeze()).await?;
    on_disk(move || upload.finish()).await?;
    Ok(body::text(StatusCode::CREATED, ""))
}

async fn write(mut upload: Upload, bytes: Bytes) -> Result<Upload, Refused> {
    on_disk(move || upload.write(&bytes).map(|()| upload)).await
}

/// Runs what waits for the disk where that holds up nobody.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UploadError> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Refused::fault(format!("writing a blob failed: {error}")))??)
}

fn late() -> Refused {
    Refused::invalid(None, format!("nothing came for {} s; nothing was kept, send it again", PATIENCE.as_secs()))
}

fn broken(error: &BoxError) -> Refused {
    Refused::invalid(None, format!("the request's body did not come: {error}; nothing was kept, send it again"))
}
