//! The sessions and lanes of one shard, and which of them to look at next.
//!
//! Floor 2. A lane that was lately active is *polled*: its submission ring is looked at in every
//! turn, and its agent rings no bell. Every other lane is reached through its session's bell ring.
//!
//! Cost of a turn that finds nothing: one cache line per polled lane and per session looked at,
//! all of them in the shard's cache already.
//!
//! Invariants
//! - a lane is in `polled` exactly while its `polled` flag is up.
//! - a [`LaneRef`] is compared with the lane's generation before use: what was pending for a lane
//!   that closed finds nothing.

mod handover;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::agent::Attention;
use crate::agent::bell::{Bell, ServerBells};
use crate::agent::entry::{Op, Status, Submission};
use crate::agent::frame::Frame;
use crate::agent::server_lane::{ServerLane, WakeKind};
use crate::agent::socket::FrameSocket;
use crate::id::{AgentNo, BranchNo, LaneNo, SessionNo, ShardNo, View};
#[cfg(test)]
use crate::segment::index::ObjectNo;
use crate::shard::agent::{BranchRef, MAIN};
use crate::shard::large::LargeValue;
use crate::shard::publish::Brought;

pub use handover::HandedLane;

/// Lanes polled at once: one line each in every turn.
const POLLED_LANES_MAX: usize = 32;
/// A lane is worth polling when it is served again within this many services.
const POLL_WITHIN_SERVICES: u64 = 64;
/// Services of others after which a silent lane is no longer polled.
const POLL_KEEP_TURNS: u64 = 4096;
/// Turns between two looks for silent lanes.
const RETIRE_TURNS: u64 = 64;
/// Sessions whose bells are looked at in one turn.
const SESSIONS_PER_TURN: usize = 16;

/// The lane of that number belongs to another shard, or is gone.
const NO_LANE: u32 = u32::MAX;

/// A lane, as long as it is the same one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct LaneRef {
    index: u32,
    generation: u32,
}

/// A large value on its way in.
#[derive(Debug)]
pub struct Upload {
    /// The branch that it goes to.
    pub place: BranchRef,
    /// Whose share of the uploads it takes.
    pub session: SessionNo,
    /// When its last part came, in the shard's time, in nanoseconds.
    pub touched_ns: u64,
    /// The key.
    pub key: Vec<u8>,
    /// Bytes announced.
    pub total: u64,
    /// Bytes taken.
    pub stored: u64,
    /// What of it is stored, and what is not cut yet.
    pub value: LargeValue,
    /// Parts were appended since the last flush.
    pub unflushed: bool,
}

/// One lane.
pub struct Lane {
    /// Its rings.
    pub ring: ServerLane,
    /// Whose state it reaches.
    pub agent: AgentNo,
    /// The branch that it is on.
    pub branch: BranchNo,
    /// The session it belongs to.
    pub session: SessionNo,
    /// Its number there.
    pub no: LaneNo,
    /// The session's socket, to wake an event loop; none for threads of the host.
    pub socket: Option<Arc<FrameSocket>>,
    /// An operation that could not be applied yet: it goes first.
    pub stalled: Option<Submission>,
    /// Operations of it that wait for an object to be read, and begin again then.
    pub parked: u32,
    /// One of them changes something.
    pub parked_write: bool,
    /// An operation that must not overtake them.
    pub behind: Option<Submission>,
    /// Forks that it owns.
    pub forks: Vec<BranchNo>,
    /// It brings checkpoints that nothing names yet: until it ends, nothing is swept.
    pub holds: bool,
    /// A large value on its way in.
    pub upload: Option<Box<Upload>>,
    /// Parts of one were acknowledged and then lost with a flush: what its next part is told.
    pub lost_upload: Option<(Status, u32)>,
    /// What published names mean to the call that is under way.
    pub brought: Vec<Brought>,
    /// Nothing new is taken from it: its agent is about to move.
    pub frozen: bool,
    /// The shards that pass on what is rung and asked for it, first the one where it attached; none while it
    /// is there.
    pub path: Vec<ShardNo>,
    /// It is among those to be looked at again.
    pub queued: bool,
    /// Completions were posted in this turn.
    pub touched: bool,
    last_service: u64,
    last_turn: u64,
    /// The turn in which it was looked at last.
    looked: u64,
    polled: bool,
}

impl Lane {
    /// Whether an operation would overtake one that is parked, although the order of the two counts.
    pub fn must_wait(&self, op: Op) -> bool {
        self.parked > 0 && (self.parked_write || changes(op))
    }

    /// Notes that an operation waits for an object to be read.
    pub fn park(&mut self, op: Op) {
        self.parked += 1;
        self.parked_write |= changes(op);
    }

    /// Notes that an operation waits no longer.
    pub fn unpark(&mut self) {
        self.parked -= 1;
        self.parked_write &= self.parked > 0;
    }

    /// Wakes the agent if it waits for completions, by futex or through the session's socket.
    pub fn wake(&mut self) {
        if self.ring.wake_if_waiting() == WakeKind::SocketByte
            && let Some(socket) = &self.socket
        {
            // A full socket holds a wake already; a broken one is the listener's to see.
            let _ = socket.send(0, &Frame::Wake { lane: self.no }, &[]);
        }
    }
}

/// Whether an operation may change what others of its lane find.
fn changes(op: Op) -> bool {
    match op {
        Op::Put | Op::PutPart | Op::MultiPut | Op::Delete | Op::Sync | Op::Call => true,
        Op::Get | Op::GetFrom | Op::Exists | Op::MultiGet | Op::Scan | Op::Stats => false,
    }
}

struct Slot {
    generation: u32,
    lane: Option<Box<Lane>>,
}

struct Session {
    no: SessionNo,
    bells: ServerBells,
    /// By lane number: index into the slots, or `NO_LANE` (it belongs to another shard).
    lanes: Vec<u32>,
    /// Lanes that an overrun of the bells left to look at.
    scan: Vec<u32>,
}

/// Whether a lane comes up in a turn for the first time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// It does.
    First,
    /// It was looked at in this turn already.
    Again {
        /// It will be in the next turn by itself.
        is_seen_to: bool,
    },
}

/// All lanes of a shard.
#[derive(Default)]
pub struct Lanes {
    slots: Vec<Slot>,
    free: Vec<u32>,
    sessions: Vec<Session>,
    session_at: HashMap<SessionNo, usize>,
    of_agent: HashMap<AgentNo, Vec<u32>>,
    polled: Vec<u32>,
    /// Lanes that went to other shards.
    forwards: HashMap<(SessionNo, LaneNo), ShardNo>,
    /// Of them, those that rang.
    rung: Vec<(ShardNo, SessionNo, LaneNo)>,
    next_session: usize,
    services: u64,
    turn: u64,
    count: usize,
}

impl Lanes {
    /// Lanes attached.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Makes a session known.
    pub fn open_session(&mut self, no: SessionNo, bells: ServerBells) {
        self.session_at.insert(no, self.sessions.len());
        self.sessions.push(Session {
            no,
            bells,
            lanes: Vec::new(),
            scan: Vec::new(),
        });
    }

    /// Whether the session is known.
    pub fn has_session(&self, no: SessionNo) -> bool {
        self.session_at.contains_key(&no)
    }

    /// Adds a lane to a known session, for which others pass on what is rung.
    pub fn attach(
        &mut self,
        session: SessionNo,
        no: LaneNo,
        agent: AgentNo,
        ring: ServerLane,
        socket: Option<Arc<FrameSocket>>,
        path: Vec<ShardNo>,
    ) -> LaneRef {
        self.forwards.remove(&(session, no));
        let lane = Box::new(Lane {
            ring,
            agent,
            branch: MAIN,
            session,
            no,
            socket,
            stalled: None,
            parked: 0,
            parked_write: false,
            behind: None,
            forks: Vec::new(),
            holds: false,
            upload: None,
            lost_upload: None,
            brought: Vec::new(),
            frozen: false,
            path,
            queued: false,
            touched: false,
            last_service: 0,
            last_turn: 0,
            looked: 0,
            polled: false,
        });
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                lane: None,
            });
            self.slots.len() as u32 - 1
        });
        self.slots[index as usize].lane = Some(lane);
        self.of_agent.entry(agent).or_default().push(index);
        self.count += 1;
        let lanes = &mut self.sessions[self.session_at[&session]].lanes;
        let at = no.0 as usize;
        if lanes.len() <= at {
            lanes.resize(at + 1, NO_LANE);
        }
        lanes[at] = index;
        let generation = self.slots[index as usize].generation;
        LaneRef { index, generation }
    }

    /// Takes a lane out.
    pub fn detach(&mut self, session: SessionNo, no: LaneNo) -> Option<Lane> {
        let session = &mut self.sessions[*self.session_at.get(&session)?];
        let index = std::mem::replace(session.lanes.get_mut(no.0 as usize)?, NO_LANE);
        self.take(index)
    }

    /// Takes a session out, with its lanes.
    pub fn close_session(&mut self, no: SessionNo) -> Vec<Lane> {
        let Some(at) = self.session_at.remove(&no) else {
            return Vec::new();
        };
        let session = self.sessions.swap_remove(at);
        if let Some(moved) = self.sessions.get(at) {
            self.session_at.insert(moved.no, at);
        }
        session
            .lanes
            .into_iter()
            .filter_map(|index| self.take(index))
            .collect()
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<SessionNo> {
        self.sessions.iter().map(|session| session.no).collect()
    }

    fn take(&mut self, index: u32) -> Option<Lane> {
        let slot = self.slots.get_mut(index as usize)?;
        let lane = slot.lane.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.polled.retain(|&polled| polled != index);
        if let Entry::Occupied(mut lanes) = self.of_agent.entry(lane.agent) {
            lanes.get_mut().retain(|&other| other != index);
            if lanes.get().is_empty() {
                lanes.remove();
            }
        }
        self.count -= 1;
        Some(*lane)
    }

    /// The lane, if it is still there.
    #[inline]
    pub fn get_mut(&mut self, at: LaneRef) -> Option<&mut Lane> {
        let slot = self.slots.get_mut(at.index as usize)?;
        if slot.generation == at.generation {
            slot.lane.as_deref_mut()
        } else {
            None
        }
    }

    /// Lanes to look at in this turn: first the polled ones, then those whose bell rang.
    pub fn gather(&mut self, ready: &mut Vec<LaneRef>) {
        self.turn += 1;
        for &index in &self.polled {
            let slot = &self.slots[index as usize];
            ready.push(LaneRef {
                index,
                generation: slot.generation,
            });
        }
        for _ in 0..self.sessions.len().min(SESSIONS_PER_TURN) {
            self.next_session = (self.next_session + 1) % self.sessions.len();
            self.gather_session(self.next_session, ready);
        }
    }

    fn gather_session(&mut self, at: usize, ready: &mut Vec<LaneRef>) {
        let session = &mut self.sessions[at];
        for _ in 0..64 {
            match session.bells.next_bell() {
                Bell::Quiet => break,
                // A number that is none of its lanes hurts nobody: there is nothing to look at.
                Bell::Lane(no) => {
                    let index = session.lanes.get(no.0 as usize).copied().unwrap_or(NO_LANE);
                    if index != NO_LANE {
                        let generation = self.slots[index as usize].generation;
                        ready.push(LaneRef { index, generation });
                    } else if let Some(&to) = self.forwards.get(&(session.no, no)) {
                        self.rung.push((to, session.no, no));
                    }
                }
                Bell::Overrun => {
                    let own = self
                        .forwards
                        .iter()
                        .filter(|((of, _), _)| *of == session.no);
                    self.rung.extend(own.map(|(&(of, no), &to)| (to, of, no)));
                    session.scan.clear();
                    session
                        .scan
                        .extend(session.lanes.iter().filter(|&&lane| lane != NO_LANE));
                    break;
                }
            }
        }
        for _ in 0..64 {
            let Some(index) = session.scan.pop() else {
                break;
            };
            let generation = self.slots[index as usize].generation;
            ready.push(LaneRef { index, generation });
        }
    }

    /// Notes that a lane is looked at in this turn; whether it was before, as it may ring without end.
    pub fn look(&mut self, at: LaneRef) -> Look {
        let turn = self.turn;
        match self.get_mut(at) {
            Some(lane) if lane.looked == turn => Look::Again {
                is_seen_to: lane.queued || lane.polled,
            },
            Some(lane) => {
                lane.looked = turn;
                Look::First
            }
            None => Look::First,
        }
    }

    /// Notes that a lane was served, and decides whether to poll it from now on.
    pub fn served(&mut self, at: LaneRef) {
        self.services += 1;
        let (services, turn) = (self.services, self.turn);
        let Some(lane) = self.get_mut(at) else { return };
        let again = services - lane.last_service <= POLL_WITHIN_SERVICES && lane.last_service > 0;
        lane.last_service = services;
        lane.last_turn = turn;
        if again && !lane.polled && self.polled.len() < POLLED_LANES_MAX {
            let lane = self.get_mut(at).expect("just seen");
            lane.polled = true;
            lane.ring.set_attention(Attention::Polled);
            self.polled.push(at.index);
        }
    }

    /// Stops polling lanes that fell silent. What they submitted at the last moment is returned.
    pub fn retire(&mut self, ready: &mut Vec<LaneRef>) {
        let turn = self.turn;
        if !turn.is_multiple_of(RETIRE_TURNS) {
            return;
        }
        let Some(at) = self.polled.iter().position(|&index| {
            let lane = self.slots[index as usize].lane.as_ref();
            lane.is_none_or(|lane| turn - lane.last_turn > POLL_KEEP_TURNS)
        }) else {
            return;
        };
        self.stop_polling(at, ready);
    }

    /// Stops polling altogether, before a sleep.
    pub fn retire_all(&mut self, ready: &mut Vec<LaneRef>) {
        while !self.polled.is_empty() {
            self.stop_polling(0, ready);
        }
    }

    fn stop_polling(&mut self, at: usize, ready: &mut Vec<LaneRef>) {
        let index = self.polled.swap_remove(at);
        let slot = &mut self.slots[index as usize];
        if let Some(lane) = &mut slot.lane {
            lane.polled = false;
            // The agent may have read the flag before it changed: look once more.
            if lane.ring.set_attention(Attention::Bell) {
                ready.push(LaneRef {
                    index,
                    generation: slot.generation,
                });
            }
        }
    }

    /// The lanes of an agent, by their sessions and numbers.
    pub fn of_agent(&self, agent: AgentNo) -> Vec<(SessionNo, LaneNo)> {
        let lanes = self.of_agent.get(&agent).into_iter().flatten();
        let lanes = lanes.filter_map(|&index| self.slots[index as usize].lane.as_ref());
        lanes.map(|lane| (lane.session, lane.no)).collect()
    }

    /// Lets every lane on a branch read the window in another view from now on.
    pub fn set_view(&mut self, place: BranchRef, view: View) {
        let Some(lanes) = self.of_agent.get(&place.agent) else {
            return;
        };
        for &index in lanes {
            if let Some(lane) = &mut self.slots[index as usize].lane
                && lane.branch == place.branch
            {
                lane.ring.set_view(view);
            }
        }
    }

    /// Whether a bell was not heard yet: asked after the sleeping flag went up.
    pub fn is_rung(&self) -> bool {
        self.sessions
            .iter()
            .any(|session| !session.scan.is_empty() || !session.bells.settled())
    }

    /// The upload that saw no part for longest, of a session or of all, and when its last came.
    pub fn oldest_upload(&self, of: Option<SessionNo>) -> Option<(LaneRef, u64)> {
        let uploads = self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let upload = slot.lane.as_ref()?.upload.as_ref()?;
            let at = LaneRef {
                index: index as u32,
                generation: slot.generation,
            };
            let counts = of.is_none_or(|session| upload.session == session);
            counts.then_some((at, upload.touched_ns))
        });
        uploads.min_by_key(|(_, touched_ns)| *touched_ns)
    }

    /// Objects that uploads hold.
    #[cfg(test)]
    pub fn upload_parts(&self) -> impl Iterator<Item = ObjectNo> {
        let lanes = self.slots.iter().filter_map(|slot| slot.lane.as_ref());
        let uploads = lanes.filter_map(|lane| lane.upload.as_ref());
        uploads.flat_map(|upload| upload.value.held())
    }
}
