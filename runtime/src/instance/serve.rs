//! One request in one instance: fresh, or one that was kept.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};
use http::{Request, Response, Uri, header};
use tokio::sync::oneshot;
use wasmtime::component::Accessor;
use wasmtime::error::Context as _;
use wasmtime_wasi_http::handler::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _};

use super::callable::{Callable, Instance};
use crate::host::State;
use crate::request::{Invocation, RequestError, Secure};

/// The beginning of an answer.
pub(crate) type Head = Result<Response<WasiBody>, RequestError>;

/// A request on its way into an instance.
pub(crate) struct Call {
    /// The request.
    pub request: Request<WasiBody>,
    /// Whose log lines and tokens these are.
    pub invocation: Arc<Invocation>,
    /// Where the answer goes.
    pub head: oneshot::Sender<Head>,
    /// Comes when the answer's body was read to its end, or nobody will.
    pub ended: oneshot::Receiver<()>,
}

impl Callable {
    /// Serves one request in an instance of its own: a fresh one, or one that others left.
    ///
    /// # Errors
    /// Why the guest ended, or none could be started.
    pub(crate) async fn serve(self: &Arc<Self>, call: Call) -> wasmtime::Result<()> {
        let Some(mut instance) = self.take_warm() else {
            let meter = call.invocation.meter.clone();
            let instance = self.start(&call.invocation, &meter).await?;
            return self.serve_in(instance, call).await;
        };
        let meter = call.invocation.meter.clone();
        instance.store.data_mut().renew(call.invocation.clone(), meter);
        self.serve_in(instance, call).await
    }

    async fn serve_in(self: &Arc<Self>, mut instance: Instance, call: Call) -> wasmtime::Result<()> {
        match &instance.proxy {
            Proxy::P2(proxy) => {
                let mut http = instance.store.data_mut().http();
                let scheme = if is_secure(&call.request) { Scheme::Https } else { Scheme::Http };
                let request = http.new_incoming_request(scheme, call.request)?;
                let unfinished = Unfinished(Some(call.invocation.clone()));
                let invocation = call.invocation.clone();
                let head = call.head;
                let out = http.new_response_outparam_from_callback(move |answer| {
                    let _ = head.send(answer.map_err(|code: ErrorCode| gave_up(&invocation, &code)));
                })?;
                proxy.wasi_http_incoming_handler().call_handle(&mut instance.store, request, out).await?;
                unfinished.finished();
            }
            Proxy::P3(service) => {
                instance.store.run_concurrent(async |store| answer(service, store, call, true).await).await??;
            }
        }
        self.keep_warm(instance);
        Ok(())
    }
}

/// Calls a WASI 0.3 handler, and stays until its answer's body has been read: the streams that it is made of live in the
/// store, and would be cut short, without an error, if the instance went when the handler returned.
pub(super) async fn answer(
    service: &p3::bindings::Service,
    store: &Accessor<State>,
    call: Call,
    to_the_end: bool,
) -> wasmtime::Result<()> {
    let unfinished = Unfinished(Some(call.invocation.clone()));
    let request = with_whole_target(call.request)?;
    let (request, sent) = store.with(|mut store| {
        let (request, sent) = p3::Request::from_http(store.get().http().hooks, request);
        // Boxed, it does not seem to borrow the store.
        (request, Box::pin(sent) as Pin<Box<dyn Future<Output = _> + Send>>)
    });
    let head = match service.handle(store, request).await? {
        Ok(response) => Ok(store.with(|mut store| response.into_http(&mut store, sent)).context("its answer")?),
        Err(code) => Err(gave_up(&call.invocation, &code)),
    };
    let failed = head.is_err();
    if call.head.send(head).is_err() || failed {
        unfinished.finished();
        return Ok(());
    }
    let _ = call.ended.await;
    unfinished.finished();
    if to_the_end {
        // What the guest does after its answer: until its deadline.
        poll_fn(|cx| store.poll_no_interesting_tasks(cx)).await;
    }
    Ok(())
}

/// A guest that has not done its part of an answer yet. If it goes - it trapped, its time was over - the answer is cut;
/// this is noted before its instance goes, and with it the streams whose end could be taken for the answer's.
struct Unfinished(Option<Arc<Invocation>>);

impl Unfinished {
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(invocation) = &self.0 {
            invocation.cut();
        }
    }
}

/// The scheme and the authority of a request are in its target, for WASI 0.3; on the wire they rarely are.
fn with_whole_target(mut request: Request<WasiBody>) -> wasmtime::Result<Request<WasiBody>> {
    let secure = is_secure(&request);
    let host = request.headers().get(header::HOST).cloned();
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    target.scheme = Some(if secure { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    if let (None, Some(host)) = (&target.authority, host) {
        target.authority = Some(Authority::try_from(host.as_bytes()).context("the request's host")?);
    }
    if target.path_and_query.is_none() {
        target.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(target).context("the request's target")?;
    Ok(request)
}

fn is_secure(request: &Request<WasiBody>) -> bool {
    request.extensions().get::<Secure>().is_some()
}

/// The guest itself says that it cannot answer.
fn gave_up(invocation: &Invocation, code: &dyn std::fmt::Debug) -> RequestError {
    tracing::warn!(function = %invocation.function, id = %invocation.id, ?code, "guest gave an error for an answer");
    invocation.print("host", format!("guest gave an error for an answer: {code:?}"));
    RequestError::Failed
}
