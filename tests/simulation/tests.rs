//! Runs of the simulator: regression seeds, some more, many by script, and lies that have to be found.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::faults::{KINDS, Table};
use super::run::{Options, Report, run};
use crate::segment::memory::Lie;

/// Steps of a run.
const STEPS: u32 = 2_000;

fn options(seed: u64) -> Options {
    Options {
        seed,
        steps: number("SIMULATE_STEPS").unwrap_or(STEPS.into()) as u32,
        trace: std::env::var_os("SIMULATE_TRACE").is_some(),
        lie: None,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a seed; says how to run it again where it fails.
fn check(options: Options) -> Report {
    match catch_unwind(AssertUnwindSafe(|| run(options))) {
        Ok(report) => report,
        Err(panic) => {
            let seed = options.seed;
            println!("seed {seed} fails; again: scripts/simulate --seed {seed} --trace");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Seeds that failed once: they run always.
fn regressions() -> Vec<u64> {
    let lines = include_str!("seeds.txt").lines();
    let seeds = lines.filter_map(|line| line.split('#').next()?.trim().parse().ok());
    seeds.collect()
}

#[test]
fn seeds_that_failed_once_go_well() {
    for seed in regressions() {
        check(options(seed));
    }
}

#[test]
fn some_seeds_go_well() {
    for seed in 1..=6 {
        check(options(seed));
    }
}

#[test]
fn a_seed_makes_the_same_run_each_time() {
    for seed in 1..=3 {
        let hashes = [(); 2].map(|()| check(options(seed)).hash);
        assert_eq!(hashes[0], hashes[1], "seed {seed}");
    }
}

/// As long as `SIMULATE_MINUTES` or as many as `SIMULATE_SEEDS` say, or `SIMULATE_SEED` alone.
#[test]
#[ignore = "runs for minutes: scripts/simulate"]
fn many_seeds_go_well() {
    if let Some(seed) = number("SIMULATE_SEED") {
        let report = check(options(seed));
        println!("seed {seed}: {report:?}");
        return;
    }
    let first = number("SIMULATE_FIRST").unwrap_or(1000);
    let seeds = number("SIMULATE_SEEDS").unwrap_or(u64::MAX);
    let minutes = number("SIMULATE_MINUTES").unwrap_or(1);
    let keeps_going = std::env::var_os("SIMULATE_KEEP_GOING").is_some();
    let started = Instant::now();
    let (mut table, mut virtual_ns, mut bad) = (Table::default(), 0, Vec::new());
    for seed in first..first.saturating_add(seeds) {
        if started.elapsed().as_secs() >= minutes * 60 {
            break;
        }
        table.runs += 1;
        match catch_unwind(AssertUnwindSafe(|| check(options(seed)))) {
            Ok(report) => {
                table.add(&report.table);
                virtual_ns += report.virtual_ns;
            }
            Err(panic) if !keeps_going => std::panic::resume_unwind(panic),
            Err(_) => bad.push(seed),
        }
    }
    let hours = virtual_ns as f64 / 3.6e12;
    let cpu_hours = started.elapsed().as_secs_f64() / 3600.0;
    println!("runs {}", table.runs);
    println!(
        "crashes {}, of them in recovery {}",
        table.crashes, table.in_recovery
    );
    println!(
        "virtual hours {hours:.1}, {:.0} in an hour of CPU",
        hours / cpu_hours
    );
    for kind in KINDS {
        println!(
            "{:>10}  {kind}",
            table.fired.get(kind).copied().unwrap_or(0)
        );
    }
    assert!(bad.is_empty(), "seeds that fail: {bad:?}");
    let silent: Vec<_> = KINDS
        .iter()
        .filter(|kind| !table.fired.contains_key(*kind))
        .collect();
    assert!(
        silent.is_empty() || table.runs < 50,
        "never happened: {silent:?}"
    );
    let share = table.in_recovery * 10 >= table.crashes * 3;
    assert!(share || table.runs < 50, "too few crashes in recovery");
}

/// A disk that lies is found out within so many seeds.
fn is_found(lie: Lie) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (1..=40).find(|&seed| {
        let options = Options {
            lie: Some(lie),
            ..options(seed)
        };
        let goes_well = |options| catch_unwind(AssertUnwindSafe(|| run(options))).is_ok();
        // The lie is what fails, and nothing else.
        !goes_well(options)
            && goes_well(Options {
                lie: None,
                ..options
            })
    });
    std::panic::set_hook(hook);
    println!("{lie:?}: found by seed {found:?}");
    assert!(found.is_some(), "{lie:?} is not found");
}

#[test]
fn a_planted_sync_that_is_none_is_found() {
    is_found(Lie::Sync);
}

#[test]
fn a_planted_acknowledgement_before_the_write_is_found() {
    is_found(Lie::LateWrite);
}

#[test]
fn a_planted_half_write_is_found() {
    is_found(Lie::HalfWrite);
}
