//! All of these tests again, under sanitizers and with threads in other orders. It takes longest, and by its name it begins first.

use super::shim;
use super::support::cuda::{Flavour, compiler, stand_in};
use std::process::{Command, Stdio};

#[test]
fn kernels_hold_under_sanitizers_and_in_any_order() {
    if shim::again() || std::env::var_os("HOB_TEST_GPU").is_some() {
        return;
    }
    let Some(compiler) = compiler() else { return };
    let start = |(flavour, seed)| {
        let library = stand_in(flavour)?;
        let mut again = Command::new(std::env::current_exe().expect("a test is a program"));
        again
            .env(shim::AGAIN, "1")
            .env("HOB_STAND_IN", &library)
            .env("CUSIM_SEED", seed)
            .args(["--skip", "shim::", "--skip", "again::"]);
        if flavour == Flavour::Sanitized {
            // The sanitizer must be there before anything else is.
            let find =
                Command::new(&compiler).arg("-print-file-name=libasan.so").output().expect("the compiler starts");
            again.env("LD_PRELOAD", String::from_utf8_lossy(&find.stdout).trim());
            again.env("ASAN_OPTIONS", "detect_leaks=0").env("UBSAN_OPTIONS", "print_stacktrace=1");
        }
        let child = again.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        Some((format!("{flavour:?} with seed {seed}"), child))
    };
    // Each keeps one core busy.
    let all = [(Flavour::Sanitized, "0"), (Flavour::Plain, "1"), (Flavour::Plain, "2")].map(start);
    for (name, child) in all.into_iter().flatten() {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{name}:\n{}", shim::said(&output));
    }
}
