//! The commands about agents, as people and programs run them: against a server, and on a data directory
//! that must not change by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use helios::Runtime;
use helios::client::{Attach, ClientError, Lane, NewCheckpoint, Revision};
use helios::config::{Choice, Config, Io};
use helios::id::ObjectId;
use helios::runtime::{DataDirError, RuntimeError};

mod common;

use common::{Random, Served, attach, value_of};

fn config(dir: &Path) -> Config {
    Config {
        shards: Choice::Fixed(2),
        segment_bytes: 1 << 20,
        memory_max: 64 << 20,
        io: Io::Threads,
        ..Config::at(dir)
    }
}

/// What became of a run of the program.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What it printed, if it was good.
    fn good(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// What it complained of, if it ended with `code`.
    fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self.err
    }
}

fn helios(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_helios"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a command against a place: `--socket PATH` or `--data DIR`.
fn run(place: &[&str], args: &[&str]) -> Ran {
    Ran::of(helios(args).args(place).output().unwrap())
}

/// The objects that a command printed, one on each line.
fn objects(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Everything in a directory that could change: bytes, modes, times.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let known = path.symlink_metadata().unwrap();
        let bytes = match known.is_file() {
            true => std::fs::read(&path).unwrap(),
            false => Vec::new(),
        };
        if known.is_dir() {
            found.extend(snapshot(&path));
        }
        found.insert(path, (known.modified().unwrap(), known.len(), bytes));
    }
    found
}

fn checkpoint(lane: &mut Lane) -> ObjectId {
    lane.checkpoint(&NewCheckpoint::default()).unwrap().id
}

fn at(id: &ObjectId) -> Revision<'_> {
    Revision::Checkpoint(*id.as_bytes())
}

/// An agent with two checkpoints on main, a branch, a tag and an unsaved change; the checkpoints.
fn populate(lane: &mut Lane) -> [ObjectId; 3] {
    for no in 0..50 {
        let key = format!("notes/{no:02}");
        lane.put(key.as_bytes(), format!("text {no}").as_bytes())
            .unwrap();
    }
    lane.put(b"bin\xff", &[0, 159, 146, 150]).unwrap();
    let first = checkpoint(lane);
    lane.tag("v1", Revision::Head, false).unwrap();
    lane.branch("try", Revision::Head).unwrap();
    lane.put(b"notes/07", b"changed on main").unwrap();
    lane.put(b"large", &Random(7).bytes(200_000)).unwrap();
    lane.delete(b"notes/11").unwrap();
    let new = NewCheckpoint {
        pairs: &[("model", "small")],
        opaque: &[1, 2, 255],
        ..NewCheckpoint::default()
    };
    let second = lane.checkpoint(&new).unwrap().id;
    lane.switch("try").unwrap();
    lane.put(b"notes/07", b"changed on try").unwrap();
    let third = checkpoint(lane);
    lane.switch("main").unwrap();
    lane.put(b"unsaved", b"so far").unwrap();
    [first, second, third]
}

#[test]
fn a_read_only_runtime_reads_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let [first, second, _] = populate(&mut runtime.agent("planner").unwrap());
    attach(runtime.session(), "other").put(b"k", b"v").unwrap();
    let served = Runtime::open_read_only(config(dir.path()));
    assert!(
        matches!(
            served.as_ref().err(),
            Some(RuntimeError::DataDir(DataDirError::Served { .. }))
        ),
        "{:?}",
        served.err()
    );
    // Not sealed: what a kill leaves.
    drop(runtime);
    let before = snapshot(dir.path());
    let reader = Runtime::open_read_only(config(dir.path())).unwrap();
    let beside = Runtime::open_read_only(config(dir.path())).unwrap();
    let session = reader.session().clone();
    let mut lane = session.attach("planner", Attach::default()).unwrap();
    assert_eq!(value_of(&mut lane, b"unsaved").unwrap().unwrap(), b"so far");
    let large = Random(7).bytes(200_000);
    assert_eq!(value_of(&mut lane, b"large").unwrap().unwrap(), large);
    assert_eq!(lane.log(Revision::Head, 0).unwrap().entries.len(), 2);
    let counts = lane.diff_counts(at(&first), at(&second)).unwrap();
    assert_eq!((counts.added, counts.removed, counts.changed), (1, 1, 1));
    let fork = lane.fork(Revision::Tag("v1")).unwrap();
    let old = value_of(&mut lane.on(fork.no), b"notes/11").unwrap();
    assert_eq!(old.unwrap(), b"text 11");

    let refused: Vec<ClientError> = vec![
        lane.put(b"a", b"b").unwrap_err(),
        lane.delete(b"unsaved").unwrap_err(),
        lane.checkpoint(&NewCheckpoint::default()).unwrap_err(),
        lane.branch("new", Revision::Head).unwrap_err(),
        lane.tag("new", Revision::Head, false).unwrap_err(),
        lane.restore(Revision::Tag("v1"), true).unwrap_err(),
        lane.delete_branch("try", true).unwrap_err(),
        lane.put(b"a", &[1; 90_000]).unwrap_err(),
    ];
    let in_fork = lane.on(fork.no).put(b"a", &[1; 9000]).unwrap_err();
    let refused = refused.into_iter().chain([in_fork]);
    for error in refused {
        assert!(matches!(error, ClientError::ReadOnly), "{error:?}");
    }
    assert!(session.attach("nobody", Attach::default()).is_err());
    assert_eq!(value_of(&mut lane, b"unsaved").unwrap().unwrap(), b"so far");
    let started = Runtime::start(config(dir.path()));
    assert!(started.is_err(), "it is read by others");
    drop((lane, beside));
    reader.shutdown().unwrap();
    assert_eq!(snapshot(dir.path()), before);
    assert!(!dir.path().join("helios.sock").exists());
}

#[test]
fn a_torn_end_is_read_around_and_left_as_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config {
        shards: Choice::Fixed(1),
        ..config(dir.path())
    };
    let runtime = Runtime::start(config()).unwrap();
    let mut lane = runtime.agent("planner").unwrap();
    lane.put(b"a", b"whole").unwrap();
    drop(lane);
    drop(runtime);
    let segments = dir.path().join("shard-000");
    let segment = segments.join("00000001.seg");
    let bytes = std::fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // Half a record that was never synced, and a segment that no record reached.
    let mut torn = bytes.clone();
    let at = end.next_multiple_of(8);
    torn[at..at + 60].fill(0xab);
    std::fs::write(&segment, &torn).unwrap();
    std::fs::write(segments.join("00000002.seg"), vec![0; 4096]).unwrap();
    let before = snapshot(dir.path());
    for _ in 0..2 {
        let reader = Runtime::open_read_only(config()).unwrap();
        let mut lane = reader.agent("planner").unwrap();
        assert_eq!(value_of(&mut lane, b"a").unwrap().unwrap(), b"whole");
    }
    assert_eq!(snapshot(dir.path()), before);
    // Whoever serves repairs it.
    let runtime = Runtime::start(config()).unwrap();
    let mut lane = runtime.agent("planner").unwrap();
    assert_eq!(value_of(&mut lane, b"a").unwrap().unwrap(), b"whole");
    drop(lane);
    runtime.shutdown().unwrap();
    assert_ne!(snapshot(dir.path()), before);
}

#[test]
fn what_is_no_data_directory_is_not_made_one() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    for path in [dir.path(), &nowhere] {
        let opened = Runtime::open_read_only(config(path));
        assert!(
            matches!(
                opened.as_ref().err(),
                Some(RuntimeError::DataDir(DataDirError::NotThere { .. }))
            ),
            "{:?}",
            opened.err()
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let place = ["--data", nowhere.to_str().unwrap()];
    let error = run(&place, &["log", "planner"]).bad(1);
    assert!(error.contains("no data directory"), "{error}");
}

/// Runs a test against a server, and on its directory once that is gone.
fn both(test: impl Fn(&[&str], &[ObjectId; 3])) {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), "shards = 2\nio = \"threads\"");
    let ids = populate(&mut attach(&served.session(), "planner"));
    let socket = served.socket();
    test(&["--socket", socket.to_str().unwrap()], &ids);
    let toml = dir.path().join("helios.toml");
    test(&["--config", toml.to_str().unwrap()], &ids);
    served.kill();
    let data = dir.path().join("data");
    let before = snapshot(&data);
    test(&["--config", toml.to_str().unwrap()], &ids);
    test(&["--data", data.to_str().unwrap()], &ids);
    assert_eq!(snapshot(&data), before);
}

#[test]
fn histories_and_states_are_shown_to_people_and_programs() {
    both(|place, [first, second, third]| {
        let json = |args: &[&str]| {
            let args: Vec<_> = args.iter().chain(&["--json"]).copied().collect();
            objects(&run(place, &args).good())
        };
        let log = json(&["log", "planner"]);
        let ids: Vec<_> = log
            .iter()
            .map(|entry| entry["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, [second.to_string(), first.to_string()]);
        assert_eq!(log[0]["parents"][0], first.to_string());
        assert_eq!(log[0]["metadata"][0][1], "small");
        assert_eq!(log[0]["opaque"]["hex"], "0102ff");
        assert_eq!(log[0]["names"][0], "main");
        assert_eq!(log[1]["names"][0], "tag:v1");
        assert_eq!(json(&["log", "planner", "-n", "1"]).len(), 1);
        let text = run(place, &["log", "planner", "try"]).good();
        assert!(
            text.contains(&format!("checkpoint {third} (try)")),
            "{text}"
        );
        assert!(text.contains("51 keys"), "{text}");

        let prefix = &second.to_string()[..16];
        let shown = json(&["show", "planner", prefix]);
        assert_eq!(shown[0]["id"], second.to_string());
        assert_eq!(
            run(place, &["show", "planner", "v1", "notes/11"]).good(),
            "text 11\n"
        );
        let gone = run(place, &["show", "planner", "HEAD", "notes/11"]).bad(1);
        assert!(gone.contains("no key notes/11"), "{gone}");
        let raw = run(place, &["show", "planner", "try", "notes/07", "--raw"]).good();
        assert_eq!(raw, "changed on try");
        let large = helios(&["show", "planner", "main", "large", "--raw"]);
        let large = { large }.args(place).output().unwrap().stdout;
        assert_eq!(large, Random(7).bytes(200_000));
        let keys = json(&["show", "planner", "tag:v1", "--keys", "notes/1"]);
        assert_eq!(
            (keys.len(), &keys[9]["key"]["text"]),
            (10, &"notes/19".into())
        );
        assert_eq!(
            json(&["show", "planner", "v1", "--keys"])[0]["key"]["hex"],
            "62696eff"
        );

        let diff = json(&["diff", "planner", "v1", "HEAD"]);
        let changes: Vec<_> = diff
            .iter()
            .map(|one| one["change"].as_str().unwrap())
            .collect();
        assert_eq!(changes, ["added", "changed", "removed"]);
        assert_eq!(diff[0]["after"]["bytes"], 200_000);
        let counts = &json(&["diff", "planner", "v1", "--stat"])[0];
        assert_eq!(
            *counts,
            serde_json::json!({"added": 1, "removed": 1, "changed": 1})
        );
        let lines = run(place, &["diff", "planner", "EMPTY", "v1"]).good();
        assert_eq!(
            lines.lines().filter(|line| line.starts_with("+ ")).count(),
            51
        );

        let branches = json(&["branch", "list", "planner"]);
        assert_eq!(branches[0]["head"], second.to_string());
        assert_eq!(
            (&branches[0]["changes"], &branches[1]["name"]),
            (&1.into(), &"try".into())
        );
        assert_eq!(
            json(&["tag", "list", "planner"])[0]["target"],
            first.to_string()
        );
    });
}

#[test]
fn agents_are_listed_with_what_is_known_of_them() {
    both(|place, [_, second, _]| {
        let agents = objects(&run(place, &["agents", "--json"]).good());
        assert_eq!(agents.len(), 1);
        assert_eq!(
            (&agents[0]["name"], &agents[0]["branches"]),
            (&"planner".into(), &2.into())
        );
        let main = &agents[0]["heads"][0];
        assert_eq!(
            (&main["name"], &main["changes"]),
            (&"main".into(), &1.into())
        );
        assert_eq!(main["head"], second.to_string());
        let text = run(place, &["agents"]).good();
        assert!(
            text.contains("planner  shard") && text.contains("2 branches, 1 tag"),
            "{text}"
        );
        assert_eq!(run(place, &["agents", "--names"]).good(), "planner\n");
    });
}

#[test]
fn a_branch_is_told_what_to_keep_and_a_server_to_collect() {
    let dir = tempfile::tempdir().unwrap();
    let server = Served::start(dir.path(), "shards = 2");
    let socket = server.socket();
    let place = ["--socket", socket.to_str().unwrap()];
    let mut lane = attach(&server.session(), "planner");
    for no in 0..5u8 {
        lane.put(b"k", &[no; 5000]).unwrap();
        checkpoint(&mut lane);
    }
    let before = run(&place, &["log", "planner", "--json"]).good();
    assert_eq!(objects(&before).len(), 5);
    run(&place, &["branch", "retain", "planner", "main", "last:2"]).good();
    let did = objects(&run(&place, &["gc", "--json"]).good());
    assert_eq!(did[0]["end"], "done");
    assert!(did[0]["objects"].as_u64().unwrap() >= 6, "{did:?}");
    let after = run(&place, &["log", "planner", "--json"]).good();
    assert_eq!(objects(&after).len(), 2);
    let text = run(&place, &["gc"]).good();
    assert!(text.contains("0 objects given up"), "{text}");
    let bad = run(&place, &["branch", "retain", "planner", "main", "some"]).bad(2);
    assert!(bad.contains("last:N"), "{bad}");
}

#[test]
fn what_is_not_there_is_said_with_what_to_do() {
    both(|place, _| {
        let nobody = run(place, &["log", "nobody"]).bad(1);
        assert!(nobody.contains("no agent \"nobody\""), "{nobody}");
        let unknown = run(place, &["show", "planner", "nothing"]).bad(1);
        assert!(unknown.contains("is no branch, no tag"), "{unknown}");
        let short = run(place, &["show", "planner", "abc"]).bad(1);
        assert!(short.contains("is no branch"), "{short}");
        run(place, &["show", "planner", &"0".repeat(64)]).bad(1);
        run(place, &["log"]).bad(2);
        run(place, &["log", "planner", "--limit", "many"]).bad(2);
    });
    let nowhere = run(&["--socket", "/nowhere/s"], &["log", "planner"]).bad(1);
    assert!(nowhere.contains("no server answers"), "{nowhere}");
}

#[test]
fn branches_and_tags_are_made_moved_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), "io = \"threads\"");
    let [first, second, _] = populate(&mut attach(&served.session(), "planner"));
    let socket = served.socket();
    let place = ["--socket", socket.to_str().unwrap()];
    let go = |args: &[&str]| run(&place, args);
    assert!(
        go(&["branch", "create", "planner", "b", "v1"])
            .good()
            .contains(&first.to_string())
    );
    let taken = go(&["branch", "create", "planner", "b"]).bad(1);
    assert!(taken.contains("has that name"), "{taken}");
    go(&["branch", "create", "planner", &"0".repeat(64)]).bad(1);
    go(&["branch", "rename", "planner", "b", "c"]).good();
    go(&["branch", "delete", "planner", "c"]).good();
    go(&["branch", "delete", "planner", "c"]).bad(1);
    go(&["tag", "set", "planner", "try"]).good();
    let both = go(&["log", "planner", "try"]).bad(1);
    assert!(both.contains("branch:try or tag:try"), "{both}");
    assert!(
        go(&["log", "planner", "tag:try"])
            .good()
            .contains(&second.to_string())
    );
    go(&["tag", "set", "planner", "v1"]).bad(1);
    go(&["tag", "set", "planner", "v1", "--force"]).good();
    go(&["tag", "delete", "planner", "v1"]).good();
    let gone = go(&["tag", "delete", "planner", "v1"]).bad(1);
    assert!(gone.contains("no tag \"v1\""), "{gone}");
}

#[test]
fn a_public_tag_is_every_agents_to_branch_from_until_it_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), "io = \"threads\"");
    let [first, ..] = populate(&mut attach(&served.session(), "planner"));
    drop(attach(&served.session(), "pupil"));
    let socket = served.socket();
    let place = ["--socket", socket.to_str().unwrap()];
    let go = |args: &[&str]| run(&place, args);
    let taught = |name: &str| go(&["branch", "create", "pupil", name, "v1", "--of", "planner"]);
    let refused = taught("early").bad(1);
    assert!(refused.contains("no public tag \"v1\""), "{refused}");
    go(&["tag", "set", "planner", "v1", "v1", "--public"]).good();
    assert!(go(&["tag", "list", "planner"]).good().contains("public"));
    assert!(taught("taught").good().contains(&first.to_string()));
    go(&["tag", "set", "planner", "v1", "v1"]).good();
    assert!(!go(&["tag", "list", "planner"]).good().contains("public"));
    taught("late").bad(1);
    assert!(
        go(&["log", "pupil", "taught"])
            .good()
            .contains(&first.to_string())
    );
    let nobody = ["branch", "create", "pupil", "b", "v1", "--of", "nobody"];
    assert!(go(&nobody).bad(1).contains("nobody"));
}

#[test]
fn a_merge_says_its_conflicts_and_a_restore_what_it_would_lose() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), "io = \"threads\"");
    let session = served.session();
    let mut lane = attach(&session, "planner");
    let [first, ..] = populate(&mut lane);
    let socket = served.socket();
    let place = ["--socket", socket.to_str().unwrap()];
    let go = |args: &[&str]| run(&place, args);
    let unsaved = go(&["restore", "planner", "v1"]).bad(1);
    assert!(
        unsaved.contains("1 changed key in no checkpoint"),
        "{unsaved}"
    );
    assert!(unsaved.contains("--force"), "{unsaved}");
    checkpoint(&mut lane);

    let conflicted = go(&["merge", "planner", "try", "--json"]);
    assert_eq!(conflicted.code, 1);
    let outcome = &objects(&conflicted.out)[0];
    assert_eq!(outcome["outcome"], "conflicts");
    assert_eq!(outcome["conflicts"][0]["key"]["text"], "notes/07");
    let table = go(&["merge", "planner", "try"]);
    assert_eq!(table.code, 1);
    assert!(
        table.out.contains("notes/07") && table.out.contains("THEIRS"),
        "{}",
        table.out
    );
    assert!(
        table.err.contains("1 conflict, and nothing was changed"),
        "{}",
        table.err
    );
    go(&[
        "merge", "planner", "try", "--theirs", "", "--fail", "notes/",
    ])
    .bad(1);
    let merged = go(&[
        "merge", "planner", "try", "--theirs", "notes/", "--meta", "why=test", "--json",
    ]);
    let merged = &objects(&merged.good())[0];
    assert_eq!(
        (&merged["outcome"], &merged["keys"]),
        (&"merged".into(), &52.into())
    );
    assert_eq!(
        value_of(&mut lane, b"notes/07").unwrap().unwrap(),
        b"changed on try"
    );
    let again = objects(&go(&["merge", "planner", "try", "--json"]).good());
    assert_eq!(again[0]["outcome"], "nothing");
    let forward = go(&["merge", "planner", "main", "--into", "try", "--json"]).good();
    assert_eq!(objects(&forward)[0]["outcome"], "fast_forward");

    lane.put(b"more", b"unsaved").unwrap();
    let restored = go(&["restore", "planner", "v1", "--force", "--json"]).good();
    let restored = &objects(&restored)[0];
    assert_eq!(
        (&restored["restored"], &restored["dropped"]),
        (&first.to_string().into(), &1.into())
    );
    assert_eq!(
        value_of(&mut lane, b"notes/11").unwrap().unwrap(),
        b"text 11"
    );
    go(&["restore", "planner", "EMPTY"]).good();
    assert_eq!(value_of(&mut lane, b"notes/11").unwrap(), None);
    // What changes something needs a server.
    served.kill();
    let data = dir.path().join("data");
    let place = ["--data", data.to_str().unwrap()];
    let error = run(&place, &["restore", "planner", "v1"]).bad(1);
    assert!(error.contains("no server answers"), "{error}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let mut lane = runtime.agent("planner").unwrap();
    for no in 0..3000 {
        lane.put(format!("key/{no:04}").as_bytes(), b"v").unwrap();
    }
    checkpoint(&mut lane);
    drop(lane);
    runtime.shutdown().unwrap();
    let mut child = helios(&["show", "planner", "--keys", "--data"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, &*ran.err), (0, ""));
}

/// The ids of an agent's history, and what its branches and tags point at.
fn shape(place: &[&str], agent: &str) -> Vec<serde_json::Value> {
    let lists: [&[&str]; 4] = [
        &["log", agent, "main", "--json"],
        &["log", agent, "try", "--json"],
        &["branch", "list", agent, "--json"],
        &["tag", "list", agent, "--json"],
    ];
    let mut all = Vec::new();
    for args in lists {
        for mut object in objects(&run(place, args).good()) {
            // Not exported.
            object["changes"] = 0.into();
            all.push(object);
        }
    }
    all
}

/// Two servers, and what the command line calls them.
struct Two {
    dir: tempfile::TempDir,
    servers: [Served; 2],
    sockets: [String; 2],
}

impl Two {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let servers = ["one", "two"].map(|name| {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            Served::start(&dir, "io = \"threads\"\nshards = 2")
        });
        let sockets = [0, 1].map(|no| servers[no].socket().to_str().unwrap().to_owned());
        Self {
            dir,
            servers,
            sockets,
        }
    }

    fn place(&self, no: usize) -> [&str; 2] {
        ["--socket", &self.sockets[no]]
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn an_agent_goes_from_one_server_to_another_in_a_file() {
    let two = Two::start();
    let mut lane = attach(&two.servers[0].session(), "planner");
    let [first, second, third] = populate(&mut lane);
    checkpoint(&mut lane);
    lane.merge(
        at(&third),
        &[(b"", helios::client::Policy::Ours)],
        &NewCheckpoint::default(),
    )
    .unwrap();
    lane.put(b"empty", b"").unwrap();
    lane.put(b"huge", &Random(9).bytes(3_000_000)).unwrap();
    let merged = checkpoint(&mut lane);
    lane.restore(at(&first), false).unwrap();
    let back = checkpoint(&mut lane);
    lane.branch("nothing", Revision::Empty).unwrap();
    lane.put(b"unsaved", b"and not exported").unwrap();

    let file = two.file("planner.helios");
    let exported = run(&two.place(0), &["export", "planner", &file, "--json"]).good();
    let exported = &objects(&exported)[0];
    assert_eq!(
        (&exported["checkpoints"], &exported["branches"]),
        (&7.into(), &3.into())
    );
    assert_eq!(exported["unsaved"][0][1], 1);
    let there = run(&two.place(0), &["export", "planner", &file]).bad(1);
    assert!(there.contains("--force"), "{there}");
    let told = run(&two.place(0), &["export", "planner", &file, "--force"]);
    assert!(
        told.err
            .contains("1 changed key in no checkpoint: not exported"),
        "{}",
        told.err
    );
    run(&[], &["import", &file, "--check"]).good();

    let imported = run(&two.place(1), &["import", &file, "--json"]).good();
    assert_eq!(objects(&imported)[0]["known"], 0);
    assert_eq!(
        shape(&two.place(1), "planner"),
        shape(&two.place(0), "planner")
    );
    let mut other = attach(&two.servers[1].session(), "planner");
    assert_eq!(other.describe().unwrap().head, Some(back));
    for id in [&first, &second, &third, &merged] {
        let (here, there) = (
            other.fork(at(id)).unwrap().no,
            lane.fork(at(id)).unwrap().no,
        );
        let mut after = Vec::new();
        loop {
            let page = other.on(here).scan(b"", &after, 0).unwrap();
            for key in &page.keys {
                let found = value_of(&mut other.on(here), &key.key).unwrap();
                assert!(found.is_some(), "{}", key.key.escape_ascii());
                assert_eq!(found, value_of(&mut lane.on(there), &key.key).unwrap());
            }
            match page.keys.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => break,
            }
        }
    }
    // Under another name: the checkpoints are the old agent's, and the new one may read them.
    run(&two.place(1), &["import", &file, "--as", "second"]).good();
    assert_eq!(
        shape(&two.place(1), "second"),
        shape(&two.place(0), "planner")
    );
    let mut second_lane = attach(&two.servers[1].session(), "second");
    second_lane.put(b"own", b"value").unwrap();
    let own = second_lane.checkpoint(&NewCheckpoint::default()).unwrap();
    assert_eq!(own.parents, [back]);
    let log = second_lane.log(Revision::Head, 0).unwrap().entries;
    assert_eq!((&*log[0].agent, &*log[1].agent), ("second", "planner"));
    let mut stranger = attach(&two.servers[1].session(), "stranger");
    assert!(matches!(
        stranger.fork(at(&back)),
        Err(ClientError::NoSuchRevision)
    ));
    // Again: nothing to do. Then the histories part, and a third import is refused.
    let again = run(&two.place(1), &["import", &file, "--json"]).good();
    assert_eq!(objects(&again)[0]["known"], 7);
    other.put(b"new", b"here").unwrap();
    let new = other.checkpoint(&NewCheckpoint::default()).unwrap();
    assert_eq!(new.parents, [back]);
    let refused = run(&two.place(1), &["import", &file]).bad(1);
    assert!(
        refused.contains("has a branch \"main\" with something else"),
        "{refused}"
    );
    assert_eq!(other.describe().unwrap().head, Some(new.id));
}

/// A checkpoint's sequence.
fn sequence(lane: &mut Lane, id: &ObjectId) -> u64 {
    lane.log(at(id), 1).unwrap().entries[0].sequence
}

#[test]
fn checkpoints_behind_imported_ones_come_after_them() {
    let two = Two::start();
    let mut lane = attach(&two.servers[0].session(), "planner");
    for no in 0..200 {
        lane.put(b"n", format!("record {no}").as_bytes()).unwrap();
    }
    let far = checkpoint(&mut lane);
    let file = two.file("planner.helios");
    run(&two.place(0), &["export", "planner", &file]).good();
    run(&two.place(1), &["import", &file]).good();
    let mut other = attach(&two.servers[1].session(), "planner");
    let imported = sequence(&mut other, &far);
    // Lower numbers of its own log would let it come before its parent in a walk.
    other.branch("try", Revision::Head).unwrap();
    let mut last = imported;
    for no in 0..3 {
        other.put(b"n", &[no]).unwrap();
        let made = checkpoint(&mut other);
        let sequence = sequence(&mut other, &made);
        assert!(sequence > last, "{sequence} follows {last}");
        last = sequence;
    }
    other.switch("try").unwrap();
    other.put(b"m", b"of try").unwrap();
    let made = checkpoint(&mut other);
    assert!(sequence(&mut other, &made) > imported);
    other
        .merge(Revision::Branch("main"), &[], &NewCheckpoint::default())
        .unwrap();
    let log = other.log(Revision::Head, 0).unwrap();
    let sequences: Vec<_> = log.entries.iter().map(|entry| entry.sequence).collect();
    // Two that nothing orders may have the same one.
    assert!(sequences.is_sorted_by(|a, b| a >= b), "{sequences:?}");
    assert_eq!((log.entries.len(), log.entries[5].id), (6, far));
}

#[test]
fn a_file_that_is_damaged_cut_or_forged_changes_nothing() {
    let two = Two::start();
    populate(&mut attach(&two.servers[0].session(), "planner"));
    let file = two.file("planner.helios");
    run(&two.place(0), &["export", "planner", &file]).good();
    let whole = std::fs::read(&file).unwrap();
    let damaged = two.file("damaged.helios");
    let mut random = Random(3);
    for round in 0..12 {
        let mut bytes = whole.clone();
        let at = random.below(bytes.len() as u64) as usize;
        if round % 2 == 0 {
            bytes[at] ^= 1 << random.below(8);
        } else {
            bytes.truncate(at);
        }
        std::fs::write(&damaged, &bytes).unwrap();
        let error = run(&two.place(1), &["import", &damaged]).bad(1);
        let said =
            error.contains("at byte") || error.contains("no export") || error.contains("version");
        assert!(said, "{at}: {error}");
    }
    // Nobody has heard of the agent.
    run(&two.place(1), &["log", "planner"]).bad(1);
    let foreign = run(&two.place(1), &["import", env!("CARGO_MANIFEST_PATH")]).bad(1);
    assert!(foreign.contains("is no export"), "{foreign}");
    let missing = run(&two.place(1), &["import", "/nowhere/file"]).bad(1);
    assert!(missing.contains("/nowhere/file"), "{missing}");
}

#[test]
fn a_checkpoint_is_made_again_only_of_the_state_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let mut lane = runtime.agent("planner").unwrap();
    let [first, second, _] = populate(&mut lane);
    let entry = |lane: &mut Lane, id: &ObjectId| lane.log(at(id), 1).unwrap().entries.remove(0);
    let entry_of_first = entry(&mut lane, &first);
    let bytes = entry_of_first.to_bytes().unwrap();
    assert_eq!(ObjectId::of_checkpoint(&bytes), first);
    // The state of the second is not that of the first.
    let fork = lane.fork(at(&second)).unwrap().no;
    let wrong = lane.on(fork).checkpoint_as(&bytes).unwrap_err();
    assert!(matches!(wrong, ClientError::WrongState), "{wrong:?}");
    let nonsense = lane.on(fork).checkpoint_as(b"nonsense").unwrap_err();
    assert!(matches!(nonsense, ClientError::WrongState), "{nonsense:?}");
    let on_branch = lane.checkpoint_as(&bytes).unwrap_err();
    assert!(
        matches!(on_branch, ClientError::NoSuchBranch),
        "{on_branch:?}"
    );
    // A child that claims to be older than its parent would turn histories around.
    let fork = lane.fork(at(&first)).unwrap().no;
    let mut turned = entry_of_first.clone();
    turned.parents = vec![second];
    turned.sequence = 1;
    let forged = reencoded(&turned);
    let older = lane.on(fork).checkpoint_as(&forged).unwrap_err();
    assert!(matches!(older, ClientError::WrongState), "{older:?}");
    let mut miscounted = entry_of_first.clone();
    miscounted.keys += 1;
    let keys = lane
        .on(fork)
        .checkpoint_as(&reencoded(&miscounted))
        .unwrap_err();
    assert!(matches!(keys, ClientError::WrongState), "{keys:?}");
    let mut far = entry_of_first.clone();
    far.sequence = u64::MAX;
    let far = lane.on(fork).checkpoint_as(&reencoded(&far)).unwrap_err();
    assert!(matches!(far, ClientError::WrongState), "{far:?}");
    // The fork is still good for the real one.
    let made = lane.on(fork).checkpoint_as(&bytes).unwrap();
    assert_eq!((made.id, made.new_objects), (first, 0));
    lane.on(fork).put(b"more", b"of it").unwrap();
    let next = lane.on(fork).checkpoint(&NewCheckpoint::default()).unwrap();
    assert_eq!(next.parents, [first]);
}

/// The bytes of a checkpoint that nobody made.
fn reencoded(entry: &helios::client::LogEntry) -> Vec<u8> {
    let mut entry = entry.clone();
    let mut bytes = Vec::new();
    helios::state::checkpoint::encode(
        &helios::state::checkpoint::NewCheckpoint {
            tree: entry.tree,
            keys: entry.keys,
            parents: &entry.parents,
            agent: entry.agent.as_bytes(),
            sequence: entry.sequence,
            wall_ms: entry.wall_ms,
            metadata: helios::state::checkpoint::Metadata::default(),
        },
        &mut bytes,
    );
    entry.id = ObjectId::of_checkpoint(&bytes);
    assert_eq!(entry.to_bytes().unwrap(), bytes);
    bytes
}

#[test]
fn a_collection_takes_nothing_from_an_import_under_way() {
    let [from, to] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [source, target] = [&from, &to].map(|dir| {
        let shards = Choice::Fixed(1);
        let config = config(dir.path());
        Runtime::start(Config { shards, ..config }).unwrap()
    });
    let mut random = Random(21);
    let states: Vec<_> = (0..3).map(|_| random.bytes(50_000)).collect();
    let mut lane = source.agent("planner").unwrap();
    let mut entries = Vec::new();
    for (no, state) in states.iter().enumerate() {
        lane.put(format!("state/{no}").as_bytes(), state).unwrap();
        let id = checkpoint(&mut lane);
        entries.push(lane.log(at(&id), 1).unwrap().entries.remove(0));
    }

    let mut importer = target.agent("planner").unwrap();
    let bring = |lane: &mut Lane, no: usize| {
        let base = no.checked_sub(1).map(|base| entries[base].id);
        let fork = lane
            .fork(base.as_ref().map_or(Revision::Empty, at))
            .unwrap();
        let key = format!("state/{no}");
        lane.on(fork.no).put(key.as_bytes(), &states[no]).unwrap();
        let bytes = entries[no].to_bytes().unwrap();
        lane.on(fork.no).checkpoint_as(&bytes).unwrap();
        lane.discard(fork.no).unwrap();
    };
    bring(&mut importer, 0);
    let mut watcher = target.agent("watcher").unwrap();
    std::thread::scope(|scope| {
        let collection = scope.spawn(|| target.collect());
        // Nothing names what was brought: a round that ended would have given it up.
        for _ in 0..50 {
            std::thread::sleep(std::time::Duration::from_millis(4));
            assert_eq!(watcher.stats().unwrap().collections, 0);
        }
        bring(&mut importer, 1);
        bring(&mut importer, 2);
        importer.branch("main-2", at(&entries[2].id)).unwrap();
        drop(importer);
        collection.join().unwrap();
    });
    let mut lane = target.agent("planner").unwrap();
    for entry in &entries {
        let fork = lane.fork(at(&entry.id)).unwrap().no;
        let first = value_of(&mut lane.on(fork), b"state/0").unwrap();
        assert_eq!(first.as_ref(), Some(&states[0]));
    }
    assert_eq!(lane.log(at(&entries[2].id), 0).unwrap().entries.len(), 3);
    drop((lane, watcher));
    target.shutdown().unwrap();
}
