//! Checkpoints as bytes: taken out of one runtime, and made again, with the same ids, in another.
//!
//! Floor 2.

use crate::agent::call::Call;
use crate::client::versions::{ITEM_BYTES, checkpointed, one};
use crate::client::{Checkpointed, ClientError, Lane, LogEntry};
use crate::id::ObjectId;
use crate::state::checkpoint::{self, Metadata, NewCheckpoint, PARENTS_MAX};

impl Lane {
    /// Makes the checkpoint of these bytes, as [`LogEntry::to_bytes`] gives them, of the fork that the lane
    /// is on ([`Lane::on`]): its state has to be the one that they name. The fork points at it then.
    ///
    /// # Errors
    /// [`ClientError::WrongState`], [`ClientError::NoSuchBranch`] of a branch that is no fork.
    pub fn checkpoint_as(&mut self, bytes: &[u8]) -> Result<Checkpointed, ClientError> {
        let call = Call::CheckpointAs { bytes };
        self.ask(&call, None, ITEM_BYTES, |completion, answer| {
            checkpointed(completion, one(answer)?)
        })
    }
}

impl LogEntry {
    /// The bytes of the checkpoint, whose hash is its id; `None` where it says what this version of the
    /// client can't.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut pairs = Vec::new();
        for (name, text) in &self.pairs {
            checkpoint::push_pair(&mut pairs, name, text).ok()?;
        }
        let metadata = Metadata::new(&self.opaque, &pairs).ok()?;
        if self.parents.len() > PARENTS_MAX {
            return None;
        }
        let new = NewCheckpoint {
            tree: self.tree,
            keys: self.keys,
            parents: &self.parents,
            agent: self.agent.as_bytes(),
            sequence: self.sequence,
            wall_ms: self.wall_ms,
            metadata,
        };
        let mut bytes = Vec::new();
        checkpoint::encode(&new, &mut bytes);
        (ObjectId::of_checkpoint(&bytes) == self.id).then_some(bytes)
    }
}
