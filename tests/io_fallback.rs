//! Where a seccomp filter forbids a system call: the I/O core without io_uring, as container
//! runtimes have it; and `helios serve` with a call that fails as it never does, so that a shard
//! panics.
//!
//! A filter can't be taken off again, so each test runs itself in a child process.

#![expect(unsafe_code, reason = "a seccomp filter is installed by prctl")]

mod common;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use helios::agent::FrameSocket;
use helios::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, Frame};
use helios::id::SegmentNo;
use helios::io::{Backend, IoCore, IoError, IoOptions, Refusal, ShardFiles};
use helios::segment::{Disk, IoReply, IoRequest, Location, Sequence};

const IN_CHILD: &str = "HELIOS_TEST_IO_FALLBACK_CHILD";
const NAME: &str = "without_io_uring_threads_serve";

#[test]
fn without_io_uring_threads_serve() {
    if std::env::var_os(IN_CHILD).is_some() {
        return serve_without_io_uring();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}");
    assert!(said.contains("served by threads"), "{said}");
}

/// Before Linux 5.12 there is no `RESOLVE_CACHED`: a segment that was closed is opened all the same.
#[test]
fn without_cached_lookups_closed_segments_are_read() {
    let name = "without_cached_lookups_closed_segments_are_read";
    if std::env::var_os(IN_CHILD).is_some() {
        return read_without_cached_lookups();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}");
}

fn read_without_cached_lookups() {
    let directory = tempfile::tempdir().unwrap();
    // So many shards that each keeps few segments open.
    let files = (0..64).map(|no| ShardFiles {
        directory: directory.path().join(format!("shard-{no}")),
        wake: Arc::new(|| ()),
    });
    let options = IoOptions {
        backend: Backend::Threads,
        core: None,
        shards: files.collect(),
        lost: Arc::new(|| ()),
    };
    let (core, mut disks) = IoCore::start(options).unwrap();
    let disk = &mut disks[0];
    for no in 1..=40 {
        let segment = SegmentNo(no);
        let file = disk.directory().join(format!("{no:08}.seg"));
        std::fs::write(file, [no as u8; 4096]).unwrap();
        disk.open_existing(segment, 4096).unwrap();
    }
    forbid(libc::SYS_openat2, None, libc::EINVAL);
    for no in 1..=40 {
        let at = Location {
            segment: SegmentNo(no),
            offset: 100,
            bytes: 3,
        };
        assert_eq!(disk.resident(at), Some(&[no as u8; 3][..]), "{no}");
    }
    drop(disks);
    core.shutdown();
}

/// A shard of the program itself panics: in a build with assertions one checks that the wake of a
/// client went well, which the filter makes fail. So it happens with the first lane that is closed.
#[test]
fn serve_ends_with_its_reason_when_a_shard_panics() {
    if let Some(config) = common::role() {
        return serve_without_wakes(&config);
    }
    if !cfg!(debug_assertions) {
        println!("skipped: needs assertions");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (socket, config) = (dir.path().join("s"), dir.path().join("helios.toml"));
    let data_dir = dir.path().join("data");
    let lines = format!("data_dir = {data_dir:?}\nsocket = {socket:?}\nshards = 2\n");
    std::fs::write(&config, lines).unwrap();
    let name = "serve_ends_with_its_reason_when_a_shard_panics";
    let child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("HELIOS_ROLE", &config)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let served = std::thread::spawn(move || child.wait_with_output().unwrap());
    let connection = common::wait_for("the runtime accepts", || {
        assert!(!served.is_finished(), "it ended too early");
        FrameSocket::connect(&socket).ok()
    });
    let mut buffer = [0; FRAME_BYTES_MAX];
    let mut ask = |number, frame: Frame<'_>| {
        connection.send(number, &frame, &[]).unwrap();
        match connection.receive(&mut buffer).unwrap().frame {
            Frame::Attached { lane, .. } => Some(lane),
            _ => None,
        }
    };
    let name = "by hand";
    ask(0, Frame::Hello { features: 0, name });
    let (flags, agent) = (ATTACH_CREATE, "a");
    let lane = ask(1, Frame::Attach { flags, agent }).unwrap();
    connection.send(2, &Frame::Detach { lane }, &[]).unwrap();
    let ended = served.join().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(said.contains("helios: stops for reason 1: shard"), "{said}");
    // One panicked, and the other ended in order: nothing is said of it.
    assert_eq!(said.matches("panicked at").count(), 1, "{said}");
    assert_eq!(said.matches("did not stop in order").count(), 1, "{said}");
    assert!(!said.contains("without its last sync"), "{said}");
    assert!(!socket.exists(), "the socket is taken away");
}

fn serve_without_wakes(config: &Path) {
    // The operation is the second argument: it lies at 24 of `struct seccomp_data`.
    forbid(
        libc::SYS_futex,
        Some((24, libc::FUTEX_WAKE as u32)),
        libc::EPERM,
    );
    let program = PathBuf::from(env!("CARGO_BIN_EXE_helios"));
    let mut serve = Command::new(program);
    panic!("{}", serve.args(["serve", "--config"]).arg(config).exec());
}

fn serve_without_io_uring() {
    forbid(libc::SYS_io_uring_setup, None, libc::EPERM);
    let directory = tempfile::tempdir().unwrap();
    let tester = std::thread::current();
    let options = |backend| {
        let tester = tester.clone();
        IoOptions {
            backend,
            core: None,
            shards: vec![ShardFiles {
                directory: directory.path().join("0"),
                wake: Arc::new(move || tester.unpark()),
            }],
            lost: Arc::new(|| ()),
        }
    };
    let by_name = IoCore::start(options(Backend::Glommio)).map(drop);
    assert!(
        matches!(by_name, Err(IoError::Refused(Refusal::Call { errno, .. })) if errno == libc::EPERM)
    );

    let (core, mut disks) = IoCore::start(options(Backend::Auto)).unwrap();
    assert_eq!(core.backend(), Backend::Threads);
    let refusal = core.refusal().unwrap().to_string();
    assert!(refusal.contains("io_uring_setup"), "{refusal}");
    let disk = &mut disks[0];
    let mut ask = |request| {
        disk.submit(request).unwrap();
        loop {
            if let Some(reply) = disk.poll() {
                return reply;
            }
            std::thread::park();
        }
    };
    let segment = SegmentNo(1);
    let bytes = 1 << 16;
    let made = ask(IoRequest::Create { segment, bytes });
    let result = Ok(());
    assert_eq!(made, IoReply::Created { segment, result });
    disks[0].write_at(segment, 10, b"state").unwrap();

    let disk = &mut disks[0];
    let upto = Sequence(1);
    disk.submit(IoRequest::Sync { segment, upto }).unwrap();
    let read = IoRequest::Read {
        ticket: 2,
        segment,
        offset: 10,
        buffer: vec![0; 5],
    };
    disk.submit(read).unwrap();
    core.shutdown();
    let mut replies = std::iter::from_fn(|| disk.poll()).collect::<Vec<_>>();
    replies.sort_by_key(|reply| matches!(reply, IoReply::Read { .. }));
    let expected = [
        IoReply::Synced {
            segment,
            upto,
            result: Ok(()),
        },
        IoReply::Read {
            ticket: 2,
            buffer: b"state".to_vec(),
            result: Ok(()),
        },
    ];
    assert_eq!(replies, expected);
    let at = Location {
        segment,
        offset: 10,
        bytes: 5,
    };
    assert_eq!(disk.resident(at), Some(&b"state"[..]));
    println!("served by threads");
}

/// Makes a system call fail with EPERM, in this thread and those it starts; with a place in its
/// data and a word, only where that word is there.
fn forbid(call: i64, only: Option<(u32, u32)>, errno: i32) {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |at| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    // Equal: go on; else to the end, over as many statements.
    let equals = |word, end| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, word, 0, end);
    let (at, word) = only.unwrap_or((0, call as u32));
    let mut program = [
        // Offset 0 of `struct seccomp_data` is the number of the system call.
        load(0),
        equals(call as u32, 3),
        load(at),
        equals(word, 1),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | errno as u32,
            0,
            0,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: plain prctl calls; `filter` and the program it points to outlive them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}
