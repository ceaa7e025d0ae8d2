//! Merges in histories of any shape, against a model that follows the definition over plain maps and sets.

use std::collections::BTreeSet;

use super::*;
use crate::agent::call::{Conflict, Merged, Policy, ValueInfo};
use crate::id::ObjectId;

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;
type Was = Option<Option<Vec<u8>>>;

/// A checkpoint of the model. Its place in the list is its age: parents come before children.
struct Made {
    id: [u8; 32],
    parents: Vec<usize>,
    keys: Keys,
}

/// All checkpoints, and what each branch points at.
struct Model {
    made: Vec<Made>,
    heads: Vec<usize>,
}

impl Model {
    fn ancestors(&self, of: &[usize]) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut ahead = of.to_vec();
        while let Some(one) = ahead.pop() {
            if found.insert(one) {
                ahead.extend(&self.made[one].parents);
            }
        }
        found
    }

    /// Common ancestors that are ancestors of no other; the oldest first.
    fn best(&self, ones: &[usize], others: &[usize]) -> Vec<usize> {
        let common = &self.ancestors(ones) & &self.ancestors(others);
        let covered = |one: usize| {
            let mut others = common.iter().filter(|&&other| other != one);
            others.any(|&other| self.ancestors(&[other]).contains(&one))
        };
        let best = common.iter().copied().filter(|&one| !covered(one));
        best.collect()
    }

    /// What a key was where these come from; `None`: nobody knows.
    fn was(&self, bases: &[usize], key: &[u8]) -> Was {
        let value = |base: usize| self.made[base].keys.get(key).cloned();
        let mut was = Some(value(*bases.first()?));
        for no in 1..bases.len() {
            let of = self.best(&bases[..no], &bases[no..=no]);
            let next = value(bases[no]);
            was = match (was?, self.was(&of, key)) {
                (was, _) if was == next => Some(was),
                (was, Some(of)) if of == was => Some(next),
                (was, Some(of)) if of == next => Some(was),
                _ => None,
            };
        }
        was
    }

    /// The merge of two states: the result, and the keys in conflict with what they were.
    fn merge(&self, ours: usize, theirs: usize) -> (Keys, Vec<(Vec<u8>, Was)>) {
        let bases = self.best(&[ours], &[theirs]);
        let [ours, theirs] = [ours, theirs].map(|one| &self.made[one].keys);
        let (mut result, mut conflicts) = (ours.clone(), Vec::new());
        for key in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            let (our, their) = (ours.get(key), theirs.get(key));
            if our == their {
                continue;
            }
            match self.was(&bases, key) {
                Some(was) if was.as_ref() == their => {}
                Some(was) if was.as_ref() == our => set(&mut result, key, their),
                was => conflicts.push((key.clone(), was)),
            }
        }
        (result, conflicts)
    }
}

fn set(keys: &mut Keys, key: &[u8], value: Option<&Vec<u8>>) {
    match value {
        Some(value) => keys.insert(key.to_vec(), value.clone()),
        None => keys.remove(key),
    };
}

fn info(value: Option<&Vec<u8>>) -> Option<ValueInfo> {
    let value = value?;
    Some(ValueInfo {
        id: *ObjectId::of_blob(value).as_bytes(),
        bytes: value.len() as u64,
    })
}

impl World {
    /// The keys of a branch. One page holds them.
    fn keys_of(&mut self, on: BranchNo) -> Keys {
        self.submit(Op::Scan, b"", b"", |entry| entry.branch = Some(on));
        let completion = self.wait();
        assert_eq!((completion.status, completion.more), (Status::Ok, false));
        let answer = self.reply(&completion);
        let scanned = packed::Scanned::parse(&answer).unwrap();
        let found: Vec<Vec<u8>> = scanned.map(|item| item.key.to_vec()).collect();
        let read = |key: Vec<u8>| (key.clone(), self.get_on(on, &key).unwrap());
        found.into_iter().map(read).collect()
    }

    fn set_on(&mut self, on: BranchNo, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => self.put_on(on, key, value),
            None => {
                self.submit(Op::Delete, key, b"", |entry| entry.branch = Some(on));
                assert!(matches!(self.wait().status, Status::Ok | Status::NotFound));
            }
        }
    }

    /// A checkpoint of a branch in which one key was changed.
    fn made_with(&mut self, on: BranchNo, key: &[u8], value: &[u8]) -> [u8; 32] {
        self.put_on(on, key, value);
        self.made(Some(on)).id
    }

    fn merge_of(&mut self, on: BranchNo, id: [u8; 32], rule: Option<Policy>) -> Status {
        let call = merge_of(id, rule);
        self.call_on(Some(on), &call).0.status
    }

    /// Forgets a checkpoint, as collection would.
    fn prune(&mut self, id: [u8; 32]) {
        let tables = &mut self.shard.store.tables;
        let no = tables.objects.find(&ObjectId::from_bytes(id)).unwrap();
        tables.drop_kept(no, &mut Vec::new());
    }

    /// Every checkpoint of `main`'s history.
    fn logged(&mut self) -> Vec<[u8; 32]> {
        let mut found = Vec::new();
        let mut frontier = Vec::new();
        loop {
            let page = Call::Log {
                from: Revision::Head,
                frontier: std::mem::take(&mut frontier),
                limit: 2,
            };
            let answer = self.good(None, &page);
            for item in call::items(&answer) {
                match item.unwrap() {
                    Logged::Entry { id, .. } => found.push(id),
                    Logged::Next { id } => frontier.push(id),
                }
            }
            if frontier.is_empty() {
                return found;
            }
        }
    }
}

fn merge_of(id: [u8; 32], rule: Option<Policy>) -> Call<'static> {
    Call::Merge {
        from: Revision::Checkpoint(id),
        rules: rule.map(|rule| (&b""[..], rule)).into_iter().collect(),
        opaque: b"",
        pairs: b"",
        expect: None,
    }
}

/// Two branches with a checkpoint each, `one` and `other`, over one of both; then each merged into the
/// other's, with a rule where they are in conflict.
struct Crossed {
    world: World,
    sides: [BranchNo; 2],
    bases: [[u8; 32]; 2],
}

fn crossed(one: &[u8], other: &[u8], rules: [Option<Policy>; 2]) -> Crossed {
    let mut world = World::new(1 << 20);
    world.put(b"k", b"root");
    world.put(b"same", b"x");
    world.good(None, &CHECKPOINT);
    let side = BranchNo(world.info(None, &branch("side")).no);
    let sides = [BranchNo(0), side];
    let bases = [(sides[0], one), (sides[1], other)].map(|(on, value)| {
        world.set_on(on, b"k", Some(value));
        world.set_on(on, &[on.0 as u8 + b'0'], Some(b"own"));
        world.made(Some(on)).id
    });
    for no in 0..2 {
        let status = world.merge_of(sides[no], bases[1 - no], rules[no]);
        assert_eq!(status, Status::Ok);
    }
    Crossed {
        world,
        sides,
        bases,
    }
}

/// One side had taken a value back that the other has; the younger base never had it, and the merge took
/// the value again, in silence.
#[test]
fn what_one_side_took_back_after_a_criss_cross_stays_taken_back() {
    for back in [0, 1] {
        for values in [[&b"x"[..], b"root"], [b"root", b"x"]] {
            let Crossed {
                mut world, sides, ..
            } = crossed(values[0], values[1], [None; 2]);
            let reverted = world.made_with(sides[back], b"k", b"root");
            let kept = world.made_with(sides[1 - back], b"same", b"y");
            assert_eq!(world.get_on(sides[1 - back], b"k").unwrap(), b"x");
            assert_eq!(world.merge_of(sides[1 - back], reverted, None), Status::Ok);
            assert_eq!(world.merge_of(sides[back], kept, None), Status::Ok);
            for on in sides {
                assert_eq!(world.get_on(on, b"k").unwrap(), b"root");
                assert_eq!(world.get_on(on, b"same").unwrap(), b"y");
            }
        }
    }
}

/// Both bases changed the key, and each side settled that in its own way: neither is the older one.
#[test]
fn sides_that_settled_a_conflict_in_two_ways_are_in_conflict_again() {
    for value in [&b"1"[..], b"2"] {
        let rules = [Some(Policy::Ours); 2];
        let Crossed {
            mut world,
            sides,
            bases,
        } = crossed(b"1", b"2", rules);
        let theirs = world.made_with(sides[1], b"same", b"y");
        let (completion, answer) = world.call_on(Some(sides[0]), &merge_of(theirs, None));
        assert_eq!(completion.status, Status::Conflicts);
        let listed: Conflict<'_> = call::items(&answer).next().unwrap().unwrap();
        assert_eq!((listed.key, listed.base), (&b"k"[..], None));
        assert_eq!(listed.ours, info(Some(&b"1".to_vec())));
        assert_eq!(listed.theirs, info(Some(&b"2".to_vec())));
        assert_eq!(
            world.get_on(sides[0], b"same").unwrap(),
            b"x",
            "nothing changed"
        );
        // Where both sides agree, it does not matter what was.
        let mut world = world.restarted(0);
        for on in sides {
            world.put_on(on, b"k", value);
            world.good(Some(on), &CHECKPOINT);
        }
        let theirs = world.info(Some(sides[1]), &Call::Describe).head.unwrap();
        assert_eq!(world.merge_of(sides[0], theirs, None), Status::Ok);
        assert_eq!(world.get_on(sides[0], b"k").unwrap(), value);
        assert_ne!(bases[0], bases[1]);
    }
}

#[test]
fn merges_in_histories_of_any_shape_are_what_the_definition_says() {
    let (mut several, mut conflicts, mut clean) = (0, 0, 0);
    for seed in 0..24 {
        let mut random = Random(seed);
        let mut world = World::new(1 << 20);
        world.put(b"0", b"root");
        let id = world.made(None).id;
        let mut model = Model {
            made: vec![Made {
                id,
                parents: Vec::new(),
                keys: [(b"0".to_vec(), b"root".to_vec())].into(),
            }],
            heads: vec![0; 3],
        };
        for name in ["one", "two"] {
            world.info(None, &branch(name));
        }
        for _ in 0..60 {
            let no = random.below(3);
            let (on, head) = (BranchNo(no as u32), model.heads[no]);
            if random.below(2) == 0 {
                let mut keys = model.made[head].keys.clone();
                for _ in 0..=random.below(2) {
                    let key = [b'0' + random.below(5) as u8];
                    let value = [b'a' + random.below(3) as u8];
                    let value = (random.below(5) > 0).then_some(&value[..]);
                    world.set_on(on, &key, value);
                    set(&mut keys, &key, value.map(<[u8]>::to_vec).as_ref());
                }
                model.heads[no] = model.made.len();
                model.made.push(Made {
                    id: world.made(Some(on)).id,
                    parents: vec![head],
                    keys,
                });
                continue;
            }
            // What another branch had some time ago, so that histories cross.
            let last = model.made.len() - 1;
            let theirs = last - random.below(6).min(last);
            let rule = [None, None, Some(Policy::Ours), Some(Policy::Theirs)][random.below(4)];
            let (mut keys, found) = model.merge(head, theirs);
            let (completion, answer) =
                world.call_on(Some(on), &merge_of(model.made[theirs].id, rule));
            let bases = model.best(&[head], &[theirs]);
            if rule.is_none() && !found.is_empty() {
                conflicts += 1;
                several += usize::from(bases.len() > 1);
                assert_eq!(completion.status, Status::Conflicts);
                let listed = call::items(&answer).map(|one| one.unwrap());
                let listed: Vec<Conflict<'_>> = listed.collect();
                assert_eq!(listed.len(), found.len());
                for (listed, (key, was)) in listed.iter().zip(&found) {
                    let value = |of: usize| info(model.made[of].keys.get(key));
                    assert_eq!(listed.key, key);
                    assert_eq!(listed.base, info(was.as_ref().and_then(Option::as_ref)));
                    assert_eq!((listed.ours, listed.theirs), (value(head), value(theirs)));
                }
                assert_eq!(world.keys_of(on), model.made[head].keys);
                continue;
            }
            assert_eq!(completion.status, Status::Ok);
            match call::items(&answer).next().unwrap().unwrap() {
                Merged::Nothing => assert_eq!(bases, [theirs]),
                Merged::FastForward { head: id } => {
                    assert_eq!((bases, id), (vec![head], model.made[theirs].id));
                    model.heads[no] = theirs;
                }
                Merged::Merged(made) => {
                    clean += 1;
                    several += usize::from(bases.len() > 1);
                    let their_keys = &model.made[theirs].keys;
                    for (key, _) in found {
                        if rule == Some(Policy::Theirs) {
                            set(&mut keys, &key, their_keys.get(&key));
                        }
                    }
                    model.heads[no] = model.made.len();
                    model.made.push(Made {
                        id: made.id,
                        parents: vec![head, theirs],
                        keys,
                    });
                }
            }
            assert_eq!(world.keys_of(on), model.made[model.heads[no]].keys);
        }
    }
    assert!(several > 50 && conflicts > 50 && clean > 50);
}

/// However often two branches cross, a merge ends. What lies too deep to be told is a conflict, not a guess.
#[test]
fn branches_that_cross_without_end_merge_or_conflict() {
    let Crossed {
        mut world, sides, ..
    } = crossed(b"1", b"2", [Some(Policy::Ours); 2]);
    let mut rounds = 0..=200u8;
    let (round, listed) = 'crossing: loop {
        let round = rounds.next().expect("a conflict, some time");
        // Both sides change a key of their own, and take the other's state as it was before.
        let heads = sides.map(|on| world.made_with(on, &[b'a', on.0 as u8], &[round]));
        for no in 0..2 {
            let merge = Call::Merge {
                from: Revision::Checkpoint(heads[1 - no]),
                rules: vec![(b"k", Policy::Ours)],
                opaque: b"",
                pairs: b"",
                expect: None,
            };
            let (completion, answer) = world.call_on(Some(sides[no]), &merge);
            if completion.status == Status::Conflicts {
                break 'crossing (round, answer);
            }
            assert_eq!(completion.status, Status::Ok);
            for on in sides {
                let key = [b'a', on.0 as u8];
                assert_eq!(world.get_on(sides[no], &key).unwrap(), [round]);
            }
        }
        let keys = sides.map(|on| world.get_on(on, b"k").unwrap());
        assert_eq!(keys, [b"1", b"2"], "never settled");
    };
    assert!(round > 100);
    for conflict in call::items(&listed) {
        let conflict: Conflict<'_> = conflict.unwrap();
        assert!(conflict.key[0] == b'a' && conflict.ours != conflict.theirs);
    }
    // Side by side for good again, once both have the same.
    let theirs = world.info(Some(sides[1]), &Call::Describe).head.unwrap();
    let rule = Some(Policy::Theirs);
    assert_eq!(world.merge_of(sides[0], theirs, rule), Status::Ok);
    let ours = world.info(Some(sides[0]), &Call::Describe).head.unwrap();
    assert_eq!(world.merge_of(sides[1], ours, None), Status::Ok);
    assert_eq!(world.keys_of(sides[0]), world.keys_of(sides[1]));
}

/// The walk reads nothing that lies below the bases: damage there does not matter.
#[test]
fn a_merge_reads_no_history_below_its_bases() {
    let mut world = World::new(1 << 20);
    let old: Vec<_> = (0..30u8)
        .map(|no| world.made_with(BranchNo(0), b"k", &[no]))
        .collect();
    let side = BranchNo(world.info(None, &branch("side")).no);
    let mut bases = Vec::new();
    for on in [BranchNo(0), side] {
        world.made_with(on, &[b'a', on.0 as u8], b"1");
        bases.push(world.made_with(on, &[b'b', on.0 as u8], b"2"));
    }
    for (on, base) in [(side, bases[0]), (BranchNo(0), bases[1])] {
        assert_eq!(world.merge_of(on, base, None), Status::Ok);
    }
    let theirs = world.made_with(side, b"theirs", b"x");
    world.made_with(BranchNo(0), b"ours", b"x");
    let mut world = world.restarted(0);
    let store = &world.shard.store.tables.objects;
    let damaged = old[..29].iter().map(|id| {
        let no = store.find(&ObjectId::from_bytes(*id)).unwrap();
        store.get(no).at
    });
    for at in damaged.collect::<Vec<_>>() {
        world.disk().bytes_mut(at.segment)[at.offset as usize + 9] ^= 1;
    }
    assert_eq!(world.merge_of(BranchNo(0), theirs, None), Status::Ok);
    assert_eq!(world.get(b"theirs").unwrap(), b"x");
}

#[test]
fn history_ends_where_a_parent_is_not_stored() {
    let mut world = World::new(1 << 20);
    let old: Vec<_> = (0..5u8)
        .map(|no| world.made_with(BranchNo(0), b"k", &[no]))
        .collect();
    let side = BranchNo(world.info(None, &branch("side")).no);
    let ours = world.made_with(BranchNo(0), b"ours", b"x");
    let theirs = world.made_with(side, b"theirs", b"x");
    world.prune(old[2]);
    assert_eq!(world.logged(), [ours, old[4], old[3]]);
    assert_eq!(world.merge_of(BranchNo(0), theirs, None), Status::Ok);
    assert_eq!(world.logged().len(), 5);

    // Where all that both come from is gone, nobody can tell what either changed.
    let theirs = world.made_with(side, b"theirs", b"y");
    let other = BranchNo(world.info(None, &branch("other")).no);
    let restored = Call::Branch {
        name: "old",
        from: Revision::Checkpoint(old[4]),
    };
    let from_old = BranchNo(world.info(None, &restored).no);
    let unrelated = world.made_with(from_old, b"k", b"z");
    world.prune(old[3]);
    world.prune(old[4]);
    assert_eq!(world.merge_of(other, unrelated, None), Status::Unrelated);
    assert_eq!(world.merge_of(other, theirs, None), Status::Ok);
}
