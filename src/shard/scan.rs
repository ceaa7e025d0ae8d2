//! Scans: the keys of a branch under a prefix, in order, from its working set and the tree below.
//!
//! Floor 2. Two ordered lists are merged: what the working set knows counts, be it a value or that the key
//! is gone; the rest is the tree's.
//!
//! Cost: a page of keys, and each node of the tree that holds some of them, once: nodes that are not in
//! memory are fetched as the scan meets them.

use std::cmp::Ordering;

use crate::agent::entry::{Completion, Extent, Status, Submission};
use crate::agent::packed;
use crate::agent::server_lane::ServerLane;
use crate::id::ObjectId;
use crate::segment::Disk;
use crate::segment::index::{ObjectIndex, ObjectNo};
use crate::shard::base::{AtHand, reference};
use crate::shard::lanes::LaneRef;
use crate::shard::{Scratch, Shard, Step};
use crate::state::tree::{Scan, TreeError};
use crate::state::{Held, WorkingSet};

impl<D: Disk> Shard<D> {
    pub(super) fn scan(&mut self, at: LaneRef, entry: &Submission, scratch: &mut Scratch) -> Step {
        let Some(place) = self.take_input(at, entry, scratch) else {
            return Step::Done;
        };
        let Some(lane) = self.lanes.get_mut(at) else {
            return Step::Done;
        };
        let mut page = Page {
            ring: &lane.ring,
            reply: entry.reply,
            limit: match entry.arg0 {
                0 => u64::MAX,
                limit => limit,
            },
            completion: Completion::new(entry.user_data, Status::Ok),
        };
        let branch = self.store.tables.branch_mut(place);
        let base = branch.base;
        // An operation on trees needs the store: the working set waits beside it.
        let mut keys = std::mem::take(&mut branch.keys);
        let scanned = self.store.with_nodes(|nodes| {
            page.completion = Completion::new(entry.user_data, Status::Ok);
            page.fill(nodes, &base, &mut keys, scratch)
        });
        self.store.tables.branch_mut(place).keys = keys;
        match scanned {
            Ok(()) => {
                let completion = page.completion;
                self.finish(at, completion);
                Step::Done
            }
            Err(refused) => self.refuse(at, entry, refused),
        }
    }
}

/// The reply in the making.
struct Page<'a> {
    ring: &'a ServerLane,
    reply: Extent,
    limit: u64,
    completion: Completion,
}

impl Page<'_> {
    /// Writes as many keys as are asked for and have room.
    fn fill<D: Disk>(
        &mut self,
        nodes: &AtHand<'_, D>,
        base: &ObjectId,
        keys: &mut WorkingSet,
        scratch: &Scratch,
    ) -> Result<(), TreeError> {
        let (prefix, after) = (&scratch.key, &scratch.value);
        let mut below = Scan::new(nodes, base, prefix, after)?;
        let mut above = keys.scan(prefix, after).peekable();
        let mut next = below.next()?;
        loop {
            let order = match (&next, above.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((key, _)), Some((other, _))) => (*key).cmp(*other),
            };
            let went = match (order, &next) {
                (Ordering::Less, Some((key, value))) => {
                    let (id, bytes) = reference(value);
                    self.add(key, &id, bytes)
                }
                _ => match above.next() {
                    Some((key, held)) => self.add_held(nodes.objects(), key, held),
                    None => true,
                },
            };
            if !went {
                return Ok(());
            }
            if order != Ordering::Greater {
                next = below.next()?;
            }
        }
    }

    fn add_held(&mut self, objects: &ObjectIndex, key: &[u8], held: Held) -> bool {
        match held.value {
            Some(value) => self.add(key, &objects.get(ObjectNo(value.object)).id, value.bytes),
            None => true,
        }
    }

    /// Adds a key; `false` where the page is full.
    fn add(&mut self, key: &[u8], id: &ObjectId, value_bytes: u64) -> bool {
        let completion = &mut self.completion;
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
