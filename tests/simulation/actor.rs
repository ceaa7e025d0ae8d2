//! Agents: what one does when it is its turn, and what it makes of the answers.
//!
//! An honest agent keeps some puts, deletes and reads under way, and asks calls alone. One that is slow leaves
//! its completions lying; one that dies vanishes in the middle, and comes back as another process that
//! has to find what it left in a state that may be.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::agent::CloseReason;
use crate::agent::entry::{Completion, Op, Status};
use crate::agent::packed;
use crate::config::Durability;
use crate::id::BranchNo;

use super::client::{Carries, Request};
use super::oracle::{Deed, Line, Outcome, Value, brief};
use super::run::Run;
use super::world::Crash;

/// Keys that an agent has.
const KEYS: usize = 20;
/// Requests of one lane under way.
const REQUESTS_MAX: usize = 6;
/// Longest value that is put with others under way.
const SHORT_BYTES_MAX: usize = 20_000;

/// What a request is for.
#[derive(Debug)]
enum What {
    /// Entries from the first, so many.
    Write { entry: usize, count: usize },
    Get {
        branch: String,
        key: Vec<u8>,
        next: usize,
    },
}

/// An agent's client.
#[derive(Default)]
pub(super) struct Actor {
    pub(super) client: Option<u64>,
    pending: VecDeque<(Request, What)>,
    /// Numbers of branches and of superpositions.
    pub(super) numbers: BTreeMap<String, u32>,
    pub(super) sets: BTreeMap<String, u32>,
    pub(super) forks: Vec<(u32, Line)>,
    next: u64,
    /// Looks at completions only now and then.
    pub(super) slow: bool,
    /// History of some branch may have been given up.
    pub(super) forgets: bool,
}

impl Actor {
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// The process is gone.
    pub(super) fn forget_lane(&mut self) {
        self.client = None;
        self.pending.clear();
        self.forks.clear();
    }
}

pub(super) fn key(no: usize) -> Vec<u8> {
    format!("k/{no:02}").into_bytes()
}

impl Run {
    pub(super) fn some_key(&mut self) -> Vec<u8> {
        key(self.world.random.below(KEYS))
    }

    /// A value, of contents that are repeated now and then.
    pub(super) fn some_value(&mut self, short: bool) -> Value {
        let random = &mut self.world.random;
        let bytes = match random.below(40) {
            0 => 0,
            1..=20 => random.below(200),
            21..=34 => 200 + random.below(1_800),
            35..=37 => 2_000 + random.below(10_000),
            _ if short => random.below(SHORT_BYTES_MAX),
            _ => 20_000 + random.below(150_000),
        };
        let seed = match random.below(8) {
            0 => random.below(4) as u64,
            _ => random.next(),
        };
        let mut content = crate::segment::memory::Random(seed);
        let mut value = Vec::with_capacity(bytes + 8);
        while value.len() < bytes {
            value.extend_from_slice(&content.next().to_le_bytes());
        }
        value.truncate(bytes);
        Rc::from(value)
    }

    pub(super) fn some_durability(&mut self) -> Durability {
        match self.world.random.below(8) {
            0 | 1 => Durability::Volatile,
            2 | 3 => Durability::Power,
            _ => Durability::Process,
        }
    }

    /// An agent's turn.
    pub(super) fn act(&mut self, agent: usize) -> Result<(), Crash> {
        let Some(client) = self.actors[agent].client else {
            return self.come(agent);
        };
        if !self.actors[agent].slow || self.world.random.below(12) == 0 {
            self.take_completions(agent, client);
        }
        if self.world.clients[&client].lane.closed().is_some() {
            self.take_completions(agent, client);
            return self.lane_closed(agent, client);
        }
        if self.oracle.models[agent].doubt {
            // What is under way is answered first.
            if self.actors[agent].is_idle() {
                self.resolve(agent, client)?;
            } else {
                self.take_completions(agent, client);
            }
            return Ok(());
        }
        if self.actors[agent].is_idle() && self.world.random.below(3) == 0 {
            return self.ask_alone(agent, client);
        }
        if self.actors[agent].pending.len() < REQUESTS_MAX {
            self.submit_one(agent, client);
        }
        Ok(())
    }

    fn come(&mut self, agent: usize) -> Result<(), Crash> {
        let name = self.oracle.models[agent].name.clone();
        match self.world.attach(&name, true, None)? {
            Ok(client) => {
                self.actors[agent].client = Some(client);
                // What the lane before it left is not known, nor are the numbers of branches.
                self.oracle.models[agent].doubt = true;
            }
            Err(error) => self
                .world
                .log
                .add(format_args!("{name} is not attached: {error}")),
        }
        Ok(())
    }

    fn lane_closed(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let reason = self.world.clients[&client].lane.closed();
        let name = &self.oracle.models[agent].name;
        // A move whose last word may have been lost with a sync ends that way.
        let expected = self.disk_failed && reason == Some(CloseReason::ShardFailed);
        assert!(expected, "the lane of {name} was closed: {reason:?}");
        self.leave(agent);
        Ok(())
    }

    /// The process of an agent is gone, whatever it was doing.
    pub(super) fn leave(&mut self, agent: usize) {
        if let Some(client) = self.actors[agent].client {
            self.world.drop_client(client);
            self.oracle.models[agent].doubt = true;
        }
        self.actors[agent].forget_lane();
    }

    fn submit_one(&mut self, agent: usize, client: u64) {
        let (branch, number) = self.some_branch(agent);
        let key = self.some_key();
        let durability = self.some_durability();
        let no = self.actors[agent].next;
        let pick = self.world.random.below(10);
        let model = &self.oracle.models[agent];
        let mut what = Carries {
            key: &key,
            branch: number,
            ..Carries::default()
        };
        if pick < 4 {
            // A read looks into the window first, as clients do.
            let mut seen = Vec::new();
            let reader = &self.world.clients[&client];
            let view = reader.lane.view();
            if number.is_none() && reader.window.get_into(view, &key, &mut seen).is_some() {
                let allowed = model.readable(&branch, &key, model.next());
                self.check_read(agent, &branch, &key, Some(seen), &allowed);
                self.table.fire("window hit");
                return;
            }
            let next = model.next();
            if let Some(request) = self.world.submit(client, no, Op::Get, what) {
                let what = What::Get { branch, key, next };
                self.keep(agent, request, what);
            } else {
                self.table.fire("full ring");
            }
            return;
        }
        what.durability = Some(durability);
        let mut packed = Vec::new();
        let value;
        let (op, deeds) = match pick {
            4 => (Op::Delete, vec![Deed::Delete(branch, key.clone())]),
            5 => {
                let pairs: Vec<_> = (0..1 + self.world.random.below(4))
                    .map(|_| (self.some_key(), self.some_value(true)))
                    .collect();
                for (key, value) in &pairs {
                    packed::push_pair(&mut packed, key, value).expect("a good pair");
                }
                if packed.len() > 60_000 {
                    return;
                }
                (what.key, what.value) = (&[], &packed);
                // Of one that nobody was told of, a part may be there.
                let one = |pair| Deed::Put(branch.clone(), vec![pair]);
                (Op::MultiPut, pairs.into_iter().map(one).collect())
            }
            _ => {
                value = self.some_value(true);
                what.value = &value;
                let pair = (key.clone(), Rc::clone(&value));
                (Op::Put, vec![Deed::Put(branch, vec![pair])])
            }
        };
        match self.world.submit(client, no, op, what) {
            Some(request) => {
                let model = &mut self.oracle.models[agent];
                let (entry, count) = model.begin_all(deeds, durability);
                self.keep(agent, request, What::Write { entry, count });
            }
            None => self.table.fire("full ring"),
        }
    }

    fn keep(&mut self, agent: usize, request: Request, what: What) {
        let actor = &mut self.actors[agent];
        actor.next += 1;
        actor.pending.push_back((request, what));
    }

    /// A branch, and the number that entries name it by; none for the lane's own.
    pub(super) fn some_branch(&mut self, agent: usize) -> (String, Option<BranchNo>) {
        let numbers = &self.actors[agent].numbers;
        let pick = self.world.random.below(2 * numbers.len().max(1));
        match numbers.iter().nth(pick) {
            Some((name, no)) if name != "main" => (name.clone(), Some(BranchNo(*no))),
            _ => ("main".to_owned(), None),
        }
    }

    pub(super) fn take_completions(&mut self, agent: usize, client: u64) {
        while let Some((completion, shard, undone)) = self.world.poll(client) {
            let pending = &mut self.actors[agent].pending;
            let at = pending
                .iter()
                .position(|(request, _)| request.no == completion.user_data)
                .expect("an answer to something that was asked");
            let (request, what) = pending.remove(at).expect("just found");
            let bytes = self.world.finish(client, request, &completion);
            let status = completion.status;
            let name = &self.oracle.models[agent].name;
            self.world.log.add(format_args!(
                "{name}: {what:?}: {status:?} {}",
                completion.value_bytes
            ));
            match what {
                What::Write { entry, count } => {
                    for entry in entry..entry + count {
                        self.written(agent, entry, &completion, shard, undone);
                        if count > 1
                            && let Some(known) = self.oracle.models[agent].entry(entry)
                            && let Outcome::Done { after, .. } = &mut known.outcome
                        {
                            *after = 0;
                        }
                    }
                }
                What::Get { branch, key, next } => {
                    let allowed = self.oracle.models[agent].readable(&branch, &key, next);
                    match status {
                        // Of a long value only the beginning.
                        Status::Ok if completion.more => {
                            let begins = |it: &Option<Value>| {
                                it.as_ref().is_some_and(|it| it.starts_with(&bytes))
                            };
                            assert!(allowed.iter().any(begins), "{key:?} of {branch}");
                        }
                        Status::Ok => self.check_read(agent, &branch, &key, Some(bytes), &allowed),
                        Status::NotFound => self.check_read(agent, &branch, &key, None, &allowed),
                        Status::Busy => {}
                        status if self.excuses(status) => {}
                        status => panic!("a read of {key:?}: {status:?}"),
                    }
                }
            }
        }
    }

    fn check_read(
        &self,
        agent: usize,
        branch: &str,
        key: &[u8],
        found: Option<Vec<u8>>,
        allowed: &[Option<Value>],
    ) {
        if !allowed.iter().any(|it| it.as_deref() == found.as_deref()) {
            let model = &self.oracle.models[agent];
            let found = found.map(Rc::from);
            let allowed: Vec<_> = allowed.iter().map(|it| brief(it.as_ref())).collect();
            panic!(
                "{} {branch}/{}: read {} and not one of {allowed:?}\n{}",
                model.name,
                String::from_utf8_lossy(key),
                brief(found.as_ref()),
                model.describe()
            );
        }
    }

    /// Notes what came of a write.
    pub(super) fn written(
        &mut self,
        agent: usize,
        entry: usize,
        completion: &Completion,
        shard: usize,
        undone: bool,
    ) {
        let status = completion.status;
        if !matches!(status, Status::Ok | Status::NotFound) {
            self.check_refusal(status);
        }
        self.settle_entry(agent, entry, completion, shard, undone);
    }

    /// Notes how something ended that was asked for.
    pub(super) fn settle_entry(
        &mut self,
        agent: usize,
        entry: usize,
        completion: &Completion,
        shard: usize,
        undone: bool,
    ) {
        let status = completion.status;
        let model = &mut self.oracle.models[agent];
        if undone {
            model.doubt = true;
            return;
        }
        let upto = completion.value_bytes;
        let Some(known) = model.entry(entry) else {
            return;
        };
        known.outcome = match status {
            // A call that found nothing to do.
            Status::Ok if upto == 0 => Outcome::Refused,
            Status::Ok => Outcome::Done {
                shard,
                after: upto.saturating_sub(1),
                upto,
            },
            // It was done, and did not reach the device.
            Status::IoFailed | Status::ReadOnly if known.durability == Durability::Power => {
                model.doubt = true;
                return;
            }
            _ => Outcome::Refused,
        };
        if status == Status::Ok {
            self.acknowledged(shard, upto, completion.durability);
        }
    }

    /// What was promised now for a place in a shard's log.
    pub(super) fn acknowledged(&mut self, shard: usize, upto: u64, durability: Option<Durability>) {
        let promised = &mut self.promised[shard];
        match durability {
            Some(Durability::Power) => {
                promised.power = promised.power.max(upto);
                promised.process = promised.process.max(upto);
            }
            Some(Durability::Process) => promised.process = promised.process.max(upto),
            _ => {}
        }
    }
}
