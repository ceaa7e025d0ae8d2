//! Collections that somebody asks for.
//!
//! Floor 4. Each shard collects by itself when its log has grown enough; who deleted much and wants the
//! room at once asks here.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::id::ShardNo;
use crate::runtime::Runtime;
use crate::runtime::control::ControlPlane;
use crate::shard::collect::{CollectEnd, Collected};
use crate::shard::{Answer, Command};

/// How long a collection may take: it reads all that is stored, beside what agents ask for.
const COLLECTION_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

impl Runtime {
    /// Finds out in every shard what no branch, tag, fork or superposition needs, gives it up, and removes the
    /// files that held little else. Returns when all have ended; agents are served meanwhile.
    ///
    /// What each branch keeps of its history is its rule's to say: [`crate::client::Lane::retain`].
    pub fn collect(&self) -> Collected {
        let shards = (0..self.shards()).map(|no| ShardNo(no as u16));
        let answers: Vec<_> = shards.map(|no| self.control.collect(no)).collect();
        let deadline = Instant::now() + COLLECTION_WAIT;
        let mut sum = Collected::default();
        for answer in answers {
            let stopped = Collected {
                end: CollectEnd::Stopped,
                ..Collected::default()
            };
            sum.add(&self.answer_by(&answer, deadline).unwrap_or(stopped));
        }
        sum
    }
}

impl ControlPlane {
    /// Asks a shard to collect. The answer is closed where it is gone.
    fn collect(&self, shard: ShardNo) -> Receiver<Collected> {
        let (told, answer) = channel();
        let reply = Answer::new(move |collected| {
            // Who asked may have given up waiting.
            let _ = told.send(collected);
        });
        let _ = self.command(shard, Command::Collect { reply });
        answer
    }
}
