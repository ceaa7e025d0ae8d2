//! Writes: put, delete, large values in parts, several at once, and sync.
//!
//! Floor 2. Each checks everything that could refuse it, then appends its record and changes the
//! tables; the flush at the end of the turn makes it survive the process, and only then is it
//! acknowledged (a volatile write is acknowledged at once).

use crate::agent::entry::{BusyReason, Completion, Status, Submission};
use crate::agent::packed;
use crate::config::Durability;
use crate::id::{OBJECT_ID_BYTES, ObjectId, VALUE_BYTES_MAX};
use crate::segment::{Disk, DiskError, LogError, PART_BYTES_MAX, Sequence};
use crate::shard::agent::BranchRef;
use crate::shard::lanes::{LaneRef, Upload};
use crate::shard::large::{LargeValue, put_bytes_max};
use crate::shard::store::{Refused, Written};
use crate::shard::{Scratch, Shard, Staged, Step};

impl<D: Disk> Shard<D> {
    pub(super) fn put(&mut self, at: LaneRef, entry: &Submission, scratch: &mut Scratch) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        self.put_whole(at, place, entry, scratch)
    }

    fn put_whole(
        &mut self,
        at: LaneRef,
        place: BranchRef,
        entry: &Submission,
        scratch: &Scratch,
    ) -> Step {
        let written = self
            .check_expected(at, place, entry, &scratch.key)
            .and_then(|()| self.store.put(place, &scratch.key, &scratch.value));
        if let Ok((object, _)) = written
            && entry.branch.is_none()
        {
            self.want_fill(place, &scratch.key, object);
        }
        self.end_write(at, entry, written.map(|(_, written)| written))
    }

    pub(super) fn delete(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let deleted = self
            .check_expected(at, place, entry, &scratch.key)
            .and_then(|()| self.store.delete(place, &scratch.key));
        match deleted {
            Ok(None) => {
                self.finish(at, Completion::new(entry.user_data, Status::NotFound));
                Step::Done
            }
            Ok(Some(sequence)) => {
                let id = ObjectId::from_bytes([0; OBJECT_ID_BYTES]);
                let written = Written {
                    sequence,
                    id,
                    deduplicated: false,
                };
                self.end_write(at, entry, Ok(written))
            }
            Err(refused) => self.end_write(at, entry, Err(refused)),
        }
    }

    /// One part of a large value, in order; the last one lets the key name it.
    pub(super) fn put_part(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let (offset, total) = (entry.arg0, entry.arg1);
        if total > VALUE_BYTES_MAX {
            self.finish(at, Completion::new(entry.user_data, Status::TooLarge));
            return Step::Done;
        }
        let bytes = scratch.value.len() as u64;
        let last = offset + bytes == total;
        if offset == 0 && last {
            self.take_upload(at);
            return self.put_whole(at, place, entry, scratch);
        }
        if offset == 0 && !self.begin_upload(at, place, &scratch.key, total) {
            let mut busy = Completion::new(entry.user_data, Status::Busy);
            busy.detail = BusyReason::Uploads as u32;
            self.finish(at, busy);
            return Step::Done;
        }
        let Some(mut upload) = self
            .lanes
            .get_mut(at)
            .and_then(|lane| lane.upload.take())
            .map(|upload| *upload)
        else {
            return self.without_upload(at, entry);
        };
        let whole = bytes == PART_BYTES_MAX as u64 || last;
        let same = upload.place == place && upload.key == scratch.key && upload.total == total;
        if !same || upload.stored != offset || !whole {
            let expected = upload.stored;
            self.drop_upload(upload);
            return self.out_of_order(at, entry, expected);
        }
        let value = &mut upload.value;
        match self.append_part(at, place, entry, scratch, value, last) {
            Ok(()) => {}
            Err(refused @ (Refused::Wait | Refused::Cold(_))) => {
                self.put_back(at, upload);
                return self.refuse(at, entry, refused);
            }
            Err(refused) => {
                self.drop_upload(upload);
                return self.end_write(at, entry, Err(refused));
            }
        }
        upload.stored += bytes;
        upload.touched_ns = self.now;
        if !upload.unflushed {
            upload.unflushed = true;
            self.unflushed_uploads.push(at);
        }
        if last {
            let value = &mut upload.value;
            let written = self.store.finish_large(place, &scratch.key, total, value);
            self.drop_upload(upload);
            return self.end_write(at, entry, written.map(|(_, written)| written));
        }
        self.put_back(at, upload);
        let written = Written {
            sequence: self.store.log.last(),
            id: ObjectId::from_bytes([0; OBJECT_ID_BYTES]),
            deduplicated: false,
        };
        self.end_write(at, entry, Ok(written))
    }

    /// Takes one part in, once there is room for all that can come of it; before the last one, what the
    /// caller expects is checked.
    fn append_part(
        &mut self,
        at: LaneRef,
        place: BranchRef,
        entry: &Submission,
        scratch: &Scratch,
        value: &mut LargeValue,
        last: bool,
    ) -> Result<(), Refused> {
        let mut adds_key = false;
        if last {
            self.check_expected(at, place, entry, &scratch.key)?;
            adds_key = self.store.value(place, &scratch.key).is_none();
        }
        self.store.push_large(value, &scratch.value, adds_key)
    }

    pub(super) fn multi_put(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let pairs = match packed::Pairs::parse(&scratch.value) {
            Ok(pairs) => pairs,
            Err(error) => return self.end_session_of(at, error.into()),
        };
        let items = pairs.count();
        let answers = entry.reply.len > 0;
        let needed = if answers {
            (items * packed::PUT_ANSWER_BYTES) as u32
        } else {
            0
        };
        if needed > entry.reply.len {
            let mut completion = Completion::new(entry.user_data, Status::ReplyTooSmall);
            completion.detail = needed;
            self.finish(at, completion);
            return Step::Done;
        }
        // All or none: room for every record is asked for before the first is appended.
        // Their own sizes, not the largest: a thousand of those are more than the log ever grants.
        let bytes = pairs
            .map(|(key, value)| put_bytes_max(key.len(), value.len()))
            .sum::<usize>();
        let is_new = |(key, _): packed::Pair<'_>| self.store.value(place, key).is_none();
        let adds_key = self.store.is_full() && { pairs }.any(is_new);
        if let Err(refused) = self.store.ready(bytes, adds_key) {
            return self.end_write(at, entry, Err(refused));
        }
        let durability = entry.durability.unwrap_or(self.options.durability);
        let mut last = None;
        for (no, (key, value)) in pairs.enumerate() {
            let (object, written) = match self.store.put_granted(place, key, value) {
                Ok(stored) => stored,
                Err(refused) => return self.end_write(at, entry, Err(refused)),
            };
            if entry.branch.is_none() {
                self.want_fill(place, key, object);
            }
            let answer = packed::PutAnswer {
                status: Status::Ok,
                durability: Some(durability),
                detail: 0,
                id: written.id,
            };
            let skip = (no * packed::PUT_ANSWER_BYTES) as u32;
            if answers && let Some(lane) = self.lanes.get_mut(at) {
                lane.ring.write_reply(entry.reply, skip, &answer.encode());
            }
            last = Some(written);
        }
        let last = last.expect("a checked list has at least one pair");
        self.counters().writes.add(items as u64 - 1);
        self.end_write_with(at, entry, Ok(last), needed)
    }

    /// Waits until what was written has the durability asked for.
    pub(super) fn sync(&mut self, at: LaneRef, entry: &Submission) -> Step {
        let last = self.store.log.last();
        let asked = if entry.arg0 == 0 {
            last
        } else {
            Sequence(entry.arg0).min(last)
        };
        let id = ObjectId::from_bytes([0; OBJECT_ID_BYTES]);
        self.acknowledge(
            at,
            entry,
            Written {
                sequence: asked,
                id,
                deduplicated: false,
            },
            0,
        );
        Step::Done
    }

    fn check_expected(
        &mut self,
        at: LaneRef,
        place: BranchRef,
        entry: &Submission,
        key: &[u8],
    ) -> Result<(), Refused> {
        let Some(extent) = entry.expected() else {
            return Ok(());
        };
        let Some(lane) = self.lanes.get_mut(at) else {
            return Ok(());
        };
        let mut expected = [0; OBJECT_ID_BYTES];
        lane.ring.copy_in(extent, &mut expected);
        self.store.expect(place, key, &expected)
    }

    fn end_write(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        written: Result<Written, Refused>,
    ) -> Step {
        self.end_write_with(at, entry, written, 0)
    }

    /// Ends a write of which `reply_bytes` are in the reply extent.
    fn end_write_with(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        written: Result<Written, Refused>,
        reply_bytes: u32,
    ) -> Step {
        match written {
            Ok(written) => {
                self.counters().writes.add(1);
                self.counters()
                    .deduplicated
                    .add(u64::from(written.deduplicated));
                self.acknowledge(at, entry, written, reply_bytes);
                Step::Done
            }
            Err(refused) => self.refuse(at, entry, refused),
        }
    }

    /// Acknowledges a write once it has the durability that it asked for.
    fn acknowledge(&mut self, at: LaneRef, entry: &Submission, written: Written, reply_bytes: u32) {
        let durability = entry.durability.unwrap_or(self.options.durability);
        let mut completion = Completion::new(entry.user_data, Status::Ok);
        completion.id = written.id;
        completion.value_bytes = written.sequence.0;
        completion.reply_bytes = reply_bytes;
        completion.durability = Some(durability.min(Durability::Process));
        if durability == Durability::Volatile {
            return self.post(at, &completion);
        }
        self.must_flush = true;
        let power = durability == Durability::Power;
        self.staged.push(Staged {
            lane: at,
            completion,
            power,
            write: true,
        });
    }

    fn put_back(&mut self, at: LaneRef, upload: Upload) {
        match self.lanes.get_mut(at) {
            Some(lane) => lane.upload = Some(Box::new(upload)),
            None => self.drop_upload(upload),
        }
    }

    /// Answers a part whose value is not on its way in: by what took it away, where that is known.
    fn without_upload(&mut self, at: LaneRef, entry: &Submission) -> Step {
        let lost = self.lanes.get_mut(at);
        let Some((status, detail)) = lost.and_then(|lane| lane.lost_upload.take()) else {
            return self.out_of_order(at, entry, 0);
        };
        let mut completion = Completion::new(entry.user_data, status);
        completion.detail = detail;
        self.finish(at, completion);
        Step::Done
    }

    fn out_of_order(&mut self, at: LaneRef, entry: &Submission, expected: u64) -> Step {
        let mut completion = Completion::new(entry.user_data, Status::UploadOutOfOrder);
        completion.value_bytes = expected;
        self.finish(at, completion);
        Step::Done
    }

    /// Gives up large values of which parts were lost with a failed flush: those were acknowledged, so the
    /// next part of each is told why.
    pub(super) fn drop_unflushed_uploads(&mut self, why: (Status, u32)) {
        let mut lost = Vec::new();
        for at in self.unflushed_uploads.drain(..) {
            let Some(lane) = self.lanes.get_mut(at) else {
                continue;
            };
            if let Some(upload) = lane.upload.take() {
                lane.lost_upload = Some(why);
                lost.push(upload);
            }
        }
        for upload in lost {
            self.drop_upload(*upload);
        }
    }
}

/// What to tell writers whose flush failed: nothing of theirs was stored.
pub(super) fn flush_status(error: &LogError) -> (Status, u32) {
    match error {
        LogError::Write {
            error: DiskError::NoSpace,
            ..
        } => (Status::NoSpace, 0),
        LogError::Write {
            error: DiskError::Os { errno, .. },
            ..
        } => (Status::IoFailed, *errno as u32),
        _ => (Status::IoFailed, 0),
    }
}
