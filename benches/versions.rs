//! What do versions cost: checkpoint, branch, restore, fork, merge, diff?
//!
//! One agent over its lane, values of 1 KiB. A row says how many keys the state has and how many of them
//! changed since the last checkpoint; the writes before it are not timed. Beside the checkpoints: bare
//! `pwrite` of 6 KiB (what one of 1,000 keys appends) and, for the power-safe ones, `pwrite` and `fdatasync`.
//! Merge and diff are of two branches that differ in ten keys each. What a restore or a branch costs *at the shard*
//! is what it takes longer than `exists`, which asks the shard as well and does next to nothing there.

use std::fs::File;
use std::os::unix::fs::FileExt;

use hdrhistogram::Histogram;
use helios::client::{Lane, Merged, NewCheckpoint, Policy, Revision};
use helios::config::Durability;
use helios::id::ObjectId;

mod common;

const VALUE_BYTES: usize = 1024;
const BARE_BYTES: usize = 6 << 10;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "versions",
        "checkpoints, branches, restores, forks, merges and diffs",
    ) else {
        return;
    };
    let served = common::Served::start(&bench, "memory_max = \"1GiB\"");
    let (_file_dir, file) = common::preallocated_file(64 << 20);
    let rounds = bench.pick(9, 2);
    let many = bench.pick(500, 20);
    let few = bench.pick(100, 4);
    let bare = common::rounds(rounds, |histogram| {
        bare_writes(&file, false, many, histogram)
    });
    bench.latencies("bare pwrite of 6 KiB", &bare);
    let synced = common::rounds(rounds, |histogram| bare_writes(&file, true, few, histogram));
    bench.latencies("bare pwrite of 6 KiB and fdatasync", &synced);
    let mut next = 0;
    for keys in [1, 10, 100, 1_000, bench.pick(100_000, 2_000)] {
        let mut lane = served.lane(&format!("keeper-{keys}"));
        fill_up(&mut lane, keys, &mut next);
        for changed in [1, 10].into_iter().filter(|&changed| changed <= keys) {
            let label = |what: &str| format!("checkpoint, {changed} of {keys} keys{what}");
            let process = common::rounds(rounds, |histogram| {
                for _ in 0..many {
                    let ns = checkpoint(&mut lane, keys, changed, Durability::Process, &mut next);
                    histogram.saturating_record(ns);
                }
            });
            bench.latencies(label(", process"), &process);
            bench.ratio(&process, &bare, "pwrite");
            let power = common::rounds(rounds, |histogram| {
                for _ in 0..few {
                    let ns = checkpoint(&mut lane, keys, changed, Durability::Power, &mut next);
                    histogram.saturating_record(ns);
                }
            });
            bench.latencies(label(", power"), &power);
            bench.ratio(&power, &synced, "fdatasync");
        }
    }
    let keys = bench.pick(100_000, 2_000);
    let mut lane = served.lane(&format!("keeper-{keys}"));
    let states = two_states(&mut lane, &mut next);
    let label = format!("diff of {keys} keys, 10 differ");
    diffs(&mut bench, &mut lane, &label, states, rounds, many);
    let mut lane = served.lane("keeper-1000");
    moves(&mut bench, &mut lane, rounds, many, &mut next);
    bench.check(&next.to_le_bytes());
    drop(lane);
    served.stop();
    bench.finish();
}

fn put(lane: &mut Lane, key: u64, next: &mut u64) {
    let mut value = [0; VALUE_BYTES];
    common::fill(&mut value, 7, *next);
    *next += 1;
    lane.put(&common::key(key), &value).expect("put");
}

fn fill_up(lane: &mut Lane, keys: u64, next: &mut u64) {
    for key in 0..keys {
        put(lane, key, next);
    }
    let new = NewCheckpoint::default();
    assert_eq!(lane.checkpoint(&new).expect("checkpoint").keys, keys);
}

fn checkpoint(
    lane: &mut Lane,
    keys: u64,
    changed: u64,
    durability: Durability,
    next: &mut u64,
) -> u64 {
    for no in 0..changed {
        put(lane, (*next * 7919 + no) % keys, next);
    }
    let new = NewCheckpoint {
        durability: Some(durability),
        ..NewCheckpoint::default()
    };
    let (made, ns) = common::timed(|| lane.checkpoint(&new));
    let made = made.expect("checkpoint");
    assert_eq!((made.keys, made.durability), (keys, durability));
    ns
}

/// Everything but checkpoints, on a state of 1,000 keys.
fn moves(bench: &mut common::Bench, lane: &mut Lane, rounds: usize, many: u64, next: &mut u64) {
    let new = NewCheckpoint::default();
    let (one, other) = two_states(lane, next);
    let hops = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            let (there, ns) = common::timed(|| lane.exists(b"not there"));
            assert!(there.expect("exists").is_none());
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("exists: the lane's round trip", &hops);
    let restores = common::rounds(rounds, |histogram| {
        for no in 0..many {
            let to = if no % 2 == 0 { one } else { other };
            let (done, ns) = common::timed(|| lane.restore(revision(to), false));
            done.expect("restore");
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("restore, 1,000 keys", &restores);
    at_shard(bench, &restores, &hops);
    let branches = common::rounds(rounds, |histogram| {
        for no in 0..many {
            let name = format!("branch-{no}");
            let (made, ns) = common::timed(|| lane.branch(&name, Revision::Head));
            made.expect("branch");
            histogram.saturating_record(ns);
            lane.delete_branch(&name, false).expect("delete");
        }
    });
    bench.latencies("branch, 1,000 keys", &branches);
    at_shard(bench, &branches, &hops);
    let forks = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            let ((), ns) = common::timed(|| {
                let fork = lane.fork(Revision::Head).expect("fork").no;
                put(&mut lane.on(fork), 5, next);
                lane.discard(fork).expect("discard");
            });
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("fork, write 1 KiB, discard", &forks);
    diffs(
        bench,
        lane,
        "diff of 1000 keys, 10 differ",
        (one, other),
        rounds,
        many,
    );
    lane.restore(Revision::Head, false).expect("restore");
    lane.branch("side", Revision::Head).expect("branch");
    let merges = common::rounds(rounds, |histogram| {
        for no in 0..many / 10 {
            for (branch, shift) in [("side", 0), ("main", 500)] {
                lane.switch(branch).expect("switch");
                for key in 0..10 {
                    put(lane, shift + (no * 10 + key) % 500, next);
                }
                lane.checkpoint(&new).expect("checkpoint");
            }
            let rules = [(&b""[..], Policy::Ours)];
            let (merged, ns) = common::timed(|| lane.merge(Revision::Branch("side"), &rules, &new));
            assert!(matches!(merged.expect("merge"), Merged::Merged(_)));
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("merge, 1,000 keys, 10 differ on each side", &merges);
}

fn revision(id: ObjectId) -> Revision<'static> {
    Revision::Checkpoint(*id.as_bytes())
}

/// Two checkpoints that differ in ten keys.
fn two_states(lane: &mut Lane, next: &mut u64) -> (ObjectId, ObjectId) {
    let new = NewCheckpoint::default();
    let one = lane.checkpoint(&new).expect("checkpoint").id;
    for key in 0..10 {
        put(lane, key * 97, next);
    }
    (one, lane.checkpoint(&new).expect("checkpoint").id)
}

fn diffs(
    bench: &mut common::Bench,
    lane: &mut Lane,
    label: &str,
    (one, other): (ObjectId, ObjectId),
    rounds: usize,
    many: u64,
) {
    let diffs = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            let (counts, ns) = common::timed(|| lane.diff_counts(revision(one), revision(other)));
            assert_eq!(counts.expect("diff").changed, 10);
            histogram.saturating_record(ns);
        }
    });
    bench.latencies(label, &diffs);
}

/// Notes what an operation takes longer than a round trip to the shard.
fn at_shard(bench: &mut common::Bench, rows: &[Histogram<u64>], hops: &[Histogram<u64>]) {
    let p50 = |rounds: &[Histogram<u64>]| {
        common::median(
            rounds
                .iter()
                .map(|round| round.value_at_quantile(0.5) as f64),
        )
    };
    bench.note(format!(
        "{:.2} us at the shard",
        (p50(rows) - p50(hops)) / 1e3
    ));
}

fn bare_writes(file: &File, sync: bool, count: u64, histogram: &mut Histogram<u64>) {
    let bytes = [7; BARE_BYTES];
    for no in 0..count {
        let at = no * BARE_BYTES as u64 % (60 << 20);
        let ((), ns) = common::timed(|| {
            file.write_all_at(&bytes, at).expect("pwrite");
            if sync {
                file.sync_data().expect("fdatasync");
            }
        });
        histogram.saturating_record(ns);
    }
}
