//! Large values in one shard: what they cost in the log, and what damage, restarts, full buffers and
//! failed flushes leave of them.

use super::*;
use crate::id::SegmentNo;
use crate::segment::ObjectKind;
use crate::state::chunks::ValueWriter;

const MIB: usize = 1 << 20;

pub(in crate::shard) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let words = std::iter::repeat_with(|| random.next().to_le_bytes());
    words.flatten().take(bytes).collect()
}

/// The chunks that a value is cut into.
fn chunks_of(value: &[u8]) -> Vec<Vec<u8>> {
    let (mut writer, mut chunks) = (ValueWriter::default(), Vec::new());
    let mut take = |new: crate::state::chunks::NewObject<'_>| {
        if !new.is_node {
            chunks.push(new.bytes.to_vec());
        }
    };
    writer.push(value, &mut take).unwrap();
    writer.finish(&mut take);
    chunks
}

impl World {
    /// Puts a value as a client does.
    fn store(&mut self, key: &[u8], value: &[u8]) -> Completion {
        let completion = match value.len() <= PART_BYTES_MAX as usize {
            true => self.put(key, value),
            false => self.put_large(key, value, Durability::Process),
        };
        assert_eq!(completion.status, Status::Ok);
        completion
    }

    fn get_at(&mut self, key: &[u8], offset: u64) -> Vec<u8> {
        self.submit(Op::Get, key, &[], |entry| entry.arg0 = offset);
        let completion = self.wait();
        assert_eq!(completion.status, Status::Ok);
        let mut bytes = vec![0; completion.reply_bytes as usize];
        let len = completion.reply_bytes;
        self.lane.read_output(Extent { offset: 0, len }, &mut bytes);
        bytes
    }

    fn log_bytes(&self) -> u64 {
        self.shard.store.log.totals().record_bytes
    }

    /// Flips a bit of an object on the disk.
    fn damage(&mut self, object: ObjectNo) {
        let at = self.shard.store.tables.objects.get(object).at;
        self.disk().bytes_mut(at.segment)[at.offset as usize + 20] ^= 4;
    }

    fn root(&self, key: &[u8]) -> ObjectNo {
        let value = self.shard.store.value(main_of_first(), key).unwrap();
        ObjectNo(value.object)
    }
}

#[test]
fn values_of_all_lengths_are_read_at_all_offsets() {
    for l2_bytes in [0, MIB] {
        let mut world = World::new(l2_bytes);
        let lengths = [16_384, 16_385, 65_536, 65_537, MIB + 1];
        for (no, length) in lengths.into_iter().enumerate() {
            let value = noise(no as u64, length);
            let first = world.store(b"k", &value);
            let plain = first.id == ObjectId::of_blob(&value);
            assert_eq!(plain, length <= 16_384, "{length}");
            world.store(b"again", &value);
            for restarts in 0..2 {
                assert!(world.get(b"k").unwrap() == value, "{length}");
                assert!(world.get(b"again").unwrap() == value, "{length}");
                for offset in [0, 1, 4095, 16_383, length / 2, length - 1, length] {
                    let found = world.get_at(b"k", offset as u64);
                    let end = length.min(offset + PART_BYTES_MAX as usize);
                    assert!(found == value[offset..end], "{length} at {offset}");
                }
                if restarts == 0 {
                    world = world.restarted(l2_bytes);
                }
            }
            let segments = world.disk().segments();
            for segment in segments {
                let cold = (SegmentNo(segment), 0..SEGMENT_BYTES);
                world.disk().cold.push(cold);
            }
            assert!(world.get(b"k").unwrap() == value, "{length}, cold");
            world.disk().cold.clear();
        }
    }
}

#[test]
fn an_append_stores_the_end_alone_and_a_copy_nothing() {
    let mut world = World::new(0);
    let mut value = noise(1, 600_000);
    world.store(b"k", &value);
    let whole = world.log_bytes();
    assert!((600_000..640_000).contains(&whole), "{whole}");
    world.store(b"copy", &value);
    let copy = world.log_bytes() - whole;
    assert!(copy < 200, "{copy}");
    value.extend(noise(2, 500));
    world.store(b"k", &value);
    // The last chunk, and a node on each of two or three levels.
    let end = world.log_bytes() - whole - copy;
    assert!((500..30_000).contains(&end), "{end}");
    // In the middle: a chunk or two, and the nodes above.
    let before = world.log_bytes();
    value[300_000] ^= 1;
    world.store(b"k", &value);
    let middle = world.log_bytes() - before;
    assert!((2000..60_000).contains(&middle), "{middle}");
    assert!(world.get(b"copy").unwrap() == value_before(&value));
    let mut world = world.restarted(0);
    assert!(world.get(b"k").unwrap() == value);
}

fn value_before(value: &[u8]) -> Vec<u8> {
    let mut before = value[..600_000].to_vec();
    before[300_000] ^= 1;
    before
}

/// Rot of any object that a value is made of costs that value, and nothing else; what is written again is
/// sound again.
#[test]
fn damage_of_a_root_a_node_or_a_chunk_costs_its_value() {
    let value = noise(3, 2 * MIB);
    for depth in 0..=2 {
        let mut world = World::new(0);
        world.store(b"other", &noise(4, 100_000));
        world.store(b"big", &value);
        let tables = &world.shard.store.tables;
        let mut at = world.root(b"big");
        for _ in 0..depth {
            at = tables.chunks[&at.0][1].object;
        }
        let kind = tables.objects.get(at).kind;
        let leaf = tables.chunks[&world.root(b"big").0][1].object;
        assert!(tables.chunks.contains_key(&leaf.0), "it has two levels");
        let is_chunk = depth == 2;
        assert_eq!(kind == ObjectKind::Blob, is_chunk);
        // The record behind the sync says that there was one: else this would be a torn end.
        world.put_as(b"synced", b"", Durability::Power);
        world.put(b"behind", b"");
        world.damage(at);
        let mut world = world.restarted(0);
        assert_eq!(world.get(b"big"), Err(Status::Corrupt), "depth {depth}");
        assert!(world.get(b"other").unwrap() == noise(4, 100_000));
        world.store(b"big", &value);
        assert!(world.get(b"big").unwrap() == value);
        let mut world = world.restarted(0);
        assert!(world.get(b"big").unwrap() == value);
    }
}

#[test]
fn an_upload_that_is_given_up_leaves_nothing() {
    let mut world = World::new(0);
    world.store(b"kept", &noise(5, 200_000));
    let live = world.shard.store.tables.live_bytes;
    let objects = world.shard.store.tables.objects.len();
    let content = noise(6, 3 * 65_536);
    for part in 0..2 {
        let bytes = &content[part * 65_536..][..65_536];
        world.submit(Op::PutPart, b"big", bytes, |entry| {
            (entry.arg0, entry.arg1) = (part as u64 * 65_536, content.len() as u64);
        });
        assert_eq!(world.wait().status, Status::Ok);
    }
    assert!(world.shard.store.tables.live_bytes > live + 65_536);
    world.submit(Op::PutPart, b"big", &content[..65_536], |entry| {
        (entry.arg0, entry.arg1) = (7, content.len() as u64);
    });
    assert_eq!(world.wait().status, Status::UploadOutOfOrder);
    assert_eq!(world.shard.store.tables.live_bytes, live);
    assert_eq!(world.shard.store.tables.objects.len(), objects);
    assert_eq!(world.get(b"big"), Err(Status::NotFound));
    let world = world.restarted(0);
    assert_eq!(world.shard.store.tables.live_bytes, live);
}

/// A part that has to wait for the next segment is taken once.
#[test]
fn parts_that_wait_for_room_are_taken_once() {
    let mut world = World::new(0);
    world.put(b"a", b"x");
    world.disk().at_once = false;
    let value = noise(7, 5 * MIB);
    let mut waits = 0;
    for (no, part) in value.chunks(PART_BYTES_MAX as usize).enumerate() {
        world.submit(Op::PutPart, b"big", part, |entry| {
            (entry.arg0, entry.arg1) = (no as u64 * 65_536, value.len() as u64);
            entry.durability = Some(Durability::Volatile);
        });
        for turn in 0.. {
            world.step();
            if let Some(completion) = world.completion() {
                assert_eq!(completion.status, Status::Ok);
                break;
            }
            waits += 1;
            // A device that takes its time: several turns come before its answer.
            if turn % 5 == 4 {
                world.disk().run_io();
            }
            assert!(turn < 100, "it never ends");
        }
    }
    assert!(waits > 10, "nobody waited");
    world.disk().at_once = true;
    world.put(b"flush", b"");
    assert!(world.get(b"big").unwrap() == value);
    let mut world = world.restarted(0);
    assert!(world.get(b"big").unwrap() == value);
}

/// Parts are acknowledged before they are written out: whoever sent one that was lost then was told to begin
/// again, without end, and not that the disk is dead.
#[test]
fn the_part_behind_one_that_was_lost_says_why() {
    let errno = 5;
    let dead = DiskError::Os {
        call: "pwrite",
        segment: SegmentNo(1),
        errno,
    };
    for (error, status, detail) in [
        (dead, Status::IoFailed, errno as u32),
        (DiskError::NoSpace, Status::NoSpace, 0),
    ] {
        let mut world = World::new(0);
        world.put(b"k", b"before");
        let content = noise(11, 3 * 65_536);
        let part = |world: &mut World, no: usize| {
            world.submit(
                Op::PutPart,
                b"big",
                &content[no * 65_536..][..65_536],
                |entry| {
                    (entry.arg0, entry.arg1) = (no as u64 * 65_536, content.len() as u64);
                    entry.durability = Some(Durability::Volatile);
                },
            );
            world.wait()
        };
        assert_eq!(part(&mut world, 0).status, Status::Ok);
        let (skip, written) = (0, 0);
        world.disk().faults.write = Some(FailedWrite {
            skip,
            written,
            error,
        });
        assert_ne!(world.put(b"k", b"after").status, Status::Ok);
        let told = part(&mut world, 1);
        assert_eq!((told.status, told.detail), (status, detail));
        assert_eq!(part(&mut world, 2).status, Status::UploadOutOfOrder, "once");
        // Begun again, it is as any other.
        for no in 0..3 {
            assert_eq!(part(&mut world, no).status, Status::Ok);
        }
        assert!(world.get(b"big").unwrap() == content);
    }
}

#[test]
fn a_failed_flush_takes_back_a_large_value_of_one_turn() {
    let mut world = World::new(0);
    let old = noise(8, 50_000);
    world.store(b"k", &old);
    let live = world.shard.store.tables.live_bytes;
    let mut new = old.clone();
    new.extend(noise(9, 10_000));
    world.disk().faults.write = Some(FailedWrite {
        skip: 0,
        written: 5,
        error: DiskError::NoSpace,
    });
    assert_eq!(world.put(b"k", &new).status, Status::NoSpace);
    assert_eq!(world.shard.store.tables.live_bytes, live);
    assert!(world.get(b"k").unwrap() == old);
    world.store(b"k", &new);
    let mut world = world.restarted(0);
    assert!(world.get(b"k").unwrap() == new);
}

/// A chunk that a small value brought is gone for whoever replays the log once that value is, unless the
/// large one that shares it says so. So also after a flush that failed to say it.
#[test]
fn a_chunk_that_was_a_value_of_its_own_outlives_it() {
    for fails in [false, true] {
        let mut world = World::new(0);
        let large = noise(10, 60_000);
        let chunk = chunks_of(&large).swap_remove(2);
        world.store(b"small", &chunk);
        if fails {
            world.disk().faults.write = Some(FailedWrite {
                skip: 0,
                written: 0,
                error: DiskError::NoSpace,
            });
            assert_eq!(world.put(b"large", &large).status, Status::NoSpace);
        }
        world.store(b"large", &large);
        assert_eq!(world.delete(b"small").status, Status::Ok);
        let mut world = world.restarted(0);
        assert!(world.get(b"large").unwrap() == large, "fails: {fails}");
        assert_eq!(world.get(b"small"), Err(Status::NotFound));
    }
}
