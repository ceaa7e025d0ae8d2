//! Commits: what moves a branch as a whole, each with one record as its commit point.
//!
//! Floor 2. A checkpoint applies the changes of the working set to the base tree, appends the nodes that
//! are new, the checkpoint, and last the record that lets the branch point at it; the caller flushes,
//! and only then [`Store::committed`] changes the tables. So there is nothing to undo, and a
//! crash between any two records leaves the branch as it was.
//!
//! Cost of a checkpoint of one changed key in 1,000: two nodes of some 2.5 KiB copied, hashed and
//! appended, 300 bytes of checkpoint, 120 of the branch's record; one `pwrite` for all of it.
//!
//! Invariants
//! - a branch that comes with changes has no name before its last record.
//! - the record of a branch comes after every object that its tree needs.
//! - an append that has to wait (for a flush, for the next segment) leaves what it appended so far: the
//!   same commit, begun again, finds it and goes on. The tree that it made of the changes is kept as long
//!   as nobody changes the branch and no other commit needs the buffers.

use crate::agent::call::Id;
use crate::id::ObjectId;
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, HEAD_BYTES_MAX, Head, ObjectKind, Record, Sequence};
use crate::shard::agent::{BranchRef, Edition};
use crate::shard::collect::BEFORE_BYTES;
use crate::shard::store::{Refused, Store, refused};
use crate::state::checkpoint::{self, Checkpoint, Metadata, NewCheckpoint, PARENTS_MAX};
use crate::state::tree::{self, Changes, INLINE_BYTES_MAX, TreeWriter};

/// Buffers of commits, kept from one to the next.
#[derive(Default)]
pub struct Commits {
    writer: TreeWriter,
    changes: Changes,
    pub(super) places: Vec<u32>,
    bytes: Vec<u8>,
    /// A commit that has to wait.
    begun: Option<Begun>,
    /// Times that changes were applied to a tree.
    #[cfg(test)]
    pub(super) applied: u64,
}

/// A commit under way.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    at: BranchRef,
    /// What was appended for it so far.
    pub(super) new_objects: u64,
    pub(super) new_bytes: u64,
    /// Of which state of the branch the buffers hold the changes and the new nodes, and the tree of it.
    pub(super) applied: Option<(Edition, ObjectId)>,
}

/// Changes of a checkpoint after which its buffers are kept for the next.
const PLACES_KEPT_MAX: usize = 4096;

/// What a checkpoint is to say.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What its maker attaches.
    pub metadata: Metadata<'a>,
    /// What the branch must point at now; nothing said: whatever.
    pub expect: Option<Option<ObjectId>>,
    /// A second parent: what is merged in.
    pub merged: Option<ObjectId>,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// A commit of which every record is appended; it counts once they are flushed.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    /// The checkpoint.
    pub id: ObjectId,
    /// Its tree.
    pub tree: ObjectId,
    /// Keys in it.
    pub keys: u64,
    /// Objects that were appended for it.
    pub new_objects: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Bytes of its new nodes that were stored already.
    pub reused_bytes: u64,
    /// Its parents, and how many.
    pub parents: ([Id; 2], usize),
    /// What it says that its place is.
    pub checkpoint_sequence: u64,
    /// The record that lets the branch point at it.
    pub sequence: Sequence,
}

const _: () = assert!(PARENTS_MAX >= 2);

impl Commits {
    /// Begins a commit of a branch, or goes on with it. Of another one's the buffers hold nothing then.
    pub(super) fn begin(&mut self, at: BranchRef) -> Begun {
        let begun = self.begun.take().filter(|begun| begun.at == at);
        begun.unwrap_or(Begun {
            at,
            new_objects: 0,
            new_bytes: 0,
            applied: None,
        })
    }

    /// Keeps a commit that has to wait.
    pub(super) fn end(&mut self, begun: Begun, refused: Option<&Refused>) {
        let waits = matches!(refused, Some(Refused::Wait | Refused::Cold(_)));
        self.begun = waits.then_some(begun);
    }

    /// Forgets a commit that waits: what it appended was taken back, or its buffers are needed.
    pub(super) fn forget_begun(&mut self) {
        self.begun = None;
    }
}

/// What is known of a checkpoint that was read.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its tree.
    pub tree: ObjectId,
    /// Keys in it.
    pub keys: u64,
    /// What it follows.
    pub parents: Vec<ObjectId>,
    /// Its place in the log of its shard.
    pub sequence: u64,
}

impl<D: Disk> Store<D> {
    /// Appends everything that a checkpoint of a branch takes.
    ///
    /// # Errors
    /// [`Refused`]; with [`Refused::Wait`] and [`Refused::Cold`] ask again later.
    pub fn prepare_checkpoint(
        &mut self,
        at: BranchRef,
        asked: &Asked<'_>,
    ) -> Result<Prepared, Refused> {
        let mut commits = std::mem::take(&mut self.commits);
        let mut begun = commits.begin(at);
        let prepared = self.prepare_changes(at, asked, &mut commits, &mut begun);
        commits.end(begun, prepared.as_ref().err());
        self.commits = commits;
        prepared
    }

    fn prepare_changes(
        &mut self,
        at: BranchRef,
        asked: &Asked<'_>,
        commits: &mut Commits,
        begun: &mut Begun,
    ) -> Result<Prepared, Refused> {
        let branch = self.tables.branch(at);
        if asked.expect.is_some_and(|expected| expected != branch.head) {
            return Err(Refused::StaleHead(branch.head));
        }
        let edition = branch.edition();
        begun.applied = begun.applied.filter(|(of, _)| *of == edition);
        if begun.applied.is_none() {
            branch.keys.sort_changes(&mut commits.places);
            self.collect_changes(at, commits)?;
        }
        self.keep_values_of_fork(at, &commits.places)?;
        let tree = match begun.applied {
            Some((_, tree)) => tree,
            None => self.apply(at, commits)?,
        };
        begun.applied = Some((edition, tree));
        self.prepare(at, asked, tree, commits, begun)
    }

    /// Appends everything that a merge takes: these changes to the branch, which has none of its own, and
    /// whose head was compared with what is expected.
    ///
    /// # Errors
    /// As [`Store::prepare_checkpoint`].
    pub fn prepare_merge(
        &mut self,
        at: BranchRef,
        asked: &Asked<'_>,
        changes: &Changes,
    ) -> Result<Prepared, Refused> {
        let mut commits = std::mem::take(&mut self.commits);
        let mut begun = commits.begin(at);
        commits.places.clear();
        commits.changes.clone_from(changes);
        let tree = self.apply(at, &mut commits);
        let prepared =
            tree.and_then(|tree| self.prepare(at, asked, tree, &mut commits, &mut begun));
        begun.applied = None;
        commits.end(begun, prepared.as_ref().err());
        self.commits = commits;
        prepared
    }

    /// The tree that the changes make of the branch's.
    pub(super) fn apply(
        &mut self,
        at: BranchRef,
        commits: &mut Commits,
    ) -> Result<ObjectId, Refused> {
        let base = self.tables.branch(at).base;
        let Commits {
            writer, changes, ..
        } = commits;
        #[cfg(test)]
        {
            commits.applied += 1;
        }
        self.with_nodes(|nodes| writer.apply(nodes, &base, changes))
    }

    /// Appends the nodes of a tree that was applied, the checkpoint, and the branch's record.
    fn prepare(
        &mut self,
        at: BranchRef,
        asked: &Asked<'_>,
        tree: ObjectId,
        commits: &mut Commits,
        begun: &mut Begun,
    ) -> Result<Prepared, Refused> {
        let head = self.tables.branch(at).head;
        let above = self.sequence_above(at, head, asked.merged)?;
        let reused_bytes = self.append_nodes(commits, begun)?;
        let keys = match commits.writer.keys() {
            Some(keys) => keys,
            None => self.with_nodes(|nodes| tree::count(nodes, &tree))?,
        };
        let mut parents = [tree; 2];
        let mut count = 0;
        for parent in [head, asked.merged].into_iter().flatten() {
            parents[count] = parent;
            count += 1;
        }
        commits.bytes.clear();
        let checkpoint_sequence = above.max(self.log.last().0 + 1);
        let agent = self.tables.agent(at.agent);
        let new = NewCheckpoint {
            tree,
            keys: u64::from(keys),
            parents: &parents[..count],
            agent: &agent.name,
            sequence: checkpoint_sequence,
            wall_ms: asked.wall_ms,
            metadata: asked.metadata,
        };
        checkpoint::encode(&new, &mut commits.bytes);
        let id = ObjectId::of_checkpoint(&commits.bytes);
        self.append_kept(ObjectKind::Checkpoint, id, &commits.bytes)?;
        let sequence = self.append_branch(at, None, Some(id), tree, false)?;
        Ok(Prepared {
            id,
            tree,
            keys: u64::from(keys),
            new_objects: begun.new_objects + 1,
            new_bytes: begun.new_bytes + commits.bytes.len() as u64,
            reused_bytes,
            parents: (parents.map(|id| *id.as_bytes()), count),
            checkpoint_sequence,
            sequence,
        })
    }

    /// The least sequence of a checkpoint that follows these: brought from elsewhere, they may be ahead of
    /// the log. What can't be read is no reason against it.
    fn sequence_above(
        &mut self,
        at: BranchRef,
        head: Option<ObjectId>,
        merged: Option<ObjectId>,
    ) -> Result<u64, Refused> {
        let mut above = 0;
        if let Some(head) = head {
            let known = match self.tables.branch(at).head_sequence {
                Some(known) => known,
                None => {
                    let read = self.sequence_of(at, &head)?;
                    self.tables.branch_mut(at).head_sequence = Some(read);
                    read
                }
            };
            above = known.saturating_add(1);
        }
        if let Some(merged) = merged {
            above = above.max(self.sequence_of(at, &merged)?.saturating_add(1));
        }
        Ok(above)
    }

    fn sequence_of(&mut self, at: BranchRef, id: &ObjectId) -> Result<u64, Refused> {
        match self.look_at(Some(at), id, |found| found.sequence) {
            Ok(sequence) => Ok(sequence),
            Err(Refused::NoSuchRevision | Refused::Corrupt) => Ok(0),
            Err(refused) => Err(refused),
        }
    }

    /// Appends the nodes that a tree was built of and that are not stored; the bytes of the others.
    pub(super) fn append_nodes(
        &mut self,
        commits: &Commits,
        begun: &mut Begun,
    ) -> Result<u64, Refused> {
        let (mut reused_bytes, before) = (0, begun.new_bytes);
        for (id, bytes) in commits.writer.new_nodes() {
            self.nodes.insert(&id, bytes);
            if self.append_kept(ObjectKind::Node, id, bytes)? {
                begun.new_objects += 1;
                begun.new_bytes += bytes.len() as u64;
            } else {
                reused_bytes += bytes.len() as u64;
            }
        }
        // What was appended before the wait is there now, but was not reused.
        Ok(u64::saturating_sub(reused_bytes, before))
    }

    /// The changes of the working set, in order, as the tree takes them.
    pub(super) fn collect_changes(
        &mut self,
        at: BranchRef,
        commits: &mut Commits,
    ) -> Result<(), Refused> {
        let Commits {
            changes,
            places,
            bytes,
            ..
        } = commits;
        changes.clear();
        for &place in places.iter() {
            let (key, held) = self.tables.branch(at).keys.at(place);
            let put = match held.value {
                None => {
                    changes.delete(key).map_err(|_| Refused::Corrupt)?;
                    continue;
                }
                Some(value) if value.bytes <= INLINE_BYTES_MAX as u64 => {
                    bytes.clear();
                    self.read_whole(ObjectNo(value.object), bytes)?;
                    tree::Value::Inline(bytes)
                }
                Some(value) => {
                    let id = self.value_id(value);
                    let bytes = value.bytes as u32;
                    if bytes <= tree::BLOB_BYTES_MAX {
                        tree::Value::Blob { id, bytes }
                    } else {
                        tree::Value::Chunks { id, bytes }
                    }
                }
            };
            let (key, _) = self.tables.branch(at).keys.at(place);
            changes.put(key, put).map_err(|_| Refused::Corrupt)?;
        }
        Ok(())
    }

    /// Of a fork the log knows values that nothing names: those of a checkpoint have to outlive it.
    pub(super) fn keep_values_of_fork(
        &mut self,
        at: BranchRef,
        places: &[u32],
    ) -> Result<(), Refused> {
        if !at.is_fork() {
            return Ok(());
        }
        for &place in places {
            let (_, held) = self.tables.branch(at).keys.at(place);
            let Some(no) = held.value.map(|value| ObjectNo(value.object)) else {
                continue;
            };
            let object = self.tables.objects.get(no);
            let (kind, id) = (object.kind, object.id);
            if object.kept {
                continue;
            }
            self.ready(0, false)?;
            let kept = true;
            self.append(&Head::Object { kind, id, kept }.into())?;
            self.tables.objects.keep(no);
            self.undo_keep(no);
        }
        Ok(())
    }

    /// Appends an object that trees hold, unless it is stored already; whether it was not.
    pub(super) fn append_kept(
        &mut self,
        kind: ObjectKind,
        id: ObjectId,
        bytes: &[u8],
    ) -> Result<bool, Refused> {
        if let Some(known) = self.tables.objects.find_named(&id)
            && self.tables.objects.get(known).kept
        {
            return Ok(false);
        }
        self.ready(bytes.len(), false)?;
        let kept = true;
        let record = Record {
            head: Head::Object { kind, id, kept },
            payload: Some(bytes),
        };
        let appended = self.append(&record)?;
        let no = self.tables.add_kept(id, kind, appended.payload);
        self.undo_kept(no);
        Ok(true)
    }

    /// Appends the record of a branch: its name (as it is, if none is given), head and tree.
    pub fn append_branch(
        &mut self,
        at: BranchRef,
        name: Option<&str>,
        head: Option<ObjectId>,
        tree: ObjectId,
        changes_stay: bool,
    ) -> Result<Sequence, Refused> {
        self.ready(0, false)?;
        self.restate_branch(at)?;
        let agent = self.tables.agent(at.agent);
        let known = agent.branch(at.branch).map_or("", |branch| &branch.name);
        let name = name.unwrap_or(known);
        if name.is_empty() {
            // A fork: nobody will ask for it after a crash.
            return Ok(self.log.last());
        }
        let record = Head::Branch {
            agent: at.agent,
            branch: at.branch,
            name: name.as_bytes(),
            head,
            tree,
            changes_stay,
        };
        let appended = self.log.append(&record.into());
        Ok(appended.map_err(refused)?.sequence)
    }

    /// Makes a prepared checkpoint count: its records were flushed.
    pub fn committed(&mut self, at: BranchRef, prepared: &Prepared) {
        let places = std::mem::take(&mut self.commits.places);
        for &place in &places {
            let (_, held) = self.tables.branch(at).keys.at(place);
            if let Some(value) = held.value {
                self.tables.objects.keep(ObjectNo(value.object));
            }
        }
        let branch = self.tables.branch_mut(at);
        branch.keys.settle(&places);
        (branch.head, branch.base) = (Some(prepared.id), prepared.tree);
        branch.head_sequence = Some(prepared.checkpoint_sequence);
        if places.len() <= PLACES_KEPT_MAX {
            self.commits.places = places;
        } else {
            // A large one is rare; what it took would be held for ever.
            self.commits = Commits::default();
        }
        self.trim_nodes();
    }

    /// Lets a collection take for reached what a commit brings that was flushed and does not count yet: the
    /// checkpoint, the nodes of its tree, and the values of its changes.
    pub(super) fn mark_commit(&mut self, at: BranchRef, made: ObjectNo) {
        let (objects, commits) = (&mut self.tables.objects, &self.commits);
        objects.mark(made);
        for (id, _) in commits.writer.new_nodes() {
            if let Some(no) = objects.find(&id) {
                objects.mark(no);
            }
        }
        for &place in &commits.places {
            let (_, held) = self.tables.branch(at).keys.at(place);
            if let Some(value) = held.value {
                self.tables.objects.mark(ObjectNo(value.object));
            }
        }
    }

    /// What a checkpoint says, if the agent may read it.
    ///
    /// # Errors
    /// [`Refused::NoSuchRevision`], [`Refused::Cold`], [`Refused::Corrupt`].
    pub fn known(&mut self, at: BranchRef, id: &ObjectId) -> Result<Known, Refused> {
        self.look_at(Some(at), id, |found| Known {
            tree: found.tree,
            keys: found.keys,
            parents: found.parents.iter().collect(),
            sequence: found.sequence,
        })
    }

    /// What a checkpoint says, whoever may read it: for what follows from it, and never to be shown.
    ///
    /// # Errors
    /// As [`Store::known`].
    pub fn known_any(&mut self, id: &ObjectId) -> Result<Known, Refused> {
        self.look_at(None, id, |found| Known {
            tree: found.tree,
            keys: found.keys,
            parents: found.parents.iter().collect(),
            sequence: found.sequence,
        })
    }

    /// The tree of a checkpoint, if it is one of this agent.
    ///
    /// # Errors
    /// As [`Store::known`].
    pub fn tree_of(&mut self, at: BranchRef, id: &ObjectId) -> Result<ObjectId, Refused> {
        self.look_at(Some(at), id, |found| found.tree)
    }

    fn look_at<T>(
        &mut self,
        at: Option<BranchRef>,
        id: &ObjectId,
        look: impl FnOnce(&Checkpoint<'_>) -> T,
    ) -> Result<T, Refused> {
        // Those of a commit are in use while it asks for its parents.
        let mut bytes = std::mem::take(&mut self.looked_at);
        bytes.clear();
        let read = match at {
            Some(at) => self.read_checkpoint(at, id, &mut bytes),
            None => self.read_any_checkpoint(id, &mut bytes),
        };
        let found = read.and_then(|()| {
            let found = Checkpoint::decode(&bytes).map_err(|_| Refused::Corrupt)?;
            Ok(look(&found))
        });
        self.looked_at = bytes;
        found
    }

    /// Copies the bytes of a checkpoint that the agent may read to the end of `out`: one that it made, or
    /// adopted.
    ///
    /// # Errors
    /// As [`Store::known`].
    pub fn read_checkpoint(
        &mut self,
        at: BranchRef,
        id: &ObjectId,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let from = out.len();
        self.read_any_checkpoint(id, out)?;
        if self.tables.agent(at.agent).adopted.contains(id) {
            return Ok(());
        }
        let made_by = Checkpoint::decode(&out[from..])
            .map_err(|_| Refused::Corrupt)?
            .agent;
        if *made_by != *self.tables.agent(at.agent).name {
            return Err(Refused::NoSuchRevision);
        }
        Ok(())
    }

    fn read_any_checkpoint(&mut self, id: &ObjectId, out: &mut Vec<u8>) -> Result<(), Refused> {
        let found = self.tables.objects.find_named(id);
        match found.filter(|&no| self.tables.objects.get(no).kind == ObjectKind::Checkpoint) {
            Some(no) => self.read_whole(no, out),
            // Nobody pruned it: history does not end there.
            None if self.tables.objects.is_damaged(id) => Err(Refused::Corrupt),
            None => Err(Refused::NoSuchRevision),
        }
    }

    /// Appends what makes a branch of a fork: its record, and one for each change.
    ///
    /// # Errors
    /// As [`Store::prepare_checkpoint`]; [`Refused::TooLarge`] where the changes are more than one
    /// flush takes: a checkpoint of the fork first leaves none.
    pub fn append_kept_fork(
        &mut self,
        fork: BranchRef,
        kept: BranchRef,
        name: &str,
    ) -> Result<Sequence, Refused> {
        self.commits.forget_begun();
        let mut places = std::mem::take(&mut self.commits.places);
        let branch = self.tables.branch_mut(fork);
        branch.keys.sort_changes(&mut places);
        let (head, base) = (branch.head, branch.base);
        let bytes: usize = places
            .iter()
            .map(|&place| Record::put_bytes(branch.keys.at(place).0.len(), 0))
            .sum();
        // All of it goes out with one flush, or none.
        let room = match bytes + 3 * HEAD_BYTES_MAX + BEFORE_BYTES > self.batch_bytes_max() {
            true => Err(Refused::TooLarge),
            false => self.ready(bytes + 2 * HEAD_BYTES_MAX, false),
        };
        // Without a name it is none until the last record: a crash in between leaves nothing.
        let nameless = Head::Branch {
            agent: kept.agent,
            branch: kept.branch,
            name: b"",
            head,
            tree: base,
            changes_stay: false,
        };
        let appended = room
            .and_then(|()| self.append(&nameless.into()))
            .and_then(|_| self.append_changes(fork, kept, &places))
            .and_then(|()| self.append_branch(kept, Some(name), head, base, true));
        self.commits.places = places;
        appended
    }

    fn append_changes(
        &mut self,
        fork: BranchRef,
        kept: BranchRef,
        places: &[u32],
    ) -> Result<(), Refused> {
        for &place in places {
            let (key, held) = self.tables.branch(fork).keys.at(place);
            let head = self.tables.change_head(kept, key, held);
            self.log.append(&head.into()).map_err(refused)?;
        }
        Ok(())
    }

    /// Makes a branch of a fork: its records were flushed.
    pub fn kept(&mut self, fork: BranchRef, kept: BranchRef, name: &str) {
        let agent = self.tables.agent_mut(fork.agent);
        let Some(gone) = agent.remove_branch(fork.branch) else {
            return;
        };
        agent.set_branch(kept.branch, name, gone.head, gone.base);
        if let Some(branch) = agent.branch_mut(kept.branch) {
            branch.keys = gone.keys;
        }
    }

    /// Gives a branch another head and base, with nothing changed: its record was flushed. What its
    /// working set knew is given up bit by bit; the new one gets its memory here, not key by key as they
    /// are read again.
    pub fn moved(&mut self, at: BranchRef, name: &str, head: Option<ObjectId>, tree: ObjectId) {
        let agent = self.tables.agent_mut(at.agent);
        let before = agent.set_branch(at.branch, name, head, tree);
        if let Some(branch) = agent.branch_mut(at.branch) {
            branch.keys.make_room(before.as_ref());
        }
        if let Some(before) = before {
            self.retired.push_back(before.retire());
        }
    }

    /// Takes a branch or fork out: its record was flushed, if it had one.
    pub fn removed(&mut self, at: BranchRef) {
        if let Some(gone) = self.tables.agent_mut(at.agent).remove_branch(at.branch) {
            self.retired.push_back(gone.keys.retire());
        }
    }

    /// Gives up some of what working sets knew that are no more; whether there is more to do.
    pub fn retire_some(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(set) = self.retired.front_mut() else {
                return false;
            };
            match set.next() {
                Some(value) => {
                    self.tables.keys -= 1;
                    self.release(ObjectNo(value.object));
                }
                None => _ = self.retired.pop_front(),
            }
        }
        !self.retired.is_empty()
    }

    /// Whether sets that were given up still hold something.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }
}
