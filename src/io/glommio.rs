//! The I/O core as an executor of glommio: io_uring.
//!
//! Floor 3, part of `io`. One pinned thread that sleeps until a line's bell rings or the ring
//! completes something. A task per serial line, a task per read line with one more for each read
//! under way, and a task for jobs that block. Creates, footers and cuts run on glommio's own
//! blocking threads; fdatasync, opening and reading go through the ring.
//!
//! Invariants
//! - nothing here polls memory: a task that does starves the reactor, and hung a loop of 500
//!   writes for good.
//! - none of glommio's channels is used: their ends are unsound when cloned. Requests come by our
//!   rings, and wakes by an `AtomicWaker` each.
//! - reads run concurrently, and the answers of one segment leave in the order of its requests.
//! - the executor ends only when its tasks have, and when no other thread touches a waker of
//!   theirs any more.

#![expect(
    unsafe_code,
    reason = "glommio takes over a file by its raw descriptor"
)]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::future::poll_fn;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use ::glommio::io::{BufferedFile, OpenOptions};
use ::glommio::{
    CpuSet, GlommioError, Latency, LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement,
    Shares, TaskQueueHandle,
};

use super::file;
use super::line::{CoreEnd, Outbox, Signal, Stop};
use super::probe::{Refusal, probe};
use super::serial::{Device, Serial};
use super::{CoreLines, Jobs, READ_FILES_MAX, threads};
use crate::id::SegmentNo;
use crate::segment::{DiskError, IoReply, IoRequest};

/// Memory for direct I/O, of which there is none; the least that glommio takes.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// Entries of each of its three rings; more requests wait in user space.
const RING_DEPTH: usize = 128;
/// Threads for calls that block.
const BLOCKING_THREADS: usize = 2;
/// How soon the executor looks at its ring again while cold reads are served.
const READ_LATENCY: Duration = Duration::from_millis(1);
/// Between two looks at whether the last bell was rung, at the end only.
const END_POLL: Duration = Duration::from_micros(50);

/// A started executor that waits for its lines.
pub(super) struct Started {
    lines: mpsc::Sender<Vec<CoreLines>>,
    thread: JoinHandle<()>,
}

impl Started {
    /// Gives it the lines to serve.
    pub(super) fn serve(self, shards: Vec<CoreLines>) -> JoinHandle<()> {
        // The thread waits for exactly this; were it dead, the join would tell.
        let _ = self.lines.send(shards);
        self.thread
    }
}

/// Builds the executor on a thread of its own and lets it do something once.
pub(super) fn start(
    signal: &Arc<Signal>,
    jobs: &Arc<Jobs>,
    core: Option<usize>,
) -> Result<Started, Refusal> {
    probe()?;
    let (lines, lines_of_thread) = mpsc::channel();
    let (report, reported) = mpsc::sync_channel(1);
    let (signal, jobs) = (Arc::clone(signal), Arc::clone(jobs));
    // The executor pins the thread itself.
    let thread = threads::spawn("helios-io", None, move || {
        match catch_unwind(|| build(core)) {
            Ok(Ok(executor)) => {
                let _ = report.send(Ok(()));
                if let Ok(shards) = lines_of_thread.recv() {
                    executor.run(serve(shards, signal, jobs));
                }
            }
            Ok(Err(refusal)) => drop(report.send(Err(refusal))),
            Err(_) => drop(report.send(Err(refused("it panicked")))),
        }
    })
    .map_err(|error| refused(&error))?;
    let outcome = reported.recv().unwrap_or(Err(refused("its thread died")));
    match outcome {
        Ok(()) => Ok(Started { lines, thread }),
        Err(refusal) => {
            let _ = thread.join();
            Err(refusal)
        }
    }
}

fn build(core: Option<usize>) -> Result<LocalExecutor, Refusal> {
    let (placement, blocking) = match core {
        None => (Placement::Unbound, PoolPlacement::Unbound(BLOCKING_THREADS)),
        Some(core) => {
            let cores = CpuSet::online().map_err(|error| refused(&error))?;
            let cores = cores.filter(|location| location.cpu == core);
            (
                Placement::Fixed(core),
                PoolPlacement::Fenced(BLOCKING_THREADS, cores),
            )
        }
    };
    let executor = LocalExecutorBuilder::new(placement)
        .name("helios-io")
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        .blocking_thread_pool_placement(blocking)
        .make()
        .map_err(|error| refused(&error))?;
    executor
        .run(async {
            let file = BufferedFile::open("/dev/null").await?;
            ::glommio::executor().spawn_blocking(|| ()).await;
            file.close().await
        })
        .map_err(|error| refused(&error))?;
    Ok(executor)
}

fn refused(reason: &(impl ToString + ?Sized)) -> Refusal {
    Refusal::Executor {
        reason: reason.to_string(),
    }
}

async fn serve(shards: Vec<CoreLines>, signal: Arc<Signal>, jobs: Arc<Jobs>) {
    let live = Live::default();
    let reads = ::glommio::executor().create_task_queue(
        Shares::default(),
        Latency::Matters(READ_LATENCY),
        "cold reads",
    );
    for shard in shards {
        let CoreLines {
            directory,
            serial,
            reads: lines,
        } = shard;
        for line in lines {
            let task = read_line(directory.clone(), line, reads, live.enter());
            // The queue was just made, so this can't fail.
            if let Ok(task) = ::glommio::spawn_local_into(task, reads) {
                task.detach();
            }
        }
        ::glommio::spawn_local(serial_line(directory, serial, live.enter())).detach();
    }
    ::glommio::spawn_local(run_jobs(jobs, Arc::clone(&signal), live.enter())).detach();
    live.none_left().await;
    // A thread that rings the last bell may still hold a waker of a task: its memory must outlive
    // that, and the wake it queued is best taken off the queue.
    while !signal.rung() {
        ::glommio::timer::sleep(END_POLL).await;
    }
    ::glommio::timer::sleep(END_POLL).await;
}

async fn serial_line(directory: PathBuf, mut line: CoreEnd, _guard: LiveGuard) {
    let mut serial = Serial::new(Ring, directory);
    while let Some(request) = line.inbox.next().await {
        serial
            .serve(request, &mut line.inbox, &mut line.outbox)
            .await;
    }
    serial.close().await;
}

struct Ring;

impl Device for Ring {
    type Synced = BufferedFile;

    fn adopt(&self, segment: SegmentNo, file: &Arc<File>) -> Result<BufferedFile, DiskError> {
        let copy = file
            .try_clone()
            .map_err(|error| file::failed("dup", segment, &error))?;
        // SAFETY: a descriptor of its own, given away here; closed by glommio.
        Ok(unsafe { BufferedFile::from_raw_fd(copy.into_raw_fd()) })
    }

    async fn sync(&self, segment: SegmentNo, file: &BufferedFile) -> Result<(), DiskError> {
        let done = file.fdatasync().await;
        done.map_err(|error| failed("fdatasync", segment, &error))
    }

    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        ::glommio::executor().spawn_blocking(job).await
    }

    async fn close(&self, file: BufferedFile) {
        // Nothing unsynced is lost by a close that fails; the descriptor is gone either way.
        let _ = file.close().await;
    }
}

fn failed(call: &'static str, segment: SegmentNo, error: &GlommioError<()>) -> DiskError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    file::failed(call, segment, &std::io::Error::from_raw_os_error(errno))
}

async fn read_line(
    directory: PathBuf,
    mut line: CoreEnd,
    reads: TaskQueueHandle,
    _guard: LiveGuard,
) {
    let under_way = Live::default();
    let answers = Rc::new(RefCell::new(InOrder::new(line.outbox)));
    let mut files: VecDeque<(SegmentNo, Rc<BufferedFile>)> = VecDeque::new();
    while let Some(request) = line.inbox.next().await {
        let IoRequest::Read {
            ticket,
            segment,
            offset,
            mut buffer,
        } = request
        else {
            unreachable!("a read line carries reads only")
        };
        let place = answers.borrow_mut().begin(segment);
        let found = files.iter().find(|(open, _)| *open == segment);
        let file = match found {
            Some((_, file)) => Ok(Rc::clone(file)),
            None => open(&directory, segment).await.map(Rc::new),
        };
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                let result = Err(error);
                let reply = IoReply::Read {
                    ticket,
                    buffer,
                    result,
                };
                answers.borrow_mut().finish(segment, place, reply);
                continue;
            }
        };
        if found.is_none() {
            if files.len() == READ_FILES_MAX {
                // Closed by glommio when the reads under way let go of it.
                files.pop_front();
            }
            files.push_back((segment, Rc::clone(&file)));
        }
        let (answers, guard) = (Rc::clone(&answers), under_way.enter());
        let task = async move {
            let result = read(&file, segment, offset, &mut buffer).await;
            let reply = IoReply::Read {
                ticket,
                buffer,
                result,
            };
            answers.borrow_mut().finish(segment, place, reply);
            drop((file, guard));
        };
        if let Ok(task) = ::glommio::spawn_local_into(task, reads) {
            task.detach();
        }
    }
    under_way.none_left().await;
    for (_, file) in files {
        if let Some(file) = Rc::into_inner(file) {
            let _ = file.close().await;
        }
    }
}

async fn open(directory: &std::path::Path, segment: SegmentNo) -> Result<BufferedFile, DiskError> {
    let path = file::path(directory, segment);
    let opened = OpenOptions::new().read(true).buffered_open(path).await;
    opened.map_err(|error| failed("open", segment, &error))
}

/// Fills all of `buffer`. glommio reads into memory of its own, so the bytes are copied once:
/// 0.3 us for 4 KiB beside a read of 100 us.
async fn read(
    file: &BufferedFile,
    segment: SegmentNo,
    offset: u32,
    buffer: &mut [u8],
) -> Result<(), DiskError> {
    let end = u64::from(offset) + buffer.len() as u64;
    let mut filled = 0;
    while filled < buffer.len() {
        let at = u64::from(offset) + filled as u64;
        match file.read_at(at, buffer.len() - filled).await {
            Ok(bytes) if bytes.is_empty() => return Err(DiskError::Short { segment, end }),
            Ok(bytes) => {
                buffer[filled..filled + bytes.len()].copy_from_slice(&bytes);
                filled += bytes.len();
            }
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(failed("pread", segment, &error)),
        }
    }
    Ok(())
}

/// Lets the answers of a segment out in the order of its requests.
struct InOrder {
    outbox: Outbox,
    waiting: HashMap<SegmentNo, VecDeque<(u64, Option<IoReply>)>>,
    next_place: u64,
}

impl InOrder {
    fn new(outbox: Outbox) -> Self {
        Self {
            outbox,
            waiting: HashMap::new(),
            next_place: 0,
        }
    }

    fn begin(&mut self, segment: SegmentNo) -> u64 {
        let place = self.next_place;
        self.next_place += 1;
        let queue = self.waiting.entry(segment).or_default();
        queue.push_back((place, None));
        place
    }

    fn finish(&mut self, segment: SegmentNo, place: u64, reply: IoReply) {
        let Some(queue) = self.waiting.get_mut(&segment) else {
            return;
        };
        if let Ok(at) = queue.binary_search_by_key(&place, |(place, _)| *place) {
            queue[at].1 = Some(reply);
        }
        let mut pushed = false;
        while let Some((_, Some(_))) = queue.front() {
            if let Some((_, Some(reply))) = queue.pop_front() {
                self.outbox.push(reply, None);
                pushed = true;
            }
        }
        if queue.is_empty() {
            self.waiting.remove(&segment);
        }
        if pushed {
            self.outbox.wake();
        }
    }
}

/// Hands jobs to the blocking threads as they come, until the core is to end.
async fn run_jobs(jobs: Arc<Jobs>, signal: Arc<Signal>, _guard: LiveGuard) {
    let under_way = Live::default();
    loop {
        let next = poll_fn(|context| {
            if let Some(job) = jobs.pop() {
                return Poll::Ready(Some(job));
            }
            jobs.bell.register(context);
            match (jobs.pop(), signal.stop()) {
                (Some(job), _) => Poll::Ready(Some(job)),
                (None, Stop::No) => Poll::Pending,
                (None, _) => Poll::Ready(None),
            }
        });
        let Some(job) = next.await else { break };
        let guard = under_way.enter();
        ::glommio::spawn_local(async move {
            // A panic would take the blocking thread with it, and hang its waiter.
            let run = move || drop(catch_unwind(AssertUnwindSafe(job)));
            ::glommio::executor().spawn_blocking(run).await;
            drop(guard);
        })
        .detach();
    }
    under_way.none_left().await;
}

/// Counts tasks of this executor, and waits until there are none.
#[derive(Clone, Default)]
struct Live(Rc<LiveState>);

#[derive(Default)]
struct LiveState {
    count: Cell<usize>,
    waiter: RefCell<Option<Waker>>,
}

impl Live {
    fn enter(&self) -> LiveGuard {
        self.0.count.set(self.0.count.get() + 1);
        LiveGuard(self.clone())
    }

    async fn none_left(&self) {
        poll_fn(|context| {
            if self.0.count.get() == 0 {
                return Poll::Ready(());
            }
            *self.0.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

struct LiveGuard(Live);

impl Drop for LiveGuard {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.count.set(state.count.get() - 1);
        if state.count.get() == 0
            && let Some(waiter) = state.waiter.borrow_mut().take()
        {
            waiter.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::line::line;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn answers_of_a_segment_leave_in_order_whatever_the_device_does() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&wakes);
        let wake = Arc::new(move || drop(counted.fetch_add(1, Ordering::Relaxed)));
        let (mut shard, core) = line(8, wake, &Arc::default());
        let mut answers = InOrder::new(core.outbox);
        let read = |ticket| IoRequest::Read {
            ticket,
            segment: SegmentNo(1),
            offset: 0,
            buffer: Vec::new(),
        };
        let done = |ticket| IoReply::Read {
            ticket,
            buffer: Vec::new(),
            result: Ok(()),
        };
        (0..4).for_each(|ticket| shard.submit(read(ticket)).unwrap());
        let (one, two) = (SegmentNo(1), SegmentNo(2));
        let places = [one, one, two, one].map(|segment| (segment, answers.begin(segment)));
        let mut seen = Vec::new();
        for ticket in [3, 1, 2, 0] {
            let (segment, place) = places[ticket];
            answers.finish(segment, place, done(ticket as u64));
            let mut new = Vec::new();
            while let Some(answer) = shard.poll() {
                let IoReply::Read { ticket, .. } = answer.reply else {
                    unreachable!()
                };
                new.push(ticket);
            }
            seen.push(new);
        }
        assert_eq!(seen, [vec![], vec![], vec![2], vec![0, 1, 3]]);
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
        assert!(answers.waiting.is_empty());
    }
}
