//! What do superpositions cost: making one, a candidate, reading in one, collapsing it?
//!
//! One agent over its lane, a state of 1,000 keys of 1 KiB, candidates that differ from it in ten, with a half-life, a time to live and a bound. Beside the
//! collapses: bare `pwrite` of 152 bytes, which is what one appends.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use helios::client::{Choice, CollapseOptions, Lane, NewCheckpoint, NewSuperposition, Revision};
use helios::id::{ObjectId, SetNo};

mod common;

const VALUE_BYTES: usize = 1024;
const RECORD_BYTES: usize = 152;
const KEYS: u64 = 1_000;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "superposition",
        "superpositions of an agent of 1,000 keys: made, added to, read in, collapsed",
    ) else {
        return;
    };
    let served = common::Served::start(&bench, "memory_max = \"1GiB\"");
    let (_file_dir, file) = common::preallocated_file(64 << 20);
    let rounds = bench.pick(9, 2);
    let many = bench.pick(300, 10);
    let bare = common::rounds(rounds, |histogram| {
        for no in 0..many {
            let at = no * RECORD_BYTES as u64 % (60 << 20);
            let (done, ns) = common::timed(|| file.write_all_at(&[7; RECORD_BYTES], at));
            done.expect("pwrite");
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("bare pwrite of 152 bytes", &bare);
    let mut lane = served.lane("searcher");
    let tried = fill_up(&mut lane);
    for candidates in [2, 8, bench.pick(256, 16)] {
        let tries: Vec<ObjectId> = tried.iter().copied().cycle().take(candidates).collect();
        let label = |what: &str| format!("{what}, {candidates} candidates");
        for drawn in [false, true] {
            let what = if drawn { "collapse, drawn" } else { "collapse" };
            let collapses = common::rounds(rounds, |histogram| {
                for no in 0..many {
                    let set = superpose(&mut lane, &tries);
                    let choice = match drawn {
                        false => Choice::Candidate(no as u32 % candidates as u32),
                        true => Choice::Drawn { seed: no },
                    };
                    let options = CollapseOptions::default();
                    let (done, ns) = common::timed(|| lane.collapse(set, choice, &options));
                    verify(&mut lane, done.expect("collapse").head, &tried);
                    histogram.saturating_record(ns);
                }
            });
            bench.latencies(label(what), &collapses);
            bench.ratio(&collapses, &bare, "pwrite");
        }
    }
    others(&mut bench, &mut lane, rounds, many, &tried);
    drop(lane);
    served.stop();
    bench.finish();
}

fn put(lane: &mut Lane, key: u64, seed: u64) {
    let mut value = [0; VALUE_BYTES];
    common::fill(&mut value, seed, key);
    lane.put(&common::key(key), &value).expect("put");
}

/// Checkpoints that differ in ten keys: of try `n`, key 0 is filled with seed `n`.
fn fill_up(lane: &mut Lane) -> Vec<ObjectId> {
    for key in 0..KEYS {
        put(lane, key, 100);
    }
    let new = NewCheckpoint::default();
    lane.checkpoint(&new).expect("checkpoint");
    let mut tried = Vec::new();
    for seed in 0..8 {
        let fork = lane.fork(Revision::Head).expect("fork").no;
        for no in 0..10 {
            put(&mut lane.on(fork), no * 97, seed);
        }
        tried.push(lane.on(fork).checkpoint(&new).expect("checkpoint").id);
        lane.discard(fork).expect("discard");
    }
    tried
}

fn superpose(lane: &mut Lane, tries: &[ObjectId]) -> SetNo {
    let new = NewSuperposition {
        name: "tries",
        half_life: Some(Duration::from_secs(60)),
        ttl: Some(Duration::from_secs(600)),
        bound: 0.5,
    };
    let set = lane.superpose(&new).expect("superpose").no;
    for (no, id) in tries.iter().enumerate() {
        let from = Revision::Checkpoint(*id.as_bytes());
        let weight = 1.0 + no as f64;
        lane.add_candidate(set, from, weight, "").expect("add");
    }
    set
}

/// What the branch reads now is the candidate's.
fn verify(lane: &mut Lane, head: ObjectId, tried: &[ObjectId]) {
    let seed = tried
        .iter()
        .position(|&id| id == head)
        .expect("one of them");
    let (mut wanted, mut found) = ([0; VALUE_BYTES], Vec::new());
    common::fill(&mut wanted, seed as u64, 0);
    lane.get(&common::key(0), &mut found).expect("get");
    assert_eq!(found, wanted);
}

fn others(
    bench: &mut common::Bench,
    lane: &mut Lane,
    rounds: usize,
    many: u64,
    tried: &[ObjectId],
) {
    let new = NewSuperposition {
        name: "tries",
        ..NewSuperposition::default()
    };
    let made = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            let (made, ns) = common::timed(|| lane.superpose(&new));
            histogram.saturating_record(ns);
            let no = made.expect("superpose").no;
            lane.release_superposition(no).expect("release");
        }
    });
    bench.latencies("superpose", &made);
    let mut set = superpose(lane, &tried[..1]);
    let (mut no, from) = (1, Revision::Checkpoint(*tried[1].as_bytes()));
    let added = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            if no == 200 {
                lane.release_superposition(set).expect("release");
                (set, no) = (superpose(lane, &tried[..1]), 1);
            }
            let (added, ns) = common::timed(|| lane.add_candidate(set, from, 1.0, "try"));
            no = added.expect("add").no + 1;
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("add a candidate", &added);
    let mut value = Vec::new();
    let opened = common::rounds(rounds, |histogram| {
        for no in 0..many {
            let ((), ns) = common::timed(|| {
                let fork = lane.open_candidate(set, 0).expect("open").no;
                let key = common::key(no % KEYS);
                lane.on(fork).get(&key, &mut value).expect("get");
                lane.discard(fork).expect("discard");
            });
            bench.check(&value);
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("open a candidate, read 1 KiB, discard", &opened);
    lane.release_superposition(set).expect("release");
}
