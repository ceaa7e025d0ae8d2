//! What goes wrong around a runtime while it serves: descriptors, memory and devices that give out, a clock that
//! jumps, agents that die by the hundred, segments that are damaged under it. Each keeps its promise.
//!
//! What needs root, a loop device or a memory controller says in a line that it was skipped.

#[path = "environment/damaged_segments.rs"]
mod damaged_segments;
#[path = "environment/dead_device.rs"]
mod dead_device;
#[path = "environment/deaths.rs"]
mod deaths;
#[path = "environment/descriptors.rs"]
mod descriptors;
#[path = "power_cuts/device.rs"]
mod device;
#[path = "environment/failing_calls.rs"]
mod failing_calls;
#[path = "environment/memory_cap.rs"]
mod memory_cap;
#[path = "environment/shim.rs"]
mod shim;
#[path = "environment/wall_clock.rs"]
mod wall_clock;

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Random, value_of};
use helios::client::{ClientError, Lane};

/// What an agent wrote, and was told is there.
type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Puts values of 20 KB until there are so many more, or one is refused.
fn put_some(
    lane: &mut Lane,
    random: &mut Random,
    model: &mut Model,
    count: usize,
) -> Option<ClientError> {
    for _ in 0..count {
        let (key, value) = (random.next().to_le_bytes(), random.bytes(20_000));
        match lane.put(&key, &value) {
            Ok(_) => drop(model.insert(key.to_vec(), value)),
            Err(error) => return Some(error),
        }
    }
    None
}

fn check(lane: &mut Lane, model: &Model) {
    for (key, value) in model {
        assert!(value_of(lane, key).unwrap().as_ref() == Some(value));
    }
}

/// Has the kernel forget what segments hold, so that reads of it need the device, and a descriptor.
fn forget(data: &Path) -> usize {
    let files = std::fs::read_dir(data.join("shard-000")).unwrap();
    let segments = files.filter_map(|file| File::open(file.ok()?.path()).ok());
    let forgotten = segments.map(|segment| {
        segment.sync_all().unwrap();
        rustix::fs::fadvise(&segment, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    });
    forgotten.count()
}

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
