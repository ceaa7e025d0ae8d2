//! The two cache tiers above the segments: L1 windows and the shard's L2.
//!
//! Floor 1: ids and bytes. What may not enter: I/O, clocks, threads, the shard's tables. A window
//! is written by the shard that owns the agent and read, with no hop, by the agent's processes;
//! L2 is private to its shard.
//!
//! Invariants
//! - a window never yields bytes other than the last value filled in for the key asked for, and
//!   nothing at all once that was invalidated: see `window_writer.rs` for the argument.
//! - L2 holds at most the bytes it was made with, counted per block and entry.
//! - an entry of a group is never the reason for another's leaving.
//! - nothing is allocated after construction, but for a window's shadow at its first fill.
//!
//! Cost, in 64-byte cache lines of memory that may be cold, no system calls:
//!
//! | operation | lines |
//! |---|---|
//! | window hit of 256 B under a 20 B key | header 1, set 1, data 5; header and set share a page |
//! | window miss | header 1, set 1 |
//! | window fill in place | shadow 1-2, set 1, data |
//! | window fill | the same, and per extent overtaken: shadow 1-2, set 1 |
//! | L2 hit of 1 KiB | entry 1, chain 1-4, data 16 |
//! | L2 insert | entry 1, ghost 1, queue ends 2, chain and data; per entry evicted: 3 |
//! | L2 insert into a group | entry 1, queue end 1, chain and data |

mod ghost;
mod hint;
pub mod l2;
pub mod window;
pub mod window_writer;

#[cfg(test)]
mod l2_tests;
#[cfg(all(test, helios_loom))]
mod window_models;
#[cfg(all(test, not(helios_loom)))]
mod window_tests;

pub use l2::{Chunks, EntryNo, GROUPS_MAX, GroupNo, L2};
pub use window::{Hit, WindowError, WindowReader, hash_key, in_view};
pub use window_writer::WindowWriter;
