//! The accesses of a finished replay once more, for the caches of `offline`.
//!
//! Floor 5, part of `replay`. Runs after the runtime has stopped, in its process: the memory used
//! here (8 bytes an access, 12 an object) is not the runtime's.
//!
//! What several workers did side by side is merged in proportion: each worker's accesses in its
//! own order, evenly spread over the time they had in common.

use std::path::Path;
use std::thread;

use serde::Serialize;

use super::offline::{self, Request, Trial};
use super::scenario::{Deal, Scenario};
use super::trace::{Trace, TraceError};
use super::walk::{Access, Kind, Walk};

/// Most accesses that are scored; of a longer run, the first that many.
pub(super) const ACCESSES_MAX: u64 = 60_000_000;

/// What a worker's walks were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steps {
    /// Accesses of the warm-up.
    pub(super) warmup: u64,
    /// Accesses that were measured.
    pub(super) measured: u64,
}

/// Hit ratios of other caches, over the measured reads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Scores {
    pub(super) lru: f64,
    pub(super) opt: f64,
    pub(super) infinite: f64,
    /// Measured reads that were scored.
    pub(super) reads: u64,
    /// Bytes of the caches.
    pub(super) capacity_bytes: u64,
    /// Accesses left out because the run was longer than can be scored.
    pub(super) accesses_left_out: u64,
}

/// Repeats the walks and tries them on other caches of so many bytes.
pub(super) fn score(
    path: &Path,
    deal: &Deal,
    think: f64,
    steps: &[Steps],
    capacity_bytes: u64,
) -> Result<Scores, TraceError> {
    let trace = Trace::load(path)?;
    let repeat = Repeat::new(&trace, deal, think, steps.len() as u32);
    let object_bytes = repeat.object_bytes();
    let (requests, warmup) = repeat.requests(steps, ACCESSES_MAX);
    let trial = Trial {
        requests: &requests,
        warmup,
        object_bytes: &object_bytes,
        capacity_bytes,
    };
    let (opt, lru) = thread::scope(|scope| {
        let opt = scope.spawn(|| offline::opt(&trial));
        let lru = offline::lru(&trial);
        (opt.join(), lru)
    });
    let opt = opt.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let infinite = offline::infinite(&trial);
    let all: u64 = steps
        .iter()
        .map(|steps| steps.warmup + steps.measured)
        .sum();
    Ok(Scores {
        lru: lru.ratio(),
        opt: opt.ratio(),
        infinite: infinite.ratio(),
        reads: infinite.reads,
        capacity_bytes,
        accesses_left_out: all - requests.len() as u64,
    })
}

/// The walks of all workers, from the start.
struct Repeat {
    parts: Vec<(Scenario, Walk, Vec<u32>)>,
    objects: u32,
}

impl Repeat {
    fn new(trace: &Trace, deal: &Deal, think: f64, workers: u32) -> Self {
        let mut objects = 0;
        let parts = (0..workers).map(|worker| {
            let scenario = Scenario::new(trace, deal, worker);
            if worker == 0 {
                // Objects are numbered: the commons, then each agent's keys.
                objects = scenario.commons.len() as u32;
            }
            let first = |agent: &super::scenario::Agent| {
                let first = objects;
                objects += agent.slots.len() as u32;
                first
            };
            let firsts = scenario.agents.iter().map(first).collect();
            let walk = Walk::new(&scenario, deal, think);
            (scenario, walk, firsts)
        });
        let parts = parts.collect();
        Self { parts, objects }
    }

    fn object_bytes(&self) -> Vec<u32> {
        let mut bytes = Vec::with_capacity(self.objects as usize);
        let commons = self.parts.first().map(|(scenario, ..)| &scenario.commons);
        bytes.extend(commons.into_iter().flatten().map(|key| key.bytes));
        for (scenario, ..) in &self.parts {
            let slots = scenario.agents.iter().flat_map(|agent| &agent.slots);
            bytes.extend(slots.map(|slot| slot.key.bytes));
        }
        bytes
    }

    /// The accesses in order, at most `max` of them, and how many of them are warm-up.
    fn requests(mut self, steps: &[Steps], max: u64) -> (Vec<Request>, usize) {
        let mut requests = Vec::new();
        let warmup: Vec<u64> = steps.iter().map(|steps| steps.warmup).collect();
        self.merge(&warmup, max, &mut requests);
        let warmup = requests.len();
        let measured: Vec<u64> = steps.iter().map(|steps| steps.measured).collect();
        self.merge(&measured, max - warmup as u64, &mut requests);
        (requests, warmup)
    }

    fn merge(&mut self, counts: &[u64], max: u64, requests: &mut Vec<Request>) {
        let total: u64 = counts.iter().sum();
        let mut done = vec![0; counts.len()];
        for _ in 0..total.min(max) {
            // Whoever has done the smallest part of its own, compared without division.
            let part = (0..counts.len())
                .filter(|&part| done[part] < counts[part])
                .min_by(|&a, &b| {
                    let left = u128::from(done[a]) * u128::from(counts[b]);
                    left.cmp(&(u128::from(done[b]) * u128::from(counts[a])))
                })
                .unwrap_or(0);
            done[part] += 1;
            let (scenario, walk, firsts) = &mut self.parts[part];
            let access = walk.next(scenario);
            requests.push(request(&access, firsts));
        }
    }
}

fn request(access: &Access, firsts: &[u32]) -> Request {
    let own = firsts[access.agent] + access.slot;
    match access.kind {
        Kind::ReadCommons { key } => Request::new(key, false),
        Kind::Read { .. } => Request::new(own, false),
        Kind::Write { .. } => Request::new(own, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    const DEAL: Deal = Deal {
        agents: 6,
        workers: 2,
        seed: 3,
    };

    fn text() -> String {
        let mut text = String::from("agent_id,seq,key,op\n");
        for process in 0..9 {
            let _ = writeln!(text, "p{process},0,/common,read");
            for access in 0..30 {
                let op = if access % 6 == 4 { "write" } else { "read" };
                let _ = writeln!(text, "p{process},0,/k{}/{},{op}", process, access % 11);
            }
        }
        text
    }

    #[test]
    fn the_walks_are_repeated_and_merged_in_proportion() {
        let trace = Trace::read(text().as_bytes(), Path::new("t")).unwrap();
        let steps = [
            Steps {
                warmup: 60,
                measured: 300,
            },
            Steps {
                warmup: 20,
                measured: 100,
            },
        ];
        let repeat = Repeat::new(&trace, &DEAL, 0.0, 2);
        let bytes = repeat.object_bytes();
        assert_eq!(bytes.len(), repeat.objects as usize);
        // Agents 0 and 2 of worker 0, and 1 of worker 1, run two processes.
        assert_eq!(bytes.len(), 1 + 6 + 9 * 11);
        let second = repeat.parts[1].2[0];
        let (requests, warmup) = repeat.requests(&steps, ACCESSES_MAX);
        assert_eq!((requests.len(), warmup), (480, 80));
        let of_second = |requests: &[Request]| {
            let own = |request: &&Request| **request != Request::new(0, false);
            let of_second = |request: &&Request| request_object(**request) >= second;
            requests.iter().filter(own).filter(of_second).count()
        };
        assert!((8..=16).contains(&of_second(&requests[80..128])));
        let again = Repeat::new(&trace, &DEAL, 0.0, 2).requests(&steps, 100);
        assert_eq!((&again.0[..], again.1), (&requests[..100], 80));
    }

    fn request_object(request: Request) -> u32 {
        (0..200)
            .find(|&object| {
                request == Request::new(object, false) || request == Request::new(object, true)
            })
            .unwrap()
    }

    #[test]
    fn scores_come_out_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        std::fs::write(&path, text()).unwrap();
        let steps = [Steps {
            warmup: 2000,
            measured: 3000,
        }; 2];
        let scores = |capacity| score(&path, &DEAL, 0.0, &steps, capacity).unwrap();
        let small = scores(40_000);
        assert!(small.lru < small.opt && small.opt < 1.0, "{small:?}");
        assert!((small.infinite - 1.0).abs() < 1e-9 && small.accesses_left_out == 0);
        let large = scores(1 << 30);
        assert!(
            (large.lru - 1.0).abs() < 1e-9 && (large.opt - 1.0).abs() < 0.05,
            "{large:?}"
        );
        assert!(large.reads > 4000 && large.reads < 6000);
    }
}
