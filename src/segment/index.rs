//! The index of objects: which bytes a shard holds, where they lie, who still needs them.
//!
//! Floor 1, no I/O. An object is found by its id (deduplication) or by its number, which the rest
//! of the shard keeps instead of the 32-byte id.
//!
//! Cost: a lookup by number touches one cache line; by id two to three. 64 bytes an object and
//! about 5 for the table.
//!
//! Invariants
//! - an object is in the table while its count of references is above zero or a tree may hold it, it
//!   is sound, and no younger object has its bytes.
//! - a number is reused only after the last reference to it was released.

use std::collections::HashSet;

use hashbrown::HashTable;

use crate::id::ObjectId;
use crate::segment::disk::Location;
use crate::segment::record::ObjectKind;

/// An object within its shard, for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ObjectNo(pub u32);

/// No entry of L2.
pub const NOT_CACHED: u32 = u32::MAX;

/// What is known of an object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its content address.
    pub id: ObjectId,
    /// Where its bytes lie.
    pub at: Location,
    /// How many need it: keys, nodes and uploads, and those that only hold it back (`pins`).
    pub references: u32,
    /// References that the log knows nothing of: of writes that are not flushed, and of reads
    /// under way. An object with no other is not there for whoever replays the log.
    pub pins: u32,
    /// Its entry in L2, or [`NOT_CACHED`].
    pub cached: u32,
    /// What it is.
    pub kind: ObjectKind,
    /// A tree may hold it: it stays without any reference, until a collection finds that none does.
    pub kept: bool,
    /// The log has an Object record of it: whoever replays the log finds it by its id until the end,
    /// whatever became of its owners by then.
    pub logged: bool,
    /// It can be found by its id; another object with the same bytes may have taken its place.
    listed: bool,
    /// Its stored bytes did not match its id: never served, never used for deduplication.
    pub quarantined: bool,
    /// The last collection that reached it.
    marked: Round,
    /// The last collection that reached it as part of a history, and went on behind it.
    followed: Round,
}

/// Counts collections; 0 is none of them. Before numbers come again, no object has any.
type Round = u8;

impl Object {
    /// Whether its number is in use.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.kept || self.references > 0
    }
}

/// The table of objects grows by so many at least.
const GROWTH_MIN: usize = 64;

/// All objects of a shard.
#[derive(Debug, Default)]
pub struct ObjectIndex {
    table: HashTable<u32>,
    objects: Vec<Object>,
    free: Vec<u32>,
    /// The collection under way, or the last one.
    round: Round,
    /// No object was reached by one that came before this one and since the numbers began again; 0 before the
    /// first.
    oldest: Round,
    /// What this collection did not reach is going.
    condemned: bool,
    /// Damaged objects that a tree or a history may name: their ids find nothing, but they are not
    /// something that was given up.
    damaged: HashSet<ObjectId>,
}

impl ObjectIndex {
    /// The sound object with this id, if the shard holds it. What a collection condemned isn't found.
    #[must_use]
    pub fn find(&self, id: &ObjectId) -> Option<ObjectNo> {
        let is_it = |&no: &u32| {
            let object = &self.objects[no as usize];
            object.id == *id && !self.is_condemned(object)
        };
        self.table.find(id.hash64(), is_it).map(|&no| ObjectNo(no))
    }

    /// Begins a collection: nothing is reached yet.
    pub fn begin_round(&mut self) {
        self.condemned = false;
        self.round = self.round.wrapping_add(1).max(1);
        if self.round == self.oldest {
            // Since then no collection went as far as its sweep.
            for object in &mut self.objects {
                (object.marked, object.followed) = (0, 0);
            }
            self.oldest = 0;
        }
        if self.oldest == 0 {
            self.oldest = self.round;
        }
    }

    /// Notes that the collection reached an object; whether it had not before.
    pub fn mark(&mut self, no: ObjectNo) -> bool {
        let marked = &mut self.objects[no.0 as usize].marked;
        std::mem::replace(marked, self.round) != self.round
    }

    /// Notes that the collection goes on behind a checkpoint; whether it had not before.
    pub fn follow(&mut self, no: ObjectNo) -> bool {
        let followed = &mut self.objects[no.0 as usize].followed;
        std::mem::replace(followed, self.round) != self.round
    }

    /// Everything that is needed was reached. What else is kept is found no more from now on, and what
    /// is added counts as reached.
    pub fn condemn(&mut self) {
        self.condemned = true;
    }

    /// Ends a collection, after all that was condemned is gone, or to spare it.
    pub fn end_round(&mut self) {
        self.condemned = false;
    }

    /// Whether the collection condemned it, and nothing else needs it.
    fn is_condemned(&self, object: &Object) -> bool {
        self.condemned
            && object.kept
            && object.marked != self.round
            && object.references == object.pins
    }

    /// Whether the object of a number is kept although the collection did not reach it. Numbers that are
    /// free are not. That earlier ones reached it is forgotten.
    pub fn sweep(&mut self, no: ObjectNo) -> bool {
        let object = &mut self.objects[no.0 as usize];
        if object.marked != self.round && object.marked > 0 {
            object.marked = 0;
        }
        if object.followed != self.round && object.followed > 0 {
            object.followed = 0;
        }
        object.kept && object.marked != self.round && !object.quarantined
    }

    /// All objects were swept.
    pub fn end_sweep(&mut self) {
        self.oldest = self.round;
    }

    /// Whether the collection reached an object.
    #[must_use]
    pub fn is_marked(&self, no: ObjectNo) -> bool {
        self.objects[no.0 as usize].marked == self.round
    }

    /// Whether an object of that id was found to be damaged, which a tree or a history may name.
    #[must_use]
    pub fn is_damaged(&self, id: &ObjectId) -> bool {
        self.damaged.contains(id)
    }

    /// The sound object with this id, if the log knows it to be needed: only then may a record refer
    /// to its bytes.
    #[must_use]
    pub fn find_named(&self, id: &ObjectId) -> Option<ObjectNo> {
        self.find(id).filter(|&no| {
            let object = self.get(no);
            object.kept || object.references > object.pins
        })
    }

    /// Adds an object with one reference. From now on its id finds it, and not an older one that
    /// is only held back.
    pub fn insert(&mut self, id: ObjectId, kind: ObjectKind, at: Location) -> ObjectNo {
        let object = Object {
            id,
            at,
            references: 1,
            pins: 0,
            cached: NOT_CACHED,
            kind,
            kept: false,
            logged: false,
            listed: true,
            quarantined: false,
            marked: if self.condemned { self.round } else { 0 },
            followed: 0,
        };
        let is_it = |&no: &u32| self.objects[no as usize].id == id;
        if let Some(&old) = self.table.find(id.hash64(), is_it) {
            self.forget(ObjectNo(old));
        }
        let no = match self.free.pop() {
            Some(no) => {
                self.objects[no as usize] = object;
                no
            }
            None => {
                let no = u32::try_from(self.objects.len()).expect("fewer than 2^32 objects");
                if self.objects.len() == self.objects.capacity() {
                    // By a quarter: what lies unused counts as memory of the index. The kernel moves the
                    // pages of so large a block, nobody copies them.
                    let step = (no as usize / 4).max(GROWTH_MIN);
                    self.objects.reserve_exact(step);
                }
                self.objects.push(object);
                no
            }
        };
        let objects = &self.objects;
        self.table
            .insert_unique(id.hash64(), no, |&no| objects[no as usize].id.hash64());
        ObjectNo(no)
    }

    /// The object of a number.
    #[must_use]
    #[inline]
    pub fn get(&self, no: ObjectNo) -> &Object {
        &self.objects[no.0 as usize]
    }

    /// Notes where in L2 the object lies now.
    #[inline]
    pub fn set_cached(&mut self, no: ObjectNo, entry: u32) {
        self.objects[no.0 as usize].cached = entry;
    }

    /// The bytes lie elsewhere now; where they lay before, to be counted as garbage there. While a shard
    /// runs: only when the record that holds them there was flushed, as a failed flush takes it back, and
    /// the older bytes serve until then. What L2 holds of the object, and reads of the older place that
    /// are under way, stay good: they are the same bytes.
    pub fn relocate(&mut self, no: ObjectNo, at: Location) -> Location {
        std::mem::replace(&mut self.objects[no.0 as usize].at, at)
    }

    /// Notes whether the log has an Object record of it.
    pub fn set_logged(&mut self, no: ObjectNo, logged: bool) {
        self.objects[no.0 as usize].logged = logged;
    }

    /// Notes that a tree may hold it from now on.
    pub fn keep(&mut self, no: ObjectNo) {
        let object = &mut self.objects[no.0 as usize];
        object.kept = true;
        if self.condemned {
            object.marked = self.round;
        }
    }

    /// Notes that no tree holds it.
    pub fn unkeep(&mut self, no: ObjectNo) {
        self.objects[no.0 as usize].kept = false;
    }

    /// One more needs it.
    pub fn acquire(&mut self, no: ObjectNo) {
        self.objects[no.0 as usize].references += 1;
    }

    /// Marks one reference as one that only holds the object back.
    pub fn pin(&mut self, no: ObjectNo) {
        let object = &mut self.objects[no.0 as usize];
        object.pins += 1;
        debug_assert!(object.pins <= object.references);
    }

    /// Takes that mark back.
    pub fn unpin(&mut self, no: ObjectNo) {
        self.objects[no.0 as usize].pins -= 1;
    }

    /// One fewer needs it; `true` when that was the last one, no tree may hold it, and its bytes are
    /// garbage now. The
    /// number stays readable until the next insertion.
    pub fn release(&mut self, no: ObjectNo) -> bool {
        let object = &mut self.objects[no.0 as usize];
        assert!(object.references > 0, "released more often than acquired");
        object.references -= 1;
        if object.references > 0 || object.kept {
            return false;
        }
        self.forget(no);
        self.free.push(no.0);
        true
    }

    /// The stored bytes are damaged: refuse to serve or share them from now on.
    pub fn quarantine(&mut self, no: ObjectNo) {
        let object = &mut self.objects[no.0 as usize];
        object.quarantined = true;
        if object.kept {
            self.damaged.insert(object.id);
        }
        self.forget(no);
    }

    /// Lets the id find it no more.
    fn forget(&mut self, no: ObjectNo) {
        if !std::mem::take(&mut self.objects[no.0 as usize].listed) {
            return;
        }
        let hash = self.objects[no.0 as usize].id.hash64();
        self.table
            .find_entry(hash, |&other| other == no.0)
            .expect("a listed object is in the table")
            .remove();
    }

    /// Numbers up to here are, or were, those of objects.
    #[must_use]
    pub fn numbers(&self) -> u32 {
        self.objects.len() as u32
    }

    /// Objects held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len() - self.free.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All objects that are held.
    #[cfg(test)]
    pub fn all(&self) -> impl Iterator<Item = (ObjectNo, &Object)> {
        let free: HashSet<u32> = self.free.iter().copied().collect();
        let numbered = (0..).map(ObjectNo).zip(&self.objects);
        numbered.filter(move |(no, _)| !free.contains(&no.0))
    }

    /// Memory the index takes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.table.allocation_size()
            + self.objects.capacity() * size_of::<Object>()
            + self.free.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SegmentNo;

    fn at(offset: u32) -> Location {
        Location {
            segment: SegmentNo(1),
            offset,
            bytes: 8,
        }
    }

    #[test]
    fn an_object_is_a_cache_line() {
        assert!(size_of::<Object>() <= 64);
    }

    #[test]
    fn found_while_referenced_and_numbers_are_reused() {
        let mut index = ObjectIndex::default();
        let ids: Vec<_> = (0u32..1000)
            .map(|i| ObjectId::of_blob(&i.to_le_bytes()))
            .collect();
        let nos: Vec<_> = ids
            .iter()
            .map(|id| index.insert(*id, ObjectKind::Blob, at(0)))
            .collect();
        index.acquire(nos[7]);
        assert!(!index.release(nos[7]));
        for (id, no) in ids.iter().zip(&nos).step_by(2) {
            assert!(index.release(*no));
            assert_eq!(index.find(id), None);
        }
        assert_eq!(index.find(&ids[7]), Some(nos[7]));
        assert_eq!(index.len(), 500);
        let again = index.insert(ids[0], ObjectKind::Blob, at(64));
        assert!(nos.contains(&again), "a free number is taken first");
        assert_eq!(index.get(again).at, at(64));
    }

    #[test]
    fn what_a_collection_condemned_is_stored_anew() {
        let mut index = ObjectIndex::default();
        let ids = [b"reached", b"passed!", b"needed!"].map(|bytes| ObjectId::of_blob(bytes));
        let nos = ids.map(|id| index.insert(id, ObjectKind::Node, at(0)));
        for no in nos {
            index.keep(no);
        }
        index.release(nos[0]);
        index.release(nos[1]);
        index.begin_round();
        assert!(index.mark(nos[0]) && !index.mark(nos[0]));
        assert!(index.follow(nos[0]) && !index.follow(nos[0]));
        assert_eq!(
            index.find(&ids[1]),
            Some(nos[1]),
            "not before all is reached"
        );
        index.condemn();
        assert_eq!(index.find(&ids[0]), Some(nos[0]));
        assert_eq!(index.find(&ids[1]), None);
        assert_eq!(index.find(&ids[2]), Some(nos[2]), "a key names it");
        let again = index.insert(ids[1], ObjectKind::Node, at(64));
        index.keep(again);
        index.release(again);
        assert_eq!(index.find(&ids[1]), Some(again));
        let unreached = nos.map(|no| index.sweep(no));
        assert_eq!(
            (unreached, index.sweep(again)),
            ([false, true, true], false)
        );
        index.acquire(nos[1]);
        index.unkeep(nos[1]);
        assert!(index.release(nos[1]));
        index.end_round();
        assert_eq!(index.find(&ids[1]), Some(again));
    }

    #[test]
    fn a_quarantined_object_is_not_shared() {
        let mut index = ObjectIndex::default();
        let id = ObjectId::of_blob(b"x");
        let bad = index.insert(id, ObjectKind::Blob, at(0));
        index.quarantine(bad);
        index.quarantine(bad);
        assert_eq!(index.find(&id), None);
        let good = index.insert(id, ObjectKind::Blob, at(64));
        assert_eq!(index.find(&id), Some(good));
        assert!(index.release(bad));
        assert_eq!(index.find(&id), Some(good));
    }
}
