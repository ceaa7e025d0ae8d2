//! The prefetcher's room: what agents do comes in as events, what they will want goes out as hints.
//!
//! Floor 1. Allowed to be wrong, and never waited for: a stream that is full loses events and counts
//! them. So far this is the way in: events of agents' lifecycles and of versions ([`event`]).

pub mod event;

pub use event::{AccessEvent, AccessKind, Events, Feed};
