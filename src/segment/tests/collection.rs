//! Segments that are settled, dropped and removed: in order, and with a crash at any point.
//!
//! Floor 1, tests only. What a round would say again is one record here; the model is the list of
//! records by sequence, and the segment that each went to.

use std::collections::BTreeSet;

use super::*;
use crate::segment::footer::TRAILER_BYTES;
use crate::segment::format::{FORMAT_VERSION, SEGMENT_HEADER_BYTES, encode};
use crate::segment::header::SegmentHeader;
use crate::segment::{DiskError, LogError};

/// Three of them fill a segment.
fn big(n: u32) -> Owned {
    Owned::put(n, b"key", &n.to_le_bytes().repeat(10_000))
}

fn no(segment: u32) -> SegmentNo {
    SegmentNo(segment)
}

impl Rig {
    /// Everything appended so far reaches the device.
    fn sync(&mut self) {
        self.flush();
        self.log.sync_wanted(self.log.last());
        self.turn();
        assert_eq!(self.log.synced(), self.log.last());
    }

    /// A round: what is said again, and the segments before it settled.
    fn round(&mut self, said: &Owned) -> SegmentNo {
        self.flush();
        self.log.end_segment(&mut self.disk);
        self.turn();
        let first = self.log.next_segment();
        let gaps: Vec<_> = self.log.gaps().collect();
        for gap in gaps {
            self.append(&Owned::of(&gap, Sequence(0), None));
        }
        self.append(said);
        self.sync();
        self.log.settle(&mut self.disk, first);
        self.turn();
        first
    }

    /// Drops a segment, up to where its file may go.
    fn drop_segment(&mut self, segment: u32) {
        self.log.drop_segment(no(segment)).unwrap();
        self.sync();
    }

    fn remove(&mut self, segment: u32) {
        self.log.remove(&mut self.disk, no(segment));
        self.turn();
        let removed = LogEvent::Removed {
            segment: no(segment),
            result: Ok(()),
        };
        assert_eq!(self.events.last(), Some(&removed));
    }

    fn numbers(&self) -> Vec<u32> {
        let states = self.log.segments().iter();
        states.map(|state| state.segment.0).collect()
    }

    /// The process dies, and the log goes on.
    fn restart(&mut self) -> Recovered {
        self.disk.kill();
        let (recovered, _) = seen(&mut self.disk).unwrap();
        self.log = Log::new(CONFIG, recovered.start.clone());
        self.turn();
        recovered
    }
}

/// What a recovery visits: sequence, record without its payload, whether its segment is settled.
type Seen = Vec<(u64, Owned, bool)>;

fn seen(disk: &mut MemoryDisk) -> Result<(Recovered, Seen), RecoverError> {
    let mut seen = Vec::new();
    let recovered = recover(disk, SHARD, &mut |record| {
        let owned = Owned::of(&record.head, record.sequence, Some(Vec::new()));
        seen.push((record.sequence.0, owned, record.settled));
    })?;
    Ok((recovered, seen))
}

/// Segments 1 to 3 with three records each, all settled by what segment 4 says again, and 5 begun.
fn settled() -> Rig {
    let mut rig = Rig::new();
    rig.write(&(0..9).map(big).collect::<Vec<_>>());
    let said = Owned::Agent(1, false, b"again".to_vec());
    assert_eq!(rig.round(&said), no(4));
    rig.write(&[Owned::Delete(1, b"later".to_vec())]);
    rig.sync();
    assert_eq!(rig.numbers(), [1, 2, 3, 4, 5]);
    rig
}

#[test]
fn a_round_settles_drops_and_removes_and_the_next_says_so_again() {
    let mut rig = settled();
    assert_eq!(rig.log.settled(), no(4));
    assert_eq!(rig.log.gaps().count(), 0);
    assert!(rig.log.can_drop(no(2)) && !rig.log.can_drop(no(4)) && !rig.log.can_drop(no(9)));
    rig.drop_segment(2);
    assert!(!rig.log.can_drop(no(2)));
    assert!(
        rig.disk.segments().contains(&2),
        "not before it is asked for"
    );
    rig.remove(2);
    assert_eq!(rig.numbers(), [1, 3, 4, 5]);
    assert!(!rig.disk.segments().contains(&2));

    let recovered = rig.restart();
    assert_eq!(recovered.start.settled, no(4));
    assert_eq!(rig.numbers(), [1, 3, 4, 5]);
    assert!(recovered.start.dropped.is_empty() && recovered.set_aside.is_empty());
    let (_, all) = seen(&mut rig.disk.clone()).unwrap();
    let sequences: Vec<_> = all.iter().map(|record| record.0).collect();
    assert_eq!(sequences[..7], [1, 2, 3, 7, 8, 9, 10]);
    assert!(all.iter().all(|record| record.2 == (record.0 < 10)));
    let gap = Head::Dropped {
        first: no(2),
        last: no(2),
        from: Sequence(4),
    };
    assert_eq!(rig.log.gaps().collect::<Vec<_>>(), [gap]);

    // What said that 2 is gone goes itself, in time: the round said it again.
    let first = rig.round(&Owned::Agent(1, true, b"again".to_vec()));
    for segment in [5, 4, 3, 1] {
        assert!(segment < first.0);
        rig.drop_segment(segment);
        rig.remove(segment);
    }
    let gaps: Vec<_> = rig.log.gaps().collect();
    let gap = Head::Dropped {
        first: no(1),
        last: no(5),
        from: Sequence(1),
    };
    assert_eq!(gaps, [gap]);
    let recovered = rig.restart();
    assert_eq!(recovered.start.settled, first);
    assert_eq!(rig.log.gaps().collect::<Vec<_>>(), gaps);
    rig.write(&few_records());
    rig.restart();
    let report = rig.restart().report;
    assert!(report.records >= 7 && report.sealed == report.segments);
    assert!(report.read_bytes < 8 << 10, "footers alone: {report:?}");
}

#[test]
fn a_crash_before_the_removal_leaves_it_to_the_next_start() {
    let mut rig = settled();
    rig.drop_segment(1);
    rig.drop_segment(3);
    let recovered = rig.disk.clone();
    let recovered = recover(&mut { recovered }, SHARD, &mut |_| {}).unwrap();
    assert_eq!(recovered.start.dropped, [no(1), no(3)]);
    assert!(
        rig.disk.segments().starts_with(&[1, 2, 3, 4]),
        "recovery removes nothing"
    );
    rig.restart();
    assert_eq!(rig.disk.segments()[..2], [2, 4], "the log does");
    assert_eq!(rig.numbers()[..2], [2, 4]);
    assert!(rig.restart().start.dropped.is_empty());

    // One that fails is tried at each start.
    rig.drop_segment(2);
    rig.disk.faults.remove = Some(DiskError::NoSpace);
    rig.log.remove(&mut rig.disk, no(2));
    rig.turn();
    let failed = LogEvent::Removed {
        segment: no(2),
        result: Err(DiskError::NoSpace),
    };
    assert_eq!(rig.events.last(), Some(&failed));
    assert_eq!(rig.numbers()[0], 4);
    assert!(rig.disk.segments().contains(&2));
    assert_eq!(rig.restart().start.dropped, [no(2)]);
    assert!(!rig.disk.segments().contains(&2));
}

#[test]
fn a_segment_that_is_missing_without_a_word_is_missed() {
    let rig = settled();
    for segment in [1, 2, 3, 4] {
        let mut disk = rig.disk.clone();
        disk.remove_empty(no(segment)).unwrap();
        let file = disk.path(no(segment));
        assert_eq!(refused(&disk), RecoverError::Missing { file });
    }
    let mut rig = rig;
    rig.drop_segment(2);
    for (missing, expected) in [
        (&[3][..], 3),
        (&[2, 3], 3),
        (&[1, 2], 1),
        (&[4], 4),
        (&[2, 4], 4),
    ] {
        let mut disk = rig.disk.clone();
        missing
            .iter()
            .for_each(|&segment| disk.remove_empty(no(segment)).unwrap());
        let file = disk.path(no(expected));
        assert_eq!(
            refused(&disk),
            RecoverError::Missing { file },
            "{missing:?}"
        );
    }
}

/// The record that drops a segment is dropped itself by a failed flush: the segment is there.
#[test]
fn a_failed_flush_takes_a_drop_back() {
    let mut rig = settled();
    rig.log.drop_segment(no(2)).unwrap();
    assert_eq!(rig.log.gaps().count(), 1);
    rig.disk.faults.write = Some(crate::segment::memory::FailedWrite {
        skip: 0,
        written: 0,
        error: DiskError::NoSpace,
    });
    assert!(matches!(
        rig.log.flush(&mut rig.disk),
        Err(LogError::Write { .. })
    ));
    assert_eq!(rig.log.gaps().count(), 0);
    assert!(rig.log.can_drop(no(2)));
    rig.drop_segment(2);
    rig.remove(2);
    assert_eq!(rig.restart().start.settled, no(4));
}

#[test]
fn what_is_before_a_gap_ends_in_a_footer_or_as_the_record_says() {
    // A footer found no room: what follows can't be dropped before a start has sealed it.
    let mut rig = Rig::new();
    rig.disk.faults.seal = Some(DiskError::NoSpace);
    rig.write(&(0..4).map(big).collect::<Vec<_>>());
    rig.turn();
    rig.disk.faults.seal = None;
    rig.write(&(4..9).map(big).collect::<Vec<_>>());
    rig.round(&Owned::Agent(1, false, b"again".to_vec()));
    rig.write(&few_records());
    let states = rig.log.segments();
    assert!(!states[0].sealed && states[1].sealed);
    assert!(rig.log.can_drop(no(1)) && !rig.log.can_drop(no(2)) && rig.log.can_drop(no(3)));
    rig.restart();
    assert!(rig.log.can_drop(no(2)));
    rig.drop_segment(2);
    rig.remove(2);

    // The footer rots; then the end of the records too.
    let mut rotten = rig.disk.clone();
    let bytes = rotten.bytes_mut(no(1));
    let trailer = bytes.len() - TRAILER_BYTES;
    bytes[trailer + 20] ^= 1;
    rotten.sync_all();
    let (recovered, all) = seen(&mut rotten.clone()).unwrap();
    assert_eq!(recovered.start.segments[0].last, Sequence(3));
    assert_eq!(all[3].0, recovered.start.segments[1].first.0);
    let third = SEGMENT_HEADER_BYTES + 2 * big(0).record().record_bytes();
    rotten.bytes_mut(no(1))[third + 9] ^= 1;
    rotten.sync_all();
    let expected = RecoverError::DamagedRecord {
        file: rotten.path(no(1)),
        offset: third as u64,
        sequence: Sequence(3),
        synced: Sequence(3),
    };
    assert_eq!(refused(&rotten), expected);
}

/// Each promise that the caller breaks is a bug of ours, and stops before anything is lost.
#[test]
fn promises_that_are_broken_stop_the_process() {
    let broken = |name: &str, action: &dyn Fn(&mut Rig)| {
        let mut rig = settled();
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| action(&mut rig)));
        assert!(stopped.is_err(), "{name}");
    };
    broken("settled with records unwritten", &|rig| {
        rig.append(&big(1));
        rig.log.settle(&mut rig.disk, no(5));
    });
    broken("settled unsynced", &|rig| {
        rig.write(&[big(1)]);
        rig.log.settle(&mut rig.disk, no(6));
    });
    broken("settled backwards", &|rig| {
        rig.log.settle(&mut rig.disk, no(3))
    });
    broken("settled ahead", &|rig| rig.log.settle(&mut rig.disk, no(9)));
    broken("dropped unsettled", &|rig| _ = rig.log.drop_segment(no(4)));
    broken("dropped unsettled, by hand", &|rig| {
        let _ = rig.log.append(&Owned::Dropped(3, 4, 7).record());
    });
    broken("removed undropped", &|rig| {
        rig.log.remove(&mut rig.disk, no(1))
    });
    broken("removed unsynced", &|rig| {
        rig.log.drop_segment(no(1)).unwrap();
        rig.flush();
        rig.log.remove(&mut rig.disk, no(1));
    });
}

/// A log that says what ours never would is refused, not believed.
#[test]
fn a_record_that_drops_what_counts_is_refused() {
    let rig = settled();
    let last = rig.log.segments().last().copied().unwrap();
    for (first, upto, good) in [
        (1, 1, true),
        (3, 4, false),
        (5, 5, false),
        (1, u32::MAX, false),
    ] {
        let mut disk = rig.disk.clone();
        let dropped = Owned::Dropped(first, upto, 1);
        let header = SegmentHeader {
            version: FORMAT_VERSION,
            shard: SHARD,
            segment: no(last.segment.0 + 1),
            log_id: CONFIG.log_id,
            first: Sequence(last.last.0 + 1),
            take: 0,
            previous: 0,
            settled: no(4),
            synced: last.last,
        };
        let previous = {
            let (recovered, _) = seen(&mut disk).unwrap();
            recovered.start.last_checksum
        };
        let header = SegmentHeader { previous, ..header };
        let mut bytes = header.encode().to_vec();
        encode(
            &dropped.record(),
            header.first,
            0,
            header.checksum(),
            &mut bytes,
        );
        *disk.bytes_mut(header.segment) = bytes;
        disk.sync_all();
        if good {
            let (recovered, _) = seen(&mut disk).unwrap();
            assert_eq!(recovered.start.dropped, [no(1)]);
        } else {
            let file = disk.path(no(upto));
            assert_eq!(refused(&disk), RecoverError::DropsUnsettled { file });
        }
    }
}

#[test]
fn what_is_live_in_a_segment_is_what_moving_it_costs() {
    let mut rig = settled();
    let one = rig.log.segments()[0];
    assert_eq!(one.live_bytes(), 3 * (40_000 + 72));
    let appended = rig.log.append(&big(1).record()).unwrap();
    let bytes = crate::segment::moved_bytes(appended.payload.bytes);
    assert_eq!(bytes, 40_072);
    rig.log.garbage(no(1), bytes);
    rig.flush();
    assert_eq!(rig.log.segments()[0].live_bytes(), 2 * bytes);
    // Heads alone cost nothing to move.
    let five = rig.log.segments()[4];
    assert_eq!((five.segment, five.live_bytes()), (no(5), bytes));
    assert_eq!(rig.log.totals().dead_bytes, bytes);
    rig.log.garbage(no(77), 5);
    assert_eq!(rig.log.totals().dead_bytes, bytes, "it is gone already");
    let recovered = rig.restart();
    assert_eq!(recovered.start.segments[0].object_bytes, one.object_bytes);
}

/// A log under rounds of collection, and what must be in it.
struct Life {
    rig: Rig,
    random: Random,
    /// By sequence less 1, with the segment that it went to.
    records: Vec<(Owned, u32)>,
    /// Segments that records dropped.
    dropped: BTreeSet<u32>,
    /// How often each thing happened.
    fired: [u32; 6],
}

const POWER: usize = 0;
const KILL: usize = 1;
const LEFT: usize = 2;
const GAP: usize = 3;
const SETTLED: usize = 4;
const AGAIN: usize = 5;

impl Life {
    fn note(&mut self) {
        // Those of the log itself have no other trace.
        let last = self.rig.log.last().0 as usize;
        let active = self
            .rig
            .log
            .segments()
            .last()
            .map_or(0, |state| state.segment.0);
        while self.records.len() < last {
            let sequence = self.records.len() as u64 + 1;
            self.records.push((Owned::Synced(0, sequence), active));
        }
    }

    fn append(&mut self, record: &Owned) {
        let appended = self.rig.append(record);
        self.note();
        let at = appended.sequence.0 as usize - 1;
        self.records[at] = (record.clone(), appended.payload.segment.0);
    }

    /// A round with a chance of a crash at each step of it.
    fn round(&mut self) {
        self.rig.flush();
        self.rig.log.end_segment(&mut self.rig.disk);
        let first = self.rig.log.next_segment();
        let gaps: Vec<_> = self.rig.log.gaps().collect();
        for gap in gaps {
            self.append(&Owned::of(&gap, Sequence(0), None));
        }
        self.append(&Owned::Agent(1, false, b"again".to_vec()));
        if self.crash(6) {
            return;
        }
        self.sync();
        self.rig.log.settle(&mut self.rig.disk, first);
        if self.crash(6) {
            return;
        }
        let victims: Vec<_> = self.rig.numbers();
        let victims = victims.into_iter().filter(|&segment| segment < first.0);
        for segment in victims.collect::<Vec<_>>() {
            if self.random.below(2) == 0 || !self.rig.log.can_drop(no(segment)) {
                continue;
            }
            while self.rig.log.ready(SEGMENT_HEADER_BYTES).is_err() {
                self.rig.flush();
                self.rig.turn();
            }
            let appended = self.rig.log.drop_segment(no(segment)).unwrap();
            self.note();
            let head = Owned::Dropped(segment, segment, 0);
            let at = appended.sequence.0 as usize - 1;
            self.records[at] = (head, appended.payload.segment.0);
            self.dropped.insert(segment);
            if self.crash(8) {
                return;
            }
            self.sync();
            if self.crash(8) {
                return;
            }
            self.rig.log.remove(&mut self.rig.disk, no(segment));
            if self.crash(8) {
                return;
            }
            self.rig.turn();
        }
    }

    fn sync(&mut self) {
        self.rig.flush();
        self.rig.log.sync_wanted(self.rig.log.last());
        self.rig.turn();
        assert_eq!(self.rig.log.synced(), self.rig.log.last());
    }

    /// Dies once in `one_in`.
    fn crash(&mut self, one_in: usize) -> bool {
        if self.random.below(one_in) > 0 {
            return false;
        }
        if self.random.below(3) == 0 {
            self.rig.flush();
        }
        let mut power = self.random.below(2) == 0;
        let (synced, flushed) = (self.rig.log.synced().0, self.rig.log.flushed().0);
        match power {
            true => self.rig.disk.power_cut(&mut self.random),
            false => self.rig.disk.kill(),
        }
        for _ in 0..self.random.below(3) {
            self.rig.disk.faults.files_call = Some(self.random.below(40) as u32);
            self.fired[AGAIN] += u32::from(seen(&mut self.rig.disk).is_err());
            if self.random.below(3) == 0 {
                power = true;
                self.rig.disk.power_cut(&mut self.random);
            }
            self.rig.disk.kill();
        }
        self.fired[if power { POWER } else { KILL }] += 1;
        let at_least = if power { synced } else { flushed };
        let (recovered, seen_now) = seen(&mut self.rig.disk).unwrap();
        let again = seen(&mut self.rig.disk).unwrap();
        assert_eq!((&again.0.start, &again.1), (&recovered.start, &seen_now));
        self.check(&recovered, &seen_now, at_least);
        self.rig.log = Log::new(CONFIG, recovered.start);
        self.rig.turn();
        let files = self.rig.disk.segments();
        let left = files
            .iter()
            .filter(|segment| self.dropped.contains(segment));
        assert_eq!(left.count(), 0, "what was dropped leaks");
        true
    }

    fn check(&mut self, recovered: &Recovered, seen: &Seen, at_least: u64) {
        let start = &recovered.start;
        assert!(start.last.0 >= at_least, "{} < {at_least}", start.last.0);
        self.records.truncate(start.last.0 as usize);
        // A drop that did not reach the log is none; a later one names another segment.
        let said = |segment: &u32| {
            let says = |owned: &Owned| match *owned {
                Owned::Dropped(first, last, _) => (first..=last).contains(segment),
                _ => false,
            };
            self.records.iter().any(|(owned, _)| says(owned))
        };
        self.dropped.retain(said);
        let mut next = 0;
        for (sequence, owned, settled) in seen {
            for (_, segment) in &self.records[next..*sequence as usize - 1] {
                assert!(
                    self.dropped.contains(segment),
                    "a record of {segment} is lost"
                );
            }
            next = *sequence as usize;
            let (expected, segment) = &self.records[next - 1];
            assert_eq!(*settled, *segment < start.settled.0);
            match expected {
                Owned::Synced(..) => assert!(matches!(owned, Owned::Synced(..))),
                Owned::Dropped(..) => assert!(matches!(owned, Owned::Dropped(..))),
                Owned::Put(.., Some(_)) => assert_eq!(owned.head(), expected.head()),
                other => assert_eq!(owned, other),
            }
        }
        assert_eq!(next, self.records.len());
        for segment in &start.dropped {
            assert!(self.dropped.contains(&segment.0));
        }
        let mut kept = start.segments.iter().map(|state| state.segment.0);
        assert!(kept.all(|segment| !self.dropped.contains(&segment)));
        assert!(
            recovered
                .set_aside
                .iter()
                .all(|segment| *segment >= start.settled)
        );
        self.fired[LEFT] += start.dropped.len() as u32;
        self.fired[GAP] += u32::from(self.dropped.len() > start.dropped.len());
        self.fired[SETTLED] += u32::from(start.settled.0 > 0);
    }
}

#[test]
fn a_crash_at_any_point_of_any_round_loses_nothing_and_leaks_nothing() {
    let mut sum = [0; 6];
    for seed in 0..120 {
        let mut life = Life {
            rig: Rig::new(),
            random: Random(seed),
            records: Vec::new(),
            dropped: BTreeSet::new(),
            fired: [0; 6],
        };
        for _ in 0..6 {
            for _ in 0..life.random.below(30) {
                let record = match life.random.below(3) {
                    0 => big(life.random.below(9) as u32),
                    _ => Owned::random(&mut life.random),
                };
                let record = match record {
                    Owned::Object(..) | Owned::Put(.., None) => big(1),
                    other => other,
                };
                life.append(&record);
            }
            let full = life.random.below(6) == 0;
            life.rig.disk.faults.seal = full.then_some(DiskError::NoSpace);
            if !life.crash(8) {
                life.round();
            }
            life.rig.disk.faults.seal = None;
        }
        life.crash(1);
        sum.iter_mut()
            .zip(life.fired)
            .for_each(|(sum, fired)| *sum += fired);
    }
    assert!(sum.iter().all(|fired| *fired > 5), "{sum:?}");
}

/// Bits flipped in a log with gaps: what is lost is said.
#[test]
fn a_flipped_bit_beside_a_gap_is_never_a_silently_shorter_log() {
    let mut rig = settled();
    rig.drop_segment(2);
    rig.remove(2);
    rig.drop_segment(1);
    rig.disk.kill();
    let (whole, before) = seen(&mut rig.disk.clone()).unwrap();
    let mut random = Random(5);
    let (mut refused, mut same) = (0, 0);
    for turn in 0..600 {
        let mut disk = rig.disk.clone();
        let segments = disk.segments();
        let bytes = disk.bytes_mut(no(segments[turn % segments.len()]));
        let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else {
            continue;
        };
        // Half of them near the end, where the footer is.
        let near = random.below(1 + last.min(400));
        let at = [random.below(1 + last), last - near][random.below(2)];
        bytes[at] ^= 1 << random.below(8);
        disk.sync_all();
        match seen(&mut disk) {
            Ok((recovered, after)) => {
                assert_eq!(recovered.start.settled, whole.start.settled);
                // Only of what came last nothing says that it had been synced.
                let least = if segments[turn % segments.len()] == 5 {
                    before.len() - 2
                } else {
                    before.len()
                };
                assert!(after.len() >= least, "byte {at}");
                assert_eq!(after[..], before[..after.len()]);
                same += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 20 && same > 20, "{refused} {same}");
}
