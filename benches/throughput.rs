//! How many operations a second does one shard core serve, pipelined?
//!
//! One shard; agents keep 32 requests each under way, from one process pinned to one core. On two
//! cores the agents' core does as much work as the shard's: the number is a lower bound of what
//! the shard can do.

use std::time::{Duration, Instant};

use helios::client::{ClientError, Lane, PutOptions};

mod common;

const DEPTH: usize = 32;
const KEYS: u64 = 4096;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "throughput",
        "operations per second of one shard core, 32 under way per lane",
    ) else {
        return;
    };
    for (bytes, lanes) in [(64, 1), (64, 4), (1024, 1), (1024, 4)] {
        let served = common::Served::start(&bench, "shards = 1\nmemory_max = \"256MiB\"");
        let session = served.session();
        let mut lanes: Vec<Lane> = (0..lanes)
            .map(|no| common::attach(&session, &format!("pipeline-{no}")))
            .collect();
        let label = |what: &str| format!("{what}, {bytes} B, {} lanes", lanes.len());
        let (puts, gets) = (label("puts"), label("gets"));
        let mut value = vec![0; bytes];
        for (agent, lane) in lanes.iter_mut().enumerate() {
            for no in 0..KEYS {
                common::fill(&mut value, 9 + agent as u64, no);
                lane.put(&common::key(no), &value).expect("put");
            }
        }
        let mut next = 0;
        let mut write = |lane: &mut Lane, no: u64| {
            next += 1;
            common::fill(&mut value, 20, next);
            lane.submit_put(&common::key(no), &value, PutOptions::default())
                .map(|_| ())
        };
        let rate = measure(&mut bench, &mut lanes, &mut write);
        bench.value(puts, rate);
        let mut read =
            |lane: &mut Lane, no: u64| lane.submit_get(&common::key(no), bytes as u32).map(|_| ());
        let rate = measure(&mut bench, &mut lanes, &mut read);
        bench.value(gets, rate);
        drop(lanes);
        served.stop();
    }
    bench.finish();
}

/// Operations per second: the median round and the best one.
fn measure(
    bench: &mut common::Bench,
    lanes: &mut [Lane],
    submit: &mut dyn FnMut(&mut Lane, u64) -> Result<(), ClientError>,
) -> String {
    let round = bench.pick(Duration::from_millis(300), Duration::from_millis(10));
    let mut numbers = common::Numbers(11);
    let mut reply = Vec::with_capacity(8192);
    let mut rates = Vec::new();
    for _ in 0..bench.pick(9, 2) {
        let start = Instant::now();
        let mut done = 0_u64;
        while start.elapsed() < round {
            for lane in &mut *lanes {
                // Half a batch is answered while the other half is on its way.
                while lane.in_flight() < DEPTH {
                    submit(lane, numbers.below(KEYS)).expect("submitting");
                }
                lane.flush();
                while lane.in_flight() > DEPTH / 2 {
                    let answer = lane.wait(&mut reply).expect("waiting").expect("in flight");
                    answer.outcome.expect("an answer");
                    done += 1;
                }
            }
            bench.check(&reply);
        }
        rates.push(done as f64 / start.elapsed().as_secs_f64());
        for lane in &mut *lanes {
            while let Some(answer) = lane.wait(&mut reply).expect("waiting") {
                answer.outcome.expect("an answer");
            }
        }
    }
    let best = rates.iter().copied().fold(0.0, f64::max);
    let median = common::median(rates.into_iter());
    format!("{:.2} M/s, best round {:.2} M/s", median / 1e6, best / 1e6)
}
