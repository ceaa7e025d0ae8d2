//! `helios replay`: real programs' accesses, replayed by hundreds of agents against a runtime,
//! every value checked.
//!
//! Floor 5. This file is the run itself, from the arguments to the report: a runtime in this
//! process (or one that is served elsewhere), workers in processes of their own, each with its
//! share of the agents. The trace is never loaded here while the runtime lives, so that the memory
//! of this process is the runtime's.
//!
//! In this room: `trace` reads the file, `scenario` deals it to agents, `walk` puts their accesses
//! in order, `lineage` what they do with versions of their state, `values` makes and checks bytes, `drive`
//! and `deeds` do it all against a lane (`port`), `worker` and `fleet` are the two ends of a worker process, `messages` what they say, `tally`
//! what they count; `host` is the runtime, `folder` its place, `process` what the kernel knows of
//! it; `score` repeats the accesses for the caches in `offline`; `report` shows it.

mod deeds;
mod drive;
mod fleet;
mod folder;
mod host;
mod lineage;
mod messages;
mod offline;
mod port;
mod process;
mod report;
mod scenario;
mod score;
mod tally;
mod trace;
mod values;
mod walk;
pub(crate) mod worker;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use helios::config::Config;
use helios::metrics::Stats;
use indicatif::{ProgressBar, ProgressStyle};

use fleet::Fleet;
use host::Host;
use messages::{Answer, Loaded, Order, Walked};
use report::{
    Allocations, CpuUse, Detail, HitRatios, Latencies, Latency, MemoryUse, Report, ReportFile,
    Resident, Storage, Verified,
};
use scenario::Deal;
use score::{Scores, Steps};
use tally::Tally;
use values::{BYTES_MAX, BYTES_MIN, MEDIAN_BYTES, SIGMA};

/// Most agents of one replay.
const AGENTS_MAX: i64 = 100_000;
/// Most worker processes.
const WORKERS_MAX: i64 = 64;
/// The warm-up's length as a part of the measured part's.
const WARMUP_SHARE: f64 = 0.25;
/// How long the silent agents are watched, after some time to fall asleep.
const IDLE: Duration = Duration::from_secs(2);
const IDLE_SETTLE: Duration = Duration::from_millis(500);

/// Replay an access trace with many agents, and check every value they read.
///
/// Traced processes are dealt to agents in turn; an agent runs its processes one after another,
/// over and over, on its own state, whose keys are the paths of the trace. Paths that more than a
/// tenth of the processes read belong to one public agent, "commons". Every value is JSON text
/// made from the seed; sizes are log-normal (median 2048 bytes, sigma 1, from 96 bytes to 64 KiB),
/// drawn by agent and key. A warm-up of a quarter of the time comes first; then calls are timed in
/// the agents' processes; then the agents stay attached and silent for two seconds.
///
/// An agent makes a checkpoint after every 8th of its writes; one at most in 20 ms of a worker is
/// power-safe. Of every 32 checkpoints of an agent, after 8 it tries something out in a fork (a write, two reads) and
/// drops it; after 4 it works on a branch (4 writes, a checkpoint) that it merges into main and
/// compares: once main stood still (a fast-forward), twice main has moved on, once both changed one key
/// and the branch's value is to stay; after 2 it reads one of its last 4 checkpoints as it was; after 2 it holds 3 ways
/// to go on in a superposition, each with a write of its own, and once collapses it to one, once releases it; and instead of one of
/// them it gives up what it did and restores one of its last 4 checkpoints, from where its script goes on; once it is
/// suspended and resumed.
/// What is read on the way is checked as well.
///
/// Ends with 1 if any value was not what it must be.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Configuration of the runtime; the state goes to a folder of its own in data_dir
    #[arg(
        long,
        value_name = "FILE",
        default_value = "runtime-config/replay-850.toml"
    )]
    config: PathBuf,
    /// Trace: CSV with the header agent_id,seq,key,op[,refs], gzip or plain
    #[arg(
        long,
        value_name = "FILE",
        default_value = "tests/traces/programs.csv.gz"
    )]
    trace: PathBuf,
    /// How many agents
    #[arg(long, value_name = "N", default_value_t = 850,
          value_parser = clap::value_parser!(u32).range(1..=AGENTS_MAX))]
    agents: u32,
    /// How many worker processes the agents are spread over
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    workers: u32,
    /// Length of the measured part, in seconds
    #[arg(long, value_name = "S", default_value = "20", value_parser = seconds)]
    seconds: f64,
    /// What sizes, values and think times are made from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Think times: exponential, this many milliseconds on average before each access of an agent;
    /// 0 is flat out
    #[arg(long, value_name = "FACTOR", default_value = "0", value_parser = factor)]
    think: f64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Attach to the runtime that listens on this socket, instead of starting one
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
}

/// Runs the replay and shows what came of it.
///
/// # Errors
/// A configuration, trace or folder that can't be used; a runtime that does not start or answer; a
/// worker that ends too soon.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config)?;
    let data_dir = config.data_dir.clone();
    let bar = Bar::new();
    let (report, detail) = replay(&args, config, &bar)?;
    bar.finish();
    let file = serde_json::to_vec_pretty(&ReportFile {
        report: &report,
        detail: &detail,
    })?;
    let path = folder::write_report(&data_dir, &file)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        for told in &detail.mismatches_told {
            eprintln!("helios: mismatch: {told}");
        }
    } else {
        print!("{}", report::table(&report, &detail));
        println!("report      {}", path.display());
    }
    Ok(match report.verify.mismatches {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// What the measured part left behind.
struct Measured {
    setup_seconds: f64,
    warmup: Part,
    measured: Part,
    /// Counted by the shards meanwhile.
    counted: Stats,
    /// Their gauges at its end.
    gauges: Stats,
    memory: MemoryUse,
    collection_steps: Latency,
    resident: Option<Resident>,
    disk_bytes: Option<u64>,
    busy_share_idle: Option<f64>,
}

/// A walk of all workers.
struct Part {
    /// Accesses of each worker.
    accesses: Vec<u64>,
    seconds: f64,
    operations_per_second: f64,
    /// Bytes of keys and values that the agents' states hold at its end.
    state_bytes: u64,
    tally: Tally,
}

fn replay(args: &Args, config: Config, bar: &Bar) -> anyhow::Result<(Report, Detail)> {
    let start = Instant::now();
    let deal = Deal {
        agents: args.agents,
        workers: args.workers.min(args.agents),
        seed: args.seed,
    };
    bar.phase("loading the trace", 0);
    let mut fleet = Fleet::start(deal.workers)?;
    let loaded = load(&mut fleet, args, deal)?;
    bar.phase("starting the runtime", 0);
    let mut host = match &args.socket {
        Some(socket) => Host::attach(socket)?,
        None => Host::start(config)?,
    };
    let measured = measure(&mut fleet, &mut host, args, &loaded, start, bar)?;
    fleet.finish()?;
    let (shards, io) = (host.shards(), host.io());
    let agent_cores = host.agent_cores();
    let cache_bytes = host.cache_bytes(args.agents)?;
    let mismatches = measured.warmup.tally.mismatches + measured.measured.tally.mismatches;
    host.stop(mismatches > 0)?;
    bar.phase("scoring other caches", 0);
    let warmup = measured.warmup.accesses.iter();
    let steps: Vec<Steps> = warmup
        .zip(&measured.measured.accesses)
        .map(|(&warmup, &measured)| Steps { warmup, measured })
        .collect();
    let scores = score::score(&args.trace, &deal, args.think, &steps, cache_bytes)?;
    let report = report_of(args, shards, io, &loaded, &measured, &scores);
    let detail = detail_of(args, deal, &loaded, measured, scores, agent_cores);
    Ok((report, detail))
}

fn load(fleet: &mut Fleet, args: &Args, deal: Deal) -> anyhow::Result<Loaded> {
    let order = |worker: usize| Order::Load {
        trace: args.trace.clone(),
        deal,
        worker: worker as u32,
        think: args.think,
    };
    let mut sum = Loaded::default();
    for answer in fleet.order(order, |_| ())? {
        if let Answer::Loaded(part) = answer {
            sum = Loaded {
                preload_keys: sum.preload_keys + part.preload_keys,
                preload_bytes: sum.preload_bytes + part.preload_bytes,
                footprint_bytes: sum.footprint_bytes + part.footprint_bytes,
                ..part
            };
        }
    }
    Ok(sum)
}

/// Everything that happens while the agents are attached.
fn measure(
    fleet: &mut Fleet,
    host: &mut Host,
    args: &Args,
    loaded: &Loaded,
    start: Instant,
    bar: &Bar,
) -> anyhow::Result<Measured> {
    bar.phase("attaching the agents", 0);
    let (socket, cores) = (host.socket(), host.agent_cores());
    let attach = |worker: usize| Order::Attach {
        socket: socket.clone(),
        core: (!cores.is_empty()).then(|| cores[worker % cores.len()]),
    };
    fleet.order(attach, |_| ())?;
    bar.phase("writing initial values", loaded.preload_keys);
    fleet.order(|_| Order::Preload, |done| bar.at(done))?;
    let setup_seconds = start.elapsed().as_secs_f64();

    let warmup = walk(fleet, args.seconds * WARMUP_SHARE, "warming up", bar)?;
    let before = host.stats()?;
    let measured = walk(fleet, args.seconds, "measuring", bar)?;
    let gauges = host.stats()?;
    let collection_steps = Latency::of(&host.collection_steps());
    let memory = host.memory()?;
    let process = host.process();
    let resident = process.and_then(process::Process::resident);

    bar.phase("watching the agents idle", 0);
    thread::sleep(IDLE_SETTLE);
    let time = || process.and_then(process::Process::processor_time);
    let (used, since) = (time(), Instant::now());
    thread::sleep(IDLE);
    let used = time().zip(used).map(|(now, then)| now.saturating_sub(then));
    let busy_share_idle = used.map(|used| used.as_secs_f64() / since.elapsed().as_secs_f64());
    Ok(Measured {
        setup_seconds,
        warmup,
        measured,
        counted: gauges.since(&before),
        gauges,
        collection_steps,
        memory,
        resident,
        disk_bytes: host.disk_bytes(),
        busy_share_idle,
    })
}

fn walk(fleet: &mut Fleet, seconds: f64, phase: &str, bar: &Bar) -> anyhow::Result<Part> {
    bar.phase(phase, (seconds * 1e3) as u64);
    let start = Instant::now();
    let answers = fleet.order(
        |_| Order::Walk { seconds },
        |operations| bar.working(start.elapsed(), operations),
    )?;
    let mut part = Part {
        accesses: Vec::new(),
        seconds: 0.0,
        operations_per_second: 0.0,
        state_bytes: 0,
        tally: Tally::default(),
    };
    for answer in answers {
        let Answer::Walked(walked) = answer else {
            continue;
        };
        let Walked {
            accesses,
            seconds,
            state_bytes,
            tally,
        } = *walked;
        part.accesses.push(accesses);
        part.seconds = part.seconds.max(seconds);
        part.operations_per_second += tally.operations() as f64 / seconds.max(1e-9);
        part.state_bytes += state_bytes;
        part.tally.add(&tally);
    }
    Ok(part)
}

fn report_of(
    args: &Args,
    shards: Option<usize>,
    io: String,
    loaded: &Loaded,
    all: &Measured,
    scores: &Scores,
) -> Report {
    let Part { tally, .. } = &all.measured;
    Report {
        agents: args.agents,
        shards,
        io,
        seconds: all.measured.seconds,
        operations: tally.operations(),
        operations_per_second: all.measured.operations_per_second,
        latency_ns: Latencies::of(tally),
        hit_ratio: HitRatios::of(tally, scores),
        storage: Storage {
            logical_bytes: all.measured.state_bytes + loaded.commons_bytes,
            stored_bytes: all.gauges.live_bytes + all.gauges.garbage_bytes,
            collected_bytes: all.gauges.collected_bytes,
            collection_step_ns: all.collection_steps,
        },
        memory: all.memory,
        allocations: Allocations {
            hit: all.counted.allocations_hit,
            miss: all.counted.allocations_miss,
            write: all.counted.allocations_write,
            checkpoint: all.counted.allocations_checkpoint,
        },
        cpu: CpuUse {
            busy_share_idle: all.busy_share_idle,
        },
        verify: Verified {
            // The warm-up is checked as well.
            reads_checked: all.warmup.tally.all_reads_checked() + tally.all_reads_checked(),
            mismatches: all.warmup.tally.mismatches + tally.mismatches,
        },
        busy_replies: tally.busy_replies,
    }
}

fn detail_of(
    args: &Args,
    deal: Deal,
    loaded: &Loaded,
    all: Measured,
    scores: Scores,
    agent_cores: Vec<u32>,
) -> Detail {
    let mut told = all.warmup.tally.mismatches_told;
    told.extend(all.measured.tally.mismatches_told);
    let footprint_bytes = all.gauges.live_bytes;
    let cache_bytes = scores.capacity_bytes;
    Detail {
        command: env::args().collect(),
        version: env!("CARGO_PKG_VERSION"),
        trace: file_name(&args.trace),
        trace_processes: loaded.processes,
        trace_accesses: loaded.accesses,
        deal,
        think: args.think,
        value_sizes: format!(
            "sizes log-normal, median {MEDIAN_BYTES} bytes, sigma {SIGMA}, {BYTES_MIN} to {BYTES_MAX}"
        ),
        commons_keys: loaded.commons,
        preloaded_values: loaded.preload_keys + loaded.commons,
        preloaded_bytes: loaded.preload_bytes,
        footprint_bytes,
        cache_bytes,
        footprint_to_cache: footprint_bytes as f64 / cache_bytes.max(1) as f64,
        disk_bytes: all.disk_bytes,
        setup_seconds: all.setup_seconds,
        warmup_seconds: all.warmup.seconds,
        warmup_accesses: all.warmup.accesses.iter().sum(),
        scores,
        clock_ns: tally::clock_ns(),
        resident: all.resident,
        agent_cores,
        mismatches_told: told,
        counters: all.gauges,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The progress bar; it draws nothing where standard error is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{msg:28} {wide_bar} {percent:>3}% {prefix}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style))
    }

    fn phase(&self, name: &str, length: u64) {
        self.0.set_prefix("");
        // A phase of unknown length stands at 0, not at "100%".
        self.0.set_length(length.max(1));
        self.0.set_position(0);
        self.0.set_message(name.to_owned());
        self.0.tick();
    }

    fn at(&self, position: u64) {
        self.0.set_position(position);
    }

    fn working(&self, elapsed: Duration, operations: u64) {
        let per_second = operations as f64 / elapsed.as_secs_f64().max(1e-3);
        self.0.set_prefix(format!("{per_second:.0}/s"));
        self.0.set_position(elapsed.as_millis() as u64);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, 0.1, 86_400.0)
}

fn factor(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1e6)
}

fn number(text: &str, min: f64, max: f64) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("write a number from {min} to {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(seconds("2.5"), Ok(2.5));
        assert_eq!(factor("0"), Ok(0.0));
        for text in ["", "x", "0", "-1", "nan", "inf", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert!(factor("-0.1").is_err());
    }
}
