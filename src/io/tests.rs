//! Tests of the I/O core: both backends through one helper.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use super::line::{Inbox, line};
use super::serial::{Device, Serial};
use super::*;
use crate::id::SegmentNo;
use crate::segment::{Disk, DiskError, IoReply, IoRequest, Location, Sequence};

/// Longer than any answer takes: only a lost one waits for it.
const LOST: Duration = Duration::from_secs(60);
const SEGMENT: SegmentNo = SegmentNo(1);

struct Rig {
    core: Option<IoCore>,
    disks: Vec<ShardDisk>,
    directory: tempfile::TempDir,
}

/// Runs a test on each backend that this machine has.
fn check(shards: usize, test: impl Fn(&mut Rig)) {
    for backend in [Backend::Threads, Backend::Glommio] {
        if backend == Backend::Glommio
            && let Err(refusal) = probe()
        {
            eprintln!("skipped on glommio: {refusal}");
            continue;
        }
        test(&mut Rig::start(backend, shards, None));
    }
}

impl Rig {
    fn start(backend: Backend, shards: usize, core: Option<usize>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start_in(backend, shards, core, directory)
    }

    fn start_in(
        backend: Backend,
        shards: usize,
        core: Option<usize>,
        directory: tempfile::TempDir,
    ) -> Self {
        let tester = std::thread::current();
        let shard = |number: usize| {
            let tester = tester.clone();
            ShardFiles {
                directory: directory.path().join(number.to_string()),
                wake: Arc::new(move || tester.unpark()),
            }
        };
        let options = IoOptions {
            backend,
            core,
            shards: (0..shards).map(shard).collect(),
            lost: Arc::new(|| ()),
        };
        let (core, disks) = IoCore::start(options).unwrap();
        assert_eq!(core.backend(), backend);
        Self {
            core: Some(core),
            disks,
            directory,
        }
    }

    /// Sleeps until an answer comes, by the wake alone.
    fn wait(&mut self, shard: usize) -> IoReply {
        let start = Instant::now();
        loop {
            if let Some(reply) = self.disks[shard].poll() {
                return reply;
            }
            std::thread::park_timeout(LOST);
            if start.elapsed() >= LOST {
                let backend = self.core.as_ref().map(IoCore::backend);
                let late = self.disks[shard].poll();
                panic!("{backend:?}: lost, or not woken for: {late:?}");
            }
        }
    }

    fn ask(&mut self, shard: usize, request: IoRequest) -> IoReply {
        self.disks[shard].submit(request).unwrap();
        self.wait(shard)
    }

    fn create(&mut self, shard: usize, segment: SegmentNo, bytes: u32) {
        let reply = self.ask(shard, IoRequest::Create { segment, bytes });
        let result = Ok(());
        assert_eq!(reply, IoReply::Created { segment, result });
    }

    fn sync(&mut self, shard: usize, segment: SegmentNo) {
        let upto = Sequence(7);
        let reply = self.ask(shard, IoRequest::Sync { segment, upto });
        let result = Ok(());
        let expected = IoReply::Synced {
            segment,
            upto,
            result,
        };
        assert_eq!(reply, expected);
    }

    /// Puts a synced segment out of the page cache.
    fn make_cold(&mut self, shard: usize, segment: SegmentNo) {
        let file = File::open(self.file(shard, segment)).unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }

    fn file(&self, shard: usize, segment: SegmentNo) -> PathBuf {
        file::path(&self.directory.path().join(shard.to_string()), segment)
    }
}

fn read(ticket: u64, segment: SegmentNo, offset: u32, bytes: usize) -> IoRequest {
    IoRequest::Read {
        ticket,
        segment,
        offset,
        buffer: vec![0; bytes],
    }
}

fn at(segment: SegmentNo, offset: u32, bytes: u32) -> Location {
    Location {
        segment,
        offset,
        bytes,
    }
}

fn random(state: &mut u64) -> u64 {
    // splitmix64
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn a_segment_from_its_creation_to_its_seal() {
    check(1, |rig| {
        rig.create(0, SEGMENT, 1 << 20);
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i / 7) as u8).collect();
        rig.disks[0].write_at(SEGMENT, 5, &bytes).unwrap();
        let resident = rig.disks[0].resident(at(SEGMENT, 5, 100_000));
        assert_eq!(resident, Some(&bytes[..]));
        rig.sync(0, SEGMENT);

        rig.make_cold(0, SEGMENT);
        let cold = at(SEGMENT, 5 + 40_000, 4096);
        assert_eq!(rig.disks[0].resident(cold), None);
        let reply = rig.ask(0, read(9, SEGMENT, cold.offset, 4096));
        let expected = IoReply::Read {
            ticket: 9,
            buffer: bytes[40_000..44_096].to_vec(),
            result: Ok(()),
        };
        assert_eq!(reply, expected);
        let resident = rig.disks[0].resident(cold);
        assert_eq!(resident, Some(&bytes[40_000..44_096]));

        let seal = IoRequest::Seal {
            segment: SEGMENT,
            data_end: 100_005,
            footer: vec![0xf0; 3000],
            upto: Sequence(3),
        };
        rig.disks[0].submit(seal).unwrap();
        // From now on the file may be cut at any time.
        let past = at(SEGMENT, 100_000, 6);
        assert_eq!(rig.disks[0].resident(past), None);
        let sealed = IoReply::Sealed {
            segment: SEGMENT,
            upto: Sequence(3),
            result: Ok(()),
        };
        assert_eq!(rig.wait(0), sealed);
        assert_eq!(rig.file(0, SEGMENT).metadata().unwrap().len(), 103_005);
        let footer = rig.disks[0].resident(at(SEGMENT, 100_005, 3000));
        assert_eq!(footer, Some(&[0xf0; 3000][..]));
        let past = at(SEGMENT, 103_000, 6);
        assert_eq!(rig.disks[0].resident(past), None);
        assert!(rig.disks[0].write_at(SEGMENT, 0, b"late").is_err());
    });
}

#[test]
fn what_was_written_is_found_by_the_next_run() {
    for (first, second) in [
        (Backend::Threads, Backend::Auto),
        (Backend::Auto, Backend::Threads),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let shard = ShardFiles {
            directory: directory.path().join("a/b"),
            wake: Arc::new(|| ()),
        };
        let options = |backend| IoOptions {
            backend,
            core: None,
            shards: vec![shard.clone()],
            lost: Arc::new(|| ()),
        };
        let (core, mut disks) = IoCore::start(options(first)).unwrap();
        let bytes = 1 << 16;
        let create = IoRequest::Create {
            segment: SegmentNo(12),
            bytes,
        };
        disks[0].submit(create).unwrap();
        core.shutdown();
        assert!(disks[0].poll().is_some());
        disks[0].write_at(SegmentNo(12), 100, b"state").unwrap();
        std::fs::write(shard.directory.join("13.seg"), b"not ours").unwrap();

        let (_core, mut disks) = IoCore::start(options(second)).unwrap();
        let disk = &mut disks[0];
        assert_eq!(disk.existing().unwrap(), [(SegmentNo(12), 1 << 16)]);
        let mut buffer = [0; 5];
        disk.read_now(SegmentNo(12), 100, &mut buffer).unwrap();
        assert_eq!(&buffer, b"state");
        let short = disk.open_existing(SegmentNo(12), bytes + 1);
        let end = u64::from(bytes) + 1;
        let segment = SegmentNo(12);
        assert_eq!(short, Err(DiskError::Short { segment, end }));
        disk.cut_now(segment, 4096).unwrap();
        disk.open_existing(segment, 4096).unwrap();
        assert_eq!(disk.resident(at(segment, 100, 5)), Some(&b"state"[..]));
        assert_eq!(disk.resident(at(segment, 4096, 1)), None);
        disk.write_at(segment, 102, b"r").unwrap();
        assert_eq!(disk.resident(at(segment, 100, 5)), Some(&b"strte"[..]));
        assert!(disk.cut_now(segment, 0).is_err());
    }
}

#[test]
fn what_is_not_there_is_a_typed_error_and_the_buffer_comes_back() {
    check(1, |rig| {
        rig.create(0, SEGMENT, 8192);
        let end = 8193;
        let reply = rig.ask(0, read(1, SEGMENT, 8000, 193));
        let IoReply::Read {
            ticket: 1,
            buffer,
            result,
        } = reply
        else {
            panic!("{reply:?}")
        };
        let segment = SEGMENT;
        assert_eq!(buffer.len(), 193);
        assert_eq!(result, Err(DiskError::Short { segment, end }));
        assert_eq!(rig.disks[0].resident(at(SEGMENT, 8000, 193)), None);
        assert_eq!(rig.disks[0].resident(at(SEGMENT, u32::MAX, 2)), None);
        let end = rig.disks[0].resident(at(SEGMENT, 8192, 0));
        assert_eq!(end, Some(&[][..]));

        let missing = SegmentNo(99);
        let not_found = |result: &Result<(), DiskError>| {
            let wanted = libc::ENOENT;
            matches!(result, Err(DiskError::Os { errno, .. }) if *errno == wanted)
        };
        let reply = rig.ask(0, read(2, missing, 0, 10));
        let ok = matches!(&reply, IoReply::Read { buffer, result, .. }
            if buffer.len() == 10 && not_found(result));
        assert!(ok, "{reply:?}");
        let upto = Sequence(1);
        let sync = IoRequest::Sync {
            segment: missing,
            upto,
        };
        let reply = rig.ask(0, sync);
        let ok = matches!(&reply, IoReply::Synced { result, .. } if not_found(result));
        assert!(ok, "{reply:?}");
        assert!(rig.disks[0].write_at(missing, 0, b"x").is_err());
        assert_eq!(rig.disks[0].resident(at(missing, 0, 1)), None);

        // A segment that is there is never made anew, nor removed by the attempt.
        rig.disks[0].write_at(SEGMENT, 0, b"kept").unwrap();
        let again = IoRequest::Create {
            segment: SEGMENT,
            bytes: 4096,
        };
        let reply = rig.ask(0, again);
        let ok = matches!(&reply, IoReply::Created { result: Err(DiskError::Os { errno, .. }), .. }
            if *errno == libc::EEXIST);
        assert!(ok, "{reply:?}");
        let kept = rig.disks[0].resident(at(SEGMENT, 0, 4));
        assert_eq!(kept, Some(&b"kept"[..]));
    });
}

/// Random requests on two shards at once against plain vectors: every request is answered once,
/// in order per kind and segment, and every byte is right.
#[test]
fn random_work_on_two_shards_against_a_model() {
    const BYTES: usize = 256 << 10;
    let seed = std::env::var("SEED").map_or(20_240_611, |seed| seed.parse().unwrap());
    eprintln!("SEED={seed}");
    check(2, |rig| {
        let mut state = seed;
        let segments = [SegmentNo(1), SegmentNo(2), SegmentNo(3)];
        let mut model = BTreeMap::new();
        for shard in 0..2 {
            for segment in segments {
                rig.create(shard, segment, BYTES as u32);
                model.insert((shard, segment), vec![0u8; BYTES]);
            }
        }
        // By shard, segment, and kind: the tickets or sequences that are to come back.
        let mut due: BTreeMap<(usize, SegmentNo, bool), VecDeque<u64>> = BTreeMap::new();
        let mut asked: BTreeMap<u64, (usize, SegmentNo, u32, Vec<u8>)> = BTreeMap::new();
        for step in 0..6000u64 {
            let shard = (random(&mut state) % 2) as usize;
            let segment = segments[(random(&mut state) % 3) as usize];
            let offset = random(&mut state) as usize % BYTES;
            let bytes = (random(&mut state) as usize % 9000).min(BYTES - offset);
            let truth = model.get_mut(&(shard, segment)).unwrap();
            let range = offset..offset + bytes;
            // No read may be under way where a write would change what it finds.
            let busy = asked.values().any(|(s, g, o, expected)| {
                let there = *o as usize..*o as usize + expected.len();
                (*s, *g) == (shard, segment) && there.start < range.end && range.start < there.end
            });
            match random(&mut state) % 10 {
                0..4 if !busy => {
                    truth[range.clone()].fill(step as u8);
                    let written = &truth[range];
                    let disk = &mut rig.disks[shard];
                    disk.write_at(segment, offset as u32, written).unwrap();
                }
                4..6 => {
                    let location = at(segment, offset as u32, bytes as u32);
                    if let Some(found) = rig.disks[shard].resident(location) {
                        assert!(found == &truth[range], "step {step}");
                    }
                }
                6 => {
                    let request = IoRequest::Sync {
                        segment,
                        upto: Sequence(step),
                    };
                    if rig.disks[shard].submit(request).is_ok() {
                        due.entry((shard, segment, true))
                            .or_default()
                            .push_back(step);
                    }
                }
                7 | 8 => {
                    let request = read(step, segment, offset as u32, bytes);
                    if rig.disks[shard].submit(request).is_ok() {
                        due.entry((shard, segment, false))
                            .or_default()
                            .push_back(step);
                        let expected = truth[range].to_vec();
                        asked.insert(step, (shard, segment, offset as u32, expected));
                    }
                }
                _ => {
                    for shard in 0..2 {
                        while let Some(reply) = rig.disks[shard].poll() {
                            settle(shard, reply, &mut due, &mut asked);
                        }
                    }
                    if step % 50 == 0 {
                        rig.make_cold(shard, segment);
                    }
                }
            }
        }
        for shard in 0..2 {
            while due
                .iter()
                .any(|((s, ..), due)| *s == shard && !due.is_empty())
            {
                let reply = rig.wait(shard);
                settle(shard, reply, &mut due, &mut asked);
            }
            assert_eq!(rig.disks[shard].poll(), None);
        }
        assert!(asked.is_empty());
    });
}

fn settle(
    shard: usize,
    reply: IoReply,
    due: &mut BTreeMap<(usize, SegmentNo, bool), VecDeque<u64>>,
    asked: &mut BTreeMap<u64, (usize, SegmentNo, u32, Vec<u8>)>,
) {
    let (segment, sync, number) = match reply {
        IoReply::Synced {
            segment,
            upto,
            result,
        } => {
            result.unwrap();
            (segment, true, upto.0)
        }
        IoReply::Read {
            ticket,
            buffer,
            result,
        } => {
            result.unwrap();
            let (of_shard, segment, _, expected) = asked.remove(&ticket).unwrap();
            assert_eq!(of_shard, shard);
            assert!(buffer == expected, "read {ticket}");
            (segment, false, ticket)
        }
        other => panic!("{other:?}"),
    };
    let next = due.get_mut(&(shard, segment, sync)).unwrap().pop_front();
    assert_eq!(next, Some(number));
}

#[test]
fn a_full_line_gives_the_request_back() {
    check(1, |rig| {
        rig.create(0, SEGMENT, 4096);
        let sync = |number| IoRequest::Sync {
            segment: SEGMENT,
            upto: Sequence(number),
        };
        // Answers that nobody took keep their slots, so this does not depend on the core's speed.
        for number in 0..SERIAL_SLOTS as u64 {
            rig.disks[0].submit(sync(number)).unwrap();
        }
        assert_eq!(rig.disks[0].submit(sync(5000)), Err(sync(5000)));
        let seal = || IoRequest::Seal {
            segment: SEGMENT,
            data_end: 10,
            footer: Vec::new(),
            upto: Sequence(0),
        };
        assert_eq!(rig.disks[0].submit(seal()), Err(seal()));
        assert!(rig.disks[0].resident(at(SEGMENT, 0, 0)).is_some());
        for ticket in 0..READ_SLOTS as u64 {
            rig.disks[0].submit(read(ticket, SEGMENT, 0, 64)).unwrap();
        }
        let back = rig.disks[0].submit(read(6000, SEGMENT, 0, 64));
        assert_eq!(back, Err(read(6000, SEGMENT, 0, 64)));
        for _ in 0..SERIAL_SLOTS + READ_SLOTS {
            rig.wait(0);
        }
        assert_eq!(rig.disks[0].poll(), None);
        rig.sync(0, SEGMENT);
    });
}

#[test]
fn five_thousand_syncs_in_a_row_and_none_lost() {
    check(1, |rig| {
        rig.create(0, SEGMENT, 1 << 20);
        let bare = Bare::new(rig.directory.path());
        let (mut took, mut bare_took) = (Vec::new(), Vec::new());
        for number in 0..5000u32 {
            let bytes = [number as u8; 64];
            rig.disks[0].write_at(SEGMENT, number * 64, &bytes).unwrap();
            let start = Instant::now();
            rig.sync(0, SEGMENT);
            took.push(start.elapsed());
            // Side by side, so that both meet the same load.
            if number % 5 == 0 {
                bare_took.push(bare.sync(number));
            }
        }
        took.sort_unstable();
        bare_took.sort_unstable();
        let backend = rig.core.as_ref().unwrap().backend();
        let ratio = took[2500].as_secs_f64() / bare_took[500].as_secs_f64();
        eprintln!(
            "{backend}: sync p50 {:?}, p99 {:?}; bare fdatasync p50 {:?}, p99 {:?}; {ratio:.2} x",
            took[2500], took[4950], bare_took[500], bare_took[990]
        );
    });
}

/// A preallocated file without an I/O core.
struct Bare(File);

impl Bare {
    fn new(directory: &Path) -> Self {
        let file = File::create_new(directory.join("bare")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20).unwrap();
        file.sync_all().unwrap();
        Self(file)
    }

    fn sync(&self, number: u32) -> Duration {
        file::write(&self.0, SEGMENT, number * 64, &[number as u8; 64]).unwrap();
        let start = Instant::now();
        self.0.sync_data().unwrap();
        start.elapsed()
    }
}

#[test]
fn shutdown_answers_all_that_was_accepted() {
    check(2, |rig| {
        for shard in 0..2 {
            rig.create(shard, SEGMENT, 1 << 20);
            rig.disks[shard].write_at(SEGMENT, 0, &[1; 4096]).unwrap();
        }
        rig.sync(0, SEGMENT);
        rig.make_cold(0, SEGMENT);
        for number in 0..100 {
            for disk in &mut rig.disks {
                let upto = Sequence(number);
                let segment = SEGMENT;
                disk.submit(IoRequest::Sync { segment, upto }).unwrap();
                disk.submit(read(number, SEGMENT, 0, 4096)).unwrap();
            }
        }
        let create = |segment| IoRequest::Create {
            segment: SegmentNo(segment),
            bytes: 4096,
        };
        rig.disks[0].submit(create(2)).unwrap();
        rig.core.take().unwrap().shutdown();
        let mut answers = [0, 0];
        for (shard, disk) in rig.disks.iter_mut().enumerate() {
            while let Some(reply) = disk.poll() {
                if let IoReply::Read { buffer, .. } = reply {
                    assert!(buffer == [1; 4096]);
                }
                answers[shard] += 1;
            }
            assert_eq!(disk.submit(create(3)), Err(create(3)));
        }
        assert_eq!(answers, [201, 200]);
        assert!(rig.disks[0].write_at(SegmentNo(2), 0, b"ready").is_ok());
    });
}

#[test]
fn a_drop_joins_and_refuses_what_comes_later() {
    check(1, |rig| {
        rig.create(0, SEGMENT, 1 << 20);
        let sync = |number| IoRequest::Sync {
            segment: SEGMENT,
            upto: Sequence(number),
        };
        for number in 0..200 {
            rig.disks[0].submit(sync(number)).unwrap();
        }
        rig.core = None;
        let answered = std::iter::from_fn(|| rig.disks[0].poll()).count();
        assert!(answered <= 200);
        assert_eq!(rig.disks[0].submit(sync(200)), Err(sync(200)));
        // Nobody answers any more: the threads are gone.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(rig.disks[0].poll(), None);
    });
}

#[test]
fn many_cores_start_and_end_without_leaving_descriptors() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    check(1, |rig| {
        let backend = rig.core.as_ref().unwrap().backend();
        let before = open();
        for _ in 0..20 {
            let mut rig = Rig::start(backend, 1, None);
            rig.create(0, SEGMENT, 4096);
            rig.sync(0, SEGMENT);
            rig.ask(0, read(1, SEGMENT, 0, 10));
            rig.core.take().unwrap().shutdown();
        }
        // Other tests of this process open some too, but not 3 for each of these 20.
        assert!(open() < before + 55, "{} from {before}", open());
    });
}

#[test]
fn blocking_jobs_run_elsewhere_and_their_panics_come_back() {
    check(1, |rig| {
        let core = rig.core.as_ref().unwrap();
        let here = std::thread::current().id();
        let there = core.run_blocking(|| std::thread::current().id()).unwrap();
        assert_ne!(here, there);
        let job = || -> u32 { std::panic::panic_any("on purpose") };
        let panic = catch_unwind(AssertUnwindSafe(|| core.run_blocking(job)));
        let panic = panic.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
        let sums: Vec<u64> = std::thread::scope(|scope| {
            let jobs: Vec<_> = (0..8u64)
                .map(|number| scope.spawn(move || core.run_blocking(move || number * 2).unwrap()))
                .collect();
            jobs.into_iter().map(|job| job.join().unwrap()).collect()
        });
        assert_eq!(sums, [0, 2, 4, 6, 8, 10, 12, 14]);
        assert!(core.is_running());
    });
}

#[test]
fn a_pinned_core_serves() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|&core| allowed.is_set(core));
    for backend in [Backend::Threads, Backend::Glommio] {
        if backend == Backend::Glommio && probe().is_err() {
            continue;
        }
        let mut rig = Rig::start(backend, 1, core);
        rig.create(0, SEGMENT, 4096);
        rig.sync(0, SEGMENT);
        let name = rig
            .core
            .as_ref()
            .unwrap()
            .run_blocking(|| rustix::thread::sched_getaffinity(None).unwrap().count())
            .unwrap();
        assert_eq!(name, 1);
    }
}

#[test]
fn segments_beyond_those_kept_open_are_read_all_the_same() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut rig = Rig::start(Backend::Threads, 1, None);
    let before = open();
    for segment in (1..=600).map(SegmentNo) {
        rig.create(0, segment, 4096);
        let bytes = segment.0.to_le_bytes();
        rig.disks[0].write_at(segment, 8, &bytes).unwrap();
        let seal = IoRequest::Seal {
            segment,
            data_end: 12,
            footer: vec![1; 4],
            upto: Sequence(1),
        };
        rig.ask(0, seal);
    }
    // Of 600 the last 256 are open; other tests of this process open a few.
    assert!(open() < before + 400, "{} from {before}", open());
    let mut found = 0;
    for segment in (1..=600).map(SegmentNo) {
        // The kernel may have let go of a page, or of a name; not of all.
        if let Some(bytes) = rig.disks[0].resident(at(segment, 8, 4)) {
            assert_eq!(bytes, segment.0.to_le_bytes());
            found += 1;
        }
    }
    assert!(found > 400, "{found} of 600 found in memory");
    assert!(open() < before + 400, "{} from {before}", open());
}

struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_told_apart_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(directory.path())
        .output();
    if !mounted.is_ok_and(|mount| mount.status.success()) {
        eprintln!("skipped: no right to mount a small tmpfs");
        return;
    }
    let _mount = Mount(directory.path());
    for backend in [Backend::Threads, Backend::Glommio] {
        if backend == Backend::Glommio && probe().is_err() {
            continue;
        }
        let inside = tempfile::tempdir_in(directory.path()).unwrap();
        let mut rig = Rig::start_in(backend, 1, None, inside);
        let create = IoRequest::Create {
            segment: SEGMENT,
            bytes: 4 << 20,
        };
        let reply = rig.ask(0, create);
        let full = IoReply::Created {
            segment: SEGMENT,
            result: Err(DiskError::NoSpace),
        };
        assert_eq!(reply, full);
        assert_eq!(rig.disks[0].existing().unwrap(), []);
        // What was preallocated stays writable; what was not is refused.
        rig.create(0, SEGMENT, 512 << 10);
        let disk = &mut rig.disks[0];
        disk.write_at(SEGMENT, 0, &[1; 512 << 10]).unwrap();
        let over = disk.write_at(SEGMENT, 0, &[2; 2 << 20]);
        assert_eq!(over, Err(DiskError::NoSpace));
    }
}

/// A device that syncs as it is told, and counts.
#[derive(Clone, Default)]
struct Scripted(Rc<RefCell<(u32, VecDeque<DiskError>)>>);

impl Device for Scripted {
    fn sync(&self, _: SegmentNo, _: &File) -> Result<(), DiskError> {
        let mut script = self.0.borrow_mut();
        script.0 += 1;
        script.1.pop_front().map_or(Ok(()), Err)
    }
}

fn serve_all(serial: &mut Serial<Scripted>, core: &mut CoreEnd) {
    let CoreEnd { inbox, outbox } = core;
    let pop = Inbox::pop;
    while let Some(request) = pop(inbox) {
        serial.serve(request, inbox, outbox);
    }
}

#[test]
fn queued_syncs_share_one_and_a_failed_one_is_final() {
    let directory = tempfile::tempdir().unwrap();
    for segment in [SegmentNo(1), SegmentNo(2)] {
        File::create(file::path(directory.path(), segment)).unwrap();
    }
    let device = Scripted::default();
    let mut serial = Serial::new(device.clone(), directory.path().to_owned());
    let (mut shard, mut core) = line(16, Arc::new(|| ()), &Arc::default());
    let sync = |segment, upto| IoRequest::Sync {
        segment: SegmentNo(segment),
        upto: Sequence(upto),
    };
    let outcomes = |shard: &mut ShardEnd| {
        let mut outcomes = Vec::new();
        while let Some(answer) = shard.poll() {
            outcomes.push(match answer.reply {
                IoReply::Synced { upto, result, .. } => (upto.0, result.is_ok()),
                IoReply::Sealed { upto, result, .. } => (upto.0, result.is_ok()),
                other => panic!("{other:?}"),
            });
        }
        outcomes
    };
    for (segment, upto) in [(1, 1), (1, 2), (1, 3), (2, 4), (1, 5), (1, 6)] {
        shard.submit(sync(segment, upto)).unwrap();
    }
    serve_all(&mut serial, &mut core);
    assert_eq!(device.0.borrow().0, 3);
    let all = (1..7).map(|upto| (upto, true)).collect::<Vec<_>>();
    assert_eq!(outcomes(&mut shard), all);

    let error = DiskError::Os {
        call: "fdatasync",
        segment: SEGMENT,
        errno: libc::EIO,
    };
    device.0.borrow_mut().1.push_back(error);
    shard.submit(sync(1, 7)).unwrap();
    shard.submit(sync(1, 8)).unwrap();
    serve_all(&mut serial, &mut core);
    shard.submit(sync(1, 9)).unwrap();
    let seal = IoRequest::Seal {
        segment: SEGMENT,
        data_end: 0,
        footer: vec![1],
        upto: Sequence(10),
    };
    shard.submit(seal).unwrap();
    shard.submit(sync(2, 11)).unwrap();
    serve_all(&mut serial, &mut core);
    let expected = [(7, false), (8, false), (9, false), (10, false), (11, true)];
    assert_eq!(outcomes(&mut shard), expected);
    // One that failed, one for the other segment: none was repeated.
    assert_eq!(device.0.borrow().0, 5);
    let footer = file::path(directory.path(), SEGMENT).metadata().unwrap();
    assert_eq!(footer.len(), 0);
}

/// Descriptors of this process for files of a directory that were deleted.
fn deleted_in(directory: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let deleted = targets.filter(|target| {
        let target = target.to_string_lossy();
        target.starts_with(&*directory.to_string_lossy()) && target.ends_with("(deleted)")
    });
    deleted.count()
}

/// Reads that were asked for before get their bytes; then the file is gone, and its room with it.
#[test]
fn a_file_is_removed_behind_the_reads_that_are_under_way() {
    check(1, |rig| {
        const READS: u64 = 24;
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n / 9) as u8).collect();
        rig.create(0, SEGMENT, 256 << 10);
        rig.disks[0].write_at(SEGMENT, 0, &bytes).unwrap();
        rig.sync(0, SEGMENT);
        rig.make_cold(0, SEGMENT);
        for ticket in 0..READS {
            let request = read(ticket, SEGMENT, ticket as u32 * 1000, 100_000);
            rig.disks[0].submit(request).unwrap();
        }
        let remove = || IoRequest::Remove { segment: SEGMENT };
        rig.disks[0].submit(remove()).unwrap();
        assert_eq!(rig.disks[0].resident(at(SEGMENT, 0, 10)), None);
        assert!(rig.disks[0].write_at(SEGMENT, 0, b"late").is_err());
        for wanted in 0..READS {
            let IoReply::Read {
                ticket,
                buffer,
                result,
            } = rig.wait(0)
            else {
                panic!("removed before read {wanted} was answered");
            };
            assert_eq!((ticket, result), (wanted, Ok(())));
            assert!(buffer == bytes[wanted as usize * 1000..][..100_000]);
        }
        let (segment, result) = (SEGMENT, Ok(()));
        assert_eq!(rig.wait(0), IoReply::Removed { segment, result });
        assert!(!rig.file(0, SEGMENT).exists());
        let start = Instant::now();
        while deleted_in(rig.directory.path()) > 0 {
            assert!(start.elapsed() < LOST, "a descriptor keeps the room");
            std::thread::sleep(Duration::from_millis(1));
        }
        // What comes too late is told so.
        for request in [remove(), read(99, SEGMENT, 0, 10)] {
            let reply = rig.ask(0, request);
            let (IoReply::Removed { result, .. } | IoReply::Read { result, .. }) = reply else {
                panic!("{reply:?}");
            };
            assert!(matches!(result, Err(DiskError::Os { errno, .. }) if errno == libc::ENOENT));
        }
        rig.create(0, SegmentNo(2), 4096);
    });
}

/// The same through a log, and read back from its directory.
#[test]
fn a_log_on_files_gives_dropped_segments_back() {
    use crate::id::{AgentNo, BranchNo, ShardNo};
    use crate::segment::{
        Directory, Head, Log, LogConfig, LogEvent, LogId, LogStart, ObjectKind, Record, recover,
    };
    check(1, |rig| {
        let config = LogConfig {
            shard: ShardNo(0),
            log_id: LogId(5),
            segment_bytes: 128 << 10,
            buffer_bytes: 128 << 10,
        };
        let mut log = Log::new(config, LogStart::empty());
        let until = |rig: &mut Rig, log: &mut Log, wanted: &dyn Fn(&Log, &LogEvent) -> bool| {
            loop {
                log.drive(&mut rig.disks[0]);
                let reply = rig.wait(0);
                let event = log.on_reply(reply);
                if wanted(log, &event) {
                    break;
                }
            }
        };
        let value = vec![7; 40_000];
        let put = Head::Put {
            agent: AgentNo(0),
            branch: BranchNo(0),
            key: b"key",
            kind: ObjectKind::Blob,
            id: ObjectKind::Blob.id_of(&value),
            value_bytes: 40_000,
        };
        let record = Record {
            head: put,
            payload: Some(&value),
        };
        for _ in 0..9 {
            while log.ready(record.record_bytes()).is_err() {
                log.flush(&mut rig.disks[0]).unwrap();
                until(rig, &mut log, &|log, _| {
                    log.ready(record.record_bytes()).is_ok()
                });
            }
            log.append(&record).unwrap();
            log.flush(&mut rig.disks[0]).unwrap();
        }
        log.end_segment(&mut rig.disks[0]);
        until(rig, &mut log, &|log, _| {
            log.is_sealed() && log.ready(100).is_ok()
        });
        let first = log.next_segment();
        log.append(&put.into()).unwrap();
        log.flush(&mut rig.disks[0]).unwrap();
        log.sync_wanted(log.last());
        until(rig, &mut log, &|log, _| log.synced() == log.last());
        log.settle(&mut rig.disks[0], first);
        until(rig, &mut log, &|log, _| {
            log.is_sealed() && log.ready(100).is_ok()
        });
        let dropped = log.drop_segment(SegmentNo(2)).unwrap().sequence;
        log.flush(&mut rig.disks[0]).unwrap();
        log.sync_wanted(dropped);
        until(rig, &mut log, &|log, _| log.synced() >= dropped);
        assert!(rig.file(0, SegmentNo(2)).exists());
        log.remove(&mut rig.disks[0], SegmentNo(2));
        until(rig, &mut log, &|_, event| {
            matches!(event, LogEvent::Removed { result: Ok(()), .. })
        });
        assert!(!rig.file(0, SegmentNo(2)).exists());
        let mut files = Directory::new(rig.directory.path().join("0"));
        let mut records = 0;
        let recovered = recover(&mut files, ShardNo(0), &mut |_| records += 1).unwrap();
        assert_eq!((recovered.start.settled, records), (first, 6 + 1 + 1));
        let numbers = recovered.start.segments.iter().map(|state| state.segment.0);
        assert_eq!(numbers.collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert_eq!(recovered.start.segments[2].segment, first);
    });
}
