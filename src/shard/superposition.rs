//! Superpositions: calls about sets of candidates, and their end by themselves.
//!
//! Floor 2. A candidate is a checkpoint: reading in it is reading in a fork that lies on it, and writing
//! there leaves it as it was. A collapse is one record, which ends the set and moves the branch; so it is
//! done or not, wherever a crash falls.
//!
//! **Observing.** Whoever adds, reweighs, lists the candidates, or opens one observes the set, and so does an
//! open fork on a candidate until it is dropped or kept. Listing the sets does not. An observation is said in the
//! log when the one said before is older than an eighth of the time to live: a restart forgets no more.
//!
//! **Time** is the wall clock at the start of the shard, or the latest that a record of a set says if that
//! is later, plus what has passed since. So a clock that was set back makes nothing younger than it was when
//! it was last recorded, and one that was set forward at most ends sets early.
//!
//! **By itself** a set ends in the first turn at or after the time at which it has ended; the shard wakes for
//! that, and any call about sets looks first. A record says so; where none can be appended, it is tried again
//! each second.
//!
//! Cost of a collapse: one record of 150 bytes, one `pwrite`, the branch's working set given up bit by bit.
//! Nothing is read: sets know the trees of their candidates.
//!
//! Invariants
//! - tables change only after the flush of the record that says so.
//! - `due` has one entry at most for each set, not later than it could end.

use std::collections::BTreeSet;

use crate::agent::call::{self, Id, Revision};
use crate::agent::entry::Status;
use crate::agent::set_call::{CandidateInfo, Choice, Collapsed, Real, SetCall, SetInfo};
use crate::id::{AgentNo, SetNo};
use crate::segment::{Collapse, Disk, Head, Sequence};
use crate::shard::Shard;
use crate::shard::agent::BranchRef;
use crate::shard::call::{Asker, Failed, Outcome, committed, expected};
use crate::shard::groups::SetRef;
use crate::shard::sets::{OpenSet, SETS_MAX, candidate_head, set_head};
use crate::shard::store::Refused;
use crate::state::superposition::{
    CANDIDATES_MAX, Candidate, OBSERVED_MS, Superposition, Terms, Weight,
};

/// Sets that end by themselves in one turn; more in the next.
const RELEASES_PER_TURN: usize = 32;
/// How long a set stays that could not be ended, in milliseconds.
const RETRY_MS: u64 = 1_000;
/// An observation is recorded when the one recorded before is older than this share of the time to live, as a
/// divisor.
const OBSERVED_SHARE: u64 = 8;

/// A candidate to be collapsed to, and where.
#[derive(Clone, Copy)]
struct AskedCollapse<'a> {
    set: SetNo,
    choice: Choice,
    into: Option<&'a str>,
    expect: Option<Option<Id>>,
    force: bool,
}

/// The clock of a shard's sets, and which of them are to be asked when whether they have ended.
#[derive(Debug, Default)]
pub(super) struct SetClock {
    /// Milliseconds since 1970 when the shard's time began.
    base_ms: u64,
    due: BTreeSet<(u64, SetRef)>,
}

impl SetClock {
    /// When the next set is to be asked, in the shard's time.
    pub(super) fn deadline(&self) -> Option<u64> {
        let &(due_ms, _) = self.due.first()?;
        let after_ms = due_ms.saturating_sub(self.base_ms);
        Some(after_ms.saturating_mul(1_000_000))
    }

    /// Has an open set asked when it could have ended, if that is sooner than it would be.
    fn watch(&mut self, at: SetRef, open: &mut OpenSet, not_before_ms: u64) {
        let due_ms = match open.forks {
            0 => open.set.may_end_ms().max(not_before_ms),
            // Observed until the last of them goes.
            _ => u64::MAX,
        };
        if due_ms < open.due_ms {
            self.due.remove(&(open.due_ms, at));
            self.due.insert((due_ms, at));
            open.due_ms = due_ms;
        }
    }
}

impl<D: Disk> Shard<D> {
    /// Takes in the sets that the log told of.
    pub(super) fn watch_sets(&mut self) {
        let agents = self.store.tables.all_agents();
        let (numbers, said): (Vec<_>, Vec<_>) = agents
            .map(|(agent, found)| (agent, found.sets.latest_ms()))
            .unzip();
        let latest_ms = said.into_iter().max().unwrap_or(0);
        self.sets.base_ms = self.options.wall_ms.max(latest_ms);
        for agent in numbers {
            self.watch_sets_of(agent);
        }
    }

    /// The same for an agent whose sets came from elsewhere.
    pub(super) fn watch_sets_of(&mut self, agent: AgentNo) {
        for (set, open) in self.store.tables.agent_mut(agent).sets.iter_mut() {
            self.sets.watch(SetRef { agent, set }, open, 0);
        }
    }

    /// Milliseconds since 1970, as the records of sets count them.
    fn sets_ms(&self) -> u64 {
        self.sets.base_ms + self.now / 1_000_000
    }

    /// Ends the sets that have ended by themselves; whether there were any.
    pub(super) fn release_due(&mut self) -> bool {
        let now_ms = self.sets_ms();
        let mut ended = Vec::new();
        while let Some(&(due_ms, at)) = self.sets.due.first()
            && due_ms <= now_ms
            && ended.len() < RELEASES_PER_TURN
        {
            self.sets.due.pop_first();
            let Some(open) = self.store.tables.open_set_mut(at) else {
                continue;
            };
            open.due_ms = u64::MAX;
            if open.forks == 0 && open.set.has_ended(now_ms) {
                ended.push(at);
            } else {
                self.sets.watch(at, open, now_ms + 1);
            }
        }
        if ended.is_empty() {
            return false;
        }
        let appended = ended.iter().take_while(|&&at| {
            let record = gone(at, None, now_ms);
            self.append_set(&record).is_ok()
        });
        let appended = appended.count();
        let flushed = appended > 0 && self.flush().is_ok();
        for (place, &at) in ended.iter().enumerate() {
            if flushed && place < appended {
                self.end_set(at);
                continue;
            }
            if let Some(open) = self.store.tables.open_set_mut(at) {
                self.sets.watch(at, open, now_ms + RETRY_MS);
            }
        }
        true
    }

    fn append_set(&mut self, head: &Head<'_>) -> Result<Sequence, Refused> {
        self.store.ready(0, false)?;
        Ok(self.store.append(&(*head).into())?.sequence)
    }

    /// Takes all sets of an agent out that is gone: nothing may be said of them behind that.
    pub(super) fn end_sets(&mut self, agent: AgentNo) {
        let sets = &self.store.tables.agent(agent).sets;
        let sets: Vec<SetNo> = sets.iter().map(|(set, _)| set).collect();
        for set in sets {
            self.end_set(SetRef { agent, set });
        }
    }

    /// Takes a set out: its end was flushed.
    fn end_set(&mut self, at: SetRef) {
        let sets = &mut self.store.tables.agent_mut(at.agent).sets;
        if let Some(open) = sets.remove(at.set) {
            self.sets.due.remove(&(open.due_ms, at));
        }
        self.store.drop_group(at);
    }

    /// The open set of a number; what has ended is none.
    fn known_set(&mut self, by: Asker, set: SetNo) -> Result<SetRef, Failed> {
        self.release_due();
        let now_ms = self.sets_ms();
        let agent = by.place.agent;
        let at = SetRef { agent, set };
        // One whose end could not be recorded has ended all the same.
        match self.store.tables.open_set(at) {
            Some(open) if open.forks > 0 || !open.set.has_ended(now_ms) => Ok(at),
            _ => Err(Status::NoSuchSet.into()),
        }
    }

    /// Notes that a set was observed.
    fn observe(&mut self, at: SetRef) {
        let now_ms = self.sets_ms();
        let Some(open) = self.store.tables.open_set_mut(at) else {
            return;
        };
        open.set.observe(now_ms);
        let ttl_ms = open.set.terms.ttl_ms;
        let unsaid_ms = now_ms - open.said_ms.min(now_ms);
        if ttl_ms == 0 || unsaid_ms < (ttl_ms / OBSERVED_SHARE).max(OBSERVED_MS) {
            return;
        }
        // It goes out with what is flushed next; where it can't be appended now, the next one says it. While
        // everything is said again, so is this.
        if self.store.restating.is_none()
            && self.store.ready(0, false).is_ok()
            && let Some(open) = self.store.tables.open_set_mut(at)
        {
            let record = set_head(at.agent, at.set, &open.set).into();
            if self.store.log.append(&record).is_ok() {
                open.said_ms = now_ms;
            }
        }
    }

    pub(super) fn set_call(&mut self, by: Asker, call: SetCall<'_>) -> Result<Outcome, Failed> {
        match call {
            SetCall::Create {
                name,
                half_life_ms,
                ttl_ms,
                bound,
            } => {
                let terms = Terms {
                    half_life_ms,
                    ttl_ms,
                    bound: weight(bound)?,
                };
                self.create_set(by, name, terms)
            }
            SetCall::Add {
                set,
                from,
                weight,
                label,
            } => self.add_candidate(by, SetNo(set), from, weight, label),
            SetCall::Reweigh {
                set,
                candidate,
                weight,
            } => self.reweigh(by, SetNo(set), candidate, weight),
            SetCall::List { after } => self.list_sets(by, after.map(SetNo)),
            SetCall::Candidates { set, after } => self.list_candidates(by, SetNo(set), after),
            SetCall::Open { set, candidate } => self.open_candidate(by, SetNo(set), candidate),
            SetCall::Collapse {
                set,
                choice,
                into,
                expect,
                force,
            } => {
                let asked = AskedCollapse {
                    set: SetNo(set),
                    choice,
                    into,
                    expect,
                    force,
                };
                self.collapse(by, asked)
            }
            SetCall::Release { set } => self.release_set(by, SetNo(set)),
        }
    }

    fn create_set(&mut self, by: Asker, name: &str, terms: Terms) -> Result<Outcome, Failed> {
        self.release_due();
        if by.place.is_fork() {
            // A fork is no more after the run, and never a place to collapse into.
            return Err(Status::NoSuchBranch.into());
        }
        let agent = by.place.agent;
        let sets = &self.store.tables.agent(agent).sets;
        if sets.iter().any(|(_, open)| *open.set.name == *name) {
            return Err(Status::NameTaken.into());
        }
        if sets.len() >= SETS_MAX {
            return Err(Failed::Status(Status::LimitReached, SETS_MAX as u64));
        }
        let at = SetRef {
            agent,
            set: sets.next(),
        };
        let origin = self.store.tables.branch(by.place).head;
        let set = Superposition::new(name, by.place.branch, origin, terms, self.sets_ms());
        self.store.admit_name()?;
        let sequence = self.append_set(&set_head(agent, at.set, &set))?;
        self.flush_commit()?;
        let now_ms = self.sets_ms();
        let tables = &mut self.store.tables;
        tables.agent_mut(agent).sets.insert(at.set, set);
        if let Some(open) = tables.open_set_mut(at) {
            self.sets.watch(at, open, 0);
            call::push(&set_info(at.set, open, now_ms), &mut self.answer);
        }
        Ok(committed(sequence))
    }

    fn add_candidate(
        &mut self,
        by: Asker,
        set: SetNo,
        from: Revision<'_>,
        worth: Real,
        label: &str,
    ) -> Result<Outcome, Failed> {
        let at = self.known_set(by, set)?;
        let weight = weight(worth)?;
        let from = self.store.resolve(by.place, from)?;
        let now_ms = self.sets_ms();
        let new = Candidate {
            head: from.head.ok_or(Refused::NoSuchRevision)?,
            tree: from.tree,
            label: label.into(),
            weight,
            given_ms: now_ms,
        };
        let known = self.store.tables.open_set(at);
        let known = known.ok_or(Status::NoSuchSet)?;
        let no = known.set.candidates().len();
        if no >= CANDIDATES_MAX {
            return Err(Failed::Status(Status::LimitReached, CANDIDATES_MAX as u64));
        }
        self.store.admit_name()?;
        let no = no as u32;
        let sequence = self.append_set(&candidate_head(at.agent, set, no, &new))?;
        self.flush_commit()?;
        self.give_weight(at, no, Some(new), weight);
        Ok(committed(sequence))
    }

    fn reweigh(
        &mut self,
        by: Asker,
        set: SetNo,
        candidate: u32,
        worth: Real,
    ) -> Result<Outcome, Failed> {
        let at = self.known_set(by, set)?;
        let weight = weight(worth)?;
        let now_ms = self.sets_ms();
        let mut found = self.candidate(at, candidate)?.clone();
        (found.weight, found.given_ms) = (weight, now_ms);
        let sequence = self.append_set(&candidate_head(at.agent, set, candidate, &found))?;
        self.flush_commit()?;
        self.give_weight(at, candidate, None, weight);
        Ok(committed(sequence))
    }

    /// Adds a candidate, or gives one another weight: its record was flushed. Both say that it was observed.
    fn give_weight(&mut self, at: SetRef, no: u32, new: Option<Candidate>, weight: Weight) {
        let now_ms = self.sets_ms();
        let Some(open) = self.store.tables.open_set_mut(at) else {
            return;
        };
        match new {
            // There was room for it before its record was written.
            Some(new) => _ = open.set.add(new),
            None => _ = open.set.reweigh(no, weight, now_ms),
        }
        open.set.observe(now_ms);
        open.said_ms = now_ms;
        self.sets.watch(at, open, 0);
        if let Some(found) = open.set.candidates().get(no as usize) {
            let info = candidate_info(no, found, weight.get());
            call::push(&info, &mut self.answer);
        }
    }

    fn candidate(&self, at: SetRef, no: u32) -> Result<&Candidate, Failed> {
        let open = self.store.tables.open_set(at);
        let candidates = open.map(|open| open.set.candidates()).unwrap_or_default();
        let found = candidates.get(no as usize);
        found.ok_or_else(|| Status::NoSuchCandidate.into())
    }

    fn list_sets(&mut self, by: Asker, after: Option<SetNo>) -> Result<Outcome, Failed> {
        self.release_due();
        let now_ms = self.sets_ms();
        let sets = &self.store.tables.agent(by.place.agent).sets;
        let open = sets.iter().filter(|&(no, open)| {
            after.is_none_or(|after| no > after) && (open.forks > 0 || !open.set.has_ended(now_ms))
        });
        let infos: Vec<SetInfo> = open.map(|(no, open)| set_info(no, open, now_ms)).collect();
        let mut outcome = Outcome::default();
        for info in infos {
            if !self.add_item(by.room, &info) {
                outcome.more = true;
                break;
            }
        }
        Ok(outcome)
    }

    fn list_candidates(
        &mut self,
        by: Asker,
        set: SetNo,
        after: Option<u32>,
    ) -> Result<Outcome, Failed> {
        let at = self.known_set(by, set)?;
        self.observe(at);
        let now_ms = self.sets_ms();
        let mut outcome = Outcome::default();
        let mut answer = std::mem::take(&mut self.answer);
        if let Some(open) = self.store.tables.open_set(at) {
            let weighed = open.set.candidates().iter().zip(open.set.weights(now_ms));
            let from = after.map_or(0, |after| after as usize + 1);
            for (no, (found, weight)) in (0..).zip(weighed).skip(from) {
                let before = answer.len();
                call::push(&candidate_info(no, found, weight), &mut answer);
                if answer.len() > by.room && before > 0 {
                    answer.truncate(before);
                    outcome.more = true;
                    break;
                }
            }
        }
        self.answer = answer;
        Ok(outcome)
    }

    fn open_candidate(&mut self, by: Asker, set: SetNo, candidate: u32) -> Result<Outcome, Failed> {
        let at = self.known_set(by, set)?;
        let found = self.candidate(at, candidate)?;
        let (head, tree) = (found.head, found.tree);
        self.store.admit_name()?;
        let branch = self.store.tables.agent_mut(at.agent).next_fork();
        let fork = BranchRef { branch, ..by.place };
        self.store.moved(fork, "", Some(head), tree);
        self.store.tables.branch_mut(fork).set = Some(set);
        if let Some(lane) = self.lanes.get_mut(by.lane) {
            lane.forks.push(branch);
        }
        self.observe(at);
        if let Some(open) = self.store.tables.open_set_mut(at) {
            open.forks += 1;
        }
        self.describe(fork)
    }

    /// Notes that a fork ends, which may have been opened on a candidate: asked before it is taken out.
    pub(super) fn close_candidate(&mut self, fork: BranchRef) {
        let branch = self.store.tables.agent(fork.agent).branch(fork.branch);
        let Some(set) = branch.and_then(|branch| branch.set) else {
            return;
        };
        let at = SetRef {
            agent: fork.agent,
            set,
        };
        self.observe(at);
        if let Some(open) = self.store.tables.open_set_mut(at) {
            open.forks -= 1;
            self.sets.watch(at, open, 0);
        }
    }

    fn collapse(&mut self, by: Asker, asked: AskedCollapse<'_>) -> Result<Outcome, Failed> {
        let at = self.known_set(by, asked.set)?;
        let agent = self.store.tables.agent(at.agent);
        let open = agent.sets.get(at.set).ok_or(Status::NoSuchSet)?;
        let candidate = match asked.choice {
            Choice::Candidate(no) => no,
            Choice::Drawn { seed } => open.set.draw(seed).ok_or(Status::NothingToDraw)?,
        };
        let branch = match asked.into {
            Some(name) => agent.branch_no(name).ok_or(Status::NoSuchBranch)?,
            None => open.set.branch,
        };
        let known = agent.branch(branch).ok_or(Status::NoSuchBranch)?;
        let origin = open.set.origin;
        let found = self.candidate(at, candidate)?;
        let (head, tree) = (found.head, found.tree);
        if known.head != expected(asked.expect).unwrap_or(origin) {
            return Err(Refused::StaleHead(known.head).into());
        }
        let (name, changes) = (known.name.clone(), known.keys.changes() as u64);
        if changes > 0 && !asked.force {
            return Err(Refused::Unsaved(changes).into());
        }
        let collapse = Collapse { branch, head, tree };
        let record = gone(at, Some(collapse), self.sets_ms());
        let sequence = self.append_set(&record)?;
        self.flush_commit()?;
        self.end_set(at);
        let place = BranchRef { branch, ..by.place };
        self.move_branch(place, &name, Some(head), tree);
        let collapsed = Collapsed {
            candidate,
            head: *head.as_bytes(),
            branch: branch.0,
        };
        call::push(&collapsed, &mut self.answer);
        Ok(Outcome {
            id: Some(head),
            ..committed(sequence)
        })
    }

    fn release_set(&mut self, by: Asker, set: SetNo) -> Result<Outcome, Failed> {
        let at = self.known_set(by, set)?;
        let record = gone(at, None, self.sets_ms());
        let sequence = self.append_set(&record)?;
        self.flush_commit()?;
        self.end_set(at);
        Ok(committed(sequence))
    }
}

/// The record of a set's end.
fn gone(at: SetRef, collapse: Option<Collapse>, wall_ms: u64) -> Head<'static> {
    Head::SetGone {
        agent: at.agent,
        set: at.set,
        collapse,
        wall_ms,
    }
}

fn weight(worth: Real) -> Result<Weight, Failed> {
    Weight::new(f64::from_le_bytes(worth)).map_err(|_| Status::BadWeight.into())
}

fn set_info(no: SetNo, open: &OpenSet, now_ms: u64) -> SetInfo {
    let set = &open.set;
    let seen_ms = match open.forks {
        0 => set.observed_ms(),
        _ => now_ms,
    };
    SetInfo {
        no: no.0,
        name: set.name.to_string(),
        branch: set.branch.0,
        origin: set.origin.map(|origin| *origin.as_bytes()),
        half_life_ms: set.terms.half_life_ms,
        ttl_ms: set.terms.ttl_ms,
        bound: set.terms.bound.get().to_le_bytes(),
        candidates: set.candidates().len() as u32,
        total: set.total(now_ms).to_le_bytes(),
        unobserved_ms: now_ms.saturating_sub(seen_ms),
    }
}

fn candidate_info(no: u32, found: &Candidate, weight: f64) -> CandidateInfo<'_> {
    CandidateInfo {
        no,
        head: *found.head.as_bytes(),
        weight: weight.to_le_bytes(),
        label: &found.label,
    }
}
