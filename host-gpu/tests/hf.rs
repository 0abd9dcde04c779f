//! Checkpoints as Hugging Face transformers saves them, against its own logits. See `tests/golden/README.md`.

#![expect(clippy::print_stdout, reason = "how close the numbers are")]

use hob_gpu::{CodePath, Engine, EngineConfig, Message, Model, ModelSource, Prompt, Quantize, Role, Scores};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{golden, golden_path, ids, wait};
use tempfile::TempDir;

mod support;

/// The checkpoints of `tests/golden/hf`, all of bfloat16 weights in one file.
const MODELS: &[&str] = &[
    "llama",
    "llama3",
    "llama-linear",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-long",
];

#[derive(Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    /// After some of the tokens.
    logits: BTreeMap<usize, Vec<f64>>,
}

impl Expected {
    fn of(name: &str) -> Self {
        golden(&format!("hf/{name}/expected.json"))
    }

    /// The largest difference of `scores` to these, relative to `1 + |log p|`.
    fn apart(&self, scores: &Scores) -> f64 {
        let mut worst = 0.0f64;
        for (n, logits) in &self.logits {
            for (ours, want) in scores.after(*n).iter().zip(log_softmax(logits)) {
                worst = worst.max((f64::from(*ours) - want).abs() / (1.0 + want.abs()));
            }
        }
        assert!(worst > 0.0, "something was compared");
        worst
    }

    /// The mean over the lengths of the KL divergence, in nats, of `scores` from these.
    fn divergence(&self, scores: &Scores) -> f64 {
        let kl = |(n, logits): (&usize, &Vec<f64>)| -> f64 {
            let pairs = log_softmax(logits).into_iter().zip(scores.after(*n));
            pairs.map(|(want, ours)| want.exp() * (want - f64::from(*ours))).sum()
        };
        self.logits.iter().map(kl).sum::<f64>() / self.logits.len() as f64
    }
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    logits.iter().map(|l| l - sum.ln()).collect()
}

fn engine(code_path: Option<CodePath>, quantize: Option<Quantize>) -> Option<Engine> {
    Engine::start(EngineConfig { threads: 2, kv_bytes: 16 << 20, code_path, quantize, ..EngineConfig::exact() }).ok()
}

fn load(engine: &Engine, path: &Path) -> Result<Model, String> {
    let name = path.display().to_string();
    wait(engine.join(&ModelSource { digest: name.clone(), name, path: path.into() })).map_err(|e| e.to_string())
}

fn score(engine: &Engine, path: &Path, tokens: &[u32]) -> Scores {
    load(engine, path).unwrap().score(&ids(tokens), 64).unwrap()
}

fn folder(name: &str) -> PathBuf {
    golden_path(&format!("hf/{name}"))
}

/// A copy of a checkpoint, to be changed.
struct Copy(TempDir);

impl Copy {
    fn of(name: &str) -> Self {
        let copy = Self(TempDir::new().unwrap());
        for file in std::fs::read_dir(folder(name)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.0.path().join(file.file_name())).unwrap();
        }
        copy
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(self.file(name), value.to_string()).unwrap();
    }
}

/// A tensor: name, type, shape, bytes.
type Tensor = (String, String, Value, Vec<u8>);

fn read(path: &Path) -> Vec<Tensor> {
    let file = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = (&file[8..8 + len], &file[8 + len..]);
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
    let tensor = |(name, t): (String, Value)| {
        let [from, to] = [0, 1].map(|n| t["data_offsets"][n].as_u64().unwrap() as usize);
        (name, t["dtype"].as_str().unwrap().into(), t["shape"].clone(), data[from..to].to_vec())
    };
    header.into_iter().filter(|(name, _)| name != "__metadata__").map(tensor).collect()
}

fn write(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(path, file).unwrap();
}

/// The same checkpoint with another element type, every third tensor in a file of its own.
fn converted(name: &str, dtype: &str, convert: fn(f32) -> Vec<u8>) -> Copy {
    let copy = Copy::of(name);
    let mut parts = vec![Vec::new(); 3];
    let mut index = serde_json::Map::new();
    for (n, (name, old, shape, bytes)) in read(&copy.file("model.safetensors")).into_iter().enumerate() {
        assert_eq!(old, "BF16");
        let floats = bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32());
        index.insert(name.clone(), json!(format!("part-{}.safetensors", n % 3)));
        parts[n % 3].push((name, dtype.to_owned(), shape, floats.flat_map(convert).collect()));
    }
    for (n, part) in parts.iter().enumerate() {
        write(&copy.file(&format!("part-{n}.safetensors")), part);
    }
    std::fs::remove_file(copy.file("model.safetensors")).unwrap();
    let index = json!({"metadata": {}, "weight_map": index});
    std::fs::write(copy.file("model.safetensors.index.json"), index.to_string()).unwrap();
    copy
}

#[test]
fn every_class_gives_the_logits_of_transformers() {
    for path in [None, Some(CodePath::Avx2), Some(CodePath::Portable)] {
        let Some(engine) = engine(path, None) else { continue };
        for name in MODELS {
            let expected = Expected::of(name);
            let apart = expected.apart(&score(&engine, &folder(name), &expected.tokens));
            println!("{name} on {}: within {apart:.1e}", engine.code_path());
            assert!(apart < 2e-5, "{name}: {apart:.1e}");
        }
    }
}

#[test]
fn float_types_and_shards_do_not_matter() {
    let engine = engine(None, None).unwrap();
    for name in MODELS {
        let expected = Expected::of(name);
        let floats = converted(name, "F32", |w| w.to_le_bytes().to_vec());
        let halves = converted(name, "F16", |w| half::f16::from_f32(w).to_le_bytes().to_vec());
        for (kind, copy) in [("F32", floats), ("F16", halves)] {
            let model = load(&engine, copy.path()).unwrap();
            assert_eq!((model.info().quantization.as_str(), model.info().files), (kind, 3));
            let apart = expected.apart(&model.score(&ids(&expected.tokens), 64).unwrap());
            // Few of these weights are too small for an f16.
            assert!(apart < if kind == "F32" { 2e-5 } else { 1e-4 }, "{name} as {kind}: {apart:.1e}");
        }
    }
    // As transformers itself makes shards.
    let expected = Expected::of("llama");
    let model = load(&engine, &folder("llama-shards")).unwrap();
    assert_eq!(model.info().files, 5);
    assert!(expected.apart(&model.score(&ids(&expected.tokens), 64).unwrap()) < 2e-5);
}

#[test]
fn quantising_as_we_load_is_small_and_close() {
    for (quantize, name, bits, most) in [(Quantize::Q8_0, "Q8_0", 8.5, 2e-3), (Quantize::Q4_0, "Q4_0", 6.5, 0.5)] {
        let engine = engine(None, Some(quantize)).unwrap();
        let mut worst = 0.0f64;
        for model in MODELS {
            let expected = Expected::of(model);
            let loaded = load(&engine, &folder(model)).unwrap();
            let info = loaded.info();
            assert_eq!(info.quantization, name);
            assert!((info.weight_bytes as f64) < info.parameters as f64 * bits / 8.0 + 4000.0, "{model}: {info:?}");
            let divergence = expected.divergence(&loaded.score(&ids(&expected.tokens), 64).unwrap());
            println!("{model} as {name}: KL {divergence:.1e}");
            assert!(divergence > 0.0 && divergence < most, "{model} as {name}: {divergence:.1e}");
            worst = worst.max(divergence);
        }
        println!("{name}: KL up to {worst:.1e}");
    }
}

/// Weights are read where the files lie, unless they were quantised: then nothing of the files is kept.
#[cfg(target_os = "linux")]
#[test]
fn every_file_is_mapped_and_let_go_when_it_is_quantised() {
    let mapped = |copy: &Copy| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ours = |line: &&str| line.contains(copy.path().to_str().unwrap()) && line.ends_with(".safetensors");
        maps.lines().filter(ours).count()
    };
    let copy = Copy::of("llama-shards");
    let plain = load(&engine(None, None).unwrap(), copy.path()).unwrap();
    assert_eq!(mapped(&copy), 5);
    drop(plain);
    let quantised = load(&engine(None, Some(Quantize::Q8_0)).unwrap(), copy.path()).unwrap();
    assert_eq!((mapped(&copy), quantised.info().quantization.as_str()), (0, "Q8_0"));
}

#[test]
fn blocks_are_those_of_the_reference() {
    #[derive(Deserialize)]
    struct Blocks {
        floats: String,
        q8_0: String,
        q4_0: String,
    }
    let blocks: Blocks = golden("quantize.json");
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    use hob_gpu::format::quant::Quant;
    for (to, want) in [(Quant::Q8_0, blocks.q8_0), (Quant::Q4_0, blocks.q4_0)] {
        let mut out = vec![0; want.len() / 2];
        hob_gpu::format::quantize::quantize(Quant::F32, &bytes(&blocks.floats), to, &mut out).unwrap();
        assert!(out == bytes(&want), "{to:?}");
    }
}

#[test]
fn configurations_as_transformers_4_writes_them_mean_the_same() {
    let engine = engine(None, None).unwrap();
    for name in MODELS {
        let expected = Expected::of(name);
        let copy = Copy::of(name);
        copy.change("config.json", |config| {
            let config = config.as_object_mut().unwrap();
            let mut rope = config.remove("rope_parameters").unwrap();
            if let Some(local) = rope.get("sliding_attention") {
                config.insert("rope_local_base_freq".into(), local["rope_theta"].clone());
                rope = rope["full_attention"].take();
            }
            config.insert("rope_theta".into(), rope.as_object_mut().unwrap().remove("rope_theta").unwrap());
            let kind = rope.as_object_mut().unwrap().remove("rope_type").unwrap();
            if kind != "default" {
                rope["type"] = kind;
                config.insert("rope_scaling".into(), rope);
            }
            config.remove("layer_types");
            config.remove("_sliding_window_pattern");
        });
        let [new, old] = [folder(name), copy.path().into()].map(|path| score(&engine, &path, &expected.tokens));
        assert!((0..expected.tokens.len()).all(|n| new.after(n) == old.after(n)), "{name}");
    }
}

#[test]
fn tokenizer_template_and_ends_come_from_the_files_beside() {
    let engine = engine(None, None).unwrap();
    let model = load(&engine, &folder("llama")).unwrap();
    assert_eq!((model.info().has_chat_template, model.info().chat_template), (true, Some("ChatML")));
    assert_eq!(model.detokenize(&model.tokenize("abba é", false)), "abba é");
    let hello = || vec![Message { role: Role::User, content: "hi".into() }];
    let rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(model.render(&hello()).unwrap(), rendered);
    let tokens = model.prompt_tokens(Prompt::Chat(hello())).unwrap();
    assert_eq!((tokens[0].0, tokens.iter().filter(|id| id.0 == 259).count()), (258, 1));

    // In the tokenizer's configuration, alone or one of several.
    let template = std::fs::read_to_string(folder("llama").join("chat_template.jinja")).unwrap();
    let several = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]);
    for source in [json!(template), several] {
        let copy = Copy::of("llama");
        std::fs::remove_file(copy.file("chat_template.jinja")).unwrap();
        copy.change("tokenizer_config.json", |config| config["chat_template"] = source);
        assert_eq!(load(&engine, copy.path()).unwrap().render(&hello()).unwrap(), rendered);
    }
    let copy = Copy::of("llama");
    std::fs::remove_file(copy.file("chat_template.jinja")).unwrap();
    let model = load(&engine, copy.path()).unwrap();
    assert!(!model.info().has_chat_template);
    assert_eq!(
        model.render(&hello()).unwrap(),
        rendered,
        "none is there: the usual one, by the marks in the vocabulary"
    );
}

#[test]
fn what_we_would_compute_wrongly_is_refused() {
    let engine = engine(None, None).unwrap();
    let config = |name: &str, change: &dyn Fn(&mut Value)| {
        let copy = Copy::of(name);
        copy.change("config.json", change);
        load(&engine, copy.path()).err().expect("it is refused")
    };
    let set = |name: &str, path: &str, value: Value| {
        config(name, &|config| *config.pointer_mut(path).unwrap_or_else(|| panic!("no {path}")) = value.clone())
    };
    for (error, said) in [
        (set("llama", "/architectures/0", json!("LlavaForCausalLM")), "class \"LlavaForCausalLM\""),
        (set("llama", "/architectures", json!([])), "`architectures` names no class"),
        (set("llama", "/rope_parameters/rope_type", json!("dynamic")), "rope scaling \"dynamic\""),
        (set("llama", "/hidden_act", json!("gelu")), "`hidden_act` \"gelu\""),
        (set("gemma3", "/hidden_activation", json!("silu")), "`hidden_activation` \"silu\""),
        (set("gemma3", "/use_bidirectional_attention", json!(true)), "use_bidirectional_attention"),
        (set("gemma3", "/layer_types/1", json!("chunked_attention")), "layer_types"),
        (set("gemma3", "/layer_types", json!(["full_attention"])), "each of 4 layers"),
        (set("gemma3", "/sliding_window", json!(null)), "`sliding_window` is null"),
        (set("llama", "/num_hidden_layers", json!(5000)), "num_hidden_layers"),
        (set("llama", "/num_key_value_heads", json!(3)), "`num_key_value_heads` is 3"),
        (set("llama", "/hidden_size", json!(-32)), "`hidden_size` is no whole number"),
        (set("llama", "/hidden_size", json!(64)), "tensor `model.layers.0."),
        (set("llama", "/vocab_size", json!(200)), "there are 200 tokens"),
        (set("llama3", "/rope_parameters/high_freq_factor", json!(0.5)), "high_freq_factor"),
        (set("llama3", "/rope_parameters/factor", json!(-8.0)), "rope_scaling"),
        (set("llama-linear", "/rope_parameters/factor", json!(0)), "rope_scaling.factor"),
        (set("phi3-long", "/rope_parameters/long_factor", json!([1, 2])), "list of 6 numbers"),
        (set("qwen3", "/architectures/0", json!("Qwen2ForCausalLM")), "`model.layers.0.self_attn.k_norm.weight`"),
        (set("llama3", "/tie_word_embeddings", json!(false)), "tensor `lm_head.weight` at byte 0: it is missing"),
        (
            config("llama", &|config| config["quantization_config"] = json!({"quant_method": "gptq"})),
            "quantization_config",
        ),
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
    let without = |file: &str| {
        let copy = Copy::of("llama");
        std::fs::remove_file(copy.file(file)).unwrap();
        load(&engine, copy.path()).err().expect("it is refused")
    };
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let error = without(file);
        assert!(error.contains(file), "{error}");
    }
    let copy = Copy::of("llama");
    std::fs::write(copy.file("config.json"), "{\n \"hidden_size\": }").unwrap();
    let error = load(&engine, copy.path()).err().unwrap();
    assert!(error.contains("config.json at byte 18"), "{error}");
}

#[test]
fn weights_that_no_block_can_hold_are_refused() {
    let copy = converted("llama", "F32", |w| if w > 2.8 { f32::NAN } else { w }.to_le_bytes().to_vec());
    let error = load(&engine(None, Some(Quantize::Q8_0)).unwrap(), copy.path()).err().unwrap();
    assert!(error.contains("no numbers or too large"), "{error}");
}
