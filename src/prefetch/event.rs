//! Access events: what an agent did, told by its shard to whoever learns from it.
//!
//! Floor 1. A ring with one writer, the shard, and one reader. Nothing is written while nobody has taken
//! the reader's end; what finds the ring full is lost and counted, and the shard never waits.
//!
//! Cost of an event nobody listens to: one load and a branch. Of one that is written: 40 bytes.
//!
//! Invariants
//! - events of one shard arrive in the order in which they happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringbuf::traits::{Consumer, Producer, Split};
use ringbuf::{HeapCons, HeapProd, HeapRb};

use crate::id::{AgentNo, BranchNo};

/// Events that may wait in one shard's stream.
pub const EVENTS_MAX: usize = 4096;

/// What an agent did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum AccessKind {
    /// It read a key. Not told yet: comes with the prefetcher, as [`AccessKind::Write`] does.
    Read,
    /// It wrote or deleted a key.
    Write,
    /// It made a branch, opened a fork, or switched to a branch.
    Branch,
    /// It merged a checkpoint into the branch.
    Merge,
    /// The branch was restored.
    Restore,
    /// The branch was checkpointed.
    Checkpoint,
    /// The agent was suspended.
    Suspend,
    /// The agent was resumed.
    Resume,
    /// The agent was made.
    Create,
    /// The agent was terminated.
    Terminate,
    /// The agent came from another shard.
    Migrate,
}

/// One thing that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccessEvent {
    /// When, in nanoseconds of the shard's time.
    pub time_ns: u64,
    /// The first 8 bytes of the key's BLAKE3 as a number; 0 where it is about no key.
    pub key: u64,
    /// The agent, by its number in the shard.
    pub agent: AgentNo,
    /// The branch or fork; of what is about the agent as a whole, 0.
    pub branch: BranchNo,
    /// What was done.
    pub kind: AccessKind,
    /// Of a read, the tier that served it, as completions number them; else 0.
    pub tier: u8,
}

/// What both ends know.
#[derive(Debug, Default)]
struct Shared {
    /// Somebody listens.
    open: AtomicBool,
    lost: AtomicU64,
}

/// The writer's end: the shard's.
pub struct Feed {
    ring: HeapProd<AccessEvent>,
    shared: Arc<Shared>,
}

/// The reader's end.
pub struct Events {
    ring: HeapCons<AccessEvent>,
    shared: Arc<Shared>,
}

/// Makes a stream of [`EVENTS_MAX`] places that nobody listens to yet.
#[must_use]
pub fn stream() -> (Feed, Events) {
    let (writer, reader) = HeapRb::new(EVENTS_MAX).split();
    let shared = Arc::new(Shared::default());
    let feed = Feed {
        ring: writer,
        shared: Arc::clone(&shared),
    };
    let events = Events {
        ring: reader,
        shared,
    };
    (feed, events)
}

impl Feed {
    /// Whether anybody listens: asked before an event is put together.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        // No more than a hint: what an end was taken after may be missed.
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Tells of an event; `false`: nobody listens, or it found no room and was counted as lost.
    pub fn tell(&mut self, event: AccessEvent) -> bool {
        if !self.is_open() {
            return false;
        }
        let told = self.ring.try_push(event).is_ok();
        if !told {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        told
    }
}

impl Events {
    /// Has the shard write events from now on.
    pub fn listen(&mut self) {
        self.shared.open.store(true, Ordering::Relaxed);
    }

    /// The next event, if there is one.
    pub fn take(&mut self) -> Option<AccessEvent> {
        self.ring.try_pop()
    }

    /// Events that found the ring full, ever.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.open.store(false, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(time_ns: u64) -> AccessEvent {
        AccessEvent {
            time_ns,
            key: 0,
            agent: AgentNo(1),
            branch: BranchNo(0),
            kind: AccessKind::Checkpoint,
            tier: 0,
        }
    }

    #[test]
    fn an_event_fits_in_forty_bytes() {
        assert!(size_of::<AccessEvent>() <= 40);
    }

    #[test]
    fn nothing_is_told_while_nobody_listens_and_what_finds_no_room_is_counted() {
        let (mut feed, mut events) = stream();
        assert!(!feed.tell(event(0)));
        events.listen();
        let told = (1..=EVENTS_MAX as u64 + 7).filter(|&no| feed.tell(event(no)));
        assert_eq!(told.count(), EVENTS_MAX);
        assert_eq!(events.lost(), 7);
        for no in 1..=EVENTS_MAX as u64 {
            assert_eq!(events.take(), Some(event(no)));
        }
        assert_eq!(events.take(), None);
        drop(events);
        assert!(!feed.is_open());
    }
}
