//! Tests of the segment room: what is shared by them.
//!
//! Floor 1, tests only. A model is the plain list of records that were appended.

mod append;
mod collection;
mod crash;
mod damage;
mod layout;
mod recovery;

use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SegmentNo, SetNo, ShardNo};

use super::format::{PART_BYTES_MAX, synced_proof};
use super::memory::{MemoryDisk, Random};
use super::{
    Collapse, Head, Log, LogConfig, LogEvent, LogId, LogStart, NotReady, ObjectKind, Record,
    RecoverError, Recovered, SegmentFiles, Sequence, recover,
};

const SHARD: ShardNo = ShardNo(3);
const CONFIG: LogConfig = LogConfig {
    shard: SHARD,
    log_id: LogId(0x0123_4567_89ab_cdef),
    segment_bytes: 128 << 10,
    buffer_bytes: 128 << 10,
};

/// A record that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Owned {
    Agent(u32, bool, Vec<u8>),
    Put(u32, Vec<u8>, ObjectKind, ObjectId, u64, Option<Vec<u8>>),
    Delete(u32, Vec<u8>),
    Object(ObjectKind, ObjectId, Vec<u8>),
    /// Appended by the log itself: what it says, and its own sequence.
    Synced(u64, u64),
    Branch(u32, Vec<u8>, Option<ObjectId>, ObjectId, bool),
    BranchGone(u32),
    Tag(u32, Vec<u8>, Option<ObjectId>),
    AgentGone(u32),
    Retention(u32, Retention),
    Adopted(u32, ObjectId, bool),
    Hot(u32, Option<ObjectId>),
    Dropped(u32, u32, u64),
    Pruned(ObjectId),
    /// Number and branch are the agent's; half-life, time to live, bound, time.
    Set(u32, [u64; 4], Option<ObjectId>, Vec<u8>),
    /// Checkpoint and tree; weight, time.
    Candidate(u32, u32, [ObjectId; 2], [u64; 2], Vec<u8>),
    SetGone(u32, Option<[ObjectId; 2]>, u64),
}

/// The branch that records of an agent are about here.
fn branch_of(agent: u32) -> BranchNo {
    BranchNo(agent % 3)
}

impl Owned {
    fn put(agent: u32, key: &[u8], value: &[u8]) -> Self {
        let id = ObjectId::of_blob(value);
        let bytes = value.len() as u64;
        Self::Put(
            agent,
            key.to_vec(),
            ObjectKind::Blob,
            id,
            bytes,
            Some(value.to_vec()),
        )
    }

    fn head(&self) -> Head<'_> {
        match self {
            Self::Agent(agent, public, name) => Head::Agent {
                agent: AgentNo(*agent),
                public: *public,
                moves: agent % 3,
                name,
            },
            Self::Put(agent, key, kind, id, value_bytes, _) => Head::Put {
                agent: AgentNo(*agent),
                branch: branch_of(*agent),
                key,
                kind: *kind,
                id: *id,
                value_bytes: *value_bytes,
            },
            Self::Delete(agent, key) => Head::Delete {
                agent: AgentNo(*agent),
                branch: branch_of(*agent),
                key,
            },
            Self::Object(kind, id, _) => Head::Object {
                kind: *kind,
                id: *id,
                kept: id.as_bytes()[0] % 2 == 1,
            },
            Self::Branch(agent, name, head, tree, changes_stay) => Head::Branch {
                agent: AgentNo(*agent),
                branch: branch_of(*agent),
                name,
                head: *head,
                tree: *tree,
                changes_stay: *changes_stay,
            },
            Self::BranchGone(agent) => Head::BranchGone {
                agent: AgentNo(*agent),
                branch: branch_of(*agent),
            },
            Self::Tag(agent, name, target) => Head::Tag {
                agent: AgentNo(*agent),
                public: target.is_some() && agent % 3 == 0,
                name,
                target: *target,
            },
            Self::AgentGone(agent) => Head::AgentGone {
                agent: AgentNo(*agent),
            },
            Self::Retention(agent, rule) => Head::Retention {
                agent: AgentNo(*agent),
                branch: branch_of(*agent),
                rule: *rule,
            },
            Self::Adopted(agent, target, gone) => Head::Adopted {
                agent: AgentNo(*agent),
                target: *target,
                gone: *gone,
            },
            Self::Hot(agent, list) => Head::Hot {
                agent: AgentNo(*agent),
                list: *list,
            },
            Self::Pruned(id) => Head::Pruned { id: *id },
            Self::Dropped(first, last, from) => Head::Dropped {
                first: SegmentNo(*first),
                last: SegmentNo(*last),
                from: Sequence(*from),
            },
            Self::Set(..) | Self::Candidate(..) | Self::SetGone(..) => self.head_of_set(),
            Self::Synced(upto, sequence) => Head::Synced {
                upto: Sequence(*upto),
                proof: synced_proof(CONFIG.log_id, Sequence(*sequence), Sequence(*upto)),
            },
        }
    }

    fn head_of_set(&self) -> Head<'_> {
        match self {
            Self::Set(agent, [half_life_ms, ttl_ms, bound_bits, wall_ms], origin, name) => {
                Head::Set {
                    agent: AgentNo(*agent),
                    set: SetNo(agent % 5),
                    branch: branch_of(*agent),
                    origin: *origin,
                    half_life_ms: *half_life_ms,
                    ttl_ms: *ttl_ms,
                    bound_bits: *bound_bits,
                    wall_ms: *wall_ms,
                    name,
                }
            }
            Self::Candidate(agent, candidate, [head, tree], [weight_bits, wall_ms], label) => {
                Head::Candidate {
                    agent: AgentNo(*agent),
                    set: SetNo(agent % 5),
                    candidate: *candidate,
                    head: *head,
                    tree: *tree,
                    weight_bits: *weight_bits,
                    wall_ms: *wall_ms,
                    label,
                }
            }
            Self::SetGone(agent, became, wall_ms) => Head::SetGone {
                agent: AgentNo(*agent),
                set: SetNo(agent % 5),
                collapse: became.map(|[head, tree]| Collapse {
                    branch: branch_of(*agent),
                    head,
                    tree,
                }),
                wall_ms: *wall_ms,
            },
            other => unreachable!("{other:?}"),
        }
    }

    fn record(&self) -> Record<'_> {
        let payload = match self {
            Self::Put(.., payload) => payload.as_deref(),
            Self::Object(.., payload) => Some(&**payload),
            _ => None,
        };
        let head = self.head();
        Record { head, payload }
    }

    /// What was decoded of the record of this sequence.
    fn of(head: &Head<'_>, sequence: Sequence, payload: Option<Vec<u8>>) -> Self {
        let owned = match *head {
            Head::Agent {
                agent,
                public,
                name,
                ..
            } => Self::Agent(agent.0, public, name.to_vec()),
            Head::Put {
                agent,
                key,
                kind,
                id,
                value_bytes,
                ..
            } => Self::Put(agent.0, key.to_vec(), kind, id, value_bytes, payload),
            Head::Delete { agent, key, .. } => Self::Delete(agent.0, key.to_vec()),
            Head::Object { kind, id, .. } => Self::Object(kind, id, payload.unwrap()),
            Head::Branch {
                agent,
                name,
                head,
                tree,
                changes_stay,
                ..
            } => Self::Branch(agent.0, name.to_vec(), head, tree, changes_stay),
            Head::BranchGone { agent, .. } => Self::BranchGone(agent.0),
            Head::Tag {
                agent,
                name,
                target,
                ..
            } => Self::Tag(agent.0, name.to_vec(), target),
            Head::AgentGone { agent } => Self::AgentGone(agent.0),
            Head::Retention { agent, rule, .. } => Self::Retention(agent.0, rule),
            Head::Adopted {
                agent,
                target,
                gone,
            } => Self::Adopted(agent.0, target, gone),
            Head::Hot { agent, list } => Self::Hot(agent.0, list),
            Head::Pruned { id } => Self::Pruned(id),
            Head::Dropped { first, last, from } => Self::Dropped(first.0, last.0, from.0),
            Head::Set {
                agent,
                half_life_ms,
                ttl_ms,
                bound_bits,
                wall_ms,
                origin,
                name,
                ..
            } => {
                let numbers = [half_life_ms, ttl_ms, bound_bits, wall_ms];
                Self::Set(agent.0, numbers, origin, name.to_vec())
            }
            Head::Candidate {
                agent,
                candidate,
                head,
                tree,
                weight_bits,
                wall_ms,
                label,
                ..
            } => {
                let numbers = [weight_bits, wall_ms];
                Self::Candidate(agent.0, candidate, [head, tree], numbers, label.to_vec())
            }
            Head::SetGone {
                agent,
                collapse,
                wall_ms,
                ..
            } => {
                let became = collapse.map(|collapse| [collapse.head, collapse.tree]);
                Self::SetGone(agent.0, became, wall_ms)
            }
            Head::Synced { upto, .. } => Self::Synced(upto.0, sequence.0),
        };
        assert_eq!(owned.head(), *head);
        owned
    }

    /// A record that the log appends only where it is true.
    fn random_dropped(random: &mut Random) -> Self {
        let first = 1 + (random.next() >> 33) as u32;
        let from = 1 + (random.next() >> 1);
        Self::Dropped(first, first + random.below(9) as u32, from)
    }

    fn random(random: &mut Random) -> Self {
        let bytes = |random: &mut Random, bound: usize| -> Vec<u8> {
            let len = random.below(bound);
            (0..len).map(|_| random.next() as u8).collect()
        };
        let agent = random.below(9) as u32;
        let bound = [1, 300, 5000, PART_BYTES_MAX + 1][random.below(4)];
        let mut key = bytes(random, 40);
        key.push(b'k');
        let id = |random: &mut Random| ObjectId::of_blob(&random.next().to_le_bytes());
        let head = agent.is_multiple_of(2).then(|| id(random));
        let rules = [
            Retention::All,
            Retention::Last(random.next()),
            Retention::Newer(random.next()),
        ];
        let numbers = [(); 4].map(|()| random.next());
        match random.below(19) {
            18 => Self::Pruned(id(random)),
            15 => Self::Set(agent, numbers, head, key),
            16 => {
                let (ids, no) = ([id(random), id(random)], numbers[2] as u32);
                Self::Candidate(agent, no, ids, [numbers[0], numbers[1]], key)
            }
            17 => Self::SetGone(agent, head.map(|head| [head, id(random)]), numbers[3]),
            11 => Self::AgentGone(agent),
            12 => Self::Retention(agent, rules[random.below(3)]),
            13 => Self::Adopted(agent, id(random), agent < 3),
            14 => Self::Hot(agent, head),
            8 => Self::Branch(agent, key, head, id(random), agent < 4),
            9 => Self::BranchGone(agent),
            10 => Self::Tag(agent, key, head),
            0 => Self::Agent(agent, agent < 5, key),
            1 => Self::Delete(agent, key),
            2 => {
                let kinds = [ObjectKind::Blob, ObjectKind::Chunks];
                let more = [ObjectKind::Node, ObjectKind::Checkpoint];
                let kind = [kinds, more][random.below(2)][random.below(2)];
                let payload = bytes(random, bound);
                Self::Object(kind, kind.id_of(&payload), payload)
            }
            3 => {
                let id = ObjectId::of_chunks(&key);
                Self::Put(
                    agent,
                    key,
                    ObjectKind::Chunks,
                    id,
                    random.next() >> 39,
                    None,
                )
            }
            _ => Self::put(agent, &key, &bytes(random, bound)),
        }
    }
}

/// A log on a disk in memory.
#[derive(Debug)]
struct Rig {
    disk: MemoryDisk,
    log: Log,
    events: Vec<LogEvent>,
}

impl Rig {
    /// With a spare segment ready.
    fn new() -> Self {
        let mut rig = Self {
            disk: MemoryDisk::new(),
            log: Log::new(CONFIG, LogStart::empty()),
            events: Vec::new(),
        };
        rig.turn();
        rig
    }

    /// One turn of driver and I/O core: everything that is due is done.
    fn turn(&mut self) {
        for _ in 0..3 {
            self.log.drive(&mut self.disk);
            self.disk.run_io();
            self.poll();
        }
    }

    fn poll(&mut self) {
        use super::Disk;
        while let Some(reply) = self.disk.poll() {
            let event = self.log.on_reply(reply);
            self.events.push(event);
        }
    }

    /// Appends; flushes and turns where that is needed.
    fn append(&mut self, record: &Owned) -> super::Appended {
        let bytes = record.record().record_bytes();
        while self.log.ready(bytes) == Err(NotReady::Wait) {
            self.log.flush(&mut self.disk).unwrap();
            self.turn();
        }
        self.log.append(&record.record()).unwrap()
    }

    fn flush(&mut self) {
        self.log.flush(&mut self.disk).unwrap();
    }

    fn write(&mut self, records: &[Owned]) {
        records.iter().for_each(|record| {
            self.append(record);
        });
        self.flush();
    }
}

/// Recovers and reads every payload back; what the log itself appended is left out.
fn read_back<F: SegmentFiles>(files: &mut F) -> Result<(Recovered, Vec<Owned>), RecoverError> {
    let (recovered, mut records) = read_all(files)?;
    records.retain(|record| !matches!(record, Owned::Synced(..)));
    Ok((recovered, records))
}

/// Recovers and reads every payload back.
fn read_all<F: SegmentFiles>(files: &mut F) -> Result<(Recovered, Vec<Owned>), RecoverError> {
    let mut seen = Vec::new();
    let recovered = recover(files, SHARD, &mut |record| {
        assert_eq!(record.sequence.0, seen.len() as u64 + 1);
        let owned = Owned::of(&record.head, record.sequence, Some(Vec::new()));
        seen.push((owned, record.payload));
    })?;
    let mut records = Vec::new();
    for (mut record, at) in seen {
        let payload = at.map(|at| {
            let mut bytes = vec![0; at.bytes as usize];
            let got = files
                .read_at(at.segment, at.offset.into(), &mut bytes)
                .unwrap();
            assert_eq!(got, bytes.len());
            bytes
        });
        match (&mut record, payload) {
            (Owned::Put(.., stored), payload) => *stored = payload,
            (Owned::Object(.., stored), payload) => *stored = payload.unwrap(),
            (_, payload) => assert_eq!(payload, None),
        }
        records.push(record);
    }
    assert_eq!(recovered.start.last.0, records.len() as u64);
    assert_eq!(recovered.report.records, records.len() as u64);
    Ok((recovered, records))
}

/// A few records of every kind.
fn few_records() -> Vec<Owned> {
    vec![
        Owned::Agent(1, false, b"planner".to_vec()),
        Owned::put(1, b"plan", b"first, ask"),
        Owned::Put(
            1,
            b"copy".to_vec(),
            ObjectKind::Blob,
            ObjectId::of_blob(b"first, ask"),
            10,
            None,
        ),
        Owned::Delete(1, b"plan".to_vec()),
        Owned::Object(
            ObjectKind::Blob,
            ObjectId::of_blob(b"part"),
            b"part".to_vec(),
        ),
        Owned::put(1, b"empty", b""),
        Owned::Agent(1, true, b"planner".to_vec()),
    ]
}

/// Segments 1 and 2 unsealed, damaged in 2, so that 3 has to go aside; 4 never written. Returns
/// what is left of the log.
fn damaged() -> (MemoryDisk, Vec<Owned>) {
    let mut rig = Rig::new();
    rig.disk.faults.seal = Some(super::DiskError::NoSpace);
    let value = |n: u32| Owned::put(n, b"key", &n.to_le_bytes().repeat(10_000));
    let records: Vec<_> = (0..8).map(value).collect();
    rig.write(&records);
    rig.turn();
    assert_eq!(rig.disk.segments(), [1, 2, 3, 4]);
    rig.disk.kill();
    // The payload of the second record of segment 2.
    rig.disk.bytes_mut(SegmentNo(2))[50_000] ^= 1;
    rig.disk.sync_all();
    (rig.disk, records[..4].to_vec())
}

/// Recovers, expects an error, and that nothing was changed.
#[track_caller]
fn refused(disk: &MemoryDisk) -> RecoverError {
    let mut tried = disk.clone();
    let error = recover(&mut tried, SHARD, &mut |_| {}).unwrap_err();
    let mut before = disk.clone();
    assert_eq!(tried.segments(), before.segments());
    for segment in tried.segments() {
        let segment = SegmentNo(segment);
        assert_eq!(tried.bytes_mut(segment), before.bytes_mut(segment));
    }
    assert!(tried.orphans.is_empty() && tried.tails.is_empty());
    error
}
