//! What damage in a shard's segments means to its agents: which checkpoint, which key.
//!
//! Floor 2. Over tables as recovery makes them, with every object quarantined whose bytes are damaged.
//! From each branch and tag down: history, trees, values. What several hold is looked at once, and told of
//! the first that was met.
//!
//! Cost: every checkpoint and node is read and hashed once; of values nothing is read. Memory: some 50
//! bytes for each of them.

use std::collections::{HashMap, HashSet};

use crate::id::ObjectId;
use crate::segment::index::ObjectNo;
use crate::segment::{Location, ObjectKind};
use crate::shard::agent::{Agent, named};
use crate::shard::tables::Tables;
use crate::state::checkpoint::Checkpoint;
use crate::state::tree::{self, EMPTY_TREE, MemoryNodes, Reference, Scan, Value};

/// What is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Lost {
    /// A checkpoint, and the history behind it.
    Checkpoint,
    /// A node of a tree, and the keys under it.
    Node,
    /// The value of a key.
    Value,
}

/// Something that an agent can't read any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// The agent.
    pub agent: String,
    /// What leads there: a branch or a tag.
    pub from: String,
    /// The checkpoint; none: changes of the branch that are in none.
    pub checkpoint: Option<ObjectId>,
    /// The key, where it can be told.
    pub key: Option<Vec<u8>>,
    /// The object that is damaged, or not there.
    pub id: ObjectId,
    /// What it is.
    pub what: Lost,
}

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Looked {
    /// Agents.
    pub agents: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Nodes of trees.
    pub nodes: u64,
    /// Entries of trees and of working sets.
    pub keys: u64,
}

/// Looks at everything that agents hold. `damaged`: objects whose bytes are; `read` gives stored bytes.
pub fn verify(
    tables: &Tables,
    damaged: &HashSet<ObjectId>,
    read: &mut dyn FnMut(Location) -> Option<Vec<u8>>,
    lost: &mut dyn FnMut(Loss),
) -> Looked {
    let mut pass = Pass {
        tables,
        damaged,
        read,
        lost,
        seen: HashSet::new(),
        sound: HashMap::new(),
        looked: Looked::default(),
    };
    for (_, agent) in tables.all_agents() {
        pass.looked.agents += 1;
        pass.agent(agent);
    }
    pass.looked
}

struct Pass<'a> {
    tables: &'a Tables,
    damaged: &'a HashSet<ObjectId>,
    read: &'a mut dyn FnMut(Location) -> Option<Vec<u8>>,
    lost: &'a mut dyn FnMut(Loss),
    /// Checkpoints and nodes.
    seen: HashSet<ObjectId>,
    /// Whether nodes over chunks have all that they name.
    sound: HashMap<u32, bool>,
    looked: Looked,
}

/// Where the pass is.
#[derive(Clone)]
struct Way {
    agent: String,
    from: String,
    checkpoint: Option<ObjectId>,
}

impl Pass<'_> {
    fn agent(&mut self, agent: &Agent) {
        let name = String::from_utf8_lossy(&agent.name).into_owned();
        let way = |from: String| Way {
            agent: name.clone(),
            from,
            checkpoint: None,
        };
        for branch in agent.all_branches() {
            let way = way(format!("branch {}", branch.name));
            if let Some(head) = branch.head {
                self.history(&way, head);
            }
            // That of a checkpoint, as a rule, and seen by now.
            self.tree(&way, branch.base);
            let mut places = Vec::new();
            branch.keys.sort_changes(&mut places);
            for place in places {
                let (key, held) = branch.keys.at(place);
                self.looked.keys += 1;
                let value = named(Some(held)).map(|value| ObjectNo(value.object));
                if let Some(no) = value.filter(|&no| !self.is_sound(no)) {
                    let id = self.tables.objects.get(no).id;
                    self.tell(&way, Some(key), id, Lost::Value);
                }
            }
        }
        for (tag, known) in &agent.tags {
            self.history(&way(format!("tag {tag}")), known.target);
        }
    }

    fn tell(&mut self, way: &Way, key: Option<&[u8]>, id: ObjectId, what: Lost) {
        let Way {
            agent,
            from,
            checkpoint,
        } = way.clone();
        (self.lost)(Loss {
            agent,
            from,
            checkpoint,
            key: key.map(<[u8]>::to_vec),
            id,
            what,
        });
    }

    /// The bytes of an object, if they are.
    fn stored(&mut self, id: &ObjectId, kind: ObjectKind) -> Option<Vec<u8>> {
        let object = self.tables.objects.get(self.tables.objects.find(id)?);
        let stored = (self.read)(object.at)?;
        (object.kind == kind && kind.id_of(&stored) == *id).then_some(stored)
    }

    /// A checkpoint and all before it.
    fn history(&mut self, way: &Way, head: ObjectId) {
        let mut ahead = vec![(head, true)];
        while let Some((id, is_head)) = ahead.pop() {
            if !self.seen.insert(id) {
                continue;
            }
            let way = Way {
                checkpoint: Some(id),
                ..way.clone()
            };
            let stored = self.stored(&id, ObjectKind::Checkpoint);
            let found = stored.as_deref().map(Checkpoint::decode);
            let Some(Ok(found)) = found else {
                // A parent that is not stored is no loss: history ends there.
                if is_head || stored.is_some() || self.damaged.contains(&id) {
                    self.tell(&way, None, id, Lost::Checkpoint);
                }
                continue;
            };
            self.looked.checkpoints += 1;
            ahead.extend(found.parents.iter().map(|parent| (parent, false)));
            self.tree(&way, found.tree);
        }
    }

    /// A tree down to its values, but for what was seen.
    fn tree(&mut self, way: &Way, root: ObjectId) {
        let mut ahead = vec![root];
        while let Some(id) = ahead.pop() {
            if id == EMPTY_TREE || !self.seen.insert(id) {
                continue;
            }
            let Some(stored) = self.stored(&id, ObjectKind::Node) else {
                self.tell(way, None, id, Lost::Node);
                continue;
            };
            self.looked.nodes += 1;
            let mut is_whole = true;
            let walked = tree::references(&stored, |entry| match entry {
                Reference::Node(child) => ahead.push(child),
                Reference::Value(value) => {
                    self.looked.keys += 1;
                    is_whole &= self.missing(&value).is_none();
                }
            });
            match walked {
                Ok(()) if is_whole => {}
                Ok(()) => self.name_keys(way, &id, &stored),
                Err(_) => self.tell(way, None, id, Lost::Node),
            }
        }
    }

    /// The object of a value, if it is damaged or not there.
    fn missing(&mut self, value: &Value<'_>) -> Option<ObjectId> {
        let id = match value {
            Value::Inline(_) => return None,
            Value::Blob { id, .. } | Value::Chunks { id, .. } => *id,
        };
        let found = self.tables.objects.find(&id);
        match found.is_some_and(|no| self.is_sound(no)) {
            true => None,
            false => Some(id),
        }
    }

    /// Tells which keys of a leaf are lost. A leaf is a tree by itself.
    fn name_keys(&mut self, way: &Way, id: &ObjectId, stored: &[u8]) {
        let mut nodes = MemoryNodes::default();
        nodes.extend([(*id, stored)]);
        let Ok(mut scan) = Scan::new(&nodes, id, b"", b"") else {
            return self.tell(way, None, *id, Lost::Node);
        };
        while let Ok(Some((key, value))) = scan.next() {
            if let Some(id) = self.missing(&value) {
                let key = key.to_vec();
                self.tell(way, Some(&key), id, Lost::Value);
            }
        }
    }

    /// Whether an object has its bytes, and, if it is a node over chunks, all below it have.
    fn is_sound(&mut self, no: ObjectNo) -> bool {
        let object = self.tables.objects.get(no);
        if object.quarantined {
            return false;
        }
        if object.kind != ObjectKind::Chunks {
            return true;
        }
        if let Some(&known) = self.sound.get(&no.0) {
            return known;
        }
        let tables = self.tables;
        let children = tables.chunks.get(&no.0);
        let sound = children.is_some_and(|all| all.iter().all(|child| self.is_sound(child.object)));
        self.sound.insert(no.0, sound);
        sound
    }
}
