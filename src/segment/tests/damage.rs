//! Bytes that changed after they were written: what had been synced is never missing in silence,
//! what is cut off is kept.
//!
//! Floor 1, tests only.

use super::*;
use crate::segment::files::tail_file_name;
use crate::segment::format::{SEGMENT_HEADER_BYTES, decode, encode};
use crate::segment::header::SegmentHeader;
use crate::segment::{Cut, Directory, DiskError, FilesError, Location};

const ONE: SegmentNo = SegmentNo(1);

/// A record in its file.
#[derive(Debug, Clone, Copy)]
struct Laid {
    start: usize,
    payload: usize,
    padding: usize,
    end: usize,
}

/// Where the records of a segment lie.
fn laid(disk: &MemoryDisk, segment: SegmentNo) -> Vec<Laid> {
    let mut disk = disk.clone();
    let bytes = disk.bytes_mut(segment);
    let mut seed = SegmentHeader::decode(bytes.first_chunk().unwrap())
        .unwrap()
        .checksum();
    let (mut start, mut found) = (SEGMENT_HEADER_BYTES, Vec::new());
    while let Ok(record) = decode(&bytes[start..], seed) {
        let payload = start + record.head_bytes as usize;
        let padding = payload + record.payload_bytes.unwrap_or(0) as usize;
        let end = start + record.record_bytes as usize;
        found.push(Laid {
            start,
            payload,
            padding,
            end,
        });
        (start, seed) = (end, record.checksum);
    }
    found
}

fn flip(disk: &mut MemoryDisk, segment: SegmentNo, at: usize) {
    disk.bytes_mut(segment)[at] ^= 1 << (at * 5 % 8);
    disk.sync_all();
}

/// Records 1 to 7, synced; record 8 says so; 9 to 15 follow. All in segment 1, with the records.
fn synced_then_more() -> (MemoryDisk, Vec<Owned>) {
    let mut rig = Rig::new();
    rig.write(&few_records());
    rig.log.sync_wanted(rig.log.last());
    rig.turn();
    rig.write(&few_records());
    rig.disk.kill();
    let (_, records) = read_all(&mut rig.disk.clone()).unwrap();
    assert_eq!(records[7], Owned::Synced(7, 8));
    assert_eq!(
        (&records[..7], &records[8..]),
        (&few_records()[..], &few_records()[..])
    );
    (rig.disk, records)
}

/// Recovers and compares: all of `records`, of which the payload of one, by its index, is damaged.
#[track_caller]
fn one_damaged(disk: &mut MemoryDisk, records: &[Owned], index: usize) {
    let mut told = Vec::new();
    let mut tried = disk.clone();
    recover(&mut tried, SHARD, &mut |record| {
        if record.damaged {
            told.push((record.sequence.0, record.payload.unwrap()));
        }
    })
    .unwrap();
    let (recovered, seen) = read_all(disk).unwrap();
    assert_eq!(told, [(index as u64 + 1, recovered.damaged[0])]);
    assert_eq!((recovered.report.damaged, recovered.damaged.len()), (1, 1));
    assert_eq!(seen.len(), records.len());
    for (at, (seen, record)) in seen.iter().zip(records).enumerate() {
        assert_eq!(seen.head(), record.head());
        assert_eq!(seen == record, at != index, "record {at}");
    }
    // From now on a footer stands for it: reads find out.
    let (again, _) = read_all(disk).unwrap();
    assert_eq!((again.report.damaged, again.start), (0, recovered.start));
    assert_eq!(again.report.sealed, again.report.segments);
}

#[test]
fn a_flipped_bit_in_an_unsealed_log_never_costs_what_was_synced() {
    let (disk, records) = synced_then_more();
    let places = laid(&disk, ONE);
    assert_eq!(places.len(), 15);
    let data_end = places[14].end;
    for at in 0..data_end + 16 {
        let mut disk = disk.clone();
        flip(&mut disk, ONE, at);
        let Some(index) = places.iter().position(|laid| at < laid.end) else {
            // Behind the end: nobody knows what it is, so it is kept.
            let (recovered, seen) = read_all(&mut disk).unwrap();
            assert_eq!(seen, records);
            // Or it is a byte that a footer would have there.
            let kept = [0, (at - data_end) as u64 + 1];
            assert!(
                kept.contains(&recovered.report.truncated_bytes),
                "byte {at}"
            );
            continue;
        };
        let Laid {
            start,
            payload,
            padding,
            ..
        } = places[index];
        match at {
            0..8 => assert!(matches!(refused(&disk), RecoverError::NotASegment { .. })),
            8..64 => assert!(matches!(refused(&disk), RecoverError::DamagedHeader { .. })),
            _ if at >= padding => {
                let (recovered, seen) = read_all(&mut disk).unwrap();
                assert_eq!((seen, recovered.cut), (records.clone(), None));
            }
            _ if index >= 7 => {
                // Nothing says that it was synced: it may be what a power cut left.
                let bytes = disk.bytes_mut(ONE)[start..data_end].to_vec();
                let (recovered, seen) = read_all(&mut disk).unwrap();
                assert_eq!(seen, records[..index], "byte {at}");
                let Cut { at: cut, mark, .. } = recovered.cut.unwrap();
                assert_eq!((cut.segment, cut.offset as usize), (ONE, start));
                let kept = &disk.tails[&tail_file_name(ONE, start as u64, mark)];
                assert_eq!(kept[..], bytes[..kept.len()]);
                assert!(bytes[kept.len()..].iter().all(|byte| *byte == 0));
                assert_eq!(recovered.report.truncated_bytes, kept.len() as u64);
            }
            _ if at < payload => {
                let expected = RecoverError::DamagedRecord {
                    file: disk.path(ONE),
                    offset: start as u64,
                    sequence: Sequence(index as u64 + 1),
                    synced: Sequence(7),
                };
                assert_eq!(refused(&disk), expected, "byte {at}");
            }
            _ => one_damaged(&mut disk, &records, index),
        }
    }
}

#[test]
fn a_flipped_bit_in_a_sealed_log_costs_no_record() {
    let (mut disk, records) = synced_then_more();
    read_all(&mut disk).unwrap();
    let length = disk.bytes_mut(ONE).len();
    for at in SEGMENT_HEADER_BYTES..length {
        let mut disk = disk.clone();
        flip(&mut disk, ONE, at);
        let (recovered, seen) = read_all(&mut disk).unwrap();
        assert_eq!(recovered.start.last, Sequence(15), "byte {at}");
        for (seen, record) in seen.iter().zip(&records) {
            let payload = seen.record().payload.unwrap_or_default();
            // Payloads of a sealed segment are verified when they are read.
            let caught = !seen.head().verify(payload);
            assert_eq!(seen.head(), record.head());
            assert!(seen == record || caught, "byte {at}");
        }
    }
}

/// Three records of 40 kB fill a segment.
fn big(n: u32) -> Owned {
    Owned::put(n, b"key", &n.to_le_bytes().repeat(10_000))
}

/// Damages the payload, then the head, of the second record of segment 1, of which something else
/// says that it was synced up to `synced`.
#[track_caller]
fn proven_elsewhere(disk: &MemoryDisk, records: &[Owned], synced: u64) {
    let second = laid(disk, ONE)[1];
    let mut rotten = disk.clone();
    flip(&mut rotten, ONE, second.payload + 1000);
    one_damaged(&mut rotten, records, 1);
    let mut rotten = disk.clone();
    flip(&mut rotten, ONE, second.start + 9);
    let expected = RecoverError::DamagedRecord {
        file: disk.path(ONE),
        offset: second.start as u64,
        sequence: Sequence(2),
        synced: Sequence(synced),
    };
    assert_eq!(refused(&rotten), expected);
}

#[test]
fn the_header_of_the_next_segment_is_proof() {
    let mut rig = Rig::new();
    let records: Vec<_> = (0..4).map(big).collect();
    rig.write(&records[..3]);
    rig.log.sync_wanted(Sequence(3));
    rig.turn();
    rig.write(&records[3..]);
    assert_eq!(rig.disk.queued().count(), 1, "the seal of segment 1");
    rig.disk.kill();
    assert_eq!(read_all(&mut rig.disk.clone()).unwrap().1, records);
    proven_elsewhere(&rig.disk, &records, 3);
}

#[test]
fn the_footer_of_a_later_segment_is_proof() {
    let mut rig = Rig::new();
    rig.disk.faults.seal = Some(DiskError::NoSpace);
    let records: Vec<_> = (0..4).map(big).collect();
    rig.write(&records);
    rig.turn();
    rig.disk.faults.seal = None;
    rig.log.end_segment(&mut rig.disk);
    rig.turn();
    rig.disk.kill();
    proven_elsewhere(&rig.disk, &records, 4);
}

#[test]
fn a_footer_of_which_only_the_trailer_is_left_is_proof() {
    let mut rig = Rig::new();
    let records: Vec<_> = (0..3).map(big).collect();
    rig.write(&records);
    rig.log.end_segment(&mut rig.disk);
    rig.turn();
    rig.disk.kill();
    let data_end = rig.log.segments()[0].data_end as usize;
    flip(&mut rig.disk, ONE, data_end + 50);
    assert_eq!(read_all(&mut rig.disk.clone()).unwrap().1, records);
    proven_elsewhere(&rig.disk, &records, 3);
}

/// The first sector of a segment is zero: a power cut does that before the first sync.
#[test]
fn a_lost_header_of_a_synced_segment_is_damage() {
    let mut rig = Rig::new();
    rig.write(&(0..4).map(big).collect::<Vec<_>>());
    rig.turn();
    let two = SegmentNo(2);
    for synced in [false, true] {
        if synced {
            rig.log.sync_wanted(Sequence(4));
            rig.turn();
            rig.write(&few_records());
        }
        let mut disk = rig.disk.clone();
        disk.kill();
        disk.bytes_mut(two)[..512].fill(0);
        if synced {
            let expected = RecoverError::DamagedRecord {
                file: disk.path(two),
                offset: 0,
                sequence: Sequence(4),
                synced: Sequence(4),
            };
            assert_eq!(refused(&disk), expected);
        } else {
            assert_eq!(read_all(&mut disk).unwrap().1.len(), 3);
            assert_eq!(disk.orphans.len(), 1);
        }
    }
}

#[test]
fn what_the_error_says_leads_to_the_records_before_the_damage() {
    let mut rig = Rig::new();
    rig.disk.faults.seal = Some(DiskError::NoSpace);
    let records: Vec<_> = (0..8).map(big).collect();
    rig.write(&records);
    rig.log.sync_wanted(rig.log.last());
    rig.turn();
    rig.write(&few_records());
    rig.disk.kill();
    let (mut disk, two) = (rig.disk, SegmentNo(2));
    let place = laid(&disk, two)[1].start;
    flip(&mut disk, two, place);
    let RecoverError::DamagedRecord {
        file,
        offset,
        sequence,
        ..
    } = refused(&disk)
    else {
        panic!("not refused for its record");
    };
    assert_eq!((file, offset), (disk.path(two), place as u64));
    disk.bytes_mut(two).truncate(offset as usize);
    for number in [3, 4] {
        disk.set_aside(SegmentNo(number)).unwrap();
    }
    let (recovered, _) = read_all(&mut disk).unwrap();
    assert_eq!(recovered.start.last.0, sequence.0 - 1);
    assert_eq!((recovered.cut, recovered.report.damaged), (None, 0));
}

/// An agent can write what looks like a record into a value. It must not be able to make an
/// ordinary power cut look like damage.
#[test]
fn a_payload_that_looks_like_proof_is_none() {
    for log_id in [LogId(0), CONFIG.log_id] {
        let mut forged = Vec::new();
        let upto = Sequence(1000);
        for sequence in (1..20).map(Sequence) {
            let proof = synced_proof(log_id, sequence, upto);
            let synced = Head::Synced { upto, proof };
            encode(&synced.into(), sequence, 0, 0, &mut forged);
        }
        let mut rig = Rig::new();
        rig.write(&[big(1), Owned::put(1, b"12345678", &forged)]);
        rig.disk.kill();
        let mut disk = rig.disk;
        assert_eq!(laid(&disk, ONE)[1].payload % 8, 0);
        let torn = laid(&disk, ONE)[0].start;
        flip(&mut disk, ONE, torn);
        if log_id == CONFIG.log_id {
            // With the secret it would be: the test looks where recovery looks.
            assert!(matches!(refused(&disk), RecoverError::DamagedRecord { .. }));
        } else {
            assert!(read_all(&mut disk).unwrap().1.is_empty());
            assert_eq!(disk.orphans.len(), 1);
        }
    }
}

/// Rot in what was synced, a tear in what was not, and the only proof of the former behind the
/// latter, in bytes that recovery cuts or sets aside.
fn rot_and_tear(next_segment: bool) -> MemoryDisk {
    let mut rig = Rig::new();
    rig.write(&few_records());
    rig.log.sync_wanted(Sequence(7));
    rig.log.drive(&mut rig.disk);
    if next_segment {
        rig.write(&[big(0), big(1), Owned::put(1, b"k", &[7; 30_000])]);
    } else {
        rig.write(&few_records());
    }
    rig.turn();
    assert_eq!(rig.log.synced(), Sequence(7));
    let torn = laid(&rig.disk, ONE)[8].start;
    rig.write(&[big(5)]);
    rig.disk.kill();
    assert_eq!(rig.log.segments().len(), 1 + usize::from(next_segment));
    let rotten = laid(&rig.disk, ONE)[1].payload;
    flip(&mut rig.disk, ONE, rotten);
    flip(&mut rig.disk, ONE, torn);
    rig.disk
}

#[test]
fn a_crash_at_any_call_keeps_a_damaged_payload_from_ending_the_log() {
    let mut random = Random(3);
    for (next_segment, power) in [(false, false), (false, true), (true, false), (true, true)] {
        let disk = rot_and_tear(next_segment);
        let mut after = disk.clone();
        let (expected, records) = read_all(&mut after).unwrap();
        assert_eq!((expected.start.last.0, expected.report.damaged), (8, 1));
        assert_eq!(after.orphans.len(), usize::from(next_segment));
        assert_eq!(after.tails.len(), 1);
        let mut call = 0;
        loop {
            let mut done = false;
            for _ in 0..if power { 20 } else { 1 } {
                let mut disk = disk.clone();
                disk.faults.files_call = Some(call);
                match recover(&mut disk, SHARD, &mut |_| {}) {
                    Ok(_) => done = true,
                    Err(RecoverError::Files(FilesError::Os { errno: 5, .. })) => {}
                    Err(error) => panic!("call {call}: {error}"),
                }
                if power {
                    disk.power_cut(&mut random)
                } else {
                    disk.kill()
                }
                let (recovered, seen) = read_all(&mut disk).unwrap();
                assert_eq!(recovered.start, expected.start, "call {call}");
                assert_eq!(seen, records, "call {call}");
                assert_eq!((&disk.tails, &disk.orphans), (&after.tails, &after.orphans));
                assert_eq!(disk.segments(), [1]);
            }
            if done {
                break;
            }
            call += 1;
        }
        assert!(call > 20, "{call} calls");
    }
}

/// What a power cut leaves of a footer is not worth a file.
#[test]
fn half_a_footer_is_not_kept() {
    let mut rig = Rig::new();
    let records: Vec<_> = (0..40).map(|n| Owned::put(n, b"key", b"value")).collect();
    rig.write(&records);
    rig.disk.sync_all();
    let data_end = rig.log.segments()[0].data_end as usize;
    rig.log.end_segment(&mut rig.disk);
    let mut random = Random(5);
    let mut torn = 0;
    for _ in 0..200 {
        let mut disk = rig.disk.clone();
        disk.power_cut(&mut random);
        let begun = disk.bytes_mut(ONE)[data_end..]
            .iter()
            .any(|byte| *byte != 0);
        let (recovered, seen) = read_all(&mut disk).unwrap();
        assert_eq!(seen, records);
        torn += u32::from(begun && recovered.report.sealed == 0);
        assert!(disk.tails.is_empty() && recovered.cut.is_none());
    }
    assert!(torn > 20, "{torn}");
}

#[test]
fn a_real_directory_keeps_what_is_cut_off() {
    let (mut disk, records) = synced_then_more();
    // A hole in the middle, and zeros at the end.
    disk.bytes_mut(ONE)[120_000] = 1;
    let place = tempfile::tempdir().unwrap();
    let mut directory = Directory::new(place.path());
    std::fs::write(directory.path(ONE), disk.bytes_mut(ONE)).unwrap();
    let data_end = laid(&disk, ONE)[14].end;
    for round in 0..2 {
        let (recovered, seen) = read_all(&mut directory).unwrap();
        assert_eq!(seen, records);
        let cut = recovered.cut.filter(|_| round == 0);
        let Some(Cut { at, sequence, mark }) = cut else {
            assert_eq!(round, 1);
            continue;
        };
        let expected = Location {
            segment: ONE,
            offset: data_end as u32,
            bytes: (120_001 - data_end) as u32,
        };
        assert_eq!((at, sequence), (expected, Sequence(16)));
        let name = tail_file_name(ONE, data_end as u64, mark);
        let kept = std::fs::read(place.path().join(&name)).unwrap();
        assert_eq!(kept, disk.bytes_mut(ONE)[data_end..120_001]);
        let names = std::fs::read_dir(place.path()).unwrap();
        assert_eq!(names.count(), 2, "nothing half made is left");
        // One copy is enough, also after a crash that left the bytes where they were.
        std::fs::write(place.path().join(&name), "first").unwrap();
        directory.keep_tail(ONE, at.offset.into(), 4, mark).unwrap();
        assert_eq!(std::fs::read(place.path().join(&name)).unwrap(), b"first");
    }
}
