//! The client's half of a lane.
//!
//! Floor 1, room `agent`. Used by one thread at a time (`Send`, not `Sync`). Holds no socket:
//! it says when a frame must be sent, and is told when one came.
//!
//! Invariants
//! - at most `ring_slots` submissions are without their completion read, and none is written
//!   before the count of completions read that makes room for it.
//! - an entry's tag is written last; a completion's is read first.
//! - region S is mapped read-only; what it holds is checked all the same, never trusted to index.
//!
//! Cost: a submission writes one cache line and its input; notifying costs a fence and one line
//! that the shard rarely writes; a completion reads one line and the reply. System calls: none
//! while the shard polls the lane; a frame where the shard sleeps, a futex wait where we do.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::agent::arena::{Arena, Block};
use crate::agent::bell::ClientBells;
use crate::agent::entry::{Completion, Extent, Submission};
use crate::agent::layout::{
    C_ARENA, C_CONSUMED, C_HIT_TAIL, C_HITS, C_WAITING, ENTRY_BYTES, HIT_SLOTS, LANE_MAGIC,
    LaneSizes, PROTOCOL_VERSION, S_ARENA, S_ATTENTION, S_CLOSED, S_HEADER, S_VIEW, S_WAKES, tag,
};
use crate::agent::malformed::Malformed;
use crate::agent::{Attention, CloseReason, Waiting};
use crate::id::{LaneNo, ShardNo, View};
use crate::shared::{Access, SharedError, SharedMemory, fence};

/// Looks at the ring between two looks at the clock, while spinning.
const LOOKS_PER_CLOCK: u32 = 32;

/// A lane that can't be used, or no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// A region can't be mapped.
    #[error("lane region: {0}")]
    Shared(#[from] SharedError),
    /// Region S doesn't say what the `Attached` frame said.
    #[error(
        "lane region S: word {index} is {found:#x}, {expected:#x} expected: client and runtime differ, install the same version"
    )]
    Header {
        /// Which u32 of the header.
        index: usize,
        /// What the frame, or this version, says.
        expected: u32,
        /// What is there.
        found: u32,
    },
    /// The server closed the lane.
    #[error("lane closed by the runtime: {0}")]
    Closed(CloseReason),
    /// A completion that this version can't read.
    #[error(
        "completion that this client can't read (word 0 is {head:#018x}): install the runtime's version"
    )]
    Garbled {
        /// Word 0 of the entry.
        head: u64,
    },
    /// The system refused to let us sleep.
    #[error("waiting for a completion: {0}")]
    Os(#[from] io::Error),
}

/// A submission that was not written; the lane is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Every slot of the ring has a request whose completion was not read: poll first.
    #[error("{ring_slots} requests are under way: read completions first")]
    Full {
        /// Entries of the ring.
        ring_slots: u32,
    },
    /// The server would end the session over it.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Largest block whose pages stay resident after use: a system call per value is little for
/// larger ones, and thousands of lanes may have had one each.
const INPUT_KEPT_BYTES: u32 = 16 << 10;

/// What must be done so that the shard sees what was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the shard may be asleep"]
pub enum Notify {
    /// Nothing: it polls the lane, or its bells.
    Nothing,
    /// Send a `Bell` frame for the lane's shard. If the socket is full, bells enough are in it.
    SendBell,
}

/// The client's half of a lane.
#[derive(Debug)]
pub struct ClientLane {
    client: SharedMemory,
    server: SharedMemory,
    sizes: LaneSizes,
    lane: LaneNo,
    shard: ShardNo,
    submitted: u64,
    consumed: u64,
    /// The `consumed` that the server was told.
    published: u64,
    hits: u64,
    /// Number of the last wait, in the upper 30 bits of `waiting`.
    waits: u32,
    input: Arena,
    output: Arena,
    /// One thread at a time: all counts are plain.
    not_sync: PhantomData<Cell<()>>,
}

impl ClientLane {
    /// Maps what came with an `Attached`.
    ///
    /// # Errors
    /// Descriptors that are not what was promised.
    pub fn map(
        client: impl AsFd,
        server: impl AsFd,
        sizes: LaneSizes,
        lane: LaneNo,
        shard: ShardNo,
    ) -> Result<Self, LaneError> {
        let client = SharedMemory::map(client, sizes.client_bytes(), Access::ReadWrite)?;
        let server = SharedMemory::map(server, sizes.server_bytes(), Access::ReadOnly)?;
        let header = [
            LANE_MAGIC,
            u32::from(PROTOCOL_VERSION),
            sizes.ring_slots(),
            sizes.output_bytes(),
        ];
        for (index, expected) in header.into_iter().enumerate() {
            let found = server.half(S_HEADER + 4 * index).load(Ordering::Relaxed);
            if found != expected {
                return Err(LaneError::Header {
                    index,
                    expected,
                    found,
                });
            }
        }
        // A key and a value each, if the caller doesn't put both into one block.
        let blocks_max = 2 * sizes.ring_slots() as usize;
        Ok(Self {
            client,
            server,
            sizes,
            lane,
            shard,
            submitted: 0,
            consumed: 0,
            published: 0,
            hits: 0,
            waits: 0,
            input: Arena::new(sizes.input_bytes(), blocks_max),
            output: Arena::new(sizes.output_bytes(), blocks_max),
            not_sync: PhantomData,
        })
    }

    /// Writes a submission, which the shard may take from now on; call
    /// [`notify`](Self::notify) after the last of a batch.
    ///
    /// # Errors
    /// The ring is full, or the submission breaks a rule; nothing was written.
    #[inline]
    pub fn submit(&mut self, submission: &Submission) -> Result<(), SubmitError> {
        submission.check(&self.sizes)?;
        if self.in_flight() == self.sizes.ring_slots() {
            let ring_slots = self.sizes.ring_slots();
            return Err(SubmitError::Full { ring_slots });
        }
        if self.submitted - self.published == self.slots() {
            // The server's count has run out too: tell it now, before the entry's tag. Release:
            // our reads of the slots it will write again.
            let word = self.client.word(C_CONSUMED);
            word.store(self.consumed, Ordering::Release);
            self.published = self.consumed;
        }
        let at = self.sizes.submissions_at() + self.slot(self.submitted);
        let words = submission.encode(tag(self.submitted));
        for (index, word) in words.into_iter().enumerate().skip(1) {
            self.client
                .word(at + 8 * index)
                .store(word, Ordering::Relaxed);
        }
        // Release: the words above, and the input; partner: `ServerLane::take`.
        self.client.word(at).store(words[0], Ordering::Release);
        self.submitted += 1;
        Ok(())
    }

    /// Makes sure that the shard sees all that was submitted: rings, if the shard doesn't poll
    /// this lane, and says whether a frame is needed.
    ///
    /// Once per batch. Two races are closed here: the shard stops polling the lane (first fence,
    /// against `ServerLane::set_attention`), it goes to sleep (second fence, against
    /// `StatusPage::set_sleeping`).
    #[inline]
    pub fn notify(&self, bells: &ClientBells) -> Notify {
        fence(Ordering::SeqCst); // Partner: the fence in `ServerLane::set_attention`.
        if self.attention() == Attention::Polled {
            return Notify::Nothing;
        }
        bells.ring(self.shard, self.lane);
        fence(Ordering::SeqCst); // Partner: the fence in `StatusPage::set_sleeping`.
        if bells.sleeping(self.shard) {
            Notify::SendBell
        } else {
            Notify::Nothing
        }
    }

    /// The next completion, if there is one. Doesn't look whether the lane was closed.
    ///
    /// # Errors
    /// An entry of another version.
    #[inline]
    pub fn poll_completion(&mut self) -> Result<Option<Completion>, LaneError> {
        let at = self.sizes.completions_at() + self.slot(self.consumed);
        // Acquire: the words and the reply; partner: `ServerLane::complete`.
        let head = self.server.word(at).load(Ordering::Acquire);
        if head as u32 != tag(self.consumed) || self.in_flight() == 0 {
            return Ok(None);
        }
        let mut words = [head, 0, 0, 0, 0, 0, 0, 0];
        for (index, word) in words.iter_mut().enumerate().skip(1) {
            *word = self.server.word(at + 8 * index).load(Ordering::Relaxed);
        }
        let Some(completion) = Completion::decode(&words) else {
            return Err(LaneError::Garbled { head });
        };
        self.consumed += 1;
        Ok(Some(completion))
    }

    /// Waits for the next completion: polls for `spin`, then sleeps. `None`: `timeout` (which
    /// counts from the call) is over. A dead runtime wakes nobody: the caller looks at its
    /// socket after a timeout.
    ///
    /// # Errors
    /// The lane was closed and every completion posted before was read; an entry of another
    /// version; a system that lets nobody sleep.
    pub fn wait(
        &mut self,
        spin: Duration,
        timeout: Duration,
    ) -> Result<Option<Completion>, LaneError> {
        if let Some(found) = self.poll_completion()? {
            return Ok(Some(found));
        }
        let start = Instant::now();
        while start.elapsed() < spin.min(timeout) {
            for _ in 0..LOOKS_PER_CLOCK {
                std::hint::spin_loop();
                if let Some(found) = self.poll_completion()? {
                    return Ok(Some(found));
                }
            }
        }
        loop {
            // The count of wakes before the look, so that a wake in between ends the sleep.
            let wakes = self.server.half(S_WAKES).load(Ordering::Acquire);
            self.say_waiting(Waiting::Futex);
            let looked = self.look();
            let left = timeout.saturating_sub(start.elapsed());
            if !matches!(looked, Ok(None)) || left.is_zero() {
                self.disarm();
                return looked;
            }
            let slept = self.server.wait(S_WAKES, wakes, left);
            self.disarm();
            slept?;
        }
    }

    /// Asks for one `Wake` frame on the socket when something completes. True: something is
    /// there already (or the lane is closed), and nothing was asked for.
    ///
    /// One frame comes per call at most; after it, poll until there is nothing and arm again. A
    /// frame may come with nothing to read, if it crossed the last poll.
    pub fn arm_event(&mut self) -> bool {
        self.say_waiting(Waiting::Socket);
        let at = self.sizes.completions_at() + self.slot(self.consumed);
        let head = self.server.word(at).load(Ordering::Acquire);
        let ready = head as u32 == tag(self.consumed) || self.closed().is_some();
        if ready {
            self.disarm();
        }
        ready
    }

    /// Takes back [`arm_event`](Self::arm_event): the client polls.
    pub fn disarm(&mut self) {
        let word = self.client.half(C_WAITING);
        word.store(Waiting::Polling as u32, Ordering::Relaxed);
    }

    /// Why the server closed the lane, if it did. Completions posted before can still be read.
    #[must_use]
    pub fn closed(&self) -> Option<CloseReason> {
        // Acquire pairs with the release store in `ServerLane::close`.
        let code = self.server.half(S_CLOSED).load(Ordering::Acquire);
        (code != 0).then(|| CloseReason::from_code(code))
    }

    /// The view in which to read the window now.
    #[must_use]
    #[inline]
    pub fn view(&self) -> View {
        // Acquire pairs with the release store in `ServerLane::set_view`.
        View(self.server.half(S_VIEW).load(Ordering::Acquire))
    }

    /// Space in the input arena; `None`: none until something is freed.
    #[inline]
    pub fn alloc_input(&mut self, len: u32) -> Option<Block> {
        self.input.alloc(len)
    }

    /// Gives input space back, once the completion of its submission was read.
    #[inline]
    pub fn free_input(&mut self, block: Block) {
        let Extent { offset, len } = block.extent();
        self.input.free(block);
        if len > INPUT_KEPT_BYTES {
            // What a large value took would stay resident for as long as the lane is attached.
            self.client.discard(C_ARENA + offset as usize, len as usize);
        }
    }

    /// Space in the output arena; `None`: none until something is freed.
    #[inline]
    pub fn alloc_output(&mut self, len: u32) -> Option<Block> {
        self.output.alloc(len)
    }

    /// Gives reply space back, once the completion of its submission and the reply were read.
    #[inline]
    pub fn free_output(&mut self, block: Block) {
        self.output.free(block);
    }

    /// Writes input, `bytes` at the start of `extent`.
    ///
    /// # Panics
    /// Where they don't fit there, or the extent is not in the arena.
    #[inline]
    pub fn write_input(&mut self, extent: Extent, bytes: &[u8]) {
        assert!(bytes.len() <= extent.len as usize && extent.fits(self.sizes.input_bytes()));
        let at = C_ARENA + extent.offset as usize;
        self.client.copy_in(at, bytes);
    }

    /// Copies a reply out: `out.len()` bytes from the start of `extent`.
    ///
    /// # Panics
    /// Where `out` is longer than the extent, or the extent is not in the arena.
    #[inline]
    pub fn read_output(&self, extent: Extent, out: &mut [u8]) {
        assert!(out.len() <= extent.len as usize && extent.fits(self.sizes.output_bytes()));
        self.server.copy_out(S_ARENA + extent.offset as usize, out);
    }

    /// Tells the shard that a value was read from `slot` of the window, under `tag`. Lossy: the
    /// shard reads the newest 256 when it looks at the lane.
    #[inline]
    pub fn report_hit(&mut self, slot: u32, tag: u32) {
        let at = C_HITS + 8 * (self.hits % HIT_SLOTS) as usize;
        let hit = u64::from(slot) | u64::from(tag) << 32;
        self.client.word(at).store(hit, Ordering::Relaxed);
        self.hits += 1;
        let tail = self.client.word(C_HIT_TAIL);
        tail.store(self.hits, Ordering::Release); // Partner: `ServerLane::hits`.
    }

    /// Submissions whose completion was not read.
    #[must_use]
    #[inline]
    pub fn in_flight(&self) -> u32 {
        (self.submitted - self.consumed) as u32
    }

    /// Sizes of the rings and arenas.
    #[must_use]
    pub fn sizes(&self) -> &LaneSizes {
        &self.sizes
    }

    /// The lane's number in its session.
    #[must_use]
    pub fn lane(&self) -> LaneNo {
        self.lane
    }

    /// The shard that owns the lane's agent.
    #[must_use]
    pub fn shard(&self) -> ShardNo {
        self.shard
    }

    /// A completion, or the reason why there will be no more.
    fn look(&mut self) -> Result<Option<Completion>, LaneError> {
        if let Some(found) = self.poll_completion()? {
            return Ok(Some(found));
        }
        let Some(reason) = self.closed() else {
            return Ok(None);
        };
        // Posted between the two looks, before it closed.
        match self.poll_completion()? {
            Some(found) => Ok(Some(found)),
            None => Err(LaneError::Closed(reason)),
        }
    }

    /// Stores how we wait, under a new number; the caller then looks at the ring once more.
    fn say_waiting(&mut self, waiting: Waiting) {
        self.waits = self.waits.wrapping_add(1);
        let word = self.client.half(C_WAITING);
        word.store(self.waits << 2 | waiting as u32, Ordering::Relaxed);
        fence(Ordering::SeqCst); // Partner: the fence in `ServerLane::wake_if_waiting`.
    }

    #[inline]
    fn attention(&self) -> Attention {
        let word = self.server.half(S_ATTENTION);
        Attention::of_word(word.load(Ordering::Relaxed))
    }

    #[inline]
    fn slots(&self) -> u64 {
        u64::from(self.sizes.ring_slots())
    }

    #[inline]
    fn slot(&self, position: u64) -> usize {
        (position & (self.slots() - 1)) as usize * ENTRY_BYTES
    }

    /// Starts all counts elsewhere, so that a test reaches the wrap of the tags.
    #[cfg(test)]
    pub(super) fn start_at(&mut self, position: u64) {
        (self.submitted, self.consumed, self.published) = (position, position, position);
        let word = self.client.word(C_CONSUMED);
        word.store(position, Ordering::Relaxed);
    }

    /// Makes the client tell how much it has read one submission later than it must.
    #[cfg(all(test, helios_loom))]
    pub(super) fn tell_late(&mut self) {
        self.published += 1;
    }

    /// The region the client writes, for tests that write it wrongly.
    #[cfg(all(test, not(helios_loom)))]
    pub(crate) fn region(&self) -> &SharedMemory {
        &self.client
    }
}
