//! The working set of one branch: what changed since its base tree, and what was lately read of it.
//!
//! Floor 1. Over a tree that holds all that a checkpoint holds lies this table of single keys: each
//! names an object, or says that the key is gone. What is in neither is absent. Keys that agree with
//! the tree are kept only because the next read is then one lookup; whoever needs memory may drop them.
//!
//! Point lookups go through a hash table; the ordered view that scans need is built at the first scan
//! and kept from then on, so that who never scans doesn't pay for it.
//!
//! Cost: a lookup touches a control line, an entry and the key (3 cache lines) and hashes the key
//! with SipHash, keyed at random: an agent can't choose keys that collide and stall its shard. An
//! overwrite allocates nothing, a new key nothing but the growth of the table and of the buffer of keys;
//! where the agent scans, its bytes once more. An entry takes 16 bytes, about 24 with the free ones.
//! A change of a key that was unchanged pushes 8 bytes; that one is dropped before a checkpoint held it
//! takes them back, at the price of one more lookup.
//!
//! Invariants
//! - `ordered`, where it exists, holds exactly the keys of `table`.
//! - `keys` holds the keys of `table`, each at the place that its entry names, and no other.
//! - `changed` holds one hash for each changed entry and no other, at the index that the entry names.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;

use hashbrown::HashTable;
use hashbrown::hash_table::IntoIter;

use crate::id::VALUE_BYTES_MAX;
use crate::state::keys::Keys;

/// What a key names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    /// The number of the object (the shard's index knows the rest).
    pub object: u32,
    /// Bytes of the value, all parts together.
    pub bytes: u64,
}

/// What the working set knows of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// What the key names; `None`: it was deleted since the base tree.
    pub value: Option<Value>,
    /// Whether it was written or deleted since; else it is what the base tree says.
    pub changed: bool,
}

/// The place in `changed` of an entry that did not change.
const UNCHANGED: u32 = u32::MAX;

#[derive(Debug)]
struct Entry {
    /// The lower half of where its key begins.
    key_low: u32,
    /// The rest of that, above [`BYTES_BITS`]; below, the bytes of the value, or [`GONE`].
    packed: u32,
    object: u32,
    /// Where its hash is in `changed`.
    listed: u32,
}

/// Room that a set begins with where it is made in advance: keys, bytes of them, changes.
const ROOM: (usize, usize, usize) = (7, 256, 8);
/// The most of it, however large the set was that it follows.
const ROOM_MAX: (usize, usize) = (1024, 64 << 10);

/// Bits of a value's length.
const BYTES_BITS: u32 = 28;
/// The bytes of a value that is gone: no value has so many.
const GONE: u32 = (1 << BYTES_BITS) - 1;
/// Keys of one branch take fewer bytes in all: 64 GiB.
const KEY_PLACE_END: u64 = 1 << (64 - BYTES_BITS);
const _: () = assert!(VALUE_BYTES_MAX < GONE as u64);
const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    fn new(key: u64) -> Self {
        let mut entry = Self {
            key_low: 0,
            packed: GONE,
            object: 0,
            listed: UNCHANGED,
        };
        entry.set_key(key);
        entry
    }

    #[inline]
    fn key(&self) -> u64 {
        u64::from(self.packed >> BYTES_BITS) << 32 | u64::from(self.key_low)
    }

    fn set_key(&mut self, place: u64) {
        assert!(place < KEY_PLACE_END, "64 GiB of keys");
        self.key_low = place as u32;
        self.packed = self.packed & GONE | ((place >> 32) as u32) << BYTES_BITS;
    }

    fn is_gone(&self) -> bool {
        self.packed & GONE == GONE
    }

    #[inline]
    fn held(&self) -> Held {
        let value = Value {
            object: self.object,
            bytes: u64::from(self.packed & GONE),
        };
        Held {
            value: (!self.is_gone()).then_some(value),
            changed: self.listed != UNCHANGED,
        }
    }

    fn set(&mut self, value: Option<Value>) {
        let (object, bytes) = value.map_or((0, GONE), |value| (value.object, value.bytes as u32));
        self.object = object;
        self.packed = self.packed & !GONE | bytes;
    }
}

/// The changes of one branch, and what was read of its base.
#[derive(Debug, Default)]
pub struct WorkingSet {
    table: HashTable<Entry>,
    ordered: Option<BTreeSet<Box<[u8]>>>,
    hasher: RandomState,
    keys: Keys,
    /// Hashes of the keys that changed, in no order.
    changed: Vec<u64>,
    /// Grows with every call that may have changed anything.
    edits: u64,
}

impl WorkingSet {
    /// What is known of the key; `None`: ask the base tree.
    #[must_use]
    #[inline]
    pub fn get(&self, key: &[u8]) -> Option<Held> {
        let hash = self.hasher.hash_one(key);
        self.table
            .find(hash, |entry| self.keys.at(entry.key()) == key)
            .map(Entry::held)
    }

    /// Lets the key name `value` from now on; what was known of it.
    pub fn put(&mut self, key: &[u8], value: Value) -> Option<Held> {
        let held = Held {
            value: Some(value),
            changed: true,
        };
        self.set(key, held)
    }

    /// Takes the key out of the branch; what was known of it.
    pub fn remove(&mut self, key: &[u8]) -> Option<Held> {
        let held = Held {
            value: None,
            changed: true,
        };
        self.set(key, held)
    }

    /// Keeps what the base tree says of a key, if nothing is known of it; whether it was kept. A value
    /// larger than any is not.
    pub fn learn(&mut self, key: &[u8], value: Value) -> bool {
        if value.bytes > VALUE_BYTES_MAX || self.get(key).is_some() {
            return false;
        }
        let held = Held {
            value: Some(value),
            changed: false,
        };
        self.set(key, held);
        true
    }

    /// Makes an entry what it was: `before` as [`WorkingSet::put`] and the like returned it. What was
    /// known of the key in between.
    pub fn put_back(&mut self, key: &[u8], before: Option<Held>) -> Option<Held> {
        match before {
            Some(held) => self.set(key, held),
            None => self.forget(key),
        }
    }

    fn set(&mut self, key: &[u8], held: Held) -> Option<Held> {
        debug_assert!(held.value.is_none_or(|it| it.bytes <= VALUE_BYTES_MAX));
        self.edits += 1;
        let hash = self.hasher.hash_one(key);
        let (keys, next_listed) = (&self.keys, self.changed.len() as u32);
        let found = self
            .table
            .find_mut(hash, |entry| keys.at(entry.key()) == key);
        let (before, entry) = match found {
            Some(entry) => (Some(entry.held()), entry),
            None => (None, self.add(hash, key)),
        };
        entry.set(held.value);
        match (entry.listed, held.changed) {
            (UNCHANGED, true) => {
                entry.listed = next_listed;
                self.changed.push(hash);
            }
            (UNCHANGED, false) | (_, true) => {}
            (listed, false) => {
                entry.listed = UNCHANGED;
                self.unlist(listed);
            }
        }
        before
    }

    /// Adds an entry for a key that has none.
    fn add(&mut self, hash: u64, key: &[u8]) -> &mut Entry {
        let Self {
            table,
            hasher,
            keys,
            ..
        } = self;
        if keys.wants_packing(key.len()) {
            keys.pack(|key, from, to| {
                let entry = table.find_mut(hasher.hash_one(key), |entry| entry.key() == from);
                entry.expect("each key has its entry").set_key(to);
            });
        }
        if let Some(ordered) = &mut self.ordered {
            ordered.insert(key.into());
        }
        let entry = Entry::new(keys.push(key));
        let hash_of = |entry: &Entry| hasher.hash_one(keys.at(entry.key()));
        table.insert_unique(hash, entry, hash_of).into_mut()
    }

    /// Drops an entry; what was known of the key.
    fn forget(&mut self, key: &[u8]) -> Option<Held> {
        self.edits += 1;
        let hash = self.hasher.hash_one(key);
        let entry = self
            .table
            .find_entry(hash, |entry| self.keys.at(entry.key()) == key)
            .ok()?;
        let (removed, _) = entry.remove();
        self.keys.remove(removed.key());
        if let Some(ordered) = &mut self.ordered {
            ordered.remove(key);
        }
        if removed.listed != UNCHANGED {
            self.unlist(removed.listed);
        }
        Some(removed.held())
    }

    /// Takes a hash out of `changed`, whose entry is gone or names it no more; the last one takes
    /// its place.
    fn unlist(&mut self, listed: u32) {
        self.changed.swap_remove(listed as usize);
        let Some(&moved) = self.changed.get(listed as usize) else {
            return;
        };
        let last = self.changed.len() as u32;
        let entry = self.table.find_mut(moved, |entry| entry.listed == last);
        entry.expect("each hash in changed has its entry").listed = listed;
    }

    /// Keys that were written or deleted since the base tree.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.changed.len()
    }

    /// A number that grows with every change to the set: while it is the same, so are places that
    /// [`WorkingSet::sort_changes`] gave, and what is there.
    #[must_use]
    pub fn edits(&self) -> u64 {
        self.edits
    }

    /// One of the changed keys, in no order, and what is known of it. A change of another key leaves
    /// it where it is, or moves it to a lower number.
    ///
    /// # Panics
    /// If `listed` is not below [`WorkingSet::changes`].
    #[must_use]
    pub fn changed(&self, listed: usize) -> (&[u8], Held) {
        let mut same_hash = self.table.iter_hash(self.changed[listed]);
        let entry = same_hash.find(|entry| entry.listed == listed as u32);
        let entry = entry.expect("each hash in changed has its entry");
        (self.keys.at(entry.key()), entry.held())
    }

    /// Fills `places` with the changed entries in the order of their keys; [`WorkingSet::at`] reads
    /// them. They are good until the next call that changes anything.
    pub fn sort_changes(&self, places: &mut Vec<u32>) {
        places.clear();
        let table = &self.table;
        for (listed, &hash) in self.changed.iter().enumerate() {
            let is_listed = |place: &usize| {
                let entry = table.get_bucket(*place);
                entry.is_some_and(|entry| entry.listed == listed as u32)
            };
            let place = table.iter_hash_buckets(hash).find(is_listed);
            places.push(place.expect("each hash in changed has its entry") as u32);
        }
        let key = |place: &u32| {
            let entry = table.get_bucket(*place as usize);
            entry.map(|entry| self.keys.at(entry.key()))
        };
        places.sort_unstable_by_key(|place| key(place));
    }

    /// The key and what is known of it, at a place that [`WorkingSet::sort_changes`] gave.
    ///
    /// # Panics
    /// Where the place is of another time.
    #[must_use]
    pub fn at(&self, place: u32) -> (&[u8], Held) {
        let entry = self.table.get_bucket(place as usize);
        let entry = entry.expect("a place given since the last change");
        (self.keys.at(entry.key()), entry.held())
    }

    /// The base tree holds all changes now: nothing counts as changed, and what was deleted is
    /// forgotten. `places` are all of them, sorted.
    pub fn settle(&mut self, places: &[u32]) {
        debug_assert_eq!(places.len(), self.changed.len());
        self.edits += 1;
        for &place in places {
            let Ok(mut entry) = self.table.get_bucket_entry(place as usize) else {
                continue;
            };
            entry.get_mut().listed = UNCHANGED;
            if entry.get().is_gone() {
                let (removed, _) = entry.remove();
                if let Some(ordered) = &mut self.ordered {
                    ordered.remove(self.keys.at(removed.key()));
                }
                self.keys.remove(removed.key());
            }
        }
        self.changed.clear();
    }

    /// What is known of the keys that begin with `prefix` and come after `after` (all of them where
    /// it is empty), in order of their bytes. The first call sorts all keys.
    pub fn scan<'a>(
        &'a mut self,
        prefix: &'a [u8],
        after: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], Held)> {
        let (table, hasher, keys) = (&self.table, &self.hasher, &self.keys);
        let ordered = self.ordered.get_or_insert_with(|| {
            let all = table.iter().map(|entry| keys.at(entry.key()).into());
            all.collect()
        });
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
                let entry = table.find(hash, |entry| keys.at(entry.key()) == &**key);
                let entry = entry.expect("ordered holds the keys of table");
                (&**key, entry.held())
            })
    }

    /// What all entries name, in no order.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        self.table.iter().filter_map(|entry| entry.held().value)
    }

    /// Takes memory for what an empty set is about to hold: for half of what the one before held, as much
    /// of that is read again on another tree, and for a few keys at least.
    pub fn make_room(&mut self, before: Option<&Self>) {
        let (keys, bytes, changes) = ROOM;
        let held = before.map_or((0, 0), |set| (set.len(), set.keys.used_bytes()));
        let half = |held: usize, least: usize, most: usize| (held / 2).min(most).max(least);
        let (keys, bytes) = (
            half(held.0, keys, ROOM_MAX.0),
            half(held.1, bytes, ROOM_MAX.1),
        );
        // No entry has to move: the set is empty.
        self.table.reserve(keys, |_| 0);
        self.keys.reserve(bytes);
        self.changed.reserve_exact(changes);
    }

    /// Keeps what changed and nothing else, without the order that scans need; what was known beside it,
    /// to be given up bit by bit.
    ///
    /// Cost: that of the changes, however many entries there are.
    pub fn keep_changes(&mut self) -> Retired {
        let mut places = Vec::new();
        self.sort_changes(&mut places);
        let mut kept = Self::default();
        // One growth for all of them.
        kept.table.reserve(places.len(), |_| 0);
        for place in places {
            let (key, held) = self.at(place);
            kept.set(key, held);
            // What the place named is the other set's now.
            if let Ok(mut entry) = self.table.get_bucket_entry(place as usize) {
                entry.get_mut().set(None);
            }
        }
        std::mem::replace(self, kept).retire()
    }

    /// All keys and what is known of them, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], Held)> {
        let entries = self.table.iter();
        entries.map(|entry| (self.keys.at(entry.key()), entry.held()))
    }

    /// Gives the set up: what its entries named, one at a time, so that a large one can go bit by bit.
    #[must_use]
    pub fn retire(self) -> Retired {
        Retired(self.table.into_iter())
    }

    /// Entries held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no entry is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Memory taken, in bytes: tables, keys and, where the agent scans, what the allocator adds to each.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        // glibc rounds to 16 and adds 8; the tree adds a pointer and a length.
        const ORDERED: usize = 16 + 24;
        let keys = self.keys.memory_bytes();
        let ordered = self.ordered.as_ref();
        let ordered = ordered.map_or(0, |set| keys + set.len() * ORDERED);
        self.table.allocation_size() + keys + ordered + self.changed.capacity() * 8
    }
}

/// A set that was given up.
#[derive(Debug)]
pub struct Retired(IntoIter<Entry>);

impl Iterator for Retired {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.find_map(|entry| entry.held().value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_did_not_change_can_be_given_up_at_once() {
        let value = |object| Value { object, bytes: 1 };
        let mut set = WorkingSet::default();
        for no in 0..1000u32 {
            let key = no.to_le_bytes();
            match no % 10 {
                0 => _ = set.put(&key, value(no)),
                1 => _ = set.remove(&key),
                _ => _ = set.learn(&key, value(no)),
            }
        }
        let before = set.memory_bytes();
        let given_up: Vec<_> = set.keep_changes().map(|value| value.object).collect();
        assert_eq!(given_up.len(), 800);
        assert!(given_up.iter().all(|no| no % 10 > 1));
        assert_eq!((set.len(), set.changes()), (200, 200));
        assert!(set.memory_bytes() < before / 2);
        for no in 0..1000u32 {
            let wanted = match no % 10 {
                0 => Some(Some(value(no))),
                1 => Some(None),
                _ => None,
            };
            let held = set.get(&no.to_le_bytes());
            assert_eq!(held.map(|held| held.value), wanted, "{no}");
        }
    }

    /// Against sorted maps: what is known of each key, and what the base tree would say.
    fn check(operations: &[(u8, Vec<u8>)]) {
        let mut set = WorkingSet::default();
        let mut model = BTreeMap::<Vec<u8>, Held>::new();
        let mut places = Vec::new();
        for (no, (kind, key)) in operations.iter().enumerate() {
            let value = Value {
                object: no as u32,
                bytes: key.len() as u64,
            };
            let held = |value, changed| Held { value, changed };
            match kind % 8 {
                0 | 1 => {
                    let now = held(Some(value), true);
                    assert_eq!(set.put(key, value), model.insert(key.clone(), now));
                }
                2 => {
                    let now = held(None, true);
                    assert_eq!(set.remove(key), model.insert(key.clone(), now));
                }
                3 => {
                    let kept = !model.contains_key(key);
                    model.entry(key.clone()).or_insert(held(Some(value), false));
                    assert_eq!(set.learn(key, value), kept);
                }
                4 => {
                    let before = set.put(key, value);
                    assert_eq!(set.put_back(key, before).unwrap().value, Some(value));
                }
                5 => {
                    assert_eq!(set.put_back(key, None), model.remove(key));
                }
                6 => {
                    set.sort_changes(&mut places);
                    let found: Vec<_> = places.iter().map(|&place| set.at(place)).collect();
                    let wanted: Vec<_> = model
                        .iter()
                        .filter(|(_, held)| held.changed)
                        .map(|(key, held)| (&**key, *held))
                        .collect();
                    assert_eq!(found, wanted);
                    if key.len() > 2 {
                        set.settle(&places);
                        model.retain(|_, held| held.value.is_some());
                        model.values_mut().for_each(|held| held.changed = false);
                    }
                }
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
            let changes = model.values().filter(|held| held.changed).count();
            assert_eq!(set.changes(), changes);
        }
        let named = model.values().filter(|held| held.value.is_some()).count();
        assert_eq!(set.retire().count(), named);
    }

    #[test]
    fn keys_that_come_and_go_beside_one_that_stays_leave_nothing() {
        let mut set = WorkingSet::default();
        let value = Value {
            object: 1,
            bytes: 1,
        };
        set.put(b"stays", value);
        let mut most = 0;
        for round in 0_u32..10_000 {
            let key = round.to_le_bytes();
            let before = set.put(&key, value);
            set.put_back(&key, before);
            if round == 100 {
                most = set.memory_bytes();
            }
        }
        // The list of changes grew by 8 bytes a round once, for as long as the shard ran.
        assert_eq!(set.memory_bytes(), most);
        let mut places = Vec::new();
        set.sort_changes(&mut places);
        let keys: Vec<_> = places.iter().map(|&place| set.at(place).0).collect();
        assert_eq!(keys, [b"stays"]);
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_sorted_maps(
            operations in proptest::collection::vec(
                (0u8..8, proptest::collection::vec(0u8..4, 0..6)), 0..200)
        ) {
            check(&operations);
        }
    }
}
