//! The entry points of the fuzz targets, compiled into the library under `cfg(fuzzing)` alone.
//!
//! Above all rooms. Each takes the fuzzer's bytes for a script of what a hostile process, or a broken disk, does;
//! drives the real code with it, in one thread, on a simulated disk; and panics where a promise does not hold.
//! Any bytes are a script. `seeds` makes the scripts that the fuzzer begins with.

pub(crate) mod input;
mod seeds;

pub use crate::runtime::fuzzing::{handshake, segments};
pub use crate::shard::fuzzing::lanes::run as lanes;
pub use seeds::write_if_asked;
