//! What can be wrong with a tree, and with a change to one.
//!
//! Floor 1.

use crate::id::{KEY_BYTES_MAX, ObjectId};

/// An operation on a tree that could not be done. It has changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A node is not in memory: fetch it, and call again.
    #[error("node {0} is not in memory")]
    Absent(ObjectId),
    /// The bytes of a node are not such as a writer of this format leaves.
    #[error("node {id} is damaged: {damage}")]
    Damaged {
        /// The node, or the one that names it where the two disagree.
        id: ObjectId,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Changes that are not in strictly ascending order of their keys:
    /// [`Changes::sort`](super::Changes::sort) was not called.
    #[error("changes are not sorted by key")]
    Unsorted,
    /// A tree holds at most 2^32 - 2 keys.
    #[error("a tree holds at most 4294967294 keys")]
    TooManyKeys,
}

/// What is wrong with the bytes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// It ends before its entries do.
    #[error("it ends too early")]
    Short,
    /// A layout that this version does not know.
    #[error("layout version {0} is not known")]
    Version(u8),
    /// A level, number of entries or size that no node has.
    #[error("its level, entries or size are out of bounds")]
    Header,
    /// An empty key, one over the limit, or one that shares more than there is.
    #[error("a key's length is out of bounds")]
    KeyLength,
    /// An entry of no known kind.
    #[error("an entry is of no known kind")]
    Code,
    /// The lengths of its entries don't add up to its own.
    #[error("lengths do not add up")]
    Length,
    /// Keys that don't ascend, or share more than they say.
    #[error("keys are out of order")]
    Order,
    /// A value's length does not go with its form.
    #[error("a value's length does not suit its form")]
    ValueLength,
    /// An entry that should have begun a new node.
    #[error("a boundary was missed")]
    Boundary,
    /// A child of another level than the one below.
    #[error("a child is of the wrong level")]
    Level,
    /// A child that begins with another key than its parent says.
    #[error("a child begins with another key")]
    FirstKey,
    /// Counts of keys that don't add up.
    #[error("counts of keys do not add up")]
    Count,
    /// Lengths of chunks that don't add up.
    #[error("lengths of chunks do not add up")]
    ChunkBytes,
}

/// A change that no tree takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// A key is 1 to 1024 bytes long.
    #[error("a key of {0} bytes: it has 1 to {KEY_BYTES_MAX}")]
    KeyLength(usize),
    /// A value of this length has another form: see [`Value`](super::Value).
    #[error("a value of {0} bytes has another form")]
    ValueForm(usize),
}
