//! Tokenizers against independent programs. See `tests/golden/README.md`.

use hob_gpu::TokenId;
use hob_gpu::format::gguf::Gguf;
use hob_gpu::model::tokenizer::{Tokenizer, Utf8};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[path = "support/gguf_file.rs"]
mod gguf_file;
use gguf_file::GgufFile;

const SMOLLM2_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const GEMMA3_SHA256: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

#[derive(Deserialize)]
struct Strings {
    items: Vec<StringCase>,
}

#[derive(Deserialize)]
struct StringCase {
    text: String,
    ids: Vec<u32>,
    ids_no_parse_special: Vec<u32>,
    detok: String,
}

#[derive(Deserialize)]
struct Small {
    strings: Vec<String>,
    byte_level: ByteLevel,
    sentence_piece: Vec<SentencePiece>,
    files: Vec<JsonFile>,
}

/// A `tokenizer.json` and what the library that defines it makes of strings.
#[derive(Deserialize)]
struct JsonFile {
    json: String,
    end: u32,
    strings: Vec<String>,
    ids: Vec<Vec<u32>>,
    /// Special tokens are text.
    plain: Vec<Vec<u32>>,
    /// What the ids give back without special tokens.
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct ByteLevel {
    tokens: Vec<String>,
    merges: Vec<String>,
    ids: std::collections::BTreeMap<String, Vec<Vec<u32>>>,
}

#[derive(Clone, Deserialize)]
struct SentencePiece {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
    add_space_prefix: bool,
    strings: Vec<String>,
    ids: Vec<Vec<u32>>,
}

fn golden<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    let text = std::fs::read_to_string(&path).expect("golden files are in the repository");
    serde_json::from_str(&text).expect("golden files have this shape")
}

/// Says why a test did not run, or how long something took.
#[expect(clippy::print_stderr, reason = "what a test skips has to be seen")]
fn say(what: &str) {
    eprintln!("{what}");
}

/// A real model's tokenizer, if this machine has its file: `variable` names it, or the store has it.
fn real(name: &str, variable: &str, sha256: &str) -> Option<Tokenizer> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let blob = |data| PathBuf::from(data).join(format!("models/blobs/sha256-{sha256}"));
    let stored = std::env::var_os("HOB_TEST_DATA").map(blob);
    let Some(path) = given.into_iter().chain(stored).find(|path| path.exists()) else {
        say(&format!("skipped: no {name}; set {variable} to its GGUF file"));
        return None;
    };
    let file = Arc::new(Gguf::open(&path).expect("the file is sound"));
    let start = Instant::now();
    let tokenizer = Tokenizer::read(file).expect("the tokenizer is supported");
    let took = start.elapsed();
    say(&format!("{name}: {} tokens read in {took:?}", tokenizer.vocab_len()));
    // A tenth of this on an idle machine.
    assert!(took.as_millis() < 500, "{name} took {took:?}");
    Some(tokenizer)
}

fn gemma3() -> Option<Tokenizer> {
    real("gemma-3-270m", "HOB_TEST_GEMMA3", GEMMA3_SHA256)
}

#[test]
fn smollm2_is_read_in_no_time() {
    // `tests/golden.rs` checks its ids.
    real("smollm2:135m", "HOB_TEST_SMOLLM2", SMOLLM2_SHA256);
}

fn byte_level(golden: &ByteLevel, pre: &str) -> Tokenizer {
    let file = GgufFile::default()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .flag("tokenizer.ggml.add_bos_token", false)
        .texts("tokenizer.ggml.tokens", &golden.tokens)
        .texts("tokenizer.ggml.merges", &golden.merges);
    Tokenizer::read_bytes(file.bytes()).expect("the file is sound")
}

fn sentence_piece(golden: &SentencePiece) -> Tokenizer {
    Tokenizer::read_bytes(sentence_piece_file(golden).bytes()).expect("the file is sound")
}

fn sentence_piece_file(golden: &SentencePiece) -> GgufFile {
    GgufFile::default()
        .text("tokenizer.ggml.model", "llama")
        .flag("tokenizer.ggml.add_bos_token", false)
        .flag("tokenizer.ggml.add_space_prefix", golden.add_space_prefix)
        .texts("tokenizer.ggml.tokens", &golden.tokens)
        .floats("tokenizer.ggml.scores", &golden.scores)
        .ints("tokenizer.ggml.token_type", &golden.kinds)
}

/// The tokenizers of the golden file, each with its name.
fn all_small(golden: &Small) -> Vec<(String, Tokenizer)> {
    let bpe = golden.byte_level.ids.keys().map(|pre| (pre.clone(), byte_level(&golden.byte_level, pre)));
    let spm = golden.sentence_piece.iter().map(|g| (format!("prefix {}", g.add_space_prefix), sentence_piece(g)));
    bpe.chain(spm).collect()
}

fn ids(numbers: &[u32]) -> Vec<TokenId> {
    numbers.iter().map(|n| TokenId(*n)).collect()
}

#[test]
fn gemma3_ids_and_texts_are_exact() {
    let Some(tokenizer) = gemma3() else { return };
    for case in golden::<Strings>("gemma3.tokenize.json").items {
        assert_eq!(tokenizer.encode(&case.text, true), ids(&case.ids), "{:?}", case.text);
        let plain = ids(&case.ids_no_parse_special);
        assert_eq!(tokenizer.encode(&case.text, false), plain, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&ids(&case.ids)), case.detok);
        assert_eq!(tokenizer.decode(&plain), case.detok);
    }
}

#[test]
fn gemma3_tags_are_text_and_turns_are_not() {
    let Some(tokenizer) = gemma3() else { return };
    let only = |text: &str| tokenizer.encode(text, true)[1];
    assert!(!tokenizer.is_special(only("<html>")) && !tokenizer.is_end(only("</s>")));
    assert!(tokenizer.is_special(only("<start_of_turn>")));
    assert!(tokenizer.is_end(only("<end_of_turn>")) && tokenizer.is_end(only("<eos>")));
}

#[test]
fn every_pre_tokenizer_cuts_as_published() {
    let golden: Small = golden("tokenizers.json");
    for (pre, all) in &golden.byte_level.ids {
        let tokenizer = byte_level(&golden.byte_level, pre);
        for (text, want) in golden.strings.iter().zip(all) {
            assert_eq!(tokenizer.encode(text, true), ids(want), "{pre}: {text:?}");
            assert_eq!(&tokenizer.decode(&ids(want)), text, "{pre}");
        }
    }
}

#[test]
fn names_of_one_pre_tokenizer_mean_the_same() {
    let golden: Small = golden("tokenizers.json");
    for (name, same) in [("default", "gpt-2"), ("deepseek-r1-qwen", "qwen2"), ("llama-v3", "llama-bpe")] {
        let tokenizer = byte_level(&golden.byte_level, name);
        for (text, want) in golden.strings.iter().zip(&golden.byte_level.ids[same]) {
            assert_eq!(tokenizer.encode(text, true), ids(want), "{name}: {text:?}");
        }
    }
}

#[test]
fn sentence_piece_merges_as_sentence_piece() {
    for golden in golden::<Small>("tokenizers.json").sentence_piece {
        let tokenizer = sentence_piece(&golden);
        for (text, want) in golden.strings.iter().zip(&golden.ids) {
            assert_eq!(tokenizer.encode(text, false), ids(want), "{text:?}");
        }
    }
}

#[test]
fn tokenizer_json_files_mean_what_their_library_says() {
    for golden in golden::<Small>("tokenizers.json").files {
        let end = TokenId(golden.end);
        let tokenizer = Tokenizer::from_json(golden.json.as_bytes(), &[end]).expect("the file is sound");
        for (n, text) in golden.strings.iter().enumerate() {
            assert_eq!(tokenizer.encode(text, true), ids(&golden.ids[n]), "{text:?}");
            assert_eq!(tokenizer.encode(text, false), ids(&golden.plain[n]), "{text:?}");
            let shown: Vec<_> = ids(&golden.ids[n]).into_iter().filter(|id| !tokenizer.is_special(*id)).collect();
            assert_eq!(tokenizer.decode(&shown), golden.texts[n]);
        }
        assert!(tokenizer.is_end(end) && tokenizer.is_special(end));
    }
}

#[test]
fn damaged_tokenizer_json_is_refused_with_the_reason() {
    let golden: Small = golden("tokenizers.json");
    let sound: serde_json::Value = serde_json::from_str(&golden.files[2].json).unwrap();
    let damaged = |place: &str, value: serde_json::Value| {
        let mut json = sound.clone();
        *json.pointer_mut(place).expect("the place is there") = value;
        match Tokenizer::from_json(json.to_string().as_bytes(), &[]) {
            Ok(_) => "(accepted)".to_owned(),
            Err(e) => e.to_string(),
        }
    };
    let long = "x".repeat(5000);
    let template = |name: &str, id: u64| {
        let single = json!([{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        json!({"type": "TemplateProcessing", "single": single, "special_tokens": {"<s>": {"id": "<s>", "ids": [id]}}})
    };
    let bert = &json!({"type": "BertProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]});
    for (place, value, reason) in [
        ("/version", "1.0".into(), "(accepted)"),
        ("/model/type", "Unigram".into(), "type \"Unigram\" is not supported; supported: BPE"),
        ("/model/vocab", 1.into(), "no model.vocab"),
        ("/model/vocab/h", (1u64 << 31).into(), "numbers up to 2147483648"),
        ("/model/vocab/h", (-1).into(), "tokenizer.json"),
        ("/model/vocab/h", 300.into(), "twice"),
        ("/model/merges/0", "zz".into(), "`zz` is no token"),
        ("/model/merges/0", json!([long, long]), "is no token"),
        ("/model/merges", 7.into(), "no model.merges"),
        ("/model/unk_token", "<none>".into(), "`<none>`, which is no token"),
        ("/model/continuing_subword_prefix", "##".into(), "not supported"),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "of type \"Precompiled\""),
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [{"type": "UnicodeScripts"}]}), "\"UnicodeS"),
        ("/post_processor", json!({"type": "Custom"}), "post_processor of a type that is not supported"),
        ("/post_processor", json!({"type": "TemplateProcessing"}), "post_processor without a template"),
        ("/post_processor", template("<none>", 1), "post_processor with an unknown special token"),
        ("/post_processor", template("<s>", 1 << 30), "adds something that is no token"),
        ("/post_processor", json!({"type": "BertProcessing", "cls": ["<s>", -1], "sep": ["</s>", 2]}), "is no token"),
        ("/post_processor", json!({"type": "Sequence", "processors": [bert, bert]}), "more than one part adds tokens"),
        ("/post_processor", bert.clone(), "(accepted)"),
    ] {
        let message = damaged(place, value);
        assert!(message.contains(reason), "{place}: {message}");
    }
    assert!(Tokenizer::from_json(b"{", &[]).is_err());
    assert!(Tokenizer::from_json(golden.files[2].json.as_bytes(), &[TokenId(1 << 20)]).is_err());
}

/// Numbers that look random and are the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    /// Text that mixes what tokenizers treat differently.
    fn text(&mut self) -> String {
        let parts =
            ["a", "Zé", " ", "  ", "\n", "\r\n", "7", "日本", "🦙", "e\u{301}", "'s", "<tag>", "</s>", "\0", "_", "¡"];
        let any = |n: usize| char::from_u32(n as u32).map(String::from);
        let part = |_| match self.below(3) {
            0 => any(self.below(0x11_0000)).unwrap_or_default(),
            1 => String::from_utf8_lossy(&[self.below(256) as u8, self.below(256) as u8]).into_owned(),
            _ => parts[self.below(parts.len())].to_owned(),
        };
        (0..40).map(part).collect()
    }
}

#[test]
fn whatever_goes_in_comes_out_again() {
    let golden: Small = golden("tokenizers.json");
    let mut random = Random(0x5eed);
    for (name, tokenizer) in all_small(&golden) {
        for _ in 0..500 {
            // What SentencePiece escapes spaces with cannot be told from a space afterwards.
            let text = random.text().replace('▁', "");
            // A space is put after these tokens, too, as llama.cpp does, and stays.
            let text = if name == "prefix true" { text.replace("<tag>", "").replace('\n', "") } else { text };
            let ids = tokenizer.encode(&text, false);
            assert_eq!(tokenizer.decode(&ids), text, "{name}");
        }
    }
}

#[test]
fn tokens_one_by_one_give_the_same_text_and_whole_characters() {
    let golden: Small = golden("tokenizers.json");
    let mut random = Random(0xcafe);
    for (name, tokenizer) in all_small(&golden) {
        for _ in 0..200 {
            let ids: Vec<_> = (0..60).map(|_| TokenId(random.below(tokenizer.vocab_len()) as u32)).collect();
            let mut bytes = Vec::new();
            ids.iter().for_each(|id| tokenizer.decode_to(*id, &mut bytes));
            let mut utf8 = Utf8::default();
            let mut text = String::new();
            for id in ids {
                tokenizer.decode_to(id, utf8.buffer());
                text += &utf8.take();
            }
            assert_eq!(text + &utf8.finish(), String::from_utf8_lossy(&bytes), "{name}");
        }
    }
}

#[test]
fn special_tokens_count_only_where_the_caller_says() {
    let golden: Small = golden("tokenizers.json");
    let tokenizer = sentence_piece(&golden.sentence_piece[1]);
    let text = "a</s><tag>";
    let (parsed, plain) = (tokenizer.encode(text, true), tokenizer.encode(text, false));
    let ends = |ids: &[TokenId]| ids.iter().filter(|id| tokenizer.is_end(**id)).count();
    assert_eq!((ends(&parsed), ends(&plain)), (1, 0));
    assert_eq!(parsed.last(), plain.last(), "user-defined tokens are text, found in both");
    assert_eq!((tokenizer.decode(&parsed).as_str(), tokenizer.decode(&plain).as_str()), (text, text));
}

#[test]
fn flags_of_the_file_add_the_first_and_last_token() {
    let golden: Small = golden("tokenizers.json");
    let read = |file: GgufFile| Tokenizer::read_bytes(file.bytes()).unwrap().encode("", false);
    let file = || sentence_piece_file(&golden.sentence_piece[0]);
    let (add_bos, add_eos) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token");
    assert_eq!(read(file()), []);
    assert_eq!(read(file().without(add_bos)), ids(&[1]), "what SentencePiece files mean that say nothing");
    assert_eq!(read(file().flag(add_bos, true).flag(add_eos, true)), ids(&[1, 2]));
    let named = file().flag(add_bos, true).number("tokenizer.ggml.bos_token_id", 2);
    assert_eq!(read(named), ids(&[2]));
}

#[test]
fn marks_of_the_chat_format_are_special_whatever_the_file_calls_them() {
    let mut golden = golden::<Small>("tokenizers.json").sentence_piece.remove(1);
    golden.tokens[3] = "<|user|>".into();
    let tokenizer = sentence_piece(&golden);
    assert!(tokenizer.is_special(TokenId(3)));
    assert!(
        tokenizer.encode("<|user|>", true) == ids(&[3]) && !tokenizer.encode("<|user|>", false).contains(&TokenId(3))
    );
}

#[test]
fn special_tokens_of_phi3_swallow_the_space_after_them() {
    let golden = golden::<Small>("tokenizers.json").sentence_piece.remove(1);
    let file = sentence_piece_file(&golden).text("general.name", "Phi-3 Mini");
    let tokenizer = Tokenizer::read_bytes(file.bytes()).unwrap();
    assert_eq!(tokenizer.encode("</s> \n a b", true), tokenizer.encode("</s>a b", true));
    assert_ne!(tokenizer.encode("<s> a b", true), tokenizer.encode("<s>a b", true));
}

#[test]
fn long_texts_take_no_unreasonable_time() {
    let golden: Small = golden("tokenizers.json");
    for (name, tokenizer) in all_small(&golden) {
        for text in [" ".repeat(300_000), "a".repeat(300_000), " \n\t".repeat(100_000), "é1!".repeat(75_000)] {
            let start = Instant::now();
            let ids = tokenizer.encode(&text, true);
            assert!(tokenizer.decode(&ids) == text, "{name}");
            let took = start.elapsed();
            assert!(took.as_secs() < 20, "{name} took {took:?}");
        }
    }
}

/// A sound SentencePiece file but for the parts that a test replaces.
fn damaged(change: impl FnOnce(GgufFile) -> GgufFile) -> String {
    let golden: Small = golden("tokenizers.json");
    let spm = &golden.sentence_piece[0];
    let file = GgufFile::default()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &spm.tokens)
        .floats("tokenizer.ggml.scores", &spm.scores)
        .ints("tokenizer.ggml.token_type", &spm.kinds)
        .texts("tokenizer.ggml.merges", &golden.byte_level.merges);
    match Tokenizer::read_bytes(change(file).bytes()) {
        Ok(_) => "(accepted)".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn damaged_vocabularies_are_refused_with_the_field_and_the_reason() {
    let golden: Small = golden("tokenizers.json");
    let tokens = &golden.byte_level.tokens;
    let many = u64::from(u32::MAX) - 1;
    let bpe = |f: GgufFile| {
        let f = f.text("tokenizer.ggml.model", "gpt2").without("tokenizer.ggml.token_type");
        f.texts("tokenizer.ggml.tokens", tokens)
    };
    let merges = |merges: &[&str]| damaged(|f| bpe(f).texts("tokenizer.ggml.merges", merges));
    for (message, parts) in [
        (damaged(|f| f), ["(accepted)", ""]),
        (damaged(bpe), ["(accepted)", ""]),
        (damaged(|f| f.text("tokenizer.ggml.model", "t5")), ["tokenizer model `t5`", "gpt2, llama"]),
        (damaged(|f| f.without("tokenizer.ggml.tokens")), ["tokenizer.ggml.tokens", "is missing"]),
        (damaged(|f| f.texts("tokenizer.ggml.tokens", &[""; 0])), ["tokenizer.ggml.tokens", "0 entries"]),
        (damaged(|f| f.texts("tokenizer.ggml.tokens", &["a"])), ["tokenizer.ggml.token_type", "entries for 1 tokens"]),
        (damaged(|f| f.text("tokenizer.ggml.tokens", "a")), ["tokenizer.ggml.tokens", "not an array of texts"]),
        (damaged(|f| f.floats("tokenizer.ggml.scores", &[1.0])), ["tokenizer.ggml.scores", "1 entries for"]),
        (damaged(|f| f.without("tokenizer.ggml.scores")), ["tokenizer.ggml.scores", "is missing"]),
        (damaged(|f| f.ints("tokenizer.ggml.scores", &[1])), ["tokenizer.ggml.scores", "not an array of floats"]),
        (damaged(|f| f.ints("tokenizer.ggml.token_type", &[1, 2])), ["tokenizer.ggml.token_type", "2 entries for"]),
        (damaged(|f| f.number("tokenizer.ggml.bos_token_id", 1 << 20)), ["tokenizer.ggml.bos_token_id", "is 1048576"]),
        (damaged(|f| f.number("tokenizer.ggml.eot_token_id", many)), ["tokenizer.ggml.eot_token_id", "there are"]),
        (damaged(|f| f.number("tokenizer.ggml.eos_token_id", u64::MAX)), ["tokenizer.ggml.eos_token_id", "more than"]),
        (damaged(|f| f.text("tokenizer.ggml.add_bos_token", "1")), ["tokenizer.ggml.add_bos_token", "not a boolean"]),
        (damaged(|f| bpe(f).text("tokenizer.ggml.pre", "x")), ["pre-tokenizer `x`", "llama-bpe"]),
        (damaged(|f| bpe(f).without("tokenizer.ggml.merges")), ["tokenizer.ggml.merges", "is missing"]),
        (merges(&["a"]), ["tokenizer.ggml.merges", "`a`, which is not two tokens"]),
        (merges(&[""]), ["tokenizer.ggml.merges", "which is not two tokens"]),
        (merges(&["a "]), ["tokenizer.ggml.merges", "`` is no token"]),
        (merges(&["a 日"]), ["tokenizer.ggml.merges", "`日` is no token"]),
        (merges(&["日 a"]), ["tokenizer.ggml.merges", "`日` is no token"]),
        (merges(&["z 9"]), ["tokenizer.ggml.merges", "`z9` is no token"]),
    ] {
        assert!(parts.iter().all(|part| message.contains(part)), "{message} lacks one of {parts:?}");
    }
}

#[test]
fn entries_that_cannot_be_are_named() {
    let golden: Small = golden("tokenizers.json");
    let change = |change: &dyn Fn(&mut SentencePiece)| {
        let mut spm = golden.sentence_piece[0].clone();
        change(&mut spm);
        damaged(|f| {
            let f = f.texts("tokenizer.ggml.tokens", &spm.tokens).floats("tokenizer.ggml.scores", &spm.scores);
            f.ints("tokenizer.ggml.token_type", &spm.kinds)
        })
    };
    let twice = change(&|spm| spm.tokens[400] = spm.tokens[399].clone());
    assert!(twice.contains("twice, as 399 and as 400"), "{twice}");
    let nan = change(&|spm| spm.scores[7] = f32::NAN);
    assert!(nan.contains("scores") && nan.contains("no number for token 7"), "{nan}");
    let kind = change(&|spm| spm.kinds[8] = 77);
    assert!(kind.contains("token_type") && kind.contains("77 for token 8"), "{kind}");
    let byte = change(&|spm| spm.kinds.iter_mut().filter(|k| matches!(k, 2 | 6)).for_each(|k| *k = 1));
    assert!(byte.contains("has no <0x00>"), "{byte}");
    // A gap in the numbers is no error.
    assert_eq!(change(&|spm| spm.tokens[500] = String::new()), "(accepted)");
}

#[test]
fn random_damage_never_panics() {
    let golden: Small = golden("tokenizers.json");
    let spm = &golden.sentence_piece[0];
    let whole = GgufFile::default()
        .text("tokenizer.ggml.model", "llama")
        .number("tokenizer.ggml.bos_token_id", 1)
        .texts("tokenizer.ggml.tokens", &spm.tokens)
        .floats("tokenizer.ggml.scores", &spm.scores)
        .ints("tokenizer.ggml.token_type", &spm.kinds)
        .bytes();
    let mut random = Random(0xdead);
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        if let Ok(tokenizer) = Tokenizer::read_bytes(bytes) {
            let ids = tokenizer.encode("Hello, 日本語 🦙 </s>\n\n", true);
            let _ = tokenizer.decode(&ids);
        }
    }
}
