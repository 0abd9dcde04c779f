//! A stand-in for NVIDIA's driver: a `libcuda.so` whose kernels are ours, compiled for the processor with `kernels/sim/cusim.h`.
//!
//! It is built by whoever needs it first, with the machine's C++ compiler, and kept by the digest of its sources. Where there is no compiler,
//! tests of the card's kernels say so, loudly, and check nothing.

#![allow(clippy::print_stdout)] // what was skipped

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

/// How it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// As it is.
    Plain,
    /// With the sanitizers for addresses and undefined behaviour.
    Sanitized,
}

impl Flavour {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-O2"],
            Self::Sanitized => &["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
        }
    }
}

pub fn kernels() -> PathBuf {
    // Tests of other packages use this, too.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../host-gpu/kernels")
}

/// The machine's C++ compiler.
pub fn compiler() -> Option<String> {
    let named = env::var("CXX").ok().into_iter().chain(["g++".to_owned(), "clang++".to_owned()]);
    named.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()))
}

/// What every compilation has.
pub fn compile(compiler: &str) -> Command {
    let mut command = Command::new(compiler);
    let (kernels, sim) = (kernels(), kernels().join("sim"));
    command.args(["-std=c++17", "-g1", "-fPIC", "-DCUSIM", "-w"]).arg("-I").arg(kernels).arg("-I").arg(sim);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("f16c") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
        command.arg("-march=x86-64-v3");
    }
    command
}

/// The sources of kernels, by name.
fn sources() -> Vec<PathBuf> {
    let files = fs::read_dir(kernels()).expect("the kernels are in the repository");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "cu"));
    files.sort();
    files
}

/// The stand-in, built if need be; `None`, and a line that says so, without a compiler.
#[expect(clippy::print_stderr, reason = "a test that is left out says so")]
pub fn stand_in(flavour: Flavour) -> Option<PathBuf> {
    let Some(compiler) = compiler() else {
        eprintln!(
            "SKIPPED: the card's kernels are not tested, since there is no C++ compiler (g++ or clang++); install one"
        );
        return None;
    };
    let mut hasher = DefaultHasher::new();
    (flavour.flags(), &compiler).hash(&mut hasher);
    let mut inputs = sources();
    for folder in [kernels(), kernels().join("sim")] {
        let more =
            fs::read_dir(folder).expect("the kernels are in the repository").map(|file| file.expect("a file").path());
        inputs
            .extend(more.filter(|path| path.extension().is_some_and(|end| end == "cuh" || end == "h" || end == "cpp")));
    }
    inputs.sort();
    inputs.iter().for_each(|path| fs::read(path).expect("a source").hash(&mut hasher));
    let name = format!("stand-in-{flavour:?}-{:016x}", hasher.finish());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let library = folder.join("libcuda.so");
    // Tests of one process build it in one place.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if !library.exists() {
        build(&compiler, flavour, &folder, &library);
    }
    Some(library)
}

fn build(compiler: &str, flavour: Flavour, folder: &Path, library: &Path) {
    let part = folder.with_extension(format!("{}", std::process::id()));
    fs::create_dir_all(&part).expect("the target folder can be written");
    let sources = sources();
    let mut table = String::from("#include \"cusim.h\"\n");
    let mut rows = String::new();
    for source in &sources {
        for line in fs::read_to_string(source).expect("a source").lines() {
            exported(source, line).iter().for_each(|name| {
                table += &format!("extern \"C\" cusim::Desc cusim_desc_{name}();\n");
                rows += &format!("    cusim_desc_{name}(),\n");
            });
        }
    }
    table += &format!(
        "const cusim::Desc* cusim_find(const char* name) {{\n  static const cusim::Desc all[] = {{\n{rows}  }};\n  \
         for (auto& d : all) if (!strcmp(d.name, name)) return &d;\n  return nullptr;\n}}\n"
    );
    let names = part.join("table.cpp");
    fs::write(&names, table).expect("the target folder can be written");
    let mut work: Vec<PathBuf> = sources;
    work.extend([names, kernels().join("sim/driver.cpp")]);
    let (work, objects) = (Mutex::new(work), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(source) = { work.lock().expect("no panic").pop() } {
                    let object = part.join(source.file_name().expect("a name")).with_extension("o");
                    let mut command = compile(compiler);
                    command.args(flavour.flags()).args(["-x", "c++", "-c"]).arg(&source).arg("-o").arg(&object);
                    assert!(command.status().expect("the compiler starts").success(), "{} compiles", source.display());
                    objects.lock().expect("no panic").push(object);
                }
            });
        }
    });
    let mut link = compile(compiler);
    // Its name in the library is the first that is looked for: once it is loaded, it is the driver.
    link.args(flavour.flags()).args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,-Bsymbolic"]);
    link.args(&*objects.lock().expect("no panic")).arg("-lpthread").arg("-o").arg(part.join("libcuda.so"));
    assert!(link.status().expect("the compiler starts").success(), "the stand-in links");
    // Another process may have been faster.
    let _ = fs::rename(&part, folder);
    assert!(library.exists(), "the stand-in is built");
}

/// The kernels that a line of a source names: those of HOB_TYPE come by its own macro.
fn exported(source: &Path, line: &str) -> Vec<String> {
    if let Some(name) = line.strip_prefix("HOB_EXPORT(") {
        return vec![name.trim_end_matches(')').to_owned()];
    }
    let stem = source.file_stem().expect("a name").to_str().expect("ASCII");
    match line.starts_with("HOB_TYPE(") || line.starts_with("HOB_FLOAT_TYPE(") {
        true => ["matvec1", "matvec2", "matvec4", "matvec8", "matmul", "embed"].map(|f| format!("{f}_{stem}")).to_vec(),
        false => Vec::new(),
    }
}
