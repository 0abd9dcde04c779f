//! Sends a request to `http://` and what follows `?`, with WASI 0.3, and gives the answer as it comes; or the error, as
//! text.

use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Fetch;

wasip3::http::service::export!(Fetch);

impl wasip3::exports::http::handler::Guest for Fetch {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let query = request.get_path_with_query().unwrap_or_default();
        let target = query.split_once('?').map_or("", |(_, target)| target);
        match fetch(target).await {
            // The stream is the host's; it is passed on as it is.
            Ok(answer) => {
                let (_, sent) = wit_future::new(|| Ok(()));
                let (body, trailers) = Response::consume_body(answer, sent);
                Ok(Response::new(Fields::new(), Some(body), trailers).0)
            }
            Err(error) => {
                let (mut write, body) = wit_stream::new();
                wit_bindgen::spawn_local(async move {
                    write.write_all(format!("{error:?}").into_bytes()).await;
                });
                Ok(Response::new(Fields::new(), Some(body), wit_future::new(|| Ok(None)).1).0)
            }
        }
    }
}

async fn fetch(target: &str) -> Result<Response, ErrorCode> {
    let (authority, path) = target.find('/').map_or((target, "/"), |at| target.split_at(at));
    let (request, _) = Request::new(Fields::new(), None, wit_future::new(|| Ok(None)).1, None);
    let bad = |()| ErrorCode::HttpRequestUriInvalid;
    request.set_scheme(Some(&Scheme::Http)).map_err(bad)?;
    request.set_authority(Some(authority)).map_err(bad)?;
    request.set_path_with_query(Some(path)).map_err(bad)?;
    client::send(request).await
}
