//! The laws of merging, against a merge of sorted maps.

use super::diffs::edited;
use super::*;

#[derive(Clone, Copy, PartialEq)]
enum By {
    Ours,
    Theirs,
    Fail,
}

/// The merge of maps: what it gives, and the keys in conflict.
fn merged(base: &Model, ours: &Model, theirs: &Model, by: By) -> (Model, Vec<Vec<u8>>) {
    let (mut result, mut conflicts) = (ours.clone(), Vec::new());
    let keys = base.keys().chain(theirs.keys());
    for key in keys.collect::<std::collections::BTreeSet<_>>() {
        let [base, ours, theirs] = [base, ours, theirs].map(|map| map.get(key));
        if theirs == base || theirs == ours {
            continue;
        }
        let conflict = ours != base;
        if conflict && by == By::Fail {
            conflicts.push(key.clone());
        }
        if !conflict || by == By::Theirs {
            match theirs {
                Some(bytes) => result.insert(key.clone(), bytes.clone()),
                None => result.remove(key),
            };
        }
    }
    (result, conflicts)
}

fn check(base: &Model, ours: &Model, theirs: &Model) {
    let mut forest = Forest::default();
    let roots = [base, ours, theirs].map(|model| forest.build(model));
    let mut merge = Merge::default();
    for (by, on_conflict) in [
        (By::Ours, OnConflict::Ours),
        (By::Theirs, OnConflict::Theirs),
        (By::Fail, OnConflict::Fail),
    ] {
        let rules = [PrefixRule {
            prefix: b"",
            on_conflict,
        }];
        let (result, conflicts) = merged(base, ours, theirs, by);
        merge.start(roots[0], roots[1], roots[2]);
        let mut found = Vec::new();
        let mut sparse = Sparse::new(&forest.nodes);
        let clean = loop {
            let (done, _) = sparse.repeat(|nodes| merge.run(nodes, &rules, 7));
            let Merged::Conflicts { more } = done else {
                break true;
            };
            for one in merge.conflicts().iter() {
                for (has, model) in [(one.base, base), (one.ours, ours), (one.theirs, theirs)] {
                    assert_eq!(has, model.get(one.key).map(|bytes| value(bytes)));
                }
                found.push(one.key.to_vec());
            }
            assert!(merge.conflicts().len() <= 7);
            if !more {
                break false;
            }
        };
        assert_eq!(found, conflicts);
        assert_eq!(clean, conflicts.is_empty());
        if clean {
            let root = forest.apply(&roots[1], merge.changes());
            assert_eq!(root, forest.build(&result));
        } else {
            assert!(merge.changes().is_empty());
        }
    }
}

#[test]
fn agrees_with_a_merge_of_maps() {
    for (keys, edits) in [(0, 2), (5, 2), (100, 10), (1000, 10), (1500, 600)] {
        for seed in 0..4 {
            let base = state(keys, seed);
            let ours = edited(&base, edits, seed + 10);
            let theirs = edited(&base, edits, seed + 20);
            check(&base, &ours, &theirs);
            check(&base, &theirs, &ours);
            // Both did some of the same.
            check(&base, &ours, &edited(&ours, edits, seed + 30));
        }
    }
}

#[test]
fn sides_that_are_equal_or_unchanged() {
    let base = state(400, 1);
    let other = edited(&base, 20, 2);
    let none = Model::new();
    for [base, ours, theirs] in [
        [&base, &other, &other],
        [&base, &base, &other],
        [&base, &other, &base],
        [&base, &base, &base],
        [&none, &base, &none],
        [&none, &none, &base],
        [&none, &base, &other],
        [&base, &none, &other],
        [&base, &none, &none],
    ] {
        check(base, ours, theirs);
    }
}

#[test]
fn the_longest_prefix_rules() {
    let mut forest = Forest::default();
    let model = |byte: u8| -> Model {
        let keys = ["a", "a/b", "a/b/c", "ab", "z"];
        keys.map(|key| (key.as_bytes().to_vec(), vec![byte])).into()
    };
    let [base, ours, theirs] = [1, 2, 3].map(|byte| forest.build(&model(byte)));
    let rule = |prefix, on_conflict| PrefixRule {
        prefix,
        on_conflict,
    };
    let rules = [
        rule(&b"a"[..], OnConflict::Theirs),
        rule(b"a/", OnConflict::Ours),
        rule(b"a/b/", OnConflict::Theirs),
    ];
    let mut merge = Merge::default();
    merge.start(base, ours, theirs);
    let conflicts = merge.run(&forest.nodes, &rules, 9).unwrap();
    assert_eq!(conflicts, Merged::Conflicts { more: false });
    assert_eq!(
        merge.conflicts().iter().next().map(|one| one.key),
        Some(&b"z"[..])
    );
    assert_eq!(merge.conflicts().len(), 1);

    merge.start(base, ours, theirs);
    let all = [&rules[..], &[rule(b"", OnConflict::Ours)]].concat();
    assert_eq!(merge.run(&forest.nodes, &all, 9), Ok(Merged::Clean));
    let taken: Vec<_> = merge.changes().iter().map(|(key, _)| key).collect();
    assert_eq!(taken, [&b"a"[..], b"a/b/c", b"ab"]);
}

/// What was, by key: the definition of [`Base`] over maps.
enum ModelBase<'a> {
    Map(&'a Model),
    Merged(Box<[ModelBase<'a>; 3]>),
    Unknown,
}

impl<'a> ModelBase<'a> {
    fn merged(of: Self, one: Self, other: Self) -> Self {
        Self::Merged(Box::new([of, one, other]))
    }

    /// `None`: nobody knows.
    fn was(&self, key: &[u8]) -> Option<Option<&'a Vec<u8>>> {
        let [of, one, other] = match self {
            Self::Map(map) => return Some(map.get(key)),
            Self::Merged(parts) => &**parts,
            Self::Unknown => return None,
        };
        let [of, one, other] = [of.was(key), one.was(key), other.was(key)];
        match (one?, other?) {
            (one, other) if one == other => Some(one),
            (one, other) if of? == one => Some(other),
            (one, other) if of? == other => Some(one),
            _ => None,
        }
    }

    fn of_trees(&self, forest: &mut Forest) -> Base {
        match self {
            Self::Map(map) => Base::Tree(forest.build(map)),
            Self::Merged(parts) => {
                let [of, one, other] = parts.each_ref().map(|part| part.of_trees(forest));
                Base::merged(of, [one, other])
            }
            Self::Unknown => Base::Unknown,
        }
    }
}

/// The result of a merge over several bases, and the keys in conflict.
fn merged_over(base: &ModelBase<'_>, ours: &Model, theirs: &Model) -> (Model, Vec<Vec<u8>>) {
    let (mut result, mut conflicts) = (ours.clone(), Vec::new());
    let keys = ours.keys().chain(theirs.keys());
    for key in keys.collect::<std::collections::BTreeSet<_>>() {
        let [our, their] = [ours, theirs].map(|map| map.get(key));
        match base.was(key) {
            _ if our == their => {}
            Some(was) if was == their => {}
            Some(was) if was == our => match their {
                Some(bytes) => _ = result.insert(key.clone(), bytes.clone()),
                None => _ = result.remove(key),
            },
            _ => conflicts.push(key.clone()),
        }
    }
    (result, conflicts)
}

fn check_over(base: &ModelBase<'_>, ours: &Model, theirs: &Model) -> usize {
    let mut forest = Forest::default();
    let trees = base.of_trees(&mut forest);
    let [our_root, their_root] = [ours, theirs].map(|model| forest.build(model));
    let (result, conflicts) = merged_over(base, ours, theirs);
    let mut merge = Merge::default();
    merge.start(trees, our_root, their_root);
    let mut found = Vec::new();
    let mut sparse = Sparse::new(&forest.nodes);
    loop {
        let (done, _) = sparse.repeat(|nodes| merge.run(nodes, &[], 5));
        let Merged::Conflicts { more } = done else {
            let root = forest.apply(&our_root, merge.changes());
            assert_eq!(root, forest.build(&result));
            break;
        };
        for one in merge.conflicts().iter() {
            let was = base.was(one.key).flatten();
            for (has, is) in [
                (one.base, was),
                (one.ours, ours.get(one.key)),
                (one.theirs, theirs.get(one.key)),
            ] {
                assert_eq!(has, is.map(|bytes| value(bytes)));
            }
            found.push(one.key.to_vec());
        }
        if !more {
            break;
        }
    }
    assert_eq!(found, conflicts);
    conflicts.len()
}

#[test]
fn a_merge_over_several_bases_agrees_with_that_of_maps() {
    let mut conflicts = 0;
    for (keys, edits) in [(0, 2), (30, 8), (600, 40)] {
        for seed in 0..6 {
            let root = state(keys, seed);
            let one = edited(&root, edits, seed + 10);
            let other = edited(&root, edits, seed + 20);
            let base = || {
                let [root, one, other] = [&root, &one, &other].map(ModelBase::Map);
                ModelBase::merged(root, one, other)
            };
            // Each has what both bases did, of what they did differently its own.
            let (both, _) = merged(&root, &one, &other, By::Ours);
            let (both_otherwise, _) = merged(&root, &one, &other, By::Theirs);
            let ours = edited(&both, edits, seed + 30);
            let theirs = edited(&both_otherwise, edits, seed + 40);
            conflicts += check_over(&base(), &ours, &theirs);
            assert_eq!(
                check_over(&base(), &ours, &theirs),
                check_over(&base(), &theirs, &ours)
            );
            let third = edited(&both, edits, seed + 50);
            let deeper = ModelBase::merged(base(), ModelBase::Map(&third), ModelBase::Map(&both));
            check_over(&deeper, &ours, &theirs);
            let three = ModelBase::merged(ModelBase::Map(&root), base(), ModelBase::Map(&third));
            check_over(&three, &ours, &theirs);
            assert_eq!(check_over(&base(), &ours, &ours), 0);
            assert_eq!(check_over(&ModelBase::Unknown, &ours, &ours), 0);
            check_over(&ModelBase::Unknown, &ours, &theirs);
        }
    }
    assert!(conflicts > 0);
}

#[test]
fn of_bases_that_differ_in_nothing_each_alone_gives_the_same() {
    let base = state(300, 1);
    let (ours, theirs) = (edited(&base, 20, 2), edited(&base, 20, 3));
    let same = ModelBase::merged(
        ModelBase::Unknown,
        ModelBase::Map(&base),
        ModelBase::Map(&base),
    );
    let (alone, conflicts) = merged(&base, &ours, &theirs, By::Fail);
    let (together, same_conflicts) = merged_over(&same, &ours, &theirs);
    assert!(alone == together && conflicts == same_conflicts);
    check_over(&same, &ours, &theirs);
}
