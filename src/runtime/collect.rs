//! Collections that somebody asks for.
//!
//! Floor 4. Each shard collects by itself when its log has grown enough; who deleted much and wants the
//! room at once asks here.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::call;
use crate::agent::frame::RefusalCode;
use crate::id::ShardNo;
use crate::runtime::Runtime;
use crate::runtime::control::{ControlPlane, Refusal};
use crate::shard::collect::{CollectEnd, Collected};
use crate::shard::{Answer, Command};

/// How long a collection may take: it reads all that is stored, beside what agents ask for.
const COLLECTION_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Collections of which is known what they did.
const REMEMBERED_MAX: usize = 64;

/// Collections that sessions asked for, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Collections {
    last: u64,
    known: BTreeMap<u64, Gathered>,
}

/// What the shards have told of a collection.
#[derive(Debug)]
struct Gathered {
    /// Shards that have not.
    left: usize,
    sum: Collected,
}

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
    /// Begins a collection that a session asked for, and answers with its number.
    pub(super) fn begin_collection(
        &self,
        who: Option<(u32, u32)>,
        answer: Answer<Result<Vec<u8>, Refusal>>,
    ) -> Result<(), Refusal> {
        if let Some((uid, _)) = who
            && !self.access().is_own(uid)
        {
            let text = format!("user {uid} may not ask for collections; the runtime's own may");
            return Err(Refusal::new(RefusalCode::NotAllowed, text));
        }
        let mut collections = self.lock_collections();
        collections.last += 1;
        let no = collections.last;
        let gathered = Gathered {
            left: self.shards(),
            sum: Collected::default(),
        };
        collections.known.insert(no, gathered);
        if collections.known.len() > REMEMBERED_MAX {
            collections.known.pop_first();
        }
        drop(collections);
        for shard in (0..self.shards() as u16).map(ShardNo) {
            let part = Part {
                collections: Arc::clone(&self.collections),
                no,
                collected: Collected {
                    end: CollectEnd::Stopped,
                    ..Collected::default()
                },
            };
            let reply = Answer::new(move |collected| part.tell(collected));
            // Where the shard is gone, the part says so as it is dropped.
            let _ = self.command(shard, Command::Collect { reply });
        }
        let mut bytes = Vec::new();
        call::push(&no, &mut bytes);
        answer.give(Ok(bytes));
        Ok(())
    }

    /// What a collection did, once it has ended.
    pub(super) fn collected(&self, no: u64) -> Option<Collected> {
        let collections = self.lock_collections();
        match collections.known.get(&no) {
            Some(gathered) => (gathered.left == 0).then_some(gathered.sum),
            // Forgotten, or never begun: there is nothing to wait for.
            None => Some(Collected {
                end: CollectEnd::Stopped,
                ..Collected::default()
            }),
        }
    }

    fn lock_collections(&self) -> MutexGuard<'_, Collections> {
        let collections = self.collections.lock();
        collections.unwrap_or_else(PoisonError::into_inner)
    }

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

/// What one shard tells, or that it ended first.
struct Part {
    collections: Arc<Mutex<Collections>>,
    no: u64,
    collected: Collected,
}

impl Part {
    fn tell(mut self, collected: Collected) {
        self.collected = collected;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let collections = self.collections.lock();
        let mut collections = collections.unwrap_or_else(PoisonError::into_inner);
        if let Some(gathered) = collections.known.get_mut(&self.no) {
            gathered.left -= 1;
            gathered.sum.add(&self.collected);
        }
    }
}
