//! Revisions and traffic: shares, names, rollback, draining, and that a change is whole or did not happen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hob::client::{Client, ClientError};
use hob::config::{FunctionConfig, RouteConfig};
use hob::digest::Digest;
use hob::function_host::{DeployRequest, FunctionState};
use hob::models::store::{Manifest, ModelStore};
use hob::names::{FunctionName, RevisionId};
use hob::traffic::Traffic;
use hob_tests::{Connection, Hob, component, distinct, get};

/// A request's status, and the revision that answered it.
fn ask(hob: &Hob, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let mut connection = Connection::open(hob.address());
    let host = if headers.iter().any(|(name, _)| *name == "host") { "" } else { "host: test\r\n" };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    connection.send(format!("GET {path} HTTP/1.1\r\n{host}{headers}\r\n").as_bytes());
    let head = connection.head();
    (head.status, head.header("hob-revision").unwrap_or_default().to_owned())
}

fn deploy(hob: &Hob, name: &str, package: &str, more: &[&str]) -> String {
    let file = component(package);
    hob.ok(&[&["deploy", file.to_str().unwrap(), "--name", name], more].concat())
}

#[test]
fn traffic_is_shared_out_and_goes_back() {
    let hob = Hob::start();
    assert!(deploy(&hob, "f", "hello", &[]).contains("f r1 is deployed: http://"));
    assert!(deploy(&hob, "f", "guest-print", &[]).contains("f r2 is deployed"));
    assert_eq!(ask(&hob, "/f", &[]), (200, "r2".into()), "a deployment takes all traffic");

    assert_eq!(hob.ok(&["traffic", "f", "--to", "r2=10", "r1=90"]), "f: r2=10 r1=90 (before: r2=100)\n");
    let new = (0..200).filter(|_| ask(&hob, "/f", &[]).1 == "r2").count();
    assert!((18..=22).contains(&new), "{new} of 200 are about 10 %");
    let revisions = hob.ok(&["revisions", "f"]);
    let lines: Vec<_> = revisions.lines().collect();
    assert!(
        lines[1].starts_with("r2") && lines[1].contains("10 %") && lines[1].contains("guest-print.wasm"),
        "{revisions}"
    );
    assert!(lines[2].starts_with("r1") && lines[2].contains("90 %") && lines[2].ends_with("serving"), "{revisions}");

    assert_eq!(hob.ok(&["rollback", "f"]), "f: r2=100 (before: r2=10 r1=90)\n");
    assert_eq!(hob.ok(&["rollback", "f"]), "f: r2=10 r1=90 (before: r2=100)\n", "and back again");
    assert_eq!(hob.ok(&["traffic", "f"]), "f: r2=10 r1=90 (before: r2=100)\n");

    for (args, said) in [
        (&["traffic", "f", "--to", "r2=10", "r1=80"][..], "are 90 together; they must be 100"),
        (&["traffic", "f", "--to", "r9=100"], "function `f` has no revision r9; `hob revisions f` shows"),
        (&["traffic", "f", "--to", "r2"], "`r2` is not a share"),
        (&["traffic", "g", "--to", "r1=100"], "no function is called `g`"),
        (&["traffic", "g"], "no function is called `g`"),
        (&["revisions", "g"], "no function is called `g`"),
        (&["rollback", "g"], "no function is called `g`"),
    ] {
        let error = hob.refused(args);
        assert!(error.contains(said), "{args:?}: {error}");
    }
    deploy(&hob, "alone", "hello", &[]);
    assert!(hob.refused(&["rollback", "alone"]).contains("nothing to go back to"));
    assert_eq!(hob.ok(&["traffic", "f"]), "f: r2=10 r1=90 (before: r2=100)\n", "refusals changed nothing");
}

#[test]
fn a_user_stays_with_a_revision_if_the_function_asks() {
    let mut hob = Hob::start();
    let manifest = hob.home.path().join("hob.toml");
    let hello = component("hello");
    let text = format!("name = \"f\"\ncomponent = {:?}\nsticky = \"x-user\"\n", hello.to_str().unwrap());
    std::fs::write(&manifest, text).unwrap();
    for _ in 0..2 {
        hob.ok(&["deploy", manifest.to_str().unwrap()]);
    }
    let shares = |hob: &Hob| -> Vec<String> {
        let user = |n: u32| ask(hob, "/f", &[("x-user", &format!("user-{n}"))]);
        (0..40).map(user).map(|(status, revision)| if status == 200 { revision } else { status.to_string() }).collect()
    };
    hob.ok(&["traffic", "f", "--to", "r2=50", "r1=50"]);
    let half = shares(&hob);
    assert!(half.contains(&"r1".into()) && half.contains(&"r2".into()), "{half:?}");
    assert!(hob.terminate());
    hob.restart();
    assert_eq!(shares(&hob), half, "the same after a restart");
    hob.ok(&["traffic", "f", "--to", "r2=80", "r1=20"]);
    let more = shares(&hob);
    assert!(
        half.iter().zip(&more).all(|(half, more)| half == "r1" || more == "r2"),
        "nobody goes back: {half:?} {more:?}"
    );
    assert_ne!(half, more);
}

#[test]
fn functions_over_one_component_share_it() {
    let home = tempfile::tempdir().unwrap();
    let host = hob::Host::open(hob::DataDir::open(Some(home.path())).unwrap(), hob::HostConfig::default()).unwrap();
    let hello = std::fs::read(component("hello")).unwrap();
    let digest = Digest::of(&hello);
    host.upload(digest, &hello).unwrap();
    let names: Vec<FunctionName> = (0..5).map(|n| format!("f{n}").parse().unwrap()).collect();
    for name in &names {
        host.deploy(&hob::names::Tenant::default(), name.clone(), request(name, digest)).unwrap();
    }
    assert!(host.components().mapped() <= 1, "what was just deployed is mapped for its first call, once for all");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for name in &names {
            let request = http::Request::get(format!("http://x/{name}"));
            let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
            assert_eq!(host.handle(request).await.status(), 200);
        }
    });
    assert_eq!(host.components().mapped(), 1);
}

#[test]
fn each_revision_is_reached_by_its_own_name_and_all_survive_a_restart() {
    let mut hob = Hob::start();
    let file = component("hello");
    let first = hob.refused(&["deploy", file.to_str().unwrap(), "--name", "f", "--no-traffic"]);
    assert!(first.contains("first revision") && first.contains("without --no-traffic"), "{first}");
    deploy(&hob, "f", "hello", &[]);
    let said = deploy(&hob, "f", "guest-print", &["--no-traffic"]);
    assert!(said.contains("without traffic") && said.contains("hob-revision: r2"), "{said}");
    for _ in 0..2 {
        assert_eq!(ask(&hob, "/f", &[]), (200, "r1".into()));
        assert_eq!(ask(&hob, "/f", &[("hob-revision", "r2")]), (200, "r2".into()));
        assert_eq!(ask(&hob, "/anything", &[("host", "r2--f.localhost:8080")]), (200, "r2".into()));
        assert_eq!(ask(&hob, "/f", &[("hob-revision", "r3")]).0, 404);
        assert_eq!(ask(&hob, "/", &[("host", "r3--f.localhost")]).0, 404);
        assert!(hob.terminate());
        hob.restart();
    }
    hob.ok(&["rm", "f"]);
    assert_eq!(ask(&hob, "/anything", &[("host", "r2--f.localhost")]).0, 404);
}

#[test]
fn requests_end_in_the_revision_they_began_in_and_then_it_is_let_go() {
    let hob = Hob::start();
    deploy(&hob, "f", "guest-stream-slow", &[]);
    let mapped = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", hob.pid())).unwrap();
        let digest = Digest::of(&std::fs::read(component("guest-stream-slow")).unwrap());
        maps.contains(&digest.hex())
    };
    let mut connection = Connection::open(hob.address());
    connection.get("/f?n=1000");
    let head = connection.head();
    assert_eq!((head.status, head.header("hob-revision")), (200, Some("r1")));
    let first = connection.chunk().unwrap();
    assert!(mapped());
    deploy(&hob, "f", "hello", &[]);
    assert_eq!(ask(&hob, "/f", &[]).1, "r2");
    let second = connection.chunk().expect("the old revision goes on");
    assert!(mapped(), "it is there while it runs");
    assert_ne!((first.len(), second.len()), (0, 0));
    drop(connection);
    let left = Instant::now();
    while mapped() {
        assert!(left.elapsed() < Duration::from_secs(20), "it is let go once nobody runs in it");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn old_revisions_and_their_components_are_swept() {
    let mut hob = Hob::start();
    let file = hob.home.path().join("f.wasm");
    let hello = std::fs::read(component("hello")).unwrap();
    for n in 0..24_u8 {
        std::fs::write(&file, distinct(&hello, &[n])).unwrap();
        hob.ok(&["deploy", file.to_str().unwrap(), "--name", "f", "--route", "/f"]);
    }
    let revisions = hob.client().revisions(&"f".parse().unwrap()).unwrap();
    // The one in service, the one a rollback leads to, and twenty more.
    let ids: Vec<_> = revisions.iter().map(|revision| revision.record.id.number()).collect();
    assert_eq!(ids, (3..=24).rev().collect::<Vec<_>>());
    let components = |hob: &Hob| std::fs::read_dir(hob.home.path().join("components")).unwrap().count();
    assert_eq!(components(&hob), 22, "with their components");
    assert_eq!(ask(&hob, "/f", &[("hob-revision", "r2")]).0, 404);
    assert_eq!(ask(&hob, "/f", &[("hob-revision", "r3")]).0, 200);

    // What a server that died left behind goes at the next start; what is young may be somebody's upload.
    let data = hob::DataDir::open(Some(hob.home.path())).unwrap();
    let (old, young) = (data.component(&Digest::of(b"old")), data.component(&Digest::of(b"young")));
    let secrets = data.secrets(&"gone".parse().unwrap(), RevisionId::FIRST);
    std::fs::create_dir_all(secrets.parent().unwrap()).unwrap();
    for file in [&old, &young, &secrets] {
        std::fs::write(file, "{}").unwrap();
    }
    let hours_ago = std::time::SystemTime::now() - Duration::from_secs(2 * 3600);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(hours_ago).unwrap();
    assert!(hob.terminate());
    hob.restart();
    assert!(!old.exists() && young.exists() && !secrets.exists());
    assert_eq!(components(&hob), 23);
}

#[test]
fn a_restart_compiles_nothing() {
    let mut hob = Hob::start();
    deploy(&hob, "f", "hello", &[]);
    deploy(&hob, "f", "guest-print", &["--no-traffic"]);
    let compiled = |hob: &Hob| hob.log().matches("compiled component=").count();
    assert_eq!(compiled(&hob), 2, "each once");
    assert_eq!(ask(&hob, "/f", &[]).0, 200);
    assert_eq!(compiled(&hob), 2, "no request compiles");
    for terminate in [true, false] {
        if terminate {
            assert!(hob.terminate())
        } else {
            hob.kill()
        }
        hob.restart();
        assert_eq!(ask(&hob, "/f", &[]).1, "r1");
        assert_eq!(ask(&hob, "/f", &[("hob-revision", "r2")]).1, "r2");
    }
    assert_eq!(compiled(&hob), 2, "nor does a restart");
    assert!(!hob.log().contains("compiling for this version"));
    // After a change of the engine all is compiled behind the scenes, without being asked for.
    assert!(hob.terminate());
    std::fs::rename(hob.home.path().join("compiled"), hob.home.path().join("elsewhere")).unwrap();
    hob.restart();
    hob.logged("compiling for this version");
    hob.until("it is compiled", || (compiled(&hob) == 3).then_some(()));
    assert_eq!(ask(&hob, "/f", &[]).1, "r1");
}

#[test]
fn a_new_model_is_waited_for_while_the_old_revision_serves() {
    let hob = Hob::with_model();
    deploy(&hob, "f", "hello", &[]);
    let said = deploy(&hob, "f", "hello", &["--model", hob_tests::MODEL]);
    assert!(said.contains("f r2 is warming; r1=100 serves until its models are resident"), "{said}");
    hob.logged("takes over");
    assert_eq!(ask(&hob, "/f", &[]).1, "r2");
    // It is resident now: no waiting.
    assert!(deploy(&hob, "f", "hello", &["--model", hob_tests::MODEL]).contains("r3 is deployed"));

    // A model that cannot be loaded.
    let data = hob::DataDir::open(Some(hob.home.path())).unwrap();
    let store = ModelStore::new(data);
    let digest = Digest::of(b"no weights");
    std::fs::write(store.blob(&digest), b"no weights").unwrap();
    let name = "torn".parse().unwrap();
    store.put(&Manifest::of_file(name, digest, 10, "test")).unwrap();
    assert!(deploy(&hob, "f", "guest-print", &["--model", "torn"]).contains("r4 is warming; r3=100 serves"));
    hob.logged("its new revision does not take over");
    let list = hob.ok(&["list"]);
    assert!(list.contains("warming: model torn cannot be joined"), "{list}");
    assert!(hob.ok(&["revisions", "f"]).contains("warming"));
    assert_eq!(ask(&hob, "/f", &[]), (200, "r3".into()), "the old one serves");
    assert_eq!(ask(&hob, "/f", &[("hob-revision", "r4")]), (200, "r4".into()), "the new one can be tried");
    assert!(hob.ok(&["rollback", "f"]).starts_with("f: r3=100"), "given up");
    assert!(hob.ok(&["list"]).trim_end().ends_with("ready"));
}

#[test]
fn routes_of_others_and_methods() {
    let hob = Hob::start();
    deploy(&hob, "f", "hello", &["--route", "/a", "--route", "/b"]);
    deploy(&hob, "f", "hello", &["--route", "/c"]);
    deploy(&hob, "g", "hello", &["--route", "/a"]);
    let error = hob.refused(&["rollback", "f"]);
    assert!(error.contains("route `/a` is taken by function `g`"), "{error}");
    assert_eq!([ask(&hob, "/a", &[]).0, ask(&hob, "/b", &[]).0, ask(&hob, "/c", &[]).0], [200, 404, 200]);
    let manifest = hob.home.path().join("hob.toml");
    let hello = component("hello");
    let text = format!(
        "name = \"m\"\ncomponent = {:?}\nroutes = [{{ host = \"*.example.com\", path = \"/m\", methods = [\"POST\"] }}]\n",
        hello.to_str().unwrap()
    );
    std::fs::write(&manifest, text).unwrap();
    hob.ok(&["deploy", manifest.to_str().unwrap()]);
    assert_eq!(ask(&hob, "/m", &[]).0, 404);
    let mut connection = Connection::open(hob.address());
    connection.send(b"GET /m/x HTTP/1.1\r\nhost: A.example.com:80\r\n\r\n");
    let head = connection.head();
    assert_eq!((head.status, head.header("allow")), (405, Some("POST")));
    connection.body();
    connection.send(b"POST /m/x HTTP/1.1\r\nhost: A.example.com:80\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(connection.head().status, 200);
}

/// What one client knows of a function: the changes that were acknowledged, and the one it does not know about.
#[derive(Default)]
struct Known {
    latest: Option<RevisionId>,
    components: BTreeMap<RevisionId, Digest>,
    traffic: Option<Traffic>,
    open: Option<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Deploy(Digest),
    Traffic(Traffic),
}

impl Known {
    /// Changes `name`, `changes` in turn and over again, until the server is gone.
    fn work(&mut self, client: &Client, name: &FunctionName, components: &[Digest], seed: u64) {
        for n in seed.. {
            let change = self.next(components, n);
            self.open = Some(change.clone());
            let done = match &change {
                Change::Deploy(component) => client.deploy(name, &request(name, *component)).map(|done| done.function),
                Change::Traffic(to) => client.set_traffic(name, to.clone()),
            };
            match done {
                Ok(function) => self.learn(&change, function.latest, function.traffic),
                Err(ClientError::Refused(why)) => panic!("refused: {why}"),
                Err(_) => return,
            }
        }
    }

    fn next(&self, components: &[Digest], n: u64) -> Change {
        match self.latest.filter(|latest| !n.is_multiple_of(3) && latest.number() > 1) {
            Some(latest) => {
                let share = 1 + n % 99;
                let before: RevisionId = format!("r{}", latest.number() - 1).parse().unwrap();
                let shares = [format!("{latest}={share}"), format!("{before}={}", 100 - share)];
                Change::Traffic(Traffic::parse(shares.iter().map(String::as_str)).unwrap())
            }
            None => Change::Deploy(components[n as usize % components.len()]),
        }
    }

    fn learn(&mut self, change: &Change, latest: RevisionId, traffic: Traffic) {
        if let Change::Deploy(component) = change {
            self.components.insert(latest, *component);
        }
        (self.latest, self.traffic, self.open) = (Some(latest), Some(traffic), None);
    }

    /// What the server knows after it died must be this, with or without the change that was under way.
    /// Whether that change happened.
    fn check(&mut self, hob: &Hob, client: &Client, name: &FunctionName) -> bool {
        let functions = client.functions().unwrap();
        let Some(function) = functions.iter().find(|function| function.name == *name) else {
            assert!(self.latest.is_none(), "{name} was acknowledged and is lost");
            self.open = None;
            return false;
        };
        assert_eq!(function.state, FunctionState::Ready);
        let revisions = client.revisions(name).unwrap();
        let old = self.latest == Some(function.latest) && self.traffic.as_ref() == Some(&function.traffic);
        if !old {
            let next = self.latest.map_or(RevisionId::FIRST, RevisionId::next);
            let change = self.open.clone().unwrap_or_else(|| panic!("{name}: {function:?} was never asked for"));
            match &change {
                Change::Deploy(component) => {
                    assert_eq!((function.latest, &function.traffic), (next, &Traffic::all(next)), "{change:?}");
                    self.components.insert(next, *component);
                }
                Change::Traffic(to) => assert_eq!((Some(function.latest), &function.traffic), (self.latest, to)),
            }
            assert_eq!(function.previous, self.traffic, "what was before is there to go back to");
            self.learn(&change, function.latest, function.traffic.clone());
        }
        self.open = None;
        for revision in &revisions {
            assert_eq!(
                Some(&revision.record.component),
                self.components.get(&revision.record.id),
                "each is as it was made"
            );
        }
        let (status, answered) = ask(hob, &format!("/{name}"), &[]);
        assert!(status == 200 && function.traffic.has(answered.parse().unwrap()), "{status} {answered}");
        !old
    }
}

fn request(name: &FunctionName, component: Digest) -> DeployRequest {
    let routes = vec![RouteConfig::path(name.default_route())];
    DeployRequest::new(component, FunctionConfig { routes, ..FunctionConfig::default() })
}

/// How the ends of a server found its clients.
#[derive(Default)]
struct Ends {
    /// Something had been acknowledged since the start.
    acknowledged: usize,
    /// What was under way did not happen.
    lost: usize,
}

/// One server, killed `rounds` times while two clients change a function each.
fn kill_over_and_over(rounds: u64, seed: u64) -> Ends {
    let mut hob = Hob::start();
    let names: [FunctionName; 2] = ["one".parse().unwrap(), "two".parse().unwrap()];
    let mut known = [Known::default(), Known::default()];
    let mut ends = Ends::default();
    let hello = std::fs::read(component("hello")).unwrap();
    let compiled: Vec<_> = (0..2_u8).map(|n| hob.client().upload(&distinct(&hello, &[n])).unwrap()).collect();
    for component in &compiled {
        hob.client().check_deploy(&names[0], &request(&names[0], *component)).unwrap();
    }
    for round in 0..rounds {
        // One that the last twenty revisions had not is gone with the one before them.
        for n in 0..2_u8 {
            hob.client().upload(&distinct(&hello, &[n])).unwrap();
        }
        let mut components = compiled.clone();
        // In some rounds there is one to compile.
        let compiles = round % 8 == 5;
        if compiles {
            components.push(hob.client().upload(&distinct(&hello, &round.to_le_bytes())).unwrap());
        }
        let before: Vec<_> = known.iter().map(|known| (known.latest, known.traffic.clone())).collect();
        std::thread::scope(|scope| {
            for (known, name) in known.iter_mut().zip(&names) {
                let (client, components) = (hob.client(), &components);
                scope.spawn(move || known.work(&client, name, components, round * 7));
            }
            // At any moment of the first few changes.
            let most = if compiles { 200_000 } else { 30_000 };
            std::thread::sleep(Duration::from_micros((round * 7919 + seed * 131) % most));
            hob.kill();
        });
        let changed = |(known, before): &(&Known, _)| (known.latest, known.traffic.clone()) != *before;
        ends.acknowledged += known.iter().zip(before).filter(changed).count();
        hob.restart();
        let client = hob.client();
        for (known, name) in known.iter_mut().zip(&names) {
            ends.lost += usize::from(!known.check(&hob, &client, name));
        }
    }
    ends
}

#[test]
fn a_change_is_whole_or_did_not_happen_however_often_the_server_is_killed() {
    let servers: Vec<_> = (0..4).map(|seed| std::thread::spawn(move || kill_over_and_over(50, seed))).collect();
    let ends: Vec<_> = servers.into_iter().map(|server| server.join().unwrap()).collect();
    let acknowledged: usize = ends.iter().map(|ends| ends.acknowledged).sum();
    let lost: usize = ends.iter().map(|ends| ends.lost).sum();
    assert!(acknowledged > 40, "only in {acknowledged} of 400 chances was something acknowledged before the end");
    assert!(lost > 10, "only in {lost} of 400 chances was something lost");
}

#[test]
fn the_smallest_request_says_what_it_lacks() {
    let hob = Hob::start();
    let client = hob.client();
    let digest = client.upload(&std::fs::read(component("hello")).unwrap()).unwrap();
    let error = client.deploy(&"f".parse().unwrap(), &DeployRequest::new(digest, FunctionConfig::default()));
    assert!(error.unwrap_err().to_string().contains("no route"));
    assert_eq!(get(&hob.url("/f")).0, 404);
}

#[test]
fn many_components_are_served_through_few_mappings() {
    const MOST: usize = 8;
    let home = tempfile::tempdir().unwrap();
    let data = hob::DataDir::open(Some(home.path())).unwrap();
    let config = hob::HostConfig { mapped_components: Some(MOST), ..hob::HostConfig::default() };
    let host = hob::Host::open(data.clone(), config).unwrap();
    let hello = std::fs::read(component("hello")).unwrap();
    let first = Digest::of(&hello);
    host.upload(first, &hello).unwrap();
    host.components().compile(&first).unwrap();
    let engine = host.components().engine().compatibility().to_owned();
    let names: Vec<FunctionName> = (0..3 * MOST).map(|n| format!("f{n}").parse().unwrap()).collect();
    for (n, name) in names.iter().enumerate() {
        let bytes = distinct(&hello, &n.to_le_bytes());
        let digest = Digest::of(&bytes);
        host.upload(digest, &bytes).unwrap();
        // They differ in nothing that is compiled.
        std::fs::copy(data.compiled(&engine, &first), data.compiled(&engine, &digest)).unwrap();
        host.deploy(&hob::names::Tenant::default(), name.clone(), request(name, digest)).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for round in 0..3 {
            for name in &names {
                let request = http::Request::get(format!("http://x/{name}"));
                let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
                assert_eq!(host.handle(request).await.status(), 200, "{name} in round {round}");
                assert!(host.components().mapped() <= MOST + 1, "{} are mapped", host.components().mapped());
            }
        }
        // A guest that lost its turn between its answer and its end holds its component until it has ended.
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    });
    assert!(host.components().mapped() >= MOST / 2, "those called last stay");
    host.components().let_go_idle();
    assert!(host.components().mapped() >= MOST / 2, "they were called since");
    host.components().let_go_idle();
    assert_eq!(host.components().mapped(), 0, "and now they were not");
}
