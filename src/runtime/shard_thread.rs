//! The thread that turns a shard: polls while there is work, sleeps when there is none.
//!
//! Falling asleep: lanes are told to ring, the sleeping flags go up, then everything is looked at
//! once more. Whoever brings work puts it down first and looks at the flag second, so one of the
//! two sees the other (both have a sequentially consistent fence between).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll};

use crate::agent::bell::StatusPage;
use crate::agent::socket::FrameSocket;
use crate::io::ShardDisk;
use crate::runtime::RuntimeError;
use crate::runtime::control::ShardEvents;
use crate::shard::Shard;
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
    sleeping: AtomicBool,
    event: OwnedFd,
    epoll: OwnedFd,
    status: StatusPage,
    status_fd: OwnedFd,
    #[cfg(test)]
    planted: AtomicBool,
}

impl Doorbell {
    pub(super) fn new() -> Result<Self, RuntimeError> {
        let os = |source: rustix::io::Errno| RuntimeError::Os {
            what: "making a shard's doorbell",
            source: source.into(),
        };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags).map_err(os)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &event, data, epoll::EventFlags::IN).map_err(os)?;
        let (status, status_fd) = StatusPage::create()?;
        Ok(Self {
            sleeping: AtomicBool::new(false),
            event,
            epoll,
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
            // The counter can't be full: it is read at every wake.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
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
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        match epoll::add(
            &self.epoll,
            socket.as_fd(),
            epoll::EventData::new_u64(1),
            flags,
        ) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
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

    fn sleep(&self, timeout: Option<Duration>) {
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 16];
        // An interruption is as good as a wake.
        let woken = epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()).unwrap_or(0);
        if events[..woken].iter().any(|event| event.data.u64() == 0) {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
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
        doorbell.fall_asleep();
        let stop = self.stop.load(Ordering::Acquire) || self.events.is_halted();
        if !stop && !self.turn(now) && !self.shard.has_work() {
            let timeout = self
                .shard
                .deadline()
                .map(|at| Duration::from_nanos(at.saturating_sub(now)));
            doorbell.sleep(timeout);
        }
        doorbell.wake_up();
    }
}
