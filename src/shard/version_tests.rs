//! Versioned state in a shard turned by hand: crashes between any two records, disks that fail, nodes
//! that are not in memory.

use std::collections::BTreeMap;

use super::tests::{CALL_REPLY_BYTES, World, rings};
use super::*;
use crate::agent::CloseReason;
use crate::agent::call::{self, BranchInfo, Call, Checkpointed, Logged, Revision};
use crate::agent::packed;
use crate::id::{BranchNo, LaneNo, ObjectId, SegmentNo, SessionNo};
use crate::segment::index::ObjectNo;
use crate::segment::memory::{FailedWrite, MemoryDisk, Random};
use crate::segment::{DiskError, ObjectKind};

mod ancestors;

/// By branch: how many changes it has, whether it has a head, what its keys name.
pub(super) type State = BTreeMap<String, (u64, bool, BTreeMap<Vec<u8>, Vec<u8>>)>;

pub(super) const CHECKPOINT: Call<'_> = Call::Checkpoint {
    opaque: b"",
    pairs: b"",
    expect: None,
};

pub(super) fn merge(from: &str) -> Call<'_> {
    Call::Merge {
        from: Revision::Branch(from),
        rules: Vec::new(),
        opaque: b"",
        pairs: b"",
        expect: None,
    }
}

pub(super) fn branch(name: &str) -> Call<'_> {
    Call::Branch {
        name,
        from: Revision::Head,
    }
}

pub(super) const FORK: Call<'_> = Call::Fork {
    from: Revision::Head,
};

impl World {
    pub(super) fn submit_call(&mut self, on: Option<BranchNo>, call: &Call<'_>) -> u64 {
        self.submit_call_with(on, call, CALL_REPLY_BYTES)
    }

    /// The same, with so much room for the answer.
    pub(super) fn submit_call_with(
        &mut self,
        on: Option<BranchNo>,
        call: &Call<'_>,
        room: u32,
    ) -> u64 {
        let mut bytes = Vec::new();
        call.encode(&mut bytes);
        self.submit(Op::Call, b"", &bytes, |entry| {
            entry.branch = on;
            entry.reply.len = room;
        })
    }

    /// Carries a call out, alone; its completion and its answer.
    pub(super) fn call_on(
        &mut self,
        on: Option<BranchNo>,
        call: &Call<'_>,
    ) -> (Completion, Vec<u8>) {
        self.submit_call(on, call);
        let completion = self.wait();
        let answer = self.reply(&completion);
        (completion, answer)
    }

    pub(super) fn reply(&mut self, completion: &Completion) -> Vec<u8> {
        let mut answer = vec![0; completion.reply_bytes as usize];
        let len = completion.reply_bytes;
        self.lane
            .read_output(Extent { offset: 0, len }, &mut answer);
        answer
    }

    /// A call that has to go well.
    pub(super) fn good(&mut self, on: Option<BranchNo>, call: &Call<'_>) -> Vec<u8> {
        let (completion, answer) = self.call_on(on, call);
        assert_eq!(completion.status, Status::Ok, "{call:?}");
        answer
    }

    pub(super) fn info(&mut self, on: Option<BranchNo>, call: &Call<'_>) -> BranchInfo {
        let answer = self.good(on, call);
        call::items(&answer).next().unwrap().unwrap()
    }

    pub(super) fn made(&mut self, on: Option<BranchNo>) -> Checkpointed {
        let answer = self.good(on, &CHECKPOINT);
        call::items(&answer).next().unwrap().unwrap()
    }

    pub(super) fn put_on(&mut self, on: BranchNo, key: &[u8], value: &[u8]) {
        self.submit(Op::Put, key, value, |entry| entry.branch = Some(on));
        assert_eq!(self.wait().status, Status::Ok);
    }

    pub(super) fn get_on(&mut self, on: BranchNo, key: &[u8]) -> Result<Vec<u8>, Status> {
        self.submit(Op::Get, key, b"", |entry| entry.branch = Some(on));
        let completion = self.wait();
        match completion.status {
            Status::Ok => Ok(self.reply(&completion)),
            status => Err(status),
        }
    }

    /// Everything that there is, as an agent sees it.
    pub(super) fn state(&mut self) -> State {
        let answer = self.good(None, &Call::Branches { after: "" });
        let branches: Vec<BranchInfo> = call::items(&answer).map(Result::unwrap).collect();
        let mut state = State::new();
        for info in branches {
            let on = BranchNo(info.no);
            self.submit(Op::Scan, b"", b"", |entry| entry.branch = Some(on));
            let completion = self.wait();
            assert_eq!((completion.status, completion.more), (Status::Ok, false));
            let answer = self.reply(&completion);
            let keys: Vec<Vec<u8>> = packed::Scanned::parse(&answer)
                .unwrap()
                .map(|item| item.key.to_vec())
                .collect();
            let values = keys.into_iter().map(|key| {
                let value = self.get_on(on, &key);
                (key, value.expect("what a scan finds is there"))
            });
            let values: Vec<_> = values.collect();
            let described = (
                info.changes,
                info.head.is_some(),
                values.into_iter().collect(),
            );
            state.insert(info.name, described);
        }
        state
    }

    /// Lets every object be on the device only, each for itself.
    pub(super) fn chill(&mut self) {
        let objects = self.shard.store.tables.objects.all();
        let places: Vec<_> = objects.map(|(_, object)| object.at).collect();
        for at in places.into_iter().filter(|at| at.bytes > 0) {
            let range = at.offset..at.offset + at.bytes;
            self.disk().cold.push((at.segment, range));
        }
    }

    /// A restart that leaves nothing in memory.
    pub(super) fn chilled(self) -> Self {
        let mut world = self.restarted(0);
        world.chill();
        world
    }
}

pub(super) fn value(no: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32)
        .map(|at| (at ^ no.wrapping_mul(77)) as u8)
        .collect()
}

/// `main` and `other` with a common ancestor, no conflict, and all saved; the tag `base`.
fn parted() -> World {
    let mut world = World::new(1 << 20);
    for no in 0..40u32 {
        let bytes = if no % 8 == 0 { 5000 } else { 300 };
        world.put(format!("k/{no:02}").as_bytes(), &value(no, bytes));
    }
    world.good(None, &CHECKPOINT);
    let tag = Call::Tag {
        name: "base",
        target: Revision::Head,
        force: false,
    };
    world.good(None, &tag);
    let other = BranchNo(world.info(None, &branch("other")).no);
    world.put_on(other, b"k/07", b"theirs");
    world.put_on(other, b"theirs", &value(1, 4000));
    world.good(Some(other), &CHECKPOINT);
    world.put(b"k/03", b"ours");
    world.delete(b"k/04");
    world.good(None, &CHECKPOINT);
    world
}

/// What is tested against crashes and failures: a preparation, and a call on a branch.
type Case = (
    &'static str,
    fn(&mut World) -> (Option<BranchNo>, Call<'static>),
);

fn unsaved(world: &mut World) {
    world.put(b"k/05", &value(9, 4000));
    world.put(b"new", b"small");
    world.delete(b"k/06");
}

fn fork_with_changes(world: &mut World) -> BranchNo {
    let fork = BranchNo(world.info(None, &FORK).no);
    world.put_on(fork, b"k/05", &value(9, 4000));
    world.put_on(fork, b"new", b"small");
    world.submit(Op::Delete, b"k/06", b"", |entry| entry.branch = Some(fork));
    assert_eq!(world.wait().status, Status::Ok);
    fork
}

const CASES: [Case; 11] = [
    ("checkpoint", |world| {
        unsaved(world);
        (None, CHECKPOINT)
    }),
    ("branch", |_| (None, branch("third"))),
    ("rename", |world| {
        unsaved(world);
        (None, Call::Rename { name: "trunk" })
    }),
    ("delete", |_| {
        let (name, force) = ("other", false);
        (None, Call::DeleteBranch { name, force })
    }),
    ("restore", |world| {
        unsaved(world);
        let (to, force) = (Revision::Tag("base"), true);
        (None, Call::Restore { to, force })
    }),
    ("restore to nothing", |_| {
        let (to, force) = (Revision::Empty, false);
        (None, Call::Restore { to, force })
    }),
    ("merge", |_| (None, merge("other"))),
    ("fast-forward", |world| {
        let old = Call::Branch {
            name: "old",
            from: Revision::Tag("base"),
        };
        (Some(BranchNo(world.info(None, &old).no)), merge("main"))
    }),
    ("keep", |world| {
        (Some(fork_with_changes(world)), Call::Keep { name: "kept" })
    }),
    ("keep after a checkpoint", |world| {
        let fork = fork_with_changes(world);
        world.good(Some(fork), &CHECKPOINT);
        world.put_on(fork, b"newer", b"x");
        (Some(fork), Call::Keep { name: "kept" })
    }),
    ("checkpoint of an empty state", |world| {
        let (to, force) = (Revision::Empty, false);
        world.good(None, &Call::Restore { to, force });
        (None, CHECKPOINT)
    }),
];

/// The files as they were, with the first `cut` bytes of what differs now.
pub(super) fn cut_after(
    before: &MemoryDisk,
    after: &MemoryDisk,
    segment: SegmentNo,
    end: usize,
) -> MemoryDisk {
    let (mut cut, mut after) = (before.clone(), after.clone());
    let bytes = after.bytes_mut(segment)[..end].to_vec();
    cut.bytes_mut(segment)[..end].copy_from_slice(&bytes);
    cut
}

#[test]
fn a_crash_between_any_two_records_leaves_the_state_before_or_after() {
    for (name, prepare) in CASES {
        let mut world = parted();
        let (on, call) = prepare(&mut world);
        world.disk().kill();
        let disk = world.disk().clone();
        let before = World::over(disk.clone(), 0).state();
        let last = world.shard.store.log.last();
        world.good(on, &call);
        assert!(world.shard.store.log.last() > last, "{name}");
        world.disk().kill();
        let done = world.disk().clone();
        let after = World::over(done.clone(), 0).state();
        let segment = SegmentNo(*world.disk().segments().first().unwrap());
        let (mut old, mut new) = (disk.clone(), done.clone());
        let (old, new) = (old.bytes_mut(segment), new.bytes_mut(segment));
        let differs: Vec<usize> = (0..old.len()).filter(|&at| old[at] != new[at]).collect();
        let (first, end) = (differs[0] & !7, *differs.last().unwrap() + 1);
        // Records begin at multiples of 8; of what lies within one, some places are enough.
        let step = ((end - first) / 60 / 8 * 8).max(8);
        let mut seen = (0, 0);
        for cut_at in (first..end + step).step_by(step) {
            let cut = cut_after(&disk, &done, segment, cut_at.min(new.len()));
            let mut world = World::over(cut, 0);
            let state = world.state();
            match (state == before, state == after) {
                (_, true) => seen.1 += 1,
                (true, _) => seen.0 += 1,
                _ => panic!("{name}: neither before nor after a cut at {cut_at} of {end}"),
            }
            // What is left goes on.
            world.put(b"goes", b"on");
            world.good(None, &CHECKPOINT);
        }
        assert!(
            seen.1 > 0 && (seen.0 > 0 || before == after),
            "{name}: {seen:?}"
        );
    }
}

#[test]
fn a_call_whose_flush_fails_changes_nothing_and_can_be_tried_again() {
    for (name, prepare) in CASES {
        for error in [
            DiskError::NoSpace,
            DiskError::Os {
                call: "pwrite",
                segment: SegmentNo(1),
                errno: 5,
            },
        ] {
            let mut world = parted();
            let (on, call) = prepare(&mut world);
            let before = world.state();
            let mut failures = 0;
            for skip in 0.. {
                world.disk().faults.write = Some(FailedWrite {
                    skip,
                    written: 40,
                    error: error.clone(),
                });
                let (completion, _) = world.call_on(on, &call);
                if world.disk().faults.write.take().is_some() {
                    assert_eq!(completion.status, Status::Ok, "{name}");
                    break;
                }
                failures += 1;
                let wanted = match error {
                    DiskError::NoSpace => (Status::NoSpace, 0),
                    _ => (Status::IoFailed, 5),
                };
                assert_eq!((completion.status, completion.detail), wanted, "{name}");
                assert_eq!(world.state(), before, "{name}");
            }
            assert!(failures > 0, "{name}");
            let after = world.state();
            assert_eq!(world.restarted(0).state(), after, "{name}");
        }
    }
}

/// Of a fork the log knew values and nothing that named them: a checkpoint of one lost them with the
/// runtime.
#[test]
fn a_checkpoint_of_a_fork_outlives_the_fork() {
    let mut world = parted();
    let fork = fork_with_changes(&mut world);
    let made = world.made(Some(fork));
    world.put_on(fork, b"k/05", b"later");
    world.good(Some(fork), &Call::Discard);
    let mut world = world.restarted(0);
    let from = Call::Branch {
        name: "from",
        from: Revision::Checkpoint(made.id),
    };
    let from = BranchNo(world.info(None, &from).no);
    assert_eq!(world.get_on(from, b"k/05").unwrap(), value(9, 4000));
    assert_eq!(world.get_on(from, b"new").unwrap(), b"small");
    assert_eq!(world.get_on(from, b"k/06"), Err(Status::NotFound));
}

/// What a dropped fork had written and no flush had stored was found by its content, and named.
#[test]
fn what_a_dropped_fork_lost_with_a_flush_is_shared_with_nobody() {
    for ends in [false, true] {
        let mut world = parted();
        let fork = BranchNo(world.info(None, &FORK).no);
        let content = value(33, 4000);
        world.submit(Op::Put, b"x", &content, |entry| entry.branch = Some(fork));
        world.disk().faults.write = Some(FailedWrite {
            skip: 0,
            written: 0,
            error: DiskError::NoSpace,
        });
        if ends {
            world.step();
            world.detach(LaneNo(0));
            let (ring, client) = rings(LaneNo(1));
            world.lane = client;
            world.held.clear();
            world.attach_as(SessionNo(1), LaneNo(1), ring);
        } else {
            // All of it in one turn.
            world.submit_call(Some(fork), &Call::Discard);
            world.submit_call(None, &CHECKPOINT);
            world.submit(Op::Put, b"y", &content, |_| {});
            world.step();
            while world.completion().is_some() {}
        }
        world.disk().faults.write = None;
        assert_eq!(world.put(b"y", &content).status, Status::Ok);
        let mut world = world.restarted(0);
        assert!(world.get(b"y").unwrap() == content);
    }
}

/// More than the log's buffer takes at once: it once waited for room for ever.
#[test]
fn a_fork_with_too_many_changes_to_keep_is_told_so_and_kept_after_a_checkpoint() {
    let mut world = parted();
    let fork = BranchNo(world.info(None, &FORK).no);
    let key = |no: u32| format!("{}{no}", "k".repeat(1000)).into_bytes();
    for no in 0..600 {
        world.put_on(fork, &key(no), b"x");
    }
    let (refused, _) = world.call_on(Some(fork), &Call::Keep { name: "kept" });
    assert_eq!(refused.status, Status::TooLarge);
    assert_eq!(world.get_on(fork, &key(7)).unwrap(), b"x");
    assert_eq!(world.made(Some(fork)).keys, 639);
    let kept = world.info(Some(fork), &Call::Keep { name: "kept" });
    let mut world = world.restarted(0);
    assert_eq!(world.get_on(BranchNo(kept.no), &key(599)).unwrap(), b"x");
}

/// A state of more nodes than the log's buffer takes.
fn with_a_large_state() -> (World, BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut world = World::new(1 << 20);
    let mut model = BTreeMap::new();
    let mut random = Random(9);
    for no in 0..2000u32 {
        // Long keys that have nothing in common: the tree holds them whole.
        let key = (0..80)
            .flat_map(|_| random.next().to_le_bytes())
            .collect::<Vec<u8>>();
        let value = value(no, 40);
        assert_eq!(world.put(&key, &value).status, Status::Ok);
        model.insert(key, value);
    }
    (world, model)
}

/// What happens to the branch, or to another one, while a checkpoint of it waits for the log.
#[test]
fn a_checkpoint_that_waits_holds_what_the_branch_holds_in_the_end() {
    type Change = fn(&mut World, &[u8]);
    let changes: [(Change, u64); 4] = [
        (
            |world, key| assert_eq!(world.put(key, b"new").status, Status::Ok),
            2000,
        ),
        (
            |world, key| assert_eq!(world.delete(key).status, Status::Ok),
            1999,
        ),
        (
            |world, _| assert_eq!(world.put(b"more", b"x").status, Status::Ok),
            2001,
        ),
        (
            |world, _| assert_eq!(world.made(Some(BranchNo(1))).keys, 1),
            2000,
        ),
    ];
    for (change, keys) in changes {
        let (mut world, model) = with_a_large_state();
        world.info(
            None,
            &Call::Branch {
                name: "other",
                from: Revision::Empty,
            },
        );
        world.put_on(BranchNo(1), b"k", b"v");
        let (ring, client) = rings(LaneNo(1));
        world.attach_as(SessionNo(1), LaneNo(1), ring);
        world.submit_call(None, &CHECKPOINT);
        world.step();
        assert!(world.completion().is_none(), "it waits");
        let first = std::mem::replace(&mut world.lane, client);
        let held = std::mem::take(&mut world.held);
        let key = model.keys().next().unwrap();
        change(&mut world, key);
        (world.lane, world.held) = (first, held);
        let completion = world.wait();
        assert_eq!(completion.status, Status::Ok);
        let answer = world.reply(&completion);
        let made: Checkpointed = call::items(&answer).next().unwrap().unwrap();
        assert_eq!(made.keys, keys);
        let looked_at: Vec<&[u8]> = vec![key, b"more", model.keys().last().unwrap()];
        let found =
            |world: &mut World| -> Vec<_> { looked_at.iter().map(|key| world.get(key)).collect() };
        let before = found(&mut world);
        let mut world = world.restarted(0);
        assert_eq!(world.info(None, &Call::Describe).head, Some(made.id));
        assert_eq!(world.info(None, &Call::Describe).changes, 0);
        assert_eq!(found(&mut world), before);
    }
}

#[test]
fn a_checkpoint_larger_than_the_logs_buffer_goes_out_bit_by_bit() {
    let (mut world, model) = with_a_large_state();
    let made = world.made(None);
    assert_eq!(world.shard.store.commits.applied, 1, "and is made once");
    // All that was appended counts, whatever waits there were.
    let objects = world.shard.store.tables.objects.all();
    let stored: Vec<u64> = objects
        .filter(|(_, object)| object.kind == ObjectKind::Node)
        .map(|(_, object)| u64::from(object.at.bytes))
        .collect();
    assert!(stored.iter().sum::<u64>() > 1 << 20, "more than the buffer");
    assert_eq!(
        (made.keys, made.new_objects),
        (2000, stored.len() as u64 + 1)
    );
    assert_eq!(made.reused_bytes, 0);
    let mut world = world.restarted(0);
    assert_eq!(world.info(None, &Call::Describe).head, Some(made.id));
    for (key, value) in model {
        assert!(world.get(&key).unwrap() == value);
    }
}

/// Carried out again and again, a checkpoint allocates nothing but where a table grows or a segment begins: as
/// often as that happens, and no more. What moves a branch or a tag copies its name.
#[test]
fn what_is_done_again_and_again_takes_hardly_any_memory() {
    const ROUNDS: u64 = 400;
    let mut world = World::new(1 << 20);
    for no in 0..400u32 {
        world.put(format!("k/{no:03}").as_bytes(), &value(no, 300));
    }
    world.good(None, &CHECKPOINT);
    let tag = Call::Tag {
        name: "t",
        target: Revision::Head,
        force: true,
    };
    world.good(None, &tag);
    let restore = Call::Restore {
        to: Revision::Head,
        force: true,
    };
    for (name, call, each) in [
        ("checkpoint", CHECKPOINT, 0),
        ("tag", tag, 1),
        // Its name, and room for what is read again: a table, keys, changes.
        ("restore", restore, 4),
    ] {
        let mut made = 0;
        for round in 0..2 * ROUNDS {
            let key = format!("k/{:03}", round * 7 % 400);
            world.submit(Op::Put, key.as_bytes(), &value(round as u32, 300), |_| {});
            world.counted_step();
            assert_eq!(world.completion().unwrap().status, Status::Ok);
            world.submit_call(None, &call);
            let allocations = world.counted_step();
            assert_eq!(world.completion().unwrap().status, Status::Ok);
            if round >= ROUNDS {
                made += allocations;
            }
        }
        println!("{name}: {made} allocations in {ROUNDS} rounds");
        assert!(made <= each * ROUNDS + ROUNDS / 20, "{name}: {made}");
    }
    world.check_references();
}

/// A log that runs along more branches than 64 lost the others between two pages.
#[test]
fn a_log_along_many_branches_loses_none_between_pages() {
    let mut world = World::new(1 << 20);
    world.put(b"k", b"v");
    let root = world.made(None).id;
    let mut wanted = vec![root];
    let names: Vec<String> = (0..90).map(|no| format!("b{no}")).collect();
    for name in &names {
        let on = BranchNo(world.info(None, &branch(name)).no);
        world.put_on(on, name.as_bytes(), b"x");
        wanted.push(world.made(Some(on)).id);
    }
    world.put(b"own", b"x");
    wanted.push(world.made(None).id);
    for name in &names {
        let answer = world.good(None, &merge(name));
        match call::items(&answer).next().unwrap().unwrap() {
            call::Merged::Merged(made) => wanted.push(made.id),
            other => panic!("{other:?}"),
        }
    }
    for limit in [0, 7] {
        let mut found = Vec::new();
        let mut frontier = Vec::new();
        loop {
            let page = Call::Log {
                from: Revision::Head,
                frontier: std::mem::take(&mut frontier),
                limit,
            };
            let answer = world.good(None, &page);
            for item in call::items(&answer) {
                match item.unwrap() {
                    Logged::Entry { id, .. } => found.push(id),
                    Logged::Next { id } => frontier.push(id),
                }
            }
            if frontier.is_empty() {
                break;
            }
        }
        assert_eq!(found.len(), wanted.len());
        found.sort_unstable();
        wanted.sort_unstable();
        assert!(found == wanted);
    }
}

#[test]
fn an_answer_without_room_is_refused_before_anything_is_done() {
    for (name, prepare) in CASES {
        let mut world = parted();
        let (on, call) = prepare(&mut world);
        if call.answer_bytes_min() == 0 {
            continue;
        }
        let before = world.state();
        let mut bytes = Vec::new();
        call.encode(&mut bytes);
        world.submit(Op::Call, b"", &bytes, |entry| {
            entry.branch = on;
            entry.reply.len = 8;
        });
        assert_eq!(world.wait().status, Status::ReplyTooSmall, "{name}");
        assert_eq!(world.state(), before, "{name}");
    }
}

#[test]
fn operations_that_need_cold_nodes_are_parked_and_end_right() {
    for (name, prepare) in CASES {
        let mut warm = parted();
        let (on, call) = prepare(&mut warm);
        if on.is_some_and(agent::is_fork) {
            continue;
        }
        let mut world = warm.restarted(0);
        let mut twin = World::over(world.disk().clone(), 0);
        world.chill();
        twin.good(on, &call);
        world.disk().at_once = false;
        world.good(on, &call);
        world.chill();
        assert_eq!(world.state(), twin.state(), "{name}");
        assert!(world.shard.pending.is_empty());
    }
}

#[test]
fn a_lane_or_a_branch_that_goes_while_an_operation_is_parked_hurts_nobody() {
    for (name, prepare) in CASES {
        for turns in 0..6 {
            let mut world = parted();
            let (on, call) = prepare(&mut world);
            if on.is_some_and(agent::is_fork) {
                continue;
            }
            let mut world = world.chilled();
            let before = world.state().len();
            world.chill();
            world.disk().at_once = false;
            world.submit_call(on, &call);
            for _ in 0..turns {
                world.step();
                if turns > 1 {
                    world.disk().run_io();
                }
            }
            let end = Command::EndSession {
                session: SessionNo(1),
                reason: CloseReason::Detached,
            };
            assert!(world.commands.push(end).is_ok());
            world.step();
            for _ in 0..6 {
                world.disk().run_io();
                world.step();
            }
            assert!(
                world.shard.pending.is_empty() && world.shard.resumed.is_empty(),
                "{name}"
            );
            world.disk().at_once = true;
            let (ring, client) = rings(LaneNo(0));
            world.lane = client;
            world.held.clear();
            world.attach_as(SessionNo(1), LaneNo(0), ring);
            assert!(world.state().len().abs_diff(before) <= 1, "{name}");
        }
    }
    // The branch goes, by another lane.
    let mut world = parted().chilled();
    let other = BranchNo(1);
    world.disk().at_once = false;
    let read = world.submit(Op::Get, b"k/09", b"", |entry| entry.branch = Some(other));
    world.step();
    assert!(world.completion().is_none());
    let first = world.go_on(SessionNo(1), LaneNo(1));
    let (name, force) = ("other", true);
    world.good(None, &Call::DeleteBranch { name, force });
    let second = std::mem::replace(&mut world.lane, first);
    world.held.clear();
    world.disk().run_io();
    world.step();
    let completion = world.completion().unwrap();
    assert_eq!(
        (completion.user_data, completion.status),
        (read, Status::NoSuchBranch)
    );
    drop(second);
}

/// A lane's requests on one key take effect in their order (`PROTOCOL.md`, section 5), also where the first
/// has to wait for a node: a put once went before the delete that was submitted before it.
#[test]
fn nothing_overtakes_a_parked_operation_that_changes_something() {
    let mut world = parted().chilled();
    world.disk().at_once = false;
    let deleted = world.submit(Op::Delete, b"k/09", b"", |_| {});
    let put = world.submit(Op::Put, b"k/09", b"after", |_| {});
    let read = world.submit(Op::Get, b"k/10", b"", |_| {});
    let mut done = Vec::new();
    for _ in 0..20 {
        world.step();
        world.disk().run_io();
        while let Some(completion) = world.completion() {
            assert_eq!(completion.status, Status::Ok);
            done.push(completion.user_data);
        }
    }
    assert_eq!(done, [deleted, put, read]);
    assert_eq!(world.get(b"k/09").unwrap(), b"after");
    // A switch does not carry off what was submitted before it.
    let mut world = world.chilled();
    world.disk().at_once = false;
    world.submit(Op::Delete, b"k/11", b"", |_| {});
    world.submit_call(None, &Call::Switch { name: "other" });
    world.submit(Op::Get, b"theirs", b"", |_| {});
    for _ in 0..3 {
        assert_eq!(world.wait().status, Status::Ok);
    }
    assert!(world.get(b"k/11").is_ok());
    assert_eq!(world.get_on(BranchNo(0), b"k/11"), Err(Status::NotFound));
}

#[test]
fn a_node_that_cannot_be_read_or_is_damaged_fails_its_own_operation() {
    let mut world = parted().chilled();
    world.disk().faults.read = Some(DiskError::Os {
        call: "pread",
        segment: SegmentNo(1),
        errno: 5,
    });
    assert_eq!(world.get(b"k/09"), Err(Status::IoFailed));
    assert_eq!(
        world.call_on(None, &merge("other")).0.status,
        Status::IoFailed
    );
    assert_eq!(world.put(b"fresh", b"x").status, Status::Ok);
    assert_eq!(world.get(b"fresh").unwrap(), b"x");
    world.disk().faults.read = None;
    assert_eq!(world.get(b"k/09").unwrap(), value(9, 300));

    // One kind of object after the other is damaged: all of them.
    for kind in [ObjectKind::Node, ObjectKind::Checkpoint] {
        for cold in [false, true] {
            let mut world = parted().restarted(0);
            let objects = world.shard.store.tables.objects.all();
            let of_kind = objects.filter(|(_, object)| object.kind == kind);
            let places: Vec<_> = of_kind.map(|(_, object)| object.at).collect();
            for at in places {
                world.disk().bytes_mut(at.segment)[at.offset as usize + 9] ^= 1;
            }
            if cold {
                world.chill();
            }
            for _ in 0..2 {
                // A second look finds the same, although the object is in quarantine then.
                assert_eq!(
                    world.call_on(None, &merge("other")).0.status,
                    Status::Corrupt
                );
                let to = Call::Diff {
                    before: Revision::Tag("base"),
                    after: Revision::Head,
                    from: None,
                    limit: 0,
                };
                assert_eq!(world.call_on(None, &to).0.status, Status::Corrupt);
            }
            let found = world.get(b"k/09");
            match kind {
                ObjectKind::Node => assert_eq!(found, Err(Status::Corrupt)),
                _ => assert_eq!(found.unwrap(), value(9, 300)),
            }
            assert_eq!(world.put(b"fresh", b"x").status, Status::Ok);
            assert_eq!(world.get(b"fresh").unwrap(), b"x");
        }
    }
}

/// A checkpoint that had been found to be damaged was once said to be none from then on, and history to end there.
#[test]
fn a_damaged_checkpoint_is_damaged_each_time_it_is_asked_for() {
    let mut world = World::new(0);
    world.put(b"k", b"1");
    let first = world.made(None).id;
    world.put(b"k", b"2");
    world.good(None, &CHECKPOINT);
    let mut world = world.restarted(0);
    let objects = &world.shard.store.tables.objects;
    let found = objects.find(&ObjectId::from_bytes(first)).unwrap();
    let at = objects.get(found).at;
    world.disk().bytes_mut(at.segment)[at.offset as usize + 9] ^= 1;
    for _ in 0..2 {
        let from = Revision::Checkpoint(first);
        let fork = Call::Fork { from };
        assert_eq!(world.call_on(None, &fork).0.status, Status::Corrupt);
        let log = Call::Log {
            from: Revision::Head,
            frontier: Vec::new(),
            limit: 0,
        };
        assert_eq!(world.call_on(None, &log).0.status, Status::Corrupt);
    }
}

/// Names take memory too: without a bound one lane could open forks until there is none.
#[test]
fn branches_forks_and_tags_find_an_end_where_memory_does() {
    let mut world = parted();
    world.shard.store.limit_index(0);
    for call in [
        branch("third"),
        FORK,
        Call::Tag {
            name: "more",
            target: Revision::Head,
            force: false,
        },
    ] {
        let (completion, _) = world.call_on(None, &call);
        assert_eq!(completion.status, Status::Busy, "{call:?}");
        assert_eq!(completion.detail, BusyReason::Memory as u32);
    }
    world.good(None, &merge("other"));
}

#[test]
fn calls_of_any_bytes_hurt_only_their_session() {
    let mut random = Random(5);
    let mut world = parted();
    let mut calls: Vec<Vec<u8>> = Vec::new();
    for (_, prepare) in CASES {
        let (_, call) = prepare(&mut parted());
        let mut bytes = Vec::new();
        call.encode(&mut bytes);
        calls.push(bytes);
    }
    let blob = ObjectNo(0);
    let blob = *world.shard.store.tables.objects.get(blob).id.as_bytes();
    for id in [blob, [0; 32], [0xff; 32]] {
        let of = Revision::Checkpoint(id);
        for call in [
            Call::Diff {
                before: of,
                after: Revision::Head,
                from: None,
                limit: u32::MAX,
            },
            Call::Log {
                from: Revision::Head,
                frontier: vec![id; 100],
                limit: u32::MAX,
            },
            Call::Tag {
                name: "\u{202e}\u{0}x",
                target: of,
                force: true,
            },
            Call::Restore {
                to: of,
                force: true,
            },
        ] {
            let (completion, _) = world.call_on(None, &call);
            let refused = [Status::NoSuchRevision, Status::BadName];
            assert!(refused.contains(&completion.status), "{call:?}");
            let mut bytes = Vec::new();
            call.encode(&mut bytes);
            calls.push(bytes);
        }
    }
    let (mut ended, mut lane) = (0, 1);
    for _ in 0..3000 {
        let mut bytes = calls[random.below(calls.len())].clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len().max(1));
            match random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), random.next() as u8),
                _ if bytes.is_empty() => bytes.push(random.next() as u8),
                _ => bytes[at] = random.next() as u8,
            }
        }
        let on = [
            None,
            Some(BranchNo(random.below(4) as u32)),
            Some(BranchNo(1 << 31)),
        ];
        let on = on[random.below(3)];
        let reply = [CALL_REPLY_BYTES, 0, 600][random.below(3)];
        if bytes.is_empty() {
            continue;
        }
        world.submit(Op::Call, b"", &bytes, |entry| {
            entry.branch = on;
            entry.reply.len = reply;
        });
        for _ in 0..3 {
            world.step();
        }
        if world.lane.closed().is_some() {
            ended += 1;
            let (ring, client) = rings(LaneNo(lane));
            world.lane = client;
            world.held.clear();
            world.attach_as(SessionNo(1), LaneNo(lane), ring);
            lane += 1;
        } else {
            assert!(world.completion().is_some());
        }
    }
    assert!(ended > 100, "{ended}");
    assert_eq!(world.put(b"k", b"v").status, Status::Ok);
    world.restarted(0);
}
