//! A shard's L2: values in private memory, byte-accounted, let go by S3-FIFO.
//!
//! Floor 1. L2 knows objects by number and fingerprint; the shard's table keeps, for each object,
//! the [`EntryNo`] that L2 gave it, and is told when an entry leaves. What may not enter: keys,
//! hash tables (but for the ghost), I/O.
//!
//! S3-FIFO (Yang, Zhang, Qiu, Yue, Vinayak: "FIFO queues are all you need for cache eviction",
//! SOSP '23): new entries go to a small queue of a tenth of the bytes; those touched twice there
//! go on to the main queue, the rest leave and are remembered for a while (`ghost.rs`); an object
//! that is remembered enters the main queue at once. The main queue gives each entry one more
//! round per touch, up to three. One scan thus displaces a tenth. Beside both, an eighth of the bytes is
//! for groups of entries that leave together (`groups.rs`).
//!
//! Invariants
//! - `bytes_used <= bytes_capacity`, at every return.
//! - a block is on exactly one chain: that of a live entry, or the free one.
//! - a live entry is in exactly one queue; queues are in order of entry.
//! - no operation allocates; the memory of all of them is reserved at the start and touched when
//!   first used.
//!
//! Memory: an entry is charged 32 bytes and 260 per block of 256. The ghost's share, 2.5% of
//! the bytes given, is set aside first. Entry slots once used stay: were a cache full of tiny
//! values and then of large ones, it would hold up to 9% above its charge.

mod groups;

use std::io;

use memmap2::{Advice, MmapMut};

use crate::cache::ghost::Ghost;
use crate::cache::hint;
use groups::{GROUPS_SHARE, Groups};

pub use groups::{GROUPS_MAX, GroupNo};

/// Bytes of value in a block.
pub const BLOCK_BYTES: usize = 256;
/// Charge of a block: its bytes and its link.
pub const BLOCK_CHARGE: usize = BLOCK_BYTES + size_of::<u32>();
/// Charge of an entry beside its blocks.
pub const ENTRY_CHARGE: usize = size_of::<Entry>();
/// A value whose charge is over this share of the capacity is not admitted.
const VALUE_SHARE: usize = 16;
/// The small queue's share of the capacity.
const SMALL_SHARE: usize = 10;
/// Touches that are told apart.
const TOUCHES_MAX: u8 = 3;
/// Touches in the small queue that earn a place in the main one.
const TOUCHES_TO_PROMOTE: u8 = 2;
/// Second chances given in search of one victim; bounds the work of an insert.
const CHANCES_MAX: u32 = 128;
/// Blocks that [`L2::prefetch`] asks for.
const PREFETCH_BLOCKS_MAX: usize = 8;

const NONE: u32 = u32::MAX;

const _: () = assert!(ENTRY_CHARGE == 32);

/// A value's place in L2; good until it is removed or reported evicted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EntryNo(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    Small,
    Main,
    Group,
}

/// Half a cache line, and never on two.
#[derive(Debug)]
#[repr(C, align(32))]
struct Entry {
    object: u32,
    fingerprint: u32,
    first_block: u32,
    last_block: u32,
    value_bytes: u32,
    older: u32,
    /// In a free entry: the next free one.
    newer: u32,
    touches: u8,
    place: Place,
    /// In an entry of a group: which.
    group: u16,
}

/// A FIFO through the entries.
#[derive(Debug)]
struct Queue {
    oldest: u32,
    newest: u32,
    bytes: usize,
}

impl Queue {
    const EMPTY: Self = Self {
        oldest: NONE,
        newest: NONE,
        bytes: 0,
    };
}

/// A shard's values in memory.
#[derive(Debug)]
pub struct L2 {
    arena: MmapMut,
    /// The next block of each chain; as long as the blocks ever used.
    next: Vec<u32>,
    free_block: u32,
    entries: Vec<Entry>,
    free_entry: u32,
    small: Queue,
    main: Queue,
    groups: Groups,
    ghost: Ghost,
    len: usize,
    bytes_capacity: usize,
}

impl L2 {
    /// Reserves a cache of `bytes` in all. An error is the operating system refusing the address
    /// space. Below some 5 KiB nothing fits; 0 is a cache that holds nothing.
    pub fn new(bytes: usize) -> io::Result<Self> {
        // What the main queue can hold of values of one block: the span of the paper's ghost.
        let span = (bytes - bytes / SMALL_SHARE) / (BLOCK_CHARGE + ENTRY_CHARGE);
        let span = u32::try_from(span).unwrap_or(NONE);
        let bytes_all = bytes.saturating_sub(Ghost::bytes(span));
        // A block and an entry are numbered by 32 bits: 1 TiB per shard.
        let block_count = (bytes_all / BLOCK_CHARGE).min(NONE as usize);
        let entry_count = bytes_all / (BLOCK_CHARGE + ENTRY_CHARGE);
        let group_bytes = bytes_all / GROUPS_SHARE;
        let arena = MmapMut::map_anon((block_count * BLOCK_BYTES).max(1))?;
        // A hint: with large pages a value costs one TLB entry, not one per block. Refused or
        // not supported, all works the same.
        let _ = arena.advise(Advice::HugePage);
        Ok(Self {
            arena,
            next: Vec::with_capacity(block_count),
            free_block: NONE,
            entries: Vec::with_capacity(entry_count),
            free_entry: NONE,
            small: Queue::EMPTY,
            main: Queue::EMPTY,
            groups: Groups::new(group_bytes),
            ghost: Ghost::new(span)?,
            len: 0,
            bytes_capacity: bytes_all - group_bytes,
        })
    }

    /// Copies a value in, letting others go for it; `evicted` is told the object of each that
    /// leaves. `None`: too large to be admitted, and nothing left. The object must not be in the
    /// cache already. `fingerprint`: any 64 bits that name the object for good.
    pub fn insert(
        &mut self,
        object: u32,
        fingerprint: u64,
        value: &[u8],
        evicted: &mut dyn FnMut(u32),
    ) -> Option<EntryNo> {
        let bytes = charge(value.len());
        if bytes > self.bytes_capacity / VALUE_SHARE {
            return None;
        }
        let fingerprint = fold(fingerprint);
        let place = if self.ghost.take(fingerprint) {
            Place::Main
        } else {
            Place::Small
        };
        self.make_room(bytes, evicted);
        let (first_block, last_block) = self.store(value);
        let entry = Entry {
            object,
            fingerprint,
            first_block,
            last_block,
            value_bytes: value.len() as u32,
            older: NONE,
            newer: NONE,
            touches: 0,
            place,
            group: 0,
        };
        let no = self.place(entry);
        self.link(no, place);
        self.len += 1;
        Some(EntryNo(no))
    }

    /// The value, in pieces of [`BLOCK_BYTES`] and a last shorter one; counts as a touch.
    #[inline]
    pub fn get(&mut self, entry: EntryNo) -> Chunks<'_> {
        self.touch(entry);
        let entry = self.entry(entry);
        Chunks {
            l2: self,
            block: entry.first_block,
            bytes_left: entry.value_bytes as usize,
        }
    }

    /// Copies the bytes from `offset` on to `out`, as many as there are; how many. No touch: a
    /// value that is read in parts counts once, by [`Self::touch`]. Walks the chain to `offset`.
    pub fn read(&self, entry: EntryNo, offset: usize, out: &mut [u8]) -> usize {
        let entry = self.entry(entry);
        let value_bytes = entry.value_bytes as usize;
        let wanted = out.len().min(value_bytes.saturating_sub(offset));
        if wanted == 0 {
            return 0;
        }
        let mut block = entry.first_block;
        for _ in 0..offset / BLOCK_BYTES {
            block = self.next[block as usize];
        }
        let mut chunks = Chunks {
            l2: self,
            block,
            bytes_left: value_bytes - offset / BLOCK_BYTES * BLOCK_BYTES,
        };
        let (mut filled, mut skip) = (0, offset % BLOCK_BYTES);
        while filled < wanted {
            let Some(chunk) = chunks.next() else { break };
            let piece = &chunk[skip..chunk.len().min(skip + wanted - filled)];
            out[filled..filled + piece.len()].copy_from_slice(piece);
            (filled, skip) = (filled + piece.len(), 0);
        }
        filled
    }

    /// Takes a value out. Its object is not reported, nor remembered.
    pub fn remove(&mut self, entry: EntryNo) {
        self.entry(entry);
        self.release(entry.0);
    }

    /// Counts a use of a value.
    #[inline]
    pub fn touch(&mut self, entry: EntryNo) {
        let entry = &mut self.entries[entry.0 as usize];
        entry.touches = (entry.touches + 1).min(TOUCHES_MAX);
    }

    /// Uses of a value that count for it at present, 0 to 3.
    #[must_use]
    pub fn touches(&self, entry: EntryNo) -> u8 {
        self.entry(entry).touches
    }

    /// Bytes of a value.
    #[must_use]
    pub fn value_bytes(&self, entry: EntryNo) -> usize {
        self.entry(entry).value_bytes as usize
    }

    /// Asks for the line that [`Self::prefetch`] and [`Self::get`] read first.
    #[inline]
    pub fn prefetch_entry(&self, entry: EntryNo) {
        if let Some(entry) = self.entries.get(entry.0 as usize) {
            hint::prefetch_value(entry);
        }
    }

    /// Asks for the first blocks of a value; reads its entry and chain.
    #[inline]
    pub fn prefetch(&self, entry: EntryNo) {
        let entry = self.entry(entry);
        let blocks = blocks_of(entry.value_bytes as usize).min(PREFETCH_BLOCKS_MAX);
        let mut left = entry.value_bytes as usize;
        let mut block = entry.first_block;
        for _ in 0..blocks {
            hint::prefetch(self.block(block, left.min(BLOCK_BYTES)));
            left = left.saturating_sub(BLOCK_BYTES);
            block = self.next[block as usize];
        }
    }

    /// How much a value was wanted lately: the more, the higher. Of equal ones nothing is known.
    #[must_use]
    pub fn warmth(&self, entry: EntryNo) -> u8 {
        let entry = self.entry(entry);
        let kept = matches!(entry.place, Place::Main);
        entry
            .touches
            .saturating_mul(2)
            .saturating_add(u8::from(kept))
    }

    /// What a value takes of the cache, in bytes.
    #[must_use]
    pub fn charge_of(&self, entry: EntryNo) -> usize {
        charge(self.entry(entry).value_bytes as usize)
    }

    /// The charge of all values in the cache, but for those of groups.
    #[must_use]
    pub fn bytes_used(&self) -> usize {
        self.small.bytes + self.main.bytes
    }

    /// What the charge never exceeds.
    #[must_use]
    pub fn bytes_capacity(&self) -> usize {
        self.bytes_capacity
    }

    /// Longest value that is admitted, in bytes.
    #[must_use]
    pub fn value_bytes_max(&self) -> usize {
        (self.bytes_capacity / VALUE_SHARE).saturating_sub(ENTRY_CHARGE) / BLOCK_CHARGE
            * BLOCK_BYTES
    }

    /// Values in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A live entry; a number that L2 did not give, or that has left, is a bug of the caller.
    #[inline]
    fn entry(&self, entry: EntryNo) -> &Entry {
        let entry = &self.entries[entry.0 as usize];
        assert!(entry.place != Place::Free, "an entry that left the cache");
        entry
    }

    #[inline]
    fn block(&self, block: u32, bytes: usize) -> &[u8] {
        let at = block as usize * BLOCK_BYTES;
        &self.arena[at..at + bytes]
    }

    /// Lets entries go until `bytes` more fit.
    fn make_room(&mut self, bytes: usize, evicted: &mut dyn FnMut(u32)) {
        let small_bytes = self.bytes_capacity / SMALL_SHARE;
        let mut chances = CHANCES_MAX;
        while self.bytes_used() + bytes > self.bytes_capacity {
            let from_small = self.small.bytes > small_bytes || self.main.oldest == NONE;
            let queue = if from_small { &self.small } else { &self.main };
            let no = queue.oldest;
            let entry = &mut self.entries[no as usize];
            let spare = match entry.place {
                Place::Small => entry.touches >= TOUCHES_TO_PROMOTE,
                _ => entry.touches > 0,
            };
            if spare && chances > 0 {
                chances -= 1;
                entry.touches = if from_small { 0 } else { entry.touches - 1 };
                self.unlink(no);
                self.link(no, Place::Main);
                continue;
            }
            chances = CHANCES_MAX;
            if from_small {
                let blocks = blocks_of(entry.value_bytes as usize) as u32;
                self.ghost.push(entry.fingerprint, blocks);
            }
            evicted(entry.object);
            self.release(no);
        }
    }

    /// Copies a value into a chain of blocks; its first and last.
    fn store(&mut self, value: &[u8]) -> (u32, u32) {
        let first = self.take_block();
        let (mut last, mut rest) = (first, value);
        loop {
            let (piece, after) = rest.split_at(rest.len().min(BLOCK_BYTES));
            let at = last as usize * BLOCK_BYTES;
            self.arena[at..at + piece.len()].copy_from_slice(piece);
            rest = after;
            if rest.is_empty() {
                return (first, last);
            }
            let block = self.take_block();
            self.next[last as usize] = block;
            last = block;
        }
    }

    fn take_block(&mut self) -> u32 {
        let block = self.free_block;
        if let Some(&next) = self.next.get(block as usize) {
            self.free_block = next;
            return block;
        }
        // The charge bounds the blocks, so the reserve suffices.
        assert!(self.next.len() < self.next.capacity());
        self.next.push(NONE);
        self.next.len() as u32 - 1
    }

    /// Puts an entry into a free slot.
    fn place(&mut self, entry: Entry) -> u32 {
        let no = self.free_entry;
        if let Some(slot) = self.entries.get_mut(no as usize) {
            self.free_entry = slot.newer;
            *slot = entry;
            return no;
        }
        assert!(self.entries.len() < self.entries.capacity());
        self.entries.push(entry);
        self.entries.len() as u32 - 1
    }

    /// Frees an entry and, in one splice, its blocks.
    fn release(&mut self, no: u32) {
        self.unlink(no);
        let entry = &mut self.entries[no as usize];
        self.next[entry.last_block as usize] = self.free_block;
        self.free_block = entry.first_block;
        entry.place = Place::Free;
        entry.newer = self.free_entry;
        self.free_entry = no;
        self.len -= 1;
    }

    /// Appends an entry, which is in no queue, as the newest of one.
    fn link(&mut self, no: u32, place: Place) {
        let entry = &self.entries[no as usize];
        let bytes = charge(entry.value_bytes as usize);
        let queue = self.queue(place, entry.group);
        let older = std::mem::replace(&mut queue.newest, no);
        queue.bytes += bytes;
        if older == NONE {
            queue.oldest = no;
        } else {
            self.entries[older as usize].newer = no;
        }
        if place == Place::Group {
            self.groups.charge(bytes);
        }
        let entry = &mut self.entries[no as usize];
        (entry.older, entry.newer, entry.place) = (older, NONE, place);
    }

    fn unlink(&mut self, no: u32) {
        let entry = &self.entries[no as usize];
        let (older, newer, place) = (entry.older, entry.newer, entry.place);
        let bytes = charge(entry.value_bytes as usize);
        let queue = self.queue(place, entry.group);
        queue.bytes -= bytes;
        if older == NONE {
            queue.oldest = newer;
        }
        if newer == NONE {
            queue.newest = older;
        }
        if let Some(entry) = self.entries.get_mut(older as usize) {
            entry.newer = newer;
        }
        if let Some(entry) = self.entries.get_mut(newer as usize) {
            entry.older = older;
        }
        if place == Place::Group {
            self.groups.refund(bytes);
        }
    }

    fn queue(&mut self, place: Place, group: u16) -> &mut Queue {
        match place {
            Place::Group => self.groups.queue(GroupNo(group)),
            Place::Main => &mut self.main,
            _ => &mut self.small,
        }
    }
}

/// The pieces of a value, in order.
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    l2: &'a L2,
    block: u32,
    bytes_left: usize,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.bytes_left == 0 {
            return None;
        }
        let bytes = self.bytes_left.min(BLOCK_BYTES);
        let chunk = self.l2.block(self.block, bytes);
        self.block = self.l2.next[self.block as usize];
        self.bytes_left -= bytes;
        Some(chunk)
    }
}

/// Blocks of a value; an empty one has a block too.
fn blocks_of(value_bytes: usize) -> usize {
    value_bytes.div_ceil(BLOCK_BYTES).max(1)
}

/// What a value of this length costs.
pub(super) fn charge(value_bytes: usize) -> usize {
    blocks_of(value_bytes) * BLOCK_CHARGE + ENTRY_CHARGE
}

/// What an entry keeps of a fingerprint; never 0.
fn fold(fingerprint: u64) -> u32 {
    (fingerprint ^ fingerprint >> 32) as u32 | 1
}
