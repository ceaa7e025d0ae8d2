//! A lane: one agent's requests from one thread, blocking or pipelined.
//!
//! The blocking calls are the pipelined ones with a wait behind them. Each request owns blocks of
//! the two arenas until its reply was taken; a lane used one request at a time always touches the
//! same first pages.

use std::sync::Arc;
use std::time::Duration;

use crate::agent::arena::Block;
use crate::agent::client_lane::{ClientLane, Notify};
use crate::agent::entry::{Completion, Op, Status, Submission, Tier};
use crate::agent::layout::PART_BYTES_MAX;
use crate::agent::packed;
use crate::client::pipeline::read_stats;
use crate::client::reply::{Expect, Found, Page, PutOptions, Reply, Stat, Ticket, Written};
use crate::client::session::{AttachedLane, Connection};
use crate::client::{ClientError, Session};
use crate::config::Durability;
use crate::id::{BranchNo, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::metrics::Stats;

/// Most bytes of a value asked for in one reply. A reply's pages stay resident for as long as the
/// lane is attached, and a larger value costs a round trip more for each of these.
const READ_BYTES: u32 = 16 << 10;
/// Least bytes worth asking for when the arena is crowded.
const READ_BYTES_MIN: u32 = 4 << 10;
/// Most bytes asked for of a list of keys or values.
const LIST_BYTES: u32 = 128 << 10;
/// How long a waiting call polls before it sleeps: a shard that is awake answers within a few
/// microseconds; sleeping and waking costs fifty.
const SPIN: Duration = Duration::from_micros(50);
/// Polls in a row that came to nothing after which a lane sleeps at once: the answer takes longer
/// than polling (a device), or polling keeps the shard from answering (one core for both).
const VAIN_SPINS_MAX: u32 = 4;
/// Of the waits that then sleep at once, one in this many polls first, to see whether it pays.
const SPIN_PROBE_WAITS: u32 = 16;
/// How long it sleeps before it looks whether the runtime is still there.
const SLEEP: Duration = Duration::from_millis(100);
/// How long the window is trusted after a look at the socket: less than it takes to start another
/// runtime, so that this one's death is seen before anybody else acknowledges a write.
const ALIVE_FOR_MS: u64 = 10;
/// Times a value may change under a read in parts.
const CHANGES_MAX: u32 = 16;
/// Times that a large value is sent while its agent is moved again and again.
const UPLOADS_MAX: u32 = 8;

#[derive(Debug)]
struct Request {
    no: u64,
    input: Option<Block>,
    output: Option<Block>,
    done: Option<Completion>,
}

/// One agent's requests from one thread. Dropping it closes the lane.
#[derive(Debug)]
pub struct Lane {
    connection: Arc<dyn Connection>,
    ring: ClientLane,
    window: Option<crate::cache::WindowReader>,
    requests: Vec<Request>,
    next: u64,
    /// Polls that came to nothing since the last that did not, and waits that did not poll.
    vain_spins: u32,
    pub(super) reply: Vec<u8>,
    /// A call on its way, in a buffer that is kept.
    pub(super) request: Vec<u8>,
    /// The branch that requests are about, where it is not the one that the lane is on.
    pub(super) target: Option<BranchNo>,
    /// Until when, by the coarse clock, the window is used without a look at the socket.
    alive_until_ms: u64,
}

impl Lane {
    pub(super) fn new(connection: Arc<dyn Connection>, attached: AttachedLane) -> Self {
        let AttachedLane { ring, window } = attached;
        let requests = Vec::with_capacity(ring.sizes().ring_slots() as usize);
        Self {
            connection,
            ring,
            window,
            requests,
            next: 0,
            vain_spins: 0,
            reply: Vec::new(),
            request: Vec::new(),
            target: None,
            alive_until_ms: 0,
        }
    }

    /// The session that the lane belongs to.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::over(Arc::clone(&self.connection))
    }

    /// The value of `key`, which replaces what `out` holds: from the window without a hop if it is
    /// there, else from the shard. `None`: absent.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get(&mut self, key: &[u8], out: &mut Vec<u8>) -> Result<Option<Found>, ClientError> {
        if let Some(found) = self.get_window(key, out) {
            return Ok(Some(found));
        }
        self.read(Op::Get, &[], key, out)
    }

    /// The value of `key` if the window holds it: never asks the shard.
    #[inline]
    pub fn get_window(&mut self, key: &[u8], out: &mut Vec<u8>) -> Option<Found> {
        if self.target.is_some() {
            return None;
        }
        let window = self.window.as_ref()?;
        let hit = window.get_into(self.ring.view(), key, out)?;
        if !self.is_attended() {
            return None;
        }
        self.ring.report_hit(hit.slot, hit.tag);
        Some(Found {
            tier: Tier::L1,
            value_bytes: out.len() as u64,
            id: None,
        })
    }

    /// Whether somebody keeps the window up to date: a closed lane's window stays as it was when
    /// it was closed, and so does that of a runtime that was killed, while a new runtime may have
    /// acknowledged other values. A killed one leaves no mark in memory, so that its socket is
    /// looked at, at most every [`ALIVE_FOR_MS`].
    #[inline]
    fn is_attended(&mut self) -> bool {
        if self.ring.closed().is_some() {
            self.window = None;
            return false;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        let now_ms = now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000;
        if now_ms < self.alive_until_ms {
            return true;
        }
        self.look_for_life(now_ms)
    }

    #[cold]
    fn look_for_life(&mut self, now_ms: u64) -> bool {
        let alive = self.connection.is_alive();
        self.alive_until_ms = now_ms + ALIVE_FOR_MS;
        if !alive {
            self.window = None;
        }
        alive
    }

    /// The value of `key` of another agent, which has to be public.
    ///
    /// # Errors
    /// [`ClientError::Forbidden`], [`ClientError::NoSuchAgent`] and the rest.
    pub fn get_from(
        &mut self,
        agent: &str,
        key: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Found>, ClientError> {
        self.read(Op::GetFrom, agent.as_bytes(), key, out)
    }

    /// Lets `key` name `value`, of at most 64 MiB.
    ///
    /// # Errors
    /// [`ClientError`]; nothing was written then, unless it is [`ClientError::IoFailed`] or the
    /// runtime is gone: then it may have been.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<Written, ClientError> {
        self.put_with(key, value, PutOptions::default())
    }

    /// As [`Lane::put`], with a durability, or only if the key names what is expected.
    ///
    /// # Errors
    /// Also [`ClientError::Stale`].
    pub fn put_with(
        &mut self,
        key: &[u8],
        value: &[u8],
        options: PutOptions,
    ) -> Result<Written, ClientError> {
        if value.len() as u64 > VALUE_BYTES_MAX {
            return Err(ClientError::TooLarge);
        }
        if value.len() <= PART_BYTES_MAX as usize {
            let ticket = self.submit_put(key, value, options)?;
            return self
                .finish(ticket, None)
                .map(|completion| Written::of(&completion));
        }
        for _ in 1..UPLOADS_MAX {
            match self.put_parts(key, value, options) {
                // The agent was moved, which drops what nothing names yet.
                Err(ClientError::UploadOutOfOrder { expected: 0 }) => {}
                done => return done,
            }
        }
        self.put_parts(key, value, options)
    }

    fn put_parts(
        &mut self,
        key: &[u8],
        value: &[u8],
        options: PutOptions,
    ) -> Result<Written, ClientError> {
        // Parts before the last make no promise: what counts is the record that names them.
        let (head, last) = value.split_at((value.len() - 1) / PART * PART);
        for (no, part) in head.chunks(PART).enumerate() {
            let mut entry = self.part(no * PART, value.len());
            entry.durability = Some(Durability::Volatile);
            let ticket = self.submit(entry, key, part, 0)?;
            self.finish(ticket, None)?;
        }
        let mut entry = self.part(head.len(), value.len());
        entry.durability = options.durability;
        let ticket = self.submit_write(entry, key, last, options.expect)?;
        self.finish(ticket, None)
            .map(|completion| Written::of(&completion))
    }

    fn part(&mut self, offset: usize, total: usize) -> Submission {
        let mut entry = self.entry(Op::PutPart);
        (entry.arg0, entry.arg1) = (offset as u64, total as u64);
        entry
    }

    /// Removes `key`; whether it was there.
    ///
    /// # Errors
    /// As [`Lane::put`].
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, ClientError> {
        self.delete_with(key, PutOptions::default())
    }

    /// As [`Lane::delete`], with a durability, or only if the key names what is expected.
    ///
    /// # Errors
    /// Also [`ClientError::Stale`].
    pub fn delete_with(&mut self, key: &[u8], options: PutOptions) -> Result<bool, ClientError> {
        let ticket = self.submit_delete(key, options)?;
        Ok(self.finish(ticket, None)?.status == Status::Ok)
    }

    /// What `key` names, without the value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exists(&mut self, key: &[u8]) -> Result<Option<Stat>, ClientError> {
        let ticket = self.submit_exists(key)?;
        Ok(Stat::of(&self.finish(ticket, None)?))
    }

    /// Keys that begin with `prefix` and come after `after` (empty: from the first), at most
    /// `limit` (0: as many as one reply holds).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn scan(&mut self, prefix: &[u8], after: &[u8], limit: usize) -> Result<Page, ClientError> {
        let ticket = self.submit_scan(prefix, after, limit, LIST_BYTES)?;
        self.with_reply(ticket, |_, completion, reply| Page::of(completion, reply))
    }

    /// The values of several keys in one request. Values that find no room in one reply are read
    /// by themselves.
    ///
    /// # Errors
    /// [`ClientError::ListTooLong`] beyond 1,024 keys or 64 KiB of them.
    pub fn multi_get(&mut self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>, ClientError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let ticket = self.submit_multi_get(keys, LIST_BYTES)?;
        self.with_reply(ticket, |lane, _, reply| {
            let items = packed::Values::parse(reply).map_err(|_| ClientError::BadReply)?;
            let mut values = Vec::with_capacity(keys.len());
            for (key, (head, bytes)) in keys.iter().zip(items) {
                values.push(match head.status {
                    Status::Ok if head.included => Some(bytes.to_vec()),
                    Status::Ok => {
                        let mut value = Vec::new();
                        lane.read(Op::Get, &[], key, &mut value)?.map(|_| value)
                    }
                    Status::NotFound => None,
                    status => {
                        let error = ClientError::of(&Completion::new(0, status));
                        return Err(error.unwrap_or(ClientError::BadReply));
                    }
                });
            }
            if values.len() == keys.len() {
                Ok(values)
            } else {
                Err(ClientError::BadReply)
            }
        })
    }

    /// Lets several keys name values, in one request: all of them, or none where the runtime
    /// refuses; a crash may keep the first of them only.
    ///
    /// # Errors
    /// [`ClientError::ListTooLong`] beyond 1,024 pairs or 64 KiB of them.
    pub fn multi_put(
        &mut self,
        pairs: &[(&[u8], &[u8])],
        durability: Option<Durability>,
    ) -> Result<Option<Written>, ClientError> {
        if pairs.is_empty() {
            return Ok(None);
        }
        let ticket = self.submit_multi_put(pairs, durability)?;
        self.with_reply(ticket, |_, completion, _| Ok(Some(Written::of(completion))))
    }

    /// Waits until everything written so far, through any lane of the agent's shard, has
    /// `durability`; the place in the log that was reached.
    ///
    /// # Errors
    /// [`ClientError::IoFailed`] where the device failed: then it is not durable.
    pub fn sync(&mut self, durability: Durability) -> Result<u64, ClientError> {
        self.sync_to(0, durability)
    }

    /// Waits until the write of this `sequence` has `durability`.
    ///
    /// # Errors
    /// As [`Lane::sync`].
    pub fn sync_to(&mut self, sequence: u64, durability: Durability) -> Result<u64, ClientError> {
        let ticket = self.submit_sync(sequence, durability)?;
        Ok(self.finish(ticket, None)?.value_bytes)
    }

    /// What the runtime's shards have counted, summed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        let ticket = self.submit_stats()?;
        self.with_reply(ticket, |_, _, reply| Ok(read_stats(reply)))
    }

    /// Tells the shard of all that was submitted. [`Lane::wait`] and [`Lane::arm`] do so too.
    pub fn flush(&mut self) {
        if self.ring.notify(self.connection.bells()) == Notify::SendBell {
            self.connection.wake(self.ring.shard());
        }
    }

    /// The next reply that is there; its bytes replace what `out` holds. Replies come in the order
    /// in which they were completed, which need not be that of the requests.
    ///
    /// # Errors
    /// The lane was closed.
    pub fn poll(&mut self, out: &mut Vec<u8>) -> Result<Option<Reply>, ClientError> {
        let done = self
            .requests
            .iter()
            .position(|request| request.done.is_some());
        let at = match done {
            Some(at) => at,
            None => match self.ring.poll_completion()? {
                Some(completion) => self.note(completion)?,
                None => {
                    return match self.ring.closed() {
                        Some(reason) => Err(ClientError::Closed { reason }),
                        None => Ok(None),
                    };
                }
            },
        };
        let completion = self.requests[at].done.expect("noted as done");
        let ticket = Ticket(self.requests[at].no);
        self.release(at, completion, out);
        let outcome = ClientError::of(&completion).map_or(Ok(completion), Err);
        Ok(Some(Reply { ticket, outcome }))
    }

    /// Waits for the next reply. `None`: nothing is under way.
    ///
    /// # Errors
    /// The lane was closed, or the runtime is gone.
    pub fn wait(&mut self, out: &mut Vec<u8>) -> Result<Option<Reply>, ClientError> {
        self.flush();
        loop {
            if let Some(reply) = self.poll(out)? {
                return Ok(Some(reply));
            }
            if self.requests.is_empty() {
                return Ok(None);
            }
            let completion = self.next_completion()?;
            self.note(completion)?;
        }
    }

    /// Asks for the session's descriptor to become readable at the next completion. `true`:
    /// there is one already; poll until there is none, then arm again.
    pub fn arm(&mut self) -> bool {
        self.flush();
        self.requests.iter().any(|request| request.done.is_some()) || self.ring.arm_event()
    }

    /// Requests under way, or finished and not yet taken.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn entry(&mut self, op: Op) -> Submission {
        self.next += 1;
        let mut entry = Submission::new(op, self.next);
        if op.has_branch() {
            entry.branch = self.target;
        }
        entry
    }

    pub(super) fn submit_write(
        &mut self,
        mut entry: Submission,
        key: &[u8],
        value: &[u8],
        expect: Option<Expect>,
    ) -> Result<Ticket, ClientError> {
        let id = match expect {
            None => return self.submit(entry, key, value, 0),
            Some(Expect::Absent) => [0; 32],
            Some(Expect::Value(id)) => *id.as_bytes(),
        };
        entry.compare = true;
        self.submit_parts(entry, key, [&id, value], 0)
    }

    pub(super) fn submit(
        &mut self,
        entry: Submission,
        key: &[u8],
        value: &[u8],
        reply_bytes: u32,
    ) -> Result<Ticket, ClientError> {
        self.submit_parts(entry, key, [&[], value], reply_bytes)
    }

    /// Copies the input into the arena and writes the entry.
    fn submit_parts(
        &mut self,
        mut entry: Submission,
        key: &[u8],
        value: [&[u8]; 2],
        reply_bytes: u32,
    ) -> Result<Ticket, ClientError> {
        let keyless = matches!(
            entry.op,
            Op::Scan | Op::MultiGet | Op::MultiPut | Op::Sync | Op::Stats | Op::Call
        );
        if !keyless && !(1..=KEY_BYTES_MAX).contains(&key.len()) {
            return Err(ClientError::KeyLength { bytes: key.len() });
        }
        let ring = &mut self.ring;
        let value_bytes = value[0].len() + value[1].len();
        // The value first, so that it is copied by whole words.
        let key_at = value_bytes.next_multiple_of(8);
        let input = match (key_at + key.len()) as u32 {
            0 => None,
            bytes => Some(ring.alloc_input(bytes).ok_or(ClientError::LaneFull)?),
        };
        let output = match reply_bytes {
            0 => None,
            bytes => match ring.alloc_output(bytes) {
                Some(block) => Some(block),
                None => {
                    free(ring, input, None);
                    return Err(ClientError::LaneFull);
                }
            },
        };
        if let Some(block) = &input {
            if !key.is_empty() {
                entry.key = block.part(key_at as u32, key.len() as u32);
                ring.write_input(entry.key, key);
            }
            if value_bytes > 0 {
                entry.value = block.first(value_bytes as u32);
                let split = value[0].len() as u32;
                ring.write_input(block.first(split), value[0]);
                ring.write_input(block.part(split, value[1].len() as u32), value[1]);
            }
        }
        if let Some(block) = &output {
            entry.reply = block.first(reply_bytes);
        }
        if let Err(error) = ring.submit(&entry) {
            free(ring, input, output);
            return Err(error.into());
        }
        self.requests.push(Request {
            no: entry.user_data,
            input,
            output,
            done: None,
        });
        Ok(Ticket(entry.user_data))
    }

    /// Reads a whole value, in several requests where one reply does not hold it.
    fn read(
        &mut self,
        op: Op,
        agent: &[u8],
        key: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Found>, ClientError> {
        let mut found = match self.read_from(op, agent, key, 0, out)? {
            Some(first) => first,
            None => return Ok(None),
        };
        let mut piece = Vec::new();
        let mut changes = 0;
        while (out.len() as u64) < found.value_bytes {
            let Some(next) = self.read_from(op, agent, key, out.len() as u64, &mut piece)? else {
                return Ok(None);
            };
            if next.id == found.id {
                out.extend_from_slice(&piece);
                found.tier = if next.tier as u8 > found.tier as u8 {
                    next.tier
                } else {
                    found.tier
                };
                continue;
            }
            // Written meanwhile: start again with the new value.
            changes += 1;
            if changes > CHANGES_MAX {
                return Err(ClientError::Changing);
            }
            found = match self.read_from(op, agent, key, 0, out)? {
                Some(first) => first,
                None => return Ok(None),
            };
        }
        Ok(Some(found))
    }

    /// Reads what one reply holds of a value, from byte `from` on.
    fn read_from(
        &mut self,
        op: Op,
        agent: &[u8],
        key: &[u8],
        from: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<Found>, ClientError> {
        let mut entry = self.entry(op);
        entry.arg0 = from;
        let mut bytes = READ_BYTES.min(self.ring.sizes().output_bytes());
        let ticket = loop {
            match self.submit(entry, key, agent, bytes) {
                Err(ClientError::LaneFull) if bytes > READ_BYTES_MIN => bytes /= 2,
                submitted => break submitted?,
            }
        };
        let completion = self.finish(ticket, Some(out))?;
        let found = completion.status == Status::Ok;
        Ok(found.then_some(Found {
            tier: completion.tier,
            value_bytes: completion.value_bytes,
            id: Some(completion.id),
        }))
    }

    /// Waits for one request and takes its reply.
    fn finish(
        &mut self,
        ticket: Ticket,
        out: Option<&mut Vec<u8>>,
    ) -> Result<Completion, ClientError> {
        let completion = self.complete(ticket, out)?;
        ClientError::of(&completion).map_or(Ok(completion), Err)
    }

    /// Waits for one request, whatever came of it, and takes its reply.
    pub(super) fn complete(
        &mut self,
        ticket: Ticket,
        out: Option<&mut Vec<u8>>,
    ) -> Result<Completion, ClientError> {
        self.flush();
        loop {
            let at = self
                .requests
                .iter()
                .position(|request| request.no == ticket.0);
            let at = at.ok_or(ClientError::BadReply)?;
            if let Some(completion) = self.requests[at].done {
                let mut nowhere = Vec::new();
                self.release(at, completion, out.unwrap_or(&mut nowhere));
                return Ok(completion);
            }
            let completion = self.next_completion()?;
            self.note(completion)?;
        }
    }

    /// Waits for one request and lets `read` look at its reply, in a buffer that is kept.
    fn with_reply<T>(
        &mut self,
        ticket: Ticket,
        read: impl FnOnce(&mut Self, &Completion, &[u8]) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut reply = std::mem::take(&mut self.reply);
        let finished = self.finish(ticket, Some(&mut reply));
        let outcome = finished.and_then(|completion| read(self, &completion, &reply));
        self.reply = reply;
        outcome
    }

    fn next_completion(&mut self) -> Result<Completion, ClientError> {
        let vain = self.vain_spins;
        if (vain < VAIN_SPINS_MAX || vain.is_multiple_of(SPIN_PROBE_WAITS))
            && let Some(completion) = self.ring.wait(SPIN, SPIN)?
        {
            self.vain_spins = 0;
            return Ok(completion);
        }
        self.vain_spins = vain.wrapping_add(1);
        loop {
            if let Some(completion) = self.ring.wait(Duration::ZERO, SLEEP)? {
                return Ok(completion);
            }
            self.connection.check()?;
            // A bell that found the socket full was dropped.
            self.flush();
        }
    }

    /// Notes a completion with its request.
    fn note(&mut self, completion: Completion) -> Result<usize, ClientError> {
        let no = completion.user_data;
        let at = self.requests.iter().position(|request| request.no == no);
        let at = at.ok_or(ClientError::BadReply)?;
        self.requests[at].done = Some(completion);
        Ok(at)
    }

    /// Copies the reply out and gives the request's blocks back.
    fn release(&mut self, at: usize, completion: Completion, out: &mut Vec<u8>) {
        let request = self.requests.remove(at);
        let bytes = match &request.output {
            Some(block) => completion.reply_bytes.min(block.extent().len),
            None => 0,
        };
        // Bytes that are there already are not zeroed first.
        out.resize(bytes as usize, 0);
        if let Some(block) = &request.output {
            self.ring.read_output(block.first(bytes), out);
        }
        free(&mut self.ring, request.input, request.output);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.connection.detach(self.ring.lane());
    }
}

pub(super) const PART: usize = PART_BYTES_MAX as usize;

fn free(ring: &mut ClientLane, input: Option<Block>, output: Option<Block>) {
    if let Some(block) = input {
        ring.free_input(block);
    }
    if let Some(block) = output {
        ring.free_output(block);
    }
}
