//! What a recovery comes back with: records, where the log goes on, counts, errors.
//!
//! Floor 1. Plain values, no behaviour.
//!
//! Invariants
//! - after a [`RecoverError`] nothing on disk was changed, unless it is [`RecoverError::Files`].

use std::path::PathBuf;

use crate::id::{SegmentNo, ShardNo};

use super::evidence::Cut;
use super::files::FilesError;
use super::format::LogId;
use super::record::Head;
use super::start::LogStart;
use super::{Location, Sequence};

/// A record of the log, as it is read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveredRecord<'a> {
    /// Its place in the log.
    pub sequence: Sequence,
    /// What it says.
    pub head: Head<'a>,
    /// Where its payload lies, if it holds one.
    pub payload: Option<Location>,
    /// The segment it lies in.
    pub segment: SegmentNo,
    /// Bytes it takes there.
    pub record_bytes: u32,
    /// The segment is settled: only the bytes of an object in it count, if it holds some. The rest was
    /// said again later, or is not true any more.
    pub settled: bool,
    /// The payload was read and is not what the id says: reads of it must be refused. Payloads of
    /// sealed segments are not read here.
    pub damaged: bool,
}

/// What recovery found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The log's name; `None` if there is no record: draw one.
    pub log_id: Option<LogId>,
    /// Where [`super::Log::new`] goes on.
    pub start: LogStart,
    /// What was cut off the last segment, and kept: [`super::files::tail_file_name`].
    pub cut: Option<Cut>,
    /// Segments behind the end of the log that were renamed, the last one first.
    pub set_aside: Vec<SegmentNo>,
    /// Damaged payloads, the first few of [`RecoverReport::damaged`].
    pub damaged: Vec<Location>,
    /// For a log line.
    pub report: RecoverReport,
}

/// Counts of one recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoverReport {
    /// Records visited.
    pub records: u64,
    /// Bytes of these records.
    pub record_bytes: u64,
    /// Segments kept.
    pub segments: u32,
    /// Of these, read by their footer.
    pub sealed: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes behind the end of the log in its last segment, up to the last that was not zero: cut
    /// off, and kept.
    pub truncated_bytes: u64,
    /// Records whose payload is damaged, though it had been on the device.
    pub damaged: u64,
    /// Segments behind the end of the log, renamed.
    pub set_aside: u32,
}

impl RecoverReport {
    /// Adds another shard's counts.
    pub fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.record_bytes += other.record_bytes;
        self.segments += other.segments;
        self.sealed += other.sealed;
        self.read_bytes += other.read_bytes;
        self.truncated_bytes += other.truncated_bytes;
        self.damaged += other.damaged;
        self.set_aside += other.set_aside;
    }
}

/// Why a shard can't start. Nothing was changed, unless it is [`RecoverError::Files`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// A call failed; starting again goes on where this stopped.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The name of a segment, but other content.
    #[error("{} is not a segment; move it out of the data directory", file.display())]
    NotASegment {
        /// The file.
        file: PathBuf,
    },
    /// The first 64 bytes of a segment were changed; no crash does that.
    #[error(
        "the header of {} is damaged; restore the file from a copy, or move it and all \
         higher numbers away to start from the records before it",
        file.display()
    )]
    DamagedHeader {
        /// The file.
        file: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "{} has format version {found}, this program knows up to {known}; start the newer program",
        file.display()
    )]
    NewerFormat {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The highest version known here.
        known: u32,
    },
    /// A segment of another shard, log or number.
    #[error(
        "{} belongs to another place (shard {shard}, segment {segment}); move it out of the \
         data directory",
        file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
        /// The shard that its header names.
        shard: ShardNo,
        /// The segment that its header names.
        segment: SegmentNo,
    },
    /// A number before or between segments has no file, and no record says that nothing in it is needed.
    #[error(
        "{} is missing; restore it from a copy, or move all higher numbers away to start from \
         the records before it",
        file.display()
    )]
    Missing {
        /// The file that should be there.
        file: PathBuf,
    },
    /// A record drops a segment that still counts: no log of ours says that.
    #[error(
        "a record says that nothing in {} is needed, but other records in it are; restore the \
         segments of this shard from a copy",
        file.display()
    )]
    DropsUnsettled {
        /// The segment's file.
        file: PathBuf,
    },
    /// A whole and valid record that this program can't read.
    #[error(
        "{} holds at byte {offset} a record of kind {kind} (flags {flags:#04x}) that this program \
         does not know; start the newer program",
        file.display()
    )]
    UnknownRecord {
        /// The file.
        file: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// Its kind number.
        kind: u8,
        /// Its flags.
        flags: u8,
    },
    /// A record that was on the device can't be read: no crash does that.
    #[error(
        "{} is damaged at byte {offset}: record {} is not there, though all records up to {} had \
         been synced; restore the file from a copy, or, to start from the records before it, cut \
         it to {offset} bytes and move all higher numbers away",
        file.display(), sequence.0, synced.0
    )]
    DamagedRecord {
        /// The file.
        file: PathBuf,
        /// Where the record should begin.
        offset: u64,
        /// The record.
        sequence: Sequence,
        /// The last record that is known to have been on the device.
        synced: Sequence,
    },
}
