//! What a shard tells about itself: gauges, and allocations by kind of operation.
//!
//! Floor 2. Read by anyone, written here alone.
//!
//! Cost of all gauges: a look at every agent. Those that cost nothing are told before every sleep.

use crate::agent::entry::{Op, Tier};
use crate::segment::Disk;
use crate::shard::{MEASURE_NS, Shard};

impl<D: Disk> Shard<D> {
    /// Counts what an operation allocated.
    pub(super) fn count_allocations(&self, op: Op, allocations: u64) {
        if allocations == 0 {
            return;
        }
        let counters = self.counters();
        match op {
            Op::Put | Op::PutPart | Op::MultiPut | Op::Delete => {
                counters.allocations_write.add(allocations);
            }
            Op::Get | Op::GetFrom | Op::MultiGet => match self.last_tier {
                Tier::L2 => counters.allocations_hit.add(allocations),
                Tier::L3 => counters.allocations_miss.add(allocations),
                _ => counters.allocations_cold.add(allocations),
            },
            _ => {}
        }
    }

    /// Brings all gauges up to date: looks at every agent.
    pub(super) fn publish_gauges(&mut self) {
        self.next_measure = self.now + MEASURE_NS;
        let index_bytes = self.store.measure();
        let window_bytes: usize = self
            .store
            .tables
            .all_agents()
            .filter_map(|(_, agent)| agent.window.as_ref())
            .filter(|window| !window.is_empty())
            .map(|window| window.bytes())
            .sum();
        let counters = self.counters();
        counters.l1_bytes.set(window_bytes as u64);
        counters.index_bytes.set(index_bytes);
        self.publish_counts();
    }

    /// Brings the gauges up to date that cost nothing.
    pub(super) fn publish_counts(&self) {
        let (store, counters) = (&self.store, self.counters());
        counters.agents.set(store.tables.agent_count() as u64);
        counters.lanes.set(self.lanes.len() as u64);
        counters.keys.set(store.tables.keys);
        counters.objects.set(store.tables.objects.len() as u64);
        counters.live_bytes.set(store.tables.live_bytes);
        counters.garbage_bytes.set(store.tables.garbage_bytes);
        let l2_bytes = store.l2.bytes_used() + store.l2.group_bytes();
        counters.l2_bytes.set(l2_bytes as u64);
        counters.sequence.set(store.log.last().0);
        counters.synced_sequence.set(store.log.synced().0);
    }
}
