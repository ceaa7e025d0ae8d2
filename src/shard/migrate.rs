//! Agents that change shards while they are in use.
//!
//! Floor 2. The target copies what the agent holds while the agent goes on at the source (`copy_in`). Then the
//! source lets its lanes finish what they began and takes nothing new from them; the target copies the rest,
//! appends all of the agent as its own, moved once more, and has that synced. Now the source says, synced,
//! that the agent is gone, and hands the lanes over: rings, window, sessions. They go on at the target.
//!
//! A crash in between leaves the agent on both shards, or on the target alone. Of two the one that moved less
//! often is it: its end was not on the device, and before that nothing was acknowledged at the target. The
//! start ends the other (`Store::end_agent`).
//!
//! The bells of a lane stay where it was attached: its shard passes on what is rung and asked there.
//!
//! Invariants
//! - at any time one shard at most takes entries from a lane, and none does between the two.
//! - the source's last word comes after the target's copy is on the device, the first entry at the target
//!   after that word is.
//! - a command for a lane reaches the shard that serves it, behind those given before.

mod ending;
mod landing;
mod passing;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::agent::CloseReason;
use crate::agent::entry::Status;
use crate::cache::WindowWriter;
use crate::crash;
use crate::id::{AgentNo, BranchNo, ObjectId, ShardNo};
use crate::prefetch::AccessKind;
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, Head, Sequence};
use crate::shard::agent::{BranchRef, MAIN};
use crate::shard::call::Failed;
use crate::shard::lanes::HandedLane;
use crate::shard::lifecycle::AgentError;
use crate::shard::peer::PeerMessage;
use crate::shard::store::Refused;
use crate::shard::{AttachRequest, Command, Event, Shard};
use crate::state::tree::EMPTY_TREE;
use ending::TakenBack;
pub(in crate::shard) use ending::{Doubts, Ended};
#[cfg(test)]
pub(in crate::shard) use landing::LANDING_PER_TURN;
use landing::{Item, Parcel};
pub use passing::settle_moves;

/// Agents on their way to one shard at once.
const ARRIVALS_MAX: usize = 4;

/// What source and target say to each other about an agent.
#[derive(Debug)]
pub struct MoveMessage {
    agent: Box<[u8]>,
    word: Word,
}

#[derive(Debug)]
enum Word {
    /// To the target: copy it.
    Begin,
    /// To the source: all that it offered is here.
    Copied,
    /// To the target: the agent stands still, and this is all of it beside its objects.
    Rest(Box<Parcel>),
    /// To the source: all of it is on this device.
    Landed,
    /// To the target: it is gone here; its lanes.
    Handover(Box<Handover>),
    /// It stays where it was, and the sender has nothing of it.
    Off,
    /// It stays where it was; a start may find a copy at the sender, until that says `Off`.
    Doubtful,
}

/// What goes on at the target.
#[derive(Debug)]
struct Handover {
    lanes: Vec<HandedLane>,
    window: Option<WindowWriter>,
    window_fd: Option<Arc<OwnedFd>>,
    /// Attaches that came meanwhile.
    attaches: Vec<AttachRequest>,
}

/// How far an agent is that leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leaving {
    /// It is copied, and goes on.
    Copied,
    /// Its lanes finish what they began.
    Stopping,
    /// It stands still, and the target has the rest.
    Still,
    /// The record that it is gone was appended, and has to reach the device.
    Gone(Sequence),
}

/// An agent that leaves.
#[derive(Debug)]
struct Departure {
    to: ShardNo,
    stage: Leaving,
    attaches: Vec<AttachRequest>,
}

/// How far an agent is that comes.
#[derive(Debug)]
enum Coming {
    /// It is copied.
    Copying,
    /// The rest of it is copied.
    Rest(Box<Parcel>),
    /// All of it is here; the log does not know it yet.
    Unnamed(Box<Parcel>),
    /// Its records are appended.
    Landing(AgentNo, VecDeque<Item>),
    /// They have to reach the device.
    Syncing(AgentNo, Sequence),
    /// The source has to let go.
    Landed(AgentNo),
}

/// An agent that comes.
#[derive(Debug)]
struct Arrival {
    from: ShardNo,
    ticket: u64,
    stage: Coming,
}

/// All agents that change shards here.
#[derive(Debug, Default)]
pub(super) struct Moves {
    departures: BTreeMap<AgentNo, Departure>,
    arrivals: BTreeMap<Box<[u8]>, Arrival>,
    /// Copies that are said to be gone; that has to reach the device.
    ending: Vec<(Sequence, Ended)>,
    /// Agents that were said to be gone by a flush that failed.
    taken_back: Vec<TakenBack>,
    /// Commands that other shards passed on.
    inherited: VecDeque<Command>,
}

impl Moves {
    /// Whether what an agent consists of comes or goes. One that has landed is reached like any other.
    pub(super) fn are_under_way(&self) -> bool {
        let landed = |arrival: &Arrival| matches!(arrival.stage, Coming::Landed(_));
        !self.departures.is_empty() || !self.arrivals.values().all(landed)
    }

    /// Whether an agent is said to be gone that is still in the tables.
    pub(super) fn any_gone(&self) -> bool {
        let mut departures = self.departures.values();
        departures.any(|departure| matches!(departure.stage, Leaving::Gone(_)))
    }

    /// Whether nothing is under way.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let quiet = self.departures.is_empty() && self.arrivals.is_empty();
        quiet && self.inherited.is_empty() && self.ending.is_empty() && self.taken_back.is_empty()
    }

    /// Whether a turn would find work that waits for nothing.
    pub(super) fn has_work(&self) -> bool {
        let landing = |it: &Arrival| matches!(it.stage, Coming::Unnamed(_) | Coming::Landing(..));
        !self.inherited.is_empty() || self.arrivals.values().any(landing)
    }

    /// When a turn is due although nothing arrives.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.taken_back.iter().filter_map(TakenBack::due_ns).min()
    }

    /// The next command that was passed on.
    pub(super) fn next_command(&mut self) -> Option<Command> {
        self.inherited.pop_front()
    }

    /// Where an agent is being moved to.
    pub(super) fn to(&self, agent: AgentNo) -> Option<ShardNo> {
        self.departures.get(&agent).map(|it| it.to)
    }

    /// Whether an agent of that name is coming, and not served here yet.
    pub(super) fn is_coming(&self, name: &[u8]) -> bool {
        self.arrivals.contains_key(name)
    }
}

impl<D: Disk> Shard<D> {
    /// Begins to move an agent to another shard.
    pub(super) fn begin_move(&mut self, agent: AgentNo, to: ShardNo) -> Result<(), AgentError> {
        if usize::from(to.0) >= self.port.shards() || to == self.options.no {
            return Err(AgentError::NoSuchShard);
        }
        if self.lost_peers.contains(&to) || self.store.doubts.has(agent) {
            return Err(AgentError::Busy);
        }
        let departure = Departure {
            to,
            stage: Leaving::Copied,
            attaches: Vec::new(),
        };
        self.moves.departures.insert(agent, departure);
        crash::point("move.begun");
        let name = self.store.tables.agent(agent).name.clone();
        self.say(to, name, Word::Begin);
        Ok(())
    }

    fn say(&mut self, to: ShardNo, agent: Box<[u8]>, word: Word) {
        let message = Box::new(MoveMessage { agent, word });
        self.send_peer(to, PeerMessage::Move(message));
    }

    /// Takes what another shard says about an agent.
    pub(super) fn take_move(&mut self, from: ShardNo, message: MoveMessage) {
        let MoveMessage { agent: name, word } = message;
        match word {
            Word::Begin => self.begin_arrival(from, name),
            Word::Rest(parcel) => {
                if let Some(arrival) = self.moves.arrivals.get_mut(&name) {
                    arrival.stage = Coming::Rest(parcel);
                    let ticket = arrival.ticket;
                    self.import_rest(ticket);
                }
            }
            Word::Handover(handover) => self.take_handover(&name, *handover),
            Word::Off if self.moves.is_coming(&name) => _ = self.drop_arrival(&name),
            Word::Copied | Word::Landed | Word::Off | Word::Doubtful => {
                let Some(no) = self.store.tables.agent_no(&name) else {
                    return;
                };
                match word {
                    Word::Off => self.store.doubts.remove(no, from),
                    Word::Doubtful => self.store.doubts.add(no, from),
                    _ => {}
                }
                let Some(departure) = self.moves.departures.get_mut(&no) else {
                    return;
                };
                match (word, departure.stage) {
                    (Word::Copied, Leaving::Copied) => {
                        departure.stage = Leaving::Stopping;
                        self.lanes.freeze(no, true);
                    }
                    (Word::Landed, Leaving::Still) => self.let_go(no),
                    (Word::Off | Word::Doubtful, stage) if !matches!(stage, Leaving::Gone(_)) => {
                        self.stay(no);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Where the copy of an agent begins that this shard moves to another one.
    pub(super) fn roots_of_move(
        &mut self,
        name: &[u8],
        to: ShardNo,
    ) -> Result<Vec<ObjectId>, Status> {
        let no = self.agent_here(name)?;
        if self.moves.to(no) != Some(to) {
            return Err(Status::NoSuchAgent);
        }
        let tables = &self.store.tables;
        let agent = tables.agent(no);
        let mut roots = BTreeSet::new();
        roots.extend(agent.tags.values().map(|tag| tag.target));
        roots.extend(agent.adopted.iter().chain(&agent.hot));
        roots.extend(agent.sets.roots());
        for branch in agent.all_branches() {
            roots.extend(branch.head);
            roots.insert(branch.base);
            let changed = branch.keys.entries().filter(|(_, held)| held.changed);
            let values = changed.filter_map(|(_, held)| held.value);
            roots.extend(values.map(|it| tables.objects.get(ObjectNo(it.object)).id));
        }
        roots.remove(&EMPTY_TREE);
        Ok(roots.into_iter().collect())
    }

    /// Goes on with all moves; whether there was something to do.
    pub(super) fn turn_moves(&mut self) -> bool {
        if self.moves.departures.is_empty() && self.moves.arrivals.is_empty() {
            return false;
        }
        let leaving: Vec<AgentNo> = self.moves.departures.keys().copied().collect();
        let coming: Vec<Box<[u8]>> = self.moves.arrivals.keys().cloned().collect();
        let mut worked = false;
        for agent in leaving {
            worked |= self.turn_departure(agent);
        }
        for name in coming {
            worked |= self.turn_arrival(&name);
        }
        worked
    }

    // ---- the source -----------------------------------------------------------------------

    fn turn_departure(&mut self, agent: AgentNo) -> bool {
        let Some(departure) = self.moves.departures.get_mut(&agent) else {
            return false;
        };
        let to = departure.to;
        match departure.stage {
            Leaving::Stopping if self.lanes.is_quiet(agent) => {
                departure.stage = Leaving::Still;
                for upload in self.lanes.take_uploads(agent) {
                    self.drop_upload(upload);
                }
                if self.store.is_dirty() {
                    // Whoever waits for it was told.
                    let _ = self.flush();
                }
                let parcel = self.store.parcel(agent);
                let name = parcel.shell.name.clone();
                crash::point("move.still");
                self.say(to, name, Word::Rest(Box::new(parcel)));
                true
            }
            Leaving::Gone(sequence) if self.store.log.synced() >= sequence => {
                self.hand_over(agent);
                true
            }
            // Whether the last word is on the device nobody knows: the next start does.
            Leaving::Gone(_) if self.store.log.read_only().is_some() => {
                self.close_agent(agent);
                true
            }
            _ => false,
        }
    }

    /// Says that an agent is gone, now that the target has it.
    fn let_go(&mut self, agent: AgentNo) {
        // What is said again while it is still in the tables would say that it is there.
        let said = match self.store.restating {
            Some(_) => Err(Refused::Wait.into()),
            None => self.say_gone(agent),
        };
        match said {
            Ok(sequence) => {
                self.store.gone.push(agent);
                self.end_sets(agent);
                if let Some(departure) = self.moves.departures.get_mut(&agent) {
                    departure.stage = Leaving::Gone(sequence);
                }
                self.store.log.sync_wanted(sequence);
            }
            Err(Failed::Refused(Refused::Wait)) => {
                // There will be room: asked again by the same word.
                self.must_flush |= self.store.is_dirty();
                let agent = self.store.tables.agent(agent).name.clone();
                let word = Word::Landed;
                let message = MoveMessage { agent, word };
                self.retold.push(message);
            }
            Err(failed) => {
                if let Some(to) = self.moves.to(agent) {
                    // Until it answers: all of the agent is on its device.
                    self.store.doubts.add(agent, to);
                    self.take_back_word(agent, to, matches!(failed, Failed::Status(..)));
                }
                self.stay(agent);
            }
        }
    }

    fn say_gone(&mut self, agent: AgentNo) -> Result<Sequence, Failed> {
        self.store.ready(0, false)?;
        let appended = self.store.append(&Head::AgentGone { agent }.into())?;
        self.flush_commit()?;
        crash::point("move.gone");
        Ok(appended.sequence)
    }

    /// Lets an agent go on here: it is not moved.
    fn stay(&mut self, agent: AgentNo) {
        let Some(departure) = self.moves.departures.remove(&agent) else {
            return;
        };
        for at in self.lanes.freeze(agent, false) {
            self.queue(at);
        }
        let attaches = departure.attaches.into_iter();
        self.moves
            .inherited
            .extend(attaches.map(|it| Command::Attach(Box::new(it))));
    }

    /// Hands an agent's lanes over; from now on it is the target's.
    fn hand_over(&mut self, agent: AgentNo) {
        let Some(departure) = self.moves.departures.remove(&agent) else {
            return;
        };
        crash::point("move.over");
        let to = departure.to;
        let lanes = self.lanes.hand_over(agent, to, self.options.no);
        self.store.holds -= lanes.iter().filter(|lane| lane.holds).count() as u32;
        for request in &departure.attaches {
            self.forward_lane(request, to);
        }
        let state = self.store.tables.agent_mut(agent);
        let (name, moves) = (state.name.clone(), state.moves + 1);
        let handover = Handover {
            lanes,
            window: state.window.take(),
            window_fd: state.window_fd.take(),
            attaches: departure.attaches,
        };
        self.drop_agent(agent);
        self.route(name.clone(), to, moves);
        self.events.push(Event::Moved {
            agent: name.clone(),
            to,
            moves,
        });
        self.say(to, name, Word::Handover(Box::new(handover)));
    }

    /// Ends the lanes of an agent of which nobody knows where it is before the next start.
    fn close_agent(&mut self, agent: AgentNo) {
        self.moves.departures.remove(&agent);
        for (session, lane) in self.lanes.of_agent(agent) {
            if let Some(lane) = self.lanes.detach(session, lane) {
                self.close_lane(lane, CloseReason::ShardFailed);
            }
        }
        self.drop_agent(agent);
    }

    // ---- the target -----------------------------------------------------------------------

    fn begin_arrival(&mut self, from: ShardNo, name: Box<[u8]>) {
        let full = self.moves.arrivals.len() >= ARRIVALS_MAX
            || self.draining.is_some()
            || !self.store.ended.is_empty()
            || self.store.tables.agent_no(&name).is_some();
        if full {
            return self.say(from, name, Word::Off);
        }
        let ticket = self.import_agent(from, &name);
        let stage = Coming::Copying;
        let arrival = Arrival {
            from,
            ticket,
            stage,
        };
        self.moves.arrivals.insert(name, arrival);
    }

    /// What the source offered is here.
    pub(super) fn agent_copied(&mut self, name: &[u8]) {
        let Some(arrival) = self.moves.arrivals.get_mut(name) else {
            return;
        };
        let from = arrival.from;
        match std::mem::replace(&mut arrival.stage, Coming::Copying) {
            Coming::Rest(mut parcel) => {
                parcel.shell.moves += 1;
                arrival.stage = Coming::Unnamed(parcel);
            }
            Coming::Copying => {
                crash::point("move.copied");
                self.say(from, name.into(), Word::Copied);
            }
            other => arrival.stage = other,
        }
    }

    fn turn_arrival(&mut self, name: &[u8]) -> bool {
        let Some(arrival) = self.moves.arrivals.get_mut(name) else {
            return false;
        };
        let from = arrival.from;
        match &mut arrival.stage {
            Coming::Unnamed(parcel) => {
                let named = self.store.name_agent(&parcel.shell);
                self.must_flush |= self.store.is_dirty();
                match named {
                    Err(Refused::Wait) => {}
                    Err(_) => self.fail_arrival(name),
                    Ok(()) if self.flush_commit().is_err() => self.fail_arrival(name),
                    Ok(()) => {
                        crash::point("move.named");
                        self.begin_landing(name);
                    }
                }
                true
            }
            Coming::Landing(no, items) => {
                let no = *no;
                match self.store.land(no, items) {
                    Ok(true) | Err(Refused::Wait) => self.must_flush |= self.store.is_dirty(),
                    Ok(false) => match self.flush_commit() {
                        Ok(()) => {
                            crash::point("move.landing");
                            let last = self.store.log.last();
                            self.store.log.sync_wanted(last);
                            if let Some(arrival) = self.moves.arrivals.get_mut(name) {
                                arrival.stage = Coming::Syncing(no, last);
                            }
                        }
                        Err(_) => self.fail_arrival(name),
                    },
                    Err(_) => self.fail_arrival(name),
                }
                true
            }
            Coming::Syncing(no, sequence) if self.store.log.synced() >= *sequence => {
                crash::point("move.landed");
                arrival.stage = Coming::Landed(*no);
                self.say(from, name.into(), Word::Landed);
                true
            }
            Coming::Syncing(..) if self.store.log.read_only().is_some() => {
                self.fail_arrival(name);
                true
            }
            _ => false,
        }
    }

    /// The log knows the agent: now what it consists of.
    fn begin_landing(&mut self, name: &[u8]) {
        let Some(arrival) = self.moves.arrivals.get_mut(name) else {
            return;
        };
        if let Coming::Unnamed(parcel) = std::mem::replace(&mut arrival.stage, Coming::Copying) {
            let Parcel { shell, items } = *parcel;
            let no = self.store.tables.add_agent(name, shell.public);
            *self.store.tables.agent_mut(no) = *shell;
            arrival.stage = Coming::Landing(no, items);
            self.watch_sets_of(no);
        }
    }

    /// Gives an arriving agent up, and tells the source. One that landed is the source's to give up.
    pub(super) fn fail_arrival(&mut self, name: &[u8]) {
        let arrival = self.moves.arrivals.get(name);
        let arrival = arrival.filter(|it| !matches!(it.stage, Coming::Landed(_)));
        if let Some(from) = arrival.map(|it| it.from) {
            let agent = String::from_utf8_lossy(name);
            tracing::warn!(shard = self.options.no.0, %agent, "an agent could not be moved here");
            let word = match self.drop_arrival(name) {
                true => Word::Doubtful,
                false => Word::Off,
            };
            self.say(from, name.into(), word);
        }
    }

    /// Takes out what has arrived of an agent; whether the log knows of it.
    fn drop_arrival(&mut self, name: &[u8]) -> bool {
        let Some(arrival) = self.moves.arrivals.remove(name) else {
            return false;
        };
        self.end_import_of(arrival.ticket);
        let (Coming::Landing(no, _) | Coming::Syncing(no, _) | Coming::Landed(no)) = arrival.stage
        else {
            return false;
        };
        self.store.end_agent(no, arrival.from);
        true
    }

    fn take_handover(&mut self, name: &[u8], handover: Handover) {
        let arrival = self.moves.arrivals.remove(name);
        let Some(Arrival {
            from,
            ticket,
            stage: Coming::Landed(agent),
        }) = arrival
        else {
            // The lanes close as they are dropped.
            return;
        };
        crash::point("move.taken");
        self.end_import_of(ticket);
        let state = self.store.tables.agent_mut(agent);
        let moves = state.moves;
        (state.window, state.window_fd) = (handover.window, handover.window_fd);
        let owned: HashSet<BranchNo> = handover
            .lanes
            .iter()
            .flat_map(|it| it.forks.clone())
            .collect();
        for lane in handover.lanes {
            self.store.holds += u32::from(lane.holds);
            let state = self.store.tables.agent_mut(agent);
            state.lanes += 1;
            if let Some(branch) = state.branch_mut(lane.branch) {
                branch.lanes += 1;
            }
            let at = self.lanes.take_over(agent, lane, self.options.no);
            self.queue(at);
        }
        // Those whose lane went while it stood still are nobody's.
        let forks = self.store.tables.agent(agent).numbered();
        let forks = forks.map(|(branch, _)| BranchRef { agent, branch });
        let left = forks.filter(|fork| fork.is_fork() && !owned.contains(&fork.branch));
        for fork in left.collect::<Vec<_>>() {
            self.drop_fork(fork);
        }
        self.close_orphans();
        self.route(name.into(), self.options.no, moves);
        for mut request in handover.attaches {
            request.path.push(from);
            self.moves
                .inherited
                .push_back(Command::Attach(Box::new(request)));
        }
        self.tell(AccessKind::Migrate, agent, MAIN);
    }

    /// Whether all of an agent that comes is on the device, and only the source's word is awaited.
    #[cfg(test)]
    pub(super) fn has_landed(&self, name: &[u8]) -> bool {
        let arrival = self.moves.arrivals.get(name);
        arrival.is_some_and(|it| matches!(it.stage, Coming::Landed(_)))
    }

    // ---- ends -----------------------------------------------------------------------------

    /// Ends all moves: the shard stops.
    pub(super) fn end_moves(&mut self) {
        let leaving: Vec<AgentNo> = self.moves.departures.keys().copied().collect();
        for agent in leaving {
            let stage = self.moves.departures.get(&agent).map(|it| it.stage);
            if !matches!(stage, Some(Leaving::Gone(_))) {
                self.stay(agent);
            }
        }
    }

    /// Ends moves to and from a shard that is gone.
    pub(super) fn forget_mover(&mut self, shard: ShardNo) {
        let leaving = self.moves.departures.iter();
        let leaving: Vec<_> = leaving
            .filter(|(_, it)| it.to == shard)
            .map(|(no, it)| (*no, it.stage))
            .collect();
        for (agent, stage) in leaving {
            match stage {
                Leaving::Gone(_) => self.close_agent(agent),
                Leaving::Still => {
                    self.store.doubts.add(agent, shard);
                    self.stay(agent);
                }
                Leaving::Copied | Leaving::Stopping => self.stay(agent),
            }
        }
        let arrivals = self.moves.arrivals.iter();
        // One that landed may be the only one: it waits, unserved, for the next start.
        let coming: Vec<_> = arrivals
            .filter(|(_, it)| it.from == shard && !matches!(it.stage, Coming::Landed(_)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in coming {
            self.drop_arrival(&name);
        }
        self.lanes.forget_peer(shard);
    }
}
