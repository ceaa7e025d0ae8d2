//! Who may come in, what others can read, and what a log says: rules by user, group and name, with a second and a
//! third user where the test runs as root; modes of what lies on the disk; no value and no key in any log line.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Random, Served, attach, role, value_of, wait_for};
use helios::agent::RefusalCode;
use helios::client::{
    Attach, ClientError, Expect, Lane, NewCheckpoint, PutOptions, Revision, Session,
};
use helios::config::Durability;

const USER: u32 = 65533;
const GROUP: u32 = 65532;

/// Whether this test can become other users; says so where it can't.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: needs root to become others");
    }
    is_root
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs one of the roles below as another user.
fn run_as(role: &str, uid: u32, gid: u32, argument: &Path) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([role, "--exact", "--nocapture"])
        .env("HELIOS_ROLE", argument)
        .current_dir("/")
        .uid(uid)
        .gid(gid)
        .status();
    assert!(status.unwrap().success(), "{role} as {uid}:{gid}");
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> RefusalCode {
    match outcome {
        Err(ClientError::Refused { code, text }) => {
            assert!(text.contains("[[access]]"), "{text}");
            code
        }
        other => panic!("{other:?}"),
    }
}

fn names(session: &Session) -> Vec<String> {
    let page = session.agents("", 0).unwrap();
    page.items.into_iter().map(|agent| agent.name).collect()
}

/// By the user's rule: `team-*`.
#[test]
fn role_user() {
    let Some(socket) = role() else { return };
    let session = Session::connect(&socket).unwrap();
    attach(&session, "team-a")
        .put(b"k", b"of the user")
        .unwrap();
    for name in ["team", "shared", "own", "a-team-"] {
        assert_eq!(
            refused(session.attach(name, Attach::default())),
            RefusalCode::NotAllowed
        );
        assert_eq!(
            refused(session.terminate_agent(name, true)),
            RefusalCode::NotAllowed
        );
        let asked = [
            refused(session.describe_agent(name)),
            refused(session.create_agent(name, false)),
            refused(session.suspend_agent(name)),
            refused(session.resume_agent(name)),
            refused(session.migrate_agent(name, helios::id::ShardNo(1))),
        ];
        assert_eq!(asked, [RefusalCode::NotAllowed; 5], "{name}");
    }
    let collected = session.collect();
    let code = RefusalCode::NotAllowed;
    assert!(
        matches!(&collected, Err(ClientError::Refused { code: found, .. }) if *found == code),
        "{collected:?}"
    );
    assert_eq!(names(&session), ["team-a"]);
    // What others marked as public may be read, and nothing else of theirs.
    let mut lane = attach(&session, "team-b");
    let mut value = Vec::new();
    lane.get_from("open", b"k", &mut value).unwrap().unwrap();
    assert_eq!(value, b"for all");
    for name in ["own", "shared"] {
        let read = lane.get_from(name, b"k", &mut value);
        assert!(
            matches!(read, Err(ClientError::Forbidden)),
            "{name}: {read:?}"
        );
    }
    // Of an agent that is not public, what it published by its name, and nothing beside it.
    let theirs = |agent, name| Revision::Published { agent, name };
    lane.branch("taught", theirs("teacher", "shown")).unwrap();
    lane.switch("taught").unwrap();
    assert_eq!(value_of(&mut lane, b"k").unwrap().unwrap(), b"taught");
    assert!(lane.get_from("teacher", b"k", &mut value).is_err());
    for (agent, name) in [("teacher", "kept"), ("teacher", "main"), ("own", "none")] {
        let read = lane.fork(theirs(agent, name));
        assert!(
            matches!(read, Err(ClientError::NoSuchRevision)),
            "{agent} {name}: {read:?}"
        );
    }
}

/// By the group's rule: `shared`.
#[test]
fn role_group() {
    let Some(socket) = role() else { return };
    let session = Session::connect(&socket).unwrap();
    attach(&session, "shared")
        .put(b"k", b"of the group")
        .unwrap();
    assert_eq!(
        refused(session.attach("team-a", Attach::default())),
        RefusalCode::NotAllowed
    );
    assert_eq!(names(&session), ["shared"]);
}

#[test]
fn rules_by_user_group_and_name_let_in_whom_they_name() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    let rules = format!(
        "shards = 2\n[[access]]\nuser = {USER}\nagents = \"team-*\"\n\
         [[access]]\ngroup = {GROUP}\nagents = \"shared\""
    );
    let mut served = Served::start(dir.path(), &rules);
    let session = served.session();
    attach(&session, "own").put(b"k", b"mine").unwrap();
    let public = Attach {
        create: true,
        public: true,
    };
    session
        .attach("open", public)
        .unwrap()
        .put(b"k", b"for all")
        .unwrap();
    attach(&session, "shared").put(b"k", b"first").unwrap();
    let mut teacher = attach(&session, "teacher");
    teacher.put(b"k", b"taught").unwrap();
    teacher.checkpoint(&NewCheckpoint::default()).unwrap();
    teacher.publish("shown", Revision::Head, false).unwrap();
    teacher.put(b"k", b"its own").unwrap();
    teacher.checkpoint(&NewCheckpoint::default()).unwrap();
    teacher.tag("kept", Revision::Head, false).unwrap();
    let before = attach(&session, "own").stats().unwrap();
    run_as("role_user", USER, USER, &served.socket());
    run_as("role_group", 65531, GROUP, &served.socket());
    // The runtime's own user is let in everywhere, and sees what they wrote.
    let of = |name| {
        value_of(&mut attach(&session, name), b"k")
            .unwrap()
            .unwrap()
    };
    assert_eq!(of("team-a"), b"of the user");
    assert_eq!(of("shared"), b"of the group");
    let since = attach(&session, "own").stats().unwrap().since(&before);
    assert!(
        since.refused >= 5,
        "refusals are counted: {}",
        since.refused
    );
    served.assert_alive();
}

/// No socket is open to this user, and no file.
#[test]
fn role_nobody() {
    let Some(folder) = role() else { return };
    let Err(error) = Session::connect(folder.join("s")) else {
        panic!("a socket that is open to others");
    };
    let error = error.to_string();
    assert!(error.contains("denied"), "{error}");
    let mut refused = 0;
    for file in files_below(&folder.join("data")) {
        let error = std::fs::read(&file).expect_err("a file that is closed to others");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::PermissionDenied,
            "{}",
            file.display()
        );
        refused += 1;
    }
    assert!(refused >= 3, "{refused} files");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files
}

/// In a directory that the operator had made, open to all, segments were readable by everybody.
#[test]
fn what_is_stored_is_nobody_elses_whatever_the_directory_is() {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    std::fs::create_dir(dir.path().join("data")).unwrap();
    open_to_all(&dir.path().join("data"));
    let served = Served::start(dir.path(), "shards = 1\nsegment_bytes = \"1MiB\"");
    let mut lane = attach(&served.session(), "own");
    let mut random = Random(5);
    for no in 0..40_u64 {
        let value = random.bytes(60_000);
        lane.put(&no.to_le_bytes(), &value).unwrap();
    }
    lane.sync(Durability::Power).unwrap();
    drop(lane);
    // Killed, so that the next start has a tail to look at and a segment to seal.
    served.kill();
    let mut served = Served::start(dir.path(), "shards = 1\nsegment_bytes = \"1MiB\"");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let files = files_below(&dir.path().join("data"));
    assert!(
        files
            .iter()
            .filter(|file| file.extension().is_some_and(|it| it == "seg"))
            .count()
            > 2
    );
    for file in &files {
        assert_eq!(
            mode(file) & 0o077,
            0,
            "{} is {:o}",
            file.display(),
            mode(file)
        );
    }
    assert_eq!(mode(&served.socket()), 0o600);
    // What is taken out of it is no more for everybody than what is in there.
    let file = dir.path().join("export");
    let mut export = Command::new(env!("CARGO_BIN_EXE_helios"));
    let export = export
        .args(["export", "own"])
        .arg(&file)
        .arg("--socket")
        .arg(served.socket());
    assert!(export.status().unwrap().success());
    assert_eq!(mode(&file), 0o600);
    if is_root() {
        run_as("role_nobody", 65534, 65534, dir.path());
    }
    served.assert_alive();
}

const SECRET_KEY: &str = "KEY-that-nobody-may-log";
const SECRET_VALUE: &str = "VALUE-that-nobody-may-log";

/// All that a lane can do with keys and values, errors included.
fn use_everything(session: &Session, lane: &mut Lane) {
    let key = |no: u32| format!("{SECRET_KEY}-{no}").into_bytes();
    let value = |count: usize| SECRET_VALUE.as_bytes().repeat(count);
    for (no, count) in [(0, 1), (1, 30), (2, 1_000), (3, 9_000)] {
        lane.put(&key(no), &value(count)).unwrap();
        value_of(lane, &key(no)).unwrap().unwrap();
    }
    let (small, other) = (value(1), key(9));
    lane.multi_put(&[(&key(4), &small), (&key(5), &small)], None)
        .unwrap();
    let stale = PutOptions {
        expect: Some(Expect::Absent),
        ..Default::default()
    };
    assert!(lane.put_with(&key(0), &small, stale).is_err());
    lane.delete(&key(5)).unwrap();
    assert_eq!(value_of(lane, &other).unwrap(), None);
    lane.scan(SECRET_KEY.as_bytes(), b"", 0).unwrap();
    let opaque = NewCheckpoint {
        opaque: SECRET_VALUE.as_bytes(),
        ..Default::default()
    };
    lane.checkpoint(&opaque).unwrap();
    let branch = lane.branch("side", Revision::Head).unwrap().no;
    lane.on(branch).put(&key(0), b"another").unwrap();
    lane.on(branch).checkpoint(&opaque).unwrap();
    lane.put(&key(0), b"and another").unwrap();
    lane.checkpoint(&opaque).unwrap();
    let conflicts = lane.merge(Revision::Branch("side"), &[], &opaque);
    assert!(conflicts.is_err() || format!("{conflicts:?}").contains("onflict"));
    lane.tag("v1", Revision::Head, false).unwrap();
    assert!(lane.put(&[b'k'; 2_000], &small).is_err());
    let mut stranger = attach(session, "stranger");
    assert!(
        stranger
            .get_from("secretive", &key(0), &mut Vec::new())
            .is_err()
    );
    lane.sync(Durability::Power).unwrap();
    session.suspend_agent("stranger").unwrap_err();
}

/// Overwrites every place where the value lies, in all segments.
fn damage(data: &Path) -> usize {
    let mut damaged = 0;
    for file in files_below(data) {
        let mut bytes = std::fs::read(&file).unwrap();
        let needle = SECRET_VALUE.as_bytes();
        let places = bytes.windows(needle.len()).enumerate();
        let places = places.filter(|(_, window)| *window == needle);
        let places: Vec<usize> = places.map(|(at, _)| at).collect();
        for at in &places {
            bytes[*at] ^= 1;
        }
        std::fs::write(&file, &bytes).unwrap();
        damaged += places.len();
    }
    damaged
}

/// Also at the level that says most, also where something is damaged, refused or ended.
#[test]
fn no_log_line_holds_a_value_or_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let config = "shards = 1\nsegment_bytes = \"1MiB\"";
    let served = Served::start_logging(dir.path(), config, "trace");
    let session = served.session();
    let mut lane = attach(&session, "secretive");
    use_everything(&session, &mut lane);
    drop((lane, session));
    served.kill();
    let served = Served::start_logging(dir.path(), config, "trace");
    value_of(
        &mut attach(&served.session(), "secretive"),
        format!("{SECRET_KEY}-1").as_bytes(),
    )
    .unwrap();
    served.stop();
    assert!(damage(&dir.path().join("data")) > 0);
    let mut served = Served::start_logging(dir.path(), config, "trace");
    let session = served.session();
    let mut lane = attach(&session, "secretive");
    let damaged = (0..4).filter(|no| {
        let read = value_of(&mut lane, format!("{SECRET_KEY}-{no}").as_bytes());
        read.is_err()
    });
    assert!(
        damaged.count() > 0,
        "values are damaged, and nothing is read that is"
    );
    session.terminate_agent("secretive", true).unwrap();
    wait_for("its lanes are closed, and that is told", || {
        served
            .log()
            .contains("closed the lanes of an agent")
            .then_some(())
    });
    served.assert_alive();
    let log = served.log();
    assert!(log.contains("TRACE") && log.contains("ERROR"), "{log}");
    for secret in [SECRET_KEY, SECRET_VALUE] {
        let bytes = secret.as_bytes();
        let listed = format!("{bytes:?}");
        let listed = listed.trim_matches(['[', ']']);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        for form in [secret, listed, &hex] {
            assert!(!log.contains(form), "{form} in the log:\n{log}");
        }
    }
}
