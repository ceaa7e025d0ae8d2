//! Large values on their way into the log: cut into chunks as they arrive, named by a tree of nodes.
//!
//! Floor 2. What is longer than a blob may be (16 KiB) goes through [`ValueWriter`]: its chunks and the
//! nodes over them are Object records, each of which is left out where its object is stored already;
//! a Put of the root ends the value. So a version that shares most of its bytes with
//! another costs the chunks and nodes that differ.
//!
//! Cost: each byte is read by the chunker and by BLAKE3; a record of 72 bytes and a padding for each new
//! chunk of some 4 KiB, one of some 1.8 KiB for every 50 of them. Memory: a chunk that is not cut yet, and
//! a node for each level.
//!
//! Invariants
//! - what is fed to the writer was granted room for every record that can come of it: it is fed once.
//! - a node holds a reference to each of its children, an unfinished value to what no node names yet.
//! - an object that is shared has an Object record in the log, so that the replay finds it whatever became of
//!   its other owners.

use crate::id::{OBJECT_ID_BYTES, ObjectId};
use crate::segment::format::{RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, Head, ObjectKind, Record};
use crate::shard::agent::BranchRef;
use crate::shard::store::{Refused, Store, Written};
use crate::shard::tables::Child;
use crate::state::Value;
use crate::state::chunks::{self, NewObject, ValueWriter};
use crate::state::tree::BLOB_BYTES_MAX;

/// What an Object record takes beside its payload, at most.
const OBJECT_HEAD_BYTES: usize = RECORD_HEADER_BYTES + OBJECT_ID_BYTES + RECORD_ALIGN;

/// A large value of which some is stored.
#[derive(Debug, Default)]
pub struct LargeValue {
    writer: ValueWriter,
    /// What no node names yet, from chunks up: a reference each, and their bytes.
    open: Vec<Vec<(ObjectNo, u32)>>,
    /// The object that came last was stored already.
    known: bool,
}

impl LargeValue {
    /// Objects of which it holds a reference.
    #[cfg(test)]
    pub fn held(&self) -> impl Iterator<Item = ObjectNo> {
        self.open.iter().flatten().map(|(object, _)| *object)
    }
}

/// Most bytes that a put takes in the log.
pub fn put_bytes_max(key_bytes: usize, value_bytes: usize) -> usize {
    if value_bytes <= BLOB_BYTES_MAX as usize {
        return Record::put_bytes(key_bytes, value_bytes);
    }
    large_bytes_max(&ValueWriter::default(), value_bytes) + Record::put_bytes(key_bytes, 0)
}

/// Most bytes of Object records that come of so many more bytes, and the end of the value.
fn large_bytes_max(writer: &ValueWriter, bytes: usize) -> usize {
    let (objects, bytes) = writer.emits_max(bytes);
    bytes + objects * OBJECT_HEAD_BYTES
}

impl<D: Disk> Store<D> {
    /// Lets a key name a value that is given whole, and is stored in chunks; also its root.
    pub(super) fn put_large(
        &mut self,
        at: BranchRef,
        key: &[u8],
        payload: &[u8],
        adds_key: bool,
    ) -> Result<(ObjectNo, Written), Refused> {
        let mut value = std::mem::take(&mut self.large);
        let written = self
            .push_large(&mut value, payload, adds_key)
            .and_then(|()| self.finish_large(at, key, payload.len() as u64, &mut value));
        if written.is_err() {
            self.drop_large(&mut value);
        }
        self.large = value;
        written
    }

    /// Takes the next part of a large value. There is room then to finish it, too.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Wait`], [`Refused::Memory`] and [`Refused::NoSpace`] before anything
    /// was taken.
    pub fn push_large(
        &mut self,
        value: &mut LargeValue,
        part: &[u8],
        adds_key: bool,
    ) -> Result<(), Refused> {
        self.ready(large_bytes_max(&value.writer, part.len()), adds_key)?;
        let LargeValue {
            writer,
            open,
            known,
        } = value;
        let mut stored = Ok(());
        let emit = |new: NewObject<'_>| {
            if stored.is_ok() {
                stored = self.store_object(open, known, &new);
            }
        };
        let pushed = writer.push(part, emit);
        pushed.expect("no longer than a value may be");
        stored
    }

    /// Lets a key name a large value of which the last part was taken just now; also its root.
    ///
    /// # Errors
    /// [`Refused`]; the value is good for nothing but [`Store::drop_large`].
    pub fn finish_large(
        &mut self,
        at: BranchRef,
        key: &[u8],
        value_bytes: u64,
        value: &mut LargeValue,
    ) -> Result<(ObjectNo, Written), Refused> {
        let LargeValue {
            writer,
            open,
            known,
        } = value;
        let mut stored = Ok(());
        writer.finish(|new| {
            if stored.is_ok() {
                stored = self.store_object(open, known, &new);
            }
        });
        stored?;
        let top = open.iter().flatten().next();
        let &(root, _) = top.expect("a value of at least two chunks has a root");
        let id = self.tables.objects.get(root).id;
        // Of a fork nobody asks for keys after the run.
        let mut sequence = self.log.last();
        if !at.is_fork() {
            let head = Head::Put {
                agent: at.agent,
                branch: at.branch,
                key,
                kind: ObjectKind::Chunks,
                id,
                value_bytes,
            };
            sequence = self.append(&head.into())?.sequence;
        }
        open.iter_mut().for_each(Vec::clear);
        let object = root.0;
        let bytes = value_bytes;
        self.name(at, key, Value { object, bytes });
        let written = Written {
            sequence,
            id,
            deduplicated: *known,
        };
        Ok((root, written))
    }

    /// Gives back what is held of a value that won't end; it is ready for another one.
    pub fn drop_large(&mut self, value: &mut LargeValue) {
        for (object, _) in std::mem::take(value).open.into_iter().flatten() {
            self.release(object);
        }
    }

    /// Takes in an object that a large value is made of, with one reference.
    fn store_object(
        &mut self,
        open: &mut Vec<Vec<(ObjectNo, u32)>>,
        known: &mut bool,
        new: &NewObject<'_>,
    ) -> Result<(), Refused> {
        let (level, count, kind) = match new.is_node {
            true => {
                let node = chunks::entries(new.bytes).map_err(|_| Refused::Corrupt)?;
                (usize::from(node.0) + 1, node.1.len(), ObjectKind::Chunks)
            }
            false => (0, 0, ObjectKind::Blob),
        };
        let found = self.find_sound(&new.id);
        let logged = found.is_some_and(|object| self.tables.objects.get(object).logged);
        let mut stored = None;
        if !logged {
            let record = Record {
                head: Head::Object {
                    kind,
                    id: new.id,
                    kept: false,
                },
                payload: found.is_none().then_some(new.bytes),
            };
            stored = Some(self.append(&record)?.payload);
        }
        *known = found.is_some();
        if open.len() <= level {
            open.resize_with(level + 1, Vec::new);
        }
        // A node names what came first of the level below; what is behind begins the next one.
        let below = level.checked_sub(1).map(|below| &mut open[below]);
        let children = below.into_iter().flat_map(|below| below.drain(..count));
        let mut end = 0;
        let mut children: Vec<Child> = children
            .map(|(object, bytes)| {
                end += bytes;
                Child { object, end }
            })
            .collect();
        let object = match (found, stored) {
            (Some(object), _) => {
                self.tables.objects.acquire(object);
                // The node that is stored holds the same ones already.
                for child in children.drain(..) {
                    self.release(child.object);
                }
                object
            }
            (None, at) => {
                let at = at.expect("what is not known was appended");
                self.tables.add_object(new.id, kind, at)
            }
        };
        match found {
            Some(_) if !logged => self.note_logged(object),
            _ => self.tables.objects.set_logged(object, true),
        }
        if !children.is_empty() {
            let children = children.into_boxed_slice();
            self.tables.chunks.insert(object.0, children);
        }
        let bytes = if new.is_node {
            end
        } else {
            new.bytes.len() as u32
        };
        open[level].push((object, bytes));
        Ok(())
    }

    /// The object of that id that may be shared. A node is not, where a child of it is known to be
    /// damaged: a value that is stored again must not be shared with one that can't be read.
    pub(super) fn find_sound(&mut self, id: &ObjectId) -> Option<ObjectNo> {
        let object = self.find_shareable(id)?;
        let objects = &mut self.tables.objects;
        let children = self.tables.chunks.get(&object.0);
        let mut children = children.into_iter().flatten();
        if children.any(|child| objects.get(child.object).quarantined) {
            objects.quarantine(object);
            return None;
        }
        Some(object)
    }

    /// Holds an object with all that it names, if it is here and stays anyway; whether it is. Of a checkpoint
    /// that is here its tree need not be.
    pub(super) fn hold_kept(&mut self, id: &ObjectId, held: &mut Vec<ObjectNo>) -> bool {
        let kept = self.find_sound(id).filter(|&no| {
            let object = self.tables.objects.get(no);
            object.kept && object.kind != ObjectKind::Checkpoint && self.is_whole(id)
        });
        if let Some(no) = kept {
            self.pin(no);
            held.push(no);
        }
        kept.is_some()
    }

    /// Has an object stay that is here, and holds it; whether it is here.
    ///
    /// # Errors
    /// As [`Store::ready`].
    pub(super) fn keep_known(
        &mut self,
        id: &ObjectId,
        held: &mut Vec<ObjectNo>,
    ) -> Result<bool, Refused> {
        let Some(no) = self.find_sound(id) else {
            return Ok(false);
        };
        let object = self.tables.objects.get(no);
        if !object.kept {
            let (kind, id, kept) = (object.kind, object.id, true);
            self.append(&Head::Object { kind, id, kept }.into())?;
            self.tables.objects.keep(no);
            self.undo_keep(no);
        }
        self.pin(no);
        held.push(no);
        Ok(true)
    }

    /// Whether an object that is here has all that it names behind it. A node that nothing needed any more is in the
    /// log until its segment goes, and what it names may have gone before: such nodes are found again after a
    /// start, until a collection has told them from the others.
    pub(super) fn is_whole(&self, id: &ObjectId) -> bool {
        let objects = &self.tables.objects;
        objects.find(id).is_none_or(|no| {
            let object = objects.get(no);
            object.kind != ObjectKind::Node || (object.kept && self.nodes_are_whole)
        })
    }
}
