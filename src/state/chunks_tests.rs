//! Tests of large values: parts, ranges, edits, growth, damage.

use std::collections::HashMap;

use proptest::prelude::*;

use super::chunks::*;
use super::tree::tests::vectors::vector;
use super::tree::*;
use crate::id::{ObjectId, VALUE_BYTES_MAX};

/// Every object that was ever emitted.
#[derive(Default)]
struct Store {
    nodes: MemoryNodes,
    blobs: HashMap<ObjectId, Vec<u8>>,
    /// Bytes of objects that were new, and how many they were.
    new_bytes: usize,
    new_objects: usize,
}

impl Store {
    /// Writes a value in parts of these lengths, in turn. Lengths of 0 are parts too.
    fn write<'w>(
        &mut self,
        writer: &'w mut ValueWriter,
        bytes: &[u8],
        parts: &[usize],
    ) -> Value<'w> {
        let (mut rest, mut no) = (bytes, 0);
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(parts[no % parts.len()].min(rest.len()));
            writer.push(part, |object| self.take(object)).unwrap();
            (rest, no) = (behind, no + 1);
        }
        writer.finish(|object| self.take(object))
    }

    fn take(&mut self, object: NewObject<'_>) {
        let is_new = if object.is_node {
            assert_eq!(object.id, ObjectId::of_chunks(object.bytes));
            check_chunks(object.bytes).unwrap();
            let is_new = self.nodes.node(&object.id).is_none();
            self.nodes.extend([(object.id, object.bytes)]);
            is_new
        } else {
            assert_eq!(object.id, ObjectId::of_blob(object.bytes));
            self.blobs
                .insert(object.id, object.bytes.to_vec())
                .is_none()
        };
        if is_new {
            self.new_bytes += object.bytes.len();
            self.new_objects += 1;
        }
    }

    fn read(&self, id: ObjectId, bytes: u32, range: std::ops::Range<u32>) -> Vec<u8> {
        let mut reader = ChunkReader::new(id, bytes, range);
        let (mut pieces, mut found) = (Vec::new(), Vec::new());
        while reader.read(&self.nodes, &mut pieces, 3).unwrap() {
            assert_eq!(pieces.len(), 3);
            pieces
                .drain(..)
                .for_each(|piece| found.extend(self.piece(&piece)));
        }
        pieces
            .iter()
            .for_each(|piece| found.extend(self.piece(piece)));
        found
    }

    fn piece(&self, piece: &Piece) -> &[u8] {
        assert!(!piece.range.is_empty());
        &self.blobs[&piece.id][piece.range.start as usize..piece.range.end as usize]
    }
}

/// Bytes that nothing compresses.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let words = (0..bytes.div_ceil(8) as u64).flat_map(|no| {
        boundary::key_hash(&[seed.to_le_bytes(), no.to_le_bytes()].concat()).to_le_bytes()
    });
    words.take(bytes).collect()
}

/// Text as agents' histories are: JSON, messages of some hundred bytes, of a few thousand words.
fn messages(from: usize, to: usize) -> String {
    let hash = |no: usize| boundary::key_hash(&no.to_le_bytes()) >> 20;
    let word = |no: u64| {
        let letters = hash(no as usize);
        let letter = |at| char::from(b'a' + ((letters >> (5 * at)) & 31) as u8 % 26);
        (0..2 + no % 7).map(letter).chain([' ']).collect::<String>()
    };
    let message = |no: usize| {
        let role = ["user", "assistant", "tool"][no % 3];
        // Some words are much more frequent than others.
        let words = (0..83)
            .map(|at| hash(no * 97 + at))
            .map(|hash| word(hash % (1 << ((hash >> 30) % 13))));
        let content: String = words.collect();
        format!("{{\"id\": {no}, \"role\": \"{role}\", \"content\": \"{content}\"}}, ")
    };
    (from..to).map(message).collect()
}

fn check(bytes: &[u8]) {
    let mut store = Store::default();
    let mut writer = ValueWriter::default();
    let expected = format!(
        "{:?}",
        store.write(&mut writer, bytes, &[bytes.len().max(1)])
    );
    let objects = store.new_objects;
    for parts in [&[1][..], &[4096], &[0, 7, 30_000], &[16_385, 1], &[65_536]] {
        assert_eq!(
            format!("{:?}", store.write(&mut writer, bytes, parts)),
            expected
        );
        assert_eq!(store.new_objects, objects, "the same objects");
    }
    let len = bytes.len() as u32;
    match store.write(&mut writer, bytes, &[5000]) {
        Value::Inline(inline) => assert_eq!((inline, objects), (bytes, 0)),
        Value::Blob { id, bytes: stored } => {
            assert!(bytes.len() > INLINE_BYTES_MAX && len <= BLOB_BYTES_MAX && stored == len);
            assert_eq!((&store.blobs[&id][..], objects), (bytes, 1));
        }
        Value::Chunks { id, bytes: stored } => {
            assert!(len > BLOB_BYTES_MAX && stored == len && objects >= 3);
            assert_eq!(store.read(id, len, 0..u32::MAX), bytes);
            for (from, to) in [
                (0, 1),
                (len - 1, len),
                (len / 3, len / 2),
                (len, len + 9),
                (5, 5),
            ] {
                let wanted = &bytes[from as usize..to.min(len) as usize];
                assert_eq!(store.read(id, len, from..to), wanted);
            }
        }
    }
}

#[test]
fn values_of_all_lengths() {
    let edges = [
        0, 1, 63, 64, 65, 2048, 16_383, 16_384, 16_385, 20_000, 300_000, 1_200_000,
    ];
    for bytes in edges {
        check(&noise(bytes, 1));
        check(&vec![7; bytes]);
    }
    check(messages(0, 700).as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn parts_do_not_matter(
        bytes in 0_usize..60_000,
        parts in prop::collection::vec(0_usize..20_000, 1..6),
        seed in any::<u64>(),
    ) {
        prop_assume!(parts.iter().any(|part| *part > 0));
        let value = noise(bytes, seed);
        let mut store = Store::default();
        let (mut one, mut other) = (ValueWriter::default(), ValueWriter::default());
        let whole = store.write(&mut one, &value, &[bytes.max(1)]);
        let objects = store.new_objects;
        prop_assert_eq!(store.write(&mut other, &value, &parts), whole);
        prop_assert_eq!(store.new_objects, objects);
    }
}

/// New objects of a version beside those of the one before.
fn new_objects(store: &mut Store, bytes: &[u8]) -> (usize, usize) {
    let before = (store.new_objects, store.new_bytes);
    store.write(&mut ValueWriter::default(), bytes, &[65_536]);
    (store.new_objects - before.0, store.new_bytes - before.1)
}

#[test]
fn an_append_to_10_mb_makes_objects_of_the_end() {
    for mut value in [noise(10_000_000, 2), messages(0, 21_000).into_bytes()] {
        let mut store = Store::default();
        let (all, _) = new_objects(&mut store, &value);
        assert!(all > 1500, "{all}");
        value.extend(messages(90_000, 90_001).as_bytes());
        let (new, bytes) = new_objects(&mut store, &value);
        assert!(
            new <= 3 + 3 && bytes < 40_000,
            "{new} objects, {bytes} bytes"
        );
    }
}

/// Appends to a value by its right edge alone, with nodes that come when they are asked for.
fn check_append(value: &[u8], more: &[u8]) {
    let mut store = Store::default();
    let mut writer = ValueWriter::default();
    let Value::Chunks { id, bytes } = store.write(&mut writer, value, &[65_536]) else {
        panic!("a chunked value");
    };
    let mut some = MemoryNodes::default();
    let (last, last_bytes) = loop {
        match writer.resume(&some, &id, bytes) {
            Ok(last) => break last,
            Err(TreeError::Absent(id)) => some.extend([(id, store.nodes.node(&id).unwrap())]),
            Err(other) => panic!("{other}"),
        }
    };
    let chunk = store.blobs[&last].clone();
    assert_eq!(chunk.len(), last_bytes as usize);
    let mut emitted = Store::default();
    writer.push(&chunk, |object| emitted.take(object)).unwrap();
    let appended = emitted.write(&mut writer, more, &[1000]);
    let whole = [value, more].concat();
    let mut other = ValueWriter::default();
    assert_eq!(appended, store.write(&mut other, &whole, &[65_536]));
    assert!(
        emitted.new_objects <= 14 + more.len() / 1000,
        "{}",
        emitted.new_objects
    );
}

#[test]
fn an_append_reads_the_right_edge() {
    for no in 0..300 {
        // Nodes of every fill, and many that begin with the last entry.
        let value = noise(16_400 + no * 1_777, no as u64);
        check_append(&value, &noise(no * 31 % 9000, 1));
    }
    for no in 0..12 {
        check_append(&noise(3_000_000 + no * 5_003, no as u64), b"and more");
    }
    check_append(&vec![0; 700_000], &[0; 40_000]);
}

#[test]
fn a_flip_in_the_middle_makes_a_chunk_or_two_and_their_path() {
    let mut store = Store::default();
    let value = noise(4_000_000, 3);
    new_objects(&mut store, &value);
    let mut total = 0;
    for at in (1..40).map(|no| no * 100_000) {
        let mut flipped = value.clone();
        flipped[at] ^= 1;
        let (new, _) = new_objects(&mut store, &flipped);
        assert!(new <= 16, "{new} objects at {at}");
        total += new;
    }
    assert!(total < 39 * 6, "{total} objects in 39 flips");
}

/// A chat of 390 KB under one key, rewritten with each of its 800 steps, all versions kept.
#[test]
fn a_growing_value_costs_a_few_times_its_last_version() {
    let mut store = Store::default();
    let mut text = String::from("[");
    for step in 0..800 {
        text.push_str(&messages(step, step + 1));
        let version = [text.trim_end_matches(", ").as_bytes(), b"]"].concat();
        store.write(&mut ValueWriter::default(), &version, &[65_536]);
    }
    let times = store.new_bytes as f64 / text.len() as f64;
    println!(
        "{} bytes, {times:.2} times in {} objects",
        text.len(),
        store.new_objects
    );
    assert!((380_000..450_000).contains(&text.len()));
    assert!(times < 10.0, "{times}");
}

/// The same chat with a key for each message, and a tree for each of its 800 checkpoints, which also
/// change a small value. A message is added with each checkpoint, or, as in turns of four, with every
/// fourth. How many times the bytes of the messages all objects are.
fn keys_for_messages(checkpoints_per_message: usize) -> f64 {
    let mut store = Store::default();
    let (mut writer, mut changes) = (TreeWriter::default(), Changes::default());
    let (mut root, mut bytes, mut keys) = (EMPTY_TREE, 0, 1);
    for step in 0..800 {
        changes.clear();
        let mut value = ValueWriter::default();
        if step % checkpoints_per_message == 0 {
            let message = messages(step, step + checkpoints_per_message);
            (bytes, keys) = (bytes + message.len(), keys + 1);
            let value = store.write(&mut value, message.as_bytes(), &[4096]);
            changes
                .put(format!("messages/{step:06}").as_bytes(), value)
                .unwrap();
        }
        let step = step.to_string();
        changes
            .put(b"step", Value::Inline(step.as_bytes()))
            .unwrap();
        root = writer.apply(&store.nodes, &root, &changes).unwrap();
        store.new_bytes += writer
            .new_nodes()
            .map(|(_, node)| node.len())
            .sum::<usize>();
        store.new_objects += writer.new_nodes().count();
        store.nodes.extend(writer.new_nodes());
    }
    assert_eq!(count(&store.nodes, &root), Ok(keys));
    let times = store.new_bytes as f64 / bytes as f64;
    println!(
        "{bytes} bytes, {times:.2} times in {} objects",
        store.new_objects
    );
    times
}

#[test]
fn a_key_per_message_costs_less() {
    let (each, fourth) = (keys_for_messages(1), keys_for_messages(4));
    assert!(each < 4.5 && fourth < 3.5, "{each} {fourth}");
}

#[test]
fn nodes_that_are_absent_come_one_after_the_other() {
    let mut store = Store::default();
    let value = noise(1_500_000, 4);
    let mut writer = ValueWriter::default();
    let Value::Chunks { id, bytes } = store.write(&mut writer, &value, &[65_536]) else {
        panic!("a chunked value");
    };
    let mut some = MemoryNodes::default();
    let mut reader = ChunkReader::new(id, bytes, 100..1_400_000);
    let mut pieces = Vec::new();
    loop {
        match reader.read(&some, &mut pieces, usize::MAX) {
            Ok(more) => break assert!(!more),
            Err(TreeError::Absent(id)) => some.extend([(id, store.nodes.node(&id).unwrap())]),
            Err(other) => panic!("{other}"),
        }
    }
    let found: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| store.piece(piece).to_vec())
        .collect();
    assert_eq!(found, &value[100..1_400_000]);
}

#[test]
fn damaged_nodes_are_errors() {
    let mut store = Store::default();
    let mut writer = ValueWriter::default();
    let Value::Chunks { id, bytes } = store.write(&mut writer, &noise(1_500_000, 5), &[65_536])
    else {
        panic!("a chunked value");
    };
    let ids: Vec<_> = store.nodes.iter().map(|(id, _)| *id).collect();
    let (mut refused, rounds) = (0, 2000);
    for round in 0..rounds {
        let hash = boundary::key_hash(&(round as u64).to_le_bytes());
        let damaged = ids[round % ids.len()];
        let mut stored = store.nodes.node(&damaged).unwrap().to_vec();
        let places = if round % 3 == 0 { 4 } else { stored.len() };
        let at = (hash >> 32) as usize % places;
        match hash % 5 {
            0 => stored.truncate(at),
            1 => stored.insert(at, hash as u8),
            _ => stored[at] ^= hash as u8 | 1,
        }
        let mut nodes = store.nodes.clone();
        nodes.remove(&damaged);
        nodes.extend([(damaged, &stored[..])]);
        let _ = check_chunks(&stored);
        let mut reader = ChunkReader::new(id, bytes, 0..bytes);
        // Another child's id is no damage that this node alone shows: a node that is absent.
        let read = reader.read(&nodes, &mut Vec::new(), usize::MAX);
        refused += usize::from(matches!(read, Err(TreeError::Damaged { .. })));
    }
    assert!(refused > rounds / 4, "{refused} of {rounds}");
    let mut reader = ChunkReader::new(id, bytes + 1, 0..bytes);
    let wrong = reader.read(&store.nodes, &mut Vec::new(), 1);
    let damage = Damage::ChunkBytes;
    assert_eq!(wrong, Err(TreeError::Damaged { id, damage }));
}

#[test]
fn a_value_may_be_too_long() {
    let mut writer = ValueWriter::default();
    let part = vec![0; 1 << 20];
    for _ in 0..VALUE_BYTES_MAX >> 20 {
        writer.push(&part, |_| {}).unwrap();
    }
    assert_eq!(writer.push(&[0], |_| {}), Err(TooLong));
    let value = writer.finish(|_| {});
    assert_eq!(u64::from(value.bytes()), VALUE_BYTES_MAX);
    writer.push(&part, |_| {}).unwrap();
    writer.clear();
    assert_eq!(writer.finish(|_| {}), Value::Inline(b""));
}

#[test]
fn the_vector_of_the_layout() {
    let byte = |no: u32| ((no.wrapping_mul(no)).wrapping_mul(2_654_435_761) >> 24) as u8;
    let value: Vec<u8> = (0..100_000).map(byte).collect();
    let (mut writer, mut lengths) = (ValueWriter::default(), Vec::new());
    let mut note = |object: NewObject<'_>| {
        if !object.is_node {
            lengths.push(object.bytes.len().to_string());
        }
    };
    writer.push(&value, &mut note).unwrap();
    let Value::Chunks { id, .. } = writer.finish(&mut note) else {
        panic!("a chunked value");
    };
    let first = lengths[..6].join(" ");
    assert_eq!(format!("{first} {}", lengths.len()), vector("chunks"));
    assert_eq!(id.to_string(), vector("chunks-id"));
}
