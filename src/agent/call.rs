//! Calls: what a lane asks of versioned state, and the answers.
//!
//! Floor 1, room `agent`. A call travels in the value extent of an entry of [`Op::Call`], its answer in
//! the reply extent: items one after the other, as many as there are. Both are written by `postcard`
//! (varints, lengths before bytes; `PROTOCOL.md`, section 12, says how much of it is used), since nothing
//! here is hot enough to need a layout of its own: decoding a call takes some 50 ns.
//!
//! Invariants
//! - variants and fields are only ever added at the end: their order is the format.
//! - names are checked where they are decoded ([`Call::decode`]): no later code meets a bad one.
//!
//! [`Op::Call`]: crate::agent::entry::Op::Call

use serde::{Deserialize, Serialize};

use crate::agent::malformed::Malformed;
use crate::agent::set_call::SetCall;
use crate::id::{AGENT_NAME_BYTES_MAX, KEY_BYTES_MAX, OBJECT_ID_BYTES, ObjectId, Retention};

/// Longest name of a branch or a tag, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Most prefix rules of a merge.
pub const RULES_MAX: usize = 64;

/// An [`ObjectId`] on the wire: its 32 bytes.
pub type Id = [u8; OBJECT_ID_BYTES];

/// What names a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Revision<'a> {
    /// What the branch of the entry points at.
    Head,
    /// What the branch of that name points at.
    Branch(#[serde(borrow)] &'a str),
    /// What the tag of that name points at.
    Tag(#[serde(borrow)] &'a str),
    /// The checkpoint itself.
    Checkpoint(Id),
    /// No checkpoint: the empty state before the first.
    Empty,
    /// What another agent has published under a name ([`Call::Publish`]). From the first use on the
    /// asking agent may read that checkpoint, by its id too, until it gives it up.
    Published {
        /// The agent that published it.
        #[serde(borrow)]
        agent: &'a str,
        /// The name.
        #[serde(borrow)]
        name: &'a str,
    },
}

/// What becomes of a key that both sides of a merge changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// The branch's value stays.
    Ours,
    /// The other's value is taken.
    Theirs,
    /// The merge ends with conflicts.
    Fail,
}

/// What a lane asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call<'a> {
    /// Makes a checkpoint of the branch. Answer: [`Checkpointed`].
    Checkpoint {
        /// Any bytes to attach.
        #[serde(borrow)]
        opaque: &'a [u8],
        /// Pairs to attach, as `CHECKPOINT.md` encodes them.
        #[serde(borrow)]
        pairs: &'a [u8],
        /// What the head must be now: nothing said, none, or this.
        expect: Option<Option<Id>>,
    },
    /// Describes the branch. Answer: [`BranchInfo`].
    Describe,
    /// Lists branches whose names come after this one. Answer: [`BranchInfo`] each.
    Branches {
        /// The last name of the page before.
        #[serde(borrow)]
        after: &'a str,
    },
    /// Makes a branch. Answer: [`BranchInfo`].
    Branch {
        /// Its name, not taken yet.
        #[serde(borrow)]
        name: &'a str,
        /// Where it begins.
        #[serde(borrow)]
        from: Revision<'a>,
    },
    /// Gives the branch another name. Answer: [`BranchInfo`].
    Rename {
        /// The name, not taken yet.
        #[serde(borrow)]
        name: &'a str,
    },
    /// Deletes a branch that no lane is on. No answer.
    DeleteBranch {
        /// Its name.
        #[serde(borrow)]
        name: &'a str,
        /// Even if it has changes that no checkpoint holds.
        force: bool,
    },
    /// Puts the lane on a branch. Answer: [`BranchInfo`].
    Switch {
        /// Its name.
        #[serde(borrow)]
        name: &'a str,
    },
    /// Opens a fork: a private overlay on a checkpoint. Answer: [`BranchInfo`].
    Fork {
        /// What it lies on.
        #[serde(borrow)]
        from: Revision<'a>,
    },
    /// Drops the fork. No answer.
    Discard,
    /// Makes a branch of the fork. Answer: [`BranchInfo`].
    Keep {
        /// The branch's name, not taken yet.
        #[serde(borrow)]
        name: &'a str,
    },
    /// Makes the working set what a checkpoint holds; the head stays. No answer.
    Restore {
        /// The checkpoint.
        #[serde(borrow)]
        to: Revision<'a>,
        /// Even if changes are lost that no checkpoint holds.
        force: bool,
    },
    /// Lists a checkpoint and those before it, each after all that follow it. Answer: [`Logged`] each.
    Log {
        /// The first one.
        #[serde(borrow)]
        from: Revision<'a>,
        /// Where to go on, instead: what the answer before ended with.
        frontier: Vec<Id>,
        /// At most so many; 0: as many as fit.
        limit: u32,
    },
    /// Names a checkpoint. No answer.
    Tag {
        /// The name.
        #[serde(borrow)]
        name: &'a str,
        /// The checkpoint.
        #[serde(borrow)]
        target: Revision<'a>,
        /// Even if the name names another one.
        force: bool,
    },
    /// Takes a name from a checkpoint. No answer.
    Untag {
        /// The name.
        #[serde(borrow)]
        name: &'a str,
    },
    /// Lists tags whose names come after this one. Answer: [`TagInfo`] each.
    Tags {
        /// The last name of the page before.
        #[serde(borrow)]
        after: &'a str,
    },
    /// Lists what differs between two checkpoints. Answer: [`Difference`] each.
    Diff {
        /// The one.
        #[serde(borrow)]
        before: Revision<'a>,
        /// The other.
        #[serde(borrow)]
        after: Revision<'a>,
        /// Only keys after this one.
        #[serde(borrow)]
        from: Option<&'a [u8]>,
        /// At most so many; 0: as many as fit.
        limit: u32,
    },
    /// Counts what differs between two checkpoints. Answer: [`DiffCounts`].
    DiffCounts {
        /// The one.
        #[serde(borrow)]
        before: Revision<'a>,
        /// The other.
        #[serde(borrow)]
        after: Revision<'a>,
    },
    /// Merges a checkpoint into the branch. Answer: [`Merged`], or [`Conflict`] each.
    Merge {
        /// What to merge.
        #[serde(borrow)]
        from: Revision<'a>,
        /// What becomes of keys under a prefix that both changed; the longest prefix counts, and
        /// where there is none, the merge fails.
        #[serde(borrow)]
        rules: Vec<(&'a [u8], Policy)>,
        /// Any bytes to attach.
        #[serde(borrow)]
        opaque: &'a [u8],
        /// Pairs to attach.
        #[serde(borrow)]
        pairs: &'a [u8],
        /// What the head must be now.
        expect: Option<Option<Id>>,
    },
    /// Says how much of a branch's history collections keep. No answer.
    Retain {
        /// The branch's name.
        #[serde(borrow)]
        name: &'a str,
        /// The rule.
        rule: Retention,
    },
    /// Makes the checkpoint of these bytes of a fork that has its state: one that was made elsewhere, or before.
    /// Answer: [`Checkpointed`].
    CheckpointAs {
        /// As `CHECKPOINT.md` says. Its tree has to be that of the fork; parents that are stored have to
        /// have lower sequences.
        #[serde(borrow)]
        bytes: &'a [u8],
    },
    /// About superpositions.
    Superposition(#[serde(borrow)] SetCall<'a>),
    /// Names a checkpoint, as [`Call::Tag`] does, and lets every agent read it by that name. A tag of
    /// the same name that is made anew is private again. No answer.
    Publish {
        /// The name.
        #[serde(borrow)]
        name: &'a str,
        /// The checkpoint.
        #[serde(borrow)]
        target: Revision<'a>,
        /// Even if the name names another one.
        force: bool,
    },
    /// Lists published names that come after this one. Answer: [`TagInfo`] each.
    Published {
        /// The last name of the page before.
        #[serde(borrow)]
        after: &'a str,
    },
    /// Gives a checkpoint up that the agent did not make, and may read since it named it as published:
    /// refused while a branch or a tag names it. No answer.
    Forget {
        /// The checkpoint.
        target: Id,
    },
}

impl<'a> Call<'a> {
    /// Reads a call.
    ///
    /// # Errors
    /// [`Malformed::Call`], for which a session is ended: no client writes such bytes. A name that
    /// breaks a rule is not that: [`Call::check_names`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (call, rest) = postcard::take_from_bytes(bytes).map_err(|_| Malformed::Call)?;
        let long_rules = matches!(&call, Self::Merge { rules, .. } if rules.len() > RULES_MAX);
        if !rest.is_empty() || long_rules {
            return Err(Malformed::Call);
        }
        Ok(call)
    }

    /// Appends the call to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        push(self, out);
    }

    /// Bytes that the reply must have room for before anything is done: what a call changed can't be
    /// taken back when its answer turns out too long.
    #[must_use]
    pub fn answer_bytes_min(&self) -> u32 {
        match self {
            Self::Checkpoint { .. }
            | Self::Branch { .. }
            | Self::Rename { .. }
            | Self::Switch { .. }
            | Self::Fork { .. }
            | Self::Keep { .. }
            | Self::Merge { .. }
            | Self::CheckpointAs { .. } => ANSWER_BYTES_MAX,
            Self::Superposition(call) if call.has_one_answer() => ANSWER_BYTES_MAX,
            _ => 0,
        }
    }

    /// Whether each name that something is to have may be one.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn check_names(&self) -> Result<(), BadName> {
        match self {
            Self::Branch { name, .. }
            | Self::Rename { name }
            | Self::Keep { name }
            | Self::Tag { name, .. }
            | Self::Publish { name, .. } => check_name(name),
            Self::Superposition(call) => call.check_names(),
            _ => Ok(()),
        }
    }

    /// The revisions that it names.
    pub fn revisions_mut(&mut self) -> impl Iterator<Item = &mut Revision<'a>> {
        let named = match self {
            Self::Branch { from, .. }
            | Self::Fork { from }
            | Self::Log { from, .. }
            | Self::Merge { from, .. } => [Some(from), None],
            Self::Restore { to, .. } => [Some(to), None],
            Self::Superposition(SetCall::Add { from, .. }) => [Some(from), None],
            Self::Tag { target, .. } | Self::Publish { target, .. } => [Some(target), None],
            Self::Diff { before, after, .. } | Self::DiffCounts { before, after } => {
                [Some(before), Some(after)]
            }
            _ => [None, None],
        };
        named.into_iter().flatten()
    }
}

/// Room that the answer of a call that changes something never exceeds.
pub const ANSWER_BYTES_MAX: u32 = 512;

/// A name that no branch and no tag can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name has 1 to {NAME_BYTES_MAX} bytes, no control characters, does not begin with `-` and \
     does not look like an id (64 hexadecimal digits)"
)]
pub struct BadName;

/// Checks the name of a branch or a tag.
///
/// # Errors
/// [`BadName`].
pub fn check_name(name: &str) -> Result<(), BadName> {
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(char::is_control)
        && !name.starts_with('-')
        && name.parse::<ObjectId>().is_err();
    if good { Ok(()) } else { Err(BadName) }
}

/// A checkpoint that was made. `P` is a list of ids: who writes one lends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointed<P = Vec<Id>> {
    /// Its id.
    pub id: Id,
    /// Its tree's id.
    pub tree: Id,
    /// Its parents.
    pub parents: P,
    /// Keys that it holds.
    pub keys: u64,
    /// Objects that were stored for it: nodes, and the checkpoint itself.
    pub new_objects: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Bytes of the nodes that were there already, of those that a change made.
    pub reused_bytes: u64,
}

impl Checkpointed<&[Id]> {
    /// The same with a list of its own.
    #[must_use]
    pub fn into_owned(self) -> Checkpointed {
        Checkpointed {
            id: self.id,
            tree: self.tree,
            parents: self.parents.to_vec(),
            keys: self.keys,
            new_objects: self.new_objects,
            new_bytes: self.new_bytes,
            reused_bytes: self.reused_bytes,
        }
    }
}

/// A branch or a fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchInfo {
    /// Its number: what entries name it by.
    pub no: u32,
    /// Its name; empty for a fork.
    pub name: String,
    /// What it points at.
    pub head: Option<Id>,
    /// The tree that its working set lies on.
    pub base: Id,
    /// Keys that were written or deleted since.
    pub changes: u64,
    /// How much of its history collections keep.
    pub retention: Retention,
}

/// An item of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Logged<'a> {
    /// A checkpoint.
    Entry {
        /// Its id.
        id: Id,
        /// Its bytes, as `CHECKPOINT.md` says.
        #[serde(borrow)]
        checkpoint: &'a [u8],
    },
    /// One of those at which the log goes on; they come last.
    Next {
        /// Its id.
        id: Id,
    },
}

/// A tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagInfo<'a> {
    /// Its name.
    #[serde(borrow)]
    pub name: &'a str,
    /// The checkpoint that it names.
    pub target: Id,
}

/// A value, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueInfo {
    /// Its id, as a read of it has.
    pub id: Id,
    /// Its bytes.
    pub bytes: u64,
}

/// A key in which two states differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference<'a> {
    /// The key.
    #[serde(borrow)]
    pub key: &'a [u8],
    /// What it names in the one; `None`: it was added.
    pub before: Option<ValueInfo>,
    /// What it names in the other; `None`: it was removed.
    pub after: Option<ValueInfo>,
}

/// How many keys differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiffCounts {
    /// Only in the second.
    pub added: u64,
    /// Only in the first.
    pub removed: u64,
    /// In both, with other values.
    pub changed: u64,
}

/// A merge that went through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Merged {
    /// There was nothing to merge: the branch holds it already.
    Nothing,
    /// The branch had nothing that the other did not: it points at the other now.
    FastForward {
        /// The head.
        head: Id,
    },
    /// A checkpoint with two parents was made.
    Merged(Checkpointed),
}

/// A key that both sides of a merge changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict<'a> {
    /// The key.
    #[serde(borrow)]
    pub key: &'a [u8],
    /// What it named where the two histories part; `None` also where they part in several places that do
    /// not agree.
    pub base: Option<ValueInfo>,
    /// What it names in the branch.
    pub ours: Option<ValueInfo>,
    /// What it names in the other.
    pub theirs: Option<ValueInfo>,
}

/// Appends an item of an answer.
pub fn push(item: &impl Serialize, out: &mut Vec<u8>) {
    let taken = postcard::to_extend(item, std::mem::take(out));
    *out = taken.expect("memory takes everything, and no item has a length that is not known");
}

/// Reads the items of an answer.
pub fn items<'a, T: Deserialize<'a>>(
    mut answer: &'a [u8],
) -> impl Iterator<Item = Result<T, BadAnswer>> {
    std::iter::from_fn(move || {
        if answer.is_empty() {
            return None;
        }
        match postcard::take_from_bytes(answer) {
            Ok((item, rest)) => {
                answer = rest;
                Some(Ok(item))
            }
            Err(_) => {
                answer = &[];
                Some(Err(BadAnswer))
            }
        }
    })
}

/// Reads an answer that is one item.
///
/// # Errors
/// [`BadAnswer`].
pub fn one<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, BadAnswer> {
    match postcard::take_from_bytes(answer) {
        Ok((item, [])) => Ok(item),
        _ => Err(BadAnswer),
    }
}

/// Bytes that are no answer to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the runtime's answer is of another version; use the runtime's own client")]
pub struct BadAnswer;

const _: () = assert!(NAME_BYTES_MAX <= KEY_BYTES_MAX && AGENT_NAME_BYTES_MAX <= KEY_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::set_call::Choice;
    use proptest::prelude::*;

    #[test]
    fn calls_read_back_as_they_were_written() {
        let id = [7; OBJECT_ID_BYTES];
        let calls = [
            Call::Checkpoint {
                opaque: b"abc",
                pairs: &[],
                expect: Some(Some(id)),
            },
            Call::Describe,
            Call::Branch {
                name: "try/1",
                from: Revision::Tag("v1"),
            },
            Call::Diff {
                before: Revision::Empty,
                after: Revision::Checkpoint(id),
                from: Some(b"key"),
                limit: 100,
            },
            Call::Merge {
                from: Revision::Branch("other"),
                rules: vec![(b"a/", Policy::Theirs), (b"", Policy::Ours)],
                opaque: &[],
                pairs: &[],
                expect: Some(None),
            },
            Call::Superposition(SetCall::Create {
                name: "tries",
                half_life_ms: 60_000,
                ttl_ms: 0,
                bound: 0.5f64.to_le_bytes(),
            }),
            Call::Superposition(SetCall::Collapse {
                set: 3,
                choice: Choice::Drawn { seed: u64::MAX },
                into: Some("main"),
                expect: None,
                force: false,
            }),
        ];
        for call in calls {
            let mut bytes = Vec::new();
            call.encode(&mut bytes);
            assert_eq!(Call::decode(&bytes), Ok(call));
            bytes.push(0);
            assert_eq!(Call::decode(&bytes), Err(Malformed::Call));
        }
    }

    #[test]
    fn names_that_would_be_taken_for_something_else_are_refused() {
        for name in ["main", "try/1", "späť", "a b", "..", &"n".repeat(255)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "-f", "a\nb", &"n".repeat(256), &"0".repeat(64)] {
            assert_eq!(check_name(name), Err(BadName), "{name}");
        }
    }

    #[test]
    fn an_answer_is_read_item_by_item() {
        let mut answer = Vec::new();
        let tags = ["a", "b"].map(|name| TagInfo {
            name,
            target: [1; OBJECT_ID_BYTES],
        });
        tags.iter().for_each(|tag| push(tag, &mut answer));
        let found: Result<Vec<TagInfo<'_>>, _> = items(&answer).collect();
        assert_eq!(found.unwrap(), tags);
        answer.truncate(answer.len() - 1);
        let found: Result<Vec<TagInfo<'_>>, _> = items(&answer).collect();
        assert_eq!(found, Err(BadAnswer));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_call_or_malformed(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(call) = Call::decode(&bytes) {
                let mut again = Vec::new();
                call.encode(&mut again);
                // Varints have more than one form; what they mean is the same.
                prop_assert_eq!(Call::decode(&again), Ok(call));
            }
        }
    }
}
