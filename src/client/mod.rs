//! What an agent's process links: sessions, and lanes with their window.
//!
//! Floor 2, the counterpart of the shard: it sees the lane rings (`agent/`) and the window
//! (`cache/`) together, and nothing of the runtime. A host's own threads use the same [`Lane`]
//! over the same memory; only how it is attached differs ([`Connection`]).
//!
//! Cost of a read: served by the window, no system call and no other core, 7 cache lines for 256
//! bytes; served by the shard, 2 lines there and 1 back, and the value's; a system call only to
//! wake a shard that sleeps, or to sleep.
//!
//! Invariants
//! - a window hit is reported lossily; nothing waits for the report.
//! - a lane is used by one thread at a time; a session by any number.

mod agents;
mod checkpoint_as;
mod error;
mod lane;
mod pipeline;
mod publish;
mod reply;
mod session;
mod superposition;
mod versions;
#[cfg(all(test, helios_loom))]
mod view_models;

pub use crate::agent::call::{DiffCounts, Policy, Revision};
pub use crate::agent::lifecycle::{AgentInfo, AgentItem, AgentPage, HeadInfo, Suspended};
pub use crate::agent::set_call::Choice;
pub use error::ClientError;
pub use lane::Lane;
pub use pipeline::{MultiValue, read_stats};
pub use reply::{Expect, Found, Page, PutOptions, Reply, ScannedKey, Stat, Ticket, Written};
pub use session::{Attach, AttachedLane, Connection, Session};
pub use superposition::{
    CandidateInfo, CollapseOptions, Collapsed, NewSuperposition, SuperpositionInfo,
};
pub use versions::{
    BranchInfo, Checkpointed, KeyDifference, Listed, LogEntry, LogPage, MergeConflict, Merged,
    NewCheckpoint, On, ValueRef,
};
