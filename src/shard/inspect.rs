//! What tests see of a shard from outside its room.
//!
//! Floor 2, tests only. Nothing here changes a shard, but that its disk can be taken and damaged.

use std::collections::BTreeMap;

use crate::segment::index::ObjectNo;
use crate::segment::{Disk, Sequence};
use crate::shard::Shard;

/// Where a log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogMarks {
    /// The last record, flushed or not.
    pub(crate) last: Sequence,
    /// The last that the page cache has.
    pub(crate) flushed: Sequence,
    /// The last that the device has.
    pub(crate) synced: Sequence,
    /// Flushes that failed.
    pub(crate) rollbacks: u32,
}

impl<D: Disk> Shard<D> {
    /// Its disk, to be damaged or taken away.
    pub(crate) fn disk_mut(&mut self) -> &mut D {
        &mut self.store.disk
    }

    pub(crate) fn log_marks(&self) -> LogMarks {
        let log = &self.store.log;
        LogMarks {
            last: log.last(),
            flushed: log.flushed(),
            synced: log.synced(),
            rollbacks: log.rollbacks(),
        }
    }

    /// Whether nothing is under way that takes more than one turn.
    pub(crate) fn is_quiet(&self) -> bool {
        self.pending.is_empty()
            && !self.store.has_retired()
            && !self.store.is_cooling()
            && self.imports.is_empty()
            && self.moves.is_empty()
            && self.warming.is_empty()
            && !self.collector.is_under_way()
    }

    /// Lanes that its agents count.
    pub(crate) fn lanes_counted(&self) -> u32 {
        let agents = self.store.tables.all_agents();
        agents.map(|(_, agent)| agent.lanes).sum()
    }

    /// Every reference is accounted for, and so is every byte.
    pub(crate) fn check_references(&self) {
        let tables = &self.store.tables;
        let mut wanted: BTreeMap<u32, u32> = BTreeMap::new();
        let mut keys = 0;
        for (_, agent) in tables.all_agents() {
            for value in agent.all_branches().flat_map(|branch| branch.keys.values()) {
                *wanted.entry(value.object).or_default() += 1;
                keys += 1;
            }
        }
        for child in tables.chunks.values().flatten() {
            *wanted.entry(child.object.0).or_default() += 1;
        }
        for part in self.lanes.upload_parts() {
            *wanted.entry(part.0).or_default() += 1;
        }
        for object in self.store.undo_objects() {
            *wanted.entry(object).or_default() += 1;
        }
        let busy = !self.pending.is_empty()
            || self.store.has_retired()
            || self.store.is_cooling()
            || !self.imports.is_empty()
            || !self.moves.is_empty()
            || !self.warming.is_empty()
            || self.collector.is_reading_any();
        if busy {
            return;
        }
        // What a tree may hold stays without any reference; so does what was found to be damaged.
        for (no, object) in tables.objects.all() {
            if object.kept {
                wanted.entry(no.0).or_default();
            }
        }
        let objects = wanted.len();
        let mut live = 0;
        for (object, references) in wanted {
            let found = tables.objects.get(ObjectNo(object));
            assert_eq!(found.references, references, "object {object}");
            live += u64::from(found.at.bytes);
        }
        assert_eq!(tables.objects.len(), objects);
        assert_eq!(tables.live_bytes, live);
        assert_eq!(tables.keys, keys);
    }
}
