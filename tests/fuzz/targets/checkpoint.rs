//! Any bytes as the header of a safetensors file, as its index and as a `config.json`; the first byte says which.
#![no_main]

use hob_gpu::format::safetensors;
use hob_gpu::model::checkpoint;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else { return };
    match which % 4 {
        0 => {
            let Ok(tensors) = safetensors::parse(bytes) else { return };
            let mut ranges: Vec<_> = tensors.values().map(|tensor| tensor.bytes.clone()).collect();
            ranges.sort_by_key(|range| (range.start, range.end));
            assert!(ranges.iter().all(|range| range.end <= bytes.len()));
            assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "no byte is two tensors'");
        }
        1 => drop(safetensors::parse_index(bytes)),
        // Most bytes: there is most to read.
        _ => {
            let Ok(config) = checkpoint::parse_config(bytes) else { return };
            assert!(config.heads.is_multiple_of(config.kv_heads) && config.rope_dims <= config.head_dim);
            assert_eq!(config.windowed.len(), config.layers);
            let _ = config.memory();
        }
    }
});
