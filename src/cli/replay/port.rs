//! A lane of the client as the drive wants it.
//!
//! Floor 5, part of `replay`. Adds nothing to a call but the name of its tier.

use helios::agent::entry::Tier;
use helios::client::{Attach, ClientError, Lane, Merged, NewCheckpoint, Policy, Revision, Session};
use helios::config::Durability;
use helios::id::{BranchNo, ObjectId};

use super::deeds::{Merging, Versions};
use super::drive::{Port, Refusal};
use super::scenario::{COMMONS_NAME, Scenario};
use super::tally::Call;

/// Attaches the agents of a scenario, in order.
pub(super) fn attach(session: &Session, scenario: &Scenario) -> Result<Vec<Lane>, ClientError> {
    let agents = scenario.agents.iter();
    agents
        .map(|agent| session.attach(&agent.name(), Attach::default()))
        .collect()
}

/// Attaches the public agent, which need not exist.
pub(super) fn attach_commons(session: &Session) -> Result<Lane, ClientError> {
    let attach = Attach {
        create: true,
        public: true,
    };
    session.attach(COMMONS_NAME, attach)
}

impl Port for Lane {
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

impl Versions for Lane {
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
