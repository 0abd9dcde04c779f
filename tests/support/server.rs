//! A running server, and the commands that talk to it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hob::DataDir;
use hob::client::Client;
use hob::config::{FunctionConfig, RouteConfig};
use hob::request::Summary;
use tempfile::TempDir;

use crate::{component, hob_binary};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// How to start a server.
#[derive(Default)]
pub struct ServeOptions {
    /// Put the test model into its directory.
    pub model: bool,
    /// Put models that embed into it, too.
    pub embedders: bool,
    /// More arguments for `hob serve`.
    pub args: Vec<String>,
    /// Variables of its environment.
    pub variables: Vec<(String, String)>,
}

/// A running `hob serve`, killed when dropped.
pub struct Hob {
    /// Its data directory.
    pub home: TempDir,
    address: SocketAddr,
    process: Child,
    log: Arc<Mutex<String>>,
    args: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Hob {
    /// Starts a server without a model.
    pub fn start() -> Self {
        Self::with(ServeOptions::default())
    }

    /// Starts a server that has the test model.
    pub fn with_model() -> Self {
        Self::with(ServeOptions { model: true, ..ServeOptions::default() })
    }

    /// Starts a server.
    pub fn with(options: ServeOptions) -> Self {
        Self::on(tempfile::tempdir().expect("a temporary directory can be made"), options)
    }

    /// Starts a server on a directory that was prepared.
    pub fn on(home: TempDir, options: ServeOptions) -> Self {
        if options.model {
            crate::lend_model(home.path());
        }
        if options.embedders {
            crate::lend_embedders(home.path());
        }
        let log = Arc::default();
        let ServeOptions { args, variables, .. } = options;
        let (process, address) = spawn(home.path(), &args, &variables, &log);
        Self { home, address, process, log, args, variables }
    }

    /// Where functions are called.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Runs `hob` on this server's directory.
    pub fn cli(&self, args: &[&str]) -> Output {
        hob(self.home.path(), args)
    }

    /// Runs `hob`, which must succeed, and gives what it prints.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        assert!(output.status.success(), "hob {args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("hob prints UTF-8")
    }

    /// Runs `hob`, which must fail, and gives its complaint.
    pub fn refused(&self, args: &[&str]) -> String {
        refused(self.home.path(), args)
    }

    /// Deploys a component of `cargo xtask guests` under `/` and its name, with more arguments.
    pub fn deploy(&self, package: &str, args: &[&str]) {
        let file = component(package);
        let file = file.to_str().expect("the repository has a plain path");
        self.ok(&[&["deploy", file, "--name", package], args].concat());
    }

    /// Deploys a component under `/` and its name, with all that can be configured.
    pub fn deploy_with(&self, package: &str, config: FunctionConfig) {
        self.deploy_as(package, package, config);
    }

    /// The same under another name.
    pub fn deploy_as(&self, package: &str, name: &str, config: FunctionConfig) {
        let bytes = std::fs::read(component(package)).expect("it was built");
        self.deploy_bytes(&bytes, name, config);
    }

    /// The same with a component that was built elsewhere.
    pub fn deploy_bytes(&self, bytes: &[u8], name: &str, mut config: FunctionConfig) {
        let client = self.client();
        let path = format!("/{name}").parse().expect("a name makes a route");
        config.routes.push(RouteConfig::path(path));
        let component = client.upload(bytes).expect("it is a component");
        let request = serde_json::json!({ "component": component, "config": config });
        let request = serde_json::from_value(request).expect("it is a request");
        client.deploy(&name.parse().expect("it is a name"), &request).expect("it can be deployed");
    }

    /// Deploys a component that may use the test model.
    pub fn deploy_with_model(&self, package: &str) {
        self.deploy(package, &["--model", crate::MODEL]);
    }

    /// A client of the control API.
    pub fn client(&self) -> Client {
        Client::find(&DataDir::open(Some(self.home.path())).expect("it is open already")).expect("the server runs")
    }

    /// Waits until an invocation that `wanted` accepts has ended.
    pub fn ended(&self, wanted: impl Fn(&Summary) -> bool) -> Summary {
        self.until("the invocation ends", || {
            self.client().invocations().expect("the server runs").into_iter().rfind(&wanted)
        })
    }

    /// Waits until the log has `text`.
    pub fn logged(&self, text: &str) {
        self.until(&format!("the log has {text:?}"), || self.log().contains(text).then_some(()));
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("the reader does not panic").clone()
    }

    /// Kills it as the kernel would, without a chance to tidy up.
    pub fn kill(&mut self) {
        self.process.kill().expect("it is our child");
        self.process.wait().expect("it is our child");
    }

    /// Its memory now, in MiB, without what it maps of files.
    pub fn memory_mib(&self) -> u64 {
        self.status_mib("RssAnon:")
    }

    /// The same with the pages of files that it has mapped.
    pub fn memory_with_files_mib(&self) -> u64 {
        self.status_mib("VmRSS:")
    }

    fn status_mib(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("the kernel says");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number") / 1024
    }

    /// Asks it to stop.
    pub fn ask_to_stop(&self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill is a command").success());
    }

    /// Asks it to stop, and waits until it has.
    pub fn terminate(&mut self) -> bool {
        self.ask_to_stop();
        self.ended_well()
    }

    /// Waits until it has stopped.
    pub fn ended_well(&mut self) -> bool {
        self.until_mut(|server| server.process.try_wait().expect("it is our child")).success()
    }

    /// Starts it again on the same directory.
    pub fn restart(&mut self) {
        (self.process, self.address) = spawn(self.home.path(), &self.args, &self.variables, &self.log);
    }

    /// Waits until `look` sees something.
    pub fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain until {what}; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_mut<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(seen) = look(self) {
                return seen;
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Hob {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln_log(&self.log());
        }
    }
}

#[allow(clippy::print_stderr)] // the test has failed: its server's log is part of the report
fn eprintln_log(log: &str) {
    eprintln!("the server's log:\n{log}");
}

/// Runs `hob` on a directory.
pub fn hob(home: &Path, args: &[&str]) -> Output {
    hob_with(home, args, &[]).output().expect("hob is a command")
}

/// `hob` on a directory, with variables of its environment.
pub fn hob_with(home: &Path, args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(hob_binary());
    command.args(args).env("HOB_DATA", home).env_remove("HOB_LOG").envs(variables.iter().copied());
    command
}

/// Runs `hob` on a directory, which must fail, and gives its complaint.
pub fn refused(home: &Path, args: &[&str]) -> String {
    let output = hob(home, args);
    assert!(!output.status.success(), "hob {args:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("hob prints UTF-8")
}

fn spawn(
    home: &Path,
    args: &[String],
    variables: &[(String, String)],
    log: &Arc<Mutex<String>>,
) -> (Child, SocketAddr) {
    let mut process = Command::new(hob_binary())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(args)
        .env("HOB_DATA", home)
        .env("HOB_LOG", "info")
        .envs(variables.iter().cloned())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hob is a command");
    let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
    let mut first = String::new();
    while !first.starts_with("Serving HTTP on ") {
        first = lines.next().unwrap_or_else(|| panic!("the server ended: {first}")).expect("hob prints UTF-8");
        log.lock().expect("the reader does not panic").push_str(&format!("{first}\n"));
    }
    let address = first.trim_start_matches("Serving HTTP on http").trim_start_matches('s').trim_start_matches("://");
    let address = address.trim_end_matches('/');
    let address = address.parse().expect("it says where it listens");
    let log = log.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            log.lock().expect("nobody panics with it").push_str(&format!("{line}\n"));
        }
    });
    (process, address)
}
