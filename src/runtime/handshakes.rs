//! Who has connected and not yet said who it is: how many may, and for how long.
//!
//! Floor 4. With access rules anybody on the machine can connect; a connection costs a descriptor
//! before its `Hello`, so these are counted, per user and in all, and have a deadline. Where one is
//! too many, the oldest goes and not the newest: a client that means it says `Hello` at once, so
//! that those who hold the places are never in its way.
//!
//! Invariants
//! - never more than [`HANDSHAKES_MAX`] are waiting, nor [`HANDSHAKES_PER_USER_MAX`] of one user.
//! - they stand in the order of their deadlines.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Connections without a `Hello`, in all.
pub(super) const HANDSHAKES_MAX: usize = 1024;
/// Connections without a `Hello`, of one user.
pub(super) const HANDSHAKES_PER_USER_MAX: usize = 256;
/// How long a connection may be without one.
pub(super) const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);

/// The connections that wait for their `Hello`.
#[derive(Debug, Default)]
pub(super) struct Handshakes(VecDeque<Waiting>);

#[derive(Debug)]
struct Waiting {
    key: u64,
    uid: u32,
    deadline: Instant,
}

impl Handshakes {
    /// Adds a connection; the one that has to go for it, if there are too many.
    pub(super) fn begin(&mut self, key: u64, uid: u32, now: Instant) -> Option<u64> {
        let of_user = self.0.iter().filter(|waiting| waiting.uid == uid).count();
        let victim = if of_user >= HANDSHAKES_PER_USER_MAX {
            self.0.iter().position(|waiting| waiting.uid == uid)
        } else {
            (self.0.len() >= HANDSHAKES_MAX).then_some(0)
        };
        let victim = victim.and_then(|at| self.0.remove(at));
        let deadline = now + HANDSHAKE_WAIT;
        self.0.push_back(Waiting { key, uid, deadline });
        victim.map(|waiting| waiting.key)
    }

    /// A connection has said its `Hello`, or is gone.
    pub(super) fn end(&mut self, key: u64) {
        // The latest are at the end, and most say `Hello` at once.
        if let Some(at) = self.0.iter().rposition(|waiting| waiting.key == key) {
            self.0.remove(at);
        }
    }

    /// When the next of them is overdue.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.front().map(|waiting| waiting.deadline)
    }

    /// Takes out one that is overdue.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<u64> {
        let due = self.0.front().is_some_and(|first| first.deadline <= now);
        due.then(|| self.0.pop_front().map(|waiting| waiting.key))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_a_user_goes_then_the_oldest_of_all_and_each_in_its_time() {
        let start = Instant::now();
        let mut handshakes = Handshakes::default();
        let mut key = 0;
        let mut begin = |handshakes: &mut Handshakes, uid| {
            key += 1;
            (key, handshakes.begin(key, uid, start))
        };
        // One of another user, who loses nothing by what follows.
        assert_eq!(begin(&mut handshakes, 1), (1, None));
        for _ in 0..HANDSHAKES_PER_USER_MAX {
            assert_eq!(begin(&mut handshakes, 2).1, None);
        }
        assert_eq!(begin(&mut handshakes, 2).1, Some(2));
        handshakes.end(3);
        assert_eq!(begin(&mut handshakes, 2).1, None);
        // Users enough to fill it all.
        let mut gone = Vec::new();
        for uid in 3..10 {
            for _ in 0..HANDSHAKES_PER_USER_MAX {
                gone.extend(begin(&mut handshakes, uid).1);
            }
        }
        assert_eq!(gone.first(), Some(&1));
        assert_eq!(handshakes.0.len(), HANDSHAKES_MAX);
        assert_eq!(handshakes.deadline(), Some(start + HANDSHAKE_WAIT));
        assert_eq!(handshakes.overdue(start), None);
        let due = std::iter::from_fn(|| handshakes.overdue(start + HANDSHAKE_WAIT)).count();
        assert_eq!((due, handshakes.deadline()), (HANDSHAKES_MAX, None));
    }
}
