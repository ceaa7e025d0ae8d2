//! What agents' state is made of: pure structures over keys and object numbers.
//!
//! Floor 1: no I/O, no clock, no thread. The working set is the map from an agent's keys to the
//! objects they name; a tree is an immutable snapshot of such a map, named by the id of its root;
//! large values are trees of chunks; a checkpoint names a tree and what it follows; a superposition is a
//! set of checkpoints that have weights.

pub mod checkpoint;
pub mod chunks;
mod keys;
pub mod superposition;
pub mod tree;
pub mod working_set;

#[cfg(test)]
mod chunks_tests;

pub use working_set::{Held, Retired, Value, WorkingSet};
