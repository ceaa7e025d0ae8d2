//! The way from a root down to one node, and on to its neighbours.
//!
//! Floor 1.

use crate::id::ObjectId;

use super::error::{Damage, TreeError};
use super::node::{KeyBuf, LEVEL_MAX, Node};
use super::{Nodes, damaged, open};

/// Levels that a tree can have.
pub(super) const LEVELS: usize = LEVEL_MAX as usize + 1;

/// A node of some level, and the inner nodes above it.
pub(super) struct Spine<'n> {
    /// From the root down; of each, which child is below.
    above: [(ObjectId, Node<'n>, usize); LEVELS],
    depth: usize,
    id: ObjectId,
    node: Node<'n>,
}

impl<'n> Spine<'n> {
    /// The node of a level whose keys `key` is among, or would be.
    pub fn seek(
        nodes: &'n impl Nodes,
        (id, node): (ObjectId, Node<'n>),
        level: u8,
        key: &[u8],
    ) -> Result<Self, TreeError> {
        let mut spine = Self {
            above: [(id, Node::default(), 0); LEVELS],
            depth: 0,
            id,
            node,
        };
        while spine.node.level() > level {
            let child = spine.node.floor(key);
            spine.descend(nodes, child)?;
        }
        Ok(spine)
    }

    pub fn id(&self) -> ObjectId {
        self.id
    }

    pub fn node(&self) -> &Node<'n> {
        &self.node
    }

    /// The first key of the next node of the level; whether there is one.
    pub fn next_key(&self, key: &mut KeyBuf) -> bool {
        let above = &self.above[..self.depth];
        let has_more = above.iter().rev().find(|(_, node, at)| at + 1 < node.len());
        if let Some((_, node, at)) = has_more {
            node.key_at(&node.place(at + 1), key);
        }
        has_more.is_some()
    }

    /// Goes to the next node of the level, if there is one.
    pub fn after(&mut self, nodes: &'n impl Nodes) -> Result<(), TreeError> {
        self.turn(
            nodes,
            |node, at| Some(at + 1).filter(|next| *next < node.len()),
            |_| 0,
        )
    }

    /// Goes to the node before it on the level, if there is one.
    pub fn before(&mut self, nodes: &'n impl Nodes) -> Result<(), TreeError> {
        self.turn(nodes, |_, at| at.checked_sub(1), |node| node.len() - 1)
    }

    /// Climbs to the lowest node that has a child to `step` to, and from it down along `edge`.
    fn turn(
        &mut self,
        nodes: &'n impl Nodes,
        step: impl Fn(&Node<'n>, usize) -> Option<usize>,
        edge: impl Fn(&Node<'n>) -> usize,
    ) -> Result<(), TreeError> {
        let level = self.node.level();
        let steps = |depth: &usize| {
            let (_, node, at) = &self.above[*depth];
            step(node, *at).map(|child| (*depth, child))
        };
        let Some((depth, child)) = (0..self.depth).rev().find_map(|depth| steps(&depth)) else {
            return Ok(());
        };
        self.depth = depth;
        (self.id, self.node, _) = self.above[depth];
        self.descend(nodes, child)?;
        while self.node.level() > level {
            let child = edge(&self.node);
            self.descend(nodes, child)?;
        }
        Ok(())
    }

    fn descend(&mut self, nodes: &'n impl Nodes, child: usize) -> Result<(), TreeError> {
        let (id, _) = self.node.child(child);
        let node = child_of(nodes, &self.node, &id)?;
        self.above[self.depth] = (self.id, self.node, child);
        self.depth += 1;
        (self.id, self.node) = (id, node);
        Ok(())
    }
}

/// Opens a child: its level is the one below its parent's, so every descent ends.
pub(super) fn child_of<'n>(
    nodes: &'n impl Nodes,
    parent: &Node<'_>,
    id: &ObjectId,
) -> Result<Node<'n>, TreeError> {
    let node = open(nodes, id)?;
    if node.level() + 1 != parent.level() {
        return Err(damaged(id, Damage::Level));
    }
    Ok(node)
}
