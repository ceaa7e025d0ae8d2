//! Shards side by side, turned by hand in a seeded order over a mesh whose rings are often full: agents that
//! move while lanes are at work, with crashes after every turn, disks that fail, shards that go away.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, channel};

use super::agent::is_fork;
use super::tests::{World, rings_at};
use super::version_tests::{CHECKPOINT, FORK, branch, value};
use super::*;
use crate::agent::arena::Block;
use crate::agent::call::{self, Call, Revision};
use crate::agent::client_lane::ClientLane;
use crate::agent::packed;
use crate::id::{BranchNo, LaneNo, Retention, SegmentNo, SessionNo};
use crate::segment::DiskError;
use crate::segment::memory::{FailedWrite, MemoryDisk, Random};

mod doubts;
mod meet;
mod published;
mod rest;

pub(super) use published::{fill, named_for};

/// Small, so that there are many.
const SEGMENT_BYTES: u32 = 128 << 10;
/// The agent that moves.
const AGENT: &[u8] = b"agent";
const KEYS: usize = 16;
/// Room for any answer.
const REPLY_BYTES: u32 = 8 << 10;

/// Where an agent is served, if it is; by one shard at most.
pub(super) fn shard_of(world: &mut World, agent: &[u8]) -> Option<usize> {
    let shards = 0..world.shards();
    let places: Vec<_> = shards
        .filter(|&no| {
            let shard = world.shard_at(no);
            shard.store.tables.agent_no(agent).is_some() && !shard.moves.is_coming(agent)
        })
        .collect();
    assert!(places.len() <= 1, "shards {places:?} serve it");
    places.first().copied()
}

impl World {
    /// Empty shards of one runtime, turned in an order of its own.
    fn cluster(shards: usize, seed: u64) -> Self {
        Self::cluster_over(vec![MemoryDisk::new(); shards], seed)
    }

    fn cluster_over(disks: Vec<MemoryDisk>, seed: u64) -> Self {
        let mut world = Self::several(disks, 0, 1 << 30, SEGMENT_BYTES);
        world.order = Random(seed);
        world
    }

    /// Asks a shard something about an agent.
    fn ask(
        &mut self,
        at: usize,
        agent: &[u8],
        what: AgentVerb,
    ) -> Receiver<Result<AgentAnswer, AgentError>> {
        let (told, answer) = channel();
        let command = AgentCommand {
            agent: agent.into(),
            what,
            reply: Answer::new(move |outcome| _ = told.send(outcome)),
        };
        let command = Command::Agent(Box::new(command));
        assert!(self.commands_of(at).push(command).is_ok());
        answer
    }

    /// The same; turns until it is answered.
    pub(super) fn told(
        &mut self,
        at: usize,
        agent: &[u8],
        what: AgentVerb,
    ) -> Result<AgentAnswer, AgentError> {
        let answer = self.ask(at, agent, what);
        self.until(|_| answer.try_recv().ok())
    }

    /// Where an agent is served.
    fn place(&mut self, agent: &[u8]) -> usize {
        shard_of(self, agent).expect("one shard serves it")
    }

    /// Whether nothing is under way between shards.
    fn is_quiet(&mut self) -> bool {
        let shards = (0..self.shards()).filter(|no| !self.lost.contains(no));
        shards.collect::<Vec<_>>().into_iter().all(|no| {
            let shard = self.shard_at(no);
            shard.moves.is_empty()
                && shard.imports.is_empty()
                && shard.exports.is_empty()
                && shard.unsent.is_empty()
                && shard.port.is_empty()
                && shard.retold.is_empty()
                && shard.store.ended.is_empty()
                && shard.commands.is_empty()
        })
    }

    fn settled(&mut self) {
        self.until(|world| world.is_quiet().then_some(()));
    }

    fn move_to(&mut self, agent: &[u8], to: usize) {
        let from = self.place(agent);
        let to_shard = ShardNo(to as u16);
        self.told(from, agent, AgentVerb::Migrate { to: to_shard })
            .unwrap();
        self.settled();
        assert_eq!(self.place(agent), to);
    }

    /// The thread of a shard dies, and the others are told.
    fn lose(&mut self, no: usize) {
        self.lost.push(no);
        self.shard_at(no).port = crate::mesh::mesh(1, 1).pop().unwrap();
        for other in (0..self.shards()).filter(|&other| other != no) {
            let shard = ShardNo(no as u16);
            let gone = Command::PeerGone { shard };
            assert!(self.commands_of(other).push(gone).is_ok());
        }
    }

    /// Another lane, to any agent.
    pub(super) fn lane_to(&mut self, agent: &[u8], session: u64, no: u32) -> ClientLane {
        let owner = ShardNo(self.owner_of(agent) as u16);
        let (ring, client) = rings_at(LaneNo(no), owner);
        self.attach_to(agent, SessionNo(session), LaneNo(no), ring)
            .unwrap();
        client
    }

    /// Has a shard collect, sooner or later.
    fn collect_at(&mut self, no: usize) {
        let reply = Answer::unheard();
        let _ = self.commands_of(no).push(Command::Collect { reply });
    }
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Asked,
    Failed,
    Process,
    Power,
}

struct Write {
    value: Option<Vec<u8>>,
    fate: Fate,
}

enum Asked {
    /// Of a key: which of its writes.
    Write(usize, usize),
    /// Of a key: the oldest write that may be seen.
    Read(usize, usize),
    Checkpoint,
}

struct Waiting {
    asked: Asked,
    power: bool,
    input: Block,
    output: Block,
}

/// A lane at work, and what was promised to it.
struct Traffic {
    random: Random,
    keys: Vec<Vec<Write>>,
    waiting: HashMap<u64, Waiting>,
    /// Checkpoints that were acknowledged; that may be there.
    made: usize,
    asked: usize,
    /// Answers so far.
    answers: u64,
    /// Disks fail.
    faulty: bool,
    /// They fail to sync.
    unsynced: bool,
}

fn key(no: usize) -> Vec<u8> {
    format!("k/{no:02}").into_bytes()
}

impl Traffic {
    fn new(seed: u64) -> Self {
        let absent = || Write {
            value: None,
            fate: Fate::Power,
        };
        Self {
            random: Random(seed ^ 0x5555),
            keys: (0..KEYS).map(|_| vec![absent()]).collect(),
            waiting: HashMap::new(),
            made: 0,
            asked: 0,
            answers: 0,
            faulty: false,
            unsynced: false,
        }
    }

    /// What a restart must have at least: the place of a write in its row.
    fn floor(row: &[Write], cut: bool) -> usize {
        let stays = |write: &Write| match write.fate {
            Fate::Power => true,
            Fate::Process => !cut,
            Fate::Asked | Fate::Failed => false,
        };
        row.iter().rposition(stays).unwrap_or(0)
    }

    fn submit(&mut self, world: &mut World) {
        let key_no = self.random.below(KEYS);
        let name = key(key_no);
        let row = &mut self.keys[key_no];
        let power = self.random.below(3) == 0;
        let mut bytes = Vec::new();
        let (op, asked) = match self.random.below(16) {
            what @ 0..8 => {
                if what > 0 {
                    let unique = self.random.next() as u32;
                    bytes = value(unique, 1 + self.random.below(1500));
                    bytes.extend(unique.to_le_bytes());
                }
                row.push(Write {
                    value: (what > 0).then(|| bytes.clone()),
                    fate: Fate::Asked,
                });
                let op = if what > 0 { Op::Put } else { Op::Delete };
                (op, Asked::Write(key_no, row.len() - 1))
            }
            8..15 => (Op::Get, Asked::Read(key_no, Self::floor(row, false))),
            _ => {
                CHECKPOINT.encode(&mut bytes);
                self.asked += 1;
                (Op::Call, Asked::Checkpoint)
            }
        };
        let name = if op == Op::Call { Vec::new() } else { name };
        world.next += 1;
        let mut entry = Submission::new(op, world.next);
        let input = (name.len() + bytes.len()).max(1) as u32;
        let input = world.lane.alloc_input(input).unwrap();
        let output = world.lane.alloc_output(REPLY_BYTES).unwrap();
        if !name.is_empty() {
            entry.key = input.first(name.len() as u32);
            world.lane.write_input(entry.key, &name);
        }
        if !bytes.is_empty() {
            entry.value = input.part(name.len() as u32, bytes.len() as u32);
            world.lane.write_input(entry.value, &bytes);
        }
        if matches!(op, Op::Get | Op::Call) {
            entry.reply = output.first(REPLY_BYTES);
        }
        if matches!(op, Op::Put | Op::Delete) {
            let durability = [Durability::Process, Durability::Power][usize::from(power)];
            entry.durability = Some(durability);
        }
        world.lane.submit(&entry).unwrap();
        let _ = world.lane.notify(&world.client_bells);
        let waiting = Waiting {
            asked,
            power,
            input,
            output,
        };
        self.waiting.insert(world.next, waiting);
    }

    fn take(&mut self, world: &mut World, done: &Completion) {
        let waiting = self.waiting.remove(&done.user_data).expect("answered once");
        let good = matches!(done.status, Status::Ok | Status::NotFound);
        assert!(
            good || self.faulty || done.status == Status::Busy,
            "{:?}",
            done.status
        );
        self.answers += 1;
        match waiting.asked {
            Asked::Write(key, place) => {
                self.keys[key][place].fate = match (good, waiting.power) {
                    (false, _) => Fate::Failed,
                    (true, true) => Fate::Power,
                    (true, false) => Fate::Process,
                };
            }
            Asked::Read(key, from) if good => {
                let mut found = None;
                if done.status == Status::Ok {
                    let mut bytes = vec![0; done.reply_bytes as usize];
                    let extent = waiting.output.first(done.reply_bytes);
                    world.lane.read_output(extent, &mut bytes);
                    found = Some(bytes);
                }
                let mut seen = self.keys[key][from..].iter();
                // One that only missed the device is there, and was taken for failed.
                let there = |write: &Write| write.fate != Fate::Failed || self.unsynced;
                assert!(
                    seen.any(|write| there(write) && write.value == found),
                    "a read of key {key} found what was never written, or is over"
                );
            }
            Asked::Read(..) => {}
            Asked::Checkpoint => self.made += usize::from(good),
        }
        world.lane.free_input(waiting.input);
        world.lane.free_output(waiting.output);
    }

    fn poll(&mut self, world: &mut World) {
        while let Ok(Some(done)) = world.lane.poll_completion() {
            self.take(world, &done);
        }
    }

    /// Goes on at the lane, and then one shard has its turn.
    fn turn(&mut self, world: &mut World) {
        self.poll(world);
        if self.waiting.is_empty() && world.lane.closed().is_none() {
            for _ in 0..=self.random.below(6) {
                self.submit(world);
            }
        }
        world.step();
    }

    /// Waits for all that was asked, or for the lane's end.
    fn drain(&mut self, world: &mut World) {
        world.until(|world| {
            self.poll(world);
            (self.waiting.is_empty() || world.lane.closed().is_some()).then_some(())
        });
        self.poll(world);
    }

    /// What was acknowledged so far is on the devices.
    fn make_durable(&mut self, world: &mut World) {
        assert!(self.waiting.is_empty());
        for no in 0..world.shards() {
            world.shard_at(no).store.disk.sync_all();
        }
        for write in self.keys.iter_mut().flatten() {
            if write.fate == Fate::Process {
                write.fate = Fate::Power;
            }
        }
    }

    /// What is there is what was promised, once.
    fn check(&self, world: &mut World, cut: bool) {
        for (no, row) in self.keys.iter().enumerate() {
            let found = match world.get(&key(no)) {
                Ok(found) => Some(found),
                Err(Status::NotFound) => None,
                Err(status) => panic!("{status:?} for key {no}"),
            };
            let from = Self::floor(row, cut);
            assert!(
                row[from..].iter().any(|write| write.value == found),
                "key {no} holds nothing of its last {} writes",
                row.len() - from
            );
        }
        if self.made > 0 {
            let mut ids = world.history(Revision::Head);
            let made = ids.len();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), made, "a checkpoint twice");
            assert!(made <= self.asked, "{made} of {}", self.asked);
            assert!(cut || made >= self.made, "{made} of {}", self.made);
        }
    }
}

/// An agent at work, with a tag, all of it on the devices.
fn busy_agent(shards: usize, seed: u64) -> (World, Traffic) {
    let mut world = World::cluster(shards, seed);
    let mut traffic = Traffic::new(seed);
    for _ in 0..100 {
        traffic.turn(&mut world);
    }
    traffic.drain(&mut world);
    world.good(None, &CHECKPOINT);
    (traffic.made, traffic.asked) = (traffic.made + 1, traffic.asked + 1);
    traffic.make_durable(&mut world);
    (world, traffic)
}

/// Shards over what is left of disks; those whose bit is set in `cuts` have lost their power.
fn crashed(disks: &[MemoryDisk], cuts: usize, random: &mut Random) -> World {
    let left = disks.iter().enumerate().map(|(no, disk)| {
        let mut disk = disk.clone();
        match cuts >> no & 1 {
            0 => disk.kill(),
            _ => disk.power_cut(random),
        }
        disk
    });
    World::cluster_over(left.collect(), random.next())
}

/// One copy of the agent is there with all that was promised; every now and then, that it goes on moving.
fn check_crash(disks: &[MemoryDisk], traffic: &Traffic, at: usize, random: &mut Random) {
    for cuts in [[0b00, 0b11], [0b01, 0b10]][at % 2] {
        let mut world = crashed(disks, cuts, random);
        world.settled();
        let place = world.place(AGENT);
        traffic.check(&mut world, cuts != 0);
        if at.is_multiple_of(7) {
            let state = world.state();
            world.move_to(AGENT, 1 - place);
            assert!(world.state() == state, "moved");
            world.move_to(AGENT, place);
            assert!(world.state() == state, "and back");
            let mut world = world.restarted(0);
            world.settled();
            assert_eq!(world.place(AGENT), place);
            assert!(world.state() == state, "and started again");
        }
    }
}

/// How far disks and answers are: between two equal ones a crash leaves the same.
fn progress(world: &mut World, traffic: &Traffic) -> (u64, Vec<(u64, usize)>) {
    let disks = (0..world.shards()).map(|no| {
        let disk = &world.shard_at(no).store.disk;
        (disk.writes, disk.queued().count())
    });
    (traffic.answers, disks.collect())
}

fn moved_with_crashes(seed: u64, collecting: bool) -> usize {
    println!("seed {seed}, collecting {collecting}");
    let (mut world, mut traffic) = busy_agent(2, seed);
    let mut random = Random(seed);
    let from = world.place(AGENT);
    let to = ShardNo(1 - from as u16);
    let answer = world.ask(from, AGENT, AgentVerb::Migrate { to });
    let (mut seen, mut crashes, mut after) = (None, 0, 0);
    for turn in 0..5_000 {
        traffic.turn(&mut world);
        if collecting && turn % 16 == 0 {
            world.collect_at(turn / 16 % 2);
        }
        let now = progress(&mut world, &traffic);
        if seen.as_ref() != Some(&now) {
            check_crash(&world.disks(), &traffic, crashes, &mut random);
            crashes += 1;
            seen = Some(now);
        }
        after += usize::from(world.is_quiet() && turn > 20);
        if after > 10 {
            break;
        }
    }
    assert!(matches!(answer.try_recv(), Ok(Ok(AgentAnswer::Done))));
    traffic.drain(&mut world);
    world.settled();
    assert_eq!(world.place(AGENT), usize::from(to.0), "it has moved");
    traffic.check(&mut world, false);
    crashes
}

#[test]
fn a_move_beside_a_lane_survives_a_crash_after_any_turn() {
    for seed in 1..=2 {
        assert!(moved_with_crashes(seed, false) > 30);
    }
}

#[test]
fn a_move_beside_collections_survives_a_crash_after_any_turn() {
    assert!(moved_with_crashes(11, true) > 30);
}

const NO_SPACE: DiskError = DiskError::NoSpace;

fn eio() -> DiskError {
    DiskError::Os {
        call: "pwrite",
        segment: SegmentNo(1),
        errno: 5,
    }
}

/// What fails in a move, at the source or at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fails {
    Space,
    Write,
    Sync,
}

/// A disk fails at its write or turn of some number; whether it came to that.
fn moved_with_failure(what: Fails, at_source: bool, skip: u32) -> bool {
    let (mut world, mut traffic) = busy_agent(2, 100 + u64::from(skip));
    traffic.faulty = true;
    traffic.unsynced = what == Fails::Sync;
    let from = world.place(AGENT);
    let failing = if at_source { from } else { 1 - from };
    let to = ShardNo(1 - from as u16);
    let error = if what == Fails::Space {
        NO_SPACE
    } else {
        eio()
    };
    if what != Fails::Sync {
        let written = 40;
        let fault = FailedWrite {
            skip,
            written,
            error: error.clone(),
        };
        world.shard_at(failing).store.disk.faults.write = Some(fault);
    }
    let answer = world.ask(from, AGENT, AgentVerb::Migrate { to });
    let twice = !at_source && what == Fails::Space;
    let mut again = false;
    for turn in 0..600 {
        let faults = &mut world.shard_at(failing).store.disk.faults;
        if twice && !again && faults.write.is_none() {
            // Nor can it be said that the agent is not here after all.
            again = true;
            faults.write = Some(FailedWrite {
                skip: 0,
                written: 40,
                error: error.clone(),
            });
        }
        if what == Fails::Sync && turn == 4 * skip {
            world.shard_at(failing).store.disk.faults.sync = Some(error.clone());
        }
        traffic.turn(&mut world);
        if turn > 20 && world.is_quiet() && world.lane.closed().is_none() {
            break;
        }
    }
    let fired = match what {
        Fails::Sync => world.shard_at(failing).store.disk.faults.sync.is_some(),
        _ => again || world.shard_at(failing).store.disk.faults.write.is_none(),
    };
    let _ = answer.try_recv();
    for no in 0..2 {
        world.shard_at(no).store.disk.faults = Default::default();
    }
    traffic.drain(&mut world);
    if world.lane.closed().is_none() {
        world.settled();
        world.place(AGENT);
        traffic.check(&mut world, false);
        if what == Fails::Space {
            // Nothing is left of the failure.
            let state = world.state();
            let place = world.place(AGENT);
            world.until(|world| {
                let to = ShardNo(1 - place as u16);
                let begun = world.told(place, AGENT, AgentVerb::Migrate { to });
                world.settled();
                (begun.is_ok() && world.place(AGENT) != place).then_some(())
            });
            assert!(world.state() == state);
        }
    }
    let mut world = world.restarted(0);
    world.settled();
    let place = world.place(AGENT);
    traffic.check(&mut world, false);
    let state = world.state();
    world.move_to(AGENT, 1 - place);
    world.move_to(AGENT, place);
    let mut world = world.restarted(0);
    assert!(world.state() == state);
    fired
}

#[test]
fn a_move_whose_disks_fail_loses_nothing() {
    for what in [Fails::Space, Fails::Write, Fails::Sync] {
        for at_source in [true, false] {
            let mut fired = 0;
            // Of the writes of a landing there are few.
            let last = if at_source { 16 } else { 48 };
            for skip in 0..last {
                println!("{what:?}, at the source {at_source}, {skip}");
                fired += u32::from(moved_with_failure(what, at_source, skip));
            }
            assert!(fired >= 4, "{what:?}: {fired}");
        }
    }
}

/// A shard's thread dies in a turn of a move; then everything is started again.
#[test]
fn a_shard_that_goes_in_a_move_takes_nothing_with_it() {
    for at_source in [true, false] {
        for turn in (0..150).step_by(5) {
            println!("at the source {at_source}, turn {turn}");
            let (mut world, mut traffic) = busy_agent(2, 200 + turn);
            let from = world.place(AGENT);
            let to = ShardNo(1 - from as u16);
            world.ask(from, AGENT, AgentVerb::Migrate { to });
            for _ in 0..turn {
                traffic.turn(&mut world);
            }
            world.lose(if at_source { from } else { 1 - from });
            traffic.faulty = true;
            for _ in 0..100 {
                traffic.turn(&mut world);
            }
            let mut world = world.restarted(0);
            world.settled();
            let place = world.place(AGENT);
            traffic.check(&mut world, false);
            world.move_to(AGENT, 1 - place);
            traffic.check(&mut world, false);
        }
    }
}

/// The copy that a lost shard has of an agent is older than any other by the next start.
#[test]
fn what_a_lost_shard_has_of_an_agent_does_not_come_back() {
    let (mut gone_on, mut stayed) = (0, 0);
    for turn in (0..150).step_by(5) {
        println!("turn {turn}");
        let (mut world, mut traffic) = busy_agent(3, 300 + turn);
        let from = world.place(AGENT);
        // The lower number of two, which would be found first.
        let to = (0..3).find(|&no| no != from).unwrap();
        let third = (0..3).rfind(|&no| no != from).unwrap();
        let migrate = |to: usize| AgentVerb::Migrate {
            to: ShardNo(to as u16),
        };
        world.ask(from, AGENT, migrate(to));
        for _ in 0..turn {
            traffic.turn(&mut world);
        }
        world.lose(to);
        traffic.faulty = true;
        for _ in 0..100 {
            traffic.turn(&mut world);
        }
        let here = world.shard_at(from).store.tables.agent_no(AGENT).is_some();
        if here && world.lane.closed().is_none() {
            traffic.drain(&mut world);
            let moved = world.told(from, AGENT, migrate(third));
            match moved {
                Ok(_) => gone_on += 1,
                Err(_) => stayed += 1,
            }
            for _ in 0..400 {
                traffic.turn(&mut world);
            }
            traffic.drain(&mut world);
        }
        let mut world = world.restarted(0);
        world.settled();
        world.place(AGENT);
        traffic.check(&mut world, false);
    }
    assert!(gone_on > 0 && stayed > 0, "{gone_on}, {stayed}");
}

/// What an agent consists of beside its keys, as the tables have it.
fn described(world: &mut World, agent: &[u8]) -> Vec<String> {
    let place = world.place(agent);
    let tables = &world.shard_at(place).store.tables;
    let agent = tables.agent(tables.agent_no(agent).unwrap());
    let mut said = vec![format!(
        "{} {:?} {:?}",
        agent.public, agent.tags, agent.adopted
    )];
    for (no, branch) in agent.numbered_branches() {
        said.push(format!(
            "{no:?} {} {:?} {:?} {:?} {}",
            branch.name,
            branch.head,
            branch.base,
            branch.retention,
            branch.keys.changes()
        ));
    }
    for (no, open) in agent.sets.iter() {
        let set = &open.set;
        said.push(format!(
            "{no:?} {} {:?} {:?} {:?} {:?}",
            set.name,
            set.branch,
            set.origin,
            set.terms,
            set.candidates()
        ));
    }
    said.push(format!("{:?}", agent.sets.next()));
    said
}

fn some_names(world: &mut World, random: &mut Random, round: usize) {
    use crate::agent::set_call::SetCall;
    use crate::shard::superposition_tests::create;
    for step in 0..12 {
        let name = format!("n{}", random.below(6));
        let put = value((round * 100 + step) as u32, 40 + random.below(3000));
        world.put(&key(random.below(KEYS)), &put);
        let (target, force) = (Revision::Head, true);
        let call = match random.below(9) {
            0 => CHECKPOINT,
            1 => branch(&name),
            2 => Call::Retain {
                name: "main",
                rule: [Retention::All, Retention::Last(3)][random.below(2)],
            },
            3 => Call::Tag {
                name: &name,
                target,
                force,
            },
            4 => Call::Publish {
                name: &name,
                target,
                force,
            },
            5 => Call::Untag { name: &name },
            6 => Call::DeleteBranch { name: &name, force },
            7 => Call::Superposition(create(&name, 1000 * random.below(3) as u64, 0, 0.0)),
            _ => Call::Superposition(SetCall::Add {
                set: random.below(4) as u32,
                from: target,
                weight: (random.below(9) as f64 + 0.5).to_le_bytes(),
                label: &name,
            }),
        };
        // A name may be taken, or nobody's.
        let _ = world.call_on(None, &call);
    }
}

#[test]
fn names_sets_rules_and_forks_move_with_an_agent() {
    for seed in 1..=6 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut world = World::cluster(2, seed);
        world.put(b"k", b"1");
        world.good(None, &CHECKPOINT);
        for round in 0..4 {
            some_names(&mut world, &mut random, round);
            let fork = BranchNo(world.info(None, &FORK).no);
            world.put_on(fork, b"k", b"in the fork");
            let before = (world.state(), described(&mut world, AGENT));
            let place = world.place(AGENT);
            world.move_to(AGENT, 1 - place);
            let after = (world.state(), described(&mut world, AGENT));
            assert!(after.0 == before.0, "keys");
            assert_eq!(after.1, before.1);
            assert_eq!(world.get_on(fork, b"k").unwrap(), b"in the fork");
            world.good(Some(fork), &Call::Discard);
            if round % 2 == 1 {
                for no in 0..2 {
                    world.collect_at(no);
                }
                for _ in 0..300 {
                    world.step();
                }
            }
            world = world.restarted(0);
            world.settled();
            assert_eq!(world.place(AGENT), 1 - place);
            let after = (world.state(), described(&mut world, AGENT));
            assert!(after.0 == before.0, "keys after a start");
            assert_eq!(after.1, before.1);
        }
    }
}
