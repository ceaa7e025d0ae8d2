//! What a worker counts and times, and how the counts of several become one.
//!
//! Floor 5, part of `replay`. A time is a call as the agent's process saw it, the clock's own cost
//! ([`clock_ns`]) included: nothing is subtracted.
//!
//! Memory: a histogram is 200 KiB; a tally has thirteen, and there is one tally in a worker.

use std::time::Instant;

use hdrhistogram::Histogram;
use helios::metrics::latency_histogram;
use serde::{Deserialize, Serialize};

use super::messages::pairs;

/// Mismatches that are told in full; the rest are counted.
pub(super) const MISMATCHES_TOLD_MAX: usize = 8;

/// Calls of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    L1,
    L2,
    L3,
    Cold,
    Write,
    Sync,
    Checkpoint,
    CheckpointPower,
    Branch,
    Restore,
    Merge,
    /// A fork, one write in it, its end.
    ForkWriteDiscard,
    Diff,
}

impl Call {
    /// All kinds, in the order of reports.
    pub(super) const ALL: [Self; 13] = [
        Self::L1,
        Self::L2,
        Self::L3,
        Self::Cold,
        Self::Write,
        Self::Sync,
        Self::Checkpoint,
        Self::CheckpointPower,
        Self::Branch,
        Self::Restore,
        Self::Merge,
        Self::ForkWriteDiscard,
        Self::Diff,
    ];
    /// Those that a script is made of; the others are about versions.
    const OF_SCRIPT: usize = 6;
}

/// Latencies of one kind of call, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Times(#[serde(with = "pairs")] pub(super) Histogram<u64>);

/// What happened during a walk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tally {
    times: [Times; Call::ALL.len()],
    /// Replies that said Busy; the call was made again.
    pub(super) busy_replies: u64,
    /// Reads of the script whose bytes were compared.
    pub(super) reads_checked: u64,
    /// Reads of forks, branches, checkpoints, and of what merges left, compared in the same way.
    pub(super) version_reads_checked: u64,
    /// Those that were wrong: other bytes, or nothing; and other answers that were wrong.
    pub(super) mismatches: u64,
    /// The first of them in words.
    pub(super) mismatches_told: Vec<String>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            times: Call::ALL.map(|_| Times(latency_histogram())),
            busy_replies: 0,
            reads_checked: 0,
            version_reads_checked: 0,
            mismatches: 0,
            mismatches_told: Vec::new(),
        }
    }
}

impl Tally {
    /// Counts a call that took so long.
    pub(super) fn time(&mut self, call: Call, ns: u64) {
        self.times[call as usize].0.saturating_record(ns);
    }

    /// The times of one kind.
    pub(super) fn times(&self, call: Call) -> &Histogram<u64> {
        &self.times[call as usize].0
    }

    /// How many calls there were of one kind.
    pub(super) fn count(&self, call: Call) -> u64 {
        self.times(call).len()
    }

    /// Calls of the script: reads, writes, syncs.
    pub(super) fn operations(&self) -> u64 {
        let of_script = Call::ALL[..Call::OF_SCRIPT].iter();
        of_script.map(|call| self.count(*call)).sum()
    }

    /// Reads whose bytes were compared, of all kinds.
    pub(super) fn all_reads_checked(&self) -> u64 {
        self.reads_checked + self.version_reads_checked
    }

    /// Counts a read that found what it should not.
    pub(super) fn mismatch(&mut self, told: impl FnOnce() -> String) {
        self.mismatches += 1;
        if self.mismatches_told.len() < MISMATCHES_TOLD_MAX {
            self.mismatches_told.push(told());
        }
    }

    /// Adds what another counted.
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, others) in self.times.iter_mut().zip(&other.times) {
            mine.0
                .add(&others.0)
                .expect("all histograms have the same bounds");
        }
        self.busy_replies += other.busy_replies;
        self.reads_checked += other.reads_checked;
        self.version_reads_checked += other.version_reads_checked;
        self.mismatches += other.mismatches;
        let room = MISMATCHES_TOLD_MAX - self.mismatches_told.len();
        let told = other.mismatches_told.iter().take(room).cloned();
        self.mismatches_told.extend(told);
    }
}

/// What a measured call of nothing takes: the middle one of a thousand, in nanoseconds.
pub(super) fn clock_ns() -> u64 {
    let mut empty: Vec<u64> = (0..1001)
        .map(|_| {
            let start = Instant::now();
            elapsed_ns(start)
        })
        .collect();
    empty.sort_unstable();
    empty[empty.len() / 2]
}

/// Nanoseconds since then.
pub(super) fn elapsed_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_travel_and_add_up() {
        let mut one = Tally::default();
        for ns in 1..=1000 {
            one.time(Call::L1, ns * 37);
        }
        one.time(Call::Sync, 300_000);
        one.time(Call::Write, u64::MAX);
        for number in 0..20 {
            one.mismatch(|| format!("number {number}"));
        }
        one.busy_replies = 3;
        let text = serde_json::to_string(&one).unwrap();
        let back: Tally = serde_json::from_str(&text).unwrap();
        for call in Call::ALL {
            for quantile in [0.0, 0.5, 0.95, 0.99, 0.999, 1.0] {
                let value = |tally: &Tally| tally.times(call).value_at_quantile(quantile);
                assert_eq!(value(&one), value(&back));
            }
        }
        let mut sum = back;
        sum.add(&one);
        assert_eq!((sum.count(Call::L1), sum.operations()), (2000, 2004));
        assert_eq!((sum.busy_replies, sum.mismatches), (6, 40));
        assert_eq!(sum.mismatches_told.len(), MISMATCHES_TOLD_MAX);
        assert_eq!(sum.mismatches_told[0], "number 0");
    }
}
