//! Copies of an agent that another shard has: taken out, said to be gone, and told of once that is on the device.
//!
//! Floor 2. A copy that a move leaves behind is younger by its count than the agent itself, so the agent is what a
//! start finds, until it moves once more: then two have the same count. So it stays where it is, and is not
//! terminated, while some other shard may still find a copy of it after a power cut.
//!
//! Invariants
//! - an agent in [`Doubts`] neither moves nor ends.
//! - a shard tells another one that a copy is gone after the record of that is on the device.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{AgentNo, ShardNo};
use crate::segment::{Disk, Head, Sequence};
use crate::shard::Shard;
use crate::shard::migrate::Word;
use crate::shard::store::Store;

/// A copy of an agent that was taken out of the tables.
#[derive(Debug)]
pub(in crate::shard) struct Ended {
    agent: AgentNo,
    name: Box<[u8]>,
    /// The shard that has the agent, and hears of the end.
    stays_at: ShardNo,
}

/// Agents of which other shards may have a copy that the next start would find.
#[derive(Debug, Default)]
pub(in crate::shard) struct Doubts(BTreeMap<AgentNo, BTreeSet<ShardNo>>);

impl Doubts {
    /// Notes that a shard may have a copy.
    pub(super) fn add(&mut self, agent: AgentNo, at: ShardNo) {
        self.0.entry(agent).or_default().insert(at);
    }

    /// Notes that a shard has none.
    pub(super) fn remove(&mut self, agent: AgentNo, at: ShardNo) {
        if let Some(shards) = self.0.get_mut(&agent) {
            shards.remove(&at);
            if shards.is_empty() {
                self.0.remove(&agent);
            }
        }
    }

    /// Whether an agent has to stay.
    pub(in crate::shard) fn has(&self, agent: AgentNo) -> bool {
        self.0.contains_key(&agent)
    }
}

impl<D: Disk> Store<D> {
    /// Takes a copy of an agent out that another shard has; the log is told when there is room.
    pub(super) fn end_agent(&mut self, agent: AgentNo, stays_at: ShardNo) {
        if let Some(gone) = self.tables.remove_agent(agent) {
            let name = gone.name.clone();
            for branch in gone.into_branches() {
                self.cool(branch.keys.retire());
            }
            self.ended.push(Ended {
                agent,
                name,
                stays_at,
            });
        }
    }
}

impl<D: Disk> Shard<D> {
    /// Appends what is to be said of copies that ended, and tells of those whose end is on the device; whether
    /// there was something.
    pub(in crate::shard) fn end_agents(&mut self) -> bool {
        let mut worked = false;
        while let Some(ended) = self.store.ended.last() {
            let agent = ended.agent;
            let said = self.store.ready(0, false);
            let said = said.and_then(|()| self.store.append(&Head::AgentGone { agent }.into()));
            self.must_flush |= self.store.is_dirty();
            // Until it is said nothing may arrive: else the next start would find two of a name here. A log
            // that takes nothing any more takes no agents either.
            let over = self.store.log.read_only().is_some();
            if !over && (said.is_err() || self.flush_commit().is_err()) {
                break;
            }
            let last = self.store.log.last();
            if let Some(ended) = self.store.ended.pop() {
                self.moves.ending.push((last, ended));
            }
            self.store.log.sync_wanted(last);
            worked = true;
        }
        worked |= self.tell_ended();
        for message in std::mem::take(&mut self.retold) {
            self.take_move(self.options.no, message);
            worked = true;
        }
        worked
    }

    fn tell_ended(&mut self) -> bool {
        if self.moves.ending.is_empty() {
            return false;
        }
        if self.store.log.read_only().is_some() {
            // Whether it is on the device nobody knows before the next start.
            self.moves.ending.clear();
            return true;
        }
        let synced = self.store.log.synced();
        let durable = |(said, _): &mut (Sequence, Ended)| *said <= synced;
        let told: Vec<_> = self.moves.ending.extract_if(.., durable).collect();
        for (_, Ended { name, stays_at, .. }) in &told {
            self.say(*stays_at, name.clone(), Word::Off);
        }
        !told.is_empty()
    }
}
