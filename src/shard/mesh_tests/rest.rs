//! Agents that rest: what comes back with them, and what can't.

use super::*;

/// What the device can't read was once asked for again and again when an agent was resumed: it took the place of
/// what agents asked for, who were told Busy for ever.
#[test]
fn a_hot_value_that_cannot_be_read_is_asked_for_once() {
    for list_is_read in [false, true] {
        let mut world = World::new(0);
        for no in 0..20 {
            world.put(&[no], &value(u32::from(no), 3_000));
        }
        world.good(None, &CHECKPOINT);
        world.detach(LaneNo(0));
        world.told(0, AGENT, AgentVerb::Suspend).unwrap();
        let tables = &world.shard.store.tables;
        let agent = tables.agent(tables.agent_no(AGENT).unwrap());
        let list = tables.objects.find(&agent.hot.unwrap()).unwrap();
        let list = tables.objects.get(list).at;
        world.chill();
        let disk = world.disk();
        if list_is_read {
            disk.cold
                .retain(|(segment, at)| *segment != list.segment || at.start != list.offset);
        }
        disk.queue_slots = 1;
        disk.faults.read = Some(eio());
        world.told(0, AGENT, AgentVerb::Resume).unwrap();
        for _ in 0..500 {
            world.step();
        }
        let failed = world.disk().fired.get("read").copied().unwrap_or(0);
        println!("{failed} reads failed");
        assert!((1..=41).contains(&failed), "{failed} reads failed");
        world.go_on(SessionNo(2), LaneNo(1));
        assert_eq!(world.get(&[1]), Err(Status::IoFailed));
    }
}
