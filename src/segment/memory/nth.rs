//! The call of a disk in memory that fails, by its number.
//!
//! Floor 1, tests only. One count over all kinds of calls, and over all disks that share it.

use std::collections::BTreeMap;

pub(super) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;

/// Calls fail by their number, whatever they are: what an error loop walks along. Disks that share one are
/// counted together.
#[derive(Debug, Default)]
pub(crate) struct Nth {
    /// Calls that go well before the first that fails.
    pub(crate) skip: u64,
    /// Every call after it fails, too.
    pub(crate) persistent: bool,
    /// The disk is full: of the calls that take room one fails, and no other; else the device fails.
    pub(crate) no_space: bool,
    /// What fails of [`crate::segment::Disk`] says that it went well: as if its error were ignored.
    pub(crate) ignored: bool,
    /// Calls so far.
    pub(crate) calls: u64,
    /// Of them failed, by name.
    pub(crate) failed: BTreeMap<&'static str, u64>,
}

impl Nth {
    /// Counts a call; the error number if it fails.
    pub(super) fn errno(&mut self, call: &'static str) -> Option<i32> {
        let takes_room = [
            "create",
            "footer",
            "recovery: copy",
            "recovery: write",
            "write",
        ];
        if self.no_space && !takes_room.contains(&call) {
            return None;
        }
        let no = self.calls;
        self.calls += 1;
        if no != self.skip && (no < self.skip || !self.persistent) {
            return None;
        }
        *self.failed.entry(call).or_default() += 1;
        Some(if self.no_space { ENOSPC } else { EIO })
    }

    /// Whether a request is refused: a queue is full now and then, and not for ever.
    pub(super) fn refuses(&mut self) -> bool {
        !self.persistent && self.errno("submission").is_some()
    }
}
