//! The data directory: its lock, its format, one directory per shard.
//!
//! ```text
//! LOCK        held by the runtime that uses the directory
//! FORMAT      two lines: "helios data 1" and "shards N"
//! shard-000/  the segments of shard 0
//! ```
//!
//! Invariants
//! - the lock is an flock: it goes with the process that holds it, however that ends.
//! - `FORMAT` is written once, to another name first, and renamed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::id::ShardNo;

/// Version of the directory's layout.
const FORMAT: u32 = 1;

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// Another runtime uses it.
    #[error(
        "data directory {} is in use by another runtime; stop that one, or choose another data_dir",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It was to be read, and a server is running on it.
    #[error(
        "a server is running on data directory {}: talk to it with --socket PATH, or stop it first",
        path.display()
    )]
    Served {
        /// The directory.
        path: PathBuf,
    },
    /// It was to be read, and is not there.
    #[error("there is no data directory at {}; name one with --data, or in the configuration", path.display())]
    NotThere {
        /// The directory.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error(
        "data directory {} has format {found}, this program knows up to {known}; start the newer \
         program, or choose another data_dir",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The highest format known here.
        known: u32,
    },
    /// Not a data directory, or a damaged one.
    #[error(
        "{} does not read as a data directory's format; choose an empty data_dir, or restore the \
         file: \"helios data 1\" and \"shards N\" on two lines",
        path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Made with another number of shards.
    #[error(
        "data directory {} was made with {found} shards, not {wanted}; set shards = {found}, or \
         \"auto\"",
        path.display()
    )]
    Shards {
        /// The directory.
        path: PathBuf,
        /// Shards it has.
        found: u16,
        /// Shards asked for.
        wanted: u16,
    },
    /// It may not be read or written.
    #[error("no permission for {}; give its user access, or choose another data_dir", path.display())]
    Permission {
        /// The file or directory.
        path: PathBuf,
    },
    /// Something else has its name.
    #[error("{} is no directory; move it away, or choose another data_dir", path.display())]
    NotADirectory {
        /// What should be a directory.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Os {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

fn refused(path: &Path, source: io::Error) -> DataDirError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied => DataDirError::Permission { path },
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            DataDirError::NotADirectory { path }
        }
        _ => DataDirError::Os { path, source },
    }
}

/// A data directory that this runtime holds the lock of.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    shards: u16,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, or makes it with `wanted` shards, and locks it. `any_shards`: take the
    /// number of shards that it has.
    pub(super) fn open(path: &Path, wanted: u16, any_shards: bool) -> Result<Self, DataDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| refused(path, source))?;
        let lock_path = path.join("LOCK");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| refused(&lock_path, source))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DataDirError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(errno) => return Err(refused(&lock_path, errno.into())),
        }
        let shards = match find_format(path)? {
            Some(shards) => shards,
            None => {
                let format_path = path.join("FORMAT");
                write_format(path, &format_path, wanted)
                    .map_err(|source| refused(&format_path, source))?;
                wanted
            }
        };
        if shards != wanted && !any_shards {
            let path = path.to_owned();
            return Err(DataDirError::Shards {
                path,
                found: shards,
                wanted,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            shards,
            _lock: lock,
        })
    }

    /// Opens the directory to be read, beside others that read it; nothing in it is made or changed.
    pub(super) fn open_read_only(path: &Path) -> Result<Self, DataDirError> {
        let not_there = || DataDirError::NotThere {
            path: path.to_owned(),
        };
        let lock_path = path.join("LOCK");
        let lock = File::open(&lock_path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => not_there(),
            _ => refused(&lock_path, source),
        })?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DataDirError::Served {
                    path: path.to_owned(),
                });
            }
            Err(errno) => return Err(refused(&lock_path, errno.into())),
        }
        let shards = find_format(path)?.ok_or_else(not_there)?;
        Ok(Self {
            path: path.to_owned(),
            shards,
            _lock: lock,
        })
    }

    /// Shards of the directory.
    pub(super) fn shards(&self) -> u16 {
        self.shards
    }

    /// Where a shard's segments lie.
    pub(super) fn shard(&self, no: ShardNo) -> PathBuf {
        self.path.join(format!("shard-{:03}", no.0))
    }
}

/// What the directory says of itself; `None` where it says nothing yet.
fn find_format(dir: &Path) -> Result<Option<u16>, DataDirError> {
    let path = dir.join("FORMAT");
    match fs::read_to_string(&path) {
        Ok(text) => read_format(dir, &path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(DataDirError::NotOurs { path })
        }
        Err(source) => Err(refused(&path, source)),
    }
}

fn read_format(dir: &Path, file: &Path, text: &str) -> Result<u16, DataDirError> {
    let ours = || DataDirError::NotOurs {
        path: file.to_owned(),
    };
    let mut lines = text.lines();
    let format = lines
        .next()
        .and_then(|line| line.strip_prefix("helios data "))
        .ok_or_else(ours)?;
    let found: u32 = format.parse().map_err(|_| ours())?;
    if found > FORMAT {
        return Err(DataDirError::Newer {
            path: dir.to_owned(),
            found,
            known: FORMAT,
        });
    }
    let shards = lines
        .next()
        .and_then(|line| line.strip_prefix("shards "))
        .ok_or_else(ours)?;
    shards
        .parse()
        .ok()
        .filter(|&shards: &u16| shards > 0)
        .ok_or_else(ours)
}

fn write_format(dir: &Path, path: &Path, shards: u16) -> io::Result<()> {
    let draft = dir.join("FORMAT.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    write!(file, "helios data {FORMAT}\nshards {shards}\n")?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, wanted: u16, any: bool) -> Result<u16, DataDirError> {
        DataDir::open(dir, wanted, any).map(|dir| dir.shards())
    }

    #[test]
    fn remembers_its_shards_and_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        let held = DataDir::open(&path, 3, false).unwrap();
        assert!(matches!(
            open(&path, 3, false),
            Err(DataDirError::Locked { .. })
        ));
        drop(held);
        assert_eq!(open(&path, 1, true).unwrap(), 3);
        let error = open(&path, 1, false).unwrap_err();
        assert!(matches!(
            error,
            DataDirError::Shards {
                found: 3,
                wanted: 1,
                ..
            }
        ));
        assert!(error.to_string().contains("set shards = 3"), "{error}");
    }

    #[test]
    fn formats_it_does_not_know_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let format = dir.path().join("FORMAT");
        fs::write(&format, "helios data 2\nshards 1\n").unwrap();
        let newer = open(dir.path(), 1, true).unwrap_err();
        assert!(matches!(
            newer,
            DataDirError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ));
        let bad: [&[u8]; 6] = [
            b"",
            b"helios data 1\n",
            b"helios data x\nshards 1",
            b"helios data 1\nshards 0\n",
            b"helios data 1\nshards -1\n",
            b"\xff\xfe",
        ];
        for text in bad {
            fs::write(&format, text).unwrap();
            let error = open(dir.path(), 1, true).unwrap_err();
            assert!(
                matches!(error, DataDirError::NotOurs { .. }),
                "{text:?}: {error}"
            );
        }
    }
}
