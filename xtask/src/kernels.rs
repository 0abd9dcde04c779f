//! Makes the PTX of the card's kernels with NVIDIA's compiler, or checks that what is committed is what it makes of them.
//!
//! The compiler comes from PyPI, at the versions and digests that `host-gpu/kernels/requirements.txt` pins, into `target/guests/tools`; no
//! GPU, driver or toolkit is needed. Where it cannot be had, the check is skipped, and says so. A check that passed is not
//! made again until a file changes.

use crate::scripts::{Missing, Tools};
use crate::skipped;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::process::Command;

/// Where the kernels are.
const FOLDER: &str = "host-gpu/kernels";

/// Checks `ptx/` and `registers.md`, or renews them.
///
/// # Errors
/// They are not what the compiler makes of the sources; a kernel does not compile, or spills.
pub fn run(root: &Path, write: bool) -> Result<()> {
    let named = std::env::var("CXX").ok();
    let here = |name: &str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    if !named.as_deref().into_iter().chain(["g++", "clang++"]).any(here) {
        skipped::note(root, "the card's kernels on the stand-in: there is no C++ compiler (g++ or clang++)")?;
    }
    let folder = root.join(FOLDER);
    let passed = root.join("target/kernels.passed");
    let now = format!("{:016x}", digest(&folder)?);
    if !write && fs::read_to_string(&passed).is_ok_and(|then| then == now) {
        println!("kernels: nothing has changed since they were checked");
        return Ok(());
    }
    let requirements = folder.join("requirements.txt").to_string_lossy().into_owned();
    let tools = match Tools::new(root)
        .environment("cuda", &["--no-deps", "--require-hashes", "--requirement", &requirements])
    {
        Ok(tools) => tools,
        Err(error) if error.is::<Missing>() && !write => {
            skipped::note(root, &format!("the PTX of the card's kernels is not checked: {error:#}"))?;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut make = Command::new(tools.join("python3"));
    make.arg(folder.join("ptx.py")).args(write.then_some("--write"));
    let status = make.status().with_context(|| format!("starting {}", make.get_program().display()))?;
    ensure!(status.success(), "the kernels are not in order; what is wrong is above");
    fs::write(passed, format!("{:016x}", digest(&folder)?))?;
    Ok(())
}

/// Names all that the check looks at.
fn digest(folder: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for part in ["", "ptx"] {
        let mut files: Vec<_> = fs::read_dir(folder.join(part))?.collect::<std::io::Result<_>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files.iter().filter(|file| file.path().is_file()) {
            (file.file_name(), fs::read(file.path())?).hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}
