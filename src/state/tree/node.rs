//! A node as bytes: checked once, then read in place.
//!
//! Floor 1. The layout is in `TREE.md`: a head of 4 bytes per entry first, then the bytes of the keys
//! that each does not share with the key before it, then the payloads.
//!
//! Cost: [`Node::open`] and a search read the heads in a row, one load and a few additions each,
//! 1-2 ns an entry; a search compares key bytes only where an entry may still be the one.
//!
//! Invariants
//! - a node that opens has lengths that agree with its bytes, so nothing read from it later can be out
//!   of bounds. Order of keys, and that they share no less than they could, are checked by
//!   [`Node::check`] and by whoever walks over the entries.

use crate::id::{KEY_BYTES_MAX, ObjectId};

use super::boundary::{ENTRIES_MIN, ENTRY_FILL_BYTES, FILL_BYTES_MAX, Fill, begins_node, key_hash};
use super::error::Damage;
use super::value::{self, INLINE_BYTES_MAX, REFERENCE_BYTES, Value};

/// Version of the layout, the first byte of each node.
pub(crate) const NODE_VERSION: u8 = 1;
/// The highest level of a node; leaves have level 0. Enough for 2^32 keys: each level but the top has
/// at least [`ENTRIES_MIN`] entries a node.
pub const LEVEL_MAX: u8 = 10;
/// Largest node, in bytes: fill beyond its bound by one entry with the longest key, and every value
/// inline and as long as possible.
pub const NODE_BYTES_MAX: usize = 32 << 10;

pub(crate) const HEADER_BYTES: usize = 4;
pub(crate) const HEAD_BYTES: usize = 4;
const LENGTH_BITS: u32 = 11;
const LENGTH_MASK: u32 = (1 << LENGTH_BITS) - 1;

/// Entries of the fullest node: keys of one byte more each.
const ENTRIES_MAX: usize = (FILL_BYTES_MAX / (ENTRY_FILL_BYTES + 1)) as usize;
const _: () = {
    let inline_more = INLINE_BYTES_MAX - REFERENCE_BYTES;
    let fill = FILL_BYTES_MAX as usize + HEADER_BYTES;
    assert!(fill + ENTRIES_MAX * inline_more <= NODE_BYTES_MAX);
    // The least entries of the longest keys fit as well.
    let longest = ENTRY_FILL_BYTES as usize + KEY_BYTES_MAX;
    assert!(ENTRIES_MIN as usize * longest <= FILL_BYTES_MAX as usize);
    assert!((ENTRIES_MIN as u64).pow(LEVEL_MAX as u32 + 1) >= 1 << 32);
};

/// The head of an entry: lengths and the code of what it stores.
#[derive(Clone, Copy)]
pub(crate) struct Head(u32);

impl Head {
    pub fn new(shared: usize, suffix: usize, code: u32) -> Self {
        Self(shared as u32 | (suffix as u32) << LENGTH_BITS | code << (2 * LENGTH_BITS))
    }

    /// The first of some heads; there is one.
    pub fn first_of(heads: &[u8]) -> Self {
        Self(
            heads
                .first_chunk()
                .map_or(0, |bytes| u32::from_le_bytes(*bytes)),
        )
    }

    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        self.0.to_le_bytes()
    }

    /// Bytes of the key that it shares with the one before.
    fn shared(self) -> usize {
        (self.0 & LENGTH_MASK) as usize
    }

    /// Bytes of the key that are stored.
    pub fn suffix(self) -> usize {
        (self.0 >> LENGTH_BITS & LENGTH_MASK) as usize
    }

    pub fn code(self) -> u32 {
        self.0 >> (2 * LENGTH_BITS)
    }
}

/// A key, rebuilt from what its node stores of it.
#[derive(Clone, Debug)]
pub(crate) struct KeyBuf {
    bytes: [u8; KEY_BYTES_MAX],
    len: usize,
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self {
            bytes: [0; KEY_BYTES_MAX],
            len: 0,
        }
    }
}

impl KeyBuf {
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// At most [`KEY_BYTES_MAX`] bytes.
    pub fn set(&mut self, key: &[u8]) {
        self.bytes[..key.len()].copy_from_slice(key);
        self.len = key.len();
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The key that shares `shared` bytes with this one and goes on with `suffix`.
    fn replace_tail(&mut self, shared: usize, suffix: &[u8]) {
        self.bytes[shared..shared + suffix.len()].copy_from_slice(suffix);
        self.len = shared + suffix.len();
    }
}

/// A place before an entry, or behind the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Place {
    pub index: usize,
    /// Bytes of keys stored before it.
    pub suffix_at: usize,
    /// Bytes of payloads before it.
    pub payload_at: usize,
}

impl Place {
    /// How full the node is before it.
    pub fn fill(&self) -> Fill {
        let entries = self.index as u32;
        Fill {
            entries,
            bytes: entries * ENTRY_FILL_BYTES + self.suffix_at as u32,
        }
    }
}

/// Where a search stands: the first entry whose key is not below the one sought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sought {
    pub place: Place,
    /// Bytes that the key sought shares with the entry before the place.
    pub matched: usize,
    /// Whether the entry at the place has that key.
    pub exact: bool,
}

/// A node whose lengths are known to agree.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node<'n> {
    level: u8,
    heads: &'n [[u8; HEAD_BYTES]],
    suffixes: &'n [u8],
    payloads: &'n [u8],
}

impl<'n> Node<'n> {
    /// Checks the lengths in a node.
    pub fn open(bytes: &'n [u8]) -> Result<Self, Damage> {
        let (&[version, level, low, high], rest) =
            bytes.split_first_chunk().ok_or(Damage::Short)?;
        let entries = usize::from(u16::from_le_bytes([low, high]));
        if version != NODE_VERSION {
            return Err(Damage::Version(version));
        }
        if level > LEVEL_MAX || entries == 0 || bytes.len() > NODE_BYTES_MAX {
            return Err(Damage::Header);
        }
        let (heads, body) = rest
            .split_at_checked(entries * HEAD_BYTES)
            .ok_or(Damage::Short)?;
        let mut node = Self {
            level,
            heads: heads.as_chunks().0,
            suffixes: &[],
            payloads: &[],
        };
        let (mut suffixes, mut payloads, mut before) = (0, 0, 0);
        for index in 0..entries {
            let head = node.head(index);
            let length = head.shared() + head.suffix();
            // A key shares no more than the one before has.
            if head.shared() > before || head.suffix() == 0 || length > KEY_BYTES_MAX {
                return Err(Damage::KeyLength);
            }
            before = length;
            suffixes += head.suffix();
            payloads += node.payload_bytes(head).ok_or(Damage::Code)?;
        }
        if suffixes + payloads != body.len() {
            return Err(Damage::Length);
        }
        (node.suffixes, node.payloads) = body.split_at(suffixes);
        Ok(node)
    }

    /// Checks what a writer of this format guarantees beyond that: strictly ascending keys that share
    /// as much as they can, lengths of values that suit their form, and no entry that should have begun
    /// another node.
    pub fn check(&self) -> Result<(), Damage> {
        let mut key = KeyBuf::default();
        let mut place = Place::default();
        while place.index < self.len() {
            self.advance_key(&place, &mut key)?;
            let head = self.head(place.index);
            let weight = ENTRY_FILL_BYTES + head.suffix() as u32;
            if begins_node(place.fill(), weight, self.level, || {
                key_hash(key.as_slice())
            }) {
                return Err(Damage::Boundary);
            }
            if self.level == 0 && !self.value(&place).is_canonical() {
                return Err(Damage::ValueLength);
            }
            place = self.next(&place);
        }
        self.keys().map(|_| ())
    }

    pub fn level(&self) -> u8 {
        self.level
    }

    /// Entries, at least 1.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Keys in the subtree, as its entries tell.
    pub fn keys(&self) -> Result<u32, Damage> {
        if self.level == 0 {
            return Ok(self.len() as u32);
        }
        let (entries, _) = self.payloads.as_chunks::<REFERENCE_BYTES>();
        entries
            .iter()
            .try_fold(0_u32, |sum, entry| {
                sum.checked_add(value::reference(entry).1)
            })
            .ok_or(Damage::Count)
    }

    /// The first key: the only one that is stored as a whole.
    pub fn first_key(&self) -> &'n [u8] {
        &self.suffixes[..self.head(0).suffix()]
    }

    pub fn head(&self, index: usize) -> Head {
        Head(u32::from_le_bytes(self.heads[index]))
    }

    fn payload_bytes(&self, head: Head) -> Option<usize> {
        match self.level {
            0 => value::payload_bytes(head.code()),
            _ => (head.code() == 0).then_some(REFERENCE_BYTES),
        }
    }

    /// The place behind an entry.
    pub fn next(&self, place: &Place) -> Place {
        let head = self.head(place.index);
        Place {
            index: place.index + 1,
            suffix_at: place.suffix_at + head.suffix(),
            // Codes were checked when the node was opened.
            payload_at: place.payload_at + self.payload_bytes(head).unwrap_or(0),
        }
    }

    /// The place before the entry that ends at a place. There is one.
    pub fn place_before(&self, place: &Place) -> Place {
        let head = self.head(place.index - 1);
        Place {
            index: place.index - 1,
            suffix_at: place.suffix_at - head.suffix(),
            payload_at: place.payload_at - self.payload_bytes(head).unwrap_or(0),
        }
    }

    /// The place behind the last entry.
    pub fn end(&self) -> Place {
        Place {
            index: self.len(),
            suffix_at: self.suffixes.len(),
            payload_at: self.payloads.len(),
        }
    }

    /// The place before an entry that is known by its index.
    pub fn place(&self, index: usize) -> Place {
        let mut place = Place::default();
        while place.index < index {
            place = self.next(&place);
        }
        place
    }

    /// What the entry stores, as bytes.
    pub fn payload(&self, place: &Place) -> &'n [u8] {
        &self.payloads[place.payload_at..self.next(place).payload_at]
    }

    /// The value of a leaf's entry.
    pub fn value(&self, place: &Place) -> Value<'n> {
        value::decode(self.head(place.index).code(), self.payload(place))
    }

    /// The child of an inner node's entry, and the keys below it.
    pub fn child(&self, index: usize) -> (ObjectId, u32) {
        value::reference(&self.payloads[index * REFERENCE_BYTES..])
    }

    fn suffix(&self, place: &Place) -> &'n [u8] {
        &self.suffixes[place.suffix_at..][..self.head(place.index).suffix()]
    }

    /// Turns the key of the entry before a place into that of the entry at it.
    pub fn advance_key(&self, place: &Place, key: &mut KeyBuf) -> Result<(), Damage> {
        let shared = self.head(place.index).shared();
        let suffix = self.suffix(place);
        // Ascending, and sharing all that it can: the first byte stored is above the one it replaces.
        let replaced = key.as_slice().get(shared);
        if place.index > 0 && replaced.is_some_and(|replaced| suffix[0] <= *replaced) {
            return Err(Damage::Order);
        }
        self.follow_key(place, key);
        Ok(())
    }

    /// The same without the check.
    pub fn follow_key(&self, place: &Place, key: &mut KeyBuf) {
        key.replace_tail(self.head(place.index).shared(), self.suffix(place));
    }

    /// Rebuilds the key of an entry from those before it, reading no more of them than it needs.
    pub fn key_at(&self, place: &Place, key: &mut KeyBuf) {
        let head = self.head(place.index);
        let mut missing = head.shared();
        key.len = missing + head.suffix();
        key.bytes[missing..key.len].copy_from_slice(self.suffix(place));
        let (mut index, mut suffix_at) = (place.index, place.suffix_at);
        while missing > 0 && index > 0 {
            index -= 1;
            let before = self.head(index);
            suffix_at -= before.suffix();
            if before.shared() < missing {
                let taken = missing - before.shared();
                key.bytes[before.shared()..missing]
                    .copy_from_slice(&self.suffixes[suffix_at..suffix_at + taken]);
                missing = before.shared();
            }
        }
    }

    /// The first entry at `from` or behind it whose key is not below `key`.
    ///
    /// `from` is where a search for a smaller key ended, its `matched` brought up to this key; the
    /// default is the beginning.
    pub fn seek(&self, key: &[u8], from: Sought) -> Sought {
        let Sought {
            mut place,
            mut matched,
            ..
        } = from;
        let mut exact = false;
        while place.index < self.len() {
            let head = self.head(place.index);
            // It shares more with the entry before than the key does: on the same side as that.
            // It shares less: above that entry at a byte where the key equals it, so above the key.
            if head.shared() < matched {
                break;
            }
            if head.shared() == matched {
                let (suffix, rest) = (self.suffix(&place), &key[matched..]);
                let common = shared_bytes(suffix, rest);
                match (suffix.get(common), rest.get(common)) {
                    (None, None) => {
                        exact = true;
                        break;
                    }
                    (Some(_), None) => break,
                    (Some(stored), Some(sought)) if stored > sought => break,
                    _ => matched += common,
                }
            }
            place = self.next(&place);
        }
        Sought {
            place,
            matched,
            exact,
        }
    }

    /// The child whose keys `key` is among, if the tree has it; the first for a key below all.
    pub fn floor(&self, key: &[u8]) -> usize {
        let sought = self.seek(key, Sought::default());
        match sought.exact {
            true => sought.place.index,
            false => sought.place.index.saturating_sub(1),
        }
    }

    /// The bytes of entries between two places: heads, stored bytes of keys, payloads.
    pub fn run(&self, from: &Place, to: &Place) -> (&'n [u8], &'n [u8], &'n [u8]) {
        (
            self.heads[from.index..to.index].as_flattened(),
            &self.suffixes[from.suffix_at..to.suffix_at],
            &self.payloads[from.payload_at..to.payload_at],
        )
    }
}

/// Bytes at the beginning that are the same in both.
pub(crate) fn shared_bytes(a: &[u8], b: &[u8]) -> usize {
    let (words_a, words_b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let mut at = 0;
    for (x, y) in words_a.iter().zip(words_b) {
        let differ = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if differ != 0 {
            return at + differ.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let tail = a[at..].iter().zip(&b[at..]);
    at + tail.take_while(|(x, y)| x == y).count()
}
