//! What a shard knows: its agents, their keys, the objects these name.
//!
//! Floor 2. The tables are rebuilt from the log at start by [`Tables::apply`], record by record in
//! the order of the log, and changed in the same way by every write afterwards.
//!
//! Invariants
//! - an object's references are: keys that name it + nodes over chunks that hold it + uploads that hold it.
//! - an agent is found by its number in one step. The number of one that is gone stays empty and is not
//!   given out again in this run; after a start it may be, once the log knows nothing of it any more.

use std::collections::HashMap;

use crate::id::{AgentNo, BranchNo, ObjectId, SegmentNo};
use crate::segment::index::{ObjectIndex, ObjectNo};
use crate::segment::{Head, Location, ObjectKind};
use crate::shard::agent::{Agent, Branch, BranchRef, named};
use crate::state::tree::{EMPTY_TREE, LEVEL_MAX};
use crate::state::{Held, Value};

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
    /// A record is about a branch that was never created, or is gone.
    #[error("record {sequence} is about branch {branch} of agent {agent}, which does not exist")]
    UnknownBranch {
        /// The record.
        sequence: u64,
        /// The agent.
        agent: AgentNo,
        /// The branch.
        branch: BranchNo,
    },
    /// A name that is no text.
    #[error("record {sequence} has a name that is no text")]
    BadName {
        /// The record.
        sequence: u64,
    },
    /// A record of a set of candidates that no earlier one explains, or that says what can't be.
    #[error("record {sequence} contradicts what is known of the sets of agent {agent}")]
    BadSet {
        /// The record.
        sequence: u64,
        /// The agent.
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
    /// Something refers to an object that lies in a segment of which nothing is needed.
    #[error("object {id} is needed, but its segment {segment} was dropped")]
    DroppedObject {
        /// The segment.
        segment: SegmentNo,
        /// The object.
        id: ObjectId,
    },
}

/// Objects whose last reference went, with what their bytes took: garbage now.
pub type Freed = Vec<(ObjectNo, Location)>;

/// What a node over chunks holds: a chunk, or a node of the level below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Child {
    /// The object.
    pub object: ObjectNo,
    /// Where it ends, in bytes of the value from where the node begins.
    pub end: u32,
}

/// A place in a chunk of a large value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// The chunk.
    pub object: ObjectNo,
    /// The place in it, in bytes.
    pub from: u32,
    /// Bytes of it from there on.
    pub left: u32,
}

/// The tables of one shard.
#[derive(Debug, Default)]
pub struct Tables {
    /// By number; none where one is gone.
    pub(super) agents: Vec<Option<Box<Agent>>>,
    /// Agents that are there.
    agent_count: u32,
    /// Agents touched since a marking looked at them last, once each; while none is under way, nothing.
    touched: Vec<AgentNo>,
    /// Counts how often it took them up; 0 while none is under way.
    look: u32,
    last_look: u32,
    /// By name.
    pub by_name: HashMap<Box<[u8]>, AgentNo>,
    /// All objects.
    pub objects: ObjectIndex,
    /// What each node over chunks holds, in order, a reference each.
    pub chunks: HashMap<u32, Box<[Child]>>,
    /// Keys of all agents.
    pub keys: u64,
    /// Stored bytes of all objects.
    pub live_bytes: u64,
    /// Stored bytes of objects that went.
    pub garbage_bytes: u64,
    /// Checkpoints whose bytes lie in a segment and count no more, and that segment: a start would find
    /// them again, without what else they need.
    pub pruned: Vec<(SegmentNo, ObjectId)>,
    /// What is left to be given back while one object takes others with it; the memory is kept.
    below: Vec<ObjectNo>,
    /// While the log is replayed: objects stored ahead of what holds them, one reference each.
    pub(super) loose: Vec<ObjectNo>,
    /// While the log is replayed: nodes over chunks that were not read yet, and where they lie.
    pub(super) unread: HashMap<u32, Location>,
    /// While the log is replayed: objects whose stored bytes are known to be damaged, and where they
    /// lie. They are found by their id until the end, as later records may refer to them.
    pub(super) damaged: Vec<(ObjectNo, Location)>,
    /// While the log is replayed: objects that records name, and that were not stored yet, with the first
    /// record that does.
    pub(super) missing: HashMap<u32, u64>,
    /// While the log is replayed: what went in each segment would cost so much to be moved.
    pub(super) dead: HashMap<SegmentNo, u64>,
}

impl Tables {
    /// The agent of a name.
    #[must_use]
    pub fn agent_no(&self, name: &[u8]) -> Option<AgentNo> {
        self.by_name.get(name).copied()
    }

    /// The agent of a number that this shard gave out.
    #[must_use]
    ///
    /// # Panics
    /// Where it is gone.
    #[inline]
    pub fn agent(&self, no: AgentNo) -> &Agent {
        self.agents[no.0 as usize]
            .as_deref()
            .expect("an agent that is there")
    }

    /// The agent of a number that this shard gave out.
    ///
    /// # Panics
    /// Where it is gone.
    #[inline]
    pub fn agent_mut(&mut self, no: AgentNo) -> &mut Agent {
        let agent = self.agents[no.0 as usize]
            .as_deref_mut()
            .expect("an agent that is there");
        if agent.touched != self.look {
            agent.touched = self.look;
            if self.look > 0 {
                self.touched.push(no);
            }
        }
        agent
    }

    /// From now on agents that are touched are listed.
    pub(super) fn begin_looks(&mut self) {
        self.touched.clear();
        self.next_look();
    }

    /// Adds the agents to `out` that were touched since this was asked last, or since it began.
    pub(super) fn take_touched(&mut self, out: &mut Vec<AgentNo>) {
        out.append(&mut self.touched);
        self.next_look();
    }

    /// Nobody asks for what is touched any more.
    pub(super) fn end_looks(&mut self) {
        self.touched.clear();
        self.look = 0;
    }

    fn next_look(&mut self) {
        // Agents have old numbers: 0 would be taken for one that is listed.
        self.last_look = self.last_look.wrapping_add(1).max(1);
        self.look = self.last_look;
    }

    /// Whether there is an agent of this number.
    #[must_use]
    pub fn has_agent(&self, no: AgentNo) -> bool {
        matches!(self.agents.get(no.0 as usize), Some(Some(_)))
    }

    /// Agents that are there.
    #[must_use]
    pub fn agent_count(&self) -> u32 {
        self.agent_count
    }

    /// The number that the next agent gets. All that were ever given out are below it.
    #[must_use]
    pub fn next_agent(&self) -> AgentNo {
        AgentNo(self.agents.len() as u32)
    }

    /// All agents that are there, in order of their numbers.
    pub fn all_agents(&self) -> impl Iterator<Item = (AgentNo, &Agent)> {
        let numbered = (0..).map(AgentNo).zip(&self.agents);
        numbered.filter_map(|(no, agent)| Some((no, agent.as_deref()?)))
    }

    /// Adds an agent under the next number.
    pub fn add_agent(&mut self, name: &[u8], public: bool) -> AgentNo {
        let no = self.next_agent();
        self.insert_agent(no, name, public);
        no
    }

    /// Adds an agent under a number that none has, or none any more.
    pub(super) fn insert_agent(&mut self, no: AgentNo, name: &[u8], public: bool) -> &mut Agent {
        debug_assert!(!self.has_agent(no));
        let at = no.0 as usize;
        if self.agents.len() <= at {
            self.agents.resize_with(at + 1, || None);
        }
        self.agent_count += 1;
        self.by_name.insert(name.into(), no);
        self.agents[at] = Some(Box::new(Agent::new(name, public)));
        self.agent_mut(no)
    }

    /// Takes an agent out, whose number stays empty; what its branches knew is to be given up.
    pub fn remove_agent(&mut self, no: AgentNo) -> Option<Box<Agent>> {
        let agent = self.agents.get_mut(no.0 as usize)?.take()?;
        self.agent_count -= 1;
        // Another may have the name by now.
        if self.by_name.get(&agent.name) == Some(&no) {
            self.by_name.remove(&agent.name);
        }
        Some(agent)
    }

    /// Takes back the agent that was added last, which has no keys yet.
    pub fn remove_last_agent(&mut self) {
        let last = AgentNo(self.agents.len() as u32 - 1);
        self.remove_agent(last).expect("an agent was just added");
        self.agents.pop();
    }

    /// Adds an object with one reference.
    pub fn add_object(&mut self, id: ObjectId, kind: ObjectKind, at: Location) -> ObjectNo {
        self.live_bytes += u64::from(at.bytes);
        self.objects.insert(id, kind, at)
    }

    /// Adds an object that nothing refers to but, perhaps, a tree.
    pub fn add_kept(&mut self, id: ObjectId, kind: ObjectKind, at: Location) -> ObjectNo {
        let no = self.add_object(id, kind, at);
        self.objects.keep(no);
        self.objects.release(no);
        no
    }

    /// Takes back what [`Tables::add_kept`] added.
    pub fn drop_kept(&mut self, no: ObjectNo, freed: &mut Freed) {
        self.objects.acquire(no);
        self.objects.unkeep(no);
        self.release(no, freed);
    }

    /// Notes that an object's bytes are left behind in a segment.
    pub(super) fn note_left(&mut self, kind: ObjectKind, id: ObjectId, at: Location) {
        if kind == ObjectKind::Checkpoint {
            self.pruned.push((at.segment, id));
        }
    }

    /// Forgets what was left behind in segments that are gone, in order: looks at `most` of what is known of
    /// all, from `next` on; from where to go on, if there is more. What lies behind changes its order.
    pub(super) fn forget_left(
        &mut self,
        gone: &[SegmentNo],
        mut next: usize,
        most: usize,
    ) -> Option<usize> {
        for _ in 0..most {
            let Some((segment, _)) = self.pruned.get(next) else {
                self.pruned.shrink_to(2 * self.pruned.len());
                return None;
            };
            if gone.binary_search(segment).is_ok() {
                self.pruned.swap_remove(next);
            } else {
                next += 1;
            }
        }
        Some(next)
    }

    /// The chunk of a large value, `bytes` long, that has byte `at`. `None` where what leads there is
    /// damaged: recovery found no such node, or lengths don't add up.
    #[must_use]
    pub fn chunk_at(&self, root: ObjectNo, bytes: u32, at: u32) -> Option<Chunk> {
        let (mut node, mut bytes, mut at) = (root, bytes, at);
        for _ in 0..=LEVEL_MAX {
            let children = self.chunks.get(&node.0)?;
            if children.last()?.end != bytes {
                return None;
            }
            let index = children.partition_point(|child| child.end <= at);
            let child = children.get(index)?;
            let start = index.checked_sub(1).map_or(0, |last| children[last].end);
            let (from, span) = (at - start, child.end - start);
            let object = self.objects.get(child.object);
            if object.kind == ObjectKind::Blob {
                return (object.at.bytes == span).then_some(Chunk {
                    object: child.object,
                    from,
                    left: span - from,
                });
            }
            (node, bytes, at) = (child.object, span, from);
        }
        None
    }

    /// The branch of a reference that was checked.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    #[inline]
    pub fn branch(&self, at: BranchRef) -> &Branch {
        let branch = self.agent(at.agent).branch(at.branch);
        branch.expect("a branch that was checked")
    }

    /// The branch of a reference that was checked.
    ///
    /// # Panics
    /// Where there is none.
    #[inline]
    pub fn branch_mut(&mut self, at: BranchRef) -> &mut Branch {
        let branch = self.agent_mut(at.agent).branch_mut(at.branch);
        branch.expect("a branch that was checked")
    }

    /// Lets a key name an object, of which it takes over one reference, or nothing; what was known of
    /// it before, with the reference to what it named.
    pub fn set_key(&mut self, at: BranchRef, key: &[u8], value: Option<Value>) -> Option<Held> {
        let branch = self.branch_mut(at);
        let before = match value {
            Some(value) => branch.keys.put(key, value),
            // Where no tree lies below, nothing has to be told that the key is gone.
            None if branch.base == EMPTY_TREE => branch.keys.put_back(key, None),
            None => branch.keys.remove(key),
        };
        self.count_keys(before, value.is_some());
        before
    }

    /// Takes a change of a key back: what was known of it comes back with its reference, and what it
    /// named meanwhile is returned with that one.
    pub fn put_back(&mut self, at: BranchRef, key: &[u8], before: Option<Held>) -> Option<Held> {
        let after = self.branch_mut(at).keys.put_back(key, before);
        self.count_keys(after, named(before).is_some());
        after
    }

    /// The record that says of a branch what is known of a key.
    #[must_use]
    pub fn change_head<'k>(&self, at: BranchRef, key: &'k [u8], held: Held) -> Head<'k> {
        let (agent, branch) = (at.agent, at.branch);
        let Some(value) = held.value else {
            return Head::Delete { agent, branch, key };
        };
        let object = self.objects.get(ObjectNo(value.object));
        Head::Put {
            agent,
            branch,
            key,
            kind: object.kind,
            id: object.id,
            value_bytes: value.bytes,
        }
    }

    fn count_keys(&mut self, before: Option<Held>, there: bool) {
        let was_there = named(before).is_some();
        self.keys = self.keys + u64::from(there) - u64::from(was_there);
    }

    /// Gives back one reference; whatever went with it is added to `freed`.
    pub fn release(&mut self, no: ObjectNo, freed: &mut Freed) {
        let (mut next, mut below) = (Some(no), std::mem::take(&mut self.below));
        while let Some(no) = next {
            let object = self.objects.get(no);
            let (at, kind) = (object.at, object.kind);
            if self.objects.release(no) {
                self.live_bytes -= u64::from(at.bytes);
                self.garbage_bytes += u64::from(at.bytes);
                freed.push((no, at));
                if kind == ObjectKind::Chunks {
                    self.unread.remove(&no.0);
                    let children = self.chunks.remove(&no.0).unwrap_or_default();
                    below.extend(children.iter().map(|child| child.object));
                }
            }
            next = below.pop();
        }
        self.below = below;
    }

    /// Bytes of memory that indexes, names and working sets take.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let sets = self.all_agents().map(|(_, agent)| agent.memory_bytes());
        let sets: usize = sets.sum();
        let chunks = self.chunks.values();
        let chunks: usize = chunks.map(|all| size_of_val(&**all) + 64).sum();
        let agents = self.agents.capacity() * size_of::<usize>()
            + self.agent_count as usize * (size_of::<Agent>() + 96);
        let pruned = self.pruned.capacity() * size_of::<(SegmentNo, ObjectId)>();
        (self.objects.memory_bytes() + sets + chunks + agents + pruned) as u64
    }
}
