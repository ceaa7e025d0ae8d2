//! What records say: the vocabulary of the log.
//!
//! Floor 1. Plain values over borrowed bytes; `format` writes and reads them.
//!
//! Invariants
//! - a record is its head and, perhaps, a payload that the head's id names.

use crate::id::{AGENT_NAME_BYTES_MAX, VALUE_BYTES_MAX};
use crate::id::{AgentNo, BranchNo, KEY_BYTES_MAX, OBJECT_ID_BYTES, ObjectId};

use super::Sequence;
use super::format::{BRANCH_NAME_BYTES_MAX, LogId, PAYLOAD_BYTES_MAX, RECORD_HEADER_BYTES, align};

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
    /// An agent exists, under this name; a later record of the same number sets `public` anew.
    Agent {
        /// Its number in this shard.
        agent: AgentNo,
        /// Other agents may read its values.
        public: bool,
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
        /// At most [`BRANCH_NAME_BYTES_MAX`] bytes.
        name: &'a [u8],
        /// The checkpoint.
        target: Option<ObjectId>,
    },
}

impl Head<'_> {
    /// Bytes before the payload.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        match self {
            Self::Agent { name: key, .. } | Self::Delete { key, .. } => {
                RECORD_HEADER_BYTES + key.len()
            }
            Self::Put { key, .. } => RECORD_HEADER_BYTES + OBJECT_ID_BYTES + key.len(),
            Self::Object { .. } => RECORD_HEADER_BYTES + OBJECT_ID_BYTES,
            Self::Branch { name, head, .. } => {
                let ids = 1 + usize::from(head.is_some());
                RECORD_HEADER_BYTES + ids * OBJECT_ID_BYTES + name.len()
            }
            Self::Tag { name, target, .. } => {
                let ids = usize::from(target.is_some());
                RECORD_HEADER_BYTES + ids * OBJECT_ID_BYTES + name.len()
            }
            Self::Synced { .. } | Self::BranchGone { .. } => RECORD_HEADER_BYTES,
        }
    }

    /// Whether `payload` is what the record's id names; a head without an id has no payload.
    #[must_use]
    pub fn verify(&self, payload: &[u8]) -> bool {
        match self {
            Self::Put { kind, id, .. } | Self::Object { kind, id, .. } => {
                kind.id_of(payload) == *id
            }
            _ => payload.is_empty(),
        }
    }
}

/// A record to append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// See [`Head::Agent`].
    Agent {
        /// Its number in this shard.
        agent: AgentNo,
        /// Other agents may read its values.
        public: bool,
        /// At most [`AGENT_NAME_BYTES_MAX`] bytes.
        name: &'a [u8],
    },
    /// See [`Head::Put`].
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
        /// The object's bytes; `None` where an earlier record of this log holds them.
        payload: Option<&'a [u8]>,
    },
    /// See [`Head::Delete`].
    Delete {
        /// The owner of the key.
        agent: AgentNo,
        /// The branch.
        branch: BranchNo,
        /// At most [`KEY_BYTES_MAX`] bytes.
        key: &'a [u8],
    },
    /// See [`Head::Object`].
    Object {
        /// What it is.
        kind: ObjectKind,
        /// Its name.
        id: ObjectId,
        /// A tree may hold it.
        kept: bool,
        /// At most [`PAYLOAD_BYTES_MAX`] bytes; `None` where an earlier record of this log holds
        /// them: the upload needs them too, whatever becomes of their other owners.
        payload: Option<&'a [u8]>,
    },
    /// See [`Head::Synced`].
    Synced {
        /// The log that says so.
        log_id: LogId,
        /// The last record that was on the device.
        upto: Sequence,
    },
    /// See [`Head::Branch`].
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
        /// Only name and head change.
        changes_stay: bool,
    },
    /// See [`Head::BranchGone`].
    BranchGone {
        /// Its agent.
        agent: AgentNo,
        /// Its number.
        branch: BranchNo,
    },
    /// See [`Head::Tag`].
    Tag {
        /// Its agent.
        agent: AgentNo,
        /// At most [`BRANCH_NAME_BYTES_MAX`] bytes.
        name: &'a [u8],
        /// The checkpoint.
        target: Option<ObjectId>,
    },
}

impl<'a> Record<'a> {
    /// The record without its payload.
    #[must_use]
    pub fn head(&self) -> Head<'a> {
        match *self {
            Self::Agent {
                agent,
                public,
                name,
            } => Head::Agent {
                agent,
                public,
                name,
            },
            Self::Put {
                agent,
                branch,
                key,
                kind,
                id,
                value_bytes,
                ..
            } => Head::Put {
                agent,
                branch,
                key,
                kind,
                id,
                value_bytes,
            },
            Self::Delete { agent, branch, key } => Head::Delete { agent, branch, key },
            Self::Object { kind, id, kept, .. } => Head::Object { kind, id, kept },
            Self::Synced { upto, .. } => Head::Synced { upto },
            Self::Branch {
                agent,
                branch,
                name,
                head,
                tree,
                changes_stay,
            } => Head::Branch {
                agent,
                branch,
                name,
                head,
                tree,
                changes_stay,
            },
            Self::BranchGone { agent, branch } => Head::BranchGone { agent, branch },
            Self::Tag {
                agent,
                name,
                target,
            } => Head::Tag {
                agent,
                name,
                target,
            },
        }
    }

    /// The payload that is stored in the record.
    #[must_use]
    pub fn payload(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Put { payload, .. } | Self::Object { payload, .. } => payload,
            _ => None,
        }
    }

    /// Bytes of the record in the file, padding included.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        align(self.head().head_bytes() + self.payload().map_or(0, <[u8]>::len))
    }

    /// Most bytes that a put takes in the file: one whose payload is not stored yet.
    #[must_use]
    pub const fn put_bytes(key_bytes: usize, payload_bytes: usize) -> usize {
        align(RECORD_HEADER_BYTES + OBJECT_ID_BYTES + key_bytes + payload_bytes)
    }

    /// Whether every length is within its bound, so that the record can be encoded.
    #[must_use]
    pub fn within_limits(&self) -> bool {
        let payload_bytes = self.payload().map_or(0, <[u8]>::len);
        payload_bytes <= PAYLOAD_BYTES_MAX
            && match *self {
                Self::Agent { name, .. } => name.len() <= AGENT_NAME_BYTES_MAX,
                Self::Delete { key, .. } => key.len() <= KEY_BYTES_MAX,
                Self::Object { .. } | Self::Synced { .. } | Self::BranchGone { .. } => true,
                Self::Branch { name, .. } | Self::Tag { name, .. } => {
                    name.len() <= BRANCH_NAME_BYTES_MAX
                }
                Self::Put {
                    key,
                    kind,
                    value_bytes,
                    payload,
                    ..
                } => {
                    key.len() <= KEY_BYTES_MAX
                        && value_bytes <= VALUE_BYTES_MAX
                        && (kind == ObjectKind::Chunks
                            || payload.is_none_or(|p| p.len() as u64 == value_bytes))
                }
            }
    }
}
