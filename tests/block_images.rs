//! Each block that `helios serve` has written to a device, recorded; and the power cut anywhere in the recording: what
//! a device may then hold is built, mounted and recovered, and compared with the ledger of what was acknowledged.
//!
//! A device keeps what came before the last flush that was done, and of the rest anything, in any order and in parts.
//! One recording gives many images; the next begins with one of them, so that recoveries are recorded, too, and cut.
//!
//! Needs root, loop devices and `/dev/fuse`; skipped with a line elsewhere. `HELIOS_IMAGES` says how many images there are
//! of each file system (`scripts/block-images --images N`), `HELIOS_SEED` repeats the choices of a run: what threads and
//! the kernel do with them is the machine's, but an image that is not as it must be stays, and is named.

#[path = "power_cuts/device.rs"]
mod device;
#[path = "block_images/image.rs"]
mod image;
#[path = "crashes/ledger.rs"]
mod ledger;
#[path = "crashes/program.rs"]
mod program;
#[path = "block_images/recorder.rs"]
mod recorder;

mod common;

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use common::{KeptIfFailed, Random};
use device::{Kind, LoopDevice, Mounted};
use helios::Runtime;
use helios::client::{Attach, ClientError};
use helios::config::{Choice, Config, Io};
use image::{Event, Image, Tear};
use ledger::{Against, Place, Worker};
use program::{Program, attach};
use recorder::Recorder;
use rustix::fs::{Advice, fadvise, syncfs};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Images of each file system where nothing else is asked for.
const IMAGES: u64 = 500;
/// Images of one recording, at most.
const IMAGES_A_RECORDING: u64 = 50;
/// Recordings that go on from each other, before one begins with nothing.
const RECORDINGS_IN_A_ROW: u64 = 4;
/// How long a recording goes on under load, at least and at most.
const LOAD_MICROS: Range<u64> = 100_000..1_200_000;
/// Of how many operations one is to be power-safe: one of these, for a recording.
const POWER_ONE_IN: [u64; 3] = [12, 60, 200];
/// Of how many images one may be of no use to the file system itself, as its own superblock is torn.
const REFUSED_ONE_IN: u64 = 20;
/// Of how many images one is recovered twice.
const TWICE_ONE_IN: u64 = 8;

/// Images of a device that does not flush, and how many flushes it only says.
const PLANTED: usize = 16;
const IGNORED: usize = 6;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Where everything of a test is, in memory.
struct Bench {
    kind: Kind,
    dir: KeptIfFailed,
}

/// What became of an image.
enum Verdict {
    /// A state that the cut may leave.
    Good,
    /// The file system does not mount.
    Refused,
    /// The runtime does not start, or can't read.
    Fails(String),
    /// It reads something else.
    Differs(String),
}

/// What was written, and where from.
struct Recording {
    begin: Image,
    log: Vec<Event>,
    /// Events before the load: what the file system and the runtime did to start.
    started: usize,
}

impl Bench {
    /// `None`, with a line, where file systems on loop devices can't be recorded.
    fn new(kind: Kind) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: recording a device needs root");
            return None;
        }
        device::sweep();
        let bench = Self {
            kind,
            dir: KeptIfFailed(Some(device::image_dir())),
        };
        std::fs::create_dir(bench.mounted()).unwrap();
        let image = bench.made();
        let served = image.and_then(|image| Recorder::start(bench.dir.path(), image));
        let device = served.as_ref().map(|served| LoopDevice::on(served.path()));
        if device.flatten().is_none() {
            println!("skipped: {kind:?} on a recorded loop device can't be had here");
            return None;
        }
        Some(bench)
    }

    /// A new file system.
    fn made(&self) -> Option<Image> {
        let file = self.file();
        File::create(&file).ok()?.set_len(self.kind.bytes()).ok()?;
        self.kind.make(&file).then(|| Image::load(&file).ok())?
    }

    fn mounted(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// The image that is looked at.
    fn file(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Has a runtime that starts on `begin` write under load, and records that.
    fn record(
        &self,
        begin: Image,
        workers: &mut [Worker],
        one_in: u64,
        random: &mut Random,
    ) -> Recording {
        let recorder = Recorder::start(self.dir.path(), begin.clone()).expect("as before");
        let device = LoopDevice::on(recorder.path()).expect("as before");
        let mounted = Mounted::new(self.kind, device.path(), &self.mounted());
        let _mounted = mounted.expect("an image that was mounted before");
        let data = self.mounted().join("data");
        let io = ["threads", "auto"][random.below(2) as usize];
        let mut program = Program::start(self.dir.path(), &data, io, None);
        let session = program.session().expect("nothing kills it");
        for worker in workers.iter_mut() {
            let mut lane = attach(&session, worker.agent()).expect("it serves");
            if let Err(error) = worker.check(&mut lane) {
                panic!("{}: {error}\n{}", worker.agent(), program.log());
            }
        }
        workers.iter_mut().for_each(|it| it.ask_for_power(one_in));
        let started = recorder.clock() as usize;
        let mut writeback = common::spawn_role("whoever_writes_back", &data);
        let more = random.below(LOAD_MICROS.end - LOAD_MICROS.start);
        let pause = Duration::from_micros(LOAD_MICROS.start + more);
        let clock = || recorder.clock();
        let log = program::load(&session, workers, &clock, random.next(), || {
            std::thread::sleep(pause);
            let log = recorder.freeze();
            program.kill();
            log
        });
        end(&mut writeback);
        Recording {
            begin,
            log,
            started,
        }
    }

    /// Starts a runtime on an image, and compares what it reads with what a cut at `at` may leave.
    fn judge(&self, image: &Image, workers: &[Worker], at: u64, times: u64) -> Verdict {
        image.store(&self.file()).unwrap();
        let Some(_mounted) = Mounted::new(self.kind, &self.file(), &self.mounted()) else {
            return Verdict::Refused;
        };
        for _ in 0..times {
            let runtime = match Runtime::start(self.config()) {
                Ok(runtime) => runtime,
                Err(error) => return Verdict::Fails(error.to_string()),
            };
            match compare(&runtime, workers, at) {
                Ok(None) => {}
                Ok(Some(difference)) => return Verdict::Differs(difference),
                Err(error) => return Verdict::Fails(error.to_string()),
            }
        }
        Verdict::Good
    }

    /// As [`program::LINES`], in this process.
    fn config(&self) -> Config {
        Config {
            shards: Choice::Fixed(2),
            segment_bytes: 1 << 20,
            memory_max: 64 << 20,
            io: Io::Threads,
            socket: self.dir.path().join("s"),
            ..Config::at(self.mounted().join("data"))
        }
    }
}

/// The first difference between what is there and what a cut at `at` may leave.
fn compare(runtime: &Runtime, workers: &[Worker], at: u64) -> Result<Option<String>, ClientError> {
    let places = std::thread::scope(|scope| {
        let read = workers.iter().map(|worker| {
            scope.spawn(move || {
                let session = runtime.session();
                let mut lane = session.attach(worker.agent(), Attach::default())?;
                worker.place_at(&mut lane, at)
            })
        });
        let read: Vec<_> = read.collect();
        let places = read.into_iter().map(|it| it.join().expect("no panic"));
        places.collect::<Result<Vec<_>, ClientError>>()
    })?;
    let places: Vec<Place> = match places.into_iter().collect() {
        Ok(places) => places,
        Err(difference) => return Ok(Some(difference)),
    };
    let each = || workers.iter().zip(&places);
    let mut pairs = each().flat_map(|one| each().map(move |other| (one, other)));
    Ok(pairs.find_map(|((one, here), (other, there))| one.gap(here, other, there)))
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn workers(random: &mut Random) -> [Worker; 4] {
    let workers = [("one", 'a'), ("one", 'b'), ("two", 'a'), ("three", 'a')];
    workers.map(|(agent, prefix)| {
        Worker::new(agent, prefix, Against::Cut, random.next()).with_few_large_values()
    })
}

/// Where to cut, in order: mostly where something is told and not flushed, now and then in the start, and right behind
/// what was acknowledged.
fn cuts(recording: &Recording, workers: &[Worker], count: u64, random: &mut Random) -> Vec<usize> {
    let acknowledged = workers.iter().flat_map(Worker::acknowledgements);
    let acknowledged: Vec<usize> = acknowledged.map(|at| at as usize).collect();
    let events = recording.log.iter().enumerate();
    let written = events.filter_map(|(no, it)| matches!(it, Event::Write { .. }).then_some(no + 1));
    let written: Vec<usize> = written.collect();
    let mut any = |of: &[usize]| of[random.below(of.len() as u64) as usize];
    let start: Vec<usize> = (0..=recording.started).collect();
    let mut cuts: Vec<usize> = (0..count)
        .map(|no| match no % 8 {
            0 | 1 => any(&acknowledged),
            2 => any(&start),
            _ => any(&written),
        })
        .collect();
    cuts.sort_unstable();
    cuts
}

/// Behind the last flush before `end`, which may be none; or behind an earlier one, if so many of the last are none.
fn flushed(log: &[Event], end: usize, ignored: usize) -> usize {
    let events = log[..end].iter().enumerate().rev();
    let mut flushes = events.filter(|(_, it)| matches!(it, Event::Flush));
    flushes.nth(ignored).map_or(0, |(flush, _)| flush + 1)
}

/// What all recordings of a file system came to.
#[derive(Default)]
struct Tally {
    images: u64,
    events: usize,
    /// Images of cuts with something that was told and not flushed.
    between: u64,
    in_start: u64,
    refused: u64,
    acknowledged: u64,
}

/// Cuts a recording `count` times; one of the cuts, and what it left.
fn cut(
    bench: &Bench,
    recording: &Recording,
    workers: &[Worker],
    count: u64,
    random: &mut Random,
    tally: &mut Tally,
) -> Option<(usize, Image)> {
    let (mut durable, mut upto) = (recording.begin.clone(), 0);
    let (mut left, goes_on) = (None, random.below(count));
    for (no, cut) in (0..).zip(cuts(recording, workers, count, random)) {
        let from = flushed(&recording.log, cut, 0);
        durable.apply(&recording.log[upto..from]);
        upto = from;
        let mut image = durable.clone();
        let pending = &recording.log[from..cut];
        image.apply_some(pending, Tear::of(bench.kind), random);
        tally.images += 1;
        tally.between += u64::from(!pending.is_empty());
        tally.in_start += u64::from(cut <= recording.started);
        let times = 1 + u64::from(random.below(TWICE_ONE_IN) == 0);
        match bench.judge(&image, workers, cut as u64, times) {
            Verdict::Good if no == goes_on => left = Some((cut, image)),
            Verdict::Good => {}
            Verdict::Refused => tally.refused += 1,
            Verdict::Fails(why) | Verdict::Differs(why) => {
                image.store(&bench.file()).unwrap();
                let (events, images) = (recording.log.len(), tally.images);
                panic!("image {images}, cut at {cut} of {events}: {why}");
            }
        }
    }
    left
}

fn replay(kind: Kind) {
    let Some(bench) = Bench::new(kind) else {
        return;
    };
    let images = number("HELIOS_IMAGES").unwrap_or(IMAGES);
    let seed = number("HELIOS_SEED").unwrap_or(0xb10c);
    println!("HELIOS_SEED={seed}");
    let mut random = Random(seed | 1);
    let mut tally = Tally::default();
    let start = Instant::now();
    while tally.images < images {
        let mut workers = workers(&mut random);
        let mut begin = bench.made();
        for _ in 0..RECORDINGS_IN_A_ROW {
            let count = IMAGES_A_RECORDING.min(images - tally.images);
            let Some(image) = begin.take().filter(|_| count > 0) else {
                break;
            };
            let one_in = POWER_ONE_IN[random.below(3) as usize];
            let recording = bench.record(image, &mut workers, one_in, &mut random);
            tally.events += recording.log.len();
            let left = cut(&bench, &recording, &workers, count, &mut random, &mut tally);
            begin = left.map(|(cut, image)| {
                workers.iter_mut().for_each(|it| it.cut_at(cut as u64));
                image
            });
        }
        tally.acknowledged += workers.iter().map(|it| it.acknowledged).sum::<u64>();
    }
    println!(
        "{kind:?}: {images} images of {} writes and flushes in {:.0} s: {} cut between flushes, {} in a start; the file \
         system refused {}; {} operations acknowledged, every power-safe one there",
        tally.events,
        start.elapsed().as_secs_f64(),
        tally.between,
        tally.in_start,
        tally.refused,
        tally.acknowledged
    );
    let most = images / REFUSED_ONE_IN;
    assert!(tally.refused <= most, "refused: {}", tally.refused);
}

#[test]
fn what_was_acknowledged_as_power_safe_is_in_every_image_of_ext4() {
    replay(Kind::Ext4);
}

#[test]
fn what_was_acknowledged_as_power_safe_is_in_every_image_of_xfs() {
    replay(Kind::Xfs);
}

/// The comparison finds a device that says that it flushed, and did not: it would find a runtime that does not ask for it.
#[test]
fn flushes_that_were_none_are_found() {
    let Some(bench) = Bench::new(Kind::Ext4) else {
        return;
    };
    let mut random = Random(0xb10c);
    let mut workers = workers(&mut random);
    let begin = bench.made().expect("as before");
    let recording = bench.record(begin, &mut workers, POWER_ONE_IN[0], &mut random);
    let mut differ = 0;
    for _ in 0..PLANTED {
        let events = (recording.log.len() - recording.started) as u64;
        let cut = recording.log.len() - random.below(events / 2) as usize;
        let mut image = recording.begin.clone();
        image.apply(&recording.log[..flushed(&recording.log, cut, IGNORED)]);
        let verdict = bench.judge(&image, &workers, cut as u64, 1);
        differ += usize::from(matches!(verdict, Verdict::Differs(_)));
    }
    println!("{differ} of {PLANTED} images without the last {IGNORED} flushes are refused");
    assert!(differ > PLANTED / 2, "{differ} of {PLANTED}");
}

/// A process that has the kernel write back what nobody asked for yet, in no order: this one must not wait for the
/// device that it serves.
#[test]
fn whoever_writes_back() {
    let Some(data) = common::role() else {
        return;
    };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let mut random = Random(u64::from(std::process::id()) | 1);
    while data.exists() {
        let mut files = Vec::new();
        files_in(&data, &mut files);
        if files.is_empty() {
            continue;
        }
        let file = &files[random.below(files.len() as u64) as usize];
        // It may be gone.
        if let Ok(file) = File::open(file) {
            let length = file.metadata().map_or(0, |it| it.len());
            let from = random.below(length.max(1));
            // What is to be dropped from the page cache is written first, and nobody waits.
            let _ = match random.below(40) {
                0 => syncfs(&file),
                1..30 => fadvise(&file, from, NonZeroU64::new(1 << 15), Advice::DontNeed),
                _ => fadvise(&file, 0, None, Advice::DontNeed),
            };
        }
        std::thread::sleep(Duration::from_micros(random.below(1_000)));
    }
}

fn files_in(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => files_in(&path, files),
            false => files.push(path),
        }
    }
}
