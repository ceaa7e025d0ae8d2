//! Memory that two processes map: the regions themselves.
//!
//! Floor 0, part of `shared`, whose header has the rules.
//!
//! Cost: a copy is one 8-byte load and store per word (1 KiB: 128 of each), no system call.

#![expect(
    unsafe_code,
    reason = "memory shared with other processes is reached by raw pointers"
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::Timespec;

use super::{Access, SharedError};

/// A mapped region of memory shared with another process.
#[derive(Debug)]
pub struct SharedMemory {
    map: Map,
}

#[cfg(not(helios_tsan))]
type Map = MmapRaw;
#[cfg(helios_tsan)]
type Map = std::sync::Arc<MmapRaw>;

/// One mapping for all halves in a process: TSan knows a word by its address, so that it would see
/// no order between two that are the same in memory.
#[cfg(helios_tsan)]
mod one_mapping {
    use super::Map;
    use std::os::fd::AsFd;
    use std::sync::{Mutex, PoisonError};

    /// By the number of the file.
    static MAPS: Mutex<Vec<(u64, Map)>> = Mutex::new(Vec::new());

    pub(super) fn of(
        fd: impl AsFd,
        make: impl FnOnce() -> std::io::Result<Map>,
    ) -> std::io::Result<Map> {
        let file = rustix::fs::fstat(fd)?.st_ino;
        let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, map)) = maps.iter().find(|(known, _)| *known == file) {
            return Ok(Map::clone(map));
        }
        let map = make()?;
        maps.push((file, Map::clone(&map)));
        Ok(map)
    }
}

impl SharedMemory {
    /// Makes a zeroed region of `bytes` (rounded up to whole pages by the kernel), maps it for
    /// writing and seals it for `peer`. The descriptor is for the peer; the mapping outlives it.
    ///
    /// Cost: five system calls; pages are allocated when first touched.
    pub fn create(name: &str, bytes: usize, peer: Access) -> Result<(Self, OwnedFd), SharedError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let fd = match rustix::fs::memfd_create(name, flags) {
            // Kernels before 6.3 don't know NOEXEC_SEAL.
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags - MemfdFlags::NOEXEC_SEAL),
            made => made,
        }
        .map_err(io::Error::from)?;
        rustix::fs::ftruncate(&fd, bytes as u64).map_err(io::Error::from)?;
        #[cfg(not(helios_tsan))]
        let map = MmapOptions::new().len(bytes).map_raw(&fd)?;
        #[cfg(helios_tsan)]
        let map = one_mapping::of(&fd, || {
            Ok(MmapOptions::new().len(bytes).map_raw(&fd)?.into())
        })?;
        let mut seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        if peer == Access::ReadOnly {
            seals |= SealFlags::FUTURE_WRITE;
        }
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(io::Error::from)?;
        Ok((Self { map }, fd))
    }

    /// Maps a region that a peer made. Its size and seals are checked first.
    pub fn map(fd: impl AsFd, bytes: usize, access: Access) -> Result<Self, SharedError> {
        let fd = fd.as_fd();
        let found = rustix::fs::fstat(fd).map_err(io::Error::from)?.st_size;
        if found != bytes as i64 {
            let found = u64::try_from(found).unwrap_or(0);
            return Err(SharedError::Size {
                expected: bytes,
                found,
            });
        }
        // What is no memfd has no seals to ask for.
        let seals = rustix::fs::fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(SharedError::Unsealed {
                missing: "shrink and grow",
            });
        }
        let options = MmapOptions::new().len(bytes).to_owned();
        #[cfg(not(helios_tsan))]
        let map = match access {
            Access::ReadOnly => options.map_raw_read_only(&fd)?,
            Access::ReadWrite => options.map_raw(&fd)?,
        };
        #[cfg(helios_tsan)]
        let map = one_mapping::of(fd, || match access {
            Access::ReadOnly => Ok(options.map_raw_read_only(&fd)?.into()),
            Access::ReadWrite => Ok(options.map_raw(&fd)?.into()),
        })?;
        Ok(Self { map })
    }

    /// Bytes mapped.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// The 8-byte word at `offset`, which must be a multiple of 8 inside the region.
    ///
    /// In a region mapped read-only it may only be loaded; a store faults.
    #[must_use]
    #[inline]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset <= self.bytes() - 8);
        // SAFETY: in bounds and aligned by the assertion (a mapping starts on a page); atomics
        // may be written by anyone at any time; the mapping lives as long as `self`.
        unsafe { &*self.map.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// The 4-byte word at `offset`, which must be a multiple of 4 inside the region.
    #[must_use]
    #[inline]
    pub fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset <= self.bytes() - 4);
        // SAFETY: as in `word`.
        unsafe { &*self.map.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    /// Copies bytes out of the region, by atomic words. What a peer writes meanwhile may come
    /// out torn; the caller validates the private copy.
    ///
    /// # Panics
    /// Where the range is not inside the region: the caller checks what a peer said first.
    #[inline]
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) {
        self.check(offset, out.len());
        let (head, words) = split(offset, out.len());
        let (head_out, rest) = out.split_at_mut(head);
        let (words_out, tail_out) = rest.split_at_mut(words * 8);
        let mut at = offset;
        for byte in head_out {
            *byte = self.byte(at).load(Ordering::Relaxed);
            at += 1;
        }
        for chunk in words_out.chunks_exact_mut(8) {
            // SAFETY: in bounds by `check`, aligned by `split`.
            let word = unsafe { &*self.map.as_ptr().add(at).cast::<AtomicU64>() };
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            at += 8;
        }
        for byte in tail_out {
            *byte = self.byte(at).load(Ordering::Relaxed);
            at += 1;
        }
    }

    /// Copies bytes into the region, by atomic words. Publish them with a release store.
    ///
    /// # Panics
    /// Where the range is not inside the region.
    #[inline]
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        let (head, words) = split(offset, bytes.len());
        let (head_in, rest) = bytes.split_at(head);
        let (words_in, tail_in) = rest.split_at(words * 8);
        let mut at = offset;
        for &byte in head_in {
            self.byte(at).store(byte, Ordering::Relaxed);
            at += 1;
        }
        for chunk in words_in.chunks_exact(8) {
            let value = u64::from_ne_bytes(chunk.try_into().expect("a chunk of 8"));
            // SAFETY: in bounds by `check`, aligned by `split`.
            let word = unsafe { &*self.map.as_ptr().add(at).cast::<AtomicU64>() };
            word.store(value, Ordering::Relaxed);
            at += 8;
        }
        for &byte in tail_in {
            self.byte(at).store(byte, Ordering::Relaxed);
            at += 1;
        }
    }

    /// Gives the whole pages inside a range back to the system: they read as zeros afterwards, for
    /// everybody. Best effort; one system call, none where there is no whole page.
    ///
    /// # Panics
    /// Where the range is not inside the region.
    pub fn discard(&self, offset: usize, bytes: usize) {
        const PAGE_BYTES: usize = 4096;
        self.check(offset, bytes);
        let from = offset.next_multiple_of(PAGE_BYTES);
        let to = (offset + bytes) / PAGE_BYTES * PAGE_BYTES;
        if from < to {
            // SAFETY: the pages are inside the mapping; what happens to their bytes is the same as
            // if the peer had written zeros, which every reader of shared bytes allows for.
            let _ = unsafe {
                rustix::mm::madvise(
                    self.map.as_mut_ptr().add(from).cast(),
                    to - from,
                    rustix::mm::Advice::LinuxRemove,
                )
            };
        }
    }

    /// Sleeps while the 4-byte word at `offset` is `expected`, until a [`wake`](Self::wake) of any
    /// process, for `timeout` at most. It may end early: the caller looks again. One system call;
    /// a mapping for reading will do.
    ///
    /// # Errors
    /// A system that lets nobody sleep.
    pub fn wait(&self, offset: usize, expected: u32, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let word = self.half(offset);
        match futex::wait(word, futex::Flags::empty(), expected, Some(&timeout)) {
            // Woken, or it changed before, or a signal, or time.
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Wakes whoever sleeps in [`wait`](Self::wait) on the word at `offset`, which was changed
    /// before. One system call.
    pub fn wake(&self, offset: usize) {
        // It can only fail for a bad address.
        let woken = futex::wake(self.half(offset), futex::Flags::empty(), u32::MAX >> 1);
        debug_assert!(woken.is_ok(), "{woken:?}");
    }

    /// Tells the processor that the line at `offset` will be read soon. Out of range: nothing.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        if offset < self.bytes() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint; the address is inside the mapping.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(self.map.as_ptr().add(offset).cast::<i8>());
            }
        }
    }

    #[inline]
    fn check(&self, offset: usize, bytes: usize) {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes()),
            "shared range out of bounds"
        );
    }

    #[inline]
    fn byte(&self, offset: usize) -> &AtomicU8 {
        debug_assert!(offset < self.bytes());
        // SAFETY: callers checked the range with `check`.
        unsafe { &*self.map.as_ptr().add(offset).cast::<AtomicU8>() }
    }
}

/// Bytes before the first aligned word of a range, and whole words after them.
#[inline]
fn split(offset: usize, bytes: usize) -> (usize, usize) {
    let head = (offset.wrapping_neg() & 7).min(bytes);
    (head, (bytes - head) / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_copies_in_and_out() {
        let (memory, fd) = SharedMemory::create("test", 4096, Access::ReadOnly).unwrap();
        let peer = SharedMemory::map(&fd, 4096, Access::ReadOnly).unwrap();
        let bytes: Vec<u8> = (0..100).collect();
        for offset in 0..24 {
            for len in 0..40 {
                memory.copy_in(offset, &bytes[..len]);
                let mut out = vec![0; len];
                peer.copy_out(offset, &mut out);
                assert_eq!(out, bytes[..len], "offset {offset}, {len} bytes");
            }
        }
    }

    #[test]
    fn a_read_only_region_cannot_be_mapped_for_writing_or_resized() {
        let (_memory, fd) = SharedMemory::create("test", 4096, Access::ReadOnly).unwrap();
        assert!(SharedMemory::map(&fd, 4096, Access::ReadWrite).is_err());
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 8192).is_err());
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&fd, punch, 0, 4096).is_err());
    }

    #[test]
    fn discarded_pages_are_zero_and_the_rest_is_kept() {
        let (memory, _fd) = SharedMemory::create("test", 4 * 4096, Access::ReadWrite).unwrap();
        memory.copy_in(0, &[7; 4 * 4096]);
        memory.discard(100, 3 * 4096);
        let mut bytes = vec![0; 4 * 4096];
        memory.copy_out(0, &mut bytes);
        assert!(
            bytes[..4096]
                .iter()
                .chain(&bytes[3 * 4096..])
                .all(|&byte| byte == 7)
        );
        assert!(bytes[4096..3 * 4096].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn wrong_descriptors_are_refused() {
        let (_memory, fd) = SharedMemory::create("test", 4096, Access::ReadWrite).unwrap();
        let size = SharedMemory::map(&fd, 8192, Access::ReadWrite);
        assert!(matches!(
            size,
            Err(SharedError::Size {
                expected: 8192,
                found: 4096
            })
        ));
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let plain = SharedMemory::map(&file, 4096, Access::ReadWrite);
        assert!(matches!(plain, Err(SharedError::Unsealed { .. })));
    }
}
