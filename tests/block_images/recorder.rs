//! A file that remembers each write and each flush in the order in which they came, for a loop device.
//!
//! The file is the root of a file system in user space (`/dev/fuse`), one file mounted over another, served by a
//! thread here: one request at a time, so that a flush covers exactly what is before it in the log. Nothing is
//! cached above it (`FOPEN_DIRECT_IO`): what the block layer sends is what comes. Whoever has something open on a
//! file system on top of it must be another process: a process that waits for its own thread can't be killed.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::device::Mounted;
use super::image::{Event, Image};
use super::ledger::CUT;

// Of `linux/fuse.h`, as of minor 31: the calls that a single open file gets.
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// Those that want no answer: forget, interrupt, forget several.
const UNANSWERED: [u32; 3] = [2, 36, 42];

const MAJOR: u32 = 7;
const MINOR: u32 = 31;
const FOPEN_DIRECT_IO: u32 = 1;
const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: usize = 16;
/// Handle, offset and size stand before the bytes of a write.
const WRITE_HEADER_BYTES: usize = 40;
/// What one write may have.
const WRITE_BYTES_MAX: u32 = 128 << 10;
const BLOCK_BYTES: u32 = 512;
const MODE: u32 = 0o100_600;
/// How long the kernel may believe what it was told about the file, in seconds.
const VALID_SECONDS: u64 = 3600;

/// What was told since the recording began.
struct Told {
    image: Image,
    log: Vec<Event>,
    frozen: bool,
}

/// The file. See the module's header.
pub struct Recorder {
    // In the order in which they go.
    mounted: Option<Mounted>,
    thread: Option<JoinHandle<()>>,
    told: Arc<Mutex<Told>>,
    path: PathBuf,
}

impl Recorder {
    /// Serves a file of these bytes in a directory. `None` where that can't be done here.
    pub fn start(directory: &Path, image: Image) -> Option<Self> {
        let path = directory.join("blocks");
        File::create(&path).ok()?;
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.ok()?;
        let mounted = Mounted::fuse(device.try_clone().ok()?.into(), &path)?;
        let told = Arc::new(Mutex::new(Told {
            image,
            log: Vec::new(),
            frozen: false,
        }));
        let server = Server {
            device,
            told: Arc::clone(&told),
        };
        Some(Self {
            mounted: Some(mounted),
            thread: Some(std::thread::spawn(move || server.run())),
            told,
            path,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Events so far; [`CUT`] once it is frozen.
    pub fn clock(&self) -> u64 {
        let told = lock(&self.told);
        match told.frozen {
            true => CUT,
            false => told.log.len() as u64,
        }
    }

    /// Ends the recording, and says what it has; the file goes on to be one.
    pub fn freeze(&self) -> Vec<Event> {
        let mut told = lock(&self.told);
        told.frozen = true;
        mem::take(&mut told.log)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        drop(self.mounted.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who answers the kernel.
struct Server {
    device: File,
    told: Arc<Mutex<Told>>,
}

impl Server {
    /// Until it is unmounted.
    fn run(mut self) {
        let mut request = vec![0; WRITE_BYTES_MAX as usize + (64 << 10)];
        let mut answer = Vec::new();
        loop {
            let bytes = match self.device.read(&mut request) {
                Ok(bytes) if bytes >= IN_HEADER_BYTES => bytes,
                // A request that was taken back.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::NotFound) =>
                {
                    continue;
                }
                _ => return,
            };
            let (header, body) = request[..bytes].split_at(IN_HEADER_BYTES);
            let call = u32_at(header, 4);
            if UNANSWERED.contains(&call) {
                continue;
            }
            answer.clear();
            answer.resize(OUT_HEADER_BYTES, 0);
            let error = match self.answer(call, body, &mut answer) {
                true => 0,
                false => -libc::ENOSYS,
            };
            let count = answer.len() as u32;
            answer[..4].copy_from_slice(&count.to_ne_bytes());
            answer[4..8].copy_from_slice(&error.to_ne_bytes());
            answer[8..16].copy_from_slice(&header[8..16]);
            // Whoever asked may be gone.
            let _ = self.device.write(&answer);
        }
    }

    /// Does a call; whether it is one that the file knows.
    fn answer(&self, call: u32, body: &[u8], answer: &mut Vec<u8>) -> bool {
        match call {
            INIT => init(answer),
            GETATTR | SETATTR => attributes(answer, lock(&self.told).image.bytes() as u64),
            OPEN => {
                put(answer, &[0, 0, FOPEN_DIRECT_IO, 0]);
            }
            READ => {
                let (at, count) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
                let told = lock(&self.told);
                let end = told.image.bytes();
                let count = count.min(end.saturating_sub(at));
                told.image.read(at, count, answer);
            }
            WRITE => {
                let (at, count) = (u64_at(body, 8) as usize, u32_at(body, 16));
                let bytes = &body[WRITE_HEADER_BYTES..WRITE_HEADER_BYTES + count as usize];
                let mut told = lock(&self.told);
                told.image.write(at, bytes);
                if !told.frozen {
                    let bytes = bytes.into();
                    told.log.push(Event::Write { at, bytes });
                }
                put(answer, &[count, 0]);
            }
            FSYNC => {
                let mut told = lock(&self.told);
                if !told.frozen {
                    told.log.push(Event::Flush);
                }
            }
            FLUSH | RELEASE => {}
            _ => return false,
        }
        true
    }
}

fn init(answer: &mut Vec<u8>) {
    // Versions, read-ahead, flags; requests in the background, and bytes of a write; then what is optional.
    put(answer, &[MAJOR, MINOR, 0, 0]);
    put(answer, &[0, WRITE_BYTES_MAX, 1]);
    put(answer, &[0; 9]);
}

fn attributes(answer: &mut Vec<u8>, bytes: u64) {
    put_long(answer, &[VALID_SECONDS]);
    put(answer, &[0, 0]);
    // Number, size, blocks, and three times.
    put_long(answer, &[1, bytes, bytes / u64::from(BLOCK_BYTES), 0, 0, 0]);
    // Parts of the times; mode, links, owner, device, block size, flags.
    put(answer, &[0, 0, 0, MODE, 1, 0, 0, 0, BLOCK_BYTES, 0]);
}

fn put(answer: &mut Vec<u8>, words: &[u32]) {
    answer.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

fn put_long(answer: &mut Vec<u8>, words: &[u64]) {
    answer.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
