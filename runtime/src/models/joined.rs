//! A file that is made of others, part by part, and hashed on the way.

use std::io::{Read, Write as _};

use super::fetch::Show;
use super::progress::Progress;
use super::store::ModelStore;
use crate::digest::{Digest, Hasher};

/// Which side failed.
pub enum Failed {
    /// Where the bytes come from.
    Reading(std::io::Error),
    /// The disk.
    Writing(std::io::Error),
}

/// A file that grows part by part.
pub struct Joined {
    file: tempfile::NamedTempFile,
    /// Of what it has so far.
    pub hasher: Hasher,
    /// How many that are.
    pub bytes: u64,
}

impl Joined {
    /// Begins with nothing.
    pub fn new(file: tempfile::NamedTempFile) -> Self {
        Self { file, hasher: Hasher::default(), bytes: 0 }
    }

    /// Appends what there is: at most `most` bytes, or, where that is `exact`, so many.
    pub fn add(&mut self, from: impl Read, name: &str, most: u64, exact: bool, show: Show<'_>) -> Result<(), Failed> {
        let wrong = |how: &str| {
            let why = format!("it has {how} than the {most} bytes that it should have");
            Failed::Reading(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
        };
        let mut from = from.take(most.saturating_add(1));
        let mut buffer = vec![0; 1 << 18];
        let mut done = 0;
        loop {
            let n = from.read(&mut buffer).map_err(Failed::Reading)?;
            if n == 0 && exact && done < most {
                return Err(wrong("fewer"));
            }
            if n == 0 {
                return Ok(());
            }
            if done + n as u64 > most {
                return Err(wrong("more"));
            }
            self.hasher.update(&buffer[..n]);
            self.file.write_all(&buffer[..n]).map_err(Failed::Writing)?;
            done += n as u64;
            self.bytes += n as u64;
            show(&Progress::Unpacking { name, done, total: most });
        }
    }

    /// Gives it its place in the store.
    pub fn keep(self, store: &ModelStore) -> std::io::Result<(Digest, u64)> {
        let digest = self.hasher.finish();
        store.data().keep(self.file, &store.blob(&digest))?;
        Ok((digest, self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataDir;

    #[test]
    fn a_part_is_as_long_as_it_should_be() {
        let home = tempfile::tempdir().unwrap();
        let data = DataDir::open(Some(home.path())).unwrap();
        let add = |most, exact| {
            let mut joined = Joined::new(data.temporary().unwrap());
            joined.add(&b"seven b"[..], "x", most, exact, &mut |_| ()).map(|()| joined.bytes).map_err(|failed| {
                match failed {
                    Failed::Reading(why) | Failed::Writing(why) => why.to_string(),
                }
            })
        };
        assert_eq!((add(7, true), add(8, false)), (Ok(7), Ok(7)));
        assert!(add(8, true).unwrap_err().contains("fewer than the 8 bytes"));
        assert!(add(6, false).unwrap_err().contains("more than the 6 bytes"));
        assert!(add(u64::MAX, false).is_ok());
    }
}
