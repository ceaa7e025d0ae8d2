//! Merges: what two histories did since they parted, brought together in one of them.
//!
//! Floor 2. The branch is `ours`, what is merged into it `theirs`, what both come from the base
//! (`ancestors`). A merge is a checkpoint with two parents, or, where the branch has nothing of its own, a
//! step ahead; with a conflict it is neither, and nothing changed.

use crate::agent::call::{self, Conflict, Merged, Revision};
use crate::agent::entry::Status;
use crate::id::ObjectId;
use crate::segment::Disk;
use crate::shard::Shard;
use crate::shard::call::{Asker, Failed, Outcome, checkpointed, committed, made, value_info};
use crate::shard::commit::Asked;
use crate::shard::store::Refused;
use crate::state::checkpoint::Metadata;
use crate::state::tree::{self, Base, EMPTY_TREE, PrefixRule};

/// Conflicts listed in one answer.
const CONFLICTS_MAX: usize = 256;

impl<D: Disk> Shard<D> {
    pub(super) fn merge(
        &mut self,
        by: Asker,
        from: Revision<'_>,
        rules: &[PrefixRule<'_>],
        metadata: Metadata<'_>,
        expect: Option<Option<ObjectId>>,
    ) -> Result<Outcome, Failed> {
        let place = by.place;
        let theirs = self.store.resolve(place, from)?;
        let branch = self.store.tables.branch(place);
        let (head, name) = (branch.head, branch.name.clone());
        let changes = branch.keys.changes() as u64;
        if expect.is_some_and(|expected| expected != head) {
            return Err(Refused::StaleHead(head).into());
        }
        let bases = match (head, theirs.head) {
            (Some(ours), Some(theirs)) => {
                let bases = self.store.best_common_ancestors(&[ours], &[theirs])?;
                if bases.is_empty() {
                    return Err(Status::Unrelated.into());
                }
                bases
            }
            _ => Vec::new(),
        };
        let Some(their_head) = theirs.head.filter(|&theirs| bases != [theirs]) else {
            call::push(&Merged::Nothing, &mut self.answer);
            return Ok(Outcome::default());
        };
        if changes > 0 {
            return Err(Refused::Unsaved(changes).into());
        }
        let our_tree = self.store.tables.branch(place).base;
        let base = match &*bases {
            [] => Base::Tree(EMPTY_TREE),
            bases => self.store.merge_base(bases)?,
        };
        // What was restored and not checkpointed since is not what the head says: it is ours all the same.
        if bases.as_slice() == head.as_slice() && base == Base::Tree(our_tree) {
            let sequence =
                self.store
                    .append_branch(place, None, theirs.head, theirs.tree, false)?;
            self.flush_commit()?;
            self.move_branch(place, &name, theirs.head, theirs.tree);
            let head = *their_head.as_bytes();
            call::push(&Merged::FastForward { head }, &mut self.answer);
            return Ok(committed(sequence));
        }
        let mut merge = tree::Merge::default();
        merge.start(base, our_tree, theirs.tree);
        let merged = self
            .store
            .with_nodes(|nodes| merge.run(nodes, rules, CONFLICTS_MAX))?;
        if let tree::Merged::Conflicts { more } = merged {
            return Ok(self.list_conflicts(by, merge.conflicts(), more));
        }
        let asked = Asked {
            metadata,
            expect,
            merged: Some(their_head),
            wall_ms: self.wall_ms(),
        };
        let prepared = self.store.prepare_merge(place, &asked, merge.changes())?;
        self.flush_commit()?;
        self.move_branch(place, &name, Some(prepared.id), prepared.tree);
        call::push(
            &Merged::Merged(checkpointed(&prepared).into_owned()),
            &mut self.answer,
        );
        Ok(made(&prepared))
    }

    fn list_conflicts(&mut self, by: Asker, found: &tree::Conflicts, more: bool) -> Outcome {
        let mut outcome = Outcome {
            more,
            conflicts: true,
            ..Outcome::default()
        };
        for conflict in found.iter() {
            let item = Conflict {
                key: conflict.key,
                base: conflict.base.as_ref().map(value_info),
                ours: conflict.ours.as_ref().map(value_info),
                theirs: conflict.theirs.as_ref().map(value_info),
            };
            if !self.add_item(by.room, &item) {
                outcome.more = true;
                break;
            }
        }
        outcome
    }
}
