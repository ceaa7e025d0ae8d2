//! A lane's share of a turn: what is taken from it, and what becomes of each entry.
//!
//! Floor 2. Entries differ a thousandfold in what they cost, and a process rings as often as it likes: so an operation
//! has a weight, and a lane is served once in a turn, however often it came up.
//!
//! Invariants
//! - no lane gets more than [`SERVICE`] in a turn, and one operation more at most.
//! - what a lane submitted before it rang is seen in that turn, or the lane is looked at in the next.

use crate::agent::entry::{Op, Submission};
use crate::metrics::thread_allocations;
use crate::segment::Disk;
use crate::shard::lanes::{LaneRef, Look};
use crate::shard::{Shard, Step, Tier};

/// What one lane is served before the next lane has its turn, in simple operations; see [`weight`].
const SERVICE: u32 = 32;

/// What an operation counts against its lane's share of a turn. A call may walk two trees, a list names up to a
/// thousand keys: whoever asks for nothing else gets no more of the shard than others do.
const fn weight(op: Op) -> u32 {
    match op {
        Op::Call => SERVICE / 2,
        Op::Scan | Op::MultiGet | Op::MultiPut | Op::PutPart => SERVICE / 4,
        Op::Get | Op::GetFrom | Op::Exists | Op::Put | Op::Delete | Op::Sync | Op::Stats => 1,
    }
}

impl<D: Disk> Shard<D> {
    /// Serves what a lane has submitted, up to its share of the turn.
    pub(super) fn serve(&mut self, at: LaneRef) -> bool {
        match self.lanes.look(at) {
            Look::First => {}
            Look::Again { is_seen_to: true } => return false,
            Look::Again { is_seen_to: false } => {
                self.queue(at);
                return false;
            }
        }
        let mut spent = 0;
        while spent < SERVICE {
            let Some(lane) = self.lanes.get_mut(at) else {
                return true;
            };
            let worked = spent > 0;
            let kept = lane.stalled.take().or_else(|| lane.behind.take());
            let submission = match kept {
                Some(kept) => kept,
                None if lane.frozen => return worked,
                None => match lane.ring.take() {
                    Ok(Some(submission)) => submission,
                    Ok(None) => {
                        if worked {
                            self.lanes.served(at);
                        }
                        return worked;
                    }
                    Err(malformed) => {
                        let session = lane.session;
                        self.end_session(session, malformed);
                        return true;
                    }
                },
            };
            if lane.must_wait(submission.op) {
                // Who unparks the last one looks at the lane again.
                debug_assert!(lane.behind.is_none() && lane.stalled.is_none());
                lane.behind = Some(submission);
                return worked;
            }
            spent += weight(submission.op);
            if self.carry_out(at, submission) {
                return worked;
            }
        }
        self.lanes.served(at);
        self.queue(at);
        true
    }

    /// Carries an entry out, or keeps it for later; whether its lane has to wait.
    pub(super) fn carry_out(&mut self, at: LaneRef, submission: Submission) -> bool {
        self.last_tier = Tier::None;
        let before = thread_allocations();
        let mut scratch = std::mem::take(&mut self.scratch);
        let step = self.execute(at, &submission, &mut scratch);
        self.scratch = scratch;
        if self.store.asking().is_some() {
            self.store.ask_for(None);
        }
        self.count_allocations(submission.op, thread_allocations() - before);
        match step {
            Step::Done => false,
            Step::Park(object) => {
                self.park(at, submission, object);
                false
            }
            Step::Stall => {
                if let Some(lane) = self.lanes.get_mut(at) {
                    lane.stalled = Some(submission);
                }
                // What fills the append buffer is written out at the end of the turn.
                self.must_flush |= self.store.is_dirty();
                self.queue(at);
                true
            }
        }
    }

    /// Looks at a lane again in the next turn: once, however often it came up in this one.
    pub(super) fn queue(&mut self, at: LaneRef) {
        if let Some(lane) = self.lanes.get_mut(at)
            && !lane.queued
        {
            lane.queued = true;
            self.again.push(at);
        }
    }
}
