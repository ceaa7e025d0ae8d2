//! Counters, histograms and the counting allocator.
//!
//! Floor 0. A shard writes its own counters with plain relaxed stores; anyone may read them. A
//! histogram is kept per core and kind, never per agent (200 KiB each), and merged on demand.
//!
//! Cost: a count is one load and one store of a line that only its shard writes.

#![expect(unsafe_code, reason = "a global allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

pub use hdrhistogram::Histogram;

/// A number written by one thread and read by any.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the thread that owns the counter may.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(count),
            Ordering::Relaxed,
        );
    }

    /// Sets; only the thread that owns the counter may.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Equal parts of each power of two that a duration may lie in.
const TIMING_PARTS: usize = 16;
/// Durations that are told apart: up to half a minute, to a sixteenth of each.
const TIMING_BUCKETS: usize = 32 * TIMING_PARTS;

/// How long something took, each time: counted by one thread, read by any. 4 KiB; to note a duration costs two
/// or three cache lines.
#[derive(Debug)]
pub struct Timings {
    buckets: [Counter; TIMING_BUCKETS],
    longest_ns: Counter,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            buckets: [const { Counter(AtomicU64::new(0)) }; TIMING_BUCKETS],
            longest_ns: Counter::default(),
        }
    }
}

impl Timings {
    /// Notes one duration; only the thread that owns the timings may.
    pub fn note(&self, ns: u64) {
        self.buckets[Self::bucket(ns)].add(1);
        if ns > self.longest_ns.get() {
            self.longest_ns.set(ns);
        }
    }

    /// Adds all durations to a histogram: each as the longest of those that are not told apart from it.
    pub fn add_to(&self, histogram: &mut Histogram<u64>) {
        let longest = self.longest_ns.get();
        for (no, count) in self.buckets.iter().enumerate() {
            let count = count.get();
            if count > 0 {
                histogram.saturating_record_n(Self::upto_ns(no).min(longest), count);
            }
        }
    }

    fn bucket(ns: u64) -> usize {
        let octave = (ns.max(1).ilog2() as usize).saturating_sub(TIMING_PARTS.ilog2() as usize);
        let part = (ns >> octave) as usize;
        (octave * TIMING_PARTS + part).min(TIMING_BUCKETS - 1)
    }

    fn upto_ns(bucket: usize) -> u64 {
        let octave = (bucket / TIMING_PARTS).saturating_sub(1);
        let part = bucket - octave * TIMING_PARTS;
        ((part as u64 + 1) << octave) - 1
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one shard counts. The order of the fields is the order of the `Stats` reply in the
        /// lane protocol: new ones go to the end.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct ShardCounters {
            $($(#[$doc])* pub $name: Counter,)*
            /// What each step of a collection took, where the shard was given a clock for that.
            pub collection_steps: Timings,
        }

        /// A reading of [`ShardCounters`], of one shard or summed over several.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl ShardCounters {
            /// The values now.
            #[must_use]
            pub fn read(&self) -> Stats {
                Stats { $($name: self.$name.get(),)* }
            }
        }

        impl Stats {
            /// How many numbers there are.
            pub const COUNT: usize = [$(stringify!($name),)*].len();
            /// Their names, in order.
            pub const NAMES: [&str; Self::COUNT] = [$(stringify!($name),)*];

            /// The numbers in order.
            #[must_use]
            pub fn to_array(&self) -> [u64; Self::COUNT] {
                [$(self.$name,)*]
            }

            /// From numbers in order; of a shorter list the rest is 0, of a longer one it is left
            /// out, so that runtimes of neighbouring versions understand each other.
            #[must_use]
            pub fn from_slice(values: &[u64]) -> Self {
                let mut values = values.iter().copied();
                Self { $($name: values.next().unwrap_or(0),)* }
            }

            /// Adds another shard's numbers.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)*
            }

            /// What was counted since `earlier`; gauges keep the value they have now only where
            /// they grew, so read gauges from the later reading itself.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }
        }
    };
}

counters! {
    /// Operations completed, hits in L1 windows not included.
    operations,
    /// Hits that agents reported from their L1 windows.
    l1_hits,
    /// Hit reports lost because a lane's report ring was lapped.
    l1_reports_lost,
    /// Reads served from L2.
    l2_hits,
    /// Reads served from segments whose pages were in memory.
    l3_hits,
    /// Reads that waited for the device.
    cold_reads,
    /// Reads of keys that are not there.
    absent,
    /// Puts and deletes applied.
    writes,
    /// Puts whose object was stored already.
    deduplicated,
    /// Bytes handed to the log.
    log_bytes,
    /// Flushes of the append buffer: one write system call each.
    flushes,
    /// Syncs that the I/O core completed.
    syncs,
    /// Replies that said Busy.
    busy_replies,
    /// Sessions and connections ended because they broke the protocol, by an entry or by a frame.
    malformed,
    /// Stored objects that did not match their id.
    corrupt,
    /// Turns of the shard's loop that did work.
    turns,
    /// Times the shard slept.
    sleeps,
    /// Allocations on the shard's thread while it served reads from L2.
    allocations_hit,
    /// Allocations on the shard's thread while it served reads from resident segments.
    allocations_miss,
    /// Allocations on the shard's thread while it served writes.
    allocations_write,
    /// Gauge: agents known.
    agents,
    /// Gauge: lanes attached.
    lanes,
    /// Gauge: keys of all agents.
    keys,
    /// Gauge: objects stored and needed.
    objects,
    /// Gauge: bytes of segments that are needed.
    live_bytes,
    /// Gauge: bytes of segments that nothing needs.
    garbage_bytes,
    /// Gauge: bytes held by L2.
    l2_bytes,
    /// Gauge: bytes of values held by L1 windows.
    l1_bytes,
    /// Gauge: bytes of indexes and working sets.
    index_bytes,
    /// Gauge: last record of the log.
    sequence,
    /// Gauge: last record known to be on the device.
    synced_sequence,
    /// Allocations on the shard's thread while it served everything else: absent keys, reads that
    /// waited for the device or another shard.
    allocations_cold,
    /// Shards: 1 each.
    shards,
    /// Memory that the runtime may have, in bytes; counted by the first shard.
    memory_max_bytes,
    /// Whether the I/O core is one of io_uring: 1 or 0; counted by the first shard.
    io_uring,
    /// Collections that went through.
    collections,
    /// Bytes of segment files that collections removed.
    collected_bytes,
    /// Bytes that collections moved to the end of the log.
    moved_bytes,
    /// Gauge: 1 while nothing is collected because something that is needed is damaged.
    collect_blocked,
    /// Access events that found their stream full.
    access_events_lost,
    /// Allocations on the shard's thread while it made checkpoints.
    allocations_checkpoint,
    /// Connections, and requests for lanes, that were refused: no rule lets them in, or there are too many.
    refused,
    /// Lanes closed under processes that had not asked for it: protocol broken, agent terminated, shard failing.
    lanes_closed,
}

/// A latency distribution in nanoseconds, up to a minute, to three digits.
#[must_use]
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are constants in order")
}

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting calls per thread. A host installs it with
/// `#[global_allocator]` if it wants the `allocations_*` counters to mean something; elsewhere
/// they stay 0.
#[derive(Debug, Default, Clone, Copy)]
pub struct CountingAllocator;

/// Allocations and reallocations of the calling thread so far.
#[must_use]
#[inline]
pub fn thread_allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

fn count() {
    // A thread that is being torn down may allocate after its locals are gone.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to `System` unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, bytes) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_lists_the_counters_in_order() {
        let protocol = include_str!("agent/PROTOCOL.md");
        assert!(
            protocol.contains(&Stats::NAMES.join(", ")),
            "{}",
            Stats::NAMES.join(", ")
        );
    }

    #[test]
    fn durations_come_back_to_a_sixteenth() {
        let timings = Timings::default();
        let mut wanted = latency_histogram();
        let all = (0..36).flat_map(|bit| [1 << bit, (1 << bit) + (1 << bit) / 3, (2 << bit) - 1]);
        for ns in all.clone() {
            timings.note(ns);
            wanted.saturating_record(ns);
            let upto = Timings::upto_ns(Timings::bucket(ns));
            let last = Timings::bucket(ns) == TIMING_BUCKETS - 1;
            assert!(last || (ns..=ns + ns / 15).contains(&upto), "{ns} {upto}");
        }
        let mut found = latency_histogram();
        timings.add_to(&mut found);
        assert_eq!(found.len(), wanted.len());
        for quantile in [0.1, 0.5, 0.9] {
            let (one, other) = (
                found.value_at_quantile(quantile) as f64,
                wanted.value_at_quantile(quantile) as f64,
            );
            assert!((0.99..1.07).contains(&(one / other)), "{one} {other}");
        }
    }

    #[test]
    fn stats_travel_as_numbers_in_order() {
        let counters = ShardCounters::default();
        counters.operations.add(3);
        counters.synced_sequence.set(9);
        let stats = counters.read();
        assert_eq!(Stats::from_slice(&stats.to_array()), stats);
        assert_eq!(Stats::from_slice(&[3]).operations, 3);
        assert_eq!(Stats::NAMES[0], "operations");
        let mut sum = stats;
        sum.add(&stats);
        assert_eq!(sum.operations, 6);
        assert_eq!(sum.since(&stats).operations, 3);
    }
}
