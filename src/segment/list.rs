//! The list object of a large value: the ids of its parts.
//!
//! Floor 1. Pure functions of bytes; the layout is in `FORMAT.md`.
//!
//! Invariants
//! - a list that decodes has exactly the parts that its lengths ask for.

use crate::id::{OBJECT_ID_BYTES, ObjectId, VALUE_BYTES_MAX};

use super::format::{PART_BYTES_MAX, PAYLOAD_BYTES_MAX, u32_at, u64_at};

/// Parts of the largest value.
pub const PARTS_MAX: usize = (VALUE_BYTES_MAX as usize).div_ceil(PART_BYTES_MAX);

const LIST_HEADER_BYTES: usize = 16;
const _: () = assert!(LIST_HEADER_BYTES + PARTS_MAX * OBJECT_ID_BYTES <= PAYLOAD_BYTES_MAX);

/// The payload of a list object: the parts of a value larger than [`PART_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListPayload<'a> {
    total: u64,
    part_bytes: u32,
    ids: &'a [[u8; OBJECT_ID_BYTES]],
}

/// Bytes that are no list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the bytes are no list of parts: lengths and count disagree")]
pub struct BadList;

impl<'a> ListPayload<'a> {
    /// Appends the list of `parts`, each but the last of `part_bytes`, `total` together.
    ///
    /// # Errors
    /// [`BadList`] if the numbers disagree or are out of bounds.
    pub fn encode(
        total: u64,
        part_bytes: u32,
        parts: &[ObjectId],
        out: &mut Vec<u8>,
    ) -> Result<(), BadList> {
        Self::check(total, part_bytes, parts.len())?;
        out.extend_from_slice(&total.to_le_bytes());
        out.extend_from_slice(&part_bytes.to_le_bytes());
        out.extend_from_slice(&(parts.len() as u32).to_le_bytes());
        parts
            .iter()
            .for_each(|id| out.extend_from_slice(id.as_bytes()));
        Ok(())
    }

    /// Reads the payload of a list object.
    ///
    /// # Errors
    /// [`BadList`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, BadList> {
        let (header, rest) = payload.split_at_checked(LIST_HEADER_BYTES).ok_or(BadList)?;
        let (ids, tail) = rest.as_chunks();
        let (total, part_bytes) = (u64_at(header, 0), u32_at(header, 8));
        Self::check(total, part_bytes, ids.len())?;
        if !tail.is_empty() || u32_at(header, 12) as usize != ids.len() {
            return Err(BadList);
        }
        Ok(Self {
            total,
            part_bytes,
            ids,
        })
    }

    fn check(total: u64, part_bytes: u32, count: usize) -> Result<(), BadList> {
        let good = (1..=PART_BYTES_MAX as u32).contains(&part_bytes)
            && total <= VALUE_BYTES_MAX
            && count <= PARTS_MAX
            && total.div_ceil(u64::from(part_bytes)) == count as u64;
        if good { Ok(()) } else { Err(BadList) }
    }

    /// Length of the value.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Length of every part but the last.
    #[must_use]
    pub fn part_bytes(&self) -> u32 {
        self.part_bytes
    }

    /// Parts.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// The id of a part, from 0.
    #[must_use]
    pub fn part(&self, index: usize) -> Option<ObjectId> {
        self.ids
            .get(index)
            .map(|bytes| ObjectId::from_bytes(*bytes))
    }

    /// The ids in order.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = ObjectId> + 'a {
        self.ids.iter().map(|bytes| ObjectId::from_bytes(*bytes))
    }

    /// Length of a part, from 0; 0 past the end.
    #[must_use]
    pub fn part_len(&self, index: usize) -> u32 {
        let before = (index as u64).saturating_mul(u64::from(self.part_bytes));
        self.total
            .saturating_sub(before)
            .min(u64::from(self.part_bytes)) as u32
    }
}
