//! A client of the control API: what the command line is made of.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::api::{ControlFile, CopyCall, KeyStatus, ModelView, NewKey, PullCall, Status, TrafficRequest};
use crate::config::Budget;
use crate::data::DataDir;
use crate::digest::Digest;
use crate::function_host::{DeployRequest, Deployed, FunctionStatus, RevisionStatus, TenantStatus};
use crate::models::Freed;
use crate::models::view::StoredModel;
use crate::names::{FunctionName, ModelName, Tenant};
use crate::request::Summary;
use crate::traffic::Traffic;
use crate::usage::Report;

/// Longest wait for an answer; a large component takes a while to compile.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Most bytes of metrics: a thousand functions have some megabytes.
const MAX_METRICS: u64 = 256 << 20;

/// Why the server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing serves this data directory.
    #[error("no hob serves from {0}; start one with `hob serve`, or name its directory with --data or HOB_DATA")]
    NoServer(String),
    /// Nothing answers at an address.
    #[error("no hob answers at {0}; is it the address that its `hob serve --control` has?")]
    NoServerAt(String),
    /// The server refused, and said why.
    #[error("{0}")]
    Refused(String),
    /// The file that says whom to trust says nothing.
    #[error("{path} does not say whom to trust: {why}; give a file of certificates in PEM form", path = path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The connection broke.
    #[error("the server does not answer: {0}")]
    Connection(Box<ureq::Error>),
}

/// A connection to the server of a data directory.
pub struct Client {
    agent: Agent,
    base: String,
    key: String,
    /// What to say when nobody answers.
    missing: fn(String) -> ClientError,
    place: String,
}

impl Client {
    /// Finds the server of `data`.
    ///
    /// # Errors
    /// `NoServer`.
    pub fn find(data: &DataDir) -> Result<Self, ClientError> {
        let root = data.root().display().to_string();
        let file: Option<ControlFile> =
            std::fs::read(data.control()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let Some(file) = file else { return Err(ClientError::NoServer(root)) };
        let base = format!("http://{}", file.address);
        Ok(Self::connect(&base, file.key, ClientError::NoServer, root, RootCerts::PlatformVerifier))
    }

    /// A client of the server at `base`, as in `https://10.0.0.7:9000`, that shows `key`. Over TLS it trusts whom this
    /// machine trusts.
    pub fn at(base: &str, key: String) -> Self {
        Self::connect(base, key, ClientError::NoServerAt, base.to_owned(), RootCerts::PlatformVerifier)
    }

    /// The same, trusting the certificate authorities in the file `ca`, in PEM form, and no others.
    ///
    /// # Errors
    /// `Authority`.
    pub fn at_trusting(base: &str, key: String, ca: &Path) -> Result<Self, ClientError> {
        let bad = |why: String| ClientError::Authority { path: ca.to_owned(), why };
        let text = std::fs::read(ca).map_err(|error| bad(error.to_string()))?;
        let mut trusted = Vec::new();
        for item in ureq::tls::parse_pem(&text) {
            if let PemItem::Certificate(certificate) = item.map_err(|error| bad(error.to_string()))? {
                trusted.push(certificate);
            }
        }
        if trusted.is_empty() {
            return Err(bad("there is no certificate in it".into()));
        }
        let roots = RootCerts::Specific(Arc::new(trusted));
        Ok(Self::connect(base, key, ClientError::NoServerAt, base.to_owned(), roots))
    }

    fn connect(base: &str, key: String, missing: fn(String) -> ClientError, place: String, roots: RootCerts) -> Self {
        let base = base.trim_end_matches('/');
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            // The control API is on this machine: a proxy from the environment has no business in between.
            .proxy(None)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build()
            .into();
        Self { agent, base: format!("{base}/v1"), key, missing, place }
    }

    /// What the server is.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("status")
    }

    /// Uploads a component.
    ///
    /// # Errors
    /// `Refused` if it is none.
    pub fn upload(&self, bytes: &[u8]) -> Result<Digest, ClientError> {
        let digest = Digest::of(bytes);
        let call = self.agent.put(self.url(&format!("components/{digest}"))).header("authorization", self.bearer());
        self.check(call.send(bytes))?;
        Ok(digest)
    }

    /// Deploys a function.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn deploy(&self, name: &FunctionName, request: &DeployRequest) -> Result<Deployed, ClientError> {
        self.put(&format!("functions/{name}"), request)
    }

    /// What deploying would be refused for.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn check_deploy(&self, name: &FunctionName, request: &DeployRequest) -> Result<(), ClientError> {
        let call = self.agent.post(self.url(&format!("functions/{name}/check"))).header("authorization", self.bearer());
        self.check(call.send_json(request)).map(drop)
    }

    /// A function's revisions, newest first.
    ///
    /// # Errors
    /// `Refused` if there is none of this name.
    pub fn revisions(&self, name: &FunctionName) -> Result<Vec<RevisionStatus>, ClientError> {
        self.get(&format!("functions/{name}/revisions"))
    }

    /// Shares a function's requests out.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn set_traffic(&self, name: &FunctionName, to: Traffic) -> Result<FunctionStatus, ClientError> {
        self.put(&format!("functions/{name}/traffic"), &TrafficRequest { to })
    }

    /// Goes back to how requests were shared out before.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn rollback(&self, name: &FunctionName) -> Result<FunctionStatus, ClientError> {
        self.post(&format!("functions/{name}/rollback"))
    }

    /// All functions.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn functions(&self) -> Result<Vec<FunctionStatus>, ClientError> {
        self.get("functions")
    }

    /// Removes a function.
    ///
    /// # Errors
    /// `Refused` if there is none of this name.
    pub fn remove(&self, name: &FunctionName) -> Result<(), ClientError> {
        self.delete(&format!("functions/{name}"))
    }

    /// The lines that a function printed, a line of JSON for each: those there are, or those of one invocation, or the
    /// last of them; with `follow` those to come too.
    ///
    /// # Errors
    /// `Refused` if there is none of this name.
    pub fn logs(
        &self,
        name: &FunctionName,
        follow: bool,
        id: Option<&str>,
        last: Option<usize>,
    ) -> Result<BufReader<ureq::BodyReader<'static>>, ClientError> {
        let mut call = self.agent.get(self.url(&format!("functions/{name}/logs")));
        if follow {
            call = call.query("follow", "true");
        }
        if let Some(id) = id {
            call = call.query("id", id);
        }
        if let Some(last) = last {
            call = call.query("last", last.to_string());
        }
        // Who follows waits for as long as nothing is printed.
        let call = call.header("authorization", self.bearer()).config().timeout_global(None).build();
        Ok(BufReader::new(self.check(call.call())?.into_body().into_reader()))
    }

    /// The numbers that Prometheus reads.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn metrics(&self) -> Result<String, ClientError> {
        let url = format!("{}/metrics", self.base.trim_end_matches("/v1"));
        let answer = self.agent.get(url).header("authorization", self.bearer()).call();
        let text = self.check(answer)?.body_mut().with_config().limit(MAX_METRICS).read_to_string();
        text.map_err(|error| ClientError::Connection(Box::new(error)))
    }

    /// The last invocations, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn invocations(&self) -> Result<Vec<Summary>, ClientError> {
        self.get("invocations")
    }

    /// Sums of usage. `query` is as the API has it: `tenant`, `function`, `model`, `since`, `until`, `by`.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn usage(&self, query: &[(&str, &str)]) -> Result<Report, ClientError> {
        let call = self.agent.get(self.url("usage")).query_pairs(query.iter().copied());
        let mut answer = self.check(call.header("authorization", self.bearer()).call())?;
        let read = answer.body_mut().with_config().limit(MAX_METRICS).read_json();
        read.map_err(|error| ClientError::Connection(Box::new(error)))
    }

    /// Records of single invocations, a line of JSON for each. `query` is as the API has it: `tenant`, `function`, `model`,
    /// `since`, `until`, `after`, `limit`.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn usage_records(&self, query: &[(&str, &str)]) -> Result<String, ClientError> {
        let call = self.agent.get(self.url("usage/records")).query_pairs(query.iter().copied());
        let mut answer = self.check(call.header("authorization", self.bearer()).call())?;
        let read = answer.body_mut().with_config().limit(MAX_METRICS).read_to_string();
        read.map_err(|error| ClientError::Connection(Box::new(error)))
    }

    /// Tenants, what they may use, and what they use.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn tenants(&self) -> Result<Vec<TenantStatus>, ClientError> {
        self.get("tenants")
    }

    /// Holds a tenant to a budget.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn set_quota(&self, tenant: &Tenant, quota: &Budget) -> Result<(), ClientError> {
        let call = self.agent.put(self.url(&format!("tenants/{tenant}/quota")));
        self.check(call.header("authorization", self.bearer()).send_json(quota)).map(drop)
    }

    /// Makes a key.
    ///
    /// # Errors
    /// `Refused`, with the reason.
    pub fn create_key(&self, new: &NewKey) -> Result<KeyStatus, ClientError> {
        let call = self.agent.post(self.url("keys")).header("authorization", self.bearer());
        self.read(call.send_json(new))
    }

    /// All keys, without the keys themselves.
    ///
    /// # Errors
    /// `Refused` if this one is no administrator's.
    pub fn keys(&self) -> Result<Vec<KeyStatus>, ClientError> {
        self.get("keys")
    }

    /// Makes a key worthless.
    ///
    /// # Errors
    /// `Refused` if there is none of this id.
    pub fn revoke_key(&self, id: &str) -> Result<(), ClientError> {
        self.delete(&format!("keys/{id}"))
    }

    /// Models that are not absent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn models(&self) -> Result<Vec<ModelView>, ClientError> {
        self.get("models")
    }

    /// All models: those that are not absent, on disk, or can be pulled.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn all_models(&self) -> Result<Vec<ModelView>, ClientError> {
        self.get("models?all=true")
    }

    /// Gives back the memory of a model that nobody uses, or stops its load; whether it was in memory, or on its way.
    ///
    /// # Errors
    /// `Refused` if somebody uses it.
    pub fn evict(&self, model: &ModelName) -> Result<bool, ClientError> {
        #[derive(Deserialize)]
        struct Answer {
            evicted: bool,
        }
        let path = self.url(&format!("models/resident/{model}"));
        let answer: Answer = self.read(self.agent.delete(path).header("authorization", self.bearer()).call())?;
        Ok(answer.evicted)
    }

    /// Models on the server's disk.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stored_models(&self) -> Result<Vec<StoredModel>, ClientError> {
        self.get("models/stored")
    }

    /// One of them.
    ///
    /// # Errors
    /// `Refused` if there is none of this name.
    pub fn stored_model(&self, model: &ModelName) -> Result<StoredModel, ClientError> {
        self.get(&format!("models/stored/{model}"))
    }

    /// Has the server get a model: a line of JSON for each step, as [`crate::models::progress::PullLine`].
    ///
    /// # Errors
    /// `Refused` if what is asked for cannot be understood; what goes wrong later is in the lines.
    pub fn pull_model(&self, call: &PullCall) -> Result<BufReader<ureq::BodyReader<'static>>, ClientError> {
        let post = self.agent.post(self.url("models/pull")).header("authorization", self.bearer());
        // A large model takes hours.
        let answer = post.config().timeout_global(None).build().send_json(call);
        Ok(BufReader::new(self.check(answer)?.into_body().into_reader()))
    }

    /// Removes a model's name, and what no other name needs.
    ///
    /// # Errors
    /// `Refused` if there is none of this name.
    pub fn remove_model(&self, model: &ModelName) -> Result<Freed, ClientError> {
        self.read(
            self.agent
                .delete(self.url(&format!("models/stored/{model}")))
                .header("authorization", self.bearer())
                .call(),
        )
    }

    /// Gives another name to a model.
    ///
    /// # Errors
    /// `Refused` if there is no such model, or the name is taken.
    pub fn copy_model(&self, from: &ModelName, to: &ModelName) -> Result<(), ClientError> {
        let call = self.agent.post(self.url(&format!("models/stored/{from}/copy")));
        let call = call.header("authorization", self.bearer());
        self.check(call.send_json(CopyCall { to: to.clone() })).map(drop)
    }

    /// Removes files that no model needs.
    ///
    /// # Errors
    /// `Refused` while a model is pulled.
    pub fn collect_models(&self) -> Result<Freed, ClientError> {
        self.post("models/gc")
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(self.agent.get(self.url(path)).header("authorization", self.bearer()).call())
    }

    fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.read(self.agent.put(self.url(path)).header("authorization", self.bearer()).send_json(body))
    }

    fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(self.agent.post(self.url(path)).header("authorization", self.bearer()).send_empty())
    }

    fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.check(self.agent.delete(self.url(path)).header("authorization", self.bearer()).call()).map(drop)
    }

    fn read<T: DeserializeOwned>(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<T, ClientError> {
        self.check(answer)?.body_mut().read_json().map_err(|error| ClientError::Connection(Box::new(error)))
    }

    fn check(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, ClientError> {
        let mut answer = match answer {
            Ok(answer) => answer,
            // The file is there but nobody listens: the server was killed.
            Err(ureq::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Err((self.missing)(self.place.clone()));
            }
            Err(error) => return Err(ClientError::Connection(Box::new(error))),
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        let message = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|body| Some(body["error"]["message"].as_str()?.to_owned()));
        Err(ClientError::Refused(message.unwrap_or_else(|| format!("the server answered {}", answer.status()))))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }
}
