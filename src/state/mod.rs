//! What agents' state is made of: pure structures over keys and object numbers.
//!
//! Floor 1: no I/O, no clock, no thread. Today it holds the working set, the map from an agent's
//! keys to the objects they name; trees, checkpoints and branches belong here.

pub mod checkpoint;
pub mod working_set;

pub use working_set::{Held, Retired, Value, WorkingSet};
