//! Which large values may be on their way in: how many, whose, and which of them go to make room.
//!
//! Floor 2. An upload holds what of its value is stored, and some memory, for as long as its
//! writer likes; so there are shares, and one that fell silent goes when another needs its place.
//!
//! Cost of beginning one: a look into a small map. Where there is no room, all lanes are looked at,
//! but not again before one of them can have been silent for long enough.
//!
//! Invariants
//! - `total` is the sum over all sessions, and each session's count that of its lanes' uploads.

use std::collections::HashMap;

use crate::id::SessionNo;
use crate::segment::Disk;
use crate::shard::Shard;
use crate::shard::agent::BranchRef;
use crate::shard::lanes::{LaneRef, Upload};
use crate::shard::large::LargeValue;

/// Large values on their way in at once, per shard.
pub(super) const UPLOADS_MAX: usize = 1024;
/// Of these, at most so many of one session.
pub(super) const UPLOADS_PER_SESSION_MAX: usize = UPLOADS_MAX / 4;
/// An upload that saw no part for so long goes when its place is needed, in nanoseconds.
pub(super) const UPLOAD_IDLE_NS: u64 = 60_000_000_000;

/// Memory that an upload is charged with: a chunk that is not cut yet, and a node for each level.
const UPLOAD_BYTES: u64 = 64 << 10;

/// How many uploads there are.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    total: usize,
    sessions: HashMap<SessionNo, Held>,
    /// None is idle before.
    idle_from_ns: u64,
}

/// Uploads of one session.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    /// None of them is idle before.
    idle_from_ns: u64,
}

impl Uploads {
    fn begin(&mut self, session: SessionNo) {
        self.total += 1;
        self.sessions.entry(session).or_default().count += 1;
    }

    fn end(&mut self, session: SessionNo) {
        self.total -= 1;
        if let Some(held) = self.sessions.get_mut(&session) {
            held.count -= 1;
            if held.count == 0 {
                self.sessions.remove(&session);
            }
        }
    }

    /// Whether one more of a session is too many for it, or for all: of whom one has to go.
    fn over(&self, session: SessionNo) -> Option<Option<SessionNo>> {
        let held = self.sessions.get(&session).map_or(0, |held| held.count);
        if held >= UPLOADS_PER_SESSION_MAX {
            return Some(Some(session));
        }
        (self.total >= UPLOADS_MAX).then_some(None)
    }

    fn idle_from_ns(&mut self, of: Option<SessionNo>) -> &mut u64 {
        match of.and_then(|session| self.sessions.get_mut(&session)) {
            Some(held) => &mut held.idle_from_ns,
            None => &mut self.idle_from_ns,
        }
    }
}

impl<D: Disk> Shard<D> {
    /// Starts a large value, dropping one that the lane never ended; `false` where there are too
    /// many, or there is no memory for one more.
    pub(super) fn begin_upload(
        &mut self,
        at: LaneRef,
        place: BranchRef,
        key: &[u8],
        total: u64,
    ) -> bool {
        self.take_upload(at);
        let Some(session) = self.lanes.get_mut(at).map(|lane| lane.session) else {
            return true;
        };
        while let Some(of) = self.uploads.over(session) {
            if !self.drop_idle_upload(of) {
                return false;
            }
        }
        if !self.store.take_upload_memory(UPLOAD_BYTES) {
            return false;
        }
        if let Some(lane) = self.lanes.get_mut(at) {
            self.uploads.begin(session);
            lane.lost_upload = None;
            lane.upload = Some(Box::new(Upload {
                place,
                session,
                touched_ns: self.now,
                key: key.to_vec(),
                total,
                stored: 0,
                value: LargeValue::default(),
                unflushed: false,
            }));
        }
        true
    }

    /// Gives up what is left of a large value.
    pub(super) fn drop_upload(&mut self, mut upload: Upload) {
        self.uploads.end(upload.session);
        self.store.give_upload_memory(UPLOAD_BYTES);
        self.store.drop_large(&mut upload.value);
    }

    /// Drops the large value that a lane did not end, if there is one.
    pub(super) fn take_upload(&mut self, at: LaneRef) {
        let upload = self.lanes.get_mut(at).and_then(|lane| lane.upload.take());
        if let Some(upload) = upload {
            self.drop_upload(*upload);
        }
    }

    /// Drops the upload that was silent for longest, if that is long enough. Its next part finds
    /// itself out of order.
    fn drop_idle_upload(&mut self, of: Option<SessionNo>) -> bool {
        if self.now < *self.uploads.idle_from_ns(of) {
            return false;
        }
        let Some((at, touched_ns)) = self.lanes.oldest_upload(of) else {
            return false;
        };
        let idle_from_ns = touched_ns + UPLOAD_IDLE_NS;
        *self.uploads.idle_from_ns(of) = idle_from_ns;
        if self.now < idle_from_ns {
            return false;
        }
        self.take_upload(at);
        true
    }
}
