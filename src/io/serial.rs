//! Creates, syncs, seals and removals of one shard, in the order in which they were submitted.
//!
//! Floor 3, part of `io`. Blocking code, served by a thread for each shard, with either backend: an
//! fdatasync through the ring is handed to a thread of the kernel all the same, and its answer came
//! by two more wakes. One lane's power-safe write took 1.47 times a bare fdatasync that way, and 64
//! lanes got 42,600 acknowledgements a second instead of 130,900 (`cargo bench --bench group_commit`).
//!
//! Invariants
//! - one fdatasync answers every sync of the segment that was queued behind the first without
//!   anything between them: all their writes had happened before it began.
//! - a segment whose sync failed is never synced again; each later sync or seal gets that error.
//! - the footer is written only when the records are durable, and the file cut only when the
//!   footer is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::path::PathBuf;

use super::file;
use super::line::{Inbox, Outbox};
use crate::crash;
use crate::id::SegmentNo;
use crate::segment::{DiskError, IoReply, IoRequest, Sequence};

/// What syncs a file.
pub(super) trait Device {
    /// fdatasync, once.
    fn sync(&self, segment: SegmentNo, file: &File) -> Result<(), DiskError>;
}

/// The device that the file is on.
pub(super) struct Blocking;

impl Device for Blocking {
    fn sync(&self, segment: SegmentNo, file: &File) -> Result<(), DiskError> {
        file::sync(file, segment)
    }
}

/// The state of a shard's serial line.
pub(super) struct Serial<D: Device> {
    device: D,
    directory: PathBuf,
    files: HashMap<SegmentNo, File>,
    failed: HashMap<SegmentNo, DiskError>,
    group: Vec<Sequence>,
}

impl<D: Device> Serial<D> {
    pub(super) fn new(device: D, directory: PathBuf) -> Self {
        Self {
            device,
            directory,
            files: HashMap::new(),
            failed: HashMap::new(),
            group: Vec::new(),
        }
    }

    /// Serves a request, and those behind it that one sync answers.
    pub(super) fn serve(&mut self, request: IoRequest, inbox: &mut Inbox, outbox: &mut Outbox) {
        match request {
            IoRequest::Create { segment, bytes } => self.create(segment, bytes, outbox),
            IoRequest::Sync { segment, upto } => {
                self.group.push(upto);
                while let Some(upto) = inbox.pop_sync_of(segment) {
                    self.group.push(upto);
                }
                let result = self.sync(segment);
                for upto in self.group.drain(..) {
                    let result = result.clone();
                    let reply = IoReply::Synced {
                        segment,
                        upto,
                        result,
                    };
                    outbox.push(reply, None);
                }
            }
            IoRequest::Seal {
                segment,
                data_end,
                footer,
                upto,
            } => {
                let result = self.seal(segment, data_end, &footer);
                let reply = IoReply::Sealed {
                    segment,
                    upto,
                    result,
                };
                outbox.push(reply, None);
            }
            IoRequest::Remove { segment } => {
                self.files.remove(&segment);
                self.failed.remove(&segment);
                crash::point("io.remove");
                let result = file::cut_now(&self.directory, segment, 0);
                crash::point("io.removed");
                outbox.push(IoReply::Removed { segment, result }, None);
            }
            IoRequest::Read { .. } => unreachable!("reads have lines of their own"),
        }
        outbox.wake();
    }

    fn create(&mut self, segment: SegmentNo, bytes: u32, outbox: &mut Outbox) {
        crash::point("io.create");
        // The descriptor for its syncs is made now: a sync that found none free later would be a failed
        // one, and final.
        let made = file::create(&self.directory, segment, bytes);
        crash::point("io.created");
        let (result, made) = match made {
            Ok((made, file)) => {
                self.files.insert(segment, file);
                (Ok(()), Some(made))
            }
            Err(error) => (Err(error), None),
        };
        outbox.push(IoReply::Created { segment, result }, made);
    }

    fn sync(&mut self, segment: SegmentNo) -> Result<(), DiskError> {
        if let Some(error) = self.failed.get(&segment) {
            return Err(error.clone());
        }
        let file = match self.files.entry(segment) {
            Entry::Occupied(file) => file.into_mut(),
            Entry::Vacant(place) => place.insert(file::open(&self.directory, segment)?),
        };
        crash::point("io.sync");
        let result = self.device.sync(segment, file);
        crash::point("io.synced");
        if let Err(error) = &result {
            self.failed.insert(segment, error.clone());
        }
        result
    }

    fn seal(&mut self, segment: SegmentNo, data_end: u32, footer: &[u8]) -> Result<(), DiskError> {
        self.sync(segment)?;
        let end = u64::from(data_end) + footer.len() as u64;
        crash::point("io.seal");
        file::write(&self.files[&segment], segment, data_end, footer)?;
        crash::point("io.footer");
        self.sync(segment)?;
        if let Some(file) = self.files.remove(&segment) {
            file::cut(&file, segment, end);
            crash::point("io.sealed");
        }
        Ok(())
    }
}
