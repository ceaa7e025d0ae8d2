//! Memory that two processes map: memfds, their seals, and the only ways to touch their bytes.
//!
//! Floor 0. Lanes, windows and status pages are all made of this type, so that the rules about
//! memory another process may be writing are kept in one file:
//!
//! Invariants
//! - no `&[u8]` or `&T` to shared bytes is ever formed, save to atomics; bytes move by atomic
//!   words between shared and private memory, so a racing writer can garble data but not the
//!   program.
//! - every access is bounds-checked against the length that was mapped, and the seals (shrink,
//!   grow, seal) guarantee that the file can't become shorter than that: no SIGBUS.
//! - a region handed to a process for reading carries `F_SEAL_FUTURE_WRITE`: only the mapping made
//!   before the seal can write.
//!
//! Here too, since it is the one other thing between two processes that no dependency wraps: the
//! handle of the process at a socket's other end.
//!
//! Built with `--cfg helios_loom`, which no product is, the regions and the atomics named here are
//! made of [loom]'s words (`model.rs`), so that models run the very code of lanes, bells, windows
//! and doorbells. Whatever takes part in such a protocol takes its atomics from here.
//!
//! [loom]: https://docs.rs/loom

#![expect(
    unsafe_code,
    reason = "the handle of a peer is asked for by a system call without a wrapper"
)]

#[cfg(not(helios_loom))]
mod mapped;
#[cfg(helios_loom)]
pub mod model;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

#[cfg(not(helios_loom))]
pub use mapped::SharedMemory;
#[cfg(helios_loom)]
pub use model::SharedMemory;

#[cfg(helios_loom)]
pub(crate) use loom::thread::yield_now;
#[cfg(helios_loom)]
pub(crate) use model::{AtomicBool, AtomicU8, AtomicU32, fence};
#[cfg(not(helios_loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, fence};
#[cfg(not(helios_loom))]
pub(crate) use std::thread::yield_now;

/// Who may write a region besides its creator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The peer maps it for reading only; sealed against any further writable mapping.
    ReadOnly,
    /// The peer writes it too: nothing in it is to be trusted.
    ReadWrite,
}

/// A descriptor that is not the region that was promised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// The operating system refused; out of descriptors, mappings or memory.
    #[error("shared memory: {0}")]
    Os(#[from] io::Error),
    /// The file is shorter or longer than the peer said.
    #[error("shared memory of {found} bytes where {expected} were promised")]
    Size {
        /// Bytes promised.
        expected: usize,
        /// Bytes the file has.
        found: u64,
    },
    /// The file could shrink under us, or could be written by others.
    #[error("shared memory without the seals {missing}")]
    Unsealed {
        /// The seals that are missing.
        missing: &'static str,
    },
}

/// A descriptor of the process that connected a Unix socket, readable once that process is dead:
/// exact even where it is dead already and its number belongs to another by now.
///
/// # Errors
/// The system's: `ENOPROTOOPT` before Linux 6.5; where the process is gone, `ESRCH` or `EINVAL` on
/// some kernels.
pub fn peer_process(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the socket is open for as long as it is borrowed; the kernel writes at most `bytes`
    // bytes, which `fd` has, and how many into `bytes`.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut bytes,
        )
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, close-on-exec, that the kernel made for this call; nobody else has
    // its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
