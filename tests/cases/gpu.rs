//! Cards: where the machine has none, or not the one that was asked for; one that fails, or hangs; and two.

use hob::models::tier::Tier;
use hob_tests::{Hob, ServeOptions, get, hob, post, refused};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

#[path = "../../host-gpu/tests/support/cuda.rs"]
#[allow(dead_code)] // it is the engine's tests'
mod cuda;

/// Names, and files.
const MODELS: [(&str, &str); 2] = [
    ("tiny", concat!(env!("CARGO_MANIFEST_DIR"), "/golden/arch/llama.gguf")),
    ("other", concat!(env!("CARGO_MANIFEST_DIR"), "/golden/arch/qwen2.gguf")),
];

#[test]
fn a_device_that_cannot_be_had_is_a_sentence_and_never_the_processor() {
    let home = TempDir::new().unwrap();
    let [(_, model), _] = MODELS;
    let output = hob(home.path(), &["run", model, "hello", "--raw", "--device", "cuda:77"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot start on cuda:77"), "{said}");
    assert!(said.contains("no NVIDIA driver is here") || said.contains("there is no card 77"), "{said}");
    assert!(output.stdout.is_empty(), "the processor has not answered in its place");
    let said = refused(home.path(), &["run", model, "hello", "--raw", "--device", "gpu"]);
    assert!(said.contains("give cpu, cuda or cuda:1"), "{said}");
}

/// A server on the driver's stand-in, and the files that make its next kernel fail, and hang.
fn on_stand_in(args: &[&str]) -> Option<(Hob, [PathBuf; 2])> {
    let library = cuda::stand_in(cuda::Flavour::Plain)?;
    let home = TempDir::new().unwrap();
    for (name, file) in MODELS {
        let pulled = hob(home.path(), &["models", "pull", &format!("file:{file}"), "--as", name]);
        assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    }
    let [fault, hang] = ["fault", "hang"].map(|name| home.path().join(name));
    let variable = |name: &str, value: String| (name.to_owned(), value);
    let variables = vec![
        variable("LD_LIBRARY_PATH", library.parent().unwrap().display().to_string()),
        variable("CUSIM_FAULT", fault.display().to_string()),
        variable("CUSIM_HANG", hang.display().to_string()),
        variable("CUSIM_MEM", (256_u32 << 20).to_string()),
    ];
    let args = [&["--kv-memory", "8MB"], args].concat();
    let args = args.into_iter().map(str::to_owned).collect();
    let hob = Hob::on(home, ServeOptions { args, variables, ..ServeOptions::default() });
    hob.deploy("hello", &[]);
    Some((hob, [fault, hang]))
}

fn complete(hob: &Hob) -> (u16, String) {
    complete_with(hob, "tiny")
}

fn complete_with(hob: &Hob, model: &str) -> (u16, String) {
    let asked = serde_json::json!({ "model": model, "prompt": "abc", "max_tokens": 6, "temperature": 0 });
    post(&hob.url("/v1/completions"), &asked.to_string())
}

fn text(answer: &str) -> String {
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
    answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn a_card_that_fails_takes_what_it_computes_with_it_and_the_host_comes_back() {
    let Some((hob, [fault, _])) = on_stand_in(&["--device", "cuda"]) else { return };
    goes_and_comes_back(hob, &fault, "tiny", "the driver failed");
}

#[test]
fn a_card_that_hangs_is_as_one_that_fails() {
    // Longer than any step takes there.
    let Some((hob, [_, hang])) = on_stand_in(&["--device", "cuda", "--card-patience", "5"]) else { return };
    goes_and_comes_back(hob, &hang, "tiny", "has not ended in 5 s");
}

#[test]
fn a_load_that_hangs_is_as_a_step_that_does() {
    // What is quantised comes to the card in blocks, of which a kernel makes planes.
    let args = ["--device", "cuda", "--card-patience", "5", "--quantize", "q8_0"];
    let Some((hob, [_, hang])) = on_stand_in(&args) else { return };
    goes_and_comes_back(hob, &hang, "other", "has not ended in 5 s");
}

/// Has the card's next kernel do as `file` says, which it `says` to who asked for `model`.
fn goes_and_comes_back(mut hob: Hob, file: &Path, model: &str, says: &str) {
    let (status, before) = complete(&hob);
    assert_eq!(status, 200, "{before}");
    std::fs::write(file, "").unwrap();
    let (status, said) = complete_with(&hob, model);
    assert!(matches!(status, 500 | 503) && said.contains(says), "{status} {said}");
    assert!(!file.exists());
    // The same process on the same listeners: who comes between waits, or is told to come again.
    for _ in 0..20 {
        assert!(matches!(get(&hob.url("/hello/")).0, 200 | 503), "{}", hob.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    hob.until("it is well again", || (get(&hob.url("/health")).0 == 200).then_some(()));
    let (status, after) = complete(&hob);
    assert_eq!((status, text(&after)), (200, text(&before)));
    hob.logged("a card has failed; hob starts again");
    assert!(hob.log().matches("Serving HTTP on").count() == 2, "{}", hob.log());
    assert_eq!(hob.client().functions().unwrap().len(), 1);
    assert!(hob.terminate(), "it is the process that was started: {}", hob.log());
}

#[test]
fn a_host_may_go_on_without_its_card() {
    let Some((hob, [fault, _])) = on_stand_in(&["--device", "cuda", "--on-card-fault", "stay"]) else { return };
    std::fs::write(&fault, "").unwrap();
    assert_eq!(complete(&hob).0, 500);
    let (status, said) = complete(&hob);
    assert!(status == 500 && said.contains("until it is started again"), "{status} {said}");
    let (status, said) = get(&hob.url("/health"));
    assert!(status == 503 && said.contains("device lost"), "{status} {said}");
    assert_eq!(get(&hob.url("/hello/")).0, 200);
}

#[test]
fn models_are_placed_on_all_cards_and_come_back() {
    // The stand-in's cards share one memory: without a bound the second would begin with what the first has left.
    let Some((hob, _)) = on_stand_in(&["--device", "cuda:all", "--copy-memory", "64MB", "--model-memory", "64MB"])
    else {
        return;
    };
    let answers = || MODELS.map(|(name, _)| complete_with(&hob, name));
    let first = answers();
    assert!(first.iter().all(|(status, _)| *status == 200), "{first:?}");
    let models = || hob.client().models().unwrap();
    let devices: BTreeSet<String> = models().into_iter().map(|model| model.device).collect();
    assert_eq!(devices, ["cuda:0".to_owned(), "cuda:1".to_owned()].into(), "each where most room is");
    for (name, _) in MODELS {
        hob.until("it can go", || hob.client().evict(&name.parse().unwrap()).ok());
    }
    assert!(models().is_empty(), "{:?}", models());
    let all = hob.client().all_models().unwrap();
    // Whether from copies or the page cache is not seen from here: the engine's own tests tell them apart.
    for (name, _) in MODELS {
        let gone = all.iter().find(|model| model.name == name).unwrap();
        assert_eq!((gone.state.as_str(), gone.tier), ("absent", Tier::HostMemory), "{gone:?}");
    }
    for ((_, before), (status, after)) in first.iter().zip(answers()) {
        assert_eq!((status, text(&after)), (200, text(before)));
    }
}

#[test]
fn the_benchmark_of_a_card_measures_every_row() {
    let Some(library) = cuda::stand_in(cuda::Flavour::Plain) else { return };
    let run = Command::new(env!("CARGO_BIN_EXE_hob-bench"))
        .args(["card", "small", "--json"])
        .env("LD_LIBRARY_PATH", library.parent().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let printed = String::from_utf8(run.stdout).unwrap();
    let rows: Vec<serde_json::Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in ["Q4_0", "Q4_K", "Q8_0", "F16"] {
        for what in
            ["load, file in page cache", "load from locked memory", "decode, 1 sequence", "decode, 32", "prefill, 40"]
        {
            let of = |row: &&serde_json::Value| row["name"].as_str().unwrap().starts_with(&format!("{name}: {what}"));
            let row = rows.iter().find(of).unwrap_or_else(|| panic!("{name}: {what} of {printed}"));
            assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
}
