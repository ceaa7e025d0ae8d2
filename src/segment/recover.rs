//! Recovery at start: the longest valid prefix of a shard's log.
//!
//! Floor 1. Blocking, over [`SegmentFiles`]; no clock. A sealed segment costs one read of its
//! footer; any other is read once, in chunks of 1 MiB, each payload verified by its id. Memory: a
//! buffer of 1.1 MiB and the largest footer.
//!
//! Invariants
//! - nothing on disk is changed before all headers are known to be readable.
//! - a record is visited only if every record before it was; each is visited once.
//! - repairs are ordered so that a crash between any two of them, and recovery again, ends in the
//!   same state: later segments go aside first, the last one first; then each segment that was
//!   scanned is synced and sealed, so that the log never goes on behind bytes that a power cut
//!   could still take.

use std::path::PathBuf;

use crate::id::{SegmentNo, ShardNo};

use super::files::{FilesError, SegmentFile, SegmentFiles};
use super::format::{
    BadHeader, Decoded, FORMAT_VERSION, Footer, Head, Invalid, LogId, RECORD_BYTES_MAX,
    SEGMENT_HEADER_BYTES, SegmentHeader, TRAILER_BYTES, Trailer, decode,
};
use super::log::{LogStart, SegmentState};
use super::{Location, Sequence};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A record of the log, as it is read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveredRecord<'a> {
    /// Its place in the log.
    pub sequence: Sequence,
    /// What it says.
    pub head: Head<'a>,
    /// Where its payload lies, if it holds one.
    pub payload: Option<Location>,
    /// The segment it lies in.
    pub segment: SegmentNo,
    /// Bytes it takes there.
    pub record_bytes: u32,
}

/// What recovery found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The log's name; `None` if there is no record: draw one.
    pub log_id: Option<LogId>,
    /// Where [`super::Log::new`] goes on.
    pub start: LogStart,
    /// For a log line.
    pub report: RecoverReport,
}

/// Counts of one recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoverReport {
    /// Records visited.
    pub records: u64,
    /// Bytes of these records.
    pub record_bytes: u64,
    /// Segments kept.
    pub segments: u32,
    /// Of these, read by their footer.
    pub sealed: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes behind the end of the log in its last segment that were not zero, and are cut.
    pub truncated_bytes: u64,
    /// Segments behind the end of the log, renamed.
    pub set_aside: u32,
}

impl RecoverReport {
    /// Adds another shard's counts.
    pub fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.record_bytes += other.record_bytes;
        self.segments += other.segments;
        self.sealed += other.sealed;
        self.read_bytes += other.read_bytes;
        self.truncated_bytes += other.truncated_bytes;
        self.set_aside += other.set_aside;
    }
}

/// Why a shard can't start. Nothing was changed, unless it is [`RecoverError::Files`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// A call failed; starting again goes on where this stopped.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The name of a segment, but other content.
    #[error("{} is not a segment; move it out of the data directory", file.display())]
    NotASegment {
        /// The file.
        file: PathBuf,
    },
    /// The first 64 bytes of a segment were changed; no crash does that.
    #[error(
        "the header of {} is damaged; restore the file from a copy, or move it and all \
         higher numbers away to start from the records before it",
        file.display()
    )]
    DamagedHeader {
        /// The file.
        file: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "{} has format version {found}, this program knows up to {known}; start the newer program",
        file.display()
    )]
    NewerFormat {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The highest version known here.
        known: u32,
    },
    /// A segment of another shard, log or number.
    #[error(
        "{} belongs to another place (shard {shard}, segment {segment}); move it out of the \
         data directory",
        file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
        /// The shard that its header names.
        shard: ShardNo,
        /// The segment that its header names.
        segment: SegmentNo,
    },
    /// A number between two segments has no file.
    #[error(
        "{} is missing; restore it from a copy, or move all higher numbers away to start from \
         the records before it",
        file.display()
    )]
    Missing {
        /// The file that should be there.
        file: PathBuf,
    },
    /// A whole and valid record that this program can't read.
    #[error(
        "{} holds at byte {offset} a record of kind {kind} (flags {flags:#04x}) that this program \
         does not know; start the newer program",
        file.display()
    )]
    UnknownRecord {
        /// The file.
        file: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// Its kind number.
        kind: u8,
        /// Its flags.
        flags: u8,
    },
}

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
    let mut walk = Walk {
        files,
        visit,
        chunk: Chunk {
            bytes: vec![0; CHUNK_BYTES + RECORD_BYTES_MAX],
            ..Chunk::default()
        },
        heads: Vec::new(),
        report: RecoverReport::default(),
    };
    let kept = walk.segments(&found)?;
    let (count, tail) = (kept.segments.len(), kept.segments.last());
    if let Some(unsealed) = kept.unsealed.last()
        && tail.is_some_and(|tail| tail.segment == unsealed.file.segment)
    {
        walk.report.truncated_bytes = walk.bytes_behind(unsealed)?;
    }
    walk.put_aside(&found[count..])?;
    for unsealed in &kept.unsealed {
        walk.seal(unsealed)?;
    }
    let log_id = found
        .first()
        .and_then(|file| file.header)
        .map(|header| header.log_id);
    Ok(Recovered {
        log_id: log_id.filter(|_| count > 0),
        report: RecoverReport {
            segments: count as u32,
            ..walk.report
        },
        start: LogStart {
            next_segment: SegmentNo(tail.map_or(0, |tail| tail.segment.0) + 1),
            last: kept.last,
            last_checksum: kept.last_checksum,
            segments: kept.segments,
        },
    })
}

/// A file with the name of a segment; no header if its bytes are still zero there.
#[derive(Clone, Copy)]
struct Found {
    file: SegmentFile,
    header: Option<SegmentHeader>,
}

/// A kept segment without a valid footer, and the footer it gets.
struct Unsealed {
    file: SegmentFile,
    data_end: u32,
    footer: Vec<u8>,
}

/// The longest valid prefix of the log.
#[derive(Default)]
struct Kept {
    segments: Vec<SegmentState>,
    unsealed: Vec<Unsealed>,
    last: Sequence,
    last_checksum: u32,
}

/// Lists the segments and checks that each can be read by this program, as this shard.
fn read_headers<F: SegmentFiles + ?Sized>(
    files: &mut F,
    shard: ShardNo,
) -> Result<Vec<Found>, RecoverError> {
    let mut found: Vec<Found> = Vec::new();
    for file in files.list()? {
        let path = |files: &F| files.path(file.segment);
        if let Some(before) = found.last()
            && before.file.segment.0 + 1 != file.segment.0
        {
            let missing = SegmentNo(before.file.segment.0 + 1);
            return Err(RecoverError::Missing {
                file: files.path(missing),
            });
        }
        let header = read_header(files, file)?;
        if let Some(header) = header {
            let log_id = found
                .iter()
                .find_map(|before| before.header)
                .map(|h| h.log_id);
            let same_log = log_id.is_none_or(|log_id| log_id == header.log_id);
            if header.shard != shard || header.segment != file.segment || !same_log {
                let SegmentHeader { shard, segment, .. } = header;
                return Err(RecoverError::Foreign {
                    file: path(files),
                    shard,
                    segment,
                });
            }
        }
        found.push(Found { file, header });
    }
    Ok(found)
}

fn read_header<F: SegmentFiles + ?Sized>(
    files: &mut F,
    file: SegmentFile,
) -> Result<Option<SegmentHeader>, RecoverError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let got = files.read_at(file.segment, 0, &mut bytes)?;
    let path = |files: &F| files.path(file.segment);
    if bytes == [0; SEGMENT_HEADER_BYTES] {
        // Never written, or its first sector lost by a power cut. Neither was ever sealed.
        let mut trailer = [0; TRAILER_BYTES];
        let at = file.bytes.saturating_sub(TRAILER_BYTES as u64);
        files.read_at(file.segment, at, &mut trailer)?;
        if Trailer::has_magic(&trailer) {
            return Err(RecoverError::DamagedHeader { file: path(files) });
        }
        return Ok(None);
    }
    let error = match SegmentHeader::decode(&bytes) {
        Ok(header) if header.first.0 > 0 && got == bytes.len() => return Ok(Some(header)),
        Err(BadHeader::Newer { found }) => RecoverError::NewerFormat {
            file: path(files),
            found,
            known: FORMAT_VERSION,
        },
        Err(BadHeader::Magic) if !SegmentHeader::is_torn_magic(&bytes) => {
            return Err(RecoverError::NotASegment { file: path(files) });
        }
        _ => RecoverError::DamagedHeader { file: path(files) },
    };
    // With nothing behind it, it is what a failed write left: there is no record to lose.
    let newer = matches!(error, RecoverError::NewerFormat { .. });
    let behind = not_zero(
        files,
        &mut vec![0; 64 << 10],
        file,
        SEGMENT_HEADER_BYTES as u64,
    )?;
    if newer || behind > 0 {
        Err(error)
    } else {
        Ok(None)
    }
}

/// Bytes from `from` to the last byte that is not zero.
fn not_zero<F: SegmentFiles + ?Sized>(
    files: &mut F,
    buffer: &mut [u8],
    file: SegmentFile,
    from: u64,
) -> Result<u64, FilesError> {
    let (mut offset, mut last) = (from, from);
    while let Some(data) = files.data_from(file.segment, offset)? {
        let got = files.read_at(file.segment, data, buffer)?;
        if got == 0 {
            break;
        }
        if let Some(index) = buffer[..got].iter().rposition(|byte| *byte != 0) {
            last = data + index as u64 + 1;
        }
        offset = data + got as u64;
    }
    Ok(last - from)
}

/// Where a walk through one segment is.
struct Position {
    segment: SegmentNo,
    /// Seed of the next record.
    checksum: u32,
    offset: u64,
    next: Sequence,
    take: u32,
}

impl Position {
    fn new(header: SegmentHeader) -> Self {
        Self {
            segment: header.segment,
            checksum: header.checksum(),
            offset: SEGMENT_HEADER_BYTES as u64,
            next: header.first,
            take: header.take,
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
    fn describe<'a>(&self, record: &Decoded<'a>) -> RecoveredRecord<'a> {
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
        }
    }

    fn pass(&mut self, record: &Decoded<'_>) {
        self.offset += u64::from(record.record_bytes);
        self.next = Sequence(self.next.0 + 1);
        self.take = record.take;
        self.checksum = record.checksum;
    }

    fn state(&self, first: Sequence) -> SegmentState {
        SegmentState {
            segment: self.segment,
            first,
            last: Sequence(self.next.0 - 1),
            data_end: self.offset as u32,
            record_bytes: self.offset - SEGMENT_HEADER_BYTES as u64,
            dead_bytes: 0,
        }
    }
}

/// One pass over the files.
struct Walk<'a, F: ?Sized> {
    files: &'a mut F,
    visit: &'a mut dyn FnMut(&RecoveredRecord<'_>),
    chunk: Chunk,
    heads: Vec<u8>,
    report: RecoverReport,
}

impl<F: SegmentFiles + ?Sized> Walk<'_, F> {
    /// Visits the longest valid prefix.
    fn segments(&mut self, found: &[Found]) -> Result<Kept, RecoverError> {
        let mut kept = Kept::default();
        for (index, Found { file, header }) in found.iter().enumerate() {
            let follows = |header: &SegmentHeader| {
                index == 0
                    || (header.first.0 == kept.last.0 + 1 && header.previous == kept.last_checksum)
            };
            let Some(header) = header.filter(follows) else {
                break;
            };
            let at = match self.by_footer(*file, header)? {
                Some(at) => {
                    self.report.sealed += 1;
                    at
                }
                None => {
                    let next = found.get(index + 1).and_then(|found| found.header);
                    let (at, footer) = self.by_scan(*file, header, next)?;
                    if footer.count() == 0 {
                        break;
                    }
                    let (data_end, seed) = (at.offset as u32, header.checksum());
                    let footer = footer.finish(header.first, data_end, at.checksum, seed);
                    kept.unsealed.push(Unsealed {
                        file: *file,
                        data_end,
                        footer,
                    });
                    at
                }
            };
            kept.last = Sequence(at.next.0 - 1);
            kept.last_checksum = at.checksum;
            kept.segments.push(at.state(header.first));
        }
        Ok(kept)
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
            Position::new(header).follow(&heads, &trailer, |at, record| self.visit(at, record));
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
        let Some(trailer_at) = file.bytes.checked_sub(TRAILER_BYTES as u64) else {
            return Ok(None);
        };
        let mut bytes = [0; TRAILER_BYTES];
        self.files.read_at(file.segment, trailer_at, &mut bytes)?;
        let plausible = |trailer: &Trailer| {
            u64::from(trailer.data_end) + u64::from(trailer.heads_bytes) == trailer_at
                && trailer.first == header.first
                && trailer.count > 0
                && trailer.last.0.checked_sub(trailer.first.0) == Some(u64::from(trailer.count) - 1)
        };
        let Some(trailer) = Trailer::decode(&bytes, header.checksum()).filter(plausible) else {
            return Ok(None);
        };
        self.heads.resize(trailer.heads_bytes as usize, 0);
        let got = self
            .files
            .read_at(file.segment, trailer.data_end.into(), &mut self.heads)?;
        self.report.read_bytes += (got + TRAILER_BYTES) as u64;
        Ok((got == self.heads.len()).then_some(trailer))
    }

    /// Visits the records of a segment up to the first that is not valid; returns its footer too.
    fn by_scan(
        &mut self,
        file: SegmentFile,
        header: SegmentHeader,
        next: Option<SegmentHeader>,
    ) -> Result<(Position, Footer), RecoverError> {
        let mut at = Position::new(header);
        let mut footer = Footer::default();
        let end = file.bytes.min(u32::MAX.into());
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.forget();
        loop {
            let bytes = chunk.window(self.files, file.segment, at.offset)?;
            let record = match at.accept(bytes, end) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(Invalid::Unknown { kind, flags }) => {
                    let (file, offset) = (self.files.path(file.segment), at.offset);
                    return Err(RecoverError::UnknownRecord {
                        file,
                        offset,
                        kind,
                        flags,
                    });
                }
                Err(Invalid::NotARecord) => break,
            };
            // A flush that failed left it here; the log then went on in the next segment.
            let dropped =
                next.is_some_and(|next| record.sequence >= next.first && record.take < next.take);
            let payload_bytes = record.payload_bytes.unwrap_or(0) as usize;
            let head_bytes = record.head_bytes as usize;
            let payload = bytes.get(head_bytes..head_bytes + payload_bytes);
            let verified = payload.is_some_and(|payload| {
                record.payload_bytes.is_none() || record.head.verify(payload)
            });
            if dropped || !verified {
                break;
            }
            self.visit(&at, &record);
            footer.push(&bytes[..head_bytes]);
            at.pass(&record);
        }
        self.report.read_bytes += chunk.read_bytes();
        self.chunk = chunk;
        Ok((at, footer))
    }

    fn visit(&mut self, at: &Position, record: &Decoded<'_>) {
        self.report.records += 1;
        self.report.record_bytes += u64::from(record.record_bytes);
        (self.visit)(&at.describe(record));
    }

    /// Bytes between the end of the log and the last byte that is not zero, unless they are the
    /// footer that a crash kept from being the end of its file.
    fn bytes_behind(&mut self, tail: &Unsealed) -> Result<u64, RecoverError> {
        let data_end = u64::from(tail.data_end);
        let bytes = not_zero(self.files, &mut self.chunk.bytes, tail.file, data_end)?;
        if bytes <= tail.footer.len() as u64 {
            let mut behind = vec![0; tail.footer.len()];
            self.files
                .read_at(tail.file.segment, data_end, &mut behind)?;
            if behind == tail.footer {
                return Ok(0);
            }
        }
        Ok(bytes)
    }

    /// Takes the segments behind the end of the log out of it, the last one first, so that a
    /// crash in between leaves no gap.
    fn put_aside(&mut self, behind: &[Found]) -> Result<(), RecoverError> {
        for Found { file, header } in behind.iter().rev() {
            let from = header.map_or(0, |_| SEGMENT_HEADER_BYTES as u64);
            if not_zero(self.files, &mut self.chunk.bytes, *file, from)? == 0 {
                self.files.remove_empty(file.segment)?;
            } else {
                self.files.set_aside(file.segment)?;
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
        self.files.sync(segment)?;
        if unsealed.file.bytes > end {
            self.files.truncate(segment, end)?;
        }
        Ok(())
    }
}

/// A stretch of a file, read ahead.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Offset of the first byte in the file.
    start: u64,
    /// Bytes that were read.
    len: usize,
    read_bytes: u64,
}

impl Chunk {
    fn forget(&mut self) {
        (self.start, self.len, self.read_bytes) = (0, 0, 0);
    }

    fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The bytes at `offset`, which never goes back: at least [`RECORD_BYTES_MAX`] of them, less
    /// only at the end of the file.
    fn window<F: SegmentFiles + ?Sized>(
        &mut self,
        files: &mut F,
        segment: SegmentNo,
        offset: u64,
    ) -> Result<&[u8], FilesError> {
        let mut skip = (offset - self.start) as usize;
        let ended = self.len > 0 && self.len < self.bytes.len();
        if !ended && (self.len == 0 || self.len - skip < RECORD_BYTES_MAX) {
            let kept = self.len.saturating_sub(skip);
            self.bytes.copy_within(self.len - kept..self.len, 0);
            let at = offset + kept as u64;
            let got = files.read_at(segment, at, &mut self.bytes[kept..])?;
            self.read_bytes += got as u64;
            (self.start, self.len, skip) = (offset, kept + got, 0);
        }
        Ok(&self.bytes[skip..self.len])
    }
}
