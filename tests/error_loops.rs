//! Error loops over system calls: a runtime starts, serves a process and stops, and every call of its threads that
//! can fail does so in turn, once or from then on. A seccomp filter hands their calls to a thread of this process,
//! which lets them through or answers with an error: the product knows nothing of it.
//!
//! After each run: what was refused says why, nothing panicked or hangs, what was acknowledged is there after a
//! start, and as many descriptors, threads and shared mappings are left as before the first. Which calls failed, and
//! how often, is printed. `HELIOS_ERROR_LOOPS=all` walks along every call; else each run skips some.

#![expect(
    unsafe_code,
    reason = "the listener of a seccomp filter is made and asked by bare system calls"
)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{attach, memory_dir, small_config, value_of, wait_for};
use helios::Runtime;
use helios::agent::frame::RefusalCode;
use helios::client::{Attach, ClientError, Lane, NewCheckpoint, PutOptions, Session};
use helios::config::Durability;

/// The calls that are watched, with what they fail with.
const CALLS: [(i64, &str, i32); 29] = [
    (libc::SYS_accept4, "accept4", libc::EMFILE),
    (libc::SYS_bind, "bind", libc::EADDRNOTAVAIL),
    (libc::SYS_chmod, "chmod", libc::EPERM),
    (libc::SYS_clone3, "clone3", libc::EAGAIN),
    (libc::SYS_epoll_create1, "epoll_create1", libc::EMFILE),
    (libc::SYS_epoll_ctl, "epoll_ctl", libc::ENOMEM),
    (libc::SYS_eventfd2, "eventfd2", libc::EMFILE),
    (libc::SYS_fallocate, "fallocate", libc::ENOSPC),
    (libc::SYS_fcntl, "fcntl", libc::EMFILE),
    (libc::SYS_fdatasync, "fdatasync", libc::EIO),
    (libc::SYS_flock, "flock", libc::ENOLCK),
    (libc::SYS_fsync, "fsync", libc::EIO),
    (libc::SYS_ftruncate, "ftruncate", libc::EIO),
    (libc::SYS_getdents64, "getdents64", libc::EIO),
    (libc::SYS_listen, "listen", libc::EADDRINUSE),
    (libc::SYS_memfd_create, "memfd_create", libc::EMFILE),
    (libc::SYS_mkdir, "mkdir", libc::EIO),
    (libc::SYS_mmap, "mmap", libc::ENOMEM),
    (libc::SYS_openat, "openat", libc::EMFILE),
    (libc::SYS_pread64, "pread64", libc::EIO),
    (libc::SYS_preadv2, "preadv2", libc::EIO),
    (libc::SYS_pwrite64, "pwrite64", libc::EIO),
    (libc::SYS_read, "read", libc::EIO),
    (libc::SYS_rename, "rename", libc::EIO),
    (libc::SYS_sendmsg, "sendmsg", libc::ENOBUFS),
    (libc::SYS_socket, "socket", libc::EMFILE),
    (libc::SYS_statx, "statx", libc::EIO),
    (libc::SYS_unlink, "unlink", libc::EIO),
    (libc::SYS_write, "write", libc::EIO),
];

/// Which call fails.
#[derive(Clone, Copy, Default)]
struct Which {
    /// Of this name; else any.
    only: Option<&'static str>,
    /// So many go well before it.
    skip: u64,
    /// And every one after it.
    persistent: bool,
}

/// The same, and what did.
#[derive(Default)]
struct Nth {
    which: Which,
    /// Nothing fails any more.
    over: bool,
    calls: u64,
    failed: BTreeMap<&'static str, u64>,
}

impl Nth {
    /// The error that a call ends with, if it does.
    fn errno(&mut self, call: &libc::seccomp_data) -> i32 {
        let known = CALLS.iter().find(|(no, ..)| *no == i64::from(call.nr));
        let Some(&(no, name, errno)) = known else {
            return 0;
        };
        if self.over || !is_ours(no, call) {
            return 0;
        }
        let Which {
            only,
            skip,
            persistent,
        } = self.which;
        if only.is_some_and(|only| only != name) {
            return 0;
        }
        let at = self.calls;
        self.calls += 1;
        if at != skip && (at < skip || !persistent) {
            return 0;
        }
        *self.failed.entry(name).or_default() += 1;
        errno
    }
}

/// Whether a call is the product's, and may fail: what a library asks of the machine's description is not, and a bell
/// is a counter in memory.
fn is_ours(no: i64, call: &libc::seccomp_data) -> bool {
    let [first, second, ..] = call.args;
    let link = || {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", first as RawFd));
        link.unwrap_or_default()
    };
    let is_data = |path: &Path| path.starts_with("/dev/shm") || path.starts_with("/tmp");
    match no {
        libc::SYS_read | libc::SYS_write | libc::SYS_getdents64 => is_data(&link()),
        libc::SYS_fcntl => ["/memfd:", "socket:", "/dev/shm", "/tmp"]
            .iter()
            .any(|start| link().to_string_lossy().starts_with(start)),
        libc::SYS_openat | libc::SYS_statx => {
            // SAFETY: who asks waits with a path that ends with a zero, in this process.
            let path = unsafe { std::ffi::CStr::from_ptr(second as *const std::ffi::c_char) };
            is_data(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())))
        }
        _ => true,
    }
}

/// Has the calls of this thread, and of those that it makes, asked of a listener.
fn listen() -> OwnedFd {
    let statement = |code: u32, k: u32, jt: usize, jf: usize| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let equals = |word: i64, jt, jf| {
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            word as u32,
            jt,
            jf,
        )
    };
    let end = |action| statement(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    let count = CALLS.len();
    // Of mappings those of files alone: the other ones are the allocator's.
    let fd_of_mmap = 16 + 4 * 8;
    let mut program = vec![load(0), equals(libc::SYS_mmap, 0, 2), load(fd_of_mmap)];
    program.push(equals(-1, count, count + 1));
    for (at, (no, ..)) in CALLS.iter().enumerate() {
        program.push(equals(*no, count - at, 0));
    }
    program.push(end(libc::SECCOMP_RET_ALLOW));
    program.push(end(libc::SECCOMP_RET_USER_NOTIF));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: plain system calls; `filter` and the program it points to outlive them, and the descriptor that the
    // second one returns is nobody else's.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, flags) = (
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        );
        let fd = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter);
        assert!(fd >= 0, "seccomp: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as RawFd)
    }
}

/// Answers the calls that a listener hears of, until those who make them are gone.
fn answer(listener: &OwnedFd, nth: &Mutex<Nth>) {
    const RECEIVE: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl;
    const SEND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl;
    const CONTINUE: u32 = 1;
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one entry, and outlives the call.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents & libc::POLLIN == 0 {
            return;
        }
        // SAFETY: zeros are a value of this struct of integers, and the one that the call asks for.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request writes one such struct.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) } != 0 {
            continue;
        }
        let errno = nth.lock().unwrap().errno(&asked.data);
        let mut answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: -errno,
            flags: if errno == 0 { CONTINUE } else { 0 },
        };
        // SAFETY: the request reads one such struct. Who asked may be gone: then there is nobody to tell.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer) };
    }
}

/// What is held by this process.
fn held() -> [usize; 3] {
    let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|line| line.contains("memfd:")).count();
    [count("/proc/self/fd"), count("/proc/self/task"), shared]
}

/// What was acknowledged: the keys of the values below.
type Acknowledged = Vec<&'static [u8]>;

fn value(key: &[u8]) -> Vec<u8> {
    let bytes = if key == b"large" { 200_000 } else { 1000 };
    (0..bytes)
        .map(|at: u32| (at ^ at >> 8) as u8 ^ key[0])
        .collect()
}

/// What a process does with a runtime; why it went no further.
fn work(socket: &Path, acknowledged: &mut Acknowledged) -> Result<(), ClientError> {
    let session = Session::connect(socket)?;
    let mut lane = session.attach("agent", Attach::default())?;
    let mut put = |lane: &mut Lane, key: &'static [u8], durability| {
        let options = PutOptions {
            durability: Some(durability),
            ..PutOptions::default()
        };
        lane.put_with(key, &value(key), options)?;
        acknowledged.push(key);
        Ok::<_, ClientError>(())
    };
    put(&mut lane, b"small", Durability::Process)?;
    put(&mut lane, b"power", Durability::Power)?;
    put(&mut lane, b"large", Durability::Process)?;
    lane.checkpoint(&NewCheckpoint::default())?;
    let found = value_of(&mut lane, b"large")?;
    assert!(
        found.is_some_and(|found| found == value(b"large")),
        "wrong bytes"
    );
    Ok(())
}

/// Whether an error says what happened and what to do, or at least where.
fn check_text(text: &str) {
    assert!(text.len() > 20 && !text.contains("panicked"), "{text}");
}

/// What fails nothing.
const NOTHING: Which = Which {
    only: None,
    skip: u64::MAX,
    persistent: false,
};

/// A run on a directory, with one call failing, or more. Calls that did; none: it is over.
fn run(dir: &Path, which: Which) -> BTreeMap<&'static str, u64> {
    let nth = Arc::new(Mutex::new(Nth {
        which,
        ..Nth::default()
    }));
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (config, shared) = (small_config(dir, 1, 64), Arc::clone(&nth));
    let (hand, handed) = std::sync::mpsc::channel();
    let host = std::thread::spawn(move || {
        hand.send(listen()).unwrap();
        match Runtime::start(config) {
            Ok(runtime) => {
                tell.send(Ok(runtime.socket().to_owned())).unwrap();
                let _ = stopped.recv();
                runtime.shutdown().err().map(|error| error.to_string())
            }
            Err(error) => {
                tell.send(Err(error.to_string())).unwrap();
                None
            }
        }
    });
    let listener = handed.recv().unwrap();
    let answering = std::thread::spawn(move || answer(&listener, &shared));
    let mut acknowledged = Acknowledged::new();
    match told
        .recv_timeout(common::PATIENCE)
        .expect("the start hangs")
    {
        Err(text) => check_text(&text),
        Ok(socket) => {
            let worked = in_time(&nth, &mut acknowledged, &socket);
            let fired = !nth.lock().unwrap().failed.is_empty();
            match worked {
                Ok(()) => {}
                Err(error) => {
                    assert!(fired, "nothing failed, and yet {error}");
                    check_text(&error.to_string());
                    nth.lock().unwrap().over = true;
                    go_on(&socket, &mut acknowledged);
                }
            }
        }
    }
    drop(stop);
    wait_for("the shutdown ends", || host.is_finished().then_some(()));
    if let Some(text) = host.join().unwrap() {
        check_text(&text);
    }
    answering.join().unwrap();
    check_kept(dir, &acknowledged);
    std::mem::take(&mut nth.lock().unwrap().failed)
}

/// Works in a thread of its own; where it waits for what a dead listener never does, the fault is taken away.
fn in_time(
    nth: &Arc<Mutex<Nth>>,
    acknowledged: &mut Acknowledged,
    socket: &Path,
) -> Result<(), ClientError> {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| work(socket, acknowledged));
        let mut polls = 0;
        while !working.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
            polls += 1;
            if polls > 300 {
                nth.lock().unwrap().over = true;
            }
            assert!(polls < 20_000, "a call of a client hangs");
        }
        working.join().unwrap()
    })
}

/// Once nothing fails any more all goes well, or it is said that a start is needed.
fn go_on(socket: &Path, acknowledged: &mut Acknowledged) {
    let mut last = None;
    for _ in 0..50 {
        match work(socket, acknowledged) {
            Ok(()) => return,
            Err(ClientError::ReadOnly | ClientError::IoFailed { .. }) => return,
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // What is left then is a sync that failed, after which nothing is written before the next start.
    let code = match &last {
        Some(ClientError::Refused { code, .. }) => Some(*code),
        _ => None,
    };
    assert_eq!(code, Some(RefusalCode::Disk), "it does not go on: {last:?}");
}

/// A start that nothing fails finds what was acknowledged.
fn check_kept(dir: &Path, acknowledged: &Acknowledged) {
    let runtime = Runtime::start(small_config(dir, 1, 64)).unwrap();
    let mut lane = attach(runtime.session(), "agent");
    for key in acknowledged {
        let found = value_of(&mut lane, key).unwrap();
        assert!(
            found.is_some_and(|found| found == value(key)),
            "{key:?} is gone"
        );
    }
    drop(lane);
    runtime.shutdown().unwrap();
}

/// Walks along the calls of runtimes on directories of one kind.
struct Walk {
    full: bool,
    baseline: [usize; 3],
    runs: u64,
    failed: BTreeMap<&'static str, u64>,
}

impl Walk {
    fn new(full: bool) -> Self {
        // What is made once, by the first runtime of a process.
        run(memory_dir().path(), NOTHING);
        std::thread::sleep(Duration::from_millis(500));
        Self {
            full,
            baseline: held(),
            runs: 0,
            failed: BTreeMap::new(),
        }
    }

    /// A run; whether something failed.
    fn fails(&mut self, which: Which) -> bool {
        let dir = memory_dir();
        if self.full {
            run(dir.path(), NOTHING);
        }
        let failed = run(dir.path(), which);
        drop(dir);
        wait_for("what was held is given back", || {
            (held() == self.baseline).then_some(())
        });
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "something panicked");
        self.runs += u64::from(!failed.is_empty());
        for (call, times) in &failed {
            *self.failed.entry(call).or_default() += times;
        }
        !failed.is_empty()
    }

    fn end(self) -> BTreeMap<&'static str, u64> {
        println!("full {}: {} runs, {:?}", self.full, self.runs, self.failed);
        self.failed
    }
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// The first of each kind, and then one in some, or all of them.
#[test]
fn every_system_call_may_fail() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
    let all = std::env::var_os("HELIOS_ERROR_LOOPS").is_some_and(|it| it == "all");
    let stride = if all { 1 } else { 11 };
    let mut failed = BTreeMap::new();
    for full in [false, true] {
        let mut walk = Walk::new(full);
        for (_, name, _) in CALLS {
            let only = Some(name);
            walk.fails(Which {
                only,
                ..Which::default()
            });
        }
        for persistent in [false, true] {
            let mut skip = 0;
            let only = None;
            while walk.fails(Which {
                only,
                skip,
                persistent,
            }) {
                skip += stride;
            }
        }
        failed.extend(walk.end());
    }
    let names = CALLS.iter().map(|(_, name, _)| *name);
    let never: Vec<_> = names.filter(|name| !failed.contains_key(name)).collect();
    assert!(never.is_empty(), "never failed: {never:?}");
}
