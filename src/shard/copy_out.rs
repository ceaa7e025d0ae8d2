//! Objects that other shards copy from this one: what of a published checkpoint they have not.
//!
//! Floor 2. The asking shard opens a transfer by the name of what is published, and asks for objects by id:
//! only for those that were offered to it, as children of what it got. What is on the device is read by
//! the I/O core, within the share of cold reads that one other shard has.
//!
//! Cost: an object is copied once, out of L2, the nodes in memory or the page cache. Memory of a transfer:
//! 40 bytes for each object that was offered and not yet asked for or declined, some hundreds.
//!
//! Invariants
//! - an id that was not offered is answered as one that is not there, whether it is or not.
//! - every object asked for is answered once.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::agent::entry::{Completion, Status};
use crate::cache::EntryNo;
use crate::id::{ObjectId, ShardNo};
use crate::segment::index::{NOT_CACHED, ObjectNo};
use crate::segment::{Disk, ObjectKind, Read};
use crate::shard::Shard;
use crate::shard::peer::{PeerMessage, Wanted};
use crate::shard::pending::{ColdPiece, Destination, Holder};
use crate::shard::store::{Refused, Store};
use crate::state::checkpoint::Checkpoint;
use crate::state::chunks;
use crate::state::tree::{self, EMPTY_TREE, Nodes, Reference, Value};

/// Transfers that other shards may have open at one.
const EXPORTS_MAX: usize = 512;
/// Bytes of objects sent in one turn.
const EXPORT_BYTES_PER_TURN: usize = 128 << 10;

/// Objects on their way to another shard.
#[derive(Debug, Default)]
struct Export {
    /// Checkpoints whose trees are offered; of others, what they follow.
    whole: HashSet<ObjectId>,
    /// The agent that is moved: what it made is offered with its trees, too.
    moving: Option<Box<[u8]>>,
    offered: HashSet<ObjectId>,
    wanted: VecDeque<ObjectId>,
}

/// All transfers from this shard, by the asking shard and its ticket.
#[derive(Debug, Default)]
pub(super) struct Exports {
    all: BTreeMap<(ShardNo, u64), Export>,
    /// Something is wanted that does not wait for the device.
    ready: bool,
}

impl Exports {
    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a turn would find work.
    pub(super) fn has_work(&self) -> bool {
        self.ready
    }

    /// A read came back: there is room for another.
    pub(super) fn look_again(&mut self) {
        self.ready = !self.all.is_empty();
    }

    /// Drops what was for a shard that is gone.
    pub(super) fn forget_peer(&mut self, shard: ShardNo) {
        self.all.retain(|(to, _), _| *to != shard);
    }

    /// Drops all.
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.ready = false;
    }
}

impl<D: Disk> Shard<D> {
    /// Opens a transfer, or offers anew what is wanted by one that is open.
    pub(super) fn open_export(&mut self, to: ShardNo, ticket: u64, what: Wanted) {
        let full = self.exports.all.len() >= EXPORTS_MAX;
        let (roots, moving) = match what {
            _ if full => (Err(Status::Busy), None),
            Wanted::Published { agent, name } => (
                self.published_here(&agent, &name).map(|root| vec![root]),
                None,
            ),
            Wanted::Moving { agent } => (self.roots_of_move(&agent, to), Some(agent)),
        };
        if let Ok(roots) = &roots {
            let export = self.exports.all.entry((to, ticket)).or_default();
            export.moving = moving;
            export.whole.extend(roots);
            export.offered.extend(roots);
        }
        self.send_peer(to, PeerMessage::Opened { ticket, roots });
    }

    /// Takes what a transfer wants next, and what of the offered it has.
    pub(super) fn want_exports(
        &mut self,
        to: ShardNo,
        ticket: u64,
        wanted: &[ObjectId],
        known: &[ObjectId],
    ) {
        let Some(export) = self.exports.all.get_mut(&(to, ticket)) else {
            return;
        };
        for id in known {
            export.offered.remove(id);
        }
        let mut refused = Vec::new();
        for id in wanted {
            match export.offered.remove(id) {
                true => export.wanted.push_back(*id),
                false => refused.push(*id),
            }
        }
        self.exports.ready = true;
        for id in refused {
            let found = Err(Status::NoSuchRevision);
            self.send_peer(to, PeerMessage::Object { ticket, id, found });
        }
    }

    /// Ends a transfer.
    pub(super) fn close_export(&mut self, to: ShardNo, ticket: u64) {
        self.exports.all.remove(&(to, ticket));
    }

    /// Sends some of what is wanted, in turn; whether there was any.
    pub(super) fn turn_exports(&mut self) -> bool {
        if !std::mem::take(&mut self.exports.ready) {
            return false;
        }
        let mut left = EXPORT_BYTES_PER_TURN;
        let keys: Vec<_> = self.exports.all.keys().copied().collect();
        let mut worked = true;
        // One of each in turn, so that a large one delays no small one.
        while worked && left > 0 {
            worked = false;
            for &(to, ticket) in &keys {
                worked |= self.export_one(to, ticket, &mut left);
            }
        }
        self.exports.ready |= worked;
        true
    }

    /// Sends, or has read, the next object of a transfer; `false`: there is none, or no room.
    fn export_one(&mut self, to: ShardNo, ticket: u64, left: &mut usize) -> bool {
        let export = self.exports.all.get_mut(&(to, ticket));
        let Some(id) = export.and_then(|export| export.wanted.pop_front()) else {
            return false;
        };
        let mut bytes = Vec::new();
        let Some(no) = self.store.tables.objects.find(&id) else {
            self.exported(to, ticket, id, Err(Status::NoSuchRevision));
            return true;
        };
        let object = self.store.tables.objects.get(no);
        let (kind, length) = (object.kind, object.at.bytes);
        match self.store.copy_object(no, &mut bytes) {
            Ok(()) => {
                *left = left.saturating_sub(bytes.len() + size_of::<PeerMessage>());
                self.exported(to, ticket, id, Ok((kind, bytes)));
                true
            }
            Err(Refused::Cold(_)) if !self.pending.has_room(Holder::Peer(to), 1) => {
                // What is under way comes back, and then there is room.
                if let Some(export) = self.exports.all.get_mut(&(to, ticket)) {
                    export.wanted.push_front(id);
                }
                false
            }
            Err(Refused::Cold(_)) => {
                bytes.resize(length as usize, 0);
                let destination = Destination::Export {
                    shard: to,
                    ticket,
                    id,
                    kind,
                    bytes,
                };
                let piece = ColdPiece {
                    read: 0,
                    object: no,
                    from: 0,
                    bytes: length,
                    to: 0,
                    set: None,
                };
                let completion = Completion::new(0, Status::Ok);
                self.await_cold(destination, completion, vec![piece], None);
                true
            }
            Err(_) => {
                self.exported(to, ticket, id, Err(Status::Corrupt));
                true
            }
        }
    }

    /// Sends an object, and offers what it names.
    pub(super) fn exported(
        &mut self,
        to: ShardNo,
        ticket: u64,
        id: ObjectId,
        found: Result<(ObjectKind, Vec<u8>), Status>,
    ) {
        let Some(export) = self.exports.all.get_mut(&(to, ticket)) else {
            return;
        };
        if let Ok((kind, bytes)) = &found {
            let whole = export.whole.contains(&id) || is_of(*kind, bytes, export.moving.as_deref());
            // What can't be read the other side finds out, too.
            let _ = children(*kind, bytes, whole, |child| {
                export.offered.insert(child);
            });
        }
        self.send_peer(to, PeerMessage::Object { ticket, id, found });
    }

    /// Sends to another shard; what finds no room waits.
    pub(super) fn send_peer(&mut self, to: ShardNo, message: PeerMessage) {
        if self.lost_peers.contains(&to) {
            return;
        }
        // What waits goes first: some of it must not be overtaken.
        if !self.unsent.is_empty() {
            return self.unsent.push_back((to, message));
        }
        if let Err(message) = self.port.send(to, message) {
            self.unsent.push_back((to, message));
        }
    }
}

impl<D: Disk> Store<D> {
    /// Copies a whole object, wherever it lies in memory; no cache takes note of it.
    fn copy_object(&mut self, no: ObjectNo, out: &mut Vec<u8>) -> Result<(), Refused> {
        let object = self.tables.objects.get(no);
        if object.quarantined {
            return Err(Refused::Corrupt);
        }
        if let Some(bytes) = self.nodes.node(&object.id) {
            out.extend_from_slice(bytes);
            return Ok(());
        }
        let (at, id, kind) = (object.at, object.id, object.kind);
        if object.cached != NOT_CACHED {
            out.resize(at.bytes as usize, 0);
            self.l2.read(EntryNo(object.cached), 0, out);
            return Ok(());
        }
        match self.log.read(&mut self.disk, at) {
            Read::Cold => Err(Refused::Cold(no)),
            Read::Here(stored) if kind.id_of(stored) == id => {
                out.extend_from_slice(stored);
                Ok(())
            }
            Read::Here(_) => {
                self.quarantine(no);
                Err(Refused::Corrupt)
            }
        }
    }
}

/// Whether an object is a checkpoint that an agent made.
pub(super) fn is_of(kind: ObjectKind, bytes: &[u8], agent: Option<&[u8]>) -> bool {
    kind == ObjectKind::Checkpoint
        && Checkpoint::decode(bytes).is_ok_and(|found| Some(found.agent) == agent)
}

/// Hands over what an object names, as far as it is stored as an object of its own; of a checkpoint its tree
/// only if it is wanted as a whole, and what it follows.
///
/// # Errors
/// The bytes can't be read.
pub(super) fn children(
    kind: ObjectKind,
    bytes: &[u8],
    whole: bool,
    mut each: impl FnMut(ObjectId),
) -> Result<(), Refused> {
    match kind {
        ObjectKind::Blob => {}
        ObjectKind::Chunks => {
            let (_, entries) = chunks::entries(bytes).map_err(|_| Refused::Corrupt)?;
            entries.for_each(|(id, _)| each(id));
        }
        ObjectKind::Node => {
            let reference = |reference: Reference<'_>| match reference {
                Reference::Value(Value::Inline(_)) => {}
                Reference::Node(id)
                | Reference::Value(Value::Blob { id, .. } | Value::Chunks { id, .. }) => each(id),
            };
            tree::references(bytes, reference).map_err(|_| Refused::Corrupt)?;
        }
        ObjectKind::Checkpoint => {
            let found = Checkpoint::decode(bytes).map_err(|_| Refused::Corrupt)?;
            if whole && found.tree != EMPTY_TREE {
                each(found.tree);
            }
            found.parents.iter().for_each(each);
        }
    }
    Ok(())
}
