//! An agent whose process writes anything into all that it may write, between any two turns of a shard.
//!
//! It may lose its own session by that, and nothing else: no other lane is closed, no shard panics.

use crate::agent::entry::{Op, Submission};
use crate::agent::layout::ENTRY_BYTES;

use super::run::Run;
use super::world::Crash;

impl Run {
    pub(super) fn be_hostile(&mut self) -> Result<(), Crash> {
        let Some(client) = self.hostile else {
            if let Ok(client) = self.world.attach("hostile", true, None)? {
                self.hostile = Some(client);
            }
            return Ok(());
        };
        self.table.fire("hostile agent");
        for _ in 0..1 + self.world.random.below(4) {
            self.scribble(client);
            self.world.turn()?;
        }
        Ok(())
    }

    fn scribble(&mut self, client: u64) {
        let random = &mut self.world.random;
        let Some(client) = self.world.clients.get_mut(&client) else {
            return;
        };
        let sizes = *client.lane.sizes();
        // Mostly a good entry first: what is behind the first check is to be reached, too.
        let no = random.below(Op::ALL.len());
        let mut entry = Submission::new(Op::ALL[no], random.next());
        if random.below(3) > 0
            && let Some(input) = client.lane.alloc_input(64)
        {
            entry.key = input.first(8);
            if random.below(2) == 0 {
                entry.value = input.part(8, 40);
            }
            if random.below(4) == 0 {
                (entry.arg0, entry.arg1) = (random.next() % 1_000, random.next() % 100_000);
            }
            let bytes: Vec<u8> = (0..64).map(|_| (random.next() % 40) as u8).collect();
            client.lane.write_input(input.first(64), &bytes);
            _ = client.lane.submit(&entry);
            client.lane.free_input(input);
            _ = client.lane.notify(&client.bells);
        }
        let region = client.lane.region();
        for _ in 0..random.below(6) {
            let ring = sizes.submissions_at();
            let at = match random.below(3) {
                0 => random.below(region.bytes() / 8) * 8,
                1 => random.below(128) * 8,
                _ => ring + random.below(sizes.ring_slots() as usize * ENTRY_BYTES / 8) * 8,
            };
            let word = match random.below(4) {
                0 => 0,
                1 => u64::MAX >> random.below(64),
                2 => random.below(300) as u64,
                _ => random.next(),
            };
            region
                .word(at)
                .store(word, std::sync::atomic::Ordering::Relaxed);
        }
        if random.below(4) == 0 {
            let at = random.below(client.region.bytes() / 8) * 8;
            let word = random.next() >> random.below(64);
            client
                .region
                .word(at)
                .store(word, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Sessions that were ended are the hostile one's.
    pub(super) fn see_malformed(&mut self) {
        for session in std::mem::take(&mut self.world.malformed) {
            let hostile = self
                .hostile
                .and_then(|client| self.world.clients.get(&client));
            let good = hostile.is_none_or(|client| client.session == session);
            assert!(good, "a session was ended that wrote nothing wrong");
            if let Some(client) = self.hostile.take() {
                self.table.fire("hostile session ended");
                self.world.drop_client(client);
            }
        }
    }
}
