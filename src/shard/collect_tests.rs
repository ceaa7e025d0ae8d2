//! Collection in a shard turned by hand: against a model, with crashes at every step.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};

use super::collect::{CollectEnd, Collected};
use super::tests::World;
use super::version_tests::{CHECKPOINT, FORK, branch, value};
use super::*;
use crate::agent::call::{self, Call, Logged, Revision};
use crate::id::{BranchNo, ObjectId, Retention};
use crate::segment::memory::{MemoryDisk, Random};

mod pace;
mod pruned;

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

impl World {
    pub(super) fn ask_collection(&mut self) -> Receiver<Collected> {
        let (told, answer) = channel();
        let reply = Answer::new(move |collected| _ = told.send(collected));
        assert!(self.commands.push(Command::Collect { reply }).is_ok());
        answer
    }

    /// Turns until a collection that begins now has ended.
    pub(super) fn collect(&mut self) -> Collected {
        let answer = self.ask_collection();
        for _ in 0..20_000 {
            self.step();
            self.disk().run_io();
            if let Ok(collected) = answer.try_recv() {
                return collected;
            }
        }
        panic!("a collection does not end");
    }

    /// Bytes of all segment files, up to where their records end.
    fn stored(&mut self) -> u64 {
        let states = self.shard.store.log.segments();
        states.iter().map(|state| u64::from(state.data_end)).sum()
    }

    fn read_keys(&mut self, on: BranchNo, keys: &[Vec<u8>]) -> Keys {
        let mut found = Keys::new();
        for key in keys {
            match self.get_on(on, key) {
                Ok(value) => _ = found.insert(key.clone(), value),
                Err(Status::NotFound) => {}
                Err(status) => panic!("{status:?} for {key:?}"),
            }
        }
        found
    }

    pub(super) fn history(&mut self, from: Revision<'_>) -> Vec<[u8; 32]> {
        let mut ids = Vec::new();
        let mut frontier = Vec::new();
        loop {
            let log = Call::Log {
                from,
                frontier: std::mem::take(&mut frontier),
                limit: 0,
            };
            let answer = self.good(None, &log);
            for item in call::items(&answer) {
                match item.unwrap() {
                    Logged::Entry { id, .. } => ids.push(id),
                    Logged::Next { id } => frontier.push(id),
                }
            }
            if frontier.is_empty() {
                return ids;
            }
        }
    }
}

/// What a branch should hold.
#[derive(Clone, Default)]
struct Line {
    no: u32,
    keys: Keys,
    /// What its last checkpoint holds.
    head: Option<Keys>,
    checkpoints: usize,
}

/// Branches and tags as they should be.
#[derive(Clone, Default)]
struct Model {
    branches: BTreeMap<String, Line>,
    tags: BTreeMap<String, Keys>,
}

const KEYS: usize = 40;
/// Small, so that there are many.
const SEGMENT_BYTES: u32 = 128 << 10;

fn key(no: usize) -> Vec<u8> {
    format!("k/{no:02}").into_bytes()
}

fn some_value(random: &mut Random) -> Vec<u8> {
    let bytes = match random.below(8) {
        0 => random.below(20),
        1 => 20_000 + random.below(30_000),
        2 => 5_000,
        _ => 100 + random.below(900),
    };
    value(random.below(1000) as u32, bytes)
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        model.branches.insert("main".into(), Line::default());
        model
    }

    fn some_branch(&self, random: &mut Random) -> String {
        let at = random.below(self.branches.len());
        self.branches.keys().nth(at).unwrap().clone()
    }

    /// One operation, there and here.
    fn act(&mut self, world: &mut World, random: &mut Random) {
        let name = self.some_branch(random);
        let names: Vec<String> = self.branches.keys().cloned().collect();
        let on = BranchNo(self.branches[&name].no);
        let line = self.branches.get_mut(&name).unwrap();
        match random.below(24) {
            0..=9 => {
                let (key, value) = (key(random.below(KEYS)), some_value(random));
                world.put_on(on, &key, &value);
                line.keys.insert(key, value);
            }
            10 | 11 => {
                let key = key(random.below(KEYS));
                world.submit(Op::Delete, &key, b"", |entry| entry.branch = Some(on));
                let there = line.keys.remove(&key).is_some();
                let wanted = if there { Status::Ok } else { Status::NotFound };
                assert_eq!(world.wait().status, wanted);
            }
            12..=14 => {
                world.good(Some(on), &CHECKPOINT);
                line.head = Some(line.keys.clone());
                line.checkpoints += 1;
            }
            15 if names.len() < 6 => {
                let new = format!("b{}", random.below(1000));
                if line.head.is_none() || names.contains(&new) {
                    return;
                }
                let mut copy = line.clone();
                copy.keys = copy.head.clone().unwrap();
                copy.no = world.info(Some(on), &branch(&new)).no;
                self.branches.insert(new, copy);
            }
            16 if name != "main" => {
                let (name, force) = (&*name, true);
                world.good(None, &Call::DeleteBranch { name, force });
                self.branches.remove(name);
            }
            17 if line.head.is_some() => {
                let tag = format!("t{}", random.below(4));
                let call = Call::Tag {
                    name: &tag,
                    target: Revision::Head,
                    force: true,
                };
                world.good(Some(on), &call);
                self.tags.insert(tag, line.head.clone().unwrap());
            }
            18 if !self.tags.is_empty() => {
                let at = random.below(self.tags.len());
                let tag = self.tags.keys().nth(at).unwrap().clone();
                if random.below(2) == 0 {
                    world.good(None, &Call::Untag { name: &tag });
                    self.tags.remove(&tag);
                } else {
                    let (to, force) = (Revision::Tag(&tag), true);
                    world.good(Some(on), &Call::Restore { to, force });
                    line.keys = self.tags[&tag].clone();
                }
            }
            19 if line.head.is_some() => {
                let fork = BranchNo(world.info(Some(on), &FORK).no);
                world.put_on(fork, &key(1), &some_value(random));
                world.good(Some(fork), &CHECKPOINT);
                let keys = line.head.clone().unwrap();
                let rest = world.read_keys(fork, &[key(2)]);
                assert_eq!(rest.get(&key(2)), keys.get(&key(2)));
                world.good(Some(fork), &Call::Discard);
            }
            _ => {
                let key = key(random.below(KEYS));
                let found = world.get_on(on, &key).ok();
                assert!(found == line.keys.get(&key).cloned(), "{key:?} of {name}");
            }
        }
    }

    /// Everything is as it should be, histories and tags too.
    fn check(&self, world: &mut World) {
        let keys: Vec<_> = (0..KEYS).map(key).collect();
        for (name, line) in &self.branches {
            let found = world.read_keys(BranchNo(line.no), &keys);
            assert!(found == line.keys, "branch {name}");
            let ids = world.history(Revision::Branch(name));
            assert_eq!(ids.len(), line.checkpoints, "history of {name}");
            if let Some(oldest) = ids.last() {
                let from = Revision::Checkpoint(*oldest);
                let fork = BranchNo(world.info(None, &Call::Fork { from }).no);
                world.read_keys(fork, &keys);
                world.good(Some(fork), &Call::Discard);
            }
        }
        for (name, wanted) in &self.tags {
            let from = Revision::Tag(name);
            let fork = BranchNo(world.info(None, &Call::Fork { from }).no);
            let found = world.read_keys(fork, &keys);
            assert!(found == *wanted, "tag {name}");
            world.good(Some(fork), &Call::Discard);
        }
    }
}

fn random_ops(seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let l2_bytes = [0, 1 << 20][random.below(2)];
    let mut world = World::sized(MemoryDisk::new(), l2_bytes, 1 << 30, SEGMENT_BYTES);
    let mut model = Model::new();
    let mut collected = 0;
    for _ in 0..10 {
        for _ in 0..40 {
            model.act(&mut world, &mut random);
        }
        match random.below(4) {
            0 => {
                let answer = world.ask_collection();
                // While it is under way.
                for _ in 0..30 {
                    model.act(&mut world, &mut random);
                }
                drop(answer);
                if random.below(2) == 0 {
                    world = world.restarted(0);
                }
            }
            1 => world.chill(),
            _ => {
                let found = world.collect();
                assert_eq!(found.end, CollectEnd::Done);
                collected += found.segments;
            }
        }
        model.check(&mut world);
        if random.below(3) == 0 {
            world = world.restarted(0);
            model.check(&mut world);
        }
    }
    let before = world.stored();
    for name in model.branches.keys().filter(|name| *name != "main") {
        world.good(None, &Call::DeleteBranch { name, force: true });
    }
    for name in model.tags.keys() {
        world.good(None, &Call::Untag { name });
    }
    model.tags.clear();
    model.branches.retain(|name, _| name == "main");
    for _ in 0..2 {
        collected += world.collect().segments;
    }
    model.check(&mut world);
    let mut world = world.restarted(0);
    model.check(&mut world);
    println!(
        "{collected} segments removed, {before} bytes -> {}",
        world.stored()
    );
}

#[test]
fn agrees_with_a_model_while_it_collects() {
    for seed in 1..=8 {
        random_ops(seed);
    }
}

/// Versions of values that nothing names any more, and some that something does.
fn littered() -> (World, Model) {
    let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
    let mut model = Model::new();
    let mut random = Random(5);
    let line = model.branches.get_mut("main").unwrap();
    for round in 0..6 {
        for no in 0..KEYS {
            let value = value(round * 1000 + no as u32, 12_000);
            world.put(&key(no), &value);
            line.keys.insert(key(no), value);
        }
        if round < 2 {
            world.good(None, &CHECKPOINT);
            line.head = Some(line.keys.clone());
            line.checkpoints += 1;
        }
    }
    for no in 0..3 {
        let fork = BranchNo(world.info(None, &FORK).no);
        for at in 0..KEYS {
            world.put_on(fork, &key(at), &value(90_000 + no * 100 + at as u32, 9_000));
        }
        world.good(Some(fork), &CHECKPOINT);
        world.good(Some(fork), &Call::Discard);
    }
    world.put(b"small", b"1");
    world.delete(b"small");
    let _ = random.next();
    (world, model)
}

#[test]
fn room_is_given_back_and_what_is_needed_stays() {
    let (mut world, model) = littered();
    let before = world.stored();
    let collected = world.collect();
    let after = world.stored();
    assert_eq!(collected.end, CollectEnd::Done);
    assert!(
        collected.segments >= 2 && collected.objects > 0,
        "{collected:?}"
    );
    assert!(after * 3 < before * 2, "{before} -> {after}");
    assert_eq!(
        before - after,
        collected.bytes - collected.moved_bytes - {
            // What was said again.
            let said = after + collected.bytes - collected.moved_bytes - before;
            assert!(said < 64 << 10, "{said}");
            said
        }
    );
    model.check(&mut world);
    let again = world.collect();
    assert_eq!(again.objects, 0, "nothing is left to give up");
    let mut world = world.restarted(0);
    model.check(&mut world);
    assert!(world.stored() <= after + (64 << 10));
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_leaks_nothing_for_ever() {
    let (mut world, model) = littered();
    let answer = world.ask_collection();
    let mut random = Random(3);
    // The files as they were whenever something happened to them.
    let mut disks: Vec<MemoryDisk> = Vec::new();
    let mut seen = None;
    let collected = loop {
        for io in [false, true] {
            if io {
                world.disk().run_io();
            } else {
                world.step();
            }
            let disk = world.disk();
            let now = (disk.writes, disk.queued().count(), disk.segments());
            if seen.as_ref() != Some(&now) {
                disks.push(disk.clone());
                seen = Some(now);
            }
        }
        if let Ok(collected) = answer.try_recv() {
            break collected;
        }
    };
    assert!(collected.segments >= 2);
    let left = world.stored();
    assert!(disks.len() > 4, "{}", disks.len());
    for (at, disk) in disks.into_iter().enumerate() {
        for cut in [false, true] {
            let mut disk = disk.clone();
            match cut {
                true => disk.power_cut(&mut random),
                false => disk.kill(),
            }
            let mut world = World::sized(disk, 0, 1 << 30, SEGMENT_BYTES);
            if !cut {
                model.check(&mut world);
            }
            let state = world.state();
            let collected = world.collect();
            assert_eq!(collected.end, CollectEnd::Done);
            assert!(world.state() == state, "a collection changes no state");
            let stored = world.stored();
            assert!(stored <= left + (256 << 10), "step {at} leaked: {stored}");
        }
    }
}

/// Checkpoints of a branch, each with other keys; their ids, the oldest first.
fn checkpoints(world: &mut World, count: usize) -> Vec<[u8; 32]> {
    (0..count)
        .map(|no| {
            for at in 0..4 {
                world.put(&key(at), &value((no * 10 + at) as u32, 5_000));
            }
            world.made(None).id
        })
        .collect()
}

#[test]
fn a_branch_keeps_as_much_history_as_its_rule_says() {
    let mut world = World::new(0);
    let ids = checkpoints(&mut world, 10);
    let tag = Call::Tag {
        name: "third",
        target: Revision::Checkpoint(ids[2]),
        force: false,
    };
    world.good(None, &tag);
    let fork = Call::Fork {
        from: Revision::Checkpoint(ids[4]),
    };
    let fork = BranchNo(world.info(None, &fork).no);
    let (name, rule) = ("main", Retention::Last(3));
    world.good(None, &Call::Retain { name, rule });
    world.collect();
    let there = |world: &mut World| -> Vec<usize> {
        (0..ids.len())
            .filter(|&no| {
                let from = Revision::Checkpoint(ids[no]);
                let (completion, answer) = world.call_on(None, &Call::Fork { from });
                if completion.status == Status::NoSuchRevision {
                    return false;
                }
                let info: call::BranchInfo = call::items(&answer).next().unwrap().unwrap();
                let fork = BranchNo(info.no);
                for at in 0..4 {
                    let found = world.get_on(fork, &key(at)).unwrap();
                    assert!(found == value((no * 10 + at) as u32, 5_000));
                }
                world.good(Some(fork), &Call::Discard);
                true
            })
            .collect()
    };
    // An open fork keeps what it lies on, and the history of that.
    assert_eq!(there(&mut world), [0, 1, 2, 3, 4, 7, 8, 9]);
    assert_eq!(world.history(Revision::Head), [ids[9], ids[8], ids[7]]);

    world.good(Some(fork), &Call::Discard);
    world.collect();
    assert_eq!(there(&mut world), [2, 7, 8, 9]);
    let mut world = world.restarted(0);
    // The rule too is there after a restart.
    world.good(None, &Call::Untag { name: "third" });
    assert_eq!(checkpoints(&mut world, 1).len(), 1);
    world.collect();
    assert_eq!(there(&mut world), [8, 9]);
    let rule = Retention::Last(0);
    world.good(None, &Call::Retain { name, rule });
    world.collect();
    assert!(there(&mut world).is_empty());
    assert_eq!(world.history(Revision::Head).len(), 1, "the head stays");
    let (name, rule) = ("none", Retention::All);
    let (completion, _) = world.call_on(None, &Call::Retain { name, rule });
    assert_eq!(completion.status, Status::NoSuchBranch);
}

#[test]
fn a_branch_keeps_what_is_young_enough() {
    let mut world = World::new(0);
    // A turn takes a millisecond here.
    let ids = checkpoints(&mut world, 10);
    let (name, rule) = ("main", Retention::Newer(25));
    world.good(None, &Call::Retain { name, rule });
    world.collect();
    let left = world.history(Revision::Head);
    assert!((2..9).contains(&left.len()), "{}", left.len());
    assert!(left.iter().rev().eq(&ids[10 - left.len()..]));
}

/// The runtime's clock was hours behind for one start: what it labelled hid all that was before it.
#[test]
fn a_clock_that_was_wrong_for_a_while_costs_no_young_history() {
    const HOUR_MS: u64 = 3_600_000;
    const NOON_MS: u64 = 1_700_000_000_000;
    let mut world = World::new(0);
    let mut made = Vec::new();
    let at = |world: &mut World, wall_ms: u64| {
        world.shard.options.wall_ms = wall_ms;
        checkpoints(world, 2)
    };
    // Old; young; of a clock that is behind; of one that is ahead; young again.
    for hours in [-9, 0, -5, 3, 0] {
        made.extend(at(
            &mut world,
            NOON_MS.saturating_add_signed(hours * HOUR_MS as i64),
        ));
    }
    let (name, rule) = ("main", Retention::Newer(HOUR_MS));
    world.good(None, &Call::Retain { name, rule });
    world.collect();
    let left = world.history(Revision::Head);
    assert!(left.iter().rev().eq(&made[2..]), "{} left", left.len());
    // Once all of them are old, what is of a time to come does not keep those after it.
    world.shard.options.wall_ms = NOON_MS + 2 * HOUR_MS;
    world.collect();
    assert_eq!(world.history(Revision::Head).len(), 1, "the head stays");
}

#[test]
fn nothing_is_collected_while_something_needed_is_damaged() {
    let (mut world, _) = littered();
    let head = world.history(Revision::Head)[0];
    let store = &mut world.shard.store;
    let no = store
        .tables
        .objects
        .find(&ObjectId::from_bytes(head))
        .unwrap();
    let at = store.tables.objects.get(no).at;
    world.disk().bytes_mut(at.segment)[at.offset as usize] ^= 1;
    let before = world.stored();
    let collected = world.collect();
    assert_eq!(
        (collected.end, collected.segments),
        (CollectEnd::Damaged, 0)
    );
    assert_eq!(world.stored(), before);
}

#[test]
fn what_a_deleted_branch_named_is_stored_again_and_not_shared() {
    let mut world = World::new(0);
    let b = BranchNo(
        world
            .info(
                None,
                &Call::Branch {
                    name: "b",
                    from: Revision::Head,
                },
            )
            .no,
    );
    for no in 0..400u32 {
        world.put_on(b, format!("k{no}").as_bytes(), &value(no, 300));
    }
    world.good(
        None,
        &Call::DeleteBranch {
            name: "b",
            force: true,
        },
    );
    for no in 0..400u32 {
        world.put(format!("m{no}").as_bytes(), &value(no, 300));
    }
    let mut world = world.restarted(0);
    for no in 0..400u32 {
        assert!(world.get(format!("m{no}").as_bytes()).is_ok());
    }
}

#[test]
fn a_branch_may_be_called_main_when_main_is_called_otherwise() {
    let (mut world, _) = littered();
    world.good(None, &Call::Rename { name: "alpha" });
    let m = BranchNo(
        world
            .info(
                None,
                &Call::Branch {
                    name: "main",
                    from: Revision::Empty,
                },
            )
            .no,
    );
    world.put_on(m, b"precious", b"12345");
    world.good(Some(m), &CHECKPOINT);
    let collected = world.collect();
    assert!(collected.segments > 0, "{collected:?}");
    assert_eq!(world.history(Revision::Branch("main")).len(), 1);
    let mut world = world.restarted(0);
    assert_eq!(world.history(Revision::Branch("main")).len(), 1);
}

#[test]
fn history_behind_a_damaged_checkpoint_is_not_taken_for_pruned() {
    let mut world = World::new(0);
    let ids = checkpoints(&mut world, 6);
    let objects = |world: &World| world.shard.store.tables.objects.len();
    let store = &mut world.shard.store;
    let no = store
        .tables
        .objects
        .find(&ObjectId::from_bytes(ids[3]))
        .unwrap();
    let at = store.tables.objects.get(no).at;
    world.disk().bytes_mut(at.segment)[at.offset as usize] ^= 1;
    let before = objects(&world);
    let first = world.collect();
    println!("{first:?} {before} {}", objects(&world));
    let second = world.collect();
    println!("{second:?} {before} {}", objects(&world));
    assert_eq!(objects(&world), before);
}

#[test]
fn a_footer_without_room_holds_no_collection_up() {
    let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
    world.disk().faults.seal = Some(crate::segment::DiskError::NoSpace);
    for no in 0..12u32 {
        world.put(format!("live{no}").as_bytes(), &value(7000 + no, 12_000));
    }
    for _ in 0..20 {
        world.step();
        world.disk().run_io();
    }
    world.disk().faults.seal = None;
    for round in 0..40u32 {
        for no in 0..4 {
            world.put(&key(no), &value(round * 10 + no as u32, 12_000));
        }
    }
    for state in world.shard.store.log.segments() {
        println!(
            "{} sealed {} live {}",
            state.segment.0,
            state.sealed,
            state.live_bytes()
        );
    }
    let collected = world.collect();
    assert_eq!(collected.end, CollectEnd::Done);
}

/// Leaves garbage in many segments, then writes `f1` and so on until the disk has no room for another.
fn fill_disk(world: &mut World) {
    for round in 0..40u32 {
        for no in 0..4 {
            world.put(&key(no), &value(round * 10 + no as u32, 12_000));
        }
    }
    world.disk().faults.create = Some(crate::segment::DiskError::NoSpace);
    let mut no = 0u32;
    loop {
        no += 1;
        let key = format!("f{no}");
        if world.put(key.as_bytes(), &value(5000 + no, 3000)).status == Status::NoSpace {
            break;
        }
    }
}

#[test]
fn a_full_disk_keeps_its_room_for_deletes() {
    let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
    fill_disk(&mut world);
    assert_eq!(world.delete(b"f1").status, Status::Ok);
    let collected = world.collect();
    println!("{collected:?}");
    assert_eq!(world.delete(b"f2").status, Status::Ok);
}

#[test]
fn a_fork_keeps_its_history_until_it_goes() {
    let mut world = World::new(0);
    let fork = BranchNo(world.info(None, &FORK).no);
    for no in 0..5u32 {
        world.put_on(fork, &key(0), &value(no, 5_000));
        world.good(Some(fork), &CHECKPOINT);
    }
    world.collect();
    world.good(Some(fork), &Call::Keep { name: "kept" });
    assert_eq!(world.history(Revision::Branch("kept")).len(), 5);
}

/// A disk that is full when a collection is due would stay full, if only growth made it due again.
#[test]
fn what_a_full_disk_stopped_is_tried_again_when_there_is_room() {
    let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
    fill_disk(&mut world);
    assert_eq!(world.collect().end, CollectEnd::NoRoom);
    // It would have been due by itself.
    world.shard.collector.make_due();
    let turns = |world: &mut World, ns: u64| {
        world.now += ns;
        for _ in 0..2000 {
            world.step();
            world.disk().run_io();
        }
    };
    turns(&mut world, 11_000_000_000);
    assert_eq!(world.shard.counters().collections.get(), 0);
    world.disk().faults.create = None;
    turns(&mut world, 1_000_000_000);
    assert!(
        world.shard.deadline().is_some(),
        "it is tried without growth"
    );
    turns(&mut world, 11_000_000_000);
    assert_eq!(world.shard.counters().collections.get(), 1);
}
