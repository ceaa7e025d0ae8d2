//! Sweeping and moving: gives up what marking did not reach, and empties segments of which little is left.
//!
//! Floor 2. Both go through all objects by number, some thousand a turn: a cache line each, in a row.
//!
//! Invariants
//! - an object is found at its old place until the record that stores it anew is flushed.
//! - a segment of which something needed can't be read is left as it is.

use crate::id::{ObjectId, SegmentNo};
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, Head, Location, Record, SegmentState, moved_bytes};
use crate::shard::collect::reader::Reader;
use crate::shard::collect::spend;
use crate::shard::store::{Refused, Store};

/// Objects looked at in one turn.
const OBJECTS_PER_TURN: u32 = 2048;
/// Of these, what counts like one thing that takes a few cache lines: they lie in a row.
const OBJECTS_PER_UNIT: usize = 16;
/// Objects given up in one turn.
const GIVEN_UP_PER_TURN: u64 = 64;
/// Bytes moved in one turn, but for the object that passes this.
const MOVED_BYTES_PER_TURN: usize = 32 << 10;
/// Of these, what is read, hashed and written about as fast as one thing is looked at.
const MOVED_BYTES_PER_UNIT: usize = 1 << 10;
/// A segment of which at most one in so many bytes is needed is emptied.
const LIVE_SHARE: u64 = 2;
/// Bytes that one collection moves at most.
const MOVED_BYTES_MAX: u64 = 256 << 20;

/// A walk through all objects.
#[derive(Debug, Default)]
pub struct Sweep {
    next: u32,
    /// Objects given up.
    pub objects: u64,
}

impl Sweep {
    /// Gives some of what was not reached up; whether there is more to do.
    pub fn step<D: Disk>(&mut self, store: &mut Store<D>) -> bool {
        let last = store.tables.objects.numbers();
        let until = last.min(self.next + OBJECTS_PER_TURN);
        let given_up = self.objects;
        spend((until - self.next) as usize / OBJECTS_PER_UNIT);
        while self.next < until && self.objects - given_up < GIVEN_UP_PER_TURN {
            let no = ObjectNo(self.next);
            if store.tables.objects.sweep(no) {
                store.give_up(no);
                self.objects += 1;
                spend(1);
            }
            self.next += 1;
        }
        self.next < last
    }
}

impl<D: Disk> Store<D> {
    /// Takes from an object that a tree may hold it.
    fn give_up(&mut self, no: ObjectNo) {
        let object = self.tables.objects.get(no);
        let (kind, id, at) = (object.kind, object.id, object.at);
        self.tables.note_left(kind, id, at);
        // Nothing else may hold it: the reference makes its end that of any other.
        self.tables.objects.acquire(no);
        self.tables.objects.unkeep(no);
        self.release(no);
    }
}

/// Segments that are being emptied.
#[derive(Debug, Default)]
pub struct Move {
    /// In order.
    segments: Vec<SegmentNo>,
    left: Vec<SegmentNo>,
    next: u32,
    moved: Vec<Moved>,
    /// Bytes moved.
    pub bytes: u64,
}

/// An object that was appended once more.
#[derive(Debug)]
struct Moved {
    no: ObjectNo,
    id: ObjectId,
    from: Location,
    to: Location,
}

impl Move {
    /// Takes the segments of which least is needed, as long as that pays: what they give back is more than
    /// what is written for it, `restated_bytes` of records beside what is moved.
    ///
    /// `left` are those that an earlier collection had to leave. One that follows a segment without a footer
    /// can't be dropped: nothing would say where that one ended. Those that are said to be gone already
    /// cost nothing.
    pub fn choose(states: &[SegmentState], left: &[SegmentNo], restated_bytes: u64) -> Self {
        let mut sealed_before = true;
        let worth = |state: &&SegmentState| {
            let follows_sealed = sealed_before;
            if state.dropped.is_some() {
                return true;
            }
            sealed_before = state.sealed;
            let live = state.live_bytes().saturating_mul(LIVE_SHARE);
            follows_sealed && live <= u64::from(state.data_end) && !left.contains(&state.segment)
        };
        let mut found: Vec<_> = states.iter().filter(worth).collect();
        found.sort_by_key(|state| state.live_bytes());
        let (mut moved, mut given) = (0, 0);
        let taken = found.iter().take_while(|state| {
            moved += state.live_bytes();
            let fits = moved <= MOVED_BYTES_MAX;
            given += if fits { u64::from(state.data_end) } else { 0 };
            fits
        });
        let mut segments: Vec<_> = taken.map(|state| state.segment).collect();
        if given <= moved.min(MOVED_BYTES_MAX) + restated_bytes {
            segments.clear();
        }
        segments.sort_unstable();
        Self {
            segments,
            ..Self::default()
        }
    }

    /// Leaves a segment as it is: something in it can't be read.
    pub fn leave(&mut self, segment: SegmentNo) {
        self.segments.retain(|other| *other != segment);
        self.left.push(segment);
    }

    /// Segments that were left.
    pub fn left(&self) -> &[SegmentNo] {
        &self.left
    }

    /// Segments that are empty, once [`Move::step`] says that nothing is left to do.
    pub fn segments(&self) -> &[SegmentNo] {
        &self.segments
    }

    /// Appends some objects anew; whether there is more to do. What it appended has to be flushed, and
    /// [`Move::flushed`] told.
    ///
    /// # Errors
    /// [`Refused`]; what was appended before counts.
    pub fn step<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        reader: &mut Reader,
    ) -> Result<bool, Refused> {
        let last = store.tables.objects.numbers();
        let until = last.min(self.next + OBJECTS_PER_TURN);
        let mut bytes = 0;
        spend((until - self.next) as usize / OBJECTS_PER_UNIT);
        while self.next < until && bytes < MOVED_BYTES_PER_TURN {
            let no = ObjectNo(self.next);
            let object = store.tables.objects.get(no);
            let (at, id, kind, kept) = (object.at, object.id, object.kind, object.kept);
            // One that is only held back for a read goes with the read.
            let needed = object.kept || object.references > object.pins;
            if needed && self.segments.binary_search(&at.segment).is_ok() {
                match reader.bytes(store, no) {
                    Ok(stored) => {
                        store.ready(stored.len(), false)?;
                        let record = Record {
                            head: Head::Object { kind, id, kept },
                            payload: Some(stored),
                        };
                        let to = store.append(&record)?.payload;
                        self.moved.push(Moved {
                            no,
                            id,
                            from: at,
                            to,
                        });
                        bytes += stored.len();
                        spend(stored.len().div_ceil(MOVED_BYTES_PER_UNIT));
                        self.bytes += stored.len() as u64;
                    }
                    Err(Refused::Corrupt) => self.leave(at.segment),
                    Err(refused) => return Err(refused),
                }
            }
            self.next += 1;
        }
        Ok(self.next < last)
    }

    /// What was appended is in the page cache: from now on it is read there.
    pub fn flushed<D: Disk>(&mut self, store: &mut Store<D>) {
        for Moved { no, id, from, to } in self.moved.drain(..) {
            let object = store.tables.objects.get(no);
            if object.is_needed() && object.id == id && object.at == from {
                let kind = object.kind;
                store.tables.note_left(kind, id, from);
                store.tables.objects.relocate(no, to);
                store.tables.objects.set_logged(no, true);
                store.log.garbage(from.segment, moved_bytes(from.bytes));
            } else {
                store.log.garbage(to.segment, moved_bytes(to.bytes));
            }
        }
    }
}
