//! What the device answers: completions that wait for it, which the group commit makes safe against a power cut,
//! and what the operator has to hear of the log.
//!
//! Floor 2. A sync is under way for everybody who waits at the time; who comes meanwhile shares the next.

use crate::agent::entry::{Completion, Status};
use crate::config::Durability;
use crate::segment::{Disk, IoReply, LogEvent, Sequence};
use crate::shard::Shard;
use crate::shard::pending::PowerWait;
use crate::shard::store::Store;

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

impl<D: Disk> Store<D> {
    /// Lets the log act on an answer of the I/O core.
    pub fn on_reply(&mut self, reply: IoReply) -> LogEvent {
        let was_read_only = self.log.read_only().is_some();
        let event = self.log.on_reply(reply);
        let shard = self.log.shard().0;
        match &event {
            LogEvent::Removed {
                segment,
                result: Err(error),
            } => tracing::warn!(
                shard, segment = segment.0, %error,
                "a segment in which nothing is needed was not removed: the next start tries again"
            ),
            LogEvent::ReadOnly(error) if !was_read_only => tracing::error!(
                shard, %error,
                "what was written may not reach the device: the shard takes no writes until the next \
                 start; reads go on"
            ),
            // Tried again and again: told once.
            LogEvent::CreateFailed(error) if !self.told_of_create => {
                self.told_of_create = true;
                tracing::warn!(
                    shard, %error,
                    "the next segment can't be made: writes are refused once this one is full; it is tried \
                     again until it can"
                );
            }
            LogEvent::SpareReady => self.told_of_create = false,
            _ => {}
        }
        event
    }
}
