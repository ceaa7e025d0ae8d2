//! Error loops over what reads a directory without a shard: the start, and a verification.

use std::sync::{Arc, Mutex};

use super::verify::verify_shard;
use super::*;
use crate::segment::memory::{MemoryDisk, Nth};
use crate::segment::{SegmentFiles, read_only, recover};

/// What a runtime leaves that is killed: small values, a large one in chunks, a checkpoint.
fn left() -> MemoryDisk {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        shards: Choice::Fixed(1),
        segment_bytes: 1 << 20,
        memory_max: 64 << 20,
        ..Config::at(dir.path())
    };
    let runtime = Runtime::start(config).unwrap();
    let mut lane = runtime.agent("a").unwrap();
    for no in 0..20_u8 {
        lane.put(&[b'k', no], &[no; 3000]).unwrap();
    }
    let large: Vec<u8> = (0..300_000_u32)
        .flat_map(|no| no.wrapping_mul(no).to_le_bytes())
        .collect();
    lane.put(b"large", &large).unwrap();
    lane.checkpoint(&Default::default()).unwrap();
    lane.put(b"large too", &large[1..]).unwrap();
    drop(lane);
    runtime.shutdown().unwrap();
    let mut disk = MemoryDisk::new();
    let mut files = Directory::read_only(dir.path().join("shard-000"));
    for file in files.list().unwrap() {
        let bytes = std::fs::read(files.path(file.segment)).unwrap();
        *disk.bytes_mut(file.segment) = bytes;
    }
    disk
}

/// Fails each call in turn, once; how many there were. `carry_out` says whether it went well.
fn check(mut carry_out: impl FnMut(&mut MemoryDisk) -> Result<(), RuntimeError>) -> u64 {
    let sound = left();
    for skip in 0.. {
        let nth = Arc::new(Mutex::new(Nth {
            skip,
            ..Nth::default()
        }));
        let mut disk = sound.clone();
        disk.faults.nth = Some(Arc::clone(&nth));
        let outcome = carry_out(&mut disk);
        let nth = nth.lock().unwrap();
        if nth.failed.is_empty() {
            outcome.unwrap();
            return skip;
        }
        let error = outcome.expect_err("a call that failed was taken for good, or for damage");
        assert!(matches!(error, RuntimeError::Recover { .. }), "{error}");
        assert!(error.to_string().contains("start again"), "{error}");
        // The device is well again.
        disk.faults.nth = None;
        carry_out(&mut disk).unwrap();
    }
    unreachable!("a loop without end")
}

/// A node of a large value that could not be read at a start made the value damaged until the next.
#[test]
fn a_start_takes_no_failed_read_for_damage() {
    for recovery in [recover::<MemoryDisk>, read_only::<MemoryDisk>] {
        let calls = check(|disk| {
            let (tables, _) = read_back(disk, ShardNo(0), recovery)?;
            let mut objects = tables.objects.all();
            assert!(!objects.any(|(_, object)| object.quarantined));
            Ok(())
        });
        println!("{calls} calls failed");
        assert!(calls > 10);
    }
}

/// What the device would not give for a moment was said to be lost.
#[test]
fn a_verification_takes_no_failed_read_for_damage() {
    let calls = check(|disk| {
        let mut found = |finding: Finding| panic!("found {finding:?}");
        verify_shard(ShardNo(0), disk, &mut found, &mut |_| {}).map(|_| ())
    });
    println!("{calls} calls failed");
    assert!(calls > 20);
}
