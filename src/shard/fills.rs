//! Windows: which values enter them, and which of them were hit.
//!
//! Floor 2. A value that was read or written in a turn is put into its agent's window at the end of it,
//! behind everybody's completions, under the view of the branch that it belongs to.
//!
//! Invariants
//! - a value enters a window only while its key names it, and after the flush that made it survive.

use crate::segment::Disk;
use crate::segment::index::{NOT_CACHED, ObjectNo};
use crate::shard::Shard;
use crate::shard::agent::BranchRef;
use crate::shard::lanes::LaneRef;

/// Values put into windows in one turn; more are left to the next use.
pub(super) const FILLS_PER_TURN: usize = 64;

/// A value to be put into its agent's window.
pub(super) struct Fill {
    place: BranchRef,
    key: (u32, u32),
    object: ObjectNo,
}

impl<D: Disk> Shard<D> {
    /// Notes that a value was read or written, and may enter its agent's window.
    pub(super) fn want_fill(&mut self, place: BranchRef, key: &[u8], object: ObjectNo) {
        if self.fills.len() < FILLS_PER_TURN {
            let from = self.fill_keys.len() as u32;
            self.fill_keys.extend_from_slice(key);
            let key = (from, self.fill_keys.len() as u32);
            self.fills.push(Fill { place, key, object });
        }
    }

    /// Puts values that were used in this turn into their agents' windows.
    pub(super) fn fill_windows(&mut self) {
        let mut fills = std::mem::take(&mut self.fills);
        let mut value = std::mem::take(&mut self.scratch.value);
        for Fill {
            place,
            key: (from, to),
            object,
        } in fills.drain(..)
        {
            let tables = &mut self.store.tables;
            let bytes = tables.objects.get(object).at.bytes as usize;
            if !tables.has_agent(place.agent) {
                continue;
            }
            let agent = tables.agent(place.agent);
            let (Some(window), Some(branch)) = (&agent.window, agent.branch(place.branch)) else {
                continue;
            };
            if bytes > window.value_bytes_max() {
                continue;
            }
            let view = branch.view;
            let key = &self.fill_keys[from as usize..to as usize];
            // Overwritten later in the turn: that write fills for itself.
            if self
                .store
                .value(place, key)
                .is_none_or(|now| now.object != object.0)
            {
                continue;
            }
            if self.store.tables.objects.get(object).cached == NOT_CACHED {
                continue;
            }
            value.clear();
            self.store
                .piece(object, 0, bytes, |chunk| value.extend_from_slice(chunk));
            if let Some(window) = &mut self.store.tables.agent_mut(place.agent).window {
                window.insert(view, key, &value);
            }
        }
        self.fills = fills;
        self.fill_keys.clear();
        self.scratch.value = value;
    }

    /// Takes in which values of its window a lane's agent has hit.
    pub(super) fn drain_hits(&mut self, at: LaneRef) {
        let Some(lane) = self.lanes.get_mut(at) else {
            return;
        };
        let mut window = self.store.tables.agent_mut(lane.agent).window.as_mut();
        let mut hits = 0;
        let drained = lane.ring.hits(|slot, tag| {
            hits += 1;
            if let Some(window) = &mut window {
                window.hit(slot, tag);
            }
        });
        match drained {
            Ok(lost) => {
                self.counters().l1_hits.add(hits + lost);
                self.counters().l1_reports_lost.add(lost);
            }
            Err(malformed) => {
                let session = lane.session;
                self.end_session(session, malformed);
            }
        }
    }
}
