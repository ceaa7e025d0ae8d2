//! Commands of the control plane: attach, detach, end, shut down.
//!
//! Floor 2. They come from host threads and from the listener over a bounded queue, and are
//! answered over channels, after the flush that made their records survive the process.
//!
//! Invariants
//! - after a session ended, none of its lanes is served, and what was pending for them is dropped.
//! - a shutdown answers after every pending operation and, unless the disk failed, after everything
//!   is synced and, where there is room for a footer, sealed: the next start scans nothing.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::agent::CloseReason;
use crate::agent::bell::ServerBells;
use crate::agent::malformed::Malformed;
use crate::agent::server_lane::ServerLane;
use crate::agent::socket::FrameSocket;
use crate::cache::WindowWriter;
use crate::id::{AgentNo, LaneNo, SessionNo};
use crate::segment::{Disk, Sequence};
use crate::shard::agent::MAIN;
use crate::shard::lanes::{Lane, LaneRef};
use crate::shard::store::Refused;
use crate::shard::{COMMANDS_PER_TURN, Shard, Step};
use crate::shared::SharedMemory;

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
        /// Told whether the agent has other lanes left.
        reply: Sender<bool>,
    },
    /// The process is gone, or is no longer wanted: take all its lanes away.
    EndSession {
        /// The session.
        session: SessionNo,
        /// What its lanes are told.
        reason: CloseReason,
    },
    /// Complete what is pending, write everything out, sync, stop.
    Shutdown {
        /// Told the last record and whether it is on the device.
        reply: Sender<(Sequence, bool)>,
    },
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
    /// The agent's window, where this is its first lane.
    pub window: Option<SharedMemory>,
    /// Told how it went.
    pub reply: Sender<Result<Attached, AttachError>>,
}

/// A lane that was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The agent's number in its shard.
    pub agent: AgentNo,
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
    /// The agent's last lane went and its window with it: attach again with a new one.
    #[error("the agent's window is gone; retry")]
    NoWindow,
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

/// What the control plane hears of by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session wrote what no correct client writes; this shard took its lanes away.
    Malformed {
        /// The session.
        session: SessionNo,
        /// What it wrote.
        what: Malformed,
    },
}

/// An answer that waits for a flush.
#[derive(Debug)]
pub(super) struct Reply {
    to: Sender<Result<Attached, AttachError>>,
    outcome: Attached,
    session: SessionNo,
    lane: LaneNo,
}

/// A shutdown under way.
#[derive(Debug)]
pub(super) struct Drain {
    reply: Sender<(Sequence, bool)>,
    pub(super) done: bool,
}

impl<D: Disk> Shard<D> {
    pub(super) fn take_commands(&mut self) -> bool {
        if !self.replies.is_empty() {
            return false;
        }
        for taken in 0..COMMANDS_PER_TURN {
            let next = self.deferred.take().or_else(|| self.commands.pop());
            let Some(command) = next else {
                return taken > 0;
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
                    let left = self.lanes.detach(session, lane).is_some_and(|lane| {
                        let agent = lane.agent;
                        self.close_lane(lane, CloseReason::Detached);
                        self.store.tables.agent(agent).lanes > 0
                    });
                    // Whoever asked may be gone.
                    let _ = reply.send(left);
                }
                Command::EndSession { session, reason } => self.close_session(session, reason),
                Command::Shutdown { reply } => {
                    self.draining = Some(Drain { reply, done: false });
                }
            }
        }
        true
    }

    fn attach_waits(&mut self, request: &AttachRequest) -> bool {
        let writes =
            self.store.tables.agent_no(&request.agent).is_none() || request.public.is_some();
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
            None if !request.create => Err(AttachError::NoSuchAgent),
            Some(agent) if request.public.is_none() => Ok(agent),
            _ => self
                .store
                .put_agent(&name, request.public.unwrap_or(false))
                .map_err(|refused| match refused {
                    Refused::NoSpace => AttachError::NoSpace,
                    Refused::ReadOnly => AttachError::ReadOnly,
                    _ => AttachError::Busy,
                }),
        };
        let agent = match outcome {
            Ok(agent) => agent,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        if request.window.is_none() && self.store.tables.agent(agent).window.is_none() {
            let _ = reply.send(Err(AttachError::NoWindow));
            return;
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
        if let Some(window) = request.window {
            // Its size is the runtime's own choice, checked with the configuration.
            state.window = WindowWriter::new(window).ok();
        }
        self.lanes.attach(session, lane, agent, ring, socket);
        let outcome = Attached { agent };
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
                // A requester that is gone ends its session, which takes the lane away.
                let _ = reply.to.send(Ok(reply.outcome));
                continue;
            }
            // The tables were taken back already, and with them perhaps the agent itself.
            if let Some(lane) = self.lanes.detach(reply.session, reply.lane) {
                if self.store.tables.agents.len() > lane.agent.0 as usize {
                    self.close_lane(lane, CloseReason::Detached);
                } else {
                    self.forget_lane(lane, CloseReason::Detached);
                }
            }
            let _ = reply.to.send(Err(AttachError::Busy));
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

    fn close_lane(&mut self, lane: Lane, reason: CloseReason) {
        let agent = self.store.tables.agent_mut(lane.agent);
        agent.lanes -= 1;
        if let Some(branch) = agent.branch_mut(lane.branch) {
            branch.lanes -= 1;
        }
        if agent.lanes == 0
            && let Some(mut window) = agent.window.take()
        {
            // A process may still map it, or be about to: it must find nothing.
            window.clear();
        }
        self.forget_lane(lane, reason);
    }

    fn forget_lane(&mut self, mut lane: Lane, reason: CloseReason) {
        if let Some(upload) = lane.upload.take() {
            self.drop_upload(*upload);
        }
        lane.ring.close(reason);
        lane.wake();
    }

    /// Ends a shutdown once nothing is pending and the log is sealed.
    pub(super) fn drain(&mut self) {
        if self.draining.as_ref().is_none_or(|drain| drain.done) {
            return;
        }
        let last = self.store.log.last();
        let lost = self.store.log.read_only().is_some();
        let synced = self.store.log.synced() >= last;
        let settled = lost || (synced && self.store.log.is_sealed());
        self.fail_peer_reads();
        let quiet = self.pending.is_empty() && self.unsent.is_empty();
        if !quiet || !settled {
            if self.store.is_dirty() {
                self.must_flush = true;
            }
            self.store.log.sync_wanted(self.store.log.flushed());
            if quiet {
                self.store.log.end_segment(&mut self.store.disk);
            }
            return;
        }
        for session in self.lanes.sessions() {
            self.close_session(session, CloseReason::ShuttingDown);
        }
        if let Some(drain) = &mut self.draining {
            drain.done = true;
            // The host may have given up waiting.
            let _ = drain.reply.send((last, synced));
        }
    }
}
