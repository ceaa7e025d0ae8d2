//! Parts of a runtime that fail or stall while it runs, planted.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use super::*;
use crate::agent::CloseReason;
use crate::agent::frame::RefusalCode;
use crate::shard::owner;

/// How long anything may take that is not timed: only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn start(dir: &Path, io: Io) -> Runtime {
    Runtime::start(Config {
        shards: Choice::Fixed(2),
        segment_bytes: 1 << 20,
        memory_max: 64 << 20,
        io,
        ..Config::at(dir)
    })
    .unwrap()
}

/// The `no`th name of an agent that a shard owns.
fn agent_of(shard: u16, no: usize) -> String {
    let names = (0..).map(|n| format!("agent {n}"));
    let mut owned = names.filter(|name| owner(name.as_bytes(), 2).0 == shard);
    owned.nth(no).unwrap()
}

/// Lets a shard stand still until the sender is dropped; returns once it does.
fn stall(runtime: &Runtime, shard: u16) -> Sender<()> {
    let (go_on, held) = channel::<()>();
    let (reached, is_there) = channel();
    runtime.control.plant(ShardNo(shard), move || {
        reached.send(()).unwrap();
        let _ = held.recv();
    });
    is_there.recv().unwrap();
    go_on
}

fn refusal(outcome: Result<Lane, ClientError>) -> RefusalCode {
    match outcome {
        Err(ClientError::Refused { code, .. }) => code,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a lane"),
    }
}

/// Descriptors and mappings of this process that make up sessions, lanes and windows.
fn held() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let ours = ["memfd:helios", "socket:", "pidfd"];
    let fds = links.filter(|link| {
        let link = link.to_string_lossy();
        ours.iter().any(|kind| link.contains(kind))
    });
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|line| line.contains("memfd:helios"));
    (fds.count(), maps.count())
}

#[test]
fn a_stalled_shard_delays_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let one = Session::connect(runtime.socket()).unwrap();
    let lane_there = one.attach(&agent_of(0, 0), Attach::default()).unwrap();
    let stalled = stall(&runtime, 0);
    // One session waits for the stalled shard, and a thread of the host too.
    let waiting: Vec<_> = [one.clone(), runtime.session().clone()]
        .into_iter()
        .map(|session| {
            std::thread::spawn(move || session.attach(&agent_of(0, 1), Attach::default()))
        })
        .collect();
    wait_for("both requests are in the queue", || {
        let queued = runtime.control.queued(ShardNo(0));
        (queued == 2).then_some(())
    });
    // Meanwhile the other shard's lanes come and go, for new sessions and for the host.
    for round in 0..20 {
        let other = Session::connect(runtime.socket()).unwrap();
        for session in [&other, runtime.session()] {
            let mut lane = session.attach(&agent_of(1, 0), Attach::default()).unwrap();
            lane.put(b"k", &[round]).unwrap();
            drop(lane);
        }
    }
    assert_eq!(runtime.control.queued(ShardNo(0)), 2);
    // A lane of the stalled shard that is dropped holds nobody up either.
    drop(lane_there);
    drop(stalled);
    for waiter in waiting {
        let mut lane = waiter.join().unwrap().unwrap();
        lane.put(b"k", b"served").unwrap();
    }
    runtime.shutdown().unwrap();
}

#[test]
fn answers_of_a_session_leave_in_the_order_of_its_requests() {
    use crate::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, Frame};
    use crate::agent::socket::FrameSocket;
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let socket = FrameSocket::connect(runtime.socket()).unwrap();
    let name = "by hand";
    let hello = Frame::Hello { features: 0, name };
    socket.send(0, &hello, &[]).unwrap();
    let mut buffer = [0; FRAME_BYTES_MAX];
    let welcome = socket.receive(&mut buffer).unwrap();
    assert!(matches!(welcome.frame, Frame::Welcome { .. }));
    let stalled = stall(&runtime, 0);
    // More than may be under way, over both shards, and some that are refused at once.
    let count = 150;
    let sender = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for number in 1..=count {
                let (flags, agent) = match number % 3 {
                    0 => (ATTACH_CREATE, agent_of(0, number as usize)),
                    1 => (ATTACH_CREATE, agent_of(1, number as usize)),
                    _ => (0, "nobody".to_owned()),
                };
                let agent = &agent;
                let attach = Frame::Attach { flags, agent };
                socket.send(number, &attach, &[]).unwrap();
            }
        });
        wait_for("requests in the stalled shard's queue", || {
            (runtime.control.queued(ShardNo(0)) >= 20).then_some(())
        });
        drop(stalled);
        for number in 1..=count {
            let answer = socket.receive(&mut buffer).unwrap();
            assert_eq!(answer.request, number);
            let attached = matches!(answer.frame, Frame::Attached { .. });
            assert_eq!(attached, number % 3 != 2, "{number}: {:?}", answer.frame);
        }
        sender.join()
    });
    sender.unwrap();
    runtime.shutdown().unwrap();
}

#[test]
fn answers_that_find_the_socket_full_wait_for_room() {
    use crate::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, Frame};
    use crate::agent::socket::FrameSocket;
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let socket = FrameSocket::connect(runtime.socket()).unwrap();
    let name = "by hand";
    socket
        .send(0, &Frame::Hello { features: 0, name }, &[])
        .unwrap();
    // More answers than a socket holds, and one that matters behind them, all before the first is
    // read: what a client does that drops many lanes and attaches another.
    let count = 1000;
    for number in 1..=count {
        let lane = crate::id::LaneNo(number);
        socket.send(number, &Frame::Detach { lane }, &[]).unwrap();
    }
    let (flags, agent) = (ATTACH_CREATE, "agent");
    socket
        .send(count + 1, &Frame::Attach { flags, agent }, &[])
        .unwrap();
    wait_for("the lane is there", || {
        (runtime.stats().agents > 0).then_some(())
    });
    socket.set_blocking(false).unwrap();
    let mut buffer = [0; FRAME_BYTES_MAX];
    for expected in 0..=count + 1 {
        let received = wait_for("an answer", || {
            socket.receive(&mut buffer).ok().map(|got| got.request)
        });
        assert_eq!(received, expected);
    }
    runtime.shutdown().unwrap();
}

#[test]
fn a_shutdown_completes_what_is_pending_of_processes_too() {
    use crate::config::Durability;
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(Config {
        // So long does the write wait for company, unless it is for the end.
        group_commit_interval: Duration::from_millis(100),
        io: Io::Threads,
        ..Config::at(dir.path())
    })
    .unwrap();
    let session = Session::connect(runtime.socket()).unwrap();
    let mut lane = session.attach("agent", Attach::default()).unwrap();
    let options = crate::client::PutOptions {
        durability: Some(Durability::Power),
        ..Default::default()
    };
    lane.submit_put(b"k", b"v", options).unwrap();
    lane.flush();
    wait_for("the write was taken", || {
        (runtime.stats().writes > 0).then_some(())
    });
    runtime.shutdown().unwrap();
    let mut out = Vec::new();
    let written = lane.wait(&mut out).unwrap().unwrap().outcome.unwrap();
    assert_eq!(written.durability, Some(Durability::Power));
    let closed = lane.put(b"k", b"w").unwrap_err();
    let reason = CloseReason::ShuttingDown;
    assert!(
        matches!(closed, ClientError::Closed { reason: why } if why == reason),
        "{closed}"
    );
}

#[test]
fn what_is_given_up_while_a_shard_stands_still_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let mut watcher = runtime.agent(&agent_of(0, 5)).unwrap();
    let before = held();
    let stalled = stall(&runtime, 0);
    // Its process dies, its shard takes too long, the host does not wait any longer.
    let sessions: Vec<_> = (0..8)
        .map(|_| Session::connect(runtime.socket()).unwrap())
        .collect();
    let attach = |session: Session, agent: usize| {
        std::thread::spawn(move || session.attach(&agent_of(0, agent), Attach::default()))
    };
    let slow: Vec<_> = sessions
        .iter()
        .chain([runtime.session()])
        .enumerate()
        .map(|(no, session)| attach(session.clone(), no))
        .collect();
    for waiter in slow {
        assert_eq!(refusal(waiter.join().unwrap()), RefusalCode::NoMemory);
    }
    let dying: Vec<_> = (0..8)
        .map(|no| die_while_attaching(runtime.socket(), &agent_of(0, no)))
        .collect();
    wait_for("requests of the dying in the queue", || {
        (runtime.control.queued(ShardNo(0)) >= 9 + 9 + 8).then_some(())
    });
    drop(dying);
    drop(sessions);
    drop(stalled);
    wait_for("lanes and sessions are gone", || {
        // The gauge is brought up to date by who asks for it.
        watcher.sync(crate::config::Durability::Process).unwrap();
        let lanes = watcher.stats().unwrap().lanes;
        (lanes == 1).then_some(())
    });
    wait_for("descriptors and mappings are gone", || {
        (held() == before).then_some(())
    });
    runtime.shutdown().unwrap();
}

/// A session that has sent an `Attach`; dropping it is its death.
fn die_while_attaching(socket: &Path, agent: &str) -> crate::agent::FrameSocket {
    use crate::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, Frame};
    let socket = crate::agent::FrameSocket::connect(socket).unwrap();
    let name = "dies";
    let hello = Frame::Hello { features: 0, name };
    socket.send(0, &hello, &[]).unwrap();
    socket.receive(&mut [0; FRAME_BYTES_MAX]).unwrap();
    let flags = ATTACH_CREATE;
    socket
        .send(1, &Frame::Attach { flags, agent }, &[])
        .unwrap();
    socket
}

/// More ends than a shard's queue takes while it stands still: they wait for it in the backlog,
/// and the listener doesn't.
#[test]
fn a_storm_of_ends_waits_for_a_stalled_shard_without_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let lanes: Vec<_> = (0..COMMANDS_MAX + 200)
        .map(|_| runtime.agent(&agent_of(0, 0)).unwrap())
        .collect();
    let mut watcher = runtime.agent(&agent_of(0, 1)).unwrap();
    let stalled = stall(&runtime, 0);
    drop(lanes);
    wait_for("the queue is full", || {
        (runtime.control.queued(ShardNo(0)) == COMMANDS_MAX).then_some(())
    });
    let refused = refusal(runtime.agent(&agent_of(0, 2)));
    assert_eq!(refused, RefusalCode::NoMemory, "not behind all that");
    let mut other = runtime.agent(&agent_of(1, 0)).unwrap();
    other.put(b"k", b"v").unwrap();
    let elsewhere = Session::connect(runtime.socket()).unwrap();
    elsewhere
        .attach(&agent_of(1, 1), Attach::default())
        .unwrap();
    drop(stalled);
    wait_for("all lanes are gone", || {
        watcher.sync(crate::config::Durability::Process).unwrap();
        (watcher.stats().unwrap().lanes <= 2 + 1).then_some(())
    });
    runtime.shutdown().unwrap();
}

#[test]
fn a_shard_that_panics_takes_its_own_lanes_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let session = Session::connect(runtime.socket()).unwrap();
    let mixed = |shard, no| {
        session
            .attach(&agent_of(shard, no), Attach::default())
            .unwrap()
    };
    let (mut lost, mut armed, mut kept) = (mixed(0, 0), mixed(0, 1), mixed(1, 0));
    let mut host_lost = runtime.agent(&agent_of(0, 2)).unwrap();
    let public = Attach {
        public: true,
        ..Attach::default()
    };
    let mut shown = runtime.session().attach(&agent_of(0, 3), public).unwrap();
    shown.put(b"k", b"seen").unwrap();
    for lane in [&mut lost, &mut armed, &mut kept, &mut host_lost] {
        lane.put(b"k", b"acknowledged").unwrap();
    }
    let health = runtime.health();
    assert_eq!(health.failures(), []);
    let waiter = {
        let health = health.clone();
        std::thread::spawn(move || health.wait())
    };
    // Somebody sleeps until the socket is readable, and somebody is attaching.
    assert!(!armed.arm(), "nothing is under way on it");
    let stalled = stall(&runtime, 0);
    let elsewhere = Session::connect(runtime.socket()).unwrap();
    let attaching = [runtime.session().clone(), elsewhere].map(|session| {
        std::thread::spawn(move || session.attach(&agent_of(0, 4), Attach::default()))
    });
    wait_for("requests in the queue", || {
        (runtime.control.queued(ShardNo(0)) == 2).then_some(())
    });
    // It goes in front of them: they find a shard that is gone.
    runtime
        .control
        .plant_first(ShardNo(0), || panic!("planted"));
    drop(stalled);
    assert_eq!(waiter.join().unwrap(), Some(Failure::Shard(ShardNo(0))));
    assert_eq!(health.failures(), [Failure::Shard(ShardNo(0))]);
    for waiter in attaching {
        let code = refusal(waiter.join().unwrap());
        assert_eq!(code, RefusalCode::ShardFailed);
    }
    for lane in [&mut lost, &mut host_lost] {
        let reason = match lane.put(b"k", b"x").unwrap_err() {
            ClientError::Closed { reason } => reason,
            error => panic!("{error}"),
        };
        assert_eq!(reason, CloseReason::ShardFailed);
        assert!(
            lane.get(b"k", &mut Vec::new()).is_err(),
            "not from the window"
        );
    }
    wait_for("the event loop is woken", || {
        is_readable(&session).then_some(())
    });
    session.drain_events().unwrap();
    // The same session goes on with the other shard, which will end in order.
    let volatile = crate::client::PutOptions {
        durability: Some(crate::config::Durability::Volatile),
        ..Default::default()
    };
    kept.put_with(b"k", b"goes on", volatile).unwrap();
    for session in [&session, runtime.session()] {
        let code = refusal(session.attach(&agent_of(0, 9), Attach::default()));
        assert_eq!(code, RefusalCode::ShardFailed);
        session.attach(&agent_of(1, 9), Attach::default()).unwrap();
    }
    // What it owned is asked for in vain, not for ever.
    let vain = kept.get_from(&agent_of(0, 3), b"k", &mut Vec::new());
    assert!(matches!(vain, Err(ClientError::Busy { .. })), "{vain:?}");
    drop((lost, armed, shown));
    let outcome = runtime.shutdown();
    assert!(
        matches!(outcome, Err(ShutdownError::Lost { shard: ShardNo(0) })),
        "{outcome:?}"
    );
    drop((kept, host_lost));
    // All of it was only out of reach.
    let runtime = start(dir.path(), Io::Threads);
    let kept = [
        (0, 0, "acknowledged"),
        (0, 2, "acknowledged"),
        (1, 0, "goes on"),
    ];
    for (shard, no, value) in kept {
        check_value(&runtime, &agent_of(shard, no), value.as_bytes());
    }
    runtime.shutdown().unwrap();
}

fn check_value(runtime: &Runtime, agent: &str, value: &[u8]) {
    let mut lane = runtime.agent(agent).unwrap();
    let mut found = Vec::new();
    lane.get(b"k", &mut found).unwrap();
    assert_eq!(found, value, "{agent}");
}

/// Whether an event loop over the session would be woken now.
fn is_readable(session: &Session) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = session.event_fd().unwrap();
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap() > 0
}

/// A question that was asked of a shard before it died, and one that its ring still takes.
#[test]
fn reads_over_the_mesh_end_with_the_shard_that_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let public = Attach {
        public: true,
        ..Attach::default()
    };
    let mut shown = runtime.session().attach(&agent_of(0, 0), public).unwrap();
    shown.put(b"k", b"seen").unwrap();
    let mut reader = runtime.agent(&agent_of(1, 0)).unwrap();
    let mut found = Vec::new();
    reader.get_from(&agent_of(0, 0), b"k", &mut found).unwrap();
    assert_eq!(found, b"seen");
    let stalled = stall(&runtime, 0);
    let waiting = std::thread::spawn(move || {
        let vain = reader.get_from(&agent_of(0, 0), b"k", &mut Vec::new());
        (reader, vain)
    });
    let mut watcher = runtime.agent(&agent_of(1, 1)).unwrap();
    watcher.put(b"k", b"v").unwrap();
    runtime
        .control
        .plant_first(ShardNo(0), || panic!("planted"));
    drop(stalled);
    let (mut reader, vain) = waiting.join().unwrap();
    assert!(matches!(vain, Err(ClientError::Busy { .. })), "{vain:?}");
    reader.put(b"k", b"goes on").unwrap();
    drop((reader, shown, watcher));
    assert!(runtime.shutdown().is_err());
}

#[test]
fn without_its_io_core_a_runtime_stops_and_says_so() {
    for io in [Io::Threads, Io::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = start(dir.path(), io);
        let session = Session::connect(runtime.socket()).unwrap();
        let mut lanes = [0, 1].map(|shard| {
            let mut lane = session
                .attach(&agent_of(shard, 0), Attach::default())
                .unwrap();
            lane.put(b"k", b"acknowledged").unwrap();
            lane
        });
        let health = runtime.health();
        runtime.control.doorbell(ShardNo(0)).unwrap().plant();
        // Its sync is the last thing that the core does.
        let lost = lanes[0].sync(crate::config::Durability::Power);
        assert_eq!(health.wait(), Some(Failure::Io), "{lost:?}");
        for lane in &mut lanes {
            let reason = wait_for("the lane is closed", || match lane.put(b"l", b"x") {
                Err(ClientError::Closed { reason }) => Some(reason),
                Err(error) => panic!("{error}"),
                Ok(_) => None,
            });
            assert!(
                matches!(reason, CloseReason::ShardFailed | CloseReason::ShuttingDown),
                "{reason}"
            );
        }
        let code = refusal(session.attach(&agent_of(1, 1), Attach::default()));
        assert_eq!(code, RefusalCode::ShardFailed);
        let outcome = runtime.shutdown();
        assert!(
            matches!(outcome, Err(ShutdownError::Lost { .. })),
            "{outcome:?}"
        );
        drop(lanes);
        let runtime = start(dir.path(), io);
        for shard in [0, 1] {
            check_value(&runtime, &agent_of(shard, 0), b"acknowledged");
        }
        runtime.shutdown().unwrap();
    }
}

/// Lets the kernel forget what the segments of a shard hold; whether it did.
fn forget(dir: &Path, shard: u16) -> bool {
    let folder = dir.join(format!("shard-{shard:03}"));
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = std::fs::File::open(entry.unwrap().path()).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let of_memory = rustix::fs::statfs(dir).unwrap().f_type == libc::TMPFS_MAGIC;
    if of_memory {
        println!("skipped: a file system in memory forgets nothing");
    }
    !of_memory
}

/// The thread that reads what is cold: the executor, or one of the plain ones.
#[test]
fn a_reading_thread_that_dies_ends_as_the_io_core() {
    for io in [Io::Threads, Io::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = start(dir.path(), io);
        for shard in [0, 1] {
            let mut lane = runtime.agent(&agent_of(shard, 0)).unwrap();
            lane.put(b"k", b"acknowledged").unwrap();
        }
        runtime.shutdown().unwrap();
        let runtime = start(dir.path(), io);
        if !forget(dir.path(), 0) {
            return;
        }
        let health = runtime.health();
        let mut lane = runtime.agent(&agent_of(0, 0)).unwrap();
        runtime.control.doorbell(ShardNo(0)).unwrap().plant();
        // It dies of the bell, with the answer in the line.
        let mut value = Vec::new();
        match lane.get(b"k", &mut value) {
            Ok(_) => assert_eq!(value, b"acknowledged"),
            Err(error) => assert!(matches!(error, ClientError::Closed { .. }), "{error:?}"),
        }
        assert_eq!(health.wait(), Some(Failure::Io));
        assert_eq!(Failure::Io.number(), 2);
        wait_for("the lane is closed", || lane.put(b"k", b"lost").err());
        let code = refusal(runtime.agent(&agent_of(1, 1)));
        assert_eq!(code, RefusalCode::ShardFailed);
        assert!(runtime.shutdown().is_err());
        drop(lane);
        let runtime = start(dir.path(), io);
        check_value(&runtime, &agent_of(1, 0), b"acknowledged");
        runtime.shutdown().unwrap();
    }
}

#[test]
fn a_listener_that_dies_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(dir.path(), Io::Threads);
    let session = Session::connect(runtime.socket()).unwrap();
    let mut lane = session.attach(&agent_of(0, 0), Attach::default()).unwrap();
    runtime.control.notices().tell(control::Notice::Plant);
    assert_eq!(runtime.health().wait(), Some(Failure::Listener));
    // The host has its lanes as before, and ends in order.
    runtime
        .agent(&agent_of(1, 0))
        .unwrap()
        .put(b"k", b"v")
        .unwrap();
    runtime.shutdown().unwrap();
    assert!(lane.put(b"k", b"v").is_err());
}

/// A runtime that ends as it should has not failed.
#[test]
fn an_end_in_order_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    for orderly in [true, false] {
        let runtime = start(dir.path(), Io::Auto);
        let health = runtime.health();
        let waiter = {
            let health = health.clone();
            std::thread::spawn(move || health.wait())
        };
        runtime.agent("a").unwrap().put(b"k", b"v").unwrap();
        match orderly {
            true => runtime.shutdown().unwrap(),
            false => drop(runtime),
        }
        assert_eq!(waiter.join().unwrap(), None);
        assert_eq!(health.failures(), []);
    }
}
