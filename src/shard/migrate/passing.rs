//! Commands and bells for agents and lanes that are elsewhere, or on their way.
//!
//! Floor 2. A lane is asked for, and rung for, where it attached; an agent where its name or the routes say. Whoever
//! is asked and has it no more passes the question on, behind those before.
//!
//! Invariants
//! - each command is carried out by one shard: that which has the lane or the agent.

use std::collections::HashMap;
use std::sync::Arc;

use crate::agent::CloseReason;
use crate::id::{AgentNo, LaneNo, SessionNo, ShardNo};
use crate::segment::Disk;
use crate::shard::migrate::Leaving;
use crate::shard::peer::{PeerMessage, owner};
use crate::shard::store::Store;
use crate::shard::{AttachError, AttachRequest, Command, Routes, Shard};

/// Finds the agents that are not on the shard that their names say. Of one that two shards have, as a crash in
/// a move leaves it, the copy that moved less often is it: the other one ends.
#[must_use]
pub fn settle_moves<D: Disk>(stores: &mut [Store<D>]) -> Routes {
    /// Moves, shard, number.
    type Place = (u32, usize, AgentNo);
    let mut places: HashMap<Box<[u8]>, Vec<Place>> = HashMap::new();
    for (shard, store) in stores.iter().enumerate() {
        for (no, agent) in store.tables.all_agents() {
            let places = places.entry(agent.name.clone()).or_default();
            places.push((agent.moves, shard, no));
        }
    }
    let mut routes = Routes::new();
    for (name, mut places) in places {
        places.sort_unstable();
        let mut places = places.into_iter();
        let Some((moves, at, kept)) = places.next() else {
            continue;
        };
        let shard = ShardNo(at as u16);
        for (_, other, no) in places {
            stores[other].end_agent(no, shard);
            stores[at].doubts.add(kept, ShardNo(other as u16));
        }
        if shard != owner(&name, stores.len()) {
            routes.insert(name, (shard, moves));
        }
    }
    routes
}

impl<D: Disk> Shard<D> {
    /// The shard that has an agent, or would have it.
    pub(in crate::shard) fn home(&self, agent: &[u8]) -> ShardNo {
        let known = self.routes.get(agent).map(|(shard, _)| *shard);
        known.unwrap_or_else(|| owner(agent, self.port.shards()))
    }

    /// Notes where an agent is, unless something younger is known.
    pub(in crate::shard) fn route(&mut self, agent: Box<[u8]>, to: ShardNo, moves: u32) {
        if self
            .routes
            .get(&agent)
            .is_none_or(|(_, known)| *known < moves)
        {
            self.routes.insert(agent, (to, moves));
        }
    }

    /// How often an agent of that name has moved, as far as the routes say.
    pub(in crate::shard) fn moves_of(&self, agent: &[u8]) -> u32 {
        self.routes.get(agent).map_or(0, |(_, moves)| *moves)
    }

    /// Notes where agents are whose place is not the one that their name says.
    pub fn set_routes(&mut self, routes: Routes) {
        self.routes = routes;
    }

    /// Takes a command that is about an agent or a lane that is elsewhere, or on its way; what is to be
    /// carried out here is given back.
    pub(in crate::shard) fn pass_on(&mut self, command: Command) -> Option<Command> {
        match command {
            Command::Attach(request) => self.pass_on_attach(request),
            Command::Agent(command) => {
                let here = self.store.tables.agent_no(&command.agent).is_some();
                let home = self.home(&command.agent);
                if home == self.options.no || here && !self.moves.is_coming(&command.agent) {
                    return Some(Command::Agent(command));
                }
                self.forward(home, Command::Agent(command), false);
                None
            }
            Command::Detach {
                session,
                lane,
                reply,
            } => {
                for departure in self.moves.departures.values_mut() {
                    let same = |it: &mut AttachRequest| it.session == session && it.lane == lane;
                    for request in departure.attaches.extract_if(.., same) {
                        request.reply.give(Err(AttachError::Busy));
                    }
                }
                let detach = Command::Detach {
                    session,
                    lane,
                    reply,
                };
                let Some(to) = self.lanes.forwarded(session, lane) else {
                    return Some(detach);
                };
                self.lanes.forget_forward(session, lane);
                self.forward(to, detach, false);
                None
            }
            Command::EndSession { session, reason } => {
                for departure in self.moves.departures.values_mut() {
                    departure.attaches.retain(|it| it.session != session);
                }
                for to in self.lanes.forget_forwards(session) {
                    self.forward(to, Command::EndSession { session, reason }, false);
                }
                Some(Command::EndSession { session, reason })
            }
            other => Some(other),
        }
    }

    fn pass_on_attach(&mut self, request: Box<AttachRequest>) -> Option<Command> {
        let known = self.store.tables.agent_no(&request.agent);
        if let Some(departure) = known.and_then(|no| self.moves.departures.get_mut(&no)) {
            if departure.stage == Leaving::Copied {
                return Some(Command::Attach(request));
            }
            departure.attaches.push(*request);
            return None;
        }
        let home = self.home(&request.agent);
        if home == self.options.no {
            return Some(Command::Attach(request));
        }
        self.forward_lane(&request, home);
        self.forward(home, Command::Attach(request), false);
        None
    }

    /// From now on another shard serves a lane that is asked for here.
    pub(in crate::shard) fn forward_lane(&mut self, request: &AttachRequest, to: ShardNo) {
        let (session, bells) = (request.session, Arc::clone(&request.bells));
        self.lanes
            .forward(session, bells, request.lane, to, self.options.no);
    }

    fn forward(&mut self, to: ShardNo, command: Command, back: bool) {
        let command = Box::new(command);
        self.send_peer(to, PeerMessage::Forward { command, back });
    }

    /// Takes a command that another shard passed on. What finds nothing here goes back once: the lane may
    /// have been on its way there.
    pub(in crate::shard) fn inherit(&mut self, from: ShardNo, command: Command, back: bool) {
        match command {
            Command::Detach {
                session,
                lane,
                reply,
            } if !back && !self.lanes.knows(session, lane) => {
                let detach = Command::Detach {
                    session,
                    lane,
                    reply,
                };
                self.forward(from, detach, true);
            }
            Command::EndSession { session, reason } if !back => {
                self.forward(from, Command::EndSession { session, reason }, true);
                let end = Command::EndSession { session, reason };
                self.moves.inherited.push_back(end);
            }
            Command::Attach(mut request) => {
                request.path.push(from);
                self.moves.inherited.push_back(Command::Attach(request));
            }
            command => self.moves.inherited.push_back(command),
        }
    }

    /// Looks at a lane that rang at another shard.
    pub(in crate::shard) fn rung(&mut self, session: SessionNo, lane: LaneNo) {
        if let Some(at) = self.lanes.find(session, lane) {
            self.queue(at);
        } else if let Some(to) = self.lanes.forwarded(session, lane) {
            self.send_peer(to, PeerMessage::Rung { session, lane });
        }
    }

    /// Closes the lanes here for which a shard would have to ring that is gone: their agents would wait for ever,
    /// and their ends would not be heard of.
    pub(in crate::shard) fn close_orphans(&mut self) {
        for (session, no) in self.lanes.rung_over(&self.lost_peers) {
            if let Some(lane) = self.lanes.detach(session, no) {
                self.close_lane(lane, CloseReason::ShardFailed);
            }
        }
    }

    /// Passes on what was rung for lanes of other shards.
    pub(in crate::shard) fn pass_on_bells(&mut self) {
        while let Some((to, session, lane)) = self.lanes.next_rung() {
            self.send_peer(to, PeerMessage::Rung { session, lane });
        }
    }
}
