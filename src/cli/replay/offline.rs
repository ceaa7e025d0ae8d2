//! What other caches would have made of the same accesses: LRU, OPT, and one without bound.
//!
//! Floor 5, part of `replay`. Pure functions of a list of requests; nothing of agents or the
//! runtime is known here.
//!
//! - LRU: a read or a write brings the object to the front; the least recent go until it fits.
//! - OPT: knows the future. A miss or a write may keep the object or let it go; the objects whose
//!   next read is farthest go until the rest fits. Where all objects have one size that is
//!   Belady's optimum; with sizes that differ it is the usual greedy stand-in for it, since the
//!   true optimum can't be computed at this length.
//! - infinite: everything seen once is there from then on.
//!
//! Cost: LRU and infinite are linear; OPT adds a heap.

use std::collections::BinaryHeap;

const NONE: u32 = u32::MAX;

/// One access to an object, in 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request(u32);

/// Requests to objects of known sizes, and the cache they are to be tried on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial<'a> {
    /// In order.
    pub(super) requests: &'a [Request],
    /// How many of them come first and are not counted.
    pub(super) warmup: usize,
    /// Bytes of each object.
    pub(super) object_bytes: &'a [u32],
    /// Bytes of the cache.
    pub(super) capacity_bytes: u64,
}

/// What became of the reads that were counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Hits {
    /// All of them.
    pub(super) reads: u64,
    /// Those that found their object.
    pub(super) hits: u64,
}

impl Request {
    /// Most requests of a trial and most objects.
    pub(super) const COUNT_MAX: usize = 1 << 30;
    const WRITE: u32 = 1 << 31;

    /// A read or a write of an object, whose number is below [`Request::COUNT_MAX`].
    pub(super) fn new(object: u32, write: bool) -> Self {
        debug_assert!((object as usize) < Self::COUNT_MAX);
        Self(object | if write { Self::WRITE } else { 0 })
    }

    fn object(self) -> usize {
        (self.0 & !Self::WRITE) as usize
    }

    fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }
}

impl Hits {
    /// Hits per read; 0 without reads.
    pub(super) fn ratio(self) -> f64 {
        if self.reads == 0 {
            return 0.0;
        }
        self.hits as f64 / self.reads as f64
    }

    fn count(&mut self, trial: &Trial, at: usize, hit: bool) {
        if at >= trial.warmup && !trial.requests[at].is_write() {
            self.reads += 1;
            self.hits += u64::from(hit);
        }
    }
}

/// A cache that forgets nothing.
pub(super) fn infinite(trial: &Trial) -> Hits {
    let mut seen = vec![false; trial.object_bytes.len()];
    let mut hits = Hits::default();
    for (at, request) in trial.requests.iter().enumerate() {
        let hit = std::mem::replace(&mut seen[request.object()], true);
        hits.count(trial, at, hit);
    }
    hits
}

/// The least recently used goes.
pub(super) fn lru(trial: &Trial) -> Hits {
    let mut list = Recency::new(trial.object_bytes.len());
    let mut used_bytes = 0;
    let mut hits = Hits::default();
    for (at, request) in trial.requests.iter().enumerate() {
        let object = request.object() as u32;
        let hit = list.holds(object);
        hits.count(trial, at, hit);
        if hit {
            list.remove(object);
        } else {
            let bytes = u64::from(trial.object_bytes[object as usize]);
            if bytes > trial.capacity_bytes {
                continue;
            }
            used_bytes += bytes;
            while used_bytes > trial.capacity_bytes {
                let oldest = list.oldest();
                list.remove(oldest);
                used_bytes -= u64::from(trial.object_bytes[oldest as usize]);
            }
        }
        list.push(object);
    }
    hits
}

/// The one whose next read is farthest goes.
pub(super) fn opt(trial: &Trial) -> Hits {
    let next_read = next_reads(trial);
    // When each object in the cache is read next.
    let mut due = vec![NONE; trial.object_bytes.len()];
    let mut farthest: BinaryHeap<(u32, u32)> = BinaryHeap::new();
    let mut held = 0_usize;
    let mut used_bytes = 0;
    let mut hits = Hits::default();
    for (at, request) in trial.requests.iter().enumerate() {
        let object = request.object();
        let hit = due[object] != NONE;
        hits.count(trial, at, hit);
        let bytes = u64::from(trial.object_bytes[object]);
        if hit {
            used_bytes -= bytes;
            held -= 1;
        }
        due[object] = next_read[at];
        if due[object] == NONE {
            continue;
        }
        used_bytes += bytes;
        held += 1;
        farthest.push((due[object], object as u32));
        while used_bytes > trial.capacity_bytes {
            let (when, object) = farthest.pop().expect("every object held has an entry");
            let object = object as usize;
            // An entry may be older than the object's last access.
            if due[object] == when {
                due[object] = NONE;
                used_bytes -= u64::from(trial.object_bytes[object]);
                held -= 1;
            }
        }
        if farthest.len() > 4 * held + 1024 {
            farthest.retain(|(when, object)| due[*object as usize] == *when);
        }
    }
    hits
}

/// For each request, the place of the object's next access if that is a read. Before a write there
/// is nothing to be gained by keeping it.
fn next_reads(trial: &Trial) -> Vec<u32> {
    let mut next_of = vec![NONE; trial.object_bytes.len()];
    let mut next = vec![NONE; trial.requests.len()];
    for (at, request) in trial.requests.iter().enumerate().rev() {
        let object = request.object();
        next[at] = next_of[object];
        next_of[object] = if request.is_write() { NONE } else { at as u32 };
    }
    next
}

/// A ring of objects from newest to oldest, linked by number; the last entry is the ring's end.
struct Recency {
    links: Vec<(u32, u32)>,
    end: u32,
}

impl Recency {
    fn new(objects: usize) -> Self {
        let end = objects as u32;
        let mut links = vec![(NONE, NONE); objects + 1];
        links[objects] = (end, end);
        Self { links, end }
    }

    fn holds(&self, object: u32) -> bool {
        self.links[object as usize].0 != NONE
    }

    fn oldest(&self) -> u32 {
        self.links[self.end as usize].0
    }

    fn push(&mut self, object: u32) {
        let newest = self.links[self.end as usize].1;
        self.links[object as usize] = (self.end, newest);
        self.links[newest as usize].0 = object;
        self.links[self.end as usize].1 = object;
    }

    fn remove(&mut self, object: u32) {
        let (newer, older) = self.links[object as usize];
        self.links[newer as usize].1 = older;
        self.links[older as usize].0 = newer;
        self.links[object as usize] = (NONE, NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn requests(list: &[(u32, bool)]) -> Vec<Request> {
        list.iter()
            .map(|(object, write)| Request::new(*object, *write))
            .collect()
    }

    /// A plain list, newest first.
    fn plain_lru(trial: &Trial) -> Hits {
        let mut list: Vec<usize> = Vec::new();
        let mut hits = Hits::default();
        let bytes = |list: &[usize]| -> u64 {
            list.iter()
                .map(|object| u64::from(trial.object_bytes[*object]))
                .sum()
        };
        for (at, request) in trial.requests.iter().enumerate() {
            let object = request.object();
            hits.count(trial, at, list.contains(&object));
            list.retain(|held| *held != object);
            if u64::from(trial.object_bytes[object]) <= trial.capacity_bytes {
                list.insert(0, object);
            }
            while bytes(&list) > trial.capacity_bytes {
                list.pop();
            }
        }
        hits
    }

    /// Tries every set that could be kept after every request.
    fn most_hits(trial: &Trial) -> u64 {
        let objects = trial.object_bytes.len();
        let fits = |set: u32| {
            let held = (0..objects).filter(|object| set & 1 << object != 0);
            held.map(|object| u64::from(trial.object_bytes[object]))
                .sum::<u64>()
                <= trial.capacity_bytes
        };
        let mut best: Vec<Option<u64>> = vec![None; 1 << objects];
        best[0] = Some(0);
        for (at, request) in trial.requests.iter().enumerate() {
            let mut after = vec![None; 1 << objects];
            for set in 0..1_u32 << objects {
                let Some(hits) = best[set as usize] else {
                    continue;
                };
                let bit = 1 << request.object();
                let mut counted = Hits::default();
                counted.count(trial, at, set & bit != 0);
                let offered = set | bit;
                for kept in (0..=offered).filter(|kept| kept & !offered == 0 && fits(*kept)) {
                    let total = Some(hits + counted.hits);
                    after[kept as usize] = after[kept as usize].max(total);
                }
            }
            best = after;
        }
        best.into_iter().flatten().max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn lru_is_a_list_with_the_newest_first(
            list in prop::collection::vec((0..12_u32, any::<bool>()), 0..200),
            object_bytes in prop::collection::vec(1..50_u32, 12),
            capacity_bytes in 0..200_u64, warmup in 0..50_usize,
        ) {
            let requests = requests(&list);
            let trial = Trial { requests: &requests, warmup, object_bytes: &object_bytes, capacity_bytes };
            prop_assert_eq!(lru(&trial), plain_lru(&trial));
        }

        #[test]
        fn opt_is_the_best_of_all_choices_where_sizes_are_equal(
            list in prop::collection::vec((0..5_u32, prop::bool::weighted(0.2)), 0..24),
            capacity_bytes in 0..6_u64,
        ) {
            let requests = requests(&list);
            let trial = Trial { requests: &requests, warmup: 0, object_bytes: &[1; 5], capacity_bytes };
            prop_assert_eq!(opt(&trial).hits, most_hits(&trial));
        }

        #[test]
        fn opt_is_never_above_the_best_where_sizes_differ(
            list in prop::collection::vec((0..5_u32, prop::bool::weighted(0.2)), 0..20),
            object_bytes in prop::collection::vec(1..9_u32, 5),
            capacity_bytes in 0..30_u64,
        ) {
            let requests = requests(&list);
            let trial = Trial { requests: &requests, warmup: 0, object_bytes: &object_bytes, capacity_bytes };
            let found = opt(&trial);
            prop_assert!(found.hits <= most_hits(&trial));
            prop_assert!(found.hits <= infinite(&trial).hits);
            prop_assert_eq!(found.reads, infinite(&trial).reads);
            if capacity_bytes >= object_bytes.iter().map(|bytes| u64::from(*bytes)).sum() {
                prop_assert_eq!(found, infinite(&trial));
            }
        }
    }

    #[test]
    fn a_loop_shows_the_difference() {
        // Ten objects round and round, room for five: LRU finds none, OPT nearly half.
        let list: Vec<_> = (0..5000).map(|at| (at % 10, false)).collect();
        let requests = requests(&list);
        let trial = Trial {
            requests: &requests,
            warmup: 1000,
            object_bytes: &[100; 10],
            capacity_bytes: 500,
        };
        assert_eq!(lru(&trial).ratio(), 0.0);
        let best = opt(&trial).ratio();
        assert!((0.44..0.56).contains(&best), "{best}");
        assert_eq!(
            infinite(&trial),
            Hits {
                reads: 4000,
                hits: 4000
            }
        );
    }

    #[test]
    fn the_heap_of_opt_stays_small_and_right_over_many_hits() {
        let list: Vec<_> = (0..20_000_u32).map(|at| (at % 3, false)).collect();
        let requests = requests(&list);
        let trial = Trial {
            requests: &requests,
            warmup: 3,
            object_bytes: &[1; 3],
            capacity_bytes: 3,
        };
        // The last three are not read again, all others hit.
        assert_eq!(
            opt(&trial),
            Hits {
                reads: 19_997,
                hits: 19_997
            }
        );
        assert_eq!(infinite(&Trial { warmup: 0, ..trial }).hits, 19_997);
    }
}
