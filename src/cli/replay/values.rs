//! What the agents' values are: sizes and bytes, all from the seed, checked byte for byte.
//!
//! Floor 5, part of `replay`. Pure functions of (seed, owner, key, version).
//!
//! Invariants
//! - a value is JSON text that names its owner, key and version, and every [`RECORD_BYTES`] of it
//!   carry a stamp of all of these and of their place: no piece of a value passes for another.
//! - sizes are log-normal, median [`MEDIAN_BYTES`], sigma [`SIGMA`], within [`BYTES_MIN`] and
//!   [`BYTES_MAX`]; they depend on owner and key, not on the version.
//!
//! Cost: a fill or a check moves each byte once, about 10 ns for 128 bytes, no allocation.

/// Half of the values are smaller, in bytes.
pub(super) const MEDIAN_BYTES: f64 = 2048.0;
/// Spread of the logarithm of the sizes: two thirds lie within a factor of e of the median.
pub(super) const SIGMA: f64 = 1.0;
/// Smallest value: one without a record.
pub(super) const BYTES_MIN: u32 = 96;
/// Largest value.
pub(super) const BYTES_MAX: u32 = 64 << 10;
/// The owner of what many agents read.
pub(super) const COMMONS: u32 = u32::MAX;

const RECORD_BYTES: usize = 128;
const RECORDS: usize = 256;
const HEAD_BYTES: usize = 86;
const TAIL: &[u8] = b"]}";
/// Where in a record its stamp stands: after `,{"id":"`.
const STAMP_AT: usize = 8;
const STAMP_BYTES: usize = 16;

/// One version of one key of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ValueId {
    /// The agent's number, or [`COMMONS`].
    pub(super) owner: u32,
    /// [`key_hash`] of the key.
    pub(super) key_hash: u64,
    /// 0 is what was there at first.
    pub(super) version: u32,
}

/// A value that is not what must be there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected version {} in {expected_bytes} bytes, found {found_bytes} bytes that differ from byte {at} on, beginning {found_head:?}",
    expected.version
)]
pub(super) struct Mismatch {
    expected: ValueId,
    expected_bytes: usize,
    found_bytes: usize,
    at: usize,
    found_head: String,
}

/// Makes and checks values.
#[derive(Debug)]
pub(super) struct Values {
    seed: u64,
    /// Records without their stamps; small enough to stay in a core's own cache.
    pool: Vec<[u8; RECORD_BYTES]>,
}

/// Name of a key within values.
pub(super) fn key_hash(key: &[u8]) -> u64 {
    key.chunks(8).fold(mix(key.len() as u64), |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash ^ u64::from_le_bytes(word))
    })
}

/// A step of splitmix64: every bit of the answer depends on every bit of the number.
pub(super) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A number above 0, at most 1, from 64 random bits.
pub(super) fn unit(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
}

impl Values {
    /// Those of one seed.
    pub(super) fn new(seed: u64) -> Self {
        let seed = mix(seed);
        let pool = (0..RECORDS as u64).map(|index| record(mix(seed ^ index)));
        Self {
            seed,
            pool: pool.collect(),
        }
    }

    /// How many bytes every version of a key has.
    pub(super) fn bytes(&self, owner: u32, key_hash: u64) -> u32 {
        let first = mix(self.seed ^ mix(key_hash ^ u64::from(owner)));
        let (radius, angle) = (unit(first), unit(mix(first)));
        let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        let bytes = MEDIAN_BYTES * (SIGMA * normal).exp();
        (bytes as u32).clamp(BYTES_MIN, BYTES_MAX)
    }

    /// Replaces `value` by the bytes of this version.
    pub(super) fn fill(&self, id: ValueId, bytes: u32, value: &mut Vec<u8>) {
        let bytes = bytes as usize;
        value.clear();
        value.reserve(bytes);
        value.extend_from_slice(&head(id));
        let mut stamp = self.stamp(id);
        for _ in 0..record_count(bytes) {
            stamp = mix(stamp);
            value.extend_from_slice(&self.stamped(stamp));
        }
        value.resize(bytes - TAIL.len(), b' ');
        value.extend_from_slice(TAIL);
    }

    /// Are these the bytes of this version, all of them?
    pub(super) fn check(&self, id: ValueId, bytes: u32, found: &[u8]) -> Result<(), Mismatch> {
        if self.is(id, bytes as usize, found) {
            return Ok(());
        }
        let mut expected = Vec::new();
        self.fill(id, bytes, &mut expected);
        let same = expected.iter().zip(found).take_while(|(a, b)| a == b);
        Err(Mismatch {
            expected: id,
            expected_bytes: expected.len(),
            found_bytes: found.len(),
            at: same.count(),
            found_head: String::from_utf8_lossy(&found[..found.len().min(HEAD_BYTES)]).into_owned(),
        })
    }

    fn is(&self, id: ValueId, bytes: usize, found: &[u8]) -> bool {
        let records_end = HEAD_BYTES + record_count(bytes) * RECORD_BYTES;
        if found.len() != bytes || found[..HEAD_BYTES] != head(id) {
            return false;
        }
        let mut stamp = self.stamp(id);
        let records = found[HEAD_BYTES..records_end].chunks_exact(RECORD_BYTES);
        let mut same = true;
        for record in records {
            stamp = mix(stamp);
            same &= record == self.stamped(stamp);
        }
        let (padding, tail) = found[records_end..].split_at(bytes - records_end - TAIL.len());
        same && padding.iter().all(|byte| *byte == b' ') && tail == TAIL
    }

    fn stamp(&self, id: ValueId) -> u64 {
        let place = u64::from(id.owner) << 32 | u64::from(id.version);
        mix(self.seed ^ mix(id.key_hash ^ mix(place)))
    }

    fn stamped(&self, stamp: u64) -> [u8; RECORD_BYTES] {
        let mut record = self.pool[stamp as usize % RECORDS];
        record[STAMP_AT..STAMP_AT + STAMP_BYTES].copy_from_slice(&hex(stamp));
        record
    }
}

const fn record_count(bytes: usize) -> usize {
    (bytes - HEAD_BYTES - TAIL.len()) / RECORD_BYTES
}

const _: () = assert!(BYTES_MIN as usize >= HEAD_BYTES + TAIL.len());

/// `{"agent":"0000002a","key":"0123456789abcdef","version":"00000007","size":"","items":[{}`, so to
/// speak: always the same length.
fn head(id: ValueId) -> [u8; HEAD_BYTES] {
    let mut head =
        *br#"{"agent":"________","key":"________________","version":"________","turn":[],"items":[0"#;
    head[10..18].copy_from_slice(&hex(u64::from(id.owner))[8..]);
    head[27..43].copy_from_slice(&hex(id.key_hash));
    head[56..64].copy_from_slice(&hex(u64::from(id.version))[8..]);
    head
}

/// One item of a state as agents keep them, without its stamp.
fn record(mut random: u64) -> [u8; RECORD_BYTES] {
    const ROLES: [&str; 4] = ["user", "assistant", "tool", "system"];
    const WORDS: [&str; 16] = [
        "plan", "search", "open", "file", "result", "error", "retry", "test", "passed", "branch",
        "merge", "state", "the", "of", "and", "done",
    ];
    let role = ROLES[random as usize % ROLES.len()];
    let mut text = format!(r#",{{"id":"________________","role":"{role}","text":""#);
    let end = r#""}"#;
    while text.len() < RECORD_BYTES - end.len() {
        random = mix(random);
        text.push_str(WORDS[random as usize % WORDS.len()]);
        text.push(' ');
    }
    text.truncate(RECORD_BYTES - end.len());
    text.push_str(end);
    let mut record = [0; RECORD_BYTES];
    record.copy_from_slice(text.as_bytes());
    record
}

fn hex(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    let bytes = number.to_be_bytes();
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(owner: u32, key: &[u8], version: u32) -> ValueId {
        ValueId {
            owner,
            key_hash: key_hash(key),
            version,
        }
    }

    fn value(values: &Values, id: ValueId, bytes: u32) -> Vec<u8> {
        let mut value = vec![1, 2, 3];
        values.fill(id, bytes, &mut value);
        value
    }

    proptest! {
        #[test]
        fn a_value_is_json_and_only_itself(
            seed: u64, owner: u32, key: Vec<u8>, version: u32,
            bytes in BYTES_MIN..5000, at: prop::sample::Index, flip in 1..=255_u8,
        ) {
            let values = Values::new(seed);
            let id = id(owner, &key, version);
            let mut found = value(&values, id, bytes);
            prop_assert_eq!(found.len(), bytes as usize);
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&found).is_ok());
            prop_assert_eq!(values.check(id, bytes, &found), Ok(()));
            let at = at.index(found.len());
            found[at] ^= flip;
            let mismatch = values.check(id, bytes, &found).unwrap_err();
            prop_assert_eq!(mismatch.at, at);
            found[at] ^= flip;
            found.pop();
            prop_assert!(values.check(id, bytes, &found).is_err());
        }
    }

    #[test]
    fn another_seed_owner_key_or_version_is_another_value() {
        let values = Values::new(7);
        let right = id(3, b"/key", 1);
        let found = value(&values, right, 2000);
        for wrong in [id(4, b"/key", 1), id(3, b"/kez", 1), id(3, b"/key", 2)] {
            assert!(values.check(wrong, 2000, &found).is_err());
            // Not by the head alone: every record differs.
            let other = value(&values, wrong, 2000);
            let body = |value: &[u8]| value[HEAD_BYTES..HEAD_BYTES + 14 * RECORD_BYTES].to_vec();
            for (a, b) in body(&found)
                .chunks(RECORD_BYTES)
                .zip(body(&other).chunks(RECORD_BYTES))
            {
                assert_ne!(a, b);
            }
        }
        assert!(Values::new(8).check(right, 2000, &found).is_err());
        assert!(values.check(right, 2000, &[]).is_err());
    }

    #[test]
    fn a_mismatch_says_what_was_found() {
        let values = Values::new(1);
        let found = value(&values, id(3, b"/key", 1), 500);
        let message = values
            .check(id(3, b"/key", 2), 500, &found)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("expected version 2 in 500 bytes"),
            "{message}"
        );
        assert!(message.contains(r#"version\":\"00000001"#), "{message}");
    }

    #[test]
    fn sizes_are_spread_as_stated() {
        let values = Values::new(1);
        let mut sizes: Vec<u32> = (0..20_000_u32)
            .map(|key| values.bytes(key % 850, key_hash(&key.to_le_bytes())))
            .collect();
        sizes.sort_unstable();
        let at = |share: f64| f64::from(sizes[(share * 20_000.0) as usize]);
        assert!((at(0.5) / MEDIAN_BYTES - 1.0).abs() < 0.05, "{}", at(0.5));
        assert!((at(0.8413) / at(0.5) / SIGMA.exp() - 1.0).abs() < 0.05);
        assert!(sizes[0] >= BYTES_MIN && sizes[19_999] <= BYTES_MAX);
    }
}
