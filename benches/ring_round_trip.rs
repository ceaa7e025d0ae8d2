//! What does an empty request over a lane cost, next to a bare exchange of a cache line?
//!
//! The request is `exists` of a key that is not there: 16 bytes in, nothing out. The bare
//! exchange is two threads on the same two cores that answer each other through two words in
//! lines of their own. No request between two cores can be faster than that.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hdrhistogram::Histogram;
use helios::client::Lane;
use helios::topology::pin_current_thread;

mod common;

#[repr(align(128))]
struct Line(AtomicU64);

static ASK: Line = Line(AtomicU64::new(0));
static ANSWER: Line = Line(AtomicU64::new(0));
static STOP: AtomicBool = AtomicBool::new(false);

fn main() {
    let Some(mut bench) = common::Bench::start(
        "ring_round_trip",
        "an empty request over a lane, next to a bare exchange of a cache line",
    ) else {
        return;
    };
    let per_round = bench.pick(20_000, 200);
    let rounds = bench.pick(15, 2);
    let bare = bare_rounds(&bench, rounds, per_round);
    let served = common::Served::start(&bench, "");
    let mut lane = served.lane("asker");
    warm(&mut lane);
    let asked = common::rounds(rounds, |histogram| ask(&mut lane, per_round, histogram));
    bench.latencies("bare exchange of a cache line", &bare);
    bench.latencies("exists of an absent key", &asked);
    bench.ratio(&asked, &bare, "bare");
    let stats = lane.stats().expect("stats");
    assert!(stats.operations >= per_round * rounds as u64);
    bench.check(&per_round.to_le_bytes());
    drop(lane);
    served.stop();
    bench.finish();
}

/// Until the shard polls the lane.
fn warm(lane: &mut Lane) {
    for _ in 0..1000 {
        assert!(lane.exists(b"absent-0123456789").expect("exists").is_none());
    }
}

fn ask(lane: &mut Lane, count: u64, histogram: &mut Histogram<u64>) {
    for no in 0..count {
        let key = common::key(no);
        let (found, ns) = common::timed(|| lane.exists(&key));
        assert!(found.expect("exists").is_none());
        histogram.saturating_record(ns);
    }
}

fn bare_rounds(bench: &common::Bench, rounds: usize, count: u64) -> Vec<Histogram<u64>> {
    let core = bench.shard_core();
    let alone = bench.cores() == 1;
    let wait = move || {
        if alone {
            std::thread::yield_now()
        } else {
            spin_loop()
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(core) = core {
                assert!(pin_current_thread(core), "the shard's core takes a thread");
            }
            let mut seen = 0;
            while !STOP.load(Ordering::Relaxed) {
                let asked = ASK.0.load(Ordering::Acquire);
                if asked == seen {
                    wait();
                    continue;
                }
                seen = asked;
                ANSWER.0.store(asked, Ordering::Release);
            }
        });
        let mut asked = 0;
        let measured = common::rounds(rounds, |histogram| {
            for _ in 0..count {
                asked += 1;
                let ((), ns) = common::timed(|| {
                    ASK.0.store(asked, Ordering::Release);
                    while ANSWER.0.load(Ordering::Acquire) != asked {
                        wait();
                    }
                });
                histogram.saturating_record(ns);
            }
        });
        STOP.store(true, Ordering::Relaxed);
        measured
    })
}
