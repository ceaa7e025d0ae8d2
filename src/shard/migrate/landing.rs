//! An agent between two shards: what of it travels beside its objects, and how the log of the other one
//! comes to say it.
//!
//! Floor 2. The source packs names, changes, tags and the like; the target appends a record for each, some in every
//! turn, and changes its tables in step. Nothing here is undone: where it fails, the agent is taken out again.

use std::collections::VecDeque;

use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SetNo};
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, HEAD_BYTES_MAX, Head, ObjectKind, Record};
use crate::shard::agent::{Agent, BranchRef};
use crate::shard::groups::SetRef;
use crate::shard::store::{Refused, Store, refused};
use crate::state::Value;

/// Records of an arriving agent that one turn appends.
pub(in crate::shard) const LANDING_PER_TURN: usize = 512;

/// An agent without its objects.
#[derive(Debug)]
pub(super) struct Parcel {
    /// Its names, and branches without keys.
    pub(super) shell: Box<Agent>,
    /// What the log has to say of it.
    pub(super) items: VecDeque<Item>,
}

/// Something that a record says.
#[derive(Debug)]
pub(super) enum Item {
    Branch(BranchNo),
    Change(BranchNo, Box<[u8]>, Option<(ObjectId, u64)>),
    Tag(Box<str>),
    Adopted(ObjectId),
    Hot(ObjectId),
    Set(SetNo),
    /// Numbers of sets that are taken.
    Sets,
}

impl<D: Disk> Store<D> {
    /// All of an agent beside its objects.
    pub(super) fn parcel(&self, agent: AgentNo) -> Parcel {
        let agent = self.tables.agent(agent);
        let mut items = VecDeque::new();
        for (no, branch) in agent.numbered() {
            items.push_back(Item::Branch(no));
            for (key, held) in branch.keys.entries().filter(|(_, held)| held.changed) {
                let value = held.value.map(|value| {
                    let object = self.tables.objects.get(ObjectNo(value.object));
                    (object.id, value.bytes)
                });
                items.push_back(Item::Change(no, key.into(), value));
            }
        }
        items.extend(agent.tags.keys().cloned().map(Item::Tag));
        items.extend(agent.adopted.iter().copied().map(Item::Adopted));
        items.extend(agent.hot.map(Item::Hot));
        items.push_back(Item::Sets);
        items.extend(agent.sets.iter().map(|(set, _)| Item::Set(set)));
        let shell = Box::new(agent.shell());
        Parcel { shell, items }
    }

    /// Appends the first record of an agent that comes from another shard.
    pub(super) fn name_agent(&mut self, shell: &Agent) -> Result<(), Refused> {
        self.ready(0, true)?;
        let head = Head::Agent {
            agent: self.tables.next_agent(),
            public: shell.public,
            moves: shell.moves,
            name: &shell.name,
        };
        self.append(&head.into()).map(drop)
    }

    /// Appends more of what the log has to say of an arriving agent; `false`: that was all.
    pub(super) fn land(
        &mut self,
        agent: AgentNo,
        items: &mut VecDeque<Item>,
    ) -> Result<bool, Refused> {
        for _ in 0..LANDING_PER_TURN {
            let Some(item) = items.front() else {
                return Ok(false);
            };
            self.land_one(agent, item)?;
            items.pop_front();
        }
        Ok(true)
    }

    fn land_one(&mut self, no: AgentNo, item: &Item) -> Result<(), Refused> {
        self.ready(0, true)?;
        match item {
            Item::Branch(branch) => self.land_branch(BranchRef {
                agent: no,
                branch: *branch,
            }),
            Item::Change(branch, key, value) => {
                let at = BranchRef {
                    agent: no,
                    branch: *branch,
                };
                self.land_change(at, key, *value)
            }
            Item::Tag(name) => {
                let Some(tag) = self.tables.agent(no).tags.get(name) else {
                    return Ok(());
                };
                let head = Head::Tag {
                    agent: no,
                    public: tag.public,
                    name: name.as_bytes(),
                    target: Some(tag.target),
                };
                self.append(&head.into()).map(drop)
            }
            Item::Adopted(target) => {
                let head = Head::Adopted {
                    agent: no,
                    target: *target,
                    gone: false,
                };
                self.append(&head.into()).map(drop)
            }
            Item::Sets => match self.tables.agent(no).sets.taken(no) {
                Some(taken) => self.append(&taken.into()).map(drop),
                None => Ok(()),
            },
            Item::Set(set) => self.land_set(SetRef {
                agent: no,
                set: *set,
            }),
            Item::Hot(list) => {
                let list = Some(*list);
                self.append(&Head::Hot { agent: no, list }.into()).map(drop)
            }
        }
    }

    fn land_set(&mut self, at: SetRef) -> Result<(), Refused> {
        if self.restate_set(at)? {
            return Ok(());
        }
        let Some(open) = self.tables.open_set(at) else {
            return Ok(());
        };
        let records = || open.restate(at.agent, at.set).map(Record::from);
        let bytes: usize = records().map(|record| record.record_bytes()).sum();
        self.log
            .ready(bytes + HEAD_BYTES_MAX)
            .map_err(|not| refused(not.into()))?;
        for record in records() {
            self.log.append(&record).map_err(refused)?;
        }
        Ok(())
    }

    fn land_branch(&mut self, at: BranchRef) -> Result<(), Refused> {
        let agent = self.tables.agent(at.agent);
        if !at.is_fork() && u64::from(at.branch.0) >= self.log.last().0 {
            let (public, moves, name) = (agent.public, agent.moves, agent.name.clone());
            loop {
                let head = Head::Agent {
                    agent: at.agent,
                    public,
                    moves,
                    name: &name,
                };
                self.ready(0, false)?;
                self.append(&head.into())?;
                // A log gives out no more numbers than it has records.
                if u64::from(at.branch.0) < self.log.last().0 {
                    break;
                }
            }
        }
        if at.is_fork() {
            return Ok(());
        }
        let branch = self.tables.branch(at);
        let (name, rule) = (branch.name.clone(), branch.retention);
        let head = Head::Branch {
            agent: at.agent,
            branch: at.branch,
            name: name.as_bytes(),
            head: branch.head,
            tree: branch.base,
            changes_stay: false,
        };
        self.ready(0, false)?;
        self.append(&head.into())?;
        if rule != Retention::All {
            let head = Head::Retention {
                agent: at.agent,
                branch: at.branch,
                rule,
            };
            self.ready(0, false)?;
            self.append(&head.into())?;
        }
        Ok(())
    }

    fn land_change(
        &mut self,
        at: BranchRef,
        key: &[u8],
        value: Option<(ObjectId, u64)>,
    ) -> Result<(), Refused> {
        let (agent, branch) = (at.agent, at.branch);
        let mut named = None;
        let mut head = Head::Delete { agent, branch, key };
        if let Some((id, bytes)) = value {
            let no = self.tables.objects.find(&id).ok_or(Refused::Corrupt)?;
            let kind: ObjectKind = self.tables.objects.get(no).kind;
            head = Head::Put {
                agent,
                branch,
                key,
                kind,
                id,
                value_bytes: bytes,
            };
            named = Some(no);
        }
        if !at.is_fork() {
            self.append(&head.into())?;
        }
        let value = named.map(|no| {
            self.tables.objects.acquire(no);
            Value {
                object: no.0,
                bytes: value.map_or(0, |(_, bytes)| bytes),
            }
        });
        self.tables.set_key(at, key, value);
        Ok(())
    }
}
