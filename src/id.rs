//! Names of things: content addresses, a newtype for every number that names something, and the
//! words for how much of a history is kept, which the log, the shard and the wire share.
//!
//! Floor 0: nothing of the project is imported here. This is the only file that calls BLAKE3.
//!
//! Invariants
//! - equal bytes of one kind have one [`ObjectId`]; ids of different kinds (blob, tree node, chunk
//!   node, checkpoint) can't be equal, since each kind but the blobs is hashed under its own key.
//! - the numbers here mean something only inside one data directory or one run; only an
//!   [`ObjectId`] and an agent's name travel.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest agent name, in bytes.
pub const AGENT_NAME_BYTES_MAX: usize = 255;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of an [`ObjectId`].
pub const OBJECT_ID_BYTES: usize = 32;

/// Separates the ids of checkpoints from those of blobs; any constant serves, this one is readable.
const CHECKPOINT_KEY: &[u8; 32] = b"helios: id of one checkpoint, v1";
/// The same for nodes of trees.
const NODE_KEY: &[u8; 32] = b"helios: id of a tree of keys, v1";
/// The same for nodes that name the chunks of a large value.
const CHUNKS_KEY: &[u8; 32] = b"helios: id of tree of chunks, v1";

/// The name of immutable bytes: the BLAKE3 hash of them, 32 bytes.
///
/// ```
/// use helios::id::ObjectId;
/// let id = ObjectId::of_blob(b"state");
/// assert_eq!(id.to_string().parse::<ObjectId>().unwrap(), id);
/// assert_ne!(id, ObjectId::of_node(b"state"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; OBJECT_ID_BYTES]);

impl ObjectId {
    /// The id of a value, or of a chunk of a large value: plain BLAKE3 of its bytes.
    #[must_use]
    pub fn of_blob(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The id of a checkpoint: BLAKE3 keyed with the constant `helios: id of one checkpoint, v1`.
    #[must_use]
    pub fn of_checkpoint(bytes: &[u8]) -> Self {
        Self(*blake3::keyed_hash(CHECKPOINT_KEY, bytes).as_bytes())
    }

    /// The id of a node of a state tree: BLAKE3 keyed with the constant
    /// `helios: id of a tree of keys, v1`.
    #[must_use]
    pub fn of_node(bytes: &[u8]) -> Self {
        Self(*blake3::keyed_hash(NODE_KEY, bytes).as_bytes())
    }

    /// The id of a node over the chunks of a large value: BLAKE3 keyed with the constant
    /// `helios: id of tree of chunks, v1`.
    #[must_use]
    pub fn of_chunks(bytes: &[u8]) -> Self {
        Self(*blake3::keyed_hash(CHUNKS_KEY, bytes).as_bytes())
    }

    /// An id read from a record or a message. Any 32 bytes are an id of something.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; OBJECT_ID_BYTES]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; OBJECT_ID_BYTES] {
        &self.0
    }

    /// The first 8 bytes as a number: already uniform, so tables use it as their hash.
    #[must_use]
    pub fn hash64(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().expect("8 of 32 bytes"))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that is not an object id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an object id is 64 hexadecimal digits")]
pub struct BadObjectId;

impl FromStr for ObjectId {
    type Err = BadObjectId;

    fn from_str(text: &str) -> Result<Self, BadObjectId> {
        let digits = text.as_bytes();
        if digits.len() != 2 * OBJECT_ID_BYTES {
            return Err(BadObjectId);
        }
        let mut bytes = [0; OBJECT_ID_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = (pair[0] as char).to_digit(16).ok_or(BadObjectId)?;
            let low = (pair[1] as char).to_digit(16).ok_or(BadObjectId)?;
            *byte = (high << 4 | low) as u8;
        }
        Ok(Self(bytes))
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(/// A shard: its place in the data directory and in the mesh.
    ShardNo(u16));
number!(/// An agent within its shard, given at creation, stored in records, never reused.
    AgentNo(u32));
number!(/// A branch or a fork within its agent; of branches never reused, stored in records.
    BranchNo(u32));
number!(/// A superposition within its agent, stored in records, never reused.
    SetNo(u32));
number!(/// A segment file within its shard, counted from 1 in the order of the log.
    SegmentNo(u32));
number!(/// An attached process, for the life of one runtime; never reused.
    SessionNo(u64));
number!(/// A lane within its session.
    LaneNo(u32));
number!(/// One state of one branch, as an agent's window tells values apart: a branch that is restored
    /// gets another view. Of one agent, for the life of its window.
    View(u32));

/// How much of a branch's history a collection keeps: what it does not keep, and nothing else reaches,
/// goes. The head itself always stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, Serialize, Deserialize)]
pub enum Retention {
    /// Every checkpoint.
    #[default]
    All,
    /// The head and those before it, so many in all. Of 0 the head alone.
    Last(u64),
    /// Those whose wall-clock label is at most so many milliseconds old, and whatever follows one of them:
    /// a clock that was set back for a while costs no history.
    Newer(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_blake3_and_kinds_are_apart() {
        // The published BLAKE3 vector for the empty input.
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(ObjectId::of_blob(b"").to_string(), empty);
        let kinds = [
            ObjectId::of_blob(b""),
            ObjectId::of_checkpoint(b""),
            ObjectId::of_node(b""),
            ObjectId::of_chunks(b""),
        ];
        for (no, id) in kinds.iter().enumerate() {
            assert!(!kinds[..no].contains(id), "kind {no}");
        }
    }

    #[test]
    fn text_that_is_no_id_is_refused() {
        for text in ["", "af", &"g".repeat(64), &"é".repeat(32), &"a".repeat(65)] {
            assert_eq!(text.parse::<ObjectId>(), Err(BadObjectId), "{text}");
        }
    }
}
