//! Sets of candidates: which superpositions an agent has open, and how they are said in the log.
//!
//! Floor 2. Plain tables; what changes them in step with the log is `superposition`, what rebuilds them at
//! start `replay`.
//!
//! Invariants
//! - a number is never given to two sets, also not after the first is gone: records say the highest.
//! - no two open sets of an agent have one name.

use std::collections::BTreeMap;

use crate::id::{AgentNo, ObjectId, SetNo};
use crate::segment::Head;
use crate::shard::collect::Restated;
use crate::shard::groups::SetRef;
use crate::shard::tables::Tables;
use crate::state::superposition::{BadWeight, Candidate, Superposition, Terms, Weight};

/// Superpositions that an agent may have open.
pub const SETS_MAX: usize = 64;

/// What a set takes in memory beside its candidates, about.
const SET_BYTES: usize = 256;

/// A set that is open.
#[derive(Debug)]
pub struct OpenSet {
    /// What it is.
    pub set: Superposition,
    /// Forks that are open on candidates: while there are any, it is observed.
    pub forks: u32,
    /// When the shard asks next whether it has ended; `u64::MAX`: not at all.
    pub due_ms: u64,
    /// The observation that the log knows of.
    pub said_ms: u64,
    /// The last saying again that it took part in.
    pub restated: Restated,
}

/// The sets of one agent.
#[derive(Debug, Default)]
pub struct Sets {
    open: BTreeMap<SetNo, OpenSet>,
    next: u32,
    /// The latest time that a record of them says.
    latest_ms: u64,
}

/// A record of sets that nothing before it explains, or that says what can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction;

impl From<BadWeight> for Contradiction {
    fn from(_: BadWeight) -> Self {
        Self
    }
}

impl OpenSet {
    /// What says all of it again, for a log whose beginning goes: the set, and its candidates in order.
    pub fn restate(&self, agent: AgentNo, no: SetNo) -> impl Iterator<Item = Head<'_>> {
        let candidates = (0..).zip(self.set.candidates());
        let candidates =
            candidates.map(move |(candidate, found)| candidate_head(agent, no, candidate, found));
        std::iter::once(set_head(agent, no, &self.set)).chain(candidates)
    }
}

impl Sets {
    /// The sets as another shard takes them over.
    #[must_use]
    pub fn shell(&self) -> Self {
        let shell = |open: &OpenSet| OpenSet {
            set: open.set.clone(),
            due_ms: u64::MAX,
            restated: 0,
            ..*open
        };
        let open = self.open.iter();
        Self {
            open: open.map(|(&no, open)| (no, shell(open))).collect(),
            next: self.next,
            latest_ms: self.latest_ms,
        }
    }

    /// The set of a number, if it is open.
    #[must_use]
    pub fn get(&self, no: SetNo) -> Option<&OpenSet> {
        self.open.get(&no)
    }

    /// The set of a number, if it is open.
    pub fn get_mut(&mut self, no: SetNo) -> Option<&mut OpenSet> {
        self.open.get_mut(&no)
    }

    /// All open sets, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (SetNo, &OpenSet)> {
        self.open.iter().map(|(&no, open)| (no, open))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SetNo, &mut OpenSet)> {
        self.open.iter_mut().map(|(&no, open)| (no, open))
    }

    /// Sets that are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The number that the next set gets.
    #[must_use]
    pub fn next(&self) -> SetNo {
        SetNo(self.next)
    }

    /// The latest time that a record says, in milliseconds since 1970: time goes on from there.
    #[must_use]
    pub fn latest_ms(&self) -> u64 {
        self.latest_ms
    }

    /// Opens a set under a number.
    pub fn insert(&mut self, no: SetNo, set: Superposition) {
        self.next = self.next.max(no.0.saturating_add(1));
        let said_ms = set.observed_ms();
        let open = OpenSet {
            set,
            forks: 0,
            due_ms: u64::MAX,
            said_ms,
            restated: 0,
        };
        self.open.insert(no, open);
    }

    /// Ends a set, whether it is open or not: its number is not given out again.
    pub fn remove(&mut self, no: SetNo) -> Option<OpenSet> {
        self.next = self.next.max(no.0.saturating_add(1));
        self.open.remove(&no)
    }

    /// Replays a record of a set; of a collapse its branch is not this table's.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn apply(&mut self, head: &Head<'_>) -> Result<(), Contradiction> {
        match *head {
            Head::Set {
                set,
                branch,
                origin,
                half_life_ms,
                ttl_ms,
                bound_bits,
                wall_ms,
                name,
                ..
            } => {
                self.latest_ms = self.latest_ms.max(wall_ms);
                if let Some(known) = self.open.get_mut(&set) {
                    known.set.observe(wall_ms);
                    return Ok(());
                }
                let terms = Terms {
                    half_life_ms,
                    ttl_ms,
                    bound: Weight::new(f64::from_bits(bound_bits))?,
                };
                let name = std::str::from_utf8(name).map_err(|_| Contradiction)?;
                let set_of = Superposition::new(name, branch, origin, terms, wall_ms);
                self.insert(set, set_of);
            }
            Head::Candidate {
                set,
                candidate,
                head,
                tree,
                weight_bits,
                wall_ms,
                label,
                ..
            } => {
                self.latest_ms = self.latest_ms.max(wall_ms);
                let open = self.open.get_mut(&set).ok_or(Contradiction)?;
                let weight = Weight::new(f64::from_bits(weight_bits))?;
                let label = std::str::from_utf8(label).map_err(|_| Contradiction)?;
                open.set.observe(wall_ms);
                if open.set.reweigh(candidate, weight, wall_ms) {
                    return Ok(());
                }
                let new = Candidate {
                    head,
                    tree,
                    label: label.into(),
                    weight,
                    given_ms: wall_ms,
                };
                if open.set.add(new) != Ok(candidate) {
                    return Err(Contradiction);
                }
            }
            Head::SetGone { set, wall_ms, .. } => {
                self.latest_ms = self.latest_ms.max(wall_ms);
                self.remove(set);
            }
            _ => {}
        }
        Ok(())
    }

    /// What says again that the last number is taken, for a log whose beginning goes, where no open set does.
    #[must_use]
    pub fn taken(&self, agent: AgentNo) -> Option<Head<'static>> {
        let last = self.next.checked_sub(1).map(SetNo)?;
        let taken = Head::SetGone {
            agent,
            set: last,
            collapse: None,
            wall_ms: self.latest_ms,
        };
        (!self.open.contains_key(&last)).then_some(taken)
    }

    /// The checkpoints that the candidates of open sets keep alive.
    pub fn roots(&self) -> impl Iterator<Item = ObjectId> {
        let sets = self.open.values();
        sets.flat_map(|open| open.set.candidates().iter().map(|found| found.head))
    }

    /// Bytes of memory that they take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let candidates = |open: &OpenSet| {
            let labels = open.set.candidates().iter().map(|found| found.label.len());
            labels.sum::<usize>() + size_of_val(open.set.candidates())
        };
        self.open
            .values()
            .map(|open| SET_BYTES + open.set.name.len() + candidates(open))
            .sum()
    }
}

impl Tables {
    /// A set, if it is open.
    #[must_use]
    pub fn open_set(&self, at: SetRef) -> Option<&OpenSet> {
        let agent = self.agents.get(at.agent.0 as usize)?.as_deref()?;
        agent.sets.get(at.set)
    }

    /// A set, if it is open.
    pub fn open_set_mut(&mut self, at: SetRef) -> Option<&mut OpenSet> {
        if !self.has_agent(at.agent) {
            return None;
        }
        self.agent_mut(at.agent).sets.get_mut(at.set)
    }
}

/// The record of a set, as it is.
#[must_use]
pub fn set_head(agent: AgentNo, no: SetNo, set: &Superposition) -> Head<'_> {
    Head::Set {
        agent,
        set: no,
        branch: set.branch,
        origin: set.origin,
        half_life_ms: set.terms.half_life_ms,
        ttl_ms: set.terms.ttl_ms,
        bound_bits: set.terms.bound.get().to_bits(),
        wall_ms: set.observed_ms(),
        name: set.name.as_bytes(),
    }
}

/// The record of a candidate, as it is.
#[must_use]
pub fn candidate_head(agent: AgentNo, set: SetNo, no: u32, found: &Candidate) -> Head<'_> {
    Head::Candidate {
        agent,
        set,
        candidate: no,
        head: found.head,
        tree: found.tree,
        weight_bits: found.weight.get().to_bits(),
        wall_ms: found.given_ms,
        label: found.label.as_bytes(),
    }
}
