//! A process that scribbles over everything it may write, as fast as it can: region C of its lanes with rings and
//! arenas, its session's bells, frames on the socket. Its sessions are ended over and over, and it comes again.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use helios::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, Frame};
use helios::agent::layout::{LaneSizes, tag};
use helios::agent::{Extent, FrameSocket, Op, SocketError, Submission};
use helios::id::ShardNo;
use helios::shared::{Access, SharedMemory};

/// Where the input arena begins in region C, and the reason of closing in region S (`PROTOCOL.md`).
const C_ARENA: usize = 2240;
const S_CLOSED: usize = 68;
const PAGE_BYTES: usize = 4096;
/// Stores between two looks whether the session is still there.
const STORES: u32 = 2_000;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// One lane of it.
struct Hold {
    shard: ShardNo,
    no: u32,
    sizes: LaneSizes,
    client: SharedMemory,
    server: SharedMemory,
    submitted: u64,
}

/// One session of it.
struct Scribbler {
    socket: FrameSocket,
    session: SharedMemory,
    lanes: Vec<Hold>,
}

/// Does it until the process is killed, or nobody listens any more: a thread that stores words anywhere, one that
/// writes entries that are nearly right, one that says things on the socket.
pub fn scribble(socket: &Path) {
    std::thread::scope(|scope| {
        scope.spawn(|| over_and_over(socket, 1, words));
        scope.spawn(|| over_and_over(socket, 2, entries));
        scope.spawn(|| over_and_over(socket, 3, frames));
    });
}

fn over_and_over(socket: &Path, seed: u64, harm: fn(&mut Scribbler, &mut Random)) {
    let mut random = Random(seed);
    while FrameSocket::connect(socket).is_ok() {
        // Turned away, or ended before it was attached: once more.
        let Some(mut scribbler) = Scribbler::connect(socket, &mut random) else {
            continue;
        };
        while !scribbler.is_ended() {
            harm(&mut scribbler, &mut random);
        }
    }
}

impl Scribbler {
    fn connect(path: &Path, random: &mut Random) -> Option<Self> {
        let socket = FrameSocket::connect(path).ok()?;
        let (features, name) = (0, "scribbler");
        socket.send(0, &Frame::Hello { features, name }, &[]).ok()?;
        let mut buffer = [0; FRAME_BYTES_MAX];
        let welcome = socket.receive(&mut buffer).ok()?;
        let Frame::Welcome { shards, .. } = welcome.frame else {
            return None;
        };
        let bytes = usize::from(shards) * PAGE_BYTES;
        let session = SharedMemory::map(&welcome.fds[0], bytes, Access::ReadWrite).ok()?;
        let mut scribbler = Self {
            socket,
            session,
            lanes: Vec::new(),
        };
        for _ in 0..2 {
            let agent = format!("scribbler-{}", random.below(6));
            let lane = scribbler.attach(&agent)?;
            scribbler.lanes.push(lane);
        }
        Some(scribbler)
    }

    fn attach(&self, agent: &str) -> Option<Hold> {
        let flags = ATTACH_CREATE;
        self.socket
            .send(1, &Frame::Attach { flags, agent }, &[])
            .ok()?;
        let mut buffer = [0; FRAME_BYTES_MAX];
        let attached = self.socket.receive(&mut buffer).ok()?;
        let Frame::Attached {
            lane, shard, sizes, ..
        } = attached.frame
        else {
            return None;
        };
        let map = |at: usize, bytes, access| {
            SharedMemory::map(attached.fds[at].as_fd(), bytes, access).ok()
        };
        Some(Hold {
            shard,
            no: lane.0,
            sizes,
            client: map(0, sizes.client_bytes(), Access::ReadWrite)?,
            server: map(1, sizes.server_bytes(), Access::ReadOnly)?,
            submitted: 0,
        })
    }

    fn is_ended(&self) -> bool {
        let closed = |lane: &Hold| lane.server.half(S_CLOSED).load(Ordering::Acquire) != 0;
        if self.lanes.iter().any(closed) {
            return true;
        }
        // What it is told doesn't matter to it.
        let mut buffer = [0; FRAME_BYTES_MAX];
        let _ = self.socket.set_blocking(false);
        loop {
            match self.socket.receive(&mut buffer) {
                Ok(_) => {}
                Err(SocketError::WouldBlock) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Rings for a lane as a client does, and knocks.
    fn ring(&self, lane: &Hold) {
        let page = usize::from(lane.shard.0) * PAGE_BYTES;
        let place = self.session.word(page).fetch_add(1, Ordering::AcqRel);
        let slot = page + 64 + 8 * (place % 256) as usize;
        let bell = u64::from(lane.no) | u64::from(tag(place)) << 32;
        self.session.word(slot).store(bell, Ordering::Release);
        let _ = self.socket.send(0, &Frame::Bell { shard: lane.shard }, &[]);
    }
}

/// Any word anywhere; seldom one of those that end the session at once, so that it goes on for a while.
fn words(own: &mut Scribbler, random: &mut Random) {
    let mischief = random.below(4) == 0;
    for _ in 0..STORES {
        let lane = &own.lanes[random.below(2) as usize];
        let end = match mischief {
            true => lane.sizes.client_bytes(),
            false => lane.sizes.submissions_at(),
        };
        let at = random.below(end as u64 / 8) as usize * 8;
        if mischief || at >= C_ARENA {
            lane.client.word(at).store(random.next(), Ordering::Relaxed);
        }
        let at = random.below(own.session.bytes() as u64 / 8) as usize * 8;
        let value = match random.below(3) {
            0 => random.next(),
            1 => random.below(300),
            _ => u64::from(lane.no) | u64::from(tag(random.below(256))) << 32,
        };
        own.session.word(at).store(value, Ordering::Relaxed);
    }
    own.ring(&own.lanes[0]);
}

/// Entries of which one field or none is wrong, over an arena that changes meanwhile.
fn entries(own: &mut Scribbler, random: &mut Random) {
    for _ in 0..STORES / 16 {
        let which = random.below(2) as usize;
        let lane = &mut own.lanes[which];
        for _ in 0..8 {
            let at = C_ARENA + 8 * random.below(2_000) as usize;
            lane.client.word(at).store(random.next(), Ordering::Relaxed);
        }
        let op = Op::ALL[random.below(Op::ALL.len() as u64) as usize];
        let mut entry = Submission::new(op, random.next());
        let extent = |random: &mut Random, end| Extent {
            offset: random.below(8_000) as u32,
            len: random.below(end) as u32,
        };
        (entry.key, entry.value) = (extent(random, 12), extent(random, 3_000));
        entry.reply = extent(random, 20_000);
        if entry.check(&lane.sizes).is_err() && random.below(2_000) > 0 {
            entry.reply = Extent::EMPTY;
        }
        if entry.check(&lane.sizes).is_err() && random.below(2_000) > 0 {
            continue;
        }
        let words = entry.encode(tag(lane.submitted));
        let slot = (lane.submitted % u64::from(lane.sizes.ring_slots())) as usize;
        let at = lane.sizes.submissions_at() + 64 * slot;
        for (index, word) in words.into_iter().enumerate().rev() {
            lane.client
                .word(at + 8 * index)
                .store(word, Ordering::Release);
        }
        lane.submitted += 1;
        // As if it had read what was answered so far; in a while it is wrong about that.
        let slots = u64::from(lane.sizes.ring_slots());
        if lane.submitted.is_multiple_of(slots / 2) {
            let read = lane.submitted.saturating_sub(slots / 2);
            lane.client.word(0).store(read, Ordering::Release);
            own.ring(&own.lanes[which]);
            std::thread::yield_now();
        }
    }
    own.ring(&own.lanes[1]);
}

/// Frames: bells without end, requests whose answers are never read, and what is none.
fn frames(own: &mut Scribbler, random: &mut Random) {
    for _ in 0..STORES / 20 {
        let shard = ShardNo(random.below(4) as u16);
        let agent = "scribbler-0";
        let flags = ATTACH_CREATE;
        let _ = match random.below(40) {
            0 => own.socket.send(9, &Frame::Attach { flags, agent }, &[]),
            1 => own.socket.send(9, &Frame::Ask { body: &[7; 40] }, &[]),
            2 if random.below(40) == 0 => {
                let noise = random.next().to_le_bytes();
                let sent = rustix::net::send(&own.socket, &noise, rustix::net::SendFlags::NOSIGNAL);
                sent.map(drop).map_err(SocketError::from)
            }
            _ => own.socket.send(0, &Frame::Bell { shard }, &[]),
        };
    }
}
