//! `hob push`

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::deploy::manifest_of;
use super::size;
use crate::config::manifest::Manifest;
use crate::instance::component;
use crate::sources::{Reference, Source, registry};

#[derive(clap::Args)]
pub struct Args {
    /// A component, a hob.toml that names one, or the folder of a hob.toml
    #[arg(value_name = "FILE.wasm|hob.toml|DIR")]
    what: PathBuf,
    /// Where to, as in oci://ghcr.io/acme/chat:1.2
    #[arg(value_name = "oci://...")]
    to: Reference,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let source = source(&args.what)?;
    let not_pushed = || format!("{source} was not pushed");
    let fetched = source.fetch().with_context(not_pushed)?;
    component::check_kind(&fetched.bytes).with_context(not_pushed)?;
    let exact = registry::push(&args.to, &fetched.bytes).with_context(not_pushed)?;
    println!("{} is there, {}: {exact}", args.to, size(fetched.bytes.len() as u64));
    Ok(())
}

fn source(what: &Path) -> anyhow::Result<Source> {
    Ok(match manifest_of(what) {
        Some(path) => Manifest::read(&path)?.component,
        None => Source::File(what.to_owned()),
    })
}
