//! How text is cut into words before byte-level BPE: one table, by the name in the file.
//!
//! The expressions are those of the models' published `tokenizer.json`; the names are those that
//! llama.cpp's converter writes (`src/llama-vocab.cpp`). Where the two differ, the model's own wins.

use crate::format::FormatError;
use fancy_regex::Regex;
use std::ops::Range;
use std::sync::OnceLock;

/// A row of the table.
struct Splitter {
    /// Names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Each cuts what the ones before left: its matches and what is between them become words.
    rules: &'static [&'static str],
    /// A word that is a token is that token, whatever merges would make of it.
    ignores_merges: bool,
    /// Whether sequences begin with the first token unless the file says otherwise.
    adds_bos: bool,
}

/// GPT-2's own expression; the byte-level pre-tokenizer of Hugging Face's library.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const TABLE: &[Splitter] = &[
    // openai-community/gpt2
    Splitter { names: &["gpt-2", "default"], rules: &[GPT2], ignores_merges: false, adds_bos: false },
    // HuggingFaceTB/SmolLM2-135M-Instruct: each digit alone, then as GPT-2
    Splitter { names: &["smollm"], rules: &[r"\p{N}", GPT2], ignores_merges: false, adds_bos: false },
    // meta-llama/Meta-Llama-3-8B, Llama-3.1-8B, Llama-3.2-1B
    Splitter {
        names: &["llama-bpe", "llama3", "llama-v3"],
        rules: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ignores_merges: true,
        adds_bos: true,
    },
    // Qwen/Qwen2-7B, Qwen2.5-7B, Qwen3-8B; deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
    Splitter {
        names: &["qwen2", "deepseek-r1-qwen"],
        rules: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ignores_merges: false,
        adds_bos: false,
    },
    // mistralai/Mistral-Nemo-Base-2407
    Splitter {
        names: &["tekken"],
        rules: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ignores_merges: true,
        adds_bos: true,
    },
    // deepseek-ai/deepseek-llm-7b-base
    Splitter {
        names: &["deepseek-llm"],
        rules: &[
            r"[\r\n]",
            concat!(
                r"\s?[A-Za-z\xB5\xC0-\xD6\xD8-\xF6\xF8-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}",
                r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}",
                r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}",
                r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}",
                r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}",
                r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}",
                r"\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}",
                r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}",
                r"\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}",
                r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}",
                r"\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}",
                r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}",
                r"\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}",
                r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+"
            ),
            r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
            r"\s+$",
            r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+",
            r"\p{N}",
        ],
        ignores_merges: false,
        adds_bos: false,
    },
];

/// The expressions of each row, compiled when a tokenizer first needs them: that takes longer than all else
/// that a small tokenizer does.
static COMPILED: [OnceLock<Vec<Regex>>; TABLE.len()] = [const { OnceLock::new() }; TABLE.len()];

/// A compiled row.
pub(super) struct Split {
    rules: &'static [Regex],
    pub(super) ignores_merges: bool,
    pub(super) adds_bos: bool,
}

impl Split {
    /// The row that the file's `name` means; no name means GPT-2.
    ///
    /// # Errors
    /// `Unsupported` with the names in the table.
    pub(super) fn new(name: Option<&str>) -> Result<Self, FormatError> {
        let name = name.unwrap_or("default");
        let rows = || TABLE.iter().zip(&COMPILED);
        let (row, rules) =
            rows().find(|(row, _)| row.names.contains(&name)).ok_or_else(|| FormatError::Unsupported {
                what: format!("pre-tokenizer `{}`", name.chars().take(60).collect::<String>()),
                supported: TABLE.iter().flat_map(|row| row.names).copied().collect::<Vec<_>>().join(", "),
            })?;
        let compile = |rule: &&str| Regex::new(rule).expect("a test compiles every expression");
        let rules = rules.get_or_init(|| row.rules.iter().map(compile).collect());
        Ok(Self { rules, ignores_merges: row.ignores_merges, adds_bos: row.adds_bos })
    }

    /// The words of `text`, in order; together they are all of it.
    pub(super) fn words(&self, text: &str) -> Vec<Range<usize>> {
        let mut words: Vec<_> = std::iter::once(0..text.len()).collect();
        for rule in self.rules {
            words = words.into_iter().flat_map(|word| cut(rule, text, word)).collect();
        }
        words
    }
}

/// Cuts `word` into what `rule` matches and what is between.
fn cut(rule: &Regex, text: &str, word: Range<usize>) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut done = word.start;
    // The expressions see a word as a text of its own. One that gives up, on text beyond all
    // measure, leaves the rest as one word.
    for found in rule.find_iter(&text[word.clone()]).map_while(Result::ok) {
        let (start, end) = (word.start + found.start(), word.start + found.end());
        parts.extend([done..start, start..end].into_iter().filter(|part| !part.is_empty()));
        done = end;
    }
    parts.extend(Some(done..word.end).filter(|part| !part.is_empty()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        Split::new(Some(name)).unwrap().words(text).into_iter().map(|word| &text[word]).collect()
    }

    #[test]
    fn every_row_compiles_and_loses_nothing() {
        let text = "Don't  stop\r\n\r\n 12345 日本語! 🦀\u{200d}🦀 naïve ÇA va\t\tx";
        for name in TABLE.iter().flat_map(|row| row.names) {
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn digits_go_alone_in_threes_or_together() {
        assert_eq!(words("qwen2", "1234"), ["1", "2", "3", "4"]);
        assert_eq!(words("llama-bpe", "1234"), ["123", "4"]);
        assert_eq!(words("gpt-2", "1234"), ["1234"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let e = Split::new(Some("mystery")).err().unwrap().to_string();
        assert!(e.contains("`mystery`") && e.contains("qwen2, deepseek-r1-qwen"), "{e}");
    }
}
