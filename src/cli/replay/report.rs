//! What a replay found, for programs (JSON) and for people (a table).
//!
//! Floor 5, part of `replay`. Data and text only. The fields of [`Report`] and their order are
//! what `--json` prints, and nothing else; what more is known stands in [`Detail`], which only the
//! report file has.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::scenario::Deal;
use super::score::Scores;
use super::tally::{Call, Tally};

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) agents: u32,
    /// Unknown of a runtime in another process.
    pub(super) shards: Option<usize>,
    /// `glommio`, `threads`, or `unknown` of a runtime in another process.
    pub(super) io: String,
    /// Length of the measured part.
    pub(super) seconds: f64,
    /// Reads, writes and syncs of the measured part, those of the scripts.
    pub(super) operations: u64,
    pub(super) operations_per_second: f64,
    pub(super) latency_ns: Latencies,
    pub(super) hit_ratio: HitRatios,
    pub(super) storage: Storage,
    pub(super) memory: MemoryUse,
    pub(super) allocations: Allocations,
    pub(super) cpu: CpuUse,
    pub(super) verify: Verified,
    pub(super) busy_replies: u64,
}

/// By what served the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Latencies {
    pub(super) l1_hit: Latency,
    pub(super) l2_hit: Latency,
    pub(super) l3_hit: Latency,
    pub(super) cold: Latency,
    pub(super) write: Latency,
    pub(super) sync: Latency,
    /// One that survives the process.
    pub(super) checkpoint: Latency,
    /// One that survives a power cut.
    pub(super) checkpoint_power: Latency,
    pub(super) branch: Latency,
    pub(super) restore: Latency,
    pub(super) merge: Latency,
    /// The three calls together.
    pub(super) fork_write_discard: Latency,
    pub(super) diff: Latency,
}

/// A distribution in nanoseconds; all zero without calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) p50: u64,
    pub(super) p95: u64,
    pub(super) p99: u64,
    pub(super) p999: u64,
    pub(super) max: u64,
}

/// Of the measured reads. The last three are what other caches of the same bytes make of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct HitRatios {
    pub(super) l1: f64,
    pub(super) l2: f64,
    /// Both together.
    pub(super) memory: f64,
    pub(super) lru: f64,
    pub(super) opt: f64,
    pub(super) infinite: f64,
}

/// At the end of the measured part; of a runtime in another process, with all that it held before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Storage {
    /// Keys and values of all agents' states as they are now: one copy of each, no history.
    pub(super) logical_bytes: u64,
    /// What segments hold: these states, all that was kept of earlier ones, and what nothing needs.
    pub(super) stored_bytes: u64,
    /// Segment files that were removed, since the runtime's start.
    pub(super) collected_bytes: u64,
    /// What each step of a collection took, since the runtime's start; of a runtime in another process all zero.
    pub(super) collection_step_ns: Latency,
}

/// Of the runtime's process, with all agents attached and warm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct MemoryUse {
    pub(super) rss_bytes: Option<u64>,
    pub(super) shared_bytes: Option<u64>,
    pub(super) l1_bytes: u64,
    pub(super) l2_bytes: u64,
    pub(super) index_bytes: u64,
    pub(super) budget_bytes: Option<u64>,
}

/// On the shards' threads, over the measured part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Allocations {
    pub(super) hit: u64,
    pub(super) miss: u64,
    pub(super) write: u64,
    pub(super) checkpoint: u64,
}

/// Of the runtime's process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct CpuUse {
    /// Part of one core, with all agents attached and silent.
    pub(super) busy_share_idle: Option<f64>,
}

/// Reads whose bytes were compared with what must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Verified {
    pub(super) reads_checked: u64,
    pub(super) mismatches: u64,
}

/// What the report file has beside the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Detail {
    pub(super) command: Vec<String>,
    pub(super) version: &'static str,
    pub(super) trace: String,
    pub(super) trace_processes: u64,
    pub(super) trace_accesses: u64,
    pub(super) deal: Deal,
    pub(super) think: f64,
    pub(super) value_sizes: String,
    pub(super) commons_keys: u64,
    pub(super) preloaded_values: u64,
    pub(super) preloaded_bytes: u64,
    /// Bytes of segments that are needed, at the end of the measured part.
    pub(super) footprint_bytes: u64,
    /// Bytes given to L1 and L2: those of the caches that ours is compared with.
    pub(super) cache_bytes: u64,
    pub(super) footprint_to_cache: f64,
    pub(super) disk_bytes: Option<u64>,
    pub(super) setup_seconds: f64,
    pub(super) warmup_seconds: f64,
    pub(super) warmup_accesses: u64,
    pub(super) scores: Scores,
    /// What a timed call of nothing takes; every latency has it in it.
    pub(super) clock_ns: u64,
    /// Parts of the resident memory, where the kernel tells.
    pub(super) resident: Option<Resident>,
    pub(super) agent_cores: Vec<u32>,
    pub(super) mismatches_told: Vec<String>,
    pub(super) counters: helios::metrics::Stats,
}

/// Resident memory by kind, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Resident {
    /// Private memory: heap, stacks, L2, indexes.
    pub(super) anonymous_bytes: u64,
    /// Pages of files: the program, and segments mapped for reading, which are page cache.
    pub(super) file_bytes: u64,
    /// Shared memory: windows and lanes.
    pub(super) shared_bytes: u64,
}

/// What the report file holds.
#[derive(Debug, Serialize)]
pub(super) struct ReportFile<'a> {
    #[serde(flatten)]
    pub(super) report: &'a Report,
    pub(super) detail: &'a Detail,
}

impl Latencies {
    /// Those of a tally.
    pub(super) fn of(tally: &Tally) -> Self {
        let of = |call| Latency::of(tally.times(call));
        Self {
            l1_hit: of(Call::L1),
            l2_hit: of(Call::L2),
            l3_hit: of(Call::L3),
            cold: of(Call::Cold),
            write: of(Call::Write),
            sync: of(Call::Sync),
            checkpoint: of(Call::Checkpoint),
            checkpoint_power: of(Call::CheckpointPower),
            branch: of(Call::Branch),
            restore: of(Call::Restore),
            merge: of(Call::Merge),
            fork_write_discard: of(Call::ForkWriteDiscard),
            diff: of(Call::Diff),
        }
    }
}

impl Latency {
    /// That of a histogram.
    pub(super) fn of(times: &Histogram<u64>) -> Self {
        let at = |quantile| times.value_at_quantile(quantile);
        Self {
            count: times.len(),
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: times.max(),
        }
    }
}

impl HitRatios {
    /// Those of a tally, beside those of other caches.
    pub(super) fn of(tally: &Tally, scores: &Scores) -> Self {
        let reads = tally.reads_checked.max(1) as f64;
        let share = |hits: u64| hits as f64 / reads;
        let (l1, l2) = (tally.count(Call::L1), tally.count(Call::L2));
        Self {
            l1: share(l1),
            l2: share(l2),
            memory: share(l1 + l2),
            lru: scores.lru,
            opt: scores.opt,
            infinite: scores.infinite,
        }
    }
}

/// The report as a table.
pub(super) fn table(report: &Report, detail: &Detail) -> String {
    let mut text = String::new();
    let out = &mut text;
    let shards = report
        .shards
        .map_or("?".to_owned(), |shards| shards.to_string());
    line(
        out,
        format_args!(
            "{} agents in {} workers, {shards} shards, io {}, trace {} ({} processes, {} accesses)",
            report.agents,
            detail.deal.workers,
            report.io,
            detail.trace,
            detail.trace_processes,
            detail.trace_accesses,
        ),
    );
    line(
        out,
        format_args!(
            "{:.1} s measured after {:.1} s of set-up and {:.1} s of warm-up: {} operations, {:.0} per second",
            report.seconds,
            detail.setup_seconds,
            detail.warmup_seconds,
            report.operations,
            report.operations_per_second,
        ),
    );
    line(out, format_args!(""));
    latency_table(out, report);
    line(
        out,
        format_args!(
            "  in the agent's process, around the call; {} ns of each is the clock",
            detail.clock_ns
        ),
    );
    line(out, format_args!(""));
    hit_lines(out, report, detail);
    resource_lines(out, report, detail);
    let verified = &report.verify;
    line(
        out,
        format_args!(
            "verify      {} reads compared byte for byte, {} mismatches; {} Busy replies, retried",
            verified.reads_checked, verified.mismatches, report.busy_replies,
        ),
    );
    for told in &detail.mismatches_told {
        line(out, format_args!("  MISMATCH  {told}"));
    }
    text
}

fn latency_table(out: &mut String, report: &Report) {
    line(
        out,
        format_args!(
            "{:<18}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}",
            "call", "count", "p50", "p95", "p99", "p99.9", "max",
        ),
    );
    let latencies = &report.latency_ns;
    for (name, latency) in [
        ("L1 hit", latencies.l1_hit),
        ("L2 hit", latencies.l2_hit),
        ("L3 hit", latencies.l3_hit),
        ("cold", latencies.cold),
        ("write", latencies.write),
        ("sync", latencies.sync),
        ("checkpoint", latencies.checkpoint),
        ("checkpoint, power", latencies.checkpoint_power),
        ("branch", latencies.branch),
        ("restore", latencies.restore),
        ("merge", latencies.merge),
        ("fork write discard", latencies.fork_write_discard),
        ("diff", latencies.diff),
    ] {
        let time = |ns| {
            if latency.count == 0 {
                "-".to_owned()
            } else {
                time_text(ns)
            }
        };
        line(
            out,
            format_args!(
                "{name:<18}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}",
                latency.count,
                time(latency.p50),
                time(latency.p95),
                time(latency.p99),
                time(latency.p999),
                time(latency.max),
            ),
        );
    }
}

fn hit_lines(out: &mut String, report: &Report, detail: &Detail) {
    let ratios = &report.hit_ratio;
    let percent = |ratio: f64| 100.0 * ratio;
    line(
        out,
        format_args!(
            "hit ratio   {:.1}% of reads (L1 {:.1}%, L2 {:.1}%); at the same {}: LRU {:.1}%, OPT {:.1}%, infinite {:.1}%",
            percent(ratios.memory),
            percent(ratios.l1),
            percent(ratios.l2),
            bytes_text(detail.cache_bytes),
            percent(ratios.lru),
            percent(ratios.opt),
            percent(ratios.infinite),
        ),
    );
    line(
        out,
        format_args!(
            "footprint   {} of needed values on disk, {:.1} times L1 and L2{}; {}",
            bytes_text(detail.footprint_bytes),
            detail.footprint_to_cache,
            if detail.footprint_to_cache < 10.0 {
                " (LESS THAN TEN: hit ratios flatter)"
            } else {
                ""
            },
            detail.value_sizes,
        ),
    );
}

fn resource_lines(out: &mut String, report: &Report, detail: &Detail) {
    let storage = &report.storage;
    line(
        out,
        format_args!(
            "storage     {} of keys and values in all states, {} in segments with their history ({:.1} times), {} given back",
            bytes_text(storage.logical_bytes),
            bytes_text(storage.stored_bytes),
            storage.stored_bytes as f64 / storage.logical_bytes.max(1) as f64,
            bytes_text(storage.collected_bytes),
        ),
    );
    let steps = &storage.collection_step_ns;
    if steps.count > 0 {
        line(
            out,
            format_args!(
                "            {} steps of collections: p50 {}, p99 {}, p99.9 {}, longest {}",
                steps.count,
                time_text(steps.p50),
                time_text(steps.p99),
                time_text(steps.p999),
                time_text(steps.max),
            ),
        );
    }
    let memory = &report.memory;
    let known = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), bytes_text);
    line(
        out,
        format_args!(
            "memory      {} resident; shared {}, L1 {}, L2 {}, index {}, budget {}",
            known(memory.rss_bytes),
            known(memory.shared_bytes),
            bytes_text(memory.l1_bytes),
            bytes_text(memory.l2_bytes),
            bytes_text(memory.index_bytes),
            known(memory.budget_bytes),
        ),
    );
    if let Some(resident) = detail.resident {
        line(
            out,
            format_args!(
                "            of the resident: {} private, {} shared, {} of files (page cache)",
                bytes_text(resident.anonymous_bytes),
                bytes_text(resident.shared_bytes),
                bytes_text(resident.file_bytes),
            ),
        );
    }
    let idle = report.cpu.busy_share_idle;
    line(
        out,
        format_args!(
            "cpu         {} of a core with all agents attached and silent",
            idle.map_or("unknown".to_owned(), |share| format!(
                "{:.2}%",
                100.0 * share
            )),
        ),
    );
    let allocations = &report.allocations;
    line(
        out,
        format_args!(
            "allocations {} on hits, {} on misses, {} on writes, {} on checkpoints",
            allocations.hit, allocations.miss, allocations.write, allocations.checkpoint,
        ),
    );
}

fn line(out: &mut String, text: std::fmt::Arguments) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

fn time_text(ns: u64) -> String {
    let number = ns as f64;
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} us", number / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", number / 1e6),
        _ => format!("{:.1} s", number / 1e9),
    }
}

fn bytes_text(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn sample() -> (Report, Detail) {
        let mut tally = Tally::default();
        for ns in 1..=100 {
            tally.time(Call::L1, ns);
            tally.time(Call::L3, 5_000 + ns);
        }
        tally.reads_checked = 200;
        let scores = Scores {
            lru: 0.25,
            opt: 0.75,
            infinite: 1.0,
            reads: 200,
            capacity_bytes: 1_000_000,
            accesses_left_out: 0,
        };
        let report = Report {
            agents: 2,
            shards: Some(1),
            io: "threads".to_owned(),
            seconds: 2.0,
            operations: tally.operations(),
            operations_per_second: 100.0,
            latency_ns: Latencies::of(&tally),
            hit_ratio: HitRatios::of(&tally, &scores),
            storage: Storage {
                logical_bytes: 1_000_000,
                stored_bytes: 2_500_000,
                collected_bytes: 700_000,
                collection_step_ns: Latency::of(tally.times(Call::Cold)),
            },
            memory: MemoryUse::default(),
            allocations: Allocations {
                hit: 0,
                miss: 1,
                write: 2,
                checkpoint: 3,
            },
            cpu: CpuUse {
                busy_share_idle: Some(0.004),
            },
            verify: Verified {
                reads_checked: 200,
                mismatches: 1,
            },
            busy_replies: 7,
        };
        let deal = Deal {
            agents: 2,
            workers: 1,
            seed: 1,
        };
        let detail = Detail {
            command: vec!["helios".to_owned()],
            version: "0",
            trace: "t.csv".to_owned(),
            trace_processes: 3,
            trace_accesses: 300,
            deal,
            think: 0.0,
            value_sizes: "sizes".to_owned(),
            commons_keys: 1,
            preloaded_values: 5,
            preloaded_bytes: 50,
            footprint_bytes: 9_000_000,
            cache_bytes: 1_000_000,
            footprint_to_cache: 9.0,
            disk_bytes: None,
            setup_seconds: 1.0,
            warmup_seconds: 0.5,
            warmup_accesses: 20,
            scores,
            clock_ns: 30,
            resident: None,
            agent_cores: vec![0],
            mismatches_told: vec!["agent 1: wrong".to_owned()],
            counters: helios::metrics::Stats::default(),
        };
        (report, detail)
    }

    #[test]
    fn the_object_has_exactly_the_promised_fields() {
        let (report, detail) = sample();
        let object = serde_json::to_value(&report).unwrap();
        let keys = |value: &serde_json::Value| {
            let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys.join(" ")
        };
        let expected = "agents allocations busy_replies cpu hit_ratio io latency_ns memory operations \
                        operations_per_second seconds shards storage verify";
        assert_eq!(keys(&object), expected);
        assert_eq!(
            keys(&object["latency_ns"]),
            "branch checkpoint checkpoint_power cold diff fork_write_discard l1_hit l2_hit l3_hit merge restore sync write"
        );
        assert_eq!(
            keys(&object["latency_ns"]["cold"]),
            "count max p50 p95 p99 p999"
        );
        assert_eq!(keys(&object["hit_ratio"]), "infinite l1 l2 lru memory opt");
        let memory = "budget_bytes index_bytes l1_bytes l2_bytes rss_bytes shared_bytes";
        assert_eq!(keys(&object["memory"]), memory);
        assert_eq!(
            keys(&object["storage"]),
            "collected_bytes collection_step_ns logical_bytes stored_bytes"
        );
        assert_eq!(keys(&object["allocations"]), "checkpoint hit miss write");
        assert_eq!(keys(&object["cpu"]), "busy_share_idle");
        assert_eq!(keys(&object["verify"]), "mismatches reads_checked");
        assert_eq!(object["latency_ns"]["l1_hit"]["p95"], 95);
        assert_eq!(object["hit_ratio"]["memory"], 0.5);
        let file = ReportFile {
            report: &report,
            detail: &detail,
        };
        let file = serde_json::to_value(file).unwrap();
        assert_eq!(file["verify"], object["verify"]);
        assert_eq!(file["detail"]["trace"], "t.csv");
    }

    #[test]
    fn the_table_tells_what_is_wrong() {
        let (report, detail) = sample();
        let text = table(&report, &detail);
        for part in [
            "MISMATCH  agent 1: wrong",
            "LESS THAN TEN",
            "5051 ns",
            "0.40% of a core",
            "2.5 MB in segments with their history (2.5 times), 0.7 MB given back",
        ] {
            let shown = text.contains(part);
            assert!(shown, "{part:?} in\n{text}");
        }
        assert!(
            text.lines()
                .any(|line| line.starts_with("cold") && line.contains('-'))
        );
    }
}
