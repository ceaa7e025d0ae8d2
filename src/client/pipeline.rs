//! Requests under way at once: each starts here and ends in [`Lane::poll`] or [`Lane::wait`].
//!
//! Floor 2. The blocking calls are these with a wait behind them. Where a reply is a list, the functions
//! beside it read the bytes that came with it.

use crate::agent::entry::{Completion, Op, Status};
use crate::agent::packed;
use crate::client::lane::PART;
use crate::client::{ClientError, Lane, Page, PutOptions, ScannedKey, Stat, Ticket};
use crate::config::Durability;
use crate::id::{KEY_BYTES_MAX, ObjectId};
use crate::metrics::Stats;

/// A value of a multi-get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultiValue {
    /// The key is not there.
    Absent,
    /// The value.
    Here(Vec<u8>),
    /// It found no room in the reply: get it by itself.
    Left {
        /// Bytes of it.
        value_bytes: u64,
        /// Its id.
        id: ObjectId,
    },
    /// The stored bytes are damaged.
    Corrupt,
}

impl MultiValue {
    /// The values in the reply to a multi-get, in the order of its keys.
    ///
    /// # Errors
    /// [`ClientError::BadReply`].
    pub fn all(reply: &[u8]) -> Result<Vec<Self>, ClientError> {
        let items = packed::Values::parse(reply).map_err(|_| ClientError::BadReply)?;
        items
            .map(|(head, bytes)| {
                Ok(match head.status {
                    Status::Ok if head.included => Self::Here(bytes.to_vec()),
                    Status::Ok => Self::Left {
                        value_bytes: u64::from(head.value_bytes),
                        id: head.id,
                    },
                    Status::NotFound => Self::Absent,
                    Status::Corrupt => Self::Corrupt,
                    _ => return Err(ClientError::BadReply),
                })
            })
            .collect()
    }
}

impl Page {
    /// The page in the reply to a scan.
    ///
    /// # Errors
    /// [`ClientError::BadReply`].
    pub fn of(completion: &Completion, reply: &[u8]) -> Result<Self, ClientError> {
        let found = packed::Scanned::parse(reply).map_err(|_| ClientError::BadReply)?;
        let keys = found.map(|found| ScannedKey {
            key: found.key.to_vec(),
            value_bytes: u64::from(found.value_bytes),
            id: found.id,
        });
        Ok(Self {
            keys: keys.collect(),
            more: completion.more,
        })
    }
}

impl Stat {
    /// What the completion of an exists says; `None`: the key is not there.
    #[must_use]
    pub fn of(completion: &Completion) -> Option<Self> {
        let found = completion.status == Status::Ok;
        found.then_some(Self {
            value_bytes: completion.value_bytes,
            id: completion.id,
        })
    }
}

/// The counters in the reply to a stats request.
#[must_use]
pub fn read_stats(reply: &[u8]) -> Stats {
    let (words, _) = reply.as_chunks();
    let values: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    Stats::from_slice(&values)
}

impl Lane {
    /// Starts a read; the shard is asked even if the window has the value. `bytes_max` bytes of
    /// the value are wanted at most.
    ///
    /// # Errors
    /// [`ClientError::LaneFull`]: finish something first.
    pub fn submit_get(&mut self, key: &[u8], bytes_max: u32) -> Result<Ticket, ClientError> {
        let entry = self.entry(Op::Get);
        self.submit(entry, key, &[], bytes_max)
    }

    /// Starts a write of at most 64 KiB.
    ///
    /// # Errors
    /// [`ClientError::LaneFull`]; [`ClientError::TooLarge`] above 64 KiB.
    pub fn submit_put(
        &mut self,
        key: &[u8],
        value: &[u8],
        options: PutOptions,
    ) -> Result<Ticket, ClientError> {
        if value.len() > PART {
            return Err(ClientError::TooLarge);
        }
        let mut entry = self.entry(Op::Put);
        entry.durability = options.durability;
        self.submit_write(entry, key, value, options.expect)
    }

    /// Starts a delete.
    ///
    /// # Errors
    /// [`ClientError::LaneFull`].
    pub fn submit_delete(
        &mut self,
        key: &[u8],
        options: PutOptions,
    ) -> Result<Ticket, ClientError> {
        let mut entry = self.entry(Op::Delete);
        entry.durability = options.durability;
        self.submit_write(entry, key, &[], options.expect)
    }

    /// Starts a sync; see [`Lane::sync_to`].
    ///
    /// # Errors
    /// [`ClientError::LaneFull`].
    pub fn submit_sync(
        &mut self,
        sequence: u64,
        durability: Durability,
    ) -> Result<Ticket, ClientError> {
        let mut entry = self.entry(Op::Sync);
        entry.arg0 = sequence;
        entry.durability = Some(durability);
        self.submit(entry, &[], &[], 0)
    }

    /// Starts a read of another agent's value; see [`Lane::get_from`].
    ///
    /// # Errors
    /// [`ClientError::LaneFull`].
    pub fn submit_get_from(
        &mut self,
        agent: &str,
        key: &[u8],
        bytes_max: u32,
    ) -> Result<Ticket, ClientError> {
        let entry = self.entry(Op::GetFrom);
        self.submit(entry, key, agent.as_bytes(), bytes_max)
    }

    /// Starts an exists; [`Stat::of`] reads its completion.
    ///
    /// # Errors
    /// [`ClientError::LaneFull`].
    pub fn submit_exists(&mut self, key: &[u8]) -> Result<Ticket, ClientError> {
        let entry = self.entry(Op::Exists);
        self.submit(entry, key, &[], 0)
    }

    /// Starts a scan with a reply of at most `bytes_max`; [`Page::of`] reads it.
    ///
    /// # Errors
    /// [`ClientError::LaneFull`].
    pub fn submit_scan(
        &mut self,
        prefix: &[u8],
        after: &[u8],
        limit: usize,
        bytes_max: u32,
    ) -> Result<Ticket, ClientError> {
        for key in [prefix, after] {
            if key.len() > KEY_BYTES_MAX {
                return Err(ClientError::KeyLength { bytes: key.len() });
            }
        }
        let mut entry = self.entry(Op::Scan);
        entry.arg0 = limit as u64;
        self.submit(entry, prefix, after, bytes_max)
    }

    /// Starts a multi-get with a reply of at most `bytes_max`; [`MultiValue::all`] reads it.
    ///
    /// # Errors
    /// [`ClientError::LaneFull`]; [`ClientError::ListTooLong`] beyond 1,024 keys or 64 KiB of them.
    pub fn submit_multi_get(
        &mut self,
        keys: &[&[u8]],
        bytes_max: u32,
    ) -> Result<Ticket, ClientError> {
        let mut list = Vec::new();
        for key in keys {
            packed::push_key(&mut list, key).map_err(too_long)?;
        }
        let entry = self.entry(Op::MultiGet);
        self.submit(entry, &[], &list, bytes_max)
    }

    /// Starts a multi-put; see [`Lane::multi_put`].
    ///
    /// # Errors
    /// [`ClientError::LaneFull`]; [`ClientError::ListTooLong`] beyond 1,024 pairs or 64 KiB of them.
    pub fn submit_multi_put(
        &mut self,
        pairs: &[(&[u8], &[u8])],
        durability: Option<Durability>,
    ) -> Result<Ticket, ClientError> {
        let mut list = Vec::new();
        for (key, value) in pairs {
            packed::push_pair(&mut list, key, value).map_err(too_long)?;
        }
        let mut entry = self.entry(Op::MultiPut);
        entry.durability = durability;
        let room = (pairs.len() * packed::PUT_ANSWER_BYTES) as u32;
        self.submit(entry, &[], &list, room)
    }

    /// Starts a request for the runtime's counters; [`read_stats`] reads its reply.
    ///
    /// # Errors
    /// [`ClientError::LaneFull`].
    pub fn submit_stats(&mut self) -> Result<Ticket, ClientError> {
        let entry = self.entry(Op::Stats);
        self.submit(entry, &[], &[], (Stats::COUNT * 8) as u32)
    }
}

fn too_long(error: packed::PackedError) -> ClientError {
    ClientError::ListTooLong {
        what: error.to_string(),
    }
}
