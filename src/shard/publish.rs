//! Publishing: checkpoints that every agent may read by a name, and how they become an agent's to read.
//!
//! Floor 2. A tag may be public. Whoever names what it names gets the checkpoint for good: an Adopted record
//! lets the agent read it and follow it, whatever becomes of the tag. Of another shard's agent it is
//! copied first (`copy_in`); from then on all is as if the agent had made it.
//!
//! Invariants
//! - a call that names a published checkpoint means the same one from its first try to its last.
//! - what an agent did not make it reads only once the log says that it adopted it.

use std::ops::Bound;

use crate::agent::call::{Call, Id, Revision, TagInfo};
use crate::agent::entry::{Completion, Status, Submission};
use crate::id::{AgentNo, ObjectId};
use crate::segment::{Disk, Head};
use crate::shard::agent::BranchRef;
use crate::shard::call::{Asker, Failed, Outcome, committed};
use crate::shard::store::Refused;
use crate::shard::{Shard, Step};

/// A published checkpoint that a call of a lane has named, until the call is over.
#[derive(Debug)]
pub struct Brought {
    agent: Box<str>,
    name: Box<str>,
    id: ObjectId,
}

impl<D: Disk> Shard<D> {
    /// Puts ids in the place of published names in a call. What becomes of the call where that is not
    /// done yet, or can't be.
    pub(super) fn bring_published(
        &mut self,
        by: Asker,
        entry: &Submission,
        call: &mut Call<'_>,
    ) -> Option<Step> {
        for revision in call.revisions_mut() {
            let Revision::Published { agent, name } = *revision else {
                continue;
            };
            match self.published(by, agent, name) {
                Ok(Some(id)) => *revision = Revision::Checkpoint(*id.as_bytes()),
                Ok(None) => return Some(self.import(by, entry, agent, name)),
                Err(failed) => return Some(self.fail_call(by.lane, entry, failed)),
            }
        }
        None
    }

    /// Forgets what a call has brought: it is over.
    pub(super) fn forget_brought(&mut self, by: Asker) {
        if let Some(lane) = self.lanes.get_mut(by.lane) {
            lane.brought.clear();
        }
    }

    /// Notes for a lane's call what a published name means.
    pub(super) fn note_brought(&mut self, by: Asker, agent: &str, name: &str, id: ObjectId) {
        if let Some(lane) = self.lanes.get_mut(by.lane) {
            let (agent, name) = (agent.into(), name.into());
            lane.brought.push(Brought { agent, name, id });
        }
    }

    /// What a published name means, once the agent may read it; `None`: another shard knows.
    fn published(
        &mut self,
        by: Asker,
        agent: &str,
        name: &str,
    ) -> Result<Option<ObjectId>, Failed> {
        let brought = self.lanes.get_mut(by.lane).and_then(|lane| {
            let mut brought = lane.brought.iter();
            brought.find(|it| *it.agent == *agent && *it.name == *name)
        });
        if let Some(brought) = brought {
            return Ok(Some(brought.id));
        }
        if self.home(agent.as_bytes()) != self.options.no {
            return Ok(None);
        }
        let id = self.published_here(agent.as_bytes(), name)?;
        self.adopt(by.place, id)?;
        self.note_brought(by, agent, name, id);
        Ok(Some(id))
    }

    /// What an agent of this shard has published under a name.
    pub(super) fn published_here(&self, agent: &[u8], name: &str) -> Result<ObjectId, Status> {
        let tables = &self.store.tables;
        let agent = self.agent_here(agent)?;
        let tag = tables.agent(agent).tags.get(name);
        let public = tag.filter(|tag| tag.public);
        public.map(|tag| tag.target).ok_or(Status::NoSuchRevision)
    }

    /// The agent of a name. One that moved away was asked for by who does not know yet.
    pub(super) fn agent_here(&self, name: &[u8]) -> Result<AgentNo, Status> {
        let moved = match self.home(name) == self.options.no {
            true => Status::NoSuchAgent,
            false => Status::Busy,
        };
        self.store.tables.agent_no(name).ok_or(moved)
    }

    /// Lets an agent read a checkpoint from now on; nothing is to be done where it may already.
    pub(super) fn adopt(&mut self, place: BranchRef, target: ObjectId) -> Result<(), Failed> {
        let mut checkpoint = Vec::new();
        match self.store.read_checkpoint(place, &target, &mut checkpoint) {
            Err(Refused::NoSuchRevision) => {}
            read => return Ok(read?),
        }
        self.adopt_now(place, target)
    }

    /// The same, whoever made it.
    pub(super) fn adopt_now(&mut self, place: BranchRef, target: ObjectId) -> Result<(), Failed> {
        if self
            .store
            .tables
            .agent(place.agent)
            .adopted
            .contains(&target)
        {
            return Ok(());
        }
        self.store.admit_name()?;
        self.append_adopted(place.agent, target, false)?;
        let agent = self.store.tables.agent_mut(place.agent);
        agent.adopted.insert(target);
        Ok(())
    }

    fn append_adopted(
        &mut self,
        agent: AgentNo,
        target: ObjectId,
        gone: bool,
    ) -> Result<Outcome, Failed> {
        self.store.ready(0, false)?;
        let head = Head::Adopted {
            agent,
            target,
            gone,
        };
        let appended = self.store.append(&head.into())?;
        self.flush_commit()?;
        Ok(committed(appended.sequence))
    }

    /// Takes the right to read a checkpoint back that the agent did not make.
    pub(super) fn forget_checkpoint(
        &mut self,
        place: BranchRef,
        id: &Id,
    ) -> Result<Outcome, Failed> {
        let target = ObjectId::from_bytes(*id);
        let agent = self.store.tables.agent(place.agent);
        if !agent.adopted.contains(&target) {
            return Err(Refused::NoSuchRevision.into());
        }
        let heads = agent.all_branches().filter(|it| it.head == Some(target));
        let tags = agent.tags.values().filter(|tag| tag.target == target);
        let users = heads.count() + tags.count();
        if users > 0 {
            return Err(Failed::Status(Status::InUse, users as u64));
        }
        let outcome = self.append_adopted(place.agent, target, true)?;
        let agent = self.store.tables.agent_mut(place.agent);
        agent.adopted.remove(&target);
        Ok(outcome)
    }

    /// Lists what the agent has published.
    pub(super) fn list_published(&mut self, by: Asker, after: &str) -> Result<Outcome, Failed> {
        let tags = &self.store.tables.agent(by.place.agent).tags;
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let found: Vec<_> = tags
            .range::<str, _>(range)
            .filter(|(_, tag)| tag.public)
            .map(|(name, tag)| (name.clone(), tag.target))
            .collect();
        self.list_names(by, &found)
    }

    /// Adds names of checkpoints to the answer, as many as there is room for.
    pub(super) fn list_names(
        &mut self,
        by: Asker,
        found: &[(Box<str>, ObjectId)],
    ) -> Result<Outcome, Failed> {
        let mut outcome = Outcome::default();
        for (name, target) in found {
            let tag = TagInfo {
                name,
                target: *target.as_bytes(),
            };
            if !self.add_item(by.room, &tag) {
                outcome.more = true;
                break;
            }
        }
        Ok(outcome)
    }

    /// Answers a call that was not carried out, or has it wait.
    pub(super) fn fail_call(
        &mut self,
        at: crate::shard::lanes::LaneRef,
        entry: &Submission,
        failed: Failed,
    ) -> Step {
        match failed {
            Failed::Refused(refused) => self.refuse(at, entry, refused),
            Failed::Status(status, number) => {
                let mut completion = Completion::new(entry.user_data, status);
                match status {
                    Status::IoFailed => completion.detail = number as u32,
                    _ => completion.value_bytes = number,
                }
                self.finish(at, completion);
                Step::Done
            }
        }
    }
}
