//! Agents at rest: what a suspended one leaves, and what comes back first.
//!
//! Floor 2. A suspended agent keeps its names and its uncommitted changes in memory, and nothing else. What it
//! used last is a list of keys, a kept blob that the Hot record names; when it is resumed these are loaded
//! into L2 again, a few in each turn, behind everybody's requests.
//!
//! The list: a byte 1, then for each key the branch (u32), the length of the key (u16), the key; little-endian,
//! the hottest first.
//!
//! Cost of a suspend: a look at each key in memory, [`LOOKED_AT_MAX`] at most; what is given back goes bit by bit.
//!
//! Invariants
//! - uncommitted changes stay: suspended or not, the agent's state is the same.

use std::collections::VecDeque;

use crate::agent::lifecycle::Suspended;
use crate::cache::EntryNo;
use crate::id::{AgentNo, BranchNo, ObjectId};
use crate::prefetch::AccessKind;
use crate::segment::index::{NOT_CACHED, ObjectNo};
use crate::segment::{Disk, Head, ObjectKind};
use crate::shard::Shard;
use crate::shard::agent::{BranchRef, MAIN};
use crate::shard::call::Failed;
use crate::shard::lifecycle::AgentError;
use crate::shard::store::{Piece, Refused, Store};
use crate::state::Retired;

/// Most keys of a list.
pub(super) const HOT_KEYS_MAX: usize = 1024;
/// Most bytes of it.
const HOT_BYTES_MAX: usize = 64 << 10;
/// Keys that are looked at for the hottest.
const LOOKED_AT_MAX: usize = 1 << 16;
/// Version of the list.
const LIST_VERSION: u8 = 1;
/// Bytes of an entry beside its key.
const ENTRY_BYTES: usize = 6;
/// Keys looked up in one turn for agents that were resumed.
const WARMED_PER_TURN: usize = 4;
/// Values being read from the device for them.
const IN_FLIGHT_MAX: usize = 8;

/// An agent whose hot values are being loaded.
#[derive(Debug)]
struct Warm {
    agent: AgentNo,
    /// Its list, which is held until it was read.
    list: Option<ObjectNo>,
    keys: HotKeys,
    /// What was asked of the device last, so that the next step can be taken.
    asked: Option<ObjectNo>,
}

/// A list that was read, and how far it was gone through.
#[derive(Debug, Default)]
struct HotKeys {
    bytes: Vec<u8>,
    at: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Warming {
    agents: VecDeque<Warm>,
    in_flight: Vec<ObjectNo>,
}

impl Warming {
    /// Whether nobody's values are being loaded.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// Whether a turn would find work that does not wait for the device.
    pub(super) fn has_work(&self) -> bool {
        !self.agents.is_empty() && self.in_flight.is_empty()
    }
}

impl<D: Disk> Shard<D> {
    /// Suspends an agent without lanes.
    pub(super) fn suspend(&mut self, agent: AgentNo) -> Result<Suspended, AgentError> {
        let mut hot_keys = 0;
        if self.store.tables.agent(agent).hot.is_none() {
            let (list, count) = self.store.hot_list(agent);
            let id = ObjectId::of_blob(&list);
            self.store.ready(list.len(), false)?;
            self.store.append_kept(ObjectKind::Blob, id, &list)?;
            let hot = Some(id);
            self.store.append(&Head::Hot { agent, list: hot }.into())?;
            self.flush_commit()?;
            self.store.tables.agent_mut(agent).hot = hot;
            hot_keys = count;
            self.tell(AccessKind::Suspend, agent, MAIN);
        }
        self.cool_agent(agent);
        self.store.cool_branches(agent);
        let kept_bytes = self.store.tables.agent(agent).memory_bytes() as u64;
        Ok(Suspended {
            kept_bytes,
            hot_keys,
        })
    }

    /// Lets an agent run again if it is suspended, and begins to load what it used last.
    pub(super) fn wake_agent(&mut self, agent: AgentNo) -> Result<(), Failed> {
        let Some(list) = self.store.tables.agent(agent).hot else {
            return Ok(());
        };
        self.store.ready(0, false)?;
        let running = Head::Hot { agent, list: None };
        self.store.append(&running.into())?;
        self.flush_commit()?;
        self.store.tables.agent_mut(agent).hot = None;
        let list = self.store.tables.objects.find(&list);
        if let Some(list) = list {
            self.store.pin(list);
        }
        self.warming.agents.push_back(Warm {
            agent,
            list,
            keys: HotKeys::default(),
            asked: None,
        });
        self.tell(AccessKind::Resume, agent, MAIN);
        Ok(())
    }

    /// Loads no more of an agent's values.
    pub(super) fn cool_agent(&mut self, agent: AgentNo) {
        let (gone, stay): (VecDeque<_>, _) = std::mem::take(&mut self.warming.agents)
            .into_iter()
            .partition(|warm| warm.agent == agent);
        self.warming.agents = stay;
        for list in gone.into_iter().filter_map(|warm| warm.list) {
            self.store.unpin(list);
        }
    }

    /// Loads some of what agents used last that were resumed; whether there was something to do.
    pub(super) fn turn_warming(&mut self) -> bool {
        if self.warming.agents.is_empty() {
            return false;
        }
        let pending = &self.pending;
        let in_flight = &mut self.warming.in_flight;
        in_flight.retain(|&object| pending.is_fetching(object));
        let mut worked = false;
        for _ in 0..WARMED_PER_TURN {
            if self.warming.in_flight.len() >= IN_FLIGHT_MAX {
                break;
            }
            let Some(mut warm) = self.warming.agents.pop_front() else {
                break;
            };
            let mut cold = self.warm_one(&mut warm);
            if let Some(object) = cold
                && warm.asked == Some(object)
                && !self.warming.in_flight.contains(&object)
            {
                // It came, or could not be read, and is not here: asked again and again it would take the place of
                // what agents ask for.
                self.skip_one(&mut warm);
                cold = None;
            }
            let ended = warm.list.is_none() && warm.keys.next().is_none();
            let mut is_full = false;
            match cold {
                None => worked = true,
                Some(object) if self.warming.in_flight.contains(&object) => {}
                Some(object) if self.fetch(object) => {
                    self.warming.in_flight.push(object);
                    warm.asked = cold;
                    worked = true;
                }
                Some(_) => is_full = true,
            }
            if !ended {
                self.warming.agents.push_back(warm);
            }
            if is_full {
                break;
            }
        }
        worked
    }

    /// Goes on without what the next step for an agent needs.
    fn skip_one(&mut self, warm: &mut Warm) {
        if let Some(list) = warm.list.take() {
            self.store.unpin(list);
        } else if let Some((_, _, after)) = warm.keys.next() {
            warm.keys.at = after;
        }
        warm.asked = None;
    }

    /// Takes the next step for an agent; what has to be read from the device for it.
    fn warm_one(&mut self, warm: &mut Warm) -> Option<ObjectNo> {
        if let Some(list) = warm.list {
            let mut bytes = Vec::new();
            match self.store.read_whole(list, &mut bytes) {
                Err(Refused::Cold(object)) => return Some(object),
                // A list that can't be read costs time, nothing else.
                Err(_) => {}
                Ok(()) => warm.keys = HotKeys::new(bytes),
            }
            warm.list = None;
            self.store.unpin(list);
            return None;
        }
        let (branch, key, after) = warm.keys.next()?;
        let agent = warm.agent;
        let place = BranchRef { agent, branch };
        let found = match self.store.tables.agent(agent).branch(branch) {
            Some(_) => self.store.lookup(place, key),
            None => Ok(None),
        };
        if !matches!(found, Err(Refused::Cold(_))) {
            warm.keys.at = after;
        }
        match found {
            Ok(Some(value)) if !self.store.is_chunked(value) => {
                let no = ObjectNo(value.object);
                let bytes = value.bytes as usize;
                matches!(self.store.piece(no, 0, bytes, |_| {}), Piece::Cold(_)).then_some(no)
            }
            Err(Refused::Cold(node)) => Some(node),
            _ => None,
        }
    }
}

impl<D: Disk> Store<D> {
    /// The keys that an agent's branches hold in memory, the hottest first, as a list; and how many.
    fn hot_list(&self, agent: AgentNo) -> (Vec<u8>, u32) {
        let warmth = |object: u32| match self.tables.objects.get(ObjectNo(object)).cached {
            NOT_CACHED => 0,
            entry => 1 + u16::from(self.l2.warmth(EntryNo(entry))),
        };
        let agent = self.tables.agent(agent);
        let keys = agent.numbered_branches().flat_map(|(no, branch)| {
            let named = branch.keys.entries();
            named.filter_map(move |(key, held)| Some((no, key, held.value?)))
        });
        let mut keys: Vec<_> = keys
            .take(LOOKED_AT_MAX)
            .map(|(no, key, value)| (warmth(value.object), no, key))
            .collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        let (mut list, mut count) = (vec![LIST_VERSION], 0);
        for (_, no, key) in keys.into_iter().take(HOT_KEYS_MAX) {
            if list.len() + ENTRY_BYTES + key.len() > HOT_BYTES_MAX {
                break;
            }
            list.extend_from_slice(&no.0.to_le_bytes());
            list.extend_from_slice(&(key.len() as u16).to_le_bytes());
            list.extend_from_slice(key);
            count += 1;
        }
        (list, count)
    }

    /// Gives back what an agent's branches know beside their changes, and the places in L2.
    fn cool_branches(&mut self, agent: AgentNo) {
        let branches: Vec<BranchNo> = {
            let agent = self.tables.agent(agent);
            agent.numbered_branches().map(|(no, _)| no).collect()
        };
        for branch in branches {
            let keys = &mut self.tables.branch_mut(BranchRef { agent, branch }).keys;
            let known = keys.keep_changes();
            let changed: Vec<u32> = keys.values().map(|value| value.object).collect();
            for object in changed {
                self.forget_value(ObjectNo(object));
            }
            self.cool(known);
        }
    }

    /// Gives a working set up, and what L2 holds of it, bit by bit.
    pub(super) fn cool(&mut self, set: Retired) {
        self.cooling.push_back(set);
    }

    /// Whether there is some of that to do.
    pub(super) fn is_cooling(&self) -> bool {
        !self.cooling.is_empty()
    }

    /// Does some of it.
    pub(super) fn cool_some(&mut self, most: usize) {
        for _ in 0..most {
            let Some(set) = self.cooling.front_mut() else {
                return;
            };
            match set.next() {
                Some(value) => {
                    let object = ObjectNo(value.object);
                    self.tables.keys -= 1;
                    self.forget_value(object);
                    self.release(object);
                }
                None => _ = self.cooling.pop_front(),
            }
        }
    }

    /// Takes a value out of L2; whoever shares it reads it again.
    fn forget_value(&mut self, object: ObjectNo) {
        self.forget_cached(object);
        let chunks = self.tables.chunks.get(&object.0);
        let chunks: Vec<_> = chunks.into_iter().flatten().map(|it| it.object).collect();
        for chunk in chunks {
            self.forget_value(chunk);
        }
    }
}

impl HotKeys {
    /// The keys of a list; of one that can't be read, none.
    fn new(bytes: Vec<u8>) -> Self {
        let at = match bytes.first() {
            Some(&LIST_VERSION) => 1,
            _ => bytes.len(),
        };
        Self { bytes, at }
    }

    /// The next key, its branch, and where the list goes on behind it. What was cut off is not there.
    fn next(&self) -> Option<(BranchNo, &[u8], usize)> {
        let rest = &self.bytes[self.at..];
        let (head, rest) = rest.split_first_chunk::<ENTRY_BYTES>()?;
        let [a, b, c, d, low, high] = *head;
        let bytes = usize::from(u16::from_le_bytes([low, high]));
        let (key, _) = rest.split_at_checked(bytes)?;
        let branch = BranchNo(u32::from_le_bytes([a, b, c, d]));
        Some((branch, key, self.at + ENTRY_BYTES + bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_were_cut_give_what_is_whole() {
        let mut list = vec![LIST_VERSION];
        for no in 0..3u8 {
            list.extend_from_slice(&u32::from(no).to_le_bytes());
            list.extend_from_slice(&2u16.to_le_bytes());
            list.extend_from_slice(&[no; 2]);
        }
        let keys = |list: &[u8]| {
            let mut keys = HotKeys::new(list.to_vec());
            let mut found = Vec::new();
            while let Some((branch, key, after)) = keys.next() {
                found.push((branch, key.to_vec()));
                keys.at = after;
            }
            found
        };
        assert_eq!(keys(&list).len(), 3);
        assert_eq!(keys(&list)[2], (BranchNo(2), vec![2, 2]));
        assert_eq!(keys(&list[..list.len() - 1]).len(), 2);
        assert!(keys(&[]).is_empty() && keys(&[9, 0]).is_empty());
    }
}
