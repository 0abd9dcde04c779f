//! Whether there is room on disk, asked before anything is fetched.

use std::path::PathBuf;

use super::error::PullError;

/// So much is left to the rest of the machine.
const SPARE: u64 = 64 << 20;

/// The room of a store.
pub struct Space {
    /// Where models lie.
    folders: Vec<PathBuf>,
    /// Most bytes that they may take.
    limit: Option<u64>,
}

impl Space {
    /// The room in `folders`, of which the first says which disk it is.
    pub fn new(folders: Vec<PathBuf>, limit: Option<u64>) -> Self {
        Self { folders, limit }
    }

    /// Whether `needed` bytes more fit.
    ///
    /// # Errors
    /// `Space`, with both numbers.
    pub fn check(&self, what: &str, needed: u64) -> Result<(), PullError> {
        if needed == 0 {
            return Ok(());
        }
        let refuse = |free: u64, why| Err(PullError::Space { what: what.to_owned(), needed, free, why });
        if let Some(limit) = self.limit {
            let left = limit.saturating_sub(self.used());
            if needed > left {
                return refuse(left, "left of HOB_MODELS_LIMIT; raise it, or remove models with `hob models rm`");
            }
        }
        match self.free() {
            Some(free) if needed.saturating_add(SPARE) > free => {
                refuse(free, "free on its disk; make room, or name another with --data or HOB_DATA")
            }
            _ => Ok(()),
        }
    }

    /// Bytes that are free for us; `None` where the system does not say.
    fn free(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(self.folders.first()?).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }

    /// Bytes that models take on disk, those on their way included.
    pub fn used(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let files = self.folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("x"), vec![1; 40_960]).unwrap();
        let space = |limit| Space::new(vec![home.path().to_owned()], limit);
        assert!(space(None).check("m", 1).is_ok());
        let error = space(None).check("m", u64::MAX).unwrap_err().to_string();
        assert!(error.contains("18446744073709551615 bytes more") && error.contains("free on its disk"), "{error}");
        assert!(space(Some(100_000)).check("m", 10_000).is_ok());
        let error = space(Some(100_000)).check("m", 90_000).unwrap_err().to_string();
        assert!(error.contains("HOB_MODELS_LIMIT"), "{error}");
    }
}
