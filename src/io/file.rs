//! Segment files: their names, and each thing that is done to one.
//!
//! Floor 3, part of `io`. Plain blocking calls on std files, used by both backends and by
//! `ShardDisk`; who may wait for a device is decided by the callers.
//!
//! Invariants
//! - a file that could not be made completely is removed, and one that was there is never touched.
//! - a name is durable (its directory synced) before a create is answered.
//! - short writes and reads go on where they stopped; an interrupted call is repeated; a failed
//!   sync is not.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::line::Made;
use crate::crash;
use crate::id::SegmentNo;
use crate::segment::DiskError;

/// Where a segment lies in its shard's directory.
pub(super) fn path(directory: &Path, segment: SegmentNo) -> PathBuf {
    directory.join(format!("{:08}.seg", segment.0))
}

/// The segments in a directory and their bytes, ascending. Other files are left out.
pub(super) fn list(directory: &Path) -> io::Result<Vec<(SegmentNo, u64)>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".seg"))
            .and_then(|digits| digits.parse().ok())
            .map(SegmentNo);
        // Only a name that we would have given ourselves: not "+1.seg", not "1.seg".
        if let Some(segment) = number
            && path(directory, segment) == entry.path()
        {
            segments.push((segment, entry.metadata()?.len()));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Makes a shard's directory, and its name durable.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(directory)?;
    match directory.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Makes a segment of `bytes`, all preallocated and zero, its name durable. Its size is
/// made durable by the first sync that needs it.
/// With it comes a second descriptor of the file, for whoever syncs it.
pub(super) fn create(
    directory: &Path,
    segment: SegmentNo,
    bytes: u32,
) -> Result<(Made, File), DiskError> {
    let path = path(directory, segment);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        // Whatever the mode of a directory that somebody else made: what agents store is nobody else's.
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed("open", segment, &error))?;
    crash::point("io.named");
    let again = file.try_clone();
    let again = again.map_err(|error| failed("dup", segment, &error));
    let made = again.and_then(|again| {
        complete(&file, directory, segment, bytes)?;
        Ok(again)
    });
    match made {
        Ok(again) => Ok((Made { file, bytes }, again)),
        Err(error) => {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
    }
}

fn complete(
    file: &File,
    directory: &Path,
    segment: SegmentNo,
    bytes: u32,
) -> Result<(), DiskError> {
    let size = u64::from(bytes);
    let allocated = loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Err(Errno::INTR) => {}
            done => break done,
        }
    };
    match allocated {
        // A file system that can't preallocate still serves; a full disk is then found by a write.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(size),
        Err(Errno::INVAL) if bytes == 0 => Ok(()),
        done => done.map_err(io::Error::from),
    }
    .map_err(|error| failed("fallocate", segment, &error))?;
    sync_directory(directory, segment)
}

/// Opens a segment that exists.
pub(super) fn open(directory: &Path, segment: SegmentNo) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path(directory, segment))
        .map_err(|error| failed("open", segment, &error))
}

/// Opens a segment that exists, for reading.
pub(super) fn open_to_read(directory: &Path, segment: SegmentNo) -> Result<File, DiskError> {
    File::open(path(directory, segment)).map_err(|error| failed("open", segment, &error))
}

/// Opens a segment for reading if the kernel has all it takes in memory.
pub(super) fn open_cached(directory: &Path, segment: SegmentNo) -> Option<File> {
    let (path, flags) = (path(directory, segment), OFlags::RDONLY | OFlags::CLOEXEC);
    let (mode, resolve) = (Mode::empty(), ResolveFlags::CACHED);
    match rustix::fs::openat2(rustix::fs::CWD, &path, flags, mode, resolve) {
        Ok(file) => Some(file.into()),
        // Before Linux 5.12, or forbidden by a filter that knows the older calls only: those wait for a
        // directory's block, at worst.
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => File::open(path).ok(),
        Err(_) => None,
    }
}

/// Fills all of `buffer` from the page cache; `false` where it does not hold all of it.
///
/// A file system that can't tell (`EOPNOTSUPP`) answers `false` for ever, so that every read goes
/// through the I/O core; but a file system in memory (tmpfs) has no device to wait for.
pub(super) fn read_cached(file: &File, offset: u32, buffer: &mut [u8]) -> bool {
    let wanted = buffer.len();
    let mut into = [IoSliceMut::new(buffer)];
    match rustix::io::preadv2(file, &mut into, u64::from(offset), ReadWriteFlags::NOWAIT) {
        Ok(bytes) => bytes == wanted,
        Err(Errno::OPNOTSUPP) if is_memory(file) => {
            file.read_exact_at(&mut into[0], u64::from(offset)).is_ok()
        }
        Err(Errno::OPNOTSUPP) => {
            static TOLD: AtomicBool = AtomicBool::new(false);
            if !TOLD.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the data directory's file system can't say what is in memory: every read of a \
                     segment goes through the I/O core; ext4, xfs and btrfs can"
                );
            }
            false
        }
        Err(_) => false,
    }
}

/// Whether a file lies on a file system without a device.
fn is_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|of| of.f_type == libc::TMPFS_MAGIC)
}

/// Writes all of `bytes`, into the page cache.
pub(super) fn write(
    file: &File,
    segment: SegmentNo,
    offset: u32,
    bytes: &[u8],
) -> Result<(), DiskError> {
    file.write_all_at(bytes, u64::from(offset))
        .map_err(|error| failed("pwrite", segment, &error))
}

/// Fills all of `buffer`.
pub(super) fn read(
    file: &File,
    segment: SegmentNo,
    offset: u32,
    buffer: &mut [u8],
) -> Result<(), DiskError> {
    let end = u64::from(offset) + buffer.len() as u64;
    match file.read_exact_at(buffer, u64::from(offset)) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(DiskError::Short { segment, end })
        }
        done => done.map_err(|error| failed("pread", segment, &error)),
    }
}

/// fdatasync, once. std would repeat it after EINTR, which is no failure of the device; any other
/// error is final.
pub(super) fn sync(file: &File, segment: SegmentNo) -> Result<(), DiskError> {
    file.sync_data()
        .map_err(|error| failed("fdatasync", segment, &error))
}

/// Cuts the file to `bytes`. What was written is durable by now, so a failure costs room only.
pub(super) fn cut(file: &File, segment: SegmentNo, bytes: u64) {
    if let Err(error) = file.set_len(bytes) {
        tracing::warn!(%segment, %error, "the preallocation of a sealed segment was not given back");
    }
}

/// Cuts a segment nobody has open to `bytes`, durably, or removes it.
pub(super) fn cut_now(directory: &Path, segment: SegmentNo, bytes: u32) -> Result<(), DiskError> {
    if bytes == 0 {
        std::fs::remove_file(path(directory, segment))
            .map_err(|error| failed("unlink", segment, &error))?;
        return sync_directory(directory, segment);
    }
    let file = open(directory, segment)?;
    file.set_len(u64::from(bytes))
        .map_err(|error| failed("ftruncate", segment, &error))?;
    file.sync_all()
        .map_err(|error| failed("fsync", segment, &error))
}

fn sync_directory(directory: &Path, segment: SegmentNo) -> Result<(), DiskError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| failed("fsync of the directory", segment, &error))
}

/// An error of the operating system as one of a disk.
pub(super) fn failed(call: &'static str, segment: SegmentNo, error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::NoSpace,
        Some(errno) => DiskError::Os {
            call,
            segment,
            errno,
        },
        // std's own kinds: a write that wrote nothing.
        None => DiskError::Os {
            call,
            segment,
            errno: libc::EIO,
        },
    }
}
