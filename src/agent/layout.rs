//! Where everything lies in the shared regions: offsets, sizes, limits, tags.
//!
//! Floor 1, room `agent`. Numbers only: nothing here touches memory. `PROTOCOL.md` says the same
//! in prose; the assertions at the end hold the two together.
//!
//! Invariants
//! - every word that one side polls while the other side writes elsewhere has its own cache line.
//! - all integers are little-endian; offsets in entries are counted from the start of their arena.
//! - a lane's first value bytes share a page with its header, so that a lane used one small
//!   operation at a time keeps four pages in memory (two per region), not six.

/// Version of everything in this room: frames and shared memory change together.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of a cache line on the machines we know; also the granularity of the arenas.
pub const LINE_BYTES: usize = 64;
/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a submission or completion.
pub const ENTRY_BYTES: usize = 64;
/// 8-byte words of a submission or completion.
pub const ENTRY_WORDS: usize = ENTRY_BYTES / 8;
/// Most shards that one runtime has; as many status pages travel with a `Welcome`.
pub const SHARDS_MAX: usize = crate::config::SHARDS_MAX as usize;
/// Largest value, or part of a value, in one submission.
pub const PART_BYTES_MAX: u32 = 64 << 10;
/// Bytes of the expected id that stands before the value where `COMPARE` is set.
pub const COMPARE_BYTES: u32 = 32;

/// Slots of a bell ring.
pub const BELL_SLOTS: u64 = 256;
/// Slots of a hit ring.
pub const HIT_SLOTS: u64 = 256;

/// Bytes of a shard's status page.
pub const STATUS_BYTES: usize = PAGE_BYTES;
/// First word of a status page: the bytes `HLST`.
pub const STATUS_MAGIC: u32 = u32::from_le_bytes(*b"HLST");
/// First word of a lane's region S: the bytes `HLSS`.
pub const LANE_MAGIC: u32 = u32::from_le_bytes(*b"HLSS");

/// Status page: u32, 1 while the shard sleeps.
pub(super) const STATUS_SLEEPING: usize = 64;

/// Bytes of one shard's page in the session region.
pub const SESSION_PAGE_BYTES: usize = PAGE_BYTES;
/// Session page: u64, bells rung ever.
pub(super) const BELL_TAIL: usize = 0;
/// Session page: the bell slots, u64 each.
pub(super) const BELLS: usize = 64;

/// Region C: u64, completions the client has read, ever.
pub(super) const C_CONSUMED: usize = 0;
/// Region C: u32, how the client waits.
pub(super) const C_WAITING: usize = 64;
/// Region C: u64, hits reported ever.
pub(super) const C_HIT_TAIL: usize = 128;
/// Region C: the hit slots, u64 each.
pub(super) const C_HITS: usize = 192;
/// Region C: the input arena.
pub(super) const C_ARENA: usize = C_HITS + 8 * HIT_SLOTS as usize;

/// Region S: u32 each: magic, version, ring slots, bytes of the output arena.
pub(super) const S_HEADER: usize = 0;
/// Region S: u32, how the shard attends to this lane; the u32 after it: reason of closing.
pub(super) const S_ATTENTION: usize = 64;
/// Region S: u32, 0 while the lane is open.
pub(super) const S_CLOSED: usize = 68;
/// Region S: u32, the view in which the lane reads its agent's window.
pub(super) const S_VIEW: usize = 72;
/// Region S: u32, the futex word: counts wakes.
pub(super) const S_WAKES: usize = 128;
/// Region S: the output arena.
pub(super) const S_ARENA: usize = 192;

/// Fewest and most entries of a ring.
pub const RING_SLOTS_MIN: u32 = 2;
/// Most entries of a ring.
pub const RING_SLOTS_MAX: u32 = 1024;
/// Smallest arena.
pub const ARENA_BYTES_MIN: u32 = 2048;
/// Largest arena.
pub const ARENA_BYTES_MAX: u32 = 16 << 20;

/// Sizes of a lane's rings and arenas; what the layout of both regions follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSizes {
    ring_slots: u32,
    input_bytes: u32,
    output_bytes: u32,
}

/// Sizes that no lane can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a lane of {ring_slots} ring slots, {input_bytes} input and {output_bytes} output bytes: slots \
     are a power of two in {RING_SLOTS_MIN}..={RING_SLOTS_MAX}, arenas multiples of {LINE_BYTES} \
     in {ARENA_BYTES_MIN}..={ARENA_BYTES_MAX}"
)]
pub struct BadSizes {
    /// Entries of each ring.
    pub ring_slots: u32,
    /// Bytes of the input arena.
    pub input_bytes: u32,
    /// Bytes of the output arena.
    pub output_bytes: u32,
}

impl LaneSizes {
    /// What the runtime uses: 64 entries, arenas that end at 256 KiB of their regions.
    pub const DEFAULT: Self = Self {
        ring_slots: 64,
        input_bytes: (256 << 10) - C_ARENA as u32,
        output_bytes: (256 << 10) - S_ARENA as u32,
    };

    /// Sizes as a peer or a test names them.
    ///
    /// # Errors
    /// Slots that are no power of two, arenas that are no multiples of 64, either out of range.
    pub fn new(ring_slots: u32, input_bytes: u32, output_bytes: u32) -> Result<Self, BadSizes> {
        let slots =
            ring_slots.is_power_of_two() && (RING_SLOTS_MIN..=RING_SLOTS_MAX).contains(&ring_slots);
        let arena = |bytes: u32| {
            bytes.is_multiple_of(LINE_BYTES as u32)
                && (ARENA_BYTES_MIN..=ARENA_BYTES_MAX).contains(&bytes)
        };
        if slots && arena(input_bytes) && arena(output_bytes) {
            Ok(Self {
                ring_slots,
                input_bytes,
                output_bytes,
            })
        } else {
            Err(BadSizes {
                ring_slots,
                input_bytes,
                output_bytes,
            })
        }
    }

    /// Entries of the submission ring, and of the completion ring.
    #[must_use]
    pub const fn ring_slots(&self) -> u32 {
        self.ring_slots
    }

    /// Bytes of the input arena: keys and values on their way to the shard.
    #[must_use]
    pub const fn input_bytes(&self) -> u32 {
        self.input_bytes
    }

    /// Bytes of the output arena: replies.
    #[must_use]
    pub const fn output_bytes(&self) -> u32 {
        self.output_bytes
    }

    /// Where the submission ring begins in region C: the first page after the arena.
    #[must_use]
    pub const fn submissions_at(&self) -> usize {
        (C_ARENA + self.input_bytes as usize).next_multiple_of(PAGE_BYTES)
    }

    /// Where the completion ring begins in region S: the first page after the arena.
    #[must_use]
    pub const fn completions_at(&self) -> usize {
        (S_ARENA + self.output_bytes as usize).next_multiple_of(PAGE_BYTES)
    }

    /// Bytes of region C.
    #[must_use]
    pub const fn client_bytes(&self) -> usize {
        self.submissions_at() + self.ring_bytes()
    }

    /// Bytes of region S.
    #[must_use]
    pub const fn server_bytes(&self) -> usize {
        self.completions_at() + self.ring_bytes()
    }

    const fn ring_bytes(&self) -> usize {
        (self.ring_slots as usize * ENTRY_BYTES).next_multiple_of(PAGE_BYTES)
    }
}

/// The tag of the `position`th entry of a ring: its low 31 bits, with bit 31 set.
///
/// Never 0, so that memory nobody wrote, and memory that a peer zeroed, is never an entry, not
/// even where the count wraps.
#[must_use]
#[inline]
pub const fn tag(position: u64) -> u32 {
    position as u32 | 1 << 31
}

const _: () = {
    assert!(
        cfg!(target_endian = "little"),
        "shared integers are little-endian"
    );
    assert!(BELL_SLOTS.is_power_of_two() && HIT_SLOTS.is_power_of_two());
    assert!(BELLS + 8 * BELL_SLOTS as usize <= SESSION_PAGE_BYTES);
    assert!(C_CONSUMED / LINE_BYTES != C_WAITING / LINE_BYTES);
    assert!(C_HIT_TAIL / LINE_BYTES != C_WAITING / LINE_BYTES);
    assert!(C_HITS.is_multiple_of(LINE_BYTES) && C_ARENA.is_multiple_of(LINE_BYTES));
    assert!(C_ARENA == 2240 && S_ARENA == 192);
    assert!(S_ATTENTION.is_multiple_of(8) && S_CLOSED == S_ATTENTION + 4);
    assert!(S_HEADER / LINE_BYTES != S_ATTENTION / LINE_BYTES);
    assert!(S_WAKES / LINE_BYTES != S_ATTENTION / LINE_BYTES);
    assert!(LaneSizes::DEFAULT.submissions_at() == 256 << 10);
    assert!(LaneSizes::DEFAULT.completions_at() == 256 << 10);
    assert!(LaneSizes::DEFAULT.client_bytes() == (256 << 10) + PAGE_BYTES);
    assert!(LaneSizes::DEFAULT.input_bytes >= PART_BYTES_MAX + COMPARE_BYTES + 1024);
    // Offsets inside a region stay far below what a u32 holds.
    assert!(ARENA_BYTES_MAX < 1 << 30);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let d = LaneSizes::DEFAULT;
        assert_eq!(LaneSizes::new(64, d.input_bytes(), d.output_bytes()), Ok(d));
        for (slots, input, output) in [
            (0, 4096, 4096),
            (1, 4096, 4096),
            (48, 4096, 4096),
            (2048, 4096, 4096),
            (64, 0, 4096),
            (64, 4095, 4096),
            (64, 4096, u32::MAX),
            (64, 4096, !63),
        ] {
            assert!(LaneSizes::new(slots, input, output).is_err());
        }
    }

    #[test]
    fn a_tag_is_never_zero_and_tells_a_lap_from_the_next() {
        for position in [
            0,
            1,
            (1 << 31) - 1,
            1 << 31,
            u64::from(u32::MAX),
            1 << 32,
            u64::MAX,
        ] {
            assert_ne!(tag(position), 0);
            assert_ne!(tag(position), tag(position.wrapping_sub(64)));
        }
    }
}
