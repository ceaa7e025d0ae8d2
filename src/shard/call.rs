//! Calls about versioned state: what each asks of the store, and its answer.
//!
//! Floor 2. A call is decoded from a private copy and carried out as a whole or not at all. What moves a
//! branch is appended, flushed at once with whatever the turn has appended before it, and only then
//! applied and answered.
//!
//! Invariants
//! - after a call that gave a branch another state, every lane on it reads the window in another view
//!   before the call is answered.

use std::ops::Bound;

use serde::Serialize;

use crate::agent::call::{self, BranchInfo, Call, Checkpointed, Id, Policy, Revision};
use crate::agent::entry::{Completion, Status, Submission};
use crate::config::Durability;
use crate::crash;
use crate::id::{BranchNo, ObjectId, Retention};
use crate::metrics::thread_allocations;
use crate::segment::{Disk, Head, Sequence};
use crate::shard::agent::{BranchRef, FORK_NUMBERS, MAIN, Tag};
use crate::shard::commit::{Asked, Prepared};
use crate::shard::lanes::LaneRef;
use crate::shard::lifecycle::kind_of;
use crate::shard::pending::PowerWait;
use crate::shard::store::Refused;
use crate::shard::{Scratch, Shard, Step};
use crate::state::checkpoint::Metadata;
use crate::state::tree::{Diff, DiffCounts, Difference, OnConflict, PrefixRule};

/// Why a call was not carried out.
pub(super) enum Failed {
    /// The store refused it.
    Refused(Refused),
    /// With this status, and a number that belongs to it.
    Status(Status, u64),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Status(status, 0)
    }
}

/// What a call came to: its answer is in the shard's buffer.
#[derive(Default)]
pub(super) struct Outcome {
    /// The checkpoint, if it made one.
    pub(super) id: Option<ObjectId>,
    /// The record that has to reach what durability was asked for.
    pub(super) commit: Option<Sequence>,
    /// There is more than the answer holds.
    pub(super) more: bool,
    /// Conflicts are the answer.
    pub(super) conflicts: bool,
}

/// One call: who asks, of which branch, and how much of an answer there is room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) lane: LaneRef,
    pub(super) place: BranchRef,
    pub(super) room: usize,
}

impl<D: Disk> Shard<D> {
    pub(super) fn call(&mut self, at: LaneRef, entry: &Submission, scratch: &mut Scratch) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let mut call = match Call::decode(&scratch.value) {
            Ok(call) => call,
            Err(malformed) => return self.end_session_of(at, malformed),
        };
        let asker = Asker {
            lane: at,
            place,
            room: entry.reply.len as usize,
        };
        self.answer.clear();
        if entry.reply.len < call.answer_bytes_min() {
            let mut small = Completion::new(entry.user_data, Status::ReplyTooSmall);
            small.detail = call.answer_bytes_min();
            self.finish(at, small);
            return Step::Done;
        }
        if let Some(step) = self.bring_published(asker, entry, &mut call) {
            return step;
        }
        let done = match call.check_names() {
            Ok(()) => self.carry_out_call(asker, &call),
            Err(_) => Err(Status::BadName.into()),
        };
        if !matches!(done, Err(Failed::Refused(Refused::Wait | Refused::Cold(_)))) {
            self.forget_brought(asker);
        }
        match done {
            Ok(outcome) => {
                if let Some(kind) = kind_of(&call) {
                    self.tell(kind, place.agent, place.branch);
                }
                self.end_call(at, entry, &outcome);
                Step::Done
            }
            Err(failed) => self.fail_call(at, entry, failed),
        }
    }

    fn carry_out_call(&mut self, by: Asker, call: &Call<'_>) -> Result<Outcome, Failed> {
        let place = by.place;
        match *call {
            Call::Checkpoint {
                opaque,
                pairs,
                expect,
            } => self.checkpoint(place, opaque, pairs, expect),
            Call::Describe => self.describe(place),
            Call::Branches { after } => self.list_branches(by, after),
            Call::Branch { name, from } => self.make_branch(place, name, from),
            Call::Rename { name } => self.rename(place, name),
            Call::DeleteBranch { name, force } => self.delete_branch(place, name, force),
            Call::Switch { name } => self.switch(by, name),
            Call::Fork { from } => self.fork(by, from),
            Call::Discard => self.discard(by),
            Call::Keep { name } => self.keep(by, name),
            Call::Restore { to, force } => self.restore(place, to, force),
            Call::Log {
                from,
                ref frontier,
                limit,
            } => self.log(by, from, frontier, limit),
            Call::Tag {
                name,
                target,
                force,
            } => self.tag(place, name, target, false, force),
            Call::Untag { name } => self.untag(place, name),
            Call::Tags { after } => self.list_tags(by, after),
            Call::Diff {
                before,
                after,
                from,
                limit,
            } => self.diff(by, before, after, from, limit),
            Call::Retain { name, rule } => self.retain(place, name, rule),
            Call::DiffCounts { before, after } => self.count_differences(place, before, after),
            Call::Merge {
                from,
                ref rules,
                opaque,
                pairs,
                expect,
            } => {
                let metadata = metadata(opaque, pairs)?;
                let rules: Vec<_> = rules.iter().map(prefix_rule).collect();
                self.merge(by, from, &rules, metadata, expected(expect))
            }
            Call::CheckpointAs { bytes } => self.checkpoint_as(by, bytes),
            Call::Superposition(asked) => self.set_call(by, asked),
            Call::Publish {
                name,
                target,
                force,
            } => self.tag(place, name, target, true, force),
            Call::Published { after } => self.list_published(by, after),
            Call::Forget { ref target } => self.forget_checkpoint(place, target),
        }
    }

    /// Posts the answer of a call, or lets it wait for the device.
    fn end_call(&mut self, at: LaneRef, entry: &Submission, outcome: &Outcome) {
        let status = if outcome.conflicts {
            Status::Conflicts
        } else {
            Status::Ok
        };
        let mut completion = Completion::new(entry.user_data, status);
        if self.answer.len() > entry.reply.len as usize {
            completion.status = Status::ReplyTooSmall;
            completion.detail = self.answer.len() as u32;
            return self.finish(at, completion);
        }
        if let Some(lane) = self.lanes.get_mut(at)
            && !self.answer.is_empty()
        {
            lane.ring.write_reply(entry.reply, 0, &self.answer);
        }
        completion.reply_bytes = self.answer.len() as u32;
        completion.more = outcome.more;
        if let Some(id) = outcome.id {
            completion.id = id;
        }
        let Some(sequence) = outcome.commit else {
            return self.finish(at, completion);
        };
        self.counters().writes.add(1);
        let durability = entry.durability.unwrap_or(self.options.durability);
        completion.value_bytes = sequence.0;
        completion.durability = Some(Durability::Process);
        if durability == Durability::Power {
            return self.await_power(PowerWait {
                sequence,
                lane: at,
                completion,
            });
        }
        self.finish(at, completion);
    }

    /// Adds an item to the answer; `false` where there is no room for it.
    pub(super) fn add_item(&mut self, room: usize, item: &impl Serialize) -> bool {
        let before = self.answer.len();
        call::push(item, &mut self.answer);
        if self.answer.len() > room && before > 0 {
            self.answer.truncate(before);
            return false;
        }
        true
    }

    /// Flushes what a commit appended, and everything before it.
    pub(super) fn flush_commit(&mut self) -> Result<(), Failed> {
        match self.flush() {
            Ok(()) => Ok(()),
            Err((status, errno)) => Err(Failed::Status(status, u64::from(errno))),
        }
    }

    fn checkpoint(
        &mut self,
        place: BranchRef,
        opaque: &[u8],
        pairs: &[u8],
        expect: Option<Option<Id>>,
    ) -> Result<Outcome, Failed> {
        let asked = Asked {
            metadata: metadata(opaque, pairs)?,
            expect: expected(expect),
            merged: None,
            wall_ms: self.wall_ms(),
        };
        let before = thread_allocations();
        let prepared = self.store.prepare_checkpoint(place, &asked)?;
        crash::point("commit.appended");
        self.flush_commit()?;
        crash::point("commit.flushed");
        self.grow_marked(place, &prepared.id);
        self.store.committed(place, &prepared);
        let allocations = thread_allocations() - before;
        self.counters().allocations_checkpoint.add(allocations);
        call::push(&checkpointed(&prepared), &mut self.answer);
        Ok(Outcome {
            id: Some(prepared.id),
            commit: Some(prepared.sequence),
            ..Outcome::default()
        })
    }

    pub(super) fn describe(&mut self, place: BranchRef) -> Result<Outcome, Failed> {
        let info = self.branch_info(place);
        call::push(&info, &mut self.answer);
        Ok(Outcome::default())
    }

    fn branch_info(&self, place: BranchRef) -> BranchInfo {
        let branch = self.store.tables.branch(place);
        BranchInfo {
            no: place.branch.0,
            name: branch.name.to_string(),
            head: branch.head.map(|head| *head.as_bytes()),
            base: *branch.base.as_bytes(),
            changes: branch.keys.changes() as u64,
            retention: branch.retention,
        }
    }

    fn list_branches(&mut self, by: Asker, after: &str) -> Result<Outcome, Failed> {
        let agent = self.store.tables.agent(by.place.agent);
        let found: Vec<BranchNo> = agent.branches_after(after).map(|(no, _)| no).collect();
        let mut outcome = Outcome::default();
        for branch in found {
            let info = self.branch_info(BranchRef { branch, ..by.place });
            if !self.add_item(by.room, &info) {
                outcome.more = true;
                break;
            }
        }
        Ok(outcome)
    }

    fn check_free(&self, place: BranchRef, name: &str) -> Result<(), Failed> {
        match self.store.tables.agent(place.agent).branch_no(name) {
            Some(_) => Err(Status::NameTaken.into()),
            None => Ok(()),
        }
    }

    fn make_branch(
        &mut self,
        place: BranchRef,
        name: &str,
        from: Revision<'_>,
    ) -> Result<Outcome, Failed> {
        self.check_free(place, name)?;
        let from = self.store.resolve(place, from)?;
        self.store.admit_name()?;
        let branch = self.store.tables.agent(place.agent).next_branch();
        let new = BranchRef { branch, ..place };
        let sequence = self
            .store
            .append_branch(new, Some(name), from.head, from.tree, false)?;
        self.flush_commit()?;
        self.store.moved(new, name, from.head, from.tree);
        call::push(&self.branch_info(new), &mut self.answer);
        Ok(committed(sequence))
    }

    fn rename(&mut self, place: BranchRef, name: &str) -> Result<Outcome, Failed> {
        if place.branch.0 >= FORK_NUMBERS {
            return Err(Status::NoSuchBranch.into());
        }
        self.check_free(place, name)?;
        let branch = self.store.tables.branch(place);
        let (head, base) = (branch.head, branch.base);
        let sequence = self
            .store
            .append_branch(place, Some(name), head, base, true)?;
        self.flush_commit()?;
        let agent = self.store.tables.agent_mut(place.agent);
        agent.rename(place.branch, name);
        call::push(&self.branch_info(place), &mut self.answer);
        Ok(committed(sequence))
    }

    fn delete_branch(
        &mut self,
        place: BranchRef,
        name: &str,
        force: bool,
    ) -> Result<Outcome, Failed> {
        let agent = self.store.tables.agent(place.agent);
        let branch = agent.branch_no(name).ok_or(Status::NoSuchBranch)?;
        let gone = BranchRef { branch, ..place };
        let known = self.store.tables.branch(gone);
        if branch == MAIN || known.lanes > 0 {
            return Err(Failed::Status(Status::InUse, u64::from(known.lanes)));
        }
        let changes = known.keys.changes() as u64;
        if changes > 0 && !force {
            return Err(Refused::Unsaved(changes).into());
        }
        self.store.ready(0, false)?;
        let head = Head::BranchGone {
            agent: place.agent,
            branch,
        };
        let appended = self.store.append(&head.into())?;
        self.flush_commit()?;
        self.store.removed(gone);
        Ok(committed(appended.sequence))
    }

    fn retain(&mut self, place: BranchRef, name: &str, rule: Retention) -> Result<Outcome, Failed> {
        let agent = self.store.tables.agent(place.agent);
        let branch = agent.branch_no(name).ok_or(Status::NoSuchBranch)?;
        let at = BranchRef { branch, ..place };
        self.store.ready(0, false)?;
        let head = Head::Retention {
            agent: at.agent,
            branch,
            rule,
        };
        let appended = self.store.append(&head.into())?;
        self.flush_commit()?;
        self.store.tables.branch_mut(at).retention = rule;
        Ok(committed(appended.sequence))
    }

    fn switch(&mut self, by: Asker, name: &str) -> Result<Outcome, Failed> {
        let agent = self.store.tables.agent_mut(by.place.agent);
        let branch = agent.branch_no(name).ok_or(Status::NoSuchBranch)?;
        if let Some(lane) = self.lanes.get_mut(by.lane) {
            let before = std::mem::replace(&mut lane.branch, branch);
            if let Some(before) = agent.branch_mut(before) {
                before.lanes -= 1;
            }
            if let Some(after) = agent.branch_mut(branch) {
                after.lanes += 1;
                lane.ring.set_view(after.view);
            }
        }
        self.describe(BranchRef { branch, ..by.place })
    }

    fn fork(&mut self, by: Asker, from: Revision<'_>) -> Result<Outcome, Failed> {
        let from = self.store.resolve(by.place, from)?;
        self.store.admit_name()?;
        let branch = self.store.tables.agent_mut(by.place.agent).next_fork();
        let fork = BranchRef { branch, ..by.place };
        self.store.moved(fork, "", from.head, from.tree);
        if let Some(lane) = self.lanes.get_mut(by.lane) {
            lane.forks.push(branch);
        }
        self.describe(fork)
    }

    fn discard(&mut self, by: Asker) -> Result<Outcome, Failed> {
        self.take_fork(by)?;
        self.drop_fork(by.place);
        Ok(Outcome::default())
    }

    /// Drops a fork. What it wrote and is not flushed yet must not be taken for stored by whoever writes
    /// the same after a flush that failed: the undo, which knows, needs the fork.
    pub(super) fn drop_fork(&mut self, fork: BranchRef) {
        if self.store.is_dirty() {
            // Whoever waits for it was told.
            let _ = self.flush();
        }
        self.close_candidate(fork);
        self.store.removed(fork);
    }

    /// Takes a fork from the lane that owns it.
    fn take_fork(&mut self, by: Asker) -> Result<(), Failed> {
        let lane = self.lanes.get_mut(by.lane).ok_or(Status::NoSuchBranch)?;
        let owned = lane.forks.iter().position(|&fork| fork == by.place.branch);
        // Another lane's fork is nobody else's to end.
        lane.forks.swap_remove(owned.ok_or(Status::NoSuchBranch)?);
        Ok(())
    }

    fn keep(&mut self, by: Asker, name: &str) -> Result<Outcome, Failed> {
        self.check_free(by.place, name)?;
        let owned = self.lanes.get_mut(by.lane);
        if owned.is_none_or(|lane| !lane.forks.contains(&by.place.branch)) {
            return Err(Status::NoSuchBranch.into());
        }
        let branch = self.store.tables.agent(by.place.agent).next_branch();
        let kept = BranchRef { branch, ..by.place };
        let sequence = self.store.append_kept_fork(by.place, kept, name)?;
        self.flush_commit()?;
        self.take_fork(by)?;
        self.close_candidate(by.place);
        self.store.kept(by.place, kept, name);
        call::push(&self.branch_info(kept), &mut self.answer);
        Ok(committed(sequence))
    }

    fn restore(
        &mut self,
        place: BranchRef,
        to: Revision<'_>,
        force: bool,
    ) -> Result<Outcome, Failed> {
        let to = self.store.resolve(place, to)?;
        let branch = self.store.tables.branch(place);
        let (head, name) = (branch.head, branch.name.clone());
        let changes = branch.keys.changes() as u64;
        if changes > 0 && !force {
            return Err(Refused::Unsaved(changes).into());
        }
        let sequence = self
            .store
            .append_branch(place, None, head, to.tree, false)?;
        self.flush_commit()?;
        self.move_branch(place, &name, head, to.tree);
        Ok(committed(sequence))
    }

    /// Gives a branch another state: its lanes read the window in another view from now on.
    pub(super) fn move_branch(
        &mut self,
        place: BranchRef,
        name: &str,
        head: Option<ObjectId>,
        tree: ObjectId,
    ) {
        self.store.moved(place, name, head, tree);
        let view = self.store.tables.branch(place).view;
        self.lanes.set_view(place, view);
    }

    fn tag(
        &mut self,
        place: BranchRef,
        name: &str,
        target: Revision<'_>,
        public: bool,
        force: bool,
    ) -> Result<Outcome, Failed> {
        let target = self.store.resolve(place, target)?;
        let target = target.head.ok_or(Refused::NoSuchRevision)?;
        let known = self.store.tables.agent(place.agent).tags.get(name);
        if known.is_some_and(|known| known.target != target) && !force {
            return Err(Status::NameTaken.into());
        }
        if known.is_none() {
            self.store.admit_name()?;
        }
        let sequence = self.append_tag(place, name, Some(target), public)?;
        let tags = &mut self.store.tables.agent_mut(place.agent).tags;
        tags.insert(name.into(), Tag { target, public });
        Ok(committed(sequence))
    }

    fn untag(&mut self, place: BranchRef, name: &str) -> Result<Outcome, Failed> {
        if !self.store.tables.agent(place.agent).tags.contains_key(name) {
            return Err(Refused::NoSuchRevision.into());
        }
        let sequence = self.append_tag(place, name, None, false)?;
        self.store.tables.agent_mut(place.agent).tags.remove(name);
        Ok(committed(sequence))
    }

    fn append_tag(
        &mut self,
        place: BranchRef,
        name: &str,
        target: Option<ObjectId>,
        public: bool,
    ) -> Result<Sequence, Failed> {
        self.store.ready(0, false)?;
        let head = Head::Tag {
            agent: place.agent,
            public,
            name: name.as_bytes(),
            target,
        };
        let appended = self.store.append(&head.into())?;
        self.flush_commit()?;
        Ok(appended.sequence)
    }

    fn list_tags(&mut self, by: Asker, after: &str) -> Result<Outcome, Failed> {
        let tags = &self.store.tables.agent(by.place.agent).tags;
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let found: Vec<_> = tags
            .range::<str, _>(range)
            .map(|(name, tag)| (name.clone(), tag.target))
            .collect();
        self.list_names(by, &found)
    }

    fn diff(
        &mut self,
        by: Asker,
        before: Revision<'_>,
        after: Revision<'_>,
        from: Option<&[u8]>,
        limit: u32,
    ) -> Result<Outcome, Failed> {
        let before = self.store.resolve(by.place, before)?.tree;
        let after = self.store.resolve(by.place, after)?.tree;
        let limit = if limit == 0 { u32::MAX } else { limit };
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let answer = &mut self.answer;
        let more = self.store.with_nodes(|nodes| {
            answer.clear();
            let mut diff = Diff::new(nodes, &before, &after, from)?;
            let mut count = 0;
            while let Some(found) = diff.next()? {
                let at = answer.len();
                call::push(&difference(&found), answer);
                if count == limit || (answer.len() > by.room && at > 0) {
                    answer.truncate(at);
                    return Ok(true);
                }
                count += 1;
            }
            Ok(false)
        })?;
        Ok(Outcome {
            more,
            ..Outcome::default()
        })
    }

    fn count_differences(
        &mut self,
        place: BranchRef,
        before: Revision<'_>,
        after: Revision<'_>,
    ) -> Result<Outcome, Failed> {
        let before = self.store.resolve(place, before)?.tree;
        let after = self.store.resolve(place, after)?.tree;
        let counts = self.store.with_nodes(|nodes| {
            let mut counts = DiffCounts::default();
            Diff::new(nodes, &before, &after, Bound::Unbounded)?.count(&mut counts)?;
            Ok(counts)
        })?;
        let counts = call::DiffCounts {
            added: counts.added,
            removed: counts.removed,
            changed: counts.changed,
        };
        call::push(&counts, &mut self.answer);
        Ok(Outcome::default())
    }
}

/// The outcome of a call that is one record.
pub(super) fn committed(sequence: Sequence) -> Outcome {
    Outcome {
        commit: Some(sequence),
        ..Outcome::default()
    }
}

/// The outcome of a call that made a checkpoint.
pub(super) fn made(prepared: &Prepared) -> Outcome {
    Outcome {
        id: Some(prepared.id),
        commit: Some(prepared.sequence),
        ..Outcome::default()
    }
}

fn metadata<'a>(opaque: &'a [u8], pairs: &'a [u8]) -> Result<Metadata<'a>, Failed> {
    Metadata::new(opaque, pairs).map_err(|_| Status::BadMetadata.into())
}

pub(super) fn expected(expect: Option<Option<Id>>) -> Option<Option<ObjectId>> {
    expect.map(|head| head.map(ObjectId::from_bytes))
}

pub(super) fn checkpointed(prepared: &Prepared) -> Checkpointed<&[Id]> {
    let (parents, count) = &prepared.parents;
    Checkpointed {
        id: *prepared.id.as_bytes(),
        tree: *prepared.tree.as_bytes(),
        parents: &parents[..*count],
        keys: prepared.keys,
        new_objects: prepared.new_objects,
        new_bytes: prepared.new_bytes,
        reused_bytes: prepared.reused_bytes,
    }
}

fn difference<'a>(found: &Difference<'a>) -> call::Difference<'a> {
    call::Difference {
        key: found.key,
        before: found.before.as_ref().map(value_info),
        after: found.after.as_ref().map(value_info),
    }
}

/// A value of a tree, by its name.
pub(super) fn value_info(value: &crate::state::tree::Value<'_>) -> call::ValueInfo {
    let (id, bytes) = crate::shard::base::reference(value);
    call::ValueInfo {
        id: *id.as_bytes(),
        bytes,
    }
}

fn prefix_rule<'a>((prefix, policy): &(&'a [u8], Policy)) -> PrefixRule<'a> {
    PrefixRule {
        prefix,
        on_conflict: match policy {
            Policy::Ours => OnConflict::Ours,
            Policy::Theirs => OnConflict::Theirs,
            Policy::Fail => OnConflict::Fail,
        },
    }
}
