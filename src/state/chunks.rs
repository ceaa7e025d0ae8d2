//! Large values: split into chunks where their content says so, and named by a tree of the chunks' ids.
//!
//! Floor 1: pure functions of ids and bytes; `TREE.md` has the layout and the rules. Chunks are cut by
//! FastCDC (2020), at 4 KiB on average; the nodes over them end by the rule of the state tree
//! ([`super::tree::boundary`]), with ids of chunks in the place of keys. So a change in the middle of a
//! value makes a chunk or two and the nodes above them, and so does an append: every other object is
//! one that the version before has.
//!
//! Cost: each byte is read by the chunker and by BLAKE3, 0.9 ms a MiB together, about half each; 36 bytes of
//! node per chunk. An append reads and writes the last chunk and a node per level, 5 us. A writer holds at most
//! a chunk that is not cut yet, and a node per level.
//!
//! Invariants
//! - the objects depend on the bytes alone, not on the parts in which they arrive.
//! - objects come before those that name them.
//! - a value of at least two chunks has a tree; what is shorter than the longest chunk is one object.

use std::ops::Range;

use fastcdc::v2020::{MASKS, cut};

use crate::id::{OBJECT_ID_BYTES, ObjectId, VALUE_BYTES_MAX};

use super::tree::boundary::{Fill, begins_node};
use super::tree::{
    BLOB_BYTES_MAX, Damage, INLINE_BYTES_MAX, LEVEL_MAX, NODE_BYTES_MAX, Nodes, TreeError, Value,
};

/// Shortest chunk but the last of a value, in bytes.
pub const CHUNK_BYTES_MIN: usize = 2 << 10;
/// Length that chunks crowd around, in bytes.
pub const CHUNK_BYTES_AVERAGE: usize = 4 << 10;
/// Longest chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 16 << 10;

// Whatever is no blob any more has two chunks.
const _: () = assert!(CHUNK_BYTES_MAX <= BLOB_BYTES_MAX as usize);

/// Normalized chunking of level 2: two more bits below the average, two fewer above.
const MASK_BELOW: u64 = MASKS[CHUNK_BYTES_AVERAGE.ilog2() as usize + 2];
const MASK_ABOVE: u64 = MASKS[CHUNK_BYTES_AVERAGE.ilog2() as usize - 2];

/// Version of the layout of nodes over chunks.
const CHUNKS_VERSION: u8 = 1;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = OBJECT_ID_BYTES + 4;
const LEVELS: usize = LEVEL_MAX as usize + 1;

/// An object that a value is stored in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewObject<'a> {
    /// Its id.
    pub id: ObjectId,
    /// Whether it is a node over chunks; else it is bytes of the value, a blob.
    pub is_node: bool,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// A value longer than [`VALUE_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a value of more than {VALUE_BYTES_MAX} bytes")]
pub struct TooLong;

/// Turns the bytes of a value, as they arrive, into what a tree stores of it.
///
/// ```
/// use helios::state::chunks::ValueWriter;
/// use helios::state::tree::Value;
/// let mut writer = ValueWriter::default();
/// let mut objects = 0;
/// for part in [[1; 9000], [2; 9000]] {
///     writer.push(&part, |_| objects += 1).unwrap();
/// }
/// let value = writer.finish(|_| objects += 1);
/// assert!(matches!(value, Value::Chunks { bytes: 18_000, .. }));
/// assert!(objects >= 3, "two chunks and a node");
/// ```
#[derive(Debug, Default)]
pub struct ValueWriter {
    /// Bytes that are not cut yet: at most one more than the longest chunk.
    pending: Vec<u8>,
    bytes: u64,
    /// The node that is being filled on each level.
    levels: [Level; LEVELS],
    /// The bytes of a short value, after [`ValueWriter::finish`].
    inline: Vec<u8>,
}

#[derive(Debug, Default)]
struct Level {
    /// Header and entries; empty without entries.
    node: Vec<u8>,
    /// Bytes of the value below it.
    bytes: u32,
}

impl ValueWriter {
    /// Takes the next part of the value, of any length. `emit` gets the objects that it completes.
    ///
    /// # Errors
    /// [`TooLong`]; the part was not taken.
    pub fn push(
        &mut self,
        mut part: &[u8],
        mut emit: impl FnMut(NewObject<'_>),
    ) -> Result<(), TooLong> {
        if self.bytes + part.len() as u64 > VALUE_BYTES_MAX {
            return Err(TooLong);
        }
        self.bytes += part.len() as u64;
        // A cut is certain only once there is more than the longest chunk.
        while self.pending.len() + part.len() > CHUNK_BYTES_MAX {
            if self.pending.is_empty() {
                let (chunk, rest) = part.split_at(chunk_bytes(part));
                self.chunk(chunk, &mut emit);
                part = rest;
                continue;
            }
            let missing = (CHUNK_BYTES_MAX + 1).saturating_sub(self.pending.len());
            let (taken, rest) = part.split_at(missing);
            self.pending.extend_from_slice(taken);
            let pending = std::mem::take(&mut self.pending);
            let (chunk, left) = pending.split_at(chunk_bytes(&pending));
            self.chunk(chunk, &mut emit);
            if left.len() <= taken.len() {
                // All that is left is of this part: go on without the copy.
                part = &part[taken.len() - left.len()..];
                self.pending = pending;
                self.pending.clear();
            } else {
                part = rest;
                let cut = chunk.len();
                self.pending = pending;
                self.pending.drain(..cut);
            }
        }
        self.pending.extend_from_slice(part);
        Ok(())
    }

    /// Ends the value; the writer is ready for the next one. `emit` gets the objects that are left, none
    /// for a value that is stored inline.
    pub fn finish(&mut self, mut emit: impl FnMut(NewObject<'_>)) -> Value<'_> {
        let bytes = std::mem::take(&mut self.bytes) as u32;
        if bytes as usize <= INLINE_BYTES_MAX {
            std::mem::swap(&mut self.inline, &mut self.pending);
            self.pending.clear();
            return Value::Inline(&self.inline);
        }
        if bytes <= BLOB_BYTES_MAX {
            let id = blob(&self.pending, &mut emit);
            self.pending.clear();
            return Value::Blob { id, bytes };
        }
        let mut pending = std::mem::take(&mut self.pending);
        let mut rest = &pending[..];
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at(chunk_bytes(rest));
            self.chunk(chunk, &mut emit);
            rest = behind;
        }
        pending.clear();
        self.pending = pending;
        let id = self.close_all(&mut emit);
        Value::Chunks { id, bytes }
    }

    /// Drops a value that was begun; the writer is ready for another one.
    pub fn clear(&mut self) {
        self.pending.clear();
        self.levels.iter_mut().for_each(Level::clear);
        self.bytes = 0;
    }

    /// Goes on at the end of a chunked value: what is pushed next is appended to all of it but its last
    /// chunk, whose id and length are returned. So the caller pushes that chunk first, then what it
    /// appends, and gets the value and the objects that writing it as a whole would give, without
    /// reading the rest of it.
    ///
    /// # Errors
    /// A node at the right edge is absent or damaged; the writer is ready for another value, or for
    /// the same call.
    pub fn resume(
        &mut self,
        nodes: &impl Nodes,
        root: &ObjectId,
        bytes: u32,
    ) -> Result<(ObjectId, u32), TreeError> {
        self.clear();
        let mut edge = [(ChunksNode::default(), 0); LEVELS];
        let top = right_edge(nodes, root, bytes, 0, &mut edge)?;
        let (last, last_bytes) = edge[0].0.entry(edge[0].1);
        for at in 0..=top {
            let (mut node, mut kept) = edge[at];
            if kept == 0
                && let Some(above) = (at + 1..=top).find(|above| edge[*above].1 > 0)
            {
                // Whether a node begins with the entry that changes is open, and so is the node before.
                edge[above].1 -= 1;
                let (id, bytes) = edge[above].0.entry(edge[above].1);
                right_edge(nodes, &id, bytes, at, &mut edge)?;
                (node, kept) = (edge[at].0, edge[at].1 + 1);
            }
            // What the levels below were to leave in this one again is not among those kept.
            for index in 0..kept {
                let (id, bytes) = node.entry(index);
                self.levels[at].push(at as u8, &id, bytes);
            }
        }
        self.bytes = u64::from(bytes - last_bytes);
        Ok((last, last_bytes))
    }

    /// At most so many objects, and bytes of them, come of pushing `bytes` more bytes and finishing.
    #[must_use]
    pub fn emits_max(&self, bytes: usize) -> (usize, usize) {
        let chunks = (self.pending.len() + bytes) / CHUNK_BYTES_MIN + 1;
        // A node ends behind eight entries at the earliest, and two more on each level: the one that
        // was begun before, and the last.
        let nodes = chunks / 7 + 2 * LEVELS;
        let held: usize = self.levels.iter().map(|level| level.node.len()).sum();
        let entries = (chunks + nodes) * ENTRY_BYTES + nodes * HEADER_BYTES;
        let bytes = self.pending.len() + bytes + held + entries;
        (chunks + nodes, bytes)
    }

    fn chunk(&mut self, bytes: &[u8], emit: &mut impl FnMut(NewObject<'_>)) {
        let id = blob(bytes, emit);
        self.add(0, &id, bytes.len() as u32, emit);
    }

    /// Adds an entry to a level; closes the node before it, if it begins another one.
    fn add(
        &mut self,
        mut at: usize,
        id: &ObjectId,
        bytes: u32,
        emit: &mut impl FnMut(NewObject<'_>),
    ) {
        let (mut id, mut bytes) = (*id, bytes);
        loop {
            let level = &mut self.levels[at];
            let full = begins_node(level.fill(), ENTRY_BYTES as u32, at as u8, || id.hash64());
            let closed = full.then(|| level.close(emit));
            level.push(at as u8, &id, bytes);
            match closed {
                Some((closed_id, closed_bytes)) => (id, bytes) = (closed_id, closed_bytes),
                None => return,
            }
            // Each level has at least 8 entries a node, so this ends below the last.
            at += 1;
        }
    }

    /// Closes the nodes of all levels; the id of the root: the lowest node that is alone on its level.
    fn close_all(&mut self, emit: &mut impl FnMut(NewObject<'_>)) -> ObjectId {
        let mut at = 0;
        loop {
            let (id, bytes) = self.levels[at].close(emit);
            at += 1;
            if at == LEVELS || self.levels[at].node.is_empty() {
                return id;
            }
            self.add(at, &id, bytes, emit);
        }
    }
}

impl Level {
    fn fill(&self) -> Fill {
        let bytes = self.node.len().saturating_sub(HEADER_BYTES) as u32;
        Fill {
            entries: bytes / ENTRY_BYTES as u32,
            bytes,
        }
    }

    fn push(&mut self, level: u8, id: &ObjectId, bytes: u32) {
        if self.node.is_empty() {
            self.node.extend_from_slice(&[CHUNKS_VERSION, level, 0, 0]);
        }
        self.node.extend_from_slice(id.as_bytes());
        self.node.extend_from_slice(&bytes.to_le_bytes());
        self.bytes += bytes;
    }

    fn close(&mut self, emit: &mut impl FnMut(NewObject<'_>)) -> (ObjectId, u32) {
        let entries = self.fill().entries as u16;
        self.node[2..HEADER_BYTES].copy_from_slice(&entries.to_le_bytes());
        let id = ObjectId::of_chunks(&self.node);
        emit(NewObject {
            id,
            is_node: true,
            bytes: &self.node,
        });
        let bytes = self.bytes;
        self.clear();
        (id, bytes)
    }

    fn clear(&mut self) {
        self.node.clear();
        self.bytes = 0;
    }
}

fn blob(bytes: &[u8], emit: &mut impl FnMut(NewObject<'_>)) -> ObjectId {
    let id = ObjectId::of_blob(bytes);
    emit(NewObject {
        id,
        is_node: false,
        bytes,
    });
    id
}

/// Length of the first chunk of what is left of a value, or of more than the longest chunk of it.
fn chunk_bytes(bytes: &[u8]) -> usize {
    let (_, cut) = cut(
        bytes,
        CHUNK_BYTES_MIN,
        CHUNK_BYTES_AVERAGE,
        CHUNK_BYTES_MAX,
        MASK_BELOW,
        MASK_ABOVE,
        MASK_BELOW << 1,
        MASK_ABOVE << 1,
    );
    cut
}

/// Reads the last node of each level of a subtree, down to a level, and notes its last entry. The level
/// of the subtree's root.
fn right_edge<'n>(
    nodes: &'n impl Nodes,
    root: &ObjectId,
    bytes: u32,
    down_to: usize,
    edge: &mut [(ChunksNode<'n>, usize); LEVELS],
) -> Result<usize, TreeError> {
    let mut node = ChunksNode::load(nodes, root, bytes, None)?;
    let top = usize::from(node.level);
    loop {
        let last = node.entries.len() - 1;
        edge[usize::from(node.level)] = (node, last);
        if usize::from(node.level) <= down_to {
            return Ok(top);
        }
        let (id, bytes) = node.entry(last);
        node = ChunksNode::load(nodes, &id, bytes, Some(node.level))?;
    }
}

/// A node over chunks, or over other such nodes.
#[derive(Clone, Copy, Default)]
struct ChunksNode<'n> {
    level: u8,
    entries: &'n [[u8; ENTRY_BYTES]],
}

impl<'n> ChunksNode<'n> {
    fn open(bytes: &'n [u8]) -> Result<Self, Damage> {
        let (&[version, level, low, high], rest) =
            bytes.split_first_chunk().ok_or(Damage::Short)?;
        if version != CHUNKS_VERSION {
            return Err(Damage::Version(version));
        }
        let (entries, tail) = rest.as_chunks();
        let count = usize::from(u16::from_le_bytes([low, high]));
        if level > LEVEL_MAX || count == 0 || bytes.len() > NODE_BYTES_MAX {
            return Err(Damage::Header);
        }
        if count != entries.len() || !tail.is_empty() {
            return Err(Damage::Length);
        }
        let node = Self { level, entries };
        let longest = match level {
            0 => CHUNK_BYTES_MAX as u32,
            _ => u32::MAX,
        };
        let fits = |index| (1..=longest).contains(&node.entry(index).1);
        match (0..count).all(fits) && node.bytes().is_some() {
            true => Ok(node),
            false => Err(Damage::ChunkBytes),
        }
    }

    /// Opens a node, and checks it against what names it: the bytes below it, and its parent's level.
    fn load(
        nodes: &'n impl Nodes,
        id: &ObjectId,
        bytes: u32,
        parent: Option<u8>,
    ) -> Result<Self, TreeError> {
        let damaged = |damage| TreeError::Damaged { id: *id, damage };
        let stored = nodes.node(id).ok_or(TreeError::Absent(*id))?;
        let node = Self::open(stored).map_err(damaged)?;
        if parent.is_some_and(|level| level != node.level + 1) {
            return Err(damaged(Damage::Level));
        }
        if node.bytes() != Some(bytes) {
            return Err(damaged(Damage::ChunkBytes));
        }
        Ok(node)
    }

    fn entry(&self, index: usize) -> (ObjectId, u32) {
        let [id @ .., a, b, c, d] = self.entries[index];
        (ObjectId::from_bytes(id), u32::from_le_bytes([a, b, c, d]))
    }

    /// Bytes of the value below it.
    fn bytes(&self) -> Option<u32> {
        (0..self.entries.len()).try_fold(0_u32, |sum, index| sum.checked_add(self.entry(index).1))
    }
}

/// Checks bytes that shall be stored as a node over chunks: lengths, and that no entry should have begun
/// another node.
///
/// # Errors
/// What is wrong with them.
pub fn check_chunks(bytes: &[u8]) -> Result<(), Damage> {
    let node = ChunksNode::open(bytes)?;
    let begins = |index: usize| {
        let fill = Fill {
            entries: index as u32,
            bytes: (index * ENTRY_BYTES) as u32,
        };
        let hash = || node.entry(index).0.hash64();
        begins_node(fill, ENTRY_BYTES as u32, node.level, hash)
    };
    match (0..node.entries.len()).any(begins) {
        true => Err(Damage::Boundary),
        false => Ok(()),
    }
}

/// What a node over chunks says: its level, and id and length of what each entry names: a chunk on level
/// 0, else a node of the level below.
///
/// # Errors
/// What is wrong with the bytes.
pub fn entries(
    bytes: &[u8],
) -> Result<(u8, impl ExactSizeIterator<Item = (ObjectId, u32)>), Damage> {
    let node = ChunksNode::open(bytes)?;
    let entries = (0..node.entries.len()).map(move |index| node.entry(index));
    Ok((node.level, entries))
}

/// A piece of a value: some bytes of a blob.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The id of the blob.
    pub id: ObjectId,
    /// Where in the blob, in bytes; never empty.
    pub range: Range<u32>,
}

/// Reads the pieces of a range of a chunked value, in order.
#[derive(Clone, Debug)]
pub struct ChunkReader {
    root: ObjectId,
    bytes: u32,
    at: u32,
    end: u32,
}

impl ChunkReader {
    /// Reads `range` of the value with this root and length; what lies behind its end is left out.
    #[must_use]
    pub fn new(root: ObjectId, bytes: u32, range: Range<u32>) -> Self {
        Self {
            root,
            bytes,
            at: range.start,
            end: range.end.min(bytes),
        }
    }

    /// Appends pieces to `pieces` until it has `pieces_max` of them, or the range ends. Whether there is
    /// more to come.
    ///
    /// # Errors
    /// A node is absent or damaged. The pieces so far are good, and another call goes on behind them.
    pub fn read(
        &mut self,
        nodes: &impl Nodes,
        pieces: &mut Vec<Piece>,
        pieces_max: usize,
    ) -> Result<bool, TreeError> {
        while self.at < self.end && pieces.len() < pieces_max {
            let (leaf, mut start) = self.leaf(nodes)?;
            for index in 0..leaf.entries.len() {
                let (id, bytes) = leaf.entry(index);
                let end = start + bytes;
                if end > self.at && self.at < self.end && pieces.len() < pieces_max {
                    let range = self.at - start..self.end.min(end) - start;
                    self.at = start + range.end;
                    pieces.push(Piece { id, range });
                }
                start = end;
            }
        }
        Ok(self.at < self.end)
    }

    /// The leaf that has the next byte, and where in the value it begins.
    fn leaf<'n>(&self, nodes: &'n impl Nodes) -> Result<(ChunksNode<'n>, u32), TreeError> {
        let (mut id, mut bytes, mut start) = (self.root, self.bytes, 0);
        let mut parent = None;
        loop {
            let node = ChunksNode::load(nodes, &id, bytes, parent)?;
            if node.level == 0 {
                return Ok((node, start));
            }
            parent = Some(node.level);
            // The lengths add up to more than the place sought, so one of the children has it.
            for index in 0..node.entries.len() {
                (id, bytes) = node.entry(index);
                if start + bytes > self.at {
                    break;
                }
                start += bytes;
            }
        }
    }
}
