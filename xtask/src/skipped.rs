//! What could not be tested on this machine, gathered while `cargo xtask test` runs and shown at its end: what tests that
//! succeed print is not shown.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Names the list to tests.
pub const VARIABLE: &str = "HOB_TEST_SKIPPED";

/// Where the list is: a line for each reason.
pub fn list(root: &Path) -> PathBuf {
    root.join("target/skipped")
}

/// Begins an empty list.
///
/// # Errors
/// What the system said.
pub fn begin(root: &Path) -> std::io::Result<()> {
    fs::create_dir_all(root.join("target"))?;
    fs::write(list(root), "")
}

/// All that is on the list.
pub fn noted(root: &Path) -> String {
    fs::read_to_string(list(root)).unwrap_or_default()
}

/// Adds to the list, and says it now, too.
///
/// # Errors
/// What the system said.
pub fn note(root: &Path, why: &str) -> std::io::Result<()> {
    println!("SKIPPED: {why}");
    again(root, why)
}

/// Adds to the list.
///
/// # Errors
/// What the system said.
pub fn again(root: &Path, why: &str) -> std::io::Result<()> {
    fs::create_dir_all(root.join("target"))?;
    let mut file = File::options().append(true).create(true).open(list(root))?;
    file.write_all(format!("{}\n", why.replace('\n', " ")).as_bytes())
}

/// Shows the list, each reason once. How many there are.
pub fn show(root: &Path) -> usize {
    let text = noted(root);
    let reasons = reasons(&text);
    reasons.iter().for_each(|why| println!("!! SKIPPED: {why}"));
    reasons.len()
}

fn reasons(text: &str) -> Vec<&str> {
    let mut reasons = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !reasons.contains(&line) {
            reasons.push(line);
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_is_told_once_each() {
        let root = tempfile();
        begin(&root).unwrap();
        for why in ["no python3", "no\ncompiler", "no python3"] {
            note(&root, why).unwrap();
        }
        assert_eq!(reasons(&fs::read_to_string(list(&root)).unwrap()), ["no python3", "no compiler"]);
        assert_eq!(show(&root), 2);
        begin(&root).unwrap();
        assert_eq!(show(&root), 0);
        fs::remove_dir_all(root).unwrap();
    }

    fn tempfile() -> PathBuf {
        std::env::temp_dir().join(format!("xtask-skipped-{}", std::process::id()))
    }
}
