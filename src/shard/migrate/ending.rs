//! Copies of an agent that another shard has: taken out, said to be gone, and told of once that is on the device.
//!
//! Floor 2. A copy that a move leaves behind is younger by its count than the agent itself, so the agent is what a
//! start finds, until it moves once more: then two have the same count. So it stays where it is, and is not
//! terminated, while some other shard may still find a copy of it after a power cut.
//!
//! Invariants
//! - an agent in [`Doubts`] neither moves nor ends.
//! - a shard tells another one that a copy is gone after the record of that is on the device.
//! - the copy at a target is not given up while the source's log may still say, at the next start, that the agent
//!   left: a record whose flush failed can come back until others are on the device in its place.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{AgentNo, ShardNo};
use crate::segment::{Disk, Head, Sequence};
use crate::shard::migrate::Word;
use crate::shard::store::Store;
use crate::shard::{SPACE_RETRY_NS, Shard};

/// A copy of an agent that was taken out of the tables.
#[derive(Debug)]
pub(in crate::shard) struct Ended {
    agent: AgentNo,
    name: Box<[u8]>,
    /// The shard that has the agent, and hears of the end.
    stays_at: ShardNo,
}

/// An agent that its log said to be gone, in a flush that failed: it stays, but a start could find it gone.
#[derive(Debug)]
pub(super) struct TakenBack {
    agent: AgentNo,
    /// The shard that has a copy of it.
    to: ShardNo,
    /// The record in place of the one that failed, once it is written.
    instead: Option<Sequence>,
    /// When that is tried again, in the shard's time, in nanoseconds.
    retry_ns: u64,
}

impl TakenBack {
    /// When it has to be looked at, unless that is with an answer of the disk.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.instead.is_none().then_some(self.retry_ns)
    }
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
        worked |= self.tell_taken_back();
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

    /// Lets a target know that an agent stays; where its log may come to say something else, once it can't any more.
    pub(super) fn take_back_word(&mut self, agent: AgentNo, to: ShardNo, may_return: bool) {
        if !may_return {
            let name = self.store.tables.agent(agent).name.clone();
            return self.say(to, name, Word::Off);
        }
        self.moves.taken_back.push(TakenBack {
            agent,
            to,
            instead: None,
            retry_ns: self.now,
        });
    }

    /// Writes over what a failed flush may have left of an agent's end, and tells the target when that is on the
    /// device; whether there was something to do.
    fn tell_taken_back(&mut self) -> bool {
        let mut worked = false;
        for mut taken in std::mem::take(&mut self.moves.taken_back) {
            if self.store.log.read_only().is_some() {
                // The next start decides, and the copy waits for it.
                continue;
            }
            if taken.instead.is_none() && self.now >= taken.retry_ns {
                taken.instead = self.say_that_it_stays(taken.agent);
                taken.retry_ns = self.now + SPACE_RETRY_NS;
                worked = true;
            }
            let synced = self.store.log.synced();
            if taken.instead.is_some_and(|instead| instead <= synced) {
                let name = self.store.tables.agent(taken.agent).name.clone();
                self.say(taken.to, name, Word::Off);
                worked = true;
            } else {
                self.moves.taken_back.push(taken);
            }
        }
        worked
    }

    /// Says of an agent what the log knows already; what has to reach the device.
    fn say_that_it_stays(&mut self, agent: AgentNo) -> Option<Sequence> {
        self.store.ready(0, false).ok()?;
        let known = self.store.tables.agent(agent);
        let (public, moves, name) = (known.public, known.moves, known.name.clone());
        let head = Head::Agent {
            agent,
            public,
            moves,
            name: &name,
        };
        let said = self.store.append(&head.into());
        self.must_flush |= self.store.is_dirty();
        let sequence = said.ok()?.sequence;
        self.flush_commit().ok()?;
        self.store.log.sync_wanted(sequence);
        Some(sequence)
    }
}
