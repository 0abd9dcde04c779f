//! Cards, where the machine has none, or not the one that was asked for.

use hob_tests::{hob, refused};
use tempfile::TempDir;

#[test]
fn a_device_that_cannot_be_had_is_a_sentence_and_never_the_processor() {
    let home = TempDir::new().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/arch/llama.gguf");
    let output = hob(home.path(), &["run", model, "hello", "--raw", "--device", "cuda:77"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot start on cuda:77"), "{said}");
    assert!(said.contains("no NVIDIA driver is here") || said.contains("there is no card 77"), "{said}");
    assert!(output.stdout.is_empty(), "the processor has not answered in its place");
    let said = refused(home.path(), &["run", model, "hello", "--raw", "--device", "gpu"]);
    assert!(said.contains("give cpu, cuda or cuda:1"), "{said}");
}
