//! Drives the agents of one worker: preload, then walk, timing each call and checking each read.
//!
//! Floor 5, part of `replay`. Knows a lane only as a [`Port`], so that a plain map can stand in for
//! the runtime in tests, faults included.
//!
//! Invariants
//! - a time starts right before a call and ends right after it; making and checking values is
//!   outside.
//! - a read is right only if exactly the bytes of the expected version came back.
//! - what an agent does beside its script comes right after the access that it belongs to (`deeds`).
//! - a call that is answered with Busy is made again and changes no count but that of Busy; after
//!   [`BUSY_MAX`] without an end the replay fails.

use std::thread;
use std::time::{Duration, Instant};

use super::deeds::{Ids, Versions};
use super::messages::{Progress, Walked};
use super::scenario::{COMMONS_NAME, Deal, Scenario};
use super::tally::{Call, Tally, elapsed_ns};
use super::values::{COMMONS, ValueId, Values};
use super::walk::{Access, Kind, Walk};

/// Least time between two power syncs of a worker, so that they don't make up the run.
const SYNC_INTERVAL: Duration = Duration::from_millis(20);
/// How long one call may be answered with Busy.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// Accesses between two looks at the clock.
const ACCESSES_PER_LOOK: u64 = 32;
/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A shorter wait is not worth a system call.
const SLEEP_MIN_NS: u64 = 60_000;

/// An agent's way to its state.
pub(super) trait Port: Versions {
    /// Replaces `value` by the agent's own value of a key; `None` if there is none.
    fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<Option<Call>, Refusal>;
    /// The same for a value of the commons.
    fn get_common(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<Option<Call>, Refusal>;
    /// Writes a value of the agent.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal>;
    /// Waits until the agent's writes would survive a power cut.
    fn sync(&mut self) -> Result<(), Refusal>;
}

/// Why a call was not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Try again.
    Busy,
    /// Something is wrong.
    Failed(anyhow::Error),
}

/// The agents of one worker, at work.
pub(super) struct Drive<'a, P> {
    pub(super) scenario: &'a Scenario,
    pub(super) ports: Vec<P>,
    pub(super) values: Values,
    walk: Walk,
    /// Nanoseconds of the schedule that earlier walks used up.
    schedule_ns: u64,
    pub(super) value: Vec<u8>,
    pub(super) tally: Tally,
    /// Each agent's checkpoints.
    pub(super) ids: Vec<Ids>,
    unsynced: Vec<bool>,
    next_sync: Instant,
    pub(super) next_power: Instant,
}

impl<'a, P: Port> Drive<'a, P> {
    /// `ports` has one for each agent of the scenario, in order.
    pub(super) fn new(scenario: &'a Scenario, deal: &Deal, think: f64, ports: Vec<P>) -> Self {
        assert_eq!(ports.len(), scenario.agents.len(), "a port for each agent");
        Self {
            scenario,
            values: Values::new(deal.seed),
            walk: Walk::new(scenario, deal, think),
            schedule_ns: 0,
            value: Vec::new(),
            tally: Tally::default(),
            ids: vec![Ids::new(); ports.len()],
            unsynced: vec![false; ports.len()],
            ports,
            next_sync: Instant::now(),
            next_power: Instant::now(),
        }
    }

    /// Writes what the agents will read before they write it, and, through `commons`, what all of
    /// them will read; then makes sure of it.
    pub(super) fn preload(
        &mut self,
        commons: Option<&mut P>,
        mut progress: impl FnMut(Progress) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut done = 0;
        if let Some(port) = commons {
            for key in &self.scenario.commons {
                let id = initial(COMMONS, key.hash);
                self.values.fill(id, key.bytes, &mut self.value);
                let name = self.scenario.name(key);
                again(&mut 0, || port.put(name, &self.value))?;
                done += 1;
            }
            again(&mut 0, || port.sync())?;
        }
        let mut look = Instant::now();
        for (index, agent) in self.scenario.agents.iter().enumerate() {
            let port = &mut self.ports[index];
            for slot in agent.slots.iter().filter(|slot| slot.preload) {
                let id = initial(agent.number, slot.key.hash);
                self.values.fill(id, slot.key.bytes, &mut self.value);
                let name = self.scenario.name(&slot.key);
                again(&mut 0, || port.put(name, &self.value))?;
                done += 1;
            }
            self.begin_history(index)?;
            if look.elapsed() > PROGRESS_INTERVAL {
                look = Instant::now();
                progress(Progress { done })?;
            }
        }
        for port in &mut self.ports {
            again(&mut 0, || port.sync())?;
        }
        progress(Progress { done })
    }

    /// Lets the agents go on until `duration` is over.
    pub(super) fn walk(
        &mut self,
        duration: Duration,
        mut progress: impl FnMut(Progress) -> anyhow::Result<()>,
    ) -> anyhow::Result<Walked> {
        self.tally = Tally::default();
        let start = Instant::now();
        let mut look = start;
        let mut accesses = 0;
        while start.elapsed() < duration {
            for _ in 0..ACCESSES_PER_LOOK {
                let access = self.walk.next(self.scenario);
                self.wait(&access, start);
                self.make(access)?;
                accesses += 1;
            }
            if look.elapsed() > PROGRESS_INTERVAL {
                look = Instant::now();
                progress(Progress { done: accesses })?;
            }
        }
        let elapsed = start.elapsed();
        self.schedule_ns += u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Ok(Walked {
            accesses,
            seconds: elapsed.as_secs_f64(),
            state_bytes: self.walk.state_bytes(self.scenario),
            tally: std::mem::take(&mut self.tally),
        })
    }

    /// Waits for the time of an access, if it has one.
    fn wait(&self, access: &Access, start: Instant) {
        let due_ns = access.due_ns.saturating_sub(self.schedule_ns);
        if due_ns == 0 {
            return;
        }
        loop {
            let left_ns = due_ns.saturating_sub(elapsed_ns(start));
            match left_ns {
                0 => return,
                SLEEP_MIN_NS.. => thread::sleep(Duration::from_nanos(left_ns - SLEEP_MIN_NS / 2)),
                _ => std::hint::spin_loop(),
            }
        }
    }

    fn make(&mut self, access: Access) -> anyhow::Result<()> {
        let (key, id) = access.value(self.scenario);
        let name = self.scenario.name(key);
        let port = &mut self.ports[access.agent];
        let busy = &mut self.tally.busy_replies;
        if let Kind::Write { .. } = access.kind {
            self.values.fill(id, key.bytes, &mut self.value);
            let ((), ns) = again(busy, || port.put(name, &self.value))?;
            self.tally.time(Call::Write, ns);
            self.unsynced[access.agent] = true;
        } else {
            let common = matches!(access.kind, Kind::ReadCommons { .. });
            let (found, ns) = again(busy, || {
                if common {
                    port.get_common(name, &mut self.value)
                } else {
                    port.get(name, &mut self.value)
                }
            })?;
            if let Some(tier) = found {
                self.tally.time(tier, ns);
            }
            self.tally.reads_checked += 1;
            self.check(found.is_some(), id, key.bytes, name);
        }
        if access.last && self.unsynced[access.agent] {
            self.sync(access.agent)?;
        }
        for no in 0..self.walk.deeds().len() {
            let deed = self.walk.deeds()[no].clone();
            self.carry_out(access.agent, &deed)?;
        }
        Ok(())
    }

    /// Compares what was found, in the drive's buffer, with the value that must be there.
    pub(super) fn check(&mut self, found: bool, id: ValueId, bytes: u32, name: &[u8]) {
        let who = |reason: String| {
            let name = String::from_utf8_lossy(name);
            match id.owner {
                COMMONS => format!("{COMMONS_NAME}, key {name:?}: {reason}"),
                agent => format!("agent {agent}, key {name:?}: {reason}"),
            }
        };
        if !found {
            let reason = format!("no value where version {} must be", id.version);
            self.tally.mismatch(|| who(reason));
        } else if let Err(mismatch) = self.values.check(id, bytes, &self.value) {
            self.tally.mismatch(|| who(mismatch.to_string()));
        }
    }

    fn sync(&mut self, agent: usize) -> anyhow::Result<()> {
        let now = Instant::now();
        if now < self.next_sync {
            return Ok(());
        }
        let port = &mut self.ports[agent];
        let ((), ns) = again(&mut self.tally.busy_replies, || port.sync())?;
        self.tally.time(Call::Sync, ns);
        self.unsynced[agent] = false;
        self.next_sync = now + SYNC_INTERVAL;
        Ok(())
    }
}

fn initial(owner: u32, key_hash: u64) -> ValueId {
    ValueId {
        owner,
        key_hash,
        version: 0,
    }
}

/// Makes a call until it is not answered with Busy; returns how long the last one took.
pub(super) fn again<T>(
    busy: &mut u64,
    mut call: impl FnMut() -> Result<T, Refusal>,
) -> anyhow::Result<(T, u64)> {
    let mut first = None;
    loop {
        let start = Instant::now();
        let answer = call();
        let ns = elapsed_ns(start);
        match answer {
            Ok(answer) => return Ok((answer, ns)),
            Err(Refusal::Failed(error)) => return Err(error),
            Err(Refusal::Busy) => {
                *busy += 1;
                if first.get_or_insert(start).elapsed() > BUSY_MAX {
                    anyhow::bail!("the runtime has said Busy for {BUSY_MAX:?}");
                }
                thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::replay::deeds::{Candidate, Merging};
    use crate::cli::replay::trace::Trace;
    use helios::id::{BranchNo, ObjectId};
    use std::cell::RefCell;
    use std::collections::{BTreeMap, HashMap};
    use std::path::Path;
    use std::rc::Rc;

    const DEAL: Deal = Deal {
        agents: 5,
        workers: 1,
        seed: 9,
    };

    type State = HashMap<(usize, Vec<u8>), Vec<u8>>;

    /// What the runtime may do wrong.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Fault {
        None,
        LosesAWrite,
        ServesAnotherAgent,
        CutsShort,
        Forgets,
        NeverReady,
        RestoresNothing,
        MergesHalf,
        ForksLeak,
        SharesCheckpoints,
        HidesConflicts,
        DiffsTooMuch,
        CollapsesWrong,
    }

    type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

    /// A branch or fork that is not main.
    struct Other {
        name: String,
        base: Keys,
        keys: Keys,
    }

    /// A runtime made of one map.
    struct Model {
        agent: usize,
        state: Rc<RefCell<State>>,
        fault: Fault,
        calls: u64,
        others: BTreeMap<u32, Other>,
        made: Vec<Keys>,
        tags: HashMap<String, ObjectId>,
    }

    impl Model {
        fn keys(&self) -> Keys {
            let state = self.state.borrow();
            let own = state.iter().filter(|((agent, _), _)| *agent == self.agent);
            own.map(|((_, key), value)| (key.clone(), value.clone()))
                .collect()
        }

        fn set_keys(&mut self, keys: Keys) {
            let mut state = self.state.borrow_mut();
            state.retain(|(agent, _), _| *agent != self.agent);
            let own = keys.into_iter();
            state.extend(own.map(|(key, value)| ((self.agent, key), value)));
        }

        fn make(&mut self, keys: Keys) -> ObjectId {
            self.made.push(keys);
            let mut id = [0; 32];
            id[..8].copy_from_slice(&self.made.len().to_le_bytes());
            ObjectId::from_bytes(id)
        }

        fn made(&self, id: &ObjectId) -> &Keys {
            let (number, _) = id.as_bytes().split_first_chunk().unwrap();
            let index = usize::from_le_bytes(*number) - 1;
            match self.fault {
                Fault::SharesCheckpoints => self.made.last().unwrap(),
                _ => &self.made[index],
            }
        }

        fn open(&mut self, name: &str, keys: Keys) -> BranchNo {
            let no = self.others.keys().last().map_or(1, |last| last + 1);
            let base = keys.clone();
            let name = name.to_owned();
            self.others.insert(no, Other { name, base, keys });
            BranchNo(no)
        }
        fn busy(&mut self) -> Result<(), Refusal> {
            self.calls += 1;
            if self.calls.is_multiple_of(7) {
                return Err(Refusal::Busy);
            }
            if self.fault == Fault::NeverReady && self.calls > 100 {
                return Err(Refusal::Failed(anyhow::anyhow!("the runtime is gone")));
            }
            Ok(())
        }

        fn read(&self, agent: usize, key: &[u8], value: &mut Vec<u8>) -> Option<Call> {
            value.clear();
            value.extend(self.state.borrow().get(&(agent, key.to_vec()))?);
            Some([Call::L1, Call::L2, Call::L3, Call::Cold][self.calls as usize % 4])
        }
    }

    impl Port for Model {
        fn get(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<Option<Call>, Refusal> {
            self.busy()?;
            let rare = self.calls.is_multiple_of(50);
            let agent = match self.fault {
                Fault::ServesAnotherAgent if rare => (self.agent + 1) % 5,
                Fault::Forgets if rare => return Ok(None),
                _ => self.agent,
            };
            let found = self.read(agent, key, value);
            if self.fault == Fault::CutsShort && rare {
                value.pop();
            }
            Ok(found)
        }

        fn get_common(&mut self, key: &[u8], value: &mut Vec<u8>) -> Result<Option<Call>, Refusal> {
            self.busy()?;
            Ok(self.read(usize::MAX, key, value))
        }

        fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
            self.busy()?;
            if self.fault != Fault::LosesAWrite || !self.calls.is_multiple_of(50) {
                let place = (self.agent, key.to_vec());
                self.state.borrow_mut().insert(place, value.to_vec());
            }
            Ok(())
        }

        fn sync(&mut self) -> Result<(), Refusal> {
            self.busy()
        }
    }

    impl Versions for Model {
        fn checkpoint(&mut self, on: Option<BranchNo>, _: bool) -> Result<ObjectId, Refusal> {
            self.busy()?;
            let keys = on.map_or_else(|| self.keys(), |on| self.others[&on.0].keys.clone());
            Ok(self.make(keys))
        }

        fn branch(&mut self, name: &str) -> Result<BranchNo, Refusal> {
            self.busy()?;
            assert!(self.others.values().all(|other| other.name != name));
            let keys = self.made.last().unwrap().clone();
            Ok(self.open(name, keys))
        }

        fn remove_branch(&mut self, name: &str) -> Result<(), Refusal> {
            self.busy()?;
            self.others.retain(|_, other| other.name != name);
            Ok(())
        }

        fn fork(&mut self, from: &ObjectId) -> Result<BranchNo, Refusal> {
            self.busy()?;
            let keys = self.made(from).clone();
            Ok(self.open("", keys))
        }

        fn discard(&mut self, fork: BranchNo) -> Result<(), Refusal> {
            self.busy()?;
            let gone = self.others.remove(&fork.0);
            assert!(gone.is_some_and(|gone| gone.name.is_empty()));
            Ok(())
        }

        fn put_on(&mut self, on: BranchNo, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
            self.busy()?;
            if self.fault == Fault::ForksLeak {
                let place = (self.agent, key.to_vec());
                self.state.borrow_mut().insert(place, value.to_vec());
            }
            let other = self.others.get_mut(&on.0).unwrap();
            other.keys.insert(key.to_vec(), value.to_vec());
            Ok(())
        }

        fn get_on(
            &mut self,
            on: BranchNo,
            key: &[u8],
            value: &mut Vec<u8>,
        ) -> Result<bool, Refusal> {
            self.busy()?;
            value.clear();
            let found = self.others[&on.0].keys.get(key);
            value.extend(found.into_iter().flatten());
            Ok(found.is_some())
        }

        fn merge(&mut self, from: &str, theirs: Option<&[u8]>) -> Result<Merging, Refusal> {
            self.busy()?;
            let (mut keys, mut conflicts) = (self.keys(), Vec::new());
            let other = self.others.values().find(|other| other.name == from);
            let other = other.unwrap();
            for (key, value) in &other.keys {
                let base = other.base.get(key);
                let ours = keys.get(key);
                if Some(value) == base || Some(value) == ours {
                    continue;
                }
                if ours != base && theirs != Some(key) {
                    conflicts.push(key.clone());
                    continue;
                }
                keys.insert(key.clone(), value.clone());
                if self.fault == Fault::MergesHalf {
                    break;
                }
            }
            if !conflicts.is_empty() && self.fault != Fault::HidesConflicts {
                return Ok(Merging::Conflicts(conflicts));
            }
            self.set_keys(keys.clone());
            Ok(Merging::Done(self.make(keys)))
        }

        fn suspend(&mut self) -> Result<(), Refusal> {
            self.busy()
        }

        fn restore(&mut self, to: &ObjectId) -> Result<(), Refusal> {
            self.busy()?;
            if self.fault != Fault::RestoresNothing {
                self.set_keys(self.made(to).clone());
            }
            Ok(())
        }

        fn diff(&mut self, before: &ObjectId, after: &ObjectId) -> Result<Vec<Vec<u8>>, Refusal> {
            self.busy()?;
            let (before, after) = (self.made(before), self.made(after));
            let all = self.fault == Fault::DiffsTooMuch;
            let differ = after
                .iter()
                .filter(|(key, value)| all || before.get(*key) != Some(value));
            Ok(differ.map(|(key, _)| key.clone()).collect())
        }

        fn superpose(
            &mut self,
            candidates: &[Candidate<'_>],
            choice: Option<usize>,
            values: &mut [Vec<u8>],
        ) -> Result<Option<ObjectId>, Refusal> {
            self.busy()?;
            for (candidate, value) in candidates.iter().zip(values) {
                value.clone_from(&self.made(&candidate.head)[candidate.key]);
            }
            let Some(choice) = choice else {
                return Ok(None);
            };
            if self.fault != Fault::CollapsesWrong {
                self.set_keys(self.made(&candidates[choice].head).clone());
            }
            let keys = self.keys();
            self.made.push(keys);
            Ok(Some(candidates[choice].head))
        }

        fn tag(&mut self, name: &str) -> Result<(), Refusal> {
            self.busy()?;
            let mut head = [0; 32];
            head[..8].copy_from_slice(&self.made.len().to_le_bytes());
            self.tags
                .insert(name.to_owned(), ObjectId::from_bytes(head));
            Ok(())
        }

        fn tagged(&mut self, name: &str) -> Result<Option<ObjectId>, Refusal> {
            self.busy()?;
            Ok(self.tags.get(name).copied())
        }
    }

    fn scenario() -> Scenario {
        let mut text = String::from("agent_id,seq,key,op\n");
        for process in 0..8 {
            for access in 0..40 {
                let op = if access % 5 == 2 { "write" } else { "read" };
                let key = (access * 7 + process) % 23;
                let name = if key < 3 { "common" } else { "own" };
                let of = if key < 3 { 0 } else { process / 2 };
                text += &format!("p{process},0,/{name}/{of}/{key},{op}\n");
            }
        }
        let trace = Trace::read(text.as_bytes(), Path::new("t.csv")).unwrap();
        Scenario::new(&trace, &DEAL, 0)
    }

    fn run(fault: Fault) -> anyhow::Result<Walked> {
        let scenario = scenario();
        assert!(!scenario.commons.is_empty());
        let state = Rc::new(RefCell::new(State::new()));
        let port = |agent, fault| Model {
            agent,
            state: Rc::clone(&state),
            fault,
            calls: 0,
            others: BTreeMap::new(),
            made: Vec::new(),
            tags: HashMap::new(),
        };
        let ports = (0..5).map(|agent| port(agent, fault)).collect();
        let mut drive = Drive::new(&scenario, &DEAL, 0.0, ports);
        drive.preload(Some(&mut port(usize::MAX, Fault::None)), |_| Ok(()))?;
        let mut walked = drive.walk(Duration::ZERO, |_| Ok(()))?;
        assert_eq!(walked.accesses, 0);
        // A walk of no time makes no access: step by hand.
        for _ in 0..12_000 {
            let access = drive.walk.next(&scenario);
            drive.make(access)?;
            walked.accesses += 1;
        }
        walked.tally = drive.tally;
        Ok(walked)
    }

    #[test]
    fn a_runtime_without_fault_passes() {
        let walked = run(Fault::None).unwrap();
        let tally = walked.tally;
        assert_eq!((tally.mismatches, tally.mismatches_told.len()), (0, 0));
        let writes = tally.count(Call::Write);
        assert!(writes > 100 && tally.count(Call::Sync) > 0 && tally.busy_replies > 100);
        assert_eq!(tally.reads_checked + writes, walked.accesses);
        let others = writes + tally.count(Call::Sync);
        assert_eq!(tally.operations(), tally.reads_checked + others);
        for call in [
            Call::Checkpoint,
            Call::CheckpointPower,
            Call::Branch,
            Call::Restore,
            Call::Merge,
            Call::ForkWriteDiscard,
            Call::Diff,
        ] {
            assert!(tally.count(call) > 0, "{call:?}");
        }
        assert!(tally.version_reads_checked > 100 && walked.state_bytes > 0);
    }

    #[test]
    fn every_fault_is_seen() {
        for fault in [
            Fault::LosesAWrite,
            Fault::ServesAnotherAgent,
            Fault::CutsShort,
            Fault::Forgets,
            Fault::RestoresNothing,
            Fault::MergesHalf,
            Fault::ForksLeak,
            Fault::SharesCheckpoints,
            Fault::CollapsesWrong,
        ] {
            let tally = run(fault).unwrap().tally;
            assert!(tally.mismatches > 0, "{fault:?}");
            let told = &tally.mismatches_told;
            assert!(
                told.iter().any(|told| told.contains(", key \"/")),
                "{told:?}"
            );
        }
        for (fault, part) in [
            (Fault::HidesConflicts, "a merge is"),
            (Fault::DiffsTooMuch, "a diff is"),
        ] {
            let told = run(fault).unwrap().tally.mismatches_told;
            assert!(told[0].contains(part), "{told:?}");
        }
        assert!(run(Fault::NeverReady).is_err());
    }
}
