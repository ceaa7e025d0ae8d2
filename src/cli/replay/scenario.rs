//! Who the agents are, and what each will do: the traced processes dealt to agents.
//!
//! Floor 5, part of `replay`. A pure function of the trace and the [`Deal`]: every worker and the
//! scorer derive the same scenario from the same file, each as much of it as it needs.
//!
//! Invariants
//! - agent `i` of `N` runs the processes `i`, `i + N`, ... in turn, over and over; where there are
//!   fewer processes than agents, several agents run the same one, each on its own state.
//! - a key that more than a tenth of the processes read, and at least two, belongs to the
//!   commons; an agent reads it there until it writes it, and from then on reads its own copy.
//! - every key that an agent may read is in place before: preloaded, or written by itself.

use std::ops::Range;

use super::trace::Trace;
use super::values::{COMMONS, Values, key_hash};

/// A key is common if more than one in this many processes read it.
const COMMONS_SHARE: usize = 10;
/// Name of the public agent.
pub(super) const COMMONS_NAME: &str = "commons";

/// How the trace is dealt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Deal {
    /// How many agents there are.
    pub(super) agents: u32,
    /// How many workers they are spread over.
    pub(super) workers: u32,
    /// What everything random comes from.
    pub(super) seed: u64,
}

/// The agents of one worker, and the commons that all share.
#[derive(Debug)]
pub(super) struct Scenario {
    /// Keys of the public agent.
    pub(super) commons: Vec<Key>,
    /// The agents, in the order in which they take turns.
    pub(super) agents: Vec<Agent>,
    names: Box<[u8]>,
}

/// A key, and what its values are.
#[derive(Debug, Clone)]
pub(super) struct Key {
    name: Range<usize>,
    /// Its name within values.
    pub(super) hash: u64,
    /// Bytes of each of its values.
    pub(super) bytes: u32,
}

/// An agent's keys and its accesses.
#[derive(Debug)]
pub(super) struct Agent {
    /// Its number among all agents.
    pub(super) number: u32,
    /// Every key it touches.
    pub(super) slots: Vec<Slot>,
    /// One pass over its processes.
    pub(super) script: Vec<Step>,
}

/// A key of one agent.
#[derive(Debug)]
pub(super) struct Slot {
    /// The key; its size is that of the agent's own value.
    pub(super) key: Key,
    /// The common key of that name: an index into [`Scenario::commons`].
    pub(super) commons: Option<u32>,
    /// Must it be there before the agent starts?
    pub(super) preload: bool,
}

/// One access of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Index into the agent's slots.
    pub(super) slot: u32,
    /// Is it a write?
    pub(super) write: bool,
    /// Does a traced process end with it?
    pub(super) last: bool,
}

impl Deal {
    /// The numbers of a worker's agents.
    pub(super) fn agents_of(&self, worker: u32) -> impl Iterator<Item = u32> + use<> {
        (worker..self.agents).step_by(self.workers as usize)
    }
}

impl Scenario {
    /// The part of one worker.
    pub(super) fn new(trace: &Trace, deal: &Deal, worker: u32) -> Self {
        let values = Values::new(deal.seed);
        let mut names = Vec::new();
        let keys: Vec<Key> = (0..trace.keys.len() as u32)
            .map(|key| {
                let bytes = trace.keys.get(key);
                let start = names.len();
                names.extend_from_slice(bytes);
                Key {
                    name: start..names.len(),
                    hash: key_hash(bytes),
                    bytes: 0,
                }
            })
            .collect();
        let common_keys = common_keys(trace);
        let mut commons_of = vec![None; keys.len()];
        let commons = common_keys.iter().zip(0..).map(|(&key, index)| {
            commons_of[key as usize] = Some(index);
            let key = keys[key as usize].clone();
            Key {
                bytes: values.bytes(COMMONS, key.hash),
                ..key
            }
        });
        let commons = commons.collect();
        let mut dealer = Dealer {
            trace,
            values: &values,
            keys: &keys,
            commons_of: &commons_of,
            slot_of: vec![(u32::MAX, 0); keys.len()],
        };
        let agents = deal.agents_of(worker);
        Self {
            commons,
            agents: agents
                .map(|agent| dealer.agent(agent, deal.agents))
                .collect(),
            names: names.into(),
        }
    }

    /// The bytes of a key.
    pub(super) fn name(&self, key: &Key) -> &[u8] {
        &self.names[key.name.clone()]
    }
}

impl Agent {
    /// What the agent is called.
    pub(super) fn name(&self) -> String {
        format!("agent-{:05}", self.number)
    }
}

/// The keys that belong to the commons, in order of first appearance.
fn common_keys(trace: &Trace) -> Vec<u32> {
    let mut readers = vec![(usize::MAX, 0_usize); trace.keys.len()];
    for (number, process) in trace.processes.iter().enumerate() {
        for access in process.iter().filter(|access| !access.write) {
            let (last, count) = &mut readers[access.key as usize];
            if *last != number {
                *last = number;
                *count += 1;
            }
        }
    }
    let many = |count: usize| count >= 2 && count * COMMONS_SHARE > trace.processes.len();
    let keys = (0..).zip(&readers);
    keys.filter(|(_, (_, count))| many(*count))
        .map(|(key, _)| key)
        .collect()
}

struct Dealer<'a> {
    trace: &'a Trace,
    values: &'a Values,
    keys: &'a [Key],
    commons_of: &'a [Option<u32>],
    /// For each key, the last agent that had it and its slot there.
    slot_of: Vec<(u32, u32)>,
}

impl Dealer<'_> {
    fn agent(&mut self, number: u32, agents: u32) -> Agent {
        let processes = &self.trace.processes;
        let mut agent = Agent {
            number,
            slots: Vec::new(),
            script: Vec::new(),
        };
        let first = number as usize % processes.len();
        for process in processes[first..].iter().step_by(agents as usize) {
            for access in process {
                let slot = self.slot(&mut agent, access.key, access.write);
                agent.script.push(Step {
                    slot,
                    write: access.write,
                    last: false,
                });
            }
            if let Some(step) = agent.script.last_mut() {
                step.last = true;
            }
        }
        agent
    }

    fn slot(&mut self, agent: &mut Agent, key: u32, write: bool) -> u32 {
        let known = &mut self.slot_of[key as usize];
        if known.0 != agent.number {
            // Fits: a trace has fewer accesses.
            *known = (agent.number, agent.slots.len() as u32);
            let commons = self.commons_of[key as usize];
            let key = self.keys[key as usize].clone();
            agent.slots.push(Slot {
                key: Key {
                    bytes: self.values.bytes(agent.number, key.hash),
                    ..key
                },
                commons,
                preload: !write && commons.is_none(),
            });
        }
        known.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};
    use std::path::Path;

    pub(in super::super) fn trace(text: &str) -> Trace {
        let text = format!("agent_id,seq,key,op\n{text}");
        Trace::read(text.as_bytes(), Path::new("t.csv")).unwrap()
    }

    /// Twenty processes: all read /all, two read /two, three read /three, each has its own.
    fn twenty() -> Trace {
        let mut text = String::new();
        for process in 0..20 {
            text += &format!("p{process},0,/all,read\n");
            if process < 2 {
                text += &format!("p{process},0,/two,read\np{process},0,/two,read\n");
            }
            if process < 3 {
                text += &format!("p{process},0,/three,read\n");
            }
            text += &format!("p{process},0,/own{process},write\np{process},0,/own{process},read\n");
            text += &format!("p{process},0,/in{process},read\np{process},0,/all,write\n");
        }
        trace(&text)
    }

    fn deal(agents: u32, workers: u32) -> Deal {
        Deal {
            agents,
            workers,
            seed: 1,
        }
    }

    #[test]
    fn more_than_a_tenth_of_the_processes_makes_a_key_common() {
        let scenario = Scenario::new(&twenty(), &deal(3, 1), 0);
        let names: Vec<_> = scenario
            .commons
            .iter()
            .map(|key| scenario.name(key))
            .collect();
        assert_eq!(names, [b"/all" as &[u8], b"/three"]);
        let single = trace("p,0,/x,read\np,1,/x,read\n");
        assert!(Scenario::new(&single, &deal(2, 1), 0).commons.is_empty());
    }

    #[test]
    fn what_is_read_first_is_preloaded() {
        let scenario = Scenario::new(&twenty(), &deal(20, 1), 0);
        let slots: HashMap<_, _> = scenario.agents[0]
            .slots
            .iter()
            .map(|slot| (scenario.name(&slot.key), slot))
            .collect();
        assert!(slots[b"/two" as &[u8]].preload);
        assert!(slots[b"/in0" as &[u8]].preload);
        assert!(!slots[b"/own0" as &[u8]].preload);
        assert!(!slots[b"/all" as &[u8]].preload && slots[b"/all" as &[u8]].commons == Some(0));
    }

    #[test]
    fn workers_share_out_the_agents_and_agents_the_processes() {
        let trace = twenty();
        for (agents, workers) in [(1, 1), (3, 2), (20, 4), (50, 3)] {
            let mut seen = HashSet::new();
            let mut steps = 0;
            for worker in 0..workers {
                let scenario = Scenario::new(&trace, &deal(agents, workers), worker);
                for agent in &scenario.agents {
                    assert!(seen.insert(agent.number));
                    assert!(!agent.script.is_empty());
                    assert!(agent.script.last().unwrap().last);
                    let ends = agent.script.iter().filter(|step| step.last).count();
                    let first = agent.number as usize % 20;
                    assert_eq!(ends, (20 - first).div_ceil(agents as usize));
                    let own = format!("/in{first}");
                    let names = agent.slots.iter().map(|slot| scenario.name(&slot.key));
                    assert!(names.into_iter().any(|name| name == own.as_bytes()));
                    steps += agent.script.len();
                }
            }
            assert_eq!(seen.len(), agents as usize);
            if agents <= 20 {
                assert_eq!(steps, trace.access_count());
            }
        }
    }
}
