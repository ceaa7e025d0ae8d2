//! The shard's half of a lane.
//!
//! Floor 1, room `agent`. Region C is written by the client and believed in nothing; region S is
//! written here alone. No socket, no thread, no clock.
//!
//! Invariants
//! - positions, sizes and masks are private: nothing written to shared memory is read back.
//! - an entry is copied out once, by atomic words, and the copy is judged.
//! - every submission taken gets one completion, and its slot is free when it is taken: a client
//!   that would overfill the completion ring is malformed, so posting never waits.
//! - after [`Malformed`] the caller closes the lane's session.
//!
//! Cost: an empty look is one cache line. An operation reads one line (the entry) and its input,
//! writes one line (the completion) and its reply, and at the end of a batch reads one more (how
//! the client waits); one line more every `ring_slots` operations. System calls: none while the
//! client polls; one futex wake, or one frame, where it sleeps.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use crate::agent::entry::{Completion, Extent, Submission};
use crate::agent::layout::{
    C_ARENA, C_CONSUMED, C_HIT_TAIL, C_HITS, C_WAITING, ENTRY_BYTES, HIT_SLOTS, LANE_MAGIC,
    LaneSizes, PROTOCOL_VERSION, S_ARENA, S_ATTENTION, S_CLOSED, S_HEADER, S_VIEW, S_WAKES, tag,
};
use crate::agent::malformed::Malformed;
use crate::agent::{Attention, CloseReason, Waiting};
use crate::id::View;
use crate::shared::{Access, SharedError, SharedMemory, fence};

/// Most hits that one look may find reported.
const HITS_MAX: u64 = 1 << 40;

/// The descriptors of a new lane, for the client; the server may close them when they are sent.
#[derive(Debug)]
pub struct LaneFds {
    /// Region C, which the client writes.
    pub client: OwnedFd,
    /// Region S, which the client reads.
    pub server: OwnedFd,
}

/// What became of a client that waited for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a wake frame may have to be sent"]
pub enum WakeKind {
    /// It polls, or was woken already.
    None,
    /// It slept on the futex and was woken: one system call was made.
    Futexed,
    /// It waits on its socket: the caller sends a `Wake` frame for this lane.
    SocketByte,
}

/// The shard's half of a lane.
#[derive(Debug)]
pub struct ServerLane {
    client: SharedMemory,
    server: SharedMemory,
    sizes: LaneSizes,
    /// Submissions taken, ever.
    taken: u64,
    /// Completions posted, ever.
    posted: u64,
    /// Completions read by the client, as it last told.
    consumed: u64,
    /// Hit reports drained or lost, ever.
    hits: u64,
    /// The client's `waiting` word that was last answered by a wake.
    answered: u32,
    /// Wakes, ever (wrapping).
    wakes: u32,
    closed: bool,
}

impl ServerLane {
    /// Makes the regions of a lane, at [`Attention::Bell`].
    ///
    /// Cost: ten system calls; pages are allocated when first touched.
    ///
    /// # Errors
    /// The system's, when it is out of descriptors, mappings or memory.
    pub fn create(sizes: LaneSizes) -> Result<(Self, LaneFds), SharedError> {
        let (client, client_fd) =
            SharedMemory::create("helios-lane-c", sizes.client_bytes(), Access::ReadWrite)?;
        let (server, server_fd) =
            SharedMemory::create("helios-lane-s", sizes.server_bytes(), Access::ReadOnly)?;
        let header = [
            LANE_MAGIC,
            u32::from(PROTOCOL_VERSION),
            sizes.ring_slots(),
            sizes.output_bytes(),
        ];
        for (index, field) in header.into_iter().enumerate() {
            let at = S_HEADER + 4 * index;
            server.half(at).store(field, Ordering::Relaxed);
        }
        let lane = Self {
            client,
            server,
            sizes,
            taken: 0,
            posted: 0,
            consumed: 0,
            hits: 0,
            answered: 0,
            wakes: 0,
            closed: false,
        };
        let fds = LaneFds {
            client: client_fd,
            server: server_fd,
        };
        Ok((lane, fds))
    }

    /// The next submission, if there is one; its extents are valid for this lane's arenas.
    ///
    /// # Errors
    /// The rule that the client broke; its session is to be ended.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Submission>, Malformed> {
        let at = self.sizes.submissions_at() + self.slot(self.taken);
        // Acquire: the words of the entry, its input and the consumed count came before its tag.
        let head = self.client.word(at).load(Ordering::Acquire);
        let (found, expected) = (head as u32, tag(self.taken));
        if found != expected {
            let lap_ago = tag(self.taken.wrapping_sub(self.slots()));
            return if found == 0 || found == lap_ago {
                Ok(None)
            } else {
                Err(Malformed::Tag { expected, found })
            };
        }
        if self.taken - self.consumed >= self.slots() {
            self.reload_consumed()?;
        }
        let mut words = [head, 0, 0, 0, 0, 0, 0, 0];
        for (index, word) in words.iter_mut().enumerate().skip(1) {
            *word = self.client.word(at + 8 * index).load(Ordering::Relaxed);
        }
        let submission = Submission::decode(&words, &self.sizes)?;
        self.taken += 1;
        Ok(Some(submission))
    }

    /// Fetches the line of the next submission ahead of a [`take`](Self::take), where many lanes
    /// are looked at in turn.
    #[inline]
    pub fn prefetch(&self) {
        let at = self.sizes.submissions_at() + self.slot(self.taken);
        self.client.prefetch(at);
    }

    /// Copies input into private memory: `out.len()` bytes from the start of `extent`.
    ///
    /// The client may be writing them still: what comes out is to be judged after the copy.
    ///
    /// # Panics
    /// Where `out` is longer than the extent, or the extent is not one that `take` checked.
    #[inline]
    pub fn copy_in(&self, extent: Extent, out: &mut [u8]) {
        assert!(out.len() <= extent.len as usize && extent.fits(self.sizes.input_bytes()));
        self.client.copy_out(C_ARENA + extent.offset as usize, out);
    }

    /// Writes reply bytes, `skip` bytes into the submission's reply extent.
    ///
    /// # Panics
    /// Where they don't fit there.
    #[inline]
    pub fn write_reply(&self, reply: Extent, skip: u32, bytes: &[u8]) {
        let end = skip as usize + bytes.len();
        assert!(end <= reply.len as usize && reply.fits(self.sizes.output_bytes()));
        let at = S_ARENA + (reply.offset + skip) as usize;
        self.server.copy_in(at, bytes);
    }

    /// Posts the answer to a submission taken before. Answers may come in any order.
    ///
    /// # Panics
    /// Where there are more answers than submissions: a bug of ours.
    #[inline]
    pub fn complete(&mut self, completion: &Completion) {
        assert!(self.posted < self.taken, "a completion without submission");
        let at = self.sizes.completions_at() + self.slot(self.posted);
        let words = completion.encode(tag(self.posted));
        for (index, word) in words.into_iter().enumerate().skip(1) {
            self.server
                .word(at + 8 * index)
                .store(word, Ordering::Relaxed);
        }
        // Release: the reply and the words above; partner: `ClientLane::poll_completion`.
        self.server.word(at).store(words[0], Ordering::Release);
        self.posted += 1;
    }

    /// Submissions taken and not yet answered.
    #[must_use]
    #[inline]
    pub fn in_flight(&self) -> u32 {
        (self.taken - self.posted) as u32
    }

    /// Wakes the client if it sleeps; called once after a batch of [`complete`](Self::complete).
    ///
    /// Either the client's look at the ring, after it said it waits, sees the completions, or
    /// this load sees that it waits: both have a sequentially consistent fence between. The
    /// client says each time under a new number, so that one wait costs one wake at most.
    #[inline]
    pub fn wake_if_waiting(&mut self) -> WakeKind {
        fence(Ordering::SeqCst); // Partner: the fence in `ClientLane::say_waiting`.
        let word = self.client.half(C_WAITING).load(Ordering::Relaxed);
        if word == self.answered {
            return WakeKind::None;
        }
        match Waiting::of_word(word) {
            Waiting::Polling => WakeKind::None,
            Waiting::Futex => {
                self.answered = word;
                self.wake();
                WakeKind::Futexed
            }
            Waiting::Socket => {
                self.answered = word;
                WakeKind::SocketByte
            }
        }
    }

    /// Says how the client gets this shard's attention. True: a submission is there already, or
    /// something malformed; the caller looks at the lane again.
    ///
    /// Before it stops polling a lane, the shard calls this with `Bell` and takes again if told
    /// so. Either the client's load comes after this store, and it rings, or its entry is seen
    /// here (both sides fence).
    pub fn set_attention(&mut self, attention: Attention) -> bool {
        let word = self.server.half(S_ATTENTION);
        word.store(attention as u32, Ordering::Relaxed);
        fence(Ordering::SeqCst); // Partner: the first fence of `ClientLane::notify`.
        let at = self.sizes.submissions_at() + self.slot(self.taken);
        let found = self.client.word(at).load(Ordering::Acquire) as u32;
        found != 0 && found != tag(self.taken.wrapping_sub(self.slots()))
    }

    /// Hands out the newest hit reports (slot of the window, tag in it), and says how many older
    /// ones were lost. Reports are hints: the slot may be anything.
    ///
    /// # Errors
    /// A count that ran backwards.
    pub fn hits(&mut self, mut report: impl FnMut(u32, u32)) -> Result<u64, Malformed> {
        // Acquire pairs with the release store in `ClientLane::report_hit`.
        let found = self.client.word(C_HIT_TAIL).load(Ordering::Acquire);
        let from = self.hits;
        // No client hits a window that often between two looks; the counters must not wrap.
        if found < from || found - from > HITS_MAX {
            return Err(Malformed::Hits { from, found });
        }
        let first = from.max(found.saturating_sub(HIT_SLOTS));
        for position in first..found {
            let at = C_HITS + 8 * (position % HIT_SLOTS) as usize;
            let hit = self.client.word(at).load(Ordering::Relaxed);
            report(hit as u32, (hit >> 32) as u32);
        }
        self.hits = found;
        Ok(first - from)
    }

    /// Says in which view the lane reads the window from now on. Before the completion of whatever
    /// changed it is posted, so that no read after that completion finds a value of before.
    pub fn set_view(&mut self, view: View) {
        let word = self.server.half(S_VIEW);
        word.store(view.0, Ordering::Release); // Partner: `ClientLane::view`.
    }

    /// Closes the lane, for a reason that the client reads, and wakes it. Nothing is posted after.
    pub fn close(&mut self, reason: CloseReason) {
        let word = self.server.half(S_CLOSED);
        word.store(reason.to_code(), Ordering::Release); // Partner: `ClientLane::closed`.
        self.closed = true;
        self.wake();
    }

    /// Sizes of the rings and arenas.
    #[must_use]
    pub fn sizes(&self) -> &LaneSizes {
        &self.sizes
    }

    #[cold]
    fn reload_consumed(&mut self) -> Result<(), Malformed> {
        // Acquire: the client's reads of the slots that are now free; partner: `submit`.
        let found = self.client.word(C_CONSUMED).load(Ordering::Acquire);
        if found < self.consumed || found > self.posted {
            return Err(Malformed::Consumed {
                from: self.consumed,
                posted: self.posted,
                found,
            });
        }
        self.consumed = found;
        if self.taken - found >= self.slots() {
            let ring_slots = self.sizes.ring_slots();
            return Err(Malformed::Overfull { ring_slots });
        }
        Ok(())
    }

    fn wake(&mut self) {
        self.wakes = self.wakes.wrapping_add(1);
        let word = self.server.half(S_WAKES);
        word.store(self.wakes, Ordering::Release);
        self.server.wake(S_WAKES);
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
        (self.taken, self.posted, self.consumed) = (position, position, position);
    }

    /// The position of the next submission, for tests that forge it.
    #[cfg(all(test, not(helios_loom)))]
    pub(super) fn position(&self) -> u64 {
        self.taken
    }
}

impl Drop for ServerLane {
    /// Nobody serves the lane any more: its client must not wait, nor trust its window.
    fn drop(&mut self) {
        if !self.closed {
            self.close(if std::thread::panicking() {
                CloseReason::ShardFailed
            } else {
                CloseReason::ShuttingDown
            });
        }
    }
}
