//! Nodes of state trees in memory, whole, so that they can be read in place.
//!
//! Floor 2. A tree operation reads nodes here and nowhere else; one that meets a node that is not here
//! says so, has changed nothing, and is called again when the node was fetched. What a checkpoint
//! makes enters at once: the next one of the same branch finds its path.
//!
//! Invariants
//! - bytes here were compared with their id, or made from it, by whoever put them in.
//! - nothing leaves while an operation runs: [`NodeCache::trim`] is called between them.
//!
//! Cost of a lookup: a hash of 8 bytes of the id, two cache lines.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::id::ObjectId;
use crate::state::tree::Nodes;

/// What a node takes beside its bytes, about.
const NODE_OVERHEAD_BYTES: usize = 128;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 64;

/// Nodes by id, up to so many bytes between operations.
#[derive(Debug)]
pub struct NodeCache {
    nodes: HashMap<ObjectId, Entry, ById>,
    /// All ids, in the order in which they came; one that was used gets another round.
    queue: VecDeque<ObjectId>,
    spare: RefCell<Vec<Vec<u8>>>,
    bytes: usize,
    bytes_max: usize,
}

/// How tables find ids.
pub(super) type ById = BuildHasherDefault<IdHasher>;

#[derive(Debug)]
struct Entry {
    bytes: Vec<u8>,
    used: Cell<bool>,
}

impl NodeCache {
    /// A cache that is trimmed to `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            nodes: HashMap::default(),
            queue: VecDeque::new(),
            spare: RefCell::default(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Puts a node in whose bytes are known to have that id.
    pub fn insert(&mut self, id: &ObjectId, bytes: &[u8]) {
        if self.nodes.contains_key(id) {
            return;
        }
        let buffer = self.copy(bytes);
        self.take(id, buffer);
    }

    /// The same for bytes in a buffer that [`NodeCache::copy`] gave.
    pub(super) fn take(&mut self, id: &ObjectId, buffer: Vec<u8>) {
        self.bytes += buffer.capacity() + NODE_OVERHEAD_BYTES;
        let entry = Entry {
            bytes: buffer,
            used: Cell::new(false),
        };
        if let Some(known) = self.nodes.insert(*id, entry) {
            self.give_back(known.bytes);
        } else {
            self.queue.push_back(*id);
        }
    }

    /// Bytes in a buffer of their own, one that a node has left where there is one.
    pub(super) fn copy(&self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.spare.borrow_mut().pop().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        buffer
    }

    fn give_back(&mut self, mut buffer: Vec<u8>) {
        self.bytes -= buffer.capacity() + NODE_OVERHEAD_BYTES;
        let spare = self.spare.get_mut();
        if spare.len() < SPARE_MAX {
            buffer.clear();
            spare.push(buffer);
        }
    }

    /// Lets nodes go that were not used lately, until the rest fits.
    pub fn trim(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(id) = self.queue.pop_front() else {
                return;
            };
            if self.nodes.get(&id).is_some_and(|entry| entry.used.take()) {
                self.queue.push_back(id);
                continue;
            }
            if let Some(entry) = self.nodes.remove(&id) {
                self.give_back(entry.bytes);
            }
        }
    }

    /// Bytes of memory taken.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Nodes for NodeCache {
    #[inline]
    fn node(&self, id: &ObjectId) -> Option<&[u8]> {
        let entry = self.nodes.get(id)?;
        entry.used.set(true);
        Some(&entry.bytes)
    }
}

/// Ids are uniform already: their first 8 bytes are the hash.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {
        // The length that an array's hash begins with says nothing.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_when_there_is_too_much() {
        let mut cache = NodeCache::new(100 * 1200);
        let id = |no: u32| ObjectId::of_blob(&no.to_le_bytes());
        for no in 0..1000 {
            cache.insert(&id(no), &[no as u8; 1000]);
            assert_eq!(cache.node(&id(0)).unwrap(), [0; 1000]);
            cache.trim();
            assert!(cache.bytes() <= 100 * 1200);
        }
        let held = (0..1000)
            .filter(|&no| cache.node(&id(no)).is_some())
            .count();
        assert!((80..=110).contains(&held), "{held}");
        assert_eq!(cache.nodes.len(), cache.queue.len());
        assert!(
            cache.node(&id(999)).is_some(),
            "the newest is not the first to go"
        );
    }

    #[test]
    fn ids_spread_over_the_table() {
        let hashes: std::collections::HashSet<u64> = (0..1000u32)
            .map(|no| {
                use std::hash::BuildHasher;
                let id = ObjectId::of_blob(&no.to_le_bytes());
                BuildHasherDefault::<IdHasher>::default().hash_one(id)
            })
            .collect();
        assert_eq!(hashes.len(), 1000);
    }
}
