//! The host's own session: the same lanes, attached from inside the process.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::agent::bell::ClientBells;
use crate::agent::frame::RefusalCode;
use crate::client::{Attach, AttachedLane, ClientError, Connection, Session};
use crate::id::{LaneNo, ShardNo};
use crate::prefetch::Events;
use crate::runtime::control::{ANSWER_WAIT, ControlPlane, Refusal, SessionSeat};
use crate::runtime::{Runtime, RuntimeError};
use crate::shard::Answer;

/// A session without a socket.
#[derive(Debug)]
struct HostConnection {
    bells: ClientBells,
    /// Weak: lanes may outlive the runtime, which then is gone for them.
    control: Weak<ControlPlane>,
    seat: Mutex<SessionSeat>,
}

impl Runtime {
    /// The stream of what agents of a shard do, in the order in which it happened: what changes their
    /// lifecycle or their versions. To be taken once; nothing is written before, and nobody waits for who
    /// reads: what finds it full is lost and counted. `None`: no such shard, or taken already.
    #[must_use]
    pub fn access_events(&self, shard: ShardNo) -> Option<Events> {
        let mut all = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = all.get_mut(usize::from(shard.0))?.take()?;
        events.listen();
        Some(events)
    }
}

/// Opens the host's session.
pub(super) fn session(control: &Arc<ControlPlane>) -> Result<Session, RuntimeError> {
    let (seat, region) = control.open_session(None)?;
    let os = |source: std::io::Error| RuntimeError::Os {
        what: "opening the host's session",
        source,
    };
    let statuses = control
        .status_fds()
        .into_iter()
        .map(|fd| fd.try_clone())
        .collect::<Result<Vec<_>, _>>()
        .map_err(os)?;
    let bells =
        ClientBells::map(&region, &statuses).map_err(|error| os(std::io::Error::other(error)))?;
    let connection = HostConnection {
        bells,
        control: Arc::downgrade(control),
        seat: Mutex::new(seat),
    };
    Ok(Session::over(Arc::new(connection)))
}

impl HostConnection {
    fn seat(&self) -> MutexGuard<'_, SessionSeat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection for HostConnection {
    fn bells(&self) -> &ClientBells {
        &self.bells
    }

    fn attach(&self, agent: &str, how: Attach) -> Result<AttachedLane, ClientError> {
        let control = self.control.upgrade().ok_or(ClientError::RuntimeGone)?;
        let (send, answer) = channel();
        let reply = Answer::new(move |outcome| {
            // Whoever asked may have given up.
            let _ = send.send(outcome);
        });
        let asked = control.attach(&mut self.seat(), agent, how, reply);
        // The session is free for other threads meanwhile.
        let attached = asked.and_then(|attaching| match answer.recv_timeout(ANSWER_WAIT) {
            Ok(outcome) => control.settle(&mut self.seat(), attaching, outcome),
            Err(_) => Err(control.give_up(&mut self.seat(), &attaching)),
        });
        let lane = attached.map_err(|refusal| ClientError::Refused {
            code: refusal.code,
            text: refusal.text,
        })?;
        let no = lane.lane;
        let map = move || {
            let window = lane.window.try_clone();
            let window = window.map_err(|error| ClientError::Refused {
                code: RefusalCode::NoMemory,
                text: error.to_string(),
            })?;
            let fds = [lane.client, lane.server, window];
            AttachedLane::map(&fds, lane.sizes, no, lane.shard, lane.window_bytes)
        };
        // Out of descriptors or mappings: nobody would ever close the lane.
        map().inspect_err(|_| self.detach(no))
    }

    fn ask(&self, question: &[u8]) -> Result<Vec<u8>, ClientError> {
        let control = self.control.upgrade().ok_or(ClientError::RuntimeGone)?;
        let (send, answer) = channel();
        let reply = Answer::new(move |outcome| {
            // Whoever asked may have given up.
            let _ = send.send(outcome);
        });
        let asked = control.ask(question, None, reply);
        let told = asked.and_then(|()| match answer.recv_timeout(ANSWER_WAIT) {
            Ok(outcome) => outcome,
            Err(_) => {
                let text = "no answer in time; ask again";
                Err(Refusal::new(RefusalCode::NoMemory, text))
            }
        });
        told.map_err(|refusal| ClientError::Refused {
            code: refusal.code,
            text: refusal.text,
        })
    }

    fn detach(&self, lane: LaneNo) {
        if let Some(control) = self.control.upgrade() {
            let _ = control.detach(&mut self.seat(), lane, Answer::unheard());
        }
    }

    fn wake(&self, shard: ShardNo) {
        if let Some(control) = self.control.upgrade()
            && let Some(doorbell) = control.doorbell(shard)
        {
            doorbell.ring();
        }
    }

    fn check(&self) -> Result<(), ClientError> {
        match self.control.strong_count() {
            0 => Err(ClientError::RuntimeGone),
            _ => Ok(()),
        }
    }

    fn drain(&self) -> Result<(), ClientError> {
        self.check()
    }

    fn is_alive(&self) -> bool {
        self.control.strong_count() > 0
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn runtime_pid(&self) -> Option<u32> {
        Some(std::process::id())
    }
}
