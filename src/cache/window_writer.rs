//! The half of an L1 window that fills it: sequences, places, and what makes room for what.
//!
//! Floor 1. One writer per window, on the core of the shard that owns the agent. The layout is in
//! `WINDOW.md`; readers are in `window.rs`.
//!
//! Values lie in a log that goes round the window, oldest overtaken first; one that was reported
//! hit since it was placed is moved ahead once instead.
//!
//! Invariants
//! - what this half decides, it decides from its private shadow. Of the shared region it reads
//!   only the bytes of an extent, to move them or to name their key; the seal of the region lets
//!   nobody else write them.
//! - the bytes of an extent are written only while every way that ever pointed at them is odd,
//!   and the odd sequence was stored before a release fence that comes before the bytes. A reader
//!   that saw any of the new bytes therefore sees, after its acquire fence, a sequence other than
//!   the one it began with, and drops what it copied.
//! - a way becomes even by a release store after place and data, whose partner is the reader's
//!   acquire load of the sequence.
//! - live extents don't overlap, and lie in log order going round from `head`.
//!
//! A sequence wraps after 2^31 fills of one way; a reader would have to sleep through exactly so
//! many of them between two loads to be deceived.
//!
//! Cost: the shadow is 20 bytes per way, a thirteenth of the window, allocated at the first fill;
//! before it, a writer costs its own struct and no page of the region.

use std::sync::atomic::Ordering;

use crate::cache::window::{
    self, INDEX_SHARE, LINE_BYTES, MAGIC, Place, VALUE_INLINE_BYTES_MAX, WAYS, WINDOW_BYTES_MAX,
    WindowError, hash_key, in_view, last_word, padded, tag_of,
};
use crate::id::{KEY_BYTES_MAX, View};
use crate::shared::{SharedMemory, fence};

/// Most lines that one fill copies to spare extents that were hit.
const MOVE_LINES_MAX: u32 = 64;
/// Ends the log.
const NONE: u16 = u16::MAX;

const _: () = assert!(size_of::<Way>() == 20);
const _: () = assert!(WINDOW_BYTES_MAX / LINE_BYTES <= 1 << 16, "16 bits place");
const _: () = assert!(window::sets(WINDOW_BYTES_MAX) * WAYS < NONE as usize);

/// What the writer knows of a way.
#[derive(Clone, Debug)]
struct Way {
    /// The number last stored: even while readers may use the way.
    sequence: u32,
    tag: u32,
    /// First line of the extent.
    line: u16,
    key_bytes: u16,
    value_bytes: u16,
    /// Neighbours in the log, by slot.
    older: u16,
    newer: u16,
    /// Reported hit since it was placed.
    hit: bool,
}

impl Way {
    /// Odd, as nothing was published; the shared way is zero, whose place no reader accepts.
    const EMPTY: Self = Self {
        sequence: 1,
        tag: 0,
        line: 0,
        key_bytes: 0,
        value_bytes: 0,
        older: NONE,
        newer: NONE,
        hit: false,
    };

    fn is_live(&self) -> bool {
        self.sequence.is_multiple_of(2)
    }

    fn lines(&self) -> u32 {
        lines_of(usize::from(self.key_bytes), usize::from(self.value_bytes))
    }
}

/// Lines of an extent; at least one, so that no two share a place.
fn lines_of(key_bytes: usize, value_bytes: usize) -> u32 {
    (padded(key_bytes) + value_bytes)
        .div_ceil(LINE_BYTES)
        .max(1) as u32
}

/// The shard's end of one agent's window.
#[derive(Debug)]
pub struct WindowWriter {
    memory: SharedMemory,
    /// Empty until the first fill.
    ways: Box<[Way]>,
    /// The line after the newest extent, where the next one goes if there is room.
    head: u32,
    oldest: u16,
    newest: u16,
    live: u16,
}

impl WindowWriter {
    /// Takes a region fresh from [`SharedMemory::create`], all zeros. Touches nothing of it.
    pub fn new(memory: SharedMemory) -> Result<Self, WindowError> {
        window::check_size(&memory)?;
        Ok(Self {
            head: data_line(memory.bytes()),
            memory,
            ways: Box::default(),
            oldest: NONE,
            newest: NONE,
            live: 0,
        })
    }

    /// Bytes of the window.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Bytes of private memory that the writer holds beside itself.
    #[cfg(all(test, not(helios_loom)))]
    pub(super) fn shadow_bytes(&self) -> usize {
        size_of_val(&*self.ways)
    }

    /// Longest value that the window takes: an eighth of it, at most [`VALUE_INLINE_BYTES_MAX`].
    #[must_use]
    pub fn value_bytes_max(&self) -> usize {
        VALUE_INLINE_BYTES_MAX.min(self.bytes() / 8)
    }

    /// Values in the window, of all views.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.live)
    }

    /// Whether no value is in the window.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Puts the value of `key` in a view into the window, in place of an older one. False where key or
    /// value are too long: then the window has no value of `key`.
    #[inline]
    pub fn insert(&mut self, view: View, key: &[u8], value: &[u8]) -> bool {
        let hash = in_view(hash_key(key), view);
        if key.len() > KEY_BYTES_MAX || value.len() > self.value_bytes_max() {
            self.invalidate_hash(hash);
            return false;
        }
        if self.ways.is_empty() {
            self.start();
        }
        let slot = self.find(hash).unwrap_or_else(|| self.choose(hash));
        self.fill(slot, tag_of(hash), key, value);
        true
    }

    /// As [`Self::insert`], but only if the window has a value of `key`; whether it has the new
    /// one now. After this, no reader sees the old one.
    #[inline]
    pub fn update(&mut self, view: View, key: &[u8], value: &[u8]) -> bool {
        let hash = in_view(hash_key(key), view);
        let Some(slot) = self.find(hash) else {
            return false;
        };
        if key.len() > KEY_BYTES_MAX || value.len() > self.value_bytes_max() {
            self.drop_way(slot);
            return false;
        }
        self.fill(slot, tag_of(hash), key, value);
        true
    }

    /// Takes `key` out of the window; whether it was there. Two keys whose hashes agree count as
    /// one here: at worst a value leaves that could have stayed.
    #[inline]
    pub fn invalidate(&mut self, view: View, key: &[u8]) -> bool {
        self.invalidate_hash(in_view(hash_key(key), view))
    }

    /// Whether the window has a value of `key`, or of one whose hash agrees.
    #[must_use]
    pub fn contains(&self, view: View, key: &[u8]) -> bool {
        self.find(in_view(hash_key(key), view)).is_some()
    }

    /// Takes everything out of the window. Cost: a store per value.
    pub fn clear(&mut self) {
        while self.oldest != NONE {
            self.drop_way(usize::from(self.oldest));
        }
    }

    /// Notes a hit that a reader reported; whether the slot still holds what was hit. Any numbers
    /// may come: they are the agent's word.
    #[inline]
    pub fn hit(&mut self, slot: u32, tag: u32) -> bool {
        match self.ways.get_mut(slot as usize) {
            Some(way) if way.is_live() && way.tag == tag => {
                way.hit = true;
                true
            }
            _ => false,
        }
    }

    /// Writes the key that a reported hit was about to `out`; false if the slot holds another by
    /// now. Cost: the lines of the key in the window.
    pub fn key(&self, slot: u32, tag: u32, out: &mut Vec<u8>) -> bool {
        match self.ways.get(slot as usize) {
            Some(way) if way.is_live() && way.tag == tag => {
                out.resize(usize::from(way.key_bytes), 0);
                self.memory
                    .copy_out(usize::from(way.line) * LINE_BYTES, out);
                true
            }
            _ => false,
        }
    }

    /// The first fill: from here on the window costs memory.
    #[cold]
    fn start(&mut self) {
        self.ways = vec![Way::EMPTY; window::sets(self.bytes()) * WAYS].into_boxed_slice();
        let bytes = self.bytes() as u64;
        self.memory.word(8).store(bytes, Ordering::Relaxed);
        // What a reader finds behind it is checked by its sequence, not by this.
        self.memory.half(0).store(MAGIC, Ordering::Relaxed);
    }

    /// The slot that holds a key of this hash.
    #[inline]
    fn find(&self, hash: u64) -> Option<usize> {
        let tag = tag_of(hash);
        let first = window::set_of(hash, self.bytes()) * WAYS;
        let set = self.ways.get(first..first + WAYS)?;
        let way = set.iter().position(|way| way.is_live() && way.tag == tag)?;
        Some(first + way)
    }

    /// A slot for a new key: an empty one, else the oldest that wasn't hit, else the oldest. In
    /// the last case every hit of the set is forgotten, so that its ways take turns.
    fn choose(&mut self, hash: u64) -> usize {
        let first = window::set_of(hash, self.bytes()) * WAYS;
        let round = self.bytes() as u32 / LINE_BYTES as u32;
        let head = self.head;
        let set = &mut self.ways[first..first + WAYS];
        let rank = |way: &Way| {
            let ahead_of_head = (u32::from(way.line) + round - head) % round;
            (way.is_live(), way.hit, ahead_of_head)
        };
        let chosen = (0..WAYS).min_by_key(|&way| rank(&set[way])).unwrap_or(0);
        if set[chosen].is_live() && set[chosen].hit {
            set.iter_mut().for_each(|way| way.hit = false);
        }
        first + chosen
    }

    /// Writes key and value into a slot, and publishes it.
    fn fill(&mut self, slot: usize, tag: u32, key: &[u8], value: &[u8]) {
        let lines = lines_of(key.len(), value.len());
        let way = &self.ways[slot];
        let line = if way.is_live() && way.tag == tag && way.lines() == lines {
            // The same key again: in place, keeping its turn in the log.
            let line = way.line;
            self.close(slot, tag);
            line
        } else {
            if way.is_live() {
                self.drop_way(slot);
            }
            let line = self.make_room(lines);
            self.link_newest(slot);
            self.ways[slot].hit = false;
            line
        };
        // Release: partner of the acquire fence in `WindowReader::attempt`. All sequences made
        // odd so far, this way's and those of what was overtaken, come before the bytes below.
        fence(Ordering::Release); // Before the bytes of a fill.
        let at = usize::from(line) * LINE_BYTES;
        self.store_bytes(at, key);
        self.store_bytes(at + padded(key.len()), value);
        let way = &mut self.ways[slot];
        way.tag = tag;
        way.line = line;
        way.key_bytes = key.len() as u16;
        way.value_bytes = value.len() as u16;
        self.publish(slot);
    }

    /// Stores whole words, the last one padded with zeros.
    #[inline]
    fn store_bytes(&self, at: usize, bytes: &[u8]) {
        let whole = bytes.len() & !7;
        self.memory.copy_in(at, &bytes[..whole]);
        if whole < bytes.len() {
            let word = last_word(bytes);
            self.memory.word(at + whole).store(word, Ordering::Relaxed);
        }
    }

    /// Makes a way odd. The release fence before the next write of data makes it count.
    #[inline]
    fn close(&mut self, slot: usize, tag: u32) {
        let way = &mut self.ways[slot];
        debug_assert!(way.is_live());
        way.sequence = way.sequence.wrapping_add(1);
        let first = u64::from(way.sequence) | u64::from(tag) << 32;
        let at = window::way_at(slot);
        self.memory.word(at).store(first, Ordering::Relaxed);
    }

    /// Makes a way even, after its place and data.
    #[inline]
    fn publish(&mut self, slot: usize) {
        let way = &mut self.ways[slot];
        debug_assert!(!way.is_live());
        way.sequence = way.sequence.wrapping_add(1);
        let place = Place {
            line: u32::from(way.line),
            key_bytes: u32::from(way.key_bytes),
            value_bytes: u32::from(way.value_bytes),
        };
        let first = u64::from(way.sequence) | u64::from(way.tag) << 32;
        let at = window::way_at(slot);
        let (one, two) = (self.memory.word(at), self.memory.word(at + 8));
        two.store(place.pack(), Ordering::Relaxed);
        // Release: partner of the acquire load of the sequence in `WindowReader::attempt`.
        one.store(first, Ordering::Release);
    }

    fn invalidate_hash(&mut self, hash: u64) -> bool {
        let found = self.find(hash);
        if let Some(slot) = found {
            self.drop_way(slot);
        }
        found.is_some()
    }

    /// Takes a way out of the log and away from readers.
    fn drop_way(&mut self, slot: usize) {
        self.unlink(slot);
        self.close(slot, 0);
    }

    /// The first line of a free run of `lines`, overtaking the oldest extents as needed. At most
    /// [`MOVE_LINES_MAX`] lines are copied; at most twice `lines` extents leave.
    fn make_room(&mut self, lines: u32) -> u16 {
        let start = data_line(self.bytes());
        let end = (self.bytes() / LINE_BYTES) as u32;
        let mut move_lines = MOVE_LINES_MAX;
        loop {
            let oldest = usize::from(self.oldest);
            let Some(way) = self.ways.get(oldest) else {
                // The log is empty.
                self.head = start + lines;
                return start as u16;
            };
            let tail = u32::from(way.line);
            let run_end = if tail < self.head { end } else { tail };
            if self.head + lines <= run_end {
                self.head += lines;
                return (self.head - lines) as u16;
            }
            if tail < self.head {
                self.head = start;
            } else if way.hit && way.lines() <= move_lines {
                move_lines -= way.lines();
                self.move_ahead(oldest);
            } else {
                self.drop_way(oldest);
            }
        }
    }

    /// Moves the oldest extent, which lies at or behind the head, down to the head.
    fn move_ahead(&mut self, slot: usize) {
        let way = &mut self.ways[slot];
        way.hit = false;
        let (from, to, lines) = (u32::from(way.line), self.head, way.lines());
        debug_assert!(to <= from);
        self.head += lines;
        self.unlink(slot);
        self.link_newest(slot);
        if from == to {
            return;
        }
        self.close(slot, self.ways[slot].tag);
        // Release: as in `fill`. What lay at the head was overtaken and is odd.
        fence(Ordering::Release); // Before the bytes of a move.
        let (from_at, to_at) = (from as usize * LINE_BYTES, to as usize * LINE_BYTES);
        for word in (0..lines as usize * LINE_BYTES).step_by(8) {
            let moved = self.memory.word(from_at + word).load(Ordering::Relaxed);
            self.memory
                .word(to_at + word)
                .store(moved, Ordering::Relaxed);
        }
        self.ways[slot].line = to as u16;
        self.publish(slot);
    }

    fn link_newest(&mut self, slot: usize) {
        let older = std::mem::replace(&mut self.newest, slot as u16);
        match self.ways.get_mut(usize::from(older)) {
            Some(way) => way.newer = slot as u16,
            None => self.oldest = slot as u16,
        }
        self.ways[slot].older = older;
        self.ways[slot].newer = NONE;
        self.live += 1;
    }

    fn unlink(&mut self, slot: usize) {
        let (older, newer) = (self.ways[slot].older, self.ways[slot].newer);
        match self.ways.get_mut(usize::from(older)) {
            Some(way) => way.newer = newer,
            None => self.oldest = newer,
        }
        match self.ways.get_mut(usize::from(newer)) {
            Some(way) => way.older = older,
            None => self.newest = older,
        }
        self.live -= 1;
    }

    /// Puts the head where it is after a round of the log.
    #[cfg(all(test, helios_loom))]
    pub(super) fn go_round(&mut self) {
        self.head = data_line(self.bytes());
    }

    /// A word of the region, for tests.
    #[cfg(all(test, not(helios_loom)))]
    pub(super) fn word(&self, at: usize) -> u64 {
        self.memory.word(at).load(Ordering::Relaxed)
    }

    /// Checks the shadow against itself; panics where an invariant is broken.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let (start, end) = (data_line(self.bytes()), self.bytes() / LINE_BYTES);
        let mut taken = vec![false; end];
        let (mut slot, mut count, mut wraps, mut last) = (self.oldest, 0, 0, None);
        while let Some(way) = self.ways.get(usize::from(slot)) {
            assert!(way.is_live(), "slot {slot} in the log is closed");
            let line = usize::from(way.line);
            assert!(line >= start as usize && line + way.lines() as usize <= end);
            for line in &mut taken[line..line + way.lines() as usize] {
                assert!(!std::mem::replace(line, true), "extents overlap");
            }
            wraps += usize::from(last.is_some_and(|last| last > line));
            last = Some(line);
            (slot, count) = (way.newer, count + 1);
        }
        assert!(wraps <= 1, "the log goes round more than once");
        assert_eq!(count, self.len());
        assert_eq!(count, self.ways.iter().filter(|way| way.is_live()).count());
    }
}

/// First line of the data.
fn data_line(bytes: usize) -> u32 {
    (bytes / INDEX_SHARE / LINE_BYTES) as u32
}
