//! What an agent is to those who use it: one object whose operations happen one at a time.
//!
//! The whole of an agent is the object, not a key: reads of several keys see one state, restore, switch and merge change
//! all keys at once. A set of keys can be looked at alone ([`Model::keys`]), to say where a history goes wrong.

use std::collections::BTreeMap;

use crate::history::{
    Branch, Came, Checkpoint, Contents, Graph, KEYS, Key, MAIN, Name, Operation, Policy, Source,
    Value, What,
};

/// All keys.
pub const ALL: u8 = (1 << KEYS) - 1;

/// A branch or a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Held {
    /// Forks have none.
    name: Option<Name>,
    values: Contents,
    head: Checkpoint,
    /// The checkpoint that its changes are counted from.
    base: Checkpoint,
    /// A bit for each key that was written since.
    touched: u8,
}

impl Held {
    fn at(name: Option<Name>, head: Checkpoint, values: Contents) -> Self {
        Self {
            name,
            values,
            head,
            base: head,
            touched: 0,
        }
    }
}

/// An agent at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    branches: BTreeMap<Branch, Held>,
    /// Lanes that are on another branch than the first.
    lanes: BTreeMap<u32, Branch>,
}

impl Default for State {
    fn default() -> Self {
        let main = Held {
            name: Some(0),
            ..Held::default()
        };
        Self {
            branches: BTreeMap::from([(MAIN, main)]),
            lanes: BTreeMap::new(),
        }
    }
}

/// What the states of one history are judged by.
pub struct Model<'a> {
    pub graph: &'a Graph,
    /// A bit for each key that is looked at.
    pub keys: u8,
}

impl Model<'_> {
    /// Whether the operation says anything about the keys that are looked at.
    pub fn concerns(&self, what: &What) -> bool {
        match what {
            What::Get { key, .. }
            | What::Put { key, .. }
            | What::Swap { key, .. }
            | What::Delete { key, .. } => self.looks_at(*key),
            What::MultiPut { pairs } => pairs.iter().any(|(key, _)| self.looks_at(*key)),
            _ => true,
        }
    }

    /// Whether the operation, which changes nothing, says what is so in this state; `None` of one that changes something.
    pub fn fits(&self, state: &State, op: &Operation) -> Option<bool> {
        let held = state.branches.get(&op.on);
        let head = held.map(|held| held.head);
        let named = |name: &Name| self.named(state, *name).is_some();
        Some(match &op.what {
            What::Get { key, value } => held.is_some_and(|held| self.value(held, *key) == *value),
            What::Snapshot { values } => held.is_some_and(|held| self.same(&held.values, values)),
            What::Swap {
                key,
                expected,
                found: Some(found),
                ..
            } => found != expected && held.is_some_and(|held| self.value(held, *key) == *found),
            What::Delete {
                key,
                existed: Some(false),
            } => held.is_some_and(|held| self.value(held, *key) == 0),
            What::Describe {
                head: said,
                changes,
            } => head == Some(*said) && self.may_count(held, *changes),
            What::List { branches } => self.lists(state, branches),
            What::NameTaken { name } => named(name),
            What::NoSuchName { name } => !named(name),
            What::NoSuchBranch => held.is_none(),
            What::InUse { name } => match self.named(state, *name) {
                Some(no) => no == MAIN || state.lanes.values().any(|on| *on == no),
                None => false,
            },
            What::StaleHead { expected, current } => head == Some(*current) && expected != current,
            What::Merge { came, .. } => match came {
                Came::Ahead(_) | Came::Made(_) | Came::Unknown => return None,
                _ => self.merged(state, op).is_some(),
            },
            _ => return None,
        })
    }

    /// The states that the operation may leave behind; none, if it can't have happened in this one.
    pub fn after(&self, state: &State, op: &Operation) -> Vec<State> {
        let on = op.on;
        let next = match &op.what {
            What::Put { key, value } => self.written(state, on, &[(*key, *value)]),
            What::Swap {
                key,
                expected,
                value,
                ..
            } => match state.branches.get(&on) {
                Some(held) if self.value(held, *key) == *expected => {
                    self.written(state, on, &[(*key, *value)])
                }
                _ => None,
            },
            What::Delete { key, existed } => match state.branches.get(&on) {
                Some(held) if (self.value(held, *key) != 0) == existed.unwrap_or(true) => {
                    self.written(state, on, &[(*key, 0)])
                }
                // Done or not: it left what it found.
                Some(_) if existed.is_none() => Some(state.clone()),
                _ => None,
            },
            // A crash may keep the first pairs only.
            What::MultiPut { pairs } if op.maybe => {
                let prefixes = (1..=pairs.len()).map(|count| &pairs[..count]);
                return prefixes
                    .filter_map(|pairs| self.written(state, on, pairs))
                    .collect();
            }
            What::MultiPut { pairs } => self.written(state, on, pairs),
            What::Checkpoint { expected, made } => self.checkpointed(state, op, *expected, *made),
            What::Restore { to } => self.restored(state, on, *to),
            What::Merge { .. } => self.merged(state, op),
            What::Crash => Some(State {
                branches: state
                    .branches
                    .clone()
                    .into_iter()
                    .filter(is_named)
                    .collect(),
                lanes: BTreeMap::new(),
            }),
            _ => self.renumbered(state, op),
        };
        next.into_iter().collect()
    }

    /// What changes which branches there are, or who is on them.
    fn renumbered(&self, state: &State, op: &Operation) -> Option<State> {
        let mut next = state.clone();
        match &op.what {
            What::Create {
                name,
                from,
                no,
                head,
            } => {
                let found = self.resolve(state, op.on, *from)?;
                let free = self.named(state, *name).is_none() && !state.branches.contains_key(no);
                if !free || !(op.maybe || found == *head) {
                    return None;
                }
                let values = self.contents(found)?;
                next.branches
                    .insert(*no, Held::at(Some(*name), found, values));
            }
            What::Fork { from, no, head } => {
                if self.resolve(state, op.on, *from)? != *head || state.branches.contains_key(no) {
                    return None;
                }
                let values = self.contents(*head)?;
                next.branches.insert(*no, Held::at(None, *head, values));
            }
            What::Keep { name, no } => {
                let mut kept = next.branches.remove(&op.on)?;
                if self.named(state, *name).is_some() || next.branches.contains_key(no) {
                    return None;
                }
                kept.name = Some(*name);
                next.branches.insert(*no, kept);
            }
            What::Discard => _ = next.branches.remove(&op.on)?,
            What::Remove { name } => {
                let no = self.named(state, *name)?;
                if no == MAIN || state.lanes.values().any(|on| *on == no) {
                    return None;
                }
                next.branches.remove(&no);
            }
            What::Switch {
                name,
                no,
                head,
                changes,
            } => {
                let held = state.branches.get(no);
                let named = self.named(state, *name) == Some(*no);
                if !named || held?.head != *head || !self.may_count(held, *changes) {
                    return None;
                }
                next.lanes.insert(op.lane(), *no);
            }
            other => unreachable!("{other:?} is judged elsewhere"),
        }
        Some(next)
    }

    fn written(&self, state: &State, on: Branch, pairs: &[(Key, Value)]) -> Option<State> {
        let mut next = state.clone();
        let held = next.branches.get_mut(&on)?;
        for (key, value) in pairs.iter().filter(|(key, _)| self.looks_at(*key)) {
            held.values[usize::from(*key)] = *value;
            held.touched |= 1 << key;
        }
        Some(next)
    }

    /// A checkpoint holds what the branch held, and follows what it pointed at.
    fn checkpointed(
        &self,
        state: &State,
        op: &Operation,
        expected: Option<Checkpoint>,
        made: Checkpoint,
    ) -> Option<State> {
        let held = state.branches.get(&op.on)?;
        // One that was never answered and is in no history: nobody knows what it holds.
        let known = self.graph.contents(made);
        if expected.is_some_and(|expected| expected != held.head)
            || known.is_some_and(|contents| !self.same(&contents, &held.values))
            || known.is_none() && !op.maybe
            || known.is_some() && !follows(self.graph.parents(made), &[held.head])
        {
            return None;
        }
        self.moved(state, op.on, made, made, held.values)
    }

    /// The head stays, and everything else is that of another checkpoint.
    fn restored(&self, state: &State, on: Branch, to: Source) -> Option<State> {
        let to = self.resolve(state, on, to)?;
        let head = state.branches.get(&on)?.head;
        self.moved(state, on, head, to, self.contents(to)?)
    }

    fn moved(
        &self,
        state: &State,
        on: Branch,
        head: Checkpoint,
        base: Checkpoint,
        values: Contents,
    ) -> Option<State> {
        let mut next = state.clone();
        let held = next.branches.get_mut(&on)?;
        (held.head, held.base, held.values, held.touched) = (head, base, values, 0);
        Some(next)
    }

    /// The state after a merge that came to what it says; `None`: it can't have.
    fn merged(&self, state: &State, op: &Operation) -> Option<State> {
        let What::Merge {
            from,
            policy,
            expected,
            came,
        } = &op.what
        else {
            return None;
        };
        let theirs = self.resolve(state, op.on, *from)?;
        let held = state.branches.get(&op.on)?;
        if expected.is_some_and(|expected| expected != held.head) {
            return None;
        }
        let both = held.head != 0 && theirs != 0;
        let bases = match both {
            true => self.graph.bases(held.head, theirs),
            false => Vec::new(),
        };
        let stays = |yes: bool| yes.then(|| state.clone());
        if both && bases.is_empty() {
            return stays(*came == Came::Unrelated);
        }
        if theirs == 0 || bases == [theirs] {
            return stays(*came == Came::Nothing);
        }
        if let Came::Unsaved(changes) = came {
            return stays(*changes > 0 && self.may_count(Some(held), *changes));
        }
        let base = self.contents(held.base)?;
        if !self.same(&base, &held.values) {
            return None;
        }
        let head_is_base = bases.is_empty() && held.head == 0 || bases == [held.head];
        let ahead = head_is_base && self.same(&self.contents(held.head)?, &held.values);
        let their_values = self.contents(theirs)?;
        match came {
            Came::Unknown if ahead => self.moved(state, op.on, theirs, theirs, their_values),
            Came::Ahead(head) if *head == theirs && ahead => {
                self.moved(state, op.on, theirs, theirs, their_values)
            }
            // Of some keys only, what the others hold decides as well.
            Came::Made(made) if !ahead || self.keys != ALL => {
                let values = self.contents(*made)?;
                let sides = (&held.values, &their_values);
                let right = self.joins(&bases, sides, *policy, &values)
                    && follows(self.graph.parents(*made), &[held.head, theirs]);
                right
                    .then(|| self.moved(state, op.on, *made, *made, values))
                    .flatten()
            }
            Came::Conflicts(keys) if *policy == Policy::Fail => {
                stays(self.conflict(&bases, (&held.values, &their_values), keys))
            }
            _ => None,
        }
    }

    /// Whether `made` is what both sides make of their bases.
    fn joins(
        &self,
        bases: &[Checkpoint],
        (ours, theirs): (&Contents, &Contents),
        policy: Policy,
        made: &Contents,
    ) -> bool {
        self.each_key().all(|key| {
            let (ours, theirs, made) = (ours[key], theirs[key], made[key]);
            match self.base_value(bases, key) {
                // Bases that do not agree: of which side it is, is left open.
                None => made == ours || made == theirs,
                Some(base) if base == ours => made == theirs,
                Some(base) if base == theirs || ours == theirs => made == ours,
                Some(_) => match policy {
                    Policy::Ours => made == ours,
                    Policy::Theirs => made == theirs,
                    Policy::Fail => false,
                },
            }
        })
    }

    /// Whether these are the keys that both sides changed.
    fn conflict(
        &self,
        bases: &[Checkpoint],
        (ours, theirs): (&Contents, &Contents),
        keys: &[Key],
    ) -> bool {
        !keys.is_empty()
            && self.each_key().all(|key| {
                let (ours, theirs) = (ours[key], theirs[key]);
                let listed = keys.contains(&(key as Key));
                match self.base_value(bases, key) {
                    None => !listed || ours != theirs,
                    Some(base) => listed == (ours != base && theirs != base && ours != theirs),
                }
            })
    }

    /// What the bases say of a key, if they agree.
    fn base_value(&self, bases: &[Checkpoint], key: usize) -> Option<Value> {
        let mut values = bases
            .iter()
            .map(|base| self.contents(*base).map(|held| held[key]));
        let first = values.next().unwrap_or(Some(0))?;
        values.all(|value| value == Some(first)).then_some(first)
    }

    fn resolve(&self, state: &State, on: Branch, source: Source) -> Option<Checkpoint> {
        match source {
            Source::Head => Some(state.branches.get(&on)?.head),
            Source::Branch(name) => {
                let no = self.named(state, name)?;
                Some(state.branches[&no].head)
            }
            Source::Checkpoint(checkpoint) => Some(checkpoint),
        }
    }

    fn named(&self, state: &State, name: Name) -> Option<Branch> {
        let mut found = state.branches.iter();
        let found = found.find(|(_, held)| held.name == Some(name));
        found.map(|(no, _)| *no)
    }

    fn lists(&self, state: &State, branches: &[crate::history::Listed]) -> bool {
        let known = state.branches.iter().filter_map(|(no, held)| {
            let (no, head, name) = (*no, held.head, held.name?);
            Some(crate::history::Listed { no, name, head })
        });
        let mut known: Vec<_> = known.collect();
        known.sort_by_key(|known| known.no);
        known == branches
    }

    /// Whether a branch can have so many changes: at least the keys that differ from its base, at most those written.
    fn may_count(&self, held: Option<&Held>, changes: u64) -> bool {
        let Some(held) = held else {
            return false;
        };
        if self.keys != ALL {
            return true;
        }
        let base = self.contents(held.base).unwrap_or(held.values);
        let differ = self
            .each_key()
            .filter(|key| base[*key] != held.values[*key]);
        (differ.count() as u64..=u64::from(held.touched.count_ones())).contains(&changes)
    }

    fn contents(&self, of: Checkpoint) -> Option<Contents> {
        let mut contents = self.graph.contents(of)?;
        for key in (0..KEYS).filter(|key| !self.looks_at(*key as Key)) {
            contents[key] = 0;
        }
        Some(contents)
    }

    fn value(&self, held: &Held, key: Key) -> Value {
        held.values[usize::from(key)]
    }

    fn same(&self, a: &Contents, b: &Contents) -> bool {
        self.each_key().all(|key| a[key] == b[key])
    }

    fn looks_at(&self, key: Key) -> bool {
        self.keys & 1 << key != 0
    }

    fn each_key(&self) -> impl Iterator<Item = usize> {
        let keys = self.keys;
        (0..KEYS).filter(move |key| keys & 1 << key != 0)
    }
}

fn is_named((_, held): &(Branch, Held)) -> bool {
    held.name.is_some()
}

/// Whether a checkpoint with these parents may follow these heads; there may be none.
fn follows(parents: &[Checkpoint], heads: &[Checkpoint]) -> bool {
    heads
        .iter()
        .copied()
        .filter(|head| *head != 0)
        .eq(parents.iter().copied())
}
