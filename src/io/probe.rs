//! Asks the machine whether io_uring serves, before glommio does.
//!
//! Floor 3, part of `io`. glommio ends the whole process where the kernel lacks an operation it
//! wants, and panics where a seccomp filter lets a ring be set up but not used; so each of these
//! is tried here first, by the system calls themselves.

#![expect(unsafe_code, reason = "libc has no wrappers for io_uring")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Bytes of memory that must be lockable for an executor.
pub const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Why the glommio backend can't be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `RLIMIT_MEMLOCK` is too low.
    #[error("only {bytes} bytes may be locked in memory (ulimit -l); 524288 are needed")]
    Memlock {
        /// The soft limit.
        bytes: u64,
    },
    /// The kernel, a seccomp filter or a sysctl refuses a system call.
    #[error("{call} is refused: {}", std::io::Error::from_raw_os_error(*errno))]
    Call {
        /// The system call.
        call: &'static str,
        /// The error number of the operating system.
        errno: i32,
    },
    /// The kernel is too old for an operation of the ring.
    #[error("the kernel's io_uring lacks operation {operation}")]
    Operation {
        /// Its number in `linux/io_uring.h`.
        operation: u8,
    },
    /// The executor did not start.
    #[error("the glommio executor did not start: {reason}")]
    Executor {
        /// What it said.
        reason: String,
    },
}

/// What glommio 0.9 wants: NOP to POLL_REMOVE, SENDMSG to ACCEPT, LINK_TIMEOUT to CLOSE, STATX to
/// WRITE, SEND and RECV.
const OPERATIONS: [u8; 23] = [
    0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 21, 22, 23, 26, 27,
];
const REGISTER_PROBE: libc::c_uint = 8;
const OPERATION_SUPPORTED: u16 = 1;
const PROBE_OPERATIONS: usize = 256;

/// `struct io_uring_params`, 120 bytes, of which nothing is asked.
#[repr(C, align(8))]
struct Params([u8; 120]);

/// `struct io_uring_probe_op`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Operation {
    number: u8,
    reserved: u8,
    flags: u16,
    reserved_too: u32,
}

/// `struct io_uring_probe`.
#[repr(C)]
struct Probe {
    last: u8,
    count: u8,
    reserved: [u8; 14],
    operations: [Operation; PROBE_OPERATIONS],
}

/// Whether an executor of glommio can be expected to run here. Sets up a ring of one entry, asks
/// what it can do, enters it once and gives it back.
pub fn probe() -> Result<(), Refusal> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    if let Some(bytes) = limit.current
        && bytes < MEMLOCK_BYTES_MIN
    {
        return Err(Refusal::Memlock { bytes });
    }
    let ring = set_up()?;
    let supported = operations(&ring)?;
    if let Some(&operation) = OPERATIONS.iter().find(|&&o| !supported[usize::from(o)]) {
        return Err(Refusal::Operation { operation });
    }
    enter(&ring)
}

fn set_up() -> Result<OwnedFd, Refusal> {
    let mut params = Params([0; 120]);
    // SAFETY: the kernel reads and writes one `io_uring_params`, which has 120 bytes.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
    if fd < 0 {
        return Err(refused("io_uring_setup"));
    }
    // SAFETY: a descriptor that was just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn operations(ring: &OwnedFd) -> Result<[bool; PROBE_OPERATIONS], Refusal> {
    let mut probe = Probe {
        last: 0,
        count: 0,
        reserved: [0; 14],
        operations: [Operation::default(); PROBE_OPERATIONS],
    };
    // SAFETY: the kernel writes the header and at most `PROBE_OPERATIONS` entries.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_PROBE,
            &raw mut probe,
            PROBE_OPERATIONS as libc::c_uint,
        )
    };
    if asked < 0 {
        return Err(refused("io_uring_register"));
    }
    let mut supported = [false; PROBE_OPERATIONS];
    for (index, operation) in probe.operations.iter().enumerate() {
        supported[index] = operation.flags & OPERATION_SUPPORTED != 0;
    }
    Ok(supported)
}

fn enter(ring: &OwnedFd) -> Result<(), Refusal> {
    // SAFETY: submits nothing, waits for nothing, passes no memory.
    let entered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            0 as libc::c_uint,
            0 as libc::c_uint,
            0 as libc::c_uint,
            std::ptr::null::<libc::c_void>(),
            0usize,
        )
    };
    if entered < 0 {
        return Err(refused("io_uring_enter"));
    }
    Ok(())
}

fn refused(call: &'static str) -> Refusal {
    Refusal::Call {
        call,
        errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
    }
}
