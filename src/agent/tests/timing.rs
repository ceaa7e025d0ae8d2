//! How long a round trip takes; run by hand, printed, never judged.
//!
//! Floor 1, room `agent`. `cargo test --release --lib agent::tests::timing -- --ignored --nocapture`

use std::hint::{black_box, spin_loop};
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::*;

const ROUNDS: u64 = 100_000;
const PART: u64 = 100;

/// One word that two cores hand to each other, on a line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

fn pin(cores: &[core_affinity::CoreId], index: usize) {
    if let Some(core) = cores.get(index) {
        core_affinity::set_for_current(*core);
    }
}

/// The middle and the best of parts of [`PART`] rounds, in ns per round.
fn measure(mut round: impl FnMut(u64)) -> (f64, f64) {
    let mut parts = Vec::new();
    for part in 0..ROUNDS / PART {
        let start = Instant::now();
        for index in 0..PART {
            round(part * PART + index);
        }
        parts.push(start.elapsed().as_nanos() as f64 / PART as f64);
    }
    parts.sort_by(f64::total_cmp);
    (parts[parts.len() / 2], parts[0])
}

fn bare_line(cores: &[core_affinity::CoreId]) -> (f64, f64) {
    let (ping, pong) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(cores, 0);
            for round in 1..=ROUNDS {
                while ping.0.load(Ordering::Acquire) != round {
                    spin_loop();
                }
                pong.0.store(round, Ordering::Release);
            }
        });
        measure(|round| {
            ping.0.store(round + 1, Ordering::Release);
            while pong.0.load(Ordering::Acquire) != round + 1 {
                spin_loop();
            }
        })
    })
}

/// A round trip over a lane whose shard polls it; `bytes` each way.
fn lane(cores: &[core_affinity::CoreId], bytes: u32, depth: u64) -> (f64, f64) {
    let Both {
        mut client,
        bells,
        mut server,
        ..
    } = both(LaneSizes::DEFAULT, 0);
    server.set_attention(Attention::Polled);
    let data = vec![7; bytes as usize];
    let mut back = vec![0; bytes as usize];
    let mut submission = Submission::new(Op::MultiGet, 0);
    let len = bytes.max(1);
    submission.value = Extent { offset: 0, len };
    submission.reply = Extent { offset: 0, len };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(cores, 0);
            let mut private = vec![0; bytes as usize];
            let mut done = 0;
            while done < ROUNDS * depth {
                let before = done;
                while let Some(taken) = server.take().unwrap() {
                    server.copy_in(taken.value, &mut private);
                    server.write_reply(taken.reply, 0, &private);
                    server.complete(&Completion::new(taken.user_data, Status::Ok));
                    done += 1;
                }
                if done == before {
                    spin_loop();
                } else {
                    let _ = server.wake_if_waiting();
                }
            }
        });
        measure(|round| {
            for _ in 0..depth {
                submission.user_data = round;
                client.write_input(submission.value, &data);
                client.submit(&submission).unwrap();
            }
            let _ = client.notify(&bells);
            for _ in 0..depth {
                while client.poll_completion().unwrap().is_none() {
                    spin_loop();
                }
                client.read_output(submission.reply, &mut back);
            }
            black_box(&back);
        })
    })
}

#[test]
#[ignore = "a timing, run by hand"]
fn round_trips() {
    // The list is this thread's own mask: asked before it is pinned, handed to the others.
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    pin(&cores, 1);
    println!(
        "{} cores; ns per round trip: middle (best) of parts of {PART}",
        cores.len()
    );
    let (middle, best) = bare_line(&cores);
    println!("bare cache lines, one each way: {middle:.0} ({best:.0})");
    for bytes in [0, 64, 1024, 4096] {
        let (middle, best) = lane(&cores, bytes, 1);
        println!("lane, {bytes} B each way: {middle:.0} ({best:.0})");
    }
    let (middle, best) = lane(&cores, 0, 32);
    println!(
        "lane, 32 deep, per operation: {:.0} ({:.0})",
        middle / 32.0,
        best / 32.0
    );
}
