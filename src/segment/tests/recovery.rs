//! Recovery: damage of every kind, crashes inside, the real directory.
//!
//! Floor 1, tests only.

use super::*;
use crate::id::BranchNo;
use crate::segment::format::{FORMAT_VERSION, SEGMENT_HEADER_BYTES, encode};
use crate::segment::header::SegmentHeader;
use crate::segment::{Directory, FilesError};

/// A log of a few records in segment 1, and a spare; sealed or not.
fn small(sealed: bool) -> (MemoryDisk, Vec<Owned>) {
    let mut rig = Rig::new();
    rig.write(&few_records());
    rig.turn();
    rig.disk.kill();
    if sealed {
        read_back(&mut rig.disk).unwrap();
    }
    (rig.disk, few_records())
}

#[test]
fn what_was_flushed_comes_back_and_goes_on() {
    let (mut disk, records) = small(false);
    let (recovered, seen) = read_back(&mut disk).unwrap();
    assert_eq!(seen, records);
    assert_eq!(recovered.log_id, Some(CONFIG.log_id));
    assert_eq!(recovered.start.next_segment, SegmentNo(2));
    assert_eq!(disk.segments(), [1], "the spare is removed");
    let report = recovered.report;
    assert_eq!(
        (report.segments, report.sealed, report.truncated_bytes),
        (1, 0, 0)
    );
    let (again, seen) = read_back(&mut disk).unwrap();
    assert_eq!(
        (again.start.clone(), seen),
        (recovered.start, records.clone())
    );
    assert_eq!(again.report.sealed, 1);

    let log = Log::new(CONFIG, again.start);
    let mut rig = Rig {
        disk,
        log,
        events: Vec::new(),
    };
    rig.turn();
    rig.write(&few_records());
    rig.disk.kill();
    let (recovered, seen) = read_back(&mut rig.disk).unwrap();
    assert_eq!(seen, [records, few_records()].concat());
    assert_eq!(recovered.start.segments.len(), 2);
}

#[test]
fn an_empty_directory_is_an_empty_log() {
    let (recovered, seen) = read_back(&mut MemoryDisk::new()).unwrap();
    assert_eq!(
        (recovered.start, recovered.log_id),
        (LogStart::empty(), None)
    );
    assert!(seen.is_empty());
}

#[test]
fn a_file_cut_anywhere_gives_a_prefix() {
    for sealed in [false, true] {
        let (disk, records) = small(sealed);
        let length = if sealed {
            disk.clone().bytes_mut(SegmentNo(1)).len()
        } else {
            1024
        };
        let mut counts = Vec::new();
        for end in 0..=length {
            let mut disk = disk.clone();
            disk.bytes_mut(SegmentNo(1)).truncate(end);
            match read_back(&mut disk) {
                Ok((_, seen)) => {
                    assert_eq!(seen, records[..seen.len()], "cut at {end}");
                    counts.push(seen.len());
                }
                Err(error) => panic!("cut at {end}: {error}"),
            }
        }
        assert!(counts.is_sorted() && counts.ends_with(&[records.len()]));
        assert!((0..=records.len()).all(|count| counts.contains(&count)));
    }
}

#[test]
fn a_tear_in_the_middle_ends_the_log_and_sets_the_rest_aside() {
    let (mut disk, records) = damaged();
    let (recovered, seen) = read_back(&mut disk).unwrap();
    assert_eq!(seen, records);
    assert_eq!(disk.segments(), [1, 2]);
    assert_eq!(disk.orphans.len(), 1);
    assert!(disk.orphans[0].0 == SegmentNo(3) && disk.orphans[0].1.len() == 128 << 10);
    assert_eq!(
        (recovered.report.set_aside, recovered.report.segments),
        (1, 2)
    );
    assert_eq!(recovered.set_aside, [SegmentNo(3)]);
    assert!(recovered.report.truncated_bytes > 40_000);
    let kept = disk.tails.values().map(|tail| tail.len() as u64);
    assert!(kept.eq([recovered.report.truncated_bytes]));
}

#[test]
fn a_crash_at_any_call_of_recovery_changes_nothing() {
    let (disk, _) = damaged();
    let (expected, records) = read_back(&mut disk.clone()).unwrap();
    let mut random = Random(7);
    for power in [false, true] {
        let mut call = 0;
        loop {
            let mut disk = disk.clone();
            disk.faults.files_call = Some(call);
            match recover(&mut disk, SHARD, &mut |_| {}) {
                Ok(_) => break,
                Err(RecoverError::Files(FilesError::Os { errno: 5, .. })) => {}
                Err(error) => panic!("call {call}: {error}"),
            }
            if power {
                disk.power_cut(&mut random)
            } else {
                disk.kill()
            }
            let (recovered, seen) = read_back(&mut disk).unwrap();
            assert_eq!(recovered.start, expected.start, "call {call}");
            assert_eq!(seen, records, "call {call}");
            assert_eq!(disk.segments(), [1, 2]);
            assert_eq!((disk.orphans.len(), disk.tails.len()), (1, 1));
            call += 1;
        }
        assert!(call > 20, "{call} calls");
    }
}

/// A footer promises that the records before it are on the device: also one that recovery wrote.
#[test]
fn a_power_cut_while_recovery_seals_never_leaves_a_footer_without_its_records() {
    let mut rig = Rig::new();
    let records: Vec<_> = (0..3)
        .map(|n| Owned::put(n, b"key", &[n as u8; 700]))
        .collect();
    rig.write(&records);
    rig.disk.kill();
    // A full segment: the footer makes the file longer, so that it ends it before the cut does.
    let data_end = rig.log.segments()[0].data_end;
    rig.disk.bytes_mut(SegmentNo(1)).truncate(data_end as usize);
    let mut random = Random(11);
    let (mut call, mut lost) = (0, 0);
    loop {
        let mut done = false;
        for _ in 0..400 {
            let mut disk = rig.disk.clone();
            disk.faults.files_call = Some(call);
            done = recover(&mut disk, SHARD, &mut |_| {}).is_ok();
            disk.power_cut(&mut random);
            let (_, seen) = read_back(&mut disk).unwrap();
            assert_eq!(seen, records[..seen.len()], "call {call}");
            assert!(!done || seen == records, "recovery was over");
            lost += usize::from(seen.len() < records.len());
        }
        if done {
            break;
        }
        call += 1;
    }
    assert!(lost > 0);
}

#[test]
fn files_that_no_crash_explains_are_refused_and_left_alone() {
    let (disk, _) = small(true);
    let one = SegmentNo(1);
    let file = disk.path(one);
    let reseal_header = |disk: &mut MemoryDisk, at: usize, byte: u8| {
        let bytes = disk.bytes_mut(one);
        bytes[at] = byte;
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
    };

    let mut newer = disk.clone();
    reseal_header(&mut newer, 8, FORMAT_VERSION as u8 + 1);
    let expected = RecoverError::NewerFormat {
        file: file.clone(),
        found: FORMAT_VERSION + 1,
        known: FORMAT_VERSION,
    };
    assert_eq!(refused(&newer), expected);

    let mut foreign = disk.clone();
    reseal_header(&mut foreign, 12, 9);
    let expected = RecoverError::Foreign {
        file: file.clone(),
        shard: ShardNo(9),
        segment: one,
    };
    assert_eq!(refused(&foreign), expected);

    let mut settled = disk.clone();
    reseal_header(&mut settled, 44, 2);
    let expected = RecoverError::DamagedHeader { file: file.clone() };
    assert_eq!(refused(&settled), expected, "more than was written");

    let mut other = disk.clone();
    other.bytes_mut(one)[0] = b'X';
    assert_eq!(
        refused(&other),
        RecoverError::NotASegment { file: file.clone() }
    );

    let mut zeroed = disk.clone();
    zeroed.bytes_mut(one)[..512].fill(0);
    assert_eq!(
        refused(&zeroed),
        RecoverError::DamagedHeader { file: file.clone() }
    );

    let mut gap = disk.clone();
    *gap.bytes_mut(SegmentNo(3)) = vec![0; 100];
    assert_eq!(
        refused(&gap),
        RecoverError::Missing {
            file: gap.path(SegmentNo(2))
        }
    );

    let mut copied = disk.clone();
    *copied.bytes_mut(SegmentNo(2)) = disk.clone().bytes_mut(one).clone();
    assert!(matches!(
        refused(&copied),
        RecoverError::Foreign {
            segment: SegmentNo(1),
            ..
        }
    ));
}

#[test]
fn a_valid_record_of_a_newer_program_stops_the_start() {
    let (mut disk, _) = small(false);
    let bytes = disk.bytes_mut(SegmentNo(1));
    let seed = u32::from_le_bytes(bytes[60..64].try_into().unwrap());
    bytes[64 + 4] = 200;
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&bytes[68..64 + 40 + 7]);
    let checksum = hasher.finalize();
    bytes[64..68].copy_from_slice(&checksum.to_le_bytes());
    let expected = RecoverError::UnknownRecord {
        file: disk.path(SegmentNo(1)),
        offset: 64,
        kind: 200,
        flags: 0,
    };
    assert_eq!(refused(&disk), expected);
}

#[test]
fn a_header_lost_to_a_power_cut_ends_the_log() {
    let mut rig = Rig::new();
    rig.write(&few_records());
    rig.disk.kill();
    rig.disk.bytes_mut(SegmentNo(1))[..512].fill(0);
    let (recovered, seen) = read_back(&mut rig.disk).unwrap();
    assert!(seen.is_empty() && recovered.start == LogStart::empty());
    // Something was there: it is kept.
    assert_eq!(
        rig.disk.orphans.len(),
        usize::from(recovered.report.set_aside == 1)
    );
    assert!(rig.disk.segments().is_empty());
}

/// Writes the files of a disk in memory into a real directory.
fn to_directory(disk: &mut MemoryDisk, directory: &Directory) {
    for segment in disk.segments() {
        let segment = SegmentNo(segment);
        std::fs::write(directory.path(segment), disk.bytes_mut(segment)).unwrap();
    }
}

#[test]
fn a_real_directory_recovers_as_memory_does() {
    let place = tempfile::tempdir().unwrap();
    let mut directory = Directory::new(place.path());
    let (mut disk, _) = damaged();
    to_directory(&mut disk, &directory);
    let expected = read_back(&mut disk).unwrap();
    let found = read_back(&mut directory).unwrap();
    assert_eq!(found, expected);
    for segment in disk.segments() {
        let segment = SegmentNo(segment);
        assert_eq!(
            &std::fs::read(directory.path(segment)).unwrap(),
            disk.bytes_mut(segment)
        );
    }
    let again = read_back(&mut directory).unwrap();
    assert_eq!((again.0.start, again.1), (expected.0.start, expected.1));
    assert!(place.path().join("00000003.seg.orphan-1").exists());
}

/// Prints the speed of recovery, unsealed and sealed; run it in release, with `--nocapture`.
#[test]
#[ignore = "a measurement: half a gigabyte of files"]
fn speed_of_recovery() {
    for value_bytes in [300, 1000, 4096, 65536] {
        let place = tempfile::tempdir().unwrap();
        let mut directory = Directory::new(place.path());
        let value = vec![b'v'; value_bytes];
        let id = ObjectId::of_blob(&value);
        let (mut sequence, mut previous, mut total) = (1, 0, 0);
        for number in 1..=4 {
            let header = SegmentHeader {
                version: FORMAT_VERSION,
                shard: SHARD,
                segment: SegmentNo(number),
                log_id: CONFIG.log_id,
                first: Sequence(sequence),
                take: 0,
                previous,
                settled: SegmentNo(0),
                synced: Sequence(0),
            };
            let mut bytes = header.encode().to_vec();
            previous = header.checksum();
            while bytes.len() < 64 << 20 {
                let key = format!("conversation/{sequence}/message");
                let record = Record {
                    head: Head::Put {
                        branch: BranchNo(0),
                        agent: AgentNo(1),
                        key: key.as_bytes(),
                        kind: ObjectKind::Blob,
                        id,
                        value_bytes: value_bytes as u64,
                    },
                    payload: Some(&value),
                };
                let encoded = encode(&record, Sequence(sequence), 0, previous, &mut bytes);
                (previous, sequence) = (encoded.checksum, sequence + 1);
            }
            total += bytes.len() - SEGMENT_HEADER_BYTES;
            std::fs::write(directory.path(header.segment), bytes).unwrap();
        }
        let start = std::time::Instant::now();
        let mut rounds = 0;
        while rounds * value_bytes < total {
            assert!(ObjectKind::Blob.id_of(std::hint::black_box(&value)) == id);
            rounds += 1;
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{value_bytes} B, bare hash: {:.2} GB/s",
            total as f64 / seconds / 1e9
        );
        for round in ["scan", "footers"] {
            let mut records = 0u64;
            let mut keys = 0;
            if round != "footers" {
                // Without repairs, which would sync: read the page cache only.
                let start = std::time::Instant::now();
                let mut dry = DryRun(&mut directory);
                recover(&mut dry, SHARD, &mut |_| records += 1).unwrap();
                let seconds = start.elapsed().as_secs_f64();
                println!(
                    "{value_bytes} B, scan: {:.2} GB/s, {:.2} M records/s",
                    total as f64 / seconds / 1e9,
                    records as f64 / seconds / 1e6
                );
                recover(&mut directory, SHARD, &mut |_| {}).unwrap();
            } else {
                let start = std::time::Instant::now();
                let recovered = recover(&mut directory, SHARD, &mut |record| {
                    keys += record.record_bytes as usize;
                    records += 1;
                })
                .unwrap();
                let seconds = start.elapsed().as_secs_f64();
                assert_eq!((recovered.report.sealed, keys), (4, total));
                println!(
                    "{value_bytes} B, footers: {:.2} GB/s of segment, {:.2} M records/s",
                    total as f64 / seconds / 1e9,
                    records as f64 / seconds / 1e6
                );
            }
        }
    }
}

/// Reads of a directory; changes nothing.
struct DryRun<'a>(&'a mut Directory);

impl SegmentFiles for DryRun<'_> {
    fn list(&mut self) -> Result<Vec<crate::segment::SegmentFile>, FilesError> {
        self.0.list()
    }
    fn read_at(&mut self, s: SegmentNo, o: u64, b: &mut [u8]) -> Result<usize, FilesError> {
        self.0.read_at(s, o, b)
    }
    fn write_at(&mut self, _: SegmentNo, _: u64, _: &[u8]) -> Result<(), FilesError> {
        Ok(())
    }
    fn sync(&mut self, _: SegmentNo) -> Result<(), FilesError> {
        Ok(())
    }
    fn truncate(&mut self, _: SegmentNo, _: u64) -> Result<(), FilesError> {
        Ok(())
    }
    fn data_from(&mut self, s: SegmentNo, o: u64) -> Result<Option<u64>, FilesError> {
        self.0.data_from(s, o)
    }
    fn keep_tail(&mut self, _: SegmentNo, _: u64, _: u64, _: u32) -> Result<(), FilesError> {
        Ok(())
    }
    fn set_aside(&mut self, _: SegmentNo) -> Result<(), FilesError> {
        Ok(())
    }
    fn remove_empty(&mut self, _: SegmentNo) -> Result<(), FilesError> {
        Ok(())
    }
    fn sync_directory(&mut self) -> Result<(), FilesError> {
        Ok(())
    }
    fn path(&self, s: SegmentNo) -> std::path::PathBuf {
        self.0.path(s)
    }
}
