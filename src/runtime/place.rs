//! The socket's place in the file system: whether it is free, and a listening socket there.
//!
//! Floor 4. Nothing at that path is touched but a socket that nobody answers on.
//!
//! Invariants
//! - a socket is never open to more users than the access rules name, not even before it is listened on.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::agent::socket::{FrameSocket, SocketError};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the runtime can't listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// A live runtime answers there.
    #[error(
        "socket {} is in use by a live runtime; stop that one, or choose another socket",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The path names something else than a socket.
    #[error("{} exists and is no socket; move it away, or choose another socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// No permission.
    #[error("no permission for socket {}; choose another socket, or cure its directory", path.display())]
    Permission {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("the directory of socket {} does not exist; make it, or choose another socket", path.display())]
    NoDirectory {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("socket {}: {source}", path.display())]
    Os {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Whether a socket can be bound at `path`, as far as can be told without changing anything: asked
/// before the data directory is touched.
///
/// # Errors
/// As the start of the listener would fail.
pub(super) fn check(path: &Path) -> Result<(), ListenError> {
    find_stale(path).map(|_| ())
}

fn failed(path: &Path, source: io::Error) -> ListenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied => ListenError::Permission { path },
        io::ErrorKind::NotFound => ListenError::NoDirectory { path },
        _ => ListenError::Os { path, source },
    }
}

/// Whether there is a socket at `path` that nobody answers on.
fn find_stale(path: &Path) -> Result<bool, ListenError> {
    let in_use = || ListenError::InUse {
        path: path.to_owned(),
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(ListenError::NotASocket {
            path: path.to_owned(),
        }),
        Ok(_) => match FrameSocket::connect(path) {
            Ok(_) => Err(in_use()),
            // Nobody listens: what a killed runtime left.
            Err(SocketError::Connect { source, .. })
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                Ok(true)
            }
            Err(SocketError::Connect { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Err(failed(path, source))
            }
            // Somebody does, and be it another program with a socket of another type.
            Err(_) => Err(in_use()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, error)),
    }
}

/// Binds a listening socket at `path`, in place of one that nobody answers on.
pub(super) fn bind(path: &Path, others_allowed: bool) -> Result<OwnedFd, ListenError> {
    let os = |source: io::Error| failed(path, source);
    if find_stale(path)? {
        std::fs::remove_file(path).map_err(os)?;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || -> rustix::io::Result<OwnedFd> {
        let address = SocketAddrUnix::new(path)?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&socket, &address)?;
        Ok(socket)
    };
    let socket = make().map_err(|errno| os(errno.into()))?;
    // Before anyone can connect. With access rules the peer's credentials decide.
    let mode = if others_allowed { 0o666 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(os)?;
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| os(errno.into()))?;
    Ok(socket)
}
