//! Builds the examples and test guests: `target/guests/out/<package>.wasm`.
//!
//! They become components, unless a package asks for the core modules of old: `target = "wasm32-wasip1"` under
//! `[package.metadata.hob]`. The compiler needs the targets. Where rustup has it, or can get it, that is all. Where it cannot,
//! Debian's packages give a second compiler with the standard library's source, linked by the tools that come with
//! the first. What that takes is set for this one cargo, never for a build of the host.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// What guests are built for: components, and core modules.
const TARGETS: [&str; 2] = ["wasm32-wasip2", "wasm32-wasip1"];

/// How long rustup may take to bring a target, about 30 MB.
const RUSTUP_MOST: Duration = Duration::from_secs(120);

/// Folders with guests.
const FOLDERS: [&str; 2] = ["examples", "tests/guests"];

/// A package of a guest.
struct Guest {
    name: String,
    /// One of [`TARGETS`].
    target: String,
}

/// Where guests are, named after their packages.
pub fn out(root: &Path) -> PathBuf {
    root.join("target/guests/out")
}

/// Builds every guest that is not up to date.
///
/// # Errors
/// No compiler for a target and no way to get one, or a guest that does not build.
pub fn build(root: &Path) -> Result<()> {
    let guests = packages(root)?;
    let target_dir = root.join("target/guests");
    let toolchain = Toolchain::find()?;
    for target in TARGETS {
        let mut cargo = toolchain.cargo()?;
        cargo.current_dir(root).args(["build", "--profile", "guest", "--target", target, "--target-dir"]);
        cargo.arg(&target_dir);
        for guest in guests.iter().filter(|guest| guest.target == target) {
            cargo.args(["--package", &guest.name]);
        }
        let status = cargo.status().context("starting cargo")?;
        ensure!(status.success(), "the guests do not build; the compiler's message is above");
    }
    collect(&guests, &target_dir, &out(root))
}

/// The guests under [`FOLDERS`].
fn packages(root: &Path) -> Result<Vec<Guest>> {
    let metadata = output(command("cargo").current_dir(root).args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("reading cargo's metadata")?;
    let is_guest = |package: &&serde_json::Value| {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        // An example that embeds the host is no guest.
        let is_library = package["targets"][0]["crate_types"][0] == "cdylib";
        let is_command = package["metadata"]["hob"]["target"].is_string();
        (is_library || is_command) && FOLDERS.iter().any(|folder| manifest.starts_with(root.join(folder)))
    };
    let packages = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    let guest = |package: &serde_json::Value| {
        let name = package["name"].as_str().context("a package has no name")?.to_owned();
        let target = package["metadata"]["hob"]["target"].as_str().unwrap_or(TARGETS[0]).to_owned();
        ensure!(TARGETS.contains(&target.as_str()), "{name} is for {target}; guests are for {}", TARGETS.join(", "));
        Ok(Guest { name, target })
    };
    packages.iter().filter(is_guest).map(guest).collect()
}

/// Copies the guests to where they are documented to be. Those that are gone are removed.
fn collect(guests: &[Guest], target_dir: &Path, out: &Path) -> Result<()> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("clearing {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    for guest in guests {
        let built = target_dir.join(&guest.target).join("guest");
        // A library's file has its crate's name, a program's its own.
        let library = built.join(guest.name.replace('-', "_")).with_extension("wasm");
        let program = built.join(&guest.name).with_extension("wasm");
        let from = if library.exists() { library } else { program };
        let to = out.join(&guest.name).with_extension("wasm");
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
    }
    println!("guests: {} in {}", guests.len(), out.display());
    Ok(())
}

/// A compiler for [`TARGETS`].
enum Toolchain {
    /// The usual one has the targets.
    Usual,
    /// Debian's, with the standard library built from source.
    Debian(Debian),
}

impl Toolchain {
    // installed -> added by rustup -> Debian's, installed -> Debian's, added by apt-get -> none
    fn find() -> Result<Self> {
        if TARGETS.iter().all(|target| target_installed(target) || target_added(target)) {
            return Ok(Self::Usual);
        }
        if let Some(debian) = Debian::find().or_else(Debian::install) {
            println!("guests: rustup cannot get {} here; using Debian's {}", TARGETS.join(" "), debian.rustc.display());
            return Ok(Self::Debian(debian));
        }
        let targets = TARGETS.join(" ");
        bail!(
            "no compiler for {targets}: run `rustup target add {targets}` with a network that reaches rustup's server, \
             or on Debian, as root, `apt-get update && apt-get install {}`",
            Debian::PACKAGES.join(" ")
        )
    }

    fn cargo(&self) -> Result<Command> {
        match self {
            Self::Usual => Ok(command("cargo")),
            Self::Debian(debian) => debian.cargo(),
        }
    }
}

fn target_installed(target: &str) -> bool {
    let libraries = output(command("rustc").args(["--print", "target-libdir", "--target", target]));
    libraries.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

/// Asks rustup for a target; quiet and bounded, since there is another way.
fn target_added(target: &str) -> bool {
    let mut rustup = command("rustup");
    rustup.env("RUSTUP_MAX_RETRIES", "0").args(["target", "add", target]).stdout(Stdio::null()).stderr(Stdio::null());
    let added = rustup.spawn().is_ok_and(|child| succeeds_within(child, RUSTUP_MOST)) && target_installed(target);
    if added {
        println!("guests: rustup added {target}");
    }
    added
}

/// Waits for a process, and ends it when its time is up: a network that swallows packets would hold us for minutes.
fn succeeds_within(mut child: Child, most: Duration) -> bool {
    let deadline = Instant::now() + most;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// Debian's compiler, and what it borrows to link components.
struct Debian {
    rustc: PathBuf,
    cargo: PathBuf,
    libc: PathBuf,
    /// Folders with `wasm-component-ld` and `rust-lld`, and with the `wasm-ld` that the first calls.
    linkers: [PathBuf; 2],
}

impl Debian {
    const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "wasi-libc"];

    /// The pieces, if all of them are here.
    fn find() -> Option<Self> {
        let rustc = PathBuf::from("/usr/bin/rustc");
        let source = sysroot(&rustc)?.join("lib/rustlib/src/rust/library/std");
        let sysroot = sysroot(Path::new("rustc"))?;
        let bin = sysroot.join("lib/rustlib").join(host()?).join("bin");
        let (cargo, libc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/lib/wasm32-wasi"));
        let linkers = [bin.clone(), bin.join("gcc-ld")];
        let needed = [
            &cargo,
            &source,
            &libc.join("crt1-reactor.o"),
            &libc.join("crt1-command.o"),
            &linkers[0].join("wasm-component-ld"),
            &linkers[1].join("wasm-ld"),
            &linkers[0].join("rust-lld"),
        ];
        needed.iter().all(|piece| piece.exists()).then_some(Self { rustc, cargo, libc, linkers })
    }

    /// Installs the packages where we are root, and looks again.
    fn install() -> Option<Self> {
        let root = output(command("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
        if !root || !Path::new("/usr/bin/apt-get").exists() {
            return None;
        }
        println!("guests: installing {} with apt-get", Self::PACKAGES.join(" "));
        let apt_get = |arguments: &[&str]| {
            let mut apt_get = command("apt-get");
            apt_get.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq").args(arguments).stdout(Stdio::null());
            apt_get.status().is_ok_and(|status| status.success())
        };
        apt_get(&["update"]);
        apt_get(&[&["install", "-y", "--no-install-recommends"], &Self::PACKAGES[..]].concat());
        Self::find()
    }

    fn cargo(&self) -> Result<Command> {
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(self.linkers.iter().cloned().chain(env::split_paths(&path)))?;
        let libc = self.libc.display();
        let flags = |start| format!("-Clink-self-contained=no -L{libc} -Clink-arg={libc}/{start}");
        let mut cargo = command(&self.cargo);
        cargo
            // `-Zbuild-std` is not stable.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTC", &self.rustc)
            .env("PATH", path)
            .env("CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS", flags("crt1-reactor.o"))
            .env("CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS", flags("crt1-command.o"))
            // The compiler says which kind of linker it wants, which `wasm-ld` beside it does not understand.
            .env("CARGO_TARGET_WASM32_WASIP1_LINKER", self.linkers[0].join("rust-lld"))
            .arg("-Zbuild-std=std,panic_abort");
        Ok(cargo)
    }
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let folder = output(command(rustc).args(["--print", "sysroot"])).ok()?;
    Some(PathBuf::from(folder.trim()))
}

/// The target of this machine, such as `x86_64-unknown-linux-gnu`.
fn host() -> Option<String> {
    let version = output(command("rustc").arg("-vV")).ok()?;
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

/// A command without what the cargo that runs us has set for itself.
fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    let of_cargo = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_cargo)) {
        command.env_remove(name);
    }
    for name in
        ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "LD_LIBRARY_PATH"]
    {
        command.env_remove(name);
    }
    command
}

/// What a command prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
