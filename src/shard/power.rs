//! Completions that wait for the device: what the group commit makes safe against a power cut.
//!
//! Floor 2. A sync is under way for everybody who waits at the time; who comes meanwhile shares the next.

use crate::agent::entry::{Completion, Status};
use crate::config::Durability;
use crate::segment::{Disk, Sequence};
use crate::shard::Shard;
use crate::shard::pending::PowerWait;

impl<D: Disk> Shard<D> {
    /// Keeps a completion until the device has its record.
    pub(super) fn await_power(&mut self, wait: PowerWait) {
        if wait.sequence <= self.store.log.synced() {
            return self.complete_power(wait, true);
        }
        if self.store.log.read_only().is_some() {
            return self.complete_power(wait, false);
        }
        self.power_since.get_or_insert(self.now);
        self.pending.add_power(wait);
    }

    fn complete_power(&mut self, wait: PowerWait, good: bool) {
        let mut completion = wait.completion;
        if good {
            completion.durability = Some(Durability::Power);
        } else {
            completion = Completion::new(completion.user_data, Status::IoFailed);
            let error = self.store.log.read_only();
            completion.detail = error.map_or(0, |error| error.errno() as u32);
        }
        self.post(wait.lane, &completion);
    }

    /// Completes what the device now has, or will never have.
    pub(super) fn settle_power(&mut self) {
        let synced = self.store.log.synced();
        let lost = self.store.log.read_only().is_some();
        if synced > Sequence(self.counters().synced_sequence.get()) {
            self.counters().synced_sequence.set(synced.0);
            self.counters().syncs.add(1);
        }
        while let Some(wait) = self.pending.power.front() {
            let good = wait.sequence <= synced;
            if !good && !lost {
                break;
            }
            let wait = self.pending.power.pop_front().expect("just seen");
            self.complete_power(wait, good);
        }
    }
}
