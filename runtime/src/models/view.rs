//! What is known about a model of the store, for people and programs elsewhere.

use serde::{Deserialize, Serialize};

use super::keep::Keep;
use super::store::{Defaults, Manifest, ModelFile, ModelStore};
use super::tier::Tier;
use crate::digest::Digest;
use crate::names::ModelName;

/// A model of the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredModel {
    /// Its name.
    pub name: ModelName,
    /// What it is: two names with the same digest are the same model.
    pub digest: Digest,
    /// Bytes of its files.
    pub bytes: u64,
    /// Where they came from.
    pub source: String,
    /// The model that it was made from, if it was made here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ModelName>,
    /// When, in seconds since 1970.
    pub pulled_at: u64,
    /// Its files, if it has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ModelFile>,
    /// Its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The type of most of its weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// How many weights it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Most tokens of a conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
    /// Why it cannot be run by this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
    /// The nearest place that it can be had from.
    pub tier: Tier,
    /// The device, if it is in one's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How much of its files is in the host's memory, if that can be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_percent: Option<u8>,
    /// How long it stays in memory.
    #[serde(default, skip_serializing_if = "Keep::is_nothing")]
    pub keep: Keep,
    /// What its maker says about using it.
    #[serde(default, skip_serializing_if = "Defaults::is_nothing")]
    pub defaults: Defaults,
}

impl StoredModel {
    /// What is known about a model: its name's file, and the head of its weights.
    pub fn of(store: &ModelStore, manifest: Manifest) -> Self {
        let info = store.path(&manifest).map_err(|error| error.to_string());
        let info = info.and_then(|path| hob_gpu::inspect(&path).map_err(|error| error.to_string()));
        let (tier, cached_percent) = Tier::of_model(store, &manifest);
        let Manifest { name, digest, bytes, source, parent, pulled_at, keep, files, defaults } = manifest;
        let mut model = Self {
            name,
            digest,
            bytes,
            source,
            parent,
            pulled_at,
            files,
            architecture: None,
            quantization: None,
            parameters: None,
            context_tokens: None,
            unsupported: None,
            tier,
            device: None,
            cached_percent,
            keep,
            defaults,
        };
        match info {
            Ok(info) => {
                model.architecture = Some(info.architecture);
                model.quantization = Some(info.quantization);
                model.parameters = Some(info.parameters);
                model.context_tokens = Some(info.context_tokens);
                model.unsupported = info.memory.err().map(|why| why.to_string());
            }
            Err(why) => model.unsupported = Some(why),
        }
        model
    }

    /// Says that what has this digest is in the memory of a device.
    pub fn is_on(&mut self, digest: &str, device: &str) {
        if self.digest.to_string() == digest {
            (self.tier, self.device) = (Tier::Device, Some(device.to_owned()));
        }
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        match (self.tier, self.cached_percent) {
            (Tier::Device, _) => format!("{} ({})", Tier::Device, self.device.as_deref().unwrap_or("?")),
            (Tier::Disk, Some(percent @ 1..)) => format!("{}, {percent} % in host memory", Tier::Disk),
            (tier, _) => tier.to_string(),
        }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let text = match (&self.architecture, &self.quantization, self.context_tokens, &self.unsupported) {
            (Some(kind), _, _, Some(_)) => format!("{kind}, cannot run"),
            (Some(kind), Some(quantization), Some(context), None) => {
                format!("{kind} {quantization}, context {context}")
            }
            (_, _, _, Some(why)) => format!("cannot run: {why}"),
            _ => String::new(),
        };
        // The maker of the model wrote some of it, and a terminal would do as it is told.
        text.chars().filter(|c| !c.is_control()).collect()
    }
}
