//! How the tables are rebuilt at start: record by record, in the order of the log.
//!
//! Floor 2. Each record changes the tables as the write did that appended it; what only a run knows
//! (forks, values that were read, lanes) is not rebuilt.
//!
//! Invariants
//! - what an Object record stores stays to the end of the replay, so that what names it later finds it.
//! - an object that a checkpoint's tree may hold stays, without any key that names it.
//! - a record about an agent or a branch that nothing before it explains is an error: the start is refused,
//!   and nothing changed. An object that it names may come later, as its bytes were moved, or never, if
//!   nothing needs it in the end.
//! - of a settled segment only the objects count. They are kept, as only a collection can tell whether
//!   something needs them.

use crate::id::{AgentNo, BranchNo, ObjectId, SegmentNo};
use crate::segment::index::ObjectNo;
use crate::segment::{Collapse, Head, Location, ObjectKind, RecoveredRecord, moved_bytes};
use crate::shard::agent::{Agent, BranchRef, Tag, is_fork, named};
use crate::shard::sets::Contradiction;
use crate::shard::tables::{Child, Freed, Tables, TablesError};
use crate::state::chunks;
use crate::state::{Held, Value, WorkingSet};

/// Where an object lies that was not stored yet: segments are counted from 1.
const NOWHERE: Location = Location {
    segment: SegmentNo(0),
    offset: 0,
    bytes: 0,
};

/// What a node over chunks holds.
enum Children {
    /// All of it is stored.
    All(Box<[Child]>),
    /// Some of it is not.
    Missing,
    /// The bytes are not the node's.
    Damaged,
}

impl Tables {
    /// Replays one record of the log. The last one is followed by [`Tables::finish`].
    pub fn apply(&mut self, record: &RecoveredRecord<'_>) -> Result<(), TablesError> {
        let sequence = record.sequence.0;
        if record.settled {
            self.apply_settled(record);
            return Ok(());
        }
        match record.head {
            Head::Object { kind, id, kept } => {
                let no = self.stored(record, id, kind);
                if kept {
                    self.objects.keep(no);
                    self.objects.release(no);
                } else {
                    self.objects.set_logged(no, true);
                    self.loose.push(no);
                }
            }
            Head::Put {
                agent,
                branch,
                key,
                kind,
                id,
                value_bytes,
            } => {
                let at = self.known(sequence, agent, branch)?;
                let object = self.stored(record, id, kind);
                let value = Value {
                    object: object.0,
                    bytes: value_bytes,
                };
                let before = self.set_key(at, key, Some(value));
                self.drop_value(before);
            }
            Head::Delete { agent, branch, key } => {
                let at = self.known(sequence, agent, branch)?;
                let before = self.set_key(at, key, None);
                self.drop_value(before);
            }
            Head::Pruned { id } => {
                if let Some(no) = self.objects.find(&id) {
                    let object = self.objects.get(no);
                    let (kind, at) = (object.kind, object.at);
                    self.note_left(kind, id, at);
                    self.cast_out(no);
                }
            }
            Head::Synced { .. } | Head::Dropped { .. } => {}
            _ => self.apply_to_agent(sequence, &record.head)?,
        }
        Ok(())
    }

    /// Replays what a settled segment holds.
    fn apply_settled(&mut self, record: &RecoveredRecord<'_>) {
        match record.head {
            Head::Put { kind, id, .. } | Head::Object { kind, id, .. }
                if record.payload.is_some() =>
            {
                let no = self.stored(record, id, kind);
                self.objects.keep(no);
                self.objects.release(no);
            }
            _ => {}
        }
    }

    /// Replays what is said of an agent or of a branch, beside its keys.
    fn apply_to_agent(&mut self, sequence: u64, head: &Head<'_>) -> Result<(), TablesError> {
        match *head {
            Head::Agent {
                agent,
                public,
                moves,
                name,
            } => {
                // Numbers in between are of agents that are gone, or are said again later. Each was
                // given out by a record, so that there can't be more of them than records.
                if u64::from(agent.0) >= sequence {
                    return Err(TablesError::UnknownAgent { sequence, agent });
                }
                let known = match self.has_agent(agent) {
                    true => self.agent_mut(agent),
                    false => self.insert_agent(agent, name, public),
                };
                (known.public, known.moves) = (public, moves);
            }
            Head::Branch { agent, name, .. } | Head::Tag { agent, name, .. } => {
                let bad = TablesError::BadName { sequence };
                let name = std::str::from_utf8(name).map_err(|_| bad)?;
                self.known_agent(sequence, agent)?;
                self.apply_name(sequence, head, name)?;
            }
            Head::BranchGone { agent, branch } => {
                self.known(sequence, agent, branch)?;
                if let Some(gone) = self.agent_mut(agent).remove_branch(branch) {
                    self.give_up(gone.keys, false);
                }
            }
            Head::AgentGone { agent } => {
                // One that is gone before everything is said again is not said to have been there.
                if let Some(gone) = self.remove_agent(agent) {
                    for branch in gone.into_branches() {
                        self.give_up(branch.keys, false);
                    }
                }
            }
            Head::Retention {
                agent,
                branch,
                rule,
            } => {
                let at = self.known(sequence, agent, branch)?;
                self.branch_mut(at).retention = rule;
            }
            Head::Adopted {
                agent,
                target,
                gone,
            } => {
                let adopted = &mut self.known_agent(sequence, agent)?.adopted;
                match gone {
                    true => adopted.remove(&target),
                    false => adopted.insert(target),
                };
            }
            Head::Hot { agent, list } => self.known_agent(sequence, agent)?.hot = list,
            Head::Set { agent, .. } | Head::Candidate { agent, .. } => {
                let sets = &mut self.known_agent(sequence, agent)?.sets;
                let bad = |Contradiction| TablesError::BadSet { sequence, agent };
                sets.apply(head).map_err(bad)?;
            }
            Head::SetGone {
                agent, collapse, ..
            } => {
                if let Some(Collapse { branch, head, tree }) = collapse {
                    let at = self.known(sequence, agent, branch)?;
                    let name = self.branch(at).name.clone();
                    let moved = self.branch(at).head != Some(head);
                    let agent = self.agent_mut(agent);
                    if let Some(before) = agent.set_branch(branch, &name, Some(head), tree) {
                        self.give_up(before, moved);
                    }
                }
                let bad = |Contradiction| TablesError::BadSet { sequence, agent };
                self.known_agent(sequence, agent)?
                    .sets
                    .apply(head)
                    .map_err(bad)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Replays what gives a name a meaning.
    fn apply_name(
        &mut self,
        sequence: u64,
        head: &Head<'_>,
        name: &str,
    ) -> Result<(), TablesError> {
        match *head {
            Head::Tag {
                agent,
                public,
                target,
                ..
            } => {
                let tags = &mut self.agent_mut(agent).tags;
                match target {
                    Some(target) => _ = tags.insert(name.into(), Tag { target, public }),
                    None => _ = tags.remove(name),
                }
            }
            Head::Branch {
                agent,
                branch,
                head,
                tree,
                changes_stay,
                ..
            } => {
                // As with agents: each number was given out by a record.
                if is_fork(branch) || u64::from(branch.0) >= sequence {
                    return Err(TablesError::UnknownBranch {
                        sequence,
                        agent,
                        branch,
                    });
                }
                let agent = self.agent_mut(agent);
                let moved = match agent.branch_mut(branch) {
                    Some(known) if changes_stay => {
                        // Said again of a main branch, the tree is new to whoever starts there.
                        (known.head, known.base) = (head, tree);
                        agent.rename(branch, name);
                        return Ok(());
                    }
                    Some(known) => known.head != head,
                    None => false,
                };
                if let Some(before) = agent.set_branch(branch, name, head, tree) {
                    self.give_up(before, moved);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Gives a working set up that a record ends; where that was a checkpoint, its tree may hold what
    /// the set named.
    fn give_up(&mut self, set: WorkingSet, checkpointed: bool) {
        self.keys -= set.values().count() as u64;
        for value in set.retire() {
            let object = ObjectNo(value.object);
            if checkpointed {
                self.objects.keep(object);
            }
            self.bury(object);
        }
    }

    /// Ends the replay: gives up what lies in the segments of `dropped`, whose files are about to go;
    /// reads the nodes of large values that are still named, whose bytes `read` fetches, and drops what
    /// nothing holds. A node that can't be read is quarantined, not the end of the shard.
    ///
    /// # Errors
    /// [`TablesError::UnknownObject`], [`TablesError::DroppedObject`].
    pub fn finish(
        &mut self,
        dropped: &[SegmentNo],
        mut read: impl FnMut(Location) -> Option<Vec<u8>>,
    ) -> Result<(), TablesError> {
        for agent in (0..self.next_agent().0).map(AgentNo) {
            while self.has_agent(agent)
                && let Some(nameless) = self.agent_mut(agent).remove_nameless()
            {
                self.give_up(nameless.keys, false);
            }
        }
        let loose = std::mem::take(&mut self.loose);
        loose.iter().for_each(|&no| self.objects.pin(no));
        self.give_up_dropped(dropped)?;
        self.forget_left(dropped, 0, usize::MAX);
        self.give_up_missing()?;
        let named = |no: &u32| {
            let object = self.objects.get(ObjectNo(*no));
            object.kept || object.references > object.pins
        };
        let mut wanted: Vec<u32> = self.unread.keys().copied().filter(named).collect();
        let mut unreadable = Vec::new();
        while let Some(no) = wanted.pop() {
            // Several may hold it.
            let Some(at) = self.unread.remove(&no) else {
                continue;
            };
            let stored = read(at).unwrap_or_default();
            let children = match self.children(ObjectNo(no), &stored) {
                Children::All(children) => children,
                // Kept conservatively; what nothing needed is incomplete once a part of it was dropped.
                Children::Missing if self.objects.get(ObjectNo(no)).references == 0 => {
                    self.cast_out(ObjectNo(no));
                    continue;
                }
                Children::Missing | Children::Damaged => {
                    unreadable.push(ObjectNo(no));
                    continue;
                }
            };
            for child in &children {
                self.objects.acquire(child.object);
                wanted.push(child.object.0);
            }
            self.chunks.insert(no, children);
        }
        for no in loose {
            self.objects.unpin(no);
            self.bury(no);
        }
        for no in unreadable {
            self.objects.quarantine(no);
        }
        for (no, at) in std::mem::take(&mut self.damaged) {
            // Else it went, or was stored again.
            if self.objects.get(no).at == at {
                self.objects.quarantine(no);
            }
        }
        Ok(())
    }

    /// Takes out what lies in segments of which nothing is needed: newer records have moved the rest.
    fn give_up_dropped(&mut self, dropped: &[SegmentNo]) -> Result<(), TablesError> {
        if dropped.is_empty() {
            return Ok(());
        }
        for no in (0..self.objects.numbers()).map(ObjectNo) {
            let object = self.objects.get(no);
            let (segment, id) = (object.at.segment, object.id);
            if !dropped.contains(&segment) || (object.references == 0 && !object.kept) {
                continue;
            }
            if object.references > object.pins {
                return Err(TablesError::DroppedObject { segment, id });
            }
            self.cast_out(no);
        }
        Ok(())
    }

    /// Takes out what was named, stored nowhere, and is not needed in the end.
    fn give_up_missing(&mut self) -> Result<(), TablesError> {
        let missing = std::mem::take(&mut self.missing);
        let needed = missing.iter().filter(|&(&no, _)| {
            let object = self.objects.get(ObjectNo(no));
            object.references > object.pins
        });
        if let Some((&no, &sequence)) = needed.min_by_key(|&(_, sequence)| sequence) {
            let id = self.objects.get(ObjectNo(no)).id;
            return Err(TablesError::UnknownObject { sequence, id });
        }
        for no in missing.into_keys() {
            self.cast_out(ObjectNo(no));
        }
        Ok(())
    }

    /// Takes an object out that nothing needs. One that is held back goes with what holds it.
    fn cast_out(&mut self, no: ObjectNo) {
        self.objects.unkeep(no);
        if self.objects.get(no).references > 0 {
            return self.objects.quarantine(no);
        }
        self.objects.acquire(no);
        self.bury(no);
    }

    /// What the bytes of a node over chunks say that it holds.
    fn children(&self, no: ObjectNo, stored: &[u8]) -> Children {
        if ObjectId::of_chunks(stored) != self.objects.get(no).id {
            return Children::Damaged;
        }
        let Ok((level, entries)) = chunks::entries(stored) else {
            return Children::Damaged;
        };
        let mut end = 0;
        let child = |(id, bytes)| {
            let object = self.objects.find(&id)?;
            let found = self.objects.get(object);
            let fits = match level {
                0 => found.kind == ObjectKind::Blob && found.at.bytes == bytes,
                _ => found.kind == ObjectKind::Chunks,
            };
            end += bytes;
            fits.then_some(Child { object, end })
        };
        let all: Option<Box<[Child]>> = entries.map(child).collect();
        all.map_or(Children::Missing, Children::All)
    }

    /// Bytes of each segment that the replay found to be garbage; asked once, after
    /// [`Tables::finish`].
    pub fn take_dead(&mut self) -> impl Iterator<Item = (SegmentNo, u64)> {
        std::mem::take(&mut self.dead).into_iter()
    }

    fn known_agent(&mut self, sequence: u64, agent: AgentNo) -> Result<&mut Agent, TablesError> {
        match self.has_agent(agent) {
            true => Ok(self.agent_mut(agent)),
            false => Err(TablesError::UnknownAgent { sequence, agent }),
        }
    }

    fn known(
        &mut self,
        sequence: u64,
        agent: AgentNo,
        branch: BranchNo,
    ) -> Result<BranchRef, TablesError> {
        match self.known_agent(sequence, agent)?.branch(branch) {
            Some(_) => Ok(BranchRef { agent, branch }),
            None => Err(TablesError::UnknownBranch {
                sequence,
                agent,
                branch,
            }),
        }
    }

    fn drop_value(&mut self, held: Option<Held>) {
        if let Some(value) = named(held) {
            self.bury(ObjectNo(value.object));
        }
    }

    /// Gives back a reference during the replay.
    fn bury(&mut self, no: ObjectNo) {
        let mut freed = Freed::new();
        self.release(no, &mut freed);
        for (no, at) in freed {
            self.missing.remove(&no.0);
            if at == NOWHERE {
                continue;
            }
            *self.dead.entry(at.segment).or_default() += moved_bytes(at.bytes);
        }
    }

    /// The object of a replayed record, with one more reference to it.
    fn stored(&mut self, record: &RecoveredRecord<'_>, id: ObjectId, kind: ObjectKind) -> ObjectNo {
        let (sequence, payload) = (record.sequence.0, record.payload);
        let no = match self.objects.find(&id) {
            Some(no) => {
                self.objects.acquire(no);
                // Stored again: it was garbage in between, or was moved, or the older bytes were damaged.
                if let Some(at) = payload
                    && self.missing.remove(&no.0).is_some()
                {
                    self.objects.relocate(no, at);
                    self.live_bytes += u64::from(at.bytes);
                    if kind == ObjectKind::Chunks {
                        self.unread.insert(no.0, at);
                    }
                } else if let Some(at) = payload {
                    let before = self.objects.relocate(no, at);
                    self.note_left(kind, id, before);
                    self.garbage_bytes += u64::from(before.bytes);
                    *self.dead.entry(before.segment).or_default() += moved_bytes(before.bytes);
                    if let Some(unread) = self.unread.get_mut(&no.0) {
                        *unread = at;
                    }
                }
                no
            }
            None => {
                let no = self.add_object(id, kind, payload.unwrap_or(NOWHERE));
                let Some(at) = payload else {
                    self.missing.insert(no.0, sequence);
                    return no;
                };
                if kind == ObjectKind::Chunks {
                    self.unread.insert(no.0, at);
                }
                no
            }
        };
        if let Some(at) = payload.filter(|_| record.damaged) {
            self.damaged.push((no, at));
        }
        no
    }
}
