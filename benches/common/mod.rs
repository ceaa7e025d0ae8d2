//! What the benches share: a runtime in its own process, pinning, rounds, tables.
//!
//! The bench process is the agent; the runtime is the `helios` program itself, served to it over
//! its socket, so every number crosses a process boundary as a user's would. Each measurement is
//! done in rounds, those of rivals in turn with it; a table shows the median round, so that one
//! disturbance of a shared machine costs one round and not the result.
//!
//! A bench measures under `cargo bench`; run in any other way, with `--small`, or under
//! `HELIOS_BENCH=small`, it does the same on a fraction of the data, in under two seconds, and
//! its timings mean nothing.

#![allow(dead_code, reason = "every bench uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use helios::client::{Attach, Lane, Session};
use helios::config::Config;
use helios::metrics::latency_histogram;
use helios::topology::{CoreId, Machine, Placement, pin_current_thread, resolve};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One run of one bench.
pub struct Bench {
    name: &'static str,
    /// Whether only the code is to be run, not a measurement made.
    pub small: bool,
    /// Where the runtime and the agents sit.
    pub placement: Placement,
    /// The cores that this process may use, before it was pinned.
    cores: CpuSet,
    rows: Vec<[String; 8]>,
    checksum: u64,
}

impl Bench {
    /// Reads the arguments, pins this thread to the agents' core and says where it runs. `None`:
    /// a test runner only asks for names, which were printed.
    pub fn start(name: &'static str, question: &str) -> Option<Self> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |flag: &str| args.iter().any(|arg| arg == flag);
        if has("--list") {
            if !has("--ignored") {
                println!("{name}: test");
            }
            return None;
        }
        let asked = std::env::var("HELIOS_BENCH").is_ok_and(|mode| mode == "small");
        let small = asked || has("--small") || !has("--bench");
        let machine = Machine::probe().expect("the machine is readable");
        let placement = resolve(Config::default(), &machine)
            .expect("the defaults fit every machine")
            .placement;
        let bench = Self {
            name,
            small,
            placement,
            cores: sched_getaffinity(None).expect("the mask of cores"),
            rows: Vec::new(),
            checksum: 0,
        };
        println!("# {name}: {question}");
        println!("{}", machine_line(&bench.placement));
        if small {
            println!("small form: the timings mean nothing");
        }
        bench.pin();
        Some(bench)
    }

    /// `full` where a measurement is made, `small` elsewhere.
    pub fn pick<T>(&self, full: T, small: T) -> T {
        if self.small { small } else { full }
    }

    /// Cores that this process may use, whatever this thread is pinned to.
    pub fn cores(&self) -> u32 {
        self.cores.count()
    }

    /// The core of the first shard, where it has its own.
    pub fn shard_core(&self) -> Option<CoreId> {
        self.placement.shards.first().and_then(|seat| seat.core)
    }

    /// The core that agents are pinned to: one without a shard if there is one.
    pub fn agent_core(&self) -> Option<CoreId> {
        self.placement.agents.first().copied()
    }

    /// Pins this thread to the agents' core.
    pub fn pin(&self) {
        if let Some(core) = self.agent_core()
            && !pin_current_thread(core)
        {
            println!("not pinned: core {} refuses", core.0);
        }
    }

    /// Adds bytes that were read to the checksum, so that reading them can't be left out.
    pub fn check(&mut self, bytes: &[u8]) {
        let word = bytes
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word));
        self.checksum = self.checksum.rotate_left(5) ^ word ^ bytes.len() as u64;
    }

    /// Adds a row of latencies, in nanoseconds: each percentile is that of the median round.
    pub fn latencies(&mut self, label: impl Into<String>, rounds: &[Histogram<u64>]) {
        let at = |quantile: f64| -> f64 {
            median(
                rounds
                    .iter()
                    .map(|round| round.value_at_quantile(quantile) as f64),
            )
        };
        let max = rounds.iter().map(Histogram::max).max().unwrap_or(0);
        let best = rounds
            .iter()
            .map(|round| round.value_at_quantile(0.95))
            .min()
            .unwrap_or(0);
        let count: u64 = rounds.iter().map(Histogram::len).sum();
        self.rows.push([
            label.into(),
            nanoseconds(at(0.5)),
            nanoseconds(at(0.95)),
            nanoseconds(at(0.99)),
            nanoseconds(max as f64),
            nanoseconds(best as f64),
            count.to_string(),
            String::new(),
        ]);
    }

    /// Adds a row that is no distribution.
    pub fn value(&mut self, label: impl Into<String>, value: impl Into<String>) {
        let mut row = <[String; 8]>::default();
        (row[0], row[7]) = (label.into(), value.into());
        self.rows.push(row);
    }

    /// Says how the last row compares: the ratio of the medians of two sets of rounds.
    pub fn ratio(&mut self, of: &[Histogram<u64>], to: &[Histogram<u64>], rival: &str) {
        let p50 = |rounds: &[Histogram<u64>]| {
            median(
                rounds
                    .iter()
                    .map(|round| round.value_at_quantile(0.5) as f64),
            )
        };
        let note = format!("{:.2} x {rival}", p50(of) / p50(to).max(1.0));
        if let Some(row) = self.rows.last_mut() {
            row[7] = note;
        }
    }

    /// Adds a remark to the last row.
    pub fn note(&mut self, note: impl Into<String>) {
        if let Some(row) = self.rows.last_mut() {
            row[7] = note.into();
        }
    }

    /// Prints the table.
    pub fn finish(self) {
        let head = [
            self.name, "p50", "p95", "p99", "max", "best p95", "samples", "result",
        ];
        println!("| {} |", head.join(" | "));
        println!("|{}", "---|".repeat(head.len()));
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
        println!("checksum {:016x}, load {}", self.checksum, load());
    }
}

/// Repeats `round` and gives the histogram of each.
pub fn rounds(count: usize, mut round: impl FnMut(&mut Histogram<u64>)) -> Vec<Histogram<u64>> {
    (0..count)
        .map(|_| {
            let mut histogram = latency_histogram();
            round(&mut histogram);
            histogram
        })
        .collect()
}

/// Nanoseconds that `work` takes, the reading of the clock included.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_nanos() as u64)
}

/// What reading the clock twice costs: the part of every single-operation timing that is not the
/// operation.
pub fn clock_ns() -> u64 {
    let mut histogram = latency_histogram();
    for _ in 0..10_000 {
        let ((), ns) = timed(|| ());
        histogram.saturating_record(ns);
    }
    histogram.value_at_quantile(0.5)
}

/// The median of some numbers; of none, 0.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A time in the unit that suits it.
pub fn nanoseconds(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

/// A number stream that is the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(mixed ^ mixed >> 31) * u128::from(bound)) >> 64) as u64
    }
}

/// The key of a number: 16 bytes.
pub fn key(no: u64) -> [u8; 16] {
    let mut key = *b"state/0000000000";
    for (at, digit) in key[6..].iter_mut().rev().scan(no, |rest, at| {
        let digit = *rest % 10;
        *rest /= 10;
        Some((at, digit))
    }) {
        *at = b'0' + digit as u8;
    }
    key
}

/// Fills `value` with bytes that no other `(stream, no)` has, so that nothing is deduplicated.
pub fn fill(value: &mut [u8], stream: u64, no: u64) {
    let mut numbers = Numbers(stream << 40 ^ no);
    for chunk in value.chunks_mut(8) {
        let word = numbers.below(u64::MAX).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// `helios serve` in its own process, over a fresh data directory.
pub struct Served {
    child: Child,
    dir: tempfile::TempDir,
    data: tempfile::TempDir,
}

impl Served {
    /// Starts it with these lines of configuration and waits until it listens.
    pub fn start(bench: &Bench, lines: &str) -> Self {
        // The socket's path has to be short, the data on a real disk; /tmp may be memory.
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a data directory");
        let config = dir.path().join("helios.toml");
        let text = format!(
            "data_dir = {:?}\nsocket = {:?}\n{lines}\n",
            data.path(),
            dir.path().join("s")
        );
        std::fs::write(&config, text).expect("writing a configuration");
        // A child inherits the mask of cores: this thread's pin is not for the runtime.
        let pinned = sched_getaffinity(None).expect("the mask of cores");
        sched_setaffinity(None, &bench.cores).expect("unpinning");
        let child = Command::new(env!("CARGO_BIN_EXE_helios"))
            .args(["serve", "--config"])
            .arg(&config)
            .env("HELIOS_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()
            .expect("starting helios serve");
        sched_setaffinity(None, &pinned).expect("pinning again");
        let served = Self { child, dir, data };
        let deadline = Instant::now() + Duration::from_secs(20);
        while Session::connect(served.socket()).is_err() {
            assert!(Instant::now() < deadline, "helios serve does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        served
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Where its segments lie.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// A session of this process.
    pub fn session(&self) -> Session {
        Session::connect(self.socket()).expect("connecting")
    }

    /// A lane to an agent.
    pub fn lane(&self, agent: &str) -> Lane {
        attach(&self.session(), agent)
    }

    /// Processor time used so far, in seconds, to a hundredth.
    pub fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(path).expect("the runtime lives");
        let after = text.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("a number of ticks");
        // The 14th and 15th field of the line; a tick is a hundredth on every Linux.
        (ticks(11) + ticks(12)) / 100.0
    }

    /// A line of its `/proc/PID/status`, in bytes.
    pub fn status_bytes(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).expect("the runtime lives");
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Stops it in order; it has to say that all went well.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalling");
        let status = self.child.wait().expect("waiting");
        assert!(status.success(), "helios serve ended with {status}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Where a bench failed before `stop`; a process that ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A lane to an agent, which is made where there is none.
pub fn attach(session: &Session, agent: &str) -> Lane {
    session.attach(agent, Attach::default()).expect("attaching")
}

/// Attaches `count` agents of this session.
pub fn attach_many(session: &Session, count: usize) -> Vec<Lane> {
    (0..count)
        .map(|no| attach(session, &format!("other-{no}")))
        .collect()
}

fn machine_line(placement: &Placement) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |line| {
            line.trim_start_matches([' ', '\t', ':'])
        });
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let name = |core: Option<CoreId>| core.map_or("any".to_owned(), |core| core.0.to_string());
    format!(
        "{model}, {} cores, Linux {}, shard on core {}, agent on core {}, load {}, two clock reads {} ns",
        std::thread::available_parallelism().map_or(1, usize::from),
        kernel.trim(),
        name(placement.shards.first().and_then(|seat| seat.core)),
        name(placement.agents.first().copied()),
        load(),
        clock_ns(),
    )
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// A file of `bytes` on the disk where the segments lie, written once so that writing it again
/// changes no metadata, as in a preallocated segment.
pub fn preallocated_file(bytes: usize) -> (tempfile::TempDir, std::fs::File) {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(dir.path().join("bare"))
        .expect("a file");
    let zeros = vec![0; 1 << 20];
    for at in (0..bytes).step_by(zeros.len()) {
        file.write_all_at(&zeros, at as u64).expect("writing zeros");
    }
    file.sync_all().expect("fsync");
    (dir, file)
}
