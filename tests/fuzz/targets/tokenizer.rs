//! Any bytes as the metadata of a GGUF tokenizer or as a `tokenizer.json`; what can be read has to encode and
//! decode any text. The first byte says which, a zero ends the text that is encoded, and the rest is the file.
#![no_main]

use hob_gpu::TokenId;
use hob_gpu::model::tokenizer::{Span, Tokenizer};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((which, rest)) = input.split_first() else { return };
    let Some(end) = rest.iter().position(|byte| *byte == 0) else { return };
    let (text, file) = (String::from_utf8_lossy(&rest[..end]), &rest[end + 1..]);
    let tokenizer = match which % 2 {
        0 => Tokenizer::read_bytes(file.to_vec()),
        _ => Tokenizer::from_json(file, &[TokenId(u32::from(*which) >> 1)]),
    };
    let Ok(tokenizer) = tokenizer else { return };
    for special in [false, true] {
        let ids = tokenizer.encode_spans(&[Span { text: &text, special }, Span { text: " a", special: false }]);
        assert!(ids.iter().all(|id| (id.0 as usize) < tokenizer.vocab_len()));
        let _ = tokenizer.decode(&ids);
    }
    let _ = (tokenizer.bos(), tokenizer.eos(), tokenizer.special_texts().count());
    let _ = tokenizer.decode(&[TokenId(0), TokenId(1), TokenId(u32::MAX)]);
});
