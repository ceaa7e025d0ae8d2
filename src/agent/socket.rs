//! The socket between a client and the runtime: frames, and descriptors beside them.
//!
//! Floor 1, room `agent`. A `SOCK_SEQPACKET` Unix socket: one message is one frame. Binding and
//! accepting, and who may connect, are the runtime's.
//!
//! Invariants
//! - descriptors come exactly as many as the frame announces; any others are closed and the
//!   message is an error. None leaks into a child: close-on-exec is set as they arrive.
//! - identity is what the kernel says of the peer, never what a message says.
//!
//! Cost: one system call per frame. Frames are for attaching, and for waking who sleeps.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::PidfdFlags;

use crate::agent::frame::{FDS_MAX, FRAME_BYTES_MAX, Frame, FrameError};
use crate::shared::peer_process;

/// A connected socket that carries frames.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
}

/// A frame that arrived, in the buffer it was received into.
#[derive(Debug)]
pub struct Received<'a> {
    /// The number that a request and its answer share; 0 where nobody asked.
    pub request: u32,
    /// The frame.
    pub frame: Frame<'a>,
    /// As many descriptors as [`Frame::fds`] says.
    pub fds: Vec<OwnedFd>,
}

/// Who is at the other end, as of its `connect` or `socketpair`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process, as the kernel numbers it here.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A socket that can't go on, or not now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// A non-blocking call found nothing to read, or no room to write.
    #[error("socket: nothing now, try again when it is ready")]
    WouldBlock,
    /// The peer closed its end, or died.
    #[error("socket: the peer is gone; connect again")]
    Closed,
    /// Nobody listens at the path.
    #[error("no runtime listens at {path}: start one, or check the path ({source})")]
    Connect {
        /// The path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The peer sent bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent more or fewer descriptors than the frame says.
    #[error("frame of kind {kind} with {found} descriptors, {expected} expected: they were closed")]
    Fds {
        /// Kind of the frame.
        kind: u16,
        /// Descriptors it needs.
        expected: usize,
        /// Descriptors that came.
        found: usize,
    },
    /// Descriptors that couldn't be received: too many, or this process is out of them.
    #[error(
        "descriptors lost on arrival: more than {FDS_MAX} were sent, or `ulimit -n` is reached; raise it"
    )]
    FdsLost,
    /// The system refused.
    #[error("socket: {0}")]
    Os(io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::WouldBlock,
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            other => Self::Os(other.into()),
        }
    }
}

impl FrameSocket {
    /// Connects to the runtime that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there, or the path can't be one.
    pub fn connect(path: &Path) -> Result<Self, SocketError> {
        let connect = || -> Result<OwnedFd, Errno> {
            let address = SocketAddrUnix::new(path)?;
            let fd = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )?;
            rustix::net::connect(&fd, &address)?;
            Ok(fd)
        };
        let fd = connect().map_err(|errno| SocketError::Connect {
            path: path.display().to_string(),
            source: errno.into(),
        })?;
        Ok(Self { fd })
    }

    /// A socket that was accepted.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Two sockets connected to each other.
    ///
    /// # Errors
    /// The system's, when it is out of descriptors.
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self::from_fd(one), Self::from_fd(other)))
    }

    /// Whether calls wait: a socket begins as one that does.
    ///
    /// # Errors
    /// None that we know of.
    pub fn set_blocking(&self, blocking: bool) -> Result<(), SocketError> {
        Ok(rustix::io::ioctl_fionbio(&self.fd, !blocking)?)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// None that we know of, on a connected socket.
    pub fn peer(&self) -> Result<Peer, SocketError> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.fd)?;
        Ok(Peer {
            pid: credentials.pid.as_raw_nonzero().get(),
            uid: credentials.uid.as_raw(),
            gid: credentials.gid.as_raw(),
        })
    }

    /// A handle of the process at the other end, as of its `connect`: readable once it is dead,
    /// whoever else holds the socket. None where the kernel has no such handles.
    ///
    /// # Errors
    /// `Closed`: the process is dead already. The system's, when it is out of descriptors.
    pub fn peer_process(&self) -> Result<Option<OwnedFd>, SocketError> {
        let error = match peer_process(&self.fd) {
            Ok(process) => return Ok(Some(process)),
            Err(error) => error,
        };
        let errno = Errno::from_io_error(&error);
        match errno {
            Some(Errno::SRCH | Errno::INVAL) => return Err(SocketError::Closed),
            // Before Linux 6.5. By its number, it is another's process only if this one died, was
            // reaped, and its number was given out again since it connected.
            Some(Errno::NOPROTOOPT) => {}
            _ => return Err(SocketError::Os(error)),
        }
        let credentials = rustix::net::sockopt::socket_peercred(&self.fd)?;
        match rustix::process::pidfd_open(credentials.pid, PidfdFlags::empty()) {
            Ok(process) => Ok(Some(process)),
            Err(Errno::SRCH) => Err(SocketError::Closed),
            // Before 5.3, or forbidden, or of another namespace.
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => Ok(None),
            Err(errno) => Err(SocketError::Os(errno.into())),
        }
    }

    /// Sends one frame and its descriptors, which stay open here. All of it or nothing is sent.
    ///
    /// # Errors
    /// `WouldBlock` on a non-blocking socket that is full (a `Bell` can be forgotten then: there
    /// are others before it); `Closed`; a name that no frame can carry.
    ///
    /// # Panics
    /// Where the frame is not one that goes with so many descriptors: a bug of ours.
    pub fn send(
        &self,
        request: u32,
        frame: &Frame<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SocketError> {
        assert_eq!(fds.len(), frame.fds(), "descriptors of {frame:?}");
        let mut bytes = [0; FRAME_BYTES_MAX];
        let len = frame.encode(request, &mut bytes)?;
        self.send_bytes(&bytes[..len], fds)
    }

    /// Receives one frame into `buffer`.
    ///
    /// # Errors
    /// `WouldBlock`, `Closed`, or what is wrong with the message; the message is consumed, its
    /// descriptors are closed.
    pub fn receive<'a>(
        &self,
        buffer: &'a mut [u8; FRAME_BYTES_MAX],
    ) -> Result<Received<'a>, SocketError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut was_reset = false;
        let message = loop {
            let mut parts = [IoSliceMut::new(&mut buffer[..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.fd, &mut parts, &mut control, flags) {
                Err(Errno::INTR) => {}
                // The peer closed before it read all of ours. The kernel says so once, ahead of what the
                // peer had sent: its last word is read by the next call.
                Err(Errno::CONNRESET) if !was_reset => was_reset = true,
                done => break done?,
            }
        };
        let mut fds = Vec::new();
        for each in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = each {
                fds.extend(rights);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(SocketError::FdsLost);
        }
        if message.flags.contains(ReturnFlags::TRUNC) {
            let bytes = message.bytes.max(FRAME_BYTES_MAX + 1);
            return Err(FrameError::Oversized { bytes }.into());
        }
        if message.bytes == 0 {
            return Err(SocketError::Closed);
        }
        let (request, frame) = Frame::decode(&buffer[..message.bytes])?;
        let (expected, found) = (frame.fds(), fds.len());
        if expected != found {
            return Err(SocketError::Fds {
                kind: frame.kind(),
                expected,
                found,
            });
        }
        Ok(Received {
            request,
            frame,
            fds,
        })
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(fits, "{} descriptors beside one frame", fds.len());
        }
        let parts = [IoSlice::new(bytes)];
        loop {
            match rustix::net::sendmsg(&self.fd, &parts, &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                done => return Ok(done.map(drop)?),
            }
        }
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::frame::RefusalCode;
    use crate::id::{LaneNo, SessionNo};

    /// Two sockets, the receiving one non-blocking, so that a test fails and doesn't hang.
    fn pair() -> (FrameSocket, FrameSocket) {
        let (one, other) = FrameSocket::pair().unwrap();
        other.set_blocking(false).unwrap();
        (one, other)
    }

    const WELCOME: Frame<'static> = Frame::Welcome {
        features: 0,
        session: SessionNo(1),
        shards: 2,
    };

    /// A session ended with a bell unread: now and then its client never learnt why.
    #[test]
    fn the_last_word_of_a_peer_that_left_frames_unread_is_heard() {
        let (one, other) = pair();
        let mut buffer = [0; FRAME_BYTES_MAX];
        let wake = Frame::Wake { lane: LaneNo(1) };
        other.send(1, &wake, &[]).unwrap();
        one.send(5, &wake, &[]).unwrap();
        drop(one);
        let got = other.receive(&mut buffer).unwrap();
        assert_eq!((got.request, got.frame), (5, wake));
        let end = other.receive(&mut buffer);
        assert!(matches!(end, Err(SocketError::Closed)), "{end:?}");
    }

    #[test]
    fn frames_carry_their_descriptors() {
        let (one, other) = pair();
        let mut buffer = [0; FRAME_BYTES_MAX];
        assert!(matches!(
            other.receive(&mut buffer),
            Err(SocketError::WouldBlock)
        ));
        let file = tempfile::tempfile().unwrap();
        file.set_len(123).unwrap();
        one.send(5, &WELCOME, &[file.as_fd(); 3]).unwrap();
        let got = other.receive(&mut buffer).unwrap();
        assert_eq!((got.request, got.frame, got.fds.len()), (5, WELCOME, 3));
        for fd in &got.fds {
            assert_eq!(rustix::fs::fstat(fd).unwrap().st_size, 123);
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop(one);
        assert!(matches!(
            other.receive(&mut buffer),
            Err(SocketError::Closed)
        ));
        let detach = Frame::Detach { lane: LaneNo(1) };
        assert!(matches!(
            other.send(1, &detach, &[]),
            Err(SocketError::Closed)
        ));
    }

    #[test]
    fn wrong_descriptors_are_an_error_and_are_closed() {
        let (one, other) = pair();
        let file = tempfile::tempfile().unwrap();
        let mut buffer = [0; FRAME_BYTES_MAX];
        let mut bytes = [0; FRAME_BYTES_MAX];
        let len = WELCOME.encode(1, &mut bytes).unwrap();
        for count in [0, 1, 2, 4, FDS_MAX] {
            one.send_bytes(&bytes[..len], &vec![file.as_fd(); count])
                .unwrap();
            let error = other.receive(&mut buffer).unwrap_err();
            let SocketError::Fds {
                expected, found, ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((expected, found), (3, count));
        }
        one.send_bytes(&bytes[..len], &[file.as_fd(); FDS_MAX + 1])
            .unwrap();
        // The space for descriptors is rounded up: one more may get through, but isn't accepted.
        let error = other.receive(&mut buffer).unwrap_err();
        assert!(
            matches!(error, SocketError::FdsLost | SocketError::Fds { .. }),
            "{error}"
        );
        // A frame that no descriptor goes with.
        let refused = Frame::Refused {
            code: RefusalCode::Disk,
            text: "",
        };
        let len = refused.encode(1, &mut bytes).unwrap();
        one.send_bytes(&bytes[..len], &[file.as_fd()]).unwrap();
        assert!(matches!(
            other.receive(&mut buffer),
            Err(SocketError::Fds {
                expected: 0,
                found: 1,
                ..
            })
        ));
        // What was received is closed: the file has no descriptor but its own. (Other tests open
        // descriptors meanwhile, so a count of all proves nothing.)
        let inode =
            |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let own = inode(file.as_fd()).unwrap();
        let same = (0..4096).filter(|&fd| {
            let link = std::fs::metadata(format!("/proc/self/fd/{fd}"));
            link.is_ok_and(|meta| {
                use std::os::unix::fs::MetadataExt;
                (meta.dev(), meta.ino()) == own
            })
        });
        assert_eq!(same.count(), 1);
    }

    #[test]
    fn what_is_no_frame_is_an_error_and_the_next_is_read() {
        let (one, other) = pair();
        let mut buffer = [0; FRAME_BYTES_MAX];
        one.send_bytes(&[1, 2, 3], &[]).unwrap();
        one.send_bytes(&[7; FRAME_BYTES_MAX + 50], &[]).unwrap();
        one.send(3, &Frame::Detach { lane: LaneNo(2) }, &[])
            .unwrap();
        assert!(matches!(
            other.receive(&mut buffer),
            Err(SocketError::Frame(FrameError::Truncated { .. }))
        ));
        assert!(matches!(
            other.receive(&mut buffer),
            Err(SocketError::Frame(FrameError::Oversized { .. }))
        ));
        assert_eq!(other.receive(&mut buffer).unwrap().request, 3);
    }

    #[test]
    fn a_full_socket_says_so_and_the_peer_is_known() {
        let (one, other) = pair();
        one.set_blocking(false).unwrap();
        let bell = Frame::Bell {
            shard: crate::id::ShardNo(0),
        };
        let full = (0..1_000_000).find_map(|_| one.send(0, &bell, &[]).err());
        assert!(matches!(full, Some(SocketError::WouldBlock)), "{full:?}");
        assert_eq!(other.peer().unwrap().pid, std::process::id() as i32);
    }

    #[test]
    fn nobody_at_the_path_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.sock");
        let error = FrameSocket::connect(&path).unwrap_err();
        assert!(error.to_string().contains("none.sock"), "{error}");
        let long = FrameSocket::connect(Path::new(&"x".repeat(200))).unwrap_err();
        assert!(matches!(long, SocketError::Connect { .. }));
    }
}
