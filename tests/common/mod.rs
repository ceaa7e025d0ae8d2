//! A runtime in a process of its own, for tests that kill it, count its descriptors or read its
//! log; bounded waiting; a generator of values.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use helios::Runtime;
use helios::agent::FrameSocket;
use helios::client::{Attach, ClientError, Lane, Session};
use helios::config::{Choice, Config, Io};

/// How long anything may take that is not timed: only a hang takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `done` answers, for [`PATIENCE`] at most.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `helios serve` as a child process; killed when dropped.
pub struct Served {
    child: Child,
    directory: PathBuf,
}

impl Served {
    /// Starts one on `directory`, with further lines of configuration, and waits until it accepts.
    pub fn start(directory: &Path, more: &str) -> Self {
        Self::start_logging(directory, more, "info")
    }

    /// The same, with a log of that level.
    pub fn start_logging(directory: &Path, more: &str, level: &str) -> Self {
        Self::start_under(directory, more, level, &[])
    }

    /// The same, by way of a program that becomes it: `prlimit`, `env`, a shell that ends in `exec "$@"`.
    pub fn start_under(directory: &Path, more: &str, level: &str, wrapper: &[&str]) -> Self {
        let data_dir = directory.join("data");
        let text = format!(
            "data_dir = {data_dir:?}\nsocket = {:?}\n{more}\n",
            directory.join("s")
        );
        std::fs::write(directory.join("helios.toml"), text).unwrap();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(directory.join("log"))
            .unwrap();
        let serve = [env!("CARGO_BIN_EXE_helios"), "serve", "--config"];
        let argv: Vec<&str> = wrapper.iter().copied().chain(serve).collect();
        let child = Command::new(argv[0])
            .args(&argv[1..])
            .arg(directory.join("helios.toml"))
            .env("HELIOS_LOG", level)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut served = Self {
            child,
            directory: directory.to_owned(),
        };
        wait_for("the runtime accepts", || {
            if let Some(status) = served.child.try_wait().unwrap() {
                panic!("helios serve ended: {status}\n{}", served.log());
            }
            FrameSocket::connect(&served.socket()).ok()
        });
        served
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("s")
    }

    pub fn session(&self) -> Session {
        Session::connect(self.socket()).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Descriptors that the runtime holds, but for segments: those come and go by themselves.
    pub fn fds(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links
            .filter(|link| link.extension().is_none_or(|extension| extension != "seg"))
            .count()
    }

    /// Mappings that the runtime holds.
    pub fn maps(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        // What the allocator and thread stacks do is not ours to count.
        maps.lines().filter(|line| line.contains("memfd:")).count()
    }

    /// Everything that it and those before it in the directory wrote to their logs.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Fails the test if the runtime is gone or a thread of it panicked.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().unwrap();
        let log = self.log();
        assert!(ended.is_none(), "the runtime ended: {ended:?}\n{log}");
        assert!(!log.contains("panicked"), "{log}");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for its end in order.
    pub fn stop(mut self) {
        let status = self.terminate();
        assert!(status.success(), "{status}\n{}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }

    /// SIGTERM, and how it ends.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        wait_for("an end", || self.child.try_wait().unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory in memory where there is one: for what is killed, not cut, no device has to be waited for.
pub fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A directory that stays, and is named, where the test fails.
pub struct KeptIfFailed(pub Option<tempfile::TempDir>);

impl KeptIfFailed {
    pub fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for KeptIfFailed {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.0.take()
        {
            println!("kept: {}", dir.keep().display());
        }
    }
}

/// A configuration of a small runtime in this process: one shard, plain threads.
pub fn small_config(dir: &Path, segment_mib: u32, memory_mib: u64) -> Config {
    Config {
        shards: Choice::Fixed(1),
        segment_bytes: segment_mib << 20,
        memory_max: memory_mib << 20,
        io: Io::Threads,
        ..Config::at(dir)
    }
}

/// Runs a test against a runtime in this process, in a folder of its own.
pub fn with_runtime(config: impl FnOnce(&Path) -> Config, test: impl FnOnce(&Session)) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    test(runtime.session());
    runtime.shutdown().unwrap();
}

/// The value of a key.
pub fn get(lane: &mut Lane, key: &[u8]) -> Option<Vec<u8>> {
    value_of(lane, key).unwrap()
}

/// A lane to `agent`, which is made.
pub fn attach(session: &Session, agent: &str) -> Lane {
    session.attach(agent, Attach::default()).unwrap()
}

/// What a key names.
pub fn value_of(lane: &mut Lane, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
    let mut value = Vec::new();
    Ok(lane.get(key, &mut value)?.map(|_| value))
}

/// xorshift64*: the same numbers for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// Runs the test `role` of this binary as a child with `HELIOS_ROLE` set; see [`role`].
pub fn spawn_role(role: &str, argument: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([role, "--exact", "--nocapture", "--test-threads=1"])
        .env("HELIOS_ROLE", argument)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The argument of [`spawn_role`] where this process is such a child.
pub fn role() -> Option<PathBuf> {
    std::env::var_os("HELIOS_ROLE").map(PathBuf::from)
}
