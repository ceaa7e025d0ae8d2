//! A driver of one lane, and its ledger: what the lane was told, what it could not be told any more, and
//! every state that a crash may leave.
//!
//! A worker owns the branches, tags and superpositions of its agent whose names begin with its prefix, so that
//! several work on one agent. Its journal has a model of all of that after each step of each operation: full
//! copies, of contents only. After a crash the runtime is read as a whole, and must be one of them, not older than the last
//! that was acknowledged as durable as the crash demands.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use helios::client::{
    Choice, ClientError, CollapseOptions, Lane, NewCheckpoint, NewSuperposition, Policy,
    PutOptions, Revision,
};
use helios::config::Durability;
use helios::id::{ObjectId, Retention};

use super::common::{Random, value_of};

/// Keys to values.
type State = BTreeMap<Vec<u8>, Arc<[u8]>>;

/// Branches of a worker, at most.
const BRANCHES_MAX: usize = 4;
/// Names that it gives to tags and superpositions.
const NAMES: u64 = 3;
/// Keys that it writes.
const KEYS: u64 = 24;
/// What the clock says from the beginning of a cut on: nobody hears of what is acknowledged then. A machine without
/// power says nothing; a file system that is shut down (ext4) may still say that a sync which began before is done.
pub const CUT: u64 = u64::MAX;

/// A branch: its working state, and what its head holds.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Branch {
    state: State,
    head: Option<Arc<State>>,
}

/// What a worker owns.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Model {
    branches: BTreeMap<String, Branch>,
    /// By name: whether others may read it, and what it holds.
    tags: BTreeMap<String, (bool, Arc<State>)>,
    /// Candidates of open superpositions.
    sets: BTreeMap<String, Vec<Arc<State>>>,
}

/// A state that a crash may leave.
struct Entry {
    model: Arc<Model>,
    /// Where the clock of the crashes stood when the operation began.
    begun: u64,
    /// And when it was acknowledged as safe from what the ledger is about.
    safe: Option<u64>,
    /// Where among all operations of the process it was asked for.
    asked: u64,
    /// And where it was acknowledged in whatever way.
    told: Option<u64>,
    /// The line of this file that asked for it.
    line: u32,
}

impl Entry {
    /// What is known to be there.
    fn known(model: Model) -> Self {
        Self {
            model: Arc::new(model),
            begun: 0,
            safe: Some(0),
            asked: 0,
            told: Some(0),
            line: 0,
        }
    }
}

/// Counts what is asked and acknowledged.
static ORDER: AtomicU64 = AtomicU64::new(1);

/// The states of a journal that what is there may be: from the earliest to the latest.
pub type Place = RangeInclusive<usize>;

/// Which crash the ledger is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Against {
    /// The death of the process: every acknowledgement counts.
    Kill,
    /// The loss of power: those count that say power-safe.
    Cut,
}

/// How a piece of work ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The worker may go on.
    Done,
    /// The runtime is gone, or its disk is.
    Gone,
}

/// What a lane was told about one operation.
type Told = Result<(), ClientError>;

/// The driver of one lane. See the module's header.
pub struct Worker {
    agent: String,
    prefix: char,
    against: Against,
    /// The branch that its lane is on.
    on: String,
    journal: Vec<Entry>,
    random: Random,
    /// Of how many values that might be large one is.
    large_one_in: u64,
    /// Of how many operations that may be power-safe one is to be.
    power_one_in: u64,
    /// Operations acknowledged, and states compared.
    pub acknowledged: u64,
}

impl Worker {
    /// A worker on what begins with `prefix` in `agent`; the one of `a` has branch `main`, too.
    pub fn new(agent: &str, prefix: char, against: Against, seed: u64) -> Self {
        let mut model = Model::default();
        if prefix == 'a' {
            model.branches.insert("main".into(), Branch::default());
        }
        Self {
            agent: agent.into(),
            prefix,
            against,
            on: String::new(),
            journal: vec![Entry::known(model)],
            random: Random(seed | 1),
            large_one_in: 1,
            power_one_in: 12,
            acknowledged: 0,
        }
    }

    /// The same with fewer large values, for whoever reads everything often.
    #[must_use]
    pub fn with_few_large_values(self) -> Self {
        Self {
            large_one_in: 8,
            ..self
        }
    }

    /// Has it ask for power safety more or less often.
    pub fn ask_for_power(&mut self, one_in: u64) {
        self.power_one_in = one_in;
    }

    /// Its agent.
    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// States that the journal has.
    pub fn journaled(&self) -> usize {
        self.journal.len()
    }

    fn owns(&self, name: &str) -> bool {
        name.starts_with(self.prefix) && name != "main" || self.prefix == 'a' && name == "main"
    }

    fn name(&mut self, kind: &str) -> String {
        format!("{}{kind}{}", self.prefix, self.random.below(NAMES))
    }

    /// Compares what is there with the journal, and goes on from it.
    ///
    /// # Errors
    /// What the runtime can't read, or that it is gone.
    ///
    /// # Panics
    /// Where it is none of the states that the crash may leave.
    pub fn check(&mut self, lane: &mut Lane) -> Result<(), ClientError> {
        let found = self.read(lane)?;
        let from = self.journal.iter().rposition(|entry| entry.safe.is_some());
        let from = from.unwrap_or(0);
        self.compare(&found, from, self.journal.len());
        self.journal.clear();
        self.journal.push(Entry::known(found));
        Ok(())
    }

    /// Which of the states that a cut at `at` of the clock may leave is there, else how it differs from them; the
    /// journal stays.
    ///
    /// # Errors
    /// As [`Worker::check`].
    pub fn place_at(&self, lane: &mut Lane, at: u64) -> Result<Result<Place, String>, ClientError> {
        let found = self.read(lane)?;
        let is_safe = |entry: &Entry| entry.safe.is_some_and(|safe| safe <= at);
        let from = self.journal.iter().rposition(is_safe).unwrap_or(0);
        let end = self.journal.partition_point(|entry| entry.begun <= at);
        Ok(self.place(&found, from, end.max(from + 1)))
    }

    /// Whether something of this worker is there that was asked for after an operation of another on the same agent was
    /// acknowledged, which is lost: what it was, if so.
    pub fn gap(&self, here: &Place, other: &Self, there: &Place) -> Option<String> {
        let survivor = &self.journal[*here.start()];
        let behind = other.journal.get(there.end() + 1..).unwrap_or_default();
        let lost = behind.iter().find(|entry| entry.told.is_some())?;
        let is_gap = self.agent == other.agent && lost.told < Some(survivor.asked);
        is_gap.then(|| {
            format!(
                "{}: line {} by {} is lost, and line {} by {}, asked for later, is not",
                self.agent, lost.line, other.prefix, survivor.line, self.prefix
            )
        })
    }

    /// Forgets what came after a cut at `at` of the clock: nobody heard of it.
    pub fn cut_at(&mut self, at: u64) {
        self.journal.retain(|entry| entry.begun <= at);
        for entry in &mut self.journal {
            entry.safe = entry.safe.filter(|safe| *safe <= at);
        }
    }

    /// What the clock said at each acknowledgement that counts.
    pub fn acknowledgements(&self) -> impl Iterator<Item = u64> {
        self.journal.iter().filter_map(|entry| entry.safe)
    }

    fn compare(&self, found: &Model, from: usize, end: usize) {
        if let Err(difference) = self.place(found, from, end) {
            panic!("{difference}");
        }
    }

    fn place(&self, found: &Model, from: usize, end: usize) -> Result<Place, String> {
        let allowed = &self.journal[from..end];
        let is_found = |entry: &Entry| *entry.model == *found;
        if let Some(first) = allowed.iter().position(is_found) {
            let last = allowed.iter().rposition(is_found).unwrap_or(first);
            return Ok(from + first..=from + last);
        }
        let (agent, prefix, journal) = (&self.agent, self.prefix, self.journal.len());
        let lines: Vec<_> = self.journal[from.saturating_sub(5)..end]
            .iter()
            .map(|entry| (entry.line, entry.safe.is_some()))
            .collect();
        let elsewhere = self.journal.iter().position(|it| *it.model == *found);
        let first = differences(&allowed[0].model, found);
        let last = differences(&allowed[allowed.len() - 1].model, found);
        Err(format!(
            "{agent}/{prefix}: none of the states {from}..{end} of {journal} (it is {elsewhere:?}; lines {lines:?})\n\
             against the first: {first}\nagainst the last: {last}"
        ))
    }

    /// Everything that the worker owns, as the runtime has it.
    fn read(&self, lane: &mut Lane) -> Result<Model, ClientError> {
        let mut model = Model::default();
        let mut checkpoints = Checkpoints::default();
        for branch in lane.branches("")?.items {
            if !self.owns(&branch.name) {
                continue;
            }
            let state = read_state(&mut lane.on(branch.no))?;
            let head = match branch.head {
                Some(head) => Some(checkpoints.read(lane, head)?),
                None => None,
            };
            model.branches.insert(branch.name, Branch { state, head });
        }
        let public = lane.published("")?.items;
        for (name, target) in lane.tags("")?.items {
            if self.owns(&name) {
                let is_public = public.iter().any(|(other, _)| *other == name);
                let state = checkpoints.read(lane, target)?;
                model.tags.insert(name, (is_public, state));
            }
        }
        for set in lane.superpositions(None)?.items {
            if self.owns(&set.name) {
                let mut states = Vec::new();
                for candidate in lane.candidates(set.no, None)?.items {
                    states.push(checkpoints.read(lane, candidate.head)?);
                }
                model.sets.insert(set.name, states);
            }
        }
        Ok(model)
    }

    /// Puts the lane where the worker works; to be called after an attach.
    pub fn begin(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let first = format!("{}0", self.prefix);
        let made = if self.model().branches.contains_key(&first) {
            Ended::Done
        } else {
            let mut after = Model::clone(&self.model());
            after.branches.insert(first.clone(), Branch::default());
            self.tell_as(Durability::Process, clock, vec![after], |_| {
                lane.branch(&first, Revision::Empty)?;
                lane.retain(&first, Retention::Last(2))
            })
        };
        if made == Ended::Done && lane.switch(&first).is_err() {
            return Ended::Gone;
        }
        self.on = first;
        made
    }

    /// One operation at random. `clock` says where the crashes stand.
    pub fn step(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        match self.random.below(64) {
            0..26 => self.put(lane, clock),
            26..32 => self.delete(lane, clock),
            32..35 => self.put_several(lane, clock),
            35..44 => self.checkpoint(lane, clock),
            44..46 if self.random.below(self.power_one_in) < 12 => self.sync(lane, clock),
            44..46 => self.put(lane, clock),
            46..49 => self.make_branch(lane, clock),
            49 => self.delete_branch(lane, clock),
            50..52 => self.restore(lane, clock),
            52..55 => self.merge(lane, clock),
            55..57 => self.keep(lane, clock),
            57..60 => self.tag(lane, clock),
            60..63 => self.superpose(lane, clock),
            _ => self.end_set(lane, clock),
        }
    }

    /// The newest state.
    fn model(&self) -> Arc<Model> {
        let newest = self.journal.last().expect("a journal is never empty");
        Arc::clone(&newest.model)
    }

    fn here(&self) -> Branch {
        self.model().branches[&self.on].clone()
    }

    /// The model once the branch that the lane is on is this.
    fn with_here(&self, branch: Branch) -> Model {
        let mut after = Model::clone(&self.model());
        after.branches.insert(self.on.clone(), branch);
        after
    }

    /// Does an operation that leaves the last of `steps`, and in a crash any of them; now and then it is to be
    /// power-safe, which `ask` has to ask for. Without steps it is a sync.
    #[track_caller]
    fn tell(
        &mut self,
        clock: &dyn Fn() -> u64,
        steps: Vec<Model>,
        ask: impl FnOnce(Durability) -> Told,
    ) -> Ended {
        let durability = match self.random.below(self.power_one_in) {
            0 => Durability::Power,
            _ => Durability::Process,
        };
        self.tell_as(durability, clock, steps, ask)
    }

    #[track_caller]
    fn tell_as(
        &mut self,
        durability: Durability,
        clock: &dyn Fn() -> u64,
        steps: Vec<Model>,
        ask: impl FnOnce(Durability) -> Told,
    ) -> Ended {
        let asked = ORDER.fetch_add(1, Ordering::SeqCst);
        let (begun, before) = (clock(), self.journal.len());
        let is_sync = steps.is_empty();
        let line = Location::caller().line();
        self.journal.extend(steps.into_iter().map(|model| Entry {
            model: Arc::new(model),
            begun,
            safe: None,
            asked,
            told: None,
            line,
        }));
        let told = ask(durability);
        match told {
            Ok(()) => {
                self.acknowledged += 1;
                let order = ORDER.fetch_add(1, Ordering::SeqCst);
                let newest = self.journal.last_mut().expect("a journal is never empty");
                newest.told.get_or_insert(order);
                // What wrote nothing has nothing to sync, and says nothing of what was written before.
                let wrote = is_sync || self.journal[before - 1].model != self.model();
                let now = clock();
                if durability == Durability::Power && wrote && now != CUT
                    || self.against == Against::Kill
                {
                    let newest = self.journal.last_mut().expect("a journal is never empty");
                    newest.safe = Some(now);
                }
                if self.against == Against::Kill {
                    self.journal.drain(..self.journal.len() - 1);
                }
                Ended::Done
            }
            // Nothing was done, and nothing will be.
            Err(ClientError::Busy { .. } | ClientError::LaneFull) => {
                self.journal.truncate(before);
                Ended::Done
            }
            Err(error) if is_gone(&error) => Ended::Gone,
            // The device is gone: a refused write may be there all the same.
            Err(
                ClientError::IoFailed { .. }
                | ClientError::ReadOnly
                | ClientError::NoSpace
                | ClientError::Corrupt
                // Parts of a large value that a flush which failed took along, try after try.
                | ClientError::UploadOutOfOrder { .. },
            ) if self.against == Against::Cut => Ended::Gone,
            Err(error) => panic!("{}/{}: {error}", self.agent, self.prefix),
        }
    }

    fn key(&mut self) -> Vec<u8> {
        format!("key {}", self.random.below(KEYS)).into_bytes()
    }

    fn value(&mut self) -> Arc<[u8]> {
        let is_large = self.random.below(self.large_one_in) == 0;
        let bytes = match self.random.below(40) {
            0 if is_large => 90_000,
            1..4 if is_large => 20_000,
            4..10 if is_large => 5_000,
            10..12 => 0,
            _ => self.random.below(1_500) as usize,
        };
        self.random.bytes(bytes).into()
    }

    fn put(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let (key, value) = (self.key(), self.value());
        let mut branch = self.here();
        branch.state.insert(key.clone(), Arc::clone(&value));
        let after = self.with_here(branch);
        self.tell(clock, vec![after], |durability| {
            lane.put_with(&key, &value, durable(durability)).map(drop)
        })
    }

    fn delete(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let key = self.key();
        let mut branch = self.here();
        let was_there = branch.state.remove(&key).is_some();
        let after = self.with_here(branch);
        self.tell(clock, vec![after], |durability| {
            let deleted = lane.delete_with(&key, durable(durability))?;
            assert_eq!(deleted, was_there);
            Ok(())
        })
    }

    /// Several keys in one request, of which a crash may keep the first ones.
    fn put_several(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let mut branch = self.here();
        let (mut steps, mut pairs) = (Vec::new(), BTreeMap::new());
        for _ in 0..4 {
            pairs.insert(self.key(), self.random.bytes(700));
        }
        for (key, value) in &pairs {
            branch.state.insert(key.clone(), value.clone().into());
            steps.push(self.with_here(branch.clone()));
        }
        self.tell(clock, steps, |durability| {
            let pairs = pairs.iter().map(|(key, value)| (&key[..], &value[..]));
            let pairs: Vec<_> = pairs.collect();
            lane.multi_put(&pairs, Some(durability)).map(drop)
        })
    }

    fn checkpoint(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let mut branch = self.here();
        let mut steps = Vec::new();
        let write = (self.random.below(3) == 0).then(|| (self.key(), self.value()));
        if let Some((key, value)) = &write {
            branch.state.insert(key.clone(), Arc::clone(value));
            steps.push(self.with_here(branch.clone()));
        }
        branch.head = Some(Arc::new(branch.state.clone()));
        steps.push(self.with_here(branch));
        self.tell(clock, steps, |durability| match &write {
            Some((key, value)) => lane
                .put_and_checkpoint(key, value, &new(durability))
                .map(drop),
            None => lane.checkpoint(&new(durability)).map(drop),
        })
    }

    /// Has everything that was acknowledged so far made safe.
    fn sync(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        self.tell_as(Durability::Power, clock, Vec::new(), |durability| {
            lane.sync(durability).map(drop)
        })
    }

    fn make_branch(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let model = self.model();
        if model.branches.len() < BRANCHES_MAX {
            let name = self.name("");
            if model.branches.contains_key(&name) {
                return Ended::Done;
            }
            let head = self.here().head;
            let state = head.as_deref().cloned().unwrap_or_default();
            let mut after = Model::clone(&model);
            after.branches.insert(name.clone(), Branch { state, head });
            let from = self.on.clone();
            let made = self.tell_as(Durability::Process, clock, vec![after], |_| {
                lane.branch(&name, Revision::Branch(&from)).map(drop)
            });
            if made == Ended::Gone || lane.retain(&name, Retention::Last(2)).is_err() {
                return Ended::Gone;
            }
        }
        let at = self.random.below(self.model().branches.len() as u64) as usize;
        let to = self.model().branches.keys().nth(at).cloned();
        self.switch(lane, &to.expect("below their number"))
    }

    fn switch(&mut self, lane: &mut Lane, to: &str) -> Ended {
        match lane.switch(to) {
            Ok(_) => {
                to.clone_into(&mut self.on);
                Ended::Done
            }
            Err(ClientError::Busy { .. }) => Ended::Done,
            Err(_) => Ended::Gone,
        }
    }

    fn delete_branch(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let model = self.model();
        let mut names = model.branches.keys();
        let name = names.find(|name| *name != "main" && **name != self.on);
        let Some(name) = name.cloned() else {
            return Ended::Done;
        };
        let mut after = Model::clone(&model);
        after.branches.remove(&name);
        self.tell_as(Durability::Process, clock, vec![after], |_| {
            lane.delete_branch(&name, true)
        })
    }

    fn restore(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let model = self.model();
        let at = self.random.below(NAMES) as usize % model.tags.len().max(1);
        let Some((name, (_, state))) = model.tags.iter().nth(at) else {
            return Ended::Done;
        };
        let mut branch = self.here();
        branch.state = State::clone(state);
        let after = self.with_here(branch);
        self.tell_as(Durability::Process, clock, vec![after], |_| {
            lane.restore(Revision::Tag(name), true)
        })
    }

    /// What a fork from the head changed, saved, and merged back: behind changes of the branch, or as a step ahead.
    fn merge(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        if self.checkpoint(lane, clock) == Ended::Gone {
            return Ended::Gone;
        }
        let Some(base) = self.here().head.filter(|head| **head == self.here().state) else {
            return Ended::Done;
        };
        let mut theirs = State::clone(&base);
        let Some(other) = self.checkpoint_of_fork(lane, &mut theirs) else {
            return self.ended(lane);
        };
        if self.random.below(3) > 0
            && (self.put(lane, clock) == Ended::Gone || self.checkpoint(lane, clock) == Ended::Gone)
        {
            return Ended::Gone;
        }
        let mut branch = self.here();
        if branch.head.as_deref() != Some(&branch.state) {
            return Ended::Done;
        }
        branch.state = merged(&base, &branch.state, &theirs);
        branch.head = Some(Arc::new(branch.state.clone()));
        let after = self.with_here(branch);
        self.tell(clock, vec![after], |durability| {
            let other = Revision::Checkpoint(other);
            lane.merge(other, &[(b"", Policy::Theirs)], &new(durability))
                .map(drop)
        })
    }

    /// Whether the runtime is there after something went wrong that the journal does not have.
    fn ended(&self, lane: &mut Lane) -> Ended {
        lane.describe().map_or(Ended::Gone, |_| Ended::Done)
    }

    /// Makes a fork from the head, changes it as it changes `state`, saves it and drops it; the checkpoint.
    fn checkpoint_of_fork(&mut self, lane: &mut Lane, state: &mut State) -> Option<[u8; 32]> {
        let fork = lane.fork(Revision::Head).ok()?.no;
        let (key, value, gone) = (self.key(), self.value(), self.key());
        let mut on = lane.on(fork);
        let written = on.put(&key, &value).is_ok() && on.delete(&gone).is_ok();
        let made = written.then(|| on.checkpoint(&NewCheckpoint::default()));
        drop(on);
        state.insert(key, value);
        state.remove(&gone);
        let made = made?.ok()?;
        // What is merged or added lives by the fork until then; a collection may come at any time.
        self.hold(lane, fork, made.id.as_bytes())
    }

    /// Drops the fork of before, and keeps this one.
    fn hold(
        &mut self,
        lane: &mut Lane,
        fork: helios::id::BranchNo,
        id: &[u8; 32],
    ) -> Option<[u8; 32]> {
        let tag = format!("{}hold", self.prefix.to_ascii_uppercase());
        lane.tag(&tag, Revision::Checkpoint(*id), true).ok()?;
        lane.discard(fork).ok()?;
        Some(*id)
    }

    /// A branch made of a fork with changes that no checkpoint has.
    fn keep(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let (model, name) = (self.model(), self.name(""));
        if model.branches.len() >= BRANCHES_MAX || model.branches.contains_key(&name) {
            return Ended::Done;
        }
        let head = self.here().head;
        let mut state = head.as_deref().cloned().unwrap_or_default();
        let (key, value) = (self.key(), self.value());
        state.insert(key.clone(), Arc::clone(&value));
        let from = if head.is_some() {
            Revision::Head
        } else {
            Revision::Empty
        };
        let Ok(fork) = lane.fork(from) else {
            return self.ended(lane);
        };
        if lane.on(fork.no).put(&key, &value).is_err() {
            return self.ended(lane);
        }
        let mut after = Model::clone(&model);
        after.branches.insert(name.clone(), Branch { state, head });
        self.tell_as(Durability::Process, clock, vec![after], |_| {
            lane.keep(fork.no, &name).map(drop)
        })
    }

    fn tag(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let (name, public) = (self.name("t"), self.random.below(2) == 0);
        let mut after = Model::clone(&self.model());
        if after.tags.contains_key(&name) && self.random.below(3) == 0 {
            after.tags.remove(&name);
            return self.tell_as(Durability::Process, clock, vec![after], |_| {
                lane.untag(&name)
            });
        }
        let Some(head) = self.here().head else {
            return Ended::Done;
        };
        after.tags.insert(name.clone(), (public, head));
        self.tell_as(Durability::Process, clock, vec![after], |_| match public {
            true => lane.publish(&name, Revision::Head, true),
            false => lane.tag(&name, Revision::Head, true),
        })
    }

    /// A superposition of one or two candidates; it is collapsed later, or released.
    fn superpose(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let name = self.name("s");
        if self.model().sets.contains_key(&name) {
            return self.end_set(lane, clock);
        }
        let Some(base) = self.here().head else {
            return Ended::Done;
        };
        let mut after = Model::clone(&self.model());
        after.sets.insert(name.clone(), Vec::new());
        let mut set = None;
        let made = self.tell_as(Durability::Process, clock, vec![after], |_| {
            let new = NewSuperposition {
                name: &name,
                ..NewSuperposition::default()
            };
            set = Some(lane.superpose(&new)?.no);
            Ok(())
        });
        let Some(set) = set else { return made };
        for _ in 0..=self.random.below(2) {
            let mut state = State::clone(&base);
            let Some(candidate) = self.checkpoint_of_fork(lane, &mut state) else {
                return self.ended(lane);
            };
            let mut after = Model::clone(&self.model());
            let candidates = after.sets.get_mut(&name).expect("just inserted");
            candidates.push(Arc::new(state));
            let added = self.tell_as(Durability::Process, clock, vec![after], |_| {
                let from = Revision::Checkpoint(candidate);
                lane.add_candidate(set, from, 1.0, "try").map(drop)
            });
            if added == Ended::Gone {
                return Ended::Gone;
            }
        }
        Ended::Done
    }

    /// Collapses a superposition into the branch here, or releases it.
    fn end_set(&mut self, lane: &mut Lane, clock: &dyn Fn() -> u64) -> Ended {
        let mut after = Model::clone(&self.model());
        let Some((name, candidates)) = after.sets.pop_first() else {
            return Ended::Done;
        };
        let (Ok(listed), Ok(info)) = (lane.superpositions(None), lane.describe()) else {
            return self.ended(lane);
        };
        let set = listed.items.iter().find(|set| set.name == name);
        let set = set.expect("a superposition of the model").no;
        if candidates.is_empty() || self.random.below(4) == 0 {
            return self.tell_as(Durability::Process, clock, vec![after], |_| {
                lane.release_superposition(set)
            });
        }
        let at = self.random.below(candidates.len() as u64) as usize;
        let state = Arc::clone(&candidates[at]);
        let branch = Branch {
            state: State::clone(&state),
            head: Some(state),
        };
        after.branches.insert(self.on.clone(), branch);
        let into = self.on.clone();
        self.tell(clock, vec![after], |durability| {
            let options = CollapseOptions {
                into: Some(&into),
                expect: Some(info.head),
                force: true,
                durability: Some(durability),
            };
            lane.collapse(set, Choice::Candidate(at as u32), &options)
                .map(drop)
        })
    }
}

fn durable(durability: Durability) -> PutOptions {
    PutOptions {
        durability: Some(durability),
        ..PutOptions::default()
    }
}

fn new(durability: Durability) -> NewCheckpoint<'static> {
    NewCheckpoint {
        durability: Some(durability),
        ..NewCheckpoint::default()
    }
}

/// Three ways, key by key; what both changed is as they have it.
fn merged(base: &State, ours: &State, theirs: &State) -> State {
    let mut merged = ours.clone();
    for key in base.keys().chain(theirs.keys()) {
        if base.get(key) != theirs.get(key) {
            match theirs.get(key) {
                Some(value) => drop(merged.insert(key.clone(), Arc::clone(value))),
                None => drop(merged.remove(key)),
            }
        }
    }
    merged
}

fn read_state(lane: &mut Lane) -> Result<State, ClientError> {
    let (mut state, mut after) = (State::new(), Vec::new());
    loop {
        let page = lane.scan(b"", &after, 0)?;
        for found in page.keys {
            let value = value_of(lane, &found.key)?.expect("what a scan finds is there");
            after.clone_from(&found.key);
            state.insert(found.key, value.into());
        }
        if !page.more {
            return Ok(state);
        }
    }
}

/// What was read: several names often have one checkpoint.
#[derive(Default)]
struct Checkpoints(BTreeMap<[u8; 32], Arc<State>>);

impl Checkpoints {
    fn read(&mut self, lane: &mut Lane, checkpoint: ObjectId) -> Result<Arc<State>, ClientError> {
        let id = *checkpoint.as_bytes();
        if let Some(state) = self.0.get(&id) {
            return Ok(Arc::clone(state));
        }
        let fork = lane.fork(Revision::Checkpoint(id))?.no;
        let state = Arc::new(read_state(&mut lane.on(fork))?);
        lane.discard(fork)?;
        self.0.insert(id, Arc::clone(&state));
        Ok(state)
    }
}

/// Whether an error says that the runtime is gone.
pub fn is_gone(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::RuntimeGone
            | ClientError::Closed { .. }
            | ClientError::Socket(_)
            | ClientError::Session(_)
    )
}

/// Where two models differ, in a few lines.
fn differences(wanted: &Model, found: &Model) -> String {
    let mut lines = Vec::new();
    let states = |one: &State, other: &State| {
        let keys = one.keys().chain(other.keys());
        let keys = keys.filter(|key| one.get(*key) != other.get(*key));
        let mut keys: Vec<_> = keys.map(|key| String::from_utf8_lossy(key)).collect();
        keys.dedup();
        keys.truncate(4);
        keys.join(", ")
    };
    for name in wanted.branches.keys().chain(found.branches.keys()) {
        match (wanted.branches.get(name), found.branches.get(name)) {
            (Some(one), Some(other)) if one != other => lines.push(format!(
                "branch {name}: keys [{}], the head is {}",
                states(&one.state, &other.state),
                if one.head == other.head {
                    "equal"
                } else {
                    "another"
                }
            )),
            (Some(_), None) => lines.push(format!("branch {name} is missing")),
            (None, Some(_)) => lines.push(format!("branch {name} should not be")),
            _ => {}
        }
    }
    if wanted.tags != found.tags {
        let (one, other) = (wanted.tags.keys(), found.tags.keys());
        lines.push(format!(
            "tags {:?} and {:?}",
            one.collect::<Vec<_>>(),
            other.collect::<Vec<_>>()
        ));
    }
    if wanted.sets != found.sets {
        let counts = |model: &Model| {
            let sets = model.sets.iter();
            sets.map(|(name, set)| (name.clone(), set.len()))
                .collect::<Vec<_>>()
        };
        lines.push(format!("sets {:?} and {:?}", counts(wanted), counts(found)));
    }
    lines.join("; ")
}
