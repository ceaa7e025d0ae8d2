//! The fields of a record, between what it says and its bytes: which head has which kind, flags and
//! numbers.
//!
//! Floor 1, a part of `format`. Pure functions; the table of kinds is in `FORMAT.md`.
//!
//! Invariants
//! - the fields of a head read back as that head, and no other fields do: what a kind does not have is 0,
//!   and everything else is refused, so that a later version may give it a meaning.

use crate::id::{AGENT_NAME_BYTES_MAX, VALUE_BYTES_MAX};
use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SegmentNo, SetNo};

use super::Sequence;
use super::format::BRANCH_NAME_BYTES_MAX;
use super::record::{Collapse, Head, ObjectKind};

const KIND_AGENT: u8 = 1;
const KIND_PUT: u8 = 2;
const KIND_DELETE: u8 = 3;
pub(super) const KIND_OBJECT: u8 = 4;
pub(super) const KIND_SYNCED: u8 = 5;
const KIND_BRANCH: u8 = 6;
const KIND_BRANCH_GONE: u8 = 7;
const KIND_TAG: u8 = 8;
const KIND_AGENT_GONE: u8 = 9;
const KIND_RETENTION: u8 = 10;
const KIND_ADOPTED: u8 = 11;
const KIND_HOT: u8 = 12;
const KIND_DROPPED: u8 = 13;
const KIND_SET: u8 = 14;
const KIND_CANDIDATE: u8 = 15;
const KIND_SET_GONE: u8 = 16;
const KIND_PRUNED: u8 = 17;

/// Numbers before the name of a set: branch, half-life, time to live, bound.
pub(super) const SET_NUMBERS_BYTES: usize = 28;
/// Behind a candidate's tree: its number, its weight.
pub(super) const CANDIDATE_NUMBERS_BYTES: usize = 12;
/// Behind a collapse's tree: the branch.
pub(super) const COLLAPSE_NUMBERS_BYTES: usize = 4;

const RULE_ALL: u8 = 0;
const RULE_LAST: u8 = 1;
const RULE_NEWER: u8 = 2;

pub(super) const FLAG_ID: u8 = 1;
pub(super) const FLAG_PAYLOAD: u8 = 2;
const FLAG_CHUNKS: u8 = 4;
const FLAG_PUBLIC: u8 = 8;
const FLAG_NODE: u8 = 16;
const FLAG_CHECKPOINT: u8 = 32;
const FLAG_KEPT: u8 = 64;

impl ObjectKind {
    const fn flags(self) -> u8 {
        match self {
            Self::Blob => 0,
            Self::Chunks => FLAG_CHUNKS,
            Self::Node => FLAG_NODE,
            Self::Checkpoint => FLAG_CHECKPOINT,
        }
    }

    pub(super) fn from_flags(flags: u8) -> Option<Self> {
        let kinds = [Self::Blob, Self::Chunks, Self::Node, Self::Checkpoint];
        kinds
            .into_iter()
            .find(|kind| kind.flags() == flags & (FLAG_CHUNKS | FLAG_NODE | FLAG_CHECKPOINT))
    }
}

/// What the header and the bytes behind it say.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// The agent, and above it the branch; other numbers in records that belong to no branch.
    pub(super) owner: u64,
    pub(super) value_bytes: u64,
    pub(super) payload_bytes: u32,
    /// The id, and one that counts as the beginning of the key; in what was read that is still there.
    pub(super) ids: [Option<ObjectId>; 2],
    pub(super) key: &'a [u8],
    /// Numbers that count as a part of the key, between the tree and the rest; in what was read they are
    /// still there.
    pub(super) numbers: [u8; SET_NUMBERS_BYTES],
    pub(super) number_bytes: usize,
}

impl<'a> Fields<'a> {
    pub(super) const NONE: Self = Self {
        kind: 0,
        flags: 0,
        owner: 0,
        value_bytes: 0,
        payload_bytes: 0,
        ids: [None; 2],
        key: &[],
        numbers: [0; SET_NUMBERS_BYTES],
        number_bytes: 0,
    };

    fn new(kind: u8, [low, high]: [u32; 2]) -> Self {
        Self {
            kind,
            owner: u64::from(low) | u64::from(high) << 32,
            ..Self::NONE
        }
    }

    /// The numbers before the key.
    pub(super) fn numbers(&self) -> &[u8] {
        &self.numbers[..self.number_bytes]
    }

    fn number(mut self, bytes: &[u8]) -> Self {
        let end = self.number_bytes + bytes.len();
        self.numbers[self.number_bytes..end].copy_from_slice(bytes);
        self.number_bytes = end;
        self
    }

    fn flags(mut self, flags: u8) -> Self {
        self.flags |= flags;
        self
    }

    fn flag(self, flag: u8, set: bool) -> Self {
        self.flags(if set { flag } else { 0 })
    }

    fn id(mut self, id: Option<ObjectId>) -> Self {
        self.ids[0] = id;
        self.flag(FLAG_ID, id.is_some())
    }

    fn tree(mut self, tree: ObjectId) -> Self {
        self.ids[1] = Some(tree);
        self
    }

    fn key(mut self, key: &'a [u8]) -> Self {
        self.key = key;
        self
    }

    fn value(mut self, value_bytes: u64) -> Self {
        self.value_bytes = value_bytes;
        self
    }

    /// Of a record that has this payload.
    pub(super) fn payload(mut self, payload: Option<&[u8]>) -> Self {
        self.payload_bytes = payload.unwrap_or_default().len() as u32;
        if self.kind == KIND_OBJECT {
            self.value_bytes = self.payload_bytes.into();
        }
        self.flag(FLAG_PAYLOAD, payload.is_some())
    }

    /// What says this, without a payload.
    pub(super) fn of(head: &Head<'a>) -> Self {
        let of_agent = |kind: u8, agent: AgentNo| Self::new(kind, [agent.0, 0]);
        let of_branch =
            |kind: u8, agent: AgentNo, branch: BranchNo| Self::new(kind, [agent.0, branch.0]);
        match *head {
            Head::Agent {
                agent,
                public,
                moves,
                name,
            } => Self::new(KIND_AGENT, [agent.0, moves])
                .flag(FLAG_PUBLIC, public)
                .key(name),
            Head::Put {
                agent,
                branch,
                key,
                kind,
                id,
                value_bytes,
            } => of_branch(KIND_PUT, agent, branch)
                .flags(kind.flags())
                .id(Some(id))
                .key(key)
                .value(value_bytes),
            Head::Delete { agent, branch, key } => of_branch(KIND_DELETE, agent, branch).key(key),
            Head::Object { kind, id, kept } => Self::new(KIND_OBJECT, [0, 0])
                .flags(kind.flags())
                .flag(FLAG_KEPT, kept)
                .id(Some(id)),
            Head::Synced { upto, proof } => {
                Self::new(KIND_SYNCED, [proof as u32, (proof >> 32) as u32]).value(upto.0)
            }
            Head::Branch {
                agent,
                branch,
                name,
                head,
                tree,
                changes_stay,
            } => of_branch(KIND_BRANCH, agent, branch)
                .flag(FLAG_KEPT, changes_stay)
                .id(head)
                .tree(tree)
                .key(name),
            Head::BranchGone { agent, branch } => of_branch(KIND_BRANCH_GONE, agent, branch),
            Head::Tag {
                agent,
                public,
                name,
                target,
            } => of_agent(KIND_TAG, agent)
                .flag(FLAG_PUBLIC, public)
                .id(target)
                .key(name),
            Head::AgentGone { agent } => of_agent(KIND_AGENT_GONE, agent),
            Head::Retention {
                agent,
                branch,
                rule,
            } => {
                let (key, number) = bytes_of_rule(rule);
                let fields = of_branch(KIND_RETENTION, agent, branch);
                fields.key(key).value(number)
            }
            Head::Adopted {
                agent,
                target,
                gone,
            } => of_agent(KIND_ADOPTED, agent)
                .flag(FLAG_KEPT, !gone)
                .id(Some(target)),
            Head::Hot { agent, list } => of_agent(KIND_HOT, agent).id(list),
            Head::Dropped { first, last, from } => {
                Self::new(KIND_DROPPED, [first.0, last.0]).value(from.0)
            }
            Head::Pruned { id } => Self::new(KIND_PRUNED, [0, 0]).id(Some(id)),
            Head::Set { .. } | Head::Candidate { .. } | Head::SetGone { .. } => Self::of_set(head),
        }
    }

    /// The same of what records say of sets of candidates.
    fn of_set(head: &Head<'a>) -> Self {
        match *head {
            Head::Set {
                agent,
                set,
                branch,
                origin,
                half_life_ms,
                ttl_ms,
                bound_bits,
                wall_ms,
                name,
            } => Self::new(KIND_SET, [agent.0, set.0])
                .id(origin)
                .number(&branch.0.to_le_bytes())
                .number(&half_life_ms.to_le_bytes())
                .number(&ttl_ms.to_le_bytes())
                .number(&bound_bits.to_le_bytes())
                .key(name)
                .value(wall_ms),
            Head::Candidate {
                agent,
                set,
                candidate,
                head,
                tree,
                weight_bits,
                wall_ms,
                label,
            } => Self::new(KIND_CANDIDATE, [agent.0, set.0])
                .id(Some(head))
                .tree(tree)
                .number(&candidate.to_le_bytes())
                .number(&weight_bits.to_le_bytes())
                .key(label)
                .value(wall_ms),
            Head::SetGone {
                agent,
                set,
                collapse,
                wall_ms,
            } => {
                let fields = Self::new(KIND_SET_GONE, [agent.0, set.0]).value(wall_ms);
                match collapse {
                    Some(Collapse { branch, head, tree }) => fields
                        .id(Some(head))
                        .tree(tree)
                        .number(&branch.0.to_le_bytes()),
                    None => fields,
                }
            }
            _ => Self::NONE,
        }
    }

    fn says(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Nothing, if there are no flags but these, and `good`.
    fn only(&self, mask: u8, good: bool) -> Option<()> {
        (good && self.flags & !mask == 0).then_some(())
    }

    fn halves(&self) -> [u32; 2] {
        [self.owner as u32, (self.owner >> 32) as u32]
    }

    /// What these fields say, if this version knows it.
    pub(super) fn head(&self) -> Option<Head<'a>> {
        let Self {
            kind,
            value_bytes,
            payload_bytes,
            key,
            ..
        } = *self;
        let has_payload = self.says(FLAG_PAYLOAD);
        if !has_payload && payload_bytes != 0 {
            return None;
        }
        let [low, high] = self.halves();
        let (agent, branch) = (AgentNo(low), BranchNo(high));
        let is_whole = value_bytes == u64::from(payload_bytes);
        const KINDS: u8 = FLAG_ID | FLAG_PAYLOAD | FLAG_CHUNKS | FLAG_NODE | FLAG_CHECKPOINT;
        Some(match (kind, self.ids[0]) {
            (KIND_AGENT, None) => {
                let named = key.len() <= AGENT_NAME_BYTES_MAX;
                self.only(FLAG_PUBLIC, named && value_bytes == 0)?;
                Head::Agent {
                    agent,
                    public: self.says(FLAG_PUBLIC),
                    moves: high,
                    name: key,
                }
            }
            (KIND_PUT, Some(id)) => {
                let kind = ObjectKind::from_flags(self.flags)?;
                let fits = kind == ObjectKind::Chunks || !has_payload || is_whole;
                let fits = fits && !key.is_empty();
                let mask = FLAG_ID | FLAG_PAYLOAD | FLAG_CHUNKS;
                self.only(mask, fits && value_bytes <= VALUE_BYTES_MAX)?;
                Head::Put {
                    agent,
                    branch,
                    key,
                    kind,
                    id,
                    value_bytes,
                }
            }
            (KIND_DELETE, None) => {
                self.only(0, value_bytes == 0 && !key.is_empty())?;
                Head::Delete { agent, branch, key }
            }
            (KIND_OBJECT, Some(id)) => {
                let bare = self.owner == 0 && key.is_empty();
                self.only(KINDS | FLAG_KEPT, bare && is_whole)?;
                Head::Object {
                    kind: ObjectKind::from_flags(self.flags)?,
                    id,
                    kept: self.says(FLAG_KEPT),
                }
            }
            (KIND_SYNCED, None) => {
                self.only(0, key.is_empty())?;
                let (upto, proof) = (Sequence(value_bytes), self.owner);
                Head::Synced { upto, proof }
            }
            (KIND_DROPPED, None) => {
                let range = 0 < low && low <= high && 0 < value_bytes;
                self.only(0, range && key.is_empty())?;
                Head::Dropped {
                    first: SegmentNo(low),
                    last: SegmentNo(high),
                    from: Sequence(value_bytes),
                }
            }
            (KIND_PRUNED, Some(id)) => {
                let bare = self.owner == 0 && key.is_empty() && value_bytes == 0;
                self.only(FLAG_ID, bare)?;
                Head::Pruned { id }
            }
            _ => return self.head_of_agent(),
        })
    }

    /// The same of what records say of agents and branches, beside their keys.
    fn head_of_agent(&self) -> Option<Head<'a>> {
        let key = self.key;
        let [low, high] = self.halves();
        let (agent, branch) = (AgentNo(low), BranchNo(high));
        let no_value = self.value_bytes == 0;
        let no_key = key.is_empty() && no_value;
        let no_branch = high == 0;
        Some(match (self.kind, self.ids[0]) {
            (KIND_BRANCH, head) => {
                let (tree, name) = key.split_first_chunk()?;
                let named = name.len() <= BRANCH_NAME_BYTES_MAX;
                self.only(FLAG_ID | FLAG_KEPT, named && no_value)?;
                Head::Branch {
                    agent,
                    branch,
                    name,
                    head,
                    tree: ObjectId::from_bytes(*tree),
                    changes_stay: self.says(FLAG_KEPT),
                }
            }
            (KIND_BRANCH_GONE, None) => {
                self.only(0, no_key)?;
                Head::BranchGone { agent, branch }
            }
            (KIND_TAG, target) => {
                let public = self.says(FLAG_PUBLIC);
                let named = key.len() <= BRANCH_NAME_BYTES_MAX;
                let good = named && no_branch && no_value && (!public || target.is_some());
                self.only(FLAG_ID | FLAG_PUBLIC, good)?;
                Head::Tag {
                    agent,
                    public,
                    name: key,
                    target,
                }
            }
            (KIND_AGENT_GONE, None) => {
                self.only(0, no_branch && no_key)?;
                Head::AgentGone { agent }
            }
            (KIND_RETENTION, None) => {
                self.only(0, true)?;
                Head::Retention {
                    agent,
                    branch,
                    rule: rule_of_bytes(key, self.value_bytes)?,
                }
            }
            (KIND_ADOPTED, Some(target)) => {
                self.only(FLAG_ID | FLAG_KEPT, no_branch && no_key)?;
                Head::Adopted {
                    agent,
                    target,
                    gone: !self.says(FLAG_KEPT),
                }
            }
            (KIND_HOT, list) => {
                self.only(FLAG_ID, no_branch && no_key)?;
                Head::Hot { agent, list }
            }
            _ => return self.head_of_set(),
        })
    }

    /// The same of what records say of sets of candidates.
    fn head_of_set(&self) -> Option<Head<'a>> {
        let [agent, set] = self.halves();
        let (agent, set) = (AgentNo(agent), SetNo(set));
        let wall_ms = self.value_bytes;
        let mut key = Rest(self.key);
        self.only(FLAG_ID, true)?;
        let head = match (self.kind, self.ids[0]) {
            (KIND_SET, origin) => Head::Set {
                agent,
                set,
                branch: BranchNo(key.u32()?),
                origin,
                half_life_ms: key.u64()?,
                ttl_ms: key.u64()?,
                bound_bits: key.u64()?,
                wall_ms,
                name: key.name()?,
            },
            (KIND_CANDIDATE, Some(head)) => Head::Candidate {
                agent,
                set,
                head,
                tree: ObjectId::from_bytes(key.array()?),
                candidate: key.u32()?,
                weight_bits: key.u64()?,
                wall_ms,
                label: key.name()?,
            },
            (KIND_SET_GONE, head) => {
                let collapse = match head {
                    Some(head) => Some(Collapse {
                        head,
                        tree: ObjectId::from_bytes(key.array()?),
                        branch: BranchNo(key.u32()?),
                    }),
                    None => None,
                };
                key.name()?.is_empty().then_some(Head::SetGone {
                    agent,
                    set,
                    collapse,
                    wall_ms,
                })?
            }
            _ => return None,
        };
        Some(head)
    }
}

/// Key and value length of a [`Head::Retention`].
fn bytes_of_rule(rule: Retention) -> (&'static [u8], u64) {
    match rule {
        Retention::All => (&[RULE_ALL], 0),
        Retention::Last(count) => (&[RULE_LAST], count),
        Retention::Newer(age_ms) => (&[RULE_NEWER], age_ms),
    }
}

fn rule_of_bytes(key: &[u8], value_bytes: u64) -> Option<Retention> {
    match (key, value_bytes) {
        ([RULE_ALL], 0) => Some(Retention::All),
        ([RULE_LAST], count) => Some(Retention::Last(count)),
        ([RULE_NEWER], age_ms) => Some(Retention::Newer(age_ms)),
        _ => None,
    }
}

/// What is left of a key.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// All of it, if it is not too long for a name.
    fn name(self) -> Option<&'a [u8]> {
        (self.0.len() <= BRANCH_NAME_BYTES_MAX).then_some(self.0)
    }
}
