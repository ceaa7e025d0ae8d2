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
//! | settle, drop, remove a segment | a record of 40 B | segments | none on the shard; an unlink and a sync of the directory on the I/O core |
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
mod gaps;
pub mod header;
mod headers;
pub mod index;
pub mod log;
pub mod outcome;
mod record;
mod recover;
mod recovered;
pub mod segments;
pub mod start;
pub mod verify;

#[cfg(fuzzing)]
#[path = "../../fuzz/inside/loose_log.rs"]
pub(crate) mod fuzzing;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code, reason = "faults that only the tests plant"))]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskError, IoReply, IoRequest, Location, Sequence};
pub use evidence::Cut;
pub use files::{Directory, FilesError, SegmentFile, SegmentFiles};
pub use format::{HEAD_BYTES_MAX, LogId, PART_BYTES_MAX};
pub use log::Log;
pub use outcome::{Appended, LogError, LogEvent, NotReady, Read};
pub use record::{Collapse, Head, ObjectKind, Record};
pub use recover::{read_only, recover};
pub use recovered::{RecoverError, RecoverReport, Recovered, RecoveredRecord};
pub use segments::{SegmentState, moved_bytes};
pub use start::{LogConfig, LogStart};
