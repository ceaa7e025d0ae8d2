//! The segment files of one shard as recovery sees them, and the real directory.
//!
//! Floor 1. Blocking calls, for the start and for tools only; a running shard goes through
//! [`super::Disk`]. Two implementations: [`Directory`], and memory with faults in tests.
//!
//! Invariants
//! - nothing that may hold a record is ever lost: a segment is renamed to `NAME.orphan-N`, bytes that
//!   are cut off one are copied to [`tail_file_name`] first.
//! - names that are not `DDDDDDDD.seg` are left alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::id::SegmentNo;

/// Bytes copied at a time; a hole is left for as many zeros.
const COPY_BLOCK_BYTES: usize = 64 << 10;

/// What the file system refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The user of this process may not do that.
    #[error("no permission to {call} {}; run as its owner or change its mode", path.display())]
    PermissionDenied {
        /// What was tried.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
    },
    /// No room on the file system, or over a quota.
    #[error("the disk is full at {call} of {}; free space and start again", path.display())]
    NoSpace {
        /// What was tried.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
    },
    /// It is not there.
    #[error("{} is not there; restore it from a copy, or correct data_dir", path.display())]
    NotFound {
        /// The file or directory.
        path: PathBuf,
    },
    /// Anything else.
    #[error(
        "{call} of {} failed: {}; check the device and start again",
        path.display(),
        io::Error::from_raw_os_error(*errno)
    )]
    Os {
        /// What was tried.
        call: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error number of the operating system, 0 if it gave none.
        errno: i32,
    },
}

impl FilesError {
    /// The error of `call` on `path`.
    #[must_use]
    pub fn new(call: &'static str, path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                Self::PermissionDenied { call, path }
            }
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace { call, path },
            Some(Errno::NOENT) => Self::NotFound { path },
            errno => Self::Os {
                call,
                path,
                errno: errno.map_or(0, Errno::raw_os_error),
            },
        }
    }
}

/// A segment's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentFile {
    /// Its number, by its name.
    pub segment: SegmentNo,
    /// Length of the file.
    pub bytes: u64,
}

/// What recovery needs of a directory of segments.
pub trait SegmentFiles {
    /// Every segment file, in the order of the numbers.
    fn list(&mut self) -> Result<Vec<SegmentFile>, FilesError>;

    /// Reads at `offset`; less than `buffer.len()` bytes only at the end of the file.
    fn read_at(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, FilesError>;

    /// Writes all of `bytes` at `offset`, making the file longer if need be.
    fn write_at(&mut self, segment: SegmentNo, offset: u64, bytes: &[u8])
    -> Result<(), FilesError>;

    /// Puts the file's bytes and length on the device.
    fn sync(&mut self, segment: SegmentNo) -> Result<(), FilesError>;

    /// Cuts the file.
    fn truncate(&mut self, segment: SegmentNo, bytes: u64) -> Result<(), FilesError>;

    /// The first offset at or after `offset` that may hold something else than zero; `None` if
    /// there is only a hole until the end.
    fn data_from(&mut self, segment: SegmentNo, offset: u64) -> Result<Option<u64>, FilesError>;

    /// Copies `bytes` bytes from `from` on to [`tail_file_name`], durable with its name; does nothing
    /// if a file of that name is there, as one copy of the same bytes is enough.
    fn keep_tail(
        &mut self,
        segment: SegmentNo,
        from: u64,
        bytes: u64,
        mark: u32,
    ) -> Result<(), FilesError>;

    /// Renames the file so that it is no segment any more.
    fn set_aside(&mut self, segment: SegmentNo) -> Result<(), FilesError>;

    /// Deletes a file that holds no record.
    fn remove_empty(&mut self, segment: SegmentNo) -> Result<(), FilesError>;

    /// Puts the names on the device.
    fn sync_directory(&mut self) -> Result<(), FilesError>;

    /// The file of a segment, for messages.
    fn path(&self, segment: SegmentNo) -> PathBuf;
}

/// The name of a segment's file in its directory.
#[must_use]
pub fn segment_file_name(segment: SegmentNo) -> String {
    format!("{:08}.seg", segment.0)
}

/// The name under which the bytes are kept that were behind the end of a log, at byte `from` of a
/// segment; `mark` is the checksum of its header.
#[must_use]
pub fn tail_file_name(segment: SegmentNo, from: u64, mark: u32) -> String {
    format!("{}.tail-{from}-{mark:08x}", segment_file_name(segment))
}

/// The segment whose file has this name.
#[must_use]
pub fn segment_of_file_name(name: &str) -> Option<SegmentNo> {
    let segment = SegmentNo(name.strip_suffix(".seg")?.parse().ok()?);
    (segment_file_name(segment) == name).then_some(segment)
}

/// A real directory of segments.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Whether files are opened to be written, too.
    writes: bool,
    /// The file used last.
    open: Option<(SegmentNo, File)>,
}

impl Directory {
    /// The directory at `path`, which must exist; nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            writes: true,
            open: None,
        }
    }

    /// The same, where a right to read is enough, and every call that writes fails.
    #[must_use]
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self {
            writes: false,
            ..Self::new(path)
        }
    }

    fn file(&mut self, segment: SegmentNo) -> Result<&File, FilesError> {
        let held = self.open.take_if(|(open, _)| *open == segment);
        let file = match held {
            Some((_, file)) => file,
            None => {
                let path = self.path(segment);
                OpenOptions::new()
                    .read(true)
                    .write(self.writes)
                    .open(&path)
                    .map_err(|error| FilesError::new("open", &path, &error))?
            }
        };
        Ok(&self.open.insert((segment, file)).1)
    }

    fn call<T>(
        &mut self,
        segment: SegmentNo,
        call: &'static str,
        action: impl FnOnce(&File) -> io::Result<T>,
    ) -> Result<T, FilesError> {
        let result = action(self.file(segment)?);
        result.map_err(|error| FilesError::new(call, &self.path(segment), &error))
    }

    /// Copies a range to a file, but for blocks of zeros, and syncs it.
    fn copy_range(
        &mut self,
        segment: SegmentNo,
        from: u64,
        bytes: u64,
        to: &Path,
    ) -> Result<(), FilesError> {
        let failed = |error: io::Error| FilesError::new("write", to, &error);
        let copy = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(to)
            .map_err(failed)?;
        let mut block = vec![0; COPY_BLOCK_BYTES];
        for start in (0..bytes).step_by(COPY_BLOCK_BYTES) {
            let want = (bytes - start).min(COPY_BLOCK_BYTES as u64) as usize;
            let got = self.read_at(segment, from + start, &mut block[..want])?;
            if block[..got].iter().any(|byte| *byte != 0) {
                copy.write_all_at(&block[..got], start).map_err(failed)?;
            }
        }
        copy.set_len(bytes).map_err(failed)?;
        copy.sync_all().map_err(failed)
    }

    /// The first free name for a segment that is set aside.
    fn orphan_path(&self, segment: SegmentNo) -> io::Result<PathBuf> {
        let name = segment_file_name(segment);
        for number in 1..u32::MAX {
            let path = self.path.join(format!("{name}.orphan-{number}"));
            match path.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl SegmentFiles for Directory {
    fn list(&mut self) -> Result<Vec<SegmentFile>, FilesError> {
        let path = self.path.clone();
        let failed = |error: io::Error| FilesError::new("list", &path, &error);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(segment) = entry.file_name().to_str().and_then(segment_of_file_name) {
                let bytes = entry
                    .metadata()
                    .map_err(|error| FilesError::new("stat", &entry.path(), &error))?
                    .len();
                files.push(SegmentFile { segment, bytes });
            }
        }
        files.sort_by_key(|file| file.segment);
        Ok(files)
    }

    fn read_at(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, FilesError> {
        self.call(segment, "read", |file| {
            let mut done = 0;
            while done < buffer.len() {
                match file.read_at(&mut buffer[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(bytes) => done += bytes,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(done)
        })
    }

    fn write_at(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), FilesError> {
        self.call(segment, "write", |file| file.write_all_at(bytes, offset))
    }

    fn sync(&mut self, segment: SegmentNo) -> Result<(), FilesError> {
        self.call(segment, "sync", File::sync_data)
    }

    fn truncate(&mut self, segment: SegmentNo, bytes: u64) -> Result<(), FilesError> {
        self.call(segment, "truncate", |file| file.set_len(bytes))
    }

    fn data_from(&mut self, segment: SegmentNo, offset: u64) -> Result<Option<u64>, FilesError> {
        self.call(segment, "seek", |file| {
            match rustix::fs::seek(file, SeekFrom::Data(offset)) {
                Ok(data) => Ok(Some(data)),
                Err(Errno::NXIO) => Ok(None),
                // A file system without holes: everything may be data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
                Err(errno) => Err(errno.into()),
            }
        })
    }

    fn keep_tail(
        &mut self,
        segment: SegmentNo,
        from: u64,
        bytes: u64,
        mark: u32,
    ) -> Result<(), FilesError> {
        let name = tail_file_name(segment, from, mark);
        let (kept, partial) = (self.path.join(&name), self.path.join(name + ".partial"));
        if kept.symlink_metadata().is_err() {
            self.copy_range(segment, from, bytes, &partial)?;
            std::fs::rename(&partial, &kept)
                .map_err(|error| FilesError::new("rename", &partial, &error))?;
        }
        self.sync_directory()
    }

    fn set_aside(&mut self, segment: SegmentNo) -> Result<(), FilesError> {
        let path = self.path(segment);
        self.orphan_path(segment)
            .and_then(|orphan| std::fs::rename(&path, orphan))
            .map_err(|error| FilesError::new("rename", &path, &error))?;
        self.open = None;
        Ok(())
    }

    fn remove_empty(&mut self, segment: SegmentNo) -> Result<(), FilesError> {
        let path = self.path(segment);
        self.open = None;
        std::fs::remove_file(&path).map_err(|error| FilesError::new("remove", &path, &error))
    }

    fn sync_directory(&mut self) -> Result<(), FilesError> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| FilesError::new("sync", &self.path, &error))
    }

    fn path(&self, segment: SegmentNo) -> PathBuf {
        self.path.join(segment_file_name(segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_segments_are_segments() {
        assert_eq!(segment_of_file_name("00000012.seg"), Some(SegmentNo(12)));
        assert_eq!(
            segment_of_file_name("4294967295.seg"),
            Some(SegmentNo(u32::MAX))
        );
        for name in [
            "12.seg",
            "+0000012.seg",
            "00000012.seg.orphan-1",
            "00000012",
            "0000001x.seg",
        ] {
            assert_eq!(segment_of_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn errors_say_which_file_and_what_to_do() {
        let path = Path::new("/data/00000001.seg");
        let error = |errno: Errno| FilesError::new("open", path, &errno.into()).to_string();
        for (errno, cure) in [
            (Errno::ACCESS, "run as its owner"),
            (Errno::NOSPC, "free space"),
            (Errno::NOENT, "restore it"),
            (Errno::IO, "check the device"),
        ] {
            let text = error(errno);
            assert!(
                text.contains(cure) && text.contains("00000001.seg"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_directory_reads_back_what_it_wrote_and_keeps_what_it_sets_aside() {
        let place = tempfile::tempdir().unwrap();
        let mut files = Directory::new(place.path());
        let (one, two) = (SegmentNo(1), SegmentNo(2));
        for segment in [two, one] {
            File::create(files.path(segment)).unwrap();
        }
        std::fs::write(place.path().join("notes.txt"), "left alone").unwrap();
        files.write_at(one, 100, b"bytes").unwrap();
        files.sync(one).unwrap();
        let listed: Vec<_> = files
            .list()
            .unwrap()
            .iter()
            .map(|f| (f.segment, f.bytes))
            .collect();
        assert_eq!(listed, [(one, 105), (two, 0)]);
        let mut buffer = [1; 10];
        assert_eq!(files.read_at(one, 98, &mut buffer).unwrap(), 7);
        assert_eq!(&buffer[..7], b"\0\0bytes");
        assert_eq!(files.data_from(two, 0).unwrap(), None);
        assert!(
            files
                .data_from(one, 0)
                .unwrap()
                .is_some_and(|data| data <= 100)
        );
        files.truncate(one, 50).unwrap();
        assert_eq!(files.data_from(one, 50).unwrap(), None);

        for round in 1..=2 {
            if round == 2 {
                File::create(files.path(one)).unwrap();
            }
            files.set_aside(one).unwrap();
        }
        files.remove_empty(two).unwrap();
        files.sync_directory().unwrap();
        assert!(files.list().unwrap().is_empty());
        let mut names: Vec<_> = std::fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "00000001.seg.orphan-1",
                "00000001.seg.orphan-2",
                "notes.txt"
            ]
        );
        let missing = files.read_at(one, 0, &mut buffer).unwrap_err();
        assert_eq!(
            missing,
            FilesError::NotFound {
                path: files.path(one)
            }
        );
    }
}
