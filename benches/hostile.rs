//! What does a process that does its worst cost those beside it?
//!
//! 8 honest agents, each on a thread of its own, write and read and check every byte: first alone, then beside one
//! other process that scribbles over everything it may write, at full speed, for a minute. That takes cores from
//! them like any busy process; so a third set of rounds is beside one that only counts.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use helios::client::Lane;

mod common;
#[path = "../tests/common/scribble.rs"]
mod scribble;

const AGENTS: usize = 8;
const KEYS: u64 = 64;
const VALUE_BYTES: usize = 256;
/// What this program does as a child: scribble over what the socket gives, or only keep cores busy.
const ROLE: &str = "HELIOS_HOSTILE_ROLE";

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return child(&role);
    }
    let Some(mut bench) = common::Bench::start(
        "hostile",
        "latencies of 8 honest agents alone, beside a busy process, and beside one that scribbles",
    ) else {
        return;
    };
    let served = common::Served::start(&bench, "");
    let names = (0..AGENTS).map(|no| format!("honest-{no}"));
    let mut lanes: Vec<Lane> = names.map(|name| served.lane(&name)).collect();
    let seconds = Duration::from_millis(bench.pick(20_000, 100));
    let alone = honest(&mut bench, &mut lanes, seconds);
    bench.latencies("put or get, 8 agents alone", &alone);
    let busy = beside("count", &served.socket());
    let counted = honest(&mut bench, &mut lanes, seconds);
    end(busy);
    bench.latencies("beside a process that counts", &counted);
    bench.ratio(&counted, &alone, "alone");
    let before = lanes[0].stats().expect("stats");
    let rogue = beside("scribble", &served.socket());
    let scribbled = honest(&mut bench, &mut lanes, 3 * seconds);
    end(rogue);
    bench.latencies("beside a process that scribbles", &scribbled);
    bench.ratio(&scribbled, &alone, "alone");
    let since = lanes[0].stats().expect("stats").since(&before);
    bench.value(
        "what it did meanwhile",
        format!("{} sessions were ended", since.malformed),
    );
    drop(lanes);
    served.stop();
    bench.finish();
}

fn beside(role: &str, socket: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .env(ROLE, format!("{role}:{}", socket.display()))
        .stdout(Stdio::null())
        .spawn()
        .expect("a process beside")
}

fn end(mut child: Child) {
    child.kill().expect("a child that runs");
    child.wait().expect("its end");
}

fn child(role: &str) {
    match role.split_once(':') {
        Some(("scribble", socket)) => scribble::scribble(Path::new(socket)),
        // As many threads as the other has.
        _ => std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut count = 0_u64;
                    loop {
                        count = std::hint::black_box(count.wrapping_add(1));
                    }
                });
            }
        }),
    }
}

/// Every agent puts and gets in turn for so long; all they read is what they wrote.
fn honest(bench: &mut common::Bench, lanes: &mut [Lane], time: Duration) -> Vec<Histogram<u64>> {
    let start = Instant::now();
    let histograms: Vec<Histogram<u64>> = std::thread::scope(|scope| {
        let agents: Vec<_> = lanes
            .iter_mut()
            .enumerate()
            .map(|(no, lane)| scope.spawn(move || one(lane, no as u64, start, time)))
            .collect();
        let done = agents
            .into_iter()
            .map(|agent| agent.join().expect("exact bytes"));
        done.collect()
    });
    let mut all = helios::metrics::latency_histogram();
    for histogram in &histograms {
        all.add(histogram).expect("the same bounds");
    }
    bench.check(&all.len().to_le_bytes());
    vec![all]
}

fn one(lane: &mut Lane, no: u64, start: Instant, time: Duration) -> Histogram<u64> {
    let mut histogram = helios::metrics::latency_histogram();
    let mut value = vec![0; VALUE_BYTES];
    let mut found = Vec::with_capacity(VALUE_BYTES);
    let mut round = 0;
    while start.elapsed() < time {
        let key = common::key(round % KEYS);
        common::fill(&mut value, no, round);
        let (written, ns) = common::timed(|| lane.put(&key, &value));
        written.expect("put");
        histogram.saturating_record(ns);
        let (read, ns) = common::timed(|| lane.get(&key, &mut found));
        assert!(
            read.expect("get").is_some() && found == value,
            "agent {no}, round {round}"
        );
        histogram.saturating_record(ns);
        round += 1;
    }
    histogram
}
