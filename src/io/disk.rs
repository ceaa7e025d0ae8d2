//! A shard's files, as the shard sees them.
//!
//! Floor 3, part of `io`; lives on the shard's thread. Nothing here waits for the device once
//! requests are served: writes go to the page cache, reads of what is resident come from the
//! mapping, all else goes down a line. No record format is known here.
//!
//! Invariants
//! - `readable` of a segment never exceeds its file: it falls to the end of the data before a seal
//!   is submitted, and rises to the end of the footer when the seal was answered.
//! - pages mapped at once stay under [`MAPPED_BYTES_MAX`] over all shards, give or take one range:
//!   before a read would exceed it, every touched mapping is zapped.
//!
//! Cost: a write is one `pwrite`; [`Disk::resident`] one `mincore` per 64 pages and one minor fault per
//! 64 KiB not lately read; a submit and a poll as said in `line`.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::IoError;
use super::file;
use super::line::{Made, READ_LINES, ShardEnd};
use super::map::Mapping;
use crate::id::SegmentNo;
use crate::segment::{Disk, DiskError, IoReply, IoRequest, Location};

/// Bytes of segments in the page table at once, all shards together: counted as resident memory
/// of the process, though the page cache owns them.
pub const MAPPED_BYTES_MAX: usize = 16 << 20;
/// The least share of a shard, where there are many.
const MAPPED_BYTES_MIN: usize = 1 << 20;

/// The files of one shard: an implementation of [`Disk`] on a directory.
pub struct ShardDisk {
    directory: PathBuf,
    segments: HashMap<SegmentNo, Segment>,
    serial: ShardEnd,
    reads: [ShardEnd; READ_LINES],
    /// Whose answers to look at first.
    next_line: usize,
    touched: Vec<SegmentNo>,
    mapped_bytes: usize,
    mapped_bytes_max: usize,
}

struct Segment {
    map: Mapping,
    /// Open while it is written; opened at the first write where it was found at start.
    file: Option<File>,
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
            touched: Vec::new(),
            mapped_bytes: 0,
            mapped_bytes_max: (MAPPED_BYTES_MAX / shards.max(1)).max(MAPPED_BYTES_MIN),
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

    /// Maps the first `bytes` of a segment that is there; it can be read and written then. Waits
    /// for the device: for the start only.
    ///
    /// Errors: [`DiskError::Short`] where the file is smaller.
    pub fn open_existing(&mut self, segment: SegmentNo, bytes: u32) -> Result<(), DiskError> {
        let file = file::open(&self.directory, segment)?;
        let map = Mapping::new(&file, bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => DiskError::Short {
                segment,
                end: u64::from(bytes),
            },
            _ => file::failed("mmap", segment, &error),
        })?;
        self.adopt(segment, map, None);
        Ok(())
    }

    /// Fills `buffer` from a segment that is there, whether opened or not. Waits for the device:
    /// for recovery only, where it reads ahead better than a mapping does.
    pub fn read_now(
        &self,
        segment: SegmentNo,
        offset: u32,
        buffer: &mut [u8],
    ) -> Result<(), DiskError> {
        let file = file::open(&self.directory, segment)?;
        file::read(&file, segment, offset, buffer)
    }

    /// Cuts a segment that is there to `bytes` and syncs it, or removes it where `bytes` is 0.
    /// Waits for the device: for recovery only, before the segment is opened.
    ///
    /// Errors: as the system calls fail; a segment that is open is refused with `EBUSY`.
    pub fn cut_now(&mut self, segment: SegmentNo, bytes: u32) -> Result<(), DiskError> {
        if self.segments.contains_key(&segment) {
            return Err(DiskError::Os {
                call: "ftruncate",
                segment,
                errno: libc::EBUSY,
            });
        }
        file::cut_now(&self.directory, segment, bytes)
    }

    /// Bytes of segments that are in the page table now, at most; fault-around included.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }

    fn adopt(&mut self, segment: SegmentNo, map: Mapping, file: Option<File>) {
        let opened = Segment {
            map,
            file,
            sealed_end: None,
        };
        self.segments.insert(segment, opened);
    }

    /// Takes every touched page out of the page table.
    pub(super) fn zap(&mut self) {
        for segment in self.touched.drain(..) {
            if let Some(open) = self.segments.get_mut(&segment) {
                open.map.zap();
            }
        }
        self.mapped_bytes = 0;
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
        let readable = open.map.readable();
        let sealed_end = data_end.saturating_add(u32::try_from(footer_bytes).unwrap_or(u32::MAX));
        open.map.set_readable(data_end.min(readable));
        self.serial
            .submit(request)
            .inspect(|()| open.sealed_end = Some(sealed_end))
            .inspect_err(|_| open.map.set_readable(readable))
    }

    /// Takes note of what an answer says about our own files.
    fn note(&mut self, reply: &IoReply, made: Option<Box<Made>>) {
        match reply {
            IoReply::Created {
                segment,
                result: Ok(()),
            } => {
                if let Some(made) = made {
                    self.adopt(*segment, made.map, Some(made.file));
                }
            }
            IoReply::Sealed {
                segment,
                result: Ok(()),
                ..
            } => {
                if let Some(open) = self.segments.get_mut(segment) {
                    open.file = None;
                    if let Some(end) = open.sealed_end {
                        open.map.set_readable(end);
                    }
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
        file::write(file, segment, offset, bytes)
    }

    fn resident(&mut self, at: Location) -> Option<&[u8]> {
        let open = self.segments.get(&at.segment)?;
        if !open.map.is_resident(at.offset, at.bytes) {
            return None;
        }
        let mut untouched = open.map.untouched_bytes(at.offset, at.bytes);
        if untouched > 0 {
            if self.mapped_bytes + untouched > self.mapped_bytes_max {
                self.zap();
                untouched = self.segments[&at.segment]
                    .map
                    .untouched_bytes(at.offset, at.bytes);
            }
            self.mapped_bytes += untouched;
            if !self.touched.contains(&at.segment) {
                self.touched.push(at.segment);
            }
        }
        let open = self.segments.get_mut(&at.segment)?;
        open.map.touch(at.offset, at.bytes)
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
                return Some(answer.reply);
            }
        }
        None
    }
}
