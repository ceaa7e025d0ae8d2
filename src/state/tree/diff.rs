//! The differences between two trees, in the order of their keys.
//!
//! Floor 1. Two walks side by side: where both are at a subtree with the same id, both step over it.
//! Boundaries of nodes follow from content, so behind a difference the two trees soon have the
//! same nodes again.
//!
//! Cost: for each difference, the nodes of its path in both trees.

use std::cmp::Ordering;
use std::ops::Bound;

use crate::id::ObjectId;

use super::error::TreeError;
use super::value::Value;
use super::walk::{Entry, Walk};
use super::{EMPTY_TREE, Nodes};

/// A key whose value is not the same in both trees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value in the first tree; `None` where it was added.
    pub before: Option<Value<'a>>,
    /// Its value in the second tree; `None` where it was removed.
    pub after: Option<Value<'a>>,
}

/// How many keys differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiffCounts {
    /// Keys that only the second tree has.
    pub added: u64,
    /// Keys that only the first tree has.
    pub removed: u64,
    /// Keys with another value.
    pub changed: u64,
}

/// The differences between two trees.
///
/// After [`TreeError::Absent`] the same diff goes on when the node is there; where that takes another
/// borrow of the nodes, a new one goes on from [`Diff::reached`].
pub struct Diff<'n, N> {
    nodes: &'n N,
    before: Walk<'n>,
    after: Walk<'n>,
    /// The difference that both walks stand at, if it was found.
    found: Option<Sides>,
    /// Walks that are still to leave what was found.
    leaving: Sides,
    returned: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Sides {
    before: bool,
    after: bool,
}

const BEFORE: Sides = Sides {
    before: true,
    after: false,
};
const AFTER: Sides = Sides {
    before: false,
    after: true,
};
const BOTH: Sides = Sides {
    before: true,
    after: true,
};

/// What the two walks came to.
enum Step {
    Item(Sides),
    /// A subtree that only one side has anything of, and the keys in it.
    Subtree(Sides, u32),
    End,
}

impl<'n, N: Nodes> Diff<'n, N> {
    /// The differences from the tree at `before` to that at `after`, in keys not before `from`.
    ///
    /// # Errors
    /// A node on the way to the first key is absent or damaged.
    pub fn new(
        nodes: &'n N,
        before: &ObjectId,
        after: &ObjectId,
        from: Bound<&[u8]>,
    ) -> Result<Self, TreeError> {
        let (before, after) = match before == after {
            true => (&EMPTY_TREE, &EMPTY_TREE),
            false => (before, after),
        };
        Ok(Self {
            nodes,
            before: Walk::start(nodes, before, from)?,
            after: Walk::start(nodes, after, from)?,
            found: None,
            leaving: Sides::default(),
            returned: false,
        })
    }

    /// The next difference; `None` behind the last one.
    ///
    /// # Errors
    /// A node is absent or damaged.
    #[expect(
        clippy::should_implement_trait,
        reason = "the key is lent until the next call"
    )]
    pub fn next(&mut self) -> Result<Option<Difference<'_>>, TreeError> {
        if std::mem::take(&mut self.returned) {
            self.leave();
        }
        let found = self.find()?;
        self.returned = found;
        Ok(self.current())
    }

    /// Adds up the differences from here to the end. A subtree that lies where the other tree has no key
    /// is counted by its root. After an error, `counts` has what was counted, and another call
    /// goes on.
    ///
    /// # Errors
    /// A node is absent or damaged.
    pub fn count(&mut self, counts: &mut DiffCounts) -> Result<(), TreeError> {
        if std::mem::take(&mut self.returned) {
            self.leave();
        }
        loop {
            let (sides, keys) = match self
                .found
                .map_or_else(|| self.step(true), |sides| Ok(Step::Item(sides)))?
            {
                Step::Item(sides) => (sides, 1),
                Step::Subtree(sides, keys) => (sides, u64::from(keys)),
                Step::End => return Ok(()),
            };
            match sides {
                BEFORE => counts.removed += keys,
                AFTER => counts.added += keys,
                _ => counts.changed += keys,
            }
            self.found = None;
            self.leaving = sides;
        }
    }

    /// The first key that was not compared to its end: a new diff from it, included, goes on where this
    /// one is. Empty at the end.
    #[must_use]
    pub fn reached(&self) -> &[u8] {
        match (self.before.key(), self.after.key()) {
            (before, []) => before,
            ([], after) => after,
            (before, after) => before.min(after),
        }
    }

    /// Goes to the next difference, unless the walks stand at one. Whether there is one.
    pub(super) fn find(&mut self) -> Result<bool, TreeError> {
        if self.found.is_none()
            && let Step::Item(sides) = self.step(false)?
        {
            self.found = Some(sides);
        }
        Ok(self.found.is_some())
    }

    /// The difference that was found.
    pub(super) fn current(&self) -> Option<Difference<'_>> {
        let sides = self.found?;
        let value = |walk: &Walk<'n>, has: bool| match walk.entry() {
            Some(Entry::Item(value)) if has => Some(value),
            _ => None,
        };
        Some(Difference {
            key: match sides.before {
                true => self.before.key(),
                false => self.after.key(),
            },
            before: value(&self.before, sides.before),
            after: value(&self.after, sides.after),
        })
    }

    /// Leaves the difference that was found.
    pub(super) fn leave(&mut self) {
        self.leaving = self.found.take().unwrap_or_default();
    }

    /// Walks to the next item that differs; with `whole`, also stops at subtrees of one side.
    fn step(&mut self, whole: bool) -> Result<Step, TreeError> {
        loop {
            if std::mem::take(&mut self.leaving.before) {
                self.before.step_over()?;
            }
            if std::mem::take(&mut self.leaving.after) {
                self.after.step_over()?;
            }
            let (before, after) = (self.before.entry(), self.after.entry());
            let order = match (before, after) {
                (None, None) => return Ok(Step::End),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), Some(_)) => self.before.key().cmp(self.after.key()),
            };
            let (entry, walk, other, sides) = match order {
                Ordering::Less => (before, &mut self.before, &self.after, BEFORE),
                Ordering::Greater => (after, &mut self.after, &self.before, AFTER),
                Ordering::Equal => {
                    match (before, after) {
                        (Some(Entry::Item(_)), Some(Entry::Item(_))) if before != after => {
                            return Ok(Step::Item(BOTH));
                        }
                        _ if before == after => self.leaving = BOTH,
                        _ => self.step_into_higher()?,
                    }
                    continue;
                }
            };
            match entry {
                Some(Entry::Subtree { keys, .. })
                    if whole && (other.entry().is_none() || walk.ends_before(other.key())) =>
                {
                    return Ok(Step::Subtree(sides, keys));
                }
                Some(Entry::Subtree { .. }) => walk.step_into(self.nodes)?,
                _ => return Ok(Step::Item(sides)),
            }
        }
    }

    /// Steps into the subtree of the higher level, or both.
    fn step_into_higher(&mut self) -> Result<(), TreeError> {
        let level = |walk: &Walk<'n>| match walk.entry() {
            Some(Entry::Subtree { level, .. }) => level,
            _ => 0,
        };
        let (before, after) = (level(&self.before), level(&self.after));
        if before >= after {
            self.before.step_into(self.nodes)?;
        }
        if after >= before {
            self.after.step_into(self.nodes)?;
        }
        Ok(())
    }
}
