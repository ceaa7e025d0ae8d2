//! Requests over a lane: how they are put together, and what comes back.
//!
//! What is asked alone waits for its answer while shards and disks take their turns; the process may end
//! meanwhile.

use crate::agent::arena::Block;
use crate::agent::call::{self, Call};
use crate::agent::client_lane::Notify;
use crate::agent::entry::{Completion, Extent, Op, Status, Submission};
use crate::config::Durability;
use crate::id::BranchNo;

use super::world::{Crash, World};

/// Room for the answer of a call or a scan.
const ANSWER_BYTES: u32 = 32 << 10;

/// A request under way: its number, and what it holds of the arenas.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) no: u64,
    input: Block,
    output: Block,
    reply: Extent,
}

/// What a request carries.
#[derive(Clone, Copy, Default)]
pub(super) struct Carries<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) branch: Option<BranchNo>,
    pub(super) durability: Option<Durability>,
    pub(super) arg0: u64,
    pub(super) arg1: u64,
}

/// What came of a request that was asked alone.
pub(super) struct Answer {
    pub(super) completion: Completion,
    pub(super) bytes: Vec<u8>,
    /// The shard that answered.
    pub(super) shard: usize,
    /// The log took it back.
    pub(super) undone: bool,
}

impl Answer {
    /// Its items.
    pub(super) fn items<'a, T: serde::Deserialize<'a>>(&'a self) -> Vec<T> {
        let items = call::items(&self.bytes);
        items.map(|item| item.expect("an answer we know")).collect()
    }

    pub(super) fn is_good(&self) -> bool {
        self.completion.status == Status::Ok
    }
}

impl World {
    /// Submits a request; `None` where the lane has no room for it now.
    pub(super) fn submit(
        &mut self,
        client: u64,
        no: u64,
        op: Op,
        what: Carries<'_>,
    ) -> Option<Request> {
        let lane = &mut self.clients.get_mut(&client)?.lane;
        let bytes = what.key.len() + what.value.len();
        let input = lane.alloc_input(bytes.max(1) as u32)?;
        let room = match op {
            Op::Call | Op::Scan | Op::MultiGet | Op::Get | Op::GetFrom => ANSWER_BYTES,
            _ => 64,
        };
        let Some(output) = lane.alloc_output(room) else {
            lane.free_input(input);
            return None;
        };
        let mut entry = Submission::new(op, no);
        if !what.key.is_empty() {
            entry.key = input.first(what.key.len() as u32);
            lane.write_input(entry.key, what.key);
        }
        if !what.value.is_empty() {
            entry.value = input.part(what.key.len() as u32, what.value.len() as u32);
            lane.write_input(entry.value, what.value);
        }
        if room == ANSWER_BYTES {
            entry.reply = output.first(room);
        }
        entry.branch = what.branch;
        entry.durability = what.durability;
        (entry.arg0, entry.arg1) = (what.arg0, what.arg1);
        let reply = entry.reply;
        if lane.submit(&entry).is_err() {
            lane.free_input(input);
            lane.free_output(output);
            return None;
        }
        let client = &self.clients[&client];
        // Shards are turned whether they were woken or not.
        let _: Notify = client.lane.notify(&client.bells);
        Some(Request {
            no,
            input,
            output,
            reply,
        })
    }

    /// Ends a request with its completion: the bytes of its reply.
    pub(super) fn finish(
        &mut self,
        client: u64,
        request: Request,
        completion: &Completion,
    ) -> Vec<u8> {
        let mut bytes = vec![0; completion.reply_bytes as usize];
        if let Some(client) = self.clients.get_mut(&client) {
            if !bytes.is_empty() {
                client.lane.read_output(request.reply, &mut bytes);
            }
            client.lane.free_input(request.input);
            client.lane.free_output(request.output);
        }
        bytes
    }

    /// Asks something alone: nothing else of the client is under way.
    pub(super) fn ask(
        &mut self,
        client: u64,
        op: Op,
        what: Carries<'_>,
    ) -> Result<Option<Answer>, Crash> {
        let Some(request) = self.submit(client, u64::MAX, op, what) else {
            return Ok(None);
        };
        for _ in 0..super::world::PATIENCE {
            if let Some((completion, shard, undone)) = self.poll(client) {
                assert_eq!(
                    completion.user_data,
                    u64::MAX,
                    "an answer to something else"
                );
                let bytes = self.finish(client, request, &completion);
                return Ok(Some(Answer {
                    completion,
                    bytes,
                    shard,
                    undone,
                }));
            }
            if self.clients[&client].lane.closed().is_some() {
                return Ok(None);
            }
            self.turn()?;
        }
        panic!("no answer to {op:?} of {}", self.clients[&client].agent);
    }

    /// Asks a call alone.
    pub(super) fn call(
        &mut self,
        client: u64,
        branch: Option<BranchNo>,
        durability: Option<Durability>,
        call: &Call<'_>,
    ) -> Result<Option<Answer>, Crash> {
        let mut bytes = Vec::new();
        call.encode(&mut bytes);
        let what = Carries {
            value: &bytes,
            branch,
            durability,
            ..Carries::default()
        };
        let answer = self.ask(client, Op::Call, what)?;
        if let Some(answer) = &answer {
            let (status, detail) = (answer.completion.status, answer.completion.detail);
            let agent = &self.clients[&client].agent;
            self.log
                .add(format_args!("{agent}: {call:?}: {status:?} {detail}"));
        }
        Ok(answer)
    }

    /// The whole value of a key, asked alone; or why there is none.
    pub(super) fn read(
        &mut self,
        client: u64,
        branch: Option<BranchNo>,
        key: &[u8],
    ) -> Result<Option<Result<Vec<u8>, Answer>>, Crash> {
        let mut value = Vec::new();
        loop {
            let what = Carries {
                key,
                branch,
                arg0: value.len() as u64,
                ..Carries::default()
            };
            let Some(answer) = self.ask(client, Op::Get, what)? else {
                return Ok(None);
            };
            if !answer.is_good() {
                return Ok(Some(Err(answer)));
            }
            value.extend_from_slice(&answer.bytes);
            if !answer.completion.more {
                return Ok(Some(Ok(value)));
            }
        }
    }
}
