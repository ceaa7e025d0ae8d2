//! Nodes of state trees in memory, whole, so that they can be read in place.
//!
//! Floor 2. A tree operation reads nodes here and nowhere else; one that meets a node that is not here
//! says so, has changed nothing, and is called again when the node was fetched. What a checkpoint
//! makes enters at once: the next one of the same branch finds its path. Nodes that come in for a set of
//! candidates are its group's: they have a share of the memory of their own, and leave together.
//!
//! Invariants
//! - bytes here were compared with their id, or made from it, by whoever put them in.
//! - nothing leaves while an operation runs: [`NodeCache::trim`] is called between them.
//! - no node of a branch's leaves for one of a group.
//!
//! Cost of a lookup: a hash of 8 bytes of the id, two cache lines.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::cache::GroupNo;
use crate::id::ObjectId;
use crate::state::tree::Nodes;

/// What a node takes beside its bytes, about.
const NODE_OVERHEAD_BYTES: usize = 128;
/// Buffers kept for reuse.
const SPARE_MAX: usize = 64;
/// A node is given a buffer of twice its bytes at most, or of this.
const SMALL_BYTES: usize = 1024;

/// The groups' share of the memory, as a divisor.
const GROUPS_SHARE: usize = 4;

/// Nodes by id, up to so many bytes between operations.
#[derive(Debug)]
pub struct NodeCache {
    nodes: HashMap<ObjectId, Entry, ById>,
    /// All ids, in the order in which they came; one that was used gets another round.
    queue: VecDeque<ObjectId>,
    spare: RefCell<Vec<Vec<u8>>>,
    bytes: usize,
    bytes_max: usize,
    /// By group: its nodes. They are not in the queue.
    groups: HashMap<GroupNo, Vec<ObjectId>>,
    group_bytes: usize,
    group_bytes_max: usize,
    /// The group for which the operation runs.
    asking: Option<GroupNo>,
}

/// How tables find ids.
pub(super) type ById = BuildHasherDefault<IdHasher>;

#[derive(Debug)]
struct Entry {
    bytes: Vec<u8>,
    used: Cell<bool>,
    /// The group that it belongs to.
    group: Option<GroupNo>,
    /// Somebody of no group has used it: it stays when its group goes.
    shared: Cell<bool>,
}

impl Entry {
    fn charge(&self) -> usize {
        self.bytes.capacity() + NODE_OVERHEAD_BYTES
    }

    /// Notes who uses it.
    #[inline]
    fn share(&self, asking: Option<GroupNo>) {
        if asking.is_none() && self.group.is_some() {
            self.shared.set(true);
        }
    }
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
            bytes_max: bytes_max - bytes_max / GROUPS_SHARE,
            groups: HashMap::new(),
            group_bytes: 0,
            group_bytes_max: bytes_max / GROUPS_SHARE,
            asking: None,
        }
    }

    /// Says for which group nodes are used and come in from now on.
    pub fn ask_for(&mut self, group: Option<GroupNo>) {
        self.asking = group;
    }

    /// Puts a node in whose bytes are known to have that id.
    pub fn insert(&mut self, id: &ObjectId, bytes: &[u8]) {
        if let Some(entry) = self.nodes.get(id) {
            entry.share(self.asking);
            return;
        }
        let buffer = self.copy(bytes);
        self.take(id, buffer);
    }

    /// The same for bytes in a buffer that [`NodeCache::copy`] gave.
    pub(super) fn take(&mut self, id: &ObjectId, buffer: Vec<u8>) {
        if let Some(known) = self.nodes.get(id) {
            known.share(self.asking);
            return self.reuse(buffer);
        }
        let entry = Entry {
            bytes: buffer,
            used: Cell::new(false),
            group: self.asking,
            shared: Cell::new(false),
        };
        match self.asking {
            None => {
                self.bytes += entry.charge();
                self.queue.push_back(*id);
            }
            Some(group) => {
                self.group_bytes += entry.charge();
                self.groups.entry(group).or_default().push(*id);
            }
        }
        self.nodes.insert(*id, entry);
    }

    /// Bytes in a buffer of their own: the one of those that nodes left last that holds them. None is
    /// made to grow, nor does a small node get a large one.
    pub(super) fn copy(&self, bytes: &[u8]) -> Vec<u8> {
        let mut spare = self.spare.borrow_mut();
        let fits = bytes.len()..=2 * bytes.len().max(SMALL_BYTES);
        let last = spare
            .iter()
            .rposition(|buffer| fits.contains(&buffer.capacity()));
        let mut buffer = match last {
            Some(no) => spare.remove(no),
            None => Vec::with_capacity(bytes.len()),
        };
        buffer.extend_from_slice(bytes);
        buffer
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
            if let Some(gone) = self.nodes.remove(&id) {
                self.bytes -= gone.charge();
                self.reuse(gone.bytes);
            }
        }
    }

    fn reuse(&mut self, mut bytes: Vec<u8>) {
        let spare = self.spare.get_mut();
        if spare.len() == SPARE_MAX {
            // One that nobody took for so long fits nothing.
            spare.remove(0);
        }
        bytes.clear();
        spare.push(bytes);
    }

    /// Whether groups have more nodes than their share of the memory takes.
    #[must_use]
    pub fn groups_overflow(&self) -> bool {
        self.group_bytes > self.group_bytes_max
    }

    /// Whether a group has a node here.
    #[must_use]
    pub fn has_group(&self, group: GroupNo) -> bool {
        self.groups.contains_key(&group)
    }

    /// Lets the nodes of a group go, but for those that somebody else has used: these are everybody's.
    pub fn evict_group(&mut self, group: GroupNo) {
        for id in self.groups.remove(&group).unwrap_or_default() {
            let Some(entry) = self.nodes.get_mut(&id) else {
                continue;
            };
            self.group_bytes -= entry.charge();
            if entry.shared.get() {
                entry.group = None;
                self.bytes += entry.charge();
                self.queue.push_back(id);
            } else if let Some(gone) = self.nodes.remove(&id) {
                self.reuse(gone.bytes);
            }
        }
    }

    /// Bytes of memory taken.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes + self.group_bytes
    }
}

impl Nodes for NodeCache {
    #[inline]
    fn node(&self, id: &ObjectId) -> Option<&[u8]> {
        let entry = self.nodes.get(id)?;
        entry.used.set(true);
        entry.share(self.asking);
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
        assert!((70..=90).contains(&held), "{held}");
        assert_eq!(cache.nodes.len(), cache.queue.len());
        assert!(
            cache.node(&id(999)).is_some(),
            "the newest is not the first to go"
        );
    }

    #[test]
    fn a_group_leaves_as_a_whole_and_takes_nothing_of_others() {
        let mut cache = NodeCache::new(100 * 1200);
        cache.group_bytes_max = 15_000;
        let id = |no: u32| ObjectId::of_blob(&no.to_le_bytes());
        for no in 0..100 {
            cache.insert(&id(no), &[0; 1000]);
        }
        cache.trim();
        let held: Vec<u32> = (0..100)
            .filter(|&no| cache.nodes.contains_key(&id(no)))
            .collect();
        assert!(held.len() < 100, "it is full");
        for no in 100..500 {
            let group = GroupNo((no / 10) as u16);
            cache.ask_for(Some(group));
            cache.insert(&id(no), &[0; 1000]);
            if cache.groups_overflow() {
                assert!(cache.has_group(group) && cache.node(&id(no)).is_some());
                cache.evict_group(GroupNo((no / 10 - 1) as u16));
            }
            cache.ask_for(None);
            cache.trim();
            assert!(held.iter().all(|&no| cache.nodes.contains_key(&id(no))));
        }
        assert!((480..490).all(|no| !cache.nodes.contains_key(&id(no))));
        assert!((490..500).all(|no| cache.nodes.contains_key(&id(no))));
        assert!(cache.node(&id(495)).is_some());
        cache.evict_group(GroupNo(49));
        let left: Vec<u32> = (100..500)
            .filter(|&no| cache.nodes.contains_key(&id(no)))
            .collect();
        assert_eq!(left, [495], "what others use stays");
        assert_eq!(cache.group_bytes, 0);
        assert_eq!(cache.nodes.len(), cache.queue.len());
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
