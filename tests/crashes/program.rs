//! `helios serve` as a child that may die at any time, and agents that load it meanwhile.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use helios::agent::FrameSocket;
use helios::client::{Attach, Lane, Session};
use helios::id::ShardNo;

use super::common::{PATIENCE, Random};
use super::ledger::{Ended, Worker};

/// Sizes at which segments come and go within a round.
pub const LINES: &str = "shards = 2\nsegment_bytes = \"1MiB\"\nmemory_max = \"64MiB\"";

/// The child; killed when dropped.
pub struct Program {
    child: Child,
    directory: PathBuf,
}

impl Program {
    /// Starts one with its data in `data`, and socket and log in `directory`; `crash_at` as `src/crash.rs` has it.
    pub fn start(directory: &Path, data: &Path, io: &str, crash_at: Option<&str>) -> Self {
        let text = format!(
            "data_dir = {data:?}\nsocket = {:?}\nio = {io:?}\n{LINES}\n",
            directory.join("s")
        );
        std::fs::write(directory.join("helios.toml"), text).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_helios"));
        command
            .args(["serve", "--config"])
            .arg(directory.join("helios.toml"))
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(crash_at) = crash_at {
            command.env("HELIOS_CRASH_AT", crash_at);
        }
        Self {
            child: command.spawn().unwrap(),
            directory: directory.to_owned(),
        }
    }

    /// A session, once it accepts; `None` where it was killed before.
    ///
    /// # Panics
    /// Where it ends in another way.
    pub fn session(&mut self) -> Option<Session> {
        let start = Instant::now();
        loop {
            if self.has_ended() {
                return None;
            }
            let socket = self.directory.join("s");
            if FrameSocket::connect(&socket).is_ok()
                && let Ok(session) = Session::connect(socket)
            {
                return Some(session);
            }
            assert!(start.elapsed() < PATIENCE, "no answer\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it is dead by SIGKILL.
    ///
    /// # Panics
    /// Where it ended in another way.
    pub fn has_ended(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.try_wait().unwrap();
        if let Some(status) = status.filter(|status| status.signal() != Some(libc::SIGKILL)) {
            panic!("helios serve ended: {status}\n{}", self.log());
        }
        status.is_some()
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Asks it to end in order.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits until it has ended, and says how.
    pub fn wait(&mut self) -> ExitStatus {
        super::common::wait_for("the end", || self.child.try_wait().unwrap())
    }

    /// Ends it where it has not ended by itself, in whatever way; how it did.
    pub fn end(&mut self) -> ExitStatus {
        let _ = self.child.kill();
        self.child.wait().unwrap()
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Attaches a lane to an agent; `None` where the runtime goes meanwhile.
pub fn attach(session: &Session, agent: &str) -> Option<Lane> {
    session.attach(agent, Attach::default()).ok()
}

/// Has every worker do operations in a lane of its own until `stop`, and somebody collect and move agents
/// beside them, while `during` runs.
pub fn load<T>(
    session: &Session,
    workers: &mut [Worker],
    clock: &(dyn Fn() -> u64 + Sync),
    seed: u64,
    during: impl FnOnce() -> T,
) -> T {
    let stop = AtomicBool::new(false);
    let stop = &stop;
    let agents: Vec<String> = workers.iter().map(|it| it.agent().to_owned()).collect();
    std::thread::scope(|scope| {
        for worker in workers {
            scope.spawn(move || {
                let Some(mut lane) = attach(session, worker.agent()) else {
                    return;
                };
                let mut ended = worker.begin(&mut lane, clock);
                while ended == Ended::Done && !stop.load(Ordering::Acquire) {
                    ended = worker.step(&mut lane, clock);
                }
            });
        }
        scope.spawn(move || disturb(session, &agents, seed, stop));
        let done = during();
        stop.store(true, Ordering::Release);
        done
    })
}

/// Collections and moves, until the runtime is gone or `stop`.
fn disturb(session: &Session, agents: &[String], seed: u64, stop: &AtomicBool) {
    let mut random = Random(seed | 1);
    while !stop.load(Ordering::Acquire) {
        let collected = random.below(2) == 0 && session.collect().is_err();
        let agent = &agents[random.below(agents.len() as u64) as usize];
        let Ok(info) = session.describe_agent(agent) else {
            // Not made yet, or the runtime is gone: then the other call fails, too.
            if collected || session.agents("", 1).is_err() {
                return;
            }
            continue;
        };
        // That it stays where it was is no failure.
        let _ = session.migrate_agent(agent, ShardNo(1 - info.shard));
        std::thread::sleep(Duration::from_millis(random.below(10)));
    }
}
