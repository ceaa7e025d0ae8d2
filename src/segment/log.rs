//! The append side of a shard's log: buffer, roll over, sync, garbage.
//!
//! Floor 1. A state machine over [`Disk`]: no thread, no clock, no file. Per [`Log::append`]: the
//! record's bytes are written once to the buffer and its head once to the footer; no system call,
//! no allocation. Per [`Log::flush`]: one `write_at` for everything buffered (two when the log
//! rolled over in between).
//!
//! Invariants
//! - segments are made in the order of their numbers, which have gaps only where a record says that they
//!   were dropped; sequences have none, across segments.
//! - what a failed flush dropped never comes back once a later flush succeeded: records carry the
//!   number of rollbacks before them (`take`), and each continues the checksum of the one before.
//! - [`Log::synced`] covers a record only if every earlier one is on the device too.
//! - what is synced is said in the log as soon as something follows: by the footer of its segment, by
//!   a [`Head::Synced`], or by the next header. A footer is written only when every earlier
//!   segment is on the device.
//! - after a failed sync nothing is written any more.

mod ahead;
mod collect;
mod marks;

use std::collections::VecDeque;

use crate::id::SegmentNo;

use super::footer::{Footer, FooterMark};
use super::format::{FORMAT_VERSION, SEGMENT_HEADER_BYTES, SYNCED_BYTES, encode, synced_proof};
use super::header::SegmentHeader;
use super::outcome::{Appended, LogError, LogEvent, NotReady, Read};
use super::record::{Head, Record};
use super::segments::{Segments, moved_bytes};
use super::start::{BUFFER_BYTES_MIN, LogConfig, LogStart, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use super::{Disk, DiskError, IoReply, IoRequest, Location, Sequence};

/// The segment that is appended to.
#[derive(Debug)]
struct Active {
    segment: SegmentNo,
    header_checksum: u32,
    /// Of its last record, or of its header: the seed of the next record.
    last_checksum: u32,
    first: Sequence,
    /// Where the next record goes.
    end: u32,
    /// Up to here it is written.
    flushed_end: u32,
    footer: Footer,
    flushed_footer: FooterMark,
    flushed_object_bytes: u64,
    /// Up to here the file has written blocks, or blocks that could not be written ahead.
    ahead_end: u32,
}

/// The file that the log moves to next.
#[derive(Debug, PartialEq, Eq)]
enum Spare {
    None,
    Asked,
    Ready,
    Failed(DiskError),
}

/// A segment with records that may not be on the device, oldest first.
#[derive(Debug)]
struct Unsynced {
    segment: SegmentNo,
    written_end: u32,
    synced_end: u32,
    synced: Sequence,
    /// The last record, once no more will come.
    last: Option<Sequence>,
}

/// A sync that was submitted, and what it covers.
#[derive(Debug, Clone, Copy)]
struct SyncInFlight {
    upto: Sequence,
    written_end: u32,
}

/// A shard's log. See the module's header.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    /// Bytes since the last flush: first those of `rolled`, if any, then those of `active`.
    buffer: Vec<u8>,
    /// Bytes of `buffer` that belong to `rolled`.
    split: usize,
    active: Option<Active>,
    /// Was active at the last flush, and is full now.
    rolled: Option<Active>,
    /// Number of the segment after `active`.
    next_segment: SegmentNo,
    spare: Spare,
    last: Sequence,
    /// Checksum of the last record.
    checksum: u32,
    flushed: Sequence,
    flushed_checksum: u32,
    synced: Sequence,
    /// Up to here the log says itself that it is synced; what the buffer says is included.
    proven: Sequence,
    flushed_proven: Sequence,
    sync_wanted: Sequence,
    /// Somebody waits for the sync that is wanted.
    sync_awaited: bool,
    /// The group commit that the I/O core has.
    sync_in_flight: Option<SyncInFlight>,
    unsynced: VecDeque<Unsynced>,
    /// Seals queued or submitted.
    sealing: u32,
    outbox: VecDeque<IoRequest>,
    take: u32,
    /// What headers from now on settle.
    settled: SegmentNo,
    read_only: Option<DiskError>,
    segments: Segments,
}

impl Log {
    /// A log that goes on at `start`. Call [`Log::drive`] next.
    ///
    /// # Panics
    /// If a size in `config` is out of its range.
    #[must_use]
    pub fn new(config: LogConfig, start: LogStart) -> Self {
        let LogStart {
            next_segment,
            last,
            last_checksum,
            settled,
            segments,
            dropped,
        } = start;
        let removals = dropped
            .into_iter()
            .map(|segment| IoRequest::Remove { segment });
        assert!((SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&config.segment_bytes));
        assert!(config.buffer_bytes >= BUFFER_BYTES_MIN);
        Self {
            config,
            buffer: Vec::with_capacity(config.buffer_bytes),
            split: 0,
            active: None,
            rolled: None,
            next_segment,
            spare: Spare::None,
            last,
            checksum: last_checksum,
            flushed: last,
            flushed_checksum: last_checksum,
            synced: last,
            proven: last,
            flushed_proven: last,
            sync_wanted: last,
            sync_awaited: false,
            sync_in_flight: None,
            unsynced: VecDeque::with_capacity(4),
            sealing: 0,
            outbox: removals.collect(),
            take: 0,
            settled,
            read_only: None,
            segments: Segments::new(segments),
        }
    }

    /// Whether `bytes` of records ([`Record::record_bytes`], summed) can be appended now. They
    /// must not be more than [`Log::batch_bytes_max`].
    ///
    /// # Errors
    /// [`NotReady`].
    pub fn ready(&self, bytes: usize) -> Result<(), NotReady> {
        debug_assert!(bytes <= self.batch_bytes_max());
        if let Some(error) = &self.read_only {
            return Err(NotReady::ReadOnly(error.clone()));
        }
        let bytes = bytes + if self.owes_proof() { SYNCED_BYTES } else { 0 };
        let fits = self.fits(bytes);
        let header_bytes = if fits { 0 } else { SEGMENT_HEADER_BYTES };
        if self.buffer.len() + header_bytes + bytes > self.config.buffer_bytes {
            return Err(NotReady::Wait);
        }
        if fits {
            return Ok(());
        }
        match &self.spare {
            Spare::Ready if self.rolled.is_none() => Ok(()),
            Spare::Failed(error) => Err(NotReady::Failed(error.clone())),
            _ => Err(NotReady::Wait),
        }
    }

    /// Most bytes that one call of [`Log::ready`] can grant: they fit in the buffer, and in what
    /// is left of one segment together with the whole next one, and a [`Head::Synced`] with them.
    #[must_use]
    pub fn batch_bytes_max(&self) -> usize {
        let bytes = self
            .config
            .buffer_bytes
            .min(self.config.segment_bytes as usize);
        bytes - SEGMENT_HEADER_BYTES - SYNCED_BYTES
    }

    /// Something is on the device of which the log does not say so yet.
    fn owes_proof(&self) -> bool {
        self.synced > self.proven
    }

    /// Appends a record to the buffer; before it a [`Head::Synced`] if there was a sync since the
    /// last one.
    ///
    /// # Errors
    /// [`LogError::NotReady`]; nothing happened then.
    ///
    /// # Panics
    /// If the record is not [`Record::within_limits`].
    pub fn append(&mut self, record: &Record<'_>) -> Result<Appended, LogError> {
        let bytes = record.record_bytes();
        self.ready(bytes)?;
        // Else the header of the next segment says it.
        if self.owes_proof() && self.fits(SYNCED_BYTES + bytes) {
            let upto = self.synced;
            let sequence = Sequence(self.last.0 + 1);
            let proof = synced_proof(self.config.log_id, sequence, upto);
            self.push(&Head::Synced { upto, proof }.into());
            self.proven = upto;
        }
        Ok(self.push(record))
    }

    /// Appends what there is room for.
    fn push(&mut self, record: &Record<'_>) -> Appended {
        if let Head::Dropped { first, last, .. } = record.head {
            // Else whoever finds them missing does not find that nothing in them counts.
            assert!(
                last < self.settled,
                "a segment is dropped that is not settled"
            );
            let by = Sequence(self.last.0 + 1);
            self.segments.drop_range(first, last, by);
        }
        let bytes = record.record_bytes();
        if !self.fits(bytes) {
            self.roll();
        }
        let active = self.active.as_mut().expect("ready() found room");
        let sequence = Sequence(self.last.0 + 1);
        let start = self.buffer.len();
        let encoded = encode(
            record,
            sequence,
            self.take,
            active.last_checksum,
            &mut self.buffer,
        );
        debug_assert_eq!(self.buffer.len() - start, bytes);
        active
            .footer
            .push(&self.buffer[start..start + encoded.head_bytes]);
        active.last_checksum = encoded.checksum;
        self.checksum = encoded.checksum;
        let payload = Location {
            segment: active.segment,
            offset: active.end + encoded.head_bytes as u32,
            bytes: record.payload.map_or(0, <[u8]>::len) as u32,
        };
        active.end += bytes as u32;
        self.last = sequence;
        let state = self.segments.active_mut();
        state.last = sequence;
        state.data_end = active.end;
        state.record_bytes += bytes as u64;
        state.object_bytes += record.payload.map_or(0, |_| moved_bytes(payload.bytes));
        Appended {
            sequence,
            payload,
            record_bytes: bytes as u32,
        }
    }

    /// Whether the active segment has room.
    fn fits(&self, bytes: usize) -> bool {
        let end = self.active.as_ref().map(|active| active.end as usize);
        end.is_some_and(|end| end + bytes <= self.config.segment_bytes as usize)
    }

    /// Makes the spare the active segment and puts its header into the buffer.
    fn roll(&mut self) {
        debug_assert!(self.spare == Spare::Ready && self.rolled.is_none());
        let segment = self.next_segment;
        self.next_segment = SegmentNo(segment.0 + 1);
        self.spare = Spare::None;
        self.rolled = self.active.take();
        self.split = self.buffer.len();
        // Room for the heads of records that are 4 KiB on average, or as the last segment had.
        let like_last = self
            .rolled
            .as_ref()
            .map_or(0, |old| old.footer.heads_bytes());
        let footer = Footer::with_capacity(like_last.max(self.config.segment_bytes as usize / 32));
        let first = Sequence(self.last.0 + 1);
        let header = SegmentHeader {
            version: FORMAT_VERSION,
            shard: self.config.shard,
            segment,
            log_id: self.config.log_id,
            first,
            take: self.take,
            previous: self.checksum,
            settled: self.settled,
            synced: self.synced,
        };
        self.proven = self.synced;
        self.buffer.extend_from_slice(&header.encode());
        self.active = Some(Active {
            segment,
            header_checksum: header.checksum(),
            last_checksum: header.checksum(),
            first,
            end: SEGMENT_HEADER_BYTES as u32,
            flushed_end: 0,
            flushed_footer: footer.mark(),
            flushed_object_bytes: 0,
            ahead_end: 0,
            footer,
        });
        let data_end = SEGMENT_HEADER_BYTES as u32;
        self.segments.begin(segment, first, data_end);
    }

    /// Writes what is buffered into the page cache.
    ///
    /// # Errors
    /// [`LogError::Write`]: every record since the last good flush is dropped, sequences and
    /// segments go back to where they were; the caller undoes its own part. A dropped record may
    /// reappear only if the process dies before the next good flush, or the power goes before the
    /// next sync.
    pub fn flush(&mut self, disk: &mut impl Disk) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Some(error) = self.read_only.clone() {
            return Err(self.roll_back(error));
        }
        if let Err(error) = self.write(disk) {
            return Err(self.roll_back(error));
        }
        self.buffer.clear();
        self.flushed = self.last;
        self.flushed_checksum = self.checksum;
        self.flushed_proven = self.proven;
        if let Some(old) = self.rolled.take() {
            self.split = 0;
            self.seal(old);
        }
        let active = self
            .active
            .as_mut()
            .expect("what was buffered is of the active segment");
        active.flushed_end = active.end;
        active.flushed_footer = active.footer.mark();
        active.flushed_object_bytes = self.segments.active_mut().object_bytes;
        let (segment, end, first) = (active.segment, active.end, active.first);
        self.note_written(segment, end, first);
        self.send(disk);
        Ok(())
    }

    fn write(&self, disk: &mut impl Disk) -> Result<(), DiskError> {
        let (old, new) = self.buffer.split_at(self.split);
        if let Some(rolled) = self.rolled.as_ref().filter(|_| !old.is_empty()) {
            disk.write_at(rolled.segment, rolled.flushed_end, old)?;
        }
        let active = self
            .active
            .as_ref()
            .expect("what was buffered is of the active segment");
        disk.write_at(active.segment, active.flushed_end, new)
    }

    /// Seals the active segment although it has room: the next start reads its footer, not its
    /// records. Does nothing while something waits for a flush. Appends after it begin a new segment.
    pub fn end_segment(&mut self, disk: &mut impl Disk) {
        if self.buffer.is_empty()
            && self.read_only.is_none()
            && let Some(old) = self.active.take()
        {
            self.seal(old);
            self.send(disk);
        }
    }

    /// Whether every segment is sealed, or at least synced where its footer found no room.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.buffer.is_empty()
            && self.unsynced.is_empty()
            && self.sealing == 0
            && self.outbox.is_empty()
    }

    /// Queues the seal of a segment that gets no more records, all of which are written.
    fn seal(&mut self, old: Active) {
        self.sealing += 1;
        let last = Sequence(old.first.0 + u64::from(old.footer.count()) - 1);
        self.note_written(old.segment, old.end, old.first);
        let entry = self.unsynced.back_mut().expect("just noted");
        entry.last = Some(last);
        self.outbox.push_back(IoRequest::Seal {
            segment: old.segment,
            data_end: old.end,
            footer: old
                .footer
                .finish(old.first, old.end, old.last_checksum, old.header_checksum),
            upto: last,
        });
    }

    fn note_written(&mut self, segment: SegmentNo, end: u32, first: Sequence) {
        match self
            .unsynced
            .back_mut()
            .filter(|entry| entry.segment == segment)
        {
            Some(entry) => entry.written_end = end,
            None => self.unsynced.push_back(Unsynced {
                segment,
                written_end: end,
                synced_end: 0,
                synced: Sequence(first.0 - 1),
                last: None,
            }),
        }
    }

    /// Goes back to the state of the last good flush.
    fn roll_back(&mut self, error: DiskError) -> LogError {
        let dropped = self.last.0 - self.flushed.0;
        let new_segment = self
            .active
            .as_ref()
            .filter(|active| active.flushed_end == 0);
        if let Some(active) = new_segment {
            self.next_segment = active.segment;
            self.spare = Spare::Ready;
            self.segments.take_back();
            self.active = self.rolled.take();
        }
        if let Some(active) = &mut self.active {
            active.end = active.flushed_end;
            active.footer.rewind(active.flushed_footer);
            active.last_checksum = self.flushed_checksum;
            let state = self.segments.active_mut();
            state.last = self.flushed;
            state.data_end = active.end;
            state.record_bytes = u64::from(active.end) - SEGMENT_HEADER_BYTES as u64;
            state.object_bytes = active.flushed_object_bytes;
        }
        self.segments.undrop(self.flushed);
        self.buffer.clear();
        self.split = 0;
        self.last = self.flushed;
        self.checksum = self.flushed_checksum;
        self.proven = self.flushed_proven;
        self.sync_wanted = self.sync_wanted.min(self.flushed);
        match self.take.checked_add(1) {
            Some(take) => self.take = take,
            None => self.read_only = Some(error.clone()),
        }
        LogError::Write {
            error,
            flushed: self.flushed,
            dropped,
        }
    }

    /// Asks that the records up to `upto` reach the device; [`Log::drive`] sees to it.
    pub fn sync_wanted(&mut self, upto: Sequence) {
        self.sync_wanted = self.sync_wanted.max(upto.min(self.last));
    }

    /// The same where somebody waits for it, and others may come: syncs after this one are made cheap.
    pub fn sync_awaited(&mut self, upto: Sequence) {
        self.sync_wanted(upto);
        self.sync_awaited = true;
    }

    /// Submits what is due: seals, the making of the next segment, one sync. Call it once a step;
    /// it costs a few loads when nothing is due.
    pub fn drive(&mut self, disk: &mut impl Disk) {
        self.send(disk);
        if self.read_only.is_some() {
            return;
        }
        // Not while a roll is unwritten: its rollback would leave two spares.
        if self.spare == Spare::None && !self.opening() {
            let request = IoRequest::Create {
                segment: self.next_segment,
                bytes: self.config.segment_bytes,
            };
            if disk.submit(request).is_ok() {
                self.spare = Spare::Asked;
            }
        }
        self.submit_sync(disk);
    }

    /// The active segment is new and nothing of it is written yet.
    fn opening(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.flushed_end == 0)
    }

    fn submit_sync(&mut self, disk: &mut impl Disk) {
        if self.sync_in_flight.is_some() || !self.outbox.is_empty() {
            return;
        }
        // Full segments are synced by their seal.
        let Some(entry) = self.unsynced.back().filter(|entry| entry.last.is_none()) else {
            return;
        };
        let done = self.sync_wanted <= entry.synced || self.sync_wanted <= self.synced;
        if done || entry.synced_end == entry.written_end {
            return;
        }
        let request = IoRequest::Sync {
            segment: entry.segment,
            upto: self.flushed,
        };
        let written_end = entry.written_end;
        self.write_ahead(disk);
        if disk.submit(request).is_ok() {
            self.sync_in_flight = Some(SyncInFlight {
                upto: self.flushed,
                written_end,
            });
        }
    }

    fn send(&mut self, disk: &mut impl Disk) {
        while let Some(request) = self.outbox.pop_front() {
            let earlier = self.unsynced.front().map(|entry| entry.segment);
            // A footer also says that every segment before it is on the device.
            let waits = matches!(&request, IoRequest::Seal { segment, .. }
                if earlier.is_some_and(|earlier| earlier < *segment));
            let refused = if waits {
                Err(request)
            } else {
                disk.submit(request)
            };
            if let Err(request) = refused {
                self.outbox.push_front(request);
                return;
            }
        }
    }

    /// Tries again to make the next segment if that failed: call it when there may be room.
    pub fn retry_create(&mut self, disk: &mut impl Disk) {
        if matches!(self.spare, Spare::Failed(_)) {
            self.spare = Spare::None;
            self.drive(disk);
        }
    }

    /// Takes a reply of the I/O core.
    pub fn on_reply(&mut self, reply: IoReply) -> LogEvent {
        match reply {
            IoReply::Created { segment, result } if segment == self.next_segment => {
                self.on_created(result)
            }
            IoReply::Synced {
                segment,
                upto,
                result,
            } => {
                // Else it is the sync of a segment whose seal found no room: all of it.
                let in_flight = self.sync_in_flight.take_if(|sync| sync.upto == upto);
                let written_end = in_flight.map_or(u32::MAX, |sync| sync.written_end);
                match result {
                    Ok(()) => self.on_synced(segment, upto, written_end),
                    Err(error) => self.fail(error),
                }
            }
            IoReply::Sealed {
                segment,
                upto,
                result,
            } => self.on_sealed(segment, upto, result),
            IoReply::Removed { segment, result } => LogEvent::Removed { segment, result },
            other => LogEvent::NotMine(other),
        }
    }

    fn on_created(&mut self, result: Result<(), DiskError>) -> LogEvent {
        match result {
            Ok(()) => {
                self.spare = Spare::Ready;
                LogEvent::SpareReady
            }
            Err(error) => {
                self.spare = Spare::Failed(error.clone());
                LogEvent::CreateFailed(error)
            }
        }
    }

    fn on_sealed(
        &mut self,
        segment: SegmentNo,
        upto: Sequence,
        result: Result<(), DiskError>,
    ) -> LogEvent {
        self.sealing -= 1;
        match result {
            Ok(()) => {
                self.proven = self.proven.max(upto);
                self.flushed_proven = self.flushed_proven.max(upto);
                if let Some(state) = self.segments.get_mut(segment) {
                    state.sealed = true;
                }
                self.on_synced(segment, upto, u32::MAX)
            }
            // The footer found no room. Its records can be synced without it: the next start
            // scans the segment instead of reading its footer.
            Err(DiskError::NoSpace) => {
                self.outbox.push_front(IoRequest::Sync { segment, upto });
                LogEvent::Nothing
            }
            Err(error) => self.fail(error),
        }
    }

    fn on_synced(&mut self, segment: SegmentNo, upto: Sequence, written_end: u32) -> LogEvent {
        if self.read_only.is_some() {
            return LogEvent::Nothing;
        }
        if let Some(entry) = self
            .unsynced
            .iter_mut()
            .find(|entry| entry.segment == segment)
        {
            entry.synced = entry.synced.max(upto);
            entry.synced_end = entry.synced_end.max(written_end.min(entry.written_end));
        }
        let before = self.synced;
        while let Some(entry) = self.unsynced.front() {
            self.synced = self.synced.max(entry.synced);
            if entry.last.is_none_or(|last| entry.synced < last) {
                break;
            }
            self.unsynced.pop_front();
        }
        if self.synced > before {
            LogEvent::Synced(self.synced)
        } else {
            LogEvent::Nothing
        }
    }

    fn fail(&mut self, error: DiskError) -> LogEvent {
        // A seal would sync the segment again and call it durable.
        self.outbox.clear();
        self.read_only.get_or_insert(error.clone());
        LogEvent::ReadOnly(error)
    }

    /// A payload, if it is in memory.
    pub fn read<'a>(&'a self, disk: &'a mut impl Disk, at: Location) -> Read<'a> {
        match self.buffered(at) {
            Some(bytes) => Read::Here(bytes),
            None => disk.resident(at).map_or(Read::Cold, Read::Here),
        }
    }

    fn buffered(&self, at: Location) -> Option<&[u8]> {
        let (of_rolled, of_active) = self.buffer.split_at(self.split);
        let within = |part: Option<&Active>, bytes: &'_ [u8]| {
            let part = part.filter(|part| part.segment == at.segment)?;
            let start = at.offset.checked_sub(part.flushed_end)? as usize;
            (start + at.bytes as usize <= bytes.len()).then_some(start)
        };
        if let Some(start) = within(self.active.as_ref(), of_active) {
            return Some(&of_active[start..start + at.bytes as usize]);
        }
        let start = within(self.rolled.as_ref(), of_rolled)?;
        Some(&of_rolled[start..start + at.bytes as usize])
    }

    /// Whether the next segment could not be made: [`Log::retry_create`] is due now and then.
    #[must_use]
    pub fn spare_failed(&self) -> bool {
        matches!(self.spare, Spare::Failed(_))
    }

    /// Lets the log write and remove nothing at all: for whoever only looks. Call it before
    /// [`Log::drive`].
    pub fn freeze(&mut self) {
        // Files that a crash left of dropped segments are for whoever writes to remove.
        self.outbox.clear();
        self.read_only = Some(DiskError::ReadOnly);
    }
}
