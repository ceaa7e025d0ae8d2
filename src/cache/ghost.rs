//! Fingerprints of what L2 let go unread, so that what comes back soon is known.
//!
//! Floor 1. A FIFO measured in blocks, kept without a queue: each fingerprint is stored with the
//! count of blocks let go before it, and has left once the count has run on by `span_blocks`. A
//! bucket is one cache line of eight; if more than eight live ones meet there, the oldest is lost.
//!
//! Invariants
//! - nothing here names an object: a false answer costs a worse decision, never a wrong value.
//!
//! Cost: one line per operation.

use std::io;

use memmap2::MmapMut;

const BUCKET_BYTES: usize = 64;

/// What was let go lately.
#[derive(Debug)]
pub(super) struct Ghost {
    /// Buckets of eight words: fingerprint, low; count of blocks when it came, high. 0 is free.
    buckets: MmapMut,
    bucket_count: u32,
    /// Blocks that were ever let go; wraps.
    blocks: u32,
    span_blocks: u32,
}

impl Ghost {
    /// Remembers the last `span_blocks` blocks; memory for one fingerprint per block.
    pub(super) fn new(span_blocks: u32) -> io::Result<Self> {
        let bucket_count = Self::bytes(span_blocks) / BUCKET_BYTES;
        Ok(Self {
            buckets: MmapMut::map_anon(bucket_count * BUCKET_BYTES)?,
            bucket_count: bucket_count as u32,
            blocks: 0,
            span_blocks,
        })
    }

    /// Bytes of memory for a span.
    pub(super) fn bytes(span_blocks: u32) -> usize {
        (span_blocks as usize / 8 + 1) * BUCKET_BYTES
    }

    /// Notes that `blocks` blocks under this fingerprint were let go.
    pub(super) fn push(&mut self, fingerprint: u32, blocks: u32) {
        let (now, span) = (self.blocks, self.span_blocks);
        let word = u64::from(fingerprint) | u64::from(now) << 32;
        let bucket = self.bucket(fingerprint);
        // The same one again, else the one that came first; a free word is older than any.
        let age = |old: u64| match old {
            0 => u32::MAX,
            old if old as u32 == fingerprint => u32::MAX,
            old => now.wrapping_sub((old >> 32) as u32).min(span),
        };
        let same = |old: &[u8; 8]| u64::from_le_bytes(*old) as u32 == fingerprint;
        let chosen = bucket.iter().position(same).or_else(|| {
            (0..bucket.len()).max_by_key(|&place| age(u64::from_le_bytes(bucket[place])))
        });
        if let Some(chosen) = chosen {
            bucket[chosen] = word.to_le_bytes();
        }
        self.blocks = now.wrapping_add(blocks);
    }

    /// Whether the fingerprint was let go within the span; it is forgotten by this.
    pub(super) fn take(&mut self, fingerprint: u32) -> bool {
        let (now, span) = (self.blocks, self.span_blocks);
        for word in self.bucket(fingerprint) {
            let old = u64::from_le_bytes(*word);
            if old as u32 == fingerprint {
                *word = [0; 8];
                return now.wrapping_sub((old >> 32) as u32) <= span;
            }
        }
        false
    }

    fn bucket(&mut self, fingerprint: u32) -> &mut [[u8; 8]] {
        debug_assert!(fingerprint != 0);
        let spread = u64::from(fingerprint.wrapping_mul(0x9e37_79b1));
        let at = ((spread * u64::from(self.bucket_count)) >> 32) as usize * BUCKET_BYTES;
        self.buckets[at..at + BUCKET_BYTES].as_chunks_mut().0
    }
}
