//! Operations that were stopped, and what stops them for good.
//!
//! Floor 2. An operation that needs an object from the device is parked with its entry and begun again
//! when the I/O core has read the object; it has changed nothing until then. Its lane is served meanwhile.
//!
//! Invariants
//! - a parked entry is carried out or answered exactly once, or its lane is closed.
//! - an object is read once, however many wait for it.
//! - reads of a lane may overtake its parked reads; nothing overtakes a parked operation that changes
//!   something, and such a one overtakes nothing.

use crate::agent::entry::{BusyReason, Completion, Status, Submission};
use crate::id::{OBJECT_ID_BYTES, ObjectId};
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, DiskError, IoRequest, Location};
use crate::shard::lanes::LaneRef;
use crate::shard::store::Refused;
use crate::shard::{Shard, Step};

/// Entries of one shard that may be parked; more are told to come again.
const PARKED_MAX: usize = 1024;

impl<D: Disk> Shard<D> {
    /// What becomes of an operation that the store refused.
    pub(super) fn refuse(&mut self, at: LaneRef, entry: &Submission, refused: Refused) -> Step {
        let mut completion = Completion::new(entry.user_data, Status::Ok);
        completion.status = match refused {
            Refused::Wait => return Step::Stall,
            Refused::Cold(object) => return Step::Park(object),
            Refused::Memory => {
                completion.detail = BusyReason::Memory as u32;
                Status::Busy
            }
            Refused::Descriptors => {
                completion.detail = BusyReason::Descriptors as u32;
                Status::Busy
            }
            Refused::NoSpace => Status::NoSpace,
            Refused::TooLarge => Status::TooLarge,
            Refused::ReadOnly => Status::ReadOnly,
            Refused::Corrupt => {
                self.counters().corrupt.add(1);
                Status::Corrupt
            }
            Refused::NoSuchRevision => Status::NoSuchRevision,
            Refused::Unsaved(changes) => {
                completion.value_bytes = changes;
                Status::Unsaved
            }
            Refused::Stale(current) => {
                completion.id = current.unwrap_or(NO_ID);
                Status::Stale
            }
            Refused::StaleHead(current) => {
                completion.id = current.unwrap_or(NO_ID);
                Status::StaleHead
            }
        };
        self.finish(at, completion);
        Step::Done
    }

    /// Keeps an entry until an object was read.
    pub(super) fn park(&mut self, at: LaneRef, entry: Submission, object: ObjectNo) {
        if self.pending.parked() >= PARKED_MAX || !self.fetch(object) {
            let mut busy = Completion::new(entry.user_data, Status::Busy);
            busy.detail = BusyReason::ColdReads as u32;
            return self.finish(at, busy);
        }
        if let Some(lane) = self.lanes.get_mut(at) {
            lane.park(entry.op);
        }
        self.pending.park(object, at, entry);
    }

    /// Has an object read for whoever begins again then; whether it is under way.
    pub(super) fn fetch(&mut self, object: ObjectNo) -> bool {
        if self.pending.is_fetching(object) {
            return true;
        }
        if !self.pending.has_room_to_fetch() {
            return false;
        }
        let stored = self.store.tables.objects.get(object).at;
        self.store.pin(object);
        let (ticket, buffer) =
            self.pending
                .add_fetch(object, self.store.asking(), stored.bytes as usize);
        let Err(buffer) = self.submit_read(ticket, stored, buffer) else {
            return true;
        };
        self.pending.recycle(buffer);
        self.pending.take_fetch(ticket);
        self.store.unpin(object);
        false
    }

    /// Asks the I/O core for stored bytes; the buffer, where it takes no more requests.
    pub(super) fn submit_read(
        &mut self,
        ticket: u64,
        at: Location,
        buffer: Vec<u8>,
    ) -> Result<(), Vec<u8>> {
        let request = IoRequest::Read {
            ticket,
            segment: at.segment,
            offset: at.offset,
            buffer,
        };
        match self.store.disk.submit(request) {
            Err(IoRequest::Read { buffer, .. }) => Err(buffer),
            _ => Ok(()),
        }
    }

    /// Takes an object that was fetched, or could not be: who waits begins again, or is answered.
    pub(super) fn fetched(&mut self, ticket: u64, buffer: Vec<u8>, result: &Result<(), DiskError>) {
        let Some((object, set)) = self.pending.take_fetch(ticket) else {
            return self.pending.recycle(buffer);
        };
        // A damaged object is quarantined: the operation finds that out by itself.
        match result {
            Ok(()) => {
                self.store.ask_for(set);
                self.store.take_fetched(object, &buffer);
                self.store.ask_for(None);
            }
            Err(error) if error.is_damage() => self.store.quarantine(object),
            Err(_) => {}
        }
        self.pending.recycle(buffer);
        self.store.unpin(object);
        let waiting = self.pending.unpark(object);
        match result {
            Err(error) if !error.is_damage() => {
                tracing::warn!(shard = self.options.no.0, %error, "a node could not be read");
                for (at, entry) in waiting {
                    if let Some(lane) = self.lanes.get_mut(at) {
                        lane.unpark();
                    }
                    self.queue(at);
                    self.finish(at, failed_read(entry.user_data, error));
                }
            }
            _ => self.resumed.extend(waiting),
        }
    }

    /// Begins the entries again whose objects were read.
    pub(super) fn resume(&mut self) -> bool {
        let mut resumed = std::mem::take(&mut self.resumed);
        let some = !resumed.is_empty();
        for (at, entry) in resumed.drain(..) {
            match self.lanes.get_mut(at) {
                Some(lane) if lane.stalled.is_none() => {
                    lane.unpark();
                    self.carry_out(at, entry);
                    self.queue(at);
                }
                // The entry that it stalls on goes first: there is room for one.
                Some(_) => self.resumed.push((at, entry)),
                None => {}
            }
        }
        resumed.append(&mut self.resumed);
        self.resumed = resumed;
        some
    }
}

/// What to say where something could not be read from the device.
pub(super) fn failed_read(user_data: u64, error: &DiskError) -> Completion {
    let busy = match error.errno() {
        libc::EAGAIN => Some(BusyReason::ColdReads),
        _ if error.is_short_of_descriptors() => Some(BusyReason::Descriptors),
        _ => None,
    };
    let status = busy.map_or(Status::IoFailed, |_| Status::Busy);
    let mut failed = Completion::new(user_data, status);
    failed.detail = busy.map_or(error.errno() as u32, |reason| reason as u32);
    failed
}

const NO_ID: ObjectId = ObjectId::from_bytes([0; OBJECT_ID_BYTES]);
