//! A stretch of a segment's file, read ahead of whoever goes through it record by record.
//!
//! Floor 1, a part of recovery: blocking, over [`SegmentFiles`]. Reads 1 MiB at a time; keeps that and
//! the longest record.

use crate::id::SegmentNo;

use super::files::{FilesError, SegmentFiles};
use super::format::RECORD_BYTES_MAX;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A stretch of a file, read ahead.
pub(super) struct Chunk {
    bytes: Vec<u8>,
    /// Offset of the first byte in the file.
    start: u64,
    /// Bytes that were read.
    len: usize,
    read_bytes: u64,
}

impl Chunk {
    /// One that can be read into.
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; CHUNK_BYTES + RECORD_BYTES_MAX],
            ..Self::empty()
        }
    }

    /// A stand-in while the real one is used.
    pub(super) fn empty() -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            len: 0,
            read_bytes: 0,
        }
    }

    pub(super) fn forget(&mut self) {
        (self.start, self.len, self.read_bytes) = (0, 0, 0);
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The bytes at `offset`, which never goes back: at least [`RECORD_BYTES_MAX`] of them, less
    /// only at the end of the file.
    pub(super) fn window<F: SegmentFiles + ?Sized>(
        &mut self,
        files: &mut F,
        segment: SegmentNo,
        offset: u64,
    ) -> Result<&[u8], FilesError> {
        let mut skip = (offset - self.start) as usize;
        let ended = self.len > 0 && self.len < self.bytes.len();
        if !ended && (self.len == 0 || self.len - skip < RECORD_BYTES_MAX) {
            let kept = self.len.saturating_sub(skip);
            self.bytes.copy_within(self.len - kept..self.len, 0);
            let at = offset + kept as u64;
            let got = files.read_at(segment, at, &mut self.bytes[kept..])?;
            self.read_bytes += got as u64;
            (self.start, self.len, skip) = (offset, kept + got, 0);
        }
        Ok(&self.bytes[skip..self.len])
    }
}
