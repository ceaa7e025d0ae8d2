//! Bells: how a client's threads tell a shard which lanes have something, and whether it sleeps.
//!
//! Floor 1, room `agent`. A session region has one page per shard, written by the client: a count
//! of bells rung (`tail`) and 256 slots. A shard has one status page, written by the server. No
//! socket here: [`ClientLane::notify`](crate::agent::client_lane::ClientLane::notify) says when
//! a frame must be sent.
//!
//! Invariants
//! - no bell is lost. A client thread writes its submission, then takes a place by `fetch_add` on
//!   `tail`, then writes the slot of that place. The shard goes through the places in order.
//!   (1) A slot with the tag of its place names the lane: the release store of the slot makes the
//!   submission visible. (2) Any other tag below `tail` is a place whose writer was interrupted
//!   before its store, or whose bell was overwritten a lap later, or by a thread that slept for
//!   whole laps. The shard can't tell which, and needn't: it reports [`Bell::Overrun`], having
//!   set its position to `tail`. Every place before that `tail` was taken after its submission
//!   was written, and the `fetch_add`s form one release sequence that the acquire load of `tail`
//!   reads from: the scan of all lanes that follows sees those submissions. Every place from that
//!   `tail` on is still before the shard. (A tag repeats after 2^31 bells: a thread would have to
//!   sleep that long inside `ring`.)
//! - a bell never names a lane to act on: the caller looks the number up in the session's own
//!   lanes and ignores what it doesn't find.
//! - hostile values of `tail` and slots cost their session's shard one scan of that session's
//!   lanes per [`HOLE_LOOKS_MAX`] looks, or per 256 places jumped; callers count overruns.
//!
//! Cost of a look: one cache line when quiet, two with a bell. Of ringing: two lines, two fences.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use std::os::fd::OwnedFd;

use crate::agent::layout::{
    BELL_SLOTS, BELL_TAIL, BELLS, PROTOCOL_VERSION, SESSION_PAGE_BYTES, SHARDS_MAX, STATUS_BYTES,
    STATUS_MAGIC, STATUS_SLEEPING, tag,
};
use crate::id::{LaneNo, ShardNo};
use crate::shared::{Access, SharedError, SharedMemory, fence};

/// Looks at an unwritten place before it is given up for a scan.
pub const HOLE_LOOKS_MAX: u32 = if cfg!(helios_loom) { 2 } else { 256 };

/// What a look at the bells found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// Nothing now. (A place that was taken but isn't written yet also reads as quiet, for a
    /// bounded number of looks; [`ServerBells::settled`] tells the two apart.)
    Quiet,
    /// This lane has something, the client says.
    Lane(LaneNo),
    /// Bells were overwritten or not written: look at every lane of the session now.
    Overrun,
}

/// The shard's side of one session's bell ring.
#[derive(Debug)]
pub struct ServerBells {
    session: Arc<SharedMemory>,
    page: usize,
    position: u64,
    hole_looks: u32,
}

impl ServerBells {
    /// Makes the region of a session for `shards` shards. The descriptor is for the client.
    ///
    /// # Errors
    /// The system's, when it is out of descriptors or memory.
    pub fn create_session(shards: usize) -> Result<(Arc<SharedMemory>, OwnedFd), SharedError> {
        assert!((1..=SHARDS_MAX).contains(&shards));
        let bytes = shards * SESSION_PAGE_BYTES;
        let (memory, fd) = SharedMemory::create("helios-session", bytes, Access::ReadWrite)?;
        Ok((Arc::new(memory), fd))
    }

    /// The bells that a session rings for `shard`.
    #[must_use]
    pub fn new(session: Arc<SharedMemory>, shard: ShardNo) -> Self {
        let page = usize::from(shard.0) * SESSION_PAGE_BYTES;
        assert!(page < session.bytes(), "a page for every shard");
        Self {
            session,
            page,
            position: 0,
            hole_looks: 0,
        }
    }

    /// The region of the session.
    #[must_use]
    pub fn session(&self) -> Arc<SharedMemory> {
        Arc::clone(&self.session)
    }

    /// The next bell. A client can ring without end: the caller bounds how many it takes in turn.
    #[inline]
    pub fn next_bell(&mut self) -> Bell {
        // Acquire: see the header, (2).
        let tail = self.tail();
        if tail == self.position {
            return Bell::Quiet;
        }
        if tail.wrapping_sub(self.position) <= BELL_SLOTS {
            let at = self.page + slot_at(self.position);
            // Acquire pairs with the release store in `ring`.
            let slot = self.session.word(at).load(Ordering::Acquire);
            if (slot >> 32) as u32 == tag(self.position) {
                self.position = self.position.wrapping_add(1);
                self.hole_looks = 0;
                return Bell::Lane(LaneNo(slot as u32));
            }
            self.hole_looks += 1;
            if self.hole_looks < HOLE_LOOKS_MAX {
                return Bell::Quiet;
            }
        }
        self.position = tail;
        self.hole_looks = 0;
        Bell::Overrun
    }

    /// Whether every bell was heard. Asked after [`StatusPage::set_sleeping`], before sleeping.
    #[must_use]
    #[inline]
    pub fn settled(&self) -> bool {
        self.tail() == self.position
    }

    fn tail(&self) -> u64 {
        self.session
            .word(self.page + BELL_TAIL)
            .load(Ordering::Acquire)
    }
}

/// A shard's page that tells clients whether it sleeps; written by the shard alone.
#[derive(Debug)]
pub struct StatusPage {
    memory: SharedMemory,
}

impl StatusPage {
    /// Makes the page. The descriptor is for the clients, all of them.
    ///
    /// # Errors
    /// The system's, when it is out of descriptors or memory.
    pub fn create() -> Result<(Self, OwnedFd), SharedError> {
        let (memory, fd) = SharedMemory::create("helios-status", STATUS_BYTES, Access::ReadOnly)?;
        memory.half(0).store(STATUS_MAGIC, Ordering::Relaxed);
        memory
            .half(4)
            .store(u32::from(PROTOCOL_VERSION), Ordering::Relaxed);
        Ok((Self { memory }, fd))
    }

    /// Says that the shard is about to sleep, or is awake.
    ///
    /// Before it sleeps, the shard has no lane at [`Attention::Polled`](crate::agent::Attention),
    /// calls this with `true`, then asks [`ServerBells::settled`] of every session, and sleeps
    /// only if all are. Either a client's load of `sleeping` comes after this store, and it sends
    /// a frame, or its bell is seen here: both sides have a sequentially consistent fence between
    /// their store and their load.
    pub fn set_sleeping(&self, sleeping: bool) {
        let word = self.memory.half(STATUS_SLEEPING);
        word.store(u32::from(sleeping), Ordering::Relaxed);
        if sleeping {
            fence(Ordering::SeqCst); // Partner: the second fence of `ClientLane::notify`.
        }
    }
}

/// The client's side of all its bell rings, shared by its threads.
#[derive(Debug)]
pub struct ClientBells {
    session: SharedMemory,
    statuses: Vec<SharedMemory>,
}

/// Regions in a `Welcome` that are not what they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadSession {
    /// The region can't be mapped.
    #[error("session region: {0}")]
    Shared(#[from] SharedError),
    /// No shard, or more than a runtime has.
    #[error("a session with {found} shards; 1 to {SHARDS_MAX} were expected")]
    Shards {
        /// Status pages received.
        found: usize,
    },
    /// A status page of another version.
    #[error(
        "status page with magic {magic:#010x} version {version}: client and runtime differ, install the same version"
    )]
    Status {
        /// First word found.
        magic: u32,
        /// Second word found.
        version: u32,
    },
}

impl ClientBells {
    /// Maps what came with a `Welcome`: the session region and one status page per shard.
    ///
    /// # Errors
    /// Descriptors that are not what was promised.
    pub fn map(session: &OwnedFd, statuses: &[OwnedFd]) -> Result<Self, BadSession> {
        let found = statuses.len();
        if !(1..=SHARDS_MAX).contains(&found) {
            return Err(BadSession::Shards { found });
        }
        let bytes = found * SESSION_PAGE_BYTES;
        let session = SharedMemory::map(session, bytes, Access::ReadWrite)?;
        let statuses = statuses
            .iter()
            .map(|fd| {
                let page = SharedMemory::map(fd, STATUS_BYTES, Access::ReadOnly)?;
                let magic = page.half(0).load(Ordering::Relaxed);
                let version = page.half(4).load(Ordering::Relaxed);
                if magic != STATUS_MAGIC || version != u32::from(PROTOCOL_VERSION) {
                    return Err(BadSession::Status { magic, version });
                }
                Ok(page)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { session, statuses })
    }

    /// Shards of the runtime.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.statuses.len()
    }

    /// Writes a bell for `lane` into the ring of `shard`.
    ///
    /// # Panics
    /// Where there is no such shard.
    #[inline]
    pub fn ring(&self, shard: ShardNo, lane: LaneNo) {
        assert!(usize::from(shard.0) < self.statuses.len());
        let page = usize::from(shard.0) * SESSION_PAGE_BYTES;
        // Release orders the submission before the place, acquire keeps the chain of threads.
        let tail = self.session.word(page + BELL_TAIL);
        let place = tail.fetch_add(1, Ordering::AcqRel);
        let bell = u64::from(tag(place)) << 32 | u64::from(lane.0);
        let slot = self.session.word(page + slot_at(place));
        slot.store(bell, Ordering::Release); // Partner: `ServerBells::next_bell`.
    }

    /// Whether the shard said it sleeps; asked after a fence that follows the bell.
    #[must_use]
    #[inline]
    pub fn sleeping(&self, shard: ShardNo) -> bool {
        let page = &self.statuses[usize::from(shard.0)];
        page.half(STATUS_SLEEPING).load(Ordering::Relaxed) != 0
    }

    /// Bells rung, ever.
    #[cfg(all(test, not(helios_loom)))]
    pub(super) fn rung(&self, shard: ShardNo) -> u64 {
        let at = usize::from(shard.0) * SESSION_PAGE_BYTES + BELL_TAIL;
        self.session.word(at).load(Ordering::Relaxed)
    }

    /// Sets where the next bell goes, so that a test reaches the wrap of the tags.
    #[cfg(test)]
    pub(super) fn start_at(&self, position: u64) {
        self.session
            .word(BELL_TAIL)
            .store(position, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl ServerBells {
    pub(super) fn start_at(&mut self, position: u64) {
        self.position = position;
    }
}

#[inline]
fn slot_at(place: u64) -> usize {
    BELLS + 8 * (place % BELL_SLOTS) as usize
}
