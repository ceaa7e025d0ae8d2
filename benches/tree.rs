//! What do the operations of a state tree cost, its nodes in memory?
//!
//! Trees of 1,000 and 100,000 keys of 16 bytes that name blobs of 1 KiB, and a large value in chunks. An apply changes one value,
//! or adds and removes a key, and hashes the nodes that are new; beside it, BLAKE3 alone over nodes of
//! the same sizes. Nothing here enters the runtime: it is one thread over a hash map of nodes.

use std::hint::black_box;
use std::ops::Bound;

use hdrhistogram::Histogram;
use helios::id::ObjectId;
use helios::state::chunks::{NewObject, ValueWriter};
use helios::state::tree::{
    Changes, Diff, EMPTY_TREE, MemoryNodes, Merge, Merged, Scan, TreeWriter, Value, get,
};

mod common;

/// Counts allocations: an apply makes none once its buffers have grown.
#[global_allocator]
static ALLOCATOR: helios::metrics::CountingAllocator = helios::metrics::CountingAllocator;

/// Keys of a small tree, and of a large one.
const SMALL: u64 = 1_000;
const LARGE: u64 = 100_000;
/// Keys in which trees differ that are compared or merged.
const DIFFERENT: u64 = 10;
const BLOB_BYTES: u32 = 1024;

fn main() {
    let Some(mut bench) = common::Bench::start("tree", "operations of a state tree in memory")
    else {
        return;
    };
    let mut store = Store::default();
    let large = bench.pick(LARGE, 5_000);
    let small = store.build(SMALL);
    let large_root = store.build(large);
    allocations(&mut store, small, SMALL);
    apply(&mut bench, &mut store, small, SMALL, "1,000 keys");
    apply(&mut bench, &mut store, large_root, large, "100,000 keys");
    read(&mut bench, &store, store.leaf, 40, "a leaf of 40 keys");
    read(&mut bench, &store, small, SMALL, "1,000 keys");
    read(&mut bench, &store, large_root, large, "100,000 keys");
    compare(&mut bench, &mut store, large_root, large);
    merge(&mut bench, &mut store, small);
    whole(&mut bench, &mut store, large_root, large);
    chunks(&mut bench);
    bench.finish();
}

struct Store {
    nodes: MemoryNodes,
    writer: TreeWriter,
    changes: Changes,
    leaf: ObjectId,
}

impl Default for Store {
    fn default() -> Self {
        let mut store = Self {
            nodes: MemoryNodes::default(),
            writer: TreeWriter::default(),
            changes: Changes::default(),
            leaf: EMPTY_TREE,
        };
        store.leaf = store.build(40);
        store
    }
}

impl Store {
    fn build(&mut self, keys: u64) -> ObjectId {
        self.changes.clear();
        for no in 0..keys {
            put(&mut self.changes, no, 0);
        }
        self.apply(EMPTY_TREE)
    }

    fn apply(&mut self, root: ObjectId) -> ObjectId {
        let applied = self.writer.apply(&self.nodes, &root, &self.changes);
        self.nodes.extend(self.writer.new_nodes());
        applied.expect("all nodes are there")
    }

    /// The tree with some keys, spread evenly, given other values.
    fn edited(&mut self, root: ObjectId, keys: u64, from: u64, version: u64) -> ObjectId {
        self.changes.clear();
        for no in 0..DIFFERENT {
            put(&mut self.changes, from + no * keys / DIFFERENT, version);
        }
        self.apply(root)
    }
}

/// A value that no other key or version has.
fn value(no: u64, version: u64) -> Value<'static> {
    let mut id = [0; 32];
    common::fill(&mut id, 7 + version, no);
    let id = ObjectId::from_bytes(id);
    Value::Blob {
        id,
        bytes: BLOB_BYTES,
    }
}

fn put(changes: &mut Changes, no: u64, version: u64) {
    changes
        .put(&common::key(no), value(no, version))
        .expect("a good change");
}

/// One value changed, one key added and removed, and the hashes alone.
fn apply(bench: &mut common::Bench, store: &mut Store, root: ObjectId, keys: u64, label: &str) {
    let rounds = bench.pick(15, 2);
    let many = bench.pick(2_000, 20);
    let mut sets: [Vec<Histogram<u64>>; 4] = Default::default();
    let (mut new_bytes, mut checksum) = (0, 0);
    let mut hashed = Vec::new();
    for round in 0..rounds {
        let mut one = [(); 4].map(|()| helios::metrics::latency_histogram());
        let mut numbers = common::Numbers(round);
        for version in 1..=many {
            let no = numbers.below(keys);
            store.changes.clear();
            put(&mut store.changes, no, version);
            let (changed, ns) = timed_apply(store, root);
            one[0].saturating_record(ns);
            checksum ^= changed.hash64();
            hashed.clear();
            hashed.extend(store.writer.new_nodes().map(|(_, bytes)| bytes.to_vec()));
            new_bytes += hashed.iter().map(Vec::len).sum::<usize>();
            let (_, ns) = common::timed(|| {
                for bytes in &hashed {
                    black_box(ObjectId::of_node(bytes));
                }
            });
            one[3].saturating_record(ns);
            // A key between two others comes, and a key goes.
            store.changes.clear();
            let added = [&common::key(no)[..], b"+"].concat();
            store
                .changes
                .put(&added, value(no, 0))
                .expect("a good change");
            let (_, ns) = timed_apply(store, root);
            one[1].saturating_record(ns);
            store.changes.clear();
            store
                .changes
                .delete(&common::key(no))
                .expect("a good change");
            let (_, ns) = timed_apply(store, root);
            one[2].saturating_record(ns);
        }
        for (all, one) in sets.iter_mut().zip(one) {
            all.push(one);
        }
    }
    bench.check(&checksum.to_le_bytes());
    let [change, add, remove, blake3] = sets;
    bench.latencies(format!("BLAKE3 of the new nodes, {label}"), &blake3);
    bench.note(format!("{} bytes", new_bytes as u64 / (rounds * many)));
    bench.latencies(format!("apply of a value, {label}"), &change);
    bench.ratio(&change, &blake3, "BLAKE3");
    bench.latencies(format!("apply of a new key, {label}"), &add);
    bench.ratio(&add, &blake3, "BLAKE3");
    bench.latencies(format!("apply of a removed key, {label}"), &remove);
    bench.ratio(&remove, &blake3, "BLAKE3");
}

fn timed_apply(store: &mut Store, root: ObjectId) -> (ObjectId, u64) {
    let (applied, ns) = common::timed(|| store.writer.apply(&store.nodes, &root, &store.changes));
    (applied.expect("all nodes are there"), ns)
}

/// The same changes again allocate nothing, and neither does a merge.
fn allocations(store: &mut Store, root: ObjectId, keys: u64) {
    let mut merge = Merge::default();
    let (ours, theirs) = (
        store.edited(root, keys, 3, 1),
        store.edited(root, keys, 8, 2),
    );
    let mut again = |counted: bool| {
        let before = helios::metrics::thread_allocations();
        for no in (0..keys).step_by(keys as usize / 50) {
            store.changes.clear();
            put(&mut store.changes, no, 9);
            store
                .changes
                .delete(&common::key(no + 3))
                .expect("a good change");
            store
                .changes
                .put(&[b's', no as u8], value(no, 9))
                .expect("a good change");
            store.changes.sort();
            let applied = store.writer.apply(&store.nodes, &root, &store.changes);
            black_box(applied.expect("all nodes are there"));
            black_box(get(&store.nodes, &root, &common::key(no)).expect("all nodes are there"));
        }
        merge.start(root, ours, theirs);
        black_box(
            merge
                .run(&store.nodes, &[], 100)
                .expect("all nodes are there"),
        );
        let made = helios::metrics::thread_allocations() - before;
        assert!(!counted || made == 0, "{made} allocations");
    };
    again(false);
    again(true);
}

/// Lookups, a batch timed together.
fn read(bench: &mut common::Bench, store: &Store, root: ObjectId, keys: u64, label: &str) {
    const BATCH: u64 = 100;
    let rounds = bench.pick(15, 2);
    let many = bench.pick(2_000, 5);
    let mut checksum = 0;
    let sets: Vec<_> = (0..rounds)
        .map(|round| {
            let mut histogram = helios::metrics::latency_histogram();
            let mut numbers = common::Numbers(round);
            for _ in 0..many {
                let (sum, ns) = common::timed(|| {
                    let reads = (0..BATCH).map(|_| {
                        let key = common::key(numbers.below(keys));
                        let found = get(&store.nodes, &root, &key).expect("all nodes are there");
                        u64::from(found.expect("the key is there").bytes())
                    });
                    reads.sum::<u64>()
                });
                checksum ^= sum;
                histogram.saturating_record(ns / BATCH);
            }
            histogram
        })
        .collect();
    bench.check(&checksum.to_le_bytes());
    bench.latencies(format!("get, {label}"), &sets);
}

fn compare(bench: &mut common::Bench, store: &mut Store, root: ObjectId, keys: u64) {
    let other = store.edited(root, keys, 7, 1);
    let rounds = bench.pick(15, 2);
    let many = bench.pick(200, 2);
    let sets = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            let (found, ns) = common::timed(|| {
                let mut diff = Diff::new(&store.nodes, &root, &other, Bound::Unbounded)
                    .expect("all nodes are there");
                let mut found = 0;
                while diff.next().expect("all nodes are there").is_some() {
                    found += 1;
                }
                found
            });
            assert_eq!(found, DIFFERENT);
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("diff, 10 of 100,000 keys", &sets);
}

fn merge(bench: &mut common::Bench, store: &mut Store, base: ObjectId) {
    let ours = store.edited(base, SMALL, 3, 1);
    let theirs = store.edited(base, SMALL, 8, 2);
    let rounds = bench.pick(15, 2);
    let many = bench.pick(500, 2);
    let mut merge = Merge::default();
    let mut applied = Vec::new();
    let sets = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            let (root, ns) = common::timed(|| {
                merge.start(base, ours, theirs);
                let merged = merge
                    .run(&store.nodes, &[], 100)
                    .expect("all nodes are there");
                assert_eq!(merged, Merged::Clean);
                store.writer.apply(&store.nodes, &ours, merge.changes())
            });
            histogram.saturating_record(ns);
            applied.push(root.expect("all nodes are there"));
        }
    });
    assert_eq!(merge.changes().len() as u64, DIFFERENT);
    bench.check(applied[0].as_bytes());
    bench.latencies("merge and apply, 10 and 10 of 1,000 keys", &sets);
}

/// Everything at once: nanoseconds a key.
fn whole(bench: &mut common::Bench, store: &mut Store, root: ObjectId, keys: u64) {
    let rounds = bench.pick(15, 2);
    let build = common::rounds(rounds, |histogram| {
        store.changes.clear();
        (0..keys).for_each(|no| put(&mut store.changes, no, 0));
        let (built, ns) = timed_apply(store, EMPTY_TREE);
        assert_eq!(built, root);
        histogram.saturating_record(ns / keys);
    });
    bench.latencies("build, 100,000 keys, each", &build);
    let scan = common::rounds(rounds, |histogram| {
        let (seen, ns) = common::timed(|| {
            let mut scan = Scan::new(&store.nodes, &root, b"", b"").expect("all nodes are there");
            let mut seen = 0;
            while scan.next().expect("all nodes are there").is_some() {
                seen += 1;
            }
            seen
        });
        assert_eq!(seen, keys);
        histogram.saturating_record(ns / keys);
    });
    bench.latencies("scan, 100,000 keys, each", &scan);
}

/// A value of 4 MiB, cut and hashed, and 1 KiB appended to it; beside it BLAKE3 of its bytes in pieces of 4 KiB.
fn chunks(bench: &mut common::Bench) {
    let mut bytes = vec![0; bench.pick(4 << 20, 256 << 10)];
    common::fill(&mut bytes, 9, 0);
    let mib = (bytes.len() as f64 / f64::from(1 << 20)).max(1.0);
    let rounds = bench.pick(15, 2);
    let hash = common::rounds(rounds, |histogram| {
        let ((), ns) = common::timed(|| {
            for piece in bytes.chunks(4 << 10) {
                black_box(ObjectId::of_blob(piece));
            }
        });
        histogram.saturating_record((ns as f64 / mib) as u64);
    });
    bench.latencies("BLAKE3 of 1 MiB in pieces of 4 KiB", &hash);
    let mut writer = ValueWriter::default();
    let (mut nodes, mut last) = (MemoryNodes::default(), Vec::new());
    let mut root = None;
    let write = common::rounds(rounds, |histogram| {
        let mut emitted = 0;
        let (value, ns) = common::timed(|| {
            for part in bytes.chunks(64 << 10) {
                writer
                    .push(part, |object| emitted += object.bytes.len())
                    .expect("not too long");
            }
            writer.finish(|object| emitted += object.bytes.len())
        });
        assert!(emitted > bytes.len());
        root = Some(match value {
            Value::Chunks { id, bytes } => (id, bytes),
            other => panic!("a chunked value, not {other:?}"),
        });
        histogram.saturating_record((ns as f64 / mib) as u64);
    });
    bench.latencies("write of 1 MiB in chunks", &write);
    bench.ratio(&write, &hash, "BLAKE3");
    // Once more, to keep the nodes and the last chunk.
    let mut keep = |object: NewObject<'_>| {
        if object.is_node {
            nodes.extend([(object.id, object.bytes)]);
        } else {
            last.clear();
            last.extend_from_slice(object.bytes);
        }
    };
    writer.push(&bytes, &mut keep).expect("not too long");
    writer.finish(&mut keep);
    let (id, len) = root.expect("it was written");
    let many = bench.pick(500, 5);
    let append = common::rounds(rounds, |histogram| {
        for _ in 0..many {
            let (value, ns) = common::timed(|| {
                let (_, last_bytes) = writer
                    .resume(&nodes, &id, len)
                    .expect("all nodes are there");
                assert_eq!(last_bytes as usize, last.len());
                writer.push(&last, |_| {}).expect("not too long");
                writer.push(&bytes[..1024], |_| {}).expect("not too long");
                writer.finish(|_| {})
            });
            assert_eq!(value.bytes(), len + 1024);
            histogram.saturating_record(ns);
        }
    });
    bench.latencies("append of 1 KiB to 4 MiB", &append);
}
