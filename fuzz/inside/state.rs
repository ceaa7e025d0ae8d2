//! What an agent's state is made of: every call there is, a log with every kind of record, and a reader of all of it.

use std::collections::BTreeMap;

use super::{AgentVerb, Client, Rig};
use crate::agent::CloseReason;
use crate::agent::call::{self, BranchInfo, Call, Logged, Policy, Revision, TagInfo};
use crate::agent::entry::{Op, Status};
use crate::agent::packed;
use crate::agent::set_call::{Choice, SetCall, SetInfo};
use crate::id::{BranchNo, ObjectId, Retention};

/// Agents that are looked at, and of each so many branches, and of each so many keys.
const AGENTS_MAX: usize = 4;
const BRANCHES_MAX: usize = 6;
const KEYS_MAX: usize = 48;
/// Longest value that is read whole.
const READ_BYTES_MAX: u32 = 1 << 20;

pub(super) const CHECKPOINT: Call<'_> = Call::Checkpoint {
    opaque: b"opaque",
    pairs: b"",
    expect: None,
};

/// By agent, branch and key: what a read says.
pub(crate) type State = BTreeMap<(Vec<u8>, String, Vec<u8>), Result<ObjectId, Status>>;

fn branch(name: &'static str) -> Call<'static> {
    Call::Branch {
        name,
        from: Revision::Head,
    }
}

fn merge(from: Revision<'static>) -> Call<'static> {
    Call::Merge {
        from,
        rules: vec![(b"k", Policy::Theirs), (b"", Policy::Ours)],
        opaque: b"merged",
        pairs: b"",
        expect: None,
    }
}

fn create(name: &'static str) -> Call<'static> {
    Call::Superposition(SetCall::Create {
        name,
        half_life_ms: 60_000,
        ttl_ms: 3_600_000,
        bound: 0.5_f64.to_le_bytes(),
    })
}

fn add(set: u32, from: Revision<'static>, weight: f64) -> Call<'static> {
    Call::Superposition(SetCall::Add {
        set,
        from,
        weight: weight.to_le_bytes(),
        label: "label",
    })
}

fn tag(name: &'static str) -> Call<'static> {
    Call::Tag {
        name,
        target: Revision::Head,
        force: true,
    }
}

fn publish(name: &'static str) -> Call<'static> {
    Call::Publish {
        name,
        target: Revision::Head,
        force: true,
    }
}

/// Every call, with those that have to come before it.
pub(super) fn calls() -> Vec<(&'static str, Vec<Call<'static>>, Call<'static>)> {
    let made = || vec![CHECKPOINT, branch("b"), tag("v1")];
    let id = [7; 32];
    let sets = || vec![CHECKPOINT, create("tries"), add(0, Revision::Head, 2.5)];
    let fork = || Call::Fork {
        from: Revision::Head,
    };
    let published = Revision::Published {
        agent: "rogue",
        name: "v2",
    };
    let set = Call::Superposition;
    vec![
        ("describe", vec![], Call::Describe),
        ("branches", made(), Call::Branches { after: "" }),
        ("rename", made(), Call::Rename { name: "trunk" }),
        (
            "delete",
            made(),
            Call::DeleteBranch {
                name: "b",
                force: true,
            },
        ),
        ("switch", made(), Call::Switch { name: "b" }),
        ("fork", made(), fork()),
        ("discard", vec![fork()], Call::Discard),
        ("keep", vec![fork()], Call::Keep { name: "kept" }),
        (
            "restore",
            made(),
            Call::Restore {
                to: Revision::Tag("v1"),
                force: true,
            },
        ),
        (
            "log",
            made(),
            Call::Log {
                from: Revision::Head,
                frontier: vec![id],
                limit: 9,
            },
        ),
        ("untag", made(), Call::Untag { name: "v1" }),
        ("tags", made(), Call::Tags { after: "" }),
        (
            "diff",
            made(),
            Call::Diff {
                before: Revision::Empty,
                after: Revision::Head,
                from: Some(b"k"),
                limit: 9,
            },
        ),
        (
            "counts",
            made(),
            Call::DiffCounts {
                before: Revision::Empty,
                after: Revision::Branch("b"),
            },
        ),
        ("merge", made(), merge(Revision::Branch("b"))),
        (
            "retain",
            made(),
            Call::Retain {
                name: "b",
                rule: Retention::Last(3),
            },
        ),
        (
            "as",
            vec![fork()],
            Call::CheckpointAs {
                bytes: b"no checkpoint",
            },
        ),
        ("publish", made(), publish("v2")),
        (
            "published",
            vec![CHECKPOINT, publish("v2")],
            Call::Published { after: "" },
        ),
        (
            "adopt",
            vec![CHECKPOINT, publish("v2")],
            Call::Fork { from: published },
        ),
        ("forget", made(), Call::Forget { target: id }),
        ("list", sets(), set(SetCall::List { after: None })),
        (
            "candidates",
            sets(),
            set(SetCall::Candidates {
                set: 0,
                after: None,
            }),
        ),
        (
            "reweigh",
            sets(),
            set(SetCall::Reweigh {
                set: 0,
                candidate: 0,
                weight: 1_f64.to_le_bytes(),
            }),
        ),
        (
            "open",
            sets(),
            set(SetCall::Open {
                set: 0,
                candidate: 0,
            }),
        ),
        ("release", sets(), set(SetCall::Release { set: 0 })),
        (
            "collapse",
            sets(),
            set(SetCall::Collapse {
                set: 0,
                choice: Choice::Drawn { seed: 5 },
                into: Some("b"),
                expect: None,
                force: true,
            }),
        ),
    ]
}

fn bytes(seed: usize, count: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(31) ^ (at >> 8).wrapping_mul(seed | 1) ^ seed) as u8;
    (0..count).map(byte).collect()
}

/// Writes records of every kind; `variant` says how much of it.
pub(crate) fn enrich(rig: &mut Rig, variant: usize) -> Result<(), CloseReason> {
    let mut one = Client::attach(rig, b"one", true).expect("an agent");
    for key in 0..6 {
        one.put(
            rig,
            format!("k{key}").as_bytes(),
            &bytes(key, 40 + 90 * key),
        )?;
    }
    one.put(
        rig,
        b"large",
        &bytes(variant, 50_000 + 20_000 * (variant % 2)),
    )?;
    one.call(rig, None, &CHECKPOINT)?;
    one.ask(rig, Op::Delete, b"k1", b"", |_| ())?;
    one.put(rig, b"k2", b"changed")?;
    for call in [branch("b"), tag("v1"), CHECKPOINT, publish("v2")] {
        one.call(rig, None, &call)?;
    }
    let (_, answer) = one.call(
        rig,
        None,
        &Call::Fork {
            from: Revision::Tag("v1"),
        },
    )?;
    let fork = call::one::<BranchInfo>(&answer)
        .ok()
        .map(|info| BranchNo(info.no));
    one.put_on(rig, fork, b"k3", b"of a fork")?;
    one.call(rig, fork, &CHECKPOINT)?;
    for call in [
        Call::Keep { name: "kept" },
        Call::Retain {
            name: "kept",
            rule: Retention::Last(1),
        },
    ] {
        one.call(rig, fork, &call)?;
    }
    for call in [
        merge(Revision::Branch("kept")),
        create("tries"),
        add(0, Revision::Head, 2.5),
        add(0, Revision::Tag("v1"), 1.5),
    ] {
        one.call(rig, None, &call)?;
    }
    if variant > 0 {
        for call in [
            create("others"),
            add(1, Revision::Branch("b"), 1.0),
            Call::Superposition(SetCall::Collapse {
                set: 1,
                choice: Choice::Candidate(0),
                into: Some("b"),
                expect: None,
                force: true,
            }),
            Call::Retain {
                name: "b",
                rule: Retention::Newer(1000),
            },
            Call::DeleteBranch {
                name: "kept",
                force: true,
            },
            Call::Untag { name: "v1" },
        ] {
            one.call(rig, None, &call)?;
        }
    }
    let mut two = Client::attach(rig, b"two", true).expect("an agent");
    let adopted = Revision::Published {
        agent: "one",
        name: "v2",
    };
    two.call(
        rig,
        None,
        &Call::Branch {
            name: "theirs",
            from: adopted,
        },
    )?;
    two.put(rig, b"k0", b"two's")?;
    rig.end(two.session);
    let _ = rig.verb(b"two", AgentVerb::Suspend);
    let _ = rig.verb(b"gone", AgentVerb::Create { public: true });
    let _ = rig.verb(b"gone", AgentVerb::Terminate { force: true });
    if variant > 1 {
        for round in 0..variant * 6 {
            one.put(rig, b"churn", &bytes(round, 9_000))?;
        }
        one.ask(rig, Op::Delete, b"churn", b"", |_| ())?;
        rig.collect();
    }
    one.put(rig, b"last", b"word")?;
    rig.end(one.session);
    rig.turns(8);
    Ok(())
}

/// The names of some agents.
fn agents(rig: &Rig) -> Vec<Vec<u8>> {
    let agents = rig.shard.store.tables.all_agents().take(AGENTS_MAX);
    agents.map(|(_, agent)| agent.name.to_vec()).collect()
}

/// Reads everything of everybody. What is read whole is compared with its id.
pub(crate) fn read_all(rig: &mut Rig) -> State {
    let mut state = State::new();
    for name in agents(rig) {
        let Some(mut client) = Client::attach(rig, &name, false) else {
            continue;
        };
        // A lane that is closed says why; a shard that gave up is nothing that a log can cause.
        let read = read_agent(rig, &mut client, &name, &mut state);
        assert!(read.is_ok(), "{read:?}");
        rig.end(client.session);
    }
    state
}

fn read_agent(
    rig: &mut Rig,
    client: &mut Client,
    name: &[u8],
    state: &mut State,
) -> Result<(), CloseReason> {
    for info in branches(rig, client)? {
        let on = Some(BranchNo(info.no));
        let mut after = Vec::new();
        let mut keys = Vec::new();
        loop {
            let (completion, reply) =
                client.ask(rig, Op::Scan, b"", &after, |entry| entry.branch = on)?;
            let found = packed::Scanned::parse(&reply).expect("a list");
            keys.extend(found.map(|found| (found.key.to_vec(), found.value_bytes, found.id)));
            if completion.status != Status::Ok || !completion.more || keys.len() > KEYS_MAX {
                let key = (name.to_vec(), info.name.clone(), Vec::new());
                let listed = Status::Ok == completion.status;
                state.insert(
                    key,
                    listed
                        .then_some(ObjectId::of_blob(b""))
                        .ok_or(completion.status),
                );
                break;
            }
            after = keys.last().map(|(key, ..)| key.clone()).unwrap_or_default();
        }
        for (key, value_bytes, id) in keys.into_iter().take(KEYS_MAX) {
            let found = match value_bytes <= READ_BYTES_MAX {
                true => client.get(rig, on, &key)?.map(|value| (value.len(), value)),
                false => Err(Status::TooLarge),
            };
            if let Ok((count, value)) = &found
                && *count as u32 == value_bytes
                && value_bytes <= crate::state::tree::BLOB_BYTES_MAX
            {
                assert_eq!(ObjectId::of_blob(value), id, "never wrong bytes");
            }
            let found = found.map(|(_, value)| ObjectId::of_blob(&value));
            state.insert((name.to_vec(), info.name.clone(), key), found);
        }
        for call in looks() {
            client.call(rig, on, &call)?;
        }
        for item in call::items::<Logged<'_>>(&client.call(rig, on, &log())?.1) {
            assert!(item.is_ok());
        }
    }
    let (_, answer) = client.call(rig, None, &Call::Tags { after: "" })?;
    let tags: Vec<String> = call::items::<TagInfo<'_>>(&answer)
        .map(|tag| tag.expect("a tag").name.to_owned())
        .collect();
    for tag in tags.iter().take(BRANCHES_MAX) {
        let (before, after) = (Revision::Tag(tag), Revision::Head);
        client.call(rig, None, &Call::DiffCounts { before, after })?;
    }
    for set in sets(rig, client)? {
        let after = None;
        client.call(
            rig,
            None,
            &Call::Superposition(SetCall::Candidates { set, after }),
        )?;
    }
    Ok(())
}

fn log() -> Call<'static> {
    Call::Log {
        from: Revision::Head,
        frontier: Vec::new(),
        limit: 0,
    }
}

fn looks() -> [Call<'static>; 3] {
    [
        Call::Describe,
        Call::Diff {
            before: Revision::Empty,
            after: Revision::Head,
            from: None,
            limit: 0,
        },
        Call::DiffCounts {
            before: Revision::Head,
            after: Revision::Branch("main"),
        },
    ]
}

fn branches(rig: &mut Rig, client: &mut Client) -> Result<Vec<BranchInfo>, CloseReason> {
    let (_, answer) = client.call(rig, None, &Call::Branches { after: "" })?;
    let branches = call::items(&answer).map(|branch| branch.expect("a branch"));
    Ok(branches.take(BRANCHES_MAX).collect())
}

fn sets(rig: &mut Rig, client: &mut Client) -> Result<Vec<u32>, CloseReason> {
    let (_, answer) = client.call(
        rig,
        None,
        &Call::Superposition(SetCall::List { after: None }),
    )?;
    let sets = call::items::<SetInfo>(&answer).map(|set| set.expect("a set").no);
    Ok(sets.take(BRANCHES_MAX).collect())
}

/// Does with every agent what changes it, whatever comes of each.
pub(crate) fn work(rig: &mut Rig) {
    for name in agents(rig) {
        let Some(mut client) = Client::attach(rig, &name, false) else {
            continue;
        };
        let worked = work_on(rig, &mut client);
        assert!(worked.is_ok(), "{worked:?}");
        rig.end(client.session);
        let _ = rig.verb(&name, AgentVerb::Suspend);
    }
    rig.collect();
}

fn work_on(rig: &mut Rig, client: &mut Client) -> Result<(), CloseReason> {
    for set in sets(rig, client)? {
        client.call(
            rig,
            None,
            &Call::Superposition(SetCall::Open { set, candidate: 0 }),
        )?;
        let collapse = SetCall::Collapse {
            set,
            choice: Choice::Drawn { seed: 1 },
            into: None,
            expect: None,
            force: true,
        };
        client.call(rig, None, &Call::Superposition(collapse))?;
    }
    for info in branches(rig, client)? {
        let on = Some(BranchNo(info.no));
        client.put_on(rig, on, b"k2", b"written behind it")?;
        client.put_on(rig, on, b"large", &bytes(info.no as usize, 60_000))?;
        client.ask(rig, Op::Delete, b"k0", b"", |entry| entry.branch = on)?;
        client.call(rig, on, &CHECKPOINT)?;
        let from = Revision::Branch(&info.name);
        let rules = vec![(&b""[..], Policy::Theirs)];
        let (opaque, pairs, expect) = (&b""[..], &b""[..], None);
        let merge = Call::Merge {
            from,
            rules,
            opaque,
            pairs,
            expect,
        };
        client.call(rig, None, &merge)?;
        client.call(
            rig,
            on,
            &Call::Fork {
                from: Revision::Head,
            },
        )?;
        let to = Revision::Head;
        client.call(rig, on, &Call::Restore { to, force: true })?;
    }
    Ok(())
}
