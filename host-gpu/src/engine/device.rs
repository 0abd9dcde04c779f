//! What an engine computes on.

use std::fmt;
use std::str::FromStr;

/// What computes. It is never another than the one that was asked for: an engine that cannot have it does not start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineDevice {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA card.
    Cuda {
        /// Its number, as the driver counts.
        ordinal: usize,
    },
}

impl fmt::Display for EngineDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for EngineDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        let ordinal = ordinal.ok_or_else(|| format!("no device is called `{text}`; give cpu, cuda or cuda:1"))?;
        Ok(Self::Cuda { ordinal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for device in [EngineDevice::Cpu, EngineDevice::Cuda { ordinal: 0 }, EngineDevice::Cuda { ordinal: 3 }] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(EngineDevice::Cuda { ordinal: 0 }));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "CUDA"] {
            assert!(wrong.parse::<EngineDevice>().is_err(), "{wrong}");
        }
    }
}
