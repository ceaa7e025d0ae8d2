//! A shard turned by hand on the simulated disk, and clients of it that behave.
//!
//! Compiled into the room `shard`, whose insides it reads. Time is counted in turns of a millisecond.

pub(crate) mod lanes;
pub(crate) mod rogue;
pub(crate) mod state;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;

use crossbeam_queue::ArrayQueue;

use super::{
    AgentAnswer, AgentCommand, AgentError, AgentVerb, Answer, AttachRequest, Command, Event, Shard,
    ShardOptions, SharedWindow, Store, Tables,
};
use crate::agent::CloseReason;
use crate::agent::bell::{ClientBells, ServerBells, StatusPage};
use crate::agent::call::Call;
use crate::agent::client_lane::ClientLane;
use crate::agent::entry::{BusyReason, Completion, Extent, Op, Status, Submission};
use crate::agent::layout::LaneSizes;
use crate::agent::server_lane::{LaneFds, ServerLane};
use crate::cache::L2;
use crate::config::Durability;
use crate::id::{BranchNo, LaneNo, SessionNo, ShardNo};
use crate::mesh::mesh;
use crate::metrics::ShardCounters;
use crate::segment::memory::MemoryDisk;
use crate::segment::{Location, Log, LogConfig, LogId, SegmentFiles, recover};
use crate::shared::{Access, SharedMemory};

pub(crate) const SEGMENT_BYTES: u32 = 128 << 10;
/// Turns in which anything is answered, be it that all of a history has to be read from the device first.
pub(crate) const TURNS_MAX: usize = 20_000;

/// A shard, and the time.
pub(crate) struct Rig {
    pub(crate) shard: Shard<MemoryDisk>,
    pub(crate) commands: Arc<ArrayQueue<Command>>,
    status: OwnedFd,
    now: u64,
    sessions: u64,
}

/// What a process gets that attaches.
pub(crate) struct Attached {
    pub(crate) session: SessionNo,
    pub(crate) session_fd: OwnedFd,
    pub(crate) fds: LaneFds,
}

pub(crate) fn sizes() -> LaneSizes {
    LaneSizes::new(16, 96 << 10, 32 << 10).expect("sizes that a lane can have")
}

impl Rig {
    /// A shard over what a disk holds, or why there can't be one, in words.
    pub(crate) fn over(mut disk: MemoryDisk) -> Result<Self, String> {
        let no = ShardNo(0);
        let mut tables = Tables::default();
        let mut refused = None;
        let recovered = recover(&mut disk, no, &mut |record| {
            if refused.is_none() {
                refused = tables.apply(record).err();
            }
        });
        let recovered = recovered.map_err(|error| error.to_string())?;
        if let Some(error) = refused {
            return Err(error.to_string());
        }
        let read = |at: Location| {
            let mut bytes = vec![0; at.bytes as usize];
            let read = disk
                .read_at(at.segment, u64::from(at.offset), &mut bytes)
                .ok()?;
            (read == bytes.len()).then_some(bytes)
        };
        tables
            .finish(&recovered.start.dropped, read)
            .map_err(|error| error.to_string())?;
        let config = LogConfig {
            shard: no,
            log_id: recovered.log_id.unwrap_or(LogId(7)),
            segment_bytes: SEGMENT_BYTES,
            buffer_bytes: 256 << 10,
        };
        let log = Log::new(config, recovered.start);
        disk.at_once = true;
        let l2 = L2::new(256 << 10).expect("memory for a cache");
        let store = Store::new(tables, log, disk, l2, 1 << 26);
        let options = ShardOptions {
            no,
            durability: Durability::Process,
            group_commit_ns: 0,
            wall_ms: 1_700_000_000_000,
            step_clock: None,
        };
        let commands = Arc::new(ArrayQueue::new(16));
        let port = mesh(1, 4).pop().expect("the port of the only shard");
        let counters: Arc<[ShardCounters]> = Arc::new([ShardCounters::default()]);
        let (_, status) = StatusPage::create().expect("a page");
        Ok(Self {
            shard: Shard::new(options, store, port, Arc::clone(&commands), counters),
            commands,
            status,
            now: 0,
            sessions: 0,
        })
    }

    /// A shard over nothing.
    pub(crate) fn new() -> Self {
        Self::over(MemoryDisk::new()).expect("an empty directory starts")
    }

    pub(crate) fn disk(&mut self) -> &mut MemoryDisk {
        &mut self.shard.store.disk
    }

    pub(crate) fn turn(&mut self) {
        self.now += 1_000_000;
        self.shard.step(self.now);
        self.disk().run_io();
    }

    pub(crate) fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    /// Lets time pass in which the shard sleeps.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.shard.before_sleep();
        self.now += ms * 1_000_000;
    }

    pub(crate) fn command(&mut self, command: Command) {
        assert!(
            self.commands.push(command).is_ok(),
            "a queue that is emptied in each turn"
        );
        self.turn();
    }

    /// A lane of a new session; `None` where the shard refuses.
    pub(crate) fn attach(&mut self, agent: &[u8], create: bool) -> Option<Attached> {
        self.sessions += 1;
        let session = SessionNo(self.sessions);
        let (bells, session_fd) = ServerBells::create_session(1).expect("memory");
        let fds = self.attach_in(session, bells, LaneNo(0), agent, create)?;
        Some(Attached {
            session,
            session_fd,
            fds,
        })
    }

    pub(crate) fn attach_in(
        &mut self,
        session: SessionNo,
        bells: Arc<SharedMemory>,
        lane: LaneNo,
        agent: &[u8],
        create: bool,
    ) -> Option<LaneFds> {
        let (ring, fds) = ServerLane::create(sizes()).expect("memory");
        let (memory, fd) =
            SharedMemory::create("window", 16 << 10, Access::ReadOnly).expect("memory");
        let (tell, told) = channel();
        let request = AttachRequest {
            session,
            bells,
            socket: None,
            lane,
            ring,
            agent: agent.into(),
            create,
            public: None,
            window: SharedWindow {
                memory,
                fd: Arc::new(fd),
            },
            path: Vec::new(),
            reply: Answer::new(move |outcome| _ = tell.send(outcome)),
        };
        self.command(Command::Attach(Box::new(request)));
        let answer = (0..TURNS_MAX).find_map(|_| {
            self.turn();
            told.try_recv().ok()
        });
        answer.expect("an attach is answered").ok().map(|_| fds)
    }

    pub(crate) fn end(&mut self, session: SessionNo) {
        let reason = CloseReason::Detached;
        self.command(Command::EndSession { session, reason });
    }

    pub(crate) fn verb(&mut self, name: &[u8], verb: AgentVerb) -> Result<AgentAnswer, AgentError> {
        let (tell, told) = channel();
        let reply = Answer::new(move |outcome| _ = tell.send(outcome));
        let (agent, what) = (name.into(), verb);
        self.command(Command::Agent(Box::new(AgentCommand {
            agent,
            what,
            reply,
        })));
        let answer = (0..TURNS_MAX).find_map(|_| {
            self.turn();
            told.try_recv().ok()
        });
        answer.expect("a command about an agent is answered")
    }

    /// Turns until a collection that begins now has ended.
    pub(crate) fn collect(&mut self) {
        let (tell, told) = channel();
        let reply = Answer::new(move |collected| _ = tell.send(collected));
        self.command(Command::Collect { reply });
        let answer = (0..TURNS_MAX).find_map(|_| {
            self.turn();
            told.try_recv().ok()
        });
        assert!(answer.is_some(), "a collection ends");
    }

    /// Sessions that were ended since the last call because they broke the protocol.
    pub(crate) fn ended(&mut self) -> Vec<SessionNo> {
        let events = self.shard.take_events().into_iter();
        let ended = events.filter_map(|event| match event {
            Event::Malformed { session, what } => {
                assert!(!what.to_string().is_empty());
                Some(session)
            }
            Event::Moved { .. } => None,
        });
        ended.collect()
    }

    /// What is left on the disk when the process is killed.
    pub(crate) fn killed(mut self) -> MemoryDisk {
        self.disk().kill();
        let mut disk = self.disk().clone();
        disk.at_once = false;
        disk
    }
}

/// A client that behaves: one lane of its own session, one operation at a time.
pub(crate) struct Client {
    lane: ClientLane,
    bells: ClientBells,
    pub(crate) session: SessionNo,
    next: u64,
    /// Turns that the slowest of its operations took.
    pub(crate) turns: usize,
}

/// An operation that was not answered, and why its lane is closed.
pub(crate) type Outcome = Result<(Completion, Vec<u8>), CloseReason>;

impl Client {
    pub(crate) fn attach(rig: &mut Rig, agent: &[u8], create: bool) -> Option<Self> {
        let attached = rig.attach(agent, create)?;
        let Attached {
            session,
            session_fd,
            fds,
        } = attached;
        let lane = ClientLane::map(&fds.client, &fds.server, sizes(), LaneNo(0), ShardNo(0));
        let status = rig.status.try_clone().expect("a descriptor");
        Some(Self {
            lane: lane.expect("a lane as it was made"),
            bells: ClientBells::map(&session_fd, &[status]).expect("a session as it was made"),
            session,
            next: 0,
            turns: 0,
        })
    }

    /// Carries one operation out; a busy shard is asked again.
    pub(crate) fn ask(
        &mut self,
        rig: &mut Rig,
        op: Op,
        key: &[u8],
        value: &[u8],
        how: impl Fn(&mut Submission),
    ) -> Outcome {
        for _ in 0..64 {
            let done = self.once(rig, op, key, value, &how)?;
            if done.0.status != Status::Busy {
                return Ok(done);
            }
            assert!(
                BusyReason::from_byte(done.0.detail as u8).is_some(),
                "busy has a reason"
            );
            rig.turns(4);
        }
        panic!("{op:?} is never anything but busy")
    }

    fn once(
        &mut self,
        rig: &mut Rig,
        op: Op,
        key: &[u8],
        value: &[u8],
        how: &impl Fn(&mut Submission),
    ) -> Outcome {
        self.next += 1;
        let mut entry = Submission::new(op, self.next);
        let bytes = (key.len() + value.len()).max(1) as u32;
        let input = self.lane.alloc_input(bytes).expect("an arena that is free");
        let output = self
            .lane
            .alloc_output(24 << 10)
            .expect("an arena that is free");
        if !key.is_empty() {
            entry.key = input.first(key.len() as u32);
            self.lane.write_input(entry.key, key);
        }
        if !value.is_empty() {
            entry.value = input.part(key.len() as u32, value.len() as u32);
            self.lane.write_input(entry.value, value);
        }
        if matches!(op, Op::Get | Op::Call | Op::Scan | Op::GetFrom) {
            entry.reply = output.first(24 << 10);
        }
        how(&mut entry);
        self.lane
            .submit(&entry)
            .expect("an entry that keeps the rules");
        let _ = self.lane.notify(&self.bells);
        for turn in 1..=TURNS_MAX {
            rig.turn();
            if let Some(completion) = self.lane.poll_completion().expect("a completion") {
                assert_eq!(completion.user_data, self.next);
                self.turns = self.turns.max(turn);
                let mut reply = vec![0; completion.reply_bytes as usize];
                let len = completion.reply_bytes;
                let offset = entry.reply.offset;
                self.lane.read_output(Extent { offset, len }, &mut reply);
                self.lane.free_input(input);
                self.lane.free_output(output);
                return Ok((completion, reply));
            }
            if let Some(reason) = self.lane.closed() {
                return Err(reason);
            }
        }
        panic!("{op:?} is not answered in {TURNS_MAX} turns")
    }

    pub(crate) fn put(&mut self, rig: &mut Rig, key: &[u8], value: &[u8]) -> Outcome {
        self.put_on(rig, None, key, value)
    }

    pub(crate) fn put_on(
        &mut self,
        rig: &mut Rig,
        branch: Option<BranchNo>,
        key: &[u8],
        value: &[u8],
    ) -> Outcome {
        const PART: usize = 48 << 10;
        if value.len() <= PART {
            return self.ask(rig, Op::Put, key, value, |entry| entry.branch = branch);
        }
        let mut offset = 0;
        loop {
            let end = value.len().min(offset + PART);
            let done = self.ask(rig, Op::PutPart, key, &value[offset..end], |entry| {
                entry.branch = branch;
                (entry.arg0, entry.arg1) = (offset as u64, value.len() as u64);
            })?;
            if end == value.len() || done.0.status != Status::Ok {
                return Ok(done);
            }
            offset = end;
        }
    }

    /// All of a value.
    pub(crate) fn get(
        &mut self,
        rig: &mut Rig,
        branch: Option<BranchNo>,
        key: &[u8],
    ) -> Result<Result<Vec<u8>, Status>, CloseReason> {
        let mut value = Vec::new();
        loop {
            let from = value.len() as u64;
            let (completion, bytes) = self.ask(rig, Op::Get, key, b"", |entry| {
                (entry.branch, entry.arg0) = (branch, from);
            })?;
            if completion.status != Status::Ok {
                return Ok(Err(completion.status));
            }
            assert!(!completion.more || !bytes.is_empty(), "a read that goes on");
            value.extend(bytes);
            if !completion.more {
                return Ok(Ok(value));
            }
        }
    }

    pub(crate) fn call(
        &mut self,
        rig: &mut Rig,
        branch: Option<BranchNo>,
        call: &Call<'_>,
    ) -> Outcome {
        let mut bytes = Vec::new();
        call.encode(&mut bytes);
        self.ask(rig, Op::Call, b"", &bytes, |entry| entry.branch = branch)
    }
}
