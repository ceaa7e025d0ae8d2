//! The working set of one agent: its keys, and which object each of them names.
//!
//! Floor 1. Point lookups go through a hash table; the ordered view that scans need is built at an
//! agent's first scan and kept from then on, so that agents that never scan don't pay for it.
//!
//! Cost: a lookup touches a control line, an entry and the key (3 cache lines) and hashes the key
//! with SipHash, keyed at random: an agent can't choose keys that collide and stall its shard. An
//! overwrite allocates nothing; a new key allocates its bytes once, twice where the agent scans.
//!
//! Invariants
//! - `ordered`, where it exists, holds exactly the keys of `table`.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;

/// What a key names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    /// The number of the object (the shard's index knows the rest).
    pub object: u32,
    /// Bytes of the value, all parts together.
    pub bytes: u64,
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    value: Value,
}

/// The keys of one agent.
#[derive(Debug, Default)]
pub struct WorkingSet {
    table: HashTable<Entry>,
    ordered: Option<BTreeSet<Box<[u8]>>>,
    hasher: RandomState,
    key_bytes: usize,
}

impl WorkingSet {
    /// What the key names.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Value> {
        let hash = self.hasher.hash_one(key);
        self.table
            .find(hash, |entry| *entry.key == *key)
            .map(|entry| entry.value)
    }

    /// Lets the key name `value`; what it named before.
    pub fn put(&mut self, key: &[u8], value: Value) -> Option<Value> {
        let hash = self.hasher.hash_one(key);
        let hasher = &self.hasher;
        let found = self.table.entry(
            hash,
            |entry| *entry.key == *key,
            |entry| hasher.hash_one(&*entry.key),
        );
        match found {
            TableEntry::Occupied(mut entry) => {
                Some(std::mem::replace(&mut entry.get_mut().value, value))
            }
            TableEntry::Vacant(place) => {
                place.insert(Entry {
                    key: key.into(),
                    value,
                });
                self.key_bytes += key.len();
                if let Some(ordered) = &mut self.ordered {
                    ordered.insert(key.into());
                }
                None
            }
        }
    }

    /// Removes the key; what it named.
    pub fn remove(&mut self, key: &[u8]) -> Option<Value> {
        let hash = self.hasher.hash_one(key);
        let entry = self
            .table
            .find_entry(hash, |entry| *entry.key == *key)
            .ok()?;
        let (removed, _) = entry.remove();
        self.key_bytes -= key.len();
        if let Some(ordered) = &mut self.ordered {
            ordered.remove(key);
        }
        Some(removed.value)
    }

    /// The keys that begin with `prefix` and come after `after` (all of them where it is empty),
    /// in order of their bytes. The first call sorts the agent's keys.
    pub fn scan<'a>(
        &'a mut self,
        prefix: &'a [u8],
        after: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], Value)> {
        let table = &self.table;
        let hasher = &self.hasher;
        let ordered = self
            .ordered
            .get_or_insert_with(|| table.iter().map(|entry| entry.key.clone()).collect());
        let from = if after.is_empty() || after < prefix {
            Bound::Included(prefix)
        } else {
            Bound::Excluded(after)
        };
        ordered
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(move |key| key.starts_with(prefix))
            .map(move |key| {
                let hash = hasher.hash_one(&**key);
                let entry = table.find(hash, |entry| entry.key == *key);
                (
                    &**key,
                    entry.expect("ordered holds the keys of table").value,
                )
            })
    }

    /// What all keys name, in no order.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        self.table.iter().map(|entry| entry.value)
    }

    /// Keys held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no key is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Memory taken, in bytes: tables, keys and what the allocator adds to each key.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        // glibc rounds to 16 and adds 8.
        const ALLOCATION: usize = 16;
        let keys = self.key_bytes + self.len() * ALLOCATION;
        let ordered = self.ordered.as_ref().map_or(0, |set| keys + set.len() * 24);
        self.table.allocation_size() + keys + ordered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn check(operations: &[(u8, Vec<u8>)]) {
        let mut set = WorkingSet::default();
        let mut model = BTreeMap::new();
        for (no, (kind, key)) in operations.iter().enumerate() {
            let value = Value {
                object: no as u32,
                bytes: key.len() as u64,
            };
            match kind % 4 {
                0 | 1 => assert_eq!(set.put(key, value), model.insert(key.clone(), value)),
                2 => assert_eq!(set.remove(key), model.remove(key)),
                _ => {
                    let prefix = &key[..key.len() / 2];
                    let found: Vec<_> = set
                        .scan(prefix, key)
                        .map(|(k, v)| (k.to_vec(), v))
                        .collect();
                    let wanted: Vec<_> = model
                        .iter()
                        .filter(|(k, _)| k.starts_with(prefix) && (key.is_empty() || *k > key))
                        .map(|(k, v)| (k.clone(), *v))
                        .collect();
                    assert_eq!(found, wanted);
                }
            }
            assert_eq!(set.get(key), model.get(key).copied());
            assert_eq!(set.len(), model.len());
        }
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_sorted_map(
            operations in proptest::collection::vec(
                (0u8..4, proptest::collection::vec(0u8..4, 0..6)), 0..200)
        ) {
            check(&operations);
        }
    }
}
