//! Superpositions, as an agent's process asks for them: sets of weighted candidates, of which one becomes a
//! branch's state.
//!
//! Floor 2. Every method here is one entry of [`Op::Call`] and its answer. How weights decay and what a
//! seed draws is said in [`crate::state::superposition`].
//!
//! [`Op::Call`]: crate::agent::entry::Op::Call

use std::time::Duration;

use crate::agent::call::{self, Call, Revision};
use crate::agent::set_call::{self, Choice, Real, SetCall, SetInfo};
use crate::client::versions::{ITEM_BYTES, all, expected, one};
use crate::client::{BranchInfo, ClientError, Lane, Listed};
use crate::config::Durability;
use crate::id::{BranchNo, ObjectId, SetNo};
use crate::state::superposition::Weight;

/// A superposition to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewSuperposition<'a> {
    /// Its name; no other open one of the agent has it.
    pub name: &'a str,
    /// Time in which a weight falls to its half, to the millisecond; `None`: weights don't decay.
    pub half_life: Option<Duration>,
    /// Time after which it ends if nobody observes it, to the millisecond; `None`: it does not.
    pub ttl: Option<Duration>,
    /// Total weight under which it ends, once nobody has observed it for a second; 0: it does not.
    pub bound: f64,
}

/// A superposition.
#[derive(Clone, Debug, PartialEq)]
pub struct SuperpositionInfo {
    /// Its number: what the other methods name it by.
    pub no: SetNo,
    /// Its name.
    pub name: String,
    /// The branch that it was made for.
    pub branch: BranchNo,
    /// What that branch pointed at then: what a collapse expects, if not told otherwise.
    pub origin: Option<ObjectId>,
    /// Half-life of its weights.
    pub half_life: Option<Duration>,
    /// Time to live.
    pub ttl: Option<Duration>,
    /// Total weight under which it ends.
    pub bound: f64,
    /// Candidates.
    pub candidates: u32,
    /// Their total weight now.
    pub total: f64,
    /// How long nobody has observed it.
    pub unobserved: Duration,
}

/// A candidate of a superposition.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateInfo {
    /// Its number in the superposition.
    pub no: u32,
    /// Its checkpoint.
    pub head: ObjectId,
    /// What it is worth now.
    pub weight: f64,
    /// What it is called.
    pub label: String,
}

/// How to collapse.
#[derive(Clone, Copy, Debug, Default)]
pub struct CollapseOptions<'a> {
    /// The branch to be moved; `None`: the one that the superposition was made for.
    pub into: Option<&'a str>,
    /// What it has to point at; `None`: what the superposition's branch did when that was made.
    pub expect: Option<Option<ObjectId>>,
    /// Even if changes of the branch are lost that no checkpoint holds.
    pub force: bool,
    /// What the collapse must survive before it is acknowledged; `None`: the runtime's default.
    pub durability: Option<Durability>,
}

/// A superposition that became one of its candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collapsed {
    /// The candidate's number.
    pub candidate: u32,
    /// Its checkpoint.
    pub head: ObjectId,
    /// The branch that points at it now.
    pub branch: BranchNo,
}

impl Lane {
    /// Makes a superposition for the branch that the lane is on: a set of candidates for its next state.
    ///
    /// It ends by a collapse, a release, or by itself: when nobody has observed it for its time to live, or
    /// when its total weight is under its bound and nobody has observed it for a second. Adding, reweighing,
    /// listing candidates and opening one observe it, and so does a fork opened on a candidate as long as it
    /// is open.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use helios::Runtime;
    /// use helios::client::{Choice, CollapseOptions, NewCheckpoint, NewSuperposition, Revision};
    /// use helios::config::Config;
    ///
    /// let runtime = Runtime::start(Config::at("helios-data"))?;
    /// let mut lane = runtime.agent("planner")?;
    /// lane.put(b"plan", b"?")?;
    /// lane.checkpoint(&NewCheckpoint::default())?;
    ///
    /// let tries = lane.superpose(&NewSuperposition {
    ///     name: "tries",
    ///     ttl: Some(Duration::from_secs(600)),
    ///     ..NewSuperposition::default()
    /// })?;
    /// for (plan, score) in [("read the code", 3.0), ("ask somebody", 1.0)] {
    ///     let fork = lane.fork(Revision::Head)?.no;
    ///     lane.on(fork).put(b"plan", plan.as_bytes())?;
    ///     lane.on(fork).checkpoint(&NewCheckpoint::default())?;
    ///     lane.on(fork).add_candidate(tries.no, Revision::Head, score, plan)?;
    ///     lane.discard(fork)?;
    /// }
    /// // Three times in four the first; always the same for the same seed.
    /// let drawn = Choice::Drawn { seed: 7 };
    /// let collapsed = lane.collapse(tries.no, drawn, &CollapseOptions::default())?;
    /// println!("candidate {} is the state of main now", collapsed.candidate);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ClientError::NameTaken`], [`ClientError::BadName`], [`ClientError::BadWeight`],
    /// [`ClientError::LimitReached`] with 64 open ones; [`ClientError::NoSuchBranch`] about a fork.
    pub fn superpose(
        &mut self,
        new: &NewSuperposition<'_>,
    ) -> Result<SuperpositionInfo, ClientError> {
        call::check_name(new.name)?;
        let call = SetCall::Create {
            name: new.name,
            half_life_ms: milliseconds(new.half_life),
            ttl_ms: milliseconds(new.ttl),
            bound: real(new.bound)?,
        };
        self.ask_set(call, None, |answer| Ok(superposition_info(one(answer)?)))
    }

    /// Adds a checkpoint to a superposition, under the next number.
    ///
    /// # Errors
    /// [`ClientError::NoSuchSuperposition`], [`ClientError::NoSuchRevision`], [`ClientError::BadWeight`],
    /// [`ClientError::LimitReached`] with 256 candidates, [`ClientError::BadName`] for a label of more than
    /// 255 bytes.
    pub fn add_candidate(
        &mut self,
        set: SetNo,
        from: Revision<'_>,
        weight: f64,
        label: &str,
    ) -> Result<CandidateInfo, ClientError> {
        let call = SetCall::Add {
            set: set.0,
            from,
            weight: real(weight)?,
            label,
        };
        self.ask_set(call, None, |answer| Ok(candidate_info(one(answer)?)))
    }

    /// Gives a candidate another weight, from which it decays anew.
    ///
    /// # Errors
    /// [`ClientError::NoSuchSuperposition`], [`ClientError::NoSuchCandidate`], [`ClientError::BadWeight`].
    pub fn reweigh(
        &mut self,
        set: SetNo,
        candidate: u32,
        weight: f64,
    ) -> Result<CandidateInfo, ClientError> {
        let call = SetCall::Reweigh {
            set: set.0,
            candidate,
            weight: real(weight)?,
        };
        self.ask_set(call, None, |answer| Ok(candidate_info(one(answer)?)))
    }

    /// Lists the agent's superpositions whose numbers are above `after`. That does not observe them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn superpositions(
        &mut self,
        after: Option<SetNo>,
    ) -> Result<Listed<SuperpositionInfo>, ClientError> {
        let after = after.map(|no| no.0);
        let call = Call::Superposition(SetCall::List { after });
        self.ask_list(&call, |answer| {
            all(answer, |info| Ok(superposition_info(info)))
        })
    }

    /// Lists the candidates of a superposition whose numbers are above `after`, with what they are worth now.
    ///
    /// # Errors
    /// [`ClientError::NoSuchSuperposition`].
    pub fn candidates(
        &mut self,
        set: SetNo,
        after: Option<u32>,
    ) -> Result<Listed<CandidateInfo>, ClientError> {
        let call = Call::Superposition(SetCall::Candidates { set: set.0, after });
        self.ask_list(&call, |answer| {
            all(answer, |found: set_call::CandidateInfo<'_>| {
                Ok(candidate_info(found))
            })
        })
    }

    /// Opens a fork on a candidate, to read it through [`Lane::on`]. What is written there is the fork's: the
    /// candidate stays as it is. The fork ends with the lane, or with [`Lane::discard`].
    ///
    /// # Errors
    /// [`ClientError::NoSuchSuperposition`], [`ClientError::NoSuchCandidate`].
    pub fn open_candidate(
        &mut self,
        set: SetNo,
        candidate: u32,
    ) -> Result<BranchInfo, ClientError> {
        let set = set.0;
        self.ask_branch(&Call::Superposition(SetCall::Open { set, candidate }))
    }

    /// Lets a branch point at one of the candidates, and ends the superposition: both or neither, whatever
    /// happens. Every lane on the branch reads the new state from then on; forks that are open on candidates
    /// stay until they are discarded.
    ///
    /// # Errors
    /// [`ClientError::NoSuchSuperposition`] also for whoever comes second, [`ClientError::NoSuchCandidate`],
    /// [`ClientError::NothingToDraw`], [`ClientError::NoSuchBranch`], [`ClientError::StaleHead`] where the
    /// branch points at something else than is expected, [`ClientError::Unsaved`]; nothing was done.
    pub fn collapse(
        &mut self,
        set: SetNo,
        choice: Choice,
        options: &CollapseOptions<'_>,
    ) -> Result<Collapsed, ClientError> {
        let call = SetCall::Collapse {
            set: set.0,
            choice,
            into: options.into,
            expect: expected(options.expect),
            force: options.force,
        };
        self.ask_set(call, options.durability, |answer| {
            let collapsed: set_call::Collapsed = one(answer)?;
            Ok(Collapsed {
                candidate: collapsed.candidate,
                head: ObjectId::from_bytes(collapsed.head),
                branch: BranchNo(collapsed.branch),
            })
        })
    }

    /// Ends a superposition without moving any branch.
    ///
    /// # Errors
    /// [`ClientError::NoSuchSuperposition`].
    pub fn release_superposition(&mut self, set: SetNo) -> Result<(), ClientError> {
        self.ask_nothing(&Call::Superposition(SetCall::Release { set: set.0 }))
    }

    fn ask_set<T>(
        &mut self,
        call: SetCall<'_>,
        durability: Option<Durability>,
        read: impl FnOnce(&[u8]) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let call = Call::Superposition(call);
        self.ask(&call, durability, ITEM_BYTES, |_, answer| read(answer))
    }
}

/// A time as it is said; one that is there but shorter than a millisecond is not none.
fn milliseconds(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
    })
}

fn duration(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

fn real(number: f64) -> Result<Real, ClientError> {
    Ok(Weight::new(number)?.get().to_le_bytes())
}

fn superposition_info(info: SetInfo) -> SuperpositionInfo {
    SuperpositionInfo {
        no: SetNo(info.no),
        name: info.name,
        branch: BranchNo(info.branch),
        origin: info.origin.map(ObjectId::from_bytes),
        half_life: duration(info.half_life_ms),
        ttl: duration(info.ttl_ms),
        bound: f64::from_le_bytes(info.bound),
        candidates: info.candidates,
        total: f64::from_le_bytes(info.total),
        unobserved: Duration::from_millis(info.unobserved_ms),
    }
}

fn candidate_info(found: set_call::CandidateInfo<'_>) -> CandidateInfo {
    CandidateInfo {
        no: found.no,
        head: ObjectId::from_bytes(found.head),
        weight: f64::from_le_bytes(found.weight),
        label: found.label.to_owned(),
    }
}
