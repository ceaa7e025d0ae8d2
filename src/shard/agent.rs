//! One agent: its branches, its tags, its sets of candidates, its window.
//!
//! Floor 2. Plain tables; what changes them in step with the log is `store` and `commit`.
//!
//! Invariants
//! - branch 0 is `main` and is never deleted; numbers of branches are never reused. Forks have numbers
//!   of their own, from [`FORK_NUMBERS`] on, which mean nothing after the run.
//! - no two branches have one name, and no two states of one agent ever had one view.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::cache::WindowWriter;
use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SetNo, View};
use crate::shard::collect::Restated;
use crate::shard::sets::Sets;
use crate::state::checkpoint::Checkpoint;
use crate::state::tree::EMPTY_TREE;
use crate::state::{Held, Value, WorkingSet};

/// The branch that every agent has.
pub const MAIN: BranchNo = BranchNo(0);
/// Its name.
pub const MAIN_NAME: &str = "main";
/// Numbers of forks begin here.
pub const FORK_NUMBERS: u32 = 1 << 31;

/// A branch of an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct BranchRef {
    /// The agent.
    pub agent: AgentNo,
    /// The branch.
    pub branch: BranchNo,
}

impl BranchRef {
    /// Whether it is a fork, of which the log knows values and nothing else.
    #[must_use]
    #[inline]
    pub fn is_fork(self) -> bool {
        is_fork(self.branch)
    }
}

/// Whether a number is that of a fork.
#[must_use]
#[inline]
pub const fn is_fork(branch: BranchNo) -> bool {
    branch.0 >= FORK_NUMBERS
}

/// One branch, or one fork.
#[derive(Debug)]
pub struct Branch {
    /// Its name; empty for a fork.
    pub name: Box<str>,
    /// The checkpoint that it points at.
    pub head: Option<ObjectId>,
    /// The sequence of that, where it is known without a read.
    pub head_sequence: Option<u64>,
    /// The tree that its working set lies on.
    pub base: ObjectId,
    /// What changed since, and what was read.
    pub keys: WorkingSet,
    /// How much of its history a collection keeps.
    pub retention: Retention,
    /// How its state is told from others in the window.
    pub view: View,
    /// Lanes that are on it.
    pub lanes: u32,
    /// The last saying again that it took part in.
    pub restated: Restated,
    /// Of a fork that was opened on a candidate: the set.
    pub set: Option<SetNo>,
}

/// A name for a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// The checkpoint.
    pub target: ObjectId,
    /// Other agents may read it, by this name.
    pub public: bool,
}

/// What a branch holds at some time, without its name: equal only where that is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edition {
    base: ObjectId,
    view: View,
    edits: u64,
}

impl Branch {
    /// What it holds now.
    #[must_use]
    pub fn edition(&self) -> Edition {
        Edition {
            base: self.base,
            view: self.view,
            edits: self.keys.edits(),
        }
    }
}

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// Its name.
    pub name: Box<[u8]>,
    /// Whether other agents may read its values.
    pub public: bool,
    /// How often it moved from one shard to another.
    pub moves: u32,
    /// Its tags by name.
    pub tags: BTreeMap<Box<str>, Tag>,
    /// Checkpoints that it did not make, but may read and follow.
    pub adopted: BTreeSet<ObjectId>,
    /// While it is suspended: the kept blob that lists its hot keys.
    pub hot: Option<ObjectId>,
    /// The last look of a collection that it was touched behind.
    pub touched: u32,
    /// The last saying again that it took part in.
    pub restated: Restated,
    /// Its sets of candidates.
    pub sets: Sets,
    /// Its L1 window, while a lane is attached.
    pub window: Option<WindowWriter>,
    /// The descriptor from which processes map the window.
    pub window_fd: Option<Arc<OwnedFd>>,
    /// Lanes attached.
    pub lanes: u32,
    branches: Vec<Option<Box<Branch>>>,
    forks: HashMap<u32, Box<Branch>>,
    by_name: BTreeMap<Box<str>, BranchNo>,
    next_fork: u32,
    next_view: u32,
}

impl Agent {
    /// An agent with an empty main branch.
    #[must_use]
    pub fn new(name: &[u8], public: bool) -> Self {
        let mut agent = Self {
            name: name.into(),
            public,
            moves: 0,
            tags: BTreeMap::new(),
            adopted: BTreeSet::new(),
            hot: None,
            touched: 0,
            restated: 0,
            sets: Sets::default(),
            window: None,
            window_fd: None,
            lanes: 0,
            branches: Vec::new(),
            forks: HashMap::new(),
            by_name: BTreeMap::new(),
            next_fork: FORK_NUMBERS,
            next_view: 0,
        };
        agent.set_branch(MAIN, MAIN_NAME, None, EMPTY_TREE);
        agent
    }

    /// A branch or fork, if there is one of this number.
    #[must_use]
    #[inline]
    pub fn branch(&self, no: BranchNo) -> Option<&Branch> {
        match self.branches.get(no.0 as usize) {
            Some(branch) => branch.as_deref(),
            None => self.forks.get(&no.0).map(|fork| &**fork),
        }
    }

    /// A branch or fork, if there is one of this number.
    #[inline]
    pub fn branch_mut(&mut self, no: BranchNo) -> Option<&mut Branch> {
        match self.branches.get_mut(no.0 as usize) {
            Some(branch) => branch.as_deref_mut(),
            None => self.forks.get_mut(&no.0).map(|fork| &mut **fork),
        }
    }

    /// The branch of a name.
    #[must_use]
    pub fn branch_no(&self, name: &str) -> Option<BranchNo> {
        self.by_name.get(name).copied()
    }

    /// Branches whose names come after this one, in order of their names.
    pub fn branches_after(&self, name: &str) -> impl Iterator<Item = (BranchNo, &Branch)> {
        let after = (std::ops::Bound::Excluded(name), std::ops::Bound::Unbounded);
        self.by_name
            .range::<str, _>(after)
            .filter_map(|(_, &no)| Some((no, self.branch(no)?)))
    }

    /// All branches and forks.
    pub fn all_branches(&self) -> impl Iterator<Item = &Branch> {
        let branches = self.branches.iter().filter_map(|branch| branch.as_deref());
        branches.chain(self.forks.values().map(|fork| &**fork))
    }

    /// All branches with their numbers, without forks.
    pub fn numbered_branches(&self) -> impl Iterator<Item = (BranchNo, &Branch)> {
        let numbered = (0..).map(BranchNo).zip(&self.branches);
        numbered.filter_map(|(no, branch)| Some((no, branch.as_deref()?)))
    }

    /// Main, the other branches, then the forks, with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (BranchNo, &Branch)> {
        let forks = self.forks.iter().map(|(&no, fork)| (BranchNo(no), &**fork));
        self.numbered_branches().chain(forks)
    }

    /// The agent as another shard takes it over: without keys, window and lanes, with the same views.
    #[must_use]
    pub fn shell(&self) -> Self {
        let shell = |branch: &Branch| {
            Box::new(Branch {
                name: branch.name.clone(),
                head: branch.head,
                base: branch.base,
                keys: WorkingSet::default(),
                retention: branch.retention,
                view: branch.view,
                lanes: 0,
                head_sequence: branch.head_sequence,
                restated: 0,
                set: branch.set,
            })
        };
        let branches = self.branches.iter();
        let forks = self.forks.iter();
        Self {
            name: self.name.clone(),
            public: self.public,
            moves: self.moves,
            tags: self.tags.clone(),
            adopted: self.adopted.clone(),
            hot: self.hot,
            sets: self.sets.shell(),
            touched: 0,
            restated: 0,
            window: None,
            window_fd: None,
            lanes: 0,
            branches: branches.map(|slot| slot.as_deref().map(shell)).collect(),
            forks: forks.map(|(&no, fork)| (no, shell(fork))).collect(),
            by_name: self.by_name.clone(),
            next_fork: self.next_fork,
            next_view: self.next_view,
        }
    }

    /// The number that the next branch gets.
    #[must_use]
    pub fn next_branch(&self) -> BranchNo {
        BranchNo(self.branches.len() as u32)
    }

    /// The number that the next fork gets.
    pub fn next_fork(&mut self) -> BranchNo {
        // After two thousand million forks the oldest numbers come again; those still open are skipped.
        while self.forks.contains_key(&self.next_fork) {
            self.next_fork = fork_after(self.next_fork);
        }
        let no = BranchNo(self.next_fork);
        self.next_fork = fork_after(self.next_fork);
        no
    }

    /// Gives a branch this name, head and base, and a working set without changes; makes it if it is
    /// not there. What it knew before, to be given up.
    pub fn set_branch(
        &mut self,
        no: BranchNo,
        name: &str,
        head: Option<ObjectId>,
        base: ObjectId,
    ) -> Option<WorkingSet> {
        let view = self.new_view();
        if let Some(known) = self.branch_mut(no) {
            let before = std::mem::take(&mut known.keys);
            (known.head, known.base, known.view) = (head, base, view);
            known.head_sequence = None;
            self.rename(no, name);
            return Some(before);
        }
        let branch = Box::new(Branch {
            name: name.into(),
            head,
            head_sequence: None,
            base,
            keys: WorkingSet::default(),
            retention: Retention::All,
            view,
            lanes: 0,
            restated: 0,
            set: None,
        });
        if no.0 >= FORK_NUMBERS {
            self.forks.insert(no.0, branch);
            return None;
        }
        let at = no.0 as usize;
        if self.branches.len() <= at {
            self.branches.resize_with(at + 1, || None);
        }
        self.branches[at] = Some(branch);
        if !name.is_empty() {
            self.by_name.insert(name.into(), no);
        }
        None
    }

    /// Gives a branch another name.
    pub fn rename(&mut self, no: BranchNo, name: &str) {
        let Some(branch) = self.branch_mut(no) else {
            return;
        };
        if *branch.name == *name {
            return;
        }
        let before = std::mem::replace(&mut branch.name, name.into());
        self.forget_name(&before, no);
        self.by_name.insert(name.into(), no);
    }

    /// Takes a branch or fork out; what it knew, to be given up.
    pub fn remove_branch(&mut self, no: BranchNo) -> Option<Branch> {
        let removed = match self.branches.get_mut(no.0 as usize) {
            Some(branch) => branch.take()?,
            None => self.forks.remove(&no.0)?,
        };
        self.forget_name(&removed.name, no);
        Some(*removed)
    }

    /// Lets a name mean this branch no more; another may have it by now.
    fn forget_name(&mut self, name: &str, no: BranchNo) {
        if self.by_name.get(name) == Some(&no) {
            self.by_name.remove(name);
        }
    }

    /// All branches and forks of an agent that is gone; what they knew, to be given up.
    pub fn into_branches(self) -> impl Iterator<Item = Branch> {
        let branches = self.branches.into_iter().flatten();
        let forks = self.forks.into_values();
        branches.chain(forks).map(|branch| *branch)
    }

    /// Takes a branch out that has no name, if there is one: of what made it, the log ends too early.
    pub fn remove_nameless(&mut self) -> Option<Branch> {
        let mut branches = self.branches.iter_mut();
        let nameless = branches.find(|slot| slot.as_ref().is_some_and(|it| it.name.is_empty()))?;
        nameless.take().map(|branch| *branch)
    }

    /// A view that no state of the agent had.
    pub fn new_view(&mut self) -> View {
        let view = View(self.next_view);
        self.next_view = self.next_view.wrapping_add(1);
        if self.next_view == 0
            && let Some(window) = &mut self.window
        {
            // Numbers begin again: what is still there under the old ones must not be found.
            window.clear();
        }
        view
    }

    /// Takes the value of a key of a branch out of the window: what it names changes.
    #[inline]
    pub fn invalidate(&mut self, no: BranchNo, key: &[u8]) {
        let Some(view) = self.branch(no).map(|branch| branch.view) else {
            return;
        };
        if let Some(window) = &mut self.window {
            window.invalidate(view, key);
        }
    }

    /// Whether it may read a checkpoint, of that id: its own, or one that it adopted.
    #[must_use]
    pub fn may_read(&self, checkpoint: &Checkpoint<'_>, id: &ObjectId) -> bool {
        *checkpoint.agent == *self.name || self.adopted.contains(id)
    }

    /// Bytes of memory that branches and tags take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let branches: usize = self
            .all_branches()
            .map(|branch| size_of::<Branch>() + 2 * branch.name.len() + branch.keys.memory_bytes())
            .sum();
        let tags: usize = self.tags.keys().map(|name| name.len() + 80).sum();
        let adopted = self.adopted.len() * 48 + self.sets.memory_bytes();
        self.branches.capacity() * size_of::<usize>() + branches + tags + adopted
    }
}

/// The last number is not used: entries carry numbers plus one.
fn fork_after(no: u32) -> u32 {
    if no < u32::MAX - 1 {
        no + 1
    } else {
        FORK_NUMBERS
    }
}

/// What a key named, if anything was known of it.
#[must_use]
pub fn named(held: Option<Held>) -> Option<Value> {
    held.and_then(|held| held.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_found_by_number_and_by_name() {
        let mut agent = Agent::new(b"planner", false);
        assert_eq!(agent.branch_no("main"), Some(MAIN));
        let id = ObjectId::of_blob(b"head");
        let no = agent.next_branch();
        agent.set_branch(no, "try", Some(id), EMPTY_TREE);
        assert_eq!((no, agent.branch_no("try")), (BranchNo(1), Some(no)));
        agent.rename(no, "kept");
        assert_eq!(
            (agent.branch_no("try"), agent.branch_no("kept")),
            (None, Some(no))
        );
        let names: Vec<_> = agent
            .branches_after("")
            .map(|(_, branch)| &*branch.name)
            .collect();
        assert_eq!(names, ["kept", "main"]);
        assert_eq!(agent.branches_after("kept").count(), 1);
        assert_eq!(agent.remove_branch(no).unwrap().head, Some(id));
        assert!(agent.branch(no).is_none() && agent.branch_no("kept").is_none());
        assert_eq!(agent.next_branch(), BranchNo(2), "numbers are not reused");
    }

    #[test]
    fn forks_have_numbers_apart_and_every_state_its_view() {
        let mut agent = Agent::new(b"planner", false);
        let mut views = vec![agent.branch(MAIN).unwrap().view];
        for _ in 0..3 {
            let no = agent.next_fork();
            assert!(no.0 >= FORK_NUMBERS);
            agent.set_branch(no, "", None, EMPTY_TREE);
            views.push(agent.branch(no).unwrap().view);
        }
        assert!(agent.set_branch(MAIN, "main", None, EMPTY_TREE).is_some());
        views.push(agent.branch(MAIN).unwrap().view);
        views.sort_unstable();
        views.dedup();
        assert_eq!(views.len(), 5);
        assert_eq!(agent.branches_after("").count(), 1, "forks have no names");
        assert_eq!(agent.all_branches().count(), 4);
        agent.next_fork = u32::MAX - 1;
        assert_eq!(agent.next_fork(), BranchNo(u32::MAX - 1));
        assert_eq!(
            agent.next_fork(),
            BranchNo(FORK_NUMBERS + 3),
            "numbers begin again"
        );
    }
}
