//! Groups: what is in memory for the candidates of one set, which comes one by one and leaves together.
//!
//! Floor 2. While an operation is about a fork that was opened on a candidate, what it brings into memory
//! is its set's: values in the groups' share of L2, nodes in that of the node cache. Where a share is used up,
//! the group goes, out of both, that was asked for least lately; one that is larger than the share begins anew.
//! What an operation of anybody else uses is a group's no more, and stays when that goes.
//!
//! Invariants
//! - nothing outside of groups ever leaves memory for what is in one.
//! - a set has a group only while it is open.
//!
//! Cost: nothing where no candidate is open but a look at one byte of an L2 entry.

use std::collections::HashMap;

use crate::cache::{EntryNo, GROUPS_MAX, GroupNo, L2};
use crate::id::{AgentNo, SetNo};
use crate::segment::Disk;
use crate::segment::index::{NOT_CACHED, ObjectIndex, ObjectNo};
use crate::shard::nodes::NodeCache;
use crate::shard::store::Store;

/// A set of an agent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetRef {
    /// The agent.
    pub agent: AgentNo,
    /// The set's number.
    pub set: SetNo,
}

#[derive(Debug)]
struct Group {
    set: SetRef,
    /// Higher: asked for later.
    asked: u64,
}

/// Which set has which group.
#[derive(Debug, Default)]
pub struct Groups {
    of_set: HashMap<SetRef, GroupNo>,
    groups: Vec<Option<Group>>,
    asked: u64,
    asking: Option<(SetRef, GroupNo)>,
}

impl Groups {
    /// The group for which the operation runs.
    fn current(&self) -> Option<GroupNo> {
        self.asking.map(|(_, group)| group)
    }

    /// Of those for which `holds`, the one that was asked for least lately.
    fn oldest(&self, holds: impl Fn(GroupNo) -> bool) -> Option<GroupNo> {
        let numbered = (0..).map(GroupNo).zip(&self.groups);
        let groups = numbered.filter_map(|(no, group)| Some((no, group.as_ref()?)));
        let holding = groups.filter(|&(no, _)| holds(no));
        holding
            .min_by_key(|(_, group)| group.asked)
            .map(|(no, _)| no)
    }

    /// Offers an object to L2, and clears the back pointers of what had to leave.
    pub(super) fn admit(
        &self,
        l2: &mut L2,
        nodes: &mut NodeCache,
        objects: &mut ObjectIndex,
        no: ObjectNo,
        stored: &[u8],
    ) {
        let fingerprint = objects.get(no).id.hash64();
        let entry = match self.current() {
            None => l2.insert(no.0, fingerprint, stored, &mut |evicted| {
                objects.set_cached(ObjectNo(evicted), NOT_CACHED);
            }),
            Some(_) if !l2.may_group(stored.len()) => None,
            Some(group) => loop {
                let entry = l2.insert_grouped(group, no.0, fingerprint, stored);
                if entry.is_some() {
                    break entry;
                }
                let Some(oldest) = self.oldest(|no| l2.bytes_of_group(no) > 0) else {
                    break None;
                };
                evict(l2, nodes, objects, oldest);
            },
        };
        if let Some(EntryNo(entry)) = entry {
            objects.set_cached(no, entry);
        }
    }
}

fn evict(l2: &mut L2, nodes: &mut NodeCache, objects: &mut ObjectIndex, group: GroupNo) {
    nodes.evict_group(group);
    l2.evict_group(group, &mut |evicted| {
        objects.set_cached(ObjectNo(evicted), NOT_CACHED);
    });
}

impl<D: Disk> Store<D> {
    /// The set for whose candidate the operation runs, if it is one's.
    #[inline]
    pub fn asking(&self) -> Option<SetRef> {
        self.groups.asking.map(|(set, _)| set)
    }

    /// Says for which set's candidate an operation runs from now on. Of a set that is gone a fork is as good
    /// as any.
    pub fn ask_for(&mut self, set: Option<SetRef>) {
        let open = set.filter(|&set| self.tables.open_set(set).is_some());
        let asking = open.map(|set| (set, self.group_of(set)));
        self.groups.asking = asking;
        self.nodes.ask_for(asking.map(|(_, group)| group));
    }

    fn group_of(&mut self, set: SetRef) -> GroupNo {
        self.groups.asked += 1;
        let asked = self.groups.asked;
        let Groups { of_set, groups, .. } = &mut self.groups;
        if let Some(&no) = of_set.get(&set) {
            groups[usize::from(no.0)] = Some(Group { set, asked });
            return no;
        }
        let no = match groups.iter().position(Option::is_none) {
            Some(free) => GroupNo(free as u16),
            None if groups.len() < GROUPS_MAX => {
                groups.push(None);
                GroupNo(groups.len() as u16 - 1)
            }
            None => {
                let oldest = self.groups.oldest(|_| true);
                let oldest = oldest.expect("no group is free, so there are some");
                self.end_group(oldest);
                oldest
            }
        };
        self.groups.of_set.insert(set, no);
        self.groups.groups[usize::from(no.0)] = Some(Group { set, asked });
        no
    }

    /// Lets everything go that is in memory for a set alone: it is no more.
    pub fn drop_group(&mut self, set: SetRef) {
        if let Some(&group) = self.groups.of_set.get(&set) {
            self.end_group(group);
        }
        if self.asking() == Some(set) {
            self.groups.asking = None;
            self.nodes.ask_for(None);
        }
    }

    fn end_group(&mut self, group: GroupNo) {
        evict(
            &mut self.l2,
            &mut self.nodes,
            &mut self.tables.objects,
            group,
        );
        if let Some(gone) = self.groups.groups[usize::from(group.0)].take() {
            self.groups.of_set.remove(&gone.set);
        }
    }

    /// Offers an object to L2.
    pub(super) fn admit(&mut self, no: ObjectNo, stored: &[u8]) {
        let (l2, nodes) = (&mut self.l2, &mut self.nodes);
        let objects = &mut self.tables.objects;
        self.groups.admit(l2, nodes, objects, no, stored);
    }

    /// Notes a hit on an entry of a group: whoever is of none takes it out.
    #[cold]
    pub(super) fn share(&mut self, entry: EntryNo) {
        if self.groups.asking.is_none() {
            let objects = &mut self.tables.objects;
            self.l2.ungroup(entry, &mut |evicted| {
                objects.set_cached(ObjectNo(evicted), NOT_CACHED);
            });
        }
    }

    /// Lets nodes go, and groups of them, until the rest fits.
    pub fn trim_nodes(&mut self) {
        while self.nodes.groups_overflow() {
            let Some(oldest) = self.groups.oldest(|no| self.nodes.has_group(no)) else {
                break;
            };
            let objects = &mut self.tables.objects;
            evict(&mut self.l2, &mut self.nodes, objects, oldest);
        }
        self.nodes.trim();
    }
}
