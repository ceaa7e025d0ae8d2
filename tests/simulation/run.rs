//! One run: a seed, weights drawn from it, and everybody's turns until the end.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::agent::call::Id;
use crate::agent::entry::Status;
use crate::segment::memory::{Lie, MemoryDisk, Random};

use super::actor::Actor;
use super::faults::{Table, Weights};
use super::oracle::{End, Model, Oracle};
use super::world::{Crash, EventLog, Setup, World, read_back_all};

/// What a seed is run with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) seed: u64,
    pub(super) steps: u32,
    pub(super) trace: bool,
    /// Something is wrong with the disks, and has to be found.
    pub(super) lie: Option<Lie>,
}

/// What was promised of a shard's log.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Promised {
    /// Up to here a kill leaves it.
    pub(super) process: u64,
    /// Up to here a power cut does.
    pub(super) power: u64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) hash: u64,
    pub(super) table: Table,
    pub(super) virtual_ns: u64,
}

/// A run. See the module's header.
pub(super) struct Run {
    pub(super) world: World,
    pub(super) oracle: Oracle,
    pub(super) actors: Vec<Actor>,
    pub(super) hostile: Option<u64>,
    pub(super) weights: Weights,
    pub(super) table: Table,
    pub(super) promised: Vec<Promised>,
    /// Checkpoints that were found and of which nobody had been told.
    pub(super) untold: Vec<(usize, Id)>,
    /// A call of a disk failed since the start.
    pub(super) disk_failed: bool,
    /// Reads may fail: bytes were damaged, or a device failed to read.
    pub(super) excused: bool,
    /// Shards whose page cache forgot what it had: a kill takes what a power cut takes.
    pub(super) reverted: BTreeSet<usize>,
}

/// Runs a seed to its end.
///
/// # Panics
/// Where something is not as it has to be.
pub(super) fn run(options: Options) -> Report {
    let mut random = Random(options.seed);
    let weights = Weights::draw(&mut random);
    let setup = draw_setup(&mut random);
    let agents = 1 + random.below(5);
    let mut disks: Vec<MemoryDisk> = (0..setup.shards).map(|_| MemoryDisk::new()).collect();
    for disk in &mut disks {
        disk.lie = options.lie;
    }
    let mut log = EventLog::new(options.trace);
    log.add(format_args!(
        "{options:?} {setup:?} {weights:?} {agents} agents"
    ));
    let stores = read_back_all(&mut disks, &setup).expect("empty disks are good");
    let (world, _) = World::start(&setup, random, log, stores, disks, 0);
    let mut oracle = Oracle::default();
    for no in 0..agents {
        let name = format!("a{no}");
        let home = world.home(&name);
        oracle.models.push(Model::new(name, home));
    }
    let mut run = Run {
        promised: vec![Promised::default(); setup.shards],
        world,
        oracle,
        actors: (0..agents).map(|_| Actor::default()).collect(),
        hostile: None,
        weights,
        table: Table::default(),
        untold: Vec::new(),
        disk_failed: false,
        excused: false,
        reverted: BTreeSet::new(),
    };
    for actor in &mut run.actors {
        actor.slow = run.weights.slow > 0 && run.world.random.below(3) == 0;
    }
    for _ in 0..options.steps {
        if run.step().is_err() {
            run.crash();
        }
    }
    run.end()
}

fn draw_setup(random: &mut Random) -> Setup {
    let pick = |random: &mut Random, from: &[usize]| from[random.below(from.len())];
    Setup {
        shards: 1 + random.below(3),
        segment_bytes: pick(random, &[128, 160, 256, 1024]) as u32 * 1024,
        buffer_bytes: pick(random, &[128, 256, 1024]) * 1024,
        l2_bytes: pick(random, &[0, 64, 1024]) * 1024,
        group_commit_ns: pick(random, &[0, 50_000, 2_000_000]) as u64,
        ring_slots: pick(random, &[2, 4, 64]) as u32,
        mesh_messages: pick(random, &[2, 8, 256]),
        window_bytes: pick(random, &[8, 16, 64]) * 1024,
    }
}

impl Run {
    /// Whether a read may end so.
    pub(super) fn excuses(&self, status: Status) -> bool {
        self.excused && matches!(status, Status::Corrupt | Status::IoFailed)
    }

    fn step(&mut self) -> Result<(), Crash> {
        let stepped = match self.world.random.below(100) {
            0..=49 => {
                let agent = self.world.random.below(self.actors.len());
                self.act(agent)
            }
            50..=95 => (0..1 + self.world.random.below(12)).try_for_each(|_| self.world.turn()),
            _ => self.meddle(),
        };
        self.take_notes();
        stepped
    }

    /// What the server's side did beside answering.
    pub(super) fn take_notes(&mut self) {
        for rollback in std::mem::take(&mut self.world.rollbacks) {
            for model in &mut self.oracle.models {
                model.rolled_back(rollback.shard, rollback.flushed);
            }
        }
        for (name, to) in std::mem::take(&mut self.world.moved) {
            self.table.fire("agent moved");
            if let Some(model) = self.oracle.models.iter_mut().find(|it| it.name == name) {
                model.shard = to;
            }
        }
        let safe: Vec<u64> = self.promised.iter().map(|it| it.power).collect();
        // What a flush that failed had dropped may be there after a crash, as long as no sync was good since.
        let failed = self.world.seats.iter().any(|seat| seat.failed.is_some());
        if self.world.random.below(16) == 0 && !failed {
            for model in &mut self.oracle.models {
                model.settle(&safe);
            }
        }
        self.see_malformed();
    }

    /// Checkpoints from which one comes, itself included, as far as they are known.
    pub(super) fn ancestors(&self, of: Id) -> BTreeSet<Id> {
        let mut found = BTreeSet::new();
        let mut next = vec![of];
        while let Some(id) = next.pop() {
            if let Some(commit) = self.oracle.commits.get(&id)
                && found.insert(id)
            {
                next.extend(&commit.parents);
            }
        }
        found
    }

    /// Checkpoints that nothing may take from an agent.
    pub(super) fn reachable(&self, agent: usize) -> BTreeSet<Id> {
        use super::oracle::Head;
        let live = self.oracle.models[agent].live();
        let branches = live.branches.values().map(|line| (line.head, true));
        let names = live.tags.values().chain(live.published.values());
        let names = names.chain(live.sets.values().flatten());
        // A name keeps its state, and not the history before it.
        let names = names.map(|&head| (head, false));
        let mut found = BTreeSet::new();
        for (head, with_history) in branches.chain(names) {
            if let Head::Known(id) = head
                && self.oracle.commits.contains_key(&id)
            {
                found.insert(id);
                if with_history && !self.actors[agent].forgets {
                    found.extend(self.ancestors(id));
                }
            }
        }
        found
    }

    /// The process ends: by a kill, or with the power.
    pub(super) fn crash(&mut self) {
        let power = self
            .world
            .random
            .below(self.weights.kill + self.weights.power_cut)
            >= self.weights.kill;
        self.table.crashes += 1;
        self.table.fire(if power { "power cut" } else { "kill" });
        self.world
            .log
            .add(format_args!("crash, power cut: {power}"));
        self.take_notes();
        self.untold.clear();
        let mut disks = Vec::new();
        let mut failed = Vec::new();
        for seat in &mut self.world.seats {
            failed.push(seat.failed);
            disks.push(std::mem::replace(seat.shard.disk_mut(), MemoryDisk::new()));
        }
        self.world.clients.clear();
        for actor in &mut self.actors {
            actor.forget_lane();
        }
        self.hostile = None;
        let setup = self.world.setup.clone();
        let cut = self.fall(&mut disks, power);
        let (stores, cut) = self.recover(&mut disks, &setup, cut);
        let random = Random(self.world.random.next());
        let log = std::mem::replace(&mut self.world.log, EventLog::new(false));
        let lived_ns = self.world.lived_ns;
        let now = self.world.random.below(1 << 30) as u64;
        let (world, ends) = World::start(&setup, random, log, stores, disks, now);
        self.world = world;
        self.world.lived_ns = lived_ns;
        self.disk_failed = false;
        self.check_start(&ends, cut, &failed);
        self.reverted.clear();
    }

    /// What a crash does to disks; whether it took what was not on the device.
    pub(super) fn fall(&mut self, disks: &mut [MemoryDisk], power: bool) -> bool {
        for disk in disks {
            for (what, count) in std::mem::take(&mut disk.fired) {
                self.table.count(what, count);
            }
            if power {
                disk.power_cut(&mut self.world.random);
            } else {
                disk.kill();
            }
        }
        power
    }

    /// Checks what a start found against what may be there, agent by agent.
    fn check_start(&mut self, ends: &[u64], cut: bool, failed: &[Option<(u64, u64)>]) {
        self.world.log.add(format_args!(
            "started: {ends:?}, cut {cut}, promised {:?}",
            self.promised
        ));
        for (shard, end) in ends.iter().enumerate() {
            let promised = self.promised[shard];
            let least = match cut || self.reverted.contains(&shard) {
                true => promised.power,
                false => promised.process,
            };
            assert!(
                *end >= least || self.excused,
                "the log of {shard} ends at {end}, {least} was acknowledged; cut: {cut}, {promised:?}"
            );
            // A start puts everything on the device that it found.
            self.promised[shard] = Promised {
                process: *end,
                power: *end,
            };
        }
        let (mut found, mut homes) = (Vec::new(), Vec::new());
        for agent in 0..self.actors.len() {
            let name = self.oracle.models[agent].name.clone();
            let client = self.world.attach(&name, false, None);
            let client = client.expect("no crash in a check");
            let mut home = self.world.home(&name);
            let here = match client {
                Ok(client) => {
                    let here = self.observe(client).expect("no crash in a check");
                    self.world.drop_client(client);
                    here
                }
                Err(crate::shard::AttachError::NoSuchAgent) => {
                    // It is the log that had it which does not know it any more.
                    home = self.oracle.models[agent].shard;
                    Some(super::observe::Found::none())
                }
                Err(error) => panic!("{name} can't be attached after a start: {error}"),
            };
            found.push(here);
            homes.push(home);
        }
        for (shard, end) in ends.iter().enumerate() {
            let mut hypotheses = vec![End {
                shard,
                last: *end,
                dropped: false,
            }];
            if let Some((from, to)) = failed[shard] {
                hypotheses.extend((from..=to.min(*end)).map(|last| End {
                    shard,
                    last,
                    dropped: true,
                }));
            }
            // One of them has to hold for all agents of the shard.
            let agents: Vec<usize> = (0..self.actors.len())
                .filter(|&agent| homes[agent] == shard)
                .collect();
            let holds = |end: &End| {
                agents.iter().all(|&agent| {
                    found[agent]
                        .as_ref()
                        .is_none_or(|found| self.is_allowed(agent, &found.state, Some(*end)))
                })
            };
            if !hypotheses.iter().any(holds) {
                let ends: Vec<_> = hypotheses.iter().take(3).map(|end| Some(*end)).collect();
                for &agent in &agents {
                    if let Some(found) = &found[agent] {
                        self.check_found(agent, found, &ends);
                    }
                }
                panic!("the agents of shard {shard} are each right, but not together");
            }
        }
        for (agent, found) in found.into_iter().enumerate() {
            match found {
                Some(found) => self.believe(agent, found),
                None => self.oracle.models[agent].doubt = true,
            }
        }
        for agent in 0..self.actors.len() {
            self.check_commits(agent, 2);
        }
    }

    /// Reads checkpoints that nobody was told of, and some that everybody knows.
    pub(super) fn check_commits(&mut self, agent: usize, count: usize) {
        let known: Vec<Id> = self.reachable(agent).into_iter().collect();
        let none = !self.untold.iter().any(|it| it.0 == agent);
        if none && known.is_empty() {
            return;
        }
        let name = self.oracle.models[agent].name.clone();
        let attached = self
            .world
            .attach(&name, false, None)
            .expect("no crash in a check");
        let client = attached.unwrap_or_else(|error| panic!("{name}: {error}"));
        self.learn(agent, client).expect("no crash in a check");
        for _ in 0..count.min(known.len()) {
            let id = known[self.world.random.below(known.len())];
            let keys = self.read_commit(client, id).expect("no crash in a check");
            match keys {
                Some(keys) => assert!(
                    keys == self.oracle.commits[&id].keys,
                    "a checkpoint of {name} holds something else"
                ),
                None => assert!(self.excused, "a checkpoint of {name} can't be read"),
            }
        }
        self.world.drop_client(client);
    }

    /// Ends the run in order: everything is there, a collection leaves no leak, counters agree.
    fn end(mut self) -> Report {
        self.world.crash_in = None;
        self.calm();
        self.settle_down();
        for agent in 0..self.actors.len() {
            if let Some(client) = self.actors[agent].client {
                self.take_completions(agent, client);
                if self.actors[agent].is_idle() {
                    self.resolve(agent, client).expect("no crash at the end");
                }
            }
        }
        // One more crash, so that the last writes are looked at, too.
        self.crash();
        self.calm();
        if !self.excused {
            self.collect_all();
            for agent in 0..self.actors.len() {
                self.check_commits(agent, 4);
            }
        }
        self.settle_down();
        for (no, seat) in self.world.seats.iter_mut().enumerate() {
            seat.shard.check_references();
            assert_eq!(seat.shard.lanes_counted(), 0, "lanes of shard {no}");
            for (what, count) in std::mem::take(&mut seat.shard.disk_mut().fired) {
                self.table.count(what, count);
            }
        }
        Report {
            hash: self.world.log.hash(),
            table: self.table,
            virtual_ns: self.world.lived_ns,
        }
    }

    /// Turns until nothing is under way.
    pub(super) fn settle_down(&mut self) {
        for turns in 0..200_000_u32 {
            self.world.turn().expect("no crash at the end");
            if turns % 512 == 511 && self.world.is_quiet() {
                self.take_notes();
                return;
            }
        }
        let mut text = String::new();
        for seat in &self.world.seats {
            _ = write!(text, "{:?} quiet {} ", seat.marks, seat.shard.is_quiet());
        }
        panic!("it does not come to rest: {text}");
    }
}
