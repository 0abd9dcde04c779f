//! `hob models`: getting models, and what is done with those that are here. With `--server` it is done there.

mod pull;

use anyhow::{Context as _, bail};
use hob_gpu::EngineConfig;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Global, ago, size, table};
use crate::api::ModelView;
use crate::data::DataDir;
use crate::models::Freed;
use crate::models::catalog;
use crate::models::keep::{Keep, Share};
use crate::models::store::{Manifest, ModelStore};
use crate::models::tier::Tier;
use crate::models::view::StoredModel;
use crate::names::{ModelName, ModelRef};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Get a model
    Pull(pull::Args),
    /// List the models that are here
    List {
        /// Those that have a short name, too, whether they are here or not
        #[arg(long)]
        known: bool,
        /// As JSON, for programs
        #[arg(long, conflicts_with = "known")]
        json: bool,
    },
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
    /// Give back the memory that a model takes in a running server, or stop its load; one that is in use stays
    Evict {
        /// A name from `hob models ps`
        name: ModelName,
    },
    /// Show what is known about a model, and what it takes to run it
    Show {
        /// A name from `hob models list`, a .gguf file, or a folder with a safetensors checkpoint
        model: ModelRef,
    },
    /// Remove models, with the files that no other name needs
    Rm {
        /// Names from `hob models list`
        #[arg(required = true)]
        names: Vec<ModelName>,
    },
    /// Give another name to a model; its files are there once
    Cp {
        /// A name from `hob models list`
        from: ModelName,
        /// The other name
        to: ModelName,
    },
    /// Read all files of models, and say which are damaged
    Verify {
        /// Names from `hob models list` [default: all of them]
        names: Vec<ModelName>,
    },
    /// Remove files that no model needs, and what is left of pulls that were stopped
    Gc,
}

pub fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let store = || anyhow::Ok(ModelStore::new(DataDir::open(global.data())?));
    let here_only = |what: &str| match global.is_elsewhere() {
        true => bail!("`hob models {what}` is for the machine it runs on: leave --server and HOB_SERVER out"),
        false => store(),
    };
    match command {
        Command::Pull(args) => pull::run(global, &args),
        Command::Ps { json } => ps(&global.client()?.models()?, json),
        Command::List { known, json } => {
            let models = match global.is_elsewhere() {
                true => global.client()?.stored_models()?,
                false => {
                    let store = store()?;
                    let mut models: Vec<_> =
                        store.list()?.into_iter().map(|model| StoredModel::of(&store, model)).collect();
                    // A server that runs beside this knows which are in a device's memory.
                    let resident = global.client().and_then(|client| Ok(client.models()?)).unwrap_or_default();
                    for view in resident.iter().filter(|view| view.tier == Tier::Device) {
                        models.iter_mut().for_each(|model| model.is_on(&view.digest, &view.device));
                    }
                    models
                }
            };
            list(&models, known, json)
        }
        Command::Keep { name, warm, pin, idle, priority, share } => {
            keep(&here_only("keep")?, &name, Keep { warm, pinned: pin, idle_s: idle, priority, share })
        }
        Command::Evict { name } => {
            match global.client()?.evict(&name)? {
                true => println!("{name} is out of memory; whoever asks for it has it loaded again"),
                false => println!("{name} was not in memory"),
            }
            Ok(())
        }
        Command::Show { model: ModelRef::Stored(name) } if global.is_elsewhere() => {
            println!("{}", serde_json::to_string_pretty(&global.client()?.stored_model(&name)?)?);
            Ok(())
        }
        Command::Show { model } => show(&store()?, &model),
        Command::Rm { names } => names.iter().try_for_each(|name| {
            let freed = match global.is_elsewhere() {
                true => global.client()?.remove_model(name)?,
                false => store()?.remove(name)?,
            };
            println!("{name} is removed; {}", freed_text(freed));
            Ok(())
        }),
        Command::Cp { from, to } => {
            match global.is_elsewhere() {
                true => global.client()?.copy_model(&from, &to)?,
                false => store()?.copy(&from, &to)?,
            }
            println!("{to} is {from}");
            Ok(())
        }
        Command::Verify { names } => verify(&here_only("verify")?, names),
        Command::Gc => {
            let freed = match global.is_elsewhere() {
                true => global.client()?.collect_models()?,
                false => store()?.collect()?,
            };
            println!("{}", freed_text(freed));
            Ok(())
        }
    }
}

fn freed_text(freed: Freed) -> String {
    match freed.files {
        0 => "no file was of no use".into(),
        1 => format!("one file less, {}", size(freed.bytes)),
        files => format!("{files} files less, {}", size(freed.bytes)),
    }
}

fn verify(store: &ModelStore, names: Vec<ModelName>) -> anyhow::Result<()> {
    let names = if names.is_empty() { store.names()? } else { names };
    let (mut damaged, all) = (Vec::new(), names.len());
    for name in names {
        let style =
            "{msg} {wide_bar:.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";
        let style = ProgressStyle::with_template(style).expect("the template is written here");
        let bar = ProgressBar::new(0).with_style(style).with_message(format!("reading {name}"));
        let found = store.verify(&name, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let wrong = match found {
            Ok(wrong) => wrong,
            Err(error @ crate::models::store::StoreError::NotFound(_)) => return Err(error.into()),
            Err(error) => vec![error.to_string()],
        };
        match wrong.is_empty() {
            true => println!("{name} is whole"),
            false => {
                println!("{name} is damaged:");
                wrong.iter().for_each(|why| println!("  {why}"));
                damaged.push(name.to_string());
            }
        }
    }
    if damaged.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {all} damaged: {}; `hob models pull NAME --check` gets again what is",
        damaged.len(),
        damaged.join(", ")
    )
}

fn keep(store: &ModelStore, name: &ModelName, keep: Keep) -> anyhow::Result<()> {
    store.keep(name, keep)?;
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

fn list(here: &[StoredModel], known: bool, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(here)?);
        return Ok(());
    }
    if here.is_empty() && !known {
        println!(
            "no model is here; `hob models list --known` shows those with a short name, `hob models pull` gets one"
        );
        return Ok(());
    }
    let row = |model: &StoredModel| {
        let digest = model.digest.to_string()[..19].to_owned();
        [model.name.to_string(), size(model.bytes), digest, model.summary(), model.place(), ago(model.pulled_at)]
    };
    let mut rows: Vec<_> = here.iter().map(row).collect();
    let more = catalog::ENTRIES.iter().filter(|_| known);
    for entry in more.filter(|entry| !here.iter().any(|model| model.name.as_str() == entry.name)) {
        let what = format!("{}; {}", entry.about, entry.license);
        let bytes = entry.bytes.map_or("-".into(), size);
        let place = Tier::Pullable.to_string();
        rows.push([entry.name.into(), bytes, "-".into(), what, place, "not pulled".into()]);
    }
    table(["NAME", "SIZE", "DIGEST", "WHAT", "WHERE", "PULLED"], &rows);
    Ok(())
}

fn show(store: &ModelStore, model: &ModelRef) -> anyhow::Result<()> {
    let (path, stored) = match model {
        ModelRef::Stored(name) => {
            let manifest = store.get(name)?;
            (store.path(&manifest)?, Some(manifest))
        }
        ModelRef::Files(path) => (path.clone(), None),
    };
    let mut rows = match hob_gpu::inspect(&path) {
        Ok(info) => facts(info),
        // It is here; what it is for, nobody knows yet.
        Err(error) if stored.is_some() => vec![("cannot run", error.to_string())],
        Err(error) => return Err(error).with_context(|| format!("{model} cannot be read")),
    };
    match stored {
        Some(manifest) => rows.extend(kept(&manifest)),
        None => rows.push(("path", path.display().to_string())),
    }
    for (what, value) in rows {
        // Some of it was written by whoever made the model, and a terminal would do as it is told.
        let value: String = value.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        println!("{what:13}  {value}");
    }
    Ok(())
}

/// What the head of its weights says.
fn facts(info: hob_gpu::ModelInfo) -> Vec<(&'static str, String)> {
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
    rows
}

/// What the store says.
fn kept(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let mut rows = match manifest.files.is_empty() {
        true => vec![("file", format!("{}, {}", size(manifest.bytes), manifest.digest))],
        false => {
            let lines =
                manifest.files.iter().map(|file| format!("{}, {}, {}", file.path, size(file.bytes), file.digest));
            vec![("files", lines.collect::<Vec<_>>().join("\n               "))]
        }
    };
    let first_line =
        |text: &str| text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    rows.extend(manifest.defaults.system.as_deref().map(|text| ("system", first_line(text))));
    if !manifest.defaults.parameters.is_empty() {
        let parameters = manifest.defaults.parameters.iter().map(|(name, value)| format!("{name} {value}"));
        rows.push(("defaults", parameters.collect::<Vec<_>>().join(", ")));
    }
    rows.extend(manifest.defaults.license.as_deref().map(|text| ("licence", first_line(text))));
    rows.extend(manifest.parent.as_ref().map(|parent| ("made from", parent.to_string())));
    rows.extend([
        ("in memory", manifest.keep.to_string()),
        ("source", manifest.source.replace(' ', "\n               ")),
        ("pulled", ago(manifest.pulled_at)),
    ]);
    rows
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
