//! Tests of trees against sorted maps with full copies.

use std::collections::{BTreeMap, HashSet};

use super::*;

mod damage;
mod diffs;
mod merges;
mod shapes;
pub mod vectors;
mod writes;

/// What a tree should hold: the bytes of each value.
pub(super) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// The value that bytes have in a tree. Chunks are named by a blob's id: the tree does not look.
pub(super) fn value(bytes: &[u8]) -> Value<'_> {
    let (id, len) = (ObjectId::of_blob(bytes), bytes.len() as u32);
    match bytes.len() {
        0..=INLINE_BYTES_MAX => Value::Inline(bytes),
        _ if len <= BLOB_BYTES_MAX => Value::Blob { id, bytes: len },
        _ => Value::Chunks { id, bytes: len },
    }
}

pub(super) fn changes<'a>(
    list: impl IntoIterator<Item = (&'a Vec<u8>, Option<&'a Vec<u8>>)>,
) -> Changes {
    let mut changes = Changes::default();
    for (key, bytes) in list {
        match bytes {
            Some(bytes) => changes.put(key, value(bytes)).unwrap(),
            None => changes.delete(key).unwrap(),
        }
    }
    changes.sort();
    changes
}

/// Nodes and a writer.
#[derive(Default)]
pub(super) struct Forest {
    pub nodes: MemoryNodes,
    pub writer: TreeWriter,
}

impl Forest {
    pub fn apply(&mut self, root: &ObjectId, changes: &Changes) -> ObjectId {
        let old = self.ids(root);
        let root = self.writer.apply(&self.nodes, root, changes).unwrap();
        let mut known = old.clone();
        for (id, bytes) in self.writer.new_nodes() {
            assert_eq!(id, ObjectId::of_node(bytes));
            check_node(bytes).unwrap();
            let node = Node::open(bytes).unwrap();
            let children = (0..node.len()).filter(|_| node.level() > 0);
            assert!(
                children
                    .map(|no| node.child(no).0)
                    .all(|child| known.contains(&child)),
                "children come before their parents"
            );
            assert!(known.insert(id), "a node is new once");
        }
        self.nodes.extend(self.writer.new_nodes());
        if let Some(keys) = self.writer.keys() {
            assert_eq!(count(&self.nodes, &root), Ok(keys));
        }
        let tree = self.ids(&root);
        let mut new = self.writer.new_nodes();
        assert!(
            new.all(|(id, _)| tree.contains(&id)),
            "new nodes are of the new tree"
        );
        assert!(
            tree.is_subset(&known),
            "a node of the new tree is old or new"
        );
        root
    }

    /// The ids of all nodes of a tree.
    pub fn ids(&self, root: &ObjectId) -> HashSet<ObjectId> {
        let mut ids = HashSet::new();
        let mut left: Vec<_> = [*root]
            .into_iter()
            .filter(|root| *root != EMPTY_TREE)
            .collect();
        while let Some(id) = left.pop() {
            let node = open(&self.nodes, &id).unwrap();
            if node.level() > 0 {
                left.extend((0..node.len()).map(|no| node.child(no).0));
            }
            ids.insert(id);
        }
        ids
    }

    /// Builds a tree without regard to those that are there.
    pub fn build(&mut self, model: &Model) -> ObjectId {
        let all = changes(model.iter().map(|(key, bytes)| (key, Some(bytes))));
        let root = self.writer.apply(&self.nodes, &EMPTY_TREE, &all).unwrap();
        self.nodes.extend(self.writer.new_nodes());
        root
    }

    /// Checks all that can be read of a tree.
    pub fn check(&mut self, root: &ObjectId, model: &Model) {
        assert_eq!(self.build(model), *root, "equal content, equal id");
        assert_eq!(count(&self.nodes, root), Ok(model.len() as u32));
        let mut scan = Scan::new(&self.nodes, root, b"", b"").unwrap();
        for (key, bytes) in model {
            assert_eq!(scan.next(), Ok(Some((&key[..], value(bytes)))));
            assert_eq!(get(&self.nodes, root, key), Ok(Some(value(bytes))));
        }
        assert_eq!(scan.next(), Ok(None));
        assert_eq!(scan.next(), Ok(None));
    }
}

/// Numbers that are the same in every run.
pub(super) struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        boundary::key_hash(&self.0.to_le_bytes())
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Bytes of a value: mostly short, some of each form.
    pub fn value(&mut self) -> Vec<u8> {
        let bytes = match self.below(20) {
            0..10 => self.below(12),
            10..14 => self.below(65),
            14..19 => 65 + self.below(300),
            _ => 16_000 + self.below(1000),
        };
        let seed = self.next().to_le_bytes();
        (0..bytes).map(|at| seed[at % 8]).collect()
    }
}

/// A state of an agent, as keys go: some prefixes, numbers with zeros before them.
pub(super) fn state(keys: usize, seed: u64) -> Model {
    let mut numbers = Numbers(seed << 32);
    (0..keys)
        .map(|no| {
            let key = match no % 3 {
                0 => format!("messages/{:06}/content", no / 3),
                1 => format!("tools/{:04}", no / 3),
                _ => format!("memory:{}\n{}", numbers.below(7), no / 3),
            };
            (key.into_bytes(), numbers.value())
        })
        .collect()
}

/// A store that has some nodes, and is given those that it is asked for.
pub(super) struct Sparse<'a> {
    all: &'a MemoryNodes,
    some: MemoryNodes,
}

impl<'a> Sparse<'a> {
    pub fn new(all: &'a MemoryNodes) -> Self {
        Self {
            all,
            some: MemoryNodes::default(),
        }
    }

    /// Repeats what meets absent nodes until it needs no more of them; how often.
    pub fn repeat<T>(
        &mut self,
        mut operation: impl FnMut(&MemoryNodes) -> Result<T, TreeError>,
    ) -> (T, usize) {
        let mut absent = 0;
        loop {
            match operation(&self.some) {
                Ok(done) => return (done, absent),
                Err(TreeError::Absent(id)) => {
                    let bytes = self.all.node(&id).expect("a node of the tree");
                    assert!(self.some.node(&id).is_none(), "it is there");
                    self.some.extend([(id, bytes)]);
                    absent += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}
