//! What a move leaves on a third shard: copies that a start could take for the agent, lanes that nobody rings for.

use super::*;
use crate::agent::CloseReason;

/// Fails every write from the one after `skip` on, as long as it is called.
fn keep_full(world: &mut World, at: usize, skip: u32) {
    let write = &mut world.shard_at(at).store.disk.faults.write;
    write.get_or_insert(FailedWrite {
        skip,
        written: 40,
        error: NO_SPACE,
    });
}

/// The target once said that the agent could stay before its own copy was known to be gone. The agent moved on,
/// and a start found the copy: as young by its count, and without all that was acknowledged since.
#[test]
fn an_agent_stays_while_a_copy_of_it_could_come_back() {
    let (mut world, mut traffic) = busy_agent(3, 400);
    traffic.faulty = true;
    let from = world.place(AGENT);
    // A start that finds two copies of one count takes that of the lower number.
    let to = (0..3).find(|&no| no != from).unwrap();
    let third = (0..3).rfind(|&no| no != from).unwrap();
    let migrate = |to: usize| AgentVerb::Migrate {
        to: ShardNo(to as u16),
    };
    // All of it lands there, and can't be synced, nor can anything after it.
    world.shard_at(to).store.disk.faults.sync = Some(eio());
    world.ask(from, AGENT, migrate(to));
    for _ in 0..600 {
        traffic.turn(&mut world);
    }
    let tried = world.told(from, AGENT, migrate(third));
    for _ in 0..600 {
        traffic.turn(&mut world);
    }
    traffic.drain(&mut world);
    let tried_to_end = match tried {
        Ok(_) => None,
        Err(_) => Some(world.told(from, AGENT, AgentVerb::Terminate { force: true })),
    };
    let mut restarted = world.restarted(0);
    restarted.settled();
    traffic.check(&mut restarted, false);
    assert_eq!(tried.err(), Some(AgentError::Busy));
    let ended = tried_to_end.and_then(Result::err);
    assert_eq!(ended, Some(AgentError::Busy), "it would come back");
}

/// The same where the source can't say that it let go, and the target can't say that it gave up.
#[test]
fn an_agent_that_neither_shard_can_give_up_stays() {
    let (mut world, mut traffic) = busy_agent(3, 450);
    traffic.faulty = true;
    let from = world.place(AGENT);
    let to = (from + 1) % 3;
    let migrate = AgentVerb::Migrate {
        to: ShardNo(to as u16),
    };
    world.ask(from, AGENT, migrate);
    world.until(|world| world.shard_at(to).has_landed(AGENT).then_some(()));
    for _ in 0..600 {
        for at in [from, to] {
            keep_full(&mut world, at, 0);
        }
        traffic.turn(&mut world);
    }
    assert_eq!(world.place(AGENT), from, "it went");
    let end = AgentVerb::Terminate { force: true };
    world.shard_at(from).store.disk.faults.write = None;
    let answer = world.ask(from, AGENT, end);
    let ended = world.until(|world| {
        keep_full(world, to, 0);
        answer.try_recv().ok()
    });
    let ended = ended.err();
    assert_eq!(ended, Some(AgentError::Busy), "it would come back");
    world.shard_at(to).store.disk.faults.write = None;
    world.settled();
    traffic.drain(&mut world);
    world.told(from, AGENT, end).unwrap();
    // The world makes it anew.
    let mut restarted = world.restarted(0);
    restarted.settled();
    for no in 0..20 {
        assert_eq!(
            restarted.get(&key(no)).err(),
            Some(Status::NotFound),
            "it came back"
        );
    }
}

/// The same where a start finds two copies: the other one is gone when the device says so.
#[test]
fn an_agent_of_which_a_start_found_two_stays_until_one_is_gone() {
    let (mut world, mut traffic) = busy_agent(3, 500);
    let from = world.place(AGENT);
    let to = (0..3).find(|&no| no != from).unwrap();
    let third = (0..3).rfind(|&no| no != from).unwrap();
    let migrate = |to: usize| AgentVerb::Migrate {
        to: ShardNo(to as u16),
    };
    world.ask(from, AGENT, migrate(to));
    world.until(|world| {
        let shard = world.shard_at(to);
        shard.store.tables.agent_no(AGENT).map(drop)
    });
    for no in 0..3 {
        world.shard_at(no).flush().unwrap();
    }
    let mut world = world.restarted(0);
    assert_eq!(world.place(AGENT), from);
    keep_full(&mut world, to, 0);
    let tried = world.told(from, AGENT, migrate(third));
    assert_eq!(tried.err(), Some(AgentError::Busy));
    world.shard_at(to).store.disk.faults.write = None;
    world.settled();
    world.move_to(AGENT, third);
    traffic.waiting.clear();
    traffic.check(&mut world, false);
}

/// The lane is closed: no shard has it, nor its session once that ended, and its agent is in use by nobody.
fn check_orphan(world: &mut World, lost: usize) {
    world.until(|world| (world.lane.closed() == Some(CloseReason::ShardFailed)).then_some(()));
    for no in (0..world.shards()).filter(|&no| no != lost) {
        let (session, reason) = (SessionNo(1), CloseReason::Detached);
        let end = Command::EndSession { session, reason };
        assert!(world.commands_of(no).push(end).is_ok());
    }
    world.settled();
    for no in (0..world.shards()).filter(|&no| no != lost) {
        let shard = world.shard_at(no);
        assert_eq!(shard.lanes.len(), 0, "lanes at {no}");
        assert_eq!(shard.lanes.sessions(), [], "sessions at {no}");
        if let Some(agent) = shard.store.tables.agent_no(AGENT) {
            let agent = shard.store.tables.agent(agent);
            assert!(agent.lanes == 0 && agent.window.is_none() && agent.window_fd.is_none());
        }
    }
}

/// A lane is rung for at the shard where it attached. That shard's thread died once, the agent was elsewhere: its
/// lane was served as long as it was polled, and then slept for ever; nor was its end heard of.
#[test]
fn a_lane_whose_home_is_lost_is_closed_where_its_agent_went() {
    let (mut world, mut traffic) = busy_agent(2, 600);
    let home = world.place(AGENT);
    world.move_to(AGENT, 1 - home);
    traffic.drain(&mut world);
    world.lose(home);
    traffic.submit(&mut world);
    check_orphan(&mut world, home);
    // The agent is in use again by whoever asks where it is.
    let (ring, client) = rings_at(LaneNo(1), ShardNo(1 - home as u16));
    world.lane = client;
    world.held.clear();
    world
        .attach_at(1 - home, AGENT, SessionNo(2), LaneNo(1), ring)
        .unwrap();
    world.put(&key(0), b"goes on");
    assert_eq!(world.get(&key(0)).unwrap(), b"goes on");
}

/// The same while the agent is on its way to a third shard, and where a shard is lost that it came through.
#[test]
fn a_lane_whose_way_is_cut_in_a_move_is_closed_by_whoever_has_it() {
    for turn in (0..160).step_by(8) {
        println!("turn {turn}");
        let (mut world, mut traffic) = busy_agent(3, 700 + turn);
        let home = world.place(AGENT);
        let (first, second) = ((home + 1) % 3, (home + 2) % 3);
        world.move_to(AGENT, first);
        let to = ShardNo(second as u16);
        world.ask(first, AGENT, AgentVerb::Migrate { to });
        for _ in 0..turn {
            traffic.turn(&mut world);
        }
        world.lose(home);
        check_orphan(&mut world, home);
    }
    let (mut world, mut traffic) = busy_agent(3, 800);
    let home = world.place(AGENT);
    let (first, second) = ((home + 1) % 3, (home + 2) % 3);
    // Back at home nobody has to ring for it.
    for to in [first, second, home, second, first, second] {
        world.move_to(AGENT, to);
        for _ in 0..20 {
            traffic.turn(&mut world);
        }
        traffic.drain(&mut world);
    }
    world.move_to(AGENT, home);
    world.lose(second);
    for _ in 0..200 {
        traffic.turn(&mut world);
    }
    traffic.drain(&mut world);
    world.move_to(AGENT, first);
    traffic.submit(&mut world);
    traffic.drain(&mut world);
    let (mut world, mut traffic) = busy_agent(3, 801);
    let home = world.place(AGENT);
    let (first, second) = ((home + 1) % 3, (home + 2) % 3);
    world.move_to(AGENT, first);
    world.move_to(AGENT, second);
    world.lose(first);
    traffic.submit(&mut world);
    check_orphan(&mut world, first);
}
