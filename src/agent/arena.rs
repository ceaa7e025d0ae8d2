//! Space in an arena, handed out by the client to itself.
//!
//! Floor 1, room `agent`. Private to the client: the server never learns what is allocated, it
//! only checks that an extent lies inside. No shared memory here.
//!
//! Invariants
//! - blocks don't overlap; each begins and ends on a 64-byte line.
//! - the lowest place that fits is taken, so that a client with one request under way touches
//!   the same first lines and pages for ever.
//! - no allocation after [`Arena::new`]: at most `blocks_max` blocks are out at once.
//!
//! Cost: allocating walks the blocks in order of place (one, for one request at a time).

use crate::agent::entry::Extent;
use crate::agent::layout::LINE_BYTES;

/// Which bytes of an arena are in use.
#[derive(Debug)]
pub struct Arena {
    bytes: u32,
    /// Ends and beginnings of what is in use, ordered by place.
    taken: Vec<Extent>,
}

/// Bytes of an arena that are in use until they are given back to [`Arena::free`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "space that is not freed is lost to the lane"]
pub struct Block {
    extent: Extent,
}

impl Block {
    /// The `len` bytes at the start of the block.
    ///
    /// # Panics
    /// Where the block is shorter.
    #[must_use]
    pub fn first(&self, len: u32) -> Extent {
        self.part(0, len)
    }

    /// `len` bytes, `skip` bytes into the block.
    ///
    /// # Panics
    /// Where the block ends before.
    #[must_use]
    pub fn part(&self, skip: u32, len: u32) -> Extent {
        assert!(
            Extent { offset: skip, len }.fits(self.extent.len),
            "{len} bytes at {skip} of a block of {}",
            self.extent.len
        );
        Extent {
            offset: self.extent.offset + skip,
            len,
        }
    }

    /// The whole block: what was asked for, rounded up to lines.
    #[must_use]
    pub fn extent(&self) -> Extent {
        self.extent
    }
}

impl Arena {
    /// An arena of `bytes`, nothing of it in use, for at most `blocks_max` blocks at once.
    #[must_use]
    pub fn new(bytes: u32, blocks_max: usize) -> Self {
        Self {
            bytes,
            taken: Vec::with_capacity(blocks_max),
        }
    }

    /// The lowest free place of `len` bytes; `None` where there is none, or too many blocks are
    /// out. An empty block takes nothing.
    pub fn alloc(&mut self, len: u32) -> Option<Block> {
        if len == 0 {
            return Some(Block {
                extent: Extent::EMPTY,
            });
        }
        let len = len.checked_next_multiple_of(LINE_BYTES as u32)?;
        if self.taken.len() == self.taken.capacity() {
            return None;
        }
        let mut offset = 0;
        let mut index = 0;
        for block in &self.taken {
            if block.offset - offset >= len {
                break;
            }
            offset = block.offset + block.len;
            index += 1;
        }
        let extent = Extent { offset, len };
        if !extent.fits(self.bytes) {
            return None;
        }
        self.taken.insert(index, extent);
        Some(Block { extent })
    }

    /// Gives a block back.
    ///
    /// # Panics
    /// Where the block is of another arena.
    pub fn free(&mut self, block: Block) {
        if block.extent.len == 0 {
            return;
        }
        let found = self
            .taken
            .binary_search_by_key(&block.extent.offset, |taken| taken.offset);
        let index = found.expect("a block of this arena");
        assert_eq!(self.taken[index], block.extent, "a block of this arena");
        self.taken.remove(index);
    }

    /// Bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> u32 {
        self.taken.iter().map(|block| block.len).sum()
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_at_a_time_is_always_the_same_place() {
        let mut arena = Arena::new(4096, 4);
        for len in [1, 64, 65, 4096] {
            let block = arena.alloc(len).unwrap();
            assert_eq!(block.first(len).offset, 0);
            arena.free(block);
        }
        assert_eq!(arena.alloc(4097), None);
        assert_eq!(arena.alloc(u32::MAX), None);
        assert_eq!(arena.used_bytes(), 0);
    }

    proptest! {
        /// Against a map of lines: no line twice, the lowest gap taken, refused only if none fits.
        #[test]
        fn blocks_never_overlap(steps in prop::collection::vec((0u32..700, any::<u8>()), 1..200)) {
            const LINES: usize = 32;
            let mut arena = Arena::new(64 * LINES as u32, 8);
            let mut lines = [false; LINES];
            let mut out = Vec::new();
            for (len, pick) in steps {
                if pick % 3 == 0 && !out.is_empty() {
                    let block: Block = out.swap_remove(usize::from(pick) % out.len());
                    let at = block.extent().offset as usize / 64;
                    lines[at..at + block.extent().len as usize / 64].fill(false);
                    arena.free(block);
                    continue;
                }
                let need = len.div_ceil(64) as usize;
                let gap = (0..=LINES - need).find(|&at| !lines[at..at + need].contains(&true));
                let busy = out.iter().filter(|b: &&Block| b.extent().len > 0).count();
                match arena.alloc(len) {
                    None => prop_assert!(gap.is_none() || busy == 8),
                    Some(block) if need == 0 => prop_assert_eq!(block.extent(), Extent::EMPTY),
                    Some(block) => {
                        prop_assert_eq!(Some(block.extent().offset as usize / 64), gap);
                        let at = gap.unwrap();
                        lines[at..at + need].fill(true);
                        out.push(block);
                    }
                }
                let used = lines.iter().filter(|line| **line).count() * 64;
                prop_assert_eq!(arena.used_bytes() as usize, used);
            }
        }
    }
}
