//! The append side: flush, roll over, sync, faults.
//!
//! Floor 1, tests only.

use super::*;
use crate::segment::format::SEGMENT_HEADER_BYTES;
use crate::segment::memory::FailedWrite;
use crate::segment::{Disk, DiskError, IoReply, IoRequest, Location, LogError, Read};

const EIO: DiskError = DiskError::Os {
    call: "fdatasync",
    segment: SegmentNo(1),
    errno: 5,
};

fn big(n: u32) -> Owned {
    Owned::put(n, b"key", &n.to_le_bytes().repeat(10_000))
}

#[test]
fn nothing_is_appended_before_there_is_a_segment() {
    let mut log = Log::new(CONFIG, LogStart::empty());
    let mut disk = MemoryDisk::new();
    assert_eq!(log.ready(100), Err(NotReady::Wait));
    let refused = log.append(&big(1).record());
    assert_eq!(refused, Err(LogError::NotReady(NotReady::Wait)));
    log.drive(&mut disk);
    log.drive(&mut disk);
    let create = IoRequest::Create {
        segment: SegmentNo(1),
        bytes: CONFIG.segment_bytes,
    };
    assert_eq!(disk.queued().collect::<Vec<_>>(), [&create]);
    disk.run_io();
    assert_eq!(log.on_reply(disk.poll().unwrap()), LogEvent::SpareReady);
    assert_eq!(log.ready(log.batch_bytes_max()), Ok(()));
    assert_eq!(log.append(&big(1).record()).unwrap().sequence, Sequence(1));
}

#[test]
fn one_write_for_everything_buffered_and_reads_see_both_sides() {
    let mut rig = Rig::new();
    let mut places = Vec::new();
    for round in 0..2 {
        for n in 0..20 {
            let owned = Owned::put(n, b"k", &[round, n as u8, 3]);
            let at = rig.append(&owned);
            assert_eq!(at.record_bytes as usize, owned.record().record_bytes());
            places.push((at.payload, [round, n as u8, 3]));
        }
        for (at, value) in &places {
            assert_eq!(rig.log.read(&mut rig.disk, *at), Read::Here(value));
        }
        rig.flush();
        assert_eq!(rig.disk.writes, u64::from(round) + 1);
        assert_eq!(
            (rig.log.flushed(), rig.log.last()),
            (rig.log.last(), rig.log.flushed())
        );
        rig.turn();
    }
    rig.flush();
    assert_eq!(rig.disk.writes, 2, "nothing to write");
    let (at, value) = places[30];
    rig.disk.cold.push((at.segment, at.offset..at.offset + 1));
    assert_eq!(rig.log.read(&mut rig.disk, at), Read::Cold);
    let request = IoRequest::Read {
        ticket: 5,
        segment: at.segment,
        offset: at.offset,
        buffer: vec![0; at.bytes as usize],
    };
    rig.disk.submit(request).unwrap();
    rig.disk.run_io();
    let reply = rig.disk.poll().unwrap();
    let expected = IoReply::Read {
        ticket: 5,
        buffer: value.to_vec(),
        result: Ok(()),
    };
    assert_eq!(rig.log.on_reply(reply), LogEvent::NotMine(expected));
    assert_eq!(rig.log.read(&mut rig.disk, at), Read::Here(&value));
    let beyond = Location {
        segment: at.segment,
        offset: 1 << 20,
        bytes: 8,
    };
    let short = DiskError::Short {
        segment: at.segment,
        end: (1 << 20) + 8,
    };
    let request = IoRequest::Read {
        ticket: 6,
        segment: at.segment,
        offset: 1 << 20,
        buffer: vec![0; 8],
    };
    rig.disk.submit(request).unwrap();
    rig.disk.run_io();
    let failed = IoReply::Read {
        ticket: 6,
        buffer: vec![0; 8],
        result: Err(short),
    };
    assert_eq!(rig.disk.poll(), Some(failed));
    assert_eq!(rig.log.read(&mut rig.disk, beyond), Read::Cold);
}

#[test]
fn a_full_segment_is_sealed_and_the_next_one_made_ahead() {
    let mut rig = Rig::new();
    let records: Vec<_> = (0..20).map(big).collect();
    rig.write(&records);
    rig.turn();
    // Three records of 40 kB to a segment.
    let segments = rig.log.segments();
    assert_eq!(segments.len(), 7);
    assert!(
        segments
            .iter()
            .take(6)
            .all(|state| state.last.0 == state.first.0 + 2)
    );
    assert_eq!(rig.disk.segments(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(rig.log.synced(), Sequence(18), "a seal syncs");
    rig.log.sync_wanted(Sequence(20));
    rig.turn();
    assert_eq!((rig.log.synced(), rig.log.dirty_bytes()), (Sequence(20), 0));
    rig.disk.kill();
    let (recovered, seen) = read_back(&mut rig.disk).unwrap();
    assert_eq!(seen, records);
    assert_eq!((recovered.report.sealed, recovered.report.segments), (6, 7));
    let mut states = rig.log.segments().to_vec();
    let sealed = states.iter().map(|state| state.sealed);
    assert_eq!(
        sealed.collect::<Vec<_>>(),
        [[true; 6].as_slice(), &[false]].concat()
    );
    states.iter_mut().for_each(|state| state.sealed = true);
    assert_eq!(recovered.start.segments, states);
    let footer_read = recovered.report.read_bytes < 2 * u64::from(CONFIG.segment_bytes);
    assert!(footer_read, "{:?}", recovered.report);
}

#[test]
fn a_roll_in_the_buffer_reads_back_from_both_segments() {
    let mut rig = Rig::new();
    rig.write(&[big(0), big(1)]);
    rig.turn();
    let writes = rig.disk.writes;
    let places: Vec<_> = (2..4).map(|n| rig.append(&big(n)).payload).collect();
    assert_eq!(places[0].segment.0 + 1, places[1].segment.0);
    for (n, at) in (2u32..4).zip(&places) {
        let value = n.to_le_bytes().repeat(10_000);
        assert_eq!(rig.log.read(&mut rig.disk, *at), Read::Here(&value));
    }
    assert_eq!(rig.disk.writes, writes, "still buffered");
    rig.flush();
    assert_eq!(rig.disk.writes, writes + 2);
    for (n, at) in (2u32..4).zip(&places) {
        let value = n.to_le_bytes().repeat(10_000);
        assert_eq!(rig.log.read(&mut rig.disk, *at), Read::Here(&value));
    }
}

#[test]
fn no_space_for_a_segment_waits_for_a_retry() {
    let mut rig = Rig::new();
    rig.disk.faults.create = Some(DiskError::NoSpace);
    let records: Vec<_> = (0..3).map(big).collect();
    rig.write(&records);
    rig.turn();
    assert!(
        rig.events
            .contains(&LogEvent::CreateFailed(DiskError::NoSpace))
    );
    let full = big(3).record().record_bytes();
    assert_eq!(
        rig.log.ready(full),
        Err(NotReady::Failed(DiskError::NoSpace))
    );
    assert_eq!(rig.log.ready(64), Ok(()), "small records still fit");
    rig.log.retry_create(&mut rig.disk);
    assert_eq!(rig.log.ready(full), Err(NotReady::Wait));
    rig.turn();
    assert_eq!(
        rig.log.ready(full),
        Err(NotReady::Failed(DiskError::NoSpace))
    );
    rig.disk.faults.create = None;
    rig.log.retry_create(&mut rig.disk);
    rig.turn();
    rig.write(&[big(3)]);
    rig.disk.kill();
    let (_, seen) = read_back(&mut rig.disk).unwrap();
    assert_eq!(seen, [records, vec![big(3)]].concat());
}

#[test]
fn no_space_for_a_footer_costs_only_the_footer() {
    let mut rig = Rig::new();
    rig.disk.faults.seal = Some(DiskError::NoSpace);
    rig.write(&(0..4).map(big).collect::<Vec<_>>());
    rig.turn();
    assert_eq!((rig.log.synced(), rig.log.read_only()), (Sequence(3), None));
    rig.disk.power_cut(&mut Random(1));
    let (recovered, seen) = read_back(&mut rig.disk).unwrap();
    assert!(seen.len() >= 3 && recovered.report.sealed == 0);
}

#[test]
fn a_failed_flush_drops_what_was_buffered_and_nothing_else() {
    // The write of the old segment, or of the new one, fails in a flush that rolled over.
    for (skip, written) in [
        (0, 0),
        (0, 70),
        (0, 90_000),
        (1, 0),
        (1, 64),
        (1, 300),
        (1, 90_000),
    ] {
        let mut rig = Rig::new();
        let mut kept = vec![big(0), Owned::put(1, b"small", b"1")];
        rig.write(&kept);
        rig.turn();
        let before = (rig.log.segments().to_vec(), rig.log.totals());
        for n in 2..5 {
            rig.append(&big(n));
        }
        rig.disk.faults.write = Some(FailedWrite {
            skip,
            written,
            error: EIO,
        });
        let failed = rig.log.flush(&mut rig.disk).unwrap_err();
        let expected = LogError::Write {
            error: EIO,
            flushed: Sequence(2),
            dropped: 3,
        };
        assert_eq!(failed, expected);
        assert_eq!((rig.log.segments().to_vec(), rig.log.totals()), before);
        assert_eq!((rig.log.last(), rig.log.buffered_bytes()), (Sequence(2), 0));

        // The same again, but for the last: leftovers of the first try must not come back.
        let rest = [big(2), big(3), big(9)];
        rig.turn();
        for record in rest {
            rig.write(std::slice::from_ref(&record));
            kept.push(record);
            let mut disk = rig.disk.clone();
            disk.kill();
            assert_eq!(
                read_back(&mut disk).unwrap().1,
                kept,
                "skip {skip}, {written} B"
            );
        }
    }
}

/// A flush failed after its first record was in the file; the next record did not fit any more
/// and went to the next segment. The leftover carries the sequence that the new record has: taken
/// for valid, it would end the log one segment early and lose an acknowledged write.
#[test]
fn a_leftover_at_the_end_of_a_segment_does_not_hide_the_next() {
    let mut rig = Rig::new();
    rig.write(&[big(0), big(1)]);
    rig.turn();
    rig.append(&Owned::put(2, b"dropped", b"by a failed write"));
    rig.disk.faults.write = Some(FailedWrite {
        skip: 0,
        written: usize::MAX,
        error: EIO,
    });
    rig.log.flush(&mut rig.disk).unwrap_err();
    let large = Owned::put(3, b"large", &[3; 60_000]);
    rig.write(std::slice::from_ref(&large));
    assert_eq!(rig.log.segments().len(), 2);
    // The seal of segment 1 is still queued.
    assert!(
        rig.disk
            .queued()
            .any(|request| matches!(request, IoRequest::Seal { .. }))
    );
    rig.disk.kill();
    assert_eq!(read_back(&mut rig.disk).unwrap().1, [big(0), big(1), large]);
}

#[test]
fn a_header_that_was_written_in_part_is_no_obstacle() {
    for written in 0..SEGMENT_HEADER_BYTES {
        let mut rig = Rig::new();
        rig.append(&big(1));
        rig.disk.faults.write = Some(FailedWrite {
            skip: 0,
            written,
            error: EIO,
        });
        rig.log.flush(&mut rig.disk).unwrap_err();
        let mut disk = rig.disk.clone();
        disk.kill();
        let (recovered, seen) = read_back(&mut disk).unwrap();
        assert!(
            seen.is_empty() && recovered.start == LogStart::empty(),
            "{written} B"
        );
        assert!(disk.segments().is_empty());
        rig.write(&[big(2)]);
        rig.disk.kill();
        assert_eq!(read_back(&mut rig.disk).unwrap().1, [big(2)], "{written} B");
    }
}

#[test]
fn a_failed_sync_is_final() {
    for seal in [false, true] {
        let mut rig = Rig::new();
        rig.write(&[big(0)]);
        rig.log.sync_wanted(Sequence(1));
        rig.turn();
        assert_eq!(rig.log.synced(), Sequence(1));
        rig.disk.faults.sync = Some(EIO);
        if seal {
            rig.write(&[big(1), big(2), big(3)]);
        } else {
            rig.write(&[big(1)]);
            rig.log.sync_wanted(Sequence(9));
        }
        rig.turn();
        assert_eq!(rig.log.read_only(), Some(&EIO));
        assert!(rig.events.contains(&LogEvent::ReadOnly(EIO)));
        rig.disk.faults.sync = None;
        rig.log.sync_wanted(rig.log.flushed());
        rig.turn();
        assert_eq!(rig.log.synced(), Sequence(1), "never called durable");
        assert_eq!(rig.log.ready(64), Err(NotReady::ReadOnly(EIO)));
        assert!(rig.log.append(&big(1).record()).is_err());
        assert_eq!(rig.disk.queued().count(), 0);
    }
}

#[test]
fn a_record_is_synced_only_behind_all_earlier_segments() {
    let mut rig = Rig::new();
    rig.write(&(0..3).map(big).collect::<Vec<_>>());
    rig.turn();
    rig.write(&[big(3)]);
    rig.log.sync_wanted(Sequence(4));
    rig.log.drive(&mut rig.disk);
    rig.log.drive(&mut rig.disk);
    let syncs: Vec<_> = rig.disk.queued().collect();
    assert!(
        matches!(
            syncs[0],
            IoRequest::Seal {
                segment: SegmentNo(1),
                ..
            }
        ),
        "{syncs:?}"
    );
    let sync = IoRequest::Sync {
        segment: SegmentNo(2),
        upto: Sequence(4),
    };
    assert_eq!(syncs.iter().filter(|request| ***request == sync).count(), 1);
    let dirty = rig.log.dirty_bytes();
    assert!(dirty > 160_000, "{dirty}");
    // The sync of segment 2 is answered before the seal of segment 1.
    let synced = |segment, upto| IoReply::Synced {
        segment,
        upto,
        result: Ok(()),
    };
    assert_eq!(
        rig.log.on_reply(synced(SegmentNo(2), Sequence(4))),
        LogEvent::Nothing
    );
    assert_eq!(rig.log.synced(), Sequence(0));
    let sealed = IoReply::Sealed {
        segment: SegmentNo(1),
        upto: Sequence(3),
        result: Ok(()),
    };
    assert_eq!(rig.log.on_reply(sealed), LogEvent::Synced(Sequence(4)));
    assert_eq!(rig.log.dirty_bytes(), 0);
}

#[test]
fn a_full_queue_delays_but_loses_nothing() {
    let mut rig = Rig::new();
    rig.disk.queue_slots = 0;
    rig.write(&[big(0), big(1), big(2)]);
    rig.log.sync_wanted(Sequence(3));
    rig.log.drive(&mut rig.disk);
    assert_eq!(rig.disk.queued().count(), 0);
    rig.disk.queue_slots = 1;
    rig.disk.at_once = true;
    rig.write(&(3..9).map(big).collect::<Vec<_>>());
    rig.log.sync_wanted(Sequence(9));
    rig.turn();
    assert_eq!(rig.log.synced(), Sequence(9));
    rig.disk.kill();
    assert_eq!(read_back(&mut rig.disk).unwrap().1.len(), 9);
}

#[test]
fn steady_appends_keep_their_memory() {
    let mut rig = Rig::new();
    let record = Owned::put(1, b"key", &[1; 100]);
    rig.write(std::slice::from_ref(&record));
    rig.turn();
    let bytes = rig.log.memory_bytes();
    for _ in 0..40 {
        rig.write(std::slice::from_ref(&record));
    }
    assert_eq!(rig.log.memory_bytes(), bytes);
    let totals = rig.log.totals();
    assert_eq!(
        totals.record_bytes,
        41 * record.record().record_bytes() as u64
    );
    rig.log.garbage(SegmentNo(1), 176);
    assert_eq!(rig.log.totals().dead_bytes, 176);
}

/// Says in the log what was synced, once, when something follows; an idle log writes nothing.
#[test]
fn a_sync_is_said_once_and_only_if_something_follows() {
    let mut rig = Rig::new();
    rig.write(&few_records());
    rig.log.sync_wanted(Sequence(7));
    rig.turn();
    assert_eq!(rig.log.synced(), Sequence(7));
    let writes = rig.disk.writes;
    for _ in 0..5 {
        rig.log.sync_wanted(rig.log.last());
        rig.flush();
        rig.turn();
    }
    assert_eq!((rig.disk.writes, rig.log.last()), (writes, Sequence(7)));
    let mut expected = few_records();
    expected.push(Owned::Synced(7, 8));
    for n in 0..3 {
        let record = Owned::put(n, b"k", b"v");
        rig.write(std::slice::from_ref(&record));
        expected.push(record);
    }
    assert_eq!(rig.disk.writes, writes + 3, "no write of its own");
    rig.log.sync_wanted(rig.log.last());
    rig.turn();
    let last = Owned::put(9, b"k", b"v");
    rig.append(&last);
    rig.flush();
    expected.extend([Owned::Synced(11, expected.len() as u64 + 1), last]);
    rig.disk.kill();
    assert_eq!(read_all(&mut rig.disk).unwrap().1, expected);
}

#[test]
fn what_a_failed_flush_dropped_is_said_again() {
    let mut rig = Rig::new();
    rig.write(&few_records());
    rig.log.sync_wanted(Sequence(7));
    rig.turn();
    let record = Owned::put(1, b"k", b"v");
    for attempt in 0..2 {
        rig.disk.faults.write = (attempt == 0).then_some(FailedWrite {
            skip: 0,
            written: 60,
            error: EIO,
        });
        rig.append(&record);
        assert_eq!(rig.log.last(), Sequence(9));
        assert_eq!(rig.log.flush(&mut rig.disk).is_ok(), attempt == 1);
    }
    rig.disk.kill();
    let expected = [few_records(), vec![Owned::Synced(7, 8), record]].concat();
    assert_eq!(read_all(&mut rig.disk).unwrap().1, expected);
}

/// What was granted together fits together, whatever the log has to say in between, and whether or
/// not there is a next segment.
#[test]
fn a_granted_batch_fits_with_what_the_log_says_itself() {
    for (spare, less) in (0..160)
        .step_by(8)
        .flat_map(|less| [(true, less), (false, less)])
    {
        let mut rig = Rig::new();
        rig.disk.faults.create = (!spare).then_some(DiskError::NoSpace);
        rig.write(&[Owned::put(1, b"12345678", &[1; 50_000])]);
        rig.log.sync_wanted(Sequence(1));
        rig.turn();
        let left = CONFIG.segment_bytes - rig.log.segments()[0].data_end;
        let batch = if spare {
            rig.log.batch_bytes_max()
        } else {
            left as usize
        } - less;
        let granted = rig.log.ready(batch);
        assert_eq!(granted.is_ok(), spare || less >= 40, "{less}");
        if granted.is_err() {
            continue;
        }
        // Three records that are as large as what was granted, to the byte.
        let mut rest = batch;
        let records = [30_000, 30_000, 0].map(|bytes| {
            let bytes = if bytes == 0 { rest - 80 } else { bytes };
            let record = Owned::put(2, b"12345678", &vec![2; bytes.min(65_536)]);
            rest -= record.record().record_bytes();
            record
        });
        assert!(rest == 0 || spare);
        let more = (rest > 0).then(|| Owned::put(3, b"12345678", &vec![3; rest - 80]));
        let records = [&records[..], more.as_slice()].concat();
        for record in &records {
            rig.log.append(&record.record()).unwrap();
        }
        rig.flush();
        rig.disk.kill();
        assert_eq!(read_back(&mut rig.disk).unwrap().1[1..], records);
    }
}

#[test]
fn a_log_that_ended_in_order_is_read_by_its_footers_and_goes_on() {
    let mut rig = Rig::new();
    rig.log.end_segment(&mut rig.disk);
    assert!(rig.log.is_sealed(), "nothing to seal");
    rig.write(&few_records());
    rig.append(&big(1));
    rig.log.end_segment(&mut rig.disk);
    assert!(!rig.log.is_sealed(), "not while something is buffered");
    rig.flush();
    // A group commit under way covers everything, and is no seal.
    rig.log.sync_wanted(Sequence(8));
    rig.log.drive(&mut rig.disk);
    rig.log.end_segment(&mut rig.disk);
    rig.log.on_reply(IoReply::Synced {
        segment: SegmentNo(1),
        upto: Sequence(8),
        result: Ok(()),
    });
    assert_eq!(
        (rig.log.synced(), rig.log.is_sealed()),
        (Sequence(8), false)
    );
    rig.turn();
    assert!(rig.log.is_sealed());
    let mut disk = rig.disk.clone();
    disk.kill();
    let (recovered, seen) = read_all(&mut disk).unwrap();
    assert_eq!(seen, [few_records(), vec![big(1)]].concat());
    assert_eq!((recovered.report.sealed, recovered.report.segments), (1, 1));
    assert_eq!(recovered.start.segments, rig.log.segments());
    // The log itself may go on too, in a new segment.
    rig.write(&[big(2)]);
    rig.disk.kill();
    let (recovered, seen) = read_all(&mut rig.disk).unwrap();
    assert_eq!(seen[8..], [big(2)], "the header says what was synced");
    assert_eq!((recovered.report.sealed, recovered.report.segments), (1, 2));
}

/// A footer says that everything before it is on the device.
#[test]
fn a_seal_waits_until_earlier_segments_are_synced() {
    let mut rig = Rig::new();
    rig.disk.faults.seal = Some(DiskError::NoSpace);
    rig.write(&(0..4).map(big).collect::<Vec<_>>());
    rig.log.end_segment(&mut rig.disk);
    let queued = |rig: &Rig| {
        let seals = rig.disk.queued().filter_map(|request| match request {
            IoRequest::Seal { segment, .. } => Some(segment.0),
            _ => None,
        });
        seals.collect::<Vec<_>>()
    };
    assert_eq!(queued(&rig), [1]);
    rig.disk.run_io();
    rig.poll();
    rig.log.drive(&mut rig.disk);
    assert_eq!(queued(&rig), [0; 0], "segment 1 is to be synced first");
    rig.disk.run_io();
    rig.poll();
    rig.log.drive(&mut rig.disk);
    assert_eq!((queued(&rig), rig.log.synced()), (vec![2], Sequence(3)));
    rig.turn();
    assert_eq!((rig.log.synced(), rig.log.is_sealed()), (Sequence(4), true));
}

#[test]
fn a_frozen_log_writes_and_removes_nothing() {
    let start = LogStart {
        next_segment: SegmentNo(5),
        last: Sequence(10),
        settled: SegmentNo(4),
        dropped: vec![SegmentNo(2)],
        ..LogStart::empty()
    };
    let mut disk = MemoryDisk::new();
    let mut log = Log::new(CONFIG, start.clone());
    log.drive(&mut disk);
    let removal = IoRequest::Remove {
        segment: SegmentNo(2),
    };
    assert!(disk.queued().any(|request| *request == removal));

    let mut disk = MemoryDisk::new();
    let mut log = Log::new(CONFIG, start);
    log.freeze();
    log.sync_wanted(Sequence(10));
    log.drive(&mut disk);
    log.end_segment(&mut disk);
    assert_eq!(disk.queued().count(), 0);
    assert_eq!(log.ready(100), Err(NotReady::ReadOnly(DiskError::ReadOnly)));
    assert_eq!(log.flush(&mut disk), Ok(()));
}

/// What is written ahead costs one write a stretch, takes no record with it, and is nothing to a restart.
#[test]
fn zeros_are_written_ahead_of_awaited_syncs_only() {
    let mut rig = Rig::new();
    let records: Vec<_> = (0..9)
        .map(|i| Owned::put(1, b"key", &[i as u8; 100]))
        .collect();
    rig.write(&records[..1]);
    rig.log.sync_wanted(rig.log.last());
    rig.turn();
    assert_eq!(rig.disk.writes, 1);
    for record in &records[1..] {
        rig.write(std::slice::from_ref(record));
        rig.log.sync_awaited(rig.log.last());
        rig.turn();
        assert_eq!(rig.log.synced(), rig.log.last());
    }
    // The rest of a small segment is one stretch.
    assert_eq!(rig.disk.writes, 1 + 8 + 1);
    rig.disk.kill();
    assert_eq!(read_back(&mut rig.disk).unwrap().1, records);
}

/// A disk that refuses the zeros makes the next syncs slower, and nothing else.
#[test]
fn zeros_that_are_refused_are_not_missed() {
    let mut rig = Rig::new();
    let records: Vec<_> = (0..4).map(|i| Owned::put(1, b"key", &[i; 100])).collect();
    rig.write(&records[..2]);
    rig.disk.faults.write = Some(FailedWrite {
        skip: 0,
        written: 64,
        error: DiskError::NoSpace,
    });
    rig.log.sync_awaited(rig.log.last());
    rig.turn();
    assert_eq!(rig.log.synced(), rig.log.last());
    rig.write(&records[2..]);
    rig.disk.kill();
    assert_eq!(read_back(&mut rig.disk).unwrap().1, records);
}
