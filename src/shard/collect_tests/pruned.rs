//! Checkpoints that were pruned, and that a start finds in a segment which stayed.

use super::*;

/// A checkpoint of which the values fill segments, and the tree lies among values that stay; then another
/// one without these values, which alone is kept: the ids of both, and the bytes of the first.
fn prune(world: &mut World) -> ([u8; 32], [u8; 32], Vec<u8>) {
    let put = |world: &mut World, stem: &str, count: u32| {
        for no in 0..count {
            let key = format!("{stem}/{no}");
            world.put(key.as_bytes(), &value(no + stem.len() as u32 * 100, 9_000));
        }
    };
    put(world, "value", 30);
    put(world, "before", 12);
    let pruned = world.made(None).id;
    let objects = &world.shard.store.tables.objects;
    let made = objects.find(&ObjectId::from_bytes(pruned));
    let at = objects.get(made.unwrap()).at;
    let (from, to) = (at.offset as usize, (at.offset + at.bytes) as usize);
    let bytes = world.disk().bytes_mut(at.segment)[from..to].to_vec();
    put(world, "behind", 12);
    for no in 0..30 {
        world.delete(format!("value/{no}").as_bytes());
    }
    let kept = world.made(None).id;
    let (name, rule) = ("main", Retention::Last(1));
    world.good(None, &Call::Retain { name, rule });
    let collected = world.collect();
    assert!(collected.segments > 0, "no segment went: {collected:?}");
    let left = (at.segment, ObjectId::from_bytes(pruned));
    let known = &world.shard.store.tables.pruned;
    assert!(known.contains(&left), "its segment went, too");
    (pruned, kept, bytes)
}

/// No call finds a checkpoint by its id.
fn is_unknown(world: &mut World, id: [u8; 32]) -> bool {
    let from = Revision::Checkpoint(id);
    let calls = [
        Call::Fork { from },
        Call::Branch { name: "b", from },
        Call::Restore {
            to: from,
            force: true,
        },
        Call::Tag {
            name: "t",
            target: from,
            force: false,
        },
    ];
    calls
        .iter()
        .all(|call| world.call_on(None, call).0.status == Status::NoSuchRevision)
}

/// Its object stayed in the log, its values went: a start that took it for one again would answer
/// `Corrupt`, and a collection that follows the whole history would find damage for ever.
#[test]
fn a_pruned_checkpoint_is_none_after_a_start_either() {
    let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
    let (pruned, kept, _) = prune(&mut world);
    assert!(is_unknown(&mut world, pruned));
    // What was said once has to be said again by each collection that drops what said it.
    for start in 0..4u32 {
        world = world.restarted(0);
        assert!(is_unknown(&mut world, pruned), "after start {start}");
        assert_eq!(world.history(Revision::Head).last(), Some(&kept));
        let (name, rule) = ("main", Retention::All);
        world.good(None, &Call::Retain { name, rule });
        for no in 0..30 {
            world.put(b"filler", &value(1000 * start + no, 9_000));
        }
        world.made(None);
        world.put(b"filler", b"");
        let collected = world.collect();
        assert_eq!(collected.end, CollectEnd::Done, "after start {start}");
        for no in 0..12 {
            let found = world.get(format!("behind/{no}").as_bytes()).unwrap();
            assert!(found == value(no + 600, 9_000));
        }
    }
}

/// A checkpoint that is stored again counts, whatever was said of it before.
#[test]
fn a_pruned_checkpoint_that_comes_back_is_one_again() {
    let mut world = World::sized(MemoryDisk::new(), 0, 1 << 30, SEGMENT_BYTES);
    let (pruned, _, bytes) = prune(&mut world);
    let id = ObjectId::from_bytes(pruned);
    // As an import does it.
    let store = &mut world.shard.store;
    let kind = crate::segment::ObjectKind::Checkpoint;
    assert!(store.append_kept(kind, id, &bytes).unwrap());
    assert!(matches!(store.flush(), Flushed::Done));
    for _ in 0..2 {
        assert!(world.shard.store.tables.objects.find(&id).is_some());
        world = world.restarted(0);
    }
}
