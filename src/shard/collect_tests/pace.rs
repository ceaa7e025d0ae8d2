//! How much a collection looks at in one step, and that it ends whatever agents do meanwhile.

use super::*;
use crate::shard::collect::STEP_UNITS_MAX;

/// Agents that nothing else is asked of.
const AGENTS: u32 = 600;

impl World {
    fn add_agents(&mut self) {
        for no in 0..AGENTS {
            let name = format!("other {no}");
            let put = self.shard.store.put_agent(name.as_bytes(), false, 0);
            put.unwrap();
            if no % 50 == 0 {
                self.shard.flush().unwrap();
            }
        }
        self.shard.flush().unwrap();
    }

    /// The state that a checkpoint holds, read in a fork on it.
    fn read_checkpoint(&mut self, id: [u8; 32], keys: &[Vec<u8>]) -> Keys {
        let from = Revision::Checkpoint(id);
        let fork = BranchNo(self.info(None, &Call::Fork { from }).no);
        let found = self.read_keys(fork, keys);
        self.good(Some(fork), &Call::Discard);
        found
    }
}

/// All agents were looked at in the last turn of marking, files of all segments went in one, and what was pruned was
/// compared with each of them: a millisecond and more with some hundred of each.
#[test]
fn a_step_looks_at_a_bounded_part() {
    let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
    world.add_agents();
    for no in 0..400u32 {
        world.put(&key(no as usize % KEYS), &value(no, 12_000));
        world.good(None, &CHECKPOINT);
    }
    let (name, rule) = ("main", Retention::Last(1));
    world.good(None, &Call::Retain { name, rule });
    let answer = world.ask_collection();
    let mut next = 0;
    let collected = loop {
        // As fast as they are looked at.
        for _ in 0..64 {
            next = (next + 1) % AGENTS;
            world.shard.store.tables.agent_mut(crate::id::AgentNo(next));
        }
        world.step();
        world.disk().run_io();
        if let Ok(collected) = answer.try_recv() {
            break collected;
        }
        assert!(world.now < 20_000_000_000, "it does not end");
    };
    assert_eq!(collected.end, CollectEnd::Done);
    assert!(collected.segments > 20, "{collected:?}");
    assert!(collected.objects > 1000, "{collected:?}");
    let most = world.shard.collector.most_units;
    assert!((64..=STEP_UNITS_MAX).contains(&most), "{most}");
    world.check_references();
}

/// Each commit brought more than a step looks at: marking went on for as long as they came.
#[test]
fn a_collection_ends_while_an_agent_commits_without_end() {
    for rule in [Retention::All, Retention::Last(1), Retention::Last(3)] {
        let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
        let keys: Vec<_> = (0..300).map(key).collect();
        let mut state = Keys::new();
        for (no, key) in (0..).zip(&keys) {
            state.insert(key.clone(), value(no, 700));
            world.put(key, &state[key]);
        }
        world.good(None, &CHECKPOINT);
        let name = "main";
        world.good(None, &Call::Retain { name, rule });
        let mut made = Vec::new();
        for round in 0..3 {
            let answer = world.ask_collection();
            let mut commits = 0;
            while answer.try_recv().is_err() {
                for at in [commits * 7, commits * 13 + 1, 0] {
                    let key = &keys[at % keys.len()];
                    // Of one length each, inline, alone and in chunks.
                    let bytes = [40, 700, 20_000][at % 3];
                    state.insert(key.clone(), value((commits * 31 + round) as u32, bytes));
                    world.put(key, &state[key]);
                }
                made.push((world.made(None).id, state.clone()));
                world.disk().run_io();
                commits += 1;
                assert!(commits < 1000, "{rule:?}: it does not end");
            }
            world.check_references();
        }
        // Once more without anything in between, which gives up what was passed over.
        assert_eq!(world.collect().end, CollectEnd::Done);
        let kept = match rule {
            Retention::All => made.len(),
            Retention::Last(kept) | Retention::Newer(kept) => kept as usize,
        };
        for (id, state) in made.iter().rev().take(kept).step_by(3) {
            assert!(world.read_checkpoint(*id, &keys) == *state, "{rule:?}");
        }
        let mut world = world.restarted(0);
        assert!(world.read_keys(BranchNo(0), &keys) == state, "{rule:?}");
        let (id, state) = &made[made.len() - kept];
        assert!(world.read_checkpoint(*id, &keys) == *state, "{rule:?}");
    }
}
