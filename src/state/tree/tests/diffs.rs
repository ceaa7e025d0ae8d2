//! A diff is what two sorted maps differ in, from every key on, with nodes that come when asked for.

use std::ops::Bound;

use super::*;

type Owned = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

/// What the maps differ in.
fn differences(before: &Model, after: &Model) -> Vec<Owned> {
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .map(|key| {
            (
                key.clone(),
                before.get(key).cloned(),
                after.get(key).cloned(),
            )
        })
        .filter(|(_, before, after)| before != after)
        .collect()
}

fn check(before: &Model, after: &Model) {
    let mut forest = Forest::default();
    let (a, b) = (forest.build(before), forest.build(after));
    let expected = differences(before, after);
    let mut diff = Diff::new(&forest.nodes, &a, &b, Bound::Unbounded).unwrap();
    let mut list = Changes::default();
    for (key, before, after) in &expected {
        let found = diff.next().unwrap().expect("a difference");
        assert_eq!(found.key, key);
        assert_eq!(found.before, before.as_deref().map(value));
        assert_eq!(found.after, after.as_deref().map(value));
        match found.after {
            Some(value) => list.put(found.key, value).unwrap(),
            None => list.delete(found.key).unwrap(),
        }
    }
    assert_eq!(diff.next(), Ok(None));
    assert_eq!(diff.next(), Ok(None));
    assert_eq!(diff.reached(), b"");
    assert_eq!(
        forest.apply(&a, &list),
        b,
        "a diff applied to one gives the other"
    );

    let mut counts = DiffCounts::default();
    let mut diff = Diff::new(&forest.nodes, &a, &b, Bound::Unbounded).unwrap();
    diff.count(&mut counts).unwrap();
    let number = |of: fn(&Owned) -> bool| expected.iter().filter(|one| of(one)).count() as u64;
    let by_hand = DiffCounts {
        added: number(|(_, before, _)| before.is_none()),
        removed: number(|(_, _, after)| after.is_none()),
        changed: number(|(_, before, after)| before.is_some() && after.is_some()),
    };
    assert_eq!(counts, by_hand);
    from_every_key(&forest, [&a, &b], &expected);
    with_absent_nodes(&forest, [&a, &b], &expected);
}

/// Goes on behind some keys, those of the differences and others.
fn from_every_key(forest: &Forest, [a, b]: [&ObjectId; 2], expected: &[Owned]) {
    for (no, (key, ..)) in expected.iter().enumerate().step_by(1 + expected.len() / 20) {
        let nodes = &forest.nodes;
        let mut diff = Diff::new(nodes, a, b, Bound::Excluded(key)).unwrap();
        let next = expected.get(no + 1).map(|(key, ..)| &key[..]);
        assert_eq!(diff.next().unwrap().map(|found| found.key), next);
        let mut diff = Diff::new(nodes, a, b, Bound::Included(key)).unwrap();
        assert_eq!(diff.next().unwrap().map(|found| found.key), Some(&key[..]));
        let between = [&key[..], b"\0"].concat();
        let mut diff = Diff::new(nodes, a, b, Bound::Included(&between)).unwrap();
        assert_eq!(diff.next().unwrap().map(|found| found.key), next);
    }
}

/// Fetches a node at a time, each time with a new diff from where the last one was.
fn with_absent_nodes(forest: &Forest, [a, b]: [&ObjectId; 2], expected: &[Owned]) {
    let mut found = Vec::new();
    let mut counts = DiffCounts::default();
    for counted in [false, true] {
        let mut reached = Vec::new();
        let mut sparse = Sparse::new(&forest.nodes);
        let ((), absent) = sparse.repeat(|nodes| {
            let from = match &reached[..] {
                [] => Bound::Unbounded,
                key => Bound::Included(key),
            };
            let mut diff = Diff::new(nodes, a, b, from)?;
            let done = if counted {
                diff.count(&mut counts)
            } else {
                loop {
                    match diff.next() {
                        Ok(Some(one)) => found.push(one.key.to_vec()),
                        Ok(None) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                }
            };
            reached = diff.reached().to_vec();
            done
        });
        assert!(absent > 0 || a == b);
    }
    assert!(found.iter().eq(expected.iter().map(|(key, ..)| key)));
    let all = counts.added + counts.removed + counts.changed;
    assert_eq!(all, expected.len() as u64);
}

/// A state with some keys changed, removed and added.
pub(super) fn edited(model: &Model, edits: usize, seed: u64) -> Model {
    let mut numbers = Numbers(seed << 40);
    let mut edited = model.clone();
    for _ in 0..edits {
        let no = numbers.below(model.len().max(1));
        let key = model.keys().nth(no).cloned().unwrap_or_default();
        match numbers.below(3) {
            0 => drop(edited.remove(&key)),
            1 => drop(edited.insert([&key[..], b"+"].concat(), numbers.value())),
            _ if !key.is_empty() => drop(edited.insert(key, numbers.value())),
            _ => {}
        }
    }
    edited
}

#[test]
fn agrees_with_sorted_maps() {
    for (keys, edits) in [
        (0, 1),
        (1, 1),
        (20, 3),
        (300, 1),
        (3000, 1),
        (3000, 10),
        (2000, 900),
    ] {
        for seed in 0..3 {
            let model = state(keys, seed);
            let other = edited(&model, edits, seed);
            check(&model, &other);
            check(&other, &model);
        }
    }
}

#[test]
fn trees_that_share_nothing() {
    let model = state(1500, 1);
    check(&model, &Model::new());
    check(&Model::new(), &model);
    check(&model, &model);
    check(&model, &state(40, 2));
    let front = model
        .iter()
        .map(|(key, bytes)| ([b"!", &key[..]].concat(), bytes.clone()));
    check(&model, &front.collect());
    let few: Model = model.clone().into_iter().skip(1000).collect();
    check(&few, &model);
}

#[test]
fn a_difference_reads_the_nodes_of_its_path() {
    let mut forest = Forest::default();
    let model = state(20_000, 7);
    let root = forest.build(&model);
    let key = model.keys().nth(12_345).unwrap();
    let other = forest.apply(&root, &changes([(key, Some(&vec![9; 50]))]));
    let mut sparse = Sparse::new(&forest.nodes);
    let (_, absent) = sparse.repeat(|nodes| {
        let mut diff = Diff::new(nodes, &root, &other, Bound::Unbounded)?;
        assert_eq!(diff.next()?.map(|found| found.key), Some(&key[..]));
        assert_eq!(diff.next()?, None);
        Ok(())
    });
    let height = open(&forest.nodes, &root).unwrap().level();
    assert_eq!(absent, 2 * (usize::from(height) + 1));
}

#[test]
fn disjoint_subtrees_are_counted_by_their_roots() {
    let mut forest = Forest::default();
    let model = state(20_000, 8);
    let half: Model = model.clone().into_iter().take(10_000).collect();
    let (a, b) = (forest.build(&half), forest.build(&model));
    let mut sparse = Sparse::new(&forest.nodes);
    let (counts, absent) = sparse.repeat(|nodes| {
        let mut counts = DiffCounts::default();
        Diff::new(nodes, &a, &b, Bound::Unbounded)?.count(&mut counts)?;
        Ok(counts)
    });
    assert_eq!(counts.added, 10_000);
    assert!(absent < 12, "{absent} nodes of {}", forest.ids(&b).len());
}
