//! What goes wrong, how often, and whether it did.
//!
//! Swarm style: a run draws a weight for every kind, often none at all, so that some runs have nothing but
//! one kind, which others would hide.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;

use crate::config::Durability;
use crate::id::SegmentNo;
use crate::id::ShardNo;
use crate::segment::DiskError;
use crate::segment::memory::{FailedSync, FailedWrite, MemoryDisk, Random};
use crate::shard::store::Store;
use crate::shard::{AgentCommand, AgentVerb, Answer, Command};

use super::run::Run;
use super::world::{Crash, Setup, World, read_back_all};

/// Everything that has to happen in a long run: whatever never does is not tested.
pub(super) const KINDS: &[&str] = &[
    "agent moved",
    "clock pause",
    "cold pages",
    "collapse",
    "collection",
    "create",
    "crash in recovery",
    "dying agent",
    "fork kept",
    "full ring",
    "hostile agent",
    "hostile session ended",
    "I/O queue of one",
    "kill",
    "large value",
    "merge",
    "power cut",
    "power cut in recovery",
    "read",
    "remove",
    "seal",
    "short write",
    "short write, no space",
    "suspend",
    "sync, data kept",
    "sync, data reverted",
    "sync, data there late",
    "terminate",
    "window hit",
    "write",
    "write, no space",
];

/// How often each kind was asked for and happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) fired: BTreeMap<&'static str, u64>,
    pub(super) runs: u64,
    pub(super) crashes: u64,
    pub(super) in_recovery: u64,
}

impl Table {
    pub(super) fn fire(&mut self, what: &'static str) {
        self.count(what, 1);
    }

    pub(super) fn count(&mut self, what: &'static str, count: u64) {
        *self.fired.entry(what).or_default() += count;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (what, count) in &other.fired {
            self.count(what, *count);
        }
        self.runs += other.runs;
        self.crashes += other.crashes;
        self.in_recovery += other.in_recovery;
    }
}

/// How often what goes wrong, in parts of all that does.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    pub(super) kill: usize,
    pub(super) power_cut: usize,
    pub(super) recovery: usize,
    pub(super) crash: usize,
    pub(super) write: usize,
    pub(super) sync: usize,
    pub(super) create: usize,
    pub(super) seal: usize,
    pub(super) remove: usize,
    pub(super) read: usize,
    pub(super) cold: usize,
    pub(super) queue: usize,
    pub(super) pause: usize,
    pub(super) collect: usize,
    pub(super) migrate: usize,
    pub(super) suspend: usize,
    pub(super) terminate: usize,
    pub(super) die: usize,
    pub(super) hostile: usize,
    pub(super) slow: usize,
    pub(super) forget: usize,
    pub(super) calm: usize,
}

impl Weights {
    pub(super) fn draw(random: &mut Random) -> Self {
        let mut one = |most: usize| match random.below(3) {
            0 => 0,
            _ => random.below(most + 1),
        };
        Self {
            kill: 1 + one(9),
            power_cut: one(10),
            recovery: match one(3) {
                0 => 0,
                more => 3 * more,
            },
            crash: 1 + one(8),
            write: one(8),
            sync: one(2),
            create: one(4),
            seal: one(2),
            remove: one(4),
            read: one(4),
            cold: one(10),
            queue: one(4),
            pause: one(6),
            collect: one(10),
            migrate: one(10),
            suspend: one(4),
            terminate: one(2),
            die: one(6),
            hostile: one(10),
            slow: one(2),
            forget: one(2),
            calm: 4 + one(10),
        }
    }
}

const EIO: i32 = 5;

fn disk_error(random: &mut Random, call: &'static str) -> DiskError {
    match random.below(2) {
        0 => DiskError::NoSpace,
        _ => failure(call),
    }
}

fn failure(call: &'static str) -> DiskError {
    DiskError::Os {
        call,
        segment: SegmentNo(0),
        errno: EIO,
    }
}

type Meddle = fn(&mut Run) -> Result<(), Crash>;

impl Run {
    /// Something goes wrong, or is taken back, or somebody asks for something in between.
    pub(super) fn meddle(&mut self) -> Result<(), Crash> {
        let w = &self.weights;
        let choices: [(usize, Meddle); 18] = [
            (w.crash, Self::crash_soon),
            (w.write, Self::fail_write),
            (w.sync, Self::fail_sync),
            (w.create, Self::fail_create),
            (w.seal, Self::fail_seal),
            (w.remove, Self::fail_remove),
            (w.read, Self::fail_read),
            (w.cold, Self::chill),
            (w.queue, Self::narrow),
            (w.pause, Self::pause),
            (w.collect, Self::ask_collection),
            (w.migrate, Self::migrate),
            (w.suspend, Self::suspend),
            (w.terminate, Self::terminate),
            (w.die, Self::die),
            (w.hostile, Self::be_hostile),
            (w.calm, Self::mend),
            (1, Self::mend),
        ];
        let all: usize = choices.iter().map(|choice| choice.0).sum();
        let mut pick = self.world.random.below(all);
        for (weight, meddle) in choices {
            if pick < weight {
                return meddle(self);
            }
            pick -= weight;
        }
        Ok(())
    }

    fn some_disk(&mut self) -> &mut MemoryDisk {
        let no = self.world.random.below(self.world.seats.len());
        self.world.seats[no].shard.disk_mut()
    }

    fn crash_soon(&mut self) -> Result<(), Crash> {
        if self.world.crash_in.is_none() {
            self.world.crash_in = Some(self.world.random.below(400) as u32);
        }
        Ok(())
    }

    fn fail_write(&mut self) -> Result<(), Crash> {
        self.disk_failed = true;
        let random = &mut self.world.random;
        let fault = FailedWrite {
            skip: random.below(4) as u32,
            written: match random.below(2) {
                0 => 0,
                _ => random.below(5_000),
            },
            error: disk_error(random, "pwrite"),
        };
        self.some_disk().faults.write = Some(fault);
        Ok(())
    }

    fn fail_sync(&mut self) -> Result<(), Crash> {
        self.disk_failed = true;
        let no = self.world.random.below(self.world.seats.len());
        let effect = [FailedSync::Kept, FailedSync::Reverted, FailedSync::Late];
        let effect = effect[self.world.random.below(3)];
        if effect == FailedSync::Reverted {
            // What the page cache had of it is gone: reads find that out, by their ids.
            self.reverted.insert(no);
            self.excused = true;
        }
        let faults = &mut self.world.seats[no].shard.disk_mut().faults;
        faults.sync = Some(failure("fdatasync"));
        faults.failed_sync = effect;
        Ok(())
    }

    fn fail_create(&mut self) -> Result<(), Crash> {
        self.disk_failed = true;
        let error = disk_error(&mut self.world.random, "create");
        self.some_disk().faults.create = Some(error);
        Ok(())
    }

    fn fail_seal(&mut self) -> Result<(), Crash> {
        self.disk_failed = true;
        let error = disk_error(&mut self.world.random, "seal");
        self.some_disk().faults.seal = Some(error);
        Ok(())
    }

    fn fail_remove(&mut self) -> Result<(), Crash> {
        self.some_disk().faults.remove = Some(failure("unlink"));
        Ok(())
    }

    fn fail_read(&mut self) -> Result<(), Crash> {
        self.excused = true;
        self.some_disk().faults.read = Some(failure("pread"));
        Ok(())
    }

    fn chill(&mut self) -> Result<(), Crash> {
        self.table.fire("cold pages");
        let bytes = self.world.setup.segment_bytes + (64 << 10);
        let from = self.world.random.below(bytes as usize) as u32;
        let disk = self.some_disk();
        disk.cold.clear();
        for segment in disk.segments() {
            disk.cold.push((SegmentNo(segment), from..bytes));
        }
        Ok(())
    }

    fn narrow(&mut self) -> Result<(), Crash> {
        self.table.fire("I/O queue of one");
        self.some_disk().queue_slots = 1;
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Crash> {
        self.table.fire("clock pause");
        let ns = match self.world.random.below(4) {
            0 => 10_u64.pow(9) * self.world.random.below(40_000) as u64,
            _ => self.world.random.below(4_000_000_000) as u64,
        };
        self.world.pass(ns);
        Ok(())
    }

    /// There is room again, and what failed works.
    fn mend(&mut self) -> Result<(), Crash> {
        let disk = self.some_disk();
        disk.faults = Default::default();
        disk.queue_slots = usize::MAX;
        Ok(())
    }

    /// Nothing fails any more.
    pub(super) fn calm(&mut self) {
        for seat in &mut self.world.seats {
            let disk = seat.shard.disk_mut();
            disk.faults = Default::default();
            disk.queue_slots = usize::MAX;
        }
    }

    fn ask_collection(&mut self) -> Result<(), Crash> {
        self.table.fire("collection");
        let no = self.world.random.below(self.world.seats.len());
        let reply = Answer::unheard();
        _ = self.world.seats[no]
            .commands
            .push(Command::Collect { reply });
        Ok(())
    }

    /// Collects everywhere, and what is left is what is needed.
    pub(super) fn collect_all(&mut self) {
        for _ in 0..2 {
            for no in 0..self.world.seats.len() {
                let (told, answer) = channel();
                let reply = Answer::new(move |collected| _ = told.send(collected));
                let pushed = self.world.seats[no]
                    .commands
                    .push(Command::Collect { reply });
                assert!(pushed.is_ok(), "room for a command");
                let collected = self.world.await_answer("collect", &answer);
                let collected = collected.expect("no crash at the end");
                self.world
                    .log
                    .add(format_args!("collected {no}: {collected:?}"));
            }
        }
    }

    fn verb(&mut self, agent: usize, what: AgentVerb) {
        let name = self.oracle.models[agent].name.clone();
        let home = self.world.home(&name);
        let reply = Answer::unheard();
        let agent = name.as_bytes().into();
        let command = AgentCommand { agent, what, reply };
        self.world.log.add(format_args!("{name}: {what:?}"));
        _ = self.world.seats[home]
            .commands
            .push(Command::Agent(Box::new(command)));
    }

    fn some_agent(&mut self) -> usize {
        self.world.random.below(self.actors.len())
    }

    fn migrate(&mut self) -> Result<(), Crash> {
        let agent = self.some_agent();
        let to = ShardNo(self.world.random.below(self.world.seats.len()) as u16);
        self.verb(agent, AgentVerb::Migrate { to });
        Ok(())
    }

    fn suspend(&mut self) -> Result<(), Crash> {
        let agent = self.some_agent();
        self.table.fire("suspend");
        // Nobody may be attached to it.
        self.leave(agent);
        for _ in 0..self.world.random.below(40) {
            self.world.turn()?;
        }
        let what = match self.world.random.below(4) {
            0 => AgentVerb::Resume,
            _ => AgentVerb::Suspend,
        };
        self.verb(agent, what);
        Ok(())
    }

    fn terminate(&mut self) -> Result<(), Crash> {
        let agent = self.some_agent();
        let name = self.oracle.models[agent].name.clone();
        let home = self.world.home(&name);
        self.leave(agent);
        let marks = self.world.seats[home].shard.log_marks();
        let entry =
            self.oracle.models[agent].begin(super::oracle::Deed::Terminate, Durability::Process);
        let (told, answer) = channel();
        let reply = Answer::new(move |outcome| _ = told.send(outcome));
        let what = AgentVerb::Terminate { force: true };
        let agent_name = name.as_bytes().into();
        let command = AgentCommand {
            agent: agent_name,
            what,
            reply,
        };
        let pushed = self.world.seats[home]
            .commands
            .push(Command::Agent(Box::new(command)));
        assert!(pushed.is_ok(), "room for a command");
        let outcome = self.world.await_answer("terminate", &answer)?;
        self.world
            .log
            .add(format_args!("{name} terminated: {outcome:?}"));
        // Where it was when it was answered.
        let shard = self.world.home(&name);
        let upto = self.world.seats[shard].shard.log_marks().last.0;
        let after = if shard == home { marks.last.0 } else { 0 };
        if let Some(known) = self.oracle.models[agent].entry(entry)
            && outcome.is_ok()
        {
            self.table.fire("terminate");
            known.outcome = super::oracle::Outcome::Done { shard, after, upto };
        }
        self.oracle.models[agent].doubt = true;
        Ok(())
    }

    /// A process vanishes in the middle of whatever it does.
    fn die(&mut self) -> Result<(), Crash> {
        let agent = self.some_agent();
        if self.actors[agent].client.is_some() {
            self.table.fire("dying agent");
            self.leave(agent);
        }
        Ok(())
    }

    /// Reads disks back, with crashes in the middle; whether one of them took what was not on the device.
    pub(super) fn recover(
        &mut self,
        disks: &mut [MemoryDisk],
        setup: &Setup,
        mut cut: bool,
    ) -> (Vec<(Store<MemoryDisk>, u64)>, bool) {
        for _ in 0..12 {
            if self.world.random.below(10) >= self.weights.recovery {
                break;
            }
            let no = self.world.random.below(disks.len());
            let most = match self.world.random.below(3) {
                0 => 100,
                1 => 30,
                _ => 12,
            };
            let call = self.world.random.below(most) as u32;
            disks[no].faults.files_call = Some(call);
            match read_back_all(disks, setup) {
                Ok(_) => disks[no].faults.files_call = None,
                Err((at, error)) => {
                    assert_eq!(at, no, "a start fails: {error}");
                    let power = self.weights.power_cut > 0 && self.world.random.below(2) == 0;
                    self.table.in_recovery += 1;
                    self.table.crashes += 1;
                    self.table.fire(match power {
                        true => "power cut in recovery",
                        false => "crash in recovery",
                    });
                    self.world
                        .log
                        .add(format_args!("crash in recovery of {no} at call {call}"));
                    cut |= self.fall(disks, power);
                }
            }
        }
        let stores = read_back_all(disks, setup);
        match stores {
            Ok(stores) => (stores, cut),
            Err((no, error)) => panic!("shard {no} does not start: {error}"),
        }
    }
}

impl World {
    /// Whether no shard has anything under way, and nobody waits for anything.
    pub(super) fn is_quiet(&self) -> bool {
        self.seats.iter().all(|seat| {
            let marks = seat.shard.log_marks();
            seat.shard.is_quiet() && !seat.shard.has_work() && marks.flushed == marks.last
        })
    }
}
