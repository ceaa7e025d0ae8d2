//! What lies below a working set: lookups in the base tree, and the nodes they need.
//!
//! Floor 2. A node is taken from memory, or from a segment whose pages are in memory; one that is on the
//! device stops the operation, which is done again from its beginning when the I/O core has read it.
//!
//! Invariants
//! - a value that the tree names is an object of this shard; where it is not, the tree is damaged.
//! - an operation that is stopped has changed nothing but what is remembered of the tree.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use crate::id::{OBJECT_ID_BYTES, ObjectId};
use crate::segment::index::{ObjectIndex, ObjectNo};
use crate::segment::{Disk, Log, ObjectKind, Read};
use crate::shard::agent::BranchRef;
use crate::shard::nodes::{ById, NodeCache};
use crate::shard::store::{Piece, Refused, Store};
use crate::state::Value;
use crate::state::tree::{self, EMPTY_TREE, Nodes, TreeError};

impl<D: Disk> Store<D> {
    /// What a key of a branch names, be it in its working set or in the tree below.
    ///
    /// # Errors
    /// [`Refused::Cold`], [`Refused::Corrupt`].
    #[inline]
    pub fn lookup(&mut self, at: BranchRef, key: &[u8]) -> Result<Option<Value>, Refused> {
        let branch = self.tables.branch(at);
        match branch.keys.get(key) {
            Some(held) => Ok(held.value),
            None if branch.base == EMPTY_TREE => Ok(None),
            None => self.lookup_base(at, key),
        }
    }

    /// Checks what a caller expects a key to name: `None` nothing, `Some(id)` that value.
    pub fn expect(
        &mut self,
        at: BranchRef,
        key: &[u8],
        expected: &[u8; OBJECT_ID_BYTES],
    ) -> Result<(), Refused> {
        let current = self.lookup(at, key)?.map(|value| self.value_id(value));
        let matches = match current {
            None => *expected == [0; OBJECT_ID_BYTES],
            Some(id) => id.as_bytes() == expected,
        };
        if matches {
            Ok(())
        } else {
            Err(Refused::Stale(current))
        }
    }

    /// What the base tree says of a key; it is remembered in the working set, if there is memory.
    fn lookup_base(&mut self, at: BranchRef, key: &[u8]) -> Result<Option<Value>, Refused> {
        let root = self.tables.branch(at).base;
        let found = self.with_nodes(|nodes| {
            let found = tree::get(nodes, &root, key)?;
            Ok(found.map(|value| reference(&value)))
        })?;
        let Some((id, bytes)) = found else {
            return Ok(None);
        };
        let object = self
            .tables
            .objects
            .find_named(&id)
            .ok_or(Refused::Corrupt)?;
        let value = Value {
            object: object.0,
            bytes,
        };
        if self.may_remember(key.len()) && self.tables.branch_mut(at).keys.learn(key, value) {
            self.tables.objects.acquire(object);
            self.tables.keys += 1;
        }
        Ok(Some(value))
    }

    /// Runs an operation on trees: nodes that are not in memory are fetched as it meets them, as long as
    /// that takes no device. It begins again where there were more than `FRESH_MAX` of them.
    ///
    /// # Errors
    /// [`Refused::Cold`], [`Refused::Corrupt`].
    pub fn with_nodes<T>(
        &mut self,
        mut run: impl FnMut(&AtHand<'_, D>) -> Result<T, TreeError>,
    ) -> Result<T, Refused> {
        loop {
            let at_hand = AtHand {
                nodes: &self.nodes,
                objects: &self.tables.objects,
                log: &self.log,
                disk: RefCell::new(&mut self.disk),
                fetched: &self.fetched,
            };
            let outcome = run(&at_hand);
            let some = self.fetched.move_into(&mut self.nodes);
            match outcome {
                Ok(done) => return Ok(done),
                Err(TreeError::Absent(_)) if some => {}
                Err(TreeError::Absent(id)) => self.fetch_node(&id)?,
                Err(_) => return Err(Refused::Corrupt),
            }
        }
    }

    /// Brings a node into memory.
    pub fn fetch_node(&mut self, id: &ObjectId) -> Result<(), Refused> {
        let no = self.tables.objects.find_named(id).ok_or(Refused::Corrupt)?;
        let object = self.tables.objects.get(no);
        let (at, kind) = (object.at, object.kind);
        match self.log.read(&mut self.disk, at) {
            Read::Cold => Err(Refused::Cold(no)),
            Read::Here(stored) if kind == ObjectKind::Node && kind.id_of(stored) == *id => {
                self.nodes.insert(id, stored);
                Ok(())
            }
            Read::Here(_) => {
                self.quarantine(no);
                Err(Refused::Corrupt)
            }
        }
    }

    /// Takes an object that the I/O core read for an operation that was stopped; whether its bytes
    /// are what they should be.
    pub fn take_fetched(&mut self, no: ObjectNo, stored: &[u8]) -> bool {
        let object = self.tables.objects.get(no);
        if object.kind != ObjectKind::Node {
            return self.take_cold(no, stored);
        }
        let id = object.id;
        let good = ObjectId::of_node(stored) == id;
        if good {
            self.nodes.insert(&id, stored);
        } else {
            self.quarantine(no);
        }
        good
    }

    /// Copies a whole object to the end of `out`.
    ///
    /// # Errors
    /// [`Refused::Cold`], [`Refused::Corrupt`].
    pub fn read_whole(&mut self, no: ObjectNo, out: &mut Vec<u8>) -> Result<(), Refused> {
        let bytes = self.tables.objects.get(no).at.bytes as usize;
        match self.piece(no, 0, bytes, |chunk| out.extend_from_slice(chunk)) {
            Piece::L2 | Piece::L3 => Ok(()),
            Piece::Cold(_) => Err(Refused::Cold(no)),
            Piece::Corrupt => Err(Refused::Corrupt),
        }
    }
}

/// Nodes that one run of an operation fetches at most.
const FRESH_MAX: usize = 1024;

/// Nodes for one run of an operation: those in memory, and those that it brings there.
pub struct AtHand<'a, D> {
    nodes: &'a NodeCache,
    objects: &'a ObjectIndex,
    log: &'a Log,
    disk: RefCell<&'a mut D>,
    fetched: &'a Fetched,
}

/// What one run fetches; the memory for it is kept from one to the next.
pub struct Fetched {
    slots: Box<[Fresh]>,
    /// Where in `slots` a node is.
    index: RefCell<HashMap<ObjectId, usize, ById>>,
}

/// A place for a node that is fetched.
type Fresh = OnceCell<(ObjectId, Vec<u8>)>;

impl Default for Fetched {
    fn default() -> Self {
        Self {
            slots: (0..FRESH_MAX).map(|_| Fresh::new()).collect(),
            index: RefCell::default(),
        }
    }
}

impl Fetched {
    /// Moves what was fetched to the other nodes in memory; whether that was anything.
    fn move_into(&mut self, nodes: &mut NodeCache) -> bool {
        let index = self.index.get_mut();
        let some = !index.is_empty();
        for slot in &mut self.slots[..index.len()] {
            if let Some((id, bytes)) = slot.take() {
                nodes.take(&id, bytes);
            }
        }
        index.clear();
        some
    }
}

impl<D: Disk> AtHand<'_, D> {
    /// The objects that are stored.
    pub fn objects(&self) -> &ObjectIndex {
        self.objects
    }

    fn fetch(&self, id: &ObjectId) -> Option<&[u8]> {
        let slots = &self.fetched.slots;
        let mut index = self.fetched.index.borrow_mut();
        if let Some(&at) = index.get(id) {
            return slots[at].get().map(|(_, bytes)| &**bytes);
        }
        let at = index.len();
        let slot = slots.get(at)?;
        let object = self.objects.get(self.objects.find_named(id)?);
        let mut disk = self.disk.borrow_mut();
        // What is cold or damaged is found to be so by `fetch_node`.
        let Read::Here(stored) = self.log.read(&mut **disk, object.at) else {
            return None;
        };
        if object.kind != ObjectKind::Node || object.kind.id_of(stored) != *id {
            return None;
        }
        index.insert(*id, at);
        let (_, bytes) = slot.get_or_init(|| (*id, self.nodes.copy(stored)));
        Some(bytes)
    }
}

impl<D: Disk> Nodes for AtHand<'_, D> {
    #[inline]
    fn node(&self, id: &ObjectId) -> Option<&[u8]> {
        self.nodes.node(id).or_else(|| self.fetch(id))
    }
}

/// The id and the length of a value in a tree. A value that lies in the tree itself is an object too:
/// that of the put that brought it.
pub fn reference(value: &tree::Value<'_>) -> (ObjectId, u64) {
    let id = match value {
        tree::Value::Inline(bytes) => ObjectId::of_blob(bytes),
        tree::Value::Blob { id, .. } | tree::Value::Chunks { id, .. } => *id,
    };
    (id, u64::from(value.bytes()))
}
