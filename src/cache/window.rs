//! An agent's L1 window: its byte layout, its key hash, and the half that reads it.
//!
//! Floor 1. The reader lives in the agent's process, over a read-only mapping; the half that
//! fills a window is `window_writer.rs`. The layout, written for a client in another language, is
//! in `WINDOW.md` beside this file.
//!
//! Invariants
//! - a hit is the value of exactly that key, whole: the words were copied between two loads of
//!   one sequence number that were even and equal.
//! - whatever bytes the region holds, a read ends after `ATTEMPTS_MAX` attempts and touches
//!   nothing outside the region.
//! - opening a window reads nothing of it, so a window that was never used has no page.
//!
//! Cost of a hit: header line, set line, data lines; no system call, no allocation.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;

use crate::id::{KEY_BYTES_MAX, View};
use crate::shared::{SharedMemory, fence};

/// Smallest window, in bytes.
pub const WINDOW_BYTES_MIN: usize = if cfg!(helios_loom) { 2 << 10 } else { 8 << 10 };
/// Largest window, in bytes.
pub const WINDOW_BYTES_MAX: usize = 4 << 20;
/// Longest value that any window holds, in bytes; small windows hold less.
pub const VALUE_INLINE_BYTES_MAX: usize = 4 << 10;
/// Places for a key in its set.
pub const WAYS: usize = 4;

/// First four bytes of a window in use: `HLW` and the version of the layout.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"HLW\x01");
/// Bytes of the header, of a set, and of the unit in which data is placed.
pub(super) const LINE_BYTES: usize = 64;
/// Bytes of a way: a word of sequence and tag, a word of place and lengths.
pub(super) const WAY_BYTES: usize = LINE_BYTES / WAYS;
/// The part of the window that holds header and sets is one in this many.
pub(super) const INDEX_SHARE: usize = 16;
/// A reader that is disturbed this often gives up and asks the shard, which is always right.
const ATTEMPTS_MAX: usize = if cfg!(helios_loom) { 2 } else { 32 };

// Words are stored in native order and described as little-endian.
const _: () = assert!(cfg!(target_endian = "little"));
const _: () = assert!(WINDOW_BYTES_MAX / LINE_BYTES <= 1 << 20, "20 bits place");
const _: () = assert!(KEY_BYTES_MAX < 1 << 12, "12 bits of key length");

/// A region that can't be a window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// Not a power of two from [`WINDOW_BYTES_MIN`] to [`WINDOW_BYTES_MAX`].
    #[error("a window of {bytes} bytes; it must be a power of two from 8 KiB to 4 MiB")]
    Size {
        /// Bytes of the region.
        bytes: usize,
    },
    /// Not written by this version of the runtime.
    #[cfg(test)]
    #[error("a window of an unknown format ({found:#010x}); use the runtime's own version")]
    Format {
        /// The first four bytes, as a little-endian number.
        found: u32,
    },
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Bytes of the whole value, however many were asked for.
    pub value_bytes: usize,
    /// Where it was found: for the hit report.
    pub slot: u32,
    /// Tells the writer whether the slot still holds the same key: for the hit report.
    pub tag: u32,
}

/// Hashes a key for its place in a window; the same on every machine. See `WINDOW.md`.
/// [`in_view`] does the rest.
///
/// ```
/// assert_eq!(helios::cache::hash_key(b"hello"), 0x0175_8097_b0fd_daed);
/// ```
#[must_use]
#[inline]
pub fn hash_key(key: &[u8]) -> u64 {
    let mut hash = 0xa076_1d64_78bd_642f ^ key.len() as u64;
    let (whole, _) = key.as_chunks::<8>();
    for word in whole {
        hash = fold(hash ^ u64::from_le_bytes(*word), 0xe703_7ed1_a0b4_28db);
    }
    if !key.len().is_multiple_of(8) {
        hash = fold(hash ^ last_word(key), 0xe703_7ed1_a0b4_28db);
    }
    fold(hash, 0x8ebc_6af0_9c88_c6e3)
}

/// The hash of a key as it is in one view: the same set, another tag. One key has different tags in
/// different views, always.
#[must_use]
#[inline]
pub const fn in_view(hash: u64, view: View) -> u64 {
    hash ^ (view.0 as u64) << 32
}

/// Both halves of the product, one upon the other.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The last 1 to 7 bytes of a key whose length is no multiple of 8, padded with zeros.
#[inline]
pub(super) fn last_word(key: &[u8]) -> u64 {
    let tail = key.len() % 8;
    // An overlapping load and a shift; a copy of variable length would be a call.
    if let Some(last) = key.last_chunk::<8>() {
        return u64::from_le_bytes(*last) >> (8 * (8 - tail));
    }
    key.iter()
        .rev()
        .fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// Bytes rounded up to whole words.
#[inline]
pub(super) const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

/// Sets of a window of `bytes`.
#[inline]
pub(super) const fn sets(bytes: usize) -> usize {
    bytes / INDEX_SHARE / LINE_BYTES - 1
}

/// The set of a key: bits 0 to 31 of its hash, scaled.
#[inline]
pub(super) const fn set_of(hash: u64, bytes: usize) -> usize {
    (((hash & 0xffff_ffff) * sets(bytes) as u64) >> 32) as usize
}

/// The tag of a key: bits 32 to 63 of its hash in a view.
#[inline]
pub(super) const fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Byte offset of a way's first word; its second follows.
#[inline]
pub(super) const fn way_at(slot: usize) -> usize {
    LINE_BYTES + slot * WAY_BYTES
}

/// Where a key and its value lie: a way's second word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// First line of the extent, counted from the start of the window.
    pub(super) line: u32,
    /// Bytes of the key.
    pub(super) key_bytes: u32,
    /// Bytes of the value.
    pub(super) value_bytes: u32,
}

impl Place {
    #[inline]
    pub(super) const fn pack(self) -> u64 {
        self.line as u64 | (self.key_bytes as u64) << 20 | (self.value_bytes as u64) << 32
    }

    #[inline]
    pub(super) const fn unpack(word: u64) -> Self {
        Self {
            line: word as u32 & 0xf_ffff,
            key_bytes: (word >> 20) as u32 & 0xfff,
            value_bytes: (word >> 32) as u32,
        }
    }
}

/// Checks the size of a region that is to be a window.
pub(super) fn check_size(memory: &SharedMemory) -> Result<(), WindowError> {
    let bytes = memory.bytes();
    if bytes.is_power_of_two() && (WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&bytes) {
        Ok(())
    } else {
        Err(WindowError::Size { bytes })
    }
}

/// An agent's end of its window. Reads take `&self`: any number of threads may share one.
#[derive(Debug)]
pub struct WindowReader {
    memory: SharedMemory,
}

impl WindowReader {
    /// Takes a mapping of a window. Only its size is looked at: a region of another format never
    /// hits.
    pub fn open(memory: SharedMemory) -> Result<Self, WindowError> {
        check_size(&memory)?;
        Ok(Self { memory })
    }

    /// Whether anything was ever filled in.
    #[cfg(all(test, not(helios_loom)))]
    pub(super) fn is_used(&self) -> Result<bool, WindowError> {
        match self.memory.half(0).load(Ordering::Acquire) {
            MAGIC => Ok(true),
            0 => Ok(false),
            found => Err(WindowError::Format { found }),
        }
    }

    /// Reads the value of `key` in a view into the front of `out`. A value longer than `out` fills `out`
    /// with its first bytes; [`Hit::value_bytes`] tells. `None`: ask the shard. After a miss `out`
    /// may hold rubbish.
    #[must_use]
    #[inline]
    pub fn get(&self, view: View, key: &[u8], out: &mut [u8]) -> Option<Hit> {
        self.get_with(in_view(hash_key(key), view), key, out)
    }

    /// As [`Self::get`], for a caller that has the key's hash in the view already.
    #[must_use]
    #[inline]
    pub fn get_with(&self, hash: u64, key: &[u8], out: &mut [u8]) -> Option<Hit> {
        self.find(hash, key, |memory, at, bytes| {
            let bytes = bytes.min(out.len());
            copy_value(memory, at, &mut out[..bytes]);
        })
    }

    /// As [`Self::get`], the whole value, setting the length of `out`. Allocates only where the
    /// capacity is short: a capacity of [`VALUE_INLINE_BYTES_MAX`] always suffices.
    #[must_use]
    #[inline]
    pub fn get_into(&self, view: View, key: &[u8], out: &mut Vec<u8>) -> Option<Hit> {
        self.find(in_view(hash_key(key), view), key, |memory, at, bytes| {
            // Bytes that are there already are not zeroed first.
            out.resize(bytes, 0);
            copy_value(memory, at, out);
        })
    }

    /// Whether the window has a value for `key` in a view. No value is read.
    #[must_use]
    #[inline]
    pub fn contains(&self, view: View, key: &[u8]) -> bool {
        let hash = in_view(hash_key(key), view);
        self.find(hash, key, |_, _, _| ()).is_some()
    }

    /// Asks for the lines that [`Self::get_with`] of this hash will read first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let set = set_of(hash, self.memory.bytes());
        self.memory.prefetch(0);
        self.memory.prefetch(way_at(set * WAYS));
    }

    /// Calls `take` with the byte offset and the length of the value, perhaps several times, of
    /// which the last counts, and only if the answer is a hit.
    #[inline]
    fn find(
        &self,
        hash: u64,
        key: &[u8],
        mut take: impl FnMut(&SharedMemory, usize, usize),
    ) -> Option<Hit> {
        for _ in 0..ATTEMPTS_MAX {
            match self.attempt(hash, key, &mut take) {
                Ok(outcome) => return outcome,
                Err(Disturbed) => spin_loop(),
            }
        }
        None
    }

    #[inline]
    fn attempt(
        &self,
        hash: u64,
        key: &[u8],
        take: &mut impl FnMut(&SharedMemory, usize, usize),
    ) -> Result<Option<Hit>, Disturbed> {
        let memory = &self.memory;
        if memory.half(0).load(Ordering::Relaxed) != MAGIC {
            return Ok(None);
        }
        let tag = tag_of(hash);
        let slot = set_of(hash, memory.bytes()) * WAYS;
        // All four tags at once: which way matches is nothing that a branch could predict.
        let mut matches = 0u32;
        for way in 0..WAYS {
            let first = memory.word(way_at(slot + way)).load(Ordering::Relaxed);
            matches |= u32::from((first >> 32) as u32 == tag) << way;
        }
        let mut disturbed = false;
        while matches != 0 {
            let slot = slot + matches.trailing_zeros() as usize;
            matches &= matches - 1;
            // Acquire: partner of the release store in `WindowWriter::publish`; place and data
            // are at least as new as this sequence.
            let first = memory.word(way_at(slot)).load(Ordering::Acquire);
            if (first >> 32) as u32 != tag {
                continue;
            }
            if first & 1 == 1 {
                disturbed = true;
                continue;
            }
            let second = memory.word(way_at(slot) + 8).load(Ordering::Relaxed);
            let Some((value_at, value_bytes)) = self.locate(Place::unpack(second), key) else {
                // Another key with this tag, or bytes that change under us: a miss either way.
                continue;
            };
            take(memory, value_at, value_bytes);
            // Partner of the release fence in `WindowWriter::fill` and `move_ahead`: if any word
            // above came from a store after that fence, the loads below see what was stored
            // before it, which is an odd sequence at least.
            fence(Ordering::Acquire);
            let again = memory.word(way_at(slot)).load(Ordering::Relaxed);
            if again != first {
                disturbed = true;
                continue;
            }
            return Ok(Some(Hit {
                value_bytes,
                slot: slot as u32,
                tag,
            }));
        }
        if disturbed { Err(Disturbed) } else { Ok(None) }
    }

    /// Byte offset and length of the value, if the place lies in the window and has this key.
    #[inline]
    fn locate(&self, place: Place, key: &[u8]) -> Option<(usize, usize)> {
        let memory = &self.memory;
        let key_at = place.line as usize * LINE_BYTES;
        let value_at = key_at + padded(key.len());
        let value_bytes = place.value_bytes as usize;
        if place.key_bytes as usize != key.len()
            || key_at < memory.bytes() / INDEX_SHARE
            || value_at + value_bytes > memory.bytes()
        {
            return None;
        }
        let (whole, tail) = key.as_chunks::<8>();
        let mut at = key_at;
        for word in whole {
            if memory.word(at).load(Ordering::Relaxed) != u64::from_le_bytes(*word) {
                return None;
            }
            at += 8;
        }
        if !tail.is_empty() && memory.word(at).load(Ordering::Relaxed) != last_word(key) {
            return None;
        }
        Some((value_at, value_bytes))
    }
}

/// The writer was at work in what was being read.
struct Disturbed;

/// Copies from a word-aligned place, by whole words: the writer stores whole words too.
#[inline]
fn copy_value(memory: &SharedMemory, at: usize, out: &mut [u8]) {
    let whole = out.len() & !7;
    let (words, tail) = out.split_at_mut(whole);
    memory.copy_out(at, words);
    if !tail.is_empty() {
        let word = memory.word(at + whole).load(Ordering::Relaxed);
        for (byte, from) in tail.iter_mut().zip(word.to_le_bytes()) {
            *byte = from;
        }
    }
}
