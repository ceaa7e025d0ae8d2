//! Agents from outside, over a real runtime with two shards: published checkpoints that cross shards, agents
//! made, listed, described, suspended, resumed, terminated, and what is told of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use helios::Runtime;
use helios::agent::RefusalCode;
use helios::client::{
    Attach, ClientError, Expect, Lane, Merged, NewCheckpoint, PutOptions, Revision, Session,
};
use helios::config::{Choice, Config, Durability, Io};
use helios::id::{ObjectId, ShardNo};
use helios::prefetch::AccessKind;
use helios::shard::owner;

mod common;

use common::{Random, attach, value_of, wait_for};

fn config(dir: &Path, shards: u16) -> Config {
    Config {
        shards: Choice::Fixed(shards),
        segment_bytes: 4 << 20,
        memory_max: 128 << 20,
        io: Io::Threads,
        ..Config::at(dir)
    }
}

fn start(dir: &Path) -> Runtime {
    Runtime::start(config(dir, 2)).unwrap()
}

/// A name that the shard owns.
fn named(stem: &str, shard: u16) -> String {
    let mut names = (0..).map(|no| format!("{stem}-{no}"));
    names
        .find(|name| owner(name.as_bytes(), 2) == ShardNo(shard))
        .unwrap()
}

fn checkpoint(lane: &mut Lane) -> ObjectId {
    lane.checkpoint(&NewCheckpoint::default()).unwrap().id
}

fn published<'a>(agent: &'a str, name: &'a str) -> Revision<'a> {
    Revision::Published { agent, name }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> RefusalCode {
    match outcome {
        Err(ClientError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

/// Everything that the branch of a lane holds.
fn state(lane: &mut Lane) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut state, mut after) = (BTreeMap::new(), Vec::new());
    loop {
        let page = lane.scan(b"", &after, 0).unwrap();
        for key in &page.keys {
            let value = value_of(lane, &key.key).unwrap().unwrap();
            state.insert(key.key.clone(), value);
        }
        match page.keys.last() {
            Some(last) if page.more => after = last.key.clone(),
            _ => return state,
        }
    }
}

/// Values of all forms: in the tree, by themselves, in chunks.
fn fill(lane: &mut Lane, seed: u64, keys: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut random = Random(seed);
    let mut model = BTreeMap::new();
    for no in 0..keys {
        let bytes = match no % 50 {
            0 => 100_000,
            1..=9 => 2_000,
            10..=19 => 0,
            _ => 40,
        };
        let value = random.bytes(bytes);
        let key = format!("key/{no:06}").into_bytes();
        lane.put(&key, &value).unwrap();
        model.insert(key, value);
    }
    model
}

#[test]
fn a_published_checkpoint_is_read_by_agents_of_every_shard_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let (teacher, near, far) = (named("teacher", 0), named("near", 0), named("far", 1));
    let mut lane = attach(runtime.session(), &teacher);
    let model = fill(&mut lane, 7, 500);
    let head = checkpoint(&mut lane);
    lane.publish("v1", Revision::Head, false).unwrap();
    assert_eq!(lane.published("").unwrap().items, [("v1".into(), head)]);
    lane.put(b"key/000001", b"later").unwrap();
    for pupil in [&near, &far] {
        let mut pupil = attach(runtime.session(), pupil);
        // By its id it is nobody else's to read before it was named as published.
        let by_id = pupil.fork(Revision::Checkpoint(*head.as_bytes()));
        assert!(
            matches!(by_id, Err(ClientError::NoSuchRevision)),
            "{by_id:?}"
        );
        let info = pupil.branch("taught", published(&teacher, "v1")).unwrap();
        assert_eq!(info.head, Some(head));
        pupil.switch("taught").unwrap();
        assert_eq!(state(&mut pupil), model);
        pupil.put(b"own", b"more").unwrap();
        let made = pupil.checkpoint(&NewCheckpoint::default()).unwrap();
        assert_eq!(made.parents, [head]);
        let log = pupil.log(Revision::Head, 0).unwrap();
        let ids: Vec<_> = log.entries.iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [made.id, head]);
        assert!(log.entries[0].sequence > log.entries[1].sequence);
        let counts = pupil.diff_counts(published(&teacher, "v1"), Revision::Head);
        assert_eq!(counts.unwrap().added, 1);
        let again = pupil.fork(Revision::Checkpoint(*head.as_bytes())).unwrap();
        assert_eq!(again.head, Some(head));
    }
    drop(lane);
    runtime.shutdown().unwrap();
    let runtime = start(dir.path());
    for pupil in [&near, &far] {
        let mut pupil = attach(runtime.session(), pupil);
        pupil.switch("taught").unwrap();
        let mut wanted = model.clone();
        wanted.insert(b"own".to_vec(), b"more".to_vec());
        assert_eq!(state(&mut pupil), wanted);
        pupil.restore(published(&teacher, "v1"), true).unwrap();
        assert_eq!(state(&mut pupil), model);
    }
    runtime.shutdown().unwrap();
}

#[test]
fn what_is_not_published_is_not_read_and_what_was_used_stays() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let (owner, near, far) = (named("owner", 0), named("near", 0), named("far", 1));
    let mut lane = attach(runtime.session(), &owner);
    lane.put(b"a", b"1").unwrap();
    let head = checkpoint(&mut lane);
    lane.tag("private", Revision::Head, false).unwrap();
    lane.publish("open", Revision::Head, false).unwrap();
    for other in [&near, &far] {
        let mut other = attach(runtime.session(), other);
        for (agent, name) in [(&*owner, "private"), (&*owner, "none")] {
            let fork = other.fork(published(agent, name));
            assert!(matches!(fork, Err(ClientError::NoSuchRevision)), "{fork:?}");
        }
        for shard in 0..2 {
            let nobody = named("nobody", shard);
            let fork = other.fork(published(&nobody, "open"));
            assert!(matches!(fork, Err(ClientError::NoSuchAgent)), "{fork:?}");
        }
        let long = "n".repeat(300);
        assert!(other.fork(published(&owner, &long)).is_err());
        other.tag("mine", published(&owner, "open"), false).unwrap();
        let in_use = other.forget(head);
        assert!(
            matches!(in_use, Err(ClientError::InUse { lanes: 1 })),
            "{in_use:?}"
        );
    }
    // A tag that is made anew is private, and one that is gone names nothing.
    lane.tag("open", Revision::Head, false).unwrap();
    assert!(lane.published("").unwrap().items.is_empty());
    for other in [&near, &far] {
        let mut other = attach(runtime.session(), other);
        let fork = other.fork(published(&owner, "open"));
        assert!(matches!(fork, Err(ClientError::NoSuchRevision)), "{fork:?}");
        let mine = other.fork(Revision::Tag("mine")).unwrap().no;
        assert_eq!(value_of(&mut other.on(mine), b"a").unwrap().unwrap(), b"1");
        other.discard(mine).unwrap();
        other.untag("mine").unwrap();
        other.forget(head).unwrap();
        let fork = other.fork(Revision::Checkpoint(*head.as_bytes()));
        assert!(matches!(fork, Err(ClientError::NoSuchRevision)), "{fork:?}");
        assert!(matches!(
            other.forget(head),
            Err(ClientError::NoSuchRevision)
        ));
    }
    runtime.shutdown().unwrap();
}

#[test]
fn what_was_published_since_is_merged_across_shards() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let (upstream, fork) = (named("upstream", 0), named("fork", 1));
    let mut up = attach(runtime.session(), &upstream);
    let mut model = fill(&mut up, 3, 300);
    checkpoint(&mut up);
    up.publish("main", Revision::Head, false).unwrap();
    let mut down = attach(runtime.session(), &fork);
    down.branch("work", published(&upstream, "main")).unwrap();
    down.switch("work").unwrap();
    down.put(b"down", b"own work").unwrap();
    checkpoint(&mut down);
    // Several checkpoints later: those between are no one's to read, and yet the base is found.
    for no in 0..5u8 {
        up.put(&[b'u', no], &[no; 50]).unwrap();
        model.insert(vec![b'u', no], vec![no; 50]);
        checkpoint(&mut up);
    }
    up.publish("main", Revision::Head, true).unwrap();
    let merged = down
        .merge(published(&upstream, "main"), &[], &NewCheckpoint::default())
        .unwrap();
    assert!(matches!(merged, Merged::Merged(_)), "{merged:?}");
    model.insert(b"down".to_vec(), b"own work".to_vec());
    assert_eq!(state(&mut down), model);
    let again = down
        .merge(published(&upstream, "main"), &[], &NewCheckpoint::default())
        .unwrap();
    assert_eq!(again, Merged::Nothing);
    runtime.shutdown().unwrap();
}

#[test]
fn a_copy_starves_nobody_and_ends_with_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let (owner, far, busy) = (named("owner", 0), named("far", 1), named("busy", 1));
    let mut lane = attach(runtime.session(), &owner);
    let pairs: Vec<_> = (0..20_000u32)
        .map(|no| (format!("k{no:08}").into_bytes(), vec![no as u8; 500]))
        .collect();
    for pairs in pairs.chunks(100) {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| (&key[..], &value[..]))
            .collect();
        lane.multi_put(&pairs, Some(Durability::Volatile)).unwrap();
    }
    checkpoint(&mut lane);
    lane.publish("all", Revision::Head, false).unwrap();
    let session = Session::connect(runtime.socket()).unwrap();
    // One that dies in the middle of it.
    let doomed = {
        let session = Session::connect(runtime.socket()).unwrap();
        let far = far.clone();
        let owner = owner.clone();
        std::thread::spawn(move || {
            let mut lane = session.attach(&far, Attach::default()).unwrap();
            let answer = lane.branch("never", published(&owner, "all"));
            drop(lane);
            answer.map(|_| ())
        })
    };
    let copies = {
        let (far, owner) = (far.clone(), owner.clone());
        std::thread::spawn(move || {
            let mut lane = session.attach(&far, Attach::default()).unwrap();
            lane.branch("copy", published(&owner, "all")).unwrap();
            lane.switch("copy").unwrap();
            lane.scan(b"", b"", 10).unwrap().keys.len()
        })
    };
    let mut other = attach(runtime.session(), &busy);
    let mut served = 0u32;
    while !copies.is_finished() {
        other.put(b"count", &served.to_le_bytes()).unwrap();
        served += 1;
    }
    assert_eq!(copies.join().unwrap(), 10);
    doomed.join().unwrap().unwrap();
    assert!(served > 20, "{served}");
    let mut lane = attach(runtime.session(), &far);
    lane.switch("copy").unwrap();
    assert_eq!(
        value_of(&mut lane, b"k00019999").unwrap().unwrap(),
        vec![19_999u32 as u8; 500]
    );
    runtime.shutdown().unwrap();
}

#[test]
fn agents_are_made_listed_described_and_terminated() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let session = Session::connect(runtime.socket()).unwrap();
    let mut names: Vec<String> = (0..100).map(|no| format!("agent-{no:03}")).collect();
    for name in &names {
        assert!(session.create_agent(name, false).unwrap());
        assert!(!session.create_agent(name, false).unwrap());
    }
    let mut found = Vec::new();
    let (mut after, mut pages) = (Some(String::new()), 0);
    while let Some(name) = after {
        let page = session.agents(&name, 7).unwrap();
        assert!(page.items.len() <= 7);
        found.extend(page.items.into_iter().map(|item| item.name));
        (after, pages) = (page.next, pages + 1);
    }
    assert!(pages >= 15);
    assert_eq!(found, names);
    let mut lane = attach(runtime.session(), &names[3]);
    lane.put(b"a", &[1; 1000]).unwrap();
    lane.put(b"b", &[2; 1000]).unwrap();
    let head = checkpoint(&mut lane);
    lane.publish("v1", Revision::Head, false).unwrap();
    lane.branch("try", Revision::Head).unwrap();
    lane.fork(Revision::Head).unwrap();
    lane.put(b"c", b"3").unwrap();
    let info = session.describe_agent(&names[3]).unwrap();
    assert_eq!(
        (&*info.name, info.shard),
        (&*names[3], owner(names[3].as_bytes(), 2).0)
    );
    assert_eq!((info.lanes, info.branches, info.forks), (1, 2, 1));
    assert_eq!((info.tags, info.published, info.suspended), (1, 1, false));
    let main = &info.heads[0];
    assert_eq!((&*main.name, main.keys, main.changes), ("main", Some(2), 1));
    assert_eq!(main.head, Some(*head.as_bytes()));
    assert!(info.window_bytes > 0 && info.l2_bytes > 2000 && info.index_bytes > 0);

    assert_eq!(
        refused(session.terminate_agent(&names[3], false)),
        RefusalCode::InUse
    );
    assert_eq!(
        refused(session.suspend_agent(&names[3])),
        RefusalCode::InUse
    );
    session.terminate_agent(&names[3], true).unwrap();
    let closed = lane.put(b"a", b"lost");
    assert!(
        matches!(closed, Err(ClientError::Closed { .. })),
        "{closed:?}"
    );
    assert_eq!(
        refused(session.describe_agent(&names[3])),
        RefusalCode::NoSuchAgent
    );
    assert_eq!(
        refused(session.terminate_agent(&names[3], true)),
        RefusalCode::NoSuchAgent
    );
    session.terminate_agent(&names[4], false).unwrap();
    let mut anew = attach(runtime.session(), &names[3]);
    assert_eq!(value_of(&mut anew, b"a").unwrap(), None);
    assert_eq!(anew.describe().unwrap().head, None);
    anew.put(b"a", b"anew").unwrap();
    drop((anew, lane));
    assert!(refused(session.describe_agent("")) == RefusalCode::Protocol);
    runtime.shutdown().unwrap();
    let runtime = start(dir.path());
    let mut lane = attach(runtime.session(), &names[3]);
    assert_eq!(
        state(&mut lane),
        BTreeMap::from([(b"a".to_vec(), b"anew".to_vec())])
    );
    let gone = names.remove(4);
    assert_eq!(
        refused(runtime.session().describe_agent(&gone)),
        RefusalCode::NoSuchAgent
    );
    let page = runtime.session().agents("agent-002", 2).unwrap();
    let listed: Vec<_> = page.items.iter().map(|item| &*item.name).collect();
    assert_eq!(listed, ["agent-003", "agent-005"]);
    runtime.shutdown().unwrap();
}

#[test]
fn a_suspended_agent_takes_no_memory_and_its_hot_keys_come_back_first() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), 1)).unwrap();
    let session = runtime.session();
    let value = |no: u32| [&no.to_le_bytes()[..], &[7; 1000]].concat();
    let mut lane = attach(session, "sleeper");
    for no in 0..2000u32 {
        lane.put(&no.to_le_bytes(), &value(no)).unwrap();
    }
    checkpoint(&mut lane);
    lane.put(b"unsaved", b"kept").unwrap();
    // The window holds no value: every read asks the shard, which shows how it was served.
    let hot: Vec<u32> = (0..40).map(|no| no * 37).collect();
    let read = |lane: &mut Lane, no: u32| {
        let main = lane.describe().unwrap().no;
        let mut read = Vec::new();
        let found = lane.on(main).get(&no.to_le_bytes(), &mut read).unwrap();
        assert_eq!(read, value(no));
        found.unwrap().tier
    };
    for _ in 0..5 {
        hot.iter().for_each(|&no| _ = read(&mut lane, no));
    }
    let awake = session.describe_agent("sleeper").unwrap();
    assert!(awake.l2_bytes > 1_000_000, "{awake:?}");
    drop(lane);
    let suspended = wait_for("the lane is gone", || session.suspend_agent("sleeper").ok());
    assert!(suspended.hot_keys >= 40, "{suspended:?}");
    assert!(
        suspended.kept_bytes < awake.index_bytes / 10,
        "{suspended:?} {awake:?}"
    );
    let asleep = wait_for("memory is given back", || {
        let info = session.describe_agent("sleeper").unwrap();
        (info.l2_bytes == 0 && runtime.memory().l2_bytes == 0).then_some(info)
    });
    assert!(asleep.suspended && asleep.index_bytes <= suspended.kept_bytes);
    assert!(session.agents("", 0).unwrap().items[0].suspended);
    let again = session.suspend_agent("sleeper").unwrap();
    assert_eq!(again.kept_bytes, suspended.kept_bytes);
    runtime.shutdown().unwrap();

    let runtime = Runtime::start(config(dir.path(), 1)).unwrap();
    let session = runtime.session();
    assert!(session.describe_agent("sleeper").unwrap().suspended);
    let mut lane = attach(session, "sleeper");
    wait_for("the hot keys are back", || {
        let info = session.describe_agent("sleeper").unwrap();
        let all = u64::from(suspended.hot_keys) * 1000;
        (!info.suspended && info.l2_bytes >= all).then_some(())
    });
    let before = runtime.stats();
    for &no in &hot {
        assert_eq!(read(&mut lane, no), helios::agent::Tier::L2, "{no}");
    }
    let after = runtime.stats();
    assert_eq!(after.l2_hits - before.l2_hits, hot.len() as u64);
    assert_eq!(after.cold_reads, before.cold_reads);
    assert_eq!(value_of(&mut lane, b"unsaved").unwrap().unwrap(), b"kept");
    session.resume_agent("sleeper").unwrap();
    assert_eq!(
        refused(session.resume_agent("nobody")),
        RefusalCode::NoSuchAgent
    );
    runtime.shutdown().unwrap();
}

#[test]
fn what_agents_do_is_told_to_whoever_takes_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path(), 1)).unwrap();
    let session = runtime.session();
    session.create_agent("unheard", false).unwrap();
    let mut events = runtime.access_events(ShardNo(0)).unwrap();
    assert!(runtime.access_events(ShardNo(0)).is_none(), "taken once");
    assert!(runtime.access_events(ShardNo(1)).is_none());
    let mut lane = attach(session, "heard");
    lane.put_with(b"a", b"1", PutOptions::default()).unwrap();
    checkpoint(&mut lane);
    lane.branch("b", Revision::Head).unwrap();
    lane.restore(Revision::Empty, false).unwrap();
    lane.merge(Revision::Branch("b"), &[], &NewCheckpoint::default())
        .unwrap();
    drop(lane);
    wait_for("the lane is gone", || session.suspend_agent("heard").ok());
    session.resume_agent("heard").unwrap();
    session.terminate_agent("heard", false).unwrap();
    let told: Vec<_> = std::iter::from_fn(|| events.take()).collect();
    let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
    let wanted = [
        AccessKind::Create,
        AccessKind::Checkpoint,
        AccessKind::Branch,
        AccessKind::Restore,
        AccessKind::Merge,
        AccessKind::Suspend,
        AccessKind::Resume,
        AccessKind::Terminate,
    ];
    assert_eq!(kinds, wanted);
    assert!(told.iter().all(|event| event.agent == told[0].agent));
    assert!(told.is_sorted_by_key(|event| event.time_ns));
    assert_eq!((events.lost(), runtime.stats().access_events_lost), (0, 0));
    runtime.shutdown().unwrap();
}

/// Adds one to a counter by compare-and-swap; what it was raised to.
fn raise(lane: &mut Lane, key: &[u8]) -> Result<u64, ClientError> {
    let mut bytes = Vec::new();
    loop {
        let found = lane.get(key, &mut bytes)?;
        let current = found.map_or(0, |_| u64::from_le_bytes(bytes[..8].try_into().unwrap()));
        let expect = match found {
            None => Expect::Absent,
            Some(_) => Expect::Value(ObjectId::of_blob(&bytes)),
        };
        let options = PutOptions {
            durability: None,
            expect: Some(expect),
        };
        match lane.put_with(key, &(current + 1).to_le_bytes(), options) {
            Ok(_) => return Ok(current + 1),
            Err(ClientError::Stale { .. } | ClientError::Busy { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hammers an agent through one lane until told to stop: a counter shared by all, one of its own, keys of
/// its own. What was acknowledged of it.
fn hammer(mut lane: Lane, no: u64, stop: &AtomicBool) -> (u64, BTreeMap<Vec<u8>, Vec<u8>>) {
    let (mut raised, mut own) = (0, BTreeMap::new());
    let mut random = Random(no + 1);
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(now) = raise(&mut lane, b"shared") else {
            break;
        };
        raised += 1;
        assert!(now > last, "a counter never falls: {now} after {last}");
        last = now;
        let key = format!("own/{no}/{}", random.below(40)).into_bytes();
        let bytes = 8 + random.below(3000) as usize;
        let value = random.bytes(bytes);
        if lane.put(&key, &value).is_err() {
            // It may be there or not.
            own.remove(&key);
            break;
        }
        own.insert(key.clone(), value.clone());
        match value_of(&mut lane, &key) {
            Ok(found) => assert_eq!(found.as_ref(), Some(&value), "reads are never old"),
            Err(_) => break,
        }
    }
    (raised, own)
}

#[test]
fn an_agent_moves_fifty_times_while_lanes_hammer_it_and_nothing_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let socket = Session::connect(runtime.socket()).unwrap();
    let mut lane = attach(runtime.session(), "mover");
    let model = fill(&mut lane, 5, 200);
    let first = checkpoint(&mut lane);
    lane.put(b"key/000003", b"second").unwrap();
    checkpoint(&mut lane);
    lane.branch("side", Revision::Head).unwrap();
    lane.publish("open", Revision::Checkpoint(*first.as_bytes()), false)
        .unwrap();
    let fork = lane.fork(Revision::Head).unwrap().no;
    lane.on(fork).put(b"private", &[9; 5000]).unwrap();
    let stop = AtomicBool::new(false);
    let home = owner(b"mover", 2).0;
    let (raised, owned) = std::thread::scope(|scope| {
        let hammers: Vec<_> = (0..4)
            .map(|no| {
                let session = if no % 2 == 0 {
                    &socket
                } else {
                    runtime.session()
                };
                let (lane, stop) = (attach(session, "mover"), &stop);
                scope.spawn(move || hammer(lane, no, stop))
            })
            .collect();
        for round in 0..50u16 {
            let to = ShardNo((home + round + 1) % 2);
            // Lanes come and go meanwhile, some in the middle of it.
            let guest = {
                let socket = socket.clone();
                std::thread::spawn(move || {
                    let mut lane = attach(&socket, "mover");
                    raise(&mut lane, b"guests").unwrap()
                })
            };
            socket.migrate_agent("mover", to).unwrap();
            assert_eq!(socket.describe_agent("mover").unwrap().shard, to.0);
            guest.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let mut owned = BTreeMap::new();
        let mut raised = 0;
        for hammer in hammers {
            let (count, own) = hammer.join().unwrap();
            assert!(count > 0);
            raised += count;
            owned.extend(own);
        }
        (raised, owned)
    });
    let counter = |lane: &mut Lane, key: &[u8]| {
        let value = value_of(lane, key).unwrap().unwrap();
        u64::from_le_bytes(value[..8].try_into().unwrap())
    };
    let check = |lane: &mut Lane| {
        assert_eq!(counter(lane, b"shared"), raised);
        assert_eq!(counter(lane, b"guests"), 50);
        for (key, value) in &owned {
            assert_eq!(value_of(lane, key).unwrap().as_ref(), Some(value));
        }
        lane.switch("side").unwrap();
        assert_eq!(state(lane).len(), model.len());
        lane.switch("main").unwrap();
        let old = lane
            .fork(Revision::Checkpoint(*first.as_bytes()))
            .unwrap()
            .no;
        assert_eq!(
            value_of(&mut lane.on(old), b"key/000003").unwrap(),
            model.get(&b"key/000003"[..]).cloned()
        );
        assert_eq!(lane.log(Revision::Head, 0).unwrap().entries.len(), 2);
    };
    assert_eq!(
        value_of(&mut lane.on(fork), b"private").unwrap().unwrap(),
        [9; 5000]
    );
    check(&mut lane);
    // What it published is found where it is.
    for shard in 0..2 {
        let mut other = attach(&socket, &named("reader", shard));
        let fork = other.fork(published("mover", "open")).unwrap().no;
        assert_eq!(state(&mut other.on(fork)), model);
    }
    // Once more away from home, and found there by the next start.
    drop(lane);
    socket.migrate_agent("mover", ShardNo(1 - home)).unwrap();
    assert_eq!(
        refused(socket.migrate_agent("mover", ShardNo(1 - home))),
        RefusalCode::Protocol
    );
    assert_eq!(
        refused(socket.migrate_agent("mover", ShardNo(9))),
        RefusalCode::Protocol
    );
    runtime.shutdown().unwrap();
    let runtime = start(dir.path());
    assert_eq!(
        runtime.session().describe_agent("mover").unwrap().shard,
        1 - home
    );
    let mut lane = attach(runtime.session(), "mover");
    check(&mut lane);
    let names = runtime.session().agents("", 0).unwrap().items;
    assert_eq!(names.iter().filter(|item| item.name == "mover").count(), 1);
    drop(lane);
    runtime.shutdown().unwrap();
}

/// A tree's node that nothing needs any more is in the log as long as its segment has something else, and is found
/// again by a start; the values that it names may have gone with theirs. An agent that comes back needs them all.
#[test]
fn an_agent_that_comes_back_after_a_collection_and_a_restart_has_its_values() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let session = runtime.session();
    let (moved, stays) = (named("moved", 0), named("stays", 0));
    let (mut lane, mut other) = (attach(session, &moved), attach(session, &stays));
    let mut random = Random(41);
    let mut put = |lane: &mut Lane, stem: &str, count: u32| {
        for no in 0..count {
            let key = format!("{stem}/{no}").into_bytes();
            lane.put(&key, &random.bytes(12_000)).unwrap();
        }
    };
    // A segment of values, one with their tree among values that stay, and the beginning of a third.
    put(&mut lane, "value", 330);
    put(&mut other, "before", 60);
    checkpoint(&mut lane);
    put(&mut other, "behind", 300);
    let held = state(&mut lane);
    session.migrate_agent(&moved, ShardNo(1)).unwrap();
    assert!(runtime.collect().segments > 0, "no segment went");
    drop((lane, other));
    runtime.shutdown().unwrap();
    let runtime = start(dir.path());
    let session = runtime.session();
    session.migrate_agent(&moved, ShardNo(0)).unwrap();
    let mut lane = attach(session, &moved);
    assert!(state(&mut lane) == held);
    drop(lane);
    runtime.shutdown().unwrap();
}

/// A move drops uploads that are half done: whoever writes in one call does not see that.
#[test]
fn large_values_are_written_while_their_agent_moves() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path());
    let session = runtime.session();
    let mut lane = attach(session, "mover");
    let home = owner(b"mover", 2).0;
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut random = Random(31);
            while !stop.load(Ordering::Relaxed) {
                let value = random.bytes(600_000);
                lane.put(b"large", &value).unwrap();
                assert!(value_of(&mut lane, b"large").unwrap().unwrap() == value);
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..30u16 {
            let to = ShardNo((home + round + 1) % 2);
            session.migrate_agent("mover", to).unwrap();
            // Some in the middle of a value, and each value meets few of them.
            let before = written.load(Ordering::Relaxed);
            wait_for("another value", || {
                let is_more = written.load(Ordering::Relaxed) > before;
                (is_more || writer.is_finished()).then_some(())
            });
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    drop(lane);
    runtime.shutdown().unwrap();
}

#[test]
fn a_crash_in_a_move_leaves_the_agent_on_one_shard_with_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(77);
    let (mut raised, mut owned) = (0, BTreeMap::<Vec<u8>, Vec<u8>>::new());
    let mut places = [0; 2];
    for round in 0..25u64 {
        let runtime = start(dir.path());
        let session = runtime.session().clone();
        let page = session.agents("", 0).unwrap();
        assert!(page.items.len() <= 1, "{page:?}");
        let mut lane = attach(&session, "mover");
        let place = session.describe_agent("mover").unwrap().shard;
        places[usize::from(place)] += 1;
        for (key, value) in &owned {
            assert_eq!(
                value_of(&mut lane, key).unwrap().as_ref(),
                Some(value),
                "round {round}"
            );
        }
        let found = value_of(&mut lane, b"shared").unwrap();
        let found = found.map_or(0, |it| u64::from_le_bytes(it[..8].try_into().unwrap()));
        // A raise that was not answered may have been done.
        assert!(
            (raised..=raised + 2).contains(&found),
            "round {round}: {found} of {raised}"
        );
        raised = found;
        checkpoint(&mut lane);
        let stop = AtomicBool::new(false);
        let pause = std::time::Duration::from_micros(random.below(30_000));
        std::thread::scope(|scope| {
            let hammers: Vec<_> = (0..2)
                .map(|no| {
                    let (lane, stop) = (attach(&session, "mover"), &stop);
                    scope.spawn(move || hammer(lane, no + 2 * round, stop))
                })
                .collect();
            let mover = {
                let session = session.clone();
                scope.spawn(move || {
                    let mut to = 1 - place;
                    while session.migrate_agent("mover", ShardNo(to)).is_ok() {
                        to = 1 - to;
                    }
                })
            };
            std::thread::sleep(pause);
            drop(runtime);
            mover.join().unwrap();
            for hammer in hammers {
                let (count, own) = hammer.join().unwrap();
                raised += count;
                owned.extend(own);
            }
        });
    }
    assert!(places[0] > 0 && places[1] > 0, "{places:?}");
}
