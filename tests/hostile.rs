//! Peers that break the protocol, over the real socket and in a lane's shared memory. The runtime
//! runs in a process of its own: it must stay alive without a panic, give back what the peer held,
//! and serve an honest agent exactly, all the while.

mod common;
#[path = "common/scribble.rs"]
mod scribble;

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{PATIENCE, Random, Served, attach, role, spawn_role, value_of, wait_for};
use helios::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, Frame, RefusalCode};
use helios::agent::layout::{LaneSizes, tag};
use helios::agent::{CloseReason, FrameSocket, Op, SocketError, Submission};
use helios::client::Session;
use helios::shared::{Access, SharedMemory};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// What the runtime said last to a peer.
#[derive(Debug)]
enum Said {
    Refused(RefusalCode, String),
    Closing(CloseReason, String),
    Other,
}

/// A hand-made client, by the protocol's document.
struct Rogue {
    socket: FrameSocket,
    session: SharedMemory,
    request: u32,
}

/// One of its lanes.
struct RogueLane {
    no: u32,
    shard: u16,
    sizes: LaneSizes,
    client: SharedMemory,
    server: SharedMemory,
    fds: Vec<OwnedFd>,
    submitted: u64,
}

impl Rogue {
    fn connect(path: &Path) -> Self {
        let socket = FrameSocket::connect(path).unwrap();
        let name = "rogue";
        socket
            .send(0, &Frame::Hello { features: 0, name }, &[])
            .unwrap();
        let mut buffer = [0; FRAME_BYTES_MAX];
        let welcome = socket.receive(&mut buffer).unwrap();
        let Frame::Welcome { shards, .. } = welcome.frame else {
            panic!("{:?}", welcome.frame)
        };
        let bytes = usize::from(shards) * 4096;
        let session = SharedMemory::map(&welcome.fds[0], bytes, Access::ReadWrite).unwrap();
        Self {
            socket,
            session,
            request: 0,
        }
    }

    fn attach(&mut self, agent: &str) -> RogueLane {
        self.request += 1;
        let flags = ATTACH_CREATE;
        let frame = Frame::Attach { flags, agent };
        self.socket.send(self.request, &frame, &[]).unwrap();
        let mut buffer = [0; FRAME_BYTES_MAX];
        let attached = self.socket.receive(&mut buffer).unwrap();
        let Frame::Attached {
            lane, shard, sizes, ..
        } = attached.frame
        else {
            panic!("{:?}", attached.frame)
        };
        let client = SharedMemory::map(&attached.fds[0], sizes.client_bytes(), Access::ReadWrite);
        let server = SharedMemory::map(&attached.fds[1], sizes.server_bytes(), Access::ReadOnly);
        RogueLane {
            no: lane.0,
            shard: shard.0,
            sizes,
            client: client.unwrap(),
            server: server.unwrap(),
            fds: attached.fds,
            submitted: 0,
        }
    }

    /// Rings a shard's bell, and knocks at its door too.
    fn ring(&self, shard: u16, lane: u32) {
        let page = usize::from(shard) * 4096;
        let place = self.session.word(page).fetch_add(1, Ordering::AcqRel);
        let bell = u64::from(lane) | u64::from(tag(place)) << 32;
        let slot = page + 64 + 8 * (place % 256) as usize;
        self.session.word(slot).store(bell, Ordering::Release);
        self.bell_frame(shard);
    }

    fn bell_frame(&self, shard: u16) {
        let frame = Frame::Bell {
            shard: helios::id::ShardNo(shard),
        };
        // A session that was ended meanwhile can't be rung.
        let _ = self.socket.send(0, &frame, &[]);
    }

    /// Waits for the end of the session and returns the reason.
    fn ended(&self) -> Option<(CloseReason, String)> {
        let last = said_to_end(&self.socket);
        last.into_iter().rev().find_map(|said| match said {
            Said::Closing(reason, text) => Some((reason, text)),
            _ => None,
        })
    }
}

impl RogueLane {
    /// Writes an entry as it is into the next slot.
    fn write(&mut self, words: [u64; 8]) {
        let slot = self.submitted % u64::from(self.sizes.ring_slots());
        let at = self.sizes.submissions_at() + slot as usize * 64;
        for (index, word) in words.into_iter().enumerate().rev() {
            self.client
                .word(at + 8 * index)
                .store(word, Ordering::Release);
        }
        self.submitted += 1;
    }

    /// A put of the byte at 0 of the arena under the key of one byte there.
    fn put(&mut self) {
        let words = self.good();
        self.write(words);
    }

    fn good(&self) -> [u64; 8] {
        Submission {
            key: helios::agent::Extent { offset: 0, len: 1 },
            value: helios::agent::Extent { offset: 0, len: 1 },
            ..Submission::new(Op::Put, 7)
        }
        .encode(tag(self.submitted))
    }

    fn closed(&self) -> u32 {
        self.server.half(68).load(Ordering::Acquire)
    }

    /// Whether the completion at a position is there.
    fn has_completion(&self, position: u64) -> bool {
        let slot = position % u64::from(self.sizes.ring_slots());
        let at = self.sizes.completions_at() + slot as usize * 64;
        self.server.half(at).load(Ordering::Acquire) == tag(position)
    }

    fn completions(&self) -> u64 {
        (0..u64::from(self.sizes.ring_slots()))
            .filter(|slot| {
                let at = self.sizes.completions_at() + *slot as usize * 64;
                self.server.half(at).load(Ordering::Acquire) != 0
            })
            .count() as u64
    }
}

/// Everything that comes until the socket ends.
fn said_to_end(socket: &FrameSocket) -> Vec<Said> {
    socket.set_blocking(false).unwrap();
    let mut said = Vec::new();
    wait_for("the end of a session", || {
        let mut buffer = [0; FRAME_BYTES_MAX];
        loop {
            match socket.receive(&mut buffer) {
                Ok(received) => said.push(match received.frame {
                    Frame::Refused { code, text } => Said::Refused(code, text.to_owned()),
                    Frame::Closing { reason, text } => Said::Closing(reason, text.to_owned()),
                    _ => Said::Other,
                }),
                Err(SocketError::WouldBlock) => return None,
                Err(SocketError::Closed) => return Some(()),
                Err(error) => panic!("{error}"),
            }
        }
    });
    said
}

/// Sends bytes that need not be a frame, and descriptors that nobody asked for.
fn send_raw(socket: &FrameSocket, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let parts = [IoSlice::new(bytes)];
    rustix::net::sendmsg(socket.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// A frame of any header and body.
fn frame(magic: &[u8; 4], version: u16, kind: u16, body: &[u8], body_bytes: u32) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&9_u32.to_le_bytes());
    bytes.extend_from_slice(&body_bytes.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn good(kind: u16, body: &[u8]) -> Vec<u8> {
    frame(b"HELI", 1, kind, body, body.len() as u32)
}

fn hello() -> Vec<u8> {
    good(1, &[&[0; 8][..], &[2, 0], b"me"].concat())
}

struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `attack` on a runtime while an honest agent reads and writes; afterwards that agent's
/// state is exact, the runtime is alive and holds what it held before.
fn check(attack: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 2\nsegment_bytes = \"1MiB\"");
    let session = served.session();
    let mut lanes: Vec<_> = (0..4)
        .map(|i| attach(&session, &format!("honest{i}")))
        .collect();
    lanes[0].sync(helios::config::Durability::Power).unwrap();
    let (fds, maps) = (served.fds(), served.maps());
    let stop = AtomicBool::new(false);
    let mut rounds = 0_u64;
    std::thread::scope(|scope| {
        let honest = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) || rounds < 50 {
                for (i, lane) in lanes.iter_mut().enumerate() {
                    let value = (rounds * 8 + i as u64).to_le_bytes();
                    let key = [(rounds % 20) as u8];
                    lane.put(&key, &value).unwrap();
                    assert_eq!(value_of(lane, &key).unwrap().unwrap(), value);
                }
                rounds += 1;
            }
        });
        // Also where the attack panics, so that the test fails and doesn't hang.
        let stopper = Stopper(&stop);
        attack(&served.socket());
        drop(stopper);
        honest.join().unwrap();
    });
    // A new process comes in as ever, beside the honest one.
    let mut again = attach(&served.session(), "honest1");
    for key in 0..20_u8 {
        let wanted = (0..rounds)
            .rev()
            .find(|round| round % 20 == u64::from(key))
            .unwrap();
        let found = value_of(&mut again, &[key]).unwrap().unwrap();
        assert_eq!(found, (wanted * 8 + 1).to_le_bytes());
    }
    drop(again);
    served.assert_alive();
    wait_for(&format!("{fds} descriptors again"), || {
        (served.fds() <= fds).then_some(())
    });
    wait_for(&format!("{maps} mappings again"), || {
        (served.maps() <= maps).then_some(())
    });
}

#[test]
fn frames_that_cannot_be_read_are_refused() {
    let long_name = [&[1, 0, 0, 0, 0, 1][..], &[b'x'; 256]].concat();
    // What is sent, whether after a Hello, the code and a word of the text.
    let cases: Vec<(&str, Vec<u8>, bool, RefusalCode, &str)> = vec![
        (
            "magic",
            frame(b"HTTP", 1, 1, &[], 0),
            false,
            RefusalCode::Protocol,
            "HELI",
        ),
        (
            "newer",
            frame(b"HELI", 7, 1, &[], 0),
            false,
            RefusalCode::Version,
            "7",
        ),
        (
            "newer too",
            frame(b"HELI", 7, 4, &[], 0),
            true,
            RefusalCode::Version,
            "1",
        ),
        (
            "older",
            frame(b"HELI", 0, 1, &[], 0),
            false,
            RefusalCode::Version,
            "0",
        ),
        (
            "half a header",
            hello()[..9].to_vec(),
            false,
            RefusalCode::Protocol,
            "",
        ),
        (
            "half a body",
            hello()[..20].to_vec(),
            false,
            RefusalCode::Protocol,
            "",
        ),
        (
            "too long",
            vec![0x48; 5000],
            false,
            RefusalCode::Protocol,
            "",
        ),
        (
            "says 4 GiB",
            frame(b"HELI", 1, 1, &[], u32::MAX),
            false,
            RefusalCode::Protocol,
            "",
        ),
        (
            "more than it says",
            [hello(), vec![0]].concat(),
            false,
            RefusalCode::Protocol,
            "",
        ),
        ("kind", good(99, &[]), true, RefusalCode::Protocol, "99"),
        (
            "attach first",
            good(4, &[1, 0, 0, 0, 1, 0, b'a']),
            false,
            RefusalCode::Protocol,
            "Hello",
        ),
        (
            "bell first",
            good(8, &[0, 0]),
            false,
            RefusalCode::Protocol,
            "Hello",
        ),
        ("hello twice", hello(), true, RefusalCode::Protocol, ""),
        (
            "a server's frame",
            good(7, &[0; 4]),
            true,
            RefusalCode::Protocol,
            "",
        ),
        (
            "closing",
            good(10, &[1, 0, 0, 0, 0, 0]),
            true,
            RefusalCode::Protocol,
            "",
        ),
        (
            "unknown flags",
            good(4, &[9, 0, 0, 0, 1, 0, b'a']),
            true,
            RefusalCode::Protocol,
            "",
        ),
        (
            "no name",
            good(4, &[1, 0, 0, 0, 0, 0]),
            true,
            RefusalCode::Protocol,
            "name",
        ),
        (
            "long name",
            good(4, &long_name),
            true,
            RefusalCode::Protocol,
            "name",
        ),
        (
            "not UTF-8",
            good(4, &[1, 0, 0, 0, 1, 0, 0xff]),
            true,
            RefusalCode::Protocol,
            "name",
        ),
    ];
    check(|path| {
        for (what, bytes, after_hello, code, word) in cases {
            let socket = if after_hello {
                Rogue::connect(path).socket
            } else {
                FrameSocket::connect(path).unwrap()
            };
            send_raw(&socket, &bytes, &[]);
            let said = said_to_end(&socket);
            let refused = said.iter().find_map(|said| match said {
                Said::Refused(code, text) => Some((*code, text.clone())),
                _ => None,
            });
            let (found, text) = refused.unwrap_or_else(|| panic!("{what}: {said:?}"));
            assert_eq!(found, code, "{what}: {text}");
            assert!(text.contains(word), "{what}: {text}");
            if code == RefusalCode::Version {
                assert!(text.contains('1'), "both versions: {text}");
            }
        }
    });
}

#[test]
fn descriptors_from_clients_are_closed_and_refused() {
    check(|path| {
        let file = tempfile::tempfile().unwrap();
        for (after_hello, count) in [
            (false, 1),
            (false, 64),
            (false, 253),
            (true, 1),
            (true, 253),
        ] {
            let socket = if after_hello {
                Rogue::connect(path).socket
            } else {
                FrameSocket::connect(path).unwrap()
            };
            let bytes = if after_hello {
                good(8, &[0, 0])
            } else {
                hello()
            };
            send_raw(&socket, &bytes, &vec![file.as_fd(); count]);
            let said = said_to_end(&socket);
            let refused = said
                .iter()
                .any(|said| matches!(said, Said::Refused(RefusalCode::Protocol, _)));
            assert!(refused, "{count} descriptors: {said:?}");
        }
    });
}

#[test]
fn frames_about_nothing_change_nothing() {
    check(|path| {
        let mut rogue = Rogue::connect(path);
        let lane = rogue.attach("odd");
        for shard in [0, 1, 2, 63, 64, u16::MAX] {
            rogue.bell_frame(shard);
        }
        for bell in [lane.no, 1, 77, u32::MAX] {
            rogue.ring(0, bell);
            rogue.ring(1, bell);
        }
        let nowhere = helios::id::LaneNo(12345);
        rogue
            .socket
            .send(5, &Frame::Detach { lane: nowhere }, &[])
            .unwrap();
        let mut buffer = [0; FRAME_BYTES_MAX];
        let answer = rogue.socket.receive(&mut buffer).unwrap();
        let refused = matches!(
            answer.frame,
            Frame::Refused {
                code: RefusalCode::NoSuchLane,
                ..
            }
        );
        assert!(refused && answer.request == 5, "{:?}", answer.frame);
        // Still good for work.
        let mut lane = rogue.attach("odd");
        lane.put();
        rogue.ring(lane.shard, lane.no);
        wait_for("a completion", || (lane.completions() == 1).then_some(()));
    });
}

#[test]
fn silent_peers_and_half_open_ones_are_no_burden() {
    check(|path| {
        // Connect and say nothing; connect and hang up; say hello and hang up; flood and read nothing.
        let silent: Vec<_> = (0..20)
            .map(|_| FrameSocket::connect(path).unwrap())
            .collect();
        for _ in 0..200 {
            drop(FrameSocket::connect(path).unwrap());
            let socket = FrameSocket::connect(path).unwrap();
            send_raw(&socket, &hello(), &[]);
        }
        for _ in 0..30 {
            // Attached and detached again before its end.
            let mut rogue = Rogue::connect(path);
            let lane = rogue.attach("comes and goes");
            let lane = helios::id::LaneNo(lane.no);
            rogue.socket.send(1, &Frame::Detach { lane }, &[]).unwrap();
            let mut buffer = [0; FRAME_BYTES_MAX];
            assert!(matches!(
                rogue.socket.receive(&mut buffer).unwrap().frame,
                Frame::Detached { .. }
            ));
        }
        let flood = Rogue::connect(path);
        flood.socket.set_blocking(false).unwrap();
        let (flags, agent) = (ATTACH_CREATE, "flood");
        for request in 1..2000 {
            // It never reads the answers, each with three descriptors.
            let _ = flood
                .socket
                .send(request, &Frame::Attach { flags, agent }, &[]);
        }
        drop((silent, flood));
    });
}

/// A lane of a rogue, which then does `harm`. The session must end with `word` in the reason, or,
/// with no word given, may go on.
fn check_lane(word: Option<&str>, harm: impl Fn(&Rogue, &mut RogueLane)) {
    check(|path| {
        let mut rogue = Rogue::connect(path);
        let mut lane = rogue.attach("rogue");
        let bystander = rogue.attach("another of its lanes");
        lane.client.copy_in(2240, b"kv");
        harm(&rogue, &mut lane);
        rogue.ring(lane.shard, lane.no);
        match word {
            Some(word) => {
                let (reason, text) = rogue.ended().expect("a Closing before the end");
                assert_eq!(reason, CloseReason::Malformed, "{text}");
                assert!(text.contains(word), "{text}");
                for lane in [&lane, &bystander] {
                    wait_for("every lane of the session is closed", || {
                        (lane.closed() == 2).then_some(())
                    });
                }
            }
            None => {
                // It is served, or at its end: but the shard has looked.
                let mut other = Rogue::connect(path);
                let mut good = other.attach("rogue");
                good.client.copy_in(2240, b"k");
                good.put();
                other.ring(good.shard, good.no);
                wait_for("the shard goes on", || {
                    (good.completions() == 1).then_some(())
                });
            }
        }
    });
}

#[test]
fn entries_that_break_a_rule_end_their_session() {
    let broken: [(&str, usize, u64); 9] = [
        ("tag", 0, 5),
        ("operation", 0, u64::from(tag(0)) | 200 << 32),
        ("flags", 0, u64::from(tag(0)) | 2 << 32 | 0x80 << 40),
        ("durability", 0, u64::from(tag(0)) | 2 << 32 | 9 << 48),
        ("reserved", 7, 1 << 32),
        ("key", 2, 0),
        ("outside", 2, u64::from(u32::MAX) | 1 << 32),
        ("value", 3, 70_000 << 32),
        ("reply", 4, 1),
    ];
    check(|path| {
        for (word, index, value) in broken {
            let mut rogue = Rogue::connect(path);
            let mut lane = rogue.attach("rogue");
            lane.client.copy_in(2240, b"kv");
            let mut words = lane.good();
            words[index] = value;
            lane.write(words);
            rogue.ring(lane.shard, lane.no);
            let (reason, text) = rogue.ended().expect("a Closing before the end");
            assert_eq!(reason, CloseReason::Malformed, "{text}");
            assert!(text.contains(word), "{word}: {text}");
        }
    });
}

#[test]
fn a_consumed_count_that_runs_backwards_or_ahead_ends_the_session() {
    // What it tells after 64 completions, and, where that was right, after as many more.
    for (first, then) in [(32, Some(31)), (64, Some(0)), (65, None), (u64::MAX, None)] {
        check_lane(Some("completions consumed"), |rogue, lane| {
            serve(rogue, lane, 64);
            lane.client.word(0).store(first, Ordering::Release);
            if let Some(then) = then {
                serve(rogue, lane, first);
                lane.client.word(0).store(then, Ordering::Release);
            }
            lane.put();
        });
    }
}

/// Has `count` puts served.
fn serve(rogue: &Rogue, lane: &mut RogueLane, count: u64) {
    (0..count).for_each(|_| lane.put());
    rogue.ring(lane.shard, lane.no);
    let last = lane.submitted - 1;
    wait_for("the puts are served", || {
        lane.has_completion(last).then_some(())
    });
}

#[test]
fn a_peer_that_never_reads_its_completions_hurts_itself_only() {
    check(|path| {
        let mut rogue = Rogue::connect(path);
        let mut lane = rogue.attach("rogue");
        lane.client.copy_in(2240, b"kv");
        for _ in 0..64 {
            lane.put();
        }
        rogue.ring(lane.shard, lane.no);
        wait_for("all are answered", || {
            (lane.completions() == 64).then_some(())
        });
        // It asked to be woken through the socket, which it never reads either.
        for round in 1..10_000_u32 {
            lane.client
                .half(64)
                .store(round << 2 | 2, Ordering::Release);
            rogue.socket.set_blocking(false).unwrap();
            rogue.ring(lane.shard, lane.no);
        }
        assert_eq!(lane.closed(), 0);
        // One more than there is room for: now its session ends.
        lane.put();
        rogue.ring(lane.shard, lane.no);
        said_to_end(&rogue.socket);
        assert_eq!(lane.closed(), 2);
    });
}

#[test]
fn zeroed_pages_are_no_entries() {
    check_lane(None, |rogue, lane| {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        for round in 0..200 {
            lane.put();
            if round % 3 == 0 {
                rogue.ring(lane.shard, lane.no);
            }
            let bytes = lane.sizes.client_bytes() as u64;
            rustix::fs::fallocate(&lane.fds[0], flags, 0, bytes).unwrap();
        }
        // The runtime's side can't be touched at all.
        let bytes = lane.sizes.server_bytes() as u64;
        assert!(rustix::fs::fallocate(&lane.fds[1], flags, 0, bytes).is_err());
        assert!(rustix::io::write(&lane.fds[1], b"x").is_err());
        assert!(rustix::io::write(&lane.fds[2], b"x").is_err());
        for fd in &lane.fds {
            assert!(rustix::fs::ftruncate(fd, 0).is_err());
        }
        let seals = rustix::fs::SealFlags::WRITE;
        assert!(rustix::fs::fcntl_add_seals(&lane.fds[0], seals).is_err());
        let size = lane.sizes.server_bytes();
        assert!(SharedMemory::map(&lane.fds[1], size, Access::ReadWrite).is_err());
    });
}

#[test]
fn bells_running_wild_are_the_sessions_own_trouble() {
    check_lane(None, |rogue, lane| {
        for value in [1, 300, 1 << 40, u64::MAX, 0, 7] {
            rogue.session.word(0).store(value, Ordering::Release);
            rogue.session.word(4096).store(value, Ordering::Release);
            rogue.bell_frame(0);
            rogue.bell_frame(1);
            lane.put();
            rogue.ring(lane.shard, lane.no);
        }
    });
}

#[test]
fn scribbling_at_random_hurts_the_scribbler_only() {
    let seed = 0x5EED_0001;
    println!("seed {seed:#x}");
    check(|path| {
        let mut random = Random(seed);
        for round in 0..300 {
            let mut rogue = Rogue::connect(path);
            let mut lane = rogue.attach(&format!("scribbler{}", round % 7));
            lane.client.copy_in(2240, b"kv");
            let ring = lane.sizes.submissions_at();
            for _ in 0..random.below(200) {
                match random.below(8) {
                    // Nearly good entries come furthest.
                    0..=3 => {
                        let mut words = lane.good();
                        let op = 1 + random.below(12);
                        words[0] = words[0] & !(0xff << 32) | op << 32;
                        let at = random.below(8) as usize;
                        match random.below(3) {
                            0 => words[at] = random.next(),
                            1 => words[at] ^= 1 << random.below(64),
                            _ => words[at] = random.below(300) | random.below(300) << 32,
                        }
                        lane.write(words);
                    }
                    4 => {
                        let at = ring + 8 * random.below(512) as usize;
                        lane.client.word(at).store(random.next(), Ordering::Release);
                    }
                    5 => {
                        let count = random.below(3000) as usize;
                        let bytes = random.bytes(count);
                        lane.client.copy_in(2240, &bytes);
                    }
                    6 => {
                        let at = 8 * random.below(280) as usize;
                        lane.client
                            .word(at)
                            .store(random.below(100), Ordering::Release);
                    }
                    _ => lane.put(),
                }
                if random.below(4) == 0 {
                    rogue.ring(lane.shard, lane.no);
                }
            }
            rogue.ring(lane.shard, lane.no);
        }
    });
}

#[test]
fn words_that_change_between_two_looks_hurt_nobody() {
    check(|path| {
        let start = std::time::Instant::now();
        let mut sessions = 0;
        while sessions < 40 && start.elapsed() < PATIENCE {
            sessions += 1;
            let mut rogue = Rogue::connect(path);
            let mut lane = rogue.attach("racer");
            lane.client.copy_in(2240, b"kv");
            let stop = AtomicBool::new(false);
            let stopper = Stopper(&stop);
            let client =
                SharedMemory::map(&lane.fds[0], lane.sizes.client_bytes(), Access::ReadWrite)
                    .unwrap();
            let ring = lane.sizes.submissions_at();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut random = Random(sessions);
                    while !stop.load(Ordering::Acquire) {
                        let at = ring
                            + 64 * random.below(64) as usize
                            + 8
                            + 8 * random.below(6) as usize;
                        client.word(at).store(
                            random.below(2000) << 32 | random.below(3000),
                            Ordering::Relaxed,
                        );
                        client
                            .word(2240 + 8 * random.below(200) as usize)
                            .store(random.next(), Ordering::Relaxed);
                    }
                });
                for _ in 0..30 {
                    lane.put();
                    rogue.ring(lane.shard, lane.no);
                }
                drop(stopper);
            });
        }
    });
}

/// The honest client's own library never trips over what a rogue of the same agent stores.
#[test]
fn a_rogue_and_an_honest_process_share_an_agent() {
    check(|path| {
        let session = Session::connect(path).unwrap();
        let mut honest = attach(&session, "shared");
        honest.put(b"mine", b"value").unwrap();
        for round in 0..50_u64 {
            let mut rogue = Rogue::connect(path);
            let mut lane = rogue.attach("shared");
            let mut words = lane.good();
            words[5] = round;
            lane.write(words);
            rogue.ring(lane.shard, lane.no);
            assert_eq!(value_of(&mut honest, b"mine").unwrap().unwrap(), b"value");
            honest.put(b"other", &round.to_le_bytes()).unwrap();
            assert_eq!(
                value_of(&mut honest, b"other").unwrap().unwrap(),
                round.to_le_bytes()
            );
        }
    });
}

#[test]
fn role_scribbler() {
    let Some(socket) = role() else { return };
    scribble::scribble(&socket);
}

/// Whoever is dropped is killed.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A whole process does its worst at full speed beside 8 honest agents, who check every byte. What it costs
/// them is for `cargo bench --bench hostile` to say.
#[test]
fn a_process_that_scribbles_at_full_speed_harms_itself_only() {
    const ROUNDS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 2\nsegment_bytes = \"4MiB\"");
    let session = served.session();
    let mut lanes: Vec<_> = (0..8)
        .map(|no| attach(&session, &format!("honest{no}")))
        .collect();
    lanes[0].sync(helios::config::Durability::Power).unwrap();
    let (fds, maps) = (served.fds(), served.maps());
    let before = lanes[0].stats().unwrap();
    let scribbler = Killed(spawn_role("role_scribbler", &served.socket()));
    let value = |no: usize, round: u64| {
        let bytes = (0..100 + 7 * no as u64).map(|at| (at * 31 + round * 8 + no as u64) as u8);
        bytes.collect::<Vec<u8>>()
    };
    let mut round = 0;
    // As long as it takes the other to be caught often enough, too.
    wait_for("sessions that are ended", || {
        for _ in 0..ROUNDS / 10 {
            for (no, lane) in lanes.iter_mut().enumerate() {
                let key = [(round % 20) as u8];
                lane.put(&key, &value(no, round)).unwrap();
                for back in [0, 1, 19].into_iter().filter(|back| *back <= round) {
                    let key = [((round - back) % 20) as u8];
                    let found = value_of(lane, &key).unwrap().unwrap();
                    assert_eq!(found, value(no, round - back), "round {round}, agent {no}");
                }
            }
            round += 1;
        }
        let since = lanes[0].stats().unwrap().since(&before);
        (round >= ROUNDS && since.malformed >= 20).then_some(())
    });
    drop(scribbler);
    for (no, lane) in lanes.iter_mut().enumerate() {
        for back in 0..20 {
            let round = round - 1 - back;
            let found = value_of(lane, &[(round % 20) as u8]).unwrap().unwrap();
            assert_eq!(found, value(no, round));
        }
    }
    served.assert_alive();
    wait_for("descriptors again", || (served.fds() <= fds).then_some(()));
    wait_for("mappings again", || (served.maps() <= maps).then_some(()));
    assert!(
        served.log().contains("ended a session"),
        "the operator sees it"
    );
}

/// Whoever is thrown out is thrown out with a reason, which the operator finds in the log, and counted.
#[test]
fn each_end_of_a_session_is_told_to_the_operator_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 2");
    let session = served.session();
    let mut watcher = attach(&session, "watcher");
    let path = served.socket();
    let broken_entry = || {
        let mut rogue = Rogue::connect(&path);
        let mut lane = rogue.attach("rogue");
        let mut words = lane.good();
        words[7] = 1 << 32;
        lane.write(words);
        rogue.ring(lane.shard, lane.no);
        said_to_end(&rogue.socket);
    };
    let says = |bytes: Vec<u8>, after_hello: bool| {
        let socket = match after_hello {
            true => Rogue::connect(&path).socket,
            false => FrameSocket::connect(&path).unwrap(),
        };
        send_raw(&socket, &bytes, &[]);
        said_to_end(&socket);
    };
    // What is done, what the log says of it, how many more there are of `malformed` and of `lanes_closed`.
    type Harm<'a> = &'a dyn Fn();
    let cases: [(Harm<'_>, &str, u64, u64); 5] = [
        (&broken_entry, "reserved", 1, 1),
        (&|| says(good(99, &[]), true), "kind of frame 99", 1, 0),
        (
            &|| says(hello(), true),
            "Attach, Detach, Ask and Bell",
            1,
            0,
        ),
        (&|| says(good(8, &[0, 0]), false), "is a Hello", 1, 0),
        (
            &|| {
                let _held = attach(&session, "terminated");
                session.terminate_agent("terminated", true).unwrap();
            },
            "its agent was terminated",
            0,
            1,
        ),
    ];
    for (harm, word, malformed, lanes_closed) in cases {
        let (before, told) = (watcher.stats().unwrap(), served.log().len());
        harm();
        wait_for(word, || {
            let since = watcher.stats().unwrap().since(&before);
            let counted = (since.malformed, since.lanes_closed) == (malformed, lanes_closed);
            let log = served.log();
            let lines = log[told..]
                .lines()
                .filter(|line| line.contains(word))
                .count();
            assert!(lines <= 1, "told once:\n{log}");
            (counted && lines == 1).then_some(())
        });
    }
    served.assert_alive();
}

/// The log took a line for each end: a process that did nothing else filled the disk with them.
#[test]
fn a_process_that_goes_on_misbehaving_does_not_fill_the_log() {
    const TIMES: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 1");
    let session = served.session();
    let mut watcher = attach(&session, "watcher");
    let path = served.socket();
    let before = watcher.stats().unwrap();
    for _ in 0..TIMES {
        let socket = Rogue::connect(&path).socket;
        send_raw(&socket, &good(99, &[]), &[]);
        said_to_end(&socket);
    }
    wait_for("each is counted", || {
        let since = watcher.stats().unwrap().since(&before);
        (since.malformed == TIMES).then_some(())
    });
    let log = served.log();
    let lines = log.lines().filter(|line| line.contains("kind of frame 99"));
    // A window of 16 lines, and as many again where the machine is so slow that others begin.
    let lines = lines.count();
    assert!((1..=TIMES as usize / 2).contains(&lines), "{lines}:\n{log}");
    served.assert_alive();
}
