//! Histories of a few operations, and their verdict by trying every order: slow, and too simple to be wrong.

use crate::common::Random;
use crate::history::{
    Contents, Graph, History, KEYS, Key, MAIN, Operation, THREADS_PER_LANE, Value, What,
};

/// Lanes of a history, and operations of each, at most.
const LANES: u64 = 3;
const OPERATIONS: u64 = 3;

/// A history of up to nine operations that overlap at random, with answers that may be right.
pub fn random_history(random: &mut Random) -> History {
    let mut operations = Vec::new();
    for lane in 0..LANES {
        let mut at = random.below(8);
        for _ in 0..random.below(OPERATIONS + 1) {
            let invoked = at;
            let returned = invoked + 1 + random.below(12);
            at = returned + 1 + random.below(4);
            operations.push(Operation {
                thread: lane as u32 * THREADS_PER_LANE,
                on: MAIN,
                invoked,
                returned,
                maybe: false,
                what: any(random),
            });
        }
    }
    History {
        operations,
        graph: Graph::default(),
    }
}

/// An operation on two keys and three values.
fn any(random: &mut Random) -> What {
    let key = random.below(2) as Key;
    let mut value = || random.below(3) as Value;
    let (a, b) = (value(), value());
    match value() * 3 + value() {
        0 | 1 => What::Get { key, value: a },
        2 => What::Snapshot {
            values: std::array::from_fn(|at| [a, b].get(at).copied().unwrap_or(0)),
        },
        3..=5 => What::Put { key, value: a + 1 },
        6 => What::MultiPut {
            pairs: vec![(0, a + 1), (1, b + 1)],
        },
        7 => What::Swap {
            key,
            expected: a,
            value: 3,
            found: (b == 0).then_some(1),
        },
        _ => What::Delete {
            key,
            existed: Some(a > 0),
        },
    }
}

/// Whether there is an order in which every answer is right, and nothing comes before what was answered before it was asked.
pub fn has_an_order(history: &History) -> bool {
    let left: Vec<&Operation> = history.operations.iter().collect();
    ends_well([0; KEYS], &left)
}

fn ends_well(state: Contents, left: &[&Operation]) -> bool {
    left.is_empty()
        || (0..left.len()).any(|at| {
            let op = left[at];
            let mut others = left.to_vec();
            others.remove(at);
            others.iter().all(|other| other.returned >= op.invoked)
                && after(state, &op.what).is_some_and(|state| ends_well(state, &others))
        })
}

fn after(mut state: Contents, what: &What) -> Option<Contents> {
    let right = match what {
        What::Get { key, value } => state[usize::from(*key)] == *value,
        What::Snapshot { values } => state == *values,
        What::Put { key, value } => {
            state[usize::from(*key)] = *value;
            true
        }
        What::MultiPut { pairs } => {
            for (key, value) in pairs {
                state[usize::from(*key)] = *value;
            }
            true
        }
        What::Swap {
            key,
            expected,
            value,
            found,
        } => {
            let held = &mut state[usize::from(*key)];
            match found {
                None if *held == *expected => {
                    *held = *value;
                    true
                }
                None => false,
                Some(found) => held == found && held != expected,
            }
        }
        What::Delete { key, existed } => {
            let held = std::mem::take(&mut state[usize::from(*key)]);
            Some(held != 0) == *existed
        }
        other => unreachable!("{other:?} is in no tiny history"),
    };
    right.then_some(state)
}
