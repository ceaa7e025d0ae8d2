//! What records say: the vocabulary of the log.
//!
//! Floor 1. Plain values over borrowed bytes; `format` writes and reads them.
//!
//! Invariants
//! - a record is its head and, perhaps, a payload that the head's id names.

use crate::id::{AGENT_NAME_BYTES_MAX, KEY_BYTES_MAX, OBJECT_ID_BYTES, VALUE_BYTES_MAX};
use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SegmentNo, SetNo};

use super::Sequence;
use super::fields::{CANDIDATE_NUMBERS_BYTES, COLLAPSE_NUMBERS_BYTES, SET_NUMBERS_BYTES};
use super::format::{BRANCH_NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, RECORD_HEADER_BYTES, align};

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum ObjectKind {
    /// The bytes of a value, or of a chunk of one.
    #[default]
    Blob,
    /// A node over the chunks of a large value; the root of them stands for the value.
    Chunks,
    /// A node of a state tree.
    Node,
    /// A checkpoint.
    Checkpoint,
}

impl ObjectKind {
    /// The id of `payload` as an object of this kind.
    #[must_use]
    pub fn id_of(self, payload: &[u8]) -> ObjectId {
        match self {
            Self::Blob => ObjectId::of_blob(payload),
            Self::Chunks => ObjectId::of_chunks(payload),
            Self::Node => ObjectId::of_node(payload),
            Self::Checkpoint => ObjectId::of_checkpoint(payload),
        }
    }
}

/// What a record says, without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head<'a> {
    /// An agent exists, under this name; a later record of the same number sets `public` and `moves`
    /// anew.
    Agent {
        /// Its number in this shard.
        agent: AgentNo,
        /// Other agents may read its values.
        public: bool,
        /// How often it moved from one shard to another.
        moves: u32,
        /// At most [`AGENT_NAME_BYTES_MAX`] bytes.
        name: &'a [u8],
    },
    /// A key has a value from now on.
    Put {
        /// The owner of the key.
        agent: AgentNo,
        /// The branch.
        branch: BranchNo,
        /// At most [`KEY_BYTES_MAX`] bytes.
        key: &'a [u8],
        /// Whether `id` names the value or the root of its chunks.
        kind: ObjectKind,
        /// The object.
        id: ObjectId,
        /// Length of the value; of chunks, of all of them together.
        value_bytes: u64,
    },
    /// A key has no value from now on.
    Delete {
        /// The owner of the key.
        agent: AgentNo,
        /// The branch.
        branch: BranchNo,
        /// At most [`KEY_BYTES_MAX`] bytes.
        key: &'a [u8],
    },
    /// An object that no key points at yet: a chunk of a large value, a node, a checkpoint.
    Object {
        /// What it is.
        kind: ObjectKind,
        /// Its name.
        id: ObjectId,
        /// A tree may hold it: it stays whatever keys name, until a collection finds it unreachable.
        kept: bool,
    },
    /// Evidence for recovery, of no meaning to anyone else.
    Synced {
        /// This record and all before it were on the device when the head was written.
        upto: Sequence,
        /// [`synced_proof`](super::format::synced_proof) that the log says so, not an agent.
        proof: u64,
    },
    /// A branch has this name, points at this checkpoint, and its working set is this tree from now
    /// on: puts and deletes of the branch before this record mean nothing any more, unless it says
    /// that changes stay.
    Branch {
        /// Its agent.
        agent: AgentNo,
        /// Its number.
        branch: BranchNo,
        /// At most [`BRANCH_NAME_BYTES_MAX`] bytes. None: the branch counts only if a later record gives
        /// it one.
        name: &'a [u8],
        /// The checkpoint that it points at.
        head: Option<ObjectId>,
        /// The tree that its working set lies on.
        tree: ObjectId,
        /// Only name and head change: the working set stays as it is.
        changes_stay: bool,
    },
    /// A branch is gone.
    BranchGone {
        /// Its agent.
        agent: AgentNo,
        /// Its number.
        branch: BranchNo,
    },
    /// A tag names this checkpoint from now on, or none.
    Tag {
        /// Its agent.
        agent: AgentNo,
        /// Other agents may read the checkpoint, by this name. Never of a tag that names none.
        public: bool,
        /// At most [`BRANCH_NAME_BYTES_MAX`] bytes.
        name: &'a [u8],
        /// The checkpoint.
        target: Option<ObjectId>,
    },
    /// An agent is gone from this shard, with all that records said of it: terminated, or moved.
    AgentGone {
        /// Its number.
        agent: AgentNo,
    },
    /// How much of a branch's history is kept from now on.
    Retention {
        /// Its agent.
        agent: AgentNo,
        /// The branch.
        branch: BranchNo,
        /// The rule.
        rule: Retention,
    },
    /// A checkpoint that the agent did not make is one that it may read and follow, or no more.
    Adopted {
        /// The agent.
        agent: AgentNo,
        /// The checkpoint.
        target: ObjectId,
        /// No more.
        gone: bool,
    },
    /// An agent is suspended, or runs.
    Hot {
        /// The agent.
        agent: AgentNo,
        /// Suspended: a kept blob that lists its hot keys. None: it runs.
        list: Option<ObjectId>,
    },
    /// Nothing in these segments is needed: their files may be missing.
    Dropped {
        /// The first of them, at least 1.
        first: SegmentNo,
        /// The last of them, at least the first.
        last: SegmentNo,
        /// The record that the first of them began with: those before it end just below, whatever became
        /// of the segments in between.
        from: Sequence,
    },
    /// A checkpoint is none any more, although a record before this one may hold it: what it needs may be
    /// missing. One that is stored behind this counts.
    Pruned {
        /// The checkpoint.
        id: ObjectId,
    },
    /// A set of candidates is open, and was observed; said again, only the latter is new.
    Set {
        /// Its agent.
        agent: AgentNo,
        /// Its number.
        set: SetNo,
        /// The branch that it was made for.
        branch: BranchNo,
        /// What that branch pointed at then.
        origin: Option<ObjectId>,
        /// Half-life of its weights, in milliseconds; 0: none.
        half_life_ms: u64,
        /// Time to live without observation, in milliseconds; 0: none.
        ttl_ms: u64,
        /// Total weight under which it ends: the bits of a binary64 of IEEE 754.
        bound_bits: u64,
        /// When it was observed, in milliseconds since 1970.
        wall_ms: u64,
        /// At most [`BRANCH_NAME_BYTES_MAX`] bytes.
        name: &'a [u8],
    },
    /// A set has this candidate, which is worth this from now on.
    Candidate {
        /// Its agent.
        agent: AgentNo,
        /// Its set.
        set: SetNo,
        /// Its number in the set; they come in order, from 0.
        candidate: u32,
        /// The checkpoint.
        head: ObjectId,
        /// Its tree.
        tree: ObjectId,
        /// The bits of a binary64 of IEEE 754.
        weight_bits: u64,
        /// When it was given, in milliseconds since 1970.
        wall_ms: u64,
        /// At most [`BRANCH_NAME_BYTES_MAX`] bytes.
        label: &'a [u8],
    },
    /// A set is gone, whether it was said to be there or not: its number is not given out again.
    SetGone {
        /// Its agent.
        agent: AgentNo,
        /// Its number.
        set: SetNo,
        /// The branch that one of its candidates became, if one did.
        collapse: Option<Collapse>,
        /// When, in milliseconds since 1970.
        wall_ms: u64,
    },
}

/// What a collapse does to a branch: as a [`Head::Branch`] under the name that it has, without changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collapse {
    /// The branch.
    pub branch: BranchNo,
    /// The checkpoint that it points at.
    pub head: ObjectId,
    /// The tree that its working set lies on.
    pub tree: ObjectId,
}

impl Head<'_> {
    /// Bytes before the payload.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        let (ids, key_bytes) = match self {
            Self::Agent { name: key, .. } | Self::Delete { key, .. } => (0, key.len()),
            Self::Put { key, .. } => (1, key.len()),
            Self::Object { .. } | Self::Adopted { .. } | Self::Pruned { .. } => (1, 0),
            Self::Branch { name, head, .. } => (1 + usize::from(head.is_some()), name.len()),
            Self::Tag { name, target, .. } => (usize::from(target.is_some()), name.len()),
            Self::Hot { list, .. } => (usize::from(list.is_some()), 0),
            Self::Retention { .. } => (0, 1),
            Self::Set { name, origin, .. } => (
                usize::from(origin.is_some()),
                SET_NUMBERS_BYTES + name.len(),
            ),
            Self::Candidate { label, .. } => (2, CANDIDATE_NUMBERS_BYTES + label.len()),
            Self::SetGone { collapse, .. } => match collapse {
                Some(_) => (2, COLLAPSE_NUMBERS_BYTES),
                None => (0, 0),
            },
            Self::Synced { .. }
            | Self::BranchGone { .. }
            | Self::AgentGone { .. }
            | Self::Dropped { .. } => (0, 0),
        };
        RECORD_HEADER_BYTES + ids * OBJECT_ID_BYTES + key_bytes
    }

    /// Whether `payload` is what the record's id names; a head that names no bytes has no payload.
    #[must_use]
    pub fn verify(&self, payload: &[u8]) -> bool {
        match self {
            Self::Put { kind, id, .. } | Self::Object { kind, id, .. } => {
                kind.id_of(payload) == *id
            }
            _ => payload.is_empty(),
        }
    }

    /// Whether every length and number is within its bound.
    fn within_limits(&self) -> bool {
        match *self {
            Self::Agent { name, .. } => name.len() <= AGENT_NAME_BYTES_MAX,
            Self::Delete { key, .. } => (1..=KEY_BYTES_MAX).contains(&key.len()),
            Self::Put {
                key, value_bytes, ..
            } => (1..=KEY_BYTES_MAX).contains(&key.len()) && value_bytes <= VALUE_BYTES_MAX,
            Self::Branch { name, .. } => name.len() <= BRANCH_NAME_BYTES_MAX,
            Self::Tag {
                name,
                public,
                target,
                ..
            } => name.len() <= BRANCH_NAME_BYTES_MAX && (!public || target.is_some()),
            Self::Set { name, .. } | Self::Candidate { label: name, .. } => {
                name.len() <= BRANCH_NAME_BYTES_MAX
            }
            Self::Dropped { first, last, from } => 0 < first.0 && first <= last && 0 < from.0,
            Self::Object { .. }
            | Self::Pruned { .. }
            | Self::Synced { .. }
            | Self::BranchGone { .. }
            | Self::AgentGone { .. }
            | Self::Retention { .. }
            | Self::Adopted { .. }
            | Self::SetGone { .. }
            | Self::Hot { .. } => true,
        }
    }
}

/// A record to append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// What it says.
    pub head: Head<'a>,
    /// The bytes that a [`Head::Put`] or a [`Head::Object`] names, at most [`PAYLOAD_BYTES_MAX`];
    /// `None` where another record of the log holds them, and of all other heads.
    pub payload: Option<&'a [u8]>,
}

impl<'a> From<Head<'a>> for Record<'a> {
    /// The record without a payload.
    fn from(head: Head<'a>) -> Self {
        Self {
            head,
            payload: None,
        }
    }
}

impl Record<'_> {
    /// Bytes of the record in the file, padding included.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        align(self.head.head_bytes() + self.payload.map_or(0, <[u8]>::len))
    }

    /// Most bytes that a put takes in the file: one whose payload is not stored yet.
    #[must_use]
    pub const fn put_bytes(key_bytes: usize, payload_bytes: usize) -> usize {
        align(RECORD_HEADER_BYTES + OBJECT_ID_BYTES + key_bytes + payload_bytes)
    }

    /// Whether every length is within its bound, so that the record can be encoded.
    #[must_use]
    pub fn within_limits(&self) -> bool {
        let payload_fits = self.payload.is_none_or(|payload| match self.head {
            Head::Put {
                kind: ObjectKind::Blob,
                value_bytes,
                ..
            } => payload.len() as u64 == value_bytes,
            Head::Put { .. } | Head::Object { .. } => true,
            _ => false,
        });
        payload_fits
            && self.payload.unwrap_or_default().len() <= PAYLOAD_BYTES_MAX
            && self.head.within_limits()
    }
}
