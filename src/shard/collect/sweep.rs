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
use crate::shard::store::{Refused, Store};

/// Objects looked at in one turn.
const OBJECTS_PER_TURN: u32 = 4096;
/// Bytes moved in one turn, but for the object that passes this.
const MOVED_BYTES_PER_TURN: usize = 64 << 10;
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
        for no in (self.next..until).map(ObjectNo) {
            if store.tables.objects.is_unreached(no) {
                store.give_up(no);
                self.objects += 1;
            }
        }
        self.next = until;
        until < last
    }
}

impl<D: Disk> Store<D> {
    /// Takes from an object that a tree may hold it.
    fn give_up(&mut self, no: ObjectNo) {
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
    pub fn choose(states: &[SegmentState], restated_bytes: u64) -> Self {
        let worth = |state: &&SegmentState| {
            let live = state.live_bytes().saturating_mul(LIVE_SHARE);
            state.dropped.is_none() && live <= u64::from(state.data_end)
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
        while self.next < until && bytes < MOVED_BYTES_PER_TURN {
            let no = ObjectNo(self.next);
            let object = store.tables.objects.get(no);
            let (at, id, kind, kept) = (object.at, object.id, object.kind, object.kept);
            if object.is_needed() && self.segments.binary_search(&at.segment).is_ok() {
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
                    }
                    Err(Refused::Corrupt) => self.segments.retain(|other| *other != at.segment),
                    Err(refused) => return Err(refused),
                }
            }
            self.next += 1;
        }
        self.bytes += bytes as u64;
        Ok(self.next < last)
    }

    /// What was appended is in the page cache: from now on it is read there.
    pub fn flushed<D: Disk>(&mut self, store: &mut Store<D>) {
        for Moved { no, id, from, to } in self.moved.drain(..) {
            let object = store.tables.objects.get(no);
            if object.is_needed() && object.id == id && object.at == from {
                store.tables.objects.relocate(no, to);
                store.tables.objects.set_logged(no, true);
                store.log.garbage(from.segment, moved_bytes(from.bytes));
            } else {
                store.log.garbage(to.segment, moved_bytes(to.bytes));
            }
        }
    }
}
