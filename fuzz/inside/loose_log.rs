//! A log as a script says it: segments and records of any fields, checksums and ids put right afterwards.
//!
//! Compiled into the room `segment`. The fuzzer's bytes would never get past a checksum; so they say what the
//! fields are, and [`build`] makes files of it as `FORMAT.md` has them: sequences count, checksums chain, a
//! payload has its id, and where that is another than the script says (its bytes were changed), whatever comes
//! later and named the one names the other. [`take_apart`] makes such a script of real files.

use std::collections::HashMap;

use super::Sequence;
use super::fields::{FLAG_ID, FLAG_PAYLOAD, KIND_SYNCED};
use super::files::SegmentFiles;
use super::footer::{Footer, TRAILER_BYTES, Trailer};
use super::format::{
    HEAD_BYTES_MAX, LogId, PAYLOAD_BYTES_MAX, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, align,
    checksum, decode, synced_proof,
};
use super::header::SegmentHeader;
use super::memory::MemoryDisk;
use super::record::ObjectKind;
use crate::fuzzing::input::Input;
use crate::id::{OBJECT_ID_BYTES, ObjectId, SegmentNo, ShardNo};

const LOG_ID: LogId = LogId(7);
const SEGMENTS_MAX: u32 = 12;
const RECORDS_MAX: usize = 2000;

const ITEM_RECORD: u8 = 0;
const ITEM_SEGMENT: u8 = 1;
const ITEM_DAMAGE: u8 = 2;
const ITEM_CUT: u8 = 3;
const ITEM_TAIL: u8 = 4;
const ITEM_TAKE: u8 = 5;
const ITEM_REPEAT: u8 = 6;
const ITEMS: u8 = 7;

const SEALED: u8 = 1;
const SETTLES: u8 = 2;
const SYNCED: u8 = 4;
const SKIPS: u8 = 8;
const OLD_VERSION: u8 = 16;
/// The header is written without the record before it being right.
const BREAKS: u8 = 32;

/// A segment in the making.
struct Segment {
    flags: u8,
    header: SegmentHeader,
    bytes: Vec<u8>,
    footer: Footer,
    seed: u32,
    tail: Vec<u8>,
}

/// What was built so far.
struct Builder {
    disk: MemoryDisk,
    current: Option<Segment>,
    next: u64,
    number: u32,
    take: u32,
    previous: u32,
    /// Ids that are others now.
    renamed: HashMap<ObjectId, ObjectId>,
    records: usize,
}

/// The files that a script says.
pub(crate) fn build(script: &mut Input<'_>) -> MemoryDisk {
    let mut builder = Builder {
        disk: MemoryDisk::new(),
        current: None,
        next: 1,
        number: 1,
        take: 0,
        previous: 0,
        renamed: HashMap::new(),
        records: 0,
    };
    let mut damage = Vec::new();
    while !script.is_empty() && builder.records < RECORDS_MAX {
        match script.u8() % ITEMS {
            ITEM_SEGMENT => builder.begin(script),
            ITEM_DAMAGE => damage.push((script.u8(), script.u32(), script.u8())),
            ITEM_CUT => damage.push((script.u8(), script.u32(), 0)),
            ITEM_TAIL => {
                let count = usize::from(script.u8());
                let bytes = script.bytes(count);
                if let Some(segment) = &mut builder.current {
                    segment.tail.extend(bytes);
                }
            }
            ITEM_TAKE => builder.take += 1,
            ITEM_REPEAT => builder.next = builder.next.saturating_sub(1).max(1),
            _ => builder.record(script),
        }
    }
    builder.end();
    for (segment, at, xor) in damage {
        builder.damage(segment, at as usize, xor);
    }
    builder.disk.sync_all();
    builder.disk
}

impl Builder {
    fn begin(&mut self, script: &mut Input<'_>) {
        self.end();
        let flags = script.u8();
        if flags & SKIPS != 0 {
            self.number = self.number.saturating_add(script.u8().into());
        }
        let number = if flags & SETTLES != 0 {
            script.u32()
        } else {
            0
        };
        let synced = if flags & SYNCED != 0 { script.u64() } else { 0 };
        let header = SegmentHeader {
            version: if flags & OLD_VERSION != 0 { 1 } else { 2 },
            shard: ShardNo(0),
            segment: SegmentNo(self.number),
            log_id: LOG_ID,
            first: Sequence(self.next),
            take: self.take,
            previous: if flags & BREAKS != 0 {
                1
            } else {
                self.previous
            },
            settled: SegmentNo(number),
            synced: Sequence(synced),
        };
        self.current = Some(Segment {
            flags,
            header,
            bytes: header.encode().to_vec(),
            footer: Footer::default(),
            seed: header.checksum(),
            tail: Vec::new(),
        });
        self.number = self.number.saturating_add(1);
    }

    fn end(&mut self) {
        let Some(mut segment) = self.current.take() else {
            return;
        };
        if self.disk.segments().len() as u32 >= SEGMENTS_MAX {
            return;
        }
        let data_end = segment.bytes.len() as u32;
        if segment.flags & SEALED != 0 {
            let seed = segment.header.checksum();
            let first = segment.header.first;
            segment.bytes.extend(&segment.tail);
            let footer = segment.footer.finish(first, data_end, segment.seed, seed);
            segment.bytes.extend(footer);
        } else {
            segment.bytes.extend(&segment.tail);
            segment.bytes.resize(segment.bytes.len() + 512, 0);
        }
        self.previous = segment.seed;
        *self.disk.bytes_mut(segment.header.segment) = segment.bytes;
    }

    fn record(&mut self, script: &mut Input<'_>) {
        self.records += 1;
        let (kind, flags) = (script.u8() % 18, script.u8());
        let (mut owner, value_bytes) = (script.u64(), script.u64());
        let key_bytes = usize::from(script.u8()) * 4 + usize::from(script.u8() & 3);
        let mut key = script.bytes(key_bytes).to_vec();
        let mut id = (flags & FLAG_ID != 0).then(|| ObjectId::from_bytes(script.array()));
        let payload_bytes = match flags & FLAG_PAYLOAD {
            0 => 0,
            _ => (script.u32() as usize).min(PAYLOAD_BYTES_MAX),
        };
        let mut payload = script.bytes(payload_bytes).to_vec();
        self.rename(&mut key);
        self.rename(&mut payload);
        if let Some(claimed) = id {
            let kind = ObjectKind::from_flags(flags).filter(|_| flags & FLAG_PAYLOAD != 0);
            let right = kind.map(|kind| kind.id_of(&payload));
            let right = right.or_else(|| self.renamed.get(&claimed).copied());
            if let Some(right) = right.filter(|right| *right != claimed) {
                self.renamed.insert(claimed, right);
                id = Some(right);
            }
        }
        if kind == KIND_SYNCED {
            owner = synced_proof(LOG_ID, Sequence(self.next), Sequence(value_bytes));
        }
        let mut head = vec![0; RECORD_HEADER_BYTES];
        (head[4], head[5]) = (kind, flags);
        head[6..8].copy_from_slice(&(key.len() as u16).to_le_bytes());
        head[8..16].copy_from_slice(&self.next.to_le_bytes());
        head[16..24].copy_from_slice(&owner.to_le_bytes());
        head[24..28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        head[28..32].copy_from_slice(&self.take.to_le_bytes());
        head[32..40].copy_from_slice(&value_bytes.to_le_bytes());
        head.extend(id.iter().flat_map(|id| id.as_bytes()));
        head.extend(key);
        let Some(segment) = &mut self.current else {
            return;
        };
        segment.seed = checksum(segment.seed, &head[4..]);
        head[..4].copy_from_slice(&segment.seed.to_le_bytes());
        segment.footer.push(&head);
        segment.bytes.extend(head);
        segment.bytes.extend(payload);
        segment.bytes.resize(align(segment.bytes.len()), 0);
        self.next += 1;
    }

    /// Puts new ids in the place of old ones.
    fn rename(&self, bytes: &mut [u8]) {
        if self.renamed.is_empty() || bytes.len() < OBJECT_ID_BYTES {
            return;
        }
        for at in 0..=bytes.len() - OBJECT_ID_BYTES {
            let window: &mut [u8; OBJECT_ID_BYTES] = (&mut bytes[at..at + OBJECT_ID_BYTES])
                .try_into()
                .expect("32 bytes");
            if let Some(right) = self.renamed.get(&ObjectId::from_bytes(*window)) {
                *window = *right.as_bytes();
            }
        }
    }

    /// Changes a byte, or cuts a file off there.
    fn damage(&mut self, segment: u8, at: usize, xor: u8) {
        let segments = self.disk.segments();
        let Some(segment) = segments.get(usize::from(segment) % segments.len().max(1)) else {
            return;
        };
        let bytes = self.disk.bytes_mut(SegmentNo(*segment));
        match xor {
            0 => bytes.truncate(at),
            xor if !bytes.is_empty() => {
                let at = at % bytes.len();
                bytes[at] ^= xor;
            }
            _ => {}
        }
    }
}

/// The script of what is on a disk, as far as it is good.
pub(crate) fn take_apart(disk: &mut MemoryDisk) -> Vec<u8> {
    let mut script = Vec::new();
    let mut expected = 1;
    for segment in disk.segments() {
        let mut bytes = vec![0; disk.bytes_mut(SegmentNo(segment)).len()];
        let read = SegmentFiles::read_at(disk, SegmentNo(segment), 0, &mut bytes);
        assert!(read.is_ok());
        let Some(header) = bytes
            .first_chunk()
            .and_then(|head| SegmentHeader::decode(head).ok())
        else {
            continue;
        };
        let seed = header.checksum();
        let trailer = bytes.last_chunk::<TRAILER_BYTES>();
        let is_sealed = trailer.is_some_and(|last| Trailer::decode(last, seed).is_some());
        let mut flags = if is_sealed { SEALED } else { 0 } | SETTLES | SYNCED;
        if segment != expected {
            flags |= SKIPS;
        }
        script.extend([ITEM_SEGMENT, flags]);
        if segment != expected {
            script.push((segment - expected) as u8);
        }
        expected = segment + 1;
        script.extend(header.settled.0.to_le_bytes());
        script.extend(header.synced.0.to_le_bytes());
        say_records(&bytes, seed, &mut script);
    }
    script
}

fn say_records(bytes: &[u8], mut seed: u32, script: &mut Vec<u8>) {
    let mut at = SEGMENT_HEADER_BYTES;
    while let Ok(record) = decode(&bytes[at..], seed) {
        let head = &bytes[at..at + record.head_bytes as usize];
        let id_bytes = if head[5] & FLAG_ID == 0 {
            0
        } else {
            OBJECT_ID_BYTES
        };
        let (id, key) = head[RECORD_HEADER_BYTES..].split_at(id_bytes);
        let payload_bytes = record.payload_bytes.unwrap_or(0);
        script.extend([ITEM_RECORD, head[4], head[5]]);
        script.extend(&head[16..24]);
        script.extend(&head[32..40]);
        script.extend([(key.len() / 4) as u8, (key.len() % 4) as u8]);
        script.extend(key);
        script.extend(id);
        if head[5] & FLAG_PAYLOAD != 0 {
            script.extend(payload_bytes.to_le_bytes());
            let from = at + head.len();
            script.extend(&bytes[from..from + payload_bytes as usize]);
        }
        seed = record.checksum;
        at += record.record_bytes as usize;
    }
}

const _: () = assert!(HEAD_BYTES_MAX > 255 * 4 + 3);
