//! The I/O core where a seccomp filter forbids io_uring, as container runtimes do.
//!
//! The filter can't be taken off again, so the test runs itself in a child process.

#![expect(unsafe_code, reason = "a seccomp filter is installed by prctl")]

use std::process::Command;
use std::sync::Arc;

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

fn serve_without_io_uring() {
    forbid_io_uring();
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

/// Makes io_uring_setup fail with EPERM, in this thread and those it starts.
fn forbid_io_uring() {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut program = [
        // Offset 0 of `struct seccomp_data` is the number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_io_uring_setup as u32,
            0,
            1,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
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
