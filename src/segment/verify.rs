//! Reads every byte of a shard's segments that means something, and says which are not what was written.
//!
//! Floor 1. Blocking, over [`SegmentFiles`]; changes nothing. Recovery believes a footer and the ids of
//! payloads that it does not read; here each record is read where it lies, compared with its copy in
//! the footer, and its payload with its id. Where the log ends, recovery has told.
//!
//! Cost: one pass over the files, every payload hashed. Memory: 1.1 MiB, and the largest footer.
//!
//! Invariants
//! - a damaged place hides no other: the next record is found by the footer, or, where there is none, by
//!   the lengths in the head, as long as heads are good.

use std::path::PathBuf;

use crate::id::{ObjectId, SegmentNo};

use super::chunk::Chunk;
use super::evidence::{LOOK_BYTES, not_zero, trailer_of};
use super::files::{FilesError, SegmentFile, SegmentFiles};
use super::footer::{Footer, TRAILER_BYTES, Trailer};
use super::format::{Decoded, SEGMENT_HEADER_BYTES, decode};
use super::header::SegmentHeader;
use super::record::Head;
use super::{Location, SegmentState, Sequence};

/// What is wrong at a place in a segment's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// The first 64 bytes can't be read.
    Header,
    /// The head of a record is not what its copy in the footer says, which is good.
    Head,
    /// The bytes of an object do not have its id.
    Payload,
    /// No record is here, where one has to be: nothing behind it in the segment can be read.
    Record,
    /// The footer, or a part of it; the records are good.
    Footer,
    /// Bytes behind the end of the log that are no part of it: what a power cut may leave. The next start
    /// keeps them aside.
    Behind,
}

impl FaultKind {
    /// Whether something is damaged; else it is only told.
    #[must_use]
    pub fn is_damage(self) -> bool {
        self != Self::Behind
    }
}

/// Something wrong in a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The segment.
    pub segment: SegmentNo,
    /// Its file.
    pub file: PathBuf,
    /// Where in the file the part begins that is damaged.
    pub offset: u64,
    /// Its bytes, where they are known.
    pub bytes: u64,
    /// What it is.
    pub kind: FaultKind,
    /// The object whose bytes they were.
    pub id: Option<ObjectId>,
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Read {
    /// Segments.
    pub segments: u64,
    /// Records.
    pub records: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// Whoever hears of what is found.
pub struct Listener<'a> {
    /// Something is wrong.
    pub fault: &'a mut dyn FnMut(Fault),
    /// So many bytes more were gone through.
    pub progress: &'a mut dyn FnMut(u64),
}

/// Reads all segments. `log`: the segments that recovery found to be the log; none where it found it
/// damaged.
///
/// # Errors
/// A file can't be read at all.
pub fn verify<F: SegmentFiles + ?Sized>(
    files: &mut F,
    log: Option<&[SegmentState]>,
    listener: &mut Listener<'_>,
) -> Result<Read, FilesError> {
    let mut pass = Pass {
        chunk: Chunk::new(),
        look: vec![0; LOOK_BYTES],
        read: Read::default(),
        files,
        listener,
    };
    for file in pass.files.list()? {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        pass.files.read_at(file.segment, 0, &mut bytes)?;
        let state = log.map(|log| log.iter().find(|state| state.segment == file.segment));
        match (SegmentHeader::decode(&bytes), state) {
            (Ok(header), Some(Some(state))) => {
                pass.segment(file, header, Some(state.data_end.into()))?;
            }
            (Ok(header), None) => pass.segment(file, header, None)?,
            // Not of the log.
            (_, Some(_)) => pass.behind(file, 0, FaultKind::Behind)?,
            (Err(_), None) => pass.behind(file, 0, FaultKind::Header)?,
        }
        (pass.listener.progress)(file.bytes);
    }
    Ok(pass.read)
}

/// A place between two records of a segment.
struct At {
    seed: u32,
    offset: u64,
    next: Sequence,
    take: u32,
}

impl At {
    fn new(header: &SegmentHeader) -> Self {
        Self {
            seed: header.checksum(),
            offset: SEGMENT_HEADER_BYTES as u64,
            next: header.first,
            take: header.take,
        }
    }

    /// The record that `bytes` begin with, if it is the next one and ends before `end`.
    fn accept<'a>(&self, bytes: &'a [u8], end: u64) -> Option<Decoded<'a>> {
        let record = decode(bytes, self.seed).ok()?;
        let fits = self.offset + u64::from(record.record_bytes) <= end;
        let follows = record.sequence == self.next && record.take >= self.take;
        (fits && follows).then_some(record)
    }

    fn pass(&mut self, record: &Decoded<'_>) {
        self.offset += u64::from(record.record_bytes);
        self.next = Sequence(self.next.0 + 1);
        (self.seed, self.take) = (record.checksum, record.take);
    }
}

struct Pass<'a, 'l, F: ?Sized> {
    files: &'a mut F,
    listener: &'a mut Listener<'l>,
    chunk: Chunk,
    look: Vec<u8>,
    read: Read,
}

impl<F: SegmentFiles + ?Sized> Pass<'_, '_, F> {
    /// Reads a segment whose header is good, up to `end` if that is known.
    fn segment(
        &mut self,
        file: SegmentFile,
        header: SegmentHeader,
        end: Option<u64>,
    ) -> Result<(), FilesError> {
        self.read.segments += 1;
        self.chunk.forget();
        match self.footer(file, &header)? {
            Some((heads, end)) => self.by_footer(file, &header, &heads, end),
            None => self.by_scan(file, &header, end),
        }
    }

    fn fault(&mut self, file: SegmentFile, kind: FaultKind, offset: u64, bytes: u64) {
        self.fault_of(file, kind, offset, bytes, None);
    }

    fn fault_of(
        &mut self,
        file: SegmentFile,
        kind: FaultKind,
        offset: u64,
        bytes: u64,
        id: Option<ObjectId>,
    ) {
        (self.listener.fault)(Fault {
            segment: file.segment,
            file: self.files.path(file.segment),
            offset,
            bytes,
            kind,
            id,
        });
    }

    /// Says that there are bytes at or behind `from`, if there are.
    fn behind(&mut self, file: SegmentFile, from: u64, kind: FaultKind) -> Result<(), FilesError> {
        let bytes = not_zero(self.files, &mut self.look, file, from)?;
        if bytes > 0 {
            self.fault(file, kind, from, bytes);
        }
        Ok(())
    }

    /// The heads in a footer, all of which are good, and where the data ends.
    fn footer(
        &mut self,
        file: SegmentFile,
        header: &SegmentHeader,
    ) -> Result<Option<(Vec<u8>, u64)>, FilesError> {
        let Some(trailer) = trailer_of(self.files, file, header)? else {
            return Ok(None);
        };
        let (end, bytes) = (u64::from(trailer.data_end), trailer.heads_bytes as usize);
        if end + (bytes + TRAILER_BYTES) as u64 != file.bytes {
            return Ok(None);
        }
        let mut heads = vec![0; bytes];
        let got = self.files.read_at(file.segment, end, &mut heads)?;
        let mut at = At::new(header);
        let mut rest = &heads[..got];
        while let Some(record) = at.accept(rest, end) {
            rest = &rest[record.head_bytes as usize..];
            at.pass(&record);
        }
        let last = at.next.0 - 1;
        let whole = rest.is_empty() && at.offset == end && at.seed == trailer.last_checksum;
        let counted = trailer.first == header.first
            && trailer.last.0 == last
            && u64::from(trailer.count) == at.next.0 - header.first.0;
        Ok((whole && counted && got == bytes).then_some((heads, end)))
    }

    /// Compares each record with its head in the footer, and its payload with its id.
    fn by_footer(
        &mut self,
        file: SegmentFile,
        header: &SegmentHeader,
        heads: &[u8],
        end: u64,
    ) -> Result<(), FilesError> {
        let mut at = At::new(header);
        let mut rest = heads;
        while let Some(record) = at.accept(rest, end) {
            let head_bytes = record.head_bytes as usize;
            let wanted = &rest[..head_bytes];
            let found = self.chunk.window(self.files, file.segment, at.offset)?;
            let differs = (0..head_bytes).find(|&byte| found.get(byte) != wanted.get(byte));
            let good = is_payload_good(&record, found);
            if let Some(byte) = differs {
                let bytes = (head_bytes - byte) as u64;
                self.fault(file, FaultKind::Head, at.offset + byte as u64, bytes);
            }
            self.note(file, &at, &record, good);
            rest = &rest[head_bytes..];
            at.pass(&record);
        }
        Ok(())
    }

    /// Reads the records one behind the other, and says why there is no footer.
    fn by_scan(
        &mut self,
        file: SegmentFile,
        header: &SegmentHeader,
        end: Option<u64>,
    ) -> Result<(), FilesError> {
        let mut at = At::new(header);
        let mut footer = Footer::default();
        let last = end.unwrap_or(file.bytes);
        while at.offset < last {
            let found = self.chunk.window(self.files, file.segment, at.offset)?;
            let Some(record) = at.accept(found, last) else {
                break;
            };
            let good = is_payload_good(&record, found);
            footer.push(&found[..record.head_bytes as usize]);
            let copy = Noted::of(&record);
            let (offset, bytes) = (at.offset, record.record_bytes);
            at.pass(&record);
            self.note_at(file, offset, bytes, copy, good);
        }
        if end.is_some_and(|end| at.offset < end) {
            self.fault(file, FaultKind::Record, at.offset, 0);
            return Ok(());
        }
        let footer = footer.finish(header.first, at.offset as u32, at.seed, header.checksum());
        self.end(file, at.offset, &footer, end.is_some())
    }

    /// Looks at what is behind the records of a segment whose footer can't be read.
    fn end(
        &mut self,
        file: SegmentFile,
        end: u64,
        footer: &[u8],
        is_known: bool,
    ) -> Result<(), FilesError> {
        let mut found = vec![0; footer.len()];
        let got = self.files.read_at(file.segment, end, &mut found)?;
        let mut pairs = found[..got].iter().zip(footer);
        if file.bytes == end + footer.len() as u64 {
            // It was sealed: only that cuts a file to this length.
            if let Some(differs) = pairs.position(|(found, wanted)| found != wanted) {
                let bytes = (footer.len() - differs) as u64;
                self.fault(file, FaultKind::Footer, end + differs as u64, bytes);
            }
            return Ok(());
        }
        let behind = not_zero(self.files, &mut self.look, file, end)?;
        let is_torn = behind <= footer.len() as u64
            && pairs.all(|(found, wanted)| *found == 0 || found == wanted);
        if behind == 0 || is_torn {
            return Ok(());
        }
        let mut trailer = [0; TRAILER_BYTES];
        let at = file.bytes.saturating_sub(TRAILER_BYTES as u64);
        self.files.read_at(file.segment, at, &mut trailer)?;
        let kind = match (Trailer::has_magic(&trailer), is_known) {
            (true, true) => FaultKind::Footer,
            (_, false) => FaultKind::Record,
            (false, true) => FaultKind::Behind,
        };
        self.fault(file, kind, end, behind);
        Ok(())
    }

    fn note(&mut self, file: SegmentFile, at: &At, record: &Decoded<'_>, good: bool) {
        let copy = Noted::of(record);
        self.note_at(file, at.offset, record.record_bytes, copy, good);
    }

    fn note_at(&mut self, file: SegmentFile, at: u64, bytes: u32, record: Noted, good: bool) {
        self.read.records += 1;
        self.read.bytes += u64::from(bytes);
        if !good {
            let Noted {
                head_bytes,
                payload_bytes,
                id,
            } = record;
            let (kind, offset) = (FaultKind::Payload, at + u64::from(head_bytes));
            self.fault_of(file, kind, offset, payload_bytes.into(), id);
        }
    }
}

/// What a fault says of a record.
struct Noted {
    head_bytes: u32,
    payload_bytes: u32,
    id: Option<ObjectId>,
}

impl Noted {
    fn of(record: &Decoded<'_>) -> Self {
        let id = match record.head {
            Head::Put { id, .. } | Head::Object { id, .. } => Some(id),
            _ => None,
        };
        Self {
            head_bytes: record.head_bytes,
            payload_bytes: record.payload_bytes.unwrap_or(0),
            id,
        }
    }
}

/// Whether the payload of a record that lies at the beginning of `found` is what its id names.
fn is_payload_good(record: &Decoded<'_>, found: &[u8]) -> bool {
    let Some(bytes) = record.payload_bytes else {
        return true;
    };
    let start = record.head_bytes as usize;
    let payload = found.get(start..start + bytes as usize);
    payload.is_some_and(|payload| record.head.verify(payload))
}

impl Fault {
    /// The place of an object's bytes that are damaged.
    #[must_use]
    pub fn payload(&self) -> Option<Location> {
        let at = Location {
            segment: self.segment,
            offset: u32::try_from(self.offset).ok()?,
            bytes: u32::try_from(self.bytes).ok()?,
        };
        (self.kind == FaultKind::Payload).then_some(at)
    }
}
