//! Creates, syncs and seals of one shard, in the order in which they were submitted.
//!
//! Floor 3, part of `io`. The protocol is written once, as async code over a [`Device`]: in the
//! executor its awaits wait for the ring, in a plain thread they block and never suspend.
//!
//! Invariants
//! - one fdatasync answers every sync of the segment that was queued behind the first without
//!   anything between them: all their writes had happened before it began.
//! - a segment whose sync failed is never synced again; each later sync or seal gets that error.
//! - the footer is written only when the records are durable, and the file cut only when the
//!   footer is.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::file;
use super::line::{Inbox, Outbox};
use crate::id::SegmentNo;
use crate::segment::{DiskError, IoReply, IoRequest, Sequence};

/// How a backend waits: for a sync, and for calls that block.
pub(super) trait Device {
    /// A file that it can sync.
    type Synced;

    /// Gets ready to sync a file.
    fn adopt(&self, segment: SegmentNo, file: &Arc<File>) -> Result<Self::Synced, DiskError>;

    /// fdatasync, once.
    async fn sync(&self, segment: SegmentNo, file: &Self::Synced) -> Result<(), DiskError>;

    /// Runs what blocks where it may.
    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T;

    /// Closes a file.
    async fn close(&self, file: Self::Synced);
}

/// The state of a shard's serial line.
pub(super) struct Serial<D: Device> {
    device: D,
    directory: PathBuf,
    files: HashMap<SegmentNo, Open<D::Synced>>,
    failed: HashMap<SegmentNo, DiskError>,
    group: Vec<Sequence>,
}

struct Open<S> {
    file: Arc<File>,
    synced: S,
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
    pub(super) async fn serve(
        &mut self,
        request: IoRequest,
        inbox: &mut Inbox,
        outbox: &mut Outbox,
    ) {
        match request {
            IoRequest::Create { segment, bytes } => self.create(segment, bytes, outbox).await,
            IoRequest::Sync { segment, upto } => {
                self.group.push(upto);
                while let Some(upto) = inbox.pop_sync_of(segment) {
                    self.group.push(upto);
                }
                let result = self.sync(segment).await;
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
                let result = self.seal(segment, data_end, footer).await;
                let reply = IoReply::Sealed {
                    segment,
                    upto,
                    result,
                };
                outbox.push(reply, None);
            }
            IoRequest::Read { .. } => unreachable!("reads have lines of their own"),
        }
        outbox.wake();
    }

    /// Closes every file.
    pub(super) async fn close(&mut self) {
        for (_, open) in self.files.drain() {
            self.device.close(open.synced).await;
        }
    }

    async fn create(&mut self, segment: SegmentNo, bytes: u32, outbox: &mut Outbox) {
        let directory = self.directory.clone();
        let made = self
            .device
            .blocking(move || file::create(&directory, segment, bytes))
            .await;
        let (result, made) = match made {
            Ok(made) => (Ok(()), Some(made)),
            Err(error) => (Err(error), None),
        };
        // Opened again by its name at the first sync. A write-back error before that is not lost:
        // the kernel reports one that nobody saw to whoever opens the file next.
        outbox.push(IoReply::Created { segment, result }, made);
    }

    async fn sync(&mut self, segment: SegmentNo) -> Result<(), DiskError> {
        if let Some(error) = self.failed.get(&segment) {
            return Err(error.clone());
        }
        self.open(segment).await?;
        let open = &self.files[&segment];
        let result = self.device.sync(segment, &open.synced).await;
        if let Err(error) = &result {
            self.failed.insert(segment, error.clone());
        }
        result
    }

    async fn seal(
        &mut self,
        segment: SegmentNo,
        data_end: u32,
        footer: Vec<u8>,
    ) -> Result<(), DiskError> {
        self.sync(segment).await?;
        let end = u64::from(data_end) + footer.len() as u64;
        let file = Arc::clone(&self.files[&segment].file);
        self.device
            .blocking(move || file::write(&file, segment, data_end, &footer))
            .await?;
        self.sync(segment).await?;
        let file = Arc::clone(&self.files[&segment].file);
        self.device
            .blocking(move || file::cut(&file, segment, end))
            .await;
        if let Some(open) = self.files.remove(&segment) {
            self.device.close(open.synced).await;
        }
        Ok(())
    }

    async fn open(&mut self, segment: SegmentNo) -> Result<(), DiskError> {
        if self.files.contains_key(&segment) {
            return Ok(());
        }
        let directory = self.directory.clone();
        let file = self
            .device
            .blocking(move || file::open(&directory, segment))
            .await?;
        let file = Arc::new(file);
        let synced = self.device.adopt(segment, &file)?;
        self.files.insert(segment, Open { file, synced });
        Ok(())
    }
}
