//! The plain threads of the I/O core: those that sync, and, where io_uring is refused, those that read.
//!
//! Floor 3, part of `io`. One thread for the creates, syncs and seals of each shard, one for each
//! read line. Each parks when its lines are empty and is unparked by the shard that submits.
//!
//! Invariants
//! - a line is served by one thread, so its answers come in the order of its requests.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::file;
use super::line::{Bell, CoreEnd, READ_LINES, Signal, Stop, Watch};
use super::serial::{Blocking, Serial};
use super::{READ_FILES_MAX, ReadLines, files_each, pin_thread};
use crate::id::SegmentNo;
use crate::segment::{DiskError, IoReply, IoRequest};

/// Starts a thread for the creates, syncs and seals of each shard.
pub(super) fn start_serials(
    lines: Vec<(PathBuf, CoreEnd)>,
    signal: &Arc<Signal>,
    core: Option<usize>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    for (directory, line) in lines {
        let serial = Serial::new(Blocking, directory);
        let line = vec![(serial, line)];
        let bells = vec![Arc::clone(line[0].1.inbox.bell())];
        start(
            "helios-io-sync",
            line,
            bells,
            serve_serial,
            signal,
            core,
            &mut threads,
        )?;
    }
    Ok(threads)
}

/// Starts a thread for each read line, the same one for all shards.
pub(super) fn start_readers(
    shards: Vec<ReadLines>,
    signal: &Arc<Signal>,
    core: Option<usize>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut readers: Vec<Vec<Reader>> = Vec::new();
    let files_max = files_each(READ_FILES_MAX, shards.len() * READ_LINES);
    for (directory, reads) in shards {
        for (index, line) in reads.into_iter().enumerate() {
            if readers.len() == index {
                readers.push(Vec::new());
            }
            readers[index].push(Reader::new(directory.clone(), line, files_max));
        }
    }
    let mut threads = Vec::new();
    for readers in readers {
        let bell = |reader: &Reader| Arc::clone(reader.line.inbox.bell());
        let bells = readers.iter().map(bell).collect();
        start(
            "helios-io-read",
            readers,
            bells,
            Reader::serve,
            signal,
            core,
            &mut threads,
        )?;
    }
    Ok(threads)
}

/// Starts a thread that serves lines, and names it to their bells. Where it can't be had, those
/// started before end.
fn start<L: Send + 'static>(
    name: &str,
    lines: Vec<L>,
    bells: Vec<Arc<Bell>>,
    serve_one: impl FnMut(&mut L) -> bool + Send + 'static,
    signal: &Arc<Signal>,
    core: Option<usize>,
    threads: &mut Vec<JoinHandle<()>>,
) -> io::Result<()> {
    let of_thread = Arc::clone(signal);
    let body = move || {
        let watch = Watch(of_thread);
        serve(&watch.0, lines, serve_one);
    };
    let thread = spawn(name, core, body).inspect_err(|_| {
        signal.set(Stop::Now);
        threads.iter().for_each(|thread| thread.thread().unpark());
    })?;
    bells.iter().for_each(|bell| bell.serve_by(thread.thread()));
    threads.push(thread);
    Ok(())
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
    serial.serve(request, &mut line.inbox, &mut line.outbox);
    true
}

/// A shard's read line, and the files lately read through it.
struct Reader {
    directory: PathBuf,
    line: CoreEnd,
    files: VecDeque<(SegmentNo, File)>,
    files_max: usize,
}

impl Reader {
    fn new(directory: PathBuf, line: CoreEnd, files_max: usize) -> Self {
        Self {
            directory,
            line,
            files: VecDeque::new(),
            files_max,
        }
    }

    fn serve(&mut self) -> bool {
        let Some(request) = self.line.inbox.pop() else {
            return false;
        };
        let (ticket, segment, offset, mut buffer) = match request {
            IoRequest::Read {
                ticket,
                segment,
                offset,
                buffer,
            } => (ticket, segment, offset, buffer),
            IoRequest::Remove { segment } => {
                self.files.retain(|(open, _)| *open != segment);
                let result = Ok(());
                self.line
                    .outbox
                    .push(IoReply::Removed { segment, result }, None);
                self.line.outbox.wake();
                return true;
            }
            _ => unreachable!("a read line carries reads, and word of files that go"),
        };
        let result = opened(&self.directory, &mut self.files, self.files_max, segment)
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
    files_max: usize,
    segment: SegmentNo,
) -> Result<&'a File, DiskError> {
    let at = match files.iter().position(|(open, _)| *open == segment) {
        Some(at) => at,
        None => {
            let file = file::open_to_read(directory, segment)?;
            if files.len() == files_max {
                files.pop_front();
            }
            files.push_back((segment, file));
            files.len() - 1
        }
    };
    Ok(&files[at].1)
}
