//! Versioned state under many lanes at once: races for a head, forks that are dropped while they are
//! written, readers beside restores; the laws of merge and diff; a model with full copies.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{Random, attach as lane, get};
use helios::Runtime;
use helios::client::{
    ClientError, Lane, Merged, NewCheckpoint, Policy, PutOptions, Revision, Session,
};
use helios::config::Config;
use helios::id::{BranchNo, ObjectId};
use helios::shard::collect::CollectEnd;

mod common;

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn config(dir: &std::path::Path) -> Config {
    common::small_config(dir, 4, 96)
}

fn with_runtime(test: impl FnOnce(&Session)) {
    common::with_runtime(config, test);
}

fn of(id: ObjectId) -> Revision<'static> {
    Revision::Checkpoint(*id.as_bytes())
}

fn new() -> NewCheckpoint<'static> {
    NewCheckpoint::default()
}

fn all(lane: &mut Lane) -> State {
    let (mut state, mut after) = (State::new(), Vec::new());
    loop {
        let page = lane.scan(b"", &after, 0).unwrap();
        for found in page.keys {
            let value = get(lane, &found.key).expect("what a scan finds is there");
            after.clone_from(&found.key);
            state.insert(found.key, value);
        }
        if !page.more {
            return state;
        }
    }
}

/// Makes the branch of the lane hold `state`, and a checkpoint of it.
fn write(lane: &mut Lane, state: &State, random: &mut Random) -> ObjectId {
    let held = all(lane);
    let mut steps: Vec<(Vec<u8>, Option<Vec<u8>>)> = held
        .keys()
        .filter(|key| !state.contains_key(*key))
        .map(|key| (key.clone(), None))
        .collect();
    let puts = state
        .iter()
        .filter(|(key, value)| held.get(*key) != Some(value));
    steps.extend(puts.map(|(key, value)| (key.clone(), Some(value.clone()))));
    for at in (1..steps.len()).rev() {
        steps.swap(at, random.below(at as u64 + 1) as usize);
    }
    for (key, value) in steps {
        match value {
            Some(value) => _ = lane.put_with(&key, &value, PutOptions::default()).unwrap(),
            None => assert!(lane.delete(&key).unwrap()),
        }
    }
    lane.checkpoint(&new()).unwrap().id
}

fn random_state(random: &mut Random, from: &State, changes: u64) -> State {
    let mut state = from.clone();
    for _ in 0..changes {
        let key = format!("p/{}", random.below(120)).into_bytes();
        if random.below(3) == 0 {
            state.remove(&key);
        } else {
            let length = [3, 40, 700, 9000][random.below(4) as usize];
            state.insert(key, random.bytes(length));
        }
    }
    state
}

#[test]
fn sixteen_lanes_race_for_one_head_and_nothing_is_lost() {
    with_runtime(|session| {
        let mut first = lane(session, "planner");
        first.put(b"base", b"x").unwrap();
        let base = first.checkpoint(&new()).unwrap().id;
        let stale = AtomicU64::new(0);
        thread::scope(|scope| {
            for no in 0..16u8 {
                let stale = &stale;
                scope.spawn(move || {
                    let mut lane = lane(session, "planner");
                    let fork = lane.fork(of(base)).unwrap().no;
                    let mut on = lane.on(fork);
                    for key in 0..5u8 {
                        on.put(&[b'k', no, key], &[no; 700]).unwrap();
                    }
                    let done = on.checkpoint(&new()).unwrap().id;
                    drop(on);
                    loop {
                        let head = lane.describe().unwrap().head;
                        let expect = NewCheckpoint {
                            expect: Some(head),
                            ..new()
                        };
                        // Time for others to come first.
                        thread::yield_now();
                        match lane.merge(of(done), &[], &expect) {
                            Ok(merged) => break assert_ne!(merged, Merged::Nothing),
                            Err(ClientError::StaleHead { current }) => {
                                assert_ne!(current, head);
                                stale.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => panic!("{error}"),
                        }
                        // The fork is usable all the same.
                        assert_eq!(get(&mut lane.on(fork), &[b'k', no, 0]).unwrap(), [no; 700]);
                    }
                });
            }
        });
        let state = all(&mut first);
        assert_eq!(state.len(), 1 + 16 * 5);
        for no in 0..16u8 {
            assert_eq!(state[&vec![b'k', no, 4]], [no; 700]);
        }
        // One step ahead and 15 merges; 16 checkpoints of forks; the base.
        let log = first.log(Revision::Head, 0).unwrap();
        assert_eq!((log.entries.len(), log.next.len()), (15 + 16 + 1, 0));
        let merges = log.entries.iter().filter(|entry| entry.parents.len() == 2);
        assert_eq!(merges.count(), 15);
        assert_eq!(log.entries.last().unwrap().id, base);
        println!("stale heads: {}", stale.into_inner());
    });
}

#[test]
fn thirty_two_forks_of_one_lane_merge_into_branches_of_their_own() {
    with_runtime(|session| {
        let mut lane = lane(session, "planner");
        lane.put(b"base", b"x").unwrap();
        lane.checkpoint(&new()).unwrap();
        let forks: Vec<BranchNo> = (0..32)
            .map(|_| lane.fork(Revision::Head).unwrap().no)
            .collect();
        for write in 0..100u8 {
            for (no, &fork) in forks.iter().enumerate() {
                lane.on(fork).put(&[b'k', write], &[no as u8; 100]).unwrap();
            }
        }
        for (no, &fork) in forks.iter().enumerate() {
            let name = format!("b{no}");
            let to = lane.branch(&name, Revision::Head).unwrap().no;
            let made = lane.on(fork).checkpoint(&new()).unwrap();
            assert_eq!(made.keys, 101);
            let merged = lane.on(to).merge(of(made.id), &[], &new()).unwrap();
            assert_eq!(merged, Merged::FastForward { head: made.id });
            lane.discard(fork).unwrap();
        }
        for no in 0..32u8 {
            lane.switch(&format!("b{no}")).unwrap();
            let state = all(&mut lane);
            assert_eq!(state.len(), 101);
            assert!((0..100).all(|write| state[&vec![b'k', write]] == [no; 100]));
        }
    });
}

#[test]
fn a_discard_races_writes_and_merges() {
    let rounds: u64 = common_rounds(300);
    with_runtime(|session| {
        let mut owner = lane(session, "planner");
        owner.put(b"base", b"x").unwrap();
        let mut head = owner.checkpoint(&new()).unwrap().id;
        let fork_no = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for no in 0..2u8 {
                let (fork_no, stop) = (&fork_no, &stop);
                scope.spawn(move || {
                    let mut lane = lane(session, "planner");
                    while !stop.load(Ordering::Acquire) {
                        let fork = BranchNo(fork_no.load(Ordering::Acquire) as u32);
                        if fork.0 == 0 {
                            continue;
                        }
                        let mut on = lane.on(fork);
                        match on.put(&[b'r', no], &[no; 500]) {
                            Ok(_) | Err(ClientError::NoSuchBranch) => {}
                            Err(error) => panic!("{error}"),
                        }
                        match on.checkpoint(&new()) {
                            Ok(_) | Err(ClientError::NoSuchBranch) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            for round in 0..rounds {
                let fork = owner.fork(Revision::Head).unwrap().no;
                owner.on(fork).put(b"own", &round.to_le_bytes()).unwrap();
                fork_no.store(u64::from(fork.0), Ordering::Release);
                let made = owner.on(fork).checkpoint(&new()).unwrap().id;
                if round % 2 == 0 {
                    owner.discard(fork).unwrap();
                    assert_eq!(owner.describe().unwrap().head, Some(head));
                } else {
                    match owner.merge(of(made), &[], &new()).unwrap() {
                        Merged::FastForward { head: now } => head = now,
                        other => panic!("{other:?}"),
                    }
                    owner.discard(fork).unwrap();
                    assert_eq!(get(&mut owner, b"own").unwrap(), round.to_le_bytes());
                }
                let gone = owner.on(fork).put(b"own", b"late");
                assert!(matches!(gone, Err(ClientError::NoSuchBranch)), "{gone:?}");
            }
            stop.store(true, Ordering::Release);
        });
        let state = all(&mut owner);
        let allowed: [&[u8]; 4] = [b"base", b"own", b"r\x00", b"r\x01"];
        assert!(
            state.keys().all(|key| allowed.contains(&&key[..])),
            "{state:?}"
        );
    });
}

/// Rounds of a race; more where asked for.
fn common_rounds(few: u64) -> u64 {
    let asked = std::env::var("HELIOS_VERSION_OPERATIONS").ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(few)
}

/// Readers on window hits beside a lane that restores, switches and writes: what one reads is of the state
/// that the last call left, or of a younger one.
#[test]
fn readers_beside_restores_never_see_an_older_or_a_mixed_state() {
    with_runtime(|session| {
        let mut writer = lane(session, "planner");
        let mut ids = Vec::new();
        for generation in 0..64u8 {
            for key in 0..4u8 {
                writer.put(&[b'k', key], &[generation; 64]).unwrap();
            }
            ids.push(writer.checkpoint(&new()).unwrap().id);
        }
        // Raised before a restore begins, and after it ended: the generations that may be read.
        let (from, upto) = (AtomicU64::new(63), AtomicU64::new(63));
        let stop = AtomicBool::new(false);
        let read = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                let (from, upto, stop, read) = (&from, &upto, &stop, &read);
                scope.spawn(move || {
                    let mut lane = lane(session, "planner");
                    while !stop.load(Ordering::Acquire) {
                        for key in 0..4u8 {
                            let least = from.load(Ordering::SeqCst);
                            let value = get(&mut lane, &[b'k', key]).unwrap();
                            let most = upto.load(Ordering::SeqCst);
                            assert!(value.iter().all(|byte| *byte == value[0]));
                            // The count of restores modulo 64 is the generation.
                            let seen = (least..=most).any(|no| no % 64 == u64::from(value[0]));
                            assert!(seen, "{} is not of {least}..={most}", value[0]);
                            read.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            for no in 64..64 + 2000u64 {
                upto.store(no, Ordering::SeqCst);
                writer.restore(of(ids[(no % 64) as usize]), true).unwrap();
                from.store(no, Ordering::SeqCst);
                assert_eq!(get(&mut writer, b"k\x02").unwrap(), [(no % 64) as u8; 64]);
            }
            stop.store(true, Ordering::Release);
        });
        assert!(read.into_inner() > 1000);
        // A lane that goes to and fro between branches reads each one's own.
        writer.branch("other", of(ids[7])).unwrap();
        for _ in 0..300 {
            writer.switch("other").unwrap();
            assert_eq!(get(&mut writer, b"k\x01").unwrap(), [7; 64]);
            writer.switch("main").unwrap();
            assert_eq!(get(&mut writer, b"k\x01").unwrap(), [(2063 % 64) as u8; 64]);
        }
    });
}

#[test]
fn equal_content_has_one_tree_by_every_path() {
    with_runtime(|session| {
        let mut random = Random(3);
        let wanted = random_state(&mut random, &State::new(), 300);
        let mut trees = Vec::new();
        for no in 0..8 {
            let mut lane = lane(session, &format!("agent{no}"));
            // Another way there: things that come and go, checkpoints in between.
            for _ in 0..no {
                let detour = random_state(&mut random, &wanted, 60);
                write(&mut lane, &detour, &mut random);
            }
            write(&mut lane, &wanted, &mut random);
            trees.push(lane.describe().unwrap().base);
            // Through a merge of two halves.
            lane.restore(Revision::Empty, true).unwrap();
            lane.checkpoint(&new()).unwrap();
            lane.branch("half", Revision::Head).unwrap();
            let (one, other): (Vec<_>, Vec<_>) = wanted
                .clone()
                .into_iter()
                .partition(|_| random.below(2) == 0);
            write(&mut lane, &one.into_iter().collect(), &mut random);
            lane.switch("half").unwrap();
            write(&mut lane, &other.into_iter().collect(), &mut random);
            lane.merge(Revision::Branch("main"), &[], &new()).unwrap();
            trees.push(lane.describe().unwrap().base);
            assert!(all(&mut lane) == wanted);
        }
        assert!(trees.iter().all(|tree| *tree == trees[0]), "{trees:?}");
        // Keys under one prefix only, and other values.
        let mut lane = lane(session, "agent0");
        lane.put(wanted.keys().next().unwrap(), b"other").unwrap();
        assert_ne!(lane.checkpoint(&new()).unwrap().tree, trees[0]);
    });
}

/// What a difference says, applied to the one state, gives the other; a merge is what a merge of plain
/// maps is.
#[test]
fn laws_of_diff_and_merge_hold_on_random_states() {
    with_runtime(|session| {
        let mut lane = lane(session, "planner");
        let mut random = Random(17);
        for round in 0..12 {
            let base = random_state(&mut random, &State::new(), 150);
            let ours = random_state(&mut random, &base, [0, 1, 30][round % 3]);
            let theirs = random_state(&mut random, &base, [30, 3, 0, 15][round % 4]);
            lane.switch("main").unwrap();
            write(&mut lane, &base, &mut random);
            let (a, b) = (format!("a{round}"), format!("b{round}"));
            lane.branch(&a, Revision::Head).unwrap();
            lane.branch(&b, Revision::Head).unwrap();
            lane.switch(&b).unwrap();
            let their_id = write(&mut lane, &theirs, &mut random);
            lane.switch(&a).unwrap();
            let our_id = write(&mut lane, &ours, &mut random);
            check_diff(&mut lane, (our_id, &ours), (their_id, &theirs));
            assert_eq!(
                lane.merge(of(our_id), &[], &new()).unwrap(),
                Merged::Nothing
            );
            let conflicts = conflicts_of(&base, &ours, &theirs);
            match lane.merge(of(their_id), &[], &new()) {
                Ok(_) => assert!(conflicts.is_empty(), "{conflicts:?}"),
                Err(ClientError::Conflicts { listed, .. }) => {
                    let keys: Vec<_> = listed.into_iter().map(|conflict| conflict.key).collect();
                    assert_eq!(keys, conflicts);
                    assert!(all(&mut lane) == ours);
                }
                Err(error) => panic!("{error}"),
            }
            // Both ways, with the same side winning, there is one result.
            let wanted = merged_of(&base, &ours, &theirs);
            let mut trees = Vec::new();
            for (no, (head, other, policy)) in [
                (our_id, their_id, Policy::Ours),
                (their_id, our_id, Policy::Theirs),
            ]
            .into_iter()
            .enumerate()
            {
                let name = format!("m{round}/{no}");
                lane.branch(&name, of(head)).unwrap();
                lane.switch(&name).unwrap();
                lane.merge(of(other), &[(b"", policy)], &new()).unwrap();
                assert!(all(&mut lane) == wanted, "round {round}");
                trees.push(lane.describe().unwrap().base);
            }
            assert_eq!(trees[0], trees[1]);
        }
    });
}

fn conflicts_of(base: &State, ours: &State, theirs: &State) -> Vec<Vec<u8>> {
    let keys: std::collections::BTreeSet<_> = ours
        .keys()
        .chain(theirs.keys())
        .chain(base.keys())
        .collect();
    let conflict = |key: &&&Vec<u8>| {
        let (b, o, t) = (base.get(**key), ours.get(**key), theirs.get(**key));
        o != b && t != b && o != t
    };
    keys.iter()
        .filter(conflict)
        .map(|key| (*key).clone())
        .collect()
}

fn merged_of(base: &State, ours: &State, theirs: &State) -> State {
    let mut merged = ours.clone();
    for key in base.keys().chain(theirs.keys()) {
        if ours.get(key) == base.get(key) {
            match theirs.get(key) {
                Some(value) => _ = merged.insert(key.clone(), value.clone()),
                None => _ = merged.remove(key),
            }
        }
    }
    merged
}

fn check_diff(lane: &mut Lane, (a_id, a): (ObjectId, &State), (b_id, b): (ObjectId, &State)) {
    let (mut patched, mut after) = (a.clone(), None::<Vec<u8>>);
    let mut counts = (0, 0, 0);
    loop {
        let page = lane.diff(of(a_id), of(b_id), after.as_deref(), 7).unwrap();
        for found in &page.items {
            let id_of = |state: &State| state.get(&found.key).map(|value| value.len() as u64);
            assert_eq!(found.before.as_ref().map(|value| value.bytes), id_of(a));
            assert_eq!(found.after.as_ref().map(|value| value.bytes), id_of(b));
            match (&found.before, &found.after) {
                (None, _) => counts.0 += 1,
                (_, None) => counts.1 += 1,
                _ => counts.2 += 1,
            }
            match b.get(&found.key) {
                Some(value) => _ = patched.insert(found.key.clone(), value.clone()),
                None => _ = patched.remove(&found.key),
            }
        }
        after = page.items.last().map(|found| found.key.clone()).or(after);
        if !page.more {
            break;
        }
    }
    assert!(patched == *b);
    let found = lane.diff_counts(of(a_id), of(b_id)).unwrap();
    assert_eq!((found.added, found.removed, found.changed), counts);
}

/// A branch of the model: what it holds, and its head.
#[derive(Clone, Default)]
struct Model {
    state: State,
    head: Option<Saved>,
}

/// A checkpoint, and what it holds.
type Saved = (ObjectId, Rc<State>);

/// Checkpoints that the model remembers.
const SAVED_MAX: usize = 60;

impl Model {
    /// What is saved has a tag: collections take what nothing names.
    fn checkpointed(&mut self, lane: &mut Lane, id: ObjectId, saved: &mut Vec<Saved>) {
        let made = (id, Rc::new(self.state.clone()));
        self.head = Some(made.clone());
        if saved.len() == SAVED_MAX {
            let (gone, _) = saved.swap_remove((id.as_bytes()[0] as usize) % SAVED_MAX);
            if saved.iter().all(|(other, _)| *other != gone) {
                lane.untag(&format!("saved {gone}")).unwrap();
            }
        }
        lane.tag(&format!("saved {id}"), of(id), true).unwrap();
        saved.push(made);
    }
}

/// Plain maps with full copies, beside lanes on several branches, through random operations and restarts.
#[test]
fn a_model_with_full_copies_agrees_after_many_operations() {
    let operations = common_rounds(100_000);
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(23);
    let mut branches = BTreeMap::from([("main".to_owned(), Model::default())]);
    let mut saved: Vec<Saved> = Vec::new();
    let mut done = 0;
    let mut round = 0;
    while done < operations {
        round += 1;
        let runtime = Runtime::start(config(dir.path())).unwrap();
        let mut lanes: Vec<(Lane, String)> = (0..4)
            .map(|_| (lane(runtime.session(), "planner"), "main".to_owned()))
            .collect();
        for (name, model) in &branches {
            lanes[0].0.switch(name).unwrap();
            lanes[0].1.clone_from(name);
            let info = lanes[0].0.describe().unwrap();
            assert_eq!(info.head, model.head.as_ref().map(|head| head.0));
            assert!(
                all(&mut lanes[0].0) == model.state,
                "{name} after a restart"
            );
        }
        for _ in 0..(operations / 10).max(1) {
            done += 1;
            let at = random.below(4) as usize;
            operate(&mut lanes, at, &mut branches, &mut saved, &mut random, done);
            if done.is_multiple_of(10_000) {
                assert_eq!(runtime.collect().end, CollectEnd::Done);
                // What a tag names is there as a whole.
                let lane = &mut lanes[0].0;
                for (id, state) in &saved {
                    let fork = lane.fork(of(*id)).unwrap().no;
                    assert!(all(&mut lane.on(fork)) == **state);
                    lane.discard(fork).unwrap();
                }
            }
        }
        for (lane, on) in &mut lanes {
            assert!(all(lane) == branches[on].state, "{on}");
        }
        drop(lanes);
        if round % 2 == 0 {
            runtime.shutdown().unwrap();
        } else {
            // What a kill leaves.
            drop(runtime);
        }
    }
    println!(
        "{done} operations, {} checkpoints, {} branches",
        saved.len(),
        branches.len()
    );
}

fn operate(
    lanes: &mut [(Lane, String)],
    at: usize,
    branches: &mut BTreeMap<String, Model>,
    saved: &mut Vec<Saved>,
    random: &mut Random,
    no: u64,
) {
    let used: Vec<String> = lanes.iter().map(|(_, on)| on.clone()).collect();
    let (lane, on) = &mut lanes[at];
    let names: Vec<String> = branches.keys().cloned().collect();
    let any = names[random.below(names.len() as u64) as usize].clone();
    let key = format!("k/{}", random.below(80)).into_bytes();
    match random.below(40) {
        0..12 => {
            let long = [5_000, 70_000][usize::from(random.below(8) == 0)];
            let length = [0, 10, 100, 300, 1500, long][random.below(6) as usize];
            let value = random.bytes(length);
            lane.put_with(&key, &value, PutOptions::default()).unwrap();
            branches.get_mut(on).unwrap().state.insert(key, value);
        }
        12..16 => {
            let was = branches.get_mut(on).unwrap().state.remove(&key).is_some();
            assert_eq!(lane.delete(&key).unwrap(), was);
        }
        16..19 => {
            let made = lane.checkpoint(&new()).unwrap();
            let model = branches.get_mut(on).unwrap();
            assert_eq!(made.keys, model.state.len() as u64);
            model.checkpointed(lane, made.id, saved);
        }
        19 if !saved.is_empty() => {
            let (id, old) = &saved[random.below(saved.len() as u64) as usize];
            lane.restore(of(*id), true).unwrap();
            branches.get_mut(on).unwrap().state = State::clone(old);
        }
        20 if names.len() < 6 && !saved.is_empty() => {
            let from = saved[random.below(saved.len() as u64) as usize].clone();
            let name = format!("b{no}");
            lane.branch(&name, of(from.0)).unwrap();
            let (state, head) = (State::clone(&from.1), Some(from));
            branches.insert(name, Model { state, head });
        }
        21 if names.len() > 3 && any != "main" && !used.contains(&any) => {
            lane.delete_branch(&any, true).unwrap();
            branches.remove(&any);
        }
        22..25 => {
            assert!(lane.switch(&any).unwrap().name == any);
            *on = any;
        }
        25 => {
            // All of it saved first; their changes win.
            let made = lane.checkpoint(&new()).unwrap().id;
            branches
                .get_mut(on)
                .unwrap()
                .checkpointed(lane, made, saved);
            merge(lane, on, &any, branches, saved);
        }
        26 if !saved.is_empty() => {
            let from = saved[random.below(saved.len() as u64) as usize].clone();
            let fork = lane.fork(of(from.0)).unwrap().no;
            let (state, head) = (State::clone(&from.1), Some(from));
            let mut model = Model { state, head };
            let value = random.bytes(900);
            lane.on(fork).put(&key, &value).unwrap();
            model.state.insert(key, value);
            if random.below(2) == 0 {
                let made = lane.on(fork).checkpoint(&new()).unwrap();
                model.checkpointed(lane, made.id, saved);
            }
            if names.len() < 6 && random.below(2) == 0 {
                let name = format!("f{no}");
                lane.keep(fork, &name).unwrap();
                branches.insert(name, model);
            } else {
                lane.discard(fork).unwrap();
            }
        }
        _ => assert_eq!(get(lane, &key), branches[on].state.get(&key).cloned()),
    }
}

/// Merges the head of one branch of the model into another, and compares the head and the tree with what
/// the runtime says; the state is read back.
fn merge(
    lane: &mut Lane,
    on: &str,
    from: &str,
    branches: &mut BTreeMap<String, Model>,
    saved: &mut Vec<Saved>,
) {
    let theirs = branches[from].head.clone();
    let merged = lane.merge(Revision::Branch(from), &[(b"", Policy::Theirs)], &new());
    let model = branches.get_mut(on).unwrap();
    match merged {
        Ok(Merged::Nothing) | Err(ClientError::Unrelated) => {}
        Ok(Merged::FastForward { head }) => {
            let theirs = theirs.unwrap();
            assert_eq!(head, theirs.0);
            model.state = State::clone(&theirs.1);
            model.head = Some(theirs);
        }
        Ok(Merged::Merged(made)) => {
            let theirs = theirs.unwrap();
            assert_eq!(made.parents[1], theirs.0);
            // Which base there was is not the model's to know: every key is of one of the sides.
            let state = all(lane);
            for key in model.state.keys().chain(theirs.1.keys()) {
                let value = state.get(key);
                assert!(value == model.state.get(key) || value == theirs.1.get(key));
            }
            assert!(made.keys == state.len() as u64);
            model.state = state;
            model.checkpointed(lane, made.id, saved);
        }
        Err(error) => panic!("{error}"),
    }
}
