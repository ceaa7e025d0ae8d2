//! What has to be there: a plain model of every agent, and what a crash may take of it.
//!
//! A model is a state, and a journal of what was done to it since, in the order in which its lane asked. What
//! was acknowledged has a place in the log of a shard. After a crash the log ends somewhere, and of the
//! journal exactly that must be left which has its place before the end: a suffix is lost, no gap, nothing
//! mixed. What was not acknowledged may be there or not.
//!
//! Invariants
//! - a state is only believed in when it was read, whole, and is among those that are allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::agent::call::Id;
use crate::config::Durability;

pub(super) type Value = Rc<[u8]>;
pub(super) type Keys = BTreeMap<Vec<u8>, Value>;

/// Most combinations of deeds in doubt that are tried.
const COMBINATIONS_MAX: usize = 1 << 16;

/// What a branch points at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    None,
    Known(Id),
    /// A checkpoint that was asked for, whose id nobody was told.
    Untold,
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no head"),
            Self::Known([a, b, c, ..]) => write!(f, "{a:02x}{b:02x}{c:02x}"),
            Self::Untold => f.write_str("untold"),
        }
    }
}

/// A branch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) head: Head,
    pub(super) keys: Keys,
}

impl Line {
    pub(super) fn empty() -> Self {
        Self {
            head: Head::None,
            keys: Keys::new(),
        }
    }
}

/// All of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    pub(super) branches: BTreeMap<String, Line>,
    pub(super) tags: BTreeMap<String, Head>,
    pub(super) published: BTreeMap<String, Head>,
    pub(super) sets: BTreeMap<String, Vec<Head>>,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            branches: BTreeMap::from([("main".to_owned(), Line::empty())]),
            tags: BTreeMap::new(),
            published: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }

    /// Whether this was allowed, and that was found. A checkpoint whose id nobody was told may have any
    /// that nobody knows.
    pub(super) fn admits(&self, found: &Self, is_known: &dyn Fn(&Id) -> bool) -> bool {
        let same = |allowed: &Head, found: &Head| match (allowed, found) {
            (Head::Untold, Head::Known(id)) => !is_known(id),
            _ => allowed == found,
        };
        let names = |one: &BTreeMap<String, Head>, other: &BTreeMap<String, Head>| {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|(a, b)| a.0 == b.0 && same(a.1, b.1))
        };
        let sets = self.sets.len() == found.sets.len()
            && self.sets.iter().zip(&found.sets).all(|(a, b)| {
                a.0 == b.0 && a.1.len() == b.1.len() && a.1.iter().zip(b.1).all(|(a, b)| same(a, b))
            });
        let branches = self.branches.len() == found.branches.len()
            && self
                .branches
                .iter()
                .zip(&found.branches)
                .all(|(a, b)| a.0 == b.0 && a.1.keys == b.1.keys && same(&a.1.head, &b.1.head));
        branches
            && sets
            && names(&self.tags, &found.tags)
            && names(&self.published, &found.published)
    }

    /// Where two differ, to be read.
    pub(super) fn difference(&self, found: &Self) -> String {
        let mut text = String::new();
        for (name, line) in &self.branches {
            let Some(other) = found.branches.get(name) else {
                text += &format!("branch {name} is missing; ");
                continue;
            };
            if line.head != other.head {
                text += &format!("head of {name}: {:?} and not {:?}; ", other.head, line.head);
            }
            let mut keys: Vec<_> = line.keys.keys().chain(other.keys.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let (wanted, there) = (line.keys.get(key), other.keys.get(key));
                if wanted != there {
                    let key = String::from_utf8_lossy(key);
                    text += &format!("{name}/{key}: {} and not {}; ", brief(there), brief(wanted));
                }
            }
        }
        for name in found.branches.keys() {
            if !self.branches.contains_key(name) {
                text += &format!("branch {name} should not be; ");
            }
        }
        if self.tags != found.tags || self.published != found.published {
            text += &format!("tags {:?} and not {:?}; ", found.tags, self.tags);
        }
        if self.sets != found.sets {
            text += &format!("sets {:?} and not {:?}; ", found.sets, self.sets);
        }
        text
    }
}

/// A value, so that a line can hold it.
pub(super) fn brief(value: Option<&Value>) -> String {
    match value {
        None => "nothing".into(),
        Some(value) => {
            let first: Vec<String> = value.iter().take(4).map(|b| format!("{b:02x}")).collect();
            format!("{} bytes {}", value.len(), first.concat())
        }
    }
}

/// What can be done to a state.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    Put(String, Vec<(Vec<u8>, Value)>),
    Delete(String, Vec<u8>),
    /// A checkpoint, of these parents beside the head where it merges.
    Commit(String, Head),
    /// A branch gets this state.
    Move(String, Line),
    /// A branch gets these keys.
    Restore(String, Keys),
    Rename(String, String),
    Remove(String),
    Tag(String, Head, bool),
    Untag(String),
    Set(String, Vec<Head>),
    Release(String),
    /// A superposition ends, and a branch gets this state.
    Collapse(String, String, Line),
    /// The agent is deleted.
    Terminate,
}

impl Deed {
    pub(super) fn apply(&self, state: &mut State) {
        match self {
            Self::Put(branch, pairs) => {
                if let Some(line) = state.branches.get_mut(branch) {
                    line.keys.extend(pairs.iter().cloned());
                }
            }
            Self::Delete(branch, key) => {
                if let Some(line) = state.branches.get_mut(branch) {
                    line.keys.remove(key);
                }
            }
            Self::Commit(branch, head) => {
                if let Some(line) = state.branches.get_mut(branch) {
                    line.head = *head;
                }
            }
            Self::Move(branch, line) => _ = state.branches.insert(branch.clone(), line.clone()),
            Self::Restore(branch, keys) => {
                if let Some(line) = state.branches.get_mut(branch) {
                    line.keys.clone_from(keys);
                }
            }
            Self::Rename(from, to) => {
                if let Some(line) = state.branches.remove(from) {
                    state.branches.insert(to.clone(), line);
                }
            }
            Self::Remove(branch) => _ = state.branches.remove(branch),
            Self::Tag(name, target, public) => {
                state.tags.insert(name.clone(), *target);
                match public {
                    true => _ = state.published.insert(name.clone(), *target),
                    false => _ = state.published.remove(name),
                }
            }
            Self::Untag(name) => {
                state.tags.remove(name);
                state.published.remove(name);
            }
            Self::Set(name, heads) => _ = state.sets.insert(name.clone(), heads.clone()),
            Self::Collapse(name, branch, line) => {
                state.sets.remove(name);
                state.branches.insert(branch.clone(), line.clone());
            }
            Self::Release(name) => _ = state.sets.remove(name),
            Self::Terminate => *state = State::new(),
        }
    }

    /// In some words.
    fn describe(&self) -> String {
        match self {
            Self::Put(branch, pairs) => {
                let pairs = pairs.iter().map(|(key, value)| {
                    format!("{} {}", String::from_utf8_lossy(key), brief(Some(value)))
                });
                format!("put on {branch}: {:?}", pairs.collect::<Vec<_>>())
            }
            Self::Delete(branch, key) => {
                format!("delete on {branch}: {}", String::from_utf8_lossy(key))
            }
            Self::Move(branch, line) | Self::Collapse(_, branch, line) => {
                format!("{branch} becomes {:?}, {} keys", line.head, line.keys.len())
            }
            Self::Restore(branch, keys) => format!("{branch} restored to {} keys", keys.len()),
            other => format!("{other:?}"),
        }
    }

    /// What it makes of a key, if it touches it.
    fn value_of(&self, branch: &str, key: &[u8]) -> Option<Option<Value>> {
        match self {
            Self::Put(on, pairs) if on == branch => {
                let found = pairs.iter().rev().find(|pair| pair.0 == key);
                found.map(|pair| Some(Rc::clone(&pair.1)))
            }
            Self::Delete(on, gone) if on == branch && gone == key => Some(None),
            Self::Move(on, Line { keys, .. })
            | Self::Collapse(_, on, Line { keys, .. })
            | Self::Restore(on, keys)
                if on == branch =>
            {
                Some(keys.get(key).cloned())
            }
            Self::Terminate => Some(None),
            _ => None,
        }
    }
}

/// How a deed ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Nobody knows.
    Open,
    /// Acknowledged: its records are behind the first place and up to the second, in the log of a shard.
    Done { shard: usize, after: u64, upto: u64 },
    /// Refused; the shard's log had failed, or not.
    Refused,
}

/// A deed that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) deed: Deed,
    pub(super) outcome: Outcome,
    pub(super) durability: Durability,
    /// The call of the entry before asked for it, too: of one call a first part is done, or all.
    joined: bool,
}

/// Which deeds in doubt were done: every combination, from all to none.
struct Combinations {
    /// How many deeds each call has in doubt, and how many of them, the first ones, are taken.
    calls: Vec<(usize, usize)>,
    over: bool,
}

impl Combinations {
    /// Whether each deed in doubt was done.
    fn picked(&self) -> Vec<bool> {
        let calls = self.calls.iter();
        calls
            .flat_map(|&(deeds, taken)| (0..deeds).map(move |no| no < taken))
            .collect()
    }
}

impl Iterator for Combinations {
    type Item = Vec<bool>;

    fn next(&mut self) -> Option<Vec<bool>> {
        if self.over {
            return None;
        }
        let picked = self.picked();
        self.over = true;
        for (deeds, taken) in &mut self.calls {
            if *taken > 0 {
                *taken -= 1;
                self.over = false;
                break;
            }
            *taken = *deeds;
        }
        Some(picked)
    }
}

/// Where the log of a shard may have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) shard: usize,
    pub(super) last: u64,
    /// What a flush that failed had dropped may be there behind it.
    pub(super) dropped: bool,
}

/// An agent as it should be.
pub(super) struct Model {
    pub(super) name: String,
    base: State,
    journal: Vec<Entry>,
    /// Entries that are in `base` already, ever.
    settled: usize,
    /// It has to be read before it is changed by calls: something of it is not known.
    pub(super) doubt: bool,
    pub(super) shard: usize,
}

impl Model {
    pub(super) fn new(name: String, shard: usize) -> Self {
        Self {
            name,
            base: State::new(),
            journal: Vec::new(),
            settled: 0,
            doubt: false,
            shard,
        }
    }

    /// Notes that something is asked for; its number.
    pub(super) fn begin(&mut self, deed: Deed, durability: Durability) -> usize {
        self.journal.push(Entry {
            deed,
            outcome: Outcome::Open,
            durability,
            joined: false,
        });
        self.settled + self.journal.len() - 1
    }

    /// Notes what one call asks for, a deed after the other; how many they are, and the number of the first.
    pub(super) fn begin_all(&mut self, deeds: Vec<Deed>, durability: Durability) -> (usize, usize) {
        let (first, count) = (self.next(), deeds.len());
        for (no, deed) in deeds.into_iter().enumerate() {
            self.begin(deed, durability);
            if let Some(entry) = self.journal.last_mut() {
                entry.joined = no > 0;
            }
        }
        (first, count)
    }

    pub(super) fn entry(&mut self, no: usize) -> Option<&mut Entry> {
        self.journal.get_mut(no.checked_sub(self.settled)?)
    }

    /// What would come next.
    pub(super) fn next(&self) -> usize {
        self.settled + self.journal.len()
    }

    /// Volatile writes behind a place were taken back, or came after.
    pub(super) fn rolled_back(&mut self, shard: usize, flushed: u64) {
        for entry in &mut self.journal {
            if let Outcome::Done {
                shard: at, upto, ..
            } = entry.outcome
                && at == shard
                && upto > flushed
                && entry.durability == Durability::Volatile
            {
                entry.outcome = Outcome::Open;
                self.doubt = true;
            }
        }
    }

    /// The state, if everything that was acknowledged is there and nothing else.
    pub(super) fn live(&self) -> State {
        let mut state = self.base.clone();
        for entry in &self.journal {
            if matches!(entry.outcome, Outcome::Done { .. }) {
                entry.deed.apply(&mut state);
            }
        }
        state
    }

    /// What a read may find that was asked for when `next` was the next entry.
    pub(super) fn readable(&self, branch: &str, key: &[u8], next: usize) -> Vec<Option<Value>> {
        let (before, after) = self.journal.split_at(next.saturating_sub(self.settled));
        let later = after.iter().filter(|it| it.outcome != Outcome::Refused);
        let open = before.iter().filter(|it| it.outcome == Outcome::Open);
        let mut found: Vec<_> = later
            .chain(open)
            .filter_map(|it| it.deed.value_of(branch, key))
            .collect();
        let mut state = self.base.clone();
        for entry in before {
            if matches!(entry.outcome, Outcome::Done { .. }) {
                entry.deed.apply(&mut state);
            }
        }
        let line = state.branches.get(branch);
        found.push(line.and_then(|line| line.keys.get(key).cloned()));
        found
    }

    /// Entries that are there for sure, and those in doubt, after a crash or without one.
    fn sort_out(&self, end: Option<End>) -> (Vec<usize>, Vec<usize>) {
        let (mut sure, mut doubts) = (Vec::new(), Vec::new());
        for (at, entry) in self.journal.iter().enumerate() {
            let keeps = match (entry.outcome, end) {
                (Outcome::Open, _) => None,
                (Outcome::Refused, Some(end)) if end.dropped => None,
                (Outcome::Refused, _) => Some(false),
                (Outcome::Done { shard, after, upto }, Some(end)) if shard == end.shard => {
                    match (upto <= end.last, after >= end.last) {
                        (true, _) => Some(true),
                        (_, true) => Some(false),
                        _ => None,
                    }
                }
                (Outcome::Done { .. }, _) => Some(true),
            };
            match keeps {
                Some(true) => sure.push(at),
                Some(false) => {}
                None => doubts.push(at),
            }
        }
        (sure, doubts)
    }

    /// What may have been done of these; of too many the oldest were not.
    fn combinations(&self, doubts: &mut Vec<usize>) -> Combinations {
        let mut calls: Vec<(usize, usize)> = Vec::new();
        let mut combinations = 1;
        let mut tried = doubts.len();
        let mut until = doubts.len();
        for no in (0..doubts.len()).rev() {
            let at = doubts[no];
            if self.journal[at].joined && no > 0 && doubts[no - 1] + 1 == at {
                continue;
            }
            combinations *= until - no + 1;
            if combinations > COMBINATIONS_MAX {
                break;
            }
            calls.push((until - no, until - no));
            (tried, until) = (no, no);
        }
        doubts.drain(..tried);
        calls.reverse();
        Combinations { calls, over: false }
    }

    /// The state with these entries.
    fn with(&self, sure: &[usize], doubts: &[usize], picked: &[bool]) -> State {
        let mut state = self.base.clone();
        for (at, entry) in self.journal.iter().enumerate() {
            let doubted = doubts.binary_search(&at).ok();
            if sure.binary_search(&at).is_ok() || doubted.is_some_and(|no| picked[no]) {
                entry.deed.apply(&mut state);
            }
        }
        state
    }

    /// The states that it may have. `end`: where the log ended in which it was found, after a crash.
    pub(super) fn allowed(&self, end: Option<End>) -> impl Iterator<Item = State> {
        let (sure, mut doubts) = self.sort_out(end);
        let combinations = self.combinations(&mut doubts);
        combinations.map(move |picked| self.with(&sure, &doubts, &picked))
    }

    /// Whether what was found is one of them.
    pub(super) fn allows(
        &self,
        found: &State,
        end: Option<End>,
        is_known: &dyn Fn(&Id) -> bool,
    ) -> bool {
        self.allowed(end).any(|state| state.admits(found, is_known))
    }

    /// It was read without a crash: what was in doubt was done, or wasn't. `last`: where the log of its
    /// shard is. Whether there is a way.
    pub(super) fn decide(
        &mut self,
        found: &State,
        last: u64,
        is_known: &dyn Fn(&Id) -> bool,
    ) -> bool {
        let (sure, mut doubts) = self.sort_out(None);
        // What left no trace may have been done all the same.
        let way = self.combinations(&mut doubts).find(|picked| {
            let state = self.with(&sure, &doubts, picked);
            state.admits(found, is_known)
        });
        let Some(picked) = way else {
            return false;
        };
        let shard = self.shard;
        for (no, &at) in doubts.iter().enumerate() {
            let entry = &mut self.journal[at];
            if !picked[no] {
                entry.outcome = Outcome::Refused;
                continue;
            }
            entry.outcome = Outcome::Done {
                shard,
                after: 0,
                upto: last,
            };
            let now = |branch: &String| found.branches.get(branch).map(|line| line.head);
            match &mut entry.deed {
                Deed::Commit(branch, head) if *head == Head::Untold => {
                    *head = now(branch).unwrap_or(Head::Untold);
                }
                Deed::Move(branch, line) if line.head == Head::Untold => {
                    line.head = now(branch).unwrap_or(Head::Untold);
                }
                _ => {}
            }
        }
        self.doubt = false;
        true
    }

    /// It was read, and was allowed: from now on this is what it is.
    pub(super) fn believe(&mut self, found: State, shard: usize) {
        self.settled += self.journal.len();
        self.journal.clear();
        self.base = found;
        self.doubt = false;
        self.shard = shard;
    }

    /// Keeps the journal short: what no crash takes any more is the state. `safe`: up to where the logs of
    /// shards are on the device.
    pub(super) fn settle(&mut self, safe: &[u64]) {
        let held = self.journal.iter().position(|entry| match entry.outcome {
            Outcome::Open => true,
            Outcome::Done { shard, upto, .. } => upto > safe[shard],
            Outcome::Refused => false,
        });
        for entry in self.journal.drain(..held.unwrap_or(self.journal.len())) {
            self.settled += 1;
            if matches!(entry.outcome, Outcome::Done { .. }) {
                entry.deed.apply(&mut self.base);
            }
        }
    }

    /// The journal, to be read.
    pub(super) fn describe(&self) -> String {
        let mut text = format!(
            "{} (shard {}), {} settled\n",
            self.name, self.shard, self.settled
        );
        for entry in self.journal.iter().rev().take(30).rev() {
            let (outcome, durability) = (entry.outcome, entry.durability);
            text += &format!("  {outcome:?} {durability:?} {}\n", entry.deed.describe());
        }
        text
    }
}

/// A checkpoint that was made.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) keys: Keys,
    pub(super) parents: Vec<Id>,
}

/// Every agent's model, and all checkpoints ever made.
#[derive(Default)]
pub(super) struct Oracle {
    pub(super) models: Vec<Model>,
    pub(super) commits: BTreeMap<Id, Commit>,
}

impl Oracle {
    pub(super) fn is_known(&self) -> impl Fn(&Id) -> bool + '_ {
        |id| self.commits.contains_key(id)
    }
}
