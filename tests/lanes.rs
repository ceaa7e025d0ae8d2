//! Every operation, through a lane of the host and through the socket, on one shard and on four.

use std::collections::BTreeMap;
use std::time::Duration;

use helios::Runtime;
use helios::agent::entry::Tier;
use helios::client::{Attach, ClientError, Expect, Lane, PutOptions, Session};
use helios::config::{Choice, Config, Durability, Io};
use helios::id::ObjectId;
use helios::state::tree::BLOB_BYTES_MAX;

fn config(dir: &std::path::Path, shards: u16, io: Io) -> Config {
    Config {
        shards: Choice::Fixed(shards),
        segment_bytes: 1 << 20,
        memory_max: 64 << 20,
        io,
        ..Config::at(dir)
    }
}

/// Runs `test` in every arrangement: shards and backend; lanes of the host and of the socket.
fn check(test: impl Fn(&Runtime, &Session)) {
    for (shards, io) in [(1, Io::Auto), (4, Io::Threads)] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::start(config(dir.path(), shards, io)).unwrap();
        test(&runtime, runtime.session());
        test(&runtime, &Session::connect(runtime.socket()).unwrap());
        runtime.shutdown().unwrap();
    }
}

/// A name that no other test run in the same runtime has.
fn name(what: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn lane(session: &Session, what: &str) -> Lane {
    session.attach(&name(what), Attach::default()).unwrap()
}

fn value_of(lane: &mut Lane, key: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    lane.get(key, &mut value).unwrap().map(|_| value)
}

#[test]
fn what_is_put_is_got_until_it_is_deleted() {
    check(|_, session| {
        let mut lane = lane(session, "basic");
        assert_eq!(value_of(&mut lane, b"k"), None);
        for value in [&b""[..], b"one", &[7; 4096], &[9; 65536]] {
            let written = lane.put(b"k", value).unwrap();
            assert_eq!(written.durability, Durability::Process);
            // Of a longer value it is the id of the root of its chunks.
            let is_hash = written.id == ObjectId::of_blob(value);
            assert_eq!(is_hash, value.len() <= BLOB_BYTES_MAX as usize);
            assert_eq!(value_of(&mut lane, b"k").as_deref(), Some(value));
            let stat = lane.exists(b"k").unwrap().unwrap();
            assert_eq!(
                (stat.value_bytes, stat.id),
                (value.len() as u64, written.id)
            );
        }
        assert!(lane.delete(b"k").unwrap());
        assert!(!lane.delete(b"k").unwrap());
        assert_eq!(value_of(&mut lane, b"k"), None);
        assert_eq!(lane.exists(b"k").unwrap(), None);
    });
}

#[test]
fn keys_are_any_bytes_of_the_right_length() {
    check(|_, session| {
        let mut lane = lane(session, "keys");
        for key in [&b":"[..], b"a\nb", b"//", &[0], &[255; 1024]] {
            lane.put(key, key).unwrap();
            assert_eq!(value_of(&mut lane, key).as_deref(), Some(key));
        }
        for bad in [&b""[..], &[1; 1025]] {
            let error = lane.put(bad, b"x").unwrap_err();
            assert!(matches!(error, ClientError::KeyLength { .. }), "{error}");
        }
    });
}

#[test]
fn a_second_read_is_served_by_the_window() {
    check(|_, session| {
        let mut lane = lane(session, "window");
        lane.put(b"hot", b"value").unwrap();
        let mut value = Vec::new();
        let mut tiers = Vec::new();
        for _ in 0..1000 {
            tiers.push(lane.get(b"hot", &mut value).unwrap().unwrap().tier);
            assert_eq!(value, b"value");
        }
        assert_eq!(tiers.last(), Some(&Tier::L1), "{tiers:?}");
    });
}

#[test]
fn no_lane_reads_an_old_value_after_an_acknowledged_write() {
    check(|_, session| {
        let agent = name("coherent");
        let mut writer = session.attach(&agent, Attach::default()).unwrap();
        let mut readers: Vec<_> = (0..3)
            .map(|_| session.attach(&agent, Attach::default()).unwrap())
            .collect();
        for round in 0_u32..300 {
            if round % 7 == 3 {
                writer.delete(b"k").unwrap();
                for reader in &mut readers {
                    assert_eq!(value_of(reader, b"k"), None);
                }
                continue;
            }
            writer.put(b"k", &round.to_le_bytes()).unwrap();
            for reader in &mut readers {
                for _ in 0..3 {
                    assert_eq!(value_of(reader, b"k").unwrap(), round.to_le_bytes());
                }
            }
        }
    });
}

#[test]
fn large_values_stream_in_parts() {
    check(|_, session| {
        let mut lane = lane(session, "large");
        for bytes in [65_537, 200_000, 3 << 20, 20 << 20] {
            let value: Vec<u8> = (0..bytes)
                .map(|i: u32| (i ^ (i >> 8) ^ (i >> 16)) as u8)
                .collect();
            let first = lane.put(b"big", &value).unwrap();
            assert!(value_of(&mut lane, b"big").unwrap() == value, "{bytes}");
            // The same bytes again: the same id, and nothing new stored.
            assert_eq!(lane.put(b"copy", &value).unwrap().id, first.id);
        }
        let mut value = Vec::new();
        lane.put(b"big", b"small again").unwrap();
        assert_eq!(value_of(&mut lane, b"big").unwrap(), b"small again");
        assert!(lane.delete(b"copy").unwrap());
        assert!(lane.get(b"copy", &mut value).unwrap().is_none());
        let error = lane.put(b"big", &vec![0; (64 << 20) + 1]).unwrap_err();
        assert!(matches!(error, ClientError::TooLarge), "{error}");
    });
}

#[test]
fn the_largest_value_fits() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), 1, Io::Auto)).unwrap();
    let mut lane = runtime.agent("largest").unwrap();
    let value: Vec<u8> = (0..64_u32 << 20).map(|i| (i % 251) as u8).collect();
    lane.put(b"k", &value).unwrap();
    assert!(value_of(&mut lane, b"k").unwrap() == value);
}

#[test]
fn compare_and_put_takes_one_of_two_writers() {
    check(|_, session| {
        let agent = name("compare");
        let mut a = session.attach(&agent, Attach::default()).unwrap();
        let mut b = session.attach(&agent, Attach::default()).unwrap();
        let expect = |expect| PutOptions {
            expect: Some(expect),
            ..PutOptions::default()
        };
        let first = a.put_with(b"k", b"a", expect(Expect::Absent)).unwrap().id;
        let stale = b.put_with(b"k", b"b", expect(Expect::Absent)).unwrap_err();
        assert!(matches!(stale, ClientError::Stale { current: Some(id) } if id == first));
        let second = b
            .put_with(b"k", b"b", expect(Expect::Value(first)))
            .unwrap()
            .id;
        let stale = a
            .put_with(b"k", b"a2", expect(Expect::Value(first)))
            .unwrap_err();
        assert!(matches!(stale, ClientError::Stale { current: Some(id) } if id == second));
        assert_eq!(value_of(&mut a, b"k").unwrap(), b"b");
        let large = vec![3; 100_000];
        let stale = a
            .put_with(b"k", &large, expect(Expect::Value(first)))
            .unwrap_err();
        assert!(matches!(stale, ClientError::Stale { .. }), "{stale}");
        let third = a
            .put_with(b"k", &large, expect(Expect::Value(second)))
            .unwrap()
            .id;
        assert!(a.delete_with(b"k", expect(Expect::Value(first))).is_err());
        assert!(a.delete_with(b"k", expect(Expect::Value(third))).unwrap());
        let gone = a
            .put_with(b"k", b"x", expect(Expect::Value(third)))
            .unwrap_err();
        assert!(
            matches!(gone, ClientError::Stale { current: None }),
            "{gone}"
        );
    });
}

#[test]
fn scans_are_ordered_and_paged() {
    check(|_, session| {
        let mut lane = lane(session, "scan");
        let mut model = BTreeMap::new();
        for i in 0..500_u32 {
            let key = format!("{}/{:03}", i % 3, i * 7919 % 1000).into_bytes();
            lane.put(&key, &i.to_le_bytes()).unwrap();
            model.insert(key, ObjectId::of_blob(&i.to_le_bytes()));
        }
        lane.delete(b"1/000").unwrap();
        model.remove(&b"1/000"[..]);
        for prefix in [&b""[..], b"1/", b"1/5", b"9"] {
            for limit in [0, 1, 7, 100] {
                let mut found = Vec::new();
                let mut after = Vec::new();
                loop {
                    let page = lane.scan(prefix, &after, limit).unwrap();
                    assert!(limit == 0 || page.keys.len() <= limit);
                    found.extend(page.keys.into_iter().map(|key| (key.key, key.id)));
                    if !page.more {
                        break;
                    }
                    after = found.last().unwrap().0.clone();
                }
                let wanted: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| key.starts_with(prefix))
                    .map(|(key, id)| (key.clone(), *id))
                    .collect();
                assert_eq!(found, wanted, "prefix {prefix:?}, limit {limit}");
            }
        }
    });
}

#[test]
fn several_keys_travel_in_one_request() {
    check(|_, session| {
        let mut lane = lane(session, "multi");
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..200_usize)
            .map(|i| (format!("k{i}").into_bytes(), vec![i as u8; i]))
            .collect();
        let borrowed: Vec<(&[u8], &[u8])> = pairs.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        let written = lane
            .multi_put(&borrowed, Some(Durability::Power))
            .unwrap()
            .unwrap();
        assert_eq!(written.durability, Durability::Power);
        lane.put(b"huge", &vec![5; 300_000]).unwrap();
        let mut keys: Vec<&[u8]> = pairs.iter().map(|(k, _)| &k[..]).collect();
        keys.extend([&b"absent"[..], b"huge"]);
        let values = lane.multi_get(&keys).unwrap();
        for (value, (_, wanted)) in values.iter().zip(&pairs) {
            assert_eq!(value.as_ref(), Some(wanted));
        }
        assert_eq!(values[200], None);
        assert_eq!(values[201].as_ref().map(Vec::len), Some(300_000));
        assert!(lane.multi_get(&[]).unwrap().is_empty());
    });
}

#[test]
fn requests_are_pipelined_and_each_is_answered_once() {
    check(|_, session| {
        let mut lane = lane(session, "pipeline");
        let mut reply = Vec::new();
        let mut wanted = BTreeMap::new();
        let mut done = 0;
        for i in 0..2000_u32 {
            let key = (i % 50).to_le_bytes();
            loop {
                let submitted = if i % 3 == 0 {
                    lane.submit_put(&key, &i.to_le_bytes(), PutOptions::default())
                } else {
                    lane.submit_get(&key, 64)
                };
                match submitted {
                    Ok(ticket) => {
                        assert!(wanted.insert(format!("{ticket:?}"), i).is_none());
                        break;
                    }
                    Err(ClientError::LaneFull) => {
                        let reply = lane.wait(&mut reply).unwrap().unwrap();
                        reply.outcome.unwrap();
                        assert!(wanted.remove(&format!("{:?}", reply.ticket)).is_some());
                        done += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        while let Some(reply) = lane.wait(&mut reply).unwrap() {
            assert!(wanted.remove(&format!("{:?}", reply.ticket)).is_some());
            done += 1;
        }
        assert_eq!(done, 2000);
        assert!(wanted.is_empty());
        // What was submitted last is what is there.
        for key in 0..50_u32 {
            let last = (0..2000).filter(|i| i % 50 == key && i % 3 == 0).max();
            let value = value_of(&mut lane, &key.to_le_bytes());
            assert_eq!(value, last.map(|i: u32| i.to_le_bytes().to_vec()));
        }
    });
}

#[test]
fn durability_is_what_was_asked_for() {
    check(|runtime, session| {
        let mut lane = lane(session, "durable");
        for durability in [Durability::Volatile, Durability::Process, Durability::Power] {
            let options = PutOptions {
                durability: Some(durability),
                ..PutOptions::default()
            };
            let written = lane.put_with(b"k", &[durability as u8], options).unwrap();
            assert_eq!(written.durability, durability);
            assert_eq!(value_of(&mut lane, b"k").unwrap(), [durability as u8]);
        }
        let written = lane.put(b"k", b"later").unwrap();
        assert!(lane.sync_to(written.sequence, Durability::Power).unwrap() >= written.sequence);
        let reached = lane.sync(Durability::Power).unwrap();
        assert!(reached >= written.sequence);
        let stats = lane.stats().unwrap();
        assert!(stats.synced_sequence > 0 && stats.writes >= 4, "{stats:?}");
        assert!(runtime.stats().writes >= 4);
    });
}

#[test]
fn public_values_are_read_by_others_and_private_ones_are_not() {
    check(|_, session| {
        let public = name("commons");
        let private = name("private");
        let how = Attach {
            public: true,
            ..Attach::default()
        };
        let mut commons = session.attach(&public, how).unwrap();
        let mut secret = session.attach(&private, Attach::default()).unwrap();
        let large = vec![8; 500_000];
        commons.put(b"k", b"shared").unwrap();
        commons.put(b"large", &large).unwrap();
        secret.put(b"k", b"mine").unwrap();
        // Agents on every shard ask.
        for i in 0..8 {
            let mut reader = lane(session, &format!("reader{i}"));
            let mut value = Vec::new();
            for _ in 0..3 {
                let found = reader.get_from(&public, b"k", &mut value).unwrap().unwrap();
                assert_eq!(value, b"shared");
                assert_ne!(found.tier, Tier::L1);
            }
            assert!(
                reader
                    .get_from(&public, b"large", &mut value)
                    .unwrap()
                    .is_some()
            );
            assert!(value == large);
            assert!(
                reader
                    .get_from(&public, b"absent", &mut value)
                    .unwrap()
                    .is_none()
            );
            let error = reader.get_from(&private, b"k", &mut value).unwrap_err();
            assert!(matches!(error, ClientError::Forbidden), "{error}");
            let error = reader
                .get_from("nobody at all", b"k", &mut value)
                .unwrap_err();
            assert!(matches!(error, ClientError::NoSuchAgent), "{error}");
            assert_eq!(value_of(&mut reader, b"k"), None);
        }
    });
}

#[test]
fn an_event_loop_is_told_of_completions() {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), 1, Io::Auto)).unwrap();
    let session = Session::connect(runtime.socket()).unwrap();
    let mut lane = session.attach("loop", Attach::default()).unwrap();
    let mut reply = Vec::new();
    for i in 0..50_u32 {
        // Now and then the shard has gone to sleep before.
        if i % 10 == 0 {
            std::thread::sleep(Duration::from_millis(3));
        }
        lane.submit_put(b"k", &i.to_le_bytes(), PutOptions::default())
            .unwrap();
        while !lane.arm() {
            let fd = session.event_fd().unwrap();
            let timeout = Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            let ready = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
            assert_eq!(ready, Ok(1), "nothing came in 10 s");
            session.drain_events().unwrap();
        }
        lane.poll(&mut reply).unwrap().unwrap().outcome.unwrap();
    }
}

#[test]
fn attaching_needs_a_name_and_an_agent() {
    check(|_, session| {
        let how = Attach {
            create: false,
            ..Attach::default()
        };
        let unknown = name("unknown");
        let error = session.attach(&unknown, how).unwrap_err();
        assert!(matches!(error, ClientError::Refused { .. }), "{error}");
        drop(session.attach(&unknown, Attach::default()).unwrap());
        session.attach(&unknown, how).unwrap();
        assert!(session.attach("", how).is_err());
        assert!(session.attach(&"x".repeat(256), Attach::default()).is_err());
        session.attach(&"é".repeat(127), Attach::default()).unwrap();
    });
}

/// A wake comes once for each time a lane was armed; an attach that read it off the socket once
/// kept it from the event loop.
#[test]
fn an_event_loop_hears_of_what_an_attach_read() {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), 1, Io::Auto)).unwrap();
    let session = Session::connect(runtime.socket()).unwrap();
    let mut lane = session.attach("loop", Attach::default()).unwrap();
    let mut reply = Vec::new();
    for round in 0..20 {
        lane.submit_put(b"k", b"v", PutOptions::default()).unwrap();
        if lane.arm() {
            lane.poll(&mut reply).unwrap().unwrap().outcome.unwrap();
            continue;
        }
        // Its wake arrives before the answer to this, or right after.
        drop(
            session
                .attach(&format!("other-{round}"), Attach::default())
                .unwrap(),
        );
        let fd = session.event_fd().unwrap();
        let timeout = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let ready = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
        assert_eq!(ready, Ok(1), "nothing came in 10 s");
        session.drain_events().unwrap();
        while lane.poll(&mut reply).unwrap().is_none() {
            std::thread::yield_now();
        }
    }
}
