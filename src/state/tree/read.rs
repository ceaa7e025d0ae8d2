//! Point lookups, counts and ordered scans.
//!
//! Floor 1. A lookup allocates nothing and checks no more of a node than it reads; a scan checks all of
//! it.

use std::ops::Bound;

use crate::id::ObjectId;

use super::error::TreeError;
use super::node::Sought;
use super::spine::child_of;
use super::value::Value;
use super::walk::{Entry, Walk};
use super::{EMPTY_TREE, Nodes, damaged, open};

/// The value of a key; `None` where the tree has no such key.
///
/// # Errors
/// [`TreeError::Absent`] names a node to fetch before the next try; a damaged node.
pub fn get<'n>(
    nodes: &'n impl Nodes,
    root: &ObjectId,
    key: &[u8],
) -> Result<Option<Value<'n>>, TreeError> {
    if *root == EMPTY_TREE {
        return Ok(None);
    }
    let mut node = open(nodes, root)?;
    while node.level() > 0 {
        let (child, _) = node.child(node.floor(key));
        node = child_of(nodes, &node, &child)?;
    }
    let sought = node.seek(key, Sought::default());
    Ok(sought.exact.then(|| node.value(&sought.place)))
}

/// Keys in a tree, told by its root alone.
///
/// # Errors
/// The root is absent or damaged.
pub fn count(nodes: &impl Nodes, root: &ObjectId) -> Result<u32, TreeError> {
    if *root == EMPTY_TREE {
        return Ok(0);
    }
    let node = open(nodes, root)?;
    node.keys().map_err(|damage| damaged(root, damage))
}

/// The keys of a tree that begin with a prefix, in order of their bytes.
///
/// After [`TreeError::Absent`] the same scan goes on when the node is there; where nodes have to be
/// dropped meanwhile, a new scan goes on after the last key that was seen.
///
/// ```
/// # use helios::state::tree::{Changes, EMPTY_TREE, MemoryNodes, Scan, TreeWriter, Value};
/// # let mut nodes = MemoryNodes::default();
/// # let mut changes = Changes::default();
/// # for key in [&b"a/1"[..], b"a/2", b"b"] { changes.put(key, Value::Inline(b"x")).unwrap(); }
/// # let mut writer = TreeWriter::default();
/// # let root = writer.apply(&nodes, &EMPTY_TREE, &changes).unwrap();
/// # nodes.extend(writer.new_nodes());
/// let mut scan = Scan::new(&nodes, &root, b"a/", b"").unwrap();
/// while let Some((key, value)) = scan.next().unwrap() {
///     println!("{key:?} {value:?}");
/// }
/// ```
pub struct Scan<'n, 'p, N> {
    nodes: &'n N,
    walk: Walk<'n>,
    prefix: &'p [u8],
    /// Whether the walk is at a key that was returned.
    returned: bool,
}

impl<'n, 'p, N: Nodes> Scan<'n, 'p, N> {
    /// The keys that begin with `prefix` (all, if it is empty) and come after `after` (all of them, if
    /// it is empty).
    ///
    /// # Errors
    /// A node on the way to the first key is absent or damaged.
    pub fn new(
        nodes: &'n N,
        root: &ObjectId,
        prefix: &'p [u8],
        after: &[u8],
    ) -> Result<Self, TreeError> {
        let from = if after.is_empty() || after < prefix {
            Bound::Included(prefix)
        } else {
            Bound::Excluded(after)
        };
        Ok(Self {
            nodes,
            walk: Walk::start(nodes, root, from)?,
            prefix,
            returned: false,
        })
    }

    /// The next key and its value; `None` behind the last one.
    ///
    /// # Errors
    /// A node is absent or damaged.
    #[expect(
        clippy::should_implement_trait,
        reason = "the key is lent until the next call"
    )]
    pub fn next(&mut self) -> Result<Option<(&[u8], Value<'n>)>, TreeError> {
        if self.returned {
            self.returned = false;
            self.walk.step_over()?;
        }
        self.walk.step_to_item(self.nodes)?;
        match self.walk.entry() {
            Some(Entry::Item(value)) if self.walk.key().starts_with(self.prefix) => {
                self.returned = true;
                Ok(Some((self.walk.key(), value)))
            }
            _ => Ok(None),
        }
    }
}
