//! Marking: from what must stay to everything that it needs.
//!
//! Floor 2. Begins at the roots of every agent: heads of branches with as much of their history as its
//! rule keeps, the trees that working sets and forks lie on, tags, candidates. It goes on over checkpoints and nodes,
//! one at a time, while the shard serves: a tree never changes, so what was reached stays reached. What
//! changes is where branches point; an agent that was touched meanwhile is looked at once more, and in
//! the end the last of these in one turn. What a checkpoint adds to a state that was reached counts as reached
//! at once: whoever commits without end adds nothing to the work. Where agents are touched faster than that, the
//! last looks come at the ends of turns, each at no more than the turn touched and a few.
//!
//! Cost of a step: a node is read from the page cache, hashed, and each of its entries (some 40) looked up
//! by its id, 10 us together; or [`ROOTS_PER_STEP`] roots are looked up. An agent is looked at as a whole: one
//! with a thousand branches makes a long step. Memory: the nodes of one path with their siblings, the frontier of
//! a history, two bytes for each object.
//!
//! Invariants
//! - values that keys name, and chunks that their nodes name, hold references: they need no mark.
//! - where something that is needed can't be read, nobody knows what it needs: the collection ends.

use std::collections::{BinaryHeap, HashSet};

use crate::id::{AgentNo, ObjectId, Retention};
use crate::segment::Disk;
use crate::segment::index::{ObjectIndex, ObjectNo};
use crate::shard::agent::BranchRef;
use crate::shard::base::reference;
use crate::shard::collect::reader::Reader;
use crate::shard::collect::spend;
use crate::shard::store::{Refused, Store};
use crate::state::checkpoint::Checkpoint;
use crate::state::tree::{EMPTY_TREE, Reference, references};

/// What agents name that is looked up in one step, but for the agent that passes this.
const ROOTS_PER_STEP: usize = 64;
/// Agents beside those that the turn touched which are looked at in one step, once there is one each turn.
const AGENTS_PER_LATE_STEP: usize = 16;
/// Entries of a node that are looked up in one step.
const ENTRIES_PER_STEP: usize = 64;
/// How often agents that are touched all the time are looked at again before that is done at the end of
/// each turn.
const PASSES_MAX: u32 = 4;

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

/// Everything that an agent names, but its keys.
#[derive(Debug, Default)]
struct Roots {
    heads: Vec<(ObjectId, Retention)>,
    trees: Vec<ObjectId>,
    states: Vec<ObjectId>,
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
    /// Numbers of agents that are still to be looked at for the first time.
    first: std::ops::Range<u32>,
    /// Agents whose roots are still to be looked at in this pass, from the last one.
    agents: Vec<AgentNo>,
    passes: u32,
    /// Of the node that the reader holds: entries that were looked up, while some are left.
    entries: Option<usize>,
    /// What one agent names; the memory is kept for the next.
    roots: Roots,
    /// Milliseconds since 1970, for rules about age.
    wall_ms: u64,
}

impl Marker {
    /// Begins anew.
    pub fn begin<D: Disk>(&mut self, store: &mut Store<D>, wall_ms: u64) {
        store.tables.objects.begin_round();
        store.tables.begin_looks();
        // Mostly one branch each: a table that grows is a long step.
        let heads = 2 * store.tables.agent_count() as usize;
        *self = Self {
            wall_ms,
            first: 0..store.tables.next_agent().0,
            heads: HashSet::with_capacity(heads),
            ..Self::default()
        };
    }

    /// Whether agents are touched as fast as they are looked at: the next step is due with the end of the turn.
    pub fn is_late(&self) -> bool {
        self.passes > PASSES_MAX
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
        if self.entries.is_some() {
            self.reach_entries(store, reader.last())?;
        } else if !self.histories.is_empty() {
            self.walk(store, reader)?;
        } else if !self.work.is_empty() {
            self.look_into(store, reader)?;
        } else if self.first.is_empty() && (self.agents.is_empty() || self.is_late()) {
            return self.look_again(store);
        } else {
            self.look_at_some(store, 0)?;
        }
        Ok(true)
    }

    /// Looks at agents of this pass: at so many at least, and until there was enough to do.
    fn look_at_some<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        at_least: usize,
    ) -> Result<(), Refused> {
        let (mut roots, mut looked) = (0, 0);
        while roots < ROOTS_PER_STEP || looked < at_least {
            let Some(agent) = self.first.next().map(AgentNo).or_else(|| self.agents.pop()) else {
                break;
            };
            roots += 1 + self.push_roots(store, agent)?;
            looked += 1;
        }
        spend(roots);
        Ok(())
    }

    /// Takes agents up again that were touched since they were looked at; whether there is more to do.
    /// Where not, nothing can change before the caller acts on it.
    fn look_again<D: Disk>(&mut self, store: &mut Store<D>) -> Result<bool, Refused> {
        let before = self.agents.len();
        store.tables.take_touched(&mut self.agents);
        let touched = self.agents.len() - before;
        // Late is only who is called at the end of each turn: at no more than that and a few, it would never end.
        let at_least = match self.is_late() {
            true => touched + AGENTS_PER_LATE_STEP,
            false => 0,
        };
        self.passes += u32::from(before == 0);
        self.look_at_some(store, at_least)?;
        // What they point at since then was mostly reached before.
        Ok(!self.agents.is_empty() || !self.work.is_empty() || !self.histories.is_empty())
    }

    /// Lets what a checkpoint adds to a branch count as reached, if all that it is made of does, or will: its
    /// nodes name each other, values of the changes, and what the tree before names. For a checkpoint that
    /// was flushed and follows the head alone, before the branch has it.
    pub fn grow<D: Disk>(&mut self, store: &mut Store<D>, at: BranchRef, made: &ObjectId) {
        let objects = &store.tables.objects;
        let is_reached = |id: &ObjectId| objects.find(id).filter(|&no| objects.is_marked(no));
        let branch = store.tables.branch(at);
        if branch.base != EMPTY_TREE && is_reached(&branch.base).is_none() {
            return;
        }
        let rule = branch.retention;
        if let Some(head) = branch.head {
            let followed = |no| match rule {
                Retention::Last(0 | 1) => true,
                rule => self.heads.contains(&(at.agent, no, rule)),
            };
            if !is_reached(&head).is_some_and(followed) {
                return;
            }
        }
        if let Some(made) = objects.find(made) {
            self.heads.insert((at.agent, made, rule));
            store.mark_commit(at, made);
        }
    }

    /// Reaches everything that an agent names; how much that is.
    fn push_roots<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        agent: AgentNo,
    ) -> Result<usize, Refused> {
        if !store.tables.has_agent(agent) {
            return Ok(0);
        }
        let known = store.tables.agent(agent);
        let mut roots = std::mem::take(&mut self.roots);
        roots.clear();
        for branch in known.all_branches() {
            if branch.base != EMPTY_TREE {
                roots.trees.push(branch.base);
            }
            if let Some(head) = branch.head {
                roots.heads.push((head, branch.retention));
            }
        }
        let tagged = known.tags.values().map(|tag| tag.target);
        roots.states.extend(tagged);
        roots.states.extend(known.sets.roots());
        roots.states.extend(&known.adopted);
        let hot = known.hot;
        let objects = &mut store.tables.objects;
        // A list that is damaged costs time, and nothing else.
        if let Some(no) = hot.and_then(|hot| objects.find(&hot)) {
            objects.mark(no);
        }
        let reached = self.reach_roots(store, agent, &roots);
        self.roots = roots;
        reached
    }

    fn reach_roots<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        agent: AgentNo,
        roots: &Roots,
    ) -> Result<usize, Refused> {
        for tree in &roots.trees {
            self.reach_node(store, tree)?;
        }
        for state in &roots.states {
            self.reach_checkpoint(store, agent, state, false)?;
        }
        for (head, rule) in &roots.heads {
            match *rule {
                Retention::All => self.reach_checkpoint(store, agent, head, true)?,
                Retention::Last(0 | 1) => self.reach_checkpoint(store, agent, head, false)?,
                rule => self.begin_history(store, agent, head, rule)?,
            }
        }
        Ok(roots.trees.len() + roots.states.len() + roots.heads.len())
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
                self.entries = Some(0);
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

    /// Reaches what some more entries of a node name.
    fn reach_entries<D: Disk>(&mut self, store: &mut Store<D>, node: &[u8]) -> Result<(), Refused> {
        let objects = &mut store.tables.objects;
        let from = self.entries.take().unwrap_or_default();
        let (mut missing, mut entries) = (false, 0);
        let read = references(node, |entry| {
            entries += 1;
            if entries <= from || entries > from + ENTRIES_PER_STEP {
                return;
            }
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
        spend((entries - from).min(ENTRIES_PER_STEP));
        if entries > from + ENTRIES_PER_STEP {
            self.entries = Some(from + ENTRIES_PER_STEP);
        }
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

impl Roots {
    fn clear(&mut self) {
        self.heads.clear();
        self.trees.clear();
        self.states.clear();
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
