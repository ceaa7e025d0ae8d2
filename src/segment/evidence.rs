//! What a log says of its own durability, found where its records can't be followed.
//!
//! Floor 1, a part of recovery: blocking, over [`SegmentFiles`]. Behind a record that can't be read
//! nothing can be parsed in order, but some bytes speak for themselves: headers and trailers by
//! their place and checksum, [`Head::Synced`](super::Head::Synced) by a proof that only the log
//! can make. Costs one pass over what is not a hole, and is asked for only where a log ends before
//! its files do.
//!
//! Invariants
//! - nothing here is believed that an agent could have put into a payload.
//! - what a log once said stays true: a record that was synced is never rolled back.

use super::files::{FilesError, SegmentFile, SegmentFiles};
use super::footer::{TRAILER_BYTES, Trailer};
use super::format::{
    LogId, RECORD_ALIGN, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SYNCED_BYTES, synced_at,
};
use super::header::SegmentHeader;
use super::{Location, Sequence};

/// Bytes looked through at a time.
pub(super) const LOOK_BYTES: usize = 64 << 10;

/// A file with the name of a segment; no header if its bytes are still zero there.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) file: SegmentFile,
    pub(super) header: Option<SegmentHeader>,
}

/// The end of what could be read of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Where the bytes were that are not part of the log: up to the last that was not zero.
    pub at: Location,
    /// The record that would have been there.
    pub sequence: Sequence,
    /// The checksum of the segment's header: part of the name that the bytes are kept under.
    pub mark: u32,
}

/// The last record that these files prove to have been on the device: all of them, but of the
/// first only what comes at byte `from` and behind it. 0 if they prove nothing.
pub(super) fn proven<F: SegmentFiles + ?Sized>(
    files: &mut F,
    buffer: &mut [u8],
    found: &[Found],
    from: u64,
    log_id: LogId,
) -> Result<Sequence, FilesError> {
    let mut proven = Sequence(0);
    for (index, Found { file, header }) in found.iter().enumerate() {
        let from = if index == 0 { from } else { 0 };
        if let Some(header) = header {
            if from == 0 {
                proven = proven.max(header.synced);
            }
            if let Some(trailer) = trailer_of(files, *file, header)? {
                proven = proven.max(trailer.last);
                continue;
            }
        }
        let from = from.max(SEGMENT_HEADER_BYTES as u64);
        each_chunk(files, buffer, *file, from, |_, bytes| {
            let places = bytes.len().saturating_sub(RECORD_HEADER_BYTES - 1);
            for at in (0..places).step_by(RECORD_ALIGN) {
                proven = proven.max(synced_at(&bytes[at..], log_id).unwrap_or_default());
            }
        })?;
    }
    Ok(proven)
}

/// The trailer at the end of a segment's file, if there is one of this segment.
pub(super) fn trailer_of<F: SegmentFiles + ?Sized>(
    files: &mut F,
    file: SegmentFile,
    header: &SegmentHeader,
) -> Result<Option<Trailer>, FilesError> {
    let Some(at) = file.bytes.checked_sub(TRAILER_BYTES as u64) else {
        return Ok(None);
    };
    let mut bytes = [0; TRAILER_BYTES];
    files.read_at(file.segment, at, &mut bytes)?;
    Ok(Trailer::decode(&bytes, header.checksum()))
}

/// Bytes from `from` to the last byte that is not zero.
pub(super) fn not_zero<F: SegmentFiles + ?Sized>(
    files: &mut F,
    buffer: &mut [u8],
    file: SegmentFile,
    from: u64,
) -> Result<u64, FilesError> {
    let mut end = from;
    each_chunk(files, buffer, file, from, |at, bytes| {
        if let Some(index) = bytes.iter().rposition(|byte| *byte != 0) {
            end = end.max(at + index as u64 + 1);
        }
    })?;
    Ok(end - from)
}

/// Calls `each` with the offset and the bytes of whatever is not zero before `file.bytes`, in
/// pieces that begin on multiples of [`RECORD_ALIGN`] and overlap by less than a [`SYNCED_BYTES`],
/// so that each such record is whole in one of them.
fn each_chunk<F: SegmentFiles + ?Sized>(
    files: &mut F,
    buffer: &mut [u8],
    file: SegmentFile,
    from: u64,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), FilesError> {
    debug_assert!(buffer.len() > 2 * SYNCED_BYTES && buffer.len().is_multiple_of(RECORD_ALIGN));
    let mut offset = from;
    while let Some(data) = files.data_from(file.segment, offset)? {
        let start = (data - data % RECORD_ALIGN as u64).max(offset);
        let got = files.read_at(file.segment, start, buffer)?;
        let inside = file.bytes.saturating_sub(start).min(got as u64) as usize;
        if !is_zero(&buffer[..inside]) {
            each(start, &buffer[..inside]);
        }
        if got < buffer.len() {
            break;
        }
        offset = start + (got - SYNCED_BYTES + RECORD_ALIGN) as u64;
    }
    Ok(())
}

/// Most of a preallocated file is: one comparison of memory is faster than a look at each byte.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [first, rest @ ..] => *first == 0 && *rest == bytes[..rest.len()],
        [] => true,
    }
}
