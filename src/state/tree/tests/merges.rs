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
