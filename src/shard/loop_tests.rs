//! Error loops: every call of a scenario that can fail is failed in turn, once or from then on, until the
//! scenario passes and nothing had to fail.
//!
//! A scenario is a row of steps, each of which is carried out as a whole or not at all. It is run once without
//! faults, to know what there is after each step. Then, with call number 0, 1, 2 and so on failing:
//! - a step that goes wrong says so by a status or error that names what to do, within a bound of turns;
//! - there is then what was there before the step or, where the device left that open, what is there after it;
//!   it can be read although the disk is dead, and writes are refused;
//! - a process that dies at that moment, or loses its power, leaves one of the two;
//! - once the fault is gone the same step goes well, after a restart where a sync had failed;
//! - in the end there is what there is without faults, and nothing is held that was not held then.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use super::mesh_tests::shard_of;
use super::tests::{World, recover_all};
use super::version_tests::State;
use super::*;
use crate::agent::call::Call;
use crate::id::BranchNo;
use crate::segment::memory::{MemoryDisk, Nth, Random};
use crate::shard::collect::CollectEnd;
use crate::shard::lifecycle::AgentError;

mod planted;
mod scenarios;

/// Small, so that there are many.
const SEGMENT_BYTES: u32 = 128 << 10;
/// How often a step is tried again once the fault is gone, 150 ms apart.
const TRIES: usize = 20;
/// Bytes of L2: all that is read again.
const L2_BYTES: usize = 4 << 20;

/// How a step went wrong.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A lane was told.
    Status(Status),
    /// Whoever asked something of an agent was.
    Agent(AgentError),
    /// Whoever attached was.
    Attach(AttachError),
    /// Whoever asked for a collection was.
    Collect(CollectEnd),
    /// An agent that was to move did not.
    Stayed,
    /// The lane was closed.
    Closed,
}

impl Trouble {
    /// Whether it says what happened: the disk is full or failed, or one has to come again.
    fn is_typed(&self) -> bool {
        match self {
            Self::Status(status) => matches!(
                status,
                Status::IoFailed | Status::NoSpace | Status::ReadOnly | Status::Busy
            ),
            Self::Agent(error) => matches!(
                error,
                AgentError::NoSpace | AgentError::ReadOnly | AgentError::Busy
            ),
            Self::Attach(error) => matches!(
                error,
                AttachError::NoSpace | AttachError::ReadOnly | AttachError::Busy
            ),
            Self::Collect(end) => matches!(
                end,
                CollectEnd::Stopped | CollectEnd::NoRoom | CollectEnd::Unreadable
            ),
            Self::Stayed | Self::Closed => true,
        }
    }

    /// Whether it leaves open what became of the step.
    fn is_open(&self) -> bool {
        matches!(
            self,
            Self::Status(Status::IoFailed) | Self::Stayed | Self::Closed
        )
    }
}

pub(super) type Outcome = Result<(), Trouble>;

/// A step of a scenario.
pub(super) struct Deed {
    name: &'static str,
    carry_out: fn(&mut World) -> Outcome,
    /// A power cut takes it no more.
    power: bool,
}

/// What is run with every call failing in turn.
pub(super) struct Scenario {
    name: &'static str,
    shards: usize,
    /// Makes the disks on which it starts, which nothing fails.
    prepare: fn(usize) -> Vec<MemoryDisk>,
    deeds: &'static [Deed],
    /// Its start may fail, too.
    start: bool,
    /// What it reads is on the device only: while that fails, nothing is compared.
    cold: bool,
}

/// Which call fails, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) skip: u64,
    pub(super) persistent: bool,
    pub(super) no_space: bool,
    pub(super) ignored: bool,
}

/// What there is, as agents see it.
#[derive(PartialEq, Eq, Debug, Clone)]
struct Snapshot {
    branches: State,
    sets: Vec<(String, u32, u64)>,
    tags: Vec<String>,
}

/// What is held while nothing is under way.
#[derive(PartialEq, Eq, Debug)]
struct HeldThings {
    lanes: u32,
    branches: usize,
    parked: usize,
    holds: u32,
    keys: u64,
    queued: usize,
}

impl World {
    pub(super) fn outcome(&mut self) -> Result<Completion, Trouble> {
        if self.lane.closed().is_some() {
            return Err(Trouble::Closed);
        }
        let completion = self.wait();
        match completion.status {
            Status::Ok => Ok(completion),
            status => Err(Trouble::Status(status)),
        }
    }

    pub(super) fn try_call(
        &mut self,
        on: Option<BranchNo>,
        call: &Call<'_>,
    ) -> Result<Vec<u8>, Trouble> {
        self.try_call_as(on, call, Durability::Process)
    }

    pub(super) fn try_call_as(
        &mut self,
        on: Option<BranchNo>,
        call: &Call<'_>,
        durability: Durability,
    ) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        call.encode(&mut bytes);
        self.submit(Op::Call, b"", &bytes, |entry| {
            entry.branch = on;
            entry.durability = Some(durability);
        });
        let completion = self.outcome()?;
        Ok(self.reply(&completion))
    }

    fn snapshot(&mut self) -> Snapshot {
        let branches = self.state();
        let sets = self.sets();
        let sets = sets
            .into_iter()
            .map(|(name, count, weight)| (name, count, weight.to_bits()));
        let at = shard_of(self, b"agent").expect("the agent is somewhere");
        let tables = &self.shard_at(at).store.tables;
        let agent = tables.agent(tables.agent_no(b"agent").expect("just found"));
        let tags = agent.tags.keys().map(|tag| tag.to_string()).collect();
        Snapshot {
            branches,
            sets: sets.collect(),
            tags,
        }
    }

    /// Turns until nothing is under way. What waits for a dead disk waits on, and what a sync that failed leaves
    /// open, as where an agent is that was about to go, waits for a start.
    fn rest(&mut self) {
        for turn in 0..20_000 {
            self.step();
            for no in 0..self.shards() {
                self.shard_at(no).store.disk.run_io();
            }
            let all = 0..self.shards();
            let mut quiet = all.map(|no| {
                let shard = self.shard_at(no);
                shard.is_quiet() && shard.exports.is_empty() && shard.unsent.is_empty()
            });
            if quiet.all(|quiet| quiet)
                || (turn > 300 && (self.is_read_only() || self.is_failing_for_good()))
            {
                return;
            }
        }
        panic!("something goes on for ever");
    }

    fn held_things(&mut self) -> HeldThings {
        self.rest();
        self.check_references();
        let mut held = HeldThings {
            lanes: 0,
            branches: 0,
            parked: 0,
            holds: 0,
            keys: 0,
            queued: 0,
        };
        for no in 0..self.shards() {
            let shard = self.shard_at(no);
            let agents = shard.store.tables.all_agents();
            held.branches += agents
                .map(|(_, agent)| agent.all_branches().count())
                .sum::<usize>();
            held.lanes += shard.lanes_counted();
            held.parked += shard.pending.parked() + shard.resumed.len() + shard.staged.len();
            held.holds += shard.store.holds;
            held.keys += shard.store.tables.keys;
            held.queued += shard.store.disk.queued().count();
        }
        held
    }

    fn is_read_only(&mut self) -> bool {
        let mut all = 0..self.shards();
        all.any(|no| self.shard_at(no).store.log.read_only().is_some())
    }

    /// Whether its disks were not mended yet.
    fn is_failing(&mut self) -> bool {
        self.disk().faults.nth.is_some()
    }

    fn is_failing_for_good(&mut self) -> bool {
        let nth = &self.disk().faults.nth;
        nth.as_ref().is_some_and(|nth| {
            let nth = nth.lock().unwrap();
            nth.persistent && !nth.failed.is_empty()
        })
    }

    fn mend(&mut self) {
        for no in 0..self.shards() {
            self.shard_at(no).store.disk.faults.nth = None;
        }
    }
}

/// Starts a runtime. Where it can't, what that leaves of the disks.
fn start(mut disks: Vec<MemoryDisk>) -> Result<World, (Vec<MemoryDisk>, String)> {
    match recover_all(&mut disks, SEGMENT_BYTES) {
        Ok(parts) => Ok(World::of_parts(
            parts,
            disks,
            L2_BYTES,
            1 << 30,
            SEGMENT_BYTES,
        )),
        Err(error) => Err((disks, error.to_string())),
    }
}

/// Starts one that nothing fails.
pub(super) fn sound(mut disks: Vec<MemoryDisk>) -> World {
    disks.iter_mut().for_each(MemoryDisk::kill);
    let mut world = start(disks).unwrap_or_else(|(_, why)| panic!("no start: {why}"));
    world.attach_first().unwrap();
    world
}

/// What there is after each step where nothing fails, and what is held in the end.
struct Reference {
    after: Vec<Snapshot>,
    held: HeldThings,
}

fn reference(scenario: &Scenario, disks: &[MemoryDisk]) -> Reference {
    let mut world = sound(disks.to_vec());
    let mut after = vec![world.snapshot()];
    for deed in scenario.deeds {
        let outcome = (deed.carry_out)(&mut world);
        assert!(
            outcome.is_ok(),
            "{}, {}: {outcome:?}",
            scenario.name,
            deed.name
        );
        after.push(world.snapshot());
    }
    let held = world.held_things();
    Reference { after, held }
}

/// One run of a scenario with a fault.
struct Run<'a> {
    scenario: &'a Scenario,
    reference: &'a Reference,
    fault: Fault,
    nth: Arc<Mutex<Nth>>,
    /// Steps that no power cut takes.
    durable: usize,
}

impl Run<'_> {
    fn fired(&self) -> bool {
        !self.nth.lock().unwrap().failed.is_empty()
    }

    /// The runtime, where need be at the second try.
    fn start(&self, disks: &[MemoryDisk]) -> World {
        let mut disks = disks.to_vec();
        if !self.scenario.start {
            let mut world = sound(disks);
            for no in 0..world.shards() {
                let faults = &mut world.shard_at(no).store.disk.faults;
                faults.nth = Some(Arc::clone(&self.nth));
            }
            return world;
        }
        for disk in &mut disks {
            disk.faults.nth = Some(Arc::clone(&self.nth));
        }
        let mut world = start(disks).unwrap_or_else(|(mut disks, why)| {
            assert!(self.fired(), "no start: {why}");
            assert!(
                why.contains("start again"),
                "it doesn't say what to do: {why}"
            );
            disks.iter_mut().for_each(MemoryDisk::kill);
            start(disks).unwrap_or_else(|(_, why)| panic!("nor at the second try: {why}"))
        });
        for _ in 0..TRIES {
            match world.attach_first() {
                Ok(_) => return world,
                Err(error) => {
                    let trouble = Trouble::Attach(error);
                    assert!(self.fired() && trouble.is_typed(), "{trouble:?}");
                }
            }
            world.mend();
            if world.is_read_only() {
                return sound(world.disks());
            }
            world.pass(150);
        }
        panic!("nobody can attach");
    }

    /// What a crash at this moment leaves, and what a power cut does.
    fn check_crashes(&self, world: &mut World, at: usize) {
        let after = &self.reference.after;
        let found = sound(world.disks()).snapshot();
        assert!(
            after[at..=at + 1].contains(&found),
            "after a kill: {found:?}"
        );
        let mut random = Random(self.fault.skip);
        let mut disks = world.disks();
        disks.iter_mut().for_each(|disk| {
            disk.faults.nth = None;
            disk.power_cut(&mut random);
        });
        let found = sound(disks).snapshot();
        assert!(
            after[self.durable..=at + 1].contains(&found),
            "after a power cut: {found:?}"
        );
    }

    /// A step went wrong: looks at what there is, and takes it again without the fault. The world to go on with.
    fn go_on(&self, mut world: World, at: usize, trouble: &Trouble) -> World {
        let (deed, after) = (&self.scenario.deeds[at], &self.reference.after);
        assert!(self.fired(), "nothing failed, and yet {trouble:?}");
        assert!(
            trouble.is_typed(),
            "it doesn't say what happened: {trouble:?}"
        );
        self.check_crashes(&mut world, at);
        let lost = world.lane.closed().is_some();
        if !self.scenario.cold && !lost {
            let found = world.snapshot();
            let done = trouble.is_open() && found == after[at + 1];
            assert!(done || found == after[at], "after {trouble:?}: {found:?}");
            if self.fault.persistent && world.is_failing() {
                self.check_refused(&mut world);
            }
        }
        world.mend();
        if world.is_read_only() || lost {
            world = sound(world.disks());
        }
        for _ in 0..TRIES {
            if world.snapshot() == after[at + 1] && after[at + 1] != after[at] {
                return world;
            }
            match (deed.carry_out)(&mut world) {
                Ok(()) => return world,
                Err(trouble) => assert!(trouble.is_typed(), "again: {trouble:?}"),
            }
            world.pass(150);
        }
        panic!("it doesn't go on although nothing fails any more");
    }

    /// A dead disk takes no write.
    fn check_refused(&self, world: &mut World) {
        world.submit(Op::Put, b"refused", b"x", |_| {});
        let refused = world.wait().status;
        let typed = matches!(
            refused,
            Status::IoFailed | Status::NoSpace | Status::ReadOnly
        );
        assert!(typed, "a write to a dead disk: {refused:?}");
    }

    fn run(mut self, disks: &[MemoryDisk]) {
        let mut world = self.start(disks);
        for at in 0..self.scenario.deeds.len() {
            let deed = &self.scenario.deeds[at];
            let before = self.fired();
            if let Err(trouble) = (deed.carry_out)(&mut world) {
                world = self.go_on(world, at, &trouble);
            }
            if !self.scenario.cold && self.fired() != before {
                let (found, wanted) = (world.snapshot(), &self.reference.after[at + 1]);
                assert!(found == *wanted, "after {}: {found:?}", deed.name);
            }
            if deed.power {
                self.durable = at + 1;
            }
        }
        world.mend();
        let last = self.reference.after.last();
        assert_eq!(Some(&world.snapshot()), last, "in the end");
        assert_eq!(world.held_things(), self.reference.held);
        self.check_crashes(&mut world, self.scenario.deeds.len() - 1);
        let mut again = sound(world.disks());
        assert_eq!(Some(&again.snapshot()), last, "after a start");
    }
}

/// Fails every call in turn, in this way. Each run has a say about what came of it, and of which calls failed.
pub(super) fn walk(
    scenario: &Scenario,
    way: Fault,
    mut heard: impl FnMut(std::thread::Result<()>, &BTreeMap<&'static str, u64>),
) {
    let disks = (scenario.prepare)(scenario.shards);
    let reference = reference(scenario, &disks);
    for skip in 0.. {
        assert!(skip < 3000, "it never passes");
        let fault = Fault { skip, ..way };
        println!("{}: {fault:?}", scenario.name);
        let Fault {
            persistent,
            no_space,
            ignored,
            ..
        } = fault;
        let nth = Arc::new(Mutex::new(Nth {
            skip,
            persistent,
            no_space,
            ignored,
            ..Nth::default()
        }));
        let run = Run {
            scenario,
            reference: &reference,
            fault,
            nth: Arc::clone(&nth),
            durable: 0,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| run.run(&disks)));
        let nth = nth.lock().unwrap_or_else(PoisonError::into_inner);
        if nth.failed.is_empty() {
            return outcome.unwrap_or_else(|panic| resume_unwind(panic));
        }
        heard(outcome, &nth.failed);
    }
}
