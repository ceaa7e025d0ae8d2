//! What does a read over the lane cost that L2 answers, alone and among 850 lanes?
//!
//! Uniform over 100,000 keys of one agent, one request at a time, both sides polling. The request
//! goes to the shard always: the window is not asked.

use hdrhistogram::Histogram;
use helios::agent::entry::Tier;
use helios::client::Lane;

mod common;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "l2_hit",
        "a read over the lane that L2 answers, uniform over 100,000 keys of one agent",
    ) else {
        return;
    };
    let keys = bench.pick(100_000, 200);
    let others = bench.pick(850, 8);
    let mut lone = Vec::new();
    for (bytes, memory) in [(64, "512MiB"), (1024, "1GiB"), (4096, "2560MiB")] {
        let served = common::Served::start(&bench, &format!("memory_max = {memory:?}"));
        let mut lane = served.lane("reader");
        write(&mut lane, keys, bytes);
        let alone = measure(&mut bench, &mut lane, keys);
        bench.latencies(format!("{bytes} B, alone"), &alone);
        let session = served.session();
        let attached = common::attach_many(&session, others);
        let among = measure(&mut bench, &mut lane, keys);
        bench.latencies(format!("{bytes} B, {others} lanes attached"), &among);
        bench.ratio(&among, &alone, "alone");
        lone.push(alone);
        drop(attached);
        drop(lane);
        served.stop();
    }
    bench.finish();
}

fn write(lane: &mut Lane, keys: u64, bytes: usize) {
    let mut value = vec![0; bytes];
    let (mut no, mut reply) = (0, Vec::new());
    while no < keys || lane.in_flight() > 0 {
        if no < keys && lane.in_flight() < 32 {
            common::fill(&mut value, 2, no);
            let options = helios::client::PutOptions::default();
            lane.submit_put(&common::key(no), &value, options)
                .expect("submitting");
            no += 1;
            continue;
        }
        let done = lane.wait(&mut reply).expect("waiting").expect("in flight");
        done.outcome.expect("put");
    }
}

fn measure(bench: &mut common::Bench, lane: &mut Lane, keys: u64) -> Vec<Histogram<u64>> {
    let per_round = bench.pick(20_000, 100);
    let mut numbers = common::Numbers(3);
    let mut value = Vec::with_capacity(8192);
    let mut misses = 0;
    let measured = common::rounds(bench.pick(15, 2), |histogram| {
        for _ in 0..per_round {
            let key = common::key(numbers.below(keys));
            let (completion, ns) = common::timed(|| {
                lane.submit_get(&key, 8192).expect("submitting");
                let reply = lane.wait(&mut value).expect("waiting");
                reply.expect("in flight").outcome.expect("get")
            });
            misses += u64::from(completion.tier != Tier::L2);
            histogram.saturating_record(ns);
            bench.check(&value);
        }
    });
    assert_eq!(misses, 0, "every read is served by L2");
    measured
}
