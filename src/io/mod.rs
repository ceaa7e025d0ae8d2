//! The I/O core: all that may wait for a device, done away from the shards.
//!
//! Floor 3. Implements the shards' disk seam on real files: creates and preallocates segments,
//! group-commits, reads what is cold, seals, and runs blocking jobs of the start. A thread for each shard
//! does what has to stay in order (`serial` says why not the ring); cold reads, many at once, are done by
//! an executor of glommio (io_uring), and by plain threads where io_uring is refused.
//! What a record is, or what a shard does with an answer, may not enter.
//!
//! Invariants
//! - every request accepted is answered exactly once, in order per kind and segment, unless the
//!   core is dropped without [`IoCore::shutdown`], which leaves what a kill leaves.
//! - the core sleeps when nothing is asked of it, and never waits for a shard.
//! - one log line at start says which backend serves and why.
//!
//! Cost of a request: two ring pushes and pops, at most one system call to wake the core and one to
//! wake the shard, and the file's own calls. Descriptors: two per segment being
//! written, at most 256 in all for reading what is in memory, 32 per shard and read line for what is not; fewer
//! where the process may have few.

mod disk;
mod file;
mod glommio;
mod line;
mod probe;
mod serial;
mod threads;

#[cfg(test)]
mod tests;

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::process::{Resource, getrlimit};

pub use disk::ShardDisk;
pub use line::Wake;
pub use probe::{MEMLOCK_BYTES_MIN, Refusal, probe};

use line::{
    Bell, CoreEnd, READ_LINES, READ_SLOTS, SERIAL_SLOTS, ShardEnd, Signal, Stop, Watch, line,
};

/// Files that a read line keeps open, where descriptors are many.
const READ_FILES_MAX: usize = 32;
/// Of all descriptors, one in so many is for files that are open to be read: once for shards, once for lines.
const FILES_SHARE: u64 = 8;

/// How many files each of `among` may keep open; `wanted`, where descriptors are many.
fn files_each(wanted: usize, among: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let share = limit.map_or(usize::MAX, |limit| (limit / FILES_SHARE) as usize);
    wanted.min(share / among.max(1)).max(1)
}

/// Who serves the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// Glommio where the machine lets it, else threads.
    #[default]
    Auto,
    /// An executor of glommio, or an error.
    Glommio,
    /// Plain threads.
    Threads,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Glommio => "glommio",
            Self::Threads => "threads",
        })
    }
}

/// One shard, as the I/O core knows it.
#[derive(Clone)]
pub struct ShardFiles {
    /// Where its segments lie; made if it is not there.
    pub directory: PathBuf,
    /// Called when answers wait for it.
    pub wake: Wake,
}

/// How to start the I/O core.
#[derive(Clone)]
pub struct IoOptions {
    /// Who serves.
    pub backend: Backend,
    /// The processor to run on; anywhere if `None`.
    pub core: Option<usize>,
    /// The shards, in order.
    pub shards: Vec<ShardFiles>,
    /// Called, perhaps more than once, where a thread of the core ends that nobody told to: a
    /// panic. What was asked of it is never answered then; the host should stop.
    pub lost: Wake,
}

/// Why the I/O core did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// Glommio was asked for by name and can't be used.
    #[error("io = \"glommio\" can't be used here: {0}; set io = \"auto\" or cure it")]
    Refused(#[from] Refusal),
    /// A directory can't be made, read or synced.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A thread did not start.
    #[error("a thread of the I/O core did not start: {0}; allow more processes or memory")]
    Thread(#[source] std::io::Error),
}

/// The running I/O core. Dropped without [`IoCore::shutdown`] it finishes only what is under way
/// and joins its threads; requests that wait are never answered.
pub struct IoCore {
    backend: Backend,
    refusal: Option<Refusal>,
    core: Option<usize>,
    signal: Arc<Signal>,
    bells: Vec<Arc<Bell>>,
    threads: Vec<JoinHandle<()>>,
}

impl IoCore {
    /// Starts the core, and gives each shard its disk, in order.
    ///
    /// # Errors
    /// A directory that can't be made; glommio asked for by name and refused; no thread.
    pub fn start(options: IoOptions) -> Result<(Self, Vec<ShardDisk>), IoError> {
        for shard in &options.shards {
            file::make_directory(&shard.directory).map_err(|source| IoError::Directory {
                path: shard.directory.clone(),
                source,
            })?;
        }
        let signal = Arc::new(Signal::new(options.lost));
        let started = match options.backend {
            Backend::Threads => None,
            asked => match glommio::start(options.core, options.shards.len()) {
                Err(refusal) if asked == Backend::Glommio => return Err(refusal.into()),
                outcome => Some(outcome),
            },
        };

        let mut disks = Vec::new();
        let (mut serials, mut reads) = (Vec::new(), Vec::new());
        let mut bells = Vec::new();
        let shards = options.shards.len();
        for shard in options.shards {
            let directory = shard.directory.clone();
            let (disk, serial, of_reads) = connect(shard, shards, &signal);
            let ends = std::iter::once(&serial).chain(&of_reads);
            bells.extend(ends.map(|line| Arc::clone(line.inbox.bell())));
            disks.push(disk);
            serials.push((directory.clone(), serial));
            reads.push((directory, of_reads));
        }
        let core = options.core;
        let serials = threads::start_serials(serials, &signal, core);
        let mut threads = serials.map_err(IoError::Thread)?;
        let (backend, refusal) = match started {
            Some(Ok(executor)) => {
                threads.push(executor.serve(reads, Watch(Arc::clone(&signal))));
                (Backend::Glommio, None)
            }
            other => {
                let readers = threads::start_readers(reads, &signal, core).inspect_err(|_| {
                    signal.set(Stop::Now);
                    threads.iter().for_each(|thread| thread.thread().unpark());
                });
                threads.extend(readers.map_err(IoError::Thread)?);
                (Backend::Threads, other.and_then(Result::err))
            }
        };
        match &refusal {
            Some(why) => tracing::warn!(%backend, %why, "I/O core started; io_uring is refused"),
            None => tracing::info!(%backend, asked = %options.backend, "I/O core started"),
        }
        let core = Self {
            backend,
            refusal,
            core,
            signal,
            bells,
            threads,
        };
        Ok((core, disks))
    }

    /// Who serves: never [`Backend::Auto`].
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Why it is not glommio, where that was tried.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Whether its threads still run. If not, one panicked, and requests stay unanswered: the host
    /// should stop.
    #[cfg(test)]
    fn is_running(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Runs what blocks, such as recovery, on a thread of its own where the core runs, and waits
    /// for its value. Callable from several threads at once.
    ///
    /// # Errors
    /// [`IoError::Thread`]; the job was not begun then.
    ///
    /// # Panics
    /// As the job panics.
    pub fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, IoError> {
        let thread = threads::spawn("helios-io-job", self.core, job).map_err(IoError::Thread)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Serves every request that was accepted, refuses further ones, and ends. The answers can
    /// still be polled.
    pub fn shutdown(mut self) {
        self.end(Stop::WhenEmpty);
    }

    fn end(&mut self, stop: Stop) {
        self.bells.iter().for_each(|bell| bell.close());
        self.signal.set(stop);
        self.bells.iter().for_each(|bell| bell.ring());
        for thread in self.threads.drain(..) {
            // A panic there was reported by its hook; there is nothing left to save.
            let _ = thread.join();
        }
    }
}

impl Drop for IoCore {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end(Stop::Now);
        }
    }
}

/// The read lines of one shard, and where its segments lie.
type ReadLines = (PathBuf, Vec<CoreEnd>);

fn connect(
    shard: ShardFiles,
    shards: usize,
    signal: &Arc<Signal>,
) -> (ShardDisk, CoreEnd, Vec<CoreEnd>) {
    let (serial, core_serial) = line(SERIAL_SLOTS, Arc::clone(&shard.wake), signal);
    let mut core_reads = Vec::new();
    let reads: [ShardEnd; READ_LINES] = std::array::from_fn(|_| {
        let (reads, core_end) = line(READ_SLOTS, Arc::clone(&shard.wake), signal);
        core_reads.push(core_end);
        reads
    });
    let disk = ShardDisk::new(shard.directory, shards, serial, reads);
    (disk, core_serial, core_reads)
}

/// Pins the calling thread. Failing is no reason not to serve.
fn pin_thread(core: Option<usize>) {
    let Some(core) = core else { return };
    let mut cores = rustix::thread::CpuSet::new();
    if core < rustix::thread::CpuSet::MAX_CPU {
        cores.set(core);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &cores) {
        tracing::warn!(core, %error, "a thread of the I/O core runs unpinned");
    }
}
