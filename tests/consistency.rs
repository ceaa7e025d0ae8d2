//! Histories of many lanes at once, recorded and checked: each agent is linearizable as a whole, branches, forks and
//! checkpoints included; and the checker refuses what is wrong.
//!
//! `HELIOS_CONSISTENCY_MINUTES` makes the recorded rounds go on (`scripts/consistency --minutes M`), `HELIOS_SEED`
//! repeats what lanes ask; how they fall together is the machine's.

#[path = "consistency/check.rs"]
mod check;
#[path = "consistency/history.rs"]
mod history;
#[path = "consistency/model.rs"]
mod model;
#[path = "consistency/planted.rs"]
mod planted;
#[path = "consistency/round.rs"]
mod round;
#[path = "consistency/tiny.rs"]
mod tiny;
#[path = "consistency/workload.rs"]
mod workload;

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use common::{Random, Served};
use helios::Runtime;
use helios::client::Session;
use helios::config::{Choice, Config};
use serde::{Deserialize, Serialize};

use check::check;
use history::{Came, History, What};
use planted::all_planted;
use round::Death;
use workload::{Plan, Record};

/// Rounds where nothing else is asked for.
const ROUNDS: u64 = 4;
/// Shards that agents are moved between.
const SHARDS: u16 = 2;
/// Rounds of the killed runtime where nothing else is asked for, and how often it dies in each.
const KILLED_ROUNDS: u64 = 2;
const KILLS: u32 = 3;
/// Processes at a time, each with lanes of every agent.
const PROCESSES: u32 = 2;

/// What was checked.
#[derive(Default)]
struct Tally {
    histories: u64,
    operations: u64,
    checkpoints: u64,
    unanswered: u64,
    window_hits: u64,
    busy: u64,
    pairs: usize,
    kinds: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn recorded(&mut self, records: &[Record]) {
        self.window_hits += records.iter().map(|record| record.window_hits).sum::<u64>();
        self.busy += records.iter().map(|record| record.busy).sum::<u64>();
    }

    fn check(&mut self, seed: u64, agent: &str, history: &History) {
        match check(history) {
            Ok(pairs) => self.pairs += pairs,
            Err(verdict) => {
                let file = std::env::temp_dir().join(format!("helios-history-{seed}-{agent}.txt"));
                let _ = std::fs::write(&file, format!("{history:#x?}"));
                panic!(
                    "seed {seed}, {agent}: {:?}\n{}\nall of it: {}",
                    verdict.refused,
                    verdict.story,
                    file.display()
                );
            }
        }
        self.histories += 1;
        self.operations += history.operations.len() as u64;
        self.checkpoints += history.graph.len() as u64;
        for op in &history.operations {
            self.unanswered += u64::from(op.maybe);
            *self.kinds.entry(kind(&op.what)).or_default() += 1;
        }
    }

    fn print(&self, what: &str) {
        println!(
            "{what}: {} histories, {} operations ({} never answered, {} window hits, {} busy), {} checkpoints; {} pairs searched\n{:?}",
            self.histories,
            self.operations,
            self.unanswered,
            self.window_hits,
            self.busy,
            self.checkpoints,
            self.pairs,
            self.kinds
        );
    }

    /// Fails where a kind of operation never came: then nothing was checked of it.
    fn assert_came(&self, kinds: &[&'static str]) {
        let missing: Vec<_> = kinds
            .iter()
            .filter(|kind| !self.kinds.contains_key(*kind))
            .collect();
        assert!(
            missing.is_empty() && self.window_hits > 0,
            "never came: {missing:?}"
        );
    }
}

fn kind(what: &What) -> &'static str {
    match what {
        What::Get { .. } => "get",
        What::Snapshot { .. } => "snapshot",
        What::Put { .. } => "put",
        What::Swap { found: None, .. } => "compared put",
        What::Swap { .. } => "compared put, stale",
        What::Delete { .. } => "delete",
        What::MultiPut { .. } => "multi-put",
        What::Checkpoint { .. } => "checkpoint",
        What::Restore { .. } => "restore",
        What::Create { .. } => "branch",
        What::Remove { .. } => "delete branch",
        What::Switch { .. } => "switch",
        What::Describe { .. } | What::List { .. } => "describe",
        What::Merge { came, .. } => match came {
            Came::Nothing => "merge, nothing to do",
            Came::Ahead(_) => "merge, step ahead",
            Came::Made(_) => "merge",
            Came::Conflicts(_) => "merge, conflicts",
            Came::Unrelated => "merge, unrelated",
            Came::Unsaved(_) => "merge, unsaved",
            Came::Unknown => "merge, never answered",
        },
        What::Fork { .. } => "fork",
        What::Keep { .. } => "keep",
        What::Discard => "discard",
        What::NameTaken { .. } => "name taken",
        What::NoSuchName { .. } | What::NoSuchBranch => "no such branch",
        What::InUse { .. } => "in use",
        What::StaleHead { .. } => "stale head",
        What::Crash => "crash",
    }
}

/// The first seed, and until when rounds go on, if not as many as there are else.
fn asked() -> (u64, Option<Instant>) {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let minutes = number("HELIOS_CONSISTENCY_MINUTES");
    let until = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes / 2));
    (number("HELIOS_SEED").unwrap_or(1), until)
}

/// Rounds of seeds from the one asked for on: `rounds` of them, or until the time is up.
fn seeds(rounds: u64) -> impl Iterator<Item = u64> {
    let (first, until) = asked();
    (first..).take_while(move |seed| match until {
        Some(until) => Instant::now() < until,
        None => *seed < first + rounds,
    })
}

#[test]
fn planted_histories_get_their_verdicts() {
    let (refused, right) = judge_planted(planted::Planted::alone);
    println!("{refused} wrong ones refused, {right} right ones not");
}

/// Has each planted history judged, where it is put: how many were refused, and how many not.
fn judge_planted(place: impl Fn(&planted::Planted) -> History) -> (u64, u64) {
    let (mut refused, mut right) = (0, 0);
    for planted in all_planted() {
        let verdict = check(&place(&planted));
        let said = verdict.as_ref().err().map(|verdict| &verdict.refused);
        assert_eq!(
            said,
            planted.wrong.as_ref(),
            "{}: {verdict:?}",
            planted.name
        );
        match said {
            Some(_) => refused += 1,
            None => right += 1,
        }
    }
    (refused, right)
}

#[test]
fn the_checker_agrees_with_every_order_tried_on_tiny_histories() {
    let mut random = Random(7);
    let (mut right, mut wrong) = (0, 0);
    for no in 0..6_000 {
        let history = tiny::random_history(&mut random);
        let found = check(&history).is_ok();
        assert_eq!(found, tiny::has_an_order(&history), "{no}: {history:?}");
        right += u32::from(found);
        wrong += u32::from(!found);
    }
    assert!(right > 500 && wrong > 500, "{right} right, {wrong} wrong");
    println!("{right} right, {wrong} wrong");
}

#[test]
fn agents_of_one_runtime_are_linearizable_while_they_are_moved_and_collected() {
    let dir = common::memory_dir();
    let runtime = Runtime::start(Config {
        shards: Choice::Fixed(SHARDS),
        ..common::small_config(dir.path(), 4, 96)
    })
    .unwrap();
    let session = runtime.session();
    let (mut tally, mut refused, mut moves) = (Tally::default(), 0, 0);
    for seed in seeds(ROUNDS) {
        let plan = Plan {
            seed,
            agents: (0..3).map(|no| format!("r{seed}a{no}")).collect(),
            lanes_per_agent: 2 + (seed % 4) as u32,
            first_lane: 0,
            operations_per_lane: 250,
            // What a branch alone names goes with it, when it is collected.
            remove: seed % 2 == 0,
            dies: false,
        };
        let lanes: Vec<u32> = (0..3 * plan.lanes_per_agent).collect();
        let records = match plan.remove {
            true => round::run(session, &plan, &lanes),
            false => {
                let run = || round::run(session, &plan, &lanes);
                let (records, moved) = round::disturbed(session, &plan, SHARDS, run);
                moves += moved;
                records
            }
        };
        tally.recorded(&records);
        let histories = round::histories(session, &plan.agents, records, &[]);
        for (agent, history) in plan.agents.iter().zip(&histories) {
            tally.check(seed, agent, history);
        }
        if seed % 3 == 1 {
            refused += judge_planted(|planted| planted.after(&histories[0])).0;
        }
        for agent in &plan.agents {
            session.terminate_agent(agent, true).unwrap();
        }
    }
    runtime.shutdown().unwrap();
    tally.print("one runtime");
    println!("{moves} moves; {refused} wrong ends of recorded histories refused");
    tally.assert_came(&[
        "snapshot",
        "compared put, stale",
        "restore",
        "switch",
        "delete branch",
        "merge",
        "merge, step ahead",
        "merge, conflicts",
        "fork",
        "keep",
        "stale head",
    ]);
    assert!(refused > 0 && moves > 0, "{refused} refused, {moves} moves");
}

/// What a process of lanes is told.
#[derive(Serialize, Deserialize)]
struct Told {
    socket: PathBuf,
    plan: Plan,
    lanes: (u32, u32),
    record: PathBuf,
}

#[test]
fn agents_of_a_runtime_that_is_killed_are_linearizable_across_processes() {
    let mut tally = Tally::default();
    for seed in seeds(KILLED_ROUNDS) {
        let dir = common::memory_dir();
        let agents: Vec<String> = (0..2).map(|no| format!("a{no}")).collect();
        let mut random = Random(seed * 2 + 1);
        let lines = format!("shards = {SHARDS}\nsegment_bytes = \"4MiB\"\nmemory_max = \"96MiB\"");
        let (mut records, mut deaths) = (Vec::new(), Vec::new());
        for life in 0..KILLS {
            let served = Served::start(dir.path(), &lines);
            let plan = Plan {
                seed: seed << 8 | u64::from(life),
                agents: agents.clone(),
                lanes_per_agent: 4,
                first_lane: life * 8,
                operations_per_lane: 1_000_000,
                remove: false,
                dies: true,
            };
            let children = spawn_lanes(dir.path(), &served, &plan);
            std::thread::sleep(Duration::from_millis(150 + random.below(150)));
            served.kill();
            deaths.push(Death {
                at: round::dead_now(),
                lanes_end: plan.first_lane + 8,
            });
            let ended = children
                .into_iter()
                .map(|(child, record)| record_of(child, &record));
            records.extend(ended.flatten());
        }
        let served = Served::start(dir.path(), &lines);
        tally.recorded(&records);
        let histories = round::histories(&served.session(), &agents, records, &deaths);
        for (agent, history) in agents.iter().zip(&histories) {
            tally.check(seed, agent, history);
        }
        served.stop();
    }
    tally.print("killed runtimes");
    tally.assert_came(&["crash", "restore", "switch", "merge", "fork", "snapshot"]);
}

/// Processes with every other lane of each agent.
fn spawn_lanes(dir: &Path, served: &Served, plan: &Plan) -> Vec<(Child, PathBuf)> {
    let spawn = |no: u32| {
        let record = dir.join(format!("record{}", plan.first_lane + no));
        let told = Told {
            socket: served.socket(),
            plan: plan.clone(),
            lanes: (no, PROCESSES),
            record: record.clone(),
        };
        let file = dir.join(format!("told{}", plan.first_lane + no));
        std::fs::write(&file, serde_json::to_vec(&told).unwrap()).unwrap();
        let child = common::spawn_role("lanes_in_a_process_of_their_own", &file);
        (child, record)
    };
    (0..PROCESSES).map(spawn).collect()
}

fn record_of(mut child: Child, record: &Path) -> Vec<Record> {
    assert!(child.wait().unwrap().success());
    postcard::from_bytes(&std::fs::read(record).unwrap()).unwrap()
}

/// Not a test: what a child does, see [`spawn_lanes`].
#[test]
fn lanes_in_a_process_of_their_own() {
    let Some(file) = common::role() else {
        return;
    };
    let told: Told = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let all = told.plan.lanes_per_agent * told.plan.agents.len() as u32;
    let mine = (0..all).filter(|no| no % told.lanes.1 == told.lanes.0);
    let mine: Vec<u32> = mine.map(|no| told.plan.first_lane + no).collect();
    let records = match Session::connect(&told.socket) {
        Ok(session) => round::run(&session, &told.plan, &mine),
        Err(error) if workload::is_death(&error) => Vec::new(),
        Err(error) => panic!("{error}"),
    };
    std::fs::write(&told.record, postcard::to_allocvec(&records).unwrap()).unwrap();
}
