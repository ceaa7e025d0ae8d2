//! L3: append-only segment files.

pub mod disk;

pub use disk::{Disk, DiskError, IoReply, IoRequest, Location, Sequence};
