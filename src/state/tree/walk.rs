//! A walk over the entries of a tree, leaves or whole subtrees, in order.
//!
//! Floor 1. What scans, diffs and merges are made of.
//!
//! Invariants
//! - keys ascend strictly from entry to entry, and a child begins with the key and has the count that
//!   its parent says, or the walk ends with an error: so it ends, whatever the bytes.

use std::ops::Bound;

use crate::id::ObjectId;

use super::error::{Damage, TreeError};
use super::node::{KeyBuf, Node, Place, Sought};
use super::spine::{LEVELS, child_of};
use super::value::Value;
use super::{EMPTY_TREE, Nodes, damaged, open};

#[derive(Clone, Copy)]
struct Frame<'n> {
    id: ObjectId,
    node: Node<'n>,
    place: Place,
}

/// A place in a tree: an entry of a leaf, or of an inner node and so a whole subtree.
pub(super) struct Walk<'n> {
    frames: [Frame<'n>; LEVELS],
    /// Nodes from the root down to the one that the walk is in; 0 at the end.
    depth: usize,
    /// The key of the entry.
    key: KeyBuf,
    spare: KeyBuf,
}

/// What a walk is at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry<'n> {
    Item(Value<'n>),
    Subtree { id: ObjectId, keys: u32, level: u8 },
}

impl<'n> Walk<'n> {
    /// At the first entry of the root, or, with a bound, at the first item within it.
    pub fn start(
        nodes: &'n impl Nodes,
        root: &ObjectId,
        from: Bound<&[u8]>,
    ) -> Result<Self, TreeError> {
        let frame = Frame {
            id: *root,
            node: Node::default(),
            place: Place::default(),
        };
        let mut walk = Self {
            frames: [frame; LEVELS],
            depth: 0,
            key: KeyBuf::default(),
            spare: KeyBuf::default(),
        };
        if *root != EMPTY_TREE {
            let node = open(nodes, root)?;
            walk.push(*root, node)?;
            match from {
                Bound::Included(key) => walk.seek(nodes, key, false)?,
                Bound::Excluded(key) => walk.seek(nodes, key, true)?,
                Bound::Unbounded => {}
            }
        }
        Ok(walk)
    }

    fn seek(&mut self, nodes: &'n impl Nodes, key: &[u8], behind: bool) -> Result<(), TreeError> {
        loop {
            let frame = &mut self.frames[self.depth - 1];
            let node = frame.node;
            if node.level() > 0 {
                frame.place = node.place(node.floor(key));
                node.key_at(&frame.place, &mut self.key);
                self.step_into(nodes)?;
                continue;
            }
            let sought = node.seek(key, Sought::default());
            frame.place = sought.place;
            if sought.exact && behind {
                frame.place = node.next(&sought.place);
            }
            if frame.place.index < node.len() {
                node.key_at(&frame.place, &mut self.key);
                return Ok(());
            }
            // Behind the last entry: where stepping over that one leads.
            frame.place = node.place_before(&frame.place);
            node.key_at(&frame.place, &mut self.key);
            return self.step_over();
        }
    }

    /// The key of the entry: for a subtree, its first one. Empty at the end.
    pub fn key(&self) -> &[u8] {
        self.key.as_slice()
    }

    /// The entry; `None` at the end.
    pub fn entry(&self) -> Option<Entry<'n>> {
        let frame = self.frames[..self.depth].last()?;
        let node = &frame.node;
        Some(match node.level() {
            0 => Entry::Item(node.value(&frame.place)),
            level => {
                let (id, keys) = node.child(frame.place.index);
                Entry::Subtree { id, keys, level }
            }
        })
    }

    /// Goes to the entry behind this one, and behind all below it.
    pub fn step_over(&mut self) -> Result<(), TreeError> {
        let mut climbed = false;
        while let Some(frame) = self.frames[..self.depth].last_mut() {
            let node = frame.node;
            frame.place = node.next(&frame.place);
            if frame.place.index < node.len() {
                let ascends = if climbed {
                    node.key_at(&frame.place, &mut self.spare);
                    let ascends = self.spare.as_slice() > self.key.as_slice();
                    std::mem::swap(&mut self.key, &mut self.spare);
                    ascends.then_some(()).ok_or(Damage::Order)
                } else {
                    node.advance_key(&frame.place, &mut self.key)
                };
                return ascends.map_err(|damage| damaged(&frame.id, damage));
            }
            self.depth -= 1;
            climbed = true;
        }
        self.key.clear();
        Ok(())
    }

    /// Goes to the first entry of the subtree that the walk is at. At an item, stays.
    pub fn step_into(&mut self, nodes: &'n impl Nodes) -> Result<(), TreeError> {
        let Some(Entry::Subtree { id, keys, .. }) = self.entry() else {
            return Ok(());
        };
        let node = child_of(nodes, &self.frames[self.depth - 1].node, &id)?;
        if node.first_key() != self.key() {
            return Err(damaged(&id, Damage::FirstKey));
        }
        if node.keys() != Ok(keys) {
            return Err(damaged(&id, Damage::Count));
        }
        self.push(id, node)
    }

    /// Goes down to the first item at or below the entry.
    pub fn step_to_item(&mut self, nodes: &'n impl Nodes) -> Result<(), TreeError> {
        while matches!(self.entry(), Some(Entry::Subtree { .. })) {
            self.step_into(nodes)?;
        }
        Ok(())
    }

    /// Whether everything at or below the entry comes before `key`, as far as can be told without
    /// reading it.
    pub fn ends_before(&mut self, key: &[u8]) -> bool {
        let frames = &self.frames[..self.depth];
        let more = frames
            .iter()
            .rev()
            .find(|frame| frame.place.index + 1 < frame.node.len());
        more.is_some_and(|frame| {
            frame
                .node
                .key_at(&frame.node.next(&frame.place), &mut self.spare);
            self.spare.as_slice() <= key
        })
    }

    fn push(&mut self, id: ObjectId, node: Node<'n>) -> Result<(), TreeError> {
        // Levels fall with each step down, so there is room.
        self.frames[self.depth] = Frame {
            id,
            node,
            place: Place::default(),
        };
        self.depth += 1;
        self.key.set(node.first_key());
        Ok(())
    }
}
