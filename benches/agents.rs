//! What changes from 1 agent to 850 and 8,500: cost of an operation, attaching, memory?
//!
//! All lanes are of one process. First one busy lane among so many silent ones, then every lane in
//! turn, an L2 read and a write of 256 bytes each. Memory is the runtime's, from `/proc`, with
//! every lane attached and used.

use std::time::Instant;

use hdrhistogram::Histogram;
use helios::client::Lane;
use helios::topology::raise_file_limit;

mod common;

const VALUE_BYTES: usize = 256;
/// Values of each agent.
const KEYS: u64 = 32;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "agents",
        "the cost of an operation, of attaching, and of memory, with 1, 850 and 8,500 lanes",
    ) else {
        return;
    };
    raise_file_limit();
    let served = common::Served::start(&bench, "");
    let session = served.session();
    let mut lanes: Vec<Lane> = Vec::new();
    let mut lone: [Vec<Histogram<u64>>; 2] = Default::default();
    let mut turns: [Vec<Histogram<u64>>; 2] = Default::default();
    for count in bench.pick([1, 850, 8_500], [1, 8, 32]) {
        let mut attach = helios::metrics::latency_histogram();
        let start = Instant::now();
        let before = lanes.len();
        while lanes.len() < count {
            let name = format!("agent-{}", lanes.len());
            let (lane, ns) = common::timed(|| common::attach(&session, &name));
            attach.saturating_record(ns);
            lanes.push(lane);
        }
        let seconds = start.elapsed().as_secs_f64();
        bench.latencies(format!("attach, {before} to {count}"), &[attach]);
        bench.note(format!("{seconds:.2} s in all"));
        let attached = served.status_bytes("VmRSS");
        warm(&mut lanes, before);
        let rounds = bench.pick(11, 2);
        let per_round = bench.pick(10_000, 100);
        for (at, what) in ["get", "put"].into_iter().enumerate() {
            let one = operate(&mut bench, &mut lanes[..1], rounds, per_round, what);
            bench.latencies(format!("{what}, one busy lane of {count}"), &one);
            compare(&mut bench, &one, &mut lone[at]);
            let all = operate(&mut bench, &mut lanes, rounds, per_round, what);
            bench.latencies(format!("{what}, {count} lanes in turn"), &all);
            compare(&mut bench, &all, &mut turns[at]);
        }
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1048576.0);
        bench.value(
            format!("memory of the runtime, {count} lanes"),
            format!(
                "{} attached, {} warm, of which shared {}, files {}",
                mib(attached),
                mib(served.status_bytes("VmRSS")),
                mib(served.status_bytes("RssShmem")),
                mib(served.status_bytes("RssFile")),
            ),
        );
    }
    drop(lanes);
    served.stop();
    bench.finish();
}

/// Beside the first set of rounds, which is kept.
fn compare(bench: &mut common::Bench, now: &[Histogram<u64>], first: &mut Vec<Histogram<u64>>) {
    if first.is_empty() {
        *first = now.to_vec();
    } else {
        bench.ratio(now, first, "one lane");
    }
}

/// Writes each new agent's values and reads them all once.
fn warm(lanes: &mut [Lane], from: usize) {
    let mut value = vec![0; VALUE_BYTES];
    for (agent, lane) in lanes.iter_mut().enumerate().skip(from) {
        for no in 0..KEYS {
            common::fill(&mut value, agent as u64, no);
            lane.put(&common::key(no), &value).expect("put");
        }
        for no in 0..KEYS {
            let found = lane.get(&common::key(no), &mut value).expect("get");
            assert!(found.is_some());
        }
    }
}

fn operate(
    bench: &mut common::Bench,
    lanes: &mut [Lane],
    rounds: usize,
    per_round: u64,
    what: &str,
) -> Vec<Histogram<u64>> {
    let mut numbers = common::Numbers(12);
    let mut value = vec![0; VALUE_BYTES];
    let mut reply = Vec::with_capacity(4096);
    let mut agent = 0;
    common::rounds(rounds, |histogram| {
        for _ in 0..per_round {
            agent = if agent + 1 >= lanes.len() {
                0
            } else {
                agent + 1
            };
            let key = common::key(numbers.below(KEYS));
            let lane = &mut lanes[agent];
            let ns = if what == "get" {
                let (answer, ns) = common::timed(|| {
                    lane.submit_get(&key, 4096).expect("submitting");
                    lane.wait(&mut reply).expect("waiting").expect("in flight")
                });
                answer.outcome.expect("get");
                ns
            } else {
                let seed = numbers.below(u64::MAX);
                common::fill(&mut value, 13, seed);
                let (written, ns) = common::timed(|| lane.put(&key, &value));
                written.expect("put");
                ns
            };
            histogram.saturating_record(ns);
            bench.check(&reply);
        }
    })
}
