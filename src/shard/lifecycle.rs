//! Agents from outside: made, listed, described, suspended, resumed, terminated.
//!
//! Floor 2. Commands of the control plane, answered after the flush of the record that says it. What an
//! agent held is given back bit by bit, in later turns.
//!
//! Invariants
//! - a command that writes is answered after the flush of its record, and changed nothing where that failed.
//! - an agent with a lane is neither suspended nor, unless its lanes are closed first, terminated.
//! - the number of an agent that is gone is not given out again in this run; its name may be.

use crate::agent::CloseReason;
use crate::agent::entry::Status;
use crate::agent::lifecycle::{AgentInfo, AgentItem, AgentPage, HEADS_MAX, HeadInfo, Suspended};
use crate::cache::EntryNo;
use crate::id::{AgentNo, BranchNo, ShardNo};
use crate::prefetch::{AccessEvent, AccessKind, Feed};
use crate::segment::index::{NOT_CACHED, ObjectNo};
use crate::segment::{Disk, Head};
use crate::shard::agent::{Agent, MAIN};
use crate::shard::call::Failed;
use crate::shard::store::Refused;
use crate::shard::{Answer, Command, Shard};
use crate::state::tree;

/// What the control plane asks of the shard of an agent.
#[derive(Debug)]
pub struct AgentCommand {
    /// The agent's name.
    pub agent: Box<[u8]>,
    /// What to do.
    pub what: AgentVerb,
    /// Told how it went.
    pub reply: Answer<Result<AgentAnswer, AgentError>>,
}

/// What to do with an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentVerb {
    /// Make it, if it is not there.
    Create {
        /// Other agents may read its values.
        public: bool,
    },
    /// Describe it.
    Describe,
    /// Give its memory back.
    Suspend,
    /// Load what it used last.
    Resume,
    /// Delete it.
    Terminate {
        /// Close its lanes first.
        force: bool,
    },
    /// Move it to another shard.
    Migrate {
        /// That shard.
        to: ShardNo,
    },
}

/// What came of it.
#[derive(Debug)]
pub enum AgentAnswer {
    /// It is done, or begun.
    Done,
    /// It is there; whether it was made now.
    Created(bool),
    /// What it is like.
    Described(Box<AgentInfo>),
    /// What is left of it in memory.
    Suspended(Suspended),
}

/// Why it was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// No agent of that name.
    #[error("there is no agent of this name")]
    NoSuchAgent,
    /// Lanes are attached to it.
    #[error("{lanes} lanes are attached to the agent; detach them first, or use force")]
    InUse {
        /// How many.
        lanes: u32,
    },
    /// It is on its way to another shard.
    #[error("the agent is being moved to another shard; retry when it is there")]
    Moving,
    /// No such shard, or the agent is there already.
    #[error("there is no other shard of that number")]
    NoSuchShard,
    /// The disk is full.
    #[error("it can't be recorded: the disk is full; free space and retry")]
    NoSpace,
    /// The log takes no writes.
    #[error("it can't be recorded: the shard is read-only; see the runtime's log")]
    ReadOnly,
    /// What the agent consists of is damaged.
    #[error("the agent's state is damaged; the runtime's log names the place")]
    Corrupt,
    /// Memory or log are short for the moment.
    #[error("the shard is busy; retry")]
    Busy,
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

impl From<Failed> for AgentError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Refused(Refused::NoSpace) | Failed::Status(Status::NoSpace, _) => Self::NoSpace,
            Failed::Refused(Refused::ReadOnly) | Failed::Status(Status::IoFailed, _) => {
                Self::ReadOnly
            }
            Failed::Refused(Refused::Corrupt) => Self::Corrupt,
            _ => Self::Busy,
        }
    }
}

impl From<Refused> for AgentError {
    fn from(refused: Refused) -> Self {
        Failed::Refused(refused).into()
    }
}

impl<D: Disk> Shard<D> {
    /// Has the shard tell of what agents do, to whoever takes the other end.
    pub fn set_feed(&mut self, feed: Feed) {
        self.feed = Some(feed);
    }

    /// Tells of something that an agent did, if anybody listens.
    #[inline]
    pub(super) fn tell(&mut self, kind: AccessKind, agent: AgentNo, branch: BranchNo) {
        let Some(feed) = self.feed.as_mut().filter(|feed| feed.is_open()) else {
            return;
        };
        let event = AccessEvent {
            time_ns: self.now,
            key: 0,
            agent,
            branch,
            kind,
            tier: 0,
        };
        if !feed.tell(event) {
            self.counters().access_events_lost.add(1);
        }
    }

    /// Carries a command about an agent out; gives it back where it has to wait for room in the log.
    pub(super) fn take_agent_command(&mut self, command: Box<AgentCommand>) -> Option<Command> {
        let writes = !matches!(command.what, AgentVerb::Describe);
        if writes && self.store.ready(0, false) == Err(Refused::Wait) {
            // What fills the buffer goes out at the end of the turn.
            self.must_flush |= self.store.is_dirty();
            return Some(Command::Agent(command));
        }
        let AgentCommand { agent, what, reply } = *command;
        let outcome = match self.draining.is_some() {
            true => Err(AgentError::ShuttingDown),
            false => self.carry_out_verb(&agent, what),
        };
        reply.give(outcome);
        None
    }

    fn carry_out_verb(&mut self, name: &[u8], what: AgentVerb) -> Result<AgentAnswer, AgentError> {
        let known = self.store.tables.agent_no(name);
        if let AgentVerb::Create { public } = what {
            if known.is_none() {
                self.create(name, public)?;
            }
            return Ok(AgentAnswer::Created(known.is_none()));
        }
        let agent = known.ok_or(AgentError::NoSuchAgent)?;
        if what != AgentVerb::Describe && self.moves.to(agent).is_some() {
            return Err(AgentError::Moving);
        }
        match what {
            AgentVerb::Create { .. } | AgentVerb::Resume => {
                self.wake_agent(agent)?;
                Ok(AgentAnswer::Done)
            }
            AgentVerb::Describe => {
                let info = self.agent_info(agent);
                Ok(AgentAnswer::Described(Box::new(info)))
            }
            AgentVerb::Suspend => {
                self.check_unused(agent)?;
                self.suspend(agent).map(AgentAnswer::Suspended)
            }
            AgentVerb::Terminate { force } => {
                if !force {
                    self.check_unused(agent)?;
                }
                self.terminate(agent)?;
                Ok(AgentAnswer::Done)
            }
            AgentVerb::Migrate { to } => {
                self.begin_move(agent, to)?;
                Ok(AgentAnswer::Done)
            }
        }
    }

    fn check_unused(&self, agent: AgentNo) -> Result<(), AgentError> {
        match self.store.tables.agent(agent).lanes {
            0 => Ok(()),
            lanes => Err(AgentError::InUse { lanes }),
        }
    }

    fn create(&mut self, name: &[u8], public: bool) -> Result<(), AgentError> {
        let agent = self.store.put_agent(name, public, self.moves_of(name))?;
        self.flush_commit()?;
        self.tell(AccessKind::Create, agent, MAIN);
        Ok(())
    }

    /// Deletes an agent: its lanes are closed, and what it held is given back bit by bit.
    fn terminate(&mut self, agent: AgentNo) -> Result<(), AgentError> {
        if self.store.doubts.has(agent) {
            // A copy on another shard would come back in its place.
            return Err(AgentError::Busy);
        }
        self.store.ready(0, false)?;
        self.store.append(&Head::AgentGone { agent }.into())?;
        self.flush_commit()?;
        self.end_sets(agent);
        let lanes = self.lanes.of_agent(agent);
        if !lanes.is_empty() {
            let (shard, lanes, reason) = (self.options.no.0, lanes.len(), CloseReason::Terminated);
            tracing::info!(shard, %agent, lanes, %reason, "closed the lanes of an agent");
        }
        for (session, lane) in lanes {
            if let Some(lane) = self.lanes.detach(session, lane) {
                self.close_lane(lane, CloseReason::Terminated);
            }
        }
        self.drop_agent(agent);
        self.tell(AccessKind::Terminate, agent, MAIN);
        Ok(())
    }

    /// Takes an agent without lanes out of the tables.
    pub(super) fn drop_agent(&mut self, agent: AgentNo) {
        self.cool_agent(agent);
        if let Some(gone) = self.store.tables.remove_agent(agent) {
            for branch in gone.into_branches() {
                self.store.cool(branch.keys.retire());
            }
        }
        self.store.gone.retain(|&gone| gone != agent);
    }

    /// Some of the agents of this shard, in order of their names.
    pub(super) fn list_agents(&self, after: &[u8], limit: u32) -> AgentPage {
        let tables = &self.store.tables;
        let mut found: Vec<&Agent> = tables
            .all_agents()
            .map(|(_, agent)| agent)
            .filter(|agent| *agent.name > *after && !self.moves.is_coming(&agent.name))
            .collect();
        let limit = limit as usize;
        let more = found.len() > limit;
        if more {
            found.select_nth_unstable_by(limit, |a, b| a.name.cmp(&b.name));
            found.truncate(limit);
        }
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let items: Vec<_> = found.into_iter().map(|agent| self.item(agent)).collect();
        let last = items.last().map(|last| last.name.clone());
        AgentPage {
            items,
            next: last.filter(|_| more),
        }
    }

    fn item(&self, agent: &Agent) -> AgentItem {
        AgentItem {
            name: String::from_utf8_lossy(&agent.name).into_owned(),
            shard: self.options.no.0,
            suspended: agent.hot.is_some(),
            lanes: agent.lanes,
        }
    }

    /// Describes an agent. Costs a look at each of its keys in memory.
    fn agent_info(&mut self, no: AgentNo) -> AgentInfo {
        let agent = self.store.tables.agent(no);
        let window = agent.window.as_ref().filter(|window| !window.is_empty());
        let named: Vec<_> = agent.branches_after("").collect();
        let forks = agent.all_branches().count() - named.len();
        let bases: Vec<_> = named
            .iter()
            .take(HEADS_MAX)
            .map(|(_, it)| it.base)
            .collect();
        let heads = named.iter().take(HEADS_MAX).map(|(_, branch)| HeadInfo {
            name: branch.name.to_string(),
            head: branch.head.map(|head| *head.as_bytes()),
            keys: None,
            changes: branch.keys.changes() as u64,
        });
        let mut info = AgentInfo {
            name: String::from_utf8_lossy(&agent.name).into_owned(),
            shard: self.options.no.0,
            public: agent.public,
            suspended: agent.hot.is_some(),
            moving_to: self.moves.to(no).map(|to| to.0),
            lanes: agent.lanes,
            branches: named.len() as u32,
            forks: forks as u32,
            tags: agent.tags.len() as u32,
            published: agent.tags.values().filter(|tag| tag.public).count() as u32,
            heads: heads.collect(),
            window_bytes: window.map_or(0, |window| window.bytes() as u64),
            l2_bytes: self.cached_bytes(agent),
            index_bytes: agent.memory_bytes() as u64,
        };
        for (head, base) in info.heads.iter_mut().zip(bases) {
            let keys = self.store.with_nodes(|nodes| tree::count(nodes, &base));
            head.keys = keys.ok().map(u64::from);
        }
        info
    }

    /// Bytes of L2 that values of an agent's working sets take.
    fn cached_bytes(&self, agent: &Agent) -> u64 {
        let tables = &self.store.tables;
        let mut bytes = 0;
        let mut add = |object: ObjectNo| {
            let entry = tables.objects.get(object).cached;
            if entry != NOT_CACHED {
                bytes += self.store.l2.charge_of(EntryNo(entry)) as u64;
            }
        };
        for value in agent.all_branches().flat_map(|branch| branch.keys.values()) {
            add(ObjectNo(value.object));
            for child in tables.chunks.get(&value.object).into_iter().flatten() {
                add(child.object);
            }
        }
        bytes
    }
}

/// What a lane's call does, for those who listen.
pub(super) fn kind_of(call: &crate::agent::call::Call<'_>) -> Option<AccessKind> {
    use crate::agent::call::Call;
    Some(match call {
        Call::Checkpoint { .. } => AccessKind::Checkpoint,
        Call::Branch { .. } | Call::Switch { .. } | Call::Fork { .. } => AccessKind::Branch,
        Call::Merge { .. } => AccessKind::Merge,
        Call::Restore { .. } => AccessKind::Restore,
        _ => return None,
    })
}
