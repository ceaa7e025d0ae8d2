//! Reads: get, exists, scan, several at once, and the pieces that come from the device.
//!
//! Floor 2. A value is served in pieces: one for a small value, one per chunk for a large one. What
//! is in memory is copied into the reply at once; what is cold is asked of the I/O core, and the
//! read completes with its last piece.

use crate::agent::entry::{BusyReason, Completion, Status, Submission, Tier};
use crate::agent::packed;
use crate::id::{OBJECT_ID_BYTES, ObjectId, VALUE_BYTES_MAX};
use crate::metrics::{ShardCounters, Stats};
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, DiskError};
use crate::shard::agent::BranchRef;
use crate::shard::lanes::LaneRef;
use crate::shard::parked::failed_read;
use crate::shard::pending::{ColdPiece, Destination, Holder, PendingRead};
use crate::shard::store::{Piece, Store};
use crate::shard::{Scratch, Shard, Step};
use crate::state::Value;
use crate::state::chunks::CHUNK_BYTES_MIN;
use crate::state::tree::BLOB_BYTES_MAX;

/// Pieces of one read that may be cold: a get that finds more is answered with what is before them, a
/// multi-get leaves the values that have more to a get of their own.
const COLD_PIECES_MAX: usize = 64;

/// Pieces of a read that are not in memory.
pub(super) type ColdPieces = Vec<ColdPiece>;

/// How far a read came.
pub(super) enum Served {
    /// So many bytes, from the first one wanted, are in the reply, or will be with what is cold: all
    /// of them, unless too many pieces are cold.
    Bytes(Tier, u32),
    /// Stored bytes are damaged.
    Corrupt,
}

impl<D: Disk> Shard<D> {
    pub(super) fn get(&mut self, at: LaneRef, entry: &Submission, scratch: &mut Scratch) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let value = match self.store.lookup(place, &scratch.key) {
            Ok(Some(value)) => value,
            Ok(None) => {
                self.counters().absent.add(1);
                self.finish(at, Completion::new(entry.user_data, Status::NotFound));
                return Step::Done;
            }
            Err(refused) => return self.refuse(at, entry, refused),
        };
        // Only the branch that the lane is on is read through the window.
        let fill = entry.branch.is_none().then_some((place, &*scratch.key));
        self.read_value(at, entry, value, fill)
    }

    /// Serves `value` into the reply extent of `entry`. `owner` is given where the value may enter
    /// the window of the lane's agent.
    pub(super) fn read_value(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        value: Value,
        owner: Option<(BranchRef, &[u8])>,
    ) -> Step {
        let mut completion = Completion::new(entry.user_data, Status::Ok);
        completion.id = self.store.value_id(value);
        completion.value_bytes = value.bytes;
        let from = entry.arg0.min(value.bytes);
        let bytes = (value.bytes - from).min(u64::from(entry.reply.len));
        let whole = bytes == value.bytes && !self.store.is_chunked(value);
        let mut cold = ColdPieces::new();
        let Some(lane) = self.lanes.get_mut(at) else {
            return Step::Done;
        };
        let ring = &lane.ring;
        let bytes = bytes as u32;
        let served = serve_value(
            &mut self.store,
            value,
            from,
            bytes,
            0,
            &mut cold,
            |skip, chunk| {
                ring.write_reply(entry.reply, skip, chunk);
            },
        );
        let fill = owner.filter(|_| whole);
        let Served::Bytes(tier, bytes) = served else {
            self.finish_corrupt(at, entry.user_data);
            return Step::Done;
        };
        completion.tier = tier;
        completion.reply_bytes = bytes;
        completion.more = from + u64::from(bytes) < value.bytes;
        match cold.is_empty() {
            true => {
                self.count_tier(tier);
                self.finish(at, completion);
                if let Some((place, key)) = fill {
                    // What was hit since the last fill is worth keeping in the window.
                    self.drain_hits(at);
                    self.want_fill(place, key, ObjectNo(value.object));
                }
            }
            false => {
                let fill = fill.map(|(place, key)| (place, key.into(), ObjectNo(value.object)));
                self.await_cold(Destination::Lane(at, entry.reply), completion, cold, fill);
            }
        }
        Step::Done
    }

    pub(super) fn exists(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let mut completion = Completion::new(entry.user_data, Status::NotFound);
        let found = match self.store.lookup(place, &scratch.key) {
            Ok(found) => found,
            Err(refused) => return self.refuse(at, entry, refused),
        };
        if let Some(value) = found {
            completion.status = Status::Ok;
            completion.id = self.store.value_id(value);
            completion.value_bytes = value.bytes;
        }
        self.finish(at, completion);
        Step::Done
    }

    pub(super) fn multi_get(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let Some(lane) = self.lanes.get_mut(at) else {
            return Step::Done;
        };
        let keys = match packed::Keys::parse(&scratch.value) {
            Ok(keys) => keys,
            Err(error) => return self.end_session_of(at, error.into()),
        };
        let ring = &lane.ring;
        let counters = &self.counters[usize::from(self.options.no.0)];
        let mut completion = Completion::new(entry.user_data, Status::Ok);
        let mut cold = ColdPieces::new();
        let items = keys.count() as u32;
        let mut plan = match packed::ValuesPlan::new(entry.reply.len, items) {
            Ok(plan) => plan,
            Err(needed) => {
                completion.status = Status::ReplyTooSmall;
                completion.detail = needed;
                self.finish(at, completion);
                return Step::Done;
            }
        };
        for key in keys {
            let found = match self.store.lookup(place, key) {
                Ok(found) => found,
                Err(refused) => return self.refuse(at, entry, refused),
            };
            let mut head = packed::GetHead {
                status: Status::NotFound,
                tier: Tier::None,
                included: false,
                value_bytes: 0,
                id: ObjectId::from_bytes([0; OBJECT_ID_BYTES]),
            };
            let Some(value) = found else {
                counters.absent.add(1);
                let (head_at, _) = plan.place(0);
                ring.write_reply(entry.reply, head_at, &head.encode());
                continue;
            };
            head.status = Status::Ok;
            head.value_bytes = value.bytes as u32;
            head.id = self.store.value_id(value);
            // What finds no room is named, and left to a get of its own.
            let room = if cold.len() + pieces_max(value.bytes) <= COLD_PIECES_MAX {
                value.bytes
            } else {
                u64::MAX
            };
            let (head_at, included) = plan.place(room);
            completion.more |= !included;
            head.included = included;
            if included {
                let to = head_at + packed::GET_HEAD_BYTES as u32;
                let bytes = value.bytes as u32;
                let served = serve_value(
                    &mut self.store,
                    value,
                    0,
                    bytes,
                    to,
                    &mut cold,
                    |skip, chunk| {
                        ring.write_reply(entry.reply, skip, chunk);
                    },
                );
                match served {
                    Served::Bytes(tier, _) => {
                        head.tier = tier;
                        completion.tier = later(completion.tier, tier);
                        count_tier(counters, tier);
                    }
                    Served::Corrupt => head.status = Status::Corrupt,
                }
            }
            ring.write_reply(entry.reply, head_at, &head.encode());
        }
        completion.value_bytes = u64::from(items);
        completion.reply_bytes = plan.reply_bytes();
        if cold.is_empty() {
            self.finish(at, completion);
        } else {
            self.await_cold(Destination::Lane(at, entry.reply), completion, cold, None);
        }
        Step::Done
    }

    pub(super) fn stats(&mut self, at: LaneRef, entry: &Submission) -> Step {
        self.drain_hits(at);
        // The measured ones are as old as the shard allows: a client may ask without end.
        if self.now >= self.next_measure {
            self.publish_gauges();
        }
        self.publish_counts();
        let mut sum = Stats::default();
        for counters in self.counters.iter() {
            sum.add(&counters.read());
        }
        let mut completion = Completion::new(entry.user_data, Status::Ok);
        completion.value_bytes = (Stats::COUNT * 8) as u64;
        if let Some(lane) = self.lanes.get_mut(at) {
            for value in sum.to_array() {
                if completion.reply_bytes + 8 <= entry.reply.len {
                    let bytes = value.to_le_bytes();
                    lane.ring
                        .write_reply(entry.reply, completion.reply_bytes, &bytes);
                    completion.reply_bytes += 8;
                }
            }
        }
        completion.more = u64::from(completion.reply_bytes) < completion.value_bytes;
        self.finish(at, completion);
        Step::Done
    }

    /// Asks the I/O core for the missing pieces; the read completes with the last of them.
    pub(super) fn await_cold(
        &mut self,
        destination: Destination,
        completion: Completion,
        cold: ColdPieces,
        fill: Option<(BranchRef, Box<[u8]>, ObjectNo)>,
    ) {
        self.last_tier = Tier::Cold;
        let holder = match &destination {
            Destination::Lane(at, _) => match self.lanes.get_mut(*at) {
                Some(lane) => Holder::Session(lane.session),
                None => return,
            },
            Destination::Peer { shard, .. } | Destination::Export { shard, .. } => {
                Holder::Peer(*shard)
            }
        };
        if !self.pending.has_room(holder, cold.len()) {
            let mut busy = Completion::new(completion.user_data, Status::Busy);
            busy.detail = BusyReason::ColdReads as u32;
            return self.deliver(destination, busy);
        }
        let missing = cold.len() as u32;
        let read = self.pending.add_read(PendingRead {
            holder,
            destination,
            completion,
            missing,
            fill,
        });
        for mut piece in cold {
            piece.read = read;
            let object = piece.object;
            self.store.pin(object);
            let stored = self.store.tables.objects.get(object).at;
            let (ticket, buffer) = self.pending.add_piece(piece, stored.bytes as usize);
            if let Err(buffer) = self.submit_read(ticket, stored, buffer) {
                let full = DiskError::Os {
                    call: "submission",
                    segment: stored.segment,
                    errno: libc::EAGAIN,
                };
                self.cold_piece(ticket, buffer, Err(full));
            }
        }
    }

    /// Takes a piece that the I/O core read, or failed to read.
    pub(super) fn cold_piece(
        &mut self,
        ticket: u64,
        buffer: Vec<u8>,
        result: Result<(), DiskError>,
    ) {
        let Some(piece) = self.pending.take_piece(ticket) else {
            return;
        };
        let good = match &result {
            Ok(()) => {
                self.store.ask_for(piece.set);
                let good = self.store.take_cold(piece.object, &buffer);
                self.store.ask_for(None);
                good
            }
            Err(_) => false,
        };
        let Some(read) = self.pending.read_mut(piece.read) else {
            return;
        };
        if good {
            let bytes = &buffer[piece.from as usize..(piece.from + piece.bytes) as usize];
            match &mut read.destination {
                Destination::Lane(at, reply) => {
                    if let Some(lane) = self.lanes.get_mut(*at) {
                        lane.ring.write_reply(*reply, piece.to, bytes);
                    }
                }
                Destination::Peer { bytes: reply, .. }
                | Destination::Export { bytes: reply, .. } => {
                    reply[piece.to as usize..][..bytes.len()].copy_from_slice(bytes);
                }
            }
        } else {
            let user_data = read.completion.user_data;
            let failed = match &result {
                Err(error) if !error.is_damage() => failed_read(user_data, error),
                Ok(()) => Completion::new(user_data, Status::Corrupt),
                Err(_) => {
                    self.store.quarantine(piece.object);
                    Completion::new(user_data, Status::Corrupt)
                }
            };
            if failed.status == Status::Corrupt {
                self.counters().corrupt.add(1);
            } else if let Err(error) = &result
                && failed.status != Status::Busy
            {
                tracing::warn!(shard = self.options.no.0, %error, "a cold read failed");
            }
            if let Some(read) = self.pending.read_mut(piece.read) {
                read.completion = failed;
            }
        }
        self.store.unpin(piece.object);
        self.pending.recycle(buffer);
        if let Some(read) = self.pending.piece_done(piece.read, Tier::Cold) {
            if read.completion.status == Status::Ok {
                self.counters().cold_reads.add(1);
                if let Some((place, key, object)) = read.fill {
                    self.want_fill(place, &key, object);
                }
            }
            self.deliver(read.destination, read.completion);
        }
    }

    /// Hands a finished read to whoever asked.
    pub(super) fn deliver(&mut self, destination: Destination, completion: Completion) {
        match destination {
            Destination::Lane(at, _) => self.finish(at, completion),
            Destination::Peer {
                shard,
                ticket,
                bytes,
            } => {
                self.answer_peer(shard, ticket, completion, bytes);
            }
            Destination::Export {
                shard,
                ticket,
                id,
                kind,
                bytes,
            } => {
                let found = match completion.status {
                    Status::Ok => Ok((kind, bytes)),
                    status => Err(status),
                };
                self.exports.look_again();
                self.exported(shard, ticket, id, found);
            }
        }
    }

    pub(super) fn finish_corrupt(&mut self, at: LaneRef, user_data: u64) {
        self.counters().corrupt.add(1);
        self.finish(at, Completion::new(user_data, Status::Corrupt));
    }

    pub(super) fn count_tier(&mut self, tier: Tier) {
        self.last_tier = tier;
        count_tier(self.counters(), tier);
    }
}

/// At most so many pieces a value is read in.
fn pieces_max(value_bytes: u64) -> usize {
    match value_bytes <= u64::from(BLOB_BYTES_MAX) {
        true => 1,
        false => value_bytes as usize / CHUNK_BYTES_MIN + 1,
    }
}

/// Copies bytes `from..from + bytes` of a value to `to` and beyond through `write`. What is cold
/// is added to `cold`, as much as there may be.
pub(super) fn serve_value<D: Disk>(
    store: &mut Store<D>,
    value: Value,
    from: u64,
    bytes: u32,
    to: u32,
    cold: &mut ColdPieces,
    mut write: impl FnMut(u32, &[u8]),
) -> Served {
    debug_assert!(from + u64::from(bytes) <= value.bytes && value.bytes <= VALUE_BYTES_MAX);
    let object = ObjectNo(value.object);
    if !store.is_chunked(value) {
        return serve_piece(store, object, from as u32, bytes, to, cold, &mut write);
    }
    let (mut worst, mut done) = (Tier::None, 0);
    while done < bytes && cold.len() < COLD_PIECES_MAX {
        let at = from as u32 + done;
        let chunk = store.tables.chunk_at(object, value.bytes as u32, at);
        let Some(chunk) = chunk else {
            return Served::Corrupt;
        };
        let take = chunk.left.min(bytes - done);
        let (object, to) = (chunk.object, to + done);
        match serve_piece(store, object, chunk.from, take, to, cold, &mut write) {
            Served::Bytes(tier, _) => worst = later(worst, tier),
            Served::Corrupt => return Served::Corrupt,
        }
        done += take;
    }
    Served::Bytes(worst, done)
}

fn serve_piece<D: Disk>(
    store: &mut Store<D>,
    object: ObjectNo,
    from: u32,
    bytes: u32,
    to: u32,
    cold: &mut ColdPieces,
    write: &mut impl FnMut(u32, &[u8]),
) -> Served {
    let mut at = to;
    let piece = store.piece(object, from as usize, bytes as usize, |chunk| {
        write(at, chunk);
        at += chunk.len() as u32;
    });
    match piece {
        Piece::L2 => Served::Bytes(Tier::L2, bytes),
        Piece::L3 => Served::Bytes(Tier::L3, bytes),
        Piece::Cold(_) => {
            cold.push(ColdPiece {
                read: 0,
                object,
                from,
                bytes,
                to,
                set: store.asking(),
            });
            Served::Bytes(Tier::Cold, bytes)
        }
        Piece::Corrupt => Served::Corrupt,
    }
}

/// The farther of two tiers.
fn later(a: Tier, b: Tier) -> Tier {
    if b as u8 > a as u8 { b } else { a }
}

fn count_tier(counters: &ShardCounters, tier: Tier) {
    match tier {
        Tier::L2 => counters.l2_hits.add(1),
        Tier::L3 => counters.l3_hits.add(1),
        _ => {}
    }
}
