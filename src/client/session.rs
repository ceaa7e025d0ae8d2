//! A process's attachment to a runtime, and the lanes it opens.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll};

use crate::agent::bell::ClientBells;
use crate::agent::client_lane::ClientLane;
use crate::agent::frame::{ATTACH_CREATE, ATTACH_PUBLIC, FRAME_BYTES_MAX, Frame};
use crate::agent::layout::LaneSizes;
use crate::agent::socket::{FrameSocket, SocketError};
use crate::cache::WindowReader;
use crate::client::{ClientError, Lane};
use crate::id::{LaneNo, ShardNo};
use crate::shared::{Access, SharedMemory};

/// How long a runtime may take to answer on its socket.
const ANSWER_SECONDS: u64 = 10;

/// How to attach to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Make the agent where there is none. Default: yes.
    pub create: bool,
    /// Let every other agent read this one's values, from now on. Default: no; an agent that was
    /// marked once stays public.
    pub public: bool,
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            create: true,
            public: false,
        }
    }
}

/// The memory of a lane that was attached.
#[derive(Debug)]
pub struct AttachedLane {
    /// The rings.
    pub ring: ClientLane,
    /// The agent's window.
    pub window: Option<WindowReader>,
}

impl AttachedLane {
    /// Maps the descriptors of a lane: regions C and S, and the agent's window.
    ///
    /// # Errors
    /// Descriptors that are not what was promised.
    pub fn map(
        fds: &[OwnedFd],
        sizes: LaneSizes,
        lane: LaneNo,
        shard: ShardNo,
        window_bytes: u64,
    ) -> Result<Self, ClientError> {
        let [client, server, rest @ ..] = fds else {
            return Err(ClientError::BadReply);
        };
        let ring = ClientLane::map(client, server, sizes, lane, shard)?;
        let window = match rest.first() {
            Some(fd) => {
                let memory = SharedMemory::map(fd, window_bytes as usize, Access::ReadOnly)?;
                Some(WindowReader::open(memory)?)
            }
            None => None,
        };
        Ok(Self { ring, window })
    }
}

/// How lanes are attached and shards woken: through the runtime's socket, or from inside its
/// process.
pub trait Connection: Send + Sync + std::fmt::Debug {
    /// The bells that this session's lanes ring.
    fn bells(&self) -> &ClientBells;
    /// Opens a lane.
    ///
    /// # Errors
    /// As [`Session::attach`].
    fn attach(&self, agent: &str, how: Attach) -> Result<AttachedLane, ClientError>;
    /// Asks something about agents: an [`Ask`](crate::agent::lifecycle::Ask) as bytes, and its answer.
    ///
    /// # Errors
    /// The runtime refuses, or is gone.
    fn ask(&self, question: &[u8]) -> Result<Vec<u8>, ClientError>;
    /// Closes a lane; nothing is waited for.
    fn detach(&self, lane: LaneNo);
    /// Wakes a shard that said it sleeps.
    fn wake(&self, shard: ShardNo);
    /// Takes what the runtime has sent, but for the wakes of armed lanes.
    ///
    /// # Errors
    /// The runtime is gone.
    fn check(&self) -> Result<(), ClientError>;
    /// Takes everything that the runtime has sent.
    ///
    /// # Errors
    /// The runtime is gone.
    fn drain(&self) -> Result<(), ClientError>;
    /// Whether the runtime still runs, as far as can be seen at once. Nothing that it has sent is
    /// taken.
    fn is_alive(&self) -> bool;
    /// What becomes readable when an armed lane has a completion.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;
    /// The process id of the runtime, where it can be known.
    fn runtime_pid(&self) -> Option<u32>;
}

/// A process's attachment to a runtime: cheap to clone, usable from any thread.
///
/// ```no_run
/// use helios::client::Session;
///
/// let session = Session::connect("helios-data/helios.sock")?;
/// let mut lane = session.attach("planner", Default::default())?;
/// lane.put(b"goal", b"find the bug")?;
/// let mut value = Vec::new();
/// assert!(lane.get(b"goal", &mut value)?.is_some());
/// # Ok::<(), helios::client::ClientError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    connection: Arc<dyn Connection>,
}

impl Session {
    /// Attaches this process to the runtime that listens at `socket`.
    ///
    /// # Errors
    /// Nobody listens there; the runtime refuses this user, or speaks another version.
    pub fn connect(socket: impl AsRef<Path>) -> Result<Self, ClientError> {
        Ok(Self::over(Arc::new(SocketConnection::open(
            socket.as_ref(),
        )?)))
    }

    /// A session over a connection made elsewhere: the host's own.
    #[must_use]
    pub fn over(connection: Arc<dyn Connection>) -> Self {
        Self { connection }
    }

    pub(super) fn connection(&self) -> &dyn Connection {
        &*self.connection
    }

    /// Opens a lane to an agent's state.
    ///
    /// # Errors
    /// The access rules don't allow it; there is no such agent and `create` is off; the runtime is
    /// out of memory, descriptors or disk.
    pub fn attach(&self, agent: &str, how: Attach) -> Result<Lane, ClientError> {
        let attached = self.connection.attach(agent, how)?;
        Ok(Lane::new(Arc::clone(&self.connection), attached))
    }

    /// A descriptor for event loops: readable when a lane that was armed ([`Lane::arm`]) has
    /// completions. Call [`Session::drain_events`] then, and poll the armed lanes. None for
    /// threads of the host, which call [`Lane::wait`].
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.event_fd()
    }

    /// The process id of the runtime, as the kernel says it; none across namespaces of processes.
    #[must_use]
    pub fn runtime_pid(&self) -> Option<u32> {
        self.connection.runtime_pid()
    }

    /// Takes what made [`Session::event_fd`] readable.
    ///
    /// # Errors
    /// The runtime is gone.
    pub fn drain_events(&self) -> Result<(), ClientError> {
        self.connection.drain()
    }
}

/// A session through the runtime's socket.
#[derive(Debug)]
struct SocketConnection {
    socket: FrameSocket,
    bells: ClientBells,
    /// Number of the last request; also keeps requests one at a time.
    request: Mutex<u32>,
    events: Events,
}

/// What an event loop waits on: the socket, and wakes that others than it read from the socket. A
/// lane is woken once for each time it was armed, so none may be lost on the way.
#[derive(Debug)]
struct Events {
    epoll: OwnedFd,
    wakes: OwnedFd,
}

impl Events {
    fn new(socket: &FrameSocket) -> Result<Self, SocketError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wakes = rustix::event::eventfd(0, flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (fd, data) in [(socket.as_fd(), 0), (wakes.as_fd(), 1)] {
            let data = epoll::EventData::new_u64(data);
            epoll::add(&epoll, fd, data, epoll::EventFlags::IN)?;
        }
        Ok(Self { epoll, wakes })
    }

    /// Keeps a wake for the event loop.
    fn keep(&self) {
        // A counter that is full says the same.
        let _ = rustix::io::write(&self.wakes, &1_u64.to_ne_bytes());
    }

    fn take(&self) {
        let _ = rustix::io::read(&self.wakes, &mut [0; 8]);
    }
}

/// An answer to a request, with its descriptors.
enum Answer {
    Welcome(Vec<OwnedFd>),
    Attached {
        lane: LaneNo,
        shard: ShardNo,
        sizes: LaneSizes,
        window: u64,
        fds: Vec<OwnedFd>,
    },
    Told(Vec<u8>),
}

impl SocketConnection {
    fn open(path: &Path) -> Result<Self, ClientError> {
        let socket = FrameSocket::connect(path)?;
        socket.set_blocking(false)?;
        let name: String = std::env::args().next().unwrap_or_default();
        let name: String = name
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .chars()
            .take(32)
            .collect();
        let name = if name.is_empty() { "unnamed" } else { &name };
        match socket.send(0, &Frame::Hello { features: 0, name }, &[]) {
            // Turned away before its first word: the reason is there to be read.
            Ok(()) | Err(SocketError::Closed) => {}
            Err(error) => return Err(error.into()),
        }
        let events = Events::new(&socket)?;
        let Answer::Welcome(fds) = await_answer(&socket, &events, 0)? else {
            return Err(ClientError::BadReply);
        };
        let (session, statuses) = fds.split_first().ok_or(ClientError::BadReply)?;
        let bells = ClientBells::map(session, statuses)?;
        Ok(Self {
            socket,
            bells,
            request: Mutex::new(0),
            events,
        })
    }
}

impl SocketConnection {
    /// Takes what the runtime has sent. Whatever it was counts as a wake: one that found the socket
    /// full of it was dropped.
    fn read_frames(&self, wake: impl Fn()) -> Result<(), ClientError> {
        // An attach under way reads the socket itself.
        let Ok(_request) = self.request.try_lock() else {
            return Ok(());
        };
        let mut buffer = [0; FRAME_BYTES_MAX];
        loop {
            match self.socket.receive(&mut buffer) {
                Ok(received) => match received.frame {
                    Frame::Closing { reason, .. } => return Err(ClientError::Closed { reason }),
                    Frame::Attached { lane, .. } => give_back(&self.socket, lane),
                    _ => wake(),
                },
                Err(SocketError::WouldBlock) => return Ok(()),
                Err(SocketError::Closed) => return Err(ClientError::RuntimeGone),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Connection for SocketConnection {
    fn bells(&self) -> &ClientBells {
        &self.bells
    }

    fn attach(&self, agent: &str, how: Attach) -> Result<AttachedLane, ClientError> {
        let create = if how.create { ATTACH_CREATE } else { 0 };
        let public = if how.public { ATTACH_PUBLIC } else { 0 };
        let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        *request = request.wrapping_add(1);
        let frame = Frame::Attach {
            flags: create | public,
            agent,
        };
        self.socket.send(*request, &frame, &[])?;
        match await_answer(&self.socket, &self.events, *request)? {
            Answer::Attached {
                lane,
                shard,
                sizes,
                window,
                fds,
            } => AttachedLane::map(&fds, sizes, lane, shard, window),
            Answer::Welcome(_) | Answer::Told(_) => Err(ClientError::BadReply),
        }
    }

    fn ask(&self, question: &[u8]) -> Result<Vec<u8>, ClientError> {
        let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        *request = request.wrapping_add(1);
        let frame = Frame::Ask { body: question };
        self.socket.send(*request, &frame, &[])?;
        match await_answer(&self.socket, &self.events, *request)? {
            Answer::Told(answer) => Ok(answer),
            _ => Err(ClientError::BadReply),
        }
    }

    fn detach(&self, lane: LaneNo) {
        // The answer is skipped by whoever reads the socket next; a runtime that is gone has
        // taken the lane away already. One that is behind gets it when there is room: a lane
        // whose end was never told would stay as long as the session.
        let deadline = Instant::now() + Duration::from_secs(ANSWER_SECONDS);
        while let Err(SocketError::WouldBlock) =
            self.socket.send(u32::MAX, &Frame::Detach { lane }, &[])
        {
            // It may be behind because its own answers to the last detaches were not read yet.
            if self.check().is_err() || await_ready(&self.socket, PollFlags::OUT, deadline).is_err()
            {
                return;
            }
        }
    }

    fn wake(&self, shard: ShardNo) {
        // A full socket has bells in it already; a closed one is seen by `check`.
        let _ = self.socket.send(0, &Frame::Bell { shard }, &[]);
    }

    fn check(&self) -> Result<(), ClientError> {
        self.read_frames(|| self.events.keep())
    }

    fn drain(&self) -> Result<(), ClientError> {
        self.events.take();
        self.read_frames(|| {})
    }

    fn is_alive(&self) -> bool {
        // A signal's interruption is no hang-up.
        let now = rustix::event::Timespec::default();
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1..))
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.epoll.as_fd())
    }

    fn runtime_pid(&self) -> Option<u32> {
        let pid = self.socket.peer().ok()?.pid;
        u32::try_from(pid).ok().filter(|&pid| pid > 0)
    }
}

/// Waits for the answer to a request; wakes and answers to older requests are skipped.
fn await_answer(
    socket: &FrameSocket,
    events: &Events,
    request: u32,
) -> Result<Answer, ClientError> {
    let deadline = Instant::now() + Duration::from_secs(ANSWER_SECONDS);
    let mut buffer = [0; FRAME_BYTES_MAX];
    loop {
        let received = match socket.receive(&mut buffer) {
            Ok(received) => received,
            Err(SocketError::WouldBlock) => {
                await_ready(socket, PollFlags::IN, deadline)?;
                continue;
            }
            Err(SocketError::Closed) => return Err(ClientError::RuntimeGone),
            Err(error) => return Err(error.into()),
        };
        let mine = received.request == request;
        match received.frame {
            Frame::Welcome { .. } if mine => return Ok(Answer::Welcome(received.fds)),
            Frame::Attached {
                lane,
                shard,
                sizes,
                window_bytes,
                ..
            } if mine => {
                let (window, fds) = (window_bytes, received.fds);
                return Ok(Answer::Attached {
                    lane,
                    shard,
                    sizes,
                    window,
                    fds,
                });
            }
            Frame::Told { body } if mine => return Ok(Answer::Told(body.to_vec())),
            Frame::Refused { code, text } if mine => {
                return Err(ClientError::Refused {
                    code,
                    text: text.to_owned(),
                });
            }
            Frame::Closing { reason, .. } => return Err(ClientError::Closed { reason }),
            Frame::Attached { lane, .. } => give_back(socket, lane),
            // A wake, or what may have left no room for one.
            _ => events.keep(),
        }
    }
}

/// Closes a lane whose attach was given up before its answer came: nobody else knows of it.
fn give_back(socket: &FrameSocket, lane: LaneNo) {
    // Where the socket is full, the lane stays as long as the session.
    let _ = socket.send(u32::MAX, &Frame::Detach { lane }, &[]);
}

fn await_ready(
    socket: &FrameSocket,
    what: PollFlags,
    deadline: Instant,
) -> Result<(), ClientError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ClientError::NoAnswer {
            seconds: ANSWER_SECONDS,
        });
    }
    let timeout = rustix::event::Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut polled = [PollFd::new(socket, what)];
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(SocketError::from(errno).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::bell::{ServerBells, StatusPage};
    use crate::id::AgentNo;

    #[test]
    fn a_wake_that_found_the_socket_full_is_not_lost() {
        let (client, server) = FrameSocket::pair().unwrap();
        client.set_blocking(false).unwrap();
        server.set_blocking(false).unwrap();
        let (_, session) = ServerBells::create_session(1).unwrap();
        let (_, status) = StatusPage::create().unwrap();
        let connection = SocketConnection {
            events: Events::new(&client).unwrap(),
            socket: client,
            bells: ClientBells::map(&session, &[status]).unwrap(),
            request: Mutex::new(0),
        };
        let lane = LaneNo(1);
        while server.send(0, &Frame::Detached { lane }, &[]).is_ok() {}
        let dropped = server.send(0, &Frame::Wake { lane }, &[]);
        assert!(matches!(dropped, Err(SocketError::WouldBlock)));
        // A blocking call of another thread looks at the socket; the event loop must hear of it.
        connection.check().unwrap();
        let event = connection.event_fd().unwrap();
        let now = rustix::event::Timespec::default();
        let mut polled = [PollFd::new(&event, PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut polled, Some(&now)).unwrap(), 1);
        connection.drain().unwrap();
        let mut polled = [PollFd::new(&event, PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut polled, Some(&now)).unwrap(), 0);
    }

    #[test]
    fn a_lane_whose_attach_was_given_up_is_given_back() {
        let (client, server) = FrameSocket::pair().unwrap();
        client.set_blocking(false).unwrap();
        server.set_blocking(false).unwrap();
        let events = Events::new(&client).unwrap();
        let memory = tempfile::tempfile().unwrap();
        let fd = memory.as_fd();
        // The answer to a request that nobody waits for any more, then that of the next.
        for request in [1, 2] {
            let attached = Frame::Attached {
                lane: LaneNo(request + 10),
                agent: AgentNo(0),
                shard: ShardNo(0),
                sizes: LaneSizes::DEFAULT,
                window_bytes: 8192,
            };
            server.send(request, &attached, &[fd, fd, fd]).unwrap();
        }
        let answer = await_answer(&client, &events, 2).unwrap();
        assert!(matches!(answer, Answer::Attached { lane, .. } if lane == LaneNo(12)));
        let mut buffer = [0; FRAME_BYTES_MAX];
        let detach = Frame::Detach { lane: LaneNo(11) };
        assert_eq!(server.receive(&mut buffer).unwrap().frame, detach);
        let nothing = server.receive(&mut buffer);
        assert!(matches!(nothing, Err(SocketError::WouldBlock)));
    }
}
