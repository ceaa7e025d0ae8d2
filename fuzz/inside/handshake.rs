//! Frames and descriptors on the socket: the listener, the control plane and a shard, turned by hand.
//!
//! Compiled into `runtime::listener`. A script connects, says frames that are right, nearly right or none, with
//! descriptors nobody asked for, hangs up at any point, and lets time pass. Whatever it says: each answer is a frame, a
//! process that keeps the rules is served beside it, no rule of access is passed by, and in the end everything
//! that was held is given back, down to the last descriptor.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};

use super::{Handshakes, Thread, WAKE};
use crate::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, Frame};
use crate::agent::lifecycle::Ask;
use crate::agent::socket::{FrameSocket, SocketError};
use crate::config::{Access, AccessRule, Config, Who};
use crate::fuzzing::input::Input;
use crate::metrics::ShardCounters;
use crate::runtime::control::{ControlPlane, Notice};
use crate::runtime::shard_thread::Doorbell;
use crate::shard::fuzzing::Rig;
use crate::topology::{CacheDomain, CoreId, Cpu, Machine, NumaNode, Placement, Resolved};

const ACTIONS_MAX: usize = 300;
const SOCKETS_MAX: usize = 8;
/// What agents are called to which strangers may attach.
const OPEN: &str = "open-*";

struct World {
    thread: Thread,
    rig: Rig,
    peers: Vec<FrameSocket>,
    /// The runtime belongs to another user: rules decide.
    is_stranger: bool,
}

/// Runs one script.
pub fn run(bytes: &[u8]) {
    // Whatever is opened once and stays is open from here on.
    let descriptors = descriptors();
    let mut script = Input(bytes);
    let mut world = World::new(script.u8() & 1 != 0);
    for _ in 0..ACTIONS_MAX {
        if script.is_empty() {
            break;
        }
        world.act(&mut script);
    }
    world.finish();
    assert_eq!(
        self::descriptors(),
        descriptors,
        "descriptors are given back"
    );
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn resolved(is_stranger: bool) -> Resolved {
    let uid = rustix::process::getuid().as_raw();
    let rule = AccessRule {
        who: Who::User(uid.to_string()),
        agents: OPEN.to_owned(),
    };
    let config = Config {
        access: vec![rule],
        ..Config::default()
    };
    let cpu = Cpu {
        id: CoreId(0),
        core: 0,
        domain: 0,
        node: 0,
        package: 0,
    };
    let machine = Machine {
        cpus: vec![cpu],
        domains: vec![CacheDomain { level: 0, bytes: 0 }],
        nodes: vec![NumaNode { id: 0, bytes: 0 }],
        ..Machine::default()
    };
    let own = if is_stranger { uid + 1 } else { uid };
    Resolved {
        placement: Placement::choose(&machine, &config).expect("a place for a shard"),
        access: Access::resolve_in(&config, own, "", "").expect("a user by number"),
        config,
    }
}

impl World {
    fn new(is_stranger: bool) -> Self {
        let rig = Rig::new();
        let doorbell = Arc::new(Doorbell::new().expect("a bell"));
        let commands = [Arc::clone(&rig.commands)];
        let control = ControlPlane::new(&resolved(is_stranger), &commands, &[doorbell]);
        let (control, events) = control.expect("a control plane");
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&poll, &events.wake, data, epoll::EventFlags::IN).expect("epoll");
        // Nobody connects to it: connections are pairs.
        let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
        let socket = rustix::net::socket_with(rustix::net::AddressFamily::UNIX, kind, flags, None);
        let thread = Thread {
            control: Arc::new(control),
            counters: [(); 2].map(|()| ShardCounters::default()).into(),
            events,
            socket: socket.expect("a socket"),
            poll,
            sessions: HashMap::new(),
            by_no: HashMap::new(),
            handshakes: Handshakes::default(),
            waiting: VecDeque::new(),
            is_behind: false,
            rests_until: None,
            told_of_short: false,
            lines: Default::default(),
            next: super::FIRST_SESSION,
            stop: Arc::new(AtomicBool::new(false)),
            path: "/nowhere/helios.sock".into(),
        };
        Self {
            thread,
            rig,
            peers: Vec::new(),
            is_stranger,
        }
    }

    fn connect(&mut self) -> FrameSocket {
        let (own, peer) = FrameSocket::pair().expect("a pair of sockets");
        for socket in [&own, &peer] {
            socket.set_blocking(false).expect("a socket");
        }
        self.thread.admit(own);
        peer
    }

    /// A turn of everybody.
    fn turn(&mut self) {
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        for _ in 0..2 {
            self.thread.turn(Some(&now)).expect("epoll");
            self.rig.turn();
            for event in self.rig.shard.take_events() {
                self.thread.control.notices().tell(Notice::Shard(event));
            }
        }
        self.thread.turn(Some(&now)).expect("epoll");
        if self.thread.is_behind {
            self.thread.take_time(Instant::now());
        }
    }

    fn act(&mut self, script: &mut Input<'_>) {
        let action = script.u8();
        let at = usize::from(action >> 4) % self.peers.len().max(1);
        match action & 0xf {
            0 | 1 if self.peers.len() < SOCKETS_MAX => {
                let peer = self.connect();
                if action & 1 == 0 {
                    say(&peer, &frame(1, 0, &hello()), 0);
                }
                self.peers.push(peer);
            }
            2..=10 => {
                let bytes = bytes_of(script, action & 0xf);
                let descriptors = if action & 0xf == 3 { script.u8() } else { 0 };
                if let Some(peer) = self.peers.get(at) {
                    say(peer, &bytes, usize::from(descriptors));
                }
            }
            11 => self.hear(at),
            12 if at < self.peers.len() => drop(self.peers.swap_remove(at)),
            13 => {
                let now = Instant::now() + Duration::from_secs(script.u8().into());
                self.thread.take_time(now);
            }
            _ => self.turn(),
        }
    }

    /// What was said to a peer: frames, and no lane that it may not have.
    fn hear(&mut self, at: usize) {
        let mut buffer = [0; FRAME_BYTES_MAX];
        while let Some(peer) = self.peers.get(at) {
            match peer.receive(&mut buffer) {
                Ok(_) => {}
                Err(SocketError::WouldBlock) => return,
                Err(SocketError::Closed) => drop(self.peers.swap_remove(at)),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits for the next frame to a peer that keeps the rules.
    fn await_frame<T>(&mut self, peer: &FrameSocket, take: impl Fn(&Frame<'_>) -> Option<T>) -> T {
        let mut buffer = [0; FRAME_BYTES_MAX];
        for _ in 0..100 {
            self.turn();
            match peer.receive(&mut buffer) {
                Ok(received) => {
                    let found = take(&received.frame);
                    return found.unwrap_or_else(|| panic!("{:?}", received.frame));
                }
                Err(SocketError::WouldBlock) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no answer to a peer that keeps the rules")
    }

    fn finish(mut self) {
        let honest = self.connect();
        let (features, name) = (0, "honest");
        honest
            .send(1, &Frame::Hello { features, name }, &[])
            .expect("an open socket");
        let is_welcome = |frame: &Frame<'_>| matches!(frame, Frame::Welcome { .. }).then_some(());
        self.await_frame(&honest, is_welcome);
        for (agent, allowed) in [("open-honest", true), ("closed", !self.is_stranger)] {
            let flags = ATTACH_CREATE;
            honest
                .send(2, &Frame::Attach { flags, agent }, &[])
                .expect("an open socket");
            let attached = self.await_frame(&honest, |frame| match frame {
                Frame::Attached { .. } => Some(true),
                Frame::Refused { .. } => Some(false),
                _ => None,
            });
            assert_eq!(attached, allowed, "{agent}");
        }
        if self.is_stranger {
            let agents = self.rig.shard.agent_names();
            let names = agents.map(|name| String::from_utf8_lossy(name).into_owned());
            let closed: Vec<String> = names.filter(|name| !name.starts_with("open-")).collect();
            assert!(
                closed.is_empty(),
                "agents that no rule lets this user make: {closed:?}"
            );
        }
        drop(honest);
        self.peers.clear();
        for _ in 0..40 {
            self.turn();
        }
        assert!(self.thread.sessions.is_empty() && self.thread.by_no.is_empty());
        assert_eq!(self.thread.handshakes.deadline(), None);
        assert_eq!(
            self.rig.shard.lane_count(),
            0,
            "lanes of processes that are gone"
        );
        assert!(self.rig.shard.is_at_rest());
    }
}

fn hello() -> Vec<u8> {
    [&[0; 8][..], &[2, 0], b"me"].concat()
}

/// A frame with a good header.
fn frame(kind: u16, request: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"HELI".to_vec();
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(request.to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// What a script has a peer say.
fn bytes_of(script: &mut Input<'_>, what: u8) -> Vec<u8> {
    let count = usize::from(script.u8());
    let text = |bytes: &[u8]| [&(bytes.len() as u16).to_le_bytes(), bytes].concat();
    let bytes = match what {
        2 => {
            let count = usize::from(script.u16()) % (FRAME_BYTES_MAX + 100);
            script.bytes(count).to_vec()
        }
        3 | 4 => {
            let kind = u16::from(script.u8() % 16);
            frame(kind, 3, script.bytes(count))
        }
        5 => frame(1, 4, &hello()),
        6 | 7 => {
            let flags = u32::from(script.u8() & 3).to_le_bytes();
            let name = [b"open-", script.bytes(count)].concat();
            let name = if what == 6 { &name[..] } else { &name[5..] };
            frame(4, 5, &[&flags[..], &text(name)].concat())
        }
        8 => frame(6, 6, &(count as u32 % 8).to_le_bytes()),
        9 => frame(11, 7, script.bytes(count)),
        _ => frame(8, 0, &(count as u16).to_le_bytes()),
    };
    // Whatever these bytes are: a frame reads back as it was written.
    if let Ok((request, decoded)) = Frame::decode(&bytes) {
        let mut again = [0; FRAME_BYTES_MAX];
        let count = decoded
            .encode(request, &mut again)
            .expect("a frame that was read");
        assert!(
            count >= FRAME_HEADER_BYTES && again[..count] == bytes,
            "{decoded:?}"
        );
    }
    bytes
}

fn say(peer: &FrameSocket, bytes: &[u8], descriptors: usize) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = vec![peer.as_fd(); descriptors.min(253)];
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // Where there is no room, or nobody: it was not said.
    let parts = [IoSlice::new(bytes)];
    let _ = rustix::net::sendmsg(peer.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL);
}

/// Scripts to begin with.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let asks = [
        Ask::Create {
            agent: "open-a",
            public: true,
        },
        Ask::List {
            after: "",
            limit: 0,
        },
        Ask::Describe { agent: "open-a" },
        Ask::Suspend { agent: "open-a" },
        Ask::Resume { agent: "open-a" },
        Ask::Terminate {
            agent: "open-a",
            force: true,
        },
    ];
    let attach = |what: u8, name: &[u8]| [&[what, name.len() as u8, 1], name].concat();
    let attach = |what, name| [attach(what, name), vec![14]].concat();
    let mut seeds = Vec::new();
    for is_stranger in [0, 1] {
        let mut session = vec![is_stranger, 0, 14];
        session.extend(attach(6, b"a"));
        session.extend(attach(7, b"b"));
        session.extend([8, 0, 14, 10, 0, 14, 11]);
        seeds.push((format!("session-{is_stranger}"), session));
        for (index, ask) in asks.iter().enumerate() {
            let body = postcard::to_allocvec(ask).expect("a question");
            let mut script = vec![is_stranger, 0, 14];
            script.extend(attach(6, b"a"));
            script.extend([9, body.len() as u8]);
            script.extend(body);
            script.extend([14, 14, 11, 12]);
            seeds.push((format!("ask-{index}-{is_stranger}"), script));
        }
    }
    for kind in 0..14 {
        let script = vec![0, 0, 14, 4, 8, kind, 1, 0, 0, 0, 1, 0, b'a', 0, 14, 11];
        seeds.push((format!("frame-{kind}"), script));
    }
    seeds.push((
        "descriptors".into(),
        vec![0, 0, 3, 2, 8, 0, 0, 5, 14, 11, 1, 13, 9, 14],
    ));
    seeds.push((
        "raw".into(),
        [&[0, 1, 2, 0, 28, 0][..], &frame(1, 0, &hello()), &[14, 11]].concat(),
    ));
    seeds
}
