//! Versioned state, as an agent's process asks for it: checkpoints, branches, forks, merges.
//!
//! Floor 2. Every call here is one entry and its answer; what it means is said at
//! [`Call`].

use crate::agent::call::{Call, ValueInfo};
use crate::id::ObjectId;

/// A value in a difference or a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueRef {
    /// Its id, as a read of it has.
    pub id: ObjectId,
    /// Its bytes.
    pub bytes: u64,
}

/// A key that both sides of a merge changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeConflict {
    /// The key.
    pub key: Vec<u8>,
    /// What it named where the two histories part.
    pub base: Option<ValueRef>,
    /// What it names in the branch.
    pub ours: Option<ValueRef>,
    /// What it names in the other.
    pub theirs: Option<ValueRef>,
}
