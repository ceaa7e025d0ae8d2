//! L3: append-only segment files.

pub mod disk;
pub mod index;

pub use disk::{Disk, DiskError, IoReply, IoRequest, Location, Sequence};
