//! Calls another server, which a function must be granted.

use wstd::http::{Body, Client, Request, Response, Result};

#[wstd::http_server]
async fn main(_request: Request<Body>) -> Result<Response<Body>> {
    Client::new().send(Request::get("http://example.com/").body(Body::empty())?).await
}
