//! Agents that are killed by the hundred, each in the middle of something: whatever they held comes back, to the
//! last descriptor, mapping, lane and object, in every round; honest ones see nothing of it.

use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{Random, Served, attach, memory_dir, role, spawn_role, value_of, wait_for};
use helios::client::{ClientError, Lane, NewCheckpoint, NewSuperposition, PutOptions, Revision};
use helios::config::Durability;
use helios::metrics::Stats;

const ROUNDS: usize = 5;
/// Processes of a round, and how many of them live at a time.
const DEATHS: usize = 60;
const AT_ONCE: usize = 12;
const LANES: u64 = 6;
const AGENTS: u64 = 16;
const HONEST: u64 = 4;

fn doomed(no: u64) -> String {
    format!("doomed-{}", no % AGENTS)
}

/// One step of what those do who are going to be killed.
fn deed(lane: &mut Lane, random: &mut Random) -> Result<(), ClientError> {
    let key = [random.below(20) as u8];
    match random.below(9) {
        0 => lane.put(&key, &random.bytes(300_000)).map(drop),
        1 => lane.checkpoint(&NewCheckpoint::default()).map(drop),
        2 => {
            let fork = lane.fork(Revision::Head)?.no;
            lane.on(fork).put(&key, b"in a fork").map(drop)
        }
        3 => lane
            .superpose(&NewSuperposition {
                name: "tries",
                ..NewSuperposition::default()
            })
            .map(drop),
        4 => lane.sync(Durability::Power).map(drop),
        5 => lane.scan(b"", b"", 0).map(drop),
        6 => value_of(lane, &key).map(drop),
        _ => {
            for _ in 0..20 {
                lane.submit_put(&key, &random.bytes(500), PutOptions::default())?;
            }
            Ok(())
        }
    }
}

#[test]
fn role_doomed() {
    let Some(socket) = role() else { return };
    let mut random = Random(u64::from(std::process::id()) | 1);
    let session = helios::client::Session::connect(&socket).unwrap();
    let first = random.below(AGENTS);
    let mut lanes: Vec<Lane> = (0..LANES)
        .map(|no| attach(&session, &doomed(first + no)))
        .collect();
    loop {
        for lane in &mut lanes {
            // What others of its kind left in the way is an error, and no end.
            let _ = deed(lane, &mut random);
            let mut reply = Vec::new();
            while let Ok(Some(_)) = lane.wait(&mut reply) {}
        }
    }
}

/// Starts and kills them, a dozen at a time, each after a while of its own.
fn kill_many(served: &Served, random: &mut Random) {
    let mut alive: Vec<Child> = Vec::new();
    for _ in 0..DEATHS {
        alive.push(spawn_role("deaths::role_doomed", &served.socket()));
        // Some die before they said a word, some while they attach, most at work.
        std::thread::sleep(Duration::from_millis(random.below(15)));
        if alive.len() == AT_ONCE {
            let mut victim = alive.swap_remove(random.below(AT_ONCE as u64) as usize);
            victim.kill().unwrap();
            victim.wait().unwrap();
        }
    }
    for mut victim in alive {
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
}

/// An honest agent: writes, reads back, and counts.
fn honest(mut lane: Lane, no: u64, stop: &AtomicBool, done: &AtomicU64) {
    for round in 0_u64.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let value = |round: u64| Random(round * HONEST + no + 1).bytes(200 + 10 * no as usize);
        lane.put(&[(round % 20) as u8], &value(round)).unwrap();
        for back in [0, 1, 19].into_iter().filter(|back| *back <= round) {
            let found = value_of(&mut lane, &[((round - back) % 20) as u8])
                .unwrap()
                .unwrap();
            assert!(found == value(round - back), "agent {no}, round {round}");
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is there once the agents of those who died are gone, too: sums that have to be the same after each round.
fn left(served: &Served, watcher: &mut Lane) -> [u64; 7] {
    let session = served.session();
    wait_for("their lanes are closed", || {
        // Each shard refreshes its own part.
        watcher.sync(Durability::Power).unwrap();
        (watcher.stats().unwrap().lanes == HONEST + 1).then_some(())
    });
    for no in 0..AGENTS {
        session.terminate_agent(&doomed(no), true).unwrap();
    }
    session.collect().unwrap();
    drop(session);
    wait_for("sums that stand still", || {
        let sums = |stats: Stats| {
            let Stats {
                agents,
                lanes,
                keys,
                objects,
                live_bytes,
                ..
            } = stats;
            [
                agents,
                lanes,
                keys,
                objects,
                live_bytes,
                served.fds() as u64,
                served.maps() as u64,
            ]
        };
        let before = sums(watcher.stats().unwrap());
        std::thread::sleep(Duration::from_millis(50));
        watcher.sync(Durability::Power).unwrap();
        let after = sums(watcher.stats().unwrap());
        (before == after).then_some(after)
    })
}

#[test]
fn hundreds_of_deaths_leave_what_the_first_round_left() {
    let dir = memory_dir();
    let lines = "shards = 2\nsegment_bytes = \"4MiB\"\nmemory_max = \"64MiB\"";
    let mut served = Served::start(dir.path(), lines);
    let session = served.session();
    let mut watcher = attach(&session, "watcher");
    let mut random = Random(0xdead);
    let mut first = None;
    for round in 0..ROUNDS {
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let lanes: Vec<Lane> = (0..HONEST)
            .map(|no| attach(&session, &format!("honest-{no}")))
            .collect();
        std::thread::scope(|scope| {
            let (stop, done) = (&stop, &done);
            let agents = (0..)
                .zip(lanes)
                .map(|(no, lane)| scope.spawn(move || honest(lane, no, stop, done)));
            let agents: Vec<_> = agents.collect();
            kill_many(&served, &mut random);
            stop.store(true, Ordering::Release);
            agents.into_iter().for_each(|agent| agent.join().unwrap());
        });
        assert!(done.load(Ordering::Relaxed) > 100);
        let _again: Vec<Lane> = (0..HONEST)
            .map(|no| attach(&session, &format!("honest-{no}")))
            .collect();
        let left = left(&served, &mut watcher);
        println!(
            "round {round}: {} honest rounds, {left:?} left",
            done.load(Ordering::Relaxed)
        );
        assert_eq!(left, *first.get_or_insert(left), "round {round}");
    }
    let malformed = watcher.stats().unwrap().malformed;
    assert_eq!(
        malformed,
        0,
        "whoever is killed breaks no rule\n{}",
        served.log()
    );
    served.assert_alive();
}
