//! Superpositions through lanes: readers across a collapse, races for one, restarts and kills, draws.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{Served, attach, value_of, wait_for};
use helios::Runtime;
use helios::client::{
    Choice, ClientError, CollapseOptions, Lane, NewCheckpoint, NewSuperposition, Revision, Session,
};
use helios::config::{Choice as Setting, Config, Io};
use helios::id::{ObjectId, SetNo};

mod common;

fn config(dir: &std::path::Path) -> Config {
    Config {
        shards: Setting::Fixed(1),
        segment_bytes: 4 << 20,
        memory_max: 64 << 20,
        io: Io::Threads,
        ..Config::at(dir)
    }
}

fn with_runtime(test: impl FnOnce(&Session)) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    test(runtime.session());
    runtime.shutdown().unwrap();
}

fn get(lane: &mut Lane, key: &[u8]) -> Option<Vec<u8>> {
    value_of(lane, key).unwrap()
}

fn checkpoint(lane: &mut Lane) -> ObjectId {
    lane.checkpoint(&NewCheckpoint::default()).unwrap().id
}

fn named(name: &str) -> NewSuperposition<'_> {
    NewSuperposition {
        name,
        ..NewSuperposition::default()
    }
}

/// Adds a candidate in which every key of `keys` is `value`.
fn try_out(lane: &mut Lane, set: SetNo, keys: u8, value: &[u8], weight: f64) -> ObjectId {
    let fork = lane.fork(Revision::Head).unwrap().no;
    for key in 0..keys {
        lane.on(fork).put(&[b'k', key], value).unwrap();
    }
    let made = checkpoint(&mut lane.on(fork));
    let mut on = lane.on(fork);
    on.add_candidate(set, Revision::Head, weight, "").unwrap();
    drop(on);
    lane.discard(fork).unwrap();
    made
}

#[test]
fn best_of_n_from_create_to_collapse() {
    with_runtime(|session| {
        let mut lane = attach(session, "planner");
        lane.put(b"k\0", b"before").unwrap();
        let head = checkpoint(&mut lane);
        let made = lane
            .superpose(&NewSuperposition {
                name: "tries",
                half_life: Some(Duration::from_secs(3600)),
                ttl: Some(Duration::from_secs(7200)),
                bound: 0.001,
            })
            .unwrap();
        assert_eq!((made.candidates, made.origin), (0, Some(head)));
        assert_eq!(made.half_life, Some(Duration::from_secs(3600)));
        for (no, weight) in [(0, 1.0), (1, 9.0)] {
            try_out(&mut lane, made.no, 2, &[no], weight);
        }
        let listed = lane.candidates(made.no, None).unwrap();
        assert_eq!((listed.items.len(), listed.more), (2, false));
        assert!((listed.items[1].weight - 9.0).abs() < 0.1);
        let fork = lane.open_candidate(made.no, 1).unwrap().no;
        assert_eq!(get(&mut lane.on(fork), b"k\0").unwrap(), [1]);
        assert_eq!(get(&mut lane, b"k\0").unwrap(), b"before");
        // What was written in a candidate is a candidate of its own.
        lane.on(fork).put(b"k\0", b"better").unwrap();
        let better = checkpoint(&mut lane.on(fork));
        let added = lane
            .on(fork)
            .add_candidate(made.no, Revision::Head, 20.0, "better")
            .unwrap();
        assert_eq!((added.no, added.head), (2, better));
        let again = lane.open_candidate(made.no, 1).unwrap().no;
        assert_eq!(get(&mut lane.on(again), b"k\0").unwrap(), [1]);
        assert_eq!(lane.reweigh(made.no, 0, 0.0).unwrap().weight, 0.0);
        let taken = lane.superpose(&named("tries"));
        assert!(matches!(taken, Err(ClientError::NameTaken)), "{taken:?}");
        for bad in [f64::NAN, -1.0, f64::INFINITY] {
            let refused = lane.add_candidate(made.no, Revision::Head, bad, "");
            assert!(matches!(refused, Err(ClientError::BadWeight(_))));
        }
        let options = CollapseOptions::default();
        let collapsed = lane
            .collapse(made.no, Choice::Candidate(2), &options)
            .unwrap();
        assert_eq!((collapsed.candidate, collapsed.head), (2, better));
        assert_eq!(get(&mut lane, b"k\0").unwrap(), b"better");
        assert_eq!(lane.describe().unwrap().head, Some(better));
        assert!(lane.superpositions(None).unwrap().items.is_empty());
        let gone = lane.candidates(made.no, None);
        assert!(matches!(gone, Err(ClientError::NoSuchSuperposition)));
        // Its history is that of the candidate.
        let log = lane.log(Revision::Head, 10).unwrap();
        assert_eq!(log.entries.len(), 3);
        assert_eq!(log.entries[2].id, head);
    });
}

#[test]
fn what_a_candidate_deleted_is_gone_for_every_lane_after_the_collapse() {
    with_runtime(|session| {
        let mut lane = attach(session, "planner");
        let mut other = attach(session, "planner");
        for key in [&b"stays"[..], b"goes", b"changes"] {
            lane.put(key, b"before").unwrap();
        }
        let before = checkpoint(&mut lane);
        let set = lane.superpose(&named("tries")).unwrap().no;
        let fork = lane.fork(Revision::Head).unwrap().no;
        lane.on(fork).delete(b"goes").unwrap();
        lane.on(fork).put(b"changes", b"after").unwrap();
        lane.on(fork).put(b"comes", b"after").unwrap();
        checkpoint(&mut lane.on(fork));
        let mut on = lane.on(fork);
        on.add_candidate(set, Revision::Head, 1.0, "").unwrap();
        drop(on);
        // Both have read it all, so that their window holds it.
        for _ in 0..3 {
            for lane in [&mut lane, &mut other] {
                assert_eq!(get(lane, b"goes").unwrap(), b"before");
                assert_eq!(get(lane, b"changes").unwrap(), b"before");
                assert_eq!(get(lane, b"comes"), None);
            }
        }
        let aside = lane.branch("aside", Revision::Head).unwrap().no;
        let options = CollapseOptions::default();
        lane.collapse(set, Choice::Candidate(0), &options).unwrap();
        for lane in [&mut lane, &mut other] {
            assert_eq!(get(lane, b"goes"), None);
            assert_eq!(get(lane, b"changes").unwrap(), b"after");
            assert_eq!(get(lane, b"comes").unwrap(), b"after");
            assert_eq!(get(lane, b"stays").unwrap(), b"before");
            let keys = lane.scan(b"", b"", 0).unwrap().keys.into_iter();
            let keys: Vec<_> = keys.map(|found| found.key).collect();
            assert_eq!(keys, [&b"changes"[..], b"comes", b"stays"]);
        }
        assert_eq!(get(&mut lane.on(aside), b"goes").unwrap(), b"before");
        // Back to where it was, by another collapse into the other branch's head.
        let set = other.superpose(&named("tries")).unwrap().no;
        let from = Revision::Checkpoint(*before.as_bytes());
        other.add_candidate(set, from, 1.0, "back").unwrap();
        let into = CollapseOptions {
            into: Some("aside"),
            ..CollapseOptions::default()
        };
        let stale = other.collapse(set, Choice::Candidate(0), &into);
        assert!(
            matches!(stale, Err(ClientError::StaleHead { current }) if current == Some(before)),
            "what it expects is the head of the branch that it was made for"
        );
        other.collapse(set, Choice::Candidate(0), &options).unwrap();
        assert_eq!(get(&mut lane, b"goes").unwrap(), b"before");
    });
}

#[test]
fn no_lane_reads_the_state_before_after_a_collapse_was_answered() {
    const KEYS: u8 = 8;
    const READERS: usize = 3;
    with_runtime(|session| {
        let mut lane = attach(session, "planner");
        for key in 0..KEYS {
            lane.put(&[b'k', key], &0u64.to_le_bytes()).unwrap();
        }
        checkpoint(&mut lane);
        // Every value says in which round it became the branch's: none may be older than the last answer.
        let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let reads = AtomicU64::new(0);
        thread::scope(|scope| {
            for reader in 0..READERS {
                let (answered, stop, reads) = (&answered, &stop, &reads);
                scope.spawn(move || {
                    let mut lane = attach(session, "planner");
                    let mut key = reader as u8;
                    while !stop.load(Ordering::Acquire) {
                        key = (key + 1) % KEYS;
                        let least = answered.load(Ordering::Acquire);
                        let value = get(&mut lane, &[b'k', key]).expect("it is always there");
                        let read = u64::from_le_bytes(value.try_into().unwrap());
                        assert!(read >= least, "{read} after the answer to {least}");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for round in 1..=200u64 {
                let set = lane.superpose(&named("round")).unwrap().no;
                try_out(&mut lane, set, KEYS, &u64::MAX.to_le_bytes(), 0.0);
                try_out(&mut lane, set, KEYS, &round.to_le_bytes(), 1.0);
                let drawn = Choice::Drawn { seed: round };
                let collapsed = lane.collapse(set, drawn, &CollapseOptions::default());
                assert_eq!(collapsed.unwrap().candidate, 1);
                answered.store(round, Ordering::Release);
                for key in 0..KEYS {
                    let value = get(&mut lane, &[b'k', key]).unwrap();
                    assert_eq!(value, round.to_le_bytes());
                }
            }
            // Every reader has a part in it, however the threads were run.
            wait_for("reads", || {
                (reads.load(Ordering::Relaxed) >= 100).then_some(())
            });
            stop.store(true, Ordering::Release);
        });
    });
}

#[test]
fn of_those_who_collapse_one_superposition_exactly_one_does() {
    with_runtime(|session| {
        let mut lane = attach(session, "planner");
        lane.put(b"k\0", b"before").unwrap();
        checkpoint(&mut lane);
        for round in 0..50u64 {
            let set = lane.superpose(&named("race")).unwrap().no;
            let heads = [0, 1, 2].map(|no| try_out(&mut lane, set, 1, &[no, round as u8], 1.0));
            let won = AtomicU64::new(0);
            thread::scope(|scope| {
                for no in 0..3u32 {
                    let won = &won;
                    scope.spawn(move || {
                        let mut lane = attach(session, "planner");
                        let options = CollapseOptions::default();
                        match lane.collapse(set, Choice::Candidate(no), &options) {
                            Ok(collapsed) => {
                                assert_eq!(collapsed.candidate, no);
                                won.fetch_add(u64::from(no) + 100, Ordering::Relaxed);
                            }
                            Err(ClientError::NoSuchSuperposition) => {}
                            Err(other) => panic!("{other}"),
                        }
                    });
                }
            });
            let winner = won.load(Ordering::Relaxed).checked_sub(100).unwrap() as usize;
            assert!(winner < 3, "one, and only one");
            assert_eq!(lane.describe().unwrap().head, Some(heads[winner]));
            let value = get(&mut lane, b"k\0").unwrap();
            assert_eq!(value, [winner as u8, round as u8]);
        }
    });
}

#[test]
fn draws_with_a_seed_are_the_same_in_every_run_and_follow_the_weights() {
    let draw_all = || {
        let mut counts = [0u64; 3];
        let mut drawn = Vec::new();
        with_runtime(|session| {
            let mut lane = attach(session, "planner");
            for seed in 0..400 {
                let set = lane.superpose(&named("draw")).unwrap().no;
                lane.put(b"k", &[1]).unwrap();
                let head = checkpoint(&mut lane);
                for weight in [6.0, 3.0, 1.0] {
                    lane.add_candidate(set, Revision::Head, weight, "").unwrap();
                }
                let options = CollapseOptions {
                    expect: Some(Some(head)),
                    ..CollapseOptions::default()
                };
                let collapsed = lane.collapse(set, Choice::Drawn { seed }, &options);
                let candidate = collapsed.unwrap().candidate;
                counts[candidate as usize] += 1;
                drawn.push(candidate);
            }
        });
        (counts, drawn)
    };
    let (counts, drawn) = draw_all();
    let deviation = |no: usize, wanted: f64| (counts[no] as f64 - wanted).powi(2) / wanted;
    let square = deviation(0, 240.0) + deviation(1, 120.0) + deviation(2, 40.0);
    // Two degrees of freedom: above 13.8 once in a thousand.
    assert!(square < 13.8, "{square}: {counts:?}");
    assert_eq!(draw_all().1, drawn);
}

#[test]
fn a_kill_loses_no_superposition_and_brings_none_back() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), "");
    let session = served.session();
    let mut lane = attach(&session, "planner");
    lane.put(b"k\0", b"before").unwrap();
    checkpoint(&mut lane);
    let open = lane.superpose(&named("open")).unwrap().no;
    let ended = lane.superpose(&named("ended")).unwrap().no;
    let head = try_out(&mut lane, open, 3, b"first", 1.0);
    try_out(&mut lane, open, 3, b"second", 2.5);
    lane.release_superposition(ended).unwrap();
    served.kill();
    let served = Served::start(dir.path(), "");
    let session = served.session();
    let mut lane = attach(&session, "planner");
    let listed = lane.superpositions(None).unwrap().items;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].no, &*listed[0].name), (open, "open"));
    assert_eq!((listed[0].candidates, listed[0].total), (2, 3.5));
    let fork = lane.open_candidate(open, 1).unwrap().no;
    assert_eq!(get(&mut lane.on(fork), b"k\x02").unwrap(), b"second");
    let options = CollapseOptions::default();
    lane.collapse(open, Choice::Candidate(0), &options).unwrap();
    served.kill();
    let served = Served::start(dir.path(), "");
    let session = served.session();
    let mut lane = attach(&session, "planner");
    assert!(lane.superpositions(None).unwrap().items.is_empty());
    assert_eq!(lane.describe().unwrap().head, Some(head));
    assert_eq!(get(&mut lane, b"k\x02").unwrap(), b"first");
    served.stop();
}

#[test]
fn a_superposition_is_released_by_a_runtime_that_nobody_asks() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let mut lane = runtime.agent("planner").unwrap();
    lane.put(b"k", b"v").unwrap();
    checkpoint(&mut lane);
    let short = NewSuperposition {
        name: "short",
        ttl: Some(Duration::from_millis(300)),
        ..NewSuperposition::default()
    };
    let written = || {
        let log = std::fs::read(dir.path().join("shard-000/00000001.seg")).unwrap();
        log.iter().rposition(|&byte| byte != 0).unwrap() / 8 * 8 + 8
    };
    let before = written();
    lane.superpose(&short).unwrap();
    // Its end is a record behind the one of its beginning, for which the shard wakes by itself.
    const BEGINNING_BYTES: usize = 112;
    wait_for("the record of its end", || {
        (written() > before + BEGINNING_BYTES).then_some(())
    });
    assert!(lane.superpositions(None).unwrap().items.is_empty());
    drop(lane);
    runtime.shutdown().unwrap();
}

#[test]
fn the_superpositions_of_one_agent_are_not_anothers() {
    with_runtime(|session| {
        let mut one = attach(session, "one");
        let mut other = attach(session, "other");
        one.put(b"k", b"v").unwrap();
        let head = checkpoint(&mut one);
        let set = one.superpose(&named("mine")).unwrap().no;
        one.add_candidate(set, Revision::Head, 1.0, "").unwrap();
        assert!(other.superpositions(None).unwrap().items.is_empty());
        let options = CollapseOptions::default();
        let refused = other.collapse(set, Choice::Candidate(0), &options);
        assert!(matches!(refused, Err(ClientError::NoSuchSuperposition)));
        let theirs = other.superpose(&named("mine")).unwrap().no;
        let foreign = Revision::Checkpoint(*head.as_bytes());
        let refused = other.add_candidate(theirs, foreign, 1.0, "");
        assert!(matches!(refused, Err(ClientError::NoSuchRevision)));
        assert_eq!(one.superpositions(None).unwrap().items.len(), 1);
    });
}
