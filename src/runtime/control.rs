//! The control plane: sessions, lanes and windows, given out and taken back.
//!
//! Used by the listener's thread and by threads of the host; nothing here is on a request's path.
//! It alone knows which session holds which lane, and it keeps one descriptor per agent that is
//! attached: its window's, for the processes that attach later. Lane descriptors are closed once
//! they were handed over; the mappings stay.
//!
//! Invariants
//! - an agent has a window while it has a lane, and one window only.
//! - commands reach a shard in the order in which they were given here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::runtime::shard_thread::Doorbell;
use crate::segment::Sequence;
use crate::shard::{AttachError, AttachRequest, Attached, Command, Event, owner};
use crate::shared::{Access, SharedError, SharedMemory};
use crate::topology::Resolved;

/// Lanes of one session.
const LANES_PER_SESSION_MAX: u32 = 1 << 16;
/// How long a shard may take to attach a lane.
const ATTACH_WAIT: Duration = Duration::from_secs(5);

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
}

impl From<SharedError> for Refusal {
    fn from(error: SharedError) -> Self {
        let text = format!("{error}; raise `ulimit -n` or vm.max_map_count, or detach lanes");
        Self::new(RefusalCode::NoMemory, text)
    }
}

/// What shards and the listener tell each other's threads.
#[derive(Debug)]
pub(super) enum Notice {
    /// A shard saw a session break the protocol.
    Shard(Event),
    /// A shard's thread panicked.
    ShardFailed(ShardNo),
}

/// A shard's end of the events.
pub(super) struct ShardEvents {
    shard: ShardNo,
    send: Sender<Notice>,
    wake: Arc<OwnedFd>,
}

impl ShardEvents {
    pub(super) fn shard(&self) -> ShardNo {
        self.shard
    }

    pub(super) fn send(&self, events: Vec<Event>) {
        for event in events {
            self.notify(Notice::Shard(event));
        }
    }

    fn notify(&self, notice: Notice) {
        // Without a listener nobody has to hear of it.
        let _ = self.send.send(notice);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for ShardEvents {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.notify(Notice::ShardFailed(self.shard));
        }
    }
}

/// The listener's end.
pub(super) struct Events {
    pub(super) receive: Receiver<Notice>,
    pub(super) wake: Arc<OwnedFd>,
}

/// One session, as the control plane knows it.
#[derive(Debug)]
pub(super) struct SessionSeat {
    no: SessionNo,
    bells: Arc<SharedMemory>,
    socket: Option<Arc<FrameSocket>>,
    lanes: HashMap<u32, (ShardNo, Box<str>)>,
    next_lane: u32,
    /// Shards that were asked for a lane: they know the session until its end, lanes or not.
    shards: Vec<ShardNo>,
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
    /// Shared with the control plane, which keeps it for the agent's next lane.
    pub(super) window: Arc<OwnedFd>,
}

/// A lane that a shard attached: the answer, the lane's descriptors and the agent's window's.
type Tried = (Attached, LaneFds, Arc<OwnedFd>);

/// An agent that has lanes.
#[derive(Debug)]
struct AgentSeat {
    window: Arc<OwnedFd>,
    lanes: usize,
}

/// The control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    commands: Vec<Arc<ArrayQueue<Command>>>,
    doorbells: Vec<Arc<Doorbell>>,
    access: AccessRules,
    has_rules: bool,
    window_bytes: usize,
    sizes: LaneSizes,
    next_session: AtomicU64,
    agents: Mutex<HashMap<Box<str>, AgentSeat>>,
    send: Sender<Notice>,
    wake: Arc<OwnedFd>,
}

impl ControlPlane {
    pub(super) fn new(
        resolved: &Resolved,
        commands: Vec<Arc<ArrayQueue<Command>>>,
        doorbells: Vec<Arc<Doorbell>>,
    ) -> Result<(Self, Events), RuntimeError> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags).map_err(|source| RuntimeError::Os {
            what: "making the listener's doorbell",
            source: source.into(),
        })?;
        let wake = Arc::new(wake);
        let (send, receive) = channel();
        let control = Self {
            commands,
            doorbells,
            access: resolved.access.clone(),
            has_rules: !resolved.config.access.is_empty(),
            window_bytes: resolved.config.l1_window_bytes as usize,
            sizes: LaneSizes::DEFAULT,
            next_session: AtomicU64::new(1),
            agents: Mutex::new(HashMap::new()),
            send,
            wake: Arc::clone(&wake),
        };
        Ok((control, Events { receive, wake }))
    }

    pub(super) fn events_for(&self, shard: ShardNo) -> ShardEvents {
        ShardEvents {
            shard,
            send: self.send.clone(),
            wake: Arc::clone(&self.wake),
        }
    }

    pub(super) fn shards(&self) -> usize {
        self.commands.len()
    }

    pub(super) fn doorbell(&self, shard: ShardNo) -> Option<&Doorbell> {
        self.doorbells
            .get(usize::from(shard.0))
            .map(|doorbell| &**doorbell)
    }

    /// The status pages of all shards, for a `Welcome`.
    pub(super) fn status_fds(&self) -> Vec<&OwnedFd> {
        self.doorbells
            .iter()
            .map(|doorbell| doorbell.status_fd())
            .collect()
    }

    /// Whether users beside the runtime's own may attach to some agents.
    pub(super) fn has_rules(&self) -> bool {
        self.has_rules
    }

    /// Whether a user may attach to an agent.
    pub(super) fn allows(&self, uid: u32, gid: u32, agent: &str) -> bool {
        self.access.allows(uid, gid, agent)
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

    /// Opens a lane of a session to an agent.
    pub(super) fn attach(
        &self,
        session: &mut SessionSeat,
        name: &str,
        how: Attach,
    ) -> Result<NewLane, Refusal> {
        if name.is_empty() || name.len() > AGENT_NAME_BYTES_MAX {
            let text = format!("an agent's name has 1 to {AGENT_NAME_BYTES_MAX} bytes");
            return Err(Refusal::new(RefusalCode::Protocol, text));
        }
        let lane = session.free_lane()?;
        let shard = owner(name.as_bytes(), self.shards());
        if !session.shards.contains(&shard) {
            if let Some(socket) = &session.socket {
                self.doorbells[usize::from(shard.0)]
                    .watch(socket)
                    .map_err(|error| Refusal::new(RefusalCode::NoMemory, error.to_string()))?;
            }
            session.shards.push(shard);
        }
        let mut agents = self.agents();
        // A shard that ended a session has dropped the window of an agent whose seat is not vacant
        // here yet: the second try brings a new one.
        let seated = agents.get(name).map(|seat| Arc::clone(&seat.window));
        let first = self.attach_once(session, name, how, (lane, shard), seated.as_ref());
        let (attached, fds, window) = match first {
            Ok(Err(AttachError::NoWindow)) if seated.is_some() => {
                self.attach_once(session, name, how, (lane, shard), None)?
            }
            tried => tried?,
        }
        .map_err(refused)?;
        let seat = agents.entry(name.into()).or_insert_with(|| AgentSeat {
            window: Arc::clone(&window),
            lanes: 0,
        });
        seat.window = Arc::clone(&window);
        seat.lanes += 1;
        session.lanes.insert(lane.0, (shard, name.into()));
        Ok(NewLane {
            lane,
            agent: attached.agent,
            shard,
            sizes: self.sizes,
            window_bytes: self.window_bytes as u64,
            client: fds.client,
            server: fds.server,
            window,
        })
    }

    /// Asks the shard to attach a lane, with the agent's window or with a new one.
    fn attach_once(
        &self,
        session: &SessionSeat,
        name: &str,
        how: Attach,
        (lane, shard): (LaneNo, ShardNo),
        window: Option<&Arc<OwnedFd>>,
    ) -> Result<Result<Tried, AttachError>, Refusal> {
        let (ring, fds) = ServerLane::create(self.sizes)?;
        let (window, fresh) = match window {
            Some(window) => (Arc::clone(window), None),
            None => {
                let (memory, fd) =
                    SharedMemory::create("helios-window", self.window_bytes, Access::ReadOnly)?;
                (Arc::new(fd), Some(memory))
            }
        };
        let (reply, answer) = channel();
        let request = AttachRequest {
            session: session.no,
            bells: Arc::clone(&session.bells),
            socket: session.socket.clone(),
            lane,
            ring,
            agent: name.as_bytes().into(),
            create: how.create,
            public: how.public.then_some(true),
            window: fresh,
            reply,
        };
        self.command(shard, Command::Attach(Box::new(request)))?;
        let attached = answer.recv_timeout(ATTACH_WAIT).map_err(|_| {
            Refusal::new(
                RefusalCode::NoMemory,
                format!("shard {shard} does not answer; retry"),
            )
        })?;
        Ok(attached.map(|attached| (attached, fds, window)))
    }

    /// Closes a lane; whether the session had it. Returns once the shard has let go of it.
    pub(super) fn detach(&self, session: &mut SessionSeat, lane: LaneNo) -> bool {
        let Some((shard, name)) = session.lanes.remove(&lane.0) else {
            return false;
        };
        let mut agents = self.agents();
        let (reply, answer) = channel();
        let detach = Command::Detach {
            session: session.no,
            lane,
            reply,
        };
        if self.command(shard, detach).is_ok() {
            // A shard that is gone has let go of everything.
            let _ = answer.recv_timeout(ATTACH_WAIT);
        }
        vacate(&mut agents, &name);
        true
    }

    /// Ends a session: its lanes are closed on every shard.
    pub(super) fn end_session(&self, session: &mut SessionSeat, reason: CloseReason) {
        let mut agents = self.agents();
        for shard in session.shards.drain(..) {
            let end = Command::EndSession {
                session: session.no,
                reason,
            };
            if self.command(shard, end).is_err() {
                tracing::error!(%shard, session = session.no.0, "the shard can't be told of a session's end");
            }
        }
        for (_, (_, name)) in session.lanes.drain() {
            vacate(&mut agents, &name);
        }
    }

    /// Asks a shard to stop in order.
    pub(super) fn shutdown_shard(&self, shard: ShardNo) -> Receiver<(Sequence, bool)> {
        let (reply, answer) = channel();
        // Refused: the channel is closed, which the caller sees.
        let _ = self.command(shard, Command::Shutdown { reply });
        answer
    }

    /// Gives a shard a command. Its queue is longer than what can be under way at once, save
    /// during a storm of ends: then this waits for it to be worked off.
    fn command(&self, shard: ShardNo, command: Command) -> Result<(), Refusal> {
        let no = usize::from(shard.0);
        let mut command = command;
        for _ in 0..1000 {
            match self.commands[no].push(command) {
                Ok(()) => {
                    self.doorbells[no].ring();
                    return Ok(());
                }
                Err(back) => command = back,
            }
            self.doorbells[no].ring();
            std::thread::sleep(Duration::from_millis(1));
        }
        let text = format!("shard {shard} takes no commands; see the runtime's log");
        Err(Refusal::new(RefusalCode::NoMemory, text))
    }

    fn agents(&self) -> MutexGuard<'_, HashMap<Box<str>, AgentSeat>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionSeat {
    pub(super) fn no(&self) -> SessionNo {
        self.no
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

fn vacate(agents: &mut HashMap<Box<str>, AgentSeat>, name: &str) {
    if let Some(seat) = agents.get_mut(name) {
        seat.lanes -= 1;
        if seat.lanes == 0 {
            agents.remove(name);
        }
    }
}

fn refused(error: AttachError) -> Refusal {
    let code = match error {
        AttachError::NoSuchAgent => RefusalCode::NoSuchAgent,
        AttachError::NoSpace | AttachError::ReadOnly => RefusalCode::Disk,
        AttachError::ShuttingDown => RefusalCode::ShuttingDown,
        AttachError::Busy | AttachError::NoWindow => RefusalCode::NoMemory,
    };
    Refusal::new(code, error.to_string())
}
