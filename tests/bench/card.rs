//! An NVIDIA card: models of the shape of Llama 3 8B with arbitrary weights, in four types, beside what the card was measured to do.
//!
//! `hob-bench card` writes each model to a temporary folder (`TMPDIR`), the largest of them 16 GB. `hob-bench card small` does the same with a
//! model that a stand-in can compute, to see that all of it works; its numbers mean nothing.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hob_gpu::format::quant::Quant;
use hob_gpu::ops::cuda::{Device, check};
use hob_gpu::{Ask, Engine, EngineConfig, EngineDevice, Event, Model, ModelSource, Prompt, TokenId, measure};
use hob_tests::weights_of;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::report::{Measure, Report};

const CARD: EngineDevice = EngineDevice::Cuda { ordinal: 0 };
const TYPES: [Quant; 4] = [Quant::Q4_0, Quant::Q4K, Quant::Q8_0, Quant::F16];
/// What NVIDIA says of an L4: bytes a second of its memory, and operations of its tensor cores on 16-bit floats, without sparsity.
const L4: (f64, f64) = (300e9, 121e12);
/// A model that many have in memory, if it is here: from nothing to its first token.
const REAL: &str = "smollm2:135m";

/// What a model is made of.
#[derive(Clone, Copy)]
struct Shape {
    layers: u64,
    width: u64,
    heads: u64,
    kv_heads: u64,
    ff: u64,
    vocab: u64,
    context: u64,
    prompts: [usize; 2],
    generated: u32,
    /// Enough for 32 sequences, and for the longer prompt.
    kv_bytes: u64,
}

/// Llama 3 8B.
const EIGHT_B: Shape = Shape {
    layers: 32,
    width: 4096,
    heads: 32,
    kv_heads: 8,
    ff: 14_336,
    vocab: 128_256,
    context: 8192,
    prompts: [512, 4096],
    generated: 128,
    kv_bytes: 2 << 30,
};

const SMALL: Shape = Shape {
    layers: 2,
    width: 256,
    heads: 4,
    kv_heads: 2,
    ff: 512,
    vocab: 600,
    context: 256,
    prompts: [20, 40],
    generated: 4,
    kv_bytes: 64 << 20,
};

impl Shape {
    /// The matrices of a layer: their names, columns and rows.
    fn layer(&self) -> [(&'static str, u64, u64); 7] {
        let kv = self.width / self.heads * self.kv_heads;
        [
            ("attn_q", self.width, self.width),
            ("attn_k", self.width, kv),
            ("attn_v", self.width, kv),
            ("attn_output", self.width, self.width),
            ("ffn_gate", self.width, self.ff),
            ("ffn_up", self.width, self.ff),
            ("ffn_down", self.ff, self.width),
        ]
    }

    /// Weights that each token of a prompt meets.
    fn met(&self) -> u64 {
        self.layers * self.layer().iter().map(|(_, columns, rows)| columns * rows).sum::<u64>()
    }

    /// Weights of which each byte is read for a token that is generated.
    fn read(&self) -> u64 {
        self.met() + self.width * self.vocab
    }
}

pub fn run(report: &mut Report, small: bool) -> Result<()> {
    let shape = if small { SMALL } else { EIGHT_B };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    // First, while nothing knows the card yet.
    match (small, weights_of(REAL)) {
        (true, _) => {
            let folder = TempDir::new()?;
            let file = folder.path().join("model.gguf");
            write(&file, &shape, Quant::Q8_0)?;
            start(report, &runtime, ("small", &file), shape.kv_bytes)?;
        }
        (false, Some(file)) => start(report, &runtime, (REAL, &file), 1 << 30)?,
        (false, None) => report.note(&format!("card: {REAL} is not here; `hob models pull` gets it")),
    }
    report.note("card: how fast it copies and multiplies");
    let device = Device::open(0, None)?;
    report.code_path(format!("cuda, {} (driver for CUDA {})", device.card().name, device.card().driver));
    let copies = check::copy_rates(&device)?;
    let matrices = check::matrix_rates(&device, if small { 16 } else { check::RATE_STEPS })?;
    drop(device);
    for (what, rate) in [
        ("copies within the card, read and written", copies.within),
        ("copies from locked memory", copies.pinned),
        ("copies from any other memory", copies.pageable),
    ] {
        report.add(Measure::new(what, rate / 1e9, "GB/s"));
    }
    report.add(Measure::new("tensor cores, 16-bit floats", matrices.f16 / 1e12, "TFLOPS"));
    let mut failed = None;
    for quant in TYPES {
        let name = quant.row().name;
        let measured = of_type(report, &runtime, (name, quant), &shape, (copies, matrices.f16));
        if let Err(error) = measured.with_context(|| format!("{name} was not measured")) {
            report.note(&format!("card: {error:#}"));
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Writes a model of one type, and measures it.
fn of_type(
    report: &mut Report,
    runtime: &Runtime,
    (name, quant): (&str, Quant),
    shape: &Shape,
    rates: (check::CopyRates, f64),
) -> Result<()> {
    report.note(&format!("card: {name}, writing a model"));
    let folder = TempDir::new()?;
    let file = folder.path().join("model.gguf");
    write(&file, shape, quant).context("a model cannot be written; name a folder with room in TMPDIR")?;
    report.note(&format!("card: {name}, measuring"));
    one(report, runtime, (name, &file), shape, rates)
}

/// From nothing to the first token of a small model, as a process has it that begins.
fn start(report: &mut Report, runtime: &Runtime, (name, path): (&str, &Path), kv_bytes: u64) -> Result<()> {
    let mut parts = Vec::new();
    let began = Instant::now();
    let mut last = began;
    let mut note = |what: &'static str| {
        parts.push((what, last.elapsed().as_secs_f64() * 1e3));
        last = Instant::now();
    };
    let device = Device::open(0, None)?;
    note("  of it: driver and context");
    let engine = Engine::start(EngineConfig { device: CARD, kv_bytes, ..EngineConfig::default() })?;
    note("  of it: engine, its memory, and kernels that all models need");
    let source = ModelSource { name: name.into(), path: path.into(), digest: name.into() };
    let model = runtime.block_on(engine.join(&source))?;
    note("  of it: weights, and kernels for their types");
    first_token(runtime, &model)?;
    note("  of it: a short prompt");
    let whole = began.elapsed().as_secs_f64() * 1e3;
    report.add(Measure::new(format!("{name} in page cache: start to first token"), whole, "ms").at_most(1000.0));
    parts.into_iter().for_each(|(what, ms)| report.add(Measure::new(what, ms, "ms")));
    drop(device);
    Ok(())
}

fn first_token(runtime: &Runtime, model: &Model) -> Result<()> {
    let prompt = Prompt::Tokens((5..10).map(TokenId).collect());
    let mut tokens = model.generate(Ask { max_tokens: Some(1), ..Ask::new(prompt) })?;
    runtime.block_on(async { while let Event::Text(_) = tokens.next().await {} });
    ensure!(tokens.usage().generated_tokens == 1, "no token came");
    Ok(())
}

/// One model: its load, and its rates beside what the card does.
fn one(
    report: &mut Report,
    runtime: &Runtime,
    (name, path): (&str, &Path),
    shape: &Shape,
    (copies, tensor): (check::CopyRates, f64),
) -> Result<()> {
    let bytes = std::fs::metadata(path)?.len() as f64;
    let row = |what: &str| format!("{name}: {what}");
    let start = |copy_bytes| {
        Engine::start(EngineConfig { device: CARD, kv_bytes: shape.kv_bytes, copy_bytes, ..EngineConfig::default() })
    };
    let source = ModelSource { name: name.into(), path: path.into(), digest: name.into() };
    // The second load has kernels that are compiled.
    let load = |engine: &Engine| -> Result<f64> {
        let began = Instant::now();
        drop(runtime.block_on(engine.join(&source))?);
        let rate = bytes / began.elapsed().as_secs_f64();
        while engine.evict(name).is_err() {
            std::thread::yield_now();
        }
        Ok(rate / 1e9)
    };
    let engine = start((bytes * 1.1) as u64 + (64 << 20))?;
    load(&engine)?;
    match engine.has_copy(name) {
        true => {
            let pinned = Some(("copies from locked memory".to_owned(), copies.pinned / 1e9));
            let load = Measure::new(row("load from locked memory"), load(&engine)?, "GB/s");
            report.add(load.peer(pinned).ratio_at_least(0.8));
        }
        false => report.note(&format!("card: {name}: the system locks no memory for a copy (`ulimit -l`)")),
    }
    drop(engine);
    let engine = start(0)?;
    load(&engine)?;
    report.add(Measure::new(row("load, file in page cache"), load(&engine)?, "GB/s").at_least(2.0));

    let model = runtime.block_on(engine.join(&source))?;
    let decode = |sequences: usize| -> Result<f64> {
        // Graphs are put together in the first steps.
        runtime.block_on(measure::decode(&model, sequences, 8, shape.generated.min(8)))?;
        Ok(runtime.block_on(measure::decode(&model, sequences, 8, shape.generated))?.rate())
    };
    let row_type = TYPES.map(Quant::row).into_iter().find(|row| row.name == name).context("it is one of them")?;
    let weight = row_type.bytes as f64 / row_type.weights as f64;
    let alone = decode(1)?;
    let read = shape.read() as f64 * weight;
    let share = 100.0 * alone * read / copies.within;
    report.add(Measure::new(row("decode, 1 sequence"), alone, "tokens/s"));
    report.add(Measure::new(row("  weights read, of what copies move"), share, "%").at_least(75.0));
    report.add(Measure::new(
        row("  computed: an L4 at this share of 300 GB/s"),
        share / 100.0 * L4.0 / read,
        "tokens/s",
    ));
    let together = Measure::new(row("decode, 32 sequences, total"), decode(32)?, "tokens/s");
    report.add(together.peer(Some(("1 sequence".into(), alone))).ratio_at_least(15.0));
    for tokens in shape.prompts {
        runtime.block_on(measure::prefill(&model, tokens.min(64)))?;
        let rate = runtime.block_on(measure::prefill(&model, tokens))?.rate();
        let share = 100.0 * rate * 2.0 * shape.met() as f64 / tensor;
        report.add(Measure::new(row(&format!("prefill, {tokens} tokens")), rate, "tokens/s"));
        report.add(Measure::new(row("  of what tensor cores do, attention not counted"), share, "%").at_least(40.0));
        let on_l4 = share / 100.0 * L4.1 / (2.0 * shape.met() as f64);
        report.add(Measure::new(row("  computed: an L4 at this share of 121 TFLOPS"), on_l4, "tokens/s"));
    }
    Ok(())
}

/// Writes a GGUF file of the architecture of Llama, of which all matrices have one type.
fn write(path: &Path, shape: &Shape, quant: Quant) -> Result<()> {
    let (mut keys, mut metadata) = (0u64, Vec::new());
    let mut key = |name: &str, kind: u32, value: &[u8]| {
        text(&mut metadata, name);
        metadata.extend(kind.to_le_bytes());
        metadata.extend(value);
        keys += 1;
    };
    for (name, value) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2")] {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        key(name, 8, &bytes);
    }
    for (name, value) in [
        ("block_count", shape.layers),
        ("context_length", shape.context),
        ("embedding_length", shape.width),
        ("feed_forward_length", shape.ff),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
    ] {
        key(&format!("llama.{name}"), 4, &(value as u32).to_le_bytes());
    }
    for (name, words) in [("tokens", shape.vocab), ("merges", 0)] {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend(words.to_le_bytes());
        (0..words).for_each(|n| text(&mut bytes, &format!("t{n}")));
        key(&format!("tokenizer.ggml.{name}"), 9, &bytes);
    }
    let mut tensors = vec![("token_embd".to_owned(), shape.width, shape.vocab), ("output_norm".into(), shape.width, 1)];
    tensors.push(("output".into(), shape.width, shape.vocab));
    for n in 0..shape.layers {
        tensors.extend(["attn_norm", "ffn_norm"].map(|name| (format!("blk.{n}.{name}"), shape.width, 1)));
        tensors.extend(shape.layer().map(|(name, columns, rows)| (format!("blk.{n}.{name}"), columns, rows)));
    }
    let row = quant.row();
    // Norms are ones, as floats.
    let size = |columns: u64, rows: u64| match rows {
        1 => columns as usize * 4,
        _ => (columns * rows) as usize / row.weights * row.bytes,
    };
    let (mut directory, mut at) = (Vec::new(), 0u64);
    for (name, columns, rows) in &tensors {
        text(&mut directory, &format!("{name}.weight"));
        let dims: &[u64] = if *rows == 1 { &[*columns] } else { &[*columns, *rows] };
        directory.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| directory.extend(dim.to_le_bytes()));
        directory.extend(if *rows == 1 { 0 } else { row.code }.to_le_bytes());
        directory.extend(at.to_le_bytes());
        at += (size(*columns, *rows) as u64).next_multiple_of(32);
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let head = [b"GGUF\x03\0\0\0".as_slice(), &(tensors.len() as u64).to_le_bytes(), &keys.to_le_bytes()].concat();
    let mut head = [head, metadata, directory].concat();
    head.resize(head.len().next_multiple_of(32), 0);
    file.write_all(&head)?;
    let noise = noise(quant);
    let mut begin = 0;
    for (_, columns, rows) in tensors {
        let size = size(columns, rows);
        if rows == 1 {
            (0..columns).try_for_each(|_| file.write_all(&1f32.to_le_bytes()))?;
        } else {
            // Some blocks over and over, each matrix from another one on.
            let mut left = size;
            while left > 0 {
                let piece = &noise[begin..noise.len().min(begin + left)];
                file.write_all(piece)?;
                left -= piece.len();
                begin = (begin + piece.len()) % noise.len();
            }
        }
        file.write_all(&vec![0; size.next_multiple_of(32) - size])?;
    }
    file.flush()?;
    Ok(())
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// Blocks of arbitrary bits, whose scales are small. So many that they are no whole number of rows.
fn noise(quant: Quant) -> Vec<u8> {
    const BLOCKS: usize = 40_009;
    let row = quant.row();
    let mut state = 1u64;
    let mut bytes: Vec<u8> = (0..BLOCKS * row.bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    // The upper byte of an f16: its exponent becomes that of 2^-8 or so.
    let scales: &[usize] = if quant == Quant::Q4K { &[1, 3] } else { &[1] };
    for block in bytes.chunks_exact_mut(row.bytes) {
        scales.iter().for_each(|at| block[*at] = (block[*at] & 0x83) | 0x1c);
    }
    bytes
}
