//! One connected process, as the listener knows it, and the requests of it that are under way.
//!
//! Floor 4. A request to a shard is answered by a notice, some time later; meanwhile the session
//! may send others, and so may everybody else.
//!
//! Invariants
//! - the answers of a session leave in the order of its requests.
//! - an answer that finds the socket full waits for room there, and those behind it with it.
//! - a lane whose `Attached` did not reach the client is taken back: the session died, or the shard
//!   took too long.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use crate::agent::frame::{ATTACH_CREATE, ATTACH_PUBLIC, Frame, RefusalCode};
use crate::agent::socket::{FrameSocket, Peer, SocketError};
use crate::client::Attach;
use crate::id::{LaneNo, ShardNo};
use crate::runtime::control::{
    ANSWER_WAIT, Attaching, ControlPlane, Detaching, NewLane, Notice, Outcome, Refusal, SessionSeat,
};
use crate::shard::Answer;

/// Requests of one session under way. While there are so many, its frames stay in its socket.
const REQUESTS_MAX: usize = 4096;
/// Of these, attaches: each holds two descriptors.
const ATTACHES_MAX: usize = 64;

/// What is waited for on the socket of a session that may ask for more.
pub(super) const SPEAKS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// One connected process.
pub(super) struct Guest {
    key: u64,
    pub(super) socket: Arc<FrameSocket>,
    pub(super) peer: Peer,
    pub(super) name: String,
    /// After its `Hello`.
    pub(super) seat: Option<SessionSeat>,
    /// Readable once the process is dead.
    pub(super) process: Option<OwnedFd>,
    /// What is waited for on its socket.
    pub(super) listened: EventFlags,
    /// An answer waits for room in the socket.
    is_stuck: bool,
    requests: VecDeque<Request>,
    /// Of these, how many are or were attaches.
    attaches: usize,
    /// Number of the first of `requests`.
    first: u64,
}

/// A request that was not answered yet.
struct Request {
    /// The client's number for it.
    number: u32,
    is_attach: bool,
    deadline: Instant,
    state: State,
}

enum State {
    Attaching(Attaching),
    Detaching { lane: LaneNo, shard: ShardNo },
    Asking,
    Done(Reply),
}

enum Reply {
    Attached(Box<NewLane>),
    Detached(LaneNo),
    Told(Vec<u8>),
    Refused(Refusal),
}

impl From<Result<NewLane, Refusal>> for Reply {
    fn from(outcome: Result<NewLane, Refusal>) -> Self {
        match outcome {
            Ok(lane) => Self::Attached(Box::new(lane)),
            Err(refusal) => Self::Refused(refusal),
        }
    }
}

impl Guest {
    pub(super) fn new(key: u64, socket: FrameSocket, peer: Peer) -> Self {
        Self {
            key,
            socket: Arc::new(socket),
            peer,
            name: String::new(),
            seat: None,
            process: None,
            listened: SPEAKS,
            is_stuck: false,
            requests: VecDeque::new(),
            attaches: 0,
            first: 0,
        }
    }

    /// What to wait for on its socket: its end; its frames, while more requests may be taken; room,
    /// while an answer needs some.
    pub(super) fn wanted(&self) -> EventFlags {
        let mut wanted = if self.is_full() {
            EventFlags::RDHUP
        } else {
            SPEAKS
        };
        wanted.set(EventFlags::OUT, self.is_stuck);
        wanted
    }

    /// Whether no more requests are to be taken for now.
    pub(super) fn is_full(&self) -> bool {
        self.attaches >= ATTACHES_MAX || self.requests.len() >= REQUESTS_MAX
    }

    /// Whether a request still waits for its shard.
    pub(super) fn awaits(&self, ticket: u64) -> bool {
        let at = ticket.checked_sub(self.first);
        let request = at.and_then(|at| self.requests.get(at as usize));
        request.is_some_and(|request| !matches!(request.state, State::Done(_)))
    }

    /// Takes an `Attach`. The ticket of the request, and when it is overdue.
    pub(super) fn attach(
        &mut self,
        control: &ControlPlane,
        number: u32,
        flags: u32,
        agent: &str,
    ) -> (u64, Instant) {
        let Peer { uid, gid, .. } = self.peer;
        let asked = if control.allows(uid, gid, agent) {
            let how = Attach {
                create: flags & ATTACH_CREATE != 0,
                public: flags & ATTACH_PUBLIC != 0,
            };
            let answer = self.answer(control, Outcome::Attached);
            self.seat
                .as_mut()
                .ok_or_else(|| Refusal::new(RefusalCode::Protocol, "no session"))
                .and_then(|seat| control.attach(seat, agent, how, answer))
        } else {
            let text = format!(
                "user {uid} may not attach to agent {agent:?}; the runtime's [[access]] rules decide"
            );
            Err(Refusal::new(RefusalCode::NotAllowed, text))
        };
        let state = match asked {
            Ok(attaching) => State::Attaching(attaching),
            Err(refusal) => State::Done(Reply::Refused(refusal)),
        };
        self.wait_for(number, state)
    }

    /// Takes a `Detach`. The ticket of the request, and when it is overdue.
    pub(super) fn detach(
        &mut self,
        control: &ControlPlane,
        number: u32,
        lane: LaneNo,
    ) -> (u64, Instant) {
        let answer = self.answer(control, |()| Outcome::Detached);
        let seat = self.seat.as_mut();
        let state = match seat.and_then(|seat| control.detach(seat, lane, answer)) {
            Some(Detaching { shard, asked: true }) => State::Detaching { lane, shard },
            Some(_) => State::Done(Reply::Detached(lane)),
            None => {
                let text = format!("this session has no lane {lane}");
                let refusal = Refusal::new(RefusalCode::NoSuchLane, text);
                State::Done(Reply::Refused(refusal))
            }
        };
        self.wait_for(number, state)
    }

    /// Takes an `Ask`. The ticket of the request, and when it is overdue.
    pub(super) fn ask(
        &mut self,
        control: &Arc<ControlPlane>,
        number: u32,
        question: &[u8],
    ) -> (u64, Instant) {
        let who = Some((self.peer.uid, self.peer.gid));
        let answer = self.answer(control, Outcome::Told);
        let state = match control.ask(question, who, answer) {
            Ok(()) => State::Asking,
            Err(refusal) => State::Done(Reply::Refused(refusal)),
        };
        self.wait_for(number, state)
    }

    fn wait_for(&mut self, number: u32, state: State) -> (u64, Instant) {
        let ticket = self.first + self.requests.len() as u64;
        let deadline = Instant::now() + ANSWER_WAIT;
        let is_attach = matches!(state, State::Attaching(_));
        self.attaches += usize::from(is_attach);
        self.requests.push_back(Request {
            number,
            is_attach,
            deadline,
            state,
        });
        (ticket, deadline)
    }

    /// An answer that becomes a notice about the next request.
    fn answer<T: 'static>(
        &self,
        control: &ControlPlane,
        outcome: impl FnOnce(T) -> Outcome + Send + 'static,
    ) -> Answer<T> {
        let (key, ticket) = (self.key, self.first + self.requests.len() as u64);
        let notices = control.notices();
        Answer::new(move |answer| {
            notices.tell(Notice::Answered {
                key,
                ticket,
                outcome: outcome(answer),
            });
        })
    }

    /// Takes in what a shard answered. What comes for a request that was given up is dropped: the
    /// shard was told.
    pub(super) fn settle(&mut self, control: &ControlPlane, ticket: u64, outcome: Outcome) {
        if !self.awaits(ticket) {
            return;
        }
        let request = &mut self.requests[(ticket - self.first) as usize];
        let Some(seat) = &mut self.seat else { return };
        // What stands in meanwhile is never sent: nothing comes between.
        let lost = Refusal::new(RefusalCode::Protocol, "lost");
        let state = std::mem::replace(&mut request.state, State::Done(Reply::Refused(lost)));
        request.state = match (state, outcome) {
            (State::Attaching(attaching), Outcome::Attached(answer)) => {
                State::Done(control.settle(seat, attaching, answer).into())
            }
            (State::Detaching { lane, .. }, Outcome::Detached) => {
                State::Done(Reply::Detached(lane))
            }
            (State::Asking, Outcome::Told(Ok(answer))) => State::Done(Reply::Told(answer)),
            (State::Asking, Outcome::Told(Err(refusal))) => State::Done(Reply::Refused(refusal)),
            (state, _) => state,
        };
    }

    /// Gives up what is overdue.
    pub(super) fn expire(&mut self, control: &ControlPlane, now: Instant) {
        for request in &mut self.requests {
            if request.deadline <= now && matches!(request.state, State::Asking) {
                let text = "no answer in time; ask again";
                let late = Refusal::new(RefusalCode::NoMemory, text);
                request.state = State::Done(Reply::Refused(late));
            }
        }
        self.give_up(control, |request, _| request.deadline <= now);
    }

    /// A shard is gone, and has closed its lanes: what it was asked for ends, and whoever waits
    /// for a lane of its on the socket is woken to see that it is closed.
    pub(super) fn shard_gone(&mut self, control: &ControlPlane, gone: ShardNo) {
        self.give_up(control, |_, shard| shard == gone);
        // All of its lanes: agents of some may have moved to that shard, and one woken in vain looks once more.
        for lane in self.seat.iter().flat_map(SessionSeat::open_lanes) {
            // Where the socket is full it is readable already.
            let _ = self.socket.send(0, &Frame::Wake { lane }, &[]);
        }
    }

    fn give_up(&mut self, control: &ControlPlane, which: impl Fn(&Request, ShardNo) -> bool) {
        let Some(seat) = &mut self.seat else { return };
        for request in &mut self.requests {
            let reply = match &request.state {
                State::Attaching(attaching) if which(request, attaching.shard) => {
                    Reply::Refused(control.give_up(seat, attaching))
                }
                // Its command is in the shard's inbox and stays there: nothing is left to do.
                State::Detaching { lane, shard } if which(request, *shard) => {
                    Reply::Detached(*lane)
                }
                _ => continue,
            };
            request.state = State::Done(reply);
        }
    }

    /// Sends the answers that are ready, as far as their order and the room in the socket let them.
    pub(super) fn send_answers(&mut self, control: &ControlPlane) {
        self.is_stuck = false;
        while let Some(Request { number, state, .. }) = self.requests.front()
            && let State::Done(reply) = state
        {
            let sent = match reply {
                Reply::Attached(lane) => self.send_attached(*number, lane),
                Reply::Detached(lane) => {
                    let lane = *lane;
                    self.socket.send(*number, &Frame::Detached { lane }, &[])
                }
                Reply::Told(body) => self.socket.send(*number, &Frame::Told { body }, &[]),
                Reply::Refused(refusal) => self.refuse(*number, refusal),
            };
            if let Err(SocketError::WouldBlock) = sent {
                self.is_stuck = true;
                return;
            }
            let Some(request) = self.requests.pop_front() else {
                return;
            };
            self.first += 1;
            self.attaches -= usize::from(request.is_attach);
            // It is gone, and its session ends soon; until then nobody else would close the lane.
            if sent.is_err()
                && let State::Done(Reply::Attached(lane)) = request.state
                && let Some(seat) = &mut self.seat
            {
                let _ = control.detach(seat, lane.lane, Answer::unheard());
            }
        }
    }

    fn send_attached(&self, number: u32, lane: &NewLane) -> Result<(), SocketError> {
        let attached = Frame::Attached {
            lane: lane.lane,
            agent: lane.agent,
            shard: lane.shard,
            sizes: lane.sizes,
            window_bytes: lane.window_bytes,
        };
        let fds = [
            lane.client.as_fd(),
            lane.server.as_fd(),
            lane.window.as_fd(),
        ];
        self.socket.send(number, &attached, &fds)
    }

    /// Tells the client that a request was refused.
    pub(super) fn refuse(&self, number: u32, refusal: &Refusal) -> Result<(), SocketError> {
        let Refusal { code, text } = refusal;
        self.socket
            .send(number, &Frame::Refused { code: *code, text }, &[])
    }
}
