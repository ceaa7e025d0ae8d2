//! What a lane that asks for too much costs another one: counted in turns and in operations, not in time.

use super::*;
use crate::agent::call::{Call, Revision};

const KEYS: usize = 2_000;

/// A second client of a world: its own session, one lane.
struct Beside {
    lane: ClientLane,
    next: u64,
}

impl Beside {
    fn new(world: &mut World) -> Self {
        let (ring, lane) = rings(LaneNo(1));
        world.attach_as(SessionNo(2), LaneNo(1), ring);
        Self { lane, next: 0 }
    }

    /// Puts one small value; in how many turns it is answered, and what the other got answered meanwhile.
    fn put(&mut self, world: &mut World) -> (usize, usize) {
        self.next += 1;
        let mut entry = Submission::new(Op::Put, self.next);
        let input = self.lane.alloc_input(64).unwrap();
        (entry.key, entry.value) = (input.first(3), input.part(3, 8));
        self.lane.write_input(entry.key, b"own");
        self.lane.write_input(entry.value, &self.next.to_le_bytes());
        self.lane.submit(&entry).unwrap();
        let _ = self.lane.notify(&world.client_bells);
        let mut others = 0;
        for turn in 1..=50 {
            world.now += 1_000_000;
            world.shard.step(world.now);
            world.disk().run_io();
            while let Some(completion) = world.lane.poll_completion().unwrap() {
                assert_eq!(completion.status, Status::Ok);
                others += 1;
                let (input, output) = world.held.remove(0);
                world.lane.free_input(input);
                world.lane.free_output(output);
            }
            if let Some(completion) = self.lane.poll_completion().unwrap() {
                assert_eq!(completion.status, Status::Ok);
                self.lane.free_input(input);
                return (turn, others);
            }
        }
        panic!("not answered in 50 turns");
    }
}

/// Keys that differ between two checkpoints: `KEYS` in the head and none in the empty state.
fn filled() -> World {
    let mut world = World::new(1 << 20);
    for part in 0..KEYS / 500 {
        let mut pairs = Vec::new();
        for no in 0..500 {
            let key = format!("key/{:06}", part * 500 + no);
            packed::push_pair(&mut pairs, key.as_bytes(), b"value").unwrap();
        }
        world.submit(Op::MultiPut, b"", &pairs, |entry| {
            entry.reply = Extent {
                offset: 0,
                len: 500 * 40,
            };
        });
        assert_eq!(world.wait().status, Status::Ok);
    }
    let (opaque, pairs, expect) = (&b""[..], &b""[..], None);
    let call = Call::Checkpoint {
        opaque,
        pairs,
        expect,
    };
    assert_eq!(world.call_on(None, &call).0.status, Status::Ok);
    world
}

/// Fills the ring with one operation, many times, and has another lane put a value meanwhile.
fn check(what: &str, per_turn_max: usize, submit: impl Fn(&mut World)) {
    let mut world = filled();
    let mut beside = Beside::new(&mut world);
    // Both are attended to from here on.
    for _ in 0..4 {
        beside.put(&mut world);
    }
    let mut waiting = 0;
    for _ in 0..40 {
        while waiting < 12 {
            submit(&mut world);
            waiting += 1;
        }
        let (turns, others) = beside.put(&mut world);
        assert!(turns <= 2, "{what}: answered after {turns} turns");
        assert!(
            others <= turns * per_turn_max,
            "{what}: {others} of the other's in {turns} turns"
        );
        waiting -= others;
    }
}

fn submit_call(world: &mut World, call: &Call<'_>) {
    world.submit_call_with(None, call, 4 << 10);
}

/// A ring full of calls that walk whole trees was worked through in one turn, as if they were gets.
#[test]
fn calls_that_walk_trees_leave_the_turn_to_others() {
    let (before, after) = (Revision::Empty, Revision::Head);
    check("counting differences", 2, |world| {
        submit_call(world, &Call::DiffCounts { before, after });
    });
    check("checkpoints", 2, |world| {
        let (opaque, pairs, expect) = (&b"x"[..], &b""[..], None);
        submit_call(
            world,
            &Call::Checkpoint {
                opaque,
                pairs,
                expect,
            },
        );
    });
    check("restores", 2, |world| {
        submit_call(
            world,
            &Call::Restore {
                to: Revision::Head,
                force: true,
            },
        );
    });
}

/// A lane was served once for each of its bells, of which it may ring as many as it likes.
#[test]
fn bells_without_end_buy_no_more_than_one() {
    let (before, after) = (Revision::Empty, Revision::Head);
    check("calls with many bells", 2, |world| {
        submit_call(world, &Call::DiffCounts { before, after });
        for _ in 0..20 {
            world.client_bells.ring(ShardNo(0), LaneNo(0));
        }
    });
}

#[test]
fn lists_of_a_thousand_keys_leave_the_turn_to_others() {
    let keys = |from: usize| {
        let mut list = Vec::new();
        for no in from..from + 200 {
            packed::push_key(&mut list, format!("key/{no:06}").as_bytes()).unwrap();
        }
        list
    };
    check("multi-gets", 4, move |world| {
        world.submit(Op::MultiGet, b"", &keys(100), |entry| {
            entry.reply = Extent {
                offset: 0,
                len: 200 * 48,
            };
        });
    });
    check("scans", 4, |world| {
        world.submit(Op::Scan, b"key/", b"", |_| {});
    });
}

#[test]
fn simple_operations_are_served_by_the_ringful() {
    check("gets", 32, |world| {
        world.submit(Op::Exists, b"key/000001", b"", |_| {});
    });
}
