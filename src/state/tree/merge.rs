//! Three-way merge: what two trees changed since a common one, in one list of changes.
//!
//! Floor 1. Two diffs side by side, base to theirs and base to ours. A key that one side changed takes
//! that side's value, a key that both changed in the same way has it already. A key that they changed
//! in different ways is a conflict, unless a rule for its prefix names the side that wins.
//!
//! Where the two come from several trees ([`Base`]), ours and theirs are compared with each other, and each
//! key in which they differ with what it was.
//!
//! Cost: that of a diff of base and theirs, and of base and ours as far as the last key that theirs
//! changed. Of several bases: a diff of ours and theirs, and lookups for each key that differs.

use std::cmp::Ordering;
use std::ops::Bound;

use crate::id::ObjectId;

use super::base::{Base, Was};
use super::changes::Changes;
use super::diff::Diff;
use super::error::TreeError;
use super::value::{self, Stored, Value};
use super::{EMPTY_TREE, Nodes};

/// What to do about a key that both sides changed in different ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnConflict {
    /// Our value stays.
    Ours,
    /// Their value is taken.
    Theirs,
    /// The merge has a conflict.
    Fail,
}

/// What to do about conflicts in keys that begin with a prefix. Of several rules that fit, that of the
/// longest prefix counts; where none does, the merge has a conflict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefixRule<'a> {
    /// The prefix; the empty one fits all keys.
    pub prefix: &'a [u8],
    /// What to do.
    pub on_conflict: OnConflict,
}

/// How far a merge came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merged {
    /// To the end, without a conflict: [`Merge::changes`] make the result of our tree.
    Clean,
    /// There are conflicts: a page of them is in [`Merge::conflicts`]. There are no changes.
    Conflicts {
        /// Whether another call may find more.
        more: bool,
    },
}

/// A three-way merge under way. It keeps its memory from one merge to the next.
///
/// ```
/// # use helios::state::tree::*;
/// # let (mut nodes, mut writer) = (MemoryNodes::default(), TreeWriter::default());
/// # let mut tree = |root: &helios::id::ObjectId, key: &[u8], value: &[u8]| {
/// #     let mut changes = Changes::default();
/// #     changes.put(key, Value::Inline(value)).unwrap();
/// #     let root = writer.apply(&nodes, root, &changes).unwrap();
/// #     nodes.extend(writer.new_nodes());
/// #     root
/// # };
/// # let base = tree(&EMPTY_TREE, b"step", b"1");
/// # let ours = tree(&base, b"ours", b"a");
/// # let theirs = tree(&base, b"theirs", b"b");
/// let mut merge = Merge::default();
/// merge.start(base, ours, theirs);
/// assert_eq!(merge.run(&nodes, &[], 100).unwrap(), Merged::Clean);
/// assert_eq!(merge.changes().iter().next(), Some((&b"theirs"[..], Some(Value::Inline(b"b")))));
/// ```
#[derive(Debug)]
pub struct Merge {
    base: Base,
    ours: ObjectId,
    theirs: ObjectId,
    changes: Changes,
    conflicts: Conflicts,
    /// The last key that was merged; empty before the first.
    reached: Vec<u8>,
    conflicted: bool,
    /// Whether the page of conflicts was returned.
    page_done: bool,
}

impl Default for Merge {
    fn default() -> Self {
        Self {
            base: Base::default(),
            ours: EMPTY_TREE,
            theirs: EMPTY_TREE,
            changes: Changes::default(),
            conflicts: Conflicts::default(),
            reached: Vec::new(),
            conflicted: false,
            page_done: false,
        }
    }
}

impl Merge {
    /// Begins a merge of the changes from `base` to `theirs` into `ours`.
    pub fn start(&mut self, base: impl Into<Base>, ours: ObjectId, theirs: ObjectId) {
        (self.base, self.ours, self.theirs) = (base.into(), ours, theirs);
        self.changes.clear();
        self.conflicts.clear();
        self.reached.clear();
        (self.conflicted, self.page_done) = (false, false);
    }

    /// Goes on to the end, or to the next `conflicts_max` conflicts. A call after a page of conflicts
    /// forgets them and finds the next ones.
    ///
    /// # Errors
    /// A node is absent or damaged; another call goes on where this one stopped.
    pub fn run(
        &mut self,
        nodes: &impl Nodes,
        rules: &[PrefixRule<'_>],
        conflicts_max: usize,
    ) -> Result<Merged, TreeError> {
        if std::mem::take(&mut self.page_done) {
            self.conflicts.clear();
        }
        // Nothing of theirs to take.
        if self.theirs != self.ours {
            match self.base {
                Base::Tree(base) => self.merge(nodes, &base, rules, conflicts_max)?,
                Base::Merged(_) | Base::Unknown => {
                    self.merge_over_several(nodes, rules, conflicts_max)?;
                }
            }
        }
        self.page_done = true;
        Ok(match self.conflicted {
            true => Merged::Conflicts {
                more: self.conflicts.len() >= conflicts_max,
            },
            false => Merged::Clean,
        })
    }

    /// What turns our tree into the merged one, after [`Merged::Clean`].
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The page of conflicts, after [`Merged::Conflicts`].
    #[must_use]
    pub fn conflicts(&self) -> &Conflicts {
        &self.conflicts
    }

    fn merge(
        &mut self,
        nodes: &impl Nodes,
        base: &ObjectId,
        rules: &[PrefixRule<'_>],
        conflicts_max: usize,
    ) -> Result<(), TreeError> {
        let from = after(&self.reached);
        let mut theirs = Diff::new(nodes, base, &self.theirs, from)?;
        let mut ours = Diff::new(nodes, base, &self.ours, from)?;
        while self.conflicts.len() < conflicts_max && theirs.find()? {
            ours.find()?;
            let Some(their) = theirs.current() else {
                break;
            };
            let our = ours.current();
            let order = our.map_or(Ordering::Greater, |our| our.key.cmp(their.key));
            self.reached.clear();
            match (order, our) {
                (Ordering::Less, Some(our)) => self.reached.extend_from_slice(our.key),
                (Ordering::Equal, Some(our)) => {
                    self.reached.extend_from_slice(their.key);
                    if our.after != their.after {
                        self.meet(their.key, [our.before, our.after, their.after], rules);
                    }
                }
                _ => {
                    self.reached.extend_from_slice(their.key);
                    self.take(their.key, their.after.as_ref());
                }
            }
            if order.is_le() {
                ours.leave();
            }
            if order.is_ge() {
                theirs.leave();
            }
        }
        Ok(())
    }

    fn merge_over_several(
        &mut self,
        nodes: &impl Nodes,
        rules: &[PrefixRule<'_>],
        conflicts_max: usize,
    ) -> Result<(), TreeError> {
        let mut sides = Diff::new(nodes, &self.ours, &self.theirs, after(&self.reached))?;
        while self.conflicts.len() < conflicts_max
            && let Some(side) = sides.next()?
        {
            let was = self.base.was(nodes, side.key)?;
            self.reached.clear();
            self.reached.extend_from_slice(side.key);
            match was {
                Was::Known(base) if base == side.after => {}
                Was::Known(base) if base == side.before => {
                    self.take(side.key, side.after.as_ref());
                }
                Was::Known(base) => self.meet(side.key, [base, side.before, side.after], rules),
                Was::Unknown => self.meet(side.key, [None, side.before, side.after], rules),
            }
        }
        Ok(())
    }

    /// A key that both sides changed in different ways: its values in base, ours and theirs.
    fn meet(&mut self, key: &[u8], values: [Option<Value<'_>>; 3], rules: &[PrefixRule<'_>]) {
        match rule_for(rules, key) {
            OnConflict::Ours => {}
            OnConflict::Theirs => self.take(key, values[2].as_ref()),
            OnConflict::Fail => {
                self.conflicted = true;
                self.changes.clear();
                self.conflicts.push(key, values);
            }
        }
    }

    fn take(&mut self, key: &[u8], their: Option<&Value<'_>>) {
        if self.conflicted {
            return;
        }
        let stored = their.map(Stored::of);
        let put = stored
            .as_ref()
            .map(|stored| (stored.code, stored.payload()));
        self.changes.push(key, put);
    }
}

/// What comes behind a key; everything, where there is none.
fn after(reached: &[u8]) -> Bound<&[u8]> {
    match reached {
        [] => Bound::Unbounded,
        key => Bound::Excluded(key),
    }
}

fn rule_for(rules: &[PrefixRule<'_>], key: &[u8]) -> OnConflict {
    rules
        .iter()
        .filter(|rule| key.starts_with(rule.prefix))
        .max_by_key(|rule| rule.prefix.len())
        .map_or(OnConflict::Fail, |rule| rule.on_conflict)
}

/// A key that both sides changed in different ways, and what it has become where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conflict<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value in the common tree, `None` where it had none, or where several common trees do not
    /// agree.
    pub base: Option<Value<'a>>,
    /// Its value in our tree.
    pub ours: Option<Value<'a>>,
    /// Its value in their tree.
    pub theirs: Option<Value<'a>>,
}

/// Conflicts, in the order of their keys.
#[derive(Debug, Default)]
pub struct Conflicts {
    keys: Vec<u8>,
    /// Where each key ends, and its values.
    list: Vec<(usize, [Option<Stored>; 3])>,
}

impl Conflicts {
    /// The conflicts.
    pub fn iter(&self) -> impl Iterator<Item = Conflict<'_>> {
        let starts = std::iter::once(0).chain(self.list.iter().map(|(end, _)| *end));
        starts.zip(&self.list).map(|(start, (end, values))| {
            let [base, ours, theirs] = values.each_ref().map(|stored| {
                let stored = stored.as_ref()?;
                Some(value::decode(stored.code, stored.payload()))
            });
            Conflict {
                key: &self.keys[start..*end],
                base,
                ours,
                theirs,
            }
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.list.clear();
    }

    fn push(&mut self, key: &[u8], values: [Option<Value<'_>>; 3]) {
        self.keys.extend_from_slice(key);
        let stored = values
            .each_ref()
            .map(|value| value.as_ref().map(Stored::of));
        self.list.push((self.keys.len(), stored));
    }
}
