//! What waits for one shard: commands, in the order in which they were given.
//!
//! Floor 4. A bounded queue that the shard takes from without a lock, and behind it a backlog for
//! what found the queue full while the shard was stalled. Who attaches asks
//! [`Inbox::is_behind`] first, so the backlog holds detaches and ends only: at most one for each
//! lane and session that there is.
//!
//! Invariants
//! - a command is taken by the shard in its turn, or dropped once the shard is gone; none is left
//!   behind in between.
//! - nobody waits here: the lock is held for as long as a push takes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;

use crate::agent::CloseReason;
use crate::runtime::shard_thread::Doorbell;
use crate::shard::Command;

/// The commands of one shard.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Arc<ArrayQueue<Command>>,
    doorbell: Arc<Doorbell>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    backlog: VecDeque<Command>,
    /// The shard takes nothing any more, and why.
    gone: Option<CloseReason>,
}

impl Inbox {
    pub(super) fn new(queue: Arc<ArrayQueue<Command>>, doorbell: Arc<Doorbell>) -> Self {
        Self {
            queue,
            doorbell,
            state: Mutex::default(),
        }
    }

    pub(super) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// Gives the shard a command, behind those given before.
    ///
    /// # Errors
    /// Why the shard is gone; the command is dropped.
    pub(super) fn push(&self, command: Command) -> Result<(), CloseReason> {
        let mut state = self.state();
        if let Some(reason) = state.gone {
            return Err(reason);
        }
        state.backlog.push_back(command);
        self.fill(&mut state);
        drop(state);
        self.doorbell.ring();
        Ok(())
    }

    /// Whether commands wait for room in the queue.
    pub(super) fn is_behind(&self) -> bool {
        !self.state().backlog.is_empty()
    }

    /// Puts what waits for room into the queue; whether some of it still waits.
    pub(super) fn catch_up(&self) -> bool {
        let mut state = self.state();
        if state.backlog.is_empty() {
            return false;
        }
        self.fill(&mut state);
        let behind = !state.backlog.is_empty();
        drop(state);
        self.doorbell.ring();
        behind
    }

    /// Why the shard takes no commands any more.
    pub(super) fn gone(&self) -> Option<CloseReason> {
        self.state().gone
    }

    /// The shard is gone: drops what waits, now and from now on.
    pub(super) fn close(&self, reason: CloseReason) {
        let mut state = self.state();
        state.gone = Some(reason);
        let mut left = std::mem::take(&mut state.backlog);
        left.extend(std::iter::from_fn(|| self.queue.pop()));
        drop(state);
        // What hears of it by this may push again, which is refused by now.
        drop(left);
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    #[cfg(test)]
    pub(super) fn push_first(&self, command: Command) {
        let mut state = self.state();
        state.backlog.push_back(command);
        state
            .backlog
            .extend(std::iter::from_fn(|| self.queue.pop()));
        self.fill(&mut state);
    }

    fn fill(&self, state: &mut State) {
        while let Some(command) = state.backlog.pop_front() {
            if let Err(back) = self.queue.push(command) {
                state.backlog.push_front(back);
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ShardNo;

    fn numbered(no: u16) -> Command {
        Command::PeerGone { shard: ShardNo(no) }
    }

    fn taken(queue: &ArrayQueue<Command>) -> Option<u16> {
        match queue.pop()? {
            Command::PeerGone { shard } => Some(shard.0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_finds_no_room_waits_in_order_and_goes_with_the_shard() {
        let queue = Arc::new(ArrayQueue::new(3));
        let inbox = Inbox::new(Arc::clone(&queue), Arc::new(Doorbell::new().unwrap()));
        (0..8).for_each(|no| inbox.push(numbered(no)).unwrap());
        assert!(inbox.is_behind());
        assert_eq!(taken(&queue), Some(0));
        // Room in the queue is no reason to overtake.
        inbox.push(numbered(8)).unwrap();
        let mut seen = Vec::new();
        loop {
            inbox.catch_up();
            match taken(&queue) {
                Some(no) => seen.push(no),
                None => break,
            }
        }
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(!inbox.is_behind());
        (0..8).for_each(|no| inbox.push(numbered(no)).unwrap());
        inbox.close(CloseReason::ShardFailed);
        assert!(queue.is_empty() && !inbox.is_behind());
        assert_eq!(inbox.push(numbered(9)), Err(CloseReason::ShardFailed));
        assert!(queue.is_empty());
    }
}
