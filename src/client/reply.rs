//! What requests take and give back.

use crate::agent::entry::{Completion, Tier};
use crate::client::ClientError;
use crate::config::Durability;
use crate::id::ObjectId;

/// A value that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which tier served it; of a value in several parts, the farthest.
    pub tier: Tier,
    /// Bytes of the whole value.
    pub value_bytes: u64,
    /// Its id; not known of a value served by the window (there it is the BLAKE3 of the bytes).
    pub id: Option<ObjectId>,
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its place in the log of its shard: what [`Lane::sync_to`](crate::client::Lane::sync_to) takes.
    pub sequence: u64,
    /// The durability that was reached.
    pub durability: Durability,
    /// The id of the value.
    pub id: ObjectId,
}

impl Written {
    /// What the completion of a write says.
    pub(super) fn of(completion: &Completion) -> Self {
        Self {
            sequence: completion.value_bytes,
            durability: completion.durability.unwrap_or(Durability::Volatile),
            id: completion.id,
        }
    }
}

/// What is known of a key without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Bytes of the value.
    pub value_bytes: u64,
    /// Its id.
    pub id: ObjectId,
}

/// What a key must name for a write to go ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// This value.
    Value(ObjectId),
}

/// How to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// What the write must survive before it is acknowledged; `None`: the runtime's default.
    pub durability: Option<Durability>,
    /// Write only if the key names this now.
    pub expect: Option<Expect>,
}

/// A key that a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedKey {
    /// The key.
    pub key: Vec<u8>,
    /// Bytes of its value.
    pub value_bytes: u64,
    /// Id of its value.
    pub id: ObjectId,
}

/// One page of a scan, in the order of the keys' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The keys.
    pub keys: Vec<ScannedKey>,
    /// There are more: scan again after the last of these.
    pub more: bool,
}

/// Names a pipelined request until its reply was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub(super) u64);

/// The reply to a pipelined request.
#[derive(Debug)]
pub struct Reply {
    /// The request.
    pub ticket: Ticket,
    /// What came of it; `NotFound` is a status, no error.
    pub outcome: Result<Completion, ClientError>,
}
