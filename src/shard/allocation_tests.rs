//! What each path allocates on a state with versions: nothing, and where something grows, how often.
//!
//! Counted over whole turns, so also behind the answer, but without what the disk in memory takes for itself;
//! beside a collection, which has memory of its own, by what the shard counts for each path.

use super::agent::MAIN;
use super::tests::World;
use super::version_tests::{CHECKPOINT, branch, value};
use super::*;
use crate::agent::call::{Call, Revision};
use crate::agent::packed;
use crate::id::BranchNo;
use crate::metrics::Stats;

const KEYS: u32 = 400;
const VALUE_BYTES: usize = 300;
const RESTORE: Call<'_> = Call::Restore {
    to: Revision::Head,
    force: true,
};

fn key(no: u32) -> Vec<u8> {
    format!("state/of/the/agent/{:03}", no % KEYS).into_bytes()
}

/// A world whose keys are all in the base tree, and nothing is known of them.
fn restored(l2_bytes: usize) -> World {
    let mut world = World::new(l2_bytes);
    for no in 0..KEYS {
        world.put(&key(no), &value(no, VALUE_BYTES));
    }
    world.good(None, &CHECKPOINT);
    world.good(None, &RESTORE);
    // What the working set knew goes bit by bit.
    for _ in 0..20 {
        world.step();
    }
    assert_eq!(known(&world), 0);
    world
}

/// Entries of the working set of main.
fn known(world: &World) -> usize {
    let agent = world.shard.store.tables.agent(crate::id::AgentNo(0));
    agent.branch(MAIN).unwrap().keys.len()
}

impl World {
    /// What was submitted, in one turn: its allocations.
    fn turn(&mut self) -> u64 {
        let made = self.counted_step();
        assert_eq!(self.completion().unwrap().status, Status::Ok);
        made
    }

    fn counted_get(&mut self, no: u32, tier: Tier) -> u64 {
        self.submit(Op::Get, &key(no), b"", |_| {});
        let made = self.counted_step();
        let completion = self.completion().unwrap();
        assert_eq!((completion.status, completion.tier), (Status::Ok, tier));
        made
    }

    fn counted_put(&mut self, no: u32, seed: u32) -> u64 {
        self.submit(Op::Put, &key(no), &value(seed, VALUE_BYTES), |_| {});
        self.turn()
    }

    fn counted_multi_put(&mut self, no: u32, seed: u32) -> u64 {
        let mut pairs = Vec::new();
        for at in 0..4 {
            let value = value(seed + at, VALUE_BYTES);
            packed::push_pair(&mut pairs, &key(no + at * 31), &value).unwrap();
        }
        self.submit(Op::MultiPut, &[], &pairs, |_| {});
        self.turn()
    }

    fn counted_checkpoint(&mut self) -> u64 {
        self.submit_call(None, &CHECKPOINT);
        self.turn()
    }

    fn counters(&self) -> Stats {
        self.shard.counters().read()
    }
}

/// Each key that was read for the first time took one allocation for its bytes, 400 here.
#[test]
fn keys_of_the_base_tree_are_learned_within_the_growth_of_the_working_set() {
    let mut world = restored(1 << 20);
    let made: u64 = (0..KEYS).map(|no| world.counted_get(no, Tier::L2)).sum();
    assert_eq!(known(&world), KEYS as usize);
    // Half of what the set before held has room at once: the table grows once, the buffer of keys twice.
    assert!(made <= 3, "{made}");
    let made: u64 = (0..KEYS).map(|no| world.counted_get(no, Tier::L2)).sum();
    assert_eq!(made, 0);
    world.check_references();
}

#[test]
fn reads_from_segments_allocate_nothing() {
    let mut world = restored(0);
    let made: u64 = (0..KEYS).map(|no| world.counted_get(no, Tier::L3)).sum();
    assert!(made <= 3 + 1, "{made}");
    for round in 0..2 {
        let made: u64 = (0..KEYS).map(|no| world.counted_get(no, Tier::L3)).sum();
        assert_eq!(made, 0, "{round}");
    }
    world.check_references();
}

/// Over keys of the base tree, with checkpoints in between, after which the working set has no changes.
#[test]
fn writes_and_checkpoints_allocate_where_a_table_grows_and_nowhere_else() {
    const ROUNDS: u32 = 160;
    let mut world = restored(1 << 20);
    let (mut put, mut multi, mut checkpoint, mut get) = (0, 0, 0, 0);
    for round in 0..2 * ROUNDS {
        let seed = 1000 + 8 * round;
        let made = (
            world.counted_put(round * 7, seed),
            world.counted_multi_put(round * 3, seed + 1),
            world.counted_checkpoint(),
            world.counted_get(round * 11, Tier::L2),
        );
        if round >= ROUNDS {
            put += made.0;
            multi += made.1;
            checkpoint += made.2;
            get += made.3;
        }
    }
    println!("put {put}, multi-put {multi}, checkpoint {checkpoint}, get {get}");
    assert_eq!(get, 0);
    // The index of objects doubles, and segments begin, at most so often.
    assert!(put + multi <= 4, "{put} {multi}");
    assert!(checkpoint <= 8, "{checkpoint}");
    world.check_references();
}

/// A branch gets memory for a few keys when it is made.
#[test]
fn a_few_keys_of_a_new_branch_allocate_nothing() {
    let mut world = restored(1 << 20);
    for no in 0..8 {
        world.counted_get(no, Tier::L2);
    }
    let on = BranchNo(world.info(None, &branch("try")).no);
    let mut made = 0;
    for no in 0..4 {
        world.submit(Op::Get, &key(no), b"", |entry| entry.branch = Some(on));
        made += world.turn();
        let bytes = value(9000 + no, VALUE_BYTES);
        world.submit(Op::Put, &key(no + 3), &bytes, |entry| {
            entry.branch = Some(on)
        });
        made += world.turn();
    }
    assert_eq!(made, 0);
    world.check_references();
}

/// A key that comes and goes leaves its memory to the next.
#[test]
fn keys_that_come_and_go_allocate_nothing() {
    let mut world = World::new(1 << 20);
    let mut made = 0;
    for round in 0..600_u32 {
        let name = format!("note/{round}");
        world.submit(Op::Put, name.as_bytes(), b"v", |_| {});
        let put = world.turn();
        if round >= 8 {
            let gone = format!("note/{}", round - 8);
            world.submit(Op::Delete, gone.as_bytes(), b"", |_| {});
            made += u64::from(round >= 200) * (put + world.turn());
        }
    }
    // The log's list of what is in the segment doubles, twice meanwhile.
    assert!(made <= 2, "{made}");
    world.check_references();
}

#[test]
fn beside_a_collection_no_path_allocates_more() {
    let mut world = restored(1 << 20);
    for round in 0..64 {
        for no in 0..KEYS / 8 {
            world.counted_put(no * 8 + round, 5000 + round * KEYS + no);
        }
        world.counted_checkpoint();
        world.counted_multi_put(round, round);
    }
    let before = world.counters();
    let told = world.ask_collection();
    let (mut beside, mut turns) = (0, 0);
    while told.try_recv().is_err() {
        turns += 1;
        assert!(turns < 20_000, "a collection does not end");
        let no = turns * 13;
        match turns % 4 {
            0 => world.submit(Op::Get, &key(no), b"", |_| {}),
            1 => world.submit(Op::Put, &key(no), &value(no, VALUE_BYTES), |_| {}),
            2 => {
                let mut pairs = Vec::new();
                packed::push_pair(&mut pairs, &key(no), &value(no, VALUE_BYTES)).unwrap();
                world.submit(Op::MultiPut, &[], &pairs, |_| {})
            }
            _ => world.submit_call(None, &CHECKPOINT),
        };
        assert_eq!(world.wait().status, Status::Ok);
        beside += u32::from(world.shard.collector.is_under_way());
    }
    let since = world.counters().since(&before);
    assert!(beside > 100 && since.collections == 1, "{beside}");
    println!("{beside} turns beside it: {since:?}");
    assert_eq!((since.allocations_hit, since.allocations_miss), (0, 0));
    // The index of objects, or the list of what was touched, doubles.
    assert!(since.allocations_write <= 4, "{}", since.allocations_write);
    world.check_references();
}
