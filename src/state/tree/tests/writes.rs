//! Every way to a content gives the tree that the content builds.

use super::*;
use proptest::prelude::*;

/// What is put or deleted together, in any order.
type Turn = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Applies changes in turns, each checked against the model and against a bulk build.
fn check(turns: &[Turn]) {
    let mut forest = Forest::default();
    let mut model = Model::new();
    let mut root = EMPTY_TREE;
    for turn in turns {
        for (key, bytes) in turn {
            match bytes {
                Some(bytes) => model.insert(key.clone(), bytes.clone()),
                None => model.remove(key),
            };
        }
        root = forest.apply_all(&root, turn);
        forest.check(&root, &model);
    }
}

impl Forest {
    fn apply_all(&mut self, root: &ObjectId, turn: &Turn) -> ObjectId {
        let list = changes(turn.iter().map(|(key, bytes)| (key, bytes.as_ref())));
        let mut sparse = Sparse::new(&self.nodes);
        let writer = &mut TreeWriter::default();
        let (expected, _) = sparse.repeat(|nodes| {
            let applied = writer.apply(nodes, root, &list);
            assert!(applied.is_ok() || writer.new_nodes().next().is_none());
            applied
        });
        let applied = self.apply(root, &list);
        assert_eq!(applied, expected, "after restarts");
        applied
    }
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => prop::collection::vec(0_u8..4, 1..6),
        2 => (0_u32..5000).prop_map(|no| format!("messages/{no:05}").into_bytes()),
        1 => (any::<u8>(), 900_usize..=1024).prop_map(|(byte, len)| vec![byte; len]),
        1 => prop::collection::vec(prop_oneof![Just(b':'), Just(b'\n'), Just(b'/')], 1..12),
    ]
}

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Some),
        2 => Just(None),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn agrees_with_a_sorted_map(
        turns in prop::collection::vec(prop::collection::vec((keys(), bytes()), 0..150), 1..8)
    ) {
        check(&turns);
    }
}

#[test]
fn large_states_by_random_turns() {
    let mut numbers = Numbers(1);
    for seed in 0..4 {
        let all: Vec<_> = state(3000, seed).into_iter().collect();
        let mut turns = Vec::new();
        for size in [1200, 1, 5, 300, 1, 1500, 1, 2, 40] {
            let turn = (0..size).map(|_| {
                let (key, bytes) = &all[numbers.below(all.len())];
                let put = numbers.below(3) > 0;
                let bytes = if put && numbers.below(2) > 0 {
                    numbers.value()
                } else {
                    bytes.clone()
                };
                (key.clone(), put.then_some(bytes))
            });
            turns.push(turn.collect());
        }
        check(&turns);
    }
}

#[test]
fn key_by_key_in_any_order() {
    let model = state(700, 9);
    let mut forest = Forest::default();
    let expected = forest.build(&model);
    let mut order: Vec<_> = model.iter().collect();
    for seed in 0..3 {
        let mut numbers = Numbers(seed);
        (0..order.len()).for_each(|at| order.swap(at, numbers.below(at + 1)));
        let mut root = EMPTY_TREE;
        for (key, bytes) in &order {
            root = forest
                .writer
                .apply(&forest.nodes, &root, &changes([(*key, Some(*bytes))]))
                .unwrap();
            forest.nodes.extend(forest.writer.new_nodes());
        }
        assert_eq!(root, expected);
        // And back: what remains is always the tree of what remains.
        let mut left = model.clone();
        for (no, (key, _)) in order.iter().enumerate() {
            root = forest
                .writer
                .apply(&forest.nodes, &root, &changes([(*key, None)]))
                .unwrap();
            forest.nodes.extend(forest.writer.new_nodes());
            left.remove(*key);
            if no % 40 == 0 {
                assert_eq!(root, forest.build(&left));
            }
        }
        assert_eq!(root, EMPTY_TREE);
    }
}

#[test]
fn changes_that_change_nothing_make_no_nodes() {
    let mut forest = Forest::default();
    for keys in [0, 1, 30, 2000] {
        let model = state(keys, 3);
        let root = forest.build(&model);
        let absent = b"absent".to_vec();
        let same = model
            .iter()
            .step_by(7)
            .map(|(key, bytes)| (key, Some(bytes)));
        let list = changes(same.chain([(&absent, None)]));
        assert_eq!(forest.apply(&root, &list), root);
        assert_eq!(forest.writer.new_nodes().count(), 0);
        assert_eq!(forest.apply(&root, &Changes::default()), root);
        assert_eq!(forest.writer.new_nodes().count(), 0);
    }
}

#[test]
fn a_changed_value_makes_the_nodes_of_its_path() {
    let mut forest = Forest::default();
    let model = state(5000, 4);
    let root = forest.build(&model);
    let height = Node::open(forest.nodes.node(&root).unwrap())
        .unwrap()
        .level();
    for key in model.keys().step_by(97) {
        let other = vec![1; 60];
        let changed = forest.apply(&root, &changes([(key, Some(&other))]));
        assert_ne!(changed, root);
        assert_eq!(forest.writer.new_nodes().count(), usize::from(height) + 1);
        assert_eq!(
            forest.writer.new_nodes().last().map(|(id, _)| id),
            Some(changed)
        );
    }
}

#[test]
fn all_new_nodes_are_in_the_new_tree() {
    let mut forest = Forest::default();
    let model = state(4000, 5);
    let root = forest.build(&model);
    let gone = model.keys().skip(20).map(|key| (key, None));
    let left = forest.apply(&root, &changes(gone));
    let new: Vec<_> = forest.writer.new_nodes().map(|(id, _)| id).collect();
    assert_eq!(new, [left], "one leaf is left, and no nodes above it");
}

#[test]
fn the_last_change_of_a_key_counts() {
    let mut changes = Changes::default();
    changes.put(b"b", Value::Inline(b"1")).unwrap();
    changes.put(b"a", Value::Inline(b"2")).unwrap();
    changes.delete(b"b").unwrap();
    changes.put(b"a", Value::Inline(b"3")).unwrap();
    let writer = &mut TreeWriter::default();
    let unsorted = writer.apply(&MemoryNodes::default(), &EMPTY_TREE, &changes);
    assert_eq!(unsorted, Err(TreeError::Unsorted));
    changes.sort();
    let list: Vec<_> = changes.iter().collect();
    assert_eq!(list, [(&b"a"[..], Some(Value::Inline(b"3"))), (b"b", None)]);
}

#[test]
fn changes_that_no_tree_takes() {
    let mut changes = Changes::default();
    let id = ObjectId::of_blob(b"");
    assert_eq!(changes.delete(b""), Err(ChangeError::KeyLength(0)));
    assert_eq!(
        changes.delete(&[7; 1025]),
        Err(ChangeError::KeyLength(1025))
    );
    for (bad, bytes) in [
        (Value::Inline(&[0; 65]), 65),
        (Value::Blob { id, bytes: 64 }, 64),
        (
            Value::Blob {
                id,
                bytes: BLOB_BYTES_MAX + 1,
            },
            16_385,
        ),
        (
            Value::Chunks {
                id,
                bytes: BLOB_BYTES_MAX,
            },
            16_384,
        ),
    ] {
        assert_eq!(changes.put(b"k", bad), Err(ChangeError::ValueForm(bytes)));
    }
    assert!(changes.is_empty());
}
