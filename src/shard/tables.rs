//! What a shard knows: its agents, their keys, the objects these name.
//!
//! Floor 2. The tables are rebuilt from the log at start by [`Tables::apply`], record by record in
//! the order of the log, and changed in the same way by every write afterwards.
//!
//! Invariants
//! - an object's references are: keys that name it + lists that hold it + uploads that hold it.
//! - `agents[n]` is the agent of number `n`; numbers are never reused.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::cache::WindowWriter;
use crate::id::{AgentNo, ObjectId, SegmentNo, View};
use crate::segment::index::{ObjectIndex, ObjectNo};
use crate::segment::{Head, ListPayload, Location, RecoveredRecord, ValueKind};
use crate::state::{Held, Value, WorkingSet};

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// Its name.
    pub name: Box<[u8]>,
    /// Whether other agents may read its values.
    pub public: bool,
    /// Its keys.
    pub keys: WorkingSet,
    /// The view of its state in its window.
    pub view: View,
    /// Its L1 window, while a lane is attached.
    pub window: Option<WindowWriter>,
    /// The descriptor from which processes map the window.
    pub window_fd: Option<Arc<OwnedFd>>,
    /// Lanes attached.
    pub lanes: u32,
}

/// What a key named, if anything was known of it.
pub fn named(held: Option<Held>) -> Option<Value> {
    held.and_then(|held| held.value)
}

impl Agent {
    /// Takes the value of a key out of the window: what it names changes.
    pub fn invalidate(&mut self, key: &[u8]) {
        if let Some(window) = &mut self.window {
            window.invalidate(self.view, key);
        }
    }
}

/// A log that contradicts itself: intact records in an impossible order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TablesError {
    /// A record names an agent that was never created.
    #[error("record {sequence} belongs to agent {agent}, which was never created")]
    UnknownAgent {
        /// The record.
        sequence: u64,
        /// The agent it names.
        agent: AgentNo,
    },
    /// A record refers to an object that is not stored.
    #[error("record {sequence} refers to object {id}, which is not stored")]
    UnknownObject {
        /// The record.
        sequence: u64,
        /// The object it names.
        id: ObjectId,
    },
}

/// Objects whose last reference went, with what their bytes took: garbage now.
pub type Freed = Vec<(ObjectNo, Location)>;

/// The tables of one shard.
#[derive(Debug, Default)]
pub struct Tables {
    /// By number.
    pub agents: Vec<Agent>,
    /// By name.
    pub by_name: HashMap<Box<[u8]>, AgentNo>,
    /// All objects.
    pub objects: ObjectIndex,
    /// The parts of each list object.
    pub lists: HashMap<u32, Box<[ObjectNo]>>,
    /// Keys of all agents.
    pub keys: u64,
    /// Stored bytes of all objects.
    pub live_bytes: u64,
    /// Stored bytes of objects that went.
    pub garbage_bytes: u64,
    /// While the log is replayed: objects stored ahead of the list that holds them, one reference
    /// each.
    loose: Vec<ObjectNo>,
    /// While the log is replayed: lists whose parts are not looked up yet, and where they lie.
    unread: HashMap<u32, Location>,
    /// While the log is replayed: objects whose stored bytes are known to be damaged, and where they
    /// lie. They are found by their id until the end, as later records may refer to them.
    damaged: Vec<(ObjectNo, Location)>,
    /// While the log is replayed: bytes of each segment that went.
    dead: HashMap<SegmentNo, u64>,
}

impl Tables {
    /// The agent of a name.
    #[must_use]
    pub fn agent_no(&self, name: &[u8]) -> Option<AgentNo> {
        self.by_name.get(name).copied()
    }

    /// The agent of a number that this shard gave out.
    #[must_use]
    pub fn agent(&self, no: AgentNo) -> &Agent {
        &self.agents[no.0 as usize]
    }

    /// The agent of a number that this shard gave out.
    pub fn agent_mut(&mut self, no: AgentNo) -> &mut Agent {
        &mut self.agents[no.0 as usize]
    }

    /// Adds an agent under the next number.
    pub fn add_agent(&mut self, name: &[u8], public: bool) -> AgentNo {
        let no = AgentNo(self.agents.len() as u32);
        let agent = Agent {
            name: name.into(),
            public,
            keys: WorkingSet::default(),
            view: View::default(),
            window: None,
            window_fd: None,
            lanes: 0,
        };
        self.agents.push(agent);
        self.by_name.insert(name.into(), no);
        no
    }

    /// Takes back the agent that was added last, which has no keys yet.
    pub fn remove_last_agent(&mut self) {
        let agent = self.agents.pop().expect("an agent was just added");
        self.by_name.remove(&agent.name);
    }

    /// Adds an object with one reference.
    pub fn add_object(&mut self, id: ObjectId, is_list: bool, at: Location) -> ObjectNo {
        self.live_bytes += u64::from(at.bytes);
        self.objects.insert(id, is_list, at)
    }

    /// Lets a list hold its parts: takes over one reference of each.
    pub fn add_list(&mut self, list: ObjectNo, parts: Box<[ObjectNo]>) {
        self.lists.insert(list.0, parts);
    }

    /// Lets a key name an object, of which it takes over one reference, or nothing; what was known of
    /// it before, with the reference to what it named.
    pub fn set_key(&mut self, agent: AgentNo, key: &[u8], value: Option<Value>) -> Option<Held> {
        let keys = &mut self.agent_mut(agent).keys;
        let before = match value {
            Some(value) => keys.put(key, value),
            // No tree lies below that would have to be told that the key is gone.
            None => keys.put_back(key, None),
        };
        self.count_keys(before, value.is_some());
        before
    }

    /// Takes a change of a key back: what was known of it comes back with its reference, and what it
    /// named meanwhile is returned with that one.
    pub fn put_back(&mut self, agent: AgentNo, key: &[u8], before: Option<Held>) -> Option<Held> {
        let after = self.agent_mut(agent).keys.put_back(key, before);
        self.count_keys(after, named(before).is_some());
        after
    }

    fn count_keys(&mut self, before: Option<Held>, there: bool) {
        let was_there = named(before).is_some();
        self.keys = self.keys + u64::from(there) - u64::from(was_there);
    }

    /// Gives back one reference; whatever went with it is added to `freed`.
    pub fn release(&mut self, no: ObjectNo, freed: &mut Freed) {
        let at = self.objects.get(no).at;
        if !self.objects.release(no) {
            return;
        }
        self.live_bytes -= u64::from(at.bytes);
        self.garbage_bytes += u64::from(at.bytes);
        freed.push((no, at));
        self.unread.remove(&no.0);
        if let Some(parts) = self.lists.remove(&no.0) {
            for part in parts {
                self.release(part, freed);
            }
        }
    }

    /// Bytes of memory that indexes, names and working sets take.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let sets: usize = self
            .agents
            .iter()
            .map(|agent| agent.keys.memory_bytes())
            .sum();
        let lists: usize = self.lists.values().map(|parts| parts.len() * 4 + 64).sum();
        let agents = self.agents.capacity() * (size_of::<Agent>() + 96);
        (self.objects.memory_bytes() + sets + lists + agents) as u64
    }

    /// Replays one record of the log. The last one is followed by [`Tables::finish`].
    pub fn apply(&mut self, record: &RecoveredRecord<'_>) -> Result<(), TablesError> {
        let sequence = record.sequence.0;
        match record.head {
            Head::Agent {
                agent,
                public,
                name,
            } => {
                let next = self.agents.len();
                match self.agents.get_mut(agent.0 as usize) {
                    Some(known) => known.public = public,
                    None if agent.0 as usize == next => {
                        self.add_agent(name, public);
                    }
                    None => return Err(TablesError::UnknownAgent { sequence, agent }),
                }
            }
            Head::Object { kind, id } => {
                let no = self.stored(record, id, kind)?;
                self.loose.push(no);
            }
            Head::Put {
                agent,
                key,
                kind,
                id,
                value_bytes,
            } => {
                self.known(sequence, agent)?;
                let object = self.stored(record, id, kind)?;
                let value = Value {
                    object: object.0,
                    bytes: value_bytes,
                };
                let before = self.set_key(agent, key, Some(value));
                self.drop_value(before);
            }
            Head::Delete { agent, key } => {
                self.known(sequence, agent)?;
                let before = self.set_key(agent, key, None);
                self.drop_value(before);
            }
            Head::Synced { .. } => {}
        }
        Ok(())
    }

    /// Ends the replay: looks up the parts of lists, whose bytes `read` fetches, and drops parts
    /// that no list holds. A list that can't be read is quarantined, not the end of the shard.
    pub fn finish(&mut self, mut read: impl FnMut(Location) -> Option<Vec<u8>>) {
        for (no, at) in std::mem::take(&mut self.unread) {
            let no = ObjectNo(no);
            let stored =
                read(at).filter(|stored| ObjectId::of_list(stored) == self.objects.get(no).id);
            let parts = stored.as_deref().and_then(|stored| {
                let list = ListPayload::decode(stored).ok()?;
                list.parts()
                    .map(|id| self.objects.find(&id))
                    .collect::<Option<Box<[_]>>>()
            });
            match parts {
                Some(parts) => {
                    for &part in &parts {
                        self.objects.acquire(part);
                    }
                    self.add_list(no, parts);
                }
                None => self.objects.quarantine(no),
            }
        }
        for no in std::mem::take(&mut self.loose) {
            self.bury(no);
        }
        for (no, at) in std::mem::take(&mut self.damaged) {
            // Else it went, or was stored again.
            if self.objects.get(no).at == at {
                self.objects.quarantine(no);
            }
        }
    }

    /// Bytes of each segment that the replay found to be garbage; asked once, after
    /// [`Tables::finish`].
    pub fn take_dead(&mut self) -> impl Iterator<Item = (SegmentNo, u64)> {
        std::mem::take(&mut self.dead).into_iter()
    }

    fn known(&self, sequence: u64, agent: AgentNo) -> Result<(), TablesError> {
        match self.agents.get(agent.0 as usize) {
            Some(_) => Ok(()),
            None => Err(TablesError::UnknownAgent { sequence, agent }),
        }
    }

    fn drop_value(&mut self, held: Option<Held>) {
        if let Some(value) = named(held) {
            self.bury(ObjectNo(value.object));
        }
    }

    /// Gives back a reference during the replay.
    fn bury(&mut self, no: ObjectNo) {
        let mut freed = Freed::new();
        self.release(no, &mut freed);
        for (_, at) in freed {
            *self.dead.entry(at.segment).or_default() += u64::from(at.bytes);
        }
    }

    /// The object of a replayed record, with one more reference to it.
    fn stored(
        &mut self,
        record: &RecoveredRecord<'_>,
        id: ObjectId,
        kind: ValueKind,
    ) -> Result<ObjectNo, TablesError> {
        let (sequence, payload) = (record.sequence.0, record.payload);
        let no = match self.objects.find(&id) {
            Some(no) => {
                self.objects.acquire(no);
                // Stored again: it was garbage in between, or the older bytes were damaged.
                if let Some(at) = payload {
                    let before = self.objects.relocate(no, at);
                    self.garbage_bytes += u64::from(before.bytes);
                    *self.dead.entry(before.segment).or_default() += u64::from(before.bytes);
                    if let Some(unread) = self.unread.get_mut(&no.0) {
                        *unread = at;
                    }
                }
                no
            }
            None => {
                let at = payload.ok_or(TablesError::UnknownObject { sequence, id })?;
                let no = self.add_object(id, kind == ValueKind::List, at);
                if kind == ValueKind::List {
                    self.unread.insert(no.0, at);
                }
                no
            }
        };
        if let Some(at) = payload.filter(|_| record.damaged) {
            self.damaged.push((no, at));
        }
        Ok(no)
    }
}
