//! Collection: finds out what nothing needs any more, and gives its room back.
//!
//! Floor 2. A collection is a sequence of small steps, one at the end of a turn, fewer while agents keep the shard busy:
//! `mark` reaches everything that heads, histories, forks, tags and candidates need; `sweep` gives up the rest; where that leaves
//! segments with little in them, `restate` says again what still counts of the log so far, `sweep` moves
//! what is left in these segments to the end of the log; the log notes that they are gone, and only
//! when the device has that, their files are removed.
//!
//! A collection begins when the log grew by as much as was needed after the last one, or when somebody asks.
//! Nothing waits for it. A crash at any point leaves a log that says what it said before: what was moved is there
//! twice, what was given up is taken for needed until the next collection.
//!
//! Cost of a step: some 5 to 40 us, bounded by what it looks at (`STEP_UNITS_MAX`); of a collection: every node that is needed is read and hashed, every object looked at
//! twice. Memory: one object, the work list of `mark`, 20 bytes for each object on its way.
//!
//! Invariants
//! - nothing is given up before everything that is needed was reached, in the turn in which nothing was left
//!   to reach; what is stored from then on counts as reached, and what is condemned is not found.
//! - a file is removed only when nothing lies in it any more, every record that says so is on the device,
//!   and reads of it that were under way are over.

mod mark;
mod reader;
mod remove;
mod restate;
mod sweep;

use crate::crash;
use crate::id::{ObjectId, SegmentNo};
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, DiskError, IoRequest, Sequence};
use crate::shard::Shard;
use crate::shard::agent::BranchRef;
use crate::shard::control::Answer;
use crate::shard::store::{Refused, Store};
use mark::Marker;
use reader::Reader;
use remove::Removal;
use restate::{Restate, Weighing};
use sweep::{Move, Sweep};

pub use crate::agent::lifecycle::{CollectEnd, Collected};
pub use restate::{BEFORE_BYTES, Restated};

/// While lanes were served within so many nanoseconds, the next operation may come at once.
const LATELY_NS: u64 = 1_000_000;
/// Then there is so much time between two steps, in nanoseconds: fewer than one operation in twenty finds one
/// under way.
const STEP_GAP_NS: u64 = 400_000;
/// The same where somebody waits for the end, or the log outgrows the collection: by twice of what makes one
/// due, and by [`URGENT_BYTES_MIN`].
const URGENT_STEP_GAP_NS: u64 = 100_000;
/// Least that the log grows by before steps come faster, in bytes.
const URGENT_BYTES_MIN: u64 = 256 << 20;
/// Least that the log grows by between two collections that nobody asked for, in bytes.
const GROWTH_BYTES_MIN: u64 = 64 << 20;
/// What happens to be in the way is tried again after so long, in nanoseconds.
const RETRY_NS: u64 = 10_000_000_000;
/// How long it waits before it asks again whether operations over several turns have ended, in
/// nanoseconds.
const HOLD_NS: u64 = 10_000_000;

/// What a step looks at, at most, but for the first step at an agent that names more: things of which each takes
/// a few cache lines.
#[cfg(test)]
pub(in crate::shard) const STEP_UNITS_MAX: u64 = 256;

#[cfg(test)]
thread_local! {
    /// What the step under way looked at so far.
    pub(in crate::shard) static SPENT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Counts what a step looks at, for tests.
fn spend(_units: usize) {
    #[cfg(test)]
    SPENT.set(SPENT.get() + _units as u64);
}

/// Where a collection is.
#[derive(Debug, Default)]
enum Phase {
    #[default]
    Idle,
    Mark,
    Sweep(Sweep),
    /// Segments are to be chosen that are emptied, once it is known what that costs.
    Choose(Weighing),
    Restate(Restate),
    Move,
    /// What was said again and moved is on its way to the device.
    Settle(Sequence),
    /// The log is to say which segments are gone: so many, the first ones, it did.
    Say(usize),
    /// That is on its way to the device.
    Drop(Sequence),
    /// Reads that began before have to end: those with tickets up to this one.
    Remove(u64),
    /// Their files are going.
    Removing(Removal),
    /// What was left behind in them is to be forgotten: so much was looked at.
    Forget(usize),
}

impl Phase {
    /// Where a crash is asked for.
    fn name(&self) -> &'static str {
        match self {
            Self::Idle => "collect.idle",
            Self::Mark => "collect.mark",
            Self::Sweep(_) => "collect.sweep",
            Self::Choose(_) => "collect.choose",
            Self::Restate(_) => "collect.restate",
            Self::Move => "collect.move",
            Self::Settle(_) => "collect.settle",
            Self::Say(_) => "collect.say",
            Self::Drop(_) => "collect.drop",
            Self::Remove(_) => "collect.remove",
            Self::Removing(_) => "collect.removing",
            Self::Forget(_) => "collect.forget",
        }
    }
}

/// The collections of a shard.
#[derive(Debug, Default)]
pub struct Collector {
    phase: Phase,
    marker: Marker,
    reader: Reader,
    /// What the I/O core reads for it, by its ticket.
    reading: Option<(u64, ObjectNo)>,
    moving: Move,
    /// Segments below this one are told to say nothing any more.
    settled: SegmentNo,
    so_far: Collected,
    /// Who waits for this collection.
    waiting: Vec<Answer<Collected>>,
    /// Who asked while it was under way, and waits for the next one.
    asked: Vec<Answer<Collected>>,
    /// Segments that had to be left: something in them can't be read.
    left: Vec<SegmentNo>,
    /// Bytes appended before this start since the last one.
    carried: u64,
    /// Bytes appended when the last one ended, and what was needed then.
    appended_before: u64,
    needed_before: u64,
    retry_at: u64,
    /// When lanes were served last.
    busy_at: u64,
    /// When the next step is due while lanes are served.
    next_at: u64,
    /// It was said that something is damaged.
    complained: bool,
    /// The most that a step looked at.
    #[cfg(test)]
    pub(in crate::shard) most_units: u64,
}

impl Collector {
    /// A collector of a shard that needs so many bytes of what it stores, and appended so many since the
    /// last collection.
    pub fn new(needed_bytes: u64, carried: u64) -> Self {
        Self {
            needed_before: needed_bytes,
            carried,
            ..Self::default()
        }
    }

    /// Whether a step would do something now; `due` says whether one is to begin.
    pub fn has_work(&self, now: u64, due: bool) -> bool {
        let at_work = match self.phase {
            Phase::Idle => due,
            Phase::Settle(_)
            | Phase::Say(_)
            | Phase::Drop(_)
            | Phase::Remove(_)
            | Phase::Removing(_) => false,
            _ => self.reading.is_none(),
        };
        at_work && now >= self.retry_at
    }

    /// When a step has to be tried again, if one has; `due` says whether one is to begin.
    pub fn deadline(&self, due: bool) -> Option<u64> {
        let is_idle = matches!(self.phase, Phase::Idle) && !due;
        (!is_idle && self.retry_at > 0).then_some(self.retry_at)
    }

    fn begin<D: Disk>(&mut self, store: &mut Store<D>, wall_ms: u64) {
        self.waiting.append(&mut self.asked);
        self.so_far = Collected::default();
        self.marker.begin(store, wall_ms);
    }

    fn end_sweep<D: Disk>(&mut self, store: &mut Store<D>, objects: u64) {
        self.so_far.objects = objects;
        self.complained = false;
        store.tables.objects.end_sweep();
        store.tables.objects.end_round();
        // Those that are left were reached, with all that they name, or came since.
        store.nodes_are_whole = true;
    }

    /// Lets a collection be due as if the log had grown.
    #[cfg(test)]
    pub fn make_due(&mut self) {
        self.carried = u64::MAX / 2;
    }

    /// Whether a collection is under way.
    #[cfg(test)]
    pub fn is_under_way(&self) -> bool {
        !matches!(self.phase, Phase::Idle)
    }

    /// Keeps the collection under way from its next step, if that begins in the phase of this name, until
    /// [`Collector::let_on`]; whether it does.
    #[cfg(test)]
    pub fn hold_at(&mut self, phase: &str) -> bool {
        let is_there = self.phase.name() == phase;
        if is_there {
            self.retry_at = u64::MAX;
        }
        is_there
    }

    /// Lets a collection go on that was held.
    #[cfg(test)]
    pub fn let_on(&mut self) {
        self.retry_at = 0;
    }

    /// Whether the I/O core reads something for it.
    #[cfg(test)]
    pub fn is_reading_any(&self) -> bool {
        self.reading.is_some()
    }

    /// Whether a ticket is that of its read.
    pub fn is_reading(&self, ticket: u64) -> bool {
        self.reading.is_some_and(|(reading, _)| reading == ticket)
    }
}

impl<D: Disk> Shard<D> {
    /// Asks for a collection that begins from now on.
    pub(super) fn ask_collection(&mut self, reply: Answer<Collected>) {
        self.collector.asked.push(reply);
    }

    /// Takes a step of the collection under way, or begins one that is due; whether there was anything
    /// to do.
    pub(super) fn collect_some(&mut self, busy: bool) -> bool {
        let is_idle = matches!(self.collector.phase, Phase::Idle);
        if self.draining.is_some() || self.store.log.read_only().is_some() {
            if !is_idle || !self.collector.asked.is_empty() {
                let asked = std::mem::take(&mut self.collector.asked);
                self.collector.waiting.extend(asked);
                self.end_collection(CollectEnd::Stopped);
            }
            return false;
        }
        let now = self.now;
        let collector = &mut self.collector;
        if busy {
            collector.busy_at = now;
        }
        let late = matches!(collector.phase, Phase::Mark) && collector.marker.is_late();
        let lately = !late && now - collector.busy_at < LATELY_NS;
        if lately && now < collector.next_at {
            // What woke the shard for this step may be the last thing that does.
            if !is_idle && !collector.has_work(now, false) {
                collector.retry_at = collector.retry_at.max(collector.next_at);
            }
            return false;
        }
        if now < collector.retry_at {
            return false;
        }
        if collector.reading.is_some() || (is_idle && !self.is_collection_due()) {
            return false;
        }
        self.collector.retry_at = 0;
        self.collector.next_at = now + self.step_gap_ns();
        let mut phase = std::mem::take(&mut self.collector.phase);
        let clock = self.options.step_clock;
        let began = clock.map(|clock| clock());
        let stepped = self.collect_step(&mut phase);
        if let (Some(clock), Some(began)) = (clock, began) {
            self.counters().collection_steps.note(clock() - began);
        }
        self.collector.phase = phase;
        #[cfg(test)]
        {
            let most = &mut self.collector.most_units;
            *most = SPENT.take().max(*most);
        }
        match stepped {
            Ok(worked) => worked,
            Err(Refused::Cold(object)) => self.read_for_collection(object),
            // The next segment is being made, or the buffer is full: the end of a turn flushes it.
            Err(Refused::Wait) => self.store.is_dirty(),
            Err(Refused::Corrupt) => {
                self.complain();
                self.end_collection(CollectEnd::Damaged);
                true
            }
            Err(_) => {
                self.end_collection(CollectEnd::NoRoom);
                true
            }
        }
    }

    /// Whether a collection is to begin: somebody asks, or the log has grown.
    pub(super) fn is_collection_due(&self) -> bool {
        !self.collector.asked.is_empty() || self.grown_bytes() >= self.due_bytes()
    }

    /// Bytes that the log grew by since the last collection.
    fn grown_bytes(&self) -> u64 {
        let Collector {
            carried,
            appended_before,
            ..
        } = self.collector;
        self.counters().log_bytes.get() - appended_before + carried
    }

    /// So many make the next one due.
    fn due_bytes(&self) -> u64 {
        GROWTH_BYTES_MIN.max(self.collector.needed_before)
    }

    /// Nanoseconds between two steps while lanes are served.
    fn step_gap_ns(&self) -> u64 {
        let Collector { waiting, asked, .. } = &self.collector;
        let is_asked = !waiting.is_empty() || !asked.is_empty();
        let urgent_bytes = (2 * self.due_bytes()).max(URGENT_BYTES_MIN);
        match is_asked || self.grown_bytes() >= urgent_bytes {
            true => URGENT_STEP_GAP_NS,
            false => STEP_GAP_NS,
        }
    }

    /// Tells a collection that marks of a checkpoint that was flushed, and that the branch has not yet.
    pub(super) fn grow_marked(&mut self, at: BranchRef, made: &ObjectId) {
        if matches!(self.collector.phase, Phase::Mark) {
            self.collector.marker.grow(&mut self.store, at, made);
        }
    }

    /// One step; whether there may be another at once.
    fn collect_step(&mut self, phase: &mut Phase) -> Result<bool, Refused> {
        // What a failed flush would undo must not have been looked at.
        self.flush_collection()?;
        // What crosses shards is reached by nothing before it has all arrived.
        let copying =
            !self.imports.is_empty() || !self.exports.is_empty() || self.moves.are_under_way();
        let collector = &mut self.collector;
        let store = &mut self.store;
        let next = match phase {
            Phase::Idle => {
                let wall_ms = self.options.wall_ms + self.now / 1_000_000;
                collector.begin(store, wall_ms);
                Phase::Mark
            }
            Phase::Mark => {
                if collector.marker.step(store, &mut collector.reader)? {
                    return Ok(true);
                }
                if store.holds > 0 || copying {
                    collector.retry_at = self.now + HOLD_NS;
                    return Ok(false);
                }
                // Nothing is left to reach, and nothing can happen in between.
                store.tables.objects.condemn();
                store.tables.end_looks();
                store.commits.forget_begun();
                Phase::Sweep(Sweep::default())
            }
            Phase::Sweep(sweep) => {
                if sweep.step(store) {
                    return Ok(true);
                }
                collector.end_sweep(store, sweep.objects);
                Phase::Choose(Weighing::default())
            }
            // One that is gone must not be said again.
            Phase::Choose(_) if self.moves.any_gone() => return Ok(false),
            Phase::Choose(weighing) => match weighing.step(store) {
                Some(restated_bytes) => return self.choose_segments(phase, restated_bytes),
                None => return Ok(true),
            },
            Phase::Restate(restate) => {
                let more = restate.step(store);
                self.flush_collection()?;
                match more? {
                    true => return Ok(true),
                    false => Phase::Move,
                }
            }
            Phase::Move => {
                let more = collector.moving.step(store, &mut collector.reader);
                self.flush_collection()?;
                self.collector.moving.flushed(&mut self.store);
                if more? {
                    return Ok(true);
                }
                Phase::Settle(self.want_sync())
            }
            &mut Phase::Settle(upto) => match self.settle_log(upto)? {
                true => Phase::Say(0),
                false => return Ok(false),
            },
            Phase::Say(said) => match self.say_dropped(said)? {
                true => return Ok(true),
                false => Phase::Drop(self.want_sync()),
            },
            &mut Phase::Drop(upto) => {
                if store.log.synced() < upto {
                    store.log.sync_wanted(upto);
                    return Ok(false);
                }
                Phase::Remove(self.pending.last_ticket())
            }
            Phase::Remove(ticket) if self.pending.is_reading_upto(*ticket) => return Ok(false),
            Phase::Remove(_) => Phase::Removing(Removal::default()),
            Phase::Removing(removal) => match self.remove_segments(removal) {
                true => return Ok(true),
                false if removal.is_over() => Phase::Forget(0),
                false => return Ok(false),
            },
            Phase::Forget(next) => {
                if !self.forget_removed(next) {
                    *phase = Phase::Idle;
                    self.end_collection(CollectEnd::Done);
                }
                return Ok(true);
            }
        };
        crash::point(next.name());
        *phase = next;
        Ok(true)
    }

    /// Has the log say that segments count for their objects alone, once everything that was said again is on
    /// the device; whether it does.
    fn settle_log(&mut self, upto: Sequence) -> Result<bool, Refused> {
        if self.store.log.synced() < upto {
            self.store.log.sync_wanted(upto);
            return Ok(false);
        }
        if !self.has_next_segment()? {
            return Ok(false);
        }
        let (store, collector) = (&mut self.store, &mut self.collector);
        // The header of the segment that comes next says it.
        store.log.settle(&mut store.disk, collector.settled);
        Ok(true)
    }

    fn flush_collection(&mut self) -> Result<(), Refused> {
        if self.store.is_dirty() && self.flush().is_err() {
            return Err(Refused::NoSpace);
        }
        Ok(())
    }

    /// Asks for the device to have everything; the last record of it.
    fn want_sync(&mut self) -> Sequence {
        let last = self.store.log.last();
        self.store.log.sync_wanted(last);
        last
    }

    /// Whether the log can begin another segment now. To end one without that would leave agents without
    /// the room at its end.
    fn has_next_segment(&mut self) -> Result<bool, Refused> {
        match self.store.log.spare_failed() {
            true => Err(Refused::NoSpace),
            false => Ok(self.store.log.can_roll()),
        }
    }

    /// Begins to empty segments, if it pays; else the collection ends here.
    fn choose_segments(&mut self, phase: &mut Phase, restated_bytes: u64) -> Result<bool, Refused> {
        if !self.has_next_segment()? {
            return Ok(false);
        }
        let (store, collector) = (&mut self.store, &mut self.collector);
        let states = store.log.segments();
        // The last one may still be appended to.
        let ended = states.split_last().map_or(states, |(_, before)| before);
        collector.moving = Move::choose(ended, &collector.left, restated_bytes);
        if collector.moving.segments().is_empty() {
            *phase = Phase::Idle;
            self.end_collection(CollectEnd::Done);
            return Ok(true);
        }
        store.log.end_segment(&mut store.disk);
        collector.settled = store.log.next_segment();
        *phase = Phase::Restate(store.begin_restate());
        crash::point(phase.name());
        Ok(true)
    }

    /// Has the I/O core read an object; whether to try again at once.
    fn read_for_collection(&mut self, object: ObjectNo) -> bool {
        let stored = self.store.tables.objects.get(object).at;
        self.store.pin(object);
        let ticket = self.pending.ticket();
        let request = IoRequest::Read {
            ticket,
            segment: stored.segment,
            offset: stored.offset,
            buffer: vec![0; stored.bytes as usize],
        };
        match self.store.disk.submit(request) {
            Ok(()) => {
                self.collector.reading = Some((ticket, object));
                false
            }
            Err(_) => {
                self.store.unpin(object);
                true
            }
        }
    }

    /// Takes what the I/O core read.
    pub(super) fn read_of_collection(&mut self, buffer: &[u8], result: &Result<(), DiskError>) {
        let Some((_, object)) = self.collector.reading.take() else {
            return;
        };
        match result {
            Ok(()) => self.collector.reader.take(&mut self.store, object, buffer),
            Err(error) => {
                tracing::warn!(shard = self.options.no.0, %error, "a collection could not read an object");
                match self.collector.phase {
                    // What can't be read is not moved.
                    Phase::Move => {
                        let segment = self.store.tables.objects.get(object).at.segment;
                        self.collector.moving.leave(segment);
                    }
                    _ => self.end_collection(CollectEnd::Unreadable),
                }
            }
        }
        self.store.unpin(object);
    }

    fn complain(&mut self) {
        if !std::mem::replace(&mut self.collector.complained, true) {
            tracing::error!(
                shard = self.options.no.0,
                "nothing is collected while something that is needed is damaged: verify the data directory, then \
                 restore the damaged file from a copy, or delete the branch or tag that needs it"
            );
        }
    }

    /// Ends the collection under way, whatever it is at.
    fn end_collection(&mut self, end: CollectEnd) {
        let collector = &mut self.collector;
        let store = &mut self.store;
        store.tables.objects.end_round();
        store.tables.end_looks();
        store.restating = None;
        collector.phase = Phase::Idle;
        collector.so_far.end = end;
        let moving = std::mem::take(&mut collector.moving);
        collector.so_far.moved_bytes = moving.bytes;
        collector.left.extend(moving.left());
        collector.marker = Marker::default();
        collector.reader = Reader::default();
        let so_far = std::mem::take(&mut collector.so_far);
        let waiting = std::mem::take(&mut collector.waiting);
        // What a full disk stopped stays due: nothing may grow before there is room.
        if end != CollectEnd::NoRoom {
            self.collector.carried = 0;
            self.collector.appended_before = self.counters().log_bytes.get();
            self.collector.needed_before = self.store.tables.live_bytes;
        }
        if !matches!(end, CollectEnd::Done) {
            self.collector.retry_at = self.now + RETRY_NS;
        }
        let counters = self.counters();
        counters.collections.add(u64::from(end == CollectEnd::Done));
        counters.collected_bytes.add(so_far.bytes);
        counters.moved_bytes.add(so_far.moved_bytes);
        counters
            .collect_blocked
            .set(u64::from(end == CollectEnd::Damaged));
        // After the counters: who is answered may look at them at once.
        for answer in waiting {
            answer.give(so_far);
        }
    }
}
