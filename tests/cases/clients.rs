//! The clients that people have, as their makers publish them, against a server with a model.

use std::path::{Path, PathBuf};
use std::process::Command;

use hob_tests::{EMBEDDER, Hob, MODEL, REAL_EMBEDDER, ServeOptions, root, skipped};

/// Where `cargo xtask test` has put them; `None`, said loudly, where they cannot be had.
fn clients() -> Option<PathBuf> {
    let folder = root().join("target/clients");
    if folder.join("here").exists() {
        return Some(folder);
    }
    let why = std::fs::read_to_string(folder.join("skipped")).unwrap_or_else(|_| "run `cargo xtask test`".into());
    skipped(&format!("the clients of the model APIs are not here: {why}"));
    None
}

/// Runs a script, which says at its end that all is well.
fn run(mut command: Command, hob: &Hob) {
    // No proxy between programs of this machine.
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    // The small one gives numbers, too, but they mean nothing.
    let real = hob.ok(&["models", "list"]).contains(REAL_EMBEDDER);
    command.env("HOB_EMBEDDER", if real { REAL_EMBEDDER } else { EMBEDDER });
    let output = command.args([hob.url(""), MODEL.to_owned()]).output().expect("it can be started");
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim_end().ends_with(": ok"), "{command:?}:\n{said}{error}");
}

fn python(script: &str) {
    let Some(clients) = clients() else { return };
    let hob = Hob::with(ServeOptions { model: true, embedders: true, ..ServeOptions::default() });
    let mut command = Command::new(clients.join("py/bin/python3"));
    command.arg(root().join("tests/clients").join(script));
    run(command, &hob);
}

#[test]
fn openai_for_python() {
    python("with_openai.py");
}

#[test]
fn ollama_for_python() {
    python("with_ollama.py");
}

#[test]
fn anthropic_for_python() {
    python("with_anthropic.py");
}

#[test]
fn litellm_and_langchain() {
    python("with_litellm.py");
}

#[test]
fn schemathesis() {
    python("with_schemathesis.py");
}

#[test]
fn openai_and_ai_for_javascript() {
    let Some(clients) = clients() else { return };
    let hob = Hob::with(ServeOptions { model: true, embedders: true, ..ServeOptions::default() });
    // Beside the modules: that is where they are looked for.
    let script = clients.join("js/clients.mjs");
    std::fs::copy(root().join("tests/clients/clients.mjs"), &script).expect("the folder can be written");
    let path = std::fs::read_to_string(clients.join("path")).expect("it was written with them");
    let node = std::env::split_paths(&path).map(|folder| folder.join("node")).find(|node| Path::new(node).exists());
    let mut command = Command::new(node.expect("it is there"));
    command.arg(script);
    run(command, &hob);
}
