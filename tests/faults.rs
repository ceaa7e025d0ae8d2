//! The environment's faults, each with a typed error that says what to do; and agents that die in
//! the middle of their work.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Random, Served, attach, role, spawn_role, value_of, wait_for};
use helios::Runtime;
use helios::client::{Attach, ClientError, Lane, PutOptions, Session};
use helios::config::{Choice, Config};
use helios::runtime::{DataDirError, ListenError, RuntimeError};

fn config(dir: &Path) -> Config {
    Config {
        shards: Choice::Fixed(1),
        segment_bytes: 1 << 20,
        memory_max: 64 << 20,
        ..Config::at(dir)
    }
}

/// A start that must fail, leaving `bystander` alone, with an error whose text has each of `words`.
fn check(config: Config, bystander: Option<&Runtime>, words: &[&str]) -> RuntimeError {
    let error = match Runtime::start(config) {
        Ok(_) => panic!("it started: {words:?}"),
        Err(error) => error,
    };
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text}");
    }
    if let Some(runtime) = bystander {
        let mut lane = attach(&Session::connect(runtime.socket()).unwrap(), "bystander");
        lane.put(b"k", b"v").unwrap();
        assert_eq!(value_of(&mut lane, b"k").unwrap().unwrap(), b"v");
    }
    error
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let runtime = Runtime::start(config(one.path())).unwrap();
    let taken = Config {
        socket: runtime.socket().to_owned(),
        ..config(other.path())
    };
    let error = check(taken, Some(&runtime), &["in use", "socket"]);
    assert!(
        matches!(error, RuntimeError::Listen(ListenError::InUse { .. })),
        "{error}"
    );
    let touched = std::fs::read_dir(other.path()).unwrap().count();
    assert_eq!(touched, 0, "it was found before the disk was touched");
}

#[test]
fn a_socket_without_a_directory_is_refused_and_what_was_started_stops() {
    let other = tempfile::tempdir().unwrap();
    let nowhere = Config {
        socket: other.path().join("not/there/s"),
        shards: Choice::Fixed(9),
        ..config(other.path())
    };
    let error = check(nowhere, None, &["directory", "make it"]);
    assert!(
        matches!(error, RuntimeError::Listen(ListenError::NoDirectory { .. })),
        "{error}"
    );
    // What was started is stopped again, and the directory is free.
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "helios-shard-8").count()
    };
    wait_for("the threads are gone", || (threads() == 0).then_some(()));
    let again = Config {
        shards: Choice::Auto,
        ..config(other.path())
    };
    assert_eq!(Runtime::start(again).unwrap().shards(), 9);
}

#[test]
fn a_file_in_place_of_the_data_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    std::fs::write(&file, "precious").unwrap();
    let misplaced = Config {
        socket: dir.path().join("s"),
        ..config(&file)
    };
    check(misplaced, None, &["is no directory", "data_dir"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("helios.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let runtime = Runtime::start(config(dir.path())).unwrap();
    Session::connect(&path).unwrap();
    // A killed runtime's: nobody unlinks it.
    drop(runtime);
    let mut served = Served::start(dir.path(), "");
    served.assert_alive();
    served.kill();
    Served::start(dir.path(), "").stop();
}

#[test]
fn what_is_not_ours_at_the_sockets_path_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let live = dir.path().join("another program's");
    let listener = std::os::unix::net::UnixListener::bind(&live).unwrap();
    let at = |socket: &Path| Config {
        socket: socket.to_owned(),
        ..config(&dir.path().join("data"))
    };
    let error = check(at(&file), None, &["file", "socket"]);
    assert!(
        matches!(error, RuntimeError::Listen(ListenError::NotASocket { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let error = check(at(&live), None, &["in use"]);
    assert!(
        matches!(error, RuntimeError::Listen(ListenError::InUse { .. })),
        "{error}"
    );
    std::os::unix::net::UnixStream::connect(&live).unwrap();
    drop(listener);
    let error = check(at(dir.path()), None, &["socket"]);
    assert!(matches!(error, RuntimeError::Listen(_)), "{error}");
    let error = check(
        at(&dir.path().join("no/such/directory")),
        None,
        &["no/such"],
    );
    assert!(matches!(error, RuntimeError::Listen(_)), "{error}");
}

#[test]
fn a_data_directory_has_one_runtime_and_one_format() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let second = Config {
        socket: dir.path().join("second"),
        ..config(dir.path())
    };
    let error = check(second, Some(&runtime), &["another runtime", "data_dir"]);
    assert!(
        matches!(error, RuntimeError::DataDir(DataDirError::Locked { .. })),
        "{error}"
    );
    runtime.shutdown().unwrap();
    let three = Config {
        shards: Choice::Fixed(3),
        ..config(dir.path())
    };
    let error = check(three, None, &["1 shards, not 3", "shards = 1"]);
    assert!(
        matches!(error, RuntimeError::DataDir(DataDirError::Shards { .. })),
        "{error}"
    );
    std::fs::write(dir.path().join("FORMAT"), "helios data 7\nshards 1\n").unwrap();
    let error = check(config(dir.path()), None, &["format 7", "up to 1"]);
    assert!(
        matches!(error, RuntimeError::DataDir(DataDirError::Newer { .. })),
        "{error}"
    );
    std::fs::write(dir.path().join("FORMAT"), [0xff; 100]).unwrap();
    let error = check(config(dir.path()), None, &["FORMAT"]);
    assert!(
        matches!(error, RuntimeError::DataDir(DataDirError::NotOurs { .. })),
        "{error}"
    );
}

#[test]
fn segments_of_a_newer_version_are_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    runtime.agent("a").unwrap().put(b"k", b"v").unwrap();
    runtime.shutdown().unwrap();
    let segments = segments(dir.path());
    let good = std::fs::read(&segments[0]).unwrap();
    let mut before = good.clone();
    before[8..12].copy_from_slice(&99_u32.to_le_bytes());
    let sum = crc32fast::hash(&before[..60]);
    before[60..64].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&segments[0], &before).unwrap();
    let error = check(config(dir.path()), None, &["99"]);
    assert!(matches!(error, RuntimeError::Recover { .. }), "{error}");
    assert_eq!(std::fs::read(&segments[0]).unwrap(), before);
    std::fs::write(&segments[0], good).unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    assert_eq!(
        value_of(&mut runtime.agent("a").unwrap(), b"k")
            .unwrap()
            .unwrap(),
        b"v"
    );
}

/// Where a record begins whose key is this.
fn record_of(bytes: &[u8], key: &[u8]) -> usize {
    let at = bytes.windows(key.len()).position(|window| window == key);
    // Behind header and id.
    at.unwrap() - 72
}

#[test]
fn a_damaged_record_that_was_synced_refuses_the_start_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let mut lane = runtime.agent("a").unwrap();
    lane.put(b"before it", b"first").unwrap();
    lane.put(b"the record", b"second").unwrap();
    lane.sync(helios::config::Durability::Power).unwrap();
    lane.put(b"behind it", b"third").unwrap();
    drop(lane);
    drop(runtime);
    let segment = &segments(dir.path())[0];
    let good = std::fs::read(segment).unwrap();
    let place = record_of(&good, b"the record");
    let mut bad = good.clone();
    bad[place + 75] ^= 1;
    std::fs::write(segment, &bad).unwrap();
    let words = [
        segment.to_str().unwrap(),
        &format!("at byte {place}"),
        "restore the file",
        &format!("cut it to {place} bytes"),
    ];
    let error = check(config(dir.path()), None, &words);
    assert!(matches!(error, RuntimeError::Recover { .. }), "{error}");
    assert_eq!(std::fs::read(segment).unwrap(), bad);
    // Either of what it says helps.
    std::fs::write(segment, &good).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let mut cp = Command::new("cp");
    let copied = cp.arg("-a").arg(dir.path()).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    let copy = copy.path().join(dir.path().file_name().unwrap());
    for (dir, cut) in [(dir.path(), false), (&copy, true)] {
        let files = segments(dir);
        if cut {
            std::fs::write(&files[0], &bad[..place]).unwrap();
            for later in &files[1..] {
                std::fs::remove_file(later).unwrap();
            }
        }
        let runtime = Runtime::start(config(dir)).unwrap();
        let mut lane = runtime.agent("a").unwrap();
        let mut found = |key: &[u8]| value_of(&mut lane, key).unwrap().is_some();
        assert!(found(b"before it"));
        assert_eq!((found(b"the record"), found(b"behind it")), (!cut, !cut));
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir.join("shard-000")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    files
}

/// Runs `helios serve` as nobody, until it fails.
fn serve_as_nobody(dir: &Path, data_dir: &Path, socket: &Path) -> Output {
    let config = dir.join("nobody.toml");
    std::fs::write(
        &config,
        format!("data_dir = {data_dir:?}\nsocket = {socket:?}\n"),
    )
    .unwrap();
    Command::new(env!("CARGO_BIN_EXE_helios"))
        .args(["serve", "--config"])
        .arg(&config)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap()
}

#[test]
fn no_permission_is_said_so() {
    use std::os::unix::fs::{PermissionsExt, chown};
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(dir.path(), 0o755);
    let (closed, own) = (dir.path().join("closed"), dir.path().join("own"));
    std::fs::create_dir(&closed).unwrap();
    mode(&closed, 0o700);
    std::fs::create_dir(&own).unwrap();
    chown(&own, Some(65534), Some(65534)).unwrap();
    for (data_dir, socket) in [
        (closed.join("data"), own.join("s")),
        (dir.path().join("new"), own.join("s")),
        (own.join("data"), closed.join("s")),
        (own.join("data"), dir.path().join("s")),
    ] {
        let output = serve_as_nobody(dir.path(), &data_dir, &socket);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains("no permission"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    // Another user's agent can't come in where no rule allows it.
    let runtime = Runtime::start(config(&dir.path().join("data"))).unwrap();
    mode(&dir.path().join("data"), 0o755);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["role_stranger", "--exact", "--nocapture"])
        .env("HELIOS_ROLE", runtime.socket())
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .status()
        .unwrap();
    assert!(status.success(), "the stranger came in, or got no reason");
}

#[test]
fn role_stranger() {
    let Some(socket) = role() else { return };
    let error = Session::connect(socket).unwrap_err().to_string();
    assert!(error.to_lowercase().contains("permission"), "{error}");
}

/// A small file system, taken away at the end.
struct Small {
    dir: tempfile::TempDir,
    filler: PathBuf,
}

impl Small {
    /// `None`, with a line, where nothing can be mounted. 4 of its 12 MiB are filled.
    fn mount() -> Option<Self> {
        if !root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount
            .args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"])
            .arg(dir.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("skipped: nothing can be mounted here");
            return None;
        }
        let filler = dir.path().join("filler");
        std::fs::write(&filler, vec![1; 4 << 20]).unwrap();
        Some(Self { dir, filler })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

fn read_all(lane: &mut Lane, model: &BTreeMap<Vec<u8>, Vec<u8>>) {
    for (key, value) in model {
        let found = value_of(lane, key).unwrap();
        assert!(found.as_ref() == Some(value), "{key:?}");
    }
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let after = keys.last().cloned().unwrap_or_default();
        let page = lane.scan(b"", &after, 0).unwrap();
        keys.extend(page.keys.into_iter().map(|key| key.key));
        if !page.more {
            break;
        }
    }
    assert_eq!(keys, model.keys().cloned().collect::<Vec<_>>());
}

/// Writes until the disk is full.
fn fill(lane: &mut Lane, random: &mut Random, model: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    for no in 0..100_000_u32 {
        let value = random.bytes(10_000);
        let key = format!("fill{}-{no}", model.len()).into_bytes();
        match lane.put(&key, &value) {
            Ok(_) => drop(model.insert(key, value)),
            Err(ClientError::NoSpace) => return,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the disk is never full");
}

#[test]
fn on_a_full_disk_reads_and_deletes_go_on_and_writes_resume() {
    let Some(small) = Small::mount() else { return };
    let dir = small.dir.path().join("data");
    let mut random = Random(77);
    let mut model = BTreeMap::new();
    let runtime = Runtime::start(config(&dir)).unwrap();
    let mut lane = runtime.agent("a").unwrap();
    model.insert(b"big".to_vec(), random.bytes(300_000));
    lane.put(b"big", &model[&b"big"[..]]).unwrap();
    fill(&mut lane, &mut random, &mut model);
    assert!(model.len() > 300, "{} values fit", model.len());
    read_all(&mut lane, &model);
    // Neither a part nor a half of anything.
    let big = lane.put(b"big", &random.bytes(3 << 20)).unwrap_err();
    assert!(matches!(big, ClientError::NoSpace), "{big}");
    let (one, two) = (random.bytes(30_000), random.bytes(30_000));
    let both = lane.multi_put(&[(&b"one"[..], &one[..]), (b"two", &two)], None);
    assert!(matches!(both, Err(ClientError::NoSpace)), "{both:?}");
    read_all(&mut lane, &model);
    // Small ones too, until nothing fits.
    let mut refused = 0;
    for no in 0..10_000_u32 {
        let key = format!("small{no}").into_bytes();
        match lane.put(&key, &no.to_le_bytes()) {
            Ok(_) => drop(model.insert(key, no.to_le_bytes().to_vec())),
            Err(ClientError::NoSpace) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 100, "{refused}");
    let keys: Vec<_> = model.keys().take(50).cloned().collect();
    for key in keys {
        assert!(lane.delete(&key).unwrap());
        model.remove(&key);
    }
    read_all(&mut lane, &model);
    drop(runtime.agent("a").unwrap());
    // A start on the full disk: everything is there, and deletes go on.
    drop(lane);
    runtime.shutdown().unwrap();
    let runtime = Runtime::start(config(&dir)).unwrap();
    let mut lane = runtime.agent("a").unwrap();
    read_all(&mut lane, &model);
    fill(&mut lane, &mut random, &mut model);
    let keys: Vec<_> = model.keys().take(50).cloned().collect();
    for key in keys {
        assert!(lane.delete(&key).unwrap());
        model.remove(&key);
    }
    read_all(&mut lane, &model);
    // Room again: nobody has to restart anything.
    std::fs::remove_file(&small.filler).unwrap();
    let value = random.bytes(20_000);
    wait_for("writes resume", || lane.put(b"resumed", &value).ok());
    model.insert(b"resumed".to_vec(), value);
    fill(&mut lane, &mut random, &mut model);
    read_all(&mut lane, &model);
    drop(lane);
    runtime.shutdown().unwrap();
    let runtime = Runtime::start(config(&dir)).unwrap();
    read_all(&mut runtime.agent("a").unwrap(), &model);
}

const KEYS: u64 = 100;
const BIG: usize = 10 << 20;

fn big_value(seed: u64) -> Vec<u8> {
    Random(seed).bytes(BIG)
}

/// The agent that is killed: pipelined puts on one lane, large values on another; what was
/// acknowledged goes to a file.
#[test]
fn role_victim() {
    let Some(socket) = role() else { return };
    let acks = std::fs::File::options()
        .write(true)
        .open(socket.with_file_name("acks"))
        .unwrap();
    let acked = |at: u64, value: u64| acks.write_all_at(&value.to_le_bytes(), at * 8).unwrap();
    let session = Session::connect(&socket).unwrap();
    let uploads = session.clone();
    let mut large = attach(&uploads, "large");
    let acked_large = |seed| acked(KEYS, seed);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for seed in 1.. {
                large.put(b"big", &big_value(seed)).unwrap();
                acked_large(seed);
            }
        });
        let mut lane = attach(&session, "victim");
        let mut reply = Vec::new();
        let mut waiting = BTreeMap::new();
        for no in 1_u64.. {
            let key = (no % KEYS).to_le_bytes();
            let ticket = loop {
                match lane.submit_put(&key, &no.to_le_bytes(), PutOptions::default()) {
                    Ok(ticket) => break ticket,
                    Err(ClientError::LaneFull) => {
                        let reply = lane.wait(&mut reply).unwrap().unwrap();
                        reply.outcome.unwrap();
                        let no: u64 = waiting.remove(&format!("{:?}", reply.ticket)).unwrap();
                        acked(no % KEYS, no);
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            waiting.insert(format!("{ticket:?}"), no);
        }
    });
}

#[test]
fn an_agent_that_dies_leaves_nothing_but_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 2\nsegment_bytes = \"4MiB\"");
    let session = served.session();
    let mut watcher = attach(&session, "watcher");
    let lanes = watcher.stats().unwrap().lanes;
    let (fds, maps) = (served.fds(), served.maps());
    for round in 0..4 {
        let acks = dir.path().join("acks");
        std::fs::write(&acks, vec![0; 8 * (KEYS as usize + 1)]).unwrap();
        let mut child = spawn_role("role_victim", &served.socket());
        let ack = |at: u64| {
            let bytes = std::fs::read(&acks).unwrap();
            u64::from_le_bytes(bytes[at as usize * 8..][..8].try_into().unwrap())
        };
        wait_for("the victim works", || {
            (ack(1) > 500 * round && ack(KEYS) > 0).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let start = std::time::Instant::now();
        wait_for("its lanes are gone", || {
            // Each shard refreshes its own part of the gauges: ask both.
            watcher.sync(helios::config::Durability::Power).unwrap();
            (watcher.stats().unwrap().lanes == lanes).then_some(())
        });
        println!("round {round}: noticed within {:?}", start.elapsed());
        wait_for("descriptors again", || (served.fds() <= fds).then_some(()));
        wait_for("mappings again", || (served.maps() <= maps).then_some(()));
        let again = served.session();
        let mut victim = attach(&again, "victim");
        let mut found = Vec::new();
        for key in 0..KEYS {
            let value = value_of(&mut victim, &key.to_le_bytes()).unwrap();
            let value = value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()));
            assert!(
                value >= ack(key),
                "key {key}: {value}, acknowledged {}",
                ack(key)
            );
            found.push(value);
        }
        // Requests took effect in their order: some prefix of them is there and nothing else.
        let last = *found.iter().max().unwrap();
        for (key, value) in found.iter().enumerate() {
            let wanted = (0..KEYS)
                .map(|back| last.saturating_sub(back))
                .find(|no| no % KEYS == key as u64);
            assert_eq!(Some(*value), wanted, "key {key}, last {last}");
        }
        let mut large = attach(&again, "large");
        let big = value_of(&mut large, b"big").unwrap().unwrap();
        let acked = ack(KEYS);
        assert!(
            big == big_value(acked) || big == big_value(acked + 1),
            "acknowledged {acked}"
        );
        // What died with half an upload is no obstacle.
        large.put(b"big", &big_value(1)).unwrap();
        for key in 0..KEYS {
            victim.delete(&key.to_le_bytes()).unwrap();
        }
    }
    served.assert_alive();
}

#[test]
fn lanes_know_when_their_runtime_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), "shards = 1");
    let session = served.session();
    let mut lane = attach(&session, "orphan");
    lane.put(b"k", b"old").unwrap();
    for _ in 0..100 {
        assert_eq!(value_of(&mut lane, b"k").unwrap().unwrap(), b"old");
    }
    served.kill();
    let error = wait_for("the lane notices", || lane.put(b"k", b"lost").err());
    assert!(
        matches!(error, ClientError::RuntimeGone | ClientError::Closed { .. }),
        "{error}"
    );
    assert!(session.attach("other", Attach::default()).is_err());
    let served = Served::start(dir.path(), "shards = 1");
    let mut fresh = attach(&served.session(), "orphan");
    assert_eq!(value_of(&mut fresh, b"k").unwrap().unwrap(), b"old");
    fresh.put(b"k", b"new").unwrap();
    // The window of the dead runtime is not the state of the new one.
    assert!(value_of(&mut lane, b"k").is_err());
    served.stop();
    let error = fresh.put(b"k", b"x").unwrap_err();
    assert!(
        matches!(error, ClientError::RuntimeGone | ClientError::Closed { .. }),
        "{error}"
    );
    assert!(value_of(&mut fresh, b"k").is_err());
}

#[test]
fn lanes_of_the_host_outlive_their_runtime_without_harm() {
    for orderly in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::start(config(dir.path())).unwrap();
        let mut lane = runtime.agent("a").unwrap();
        lane.put(b"k", b"old").unwrap();
        assert!(value_of(&mut lane, b"k").unwrap().is_some());
        if orderly {
            runtime.shutdown().unwrap();
        } else {
            drop(runtime);
        }
        assert!(lane.put(b"k", b"x").is_err());
        let runtime = Runtime::start(config(dir.path())).unwrap();
        runtime.agent("a").unwrap().put(b"k", b"new").unwrap();
        assert!(
            value_of(&mut lane, b"k").is_err(),
            "an old value, orderly: {orderly}"
        );
        drop(lane);
    }
}

#[test]
fn a_shutdown_does_not_wait_for_those_who_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for no in 0..4_u64 {
            let mut lane = runtime.agent(&format!("busy {no}")).unwrap();
            let stop = &stop;
            scope.spawn(move || {
                let mut reply = Vec::new();
                // Always some dozens under way, until the lane is closed.
                while !stop.load(Ordering::Acquire) {
                    let put = lane.submit_put(b"k", &no.to_le_bytes(), PutOptions::default());
                    let waited = match put {
                        Ok(_) => continue,
                        Err(ClientError::LaneFull) => lane.wait(&mut reply),
                        Err(error) => panic!("{error}"),
                    };
                    if waited.is_err() {
                        return;
                    }
                }
            });
        }
        let mut watcher = runtime.agent("watcher").unwrap();
        wait_for("load", || {
            (watcher.stats().unwrap().writes > 2000).then_some(())
        });
        drop(watcher);
        let outcome = runtime.shutdown();
        stop.store(true, Ordering::Release);
        outcome.unwrap();
    });
}
