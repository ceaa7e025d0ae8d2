//! Where one node ends and the next begins: a function of the keys alone.
//!
//! Floor 1. The rule is part of the format; `TREE.md` has it in words, with vectors.
//!
//! A node grows from its first entry on; before each further entry the rule is asked whether that
//! entry begins a new node. The chance grows with the bytes the node already has, so sizes crowd
//! around the mean (1.8 KiB) instead of spreading like those of independent draws do: the node that
//! a random key falls into has 1.3 times the mean size, not 2 times.
//!
//! Invariants
//! - the answer depends on the keys of this level from the node's first to the one asked about,
//!   and on nothing to its right: what is left of a change stays as it is.
//! - the answer is monotone: an entry that begins no node begins none in a node with fewer entries
//!   and fewer bytes before it. The builder of nodes leans on it to copy runs without hashing.
//! - a node has at least [`ENTRIES_MIN`] entries, or is the last of its level: trees are shallow
//!   whatever the keys. It has at most [`FILL_BYTES_MAX`] of fill.

/// Entries that a node has at least, unless it is the last of its level.
pub const ENTRIES_MIN: u32 = 8;
/// Fill beyond which no entry is added, in bytes. Keys that were not chosen against the rule end a
/// node there once in e^64 times.
pub const FILL_BYTES_MAX: u32 = 16 << 10;
/// What an entry adds to the fill beside the bytes of its key that it does not share: head (4), and
/// an id with its length (36). A value that is stored inline counts the same, so that no change
/// of a value moves a boundary.
pub const ENTRY_FILL_BYTES: u32 = 40;
/// Scale of the chance, as a power of two: it is fill x weight / 2^21. Sizes so have a Rayleigh distribution
/// of scale 2^10.5, whose mean is 1815 bytes and whose largest of a million about 7.6 KiB.
///
/// Of 2^20, 2^21 and 2^22, measured: the time to change one key in 1,000 is the same within 20%, as BLAKE3 takes
/// nearly as long for 2 KiB as for 4. A chat of 390 KB with a message and a tree for each of 800 steps takes 3.6,
/// 4.3 and 5.2 times its bytes, in 2,630, 2,400 and 2,340 objects.
const SPREAD_BITS: u32 = 21;

/// How full the node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fill {
    /// Entries.
    pub entries: u32,
    /// Bytes: those of the keys that are stored, and [`ENTRY_FILL_BYTES`] each.
    pub bytes: u32,
}

impl Fill {
    /// Whether all entries that begin no node here begin none there.
    pub fn at_most(self, other: Self) -> bool {
        self.entries <= other.entries && self.bytes <= other.bytes
    }
}

/// Whether the next entry begins a new node. `weight` is what it would add to the fill, `hash` the
/// hash of its key (asked for only where it matters).
pub(crate) fn begins_node(fill: Fill, weight: u32, level: u8, hash: impl FnOnce() -> u64) -> bool {
    if fill.entries < ENTRIES_MIN {
        return false;
    }
    if fill.bytes + weight > FILL_BYTES_MAX {
        return true;
    }
    let threshold = (u64::from(fill.bytes) * u64::from(weight)) << (32 - SPREAD_BITS);
    u64::from(at_level(hash(), level)) < threshold
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX_A: u64 = 0xbf58_476d_1ce4_e5b9;
const MIX_B: u64 = 0x94d0_49bb_1331_11eb;

/// The hash of a key: word by word, little-endian, the last one padded with zeros.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    let (words, tail) = key.as_chunks::<8>();
    let mut hash = GOLDEN ^ key.len() as u64;
    for word in words {
        hash = absorb(hash, u64::from_le_bytes(*word));
    }
    if !tail.is_empty() {
        let mut word = [0; 8];
        word[..tail.len()].copy_from_slice(tail);
        hash = absorb(hash, u64::from_le_bytes(word));
    }
    hash
}

fn absorb(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(MIX_A);
    mixed ^ mixed >> 32
}

/// The bits of a hash that decide at a level: levels are independent of each other.
pub(crate) fn at_level(hash: u64, level: u8) -> u32 {
    let z = hash.wrapping_add(GOLDEN.wrapping_mul(u64::from(level) + 1));
    let z = (z ^ z >> 30).wrapping_mul(MIX_A);
    let z = (z ^ z >> 27).wrapping_mul(MIX_B);
    ((z ^ z >> 31) >> 32) as u32
}
