//! Helios: a storage runtime for the state of many AI agents on one machine.
//!
//! A host embeds it with [`Runtime`], or runs `helios serve`. Agents, in other processes, attach
//! with [`client::Session`] and read and write their state through shared memory; threads of the
//! host do the same with [`Runtime::agent`].

pub mod agent;
pub mod cache;
pub mod client;
pub mod config;
mod crash;
pub mod id;
pub mod io;
pub mod mesh;
pub mod metrics;
pub mod prefetch;
pub mod runtime;
pub mod segment;
pub mod shard;
pub mod shared;
pub mod state;
pub mod topology;

/// What the fuzz targets call.
#[cfg(fuzzing)]
#[path = "../fuzz/inside/mod.rs"]
pub mod fuzzing;

pub use runtime::Runtime;

#[cfg(all(test, not(helios_loom)))]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

/// Lets tests count what a path allocates.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: metrics::CountingAllocator = metrics::CountingAllocator;

/// The simulated disk against the kernel.
#[cfg(test)]
#[path = "../tests/power_cuts/mod.rs"]
mod power_cuts;

/// Compiles the examples of the README with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
