//! Operations that wait: for the device, for a sync, for another shard.
//!
//! Floor 2. What waits holds a reference to every object it needs, so that a value that is
//! overwritten meanwhile is still read as it was when the operation was taken.
//!
//! Invariants
//! - every ticket is answered or forgotten exactly once; its buffer goes back to the pool.

use std::collections::{HashMap, VecDeque};

use crate::agent::entry::{Completion, Extent, Submission, Tier};
use crate::id::{ObjectId, SessionNo, ShardNo};
use crate::segment::index::ObjectNo;
use crate::segment::{ObjectKind, Sequence};
use crate::shard::agent::BranchRef;
use crate::shard::groups::SetRef;
use crate::shard::lanes::LaneRef;

/// Cold reads under way in one shard.
pub const COLD_READS_MAX: usize = 256;
/// Of these, at most so many for one session, or for one other shard; more where a single read
/// needs them and nothing else of it is under way.
pub const COLD_READS_SHARE: usize = COLD_READS_MAX / 4;
/// Objects being read for operations that begin again then, in one shard.
pub const FETCHES_MAX: usize = 64;
/// Buffers kept for reuse.
const POOLED_BUFFERS_MAX: usize = 32;

/// Who gets the bytes of a read.
#[derive(Debug)]
pub enum Destination {
    /// A lane: bytes go into this extent of its output arena.
    Lane(LaneRef, Extent),
    /// A shard that asked on behalf of one of its lanes.
    Peer {
        /// The asking shard.
        shard: ShardNo,
        /// Its ticket.
        ticket: u64,
        /// The bytes so far.
        bytes: Vec<u8>,
    },
    /// A shard that copies an object.
    Export {
        /// The copying shard.
        shard: ShardNo,
        /// Its ticket.
        ticket: u64,
        /// The object.
        id: ObjectId,
        /// What it is.
        kind: ObjectKind,
        /// Its bytes so far.
        bytes: Vec<u8>,
    },
}

/// For whom a read is done: whose share of the cold reads it takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Holder {
    /// A session's lane.
    Session(SessionNo),
    /// Another shard.
    Peer(ShardNo),
}

/// A read asked of another shard.
#[derive(Debug)]
pub struct PeerRead {
    /// Who is asked.
    pub owner: ShardNo,
    /// Who asked.
    pub lane: LaneRef,
    /// Its session.
    pub session: SessionNo,
    /// Its number for it.
    pub user_data: u64,
    /// Where the bytes go.
    pub reply: Extent,
}

/// A read of which pieces are missing.
#[derive(Debug)]
pub struct PendingRead {
    /// For whom.
    pub holder: Holder,
    /// Who gets it.
    pub destination: Destination,
    /// The completion, ready but for tier and failure.
    pub completion: Completion,
    /// Pieces missing.
    pub missing: u32,
    /// What the window may be filled with afterwards.
    pub fill: Option<(BranchRef, Box<[u8]>, ObjectNo)>,
}

/// A piece on its way from the device.
#[derive(Debug)]
pub struct ColdPiece {
    /// The read it belongs to.
    pub read: u32,
    /// The object.
    pub object: ObjectNo,
    /// First byte wanted.
    pub from: u32,
    /// Bytes wanted.
    pub bytes: u32,
    /// Where they go, from the start of the extent or of the buffer.
    pub to: u32,
    /// The set whose candidate is read, if one is.
    pub set: Option<SetRef>,
}

/// A write or sync that waits for the device.
#[derive(Debug)]
pub struct PowerWait {
    /// The record that has to be on the device.
    pub sequence: Sequence,
    /// Who waits.
    pub lane: LaneRef,
    /// What to say then.
    pub completion: Completion,
}

/// Everything that waits in one shard.
#[derive(Debug, Default)]
pub struct Pending {
    reads: Vec<Option<PendingRead>>,
    free: Vec<u32>,
    pieces: HashMap<u64, ColdPiece>,
    /// Objects being read for operations that begin again then, by ticket, and the set of the first of
    /// them.
    fetches: HashMap<u64, (ObjectNo, Option<SetRef>)>,
    /// Entries that wait for an object.
    parked: HashMap<u32, Vec<(LaneRef, Submission)>>,
    parked_count: usize,
    next_ticket: u64,
    buffers: Vec<Vec<u8>>,
    /// Pieces on their way, by holder; none is 0.
    held: HashMap<Holder, usize>,
    /// In order of their sequence.
    pub power: VecDeque<PowerWait>,
    /// Reads asked of other shards, by ticket.
    pub peers: HashMap<u64, PeerRead>,
}

impl Pending {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
            && self.fetches.is_empty()
            && self.power.is_empty()
            && self.peers.is_empty()
    }

    /// Whether as many more cold reads may start for a holder.
    pub fn has_room(&self, holder: Holder, reads: usize) -> bool {
        let held = self.held.get(&holder).copied().unwrap_or(0);
        self.pieces.len() + reads <= COLD_READS_MAX
            && (held == 0 || held + reads <= COLD_READS_SHARE)
    }

    /// Keeps a write or sync that waits for the device. A write comes last; a sync may name an older
    /// record, and must not wait for the younger ones before it.
    pub fn add_power(&mut self, wait: PowerWait) {
        let at = self
            .power
            .partition_point(|other| other.sequence <= wait.sequence);
        self.power.insert(at, wait);
    }

    /// Entries that wait for an object to be read.
    pub fn parked(&self) -> usize {
        self.parked_count
    }

    /// Keeps an entry until an object was read.
    pub fn park(&mut self, object: ObjectNo, at: LaneRef, entry: Submission) {
        self.parked.entry(object.0).or_default().push((at, entry));
        self.parked_count += 1;
    }

    /// Takes the entries that waited for an object.
    pub fn unpark(&mut self, object: ObjectNo) -> Vec<(LaneRef, Submission)> {
        let waiting = self.parked.remove(&object.0).unwrap_or_default();
        self.parked_count -= waiting.len();
        waiting
    }

    /// Whether an object is being read already.
    pub fn is_fetching(&self, object: ObjectNo) -> bool {
        self.fetches.values().any(|&(other, _)| other == object)
    }

    /// Whether one more object may be fetched.
    pub fn has_room_to_fetch(&self) -> bool {
        self.fetches.len() < FETCHES_MAX
    }

    /// Notes that an object is being read; its ticket, and a buffer for its bytes.
    pub fn add_fetch(
        &mut self,
        object: ObjectNo,
        set: Option<SetRef>,
        bytes: usize,
    ) -> (u64, Vec<u8>) {
        let ticket = self.ticket();
        self.fetches.insert(ticket, (object, set));
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.resize(bytes, 0);
        (ticket, buffer)
    }

    /// Whether a ticket is one of a fetch.
    pub fn is_fetch(&self, ticket: u64) -> bool {
        self.fetches.contains_key(&ticket)
    }

    /// The object of a ticket, if it is one of a fetch, and the set that it is fetched for.
    pub fn take_fetch(&mut self, ticket: u64) -> Option<(ObjectNo, Option<SetRef>)> {
        self.fetches.remove(&ticket)
    }

    /// A number for a request to another shard.
    pub fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// The last number given out.
    pub fn last_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// Whether a read from the device is under way whose number is at most this one.
    pub fn is_reading_upto(&self, ticket: u64) -> bool {
        let mut under_way = self.pieces.keys().chain(self.fetches.keys());
        under_way.any(|&other| other <= ticket)
    }

    /// Keeps a read of which pieces are missing; its number.
    pub fn add_read(&mut self, read: PendingRead) -> u32 {
        *self.held.entry(read.holder).or_default() += read.missing as usize;
        match self.free.pop() {
            Some(no) => {
                self.reads[no as usize] = Some(read);
                no
            }
            None => {
                self.reads.push(Some(read));
                self.reads.len() as u32 - 1
            }
        }
    }

    /// Keeps a missing piece; its ticket and a buffer for its object.
    pub fn add_piece(&mut self, piece: ColdPiece, object_bytes: usize) -> (u64, Vec<u8>) {
        let ticket = self.ticket();
        self.pieces.insert(ticket, piece);
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.resize(object_bytes, 0);
        (ticket, buffer)
    }

    /// The piece of a ticket.
    pub fn take_piece(&mut self, ticket: u64) -> Option<ColdPiece> {
        self.pieces.remove(&ticket)
    }

    /// A read that waits.
    pub fn read_mut(&mut self, no: u32) -> Option<&mut PendingRead> {
        self.reads.get_mut(no as usize)?.as_mut()
    }

    /// One piece of a read came, from `tier`; the read, if that was the last one.
    pub fn piece_done(&mut self, no: u32, tier: Tier) -> Option<PendingRead> {
        let read = self.reads.get_mut(no as usize)?.as_mut()?;
        read.missing -= 1;
        read.completion.tier = tier;
        let (holder, missing) = (read.holder, read.missing);
        if let Some(held) = self.held.get_mut(&holder) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&holder);
            }
        }
        if missing > 0 {
            return None;
        }
        self.free.push(no);
        self.reads[no as usize].take()
    }

    /// Takes a buffer back.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.buffers.len() < POOLED_BUFFERS_MAX {
            self.buffers.push(buffer);
        }
    }
}
