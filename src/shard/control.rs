//! Commands of the control plane: attach, detach, end, shut down.
//!
//! Floor 2. They come from host threads and from the listener over a bounded queue, and are
//! answered over channels, after the flush that made their records survive the process.
//!
//! Invariants
//! - after a session ended, none of its lanes is served, and what was pending for them is dropped.
//! - a shutdown answers after every pending operation and, unless the disk failed, after everything
//!   is synced and, where there is room for a footer, sealed: the next start scans nothing.
//! - an agent has a window while it has a lane, and one window only: the shard alone decides which.
//! - commands keep their order, so a detach or an end that follows an attach finds its lane.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::agent::CloseReason;
use crate::agent::bell::ServerBells;
use crate::agent::lifecycle::AgentPage;
use crate::agent::malformed::Malformed;
use crate::agent::server_lane::ServerLane;
use crate::agent::socket::FrameSocket;
use crate::cache::WindowWriter;
use crate::id::{AgentNo, LaneNo, SessionNo, ShardNo};
use crate::prefetch::AccessKind;
use crate::segment::{Disk, Sequence};
use crate::shard::agent::{BranchRef, MAIN};
use crate::shard::collect::Collected;
use crate::shard::lanes::{Lane, LaneRef};
use crate::shard::store::Refused;
use crate::shard::{AgentCommand, COMMANDS_PER_TURN, Shard, Step};
use crate::shared::SharedMemory;

/// Where an answer goes. Given on the shard's thread: what takes it may not wait. It is dropped
/// without a call where the shard ends first.
pub struct Answer<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Answer<T> {
    /// An answer that `take` gets.
    pub fn new(take: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(take))
    }

    /// For whoever doesn't want to know.
    #[must_use]
    pub fn unheard() -> Self {
        Self(Box::new(|_| ()))
    }

    /// Gives it.
    pub fn give(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

/// What the control plane asks of a shard.
#[derive(Debug)]
pub enum Command {
    /// Attach a lane.
    Attach(Box<AttachRequest>),
    /// Take a lane away; answered when it is gone.
    Detach {
        /// The session.
        session: SessionNo,
        /// The lane.
        lane: LaneNo,
        /// Told once the lane is gone, or was none.
        reply: Answer<()>,
    },
    /// The process is gone, or is no longer wanted: take all its lanes away.
    EndSession {
        /// The session.
        session: SessionNo,
        /// What its lanes are told.
        reason: CloseReason,
    },
    /// Do something with an agent.
    Agent(Box<AgentCommand>),
    /// List agents of this shard.
    ListAgents {
        /// Names after this one.
        after: Box<[u8]>,
        /// At most so many.
        limit: u32,
        /// Gets them.
        reply: Answer<AgentPage>,
    },
    /// An agent is on another shard than its name says, or there again.
    Route {
        /// Its name.
        agent: Box<[u8]>,
        /// Where it is.
        to: ShardNo,
        /// How often it has moved.
        moves: u32,
    },
    /// Another shard is gone: it answers no more reads.
    PeerGone {
        /// The other shard.
        shard: ShardNo,
    },
    /// Collect what nothing needs any more.
    Collect {
        /// Told what a collection did that began after this.
        reply: Answer<Collected>,
    },
    /// Complete what is pending, write everything out, sync, stop.
    Shutdown {
        /// Told the last record and whether it is on the device.
        reply: Sender<(Sequence, bool)>,
    },
    /// Do anything on the shard's thread: stall, panic.
    #[cfg(test)]
    Plant(Answer<()>),
}

/// An agent's window: its memory, and the descriptor from which processes map it.
#[derive(Debug)]
pub struct SharedWindow {
    /// The memory.
    pub memory: SharedMemory,
    /// The descriptor.
    pub fd: Arc<OwnedFd>,
}

/// A lane to be attached.
#[derive(Debug)]
pub struct AttachRequest {
    /// The session.
    pub session: SessionNo,
    /// Its region of bells.
    pub bells: Arc<SharedMemory>,
    /// Its socket; none for threads of the host.
    pub socket: Option<Arc<FrameSocket>>,
    /// The lane's number in the session.
    pub lane: LaneNo,
    /// Its rings.
    pub ring: ServerLane,
    /// The agent's name.
    pub agent: Box<[u8]>,
    /// Make the agent where there is none.
    pub create: bool,
    /// Mark it public (`true`) or private; `None` leaves it as it is.
    pub public: Option<bool>,
    /// A new window, for an agent that has none: whether it has is the shard's to know.
    pub window: SharedWindow,
    /// The shards that passed it on, first the one that was asked.
    pub path: Vec<ShardNo>,
    /// Told how it went.
    pub reply: Answer<Result<Attached, AttachError>>,
}

/// A lane that was attached.
#[derive(Debug)]
pub struct Attached {
    /// The agent's number in its shard.
    pub agent: AgentNo,
    /// The descriptor of the agent's window.
    pub window: Arc<OwnedFd>,
    /// The window that was brought, where the agent has one: to be unmapped away from the shard.
    pub spare: Option<SharedWindow>,
}

/// Why a lane was not attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no such agent and none was to be made.
    #[error("there is no agent of this name; attach with the flag that creates it")]
    NoSuchAgent,
    /// The new agent could not be recorded.
    #[error("the agent can't be recorded: the disk is full; free space and retry")]
    NoSpace,
    /// The log takes no writes.
    #[error("the agent can't be recorded: the shard is read-only; see the runtime's log")]
    ReadOnly,
    /// Memory or log are short for the moment.
    #[error("the shard is busy; retry")]
    Busy,
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

/// What the control plane hears of by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session wrote what no correct client writes; this shard took its lanes away.
    Malformed {
        /// The session.
        session: SessionNo,
        /// What it wrote.
        what: Malformed,
    },
    /// An agent went to another shard.
    Moved {
        /// Its name.
        agent: Box<[u8]>,
        /// The shard.
        to: ShardNo,
        /// How often it has moved by now.
        moves: u32,
    },
}

/// An answer that waits for a flush.
#[derive(Debug)]
pub(super) struct Reply {
    to: Answer<Result<Attached, AttachError>>,
    outcome: Attached,
    session: SessionNo,
    lane: LaneNo,
}

/// A shutdown under way.
#[derive(Debug, Default)]
pub(super) struct Drain {
    reply: Option<Sender<(Sequence, bool)>>,
    /// The device is out of reach: nothing is waited for.
    halted: bool,
    pub(super) done: bool,
}

impl<D: Disk> Shard<D> {
    pub(super) fn take_commands(&mut self) -> bool {
        if !self.replies.is_empty() {
            return false;
        }
        for taken in 0..COMMANDS_PER_TURN {
            let next = self.deferred.take();
            let next = next.or_else(|| self.moves.next_command());
            let Some(command) = next.or_else(|| self.commands.pop()) else {
                return taken > 0;
            };
            let Some(command) = self.pass_on(command) else {
                continue;
            };
            match command {
                Command::Attach(request) => {
                    // Its record finds no room before the next segment is made; commands keep
                    // their order, so the others wait too.
                    if self.attach_waits(&request) {
                        self.deferred = Some(Command::Attach(request));
                        return taken > 0;
                    }
                    self.attach(*request);
                }
                Command::Detach {
                    session,
                    lane,
                    reply,
                } => {
                    if let Some(lane) = self.lanes.detach(session, lane) {
                        self.close_lane(lane, CloseReason::Detached);
                    }
                    reply.give(());
                }
                Command::EndSession { session, reason } => self.close_session(session, reason),
                Command::Agent(command) => {
                    self.deferred = self.take_agent_command(command);
                    if self.deferred.is_some() {
                        return taken > 0;
                    }
                }
                Command::ListAgents {
                    after,
                    limit,
                    reply,
                } => reply.give(self.list_agents(&after, limit)),
                Command::Route { agent, to, moves } => self.route(agent, to, moves),
                Command::PeerGone { shard } => self.forget_peer(shard),
                Command::Collect { reply } => self.ask_collection(reply),
                Command::Shutdown { reply } => {
                    self.draining.get_or_insert_default().reply = Some(reply);
                }
                #[cfg(test)]
                Command::Plant(deed) => deed.give(()),
            }
        }
        true
    }

    fn attach_waits(&mut self, request: &AttachRequest) -> bool {
        let known = self.store.tables.agent_no(&request.agent);
        let suspended = known.is_some_and(|it| self.store.tables.agent(it).hot.is_some());
        let writes = known.is_none() || suspended || request.public.is_some();
        writes && self.store.ready(0, false) == Err(Refused::Wait)
    }

    fn attach(&mut self, request: AttachRequest) {
        let AttachRequest {
            session,
            bells,
            socket,
            lane,
            mut ring,
            agent: name,
            reply,
            ..
        } = request;
        let known = self.store.tables.agent_no(&name);
        let outcome = match known {
            _ if self.draining.is_some() => Err(AttachError::ShuttingDown),
            // Nobody would ring for the lane, nor end it.
            _ if request.path.iter().any(|it| self.lost_peers.contains(it)) => {
                Err(AttachError::Busy)
            }
            None if !request.create => Err(AttachError::NoSuchAgent),
            Some(agent) if request.public.is_none() => Ok(agent),
            _ => self
                .store
                .put_agent(&name, request.public.unwrap_or(false), self.moves_of(&name))
                .map_err(|refused| match refused {
                    Refused::NoSpace => AttachError::NoSpace,
                    Refused::ReadOnly => AttachError::ReadOnly,
                    _ => AttachError::Busy,
                }),
        };
        let woken = outcome.and_then(|agent| match self.wake_agent(agent) {
            Ok(()) => Ok(agent),
            Err(_) => Err(AttachError::Busy),
        });
        let agent = match woken {
            Ok(agent) => agent,
            Err(error) => return reply.give(Err(error)),
        };
        if known.is_none() {
            self.tell(AccessKind::Create, agent, MAIN);
        }
        if !self.lanes.has_session(session) {
            self.lanes
                .open_session(session, ServerBells::new(bells, self.options.no));
        }
        let state = self.store.tables.agent_mut(agent);
        state.lanes += 1;
        if let Some(main) = state.branch_mut(MAIN) {
            main.lanes += 1;
            ring.set_view(main.view);
        }
        let (window, spare) = match &state.window_fd {
            Some(fd) => (Arc::clone(fd), Some(request.window)),
            None => {
                let SharedWindow { memory, fd } = request.window;
                // Its size is the runtime's own choice, checked with the configuration.
                state.window = WindowWriter::new(memory).ok();
                state.window_fd = Some(Arc::clone(&fd));
                (fd, None)
            }
        };
        self.lanes
            .attach(session, lane, agent, ring, socket, request.path);
        let outcome = Attached {
            agent,
            window,
            spare,
        };
        self.replies.push(Reply {
            to: reply,
            outcome,
            session,
            lane,
        });
        if self.store.is_dirty() {
            self.must_flush = true;
        } else {
            self.answer_commands(true);
        }
    }

    /// Answers the attaches whose records were flushed, or takes those back whose were not.
    pub(super) fn answer_commands(&mut self, flushed: bool) {
        let mut replies = std::mem::take(&mut self.replies);
        for reply in replies.drain(..) {
            if flushed {
                // A requester that is gone, or gave up, has sent a command that takes it away.
                reply.to.give(Ok(reply.outcome));
                continue;
            }
            // The tables were taken back already, and with them perhaps the agent itself.
            if let Some(lane) = self.lanes.detach(reply.session, reply.lane) {
                if self.store.tables.has_agent(lane.agent) {
                    self.close_lane(lane, CloseReason::Detached);
                } else {
                    self.forget_lane(lane, CloseReason::Detached);
                }
            }
            reply.to.give(Err(AttachError::Busy));
        }
        self.replies = replies;
    }

    /// Ends a session that broke the protocol, here and, through an event, everywhere.
    pub(super) fn end_session(&mut self, session: SessionNo, what: Malformed) {
        self.counters().malformed.add(1);
        self.close_session(session, CloseReason::Malformed);
        self.events.push(Event::Malformed { session, what });
    }

    /// As [`Shard::end_session`], of the session that a lane belongs to.
    pub(super) fn end_session_of(&mut self, at: LaneRef, what: Malformed) -> Step {
        if let Some(lane) = self.lanes.get_mut(at) {
            let session = lane.session;
            self.end_session(session, what);
        }
        Step::Done
    }

    fn close_session(&mut self, session: SessionNo, reason: CloseReason) {
        for lane in self.lanes.close_session(session) {
            self.close_lane(lane, reason);
        }
    }

    pub(super) fn close_lane(&mut self, lane: Lane, reason: CloseReason) {
        let agent = self.store.tables.agent_mut(lane.agent);
        agent.lanes -= 1;
        if let Some(branch) = agent.branch_mut(lane.branch) {
            branch.lanes -= 1;
        }
        for &branch in &lane.forks {
            let agent = lane.agent;
            self.drop_fork(BranchRef { agent, branch });
        }
        let agent = self.store.tables.agent_mut(lane.agent);
        if agent.lanes == 0 {
            agent.window_fd = None;
            if let Some(mut window) = agent.window.take() {
                // A process may still map it, or be about to: it must find nothing.
                window.clear();
            }
        }
        self.forget_lane(lane, reason);
    }

    fn forget_lane(&mut self, mut lane: Lane, reason: CloseReason) {
        if !matches!(reason, CloseReason::Detached | CloseReason::ShuttingDown) {
            self.counters().lanes_closed.add(1);
        }
        self.store.holds -= u32::from(lane.holds);
        if let Some(upload) = lane.upload.take() {
            self.drop_upload(*upload);
        }
        lane.ring.close(reason);
        lane.wake();
    }

    /// Stops without the device, because the I/O core is gone: what is in memory is written to the
    /// page cache, the lanes are closed, nothing is waited for.
    pub fn halt(&mut self) {
        self.draining.get_or_insert_default().halted = true;
        self.must_flush |= self.store.is_dirty();
    }

    /// Ends a shutdown once nothing is pending and the log is sealed.
    pub(super) fn drain(&mut self) {
        let Some(&Drain { halted, done, .. }) = self.draining.as_ref() else {
            return;
        };
        if done {
            return;
        }
        let last = self.store.log.last();
        let lost = self.store.log.read_only().is_some();
        let synced = self.store.log.synced() >= last;
        let settled = lost || (synced && self.store.log.is_sealed());
        self.fail_peer_reads();
        let quiet = self.pending.is_empty() && self.unsent.is_empty();
        if !halted && (!quiet || !settled) {
            if self.store.is_dirty() {
                self.must_flush = true;
            }
            self.store.log.sync_wanted(self.store.log.flushed());
            if quiet {
                self.store.log.end_segment(&mut self.store.disk);
            }
            return;
        }
        let reason = match halted {
            true => CloseReason::ShardFailed,
            false => CloseReason::ShuttingDown,
        };
        for session in self.lanes.sessions() {
            self.close_session(session, reason);
        }
        if let Some(drain) = &mut self.draining {
            drain.done = true;
            if let Some(reply) = drain.reply.take() {
                // The host may have given up waiting.
                let _ = reply.send((last, synced));
            }
        }
    }
}
