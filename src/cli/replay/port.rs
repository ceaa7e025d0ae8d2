//! A lane of the client as the drive wants it.
//!
//! Floor 5, part of `replay`. Adds nothing to a call but the name of its tier.

use helios::agent::entry::Tier;
use helios::client::{Attach, ClientError, Lane, Session};
use helios::config::Durability;

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
