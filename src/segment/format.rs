//! The bytes of segment files: header and records; `footer` has the rest.
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

use crate::id::{AGENT_NAME_BYTES_MAX, VALUE_BYTES_MAX};
use crate::id::{AgentNo, BranchNo, KEY_BYTES_MAX, OBJECT_ID_BYTES, ObjectId, SegmentNo, ShardNo};

use super::Sequence;
use super::record::{Head, ObjectKind, Record};

/// Version of the byte layout that is written here; older ones are read, newer ones refused.
pub const FORMAT_VERSION: u32 = 1;
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
/// A [`Record::Synced`] in the file.
pub const SYNCED_BYTES: usize = align(RECORD_HEADER_BYTES);

const SEGMENT_MAGIC: [u8; 8] = *b"HELIOSEG";

const KIND_AGENT: u8 = 1;
const KIND_PUT: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_OBJECT: u8 = 4;
const KIND_SYNCED: u8 = 5;
const KIND_BRANCH: u8 = 6;
const KIND_BRANCH_GONE: u8 = 7;
const KIND_TAG: u8 = 8;

const FLAG_ID: u8 = 1;
const FLAG_PAYLOAD: u8 = 2;
const FLAG_CHUNKS: u8 = 4;
const FLAG_PUBLIC: u8 = 8;
const FLAG_NODE: u8 = 16;
const FLAG_CHECKPOINT: u8 = 32;
const FLAG_KEPT: u8 = 64;

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

impl ObjectKind {
    const fn flags(self) -> u8 {
        match self {
            Self::Blob => 0,
            Self::Chunks => FLAG_CHUNKS,
            Self::Node => FLAG_NODE,
            Self::Checkpoint => FLAG_CHECKPOINT,
        }
    }

    fn from_flags(flags: u8) -> Option<Self> {
        let kinds = [Self::Blob, Self::Chunks, Self::Node, Self::Checkpoint];
        kinds
            .into_iter()
            .find(|kind| kind.flags() == flags & (FLAG_CHUNKS | FLAG_NODE | FLAG_CHECKPOINT))
    }
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
    let mut fields = Fields::of(record);
    let payload = record.payload();
    fields.flags |= if payload.is_some() { FLAG_PAYLOAD } else { 0 };
    fields.flags |= if fields.ids[0].is_some() { FLAG_ID } else { 0 };
    if let Record::Synced { log_id, upto } = *record {
        fields.owner = synced_proof(log_id, sequence, upto);
    }
    let payload = payload.unwrap_or_default();
    let key_bytes = fields.ids[1].map_or(0, |_| OBJECT_ID_BYTES) + fields.key.len();

    let start = out.len();
    let mut header = [0; RECORD_HEADER_BYTES];
    header[4] = fields.kind;
    header[5] = fields.flags;
    header[6..8].copy_from_slice(&(key_bytes as u16).to_le_bytes());
    header[8..16].copy_from_slice(&sequence.0.to_le_bytes());
    // Agent and branch; in a Synced both are its proof.
    header[16..24].copy_from_slice(&fields.owner.to_le_bytes());
    header[24..28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[28..32].copy_from_slice(&take.to_le_bytes());
    header[32..40].copy_from_slice(&fields.value_bytes.to_le_bytes());
    out.extend_from_slice(&header);
    for id in fields.ids.iter().flatten() {
        out.extend_from_slice(id.as_bytes());
    }
    out.extend_from_slice(fields.key);
    let head_bytes = out.len() - start;
    let checksum = checksum(seed, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(start + align(out.len() - start), 0);
    Encoded {
        head_bytes,
        checksum,
    }
}

/// What the header and the bytes behind it say.
struct Fields<'a> {
    kind: u8,
    flags: u8,
    /// The agent, and above it the branch.
    owner: u64,
    value_bytes: u64,
    /// The id, and one that counts as the beginning of the key.
    ids: [Option<ObjectId>; 2],
    key: &'a [u8],
}

impl<'a> Fields<'a> {
    const NONE: Self = Self {
        kind: 0,
        flags: 0,
        owner: 0,
        value_bytes: 0,
        ids: [None; 2],
        key: &[],
    };

    fn of(record: &Record<'a>) -> Self {
        let owner =
            |agent: AgentNo, branch: BranchNo| u64::from(agent.0) | u64::from(branch.0) << 32;
        let main = BranchNo(0);
        let none = Self::NONE;
        match *record {
            Record::Agent {
                agent,
                public,
                name,
            } => Self {
                kind: KIND_AGENT,
                flags: if public { FLAG_PUBLIC } else { 0 },
                owner: owner(agent, main),
                key: name,
                ..none
            },
            Record::Put {
                agent,
                branch,
                key,
                kind,
                id,
                value_bytes,
                ..
            } => Self {
                kind: KIND_PUT,
                flags: kind.flags(),
                owner: owner(agent, branch),
                value_bytes,
                ids: [Some(id), None],
                key,
            },
            Record::Delete { agent, branch, key } => Self {
                kind: KIND_DELETE,
                owner: owner(agent, branch),
                key,
                ..none
            },
            Record::Object {
                kind,
                id,
                kept,
                payload,
            } => Self {
                kind: KIND_OBJECT,
                flags: kind.flags() | if kept { FLAG_KEPT } else { 0 },
                value_bytes: payload.map_or(0, <[u8]>::len) as u64,
                ids: [Some(id), None],
                ..none
            },
            Record::Synced { upto, .. } => Self {
                kind: KIND_SYNCED,
                value_bytes: upto.0,
                ..none
            },
            Record::Branch {
                agent,
                branch,
                name,
                head,
                tree,
                changes_stay,
            } => Self {
                kind: KIND_BRANCH,
                flags: if changes_stay { FLAG_KEPT } else { 0 },
                owner: owner(agent, branch),
                ids: [head, Some(tree)],
                key: name,
                ..none
            },
            Record::BranchGone { agent, branch } => Self {
                kind: KIND_BRANCH_GONE,
                owner: owner(agent, branch),
                ..none
            },
            Record::Tag {
                agent,
                name,
                target,
            } => Self {
                kind: KIND_TAG,
                owner: owner(agent, main),
                ids: [target, None],
                key: name,
                ..none
            },
        }
    }
}

/// What makes a Synced record believed where the records before it can't be read: agents choose
/// bytes of payloads, but don't know the log's id.
fn synced_proof(log_id: LogId, sequence: Sequence, upto: Sequence) -> u64 {
    let mut said = [0; 24];
    said[..8].copy_from_slice(&log_id.0.to_le_bytes());
    said[8..16].copy_from_slice(&sequence.0.to_le_bytes());
    said[16..].copy_from_slice(&upto.0.to_le_bytes());
    ObjectId::of_blob(&said).hash64()
}

/// What a [`Record::Synced`] of this log says that `bytes` begin with, whatever lies before them.
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
    let has_payload = flags & FLAG_PAYLOAD != 0;
    let head = head_of(header, id, key).ok_or(Invalid::Unknown { kind, flags })?;
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

/// The head that a header with a good checksum describes, if this version knows it.
fn head_of<'a>(header: &[u8], id: Option<ObjectId>, key: &'a [u8]) -> Option<Head<'a>> {
    let (kind, flags) = (header[4], header[5]);
    let agent = AgentNo(u32_at(header, 16));
    let branch = BranchNo(u32_at(header, 20));
    let payload_bytes = u32_at(header, 24);
    let value_bytes = u64_at(header, 32);
    let has_payload = flags & FLAG_PAYLOAD != 0;
    if !has_payload && payload_bytes != 0 {
        return None;
    }
    let allowed = |mask: u8| flags & !mask == 0;
    let named = key.len() <= BRANCH_NAME_BYTES_MAX;
    let main = branch.0 == 0;
    let object = ObjectKind::from_flags(flags);
    const KINDS: u8 = FLAG_ID | FLAG_PAYLOAD | FLAG_CHUNKS | FLAG_NODE | FLAG_CHECKPOINT;
    match (kind, id) {
        (KIND_AGENT, None) if allowed(FLAG_PUBLIC) && key.len() <= AGENT_NAME_BYTES_MAX => main
            .then_some(Head::Agent {
                agent,
                public: flags & FLAG_PUBLIC != 0,
                name: key,
            }),
        (KIND_PUT, Some(id)) if allowed(FLAG_ID | FLAG_PAYLOAD | FLAG_CHUNKS) => {
            let kind = object?;
            let whole = kind == ObjectKind::Chunks
                || !has_payload
                || value_bytes == u64::from(payload_bytes);
            (whole && value_bytes <= VALUE_BYTES_MAX).then_some(Head::Put {
                agent,
                branch,
                key,
                kind,
                id,
                value_bytes,
            })
        }
        (KIND_DELETE, None) if allowed(0) => Some(Head::Delete { agent, branch, key }),
        (KIND_OBJECT, Some(id)) if allowed(KINDS | FLAG_KEPT) && main => {
            let kind = object?;
            key.is_empty().then_some(Head::Object {
                kind,
                id,
                kept: flags & FLAG_KEPT != 0,
            })
        }
        (KIND_SYNCED, None) if allowed(0) && key.is_empty() => Some(Head::Synced {
            upto: Sequence(value_bytes),
        }),
        (KIND_BRANCH, head) if allowed(FLAG_ID | FLAG_KEPT) => {
            let (tree, name) = key.split_first_chunk()?;
            (name.len() <= BRANCH_NAME_BYTES_MAX).then_some(Head::Branch {
                agent,
                branch,
                name,
                head,
                tree: ObjectId::from_bytes(*tree),
                changes_stay: flags & FLAG_KEPT != 0,
            })
        }
        (KIND_BRANCH_GONE, None) if allowed(0) && key.is_empty() => {
            Some(Head::BranchGone { agent, branch })
        }
        (KIND_TAG, target) if allowed(FLAG_ID) && named && main => Some(Head::Tag {
            agent,
            name: key,
            target,
        }),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The header of a segment file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The shard that wrote it.
    pub shard: ShardNo,
    /// Its place in the log.
    pub segment: SegmentNo,
    /// The log it belongs to.
    pub log_id: LogId,
    /// Sequence of its first record.
    pub first: Sequence,
    /// Rollbacks of the log before it was begun.
    pub take: u32,
    /// Checksum of the last record before it, 0 if there is none.
    pub previous: u32,
    /// This record and all before it were on the device when the header was written.
    pub synced: Sequence,
}

/// Why 64 bytes are no header of a segment that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadHeader {
    /// Another kind of file.
    #[error("the file does not begin with the magic of a segment")]
    Magic,
    /// The magic is right, the checksum is not.
    #[error("the header of the segment is damaged")]
    Checksum,
    /// Written by a newer program.
    #[error("format version {found} is newer than {FORMAT_VERSION}")]
    Newer {
        /// The version in the file.
        found: u32,
    },
}

impl SegmentHeader {
    /// The bytes at offset 0 of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.shard.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.segment.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.take.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.log_id.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.previous.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.synced.0.to_le_bytes());
        let sum = checksum(0, &bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header's own checksum: seed of the first record and of the trailer.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        u32_at(&self.encode(), 60)
    }

    /// Whether these bytes are a beginning of the magic and then zeros.
    #[must_use]
    pub fn is_torn_magic(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> bool {
        let written = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        written < SEGMENT_MAGIC.len() && bytes[..written] == SEGMENT_MAGIC[..written]
    }

    /// Reads a header. Magic, version and checksum keep their places in all versions.
    ///
    /// # Errors
    /// [`BadHeader`].
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, BadHeader> {
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(BadHeader::Magic);
        }
        if checksum(0, &bytes[..60]) != u32_at(bytes, 60) {
            return Err(BadHeader::Checksum);
        }
        let found = u32_at(bytes, 8);
        if found != FORMAT_VERSION {
            return Err(BadHeader::Newer { found });
        }
        Ok(Self {
            shard: ShardNo(u16_at(bytes, 12)),
            segment: SegmentNo(u32_at(bytes, 16)),
            log_id: LogId(u64_at(bytes, 24)),
            first: Sequence(u64_at(bytes, 32)),
            take: u32_at(bytes, 20),
            previous: u32_at(bytes, 40),
            synced: Sequence(u64_at(bytes, 48)),
        })
    }
}
