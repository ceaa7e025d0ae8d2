//! Where moves, sets, terminations and collections meet: what each once did to the other.

use super::published::{fill, named_for};
use super::*;
use crate::agent::lifecycle::CollectEnd;
use crate::agent::set_call::SetCall;
use crate::id::ObjectId;
use crate::shard::agent::MAIN;
use crate::shard::migrate::LANDING_PER_TURN;
use crate::shard::superposition_tests::create;

const SECOND: u64 = 1_000;

fn publish(name: &str) -> Call<'_> {
    Call::Publish {
        name,
        target: Revision::Head,
        force: true,
    }
}

fn merge_published<'a>(agent: &'a str, name: &'a str) -> Call<'a> {
    Call::Merge {
        from: Revision::Published { agent, name },
        rules: Vec::new(),
        opaque: b"",
        pairs: b"",
        expect: None,
    }
}

/// A list of hot keys that can't be found once kept everything from being collected.
#[test]
fn a_hot_list_that_is_lost_holds_no_collection_up() {
    let mut world = World::new(0);
    world.put(b"a", b"1");
    let no = world.shard.store.tables.agent_no(AGENT).unwrap();
    world.shard.store.tables.agent_mut(no).hot = Some(ObjectId::of_blob(b"it was damaged"));
    assert_eq!(world.collect().end, CollectEnd::Done);
    assert_eq!(world.get(b"a").unwrap(), b"1");
}

/// One agent follows a history as far as it may read; the other one, whose own it is further on, was once
/// taken to have been there.
#[test]
fn a_history_that_two_agents_share_is_followed_for_each() {
    for swapped in [false, true] {
        let mut world = World::new(0);
        let other = world.lane_to(b"other", 1, 1);
        let mut other = other;
        let mut names = ["agent", "other"];
        if swapped {
            std::mem::swap(&mut world.lane, &mut other);
            names.swap(0, 1);
        }
        // `other` is the lane of `maker`, which builds on what `owner` has made.
        let [owner, maker] = names;
        world.put(b"k", b"oldest");
        let oldest = world.made(None).id;
        world.put(b"k", b"published");
        world.good(None, &CHECKPOINT);
        world.good(None, &publish("p"));
        world.on_lane(&mut other, |world| {
            let (agent, name) = (owner, "p");
            let from = Revision::Published { agent, name };
            let on = Call::Branch { name: "on", from };
            let on = BranchNo(world.info(None, &on).no);
            world.put_on(on, b"k", b"made");
            world.good(Some(on), &CHECKPOINT);
            world.good(Some(on), &publish("c"));
        });
        world.good(None, &merge_published(maker, "c"));
        world.good(None, &Call::Untag { name: "p" });
        assert_eq!(world.get(b"k").unwrap(), b"made");
        assert_eq!(world.history(Revision::Head).len(), 3);
        assert_eq!(world.collect().end, CollectEnd::Done);
        assert_eq!(world.history(Revision::Head).len(), 3, "{swapped}");
        let from = Revision::Checkpoint(oldest);
        let fork = BranchNo(world.info(None, &Call::Fork { from }).no);
        assert_eq!(world.get_on(fork, b"k").unwrap(), b"oldest");
    }
}

/// What an agent had reached first counted as reached, and was not looked into once the agent was gone.
#[test]
fn what_a_terminated_agent_shared_stays_whole() {
    for (swapped, turns) in [false, true]
        .into_iter()
        .flat_map(|swapped| (0..40).map(move |turns| (swapped, turns)))
    {
        let mut world = World::new(0);
        let mut other = world.lane_to(b"other", 1, 1);
        let mut names = [&b"agent"[..], b"other"];
        if swapped {
            std::mem::swap(&mut world.lane, &mut other);
            names.swap(0, 1);
        }
        for no in 0..10 {
            world.put(&key(no), &value(no as u32, 500));
        }
        world.good(None, &CHECKPOINT);
        world.good(None, &publish("p"));
        // Its own branch has moved on: only the name reaches the first checkpoint.
        for no in 0..10 {
            world.put(&key(no), &value(100 + no as u32, 500));
        }
        world.good(None, &CHECKPOINT);
        world.on_lane(&mut other, |world| {
            let agent = std::str::from_utf8(names[0]).unwrap();
            let tag = Call::Tag {
                name: "on",
                target: Revision::Published { agent, name: "p" },
                force: false,
            };
            world.good(None, &tag);
        });
        world.chill();
        world.disk().at_once = false;
        let collected = world.ask_collection();
        for _ in 0..turns {
            world.step();
            world.disk().run_io();
        }
        let force = AgentVerb::Terminate { force: true };
        world.told(0, names[0], force).unwrap();
        world.disk().at_once = true;
        world.disk().run_io();
        world.until(|_| collected.try_recv().ok());
        world.on_lane(&mut other, |world| {
            let from = Revision::Tag("on");
            world.info(None, &Call::Branch { name: "on", from });
            let switch = Call::Switch { name: "on" };
            world.info(None, &switch);
            for no in 0..10 {
                assert_eq!(world.get(&key(no)).unwrap(), value(no as u32, 500));
            }
        });
        assert_eq!(world.collect().end, CollectEnd::Done);
        world.on_lane(&mut other, |world| {
            for no in 0..10 {
                assert_eq!(world.get(&key(no)).unwrap(), value(no as u32, 500));
            }
        });
    }
}

/// Two shards, each with an agent that has much to be given up and much to be said again, and behind it on the
/// first an agent that moves; their disks.
fn littered(changes: u32) -> Vec<MemoryDisk> {
    let mut world = World::cluster(2, 1);
    for no in 0..2 {
        let heavy = named_for(no, "heavy");
        world.held.clear();
        world.lane = world.lane_to(&heavy, 2 + no as u64, 0);
        for round in 0..3 {
            let fork = Call::Fork {
                from: Revision::Empty,
            };
            let fork = BranchNo(world.info(None, &fork).no);
            fill(&mut world, Some(fork), 2000, &format!("round {round}"));
            world.good(Some(fork), &CHECKPOINT);
            world.good(Some(fork), &Call::Discard);
        }
        fill(&mut world, None, 500, "kept");
    }
    let mover = named_for(0, "mover");
    world.lane = world.lane_to(&mover, 5, 0);
    world.put(b"k", b"1");
    world.good(None, &CHECKPOINT);
    for name in ["one", "two"] {
        world.create(create(name, 0, 0, 0.0));
        world.set_call(SetCall::Add {
            set: u32::from(name == "two"),
            from: Revision::Head,
            weight: 1.5_f64.to_le_bytes(),
            label: "try",
        });
    }
    world.put(b"k", b"2");
    fill(&mut world, None, changes, "moves");
    world.settled();
    world.disks()
}

/// While a collection said everything again, an agent that had gone was said to be there, and one that
/// arrived had its sets said twice. The disk of the source is slow, so that all of it is seen.
#[test]
fn a_collection_beside_a_move_says_nothing_wrong() {
    let disks = littered(0);
    let mover = named_for(0, "mover");
    let (mut gone_seen, mut restated_seen, mut both) = ([0; 2], [0; 2], 0);
    for delay in 0..90 {
        println!("delay {delay}");
        let left: Vec<_> = disks.iter().map(crashed_one).collect();
        let mut world = World::cluster_over(left, delay);
        world.held.clear();
        world.lane = world.lane_to(&mover, 5, 0);
        let before = described(&mut world, &mover);
        // Only one of them collects: which depends on the delay.
        let collecting = delay as usize % 2;
        world.collect_at(collecting);
        let mut asked = None;
        for turn in 0..2_000 {
            world.now += 1_000_000;
            let now = world.now;
            for no in [1, 0] {
                world.shard_at(no).step(now);
                let gone = world.shard_at(no).moves.any_gone();
                gone_seen[no] += u32::from(gone);
                let restating = world.shard_at(no).store.restating.is_some();
                restated_seen[no] += u32::from(restating);
                both += u32::from(restating && !world.shard_at(no).moves.is_empty());
                let slow = no == 0 && turn % 30 != 29;
                if !slow {
                    world.shard_at(no).store.disk.run_io();
                }
            }
            if turn == delay * 2 {
                let to = ShardNo(1);
                asked = Some(world.ask(0, &mover, AgentVerb::Migrate { to }));
            }
            let idle = !world.shard_at(collecting).collector.is_under_way();
            if turn > delay * 2 + 30 && idle && world.is_quiet() {
                break;
            }
        }
        assert!(asked.unwrap().try_recv().unwrap().is_ok());
        world.settled();
        assert_eq!(world.place(&mover), 1);
        assert_eq!(world.get(b"k").unwrap(), b"2");
        world.put(b"k", b"3");
        let mut world = world.restarted(0);
        world.settled();
        assert_eq!(world.place(&mover), 1);
        assert_eq!(described(&mut world, &mover), before);
        world.lane = world.lane_to(&mover, 5, 0);
        assert_eq!(world.get(b"k").unwrap(), b"3");
    }
    println!("{gone_seen:?} {restated_seen:?} {both}");
    assert!(gone_seen[0] > 0 && restated_seen.iter().all(|&seen| seen > 0) && both > 0);
}

/// The same, each at its turn: the collection of one shard is held at a phase, the agent moves from shard 0 as far
/// as is asked, and both go on. The agent with its values and sets is at the other one then, after a start too.
/// How many turns it took so far.
fn check_move_beside(
    changes: u32,
    collecting: usize,
    phase: &str,
    far: impl Fn(&mut World, usize) -> bool,
) -> usize {
    let mover = named_for(0, "mover");
    let mut world = World::cluster_over(littered(changes).iter().map(crashed_one).collect(), 3);
    world.held.clear();
    world.lane = world.lane_to(&mover, 5, 0);
    // Its log has begun a segment, and has the next one.
    world.put(b"k", b"2");
    world.settled();
    let before = described(&mut world, &mover);
    world.collect_at(collecting);
    world.until(|world| {
        let held = world.shard_at(collecting).collector.hold_at(phase);
        held.then_some(())
    });
    let to = ShardNo(1);
    let asked = world.ask(0, &mover, AgentVerb::Migrate { to });
    // The disk of the source is slow: what it says last is on its way.
    let mut turns = 0;
    while !far(&mut world, turns) {
        turns += 1;
        assert!(turns < 20_000, "it does not come so far");
        world.now += 1_000_000;
        let now = world.now;
        for no in [1, 0] {
            world.shard_at(no).step(now);
            if !world.shard_at(no).moves.any_gone() {
                world.shard_at(no).store.disk.run_io();
            }
        }
    }
    world.shard_at(collecting).collector.let_on();
    for _ in 0..400 {
        world.now += 1_000_000;
        let now = world.now;
        for no in [1, 0] {
            world.shard_at(no).step(now);
        }
        world.shard_at(1).store.disk.run_io();
    }
    world.settled();
    assert!(asked.try_recv().unwrap().is_ok());
    world.until(|world| {
        let ended = !world.shard_at(collecting).collector.is_under_way();
        ended.then_some(())
    });
    let mut world = world.restarted(0);
    world.settled();
    assert_eq!(world.place(&mover), 1);
    assert_eq!(described(&mut world, &mover), before);
    world.lane = world.lane_to(&mover, 5, 0);
    assert_eq!(world.get(b"k").unwrap(), b"2");
    turns
}

#[test]
fn what_is_gone_is_not_said_again() {
    check_move_beside(0, 0, "collect.choose", |world, _| {
        world.shard_at(0).moves.any_gone()
    });
}

/// Whichever turn of its landing all begins to be said again at.
#[test]
fn what_lands_while_all_is_said_again_is_there_at_the_next_start() {
    let mover = named_for(0, "mover");
    // With so many its sets, and nothing else of it, land in a turn of their own.
    for changes in [0, LANDING_PER_TURN as u32 - 2] {
        let landed = check_move_beside(changes, 1, "collect.choose", |world, _| {
            world.shard_at(1).has_landed(&mover)
        });
        for early in 1..=6 {
            let far = |_: &mut World, turns| turns == landed - early;
            check_move_beside(changes, 1, "collect.choose", far);
        }
    }
}

fn crashed_one(disk: &MemoryDisk) -> MemoryDisk {
    let mut disk = disk.clone();
    disk.kill();
    disk
}

/// A lane that builds something up holds collections back where it is, not where it was.
#[test]
fn a_lane_holds_collections_back_where_its_agent_is() {
    let mut world = World::cluster(2, 9);
    world.put(b"k", b"1");
    world.good(None, &CHECKPOINT);
    let source = world.place(AGENT);
    let mut builder = world.lane_to(AGENT, 1, 1);
    world.on_lane(&mut builder, |world| {
        let brought = Call::CheckpointAs { bytes: b"nothing" };
        let fork = BranchNo(world.info(None, &FORK).no);
        let refused = world.call_on(Some(fork), &brought).0;
        assert_eq!(refused.status, Status::WrongState);
    });
    assert_eq!(world.shard_at(source).store.holds, 1);
    world.move_to(AGENT, 1 - source);
    assert_eq!(world.shard_at(source).store.holds, 0);
    assert_eq!(world.shard_at(1 - source).store.holds, 1);
    world.detach(LaneNo(1));
    world.settled();
    assert_eq!(world.shard_at(1 - source).store.holds, 0);
}

/// A set that was observed when its agent went was said behind that, and no start understood it.
#[test]
fn a_fork_on_a_candidate_says_nothing_behind_the_end_of_its_agent() {
    let mut world = World::new(0);
    world.put(b"k", b"before");
    world.good(None, &CHECKPOINT);
    world.create(create("tries", 0, 10 * SECOND, 0.0));
    world.tried(0, b"one", 1.0, "one");
    world.open(0, 0);
    world.pass(60 * SECOND);
    let force = AgentVerb::Terminate { force: true };
    world.told(0, AGENT, force).unwrap();
    for _ in 0..5 {
        world.step();
    }
    world.go_on(SessionNo(1), LaneNo(1));
    world.put(b"goes", b"out with it");
    let mut world = world.restarted(0);
    assert_eq!(world.get(b"goes").unwrap(), b"out with it");
    assert_eq!(world.get(b"k"), Err(Status::NotFound));
}

/// Moves the agent of a cluster of two until the log of its shard says that it is gone, and the device has not heard.
fn until_gone(world: &mut World, source: usize) {
    let to = ShardNo(1 - source as u16);
    world.ask(source, AGENT, AgentVerb::Migrate { to });
    for _ in 0..20_000 {
        world.now += 1_000_000;
        let now = world.now;
        for no in 0..2 {
            world.shard_at(no).step(now);
            if world.shard_at(source).moves.any_gone() {
                return;
            }
            world.shard_at(no).store.disk.run_io();
        }
    }
    panic!("the agent does not go");
}

/// An agent that is said to be gone is in memory until that is on the device. What was put meanwhile once shared
/// its values, which no start found: acknowledged writes were lost, or the start was refused.
#[test]
fn what_an_agent_named_that_went_is_stored_anew() {
    for key in [b"k".as_slice(), b"other"] {
        let mut world = World::cluster(2, 4);
        world.put(b"k", b"both have it");
        let source = world.place(AGENT);
        let stays = named_for(source, "stays");
        let mut lane = world.lane_to(&stays, 1, 1);
        world.on_lane(&mut lane, |world| world.put(b"k", b"its own"));
        until_gone(&mut world, source);
        let store = &mut world.shard_at(source).store;
        let agent = store.tables.agent_no(&stays).unwrap();
        let at = BranchRef {
            agent,
            branch: MAIN,
        };
        store.put(at, key, b"both have it").unwrap();
        assert!(matches!(store.flush(), Flushed::Done));
        world.settled();
        world.check_references();
        let mut world = world.restarted(0);
        world.settled();
        let mut lane = world.lane_to(&stays, 1, 1);
        let found = world.on_lane(&mut lane, |world| world.get(key));
        assert_eq!(found.unwrap(), b"both have it");
    }
}

/// The same of a set whose time is over while the word that its agent went is on its way to the device; and
/// of one that a lane's end observes then.
#[test]
fn a_set_says_nothing_behind_the_word_that_its_agent_went() {
    for ends in [false, true] {
        let mut world = World::cluster(2, 4);
        world.put(b"k", b"before");
        world.good(None, &CHECKPOINT);
        world.create(create("tries", 0, 10 * SECOND, 0.0));
        world.tried(0, b"one", 1.0, "one");
        let mut second = world.lane_to(AGENT, 1, 1);
        if ends {
            world.on_lane(&mut second, |world| world.open(0, 0));
        }
        let source = world.place(AGENT);
        let to = ShardNo(1 - source as u16);
        until_gone(&mut world, source);
        // The device takes its time.
        world.pass(60 * SECOND);
        if ends {
            let (session, lane) = (SessionNo(1), LaneNo(1));
            let detach = Command::Detach {
                session,
                lane,
                reply: Answer::unheard(),
            };
            let owner = world.owner_of(AGENT);
            assert!(world.commands_of(owner).push(detach).is_ok());
        }
        for _ in 0..20 {
            world.now += 1_000_000;
            let now = world.now;
            for no in 0..2 {
                world.shard_at(no).step(now);
            }
        }
        world.settled();
        assert_eq!(world.place(AGENT), usize::from(to.0));
        world.put(b"goes", b"out with it");
        for no in 0..2 {
            world.shard_at(no).before_sleep();
        }
        let mut world = world.restarted(0);
        world.settled();
        assert_eq!(world.place(AGENT), usize::from(to.0));
        assert_eq!(world.get(b"goes").unwrap(), b"out with it");
    }
}

/// A fork whose lane goes while its agent is between two shards was once nobody's at the other one.
#[test]
fn forks_of_lanes_that_go_in_a_move_go_with_them() {
    for turn in 0..120 {
        let mut world = World::cluster(2, 400 + turn);
        world.put(b"k", b"1");
        world.good(None, &CHECKPOINT);
        let mut second = world.lane_to(AGENT, 1, 1);
        world.on_lane(&mut second, |world| {
            let fork = BranchNo(world.info(None, &FORK).no);
            world.put_on(fork, b"k", &value(7, 3000));
        });
        let source = world.place(AGENT);
        let to = ShardNo(1 - source as u16);
        world.ask(source, AGENT, AgentVerb::Migrate { to });
        for _ in 0..turn {
            world.step();
        }
        world.detach(LaneNo(1));
        world.settled();
        assert_eq!(world.place(AGENT), usize::from(to.0));
        let tables = &world.shard_at(usize::from(to.0)).store.tables;
        let agent = tables.agent(tables.agent_no(AGENT).unwrap());
        let forks = agent.numbered().filter(|(no, _)| is_fork(*no)).count();
        assert_eq!((forks, agent.lanes), (0, 1), "turn {turn}");
        for _ in 0..10 {
            world.step();
        }
        world.check_references();
        assert_eq!(world.get(b"k").unwrap(), b"1");
    }
}
