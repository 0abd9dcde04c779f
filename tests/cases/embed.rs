//! hob as a library: a host in this process, its functions called as services.

use std::sync::Arc;

use bytes::Bytes;
use hob::config::{FunctionConfig, RouteConfig};
use hob::digest::Digest;
use hob::function_host::DeployRequest;
use hob::names::Tenant;
use hob::{FunctionService, Host};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tower_service::Service;

fn deploy(host: &Host, package: &str, name: &str) {
    let bytes = std::fs::read(hob_tests::component(package)).expect("it was built");
    let digest = Digest::of(&bytes);
    host.upload(digest, &bytes).expect("it is a component");
    let route = RouteConfig::path(format!("/{name}").parse().expect("a name makes a route"));
    let config = FunctionConfig { routes: vec![route], ..FunctionConfig::default() };
    host.deploy(&Tenant::default(), name.parse().expect("it is a name"), DeployRequest::new(digest, config))
        .expect("it can be deployed");
}

fn post(path: &str, body: &str) -> Request<Full<Bytes>> {
    Request::post(format!("http://embedder{path}")).body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

/// As a router or a layer would call it.
async fn call<S>(service: &mut S, request: Request<Full<Bytes>>) -> (u16, String)
where
    S: Service<Request<Full<Bytes>>, Response = http::Response<hob::request::Body>, Error = std::convert::Infallible>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    let answer = service.call(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("the body is whole").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn a_function_is_a_service() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let host: Arc<Host> = Host::builder().data(home.path()).instances(100).build().expect("it starts");
    assert!(host.function("plugin").is_none() && host.function("no name").is_none());
    deploy(&host, "guest-echo", "plugin");
    let mut plugin: FunctionService = host.function("plugin").expect("it was deployed");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there are threads");
    runtime.block_on(async {
        // Whatever the path is: the embedder has routes of its own.
        assert_eq!(call(&mut plugin, post("/elsewhere", "over and out")).await, (200, "over and out".into()));
        // A deployment takes effect at once.
        deploy(&host, "hello", "plugin");
        let again = call(&mut plugin.clone(), post("/", "")).await;
        assert_eq!(again, (200, "hello from hob\n".into()));
        let mut first = post("/", "as before");
        first.headers_mut().insert("hob-revision", "r1".parse().unwrap());
        assert_eq!(call(&mut plugin, first).await, (200, "as before".into()));
        host.remove(&Tenant::default(), &"plugin".parse().unwrap()).expect("it is there");
        let (status, body) = call(&mut plugin, post("/", "")).await;
        assert!(status == 404 && body.contains("no function is called `plugin`"), "{body}");
        assert!(host.metrics(None).contains("reason=\"no-function\""));
    });
}
