//! The I/O core as plain threads, for where io_uring is refused.
//!
//! Floor 3, part of `io`. One thread for the creates, syncs and seals of all shards, one for each
//! read line. Each parks when its lines are empty and is unparked by the shard that submits.
//!
//! Invariants
//! - a line is served by one thread, so its answers come in the order of its requests.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use super::file;
use super::line::{CoreEnd, Signal, Stop, Watch};
use super::serial::{Device, Serial};
use super::{CoreLines, READ_FILES_MAX, pin_thread};
use crate::id::SegmentNo;
use crate::segment::{DiskError, IoReply, IoRequest};

/// Starts the threads and names them to the bells of their lines.
pub(super) fn start(
    shards: Vec<CoreLines>,
    signal: &Arc<Signal>,
    core: Option<usize>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut serials = Vec::new();
    let mut readers: Vec<Vec<Reader>> = Vec::new();
    for shard in shards {
        let CoreLines {
            directory,
            serial,
            reads,
        } = shard;
        for (index, line) in reads.into_iter().enumerate() {
            if readers.len() == index {
                readers.push(Vec::new());
            }
            readers[index].push(Reader::new(directory.clone(), line));
        }
        serials.push((Serial::new(Blocking, directory), serial));
    }

    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let bells: Vec<_> = serials
        .iter()
        .map(|(_, line)| Arc::clone(line.inbox.bell()))
        .collect();
    let of_thread = Arc::clone(signal);
    let body = move || {
        let watch = Watch(of_thread);
        serve(&watch.0, serials, serve_serial);
    };
    threads.push(spawn("helios-io-sync", core, body)?);
    bells
        .iter()
        .for_each(|bell| bell.serve_by(threads[0].thread()));
    for readers in readers {
        let bells: Vec<_> = readers
            .iter()
            .map(|reader| Arc::clone(reader.line.inbox.bell()))
            .collect();
        let of_thread = Arc::clone(signal);
        let body = move || {
            let watch = Watch(of_thread);
            serve(&watch.0, readers, Reader::serve);
        };
        let thread = spawn("helios-io-read", core, body).inspect_err(|_| {
            signal.set(Stop::Now);
            threads.iter().for_each(|thread| thread.thread().unpark());
        })?;
        bells.iter().for_each(|bell| bell.serve_by(thread.thread()));
        threads.push(thread);
    }
    Ok(threads)
}

/// Starts a thread of the core.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    core: Option<usize>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            pin_thread(core);
            body()
        })
}

/// Serves lines in turn, one request of each, until told to stop.
fn serve<L>(signal: &Signal, mut lines: Vec<L>, mut serve_one: impl FnMut(&mut L) -> bool) {
    loop {
        // Read before the lines: once a stop is seen, whatever was accepted is in the rings.
        let stop = signal.stop();
        let mut served = false;
        for line in &mut lines {
            if signal.stop() == Stop::Now {
                return;
            }
            served |= serve_one(line);
        }
        match (served, stop) {
            (true, _) => {}
            (false, Stop::No) => std::thread::park(),
            (false, _) => return,
        }
    }
}

fn serve_serial((serial, line): &mut (Serial<Blocking>, CoreEnd)) -> bool {
    let Some(request) = line.inbox.pop() else {
        return false;
    };
    now(serial.serve(request, &mut line.inbox, &mut line.outbox));
    true
}

/// The value of a future that never suspends.
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a blocking device does not suspend"),
    }
}

struct Blocking;

impl Device for Blocking {
    type Synced = Arc<File>;

    fn adopt(&self, _: SegmentNo, file: &Arc<File>) -> Result<Arc<File>, DiskError> {
        Ok(Arc::clone(file))
    }

    async fn sync(&self, segment: SegmentNo, file: &Arc<File>) -> Result<(), DiskError> {
        file::sync(file, segment)
    }

    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        job()
    }

    async fn close(&self, _: Arc<File>) {}
}

/// A shard's read line, and the files lately read through it.
struct Reader {
    directory: PathBuf,
    line: CoreEnd,
    files: VecDeque<(SegmentNo, File)>,
}

impl Reader {
    fn new(directory: PathBuf, line: CoreEnd) -> Self {
        Self {
            directory,
            line,
            files: VecDeque::new(),
        }
    }

    fn serve(&mut self) -> bool {
        let Some(request) = self.line.inbox.pop() else {
            return false;
        };
        let IoRequest::Read {
            ticket,
            segment,
            offset,
            mut buffer,
        } = request
        else {
            unreachable!("a read line carries reads only")
        };
        let result = opened(&self.directory, &mut self.files, segment)
            .and_then(|file| file::read(file, segment, offset, &mut buffer));
        let reply = IoReply::Read {
            ticket,
            buffer,
            result,
        };
        self.line.outbox.push(reply, None);
        self.line.outbox.wake();
        true
    }
}

/// The file of a segment, opened if need be; the one opened first is closed where there are many.
fn opened<'a>(
    directory: &Path,
    files: &'a mut VecDeque<(SegmentNo, File)>,
    segment: SegmentNo,
) -> Result<&'a File, DiskError> {
    let at = match files.iter().position(|(open, _)| *open == segment) {
        Some(at) => at,
        None => {
            let file = file::open(directory, segment)?;
            if files.len() == READ_FILES_MAX {
                files.pop_front();
            }
            files.push_back((segment, file));
            files.len() - 1
        }
    };
    Ok(&files[at].1)
}
