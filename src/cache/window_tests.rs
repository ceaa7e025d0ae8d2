//! Tests of both halves of the window, and its measurements (`--ignored`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::window::{
    self, LINE_BYTES, Place, WAYS, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN, set_of, sets, tag_of, way_at,
};
use super::*;
use crate::id::View;
use crate::shared::{Access, SharedMemory};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A view; where nothing is said of others, all is in this one.
const V: View = View(0);

/// A writer, and a reader over a second, read-only mapping.
fn window(bytes: usize) -> (WindowWriter, WindowReader) {
    let (memory, fd) = SharedMemory::create("window", bytes, Access::ReadOnly).unwrap();
    let peer = SharedMemory::map(&fd, bytes, Access::ReadOnly).unwrap();
    (
        WindowWriter::new(memory).unwrap(),
        WindowReader::open(peer).unwrap(),
    )
}

fn read(reader: &WindowReader, key: &[u8]) -> Option<Vec<u8>> {
    read_in(reader, V, key)
}

fn read_in(reader: &WindowReader, view: View, key: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let hit = reader.get_into(view, key, &mut out)?;
    assert_eq!(hit.value_bytes, out.len());
    Some(out)
}

/// Distinct keys of lengths from 3 to 1,024.
fn key(number: usize) -> Vec<u8> {
    let mut key = format!("{number:03}/").repeat(1 + number % 7).into_bytes();
    if number.is_multiple_of(41) {
        key.resize(1024 - number % 3, b'k');
    }
    key.truncate((key.len() - number % 4).max(3));
    key
}

#[test]
fn the_hash_is_the_one_in_the_document() {
    let hundred: Vec<u8> = (0..100).collect();
    let vectors: [(&[u8], u64); 10] = [
        (b"", 0xe28f_2b20_61a2_b984),
        (b"a", 0xa21b_3e83_4503_3071),
        (b"hello", 0x0175_8097_b0fd_daed),
        (b"12345678", 0x8aed_3a78_56d4_eb7f),
        (b"123456789", 0x12aa_926b_bc5e_3f92),
        (b"user/42/preferences.json", 0x8f53_4585_56d2_e74a),
        (&hundred, 0x9e3d_14a5_b273_ffb0),
        (&[0], 0xd153_941f_83d0_cc19),
        (&[0; 8], 0xe633_5906_611b_fb06),
        (&[b'k'; 1024], 0x5454_bd9a_5d5c_7357),
    ];
    for (key, hash) in vectors {
        assert_eq!(hash_key(key), hash, "{key:?}");
    }
}

#[test]
fn random_operations_agree_with_a_map() {
    for seed in 0..12 {
        let bytes = [8 << 10, 16 << 10, 64 << 10][seed as usize % 3];
        check_against_map(seed, bytes, 6000);
    }
}

fn check_against_map(seed: u64, bytes: usize, operations: usize) {
    println!("seed {seed}, {bytes} bytes");
    let mut random = Random(seed);
    let (mut writer, reader) = window(bytes);
    let mut map = HashMap::<(View, Vec<u8>), Vec<u8>>::new();
    let mut view = V;
    let (mut hits, mut gets) = (0, 0);
    let mut before = Snapshot::default();
    for _ in 0..operations {
        let key = key(random.below(bytes / 100));
        let length = match random.below(8) {
            0 => random.below(writer.value_bytes_max() + 10),
            1 => random.below(4) * 64,
            _ => random.below(300),
        };
        let value: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        let place = (view, key.clone());
        match random.below(100) {
            0..30 => {
                let fits = writer.insert(view, &key, &value);
                assert_eq!(fits, value.len() <= writer.value_bytes_max());
                assert_eq!(read_in(&reader, view, &key), fits.then(|| value.clone()));
                map.insert(place, value);
            }
            30..40 => {
                let was_there = reader.contains(view, &key);
                let fits = value.len() <= writer.value_bytes_max();
                assert_eq!(writer.update(view, &key, &value), was_there && fits);
                assert_eq!(reader.contains(view, &key), was_there && fits);
                map.insert(place, value);
            }
            40..45 => {
                assert_eq!(writer.contains(view, &key), reader.contains(view, &key));
                let was_there = reader.contains(view, &key);
                assert_eq!(writer.invalidate(view, &key), was_there);
                assert!(!reader.contains(view, &key) && !writer.contains(view, &key));
                map.remove(&place);
            }
            45 if random.below(20) == 0 => {
                writer.clear();
                assert!(writer.is_empty());
            }
            46 => {
                view = View(random.below(3) as u32);
            }
            _ => {
                gets += 1;
                if let Some(found) = read_in(&reader, view, &key) {
                    assert_eq!(
                        Some(&found),
                        map.get(&place),
                        "a value that is not the last"
                    );
                    hits += 1;
                    let hit = reader.get(view, &key, &mut []).unwrap();
                    assert!(writer.hit(hit.slot, hit.tag));
                    let mut named = Vec::new();
                    assert!(writer.key(hit.slot, hit.tag, &mut named));
                    assert_eq!(named, key);
                }
            }
        }
        writer.check();
        if bytes == WINDOW_BYTES_MIN {
            let after = Snapshot::take(&writer);
            after.assert_reused_bytes_were_invalidated(&before);
            before = after;
        }
    }
    assert!(
        hits > gets / 20,
        "{hits} hits of {gets}: the test tests nothing"
    );
}

/// The whole region, as a reader could have it in its registers.
#[derive(Default)]
struct Snapshot {
    words: Vec<u64>,
}

impl Snapshot {
    fn take(writer: &WindowWriter) -> Self {
        let words = (0..writer.bytes() / 8).map(|word| writer.word(word * 8));
        Self {
            words: words.collect(),
        }
    }

    /// A way that a reader finds unchanged has its bytes unchanged.
    fn assert_reused_bytes_were_invalidated(&self, before: &Self) {
        if before.words.is_empty() {
            return;
        }
        for slot in 0..sets(self.words.len() * 8) * WAYS {
            let first = way_at(slot) / 8;
            if before.words[first] != self.words[first] || self.words[first] & 1 == 1 {
                continue;
            }
            let (old, new) = (before.words[first + 1], self.words[first + 1]);
            assert_eq!(old, new);
            let place = Place::unpack(new);
            let from = place.line as usize * LINE_BYTES / 8;
            let words =
                (place.key_bytes as usize).div_ceil(8) + (place.value_bytes as usize).div_ceil(8);
            assert_eq!(
                self.words[from..from + words],
                before.words[from..from + words],
                "slot {slot} was reused under a reader"
            );
        }
    }
}

#[test]
fn what_is_hit_outlives_what_is_not() {
    let (mut writer, reader) = window(64 << 10);
    writer.insert(V, b"kept", &[7; 200]);
    writer.insert(V, b"left", &[7; 200]);
    for number in 0..2000u32 {
        let hit = reader.get(V, b"kept", &mut []).expect("kept by its hits");
        assert!(writer.hit(hit.slot, hit.tag));
        writer.insert(V, format!("other/{number}").as_bytes(), &[1; 200]);
        writer.check();
    }
    assert_eq!(read(&reader, b"kept"), Some(vec![7; 200]));
    assert!(!reader.contains(V, b"left"));
    // Hits of everything don't stop the log.
    for number in 0..2000u32 {
        let key = format!("hit/{number}");
        assert!(writer.insert(V, key.as_bytes(), &[1; 200]));
        let hit = reader.get(V, key.as_bytes(), &mut []).unwrap();
        assert!(writer.hit(hit.slot, hit.tag));
        writer.check();
    }
}

#[test]
fn windows_fill_up_with_small_and_large_values() {
    for bytes in [WINDOW_BYTES_MIN, 64 << 10, WINDOW_BYTES_MAX] {
        let (mut writer, reader) = window(bytes);
        for length in [0, 1, 200, writer.value_bytes_max()] {
            let many = bytes / (length + 64) * 2;
            for number in 0..many {
                let key = format!("{length}/{number}");
                assert!(writer.insert(V, key.as_bytes(), &vec![number as u8; length]));
                assert!(reader.contains(V, key.as_bytes()));
            }
            writer.check();
            let present =
                |number: &usize| reader.contains(V, format!("{length}/{number}").as_bytes());
            let held = (0..many).filter(present).count();
            let room = (sets(bytes) * WAYS).min(bytes / (length + 64));
            assert!(held > room / 4, "{held} of {room} values of {length}");
        }
    }
}

#[test]
fn an_unused_window_costs_nothing_and_misses() {
    let (mut writer, reader) = window(64 << 10);
    assert!(!writer.update(V, b"key", b"value") && !writer.invalidate(V, b"key"));
    assert!(!writer.hit(0, 0) && !writer.key(0, 0, &mut Vec::new()));
    writer.clear();
    assert_eq!(writer.shadow_bytes(), 0);
    assert_eq!(reader.is_used(), Ok(false));
    assert_eq!(reader.get(V, b"key", &mut []), None);
    assert!(writer.insert(V, b"key", b"value"));
    assert!(writer.shadow_bytes() <= writer.bytes() / 12);
    assert_eq!(reader.is_used(), Ok(true));
    assert_eq!(read(&reader, b"key").unwrap(), b"value");
}

#[test]
fn a_short_buffer_takes_the_front_of_a_value() {
    let (mut writer, reader) = window(8 << 10);
    let value: Vec<u8> = (0..100).collect();
    writer.insert(V, b"key", &value);
    for length in 0..110 {
        let mut out = vec![0xee; length];
        assert_eq!(reader.get(V, b"key", &mut out).unwrap().value_bytes, 100);
        let front = length.min(100);
        assert_eq!(out[..front], value[..front]);
        assert!(out[front..].iter().all(|&byte| byte == 0xee));
    }
}

#[test]
fn keys_and_values_that_do_not_fit_leave_nothing_behind() {
    let (mut writer, reader) = window(8 << 10);
    let long = vec![0; writer.value_bytes_max() + 1];
    assert!(writer.insert(V, b"key", b"old") && !writer.insert(V, b"key", &long));
    assert!(!reader.contains(V, b"key"));
    assert!(writer.insert(V, b"key", b"old") && !writer.update(V, b"key", &long));
    assert!(!reader.contains(V, b"key"));
    assert!(!writer.insert(V, &[0; 1025], b"value"));
    assert!(!reader.contains(V, &[0; 1025]) && !reader.contains(V, &[0; 5000]));
    assert!(writer.insert(V, &[0; 1024], b"value") && reader.contains(V, &[0; 1024]));
}

#[test]
fn regions_that_are_no_window_are_refused() {
    for bytes in [4 << 10, 12 << 10, 8 << 20] {
        let (memory, fd) = SharedMemory::create("window", bytes, Access::ReadOnly).unwrap();
        let peer = SharedMemory::map(&fd, bytes, Access::ReadOnly).unwrap();
        let refused = Err(WindowError::Size { bytes });
        assert_eq!(WindowReader::open(peer).map(|_| ()), refused);
        assert_eq!(WindowWriter::new(memory).map(|_| ()), refused);
    }
    let (memory, fd) = SharedMemory::create("window", 8192, Access::ReadOnly).unwrap();
    memory.word(0).store(0x0257_4c48, Ordering::Relaxed);
    let peer = SharedMemory::map(&fd, 8192, Access::ReadOnly).unwrap();
    let reader = WindowReader::open(peer).unwrap();
    let found = 0x0257_4c48;
    assert_eq!(reader.is_used(), Err(WindowError::Format { found }));
    assert!(!reader.contains(V, b""));
}

#[test]
fn hostile_bytes_end_in_a_miss_or_rubbish_but_never_in_a_panic() {
    let bytes = 8 << 10;
    let (memory, fd) = SharedMemory::create("window", bytes, Access::ReadOnly).unwrap();
    let peer = SharedMemory::map(&fd, bytes, Access::ReadOnly).unwrap();
    let reader = WindowReader::open(peer).unwrap();
    let mut random = Random(1);
    let mut hits = 0;
    for round in 0..20_000 {
        if round % 500 == 0 {
            for word in 1..bytes / 8 {
                memory
                    .word(word * 8)
                    .store(random.next(), Ordering::Relaxed);
            }
        }
        let view = View(random.next() as u32);
        memory.half(0).store(window::MAGIC, Ordering::Relaxed);
        let key = key(random.below(100));
        let hash = in_view(hash_key(&key), view);
        for way in 0..WAYS {
            let at = way_at(set_of(hash, bytes) * WAYS + way);
            let first = u64::from(tag_of(hash)) << 32 | random.next() & 0xffff;
            let place = Place {
                line: [random.below(130), random.below(1 << 20)][random.below(2)] as u32,
                key_bytes: [key.len() as u32, random.below(4096) as u32][random.below(2)],
                value_bytes: [random.below(8192) as u32, random.next() as u32][random.below(2)],
            };
            memory.word(at).store(first, Ordering::Relaxed);
            memory.word(at + 8).store(place.pack(), Ordering::Relaxed);
            // Sometimes the key is there, and only the value's place is wild.
            let key_at = place.line as usize * LINE_BYTES;
            if random.below(2) == 0 && key_at >= bytes / 16 && key_at + 1024 <= bytes {
                let mut padded = key.clone();
                padded.resize(key.len().next_multiple_of(8), 0);
                memory.copy_in(key_at, &padded);
            }
        }
        let mut out = vec![0; random.below(300)];
        hits += usize::from(reader.get(view, &key, &mut out).is_some());
        if let Some(found) = read_in(&reader, view, &key) {
            assert!(found.len() <= bytes);
        }
    }
    assert!(hits > 100, "{hits} hits: the test tests nothing");
}

/// A value that shows any tear: its words follow from key, version and place.
fn tell_tale(key: usize, version: u64, length: usize, value: &mut Vec<u8>) {
    value.clear();
    value.extend((version << 16 | key as u64).to_le_bytes());
    let mut random = Random(version << 16 | key as u64);
    while value.len() < length {
        value.extend(random.next().to_le_bytes());
    }
    value.truncate(length.max(8));
}

/// Ends the writer when a reader ends, also by a failure.
struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Readers check every hit while the writer rewrites, overtakes, moves and drops.
#[test]
fn no_reader_ever_sees_a_torn_or_older_value() {
    const KEYS: usize = 40;
    let hits_wanted = if cfg!(debug_assertions) {
        150_000
    } else {
        4_000_000
    };
    let (memory, fd) = SharedMemory::create("window", 8192, Access::ReadOnly).unwrap();
    let mut writer = WindowWriter::new(memory).unwrap();
    let readers_left = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let peer = SharedMemory::map(&fd, 8192, Access::ReadOnly).unwrap();
            let reader = WindowReader::open(peer).unwrap();
            let leave = Leave(&readers_left);
            scope.spawn(move || {
                let _leave = leave;
                let mut random = Random(seed);
                let mut newest = [0; KEYS];
                let (mut found, mut expected) = (Vec::new(), Vec::new());
                let mut hits = 0;
                while hits < hits_wanted {
                    let number = random.below(KEYS);
                    if reader.get_into(V, &key(number), &mut found).is_none() {
                        continue;
                    }
                    hits += 1;
                    let word = u64::from_le_bytes(found[..8].try_into().unwrap());
                    let version = word >> 16;
                    tell_tale(number, version, found.len(), &mut expected);
                    assert_eq!(found, expected, "a torn value");
                    assert!(version >= newest[number], "an older value");
                    newest[number] = version;
                }
            });
        }
        let mut random = Random(99);
        let mut value = Vec::new();
        let mut version = 0;
        while readers_left.load(Ordering::Relaxed) > 0 {
            let number = random.below(KEYS);
            version += 1;
            let length = 8 + random.below(600);
            tell_tale(number, version, length, &mut value);
            match random.below(16) {
                0 => _ = writer.invalidate(V, &key(number)),
                1..6 => _ = writer.update(V, &key(number), &value),
                6 => _ = writer.hit(random.below(28) as u32, tag_of(hash_key(&key(number)))),
                _ => assert!(writer.insert(V, &key(number), &value)),
            }
            // Hits of a whole set now and then, so that extents are moved ahead.
            if random.below(4) == 0 {
                let hash = hash_key(&key(number));
                let first = set_of(hash, 8192) * WAYS;
                for slot in first..first + WAYS {
                    writer.hit(slot as u32, tag_of(hash));
                }
            }
            // Readers that share the core of a writer that never rests see few hits.
            if version % 64 == 0 {
                std::thread::yield_now();
            }
        }
        writer.check();
    });
}

/// Nanoseconds of a hit, by windows visited in turn: an aid to judgement, no test.
#[test]
#[ignore = "measures; run it alone, in release"]
fn measure_hits() {
    for (count, bytes) in [
        (1, 64 << 10),
        (50, 64 << 10),
        (850, 64 << 10),
        (850, 8 << 10),
    ] {
        let mut keys: Vec<Vec<u8>> = (0..16)
            .map(|number| format!("state/{number:04}/notes.json").into_bytes())
            .collect();
        let windows: Vec<_> = (0..count).map(|_| window(bytes)).collect();
        let (mut writers, readers): (Vec<_>, Vec<_>) = windows.into_iter().unzip();
        for writer in &mut writers {
            keys.iter()
                .for_each(|key| assert!(writer.insert(V, key, &[7; 256])));
        }
        // All windows look alike; in small ones a set may have had five of the keys.
        keys.retain(|key| writers[0].contains(V, key));
        let mut out = [0; 256];
        let mut samples = Vec::new();
        let mut sum = 0;
        for round in 0..400_000 / count + 20 {
            let start = std::time::Instant::now();
            for turn in 0..count {
                let reader = &readers[turn];
                let key = &keys[(round * 7 + turn) % keys.len()];
                let hit = reader.get(V, key, &mut out).unwrap();
                sum += hit.value_bytes as u64 + u64::from(out[255]);
            }
            samples.push(start.elapsed().as_nanos() as f64 / count as f64);
        }
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
        println!(
            "{count} windows of {bytes}: {:.0} ns p50, {:.0} ns p95 (mean of a round; {sum})",
            at(0.5),
            at(0.95)
        );
    }
}
