//! `hob bench`

use hob_gpu::measure::{self, MeasureError, Speed};
use hob_gpu::{Engine, EngineConfig, Model};
use serde_json::json;

use super::engine::EngineArgs;
use super::{size, table};
use crate::data::DataDir;
use crate::models::Library;
use crate::models::store::ModelStore;
use crate::names::ModelRef;

/// Prompt tokens of each sequence, where more than prefill is measured.
const SHORT_PROMPT: usize = 32;

#[derive(clap::Args)]
pub struct Args {
    /// The model: a name from `hob models list`, a .gguf file, or a folder with a safetensors checkpoint
    model: ModelRef,
    /// Tokens of the prompt whose prefill is measured
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    prompt: u32,
    /// Tokens to generate in each sequence
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    generate: u32,
    /// How many sequences generate at once, a row each
    #[arg(
        long, value_name = "LIST", value_delimiter = ',', default_value = "1,8,32",
        value_parser = clap::value_parser!(u32).range(1..=256),
    )]
    sequences: Vec<u32>,
    /// Runs of each row
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Print an object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What a row measures.
struct Test {
    name: String,
    sequences: u32,
    /// Tokens of each sequence's prompt.
    prompt: usize,
    /// Tokens generated in each sequence; none measures the prefill.
    generate: Option<u32>,
}

pub fn run(data: DataDir, args: Args) -> anyhow::Result<()> {
    let mut config = args.engine.config();
    config.max_running = args.sequences.iter().fold(config.max_running, |most, n| most.max(*n as usize));
    // One device is measured: the first.
    config.device = args.engine.devices()?[0];
    let library = Library::new(ModelStore::new(data), Engine::start(config)?);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let model = library.join_ref(&args.model).await?;
        measure::warm_up(&model).await?;
        let mut rows = Vec::new();
        for test in tests(&args) {
            let mut rates = Vec::new();
            for _ in 0..args.repeat {
                rates.push(test.run(&model).await?.rate());
            }
            if args.json {
                println!("{}", object(&model, library.engines().first(), &test, &rates));
            } else {
                rows.push(row(&model, library.engines().first(), &test, &rates));
            }
        }
        if !args.json {
            let head = ["MODEL", "TYPE", "SIZE", "PARAMS", "CODE PATH", "ACT", "KV", "THREADS", "TEST", "TOKENS/S"];
            table(head, &rows);
        }
        Ok(())
    })
}

fn tests(args: &Args) -> Vec<Test> {
    let generate = Some(args.generate);
    let prefill =
        Test { name: format!("pp{}", args.prompt), sequences: 1, prompt: args.prompt as usize, generate: None };
    // As llama-bench has it: with nothing before.
    let decode = Test { name: format!("tg{}", args.generate), sequences: 1, prompt: 1, generate };
    let together = args.sequences.iter().map(|&sequences| Test {
        name: format!("tg{} x {sequences}", args.generate),
        sequences,
        prompt: SHORT_PROMPT.min(args.prompt as usize),
        generate,
    });
    [prefill, decode].into_iter().chain(together).collect()
}

impl Test {
    async fn run(&self, model: &Model) -> Result<Speed, MeasureError> {
        match self.generate {
            None => measure::prefill(model, self.prompt).await,
            Some(generate) => measure::decode(model, self.sequences as usize, self.prompt, generate).await,
        }
    }
}

fn row(model: &Model, engine: &Engine, test: &Test, rates: &[f64]) -> [String; 10] {
    let (info, config): (_, &EngineConfig) = (model.info(), engine.config());
    let (mean, deviation) = spread(rates);
    [
        model.name().into(),
        info.quantization.clone(),
        size(info.weight_bytes),
        format!("{:.1} M", info.parameters as f64 / 1e6),
        engine.runs_on(),
        config.activations.to_string(),
        config.kv_type.to_string(),
        config.threads.to_string(),
        test.name.clone(),
        format!("{mean:.1} ± {deviation:.1}"),
    ]
}

fn object(model: &Model, engine: &Engine, test: &Test, rates: &[f64]) -> serde_json::Value {
    let (info, config) = (model.info(), engine.config());
    let (mean, deviation) = spread(rates);
    json!({
        "model": model.name(), "architecture": info.architecture, "type": info.quantization,
        "bytes": info.weight_bytes, "parameters": info.parameters,
        "code_path": engine.runs_on(), "activations": config.activations.to_string(),
        "kv": config.kv_type.to_string(), "threads": config.threads,
        "test": test.name, "sequences": test.sequences, "prompt": test.prompt, "generate": test.generate.unwrap_or(0),
        "tokens_per_second": mean, "deviation": deviation, "runs": rates,
    })
}

/// The mean and the standard deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_has_no_spread() {
        assert_eq!(spread(&[5.0]), (5.0, 0.0));
        assert_eq!(spread(&[1.0, 2.0, 3.0]), (2.0, 1.0));
    }
}
