//! Versioned state, as an agent's process asks for it: checkpoints, branches, forks, merges.
//!
//! Floor 2. Every method here is one entry of [`Op::Call`] and its answer; what each does is said at
//! [`Call`]. Names and ids are the caller's; nothing is kept here.

use std::ops::{Deref, DerefMut};

use serde::Deserialize;

use crate::agent::call::{
    self, Call, Conflict, Difference, Id, Logged, Policy, Revision, TagInfo, ValueInfo,
};
use crate::agent::entry::{Completion, Op, Status};
use crate::client::{ClientError, Lane};
use crate::config::Durability;
use crate::id::{BranchNo, OBJECT_ID_BYTES, ObjectId};
use crate::state::checkpoint::{self, Checkpoint, Metadata};

/// Bytes asked for of a page of an answer.
const PAGE_BYTES: u32 = 64 << 10;
/// Bytes asked for of an answer of one item: the longest names something of 255 bytes.
pub(super) const ITEM_BYTES: u32 = 1 << 10;

/// A checkpoint to be made.
#[derive(Clone, Debug, Default)]
pub struct NewCheckpoint<'a> {
    /// Any bytes to attach, at most 16 KiB.
    pub opaque: &'a [u8],
    /// Pairs of name and text to attach, at most 64.
    pub pairs: &'a [(&'a str, &'a str)],
    /// What it must survive before it is acknowledged; `None`: the runtime's default.
    pub durability: Option<Durability>,
    /// Only if the branch points at this now: `Some(None)` is nothing.
    pub expect: Option<Option<ObjectId>>,
}

/// A checkpoint that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpointed {
    /// Its id.
    pub id: ObjectId,
    /// Its tree: equal for equal states.
    pub tree: ObjectId,
    /// What it follows.
    pub parents: Vec<ObjectId>,
    /// Keys that it holds.
    pub keys: u64,
    /// Objects that were stored for it: nodes of its tree, and itself.
    pub new_objects: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Bytes of nodes that were stored already.
    pub reused_bytes: u64,
    /// Its place in the log of its shard.
    pub sequence: u64,
    /// The durability that was reached.
    pub durability: Durability,
}

/// A branch or a fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchInfo {
    /// Its number, for [`Lane::on`].
    pub no: BranchNo,
    /// Its name; empty for a fork.
    pub name: String,
    /// What it points at.
    pub head: Option<ObjectId>,
    /// The tree that its working set lies on.
    pub base: ObjectId,
    /// Keys that were written or deleted since.
    pub changes: u64,
}

/// A checkpoint in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its id.
    pub id: ObjectId,
    /// Its tree.
    pub tree: ObjectId,
    /// What it follows.
    pub parents: Vec<ObjectId>,
    /// The agent that made it.
    pub agent: String,
    /// Keys that it holds.
    pub keys: u64,
    /// Its place in the log of its shard.
    pub sequence: u64,
    /// Milliseconds since 1970, by the runtime's clock.
    pub wall_ms: u64,
    /// Opaque metadata.
    pub opaque: Vec<u8>,
    /// Pairs of metadata.
    pub pairs: Vec<(String, String)>,
}

/// Some of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPage {
    /// The checkpoints, each after all that follow it.
    pub entries: Vec<LogEntry>,
    /// Where the log goes on: nothing at its end. For [`Lane::log_after`].
    pub next: Vec<ObjectId>,
}

/// A value in a difference or a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueRef {
    /// Its id, as a read of it has.
    pub id: ObjectId,
    /// Its bytes.
    pub bytes: u64,
}

/// A key in which two states differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDifference {
    /// The key.
    pub key: Vec<u8>,
    /// What it names in the one; `None`: it was added.
    pub before: Option<ValueRef>,
    /// What it names in the other; `None`: it was removed.
    pub after: Option<ValueRef>,
}

/// A key that both sides of a merge changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeConflict {
    /// The key.
    pub key: Vec<u8>,
    /// What it named where the two histories part. `None`: nothing, or the histories have merged each
    /// other, and their last common states do not agree on the key.
    pub base: Option<ValueRef>,
    /// What it names in the branch.
    pub ours: Option<ValueRef>,
    /// What it names in the other.
    pub theirs: Option<ValueRef>,
}

/// A merge that went through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// There was nothing to merge: the branch holds it already.
    Nothing,
    /// The branch had nothing that the other did not: it points at the other now.
    FastForward {
        /// The head.
        head: ObjectId,
    },
    /// A checkpoint with two parents was made.
    Merged(Checkpointed),
}

/// Some of a list, and whether there is more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// The items, in order.
    pub items: Vec<T>,
    /// There are more: ask again after the last of these.
    pub more: bool,
}

/// A lane whose requests are about another branch or fork than the one it is on, until dropped.
#[derive(Debug)]
pub struct On<'a> {
    lane: &'a mut Lane,
    before: Option<BranchNo>,
}

impl Deref for On<'_> {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        self.lane
    }
}

impl DerefMut for On<'_> {
    fn deref_mut(&mut self) -> &mut Lane {
        self.lane
    }
}

impl Drop for On<'_> {
    fn drop(&mut self) {
        self.lane.target = self.before;
    }
}

impl Lane {
    /// The lane, for requests about a branch or fork by its number; the window is not used for them.
    pub fn on(&mut self, branch: BranchNo) -> On<'_> {
        let before = self.target.replace(branch);
        On { lane: self, before }
    }

    /// Makes a checkpoint of the branch: its whole state, whatever changed since the last one.
    ///
    /// # Errors
    /// [`ClientError::StaleHead`], [`ClientError::BadMetadata`] and those of writes.
    pub fn checkpoint(&mut self, new: &NewCheckpoint<'_>) -> Result<Checkpointed, ClientError> {
        let pairs = encode_pairs(new.pairs)?;
        let call = Call::Checkpoint {
            opaque: new.opaque,
            pairs: &pairs,
            expect: expected(new.expect),
        };
        self.ask(&call, new.durability, ITEM_BYTES, |completion, answer| {
            checkpointed(completion, one(answer)?)
        })
    }

    /// Lets `key` name `value`, and makes a checkpoint: for agents that keep their state as one value.
    ///
    /// # Errors
    /// As [`Lane::put`] and [`Lane::checkpoint`]; after an error of the latter the value is written.
    pub fn put_and_checkpoint(
        &mut self,
        key: &[u8],
        value: &[u8],
        new: &NewCheckpoint<'_>,
    ) -> Result<Checkpointed, ClientError> {
        // The checkpoint's flush makes the write as durable as itself.
        let volatile = crate::client::PutOptions {
            durability: Some(Durability::Volatile),
            ..Default::default()
        };
        self.put_with(key, value, volatile)?;
        self.checkpoint(new)
    }

    /// Describes the branch that the lane is on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn describe(&mut self) -> Result<BranchInfo, ClientError> {
        self.ask_branch(&Call::Describe)
    }

    /// Lists the agent's branches whose names come after `after`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn branches(&mut self, after: &str) -> Result<Listed<BranchInfo>, ClientError> {
        self.ask_list(&Call::Branches { after }, |answer| {
            all(answer, |info| Ok(branch_info(info)))
        })
    }

    /// Makes a branch of the agent; the lane stays where it is.
    ///
    /// # Errors
    /// [`ClientError::NameTaken`], [`ClientError::BadName`], [`ClientError::NoSuchRevision`].
    pub fn branch(&mut self, name: &str, from: Revision<'_>) -> Result<BranchInfo, ClientError> {
        call::check_name(name)?;
        self.ask_branch(&Call::Branch { name, from })
    }

    /// Gives the branch that the lane is on another name.
    ///
    /// # Errors
    /// As [`Lane::branch`].
    pub fn rename_branch(&mut self, name: &str) -> Result<BranchInfo, ClientError> {
        call::check_name(name)?;
        self.ask_branch(&Call::Rename { name })
    }

    /// Deletes a branch that no lane is on; with `force` even if it has unsaved changes.
    ///
    /// # Errors
    /// [`ClientError::InUse`], [`ClientError::Unsaved`], [`ClientError::NoSuchBranch`].
    pub fn delete_branch(&mut self, name: &str, force: bool) -> Result<(), ClientError> {
        self.ask_nothing(&Call::DeleteBranch { name, force })
    }

    /// Puts the lane on a branch: what it reads and writes from now on is that one's.
    ///
    /// # Errors
    /// [`ClientError::NoSuchBranch`].
    pub fn switch(&mut self, name: &str) -> Result<BranchInfo, ClientError> {
        self.ask_branch(&Call::Switch { name })
    }

    /// Opens a fork: a private overlay on a checkpoint, to write in and to drop, through
    /// [`Lane::on`]. It ends with the lane.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRevision`].
    pub fn fork(&mut self, from: Revision<'_>) -> Result<BranchInfo, ClientError> {
        self.ask_branch(&Call::Fork { from })
    }

    /// Drops a fork and what was written in it.
    ///
    /// # Errors
    /// [`ClientError::NoSuchBranch`].
    pub fn discard(&mut self, fork: BranchNo) -> Result<(), ClientError> {
        self.on(fork).ask_nothing(&Call::Discard)
    }

    /// Makes a branch of a fork, with what was written in it.
    ///
    /// # Errors
    /// As [`Lane::branch`].
    pub fn keep(&mut self, fork: BranchNo, name: &str) -> Result<BranchInfo, ClientError> {
        call::check_name(name)?;
        self.on(fork).ask_branch(&Call::Keep { name })
    }

    /// Makes the working set what a checkpoint holds. The head stays: the next checkpoint follows it.
    ///
    /// # Errors
    /// [`ClientError::Unsaved`] where changes would be lost and `force` does not allow it.
    pub fn restore(&mut self, to: Revision<'_>, force: bool) -> Result<(), ClientError> {
        self.ask_nothing(&Call::Restore { to, force })
    }

    /// Lists a checkpoint and those that it follows, each after all that follow it; at most `limit`, 0: as
    /// many as one reply holds.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRevision`].
    pub fn log(&mut self, from: Revision<'_>, limit: u32) -> Result<LogPage, ClientError> {
        let frontier = Vec::new();
        self.ask_log(&Call::Log {
            from,
            frontier,
            limit,
        })
    }

    /// The page of a log after one.
    ///
    /// # Errors
    /// As [`Lane::log`].
    pub fn log_after(&mut self, page: &LogPage, limit: u32) -> Result<LogPage, ClientError> {
        if page.next.is_empty() {
            return Ok(LogPage::default());
        }
        self.ask_log(&Call::Log {
            from: Revision::Empty,
            frontier: page.next.iter().map(|id| *id.as_bytes()).collect(),
            limit,
        })
    }

    /// Names a checkpoint; with `force` even if the name names another one.
    ///
    /// # Errors
    /// [`ClientError::NameTaken`], [`ClientError::BadName`], [`ClientError::NoSuchRevision`].
    pub fn tag(
        &mut self,
        name: &str,
        target: Revision<'_>,
        force: bool,
    ) -> Result<(), ClientError> {
        call::check_name(name)?;
        self.ask_nothing(&Call::Tag {
            name,
            target,
            force,
        })
    }

    /// Takes a name from a checkpoint.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRevision`].
    pub fn untag(&mut self, name: &str) -> Result<(), ClientError> {
        self.ask_nothing(&Call::Untag { name })
    }

    /// Lists tags whose names come after `after`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn tags(&mut self, after: &str) -> Result<Listed<(String, ObjectId)>, ClientError> {
        self.ask_list(&Call::Tags { after }, |answer| {
            all(answer, |tag: TagInfo<'_>| {
                Ok((tag.name.to_owned(), ObjectId::from_bytes(tag.target)))
            })
        })
    }

    /// Lists the keys after `from` in which two checkpoints differ; at most `limit`, 0: as many as one
    /// reply holds.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRevision`].
    pub fn diff(
        &mut self,
        before: Revision<'_>,
        after: Revision<'_>,
        from: Option<&[u8]>,
        limit: u32,
    ) -> Result<Listed<KeyDifference>, ClientError> {
        let call = Call::Diff {
            before,
            after,
            from,
            limit,
        };
        self.ask_list(&call, |answer| {
            all(answer, |found: Difference<'_>| {
                Ok(KeyDifference {
                    key: found.key.to_vec(),
                    before: found.before.map(value_ref),
                    after: found.after.map(value_ref),
                })
            })
        })
    }

    /// Counts the keys in which two checkpoints differ.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRevision`].
    pub fn diff_counts(
        &mut self,
        before: Revision<'_>,
        after: Revision<'_>,
    ) -> Result<call::DiffCounts, ClientError> {
        let call = Call::DiffCounts { before, after };
        self.ask(&call, None, ITEM_BYTES, |_, answer| one(answer))
    }

    /// Merges a checkpoint into the branch. `rules` say what becomes of keys under a prefix that both
    /// sides changed: the longest prefix counts; where there is none, that is a conflict.
    ///
    /// # Errors
    /// [`ClientError::Conflicts`], [`ClientError::StaleHead`], [`ClientError::Unsaved`] where the
    /// branch has changes that no checkpoint holds, [`ClientError::Unrelated`]; nothing was done.
    pub fn merge(
        &mut self,
        from: Revision<'_>,
        rules: &[(&[u8], Policy)],
        new: &NewCheckpoint<'_>,
    ) -> Result<Merged, ClientError> {
        let pairs = encode_pairs(new.pairs)?;
        let call = Call::Merge {
            from,
            rules: rules.to_vec(),
            opaque: new.opaque,
            pairs: &pairs,
            expect: expected(new.expect),
        };
        self.ask(&call, new.durability, PAGE_BYTES, |completion, answer| {
            Ok(match one::<call::Merged>(answer)? {
                call::Merged::Nothing => Merged::Nothing,
                call::Merged::FastForward { head } => Merged::FastForward {
                    head: ObjectId::from_bytes(head),
                },
                call::Merged::Merged(made) => Merged::Merged(checkpointed(completion, made)?),
            })
        })
    }

    fn ask_log(&mut self, call: &Call<'_>) -> Result<LogPage, ClientError> {
        self.ask(call, None, PAGE_BYTES, |_, answer| {
            let mut page = LogPage::default();
            for item in call::items(answer) {
                match item.map_err(|_| ClientError::BadReply)? {
                    Logged::Entry { id, checkpoint } => {
                        page.entries.push(log_entry(id, checkpoint)?);
                    }
                    Logged::Next { id } => page.next.push(ObjectId::from_bytes(id)),
                }
            }
            Ok(page)
        })
    }

    pub(super) fn ask_nothing(&mut self, call: &Call<'_>) -> Result<(), ClientError> {
        self.ask(call, None, 0, |_, _| Ok(()))
    }

    fn ask_branch(&mut self, call: &Call<'_>) -> Result<BranchInfo, ClientError> {
        self.ask(call, None, ITEM_BYTES, |_, answer| {
            one(answer).map(branch_info)
        })
    }

    pub(super) fn ask_list<T>(
        &mut self,
        call: &Call<'_>,
        read: impl FnOnce(&[u8]) -> Result<Vec<T>, ClientError>,
    ) -> Result<Listed<T>, ClientError> {
        self.ask(call, None, PAGE_BYTES, |completion, answer| {
            let items = read(answer)?;
            let more = completion.more;
            Ok(Listed { items, more })
        })
    }

    /// Submits a call, waits for its completion, and lets `read` look at the answer.
    pub(super) fn ask<T>(
        &mut self,
        call: &Call<'_>,
        durability: Option<Durability>,
        reply_bytes: u32,
        read: impl FnOnce(&Completion, &[u8]) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut bytes = std::mem::take(&mut self.request);
        bytes.clear();
        call.encode(&mut bytes);
        let mut entry = self.entry(Op::Call);
        entry.durability = durability;
        let submitted = self.submit(entry, &[], &bytes, reply_bytes);
        self.request = bytes;
        let mut answer = std::mem::take(&mut self.reply);
        let completed = self.complete(submitted?, Some(&mut answer));
        let outcome = completed.and_then(|completion| match completion.status {
            Status::Conflicts => Err(ClientError::Conflicts {
                listed: conflicts(&answer)?,
                more: completion.more,
            }),
            _ => match ClientError::of(&completion) {
                Some(error) => Err(error),
                None => read(&completion, &answer),
            },
        });
        self.reply = answer;
        outcome
    }
}

/// Reads each item of an answer.
pub(super) fn all<'a, W: Deserialize<'a>, T>(
    answer: &'a [u8],
    read: impl Fn(W) -> Result<T, ClientError>,
) -> Result<Vec<T>, ClientError> {
    call::items(answer)
        .map(|item| read(item.map_err(|_| ClientError::BadReply)?))
        .collect()
}

pub(super) fn one<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, ClientError> {
    let first = call::items(answer).next();
    first.and_then(Result::ok).ok_or(ClientError::BadReply)
}

fn encode_pairs(pairs: &[(&str, &str)]) -> Result<Vec<u8>, ClientError> {
    let mut encoded = Vec::new();
    for (name, text) in pairs {
        checkpoint::push_pair(&mut encoded, name, text).map_err(|_| ClientError::BadMetadata)?;
    }
    Metadata::new(&[], &encoded).map_err(|_| ClientError::BadMetadata)?;
    Ok(encoded)
}

fn expected(expect: Option<Option<ObjectId>>) -> Option<Option<Id>> {
    expect.map(|head| head.map(|id| *id.as_bytes()))
}

pub(super) fn checkpointed(
    completion: &Completion,
    made: call::Checkpointed,
) -> Result<Checkpointed, ClientError> {
    Ok(Checkpointed {
        id: ObjectId::from_bytes(made.id),
        tree: ObjectId::from_bytes(made.tree),
        parents: made.parents.into_iter().map(ObjectId::from_bytes).collect(),
        keys: made.keys,
        new_objects: made.new_objects,
        new_bytes: made.new_bytes,
        reused_bytes: made.reused_bytes,
        sequence: completion.value_bytes,
        durability: completion.durability.unwrap_or(Durability::Volatile),
    })
}

fn branch_info(info: call::BranchInfo) -> BranchInfo {
    BranchInfo {
        no: BranchNo(info.no),
        name: info.name,
        head: info.head.map(ObjectId::from_bytes),
        base: ObjectId::from_bytes(info.base),
        changes: info.changes,
    }
}

fn value_ref(info: ValueInfo) -> ValueRef {
    ValueRef {
        id: ObjectId::from_bytes(info.id),
        bytes: info.bytes,
    }
}

fn log_entry(id: Id, checkpoint: &[u8]) -> Result<LogEntry, ClientError> {
    let found = Checkpoint::decode(checkpoint).map_err(|_| ClientError::BadReply)?;
    let pairs = found.metadata.pairs();
    Ok(LogEntry {
        id: ObjectId::from_bytes(id),
        tree: found.tree,
        parents: found.parents.iter().collect(),
        agent: String::from_utf8_lossy(found.agent).into_owned(),
        keys: found.keys,
        sequence: found.sequence,
        wall_ms: found.wall_ms,
        opaque: found.metadata.opaque.to_vec(),
        pairs: pairs
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .collect(),
    })
}

fn conflicts(answer: &[u8]) -> Result<Vec<MergeConflict>, ClientError> {
    all(answer, |found: Conflict<'_>| {
        Ok(MergeConflict {
            key: found.key.to_vec(),
            base: found.base.map(value_ref),
            ours: found.ours.map(value_ref),
            theirs: found.theirs.map(value_ref),
        })
    })
}

const _: () = assert!(size_of::<Id>() == OBJECT_ID_BYTES);
