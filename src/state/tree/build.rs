//! Builds the nodes of one level from its entries, in order, and lists what it built.
//!
//! Floor 1. All memory is kept from one use to the next.
//!
//! Invariants
//! - a node is closed when the entry behind it arrives, or the level ends: whether it is full is
//!   known only then.
//! - runs of an old node are copied as bytes where the rule of boundaries is known to hold.

use std::ops::Range;

use crate::id::ObjectId;

use super::boundary::{ENTRY_FILL_BYTES, Fill, begins_node, key_hash};
use super::node::{
    HEAD_BYTES, HEADER_BYTES, Head, KeyBuf, NODE_VERSION, Node, Place, shared_bytes,
};
use super::value::{self, REFERENCE_BYTES};

/// Nodes of a level as the level above names them: first key, id, keys below.
#[derive(Debug, Default)]
pub(super) struct Refs {
    keys: Vec<u8>,
    list: Vec<(Range<usize>, ObjectId, u32)>,
}

impl Refs {
    pub fn push(&mut self, key: &[u8], id: ObjectId, keys: u32) {
        let at = self.keys.len();
        self.keys.extend_from_slice(key);
        self.list.push((at..self.keys.len(), id, keys));
    }

    pub fn get(&self, no: usize) -> Option<(&[u8], ObjectId, u32)> {
        let (range, id, keys) = self.list.get(no)?;
        Some((&self.keys[range.clone()], *id, *keys))
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.list.clear();
    }
}

/// Nodes that were built, children before parents.
#[derive(Debug, Default)]
pub(super) struct NewNodes {
    bytes: Vec<u8>,
    list: Vec<(ObjectId, Range<usize>)>,
}

impl NewNodes {
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (ObjectId, &[u8])> {
        let bytes = &self.bytes;
        let kept = self.list.iter().filter(|(_, range)| !range.is_empty());
        kept.map(move |(id, range)| (*id, &bytes[range.clone()]))
    }

    /// Nodes so far, those taken out again among them.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Number and bytes of a node near the end.
    pub fn get(&self, id: &ObjectId) -> Option<(usize, &[u8])> {
        let (no, (_, range)) = self
            .list
            .iter()
            .enumerate()
            .rev()
            .find(|(_, (new, _))| new == id)?;
        Some((no, &self.bytes[range.clone()]))
    }

    /// Takes a node out that turned out not to be new, or not to be part of the tree.
    pub fn remove(&mut self, no: usize) {
        if let Some((_, range)) = self.list.get_mut(no) {
            range.end = range.start;
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
    }
}

/// The node that is being filled.
#[derive(Default)]
pub(super) struct NodeBuilder {
    level: u8,
    heads: Vec<u8>,
    suffixes: Vec<u8>,
    payloads: Vec<u8>,
    last: KeyBuf,
}

/// What building leaves: nodes of all levels, and how the level above names those of this level.
#[derive(Debug, Default)]
pub(super) struct Built {
    pub nodes: NewNodes,
    pub refs: Refs,
}

impl NodeBuilder {
    /// Begins a level anew.
    pub fn start(&mut self, level: u8) {
        self.level = level;
        self.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    fn fill(&self) -> Fill {
        let entries = (self.heads.len() / HEAD_BYTES) as u32;
        Fill {
            entries,
            bytes: entries * ENTRY_FILL_BYTES + self.suffixes.len() as u32,
        }
    }

    /// Whether the next entry begins a new node if it has this key.
    pub fn ends_before(&self, key: &[u8]) -> bool {
        self.is_empty() || self.begins_node(key, shared_bytes(self.last.as_slice(), key))
    }

    fn begins_node(&self, key: &[u8], shared: usize) -> bool {
        let weight = ENTRY_FILL_BYTES + (key.len() - shared) as u32;
        begins_node(self.fill(), weight, self.level, || key_hash(key))
    }

    /// Adds an entry behind all others; closes the node before it if it begins another one.
    pub fn push(&mut self, key: &[u8], code: u32, payload: &[u8], built: &mut Built) {
        let mut shared = 0;
        if !self.is_empty() {
            shared = shared_bytes(self.last.as_slice(), key);
            if self.begins_node(key, shared) {
                self.finish(built);
                shared = 0;
            }
        }
        let suffix = &key[shared..];
        let head = Head::new(shared, suffix.len(), code);
        self.heads.extend_from_slice(&head.to_bytes());
        self.suffixes.extend_from_slice(suffix);
        self.payloads.extend_from_slice(payload);
        self.last.set(key);
    }

    /// Adds the entries of an old node between two places. `joined`: what was added last is the entry
    /// before `from`, or the node begins on both sides, so keys share what they shared.
    pub fn push_run(
        &mut self,
        node: &Node<'_>,
        mut from: Place,
        to: &Place,
        mut joined: bool,
        spare: &mut KeyBuf,
        built: &mut Built,
    ) {
        let mut followed = false;
        while from.index < to.index {
            // In the old node no entry of the run began a node, though more was before it.
            if joined && self.fill().at_most(from.fill()) {
                let (heads, suffixes, payloads) = node.run(&from, to);
                self.heads.extend_from_slice(heads);
                self.suffixes.extend_from_slice(suffixes);
                self.payloads.extend_from_slice(payloads);
                node.key_at(&node.place_before(to), &mut self.last);
                return;
            }
            match followed {
                true => node.follow_key(&from, spare),
                false => node.key_at(&from, spare),
            }
            followed = true;
            let code = node.head(from.index).code();
            self.push(spare.as_slice(), code, node.payload(&from), built);
            from = node.next(&from);
            joined = true;
        }
    }

    /// Closes the node, if there is one.
    pub fn finish(&mut self, built: &mut Built) {
        if self.is_empty() {
            return;
        }
        let entries = (self.heads.len() / HEAD_BYTES) as u16;
        let new = &mut built.nodes;
        let at = new.bytes.len();
        let bytes = self.heads.len() + self.suffixes.len() + self.payloads.len();
        new.bytes.reserve(HEADER_BYTES + bytes);
        new.bytes.extend_from_slice(&[NODE_VERSION, self.level]);
        new.bytes.extend_from_slice(&entries.to_le_bytes());
        new.bytes.extend_from_slice(&self.heads);
        new.bytes.extend_from_slice(&self.suffixes);
        new.bytes.extend_from_slice(&self.payloads);
        let id = ObjectId::of_node(&new.bytes[at..]);
        let keys = match self.level {
            0 => u32::from(entries),
            _ => self.keys_below(),
        };
        let first_key_bytes = Head::first_of(&self.heads).suffix();
        built.refs.push(&self.suffixes[..first_key_bytes], id, keys);
        new.list.push((id, at..new.bytes.len()));
        self.clear();
    }

    /// Saturates: a tree that claims more keys than there can be is refused where its root is made.
    fn keys_below(&self) -> u32 {
        let (entries, _) = self.payloads.as_chunks::<REFERENCE_BYTES>();
        entries.iter().fold(0, |sum: u32, entry| {
            sum.saturating_add(value::reference(entry).1)
        })
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.suffixes.clear();
        self.payloads.clear();
        self.last.clear();
    }
}
