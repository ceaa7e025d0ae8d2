//! Recovery at start: the longest valid prefix of a shard's log.
//!
//! Floor 1. Blocking, over [`SegmentFiles`]; no clock. A sealed segment costs one read of its
//! footer; any other is read once, in chunks of 1 MiB, each payload verified by its id. Memory: a
//! buffer of 1.1 MiB, one of 64 KiB, and the largest footer.
//!
//! Where the records end, `evidence` tells a power cut, which may take what was never synced, from
//! damage to what was: the first ends the log, the second is never passed over in silence.
//!
//! Invariants
//! - nothing on disk is changed before the whole log was read and found to be good.
//! - a record is visited only if every record before it was, but for those of segments that a record says
//!   are not needed; each is visited once.
//! - no record that was synced is missing from a log that starts: its payload may be damaged, and
//!   the visitor is told, or the start is refused.
//! - what is cut off or set aside is kept under another name.
//! - repairs are ordered so that a crash between any two of them, and recovery again, ends in the
//!   same state. First what is cut is copied. Then a segment with damaged payloads gets a trailer at
//!   its end, because the evidence for them may be about to go. Then later segments go aside, the
//!   last one first; then each segment that was scanned is synced and sealed, so that the log never
//!   goes on behind bytes that a power cut could still take.

use crate::crash;
use crate::id::{SegmentNo, ShardNo};

use super::chunk::Chunk;
use super::evidence::{Cut, Found, LOOK_BYTES, not_zero, proven, trailer_of};
use super::files::{FilesError, SegmentFile, SegmentFiles};
use super::footer::{Footer, TRAILER_BYTES, Trailer};
use super::format::{Decoded, Invalid, LogId, SEGMENT_HEADER_BYTES, decode};
use super::gaps::{Dropped, Gap};
use super::header::SegmentHeader;
use super::headers::{read_headers, settled};
use super::recovered::{RecoverError, RecoverReport, Recovered, RecoveredRecord};
use super::segments::{SegmentState, moved_bytes};
use super::start::LogStart;
use super::{Location, Sequence};

/// Damaged payloads that are named one by one.
const DAMAGED_NAMED_MAX: usize = 16;

/// Reads the log of `shard`, calls `visit` with each record in order, and leaves the files so
/// that a [`super::Log`] can go on.
///
/// After an error the visited records mean nothing. A crash inside, and calling this again, gives
/// the same records.
///
/// # Errors
/// [`RecoverError`].
pub fn recover<F: SegmentFiles + ?Sized>(
    files: &mut F,
    shard: ShardNo,
    visit: &mut dyn FnMut(&RecoveredRecord<'_>),
) -> Result<Recovered, RecoverError> {
    let found = read_headers(files, shard)?;
    let mut walk = Walk::over(files, visit, &found);
    let mut kept = walk.segments()?;
    crash::point("recover.read");
    let count = kept.segments.len();
    let dropped = walk.take_dropped(&mut kept);
    let tail = kept.segments.last().copied();
    let is_tail = |segment| tail.is_some_and(|tail| tail.segment == segment);
    let unsealed_tail = kept.unsealed.last();
    let cut = match unsealed_tail.filter(|last| is_tail(last.file.segment)) {
        Some(unsealed) => walk.keep_tail(unsealed, kept.last)?,
        None => None,
    };
    crash::point("recover.tail");
    walk.mark_damaged(&kept.unsealed)?;
    crash::point("recover.marked");
    walk.put_aside(&found[count..])?;
    crash::point("recover.aside");
    for unsealed in &kept.unsealed {
        walk.seal(unsealed)?;
        crash::point("recover.sealed");
    }
    Ok(walk.recovered(kept, cut, dropped))
}

/// As [`recover`], for whoever only looks: the same records, and nothing on disk is changed. A
/// [`super::Log`] that goes on at what it returns must be frozen.
///
/// # Errors
/// [`RecoverError`].
pub fn read_only<F: SegmentFiles + ?Sized>(
    files: &mut F,
    shard: ShardNo,
    visit: &mut dyn FnMut(&RecoveredRecord<'_>),
) -> Result<Recovered, RecoverError> {
    let found = read_headers(files, shard)?;
    let mut walk = Walk::over(files, visit, &found);
    let mut kept = walk.segments()?;
    let dropped = walk.take_dropped(&mut kept);
    Ok(walk.recovered(kept, None, dropped))
}

/// A kept segment without a valid footer, and the footer it gets.
struct Unsealed {
    file: SegmentFile,
    header: SegmentHeader,
    data_end: u32,
    footer: Vec<u8>,
    /// It has damaged payloads.
    damaged: bool,
}

impl Unsealed {
    fn trailer(&self) -> &[u8] {
        &self.footer[self.footer.len() - TRAILER_BYTES..]
    }
}

/// The longest valid prefix of the log.
#[derive(Default)]
struct Kept {
    segments: Vec<SegmentState>,
    unsealed: Vec<Unsealed>,
    last: Sequence,
    last_checksum: u32,
    /// Gaps that the walk came across, the record that would have come next, and where it would be.
    gaps: Vec<(Gap, Sequence, Place)>,
}

/// Where a walk through one segment is.
struct Position {
    segment: SegmentNo,
    /// Seed of the next record.
    checksum: u32,
    offset: u64,
    next: Sequence,
    take: u32,
    object_bytes: u64,
}

impl Position {
    fn new(header: SegmentHeader) -> Self {
        Self {
            segment: header.segment,
            checksum: header.checksum(),
            offset: SEGMENT_HEADER_BYTES as u64,
            next: header.first,
            take: header.take,
            object_bytes: 0,
        }
    }

    /// The record here, if it is the log's next and ends before `end`.
    fn accept<'a>(&self, bytes: &'a [u8], end: u64) -> Result<Option<Decoded<'a>>, Invalid> {
        match decode(bytes, self.checksum) {
            Ok(record) => {
                let fits = self.offset + u64::from(record.record_bytes) <= end;
                let good = record.sequence == self.next && record.take >= self.take && fits;
                Ok(good.then_some(record))
            }
            Err(Invalid::NotARecord) => Ok(None),
            Err(unknown) => Err(unknown),
        }
    }

    /// Goes through the heads of a footer and returns those that are not the log's next.
    fn follow<'a>(
        &mut self,
        heads: &'a [u8],
        trailer: &Trailer,
        mut each: impl FnMut(&Self, &Decoded<'a>),
    ) -> &'a [u8] {
        let mut rest = heads;
        while let Ok(Some(record)) = self.accept(rest, trailer.data_end.into()) {
            each(self, &record);
            rest = &rest[record.head_bytes as usize..];
            self.pass(&record);
        }
        rest
    }

    /// As the visitor gets it.
    fn describe<'a>(
        &self,
        record: &Decoded<'a>,
        settled: bool,
        damaged: bool,
    ) -> RecoveredRecord<'a> {
        RecoveredRecord {
            sequence: record.sequence,
            head: record.head,
            payload: record.payload_bytes.map(|bytes| Location {
                segment: self.segment,
                offset: self.offset as u32 + record.head_bytes,
                bytes,
            }),
            segment: self.segment,
            record_bytes: record.record_bytes,
            settled,
            damaged,
        }
    }

    fn pass(&mut self, record: &Decoded<'_>) {
        self.offset += u64::from(record.record_bytes);
        self.next = Sequence(self.next.0 + 1);
        self.take = record.take;
        self.object_bytes += record.payload_bytes.map_or(0, moved_bytes);
        self.checksum = record.checksum;
    }

    fn state(&self, first: Sequence) -> SegmentState {
        SegmentState {
            segment: self.segment,
            first,
            last: Sequence(self.next.0 - 1),
            data_end: self.offset as u32,
            record_bytes: self.offset - SEGMENT_HEADER_BYTES as u64,
            object_bytes: self.object_bytes,
            dead_bytes: 0,
            sealed: true,
            dropped: None,
        }
    }
}

/// One pass over the files.
struct Walk<'a, F: ?Sized> {
    files: &'a mut F,
    visit: &'a mut dyn FnMut(&RecoveredRecord<'_>),
    found: &'a [Found],
    log_id: Option<LogId>,
    /// What the files prove, once it was asked.
    proven: Option<Sequence>,
    /// Segments below this one are settled.
    settled: SegmentNo,
    /// What records so far dropped.
    dropped: Dropped,
    chunk: Chunk,
    look: Vec<u8>,
    heads: Vec<u8>,
    report: RecoverReport,
    set_aside: Vec<SegmentNo>,
    damaged: Vec<Location>,
}

/// Where in the files the next record is expected: an index in [`Walk::found`] and an offset, 0 if
/// its header does not continue the log.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    offset: u64,
}

/// The records of a segment that was scanned.
struct Scanned {
    at: Position,
    footer: Footer,
    damaged: bool,
}

impl<'a, F: SegmentFiles + ?Sized> Walk<'a, F> {
    fn over(
        files: &'a mut F,
        visit: &'a mut dyn FnMut(&RecoveredRecord<'_>),
        found: &'a [Found],
    ) -> Self {
        let log_id = found.iter().find_map(|found| found.header);
        Self {
            files,
            visit,
            found,
            log_id: log_id.map(|header| header.log_id),
            proven: None,
            settled: settled(found),
            dropped: Dropped::default(),
            chunk: Chunk::new(),
            look: vec![0; LOOK_BYTES],
            heads: Vec::new(),
            report: RecoverReport::default(),
            set_aside: Vec::new(),
            damaged: Vec::new(),
        }
    }

    fn recovered(self, kept: Kept, cut: Option<Cut>, dropped: Vec<SegmentNo>) -> Recovered {
        let count = kept.segments.len();
        let tail = kept.segments.last().map_or(0, |tail| tail.segment.0);
        Recovered {
            log_id: self.log_id.filter(|_| count > 0),
            report: RecoverReport {
                segments: count as u32,
                ..self.report
            },
            cut,
            set_aside: self.set_aside,
            damaged: self.damaged,
            start: LogStart {
                next_segment: SegmentNo(tail + 1),
                last: kept.last,
                last_checksum: kept.last_checksum,
                settled: self.settled,
                dropped,
                segments: kept.segments,
            },
        }
    }
}

impl<F: SegmentFiles + ?Sized> Walk<'_, F> {
    /// Visits the longest valid prefix.
    fn segments(&mut self) -> Result<Kept, RecoverError> {
        let mut kept = Kept::default();
        let mut end = Place {
            index: 0,
            offset: 0,
        };
        for (index, found @ Found { file, header }) in self.found.iter().enumerate() {
            let before = index.checked_sub(1).map(|before| &self.found[before]);
            let gap = Gap::between(before, found);
            let follows = |header: &SegmentHeader| match (gap, before) {
                // What it continues is gone.
                (Some(_), _) => header.first > kept.last,
                (None, None) => true,
                (None, Some(_)) => {
                    header.first.0 == kept.last.0 + 1 && header.previous == kept.last_checksum
                }
            };
            let Some(header) = header.filter(follows) else {
                break;
            };
            kept.gaps
                .extend(gap.map(|gap| (gap, Sequence(kept.last.0 + 1), end)));
            let at = match self.by_footer(*file, header)? {
                Some(at) => {
                    self.report.sealed += 1;
                    end = Place {
                        index: index + 1,
                        offset: 0,
                    };
                    at
                }
                None => {
                    let Scanned {
                        at,
                        footer,
                        damaged,
                    } = self.by_scan(index, header)?;
                    end = Place {
                        index,
                        offset: at.offset,
                    };
                    if footer.count() == 0 {
                        break;
                    }
                    let (data_end, seed) = (at.offset as u32, header.checksum());
                    kept.unsealed.push(Unsealed {
                        file: *file,
                        header,
                        data_end,
                        footer: footer.finish(header.first, data_end, at.checksum, seed),
                        damaged,
                    });
                    at
                }
            };
            kept.last = Sequence(at.next.0 - 1);
            kept.last_checksum = at.checksum;
            kept.segments.push(at.state(header.first));
        }
        let next = Sequence(kept.last.0 + 1);
        match self.found.get(end.index) {
            Some(found) if self.is_proven(end, next)? => Err(RecoverError::DamagedRecord {
                file: self.files.path(found.file.segment),
                offset: end.offset,
                sequence: next,
                synced: self.proven.unwrap_or_default(),
            }),
            _ => self.check_gaps(&kept).map(|()| kept),
        }
    }

    /// Whether everything that is missing was dropped, and only what is settled, and nothing is missing
    /// at the end of what was not.
    fn check_gaps(&self, kept: &Kept) -> Result<(), RecoverError> {
        if let Some(highest) = self.dropped.highest()
            && highest >= self.settled
        {
            let file = self.files.path(highest);
            return Err(RecoverError::DropsUnsettled { file });
        }
        if let Some(missing) = Gap::all(self.found).find_map(|gap| self.dropped.not_in(gap)) {
            let file = self.files.path(missing);
            return Err(RecoverError::Missing { file });
        }
        for &(gap, sequence, place) in &kept.gaps {
            if let Some(from) = self.dropped.breaks_off(gap, sequence) {
                // Of a segment that was sealed the walk says that it ended, and not where.
                let before = place.index.saturating_sub(usize::from(place.offset == 0));
                let offset = kept.segments.get(before);
                return Err(RecoverError::DamagedRecord {
                    file: self.files.path(self.found[before].file.segment),
                    offset: offset.map_or(0, |state| state.data_end.into()),
                    sequence,
                    synced: Sequence(from.0.saturating_sub(1)),
                });
            }
        }
        Ok(())
    }

    /// Takes the segments out in which nothing is needed, as records say: a crash kept their files.
    fn take_dropped(&self, kept: &mut Kept) -> Vec<SegmentNo> {
        let is_dropped = |segment: SegmentNo| self.dropped.contains(segment);
        kept.unsealed
            .retain(|unsealed| !is_dropped(unsealed.file.segment));
        let (dropped, there) = std::mem::take(&mut kept.segments)
            .into_iter()
            .partition(|state| is_dropped(state.segment));
        kept.segments = there;
        let dropped: Vec<SegmentState> = dropped;
        dropped.iter().map(|state| state.segment).collect()
    }

    /// Whether the record that is expected at `place` had been on the device. Reads everything
    /// behind the first place that is asked for; statements before a later one don't reach so far.
    fn is_proven(&mut self, place: Place, sequence: Sequence) -> Result<bool, FilesError> {
        let Some(log_id) = self.log_id else {
            return Ok(false);
        };
        let proven = match self.proven {
            Some(proven) => proven,
            None => {
                let found = &self.found[place.index..];
                proven(self.files, &mut self.look, found, place.offset, log_id)?
            }
        };
        self.proven = Some(proven);
        Ok(sequence <= proven)
    }

    /// Visits the records of a sealed segment; `None` if it has no valid footer. Nothing is
    /// visited before all of the footer was found good.
    fn by_footer(
        &mut self,
        file: SegmentFile,
        header: SegmentHeader,
    ) -> Result<Option<Position>, RecoverError> {
        let Some(trailer) = self.read_footer(file, &header)? else {
            return Ok(None);
        };
        let heads = std::mem::take(&mut self.heads);
        let mut at = Position::new(header);
        let rest = at.follow(&heads, &trailer, |_, _| {});
        let whole = rest.is_empty()
            && at.offset == u64::from(trailer.data_end)
            && at.next.0 == trailer.last.0 + 1
            && at.checksum == trailer.last_checksum;
        if whole {
            Position::new(header).follow(&heads, &trailer, |at, record| {
                self.visit(at, record, false);
            });
        }
        self.heads = heads;
        Ok(whole.then_some(at))
    }

    /// Reads the heads of a footer into `self.heads` if the trailer is good.
    fn read_footer(
        &mut self,
        file: SegmentFile,
        header: &SegmentHeader,
    ) -> Result<Option<Trailer>, RecoverError> {
        let trailer_at = file.bytes.saturating_sub(TRAILER_BYTES as u64);
        let plausible = |trailer: &Trailer| {
            u64::from(trailer.data_end) + u64::from(trailer.heads_bytes) == trailer_at
                && trailer.first == header.first
                && trailer.count > 0
                && trailer.last.0.checked_sub(trailer.first.0) == Some(u64::from(trailer.count) - 1)
        };
        let Some(trailer) = trailer_of(self.files, file, header)?.filter(plausible) else {
            return Ok(None);
        };
        self.heads.resize(trailer.heads_bytes as usize, 0);
        let got = self
            .files
            .read_at(file.segment, trailer.data_end.into(), &mut self.heads)?;
        self.report.read_bytes += (got + TRAILER_BYTES) as u64;
        Ok((got == self.heads.len()).then_some(trailer))
    }

    /// Visits the records of a segment up to the first that is not valid. One of which only the
    /// payload is not, though it had been on the device, counts as valid.
    fn by_scan(&mut self, index: usize, header: SegmentHeader) -> Result<Scanned, RecoverError> {
        let file = self.found[index].file;
        let next = self.found.get(index + 1).and_then(|found| found.header);
        let mut at = Position::new(header);
        let mut footer = Footer::default();
        let before = self.report.damaged;
        let end = file.bytes.min(u32::MAX.into());
        let mut chunk = std::mem::replace(&mut self.chunk, Chunk::empty());
        chunk.forget();
        loop {
            let bytes = chunk.window(self.files, file.segment, at.offset)?;
            let record = match at.accept(bytes, end) {
                Ok(Some(record)) => record,
                Ok(None) | Err(Invalid::NotARecord) => break,
                Err(Invalid::Unknown { kind, flags }) => {
                    let (file, offset) = (self.files.path(file.segment), at.offset);
                    return Err(RecoverError::UnknownRecord {
                        file,
                        offset,
                        kind,
                        flags,
                    });
                }
            };
            // A flush that failed left it here; the log then went on in the next segment.
            if next.is_some_and(|next| record.sequence >= next.first && record.take < next.take) {
                break;
            }
            let payload_bytes = record.payload_bytes.unwrap_or(0) as usize;
            let head_bytes = record.head_bytes as usize;
            let payload = bytes.get(head_bytes..head_bytes + payload_bytes);
            let verified = payload.is_some_and(|payload| {
                record.payload_bytes.is_none() || record.head.verify(payload)
            });
            let place = Place {
                index,
                offset: at.offset,
            };
            if !verified && !self.is_proven(place, at.next)? {
                break;
            }
            self.visit(&at, &record, !verified);
            footer.push(&bytes[..head_bytes]);
            at.pass(&record);
        }
        self.report.read_bytes += chunk.read_bytes();
        self.chunk = chunk;
        Ok(Scanned {
            at,
            footer,
            damaged: self.report.damaged > before,
        })
    }

    fn visit(&mut self, at: &Position, record: &Decoded<'_>, damaged: bool) {
        let settled = at.segment < self.settled;
        let described = at.describe(record, settled, damaged);
        self.dropped.note(&record.head);
        self.report.records += 1;
        self.report.record_bytes += u64::from(record.record_bytes);
        if damaged {
            self.report.damaged += 1;
            let named = self.damaged.len() < DAMAGED_NAMED_MAX;
            self.damaged.extend(described.payload.filter(|_| named));
        }
        (self.visit)(&described);
    }

    /// Copies what lies behind the end of the log in its last segment, before a footer takes its
    /// place.
    fn keep_tail(&mut self, tail: &Unsealed, last: Sequence) -> Result<Option<Cut>, RecoverError> {
        let (segment, data_end) = (tail.file.segment, u64::from(tail.data_end));
        let mut file = tail.file;
        if trailer_of(self.files, file, &tail.header)?.is_some() {
            file.bytes -= TRAILER_BYTES as u64;
        }
        let bytes = not_zero(self.files, &mut self.look, file, data_end)?;
        if bytes == 0 || self.is_footer(tail, bytes)? {
            return Ok(None);
        }
        let mark = tail.header.checksum();
        self.files.keep_tail(segment, data_end, bytes, mark)?;
        self.report.truncated_bytes = bytes;
        Ok(Some(Cut {
            at: Location {
                segment,
                offset: tail.data_end,
                bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            },
            sequence: Sequence(last.0 + 1),
            mark,
        }))
    }

    /// Whether the `bytes` behind the records are what a crash left of the footer that belongs there.
    fn is_footer(&mut self, tail: &Unsealed, bytes: u64) -> Result<bool, FilesError> {
        if bytes > tail.footer.len() as u64 {
            return Ok(false);
        }
        let mut behind = vec![0; bytes as usize];
        self.files
            .read_at(tail.file.segment, tail.data_end.into(), &mut behind)?;
        let mut pairs = behind.iter().zip(&tail.footer);
        Ok(pairs.all(|(byte, of_footer)| *byte == 0 || byte == of_footer))
    }

    /// Lets the ends of files say that damaged payloads had been on the device: what says so now may
    /// be in bytes that are cut or set aside, and a crash before the footer is there must not make
    /// their records the end of the log.
    fn mark_damaged(&mut self, unsealed: &[Unsealed]) -> Result<(), RecoverError> {
        for segment in unsealed.iter().filter(|segment| segment.damaged) {
            let (file, header) = (segment.file, &segment.header);
            if trailer_of(self.files, file, header)?.is_none() {
                self.files
                    .write_at(file.segment, file.bytes, segment.trailer())?;
                self.files.sync(file.segment)?;
            }
        }
        Ok(())
    }

    /// Takes the segments behind the end of the log out of it, the last one first, so that a
    /// crash in between leaves no gap.
    fn put_aside(&mut self, behind: &[Found]) -> Result<(), RecoverError> {
        for Found { file, header } in behind.iter().rev() {
            let from = header.map_or(0, |_| SEGMENT_HEADER_BYTES as u64);
            if not_zero(self.files, &mut self.look, *file, from)? == 0 {
                self.files.remove_empty(file.segment)?;
                crash::point("recover.removed");
            } else {
                self.files.set_aside(file.segment)?;
                self.set_aside.push(file.segment);
                self.report.set_aside += 1;
            }
        }
        if !behind.is_empty() {
            self.files.sync_directory()?;
        }
        Ok(())
    }

    /// Records first, then the footer that promises them, then the end of the file.
    fn seal(&mut self, unsealed: &Unsealed) -> Result<(), RecoverError> {
        let segment = unsealed.file.segment;
        let data_end = u64::from(unsealed.data_end);
        let end = data_end + unsealed.footer.len() as u64;
        self.files.sync(segment)?;
        self.files.write_at(segment, data_end, &unsealed.footer)?;
        crash::point("recover.footer");
        self.files.sync(segment)?;
        if unsealed.file.bytes > end || unsealed.damaged {
            self.files.truncate(segment, end)?;
        }
        Ok(())
    }
}
