//! Tests of the replay: what records mean to the tables.
//!
//! Floor 2, tests only. Records are made by hand; nothing is written anywhere.

use std::collections::BTreeSet;

use crate::id::{AgentNo, BranchNo, ObjectId, Retention, SegmentNo};
use crate::segment::{Head, Location, ObjectKind, RecoveredRecord, Sequence};
use crate::shard::agent::{FORK_NUMBERS, MAIN, Tag};
use crate::shard::tables::{Tables, TablesError};
use crate::state::tree::EMPTY_TREE;

/// Tables that are replayed from records, 100 bytes each.
#[derive(Default)]
struct Replay {
    tables: Tables,
    sequence: u64,
    /// What comes now lies in a settled segment.
    settled: bool,
}

impl Replay {
    fn apply(&mut self, head: Head<'_>, stored: bool) -> Result<(), TablesError> {
        self.sequence += 1;
        let at = Location {
            segment: SegmentNo(1),
            offset: 64 + 100 * self.sequence as u32,
            bytes: 20,
        };
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
        value_bytes: 20,
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
    replay.tables.finish(&[], |_| None).unwrap();
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
        Head::AgentGone { agent },
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
