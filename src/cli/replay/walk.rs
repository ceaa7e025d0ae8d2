//! The order in which agents make their accesses, and what each access must find.
//!
//! Floor 5, part of `replay`. No clock, no I/O: the same walk over the same scenario gives the same
//! accesses, so that the scorer can repeat in private what the workers did.
//!
//! Invariants
//! - all agents of a walk advance together: flat out they take turns, one access each; with think
//!   times each has a schedule of its own (exponential, fixed in advance: an open loop), and the
//!   earliest access is next.
//! - the version of an access is what a read must find, or what a write leaves there. The only
//!   writer of a key is the agent that reads it.
//! - after some writes an agent does more than its script says ([`Walk::deeds`]); the next access finds
//!   what that left behind.
//!
//! Cost: an access touches one step, one slot and one version; with think times also a heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::lineage::{Deed, Lineage, Now};
use super::scenario::{Agent, Deal, Key, Scenario};
use super::values::{COMMONS, ValueId, mix, unit};

/// Mean think time at factor 1, in nanoseconds.
pub(super) const THINK_MEAN_NS: f64 = 1e6;

/// The accesses of a scenario, without end.
#[derive(Debug)]
pub(super) struct Walk {
    agents: Vec<Place>,
    order: Order,
    deeds: Vec<Deed>,
}

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// Whose; an index into the scenario's agents.
    pub(super) agent: usize,
    /// Of which key; an index into the agent's slots.
    pub(super) slot: u32,
    /// What is done.
    pub(super) kind: Kind,
    /// Does a traced process end with it?
    pub(super) last: bool,
    /// When, in nanoseconds since the walk began; 0 without think times.
    pub(super) due_ns: u64,
}

/// What is done, and with which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads a key of its own, which holds this version.
    Read { version: u32 },
    /// Reads this key of the commons, which never changes.
    ReadCommons { key: u32 },
    /// Writes a key of its own, which then holds this version.
    Write { version: u32 },
}

#[derive(Debug)]
struct Place {
    step: u32,
    versions: Vec<u32>,
    lineage: Lineage,
    random: u64,
}

#[derive(Debug)]
enum Order {
    Turns {
        next: usize,
    },
    Schedule {
        mean_ns: f64,
        due: BinaryHeap<Reverse<(u64, usize)>>,
    },
}

impl Walk {
    /// At the first access of each agent; `think` scales the think times, 0 leaves them out.
    pub(super) fn new(scenario: &Scenario, deal: &Deal, think: f64) -> Self {
        let mut agents: Vec<_> = scenario
            .agents
            .iter()
            .map(|agent| Place {
                step: 0,
                versions: vec![0; agent.slots.len()],
                lineage: Lineage::new(agent.slots.len(), deal.seed, agent.number),
                random: mix(deal.seed ^ mix(u64::from(agent.number))),
            })
            .collect();
        let order = if think > 0.0 {
            let mean_ns = THINK_MEAN_NS * think;
            let places = agents.iter_mut().enumerate();
            let due = places.map(|(index, place)| Reverse((place.think(mean_ns), index)));
            Order::Schedule {
                mean_ns,
                due: due.collect(),
            }
        } else {
            Order::Turns { next: 0 }
        };
        let deeds = Vec::new();
        Self {
            agents,
            order,
            deeds,
        }
    }

    /// What the agent of the last access does after it, in order.
    pub(super) fn deeds(&self) -> &[Deed] {
        &self.deeds
    }

    /// Bytes of all keys and values that the agents' states hold now.
    pub(super) fn state_bytes(&self, scenario: &Scenario) -> u64 {
        let states = self.agents.iter().zip(&scenario.agents);
        let slots = states.flat_map(|(place, agent)| place.versions.iter().zip(&agent.slots));
        let held = slots.filter(|(version, slot)| **version > 0 || slot.preload);
        held.map(|(_, slot)| scenario.name(&slot.key).len() as u64 + u64::from(slot.key.bytes))
            .sum()
    }

    /// The next access. `scenario` is the one the walk was made for, and has agents.
    pub(super) fn next(&mut self, scenario: &Scenario) -> Access {
        let (agent, due_ns) = match &mut self.order {
            Order::Turns { next } => {
                let agent = *next;
                *next = if agent + 1 == self.agents.len() {
                    0
                } else {
                    agent + 1
                };
                (agent, 0)
            }
            Order::Schedule { mean_ns, due } => {
                let mut first = due
                    .peek_mut()
                    .expect("a schedule has an entry for each agent");
                let Reverse((due_ns, agent)) = *first;
                first.0.0 = due_ns.saturating_add(self.agents[agent].think(*mean_ns));
                (agent, due_ns)
            }
        };
        let place = &mut self.agents[agent];
        let plan = &scenario.agents[agent];
        let step = plan.script[place.step as usize];
        place.step += 1;
        if place.step as usize == plan.script.len() {
            place.step = 0;
        }
        let version = &mut place.versions[step.slot as usize];
        self.deeds.clear();
        let kind = if step.write {
            *version = place.lineage.write(step.slot);
            let kind = Kind::Write { version: *version };
            let mut now = Now {
                step: &mut place.step,
                versions: &mut place.versions,
                slots: &plan.slots,
            };
            place.lineage.after_write(&mut now, &mut self.deeds);
            kind
        } else if let (0, Some(key)) = (*version, plan.slots[step.slot as usize].commons) {
            Kind::ReadCommons { key }
        } else {
            Kind::Read { version: *version }
        };
        Access {
            agent,
            slot: step.slot,
            kind,
            last: step.last,
            due_ns,
        }
    }
}

impl Access {
    /// The key of the access, and the value there.
    pub(super) fn value<'a>(&self, scenario: &'a Scenario) -> (&'a Key, ValueId) {
        let agent: &Agent = &scenario.agents[self.agent];
        let (key, owner, version) = match self.kind {
            Kind::ReadCommons { key } => (&scenario.commons[key as usize], COMMONS, 0),
            Kind::Read { version } | Kind::Write { version } => {
                (&agent.slots[self.slot as usize].key, agent.number, version)
            }
        };
        let id = ValueId {
            owner,
            key_hash: key.hash,
            version,
        };
        (key, id)
    }
}

impl Place {
    fn think(&mut self, mean_ns: f64) -> u64 {
        self.random = mix(self.random);
        // Never 0, so that time goes on.
        (-unit(self.random).ln() * mean_ns) as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::replay::lineage::{HISTORY_MAX, Put};
    use crate::cli::replay::trace::Trace;
    use std::collections::{HashMap, HashSet};
    use std::path::Path;

    const DEAL: Deal = Deal {
        agents: 3,
        workers: 1,
        seed: 5,
    };

    /// What an agent has, by what it is told to do.
    #[derive(Debug, Clone, Default)]
    struct Model {
        now: HashMap<u32, u32>,
        made: Vec<HashMap<u32, u32>>,
        seen: HashSet<(u32, u32)>,
        deeds: [u32; 7],
    }

    impl Model {
        fn write(&mut self, put: Put) {
            self.see(put);
            self.now.insert(put.slot, put.version);
        }

        fn see(&mut self, put: Put) {
            assert!(put.version > 0);
            assert!(self.seen.insert((put.slot, put.version)), "written twice");
        }

        fn find(&self, state: &HashMap<u32, u32>, put: Put) {
            assert_eq!(state.get(&put.slot).copied().unwrap_or(0), put.version);
        }

        /// The checkpoints that an agent can go back to; the first is that of its first state.
        fn history(&self) -> &[HashMap<u32, u32>] {
            &self.made[self.made.len().saturating_sub(HISTORY_MAX)..]
        }

        fn follow(&mut self, deed: &Deed) {
            if self.made.is_empty() {
                self.made.push(HashMap::new());
            }
            let kind = match deed {
                Deed::Checkpoint => {
                    self.made.push(self.now.clone());
                    0
                }
                Deed::Trial { write, found } => {
                    self.see(*write);
                    assert_ne!(write.slot, found.slot);
                    self.find(&self.now, *found);
                    1
                }
                Deed::Detour(detour) => {
                    if let Some(put) = detour.ours {
                        self.write(put);
                        self.made.push(self.now.clone());
                    }
                    let both = |put: &Put| Some(put.slot) == detour.ours.map(|put| put.slot);
                    assert_eq!(detour.theirs.iter().any(both), detour.conflict);
                    detour.theirs.iter().for_each(|put| self.write(*put));
                    self.made.push(self.now.clone());
                    2
                }
                Deed::Superpose { candidates, choice } => {
                    candidates.iter().for_each(|put| self.see(*put));
                    if let Some(choice) = choice {
                        let put = candidates[*choice];
                        self.now.insert(put.slot, put.version);
                        self.made.push(self.now.clone());
                    }
                    5
                }
                Deed::LookBack { to, found } => {
                    self.find(&self.history()[*to], *found);
                    3
                }
                Deed::Suspend => 6,
                Deed::Restore { to } => {
                    self.now = self.history()[*to].clone();
                    4
                }
            };
            self.deeds[kind] += 1;
        }
    }

    fn scenario() -> Scenario {
        let mut text = String::from("agent_id,seq,key,op\n");
        for process in 0..7 {
            text += &format!("p{process},0,/common,read\n");
            for access in 0..=process {
                let op = if access % 3 == 1 { "write" } else { "read" };
                text += &format!("p{process},0,/k{process}/{},{op}\n", access % 4);
            }
            text += &format!("p{process},0,/common,write\np{process},0,/common,read\n");
        }
        let trace = Trace::read(text.as_bytes(), Path::new("t.csv")).unwrap();
        Scenario::new(&trace, &DEAL, 0)
    }

    #[test]
    fn a_read_finds_what_was_written_last() {
        let scenario = scenario();
        for think in [0.0, 2.0] {
            let mut walk = Walk::new(&scenario, &DEAL, think);
            let mut models: Vec<Model> = vec![Model::default(); 3];
            let (mut commons, mut own) = (0, 0);
            for _ in 0..6000 {
                let access = walk.next(&scenario);
                let slot = &scenario.agents[access.agent].slots[access.slot as usize];
                let model = &mut models[access.agent];
                let put = |version| Put {
                    slot: access.slot,
                    version,
                };
                match access.kind {
                    Kind::Write { version } => model.write(put(version)),
                    Kind::Read { version } => {
                        model.find(&model.now, put(version));
                        assert!(version > 0 || slot.preload);
                        own += 1;
                    }
                    Kind::ReadCommons { key } => {
                        assert_eq!(slot.commons, Some(key));
                        assert!(!model.now.contains_key(&access.slot));
                        commons += 1;
                    }
                }
                for deed in walk.deeds() {
                    model.follow(deed);
                }
            }
            assert!(commons >= 3 && own > 3000, "{commons} {own}");
            for count in models.iter().flat_map(|model| model.deeds) {
                assert!(count > 1, "each agent does all there is");
            }
        }
    }

    #[test]
    fn without_think_times_agents_take_turns() {
        let scenario = scenario();
        let mut walk = Walk::new(&scenario, &DEAL, 0.0);
        for turn in 0..30 {
            let access = walk.next(&scenario);
            assert_eq!((access.agent, access.due_ns), (turn % 3, 0));
        }
    }

    #[test]
    fn think_times_have_their_mean_and_are_the_same_every_time() {
        let scenario = scenario();
        let mut walk = Walk::new(&scenario, &DEAL, 0.5);
        let mut again = Walk::new(&scenario, &DEAL, 0.5);
        let mut last_ns = 0;
        for _ in 0..30_000 {
            let access = walk.next(&scenario);
            assert_eq!(access, again.next(&scenario));
            assert!(access.due_ns >= last_ns);
            last_ns = access.due_ns;
        }
        // 10,000 accesses of each agent, half a millisecond apart.
        let mean_ns = last_ns as f64 / 10_000.0;
        assert!((mean_ns / 5e5 - 1.0).abs() < 0.05, "{mean_ns}");
    }
}
