//! Whether a history is that of an agent whose operations happen one at a time, each at some moment between its
//! question and its answer.
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with the memory of Lowe ("Testing for
//! linearizability", 2017): linearize, of those operations that no other has to precede, one after another; go back where
//! nothing fits; look at no pair of (what is done, state) twice. Operations that change nothing are taken as soon as
//! they fit: that forbids nothing to the others. So only writes that overlap cost anything, and a lane has few.
//!
//! The object is a whole agent, which is more than is asked for: linearizable as a whole, it is linearizable per key, and
//! a read of several keys sees one state.

use std::collections::{BTreeMap, HashSet};

use crate::history::{History, KEYS, Operation};
use crate::model::{ALL, Model, State};

/// Pairs looked at before a search is given up.
const STEPS_MAX: usize = 1_000_000;

/// Operations that fit, in the story of those that do not.
const TOLD: usize = 30;

/// Why a history is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Wrong for these keys, each looked at alone.
    Keys(Vec<usize>),
    /// Right for every key alone, wrong for all together.
    Together,
    /// Too much to search.
    GaveUp,
}

/// A refusal, with what could be done furthest.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub refused: Refused,
    pub story: String,
}

/// Pairs that were looked at, for a history that is right.
///
/// # Errors
/// [`Verdict`] of one that is not.
pub fn check(history: &History) -> Result<usize, Verdict> {
    let stuck = match search(history, ALL) {
        Ok(steps) => return Ok(steps),
        Err(stuck) => stuck,
    };
    let refused = match stuck.gave_up {
        true => Refused::GaveUp,
        false => {
            let wrong = |key: &usize| search(history, 1 << key).is_err_and(|stuck| !stuck.gave_up);
            let keys: Vec<usize> = (0..KEYS).filter(wrong).collect();
            match keys.is_empty() {
                true => Refused::Together,
                false => Refused::Keys(keys),
            }
        }
    };
    let story = stuck.story;
    Err(Verdict { refused, story })
}

struct Stuck {
    gave_up: bool,
    story: String,
}

/// What one thread asked, and for each place the earliest answer from there on.
struct Thread<'a> {
    operations: Vec<&'a Operation>,
    returned: Vec<u64>,
}

/// What is done of each thread.
type Done = Box<[u32]>;

fn threads_of<'a>(history: &'a History, model: &Model<'_>) -> Vec<Thread<'a>> {
    let mut threads = BTreeMap::<u32, Vec<&Operation>>::new();
    for op in &history.operations {
        if model.concerns(&op.what) {
            threads.entry(op.thread).or_default().push(op);
        }
    }
    let threads = threads.into_values().map(|operations| {
        let mut returned = vec![u64::MAX; operations.len() + 1];
        for (at, op) in operations.iter().enumerate().rev() {
            returned[at] = op.returned.min(returned[at + 1]);
        }
        Thread {
            operations,
            returned,
        }
    });
    threads.collect()
}

fn search(history: &History, keys: u8) -> Result<usize, Stuck> {
    let model = Model {
        graph: &history.graph,
        keys,
    };
    let threads = threads_of(history, &model);
    let start: Done = vec![0; threads.len()].into();
    let mut left = vec![(State::default(), start.clone())];
    let mut seen = HashSet::new();
    let mut furthest = (0, State::default(), start);
    while let Some((state, mut done)) = left.pop() {
        take_what_fits(&model, &threads, &state, &mut done);
        let count: u32 = done.iter().sum();
        if count >= furthest.0 {
            furthest = (count, state.clone(), done.clone());
        }
        let mut next: Vec<_> = ready(&threads, &done).collect();
        if next.is_empty() {
            return Ok(seen.len());
        }
        if !seen.insert((state.clone(), done.clone())) {
            continue;
        }
        if seen.len() > STEPS_MAX {
            return Err(stuck(true, &threads, furthest));
        }
        // What was answered first is tried first.
        next.sort_by_key(|(_, op)| std::cmp::Reverse(op.returned));
        for (thread, op) in next {
            let mut with = done.clone();
            with[thread] += 1;
            if op.maybe {
                left.push((state.clone(), with.clone()));
            }
            if model.fits(&state, op).is_none() {
                let states = model.after(&state, op);
                left.extend(states.into_iter().map(|state| (state, with.clone())));
            }
        }
    }
    Err(stuck(false, &threads, furthest))
}

/// Takes every operation that changes nothing and fits, until none does.
fn take_what_fits(model: &Model<'_>, threads: &[Thread<'_>], state: &State, done: &mut Done) {
    loop {
        let fitting: Vec<usize> = ready(threads, done)
            .filter(|(_, op)| !op.maybe && model.fits(state, op) == Some(true))
            .map(|(thread, _)| thread)
            .collect();
        if fitting.is_empty() {
            return;
        }
        for thread in fitting {
            done[thread] += 1;
        }
    }
}

/// The next operation of each thread, of those that no other has to precede.
fn ready<'a>(
    threads: &'a [Thread<'_>],
    done: &'a [u32],
) -> impl Iterator<Item = (usize, &'a Operation)> {
    let at = |thread: usize| done[thread] as usize;
    let first = (0..threads.len()).map(|thread| threads[thread].returned[at(thread)]);
    let first = first.min().unwrap_or(u64::MAX);
    threads.iter().enumerate().filter_map(move |(no, thread)| {
        let next = *thread.operations.get(done[no] as usize)?;
        (next.invoked <= first).then_some((no, next))
    })
}

fn stuck(gave_up: bool, threads: &[Thread<'_>], (count, state, done): (u32, State, Done)) -> Stuck {
    let total: usize = threads.iter().map(|thread| thread.operations.len()).sum();
    let mut before: Vec<_> = threads
        .iter()
        .zip(&done)
        .flat_map(|(thread, done)| &thread.operations[..*done as usize])
        .collect();
    before.sort_by_key(|op| op.returned);
    let mut story = format!("{count} of {total} operations fit, of these last\n");
    for op in &before[before.len().saturating_sub(TOLD)..] {
        story += &format!("{op:x?}\n");
    }
    story += &format!("which leaves\n{state:x?}\nand of these none fits\n");
    for (_, op) in ready(threads, &done) {
        story += &format!("{op:x?}\n");
    }
    Stuck { gave_up, story }
}
