//! What goes wrong around a runtime while it serves: descriptors, memory and devices that give out, a clock that
//! jumps, agents that die by the hundred, segments that are damaged under it. Each keeps its promise.
//!
//! What needs root, a loop device or a memory controller says in a line that it was skipped.

#[path = "environment/descriptors.rs"]
mod descriptors;

mod common;

use std::time::{Duration, Instant};

/// Ticks of processor time that a process, or one of its threads by name, has used.
fn cpu_ticks(pid: u32, thread: Option<&str>) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let used = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_whitespace().skip(11);
        let mut field = || fields.next()?.parse::<u64>().ok();
        let ticks = field()? + field()?;
        thread.is_none_or(|wanted| name == wanted).then_some(ticks)
    });
    used.sum()
}

/// The part of one core that a thread of a process takes over some time.
fn busy_share(pid: u32, thread: &str, time: Duration) -> f64 {
    let (start, before) = (Instant::now(), cpu_ticks(pid, Some(thread)));
    std::thread::sleep(time);
    let ticks = cpu_ticks(pid, Some(thread)) - before;
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64 / start.elapsed().as_secs_f64()
}
