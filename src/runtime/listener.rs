//! The listener: accepts processes on the socket, opens their sessions and lanes, notices when
//! they die.
//!
//! One thread, asleep in epoll.
//!
//! Invariants
//! - a process that is gone loses its session at once: the kernel closes its socket.
//! - a frame that can't be understood ends its session with a reason, and hurts nobody else.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::agent::CloseReason;
use crate::agent::frame::{
    ATTACH_CREATE, ATTACH_PUBLIC, FRAME_BYTES_MAX, Frame, FrameError, RefusalCode,
};
use crate::agent::socket::{FrameSocket, Peer, SocketError};
use crate::client::Attach;
use crate::runtime::control::{ControlPlane, Events, Notice, Refusal, SessionSeat};
use crate::shard::Event;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Frames taken from one session before the next has its turn.
const FRAMES_PER_TURN: usize = 64;
/// Sessions at once.
const SESSIONS_MAX: usize = 1 << 16;

const LISTEN: u64 = 0;
const WAKE: u64 = 1;
const FIRST_SESSION: u64 = 2;

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
    #[error("socket {}: {source}", path.display())]
    Os {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The running listener.
pub(super) struct Listener {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
}

impl Listener {
    /// Binds the socket and starts the thread.
    pub(super) fn start(
        path: &Path,
        control: Arc<ControlPlane>,
        events: Events,
    ) -> Result<Self, ListenError> {
        let socket = bind(path, control.has_rules())?;
        let os = |source: io::Error| ListenError::Os {
            path: path.to_owned(),
            source,
        };
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| os(errno.into()))?;
        for (fd, data) in [(socket.as_fd(), LISTEN), (events.wake.as_fd(), WAKE)] {
            let data = epoll::EventData::new_u64(data);
            epoll::add(&poll, fd, data, epoll::EventFlags::IN).map_err(|errno| os(errno.into()))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Arc::clone(&events.wake);
        let thread = Thread {
            control,
            events,
            socket,
            poll,
            sessions: HashMap::new(),
            next: FIRST_SESSION,
            stop: Arc::clone(&stop),
            path: path.to_owned(),
        };
        let thread = std::thread::Builder::new()
            .name("helios-listener".into())
            .spawn(move || thread.run())
            .map_err(os)?;
        Ok(Self { thread, stop, wake })
    }

    /// Ends the thread: nobody is accepted any more; the sessions end.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        super::join(self.thread);
    }
}

/// Binds a listening socket at `path`, in place of one that nobody answers on.
fn bind(path: &Path, others_allowed: bool) -> Result<OwnedFd, ListenError> {
    let os = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => ListenError::Permission {
            path: path.to_owned(),
        },
        _ => ListenError::Os {
            path: path.to_owned(),
            source,
        },
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => match FrameSocket::connect(path) {
            Ok(_) => {
                return Err(ListenError::InUse {
                    path: path.to_owned(),
                });
            }
            // Nobody listens: what a killed runtime left.
            Err(SocketError::Connect { source, .. })
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                std::fs::remove_file(path).map_err(os)?;
            }
            Err(SocketError::Connect { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                return Err(os(source));
            }
            // Somebody does, and be it another program with a socket of another type.
            Err(_) => {
                return Err(ListenError::InUse {
                    path: path.to_owned(),
                });
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(os(error)),
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

/// One connected process.
struct Guest {
    socket: Arc<FrameSocket>,
    peer: Peer,
    name: String,
    /// After its `Hello`.
    seat: Option<SessionSeat>,
}

struct Thread {
    control: Arc<ControlPlane>,
    events: Events,
    socket: OwnedFd,
    poll: OwnedFd,
    sessions: HashMap<u64, Guest>,
    next: u64,
    stop: Arc<AtomicBool>,
    path: PathBuf,
}

impl Thread {
    fn run(mut self) {
        let mut ready = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 64];
        while !self.stop.load(Ordering::Acquire) {
            let found = match epoll::wait(&self.poll, &mut ready[..], None) {
                Ok(found) => found,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "the listener can't wait; it stops");
                    break;
                }
            };
            for event in &ready[..found] {
                match event.data.u64() {
                    LISTEN => self.accept(),
                    WAKE => self.take_notices(),
                    session => self.take_frames(session),
                }
            }
        }
        self.close_all();
    }

    fn close_all(&mut self) {
        // New runtimes may bind from here on.
        let _ = std::fs::remove_file(&self.path);
        for (_, mut guest) in self.sessions.drain() {
            let reason = CloseReason::ShuttingDown;
            let _ = guest.socket.send(
                0,
                &Frame::Closing {
                    reason,
                    text: "shutting down",
                },
                &[],
            );
            if let Some(seat) = &mut guest.seat {
                self.control.end_session(seat, reason);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = match rustix::net::accept_with(&self.socket, flags) {
                Ok(fd) => fd,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(errno) => {
                    // Out of descriptors: those who wait are accepted when some are free again.
                    tracing::warn!(%errno, "a process can't be accepted; raise `ulimit -n`");
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    return;
                }
            };
            let socket = FrameSocket::from_fd(fd);
            let Ok(peer) = socket.peer() else { continue };
            if self.sessions.len() >= SESSIONS_MAX {
                let text = "too many processes are attached; detach some";
                let refused = Frame::Refused {
                    code: RefusalCode::TooMany,
                    text,
                };
                let _ = socket.send(0, &refused, &[]);
                continue;
            }
            let data = epoll::EventData::new_u64(self.next);
            let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
            if epoll::add(&self.poll, socket.as_fd(), data, flags).is_err() {
                continue;
            }
            let guest = Guest {
                socket: Arc::new(socket),
                peer,
                name: String::new(),
                seat: None,
            };
            self.sessions.insert(self.next, guest);
            self.next += 1;
        }
    }

    fn take_notices(&mut self) {
        let _ = rustix::io::read(&self.events.wake, &mut [0; 8]);
        while let Ok(notice) = self.events.receive.try_recv() {
            match notice {
                Notice::Shard(Event::Malformed { session, what }) => {
                    let guest = self.sessions.iter().find(|(_, guest)| {
                        guest.seat.as_ref().is_some_and(|seat| seat.no() == session)
                    });
                    if let Some((&key, guest)) = guest {
                        let (pid, name) = (guest.peer.pid, &guest.name);
                        tracing::warn!(session = session.0, pid, name, %what, "ended a session");
                        self.end(key, CloseReason::Malformed, &what.to_string());
                    }
                }
                Notice::ShardFailed(shard) => {
                    tracing::error!(%shard, "a shard failed; every session is ended");
                    let keys: Vec<u64> = self.sessions.keys().copied().collect();
                    for key in keys {
                        let text = "a shard failed; see the runtime's log and restart it";
                        self.end(key, CloseReason::ShardFailed, text);
                    }
                }
            }
        }
    }

    fn take_frames(&mut self, key: u64) {
        let mut buffer = [0; FRAME_BYTES_MAX];
        for _ in 0..FRAMES_PER_TURN {
            let Some(guest) = self.sessions.get_mut(&key) else {
                return;
            };
            let socket = Arc::clone(&guest.socket);
            let received = match socket.receive(&mut buffer) {
                Ok(received) => received,
                Err(SocketError::WouldBlock) => return,
                Err(SocketError::Closed) => return self.forget(key, CloseReason::Detached),
                Err(error) => {
                    let pid = guest.peer.pid;
                    tracing::warn!(pid, %error, "a frame can't be understood");
                    let code = match &error {
                        SocketError::Frame(FrameError::Newer { .. } | FrameError::Older { .. }) => {
                            RefusalCode::Version
                        }
                        _ => RefusalCode::Protocol,
                    };
                    let text = clip(error.to_string());
                    let _ = socket.send(0, &Frame::Refused { code, text: &text }, &[]);
                    return self.end(key, CloseReason::Malformed, &text);
                }
            };
            if let Err(refusal) = answer(&self.control, guest, received.request, &received.frame) {
                let text = clip(refusal.text);
                let refused = Frame::Refused {
                    code: refusal.code,
                    text: &text,
                };
                let _ = socket.send(received.request, &refused, &[]);
                if guest.seat.is_none() {
                    return self.forget(key, CloseReason::Malformed);
                }
                // A frame that no client sends in an open session.
                if refusal.code == RefusalCode::Protocol {
                    return self.end(key, CloseReason::Malformed, &text);
                }
            }
        }
    }

    /// Ends a session and says why.
    fn end(&mut self, key: u64, reason: CloseReason, text: &str) {
        if let Some(guest) = self.sessions.get(&key) {
            let text = clip(text.to_owned());
            let _ = guest.socket.send(
                0,
                &Frame::Closing {
                    reason,
                    text: &text,
                },
                &[],
            );
        }
        self.forget(key, reason);
    }

    fn forget(&mut self, key: u64, reason: CloseReason) {
        if let Some(mut guest) = self.sessions.remove(&key) {
            // Shards hold the socket too, until they have let go of the session: hang up now.
            let _ = epoll::delete(&self.poll, guest.socket.as_fd());
            let _ = rustix::net::shutdown(guest.socket.as_fd(), rustix::net::Shutdown::Both);
            if let Some(seat) = &mut guest.seat {
                self.control.end_session(seat, reason);
            }
        }
    }
}

/// Carries out a frame.
fn answer(
    control: &ControlPlane,
    guest: &mut Guest,
    request: u32,
    frame: &Frame<'_>,
) -> Result<(), Refusal> {
    let protocol = |text: &str| Refusal::new(RefusalCode::Protocol, text);
    let Some(seat) = &mut guest.seat else {
        let Frame::Hello { name, .. } = frame else {
            return Err(protocol("the first frame of a session is a Hello"));
        };
        guest.name = (*name).to_owned();
        return welcome(control, guest, request);
    };
    match frame {
        Frame::Attach { flags, agent } => {
            let Peer { uid, gid, .. } = guest.peer;
            if !control.allows(uid, gid, agent) {
                let text = format!(
                    "user {uid} may not attach to agent {agent:?}; the runtime's [[access]] rules decide"
                );
                return Err(Refusal::new(RefusalCode::NotAllowed, text));
            }
            let how = Attach {
                create: flags & ATTACH_CREATE != 0,
                public: flags & ATTACH_PUBLIC != 0,
            };
            let lane = control.attach(seat, agent, how)?;
            let attached = Frame::Attached {
                lane: lane.lane,
                agent: lane.agent,
                shard: lane.shard,
                sizes: lane.sizes,
                window_bytes: lane.window_bytes,
            };
            let fds = [
                lane.client.as_fd(),
                lane.server.as_fd(),
                lane.window.as_fd(),
            ];
            if guest.socket.send(request, &attached, &fds).is_err() {
                // It reads nothing, or is gone: the lane is taken back.
                control.detach(seat, lane.lane);
            }
            Ok(())
        }
        Frame::Detach { lane } => {
            if !control.detach(seat, *lane) {
                let text = format!("this session has no lane {lane}");
                return Err(Refusal::new(RefusalCode::NoSuchLane, text));
            }
            let _ = guest
                .socket
                .send(request, &Frame::Detached { lane: *lane }, &[]);
            Ok(())
        }
        // The shard watches the socket too, but misses a frame that is read here first.
        Frame::Bell { shard } => {
            if let Some(doorbell) = control.doorbell(*shard) {
                doorbell.ring();
            }
            Ok(())
        }
        _ => Err(protocol(
            "a client sends Attach, Detach and Bell in an open session",
        )),
    }
}

fn welcome(control: &ControlPlane, guest: &mut Guest, request: u32) -> Result<(), Refusal> {
    let (seat, region) = control.open_session(Some(Arc::clone(&guest.socket)))?;
    let shards = control.shards() as u16;
    let welcome = Frame::Welcome {
        features: 0,
        session: seat.no(),
        shards,
    };
    let mut fds = vec![region.as_fd()];
    fds.extend(control.status_fds().into_iter().map(AsFd::as_fd));
    guest
        .socket
        .send(request, &welcome, &fds)
        .map_err(|error| Refusal::new(RefusalCode::Protocol, error.to_string()))?;
    guest.seat = Some(seat);
    Ok(())
}

/// Cuts a text to what a frame holds.
fn clip(mut text: String) -> String {
    const TEXT_BYTES_MAX: usize = 1000;
    if text.len() > TEXT_BYTES_MAX {
        let mut end = TEXT_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
