//! A runtime that has few descriptors, and one that has none left at all.

use std::process::Command;
use std::time::Duration;

use crate::common::{Random, Served, attach, memory_dir, value_of, wait_for};
use crate::{Model, busy_share, check, forget, put_some};
use helios::agent::{BusyReason, RefusalCode};
use helios::client::{Attach, ClientError, Session};
use helios::config::Durability;

const LINES: &str = "shards = 1\nsegment_bytes = \"1MiB\"\nl1_window_bytes = \"8KiB\"";

/// Fails unless a refusal says what is short and what helps.
fn is_told(error: &ClientError) {
    let ClientError::Refused { code, text } = error else {
        panic!("{error:?}");
    };
    assert!(
        matches!(code, RefusalCode::NoMemory | RefusalCode::TooMany) && text.contains("ulimit -n"),
        "{code:?}: {text}"
    );
}

#[test]
fn who_comes_when_descriptors_are_few_is_told_so_and_those_there_go_on() {
    for io in ["threads", "auto"] {
        let dir = memory_dir();
        let lines = format!("{LINES}\nio = \"{io}\"");
        let limited = ["prlimit", "--nofile=160:160", "--"];
        let mut served = Served::start_under(dir.path(), &lines, "info", &limited);
        let session = served.session();
        let (mut random, mut model) = (Random(160), Model::new());
        let mut lane = attach(&session, "there before");
        put_some(&mut lane, &mut random, &mut model, 20);
        let before = served.fds();
        // Processes without end, then agents without end.
        let mut crowd = Vec::new();
        let refused = loop {
            match Session::connect(served.socket()) {
                Ok(session) => crowd.push(session),
                Err(error) => break error,
            }
            assert!(crowd.len() < 160, "all of them were let in");
        };
        is_told(&refused);
        // Some of these are hung up on before they say a word, and read the reason all the same.
        for _ in 0..200 {
            is_told(&Session::connect(served.socket()).unwrap_err());
        }
        assert!(crowd.len() > 10, "{} got in", crowd.len());
        crowd.truncate(crowd.len() - 4);
        let mut lanes = Vec::new();
        let refused = wait_for("agents are refused", || {
            match session.attach(&format!("late {}", lanes.len()), Attach::default()) {
                Ok(lane) => {
                    lanes.push(lane);
                    None
                }
                Err(error) => Some(error),
            }
        });
        is_told(&refused);
        // Those who were there fill segment after segment, and read them all.
        for _ in 0..6 {
            let refused = put_some(&mut lane, &mut random, &mut model, 60);
            assert!(refused.is_none(), "{refused:?}");
            lane.sync(Durability::Power).unwrap();
            is_told(&session.attach("one more", Attach::default()).unwrap_err());
        }
        check(&mut lane, &model);
        assert!(lane.stats().unwrap().refused > 6);
        // Once some go, others come.
        drop((crowd, lanes));
        wait_for("descriptors again", || {
            (served.fds() <= before + 2).then_some(())
        });
        let mut late = attach(&served.session(), "late");
        late.put(b"k", b"v").unwrap();
        check(&mut lane, &model);
        served.assert_alive();
        let told = served.log().matches("processes are refused").count();
        assert!((1..10).contains(&told), "told {told} times");
        drop((late, lane, session));
        served.stop();
        let served = Served::start(dir.path(), &lines);
        check(&mut attach(&served.session(), "there before"), &model);
    }
}

/// Sets the limit of a process that runs.
fn limit(served: &Served, descriptors: usize) {
    let mut prlimit = Command::new("prlimit");
    let prlimit = prlimit.arg(format!("--nofile={descriptors}:4096"));
    let done = prlimit.arg("--pid").arg(served.pid().to_string()).status();
    assert!(done.unwrap().success());
}

#[test]
fn without_a_single_descriptor_nothing_is_lost_and_nothing_spins() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start_under(
        dir.path(),
        LINES,
        "info",
        &["prlimit", "--nofile=4096:4096", "--"],
    );
    let session = served.session();
    let (mut random, mut model) = (Random(3), Model::new());
    let mut lane = attach(&session, "there before");
    put_some(&mut lane, &mut random, &mut model, 400);
    for round in 0..2 {
        assert!(forget(&dir.path().join("data")) > 8);
        // Fewer than are open: whatever needs one gets none.
        limit(&served, 8);
        let path = served.socket();
        let waiting = std::thread::spawn(move || Session::connect(path).map(|_| ()));
        is_told(&session.attach("refused", Attach::default()).unwrap_err());
        let share = busy_share(served.pid(), "helios-listener", Duration::from_millis(500));
        assert!(share < 0.5, "the listener takes {share} of a core");
        // What is acknowledged is in the segment that is open, and in the next, which is made already.
        let refused = put_some(&mut lane, &mut random, &mut model, 500).expect("a refusal");
        let short = Some(BusyReason::Descriptors);
        assert!(
            matches!(refused, ClientError::Busy { reason } if reason == short),
            "{refused}"
        );
        lane.sync(Durability::Power).unwrap();
        let unread = model
            .iter()
            .filter(|(key, value)| match value_of(&mut lane, key) {
                Ok(found) => {
                    assert!(found.as_ref() == Some(value));
                    false
                }
                Err(ClientError::Busy { reason }) => {
                    assert_eq!(reason, short);
                    true
                }
                Err(error) => panic!("{error}"),
            });
        println!(
            "round {round}: {} of {} values had to wait",
            unread.count(),
            model.len()
        );
        assert!(!waiting.is_finished(), "who connects waits");
        let told = served.log().matches("no process can be accepted").count();
        assert_eq!(told, round + 1, "{}", served.log());
        assert!(served.log().contains("the next segment can't be made"));
        // Nobody has to start anything again.
        limit(&served, 4096);
        waiting.join().unwrap().unwrap();
        wait_for("writes resume", || {
            let refused = put_some(&mut lane, &mut random, &mut model, 100);
            refused.is_none().then_some(())
        });
        check(&mut lane, &model);
    }
    served.assert_alive();
    drop((lane, session));
    served.kill();
    let served = Served::start(dir.path(), LINES);
    check(&mut attach(&served.session(), "there before"), &model);
}
