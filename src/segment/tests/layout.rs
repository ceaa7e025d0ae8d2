//! The byte layout: round trips, vectors, hostile bytes.
//!
//! Floor 1, tests only.

use proptest::prelude::*;

use super::*;
use crate::id::{BranchNo, KEY_BYTES_MAX, SetNo};
use crate::segment::footer::{Footer, Trailer};
use crate::segment::format::{
    FORMAT_VERSION, FORMAT_VERSION_MIN, Invalid, RECORD_BYTES_MAX, SEGMENT_HEADER_BYTES,
    SYNCED_BYTES, decode, encode, synced_at,
};
use crate::segment::header::{BadHeader, SegmentHeader};

const HEADER: SegmentHeader = SegmentHeader {
    version: FORMAT_VERSION,
    shard: SHARD,
    segment: SegmentNo(7),
    log_id: CONFIG.log_id,
    first: Sequence(41),
    take: 2,
    previous: 0xfeed_beef,
    settled: SegmentNo(5),
    synced: Sequence(40),
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn a_record_reads_back(seed: u64, sequence: u64, take: u32, start: u32, cut: usize) {
        let owned = match seed % 9 {
            0 => Owned::Synced(seed >> 8, sequence),
            1 => Owned::random_dropped(&mut Random(seed)),
            _ => Owned::random(&mut Random(seed)),
        };
        let record = owned.record();
        let mut bytes = vec![0xaa; 8];
        let encoded = encode(&record, Sequence(sequence), take, start, &mut bytes);
        let bytes = &bytes[8..];
        prop_assert!(bytes.len() == record.record_bytes() && bytes.len() <= RECORD_BYTES_MAX);
        let decoded = decode(bytes, start).unwrap();
        prop_assert_eq!(decoded.head, record.head);
        prop_assert_eq!((decoded.sequence.0, decoded.take), (sequence, take));
        prop_assert_eq!(decoded.record_bytes as usize, bytes.len());
        prop_assert_eq!(decoded.checksum, encoded.checksum);
        let payload = decoded.payload_bytes.map(|length| {
            &bytes[encoded.head_bytes..encoded.head_bytes + length as usize]
        });
        prop_assert_eq!(payload, record.payload);
        prop_assert!(payload.is_none_or(|payload| decoded.head.verify(payload)));
        // Cut short, or behind other bytes, it is no record.
        let cut = cut % encoded.head_bytes;
        prop_assert_eq!(decode(&bytes[..cut], start), Err(Invalid::NotARecord));
        prop_assert_eq!(decode(bytes, start ^ 1), Err(Invalid::NotARecord));
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes: Vec<u8>, start: u32) {
        prop_assert!(decode(&bytes, start).is_err());
        prop_assert_eq!(synced_at(&bytes, CONFIG.log_id), None);
    }
}

#[test]
fn limits_are_the_formats() {
    let key = vec![7; KEY_BYTES_MAX + 1];
    let delete = |length: usize| {
        Record::from(Head::Delete {
            branch: BranchNo(0),
            agent: AgentNo(1),
            key: &key[..length],
        })
    };
    assert!(delete(KEY_BYTES_MAX).within_limits());
    assert!(!delete(KEY_BYTES_MAX + 1).within_limits());
    let payload = vec![0; super::super::format::PAYLOAD_BYTES_MAX + 1];
    let object = |length: usize| Record {
        head: Head::Object {
            kept: false,
            kind: ObjectKind::Blob,
            id: ObjectId::of_blob(b""),
        },
        payload: Some(&payload[..length]),
    };
    assert!(object(payload.len() - 1).within_limits());
    assert!(!object(payload.len()).within_limits());
    for (first, last, fits) in [
        (1, 1, true),
        (1, u32::MAX, true),
        (0, 3, false),
        (3, 2, false),
    ] {
        let dropped = Owned::Dropped(first, last, 1);
        assert_eq!(dropped.record().within_limits(), fits, "{dropped:?}");
    }
    let tag = Head::Tag {
        agent: AgentNo(1),
        public: true,
        name: b"v1",
        target: None,
    };
    assert!(!Record::from(tag).within_limits());
    let agent = Record {
        payload: Some(b""),
        ..Record::from(Head::AgentGone { agent: AgentNo(1) })
    };
    assert!(!agent.within_limits());
}

/// The vectors of `FORMAT.md`; they were computed there by other code.
#[test]
fn the_bytes_are_those_of_the_document() {
    assert_eq!(hex(&HEADER.encode()), VECTOR_HEADER);
    let put = Owned::put(9, b"key", b"state");
    let (agent, id) = (AgentNo(9), ObjectId::of_blob(b"state"));
    let heads = [
        Head::Agent {
            agent,
            public: true,
            moves: 3,
            name: b"planner",
        },
        Owned::Synced(42, 43).head(),
        Head::Tag {
            agent,
            public: true,
            name: b"v1",
            target: Some(id),
        },
        Head::AgentGone { agent },
        Head::Retention {
            agent,
            branch: BranchNo(2),
            rule: Retention::Last(10),
        },
        Head::Adopted {
            agent,
            target: id,
            gone: false,
        },
        Head::Hot {
            agent,
            list: Some(id),
        },
        Head::Dropped {
            first: SegmentNo(2),
            last: SegmentNo(4),
            from: Sequence(11),
        },
    ];
    let records = [put.record()].into_iter().chain(heads.map(Record::from));
    let (mut footer, mut end) = (Footer::default(), SEGMENT_HEADER_BYTES);
    let mut seed = HEADER.checksum();
    for ((record, vector), sequence) in records.zip(VECTOR_RECORDS).zip(41..) {
        let mut bytes = Vec::new();
        let encoded = encode(&record, Sequence(sequence), 2, seed, &mut bytes);
        assert_eq!(hex(&bytes), vector, "{:?}", record.head);
        let decoded = decode(&bytes, seed).unwrap();
        assert_eq!(decoded.head, record.head);
        footer.push(&bytes[..encoded.head_bytes]);
        (seed, end) = (encoded.checksum, end + bytes.len());
    }
    let footer = footer.finish(Sequence(41), end as u32, seed, HEADER.checksum());
    assert_eq!(hex(footer.last_chunk::<48>().unwrap()), VECTOR_TRAILER);
    assert_eq!(footer.len(), 501 + 48);
}

const VECTOR_HEADER: &str = "48454c494f53454702000000030000000700000002000000efcdab89674523012900000000000000efbeedfe05000000280000000000000000000000f8408feb";
const VECTOR_RECORDS: [&str; 9] = [
    "065d3ec5020303002900000000000000090000000000000005000000020000000500000000000000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae826b65797374617465",
    "c09f7a4e010807002a00000000000000090000000300000000000000020000000000000000000000706c616e6e657200",
    "ef3c5dba050000002b000000000000005765f622716f2eea00000000020000002a00000000000000",
    "5b32f079080902002c00000000000000090000000000000000000000020000000000000000000000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae827631000000000000",
    "dbb8100f090000002d00000000000000090000000000000000000000020000000000000000000000",
    "d737d4000a0001002e00000000000000090000000200000000000000020000000a000000000000000100000000000000",
    "d26b47cd0b4100002f00000000000000090000000000000000000000020000000000000000000000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae82",
    "d44a4f620c0100003000000000000000090000000000000000000000020000000000000000000000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae82",
    "e5cbd1e20d0000003100000000000000020000000400000000000000020000000b00000000000000",
];
const VECTOR_TRAILER: &str = "48454c494f465452290000000000000031000000000000000900000048020000f5010000e5cbd1e20000000099858809";

/// The same of sets.
#[test]
fn the_bytes_of_sets_are_those_of_the_document() {
    let (agent, id) = (AgentNo(9), ObjectId::of_blob(b"state"));
    let (branch, wall_ms) = (BranchNo(2), 1_700_000_000_000);
    let heads = [
        Head::Set {
            agent,
            set: SetNo(4),
            branch,
            origin: Some(id),
            half_life_ms: 60_000,
            ttl_ms: 3_600_000,
            bound_bits: 0.5f64.to_bits(),
            wall_ms,
            name: b"tries",
        },
        Head::Candidate {
            agent,
            set: SetNo(4),
            candidate: 1,
            head: id,
            tree: id,
            weight_bits: 2.5f64.to_bits(),
            wall_ms: wall_ms + 1,
            label: b"a",
        },
        Head::SetGone {
            agent,
            set: SetNo(4),
            collapse: Some(Collapse {
                branch,
                head: id,
                tree: id,
            }),
            wall_ms: wall_ms + 2,
        },
        Head::SetGone {
            agent,
            set: SetNo(5),
            collapse: None,
            wall_ms: wall_ms + 3,
        },
    ];
    let mut seed = HEADER.checksum();
    for ((head, vector), sequence) in heads.into_iter().zip(VECTOR_SETS).zip(41..) {
        let mut bytes = Vec::new();
        let encoded = encode(&head.into(), Sequence(sequence), 2, seed, &mut bytes);
        assert_eq!(hex(&bytes), vector, "{head:?}");
        assert_eq!(decode(&bytes, seed).unwrap().head, head);
        seed = encoded.checksum;
    }
}

const VECTOR_SETS: [&str; 4] = [
    "246c462c0e0121002900000000000000090000000400000000000000020000000068e5cf8b010000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae820200000060ea00000000000080ee360000000000000000000000e03f747269657300000000000000",
    "09af2fd70f012d002a00000000000000090000000400000000000000020000000168e5cf8b010000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae82456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae8201000000000000000000044061000000",
    "716db477100124002b00000000000000090000000400000000000000020000000268e5cf8b010000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae82456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae820200000000000000",
    "5d43e7d5100000002c00000000000000090000000500000000000000020000000368e5cf8b010000",
];

/// The same of a checkpoint that is none any more.
#[test]
fn the_bytes_of_a_pruned_checkpoint_are_those_of_the_document() {
    let id = ObjectId::of_blob(b"state");
    let head = Head::Pruned { id };
    let mut bytes = Vec::new();
    encode(&head.into(), Sequence(41), 2, HEADER.checksum(), &mut bytes);
    assert_eq!(hex(&bytes), VECTOR_PRUNED);
    assert_eq!(decode(&bytes, HEADER.checksum()).unwrap().head, head);
}

const VECTOR_PRUNED: &str = "357a89bc110100002900000000000000000000000000000000000000020000000000000000000000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae82";

/// Of version 1: what is now `settled` was zero.
#[test]
fn a_header_of_the_version_before_is_read() {
    let bytes: Vec<u8> = (0..VECTOR_HEADER_V1.len() / 2)
        .map(|at| u8::from_str_radix(&VECTOR_HEADER_V1[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let header = SegmentHeader::decode(bytes.first_chunk().unwrap()).unwrap();
    let expected = SegmentHeader {
        version: FORMAT_VERSION_MIN,
        settled: SegmentNo(0),
        ..HEADER
    };
    assert_eq!(header, expected);
    // The seed of its records is the checksum that it was written with.
    assert_eq!(
        hex(&header.checksum().to_le_bytes()),
        VECTOR_HEADER_V1[120..]
    );
    for found in [0, FORMAT_VERSION + 1, u32::MAX] {
        let other = SegmentHeader {
            version: found,
            ..HEADER
        };
        let refused = SegmentHeader::decode(&other.encode());
        assert_eq!(refused, Err(BadHeader::Newer { found }));
    }
}

const VECTOR_HEADER_V1: &str = "48454c494f53454701000000030000000700000002000000efcdab89674523012900000000000000efbeedfe00000000280000000000000000000000f999832b";

/// A record of each kind with its checksum made good again after a change of its header: whatever
/// decodes means what it says, and no two heads have the same bytes.
#[test]
fn fields_that_a_kind_does_not_have_are_refused() {
    let mut random = Random(11);
    let (mut refused, mut read) = (0, 0);
    for turn in 0..40_000 {
        let mut bytes = Vec::new();
        let owned = match turn % 13 {
            0 => Owned::random_dropped(&mut random),
            _ => Owned::random(&mut random),
        };
        let record = owned.record();
        let head_bytes = record.head.head_bytes();
        encode(&record, Sequence(5), 0, 9, &mut bytes);
        let at = [4, 5, 16 + random.below(8), 32 + random.below(8)][turn % 4];
        bytes[at] ^= 1 << random.below(8);
        let id_changed = at == 5 && (bytes[5] ^ 1) & 1 == 0;
        let sum = super::super::format::checksum(9, &bytes[4..head_bytes]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        let Ok(decoded) = decode(&bytes, 9) else {
            refused += 1;
            continue;
        };
        read += 1;
        assert!(!id_changed || decoded.head_bytes as usize == head_bytes);
        let payload_at = decoded.head_bytes as usize;
        let payload = decoded
            .payload_bytes
            .map(|length| &bytes[payload_at..payload_at + length as usize]);
        let again = Record {
            head: decoded.head,
            payload,
        };
        assert!(again.within_limits(), "{again:?}");
        let mut written = Vec::new();
        encode(&again, Sequence(5), 0, 9, &mut written);
        assert_eq!(hex(&written[..head_bytes]), hex(&bytes[..head_bytes]));
    }
    assert!(refused > 5_000 && read > 5_000, "{refused} {read}");
}

/// What a record says of the device is believed wherever it lies, and nothing else is.
#[test]
fn a_synced_record_speaks_for_itself_and_only_for_its_log() {
    let record = Owned::Synced(1000, 1003);
    let mut bytes = Vec::new();
    encode(&record.record(), Sequence(1003), 1, 77, &mut bytes);
    assert_eq!(bytes.len(), SYNCED_BYTES);
    assert_eq!(synced_at(&bytes, CONFIG.log_id), Some(Sequence(1000)));
    assert_eq!(synced_at(&bytes, LogId(1)), None, "another log");
    assert_eq!(synced_at(&bytes[..39], CONFIG.log_id), None);
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // The chain's checksum, the payload's length and the take say nothing here.
        let covered = matches!(bit / 8, 4..24 | 32..40);
        assert_eq!(
            synced_at(&bad, CONFIG.log_id).is_none(),
            covered,
            "bit {bit}"
        );
    }
}

#[test]
fn a_header_or_trailer_with_one_bit_changed_is_refused() {
    let good = HEADER.encode();
    assert_eq!(SegmentHeader::decode(&good), Ok(HEADER));
    for bit in 0..good.len() * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        let expected = if bit < 64 {
            BadHeader::Magic
        } else {
            BadHeader::Checksum
        };
        assert_eq!(SegmentHeader::decode(&bad), Err(expected), "bit {bit}");
    }
    let trailer = Trailer {
        first: Sequence(1),
        last: Sequence(2),
        count: 2,
        data_end: 500,
        heads_bytes: 100,
        last_checksum: 9,
    };
    let good = trailer.encode(5);
    assert_eq!(Trailer::decode(&good, 5), Some(trailer));
    assert_eq!(Trailer::decode(&good, 6), None);
    for bit in 0..good.len() * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Trailer::decode(&bad, 5), None, "bit {bit}");
    }
}

#[test]
fn a_valid_record_of_an_unknown_kind_is_told_apart() {
    let mut bytes = Vec::new();
    encode(
        &Owned::Delete(1, b"k".to_vec()).record(),
        Sequence(1),
        0,
        0,
        &mut bytes,
    );
    bytes[4] = 77;
    let checksum = crc32fast::hash(&bytes[4..41]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(
        decode(&bytes, 0),
        Err(Invalid::Unknown { kind: 77, flags: 0 })
    );
}
