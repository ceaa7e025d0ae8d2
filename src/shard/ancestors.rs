//! Best common ancestors: where two histories part, and what a merge of them starts from.
//!
//! Floor 2. The best common ancestors of two histories are the checkpoints that both have and that no other
//! such checkpoint comes after. There are several where the two merged each other (a criss-cross);
//! these are merged in turn, oldest first, over their own best common ancestors ([`Base`]).
//!
//! A walk in falling order of sequence paints each checkpoint with the sides that it was reached from, so
//! one that is met was painted by all that follow it. What a common ancestor leads to is stale. The walk ends
//! when nothing is ahead that one side alone has, or when that is all of the same side.
//!
//! History ends at a parent that is not stored; one that is another agent's counts, as nothing of it is shown. Such a one is no base: what was pruned can't
//! be compared with.
//!
//! Cost: one checkpoint of some 200 bytes is read for each that is not older than the oldest best common
//! ancestor, and the parents of these: nothing below, however long the histories are. Only where both
//! sides also have something of their own from below does the walk go on until one of them has none.
//! Of a criss-cross, that again between the bases and theirs, at most [`BASES_MERGED_MAX`] times.

use std::collections::{BinaryHeap, HashMap};

use crate::id::ObjectId;
use crate::segment::Disk;
use crate::shard::commit::Known;
use crate::shard::store::{Refused, Store};
use crate::state::tree::{Base, EMPTY_TREE};

/// Merges of bases for one merge. Of what lies beyond, nothing is known: keys that it would have to tell
/// about are conflicts.
pub const BASES_MERGED_MAX: usize = 128;

/// Reached from one side.
const ONE: u8 = 1;
/// Reached from the other.
const OTHER: u8 = 2;
/// Reached from both.
const BOTH: u8 = ONE | OTHER;
/// Reached from a common ancestor.
const STALE: u8 = 4;

/// The checkpoints that were met, and those ahead.
#[derive(Default)]
struct Painting {
    /// By sequence: the youngest first.
    ahead: BinaryHeap<(u64, [u8; 32])>,
    met: HashMap<ObjectId, Met>,
    /// How many are ahead of each colour.
    by_colour: [usize; 8],
}

struct Met {
    colour: u8,
    ahead: bool,
    parents: Vec<ObjectId>,
}

impl Painting {
    /// Whether a best common ancestor may still be found.
    fn goes_on(&self) -> bool {
        let ahead = |colour: u8| self.by_colour[usize::from(colour)] > 0;
        ahead(BOTH) || (ahead(ONE) && ahead(OTHER))
    }

    /// Adds a colour to a checkpoint that was met before; whether it was.
    fn repaint(&mut self, id: &ObjectId, colour: u8) -> bool {
        let Some(met) = self.met.get_mut(id) else {
            return false;
        };
        let before = met.colour;
        met.colour |= colour;
        if met.ahead {
            self.by_colour[usize::from(before)] -= 1;
            self.by_colour[usize::from(met.colour)] += 1;
        }
        true
    }

    /// Adds a checkpoint that was not met before; `None`: one that can't be read.
    fn meet(&mut self, id: ObjectId, colour: u8, known: Option<Known>) {
        let ahead = known.is_some();
        let parents = known.map_or_else(Vec::new, |known| {
            self.ahead.push((known.sequence, *id.as_bytes()));
            self.by_colour[usize::from(colour)] += 1;
            known.parents
        });
        let met = Met {
            colour,
            ahead,
            parents,
        };
        self.met.insert(id, met);
    }

    /// The youngest ahead: its id, its colour, its parents.
    fn next(&mut self) -> Option<(ObjectId, u8, Vec<ObjectId>)> {
        let (_, id) = self.ahead.pop()?;
        let id = ObjectId::from_bytes(id);
        let met = self.met.get_mut(&id)?;
        met.ahead = false;
        self.by_colour[usize::from(met.colour)] -= 1;
        Some((id, met.colour, std::mem::take(&mut met.parents)))
    }
}

impl<D: Disk> Store<D> {
    /// The best common ancestors of two histories, each that of some checkpoints; the oldest first.
    ///
    /// # Errors
    /// [`Refused::Cold`], [`Refused::Corrupt`].
    pub fn best_common_ancestors(
        &mut self,
        ones: &[ObjectId],
        others: &[ObjectId],
    ) -> Result<Vec<ObjectId>, Refused> {
        let mut painting = Painting::default();
        for (ids, colour) in [(ones, ONE), (others, OTHER)] {
            for id in ids {
                self.paint(&mut painting, id, colour)?;
            }
        }
        let mut found = Vec::new();
        while painting.goes_on() {
            let Some((id, mut colour, parents)) = painting.next() else {
                break;
            };
            if colour == BOTH {
                found.push(id);
                if !painting.goes_on() {
                    break;
                }
                colour |= STALE;
            }
            for parent in parents {
                self.paint(&mut painting, &parent, colour)?;
            }
        }
        found.reverse();
        Ok(found)
    }

    fn paint(&mut self, painting: &mut Painting, id: &ObjectId, colour: u8) -> Result<(), Refused> {
        if !painting.repaint(id, colour) {
            // Whoever may read it: what it shares with the other history is all that counts.
            let known = match self.known_any(id) {
                Ok(known) => Some(known),
                Err(Refused::NoSuchRevision) => None,
                Err(refused) => return Err(refused),
            };
            painting.meet(*id, colour, known);
        }
        Ok(())
    }

    /// What a merge over these best common ancestors starts from.
    ///
    /// # Errors
    /// [`Refused::Cold`], [`Refused::Corrupt`].
    pub fn merge_base(&mut self, bases: &[ObjectId]) -> Result<Base, Refused> {
        self.merged_bases(bases, &mut 0)
    }

    fn merged_bases(&mut self, bases: &[ObjectId], merges: &mut usize) -> Result<Base, Refused> {
        let Some((first, rest)) = bases.split_first() else {
            // What these bases come from was pruned.
            return Ok(Base::Unknown);
        };
        let mut merged = self.base_of(first)?;
        for (no, next) in rest.iter().enumerate() {
            if *merges == BASES_MERGED_MAX {
                return Ok(Base::Unknown);
            }
            *merges += 1;
            let of = self.best_common_ancestors(&bases[..=no], &[*next])?;
            let of = self.merged_bases(&of, merges)?;
            let next = self.base_of(next)?;
            merged = Base::merged(of, [merged, next]);
        }
        Ok(merged)
    }
    /// The state of one base; nothing is known where only the checkpoint is here, and not its tree.
    fn base_of(&mut self, id: &ObjectId) -> Result<Base, Refused> {
        let tree = self.known_any(id)?.tree;
        let here = tree == EMPTY_TREE || self.tables.objects.find(&tree).is_some();
        Ok(if here {
            Base::Tree(tree)
        } else {
            Base::Unknown
        })
    }
}
