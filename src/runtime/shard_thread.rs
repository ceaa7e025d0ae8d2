//! The thread that turns a shard: polls while there is work, sleeps when there is none.
//!
//! Falling asleep: lanes are told to ring, the sleeping flags go up, then everything is looked at
//! once more. Whoever brings work puts it down first and looks at the flag second, so one of the
//! two sees the other (both have a sequentially consistent fence between).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::agent::bell::StatusPage;
use crate::agent::socket::FrameSocket;
use crate::io::ShardDisk;
use crate::runtime::RuntimeError;
use crate::runtime::control::ShardEvents;
#[cfg(not(helios_loom))]
use crate::runtime::sleeper::Sleeper;
use crate::shard::Shard;
#[cfg(helios_loom)]
use crate::shared::model::Sleeper;
use crate::shared::{AtomicBool as SharedBool, fence};
use crate::topology::{ShardSeat, bind_memory_to_node, pin_current_thread};

/// How long a shard alone on its core polls without finding work: longer than an agent takes
/// between two requests of a busy spell, short enough to cost an idle runtime nothing.
const POLL_ALONE: Duration = Duration::from_micros(500);
/// The same where others need the core.
const POLL_SHARED: Duration = Duration::from_micros(5);
/// Turns between two looks at the clock and at the stop flag: a look costs 20 ns, as much as a
/// turn that finds nothing.
const TURNS_PER_CLOCK: u32 = 8;

/// What wakes a shard that sleeps.
#[derive(Debug)]
pub(super) struct Doorbell {
    sleeping: SharedBool,
    sleeper: Sleeper,
    status: StatusPage,
    status_fd: OwnedFd,
    #[cfg(test)]
    planted: AtomicBool,
}

impl Doorbell {
    pub(super) fn new() -> Result<Self, RuntimeError> {
        let sleeper = Sleeper::new().map_err(|source| RuntimeError::Os {
            what: "making a shard's doorbell",
            source: source.into(),
        })?;
        let (status, status_fd) = StatusPage::create()?;
        Ok(Self {
            sleeping: SharedBool::new(false),
            sleeper,
            status,
            status_fd,
            #[cfg(test)]
            planted: AtomicBool::new(false),
        })
    }

    /// The page that tells agents whether the shard sleeps.
    pub(super) fn status_fd(&self) -> &OwnedFd {
        &self.status_fd
    }

    /// Wakes the shard if it sleeps. What it is to find was put down before.
    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst); // Partner: the fence in `fall_asleep`.
        if self.sleeping.load(Ordering::Relaxed) {
            self.sleeper.ring();
        }
    }

    /// The same, on a thread of the I/O core.
    pub(super) fn ring_from_io(&self) {
        #[cfg(test)]
        assert!(!self.planted.load(Ordering::Relaxed), "planted");
        self.ring();
    }

    /// Lets the next thread of the I/O core that rings die of it.
    #[cfg(test)]
    pub(super) fn plant(&self) {
        self.planted.store(true, Ordering::Relaxed);
    }

    /// Lets frames on a session's socket wake the shard, without a hop over the listener. That is
    /// the fast way only: where the listener reads the frame first, epoll drops the event here,
    /// and the listener rings.
    pub(super) fn watch(&self, socket: &FrameSocket) -> io::Result<()> {
        self.sleeper.watch(socket)
    }

    /// Sleeps, if a look after the flags are up finds nothing to do: it says for how long then.
    pub(super) fn rest(&self, look: impl FnOnce() -> Option<Option<Duration>>) {
        self.fall_asleep();
        if let Some(timeout) = look() {
            self.sleeper.sleep(timeout);
        }
        self.wake_up();
    }

    fn fall_asleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        self.status.set_sleeping(true);
        fence(Ordering::SeqCst); // Partner: the fence in `ring`.
    }

    fn wake_up(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
        self.status.set_sleeping(false);
    }
}

/// A running shard.
pub(super) struct ShardThread {
    thread: JoinHandle<()>,
    doorbell: Arc<Doorbell>,
}

impl ShardThread {
    /// Starts the thread of a shard in its seat. It ends when the shard was shut down, or when
    /// `stop` is up.
    pub(super) fn spawn(
        shard: Shard<ShardDisk>,
        seat: ShardSeat,
        doorbells: Vec<Arc<Doorbell>>,
        events: ShardEvents,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, RuntimeError> {
        let no = usize::from(events.shard().0);
        let doorbell = Arc::clone(&doorbells[no]);
        let body = move || {
            if let Some(core) = seat.core
                && !pin_current_thread(core)
            {
                tracing::warn!(shard = no, core = core.0, "the shard could not be pinned");
            }
            if let Some(node) = seat.node {
                // Best effort: a shard far from its memory is slow, not wrong.
                let _ = bind_memory_to_node(node);
            }
            let poll = if seat.alone { POLL_ALONE } else { POLL_SHARED };
            Turner {
                shard,
                doorbells,
                no,
                events,
                stop,
                poll,
            }
            .run();
        };
        let thread = std::thread::Builder::new()
            .name(format!("helios-shard-{no}"))
            .spawn(body)
            .map_err(|source| RuntimeError::Os {
                what: "starting a shard's thread",
                source,
            })?;
        Ok(Self { thread, doorbell })
    }

    /// Waits for the thread to end; whoever calls has given it a reason to.
    pub(super) fn join(self) {
        self.doorbell.ring();
        super::join(self.thread);
    }
}

/// Nanoseconds from some point, for what a shard times.
pub(super) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

struct Turner {
    shard: Shard<ShardDisk>,
    doorbells: Vec<Arc<Doorbell>>,
    no: usize,
    events: ShardEvents,
    stop: Arc<AtomicBool>,
    poll: Duration,
}

impl Turner {
    fn run(mut self) {
        let start = Instant::now();
        let clock = || start.elapsed().as_nanos() as u64;
        let poll_ns = self.poll.as_nanos() as u64;
        let mut now = clock();
        let mut last_work = now;
        let mut turns = 0;
        while !self.shard.is_stopped() {
            let mut worked = self.turn(now);
            turns += 1;
            if worked {
                last_work = now;
            } else {
                std::hint::spin_loop();
            }
            if turns % TURNS_PER_CLOCK != 0 {
                continue;
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if self.events.is_halted() {
                // Ends with the next turn.
                self.shard.halt();
                worked = true;
            }
            now = clock();
            if !worked && now - last_work > poll_ns {
                self.sleep(now);
                now = clock();
                last_work = now;
            }
        }
    }

    fn turn(&mut self, now: u64) -> bool {
        let worked = self.shard.step(now);
        while let Some(other) = self.shard.take_notified() {
            self.doorbells[usize::from(other.0)].ring();
        }
        let events = self.shard.take_events();
        if !events.is_empty() {
            self.events.send(events);
        }
        worked
    }

    fn sleep(&mut self, now: u64) {
        self.shard.before_sleep();
        let doorbell = Arc::clone(&self.doorbells[self.no]);
        doorbell.rest(|| {
            let stop = self.stop.load(Ordering::Acquire) || self.events.is_halted();
            if stop || self.turn(now) || self.shard.has_work() {
                return None;
            }
            let left = |at: u64| Duration::from_nanos(at.saturating_sub(now));
            Some(self.shard.deadline().map(left))
        });
    }
}
