//! The footer of a sealed segment: the heads of its records, and a trailer that finds them.
//!
//! Floor 1. Pure functions of bytes; the layout is in `FORMAT.md`. A footer in the making grows by
//! one copy of each head that is appended.
//!
//! Invariants
//! - a trailer is valid only behind the header that it was written behind: its checksum continues
//!   the header's.

use super::Sequence;
use super::format::{checksum, u32_at, u64_at};

/// Bytes of the trailer that ends a sealed file.
pub const TRAILER_BYTES: usize = 48;

const TRAILER_MAGIC: [u8; 8] = *b"HELIOFTR";

/// Ends the footer, and with it the file of a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Sequence of the first record.
    pub first: Sequence,
    /// Sequence of the last record.
    pub last: Sequence,
    /// Records.
    pub count: u32,
    /// Where the last record ends and the footer begins.
    pub data_end: u32,
    /// Bytes of the heads before the trailer.
    pub heads_bytes: u32,
    /// Checksum of the last record.
    pub last_checksum: u32,
}

impl Trailer {
    /// The last 48 bytes of the file.
    #[must_use]
    pub fn encode(&self, seed: u32) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..8].copy_from_slice(&TRAILER_MAGIC);
        bytes[8..16].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.0.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.count.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.data_end.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.heads_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.last_checksum.to_le_bytes());
        let sum = checksum(seed, &bytes[..44]);
        bytes[44..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Whether these bytes were a trailer once.
    #[must_use]
    pub fn has_magic(bytes: &[u8; TRAILER_BYTES]) -> bool {
        bytes[..8] == TRAILER_MAGIC
    }

    /// Reads a trailer; `None` if these bytes are none of this segment.
    #[must_use]
    pub fn decode(bytes: &[u8; TRAILER_BYTES], seed: u32) -> Option<Self> {
        (bytes[..8] == TRAILER_MAGIC && checksum(seed, &bytes[..44]) == u32_at(bytes, 44)).then(
            || Self {
                first: Sequence(u64_at(bytes, 8)),
                last: Sequence(u64_at(bytes, 16)),
                count: u32_at(bytes, 24),
                data_end: u32_at(bytes, 28),
                heads_bytes: u32_at(bytes, 32),
                last_checksum: u32_at(bytes, 36),
            },
        )
    }
}

/// A footer in the making: the heads of a segment's records, one after the other, unpadded.
#[derive(Debug, Clone, Default)]
pub struct Footer {
    heads: Vec<u8>,
    count: u32,
}

/// A point to which a [`Footer`] can go back.
#[derive(Debug, Clone, Copy, Default)]
pub struct FooterMark {
    heads_bytes: usize,
    count: u32,
}

impl Footer {
    /// An empty footer with room for `bytes` of heads.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            heads: Vec::with_capacity(bytes),
            count: 0,
        }
    }

    /// Adds the head of the next record.
    pub fn push(&mut self, head: &[u8]) {
        self.heads.extend_from_slice(head);
        self.count += 1;
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of heads so far.
    #[must_use]
    pub fn heads_bytes(&self) -> usize {
        self.heads.len()
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.heads.capacity()
    }

    /// This point.
    #[must_use]
    pub fn mark(&self) -> FooterMark {
        FooterMark {
            heads_bytes: self.heads.len(),
            count: self.count,
        }
    }

    /// Forgets what was pushed after `mark`.
    pub fn rewind(&mut self, mark: FooterMark) {
        self.heads.truncate(mark.heads_bytes);
        self.count = mark.count;
    }

    /// The bytes to write at `data_end`: heads and trailer. `last_checksum` is of the last
    /// record, `header_checksum` of the segment's header.
    #[must_use]
    pub fn finish(
        mut self,
        first: Sequence,
        data_end: u32,
        last_checksum: u32,
        header_checksum: u32,
    ) -> Vec<u8> {
        let trailer = Trailer {
            first,
            last: Sequence((first.0 + u64::from(self.count)).saturating_sub(1)),
            count: self.count,
            data_end,
            heads_bytes: self.heads.len() as u32,
            last_checksum,
        };
        self.heads
            .extend_from_slice(&trailer.encode(header_checksum));
        self.heads
    }
}
