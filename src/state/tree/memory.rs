//! Nodes in a map: for tests, benches, and whoever keeps a whole tree in memory.
//!
//! Floor 1.

use std::collections::HashMap;

use crate::id::ObjectId;

use super::Nodes;

/// A store of nodes that forgets none.
#[derive(Clone, Debug, Default)]
pub struct MemoryNodes {
    map: HashMap<ObjectId, Box<[u8]>>,
    bytes: usize,
}

impl MemoryNodes {
    /// Takes a node out, as if it had to be fetched from elsewhere.
    pub fn remove(&mut self, id: &ObjectId) -> Option<Box<[u8]>> {
        let removed = self.map.remove(id);
        self.bytes -= removed.as_ref().map_or(0, |bytes| bytes.len());
        removed
    }

    /// Bytes of all nodes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The nodes that are held, in no order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ObjectId, &[u8])> {
        self.map.iter().map(|(id, bytes)| (id, &**bytes))
    }
}

impl Nodes for MemoryNodes {
    fn node(&self, id: &ObjectId) -> Option<&[u8]> {
        self.map.get(id).map(|bytes| &**bytes)
    }
}

impl<'a> Extend<(ObjectId, &'a [u8])> for MemoryNodes {
    fn extend<T: IntoIterator<Item = (ObjectId, &'a [u8])>>(&mut self, nodes: T) {
        for (id, bytes) in nodes {
            self.map.entry(id).or_insert_with(|| {
                self.bytes += bytes.len();
                bytes.into()
            });
        }
    }
}
