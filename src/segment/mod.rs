//! L3: a shard's log of records in append-only segment files.
//!
//! Floor 1. Bytes, a state machine and blocking recovery; no thread, no clock, no async. The byte
//! layout is in `FORMAT.md` beside this file. What it costs:
//!
//! | operation | bytes copied | cache lines | system calls |
//! |---|---|---|---|
//! | append | the record, once, into the buffer; its head (40 B + id + key) once more, into the footer; the first one behind a sync, 40 B more, twice | record / 64 + head / 64, written in sequence; 2 of the log's own | none; no allocation, unless the footer outgrows that of the last segment |
//! | flush | what is buffered, by the kernel | none of its own | 1 pwrite; at a roll 2, and one allocation for the next footer |
//! | read | none | the log's own 2, then the payload | none, or what residency costs the [`Disk`] |
//! | drive, nothing due | none | 2 | none |
//! | garbage | none | log2(segments) | none |
//! | recover, sealed segment | its footer: about 100 B for each record | | 3 preads |
//! | recover, tail | all of it, hashed; behind the end, what is no hole | | 1 pread for each MiB; behind the end, 2 for each 64 KiB |
//!
//! Invariants
//! - floor 1 siblings are not imported; everything that may wait for a device goes through
//!   [`Disk`] (a running shard) or [`SegmentFiles`] (the start).
//! - recovery yields a prefix of what was appended, and at least what [`Log::synced`] said; if bytes
//!   were damaged since, it says so.

mod chunk;
pub mod disk;
pub mod evidence;
mod fields;
pub mod files;
pub mod footer;
pub mod format;
pub mod header;
mod headers;
pub mod index;
pub mod log;
pub mod outcome;
mod record;
mod recover;
pub mod start;

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskError, IoReply, IoRequest, Location, Sequence};
pub use evidence::Cut;
pub use files::{Directory, FilesError, SegmentFile, SegmentFiles};
pub use format::{HEAD_BYTES_MAX, LogId, PART_BYTES_MAX};
pub use log::Log;
pub use outcome::{Appended, LogError, LogEvent, LogTotals, NotReady, Read, SegmentState};
pub use record::{Head, ObjectKind, Record};
pub use recover::{RecoverError, RecoverReport, Recovered, RecoveredRecord, read_only, recover};
pub use start::{LogConfig, LogStart};
