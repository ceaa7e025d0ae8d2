//! Reads of other agents' values: on this shard, or over the mesh.
//!
//! Floor 2. The owner checks that the agent is public each time; what it hands out is copied, and
//! never enters the reader's window, which holds its own agent's values only.
//!
//! Invariants
//! - a question is answered exactly once, by the shard that owns the agent.

use crate::agent::entry::{BusyReason, Completion, Status, Submission, Tier};
use crate::agent::layout::ARENA_BYTES_MAX;
use crate::id::{LaneNo, ObjectId, SessionNo, ShardNo};
use crate::segment::{Disk, ObjectKind};
use crate::shard::agent::{BranchRef, MAIN};
use crate::shard::lanes::LaneRef;
use crate::shard::migrate::MoveMessage;
use crate::shard::pending::{Destination, PeerRead};
use crate::shard::read::{ColdPieces, Served, serve_value};
use crate::shard::store::Refused;
use crate::shard::{Command, MESSAGES_PER_TURN, Scratch, Shard, Step};

/// Questions that one shard may have open at the others.
const PEER_READS_MAX: usize = 256;
/// Of these, at most so many for one session.
const PEER_READS_PER_SESSION_MAX: usize = PEER_READS_MAX / 4;

/// What shards say to each other.
#[derive(Debug)]
pub enum PeerMessage {
    /// A lane of the sender wants a value of a public agent that the receiver owns.
    Read {
        /// The sender's number for it.
        ticket: u64,
        /// The agent's name.
        agent: Box<[u8]>,
        /// The key.
        key: Box<[u8]>,
        /// First byte of the value.
        from: u64,
        /// Most bytes wanted.
        bytes_max: u32,
    },
    /// The answer.
    Reply {
        /// As in the question.
        ticket: u64,
        /// How it went, and what is known of the value.
        completion: Box<Completion>,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The sender wants to copy something of an agent of the receiver.
    Open {
        /// The sender's number for the copy.
        ticket: u64,
        /// What it wants.
        what: Wanted,
    },
    /// The answer: where the copy begins.
    Opened {
        /// As in the question.
        ticket: u64,
        /// They are offered now; or why not.
        roots: Result<Vec<ObjectId>, Status>,
    },
    /// The sender wants objects that were offered to it.
    Want {
        /// The copy.
        ticket: u64,
        /// Objects to send.
        wanted: Vec<ObjectId>,
        /// Objects that it has: they are offered no more.
        known: Vec<ObjectId>,
    },
    /// An object; those that it names are offered with it.
    Object {
        /// The copy.
        ticket: u64,
        /// The object.
        id: ObjectId,
        /// What it is, and its bytes; or why it can't be had.
        found: Result<(ObjectKind, Vec<u8>), Status>,
    },
    /// A copy is over.
    Close {
        /// The copy.
        ticket: u64,
    },
    /// An agent is on its way from one shard to the other.
    Move(Box<MoveMessage>),
    /// A lane that the receiver serves has rung at the sender.
    Rung {
        /// Its session.
        session: SessionNo,
        /// The lane.
        lane: LaneNo,
    },
    /// A command that is the receiver's to carry out.
    Forward {
        /// The command.
        command: Box<Command>,
        /// The receiver had forwarded it, and it found nothing here.
        back: bool,
    },
}

/// What is to be copied.
#[derive(Debug)]
pub enum Wanted {
    /// A published checkpoint.
    Published {
        /// The agent's name.
        agent: Box<[u8]>,
        /// The published name.
        name: Box<str>,
    },
    /// All that an agent holds that is moved to the asking shard.
    Moving {
        /// The agent's name.
        agent: Box<[u8]>,
    },
}

/// The shard that owns an agent: the same for as long as the number of shards is.
#[must_use]
pub fn owner(agent: &[u8], shards: usize) -> ShardNo {
    ShardNo((ObjectId::of_blob(agent).hash64() % shards as u64) as u16)
}

impl<D: Disk> Shard<D> {
    pub(super) fn get_from(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Step {
        let Some(lane) = self.lanes.get_mut(at) else {
            return Step::Done;
        };
        scratch.copy_key(lane, entry);
        scratch.copy_value(lane, entry.value);
        let (name, key) = (&scratch.value, &scratch.key);
        let owner = self.home(name);
        if owner != self.options.no {
            return self.ask_peer(at, entry, owner, name, key);
        }
        match self.public_value(name, key) {
            Ok(value) => self.read_value(at, entry, value, None),
            Err(status) => {
                self.finish(at, Completion::new(entry.user_data, status));
                Step::Done
            }
        }
    }

    fn public_value(&mut self, name: &[u8], key: &[u8]) -> Result<crate::state::Value, Status> {
        let agent = self.agent_here(name)?;
        if !self.store.tables.agent(agent).public {
            return Err(Status::Forbidden);
        }
        let main = BranchRef {
            agent,
            branch: MAIN,
        };
        match self.store.lookup(main, key) {
            Ok(Some(value)) => Ok(value),
            Ok(None) => {
                self.counters().absent.add(1);
                Err(Status::NotFound)
            }
            Err(Refused::Cold(node)) => {
                // Whoever asks again finds it.
                self.fetch(node);
                Err(Status::Busy)
            }
            Err(_) => Err(Status::Corrupt),
        }
    }

    fn ask_peer(
        &mut self,
        at: LaneRef,
        entry: &Submission,
        owner: ShardNo,
        name: &[u8],
        key: &[u8],
    ) -> Step {
        let Some(session) = self.lanes.get_mut(at).map(|lane| lane.session) else {
            return Step::Done;
        };
        let ticket = self.pending.ticket();
        let message = PeerMessage::Read {
            ticket,
            agent: name.into(),
            key: key.into(),
            from: entry.arg0,
            bytes_max: entry.reply.len,
        };
        let mut completion = Completion::new(entry.user_data, Status::Busy);
        let peers = &self.pending.peers;
        // Counted where there is something to count: 256 at most.
        let full = peers.len() >= PEER_READS_MAX
            || peers.len() >= PEER_READS_PER_SESSION_MAX
                && peers
                    .values()
                    .filter(|read| read.session == session)
                    .count()
                    >= PEER_READS_PER_SESSION_MAX;
        if full || self.port.send(owner, message).is_err() {
            completion.detail = BusyReason::Mesh as u32;
            self.finish(at, completion);
            return Step::Done;
        }
        let read = PeerRead {
            owner,
            lane: at,
            session,
            user_data: entry.user_data,
            reply: entry.reply,
        };
        self.pending.peers.insert(ticket, read);
        Step::Done
    }

    /// Takes what other shards have sent.
    pub(super) fn take_messages(&mut self) -> bool {
        // Answers that found a full ring go first.
        while let Some((shard, message)) = self.unsent.pop_front() {
            if let Err(message) = self.port.send(shard, message) {
                if self.lost_peers.contains(&shard) {
                    continue;
                }
                self.unsent.push_front((shard, message));
                break;
            }
        }
        for taken in 0..MESSAGES_PER_TURN {
            match self.port.receive() {
                Some((
                    shard,
                    PeerMessage::Read {
                        ticket,
                        agent,
                        key,
                        from,
                        bytes_max,
                    },
                )) => {
                    self.read_for_peer(shard, ticket, &agent, &key, from, bytes_max);
                }
                Some((
                    _,
                    PeerMessage::Reply {
                        ticket,
                        completion,
                        bytes,
                    },
                )) => {
                    self.take_peer_reply(ticket, *completion, &bytes);
                }
                Some((shard, message)) => self.take_copy_message(shard, message),
                None => return taken > 0,
            }
        }
        true
    }

    fn take_copy_message(&mut self, shard: ShardNo, message: PeerMessage) {
        match message {
            PeerMessage::Open { ticket, what } => self.open_export(shard, ticket, what),
            PeerMessage::Opened { ticket, roots } => self.opened(ticket, roots),
            PeerMessage::Want {
                ticket,
                wanted,
                known,
            } => self.want_exports(shard, ticket, &wanted, &known),
            PeerMessage::Object { ticket, id, found } => self.arrived(ticket, id, found),
            PeerMessage::Close { ticket } => self.close_export(shard, ticket),
            PeerMessage::Move(message) => self.take_move(shard, *message),
            PeerMessage::Rung { session, lane } => self.rung(session, lane),
            PeerMessage::Forward { command, back } => self.inherit(shard, *command, back),
            PeerMessage::Read { .. } | PeerMessage::Reply { .. } => {}
        }
    }

    fn read_for_peer(
        &mut self,
        shard: ShardNo,
        ticket: u64,
        agent: &[u8],
        key: &[u8],
        from: u64,
        bytes_max: u32,
    ) {
        let mut completion = Completion::new(0, Status::Ok);
        let mut reply = Vec::new();
        let value = match self.public_value(agent, key) {
            Ok(value) => value,
            Err(status) => {
                completion.status = status;
                return self.answer_peer(shard, ticket, completion, reply);
            }
        };
        completion.id = self.store.value_id(value);
        completion.value_bytes = value.bytes;
        let from = from.min(value.bytes);
        let bytes = (value.bytes - from).min(u64::from(bytes_max.min(ARENA_BYTES_MAX)));
        reply.resize(bytes as usize, 0);
        let mut cold = ColdPieces::new();
        let served = serve_value(
            &mut self.store,
            value,
            from,
            bytes as u32,
            0,
            &mut cold,
            |at, chunk| {
                reply[at as usize..][..chunk.len()].copy_from_slice(chunk);
            },
        );
        match served {
            Served::Corrupt => {
                let completion = Completion::new(0, Status::Corrupt);
                self.answer_peer(shard, ticket, completion, Vec::new());
            }
            Served::Bytes(tier, bytes) => {
                completion.tier = tier;
                completion.reply_bytes = bytes;
                completion.more = from + u64::from(bytes) < value.bytes;
                reply.truncate(bytes as usize);
                if cold.is_empty() {
                    self.count_tier(tier);
                    self.answer_peer(shard, ticket, completion, reply);
                } else {
                    let destination = Destination::Peer {
                        shard,
                        ticket,
                        bytes: reply,
                    };
                    self.await_cold(destination, completion, cold, None);
                }
            }
        }
    }

    pub(super) fn answer_peer(
        &mut self,
        shard: ShardNo,
        ticket: u64,
        completion: Completion,
        bytes: Vec<u8>,
    ) {
        let message = PeerMessage::Reply {
            ticket,
            completion: Box::new(completion),
            bytes,
        };
        // Bounded: a shard has at most `PEER_READS_MAX` questions open.
        self.held_back(shard, message);
    }

    /// Sends an answer: at once, or after the flush where it may show writes of this turn.
    fn held_back(&mut self, shard: ShardNo, message: PeerMessage) {
        if self.must_flush {
            self.staged_peers.push((shard, message));
        } else if let Err(message) = self.port.send(shard, message) {
            self.unsent.push_back((shard, message));
        }
    }

    /// Sends the answers that waited for a flush. After a failed one they show writes that were
    /// taken back: the asker is told to try again.
    pub(super) fn release_peers(&mut self, flushed: bool) {
        let mut staged = std::mem::take(&mut self.staged_peers);
        for (shard, mut message) in staged.drain(..) {
            if let PeerMessage::Reply {
                completion, bytes, ..
            } = &mut message
                && !flushed
            {
                **completion = Completion::new(0, Status::Busy);
                completion.detail = BusyReason::Log as u32;
                bytes.clear();
            }
            if let Err(message) = self.port.send(shard, message) {
                self.unsent.push_back((shard, message));
            }
        }
        self.staged_peers = staged;
    }

    /// Ends the reads that other shards have not answered: they may be gone already.
    pub(super) fn fail_peer_reads(&mut self) {
        for (_, read) in std::mem::take(&mut self.pending.peers) {
            self.finish(
                read.lane,
                Completion::new(read.user_data, Status::ShuttingDown),
            );
        }
        self.end_moves();
        self.fail_imports(Status::ShuttingDown, |_| true);
        self.exports.clear();
        self.unsent.clear();
    }

    /// Ends what was asked of a shard that is gone, or was to be sent to it. It takes no more
    /// questions either: the mesh gives them back.
    pub(super) fn forget_peer(&mut self, shard: ShardNo) {
        self.lost_peers.push(shard);
        let asked = self.pending.peers.extract_if(|_, read| read.owner == shard);
        for (_, read) in asked.collect::<Vec<_>>() {
            let mut busy = Completion::new(read.user_data, Status::Busy);
            busy.detail = BusyReason::Mesh as u32;
            self.finish(read.lane, busy);
        }
        self.forget_mover(shard);
        self.close_orphans();
        self.fail_imports(Status::Busy, |owner| owner == shard);
        self.exports.forget_peer(shard);
    }

    fn take_peer_reply(&mut self, ticket: u64, mut completion: Completion, bytes: &[u8]) {
        let Some(PeerRead {
            lane: at,
            user_data,
            reply,
            ..
        }) = self.pending.peers.remove(&ticket)
        else {
            return;
        };
        completion.user_data = user_data;
        if let Some(lane) = self.lanes.get_mut(at) {
            debug_assert!(bytes.len() <= reply.len as usize);
            lane.ring.write_reply(reply, 0, bytes);
        }
        self.last_tier = Tier::None;
        self.finish(at, completion);
    }
}
