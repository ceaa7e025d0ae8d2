//! Reading all of an agent, as a client does, and whether that is what may be there.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::agent::call::{BranchInfo, Call, Id, Logged, Revision, TagInfo};
use crate::agent::entry::{Op, Status};
use crate::agent::packed::Scanned;
use crate::agent::set_call::{CandidateInfo, SetCall, SetInfo};
use crate::id::BranchNo;

use super::client::Carries;
use super::oracle::{Commit, End, Head, Keys, Line, Oracle, State};
use super::run::Run;
use super::world::Crash;

/// An agent as it was read.
pub(super) struct Found {
    pub(super) state: State,
    pub(super) numbers: BTreeMap<String, u32>,
    pub(super) sets: BTreeMap<String, u32>,
}

impl Found {
    /// Of an agent that is not there.
    pub(super) fn none() -> Self {
        Self {
            state: State::new(),
            numbers: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }
}

fn head(id: Option<Id>) -> Head {
    id.map_or(Head::None, Head::Known)
}

impl Run {
    /// A call of a reader: it has to go well, after some tries where a shard is busy. `None`: the lane is
    /// closed, or what it needs is damaged and known to be.
    fn must(
        &mut self,
        client: u64,
        on: Option<BranchNo>,
        call: &Call<'_>,
    ) -> Result<Option<super::client::Answer>, Crash> {
        for _ in 0..200 {
            let Some(answer) = self.world.call(client, on, None, call)? else {
                return Ok(None);
            };
            match answer.completion.status {
                Status::Ok => return Ok(Some(answer)),
                Status::Busy => self.world.pass(10_000_000),
                status if self.excuses(status) => return Ok(None),
                status => panic!("{call:?}: {status:?}"),
            }
        }
        panic!("{call:?} is answered Busy for ever");
    }

    /// Lets some time pass before what was answered Busy is asked again.
    fn wait_over(&mut self, tries: &mut u32, answer: &super::client::Answer) {
        *tries += 1;
        let detail = answer.completion.detail;
        assert!(*tries < 2_000, "a read is answered Busy for ever: {detail}");
        self.world.pass(10_000_000);
    }

    /// Keys of a branch or a fork, with their values. `None`: as of [`Run::observe`].
    pub(super) fn read_keys(&mut self, client: u64, on: BranchNo) -> Result<Option<Keys>, Crash> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut tries = 0;
        loop {
            let after = names.last().cloned().unwrap_or_default();
            let what = Carries {
                value: &after,
                branch: Some(on),
                ..Carries::default()
            };
            let Some(answer) = self.world.ask(client, Op::Scan, what)? else {
                return Ok(None);
            };
            match answer.completion.status {
                Status::Ok => {}
                Status::Busy => {
                    self.wait_over(&mut tries, &answer);
                    continue;
                }
                status if self.excuses(status) => return Ok(None),
                status => panic!("a scan: {status:?}"),
            }
            let found = Scanned::parse(&answer.bytes).expect("a list");
            names.extend(found.map(|found| found.key.to_vec()));
            if !answer.completion.more {
                break;
            }
        }
        let mut keys = Keys::new();
        for name in names {
            loop {
                match self.world.read(client, Some(on), &name)? {
                    None => return Ok(None),
                    Some(Ok(value)) => _ = keys.insert(name, Rc::from(value)),
                    Some(Err(answer)) => match answer.completion.status {
                        Status::Busy => {
                            self.wait_over(&mut tries, &answer);
                            continue;
                        }
                        // A volatile write was taken back since.
                        Status::NotFound if !self.world.rollbacks.is_empty() => return Ok(None),
                        status if self.excuses(status) => return Ok(None),
                        status => panic!("a scan found {name:?}: {status:?}"),
                    },
                }
                break;
            }
        }
        Ok(Some(keys))
    }

    /// All of an agent. `None` where something of it can't be read, and that is known, or where writes that were
    /// read were taken back meanwhile.
    pub(super) fn observe(&mut self, client: u64) -> Result<Option<Found>, Crash> {
        let mut found = Found::none();
        let Some(answer) = self.must(client, None, &Call::Branches { after: "" })? else {
            return Ok(None);
        };
        let branches: Vec<BranchInfo> = answer.items();
        found.state.branches.clear();
        for info in branches {
            let Some(keys) = self.read_keys(client, BranchNo(info.no))? else {
                return Ok(None);
            };
            let line = Line {
                head: head(info.head),
                keys,
            };
            found.numbers.insert(info.name.clone(), info.no);
            found.state.branches.insert(info.name, line);
        }
        for (call, public) in [
            (Call::Tags { after: "" }, false),
            (Call::Published { after: "" }, true),
        ] {
            let Some(answer) = self.must(client, None, &call)? else {
                return Ok(None);
            };
            let names = answer.items::<TagInfo<'_>>();
            let names = names
                .iter()
                .map(|tag| (tag.name.to_owned(), Head::Known(tag.target)))
                .collect();
            match public {
                true => found.state.published = names,
                false => found.state.tags = names,
            }
        }
        let list = Call::Superposition(SetCall::List { after: None });
        let Some(answer) = self.must(client, None, &list)? else {
            return Ok(None);
        };
        for set in answer.items::<SetInfo>() {
            let what = SetCall::Candidates {
                set: set.no,
                after: None,
            };
            let Some(answer) = self.must(client, None, &Call::Superposition(what))? else {
                return Ok(None);
            };
            let heads = answer.items::<CandidateInfo<'_>>();
            let heads = heads.iter().map(|it| Head::Known(it.head)).collect();
            found.sets.insert(set.name.clone(), set.no);
            found.state.sets.insert(set.name, heads);
        }
        Ok(Some(found))
    }

    /// Reads an agent of which something is in doubt; it has to be in one of the states it may have.
    pub(super) fn resolve(&mut self, agent: usize, client: u64) -> Result<bool, Crash> {
        let found = self.observe(client)?;
        if !self.world.rollbacks.is_empty() {
            // Some of it may have been read before, some behind what a failed flush took back.
            self.take_notes();
            self.oracle.models[agent].doubt = true;
            return Ok(false);
        }
        let Some(found) = found else {
            return Ok(false);
        };
        let shard = self.world.home(&self.oracle.models[agent].name);
        let last = self.world.seats[shard].shard.log_marks().last.0;
        let Oracle { models, commits } = &mut self.oracle;
        if !models[agent].decide(&found.state, last, &|id| commits.contains_key(id)) {
            self.check_found(agent, &found, &[None]);
        }
        self.meet(agent, &found);
        let actor = &mut self.actors[agent];
        actor.numbers = found.numbers;
        actor.sets = found.sets;
        self.learn(agent, client)?;
        Ok(true)
    }

    /// Notes the checkpoints of which nobody had been told.
    fn meet(&mut self, agent: usize, found: &Found) {
        for line in found.state.branches.values() {
            if let Head::Known(id) = line.head
                && !self.oracle.commits.contains_key(&id)
            {
                self.untold.push((agent, id));
            }
        }
    }

    /// Reads the checkpoints of which nobody had been told.
    pub(super) fn learn(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let (own, others) = std::mem::take(&mut self.untold)
            .into_iter()
            .partition(|it| it.0 == agent);
        self.untold = others;
        let own: Vec<(usize, Id)> = own;
        for (_, id) in own {
            let Some(keys) = self.read_commit(client, id)? else {
                assert!(self.excused, "a head can't be read");
                continue;
            };
            let history = self.history(client, id)?.unwrap_or_default();
            let parents = history.into_iter().filter(|it| *it != id).collect();
            self.oracle.commits.insert(id, Commit { keys, parents });
        }
        Ok(())
    }

    /// Whether what was found may be; `ends`: where the log may have ended.
    pub(super) fn is_allowed(&self, agent: usize, found: &State, end: Option<End>) -> bool {
        let known = self.oracle.is_known();
        self.oracle.models[agent].allows(found, end, &known)
    }

    pub(super) fn check_found(&self, agent: usize, found: &Found, ends: &[Option<End>]) {
        if ends
            .iter()
            .any(|end| self.is_allowed(agent, &found.state, *end))
        {
            return;
        }
        let model = &self.oracle.models[agent];
        let mut text = model.describe();
        for end in ends {
            for state in model.allowed(*end).take(4) {
                text += &format!("  {end:?}: {}\n", state.difference(&found.state));
            }
        }
        panic!("{} is in no state that it may have:\n{text}", model.name);
    }

    /// What was read is what is there from now on; checkpoints that nobody was told of get their names.
    pub(super) fn believe(&mut self, agent: usize, found: Found) {
        self.meet(agent, &found);
        let shard = self.world.home(&self.oracle.models[agent].name);
        self.oracle.models[agent].believe(found.state, shard);
        let actor = &mut self.actors[agent];
        actor.numbers = found.numbers;
        actor.sets = found.sets;
    }

    /// What a checkpoint holds: read by a fork of it. `None`: it can't be read, and that is known; or it is
    /// not there.
    pub(super) fn read_commit(&mut self, client: u64, id: Id) -> Result<Option<Keys>, Crash> {
        let fork = Call::Fork {
            from: Revision::Checkpoint(id),
        };
        let mut tries = 0;
        let answer = loop {
            let Some(answer) = self.world.call(client, None, None, &fork)? else {
                return Ok(None);
            };
            match answer.completion.status {
                Status::Ok => break answer,
                Status::Busy => self.wait_over(&mut tries, &answer),
                _ => return Ok(None),
            }
        };
        let no = BranchNo(answer.items::<BranchInfo>()[0].no);
        let keys = self.read_keys(client, no)?;
        _ = self.world.call(client, Some(no), None, &Call::Discard)?;
        Ok(keys)
    }

    /// The history before a checkpoint, as far as it is kept.
    pub(super) fn history(&mut self, client: u64, from: Id) -> Result<Option<Vec<Id>>, Crash> {
        let (mut ids, mut frontier) = (Vec::new(), Vec::new());
        loop {
            let log = Call::Log {
                from: Revision::Checkpoint(from),
                frontier: std::mem::take(&mut frontier),
                limit: 0,
            };
            let Some(answer) = self.must(client, None, &log)? else {
                return Ok(None);
            };
            for item in answer.items::<Logged<'_>>() {
                match item {
                    Logged::Entry { id, .. } => ids.push(id),
                    Logged::Next { id } => frontier.push(id),
                }
            }
            if frontier.is_empty() {
                return Ok(Some(ids));
            }
        }
    }
}
