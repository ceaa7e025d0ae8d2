//! A shard's files, as the shard sees them.
//!
//! Floor 3, part of `io`; lives on the shard's thread. Nothing here waits for the device once
//! requests are served: writes go to the page cache, reads take what the page cache has and no
//! more, all else goes down a line. No record format is known here.
//!
//! Segments are read by `preadv2` with `RWF_NOWAIT`, not by mapping them. A mapping has to be
//! asked about first (`mincore`), may lose the page between the answer and the access (the thread
//! then waits for the device), faults, and counts as memory of the process, so that its pages have
//! to be given back again: 7.3 us for 4 KiB, where this call takes 1.4 (64 KiB: 13 and 6.6). The
//! bench `l3_hit` measures both.
//!
//! Invariants
//! - `readable` of a segment never exceeds its file: it falls to the end of the data before a seal
//!   is submitted, and rises to the end of the footer when the seal was answered.
//! - a file is removed when the reads of it that were submitted before are answered: its read line hears of
//!   it first, closes it, and only its answer sends the removal on to the serial line.
//! - at most [`OPEN_FILES_MAX`] sealed segments are open, over all shards; those opened first are
//!   closed first, and opened again only where the kernel can do it without the device.
//!
//! Cost: a write is one `pwrite`; [`Disk::resident`] one `preadv2`, and two more calls where the
//! segment was closed; a submit and a poll as said in `line`.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::IoError;
use super::file;
use super::files_each;
use super::line::{Made, READ_LINES, ShardEnd};
use crate::crash;
use crate::id::SegmentNo;
use crate::segment::{Disk, DiskError, IoReply, IoRequest, Location};

/// Sealed segments kept open for reading, all shards together: with the default size of a segment
/// 16 GiB. A file opened again costs 2 us.
const OPEN_FILES_MAX: usize = 256;
/// The least share of a shard, where there are many shards and descriptors.
const OPEN_FILES_MIN: usize = 16;

/// The files of one shard: an implementation of [`Disk`] on a directory.
pub struct ShardDisk {
    directory: PathBuf,
    segments: HashMap<SegmentNo, Segment>,
    serial: ShardEnd,
    reads: [ShardEnd; READ_LINES],
    /// Whose answers to look at first.
    next_line: usize,
    /// Sealed segments that are open, in the order in which they were opened.
    open: VecDeque<SegmentNo>,
    open_max: usize,
    /// What the last read found.
    buffer: Vec<u8>,
}

struct Segment {
    /// Open while it is written, and while it is among the last opened.
    file: Option<File>,
    /// Bytes that may be read.
    readable: u32,
    /// Where the footer will end, once a seal was submitted.
    sealed_end: Option<u32>,
}

impl ShardDisk {
    pub(super) fn new(
        directory: PathBuf,
        shards: usize,
        serial: ShardEnd,
        reads: [ShardEnd; READ_LINES],
    ) -> Self {
        Self {
            directory,
            segments: HashMap::new(),
            serial,
            reads,
            next_line: 0,
            open: VecDeque::new(),
            open_max: files_each((OPEN_FILES_MAX / shards.max(1)).max(OPEN_FILES_MIN), shards),
            buffer: Vec::new(),
        }
    }

    /// Where the segments lie.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The segments in the directory and their bytes, ascending. Waits for the device: for the
    /// start only.
    pub fn existing(&self) -> Result<Vec<(SegmentNo, u64)>, IoError> {
        file::list(&self.directory).map_err(|source| IoError::Directory {
            path: self.directory.clone(),
            source,
        })
    }

    /// Opens the first `bytes` of a segment that is there; they can be read and written then. Waits
    /// for the device: for the start only.
    ///
    /// Errors: [`DiskError::Short`] where the file is smaller.
    pub fn open_existing(&mut self, segment: SegmentNo, bytes: u32) -> Result<(), DiskError> {
        let file = file::open(&self.directory, segment)?;
        self.take_existing(segment, bytes, file)
    }

    /// The same, to be read only.
    ///
    /// Errors: as [`ShardDisk::open_existing`].
    pub fn open_to_read(&mut self, segment: SegmentNo, bytes: u32) -> Result<(), DiskError> {
        let file = file::open_to_read(&self.directory, segment)?;
        self.take_existing(segment, bytes, file)
    }

    fn take_existing(
        &mut self,
        segment: SegmentNo,
        bytes: u32,
        file: File,
    ) -> Result<(), DiskError> {
        let known = file.metadata();
        let found = known.map_err(|error| file::failed("fstat", segment, &error))?;
        if found.len() < u64::from(bytes) {
            return Err(DiskError::Short {
                segment,
                end: u64::from(bytes),
            });
        }
        self.adopt(segment, bytes, file);
        self.keep_open(segment);
        Ok(())
    }

    /// Fills `buffer` from a segment that is there, whether opened or not. Waits for the device.
    #[cfg(test)]
    pub(super) fn read_now(
        &self,
        segment: SegmentNo,
        offset: u32,
        buffer: &mut [u8],
    ) -> Result<(), DiskError> {
        let file = file::open(&self.directory, segment)?;
        file::read(&file, segment, offset, buffer)
    }

    /// Cuts a segment that is there to `bytes` and syncs it, or removes it where `bytes` is 0.
    /// Waits for the device.
    ///
    /// Errors: as the system calls fail; a segment that is open is refused with `EBUSY`.
    #[cfg(test)]
    pub(super) fn cut_now(&mut self, segment: SegmentNo, bytes: u32) -> Result<(), DiskError> {
        if self.segments.contains_key(&segment) {
            return Err(DiskError::Os {
                call: "ftruncate",
                segment,
                errno: libc::EBUSY,
            });
        }
        file::cut_now(&self.directory, segment, bytes)
    }

    fn adopt(&mut self, segment: SegmentNo, readable: u32, file: File) {
        let opened = Segment {
            file: Some(file),
            readable,
            sealed_end: None,
        };
        self.segments.insert(segment, opened);
    }

    /// Counts a segment that is not written any more among the open ones, and closes another.
    fn keep_open(&mut self, segment: SegmentNo) {
        self.open.push_back(segment);
        if self.open.len() > self.open_max
            && let Some(oldest) = self.open.pop_front()
            && let Some(segment) = self.segments.get_mut(&oldest)
        {
            segment.file = None;
        }
    }

    fn submit_seal(
        &mut self,
        segment: SegmentNo,
        data_end: u32,
        request: IoRequest,
        footer_bytes: usize,
    ) -> Result<(), IoRequest> {
        if !self.serial.has_room() {
            return Err(request);
        }
        let Some(open) = self.segments.get_mut(&segment) else {
            return self.serial.submit(request);
        };
        let readable = open.readable;
        let sealed_end = data_end.saturating_add(u32::try_from(footer_bytes).unwrap_or(u32::MAX));
        open.readable = data_end.min(readable);
        self.serial
            .submit(request)
            .inspect(|()| open.sealed_end = Some(sealed_end))
            .inspect_err(|_| open.readable = readable)
    }

    /// Takes note of what an answer says about our own files.
    fn note(&mut self, reply: &IoReply, made: Option<Made>) {
        match reply {
            IoReply::Created {
                segment,
                result: Ok(()),
            } => {
                if let Some(made) = made {
                    self.adopt(*segment, made.bytes, made.file);
                }
            }
            IoReply::Sealed {
                segment,
                result: Ok(()),
                ..
            } => {
                if let Some(open) = self.segments.get_mut(segment)
                    && let Some(end) = open.sealed_end
                {
                    open.readable = end;
                    self.keep_open(*segment);
                }
            }
            _ => {}
        }
    }
}

impl Disk for ShardDisk {
    fn write_at(&mut self, segment: SegmentNo, offset: u32, bytes: &[u8]) -> Result<(), DiskError> {
        let open = self.segments.get_mut(&segment);
        let Some(open) = open.filter(|open| open.sealed_end.is_none()) else {
            return Err(DiskError::Os {
                call: "pwrite",
                segment,
                errno: libc::EBADF,
            });
        };
        let file = match &mut open.file {
            Some(file) => file,
            none => none.insert(file::open(&self.directory, segment)?),
        };
        crash::point("io.write");
        file::write(file, segment, offset, bytes)?;
        crash::point("io.written");
        Ok(())
    }

    fn resident(&mut self, at: Location) -> Option<&[u8]> {
        let open = self.segments.get_mut(&at.segment)?;
        let end = at.offset.checked_add(at.bytes)?;
        if end > open.readable {
            return None;
        }
        if open.file.is_none() {
            open.file = Some(file::open_cached(&self.directory, at.segment)?);
            self.keep_open(at.segment);
        }
        let file = self.segments[&at.segment].file.as_ref()?;
        self.buffer.resize(at.bytes as usize, 0);
        file::read_cached(file, at.offset, &mut self.buffer).then_some(&self.buffer)
    }

    fn submit(&mut self, request: IoRequest) -> Result<(), IoRequest> {
        match &request {
            IoRequest::Read { segment, .. } => {
                self.reads[segment.0 as usize % READ_LINES].submit(request)
            }
            IoRequest::Seal {
                segment,
                data_end,
                footer,
                ..
            } => {
                let (segment, data_end, footer_bytes) = (*segment, *data_end, footer.len());
                self.submit_seal(segment, data_end, request, footer_bytes)
            }
            IoRequest::Create { .. } | IoRequest::Sync { .. } => self.serial.submit(request),
            IoRequest::Remove { segment } => {
                let segment = *segment;
                self.reads[segment.0 as usize % READ_LINES].submit(request)?;
                self.segments.remove(&segment);
                self.open.retain(|open| *open != segment);
                Ok(())
            }
        }
    }

    fn poll(&mut self) -> Option<IoReply> {
        let lines = 1 + READ_LINES;
        for turn in 0..lines {
            let line = (self.next_line + turn) % lines;
            let answer = match line {
                0 => self.serial.poll(),
                read => self.reads[read - 1].poll(),
            };
            if let Some(answer) = answer {
                self.next_line = (line + 1) % lines;
                self.note(&answer.reply, answer.made);
                match answer.reply {
                    IoReply::Removed { segment, .. } if line > 0 => {
                        let request = IoRequest::Remove { segment };
                        return match self.serial.submit(request) {
                            Ok(()) => self.poll(),
                            Err(_) => Some(not_removed(segment)),
                        };
                    }
                    reply => return Some(reply),
                }
            }
        }
        None
    }
}

/// The serial line is full, or has ended: the file stays until the next start.
fn not_removed(segment: SegmentNo) -> IoReply {
    IoReply::Removed {
        segment,
        result: Err(DiskError::Os {
            call: "unlink",
            segment,
            errno: libc::EBUSY,
        }),
    }
}
