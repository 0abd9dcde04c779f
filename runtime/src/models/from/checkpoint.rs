//! Which of the files of a folder, or of a repository, make up a model.
//!
//! GGUF comes first: one file for each quantisation, or several that are called shards. Otherwise it is a checkpoint:
//! `config.json`, the tokenizer, templates, and the safetensors files that belong together.

use std::collections::{BTreeMap, BTreeSet};

use crate::models::plan::MOST_FILES;
use crate::models::shards;

/// Which quantisation is taken if nobody says: small and good first.
const PREFERRED: &[&str] =
    &["Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "F16", "BF16", "F32"];
/// Beside the weights; those marked must be there.
const BESIDE: &[(&str, bool)] = &[
    ("config.json", true),
    ("tokenizer.json", true),
    ("generation_config.json", false),
    ("tokenizer_config.json", false),
    ("chat_template.jinja", false),
    ("special_tokens_map.json", false),
    ("modules.json", false),
    ("sentence_bert_config.json", false),
    ("1_Pooling/config.json", false),
];
/// The weights of a checkpoint in one file, and the list of files of one in several.
const SINGLE: &str = "model.safetensors";
/// The list of files of a checkpoint in several.
pub const INDEX: &str = "model.safetensors.index.json";

/// The files of a model.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// A GGUF file, or all shards of one, in order.
    Gguf(Vec<String>),
    /// A checkpoint; with its weights in one file.
    Checkpoint(Vec<String>),
    /// A checkpoint whose index says which files have its weights.
    Indexed(Vec<String>),
}

/// Chooses among `files`: what `which` says, a file or a quantisation.
///
/// # Errors
/// Why nothing was chosen, and what could be, as the end of a sentence that begins with the repository.
pub fn choose(files: &[String], which: Option<&str>) -> Result<Choice, String> {
    let models = ggufs(files)?;
    if let Some(which) = which {
        if let Some(file) = files.iter().find(|file| *file == which) {
            return match models.values().find(|shards| shards.contains(file)) {
                Some(shards) => Ok(Choice::Gguf(shards.clone())),
                None => Err(format!("has {file}, which is no .gguf file")),
            };
        }
        let by_quant: Vec<_> = models.values().filter(|shards| quant(&shards[0], which)).collect();
        return match by_quant[..] {
            [one] => Ok(Choice::Gguf(one.clone())),
            [] => Err(format!("has no {which}; it has {}", listed(&models, files))),
            _ => Err(format!(
                "has several that are {which}; name a file: {}",
                names(by_quant.iter().map(|shards| &shards[0]))
            )),
        };
    }
    if models.is_empty() {
        return checkpoint(files);
    }
    if models.len() == 1 {
        return Ok(Choice::Gguf(models.into_values().next().unwrap_or_default()));
    }
    let preferred = PREFERRED.iter().find_map(|name| {
        let mut of_it = models.values().filter(|shards| quant(&shards[0], name));
        let one = of_it.next()?;
        of_it.next().is_none().then(|| one.clone())
    });
    preferred
        .map(Choice::Gguf)
        .ok_or_else(|| format!("has several models; name one after a colon: {}", listed(&models, files)))
}

/// The GGUF models among files, whole ones only, each with its shards in order.
fn ggufs(files: &[String]) -> Result<BTreeMap<String, Vec<String>>, String> {
    let known: BTreeSet<_> = files.iter().collect();
    let mut models = BTreeMap::new();
    for file in files {
        let name = file.rsplit('/').next().unwrap_or(file);
        let lower = name.to_ascii_lowercase();
        // Parts of models that see, and what quantising learned from: no models.
        if !lower.ends_with(".gguf") || lower.contains("mmproj") || lower.contains("imatrix") {
            continue;
        }
        let folder = &file[..file.len() - name.len()];
        let Some(shard) = shards::of(name) else {
            models.insert(file.clone(), vec![file.clone()]);
            continue;
        };
        let all: Vec<_> = shard.all().into_iter().map(|name| format!("{folder}{name}")).collect();
        if let Some(missing) = all.iter().find(|file| !known.contains(file)) {
            return Err(format!("has {file}, and not {missing}, which belongs to it"));
        }
        models.insert(all[0].clone(), all);
    }
    Ok(models)
}

/// Whether a file's name says that it is quantised so: the letters stand between marks.
fn quant(file: &str, quant: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    let quant = quant.to_ascii_lowercase();
    let stem = match shards::of(&name) {
        Some(shard) => shard.base.to_owned(),
        None => name.trim_end_matches(".gguf").to_owned(),
    };
    stem.match_indices(&quant).any(|(at, _)| {
        let before = stem[..at].chars().next_back();
        let after = stem[at + quant.len()..].chars().next();
        before.is_none_or(|c| "-._".contains(c)) && after.is_none_or(|c| "-.".contains(c))
    })
}

fn checkpoint(files: &[String]) -> Result<Choice, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if !has(SINGLE) && !has(INDEX) {
        return Err(match files.iter().find(|file| file.ends_with(".safetensors")) {
            Some(other) => format!("has {other}, and neither {SINGLE} nor {INDEX}"),
            None => format!("has neither .gguf nor .safetensors files; it has {}", names(files)),
        });
    }
    if let Some((missing, _)) = BESIDE.iter().find(|(name, needed)| *needed && !has(name)) {
        return Err(format!("has safetensors and no {missing}, which a model needs"));
    }
    let mut chosen: Vec<_> = BESIDE.iter().filter(|(name, _)| has(name)).map(|(name, _)| (*name).to_owned()).collect();
    if has(SINGLE) {
        chosen.push(SINGLE.into());
        return Ok(Choice::Checkpoint(chosen));
    }
    chosen.push(INDEX.into());
    Ok(Choice::Indexed(chosen))
}

/// The files of weights that an index names.
///
/// # Errors
/// As the end of a sentence that begins with the index.
pub fn indexed(index: &[u8], files: &[String]) -> Result<Vec<String>, String> {
    let map = hob_gpu::format::safetensors::parse_index(index).map_err(|error| format!("does not read: {error}"))?;
    let (names, known): (BTreeSet<_>, BTreeSet<_>) = (map.into_values().collect(), files.iter().collect());
    if let Some(missing) = names.iter().find(|name| !known.contains(name)) {
        let missing: String = missing.chars().filter(|c| !c.is_control()).take(100).collect();
        return Err(format!("names {missing}, which is not there"));
    }
    if names.len() > MOST_FILES {
        return Err(format!("names {} files", names.len()));
    }
    Ok(names.into_iter().collect())
}

fn listed(models: &BTreeMap<String, Vec<String>>, files: &[String]) -> String {
    if models.is_empty() { names(files) } else { names(models.keys()) }
}

fn names<'a>(files: impl IntoIterator<Item = &'a String>) -> String {
    let mut all: Vec<_> = files.into_iter().map(String::as_str).collect();
    let more = all.len().saturating_sub(24);
    all.truncate(24);
    let mut text = if all.is_empty() { "no files".into() } else { all.join(", ") };
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn gguf(names: &[&str]) -> Choice {
        Choice::Gguf(files(names))
    }

    #[test]
    fn a_quantisation_is_chosen() {
        let all = files(&[
            "README.md",
            "M-Q4_K_M.gguf",
            "M-Q4_K_S.gguf",
            "M-Q8_0.gguf",
            "m.IQ4_XS.gguf",
            "mmproj-M-f16.gguf",
            "big/M-F16-00001-of-00002.gguf",
            "big/M-F16-00002-of-00002.gguf",
        ]);
        let chosen = |which| choose(&all, which).unwrap();
        assert_eq!(chosen(None), gguf(&["M-Q4_K_M.gguf"]));
        assert_eq!(chosen(Some("q8_0")), gguf(&["M-Q8_0.gguf"]));
        assert_eq!(chosen(Some("IQ4_XS")), gguf(&["m.IQ4_XS.gguf"]));
        assert_eq!(chosen(Some("M-Q4_K_S.gguf")), gguf(&["M-Q4_K_S.gguf"]));
        let shards = gguf(&["big/M-F16-00001-of-00002.gguf", "big/M-F16-00002-of-00002.gguf"]);
        assert_eq!(chosen(Some("F16")), shards);
        assert_eq!(chosen(Some("big/M-F16-00002-of-00002.gguf")), shards, "any shard means all");
        for (which, said) in [("Q4_K", "has no Q4_K; it has"), ("Q2_K", "M-Q8_0.gguf"), ("README.md", "no .gguf file")]
        {
            let error = choose(&all, Some(which)).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        let one = files(&["anything.gguf"]);
        assert_eq!(choose(&one, None).unwrap(), gguf(&["anything.gguf"]));
        let error = choose(&files(&["a.gguf", "b.gguf"]), None).unwrap_err();
        assert!(error.contains("name one after a colon: a.gguf, b.gguf"), "{error}");
        let error = choose(&files(&["a-00001-of-00002.gguf"]), None).unwrap_err();
        assert!(error.contains("not a-00002-of-00002.gguf"), "{error}");
    }

    #[test]
    fn a_checkpoint_is_its_weights_and_what_is_beside_them() {
        let mut all =
            files(&["config.json", "tokenizer.json", "pytorch_model.bin", "model.safetensors", "x.safetensors"]);
        let chosen = files(&["config.json", "tokenizer.json", "model.safetensors"]);
        assert_eq!(choose(&all, None).unwrap(), Choice::Checkpoint(chosen));
        all[3] = INDEX.into();
        let chosen = files(&["config.json", "tokenizer.json", INDEX]);
        assert_eq!(choose(&all, None).unwrap(), Choice::Indexed(chosen));
        let index = br#"{"weight_map":{"a":"x.safetensors","b":"x.safetensors"}}"#;
        assert_eq!(indexed(index, &all).unwrap(), ["x.safetensors"]);
        let error = indexed(br#"{"weight_map":{"a":"../../y.safetensors"}}"#, &all).unwrap_err();
        assert!(error.contains("not there"), "{error}");
        assert!(indexed(b"{", &all).unwrap_err().contains("does not read"));
        all.remove(1);
        assert!(choose(&all, None).unwrap_err().contains("no tokenizer.json"));
        let error = choose(&files(&["model.onnx"]), None).unwrap_err();
        assert!(error.contains("neither .gguf nor .safetensors") && error.contains("model.onnx"), "{error}");
    }
}
