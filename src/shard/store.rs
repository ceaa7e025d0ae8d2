//! What a shard stores: tables, log, L2 and windows behind one set of verbs, without lanes.
//!
//! Floor 2. [`Store::piece`] is the read path below L1; [`Store::put`], [`Store::delete`] and
//! [`Store::flush`] are the write path.
//!
//! Cost of a read served by L2, 1 KiB: about 5 cache lines of tables and 16 of bytes, no system
//! call. By L3: the object is copied out of the page cache (1 system call) and hashed. Of a write: the
//! payload is copied into the append buffer and hashed; one system call per flush, which a turn's
//! writes share.
//!
//! Invariants
//! - a write changes the tables at once and the windows' old value is dropped at once; the new one
//!   enters a window only after the flush that made it survive the process.
//! - until the flush, `undo` can take every write of the turn back, in reverse.
//! - bytes from segments are compared with their id before anyone sees them.

use std::collections::VecDeque;

use crate::cache::{EntryNo, L2};
use crate::id::{AgentNo, ObjectId, SegmentNo};
use crate::segment::index::{NOT_CACHED, ObjectNo};
use crate::segment::{
    Appended, Disk, DiskError, HEAD_BYTES_MAX, Head, Location, Log, LogError, NotReady, ObjectKind,
    Read, Record, Sequence, moved_bytes,
};
use crate::shard::agent::{BranchRef, named};
use crate::shard::base::Fetched;
use crate::shard::collect::{BEFORE_BYTES, Restated};
use crate::shard::commit::Commits;
use crate::shard::groups::Groups;
use crate::shard::large::LargeValue;
use crate::shard::migrate::{Doubts, Ended};
use crate::shard::nodes::NodeCache;
use crate::shard::tables::{Freed, Tables};
use crate::state::tree::BLOB_BYTES_MAX;
use crate::state::{Held, Retired, Value};

/// Share of a segment that only deletes may use while no further segment can be made, as a divisor.
const DELETE_RESERVE_SHARE: usize = 16;
/// The most of it: room for a thousand deletes of long keys, or four thousand of short ones.
const DELETE_RESERVE_BYTES_MAX: usize = 256 << 10;

/// Memory for nodes of trees, as a divisor of L2's.
const NODES_SHARE: usize = 8;
/// What a key takes in the indexes beside its own bytes, about: its entry, its object, tables that
/// are half full.
const KEY_INDEX_BYTES: u64 = 192;

/// What a branch, a fork or a tag takes, about; measured exactly now and then.
const NAME_BYTES: u64 = 512;

/// Why a write was not applied. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The next segment is still being made: try again in a later turn.
    Wait,
    /// Indexes would take more memory than the shard may have.
    Memory,
    /// The disk is full.
    NoSpace,
    /// The next segment can't be made while the runtime is out of descriptors.
    Descriptors,
    /// A sync or write failed for good: the shard takes no more writes.
    ReadOnly,
    /// The value is not the one that the caller expected; this is the current one.
    Stale(Option<ObjectId>),
    /// This object has to be read from the device first: begin again when it was.
    Cold(ObjectNo),
    /// A tree, or something that it names, is damaged.
    Corrupt,
    /// The branch does not point at what the caller expected; this is what it points at.
    StaleHead(Option<ObjectId>),
    /// The agent has no such checkpoint.
    NoSuchRevision,
    /// So many changes are in no checkpoint.
    Unsaved(u64),
    /// More at once than the log's buffer takes.
    TooLarge,
}

/// Where a piece of a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Served from L2.
    L2,
    /// Served from a segment whose pages were in memory.
    L3,
    /// Not in memory: read it through the I/O core.
    Cold(Location),
    /// The stored bytes do not match the id.
    Corrupt,
}

/// A write that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Its record: what a sync has to reach.
    pub sequence: Sequence,
    /// The id of the value.
    pub id: ObjectId,
    /// Whether the object was stored already.
    pub deduplicated: bool,
}

/// What a flush found out.
#[derive(Debug)]
pub enum Flushed {
    /// Everything appended so far survives the process.
    Done,
    /// Nothing since the last flush was stored, and the tables are as they were then.
    Undone(LogError),
}

/// How to take a write back.
#[derive(Debug)]
enum Undo {
    /// This was known of the key; the reference to what it named is still held here.
    Key {
        at: BranchRef,
        key: (u32, u32),
        before: Option<Held>,
    },
    /// An object was added that nothing refers to but a tree to come.
    Kept(ObjectNo),
    /// The log got an Object record of an object that it had by another.
    Logged(ObjectNo),
    /// A value is to outlive the fork that named it.
    Keep(ObjectNo),
    /// An agent was added.
    Agent,
    /// An agent was marked public or private.
    Public { agent: AgentNo, before: bool },
}

/// A value of one object that a key is to name.
struct NamedValue<'a> {
    at: BranchRef,
    key: &'a [u8],
    id: ObjectId,
    value_bytes: u64,
    /// Its bytes, if they are not stored yet.
    payload: Option<&'a [u8]>,
}

/// Tables, log, caches and disk of one shard.
pub struct Store<D> {
    /// Agents, keys, objects.
    pub tables: Tables,
    /// The append side of the segments.
    pub log: Log,
    /// The files.
    pub disk: D,
    /// Values in private memory.
    pub l2: L2,
    /// Nodes of state trees.
    pub nodes: NodeCache,
    /// Nodes that an operation brings there.
    pub(super) fetched: Fetched,
    /// Whose objects are in memory as groups.
    pub(super) groups: Groups,
    /// Buffers of commits.
    pub(super) commits: Commits,
    /// Bytes of the checkpoint that was looked at last; the memory is kept for the next.
    pub(super) looked_at: Vec<u8>,
    /// Working sets that were given up, and still hold references.
    pub(super) retired: VecDeque<Retired>,
    /// The same of agents that are suspended or gone: L2 lets go of their values, too.
    pub(super) cooling: VecDeque<Retired>,
    /// Copies of agents that ended without a word in the log yet.
    pub(super) ended: Vec<Ended>,
    /// Agents that the log says are gone, and that are still in the tables.
    pub(super) gone: Vec<AgentNo>,
    /// Agents that have to stay for now.
    pub(super) doubts: Doubts,
    index_bytes_max: u64,
    index_bytes: u64,
    delete_reserve_bytes: usize,
    undo: Vec<Undo>,
    undo_keys: Vec<u8>,
    freed: Freed,
    /// Buffers for the next value that is put whole and is stored in chunks.
    pub(super) large: LargeValue,
    /// Memory that uploads take.
    uploads_bytes: u64,
    /// That no segment can be made was said since one could.
    pub(super) told_of_create: bool,
    /// Operations that build a state up over several turns: nothing is swept before they end.
    pub(super) holds: u32,
    /// Everything is being said again.
    pub(super) restating: Option<Restated>,
    pub(super) last_restated: Restated,
    /// A node that is found is here with all that it names: no segment is missing, or a collection has ended.
    pub(super) nodes_are_whole: bool,
}

impl<D: Disk> Store<D> {
    /// A store over recovered tables.
    pub fn new(mut tables: Tables, mut log: Log, disk: D, l2: L2, index_bytes_max: u64) -> Self {
        for (segment, bytes) in tables.take_dead() {
            log.garbage(segment, bytes);
        }
        let index_bytes = tables.memory_bytes();
        let nodes_are_whole = log.settled() == SegmentNo::default();
        let delete_reserve_bytes =
            (log.batch_bytes_max() / DELETE_RESERVE_SHARE).min(DELETE_RESERVE_BYTES_MAX);
        Self {
            tables,
            log,
            disk,
            nodes: NodeCache::new(l2.bytes_capacity() / NODES_SHARE),
            fetched: Fetched::default(),
            l2,
            groups: Groups::default(),
            commits: Commits::default(),
            looked_at: Vec::new(),
            retired: VecDeque::new(),
            cooling: VecDeque::new(),
            ended: Vec::new(),
            gone: Vec::new(),
            doubts: Doubts::default(),
            index_bytes_max,
            index_bytes,
            delete_reserve_bytes,
            undo: Vec::with_capacity(256),
            undo_keys: Vec::with_capacity(16 << 10),
            freed: Freed::with_capacity(64),
            large: LargeValue::default(),
            uploads_bytes: 0,
            told_of_create: false,
            holds: 0,
            restating: None,
            last_restated: 0,
            nodes_are_whole,
        }
    }

    /// What a key names.
    #[inline]
    pub fn value(&self, at: BranchRef, key: &[u8]) -> Option<Value> {
        named(self.tables.branch(at).keys.get(key))
    }

    /// The id of what a key names.
    pub fn value_id(&self, value: Value) -> ObjectId {
        self.tables.objects.get(ObjectNo(value.object)).id
    }

    /// Whether a value is stored in chunks; else it is one object.
    #[inline]
    pub fn is_chunked(&self, value: Value) -> bool {
        self.tables.objects.get(ObjectNo(value.object)).kind == ObjectKind::Chunks
    }

    /// Hands `bytes` bytes of an object, from byte `from`, to `sink` in order. What is cold or
    /// damaged is not handed over at all.
    #[inline]
    pub fn piece(
        &mut self,
        no: ObjectNo,
        from: usize,
        bytes: usize,
        mut sink: impl FnMut(&[u8]),
    ) -> Piece {
        let object = self.tables.objects.get(no);
        if object.cached != NOT_CACHED {
            let entry = EntryNo(object.cached);
            slice_chunks(self.l2.get(entry), from, bytes, &mut sink);
            if self.l2.is_grouped(entry) {
                self.share(entry);
            }
            return Piece::L2;
        }
        let (at, id, kind) = (object.at, object.id, object.kind);
        if object.quarantined {
            return Piece::Corrupt;
        }
        match self.log.read(&mut self.disk, at) {
            Read::Cold => Piece::Cold(at),
            Read::Here(stored) => {
                if kind.id_of(stored) != id {
                    self.quarantine(no);
                    return Piece::Corrupt;
                }
                sink(&stored[from..from + bytes]);
                let (l2, nodes) = (&mut self.l2, &mut self.nodes);
                let objects = &mut self.tables.objects;
                self.groups.admit(l2, nodes, objects, no, stored);
                Piece::L3
            }
        }
    }

    /// Takes the bytes of an object that the I/O core read; whether they are what they should be.
    pub fn take_cold(&mut self, no: ObjectNo, stored: &[u8]) -> bool {
        let object = self.tables.objects.get(no);
        if object.kind.id_of(stored) != object.id {
            self.quarantine(no);
            return false;
        }
        if object.cached == NOT_CACHED {
            self.admit(no, stored);
        }
        true
    }

    /// Serves and shares an object's stored bytes no more. Said once: an agent may ask for them
    /// without end.
    #[cold]
    pub(super) fn quarantine(&mut self, no: ObjectNo) {
        let object = self.tables.objects.get(no);
        if !object.quarantined {
            tracing::error!(
                shard = self.log.shard().0,
                segment = object.at.segment.0,
                offset = object.at.offset,
                bytes = object.at.bytes,
                "stored bytes are damaged; the value is quarantined"
            );
        }
        self.tables.objects.quarantine(no);
    }

    /// Whether a record with this payload can be appended now. Where the disk is full, the end of
    /// the last segment is left to deletes.
    pub fn ready(&mut self, payload_bytes: usize, adds_key: bool) -> Result<(), Refused> {
        if adds_key && self.is_full() {
            return Err(Refused::Memory);
        }
        let before = self.restating.map_or(0, |_| BEFORE_BYTES);
        let bytes = payload_bytes + HEAD_BYTES_MAX + before + self.delete_reserve_bytes;
        match self.log.ready(bytes) {
            Ok(()) => Ok(()),
            Err(not) => Err(not_ready(&not)),
        }
    }

    /// Whether the indexes have no room for another key.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.index_bytes > self.index_bytes_max
    }

    /// Lets a key name a value that is given whole; also the object that it names now.
    pub fn put(
        &mut self,
        at: BranchRef,
        key: &[u8],
        payload: &[u8],
    ) -> Result<(ObjectNo, Written), Refused> {
        let adds_key = self.value(at, key).is_none();
        if payload.len() > BLOB_BYTES_MAX as usize {
            return self.put_large(at, key, payload, adds_key);
        }
        self.ready(payload.len(), adds_key)?;
        self.put_blob(at, key, payload)
    }

    /// The same, where [`Store::ready`] has granted this write already, perhaps among others: what
    /// those took of the memory since does not refuse it.
    pub fn put_granted(
        &mut self,
        at: BranchRef,
        key: &[u8],
        payload: &[u8],
    ) -> Result<(ObjectNo, Written), Refused> {
        if payload.len() > BLOB_BYTES_MAX as usize {
            return self.put_large(at, key, payload, false);
        }
        self.put_blob(at, key, payload)
    }

    fn put_blob(
        &mut self,
        at: BranchRef,
        key: &[u8],
        payload: &[u8],
    ) -> Result<(ObjectNo, Written), Refused> {
        let id = ObjectId::of_blob(payload);
        let object = self.find_shareable(&id);
        let stored = object.is_some();
        let value_bytes = payload.len() as u64;
        let appended = self.append_named(&NamedValue {
            at,
            key,
            id,
            value_bytes,
            payload: (!stored).then_some(payload),
        })?;
        let object = match object {
            Some(object) => {
                self.tables.objects.acquire(object);
                object
            }
            None => self
                .tables
                .add_object(id, ObjectKind::Blob, appended.payload),
        };
        if self.tables.objects.get(object).cached == NOT_CACHED {
            self.admit(object, payload);
        }
        self.name(
            at,
            key,
            Value {
                object: object.0,
                bytes: value_bytes,
            },
        );
        let written = Written {
            sequence: appended.sequence,
            id,
            deduplicated: stored,
        };
        Ok((object, written))
    }

    /// The object of that id, if a record may refer to its bytes. Sets that were given up, and agents that are
    /// said to be gone, still hold references that the log knows nothing of: until they are out of the tables,
    /// only what the log keeps for other reasons.
    pub(super) fn find_shareable(&self, id: &ObjectId) -> Option<ObjectNo> {
        let no = self.tables.objects.find_named(id)?;
        let object = self.tables.objects.get(no);
        let settled = self.retired.is_empty() && !self.is_cooling() && self.gone.is_empty();
        (settled || object.kept || object.logged).then_some(no)
    }

    /// Appends the record that lets a key name a value. Of a fork the log gets the value alone: nobody
    /// asks for its keys after the run.
    fn append_named(&mut self, named: &NamedValue<'_>) -> Result<Appended, Refused> {
        let NamedValue {
            at,
            key,
            id,
            value_bytes,
            payload,
        } = *named;
        let kind = ObjectKind::Blob;
        let head = if at.is_fork() {
            let kept = false;
            Head::Object { kind, id, kept }
        } else {
            Head::Put {
                agent: at.agent,
                branch: at.branch,
                key,
                kind,
                id,
                value_bytes,
            }
        };
        self.append(&Record { head, payload })
    }

    /// Removes a key; `None` where it was not there.
    pub fn delete(&mut self, at: BranchRef, key: &[u8]) -> Result<Option<Sequence>, Refused> {
        if self.lookup(at, key)?.is_none() {
            return Ok(None);
        }
        let sequence = if at.is_fork() {
            self.log.last()
        } else {
            let (agent, branch) = (at.agent, at.branch);
            self.append(&Head::Delete { agent, branch, key }.into())?
                .sequence
        };
        let before = self.tables.set_key(at, key, None);
        self.remember(at, key, before);
        Ok(Some(sequence))
    }

    /// Adds an agent, or marks a known one public or private; its number. `moves`: how often one of that name
    /// has moved that is gone, as a route that is known stays younger than one that counts anew.
    pub fn put_agent(&mut self, name: &[u8], public: bool, moves: u32) -> Result<AgentNo, Refused> {
        let known = self.tables.agent_no(name);
        if let Some(agent) = known
            && self.tables.agent(agent).public == public
        {
            return Ok(agent);
        }
        self.ready(0, known.is_none())?;
        let agent = known.unwrap_or(self.tables.next_agent());
        let moves = known.map_or(moves, |known| self.tables.agent(known).moves);
        let head = Head::Agent {
            agent,
            public,
            moves,
            name,
        };
        self.append(&head.into())?;
        match known {
            Some(agent) => {
                let before = std::mem::replace(&mut self.tables.agent_mut(agent).public, public);
                self.undo.push(Undo::Public { agent, before });
            }
            None => {
                let added = self.tables.add_agent(name, public);
                self.tables.agent_mut(added).moves = moves;
                self.undo.push(Undo::Agent);
            }
        }
        Ok(agent)
    }

    /// Appends a record for which [`Store::ready`] found room.
    #[inline]
    pub(super) fn append(&mut self, record: &Record<'_>) -> Result<Appended, Refused> {
        if self.restating.is_some() {
            self.restate_before(&record.head)?;
        }
        self.log.append(record).map_err(refused)
    }

    /// Notes that an object was added for a tree, to be taken back with a failed flush.
    pub(super) fn undo_kept(&mut self, object: ObjectNo) {
        self.undo.push(Undo::Kept(object));
    }

    /// Notes that the log has an Object record of an object, until a failed flush takes it back.
    pub(super) fn note_logged(&mut self, object: ObjectNo) {
        self.tables.objects.set_logged(object, true);
        self.undo.push(Undo::Logged(object));
    }

    /// Notes that a value is to outlive its fork, to be taken back with a failed flush.
    pub(super) fn undo_keep(&mut self, object: ObjectNo) {
        self.undo.push(Undo::Keep(object));
    }

    /// Most bytes of records that go out with one flush, beside what deletes may need.
    pub(super) fn batch_bytes_max(&self) -> usize {
        self.log.batch_bytes_max() - self.delete_reserve_bytes
    }

    /// Takes memory for one more branch, fork or tag, if there is any.
    pub(super) fn admit_name(&mut self) -> Result<(), Refused> {
        if self.index_bytes > self.index_bytes_max {
            return Err(Refused::Memory);
        }
        self.index_bytes += NAME_BYTES;
        Ok(())
    }

    /// Gives back one reference to an object.
    pub(super) fn release(&mut self, object: ObjectNo) {
        self.tables.release(object, &mut self.freed);
        self.forget_freed();
    }

    /// Whether there is memory to remember what a tree says of a key.
    pub(super) fn may_remember(&mut self, key_bytes: usize) -> bool {
        let fits = self.index_bytes < self.index_bytes_max;
        if fits {
            self.index_bytes += KEY_INDEX_BYTES + key_bytes as u64;
        }
        fits
    }

    /// Takes memory for an upload out of that of the indexes; whether there is so much.
    pub(super) fn take_upload_memory(&mut self, bytes: u64) -> bool {
        let fits = self.index_bytes + bytes <= self.index_bytes_max;
        if fits {
            self.index_bytes += bytes;
            self.uploads_bytes += bytes;
        }
        fits
    }

    /// Gives it back.
    pub(super) fn give_upload_memory(&mut self, bytes: u64) {
        self.index_bytes = self.index_bytes.saturating_sub(bytes);
        self.uploads_bytes -= bytes;
    }

    /// Sets the memory that indexes may take.
    #[cfg(test)]
    pub fn limit_index(&mut self, bytes: u64) {
        self.index_bytes_max = bytes;
    }

    /// Objects that keys named before writes that are not flushed: a reference each.
    #[cfg(test)]
    pub fn undo_objects(&self) -> impl Iterator<Item = u32> {
        self.undo.iter().filter_map(|change| match change {
            Undo::Key { before, .. } => named(*before).map(|before| before.object),
            _ => None,
        })
    }

    /// Holds an object back for a read under way, whatever becomes of its key.
    pub fn pin(&mut self, object: ObjectNo) {
        self.tables.objects.acquire(object);
        self.tables.objects.pin(object);
    }

    /// Gives back what [`Store::pin`] held.
    pub fn unpin(&mut self, object: ObjectNo) {
        self.tables.objects.unpin(object);
        self.tables.release(object, &mut self.freed);
        self.forget_freed();
    }

    /// Whether something was appended that a crash of the process would lose.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.log.last() != self.log.flushed()
    }

    /// Writes out what was appended. On failure every write since the last flush is taken back.
    pub fn flush(&mut self) -> Flushed {
        let outcome = self.log.flush(&mut self.disk);
        let mut undo = std::mem::take(&mut self.undo);
        match &outcome {
            Ok(()) => {
                for change in undo.drain(..) {
                    if let Undo::Key { before, .. } = change
                        && let Some(before) = named(before)
                    {
                        self.tables.objects.unpin(ObjectNo(before.object));
                        self.tables
                            .release(ObjectNo(before.object), &mut self.freed);
                    }
                }
            }
            Err(_) => {
                self.commits.forget_begun();
                // Nobody knows any more what was said again.
                self.restating = None;
                for change in undo.drain(..).rev() {
                    self.take_back(change);
                }
                // What was dropped with the flush is in no segment: no garbage either.
                for (no, at) in std::mem::take(&mut self.freed) {
                    self.tables.garbage_bytes -= u64::from(at.bytes);
                    self.forget_cached(no);
                }
            }
        }
        self.undo = undo;
        self.undo_keys.clear();
        self.forget_freed();
        match outcome {
            Ok(()) => Flushed::Done,
            Err(error) => Flushed::Undone(error),
        }
    }

    /// Measures the memory of the indexes again: too slow for every write, cheap now and then.
    pub fn measure(&mut self) -> u64 {
        self.index_bytes = self.tables.memory_bytes() + self.uploads_bytes;
        self.index_bytes
    }

    fn take_back(&mut self, change: Undo) {
        match change {
            Undo::Key {
                at,
                key: (from, to),
                before,
            } => {
                let key = &self.undo_keys[from as usize..to as usize];
                if self.tables.agent(at.agent).branch(at.branch).is_none() {
                    // A fork that was dropped since: what it named goes with it.
                    if let Some(before) = named(before) {
                        self.tables.objects.unpin(ObjectNo(before.object));
                        self.tables
                            .release(ObjectNo(before.object), &mut self.freed);
                    }
                    return;
                }
                // A volatile write was acknowledged, and may have entered the window.
                self.tables.agent_mut(at.agent).invalidate(at.branch, key);
                if let Some(before) = named(before) {
                    self.tables.objects.unpin(ObjectNo(before.object));
                }
                if let Some(written) = named(self.tables.put_back(at, key, before)) {
                    self.tables
                        .release(ObjectNo(written.object), &mut self.freed);
                }
            }
            Undo::Kept(object) => self.tables.drop_kept(object, &mut self.freed),
            Undo::Logged(object) => self.tables.objects.set_logged(object, false),
            Undo::Keep(object) => self.tables.objects.unkeep(object),
            Undo::Agent => self.tables.remove_last_agent(),
            Undo::Public { agent, before } => self.tables.agent_mut(agent).public = before,
        }
    }

    pub(super) fn name(&mut self, at: BranchRef, key: &[u8], value: Value) {
        let before = self.tables.set_key(at, key, Some(value));
        if before.is_none() {
            // Measured exactly now and then; until then a flood of new keys must not go unseen.
            self.index_bytes += KEY_INDEX_BYTES + key.len() as u64;
        }
        self.remember(at, key, before);
    }

    /// Drops the old value from the window and keeps what it takes to undo the change.
    fn remember(&mut self, at: BranchRef, key: &[u8], before: Option<Held>) {
        self.tables.agent_mut(at.agent).invalidate(at.branch, key);
        if let Some(before) = named(before) {
            self.tables.objects.pin(ObjectNo(before.object));
        }
        let from = self.undo_keys.len() as u32;
        self.undo_keys.extend_from_slice(key);
        let key = (from, self.undo_keys.len() as u32);
        self.undo.push(Undo::Key { at, key, before });
    }

    /// Drops what L2 holds of objects that went, and counts their bytes as garbage. Called before
    /// any object is added, which could take over a number that L2 still knows.
    fn forget_freed(&mut self) {
        while let Some((no, at)) = self.freed.pop() {
            self.forget_cached(no);
            self.log.garbage(at.segment, moved_bytes(at.bytes));
        }
    }

    pub(super) fn forget_cached(&mut self, no: ObjectNo) {
        let entry = self.tables.objects.get(no).cached;
        if entry != NOT_CACHED {
            self.l2.remove(EntryNo(entry));
            self.tables.objects.set_cached(no, NOT_CACHED);
        }
    }
}

/// Hands the bytes `from..from + bytes` of a chunked value to `sink`.
fn slice_chunks<'a>(
    chunks: impl Iterator<Item = &'a [u8]>,
    mut from: usize,
    mut bytes: usize,
    sink: &mut impl FnMut(&[u8]),
) {
    for chunk in chunks {
        if bytes == 0 {
            return;
        }
        if from >= chunk.len() {
            from -= chunk.len();
            continue;
        }
        let take = (chunk.len() - from).min(bytes);
        sink(&chunk[from..from + take]);
        from = 0;
        bytes -= take;
    }
}

pub(super) fn refused(error: LogError) -> Refused {
    match error {
        LogError::NotReady(not) => not_ready(&not),
        LogError::Write { .. } => Refused::ReadOnly,
    }
}

fn not_ready(not: &NotReady) -> Refused {
    match not {
        NotReady::Wait => Refused::Wait,
        NotReady::Failed(DiskError::NoSpace) => Refused::NoSpace,
        NotReady::Failed(error) if error.is_short_of_descriptors() => Refused::Descriptors,
        NotReady::Failed(_) | NotReady::ReadOnly(_) => Refused::ReadOnly,
    }
}
