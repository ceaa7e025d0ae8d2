//! A segment's bytes, mapped for reading.
//!
//! Floor 3, part of `io`. The only file of the room that forms references into a mapping.
//!
//! Invariants
//! - no byte at or after `readable` is ever touched, and the file had at least `readable` bytes
//!   when it was mapped or cut: no SIGBUS by our own doing. Who else cuts a segment file under a
//!   live runtime can still kill it; the data directory belongs to the runtime's user alone.
//! - bytes below `readable` are written by the owner of the mapping only, and never while a slice
//!   is borrowed: both need `&mut` of the same `ShardDisk`. The I/O core writes the footer, which
//!   lies beyond `readable` until the seal was answered.
//! - a slice is formed only after the kernel said that its pages are in the page cache. It may
//!   evict one before it is read: then that access waits for the device. Asking costs less than
//!   pinning, and the pages just asked for are the last to be evicted.
//!
//! Cost of [`Mapping::is_resident`]: one `mincore` (two per 256 KiB), and a minor fault per 64 KiB
//! that was not touched since the last zap.

#![expect(
    unsafe_code,
    reason = "residency is asked and slices are formed by address"
)]

use std::fs::File;
use std::io;

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

/// What one minor fault maps: the kernel's fault-around window, aligned by address.
pub(super) const FAULT_AROUND_BYTES: usize = 64 << 10;
/// Pages asked about in one system call.
const PAGES_PER_CALL: usize = 64;

/// A mapped segment, and which of its windows were touched.
pub(super) struct Mapping {
    map: Option<MmapRaw>,
    readable: u32,
    /// One bit per fault-around window.
    touched: Box<[u64]>,
}

impl Mapping {
    /// Maps the first `bytes` of a file. A file that ends before them is an `UnexpectedEof`.
    pub(super) fn new(file: &File, bytes: u32) -> io::Result<Self> {
        if file.metadata()?.len() < u64::from(bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes == 0 {
            return Ok(Self {
                map: None,
                readable: 0,
                touched: Box::default(),
            });
        }
        let map = MmapOptions::new()
            .len(bytes as usize)
            .map_raw_read_only(file)?;
        map.advise(Advice::Random)?;
        // One touch must not map a huge page, or the count of mapped bytes would be wrong. A
        // kernel without huge pages refuses the advice, and needs none.
        let _ = map.advise(Advice::NoHugePage);
        let windows = bytes as usize / FAULT_AROUND_BYTES + 2;
        Ok(Self {
            map: Some(map),
            readable: bytes,
            touched: vec![0; windows.div_ceil(64)].into_boxed_slice(),
        })
    }

    /// Bytes that may be read.
    pub(super) fn readable(&self) -> u32 {
        self.readable
    }

    /// Moves the end of what may be read; it stays inside the mapping. The caller answers for
    /// the file having that many bytes.
    pub(super) fn set_readable(&mut self, bytes: u32) {
        let mapped = self.map.as_ref().map_or(0, MmapRaw::len) as u32;
        self.readable = bytes.min(mapped);
    }

    /// Whether a range can be read without waiting for the device.
    pub(super) fn is_resident(&self, offset: u32, bytes: u32) -> bool {
        let Some(range) = self.range(offset, bytes) else {
            return false;
        };
        let Some(map) = &self.map else { return true };
        let page = page_bytes();
        let mut at = range.start / page * page;
        let mut pages = [0u8; PAGES_PER_CALL];
        while at < range.end {
            let span = (range.end - at).min(PAGES_PER_CALL * page);
            let count = span.div_ceil(page);
            // SAFETY: `at` is a multiple of the page size and `at + span` is inside the mapping;
            // the kernel writes one byte per page, `count` of them, which fit into `pages`.
            let asked =
                unsafe { libc::mincore(map.as_mut_ptr().add(at).cast(), span, pages.as_mut_ptr()) };
            if asked != 0 || pages[..count].iter().any(|state| state & 1 == 0) {
                return false;
            }
            at += span;
        }
        true
    }

    /// Bytes that reading a range would add to what is mapped.
    pub(super) fn untouched_bytes(&self, offset: u32, bytes: u32) -> usize {
        let untouched = self
            .windows(offset, bytes)
            .filter(|window| self.touched[window / 64] >> (window % 64) & 1 == 0);
        untouched.count() * FAULT_AROUND_BYTES
    }

    /// The bytes of a range for which [`Mapping::is_resident`] just held; counts it as touched.
    /// `None` outside of what may be read.
    pub(super) fn touch(&mut self, offset: u32, bytes: u32) -> Option<&[u8]> {
        let range = self.range(offset, bytes)?;
        for window in self.windows(offset, bytes) {
            self.touched[window / 64] |= 1 << (window % 64);
        }
        let Some(map) = &self.map else {
            return Some(&[]);
        };
        // SAFETY: the range is below `readable`, inside the mapping and the file; nobody writes
        // it while the slice lives (invariants above).
        Some(unsafe { std::slice::from_raw_parts(map.as_ptr().add(range.start), range.len()) })
    }

    /// Takes every page out of the page table; the page cache keeps them.
    pub(super) fn zap(&mut self) {
        let Some(map) = &self.map else { return };
        // SAFETY: a shared read-only mapping of a file: what is dropped is read again from the
        // page cache, and no slice is borrowed, by `&mut self`.
        // An error leaves the pages mapped, which costs memory and nothing else.
        let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        self.touched.fill(0);
    }

    fn range(&self, offset: u32, bytes: u32) -> Option<std::ops::Range<usize>> {
        let end = offset.checked_add(bytes)?;
        (end <= self.readable).then_some(offset as usize..end as usize)
    }

    fn windows(&self, offset: u32, bytes: u32) -> std::ops::Range<usize> {
        let Some(map) = self.map.as_ref().filter(|_| bytes > 0) else {
            return 0..0;
        };
        let base = map.as_ptr() as usize;
        let first = (base + offset as usize) / FAULT_AROUND_BYTES;
        let last = (base + offset as usize + bytes as usize - 1) / FAULT_AROUND_BYTES;
        let origin = base / FAULT_AROUND_BYTES;
        first - origin..last - origin + 1
    }
}

fn page_bytes() -> usize {
    rustix::param::page_size()
}
