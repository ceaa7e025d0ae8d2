//! Tests of L2 against a map and against a plain S3-FIFO, and its measurement (`--ignored`).

use std::collections::{HashMap, VecDeque};

use super::l2::{BLOCK_BYTES, charge};
use super::*;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn mix(number: u64) -> u64 {
    let z = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The table that a shard keeps.
#[derive(Default)]
struct Table {
    entries: HashMap<u32, EntryNo>,
}

impl Table {
    /// Reads an object through the cache; whether it was there.
    fn access(&mut self, l2: &mut L2, object: u32, value: &[u8]) -> bool {
        if let Some(&entry) = self.entries.get(&object) {
            assert_eq!(l2.get(entry).map(<[u8]>::len).sum::<usize>(), value.len());
            return true;
        }
        let entries = &mut self.entries;
        let mut evicted = |gone: u32| assert!(entries.remove(&gone).is_some());
        if let Some(entry) = l2.insert(object, mix(u64::from(object)), value, &mut evicted) {
            self.entries.insert(object, entry);
        }
        false
    }
}

#[test]
fn random_operations_agree_with_a_map() {
    for seed in 0..4 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut l2 = L2::new(100_000 + random.below(200_000)).unwrap();
        let mut map = HashMap::<u32, (EntryNo, Vec<u8>)>::new();
        for operation in 0..5_000 {
            let object = random.below(2_000) as u32;
            let longest = [100, 1_000, 1_000, 10_000, 30_000][random.below(5)];
            let length = random.below(longest);
            match (random.below(10), map.get(&object)) {
                (0, Some((entry, _))) => {
                    l2.remove(*entry);
                    map.remove(&object);
                }
                (1, Some((entry, value))) => {
                    let offset = random.below(value.len() + 300);
                    let mut out = vec![0xee; random.below(2_000)];
                    let read = l2.read(*entry, offset, &mut out);
                    let tail = &value[offset.min(value.len())..];
                    assert_eq!(read, tail.len().min(out.len()));
                    assert_eq!(out[..read], tail[..read]);
                }
                (_, Some((entry, value))) => {
                    let touches = l2.touches(*entry);
                    l2.prefetch_entry(*entry);
                    l2.prefetch(*entry);
                    assert_eq!(l2.value_bytes(*entry), value.len());
                    let found = l2.get(*entry).collect::<Vec<_>>().concat();
                    assert_eq!(&found, value);
                    assert_eq!(l2.touches(*entry), (touches + 1).min(3));
                }
                (_, None) => {
                    let value: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                    let mut gone = |object| assert!(map.remove(&object).is_some());
                    let entry = l2.insert(object, mix(u64::from(object)), &value, &mut gone);
                    assert_eq!(entry.is_some(), value.len() <= l2.value_bytes_max());
                    if let Some(entry) = entry {
                        map.insert(object, (entry, value));
                    }
                }
            }
            assert_eq!(l2.len(), map.len());
            assert!(l2.bytes_used() <= l2.bytes_capacity());
            if operation % 16 == 0 {
                let used: usize = map.values().map(|(_, value)| charge(value.len())).sum();
                assert_eq!(l2.bytes_used(), used);
            }
        }
        assert!(l2.bytes_used() > l2.bytes_capacity() / 2);
        map.into_values().for_each(|(entry, _)| l2.remove(entry));
        assert!(l2.is_empty() && l2.bytes_used() == 0);
    }
}

#[test]
fn caches_too_small_for_anything_hold_nothing() {
    for bytes in [0, 1, 64, 1_000, 4_000] {
        let mut l2 = L2::new(bytes).unwrap();
        assert_eq!(l2.insert(1, 1, b"value", &mut |_| panic!()), None);
        assert!(l2.is_empty() && l2.bytes_capacity() <= bytes);
    }
}

#[test]
fn a_scan_leaves_what_is_read_again() {
    let mut l2 = L2::new(1 << 20).unwrap();
    let mut table = Table::default();
    let value = [1; 700];
    for _ in 0..4 {
        (0..300).for_each(|hot| _ = table.access(&mut l2, hot, &value));
    }
    // Ten times the capacity, each object once, the hot ones read again now and then.
    let scan = 10 * l2.bytes_capacity() / charge(value.len());
    let mut hits = 0;
    for number in 0..scan as u32 {
        table.access(&mut l2, 1_000 + number, &value);
        hits += usize::from(table.access(&mut l2, number % 300, &value));
    }
    // Of the hot ones, the last to earn a place in the main queue may have to earn it again.
    assert!(
        hits > scan - scan / 100,
        "{hits} of {scan}: the scan flushed hot objects"
    );
    assert_eq!(table.entries.len(), l2.len());
}

#[test]
#[should_panic(expected = "left the cache")]
fn an_entry_that_was_removed_is_not_read() {
    let mut l2 = L2::new(1 << 20).unwrap();
    let entry = l2.insert(1, 1, b"value", &mut |_| ()).unwrap();
    l2.remove(entry);
    let _ = l2.touches(entry);
}

/// S3-FIFO as one would write it down.
struct Plain {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    /// Objects let go by the small queue, and blocks since.
    ghost: VecDeque<(u32, usize)>,
    touches: HashMap<u32, (u8, usize)>,
    capacity: usize,
    ghost_blocks: usize,
}

impl Plain {
    fn bytes(&self, queue: &VecDeque<u32>) -> usize {
        queue
            .iter()
            .map(|object| charge(self.touches[object].1))
            .sum()
    }

    fn access(&mut self, object: u32, length: usize) -> bool {
        if let Some((touches, _)) = self.touches.get_mut(&object) {
            *touches = (*touches + 1).min(3);
            return true;
        }
        let ghost = self.ghost.iter().position(|&(gone, _)| gone == object);
        if let Some(place) = ghost {
            self.ghost[place].0 = u32::MAX;
        }
        while self.bytes(&self.small) + self.bytes(&self.main) + charge(length) > self.capacity {
            if self.bytes(&self.small) > self.capacity / 10 || self.main.is_empty() {
                let oldest = self.small.pop_front().unwrap();
                let (touches, length) = self.touches[&oldest];
                if touches >= 2 {
                    self.touches.insert(oldest, (0, length));
                    self.main.push_back(oldest);
                } else {
                    self.touches.remove(&oldest);
                    self.remember(oldest, length.div_ceil(BLOCK_BYTES).max(1));
                }
            } else {
                let oldest = self.main.pop_front().unwrap();
                let (touches, length) = self.touches[&oldest];
                if touches > 0 {
                    self.touches.insert(oldest, (touches - 1, length));
                    self.main.push_back(oldest);
                } else {
                    self.touches.remove(&oldest);
                }
            }
        }
        self.touches.insert(object, (0, length));
        match ghost {
            Some(_) => self.main.push_back(object),
            None => self.small.push_back(object),
        }
        false
    }

    fn remember(&mut self, object: u32, blocks: usize) {
        self.ghost.push_back((object, blocks));
        let mut sum: usize = self.ghost.iter().map(|(_, blocks)| blocks).sum();
        while sum > self.ghost_blocks {
            sum -= self.ghost.pop_front().unwrap().1;
        }
    }
}

#[test]
fn decisions_are_those_of_a_plain_s3_fifo() {
    for seed in 0..4 {
        println!("seed {seed}");
        let bytes = 150_000;
        let mut l2 = L2::new(bytes).unwrap();
        let mut table = Table::default();
        let mut plain = Plain {
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            touches: HashMap::new(),
            capacity: l2.bytes_capacity(),
            ghost_blocks: (bytes - bytes / 10) / charge(1),
        };
        let mut random = Random(seed);
        let value = [3; 4_000];
        let mut hits = 0;
        for access in 0..12_000 {
            // Zipf of exponent 1, near enough: uniform in the logarithm of the rank.
            let rank = 3_000f64.powf(random.below(1 << 20) as f64 / f64::from(1 << 20));
            let object = rank as u32;
            let length = mix(u64::from(object) ^ seed) as usize % 1_500;
            let hit = table.access(&mut l2, object, &value[..length]);
            assert_eq!(hit, plain.access(object, length), "access {access}");
            hits += usize::from(hit);
        }
        assert!(hits > 2_000, "{hits} hits");
    }
}

/// Nanoseconds of a get of 1 KiB: an aid to judgement, no test.
#[test]
#[ignore = "measures; run it alone, in release"]
fn measure_gets() {
    const COUNT: usize = 100_000;
    let mut l2 = L2::new(160 << 20).unwrap();
    let mut table = Table::default();
    // Churn first, so that chains are not in the order of their making.
    let mut random = Random(5);
    for round in 0..3 {
        let mut order: Vec<u32> = (0..COUNT as u32).collect();
        for index in 1..COUNT {
            order.swap(index, random.below(index + 1));
        }
        for &object in &order {
            if round > 0 {
                l2.remove(table.entries.remove(&object).unwrap());
            }
            if round == 1 && object % 2 == 0 {
                let other = object + 1_000_000;
                table.access(&mut l2, other, &[1; 300]);
                l2.remove(table.entries.remove(&other).unwrap());
            }
            table.access(&mut l2, object, &[object as u8; 1024]);
        }
    }
    assert_eq!(l2.len(), COUNT);
    let entries: Vec<EntryNo> = (0..COUNT as u32).map(|no| table.entries[&no]).collect();
    for depth in [0, 8] {
        let mut out = [0; 1024];
        let mut sum = 0;
        let mut picks: Vec<usize> = (0..400_000).map(|_| random.below(COUNT)).collect();
        picks.extend_from_within(..depth);
        let start = std::time::Instant::now();
        for index in 0..400_000 {
            if depth > 0 {
                l2.prefetch_entry(entries[picks[index + depth]]);
                l2.prefetch(entries[picks[index + depth / 2]]);
            }
            let mut at = 0;
            for chunk in l2.get(entries[picks[index]]) {
                out[at..at + chunk.len()].copy_from_slice(chunk);
                at += chunk.len();
            }
            sum += u64::from(out[1023]);
        }
        let ns = start.elapsed().as_nanos() as f64 / 400_000.0;
        println!("get of 1 KiB, prefetch {depth} ahead: {ns:.0} ns mean ({sum})");
    }
}

/// What is in groups is beside S3-FIFO: it takes nothing from there, whatever is done with it.
#[test]
fn groups_leave_as_a_whole_and_take_nothing_of_others() {
    for seed in 0..4 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut l2 = L2::new(200_000).unwrap();
        let mut table = Table::default();
        // It is full, so that whatever needs room takes it from somebody.
        for object in 0..300 {
            table.access(&mut l2, object, &[object as u8; 1000]);
        }
        assert!(l2.bytes_used() > l2.bytes_capacity() - 2_000);
        let (used, len) = (l2.bytes_used(), l2.len());
        // By group: object, entry and value of each.
        let mut model: Vec<Vec<(u32, EntryNo, Vec<u8>)>> = vec![Vec::new(); GROUPS_MAX];
        let mut next = 1000;
        for _ in 0..4_000 {
            let group = random.below(5) * 50;
            let no = GroupNo(group as u16);
            match random.below(8) {
                0 => {
                    let mut gone = Vec::new();
                    l2.evict_group(no, &mut |object| gone.push(object));
                    let wanted = std::mem::take(&mut model[group]);
                    assert!(gone.iter().eq(wanted.iter().map(|(object, ..)| object)));
                }
                1 if !model[group].is_empty() => {
                    let at = random.below(model[group].len());
                    let (_, entry, _) = model[group].remove(at);
                    l2.remove(entry);
                }
                _ => {
                    let value = vec![next as u8; random.below(3_000)];
                    let before = l2.group_bytes();
                    let entry = l2.insert_grouped(no, next, mix(u64::from(next)), &value);
                    let fits = before + charge(value.len()) <= l2.group_bytes_capacity();
                    assert_eq!(entry.is_some(), fits);
                    model[group].extend(entry.map(|entry| (next, entry, value)));
                    next += 1;
                }
            }
            let mut bytes = 0;
            for (object, entry, value) in model.iter().flatten() {
                bytes += charge(value.len());
                assert!(l2.is_grouped(*entry), "{object}");
            }
            assert_eq!(l2.group_bytes(), bytes);
            assert!(bytes <= l2.group_bytes_capacity());
            let count = model.iter().map(Vec::len).sum::<usize>();
            assert_eq!((l2.bytes_used(), l2.len()), (used, len + count));
        }
        for (_, entry, value) in model.iter().flatten() {
            assert_eq!(l2.get(*entry).collect::<Vec<_>>().concat(), *value);
        }
        // Somebody else's use takes an entry out; then others may go for it.
        let (object, entry, value) = model.iter_mut().find_map(Vec::pop).unwrap();
        let mut evicted = |gone: u32| assert!(table.entries.remove(&gone).is_some());
        l2.ungroup(entry, &mut evicted);
        assert!(!l2.is_grouped(entry));
        table.entries.insert(object, entry);
        assert!(table.access(&mut l2, object, &value));
        assert!(l2.bytes_used() <= l2.bytes_capacity());
        assert_eq!(l2.insert_grouped(GroupNo(1), 1, 1, &[0; 60_000]), None);
        assert!(!l2.may_group(60_000) && l2.may_group(1_000));
    }
}
