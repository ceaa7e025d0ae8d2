//! Bytes that no writer left: typed errors, never a panic, never without end.

use std::ops::Bound;

use super::*;

/// Everything that reads, over a tree that may be damaged anywhere.
fn read_all(nodes: &MemoryNodes, roots: [&ObjectId; 2], model: &Model) -> Result<(), TreeError> {
    let [root, other] = roots;
    let some = model.keys().step_by(5);
    let read = some
        .clone()
        .try_for_each(|key| get(nodes, root, key).map(drop));
    let counted = count(nodes, root).map(drop);
    let scanned = (|| {
        let mut scan = Scan::new(nodes, root, b"", b"")?;
        while scan.next()?.is_some() {}
        Ok(())
    })();
    let compared = (|| {
        let mut diff = Diff::new(nodes, root, other, Bound::Unbounded)?;
        while diff.next()?.is_some() {}
        Diff::new(nodes, other, root, Bound::Excluded(b"m"))?.count(&mut DiffCounts::default())
    })();
    let mut merge = Merge::default();
    merge.start(*other, *root, EMPTY_TREE);
    let merged = merge.run(nodes, &[], usize::MAX).map(drop);
    let mut writer = TreeWriter::default();
    let one_by_one = some.enumerate().try_for_each(|(no, key)| {
        let bytes = vec![3; no % 70];
        let put = (no % 3 > 0).then_some(&bytes);
        writer.apply(nodes, root, &changes([(key, put)])).map(drop)
    });
    let all = changes(model.keys().map(|key| (key, None)));
    let removed = writer.apply(nodes, root, &all).map(drop);
    [
        read, counted, scanned, compared, merged, one_by_one, removed,
    ]
    .into_iter()
    .collect()
}

#[test]
fn mutated_nodes_never_panic() {
    let mut forest = Forest::default();
    let model = state(400, 1);
    let root = forest.build(&model);
    let other = forest.build(&diffs::edited(&model, 12, 3));
    let ids: Vec<_> = forest.ids(&root).into_iter().collect();
    let mut numbers = Numbers(4);
    let (mut refused, rounds) = (0, 300);
    for round in 0..rounds {
        let id = ids[round % ids.len()];
        let mut bytes = forest.nodes.node(&id).unwrap().to_vec();
        // Mostly in the header and the heads, where it hurts.
        let places = if numbers.below(2) == 0 {
            24
        } else {
            bytes.len()
        };
        for _ in 0..=numbers.below(3) {
            let at = numbers.below(places.min(bytes.len()));
            match numbers.below(5) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, numbers.next() as u8),
                _ => bytes[at] = numbers.next() as u8,
            }
        }
        let mut nodes = forest.nodes.clone();
        nodes.remove(&id);
        nodes.extend([(id, &bytes[..])]);
        if let Ok(node) = Node::open(&bytes) {
            let _ = node.check();
        }
        let read = read_all(&nodes, [&root, &other], &model);
        refused += usize::from(matches!(read, Err(TreeError::Damaged { .. })));
    }
    assert!(refused > rounds / 3, "{refused} of {rounds}");
}

/// Bytes that are checked to be a node are the bytes that its entries make.
#[test]
fn what_passes_the_check_is_written_that_way() {
    let mut forest = Forest::default();
    let root = forest.build(&state(60, 2));
    let leaves: Vec<Vec<u8>> = forest
        .ids(&root)
        .iter()
        .map(|id| forest.nodes.node(id).unwrap().to_vec())
        .filter(|bytes| bytes[1] == 0)
        .collect();
    let (mut passed, mut numbers) = (0, Numbers(5));
    for round in 0..4000 {
        let mut bytes = leaves[round % leaves.len()].clone();
        let places = if round % 2 == 0 { bytes.len() } else { 300 };
        let at = numbers.below(places.min(bytes.len()));
        bytes[at] ^= 1 << numbers.below(8);
        if check_node(&bytes).is_err() {
            continue;
        }
        passed += 1;
        let node = Node::open(&bytes).unwrap();
        let (mut list, mut key) = (Changes::default(), node::KeyBuf::default());
        for index in 0..node.len() {
            let place = node.place(index);
            node.key_at(&place, &mut key);
            list.put(key.as_slice(), node.value(&place)).unwrap();
        }
        let built = forest
            .writer
            .apply(&forest.nodes, &EMPTY_TREE, &list)
            .unwrap();
        assert_eq!(built, ObjectId::of_node(&bytes));
    }
    assert!(passed > 100, "{passed}");
}

#[test]
fn what_the_check_finds() {
    // A leaf of `a`, `ab` and `b`, with values of 1, 0 and 2 bytes.
    let leaf = |heads: [(u32, u32, u32); 3], body: &[u8]| {
        let mut bytes = vec![1, 0, 3, 0];
        for (shared, suffix, code) in heads {
            bytes.extend((shared | suffix << 11 | code << 22).to_le_bytes());
        }
        bytes.extend(body);
        bytes
    };
    let good = [(0, 1, 1), (1, 1, 0), (0, 1, 2)];
    assert_eq!(check_node(&leaf(good, b"abbxyz")), Ok(()));
    let check = |no: usize, head, body: &[u8]| {
        let mut heads = good;
        heads[no] = head;
        check_node(&leaf(heads, body))
    };
    assert_eq!(
        check(1, (0, 2, 0), b"aabbxyz"),
        Err(Damage::Order),
        "it shares more"
    );
    assert_eq!(
        check(2, (1, 1, 2), b"abbxyz"),
        Err(Damage::Order),
        "the same key again"
    );
    assert_eq!(check(2, (0, 1, 2), b"aba xyz"), Err(Damage::Length));
    assert_eq!(check_node(&leaf(good, b"abaxyz")), Err(Damage::Order));
    assert_eq!(check(1, (2, 1, 0), b"abbxyz"), Err(Damage::KeyLength));
    assert_eq!(check(1, (1, 0, 0), b"abxyz"), Err(Damage::KeyLength));
    assert_eq!(check(1, (1, 1, 67), b"abbxyz"), Err(Damage::Code));
    let blob = [&b"abbx"[..], &[0; 32], &64_u32.to_le_bytes(), b"yz"].concat();
    assert_eq!(check(1, (1, 1, 65), &blob), Err(Damage::ValueLength));
    let good = leaf(good, b"abbxyz");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        check_node(&bytes)
    };
    assert_eq!(with(0, 2), Err(Damage::Version(2)));
    assert_eq!(with(1, LEVEL_MAX + 1), Err(Damage::Header));
    assert_eq!(with(2, 0), Err(Damage::Header));
    assert_eq!(with(2, 200), Err(Damage::Short));
    assert_eq!(check_node(&good[..3]), Err(Damage::Short));
    assert_eq!(check_node(&good[..good.len() - 1]), Err(Damage::Length));
    assert_eq!(check_node(&EMPTY_NODE), Err(Damage::Header));
}

/// Children that are not what their parent says.
#[test]
fn children_that_do_not_fit() {
    let mut forest = Forest::default();
    let model = state(300, 3);
    let root = forest.build(&model);
    let top = forest.nodes.node(&root).unwrap().to_vec();
    let node = Node::open(&top).unwrap();
    let (first, second) = (node.child(0).0, node.child(1).0);
    let swap = |from: ObjectId, to: &[u8]| {
        let mut nodes = forest.nodes.clone();
        nodes.remove(&from);
        nodes.extend([(from, to)]);
        let mut scan = Scan::new(&nodes, &root, b"", b"").unwrap();
        loop {
            match scan.next() {
                Ok(Some(_)) => {}
                other => break other.map(|_| ()),
            }
        }
    };
    let damaged = |id, damage| Err(TreeError::Damaged { id, damage });
    let bytes = forest.nodes.node(&first).unwrap();
    assert_eq!(swap(second, bytes), damaged(second, Damage::FirstKey));
    assert_eq!(swap(second, &top), damaged(second, Damage::Level));
    // One entry less, and all lengths right.
    let node = Node::open(forest.nodes.node(&second).unwrap()).unwrap();
    let end = node.place_before(&node.end());
    let (heads, suffixes, payloads) = node.run(&Place::default(), &end);
    let header = [1, 0, end.index as u8, 0];
    let short = [&header[..], heads, suffixes, payloads].concat();
    assert_eq!(check_node(&short), Ok(()));
    assert_eq!(swap(second, &short), damaged(second, Damage::Count));
}
