//! The checkpoint object: an immutable, named state and where it comes from.
//!
//! Floor 1. Pure functions of bytes; the layout is in `CHECKPOINT.md` beside this file. The id of a
//! checkpoint is the hash of these bytes under a key of its own ([`ObjectId::of_checkpoint`]); two
//! checkpoints of equal content share their tree, not their id, since each says when and by whom it was made.
//!
//! Invariants
//! - bytes have one meaning and a checkpoint has one encoding: what decodes encodes to the same bytes.
//! - decoding never panics, whatever the bytes.

use crate::id::{AGENT_NAME_BYTES_MAX, OBJECT_ID_BYTES, ObjectId};

/// Version of the layout.
const VERSION: u8 = 1;
/// Bytes before the parents.
const FIXED_BYTES: usize = 64;
/// Most parents: two for a merge, and room for those of several candidates.
pub const PARENTS_MAX: usize = 8;
/// Most bytes of opaque metadata.
pub const OPAQUE_BYTES_MAX: usize = 16 << 10;
/// Most pairs of metadata.
pub const PAIRS_MAX: usize = 64;
/// Most bytes of the name of a pair.
pub const PAIR_NAME_BYTES_MAX: usize = 255;
/// Most bytes of the text of a pair.
pub const PAIR_TEXT_BYTES_MAX: usize = 4 << 10;
/// Most bytes of all pairs together, lengths included.
pub const PAIRS_BYTES_MAX: usize = 32 << 10;
/// Bytes of the largest checkpoint.
pub const CHECKPOINT_BYTES_MAX: usize = FIXED_BYTES
    + PARENTS_MAX * OBJECT_ID_BYTES
    + 2
    + AGENT_NAME_BYTES_MAX
    + OPAQUE_BYTES_MAX
    + PAIRS_BYTES_MAX;

/// A checkpoint, decoded in place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint<'a> {
    /// The root of its tree.
    pub tree: ObjectId,
    /// Keys in the tree.
    pub keys: u64,
    /// The checkpoints that it follows: none for the first of a history, several for a merge.
    pub parents: Parents<'a>,
    /// The agent that made it.
    pub agent: &'a [u8],
    /// Its place in the log of its shard: orders the checkpoints of a shard, whatever clocks say.
    pub sequence: u64,
    /// Milliseconds since 1970 by the runtime's clock: a label, no order.
    pub wall_ms: u64,
    /// What its maker attached.
    pub metadata: Metadata<'a>,
}

/// What the maker of a checkpoint attaches to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Metadata<'a> {
    /// Any bytes, at most [`OPAQUE_BYTES_MAX`].
    pub opaque: &'a [u8],
    pairs: &'a [u8],
}

/// Bytes that are no checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the bytes are no checkpoint of a known version: {what}")]
pub struct BadCheckpoint {
    /// What is wrong with them.
    pub what: &'static str,
}

/// Metadata that a checkpoint can't hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadMetadata {
    /// Too many bytes, or too many pairs.
    #[error("metadata of {found} {what}; at most {max} are allowed: store the rest as a value")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many may be.
        max: usize,
    },
    /// Bytes that are no pairs: lengths or text.
    #[error("the pairs of the metadata are malformed")]
    Malformed,
}

/// The ids of a checkpoint's parents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parents<'a>(&'a [[u8; OBJECT_ID_BYTES]]);

impl Parents<'_> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it is the first of its history.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ids, the one that the branch pointed at first.
    pub fn iter(&self) -> impl Iterator<Item = ObjectId> {
        self.0.iter().map(|id| ObjectId::from_bytes(*id))
    }
}

impl<'a> Metadata<'a> {
    /// Metadata of bytes and encoded pairs, as [`push_pair`] makes them.
    ///
    /// # Errors
    /// [`BadMetadata`].
    pub fn new(opaque: &'a [u8], pairs: &'a [u8]) -> Result<Self, BadMetadata> {
        let limits = [
            ("bytes", opaque.len(), OPAQUE_BYTES_MAX),
            ("bytes of pairs", pairs.len(), PAIRS_BYTES_MAX),
        ];
        for (what, found, max) in limits {
            if found > max {
                return Err(BadMetadata::TooLarge { what, found, max });
            }
        }
        let (mut rest, mut count) = (pairs, 0);
        while !rest.is_empty() {
            let (_, after) = split_pair(rest).ok_or(BadMetadata::Malformed)?;
            rest = after;
            count += 1;
        }
        if count > PAIRS_MAX {
            return Err(BadMetadata::TooLarge {
                what: "pairs",
                found: count,
                max: PAIRS_MAX,
            });
        }
        Ok(Self { opaque, pairs })
    }

    /// The pairs of name and text, in the order in which they were given.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut rest = self.pairs;
        std::iter::from_fn(move || {
            let (pair, after) = split_pair(rest)?;
            rest = after;
            Some(pair)
        })
    }
}

/// Appends a pair to encoded pairs.
///
/// # Errors
/// [`BadMetadata`] for a name or text that is too long; nothing is appended.
pub fn push_pair(pairs: &mut Vec<u8>, name: &str, text: &str) -> Result<(), BadMetadata> {
    let limits = [
        ("bytes in a name", name.len(), PAIR_NAME_BYTES_MAX),
        ("bytes in a text", text.len(), PAIR_TEXT_BYTES_MAX),
    ];
    for (what, found, max) in limits {
        if found > max {
            return Err(BadMetadata::TooLarge { what, found, max });
        }
    }
    pairs.extend_from_slice(&(name.len() as u16).to_le_bytes());
    pairs.extend_from_slice(&(text.len() as u16).to_le_bytes());
    pairs.extend_from_slice(name.as_bytes());
    pairs.extend_from_slice(text.as_bytes());
    Ok(())
}

/// The first of encoded pairs, and the rest; `None` where there is none, or one that is malformed.
fn split_pair(pairs: &[u8]) -> Option<((&str, &str), &[u8])> {
    let (lengths, rest) = pairs.split_first_chunk::<4>()?;
    let name_bytes = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
    let text_bytes = usize::from(u16::from_le_bytes([lengths[2], lengths[3]]));
    if name_bytes > PAIR_NAME_BYTES_MAX || text_bytes > PAIR_TEXT_BYTES_MAX {
        return None;
    }
    let (name, rest) = rest.split_at_checked(name_bytes)?;
    let (text, rest) = rest.split_at_checked(text_bytes)?;
    let pair = (
        std::str::from_utf8(name).ok()?,
        std::str::from_utf8(text).ok()?,
    );
    Some((pair, rest))
}

/// What [`encode`] is given: as [`Checkpoint`], with the parents as ids.
#[derive(Clone, Copy, Debug)]
pub struct NewCheckpoint<'a> {
    /// See [`Checkpoint::tree`].
    pub tree: ObjectId,
    /// See [`Checkpoint::keys`].
    pub keys: u64,
    /// At most [`PARENTS_MAX`], each once.
    pub parents: &'a [ObjectId],
    /// See [`Checkpoint::agent`].
    pub agent: &'a [u8],
    /// See [`Checkpoint::sequence`].
    pub sequence: u64,
    /// See [`Checkpoint::wall_ms`].
    pub wall_ms: u64,
    /// See [`Checkpoint::metadata`].
    pub metadata: Metadata<'a>,
}

/// Appends the bytes of a checkpoint; at most [`CHECKPOINT_BYTES_MAX`].
///
/// # Panics
/// With more parents or a longer name than a checkpoint holds.
pub fn encode(checkpoint: &NewCheckpoint<'_>, out: &mut Vec<u8>) {
    let NewCheckpoint {
        tree,
        keys,
        parents,
        agent,
        sequence,
        wall_ms,
        metadata,
    } = checkpoint;
    assert!(parents.len() <= PARENTS_MAX && agent.len() <= AGENT_NAME_BYTES_MAX);
    out.extend_from_slice(&[VERSION, parents.len() as u8, agent.len() as u8, 0]);
    out.extend_from_slice(&(metadata.opaque.len() as u32).to_le_bytes());
    for number in [*sequence, *wall_ms, *keys] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(tree.as_bytes());
    for parent in *parents {
        out.extend_from_slice(parent.as_bytes());
    }
    out.extend_from_slice(agent);
    out.extend_from_slice(metadata.opaque);
    out.extend_from_slice(metadata.pairs);
}

impl<'a> Checkpoint<'a> {
    /// Reads the bytes of a checkpoint.
    ///
    /// # Errors
    /// [`BadCheckpoint`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BadCheckpoint> {
        let bad = |what| BadCheckpoint { what };
        let (fixed, rest) = bytes
            .split_first_chunk::<FIXED_BYTES>()
            .ok_or(bad("it is too short"))?;
        let [version, parents, name_bytes, zero, ..] = *fixed;
        if version != VERSION {
            return Err(bad("its version is not 1"));
        }
        if zero != 0 || usize::from(parents) > PARENTS_MAX {
            return Err(bad("its first bytes"));
        }
        let number = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
        let opaque_bytes = u32::from_le_bytes(fixed[4..8].try_into().expect("4 bytes"));
        let (ids, rest) = rest
            .split_at_checked(usize::from(parents) * OBJECT_ID_BYTES)
            .ok_or(bad("it ends in its parents"))?;
        let (agent, rest) = rest
            .split_at_checked(usize::from(name_bytes))
            .ok_or(bad("it ends in the agent's name"))?;
        let (opaque, pairs) = rest
            .split_at_checked(opaque_bytes as usize)
            .ok_or(bad("it ends in its metadata"))?;
        let metadata = Metadata::new(opaque, pairs).map_err(|_| bad("its metadata"))?;
        let tree = fixed[32..].try_into().expect("32 bytes");
        Ok(Self {
            tree: ObjectId::from_bytes(tree),
            keys: number(24),
            parents: Parents(ids.as_chunks().0),
            agent,
            sequence: number(8),
            wall_ms: number(16),
            metadata,
        })
    }
}

const _: () = assert!(AGENT_NAME_BYTES_MAX <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example<'a>(parents: &'a [ObjectId], metadata: Metadata<'a>) -> NewCheckpoint<'a> {
        NewCheckpoint {
            tree: ObjectId::of_blob(b"tree"),
            keys: 1000,
            parents,
            agent: b"planner",
            sequence: 41,
            wall_ms: 1_700_000_000_000,
            metadata,
        }
    }

    #[test]
    fn the_bytes_are_those_in_the_document() {
        let document = include_str!("CHECKPOINT.md");
        let vector = document.split("```").nth(1).expect("the vector");
        let hex: String = vector.split_whitespace().collect();
        let mut pairs = Vec::new();
        push_pair(&mut pairs, "model", "small").unwrap();
        let parents = [ObjectId::of_blob(b"parent")];
        let metadata = Metadata::new(&[1, 2, 3], &pairs).unwrap();
        let mut bytes = Vec::new();
        encode(&example(&parents, metadata), &mut bytes);
        let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, hex);
        let id = ObjectId::of_checkpoint(&bytes).to_string();
        assert!(document.contains(&id), "{id}");
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let large = vec![0; OPAQUE_BYTES_MAX + 1];
        assert!(Metadata::new(&large[1..], &[]).is_ok());
        let error = Metadata::new(&large, &[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "metadata of 16385 bytes; at most 16384 are allowed: store the rest as a value"
        );
        let mut pairs = Vec::new();
        assert!(push_pair(&mut pairs, &"n".repeat(256), "").is_err());
        assert!(push_pair(&mut pairs, "", &"t".repeat(4097)).is_err());
        assert!(pairs.is_empty());
        for _ in 0..=PAIRS_MAX {
            push_pair(&mut pairs, "a", "b").unwrap();
        }
        assert!(Metadata::new(&[], &pairs).is_err());
        assert!(Metadata::new(&[], &pairs[6..]).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(
            parents in prop::collection::vec(any::<[u8; 32]>(), 0..=PARENTS_MAX),
            opaque in prop::collection::vec(any::<u8>(), 0..100),
            texts in prop::collection::vec((".{0,20}", ".{0,20}"), 0..10),
            numbers in any::<[u64; 3]>(),
        ) {
            let parents: Vec<_> = parents.into_iter().map(ObjectId::from_bytes).collect();
            let mut pairs = Vec::new();
            for (name, text) in &texts {
                push_pair(&mut pairs, name, text).unwrap();
            }
            let metadata = Metadata::new(&opaque, &pairs).unwrap();
            let [keys, sequence, wall_ms] = numbers;
            let new = NewCheckpoint { keys, sequence, wall_ms, ..example(&parents, metadata) };
            let mut bytes = Vec::new();
            encode(&new, &mut bytes);
            prop_assert!(bytes.len() <= CHECKPOINT_BYTES_MAX);
            let found = Checkpoint::decode(&bytes).unwrap();
            prop_assert_eq!(found.tree, new.tree);
            prop_assert_eq!([found.keys, found.sequence, found.wall_ms], numbers);
            prop_assert!(found.parents.iter().eq(parents.iter().copied()));
            prop_assert_eq!(found.agent, new.agent);
            prop_assert_eq!(found.metadata.opaque, &opaque[..]);
            let found: Vec<_> = found.metadata.pairs().collect();
            let wanted: Vec<_> = texts.iter().map(|(a, b)| (&**a, &**b)).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn any_bytes_are_refused_or_have_one_encoding(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            tame in any::<bool>(),
        ) {
            if tame && bytes.len() > 8 {
                bytes[0] = VERSION;
                bytes[1] %= 3;
                bytes[2] %= 20;
                bytes[3..8].fill(0);
            }
            if let Ok(found) = Checkpoint::decode(&bytes) {
                let parents: Vec<_> = found.parents.iter().collect();
                let mut again = Vec::new();
                encode(&NewCheckpoint {
                    tree: found.tree,
                    keys: found.keys,
                    parents: &parents,
                    agent: found.agent,
                    sequence: found.sequence,
                    wall_ms: found.wall_ms,
                    metadata: found.metadata,
                }, &mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
