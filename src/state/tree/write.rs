//! Applies sorted changes to a tree: the nodes that are new, and the id of the new root.
//!
//! Floor 1. The levels are changed one after the other, from the leaves up. At each level the nodes that
//! changes fall into are read, merged with the changes and cut anew, until a boundary of the new
//! level is one of the old level again; from there on old nodes stand as they are. What that did to
//! the nodes of the level is the list of changes to the level above.
//!
//! Cost: for each run of changes, a descent and the nodes of its path, each read, copied and hashed
//! once. A change of values alone moves no boundary and copies bytes; a key that comes or goes
//! moves the end of its node once in about 30 times, and then mostly that of one node. Keys chosen
//! against the rule can make it move all ends to the right; such a level costs what building it
//! costs. No memory is taken once the buffers have grown to the largest apply.
//!
//! Invariants
//! - the result depends on the content alone: the same keys and values give the same nodes, by
//!   whatever changes they came about.
//! - an error changes nothing; the call may be repeated when the node it asks for is there.

use std::ops::Range;

use crate::id::ObjectId;

use super::build::{Built, NodeBuilder, Refs};
use super::changes::Changes;
use super::error::{Damage, TreeError};
use super::node::{KeyBuf, Node, Place, Sought, shared_bytes};
use super::spine::Spine;
use super::{EMPTY_TREE, Nodes, damaged, open, open_bytes};

/// Applies changes to trees, in memory that it keeps.
///
/// ```
/// use helios::state::tree::{Changes, EMPTY_TREE, MemoryNodes, TreeWriter, Value, get};
/// let mut nodes = MemoryNodes::default();
/// let mut changes = Changes::default();
/// changes.put(b"step", Value::Inline(b"7")).unwrap();
/// let mut writer = TreeWriter::default();
/// let root = writer.apply(&nodes, &EMPTY_TREE, &changes).unwrap();
/// nodes.extend(writer.new_nodes());
/// assert_eq!(get(&nodes, &root, b"step").unwrap(), Some(Value::Inline(b"7")));
/// ```
#[derive(Default)]
pub struct TreeWriter {
    level: Level,
    edits: Changes,
    /// Keys in the tree that the last apply made, if it made one.
    keys: Option<u32>,
}

/// The state of the level that is being changed.
#[derive(Default)]
struct Level {
    builder: NodeBuilder,
    /// Old nodes that were read.
    old: Refs,
    /// What stands in their place.
    built: Built,
    /// Nodes of the levels below, among those built.
    built_below: usize,
    next_key: KeyBuf,
    spare: KeyBuf,
}

impl TreeWriter {
    /// The root of the tree that `changes` make of the tree at `root`. The nodes that are new are in
    /// [`TreeWriter::new_nodes`] until the next call.
    ///
    /// # Errors
    /// [`TreeError::Absent`] names a node to fetch before the next try; a damaged node, unsorted
    /// changes, too many keys. Nothing is changed then, and there are no new nodes.
    pub fn apply(
        &mut self,
        nodes: &impl Nodes,
        root: &ObjectId,
        changes: &Changes,
    ) -> Result<ObjectId, TreeError> {
        self.level.built.nodes.clear();
        self.keys = None;
        if changes.is_empty() {
            return Ok(*root);
        }
        if !changes.is_sorted() {
            return Err(TreeError::Unsorted);
        }
        let applied = self.apply_sorted(nodes, root, changes);
        if applied.is_err() {
            self.level.built.nodes.clear();
        }
        applied
    }

    /// The nodes that the last [`TreeWriter::apply`] made and the old tree does not have: id and bytes,
    /// each after those that it names.
    pub fn new_nodes(&self) -> impl Iterator<Item = (ObjectId, &[u8])> {
        self.level.built.nodes.iter()
    }

    /// Keys in the tree that the last [`TreeWriter::apply`] made; `None` where that changed nothing.
    pub fn keys(&self) -> Option<u32> {
        self.keys
    }

    fn apply_sorted(
        &mut self,
        nodes: &impl Nodes,
        root: &ObjectId,
        changes: &Changes,
    ) -> Result<ObjectId, TreeError> {
        let Self {
            level,
            edits,
            keys: made,
        } = self;
        let top = match *root {
            EMPTY_TREE => None,
            _ => Some((*root, open(nodes, root)?)),
        };
        level.edit(nodes, top, 0, changes)?;
        let mut height = 0;
        let top_level = top.map_or(0, |(_, node)| node.level());
        while height < top_level {
            level.edits_above(edits);
            if edits.is_empty() {
                return Ok(*root);
            }
            height += 1;
            level.edit(nodes, top, height, edits)?;
        }
        if level.drop_unchanged_root(root) {
            return Ok(*root);
        }
        // What is left of the old root, or came in its place, may need new levels above.
        while level.built.refs.len() > 1 {
            edits.clear();
            for no in 0..level.built.refs.len() {
                if let Some((key, id, keys)) = level.built.refs.get(no) {
                    edits.put_child(key, &id, keys);
                }
            }
            height += 1;
            level.edit(nodes, None, height, edits)?;
        }
        let (root, keys) = level.lowest_root(nodes)?;
        *made = Some(keys);
        Ok(root)
    }
}

impl Level {
    /// Changes one level of a tree; without a tree, builds it.
    fn edit<'n>(
        &mut self,
        nodes: &'n impl Nodes,
        top: Option<(ObjectId, Node<'n>)>,
        level: u8,
        edits: &Changes,
    ) -> Result<(), TreeError> {
        self.old.clear();
        self.built.refs.clear();
        self.built_below = self.built.nodes.len();
        self.builder.start(level);
        let Some(top) = top else {
            for no in 0..edits.len() {
                self.put(edits, no);
            }
            self.builder.finish(&mut self.built);
            return Ok(());
        };
        let mut next = 0;
        while next < edits.len() {
            let key = edits.key(next);
            let mut spine = Spine::seek(nodes, top, level, key)?;
            if edits.get(next).is_none() && spine.node().first_key() == key {
                // Without its first key, the node may not begin here: the one before tells.
                spine.before(nodes)?;
            }
            let first = next;
            self.edit_run(nodes, &mut spine, edits, &mut next)?;
            if next == first {
                // The key belongs to no node: its parent's keys are out of order.
                return Err(damaged(&spine.id(), Damage::Order));
            }
        }
        Ok(())
    }

    /// Merges changes and nodes from one on, until a boundary is where one was before.
    fn edit_run<'n>(
        &mut self,
        nodes: &'n impl Nodes,
        spine: &mut Spine<'n>,
        edits: &Changes,
        next: &mut usize,
    ) -> Result<(), TreeError> {
        loop {
            let more = spine.next_key(&mut self.next_key);
            let from = *next;
            while *next < edits.len() && (!more || edits.key(*next) < self.next_key.as_slice()) {
                *next += 1;
            }
            self.merge(spine, edits, from..*next)?;
            if !more {
                break;
            }
            let boundary = self.next_key.as_slice();
            let stays =
                *next == edits.len() || edits.get(*next).is_some() || edits.key(*next) != boundary;
            if stays && self.builder.ends_before(boundary) {
                break;
            }
            spine.after(nodes)?;
        }
        self.builder.finish(&mut self.built);
        Ok(())
    }

    /// Adds the entries of a node, as the changes within it leave them.
    fn merge(
        &mut self,
        spine: &Spine<'_>,
        edits: &Changes,
        range: Range<usize>,
    ) -> Result<(), TreeError> {
        let (id, node) = (spine.id(), spine.node());
        let keys = node.keys().map_err(|damage| damaged(&id, damage))?;
        self.old.push(node.first_key(), id, keys);
        let mut joined = self.builder.is_empty();
        let mut sought = Sought::default();
        let mut before: Option<&[u8]> = None;
        for no in range {
            let key = edits.key(no);
            if let Some(before) = before {
                let common = shared_bytes(before, key);
                sought.matched = match sought.exact {
                    true => common,
                    false => common.min(sought.matched),
                };
            }
            let mut from = sought.place;
            if sought.exact {
                // The entry that the change before this one replaced.
                from = node.next(&from);
                sought.place = from;
            }
            sought = node.seek(key, sought);
            if from != sought.place {
                self.keep(node, from, &sought.place, joined);
                joined = true;
            }
            if edits.get(no).is_some() {
                self.put(edits, no);
                // The key of the old entry before the next one is there, or another one.
                joined = sought.exact;
            } else if sought.exact {
                joined = false;
            }
            before = Some(key);
        }
        let mut from = sought.place;
        if sought.exact {
            from = node.next(&from);
        }
        self.keep(node, from, &node.end(), joined);
        Ok(())
    }

    /// Adds entries of an old node as they are.
    fn keep(&mut self, node: &Node<'_>, from: Place, to: &Place, joined: bool) {
        let (spare, built) = (&mut self.spare, &mut self.built);
        self.builder.push_run(node, from, to, joined, spare, built);
    }

    /// Adds the entry of a put. A delete of what is not there adds none.
    fn put(&mut self, edits: &Changes, no: usize) {
        if let Some((code, payload)) = edits.get(no) {
            self.builder
                .push(edits.key(no), code, payload, &mut self.built);
        }
    }

    /// What the level above has to change: nodes that are gone, nodes that are there instead.
    fn edits_above(&mut self, edits: &mut Changes) {
        edits.clear();
        let (mut old_no, mut new_no) = (0, 0);
        loop {
            let (old, new) = (self.old.get(old_no), self.built.refs.get(new_no));
            if let Some((old_key, ..)) = old
                && new.is_none_or(|(key, ..)| old_key < key)
            {
                edits.push(old_key, None);
                old_no += 1;
                continue;
            }
            let Some((key, id, keys)) = new else {
                return;
            };
            let same_key = old.filter(|(old_key, ..)| *old_key == key);
            if same_key.is_some_and(|(_, old_id, _)| old_id == id) {
                self.built.nodes.remove(self.built_below + new_no);
            } else {
                edits.put_child(key, &id, keys);
            }
            old_no += usize::from(same_key.is_some());
            new_no += 1;
        }
    }

    /// Whether all changes together changed nothing, as far as the root's own level tells.
    fn drop_unchanged_root(&mut self, root: &ObjectId) -> bool {
        let refs = &self.built.refs;
        let unchanged = refs.len() == 1 && refs.get(0).is_some_and(|(_, id, _)| id == *root);
        if unchanged {
            self.built.nodes.clear();
        }
        unchanged
    }

    /// The root, and the keys below it: the lowest node that is alone on its level.
    fn lowest_root(&mut self, nodes: &impl Nodes) -> Result<(ObjectId, u32), TreeError> {
        let Some((_, mut id, keys)) = self.built.refs.get(0) else {
            return Ok((EMPTY_TREE, 0));
        };
        if keys == u32::MAX {
            return Err(TreeError::TooManyKeys);
        }
        loop {
            let built = self.built.nodes.get(&id);
            let node = match built {
                Some((_, bytes)) => open_bytes(&id, bytes)?,
                None => open(nodes, &id)?,
            };
            if node.level() == 0 || node.len() > 1 {
                return Ok((id, keys));
            }
            let (child, _) = node.child(0);
            if let Some((no, _)) = built {
                self.built.nodes.remove(no);
            }
            id = child;
        }
    }
}
