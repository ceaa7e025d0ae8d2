//! How many lines the log takes about what processes do wrong.
//!
//! Floor 4. A process whose session ends for what it wrote may connect and write it again, without end: each time
//! is counted, but the log gets so many lines about one user, and then one with how many were held back.
//!
//! Invariants
//! - of one user no more than [`LINES_MAX`] lines in [`LINES_WINDOW`]; of users no more than [`USERS_MAX`] are known.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lines about one user in [`LINES_WINDOW`].
pub(super) const LINES_MAX: u32 = 16;
/// The time in which lines are counted.
pub(super) const LINES_WINDOW: Duration = Duration::from_secs(10);
/// Users that are known at once; above, those whose time is over are forgotten, and then all.
const USERS_MAX: usize = 256;

/// The lines about each user.
#[derive(Debug, Default)]
pub(super) struct Lines(HashMap<Option<u32>, Window>);

#[derive(Debug)]
struct Window {
    begun: Instant,
    lines: u32,
    held_back: u64,
}

impl Lines {
    /// Whether there may be one more line about a user, or about nobody in particular: how many were held back since
    /// the last.
    pub(super) fn admit(&mut self, user: Option<u32>, now: Instant) -> Option<u64> {
        if self.0.len() >= USERS_MAX && !self.0.contains_key(&user) {
            self.0.retain(|_, window| !window.is_over(now));
            if self.0.len() >= USERS_MAX {
                self.0.clear();
            }
        }
        let window = self.0.entry(user).or_insert(Window {
            begun: now,
            lines: 0,
            held_back: 0,
        });
        if window.is_over(now) {
            (window.begun, window.lines) = (now, 0);
        }
        if window.lines >= LINES_MAX {
            window.held_back += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.held_back))
    }
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= LINES_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_goes_on_gets_no_more_lines_and_others_do() {
        let begun = Instant::now();
        let mut lines = Lines::default();
        for _ in 0..LINES_MAX {
            assert_eq!(lines.admit(Some(1), begun), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(lines.admit(Some(1), begun), None);
        }
        assert_eq!(lines.admit(Some(2), begun), Some(0));
        assert_eq!(lines.admit(None, begun), Some(0));
        let later = begun + LINES_WINDOW;
        assert_eq!(
            lines.admit(Some(1), later),
            Some(1000),
            "it is said how many"
        );
        assert_eq!(lines.admit(Some(1), later), Some(0));
    }

    #[test]
    fn users_without_end_take_no_memory_without_end() {
        let mut lines = Lines::default();
        let begun = Instant::now();
        for user in 0..10 * USERS_MAX as u32 {
            assert_eq!(lines.admit(Some(user), begun), Some(0));
            assert!(lines.0.len() <= USERS_MAX);
        }
    }
}
