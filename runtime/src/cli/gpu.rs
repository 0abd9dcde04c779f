//! `hob gpu`: what a machine's cards can do, asked before they are relied upon.

use anyhow::ensure;
use hob_gpu::ops::cuda::{Card, Device, cards, check as checks};

use super::{size, table};
use crate::data::DataDir;
use crate::models::store::ModelStore;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Find cards, see that the kernels compute right on them, and measure how fast they multiply and copy
    Check(CheckArgs),
}

#[derive(clap::Args)]
pub struct CheckArgs {
    /// Only this card, as the driver numbers them [default: all]
    #[arg(long, value_name = "N")]
    card: Option<usize>,
    /// See cards only: compute and copy nothing
    #[arg(long)]
    quick: bool,
}

pub fn run(data: DataDir, command: Command) -> anyhow::Result<()> {
    let Command::Check(args) = command;
    let found = cards()?;
    ensure!(!found.is_empty(), "the driver sees no card");
    let rows: Vec<_> = found.iter().map(row).collect();
    table(["CARD", "NAME", "CAPABILITY", "MULTIPROCESSORS", "MEMORY", "FREE", "DRIVER"], &rows);
    if args.quick {
        return Ok(());
    }
    let asked: Vec<_> = found.iter().filter(|card| args.card.is_none_or(|wanted| wanted == card.ordinal)).collect();
    if let Some(wanted) = args.card {
        ensure!(!asked.is_empty(), "there is no card {wanted}: the driver sees {}", found.len());
    }
    let store = ModelStore::new(data);
    let mut failed = Vec::new();
    for card in asked {
        println!("\ncard {}: {}", card.ordinal, card.name);
        if let Err(error) = check(card, &store) {
            println!("card {} cannot be relied upon: {error:#}", card.ordinal);
            failed.push(card.ordinal.to_string());
        }
    }
    ensure!(failed.is_empty(), "not to be relied upon: card {}", failed.join(", "));
    Ok(())
}

fn row(card: &Card) -> [String; 7] {
    let (major, minor) = card.capability;
    [
        card.ordinal.to_string(),
        card.name.clone(),
        format!("{major}.{minor}"),
        card.multiprocessors.to_string(),
        size(card.memory.0),
        size(card.memory.1),
        format!("CUDA {}.{}", card.driver / 1000, card.driver % 1000 / 10),
    ]
}

/// A good kernel reads weights at this share of what copies move: what is expected of decode.
const EXPECTED: f64 = 0.75;

fn check(card: &Card, store: &ModelStore) -> anyhow::Result<()> {
    let device = Device::open(card.ordinal, None)?;
    let started = std::time::Instant::now();
    let checked = checks::kernels(&device)?;
    let wrong: Vec<_> = checked.iter().filter(|one| !one.holds()).collect();
    for one in &wrong {
        println!("WRONG: {} is off by {:.1e} where {:.0e} is allowed", one.what, one.error, one.most);
    }
    ensure!(wrong.is_empty(), "{} of {} are computed wrongly", wrong.len(), checked.len());
    println!(
        "{} products of all types, and draws of tokens, are right, in {:.1} s",
        checked.len(),
        started.elapsed().as_secs_f64()
    );
    let tensor = checks::matrix_rates(&device, checks::RATE_STEPS)?;
    println!("tensor cores: {:.1} TFLOPS of f16, {:.1} TOPS of bytes", tensor.f16 / 1e12, tensor.s8 / 1e12);
    let rates = checks::copy_rates(&device)?;
    let gigabytes = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
    println!("copies within the card: {}", gigabytes(rates.within));
    println!("from locked memory: {}, from any other: {}", gigabytes(rates.pinned), gigabytes(rates.pageable));
    let rows: Vec<_> = store
        .list()?
        .iter()
        .filter_map(|model| {
            let info = hob_gpu::inspect(&store.path(model).ok()?).ok()?;
            let fits = if info.weight_bytes < card.memory.1 { "yes" } else { "no" };
            let rate = EXPECTED * rates.within / info.weight_bytes as f64;
            Some([model.name.to_string(), size(info.weight_bytes), fits.into(), format!("{rate:.0}")])
        })
        .collect();
    if !rows.is_empty() {
        println!("\nwhat {:.0} % of that rate would give, one sequence alone, weights alone:", 100.0 * EXPECTED);
        table(["MODEL", "WEIGHTS", "FITS", "TOKENS/S"], &rows);
    }
    Ok(())
}
