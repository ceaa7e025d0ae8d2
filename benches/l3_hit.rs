//! What does a read cost that a segment answers, in memory and from the device?
//!
//! 4 KiB values, eight times as many bytes as L2 holds, read uniformly. Every reply names the tier
//! that served it, and is counted under that one: `L3` is what was in the page cache, its BLAKE3
//! checked; `cold` is what the I/O core read from the device, after the kernel was told to drop the
//! segments' pages.
//!
//! The bare rivals hash 4 KiB that lie in the cache, and take 4 KiB at random out of a file of the
//! same size in the page cache: by `preadv2` that does not wait, and out of a mapping of which the
//! kernel is asked what is resident, and which is given back after every 256 reads, so that no
//! more than 16 MiB of it count as memory of the process (a fault maps 64 KiB).

#![expect(unsafe_code, reason = "the mapped rival asks and reads by address")]

use std::hint::black_box;
use std::io::IoSliceMut;

use hdrhistogram::Histogram;
use helios::agent::entry::Tier;
use helios::client::Lane;
use helios::config::Durability;
use helios::id::ObjectId;

mod common;

const VALUE_BYTES: usize = 4096;

fn main() {
    let Some(mut bench) = common::Bench::start(
        "l3_hit",
        "a read of 4 KiB that a segment answers: page resident, and not",
    ) else {
        return;
    };
    // L2 is a quarter of the memory: 4 MiB here.
    let keys = bench.pick(16_384, 2_048);
    let served =
        common::Served::start(&bench, "memory_max = \"16MiB\"\nl1_window_bytes = \"8KiB\"");
    let mut lane = served.lane("reader");
    let mut value = vec![0; VALUE_BYTES];
    for no in 0..keys {
        common::fill(&mut value, 4, no);
        lane.put(&common::key(no), &value).expect("put");
    }
    lane.sync(Durability::Power).expect("sync");
    let hash = common::rounds(bench.pick(15, 2), |histogram| {
        for _ in 0..1000 {
            let (id, ns) = common::timed(|| ObjectId::of_blob(black_box(&value)));
            black_box(id);
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("BLAKE3 of 4 KiB", &hash);
    let bytes = keys as usize * VALUE_BYTES;
    let (_directory, file) = common::preallocated_file(bytes.next_multiple_of(1 << 20));
    let count = bench.pick(15, 2);
    let not_waiting = bare_preadv2(&file, count, bytes);
    bench.latencies("bare preadv2 of 4 KiB", &not_waiting);
    let mapped = bare_mapped(&file, count, bytes);
    bench.latencies("bare mapped read of 4 KiB", &mapped);
    bench.ratio(&mapped, &not_waiting, "preadv2");
    let per_round = bench.pick(10_000, 200);
    let mut tiers = [const { Vec::new() }; 3];
    for round in 0..count {
        for (all, one) in
            tiers
                .iter_mut()
                .zip(read(&mut bench, &mut lane, keys, per_round, round as u64))
        {
            all.push(one);
        }
    }
    let [l2, l3, cold] = tiers;
    let total: u64 = l3.iter().chain(&l2).chain(&cold).map(Histogram::len).sum();
    let share = l3.iter().map(Histogram::len).sum::<u64>() as f64 / total as f64;
    bench.latencies("L3, resident page", &l3);
    bench.ratio(&l3, &hash, "hash");
    bench.latencies("L2, of the same reads", &l2);
    bench.note(format!("{:.0}% of the reads were L3", share * 100.0));
    assert!(share > 0.3, "most values are not in L2");
    let few = bench.pick(2_000, 100);
    let dropped = common::rounds(bench.pick(5, 1), |histogram| {
        drop_pages(&served);
        let [_, _, cold] = read(&mut bench, &mut lane, keys, few, 99);
        histogram.add(cold).expect("the same bounds");
    });
    bench.latencies("cold, from the device", &dropped);
    drop(lane);
    served.stop();
    bench.finish();
}

/// Takes 4 KiB at a time out of the page cache, never waiting for the device.
fn bare_preadv2(file: &std::fs::File, count: usize, bytes: usize) -> Vec<Histogram<u64>> {
    let (mut value, mut numbers) = (vec![0; VALUE_BYTES], common::Numbers(1));
    common::rounds(count, |histogram| {
        for _ in 0..1000 {
            let at = numbers.below((bytes - VALUE_BYTES) as u64) / 8 * 8;
            let (read, ns) = common::timed(|| {
                let mut into = [IoSliceMut::new(&mut value)];
                rustix::io::preadv2(file, &mut into, at, rustix::io::ReadWriteFlags::NOWAIT)
            });
            // The kernel may have taken a page back.
            if read == Ok(VALUE_BYTES) {
                histogram.saturating_record(ns);
            }
        }
    })
}

/// Copies 4 KiB at a time out of a mapping, after asking whether they are in memory.
fn bare_mapped(file: &std::fs::File, count: usize, bytes: usize) -> Vec<Histogram<u64>> {
    let page = rustix::param::page_size();
    // SAFETY: nobody cuts or writes the file, which lives in a directory of its own.
    let map = unsafe { memmap2::Mmap::map(file) }.expect("mapping");
    let (mut value, mut numbers) = (vec![0; VALUE_BYTES], common::Numbers(1));
    common::rounds(count, |histogram| {
        for no in 0..1000 {
            let at = numbers.below((bytes - VALUE_BYTES) as u64) as usize / 8 * 8;
            let ((), ns) = common::timed(|| {
                let (first, mut pages) = (at / page * page, [0; 2]);
                let from = map.as_ptr().wrapping_add(first).cast_mut().cast();
                let span = (bytes - first).min(2 * page);
                // SAFETY: inside the mapping; a byte for each of at most two pages is written.
                let asked = unsafe { libc::mincore(from, span, pages.as_mut_ptr()) };
                assert_eq!(asked, 0);
                value.copy_from_slice(black_box(&map[at..at + VALUE_BYTES]));
            });
            histogram.saturating_record(ns);
            if no % 256 == 255 {
                // SAFETY: no slice of the mapping lives; what is dropped is read from the file.
                unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }
                    .expect("madvise");
            }
        }
    })
}

/// Reads at random; latencies by tier: L2, L3, cold.
fn read(
    bench: &mut common::Bench,
    lane: &mut Lane,
    keys: u64,
    count: u64,
    seed: u64,
) -> [Histogram<u64>; 3] {
    let mut tiers = [(); 3].map(|()| helios::metrics::latency_histogram());
    let mut numbers = common::Numbers(seed);
    let mut value = Vec::with_capacity(8192);
    for _ in 0..count {
        let key = common::key(numbers.below(keys));
        let (completion, ns) = common::timed(|| {
            lane.submit_get(&key, VALUE_BYTES as u32)
                .expect("submitting");
            let reply = lane.wait(&mut value).expect("waiting");
            reply.expect("in flight").outcome.expect("get")
        });
        assert_eq!(value.len(), VALUE_BYTES);
        bench.check(&value);
        let at = match completion.tier {
            Tier::L2 => 0,
            Tier::L3 => 1,
            Tier::Cold => 2,
            tier => panic!("a read by the shard was served by {tier:?}"),
        };
        tiers[at].saturating_record(ns);
    }
    tiers
}

/// Tells the kernel to forget the segments' pages, which are on the device already.
fn drop_pages(served: &common::Served) {
    let mut directories = vec![served.data().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("the data directory") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                directories.push(entry.path());
                continue;
            }
            let file = std::fs::File::open(entry.path()).expect("a segment");
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}
