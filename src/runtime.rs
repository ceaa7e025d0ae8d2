//! The runtime: starts, wires and stops everything, in order.
//!
//! Floor 4, above `io` and `topology`: the only room that spawns threads and pins them. What it
//! starts: the I/O core, a pinned thread per shard, and the listener on the socket. What it hands
//! out: lanes, to processes through the socket and to the host's own threads directly.
//!
//! Invariants
//! - a data directory is used by one runtime at a time: its lock is taken first and held longest.
//! - [`Runtime::shutdown`] returns after every acknowledged write is on the device; a runtime that
//!   is dropped without it leaves what a kill leaves.
//! - a stale socket is replaced, one that a live runtime answers on is not.

mod agents;
mod collect;
mod control;
mod data_dir;
mod descriptors;
mod guest;
mod handshakes;
mod health;
mod host;
mod inbox;
mod lines;
mod listener;
mod place;
mod read_only;
mod shard_thread;
#[cfg(not(helios_loom))]
mod sleeper;
mod verify;

#[cfg(fuzzing)]
#[path = "../fuzz/inside/segments.rs"]
pub(crate) mod fuzzing;

#[cfg(all(test, helios_loom))]
mod doorbell_models;
#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

pub use data_dir::DataDirError;
pub use health::{Failure, Health};
pub use place::ListenError;
pub use verify::{Finding, Verified, verify_data_dir};

use crate::cache::L2;
use crate::client::{Attach, ClientError, Lane, Session};
use crate::config::{Choice, Config, ConfigError, Io};
use crate::crash;
use crate::id::ShardNo;
use crate::io::{Backend, IoCore, IoError, IoOptions, ShardDisk, ShardFiles};
use crate::mesh::mesh;
use crate::metrics::{Histogram, ShardCounters, Stats, latency_histogram};
use crate::prefetch::{self, Events};
use crate::segment::files::{FilesError, tail_file_name};
use crate::segment::{
    Cut, Directory, Location, Log, LogConfig, LogId, RecoverError, RecoverReport, Recovered,
    RecoveredRecord, SegmentFiles,
};
use crate::shard::store::Store;
use crate::shard::{
    Command, PeerMessage, Routes, Shard, ShardOptions, Tables, TablesError, settle_moves,
};
use crate::shared::SharedError;
use crate::topology::{Machine, Resolved, TopologyError, raise_file_limit, resolve};
use control::ControlPlane;
use data_dir::DataDir;
use listener::Listener;
use shard_thread::{Doorbell, ShardThread, monotonic_ns};

/// Commands that may wait for one shard.
const COMMANDS_MAX: usize = 1024;
/// Messages that may wait on the way from one shard to another.
const MESH_MESSAGES_MAX: usize = 256;
/// Append buffer of one shard's log.
const LOG_BUFFER_BYTES: usize = 1 << 20;
/// Share of `memory_max` that L2 takes, as a divisor.
const L2_SHARE: u64 = 4;
/// Share of `memory_max` that indexes may take before new keys are refused, as a divisor.
const INDEX_SHARE: u64 = 2;
/// How long a shutdown waits for each shard's last sync.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(30);

/// Why a runtime did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A key of the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine can't be understood.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The I/O core.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Segments that can't be recovered.
    #[error("shard {shard}: {source}")]
    Recover {
        /// The shard.
        shard: ShardNo,
        /// What recovery found.
        source: RecoverError,
    },
    /// A log that contradicts itself.
    #[error("shard {shard}: {source}; restore the data directory from a copy")]
    Tables {
        /// The shard.
        shard: ShardNo,
        /// What recovery found.
        source: TablesError,
    },
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Shared memory.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// A descriptor, mapping or thread was refused.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// What recovery did at start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recovery {
    /// Sums over all shards.
    pub report: RecoverReport,
    /// Time it took, all shards together.
    pub elapsed: Duration,
}

impl Recovery {
    fn log(&self) {
        tracing::info!(
            records = self.report.records,
            bytes = self.report.record_bytes,
            truncated_bytes = self.report.truncated_bytes,
            damaged = self.report.damaged,
            set_aside = self.report.set_aside,
            seconds = self.elapsed.as_secs_f64(),
            "recovered"
        );
    }
}

/// Where the runtime's memory goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// `memory_max`.
    pub budget_bytes: u64,
    /// Resident set of the whole process, as the kernel counts it.
    pub rss_bytes: u64,
    /// Of it, pages shared with agents: windows and lanes.
    pub shared_bytes: u64,
    /// Windows that hold values.
    pub l1_bytes: u64,
    /// Values in L2.
    pub l2_bytes: u64,
    /// What L2 may hold.
    pub l2_capacity_bytes: u64,
    /// Indexes and working sets.
    pub index_bytes: u64,
}

/// A running runtime.
///
/// ```
/// use helios::Runtime;
/// use helios::config::Config;
///
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path();
/// let runtime = Runtime::start(Config::at(path))?;
/// let mut planner = runtime.agent("planner")?;
/// planner.put(b"goal", b"find the bug")?;
/// let mut value = Vec::new();
/// planner.get(b"goal", &mut value)?;
/// assert_eq!(value, b"find the bug");
/// drop(planner);
/// runtime.shutdown()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Runtime {
    control: Arc<ControlPlane>,
    listener: Option<Listener>,
    shards: Vec<ShardThread>,
    io: Option<IoCore>,
    host: Session,
    counters: Arc<[ShardCounters]>,
    resolved: Resolved,
    recovery: Recovery,
    stop: Arc<AtomicBool>,
    /// Readers' ends of the shards' access events, until they are taken.
    events: Mutex<Vec<Option<Events>>>,
    l2_bytes: u64,
    // Last: the lock outlives everything that uses the directory.
    _data_dir: DataDir,
}

/// What a shutdown could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShutdownError {
    /// A shard's last records did not reach the device.
    #[error(
        "shard {shard} stopped without its last sync; process-durable data is in the page cache"
    )]
    NotSynced {
        /// The shard.
        shard: ShardNo,
    },
    /// A shard's thread had panicked, or did not answer.
    #[error("shard {shard} did not stop in order; see the log")]
    Lost {
        /// The shard.
        shard: ShardNo,
    },
}

impl Runtime {
    /// Starts a runtime: resolves `config` against the machine, locks and recovers the data
    /// directory, starts the threads, listens.
    ///
    /// # Errors
    /// [`RuntimeError`]; whatever was started is stopped again, and nothing was changed on disk
    /// beyond what recovery does.
    pub fn start(config: Config) -> Result<Self, RuntimeError> {
        let machine = Machine::probe()?;
        let auto_shards = config.shards == Choice::Auto;
        let mut resolved = resolve(config.clone(), &machine)?;
        let wanted = resolved.placement.shards.len() as u16;
        // Before anything on the disk is touched.
        place::check(&config.socket)?;
        let data_dir = DataDir::open(&config.data_dir, wanted, auto_shards)?;
        if data_dir.shards() != wanted {
            let shards = Choice::Fixed(data_dir.shards());
            resolved = resolve(Config { shards, ..config }, &machine)?;
        }
        raise_file_limit();
        Self::start_in(resolved, data_dir, Opened::ToServe)
    }

    fn start_in(
        resolved: Resolved,
        data_dir: DataDir,
        opened: Opened,
    ) -> Result<Self, RuntimeError> {
        let config = &resolved.config;
        let seats = &resolved.placement.shards;
        let mut doorbells = Vec::new();
        for _ in seats {
            doorbells.push(Arc::new(Doorbell::new()?));
        }
        let commands: Vec<Arc<ArrayQueue<Command>>> = seats
            .iter()
            .map(|_| Arc::new(ArrayQueue::new(COMMANDS_MAX)))
            .collect();
        let (control, events) = ControlPlane::new(&resolved, &commands, &doorbells)?;
        let control = Arc::new(control);
        let directories: Vec<PathBuf> = (0..seats.len())
            .map(|shard| data_dir.shard(ShardNo(shard as u16)))
            .collect();
        let files = directories
            .iter()
            .zip(&doorbells)
            .map(|(directory, doorbell)| {
                let doorbell = Arc::clone(doorbell);
                ShardFiles {
                    directory: directory.clone(),
                    wake: Arc::new(move || doorbell.ring_from_io()),
                }
            });
        let backend = match config.io {
            Io::Auto => Backend::Auto,
            Io::Glommio => Backend::Glommio,
            Io::Threads => Backend::Threads,
        };
        let core = resolved.placement.io.map(|core| core.0 as usize);
        let options = IoOptions {
            backend,
            core,
            shards: files.collect(),
            lost: {
                // Weak: the core is stopped in order after everything else.
                let control = Arc::downgrade(&control);
                Arc::new(move || {
                    if let Some(control) = control.upgrade() {
                        control.io_lost();
                    }
                })
            },
        };
        let (io, disks) = IoCore::start(options)?;

        let counters = new_counters(config, &io, seats.len());
        let started = Instant::now();
        let mut recovery = Recovery::default();
        let l2_bytes = config.memory_max / L2_SHARE;
        let mut stores = Vec::new();
        for (no, (disk, directory)) in disks.into_iter().zip(directories).enumerate() {
            let no = ShardNo(no as u16);
            let (store, report) =
                recover_shard(&io, no, disk, directory, config, seats.len(), opened)?;
            recovery.report.add(&report);
            stores.push(store);
        }
        let routes = settle_moves(&mut stores);
        control.set_routes(routes.clone());
        recovery.elapsed = started.elapsed();
        recovery.log();

        let stop = Arc::new(AtomicBool::new(false));
        // From here on, dropping it on an error stops what was started.
        let mut runtime = Self {
            host: host::session(&control)?,
            control: Arc::clone(&control),
            listener: None,
            shards: Vec::new(),
            io: Some(io),
            counters: Arc::clone(&counters),
            l2_bytes,
            resolved,
            recovery,
            stop,
            events: Mutex::default(),
            _data_dir: data_dir,
        };
        runtime.spawn_shards(stores, &routes, &commands, &doorbells)?;
        if opened == Opened::ToRead {
            return Ok(runtime);
        }
        let socket = &runtime.resolved.config.socket;
        let counters = Arc::clone(&runtime.counters);
        runtime.listener = Some(Listener::start(socket, control, events, counters)?);
        Ok(runtime)
    }

    /// Starts a thread for each shard, in its seat.
    fn spawn_shards(
        &mut self,
        stores: Vec<Store<ShardDisk>>,
        routes: &Routes,
        commands: &[Arc<ArrayQueue<Command>>],
        doorbells: &[Arc<Doorbell>],
    ) -> Result<(), RuntimeError> {
        let config = &self.resolved.config;
        let ports = mesh::<PeerMessage>(stores.len(), MESH_MESSAGES_MAX);
        for (no, (store, port)) in stores.into_iter().zip(ports).enumerate() {
            let options = ShardOptions {
                no: ShardNo(no as u16),
                durability: config.durability,
                group_commit_ns: config.group_commit_interval.as_nanos() as u64,
                wall_ms: wall_ms(),
                step_clock: Some(monotonic_ns),
            };
            let counters = Arc::clone(&self.counters);
            let mut shard = Shard::new(options, store, port, Arc::clone(&commands[no]), counters);
            let (feed, events) = prefetch::event::stream();
            shard.set_feed(feed);
            shard.set_routes(routes.clone());
            self.events
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Some(events));
            self.shards.push(ShardThread::spawn(
                shard,
                self.resolved.placement.shards[no],
                doorbells.to_vec(),
                self.control.events_for(ShardNo(no as u16)),
                Arc::clone(&self.stop),
            )?);
        }
        Ok(())
    }

    /// A lane of a host thread to an agent, which is made where there is none. The same as through
    /// the socket, without it.
    ///
    /// # Errors
    /// As [`Session::attach`].
    pub fn agent(&self, name: &str) -> Result<Lane, ClientError> {
        self.host.attach(name, Attach::default())
    }

    /// The host's own session, for lanes with other options.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.host
    }

    /// What of the runtime has failed, and a way to wait for it. After a failure the rest serves
    /// on; a host that wants all of it back shuts down and starts again.
    #[must_use]
    pub fn health(&self) -> Health {
        self.control.health().clone()
    }

    /// What the shards have counted, summed.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        self.counters
            .iter()
            .for_each(|counters| sum.add(&counters.read()));
        sum
    }

    /// What each step of the shards' collections took since the start, in nanoseconds.
    #[must_use]
    pub fn collection_steps(&self) -> Histogram<u64> {
        let mut all = latency_histogram();
        self.counters
            .iter()
            .for_each(|counters| counters.collection_steps.add_to(&mut all));
        all
    }

    /// Where memory goes. The resident set is the whole process's, the host's own included.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let stats = self.stats();
        let (rss_bytes, shared_bytes) = resident();
        Memory {
            budget_bytes: self.resolved.config.memory_max,
            rss_bytes,
            shared_bytes,
            l1_bytes: stats.l1_bytes,
            l2_bytes: stats.l2_bytes,
            l2_capacity_bytes: self.l2_bytes,
            index_bytes: stats.index_bytes,
        }
    }

    /// Who does the disk work that may block.
    #[must_use]
    pub fn io_backend(&self) -> Backend {
        self.io.as_ref().map_or(Backend::Auto, IoCore::backend)
    }

    /// Shards running.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The configuration and placement that are in force.
    #[must_use]
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// What recovery did at start.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Where processes attach.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.resolved.config.socket
    }

    /// Stops in order: no new lanes, pending requests completed, everything synced, threads joined.
    ///
    /// # Errors
    /// The first shard whose last records did not reach the device; the others are stopped too.
    pub fn shutdown(mut self) -> Result<(), ShutdownError> {
        crash::point("end.begun");
        let answers: Vec<_> = (0..self.shards.len())
            .map(|no| self.control.shutdown_shard(ShardNo(no as u16)))
            .collect();
        let mut outcome = Ok(());
        let deadline = Instant::now() + SHUTDOWN_WAIT;
        for (no, answer) in answers.into_iter().enumerate() {
            let shard = ShardNo(no as u16);
            let ended = match self.answer_by(&answer, deadline) {
                Ok((_, true)) => Ok(()),
                Ok((_, false)) => Err(ShutdownError::NotSynced { shard }),
                Err(_) => Err(ShutdownError::Lost { shard }),
            };
            outcome = outcome.and(ended);
        }
        crash::point("end.synced");
        self.stop_threads();
        // Behind the shards: it ends the sessions, and what is pending of them was to be completed.
        if let Some(listener) = self.listener.take() {
            listener.stop();
        }
        if let Some(io) = self.io.take() {
            io.shutdown();
        }
        crash::point("end.done");
        outcome
    }

    /// A shard's answer to its shutdown; meanwhile commands that found no room are handed on, as the
    /// listener does too, which may have failed.
    fn answer_by<T>(&self, answer: &Receiver<T>, deadline: Instant) -> Result<T, RecvTimeoutError> {
        loop {
            let behind = self.control.catch_up();
            let mut left = deadline.saturating_duration_since(Instant::now());
            if behind {
                left = left.min(Duration::from_millis(10));
            }
            match answer.recv_timeout(left) {
                Err(RecvTimeoutError::Timeout) if behind && Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
    }

    fn stop_threads(&mut self) {
        self.stop.store(true, Ordering::Release);
        for shard in self.shards.drain(..) {
            shard.join();
        }
    }
}

impl Drop for Runtime {
    /// Ends without a flush or sync, as a kill would; only threads and memory are given back.
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.stop();
        }
        self.stop_threads();
        self.control.health().end();
    }
}

/// What a data directory is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opened {
    /// To be repaired and written, for processes that connect.
    ToServe,
    /// To be looked at: nothing in it changes.
    ToRead,
}

/// Reads a shard's log back, on the I/O core, and opens its segments.
fn recover_shard(
    io: &IoCore,
    no: ShardNo,
    mut disk: ShardDisk,
    directory: PathBuf,
    config: &Config,
    shards: usize,
    opened: Opened,
) -> Result<(Store<ShardDisk>, RecoverReport), RuntimeError> {
    let (tables, recovered) = io.run_blocking(move || match opened {
        Opened::ToServe => read_back(
            &mut Directory::new(directory),
            no,
            crate::segment::recover::<Directory>,
        ),
        Opened::ToRead => read_back(
            &mut Directory::read_only(directory),
            no,
            crate::segment::read_only::<Directory>,
        ),
    })??;
    let report = recovered.report;
    warn_of_damage(no, &recovered);
    for (segment, bytes) in disk.existing()? {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let open = match opened {
            Opened::ToServe => disk.open_existing(segment, bytes),
            Opened::ToRead => disk.open_to_read(segment, bytes),
        };
        open.map_err(|source| RuntimeError::Os {
            what: "opening a segment",
            source: std::io::Error::other(source),
        })?;
    }
    let log_config = LogConfig {
        shard: no,
        log_id: recovered.log_id.unwrap_or_else(fresh_log_id),
        segment_bytes: config.segment_bytes,
        buffer_bytes: LOG_BUFFER_BYTES,
    };
    let mut log = Log::new(log_config, recovered.start);
    if opened == Opened::ToRead {
        log.freeze();
    }
    let l2_bytes = config.memory_max / L2_SHARE / shards as u64;
    let l2 = L2::new(l2_bytes as usize).map_err(|source| RuntimeError::Os {
        what: "reserving L2",
        source,
    })?;
    let index_bytes_max = config.memory_max / INDEX_SHARE / shards as u64;
    Ok((Store::new(tables, log, disk, l2, index_bytes_max), report))
}

/// Reads a log: repairs it, or leaves it as it is.
pub(crate) type Recover<F> =
    fn(&mut F, ShardNo, &mut dyn FnMut(&RecoveredRecord<'_>)) -> Result<Recovered, RecoverError>;

/// Reads the records of a log, repairing it or not, and makes a shard's tables of them.
pub(crate) fn read_back<F: SegmentFiles>(
    files: &mut F,
    no: ShardNo,
    recover: Recover<F>,
) -> Result<(Tables, Recovered), RuntimeError> {
    let mut tables = Tables::default();
    let mut refused = None;
    let mut visit = |record: &RecoveredRecord<'_>| {
        if refused.is_none() {
            refused = tables.apply(record).err();
        }
    };
    let recovered = recover(files, no, &mut visit)
        .map_err(|source| RuntimeError::Recover { shard: no, source })?;
    if let Some(source) = refused {
        return Err(RuntimeError::Tables { shard: no, source });
    }
    let mut failed = None;
    tables
        .finish(&recovered.start.dropped, |at| {
            stored_at(files, at, &mut failed)
        })
        .map_err(|source| RuntimeError::Tables { shard: no, source })?;
    match failed {
        // What a device would not give now is no damage: a value that is sound would be refused until the next start.
        Some(error) => Err(RuntimeError::Recover {
            shard: no,
            source: error.into(),
        }),
        None => Ok((tables, recovered)),
    }
}

/// Stored bytes, unless the file ends before; what the device refused goes to `failed`, where it is the first.
pub(crate) fn stored_at<F: SegmentFiles + ?Sized>(
    files: &mut F,
    at: Location,
    failed: &mut Option<FilesError>,
) -> Option<Vec<u8>> {
    let mut stored = vec![0; at.bytes as usize];
    match files.read_at(at.segment, u64::from(at.offset), &mut stored) {
        Ok(bytes) => (bytes == stored.len()).then_some(stored),
        Err(error) => {
            failed.get_or_insert(error);
            None
        }
    }
}

/// Says what was not read back, and where it is.
fn warn_of_damage(shard: ShardNo, recovered: &Recovered) {
    for at in &recovered.damaged {
        tracing::warn!(
            shard = shard.0,
            segment = at.segment.0,
            offset = at.offset,
            bytes = at.bytes,
            "stored bytes are damaged: reads of their values are refused until these are written again"
        );
    }
    if let Some(Cut { at, sequence, mark }) = recovered.cut {
        tracing::warn!(
            shard = shard.0,
            segment = at.segment.0,
            offset = at.offset,
            bytes = at.bytes,
            sequence = sequence.0,
            kept_as = tail_file_name(at.segment, at.offset.into(), mark),
            "the log ended in bytes that are no record, and nothing says that they were synced: kept aside"
        );
    }
    for segment in &recovered.set_aside {
        tracing::warn!(
            shard = shard.0,
            segment = segment.0,
            "a segment behind the end of the log, and nothing says that it was synced: renamed to an orphan"
        );
    }
}

/// Counters for each shard, and in them what never changes; the last are the listener's.
fn new_counters(config: &Config, io: &IoCore, shards: usize) -> Arc<[ShardCounters]> {
    let counters: Arc<[ShardCounters]> = (0..=shards).map(|_| ShardCounters::default()).collect();
    let of_shards = counters.iter().take(shards);
    of_shards.for_each(|counters| counters.shards.set(1));
    counters[0].memory_max_bytes.set(config.memory_max);
    let io_uring = io.backend() == Backend::Glommio;
    counters[0].io_uring.set(u64::from(io_uring));
    counters
}

/// Milliseconds since 1970 by the system's clock: for labels only.
fn wall_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

/// A name for a new log: nothing depends on its quality but that two differ.
fn fresh_log_id() -> LogId {
    use std::hash::{BuildHasher, RandomState};
    LogId(RandomState::new().hash_one(std::process::id()))
}

/// Resident bytes of this process, and those of them that are shared memory.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.unwrap_or(0_u64) << 10
    };
    (field("VmRSS:"), field("RssShmem:"))
}

/// Joins a thread; a panic in it was reported by its hook already.
fn join(thread: JoinHandle<()>) {
    let _ = thread.join();
}
