//! Checkpoints that were made before, or elsewhere, made again: the same bytes, so the same ids.
//!
//! Floor 2. A fork gets the state of one, put by put; then the bytes of the checkpoint are stored as
//! they are, if the state is the one that they name. What comes from a file is believed in nothing
//! else.
//!
//! Invariants
//! - a checkpoint is stored only behind its whole state, and with an id that is its bytes'.
//! - an agent that brings what another one made adopts it, in the same flush.
//! - the sequence of a checkpoint is above those of its parents, as far as these are stored: walks rely on
//!   it, wherever its history was made.

use crate::agent::call;
use crate::agent::entry::Status;
use crate::id::ObjectId;
use crate::segment::{Disk, Head, ObjectKind};
use crate::shard::Shard;
use crate::shard::agent::BranchRef;
use crate::shard::call::{Failed, Outcome, checkpointed, made};
use crate::shard::commit::{Commits, Prepared};
use crate::shard::store::{Refused, Store};
use crate::state::checkpoint::Checkpoint;
use crate::state::tree;

/// Sequences of checkpoints that are brought are at most this: those that follow find room above.
const SEQUENCE_MAX: u64 = u64::MAX / 2;

impl<D: Disk> Shard<D> {
    /// Stores the bytes of a checkpoint whose state a fork has; the fork points at it then.
    pub(super) fn checkpoint_as(
        &mut self,
        place: BranchRef,
        bytes: &[u8],
    ) -> Result<Outcome, Failed> {
        if !place.is_fork() {
            return Err(Status::NoSuchBranch.into());
        }
        let checkpoint = Checkpoint::decode(bytes).map_err(|_| Status::WrongState)?;
        let prepared = self.store.prepare_as(place, &checkpoint, bytes)?;
        let agent = self.store.tables.agent(place.agent);
        let is_foreign = *checkpoint.agent != *agent.name && !agent.adopted.contains(&prepared.id);
        if is_foreign {
            self.store.append_adopted(place, prepared.id)?;
        }
        self.flush_commit()?;
        if is_foreign {
            let agent = self.store.tables.agent_mut(place.agent);
            agent.adopted.insert(prepared.id);
        }
        self.store.committed(place, &prepared);
        call::push(&checkpointed(&prepared), &mut self.answer);
        Ok(made(&prepared))
    }
}

impl<D: Disk> Store<D> {
    /// Appends everything that the checkpoint of these bytes takes.
    fn prepare_as(
        &mut self,
        at: BranchRef,
        wanted: &Checkpoint<'_>,
        bytes: &[u8],
    ) -> Result<Prepared, Failed> {
        if wanted.sequence > SEQUENCE_MAX {
            return Err(Status::WrongState.into());
        }
        for parent in wanted.parents.iter() {
            match self.known(at, &parent) {
                Ok(known) if known.sequence >= wanted.sequence => {
                    return Err(Status::WrongState.into());
                }
                // History ends there.
                Ok(_) | Err(Refused::NoSuchRevision) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        let mut commits = std::mem::take(&mut self.commits);
        let prepared = self.prepare_bytes(at, wanted, bytes, &mut commits);
        self.commits = commits;
        prepared
    }

    /// Appends that the agent may read a checkpoint that it did not make.
    fn append_adopted(&mut self, at: BranchRef, target: ObjectId) -> Result<(), Refused> {
        self.admit_name()?;
        self.ready(0, false)?;
        let head = Head::Adopted {
            agent: at.agent,
            target,
            gone: false,
        };
        self.append(&head.into())?;
        Ok(())
    }

    fn prepare_bytes(
        &mut self,
        at: BranchRef,
        wanted: &Checkpoint<'_>,
        bytes: &[u8],
        commits: &mut Commits,
    ) -> Result<Prepared, Failed> {
        let branch = self.tables.branch_mut(at);
        let base = branch.base;
        branch.keys.sort_changes(&mut commits.places);
        self.collect_changes(at, commits)?;
        let Commits {
            writer, changes, ..
        } = commits;
        let tree = self.with_nodes(|nodes| writer.apply(nodes, &base, changes))?;
        if tree != wanted.tree {
            return Err(Status::WrongState.into());
        }
        self.keep_values_of_fork(at, &commits.places)?;
        let (new_objects, new_bytes, reused_bytes) = self.append_nodes(at, commits)?;
        let keys = self.with_nodes(|nodes| tree::count(nodes, &tree))?;
        if u64::from(keys) != wanted.keys {
            return Err(Status::WrongState.into());
        }
        let id = ObjectId::of_checkpoint(bytes);
        let new = self.append_kept(ObjectKind::Checkpoint, id, bytes)?;
        let mut parents = [tree; 2];
        let named = wanted.parents.iter().zip(&mut parents);
        let count = named.map(|(parent, place)| *place = parent).count();
        Ok(Prepared {
            id,
            tree,
            keys: wanted.keys,
            new_objects: new_objects + u64::from(new),
            new_bytes: new_bytes + if new { bytes.len() as u64 } else { 0 },
            reused_bytes,
            parents: (parents, count),
            checkpoint_sequence: wanted.sequence,
            sequence: self.log.last(),
        })
    }
}
