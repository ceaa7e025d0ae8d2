//! The process boundary: what an agent's process and the runtime share, and how they speak.
//!
//! Floor 1. Imports ids, durability and shared memory; knows no shard, no cache, no thread. Both
//! halves of everything are here, so that one file's layout can't drift from another's: the
//! runtime uses [`ServerLane`], [`ServerBells`], [`StatusPage`], the client library
//! [`ClientLane`], [`ClientBells`]; both [`FrameSocket`] and [`Frame`]. The bytes are written down
//! in `PROTOCOL.md`.
//!
//! Invariants
//! - no shared word is written by two processes: a client writes its session region and its
//!   lanes' regions C, the server regions S and status pages, which clients map read-only.
//! - nothing a client wrote is trusted: entries are copied once and the copy judged; a broken
//!   rule is a [`Malformed`], and its session ends. No bytes from outside cause a panic.
//! - neither side sleeps while the other has something for it: every store that says "I sleep" is
//!   followed by a fence and one more look.
//!
//! Cost, per operation, both sides polling: client 1 line written (submission), 1 read
//! (completion), 1 read that seldom changes (attention), 1 fence; server 1 read, 1 written, 1 read
//! per batch, 1 fence per batch; beside them the input and the reply. No system call. An
//! idle lane costs nothing: the shard doesn't look at it until its bell rings (2 lines more), or a
//! frame comes (2 system calls) where the shard sleeps. In memory: two pages per region and lane.

pub mod arena;
pub mod bell;
pub mod call;
pub mod client_lane;
pub mod entry;
pub mod frame;
pub mod layout;
pub mod lifecycle;
pub mod malformed;
pub mod packed;
pub mod server_lane;
pub mod set_call;
pub mod socket;

#[cfg(all(test, helios_loom))]
mod lane_models;
#[cfg(all(test, not(helios_loom)))]
mod tests;

pub use arena::{Arena, Block};
pub use bell::{BadSession, Bell, ClientBells, ServerBells, StatusPage};
pub use client_lane::{ClientLane, LaneError, Notify, SubmitError};
pub use entry::{BusyReason, Completion, Extent, Op, Status, Submission, Tier};
pub use frame::{Frame, FrameError, RefusalCode};
pub use layout::LaneSizes;
pub use malformed::Malformed;
pub use server_lane::{LaneFds, ServerLane, WakeKind};
pub use socket::{FrameSocket, Peer, SocketError};

use std::fmt;

/// How a shard attends to a lane: a word that the server writes in region S.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Attention {
    /// The client rings the session's bell, and sends a frame if the shard sleeps.
    Bell = 0,
    /// The shard polls the submission ring: nothing to do.
    Polled = 1,
}

impl Attention {
    fn of_word(word: u32) -> Self {
        match word {
            1 => Self::Polled,
            // What a later version may say is safest answered by a bell.
            _ => Self::Bell,
        }
    }
}

/// How a client waits for completions: the low two bits of a word that it writes in region C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Waiting {
    /// It polls, or doesn't care now.
    Polling = 0,
    /// It sleeps on the futex word of region S.
    Futex = 1,
    /// It wants a `Wake` frame.
    Socket = 2,
}

impl Waiting {
    fn of_word(word: u32) -> Self {
        match word & 3 {
            1 => Self::Futex,
            2 => Self::Socket,
            _ => Self::Polling,
        }
    }
}

/// Why the server closed a lane or a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The runtime is shutting down.
    ShuttingDown,
    /// The client broke the protocol.
    Malformed,
    /// The lane was detached, as asked.
    Detached,
    /// The shard failed; its state is on disk.
    ShardFailed,
    /// The agent was terminated.
    Terminated,
    /// A reason of a later version.
    Other(u32),
}

impl CloseReason {
    /// The number on the wire; never 0, which means open.
    #[must_use]
    pub fn to_code(self) -> u32 {
        match self {
            Self::ShuttingDown => 1,
            Self::Malformed => 2,
            Self::Detached => 3,
            Self::ShardFailed => 4,
            Self::Terminated => 6,
            Self::Other(code) => code.max(1),
        }
    }

    /// The reason of a number.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::ShuttingDown,
            2 => Self::Malformed,
            3 => Self::Detached,
            4 => Self::ShardFailed,
            6 => Self::Terminated,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShuttingDown => f.write_str("the runtime is shutting down"),
            Self::Malformed => f.write_str("this client broke the protocol"),
            Self::Detached => f.write_str("it was detached"),
            Self::ShardFailed => f.write_str("its shard failed; restart the runtime"),
            Self::Terminated => f.write_str("its agent was terminated"),
            Self::Other(code) => write!(f, "reason {code}, which this client doesn't know"),
        }
    }
}
