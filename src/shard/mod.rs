//! The shard: the actor that owns a set of agents, alone.
//!
//! Floor 2: the only room that sees agents' rings, caches, state and segments together. It is a
//! state machine: [`Shard::step`] is one turn over whatever has arrived, told the time from
//! outside. It has no clock, thread or randomness of its own, and its disk is behind
//! [`crate::segment::Disk`]; the product turns it from a pinned thread, tests turn it by hand.
//!
//! The path of a read, from ring to reply:
//! [`Shard::step`] → `serve` takes a submission from a lane → `execute` → `read::get` looks the key
//! up and asks [`store::Store::piece`] for the bytes: L2, then L3 if its pages are in memory, else
//! a cold read through the I/O core → `finish` posts the completion → `fill` puts the value into
//! the agent's L1 window.
//!
//! The path of a write: `execute` → `write::put` → [`store::Store::put`] appends a record and
//! changes the tables → the end of the turn flushes once for all writes of the turn → completions
//! are posted, or wait in `pending::Pending::power` for the group commit.
//!
//! Cost of a turn that serves one read from L2: 2 cache lines from the agent (entry, key), 1 to it
//! (completion) and the value's; no system call, no allocation. A write adds one system call.
//!
//! Invariants
//! - each submission gets exactly one completion, or its lane is closed.
//! - while writes of the turn are not flushed, no completion is posted that could depend on them.
//! - a completion is posted only after the window's old value was dropped.

pub mod agent;
mod ancestors;
mod base;
mod call;
mod checkpoint_as;
pub mod collect;
pub mod commit;
mod control;
mod copy_in;
mod copy_out;
mod fills;
mod gauges;
mod groups;
mod history;
#[cfg(test)]
pub(crate) mod inspect;
mod lanes;
mod large;
mod lifecycle;
mod merge;
mod migrate;
pub mod nodes;
mod parked;
mod peer;
mod pending;
mod power;
mod publish;
mod read;
mod replay;
#[cfg(test)]
mod replay_tests;
mod scan;
mod serve;
mod sets;
pub mod store;
mod superposition;
mod suspend;
pub mod tables;
mod uploads;
pub mod verify;
mod write;

#[cfg(test)]
mod allocation_tests;
#[cfg(test)]
mod collect_tests;
#[cfg(fuzzing)]
#[path = "../../fuzz/inside/rig.rs"]
pub(crate) mod fuzzing;
#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod mesh_tests;
#[cfg(test)]
mod superposition_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

pub use control::{Answer, AttachError, AttachRequest, Attached, Command, Event, SharedWindow};
pub use lifecycle::{AgentAnswer, AgentCommand, AgentError, AgentVerb};
pub use migrate::settle_moves;
pub use peer::{PeerMessage, owner};
pub use tables::{Tables, TablesError};

use crate::agent::entry::{BusyReason, Completion, Extent, Op, Status, Submission, Tier};
use crate::config::Durability;
use crate::crash;
use crate::id::ShardNo;
use crate::mesh::Port;
use crate::metrics::ShardCounters;
use crate::prefetch::Feed;
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, IoReply, LogEvent, Sequence};
use agent::BranchRef;
use collect::Collector;
use fills::{FILLS_PER_TURN, Fill};
use groups::SetRef;
use lanes::{Lane, LaneRef, Lanes};
use pending::{Pending, PowerWait};
use store::{Flushed, Store};
use superposition::SetClock;
use uploads::Uploads;

/// Commands taken in one turn.
const COMMANDS_PER_TURN: usize = 8;
/// Messages of other shards taken in one turn.
const MESSAGES_PER_TURN: usize = 32;
/// Entries of working sets given up in one turn, of branches that moved.
const RETIRED_PER_TURN: usize = 64;
/// Unsynced bytes that start a sync nobody asked for.
const DIRTY_BYTES_MAX: u64 = 8 << 20;
/// Age of unsynced bytes that starts a sync nobody asked for, in nanoseconds.
const DIRTY_NS_MAX: u64 = 1_000_000_000;
/// How often room for the next segment is asked for while the disk is full, in nanoseconds.
const SPACE_RETRY_NS: u64 = 100_000_000;
/// Least time between two measurements of every agent's memory by a shard that falls asleep, in
/// nanoseconds: with thousands of agents it takes longer than what woke the shard.
const MEASURE_NS: u64 = 100_000_000;
/// Turns between two measurements of the indexes' memory.
const MEASURE_TURNS: u64 = 1 << 16;

/// What a shard needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct ShardOptions {
    /// Which shard this is.
    pub no: ShardNo,
    /// What a write gets that names no durability.
    pub durability: Durability,
    /// How long a power-safe write may wait for company, in nanoseconds.
    pub group_commit_ns: u64,
    /// Milliseconds since 1970 when the shard's time began.
    pub wall_ms: u64,
    /// Nanoseconds from any point: what steps of a collection are timed with. Nothing that the shard does
    /// depends on it.
    pub step_clock: Option<fn() -> u64>,
}

/// Agents that are not where their names say: their shard, and how often they have moved.
pub type Routes = std::collections::HashMap<Box<[u8]>, (ShardNo, u32)>;

/// Whether an operation is over.
enum Step {
    /// Completed, or waiting among the pending.
    Done,
    /// Can't be applied before a later turn; the lane waits.
    Stall,
    /// Can't be applied before this object was read.
    Park(ObjectNo),
}

/// A completion that waits for the flush at the end of the turn.
struct Staged {
    lane: LaneRef,
    completion: Completion,
    /// A write that asked for the device.
    power: bool,
    /// A write; else a read, which a failed flush only makes come again.
    write: bool,
}

/// Buffers for one operation, kept from one to the next.
#[derive(Default)]
struct Scratch {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Scratch {
    /// Copies an entry's key out of the arena that its agent may still be writing.
    fn copy_key(&mut self, lane: &Lane, entry: &Submission) {
        self.key.resize(entry.key.len as usize, 0);
        lane.ring.copy_in(entry.key, &mut self.key);
    }

    /// Copies a value, or the like, out of the arena.
    fn copy_value(&mut self, lane: &Lane, extent: Extent) {
        self.value.resize(extent.len as usize, 0);
        lane.ring.copy_in(extent, &mut self.value);
    }
}

/// A set of agents and everything they own.
pub struct Shard<D> {
    options: ShardOptions,
    store: Store<D>,
    lanes: Lanes,
    pending: Pending,
    port: Port<PeerMessage>,
    commands: Arc<ArrayQueue<Command>>,
    deferred: Option<Command>,
    counters: Arc<[ShardCounters]>,
    events: Vec<Event>,
    ready: Vec<LaneRef>,
    again: Vec<LaneRef>,
    touched: Vec<LaneRef>,
    staged: Vec<Staged>,
    replies: Vec<control::Reply>,
    must_flush: bool,
    fills: Vec<Fill>,
    fill_keys: Vec<u8>,
    scratch: Scratch,
    /// The answer of a call in the making.
    answer: Vec<u8>,
    /// Entries whose objects were read: to be begun again.
    resumed: Vec<(LaneRef, Submission)>,
    unsent: VecDeque<(ShardNo, PeerMessage)>,
    /// Shards that are gone.
    lost_peers: Vec<ShardNo>,
    staged_peers: Vec<(ShardNo, PeerMessage)>,
    exports: copy_out::Exports,
    imports: copy_in::Imports,
    warming: suspend::Warming,
    moves: migrate::Moves,
    /// Where agents are whose place is not the one that their name says.
    routes: Routes,
    /// What was said of moves and could not be acted on yet.
    retold: Vec<migrate::MoveMessage>,
    /// Where events go, if somebody may listen.
    feed: Option<Feed>,
    uploads: Uploads,
    /// Lanes whose uploads have parts that are not flushed.
    unflushed_uploads: Vec<LaneRef>,
    last_tier: Tier,
    now: u64,
    next_retry: u64,
    next_measure: u64,
    turns: u64,
    dirty_since: Option<u64>,
    power_since: Option<u64>,
    draining: Option<control::Drain>,
    collector: Collector,
    sets: SetClock,
}

impl<D: Disk> Shard<D> {
    /// A shard over what recovery found. `counters` holds those of all shards; this one writes its
    /// own only.
    pub fn new(
        options: ShardOptions,
        store: Store<D>,
        port: Port<PeerMessage>,
        commands: Arc<ArrayQueue<Command>>,
        counters: Arc<[ShardCounters]>,
    ) -> Self {
        let needed_bytes = store.tables.live_bytes;
        let unsettled = store.log.segments().iter();
        let carried = unsettled
            .filter(|state| state.segment >= store.log.settled())
            .map(|state| state.record_bytes)
            .sum();
        let mut shard = Self {
            options,
            store,
            lanes: Lanes::default(),
            pending: Pending::default(),
            port,
            commands,
            deferred: None,
            counters,
            events: Vec::new(),
            ready: Vec::with_capacity(256),
            again: Vec::with_capacity(256),
            touched: Vec::with_capacity(256),
            staged: Vec::with_capacity(1024),
            replies: Vec::new(),
            must_flush: false,
            fills: Vec::with_capacity(FILLS_PER_TURN),
            fill_keys: Vec::with_capacity(FILLS_PER_TURN * 64),
            scratch: Scratch::default(),
            answer: Vec::new(),
            resumed: Vec::new(),
            unsent: VecDeque::new(),
            lost_peers: Vec::new(),
            staged_peers: Vec::new(),
            exports: copy_out::Exports::default(),
            imports: copy_in::Imports::default(),
            warming: suspend::Warming::default(),
            moves: migrate::Moves::default(),
            routes: Routes::new(),
            retold: Vec::new(),
            feed: None,
            uploads: Uploads::default(),
            unflushed_uploads: Vec::new(),
            last_tier: Tier::None,
            now: 0,
            next_retry: 0,
            next_measure: 0,
            turns: 0,
            dirty_since: None,
            power_since: None,
            draining: None,
            collector: Collector::new(needed_bytes, carried),
            sets: SetClock::default(),
        };
        shard.watch_sets();
        shard.store.log.drive(&mut shard.store.disk);
        shard.publish_gauges();
        shard
    }

    /// One turn: takes in what has arrived, serves lanes, flushes once, posts completions. `now`
    /// counts nanoseconds from any point and never runs backwards. Whether there was work.
    pub fn step(&mut self, now: u64) -> bool {
        self.now = now;
        let mut worked = self.take_replies();
        worked |= self.take_commands();
        worked |= self.take_messages();
        worked |= self.release_due();
        worked |= self.end_agents();
        worked |= self.turn_exports();
        worked |= self.turn_imports();
        worked |= self.turn_warming();
        worked |= self.resume();
        let mut ready = std::mem::take(&mut self.ready);
        for at in self.again.drain(..) {
            if let Some(lane) = self.lanes.get_mut(at) {
                lane.queued = false;
            }
            ready.push(at);
        }
        self.lanes.gather(&mut ready);
        self.pass_on_bells();
        self.lanes.retire(&mut ready);
        for lane in ready.drain(..) {
            worked |= self.serve(lane);
        }
        self.ready = ready;
        self.end_turn();
        // Behind the answers of the turn: lanes that fell silent are seen at once.
        worked |= self.turn_moves();
        worked |= self.collect_some(worked);
        if worked {
            self.turns += 1;
            self.counters().turns.add(1);
            if self.turns.is_multiple_of(MEASURE_TURNS) {
                self.publish_gauges();
            }
        }
        worked
    }

    /// Whether a step would find work: asked after the sleeping flag went up, before sleeping.
    pub fn has_work(&self) -> bool {
        !self.again.is_empty()
            || !self.resumed.is_empty()
            || self.store.has_retired()
            || self.store.is_cooling()
            || !self.unsent.is_empty()
            || self.exports.has_work()
            || self.imports.has_work()
            || self.warming.has_work()
            || self.moves.has_work()
            || !self.retold.is_empty()
            || (!self.store.ended.is_empty() && !self.store.log.spare_failed())
            || !self.commands.is_empty()
            || self.deferred.is_some()
            || !self.port.is_empty()
            || self.lanes.is_rung()
            || self.collector.has_work(self.now, self.is_collection_due())
    }

    /// Prepares for sleep: lanes have to ring from now on, volatile writes are written out, gauges
    /// are brought up to date. After it the sleeping flag goes up, then [`Shard::has_work`] is
    /// asked.
    pub fn before_sleep(&mut self) {
        self.lanes.retire_all(&mut self.again);
        if self.store.is_dirty() {
            self.must_flush = true;
            self.end_turn();
        }
        self.publish_counts();
        if self.now >= self.next_measure {
            self.publish_gauges();
        }
        self.counters().sleeps.add(1);
    }

    /// When `step` has to be called again even if nothing arrives, in the time of `now`.
    pub fn deadline(&self) -> Option<u64> {
        let group = self
            .power_since
            .map(|since| since + self.options.group_commit_ns);
        let dirty = self.dirty_since.map(|since| since + DIRTY_NS_MAX);
        let space = self.store.log.spare_failed().then_some(self.next_retry);
        let collection = self.collector.deadline(self.is_collection_due());
        let sets = self.sets.deadline();
        let moves = self.moves.deadline();
        [group, dirty, space, collection, sets, moves]
            .into_iter()
            .flatten()
            .min()
    }

    /// What the control plane has to hear of, since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Shards that were sent messages since the last call, one at a time.
    pub fn take_notified(&mut self) -> Option<ShardNo> {
        self.port.take_notified()
    }

    /// Whether a [`Command::Shutdown`] has been carried out.
    pub fn is_stopped(&self) -> bool {
        self.draining.as_ref().is_some_and(|drain| drain.done)
    }

    fn counters(&self) -> &ShardCounters {
        &self.counters[usize::from(self.options.no.0)]
    }

    fn execute(&mut self, at: LaneRef, entry: &Submission, scratch: &mut Scratch) -> Step {
        // What was taken before is still carried out; with more of it there would be no end.
        if self.draining.is_some() {
            self.finish(at, Completion::new(entry.user_data, Status::ShuttingDown));
            return Step::Done;
        }
        let mut entry = *entry;
        if entry.branch.is_some_and(agent::is_fork) && entry.op != Op::Call {
            // A fork ends with its lane, and with the runtime at the latest: the answer says so.
            entry.durability = Some(Durability::Volatile);
        }
        let entry = &entry;
        match entry.op {
            Op::Get => self.get(at, entry, scratch),
            Op::GetFrom => self.get_from(at, entry, scratch),
            Op::Exists => self.exists(at, entry, scratch),
            Op::MultiGet => self.multi_get(at, entry, scratch),
            Op::Scan => self.scan(at, entry, scratch),
            Op::Put => self.put(at, entry, scratch),
            Op::PutPart => self.put_part(at, entry, scratch),
            Op::MultiPut => self.multi_put(at, entry, scratch),
            Op::Delete => self.delete(at, entry, scratch),
            Op::Sync => self.sync(at, entry),
            Op::Stats => self.stats(at, entry),
            Op::Call => self.call(at, entry, scratch),
        }
    }

    /// Copies what an operation is given out of the arena, and finds its branch; one that is not there
    /// is the answer to it.
    fn take_input(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Option<BranchRef> {
        let lane = self.lanes.get_mut(at)?;
        scratch.copy_key(lane, entry);
        scratch.copy_value(lane, entry.payload());
        let (agent, branch) = (lane.agent, entry.branch.unwrap_or(lane.branch));
        let Some(found) = self.store.tables.agent(agent).branch(branch) else {
            self.finish(at, Completion::new(entry.user_data, Status::NoSuchBranch));
            return None;
        };
        if let Some(set) = found.set {
            // What comes into memory for a candidate is its group's.
            self.store.ask_for(Some(SetRef { agent, set }));
        }
        Some(BranchRef { agent, branch })
    }

    /// Completes an operation: at once, or at the end of the turn where it may depend on writes
    /// that are not flushed yet.
    fn finish(&mut self, at: LaneRef, completion: Completion) {
        if self.must_flush {
            self.staged.push(Staged {
                lane: at,
                completion,
                power: false,
                write: false,
            });
        } else {
            self.post(at, &completion);
        }
    }

    fn post(&mut self, at: LaneRef, completion: &Completion) {
        let counters = &self.counters[usize::from(self.options.no.0)];
        counters.operations.add(1);
        if completion.status == Status::Busy {
            counters.busy_replies.add(1);
        }
        if let Some(lane) = self.lanes.get_mut(at) {
            lane.ring.complete(completion);
            if !lane.touched {
                lane.touched = true;
                self.touched.push(at);
            }
        }
    }

    /// Flushes once for the whole turn, then lets everybody know.
    fn end_turn(&mut self) {
        if self.must_flush {
            // Whoever waits for it was told.
            let _ = self.flush();
        }
        self.store.retire_some(RETIRED_PER_TURN);
        self.store.trim_nodes();
        self.store.cool_some(RETIRED_PER_TURN);
        self.drive_log();
        crash::point("turn.posted");
        self.wake_touched();
        self.fill_windows();
        if self.draining.is_some() {
            self.drain();
        }
    }

    fn flush(&mut self) -> Result<(), (Status, u32)> {
        self.must_flush = false;
        let mut outcome = Ok(());
        let bytes = self.store.log.buffered_bytes();
        let flushed = self.store.flush();
        self.counters().flushes.add(1);
        let mut staged = std::mem::take(&mut self.staged);
        match flushed {
            Flushed::Done => {
                self.counters().log_bytes.add(bytes as u64);
                for Staged {
                    lane,
                    completion,
                    power,
                    ..
                } in staged.drain(..)
                {
                    if power {
                        let sequence = Sequence(completion.value_bytes);
                        self.await_power(PowerWait {
                            sequence,
                            lane,
                            completion,
                        });
                    } else {
                        self.post(lane, &completion);
                    }
                }
                for at in self.unflushed_uploads.drain(..) {
                    if let Some(upload) =
                        self.lanes.get_mut(at).and_then(|lane| lane.upload.as_mut())
                    {
                        upload.unflushed = false;
                    }
                }
                self.release_peers(true);
                self.answer_commands(true);
            }
            Flushed::Undone(error) => {
                tracing::error!(shard = self.options.no.0, %error, "a flush failed");
                let (status, detail) = write::flush_status(&error);
                outcome = Err((status, detail));
                for Staged {
                    lane,
                    completion,
                    write,
                    ..
                } in staged.drain(..)
                {
                    let busy = (Status::Busy, BusyReason::Log as u32);
                    let (status, detail) = if write { (status, detail) } else { busy };
                    let mut failed = Completion::new(completion.user_data, status);
                    failed.detail = detail;
                    self.post(lane, &failed);
                }
                self.fills.clear();
                self.drop_unflushed_uploads((status, detail));
                self.release_peers(false);
                self.answer_commands(false);
                self.fail_imports(status, |_| true);
                self.let_imports_go();
            }
        }
        self.staged = staged;
        outcome
    }

    /// Milliseconds since 1970, for labels.
    fn wall_ms(&self) -> u64 {
        self.options.wall_ms + self.now / 1_000_000
    }

    /// Starts syncs that are due, and spares the log what it has to ask the I/O core for.
    fn drive_log(&mut self) {
        let log = &mut self.store.log;
        if let Some(since) = self.power_since
            && self.now >= since + self.options.group_commit_ns
        {
            log.sync_awaited(log.flushed());
            self.power_since = None;
        }
        if log.dirty_bytes() == 0 {
            self.dirty_since = None;
        } else {
            let since = *self.dirty_since.get_or_insert(self.now);
            if log.dirty_bytes() >= DIRTY_BYTES_MAX || self.now >= since + DIRTY_NS_MAX {
                log.sync_wanted(log.flushed());
                self.dirty_since = Some(self.now);
            }
        }
        if log.spare_failed() && self.now >= self.next_retry {
            log.retry_create(&mut self.store.disk);
            self.next_retry = self.now + SPACE_RETRY_NS;
        }
        log.drive(&mut self.store.disk);
    }

    /// Takes answers of the I/O core.
    fn take_replies(&mut self) -> bool {
        let mut worked = false;
        while let Some(reply) = self.store.disk.poll() {
            worked = true;
            if let IoReply::Read {
                ticket,
                buffer,
                result,
            } = reply
            {
                if self.collector.is_reading(ticket) {
                    self.read_of_collection(&buffer, &result);
                } else if self.pending.is_fetch(ticket) {
                    self.fetched(ticket, buffer, &result);
                } else {
                    self.cold_piece(ticket, buffer, result);
                }
                continue;
            }
            if let LogEvent::Removed { segment, result } = self.store.on_reply(reply) {
                self.removed_by_collection(segment, result.is_ok());
            }
            self.settle_power();
        }
        worked
    }

    /// Wakes agents that sleep until their completions are there.
    fn wake_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for at in touched.drain(..) {
            if let Some(lane) = self.lanes.get_mut(at) {
                lane.touched = false;
                lane.wake();
            }
        }
        self.touched = touched;
    }
}
