//! Lists the programs in `guests/`, so that a guest without a case does not compile.

use std::fmt::Write as _;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=guests");
    let mut names: Vec<_> = std::fs::read_dir("guests")
        .expect("the folder of guests is beside this file")
        .map(|entry| entry.expect("it can be listed").file_name().into_string().expect("guests have plain names"))
        .collect();
    names.sort();
    let mut text = String::new();
    for name in names {
        // A case is a test of the guest's name in `cases/guests.rs`.
        let _ = writeln!(text, "const _: fn() = crate::guests::{};", name.replace('-', "_"));
    }
    let out = std::env::var_os("OUT_DIR").expect("cargo sets it");
    std::fs::write(Path::new(&out).join("guests.rs"), text).expect("cargo's folder can be written");
}
