//! Descriptors: some are kept for those who are there already.
//!
//! Floor 4. Every session costs up to two descriptors and every agent in use one, so that who attaches
//! without end would use up what shards need to begin a segment, and the listener to say no. Numbers are given
//! out from below: whoever gets one near the limit is the last who fits, and is turned away.
//!
//! Cost: one system call, which asks for the limit, so that it can be raised while the runtime runs.

use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Resource, getrlimit};

use crate::agent::frame::RefusalCode;
use crate::runtime::control::Refusal;

/// Kept back in all, for the listener and for what a host does beside.
const KEPT: u64 = 32;
/// Kept back for each shard: the next segment and its directory, and reads of what is closed.
const KEPT_PER_SHARD: u64 = 8;
/// Never kept back more than such a part of all.
const KEPT_SHARE: u64 = 4;

/// Refuses what wants to keep a descriptor if this one is among the last.
///
/// # Errors
/// [`RefusalCode::NoMemory`].
pub(super) fn keep_some(fd: impl AsFd, shards: usize) -> Result<(), Refusal> {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return Ok(());
    };
    let number = fd.as_fd().as_raw_fd() as u64;
    match number < limit.saturating_sub(kept(limit, shards)) {
        true => Ok(()),
        false => Err(short()),
    }
}

/// What is said to whom descriptors are refused.
pub(super) fn short() -> Refusal {
    let text = "the runtime is out of descriptors; detach lanes, or raise its `ulimit -n`";
    Refusal::new(RefusalCode::NoMemory, text)
}

fn kept(limit: u64, shards: usize) -> u64 {
    (KEPT + KEPT_PER_SHARD * shards as u64).min(limit / KEPT_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_kept_of_whatever_there_is() {
        assert_eq!(kept(1 << 20, 1), 40);
        assert_eq!(kept(1 << 20, 64), 544);
        assert_eq!(kept(1_024, 64), 256);
        assert_eq!(kept(100, 1), 25);
        let (one, _other) = rustix::pipe::pipe().unwrap();
        assert!(keep_some(&one, 1).is_ok());
    }
}
