//! Tests of the replay: what records mean to the tables.
//!
//! Floor 2, tests only. Records are made by hand; only the rounds of collection at the end are written to a
//! disk, in memory.

use std::collections::{BTreeSet, HashMap};

use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SegmentNo, ShardNo};
use crate::segment::memory::{MemoryDisk, Random};
use crate::segment::{Disk, SegmentFiles, moved_bytes, recover};
use crate::segment::{
    Head, Location, Log, LogConfig, LogId, LogStart, ObjectKind, Record, RecoveredRecord, Sequence,
};
use crate::shard::agent::{FORK_NUMBERS, MAIN, Tag};
use crate::shard::tables::{Tables, TablesError};
use crate::state::chunks::{NewObject, ValueWriter};
use crate::state::tree::EMPTY_TREE;
use crate::state::tree::Value;

/// Tables that are replayed from records, 100 bytes each.
#[derive(Default)]
struct Replay {
    tables: Tables,
    sequence: u64,
    /// What comes now lies in a settled segment.
    settled: bool,
    /// The segment of what comes now, less 1.
    segment: u32,
    /// Bytes of nodes, by where they lie.
    nodes: HashMap<u32, Vec<u8>>,
}

impl Replay {
    /// One that begins in a settled segment.
    fn settled() -> Self {
        Self {
            settled: true,
            ..Self::default()
        }
    }

    /// Where a record of this sequence has its payload.
    fn at(&self) -> Location {
        Location {
            segment: SegmentNo(1 + self.segment),
            offset: 64 + 100 * self.sequence as u32,
            bytes: 20,
        }
    }

    fn object(&self, id: ObjectId) -> Option<&crate::segment::index::Object> {
        let objects = &self.tables.objects;
        objects.find(&id).map(|no| objects.get(no))
    }

    fn finish(&mut self, dropped: &[u32]) -> Result<(), TablesError> {
        let dropped: Vec<_> = dropped.iter().copied().map(SegmentNo).collect();
        let nodes = &self.nodes;
        let read = |at: Location| nodes.get(&at.offset).cloned();
        self.tables.finish(&dropped, read)
    }

    /// Stores what a large value is made of, but for the chunk of this index; the root, and its length.
    fn store_large(&mut self, value: &[u8], without: Option<usize>) -> (ObjectId, u64) {
        let (mut writer, mut made) = (ValueWriter::default(), Vec::new());
        let mut take = |new: NewObject<'_>| made.push((new.id, new.is_node, new.bytes.to_vec()));
        writer.push(value, &mut take).unwrap();
        let Value::Chunks { id, bytes } = writer.finish(&mut take) else {
            panic!("a value that needs no chunks");
        };
        for (index, (id, is_node, bytes)) in made.into_iter().enumerate() {
            let kind = [ObjectKind::Blob, ObjectKind::Chunks][usize::from(is_node)];
            if without == Some(index) {
                continue;
            }
            let kept = true;
            self.sequence += 1;
            let at = Location {
                bytes: bytes.len() as u32,
                ..self.at()
            };
            let applied = self.tables.apply(&RecoveredRecord {
                sequence: Sequence(self.sequence),
                head: Head::Object { kind, id, kept },
                payload: Some(at),
                segment: at.segment,
                record_bytes: 100,
                settled: self.settled,
                damaged: false,
            });
            applied.unwrap();
            self.nodes.insert(at.offset, bytes);
        }
        (id, bytes.into())
    }

    fn apply(&mut self, head: Head<'_>, stored: bool) -> Result<(), TablesError> {
        self.sequence += 1;
        let at = self.at();
        self.tables.apply(&RecoveredRecord {
            sequence: Sequence(self.sequence),
            head,
            payload: stored.then_some(at),
            segment: at.segment,
            record_bytes: 100,
            settled: self.settled,
            damaged: false,
        })
    }

    #[track_caller]
    fn says(&mut self, head: Head<'_>) {
        self.apply(head, false).unwrap();
    }

    #[track_caller]
    fn stores(&mut self, head: Head<'_>) {
        self.apply(head, true).unwrap();
    }

    fn names(&self) -> Vec<&[u8]> {
        let agents = self.tables.all_agents();
        agents.map(|(_, agent)| &*agent.name).collect()
    }
}

fn agent(no: u32, name: &[u8]) -> Head<'_> {
    Head::Agent {
        agent: AgentNo(no),
        public: false,
        moves: 0,
        name,
    }
}

fn put<'a>(agent: u32, key: &'a [u8], value: &[u8]) -> Head<'a> {
    Head::Put {
        agent: AgentNo(agent),
        branch: MAIN,
        key,
        kind: ObjectKind::Blob,
        id: ObjectId::of_blob(value),
        value_bytes: value.len() as u64,
    }
}

#[test]
fn an_agent_that_is_gone_leaves_a_hole_and_its_objects() {
    let mut replay = Replay::default();
    replay.says(agent(0, b"one"));
    replay.says(agent(1, b"two"));
    replay.stores(put(0, b"a", b"shared"));
    replay.says(put(1, b"a", b"shared"));
    replay.stores(put(1, b"b", b"alone"));
    replay.says(Head::AgentGone { agent: AgentNo(1) });
    let tables = &replay.tables;
    assert_eq!((tables.agent_count(), tables.keys), (1, 1));
    assert_eq!(tables.agent_no(b"two"), None);
    assert!(!tables.has_agent(AgentNo(1)) && tables.has_agent(AgentNo(0)));
    assert!(tables.objects.find(&ObjectId::of_blob(b"shared")).is_some());
    assert_eq!(tables.objects.find(&ObjectId::of_blob(b"alone")), None);
    assert_eq!(
        tables.next_agent(),
        AgentNo(2),
        "its number is not given out"
    );
    let unknown = replay.apply(put(1, b"a", b"shared"), false);
    let (sequence, agent_no) = (replay.sequence, AgentNo(1));
    let error = TablesError::UnknownAgent {
        sequence,
        agent: agent_no,
    };
    assert_eq!(unknown, Err(error));
    // The name is free again.
    replay.says(agent(2, b"two"));
    assert_eq!(replay.tables.agent_no(b"two"), Some(AgentNo(2)));
    replay.finish(&[]).unwrap();
    assert_eq!(replay.names(), [&b"one"[..], b"two"]);
}

/// What is said again in a round comes in any order, and agents in between may be gone.
#[test]
fn numbers_of_agents_may_have_gaps_but_no_more_than_there_were_records() {
    let mut replay = Replay::default();
    replay.says(Head::Dropped {
        first: SegmentNo(1),
        last: SegmentNo(1),
        from: Sequence(1),
    });
    replay.sequence = 10;
    replay.says(agent(7, b"seven"));
    replay.says(agent(3, b"three"));
    assert_eq!(replay.names(), [&b"three"[..], b"seven"]);
    assert_eq!(replay.tables.next_agent(), AgentNo(8));
    assert!(!replay.tables.has_agent(AgentNo(5)));
    let sequence = replay.sequence + 1;
    let no = AgentNo(sequence as u32);
    let refused = replay.apply(agent(no.0, b"far"), false);
    assert_eq!(
        refused,
        Err(TablesError::UnknownAgent {
            sequence,
            agent: no
        })
    );
    let branch = |no: u32| Head::Branch {
        agent: AgentNo(3),
        branch: BranchNo(no),
        name: b"far",
        head: None,
        tree: EMPTY_TREE,
        changes_stay: true,
    };
    for no in [100, FORK_NUMBERS, u32::MAX] {
        let refused = replay.apply(branch(no), false);
        assert!(
            matches!(refused, Err(TablesError::UnknownBranch { .. })),
            "{no}"
        );
    }
    replay.says(branch(9));
    assert_eq!(
        replay.tables.agent(AgentNo(3)).branch_no("far"),
        Some(BranchNo(9))
    );
}

#[test]
fn what_records_say_of_an_agent_is_in_its_fields() {
    let mut replay = Replay::default();
    let no = AgentNo(0);
    let ids: Vec<_> = (0..3u8).map(|n| ObjectId::of_checkpoint(&[n])).collect();
    replay.says(agent(0, b"planner"));
    replay.says(Head::Agent {
        agent: no,
        public: true,
        moves: 4,
        name: b"planner",
    });
    for (public, target) in [(false, ids[0]), (true, ids[1])] {
        replay.says(Head::Tag {
            agent: no,
            public,
            name: b"v1",
            target: Some(target),
        });
    }
    for rule in [Retention::Newer(5), Retention::Last(3)] {
        replay.says(Head::Retention {
            agent: no,
            branch: MAIN,
            rule,
        });
    }
    for (target, gone) in [(ids[0], false), (ids[2], false), (ids[0], true)] {
        replay.says(Head::Adopted {
            agent: no,
            target,
            gone,
        });
    }
    let list = Some(ids[1]);
    replay.says(Head::Hot { agent: no, list });
    let known = replay.tables.agent(no);
    assert_eq!((known.public, known.moves, known.hot), (true, 4, list));
    let (target, public) = (ids[1], true);
    assert_eq!(known.tags.get("v1"), Some(&Tag { target, public }));
    assert_eq!(known.adopted, BTreeSet::from([ids[2]]));
    assert_eq!(known.branch(MAIN).unwrap().retention, Retention::Last(3));
    let list = None;
    replay.says(Head::Hot { agent: no, list });
    assert_eq!(replay.tables.agent(no).hot, None);

    let (agent, branch) = (AgentNo(1), MAIN);
    let rule = Retention::All;
    let strangers = [
        Head::Hot { agent, list },
        Head::Retention {
            agent,
            branch,
            rule,
        },
        Head::Adopted {
            agent,
            target,
            gone: false,
        },
    ];
    for head in strangers {
        let refused = replay.apply(head, false);
        let sequence = replay.sequence;
        assert_eq!(refused, Err(TablesError::UnknownAgent { sequence, agent }));
    }
}

/// Said again with its tree, main is what it was, also to whoever starts there.
#[test]
fn a_branch_that_is_said_again_has_its_tree() {
    let mut replay = Replay::default();
    let (head, tree) = (ObjectId::of_checkpoint(b"c"), ObjectId::of_node(b"t"));
    replay.says(agent(0, b"planner"));
    for branch in [MAIN, BranchNo(2)] {
        replay.says(Head::Branch {
            agent: AgentNo(0),
            branch,
            name: if branch == MAIN { b"main" } else { b"try" },
            head: Some(head),
            tree,
            changes_stay: true,
        });
        let known = replay.tables.agent(AgentNo(0)).branch(branch).unwrap();
        assert_eq!((known.head, known.base), (Some(head), tree));
    }
}

fn object(value: &[u8], kept: bool) -> Head<'static> {
    let (kind, id) = (ObjectKind::Blob, ObjectId::of_blob(value));
    Head::Object { kind, id, kept }
}

/// Whatever it says, and of whomever: a settled segment holds objects.
#[test]
fn of_a_settled_segment_only_objects_count() {
    let mut replay = Replay::settled();
    replay.says(agent(0, b"old"));
    replay.stores(put(7, b"a", b"value"));
    replay.stores(object(b"chunk", false));
    replay.says(put(0, b"b", b"nowhere"));
    replay.says(object(b"nowhere", true));
    replay.says(Head::AgentGone { agent: AgentNo(9) });
    replay.settled = false;
    replay.says(agent(3, b"new"));
    replay.says(put(3, b"a", b"value"));
    replay.finish(&[]).unwrap();
    assert_eq!(replay.names(), [b"new"]);
    assert_eq!(replay.tables.keys, 1);
    let value = replay.object(ObjectId::of_blob(b"value")).unwrap();
    assert!(value.kept && value.references == 1);
    let chunk = replay.object(ObjectId::of_blob(b"chunk")).unwrap();
    assert!(
        chunk.kept && chunk.references == 0,
        "a collection finds out"
    );
    assert_eq!(replay.tables.objects.len(), 2);
    assert_eq!(replay.tables.live_bytes, 40);
}

#[test]
fn an_object_may_be_named_before_it_is_stored() {
    let mut replay = Replay::default();
    replay.says(agent(0, b"one"));
    replay.says(put(0, b"a", b"moved"));
    replay.says(object(b"moved", true));
    assert_eq!(replay.tables.live_bytes, 0);
    replay.segment = 4;
    replay.stores(object(b"moved", true));
    let at = replay.at();
    replay.finish(&[]).unwrap();
    let moved = replay.object(ObjectId::of_blob(b"moved")).unwrap();
    assert_eq!((moved.at, moved.references, moved.kept), (at, 1, true));
    assert_eq!(replay.tables.live_bytes, 20);
    assert_eq!(replay.tables.take_dead().count(), 0);
}

#[test]
fn an_object_that_is_stored_nowhere_may_be_named_by_what_is_over() {
    let mut replay = Replay::default();
    replay.says(agent(0, b"one"));
    replay.says(put(0, b"a", b"gone"));
    replay.says(object(b"kept once", true));
    replay.says(object(b"of an upload", false));
    replay.says(put(0, b"b", b"of both"));
    replay.says(object(b"of both", true));
    replay.stores(put(0, b"a", b"there"));
    replay.says(Head::Delete {
        agent: AgentNo(0),
        branch: MAIN,
        key: b"b",
    });
    replay.finish(&[]).unwrap();
    assert_eq!(replay.tables.objects.len(), 1);
    assert_eq!(replay.tables.live_bytes, 20);
    assert_eq!(replay.tables.take_dead().count(), 0);
    assert!(replay.object(ObjectId::of_blob(b"of both")).is_none());
}

#[test]
fn an_object_that_is_stored_nowhere_and_needed_is_an_error() {
    let mut replay = Replay::default();
    replay.says(agent(0, b"one"));
    replay.says(object(b"lost", true));
    replay.says(put(0, b"a", b"lost"));
    replay.says(put(0, b"b", b"lost too"));
    let id = ObjectId::of_blob(b"lost");
    let unknown = TablesError::UnknownObject { sequence: 2, id };
    assert_eq!(replay.finish(&[]), Err(unknown));
}

/// A crash came before their files were removed: what lies in them is no object of the shard.
#[test]
fn what_lies_in_dropped_segments_is_given_up_and_what_was_moved_is_not() {
    let mut replay = Replay::settled();
    replay.stores(put(0, b"a", b"moved"));
    replay.stores(put(0, b"b", b"garbage"));
    replay.stores(put(0, b"c", b"stored again"));
    replay.segment = 1;
    replay.stores(put(0, b"d", b"stays"));
    replay.settled = false;
    replay.segment = 2;
    replay.says(agent(0, b"one"));
    replay.says(put(0, b"a", b"moved"));
    replay.stores(object(b"moved", true));
    replay.stores(put(0, b"c", b"stored again"));
    replay.says(object(b"garbage", false));
    replay.finish(&[1]).unwrap();
    let there = ["moved", "stored again", "stays"];
    let there = there.map(|value| replay.object(ObjectId::of_blob(value.as_bytes())));
    let segments = there.map(|object| object.unwrap().at.segment.0);
    assert_eq!(segments, [3, 3, 2]);
    assert_eq!(
        (replay.tables.objects.len(), replay.tables.live_bytes),
        (3, 60)
    );
    let dead: HashMap<_, _> = replay.tables.take_dead().collect();
    assert_eq!(dead, HashMap::from([(SegmentNo(1), 3 * moved_bytes(20))]));
}

#[test]
fn an_object_that_is_needed_does_not_lie_in_a_dropped_segment() {
    let mut replay = Replay::settled();
    replay.stores(put(0, b"a", b"value"));
    replay.settled = false;
    replay.segment = 1;
    replay.says(agent(0, b"one"));
    replay.says(put(0, b"a", b"value"));
    let (segment, id) = (SegmentNo(1), ObjectId::of_blob(b"value"));
    assert_eq!(
        replay.finish(&[1]),
        Err(TablesError::DroppedObject { segment, id })
    );
}

/// Of large values that nothing needs parts may be dropped before the others.
#[test]
fn a_node_whose_parts_were_dropped_goes_and_one_that_is_whole_stays() {
    let value: Vec<u8> = (0..200_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    for without in [None, Some(0)] {
        let mut replay = Replay::settled();
        let (root, value_bytes) = replay.store_large(&value, without);
        let stored = replay.tables.objects.len();
        replay.finish(&[]).unwrap();
        let found = replay.object(root);
        match without {
            None => {
                assert!(found.is_some_and(|root| root.kept));
                assert_eq!(replay.tables.objects.len(), stored);
            }
            // The nodes on the way to it: each is garbage, or waits for a collection with what is above.
            Some(_) => {
                let listed =
                    replay.tables.objects.all().filter(|(_, object)| {
                        object.kind == ObjectKind::Chunks && !object.quarantined
                    });
                let whole = |no: u32| replay.tables.chunks.contains_key(&no);
                assert!(listed.into_iter().all(|(no, _)| whole(no.0)));
            }
        }
        // Named by a key, it is found to be damaged, and refused when it is read.
        let mut replay = Replay::settled();
        replay.store_large(&value, without);
        replay.settled = false;
        replay.says(agent(0, b"one"));
        replay.says(Head::Put {
            agent: AgentNo(0),
            branch: MAIN,
            key: b"large",
            kind: ObjectKind::Chunks,
            id: root,
            value_bytes,
        });
        replay.finish(&[]).unwrap();
        let mut objects = replay.tables.objects.all();
        let damaged = objects.any(|(_, object)| object.quarantined);
        assert_eq!(damaged, without.is_some());
    }
}

const SHARD: ShardNo = ShardNo(0);
const CONFIG: LogConfig = LogConfig {
    shard: SHARD,
    log_id: LogId(7),
    segment_bytes: 128 << 10,
    buffer_bytes: 128 << 10,
};

/// A log whose disk is copied whenever something happened.
struct Recorder {
    log: Log,
    disk: MemoryDisk,
    snapshots: Vec<MemoryDisk>,
}

impl Recorder {
    fn turn(&mut self) {
        for _ in 0..3 {
            self.log.drive(&mut self.disk);
            self.disk.run_io();
            while let Some(reply) = self.disk.poll() {
                self.log.on_reply(reply);
            }
        }
    }

    fn append(&mut self, head: Head<'_>, payload: Option<&[u8]>) {
        let record = Record { head, payload };
        self.log.append(&record).unwrap();
        self.flush();
    }

    fn flush(&mut self) {
        self.log.flush(&mut self.disk).unwrap();
        self.snapshot();
    }

    fn snapshot(&mut self) {
        self.snapshots.push(self.disk.clone());
    }

    fn sync(&mut self) {
        self.log.sync_wanted(self.log.last());
        self.log.drive(&mut self.disk);
        self.snapshot();
        self.turn();
        self.snapshot();
    }
}

/// One round over a small shard, its disk copied after each step.
fn round_of_collection() -> Vec<MemoryDisk> {
    let disk = MemoryDisk::new();
    let log = Log::new(CONFIG, LogStart::empty());
    let mut it = Recorder {
        log,
        disk,
        snapshots: Vec::new(),
    };
    it.turn();
    it.append(agent(0, b"one"), None);
    for (key, value) in [(b"a", b"first"), (b"b", b"other"), (b"c", b"trash")] {
        it.append(put(0, key, value), Some(value));
    }
    it.append(object(b"tree", true), Some(b"tree"));
    let delete = Head::Delete {
        agent: AgentNo(0),
        branch: MAIN,
        key: b"c",
    };
    it.append(delete, None);
    it.sync();
    it.snapshots.clear();
    it.log.end_segment(&mut it.disk);
    it.turn();
    it.snapshot();
    let first = it.log.next_segment();
    it.append(agent(0, b"one"), None);
    let branch = Head::Branch {
        agent: AgentNo(0),
        branch: MAIN,
        name: b"main",
        head: None,
        tree: EMPTY_TREE,
        changes_stay: true,
    };
    it.append(branch, None);
    it.append(put(0, b"a", b"first"), None);
    it.append(put(0, b"b", b"other"), None);
    it.sync();
    it.log.settle(&mut it.disk, first);
    it.snapshot();
    it.turn();
    it.snapshot();
    for value in [&b"first"[..], b"other", b"tree"] {
        it.append(object(value, true), Some(value));
    }
    it.log.drop_segment(SegmentNo(1)).unwrap();
    it.flush();
    it.sync();
    it.log.remove(&mut it.disk, SegmentNo(1));
    it.snapshot();
    it.turn();
    it.snapshot();
    assert!(!it.disk.segments().contains(&1));
    it.snapshots
}

#[test]
fn the_state_is_the_same_after_a_crash_at_any_point_of_a_round() {
    let (mut gaps, mut left, mut settled) = (0, 0, 0);
    for (point, disk) in round_of_collection().into_iter().enumerate() {
        for cut in 0..12 {
            let mut disk = disk.clone();
            match cut {
                0 => disk.kill(),
                seed => disk.power_cut(&mut Random(seed + 100 * point as u64)),
            }
            let mut tables = Tables::default();
            let recovered = recover(&mut disk, SHARD, &mut |record| {
                tables.apply(record).unwrap()
            })
            .unwrap();
            let start = recovered.start;
            tables.finish(&start.dropped, |_| None).unwrap();
            assert_eq!((tables.agent_count(), tables.keys), (1, 2), "point {point}");
            let keys = tables.agent(AgentNo(0)).branch(MAIN).unwrap();
            for (key, value) in [(b"a", b"first"), (b"b", b"other")] {
                let held = keys.keys.get(key).and_then(|held| held.value).unwrap();
                let no = tables.objects.find(&ObjectId::of_blob(value)).unwrap();
                assert_eq!(held.object, no.0);
            }
            for value in [&b"first"[..], b"other", b"tree"] {
                let no = tables.objects.find(&ObjectId::of_blob(value)).unwrap();
                let at = tables.objects.get(no).at;
                assert!(!start.dropped.contains(&at.segment));
                let mut bytes = vec![0; at.bytes as usize];
                disk.read_at(at.segment, at.offset.into(), &mut bytes)
                    .unwrap();
                assert_eq!(bytes, value, "point {point}");
            }
            let trash = tables.objects.find(&ObjectId::of_blob(b"trash"));
            assert!(trash.is_none() || start.dropped.is_empty());
            gaps += u32::from(!disk.segments().contains(&1));
            left += start.dropped.len();
            settled += u32::from(start.settled.0 > 0);
            // The log goes on, and nothing is left over.
            let mut log = Log::new(CONFIG, start);
            log.drive(&mut disk);
            disk.run_io();
            while let Some(reply) = disk.poll() {
                log.on_reply(reply);
            }
            let dropped = log.gaps().count() > 0;
            assert_eq!(disk.segments().contains(&1), !dropped);
        }
    }
    assert!(
        gaps > 0 && left > 0 && settled > 20,
        "{gaps} {left} {settled}"
    );
}
