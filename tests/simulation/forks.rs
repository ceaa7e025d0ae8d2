//! Forks and superpositions: states that a lane tries out.

use std::rc::Rc;

use crate::agent::call::{BranchInfo, Call, Revision};
use crate::agent::entry::{Op, Status};
use crate::agent::set_call::{Choice, Collapsed, SetCall, SetInfo};
use crate::id::BranchNo;

use super::client::Carries;
use super::oracle::{Deed, Head, Line};
use super::run::Run;
use super::world::Crash;

/// Forks that a lane has at once.
const FORKS_MAX: usize = 3;

impl Run {
    pub(super) fn fork(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        if self.actors[agent].forks.len() < FORKS_MAX
            && let Some(id) = self.some_commit(agent)
        {
            let from = Revision::Checkpoint(id);
            if let Some(answer) = self.world.call(client, None, None, &Call::Fork { from })?
                && answer.is_good()
            {
                let no = answer.items::<BranchInfo>()[0].no;
                let line = Line {
                    head: Head::Known(id),
                    keys: self.oracle.commits[&id].keys.clone(),
                };
                self.actors[agent].forks.push((no, line));
            }
        }
        let Some((no, mut line)) = self.actors[agent].forks.pop() else {
            return Ok(());
        };
        let on = Some(BranchNo(no));
        for _ in 0..self.world.random.below(4) {
            let (key, value) = (self.some_key(), self.some_value(true));
            let what = Carries {
                key: &key,
                value: &value,
                branch: on,
                ..Carries::default()
            };
            let Some(answer) = self.world.ask(client, Op::Put, what)? else {
                return Ok(());
            };
            if answer.is_good() {
                line.keys.insert(key, Rc::clone(&value));
            } else {
                self.check_refusal(answer.completion.status);
            }
            if self.disk_failed {
                // What is in the fork may be taken back by a flush that fails.
                _ = self.world.call(client, on, None, &Call::Discard)?;
                return Ok(());
            }
        }
        if let Some(keys) = self.read_keys(client, BranchNo(no))?
            && !self.disk_failed
        {
            assert!(keys == line.keys, "a fork holds what it should");
        }
        match self.world.random.below(3) {
            0 => _ = self.world.call(client, on, None, &Call::Discard)?,
            1 => return self.keep_fork(agent, client, no, line),
            _ => self.actors[agent].forks.push((no, line)),
        }
        Ok(())
    }

    fn keep_fork(&mut self, agent: usize, client: u64, no: u32, line: Line) -> Result<(), Crash> {
        let name = format!("b{}", self.world.random.below(4));
        if self.actors[agent].numbers.contains_key(&name) {
            self.actors[agent].forks.push((no, line));
            return Ok(());
        }
        let call = Call::Keep { name: &name };
        let deed = Deed::Move(name.clone(), line.clone());
        match self.ask_deed(agent, client, Some(BranchNo(no)), &call, deed)? {
            Some((answer, _)) => {
                self.table.fire("fork kept");
                let info = answer.items::<BranchInfo>().remove(0);
                self.actors[agent].numbers.insert(name, info.no);
            }
            None => self.actors[agent].forks.push((no, line)),
        }
        Ok(())
    }

    /// Something about a superposition.
    pub(super) fn superpose(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let name = format!("s{}", self.world.random.below(2));
        let known = self.actors[agent].sets.get(&name).copied();
        let Some(set) = known else {
            let create = SetCall::Create {
                name: &name,
                half_life_ms: 0,
                ttl_ms: 0,
                bound: 0_f64.to_le_bytes(),
            };
            let call = Call::Superposition(create);
            let deed = Deed::Set(name.clone(), Vec::new());
            if let Some((answer, _)) = self.ask_deed(agent, client, None, &call, deed)? {
                let no = answer.items::<SetInfo>().remove(0).no;
                self.actors[agent].sets.insert(name, no);
            }
            return Ok(());
        };
        let mut heads = self.oracle.models[agent].live().sets[&name].clone();
        match self.world.random.below(6) {
            0..=3 => {
                let Some(id) = self.some_commit(agent) else {
                    return Ok(());
                };
                if heads.len() >= 4 {
                    return Ok(());
                }
                let add = SetCall::Add {
                    set,
                    from: Revision::Checkpoint(id),
                    weight: 1_f64.to_le_bytes(),
                    label: "",
                };
                heads.push(Head::Known(id));
                let deed = Deed::Set(name, heads);
                self.ask_deed(agent, client, None, &Call::Superposition(add), deed)?;
            }
            4 => {
                let call = Call::Superposition(SetCall::Release { set });
                let deed = Deed::Release(name.clone());
                if self.ask_deed(agent, client, None, &call, deed)?.is_some() {
                    self.actors[agent].sets.remove(&name);
                }
            }
            _ => self.collapse(agent, client, &name, set, &heads)?,
        }
        Ok(())
    }

    fn collapse(
        &mut self,
        agent: usize,
        client: u64,
        name: &str,
        set: u32,
        heads: &[Head],
    ) -> Result<(), Crash> {
        let pick = self.world.random.below(heads.len().max(1));
        let Some(Head::Known(id)) = heads.get(pick).copied() else {
            return Ok(());
        };
        let main = &self.oracle.models[agent].live().branches["main"];
        let expect = match main.head {
            Head::Known(id) => Some(id),
            _ => None,
        };
        let collapse = SetCall::Collapse {
            set,
            choice: Choice::Candidate(pick as u32),
            into: None,
            expect: Some(expect),
            force: true,
        };
        let line = Line {
            head: Head::Known(id),
            keys: self.oracle.commits[&id].keys.clone(),
        };
        let deed = Deed::Collapse(name.to_owned(), "main".into(), line);
        let call = Call::Superposition(collapse);
        if let Some((answer, _)) = self.ask_deed(agent, client, None, &call, deed)? {
            let collapsed: Collapsed = answer.items().remove(0);
            assert_eq!(collapsed.head, id, "the candidate that was chosen");
            self.table.fire("collapse");
            self.actors[agent].sets.remove(name);
        }
        Ok(())
    }

    /// What a write may be refused with.
    pub(super) fn check_refusal(&self, status: Status) {
        let failed = matches!(
            status,
            Status::NoSpace | Status::IoFailed | Status::ReadOnly
        );
        let good = status == Status::Busy || (failed && self.disk_failed) || self.excuses(status);
        assert!(good, "a write was refused: {status:?}");
    }

    /// What a call may be refused with, of which nothing was wrong.
    pub(super) fn check_call_refusal(&self, agent: usize, status: Status, call: &Call<'_>) {
        let gone = matches!(status, Status::NoSuchRevision | Status::Unrelated)
            && self.actors[agent].forgets;
        let unsaved = status == Status::Unsaved && matches!(call, Call::Merge { .. });
        if !gone && !unsaved {
            self.check_refusal(status);
        }
    }
}
