//! The kernels as the program carries them: PTX for compute capability 8.0, which every driver from R535 on compiles for its card.
//!
//! `cargo xtask kernels` makes these files of `kernels/*.cu` and checks that they are fresh. What a kernel takes is read from its PTX,
//! so that a launch with other arguments is refused before it reaches the driver.

use std::collections::HashMap;

/// A file of kernels.
#[derive(Debug)]
pub struct Module {
    /// The name of the source, without `.cu`.
    pub name: &'static str,
    /// Its PTX.
    pub text: &'static str,
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        /// All of them.
        pub static MODULES: &[Module] =
            &[$(Module { name: $name, text: include_str!(concat!("../../../kernels/ptx/", $name, ".ptx")) }),*];
    };
}

modules!(
    "bf16",
    "decode_f16",
    "decode_q8_0",
    "draw",
    "f16",
    "f32",
    "iq4_nl",
    "iq4_xs",
    "prefill_f16",
    "prefill_q8_0",
    "q2_k",
    "q3_k",
    "q4_0",
    "q4_1",
    "q4_k",
    "q5_0",
    "q5_1",
    "q5_k",
    "q6_k",
    "q8_0",
    "rate",
    "rows",
    "turn",
);

/// What a kernel takes: the bytes of each argument.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// Which of [`MODULES`] it is in.
    pub module: usize,
    /// Bytes of each argument.
    pub params: Vec<u8>,
}

/// Every kernel by its name.
pub fn entries() -> HashMap<&'static str, Entry> {
    let mut all = HashMap::new();
    for (module, Module { text, .. }) in MODULES.iter().enumerate() {
        for entry in text.split(".visible .entry ").skip(1) {
            let Some((name, rest)) = entry.split_once('(') else { continue };
            let params = rest.split(')').next().unwrap_or_default().lines().filter_map(size_of_param).collect();
            all.insert(name.trim(), Entry { module, params });
        }
    }
    all
}

/// Of a line as in `.param .u64 name,`.
fn size_of_param(line: &str) -> Option<u8> {
    match line.trim().strip_prefix(".param .")?.split_whitespace().next()? {
        "u64" | "s64" | "b64" | "f64" => Some(8),
        "u32" | "s32" | "b32" | "f32" => Some(4),
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_source_is_here_with_every_kernel_that_it_exports() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let entries = entries();
        let mut names: Vec<String> = Vec::new();
        for file in std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|end| end == "cu") {
                names.push(file.file_stem().unwrap().to_str().unwrap().to_owned());
            }
        }
        names.sort();
        assert!(names.iter().eq(MODULES.iter().map(|module| module.name)), "{names:?}");
        assert!(entries.len() > 100);
        for Module { name, text } in MODULES {
            assert!(text.contains(".version 8.2") && text.contains(".target sm_80"), "{name}");
            assert!(!text.contains(".extern .func"), "{name} calls what no driver has");
        }
        assert!(entries.values().all(|entry| !entry.params.is_empty() && !entry.params.contains(&0)));
    }

    #[test]
    fn what_a_kernel_takes_is_read_from_its_ptx() {
        let entries = entries();
        // x, y, bias, y_weight, weight, pick, out, bytes, scales, n, eps
        assert_eq!(entries["norm"].params, [8, 8, 8, 8, 8, 8, 8, 8, 8, 4, 4]);
        assert_eq!(entries["quantise"].params, [8, 8, 8, 8, 4]);
    }
}
