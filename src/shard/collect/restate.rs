//! Saying again what still counts, so that what the log said before can go.
//!
//! Floor 2. Every record says what is true, alone: said again at any time, it changes nothing. Agent by
//! agent, branch by branch, key by key the log gets once more what it would need if it began at the
//! segment that was begun for this. Meanwhile the shard serves: whoever is the first to write about an agent
//! or a branch that was not reached yet has it said again before, so that no record in the new part of the log
//! is about something that only the old part knows.
//!
//! Cost: a record for each agent, branch, tag and changed key; 64 a turn.
//!
//! Invariants
//! - what is said was true when it was appended, and nothing else was appended before it in the same call.
//! - a flush that fails takes the marks of what was said with it: the collection ends, and begins anew.

use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SetNo};
use crate::segment::{Collapse, Disk, HEAD_BYTES_MAX, Head, Record};
use crate::shard::agent::{BranchRef, is_fork};
use crate::shard::collect::spend;
use crate::shard::groups::SetRef;
use crate::shard::store::{Refused, Store, refused};

/// Records appended in one turn.
const RECORDS_PER_TURN: usize = 64;
/// Agents and branches that are weighed in one step, but for the agent that passes this.
const BRANCHES_PER_STEP: usize = 128;
/// Room that a record may need for what has to be said before it: its agent, its branch, the branch's rule.
pub const BEFORE_BYTES: usize = HEAD_BYTES_MAX;
/// What a record takes beside its key, about.
const RECORD_BYTES: u64 = 72;

/// Which saying again an agent or a branch took part in; 0 is none.
pub type Restated = u32;

/// One thing to be said again of an agent.
#[derive(Debug)]
enum Item {
    Agent,
    Branch(BranchNo),
    /// Changed keys of a branch: so many of them, the first ones, are left.
    Changes(BranchNo, usize),
    Tag(Box<str>),
    Adopted(ObjectId),
    Hot,
    Set(SetNo),
    /// Numbers of sets that are taken.
    Sets,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Restate {
    next_agent: u32,
    agent: AgentNo,
    /// Of this agent, from the last one.
    items: Vec<Item>,
    /// Of segments that are gone, from the last one.
    gaps: Vec<Head<'static>>,
    /// Checkpoints that are none any more: so many, the first ones, are left.
    pruned: usize,
}

impl Restate {
    /// Appends some records; whether there is more to say.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Wait`] means to go on later.
    pub fn step<D: Disk>(&mut self, store: &mut Store<D>) -> Result<bool, Refused> {
        if store.restating.is_none() {
            return Err(Refused::NoSpace);
        }
        for _ in 0..RECORDS_PER_TURN {
            spend(1);
            if let Some(&gap) = self.gaps.last() {
                store.say(gap)?;
                self.gaps.pop();
                continue;
            }
            if let Some(listed) = self.pruned.checked_sub(1) {
                store.say_pruned(listed)?;
                self.pruned = listed;
                continue;
            }
            let Some(item) = self.items.last_mut() else {
                if self.next_agent == store.tables.next_agent().0 {
                    store.restating = None;
                    return Ok(false);
                }
                self.agent = AgentNo(self.next_agent);
                self.items = items(store, self.agent);
                self.next_agent += 1;
                continue;
            };
            if let Item::Changes(branch, left) = item {
                let at = BranchRef {
                    agent: self.agent,
                    branch: *branch,
                };
                if store.say_change(at, left)? {
                    continue;
                }
            } else {
                store.say_item(self.agent, item)?;
            }
            self.items.pop();
        }
        Ok(true)
    }
}

/// Everything to be said of an agent.
fn items<D: Disk>(store: &Store<D>, no: AgentNo) -> Vec<Item> {
    if !store.tables.has_agent(no) {
        return Vec::new();
    }
    let agent = store.tables.agent(no);
    let mut items: Vec<_> = agent.hot.iter().map(|_| Item::Hot).collect();
    items.extend(agent.sets.iter().map(|(set, _)| Item::Set(set)));
    items.push(Item::Sets);
    items.extend(agent.adopted.iter().copied().map(Item::Adopted));
    items.extend(agent.tags.keys().cloned().map(Item::Tag));
    for (branch, known) in agent.branches_after("") {
        items.push(Item::Changes(branch, known.keys.changes()));
        items.push(Item::Branch(branch));
    }
    items.push(Item::Agent);
    items
}

/// Finds out about how many bytes saying everything again takes.
#[derive(Debug, Default)]
pub struct Weighing {
    next_agent: u32,
    bytes: u64,
}

impl Weighing {
    /// Looks at some more agents; the bytes, once that was the last.
    pub fn step<D: Disk>(&mut self, store: &Store<D>) -> Option<u64> {
        let tables = &store.tables;
        let mut branches = 0;
        while branches < BRANCHES_PER_STEP {
            if self.next_agent == tables.next_agent().0 {
                return Some(self.bytes + tables.pruned.len() as u64 * RECORD_BYTES);
            }
            let no = AgentNo(self.next_agent);
            self.next_agent += 1;
            branches += 1;
            spend(1);
            if !tables.has_agent(no) {
                continue;
            }
            let agent = tables.agent(no);
            let mut records = agent.tags.len() + agent.adopted.len() + 2;
            for branch in agent.all_branches() {
                records += 1 + branch.keys.changes();
                branches += 1;
                spend(1);
            }
            self.bytes += records as u64 * (RECORD_BYTES + 32);
        }
        None
    }
}

impl<D: Disk> Store<D> {
    /// Begins to say everything again.
    pub(super) fn begin_restate(&mut self) -> Restate {
        self.last_restated += 1;
        self.restating = Some(self.last_restated);
        Restate {
            gaps: self.log.gaps().collect(),
            pruned: self.tables.pruned.len(),
            ..Restate::default()
        }
    }

    /// Says what a record is about, if nobody has yet since the saying began.
    pub(in crate::shard) fn restate_before(&mut self, head: &Head<'_>) -> Result<(), Refused> {
        match *head {
            Head::Put { agent, branch, .. }
            | Head::Delete { agent, branch, .. }
            | Head::Branch { agent, branch, .. }
            | Head::BranchGone { agent, branch }
            | Head::Retention { agent, branch, .. } => {
                self.restate_branch(BranchRef { agent, branch })
            }
            Head::Tag { agent, .. }
            | Head::Adopted { agent, .. }
            | Head::Hot { agent, .. }
            | Head::AgentGone { agent } => self.say_agent(agent),
            Head::Set { agent, set, .. } | Head::Candidate { agent, set, .. } => {
                self.say_agent(agent)?;
                self.say_set(SetRef { agent, set })
            }
            Head::SetGone {
                agent, collapse, ..
            } => match collapse {
                Some(Collapse { branch, .. }) => self.say_branch(BranchRef { agent, branch }),
                None => self.say_agent(agent),
            },
            Head::Agent { .. }
            | Head::Object { .. }
            | Head::Pruned { .. }
            | Head::Synced { .. }
            | Head::Dropped { .. } => Ok(()),
        }
    }

    /// The same, where the branch is known and its record still in the making.
    pub(in crate::shard) fn restate_branch(&mut self, at: BranchRef) -> Result<(), Refused> {
        match self.restating {
            Some(_) => self.say_branch(at),
            None => Ok(()),
        }
    }

    /// Says a set, while everything is said again; whether it was or is said so.
    pub(in crate::shard) fn restate_set(&mut self, at: SetRef) -> Result<bool, Refused> {
        if self.restating.is_none() {
            return Ok(false);
        }
        self.say_agent(at.agent)?;
        self.say_set(at)?;
        Ok(true)
    }

    /// Appends a record that has no payload.
    fn say(&mut self, head: Head<'_>) -> Result<(), Refused> {
        self.ready(0, false)?;
        self.say_granted(head)
    }

    fn say_granted(&mut self, head: Head<'_>) -> Result<(), Refused> {
        self.log.append(&head.into()).map_err(refused)?;
        Ok(())
    }

    /// Says that a checkpoint is none any more, unless it was stored again.
    fn say_pruned(&mut self, listed: usize) -> Result<(), Refused> {
        match self.tables.pruned.get(listed) {
            Some(&(_, id)) if self.tables.objects.find(&id).is_none() => {
                self.say(Head::Pruned { id })
            }
            _ => Ok(()),
        }
    }

    fn say_agent(&mut self, no: AgentNo) -> Result<(), Refused> {
        let restating = self.restating;
        if !self.tables.has_agent(no) {
            return Ok(());
        }
        let agent = self.tables.agent_mut(no);
        if restating.is_none_or(|now| agent.restated == now) {
            return Ok(());
        }
        let head = Head::Agent {
            agent: no,
            public: agent.public,
            moves: agent.moves,
            name: &agent.name,
        };
        self.log.append(&head.into()).map_err(refused)?;
        agent.restated = restating.unwrap_or_default();
        Ok(())
    }

    fn say_branch(&mut self, at: BranchRef) -> Result<(), Refused> {
        self.say_agent(at.agent)?;
        let restating = self.restating;
        if !self.tables.has_agent(at.agent) {
            return Ok(());
        }
        let Some(branch) = self.tables.agent_mut(at.agent).branch_mut(at.branch) else {
            return Ok(());
        };
        if is_fork(at.branch) || restating.is_none_or(|now| branch.restated == now) {
            return Ok(());
        }
        let mut heads = [
            Some(Head::Branch {
                agent: at.agent,
                branch: at.branch,
                name: branch.name.as_bytes(),
                head: branch.head,
                tree: branch.base,
                changes_stay: true,
            }),
            None,
        ];
        if branch.retention != Retention::All {
            heads[1] = Some(Head::Retention {
                agent: at.agent,
                branch: at.branch,
                rule: branch.retention,
            });
        }
        for head in heads.into_iter().flatten() {
            self.log.append(&head.into()).map_err(refused)?;
        }
        branch.restated = restating.unwrap_or_default();
        Ok(())
    }

    /// Says a set and all its candidates, or nothing.
    fn say_set(&mut self, at: SetRef) -> Result<(), Refused> {
        let restating = self.restating;
        let Some(open) = self.tables.open_set(at) else {
            return Ok(());
        };
        if restating.is_none_or(|now| open.restated == now) {
            return Ok(());
        }
        let heads = || open.restate(at.agent, at.set).map(Record::from);
        let bytes: usize = heads().map(|record| record.record_bytes()).sum();
        let room = bytes + BEFORE_BYTES + HEAD_BYTES_MAX;
        self.log.ready(room).map_err(|not| refused(not.into()))?;
        for record in heads() {
            self.log.append(&record).map_err(refused)?;
        }
        if let Some(open) = self.tables.open_set_mut(at) {
            open.restated = restating.unwrap_or_default();
        }
        Ok(())
    }

    fn say_item(&mut self, agent: AgentNo, item: &Item) -> Result<(), Refused> {
        self.ready(0, false)?;
        if !self.tables.has_agent(agent) {
            return Ok(());
        }
        let known = self.tables.agent(agent);
        match item {
            Item::Agent => self.say_agent(agent),
            &Item::Branch(branch) => self.say_branch(BranchRef { agent, branch }),
            Item::Changes(..) => Ok(()),
            Item::Tag(name) => {
                let Some(tag) = known.tags.get(name).copied() else {
                    return Ok(());
                };
                self.say_granted(Head::Tag {
                    agent,
                    name: name.as_bytes(),
                    target: Some(tag.target),
                    public: tag.public,
                })
            }
            Item::Adopted(target) if known.adopted.contains(target) => {
                self.say_granted(Head::Adopted {
                    agent,
                    target: *target,
                    gone: false,
                })
            }
            Item::Adopted(_) => Ok(()),
            &Item::Set(set) => self.say_set(SetRef { agent, set }),
            Item::Sets => match known.sets.taken(agent) {
                Some(taken) => self.say_granted(taken),
                None => Ok(()),
            },
            Item::Hot => match known.hot {
                None => Ok(()),
                list => self.say_granted(Head::Hot { agent, list }),
            },
        }
    }

    /// Says the changed key before the first `left`, which it takes one from; whether there was one.
    /// They are taken from the end: what moves into the place of one that is gone was said already.
    fn say_change(&mut self, at: BranchRef, left: &mut usize) -> Result<bool, Refused> {
        if !self.tables.has_agent(at.agent) {
            return Ok(false);
        }
        let Some(branch) = self.tables.agent(at.agent).branch(at.branch) else {
            return Ok(false);
        };
        *left = (*left).min(branch.keys.changes());
        let Some(listed) = left.checked_sub(1) else {
            return Ok(false);
        };
        self.ready(0, false)?;
        let branch = self.tables.branch(at);
        let (key, held) = branch.keys.changed(listed);
        let head = self.tables.change_head(at, key, held);
        self.log.append(&head.into()).map_err(refused)?;
        *left = listed;
        Ok(true)
    }
}
