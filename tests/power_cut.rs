//! `helios serve` on a file system whose power is cut under load: whatever was acknowledged as power-safe is
//! there, and the rest is gone as a suffix, with nothing in between.
//!
//! Needs root and a loop device; skipped with a line elsewhere. `HELIOS_POWER_CUTS` says how many cuts there are on
//! each file system (`scripts/power-cuts --cuts N`), `HELIOS_SEED` repeats the choices of a run.

#[path = "power_cuts/device.rs"]
mod device;
#[path = "crashes/ledger.rs"]
mod ledger;
#[path = "crashes/program.rs"]
mod program;

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::Random;
use device::{Kind, Machine};
use ledger::{Against, CUT, Worker};
use program::{Program, attach};

/// Cuts on each file system where nothing else is asked for.
const CUTS: u64 = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Compares all that the workers own with what is there.
fn check(program: &mut Program, workers: &mut [Worker], seed: u64) {
    let session = program.session().expect("nothing kills it");
    for worker in workers {
        let mut lane = attach(&session, worker.agent()).expect("it serves");
        if let Err(error) = worker.check(&mut lane) {
            panic!(
                "HELIOS_SEED={seed}, {}: {error}\n{}",
                worker.agent(),
                program.log()
            );
        }
    }
}

fn cut_in_a_row(kind: Kind) {
    let cuts = number("HELIOS_POWER_CUTS").unwrap_or(CUTS);
    let Some(mut machine) = Machine::new(kind) else {
        return;
    };
    let seed = number("HELIOS_SEED").unwrap_or(0xc07);
    println!("HELIOS_SEED={seed}");
    let mut random = Random(seed | 1);
    // Socket and log survive the cut: they are not what is tested.
    let place = common::memory_dir();
    let data = machine.path().join("data");
    let workers = [("one", 'a'), ("one", 'b'), ("two", 'a'), ("three", 'a')];
    let mut workers =
        workers.map(|(agent, prefix)| Worker::new(agent, prefix, Against::Cut, random.next()));
    let (mut journaled, mut in_start) = (0, 0);
    for cut in 0..cuts {
        let io = ["threads", "auto"][random.below(2) as usize];
        let mut program = Program::start(place.path(), &data, io, None);
        if cut > 0 && random.below(4) == 0 {
            // In what the last cut left to be repaired, perhaps before it serves.
            std::thread::sleep(Duration::from_millis(random.below(50)));
            machine.cut();
            let _ = program.end();
            machine.restart();
            in_start += 1;
            program = Program::start(place.path(), &data, io, None);
        }
        check(&mut program, &mut workers, seed);
        let session = program.session().expect("nothing kills it");
        let pause = Duration::from_micros(random.below(250_000));
        let chance = random.next();
        let clock = AtomicU64::new(1);
        let now = || clock.load(Ordering::SeqCst);
        program::load(&session, &mut workers, &now, chance, || {
            std::thread::sleep(pause);
            clock.store(CUT, Ordering::SeqCst);
            machine.cut();
            std::thread::sleep(Duration::from_millis(5));
            // A sync that fails may have ended it already, in order.
            let _ = program.end();
        });
        machine.restart();
        journaled += workers.iter().map(Worker::journaled).sum::<usize>();
    }
    let mut program = Program::start(place.path(), &data, "auto", None);
    check(&mut program, &mut workers, seed);
    program.terminate();
    assert!(program.wait().success(), "{}", program.log());
    let acknowledged: u64 = workers.iter().map(|it| it.acknowledged).sum();
    println!(
        "{kind:?}: {cuts} cuts under load, {in_start} more in a start; {acknowledged} operations acknowledged, \
         {journaled} states that a cut might have left"
    );
}

#[test]
fn what_was_acknowledged_as_power_safe_survives_cuts_on_ext4() {
    cut_in_a_row(Kind::Ext4);
}

#[test]
fn what_was_acknowledged_as_power_safe_survives_cuts_on_xfs() {
    cut_in_a_row(Kind::Xfs);
}
