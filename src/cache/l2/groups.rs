//! Groups in L2: values that leave together, in a share of the memory that is theirs alone.
//!
//! Floor 1. An entry of a group is in the group's own queue and in neither of S3-FIFO's, so that it
//! is charged to the groups' share and nothing outside of it ever leaves for it. Which group goes when the share is
//! used up is the caller's to say: L2 refuses what finds no room.
//!
//! Invariants
//! - `group_bytes <= group_bytes_capacity`, at every return.
//! - an entry of a group leaves with its group, or by itself where its object goes or somebody else uses it.

use super::{Entry, EntryNo, L2, NONE, Place, Queue, charge, fold};

/// Groups at a time.
pub const GROUPS_MAX: usize = 256;
/// The groups' share of the bytes given, as a divisor.
pub(super) const GROUPS_SHARE: usize = 8;

/// A group: its place among [`GROUPS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GroupNo(pub u16);

/// The entries of all groups.
#[derive(Debug)]
pub(super) struct Groups {
    queues: Box<[Queue]>,
    bytes: usize,
    bytes_capacity: usize,
}

impl Groups {
    pub(super) fn new(bytes_capacity: usize) -> Self {
        Self {
            queues: (0..GROUPS_MAX).map(|_| Queue::EMPTY).collect(),
            bytes: 0,
            bytes_capacity,
        }
    }

    /// The queue of a group, to which an entry of so many bytes is added, or from which it is taken.
    pub(super) fn queue(&mut self, group: GroupNo) -> &mut Queue {
        &mut self.queues[usize::from(group.0)]
    }

    pub(super) fn charge(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub(super) fn refund(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }
}

impl L2 {
    /// Whether a value of this length could be in a group at all.
    #[must_use]
    pub fn may_group(&self, value_bytes: usize) -> bool {
        charge(value_bytes) <= self.groups.bytes_capacity
    }

    /// Copies a value into a group; `None` where the share has no room for it now, and nothing left. The
    /// object must not be in the cache already. `fingerprint` as in [`L2::insert`].
    pub fn insert_grouped(
        &mut self,
        group: GroupNo,
        object: u32,
        fingerprint: u64,
        value: &[u8],
    ) -> Option<EntryNo> {
        let bytes = charge(value.len());
        if self.groups.bytes + bytes > self.groups.bytes_capacity {
            return None;
        }
        let (first_block, last_block) = self.store(value);
        let no = self.place(Entry {
            object,
            fingerprint: fold(fingerprint),
            first_block,
            last_block,
            value_bytes: value.len() as u32,
            older: NONE,
            newer: NONE,
            touches: 0,
            place: Place::Group,
            group: group.0,
        });
        self.link(no, Place::Group);
        self.len += 1;
        Some(EntryNo(no))
    }

    /// Whether an entry is one of a group.
    #[must_use]
    #[inline]
    pub fn is_grouped(&self, entry: EntryNo) -> bool {
        self.entries[entry.0 as usize].place == Place::Group
    }

    /// Takes an entry out of its group, for somebody who is not of it: it is a new one of S3-FIFO's, and
    /// others may go for it.
    pub fn ungroup(&mut self, entry: EntryNo, evicted: &mut dyn FnMut(u32)) {
        let (no, bytes) = (entry.0, charge(self.entry(entry).value_bytes as usize));
        if bytes > self.bytes_capacity / super::VALUE_SHARE {
            return;
        }
        self.unlink(no);
        self.make_room(bytes, evicted);
        self.link(no, Place::Small);
    }

    /// Lets a whole group go; `evicted` is told the object of each entry.
    pub fn evict_group(&mut self, group: GroupNo, evicted: &mut dyn FnMut(u32)) {
        loop {
            let no = self.groups.queue(group).oldest;
            let Some(entry) = self.entries.get(no as usize) else {
                return;
            };
            evicted(entry.object);
            self.release(no);
        }
    }

    /// The charge of a group.
    #[must_use]
    pub fn bytes_of_group(&self, group: GroupNo) -> usize {
        self.groups.queues[usize::from(group.0)].bytes
    }

    /// The charge of all groups.
    #[must_use]
    pub fn group_bytes(&self) -> usize {
        self.groups.bytes
    }

    /// What that never exceeds.
    #[must_use]
    pub fn group_bytes_capacity(&self) -> usize {
        self.groups.bytes_capacity
    }
}
