//! Settings of the engine that `hob run`, `hob bench` and `hob serve` share.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use hob_gpu::ops::cuda::cards;
use hob_gpu::{Activations, CodePath, EngineConfig, EngineDevice, Engines, KvType, Quantize};

const KV_TYPES: &[KvType] = &[KvType::F16, KvType::Q8_0, KvType::F32];
const ACTIVATIONS: &[Activations] = &[Activations::Q8, Activations::F32];

#[derive(clap::Args)]
pub struct EngineArgs {
    /// What computes: cpu, cuda or cuda:1 (NVIDIA cards, as `hob gpu check` numbers them), cuda:all; or several, as in
    /// cuda:0,cuda:1,cpu: each model is on one of them, on the processor only if no card can have it
    #[arg(long, env = "HOB_DEVICE", value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
    device: Vec<Devices>,
    /// Threads for inference [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Instructions to use: avx512-vnni, avx2 or portable [default: the best that the processor has]
    #[arg(long, value_name = "PATH", value_parser = |text: &str| one_of(CodePath::ALL, text))]
    code_path: Option<CodePath>,
    /// How keys and values are stored: f16, q8_0 (half of that) or f32
    #[arg(long, value_name = "TYPE", default_value_t, value_parser = |text: &str| one_of(KV_TYPES, text))]
    kv: KvType,
    /// What activations become before they meet quantised weights: q8, or f32, which is exact and several times slower
    #[arg(long, value_name = "TYPE", default_value_t, value_parser = |text: &str| one_of(ACTIVATIONS, text))]
    activations: Activations,
    /// Memory for models, as in 900MB or 16GB [default: most of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    model_memory: Option<u64>,
    /// Memory for keys and values of each device, as in 2GB [default: 1 GiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    kv_memory: Option<u64>,
    /// Memory of the host that copies of cards' models may take, locked, as in 16GB: a model that has one is back on its card at the
    /// bus's rate [default: none; files that the system keeps in memory come nearly as fast]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    copy_memory: Option<u64>,
    /// A card that has not ended a step after so many seconds has hung: see --on-card-fault [default: 60]
    #[arg(long, value_name = "SECONDS")]
    card_patience: Option<u64>,
    /// Make the matrices that models have as floats smaller: q8_0 or q4_0
    #[arg(long, value_name = "TYPE")]
    quantize: Option<Quantize>,
}

impl EngineArgs {
    /// Starts an engine on each device.
    ///
    /// # Errors
    /// See [`hob_gpu::StartError`].
    pub fn start(&self) -> anyhow::Result<Engines> {
        Ok(Engines::start(&self.config(), &self.devices()?)?)
    }

    /// What computes.
    ///
    /// # Errors
    /// If all cards are asked for, and the driver does not say which these are.
    pub fn devices(&self) -> anyhow::Result<Vec<EngineDevice>> {
        let mut all = Vec::new();
        for device in &self.device {
            match device {
                Devices::One(device) => all.push(*device),
                Devices::AllCards => {
                    let cards = cards().context("cannot start on cuda:all")?;
                    anyhow::ensure!(!cards.is_empty(), "cannot start on cuda:all: the driver sees no card");
                    all.extend(cards.iter().map(|card| EngineDevice::Cuda { ordinal: card.ordinal }));
                }
            }
        }
        Ok(all)
    }

    /// What the rest means for each engine.
    pub fn config(&self) -> EngineConfig {
        let default = EngineConfig::default();
        EngineConfig {
            threads: self.threads.unwrap_or(default.threads),
            model_bytes: self.model_memory,
            copy_bytes: self.copy_memory.unwrap_or(default.copy_bytes),
            card_patience: self.card_patience.map_or(default.card_patience, Duration::from_secs),
            code_path: self.code_path,
            kv_bytes: self.kv_memory.unwrap_or(default.kv_bytes),
            kv_type: self.kv,
            activations: self.activations,
            quantize: self.quantize,
            ..default
        }
    }
}

/// One device, or some.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Devices {
    One(EngineDevice),
    AllCards,
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "cuda:all" { Ok(Self::AllCards) } else { text.parse().map(Self::One) }
    }
}

/// The value whose name is `text`.
fn one_of<T: Copy + Display>(all: &[T], text: &str) -> Result<T, String> {
    let names: Vec<_> = all.iter().map(T::to_string).collect();
    let found = names.iter().position(|name| name == text).map(|at| all[at]);
    found.ok_or_else(|| format!("give {}", names.join(", ")))
}

/// `900MB`, `16 GB`, or a number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text[number.len()..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" | "K" => 1_000,
        "MB" | "M" => 1_000_000,
        "GB" | "G" => 1_000_000_000,
        _ => 0,
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "give a number and B, KB, MB or GB, as in 900MB".into())
}

#[cfg(test)]
mod tests {
    use super::{Devices, bytes};
    use hob_gpu::EngineDevice;

    #[test]
    fn all_cards_are_a_device_too() {
        assert_eq!("cuda:all".parse(), Ok(Devices::AllCards));
        assert_eq!("cuda:1".parse(), Ok(Devices::One(EngineDevice::Cuda { ordinal: 1 })));
        assert!("all".parse::<Devices>().is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(["7", "900MB", "16 GB", "2k"].map(bytes), [7, 900_000_000, 16_000_000_000, 2_000].map(Ok));
        for bad in ["", "MB", "0", "1TB", "-5MB", "1.5GB", "99999999999999999999"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
