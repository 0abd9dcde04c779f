//! Any bytes as the header of a GGUF file: refused or read, never a panic, and no range beyond the file.
#![no_main]

use hob_gpu::ModelInfo;
use hob_gpu::format::gguf::Header;
use hob_gpu::model::config::Config;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let Ok(header) = Header::parse(file) else { return };
    assert!(header.tensors.values().all(|tensor| tensor.bytes.end <= file.len()));
    let _ = ModelInfo::read(&header);
    let _ = Config::read(&header);
});
