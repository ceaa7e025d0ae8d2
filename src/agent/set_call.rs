//! Calls about superpositions, and their answers: [`Call::Superposition`].
//!
//! Floor 1, room `agent`. Bytes and order as in `call.rs`.
//!
//! [`Call::Superposition`]: crate::agent::call::Call::Superposition

use serde::{Deserialize, Serialize};

use crate::agent::call::{BadName, Id, NAME_BYTES_MAX, Revision, check_name};

/// A number on the wire: binary64 of IEEE 754, little-endian.
pub type Real = [u8; 8];

/// Which candidate a collapse takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// The one of this number.
    Candidate(u32),
    /// One drawn by weight; the same seed draws the same.
    Drawn {
        /// What decides: see [`crate::state::superposition`].
        seed: u64,
    },
}

/// What a lane asks of superpositions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetCall<'a> {
    /// Makes a superposition, for the branch. Answer: [`SetInfo`].
    Create {
        /// Its name; no other open one has it.
        #[serde(borrow)]
        name: &'a str,
        /// Time in which a weight falls to its half, in milliseconds; 0: never.
        half_life_ms: u64,
        /// Time without observation after which it ends, in milliseconds; 0: never.
        ttl_ms: u64,
        /// Total weight under which it ends once it is not observed; 0: never.
        bound: Real,
    },
    /// Adds a candidate to a superposition. Answer: [`CandidateInfo`].
    Add {
        /// The superposition.
        set: u32,
        /// The candidate's checkpoint.
        #[serde(borrow)]
        from: Revision<'a>,
        /// What it is worth.
        weight: Real,
        /// What to call it; may be empty.
        #[serde(borrow)]
        label: &'a str,
    },
    /// Gives a candidate another weight. Answer: [`CandidateInfo`].
    Reweigh {
        /// The superposition.
        set: u32,
        /// The candidate.
        candidate: u32,
        /// What it is worth from now on.
        weight: Real,
    },
    /// Lists superpositions. Answer: [`SetInfo`] each.
    List {
        /// Only those whose numbers are above.
        after: Option<u32>,
    },
    /// Lists the candidates of a superposition. Answer: [`CandidateInfo`] each.
    Candidates {
        /// The superposition.
        set: u32,
        /// Only those whose numbers are above.
        after: Option<u32>,
    },
    /// Opens a fork on a candidate. Answer: [`BranchInfo`](crate::agent::call::BranchInfo).
    Open {
        /// The superposition.
        set: u32,
        /// The candidate.
        candidate: u32,
    },
    /// Makes one candidate what a branch points at, and ends the superposition. Answer: [`Collapsed`].
    Collapse {
        /// The superposition.
        set: u32,
        /// Which candidate.
        choice: Choice,
        /// The branch, if not the one that the superposition was made for.
        #[serde(borrow)]
        into: Option<&'a str>,
        /// What the branch must point at now; nothing said: what the superposition's branch did when it was
        /// made.
        expect: Option<Option<Id>>,
        /// Even if changes are lost that no checkpoint holds.
        force: bool,
    },
    /// Ends a superposition; no branch moves. No answer.
    Release {
        /// The superposition.
        set: u32,
    },
}

impl SetCall<'_> {
    /// Whether it is answered with one item, for which there has to be room before anything is done.
    pub(super) fn has_one_answer(&self) -> bool {
        !matches!(
            self,
            Self::List { .. } | Self::Candidates { .. } | Self::Release { .. }
        )
    }

    /// Whether what is to have a name may have it.
    pub(super) fn check_names(&self) -> Result<(), BadName> {
        match self {
            Self::Create { name, .. } => check_name(name),
            // What a candidate is called nothing is found by.
            Self::Add { label, .. } if label.len() > NAME_BYTES_MAX => Err(BadName),
            _ => Ok(()),
        }
    }
}

/// A superposition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetInfo {
    /// Its number: what calls name it by.
    pub no: u32,
    /// Its name.
    pub name: String,
    /// The branch that it was made for.
    pub branch: u32,
    /// What that branch pointed at then.
    pub origin: Option<Id>,
    /// Half-life of its weights, in milliseconds.
    pub half_life_ms: u64,
    /// Time to live, in milliseconds.
    pub ttl_ms: u64,
    /// Total weight under which it ends.
    pub bound: Real,
    /// Candidates.
    pub candidates: u32,
    /// Their total weight now.
    pub total: Real,
    /// Milliseconds since it was observed last.
    pub unobserved_ms: u64,
}

/// A candidate of a superposition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateInfo<'a> {
    /// Its number.
    pub no: u32,
    /// Its checkpoint.
    pub head: Id,
    /// What it is worth now.
    pub weight: Real,
    /// What it is called.
    #[serde(borrow)]
    pub label: &'a str,
}

/// A superposition that became one of its candidates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collapsed {
    /// The candidate's number.
    pub candidate: u32,
    /// Its checkpoint.
    pub head: Id,
    /// The branch that points at it now.
    pub branch: u32,
}
