//! A lane of the client as the drive wants it.
//!
//! Floor 5, part of `replay`. Adds nothing to a call but the name of its tier.

use std::ops::{Deref, DerefMut};

use helios::agent::entry::Tier;
use helios::agent::frame::RefusalCode;
use helios::client::{
    Attach, Choice, ClientError, CollapseOptions, Lane, Merged, NewCheckpoint, NewSuperposition,
    Policy, Revision, Session,
};
use helios::config::Durability;
use helios::id::{BranchNo, ObjectId};

use super::deeds::{Candidate, Merging, Versions};
use super::drive::{Port, Refusal};
use super::scenario::{COMMONS_NAME, Scenario};
use super::tally::Call;

/// What an agent tries out side by side.
const SUPERPOSITION: &str = "replay-choice";

/// An agent's lane, which leaves while the agent is suspended.
pub(super) struct Seat {
    session: Session,
    agent: String,
    lane: Option<Lane>,
}

impl Seat {
    fn new(session: &Session, agent: &str, attach: Attach) -> Result<Self, ClientError> {
        Ok(Self {
            session: session.clone(),
            agent: agent.to_owned(),
            lane: Some(session.attach(agent, attach)?),
        })
    }
}

impl Deref for Seat {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        self.lane.as_ref().expect("a lane, but for a suspension")
    }
}

impl DerefMut for Seat {
    fn deref_mut(&mut self) -> &mut Lane {
        self.lane.as_mut().expect("a lane, but for a suspension")
    }
}

/// Attaches the agents of a scenario, in order.
pub(super) fn attach(session: &Session, scenario: &Scenario) -> Result<Vec<Seat>, ClientError> {
    let agents = scenario.agents.iter();
    agents
        .map(|agent| Seat::new(session, &agent.name(), Attach::default()))
        .collect()
}

/// Attaches the public agent, which need not exist.
pub(super) fn attach_commons(session: &Session) -> Result<Seat, ClientError> {
    let attach = Attach {
        create: true,
        public: true,
    };
    Seat::new(session, COMMONS_NAME, attach)
}

impl Port for Seat {
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<Option<Call>, Refusal> {
        let found = Lane::get(self, key, value)?;
        Ok(found.map(|found| found.tier.into()))
    }

    fn get_common(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<Option<Call>, Refusal> {
        let found = self.get_from(COMMONS_NAME, key, value)?;
        Ok(found.map(|found| found.tier.into()))
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        Lane::put(self, key, value)?;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Refusal> {
        Lane::sync(self, Durability::Power)?;
        Ok(())
    }
}

impl Versions for Seat {
    fn checkpoint(&mut self, on: Option<BranchNo>, power: bool) -> Result<ObjectId, Refusal> {
        let new = NewCheckpoint {
            durability: power.then_some(Durability::Power),
            ..NewCheckpoint::default()
        };
        let made = match on {
            Some(branch) => self.on(branch).checkpoint(&new)?,
            None => Lane::checkpoint(self, &new)?,
        };
        Ok(made.id)
    }

    fn branch(&mut self, name: &str) -> Result<BranchNo, Refusal> {
        Ok(Lane::branch(self, name, Revision::Head)?.no)
    }

    fn remove_branch(&mut self, name: &str) -> Result<(), Refusal> {
        match self.delete_branch(name, true) {
            Ok(()) | Err(ClientError::NoSuchBranch) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn fork(&mut self, from: &ObjectId) -> Result<BranchNo, Refusal> {
        Ok(Lane::fork(self, Revision::Checkpoint(*from.as_bytes()))?.no)
    }

    fn discard(&mut self, fork: BranchNo) -> Result<(), Refusal> {
        Ok(Lane::discard(self, fork)?)
    }

    fn put_on(&mut self, on: BranchNo, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.on(on).put(key, value)?;
        Ok(())
    }

    fn get_on(&mut self, on: BranchNo, key: &[u8], value: &mut Vec<u8>) -> Result<bool, Refusal> {
        Ok(self.on(on).get(key, value)?.is_some())
    }

    fn merge(&mut self, from: &str, theirs: Option<&[u8]>) -> Result<Merging, Refusal> {
        let rule = theirs.map(|key| (key, Policy::Theirs));
        let new = NewCheckpoint::default();
        match Lane::merge(self, Revision::Branch(from), rule.as_slice(), &new) {
            Ok(Merged::FastForward { head }) => Ok(Merging::Done(head)),
            Ok(Merged::Merged(made)) => Ok(Merging::Done(made.id)),
            Ok(Merged::Nothing) => Err(Refusal::Failed(anyhow::anyhow!(
                "a branch with a checkpoint of its own had nothing to merge"
            ))),
            Err(ClientError::Conflicts { listed, .. }) => {
                let keys = listed.into_iter().map(|conflict| conflict.key);
                Ok(Merging::Conflicts(keys.collect()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn restore(&mut self, to: &ObjectId) -> Result<(), Refusal> {
        let to = Revision::Checkpoint(*to.as_bytes());
        Ok(Lane::restore(self, to, true)?)
    }

    fn diff(&mut self, before: &ObjectId, after: &ObjectId) -> Result<Vec<Vec<u8>>, Refusal> {
        let [before, after] = [before, after].map(|id| Revision::Checkpoint(*id.as_bytes()));
        let listed = Lane::diff(self, before, after, None, 0)?;
        Ok(listed.items.into_iter().map(|item| item.key).collect())
    }

    fn superpose(
        &mut self,
        candidates: &[Candidate<'_>],
        choice: Option<usize>,
        values: &mut [Vec<u8>],
    ) -> Result<Option<ObjectId>, Refusal> {
        // One that was interrupted by a Busy answer is in the way.
        for open in self.superpositions(None)?.items {
            if open.name == SUPERPOSITION {
                self.release_superposition(open.no)?;
            }
        }
        let new = NewSuperposition {
            name: SUPERPOSITION,
            ..NewSuperposition::default()
        };
        let set = Lane::superpose(self, &new)?.no;
        let mut numbers = Vec::with_capacity(candidates.len());
        for (candidate, value) in candidates.iter().zip(values) {
            let head = Revision::Checkpoint(*candidate.head.as_bytes());
            let added = self.add_candidate(set, head, candidate.weight, "")?;
            self.reweigh(set, added.no, candidate.weight / 2.0)?;
            let fork = self.open_candidate(set, added.no)?.no;
            value.clear();
            self.on(fork).get(candidate.key, value)?;
            Lane::discard(self, fork)?;
            numbers.push(added.no);
        }
        let Some(choice) = choice else {
            self.release_superposition(set)?;
            return Ok(None);
        };
        let choice = Choice::Candidate(numbers[choice]);
        let collapsed = self.collapse(set, choice, &CollapseOptions::default())?;
        Ok(Some(collapsed.head))
    }

    fn suspend(&mut self) -> Result<(), Refusal> {
        self.lane = None;
        // The lane's end is on its way.
        let suspended = loop {
            match self.session.suspend_agent(&self.agent) {
                Err(ClientError::Refused {
                    code: RefusalCode::InUse,
                    ..
                }) => std::thread::yield_now(),
                done => break done,
            }
        };
        self.lane = Some(self.session.attach(&self.agent, Attach::default())?);
        suspended?;
        Ok(())
    }

    fn tag(&mut self, name: &str) -> Result<(), Refusal> {
        Ok(Lane::tag(self, name, Revision::Head, true)?)
    }

    fn tagged(&mut self, name: &str) -> Result<Option<ObjectId>, Refusal> {
        let tags = self.tags("")?.items;
        let found = tags.into_iter().find(|(tag, _)| tag == name);
        Ok(found.map(|(_, target)| target))
    }
}

impl From<Tier> for Call {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::L1 => Self::L1,
            Tier::L2 => Self::L2,
            Tier::L3 => Self::L3,
            // A tier of a later version is farther than those we know.
            _ => Self::Cold,
        }
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Busy { .. } => Self::Busy,
            error => Self::Failed(error.into()),
        }
    }
}
