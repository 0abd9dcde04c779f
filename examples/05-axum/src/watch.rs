//! Files that change. They are looked at now and then, which works on every file system, network and container mounts too.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(250);

/// What tells one version of a file from another, without reading it.
type Stamp = Option<(SystemTime, u64)>;

/// Calls `changed`, on a thread of its own, with the place of each file that is another than before. A file that is being
/// written is left until two looks see the same.
pub fn changes<const N: usize>(
    files: [PathBuf; N],
    mut changed: impl FnMut(usize) + Send + 'static,
) -> std::io::Result<()> {
    let mut taken = files.each_ref().map(|file| stamp(file));
    let mut seen = taken;
    let look = move || {
        loop {
            std::thread::sleep(EVERY);
            for (n, file) in files.iter().enumerate() {
                let before = std::mem::replace(&mut seen[n], stamp(file));
                // A file that is gone is on its way, or was removed for good: what was taken up stays.
                if seen[n].is_some() && seen[n] == before && seen[n] != taken[n] {
                    taken[n] = seen[n];
                    changed(n);
                }
            }
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(look).map(drop)
}

fn stamp(file: &Path) -> Stamp {
    let file = file.metadata().ok()?;
    Some((file.modified().ok()?, file.len()))
}
