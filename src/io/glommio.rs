//! Cold reads as an executor of glommio: io_uring.
//!
//! Floor 3, part of `io`. One pinned thread that sleeps until its door, an eventfd, is rung or the
//! ring completes something. A task per read line, with one more for each read under way; opening
//! and reading go through the ring.
//!
//! Invariants, each against a defect of glommio 0.9 that was met
//! - nothing here polls memory: a task that does starves the reactor, and hung a loop of 500
//!   writes for good.
//! - none of glommio's channels is used: their ends are unsound when cloned.
//! - nothing but the ring wakes the executor. Where an entry of its *latency* ring (a preempt timer
//!   that expired, a foreign wake's eventfd, a completed `spawn_blocking`) comes between its look at
//!   the rings and its look at the task queues, `run_task_queues` returns without running any, the
//!   entry wakes nobody, and the executor parks over tasks that are ready: one in some thousand
//!   wakes here, and then until the next event, which may never come. So other threads ring an
//!   eventfd of ours that a task reads through the *main* ring, `spawn_blocking` and timers are not
//!   used, no queue has `Latency::Matters`, the preempt timer never expires, and the rings are deeper than
//!   all that can be under way, so that the preemption by throughput never comes.
//! - reads run concurrently, and the answers of one segment leave in the order of its requests.

#![expect(
    unsafe_code,
    reason = "glommio takes over a file by its raw descriptor"
)]

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use ::glommio::io::{BufferedFile, OpenOptions};
use ::glommio::{
    GlommioError, Latency, LocalExecutor, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle,
};
use rustix::event::EventfdFlags;

use super::file;
use super::line::{CoreEnd, Inbox, Next, Outbox, READ_LINES, READ_SLOTS, Watch};
use super::probe::{Refusal, probe};
use super::{READ_FILES_MAX, ReadLines, files_each, threads};
use crate::id::SegmentNo;
use crate::segment::{DiskError, IoReply, IoRequest};

/// Memory for direct I/O, of which there is none; the least that glommio takes.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// What a shard may have in the ring: its reads, and an open for each line.
const UNDER_WAY_PER_SHARD: usize = READ_LINES * (READ_SLOTS + 1);
/// What else is in the ring: the door, and closes of files.
const UNDER_WAY_ELSE: usize = 64;
/// The kernel takes no more.
const RING_DEPTH_MAX: usize = 16 << 10;
/// Longer than any run of tasks.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// A started executor that waits for its lines.
pub(super) struct Started {
    lines: mpsc::Sender<(Vec<ReadLines>, Watch)>,
    thread: JoinHandle<()>,
}

impl Started {
    /// Gives it the lines to serve.
    pub(super) fn serve(self, shards: Vec<ReadLines>, watch: Watch) -> JoinHandle<()> {
        // The thread waits for exactly this; were it dead, the watch would tell.
        let _ = self.lines.send((shards, watch));
        self.thread
    }
}

/// Builds the executor on a thread of its own and lets it do something once.
pub(super) fn start(core: Option<usize>, shards: usize) -> Result<Started, Refusal> {
    probe()?;
    let ring_depth = (UNDER_WAY_PER_SHARD * shards + UNDER_WAY_ELSE).next_power_of_two();
    let ring_depth = ring_depth.min(RING_DEPTH_MAX);
    let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| refused(&error))?;
    let door = Arc::new(Door { fd });
    let (lines, lines_of_thread) = mpsc::channel();
    let (report, reported) = mpsc::sync_channel(1);
    // The executor pins the thread itself.
    let thread = threads::spawn("helios-io", None, move || {
        match catch_unwind(|| build(core, ring_depth)) {
            Ok(Ok(executor)) => {
                let _ = report.send(Ok(()));
                // The watch lives as long as the lines are served.
                if let Ok((shards, _watch)) = lines_of_thread.recv() {
                    executor.run(serve(shards, door));
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

fn build(core: Option<usize>, ring_depth: usize) -> Result<LocalExecutor, Refusal> {
    let placement = core.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement)
        .name("helios-io")
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(ring_depth)
        .preempt_timer(NEVER)
        .make()
        .map_err(|error| refused(&error))?;
    executor
        .run(async { BufferedFile::open("/dev/null").await?.close().await })
        .map_err(|error| refused(&error))?;
    Ok(executor)
}

fn refused(reason: &(impl ToString + ?Sized)) -> Refusal {
    Refusal::Executor {
        reason: reason.to_string(),
    }
}

/// What other threads ring. A wake is one write; the count it adds to is read by the executor.
struct Door {
    fd: OwnedFd,
}

impl Wake for Door {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Fails only where the count would overflow, and then it is readable already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

/// The tasks that wait for the door, and how they are woken: locally.
#[derive(Clone)]
struct Hall {
    door: Waker,
    waiting: Rc<RefCell<Vec<Waker>>>,
}

impl Hall {
    fn wait(&self, context: &Context<'_>) {
        self.waiting.borrow_mut().push(context.waker().clone());
    }

    fn wake_all(&self) {
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The next request of a line; `None` when the core is to end.
    async fn next(&self, inbox: &mut Inbox) -> Option<IoRequest> {
        poll_fn(|context| match inbox.next(&self.door) {
            Next::Serve(request) => Poll::Ready(Some(request)),
            Next::End => Poll::Ready(None),
            Next::Wait => {
                self.wait(context);
                Poll::Pending
            }
        })
        .await
    }
}

async fn serve(shards: Vec<ReadLines>, door: Arc<Door>) {
    let lines = Live::default();
    let hall = Hall {
        door: Waker::from(Arc::clone(&door)),
        waiting: Rc::default(),
    };
    let reads = ::glommio::executor().create_task_queue(
        Shares::default(),
        Latency::NotImportant,
        "cold reads",
    );
    let files_max = files_each(READ_FILES_MAX, shards.len() * READ_LINES);
    for (directory, of_shard) in shards {
        for line in of_shard {
            let task = read_line(directory.clone(), line, files_max, reads, hall.clone());
            spawn_into(reads, lines.counting(task, &hall));
        }
    }
    // A copy of the descriptor, for glommio closes it by itself.
    let Ok(copy) = door.fd.try_clone() else {
        panic!("no descriptor left for the I/O core")
    };
    // SAFETY: a descriptor of its own, given away here.
    let door = unsafe { BufferedFile::from_raw_fd(copy.into_raw_fd()) };
    while lines.count() > 0 {
        let rung = door.read_at(0, size_of::<u64>()).await;
        if let Err(error) = rung {
            let again = [Some(libc::EINTR), Some(libc::EAGAIN)];
            assert!(again.contains(&error.raw_os_error()), "the door: {error}");
        }
        hall.wake_all();
    }
    let _ = door.close().await;
}

fn spawn_into(queue: TaskQueueHandle, task: impl Future<Output = ()> + 'static) {
    let task = ::glommio::spawn_local_into(task, queue);
    task.expect("a queue of this executor").detach();
}

fn failed(call: &'static str, segment: SegmentNo, error: &GlommioError<()>) -> DiskError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    file::failed(call, segment, &std::io::Error::from_raw_os_error(errno))
}

async fn read_line(
    directory: PathBuf,
    mut line: CoreEnd,
    files_max: usize,
    reads: TaskQueueHandle,
    hall: Hall,
) {
    let under_way = Live::default();
    let answers = Rc::new(RefCell::new(InOrder::new(line.outbox)));
    let mut files: VecDeque<(SegmentNo, Rc<BufferedFile>)> = VecDeque::new();
    while let Some(request) = hall.next(&mut line.inbox).await {
        let (ticket, segment, offset, mut buffer) = match request {
            IoRequest::Read {
                ticket,
                segment,
                offset,
                buffer,
            } => (ticket, segment, offset, buffer),
            IoRequest::Remove { segment } => {
                // Behind the reads of it that are under way: answers of a segment stay in order.
                let place = answers.borrow_mut().begin(segment);
                files.retain(|(open, _)| *open != segment);
                let result = Ok(());
                let reply = IoReply::Removed { segment, result };
                answers.borrow_mut().finish(segment, place, reply);
                continue;
            }
            _ => unreachable!("a read line carries reads, and word of files that go"),
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
            if files.len() == files_max {
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
        spawn_into(reads, task);
    }
    under_way.none_left().await;
    for (_, file) in files {
        if let Some(file) = Rc::into_inner(file) {
            let _ = file.close().await;
        }
    }
}

async fn open(directory: &Path, segment: SegmentNo) -> Result<BufferedFile, DiskError> {
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

    fn count(&self) -> usize {
        self.0.count.get()
    }

    /// A task that is counted, and rings the door when it ends.
    fn counting(
        &self,
        task: impl Future<Output = ()> + 'static,
        hall: &Hall,
    ) -> impl Future<Output = ()> + 'static {
        let (guard, door) = (self.enter(), hall.door.clone());
        async move {
            task.await;
            drop(guard);
            door.wake();
        }
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
        let wake = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
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
