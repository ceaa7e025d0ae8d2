//! What does a runtime cost that has nothing to do, and how often do its hot paths allocate?
//!
//! 850 lanes attached and warm, then silence: processor time of the runtime's process from
//! `/proc/PID/stat`. Then hits, misses to L3 and writes, counted by the runtime's own allocator,
//! which counts exactly; the first round of each is let pass, as tables still grow in it.

use std::time::{Duration, Instant};

use helios::client::Lane;
use helios::metrics::Stats;

mod common;

const VALUE_BYTES: usize = 1024;
const KEYS: u64 = 32;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "idle",
        "processor time of an idle runtime, and allocations per operation of a busy one",
    ) else {
        return;
    };
    idle(&mut bench);
    allocations(&mut bench);
    bench.finish();
}

fn idle(bench: &mut common::Bench) {
    let served = common::Served::start(bench, "");
    let session = served.session();
    let count = bench.pick(850, 16);
    let mut lanes = common::attach_many(&session, count);
    let mut value = vec![0; VALUE_BYTES];
    for (agent, lane) in lanes.iter_mut().enumerate() {
        for no in 0..KEYS / 8 {
            common::fill(&mut value, agent as u64, no);
            lane.put(&common::key(no), &value).expect("put");
        }
    }
    // Until what the writes left to be synced is on the device.
    std::thread::sleep(bench.pick(Duration::from_secs(2), Duration::from_millis(50)));
    for time in bench.pick([2, 10], [0, 0]) {
        let time = Duration::from_secs(time).max(Duration::from_millis(150));
        let (before, start) = (served.cpu_seconds(), Instant::now());
        std::thread::sleep(time);
        let used = served.cpu_seconds() - before;
        let share = used / start.elapsed().as_secs_f64();
        bench.value(
            format!(
                "idle for {:.1} s, {count} lanes attached",
                time.as_secs_f64()
            ),
            format!("{:.2}% of a core", share * 100.0),
        );
    }
    for lane in &mut lanes {
        lane.get(&common::key(0), &mut value).expect("get");
        bench.check(&value);
    }
    drop(lanes);
    served.stop();
}

fn allocations(bench: &mut common::Bench) {
    // L2 of 4 MiB, and more than twice of it written.
    let keys = bench.pick(16_384, 5_000);
    let served = common::Served::start(bench, "memory_max = \"16MiB\"\nl1_window_bytes = \"8KiB\"");
    let mut lane = served.lane("counted");
    let operations = bench.pick(100_000, 2_000);
    let mut value = vec![0; VALUE_BYTES];
    let mut seed = 0;
    let mut write = |lane: &mut Lane, no: u64| {
        seed += 1;
        common::fill(&mut value, 14, seed);
        lane.put(&common::key(no), &value).expect("put");
    };
    (0..keys).for_each(|no| write(&mut lane, no));
    let mut numbers = common::Numbers(15);
    let mut count = |label: &str, run: &mut dyn FnMut(&mut Lane)| {
        run(&mut lane);
        let before = lane.stats().expect("stats");
        run(&mut lane);
        let since = lane.stats().expect("stats").since(&before);
        bench.check(&since.operations.to_le_bytes());
        bench.value(label, per_operation(&since));
    };
    count("writes", &mut |lane| {
        (0..operations).for_each(|_| write(lane, numbers.below(keys)));
    });
    let mut reply = Vec::with_capacity(4096);
    let mut read = |lane: &mut Lane, key: u64| {
        lane.submit_get(&common::key(key), 4096)
            .expect("submitting");
        let answer = lane.wait(&mut reply).expect("waiting").expect("in flight");
        answer.outcome.expect("get");
    };
    let mut numbers = common::Numbers(16);
    count("reads of a few keys", &mut |lane| {
        (0..operations).for_each(|_| read(lane, numbers.below(64)));
    });
    count("reads of all keys", &mut |lane| {
        (0..operations).for_each(|_| read(lane, numbers.below(keys)));
    });
    drop(lane);
    served.stop();
}

fn per_operation(since: &Stats) -> String {
    let each = |allocations: u64, operations: u64| {
        format!("{:.4}", allocations as f64 / operations.max(1) as f64)
    };
    format!(
        "{} L2 hits: {} allocations each; {} L3 hits, {} cold: {}; {} writes: {}",
        since.l2_hits,
        each(since.allocations_hit, since.l2_hits),
        since.l3_hits,
        since.cold_reads,
        each(since.allocations_miss, since.l3_hits + since.cold_reads),
        since.writes,
        each(since.allocations_write, since.writes),
    )
}
