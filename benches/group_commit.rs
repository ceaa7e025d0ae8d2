//! How many power-safe writes share one fdatasync, and what does sharing cost the single one?
//!
//! 1, 8 and 64 lanes of one process, each with one power-safe write of 1 KiB under way, driven by
//! one thread. Beside it a loop of `pwrite` and `fdatasync` on a file of the same disk. Both I/O
//! backends; where io_uring is refused, only the threads.
//!
//! Then checkpoints of 1, 64 and 850 agents, one under way in each: a value of 1 KiB of 20 is
//! changed, a checkpoint made, and its sequence awaited until it is on the device. The time is from the
//! checkpoint's start to that; with many agents it is mostly that of the others' checkpoints.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use hdrhistogram::Histogram;
use helios::client::{Lane, NewCheckpoint, PutOptions, Ticket};
use helios::config::Durability;
use helios::topology::probe_io_uring;

mod common;

const VALUE_BYTES: usize = 1024;
/// Keys of each agent that makes checkpoints.
const KEYS: u64 = 20;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "group_commit",
        "power-safe writes of 1 KiB by several lanes, next to bare fdatasync",
    ) else {
        return;
    };
    let (_file_dir, file) = common::preallocated_file(16 << 20);
    let rounds = bench.pick(7, 1);
    let per_round = bench.pick(300, 4);
    let mut backends = vec!["threads"];
    match probe_io_uring() {
        Ok(()) => backends.insert(0, "glommio"),
        Err(error) => println!("io_uring is refused ({error}): threads only"),
    }
    for backend in backends {
        let served = common::Served::start(&bench, &format!("io = {backend:?}"));
        let session = served.session();
        let mut lanes = Vec::new();
        let mut next = 0;
        for count in [1, 8, 64] {
            while lanes.len() < count {
                let agent = format!("writer-{}", lanes.len());
                lanes.push(common::attach(&session, &agent));
            }
            let label = format!("{backend}, {count} lanes");
            let each = per_round * count as u64;
            measure(&mut bench, &file, per_round, &label, rounds, || {
                run(&mut lanes, |lanes| write_round(lanes, each, &mut next))
            });
        }
        drop(lanes);
        let mut lanes = Vec::new();
        for count in [1, 64, 850].map(|count| bench.pick(count, count.min(16))) {
            while lanes.len() < count {
                let mut lane = common::attach(&session, &format!("keeper-{}", lanes.len()));
                for key in 0..KEYS {
                    put(&mut lane, key, &mut next);
                }
                lanes.push(lane);
            }
            let label = format!("{backend}, checkpoints of {count} agents");
            // As many in all whatever the number of agents, but one of each at least.
            let each = (per_round * 8).max(count as u64);
            measure(&mut bench, &file, per_round, &label, rounds, || {
                run(&mut lanes, |lanes| checkpoint_round(lanes, each, &mut next))
            });
        }
        drop(lanes);
        served.stop();
    }
    bench.finish();
}

/// What one round came to.
struct Round {
    acks: Histogram<u64>,
    syncs: u64,
    seconds: f64,
}

fn run(lanes: &mut [Lane], round: impl FnOnce(&mut [Lane]) -> Histogram<u64>) -> Round {
    let before = lanes[0].stats().expect("stats");
    let start = Instant::now();
    let acks = round(lanes);
    let seconds = start.elapsed().as_secs_f64();
    let since = lanes[0].stats().expect("stats").since(&before);
    Round {
        acks,
        syncs: since.syncs,
        seconds,
    }
}

/// Rounds beside those of a bare file, in turn.
fn measure(
    bench: &mut common::Bench,
    file: &std::fs::File,
    bare_count: u64,
    label: &str,
    rounds: usize,
    mut round: impl FnMut() -> Round,
) {
    let (mut bare, mut acks) = (Vec::new(), Vec::new());
    let (mut syncs, mut seconds) = (0, 0.0);
    for _ in 0..rounds {
        bare.push(bare_round(file, bare_count));
        let round = round();
        acks.push(round.acks);
        syncs += round.syncs;
        seconds += round.seconds;
    }
    let done: u64 = acks.iter().map(Histogram::len).sum();
    bench.latencies(format!("bare pwrite and fdatasync, before {label}"), &bare);
    bench.latencies(label, &acks);
    let p50 = |rounds: &[Histogram<u64>]| {
        let p50s = rounds.iter().map(|round| round.value_at_quantile(0.5));
        common::median(p50s.map(|ns| ns as f64))
    };
    bench.note(format!(
        "{:.2} x fdatasync, {:.1} acks per sync, {:.0} acks/s",
        p50(&acks) / p50(&bare).max(1.0),
        done as f64 / syncs.max(1) as f64,
        done as f64 / seconds,
    ));
    bench.check(&done.to_le_bytes());
}

fn put(lane: &mut Lane, key: u64, next: &mut u64) {
    let mut value = [0; VALUE_BYTES];
    common::fill(&mut value, 9, *next);
    *next += 1;
    lane.put(&common::key(key), &value).expect("put");
}

/// Keeps one checkpoint of each lane under way until `count` are on the device.
fn checkpoint_round(lanes: &mut [Lane], count: u64, next: &mut u64) -> Histogram<u64> {
    let new = NewCheckpoint {
        durability: Some(Durability::Process),
        ..NewCheckpoint::default()
    };
    let mut histogram = helios::metrics::latency_histogram();
    let mut reply = Vec::new();
    let mut under_way: Vec<Option<Instant>> = vec![None; lanes.len()];
    let (mut submitted, mut done) = (0, 0);
    while done < count {
        for (lane, waits) in lanes.iter_mut().zip(&mut under_way) {
            if let Some(since) = *waits {
                let Some(answer) = lane.poll(&mut reply).expect("the lane is open") else {
                    continue;
                };
                answer.outcome.expect("sync");
                histogram.saturating_record(since.elapsed().as_nanos() as u64);
                (*waits, done) = (None, done + 1);
            }
            if submitted < count {
                put(lane, *next % KEYS, next);
                let since = Instant::now();
                let made = lane.checkpoint(&new).expect("a checkpoint");
                lane.submit_sync(made.sequence, Durability::Power)
                    .expect("submitting");
                lane.flush();
                (*waits, submitted) = (Some(since), submitted + 1);
            }
        }
        std::thread::yield_now();
    }
    histogram
}

fn bare_round(file: &std::fs::File, count: u64) -> Histogram<u64> {
    let mut histogram = helios::metrics::latency_histogram();
    let mut value = [0; VALUE_BYTES];
    for no in 0..count {
        common::fill(&mut value, 7, no);
        let ((), ns) = common::timed(|| {
            let at = no * VALUE_BYTES as u64 % (16 << 20);
            file.write_all_at(&value, at).expect("pwrite");
            file.sync_data().expect("fdatasync");
        });
        histogram.saturating_record(ns);
    }
    histogram
}

/// Keeps one write of each lane under way until `count` were acknowledged.
fn write_round(lanes: &mut [Lane], count: u64, next: &mut u64) -> Histogram<u64> {
    let options = PutOptions {
        durability: Some(Durability::Power),
        ..PutOptions::default()
    };
    let mut histogram = helios::metrics::latency_histogram();
    let mut value = [0; VALUE_BYTES];
    let mut reply = Vec::new();
    let mut under_way: Vec<Option<(Ticket, Instant)>> = vec![None; lanes.len()];
    let (mut submitted, mut done) = (0, 0);
    while done < count {
        for (lane, waits) in lanes.iter_mut().zip(&mut under_way) {
            if let Some((ticket, since)) = *waits {
                let Some(answer) = lane.poll(&mut reply).expect("the lane is open") else {
                    continue;
                };
                histogram.saturating_record(since.elapsed().as_nanos() as u64);
                assert_eq!(answer.ticket, ticket);
                let durability = answer.outcome.expect("put").durability;
                assert_eq!(durability, Some(Durability::Power));
                (*waits, done) = (None, done + 1);
            }
            if submitted < count {
                common::fill(&mut value, 8, *next);
                let key = common::key(*next % 1000);
                (*next, submitted) = (*next + 1, submitted + 1);
                let since = Instant::now();
                let ticket = lane.submit_put(&key, &value, options).expect("submitting");
                lane.flush();
                *waits = Some((ticket, since));
            }
        }
        // The I/O core may share this core: it has to come to run.
        std::thread::yield_now();
    }
    histogram
}
