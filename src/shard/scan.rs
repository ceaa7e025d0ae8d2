//! Scans: the keys of a branch under a prefix, in order, from its working set and the tree below.
//!
//! Floor 2. Two ordered lists are merged: what the working set knows counts, be it a value or that the key
//! is gone; the rest is the tree's.

use std::cmp::Ordering;

use crate::agent::entry::{Completion, Extent, Status, Submission};
use crate::agent::packed;
use crate::agent::server_lane::ServerLane;
use crate::id::ObjectId;
use crate::segment::Disk;
use crate::segment::index::{ObjectIndex, ObjectNo};
use crate::shard::agent::BranchRef;
use crate::shard::base::reference;
use crate::shard::lanes::LaneRef;
use crate::shard::store::Refused;
use crate::shard::{Scratch, Shard, Step};
use crate::state::Held;
use crate::state::tree::{Scan, TreeError};

impl<D: Disk> Shard<D> {
    pub(super) fn scan(&mut self, at: LaneRef, entry: &Submission, scratch: &mut Scratch) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        loop {
            let refused = match self.scan_page(at, place, entry, scratch) {
                Ok(completion) => {
                    self.finish(at, completion);
                    return Step::Done;
                }
                Err(TreeError::Absent(node)) => match self.store.fetch_node(&node) {
                    Ok(()) => continue,
                    Err(refused) => refused,
                },
                Err(_) => Refused::Corrupt,
            };
            return self.refuse(at, entry, refused);
        }
    }

    /// Writes as many keys as are asked for and have room. One that meets a node that is not in memory
    /// is called again.
    fn scan_page(
        &mut self,
        at: LaneRef,
        place: BranchRef,
        entry: &Submission,
        scratch: &mut Scratch,
    ) -> Result<Completion, TreeError> {
        let limit = match entry.arg0 {
            0 => u64::MAX,
            limit => limit,
        };
        let mut completion = Completion::new(entry.user_data, Status::Ok);
        let Some(lane) = self.lanes.get_mut(at) else {
            return Ok(completion);
        };
        let (prefix, after) = (&scratch.key, &scratch.value);
        let tables = &mut self.store.tables;
        let agent = tables.agents[place.agent.0 as usize].as_mut();
        let branch = agent.and_then(|agent| agent.branch_mut(place.branch));
        let branch = branch.expect("a branch that was checked");
        let mut page = Page {
            ring: &lane.ring,
            reply: entry.reply,
            limit,
            completion: &mut completion,
        };
        let mut below = Scan::new(&self.store.nodes, &branch.base, prefix, after)?;
        let mut above = branch.keys.scan(prefix, after).peekable();
        let mut next = below.next()?;
        loop {
            let order = match (&next, above.peek()) {
                (None, None) => return Ok(completion),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((key, _)), Some((other, _))) => (*key).cmp(*other),
            };
            let went = match (order, &next) {
                (Ordering::Less, Some((key, value))) => {
                    let (id, bytes) = reference(value);
                    page.add(key, &id, bytes)
                }
                _ => match above.next() {
                    Some((key, held)) => page.add_held(&tables.objects, key, held),
                    None => true,
                },
            };
            if !went {
                return Ok(completion);
            }
            if order != Ordering::Greater {
                next = below.next()?;
            }
        }
    }
}

/// The reply in the making.
struct Page<'a> {
    ring: &'a ServerLane,
    reply: Extent,
    limit: u64,
    completion: &'a mut Completion,
}

impl Page<'_> {
    fn add_held(&mut self, objects: &ObjectIndex, key: &[u8], held: Held) -> bool {
        match held.value {
            Some(value) => self.add(key, &objects.get(ObjectNo(value.object)).id, value.bytes),
            None => true,
        }
    }

    /// Adds a key; `false` where the page is full.
    fn add(&mut self, key: &[u8], id: &ObjectId, value_bytes: u64) -> bool {
        let completion = &mut *self.completion;
        let needed = (packed::SCAN_HEAD_BYTES + key.len()) as u32;
        let full = completion.reply_bytes + needed > self.reply.len;
        if completion.value_bytes >= self.limit || full {
            completion.more = true;
            if full && completion.value_bytes == 0 {
                completion.status = Status::ReplyTooSmall;
                completion.detail = needed;
            }
            return false;
        }
        let head = packed::scan_head(key.len() as u16, value_bytes as u32, id);
        self.ring
            .write_reply(self.reply, completion.reply_bytes, &head);
        let key_at = completion.reply_bytes + packed::SCAN_HEAD_BYTES as u32;
        self.ring.write_reply(self.reply, key_at, key);
        completion.reply_bytes += needed;
        completion.value_bytes += 1;
        true
    }
}
