//! A line between a shard and the I/O core: two SPSC rings and a bell.
//!
//! Floor 3, part of `io`. A shard has one line for what must stay in order (creates, syncs, seals)
//! and [`READ_LINES`] for cold reads, chosen by segment. No file is touched here.
//!
//! Invariants
//! - a line never has more requests unanswered than its rings have slots, so that an answer always
//!   finds room and the core never waits for a shard.
//! - nothing is pushed and no bell is rung by a shard after [`Bell::close`] returned: what was
//!   accepted before is all there is to drain.
//!
//! Cost of a submit: one ring push, three atomic read-modify-writes; a system call (futex or
//! eventfd) only if the core sleeps. A poll that finds nothing: one load.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::thread::Thread;

use atomic_waker::AtomicWaker;
use ringbuf::traits::{Consumer, Producer, Split};
use ringbuf::{HeapCons, HeapProd, HeapRb};

use crate::id::SegmentNo;
use crate::segment::{IoReply, IoRequest, Sequence};
use crate::shared::{AtomicBool, AtomicU8, AtomicU32, yield_now};

/// Requests of a shard that may be unanswered: creates, syncs and seals.
pub(super) const SERIAL_SLOTS: usize = 1024;
/// Cold reads that may be unanswered in one of a shard's read lines.
pub(super) const READ_SLOTS: usize = 128;
/// Read lines of a shard; a segment's reads all go through one.
pub(super) const READ_LINES: usize = 2;

/// Called after answers were pushed: wakes the shard if it sleeps.
///
/// The shard's side must, after it raised its sleeping flag, fence and poll once more; the
/// function must fence before it looks at the flag.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A reply, and with a good `Created` what was made.
pub(super) struct Answer {
    pub(super) reply: IoReply,
    pub(super) made: Option<Made>,
}

/// A new segment, opened, of `bytes`.
pub(super) struct Made {
    pub(super) file: std::fs::File,
    pub(super) bytes: u32,
}

/// Whether the core goes on, ends when its lines are empty, or ends at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Stop {
    No = 0,
    WhenEmpty = 1,
    Now = 2,
}

/// What the threads of the core share with its handle.
pub(super) struct Signal {
    stop: AtomicU8,
    lost: Wake,
}

impl Signal {
    /// `lost` is called where a thread of the core ends that nobody told to.
    pub(super) fn new(lost: Wake) -> Self {
        Self {
            stop: AtomicU8::new(Stop::No as u8),
            lost,
        }
    }

    pub(super) fn stop(&self) -> Stop {
        // Acquire: pairs with `set`, after which every line was closed.
        match self.stop.load(Ordering::Acquire) {
            0 => Stop::No,
            1 => Stop::WhenEmpty,
            _ => Stop::Now,
        }
    }

    pub(super) fn set(&self, stop: Stop) {
        self.stop.store(stop as u8, Ordering::Release);
    }
}

#[cfg(test)]
impl Default for Signal {
    fn default() -> Self {
        Self::new(Arc::new(|| ()))
    }
}

/// Held by a thread of the core as long as it runs.
pub(super) struct Watch(pub(super) Arc<Signal>);

impl Drop for Watch {
    fn drop(&mut self) {
        if self.0.stop() == Stop::No {
            (self.0.lost)();
        }
    }
}

/// Wakes the side of the core that serves a line.
#[derive(Default)]
pub(super) struct Bell {
    waker: AtomicWaker,
    /// Set where a plain thread serves the line; else `waker` is the executor's door.
    thread: OnceLock<Thread>,
    /// Shards inside [`Bell::enter`]. With `closed` it is Dekker's pattern: each side writes its
    /// own and then reads the other's, all SeqCst.
    entered: AtomicU32,
    closed: AtomicBool,
}

impl Bell {
    pub(super) fn ring(&self) {
        match self.thread.get() {
            Some(thread) => thread.unpark(),
            None => self.waker.wake(),
        }
    }

    /// Names the thread that serves the line; before the shard's end is given away.
    pub(super) fn serve_by(&self, thread: &Thread) {
        // Named once, by the start of the core.
        let _ = self.thread.set(thread.clone());
    }

    /// Refuses all further submits, and waits for those that are under way.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        while self.entered.load(Ordering::SeqCst) != 0 {
            yield_now();
        }
    }

    fn enter(&self) -> Option<Entered<'_>> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        (!self.closed.load(Ordering::SeqCst)).then_some(entered)
    }

    /// Asks for a wake at the next ring. Look again after this.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}

struct Entered<'a>(&'a Bell);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.entered.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Makes a line of `slots`.
pub(super) fn line(slots: usize, wake: Wake, signal: &Arc<Signal>) -> (ShardEnd, CoreEnd) {
    let (request_in, request_out) = HeapRb::new(slots).split();
    let (answer_in, answer_out) = HeapRb::new(slots).split();
    let bell = Arc::new(Bell::default());
    let shard = ShardEnd {
        requests: request_in,
        answers: answer_out,
        bell: Arc::clone(&bell),
        unanswered: 0,
        slots,
    };
    let inbox = Inbox {
        requests: request_out,
        bell,
        signal: Arc::clone(signal),
    };
    let outbox = Outbox {
        answers: answer_in,
        wake,
    };
    (shard, CoreEnd { inbox, outbox })
}

/// The shard's end of a line.
pub(super) struct ShardEnd {
    requests: HeapProd<IoRequest>,
    answers: HeapCons<Answer>,
    bell: Arc<Bell>,
    unanswered: usize,
    slots: usize,
}

impl ShardEnd {
    /// Gives the request back when the line is full or the core has ended.
    pub(super) fn submit(&mut self, request: IoRequest) -> Result<(), IoRequest> {
        if !self.has_room() {
            return Err(request);
        }
        let Some(_entered) = self.bell.enter() else {
            return Err(request);
        };
        self.requests.try_push(request)?;
        self.unanswered += 1;
        self.bell.ring();
        Ok(())
    }

    pub(super) fn has_room(&self) -> bool {
        self.unanswered < self.slots
    }

    pub(super) fn poll(&mut self) -> Option<Answer> {
        let answer = self.answers.try_pop()?;
        self.unanswered -= 1;
        Some(answer)
    }
}

/// The core's end of a line.
pub(super) struct CoreEnd {
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
}

/// Requests of a line.
pub(super) struct Inbox {
    requests: HeapCons<IoRequest>,
    bell: Arc<Bell>,
    signal: Arc<Signal>,
}

impl Inbox {
    pub(super) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    pub(super) fn pop(&mut self) -> Option<IoRequest> {
        self.requests.try_pop()
    }

    /// Takes the next request if it is a sync of `segment`.
    pub(super) fn pop_sync_of(&mut self, segment: SegmentNo) -> Option<Sequence> {
        match self.requests.try_peek()? {
            IoRequest::Sync { segment: next, .. } if *next == segment => {}
            _ => return None,
        }
        match self.requests.try_pop()? {
            IoRequest::Sync { upto, .. } => Some(upto),
            _ => unreachable!("only this end takes requests out"),
        }
    }

    /// What to do now. Where the answer is [`Next::Wait`], the next ring calls `waker`.
    pub(super) fn next(&mut self, waker: &Waker) -> Next {
        if self.signal.stop() == Stop::Now {
            return Next::End;
        }
        if let Some(request) = self.pop() {
            return Next::Serve(request);
        }
        self.bell.register(waker);
        // The order matters: once a stop is seen, whatever was accepted is in the ring.
        let stop = self.signal.stop();
        match (self.pop(), stop) {
            (Some(request), _) => Next::Serve(request),
            (None, Stop::No) => Next::Wait,
            (None, _) => Next::End,
        }
    }
}

/// What the server of a line is to do.
pub(super) enum Next {
    Serve(IoRequest),
    Wait,
    End,
}

/// Answers of a line.
pub(super) struct Outbox {
    answers: HeapProd<Answer>,
    wake: Wake,
}

impl Outbox {
    /// Pushes without waking; [`Outbox::wake`] after the last of a batch.
    pub(super) fn push(&mut self, reply: IoReply, made: Option<Made>) {
        let pushed = self.answers.try_push(Answer { reply, made });
        assert!(pushed.is_ok(), "more answers than requests");
    }

    pub(super) fn wake(&self) {
        (self.wake)();
    }
}
