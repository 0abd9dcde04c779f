//! Runs tests, but for the programs that passed before and of which nothing has changed since.
//!
//! Most of what `cargo xtask test` takes, once all is built, is tests of packages that a change does not touch. So what a program
//! depended on when it passed is kept, as a number in `target/passed`: the program itself, the files that it reads, what it starts, the
//! models that are here, the processor, and the variables that steer tests.

use crate::skipped;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages whose tests start nothing and read only these folders; others may read anything that is committed.
const ALONE: [&str; 3] = ["hob-gpu", "hob-sdk", "hob-sdk-macros"];
const READ_BY_THEM: [&str; 2] = ["tests/golden", "host-gpu/kernels"];

/// A program with tests, or the examples in the documentation of all libraries.
#[derive(Debug, PartialEq)]
struct Program {
    /// Its package, and what it is there.
    package: String,
    name: String,
    /// The program; or the libraries.
    files: Vec<PathBuf>,
    /// The package's folder, where it runs; the documentation's has none.
    folder: Option<PathBuf>,
}

/// Builds the tests of `packages` with `cargo`, and runs those that must be; all of them, if `all`. `data` is where models are.
///
/// # Errors
/// They do not compile, or some fail.
pub fn run(root: &Path, cargo: &dyn Fn() -> Command, packages: &[&str], (data, all): (&Path, bool)) -> Result<()> {
    let mut build = cargo();
    build.args(["test", "--release", "--no-run", "--message-format=json-render-diagnostics"]).args(packages);
    let output = build.stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "the tests do not compile; the compiler's messages are above");
    let programs = programs(&String::from_utf8_lossy(&output.stdout));
    let kept = root.join("target/passed");
    fs::create_dir_all(&kept)?;
    let inputs = Inputs::new(root, data)?;
    let mut before = 0;
    for program in &programs {
        let now = format!("{:016x}", inputs.of(program)?);
        let note = kept.join(format!("{}-{}", program.package, program.name));
        let then = fs::read_to_string(&note).unwrap_or_default();
        let (then, reasons) = then.split_once('\n').unwrap_or((&then, ""));
        if !all && then == now {
            before += 1;
            reasons.lines().try_for_each(|why| skipped::again(root, why))?;
            continue;
        }
        let known = skipped::noted(root);
        let _ = fs::remove_file(&note);
        program.run(root, cargo, packages, data)?;
        let reasons = skipped::noted(root).split_off(known.len());
        fs::write(&note, format!("{now}\n{reasons}"))?;
    }
    if before > 0 {
        let of = programs.len();
        println!(
            "{before} of {of} programs passed before, and nothing that they depend on has changed; `cargo xtask test --all` runs them, too"
        );
    }
    Ok(())
}

impl Program {
    fn run(&self, root: &Path, cargo: &dyn Fn() -> Command, packages: &[&str], data: &Path) -> Result<()> {
        println!("-- {} {}", self.package, self.name);
        let mut run = match (&self.folder, &self.files[..]) {
            (Some(folder), [file]) => {
                let mut run = Command::new(file);
                run.current_dir(folder).env("CARGO_MANIFEST_DIR", folder);
                run
            }
            _ => {
                let mut run = cargo();
                run.args(["test", "--release", "--doc", "--quiet"]).args(packages);
                run
            }
        };
        let status = run.env("HOB_TEST_DATA", data).env(skipped::VARIABLE, skipped::list(root)).status();
        let status = status.with_context(|| format!("{} {} cannot be started", self.package, self.name))?;
        if !status.success() {
            bail!("tests of {}, {}, failed ({status}); what went wrong is above", self.package, self.name);
        }
        Ok(())
    }
}

/// What cargo says that it has built: programs in its order, then the documentation of libraries.
fn programs(messages: &str) -> Vec<Program> {
    let (mut programs, mut libraries) = (Vec::new(), Vec::new());
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(manifest), Some(name)) = (message["manifest_path"].as_str(), message["target"]["name"].as_str())
        else {
            continue;
        };
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        // `path+file:///hob/runtime#hob@0.1.0`, or without a name where that is the folder's.
        let id = message["package_id"].as_str().unwrap_or_default();
        let folder = Path::new(manifest).parent().unwrap_or(Path::new("/")).to_owned();
        let last = id.rsplit(['#', '/']).next().unwrap_or_default().split('@').next().unwrap_or_default();
        let package = match last.starts_with(|c: char| c.is_ascii_digit()) {
            true => folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            false => last.to_owned(),
        };
        match message["executable"].as_str() {
            Some(file) if message["profile"]["test"] == true => {
                let (name, files) = (format!("{kind}-{name}"), vec![PathBuf::from(file)]);
                programs.push(Program { package, name, files, folder: Some(folder) });
            }
            None if kind == "lib" && id.starts_with("path+file") => {
                libraries.extend(message["filenames"][0].as_str().map(PathBuf::from));
            }
            _ => {}
        }
    }
    libraries.sort();
    let (package, name) = ("all".into(), "documentation".into());
    programs.push(Program { package, name, files: libraries, folder: None });
    programs
}

/// What programs depend on but for themselves.
struct Inputs {
    /// For those of [`ALONE`].
    few: u64,
    /// For the others.
    all: u64,
}

impl Inputs {
    fn new(root: &Path, data: &Path) -> Result<Self> {
        let mut few = DefaultHasher::new();
        let steers = |name: &str| (name.starts_with("HOB_") && name != skipped::VARIABLE) || name == "CXX";
        let mut variables: Vec<_> = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(steers)).collect();
        variables.sort();
        variables.hash(&mut few);
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        processor.lines().find(|line| line.starts_with("flags")).hash(&mut few);
        sizes(&data.join("models"), &mut few)?;
        let mut all = few.clone();
        for folder in READ_BY_THEM {
            contents(&root.join(folder), &mut few)?;
        }
        let committed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
        // Without git nothing is known about the files, and nothing that reads them passes for good.
        match committed.ok().filter(|output| output.status.success()) {
            None => std::time::SystemTime::now().hash(&mut all),
            Some(output) => {
                // What is Rust is in the programs.
                let files = output.stdout.split(|byte| *byte == 0).map(String::from_utf8_lossy);
                for file in files.filter(|file| !file.is_empty() && !file.ends_with(".rs")) {
                    (&file, fs::read(root.join(&*file)).ok()).hash(&mut all);
                }
            }
        }
        contents(&root.join("target/guests/out"), &mut all)?;
        for program in ["hob", "hob-bench"] {
            stamp(&root.join("target/release").join(program)).hash(&mut all);
        }
        Ok(Self { few: few.finish(), all: all.finish() })
    }

    fn of(&self, program: &Program) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        let inputs = if ALONE.contains(&program.package.as_str()) { self.few } else { self.all };
        // Cargo writes a program anew when anything in it has changed.
        let stamps: Vec<_> = program.files.iter().map(|file| (file, stamp(file))).collect();
        (inputs, stamps).hash(&mut hasher);
        Ok(hasher.finish())
    }
}

/// When a file was written, and how long it is.
fn stamp(file: &Path) -> Option<(std::time::SystemTime, u64)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Names and sizes of the files below a folder: they are named after what is in them.
fn sizes(folder: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    each(folder, &mut |path, len| {
        (path, len).hash(hasher);
        Ok(())
    })
}

/// Names and contents of the files below a folder.
fn contents(folder: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    each(folder, &mut |path, _| {
        (path, fs::read(path).with_context(|| format!("reading {}", path.display()))?).hash(hasher);
        Ok(())
    })
}

fn each(folder: &Path, see: &mut dyn FnMut(&Path, u64) -> Result<()>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_dir() { each(&path, see)? } else { see(&path, metadata.len())? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_what_cargo_says() {
        let messages = r#"{"reason":"compiler-artifact","package_id":"registry+https://x#serde@1.0.0","manifest_path":"/r/serde/Cargo.toml","target":{"kind":["lib"],"name":"serde"},"profile":{"test":false},"filenames":["/t/libserde.rlib"],"executable":null}
{"reason":"compiler-artifact","package_id":"path+file:///hob/host-gpu#hob-gpu@0.1.0","manifest_path":"/hob/host-gpu/Cargo.toml","target":{"kind":["lib"],"name":"hob_gpu"},"profile":{"test":false},"filenames":["/t/libhob_gpu.rlib"],"executable":null}
{"reason":"compiler-artifact","package_id":"path+file:///hob/xtask#0.1.0","manifest_path":"/hob/xtask/Cargo.toml","target":{"kind":["bin"],"name":"xtask"},"profile":{"test":false},"filenames":["/t/xtask"],"executable":"/t/xtask"}
{"reason":"compiler-artifact","package_id":"path+file:///hob/xtask#0.1.0","manifest_path":"/hob/xtask/Cargo.toml","target":{"kind":["bin"],"name":"xtask"},"profile":{"test":true},"filenames":["/t/xtask-1"],"executable":"/t/xtask-1"}
{"reason":"build-finished","success":true}"#;
        let program = |package: &str, name: &str, file: &str, folder: Option<&str>| Program {
            package: package.into(),
            name: name.into(),
            files: vec![file.into()],
            folder: folder.map(PathBuf::from),
        };
        let wanted = [
            program("xtask", "bin-xtask", "/t/xtask-1", Some("/hob/xtask")),
            program("all", "documentation", "/t/libhob_gpu.rlib", None),
        ];
        assert_eq!(programs(messages), wanted);
    }

    #[test]
    fn any_change_of_what_a_program_depends_on_is_another_number() {
        let home = std::env::temp_dir().join(format!("xtask-passed-{}", std::process::id()));
        let (golden, out) = (home.join("tests/golden/deep"), home.join("target/guests/out"));
        fs::create_dir_all(&golden).unwrap();
        fs::create_dir_all(&out).unwrap();
        let program = |package: &str| Program {
            package: package.into(),
            name: "test-a".into(),
            files: vec![home.join("program")],
            folder: Some(home.clone()),
        };
        let numbers = || {
            let inputs = Inputs { all: 0, ..Inputs::new(&home, &home.join("data")).unwrap() };
            let mut guests = DefaultHasher::new();
            contents(&out, &mut guests).unwrap();
            (inputs.of(&program("hob-gpu")).unwrap(), guests.finish())
        };
        let first = numbers();
        assert_eq!(numbers(), first);
        fs::write(golden.join("x.json"), "1").unwrap();
        let second = numbers();
        assert!(second.0 != first.0 && second.1 == first.1);
        fs::write(golden.join("x.json"), "2").unwrap();
        assert_ne!(numbers().0, second.0);
        fs::write(out.join("a.wasm"), "2").unwrap();
        assert_ne!(numbers().1, second.1);
        let before = numbers();
        fs::write(home.join("program"), "built anew").unwrap();
        assert_ne!(numbers().0, before.0);
        fs::remove_dir_all(home).unwrap();
    }
}
