//! Carries out what agents do with versions of their state, times it, and checks what they find.
//!
//! Floor 5, part of `replay`. The lineage says what is to be done and what must be found then; here
//! are the calls.
//!
//! Invariants
//! - the ids kept here stand for the checkpoints of the agent's lineage, place by place.
//! - what is found on a branch, in a fork, at a checkpoint or after a merge is compared like any read, but
//!   counted apart: hit ratios are those of the script.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use helios::id::{BranchNo, ObjectId};

use super::drive::{Drive, Port, Refusal, again};
use super::lineage::{Deed, Detour, HISTORY_MAX, Put};
use super::tally::Call;
use super::values::ValueId;

/// Least time between two power-safe checkpoints of a worker, so that they don't make up the run.
pub(super) const POWER_INTERVAL: Duration = Duration::from_millis(20);
/// The branch that is merged.
const BRANCH: &str = "replay-detour";
/// The tag of what was merged last.
const TAG: &str = "replay-merged";

/// What a merge came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Merging {
    /// The branch points at this checkpoint now.
    Done(ObjectId),
    /// Nothing was done, for these keys.
    Conflicts(Vec<Vec<u8>>),
}

/// A way to go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    /// Its checkpoint.
    pub(super) head: ObjectId,
    /// What it is worth.
    pub(super) weight: f64,
    /// A key that is looked at in it.
    pub(super) key: &'a [u8],
}

/// An agent's way to the versions of its state.
pub(super) trait Versions {
    /// Makes a checkpoint of the agent's state, or of another branch of it.
    fn checkpoint(&mut self, on: Option<BranchNo>, power: bool) -> Result<ObjectId, Refusal>;
    /// Makes a branch of the head.
    fn branch(&mut self, name: &str) -> Result<BranchNo, Refusal>;
    /// Removes a branch, if there is one of this name.
    fn remove_branch(&mut self, name: &str) -> Result<(), Refusal>;
    /// Opens a fork of a checkpoint.
    fn fork(&mut self, from: &ObjectId) -> Result<BranchNo, Refusal>;
    /// Drops a fork.
    fn discard(&mut self, fork: BranchNo) -> Result<(), Refusal>;
    /// Writes on a branch or fork.
    fn put_on(&mut self, on: BranchNo, key: &[u8], value: &[u8]) -> Result<(), Refusal>;
    /// Replaces `value` by what a key has on a branch or fork; `false`: nothing.
    fn get_on(&mut self, on: BranchNo, key: &[u8], value: &mut Vec<u8>) -> Result<bool, Refusal>;
    /// Merges a branch; where both changed this key, the branch's value stays.
    fn merge(&mut self, from: &str, theirs: Option<&[u8]>) -> Result<Merging, Refusal>;
    /// Gives the agent's memory back, and goes on.
    fn suspend(&mut self) -> Result<(), Refusal>;
    /// Lets the state be that of a checkpoint, whatever changes are lost.
    fn restore(&mut self, to: &ObjectId) -> Result<(), Refusal>;
    /// The keys in which two checkpoints differ, in order: all of them, if they are few.
    fn diff(&mut self, before: &ObjectId, after: &ObjectId) -> Result<Vec<Vec<u8>>, Refusal>;
    /// Names the head, again if need be.
    fn tag(&mut self, name: &str) -> Result<(), Refusal>;
    /// Makes a superposition of checkpoints with weights, and finds what each has of its key: a value for
    /// each, as [`Versions::get_on`]. It ends with the checkpoint of that number as the state, or with none of
    /// them; the checkpoint.
    fn superpose(
        &mut self,
        candidates: &[Candidate<'_>],
        choice: Option<usize>,
        values: &mut [Vec<u8>],
    ) -> Result<Option<ObjectId>, Refusal>;
    /// What a tag names.
    fn tagged(&mut self, name: &str) -> Result<Option<ObjectId>, Refusal>;
}

/// One agent's checkpoints by their ids; the youngest at the end.
pub(super) type Ids = VecDeque<ObjectId>;

impl<'a, P: Port> Drive<'a, P> {
    /// Gives an agent's first state a checkpoint.
    pub(super) fn begin_history(&mut self, agent: usize) -> anyhow::Result<()> {
        // A replay that was killed has left it behind.
        again(&mut 0, || self.ports[agent].remove_branch(BRANCH))?;
        let (id, _) = again(&mut 0, || self.ports[agent].checkpoint(None, false))?;
        self.ids[agent] = Ids::from([id]);
        Ok(())
    }

    /// Does what an agent does beside its script.
    pub(super) fn carry_out(&mut self, agent: usize, deed: &Deed) -> anyhow::Result<()> {
        match deed {
            Deed::Checkpoint => self.checkpoint(agent, None).map(|_| ()),
            Deed::Trial { write, found } => self.try_out(agent, *write, *found),
            Deed::Detour(detour) => self.go_round(agent, detour),
            Deed::Superpose { candidates, choice } => self.superpose(agent, candidates, *choice),
            Deed::LookBack { to, found } => {
                let port = &mut self.ports[agent];
                let from = self.ids[agent][*to];
                let (fork, _) = again(&mut self.tally.busy_replies, || port.fork(&from))?;
                self.find(agent, Some(fork), *found)?;
                self.discard(agent, fork).map(|_| ())
            }
            Deed::Suspend => {
                let port = &mut self.ports[agent];
                again(&mut self.tally.busy_replies, || port.suspend())?;
                Ok(())
            }
            Deed::Restore { to } => {
                let port = &mut self.ports[agent];
                let to = self.ids[agent][*to];
                let ((), ns) = again(&mut self.tally.busy_replies, || port.restore(&to))?;
                self.tally.time(Call::Restore, ns);
                Ok(())
            }
        }
    }

    /// A checkpoint of the agent's state, or of a branch of it.
    fn checkpoint(&mut self, agent: usize, on: Option<BranchNo>) -> anyhow::Result<ObjectId> {
        let now = Instant::now();
        let power = now >= self.next_power;
        let port = &mut self.ports[agent];
        let (id, ns) = again(&mut self.tally.busy_replies, || port.checkpoint(on, power))?;
        if power {
            self.next_power = now + POWER_INTERVAL;
            self.tally.time(Call::CheckpointPower, ns);
        } else {
            self.tally.time(Call::Checkpoint, ns);
        }
        if on.is_none() {
            self.remember(agent, id);
        }
        Ok(id)
    }

    fn remember(&mut self, agent: usize, id: ObjectId) {
        let ids = &mut self.ids[agent];
        if ids.len() == HISTORY_MAX {
            ids.pop_front();
        }
        ids.push_back(id);
    }

    fn head(&self, agent: usize) -> anyhow::Result<ObjectId> {
        let head = self.ids[agent].back().copied();
        head.ok_or_else(|| anyhow::anyhow!("agent {agent} has no checkpoint"))
    }

    /// A fork, one write in it, its end: one time for the three.
    fn try_out(&mut self, agent: usize, write: Put, found: Put) -> anyhow::Result<()> {
        let head = self.head(agent)?;
        let port = &mut self.ports[agent];
        let (fork, fork_ns) = again(&mut self.tally.busy_replies, || port.fork(&head))?;
        let write_ns = self.put(agent, Some(fork), write)?;
        self.find(agent, Some(fork), write)?;
        self.find(agent, Some(fork), found)?;
        let discard_ns = self.discard(agent, fork)?;
        let ns = fork_ns + write_ns + discard_ns;
        self.tally.time(Call::ForkWriteDiscard, ns);
        // What is written in a fork is nowhere else.
        self.find(agent, None, found)
    }

    fn discard(&mut self, agent: usize, fork: BranchNo) -> anyhow::Result<u64> {
        let port = &mut self.ports[agent];
        let ((), ns) = again(&mut self.tally.busy_replies, || port.discard(fork))?;
        Ok(ns)
    }

    /// Some forks with a checkpoint each, side by side until one is chosen, or none.
    fn superpose(
        &mut self,
        agent: usize,
        puts: &[Put],
        choice: Option<usize>,
    ) -> anyhow::Result<()> {
        let head = self.head(agent)?;
        let mut candidates = Vec::with_capacity(puts.len());
        for (no, &put) in puts.iter().enumerate() {
            let port = &mut self.ports[agent];
            let (fork, _) = again(&mut self.tally.busy_replies, || port.fork(&head))?;
            self.put(agent, Some(fork), put)?;
            candidates.push(Candidate {
                head: self.checkpoint(agent, Some(fork))?,
                weight: (no + 1) as f64,
                key: self.value(agent, put).0,
            });
            self.discard(agent, fork)?;
        }
        let mut values = vec![Vec::new(); puts.len()];
        let (chosen, _) = again(&mut self.tally.busy_replies, || {
            self.ports[agent].superpose(&candidates, choice, &mut values)
        })?;
        for (&put, value) in puts.iter().zip(&mut values) {
            std::mem::swap(&mut self.value, value);
            let (name, id, bytes) = self.value(agent, put);
            self.tally.version_reads_checked += 1;
            self.check(!self.value.is_empty(), id, bytes, name);
        }
        let expected = choice.map(|choice| candidates[choice].head);
        self.expect(agent, "the choice", &chosen, &expected);
        if let (Some(id), Some(choice)) = (chosen, choice) {
            self.remember(agent, id);
            self.find(agent, None, puts[choice])?;
        }
        Ok(())
    }

    /// A branch, work on it, its merge.
    fn go_round(&mut self, agent: usize, detour: &Detour) -> anyhow::Result<()> {
        let before = self.head(agent)?;
        let port = &mut self.ports[agent];
        let (branch, ns) = again(&mut self.tally.busy_replies, || port.branch(BRANCH))?;
        self.tally.time(Call::Branch, ns);
        for &put in &detour.theirs {
            self.put(agent, Some(branch), put)?;
            self.find(agent, Some(branch), put)?;
        }
        self.checkpoint(agent, Some(branch))?;
        if let Some(put) = detour.ours {
            self.put(agent, None, put)?;
            self.checkpoint(agent, None)?;
            self.find(agent, None, put)?;
        }
        let disputed = detour.ours.filter(|_| detour.conflict);
        let disputed = disputed.map(|put| self.value(agent, put).0);
        if let Some(key) = disputed {
            let (merged, _) = again(&mut self.tally.busy_replies, || {
                self.ports[agent].merge(BRANCH, None)
            })?;
            let expected = Merging::Conflicts(vec![key.to_vec()]);
            self.expect(agent, "a merge", &merged, &expected);
        }
        let (merged, ns) = again(&mut self.tally.busy_replies, || {
            self.ports[agent].merge(BRANCH, disputed)
        })?;
        self.tally.time(Call::Merge, ns);
        let Merging::Done(after) = merged else {
            anyhow::bail!("agent {agent}: a merge had conflicts that were settled: {merged:?}");
        };
        self.remember(agent, after);
        self.compare(agent, [&before, &after], detour)?;
        for &put in &detour.theirs {
            self.find(agent, None, put)?;
        }
        let port = &mut self.ports[agent];
        again(&mut self.tally.busy_replies, || port.tag(TAG))?;
        let (tagged, _) = again(&mut self.tally.busy_replies, || port.tagged(TAG))?;
        again(&mut self.tally.busy_replies, || port.remove_branch(BRANCH))?;
        self.expect(agent, "the tag", &tagged, &Some(after));
        Ok(())
    }

    /// Compares the difference that a detour made with what it wrote.
    fn compare(
        &mut self,
        agent: usize,
        [before, after]: [&ObjectId; 2],
        detour: &Detour,
    ) -> anyhow::Result<()> {
        let port = &mut self.ports[agent];
        let (differ, ns) = again(&mut self.tally.busy_replies, || port.diff(before, after))?;
        self.tally.time(Call::Diff, ns);
        let puts = detour.theirs.iter().chain(&detour.ours);
        let mut expected: Vec<Vec<u8>> =
            puts.map(|&put| self.value(agent, put).0.to_vec()).collect();
        expected.sort();
        expected.dedup();
        self.expect(agent, "a diff", &differ, &expected);
        Ok(())
    }

    fn put(&mut self, agent: usize, on: Option<BranchNo>, put: Put) -> anyhow::Result<u64> {
        let (name, id, bytes) = self.value(agent, put);
        self.values.fill(id, bytes, &mut self.value);
        let (port, value) = (&mut self.ports[agent], &self.value);
        let ((), ns) = again(&mut self.tally.busy_replies, || match on {
            Some(branch) => port.put_on(branch, name, value),
            None => port.put(name, value),
        })?;
        Ok(ns)
    }

    /// Reads a key, and checks that its value is that.
    fn find(&mut self, agent: usize, on: Option<BranchNo>, found: Put) -> anyhow::Result<()> {
        let (name, id, bytes) = self.value(agent, found);
        let (port, value) = (&mut self.ports[agent], &mut self.value);
        let (is_there, _) = again(&mut self.tally.busy_replies, || match on {
            Some(branch) => port.get_on(branch, name, value),
            None => Ok(port.get(name, value)?.is_some()),
        })?;
        self.tally.version_reads_checked += 1;
        self.check(is_there, id, bytes, name);
        Ok(())
    }

    fn expect<T: PartialEq + std::fmt::Debug>(
        &mut self,
        agent: usize,
        what: &str,
        found: &T,
        expected: &T,
    ) {
        if found != expected {
            let agent = self.scenario.agents[agent].number;
            let told = || format!("agent {agent}: {what} is {found:?}, expected {expected:?}");
            self.tally.mismatch(told);
        }
    }

    /// The name of a key, and the value of a version of it.
    fn value(&self, agent: usize, put: Put) -> (&'a [u8], ValueId, u32) {
        let agent = &self.scenario.agents[agent];
        let key = &agent.slots[put.slot as usize].key;
        let id = ValueId {
            owner: agent.number,
            key_hash: key.hash,
            version: put.version,
        };
        (self.scenario.name(key), id, key.bytes)
    }
}
