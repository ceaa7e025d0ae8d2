//! What a client wrote that no correct client writes, rule by rule.
//!
//! Floor 1, room `agent`. The error of the lanes' entries and counts, and nothing else: frames,
//! sockets and regions have their own.

use crate::agent::entry::Op;
use crate::agent::packed::PackedError;

/// What a client wrote that no correct client writes. Its session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The next slot holds neither the next entry nor what was there a lap ago.
    #[error("submission tag {found:#010x} where {expected:#010x} was due")]
    Tag {
        /// Tag of the next entry.
        expected: u32,
        /// Tag in the slot.
        found: u32,
    },
    /// No such operation.
    #[error("unknown operation {found}")]
    Op {
        /// The byte.
        found: u8,
    },
    /// A flag that is unknown, or not for this operation.
    #[error("flags {found:#04x} on {op:?}")]
    Flags {
        /// The operation.
        op: Op,
        /// The byte.
        found: u8,
    },
    /// No such durability.
    #[error("unknown durability {found}")]
    Durability {
        /// The byte.
        found: u8,
    },
    /// A call that is none, or has something behind it.
    #[error("the bytes are no call that this version knows")]
    Call,
    /// Something where zero must be.
    #[error("reserved bytes of a submission are not zero")]
    Reserved,
    /// A field the operation doesn't use is not zero.
    #[error("{field} is not used by {op:?} and must be zero")]
    Unused {
        /// The operation.
        op: Op,
        /// The field.
        field: &'static str,
    },
    /// An extent that is too short or too long for the operation (an unused one: not zero).
    #[error("{field} of {len} bytes, not in {min}..={max}")]
    Length {
        /// Which extent.
        field: &'static str,
        /// Its length.
        len: u32,
        /// Shortest allowed.
        min: u32,
        /// Longest allowed.
        max: u32,
    },
    /// An extent that is not inside its arena.
    #[error("{field} at {offset}, {len} bytes, outside an arena of {arena_bytes}")]
    Place {
        /// Which extent.
        field: &'static str,
        /// Where it begins.
        offset: u32,
        /// Its length.
        len: u32,
        /// Size of the arena.
        arena_bytes: u32,
    },
    /// A part that ends after its value, or compares before the last.
    #[error("part of {len} bytes at {offset} of a value of {total}")]
    Part {
        /// Where it begins.
        offset: u64,
        /// Its length.
        len: u32,
        /// Length of the whole value.
        total: u64,
    },
    /// The count of read completions went backwards, or beyond those posted.
    #[error("completions consumed: {found}, not in {from}..={posted}")]
    Consumed {
        /// What the count was before.
        from: u64,
        /// Completions posted.
        posted: u64,
        /// The count found.
        found: u64,
    },
    /// A submission whose completion would have no slot.
    #[error("more than {ring_slots} submissions without their completions read")]
    Overfull {
        /// Entries of a ring.
        ring_slots: u32,
    },
    /// The count of reported hits went backwards.
    #[error("hits reported: {found} after {from}")]
    Hits {
        /// The count before.
        from: u64,
        /// The count found.
        found: u64,
    },
    /// Keys or pairs that are not packed as they must be.
    #[error("packed request: {0}")]
    Packed(#[from] PackedError),
}
