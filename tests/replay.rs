//! `helios replay` from the outside: a small run through the real program, and its refusals.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// What agents do with versions of their state, by the names of its latencies.
const VERSION_CALLS: [&str; 7] = [
    "checkpoint",
    "checkpoint_power",
    "branch",
    "restore",
    "merge",
    "fork_write_discard",
    "diff",
];
const HEADER: &str = "agent_id,seq,key,op\n";

/// A folder with a configuration and a trace of two hundred short processes.
struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = format!(
            "data_dir = {:?}\nl1_window_bytes = \"8KiB\"\nmemory_max = \"32MiB\"\nsegment_bytes = \"4MiB\"\n",
            folder.path().join("data"),
        );
        fs::write(folder.path().join("replay.toml"), config).expect("a file");
        let case = Self { folder };
        let mut text = HEADER.to_owned();
        let mut seq = 0;
        for process in 0..200 {
            for access in 0..12 {
                let key = match access % 6 {
                    0 => format!("/lib/{}", access % 4),
                    _ => format!("/own/{process}/{}", access * 7 % 5),
                };
                let op = if access % 9 == 8 { "write" } else { "read" };
                text += &format!("p{process},{seq},{key},{op}\n");
                seq += 1;
            }
        }
        case.write_trace(&text);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_trace(&self, text: &str) {
        fs::write(self.path("trace.csv"), text).expect("a file");
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_helios"));
        command
            .arg("replay")
            .args(["--config".as_ref(), self.path("replay.toml").as_os_str()])
            .args(["--trace".as_ref(), self.path("trace.csv").as_os_str()])
            .args(more);
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("the program starts")
    }

    /// Starts a replay that would take a minute, and waits for its workers.
    fn start_long(&self) -> (Killed, Vec<u32>) {
        let replay = self
            .command(&["--agents", "4", "--seconds", "60"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let replay = Killed(replay.expect("the program starts"));
        let id = replay.0.id();
        let mut workers = Vec::new();
        until("two workers run", || {
            let children = format!("/proc/{id}/task/{id}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            workers = children
                .split_whitespace()
                .map(|id| id.parse().expect("a number"))
                .collect();
            workers.len() == 2
        });
        (replay, workers)
    }
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for something that must come; the bound is there so that a broken program fails.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited for: {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn kill(process: u32) {
    let process = i32::try_from(process).expect("a process number");
    let process = rustix::process::Pid::from_raw(process).expect("a process number");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("killed");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn report_file(data_dir: &Path) -> Value {
    let file = fs::read(data_dir.join("replay-report.json")).expect("the report file");
    serde_json::from_slice(&file).expect("JSON")
}

#[test]
fn twenty_agents_read_what_they_wrote() {
    // How far they come in a time is the machine's: each kind of call comes up sooner or later.
    let (case, report) = ["2", "8", "32"]
        .iter()
        .map(|seconds| {
            let case = Case::new();
            let output = case.run(&["--agents", "20", "--seconds", seconds, "--json"]);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let report = serde_json::from_slice::<Value>(&output.stdout);
            (case, report.expect("one JSON object"))
        })
        .find(|(_, report)| {
            let counts = VERSION_CALLS.map(|name| report["latency_ns"][name]["count"].as_u64());
            counts.iter().all(|count| *count > Some(0))
        })
        .expect("each kind of call");
    assert_eq!(report["agents"], 20);
    assert_eq!(report["verify"]["mismatches"], 0);
    let count = |name: &str| report["latency_ns"][name]["count"].as_u64().unwrap();
    let reads = count("l1_hit") + count("l2_hit") + count("l3_hit") + count("cold");
    assert!(reads > 0 && count("write") > 0 && count("sync") > 0);
    assert_eq!(report["operations"], reads + count("write") + count("sync"));
    // What is read on branches, in forks and at checkpoints comes to it.
    assert!(report["verify"]["reads_checked"].as_u64().unwrap() > reads);
    for name in VERSION_CALLS {
        let latency = &report["latency_ns"][name];
        assert!(latency["p50"].as_u64() <= latency["max"].as_u64(), "{name}");
    }
    let storage = |name: &str| report["storage"][name].as_u64().unwrap();
    assert!(storage("logical_bytes") > 0 && report["storage"]["collected_bytes"].is_u64());
    assert!(report["storage"]["collection_step_ns"]["p99"].is_u64());
    assert!(
        storage("stored_bytes") > storage("logical_bytes"),
        "history is kept"
    );
    let ratio = |name: &str| report["hit_ratio"][name].as_f64().unwrap();
    assert!((ratio("l1") + ratio("l2") - ratio("memory")).abs() < 1e-9);
    for name in ["l1", "l2", "memory", "lru", "opt", "infinite"] {
        assert!((0.0..=1.0).contains(&ratio(name)), "{name}");
    }
    assert!(ratio("opt") <= ratio("infinite"));

    let file = report_file(&case.path("data"));
    assert_eq!(file["operations"], report["operations"]);
    assert_eq!(file["detail"]["trace_processes"], 200);
    // A clean run takes its state away.
    assert!(!case.path("data/replay-state").exists());
}

#[test]
fn a_table_is_shown_with_think_times_and_one_worker() {
    let case = Case::new();
    let more = [
        "--agents",
        "3",
        "--workers",
        "1",
        "--seconds",
        "0.5",
        "--think",
        "1",
    ];
    let output = case.run(&more);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for part in [
        "3 agents in 1 workers",
        "L1 hit",
        "checkpoint, power",
        "fork write discard",
        "storage     ",
        "hit ratio",
        "0 mismatches",
        "replay-report.json",
    ] {
        assert!(table.contains(part), "{part:?} in\n{table}");
    }
    // An open loop: three agents, a millisecond each.
    let operations = report_file(&case.path("data"))["operations"]
        .as_u64()
        .unwrap();
    assert!(operations < 6000, "{operations}");
}

#[test]
fn what_can_not_be_replayed_is_refused() {
    let case = Case::new();
    let check = |message: &str| {
        let output = case.run(&["--agents", "2", "--seconds", "0.2"]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(message), "{message:?} in {stderr:?}");
        assert!(
            !case.path("data/replay-state").exists(),
            "nothing was started"
        );
    };
    case.write_trace("agent,seq,key,op\n");
    check("trace.csv: line 1: the header is");
    case.write_trace(&format!("{HEADER}a,0,k,read\na,1,k,erase\n"));
    check("trace.csv: line 3: op is \"erase\"");
    case.write_trace(HEADER);
    check("trace.csv: no accesses");
    fs::remove_file(case.path("trace.csv")).expect("removed");
    check("trace.csv: can't open the trace");
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let case = Case::new();
    fs::create_dir_all(case.path("data/replay-state")).expect("a folder");
    fs::write(case.path("data/replay-state/precious"), b"1").expect("a file");
    let output = case.run(&["--agents", "2", "--seconds", "0.2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("was not made by a replay"));
    assert!(case.path("data/replay-state/precious").exists());
}

#[test]
fn nobody_at_the_socket_is_an_error() {
    let case = Case::new();
    let socket = case.path("nobody.sock");
    let socket = socket.to_str().expect("UTF-8");
    let output = case.run(&["--agents", "2", "--seconds", "0.2", "--socket", socket]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("can't connect"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_runtime_that_is_served_elsewhere_can_be_replayed() {
    let case = Case::new();
    let served = Command::new(env!("CARGO_BIN_EXE_helios"))
        .args([
            "serve".as_ref(),
            "--config".as_ref(),
            case.path("replay.toml").as_os_str(),
        ])
        .stdout(Stdio::null())
        .spawn();
    let _served = Killed(served.expect("the program starts"));
    let socket = case.path("data/helios.sock");
    until("the runtime listens", || socket.exists());
    let socket = socket.to_str().expect("UTF-8");
    // Twice: what an earlier replay left in the runtime must not show.
    for seed in ["1", "2"] {
        let more = [
            "--agents",
            "9",
            "--seconds",
            "0.3",
            "--seed",
            seed,
            "--socket",
            socket,
            "--json",
        ];
        let output = case.run(&more);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(report["verify"]["mismatches"], 0);
        assert!(report["latency_ns"]["checkpoint"]["count"].as_u64() > Some(0));
        assert!(report["memory"]["rss_bytes"].as_u64().unwrap() > 0);
        assert!(report["cpu"]["busy_share_idle"].is_f64());
    }
}

#[test]
fn a_worker_that_dies_fails_the_replay() {
    let case = Case::new();
    let (mut replay, workers) = case.start_long();
    kill(workers[1]);
    let status = replay.0.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    let mut stderr = String::new();
    let mut pipe = replay.0.stderr.take().expect("a pipe");
    std::io::Read::read_to_string(&mut pipe, &mut stderr).expect("UTF-8");
    assert!(
        stderr.contains("worker 1 ended before its work was done"),
        "{stderr}"
    );
    assert!(
        !Path::new(&format!("/proc/{}", workers[0])).exists(),
        "the other one is gone"
    );
}

#[test]
fn workers_do_not_outlive_their_replay() {
    let case = Case::new();
    let (replay, workers) = case.start_long();
    kill(replay.0.id());
    until("the workers are gone", || {
        workers.iter().all(|worker| {
            // A zombie that nobody has collected yet is gone, too.
            let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
            status.is_empty() || status.contains("State:\tZ")
        })
    });
}

#[test]
fn the_shipped_configuration_is_good() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime-config/replay-850.toml");
    let config = helios::config::Config::load(&path).expect("the shipped file");
    // What its comment says the windows take.
    assert_eq!(850 * u64::from(config.l1_window_bytes), 13_926_400);
}
