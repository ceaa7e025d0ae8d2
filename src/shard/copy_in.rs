//! Objects copied from another shard: a published checkpoint with its tree, as far as it is not here.
//!
//! Floor 2. The asking shard walks the tree, depth first: of each object that arrives it finds out which
//! of the objects it names are here, declines those, and asks for the others, so many at once. Each is
//! compared with its id and appended as kept, behind all that it names; the checkpoint comes last, and
//! then the Adopted record: the commit. The operation that wanted it is parked meanwhile.
//!
//! Cost: a message each way and an append for each object that is not here. A turn takes in at most
//! [`IMPORT_BYTES_PER_TURN`]. Memory: nodes whose children are on their way, some hundred KiB.
//!
//! Invariants
//! - a node that is kept has all that it names behind it, also after a crash in the middle of a copy; where
//!   segments were given up, that is relied on only once a collection has ended since the start.
//! - what a copy found or stored is held until its end: no collection takes it.
//! - every parked operation is begun again or answered, whatever becomes of the other shard; of a lane
//!   that is gone the copy ends.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::agent::entry::{BusyReason, Completion, Status, Submission};
use crate::id::{OBJECT_ID_BYTES, ObjectId, SessionNo, ShardNo};
use crate::segment::format::{RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::segment::index::ObjectNo;
use crate::segment::{Disk, ObjectKind};
use crate::shard::call::{Asker, Failed};
use crate::shard::copy_out::{children, is_of};
use crate::shard::peer::{PeerMessage, Wanted};
use crate::shard::store::{Refused, Store};
use crate::shard::tables::Child;
use crate::shard::{Shard, Step};
use crate::state::checkpoint::Checkpoint;
use crate::state::chunks;
use crate::state::tree::{self, Reference, Value};

/// Copies under way in one shard.
const IMPORTS_MAX: usize = 16;
/// Of these, for one session.
const IMPORTS_PER_SESSION_MAX: usize = IMPORTS_MAX / 4;
/// Objects of one copy that are asked for at once.
const IN_FLIGHT_MAX: usize = 32;
/// Bytes of objects taken in, in one turn.
pub(super) const IMPORT_BYTES_PER_TURN: usize = 128 << 10;
/// Objects that are let go in one turn when a copy has ended.
const LET_GO_PER_TURN: usize = 256;
/// Checkpoints before the one wanted that are copied, without their trees: so far back a merge finds what
/// two histories have in common.
const ANCESTORS_MAX: usize = 256;
/// What the record of an object takes beside its bytes.
const OBJECT_HEAD_BYTES: usize = RECORD_HEADER_BYTES + OBJECT_ID_BYTES + RECORD_ALIGN;

/// An object that is not here yet.
#[derive(Debug)]
struct Missing {
    /// Once it came.
    found: Option<(ObjectKind, Vec<u8>)>,
    /// Objects that it names and that are not here.
    left: u32,
    /// Those that name it.
    above: Vec<ObjectId>,
}

/// What a copy is for.
#[derive(Debug)]
enum Purpose {
    /// A call that named something published, and waits.
    Call {
        by: Asker,
        session: SessionNo,
        entry: Submission,
        agent: Box<str>,
        name: Box<str>,
    },
    /// An agent that comes from the other shard, by its name; it was told so.
    Move {
        agent: Box<[u8]>,
        told: bool,
        /// The agent stands still: what is missing now is missing.
        last: bool,
    },
}

/// One copy.
#[derive(Debug)]
struct Import {
    owner: ShardNo,
    purpose: Purpose,
    /// Where it begins, as the owner said.
    roots: Vec<ObjectId>,
    /// The owner was asked where.
    opening: bool,
    /// Nodes that were stored; of an agent that is moved, checkpoints that were taken in.
    seen: HashSet<ObjectId>,
    missing: HashMap<ObjectId, Missing>,
    /// To be asked for: the last one first.
    ahead: Vec<ObjectId>,
    /// Offered, and here already.
    known: Vec<ObjectId>,
    in_flight: usize,
    arrived: VecDeque<(ObjectId, ObjectKind, Vec<u8>)>,
    /// All that they name is here: to be appended.
    complete: Vec<ObjectId>,
    /// Found or stored, a reference each.
    held: Vec<ObjectNo>,
    ancestors: usize,
    failed: Option<Status>,
}

/// All copies to this shard, by ticket.
#[derive(Debug, Default)]
pub(super) struct Imports {
    all: BTreeMap<u64, Import>,
    /// Held by copies that have ended.
    let_go: Vec<ObjectNo>,
}

impl Imports {
    /// Whether nothing is under way, or held.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.let_go.is_empty()
    }

    /// Whether a turn would find work.
    pub(super) fn has_work(&self) -> bool {
        let busy = |import: &Import| {
            !import.arrived.is_empty() || !import.complete.is_empty() || import.failed.is_some()
        };
        !self.let_go.is_empty() || self.all.values().any(busy)
    }
}

impl<D: Disk> Shard<D> {
    /// Begins to copy what another shard's agent has published; the operation is begun again then.
    pub(super) fn import(
        &mut self,
        by: Asker,
        entry: &Submission,
        agent: &str,
        name: &str,
    ) -> Step {
        let Some(lane) = self.lanes.get_mut(by.lane) else {
            return Step::Done;
        };
        let session = lane.session;
        let owner = self.home(agent.as_bytes());
        let of_session = |import: &&Import| matches!(import.purpose, Purpose::Call { session: other, .. } if other == session);
        let imports = &self.imports.all;
        let full = imports.len() >= IMPORTS_MAX
            || imports.values().filter(of_session).count() >= IMPORTS_PER_SESSION_MAX;
        if full || self.lost_peers.contains(&owner) {
            let mut busy = Completion::new(entry.user_data, Status::Busy);
            busy.detail = BusyReason::Mesh as u32;
            self.finish(by.lane, busy);
            return Step::Done;
        }
        if let Some(lane) = self.lanes.get_mut(by.lane) {
            lane.park(entry.op);
        }
        let purpose = Purpose::Call {
            by,
            session,
            entry: *entry,
            agent: agent.into(),
            name: name.into(),
        };
        let (agent, name) = (agent.as_bytes().into(), name.into());
        self.begin_import(owner, purpose, Wanted::Published { agent, name });
        Step::Done
    }

    /// Begins to copy what an agent holds that is to come from another shard.
    pub(super) fn import_agent(&mut self, owner: ShardNo, agent: &[u8]) -> u64 {
        let purpose = Purpose::Move {
            agent: agent.into(),
            told: false,
            last: false,
        };
        let agent = agent.into();
        self.begin_import(owner, purpose, Wanted::Moving { agent })
    }

    /// Has a copy go on with what the agent holds by now.
    pub(super) fn import_rest(&mut self, ticket: u64) {
        let Some(import) = self.imports.all.get_mut(&ticket) else {
            return;
        };
        if let Purpose::Move { agent, told, last } = &mut import.purpose {
            (*told, *last) = (false, true);
            import.opening = true;
            let agent = agent.clone();
            let what = Wanted::Moving { agent };
            let owner = import.owner;
            self.send_peer(owner, PeerMessage::Open { ticket, what });
        }
    }

    /// Ends the copy of an agent that was moved, or won't be.
    pub(super) fn end_import_of(&mut self, ticket: u64) {
        if let Some(import) = self.imports.all.remove(&ticket) {
            self.end_import(ticket, import);
        }
    }

    fn begin_import(&mut self, owner: ShardNo, purpose: Purpose, what: Wanted) -> u64 {
        let ticket = self.pending.ticket();
        let import = Import {
            owner,
            purpose,
            roots: Vec::new(),
            opening: true,
            seen: HashSet::new(),
            missing: HashMap::new(),
            ahead: Vec::new(),
            known: Vec::new(),
            in_flight: 0,
            arrived: VecDeque::new(),
            complete: Vec::new(),
            held: Vec::new(),
            ancestors: 0,
            failed: None,
        };
        self.imports.all.insert(ticket, import);
        self.send_peer(owner, PeerMessage::Open { ticket, what });
        ticket
    }

    /// Takes what the owner says that is to be copied.
    pub(super) fn opened(&mut self, ticket: u64, roots: Result<Vec<ObjectId>, Status>) {
        if let Some(import) = self.imports.all.get_mut(&ticket) {
            import.opening = false;
            match roots {
                Ok(roots) => {
                    for &root in &roots {
                        let here = import.seen.contains(&root)
                            || self.store.hold_kept(&root, &mut import.held);
                        match here {
                            true => import.known.push(root),
                            false => import.want(root, None),
                        }
                    }
                    import.roots.extend(roots);
                    self.ask_for_more(ticket);
                }
                Err(status) => import.failed = Some(status),
            }
        }
    }

    /// Takes an object in; it is looked at in its turn.
    pub(super) fn arrived(
        &mut self,
        ticket: u64,
        id: ObjectId,
        found: Result<(ObjectKind, Vec<u8>), Status>,
    ) {
        let Some(import) = self.imports.all.get_mut(&ticket) else {
            return;
        };
        import.in_flight -= 1;
        match found {
            Ok((kind, bytes)) if import.missing.contains_key(&id) => {
                import.arrived.push_back((id, kind, bytes));
            }
            // It was forgotten while it was on its way.
            Ok(_) => {}
            // Of what comes before, as much as there is will do.
            Err(_) if import.is_ancestor(&id) || !import.is_last() => import.forget(id),
            Err(status) => import.failed = Some(status),
        }
    }

    /// Goes on with all copies, as far as one turn goes; whether there was something to do.
    pub(super) fn turn_imports(&mut self) -> bool {
        if self.imports.is_empty() {
            return false;
        }
        let mut worked = false;
        for _ in 0..LET_GO_PER_TURN {
            let Some(no) = self.imports.let_go.pop() else {
                break;
            };
            self.store.unpin(no);
            worked = true;
        }
        let tickets: Vec<u64> = self.imports.all.keys().copied().collect();
        let share = IMPORT_BYTES_PER_TURN / tickets.len().max(1);
        for ticket in tickets {
            worked |= self.turn_import(ticket, share);
        }
        worked
    }

    fn turn_import(&mut self, ticket: u64, mut left: usize) -> bool {
        let Some(mut import) = self.imports.all.remove(&ticket) else {
            return false;
        };
        if let Purpose::Call { by, .. } = &import.purpose
            && self.lanes.get_mut(by.lane).is_none()
        {
            self.end_import(ticket, import);
            return true;
        }
        let before = left;
        let taken = match import.failed {
            Some(status) => Err(Failed::from(status)),
            None => import
                .take_in(&mut self.store, &mut left)
                .map_err(Failed::from),
        };
        let worked = left < before;
        // Whatever was appended goes out with the turn.
        self.must_flush |= self.store.is_dirty();
        let whole = import.is_whole();
        let (at, entry) = match &mut import.purpose {
            Purpose::Move { agent, told, .. } => {
                let agent = agent.clone();
                let tell = whole && !std::mem::replace(told, whole || *told);
                self.imports.all.insert(ticket, import);
                match taken {
                    Ok(()) if tell => self.agent_copied(&agent),
                    Ok(()) => self.ask_for_more(ticket),
                    Err(Failed::Refused(Refused::Wait)) => {}
                    Err(_) => self.fail_arrival(&agent),
                }
                return worked || tell;
            }
            Purpose::Call { by, entry, .. } => (by.lane, *entry),
        };
        let adopted = match taken {
            Ok(()) if whole => self.finish_import(&import),
            Ok(()) => {
                self.imports.all.insert(ticket, import);
                self.ask_for_more(ticket);
                return worked;
            }
            Err(failed) => Err(failed),
        };
        match adopted {
            // There will be room in a later turn.
            Err(Failed::Refused(Refused::Wait)) => {
                self.imports.all.insert(ticket, import);
                return true;
            }
            Ok(()) => {
                self.resumed.push((at, entry));
            }
            Err(failed) => {
                self.unpark_lane(at);
                // Neither waits nor parks: that is seen above, and nothing was read.
                let _ = self.fail_call(at, &entry, failed);
                self.end_import(ticket, import);
                self.let_imports_go();
                return true;
            }
        }
        self.end_import(ticket, import);
        true
    }

    /// The commit of a copy: from now on the agent may read what was copied.
    fn finish_import(&mut self, import: &Import) -> Result<(), Failed> {
        if let (
            Purpose::Call {
                by, agent, name, ..
            },
            &[root],
        ) = (&import.purpose, &*import.roots)
        {
            // Also where the agent made it itself, and had it pruned.
            self.adopt_now(by.place, root)?;
            self.note_brought(*by, agent, name, root);
        }
        Ok(())
    }

    fn end_import(&mut self, ticket: u64, import: Import) {
        self.imports.let_go.extend(import.held);
        self.send_peer(import.owner, PeerMessage::Close { ticket });
    }

    /// Asks for as many objects as may be under way, and declines those that are here.
    fn ask_for_more(&mut self, ticket: u64) {
        let Some(import) = self.imports.all.get_mut(&ticket) else {
            return;
        };
        let room = IN_FLIGHT_MAX.saturating_sub(import.in_flight + import.arrived.len());
        let from = import.ahead.len().saturating_sub(room);
        let wanted = import.ahead.split_off(from);
        if wanted.is_empty() && import.known.is_empty() {
            return;
        }
        import.in_flight += wanted.len();
        let known = std::mem::take(&mut import.known);
        let owner = import.owner;
        let want = PeerMessage::Want {
            ticket,
            wanted,
            known,
        };
        self.send_peer(owner, want);
    }

    fn unpark_lane(&mut self, at: crate::shard::lanes::LaneRef) {
        if let Some(lane) = self.lanes.get_mut(at) {
            lane.unpark();
        }
        self.queue(at);
    }

    /// Ends the copies for which `which` says so, with a status for whoever waits.
    pub(super) fn fail_imports(&mut self, status: Status, which: impl Fn(ShardNo) -> bool) {
        let ended = self.imports.all.extract_if(.., |_, it| which(it.owner));
        for (ticket, import) in ended.collect::<Vec<_>>() {
            match &import.purpose {
                Purpose::Call { by, entry, .. } => {
                    let (at, mut failed) = (by.lane, Completion::new(entry.user_data, status));
                    if status == Status::Busy {
                        failed.detail = BusyReason::Mesh as u32;
                    }
                    self.unpark_lane(at);
                    self.finish(at, failed);
                }
                Purpose::Move { agent, .. } => {
                    let agent = agent.clone();
                    self.fail_arrival(&agent);
                }
            }
            self.end_import(ticket, import);
        }
    }

    /// Lets go of all that ended copies hold: what a failed flush took back must not stay.
    pub(super) fn let_imports_go(&mut self) {
        for no in std::mem::take(&mut self.imports.let_go) {
            self.store.unpin(no);
        }
    }
}

impl Import {
    /// Whether an object is a checkpoint from before the one that is wanted.
    fn is_ancestor(&self, id: &ObjectId) -> bool {
        let alone = |missing: &Missing| missing.above.is_empty();
        !self.roots.contains(id) && self.missing.get(id).is_some_and(alone)
    }

    /// Whether the owner keeps all that it offers; of an agent that goes on, values are overwritten.
    fn is_last(&self) -> bool {
        !matches!(self.purpose, Purpose::Move { last: false, .. })
    }

    /// Does without an object that is gone, and without those that name it.
    fn forget(&mut self, id: ObjectId) {
        let (mut gone, mut forgotten) = (vec![id], HashSet::new());
        while let Some(id) = gone.pop() {
            self.seen.remove(&id);
            forgotten.insert(id);
            let missing = self.missing.remove(&id);
            gone.extend(missing.into_iter().flat_map(|missing| missing.above));
        }
        // Wanted again, they count anew what they wait for.
        let missing = self.missing.values_mut();
        missing.for_each(|it| it.above.retain(|id| !forgotten.contains(id)));
        self.arrived.retain(|(id, ..)| !forgotten.contains(id));
    }

    /// Whether everything is here.
    fn is_whole(&self) -> bool {
        // What was given up may still be on its way.
        let quiet = self.in_flight == 0 && self.arrived.is_empty() && self.ahead.is_empty();
        quiet && !self.opening && self.failed.is_none() && self.missing.is_empty()
    }

    /// Notes that an object is to be asked for, for one that names it.
    fn want(&mut self, id: ObjectId, above: Option<ObjectId>) {
        let ahead = &mut self.ahead;
        let missing = self.missing.entry(id).or_insert_with(|| {
            ahead.push(id);
            Missing {
                found: None,
                left: 0,
                above: Vec::new(),
            }
        });
        missing.above.extend(above);
    }

    /// Takes in what has arrived and appends what is complete, as long as `left` bytes last.
    fn take_in<D: Disk>(&mut self, store: &mut Store<D>, left: &mut usize) -> Result<(), Refused> {
        while *left > 0 {
            if let Some(id) = self.complete.last().copied() {
                match self.append(store, &id) {
                    Err(Refused::Wait) => return Ok(()),
                    appended => *left = left.saturating_sub(appended? + OBJECT_HEAD_BYTES),
                }
                self.complete.pop();
                self.appended(&id);
            } else if let Some((id, kind, bytes)) = self.arrived.pop_front() {
                *left = left.saturating_sub(OBJECT_HEAD_BYTES);
                match self.take(store, id, kind, &bytes) {
                    Err(Refused::Wait) => {
                        self.arrived.push_front((id, kind, bytes));
                        return Ok(());
                    }
                    taken => taken?,
                }
                if let Some(missing) = self.missing.get_mut(&id) {
                    missing.found = Some((kind, bytes));
                    if missing.left == 0 {
                        self.complete.push(id);
                    }
                }
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Finds out what of an object's children is here, and what is to be asked for.
    fn take<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        id: ObjectId,
        kind: ObjectKind,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        let checked = kind != ObjectKind::Node || tree::check_node(bytes).is_ok();
        if kind.id_of(bytes) != id || !checked {
            return Err(Refused::Corrupt);
        }
        if kind == ObjectKind::Checkpoint {
            return self.take_checkpoint(store, id, bytes);
        }
        let mut named = Vec::new();
        children(kind, bytes, false, |child| named.push(child))?;
        // What is here may need a record of its own: room for all of them, or none is taken.
        store.ready(named.len() * OBJECT_HEAD_BYTES, true)?;
        for child in named {
            self.need(store, child, id)?;
        }
        Ok(())
    }

    fn take_checkpoint<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        id: ObjectId,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        let found = Checkpoint::decode(bytes).map_err(|_| Refused::Corrupt)?;
        store.ready(OBJECT_HEAD_BYTES, true)?;
        let moving = match &self.purpose {
            Purpose::Move { agent, .. } => Some(&**agent),
            Purpose::Call { .. } => None,
        };
        let own = moving == Some(found.agent);
        let whole = own || self.roots.contains(&id);
        // With an agent comes all its history, with what it follows no more than what a merge needs.
        let (moves, enough) = (moving.is_some(), !own && self.ancestors >= ANCESTORS_MAX);
        for parent in found.parents.iter() {
            let here = match moves {
                true => self.seen.contains(&parent),
                false => store.tables.objects.find(&parent).is_some(),
            };
            if here || enough {
                self.known.push(parent);
            } else {
                self.ancestors += usize::from(!own);
                self.want(parent, None);
            }
        }
        if moves {
            self.seen.insert(id);
        }
        if whole && found.tree != tree::EMPTY_TREE {
            self.need(store, found.tree, id)?;
        }
        Ok(())
    }

    /// Has an object that another one names: holds it where it is here, else it is asked for.
    fn need<D: Disk>(
        &mut self,
        store: &mut Store<D>,
        child: ObjectId,
        above: ObjectId,
    ) -> Result<(), Refused> {
        // What is asked for already is not declined, although it may be here.
        let believed = self.seen.contains(&child) || store.is_whole(&child);
        if believed
            && !self.missing.contains_key(&child)
            && store.keep_known(&child, &mut self.held)?
        {
            self.known.push(child);
            return Ok(());
        }
        self.want(child, Some(above));
        if let Some(missing) = self.missing.get_mut(&above) {
            missing.left += 1;
        }
        Ok(())
    }

    /// Appends an object of which all that it names is here; its bytes in the log.
    fn append<D: Disk>(&mut self, store: &mut Store<D>, id: &ObjectId) -> Result<usize, Refused> {
        let found = self.missing.get(id).and_then(|it| it.found.as_ref());
        let Some((kind, bytes)) = found else {
            return Ok(0);
        };
        if let Purpose::Call { by, .. } = &self.purpose
            && !self.roots.contains(id)
            && is_of(*kind, bytes, Some(&store.tables.agent(by.place.agent).name))
        {
            // It was pruned here: without its tree it must not come back as one that can be read.
            return Ok(0);
        }
        store.append_copy(*kind, *id, bytes, &mut self.held)
    }

    /// Takes an object off the list that was appended; what names it may be complete now.
    fn appended(&mut self, id: &ObjectId) {
        let stored = self.missing.remove(id);
        let kind = stored.as_ref().and_then(|it| it.found.as_ref());
        if kind.is_some_and(|(kind, _)| *kind == ObjectKind::Node) {
            self.seen.insert(*id);
        }
        let above = stored.map(|missing| missing.above);
        for above in above.into_iter().flatten() {
            if let Some(missing) = self.missing.get_mut(&above) {
                missing.left -= 1;
                if missing.left == 0 && missing.found.is_some() {
                    self.complete.push(above);
                }
            }
        }
    }
}

impl<D: Disk> Store<D> {
    /// Appends an object that came from another shard, and with a leaf the values that lie in it, and
    /// holds them; the bytes that it took.
    ///
    /// # Errors
    /// As [`Store::ready`], before anything was appended; [`Refused::Corrupt`].
    fn append_copy(
        &mut self,
        kind: ObjectKind,
        id: ObjectId,
        bytes: &[u8],
        held: &mut Vec<ObjectNo>,
    ) -> Result<usize, Refused> {
        let mut inline = Vec::new();
        if kind == ObjectKind::Node {
            let value = |reference: Reference<'_>| {
                if let Reference::Value(Value::Inline(value)) = reference {
                    inline.push(value.to_vec());
                }
            };
            tree::references(bytes, value).map_err(|_| Refused::Corrupt)?;
        }
        let values: usize = inline
            .iter()
            .map(|value| value.len() + OBJECT_HEAD_BYTES)
            .sum();
        self.ready(bytes.len() + OBJECT_HEAD_BYTES + values, true)?;
        for value in &inline {
            let id = ObjectId::of_blob(value);
            if !self.keep_known(&id, held)? {
                self.append_held(ObjectKind::Blob, id, value, held)?;
            }
        }
        self.append_held(kind, id, bytes, held)?;
        Ok(bytes.len() + values)
    }

    fn append_held(
        &mut self,
        kind: ObjectKind,
        id: ObjectId,
        bytes: &[u8],
        held: &mut Vec<ObjectNo>,
    ) -> Result<(), Refused> {
        let mut below = Vec::new();
        if kind == ObjectKind::Chunks {
            let (_, entries) = chunks::entries(bytes).map_err(|_| Refused::Corrupt)?;
            let mut end = 0;
            for (id, length) in entries {
                end += length;
                let object = self.tables.objects.find(&id).ok_or(Refused::Corrupt)?;
                below.push(Child { object, end });
            }
        }
        let new = self.append_kept(kind, id, bytes)?;
        let no = self.tables.objects.find(&id).ok_or(Refused::Corrupt)?;
        if new && kind == ObjectKind::Chunks {
            for child in &below {
                self.tables.objects.acquire(child.object);
            }
            self.tables.chunks.insert(no.0, below.into());
        }
        self.pin(no);
        held.push(no);
        Ok(())
    }
}
