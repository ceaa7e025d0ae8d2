//! What one lane asks, drawn from a seed, and the record of it.

mod versions;

use helios::client::{BranchInfo, ClientError, Expect, Lane, PutOptions, Session};
use helios::config::Durability;
use helios::id::{BranchNo, ObjectId};
use serde::{Deserialize, Serialize};

use crate::common::{self, Random};
use crate::history::{
    Branch, Checkpoint, Contents, KEYS, Key, Listed, MAIN, Name, Operation, THREADS_PER_LANE, What,
    now, short, value_of,
};

/// Lengths of values; the longest enter no window.
const LENGTHS: [usize; 5] = [8, 40, 200, 1_000, 6_000];

/// What lanes do in a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    /// Names of the agents.
    pub agents: Vec<String>,
    pub lanes_per_agent: u32,
    /// Lanes have numbers from this on.
    pub first_lane: u32,
    pub operations_per_lane: u32,
    /// Branches come and go; else they only come.
    pub remove: bool,
    /// The runtime may die.
    pub dies: bool,
}

/// A checkpoint that was made: its id, what it follows, and what it holds, where its maker knows for sure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    pub id: [u8; 32],
    pub parents: Vec<Checkpoint>,
    pub contents: Option<Contents>,
}

/// What a lane leaves behind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Of the agent of this place in the plan.
    pub operations: Vec<(usize, Operation)>,
    pub made: Vec<(usize, Made)>,
    pub window_hits: u64,
    pub busy: u64,
}

/// The runtime died.
struct Gone;

/// One lane, and what it knows.
pub struct Worker<'a> {
    plan: &'a Plan,
    lane: Lane,
    no: u32,
    agent: usize,
    on: Branch,
    random: Random,
    written: u32,
    /// What each key named when it was read last.
    seen: [Option<ObjectId>; KEYS],
    known: Vec<ObjectId>,
    branches: Vec<Branch>,
    head: Option<ObjectId>,
    record: Record,
}

impl<'a> Worker<'a> {
    /// Attaches lane `no` of the plan; `None`: the runtime is dead.
    pub fn attach(session: &Session, plan: &'a Plan, no: u32) -> Option<Self> {
        let agent = ((no - plan.first_lane) / plan.lanes_per_agent) as usize;
        let public = helios::client::Attach {
            public: true,
            ..Default::default()
        };
        let lane = match session.attach(&plan.agents[agent], public) {
            Ok(lane) => lane,
            Err(error) if plan.dies && is_death(&error) => return None,
            Err(error) => panic!("{error}"),
        };
        Some(Self {
            plan,
            lane,
            no,
            agent,
            on: MAIN,
            random: Random((plan.seed << 16 | u64::from(no)) * 2 + 1),
            written: 0,
            seen: [None; KEYS],
            known: Vec::new(),
            branches: Vec::new(),
            head: None,
            record: Record::default(),
        })
    }

    /// Asks as much as the plan says, or until the runtime dies.
    pub fn run(mut self) -> (Record, Lane) {
        for _ in 0..self.plan.operations_per_lane {
            if self.step().is_err() {
                break;
            }
        }
        (self.record, self.lane)
    }

    fn step(&mut self) -> Result<(), Gone> {
        let key = self.random.below(KEYS as u64) as Key;
        let elsewhere = !self.branches.is_empty() && self.random.below(6) == 0;
        let on = match elsewhere {
            true => self.branches[self.random.below(self.branches.len() as u64) as usize],
            false => self.on,
        };
        match self.random.below(100) {
            0..38 => self.get(on, key),
            38..46 => self.snapshot(on),
            46..60 => self.put(on, key),
            60..66 => self.swap(on, key),
            66..69 => self.delete(on, key),
            69..73 => self.multi_put(on),
            73..77 => self.checkpoint(on),
            77..80 => self.restore(on),
            80..84 => self.switch(),
            84..86 => self.create(on),
            86 if self.plan.remove => self.remove(),
            87..90 => self.merge(on),
            90..92 => self.describe(on),
            92..95 => self.transaction(),
            95..97 => self.get_from(key),
            _ => self.batch(),
        }
    }

    /// Asks, and takes the times; what has no answer is noted as `what` that may have been done.
    fn ask<T>(
        &mut self,
        on: Branch,
        what: impl FnOnce() -> Option<What>,
        ask: impl FnOnce(&mut Lane) -> Result<T, ClientError>,
    ) -> Result<(u64, u64, Result<T, ClientError>), Gone> {
        let invoked = now();
        let answer = match on == self.on {
            true => ask(&mut self.lane),
            false => ask(&mut self.lane.on(BranchNo(on))),
        };
        let returned = now();
        if let Err(error) = &answer
            && self.plan.dies
            && is_death(error)
        {
            if let Some(what) = what() {
                self.note_as(self.agent, 0, on, (invoked, u64::MAX), true, what);
            }
            return Err(Gone);
        }
        Ok((invoked, returned, answer))
    }

    fn note(&mut self, on: Branch, times: (u64, u64), what: What) {
        self.note_as(self.agent, 0, on, times, false, what);
    }

    fn note_as(
        &mut self,
        agent: usize,
        thread: u32,
        on: Branch,
        (invoked, returned): (u64, u64),
        maybe: bool,
        what: What,
    ) {
        let thread = self.no * THREADS_PER_LANE + thread;
        let op = Operation {
            thread,
            on,
            invoked,
            returned,
            maybe,
            what,
        };
        self.record.operations.push((agent, op));
    }

    /// Notes a refusal that says something about the agent's state.
    fn refused(&mut self, on: Branch, times: (u64, u64), error: &ClientError, asked: Option<Name>) {
        let what = match (error, asked) {
            (ClientError::Busy { .. }, _) => {
                self.record.busy += 1;
                return;
            }
            (ClientError::NoSuchBranch, _) => {
                self.branches.retain(|known| *known != on);
                What::NoSuchBranch
            }
            // The name that the revision was given by; a checkpoint may have been collected.
            (ClientError::NoSuchRevision, Some(name)) => What::NoSuchName { name },
            (ClientError::NoSuchRevision, None) => return,
            (ClientError::NameTaken, Some(name)) => What::NameTaken { name },
            (ClientError::InUse { .. }, Some(name)) => What::InUse { name },
            (error, _) => panic!("{error:?}"),
        };
        self.note(on, times, what);
    }

    fn get(&mut self, on: Branch, key: Key) -> Result<(), Gone> {
        let mut bytes = Vec::new();
        let (from, to, found) = self.ask(on, || None, |lane| lane.get(&[key], &mut bytes))?;
        match found {
            Ok(found) => {
                let value = found.map_or(0, |_| value_of(&bytes));
                let id = found.map(|_| ObjectId::of_blob(&bytes));
                let hit = found.is_some_and(|found| found.id.is_none());
                self.record.window_hits += u64::from(hit);
                self.seen[usize::from(key)] = id;
                self.note(on, (from, to), What::Get { key, value });
            }
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn snapshot(&mut self, on: Branch) -> Result<(), Gone> {
        let scan = self.random.below(3) == 0;
        let (from, to, found) = self.ask(on, || None, |lane| contents(lane, scan))?;
        match found {
            Ok(values) => self.note(on, (from, to), What::Snapshot { values }),
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn value(&mut self) -> Vec<u8> {
        self.written += 1;
        let length = LENGTHS[self.random.below(LENGTHS.len() as u64) as usize];
        let mut bytes = self.random.bytes(length);
        bytes[..4].copy_from_slice(&self.no.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.written.to_le_bytes());
        bytes
    }

    fn options(&mut self) -> PutOptions {
        let durability = match self.random.below(12) {
            0 => Some(Durability::Power),
            1 if !self.plan.dies => Some(Durability::Volatile),
            _ => None,
        };
        PutOptions {
            durability,
            ..PutOptions::default()
        }
    }

    fn put(&mut self, on: Branch, key: Key) -> Result<(), Gone> {
        let (bytes, options) = (self.value(), self.options());
        let value = value_of(&bytes);
        let what = What::Put { key, value };
        let (from, to, done) = self.ask(
            on,
            || Some(what.clone()),
            |lane| lane.put_with(&[key], &bytes, options),
        )?;
        match done {
            Ok(_) => self.note(on, (from, to), what),
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn swap(&mut self, on: Branch, key: Key) -> Result<(), Gone> {
        let seen = self.seen[usize::from(key)];
        let bytes = self.value();
        let mut options = self.options();
        options.expect = Some(seen.map_or(Expect::Absent, Expect::Value));
        let swap = |found| What::Swap {
            key,
            expected: seen.as_ref().map_or(0, short),
            value: value_of(&bytes),
            found,
        };
        let (from, to, done) = self.ask(
            on,
            || Some(swap(None)),
            |lane| lane.put_with(&[key], &bytes, options),
        )?;
        match done {
            Ok(_) => self.note(on, (from, to), swap(None)),
            Err(ClientError::Stale { current }) => {
                self.seen[usize::from(key)] = current;
                let found = current.as_ref().map_or(0, short);
                self.note(on, (from, to), swap(Some(found)));
            }
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn delete(&mut self, on: Branch, key: Key) -> Result<(), Gone> {
        let options = self.options();
        let what = |existed| What::Delete { key, existed };
        let (from, to, done) = self.ask(
            on,
            || Some(what(None)),
            |lane| lane.delete_with(&[key], options),
        )?;
        match done {
            Ok(existed) => self.note(on, (from, to), what(Some(existed))),
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn multi_put(&mut self, on: Branch) -> Result<(), Gone> {
        let first = self.random.below(KEYS as u64) as Key;
        let count = 2 + self.random.below(3) as Key;
        let keys: Vec<[Key; 1]> = (0..count).map(|at| [(first + at) % KEYS as Key]).collect();
        let values: Vec<Vec<u8>> = keys.iter().map(|_| self.value()).collect();
        let pairs: Vec<(&[u8], &[u8])> = keys
            .iter()
            .zip(&values)
            .map(|(key, value)| (&key[..], &value[..]))
            .collect();
        let durability = self.options().durability;
        let pairs_said = keys
            .iter()
            .zip(&values)
            .map(|(key, value)| (key[0], value_of(value)));
        let what = What::MultiPut {
            pairs: pairs_said.collect(),
        };
        let (from, to, done) = self.ask(
            on,
            || Some(what.clone()),
            |lane| lane.multi_put(&pairs, durability),
        )?;
        match done {
            Ok(_) => self.note(on, (from, to), what),
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    /// Reads a value of an agent of the same round, mostly another's, over the mesh.
    fn get_from(&mut self, key: Key) -> Result<(), Gone> {
        let other = self.random.below(self.plan.agents.len() as u64) as usize;
        let name = &self.plan.agents[other];
        let mut bytes = Vec::new();
        let on = self.on;
        let (from, to, found) =
            self.ask(on, || None, |lane| lane.get_from(name, &[key], &mut bytes))?;
        match found {
            Ok(found) => {
                let value = found.map_or(0, |_| value_of(&bytes));
                let what = What::Get { key, value };
                self.note_as(other, 0, MAIN, (from, to), false, what);
            }
            // The other's first lane may come later.
            Err(ClientError::NoSuchAgent | ClientError::Forbidden) => {}
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    /// Several requests at once; each key is a thread of its own, as only requests about one key keep their order.
    fn batch(&mut self) -> Result<(), Gone> {
        let (on, mut asked) = (self.on, Vec::new());
        for _ in 0..2 + self.random.below(5) {
            let key = self.random.below(KEYS as u64) as Key;
            let invoked = now();
            let (ticket, what) = match self.random.below(2) {
                0 => {
                    let bytes = self.value();
                    let options = self.options();
                    let ticket = self.lane.submit_put(&[key], &bytes, options).unwrap();
                    let value = value_of(&bytes);
                    (ticket, What::Put { key, value })
                }
                _ => {
                    let most = *LENGTHS.last().unwrap() as u32;
                    let ticket = self.lane.submit_get(&[key], most).unwrap();
                    (ticket, What::Get { key, value: 0 })
                }
            };
            asked.push((ticket, invoked, key, what));
        }
        let mut bytes = Vec::new();
        while !asked.is_empty() {
            let reply = match self.lane.wait(&mut bytes) {
                Ok(reply) => reply.expect("some are under way"),
                Err(error) if self.plan.dies && is_death(&error) => {
                    for (_, invoked, key, what) in asked {
                        if matches!(what, What::Put { .. }) {
                            let (thread, times) = (1 + u32::from(key), (invoked, u64::MAX));
                            self.note_as(self.agent, thread, on, times, true, what);
                        }
                    }
                    return Err(Gone);
                }
                Err(error) => panic!("{error}"),
            };
            let returned = now();
            let at = asked
                .iter()
                .position(|asked| asked.0 == reply.ticket)
                .unwrap();
            let (_, invoked, key, what) = asked.remove(at);
            let completion = match reply.outcome {
                Ok(completion) => completion,
                Err(ClientError::Busy { .. }) => {
                    self.record.busy += 1;
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let absent = completion.status == helios::agent::entry::Status::NotFound;
            let what = match what {
                What::Get { key, .. } if absent => What::Get { key, value: 0 },
                What::Get { key, .. } => What::Get {
                    key,
                    value: value_of(&bytes),
                },
                put => put,
            };
            let thread = 1 + u32::from(key);
            self.note_as(self.agent, thread, on, (invoked, returned), false, what);
        }
        Ok(())
    }
}

/// Everything that a lane reads of an agent when all others are gone: its branches, and what each holds.
pub fn observe(lane: &mut Lane, no: u32) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut note = |on, invoked, what| {
        operations.push(Operation {
            thread: no * THREADS_PER_LANE,
            on,
            invoked,
            returned: now(),
            maybe: false,
            what,
        });
    };
    let begun = now();
    let listed = lane.branches("").unwrap();
    let mut branches: Vec<Listed> = listed.items.iter().map(listed_of).collect();
    branches.sort_by_key(|branch| branch.no);
    note(MAIN, begun, What::List { branches });
    for info in &listed.items {
        for scan in [false, true] {
            let begun = now();
            let values = contents(&mut lane.on(info.no), scan).unwrap();
            note(info.no.0, begun, What::Snapshot { values });
        }
        let begun = now();
        let info = lane.on(info.no).describe().unwrap();
        let (head, changes) = (info.head.as_ref().map_or(0, short), info.changes);
        note(info.no.0, begun, What::Describe { head, changes });
    }
    operations
}

fn listed_of(info: &BranchInfo) -> Listed {
    let name = info.name.strip_prefix('b').map(|no| no.parse().unwrap());
    Listed {
        no: info.no.0,
        name: name.unwrap_or(0),
        head: info.head.as_ref().map_or(0, short),
    }
}

/// All keys at once, by a scan or by a request for each of them.
pub fn contents(lane: &mut Lane, scan: bool) -> Result<Contents, ClientError> {
    let mut contents = Contents::default();
    if scan {
        for found in lane.scan(b"", b"", 0)?.keys {
            contents[usize::from(found.key[0])] = short(&found.id);
        }
        return Ok(contents);
    }
    let keys: [[u8; 1]; KEYS] = std::array::from_fn(|key| [key as u8]);
    let keys = keys.each_ref().map(|key| &key[..]);
    for (value, found) in contents.iter_mut().zip(lane.multi_get(&keys)?) {
        *value = found.map_or(0, |bytes| value_of(&bytes));
    }
    Ok(contents)
}

/// Whether an error is what a client sees of a runtime that was killed.
pub fn is_death(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::RuntimeGone | ClientError::Closed { .. } | ClientError::Socket(_)
    )
}

/// A lane to an agent, for what comes before and after a round.
pub fn quiet_lane(session: &Session, agent: &str) -> Lane {
    common::attach(session, agent)
}
