//! What does a read cost that the agent's own window answers?
//!
//! 256-byte values, read by the agent's process, which is not the runtime's: one agent, then 50
//! and 850 in turn, so that every read finds another agent's lines in the caches, or out of them.
//! A single read is shorter than the clock's own cost, so whole turns are timed and divided.
//! Beside it, the same bytes copied from the same number of plain buffers: what the memory costs.

use std::hint::black_box;

use hdrhistogram::Histogram;
use helios::agent::entry::Tier;
use helios::client::Lane;

mod common;

/// Hot values of each agent.
const KEYS: u64 = 16;
/// Bytes of a value.
const VALUE_BYTES: usize = 256;
/// Reads that are timed together.
const BATCH: usize = 850;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "l1_hit",
        "a read of 256 bytes that the agent's window answers, from the agent's process",
    ) else {
        return;
    };
    let served = common::Served::start(&bench, "");
    let session = served.session();
    let agents = bench.pick([1, 50, 850], [1, 4, 16]);
    let mut lanes: Vec<Lane> = Vec::new();
    for count in agents {
        while lanes.len() < count {
            let mut lane = common::attach(&session, &format!("reader-{}", lanes.len()));
            warm(&mut lane, lanes.len() as u64);
            lanes.push(lane);
        }
        measure(&mut bench, &mut lanes);
    }
    drop(lanes);
    served.stop();
    bench.finish();
}

/// Writes the values and reads them until the window has them all.
fn warm(lane: &mut Lane, agent: u64) {
    let mut value = vec![0; VALUE_BYTES];
    for no in 0..KEYS {
        common::fill(&mut value, agent, no);
        lane.put(&common::key(no), &value).expect("put");
    }
    for no in 0..KEYS {
        let hit = (0..1000).any(|_| {
            let found = lane.get(&common::key(no), &mut value).expect("get");
            found.is_some_and(|found| found.tier == Tier::L1)
        });
        assert!(
            hit,
            "a value that is read again and again enters the window"
        );
    }
}

fn measure(bench: &mut common::Bench, lanes: &mut [Lane]) {
    let batches = bench.pick(400, 2);
    let rounds = bench.pick(15, 2);
    let keys: Vec<[u8; 16]> = (0..KEYS).map(common::key).collect();
    let plain: Vec<[u8; VALUE_BYTES]> = vec![[7; VALUE_BYTES]; lanes.len() * KEYS as usize];
    let mut numbers = common::Numbers(1);
    let mut value = Vec::with_capacity(4096);
    let (mut hits, mut bare) = (Vec::new(), Vec::new());
    let mut hit_ratio = 0;
    for _ in 0..rounds {
        let order: Vec<usize> = (0..BATCH).map(|_| numbers.below(KEYS) as usize).collect();
        let mut histogram = common::rounds(1, |_| ()).remove(0);
        let mut rival: Histogram<u64> = histogram.clone();
        for _ in 0..batches {
            let mut agent = 0;
            let (missed, ns) = common::timed(|| {
                let mut missed = 0;
                for &key in &order {
                    let found = lanes[agent].get_window(&keys[key], &mut value);
                    missed += usize::from(found.is_none());
                    agent = if agent + 1 == lanes.len() {
                        0
                    } else {
                        agent + 1
                    };
                }
                missed
            });
            hit_ratio += BATCH - missed;
            histogram.saturating_record(ns / BATCH as u64);
            bench.check(&value);
            let mut agent = 0;
            let mut copy = [0; VALUE_BYTES];
            let ((), ns) = common::timed(|| {
                for &key in &order {
                    copy = *black_box(&plain[agent * KEYS as usize + key]);
                    black_box(&mut copy);
                    agent = if agent + 1 == lanes.len() {
                        0
                    } else {
                        agent + 1
                    };
                }
            });
            rival.saturating_record(ns / BATCH as u64);
        }
        hits.push(histogram);
        bare.push(rival);
    }
    assert_eq!(hit_ratio, BATCH * batches * rounds, "every read is a hit");
    let count = lanes.len();
    bench.latencies(
        format!("copy of plain memory, {count} agents in turn"),
        &bare,
    );
    bench.latencies(format!("window hit, {count} agents in turn"), &hits);
    bench.ratio(&hits, &bare, "copy");
}
