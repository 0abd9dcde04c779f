//! Any bytes as a GGUF file: refused or read, never a panic, and no range beyond the file.
#![no_main]

use hob_gpu::ModelInfo;
use hob_gpu::format::gguf::Header;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    if let Ok(header) = Header::parse(file) {
        assert!(header.tensors.values().all(|tensor| tensor.bytes.end <= file.len()));
        let _ = ModelInfo::read(&header);
    }
});
