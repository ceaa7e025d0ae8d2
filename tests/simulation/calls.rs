//! What an agent asks alone: calls about versions, and large values.
//!
//! A piece is a function here, and a line in [`Run::ask_alone`]: it makes a deed of what it asks, so that a
//! crash in the middle leaves it in doubt, and says what the deed came to.

use std::rc::Rc;

use crate::agent::call::{Call, Checkpointed, Id, Policy, Revision};
use crate::agent::entry::{Op, Status};
use crate::config::Durability;
use crate::id::{BranchNo, Retention};
use crate::segment::PART_BYTES_MAX;

use super::client::{Answer, Carries};
use super::oracle::{Commit, Deed, Head, Keys, Line, Outcome};
use super::run::Run;
use super::world::Crash;

/// Names of branches beside `main`, and of tags.
const NAMES: usize = 4;

pub(super) const CHECKPOINT: Call<'_> = Call::Checkpoint {
    opaque: b"",
    pairs: b"",
    expect: None,
};

impl Run {
    pub(super) fn ask_alone(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        match self.world.random.below(20) {
            0..=6 => self.checkpoint(agent, client),
            7 | 8 => self.restore(agent, client),
            9 | 10 => self.make_branch(agent, client),
            11 => self.remove_branch(agent, client),
            12 => self.rename_branch(agent, client),
            13 | 14 => self.tag(agent, client),
            15 => self.merge(agent, client),
            16 => self.retain(agent, client),
            17 => self.fork(agent, client),
            18 => self.superpose(agent, client),
            _ => self.put_large(agent, client),
        }
    }

    /// Asks a call that does something, and notes what it came to. The answer, if it was done.
    pub(super) fn ask_deed(
        &mut self,
        agent: usize,
        client: u64,
        on: Option<BranchNo>,
        call: &Call<'_>,
        deed: Deed,
    ) -> Result<Option<(Answer, usize)>, Crash> {
        let durability = match self.some_durability() {
            Durability::Volatile => Durability::Process,
            other => other,
        };
        let entry = self.oracle.models[agent].begin(deed, durability);
        let answer = self.world.call(client, on, Some(durability), call)?;
        let Some(answer) = answer else {
            self.oracle.models[agent].doubt = true;
            return Ok(None);
        };
        let good = answer.is_good();
        if !good {
            self.check_call_refusal(agent, answer.completion.status, call);
        }
        self.settle_entry(
            agent,
            entry,
            &answer.completion,
            answer.shard,
            answer.undone,
        );
        Ok(good.then_some((answer, entry)))
    }

    fn line(&self, agent: usize, branch: &str) -> Line {
        let mut live = self.oracle.models[agent].live();
        live.branches.remove(branch).unwrap_or_else(Line::empty)
    }

    pub(super) fn told(&mut self, agent: usize, entry: usize, id: Id, commit: Commit) {
        let name = &self.oracle.models[agent].name;
        self.world
            .log
            .add(format_args!("{name} made {:?}", Head::Known(id)));
        let known = self.oracle.commits.insert(id, commit.clone());
        assert!(
            known.is_none_or(|known| known.keys == commit.keys),
            "one id of two checkpoints"
        );
        if let Some(entry) = self.oracle.models[agent].entry(entry) {
            match &mut entry.deed {
                Deed::Commit(_, head) => *head = Head::Known(id),
                Deed::Move(_, line) => line.head = Head::Known(id),
                _ => {}
            }
        }
    }

    pub(super) fn checkpoint(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let (branch, no) = self.some_branch(agent);
        let before = self.line(agent, &branch);
        let deed = Deed::Commit(branch, Head::Untold);
        let asked = self.ask_deed(agent, client, no, &CHECKPOINT, deed)?;
        if let Some((answer, entry)) = asked {
            let made: Checkpointed = answer.items().remove(0);
            let keys = before.keys.len() as u64;
            assert_eq!(made.keys, keys, "keys of a checkpoint");
            let parents = match before.head {
                Head::Known(id) => vec![id],
                _ => Vec::new(),
            };
            assert_eq!(made.parents, parents, "parents of a checkpoint");
            let keys = before.keys;
            self.told(agent, entry, made.id, Commit { keys, parents });
        }
        Ok(())
    }

    /// A checkpoint that the agent can name for sure.
    pub(super) fn some_commit(&mut self, agent: usize) -> Option<Id> {
        let ids: Vec<Id> = self.reachable(agent).into_iter().collect();
        let pick = self.world.random.below(ids.len().max(1));
        ids.get(pick).copied()
    }

    fn restore(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let (branch, no) = self.some_branch(agent);
        let commit = self.some_commit(agent);
        let (to, keys) = match commit {
            Some(id) => (
                Revision::Checkpoint(id),
                self.oracle.commits[&id].keys.clone(),
            ),
            None => (Revision::Empty, Keys::new()),
        };
        let call = Call::Restore { to, force: true };
        self.ask_deed(agent, client, no, &call, Deed::Restore(branch, keys))?;
        Ok(())
    }

    fn make_branch(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let name = format!("b{}", self.world.random.below(NAMES));
        let Some(id) = self.some_commit(agent) else {
            return Ok(());
        };
        if self.actors[agent].numbers.contains_key(&name) {
            return Ok(());
        }
        let call = Call::Branch {
            name: &name,
            from: Revision::Checkpoint(id),
        };
        let line = Line {
            head: Head::Known(id),
            keys: self.oracle.commits[&id].keys.clone(),
        };
        let deed = Deed::Move(name.clone(), line);
        if let Some((answer, _)) = self.ask_deed(agent, client, None, &call, deed)? {
            let no = answer.items::<crate::agent::call::BranchInfo>()[0].no;
            self.actors[agent].numbers.insert(name, no);
        }
        Ok(())
    }

    fn some_other(&mut self, agent: usize) -> Option<(String, BranchNo)> {
        let (name, no) = self.some_branch(agent);
        no.map(|no| (name, no))
    }

    fn remove_branch(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let Some((name, _)) = self.some_other(agent) else {
            return Ok(());
        };
        let call = Call::DeleteBranch {
            name: &name,
            force: true,
        };
        let deed = Deed::Remove(name.clone());
        if self.ask_deed(agent, client, None, &call, deed)?.is_some() {
            self.actors[agent].numbers.remove(&name);
        }
        Ok(())
    }

    fn rename_branch(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let Some((old, no)) = self.some_other(agent) else {
            return Ok(());
        };
        let new = format!("b{}", self.world.random.below(NAMES));
        if self.actors[agent].numbers.contains_key(&new) {
            return Ok(());
        }
        let call = Call::Rename { name: &new };
        let deed = Deed::Rename(old.clone(), new.clone());
        if self
            .ask_deed(agent, client, Some(no), &call, deed)?
            .is_some()
        {
            let numbers = &mut self.actors[agent].numbers;
            let no = numbers.remove(&old).expect("it was there");
            numbers.insert(new, no);
        }
        Ok(())
    }

    fn tag(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let name = format!("t{}", self.world.random.below(NAMES));
        let there = self.oracle.models[agent].live().tags.contains_key(&name);
        if there && self.world.random.below(3) == 0 {
            let call = Call::Untag { name: &name };
            self.ask_deed(agent, client, None, &call, Deed::Untag(name.clone()))?;
            return Ok(());
        }
        let Some(id) = self.some_commit(agent) else {
            return Ok(());
        };
        let (target, force) = (Revision::Checkpoint(id), true);
        let public = self.world.random.below(3) == 0;
        let name = &*name;
        let call = match public {
            true => Call::Publish {
                name,
                target,
                force,
            },
            false => Call::Tag {
                name,
                target,
                force,
            },
        };
        let deed = Deed::Tag(name.to_owned(), Head::Known(id), public);
        self.ask_deed(agent, client, None, &call, deed)?;
        Ok(())
    }

    fn retain(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        if self.weights.forget == 0 || self.world.random.below(4) != 0 {
            return Ok(());
        }
        let (name, _) = self.some_branch(agent);
        let rule = Retention::Last(self.world.random.below(4) as u64);
        let call = Call::Retain { name: &name, rule };
        self.actors[agent].forgets = true;
        self.ask_deed(
            agent,
            client,
            None,
            &call,
            Deed::Put(name.clone(), Vec::new()),
        )?;
        Ok(())
    }

    /// A merge in which one side wins wherever both changed a key.
    fn merge(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let (branch, no) = self.some_branch(agent);
        let Some(theirs) = self.some_commit(agent) else {
            return Ok(());
        };
        let ours = self.line(agent, &branch);
        let Head::Known(head) = ours.head else {
            return Ok(());
        };
        let known = self.oracle.commits.get(&head);
        if known.is_none_or(|known| ours.keys != known.keys) {
            return Ok(());
        }
        let Some(base) = self.merge_base(head, theirs) else {
            return Ok(());
        };
        let take_theirs = self.world.random.below(2) == 0;
        let other = &self.oracle.commits[&theirs].keys;
        let base_keys = &self.oracle.commits[&base].keys;
        let mut keys = ours.keys.clone();
        for key in base_keys.keys().chain(other.keys()) {
            let [was, mine, yours] = [base_keys, &ours.keys, other].map(|keys| keys.get(key));
            if yours != was && (mine == was || take_theirs) {
                match yours {
                    Some(value) => _ = keys.insert(key.clone(), Rc::clone(value)),
                    None => _ = keys.remove(key),
                }
            }
        }
        let policy = if take_theirs {
            Policy::Theirs
        } else {
            Policy::Ours
        };
        let call = Call::Merge {
            from: Revision::Checkpoint(theirs),
            rules: vec![(b"", policy)],
            opaque: b"",
            pairs: b"",
            expect: None,
        };
        let (line, made) = if base == theirs {
            (ours, None)
        } else if base == head {
            let head = Head::Known(theirs);
            (
                Line {
                    head,
                    keys: other.clone(),
                },
                None,
            )
        } else {
            let line = Line {
                head: Head::Untold,
                keys: keys.clone(),
            };
            let parents = vec![head, theirs];
            (line, Some(Commit { keys, parents }))
        };
        let deed = Deed::Move(branch, line);
        if let Some((answer, entry)) = self.ask_deed(agent, client, no, &call, deed)?
            && let Some(commit) = made
        {
            self.table.fire("merge");
            self.told(agent, entry, *answer.completion.id.as_bytes(), commit);
        }
        Ok(())
    }

    /// The one checkpoint from which two come, if there is one that no other such comes from.
    fn merge_base(&self, one: Id, other: Id) -> Option<Id> {
        let (one, other) = (self.ancestors(one), self.ancestors(other));
        let common: Vec<Id> = one.intersection(&other).copied().collect();
        let mut best = common.iter().filter(|id| {
            let below = |it: &&Id| it != id && self.ancestors(**it).contains(*id);
            !common.iter().any(|it| below(&it))
        });
        let first = best.next()?;
        best.next().is_none().then_some(*first)
    }

    fn put_large(&mut self, agent: usize, client: u64) -> Result<(), Crash> {
        let (branch, no) = self.some_branch(agent);
        let (key, value) = (self.some_key(), self.some_value(false));
        if value.len() <= PART_BYTES_MAX {
            return Ok(());
        }
        self.table.fire("large value");
        let deed = Deed::Put(branch, vec![(key.clone(), Rc::clone(&value))]);
        let entry = self.oracle.models[agent].begin(deed, Durability::Process);
        let mut offset = 0;
        for part in value.chunks(PART_BYTES_MAX) {
            let what = Carries {
                key: &key,
                value: part,
                branch: no,
                durability: Some(Durability::Process),
                arg0: offset,
                arg1: value.len() as u64,
            };
            offset += part.len() as u64;
            let Some(answer) = self.world.ask(client, Op::PutPart, what)? else {
                self.oracle.models[agent].doubt = true;
                return Ok(());
            };
            let last = offset == value.len() as u64;
            if last || !answer.is_good() {
                if answer.completion.status == Status::UploadOutOfOrder {
                    // A flush that failed took the parts before.
                    assert!(self.disk_failed, "parts are lost without a reason");
                    if let Some(entry) = self.oracle.models[agent].entry(entry) {
                        entry.outcome = Outcome::Refused;
                    }
                    return Ok(());
                }
                self.written(
                    agent,
                    entry,
                    &answer.completion,
                    answer.shard,
                    answer.undone,
                );
                return Ok(());
            }
        }
        Ok(())
    }
}
