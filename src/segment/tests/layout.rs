//! The byte layout: round trips, vectors, hostile bytes.
//!
//! Floor 1, tests only.

use proptest::prelude::*;

use super::*;
use crate::id::{BranchNo, KEY_BYTES_MAX};
use crate::segment::footer::{Footer, Trailer};
use crate::segment::format::{
    BadHeader, Invalid, RECORD_BYTES_MAX, SYNCED_BYTES, SegmentHeader, decode, encode, synced_at,
};

const HEADER: SegmentHeader = SegmentHeader {
    shard: SHARD,
    segment: SegmentNo(7),
    log_id: CONFIG.log_id,
    first: Sequence(41),
    take: 2,
    previous: 0xfeed_beef,
    synced: Sequence(40),
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

proptest! {
    #[test]
    fn a_record_reads_back(seed: u64, sequence: u64, take: u32, start: u32, cut: usize) {
        let owned = match seed % 9 {
            0 => Owned::Synced(seed >> 8),
            _ => Owned::random(&mut Random(seed)),
        };
        let record = owned.record();
        let mut bytes = vec![0xaa; 8];
        let encoded = encode(&record, Sequence(sequence), take, start, &mut bytes);
        let bytes = &bytes[8..];
        prop_assert!(bytes.len() == record.record_bytes() && bytes.len() <= RECORD_BYTES_MAX);
        let decoded = decode(bytes, start).unwrap();
        prop_assert_eq!(decoded.head, record.head());
        prop_assert_eq!((decoded.sequence.0, decoded.take), (sequence, take));
        prop_assert_eq!(decoded.record_bytes as usize, bytes.len());
        prop_assert_eq!(decoded.checksum, encoded.checksum);
        let payload = decoded.payload_bytes.map(|length| {
            &bytes[encoded.head_bytes..encoded.head_bytes + length as usize]
        });
        prop_assert_eq!(payload, record.payload());
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
    let delete = |length: usize| Record::Delete {
        branch: BranchNo(0),
        agent: AgentNo(1),
        key: &key[..length],
    };
    assert!(delete(KEY_BYTES_MAX).within_limits());
    assert!(!delete(KEY_BYTES_MAX + 1).within_limits());
    let payload = vec![0; super::super::format::PAYLOAD_BYTES_MAX + 1];
    let object = |length: usize| Record::Object {
        kept: false,
        kind: ObjectKind::Blob,
        id: ObjectId::of_blob(b""),
        payload: Some(&payload[..length]),
    };
    assert!(object(payload.len() - 1).within_limits());
    assert!(!object(payload.len()).within_limits());
}

/// The vectors of `FORMAT.md`; they were computed there by other code.
#[test]
fn the_bytes_are_those_of_the_document() {
    assert_eq!(hex(&HEADER.encode()), VECTOR_HEADER);
    let seed = HEADER.checksum();
    let put = Owned::put(9, b"key", b"state");
    let mut bytes = Vec::new();
    let first = encode(&put.record(), Sequence(41), 2, seed, &mut bytes);
    assert_eq!(hex(&bytes), VECTOR_PUT);
    let mut footer = Footer::default();
    footer.push(&bytes[..first.head_bytes]);
    let mut bytes = Vec::new();
    let agent = Record::Agent {
        agent: AgentNo(9),
        public: true,
        name: b"planner",
    };
    let last = encode(&agent, Sequence(42), 2, first.checksum, &mut bytes);
    assert_eq!(hex(&bytes), VECTOR_AGENT);
    footer.push(&bytes[..last.head_bytes]);
    let synced = Owned::Synced(42);
    let mut bytes = Vec::new();
    let last = encode(&synced.record(), Sequence(43), 2, last.checksum, &mut bytes);
    assert_eq!(hex(&bytes), VECTOR_SYNCED);
    footer.push(&bytes[..last.head_bytes]);
    let footer = footer.finish(Sequence(41), 64 + 80 + 48 + 40, last.checksum, seed);
    assert_eq!(hex(footer.last_chunk::<48>().unwrap()), VECTOR_TRAILER);
    assert_eq!(footer.len(), 75 + 47 + 40 + 48);
}

const VECTOR_HEADER: &str = "48454c494f53454701000000030000000700000002000000efcdab89674523012900000000000000efbeedfe00000000280000000000000000000000f999832b";
const VECTOR_PUT: &str = "a58cadb0020303002900000000000000090000000000000005000000020000000500000000000000456cf7f1bcf2d3dc53ec88b93f05b0053490b07906a459b9a7447744bf3bae826b65797374617465";
const VECTOR_AGENT: &str = "040f2153010807002a00000000000000090000000000000000000000020000000000000000000000706c616e6e657200";
const VECTOR_SYNCED: &str =
    "6ed403f2050000002b000000000000005765f622716f2eea00000000020000002a00000000000000";
const VECTOR_TRAILER: &str = "48454c494f46545229000000000000002b0000000000000003000000e8000000a20000006ed403f200000000c5dafb6c";

/// What a record says of the device is believed wherever it lies, and nothing else is.
#[test]
fn a_synced_record_speaks_for_itself_and_only_for_its_log() {
    let record = Owned::Synced(1000);
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
        &Record::Delete {
            branch: BranchNo(0),
            agent: AgentNo(1),
            key: b"k",
        },
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
