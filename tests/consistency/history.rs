//! A history: what lanes asked of one agent, what they were answered, and when.
//!
//! Values and checkpoints go by the first 8 bytes of their ids, 0 for none; no value is written twice, so a read says
//! which write it saw. Times are nanoseconds of the machine's monotonic clock, which all its processes share.
//!
//! Invariants
//! - the operations of one thread are in the order in which they were asked.
//! - an operation that was never answered has `maybe`, and `returned` is when its runtime was dead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{Ordering, fence};

use helios::id::ObjectId;
use serde::{Deserialize, Serialize};

/// Keys of an agent.
pub const KEYS: usize = 5;
/// The branch that every agent begins with.
pub const MAIN: Branch = 0;
/// Threads that one lane may stand for: itself, and one for each key that it asks about in batches.
pub const THREADS_PER_LANE: u32 = 8;

/// Which key: its place in [`Contents`].
pub type Key = u8;
/// A value, or 0: absent.
pub type Value = u64;
/// A checkpoint, or 0: none.
pub type Checkpoint = u64;
/// The number of a branch or fork.
pub type Branch = u32;
/// The name of a branch: 0 is `main`.
pub type Name = u8;
/// What a state holds.
pub type Contents = [Value; KEYS];

/// Which checkpoint a call means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// What the branch of the call points at.
    Head,
    /// What the branch of a name points at.
    Branch(Name),
    /// This one.
    Checkpoint(Checkpoint),
}

/// Whose value a merge takes where both sides changed a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// The branch's.
    Ours,
    /// The other's.
    Theirs,
    /// Neither: it is a conflict.
    Fail,
}

/// What came of a merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Came {
    /// All of it was there.
    Nothing,
    /// The branch points at the other's head.
    Ahead(Checkpoint),
    /// A checkpoint with two parents.
    Made(Checkpoint),
    /// Refused: both changed these keys.
    Conflicts(Vec<Key>),
    /// Refused: no checkpoint in common.
    Unrelated,
    /// Refused: the branch has this many changes that no checkpoint holds.
    Unsaved(u64),
    /// Never answered.
    Unknown,
}

/// A branch in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub no: Branch,
    pub name: Name,
    pub head: Checkpoint,
}

/// What was asked, and the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    Get {
        key: Key,
        value: Value,
    },
    /// All keys in one request: a scan or a multi-get.
    Snapshot {
        values: Contents,
    },
    Put {
        key: Key,
        value: Value,
    },
    /// A put if the key names what is expected; `found`: it was refused, because this was there.
    Swap {
        key: Key,
        expected: Value,
        value: Value,
        found: Option<Value>,
    },
    Delete {
        key: Key,
        existed: Option<bool>,
    },
    MultiPut {
        pairs: Vec<(Key, Value)>,
    },
    Checkpoint {
        expected: Option<Checkpoint>,
        made: Checkpoint,
    },
    Restore {
        to: Source,
    },
    Create {
        name: Name,
        from: Source,
        no: Branch,
        head: Checkpoint,
    },
    Remove {
        name: Name,
    },
    Switch {
        name: Name,
        no: Branch,
        head: Checkpoint,
        changes: u64,
    },
    Describe {
        head: Checkpoint,
        changes: u64,
    },
    List {
        branches: Vec<Listed>,
    },
    Merge {
        from: Source,
        policy: Policy,
        expected: Option<Checkpoint>,
        came: Came,
    },
    /// `no` is open on `head` from now on.
    Fork {
        from: Source,
        no: Branch,
        head: Checkpoint,
    },
    /// The fork becomes the branch `no`.
    Keep {
        name: Name,
        no: Branch,
    },
    Discard,
    /// Refused: a branch has the name.
    NameTaken {
        name: Name,
    },
    /// Refused: no branch has the name.
    NoSuchName {
        name: Name,
    },
    /// Refused: no branch has the number of the request.
    NoSuchBranch,
    /// Refused: lanes are on the branch, or it is the first.
    InUse {
        name: Name,
    },
    /// Refused: the branch points at something else.
    StaleHead {
        expected: Checkpoint,
        current: Checkpoint,
    },
    /// The runtime died, and another was started: forks are gone, and lanes too.
    Crash,
}

/// One request and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked: lane times [`THREADS_PER_LANE`], and which of its threads.
    pub thread: u32,
    /// The branch that it is about.
    pub on: Branch,
    pub invoked: u64,
    pub returned: u64,
    /// It was never answered: it may have been done or not.
    pub maybe: bool,
    pub what: What,
}

impl Operation {
    /// The lane that asked.
    pub fn lane(&self) -> u32 {
        self.thread / THREADS_PER_LANE
    }
}

/// What is for ever the same: what checkpoints hold, and what they follow.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    contents: BTreeMap<Checkpoint, Contents>,
    parents: BTreeMap<Checkpoint, Vec<Checkpoint>>,
}

impl Graph {
    /// Notes a checkpoint.
    ///
    /// # Panics
    /// Where it was noted with other contents: checkpoints never change.
    pub fn add(&mut self, made: Checkpoint, parents: Vec<Checkpoint>, contents: Contents) {
        self.parents.insert(made, parents);
        let before = self.contents.insert(made, contents);
        assert!(
            before.is_none_or(|before| before == contents),
            "checkpoint {made:x} held {before:x?}, and holds {contents:x?}"
        );
    }

    /// What a checkpoint holds; nothing, if there is no such one.
    pub fn contents(&self, of: Checkpoint) -> Option<Contents> {
        match of {
            0 => Some([0; KEYS]),
            of => self.contents.get(&of).copied(),
        }
    }

    /// What it follows.
    pub fn parents(&self, of: Checkpoint) -> &[Checkpoint] {
        self.parents.get(&of).map_or(&[], Vec::as_slice)
    }

    /// The common ancestors of two checkpoints that no other common one follows.
    pub fn bases(&self, ours: Checkpoint, theirs: Checkpoint) -> Vec<Checkpoint> {
        let common: BTreeSet<_> = &self.ancestors(ours) & &self.ancestors(theirs);
        let mut best = common.clone();
        for &one in &common {
            if best.contains(&one) {
                let mut below = self.ancestors(one);
                below.remove(&one);
                best = &best - &below;
            }
        }
        best.into_iter().collect()
    }

    /// A checkpoint and all that it follows.
    fn ancestors(&self, of: Checkpoint) -> BTreeSet<Checkpoint> {
        let (mut found, mut left) = (BTreeSet::new(), vec![of]);
        while let Some(one) = left.pop() {
            if one != 0 && found.insert(one) {
                left.extend(self.parents(one));
            }
        }
        found
    }

    pub fn len(&self) -> usize {
        self.contents.len()
    }
}

/// A recorded history of one agent.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    pub graph: Graph,
}

/// The short form of an id.
pub fn short(id: &ObjectId) -> u64 {
    u64::from_le_bytes(*id.as_bytes().first_chunk().expect("ids are longer"))
}

/// The value that these bytes are: every byte counts.
pub fn value_of(bytes: &[u8]) -> Value {
    short(&ObjectId::of_blob(bytes))
}

/// Nanoseconds of the monotonic clock. What is before it in the program has happened, what is after it has not: the
/// fences keep the processor from reading a window earlier than the clock.
pub fn now() -> u64 {
    fence(Ordering::SeqCst);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    fence(Ordering::SeqCst);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
