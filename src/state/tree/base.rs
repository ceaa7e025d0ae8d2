//! What both sides of a merge come from: a tree, or several that are themselves merged.
//!
//! Floor 1. Two histories that merged each other have several last common states, none of which knows all
//! that both sides have. As git's `recursive` and `ort` strategies do (`git help merge`: "it creates a
//! merged tree of the common ancestors and uses that as the reference tree"), those are merged first,
//! over what they come from in turn. Here that is decided key by key, when a key is asked for,
//! so no tree is built and nothing is stored.
//!
//! Of a key that the bases changed in different ways nobody can say what both sides come from: it is
//! [`Was::Unknown`]. A merge takes no side then: it is clean where both sides agree, else a conflict. That is
//! what all the bases together allow: were either of them the base, two sides that differ would conflict, or
//! one base would give one side's value and the other base the other's.
//!
//! Invariants
//! - the order of the two that are merged means nothing.
//!
//! Cost: a lookup in each of the bases; in what these come from only where they differ.

use crate::id::ObjectId;

use super::error::TreeError;
use super::read::get;
use super::value::Value;
use super::{EMPTY_TREE, Nodes};

/// What both sides of a merge come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Base {
    /// A tree.
    Tree(ObjectId),
    /// Two, merged.
    Merged(Box<MergedBase>),
    /// Nobody knows.
    Unknown,
}

/// Two bases, and what these come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergedBase {
    /// What both come from.
    pub of: Base,
    /// The bases, in any order.
    pub bases: [Base; 2],
}

/// What a key was where both sides come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Was<'n> {
    /// This value; `None` where there was none.
    Known(Option<Value<'n>>),
    /// The bases changed it in different ways.
    Unknown,
}

impl From<ObjectId> for Base {
    fn from(root: ObjectId) -> Self {
        Self::Tree(root)
    }
}

impl Default for Base {
    fn default() -> Self {
        Self::Tree(EMPTY_TREE)
    }
}

impl Base {
    /// Two bases, merged over what they come from.
    #[must_use]
    pub fn merged(of: Self, bases: [Self; 2]) -> Self {
        Self::Merged(Box::new(MergedBase { of, bases }))
    }

    /// What a key was.
    ///
    /// # Errors
    /// [`TreeError::Absent`] names a node to fetch before the next try; a damaged node.
    pub fn was<'n>(&self, nodes: &'n impl Nodes, key: &[u8]) -> Result<Was<'n>, TreeError> {
        let merged = match self {
            Self::Tree(root) => return get(nodes, root, key).map(Was::Known),
            Self::Merged(merged) => merged,
            Self::Unknown => return Ok(Was::Unknown),
        };
        let Was::Known(one) = merged.bases[0].was(nodes, key)? else {
            return Ok(Was::Unknown);
        };
        let Was::Known(other) = merged.bases[1].was(nodes, key)? else {
            return Ok(Was::Unknown);
        };
        if one == other {
            return Ok(Was::Known(one));
        }
        Ok(match merged.of.was(nodes, key)? {
            Was::Known(of) if of == one => Was::Known(other),
            Was::Known(of) if of == other => Was::Known(one),
            _ => Was::Unknown,
        })
    }
}
