//! The bytes of records; `header` and `footer` have the rest of a segment file, `fields` what the
//! numbers in a record mean.
//!
//! Floor 1. Pure functions of bytes: no file, no clock, no state. `FORMAT.md` beside this file is
//! the same in words; a stranger can implement from it.
//!
//! Invariants
//! - everything is little-endian; records begin on multiples of [`RECORD_ALIGN`].
//! - a record's head (header, id, key) is covered by its checksum, which continues that of the
//!   record before it, and at the start of a segment that of its header: a record is valid only
//!   behind the very bytes that it was written behind. Its payload is covered by its id.
//! - decoding never panics and never reads outside the slice, whatever the bytes are.

use crate::id::{AGENT_NAME_BYTES_MAX, KEY_BYTES_MAX, OBJECT_ID_BYTES, ObjectId};

use super::Sequence;
use super::fields::{FLAG_ID, FLAG_PAYLOAD, Fields, KIND_SYNCED};
use super::record::{Head, Record};

/// Version of the byte layout that is written here; older ones are read, newer ones refused.
pub const FORMAT_VERSION: u32 = 2;
/// The oldest version that is read. Its records are all among those of the newest; its headers settle
/// nothing.
pub const FORMAT_VERSION_MIN: u32 = 1;
/// Bytes of the header of a segment file.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes of a record's fixed header.
pub const RECORD_HEADER_BYTES: usize = 40;
/// Records begin on multiples of this.
pub const RECORD_ALIGN: usize = 8;
/// Longest value, or part of one, that one submission carries.
pub const PART_BYTES_MAX: usize = 64 << 10;
/// Largest payload. Chunks, and nodes of either kind, are far shorter.
pub const PAYLOAD_BYTES_MAX: usize = PART_BYTES_MAX + (4 << 10);
/// Longest name of a branch or a tag, in bytes.
pub const BRANCH_NAME_BYTES_MAX: usize = 255;
/// Largest header, id and key together.
pub const HEAD_BYTES_MAX: usize = RECORD_HEADER_BYTES + OBJECT_ID_BYTES + KEY_BYTES_MAX;
/// Largest record, padding included.
pub const RECORD_BYTES_MAX: usize = align(HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX);
/// A [`Head::Synced`] in the file.
pub const SYNCED_BYTES: usize = align(RECORD_HEADER_BYTES);

const _: () = {
    assert!(AGENT_NAME_BYTES_MAX <= KEY_BYTES_MAX && KEY_BYTES_MAX <= u16::MAX as usize);
    assert!(SEGMENT_HEADER_BYTES.is_multiple_of(RECORD_ALIGN));
};

/// Names one shard's log: random, drawn when its directory is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct LogId(pub u64);

/// `bytes` rounded up to a multiple of [`RECORD_ALIGN`].
#[must_use]
pub const fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(RECORD_ALIGN)
}

/// CRC-32 of `bytes`, continued from `seed` (zlib's `crc32(seed, bytes)`).
pub(super) fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// A record that was encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// Bytes of header, id and key.
    pub head_bytes: usize,
    /// Seed of the next record.
    pub checksum: u32,
}

/// Appends a record to `out`, padding included.
///
/// `take` counts the log's rollbacks: see `FORMAT.md`. `seed` is the checksum of the record
/// before it, or of the segment's header. The record must be [`Record::within_limits`].
pub fn encode(
    record: &Record<'_>,
    sequence: Sequence,
    take: u32,
    seed: u32,
    out: &mut Vec<u8>,
) -> Encoded {
    assert!(
        record.within_limits(),
        "a record larger than the format allows"
    );
    let fields = Fields::of(&record.head).payload(record.payload);
    let tree_bytes = fields.ids[1].map_or(0, |_| OBJECT_ID_BYTES);
    let key_bytes = tree_bytes + fields.numbers().len() + fields.key.len();

    let start = out.len();
    let mut header = [0; RECORD_HEADER_BYTES];
    header[4] = fields.kind;
    header[5] = fields.flags;
    header[6..8].copy_from_slice(&(key_bytes as u16).to_le_bytes());
    header[8..16].copy_from_slice(&sequence.0.to_le_bytes());
    header[16..24].copy_from_slice(&fields.owner.to_le_bytes());
    header[24..28].copy_from_slice(&fields.payload_bytes.to_le_bytes());
    header[28..32].copy_from_slice(&take.to_le_bytes());
    header[32..40].copy_from_slice(&fields.value_bytes.to_le_bytes());
    out.extend_from_slice(&header);
    for id in fields.ids.iter().flatten() {
        out.extend_from_slice(id.as_bytes());
    }
    out.extend_from_slice(fields.numbers());
    out.extend_from_slice(fields.key);
    let head_bytes = out.len() - start;
    let checksum = checksum(seed, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(record.payload.unwrap_or_default());
    out.resize(start + align(out.len() - start), 0);
    Encoded {
        head_bytes,
        checksum,
    }
}

/// What makes a [`Head::Synced`] believed where the records before it can't be read: agents choose
/// bytes of payloads, but don't know the log's id. `sequence` is that of the record itself.
#[must_use]
pub fn synced_proof(log_id: LogId, sequence: Sequence, upto: Sequence) -> u64 {
    let mut said = [0; 24];
    said[..8].copy_from_slice(&log_id.0.to_le_bytes());
    said[8..16].copy_from_slice(&sequence.0.to_le_bytes());
    said[16..].copy_from_slice(&upto.0.to_le_bytes());
    ObjectId::of_blob(&said).hash64()
}

/// What a [`Head::Synced`] of this log says that `bytes` begin with, whatever lies before them.
#[must_use]
pub fn synced_at(bytes: &[u8], log_id: LogId) -> Option<Sequence> {
    let header: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk()?;
    if header[4..8] != [KIND_SYNCED, 0, 0, 0] {
        return None;
    }
    let (sequence, upto) = (Sequence(u64_at(header, 8)), Sequence(u64_at(header, 32)));
    (u64_at(header, 16) == synced_proof(log_id, sequence, upto)).then_some(upto)
}

/// A decoded head, and where the rest of the record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoded<'a> {
    /// Position in the log.
    pub sequence: Sequence,
    /// Rollbacks of the log before it was written.
    pub take: u32,
    /// What it says.
    pub head: Head<'a>,
    /// Bytes of header, id and key; the payload follows.
    pub head_bytes: u32,
    /// Length of the payload, if the record holds one.
    pub payload_bytes: Option<u32>,
    /// Bytes of the record, padding included.
    pub record_bytes: u32,
    /// Seed of the next record.
    pub checksum: u32,
}

/// Why bytes are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// Zeros, torn bytes, or bytes of another segment.
    #[error("no record is here")]
    NotARecord,
    /// The checksum is right, but this version has no such record.
    #[error("a record of kind {kind} with flags {flags:#04x} is unknown to this version")]
    Unknown {
        /// Its kind number.
        kind: u8,
        /// Its flags.
        flags: u8,
    },
}

/// Decodes the head of the record that `bytes` begins with. The payload need not be in `bytes`,
/// and is not verified: see [`Head::verify`].
///
/// # Errors
/// [`Invalid`], for any bytes that [`encode`] did not write with this seed.
pub fn decode(bytes: &[u8], seed: u32) -> Result<Decoded<'_>, Invalid> {
    let header: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk().ok_or(Invalid::NotARecord)?;
    let (kind, flags) = (header[4], header[5]);
    let key_bytes = usize::from(u16_at(header, 6));
    let payload_bytes = u32_at(header, 24);
    let id_bytes = if flags & FLAG_ID == 0 {
        0
    } else {
        OBJECT_ID_BYTES
    };
    let head_bytes = RECORD_HEADER_BYTES + id_bytes + key_bytes;
    if kind == 0 || key_bytes > KEY_BYTES_MAX || payload_bytes as usize > PAYLOAD_BYTES_MAX {
        return Err(Invalid::NotARecord);
    }
    let covered = bytes.get(4..head_bytes).ok_or(Invalid::NotARecord)?;
    if checksum(seed, covered) != u32_at(header, 0) {
        return Err(Invalid::NotARecord);
    }
    let rest = &bytes[RECORD_HEADER_BYTES..head_bytes];
    let (id, key) = rest.split_at(id_bytes);
    let id = id.first_chunk().map(|bytes| ObjectId::from_bytes(*bytes));
    let fields = Fields {
        kind,
        flags,
        owner: u64_at(header, 16),
        value_bytes: u64_at(header, 32),
        payload_bytes,
        ids: [id, None],
        key,
        ..Fields::NONE
    };
    let head = fields.head().ok_or(Invalid::Unknown { kind, flags })?;
    let has_payload = flags & FLAG_PAYLOAD != 0;
    Ok(Decoded {
        sequence: Sequence(u64_at(header, 8)),
        take: u32_at(header, 28),
        head,
        head_bytes: head_bytes as u32,
        payload_bytes: has_payload.then_some(payload_bytes),
        record_bytes: align(head_bytes + payload_bytes as usize) as u32,
        checksum: u32_at(header, 0),
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
