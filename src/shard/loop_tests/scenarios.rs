//! The scenarios of the error loops, and what fails in each.

use super::*;
use crate::agent::call::{BranchInfo, Revision, items};
use crate::agent::set_call::{Choice, SetCall};
use crate::shard::mesh_tests::{fill, named_for};
use crate::shard::superposition_tests::create;
use crate::shard::tests::large::noise;
use crate::shard::version_tests::{CHECKPOINT, FORK, branch, merge, value};

/// A large value: parts, chunks and nodes of them.
const LARGE_BYTES: usize = 150_000;

/// Puts a value as a client does: parts before the last make no promise.
fn put(world: &mut World, key: &[u8], value: &[u8], durability: Durability) -> Outcome {
    let parts: Vec<&[u8]> = value.chunks(64 << 10).collect();
    for (no, part) in parts.iter().enumerate() {
        let last = no + 1 == parts.len();
        let op = if parts.len() == 1 {
            Op::Put
        } else {
            Op::PutPart
        };
        world.submit(op, key, part, |entry| {
            if op == Op::PutPart {
                (entry.arg0, entry.arg1) = ((no << 16) as u64, value.len() as u64);
            }
            entry.durability = Some(if last {
                durability
            } else {
                Durability::Volatile
            });
        });
        world.outcome()?;
    }
    Ok(())
}

fn call(world: &mut World, call: &Call<'_>) -> Outcome {
    world.try_call(None, call).map(|_| ())
}

fn get(world: &mut World, key: &[u8], wanted: &[u8]) -> Outcome {
    world.chill();
    let mut found = Vec::new();
    loop {
        let from = found.len() as u64;
        world.submit(Op::Get, key, b"", |entry| entry.arg0 = from);
        let completion = world.outcome()?;
        found.extend(world.reply(&completion));
        if !completion.more {
            assert!(found == wanted, "wrong bytes");
            return Ok(());
        }
    }
}

const fn deed(name: &'static str, carry_out: fn(&mut World) -> Outcome) -> Deed {
    Deed {
        name,
        carry_out,
        power: false,
    }
}

const fn safe(name: &'static str, carry_out: fn(&mut World) -> Outcome) -> Deed {
    Deed {
        name,
        carry_out,
        power: true,
    }
}

fn empty(shards: usize) -> Vec<MemoryDisk> {
    vec![MemoryDisk::new(); shards]
}

/// Some keys in checkpoints and some in none, a branch, a tag, a large value; several segments.
fn full(shards: usize) -> Vec<MemoryDisk> {
    let mut world = World::several(empty(shards), L2_BYTES, 1 << 30, SEGMENT_BYTES);
    for no in 0..12 {
        world.put(format!("k/{no:02}").as_bytes(), &value(no, 3000));
    }
    world.put_large(b"large", &noise(1, LARGE_BYTES), Durability::Process);
    world.good(None, &CHECKPOINT);
    let (name, target, force) = ("base", Revision::Head, false);
    world.good(
        None,
        &Call::Tag {
            name,
            target,
            force,
        },
    );
    let other = BranchNo(world.info(None, &branch("other")).no);
    world.put_on(other, b"k/07", b"theirs");
    world.good(Some(other), &CHECKPOINT);
    world.put(b"k/03", b"ours");
    world.delete(b"k/04");
    left(world)
}

/// What a runtime that is killed leaves.
fn left(mut world: World) -> Vec<MemoryDisk> {
    let mut disks = world.disks();
    disks.iter_mut().for_each(MemoryDisk::kill);
    disks
}

/// A directory after a power cut: a torn end, segments behind it, an empty one.
fn torn(_: usize) -> Vec<MemoryDisk> {
    for seed in 0..50 {
        let mut world = World::several(full(1), 0, 1 << 30, SEGMENT_BYTES);
        world.put_as(b"k/05", b"synced", Durability::Power);
        // Several segments are written before the device hears of the first.
        world.disk().at_once = false;
        for no in 0..24 {
            world.submit(Op::Put, b"k/05", &value(no + seed, 12_000), |_| {});
            for _ in 0..40 {
                world.step();
                if world.completion().is_some() {
                    break;
                }
                world.disk().create_only();
            }
        }
        let mut disk = world.disk().clone();
        disk.power_cut(&mut Random(u64::from(seed)));
        let mut tried = disk.clone();
        let found = recover_all(std::slice::from_mut(&mut tried), SEGMENT_BYTES);
        if found.is_ok() && !tried.orphans.is_empty() && !tried.tails.is_empty() {
            return vec![disk];
        }
    }
    panic!("no power cut leaves a torn end with segments behind it");
}

/// Segments of which most is overwritten, and history that nothing keeps.
fn littered(shards: usize) -> Vec<MemoryDisk> {
    let mut world = World::several(full(shards), L2_BYTES, 1 << 30, SEGMENT_BYTES);
    for no in 0..60 {
        world.put(format!("k/{:02}", no % 6).as_bytes(), &value(no, 12_000));
    }
    world.good(None, &CHECKPOINT);
    left(world)
}

fn collect(world: &mut World) -> Outcome {
    match world.collect().end {
        CollectEnd::Done => Ok(()),
        end => Err(Trouble::Collect(end)),
    }
}

/// Moves the agent to a shard, and waits until it is there.
fn migrate(world: &mut World, to: usize) -> Outcome {
    let Some(from) = shard_of(world, b"agent") else {
        return Err(Trouble::Closed);
    };
    if from == to {
        return Ok(());
    }
    let to_shard = ShardNo(to as u16);
    let begun = world.told(from, b"agent", AgentVerb::Migrate { to: to_shard });
    begun.map_err(Trouble::Agent)?;
    world.rest();
    match shard_of(world, b"agent") {
        Some(now) if now == to => Ok(()),
        Some(_) => Err(Trouble::Stayed),
        None => Err(Trouble::Closed),
    }
}

/// Two shards; another agent has published many keys on the one where the first is not.
fn two(shards: usize) -> Vec<MemoryDisk> {
    let mut world = World::several(full(shards), L2_BYTES, 1 << 30, SEGMENT_BYTES);
    let home = shard_of(&mut world, b"agent").unwrap();
    let author = named_for(1 - home, "author");
    world.held.clear();
    world.lane = world.lane_to(&author, 2, 0);
    fill(&mut world, None, 60, "published");
    world.put(b"large", &noise(2, 60_000));
    world.good(None, &CHECKPOINT);
    let (name, target, force) = ("p", Revision::Head, false);
    world.good(
        None,
        &Call::Publish {
            name,
            target,
            force,
        },
    );
    left(world)
}

fn adopt(world: &mut World) -> Outcome {
    let home = world.owner_of(b"agent");
    let author = String::from_utf8(named_for(1 - home, "author")).unwrap();
    let from = Revision::Published {
        agent: &author,
        name: "p",
    };
    call(world, &Call::Branch { name: "copy", from })
}

/// Writes in a fork, and drops it or keeps it under a name.
fn with_fork(world: &mut World, keep: Option<&str>) -> Outcome {
    let answer = world.try_call(None, &FORK)?;
    let info: BranchInfo = items(&answer).next().unwrap().unwrap();
    let fork = Some(BranchNo(info.no));
    let mut written = Ok(());
    for (key, bytes) in [(&b"k/05"[..], 4000), (b"new", 10)] {
        world.submit(Op::Put, key, &value(77, bytes), |entry| entry.branch = fork);
        written = written.and(world.outcome().map(|_| ()));
    }
    let kept = match keep {
        Some(name) if written.is_ok() => world.try_call(fork, &Call::Keep { name }).map(|_| ()),
        _ => written,
    };
    if keep.is_none() || kept.is_err() {
        let discarded = world.try_call(fork, &Call::Discard);
        return kept.and(discarded.map(|_| ()));
    }
    kept
}

/// The number of the set that is open.
fn set(world: &mut World) -> u32 {
    let at = shard_of(world, b"agent").unwrap();
    let tables = &world.shard_at(at).store.tables;
    let agent = tables.agent(tables.agent_no(b"agent").unwrap());
    let last = agent.sets.iter().map(|(no, _)| no.0).last();
    last.unwrap_or_default()
}

fn set_call(world: &mut World, asked: SetCall<'_>) -> Outcome {
    call(world, &Call::Superposition(asked))
}

fn candidate(world: &mut World, from: Revision<'_>, weight: f64) -> Outcome {
    let (set, label, weight) = (set(world), "try", weight.to_le_bytes());
    set_call(
        world,
        SetCall::Add {
            set,
            from,
            weight,
            label,
        },
    )
}

const WRITES: &[Deed] = &[
    deed("a small value", |world| {
        put(world, b"a", b"small", Durability::Process)
    }),
    safe("one for the device", |world| {
        put(world, b"b", &value(1, 900), Durability::Power)
    }),
    deed("a large value", |world| {
        put(world, b"big", &noise(3, LARGE_BYTES), Durability::Process)
    }),
    deed("a delete", |world| {
        world.submit(Op::Delete, b"a", b"", |_| {});
        world.outcome().map(|_| ())
    }),
    safe("a large value for the device", |world| {
        put(world, b"big", &noise(4, LARGE_BYTES), Durability::Power)
    }),
    safe("a value and a sync", |world| {
        put(world, b"c", b"soon", Durability::Volatile)?;
        world.submit(Op::Sync, b"", b"", |entry| {
            entry.durability = Some(Durability::Power)
        });
        world.outcome().map(|_| ())
    }),
];

const READS: &[Deed] = &[
    deed("a small value", |world| {
        get(world, b"k/05", &value(5, 3000))
    }),
    deed("a large value", |world| {
        get(world, b"large", &noise(1, LARGE_BYTES))
    }),
    deed("a difference", |world| {
        world.chill();
        let (before, after) = (Revision::Tag("base"), Revision::Branch("other"));
        call(world, &Call::DiffCounts { before, after })
    }),
];

const VERSIONS: &[Deed] = &[
    deed("a checkpoint", |world| call(world, &CHECKPOINT)),
    deed("a value", |world| {
        put(world, b"k/02", &value(8, 2000), Durability::Process)
    }),
    safe("a checkpoint for the device", |world| {
        world
            .try_call_as(None, &CHECKPOINT, Durability::Power)
            .map(|_| ())
    }),
    deed("a branch", |world| call(world, &branch("third"))),
    deed("a merge", |world| call(world, &merge("other"))),
    deed("a fork", |world| with_fork(world, None)),
    deed("a fork that is kept", |world| {
        with_fork(world, Some("kept"))
    }),
    deed("a tag", |world| {
        let (name, target, force) = ("t", Revision::Head, false);
        call(
            world,
            &Call::Tag {
                name,
                target,
                force,
            },
        )
    }),
    deed("a restore", |world| {
        let (to, force) = (Revision::Tag("base"), true);
        call(world, &Call::Restore { to, force })
    }),
    deed("a branch less", |world| {
        let (name, force) = ("third", true);
        call(world, &Call::DeleteBranch { name, force })
    }),
];

const SUPERPOSITION: &[Deed] = &[
    deed("a checkpoint", |world| call(world, &CHECKPOINT)),
    deed("a set", |world| set_call(world, create("tries", 0, 0, 0.0))),
    deed("a candidate", |world| {
        candidate(world, Revision::Branch("other"), 2.0)
    }),
    deed("another", |world| {
        candidate(world, Revision::Tag("base"), 1.0)
    }),
    deed("a collapse", |world| {
        let (set, choice) = (set(world), Choice::Candidate(0));
        let (into, expect, force) = (None, None, true);
        set_call(
            world,
            SetCall::Collapse {
                set,
                choice,
                into,
                expect,
                force,
            },
        )
    }),
];

const COLLECTION: &[Deed] = &[
    deed("a collection", collect),
    deed("a value", |world| {
        put(world, b"k/02", &value(8, 2000), Durability::Process)
    }),
    deed("another", collect),
];

const MOVES: &[Deed] = &[
    deed("a move", |world| {
        let to = 1 - world.owner_of(b"agent");
        migrate(world, to)
    }),
    deed("a value", |world| {
        put(world, b"k/02", &value(8, 2000), Durability::Process)
    }),
    deed("and back", |world| {
        let to = world.owner_of(b"agent");
        migrate(world, to)
    }),
    deed("what another published", adopt),
];

const AFTER_A_CUT: &[Deed] = &[safe("a value", |world| {
    put(world, b"k/05", b"again", Durability::Power)
})];

/// A scenario of one shard.
const fn alone(
    name: &'static str,
    prepare: fn(usize) -> Vec<MemoryDisk>,
    deeds: &'static [Deed],
) -> Scenario {
    let (shards, start, cold) = (1, false, false);
    Scenario {
        name,
        shards,
        prepare,
        deeds,
        start,
        cold,
    }
}

pub(super) const SCENARIOS: [Scenario; 7] = [
    Scenario {
        start: true,
        ..alone("writes in an empty directory", empty, WRITES)
    },
    Scenario {
        start: true,
        ..alone("a full directory after a power cut", torn, AFTER_A_CUT)
    },
    Scenario {
        cold: true,
        ..alone("reads from the device", full, READS)
    },
    alone("versions", full, VERSIONS),
    alone("superposition", full, SUPERPOSITION),
    alone("collections", littered, COLLECTION),
    Scenario {
        shards: 2,
        ..alone("moves and copies between shards", two, MOVES)
    },
];

const fn kind(persistent: bool, no_space: bool) -> Fault {
    Fault {
        skip: 0,
        persistent,
        no_space,
        ignored: false,
    }
}

const WAYS: [Fault; 4] = [
    kind(false, false),
    kind(true, false),
    kind(false, true),
    kind(true, true),
];

/// Calls of which one at least must have failed.
const CALLS: [&str; 17] = [
    "create",
    "footer",
    "read",
    "recovery: copy",
    "recovery: directory sync",
    "recovery: list",
    "recovery: read",
    "recovery: remove",
    "recovery: rename",
    "recovery: seek",
    "recovery: sync",
    "recovery: truncate",
    "recovery: write",
    "remove",
    "submission",
    "sync",
    "write",
];

#[test]
fn every_call_of_the_disk_may_fail() {
    let mut all: BTreeMap<&str, u64> = BTreeMap::new();
    let mut rows = Vec::new();
    for scenario in &SCENARIOS {
        let mut calls = 0;
        let mut heard = |outcome: std::thread::Result<()>, failed: &BTreeMap<&'static str, u64>| {
            outcome.unwrap_or_else(|panic| resume_unwind(panic));
            calls += 1;
            for (call, times) in failed {
                *all.entry(call).or_default() += times;
            }
        };
        for way in WAYS {
            walk(scenario, way, &mut heard);
        }
        assert!(calls > 0, "{}: nothing failed", scenario.name);
        rows.push(format!("{}: {calls} runs", scenario.name));
    }
    println!("{}", rows.join("\n"));
    println!("calls that failed: {all:?}");
    assert!(all.keys().copied().eq(CALLS), "{all:?}");
}
