//! Marking: from what must stay to everything that it needs.
//!
//! Floor 2. Begins at the roots of every agent: heads of branches with as much of their history as its
//! rule keeps, the trees that working sets and forks lie on, tags, candidates. It goes on over checkpoints and nodes,
//! one at a time, while the shard serves: a tree never changes, so what was reached stays reached. What
//! changes is where branches point; an agent that was touched meanwhile is looked at once more, and in
//! the end all of these in one turn.
//!
//! Cost of a step: a node is read from the page cache, hashed, and each of its entries (some 40) looked up
//! by its id, 10 to 20 us together. Memory: the nodes of one path with their siblings, the frontier of
//! a history, and a bit for each object.
//!
//! Invariants
//! - values that keys name, and chunks that their nodes name, hold references: they need no mark.
//! - where something that is needed can't be read, nobody knows what it needs: the collection ends.

use std::collections::{BinaryHeap, HashSet};

use crate::id::{AgentNo, ObjectId, Retention};
use crate::segment::Disk;
use crate::segment::index::{ObjectIndex, ObjectNo};
use crate::shard::base::reference;
use crate::shard::collect::reader::Reader;
use crate::shard::store::{Refused, Store};
use crate::state::checkpoint::Checkpoint;
use crate::state::tree::{EMPTY_TREE, Reference, references};

/// Agents whose roots changed that are looked at in one turn, the last one of marking.
const TOUCHED_MAX: usize = 64;
/// How often agents that are touched all the time are looked at again before that turn comes anyway.
const PASSES_MAX: u32 = 8;

/// What is reached, and not yet looked into.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// A node of a state tree.
    Node(ObjectNo),
    /// A checkpoint of an agent.
    Checkpoint {
        no: ObjectNo,
        agent: AgentNo,
        /// Its parents are needed too.
        follow: bool,
        /// The agent names it; else it is the parent of one, and perhaps another agent's.
        named: bool,
    },
}

/// A walk over as much of a history as a rule keeps, the youngest first.
#[derive(Debug)]
struct History {
    agent: AgentNo,
    rule: Retention,
    kept: u64,
    /// Not looked into yet.
    unread: Vec<ObjectNo>,
    /// By sequence.
    ahead: BinaryHeap<(u64, u32)>,
    seen: HashSet<u32>,
    /// Of a rule by age: those that are too old by their labels, with their trees. A younger one before
    /// them says that their labels are wrong.
    old: Vec<(ObjectNo, ObjectId)>,
    /// Of these, what is to be marked.
    due: Vec<(ObjectNo, ObjectId)>,
}

/// What the label of a checkpoint says of its age.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Age {
    Young,
    Old,
    /// Of a time that is still to come: its clock was wrong, or ours is.
    Unknown,
}

impl Age {
    fn of(label_ms: u64, now_ms: u64, rule: Retention) -> Self {
        match rule {
            Retention::All | Retention::Last(_) => Self::Young,
            Retention::Newer(_) if label_ms > now_ms => Self::Unknown,
            Retention::Newer(ms) if label_ms.saturating_add(ms) >= now_ms => Self::Young,
            Retention::Newer(_) => Self::Old,
        }
    }
}

/// The work list of a marking.
#[derive(Debug, Default)]
pub struct Marker {
    work: Vec<Work>,
    histories: Vec<History>,
    /// Checkpoints of others behind which the walk went on for an agent.
    adopted: HashSet<(AgentNo, ObjectNo)>,
    /// Heads of branches, and the rules by which their histories were followed.
    heads: HashSet<(AgentNo, ObjectNo, Retention)>,
    /// Agents whose roots are still to be looked at in this pass, from the last one.
    agents: Vec<AgentNo>,
    passes: u32,
    /// Milliseconds since 1970, for rules about age.
    wall_ms: u64,
}

impl Marker {
    /// Begins anew.
    pub fn begin<D: Disk>(&mut self, store: &mut Store<D>, wall_ms: u64) {
        store.tables.objects.begin_round();
        *self = Self {
            wall_ms,
            ..Self::default()
        };
        self.agents.extend(store.tables.touched_agents(true));
    }

    /// Does one step; whether there is more to do.
    ///
    /// # Errors
    /// [`Refused::Cold`]: to be asked again when the object was read. [`Refused::Corrupt`]: what is
    /// needed can't be found out.
    pub fn step<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        reader: &mut Reader,
    ) -> Result<bool, Refused> {
        if !self.histories.is_empty() {
            self.walk(store, reader)?;
        } else if !self.work.is_empty() {
            self.look_into(store, reader)?;
        } else if let Some(&agent) = self.agents.last() {
            self.agents.pop();
            self.push_roots(store, agent)?;
        } else {
            return self.next_pass(store);
        }
        Ok(true)
    }

    /// Takes agents up again that were touched since they were looked at; whether there is more to do.
    /// Where not, nothing can change before the caller acts on it.
    fn next_pass<D: Disk>(&mut self, store: &mut Store<D>) -> Result<bool, Refused> {
        self.agents.extend(store.tables.touched_agents(false));
        self.passes += 1;
        if self.agents.len() > TOUCHED_MAX && self.passes < PASSES_MAX {
            return Ok(true);
        }
        while let Some(agent) = self.agents.pop() {
            self.push_roots(store, agent)?;
        }
        // What they point at since then was mostly reached before.
        Ok(!self.work.is_empty() || !self.histories.is_empty())
    }

    /// Reaches everything that an agent names.
    fn push_roots<D: Disk>(&mut self, store: &mut Store<D>, agent: AgentNo) -> Result<(), Refused> {
        if !store.tables.has_agent(agent) {
            return Ok(());
        }
        let known = store.tables.agent(agent);
        let mut heads = Vec::new();
        let mut trees = Vec::new();
        let mut states = Vec::new();
        for branch in known.all_branches() {
            trees.push(branch.base);
            if let Some(head) = branch.head {
                heads.push((head, branch.retention));
            }
        }
        states.extend(known.tags.values().map(|tag| tag.target));
        states.extend(known.sets.roots());
        states.extend(&known.adopted);
        let hot = known.hot;
        let objects = &mut store.tables.objects;
        // A list that is damaged costs time, and nothing else.
        if let Some(no) = hot.and_then(|hot| objects.find(&hot)) {
            objects.mark(no);
        }
        for tree in trees.iter().filter(|tree| **tree != EMPTY_TREE) {
            self.reach_node(store, tree)?;
        }
        for state in states {
            self.reach_checkpoint(store, agent, &state, false)?;
        }
        for (head, rule) in heads {
            match rule {
                Retention::All => self.reach_checkpoint(store, agent, &head, true)?,
                Retention::Last(0 | 1) => self.reach_checkpoint(store, agent, &head, false)?,
                rule => self.begin_history(store, agent, &head, rule)?,
            }
        }
        Ok(())
    }

    fn reach_node<D: Disk>(&mut self, store: &mut Store<D>, id: &ObjectId) -> Result<(), Refused> {
        let objects = &mut store.tables.objects;
        let no = objects.find(id).ok_or(Refused::Corrupt)?;
        if objects.mark(no) {
            self.work.push(Work::Node(no));
        }
        Ok(())
    }

    /// Reaches a checkpoint that an agent names, which has to be there.
    fn reach_checkpoint<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        agent: AgentNo,
        id: &ObjectId,
        follow: bool,
    ) -> Result<(), Refused> {
        let objects = &mut store.tables.objects;
        let no = objects.find(id).ok_or(Refused::Corrupt)?;
        // Another agent may have followed it as far as it may read.
        let first = follow && self.heads.insert((agent, no, Retention::All));
        if objects.mark(no) || first {
            self.work.push(Work::Checkpoint {
                no,
                agent,
                follow,
                named: true,
            });
        }
        Ok(())
    }

    /// Looks into the checkpoint or node that was reached last.
    fn look_into<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        reader: &mut Reader,
    ) -> Result<(), Refused> {
        let Some(work) = self.work.last() else {
            return Ok(());
        };
        match *work {
            Work::Node(no) => {
                let bytes = reader.bytes(store, no)?;
                self.work.pop();
                self.reach_entries(store, bytes)
            }
            Work::Checkpoint {
                no,
                agent,
                follow,
                named,
            } => {
                let bytes = reader.bytes(store, no)?;
                self.work.pop();
                let checkpoint = Checkpoint::decode(bytes).map_err(|_| Refused::Corrupt)?;
                let id = store.tables.objects.get(no).id;
                if !store.tables.has_agent(agent) {
                    // It counts as reached, which others that name it rely on.
                    return match checkpoint.tree {
                        tree if named && tree != EMPTY_TREE => self.reach_node(store, &tree),
                        _ => Ok(()),
                    };
                }
                let known = store.tables.agent(agent);
                if !named && !known.may_read(&checkpoint, &id) {
                    return Ok(());
                }
                // What an agent adopted has its own history where it comes from: this one ends sooner.
                let own = *checkpoint.agent == *known.name;
                let objects = &mut store.tables.objects;
                objects.mark(no);
                let follow = follow
                    && match own {
                        true => objects.follow(no),
                        false => self.adopted.insert((agent, no)),
                    };
                for parent in checkpoint.parents.iter().filter(|_| follow) {
                    if let Some(no) = find_parent(objects, &parent)? {
                        self.work.push(Work::Checkpoint {
                            no,
                            agent,
                            follow: true,
                            named: false,
                        });
                    }
                }
                match checkpoint.tree {
                    EMPTY_TREE => Ok(()),
                    tree => self.reach_node(store, &tree),
                }
            }
        }
    }

    fn reach_entries<D: Disk>(&mut self, store: &mut Store<D>, node: &[u8]) -> Result<(), Refused> {
        let objects = &mut store.tables.objects;
        let mut missing = false;
        let read = references(node, |entry| {
            let (id, is_node) = match entry {
                Reference::Node(id) => (id, true),
                Reference::Value(value) => (reference(&value).0, false),
            };
            let Some(no) = objects.find(&id) else {
                // A value that is damaged names nothing that could be lost with it.
                missing |= is_node || !objects.is_damaged(&id);
                return;
            };
            // One that was stored again in place of a damaged one is not kept yet.
            objects.keep(no);
            if objects.mark(no) && is_node {
                self.work.push(Work::Node(no));
            }
        });
        match read {
            Ok(()) if !missing => Ok(()),
            _ => Err(Refused::Corrupt),
        }
    }

    fn begin_history<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        agent: AgentNo,
        head: &ObjectId,
        rule: Retention,
    ) -> Result<(), Refused> {
        // The head itself stays whatever the rule says.
        self.reach_checkpoint(store, agent, head, false)?;
        let no = store.tables.objects.find(head).ok_or(Refused::Corrupt)?;
        // An agent that is touched again has mostly the same head: else there would be no end.
        if !self.heads.insert((agent, no, rule)) {
            return Ok(());
        }
        self.histories.push(History {
            agent,
            rule,
            kept: 0,
            unread: vec![no],
            ahead: BinaryHeap::new(),
            seen: HashSet::from([no.0]),
            old: Vec::new(),
            due: Vec::new(),
        });
        Ok(())
    }

    /// Takes a step of the walk over a history.
    fn walk<D: Disk>(&mut self, store: &mut Store<D>, reader: &mut Reader) -> Result<(), Refused> {
        let Some(history) = self.histories.last_mut() else {
            return Ok(());
        };
        if !store.tables.has_agent(history.agent) {
            self.histories.pop();
            return Ok(());
        }
        if let Some((no, tree)) = history.due.pop() {
            return self.reach_state(store, no, tree);
        }
        if let Some(&no) = history.unread.last() {
            let bytes = reader.bytes(store, no)?;
            history.unread.pop();
            let checkpoint = Checkpoint::decode(bytes).map_err(|_| Refused::Corrupt)?;
            let id = store.tables.objects.get(no).id;
            let mine = store.tables.agent(history.agent).may_read(&checkpoint, &id);
            if mine || history.kept == 0 {
                history.ahead.push((checkpoint.sequence, no.0));
            }
            return Ok(());
        }
        let more = match history.rule {
            Retention::Last(most) => history.kept < most,
            _ => true,
        };
        let next = history.ahead.peek().filter(|_| more);
        let Some(&(_, next)) = next else {
            self.histories.pop();
            return Ok(());
        };
        let no = ObjectNo(next);
        let bytes = reader.bytes(store, no)?;
        history.ahead.pop();
        history.kept += 1;
        let checkpoint = Checkpoint::decode(bytes).map_err(|_| Refused::Corrupt)?;
        for parent in checkpoint.parents.iter() {
            let parent = find_parent(&store.tables.objects, &parent)?;
            if let Some(parent) = parent.filter(|parent| history.seen.insert(parent.0)) {
                history.unread.push(parent);
            }
        }
        let tree = checkpoint.tree;
        match Age::of(checkpoint.wall_ms, self.wall_ms, history.rule) {
            // The head stays, whatever its age.
            _ if history.kept == 1 => self.reach_state(store, no, tree),
            Age::Unknown if history.old.is_empty() => self.reach_state(store, no, tree),
            Age::Young => {
                history.due.append(&mut history.old);
                self.reach_state(store, no, tree)
            }
            Age::Old | Age::Unknown => {
                history.old.push((no, tree));
                Ok(())
            }
        }
    }

    /// A checkpoint is needed, with the state that it names.
    fn reach_state<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        no: ObjectNo,
        tree: ObjectId,
    ) -> Result<(), Refused> {
        match store.tables.objects.mark(no) && tree != EMPTY_TREE {
            true => self.reach_node(store, &tree),
            false => Ok(()),
        }
    }
}

/// A parent, if it was not pruned.
fn find_parent(objects: &ObjectIndex, id: &ObjectId) -> Result<Option<ObjectNo>, Refused> {
    match objects.find(id) {
        // What it names in turn can't be known.
        None if objects.is_damaged(id) => Err(Refused::Corrupt),
        found => Ok(found),
    }
}
