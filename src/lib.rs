//! Helios: a storage runtime for the state of many AI agents on one machine.

pub mod agent;
pub mod cache;
pub mod config;
pub mod id;
pub mod io;
pub mod mesh;
pub mod metrics;
pub mod runtime;
pub mod segment;
pub mod shard;
pub mod shared;
pub mod state;
pub mod topology;
