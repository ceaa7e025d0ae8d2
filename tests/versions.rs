//! Versioned state through lanes: checkpoints, branches, forks, merges, and what a kill leaves of them.

use std::collections::BTreeMap;

use common::{attach as lane, get};
use helios::Runtime;
use helios::client::{
    ClientError, Lane, Merged, NewCheckpoint, Policy, PutOptions, Revision, Session,
};
use helios::config::{Config, Durability};

mod common;

fn config(dir: &std::path::Path) -> Config {
    common::small_config(dir, 1, 64)
}

fn with_runtime(test: impl FnOnce(&Session)) {
    common::with_runtime(config, test);
}

fn checkpoint(lane: &mut Lane) -> helios::id::ObjectId {
    lane.checkpoint(&NewCheckpoint::default()).unwrap().id
}

/// Everything that a scan finds, page by page.
fn all_keys(lane: &mut Lane) -> Vec<Vec<u8>> {
    let (mut keys, mut after) = (Vec::new(), Vec::new());
    loop {
        let page = lane.scan(b"", &after, 7).unwrap();
        keys.extend(page.keys.into_iter().map(|key| key.key));
        if !page.more {
            return keys;
        }
        after = keys.last().unwrap().clone();
    }
}

#[test]
fn a_checkpoint_holds_everything_and_not_only_what_changed() {
    with_runtime(|session| {
        let mut lane = lane(session, "planner");
        for no in 0..100 {
            lane.put(format!("key/{no}").as_bytes(), &[no; 200])
                .unwrap();
        }
        let first = lane.checkpoint(&NewCheckpoint::default()).unwrap();
        assert_eq!((first.keys, first.parents.len()), (100, 0));
        lane.put(b"key/7", b"other").unwrap();
        let second = lane.checkpoint(&NewCheckpoint::default()).unwrap();
        assert_eq!((second.keys, &second.parents[..]), (100, &[first.id][..]));
        assert!(second.new_bytes < first.new_bytes);
        assert_ne!(first.tree, second.tree);
        lane.put(b"key/7", &[7; 200]).unwrap();
        let third = lane.checkpoint(&NewCheckpoint::default()).unwrap();
        assert_eq!(third.tree, first.tree, "equal content has one tree");
        assert_ne!(third.id, first.id);
        assert_eq!(all_keys(&mut lane).len(), 100);
        assert_eq!(get(&mut lane, b"key/99").unwrap(), [99; 200]);
    });
}

#[test]
fn a_restore_is_seen_by_every_lane_at_once() {
    with_runtime(|session| {
        let (mut one, mut two) = (lane(session, "planner"), lane(session, "planner"));
        let empty = checkpoint(&mut one);
        one.put(b"a", b"old").unwrap();
        one.put(b"gone", b"later").unwrap();
        let old = checkpoint(&mut one);
        one.put(b"a", b"new").unwrap();
        one.delete(b"gone").unwrap();
        one.put(b"b", b"only new").unwrap();
        for _ in 0..3 {
            assert_eq!(get(&mut two, b"a").unwrap(), b"new");
        }
        let unsaved = one.restore(Revision::Checkpoint(*old.as_bytes()), false);
        assert!(
            matches!(unsaved, Err(ClientError::Unsaved { changes: 3 })),
            "{unsaved:?}"
        );
        assert_eq!(get(&mut one, b"a").unwrap(), b"new");
        let new = checkpoint(&mut one);
        one.restore(Revision::Checkpoint(*old.as_bytes()), false)
            .unwrap();
        for lane in [&mut one, &mut two] {
            for _ in 0..3 {
                assert_eq!(get(lane, b"a").unwrap(), b"old");
            }
            assert_eq!(get(lane, b"gone").unwrap(), b"later");
            assert_eq!(get(lane, b"b"), None);
            assert_eq!(all_keys(lane), [&b"a"[..], b"gone"]);
        }
        assert_eq!(one.describe().unwrap().head, Some(new), "the head stays");
        one.restore(Revision::Checkpoint(*empty.as_bytes()), false)
            .unwrap();
        assert_eq!(all_keys(&mut two), Vec::<Vec<u8>>::new());
        assert_eq!(get(&mut two, b"a"), None);
        one.restore(Revision::Head, false).unwrap();
        assert_eq!(get(&mut two, b"b").unwrap(), b"only new");
    });
}

#[test]
fn branches_are_apart_and_lanes_are_on_one() {
    with_runtime(|session| {
        let (mut one, mut two) = (lane(session, "planner"), lane(session, "planner"));
        one.put(b"a", b"main").unwrap();
        let base = checkpoint(&mut one);
        let tried = one.branch("try/1", Revision::Head).unwrap();
        assert_eq!((tried.head, tried.changes), (Some(base), 0));
        assert!(matches!(
            one.branch("try/1", Revision::Head),
            Err(ClientError::NameTaken)
        ));
        assert!(matches!(
            one.branch("-bad", Revision::Head),
            Err(ClientError::BadName(_))
        ));
        two.switch("try/1").unwrap();
        two.put(b"a", b"tried").unwrap();
        two.put(b"b", b"tried").unwrap();
        for _ in 0..3 {
            assert_eq!(get(&mut one, b"a").unwrap(), b"main");
            assert_eq!(get(&mut two, b"a").unwrap(), b"tried");
        }
        assert_eq!(get(&mut one, b"b"), None);
        assert!(matches!(
            one.delete_branch("try/1", false),
            Err(ClientError::InUse { lanes: 1 })
        ));
        two.switch("main").unwrap();
        assert_eq!(get(&mut two, b"a").unwrap(), b"main");
        assert!(matches!(
            one.delete_branch("try/1", false),
            Err(ClientError::Unsaved { changes: 2 })
        ));
        let names: Vec<_> = one
            .branches("")
            .unwrap()
            .items
            .into_iter()
            .map(|b| b.name)
            .collect();
        assert_eq!(names, ["main", "try/1"]);
        assert_eq!(get(&mut one.on(tried.no), b"b").unwrap(), b"tried");
        one.delete_branch("try/1", true).unwrap();
        assert!(matches!(
            two.switch("try/1"),
            Err(ClientError::NoSuchBranch)
        ));
        assert!(matches!(
            one.delete_branch("main", true),
            Err(ClientError::InUse { .. })
        ));
        one.rename_branch("trunk").unwrap();
        assert_eq!(two.describe().unwrap().name, "trunk");
    });
}

#[test]
fn forks_are_private_and_end_with_their_lane() {
    with_runtime(|session| {
        let mut one = lane(session, "planner");
        one.put(b"a", b"base").unwrap();
        one.put(b"b", b"base").unwrap();
        checkpoint(&mut one);
        let forks: Vec<_> = (0..50)
            .map(|_| one.fork(Revision::Head).unwrap().no)
            .collect();
        for (no, &fork) in forks.iter().enumerate() {
            let mut on = one.on(fork);
            let written = on.put(b"a", &[no as u8; 300]).unwrap();
            assert_eq!(written.durability, Durability::Volatile);
            on.delete(b"b").unwrap();
        }
        for (no, &fork) in forks.iter().enumerate() {
            let mut on = one.on(fork);
            assert_eq!(get(&mut on, b"a").unwrap(), [no as u8; 300]);
            assert_eq!(get(&mut on, b"b"), None);
            assert_eq!(all_keys(&mut on), [b"a"]);
        }
        assert_eq!(get(&mut one, b"a").unwrap(), b"base");
        let kept = one.keep(forks[3], "kept").unwrap();
        assert_eq!((kept.name.as_str(), kept.changes), ("kept", 2));
        one.discard(forks[4]).unwrap();
        assert!(matches!(
            one.discard(forks[4]),
            Err(ClientError::NoSuchBranch)
        ));
        assert!(matches!(
            one.on(forks[4]).put(b"a", b""),
            Err(ClientError::NoSuchBranch)
        ));
        drop(one);
        let mut two = lane(session, "planner");
        assert!(matches!(
            two.on(forks[5]).put(b"a", b""),
            Err(ClientError::NoSuchBranch)
        ));
        two.switch("kept").unwrap();
        assert_eq!(get(&mut two, b"a").unwrap(), [3; 300]);
        assert_eq!(get(&mut two, b"b"), None);
    });
}

#[test]
fn histories_are_listed_tagged_compared_and_merged() {
    with_runtime(|session| {
        let mut lane = lane(session, "planner");
        for no in 0..50u8 {
            lane.put(&[b'k', no], &[no; 100]).unwrap();
        }
        let base = checkpoint(&mut lane);
        lane.branch("theirs", Revision::Head).unwrap();
        lane.put(b"k\x01", b"ours").unwrap();
        lane.put(b"only/ours", b"1").unwrap();
        let ours = checkpoint(&mut lane);
        lane.switch("theirs").unwrap();
        lane.put(b"k\x02", b"theirs").unwrap();
        lane.delete(b"k\x03").unwrap();
        let theirs = checkpoint(&mut lane);
        lane.switch("main").unwrap();
        let counts = lane
            .diff_counts(
                Revision::Checkpoint(*ours.as_bytes()),
                Revision::Branch("theirs"),
            )
            .unwrap();
        assert_eq!((counts.added, counts.removed, counts.changed), (0, 2, 2));
        let merged = lane
            .merge(Revision::Branch("theirs"), &[], &NewCheckpoint::default())
            .unwrap();
        let Merged::Merged(made) = merged else {
            panic!("{merged:?}");
        };
        assert_eq!(made.parents, [ours, theirs]);
        assert_eq!(get(&mut lane, b"k\x01").unwrap(), b"ours");
        assert_eq!(get(&mut lane, b"k\x02").unwrap(), b"theirs");
        assert_eq!(get(&mut lane, b"k\x03"), None);
        assert_eq!(get(&mut lane, b"only/ours").unwrap(), b"1");
        let again = lane.merge(Revision::Branch("theirs"), &[], &NewCheckpoint::default());
        assert_eq!(again.unwrap(), Merged::Nothing);
        // The other way round there is nothing of its own: it steps ahead.
        lane.switch("theirs").unwrap();
        let ahead = lane.merge(Revision::Branch("main"), &[], &NewCheckpoint::default());
        assert_eq!(ahead.unwrap(), Merged::FastForward { head: made.id });
        assert_eq!(get(&mut lane, b"k\x01").unwrap(), b"ours");
        lane.tag("v1", Revision::Head, false).unwrap();
        assert!(matches!(
            lane.tag("v1", Revision::Checkpoint(*base.as_bytes()), false),
            Err(ClientError::NameTaken)
        ));
        assert_eq!(lane.tags("").unwrap().items, [("v1".to_owned(), made.id)]);
        let mut listed = Vec::new();
        let mut page = lane.log(Revision::Tag("v1"), 1).unwrap();
        while !page.entries.is_empty() {
            listed.extend(page.entries.iter().map(|entry| entry.id));
            page = lane.log_after(&page, 1).unwrap();
        }
        assert_eq!(listed, [made.id, theirs, ours, base]);
        let whole = lane.log(Revision::Tag("v1"), 0).unwrap();
        assert_eq!((whole.entries.len(), whole.next.len()), (4, 0));
        lane.untag("v1").unwrap();
        assert!(matches!(
            lane.log(Revision::Tag("v1"), 0),
            Err(ClientError::NoSuchRevision)
        ));
    });
}

#[test]
fn a_merge_with_conflicts_changes_nothing_until_a_rule_decides() {
    with_runtime(|session| {
        let mut lane = lane(session, "planner");
        lane.put(b"a/1", b"base").unwrap();
        lane.put(b"b/1", b"base").unwrap();
        checkpoint(&mut lane);
        lane.branch("theirs", Revision::Head).unwrap();
        lane.put(b"a/1", b"ours").unwrap();
        lane.delete(b"b/1").unwrap();
        let ours = checkpoint(&mut lane);
        lane.switch("theirs").unwrap();
        lane.put(b"a/1", b"theirs").unwrap();
        lane.put(b"b/1", b"theirs").unwrap();
        let theirs = checkpoint(&mut lane);
        lane.switch("main").unwrap();
        let new = NewCheckpoint::default();
        let refused = lane.merge(Revision::Branch("theirs"), &[], &new);
        let Err(ClientError::Conflicts { listed, more }) = refused else {
            panic!("{refused:?}");
        };
        assert!(!more);
        let keys: Vec<_> = listed.iter().map(|conflict| &conflict.key[..]).collect();
        assert_eq!(keys, [b"a/1", b"b/1"]);
        assert!(listed[1].ours.is_none() && listed[1].theirs.is_some());
        assert_eq!(lane.describe().unwrap().head, Some(ours));
        assert_eq!(get(&mut lane, b"a/1").unwrap(), b"ours");
        let stale = NewCheckpoint {
            expect: Some(Some(theirs)),
            ..new.clone()
        };
        let refused = lane.merge(Revision::Branch("theirs"), &[(b"", Policy::Ours)], &stale);
        assert!(
            matches!(refused, Err(ClientError::StaleHead { current }) if current == Some(ours))
        );
        let rules = [(&b"a/"[..], Policy::Ours), (&b"b/"[..], Policy::Theirs)];
        lane.merge(Revision::Branch("theirs"), &rules, &new)
            .unwrap();
        assert_eq!(get(&mut lane, b"a/1").unwrap(), b"ours");
        assert_eq!(get(&mut lane, b"b/1").unwrap(), b"theirs");
    });
}

#[test]
fn checkpoints_carry_metadata_and_belong_to_their_agent() {
    with_runtime(|session| {
        let mut lane_a = lane(session, "a");
        lane_a.put(b"k", b"v").unwrap();
        let new = NewCheckpoint {
            opaque: b"\x00\x01",
            pairs: &[("step", "7")],
            durability: Some(Durability::Power),
            expect: Some(None),
        };
        let made = lane_a.checkpoint(&new).unwrap();
        assert_eq!(made.durability, Durability::Power);
        let entry = lane_a.log(Revision::Head, 0).unwrap().entries.remove(0);
        assert_eq!(
            (entry.agent.as_str(), &entry.opaque[..]),
            ("a", &[0, 1][..])
        );
        assert_eq!(entry.pairs, [("step".to_owned(), "7".to_owned())]);
        assert!(matches!(
            lane_a.checkpoint(&new),
            Err(ClientError::StaleHead { .. })
        ));
        let large = vec![0; 17 << 10];
        let large = NewCheckpoint {
            opaque: &large,
            ..NewCheckpoint::default()
        };
        assert!(matches!(
            lane_a.checkpoint(&large),
            Err(ClientError::BadMetadata)
        ));
        let mut lane_b = lane(session, "b");
        let theirs = lane_b.restore(Revision::Checkpoint(*made.id.as_bytes()), false);
        assert!(matches!(theirs, Err(ClientError::NoSuchRevision)));
        lane_b.put(b"k", b"v").unwrap();
        let same = lane_b.checkpoint(&NewCheckpoint::default()).unwrap();
        assert_eq!(
            same.tree, made.tree,
            "equal content has one tree, whoever made it"
        );
    });
}

/// Plain maps with full copies, beside the runtime, through random operations and restarts.
#[test]
fn random_histories_agree_with_plain_maps_across_restarts() {
    type State = BTreeMap<Vec<u8>, Vec<u8>>;
    let dir = tempfile::tempdir().unwrap();
    let mut random = common::Random(11);
    let mut branches: BTreeMap<String, State> = BTreeMap::from([("main".into(), State::new())]);
    let mut saved: Vec<(helios::id::ObjectId, State)> = Vec::new();
    for round in 0..6 {
        let runtime = Runtime::start(config(dir.path())).unwrap();
        let mut lane = lane(runtime.session(), "planner");
        for step in 0..400 {
            let names: Vec<_> = branches.keys().cloned().collect();
            let on = names[random.below(names.len() as u64) as usize].clone();
            lane.switch(&on).unwrap();
            let state = branches.get_mut(&on).unwrap();
            let key = format!("k/{}", random.below(60)).into_bytes();
            match random.below(12) {
                0..5 => {
                    let length = [10, 300, 5000, 30_000, 100_000][random.below(5) as usize];
                    let value = random.bytes(length);
                    lane.put_with(&key, &value, PutOptions::default()).unwrap();
                    state.insert(key, value);
                }
                5 => {
                    let was = lane.delete(&key).unwrap();
                    assert_eq!(was, state.remove(&key).is_some());
                }
                6 => {
                    let made = lane.checkpoint(&NewCheckpoint::default()).unwrap();
                    assert_eq!(made.keys, state.len() as u64);
                    saved.push((made.id, state.clone()));
                }
                7 if !saved.is_empty() => {
                    let at = random.below(saved.len() as u64) as usize;
                    let (id, old) = &saved[at];
                    lane.restore(Revision::Checkpoint(*id.as_bytes()), true)
                        .unwrap();
                    *state = old.clone();
                }
                8 if names.len() < 5 && !saved.is_empty() => {
                    let (id, old) = &saved[random.below(saved.len() as u64) as usize];
                    let name = format!("b/{round}/{step}");
                    lane.branch(&name, Revision::Checkpoint(*id.as_bytes()))
                        .unwrap();
                    branches.insert(name, old.clone());
                }
                9 => {
                    let keys: Vec<_> = state.keys().cloned().collect();
                    assert_eq!(all_keys(&mut lane), keys);
                }
                _ => assert_eq!(get(&mut lane, &key), state.get(&key).cloned()),
            }
        }
        drop(lane);
        if round % 2 == 0 {
            runtime.shutdown().unwrap();
        } else {
            // What a kill leaves.
            drop(runtime);
        }
    }
}

/// Bytes of all segment files below a data directory, but of one that is made ahead and holds no record.
fn segment_bytes(dir: &std::path::Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sum += segment_bytes(&path);
        } else if path.extension().is_some_and(|ending| ending == "seg") {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.starts_with(b"HELIOSEG") {
                sum += bytes.len() as u64;
            }
        }
    }
    sum
}

/// Text as agents write it: a message of a chat, as JSON.
fn message(random: &mut common::Random, no: usize, bytes: usize) -> Vec<u8> {
    let mut text = format!(r#"{{"id":"{no:08}","role":"assistant","content":""#);
    while text.len() < bytes - 3 {
        text.push((b'a' + random.below(26) as u8) as char);
    }
    text.push_str("\"},");
    text.into_bytes()
}

const CHAT_BYTES: usize = 446_000;
const CHAT_STEPS: usize = 800;

/// What the files of a history take, as a multiple of its last state: 200 turns of four steps, a checkpoint
/// after each, all kept.
fn growth(key: impl Fn(usize) -> Vec<u8>, whole: bool) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let mut lane = lane(runtime.session(), "planner");
    let mut random = common::Random(5);
    let (mut chat, mut heads) = (Vec::new(), Vec::new());
    for step in 0..CHAT_STEPS {
        let from = chat.len();
        chat.extend(message(&mut random, step, CHAT_BYTES / CHAT_STEPS));
        let value = if whole { &chat[..] } else { &chat[from..] };
        lane.put(&key(step), value).unwrap();
        heads.push(checkpoint(&mut lane));
    }
    // All are there, also after a restart.
    drop(lane);
    runtime.shutdown().unwrap();
    let bytes = segment_bytes(dir.path());
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let mut lane = self::lane(runtime.session(), "planner");
    for step in [3, 399, 799] {
        lane.restore(Revision::Checkpoint(*heads[step].as_bytes()), false)
            .unwrap();
        let each = CHAT_BYTES / CHAT_STEPS;
        let from = if whole { 0 } else { step * each };
        let wanted = &chat[from..(step + 1) * each];
        assert!(get(&mut lane, &key(step)).unwrap() == wanted, "{step}");
    }
    drop(lane);
    runtime.shutdown().unwrap();
    bytes as f64 / chat.len() as f64
}

/// Where each state is stored whole, 800 versions of a chat that grows take 400 times its size.
#[test]
fn a_history_of_a_growing_value_takes_little_more_than_what_was_appended() {
    let one_value = growth(|_| b"chat".to_vec(), true);
    let one_key_each = growth(|step| format!("chat/{step:08}").into_bytes(), false);
    println!("one growing value: {one_value:.1}x; one key per message: {one_key_each:.1}x");
    assert!(one_value < 16.0, "{one_value}");
    assert!(one_key_each < 6.0, "{one_key_each}");
}

/// The objects of a value that only old checkpoints name stay, through every way of overwriting it.
#[test]
fn large_values_that_only_checkpoints_name_outlive_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = common::Random(9);
    let value = random.bytes(700_000);
    let old = {
        let runtime = Runtime::start(config(dir.path())).unwrap();
        let mut lane = lane(runtime.session(), "planner");
        lane.put(b"big", &value).unwrap();
        let old = checkpoint(&mut lane);
        lane.put(b"big", &random.bytes(300_000)).unwrap();
        checkpoint(&mut lane);
        lane.delete(b"big").unwrap();
        checkpoint(&mut lane);
        drop(lane);
        // What a kill leaves.
        drop(runtime);
        old
    };
    for _ in 0..2 {
        let runtime = Runtime::start(config(dir.path())).unwrap();
        let mut lane = lane(runtime.session(), "planner");
        lane.restore(Revision::Checkpoint(*old.as_bytes()), true)
            .unwrap();
        assert!(get(&mut lane, b"big").unwrap() == value);
        lane.restore(Revision::Head, true).unwrap();
        assert_eq!(get(&mut lane, b"big"), None);
        drop(lane);
        runtime.shutdown().unwrap();
    }
}

#[test]
fn equal_values_have_equal_ids_however_they_were_written() {
    with_runtime(|session| {
        let mut lane = lane(session, "planner");
        let mut random = common::Random(13);
        for length in [16_384, 16_385, 20_480, 60_000] {
            let value = random.bytes(length);
            let put = lane.put(b"put", &value).unwrap();
            let fork = lane.fork(Revision::Head).unwrap().no;
            let forked = lane.on(fork).put(b"forked", &value).unwrap();
            assert!(get(&mut lane.on(fork), b"forked").unwrap() == value);
            lane.discard(fork).unwrap();
            let many = lane.multi_put(&[(b"many", &value)], None).unwrap().unwrap();
            assert_eq!((forked.id, many.id), (put.id, put.id), "{length}");
            assert!(get(&mut lane, b"many").unwrap() == value);
        }
    });
}

#[test]
fn the_largest_value_comes_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let value = common::Random(17).bytes(64 << 20);
    let config = || Config {
        segment_bytes: 16 << 20,
        memory_max: 256 << 20,
        ..config(dir.path())
    };
    let runtime = Runtime::start(config()).unwrap();
    let mut lane = lane(runtime.session(), "planner");
    let first = lane.put(b"big", &value).unwrap();
    assert!(get(&mut lane, b"big").unwrap() == value);
    let again = lane.put(b"again", &value).unwrap();
    assert_eq!(again.id, first.id);
    drop(lane);
    runtime.shutdown().unwrap();
    let bytes = segment_bytes(dir.path());
    assert!(bytes < (64 << 20) / 100 * 105, "{bytes}");
    let runtime = Runtime::start(config()).unwrap();
    let mut lane = self::lane(runtime.session(), "planner");
    assert!(get(&mut lane, b"again").unwrap() == value);
    drop(lane);
    runtime.shutdown().unwrap();
}
