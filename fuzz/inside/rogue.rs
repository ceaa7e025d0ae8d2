//! A process that keeps no rule: it writes whatever it likes into everything that it may write.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::Shard;
use super::{Attached, Rig, sizes};
use crate::agent::call::Call;
use crate::agent::entry::{Op, Submission};
use crate::agent::layout::{LaneSizes, tag};
use crate::fuzzing::input::Input;
use crate::id::{LaneNo, SessionNo};
use crate::segment::Disk;
use crate::shared::{Access, SharedMemory};

/// Where the arena begins in region C, and in region S (`PROTOCOL.md`).
const C_ARENA: usize = 2240;
const S_ARENA: usize = 192;
/// The word of region S that says why the lane was closed.
const S_CLOSED: usize = 68;

/// The memory of one lane as a process sees it.
struct Hold {
    client: SharedMemory,
    server: SharedMemory,
    submitted: u64,
    consumed: u64,
}

/// A session of a hostile process, with a lane or several.
pub(crate) struct Rogue {
    pub(crate) session: SessionNo,
    bells: Arc<SharedMemory>,
    lanes: Vec<Hold>,
}

impl Hold {
    fn new(fds: &super::LaneFds) -> Self {
        let sizes = sizes();
        let client = SharedMemory::map(&fds.client, sizes.client_bytes(), Access::ReadWrite);
        let server = SharedMemory::map(&fds.server, sizes.server_bytes(), Access::ReadOnly);
        Self {
            client: client.expect("region C"),
            server: server.expect("region S"),
            submitted: 0,
            consumed: 0,
        }
    }

    fn is_closed(&self) -> bool {
        self.server.half(S_CLOSED).load(Ordering::Acquire) != 0
    }

    /// Writes an entry into the next slot, its tag last.
    fn write(&mut self, words: [u64; 8]) {
        let slot = self.submitted % u64::from(sizes().ring_slots());
        let at = sizes().submissions_at() + slot as usize * 64;
        for (index, word) in words.into_iter().enumerate().rev() {
            self.client
                .word(at + 8 * index)
                .store(word, Ordering::Release);
        }
        self.submitted += 1;
    }

    fn write_arena(&self, offset: usize, bytes: &[u8]) {
        let room = sizes().input_bytes() as usize;
        let offset = offset.min(room);
        let bytes = &bytes[..bytes.len().min(room - offset)];
        self.client.copy_in(C_ARENA + offset, bytes);
    }

    /// Counts the completions that came, and tells the server.
    fn consume(&mut self) {
        let slots = u64::from(sizes().ring_slots());
        for _ in 0..slots {
            let at = sizes().completions_at() + (self.consumed % slots) as usize * 64;
            if self.server.half(at).load(Ordering::Acquire) != tag(self.consumed) {
                break;
            }
            self.consumed += 1;
        }
        self.client.word(0).store(self.consumed, Ordering::Release);
    }
}

impl Rogue {
    pub(crate) fn attach(rig: &mut Rig, agent: &[u8]) -> Option<Self> {
        let Attached {
            session,
            session_fd,
            fds,
        } = rig.attach(agent, true)?;
        let bells = SharedMemory::map(&session_fd, 4096, Access::ReadWrite).expect("the bells");
        Some(Self {
            session,
            bells: Arc::new(bells),
            lanes: vec![Hold::new(&fds)],
        })
    }

    /// One lane more in the same session.
    pub(crate) fn attach_more(&mut self, rig: &mut Rig, agent: &[u8]) {
        let no = LaneNo(self.lanes.len() as u32);
        if no.0 < 4
            && let Some(fds) = rig.attach_in(self.session, Arc::clone(&self.bells), no, agent, true)
        {
            self.lanes.push(Hold::new(&fds));
        }
    }

    /// Whether its session was ended: then all its lanes are closed.
    pub(crate) fn is_closed(&self) -> bool {
        let closed = self.lanes.iter().filter(|lane| lane.is_closed()).count();
        assert!(
            closed == 0 || closed == self.lanes.len(),
            "a session ends with all its lanes"
        );
        closed > 0
    }

    /// Whether the bytes are anywhere that the process can read.
    pub(crate) fn has_read(&self, secret: &[u8]) -> bool {
        let mut bytes = vec![0; sizes().output_bytes() as usize];
        self.lanes.iter().any(|lane| {
            lane.server.copy_out(S_ARENA, &mut bytes);
            let mut rest = &bytes[..];
            while let Some(at) = rest.iter().position(|byte| *byte == secret[0]) {
                rest = &rest[at..];
                if rest.starts_with(secret) {
                    return true;
                }
                rest = &rest[1..];
            }
            false
        })
    }

    /// One thing that a script says.
    pub(crate) fn act(&mut self, script: &mut Input<'_>) {
        let action = script.u8();
        let lane = usize::from(action >> 4) % self.lanes.len();
        let lane_no = lane as u32;
        let lane = &mut self.lanes[lane];
        match action & 0xf {
            0 => {
                let words = (sizes().client_bytes() / 8) as u16;
                let at = usize::from(script.u16() % words) * 8;
                lane.client
                    .word(at)
                    .store(script.number(), Ordering::Release);
            }
            1 => {
                let words: [u64; 8] = std::array::from_fn(|_| script.number());
                lane.write(words);
            }
            2 => {
                let (at, count) = (usize::from(script.u16()), usize::from(script.u8()));
                lane.write_arena(at, script.bytes(count));
            }
            3 | 4 => {
                let words = shaped(script, lane.submitted);
                lane.write(words);
            }
            5 | 6 => {
                let (branch, count) = (script.u8(), usize::from(script.u16() % 4096));
                lane.call(u32::from(branch), script.bytes(count));
            }
            7 => {
                let at = usize::from(script.u16() % 512) * 8;
                self.bells
                    .word(at)
                    .store(script.number(), Ordering::Release);
            }
            8 | 9 => lane.consume(),
            10 => {
                let word = script.u32();
                lane.client.half(64).store(word, Ordering::Release);
            }
            11 => lane.packed(script),
            _ => self.ring(lane_no),
        }
    }

    /// Rings as a client does.
    pub(crate) fn ring(&self, lane: u32) {
        let place = self.bells.word(0).fetch_add(1, Ordering::AcqRel);
        let slot = 64 + 8 * (place % 256) as usize;
        let bell = u64::from(lane) | u64::from(tag(place)) << 32;
        self.bells.word(slot).store(bell, Ordering::Release);
    }
}

impl Hold {
    /// A call of these bytes, with room for its answer.
    fn call(&mut self, branch: u32, bytes: &[u8]) {
        self.write_arena(4096, bytes);
        let mut entry = Submission::new(Op::Call, self.submitted);
        entry.value.offset = 4096;
        entry.value.len = bytes.len() as u32;
        entry.reply.len = 8 << 10;
        let mut words = entry.encode(tag(self.submitted));
        words[7] = branch.into();
        self.write(words);
    }

    /// A list of keys or of pairs.
    fn packed(&mut self, script: &mut Input<'_>) {
        let (how, count) = (script.u8(), usize::from(script.u16() % 2048));
        self.write_arena(8192, script.bytes(count));
        let op = if how & 1 == 0 {
            Op::MultiGet
        } else {
            Op::MultiPut
        };
        let mut entry = Submission::new(op, self.submitted);
        entry.value.offset = 8192;
        entry.value.len = count as u32;
        entry.reply.len = u32::from(how) << 6;
        self.write(entry.encode(tag(self.submitted)));
    }
}

/// An entry in which one thing or another may be wrong, and most are not.
fn shaped(script: &mut Input<'_>, position: u64) -> [u64; 8] {
    let (op, how) = (script.u8(), script.u8());
    let extent = |script: &mut Input<'_>| {
        let (offset, len) = (u64::from(script.u8()) << 6, script.number());
        offset | len << 32
    };
    let key = extent(script);
    let value = extent(script);
    let reply = extent(script);
    let (arg0, arg1, branch) = (script.number(), script.number(), script.number());
    let flags = u64::from(how & 1) << 40 | u64::from(how >> 1 & 3) << 48;
    let head = u64::from(tag(position)) | u64::from(op % 14) << 32 | flags;
    [head, position, key, value, reply, arg0, arg1, branch]
}

/// What a script says of a call: for seeds.
pub(crate) fn say_call(script: &mut Vec<u8>, branch: u8, call: &Call<'_>) {
    let mut bytes = Vec::new();
    call.encode(&mut bytes);
    script.extend([5, branch]);
    script.extend((bytes.len() as u16).to_le_bytes());
    script.extend(bytes);
}

const _: () = {
    assert!(LaneSizes::DEFAULT.input_bytes() as usize + C_ARENA == 256 << 10);
    assert!(LaneSizes::DEFAULT.output_bytes() as usize + S_ARENA == 256 << 10);
};

impl<D: Disk> Shard<D> {
    /// Whether nothing waits, and nothing is held for anybody.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.pending.is_empty() && self.staged.is_empty() && self.resumed.is_empty()
    }

    /// Names of all agents.
    pub(crate) fn agent_names(&self) -> impl Iterator<Item = &[u8]> {
        self.store
            .tables
            .all_agents()
            .map(|(_, agent)| &*agent.name)
    }

    /// Lanes that are attached.
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.len()
    }
}
