//! The wall clock jumps by hours, back and forth, while a runtime serves and between its starts: labels jump with
//! it, and nothing else does.

use std::time::Duration;

use crate::common::{Random, attach, memory_dir};
use crate::shim::{Order, Shim};
use crate::{Model, check, put_some};
use helios::client::{Lane, NewCheckpoint, NewSuperposition, Revision, Session};
use helios::config::Durability;
use helios::id::Retention;

const LINES: &str = "shards = 1\nsegment_bytes = \"1MiB\"\nio = \"threads\"";
const HOUR: i64 = 3_600;
const HOUR_MS: u64 = 3_600_000;

/// Sequence and label of the checkpoints of a lane's branch, the youngest first.
fn history(lane: &mut Lane) -> Vec<(u64, u64)> {
    let page = lane.log(Revision::Head, 1_000).unwrap();
    let found = page
        .entries
        .iter()
        .map(|entry| (entry.sequence, entry.wall_ms));
    found.collect()
}

/// What has to be there whatever the clock says.
fn check_all(session: &Session, model: &Model, checkpoints: usize, tries: bool) {
    let mut lane = attach(session, "one");
    check(&mut lane, model);
    let history = history(&mut lane);
    assert_eq!(history.len(), checkpoints);
    assert!(
        history.is_sorted_by(|one, next| one.0 > next.0),
        "{history:?}"
    );
    let sets = lane.superpositions(None).unwrap();
    assert_eq!(sets.items.len(), usize::from(tries), "{:?}", sets.items);
}

/// Some writes and a checkpoint; its label.
fn work(session: &Session, random: &mut Random, model: &mut Model) -> u64 {
    let mut lane = attach(session, "one");
    let before = history(&mut lane);
    assert!(put_some(&mut lane, random, model, 5).is_none());
    lane.checkpoint(&NewCheckpoint::default()).unwrap();
    lane.sync(Durability::Power).unwrap();
    let after = history(&mut lane);
    let youngest = after[0];
    assert!(
        before.iter().all(|earlier| earlier.0 < youngest.0),
        "{after:?}"
    );
    youngest.1
}

#[test]
fn a_clock_that_jumps_moves_labels_and_nothing_else() {
    let dir = memory_dir();
    let Some(shim) = Shim::build(dir.path()) else {
        return;
    };
    let (mut random, mut model) = (Random(24), Model::new());
    let mut made = 0;
    let served = shim.serve(dir.path(), LINES);
    let session = served.session();
    let first = work(&session, &mut random, &mut model);
    let mut lane = attach(&session, "one");
    lane.retain("main", Retention::Newer(HOUR_MS)).unwrap();
    let ttl = Some(Duration::from_secs(HOUR as u64));
    let tries = NewSuperposition {
        name: "tries",
        ttl,
        ..NewSuperposition::default()
    };
    let tries = lane.superpose(&tries).unwrap().no;
    lane.add_candidate(tries, Revision::Head, 1.0, "").unwrap();
    drop(lane);
    made += 1;
    // Under a runtime that goes on: not even its labels jump.
    for offset in [7 * HOUR, -7 * HOUR, 2_400 * HOUR, -175_000 * HOUR, 0] {
        shim.order(Order::WallOffset, offset);
        let label = work(&session, &mut random, &mut model);
        assert!(
            (first..first + HOUR_MS).contains(&label),
            "{label} after {first}"
        );
        made += 1;
        session.collect().unwrap();
        check_all(&session, &model, made, true);
    }
    drop(session);
    served.stop();
    // Between starts, once in order and once not: back, and right again.
    for (offset, ends) in [(-5 * HOUR, false), (-1_000 * HOUR, true), (0, false)] {
        shim.order(Order::WallOffset, offset);
        let served = shim.serve(dir.path(), LINES);
        let session = served.session();
        check_all(&session, &model, made, true);
        let label = work(&session, &mut random, &mut model);
        let off = label.abs_diff(first.saturating_add_signed(offset * 1_000));
        assert!(off < HOUR_MS, "a label of {label}");
        made += 1;
        session.collect().unwrap();
        check_all(&session, &model, made, true);
        drop(session);
        match ends {
            true => served.stop(),
            false => served.kill(),
        }
    }
    // Forth: what has an age is older, and ends; the state is the state.
    shim.order(Order::WallOffset, 3 * HOUR);
    let served = shim.serve(dir.path(), LINES);
    let session = served.session();
    work(&session, &mut random, &mut model);
    session.collect().unwrap();
    check_all(&session, &model, 1, false);
    drop(session);
    served.stop();
    shim.order(Order::WallOffset, 0);
    let mut served = shim.serve(dir.path(), LINES);
    let session = served.session();
    work(&session, &mut random, &mut model);
    session.collect().unwrap();
    // What was too old in the future is young now, and may be found again: nothing had to be removed.
    let mut lane = attach(&session, "one");
    check(&mut lane, &model);
    assert!(history(&mut lane).len() >= 2);
    assert!(lane.superpositions(None).unwrap().items.is_empty());
    served.assert_alive();
}
