//! What one lane asks, drawn from a seed, and the record of it.

use helios::client::{
    BranchInfo, Checkpointed, ClientError, Expect, Lane, Merged, NewCheckpoint, PutOptions,
    Revision, Session,
};
use helios::config::Durability;
use helios::id::{BranchNo, ObjectId};
use serde::{Deserialize, Serialize};

use crate::common::{self, Random};
use crate::history::{
    Branch, Came, Checkpoint, Contents, KEYS, Key, Listed, MAIN, Name, Operation, Policy, Source,
    THREADS_PER_LANE, What, now, short, value_of,
};

/// Names of branches, `main` included.
const NAMES: u64 = 4;
/// Lengths of values; the longest enter no window.
const LENGTHS: [usize; 5] = [8, 40, 200, 1_000, 6_000];
/// Checkpoints that a lane remembers.
const KNOWN_MAX: usize = 12;

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

    /// What the checkpoint of the next operation carries, so that it can be told from all others in a log.
    fn token(&self) -> [u8; 12] {
        let mut token = *b"from        ";
        token[4..8].copy_from_slice(&self.no.to_le_bytes());
        token[8..].copy_from_slice(&(self.record.operations.len() as u32).to_le_bytes());
        token
    }

    /// What the head must be, of some operations.
    fn expect(&mut self) -> Option<Option<ObjectId>> {
        (self.random.below(3) == 0).then_some(self.head)
    }

    fn made(&mut self, made: &Checkpointed, contents: Option<Contents>) -> Checkpoint {
        self.head = Some(made.id);
        self.remember(made.id);
        let made_now = Made {
            id: *made.id.as_bytes(),
            parents: made.parents.iter().map(short).collect(),
            contents,
        };
        self.record.made.push((self.agent, made_now));
        short(&made.id)
    }

    fn remember(&mut self, id: ObjectId) {
        if self.known.len() == KNOWN_MAX {
            self.known.remove(0);
        }
        self.known.push(id);
    }

    fn checkpoint(&mut self, on: Branch) -> Result<(), Gone> {
        let (token, expect) = (self.token(), self.expect());
        let new = NewCheckpoint {
            opaque: &token,
            expect,
            ..NewCheckpoint::default()
        };
        let expected = expect.map(|head| head.as_ref().map_or(0, short));
        let what = |made| What::Checkpoint { expected, made };
        let (from, to, done) = self.ask(
            on,
            || Some(what(u64::from_le_bytes(*token[4..].first_chunk().unwrap()))),
            |lane| lane.checkpoint(&new),
        )?;
        match done {
            Ok(made) => {
                let made = self.made(&made, None);
                self.note(on, (from, to), what(made));
            }
            Err(ClientError::StaleHead { current }) => {
                self.stale(on, (from, to), expected, current)
            }
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn stale(
        &mut self,
        on: Branch,
        times: (u64, u64),
        expected: Option<Checkpoint>,
        current: Option<ObjectId>,
    ) {
        self.head = current;
        let (expected, current) = (expected.unwrap(), current.as_ref().map_or(0, short));
        self.note(on, times, What::StaleHead { expected, current });
    }

    /// A checkpoint that the lane has heard of, or a head.
    fn source(&mut self) -> (Source, Option<ObjectId>, Option<Name>) {
        let known = self.known.len() as u64;
        match self.random.below(3) {
            0 => (Source::Head, None, None),
            1 if known > 0 => {
                let id = self.known[self.random.below(known) as usize];
                (Source::Checkpoint(short(&id)), Some(id), None)
            }
            _ => {
                let name = self.random.below(NAMES) as Name;
                (Source::Branch(name), None, Some(name))
            }
        }
    }

    fn restore(&mut self, on: Branch) -> Result<(), Gone> {
        let (to, id, asked) = self.source();
        let what = What::Restore { to };
        let (begun, ended, done) = self.ask(
            on,
            || Some(what.clone()),
            |lane| lane.restore(revision(id, &name_of(asked), asked), true),
        )?;
        match done {
            Ok(()) => self.note(on, (begun, ended), what),
            Err(error) => self.refused(on, (begun, ended), &error, asked),
        }
        Ok(())
    }

    fn switch(&mut self) -> Result<(), Gone> {
        let name = self.random.below(NAMES) as Name;
        let on = self.on;
        let (from, to, done) = self.ask(on, || None, |lane| lane.switch(&name_of(Some(name))))?;
        match done {
            Ok(info) => {
                self.on = info.no.0;
                self.heard(&info);
                let what = What::Switch {
                    name,
                    no: info.no.0,
                    head: info.head.as_ref().map_or(0, short),
                    changes: info.changes,
                };
                self.note(on, (from, to), what);
            }
            Err(ClientError::NoSuchBranch) => self.note(on, (from, to), What::NoSuchName { name }),
            Err(error) => self.refused(on, (from, to), &error, Some(name)),
        }
        Ok(())
    }

    /// Remembers a branch and its head.
    fn heard(&mut self, info: &BranchInfo) {
        self.head = info.head;
        if let Some(head) = info.head {
            self.remember(head);
        }
        if !info.name.is_empty() && !self.branches.contains(&info.no.0) {
            self.branches.push(info.no.0);
        }
    }

    fn create(&mut self, on: Branch) -> Result<(), Gone> {
        let name = 1 + self.random.below(NAMES - 1) as Name;
        let (from, id, asked) = self.source();
        let what = |no, head| What::Create {
            name,
            from,
            no,
            head,
        };
        let (begun, ended, done) = self.ask(
            on,
            || Some(what(Branch::MAX, 0)),
            |lane| {
                let source = name_of(asked);
                lane.branch(&name_of(Some(name)), revision(id, &source, asked))
            },
        )?;
        match done {
            Ok(info) => {
                self.heard(&info);
                let head = info.head.as_ref().map_or(0, short);
                self.note(on, (begun, ended), what(info.no.0, head));
            }
            Err(ClientError::NameTaken) => self.note(on, (begun, ended), What::NameTaken { name }),
            Err(error) => self.refused(on, (begun, ended), &error, asked),
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Gone> {
        let name = self.random.below(NAMES) as Name;
        let on = self.on;
        let what = What::Remove { name };
        let (from, to, done) = self.ask(
            on,
            || Some(what.clone()),
            |lane| lane.delete_branch(&name_of(Some(name)), true),
        )?;
        match done {
            Ok(()) => self.note(on, (from, to), what),
            Err(ClientError::NoSuchBranch) => self.note(on, (from, to), What::NoSuchName { name }),
            Err(error) => self.refused(on, (from, to), &error, Some(name)),
        }
        Ok(())
    }

    fn describe(&mut self, on: Branch) -> Result<(), Gone> {
        let (from, to, done) = self.ask(on, || None, Lane::describe)?;
        match done {
            Ok(info) => {
                self.heard(&info);
                let head = info.head.as_ref().map_or(0, short);
                let changes = info.changes;
                self.note(on, (from, to), What::Describe { head, changes });
            }
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn merge(&mut self, on: Branch) -> Result<(), Gone> {
        // Mostly refused, if what the branch has was not saved.
        self.checkpoint(on)?;
        let source = self.source();
        let expect = self.expect();
        self.merge_of(on, source, expect)
    }

    fn merge_of(
        &mut self,
        on: Branch,
        (source, id, asked): (Source, Option<ObjectId>, Option<Name>),
        expect: Option<Option<ObjectId>>,
    ) -> Result<(), Gone> {
        let policy = [Policy::Ours, Policy::Theirs, Policy::Fail][self.random.below(3) as usize];
        let token = self.token();
        let expected = expect.map(|head| head.as_ref().map_or(0, short));
        let new = NewCheckpoint {
            opaque: &token,
            expect,
            ..NewCheckpoint::default()
        };
        let rules = [(&b""[..], asked_policy(policy))];
        let what = |came| What::Merge {
            from: source,
            policy,
            expected,
            came,
        };
        let token = u64::from_le_bytes(*token[4..].first_chunk().unwrap());
        let (begun, ended, done) = self.ask(
            on,
            || Some(what(Came::Made(token))),
            |lane| lane.merge(revision(id, &name_of(asked), asked), &rules, &new),
        )?;
        let came = match done {
            Ok(Merged::Nothing) => Came::Nothing,
            Ok(Merged::FastForward { head }) => {
                self.head = Some(head);
                Came::Ahead(short(&head))
            }
            Ok(Merged::Merged(made)) => Came::Made(self.made(&made, None)),
            Err(ClientError::Conflicts { listed, .. }) => {
                Came::Conflicts(listed.iter().map(|found| found.key[0]).collect())
            }
            Err(ClientError::Unrelated) => Came::Unrelated,
            Err(ClientError::Unsaved { changes }) => Came::Unsaved(changes),
            Err(ClientError::StaleHead { current }) => {
                self.stale(on, (begun, ended), expected, current);
                return Ok(());
            }
            Err(error) => {
                self.refused(on, (begun, ended), &error, asked);
                return Ok(());
            }
        };
        self.note(on, (begun, ended), what(came));
        Ok(())
    }

    /// Reads and writes in a fork, and merges it or keeps it or drops it.
    fn transaction(&mut self) -> Result<(), Gone> {
        let on = self.on;
        let (source, id, asked) = self.source();
        let (begun, ended, done) = self.ask(
            on,
            || None,
            |lane| lane.fork(revision(id, &name_of(asked), asked)),
        )?;
        let info = match done {
            Ok(info) => info,
            Err(error) => {
                self.refused(on, (begun, ended), &error, asked);
                return Ok(());
            }
        };
        let (fork, head) = (info.no.0, info.head.as_ref().map_or(0, short));
        let what = What::Fork {
            from: source,
            no: fork,
            head,
        };
        self.note(on, (begun, ended), what);
        for _ in 0..2 {
            let key = self.random.below(KEYS as u64) as Key;
            self.get(fork, key)?;
            self.put(fork, key)?;
        }
        self.snapshot(fork)?;
        if self.random.below(3) == 0 && self.keep(fork)? {
            return Ok(());
        }
        let made = self.record.made.len();
        self.checkpoint(fork)?;
        if let Some((_, made)) = self.record.made.get_mut(made) {
            let id = ObjectId::from_bytes(made.id);
            let read = contents(&mut self.lane.on(info.no), false);
            // Nothing else names it, if it is not merged.
            made.contents = read.ok();
            let expect = (self.random.below(2) == 0).then_some(info.head);
            let source = (Source::Checkpoint(short(&id)), Some(id), None);
            self.merge_of(on, source, expect)?;
        }
        let (from, to, done) = self.ask(on, || None, |lane| lane.discard(info.no))?;
        match done {
            Ok(()) => self.note(fork, (from, to), What::Discard),
            Err(error) => self.refused(fork, (from, to), &error, None),
        }
        Ok(())
    }

    fn keep(&mut self, fork: Branch) -> Result<bool, Gone> {
        let name = 1 + self.random.below(NAMES - 1) as Name;
        let what = |no| What::Keep { name, no };
        let on = self.on;
        let invoked = now();
        let kept = self.lane.keep(BranchNo(fork), &name_of(Some(name)));
        let times = (invoked, now());
        match kept {
            Ok(info) => {
                self.heard(&info);
                self.note(fork, times, what(info.no.0));
                return Ok(true);
            }
            Err(error) if self.plan.dies && is_death(&error) => {
                let times = (invoked, u64::MAX);
                self.note_as(self.agent, 0, fork, times, true, what(Branch::MAX));
                return Err(Gone);
            }
            Err(error) => self.refused(on, times, &error, Some(name)),
        }
        Ok(false)
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

fn name_of(name: Option<Name>) -> String {
    match name {
        None | Some(0) => "main".to_owned(),
        Some(no) => format!("b{no}"),
    }
}

fn revision(id: Option<ObjectId>, name: &str, asked: Option<Name>) -> Revision<'_> {
    match (id, asked) {
        (Some(id), _) => Revision::Checkpoint(*id.as_bytes()),
        (None, Some(_)) => Revision::Branch(name),
        (None, None) => Revision::Head,
    }
}

fn asked_policy(policy: Policy) -> helios::client::Policy {
    match policy {
        Policy::Ours => helios::client::Policy::Ours,
        Policy::Theirs => helios::client::Policy::Theirs,
        Policy::Fail => helios::client::Policy::Fail,
    }
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
