//! Whether the shim that runs kernels on a processor can be relied upon: it finds bugs that were planted, and its tensor cores have
//! the operands where the hardware has them.

use crate::support::cuda::{compile, compiler, kernels};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A program of `kernels/sim`, built with `flags`; `None` where there is no compiler, or it cannot do that.
fn program(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let compiler = compiler()?;
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sim-{name}{}", flags.concat()));
    let mut command = compile(&compiler);
    command
        .args(flags)
        .arg("-O1")
        .arg(kernels().join(format!("sim/{name}.cpp")))
        .arg("-lpthread")
        .arg("-o")
        .arg(&built);
    command.status().expect("the compiler starts").success().then_some(built)
}

pub fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

/// (number, what the shim alone says, what the address and undefined-behaviour sanitizers say, what the one for threads says); empty where that
/// is not what finds it.
const BUGS: &[(u32, &str, &str, &str)] = &[
    (0, "nothing", "nothing", "nothing"),
    (1, "wrong result", "wrong result", "data race"),
    (2, "", "AddressSanitizer: heap-buffer-overflow", ""),
    (3, "", "AddressSanitizer: heap-buffer-overflow", ""),
    (4, "wrong result", "wrong result", ""),
    (5, "divergent __syncthreads", "divergent __syncthreads", ""),
    (6, "not in the mask or has exited", "not in the mask or has exited", ""),
    (7, "launch error", "launch error", ""),
    (8, "wrong result", "wrong result", ""),
    (9, "", "misaligned address", ""),
    (10, "", "", "data race"),
    (11, "", "", "data race"),
    (12, "nothing", "nothing", "nothing"),
    (13, "", "", "data race"),
    (14, "deadlock", "deadlock", ""),
    (15, "signal", "", ""),
    (16, "less than a full warp", "less than a full warp", ""),
    (17, "never waited for", "never waited for", ""),
];

#[test]
fn planted_bugs_are_found() {
    if compiler().is_none() {
        println!("SKIPPED: no C++ compiler");
        return;
    }
    let flavours: [&[&str]; 3] = [&[], &["-fsanitize=address,undefined"], &["-fsanitize=thread"]];
    for (n, flags) in flavours.into_iter().enumerate() {
        let Some(built) = program("bugs", flags) else {
            println!("SKIPPED: the compiler has no {flags:?}");
            continue;
        };
        for (number, plain, address, thread) in BUGS {
            let wanted = [plain, address, thread][n];
            if wanted.is_empty() {
                continue;
            }
            let output = Command::new(&built).arg(number.to_string()).env("ASAN_OPTIONS", "detect_leaks=0").output();
            let output = output.expect("it starts");
            let mut said = said(&output);
            if output.status.code().is_none() {
                said += "signal";
            }
            assert!(said.contains(wanted), "bug {number} with {flags:?}: `{wanted}` is not in\n{said}");
            if *wanted == "nothing" {
                assert!(output.status.success(), "{number} with {flags:?}: {said}");
            }
        }
    }
}

#[test]
fn operands_lie_where_the_hardware_has_them() {
    let Some(built) = program("layout", &[]) else { return };
    let output = Command::new(built).output().expect("it starts");
    assert!(output.status.success(), "{}", said(&output));
}

/// What processes have that [`super::again`] starts.
pub const AGAIN: &str = "HOB_KERNELS_AGAIN";

/// Whether this process is one of these.
pub fn again() -> bool {
    std::env::var_os(AGAIN).is_some()
}
