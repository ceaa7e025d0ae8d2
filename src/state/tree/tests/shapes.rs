//! The shapes that trees take, by keys as they come and by keys chosen against the rule.

use super::boundary::{ENTRIES_MIN, at_level, key_hash};
use super::*;

/// Entries and bytes of each node, level by level.
fn levels(forest: &Forest, root: &ObjectId) -> Vec<Vec<(usize, usize)>> {
    let mut levels = Vec::new();
    for id in forest.ids(root) {
        let bytes = forest.nodes.node(&id).unwrap();
        let node = Node::open(bytes).unwrap();
        let level = usize::from(node.level());
        levels.resize(levels.len().max(level + 1), Vec::new());
        levels[level].push((node.len(), bytes.len()));
    }
    levels
}

fn keys_of(keys: impl IntoIterator<Item = Vec<u8>>) -> Model {
    keys.into_iter().map(|key| (key, vec![5; 64])).collect()
}

/// Keys whose hash bits of the two lowest levels are as asked for.
fn chosen(count: usize, prefix: &str, want: impl Fn(u32) -> bool) -> Vec<Vec<u8>> {
    (0_u32..)
        .map(|no| format!("{prefix}{no:08}").into_bytes())
        .filter(|key| (0..2).all(|level| want(at_level(key_hash(key), level))))
        .take(count)
        .collect()
}

/// Bounds that hold whatever the keys.
fn check_bounds(forest: &Forest, root: &ObjectId) {
    let levels = levels(forest, root);
    assert!(levels.len() <= usize::from(LEVEL_MAX) + 1);
    for nodes in &levels {
        let small = nodes
            .iter()
            .filter(|(entries, _)| *entries < ENTRIES_MIN as usize);
        assert!(small.count() <= 1, "only the last node of a level is small");
        assert!(nodes.iter().all(|(_, bytes)| *bytes <= NODE_BYTES_MAX));
    }
    assert_eq!(levels.last().map(Vec::len), Some(1));
}

#[test]
fn nodes_have_the_size_that_the_rule_says() {
    for (keys, name) in [
        (state(30_000, 1).into_keys().collect::<Vec<_>>(), "state"),
        (
            (0..30_000_u32)
                .map(|no| no.to_be_bytes().to_vec())
                .collect(),
            "numbers",
        ),
        (
            (0..8_000_u32)
                .map(|no| format!("{no:0>200}").into_bytes())
                .collect(),
            "long",
        ),
    ] {
        let model: Model = keys.into_iter().map(|key| (key, vec![1; 100])).collect();
        let mut forest = Forest::default();
        let root = forest.build(&model);
        check_bounds(&forest, &root);
        let levels = levels(&forest, &root);
        let bytes: usize = levels[0].iter().map(|(_, bytes)| bytes).sum();
        let mean = bytes / levels[0].len();
        // A Rayleigh distribution, in steps of an entry: 1,815 and half a step.
        assert!((1_700..1_950).contains(&mean), "{name}: {mean}");
        let by_byte: usize = levels[0].iter().map(|(_, bytes)| bytes * bytes).sum();
        let seen = by_byte / bytes;
        assert!(
            seen < mean * 14 / 10,
            "{name}: {seen} where a random key is"
        );
    }
}

#[test]
fn keys_that_all_want_to_begin_nodes() {
    let mut forest = Forest::default();
    let model = keys_of(chosen(600, "k", |hash| hash < 1 << 26));
    let root = forest.build(&model);
    forest.check(&root, &model);
    check_bounds(&forest, &root);
    let leaves = &levels(&forest, &root)[0];
    assert!(
        leaves.len() > 600 / ENTRIES_MIN as usize / 2,
        "they do begin nodes"
    );
    shrink(&mut forest, model, root);
}

#[test]
fn keys_that_never_want_to_begin_nodes() {
    let mut forest = Forest::default();
    let model = keys_of(chosen(3000, "k", |hash| hash > u32::MAX / 8 * 7));
    let root = forest.build(&model);
    forest.check(&root, &model);
    check_bounds(&forest, &root);
    let leaves = &levels(&forest, &root)[0];
    let largest = leaves.iter().map(|(_, bytes)| *bytes).max().unwrap();
    assert!(largest > 20_000, "they fill nodes: {largest}");
    shrink(&mut forest, model, root);
}

/// Removes and adds keys here and there, and checks the tree each time.
fn shrink(forest: &mut Forest, mut model: Model, mut root: ObjectId) {
    let keys: Vec<_> = model.keys().cloned().collect();
    for key in keys.iter().step_by(37) {
        root = forest.apply(&root, &changes([(key, None)]));
        let bytes = model.remove(key).unwrap();
        assert_eq!(forest.build(&model), root);
        let other = [&key[..key.len().min(1023)], b"!"].concat();
        root = forest.apply(&root, &changes([(&other, Some(&bytes))]));
        model.insert(other, bytes);
        assert_eq!(forest.build(&model), root);
    }
    check_bounds(forest, &root);
}

#[test]
fn the_longest_keys() {
    let mut forest = Forest::default();
    let mut numbers = Numbers(6);
    let long = (0..400).map(|no: u32| {
        let mut key: Vec<u8> = (0..1024).map(|_| numbers.next() as u8).collect();
        key[..4].copy_from_slice(&no.reverse_bits().to_be_bytes());
        key
    });
    // And some that are each the beginning of the next.
    let nested = (1..=1024).step_by(9).map(|len| vec![b'n'; len]);
    let model = keys_of(long.chain(nested));
    let root = forest.build(&model);
    forest.check(&root, &model);
    check_bounds(&forest, &root);
    shrink(&mut forest, model, root);
}

#[test]
fn keys_of_any_bytes() {
    let odd: [&[u8]; 12] = [
        b"\0",
        b"\0\0",
        b"\xff",
        b"\xff\xff",
        b":",
        b"::",
        b"a::b",
        b"a:\n:b",
        b"\n",
        b"//",
        b"/",
        b"a",
    ];
    let mut forest = Forest::default();
    let model = keys_of(odd.map(<[u8]>::to_vec));
    let root = forest.build(&model);
    forest.check(&root, &model);
    for prefix in odd {
        for after in [&b""[..], b"\0", b"::", b"a"] {
            let mut scan = Scan::new(&forest.nodes, &root, prefix, after).unwrap();
            for key in model
                .keys()
                .filter(|key| key.starts_with(prefix) && (after.is_empty() || key[..] > *after))
            {
                assert_eq!(scan.next().unwrap().map(|(key, _)| key), Some(&key[..]));
            }
            assert_eq!(scan.next(), Ok(None));
        }
    }
}

#[test]
fn two_states_that_differ_have_two_ids() {
    let mut forest = Forest::default();
    let of = |pairs: &[(&str, &str)]| -> Model {
        let pairs = pairs
            .iter()
            .map(|(key, bytes)| (key.as_bytes().to_vec(), bytes.as_bytes().to_vec()));
        pairs.collect()
    };
    let long = "x".repeat(65);
    let states = [
        of(&[]),
        of(&[("a", "")]),
        of(&[("a", "b")]),
        of(&[("ab", "")]),
        of(&[("a", ""), ("b", "")]),
        of(&[("a", "a"), ("ab", "")]),
        of(&[("a", &long)]),
        of(&[("a", &long[1..])]),
    ];
    let mut roots: Vec<_> = states.iter().map(|model| forest.build(model)).collect();
    roots.sort();
    roots.dedup();
    assert_eq!(roots.len(), states.len());
}
