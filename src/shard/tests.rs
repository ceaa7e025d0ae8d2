//! A shard turned by hand, over a disk in memory that fails on demand, against a plain map.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;

use crossbeam_queue::ArrayQueue;

use super::*;
use crate::agent::CloseReason;
use crate::agent::arena::Block;
use crate::agent::bell::{ClientBells, ServerBells, StatusPage};
use crate::agent::client_lane::ClientLane;
use crate::agent::layout::{LaneSizes, PART_BYTES_MAX};
use crate::agent::packed;
use crate::agent::server_lane::ServerLane;
use crate::cache::L2;
use crate::id::{AgentNo, LaneNo, ObjectId, SessionNo, View};
use crate::mesh::mesh;
use crate::metrics::thread_allocations;
use crate::segment::memory::{FailedWrite, MemoryDisk, Random};
use crate::segment::{DiskError, Location, Log, LogConfig, LogId, RecoverError, recover};
use crate::shard::agent::{BranchRef, MAIN};
use crate::shared::SharedMemory;

pub(super) mod large;
mod share;

/// Room for the answer of a call.
pub(super) const CALL_REPLY_BYTES: u32 = 16 << 10;
pub(super) const SEGMENT_BYTES: u32 = 1 << 20;

/// The main branch of the first agent.
pub(super) fn main_of_first() -> BranchRef {
    BranchRef {
        agent: AgentNo(0),
        branch: MAIN,
    }
}

/// A shard, and one client of it. Others may stand beside it, with a mesh between them all.
pub(super) struct World {
    pub(super) shard: Shard<MemoryDisk>,
    pub(super) commands: Arc<ArrayQueue<Command>>,
    /// The further shards of the same runtime, and what is asked of them.
    pub(super) beside: Vec<(Shard<MemoryDisk>, Arc<ArrayQueue<Command>>)>,
    /// Picks the shard that has the next turn, where there are several.
    pub(super) order: Random,
    /// Shards whose thread died.
    pub(super) lost: Vec<usize>,
    bells: Arc<SharedMemory>,
    pub(super) client_bells: ClientBells,
    pub(super) lane: ClientLane,
    pub(super) held: Vec<(Block, Block)>,
    pub(super) now: u64,
    pub(super) next: u64,
    pub(super) segment_bytes: u32,
}

/// Messages in each ring of the mesh: so few that rings are often full.
const RING_SLOTS: usize = 4;
/// Turns until an operation is answered, for each shard.
const TURNS_MAX: usize = 50;
/// The same where shards wait for each other, and for full rings.
const TURNS_AMONG_SHARDS_MAX: usize = 20_000;

impl World {
    /// A shard over what a disk holds; with `l2_bytes` 0 every read goes to the segments.
    pub(super) fn over(disk: MemoryDisk, l2_bytes: usize) -> Self {
        Self::within(disk, l2_bytes, 1 << 30)
    }

    /// The same, with so much memory for its indexes.
    pub(super) fn within(disk: MemoryDisk, l2_bytes: usize, index_bytes_max: u64) -> Self {
        Self::sized(disk, l2_bytes, index_bytes_max, SEGMENT_BYTES)
    }

    /// The same, with segments of so many bytes.
    pub(super) fn sized(
        disk: MemoryDisk,
        l2_bytes: usize,
        index_bytes_max: u64,
        segment_bytes: u32,
    ) -> Self {
        Self::several(vec![disk], l2_bytes, index_bytes_max, segment_bytes)
    }

    /// A shard over what each disk holds, of one runtime.
    pub(super) fn several(
        disks: Vec<MemoryDisk>,
        l2_bytes: usize,
        index_bytes_max: u64,
        segment_bytes: u32,
    ) -> Self {
        let mut disks = disks;
        let parts = recover_all(&mut disks, segment_bytes).unwrap();
        let mut world = Self::of_parts(parts, disks, l2_bytes, index_bytes_max, segment_bytes);
        world.attach_first().unwrap();
        world
    }

    /// A shard over what was recovered from each disk. Nobody is attached yet.
    pub(super) fn of_parts(
        parts: Vec<(Tables, Log)>,
        disks: Vec<MemoryDisk>,
        l2_bytes: usize,
        index_bytes_max: u64,
        segment_bytes: u32,
    ) -> Self {
        let shards = disks.len();
        let mut stores: Vec<_> = parts
            .into_iter()
            .zip(disks)
            .map(|((tables, log), mut disk)| {
                disk.at_once = shards == 1;
                let l2 = L2::new(l2_bytes).unwrap();
                Store::new(tables, log, disk, l2, index_bytes_max)
            })
            .collect();
        let routes = settle_moves(&mut stores);
        let counters: Arc<[ShardCounters]> = stores.iter().map(|_| Default::default()).collect();
        let ports = mesh(shards, RING_SLOTS);
        let mut all: Vec<_> = (0..)
            .zip(stores.into_iter().zip(ports))
            .map(|(no, (store, port))| {
                let options = ShardOptions {
                    no: ShardNo(no),
                    durability: Durability::Process,
                    group_commit_ns: 0,
                    wall_ms: 0,
                    step_clock: None,
                };
                let commands = Arc::new(ArrayQueue::new(16));
                let (asked, counters) = (Arc::clone(&commands), Arc::clone(&counters));
                let mut shard = Shard::new(options, store, port, asked, counters);
                shard.set_routes(routes.clone());
                (shard, commands)
            })
            .collect();
        let beside = all.split_off(1);
        let (shard, commands) = all.pop().unwrap();
        let (bells, session_fd) = ServerBells::create_session(shards).unwrap();
        let statuses = (0..shards).map(|_| StatusPage::create().unwrap().1);
        let statuses: Vec<_> = statuses.collect();
        let client_bells = ClientBells::map(&session_fd, &statuses).unwrap();
        let (_, lane) = rings_at(LaneNo(0), owner(b"agent", shards));
        Self {
            shard,
            commands,
            beside,
            order: Random(1),
            lost: Vec::new(),
            bells,
            client_bells,
            lane,
            held: Vec::new(),
            now: 0,
            next: 0,
            segment_bytes,
        }
    }

    /// Attaches the world's own lane anew.
    pub(super) fn attach_first(&mut self) -> Result<Attached, AttachError> {
        let home = ShardNo(self.owner_of(b"agent") as u16);
        let (ring, lane) = rings_at(LaneNo(0), home);
        self.lane = lane;
        self.held.clear();
        self.attach_to(b"agent", SessionNo(1), LaneNo(0), ring)
    }

    pub(super) fn new(l2_bytes: usize) -> Self {
        Self::over(MemoryDisk::new(), l2_bytes)
    }

    pub(super) fn attach(&mut self, lane: LaneNo, ring: ServerLane) {
        self.attach_as(SessionNo(1), lane, ring);
    }

    pub(super) fn attach_as(
        &mut self,
        session: SessionNo,
        lane: LaneNo,
        ring: ServerLane,
    ) -> Attached {
        self.attach_to(b"agent", session, lane, ring).unwrap()
    }

    /// Asks for a lane to an agent, wherever that is, at the shard that its name says.
    pub(super) fn attach_to(
        &mut self,
        agent: &[u8],
        session: SessionNo,
        lane: LaneNo,
        ring: ServerLane,
    ) -> Result<Attached, AttachError> {
        self.attach_at(self.owner_of(agent), agent, session, lane, ring)
    }

    /// The same, at a shard of one's choice.
    pub(super) fn attach_at(
        &mut self,
        at: usize,
        agent: &[u8],
        session: SessionNo,
        lane: LaneNo,
        ring: ServerLane,
    ) -> Result<Attached, AttachError> {
        let (memory, fd) =
            SharedMemory::create("w", 16 << 10, crate::shared::Access::ReadOnly).unwrap();
        let (reply, answer) = channel();
        let request = AttachRequest {
            session,
            bells: Arc::clone(&self.bells),
            socket: None,
            lane,
            ring,
            agent: agent.into(),
            create: true,
            public: None,
            window: SharedWindow {
                memory,
                fd: Arc::new(fd),
            },
            path: Vec::new(),
            reply: Answer::new(move |outcome| reply.send(outcome).unwrap()),
        };
        let command = Command::Attach(Box::new(request));
        assert!(self.commands_of(at).push(command).is_ok());
        if self.beside.is_empty() {
            for _ in 0..10 {
                self.step();
            }
            return answer.try_recv().unwrap();
        }
        self.until(|_| answer.try_recv().ok())
    }

    /// Turns until something is found.
    pub(super) fn until<T>(&mut self, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..TURNS_AMONG_SHARDS_MAX {
            self.step();
            if let Some(found) = found(self) {
                return found;
            }
        }
        panic!("nothing found in {TURNS_AMONG_SHARDS_MAX} turns");
    }

    /// Shards that there are.
    pub(super) fn shards(&self) -> usize {
        1 + self.beside.len()
    }

    /// The shard that an agent's name says.
    pub(super) fn owner_of(&self, agent: &[u8]) -> usize {
        usize::from(owner(agent, self.shards()).0)
    }

    /// A shard by its number.
    pub(super) fn shard_at(&mut self, no: usize) -> &mut Shard<MemoryDisk> {
        match no {
            0 => &mut self.shard,
            no => &mut self.beside[no - 1].0,
        }
    }

    /// What is asked of a shard.
    pub(super) fn commands_of(&self, no: usize) -> &ArrayQueue<Command> {
        match no {
            0 => &self.commands,
            no => &self.beside[no - 1].1,
        }
    }

    pub(super) fn disk(&mut self) -> &mut MemoryDisk {
        &mut self.shard.store.disk
    }

    /// Lets time pass in which the shard sleeps.
    pub(super) fn pass(&mut self, ms: u64) {
        self.now += ms * 1_000_000;
    }

    pub(super) fn step(&mut self) {
        self.now += 1_000_000;
        if !self.beside.is_empty() {
            return self.step_one_of_several();
        }
        self.shard.step(self.now);
        // While nothing is said in return, what a collection does is looked at now and then.
        let steps = self.now / 1_000_000;
        if !self.shard.collector.is_under_way() || steps.is_multiple_of(64) {
            self.check_references();
        }
    }

    /// A turn of some shard, perhaps an answer of its disk, and what the control plane does then.
    fn step_one_of_several(&mut self) {
        let no = self.order.below(self.shards());
        if self.lost.contains(&no) {
            return;
        }
        let now = self.now;
        let shard = self.shard_at(no);
        shard.step(now);
        let events = shard.take_events();
        if self.order.below(2) == 0 {
            self.shard_at(no).store.disk.run_io();
        }
        for event in events {
            let Event::Moved { agent, to, moves } = event else {
                continue;
            };
            for other in (0..self.shards()).filter(|&other| other != no) {
                let agent = agent.clone();
                let route = Command::Route { agent, to, moves };
                // One that is full hears of it when it asks the wrong one.
                let _ = self.commands_of(other).push(route);
            }
        }
        if self.order.below(64) == 0 {
            self.check_references();
        }
    }

    /// A turn, and how many allocations it made.
    pub(super) fn counted_step(&mut self) -> u64 {
        self.now += 1_000_000;
        let before = thread_allocations() - self.disk().allocations;
        self.shard.step(self.now);
        thread_allocations() - self.disk().allocations - before
    }

    pub(super) fn submit(
        &mut self,
        op: Op,
        key: &[u8],
        value: &[u8],
        how: impl FnOnce(&mut Submission),
    ) -> u64 {
        self.next += 1;
        let mut entry = Submission::new(op, self.next);
        let input = self
            .lane
            .alloc_input((key.len() + value.len()).max(1) as u32)
            .unwrap();
        let reply_bytes = match op {
            Op::Get => PART_BYTES_MAX,
            Op::Call | Op::Scan => CALL_REPLY_BYTES,
            _ => 64,
        };
        let output = self.lane.alloc_output(reply_bytes).unwrap();
        if !key.is_empty() {
            entry.key = input.first(key.len() as u32);
            self.lane.write_input(entry.key, key);
        }
        if !value.is_empty() {
            entry.value = input.part(key.len() as u32, value.len() as u32);
            self.lane.write_input(entry.value, value);
        }
        if matches!(op, Op::Get | Op::Call | Op::Scan) {
            entry.reply = output.first(reply_bytes);
        }
        how(&mut entry);
        self.lane.submit(&entry).unwrap();
        // The shard is turned by hand: nobody has to wake it.
        let _ = self.lane.notify(&self.client_bells);
        self.held.push((input, output));
        self.next
    }

    pub(super) fn completion(&mut self) -> Option<Completion> {
        let completion = self.lane.poll_completion().unwrap()?;
        if self.lane.in_flight() == 0 {
            for (input, output) in self.held.drain(..) {
                self.lane.free_input(input);
                self.lane.free_output(output);
            }
        }
        Some(completion)
    }

    /// Steps, with the disk's answers, until the next completion.
    pub(super) fn wait(&mut self) -> Completion {
        if !self.beside.is_empty() {
            return self.until(Self::completion);
        }
        for _ in 0..TURNS_MAX {
            self.step();
            self.disk().run_io();
            if let Some(completion) = self.completion() {
                return completion;
            }
        }
        panic!("no completion in {TURNS_MAX} turns");
    }

    pub(super) fn put_as(
        &mut self,
        key: &[u8],
        value: &[u8],
        durability: Durability,
    ) -> Completion {
        self.submit(Op::Put, key, value, |entry| {
            entry.durability = Some(durability)
        });
        self.wait()
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Completion {
        self.put_as(key, value, Durability::Process)
    }

    pub(super) fn put_large(
        &mut self,
        key: &[u8],
        value: &[u8],
        durability: Durability,
    ) -> Completion {
        let mut offset = 0;
        for part in value.chunks(PART_BYTES_MAX as usize) {
            let total = value.len() as u64;
            self.submit(Op::PutPart, key, part, |entry| {
                (entry.arg0, entry.arg1) = (offset, total);
                entry.durability = Some(durability);
            });
            offset += part.len() as u64;
            let completion = self.wait();
            if offset == total || completion.status != Status::Ok {
                return completion;
            }
        }
        unreachable!("the last part ends the value")
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> Completion {
        self.submit(Op::Delete, key, &[], |_| {});
        self.wait()
    }

    pub(super) fn get(&mut self, key: &[u8]) -> Result<Vec<u8>, Status> {
        let mut value = Vec::new();
        loop {
            let from = value.len() as u64;
            self.submit(Op::Get, key, &[], |entry| entry.arg0 = from);
            let completion = self.wait();
            if completion.status != Status::Ok {
                return Err(completion.status);
            }
            let mut bytes = vec![0; completion.reply_bytes as usize];
            let extent = Extent {
                offset: 0,
                len: completion.reply_bytes,
            };
            self.lane.read_output(extent, &mut bytes);
            value.extend(bytes);
            if !completion.more {
                return Ok(value);
            }
        }
    }

    pub(super) fn check_references(&mut self) {
        for no in (0..self.shards())
            .filter(|no| !self.lost.contains(no))
            .collect::<Vec<_>>()
        {
            self.shard_at(no).check_references();
        }
    }

    /// What a runtime finds that is started after this one was killed.
    pub(super) fn restarted(mut self, l2_bytes: usize) -> Self {
        let mut disks = self.disks();
        disks.iter_mut().for_each(MemoryDisk::kill);
        let order = self.order;
        let mut world = Self::several(disks, l2_bytes, 1 << 30, self.segment_bytes);
        world.order = order;
        world
    }

    /// The disks of all shards as they are now.
    pub(super) fn disks(&mut self) -> Vec<MemoryDisk> {
        let shards = 0..self.shards();
        shards
            .map(|no| self.shard_at(no).store.disk.clone())
            .collect()
    }
}

/// What the log of each shard says, and the log to go on with.
pub(super) fn recover_all(
    disks: &mut [MemoryDisk],
    segment_bytes: u32,
) -> Result<Vec<(Tables, Log)>, RecoverError> {
    let shards = (0..).zip(disks);
    shards
        .map(|(no, disk)| recovered(ShardNo(no), disk, segment_bytes))
        .collect()
}

fn recovered(
    no: ShardNo,
    disk: &mut MemoryDisk,
    segment_bytes: u32,
) -> Result<(Tables, Log), RecoverError> {
    let mut tables = Tables::default();
    let recovered = recover(disk, no, &mut |record| tables.apply(record).unwrap())?;
    let mut failed = None;
    let read = |at: Location| {
        use crate::segment::SegmentFiles;
        let mut bytes = vec![0; at.bytes as usize];
        match disk.read_at(at.segment, u64::from(at.offset), &mut bytes) {
            Ok(read) => (read == bytes.len()).then_some(bytes),
            Err(error) => {
                failed.get_or_insert(error);
                None
            }
        }
    };
    tables.finish(&recovered.start.dropped, read).unwrap();
    if let Some(error) = failed {
        return Err(error.into());
    }
    let config = LogConfig {
        shard: no,
        log_id: recovered.log_id.unwrap_or(LogId(7)),
        segment_bytes,
        buffer_bytes: 512 << 10,
    };
    Ok((tables, Log::new(config, recovered.start)))
}

pub(super) fn rings(lane: LaneNo) -> (ServerLane, ClientLane) {
    rings_at(lane, ShardNo(0))
}

/// Rings of a lane that is attached at a shard.
pub(super) fn rings_at(lane: LaneNo, at: ShardNo) -> (ServerLane, ClientLane) {
    let sizes = LaneSizes::DEFAULT;
    let (ring, fds) = ServerLane::create(sizes).unwrap();
    let client = ClientLane::map(&fds.client, &fds.server, sizes, lane, at).unwrap();
    (ring, client)
}

fn value(random: &mut Random) -> Vec<u8> {
    let bytes = match random.below(10) {
        0 => 0,
        1 => 70_000 + random.below(200_000),
        2 => 40_000,
        _ => random.below(3000),
    };
    // Few contents, so that deduplication has something to do.
    let seed = random.below(5) as u8;
    (0..bytes)
        .map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed)
        .collect()
}

/// Random operations against a map, with cold ranges, slow disk and restarts.
fn check(seed: u64, l2_bytes: usize) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut world = World::new(l2_bytes);
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for _ in 0..250 {
        let key = vec![b'k', random.below(12) as u8];
        match random.below(12) {
            0..=4 => {
                let value = value(&mut random);
                let durability = [Durability::Process, Durability::Power][random.below(2)];
                let completion = match value.len() > PART_BYTES_MAX as usize {
                    true => world.put_large(&key, &value, durability),
                    false => world.put_as(&key, &value, durability),
                };
                assert_eq!(completion.status, Status::Ok);
                assert_eq!(completion.durability, Some(durability));
                model.insert(key, value);
            }
            5 => {
                let there = model.remove(&key).is_some();
                let wanted = if there { Status::Ok } else { Status::NotFound };
                assert_eq!(world.delete(&key).status, wanted);
            }
            6 => {
                let segments = world.disk().segments();
                for segment in segments {
                    let cold = (crate::id::SegmentNo(segment), 0..SEGMENT_BYTES);
                    world.disk().cold.push(cold);
                }
            }
            7 if random.below(4) == 0 => world = world.restarted(l2_bytes),
            _ => {
                let found = world.get(&key);
                assert!(found.ok() == model.get(&key).cloned(), "{key:?}");
            }
        }
    }
    let mut world = world.restarted(l2_bytes);
    for key in 0..12 {
        let key = vec![b'k', key];
        assert!(
            world.get(&key).ok() == model.get(&key).cloned(),
            "{key:?} after a restart"
        );
    }
}

#[test]
fn agrees_with_a_map_through_restarts() {
    for seed in 1..=12 {
        check(seed, if seed % 2 == 0 { 0 } else { 1 << 20 });
    }
}

#[test]
fn a_power_cut_keeps_what_was_acknowledged_as_power_safe() {
    for seed in 1..=30 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut world = World::new(1 << 20);
        let mut safe = BTreeMap::new();
        let mut history: BTreeMap<u8, Vec<Option<Vec<u8>>>> = BTreeMap::new();
        for _ in 0..40 {
            let key = random.below(6) as u8;
            let content = vec![random.next() as u8; random.below(500)];
            let power = random.below(3) == 0;
            let durability = if power {
                Durability::Power
            } else {
                Durability::Process
            };
            assert_eq!(
                world.put_as(&[key], &content, durability).status,
                Status::Ok
            );
            history.entry(key).or_default().push(Some(content));
            if power {
                // Everything before it is safe too: a power cut takes a suffix.
                safe = history.iter().map(|(key, all)| (*key, all.len())).collect();
            }
        }
        let mut disk = world.disk().clone();
        disk.power_cut(&mut random);
        let mut world = World::over(disk, 0);
        for (key, all) in history {
            let first = safe.get(&key).copied().unwrap_or(0);
            let found = world.get(&[key]).ok();
            let allowed =
                first == 0 && found.is_none() || all[first.saturating_sub(1)..].contains(&found);
            assert!(allowed, "key {key}: {found:?}");
        }
    }
}

#[test]
fn a_failed_flush_takes_everything_back() {
    let no_space = || FailedWrite {
        skip: 0,
        written: 5,
        error: DiskError::NoSpace,
    };
    let mut world = World::new(1 << 20);
    assert_eq!(world.put(b"a", b"old").status, Status::Ok);
    assert_eq!(world.get(b"a").unwrap(), b"old");
    world.disk().faults.write = Some(no_space());
    // Several in one turn: an overwrite, a new key, a delete, and a read of what is being written.
    world.submit(Op::Put, b"a", b"new", |_| {});
    world.step();
    assert_eq!(world.completion().unwrap().status, Status::NoSpace);
    assert_eq!(world.get(b"a").unwrap(), b"old");
    world.disk().faults.write = Some(no_space());
    let large = vec![1; 100_000];
    assert_eq!(
        world.put_large(b"big", &large, Durability::Process).status,
        Status::NoSpace
    );
    assert_eq!(world.get(b"big"), Err(Status::NotFound));
    world.disk().faults.write = Some(no_space());
    assert_eq!(world.delete(b"a").status, Status::NoSpace);
    assert_eq!(world.get(b"a").unwrap(), b"old");
    assert_eq!(world.put(b"a", b"newer").status, Status::Ok);
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"a").unwrap(), b"newer");
    assert_eq!(world.get(b"big"), Err(Status::NotFound));
}

#[test]
fn a_volatile_write_taken_back_leaves_no_trace_in_the_window() {
    let mut world = World::new(1 << 20);
    world.put(b"a", b"old");
    assert_eq!(
        world.put_as(b"a", b"lost", Durability::Volatile).status,
        Status::Ok
    );
    assert_eq!(world.get(b"a").unwrap(), b"lost");
    let agent = AgentNo(0);
    let in_window = |world: &World| {
        world
            .shard
            .store
            .tables
            .agent(agent)
            .window
            .as_ref()
            .unwrap()
            .contains(View(0), b"a")
    };
    assert!(in_window(&world));
    world.disk().faults.write = Some(FailedWrite {
        skip: 0,
        written: 0,
        error: DiskError::NoSpace,
    });
    assert_eq!(world.put(b"b", b"x").status, Status::NoSpace);
    assert!(!in_window(&world));
    assert_eq!(world.get(b"a").unwrap(), b"old");
}

#[test]
fn a_failed_sync_is_final_and_reads_go_on() {
    let mut world = World::new(1 << 20);
    world.put(b"a", b"1");
    let error = || DiskError::Os {
        call: "fdatasync",
        segment: crate::id::SegmentNo(1),
        errno: 5,
    };
    world.disk().faults.sync = Some(error());
    assert_eq!(
        world.put_as(b"a", b"2", Durability::Power).status,
        Status::IoFailed
    );
    world.disk().faults.sync = None;
    assert_eq!(world.put(b"a", b"3").status, Status::ReadOnly);
    world.submit(Op::Sync, b"", b"", |entry| {
        entry.durability = Some(Durability::Power)
    });
    assert_eq!(world.wait().status, Status::IoFailed);
    assert!(world.get(b"a").is_ok());
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let mut world = World::new(0);
    world.put(b"first", b"kept");
    world.disk().faults.create = Some(DiskError::NoSpace);
    let mut written = 0_u32;
    let refused = loop {
        let content: Vec<u8> = (0..30_000_u32).map(|i| (i ^ written) as u8).collect();
        let completion = world.put(&written.to_le_bytes(), &content);
        if completion.status != Status::Ok {
            break completion;
        }
        written += 1;
        assert!(written < 200, "the disk never filled");
    };
    assert_eq!(refused.status, Status::NoSpace);
    assert_eq!(world.get(b"first").unwrap(), b"kept");
    world.disk().faults.create = None;
    for _ in 0..300 {
        world.step();
        world.disk().run_io();
    }
    assert_eq!(world.put(b"again", &[1; 30_000]).status, Status::Ok);
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"again").unwrap(), [1; 30_000]);
    assert_eq!(world.get(b"first").unwrap(), b"kept");
}

#[test]
fn several_puts_at_once_are_all_refused_or_all_done_where_memory_runs_short() {
    let index_bytes_max = Tables::default().memory_bytes() + 500;
    let mut world = World::within(MemoryDisk::new(), 1 << 20, index_bytes_max);
    let mut put_all = |keys: &[&[u8]]| {
        let mut pairs = Vec::new();
        for key in keys {
            packed::push_pair(&mut pairs, key, b"value").unwrap();
        }
        world.submit(Op::MultiPut, &[], &pairs, |_| {});
        let status = world.wait().status;
        let there = keys
            .iter()
            .filter(|key| world.get(key) == Ok(b"value".to_vec()));
        (status, there.count())
    };
    // There is room when it begins, and none before its end.
    let keys: [&[u8]; 8] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"];
    assert_eq!(put_all(&keys), (Status::Ok, 8));
    // Now there is none, for new keys.
    assert_eq!(put_all(&[b"a", b"i", b"b"]), (Status::Busy, 2));
    assert_eq!(put_all(&keys), (Status::Ok, 8));
}

/// Runs `act`; the lines that were logged by this thread meanwhile.
fn logged(act: impl FnOnce()) -> Vec<String> {
    let (lines, write) = std::io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(write))
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let text = std::io::read_to_string(lines).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_is_handed_to_the_log_is_counted() {
    let mut world = World::new(1 << 20);
    let counted = |world: &World| world.shard.counters().log_bytes.get();
    let before = counted(&world);
    world.put(b"k", &[7; 3000]);
    let once = counted(&world) - before;
    assert!((3000..4000).contains(&once), "{once}");
    // The same bytes again are not stored again.
    world.put(b"l", &[7; 3000]);
    let twice = counted(&world) - before - once;
    assert!((1..1000).contains(&twice), "{twice}");
}

#[test]
fn damage_is_told_once_however_often_it_is_asked_for() {
    for cold in [false, true] {
        let mut world = World::new(0);
        world.put(b"bad", &[0xAB; 5000]);
        let at = world.shard.store.tables.objects.get(ObjectNo(0)).at;
        world.disk().bytes_mut(at.segment)[at.offset as usize + 77] ^= 4;
        if cold {
            world.disk().cold.push((at.segment, 0..SEGMENT_BYTES));
        }
        let lines = logged(|| {
            for _ in 0..20 {
                assert_eq!(world.get(b"bad"), Err(Status::Corrupt));
            }
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("damaged") && lines[0].contains("shard=0"));
    }
}

#[test]
fn damaged_bytes_are_never_served_and_can_be_written_anew() {
    let mut world = World::new(0);
    let content = vec![0xAB; 5000];
    world.put(b"bad", &content);
    world.put(b"good", b"fine");
    let at = world.shard.store.tables.objects.get(ObjectNo(0)).at;
    world.disk().bytes_mut(at.segment)[at.offset as usize + 77] ^= 4;
    assert_eq!(world.get(b"bad"), Err(Status::Corrupt));
    assert_eq!(world.get(b"bad"), Err(Status::Corrupt));
    assert_eq!(world.get(b"good").unwrap(), b"fine");
    // The same bytes again must not be shared with the damaged ones.
    assert_eq!(world.put(b"bad", &content).status, Status::Ok);
    assert_eq!(world.get(b"bad").unwrap(), content);
    let mut cold = (at.segment, 0..SEGMENT_BYTES);
    cold.1.start = 0;
    world.disk().cold.push(cold);
    assert_eq!(world.get(b"bad").unwrap(), content);
}

#[test]
fn a_read_that_waits_for_the_device_keeps_its_value() {
    let mut world = World::new(0);
    world.put(b"a", b"before");
    let segment = world.shard.store.tables.objects.get(ObjectNo(0)).at.segment;
    world.disk().cold.push((segment, 0..SEGMENT_BYTES));
    world.disk().at_once = false;
    let read = world.submit(Op::Get, b"a", b"", |_| {});
    world.step();
    assert!(world.completion().is_none());
    let write = world.submit(Op::Put, b"a", b"after", |_| {});
    world.step();
    assert_eq!(world.completion().unwrap().user_data, write);
    world.disk().run_io();
    world.step();
    let completion = world.completion().unwrap();
    assert_eq!((completion.user_data, completion.tier), (read, Tier::Cold));
    assert_eq!(completion.id, ObjectId::of_blob(b"before"));
    assert_eq!(world.get(b"a").unwrap(), b"after");
}

#[test]
fn what_waits_for_a_lane_that_goes_is_dropped() {
    let mut world = World::new(0);
    world.put(b"a", b"x");
    let segment = world.shard.store.tables.objects.get(ObjectNo(0)).at.segment;
    world.disk().cold.push((segment, 0..SEGMENT_BYTES));
    world.disk().at_once = false;
    world.submit(Op::Get, b"a", b"", |_| {});
    world.step();
    world.submit(Op::PutPart, b"b", &[1; 65536], |entry| entry.arg1 = 100_000);
    world.step();
    world.submit(Op::Sync, b"", b"", |entry| {
        entry.durability = Some(Durability::Power)
    });
    world.step();
    let session = SessionNo(1);
    let end = Command::EndSession {
        session,
        reason: CloseReason::Detached,
    };
    assert!(world.commands.push(end).is_ok());
    world.step();
    assert_eq!(world.lane.closed(), Some(CloseReason::Detached));
    // A new lane takes the old one's place; it must get none of its answers.
    let (ring, client) = rings(LaneNo(0));
    world.lane = client;
    world.held.clear();
    world.attach(LaneNo(0), ring);
    for _ in 0..5 {
        world.disk().run_io();
        world.step();
        assert!(world.completion().is_none());
    }
    assert!(world.shard.pending.is_empty());
    world.disk().at_once = true;
    assert_eq!(world.get(b"a").unwrap(), b"x");
    assert_eq!(world.get(b"b"), Err(Status::NotFound));
}

#[test]
fn a_shutdown_syncs_everything_first() {
    let mut world = World::new(1 << 20);
    world.disk().at_once = false;
    world.submit(Op::Put, b"a", b"1", |entry| {
        entry.durability = Some(Durability::Volatile)
    });
    world.step();
    let (reply, answer) = channel();
    assert!(world.commands.push(Command::Shutdown { reply }).is_ok());
    for _ in 0..5 {
        world.step();
        assert!(answer.try_recv().is_err());
    }
    for _ in 0..5 {
        world.disk().run_io();
        world.step();
    }
    let (last, synced) = answer.try_recv().unwrap();
    assert!(synced && last.0 >= 2);
    assert!(world.shard.is_stopped());
    let mut disk = world.disk().clone();
    disk.power_cut(&mut Random(1));
    // The next start reads footers, and no record.
    let report = recover(&mut disk.clone(), ShardNo(0), &mut |_| {})
        .unwrap()
        .report;
    assert_eq!((report.segments, report.sealed), (1, 1));
    assert_eq!(World::over(disk, 0).get(b"a").unwrap(), b"1");
}

#[test]
fn a_shutdown_without_room_for_a_footer_is_still_a_sync() {
    let mut world = World::new(1 << 20);
    world.put(b"a", b"1");
    world.disk().faults.seal = Some(DiskError::NoSpace);
    let (reply, answer) = channel();
    assert!(world.commands.push(Command::Shutdown { reply }).is_ok());
    for _ in 0..5 {
        world.step();
    }
    let (last, synced) = answer.try_recv().unwrap();
    assert!(synced && last.0 == 2);
    let mut disk = world.disk().clone();
    disk.power_cut(&mut Random(1));
    assert_eq!(World::over(disk, 0).get(b"a").unwrap(), b"1");
}

/// Waits are kept by sequence, not by arrival: a sync of an older record once waited for the
/// younger writes that had come before it.
#[test]
fn a_sync_of_an_older_record_does_not_wait_for_younger_ones() {
    let mut world = World::new(1 << 20);
    world.put(b"a", b"x");
    world.disk().at_once = false;
    let put = |world: &mut World, key: &[u8]| {
        let power = Some(Durability::Power);
        let no = world.submit(Op::Put, key, b"x", |entry| entry.durability = power);
        world.step();
        no
    };
    let older = put(&mut world, b"b");
    let sequence = world.shard.store.log.last();
    let younger = put(&mut world, b"c");
    let sync = world.submit(Op::Sync, b"", b"", |entry| {
        entry.arg0 = sequence.0;
        entry.durability = Some(Durability::Power);
    });
    world.step();
    assert!(world.completion().is_none());
    // The first group commit covers `b` only.
    world.disk().run_io();
    world.step();
    let mut done = Vec::new();
    while let Some(completion) = world.completion() {
        done.push(completion.user_data);
    }
    assert_eq!(done, [older, sync]);
    assert_eq!(world.wait().user_data, younger);
}

/// Rot in a part of the log that is not sealed, but was synced: it costs its value and those that
/// share its bytes, nothing else, and can be cured by writing.
#[test]
fn damage_that_a_start_finds_is_an_error_of_its_values_only() {
    let mut world = World::new(1 << 20);
    let content = vec![7; 3000];
    world.put(b"bad", &content);
    world.put(b"copy", &content);
    let large = vec![8; 100_000];
    world.put_large(b"large", &large, Durability::Power);
    world.put(b"behind", b"fine");
    let no = world
        .shard
        .store
        .value(main_of_first(), b"bad")
        .unwrap()
        .object;
    let at = world.shard.store.tables.objects.get(ObjectNo(no)).at;
    world.disk().bytes_mut(at.segment)[at.offset as usize + 77] ^= 4;
    let mut world = world.restarted(0);
    let objects = &world.shard.store.tables.objects;
    assert_eq!(objects.find(&ObjectId::of_blob(&content)), None);
    for key in [&b"bad"[..], b"copy"] {
        assert_eq!(world.get(key), Err(Status::Corrupt));
    }
    assert_eq!(world.get(b"behind").unwrap(), b"fine");
    assert!(world.get(b"large").unwrap() == large);
    assert_eq!(world.put(b"bad", &content).status, Status::Ok);
    assert_eq!(world.get(b"bad").unwrap(), content);
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"bad").unwrap(), content);

    // Of a large value, the root or a chunk of it.
    for damage_root in [true, false] {
        let large = vec![9 + u8::from(damage_root); 100_000];
        world.put_large(b"large", &large, Durability::Power);
        world.put(b"behind", b"finer");
        let tables = &world.shard.store.tables;
        let root = world
            .shard
            .store
            .value(main_of_first(), b"large")
            .unwrap()
            .object;
        let chunk = tables.chunks[&root][0].object;
        let no = if damage_root { ObjectNo(root) } else { chunk };
        let at = tables.objects.get(no).at;
        world.disk().bytes_mut(at.segment)[at.offset as usize + 20] ^= 4;
        world = world.restarted(0);
        assert_eq!(world.get(b"large"), Err(Status::Corrupt));
        assert_eq!(world.get(b"behind").unwrap(), b"finer");
    }
}

/// A record may refer to bytes only if the replay of the log still knows them: what a write of the
/// same turn, not flushed yet, or a read under way holds back is gone there. Such a store once
/// refused to start.
#[test]
fn bytes_that_only_this_run_holds_back_are_stored_again() {
    let mut world = World::new(1 << 20);
    world.put(b"a", b"content");
    // A rename in one turn.
    world.submit(Op::Delete, b"a", b"", |_| {});
    world.submit(Op::Put, b"b", b"content", |_| {});
    world.step();
    while world.completion().is_some() {}
    // There and back again before one flush.
    for content in [&b"other"[..], b"content", b"other", b"content"] {
        let volatile = Some(Durability::Volatile);
        world.submit(Op::Put, b"b", content, |entry| entry.durability = volatile);
    }
    world.step();
    while world.completion().is_some() {}
    world.put(b"c", b"flush");
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"b").unwrap(), b"content");
    assert_eq!(world.get(b"a"), Err(Status::NotFound));

    // The same for the root of a large value.
    let large = vec![5; 100_000];
    world.put_large(b"e", &large, Durability::Process);
    let volatile = Some(Durability::Volatile);
    world.submit(Op::Delete, b"e", b"", |entry| entry.durability = volatile);
    assert_eq!(world.wait().status, Status::Ok);
    world.put_large(b"f", &large, Durability::Volatile);
    world.put(b"c", b"flush again");
    let mut world = world.restarted(0);
    assert!(world.get(b"f").unwrap() == large);

    // A cold read under way holds the old value back.
    let no = world
        .shard
        .store
        .value(main_of_first(), b"b")
        .unwrap()
        .object;
    let segment = world
        .shard
        .store
        .tables
        .objects
        .get(ObjectNo(no))
        .at
        .segment;
    world.disk().cold.push((segment, 0..SEGMENT_BYTES));
    world.disk().at_once = false;
    world.submit(Op::Get, b"b", b"", |_| {});
    world.step();
    world.submit(Op::Put, b"b", b"after", |_| {});
    world.submit(Op::Put, b"d", b"content", |_| {});
    world.step();
    world.disk().run_io();
    world.step();
    while world.completion().is_some() {}
    world.disk().at_once = true;
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"b").unwrap(), b"after");
    assert_eq!(world.get(b"d").unwrap(), b"content");
}

#[test]
fn pipelined_writes_of_few_contents_survive_restarts() {
    for seed in 1..=20 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut world = World::new(1 << 20);
        let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for _ in 0..60 {
            for _ in 0..1 + random.below(6) {
                let key = random.below(4) as u8;
                let durability = [Durability::Volatile, Durability::Process][random.below(2)];
                let how = |entry: &mut Submission| entry.durability = Some(durability);
                if random.below(3) == 0 {
                    world.submit(Op::Delete, &[key], b"", how);
                    model.remove(&key);
                } else {
                    let content = vec![random.below(3) as u8; 100];
                    world.submit(Op::Put, &[key], &content, how);
                    model.insert(key, content);
                }
            }
            world.step();
            while world.completion().is_some() {}
            if random.below(10) == 0 {
                assert_eq!(world.put(b"flush", b"x").status, Status::Ok);
                world = world.restarted(0);
            }
            for key in 0..4 {
                assert_eq!(
                    world.get(&[key]).ok().as_ref(),
                    model.get(&key),
                    "key {key}"
                );
            }
        }
    }
}

/// Recovery can't know the chunks below a root that it can't read; reading the value panicked once.
#[test]
fn a_large_value_whose_root_is_damaged_is_an_error() {
    let mut world = World::new(0);
    let large: Vec<u8> = (0..200_000_u32).map(|i| (i * 7) as u8).collect();
    world.put_large(b"big", &large, Durability::Process);
    let value = world.shard.store.value(main_of_first(), b"big").unwrap();
    let at = world
        .shard
        .store
        .tables
        .objects
        .get(ObjectNo(value.object))
        .at;
    // The restart seals the segment; its footer is believed at the next.
    let mut world = world.restarted(0);
    world.disk().bytes_mut(at.segment)[at.offset as usize + 20] ^= 4;
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"big"), Err(Status::Corrupt));
    assert_eq!(
        world.put_large(b"big", &large, Durability::Process).status,
        Status::Ok
    );
    assert!(world.get(b"big").unwrap() == large);
}

#[test]
fn a_stalled_lane_is_looked_at_once_a_turn() {
    let mut world = World::new(0);
    world.put(b"a", b"x");
    world.disk().at_once = false;
    for round in 0..100_u32 {
        let content = large::noise(u64::from(round), 30_000);
        world.submit(Op::Put, &round.to_le_bytes(), &content, |_| {});
        world.step();
        world.step();
        if world.completion().is_none() {
            break;
        }
        assert!(round < 99, "the log never made anybody wait");
    }
    for _ in 0..100 {
        world.step();
        assert!(world.shard.again.len() <= 1);
    }
    world.disk().run_io();
    assert_eq!(world.wait().status, Status::Ok);
}

/// A shard ends a malformed session by itself, and the agent's window goes with its last lane. The
/// next lane, before the control plane hears of it or after, must not map one that nobody keeps
/// true.
#[test]
fn the_shard_alone_knows_which_window_an_agent_has() {
    let mut world = World::new(1 << 20);
    world.put(b"a", b"old");
    let of = |attached: &Attached| rustix::fs::fstat(&*attached.window).unwrap().st_ino;
    let (ring, _second) = rings(LaneNo(1));
    let second = world.attach_as(SessionNo(1), LaneNo(1), ring);
    let (ring, _third) = rings(LaneNo(2));
    let third = world.attach_as(SessionNo(1), LaneNo(2), ring);
    assert_eq!(of(&second), of(&third));
    assert!(third.spare.is_some(), "what was brought in vain comes back");
    world
        .shard
        .end_session(SessionNo(1), crate::agent::malformed::Malformed::Reserved);
    let (ring, client) = rings(LaneNo(3));
    world.lane = client;
    world.held.clear();
    let fresh = world.attach_as(SessionNo(1), LaneNo(3), ring);
    assert!(of(&fresh) != of(&second) && fresh.spare.is_none());
    assert_eq!(world.get(b"a").unwrap(), b"old");
    // The shard keeps one descriptor of the window while there is a lane, and none afterwards.
    assert_eq!(Arc::strong_count(&fresh.window), 2);
    world.detach(LaneNo(3));
    assert_eq!(Arc::strong_count(&fresh.window), 1);
}

/// What the control plane does when a shard was slow: the attach and its end wait in one queue.
#[test]
fn an_attach_that_was_given_up_leaves_nothing() {
    for dies in [false, true] {
        let mut world = World::new(1 << 20);
        world.detach(LaneNo(0));
        let (ring, client) = rings(LaneNo(4));
        let (memory, fd) =
            SharedMemory::create("w", 16 << 10, crate::shared::Access::ReadOnly).unwrap();
        let fd = Arc::new(fd);
        let (reply, answer) = channel();
        let request = AttachRequest {
            session: SessionNo(9),
            bells: Arc::clone(&world.bells),
            socket: None,
            lane: LaneNo(4),
            ring,
            agent: (*b"other").into(),
            create: true,
            public: None,
            window: SharedWindow {
                memory,
                fd: Arc::clone(&fd),
            },
            path: Vec::new(),
            reply: Answer::new(move |outcome: Result<_, _>| {
                let _ = reply.send(outcome.map(drop));
            }),
        };
        let attach = Command::Attach(Box::new(request));
        let (session, lane) = (SessionNo(9), LaneNo(4));
        let take_back = match dies {
            true => Command::EndSession {
                session,
                reason: CloseReason::Detached,
            },
            false => Command::Detach {
                session,
                lane,
                reply: Answer::unheard(),
            },
        };
        for command in [attach, take_back] {
            assert!(world.commands.push(command).is_ok());
        }
        for _ in 0..10 {
            world.step();
        }
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        assert_eq!(client.closed(), Some(CloseReason::Detached));
        assert_eq!(world.shard.lanes.len(), 0);
        assert_eq!(Arc::strong_count(&fd), 1, "dies: {dies}");
        let no = world.shard.store.tables.agent_no(b"other").unwrap();
        let agent = world.shard.store.tables.agent(no);
        assert!(agent.lanes == 0 && agent.window.is_none() && agent.window_fd.is_none());
    }
}

impl World {
    pub(super) fn detach(&mut self, lane: LaneNo) {
        let (reply, answer) = channel();
        let detach = Command::Detach {
            session: SessionNo(1),
            lane,
            reply: Answer::new(move |()| reply.send(()).unwrap()),
        };
        let commands = self.commands_of(self.owner_of(b"agent"));
        assert!(commands.push(detach).is_ok());
        if self.beside.is_empty() {
            self.step();
            return answer.try_recv().unwrap();
        }
        self.until(|_| answer.try_recv().ok())
    }

    /// Attaches a further lane; what is submitted from now on goes over it.
    pub(super) fn go_on(&mut self, session: SessionNo, lane: LaneNo) -> ClientLane {
        let (ring, client) = rings(lane);
        self.attach_as(session, lane, ring);
        self.held.clear();
        std::mem::replace(&mut self.lane, client)
    }

    /// Does something over another lane.
    pub(super) fn on_lane<T>(
        &mut self,
        lane: &mut ClientLane,
        act: impl FnOnce(&mut Self) -> T,
    ) -> T {
        std::mem::swap(&mut self.lane, lane);
        self.held.clear();
        let done = act(self);
        self.held.clear();
        std::mem::swap(&mut self.lane, lane);
        done
    }

    fn begin_upload(&mut self, key: &[u8]) -> Completion {
        self.submit(Op::PutPart, key, &[1; 65536], |entry| entry.arg1 = 100_000);
        self.wait()
    }
}

#[test]
fn a_session_has_its_share_of_uploads_and_the_oldest_silent_one_makes_room() {
    use super::uploads::{UPLOAD_IDLE_NS, UPLOADS_PER_SESSION_MAX};
    let mut world = World::new(0);
    let mut lanes = Vec::new();
    for no in 1..=UPLOADS_PER_SESSION_MAX as u32 {
        assert_eq!(world.begin_upload(b"big").status, Status::Ok, "{no}");
        lanes.push(world.go_on(SessionNo(1), LaneNo(no)));
    }
    let busy = world.begin_upload(b"big");
    assert_eq!(busy.status, Status::Busy);
    assert_eq!(busy.detail, BusyReason::Uploads as u32);
    let mut late = world.go_on(SessionNo(2), LaneNo(0));
    assert_eq!(
        world.begin_upload(b"big").status,
        Status::Ok,
        "others have room"
    );
    // The first begins anew, so that the second is silent for longest.
    let second_ns = 1_000_000_000;
    world.now += UPLOAD_IDLE_NS - 10 * second_ns;
    let first = world.on_lane(&mut lanes[0], |world| world.begin_upload(b"big").status);
    assert_eq!(first, Status::Ok);
    let refused = world.on_lane(&mut late, |world| world.begin_upload(b"big").status);
    assert_eq!(refused, Status::Busy);
    world.now += 10 * second_ns;
    let taken = world.on_lane(&mut late, |world| world.begin_upload(b"big").status);
    assert_eq!(taken, Status::Ok);
    let ends = [0, 1, 2].map(|at| {
        world.on_lane(&mut lanes[at], |world| {
            world.submit(Op::PutPart, b"big", &[2; 100_000 - 65536], |entry| {
                (entry.arg0, entry.arg1) = (65536, 100_000);
            });
            world.wait().status
        })
    });
    assert_eq!(
        ends,
        [Status::Ok, Status::UploadOutOfOrder, Status::Ok],
        "only the one that was silent for longest had to go"
    );
}

#[test]
fn a_session_has_its_share_of_cold_reads() {
    use super::pending::COLD_READS_SHARE;
    let mut world = World::new(0);
    world.put(b"a", b"x");
    let segment = world.shard.store.tables.objects.get(ObjectNo(0)).at.segment;
    world.disk().cold.push((segment, 0..SEGMENT_BYTES));
    world.disk().at_once = false;
    let read = |world: &mut World| {
        let mut busy = 0;
        // One lane has 64 slots: two lanes ask for more than a share.
        let reply = Extent { offset: 0, len: 64 };
        for _ in 0..COLD_READS_SHARE / 2 + 4 {
            world.submit(Op::MultiGet, b"", b"\x01\0a", |entry| entry.reply = reply);
            world.step();
            while let Some(completion) = world.completion() {
                // What was read once may be in memory.
                if completion.status != Status::Ok {
                    assert_eq!(completion.status, Status::Busy);
                    assert_eq!(completion.detail, BusyReason::ColdReads as u32);
                    busy += 1;
                }
            }
        }
        busy
    };
    assert_eq!(read(&mut world), 0);
    let first = world.go_on(SessionNo(1), LaneNo(1));
    assert_eq!(read(&mut world), 8);
    let second = world.go_on(SessionNo(2), LaneNo(0));
    assert_eq!(read(&mut world), 0);
    // All are answered, and the shares are free again.
    for _ in 0..5 {
        world.disk().run_io();
        world.step();
    }
    assert!(world.shard.pending.is_empty());
    let mut answered = 0;
    for mut lane in [first, second] {
        while let Some(completion) = lane.poll_completion().unwrap() {
            assert_eq!(completion.status, Status::Ok);
            answered += 1;
        }
    }
    assert_eq!(answered, COLD_READS_SHARE);
    world.held.clear();
    world.go_on(SessionNo(1), LaneNo(2));
    assert_eq!(read(&mut world), 0);
}

#[test]
fn a_full_queue_of_the_disk_is_busy_with_its_reason() {
    let mut world = World::new(0);
    world.put(b"a", b"x");
    let segment = world.shard.store.tables.objects.get(ObjectNo(0)).at.segment;
    world.disk().cold.push((segment, 0..SEGMENT_BYTES));
    let slots = std::mem::replace(&mut world.disk().queue_slots, 0);
    let lines = logged(|| {
        world.submit(Op::Get, b"a", b"", |_| {});
        let busy = world.wait();
        assert_eq!(busy.status, Status::Busy);
        assert_eq!(busy.detail, BusyReason::ColdReads as u32);
    });
    // It is counted, and the asker knows: a busy spell must not be slowed down by a log.
    assert_eq!(lines, [""; 0]);
    world.disk().queue_slots = slots;
    assert_eq!(world.get(b"a").unwrap(), b"x");
}

/// The I/O core is gone: nothing that was asked of it is ever answered.
#[test]
fn a_halt_waits_for_nothing_and_loses_nothing_that_was_acknowledged() {
    let mut world = World::new(1 << 20);
    world.put(b"a", b"1");
    world.disk().at_once = false;
    world.submit(Op::Put, b"b", b"2", |entry| {
        entry.durability = Some(Durability::Volatile)
    });
    world.step();
    assert_eq!(world.completion().unwrap().status, Status::Ok);
    world.submit(Op::Put, b"c", b"3", |entry| {
        entry.durability = Some(Durability::Power)
    });
    world.step();
    assert!(world.completion().is_none());
    world.shard.halt();
    world.step();
    assert!(world.shard.is_stopped());
    assert_eq!(world.lane.closed(), Some(CloseReason::ShardFailed));
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"a").unwrap(), b"1");
    assert_eq!(world.get(b"b").unwrap(), b"2");
}
