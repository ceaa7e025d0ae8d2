//! Calls about versioned state: what each asks of the store, and its answer.
//!
//! Floor 2. A call is decoded from a private copy, carried out as a whole or not at all, and answered
//! in the turn in which it was flushed.

use crate::agent::call::Call;
use crate::agent::entry::Submission;
use crate::segment::Disk;
use crate::shard::lanes::LaneRef;
use crate::shard::{Scratch, Shard, Step};

impl<D: Disk> Shard<D> {
    pub(super) fn call(&mut self, at: LaneRef, entry: &Submission, scratch: &mut Scratch) -> Step {
        let Some(_place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        match Call::decode(&scratch.value) {
            Ok(_call) => todo!(),
            Err(malformed) => self.end_session_of(at, malformed),
        }
    }
}
