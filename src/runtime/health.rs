//! What of a running runtime has failed, and a way to wait for it.
//!
//! Floor 4. A part that fails is not started again within the process: its state is on disk, and
//! recovery is the way back. Until then the other parts serve, and what needs the failed one is a
//! typed error.
//!
//! Invariants
//! - a failure is told once, and stays.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::id::ShardNo;

/// A part of a runtime that failed while it ran. What it had acknowledged is on disk, as after a
/// kill: start again to have it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A shard's thread panicked. Its agents can't be reached; those of other shards can.
    #[error("shard {0} failed, see the log for its panic; its agents are back after a restart")]
    Shard(ShardNo),
    /// A thread of the I/O core panicked: every shard wrote out what it had and stopped.
    #[error("the I/O core failed, see the log for its panic; every shard has stopped: restart")]
    Io,
    /// The listener's thread ended. The lanes there are serve on; no process can attach, and no
    /// death is noticed.
    #[error("the listener failed, see the log; no process can attach: restart")]
    Listener,
}

impl Failure {
    /// The number of the reason, for scripts: 1 a shard, 2 the I/O core, 3 the listener.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Shard(_) => 1,
            Self::Io => 2,
            Self::Listener => 3,
        }
    }
}

/// What of a runtime has failed. Cheap to clone; may outlive the runtime.
///
/// A host that has nothing else to do about a failure waits for one on a thread of its own, and
/// then calls [`crate::Runtime::shutdown`], as `helios serve` does.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<State>);

#[derive(Debug, Default)]
struct State {
    told: Mutex<Told>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Told {
    failures: Vec<Failure>,
    ended: bool,
}

impl Health {
    /// What has failed so far, in order; empty while all is well.
    #[must_use]
    pub fn failures(&self) -> Vec<Failure> {
        self.told().failures.clone()
    }

    /// Waits until something has failed and returns the first of it; `None` once the runtime has
    /// ended and nothing failed before.
    #[must_use]
    pub fn wait(&self) -> Option<Failure> {
        let idle = |told: &mut Told| told.failures.is_empty() && !told.ended;
        let told = self.0.news.wait_while(self.told(), idle);
        let told = told.unwrap_or_else(PoisonError::into_inner);
        told.failures.first().copied()
    }

    pub(super) fn tell(&self, failure: Failure) {
        let mut told = self.told();
        if !told.failures.contains(&failure) {
            told.failures.push(failure);
            self.0.news.notify_all();
        }
    }

    pub(super) fn end(&self) {
        self.told().ended = true;
        self.0.news.notify_all();
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_and_an_end_are_both_worth_waking_for() {
        let health = Health::default();
        let waiting = || {
            let health = health.clone();
            std::thread::spawn(move || health.wait())
        };
        let (one, other) = (waiting(), waiting());
        health.tell(Failure::Shard(ShardNo(3)));
        health.tell(Failure::Shard(ShardNo(3)));
        health.tell(Failure::Io);
        for waiter in [one, other] {
            assert_eq!(waiter.join().unwrap(), Some(Failure::Shard(ShardNo(3))));
        }
        assert_eq!(health.failures(), [Failure::Shard(ShardNo(3)), Failure::Io]);
        let health = Health::default();
        let waiter = {
            let health = health.clone();
            std::thread::spawn(move || health.wait())
        };
        health.end();
        assert_eq!(waiter.join().unwrap(), None);
    }
}
