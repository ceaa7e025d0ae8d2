//! Segment files in memory, with faults: the [`Disk`] and the [`SegmentFiles`] of tests.
//!
//! Floor 1, tests only. One store behind both traits, so that what a log wrote can be recovered.
//!
//! Invariants
//! - reads see every write at once, like a page cache.
//! - a power cut leaves of each 512-byte sector either what the last completed sync covered or
//!   any single write since: sectors are whole, their order is lost.
//! - names are durable as soon as the call that made them returned.

#[path = "../../tests/power_cuts/allowed.rs"]
mod allowed;
mod nth;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::id::SegmentNo;
use crate::metrics::thread_allocations;

use super::files::{FilesError, SegmentFile, SegmentFiles, segment_file_name, tail_file_name};
use super::{Disk, DiskError, IoReply, IoRequest, Location};

pub(crate) use nth::Nth;
use nth::{EIO, ENOSPC};

pub(crate) const SECTOR_BYTES: usize = 512;

/// Random numbers from one seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[derive(Debug, Clone, Default)]
struct MemoryFile {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of each sector since the last sync, oldest first.
    pending: BTreeMap<usize, Vec<[u8; SECTOR_BYTES]>>,
}

impl MemoryFile {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.current.len() {
            self.current.resize(end, 0);
        }
        self.current[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let start = sector * SECTOR_BYTES;
            let stop = (start + SECTOR_BYTES).min(self.current.len());
            let mut version = [0; SECTOR_BYTES];
            version[..stop - start].copy_from_slice(&self.current[start..stop]);
            self.pending.entry(sector).or_default().push(version);
        }
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.current);
        self.pending.clear();
    }

    fn power_cut(&mut self, random: &mut Random) {
        let lengths = [self.durable.len(), self.current.len()];
        let mut bytes = std::mem::take(&mut self.durable);
        bytes.resize(lengths[random.below(2)], 0);
        for (sector, versions) in std::mem::take(&mut self.pending) {
            let pick = random.below(versions.len() + 1);
            let start = sector * SECTOR_BYTES;
            if let Some(version) = versions.get(pick).filter(|_| start < bytes.len()) {
                let stop = (start + SECTOR_BYTES).min(bytes.len());
                bytes[start..stop].copy_from_slice(&version[..stop - start]);
            }
        }
        self.durable.clone_from(&bytes);
        self.current = bytes;
    }
}

/// A write that fails.
#[derive(Debug, Clone)]
pub(crate) struct FailedWrite {
    /// Writes that succeed before.
    pub(crate) skip: u32,
    /// Bytes of it that reach the file all the same.
    pub(crate) written: usize,
    pub(crate) error: DiskError,
}

/// What a sync that fails leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum FailedSync {
    /// Everything where it was: a later one may take it to the device, a power cut may not.
    #[default]
    Kept,
    /// The page cache forgot what was written since the last good one.
    Reverted,
    /// All of it on the device.
    Late,
}

/// What a disk does that no disk may: planted, to see whether it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// A sync that is none.
    Sync,
    /// A write that comes into the page cache one write later.
    LateWrite,
    /// Half a write that says it is whole.
    HalfWrite,
    /// A file that is there again after a power cut.
    Remove,
}

/// What goes wrong. Each stays until it is taken out, but for the two that count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// One [`Disk::write_at`].
    pub(crate) write: Option<FailedWrite>,
    pub(crate) create: Option<DiskError>,
    pub(crate) sync: Option<DiskError>,
    /// What becomes of the bytes then.
    pub(crate) failed_sync: FailedSync,
    /// The footer of a seal; its records are synced.
    pub(crate) seal: Option<DiskError>,
    pub(crate) read: Option<DiskError>,
    pub(crate) remove: Option<DiskError>,
    /// The call of [`SegmentFiles`] after this many more, and every later one: a crash.
    pub(crate) files_call: Option<u32>,
    /// Any call at all.
    pub(crate) nth: Option<Arc<Mutex<Nth>>>,
}

/// The store. Clone it to try several futures.
#[derive(Debug, Clone)]
pub(crate) struct MemoryDisk {
    files: BTreeMap<u32, MemoryFile>,
    /// What was set aside: number and bytes.
    pub(crate) orphans: Vec<(SegmentNo, Vec<u8>)>,
    /// What was cut off and kept, by name.
    pub(crate) tails: BTreeMap<String, Vec<u8>>,
    queue: VecDeque<IoRequest>,
    replies: VecDeque<IoReply>,
    /// Requests are done when they are submitted; else by [`MemoryDisk::run_io`].
    pub(crate) at_once: bool,
    /// Requests that the queue takes.
    pub(crate) queue_slots: usize,
    pub(crate) faults: Faults,
    /// Ranges that are not resident until they were read.
    pub(crate) cold: Vec<(SegmentNo, Range<u32>)>,
    /// Calls of [`Disk::write_at`] so far.
    pub(crate) writes: u64,
    /// Calls of [`SegmentFiles`] so far.
    pub(crate) files_calls: u32,
    /// Allocations of its own in [`Disk::write_at`] and [`Disk::submit`].
    pub(crate) allocations: u64,
    /// Calls that failed because they were to, by name.
    pub(crate) fired: BTreeMap<&'static str, u64>,
    /// One call in eight, or all where there are few, is not what it says.
    pub(crate) lie: Option<Lie>,
    held_back: Option<(u32, usize, Vec<u8>)>,
    undead: Vec<(u32, MemoryFile)>,
}

impl MemoryDisk {
    pub(crate) fn new() -> Self {
        Self {
            files: BTreeMap::new(),
            orphans: Vec::new(),
            tails: BTreeMap::new(),
            queue: VecDeque::new(),
            replies: VecDeque::new(),
            at_once: false,
            queue_slots: usize::MAX,
            faults: Faults::default(),
            cold: Vec::new(),
            writes: 0,
            files_calls: 0,
            allocations: 0,
            fired: BTreeMap::new(),
            lie: None,
            held_back: None,
            undead: Vec::new(),
        }
    }

    /// Does everything that was submitted.
    pub(crate) fn run_io(&mut self) {
        while let Some(request) = self.queue.pop_front() {
            let reply = self.perform(request, usize::MAX);
            self.replies.push_back(reply);
        }
    }

    /// Makes the files that wait to be made, and nothing else: a device that is slow to sync.
    pub(crate) fn create_only(&mut self) {
        let waiting = std::mem::take(&mut self.queue);
        for request in waiting {
            match request {
                create @ IoRequest::Create { .. } => {
                    let reply = self.perform(create, usize::MAX);
                    self.replies.push_back(reply);
                }
                other => self.queue.push_back(other),
            }
        }
    }

    /// Does one request that waits, any that no other one for its segment is before; whether there
    /// was one.
    pub(crate) fn run_one(&mut self, random: &mut Random) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        let pick = random.below(self.queue.len());
        let segment = segment_of(&self.queue[pick]);
        let first = self
            .queue
            .iter()
            .position(|request| segment_of(request) == segment);
        let request = first.and_then(|at| self.queue.remove(at));
        let reply = self.perform(request.expect("it was just found"), usize::MAX);
        self.replies.push_back(reply);
        true
    }

    fn nth(&self) -> Option<MutexGuard<'_, Nth>> {
        let nth = self.faults.nth.as_ref()?;
        Some(nth.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Counts a call of [`Disk`]; how it fails, and whether that is told.
    fn failing(&self, call: &'static str, segment: SegmentNo) -> Option<Result<(), DiskError>> {
        let mut nth = self.nth()?;
        let error = match nth.errno(call)? {
            ENOSPC => DiskError::NoSpace,
            errno => DiskError::Os {
                call,
                segment,
                errno,
            },
        };
        Some(if nth.ignored { Ok(()) } else { Err(error) })
    }

    fn fire(&mut self, what: &'static str) {
        *self.fired.entry(what).or_default() += 1;
    }

    /// Requests that wait.
    pub(crate) fn queued(&self) -> impl Iterator<Item = &IoRequest> {
        self.queue.iter()
    }

    /// The process dies: requests and replies are gone, files stay as they are.
    pub(crate) fn kill(&mut self) {
        self.queue.clear();
        self.replies.clear();
        self.held_back = None;
        self.faults = Faults::default();
        self.cold.clear();
    }

    /// The power goes: also, some requests got done halfway, and unsynced sectors are lost.
    pub(crate) fn power_cut(&mut self, random: &mut Random) {
        for request in std::mem::take(&mut self.queue) {
            let steps = random.below(5);
            if steps > 0 {
                self.perform(request, steps);
            }
        }
        self.kill();
        self.files.extend(self.undead.drain(..));
        for file in self.files.values_mut() {
            file.power_cut(random);
        }
    }

    /// Everything reaches the device.
    pub(crate) fn sync_all(&mut self) {
        self.files.values_mut().for_each(MemoryFile::sync);
    }

    /// The bytes of a file, to look at and to damage.
    pub(crate) fn bytes_mut(&mut self, segment: SegmentNo) -> &mut Vec<u8> {
        &mut self.files.entry(segment.0).or_default().current
    }

    /// Numbers of the files.
    pub(crate) fn segments(&self) -> Vec<u32> {
        self.files.keys().copied().collect()
    }

    /// Does up to `steps` of a request (only a seal has more than one).
    fn perform(&mut self, request: IoRequest, steps: usize) -> IoReply {
        match request {
            IoRequest::Create { segment, bytes } => {
                let fault = self.faults.create.clone();
                let failed = self.failing("create", segment);
                let result = failed.clone().unwrap_or_else(|| fault.map_or(Ok(()), Err));
                if result.is_err() {
                    self.fire("create");
                } else if failed.is_none() {
                    assert!(
                        !self.files.contains_key(&segment.0),
                        "segment {segment} exists"
                    );
                    // Its name is durable, its size is not before a sync: xfs was seen to keep nothing.
                    let file = MemoryFile {
                        current: vec![0; bytes as usize],
                        durable: Vec::new(),
                        pending: BTreeMap::new(),
                    };
                    self.files.insert(segment.0, file);
                }
                IoReply::Created { segment, result }
            }
            IoRequest::Sync { segment, upto } => IoReply::Synced {
                segment,
                upto,
                result: self.sync_file(segment),
            },
            IoRequest::Read {
                ticket,
                segment,
                offset,
                mut buffer,
            } => {
                let end = offset as usize + buffer.len();
                if self.faults.read.is_some() {
                    self.fire("read");
                }
                let failed = self.failing("read", segment);
                let result = match (&self.faults.read, self.files.get(&segment.0)) {
                    _ if failed.is_some() => failed.expect("just seen"),
                    (Some(error), _) => Err(error.clone()),
                    (None, Some(file)) if file.current.len() >= end => {
                        buffer.copy_from_slice(&file.current[offset as usize..end]);
                        let read = offset..end as u32;
                        self.cold
                            .retain(|cold| cold.0 != segment || !overlap(&cold.1, &read));
                        Ok(())
                    }
                    _ => Err(DiskError::Short {
                        segment,
                        end: end as u64,
                    }),
                };
                IoReply::Read {
                    ticket,
                    buffer,
                    result,
                }
            }
            IoRequest::Seal {
                segment,
                data_end,
                footer,
                upto,
            } => {
                let result = self.seal(segment, data_end, &footer, steps);
                IoReply::Sealed {
                    segment,
                    upto,
                    result,
                }
            }
            IoRequest::Remove { segment } => {
                let fault = self.faults.remove.clone();
                let failed = self.failing("remove", segment);
                let result = failed.clone().unwrap_or_else(|| fault.map_or(Ok(()), Err));
                if failed.is_some() {
                } else if result.is_ok() {
                    let removed = self.files.remove(&segment.0);
                    let removed = removed.expect("a segment that is removed exists");
                    if self.lie == Some(Lie::Remove) {
                        self.undead.push((segment.0, removed));
                    }
                } else {
                    self.fire("remove");
                }
                IoReply::Removed { segment, result }
            }
        }
    }

    fn seal(
        &mut self,
        segment: SegmentNo,
        data_end: u32,
        footer: &[u8],
        steps: usize,
    ) -> Result<(), DiskError> {
        self.sync_file(segment)?;
        if let Some(error) = self.faults.seal.clone() {
            self.fire("seal");
            return Err(error);
        }
        let end = data_end as usize + footer.len();
        let footer_failed = self.failing("footer", segment);
        let sync_failed = self.failing("sync", segment);
        let file = self
            .files
            .get_mut(&segment.0)
            .expect("a segment that is sealed exists");
        if steps > 1 {
            let written = if footer_failed.is_some() {
                footer.len() / 2
            } else {
                footer.len()
            };
            file.write(data_end as usize, &footer[..written]);
        }
        footer_failed.unwrap_or(Ok(()))?;
        match sync_failed {
            Some(failed) => failed?,
            None if steps > 2 => file.sync(),
            None => {}
        }
        if steps > 3 {
            file.current.truncate(end);
        }
        Ok(())
    }

    fn sync_file(&mut self, segment: SegmentNo) -> Result<(), DiskError> {
        self.let_go();
        if let Some(failed) = self.failing("sync", segment) {
            return failed;
        }
        let error = self.faults.sync.clone();
        if error.is_some() {
            self.fire(match self.faults.failed_sync {
                FailedSync::Kept => "sync, data kept",
                FailedSync::Reverted => "sync, data reverted",
                FailedSync::Late => "sync, data there late",
            });
        }
        let file = self
            .files
            .get_mut(&segment.0)
            .expect("a segment that is synced exists");
        match (&error, self.faults.failed_sync) {
            (Some(_), FailedSync::Kept) => {}
            (Some(_), FailedSync::Reverted) => {
                file.current.clone_from(&file.durable);
                file.pending.clear();
            }
            _ if self.lie == Some(Lie::Sync) => {}
            _ => file.sync(),
        }
        error.map_or(Ok(()), Err)
    }

    /// What was held back comes into the page cache.
    fn let_go(&mut self) {
        if let Some((segment, offset, bytes)) = self.held_back.take()
            && let Some(file) = self.files.get_mut(&segment)
        {
            file.write(offset, &bytes);
        }
    }

    /// Counts a call of [`SegmentFiles`]; says whether it fails.
    fn count(&mut self, call: &'static str, segment: SegmentNo) -> Result<(), FilesError> {
        self.files_calls += 1;
        let path = || PathBuf::from(segment_file_name(segment));
        if let Some(errno) = self.nth().and_then(|mut nth| nth.errno(call)) {
            let path = path();
            return Err(match errno {
                ENOSPC => FilesError::NoSpace { call, path },
                errno => FilesError::Os { call, path, errno },
            });
        }
        match &mut self.faults.files_call {
            Some(0) => Err(FilesError::Os {
                call,
                path: path(),
                errno: EIO,
            }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn file(&mut self, segment: SegmentNo) -> Result<&mut MemoryFile, FilesError> {
        let path = PathBuf::from(segment_file_name(segment));
        self.files
            .get_mut(&segment.0)
            .ok_or(FilesError::NotFound { path })
    }
}

fn segment_of(request: &IoRequest) -> SegmentNo {
    match request {
        IoRequest::Create { segment, .. }
        | IoRequest::Sync { segment, .. }
        | IoRequest::Read { segment, .. }
        | IoRequest::Seal { segment, .. }
        | IoRequest::Remove { segment } => *segment,
    }
}

fn overlap(one: &Range<u32>, other: &Range<u32>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Disk for MemoryDisk {
    fn write_at(&mut self, segment: SegmentNo, offset: u32, bytes: &[u8]) -> Result<(), DiskError> {
        self.writes += 1;
        self.let_go();
        let failed = self.failing("write", segment);
        let file = self
            .files
            .get_mut(&segment.0)
            .expect("a segment that is written exists");
        if let Some(failed) = failed {
            file.write(offset as usize, &bytes[..bytes.len() / 2]);
            return failed;
        }
        match &mut self.faults.write {
            Some(fault) if fault.skip == 0 => {
                let written = fault.written.min(bytes.len());
                let error = fault.error.clone();
                let what = match (written, &error) {
                    (0, DiskError::NoSpace) => "write, no space",
                    (0, _) => "write",
                    (_, DiskError::NoSpace) => "short write, no space",
                    _ => "short write",
                };
                self.faults.write = None;
                file.write(offset as usize, &bytes[..written]);
                self.fire(what);
                return Err(error);
            }
            Some(fault) => fault.skip -= 1,
            None => {}
        }
        let before = thread_allocations();
        match self.lie {
            Some(Lie::LateWrite) => {
                self.held_back = Some((segment.0, offset as usize, bytes.to_vec()))
            }
            Some(Lie::HalfWrite) if self.writes.is_multiple_of(8) => {
                file.write(offset as usize, &bytes[..bytes.len() / 2]);
            }
            _ => file.write(offset as usize, bytes),
        }
        self.allocations += thread_allocations() - before;
        Ok(())
    }

    fn resident(&mut self, at: Location) -> Option<&[u8]> {
        self.let_go();
        let range = at.offset..at.offset + at.bytes;
        let is_cold =
            |cold: &(SegmentNo, Range<u32>)| cold.0 == at.segment && overlap(&cold.1, &range);
        if self.cold.iter().any(is_cold) {
            return None;
        }
        let file = self.files.get(&at.segment.0)?;
        file.current.get(range.start as usize..range.end as usize)
    }

    fn submit(&mut self, request: IoRequest) -> Result<(), IoRequest> {
        let full = self.nth().is_some_and(|mut nth| nth.refuses());
        if full || self.queue.len() >= self.queue_slots {
            return Err(request);
        }
        let before = thread_allocations();
        self.queue.push_back(request);
        if self.at_once {
            self.run_io();
        }
        self.allocations += thread_allocations() - before;
        Ok(())
    }

    fn poll(&mut self) -> Option<IoReply> {
        self.replies.pop_front()
    }
}

impl SegmentFiles for MemoryDisk {
    fn list(&mut self) -> Result<Vec<SegmentFile>, FilesError> {
        self.count("recovery: list", SegmentNo(0))?;
        let file = |(segment, file): (&u32, &MemoryFile)| SegmentFile {
            segment: SegmentNo(*segment),
            bytes: file.current.len() as u64,
        };
        Ok(self.files.iter().map(file).collect())
    }

    fn read_at(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, FilesError> {
        self.count("recovery: read", segment)?;
        let file = self.file(segment)?;
        let rest = file.current.get(offset as usize..).unwrap_or_default();
        let bytes = rest.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&rest[..bytes]);
        Ok(bytes)
    }

    fn write_at(
        &mut self,
        segment: SegmentNo,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), FilesError> {
        let counted = self.count("recovery: write", segment);
        // A write that fails leaves half of itself.
        let bytes = if counted.is_ok() {
            bytes
        } else {
            &bytes[..bytes.len() / 2]
        };
        self.file(segment)?.write(offset as usize, bytes);
        counted
    }

    fn sync(&mut self, segment: SegmentNo) -> Result<(), FilesError> {
        self.count("recovery: sync", segment)?;
        self.file(segment)?.sync();
        Ok(())
    }

    fn truncate(&mut self, segment: SegmentNo, bytes: u64) -> Result<(), FilesError> {
        self.count("recovery: truncate", segment)?;
        self.file(segment)?.current.truncate(bytes as usize);
        Ok(())
    }

    fn data_from(&mut self, segment: SegmentNo, offset: u64) -> Result<Option<u64>, FilesError> {
        self.count("recovery: seek", segment)?;
        let rest = self
            .file(segment)?
            .current
            .get(offset as usize..)
            .unwrap_or_default();
        let at = rest.iter().position(|byte| *byte != 0);
        Ok(at.map(|at| offset + at as u64))
    }

    fn keep_tail(
        &mut self,
        segment: SegmentNo,
        from: u64,
        bytes: u64,
        mark: u32,
    ) -> Result<(), FilesError> {
        self.count("recovery: copy", segment)?;
        let file = self.file(segment)?;
        let kept = file.current[from as usize..(from + bytes) as usize].to_vec();
        let name = tail_file_name(segment, from, mark);
        self.tails.entry(name).or_insert(kept);
        Ok(())
    }

    fn set_aside(&mut self, segment: SegmentNo) -> Result<(), FilesError> {
        self.count("recovery: rename", segment)?;
        let bytes = std::mem::take(&mut self.file(segment)?.current);
        self.files.remove(&segment.0);
        self.orphans.push((segment, bytes));
        Ok(())
    }

    fn remove_empty(&mut self, segment: SegmentNo) -> Result<(), FilesError> {
        self.count("recovery: remove", segment)?;
        self.file(segment)?;
        self.files.remove(&segment.0);
        Ok(())
    }

    fn sync_directory(&mut self) -> Result<(), FilesError> {
        self.count("recovery: directory sync", SegmentNo(0))
    }

    fn path(&self, segment: SegmentNo) -> PathBuf {
        segment_file_name(segment).into()
    }
}
