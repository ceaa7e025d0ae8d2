//! The control plane: sessions and lanes, given out and taken back.
//!
//! Used by the listener's thread and by threads of the host; nothing here is on a request's path,
//! and nothing here waits for a shard: a request becomes a command in the shard's inbox, and its
//! answer comes back later, to the listener as a notice and to a host thread over a channel. Lane
//! descriptors are closed once they were handed over; the mappings stay.
//!
//! Invariants
//! - commands reach a shard in the order in which they were given here, so whatever is given up
//!   (an attach that took too long, a session that died) is taken back by a command behind it.
//! - a lane's number belongs to its session from the attach to the detach, under way or not.
//! - a shard that is gone is asked for nothing: requests for it end at once, with the reason.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use crate::agent::CloseReason;
use crate::agent::bell::ServerBells;
use crate::agent::frame::RefusalCode;
use crate::agent::layout::LaneSizes;
use crate::agent::server_lane::{LaneFds, ServerLane};
use crate::agent::socket::FrameSocket;
use crate::client::Attach;
use crate::config::Access as AccessRules;
use crate::id::{AGENT_NAME_BYTES_MAX, AgentNo, LaneNo, SessionNo, ShardNo};
use crate::runtime::RuntimeError;
use crate::runtime::collect::Collections;
use crate::runtime::descriptors::keep_some;
use crate::runtime::health::{Failure, Health};
use crate::runtime::inbox::Inbox;
use crate::runtime::shard_thread::Doorbell;
use crate::segment::Sequence;
use crate::shard::{
    Answer, AttachError, AttachRequest, Attached, Command, Event, Routes, SharedWindow, owner,
};
use crate::shared::{Access, SharedError, SharedMemory};
use crate::topology::Resolved;

/// Lanes of one session.
const LANES_PER_SESSION_MAX: u32 = 1 << 16;
/// How long a shard may take to attach or detach a lane before its client is told to try again.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// A refusal, for programs and for people.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: RefusalCode,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// The shard takes no requests any more.
    pub(super) fn gone(shard: ShardNo, reason: CloseReason) -> Self {
        match reason {
            CloseReason::ShardFailed => Self::new(
                RefusalCode::ShardFailed,
                format!("shard {shard} failed; see the runtime's log and restart it"),
            ),
            _ => Self::new(RefusalCode::ShuttingDown, "the runtime is shutting down"),
        }
    }

    /// The shard is alive, as far as is known, and took too long.
    pub(super) fn no_answer(shard: ShardNo) -> Self {
        let text = format!("shard {shard} does not answer; retry");
        Self::new(RefusalCode::NoMemory, text)
    }
}

impl From<SharedError> for Refusal {
    fn from(error: SharedError) -> Self {
        let text = format!("{error}; raise `ulimit -n` or vm.max_map_count, or detach lanes");
        Self::new(RefusalCode::NoMemory, text)
    }
}

impl From<AttachError> for Refusal {
    fn from(error: AttachError) -> Self {
        let code = match error {
            AttachError::NoSuchAgent => RefusalCode::NoSuchAgent,
            AttachError::NoSpace | AttachError::ReadOnly => RefusalCode::Disk,
            AttachError::ShuttingDown => RefusalCode::ShuttingDown,
            AttachError::Busy => RefusalCode::NoMemory,
        };
        Self::new(code, error.to_string())
    }
}

/// What the listener's thread hears from others.
#[derive(Debug)]
pub(super) enum Notice {
    /// A shard saw a session break the protocol.
    Shard(Event),
    /// A shard answered a request of a session.
    Answered {
        /// The listener's key of the session.
        key: u64,
        /// The request's number in it.
        ticket: u64,
        /// The answer.
        outcome: Outcome,
    },
    /// A shard's thread has ended.
    ShardGone(ShardNo),
    /// Commands wait for room in a shard's queue.
    Behind,
    /// Die of it.
    #[cfg(test)]
    Plant,
}

/// How a request to a shard went.
#[derive(Debug)]
pub(super) enum Outcome {
    Attached(Result<Attached, AttachError>),
    Detached,
    Told(Result<Vec<u8>, Refusal>),
}

/// The sender's end of the notices.
#[derive(Clone, Debug)]
pub(super) struct Notices {
    send: Sender<Notice>,
    wake: Arc<OwnedFd>,
}

impl Notices {
    pub(super) fn tell(&self, notice: Notice) {
        // Without a listener nobody has to hear of it.
        let _ = self.send.send(notice);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The listener's end.
pub(super) struct Events {
    pub(super) receive: Receiver<Notice>,
    pub(super) wake: Arc<OwnedFd>,
}

/// A shard's hold on the control plane: dropped as the last of its thread.
pub(super) struct ShardEvents {
    shard: ShardNo,
    control: Arc<ControlPlane>,
}

impl ShardEvents {
    pub(super) fn shard(&self) -> ShardNo {
        self.shard
    }

    pub(super) fn is_halted(&self) -> bool {
        self.control.is_halted()
    }

    pub(super) fn send(&self, events: Vec<Event>) {
        for event in events {
            self.control.notices.tell(Notice::Shard(event));
        }
    }
}

impl Drop for ShardEvents {
    fn drop(&mut self) {
        self.control
            .shard_ended(self.shard, std::thread::panicking());
    }
}

/// One session, as the control plane knows it.
#[derive(Debug)]
pub(super) struct SessionSeat {
    no: SessionNo,
    bells: Arc<SharedMemory>,
    socket: Option<Arc<FrameSocket>>,
    lanes: HashMap<u32, LaneSeat>,
    next_lane: u32,
    /// Shards that were asked for a lane: they know the session until its end, lanes or not.
    shards: Vec<ShardNo>,
}

#[derive(Debug)]
struct LaneSeat {
    shard: ShardNo,
    /// The client knows of it.
    is_open: bool,
}

/// A lane that a shard was asked for.
#[derive(Debug)]
pub(super) struct Attaching {
    pub(super) lane: LaneNo,
    pub(super) shard: ShardNo,
    fds: LaneFds,
}

/// A lane that was made: what its client needs.
#[derive(Debug)]
pub(super) struct NewLane {
    pub(super) lane: LaneNo,
    pub(super) agent: AgentNo,
    pub(super) shard: ShardNo,
    pub(super) sizes: LaneSizes,
    pub(super) window_bytes: u64,
    /// Regions C and S.
    pub(super) client: OwnedFd,
    pub(super) server: OwnedFd,
    /// Shared with the shard, which keeps it for the agent's next lane.
    pub(super) window: Arc<OwnedFd>,
}

/// The control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    pub(super) inboxes: Vec<Inbox>,
    access: AccessRules,
    has_rules: bool,
    window_bytes: usize,
    sizes: LaneSizes,
    next_session: AtomicU64,
    notices: Notices,
    health: Health,
    /// Agents that are not where their names say.
    routes: Mutex<Routes>,
    /// Collections that sessions asked for.
    pub(super) collections: Arc<Mutex<Collections>>,
    /// The I/O core is gone: every shard is to stop.
    halt: AtomicBool,
}

impl ControlPlane {
    pub(super) fn new(
        resolved: &Resolved,
        commands: &[Arc<ArrayQueue<Command>>],
        doorbells: &[Arc<Doorbell>],
    ) -> Result<(Self, Events), RuntimeError> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags).map_err(|source| RuntimeError::Os {
            what: "making the listener's doorbell",
            source: source.into(),
        })?;
        let wake = Arc::new(wake);
        let (send, receive) = channel();
        let inboxes = commands.iter().zip(doorbells);
        let control = Self {
            inboxes: inboxes
                .map(|(queue, doorbell)| Inbox::new(Arc::clone(queue), Arc::clone(doorbell)))
                .collect(),
            access: resolved.access.clone(),
            has_rules: !resolved.config.access.is_empty(),
            window_bytes: resolved.config.l1_window_bytes as usize,
            sizes: LaneSizes::DEFAULT,
            next_session: AtomicU64::new(1),
            notices: Notices {
                send,
                wake: Arc::clone(&wake),
            },
            health: Health::default(),
            routes: Mutex::default(),
            collections: Arc::default(),
            halt: AtomicBool::new(false),
        };
        Ok((control, Events { receive, wake }))
    }

    pub(super) fn events_for(self: &Arc<Self>, shard: ShardNo) -> ShardEvents {
        ShardEvents {
            shard,
            control: Arc::clone(self),
        }
    }

    pub(super) fn notices(&self) -> Notices {
        self.notices.clone()
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    pub(super) fn shards(&self) -> usize {
        self.inboxes.len()
    }

    pub(super) fn doorbell(&self, shard: ShardNo) -> Option<&Doorbell> {
        self.inboxes
            .get(usize::from(shard.0))
            .map(|inbox| &**inbox.doorbell())
    }

    /// The status pages of all shards, for a `Welcome`.
    pub(super) fn status_fds(&self) -> Vec<&OwnedFd> {
        self.inboxes
            .iter()
            .map(|inbox| inbox.doorbell().status_fd())
            .collect()
    }

    /// Whether users beside the runtime's own may attach to some agents.
    pub(super) fn has_rules(&self) -> bool {
        self.has_rules
    }

    /// Whether a user may attach to any agent at all.
    pub(super) fn admits(&self, uid: u32, gid: u32) -> bool {
        self.access.admits(uid, gid)
    }

    /// Whether a user may attach to an agent.
    pub(super) fn allows(&self, uid: u32, gid: u32, agent: &str) -> bool {
        self.access.allows(uid, gid, agent)
    }

    pub(super) fn access(&self) -> &AccessRules {
        &self.access
    }

    /// The shard that has an agent, or would have it.
    pub(super) fn home(&self, agent: &[u8]) -> ShardNo {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = routes.get(agent).map(|(shard, _)| *shard);
        known.unwrap_or_else(|| owner(agent, self.shards()))
    }

    /// Notes where agents are that are not where their names say.
    pub(super) fn set_routes(&self, routes: Routes) {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// An agent went to another shard: everybody is told who may ask for it.
    pub(super) fn moved(&self, agent: &[u8], to: ShardNo, moves: u32) {
        {
            let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            if routes.get(agent).is_some_and(|(_, known)| *known >= moves) {
                return;
            }
            routes.insert(agent.into(), (to, moves));
        }
        for shard in (0..self.shards() as u16).map(ShardNo) {
            let agent = agent.into();
            // A shard that is gone asks for nothing.
            let _ = self.command(shard, Command::Route { agent, to, moves });
        }
    }

    /// Opens a session; the descriptor is of its region, for the client.
    pub(super) fn open_session(
        &self,
        socket: Option<Arc<FrameSocket>>,
    ) -> Result<(SessionSeat, OwnedFd), SharedError> {
        let (bells, fd) = ServerBells::create_session(self.shards())?;
        let no = SessionNo(self.next_session.fetch_add(1, Ordering::Relaxed));
        let (lanes, shards) = (HashMap::new(), Vec::new());
        Ok((
            SessionSeat {
                no,
                bells,
                socket,
                lanes,
                next_lane: 0,
                shards,
            },
            fd,
        ))
    }

    /// Asks a shard for a lane of a session to an agent. `answer` gets what [`settle`] takes; it is
    /// dropped where the shard is gone first, and whoever waits no longer calls [`give_up`].
    ///
    /// [`settle`]: Self::settle
    /// [`give_up`]: Self::give_up
    pub(super) fn attach(
        &self,
        session: &mut SessionSeat,
        name: &str,
        how: Attach,
        answer: Answer<Result<Attached, AttachError>>,
    ) -> Result<Attaching, Refusal> {
        if name.is_empty() || name.len() > AGENT_NAME_BYTES_MAX {
            let text = format!("an agent's name has 1 to {AGENT_NAME_BYTES_MAX} bytes");
            return Err(Refusal::new(RefusalCode::Protocol, text));
        }
        let shard = self.home(name.as_bytes());
        let inbox = &self.inboxes[usize::from(shard.0)];
        let halted = self.halt.load(Ordering::Acquire);
        let gone = inbox.gone().or(halted.then_some(CloseReason::ShardFailed));
        if let Some(reason) = gone {
            return Err(Refusal::gone(shard, reason));
        }
        if inbox.is_behind() {
            return Err(Refusal::no_answer(shard));
        }
        let lane = session.free_lane()?;
        let (ring, fds) = ServerLane::create(self.sizes)?;
        let (memory, fd) =
            SharedMemory::create("helios-window", self.window_bytes, Access::ReadOnly)?;
        // Of these it is the one that stays open.
        keep_some(&fd, self.shards())?;
        if !session.shards.contains(&shard) {
            if let Some(socket) = &session.socket {
                inbox
                    .doorbell()
                    .watch(socket)
                    .map_err(|error| Refusal::new(RefusalCode::NoMemory, error.to_string()))?;
            }
            session.shards.push(shard);
        }
        let request = AttachRequest {
            session: session.no,
            bells: Arc::clone(&session.bells),
            socket: session.socket.clone(),
            lane,
            ring,
            agent: name.as_bytes().into(),
            create: how.create,
            public: how.public.then_some(true),
            window: SharedWindow {
                memory,
                fd: Arc::new(fd),
            },
            path: Vec::new(),
            reply: answer,
        };
        self.command(shard, Command::Attach(Box::new(request)))
            .map_err(|reason| Refusal::gone(shard, reason))?;
        let is_open = false;
        session.lanes.insert(lane.0, LaneSeat { shard, is_open });
        Ok(Attaching { lane, shard, fds })
    }

    /// Takes in what a shard answered to an attach.
    pub(super) fn settle(
        &self,
        session: &mut SessionSeat,
        attaching: Attaching,
        answer: Result<Attached, AttachError>,
    ) -> Result<NewLane, Refusal> {
        let Attaching { lane, shard, fds } = attaching;
        let attached = answer.inspect_err(|_| {
            session.lanes.remove(&lane.0);
        })?;
        if let Some(seat) = session.lanes.get_mut(&lane.0) {
            seat.is_open = true;
        }
        Ok(NewLane {
            lane,
            agent: attached.agent,
            shard,
            sizes: self.sizes,
            window_bytes: self.window_bytes as u64,
            client: fds.client,
            server: fds.server,
            window: attached.window,
        })
    }

    /// Takes an attach back that nobody waits for any more, and says why it came to nothing. The
    /// command stands behind that of the attach: whatever becomes of that one, no lane is left.
    pub(super) fn give_up(&self, session: &mut SessionSeat, attaching: &Attaching) -> Refusal {
        let Attaching { lane, shard, .. } = *attaching;
        session.lanes.remove(&lane.0);
        match self.take_back(session, lane, shard, Answer::unheard()) {
            Ok(()) => Refusal::no_answer(shard),
            Err(reason) => Refusal::gone(shard, reason),
        }
    }

    /// Asks for the end of an open lane; `answer` is dropped where the shard is gone. The shard,
    /// or none where the session has no such lane.
    pub(super) fn detach(
        &self,
        session: &mut SessionSeat,
        lane: LaneNo,
        answer: Answer<()>,
    ) -> Option<Detaching> {
        let shard = session
            .lanes
            .get(&lane.0)
            .filter(|seat| seat.is_open)?
            .shard;
        session.lanes.remove(&lane.0);
        // A shard that is gone has let go of everything.
        let asked = self.take_back(session, lane, shard, answer).is_ok();
        Some(Detaching { shard, asked })
    }

    fn take_back(
        &self,
        session: &SessionSeat,
        lane: LaneNo,
        shard: ShardNo,
        reply: Answer<()>,
    ) -> Result<(), CloseReason> {
        let session = session.no;
        let detach = Command::Detach {
            session,
            lane,
            reply,
        };
        self.command(shard, detach)
    }

    /// Ends a session: its lanes are closed on every shard, those under way too.
    pub(super) fn end_session(&self, session: &mut SessionSeat, reason: CloseReason) {
        let asked = std::mem::take(&mut session.shards);
        let none_moved = {
            let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            routes.is_empty()
        };
        // Where agents have moved, lanes came through shards that were never asked for one.
        let shards = match none_moved {
            true => asked,
            false => (0..self.shards() as u16).map(ShardNo).collect(),
        };
        for shard in shards {
            let end = Command::EndSession {
                session: session.no,
                reason,
            };
            // A shard that is gone has let go of everything.
            let _ = self.command(shard, end);
        }
        session.lanes.clear();
    }

    /// Tells the other shards of one that is gone.
    pub(super) fn announce_gone(&self, gone: ShardNo) {
        for shard in (0..self.shards() as u16).map(ShardNo) {
            if shard != gone {
                let _ = self.command(shard, Command::PeerGone { shard: gone });
            }
        }
    }

    /// Asks a shard to stop in order. The answer is closed where it is gone.
    pub(super) fn shutdown_shard(&self, shard: ShardNo) -> Receiver<(Sequence, bool)> {
        let (reply, answer) = channel();
        let _ = self.command(shard, Command::Shutdown { reply });
        answer
    }

    /// Hands on the commands that found their shard's queue full; whether some still wait.
    pub(super) fn catch_up(&self) -> bool {
        self.inboxes
            .iter()
            .fold(false, |behind, inbox| inbox.catch_up() | behind)
    }

    /// Whether every shard is to stop, without the device.
    pub(super) fn is_halted(&self) -> bool {
        self.halt.load(Ordering::Acquire)
    }

    /// A thread of the I/O core is gone: nothing reaches the device any more.
    pub(super) fn io_lost(&self) {
        tracing::error!("the I/O core failed; every shard stops");
        self.halt.store(true, Ordering::Release);
        for inbox in &self.inboxes {
            inbox.doorbell().ring();
        }
        self.health.tell(Failure::Io);
    }

    fn shard_ended(&self, shard: ShardNo, panicked: bool) {
        let reason = match panicked || self.is_halted() {
            true => CloseReason::ShardFailed,
            false => CloseReason::ShuttingDown,
        };
        self.inboxes[usize::from(shard.0)].close(reason);
        if panicked {
            tracing::error!(%shard, "a shard failed; its lanes are closed, the others serve on");
            self.health.tell(Failure::Shard(shard));
        }
        self.notices.tell(Notice::ShardGone(shard));
    }

    pub(super) fn command(&self, shard: ShardNo, command: Command) -> Result<(), CloseReason> {
        let inbox = &self.inboxes[usize::from(shard.0)];
        inbox.push(command)?;
        if inbox.is_behind() {
            self.notices.tell(Notice::Behind);
        }
        Ok(())
    }

    /// Commands that a shard has not taken yet.
    #[cfg(test)]
    pub(super) fn queued(&self, shard: ShardNo) -> usize {
        self.inboxes[usize::from(shard.0)].queued()
    }

    /// Does something on a shard's thread, before what waits for it.
    #[cfg(test)]
    pub(super) fn plant_first(&self, shard: ShardNo, deed: impl FnOnce() + Send + 'static) {
        let deed = Answer::new(move |()| deed());
        self.inboxes[usize::from(shard.0)].push_first(Command::Plant(deed));
    }

    /// Does something on a shard's thread.
    #[cfg(test)]
    pub(super) fn plant(&self, shard: ShardNo, deed: impl FnOnce() + Send + 'static) {
        let deed = Answer::new(move |()| deed());
        self.command(shard, Command::Plant(deed)).unwrap();
    }
}

/// A lane of which a shard was asked to let go.
#[derive(Debug)]
pub(super) struct Detaching {
    pub(super) shard: ShardNo,
    /// An answer will come.
    pub(super) asked: bool,
}

impl SessionSeat {
    pub(super) fn no(&self) -> SessionNo {
        self.no
    }

    /// The open lanes.
    pub(super) fn open_lanes(&self) -> impl Iterator<Item = LaneNo> {
        let open = self.lanes.iter().filter(|(_, seat)| seat.is_open);
        open.map(|(&lane, _)| LaneNo(lane))
    }

    /// A number that no lane of the session has; in turn, so that a closed lane's is not given out
    /// again at once.
    fn free_lane(&mut self) -> Result<LaneNo, Refusal> {
        if self.lanes.len() as u32 >= LANES_PER_SESSION_MAX {
            let text = format!("a session has at most {LANES_PER_SESSION_MAX} lanes");
            return Err(Refusal::new(RefusalCode::TooMany, text));
        }
        while self.lanes.contains_key(&self.next_lane) {
            self.next_lane = (self.next_lane + 1) % LANES_PER_SESSION_MAX;
        }
        let lane = self.next_lane;
        self.next_lane = (lane + 1) % LANES_PER_SESSION_MAX;
        Ok(LaneNo(lane))
    }
}
