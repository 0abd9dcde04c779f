//! Sends the request's body back as it arrives, with its method and path (query included) in headers.

use hob_sdk::{Request, Response, Result, handler};

#[handler]
async fn echo(request: Request) -> Result<Response> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    Ok(Response::builder()
        .header("x-method", request.method().as_str())
        .header("x-path", path)
        .body(request.into_body())?)
}
