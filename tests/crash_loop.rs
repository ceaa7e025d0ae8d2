//! `helios serve` under load, killed at random moments and at named places, some hundred times; each restart is
//! compared with the ledger of what was acknowledged.
//!
//! `HELIOS_KILLS` says how many kills (`scripts/crash-loop --kills N`), `HELIOS_SEED` repeats the choices of a run:
//! what threads do with them is the machine's.

#[path = "crashes/ledger.rs"]
mod ledger;
#[path = "crashes/program.rs"]
mod program;

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::Random;
use ledger::{Against, Worker};
use program::{Program, attach};

/// Kills where nothing else is asked for.
const KILLS: u64 = 500;
/// From so many on, every place has to have fired.
const KILLS_EVERYWHERE: u64 = 500;
/// More kills, at most, for places where nothing died until then: each loop tries those alone.
const KILLS_AGAIN: u64 = 200;
/// Rounds at a time, each with a data directory of its own.
const LOOPS: u64 = 2;
/// How long a round waits for a place that may not be reached.
const ROUND: Duration = Duration::from_millis(250);

/// Every place of `src/crash.rs`, and how often a round comes by, at most, before it may die there.
const POINTS: [(&str, u64); 45] = [
    ("io.write", 200),
    ("io.written", 200),
    ("turn.posted", 300),
    ("commit.appended", 40),
    ("commit.flushed", 40),
    ("io.create", 3),
    ("io.named", 3),
    ("io.created", 3),
    ("io.sync", 40),
    ("io.synced", 40),
    ("io.seal", 2),
    ("io.footer", 2),
    ("io.sealed", 2),
    ("io.remove", 2),
    ("io.removed", 2),
    ("recover.read", 2),
    ("recover.tail", 2),
    ("recover.marked", 2),
    ("recover.removed", 1),
    ("recover.aside", 2),
    ("recover.footer", 2),
    ("recover.sealed", 2),
    ("collect.mark", 4),
    ("collect.sweep", 4),
    ("collect.choose", 4),
    ("collect.restate", 2),
    ("collect.move", 2),
    ("collect.settle", 2),
    ("collect.say", 2),
    ("collect.drop", 2),
    ("collect.remove", 2),
    ("collect.removing", 2),
    ("collect.forget", 2),
    ("move.begun", 6),
    ("move.copied", 6),
    ("move.still", 6),
    ("move.named", 6),
    ("move.landing", 6),
    ("move.landed", 6),
    ("move.gone", 6),
    ("move.over", 6),
    ("move.taken", 6),
    ("end.begun", 1),
    ("end.synced", 1),
    ("end.done", 1),
];

/// What all rounds together came to.
#[derive(Default)]
struct Tally {
    kills: AtomicU64,
    acknowledged: AtomicU64,
    /// Starts that died before they served.
    in_recovery: AtomicU64,
    fired: Mutex<BTreeMap<&'static str, u64>>,
    next_point: AtomicU64,
}

impl Tally {
    /// Where the next kill is to be, if at a named place; `None`: there were enough.
    fn next(&self, kills: u64, random: &mut Random) -> Option<Option<(&'static str, u64)>> {
        let before = self.kills.fetch_add(1, Ordering::Relaxed);
        let at = self.next_point.fetch_add(1, Ordering::Relaxed) as usize;
        if before < kills {
            let named = cfg!(debug_assertions) && random.below(4) > 0;
            return Some(named.then(|| POINTS[at % POINTS.len()]));
        }
        let never = self.never(kills);
        let again = before < kills + KILLS_AGAIN && !never.is_empty();
        // Early, as it seems to be a place that a round seldom comes to.
        again.then(|| Some((never[at % never.len()], 1)))
    }

    /// Places that should have fired, and did not.
    fn never(&self, kills: u64) -> Vec<&'static str> {
        if !cfg!(debug_assertions) || kills < KILLS_EVERYWHERE {
            return Vec::new();
        }
        let fired = self.fired.lock().unwrap();
        let names = POINTS.iter().map(|(name, _)| *name);
        names.filter(|name| !fired.contains_key(name)).collect()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn clock() -> u64 {
    0
}

/// Compares all that the workers own; whether the runtime lived that long.
fn check(program: &mut Program, workers: &mut [Worker]) -> bool {
    let Some(session) = program.session() else {
        return false;
    };
    for worker in workers {
        // Agents are made by whoever attaches: in a check that dies, too.
        let Some(mut lane) = attach(&session, worker.agent()) else {
            return false;
        };
        match worker.check(&mut lane) {
            Ok(()) => {}
            Err(error) if ledger::is_gone(&error) => return false,
            Err(error) => panic!("{}: {error}\n{}", worker.agent(), program.log()),
        }
    }
    true
}

/// Kills one runtime after another on one data directory.
fn kill_in_a_row(dir: &Path, kills: u64, seed: u64, tally: &Tally) {
    let mut random = Random(seed | 1);
    let data = dir.join("data");
    let workers = [("one", 'a'), ("one", 'b'), ("two", 'a'), ("three", 'a')];
    let mut workers =
        workers.map(|(agent, prefix)| Worker::new(agent, prefix, Against::Kill, random.next()));
    while let Some(point) = tally.next(kills, &mut random) {
        let io = ["threads", "auto"][random.below(2) as usize];
        let at = point.map(|(name, most)| format!("{name}:{}", 1 + random.below(most)));
        // The comparison is not what is to be killed, but for the places in a start.
        let in_start = point.is_some_and(|(name, _)| name.starts_with("recover."));
        if in_start {
            let mut program = Program::start(dir, &data, io, at.as_deref());
            if program.session().is_none() {
                let (name, _) = point.expect("a start was to die");
                *tally.fired.lock().unwrap().entry(name).or_default() += 1;
                tally.in_recovery.fetch_add(1, Ordering::Relaxed);
                // And perhaps once more, in what the first left.
                continue;
            }
            program.kill();
        }
        let mut program = Program::start(dir, &data, io, at.as_deref().filter(|_| !in_start));
        let Some(session) = program.session() else {
            // A busy place, passed in the start already.
            let (name, _) = point.expect("nothing else kills it");
            *tally.fired.lock().unwrap().entry(name).or_default() += 1;
            continue;
        };
        drop(session);
        round(&mut program, &mut workers, point, &mut random, tally);
    }
    let mut program = Program::start(dir, &data, "auto", None);
    assert!(check(&mut program, &mut workers));
    program.terminate();
    assert!(program.wait().success(), "{}", program.log());
    let mut program = Program::start(dir, &data, "auto", None);
    assert!(check(&mut program, &mut workers));
    let acknowledged = workers.iter().map(|it| it.acknowledged).sum();
    tally
        .acknowledged
        .fetch_add(acknowledged, Ordering::Relaxed);
}

/// Loads a runtime that is there until it dies by itself or is killed.
fn round(
    program: &mut Program,
    workers: &mut [Worker],
    point: Option<(&'static str, u64)>,
    random: &mut Random,
    tally: &Tally,
) {
    if let (true, Some(session)) = (check(program, workers), program.session()) {
        let pause = Duration::from_micros(random.below(200_000));
        let at_end = point.is_some_and(|(name, _)| name.starts_with("end."));
        let seed = random.next();
        program::load(&session, workers, &clock, seed, || {
            if point.is_none() || at_end {
                std::thread::sleep(pause);
            }
            if at_end {
                program.terminate();
            }
            let start = Instant::now();
            while point.is_some() && start.elapsed() < ROUND && !program.has_ended() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !program.has_ended() {
                program.kill();
            } else if let Some((name, _)) = point {
                *tally.fired.lock().unwrap().entry(name).or_default() += 1;
            }
        });
    } else if let Some((name, _)) = point {
        *tally.fired.lock().unwrap().entry(name).or_default() += 1;
    }
}

#[test]
fn every_acknowledged_operation_survives_kills_anywhere() {
    let kills = number("HELIOS_KILLS").unwrap_or(KILLS);
    let seed = number("HELIOS_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        since.as_nanos() as u64
    });
    println!("HELIOS_SEED={seed}");
    let tally = Tally::default();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for no in 0..LOOPS {
            let tally = &tally;
            scope.spawn(move || {
                let dir = common::KeptIfFailed(Some(common::memory_dir()));
                let seed = seed.wrapping_add(no * 0x9e37_79b9);
                kill_in_a_row(dir.path(), kills, seed, tally);
            });
        }
    });
    let never = tally.never(kills);
    let fired = tally.fired.into_inner().unwrap();
    println!(
        "{kills} kills in {:.0} s: {} at named places, {} inside recovery; {} operations acknowledged, none lost",
        start.elapsed().as_secs_f64(),
        fired.values().sum::<u64>(),
        tally.in_recovery.into_inner(),
        tally.acknowledged.into_inner(),
    );
    println!("{fired:?}");
    assert!(never.is_empty(), "nothing ever died at {never:?}");
}

/// The places that the sources name.
fn named(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            named(&path, names);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let called = text.match_indices("crash::point(\"").map(|(at, _)| at + 14);
        let phases = text.match_indices("=> \"collect.").map(|(at, _)| at + 4);
        for from in called.chain(phases) {
            let name = text[from..].split('"').next().unwrap_or_default();
            names.insert(name.to_owned());
        }
    }
}

#[test]
fn every_place_that_the_sources_name_is_tried() {
    let mut names = BTreeSet::new();
    named(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut names,
    );
    // A collection at rest is no phase that it comes to.
    names.remove("collect.idle");
    let tried: BTreeSet<String> = POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names, tried);
}
