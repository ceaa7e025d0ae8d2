//! The simulated disk against the kernel's file systems: one random script of what the product does with its files,
//! on both; then the power of the real one is cut, and what it kept must be among what the simulated one may.
//!
//! The real side is the product's own: `io` for what a running shard asks, `Directory` for what a start does. So that
//! a cut leaves more than what was synced, ranges are written back now and then, without a sync.
//! `HELIOS_CUTS` says how many cuts there are on each file system, `HELIOS_SEED` repeats their scripts.

#![expect(unsafe_code, reason = "no safe call writes a range back")]

mod device;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::id::SegmentNo;
use crate::io::{Backend, IoCore, IoOptions, ShardDisk, ShardFiles};
use crate::segment::files::{SegmentFiles, segment_file_name, segment_of_file_name};
use crate::segment::memory::{MemoryDisk, Random};
use crate::segment::{Directory, Disk, DiskError, IoReply, IoRequest, Sequence};
use device::{Kind, Machine};

/// Cuts on each file system where nothing else is asked for.
const CUTS: u64 = 260;
const SEGMENT_BYTES: u32 = 64 << 10;
/// Operations before a cut, at most.
const OPERATIONS: usize = 24;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A segment of the script.
#[derive(Clone, Copy)]
struct Live {
    segment: SegmentNo,
    /// Where records end.
    end: u32,
    sealed: bool,
}

/// Both disks, and the script so far.
struct Script {
    directory: PathBuf,
    core: IoCore,
    real: ShardDisk,
    model: MemoryDisk,
    live: Vec<Live>,
    made: u32,
    random: Random,
    said: Vec<String>,
}

impl Script {
    fn new(directory: &Path, seed: u64) -> Self {
        let options = IoOptions {
            backend: Backend::Threads,
            core: None,
            shards: vec![ShardFiles {
                directory: directory.to_owned(),
                wake: Arc::new(|| ()),
            }],
            lost: Arc::new(|| ()),
        };
        let (core, mut disks) = IoCore::start(options).unwrap();
        Self {
            directory: directory.to_owned(),
            core,
            real: disks.remove(0),
            model: MemoryDisk::new(),
            live: Vec::new(),
            made: 0,
            random: Random(seed),
            said: Vec::new(),
        }
    }

    /// Has both disks do something, and waits for it.
    fn ask(&mut self, request: impl Fn() -> IoRequest) {
        self.said.push(format!("{:?}", named(&request())));
        self.real.submit(request()).unwrap();
        let start = Instant::now();
        let reply = loop {
            if let Some(reply) = self.real.poll() {
                break reply;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no answer");
            std::thread::yield_now();
        };
        assert_eq!(result_of(&reply), Ok(()), "{:?}", self.said);
        self.model.submit(request()).unwrap();
        self.model.run_io();
        while self.model.poll().is_some() {}
    }

    fn pick(&mut self, wanted: impl Fn(&Live) -> bool) -> Option<usize> {
        let all = self.live.iter().enumerate();
        let of: Vec<usize> = all.filter(|(_, it)| wanted(it)).map(|(at, _)| at).collect();
        (!of.is_empty()).then(|| of[self.random.below(of.len())])
    }

    /// A request at random that a shard could make now.
    fn request(&mut self) -> Option<(usize, Box<dyn Fn() -> IoRequest>)> {
        let open = self.pick(|live| !live.sealed);
        match (self.random.below(8), open) {
            (0, _) | (_, None) if self.live.len() < 4 => {
                self.made += 1;
                let segment = SegmentNo(self.made);
                let (end, sealed) = (0, false);
                self.live.push(Live {
                    segment,
                    end,
                    sealed,
                });
                let bytes = SEGMENT_BYTES;
                let create = move || IoRequest::Create { segment, bytes };
                Some((self.live.len() - 1, Box::new(create)))
            }
            (1, Some(at)) if self.live[at].end > 0 => {
                let Live { segment, end, .. } = self.live[at];
                self.live[at].sealed = true;
                let bytes = 1 + self.random.below(3000);
                let footer: Vec<u8> = (0..bytes).map(|_| self.random.next() as u8 | 1).collect();
                let seal = move || IoRequest::Seal {
                    segment,
                    data_end: end,
                    footer: footer.clone(),
                    upto: Sequence(1),
                };
                Some((at, Box::new(seal)))
            }
            (2, _) => {
                let at = self.pick(|live| live.sealed)?;
                let segment = self.live[at].segment;
                Some((at, Box::new(move || IoRequest::Remove { segment })))
            }
            (_, Some(at)) => {
                let segment = self.live[at].segment;
                let upto = Sequence(1);
                Some((at, Box::new(move || IoRequest::Sync { segment, upto })))
            }
            _ => None,
        }
    }

    fn write(&mut self) {
        let Some(at) = self.pick(|live| !live.sealed) else {
            return;
        };
        let Live { segment, end, .. } = self.live[at];
        let length = 1 + self.random.below(5000) as u32;
        // As after a flush that failed: again over what is there.
        let offset = match self.random.below(5) {
            0 if end > 0 => self.random.below(end as usize) as u32,
            _ => end,
        };
        let length = length.min(SEGMENT_BYTES - offset);
        let bytes: Vec<u8> = (0..length).map(|_| self.random.next() as u8 | 1).collect();
        self.said.push(format!("write {segment} {offset} {length}"));
        Disk::write_at(&mut self.real, segment, offset, &bytes).unwrap();
        Disk::write_at(&mut self.model, segment, offset, &bytes).unwrap();
        self.live[at].end = end.max(offset + length);
    }

    /// Has a range on its way to the device, with no promise.
    fn write_back(&mut self) {
        let Some(at) = self.pick(|live| live.end > 0) else {
            return;
        };
        let Live { segment, end, .. } = self.live[at];
        let from = self.random.below(end as usize) as i64;
        let length = 1 + self.random.below(20_000) as i64;
        self.said.push(format!("back {segment} {from} {length}"));
        let file = File::open(self.directory.join(segment_file_name(segment))).unwrap();
        let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: a system call on an open descriptor, without memory.
        let done = unsafe { libc::sync_file_range(file.as_raw_fd(), from, length, flags) };
        assert_eq!(done, 0);
    }

    /// What a start does with a segment, as far as it is durable when it goes on.
    fn repair(&mut self) {
        let Some(at) = self.pick(|live| live.sealed) else {
            return;
        };
        let Live { segment, end, .. } = self.live[at];
        let mut files = Directory::new(&self.directory);
        let both: [&mut dyn SegmentFiles; 2] = [&mut files, &mut self.model];
        if self.random.below(2) == 0 {
            self.said.push(format!("aside {segment}"));
            for files in both {
                files.set_aside(segment).unwrap();
                files.sync_directory().unwrap();
            }
            self.live.remove(at);
        } else {
            let cut = self.random.below(end as usize + 1) as u64;
            let behind = cut + self.random.below(3000) as u64;
            self.said.push(format!("cut {segment} {cut}, {behind}"));
            for files in both {
                files.truncate(segment, cut).unwrap();
                files.sync(segment).unwrap();
                files.write_at(segment, behind, b"trailer").unwrap();
            }
            self.live[at].end = behind as u32 + 7;
        }
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0..8 => self.write(),
            8..10 => self.write_back(),
            10 => self.repair(),
            _ => {
                if let Some((at, request)) = self.request() {
                    let removes = matches!(request(), IoRequest::Remove { .. });
                    self.ask(request);
                    if removes {
                        self.live.remove(at);
                    }
                }
            }
        }
    }

    /// Cuts the power, perhaps while a request is under way, and compares; whether something was lost.
    fn cut(mut self, machine: &mut Machine) -> bool {
        let under_way = match self.random.below(2) {
            0 => self.request().map(|(_, request)| request),
            _ => None,
        };
        let mut answered = false;
        if let Some(request) = &under_way {
            self.said.push(format!("meanwhile {:?}", named(&request())));
            self.real.submit(request()).unwrap();
            let pause = self.random.below(400) as u64;
            std::thread::sleep(Duration::from_micros(pause));
            // A removal has two stations. What is answered after the cut counts for nothing: a file system that is
            // shut down may say that a sync is done which is not (ext4, of preallocated extents).
            if let Some(reply) = self.real.poll() {
                assert_eq!(result_of(&reply), Ok(()));
                answered = true;
            }
        }
        machine.cut();
        let Self {
            core,
            real,
            mut model,
            directory,
            said,
            ..
        } = self;
        core.shutdown();
        drop(real);
        machine.restart();
        let files = read(&directory);
        let outcome = match &under_way {
            // Who was told that it is done relies on it.
            Some(request) if answered => {
                model.submit(request()).unwrap();
                model.run_io();
                model.allows(&files)
            }
            Some(request) => model.allows_within(request, &files),
            None => model.allows(&files),
        };
        outcome.unwrap_or_else(|why| panic!("{why}, after {said:#?}"));
        !model.holds(&files)
    }
}

/// A request, without its bytes.
fn named(request: &IoRequest) -> (&'static str, SegmentNo) {
    match request {
        IoRequest::Create { segment, .. } => ("create", *segment),
        IoRequest::Sync { segment, .. } => ("sync", *segment),
        IoRequest::Read { segment, .. } => ("read", *segment),
        IoRequest::Seal { segment, .. } => ("seal", *segment),
        IoRequest::Remove { segment } => ("remove", *segment),
    }
}

fn result_of(reply: &IoReply) -> Result<(), DiskError> {
    match reply {
        IoReply::Created { result, .. }
        | IoReply::Synced { result, .. }
        | IoReply::Read { result, .. }
        | IoReply::Sealed { result, .. }
        | IoReply::Removed { result, .. } => result.clone(),
    }
}

/// Every segment that is there.
fn read(directory: &Path) -> Vec<(SegmentNo, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let segment = segment_of_file_name(path.file_name()?.to_str()?)?;
            Some((segment, std::fs::read(path).unwrap()))
        })
        .collect();
    files.sort();
    files
}

fn compare(kind: Kind) {
    let Some(mut machine) = Machine::new(kind) else {
        return;
    };
    let cuts = number("HELIOS_CUTS").unwrap_or(CUTS);
    let seed = number("HELIOS_SEED").unwrap_or(0x5eed);
    let mut lost = 0;
    for cut in 0..cuts {
        let directory = machine.path().join(format!("cut-{cut}"));
        let seed = seed.wrapping_add(cut);
        let mut script = Script::new(&directory, seed);
        script.said.push(format!("HELIOS_SEED={seed}"));
        for _ in 0..=script.random.below(OPERATIONS) {
            script.step();
        }
        lost += u64::from(script.cut(&mut machine));
        std::fs::remove_dir_all(directory).unwrap();
    }
    println!(
        "{kind:?}: {cuts} cuts, {lost} of which lost something, all as the simulated disk allows"
    );
    assert!(lost > cuts / 4, "{lost} of {cuts}");
}

#[test]
fn what_ext4_keeps_is_what_the_simulated_disk_may_keep() {
    compare(Kind::Ext4);
}

#[test]
fn what_xfs_keeps_is_what_the_simulated_disk_may_keep() {
    compare(Kind::Xfs);
}

/// The comparison finds a disk that promises more than it does.
#[test]
fn a_sync_that_was_none_is_found() {
    let Some(mut machine) = Machine::new(Kind::Ext4) else {
        return;
    };
    let mut script = Script::new(&machine.path().join("cut"), 7);
    let (segment, bytes) = (SegmentNo(1), SEGMENT_BYTES);
    script.ask(|| IoRequest::Create { segment, bytes });
    Disk::write_at(&mut script.real, segment, 100, &[7; 5000]).unwrap();
    Disk::write_at(&mut script.model, segment, 100, &[7; 5000]).unwrap();
    let upto = Sequence(1);
    script
        .model
        .submit(IoRequest::Sync { segment, upto })
        .unwrap();
    script.model.run_io();
    machine.cut();
    let Script {
        core,
        real,
        model,
        directory,
        ..
    } = script;
    core.shutdown();
    drop(real);
    machine.restart();
    let outcome = model.allows(&read(&directory));
    assert!(outcome.is_err(), "nobody noticed");
}
