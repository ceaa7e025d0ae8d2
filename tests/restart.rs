//! What a restart finds: after a kill under load, after an end without shutdown, after one in
//! order; bytes that rotted meanwhile; bytes that are not in memory.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Random, Served, attach, value_of};
use helios::Runtime;
use helios::agent::entry::Tier;
use helios::client::{Attach, ClientError, Lane, PutOptions, Session};
use helios::config::{Choice, Config, Durability, Io};

fn config(dir: &Path, io: Io) -> Config {
    Config {
        shards: Choice::Fixed(2),
        segment_bytes: 1 << 20,
        memory_max: 64 << 20,
        socket: dir.join("s"),
        io,
        ..Config::at(dir.join("data"))
    }
}

fn lines(io: &str) -> String {
    format!("shards = 2\nsegment_bytes = \"1MiB\"\nmemory_max = \"64MiB\"\nio = {io:?}")
}

/// What an agent was told, and what it could not be told any more.
#[derive(Default)]
struct Ledger {
    /// By key, what was acknowledged last.
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The write under way at the end: the key, and what it would have named.
    open: Option<(Vec<u8>, Option<Vec<u8>>)>,
    /// By key, everything that was ever written without a promise.
    volatile: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
}

impl Ledger {
    /// Writes at random until `stop` or until the runtime is gone; the writes acknowledged.
    fn work(&mut self, lane: &mut Lane, random: &mut Random, stop: &AtomicBool) -> u64 {
        let mut acknowledged = 0;
        while !stop.load(Ordering::Acquire) {
            let key = format!("key {}", random.below(60)).into_bytes();
            let value = match random.below(40) {
                0 => None,
                1 => Some(random.bytes(150_000)),
                2..=6 => Some(vec![random.below(3) as u8; 2000]),
                7 => Some(Vec::new()),
                _ => {
                    let bytes = random.below(3000) as usize;
                    Some(random.bytes(bytes))
                }
            };
            if random.below(8) == 0 {
                let key = [&b"volatile "[..], &key].concat();
                let value = value.unwrap_or_default();
                self.volatile
                    .entry(key.clone())
                    .or_default()
                    .insert(value.clone());
                let options = PutOptions {
                    durability: Some(Durability::Volatile),
                    ..PutOptions::default()
                };
                if lane.put_with(&key, &value, options).is_err() {
                    return acknowledged;
                }
                continue;
            }
            self.open = Some((key.clone(), value.clone()));
            let done = match &value {
                Some(value) => lane.put(&key, value).map(drop),
                None => lane.delete(&key).map(drop),
            };
            match done {
                Ok(()) => {}
                Err(ClientError::Busy { .. }) => continue,
                Err(
                    ClientError::RuntimeGone | ClientError::Closed { .. } | ClientError::Socket(_),
                ) => {
                    return acknowledged;
                }
                Err(error) => panic!("{error}"),
            }
            match value {
                Some(value) => drop(self.values.insert(key, value)),
                None => drop(self.values.remove(&key)),
            }
            self.open = None;
            acknowledged += 1;
        }
        acknowledged
    }

    /// Compares with what is there, and takes over what can't be known but by looking.
    fn check(&mut self, lane: &mut Lane) {
        if let Some((key, wanted)) = self.open.take() {
            let found = value_of(lane, &key).unwrap();
            assert!(
                found == wanted || found.as_ref() == self.values.get(&key),
                "half of a write"
            );
            match found {
                Some(value) => drop(self.values.insert(key, value)),
                None => drop(self.values.remove(&key)),
            }
        }
        for (key, value) in &self.values {
            let found = value_of(lane, key).unwrap();
            assert!(
                found.as_ref() == Some(value),
                "{}",
                String::from_utf8_lossy(key)
            );
        }
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let after = keys.last().cloned().unwrap_or_default();
            let page = lane.scan(b"", &after, 0).unwrap();
            keys.extend(page.keys.into_iter().map(|key| key.key));
            if !page.more {
                break;
            }
        }
        for key in keys.iter().filter(|key| !self.values.contains_key(*key)) {
            let written = self.volatile.get(key);
            let written = written.unwrap_or_else(|| panic!("nobody wrote {key:?}"));
            assert!(written.contains(&value_of(lane, key).unwrap().unwrap()));
        }
    }
}

const AGENTS: usize = 4;

/// Loads a runtime with one thread per agent while `during` runs, and ends them after it.
fn load(session: &Session, ledgers: &mut [Ledger], seed: u64, during: impl FnOnce(&AtomicBool)) {
    let stop = AtomicBool::new(false);
    let acknowledged: u64 = std::thread::scope(|scope| {
        let stop = &stop;
        let workers: Vec<_> = ledgers
            .iter_mut()
            .enumerate()
            .map(|(no, ledger)| {
                let mut lane = attach(session, &format!("agent {no}"));
                scope.spawn(move || ledger.work(&mut lane, &mut Random(seed + no as u64), stop))
            })
            .collect();
        during(stop);
        stop.store(true, Ordering::Release);
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    assert!(acknowledged > 0);
    println!("seed {seed}: {acknowledged} writes acknowledged");
}

fn check(session: &Session, ledgers: &mut [Ledger]) {
    for (no, ledger) in ledgers.iter_mut().enumerate() {
        ledger.check(&mut attach(session, &format!("agent {no}")));
    }
}

/// Waits until the runtime has written some more: what "in the middle of load" means.
fn some_work(session: &Session) {
    let mut lane = attach(session, "watcher");
    let before = lane.stats().unwrap().writes;
    common::wait_for("some writes", || {
        (lane.stats().unwrap().writes > before + 400).then_some(())
    });
}

fn kills_in_a_row(io: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut ledgers: Vec<_> = (0..AGENTS).map(|_| Ledger::default()).collect();
    for round in 0..5_u64 {
        let served = Served::start(dir.path(), &lines(io));
        let session = served.session();
        check(&session, &mut ledgers);
        load(&session, &mut ledgers, 1000 + round * 10, |_| {
            some_work(&session);
            served.kill();
        });
    }
    let served = Served::start(dir.path(), &lines(io));
    check(&served.session(), &mut ledgers);
    served.stop();
    let served = Served::start(dir.path(), &lines(io));
    check(&served.session(), &mut ledgers);
}

#[test]
fn every_acknowledged_write_survives_kills_with_threads() {
    kills_in_a_row("threads");
}

#[test]
fn every_acknowledged_write_survives_kills_with_glommio() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(error) = Runtime::start(config(dir.path(), Io::Glommio)) {
        println!("skipped: {error}");
        return;
    }
    kills_in_a_row("glommio");
}

#[test]
fn an_end_without_shutdown_leaves_what_a_kill_leaves() {
    for io in [Io::Auto, Io::Threads] {
        let dir = tempfile::tempdir().unwrap();
        let mut ledgers: Vec<_> = (0..AGENTS).map(|_| Ledger::default()).collect();
        for round in 0..5 {
            let runtime = Runtime::start(config(dir.path(), io)).unwrap();
            let session = Session::connect(runtime.socket()).unwrap();
            check(&session, &mut ledgers);
            load(&session, &mut ledgers, 2000 + round * 10, |stop| {
                some_work(&session);
                if round % 2 == 0 {
                    stop.store(true, Ordering::Release);
                }
                drop(runtime);
            });
        }
        let runtime = Runtime::start(config(dir.path(), io)).unwrap();
        check(runtime.session(), &mut ledgers);
        drop(ledgers);
        runtime.shutdown().unwrap();
    }
}

#[test]
fn a_shutdown_under_load_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledgers: Vec<_> = (0..AGENTS).map(|_| Ledger::default()).collect();
    for round in 0..3 {
        let served = Served::start(dir.path(), &lines("auto"));
        let session = served.session();
        check(&session, &mut ledgers);
        load(&session, &mut ledgers, 3000 + round * 10, |_| {
            some_work(&session);
            served.stop();
        });
    }
    let served = Served::start(dir.path(), &lines("auto"));
    check(&served.session(), &mut ledgers);
}

#[test]
fn a_shutdown_keeps_volatile_writes_flags_and_shared_objects() {
    let dir = tempfile::tempdir().unwrap();
    let large = Random(5).bytes(2 << 20);
    for round in 0..5_u32 {
        let runtime = Runtime::start(config(dir.path(), Io::Auto)).unwrap();
        let public = Attach {
            public: round == 0,
            ..Attach::default()
        };
        let mut commons = runtime.session().attach("commons", public).unwrap();
        let mut reader = runtime.agent("reader").unwrap();
        if round > 0 {
            assert_eq!(
                value_of(&mut commons, b"round").unwrap().unwrap(),
                (round - 1).to_le_bytes()
            );
            let mut value = Vec::new();
            reader
                .get_from("commons", b"large", &mut value)
                .unwrap()
                .unwrap();
            assert!(value == large);
            assert_eq!(value_of(&mut commons, b"gone").unwrap(), None);
            // Marked public once, it stays so.
            let error = commons.get_from("reader", b"k", &mut value).unwrap_err();
            assert!(matches!(error, ClientError::Forbidden), "{error}");
        }
        let options = PutOptions {
            durability: Some(Durability::Volatile),
            ..PutOptions::default()
        };
        commons
            .put_with(b"round", &round.to_le_bytes(), options)
            .unwrap();
        commons.put(b"large", &large).unwrap();
        commons.put(b"gone", b"x").unwrap();
        commons.delete(b"gone").unwrap();
        // Stored once, however many name it, before a restart and after.
        let before = segment_bytes(dir.path());
        for no in 0..20 {
            commons
                .put(format!("copy {no}").as_bytes(), &large)
                .unwrap();
        }
        assert!(segment_bytes(dir.path()) <= before + (6 << 20));
        drop((commons, reader));
        runtime.shutdown().unwrap();
    }
}

/// What is in the directories of the shards.
fn walk(data_dir: &Path) -> Vec<PathBuf> {
    let shards = std::fs::read_dir(data_dir).unwrap();
    let mut files = Vec::new();
    for shard in shards
        .map(|shard| shard.unwrap().path())
        .filter(|path| path.is_dir())
    {
        files.extend(
            std::fs::read_dir(shard)
                .unwrap()
                .map(|file| file.unwrap().path()),
        );
    }
    files
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = walk(&dir.join("data"));
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files
}

fn segment_bytes(dir: &Path) -> u64 {
    let files = segment_files(dir).into_iter();
    files
        .map(|file| std::fs::metadata(file).map_or(0, |meta| meta.len()))
        .sum()
}

/// Flips a bit in the middle of where `payload` is stored.
fn rot(dir: &Path, payload: &[u8]) {
    for path in segment_files(dir) {
        let bytes = std::fs::read(&path).unwrap();
        let Some(at) = bytes
            .windows(32)
            .position(|window| window == &payload[..32])
        else {
            continue;
        };
        let at = at + payload.len() / 2;
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
        return;
    }
    panic!("the payload is in no segment");
}

/// How a runtime ends whose files then rot.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// In order: everything is sealed.
    Shutdown,
    /// As a kill, after a sync and some more.
    Synced,
    /// As a kill.
    Drop,
}

#[test]
fn rotten_bytes_are_an_error_for_their_value_only() {
    for (end, kilobytes) in [
        (End::Shutdown, 100),
        (End::Synced, 100),
        (End::Drop, 100),
        (End::Shutdown, 3000),
        (End::Synced, 3000),
        (End::Drop, 3000),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(kilobytes + end as u64);
        let runtime = Runtime::start(config(dir.path(), Io::Auto)).unwrap();
        let mut lane = runtime.agent("a").unwrap();
        let mut model = BTreeMap::new();
        let mut order = Vec::new();
        for no in 0..kilobytes {
            let value = random.bytes(1000);
            lane.put(&no.to_le_bytes(), &value).unwrap();
            order.push(no.to_le_bytes().to_vec());
            model.insert(no.to_le_bytes().to_vec(), value);
        }
        if end == End::Synced {
            lane.sync(Durability::Power).unwrap();
        }
        lane.put(b"last", b"word").unwrap();
        drop(lane);
        if end == End::Shutdown {
            runtime.shutdown().unwrap();
        } else {
            drop(runtime);
        }
        let victim = (kilobytes / 3).to_le_bytes();
        rot(dir.path(), &model[&victim[..]]);
        for restart in 0..2 {
            let runtime = Runtime::start(config(dir.path(), Io::Auto)).unwrap();
            let report = runtime.recovery().report;
            let mut lane = runtime.agent("a").unwrap();
            if restart == 0 && report.truncated_bytes > 0 {
                // Nothing in the log says that it was synced: it may be the torn end of a power
                // cut. What is gone is a suffix, from the victim on, and it is kept aside.
                assert!(end == End::Drop && kilobytes == 100, "{end:?} {report:?}");
                for key in order.split_off(kilobytes as usize / 3) {
                    assert_eq!(value_of(&mut lane, &key).unwrap(), None);
                    model.remove(&key);
                }
                assert_eq!(value_of(&mut lane, b"last").unwrap(), None);
                assert!(kept_bytes(dir.path()) >= 60_000);
                lane.put(b"last", b"word").unwrap();
                lane.put(&victim, b"new").unwrap();
                model.insert(victim.to_vec(), b"new".to_vec());
            }
            let lost = model[&victim[..]] == b"new";
            let sealed = end == End::Shutdown || kilobytes == 3000 || restart == 1;
            assert_eq!(report.damaged, u64::from(!sealed && !lost), "{end:?}");
            for _ in 0..3 {
                for (key, value) in &model {
                    match value_of(&mut lane, key) {
                        Ok(Some(found)) => assert!(found == *value && (lost || key[..] != victim)),
                        Ok(None) => panic!("{key:?} is gone, {end:?}"),
                        Err(ClientError::Corrupt) => assert!(key[..] == victim && !lost),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            assert_eq!(value_of(&mut lane, b"last").unwrap().unwrap(), b"word");
            if lost {
                continue;
            }
            let values = lane.multi_get(&[&victim[..], b"last"]);
            assert!(!matches!(&values, Ok(values) if values[0].is_some()));
            assert!(lane.stats().unwrap().corrupt > 0);
            // A new value cures the key.
            if restart == 1 {
                lane.put(&victim, b"new").unwrap();
                assert_eq!(value_of(&mut lane, &victim).unwrap().unwrap(), b"new");
                // Even the same bytes as before, which are not to be found in the rotten ones.
                lane.put(&victim, &model[&victim[..]]).unwrap();
                let found = value_of(&mut lane, &victim).unwrap().unwrap();
                assert!(found == model[&victim[..]]);
            }
        }
    }
}

/// Bytes that recoveries cut off and kept.
fn kept_bytes(dir: &Path) -> u64 {
    let files = walk(&dir.join("data")).into_iter();
    files
        .filter(|path| path.to_str().unwrap().contains(".seg.tail-"))
        .map(|path| std::fs::metadata(path).unwrap().len())
        .sum()
}

#[test]
fn a_start_after_a_shutdown_scans_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(4);
    for round in 0..4_u64 {
        let runtime = Runtime::start(config(dir.path(), Io::Auto)).unwrap();
        let report = runtime.recovery().report;
        assert_eq!(report.sealed, report.segments, "round {round}");
        assert!(
            report.read_bytes <= report.records * 150 + 100 * u64::from(report.segments),
            "{report:?}"
        );
        assert_eq!(report.truncated_bytes + u64::from(report.set_aside), 0);
        for agent in ["a", "b", "c", "d"] {
            let mut lane = runtime.agent(agent).unwrap();
            assert_eq!(value_of(&mut lane, b"round").unwrap().is_some(), round > 0);
            for no in 0..200_u64 {
                lane.put(&no.to_le_bytes(), &random.bytes(3000)).unwrap();
            }
            lane.put(b"round", &round.to_le_bytes()).unwrap();
        }
        assert_eq!(report.segments > 0, round > 0);
        runtime.shutdown().unwrap();
    }
}

#[test]
fn a_rotten_part_is_an_error_for_its_value_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(31);
    let runtime = Runtime::start(config(dir.path(), Io::Auto)).unwrap();
    let mut lane = runtime.agent("a").unwrap();
    let (large, other) = (random.bytes(200_000), random.bytes(3 << 20));
    lane.put(b"large", &large).unwrap();
    lane.put(b"other", &other).unwrap();
    drop(lane);
    runtime.shutdown().unwrap();
    rot(dir.path(), &large[65_536..131_072]);
    let runtime = Runtime::start(config(dir.path(), Io::Auto)).unwrap();
    let mut lane = runtime.agent("a").unwrap();
    for _ in 0..2 {
        let error = value_of(&mut lane, b"large").unwrap_err();
        assert!(matches!(error, ClientError::Corrupt), "{error}");
        assert!(value_of(&mut lane, b"other").unwrap().unwrap() == other);
    }
    // The same bytes again are whole again, now and after a restart.
    lane.put(b"large", &large).unwrap();
    assert!(value_of(&mut lane, b"large").unwrap().unwrap() == large);
    drop(lane);
    runtime.shutdown().unwrap();
    let runtime = Runtime::start(config(dir.path(), Io::Auto)).unwrap();
    let mut lane = runtime.agent("a").unwrap();
    assert!(value_of(&mut lane, b"large").unwrap().unwrap() == large);
}

#[test]
fn what_is_not_in_memory_is_read_from_the_device() {
    for io in [Io::Auto, Io::Threads] {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(9);
        let values: Vec<_> = (0..400).map(|_| random.bytes(4000)).collect();
        let large = random.bytes(500_000);
        let runtime = Runtime::start(config(dir.path(), io)).unwrap();
        let mut lane = runtime.agent("a").unwrap();
        for (no, value) in values.iter().enumerate() {
            lane.put(&no.to_le_bytes(), value).unwrap();
        }
        lane.put(b"large", &large).unwrap();
        drop(lane);
        runtime.shutdown().unwrap();
        let runtime = Runtime::start(config(dir.path(), io)).unwrap();
        let mut lane = runtime.agent("a").unwrap();
        for path in segment_files(dir.path()) {
            let file = std::fs::File::open(path).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        let mut tiers = BTreeMap::new();
        let mut value = Vec::new();
        for round in 0..2 {
            for (no, wanted) in values.iter().enumerate() {
                let found = lane.get(&no.to_le_bytes(), &mut value).unwrap().unwrap();
                assert!(value == *wanted, "round {round}, value {no}");
                *tiers
                    .entry((round, format!("{:?}", found.tier)))
                    .or_insert(0) += 1;
            }
        }
        println!("{io:?}: {tiers:?}");
        let found = lane.get(b"large", &mut value).unwrap().unwrap();
        assert!(value == large);
        assert!(
            matches!(found.tier, Tier::Cold | Tier::L3),
            "{:?}",
            found.tier
        );
        // A file system without a device keeps everything in memory.
        if tiers.keys().all(|(_, tier)| tier != "Cold") {
            println!("skipped: nothing here is ever cold");
        }
        assert!(
            tiers
                .keys()
                .all(|(round, tier)| *round == 0 || tier != "Cold"),
            "{tiers:?}"
        );
        // In memory, but in no cache of ours.
        drop(lane);
        runtime.shutdown().unwrap();
        for path in segment_files(dir.path()) {
            std::fs::read(path).unwrap();
        }
        let runtime = Runtime::start(config(dir.path(), io)).unwrap();
        let mut lane = runtime.agent("a").unwrap();
        let first = lane
            .get(&7_usize.to_le_bytes(), &mut value)
            .unwrap()
            .unwrap();
        assert!(value == values[7]);
        assert_eq!(first.tier, Tier::L3);
        let second = lane
            .get(&7_usize.to_le_bytes(), &mut value)
            .unwrap()
            .unwrap();
        assert!(value == values[7]);
        assert!(
            matches!(second.tier, Tier::L1 | Tier::L2),
            "{:?}",
            second.tier
        );
    }
}
