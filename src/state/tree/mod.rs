//! The state tree: an immutable, ordered map from keys to values, named by the hash of its content.
//!
//! Floor 1: pure functions of ids and bytes. A tree is a prolly tree: leaves hold entries in the order
//! of their keys, inner nodes name their children by id, and the keys alone tell where nodes end
//! ([`boundary`]). `TREE.md` has the byte layout, the rule of boundaries, and vectors.
//!
//! The bytes of nodes are someone else's: [`Nodes`] gives those that are in memory. An operation that
//! meets another one returns [`TreeError::Absent`] with its id and has changed nothing; the caller fetches
//! the node and calls again. What takes long, [`Scan`], [`Diff`] and [`Merge`], goes on where it was.
//!
//! Cost: a lookup reads one node a level, some 200 ns each; 1,000 keys have 2 levels, 100,000 have 3 or 4.
//! A node is 1.8 KiB on average. A change of one key in 1,000 makes two or three new nodes, 3.3 KiB together, and
//! takes 1.6 us beside their BLAKE3 (2.9 us).
//!
//! Invariants
//! - equal content has equal ids, whatever the order of changes that led to it, at every level.
//! - bytes of nodes never cause a panic or an endless loop. Whoever stores a node that it did not make
//!   itself checks it first ([`check_node`]); after that, and a check of its id, reads trust its order.

mod base;
pub mod boundary;
mod build;
mod changes;
mod diff;
mod error;
mod memory;
mod merge;
mod node;
mod read;
mod spine;
mod value;
mod walk;
mod write;

#[cfg(test)]
pub(super) mod tests;

use crate::id::ObjectId;

pub use base::{Base, MergedBase, Was};
pub use changes::Changes;
pub use diff::{Diff, DiffCounts, Difference};
pub use error::{ChangeError, Damage, TreeError};
pub use memory::MemoryNodes;
pub use merge::{Conflict, Conflicts, Merge, Merged, OnConflict, PrefixRule};
pub use node::{LEVEL_MAX, NODE_BYTES_MAX};
pub use read::{Scan, count, get};
pub use value::{BLOB_BYTES_MAX, INLINE_BYTES_MAX, Value};
pub use write::TreeWriter;

use node::{Node, Place};

/// The id of the tree without keys: that of the bytes `01 00 00 00`, a leaf without entries. No such
/// node is stored, or ever asked for.
pub const EMPTY_TREE: ObjectId = ObjectId::from_bytes([
    0x0e, 0xf6, 0x61, 0x8d, 0x2a, 0x2c, 0x7b, 0xf8, 0x48, 0x99, 0x67, 0x57, 0x9a, 0x4d, 0x43, 0x54,
    0xcb, 0x7b, 0xa6, 0x97, 0xca, 0x18, 0x3c, 0x84, 0xb0, 0xa8, 0xcf, 0xde, 0x3e, 0xf4, 0x3a, 0x0c,
]);

/// Bytes of the node that the empty tree would have.
#[cfg(test)]
const EMPTY_NODE: [u8; 4] = [node::NODE_VERSION, 0, 0, 0];

/// Nodes in memory. A shard implements it over its cache and its mapped segments, [`MemoryNodes`] over
/// a map.
pub trait Nodes {
    /// The bytes of a node whose id was verified; `None` where they are not in memory.
    fn node(&self, id: &ObjectId) -> Option<&[u8]>;
}

/// Checks bytes that shall be stored as a node: whatever can be told of one node alone. That its id is
/// theirs, that its children are what it says, and that its first key had to begin a node, is
/// for others to tell; a tree of which all that holds is the one that its content builds.
///
/// # Errors
/// What is wrong with them.
pub fn check_node(bytes: &[u8]) -> Result<(), Damage> {
    Node::open(bytes)?.check()
}

/// What an entry of a node refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reference<'a> {
    /// A node of the level below.
    Node(ObjectId),
    /// A value.
    Value(Value<'a>),
}

/// Hands over what the entries of a node refer to, in their order.
///
/// # Errors
/// What is wrong with the bytes.
pub fn references<'n>(bytes: &'n [u8], mut each: impl FnMut(Reference<'n>)) -> Result<(), Damage> {
    let node = Node::open(bytes)?;
    let mut place = Place::default();
    while place.index < node.len() {
        each(match node.level() {
            0 => Reference::Value(node.value(&place)),
            _ => Reference::Node(node.child(place.index).0),
        });
        place = node.next(&place);
    }
    Ok(())
}

fn open<'n>(nodes: &'n impl Nodes, id: &ObjectId) -> Result<Node<'n>, TreeError> {
    open_bytes(id, nodes.node(id).ok_or(TreeError::Absent(*id))?)
}

fn open_bytes<'n>(id: &ObjectId, bytes: &'n [u8]) -> Result<Node<'n>, TreeError> {
    Node::open(bytes).map_err(|damage| damaged(id, damage))
}

fn damaged(id: &ObjectId, damage: Damage) -> TreeError {
    TreeError::Damaged { id: *id, damage }
}
