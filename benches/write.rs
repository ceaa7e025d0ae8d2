//! What does an acknowledged write of 1 KiB cost, by durability?
//!
//! One request at a time, over 10,000 keys; no two values are equal, so each is hashed, appended
//! and written out. Beside it: the same bytes appended to a file by `pwrite` alone, for
//! process-durable writes, and by `pwrite` and `fdatasync` for power-safe ones.

use std::fs::File;
use std::os::unix::fs::FileExt;

use hdrhistogram::Histogram;
use helios::client::{Lane, PutOptions};
use helios::config::Durability;

mod common;

const VALUE_BYTES: usize = 1024;
const KEYS: u64 = 10_000;

fn main() {
    let Some(mut bench) = common::Bench::start("write", "an acknowledged write of 1 KiB") else {
        return;
    };
    let served = common::Served::start(&bench, "");
    let mut lane = served.lane("writer");
    let (_file_dir, file) = common::preallocated_file(64 << 20);
    let rounds = bench.pick(15, 2);
    let many = bench.pick(5_000, 100);
    let few = bench.pick(200, 4);
    let mut next = 0;
    write(
        &mut lane,
        Durability::Process,
        many,
        &mut next,
        &mut throwaway(),
    );

    let mut sets: [Vec<Histogram<u64>>; 5] = Default::default();
    let mut offset = 0;
    for _ in 0..rounds {
        let mut one = [(); 5].map(|()| throwaway());
        bare(&file, false, many, &mut offset, &mut one[0]);
        write(
            &mut lane,
            Durability::Volatile,
            many,
            &mut next,
            &mut one[1],
        );
        write(&mut lane, Durability::Process, many, &mut next, &mut one[2]);
        bare(&file, true, few, &mut offset, &mut one[3]);
        write(&mut lane, Durability::Power, few, &mut next, &mut one[4]);
        for (all, one) in sets.iter_mut().zip(one) {
            all.push(one);
        }
    }
    let [pwrite, volatile, process, fdatasync, power] = sets;
    bench.latencies("bare pwrite", &pwrite);
    bench.latencies("put, volatile", &volatile);
    bench.ratio(&volatile, &pwrite, "pwrite");
    bench.latencies("put, process", &process);
    bench.ratio(&process, &pwrite, "pwrite");
    bench.latencies("bare pwrite and fdatasync", &fdatasync);
    bench.latencies("put, power", &power);
    bench.ratio(&power, &fdatasync, "fdatasync");
    let stats = lane.stats().expect("stats");
    assert_eq!(stats.writes, next);
    assert_eq!(stats.deduplicated, 0);
    bench.check(&stats.writes.to_le_bytes());
    drop(lane);
    served.stop();
    bench.finish();
}

fn throwaway() -> Histogram<u64> {
    helios::metrics::latency_histogram()
}

fn write(
    lane: &mut Lane,
    durability: Durability,
    count: u64,
    next: &mut u64,
    histogram: &mut Histogram<u64>,
) {
    let options = PutOptions {
        durability: Some(durability),
        ..PutOptions::default()
    };
    let mut value = [0; VALUE_BYTES];
    for _ in 0..count {
        common::fill(&mut value, 5, *next);
        let key = common::key(*next % KEYS);
        *next += 1;
        let (written, ns) = common::timed(|| lane.put_with(&key, &value, options));
        assert_eq!(written.expect("put").durability, durability);
        histogram.saturating_record(ns);
    }
}

fn bare(file: &File, sync: bool, count: u64, offset: &mut u64, histogram: &mut Histogram<u64>) {
    let mut value = [0; VALUE_BYTES];
    for _ in 0..count {
        common::fill(&mut value, 6, *offset);
        let ((), ns) = common::timed(|| {
            file.write_all_at(&value, *offset).expect("pwrite");
            if sync {
                file.sync_data().expect("fdatasync");
            }
        });
        *offset = (*offset + VALUE_BYTES as u64) % (64 << 20);
        histogram.saturating_record(ns);
    }
}
