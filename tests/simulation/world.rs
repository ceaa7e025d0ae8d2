//! The server's side: shards, mesh, disks, clock, and the clients' ends of lanes; turned by one thread.
//!
//! Invariants
//! - every choice comes from the run's seed: the same seed makes the same steps.
//! - a completion is known with the shard that posted it, also where its agent moves.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use crossbeam_queue::ArrayQueue;

use crate::agent::CloseReason;
use crate::agent::bell::{ClientBells, ServerBells, StatusPage};
use crate::agent::client_lane::ClientLane;
use crate::agent::entry::Completion;
use crate::agent::layout::LaneSizes;
use crate::agent::server_lane::ServerLane;
use crate::cache::{L2, WindowReader};
use crate::config::Durability;
use crate::id::{LaneNo, SessionNo, ShardNo};
use crate::mesh::mesh;
use crate::metrics::ShardCounters;
use crate::prefetch::{self, Events};
use crate::runtime::{RuntimeError, read_back};
use crate::segment::memory::{MemoryDisk, Random};
use crate::segment::{Log, LogConfig, LogId, recover};
use crate::shard::inspect::LogMarks;
use crate::shard::store::Store;
use crate::shard::{
    Answer, AttachError, AttachRequest, Attached, Command, Event, PeerMessage, Routes, Shard,
    ShardOptions, SharedWindow, owner, settle_moves,
};
use crate::shared::{Access, SharedMemory};

/// The whole process ends now: whoever waits for something does not get it.
#[derive(Debug)]
pub(super) struct Crash;

/// Turns in which whatever is waited for has to come.
pub(super) const PATIENCE: u32 = 60_000;

/// What happened, as text that is hashed, and printed where somebody wants it.
pub(super) struct EventLog {
    hash: u64,
    pub(super) print: bool,
}

impl EventLog {
    pub(super) fn new(print: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            print,
        }
    }

    pub(super) fn add(&mut self, text: fmt::Arguments<'_>) {
        // FNV-1a, of the text as it is made.
        struct Hasher<'a>(&'a mut u64);
        impl fmt::Write for Hasher<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for byte in text.bytes() {
                    *self.0 = (*self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
                Ok(())
            }
        }
        _ = fmt::write(&mut Hasher(&mut self.hash), text);
        if self.print {
            println!("{text}");
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

/// What does not change in a run.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) shards: usize,
    pub(super) segment_bytes: u32,
    pub(super) buffer_bytes: usize,
    pub(super) l2_bytes: usize,
    pub(super) group_commit_ns: u64,
    pub(super) ring_slots: u32,
    pub(super) mesh_messages: usize,
    pub(super) window_bytes: usize,
}

/// A shard in its seat.
pub(super) struct Seat {
    pub(super) shard: Shard<MemoryDisk>,
    pub(super) commands: Arc<ArrayQueue<Command>>,
    events: Events,
    pub(super) marks: LogMarks,
    /// Between the first of these and the second a flush failed, and no sync was good since.
    pub(super) failed: Option<(u64, u64)>,
}

/// A lane as its client has it.
pub(super) struct Client {
    pub(super) agent: String,
    pub(super) session: SessionNo,
    pub(super) bells: ClientBells,
    pub(super) region: Arc<SharedMemory>,
    pub(super) lane: ClientLane,
    pub(super) window: WindowReader,
    /// Completions that were taken from the ring, the shard that posted them, and whether the log took
    /// them back.
    inbox: VecDeque<(Completion, usize, bool)>,
}

/// A flush that failed: the shard, and where its log had been.
pub(super) struct Rollback {
    pub(super) shard: usize,
    pub(super) flushed: u64,
}

/// See the module's header.
pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) random: Random,
    pub(super) now: u64,
    pub(super) seats: Vec<Seat>,
    pub(super) routes: Routes,
    pub(super) log: EventLog,
    pub(super) clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// Turns until the process ends.
    pub(super) crash_in: Option<u32>,
    pub(super) rollbacks: Vec<Rollback>,
    /// Sessions that were ended for what they wrote.
    pub(super) malformed: Vec<SessionNo>,
    pub(super) moved: Vec<(String, usize)>,
    /// Virtual nanoseconds of all processes.
    pub(super) lived_ns: u64,
}

/// What a start found, by shard: where the log ends.
pub(super) type Ends = Vec<u64>;

/// Why a start did not come about: the shard, and what it said.
pub(super) type StartError = (usize, RuntimeError);

/// Reads back what disks hold.
pub(super) fn read_back_all(
    disks: &mut [MemoryDisk],
    setup: &Setup,
) -> Result<Vec<(Store<MemoryDisk>, u64)>, StartError> {
    let mut stores = Vec::new();
    for (no, disk) in disks.iter_mut().enumerate() {
        let shard = ShardNo(no as u16);
        let (tables, recovered) =
            read_back(disk, shard, recover::<MemoryDisk>).map_err(|error| (no, error))?;
        let config = LogConfig {
            shard,
            log_id: recovered.log_id.unwrap_or(LogId(7 + no as u64)),
            segment_bytes: setup.segment_bytes,
            buffer_bytes: setup.buffer_bytes,
        };
        let last = recovered.start.last.0;
        let log = Log::new(config, recovered.start);
        let l2 = L2::new(setup.l2_bytes / setup.shards).expect("room for L2");
        // The disk follows, once all have been read.
        stores.push((
            Store::new(tables, log, MemoryDisk::new(), l2, 1 << 30),
            last,
        ));
    }
    Ok(stores)
}

impl World {
    /// A process over what disks hold; says where the logs end.
    pub(super) fn start(
        setup: &Setup,
        mut random: Random,
        log: EventLog,
        stores: Vec<(Store<MemoryDisk>, u64)>,
        disks: Vec<MemoryDisk>,
        now: u64,
    ) -> (Self, Ends) {
        let (mut stores, ends): (Vec<_>, Ends) = stores.into_iter().unzip();
        let routes = settle_moves(&mut stores);
        let count = stores.len();
        let counters: Arc<[ShardCounters]> = (0..count).map(|_| ShardCounters::default()).collect();
        let ports = mesh::<PeerMessage>(count, setup.mesh_messages);
        let mut seats = Vec::new();
        for (no, ((mut store, port), disk)) in stores.into_iter().zip(ports).zip(disks).enumerate()
        {
            let options = ShardOptions {
                no: ShardNo(no as u16),
                durability: Durability::Process,
                group_commit_ns: setup.group_commit_ns,
                // A label only: it may run backwards.
                wall_ms: random.next() >> 24,
                step_clock: None,
            };
            let commands = Arc::new(ArrayQueue::new(256));
            store.disk = disk;
            let mut shard = Shard::new(
                options,
                store,
                port,
                Arc::clone(&commands),
                Arc::clone(&counters),
            );
            let (feed, mut events) = prefetch::event::stream();
            events.listen();
            shard.set_feed(feed);
            shard.set_routes(routes.clone());
            let marks = shard.log_marks();
            seats.push(Seat {
                shard,
                commands,
                events,
                marks,
                failed: None,
            });
        }
        let world = Self {
            setup: setup.clone(),
            random,
            now,
            seats,
            routes,
            log,
            clients: BTreeMap::new(),
            next_client: 1,
            crash_in: None,
            rollbacks: Vec::new(),
            malformed: Vec::new(),
            moved: Vec::new(),
            lived_ns: 0,
        };
        (world, ends)
    }

    /// The shard of an agent, as everybody knows it.
    pub(super) fn home(&self, agent: &str) -> usize {
        let route = self.routes.get(agent.as_bytes());
        let owner = || owner(agent.as_bytes(), self.seats.len());
        usize::from(route.map_or_else(owner, |(shard, _)| *shard).0)
    }

    pub(super) fn pass(&mut self, ns: u64) {
        self.now += ns;
        self.lived_ns += ns;
    }

    /// One of those who take turns does something: a shard, a disk, whoever listens to accesses.
    pub(super) fn turn(&mut self) -> Result<(), Crash> {
        if let Some(left) = &mut self.crash_in {
            if *left == 0 {
                return Err(Crash);
            }
            *left -= 1;
        }
        let ns = match self.random.below(64) {
            0 => 1_000_000 + self.random.below(20_000_000),
            1..=8 => self.random.below(400_000),
            _ => self.random.below(3_000),
        };
        self.pass(ns as u64);
        let no = self.random.below(self.seats.len());
        match self.random.below(16) {
            0..=9 => self.step(no),
            10..=14 => {
                let seat = &mut self.seats[no];
                seat.shard.disk_mut().run_one(&mut self.random);
            }
            _ => {
                for _ in 0..self.random.below(8) {
                    _ = self.seats[no].events.take();
                }
                if self.random.below(4) == 0 {
                    self.seats[no].shard.before_sleep();
                    self.look(no);
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, no: usize) {
        let now = self.now;
        let seat = &mut self.seats[no];
        let worked = seat.shard.step(now);
        while seat.shard.take_notified().is_some() {}
        let events = seat.shard.take_events();
        if worked {
            let marks = seat.shard.log_marks();
            self.log.add(format_args!("step {no} at {now}: {marks:?}"));
        }
        self.look(no);
        for event in events {
            match event {
                Event::Malformed { session, what } => {
                    self.log
                        .add(format_args!("session {session:?} wrote {what}"));
                    self.malformed.push(session);
                    self.end_session(session, CloseReason::Malformed);
                }
                Event::Moved { agent, to, moves } => self.agent_moved(no, &agent, to, moves),
            }
        }
    }

    /// Sees what became of a shard's log in a turn.
    fn look(&mut self, no: usize) {
        let seat = &mut self.seats[no];
        let (before, marks) = (seat.marks, seat.shard.log_marks());
        seat.marks = marks;
        if seat.failed.is_some_and(|(from, _)| marks.synced.0 > from) {
            seat.failed = None;
        }
        if before.rollbacks == marks.rollbacks {
            return;
        }
        let from = seat.failed.map_or(before.flushed.0, |(from, _)| from);
        seat.failed = Some((from, marks.flushed.0));
        let flushed = before.flushed.0;
        self.log
            .add(format_args!("a flush of {no} failed behind {flushed}"));
        self.pull(
            |client, home| home == no && !client.is_empty(),
            no,
            Some(flushed),
        );
        self.rollbacks.push(Rollback { shard: no, flushed });
    }

    /// Takes completions out of rings, before it is forgotten who posted them.
    fn pull(&mut self, whose: impl Fn(&str, usize) -> bool, from: usize, flushed: Option<u64>) {
        let homes: BTreeMap<u64, usize> = self
            .clients
            .iter()
            .map(|(no, client)| (*no, self.home(&client.agent)))
            .collect();
        for (no, client) in &mut self.clients {
            if !whose(&client.agent, homes[no]) {
                continue;
            }
            while let Ok(Some(completion)) = client.lane.poll_completion() {
                let undone = flushed.is_some_and(|flushed| {
                    completion.durability == Some(Durability::Volatile)
                        && completion.value_bytes > flushed
                });
                client.inbox.push_back((completion, from, undone));
            }
        }
    }

    fn agent_moved(&mut self, from: usize, agent: &[u8], to: ShardNo, moves: u32) {
        let name = String::from_utf8_lossy(agent).into_owned();
        self.log.add(format_args!(
            "{name} moved from {from} to {to}, {moves} moves"
        ));
        self.pull(|client, _| client.as_bytes() == agent, from, None);
        let known = self.routes.get(agent);
        if known.is_none_or(|(_, known)| *known < moves) {
            self.routes.insert(agent.into(), (to, moves));
        }
        for seat in &self.seats {
            let agent = agent.into();
            let route = Command::Route { agent, to, moves };
            assert!(seat.commands.push(route).is_ok(), "room for a command");
        }
        self.moved.push((name, usize::from(to.0)));
    }

    /// As the control plane does it: every shard is told.
    pub(super) fn end_session(&mut self, session: SessionNo, reason: CloseReason) {
        for seat in &self.seats {
            let end = Command::EndSession { session, reason };
            assert!(seat.commands.push(end).is_ok(), "room for a command");
        }
    }

    /// The next completion of a client, the shard that posted it, and whether it was taken back.
    pub(super) fn poll(&mut self, client: u64) -> Option<(Completion, usize, bool)> {
        let home = {
            let agent = self.clients.get(&client)?.agent.clone();
            self.home(&agent)
        };
        let client = self.clients.get_mut(&client)?;
        if let Some(kept) = client.inbox.pop_front() {
            return Some(kept);
        }
        let completion = client
            .lane
            .poll_completion()
            .expect("a completion we know")?;
        Some((completion, home, false))
    }

    /// Turns until an answer is there.
    pub(super) fn await_answer<T>(&mut self, what: &str, answer: &Receiver<T>) -> Result<T, Crash> {
        for _ in 0..PATIENCE {
            if let Ok(answer) = answer.try_recv() {
                return Ok(answer);
            }
            self.turn()?;
        }
        panic!("no answer in {PATIENCE} turns: {what}");
    }

    /// Attaches a session of one lane to an agent.
    pub(super) fn attach(
        &mut self,
        agent: &str,
        create: bool,
        public: Option<bool>,
    ) -> Result<Result<u64, AttachError>, Crash> {
        let no = self.next_client;
        self.next_client += 1;
        let session = SessionNo(no);
        let (region, session_fd) = ServerBells::create_session(self.seats.len()).expect("memory");
        let pages: Vec<_> = (0..self.seats.len())
            .map(|_| StatusPage::create().expect("memory").1)
            .collect();
        let bells = ClientBells::map(&session_fd, &pages).expect("bells");
        let arena = LaneSizes::DEFAULT;
        let sizes = LaneSizes::new(
            self.setup.ring_slots,
            arena.input_bytes(),
            arena.output_bytes(),
        )
        .expect("good sizes");
        let (ring, fds) = ServerLane::create(sizes).expect("memory");
        let home = ShardNo(self.home(agent) as u16);
        let lane = ClientLane::map(&fds.client, &fds.server, sizes, LaneNo(0), home).expect("lane");
        let bytes = self.setup.window_bytes;
        let (memory, fd) = SharedMemory::create("w", bytes, Access::ReadOnly).expect("memory");
        let (told, answer) = channel::<Result<Attached, AttachError>>();
        let request = AttachRequest {
            session,
            bells: Arc::clone(&region),
            socket: None,
            lane: LaneNo(0),
            ring,
            agent: agent.as_bytes().into(),
            create,
            public,
            window: SharedWindow {
                memory,
                fd: Arc::new(fd),
            },
            path: Vec::new(),
            reply: Answer::new(move |outcome| _ = told.send(outcome)),
        };
        let seat = &self.seats[usize::from(home.0)];
        let pushed = seat.commands.push(Command::Attach(Box::new(request)));
        assert!(pushed.is_ok(), "room for a command");
        let attached = match self.await_answer("attach", &answer)? {
            Ok(attached) => attached,
            Err(error) => return Ok(Err(error)),
        };
        let map = SharedMemory::map(&*attached.window, bytes, Access::ReadOnly).expect("window");
        let client = Client {
            agent: agent.to_owned(),
            session,
            bells,
            region,
            lane,
            window: WindowReader::open(map).expect("window"),
            inbox: VecDeque::new(),
        };
        self.clients.insert(no, client);
        Ok(Ok(no))
    }

    /// The client's process is gone: the server hears of it.
    pub(super) fn drop_client(&mut self, client: u64) {
        if let Some(gone) = self.clients.remove(&client) {
            self.end_session(gone.session, CloseReason::Detached);
        }
    }
}
