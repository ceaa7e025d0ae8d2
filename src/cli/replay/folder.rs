//! Where a replay keeps its state: a folder of its own, which it may wipe.
//!
//! Floor 5, part of `replay`.
//!
//! Invariant
//! - nothing is removed from a folder that does not carry the marker of a replay.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Made first and removed last: a folder with it holds nothing that anybody needs.
const MARKER: &str = "made-by-helios-replay";
const FOLDER: &str = "replay-state";
const REPORT: &str = "replay-report.json";

/// A folder that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum FolderError {
    #[error(
        "{}: was not made by a replay and is not empty; move it away, or set another data_dir",
        path.display()
    )]
    NotOurs { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Os { path: PathBuf, source: io::Error },
}

/// An empty folder for the state of one replay, within `data_dir`. What an earlier replay left
/// there is removed.
pub(super) fn fresh(data_dir: &Path) -> Result<PathBuf, FolderError> {
    let path = data_dir.join(FOLDER);
    let failed = |source| FolderError::Os {
        path: path.clone(),
        source,
    };
    match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(mut entries) => {
            let ours = path.join(MARKER).symlink_metadata().is_ok();
            if !ours && entries.next().is_some() {
                return Err(FolderError::NotOurs { path });
            }
            remove(&path).map_err(failed)?;
        }
    }
    fs::create_dir_all(&path).map_err(failed)?;
    fs::write(path.join(MARKER), b"Removed by the next replay.\n").map_err(failed)?;
    Ok(path)
}

/// Removes such a folder.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    // The marker goes last, so that a removal cut short can be taken up again.
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir_all(path)
}

/// Writes the report file beside the state and returns its path.
pub(super) fn write_report(data_dir: &Path, json: &[u8]) -> Result<PathBuf, FolderError> {
    let path = data_dir.join(REPORT);
    let written = fs::create_dir_all(data_dir).and_then(|()| fs::write(&path, json));
    match written {
        Ok(()) => Ok(path),
        Err(source) => Err(FolderError::Os { path, source }),
    }
}

/// Bytes that the files of a folder take on the disk; 0 for what can't be read.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    const BLOCK_BYTES: u64 = 512;
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| match metadata.is_dir() {
            true => disk_bytes(&path),
            false => metadata.blocks() * BLOCK_BYTES,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_replay_made_is_removed() {
        let data_dir = tempfile::tempdir().unwrap();
        let data_dir = data_dir.path().join("deep/er");
        let path = fresh(&data_dir).unwrap();
        fs::create_dir(path.join("shard")).unwrap();
        fs::write(path.join("shard/segment"), vec![1; 100_000]).unwrap();
        assert!(disk_bytes(&path) >= 100_000);
        assert_eq!(fresh(&data_dir).unwrap(), path);
        assert!(!path.join("shard").exists());

        fs::remove_file(path.join(MARKER)).unwrap();
        assert!(fresh(&data_dir).is_ok(), "an empty folder is anybody's");
        fs::remove_file(path.join(MARKER)).unwrap();
        fs::write(path.join("precious"), b"1").unwrap();
        assert!(matches!(fresh(&data_dir), Err(FolderError::NotOurs { .. })));
        assert!(path.join("precious").exists());

        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, b"a file").unwrap();
        assert!(matches!(fresh(&data_dir), Err(FolderError::Os { .. })));
    }

    #[test]
    fn the_report_makes_its_folder() {
        let data_dir = tempfile::tempdir().unwrap();
        let path = write_report(&data_dir.path().join("new"), b"{}").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"{}");
    }
}
