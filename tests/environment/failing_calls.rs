//! Calls on segments that fail once and work again: what a write, a sync and a read that failed leave.

use crate::common::{Random, Served, attach, value_of};
use crate::shim::{Order, Shim};
use crate::{Model, check, forget, put_some};
use helios::client::{ClientError, PutOptions};
use helios::config::Durability;

const LINES: &str =
    "shards = 1\nsegment_bytes = \"1MiB\"\nio = \"threads\"\nmemory_max = \"16MiB\"";
const EIO: i32 = 5;
const POWER: PutOptions = PutOptions {
    durability: Some(Durability::Power),
    expect: None,
};

fn is_eio(error: &ClientError) {
    assert!(
        matches!(error, ClientError::IoFailed { errno: EIO }),
        "{error:?}"
    );
}

/// The kernel reports a failed write-back once; the next fdatasync succeeds, and the pages are lost.
#[test]
fn after_one_failed_sync_nothing_is_durable_that_no_sync_covered() {
    let dir = tempfile::tempdir().unwrap();
    let Some(shim) = Shim::build(dir.path()) else {
        return;
    };
    let mut served = shim.serve(dir.path(), LINES);
    let session = served.session();
    let (mut lane, mut other) = (attach(&session, "one"), attach(&session, "other"));
    let (mut random, mut model) = (Random(1), Model::new());
    put_some(&mut lane, &mut random, &mut model, 30);
    other.put_with(b"k", b"durable", POWER).unwrap();
    shim.order(Order::FailSyncs, 1);
    is_eio(&lane.put_with(b"k", b"lost", POWER).unwrap_err());
    assert_eq!(shim.failed(), 1);
    let synced = shim.synced();
    // Every sync would succeed now. None is made, and none is believed in.
    for _ in 0..20 {
        for lane in [&mut lane, &mut other] {
            is_eio(&lane.sync(Durability::Power).unwrap_err());
            let refused = lane.put(b"k", b"x").unwrap_err();
            assert!(matches!(refused, ClientError::ReadOnly), "{refused:?}");
            let refused = lane.put_with(b"k", b"x", POWER).unwrap_err();
            assert!(matches!(refused, ClientError::ReadOnly), "{refused:?}");
        }
    }
    assert!(
        lane.checkpoint(&helios::client::NewCheckpoint::default())
            .is_err()
    );
    assert_eq!(shim.synced(), synced, "a sync after the one that failed");
    check(&mut lane, &model);
    assert_eq!(value_of(&mut other, b"k").unwrap().unwrap(), b"durable");
    // Who comes to what is there reads; what would have to be made is refused, and why is said.
    check(&mut attach(&served.session(), "one"), &model);
    let refused = session
        .attach("new", helios::client::Attach::default())
        .unwrap_err();
    assert!(refused.to_string().contains("read-only"), "{refused}");
    served.assert_alive();
    let log = served.log();
    assert_eq!(
        log.matches("takes no writes until the next start").count(),
        1,
        "{log}"
    );
    assert!(log.contains("fdatasync of segment 1 failed"), "{log}");
    drop((lane, other, session));
    // An end in order says that it is none.
    assert!(!served.terminate().success());
    let log = served.log();
    assert!(log.contains("stopped without its last sync"), "{log}");
    let served = Served::start(dir.path(), LINES);
    let session = served.session();
    check(&mut attach(&session, "one"), &model);
    let mut other = attach(&session, "other");
    assert_eq!(value_of(&mut other, b"k").unwrap().unwrap(), b"durable");
    other.put_with(b"k", b"goes on", POWER).unwrap();
    served.stop();
}

/// Half of a turn's bytes are in the file when the write fails.
#[test]
fn a_failed_write_is_refused_as_a_whole_and_the_next_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let Some(shim) = Shim::build(dir.path()) else {
        return;
    };
    let mut served = shim.serve(dir.path(), LINES);
    let session = served.session();
    let mut lane = attach(&session, "one");
    let (mut random, mut model) = (Random(2), Model::new());
    for round in 0..20 {
        put_some(&mut lane, &mut random, &mut model, 7);
        shim.order(Order::FailWrites, 1);
        let key = model.keys().next().unwrap().clone();
        let (one, two) = (random.bytes(3_000), random.bytes(3_000));
        match round % 3 {
            0 => is_eio(&lane.put(&key, &one).unwrap_err()),
            1 => is_eio(
                &lane
                    .multi_put(&[(&key, &one), (b"new", &two)], None)
                    .unwrap_err(),
            ),
            _ => is_eio(&lane.delete(&key).unwrap_err()),
        }
        assert_eq!(shim.failed(), round + 1);
        check(&mut lane, &model);
        assert_eq!(value_of(&mut lane, b"new").unwrap(), None);
    }
    // What is left of the last one is behind the end of the log until something is written over it; a kill
    // before that may bring it back.
    put_some(&mut lane, &mut random, &mut model, 1);
    served.assert_alive();
    drop((lane, session));
    served.kill();
    let served = Served::start(dir.path(), LINES);
    let mut lane = attach(&served.session(), "one");
    check(&mut lane, &model);
    assert_eq!(value_of(&mut lane, b"new").unwrap(), None);
}

/// A read that failed says nothing about the bytes: they are asked for again.
#[test]
fn a_failed_read_is_an_error_once_and_a_value_later() {
    let dir = tempfile::tempdir().unwrap();
    let Some(shim) = Shim::build(dir.path()) else {
        return;
    };
    let mut served = shim.serve(dir.path(), LINES);
    let session = served.session();
    let mut lane = attach(&session, "one");
    let (mut random, mut model) = (Random(3), Model::new());
    put_some(&mut lane, &mut random, &mut model, 600);
    for round in 0..5 {
        assert!(forget(&dir.path().join("data")) > 10);
        shim.order(Order::FailReads, 1_000);
        let failed = model
            .iter()
            .filter(|(key, value)| match value_of(&mut lane, key) {
                Ok(found) => {
                    assert!(found.as_ref() == Some(value));
                    false
                }
                Err(error) => {
                    is_eio(&error);
                    true
                }
            });
        let failed = failed.count();
        shim.order(Order::FailReads, 0);
        assert!(failed > 50, "round {round}: {failed} reads failed");
        lane.put(b"meanwhile", &[round; 100]).unwrap();
        check(&mut lane, &model);
    }
    assert_eq!(lane.stats().unwrap().corrupt, 0, "nothing is quarantined");
    assert!(served.log().contains("pread of segment"));
    served.assert_alive();
}
