//! Models of a window: its writer against a reader of another process, over loom's words.
//!
//! Floor 1, room `cache`; only there with `--cfg helios_loom`. What loom doesn't model is listed in
//! `shared/model.rs`. The window is the smallest there is, one set; a disturbed reader tries twice.
//! Every word of keys and values is an atomic of loom's, so that a torn value is seen as one.

use loom::thread;

use super::window::WINDOW_BYTES_MIN;
use super::{WindowReader, WindowWriter};
use crate::id::View;
use crate::shared::model::Fault::{Relaxed, Skipped, Stale};
use crate::shared::model::{AtomicU32, Fault, Plant, caught, explore};
use crate::shared::{Access, SharedMemory};

use std::sync::Arc;
use std::sync::atomic::Ordering;

const READER: &str = "src/cache/window.rs";
const WRITER: &str = "src/cache/window_writer.rs";
const VIEW: View = View(1);
const KEY: [u8; 8] = *b"the key ";

const fn bug(file: &'static str, text: &'static str, fault: Fault) -> Plant {
    Plant { file, text, fault }
}

fn window() -> (WindowWriter, WindowReader) {
    let (memory, fd) =
        SharedMemory::create("helios-window", WINDOW_BYTES_MIN, Access::ReadOnly).unwrap();
    let reader = SharedMemory::map(&fd, WINDOW_BYTES_MIN, Access::ReadOnly).unwrap();
    let reader = WindowReader::open(reader).unwrap();
    (WindowWriter::new(memory).unwrap(), reader)
}

/// A value of two words, both of one byte.
fn value(byte: u8) -> [u8; 16] {
    [byte; 16]
}

/// What a read finds is nothing, or one of these values, whole.
fn read(reader: &WindowReader, key: &[u8; 8], allowed: &[u8]) -> Option<u8> {
    let mut out = [0; 16];
    let hit = reader.get(VIEW, key, &mut out)?;
    assert_eq!(hit.value_bytes, 16, "the length of another value");
    assert!(
        allowed.contains(&out[0]),
        "a value of another key, or of before: {out:?}"
    );
    assert_eq!(out, value(out[0]), "a torn value");
    Some(out[0])
}

/// The writer replaces a value in place, says so, and a read after that finds the new one or none.
fn replaced() {
    let (mut writer, reader) = window();
    assert!(writer.insert(VIEW, &KEY, &value(1)));
    let acknowledged = Arc::new(AtomicU32::new(0));
    let told = Arc::clone(&acknowledged);
    let shard = thread::spawn(move || {
        assert!(writer.update(VIEW, &KEY, &value(2)));
        acknowledged.store(1, Ordering::Release);
    });
    let after = told.load(Ordering::Acquire) == 1;
    read(&reader, &KEY, if after { &[2] } else { &[1, 2] });
    shard.join().unwrap();
}

/// The writer takes a value out and puts another key's into the same bytes and the same slot.
fn overtaken() {
    let (mut writer, reader) = window();
    let other = *b"another!";
    assert!(writer.insert(VIEW, &KEY, &value(1)));
    let shard = thread::spawn(move || {
        assert!(writer.invalidate(VIEW, &KEY));
        assert!(writer.insert(VIEW, &other, &value(2)));
        writer
    });
    read(&reader, &KEY, &[1]);
    read(&reader, &other, &[2]);
    shard.join().unwrap();
    assert_eq!(read(&reader, &KEY, &[]), None);
    assert_eq!(read(&reader, &other, &[2]), Some(2));
}

/// The writer takes a value out, moves one that was hit there, and writes another over its old place.
fn moved() {
    let (mut writer, reader) = window();
    let (first, other) = (*b"a first!", *b"another!");
    assert!(writer.insert(VIEW, &first, &value(3)));
    assert!(writer.insert(VIEW, &KEY, &value(1)));
    let mut out = [0; 16];
    let hit = reader.get(VIEW, &KEY, &mut out).unwrap();
    assert!(writer.hit(hit.slot, hit.tag));
    let shard = thread::spawn(move || {
        assert!(writer.invalidate(VIEW, &first));
        writer.go_round();
        // Two lines: the one before the value's is free, its own is needed.
        let mut long = [2; 64];
        long[63] = 4;
        assert!(writer.insert(VIEW, &other, &long));
        writer.check();
        writer
    });
    read(&reader, &first, &[3]);
    read(&reader, &KEY, &[1]);
    shard.join().unwrap();
    assert_eq!(read(&reader, &KEY, &[1]), Some(1));
}

#[test]
fn loom_window_replaced() {
    explore("window: replaced", 3, replaced);
}

#[test]
fn loom_window_replaced_with_bugs() {
    caught(
        "window: replaced",
        3,
        &[
            bug(
                WRITER,
                "fence(Ordering::Release); // Before the bytes of a fill.",
                Skipped,
            ),
            bug(WRITER, "one.store(first, Ordering::Release);", Relaxed),
            bug(
                READER,
                "let first = memory.word(way_at(slot)).load(Ordering::Acquire);",
                Relaxed,
            ),
            bug(READER, "fence(Ordering::Acquire);", Skipped),
            bug(
                READER,
                "let again = memory.word(way_at(slot)).load(Ordering::Relaxed);",
                Stale,
            ),
            bug(
                WRITER,
                "self.memory.word(at).store(first, Ordering::Relaxed);",
                Skipped,
            ),
        ],
        replaced,
    );
}

#[test]
fn loom_window_overtaken() {
    explore("window: overtaken", 3, overtaken);
}

#[test]
fn loom_window_overtaken_with_bugs() {
    caught(
        "window: overtaken",
        3,
        &[
            bug(
                WRITER,
                "fence(Ordering::Release); // Before the bytes of a fill.",
                Skipped,
            ),
            bug(WRITER, "one.store(first, Ordering::Release);", Relaxed),
            bug(READER, "fence(Ordering::Acquire);", Skipped),
            bug(
                READER,
                "let again = memory.word(way_at(slot)).load(Ordering::Relaxed);",
                Stale,
            ),
            bug(
                WRITER,
                "self.memory.word(at).store(first, Ordering::Relaxed);",
                Skipped,
            ),
        ],
        overtaken,
    );
}

#[test]
fn loom_window_moved() {
    explore("window: moved", 2, moved);
}

#[test]
fn loom_window_moved_with_bugs() {
    caught(
        "window: moved",
        2,
        &[
            // The one of the fill that follows is behind this one here, and not needed.
            bug(
                WRITER,
                "fence(Ordering::Release); // Before the bytes of a move.",
                Skipped,
            ),
            bug(WRITER, "one.store(first, Ordering::Release);", Relaxed),
            bug(READER, "fence(Ordering::Acquire);", Skipped),
            bug(
                READER,
                "let again = memory.word(way_at(slot)).load(Ordering::Relaxed);",
                Stale,
            ),
        ],
        moved,
    );
}
