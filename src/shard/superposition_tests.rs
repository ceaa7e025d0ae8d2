//! Superpositions in a shard turned by hand: crashes, failures, clocks, and what is in memory for whom.

use super::tests::World;
use super::version_tests::{CHECKPOINT, cut_after, value};
use super::*;
use crate::agent::call::{self, Call, Revision};
use crate::agent::set_call::{CandidateInfo, Choice, Collapsed, SetCall, SetInfo};
use crate::cache::GroupNo;
use crate::id::{AgentNo, BranchNo, ObjectId, SegmentNo, SetNo};
use crate::segment::index::NOT_CACHED;
use crate::segment::memory::FailedWrite;
use crate::segment::{DiskError, Head, ObjectKind};
use crate::shard::sets::{SETS_MAX, Sets};
use crate::state::superposition::{CANDIDATES_MAX, OBSERVED_MS, WEIGHT_MAX};

const SECOND: u64 = 1_000;
const FORK: Call<'_> = Call::Fork {
    from: Revision::Head,
};

pub(super) fn create(name: &str, half_life_ms: u64, ttl_ms: u64, bound: f64) -> SetCall<'_> {
    SetCall::Create {
        name,
        half_life_ms,
        ttl_ms,
        bound: bound.to_le_bytes(),
    }
}

fn collapse(set: u32, choice: Choice) -> SetCall<'static> {
    SetCall::Collapse {
        set,
        choice,
        into: None,
        expect: None,
        force: false,
    }
}

fn add<'a>(set: u32, from: Revision<'a>, weight: f64, label: &'a str) -> SetCall<'a> {
    SetCall::Add {
        set,
        from,
        weight: weight.to_le_bytes(),
        label,
    }
}

impl World {
    pub(super) fn set_call(&mut self, call: SetCall<'_>) -> Vec<u8> {
        self.good(None, &Call::Superposition(call))
    }

    /// The status of a call, and the number with it.
    fn refused(&mut self, on: Option<BranchNo>, call: SetCall<'_>) -> (Status, u64) {
        let (completion, answer) = self.call_on(on, &Call::Superposition(call));
        assert!(answer.is_empty(), "{call:?}");
        (completion.status, completion.value_bytes)
    }

    fn status(&mut self, call: SetCall<'_>) -> Status {
        self.refused(None, call).0
    }

    pub(super) fn create(&mut self, call: SetCall<'_>) -> SetInfo {
        let answer = self.set_call(call);
        call::items(&answer).next().unwrap().unwrap()
    }

    /// By name: candidates, and their total weight.
    pub(super) fn sets(&mut self) -> Vec<(String, u32, f64)> {
        let answer = self.set_call(SetCall::List { after: None });
        call::items::<SetInfo>(&answer)
            .map(|info| info.unwrap())
            .map(|info| (info.name, info.candidates, f64::from_le_bytes(info.total)))
            .collect()
    }

    /// A checkpoint of the head with another value of `k`, from a fork that is dropped.
    pub(super) fn tried(&mut self, set: u32, bytes: &[u8], weight: f64, label: &str) -> ObjectId {
        let fork = BranchNo(self.info(None, &FORK).no);
        self.put_on(fork, b"k", bytes);
        let made = self.made(Some(fork));
        let from = Revision::Checkpoint(made.id);
        self.set_call(add(set, from, weight, label));
        self.good(Some(fork), &Call::Discard);
        ObjectId::from_bytes(made.id)
    }

    pub(super) fn open(&mut self, set: u32, candidate: u32) -> BranchNo {
        let call = Call::Superposition(SetCall::Open { set, candidate });
        BranchNo(self.info(None, &call).no)
    }

    fn candidates(&mut self, set: u32) -> Vec<(u32, f64, String)> {
        let answer = self.set_call(SetCall::Candidates { set, after: None });
        call::items::<CandidateInfo<'_>>(&answer)
            .map(|found| found.unwrap())
            .map(|found| {
                (
                    found.no,
                    f64::from_le_bytes(found.weight),
                    found.label.to_owned(),
                )
            })
            .collect()
    }
}

/// `main` with a few keys, and a set of three candidates.
fn superposed(l2_bytes: usize, terms: SetCall<'_>) -> World {
    let mut world = World::new(l2_bytes);
    for no in 0..40u32 {
        world.put(format!("k/{no:02}").as_bytes(), &value(no, 300));
    }
    world.put(b"k", b"before");
    world.good(None, &CHECKPOINT);
    let set = world.create(terms);
    assert_eq!((set.no, set.candidates), (0, 0));
    for (no, weight) in [(0, 1.0), (1, 5.0), (2, 2.0)] {
        world.tried(0, &[b't', no], weight, &format!("try {no}"));
    }
    world
}

#[test]
fn a_collapse_moves_the_branch_and_ends_the_set() {
    let mut world = superposed(1 << 20, create("tries", 0, 0, 0.0));
    assert_eq!(world.get(b"k").unwrap(), b"before");
    let listed = world.candidates(0);
    let wanted = [(0, 1.0, "try 0"), (1, 5.0, "try 1"), (2, 2.0, "try 2")];
    assert_eq!(
        listed,
        wanted.map(|(no, weight, label)| (no, weight, label.to_owned()))
    );
    // Reading in a candidate, and writing in it, leaves it as it is.
    let fork = world.open(0, 1);
    assert_eq!(world.get_on(fork, b"k").unwrap(), [b't', 1]);
    assert_eq!(world.get_on(fork, b"k/07").unwrap(), value(7, 300));
    world.put_on(fork, b"k", b"other");
    world.put_on(fork, b"new", b"other");
    let again = world.open(0, 1);
    assert_eq!(world.get_on(again, b"k").unwrap(), [b't', 1]);
    assert_eq!(world.get_on(again, b"new"), Err(Status::NotFound));
    let seed = (0..)
        .find(|&seed| {
            let open = world
                .shard
                .store
                .tables
                .agent(AgentNo(0))
                .sets
                .get(SetNo(0));
            open.unwrap().set.draw(seed) == Some(2)
        })
        .unwrap();
    let answer = world.set_call(collapse(0, Choice::Drawn { seed }));
    let collapsed: Collapsed = call::items(&answer).next().unwrap().unwrap();
    assert_eq!((collapsed.candidate, collapsed.branch), (2, 0));
    assert_eq!(world.get(b"k").unwrap(), [b't', 2]);
    let main = world.info(None, &Call::Describe);
    assert_eq!((main.head, main.changes), (Some(collapsed.head), 0));
    // The set is gone, forks that were open are not.
    assert_eq!(world.sets(), []);
    let second = world.status(collapse(0, Choice::Candidate(0)));
    assert_eq!(second, Status::NoSuchSet);
    assert_eq!(world.get_on(fork, b"k").unwrap(), b"other");
    assert_eq!(world.get_on(again, b"k").unwrap(), [b't', 1]);
    world.good(Some(fork), &Call::Discard);
    world.good(Some(again), &Call::Keep { name: "kept" });
    let mut world = world.restarted(1 << 20);
    assert_eq!(world.get(b"k").unwrap(), [b't', 2]);
    assert_eq!(world.sets(), []);
}

#[test]
fn sets_survive_a_restart_and_numbers_are_not_given_out_again() {
    let mut world = superposed(0, create("tries", 60 * SECOND, 0, 0.0));
    world.create(create("others", 0, 0, 0.0));
    world.set_call(SetCall::Reweigh {
        set: 0,
        candidate: 1,
        weight: 7.5f64.to_le_bytes(),
    });
    world.set_call(SetCall::Release { set: 1 });
    let before = world.candidates(0);
    let mut world = world.restarted(0);
    let after = world.candidates(0);
    assert_eq!(after.len(), 3);
    for ((no, was, label), (again, is, same)) in before.iter().zip(&after) {
        assert_eq!((no, label), (again, same));
        assert!((was - is).abs() < was * 0.01, "{was} {is}");
    }
    assert_eq!(world.create(create("others", 0, 0, 0.0)).no, 2);
    let fork = world.open(0, 2);
    assert_eq!(world.get_on(fork, b"k").unwrap(), [b't', 2]);
    // Said again in the words that collection uses, it is the same.
    let sets = &world.shard.store.tables.agent(AgentNo(0)).sets;
    let mut again = Sets::default();
    for head in said_again(sets) {
        again.apply(&head).unwrap();
    }
    let all = |sets: &Sets| {
        let open = sets.iter().map(|(no, open)| (no, open.set.clone()));
        open.collect::<Vec<_>>()
    };
    assert_eq!((all(&again), again.next()), (all(sets), sets.next()));
    assert_eq!(sets.roots().count(), 3);
    world.set_call(SetCall::Release { set: 2 });
    let sets = &world.shard.store.tables.agent(AgentNo(0)).sets;
    let mut again = Sets::default();
    for head in said_again(sets) {
        again.apply(&head).unwrap();
    }
    assert_eq!(again.next(), SetNo(3), "the last number is taken");
}

fn said_again(sets: &Sets) -> impl Iterator<Item = Head<'_>> {
    let open = sets.iter();
    let said = open.flat_map(|(no, open)| open.restate(AgentNo(0), no));
    said.chain(sets.taken(AgentNo(0)))
}

#[test]
fn what_candidates_need_outlives_collections_until_their_set_ends() {
    let mut world = superposed(0, create("tries", 0, 0, 0.0));
    // No branch and no tag reaches the candidates' states.
    let before: Vec<_> = (0..3)
        .map(|no| {
            let fork = world.open(0, no);
            world.get_on(fork, b"k").unwrap()
        })
        .collect();
    for round in 0..2 {
        world.collect();
        for (no, value) in (0..3).zip(&before) {
            let fork = world.open(0, no);
            assert_eq!(&world.get_on(fork, b"k").unwrap(), value, "{round}");
            world.good(Some(fork), &Call::Discard);
        }
        world = world.restarted(0);
    }
    let objects = world.shard.store.tables.objects.len();
    world.set_call(SetCall::Release { set: 0 });
    assert!(world.collect().objects > 0);
    assert!(world.shard.store.tables.objects.len() < objects);
    world.restarted(0);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut world = superposed(0, create("tries", 0, 0, 0.0));
    let none = Status::NoSuchSet;
    assert_eq!(world.status(collapse(9, Choice::Candidate(0))), none);
    assert_eq!(world.status(add(9, Revision::Head, 1.0, "")), none);
    assert_eq!(world.status(SetCall::Release { set: 9 }), none);
    let (set, after) = (9, None);
    assert_eq!(world.status(SetCall::Candidates { set, after }), none);
    let (set, candidate) = (0, 3);
    let call = SetCall::Open { set, candidate };
    assert_eq!(world.status(call), Status::NoSuchCandidate);
    let call = collapse(0, Choice::Candidate(3));
    assert_eq!(world.status(call), Status::NoSuchCandidate);
    for bad in [f64::NAN, f64::INFINITY, -1.0, WEIGHT_MAX * 2.0] {
        let call = add(0, Revision::Head, bad, "");
        assert_eq!(world.status(call), Status::BadWeight);
        assert_eq!(world.status(create("x", 0, 0, bad)), Status::BadWeight);
        let weight = bad.to_le_bytes();
        let (set, candidate) = (0, 0);
        let call = SetCall::Reweigh {
            set,
            candidate,
            weight,
        };
        assert_eq!(world.status(call), Status::BadWeight);
    }
    let unknown = Revision::Checkpoint([7; 32]);
    for from in [unknown, Revision::Empty, Revision::Tag("none")] {
        let call = add(0, from, 1.0, "");
        assert_eq!(world.status(call), Status::NoSuchRevision);
    }
    let long = "l".repeat(256);
    let call = add(0, Revision::Head, 1.0, &long);
    assert_eq!(world.status(call), Status::BadName);
    assert_eq!(world.status(create("tries", 0, 0, 0.0)), Status::NameTaken);
    assert_eq!(world.status(create("-x", 0, 0, 0.0)), Status::BadName);
    let fork = BranchNo(world.info(None, &FORK).no);
    let on_fork = world.refused(Some(fork), create("x", 0, 0, 0.0));
    assert_eq!(on_fork.0, Status::NoSuchBranch);
    world.create(create("empty", 0, 0, 0.0));
    let drawn = Choice::Drawn { seed: 1 };
    assert_eq!(world.status(collapse(1, drawn)), Status::NothingToDraw);
    world.set_call(add(1, Revision::Head, 0.0, ""));
    assert_eq!(world.status(collapse(1, drawn)), Status::NothingToDraw);
    // A collapse over changes, and into a branch that moved on.
    world.put(b"k", b"unsaved");
    world.put(b"l", b"unsaved");
    let choice = Choice::Candidate(1);
    let unsaved = world.refused(None, collapse(0, choice));
    assert_eq!(unsaved, (Status::Unsaved, 2));
    let moved = ObjectId::from_bytes(world.made(None).id);
    let call = Call::Superposition(collapse(0, choice));
    let (completion, _) = world.call_on(None, &call);
    assert_eq!(
        (completion.status, completion.id),
        (Status::StaleHead, moved)
    );
    let into = |into, expect| SetCall::Collapse {
        set: 0,
        choice,
        into,
        expect,
        force: true,
    };
    let nowhere = world.status(into(Some("nowhere"), None));
    assert_eq!(nowhere, Status::NoSuchBranch);
    assert_eq!(world.get(b"k").unwrap(), b"unsaved");
    assert_eq!(world.sets().len(), 2);
    world.put(b"k", b"forced away");
    world.set_call(into(None, Some(Some(*moved.as_bytes()))));
    assert_eq!(world.get(b"k").unwrap(), [b't', 1]);
    assert_eq!(world.get(b"l"), Err(Status::NotFound));
}

#[test]
fn sets_and_candidates_have_a_limit() {
    let mut world = superposed(0, create("tries", 0, 0, 0.0));
    for no in 3..CANDIDATES_MAX {
        world.set_call(add(0, Revision::Head, 1.0, &no.to_string()));
    }
    let full = world.refused(None, add(0, Revision::Head, 1.0, ""));
    assert_eq!(full, (Status::LimitReached, CANDIDATES_MAX as u64));
    // All of them, page by page.
    let (mut seen, mut after) = (0, None);
    loop {
        let call = Call::Superposition(SetCall::Candidates { set: 0, after });
        world.submit_call_with(None, &call, 1 << 10);
        let completion = world.wait();
        let answer = world.reply(&completion);
        for found in call::items::<CandidateInfo<'_>>(&answer) {
            let found = found.unwrap();
            assert_eq!(found.no, seen);
            (seen, after) = (seen + 1, Some(found.no));
        }
        if !completion.more {
            break;
        }
    }
    assert_eq!(seen as usize, CANDIDATES_MAX);
    for no in 1..SETS_MAX {
        world.create(create(&format!("set {no}"), 0, 0, 0.0));
    }
    let full = world.refused(None, create("more", 0, 0, 0.0));
    assert_eq!(full, (Status::LimitReached, SETS_MAX as u64));
    world.set_call(SetCall::Release { set: 5 });
    world.create(create("more", 0, 0, 0.0));
    let mut world = world.restarted(0);
    assert_eq!(world.sets().len(), SETS_MAX);
    assert_eq!(world.candidates(0).len().min(1), 1);
}

type Case = (&'static str, fn(&mut World) -> SetCall<'static>);

const CASES: [Case; 6] = [
    ("create", |_| create("more", 9, 9_000, 0.5)),
    ("add", |_| add(0, Revision::Head, 3.0, "head")),
    ("reweigh", |_| SetCall::Reweigh {
        set: 0,
        candidate: 1,
        weight: 0.25f64.to_le_bytes(),
    }),
    ("release", |_| SetCall::Release { set: 0 }),
    ("collapse", |_| collapse(0, Choice::Candidate(1))),
    ("collapse by force", |world| {
        world.put(b"k", b"unsaved");
        SetCall::Collapse {
            set: 0,
            choice: Choice::Drawn { seed: 3 },
            into: Some("main"),
            expect: None,
            force: true,
        }
    }),
];

/// What an agent sees of branches and sets; what the latter are worth does not change with time.
fn seen(world: &mut World) -> impl PartialEq + use<> {
    (world.state(), world.sets())
}

#[test]
fn a_crash_anywhere_in_a_call_leaves_what_was_before_or_after() {
    for (name, prepare) in CASES {
        let mut world = superposed(0, create("tries", 0, 0, 0.0));
        let call = prepare(&mut world);
        world.disk().kill();
        let disk = world.disk().clone();
        let before = seen(&mut World::over(disk.clone(), 0));
        world.set_call(call);
        world.disk().kill();
        let done = world.disk().clone();
        let after = seen(&mut World::over(done.clone(), 0));
        let segment = SegmentNo(*world.disk().segments().first().unwrap());
        let (mut old, mut new) = (disk.clone(), done.clone());
        let (old, new) = (old.bytes_mut(segment), new.bytes_mut(segment));
        let differs: Vec<usize> = (0..old.len()).filter(|&at| old[at] != new[at]).collect();
        let (first, end) = (differs[0] & !7, *differs.last().unwrap() + 1);
        let mut found = (0, 0);
        for cut_at in (first..end + 8).step_by(8) {
            let cut = cut_after(&disk, &done, segment, cut_at.min(new.len()));
            let mut world = World::over(cut, 0);
            let state = seen(&mut world);
            match (state == before, state == after) {
                (_, true) => found.1 += 1,
                (true, _) => found.0 += 1,
                _ => panic!("{name}: neither before nor after a cut at {cut_at} of {end}"),
            }
            world.put(b"goes", b"on");
            world.create(create("goes on", 0, 0, 0.0));
        }
        assert!(found.0 > 0 && found.1 > 0, "{name}: {found:?}");
    }
}

#[test]
fn a_call_whose_flush_fails_changes_nothing_and_can_be_tried_again() {
    for (name, prepare) in CASES {
        let mut world = superposed(0, create("tries", 0, 0, 0.0));
        let call = prepare(&mut world);
        let before = seen(&mut world);
        world.disk().faults.write = Some(FailedWrite {
            skip: 0,
            written: 40,
            error: DiskError::NoSpace,
        });
        assert_eq!(world.status(call), Status::NoSpace, "{name}");
        assert!(seen(&mut world) == before, "{name}");
        world.set_call(call);
        let after = seen(&mut world);
        assert!(after != before || name == "add", "{name}");
        let mut world = world.restarted(0);
        assert!(seen(&mut world) == after, "{name}");
    }
}

#[test]
fn a_set_that_nobody_observes_ends_when_its_time_has_passed() {
    let mut world = superposed(0, create("tries", 0, 10 * SECOND, 0.0));
    world.pass(9 * SECOND);
    assert_eq!(world.sets().len(), 1, "listing sets observes none");
    world.pass(900);
    world.candidates(0);
    world.pass(9_900);
    world.step();
    assert_eq!(world.sets().len(), 1, "listing its candidates did");
    let deadline = world.shard.sets.deadline().unwrap();
    assert!(deadline <= world.shard.now + 200_000_000, "it wakes for it");
    world.pass(200);
    let records = world.shard.store.log.last();
    world.step();
    assert!(
        world.shard.store.log.last() > records,
        "without being asked"
    );
    assert_eq!(world.shard.sets.deadline(), None);
    assert_eq!(world.status(SetCall::Release { set: 0 }), Status::NoSuchSet);
    let mut world = world.restarted(0);
    assert_eq!(world.sets(), []);
    assert_eq!(world.get(b"k").unwrap(), b"before");
}

#[test]
fn an_open_fork_on_a_candidate_observes_until_it_ends() {
    let mut world = superposed(0, create("tries", 0, 10 * SECOND, 0.0));
    let fork = world.open(0, 1);
    world.pass(60 * SECOND);
    world.step();
    assert_eq!(world.get_on(fork, b"k").unwrap(), [b't', 1]);
    assert_eq!(world.sets().len(), 1);
    world.good(Some(fork), &Call::Discard);
    world.pass(9 * SECOND);
    world.step();
    assert_eq!(world.sets().len(), 1);
    world.pass(SECOND);
    world.step();
    assert_eq!(world.sets(), []);
    // The other ways of a fork: kept, and gone with its lane.
    let mut world = superposed(0, create("tries", 0, 10 * SECOND, 0.0));
    let kept = world.open(0, 1);
    world.good(Some(kept), &Call::Keep { name: "kept" });
    world.pass(11 * SECOND);
    assert_eq!(world.sets(), []);
}

#[test]
fn a_set_that_nobody_observes_ends_when_it_weighs_too_little() {
    // 8 in all: 1 is left after three half-lives.
    let mut world = superposed(0, create("tries", 10 * SECOND, 0, 1.0));
    world.pass(29 * SECOND);
    let sets = world.sets();
    assert!(sets[0].2 > 1.0 && sets[0].2 < 1.2, "{sets:?}");
    world.pass(2 * SECOND);
    world.step();
    assert_eq!(world.sets(), []);
    // What is observed stays for a second, and what is given weight for longer.
    let mut world = superposed(0, create("tries", 10 * SECOND, 0, 1.0));
    world.pass(30 * SECOND - 200);
    world.candidates(0);
    world.pass(OBSERVED_MS - 50);
    world.step();
    assert!(world.sets()[0].2 < 1.0);
    world.set_call(SetCall::Reweigh {
        set: 0,
        candidate: 0,
        weight: 3.0f64.to_le_bytes(),
    });
    world.pass(10 * SECOND);
    world.step();
    assert_eq!(world.sets().len(), 1);
    // Less weight brings the end nearer.
    for candidate in 0..3 {
        world.set_call(SetCall::Reweigh {
            set: 0,
            candidate,
            weight: 0f64.to_le_bytes(),
        });
    }
    assert_eq!(world.sets().len(), 1);
    world.pass(OBSERVED_MS);
    world.step();
    assert_eq!(world.sets(), []);
}

#[test]
fn a_clock_that_was_set_back_revives_nothing() {
    let mut world = World::over(crate::segment::memory::MemoryDisk::new(), 0);
    world.shard.options.wall_ms = 1_700_000_000_000;
    world.shard.watch_sets();
    world.put(b"k", b"before");
    world.good(None, &CHECKPOINT);
    world.create(create("tries", 10 * SECOND, 60 * SECOND, 1.0));
    world.tried(0, b"a", 8.0, "");
    world.create(create("other", 10 * SECOND, 0, 0.0));
    world.tried(1, b"b", 8.0, "");
    world.pass(20 * SECOND);
    world.tried(1, b"c", 1.0, "");
    // The next start is in 1970: time goes on from what the records say.
    let mut world = world.restarted(0);
    let sets = world.sets();
    assert!(sets[0].2 > 1.9 && sets[0].2 < 2.01, "{sets:?}");
    assert!(sets[1].2 > 2.9 && sets[1].2 < 3.01, "{sets:?}");
    world.pass(11 * SECOND);
    world.step();
    assert_eq!(world.sets().len(), 1, "it ends when it would have");
    let mut world = world.restarted(0);
    assert_eq!(world.sets().len(), 1);
    // Set forward, it ends sets early, and that is all.
    world.shard.options.wall_ms = 1_800_000_000_000;
    world.create(create("young", 0, 60 * SECOND, 0.0));
    world.shard.watch_sets();
    world.step();
    let left: Vec<String> = world.sets().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(left, ["other"]);
}

#[test]
fn what_was_observed_lately_is_so_after_a_restart() {
    let mut world = superposed(0, create("tries", 0, 80 * SECOND, 0.0));
    for _ in 0..20 {
        world.pass(9 * SECOND);
        world.candidates(0);
        world.step();
    }
    assert!(world.shard.store.is_dirty());
    world.put(b"goes", b"out with it");
    let mut world = world.restarted(0);
    world.pass(60 * SECOND);
    world.step();
    assert_eq!(world.sets().len(), 1);
}

#[test]
fn a_set_whose_end_finds_no_room_has_ended_all_the_same() {
    let mut world = superposed(0, create("tries", 0, 10 * SECOND, 0.0));
    world.pass(10 * SECOND);
    world.disk().faults.write = Some(FailedWrite {
        skip: 0,
        written: 40,
        error: DiskError::NoSpace,
    });
    world.step();
    assert!(world.disk().faults.write.is_none(), "it was tried");
    assert_eq!(world.status(SetCall::Release { set: 0 }), Status::NoSuchSet);
    assert_eq!(world.sets(), []);
    let held = |world: &World| world.shard.store.tables.agent(AgentNo(0)).sets.len();
    assert_eq!(held(&world), 1);
    world.pass(SECOND);
    world.step();
    assert_eq!(held(&world), 0, "it is tried again");
}

/// Objects whose bytes are in L2, and whether in a group.
fn in_l2(world: &World) -> Vec<(ObjectId, bool)> {
    let store = &world.shard.store;
    let objects = store.tables.objects.all();
    objects
        .filter(|(_, object)| object.cached != NOT_CACHED)
        .map(|(_, object)| {
            let entry = crate::cache::EntryNo(object.cached);
            (object.id, store.l2.is_grouped(entry))
        })
        .collect()
}

fn grouped(world: &World) -> usize {
    in_l2(world).iter().filter(|(_, grouped)| *grouped).count()
}

/// 2,000 bytes that no other number has.
fn unique(no: u32) -> Vec<u8> {
    no.to_le_bytes().repeat(500)
}

/// `heads` keys on the branch, which were read, and sets of one candidate each, with `keys` values of 2,000 bytes that only it has.
fn flooded(l2_bytes: usize, heads: u32, sets: u32, keys: u32) -> World {
    let mut world = World::new(l2_bytes);
    for no in 0..heads {
        world.put(format!("h/{no:02}").as_bytes(), &unique(no));
    }
    world.good(None, &CHECKPOINT);
    for set in 0..sets {
        world.create(create(&format!("set {set}"), 0, 0, 0.0));
        let fork = BranchNo(world.info(None, &FORK).no);
        for no in 0..keys {
            let key = format!("c/{no:02}");
            world.put_on(fork, key.as_bytes(), &unique(10_000 + set * 100 + no));
        }
        let from = Revision::Checkpoint(world.made(Some(fork)).id);
        world.set_call(add(set, from, 1.0, ""));
        world.good(Some(fork), &Call::Discard);
    }
    let mut world = world.restarted(l2_bytes);
    for no in 0..heads {
        assert!(world.get(format!("h/{no:02}").as_bytes()).is_ok());
    }
    world
}

fn read_candidate(world: &mut World, set: u32, keys: u32) -> BranchNo {
    let fork = world.open(set, 0);
    for no in 0..keys {
        let key = format!("c/{no:02}");
        let wanted = unique(10_000 + set * 100 + no);
        assert_eq!(world.get_on(fork, key.as_bytes()).unwrap(), wanted);
    }
    fork
}

#[test]
fn a_flood_of_candidates_evicts_nothing_of_a_head_and_leaves_by_whole_groups() {
    const KEYS: u32 = 8;
    // An eighth of it holds 31 KiB: one group of eight values and a half.
    let mut world = flooded(250_000, 150, 12, KEYS);
    let heads = in_l2(&world);
    assert!(heads.iter().all(|(_, grouped)| !grouped));
    let l2 = &world.shard.store.l2;
    assert!(l2.bytes_used() > l2.bytes_capacity() - 3_000, "it is full");
    for round in 0..2 {
        for set in 0..12 {
            let fork = read_candidate(&mut world, set, KEYS);
            let now = in_l2(&world);
            assert!(
                heads.iter().all(|entry| now.contains(entry)),
                "round {round}"
            );
            let l2 = &world.shard.store.l2;
            assert!(l2.group_bytes() <= l2.group_bytes_capacity());
            let whole = (0..12).filter(|&no| l2.bytes_of_group(GroupNo(no)) > 0);
            assert_eq!(whole.count(), 1, "the one before went as a whole");
            assert_eq!(grouped(&world), KEYS as usize);
            world.good(Some(fork), &Call::Discard);
        }
    }
    // Nodes too have a share of their own, and go with the values.
    assert!(!world.shard.store.nodes.groups_overflow());
    let groups = (0..12).filter(|&no| world.shard.store.nodes.has_group(GroupNo(no)));
    assert!(groups.count() <= 2);
}

#[test]
fn the_group_of_a_set_that_ends_leaves_at_once() {
    for collapse_it in [false, true] {
        let mut world = flooded(1 << 20, 20, 2, 8);
        let fork = read_candidate(&mut world, 0, 8);
        let other = read_candidate(&mut world, 1, 8);
        assert_eq!(grouped(&world), 16);
        match collapse_it {
            true => _ = world.set_call(collapse(0, Choice::Candidate(0))),
            false => _ = world.set_call(SetCall::Release { set: 0 }),
        }
        assert_eq!(grouped(&world), 8);
        // What is read there from now on is as any fork's.
        let key = &b"c/03"[..];
        assert_eq!(world.get_on(fork, key).unwrap(), unique(10_003));
        assert_eq!(grouped(&world), 8);
        assert_eq!(world.get_on(other, key).unwrap(), unique(10_103));
        assert_eq!(world.get(key).is_ok(), collapse_it);
    }
}

#[test]
fn what_a_head_uses_is_no_longer_the_groups() {
    let mut world = flooded(1 << 20, 20, 1, 8);
    let fork = read_candidate(&mut world, 0, 8);
    world.put(b"mine", &unique(10_003));
    assert_eq!(world.get(b"mine").unwrap(), unique(10_003));
    assert_eq!(grouped(&world), 7);
    world.set_call(SetCall::Release { set: 0 });
    assert_eq!(grouped(&world), 0);
    let id = ObjectKind::Blob.id_of(&unique(10_003));
    assert!(in_l2(&world).contains(&(id, false)));
    // And what a head has already is never a group's.
    assert_eq!(world.get_on(fork, b"h/05").unwrap(), unique(5));
    assert_eq!(grouped(&world), 0);
}

#[test]
fn a_set_larger_than_the_share_begins_anew() {
    let mut world = flooded(250_000, 150, 1, 40);
    let heads = in_l2(&world);
    let fork = read_candidate(&mut world, 0, 40);
    let now = in_l2(&world);
    assert!(heads.iter().all(|entry| now.contains(entry)));
    assert!((1..20).contains(&grouped(&world)));
    world.chill();
    // From the device they come into the group as well.
    for no in 0..40 {
        let wanted = unique(10_000 + no);
        let read = world.get_on(fork, format!("c/{no:02}").as_bytes());
        assert_eq!(read.unwrap(), wanted);
    }
    let now = in_l2(&world);
    assert!(heads.iter().all(|entry| now.contains(entry)));
    assert!((1..20).contains(&grouped(&world)), "{}", grouped(&world));
}
