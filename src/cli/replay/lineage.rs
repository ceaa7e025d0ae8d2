//! What agents do with versions of their state, and what each state then holds.
//!
//! Floor 5, part of `replay`. No clock, no I/O: a part of the walk, so that whoever repeats a walk
//! finds the same states. An agent works as one that checkpoints its work, tries things out, and goes
//! back where they led nowhere: [`CYCLE`] has the rates.
//!
//! Invariants
//! - a restore goes back in the script, too: to the access after which the checkpoint was made. So a
//!   read never meets a key that the state of that time does not have.
//! - no version of a key is written twice, whatever was restored: what was given up must not come
//!   back unseen.
//! - only keys that the agent has of its own are written beside the script: which reads go to the commons
//!   is the script's alone.
//!
//! Cost: a copy of the agent's versions (4 bytes a key) for each checkpoint, [`HISTORY_MAX`] of them kept.

use std::collections::VecDeque;

use super::scenario::Slot;
use super::values::mix;

/// An agent makes a checkpoint after this many of its writes.
pub(super) const CHECKPOINT_WRITES: u32 = 8;
/// What an agent does beside, by the number of its checkpoint; agents begin at different places.
pub(super) const CYCLE: u32 = 32;
/// From agent to agent, where in the cycle it begins.
const CYCLE_STEP: u32 = 13;
/// Keys that are written on a branch before it is merged.
pub(super) const BRANCH_WRITES: usize = 4;
/// Candidates of a superposition.
pub(super) const CANDIDATES: usize = 3;
/// Checkpoints that an agent goes back to at most.
pub(super) const HISTORY_MAX: usize = 4;

/// A version of a key of an agent: to be written, or to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Put {
    /// An index into the agent's slots.
    pub(super) slot: u32,
    /// The version of its value.
    pub(super) version: u32,
}

/// What an agent does beside its script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// A checkpoint of its state. It becomes the youngest of its history.
    Checkpoint,
    /// A fork of the youngest checkpoint is written to, and dropped.
    Trial {
        /// What is written in it.
        write: Put,
        /// What else is found in it.
        found: Put,
    },
    /// A branch from the youngest checkpoint is written to and merged.
    Detour(Detour),
    /// Several ways to go on from the youngest checkpoint are tried side by side.
    Superpose {
        /// What is written for each.
        candidates: Vec<Put>,
        /// The one that becomes its state; `None`: none of them.
        choice: Option<usize>,
    },
    /// A checkpoint is read as it was.
    LookBack {
        /// Its place in the history.
        to: usize,
        /// What is found there.
        found: Put,
    },
    /// It rests: its memory is given back, until it goes on.
    Suspend,
    /// Its state, unsaved changes included, is given up for that of a checkpoint.
    Restore {
        /// Its place in the history.
        to: usize,
    },
}

/// A branch that is written to and merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detour {
    /// What is written on the branch.
    pub(super) theirs: Vec<Put>,
    /// What is written on `main` meanwhile; then it gets a checkpoint of its own.
    pub(super) ours: Option<Put>,
    /// Both wrote the same key: the branch's value is to stay.
    pub(super) conflict: bool,
}

/// One agent's checkpoints.
#[derive(Debug)]
pub(super) struct Lineage {
    /// The last version of each slot that was written anywhere.
    written: Vec<u32>,
    /// The youngest at the end.
    history: VecDeque<Saved>,
    writes: u32,
    checkpoints: u32,
    random: u64,
}

/// What a checkpoint holds.
#[derive(Debug)]
struct Saved {
    step: u32,
    versions: Vec<u32>,
}

/// An agent's state as the script sees it.
pub(super) struct Now<'a> {
    /// The next access.
    pub(super) step: &'a mut u32,
    /// The version of each slot.
    pub(super) versions: &'a mut Vec<u32>,
    /// The slots.
    pub(super) slots: &'a [Slot],
}

impl Lineage {
    /// Of an agent whose first state has a checkpoint.
    pub(super) fn new(slots: usize, seed: u64, agent: u32) -> Self {
        let first = Saved {
            step: 0,
            versions: vec![0; slots],
        };
        Self {
            written: vec![0; slots],
            history: VecDeque::from([first]),
            writes: 0,
            // However few agents there are, some of them soon come to each turn.
            checkpoints: agent.wrapping_mul(CYCLE_STEP),
            random: mix(mix(seed) ^ u64::from(agent)),
        }
    }

    /// The version that a write of this slot leaves there.
    pub(super) fn write(&mut self, slot: u32) -> u32 {
        let version = &mut self.written[slot as usize];
        // Wraps to 1: version 0 stands for a key never written.
        *version = version.checked_add(1).unwrap_or(1);
        *version
    }

    /// After a write of the script: adds to `deeds` what the agent does then, and lets its state be
    /// what it is afterwards.
    pub(super) fn after_write(&mut self, now: &mut Now<'_>, deeds: &mut Vec<Deed>) {
        self.writes += 1;
        if !self.writes.is_multiple_of(CHECKPOINT_WRITES) {
            return;
        }
        self.checkpoints = self.checkpoints.wrapping_add(1);
        let turn = self.checkpoints % CYCLE;
        if turn == 31 {
            deeds.push(self.restore(now));
            return;
        }
        deeds.push(Deed::Checkpoint);
        self.save(now);
        let deed = match turn {
            1 | 5 | 9 | 13 | 17 | 21 | 25 | 29 => self.trial(now),
            3 => self.detour(now, false, false),
            11 | 19 => self.detour(now, true, false),
            27 => self.detour(now, true, true),
            7 | 23 => self.look_back(now),
            15 => self.superpose(now, true),
            30 => self.superpose(now, false),
            26 => Some(Deed::Suspend),
            _ => None,
        };
        deeds.extend(deed);
    }

    fn trial(&mut self, now: &Now<'_>) -> Option<Deed> {
        let slot = self.pick(now.versions, now.slots, &[])?;
        let found = self.pick(now.versions, now.slots, &[slot])?;
        Some(Deed::Trial {
            write: self.put(slot),
            found: found_in(now.versions, found),
        })
    }

    fn detour(&mut self, now: &mut Now<'_>, moves: bool, conflict: bool) -> Option<Deed> {
        let mut picked = Vec::new();
        while picked.len() < BRANCH_WRITES
            && let Some(slot) = self.pick(now.versions, now.slots, &picked)
        {
            picked.push(slot);
        }
        let first = *picked.first()?;
        let ours = match (moves, conflict) {
            (false, _) => None,
            (true, true) => Some(first),
            (true, false) => Some(self.pick(now.versions, now.slots, &picked)?),
        };
        let ours = ours.map(|slot| self.put(slot));
        if let Some(put) = ours {
            now.versions[put.slot as usize] = put.version;
            self.save(now);
        }
        let theirs: Vec<Put> = picked.into_iter().map(|slot| self.put(slot)).collect();
        for put in &theirs {
            now.versions[put.slot as usize] = put.version;
        }
        self.save(now);
        Some(Deed::Detour(Detour {
            theirs,
            ours,
            conflict,
        }))
    }

    fn superpose(&mut self, now: &mut Now<'_>, collapses: bool) -> Option<Deed> {
        let mut candidates = Vec::new();
        for _ in 0..CANDIDATES {
            let slot = self.pick(now.versions, now.slots, &[])?;
            candidates.push(self.put(slot));
        }
        let choice = collapses.then(|| self.below(CANDIDATES));
        if let Some(choice) = choice {
            let put = candidates[choice];
            now.versions[put.slot as usize] = put.version;
            self.save(now);
        }
        Some(Deed::Superpose { candidates, choice })
    }

    fn look_back(&mut self, now: &Now<'_>) -> Option<Deed> {
        let to = self.below(self.history.len());
        let versions = std::mem::take(&mut self.history[to].versions);
        let slot = self.pick(&versions, now.slots, &[]);
        let found = slot.map(|slot| found_in(&versions, slot));
        self.history[to].versions = versions;
        Some(Deed::LookBack { to, found: found? })
    }

    fn restore(&mut self, now: &mut Now<'_>) -> Deed {
        let to = self.below(self.history.len());
        let saved = &self.history[to];
        *now.step = saved.step;
        now.versions.clone_from(&saved.versions);
        Deed::Restore { to }
    }

    fn save(&mut self, now: &Now<'_>) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(Saved {
            step: *now.step,
            versions: now.versions.clone(),
        });
    }

    fn put(&mut self, slot: u32) -> Put {
        Put {
            slot,
            version: self.write(slot),
        }
    }

    /// A slot that the agent has a value of its own in, and none of these.
    fn pick(&mut self, versions: &[u32], slots: &[Slot], but: &[u32]) -> Option<u32> {
        let from = self.below(slots.len());
        let all = (from..slots.len()).chain(0..from);
        let own = |slot: &usize| versions[*slot] > 0 || slots[*slot].preload;
        all.filter(own)
            .map(|slot| slot as u32)
            .find(|slot| !but.contains(slot))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random = mix(self.random);
        (self.random % bound.max(1) as u64) as usize
    }
}

fn found_in(versions: &[u32], slot: u32) -> Put {
    Put {
        slot,
        version: versions[slot as usize],
    }
}
