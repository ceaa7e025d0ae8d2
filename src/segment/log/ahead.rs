//! Blocks written before they are needed, so that a sync somebody waits for changes no metadata.
//!
//! Floor 1, a part of the log. Preallocated blocks are *unwritten*: the first sync of each has to commit in the
//! file system's journal that it holds data now, beside the data. Postgres fills its log with zeros for the same
//! reason (`wal_init_zero`). Here the shard writes zeros behind the last record, a stretch at a time and only
//! while somebody waits for syncs: one sync in some forty carries the journal's commit for all.
//!
//! Cost: one more `write_at` of [`AHEAD_BYTES`] per [`AHEAD_BYTES`] of records, and as much to the device.
//!
//! Invariants
//! - what is written ahead is zeros, as the preallocated blocks read: nobody who looks finds a difference.
//! - it lies behind everything written, and the shard alone writes: no record is ever overwritten.

use crate::segment::Disk;

use super::Log;

/// What is written ahead at a time: 60 us in the page cache here, once per forty checkpoints of one key.
const AHEAD_BYTES: u32 = 256 << 10;

static ZEROS: [u8; AHEAD_BYTES as usize] = [0; AHEAD_BYTES as usize];

impl Log {
    /// Writes zeros behind the records that are about to be synced, if those reach into blocks that nobody wrote before.
    pub(super) fn write_ahead(&mut self, disk: &mut impl Disk) {
        if !std::mem::take(&mut self.sync_awaited) {
            return;
        }
        let segment_bytes = self.config.segment_bytes;
        let Some(active) = &mut self.active else {
            return;
        };
        let from = active.flushed_end;
        if from < active.ahead_end || from == 0 {
            return;
        }
        let to = segment_bytes.min(from.saturating_add(AHEAD_BYTES));
        active.ahead_end = to;
        let zeros = &ZEROS[..to.saturating_sub(from) as usize];
        // A disk that refuses costs a slower sync; records that meet the same refusal report it.
        let _ = disk.write_at(active.segment, from, zeros);
    }
}
