//! Collections of a whole runtime: room on the disk comes back, and nobody notices.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Random, attach, value_of};
use helios::Runtime;
use helios::client::{ClientError, Lane, NewCheckpoint, Revision, Session};
use helios::config::{Choice, Config, Io};
use helios::id::{ObjectId, Retention};
use helios::shard::collect::CollectEnd;

mod common;

fn config(dir: &Path, io: Io) -> Config {
    Config {
        shards: Choice::Fixed(1),
        segment_bytes: 1 << 20,
        memory_max: 96 << 20,
        io,
        ..Config::at(dir)
    }
}

/// Blocks that the files below a directory take.
fn bytes_on_disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let of_entry = |entry: std::fs::DirEntry| {
        let meta = entry.metadata().unwrap();
        match meta.is_dir() {
            true => bytes_on_disk(&entry.path()),
            false => meta.blocks() * 512,
        }
    };
    entries.map(of_entry).sum()
}

fn key(no: u64) -> Vec<u8> {
    format!("key/{no:03}").into_bytes()
}

const KEYS: u64 = 100;

/// Overwrites all keys and makes a checkpoint, so many times; the last state, and its id.
fn overwrite(
    lane: &mut Lane,
    random: &mut Random,
    times: u64,
) -> (BTreeMap<Vec<u8>, Vec<u8>>, ObjectId) {
    let mut state = BTreeMap::new();
    let mut last = None;
    for _ in 0..times {
        for no in 0..KEYS {
            let bytes = [40, 900, 9_000, 40_000][random.below(4) as usize];
            let value = random.bytes(bytes);
            lane.put(&key(no), &value).unwrap();
            state.insert(key(no), value);
        }
        last = Some(lane.checkpoint(&NewCheckpoint::default()).unwrap().id);
    }
    (state, last.unwrap())
}

fn check(lane: &mut Lane, state: &BTreeMap<Vec<u8>, Vec<u8>>) {
    for (key, value) in state {
        assert!(
            value_of(lane, key).unwrap().as_ref() == Some(value),
            "{key:?}"
        );
    }
}

#[test]
fn pruning_and_deleting_give_room_back_on_the_disk() {
    for io in [Io::Threads, Io::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(41);
        let runtime = Runtime::start(config(dir.path(), io)).unwrap();
        let mut lane = attach(runtime.session(), "planner");
        let (first, first_id) = overwrite(&mut lane, &mut random, 1);
        lane.tag("first", Revision::Checkpoint(*first_id.as_bytes()), false)
            .unwrap();
        let (state, _) = overwrite(&mut lane, &mut random, 9);
        let full = bytes_on_disk(dir.path());

        // All of it is needed: nothing goes.
        let collected = runtime.collect();
        assert_eq!((collected.end, collected.segments), (CollectEnd::Done, 0));

        lane.retain("main", Retention::Last(1)).unwrap();
        let collected = runtime.collect();
        assert_eq!(collected.end, CollectEnd::Done);
        let pruned = bytes_on_disk(dir.path());
        println!("{full} bytes on disk, {pruned} after pruning: {collected:?}");
        assert!(pruned * 2 < full, "{full} -> {pruned}");
        assert!(collected.bytes > full / 2, "{collected:?}");
        let counted = runtime.stats().collected_bytes;
        assert_eq!(counted, collected.bytes);
        check(&mut lane, &state);
        let fork = lane.fork(Revision::Tag("first")).unwrap().no;
        check(&mut lane.on(fork), &first);
        drop(lane);
        runtime.shutdown().unwrap();

        // Also what a start finds, and what a kill leaves.
        for round in 0..2 {
            let runtime = Runtime::start(config(dir.path(), io)).unwrap();
            let mut lane = attach(runtime.session(), "planner");
            check(&mut lane, &state);
            let fork = lane.fork(Revision::Tag("first")).unwrap().no;
            check(&mut lane.on(fork), &first);
            if round == 1 {
                lane.discard(fork).unwrap();
                lane.untag("first").unwrap();
                for no in 0..KEYS {
                    lane.delete(&key(no)).unwrap();
                }
                lane.checkpoint(&NewCheckpoint::default()).unwrap();
                runtime.collect();
                let empty = bytes_on_disk(dir.path());
                println!("{empty} bytes on disk of nothing");
                // The log is preallocated by one segment and the next.
                assert!(empty <= 3 << 20, "{empty}");
            }
        }
    }
}

/// What a worker's branch holds, and a checkpoint of it that a tag names.
struct Worker {
    lane: Lane,
    name: String,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    tagged: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Worker {
    fn new(session: &Session, no: u64) -> Self {
        let mut lane = attach(session, "crowd");
        let name = format!("worker-{no}");
        lane.branch(&name, Revision::Empty).unwrap();
        lane.switch(&name).unwrap();
        lane.retain(&name, Retention::Last(2)).unwrap();
        Self {
            lane,
            name,
            state: BTreeMap::new(),
            tagged: BTreeMap::new(),
        }
    }

    /// Some writes and a checkpoint; now and then a fork that goes, a step back, another tag.
    fn round(&mut self, random: &mut Random) {
        let Self {
            lane,
            name,
            state,
            tagged,
        } = self;
        for _ in 0..20 {
            let key = key(random.below(60));
            if random.below(5) == 0 {
                lane.delete(&key).unwrap();
                state.remove(&key);
            } else {
                let bytes = [30, 700, 6_000, 30_000][random.below(4) as usize];
                let value = random.bytes(bytes);
                lane.put(&key, &value).unwrap();
                state.insert(key, value);
            }
        }
        lane.checkpoint(&NewCheckpoint::default()).unwrap();
        match random.below(4) {
            0 => {
                lane.tag(name, Revision::Head, true).unwrap();
                tagged.clone_from(state);
            }
            1 if !tagged.is_empty() => {
                lane.restore(Revision::Tag(name), true).unwrap();
                state.clone_from(tagged);
            }
            2 => {
                let fork = lane.fork(Revision::Head).unwrap().no;
                let value = random.bytes(20_000);
                lane.on(fork).put(b"forked", &value).unwrap();
                lane.on(fork).checkpoint(&NewCheckpoint::default()).unwrap();
                lane.discard(fork).unwrap();
            }
            _ => {}
        }
        for _ in 0..5 {
            let key = key(random.below(60));
            assert!(value_of(lane, &key).unwrap() == state.get(&key).cloned());
        }
    }

    fn check(&mut self) {
        check(&mut self.lane, &self.state);
        assert_eq!(
            self.lane.scan(b"", b"", 0).unwrap().keys.len(),
            self.state.len()
        );
        if !self.tagged.is_empty() {
            let fork = self.lane.fork(Revision::Tag(&self.name)).unwrap().no;
            check(&mut self.lane.on(fork), &self.tagged);
            self.lane.discard(fork).unwrap();
        }
        let log = self.lane.log(Revision::Head, 0).unwrap().entries;
        assert!(!log.is_empty(), "the head stays");
    }
}

#[test]
fn agents_go_on_while_collections_follow_one_another() {
    let rounds = 60;
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), Io::Threads)).unwrap();
    let stop = AtomicBool::new(false);
    let (collections, removed) = thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let (mut collections, mut removed) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let collected = runtime.collect();
                assert_eq!(collected.end, CollectEnd::Done);
                collections += 1;
                removed += collected.segments;
            }
            (collections, removed)
        });
        let workers: Vec<_> = (0..3)
            .map(|no| {
                let runtime = &runtime;
                scope.spawn(move || {
                    let mut worker = Worker::new(runtime.session(), no);
                    let mut random = Random(no + 7);
                    for _ in 0..rounds {
                        worker.round(&mut random);
                    }
                    worker.check();
                })
            })
            .collect();
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let counted = collector.join().unwrap();
        done.into_iter().for_each(|done| done.unwrap());
        counted
    });
    println!("{collections} collections removed {removed} segments");
    assert!(collections > 3 && removed > 3);
    drop(runtime);
    // What a kill leaves has everything.
    let runtime = Runtime::start(config(dir.path(), Io::Threads)).unwrap();
    let mut lane = attach(runtime.session(), "crowd");
    assert_eq!(lane.branches("").unwrap().items.len(), 4);
    for no in 0..3 {
        lane.switch(&format!("worker-{no}")).unwrap();
        assert!(!lane.scan(b"", b"", 0).unwrap().keys.is_empty());
        assert!(lane.log(Revision::Head, 0).unwrap().entries.len() >= 2);
    }
}

#[test]
fn a_checkpoint_that_was_pruned_is_no_checkpoint_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), Io::Threads)).unwrap();
    let mut lane = attach(runtime.session(), "planner");
    let mut random = Random(2);
    let (_, old) = overwrite(&mut lane, &mut random, 1);
    let (state, _) = overwrite(&mut lane, &mut random, 2);
    lane.retain("main", Retention::Last(1)).unwrap();
    runtime.collect();
    let old = Revision::Checkpoint(*old.as_bytes());
    assert!(matches!(
        lane.restore(old, true),
        Err(ClientError::NoSuchRevision)
    ));
    assert!(matches!(lane.fork(old), Err(ClientError::NoSuchRevision)));
    check(&mut lane, &state);
    assert!(matches!(
        lane.retain("none", Retention::All),
        Err(ClientError::NoSuchBranch)
    ));
}
