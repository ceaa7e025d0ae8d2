//! The listener: accepts processes on the socket, opens their sessions and lanes, notices when
//! they die.
//!
//! One thread, asleep in epoll. It waits for nothing else: what a session asks of a shard goes on
//! its way, and the answer is a notice of later.
//!
//! Invariants
//! - a process that is gone loses its session at once, whoever else holds its socket: the kernel
//!   makes the handle of the process readable, and closes the socket.
//! - a frame that can't be understood ends its session with a reason, and hurts nobody else.
//! - a shard that is slow, or gone, delays those only who ask it for something.
//! - a user whom no rule admits costs a descriptor for as long as it takes to say no.
//!
//! Descriptors of a session: its socket, and the handle of its process.

#[cfg(fuzzing)]
#[path = "../../fuzz/inside/handshake.rs"]
pub(super) mod fuzzing;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::SocketFlags;

use crate::agent::CloseReason;
use crate::agent::frame::{FRAME_BYTES_MAX, Frame, FrameError, RefusalCode};
use crate::agent::socket::{FrameSocket, Peer, SocketError};
use crate::id::{SessionNo, ShardNo};
use crate::metrics::ShardCounters;
use crate::runtime::control::{ControlPlane, Events, Notice, Refusal};
use crate::runtime::descriptors::{keep_some, short};
use crate::runtime::guest::{Guest, SPEAKS};
use crate::runtime::handshakes::Handshakes;
use crate::runtime::health::{Failure, Health};
use crate::runtime::lines::Lines;
use crate::runtime::place::{ListenError, bind};
use crate::shard::Event;

/// Frames taken from one session before the next has its turn.
const FRAMES_PER_TURN: usize = 64;
/// Connections accepted before the sessions have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Sessions at once.
const SESSIONS_MAX: usize = 1 << 16;
/// Of these, connections of one user who is not the runtime's own: each may cost three descriptors, and
/// nobody's are to be used up by another.
const SESSIONS_PER_USER_MAX: usize = 1 << 10;
/// How long nobody is accepted after there was no descriptor for one.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How often a full queue of a shard is tried again.
const CATCH_UP_EVERY: Duration = Duration::from_millis(10);

const LISTEN: u64 = 0;
const WAKE: u64 = 1;
const FIRST_SESSION: u64 = 2;
/// Beside a session's key: the handle of its process.
const PROCESS: u64 = 1 << 63;

/// The running listener.
pub(super) struct Listener {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
}

impl Listener {
    /// Binds the socket and starts the thread.
    pub(super) fn start(
        path: &Path,
        control: Arc<ControlPlane>,
        events: Events,
        counters: Arc<[ShardCounters]>,
    ) -> Result<Self, ListenError> {
        let socket = bind(path, control.has_rules())?;
        let os = |source: io::Error| ListenError::Os {
            path: path.to_owned(),
            source,
        };
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| os(errno.into()))?;
        for (fd, data) in [(socket.as_fd(), LISTEN), (events.wake.as_fd(), WAKE)] {
            let data = epoll::EventData::new_u64(data);
            epoll::add(&poll, fd, data, epoll::EventFlags::IN).map_err(|errno| os(errno.into()))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Arc::clone(&events.wake);
        let thread = Thread {
            control,
            counters,
            events,
            socket,
            poll,
            sessions: HashMap::new(),
            by_no: HashMap::new(),
            handshakes: Handshakes::default(),
            lines: Lines::default(),
            told_of_short: false,
            waiting: VecDeque::new(),
            is_behind: false,
            rests_until: None,
            next: FIRST_SESSION,
            stop: Arc::clone(&stop),
            path: path.to_owned(),
        };
        let watch = Watch {
            health: thread.control.health().clone(),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("helios-listener".into())
            .spawn(move || {
                let _watch = watch;
                thread.run();
            })
            .map_err(os)?;
        Ok(Self { thread, stop, wake })
    }

    /// Ends the thread: nobody is accepted any more; the sessions end.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        super::join(self.thread);
    }
}

fn is_short(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Dropped as the last of the thread: tells where nobody asked for its end.
struct Watch {
    health: Health,
    stop: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.stop.load(Ordering::Acquire) {
            self.health.tell(Failure::Listener);
        }
    }
}

struct Thread {
    control: Arc<ControlPlane>,
    /// Of all shards, and behind them its own.
    counters: Arc<[ShardCounters]>,
    events: Events,
    socket: OwnedFd,
    poll: OwnedFd,
    sessions: HashMap<u64, Guest>,
    /// Keys of the open sessions.
    by_no: HashMap<SessionNo, u64>,
    handshakes: Handshakes,
    lines: Lines,
    /// That descriptors are short was said since one was had.
    told_of_short: bool,
    /// Requests that may still wait for their shard: when they are overdue, in that order.
    waiting: VecDeque<(Instant, u64, u64)>,
    /// Commands wait for room in a shard's queue.
    is_behind: bool,
    /// Until then nobody is accepted: there was no descriptor.
    rests_until: Option<Instant>,
    next: u64,
    stop: Arc<AtomicBool>,
    path: PathBuf,
}

impl Thread {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let timeout = self.timeout();
            if let Err(errno) = self.turn(timeout.as_ref()) {
                tracing::error!(%errno, "the listener can't wait; it stops");
                break;
            }
            if timeout.is_some() {
                self.take_time(Instant::now());
            }
        }
        self.close_all();
    }

    /// Waits for at most so long, and takes in what has come.
    fn turn(&mut self, timeout: Option<&rustix::event::Timespec>) -> rustix::io::Result<()> {
        let mut ready = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 64];
        let found = match epoll::wait(&self.poll, &mut ready[..], timeout) {
            Ok(found) => found,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno),
        };
        for event in &ready[..found] {
            match event.data.u64() {
                LISTEN => self.accept(),
                WAKE => self.take_notices(),
                process if process & PROCESS != 0 => {
                    self.forget(process & !PROCESS, CloseReason::Detached);
                }
                key => self.take_event(key, event.flags),
            }
        }
        Ok(())
    }

    /// How long nothing has to be done by itself; `None`: for good.
    fn timeout(&mut self) -> Option<rustix::event::Timespec> {
        while let Some(&(_, key, ticket)) = self.waiting.front()
            && !self
                .sessions
                .get(&key)
                .is_some_and(|guest| guest.awaits(ticket))
        {
            self.waiting.pop_front();
        }
        let overdue = self.waiting.front().map(|(deadline, ..)| *deadline);
        let now = Instant::now();
        let catch_up = self.is_behind.then(|| now + CATCH_UP_EVERY);
        let times = [
            overdue,
            self.handshakes.deadline(),
            catch_up,
            self.rests_until,
        ];
        let left = times
            .into_iter()
            .flatten()
            .min()?
            .saturating_duration_since(now);
        Some(rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        })
    }

    fn take_time(&mut self, now: Instant) {
        if self.is_behind {
            self.is_behind = self.control.catch_up();
        }
        if self.rests_until.take_if(|until| *until <= now).is_some() {
            self.listen(epoll::EventFlags::IN);
        }
        while let Some(key) = self.handshakes.overdue(now) {
            self.turn_away(key, "no Hello came in time; connect and say Hello at once");
        }
        while let Some(&(deadline, key, _)) = self.waiting.front()
            && deadline <= now
        {
            self.waiting.pop_front();
            if let Some(guest) = self.sessions.get_mut(&key) {
                guest.expire(&self.control, now);
                self.send_answers(key);
            }
        }
    }

    fn close_all(&mut self) {
        // New runtimes may bind from here on.
        let _ = std::fs::remove_file(&self.path);
        for (_, mut guest) in self.sessions.drain() {
            let reason = CloseReason::ShuttingDown;
            let text = "shutting down";
            let _ = guest.socket.send(0, &Frame::Closing { reason, text }, &[]);
            if let Some(seat) = &mut guest.seat {
                self.control.end_session(seat, reason);
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = match rustix::net::accept_with(&self.socket, flags) {
                Ok(fd) => fd,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(errno) => {
                    // Out of descriptors: those who wait are accepted when some are free again. The socket
                    // stays readable meanwhile, and the sessions have their turns.
                    if !std::mem::replace(&mut self.told_of_short, true)
                        && let Some(held_back) = self.lines.admit(None, Instant::now())
                    {
                        tracing::warn!(%errno, held_back, "no process can be accepted; raise `ulimit -n`");
                    }
                    self.rests_until = Some(Instant::now() + ACCEPT_REST);
                    return self.listen(epoll::EventFlags::empty());
                }
            };
            self.admit(FrameSocket::from_fd(fd));
        }
    }

    /// What is waited for on the socket that processes connect to.
    fn listen(&self, flags: epoll::EventFlags) {
        let data = epoll::EventData::new_u64(LISTEN);
        // It can't fail for a socket that is in there.
        if let Err(errno) = epoll::modify(&self.poll, &self.socket, data, flags) {
            tracing::error!(%errno, "the listener can't rest");
        }
    }

    /// Whether descriptors are so few that those who are there need them.
    fn descriptors(&mut self, socket: &FrameSocket) -> Result<(), Refusal> {
        let kept = keep_some(socket, self.control.shards());
        let told = std::mem::replace(&mut self.told_of_short, kept.is_err());
        if let Err(refusal) = &kept
            && !told
            && let Some(held_back) = self.lines.admit(None, Instant::now())
        {
            tracing::warn!(text = refusal.text, held_back, "processes are refused");
        }
        kept
    }

    /// Takes a connection in, or turns it away before it costs anything.
    fn admit(&mut self, socket: FrameSocket) {
        let Ok(peer) = socket.peer() else { return };
        let refusal = if !self.control.admits(peer.uid, peer.gid) {
            let text = format!(
                "user {} may not attach to any agent; the runtime's [[access]] rules decide",
                peer.uid
            );
            Some(Refusal::new(RefusalCode::NotAllowed, text))
        } else if self.sessions.len() >= SESSIONS_MAX {
            let text = "too many processes are attached; detach some";
            Some(Refusal::new(RefusalCode::TooMany, text))
        } else if self.is_crowded_by(peer.uid) {
            let text = "too many processes of this user are attached; detach some";
            Some(Refusal::new(RefusalCode::TooMany, text))
        } else {
            self.descriptors(&socket).err()
        };
        let key = self.next;
        let guest = Guest::new(key, socket, peer);
        if let Some(refusal) = refusal {
            self.counters().refused.add(1);
            tracing::debug!(
                uid = peer.uid,
                pid = peer.pid,
                text = refusal.text,
                "refused"
            );
            let _ = guest.refuse(0, &refusal);
            return;
        }
        let data = epoll::EventData::new_u64(key);
        if epoll::add(&self.poll, guest.socket.as_fd(), data, SPEAKS).is_err() {
            return;
        }
        self.next += 1;
        self.sessions.insert(key, guest);
        if let Some(oldest) = self.handshakes.begin(key, peer.uid, Instant::now()) {
            self.turn_away(
                oldest,
                "too many connections without a Hello; this was the oldest",
            );
        }
        // Most have said it already: they never count against others.
        self.take_frames(key);
    }

    /// Whether a user other than the runtime's own holds its share of the sessions.
    fn is_crowded_by(&self, uid: u32) -> bool {
        let of_user = |guest: &&Guest| guest.peer.uid == uid;
        uid != rustix::process::getuid().as_raw()
            && self.sessions.values().filter(of_user).count() >= SESSIONS_PER_USER_MAX
    }

    /// Hangs up on a connection that has no session.
    fn turn_away(&mut self, key: u64, text: &str) {
        self.counters().refused.add(1);
        if let Some(guest) = self.sessions.get(&key) {
            tracing::debug!(uid = guest.peer.uid, pid = guest.peer.pid, text, "refused");
            let _ = guest.refuse(0, &Refusal::new(RefusalCode::TooMany, text));
        }
        self.forget(key, CloseReason::Detached);
    }

    fn take_notices(&mut self) {
        let _ = rustix::io::read(&self.events.wake, &mut [0; 8]);
        while let Ok(notice) = self.events.receive.try_recv() {
            match notice {
                Notice::Shard(Event::Malformed { session, what }) => {
                    // The shard has counted it.
                    if let Some(&key) = self.by_no.get(&session) {
                        self.end(key, CloseReason::Malformed, &what.to_string());
                    }
                }
                Notice::Shard(Event::Moved { agent, to, moves }) => {
                    self.control.moved(&agent, to, moves);
                }
                Notice::Answered {
                    key,
                    ticket,
                    outcome,
                } => {
                    if let Some(guest) = self.sessions.get_mut(&key) {
                        guest.settle(&self.control, ticket, outcome);
                        self.send_answers(key);
                    }
                }
                Notice::ShardGone(shard) => self.shard_gone(shard),
                Notice::Behind => self.is_behind = true,
                #[cfg(test)]
                Notice::Plant => panic!("planted"),
            }
        }
    }

    fn shard_gone(&mut self, shard: ShardNo) {
        self.control.announce_gone(shard);
        let keys: Vec<u64> = self.by_no.values().copied().collect();
        for key in keys {
            if let Some(guest) = self.sessions.get_mut(&key) {
                guest.shard_gone(&self.control, shard);
                self.send_answers(key);
            }
        }
    }

    /// Sends what answers there are, and reads on where there was no room for more requests.
    fn send_answers(&mut self, key: u64) {
        let Some(guest) = self.sessions.get_mut(&key) else {
            return;
        };
        guest.send_answers(&self.control);
        self.listen_to(key);
    }

    /// Listens to what a session wants to be heard for now.
    fn listen_to(&mut self, key: u64) {
        let Some(guest) = self.sessions.get_mut(&key) else {
            return;
        };
        let wanted = guest.wanted();
        if wanted == guest.listened {
            return;
        }
        guest.listened = wanted;
        let data = epoll::EventData::new_u64(key);
        // It can't fail for a socket that is in there; a session nobody hears is ended.
        if epoll::modify(&self.poll, guest.socket.as_fd(), data, wanted).is_err() {
            self.forget(key, CloseReason::Detached);
        }
    }

    fn take_event(&mut self, key: u64, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.send_answers(key);
        }
        let speaks = |guest: &Guest| guest.listened.contains(epoll::EventFlags::IN);
        if self.sessions.get(&key).is_some_and(speaks) {
            self.take_frames(key);
        } else if flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP) {
            // Its last frames are not worth reading: their answers would reach nobody.
            self.forget(key, CloseReason::Detached);
        }
    }

    fn take_frames(&mut self, key: u64) {
        let mut buffer = [0; FRAME_BYTES_MAX];
        for _ in 0..FRAMES_PER_TURN {
            let Some(guest) = self.sessions.get_mut(&key) else {
                return;
            };
            if guest.is_full() {
                return self.listen_to(key);
            }
            let socket = Arc::clone(&guest.socket);
            let received = match socket.receive(&mut buffer) {
                Ok(received) => received,
                Err(SocketError::WouldBlock) => return,
                Err(SocketError::Closed) => return self.forget(key, CloseReason::Detached),
                Err(error) => return self.refuse_frame(key, &error),
            };
            let outcome = match guest.seat {
                None => self.welcome(key, received.request, &received.frame),
                Some(_) => self.answer(key, received.request, &received.frame),
            };
            if let Err(refusal) = outcome {
                return self.end_refused(key, received.request, &refusal);
            }
        }
    }

    /// A frame that can't be read.
    fn refuse_frame(&mut self, key: u64, error: &SocketError) {
        let code = match error {
            SocketError::Frame(FrameError::Newer { .. } | FrameError::Older { .. }) => {
                RefusalCode::Version
            }
            _ => RefusalCode::Protocol,
        };
        let text = error.to_string();
        self.counters().malformed.add(1);
        if let Some(guest) = self.sessions.get(&key) {
            let _ = guest.refuse(0, &Refusal::new(code, text.clone()));
        }
        self.end(key, CloseReason::Malformed, &text);
    }

    /// A frame that no client sends there, or a session that can't be opened.
    fn end_refused(&mut self, key: u64, request: u32, refusal: &Refusal) {
        let Some(guest) = self.sessions.get(&key) else {
            return;
        };
        let _ = guest.refuse(request, refusal);
        if refusal.code != RefusalCode::Protocol {
            // It broke no rule: there was no room for it.
            self.counters().refused.add(1);
            let (uid, pid) = (guest.peer.uid, guest.peer.pid);
            if let Some(held_back) = self.lines.admit(Some(uid), Instant::now()) {
                tracing::warn!(uid, pid, text = refusal.text, held_back, "refused");
            }
            return self.forget(key, CloseReason::Detached);
        }
        self.counters().malformed.add(1);
        self.end(key, CloseReason::Malformed, &refusal.text);
    }

    /// Takes the first frame of a connection.
    fn welcome(&mut self, key: u64, request: u32, frame: &Frame<'_>) -> Result<(), Refusal> {
        let protocol = |text: String| Refusal::new(RefusalCode::Protocol, text);
        let Frame::Hello { name, .. } = frame else {
            return Err(protocol("the first frame of a session is a Hello".into()));
        };
        let Some(guest) = self.sessions.get_mut(&key) else {
            return Ok(());
        };
        guest.name = (*name).to_owned();
        self.handshakes.end(key);
        let process = match guest.socket.peer_process() {
            Ok(process) => process,
            // It said so much and died.
            Err(SocketError::Closed) => {
                self.forget(key, CloseReason::Detached);
                return Ok(());
            }
            Err(SocketError::Os(error)) if is_short(&error) => return Err(short()),
            Err(error) => return Err(Refusal::new(RefusalCode::NoMemory, error.to_string())),
        };
        if let Some(process) = process {
            let data = epoll::EventData::new_u64(key | PROCESS);
            epoll::add(&self.poll, &process, data, epoll::EventFlags::IN)
                .map_err(|errno| Refusal::new(RefusalCode::NoMemory, errno.to_string()))?;
            guest.process = Some(process);
        }
        let socket = Some(Arc::clone(&guest.socket));
        let (seat, region) = self.control.open_session(socket)?;
        let welcome = Frame::Welcome {
            features: 0,
            session: seat.no(),
            shards: self.control.shards() as u16,
        };
        let mut fds = vec![region.as_fd()];
        fds.extend(self.control.status_fds().into_iter().map(AsFd::as_fd));
        match guest.socket.send(request, &welcome, &fds) {
            Ok(()) => {}
            Err(SocketError::Closed) => {
                self.forget(key, CloseReason::Detached);
                return Ok(());
            }
            Err(error) => return Err(protocol(error.to_string())),
        }
        self.by_no.insert(seat.no(), key);
        guest.seat = Some(seat);
        Ok(())
    }

    /// Carries out a frame of an open session.
    fn answer(&mut self, key: u64, request: u32, frame: &Frame<'_>) -> Result<(), Refusal> {
        let Some(guest) = self.sessions.get_mut(&key) else {
            return Ok(());
        };
        let (ticket, deadline) = match frame {
            Frame::Attach { flags, agent } => {
                let Peer { uid, gid, pid } = guest.peer;
                if !self.control.allows(uid, gid, agent) {
                    tracing::debug!(uid, pid, agent, "refused: no rule lets it attach");
                }
                let asked = guest.attach(&self.control, request, *flags, agent);
                if !guest.awaits(asked.0) {
                    // No shard was asked.
                    self.counters[self.control.shards()].refused.add(1);
                }
                asked
            }
            Frame::Detach { lane } => guest.detach(&self.control, request, *lane),
            Frame::Ask { body } => guest.ask(&self.control, request, body),
            // The shard watches the socket too, but misses a frame that is read here first.
            Frame::Bell { shard } => {
                if let Some(doorbell) = self.control.doorbell(*shard) {
                    doorbell.ring();
                }
                return Ok(());
            }
            _ => {
                let text = "a client sends Attach, Detach, Ask and Bell in an open session";
                return Err(Refusal::new(RefusalCode::Protocol, text));
            }
        };
        if guest.awaits(ticket) {
            self.waiting.push_back((deadline, key, ticket));
        } else {
            self.send_answers(key);
        }
        Ok(())
    }

    /// Ends a session, or what was to become one, and says why: to it and to the operator.
    fn end(&mut self, key: u64, reason: CloseReason, text: &str) {
        if let Some(guest) = self.sessions.get(&key) {
            let (uid, pid) = (guest.peer.uid, guest.peer.pid);
            let session = guest.seat.as_ref().map(|seat| seat.no().0);
            if let Some(held_back) = self.lines.admit(Some(uid), Instant::now()) {
                let (what, name) = (session.map_or("connection", |_| "session"), &guest.name);
                tracing::warn!(session, uid, pid, name, %reason, text, held_back, "ended a {what}");
            }
            if session.is_some() {
                let _ = guest.socket.send(0, &Frame::Closing { reason, text }, &[]);
            }
        }
        self.forget(key, reason);
    }

    /// Its own counters; those before are the shards'.
    fn counters(&self) -> &ShardCounters {
        &self.counters[self.control.shards()]
    }

    fn forget(&mut self, key: u64, reason: CloseReason) {
        let Some(mut guest) = self.sessions.remove(&key) else {
            return;
        };
        // Shards hold the socket too, until they have let go of the session: hang up now.
        let _ = epoll::delete(&self.poll, guest.socket.as_fd());
        let _ = rustix::net::shutdown(guest.socket.as_fd(), rustix::net::Shutdown::Both);
        match &mut guest.seat {
            Some(seat) => {
                self.by_no.remove(&seat.no());
                self.control.end_session(seat, reason);
            }
            None => self.handshakes.end(key),
        }
    }
}
