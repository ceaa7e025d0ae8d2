//! Lanes whose agent changes shards: stopped, handed over, taken over, and reached from where they were.
//!
//! Floor 2. A client rings for a lane at the shard where it attached, and the control plane asks there for its
//! end: that shard, the lane's *home*, knows which shard to pass that on to.
//!
//! Invariants
//! - a lane is in one shard's slots, or on its way between two.
//! - each shard on the path of a lane that is elsewhere has a forward to the next one, the last to where it is.
//!   What others have that it came through ends with its session.

use std::sync::Arc;

use crate::agent::Attention;
use crate::agent::bell::ServerBells;
use crate::agent::server_lane::ServerLane;
use crate::agent::socket::FrameSocket;
use crate::id::{AgentNo, BranchNo, LaneNo, SessionNo, ShardNo};
use crate::shard::lanes::{Lane, LaneRef, Lanes, NO_LANE, Upload};
use crate::shared::SharedMemory;

/// A lane between two shards.
#[derive(Debug)]
pub struct HandedLane {
    /// The branch that it is on.
    pub branch: BranchNo,
    session: SessionNo,
    bells: Arc<SharedMemory>,
    no: LaneNo,
    ring: ServerLane,
    socket: Option<Arc<FrameSocket>>,
    /// Forks that it owns.
    pub forks: Vec<BranchNo>,
    path: Vec<ShardNo>,
    /// It builds something up that no collection may take.
    pub holds: bool,
}

impl Lanes {
    fn places(&self, agent: AgentNo) -> Vec<LaneRef> {
        let lanes = self.of_agent.get(&agent).into_iter().flatten();
        let place = |&index: &u32| LaneRef {
            index,
            generation: self.slots[index as usize].generation,
        };
        lanes.map(place).collect()
    }

    /// Takes nothing new from an agent's lanes, or takes it again; which lanes they are.
    pub fn freeze(&mut self, agent: AgentNo, frozen: bool) -> Vec<LaneRef> {
        let places = self.places(agent);
        for &at in &places {
            if let Some(lane) = self.get_mut(at) {
                lane.frozen = frozen;
            }
        }
        places
    }

    /// Whether everything that was taken from an agent's lanes is answered.
    pub fn is_quiet(&mut self, agent: AgentNo) -> bool {
        let places = self.places(agent);
        let quiet = |lane: &mut Lane| lane.ring.in_flight() == 0;
        places
            .into_iter()
            .all(|at| self.get_mut(at).is_none_or(quiet))
    }

    /// Takes the uploads of an agent's lanes, which begin again elsewhere.
    pub fn take_uploads(&mut self, agent: AgentNo) -> Vec<Upload> {
        let places = self.places(agent);
        let upload = |at| Some(*self.get_mut(at)?.upload.take()?);
        places.into_iter().filter_map(upload).collect()
    }

    /// Takes an agent's lanes out for another shard, which is rung from here where it has to be.
    pub fn hand_over(&mut self, agent: AgentNo, to: ShardNo, own: ShardNo) -> Vec<HandedLane> {
        let mut handed = Vec::new();
        for (session, no) in self.of_agent(agent) {
            let bells = self.sessions[self.session_at[&session]].bells.session();
            let Some(mut lane) = self.detach(session, no) else {
                continue;
            };
            // From now on it rings, unless the other shard polls it.
            lane.ring.set_attention(Attention::Bell);
            // One that it comes back to rings for it as before it went.
            match lane.path.iter().position(|&shard| shard == to) {
                Some(at) => lane.path.truncate(at),
                None => {
                    self.forwards.insert((session, no), to);
                    lane.path.push(own);
                }
            }
            handed.push(HandedLane {
                branch: lane.branch,
                session,
                bells,
                no,
                ring: lane.ring,
                socket: lane.socket,
                forks: lane.forks,
                path: lane.path,
                holds: lane.holds,
            });
        }
        handed
    }

    /// Takes a lane in that another shard has handed over; it is to be looked at.
    pub fn take_over(&mut self, agent: AgentNo, handed: HandedLane, own: ShardNo) -> LaneRef {
        let HandedLane {
            branch,
            session,
            bells,
            no,
            ring,
            socket,
            forks,
            path,
            holds,
        } = handed;
        if !self.has_session(session) {
            self.open_session(session, ServerBells::new(bells, own));
        }
        let at = self.attach(session, no, agent, ring, socket, path);
        if let Some(lane) = self.get_mut(at) {
            lane.branch = branch;
            lane.forks = forks;
            lane.holds = holds;
        }
        at
    }

    /// Has another shard rung for a lane that is asked for here.
    pub fn forward(
        &mut self,
        session: SessionNo,
        bells: Arc<SharedMemory>,
        lane: LaneNo,
        to: ShardNo,
        own: ShardNo,
    ) {
        if !self.has_session(session) {
            self.open_session(session, ServerBells::new(bells, own));
        }
        self.forwards.insert((session, lane), to);
    }

    /// The shard to which a lane went from here.
    pub fn forwarded(&self, session: SessionNo, lane: LaneNo) -> Option<ShardNo> {
        self.forwards.get(&(session, lane)).copied()
    }

    /// Forgets where a lane went: it ends.
    pub fn forget_forward(&mut self, session: SessionNo, lane: LaneNo) {
        self.forwards.remove(&(session, lane));
    }

    /// Forgets where the lanes of a session went; to which shards.
    pub fn forget_forwards(&mut self, session: SessionNo) -> Vec<ShardNo> {
        let gone = self.forwards.extract_if(|(of, _), _| *of == session);
        let mut shards: Vec<ShardNo> = gone.map(|(_, to)| to).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// The lanes here for which one of these shards has to ring.
    pub fn rung_over(&self, shards: &[ShardNo]) -> Vec<(SessionNo, LaneNo)> {
        let lanes = self.slots.iter().filter_map(|slot| slot.lane.as_ref());
        let of = lanes.filter(|lane| lane.path.iter().any(|it| shards.contains(it)));
        of.map(|lane| (lane.session, lane.no)).collect()
    }

    /// Forgets what went to a shard that is gone.
    pub fn forget_peer(&mut self, shard: ShardNo) {
        self.forwards.retain(|_, to| *to != shard);
    }

    /// Whether a lane is here, or it is known where it went.
    pub fn knows(&self, session: SessionNo, lane: LaneNo) -> bool {
        self.find(session, lane).is_some() || self.forwarded(session, lane).is_some()
    }

    /// The lane of a session and number, if it is here.
    pub fn find(&self, session: SessionNo, lane: LaneNo) -> Option<LaneRef> {
        let session = &self.sessions[*self.session_at.get(&session)?];
        let index = *session.lanes.get(lane.0 as usize)?;
        (index != NO_LANE).then(|| LaneRef {
            index,
            generation: self.slots[index as usize].generation,
        })
    }

    /// A lane that rang here and is elsewhere.
    pub fn next_rung(&mut self) -> Option<(ShardNo, SessionNo, LaneNo)> {
        self.rung.pop()
    }
}
