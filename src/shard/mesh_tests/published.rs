//! Published checkpoints that are copied between shards: many keys, disks that fail, owners that go away.

use super::*;
use crate::shard::owner;

/// An agent whose name puts it on the shard.
pub(in crate::shard) fn named_for(shard: usize, prefix: &str) -> Vec<u8> {
    let mut names = (0..).map(|no| format!("{prefix}{no}").into_bytes());
    names
        .find(|name| owner(name, 2) == ShardNo(shard as u16))
        .unwrap()
}

/// Puts so many small keys, and nothing between.
pub(in crate::shard) fn fill(world: &mut World, on: Option<BranchNo>, keys: u32, salt: &str) {
    let numbers: Vec<u32> = (0..keys).collect();
    for some in numbers.chunks(1000) {
        let mut pairs = Vec::new();
        for no in some {
            let (key, value) = (format!("m/{no:06}"), format!("{salt} {no}"));
            packed::push_pair(&mut pairs, key.as_bytes(), value.as_bytes()).unwrap();
        }
        world.submit(Op::MultiPut, b"", &pairs, |entry| entry.branch = on);
        assert_eq!(world.wait().status, Status::Ok);
    }
}

/// An agent on one shard that has published so many keys, and a lane of an agent on the other; the owner's shard.
fn published(keys: u32, seed: u64) -> (World, usize) {
    let mut world = World::cluster(2, seed);
    fill(&mut world, None, keys, "published");
    world.good(None, &CHECKPOINT);
    let publish = Call::Publish {
        name: "p",
        target: Revision::Head,
        force: false,
    };
    world.good(None, &publish);
    let place = world.place(AGENT);
    let reader = named_for(1 - place, "reader");
    world.held.clear();
    world.lane = world.lane_to(&reader, 2, 0);
    assert_eq!(world.place(&reader), 1 - place);
    (world, place)
}

const COPY: Call<'_> = Call::Branch {
    name: "copy",
    from: Revision::Published {
        agent: "agent",
        name: "p",
    },
};

fn count(world: &mut World) -> u64 {
    let counts = Call::DiffCounts {
        before: Revision::Empty,
        after: Revision::Branch("copy"),
    };
    let answer = world.good(None, &counts);
    let counts: call::DiffCounts = call::items(&answer).next().unwrap().unwrap();
    counts.added
}

#[test]
fn a_checkpoint_of_many_small_keys_is_copied() {
    const KEYS: u32 = 100_000;
    let (mut world, _) = published(KEYS, 5);
    let copy = BranchNo(world.info(None, &COPY).no);
    assert_eq!(count(&mut world), u64::from(KEYS));
    for no in [0, 1, 4711, KEYS - 1] {
        let found = world.get_on(copy, format!("m/{no:06}").as_bytes());
        assert_eq!(found.unwrap(), format!("published {no}").as_bytes());
    }
}

#[test]
fn a_copy_whose_disks_fail_can_be_asked_for_again() {
    for at_owner in [true, false] {
        for error in [NO_SPACE, eio()] {
            let mut failures = 0;
            for skip in 0..6 {
                let (mut world, place) = published(1500, 20 + u64::from(skip));
                let failing = if at_owner { place } else { 1 - place };
                let disk = &mut world.shard_at(failing).store.disk;
                if at_owner {
                    // It only reads.
                    disk.faults.read = Some(error.clone());
                } else {
                    disk.faults.write = Some(FailedWrite {
                        skip,
                        written: 40,
                        error: error.clone(),
                    });
                }
                if at_owner {
                    let store = &mut world.shard_at(failing).store;
                    let places = store.tables.objects.all().map(|(_, object)| object.at);
                    let places: Vec<_> = places.filter(|at| at.bytes > 0).collect();
                    for at in places {
                        let range = at.offset..at.offset + at.bytes;
                        store.disk.cold.push((at.segment, range));
                    }
                }
                let (first, _) = world.call_on(None, &COPY);
                failures += u32::from(first.status != Status::Ok);
                for no in 0..2 {
                    world.shard_at(no).store.disk.faults = Default::default();
                }
                let dead = world.shard_at(failing).store.log.read_only().is_some();
                if dead {
                    world = world.restarted(0);
                    let reader = named_for(1 - place, "reader");
                    world.lane = world.lane_to(&reader, 2, 0);
                }
                if first.status != Status::Ok {
                    world.good(None, &COPY);
                }
                assert_eq!(count(&mut world), 1500);
                world.settled();
                world.check_references();
                let reader = named_for(1 - place, "reader");
                let mut world = world.restarted(0);
                world.lane = world.lane_to(&reader, 2, 0);
                assert_eq!(count(&mut world), 1500);
            }
            assert!(failures > 0, "at the owner {at_owner}, {error}");
        }
    }
}

#[test]
fn a_copy_whose_owner_goes_is_busy_and_leaves_nothing() {
    let mut busy = 0;
    for turn in (0..160).step_by(8) {
        let (mut world, place) = published(1500, 50 + turn);
        world.submit_call(None, &COPY);
        for _ in 0..turn {
            world.step();
        }
        world.lose(place);
        let answer = world.wait();
        match answer.status {
            Status::Busy => busy += 1,
            status => assert_eq!(status, Status::Ok),
        }
        world.settled();
        world.check_references();
        world.put(b"goes", b"on");
        let mut world = world.restarted(0);
        let reader = named_for(1 - place, "reader");
        world.lane = world.lane_to(&reader, 2, 0);
        assert_eq!(world.get(b"goes").unwrap(), b"on");
        if answer.status == Status::Busy {
            world.good(None, &COPY);
        }
        assert_eq!(count(&mut world), 1500);
    }
    assert!(busy > 5, "{busy}");
}

#[test]
fn copies_beside_collections_and_moves_are_whole() {
    for seed in 1..=4 {
        let (mut world, place) = published(800, 70 + seed);
        let answer = world.ask(
            place,
            AGENT,
            AgentVerb::Migrate {
                to: ShardNo(1 - place as u16),
            },
        );
        world.submit_call(None, &COPY);
        let copied = world.until(|world| {
            let no = world.order.below(32);
            if no < 2 {
                world.collect_at(no);
            }
            world.completion()
        });
        assert!(answer.try_recv().unwrap().is_ok());
        world.settled();
        // What is on its way is asked for again.
        if copied.status != Status::Ok {
            world.good(None, &COPY);
        }
        for no in 0..2 {
            world.collect_at(no);
        }
        for _ in 0..500 {
            world.step();
        }
        assert_eq!(count(&mut world), 800);
        let reader = named_for(1 - place, "reader");
        let mut world = world.restarted(0);
        world.lane = world.lane_to(&reader, 2, 0);
        assert_eq!(count(&mut world), 800);
    }
}
