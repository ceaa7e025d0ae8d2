//! Histories: what a revision means, and which checkpoints come before one.
//!
//! Floor 2. Checkpoints name their parents; a parent's sequence is always below its child's, so that a
//! walk in falling order of sequence meets every checkpoint after all that follow it. A parent that is not
//! stored (pruned), or not readable (foreign), is where history ends.
//!
//! Cost: one object of some 200 bytes per checkpoint passed.

use std::collections::{BinaryHeap, HashSet};

use crate::agent::call::{self, Id, Logged, Revision};
use crate::id::{BranchNo, OBJECT_ID_BYTES, ObjectId};
use crate::segment::Disk;
use crate::shard::Shard;
use crate::shard::agent::BranchRef;
use crate::shard::call::{Asker, Failed, Outcome};
use crate::shard::store::{Refused, Store};
use crate::state::checkpoint::PARENTS_MAX;
use crate::state::tree::EMPTY_TREE;

/// What a revision means: a checkpoint and its tree, or nothing and the empty tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The checkpoint.
    pub head: Option<ObjectId>,
    /// Its tree.
    pub tree: ObjectId,
}

/// A walk over a checkpoint and all before it.
#[derive(Debug, Default)]
pub struct Walk {
    /// By sequence: the youngest first.
    ahead: BinaryHeap<(u64, [u8; 32])>,
    seen: HashSet<ObjectId>,
}

impl Walk {
    /// Adds a checkpoint to begin at, or to go on at.
    pub fn push<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        at: BranchRef,
        id: &ObjectId,
    ) -> Result<(), Refused> {
        if !self.seen.contains(id) {
            let known = store.known(at, id)?;
            self.seen.insert(*id);
            self.ahead.push((known.sequence, *id.as_bytes()));
        }
        Ok(())
    }

    /// The checkpoint that comes next.
    #[must_use]
    pub fn peek(&self) -> Option<ObjectId> {
        let (_, id) = self.ahead.peek()?;
        Some(ObjectId::from_bytes(*id))
    }

    /// The next checkpoint, after all that follow it.
    pub fn next<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        at: BranchRef,
    ) -> Result<Option<ObjectId>, Refused> {
        let Some((_, id)) = self.ahead.pop() else {
            return Ok(None);
        };
        let id = ObjectId::from_bytes(id);
        for parent in store.known(at, &id)?.parents {
            match self.push(store, at, &parent) {
                // Pruned, or foreign: what is known of history ends there.
                Ok(()) | Err(Refused::NoSuchRevision) => {}
                Err(refused) => return Err(refused),
            }
        }
        Ok(Some(id))
    }

    /// How many checkpoints it would go on at.
    #[must_use]
    pub fn ahead(&self) -> usize {
        self.ahead.len()
    }

    /// The checkpoints at which the walk would go on.
    pub fn rest(self) -> impl Iterator<Item = ObjectId> {
        let ids = self.ahead.into_sorted_vec().into_iter().rev();
        ids.map(|(_, id)| ObjectId::from_bytes(id))
    }
}

/// Bytes that each checkpoint at which a log goes on takes in an answer.
const NEXT_BYTES: usize = OBJECT_ID_BYTES + 1;

impl<D: Disk> Shard<D> {
    /// Lists a history, page by page.
    pub(super) fn log(
        &mut self,
        by: Asker,
        from: Revision<'_>,
        frontier: &[Id],
        limit: u32,
    ) -> Result<Outcome, Failed> {
        let mut walk = Walk::default();
        if frontier.is_empty()
            && let Some(head) = self.store.resolve(by.place, from)?.head
        {
            walk.push(&mut self.store, by.place, &head)?;
        }
        for id in frontier {
            walk.push(&mut self.store, by.place, &ObjectId::from_bytes(*id))?;
        }
        let limit = if limit == 0 { u32::MAX } else { limit };
        let mut checkpoint = Vec::new();
        let mut outcome = Outcome::default();
        for _ in 0..limit {
            let Some(id) = walk.peek() else {
                break;
            };
            checkpoint.clear();
            self.store.read_checkpoint(by.place, &id, &mut checkpoint)?;
            let logged = Logged::Entry {
                id: *id.as_bytes(),
                checkpoint: &checkpoint,
            };
            // What it follows has to find room at the end of the answer.
            let next_bytes = (walk.ahead() + PARENTS_MAX) * NEXT_BYTES;
            if !self.add_item(by.room.saturating_sub(next_bytes), &logged) {
                break;
            }
            walk.next(&mut self.store, by.place)?;
        }
        for id in walk.rest() {
            outcome.more = true;
            call::push(&Logged::Next { id: *id.as_bytes() }, &mut self.answer);
        }
        Ok(outcome)
    }
}

impl Refused {
    /// For a checkpoint that a branch or a tag names: where it can't be found, it is damaged.
    fn of_named(self) -> Self {
        match self {
            Self::NoSuchRevision => Self::Corrupt,
            other => other,
        }
    }
}

impl<D: Disk> Store<D> {
    /// What a revision means to an agent.
    ///
    /// # Errors
    /// [`Refused::NoSuchRevision`], [`Refused::Cold`], [`Refused::Corrupt`].
    pub fn resolve(&mut self, at: BranchRef, revision: Revision<'_>) -> Result<Target, Refused> {
        let agent = self.tables.agent(at.agent);
        let of_branch = |no: BranchNo| agent.branch(no).map(|branch| branch.head);
        let head = match revision {
            Revision::Empty => None,
            Revision::Head => of_branch(at.branch).ok_or(Refused::NoSuchRevision)?,
            Revision::Branch(name) => agent
                .branch_no(name)
                .and_then(of_branch)
                .ok_or(Refused::NoSuchRevision)?,
            Revision::Tag(name) => {
                let tag = agent.tags.get(name);
                Some(tag.ok_or(Refused::NoSuchRevision)?.target)
            }
            Revision::Checkpoint(id) => Some(ObjectId::from_bytes(id)),
            // Its id stands in its place by now.
            Revision::Published { .. } => return Err(Refused::NoSuchRevision),
        };
        let tree = match (head, revision) {
            (Some(head), Revision::Checkpoint(_)) => self.tree_of(at, &head)?,
            (Some(head), _) => self.tree_of(at, &head).map_err(Refused::of_named)?,
            (None, _) => EMPTY_TREE,
        };
        Ok(Target { head, tree })
    }
}
