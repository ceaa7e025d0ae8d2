//! Many lanes, many sessions, many threads: what each costs in descriptors, and that none reads
//! what another did not write.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use common::{Random, Served, attach, value_of, wait_for};
use helios::Runtime;
use helios::client::{Attach, Session};
use helios::config::{Choice, Config, Durability, Io};

/// Attaches `count` lanes to a runtime in another process, uses each, detaches them: it holds a
/// descriptor a lane at most and two a session, and afterwards none of them. `sessions`: each lane
/// has its own.
fn check(count: usize, sessions: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 2\nmemory_max = \"1GiB\"");
    let one = served.session();
    let mut watcher = attach(&one, "watcher");
    let before = (served.fds(), served.maps());
    let start = Instant::now();
    let mut lanes: Vec<_> = (0..count)
        .map(|no| {
            let session = if sessions {
                served.session()
            } else {
                one.clone()
            };
            attach(&session, &format!("agent {no}"))
        })
        .collect();
    let elapsed = start.elapsed();
    let (fds, maps) = (served.fds(), served.maps());
    println!(
        "{count} lanes, own sessions {sessions}: {elapsed:?}, {:?} each; {} descriptors, {} mappings",
        elapsed / count as u32,
        fds - before.0,
        maps - before.1
    );
    let each = if sessions { 3 } else { 1 };
    // Those of the last answer are closed once it was sent: whoever has it may be faster.
    wait_for("descriptors that stay", || {
        (served.fds() - before.0 <= count * each).then_some(())
    });
    for (no, lane) in lanes.iter_mut().enumerate() {
        lane.put(b"k", &no.to_le_bytes()).unwrap();
    }
    for (no, lane) in lanes.iter_mut().enumerate() {
        assert_eq!(value_of(lane, b"k").unwrap().unwrap(), no.to_le_bytes());
    }
    let all = |lanes: u64, watcher: &mut helios::client::Lane| {
        wait_for("the gauge of lanes", || {
            watcher.sync(Durability::Power).unwrap();
            (watcher.stats().unwrap().lanes == lanes).then_some(())
        });
    };
    all(count as u64 + 1, &mut watcher);
    let start = Instant::now();
    drop(lanes);
    all(1, &mut watcher);
    println!("detached within {:?}", start.elapsed());
    wait_for("descriptors again", || {
        (served.fds() <= before.0).then_some(())
    });
    wait_for("mappings again", || {
        (served.maps() <= before.1).then_some(())
    });
    served.assert_alive();
    let mut again = attach(&one, "agent 7");
    assert_eq!(
        value_of(&mut again, b"k").unwrap().unwrap(),
        7_usize.to_le_bytes()
    );
    served.stop();
}

#[test]
fn eight_thousand_five_hundred_lanes_of_one_process() {
    check(8500, false);
}

#[test]
fn three_hundred_sessions() {
    check(300, true);
}

fn config(dir: &Path, shards: u16, io: Io) -> Config {
    Config {
        shards: Choice::Fixed(shards),
        segment_bytes: 4 << 20,
        memory_max: 64 << 20,
        io,
        ..Config::at(dir)
    }
}

#[test]
fn a_list_of_the_most_pairs_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), 1, Io::Auto)).unwrap();
    let mut lane = runtime.agent("lists").unwrap();
    for round in 0..20_u32 {
        let pairs: Vec<_> = (0..1024_u32)
            .map(|no| {
                (
                    no.to_le_bytes().to_vec(),
                    (no ^ round).to_le_bytes().to_vec(),
                )
            })
            .collect();
        let borrowed: Vec<(&[u8], &[u8])> = pairs.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        lane.multi_put(&borrowed, None).unwrap();
        let keys: Vec<&[u8]> = pairs.iter().map(|(key, _)| &key[..]).collect();
        let values = lane.multi_get(&keys).unwrap();
        assert!(
            values
                .iter()
                .zip(&pairs)
                .all(|(value, (_, wanted))| value.as_ref() == Some(wanted))
        );
    }
    // As many bytes as one request takes, in long keys.
    let keys: Vec<Vec<u8>> = (0..60_u8).map(|no| vec![no; 1024]).collect();
    let pairs: Vec<(&[u8], &[u8])> = keys.iter().map(|key| (&key[..], &key[..40])).collect();
    lane.multi_put(&pairs, None).unwrap();
    assert_eq!(value_of(&mut lane, &keys[59]).unwrap().unwrap(), [59; 40]);
}

#[test]
fn eight_threads_on_four_shards_match_their_models() {
    for io in [Io::Auto, Io::Threads] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::start(config(dir.path(), 4, io)).unwrap();
        let session = Session::connect(runtime.socket()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let session = if thread % 2 == 0 {
                    runtime.session()
                } else {
                    &session
                };
                scope.spawn(move || one_thread(session, thread));
            }
        });
        runtime.shutdown().unwrap();
    }
}

/// One agent through two lanes, compared with a plain map at every step.
fn one_thread(session: &Session, thread: u64) {
    let seed = 4000 + thread;
    let mut random = Random(seed);
    let mut lanes = [
        attach(session, &format!("thread {thread}")),
        attach(session, &format!("thread {thread}")),
    ];
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for step in 0..3000 {
        let lane = &mut lanes[random.below(2) as usize];
        let key = format!("{}", random.below(200)).into_bytes();
        match random.below(20) {
            0..=6 => {
                let bytes = random.below(if step % 100 == 0 { 200_000 } else { 2000 });
                let value = random.bytes(bytes as usize);
                lane.put(&key, &value).unwrap();
                model.insert(key, value);
            }
            7 => {
                let was = lane.delete(&key).unwrap();
                assert_eq!(
                    was,
                    model.remove(&key).is_some(),
                    "seed {seed}, step {step}"
                );
            }
            8 => {
                let page = lane.scan(&key[..1], b"", 50).unwrap();
                let wanted = model
                    .keys()
                    .filter(|found| found.starts_with(&key[..1]))
                    .take(50);
                assert!(
                    page.keys.iter().map(|key| &key.key).eq(wanted),
                    "seed {seed}, step {step}"
                );
            }
            _ => {
                let found = value_of(lane, &key).unwrap();
                assert!(
                    found.as_ref() == model.get(&key),
                    "seed {seed}, step {step}"
                );
            }
        }
    }
}

/// A value that says by itself whether it is whole: 8 bytes, again and again.
fn whole(no: u64, bytes: usize) -> Vec<u8> {
    no.to_le_bytes().into_iter().cycle().take(bytes).collect()
}

#[test]
fn others_read_what_was_written_and_nothing_else_while_the_owner_writes() {
    const SIZES: [usize; 4] = [8, 1000, 60_000, 150_000];
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), 4, Io::Auto)).unwrap();
    let public = Attach {
        public: true,
        ..Attach::default()
    };
    let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut owner = runtime.session().attach("owner", public).unwrap();
    for (key, bytes) in SIZES.into_iter().enumerate() {
        owner.put(&[key as u8], &whole(0, bytes)).unwrap();
    }
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6_u64)
            .map(|reader| {
                let (runtime, stop, acked) = (&runtime, &stop, &acked);
                scope.spawn(move || {
                    let session = Session::connect(runtime.socket()).unwrap();
                    let mut lane = attach(&session, &format!("reader {reader}"));
                    let mut last = [0; SIZES.len()];
                    let mut value = Vec::new();
                    let mut reads = 0;
                    while !stop.load(Ordering::Acquire) || reads < 100 {
                        let key = (reads % SIZES.len() as u64) as usize;
                        let before = acked.load(Ordering::Acquire);
                        match lane.get_from("owner", &[key as u8], &mut value) {
                            Ok(found) => assert!(found.is_some()),
                            Err(
                                helios::client::ClientError::Changing
                                | helios::client::ClientError::Busy { .. },
                            ) => {
                                reads += 1;
                                continue;
                            }
                            Err(error) => panic!("{error}"),
                        }
                        assert_eq!(value.len(), SIZES[key]);
                        let no = u64::from_le_bytes(value[..8].try_into().unwrap());
                        assert!(value == whole(no, SIZES[key]), "a mix");
                        assert!(no >= last[key], "{no} after {}", last[key]);
                        assert!(no >= before, "{no} after {before} was acknowledged");
                        last[key] = no;
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for no in 1..400 {
            for (key, bytes) in SIZES.into_iter().enumerate() {
                owner.put(&[key as u8], &whole(no, bytes)).unwrap();
            }
            acked.store(no, Ordering::Release);
        }
        stop.store(true, Ordering::Release);
        let reads: Vec<u64> = readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect();
        println!("{reads:?} reads");
    });
}
