//! Histories that are wrong, each in one way, and some that look so and are right: what the checker must say of each.
//!
//! Write skew is right: an operation is on one state, and a transaction of several is a fork that is merged, which a
//! write to the same key refuses, and a write to what it only read does not. Who wants more gives the head it expects.
//!
//! Each is a few operations on `main`, two keys and two to four lanes, that can stand alone or at the end of a recorded history.

use crate::check::Refused;
use crate::history::{
    Branch, Came, Checkpoint, Contents, Graph, History, KEYS, Key, MAIN, Operation, Policy, Source,
    THREADS_PER_LANE, Value, What,
};

/// Lanes of planted operations have numbers from this on.
const FIRST_LANE: u32 = 1 << 20;
/// The branch and the forks that are made here.
const OTHER: Branch = 1 << 20;
const FORKS: Branch = 1 << 31;
/// The values of these histories: nobody else's.
const A: Value = 0xa1;
const B: Value = 0xb1;
const C: Value = 0xc1;
const D: Value = 0xd1;
const SAVED: Checkpoint = 0x5a;

/// A planted history, and what is to be said of it; nothing: it is right.
pub struct Planted {
    pub name: &'static str,
    pub wrong: Option<Refused>,
    operations: Vec<Operation>,
    graph: Vec<(Checkpoint, Vec<Checkpoint>, Contents)>,
}

impl Planted {
    /// The history at the end of another, which left nothing on the way.
    ///
    /// It begins with a write of all keys, so that it does not matter what was there.
    pub fn after(&self, history: &History) -> History {
        let mut whole = history.clone();
        let last = whole.operations.iter().map(|op| op.returned).max();
        let last = last.unwrap_or(0) + 1;
        let head = head_of(history);
        for (id, parents, contents) in &self.graph {
            let parents: Vec<_> = match parents.is_empty() && head != 0 {
                true => vec![head],
                false => parents.clone(),
            };
            whole.graph.add(*id, parents, *contents);
        }
        for op in &self.operations {
            let (invoked, returned) = (last + op.invoked, last + op.returned);
            whole.operations.push(Operation {
                invoked,
                returned,
                ..op.clone()
            });
        }
        whole
    }

    pub fn alone(&self) -> History {
        self.after(&History {
            operations: Vec::new(),
            graph: Graph::default(),
        })
    }
}

/// What `main` points at in the last list of branches.
fn head_of(history: &History) -> Checkpoint {
    let mut operations = history.operations.iter().rev();
    let head = operations.find_map(|op| match &op.what {
        What::List { branches } => branches.iter().find(|branch| branch.no == MAIN),
        _ => None,
    });
    head.map_or(0, |main| main.head)
}

fn op(lane: u32, on: Branch, (invoked, returned): (u64, u64), what: What) -> Operation {
    Operation {
        thread: (FIRST_LANE + lane) * THREADS_PER_LANE,
        on,
        invoked,
        returned,
        maybe: false,
        what,
    }
}

fn put(lane: u32, times: (u64, u64), key: Key, value: Value) -> Operation {
    op(lane, MAIN, times, What::Put { key, value })
}

fn get(lane: u32, times: (u64, u64), key: Key, value: Value) -> Operation {
    op(lane, MAIN, times, What::Get { key, value })
}

fn all(lane: u32, times: (u64, u64), values: Contents) -> Operation {
    op(lane, MAIN, times, What::Snapshot { values })
}

fn pair(lane: u32, times: (u64, u64), a: Value, b: Value) -> Operation {
    let pairs = vec![(0, a), (1, b)];
    op(lane, MAIN, times, What::MultiPut { pairs })
}

fn restore(lane: u32, on: Branch, times: (u64, u64)) -> Operation {
    let to = Source::Checkpoint(SAVED);
    op(lane, on, times, What::Restore { to })
}

fn save(lane: u32, times: (u64, u64), made: Checkpoint) -> Operation {
    let expected = None;
    op(lane, MAIN, times, What::Checkpoint { expected, made })
}

fn maybe(mut op: Operation) -> Operation {
    op.maybe = true;
    op
}

/// The first two keys, and nothing in the others.
fn two(a: Value, b: Value) -> Contents {
    let mut contents = [0; KEYS];
    (contents[0], contents[1]) = (a, b);
    contents
}

/// All planted histories: each begins by writing A and B.
pub fn all_planted() -> Vec<Planted> {
    let groups = [of_one_key(), of_several_keys(), of_versions(), of_crashes()];
    groups.into_iter().flatten().collect()
}

fn planted(
    name: &'static str,
    wrong: Option<Refused>,
    operations: impl IntoIterator<Item = Operation>,
) -> Planted {
    let pairs = (0..KEYS as Key).map(|key| (key, two(A, B)[usize::from(key)]));
    let pairs = pairs.collect();
    let begin = op(0, MAIN, (0, 9), What::MultiPut { pairs });
    Planted {
        name,
        wrong,
        operations: [begin].into_iter().chain(operations).collect(),
        graph: vec![(SAVED, Vec::new(), two(A, B))],
    }
}

/// Wrong for the first key alone.
fn first_key() -> Option<Refused> {
    Some(Refused::Keys(vec![0]))
}

fn of_one_key() -> Vec<Planted> {
    let wrong = first_key;
    let swap = |lane, times, expected, value, found| {
        let (key, on) = (0, MAIN);
        let what = What::Swap {
            key,
            expected,
            value,
            found,
        };
        op(lane, on, times, what)
    };
    let delete = |lane, times, existed| {
        let existed = Some(existed);
        op(lane, MAIN, times, What::Delete { key: 0, existed })
    };
    vec![
        planted(
            "a read after the answer to a write sees the old value",
            wrong(),
            [put(1, (10, 20), 0, C), get(2, (21, 30), 0, A)],
        ),
        planted(
            "a read beside a write sees the old value",
            None,
            [put(1, (10, 30), 0, C), get(2, (20, 40), 0, A)],
        ),
        planted(
            "a write is lost",
            wrong(),
            [
                put(1, (10, 20), 0, C),
                get(1, (30, 40), 0, C),
                put(1, (50, 60), 0, D),
                get(2, (70, 80), 0, C),
            ],
        ),
        planted(
            "a value that nobody wrote",
            wrong(),
            [get(1, (10, 20), 0, 0xdead)],
        ),
        planted(
            "a read from the future",
            wrong(),
            [get(1, (10, 20), 0, C), put(2, (21, 30), 0, C)],
        ),
        planted(
            "a read through the window goes back to the old value",
            wrong(),
            [
                put(1, (10, 60), 0, C),
                get(2, (20, 30), 0, C),
                get(2, (40, 50), 0, A),
            ],
        ),
        planted(
            "one lane sees the new value, another then the old one",
            wrong(),
            [
                put(1, (10, 60), 0, C),
                get(2, (20, 30), 0, C),
                get(3, (40, 50), 0, A),
            ],
        ),
        planted(
            "a write is done twice",
            wrong(),
            [
                put(1, (10, 20), 0, C),
                put(2, (30, 40), 0, D),
                get(2, (50, 60), 0, D),
                get(2, (70, 80), 0, C),
            ],
        ),
        planted(
            "two lanes disagree on the order of two writes",
            wrong(),
            [
                put(1, (10, 90), 0, C),
                put(2, (10, 90), 0, D),
                get(3, (20, 30), 0, C),
                get(4, (20, 30), 0, C),
                get(3, (40, 50), 0, D),
                get(4, (40, 50), 0, D),
                get(4, (60, 70), 0, C),
            ],
        ),
        planted(
            "two compared writes of one value both win",
            wrong(),
            [swap(1, (10, 30), A, C, None), swap(2, (20, 40), A, D, None)],
        ),
        planted(
            "a compared write is refused for a value that was gone",
            wrong(),
            [put(1, (10, 20), 0, C), swap(2, (30, 40), D, B, Some(A))],
        ),
        planted(
            "a delete comes undone",
            wrong(),
            [delete(1, (10, 20), true), get(2, (30, 40), 0, A)],
        ),
        planted(
            "a delete of what is there finds nothing",
            wrong(),
            [delete(1, (10, 20), false)],
        ),
        planted(
            "two deletes of one value both find it",
            wrong(),
            [delete(1, (10, 30), true), delete(2, (10, 30), true)],
        ),
    ]
}

fn of_several_keys() -> Vec<Planted> {
    let torn = || Some(Refused::Together);
    vec![
        planted(
            "a read of two keys sees half of a write of two",
            torn(),
            [pair(1, (10, 40), C, D), all(2, (20, 30), two(C, B))],
        ),
        planted(
            "a read of two keys sees all of it",
            None,
            [pair(1, (10, 40), C, D), all(2, (20, 30), two(C, D))],
        ),
        planted(
            "a read of two keys sees the second of two writes only",
            torn(),
            [
                put(1, (10, 20), 0, C),
                put(1, (30, 60), 1, D),
                all(2, (15, 50), two(A, D)),
            ],
        ),
        // Of reads of one key each there is none that is wrong only together: linearizability is local.
        planted(
            "two lanes see two writes in different order, key by key",
            Some(Refused::Keys(vec![0, 1])),
            [
                put(1, (10, 90), 0, C),
                put(2, (10, 90), 1, D),
                get(3, (20, 30), 0, C),
                get(3, (40, 50), 1, B),
                get(4, (20, 30), 1, D),
                get(4, (40, 50), 0, A),
            ],
        ),
        planted(
            "two lanes see two writes in different order, in one read each",
            torn(),
            [
                put(1, (10, 90), 0, C),
                put(2, (10, 90), 1, D),
                all(3, (20, 30), two(C, B)),
                all(4, (20, 30), two(A, D)),
            ],
        ),
        planted(
            "one lane sees a write, another then not, in a read of several keys",
            Some(Refused::Keys(vec![1])),
            [
                put(1, (10, 20), 0, C),
                put(1, (30, 80), 1, D),
                get(2, (12, 60), 1, D),
                all(3, (61, 70), two(C, B)),
            ],
        ),
    ]
}

/// A transaction: a fork of the saved state, written in, and saved.
fn transaction(lane: u32, from: u64, key: Key, value: Value, made: Checkpoint) -> Vec<Operation> {
    let fork = FORKS + lane;
    let (source, expected) = (Source::Checkpoint(SAVED), None);
    let opened = What::Fork {
        from: source,
        no: fork,
        head: SAVED,
    };
    vec![
        op(lane, MAIN, (from, from + 1), opened),
        op(
            lane,
            fork,
            (from + 2, from + 3),
            What::Snapshot { values: two(A, B) },
        ),
        op(lane, fork, (from + 4, from + 5), What::Put { key, value }),
        op(
            lane,
            fork,
            (from + 6, from + 7),
            What::Checkpoint { expected, made },
        ),
    ]
}

fn merge(lane: u32, times: (u64, u64), from: Checkpoint, came: Came) -> Operation {
    let what = What::Merge {
        from: Source::Checkpoint(from),
        policy: Policy::Fail,
        expected: None,
        came,
    };
    op(lane, MAIN, times, what)
}

/// Two transactions on one state: the first wins, the second came to this.
fn two_transactions(
    name: &'static str,
    wrong: Option<Refused>,
    second: (Key, Came),
    merged: Option<Contents>,
) -> Planted {
    let (key, came) = second;
    let mut operations = vec![save(1, (10, 11), SAVED)];
    operations.extend(transaction(1, 20, 0, C, 0x11));
    operations.extend(transaction(2, 20, key, D, 0x22));
    operations.push(merge(1, (40, 50), 0x11, Came::Ahead(0x11)));
    operations.push(merge(2, (60, 70), 0x22, came));
    let mut planted = planted(name, wrong, operations);
    let mut theirs = two(A, B);
    theirs[usize::from(key)] = D;
    planted.graph.push((0x11, vec![SAVED], two(C, B)));
    planted.graph.push((0x22, vec![SAVED], theirs));
    if let Some(merged) = merged {
        planted.graph.push((0x33, vec![0x11, 0x22], merged));
    }
    planted
}

fn of_versions() -> Vec<Planted> {
    let head = |lane, times, head, changes| op(lane, MAIN, times, What::Describe { head, changes });
    let create = op(
        1,
        MAIN,
        (12, 13),
        What::Create {
            name: 99,
            from: Source::Checkpoint(SAVED),
            no: OTHER,
            head: SAVED,
        },
    );
    let switch = op(
        2,
        MAIN,
        (14, 15),
        What::Switch {
            name: 99,
            no: OTHER,
            head: SAVED,
            changes: 0,
        },
    );
    let saved = || [save(1, (10, 11), SAVED), put(1, (20, 21), 0, C)];
    vec![
        planted(
            "a read after a restore sees the state before it",
            first_key(),
            {
                let [save, put] = saved();
                [
                    save,
                    put,
                    restore(1, MAIN, (30, 40)),
                    get(2, (41, 50), 0, C),
                ]
            },
        ),
        planted("a read beside a restore sees the state before it", None, {
            let [save, put] = saved();
            [
                save,
                put,
                restore(1, MAIN, (30, 50)),
                get(2, (40, 60), 0, C),
            ]
        }),
        planted(
            "a restore gives back one key of two",
            Some(Refused::Keys(vec![1])),
            {
                let [save, _] = saved();
                let (pair, restore) = (pair(1, (20, 21), C, D), restore(1, MAIN, (30, 40)));
                [save, pair, restore, all(2, (41, 50), two(A, D))]
            },
        ),
        planted(
            "a read beside a restore sees half of it",
            Some(Refused::Together),
            {
                let [save, _] = saved();
                let (pair, restore) = (pair(1, (20, 21), C, D), restore(1, MAIN, (30, 60)));
                [save, pair, restore, all(2, (40, 50), two(A, D))]
            },
        ),
        planted(
            "a read after a switch sees the branch before it",
            first_key(),
            {
                let [save, put] = saved();
                let read = op(2, OTHER, (30, 40), What::Get { key: 0, value: C });
                [save, create.clone(), switch.clone(), put, read]
            },
        ),
        planted("a write to one branch shows in another", first_key(), {
            let [save, _] = saved();
            let write = op(2, OTHER, (20, 30), What::Put { key: 0, value: C });
            [save, create.clone(), switch, write, get(1, (31, 40), 0, C)]
        }),
        planted(
            "a branch is made twice",
            Some(Refused::Keys((0..KEYS).collect())),
            {
                let again = op(
                    3,
                    MAIN,
                    (20, 30),
                    What::Create {
                        name: 99,
                        from: Source::Checkpoint(SAVED),
                        no: OTHER + 1,
                        head: SAVED,
                    },
                );
                [save(1, (10, 11), SAVED), create, again]
            },
        ),
        planted(
            "a checkpoint misses a write before it",
            first_key(),
            [put(1, (10, 11), 0, C), save(1, (20, 30), SAVED)],
        ),
        planted(
            "a checkpoint holds a write after it",
            first_key(),
            [
                put(2, (10, 11), 0, C),
                save(1, (20, 30), SAVED),
                put(1, (40, 50), 0, A),
            ],
        ),
        planted(
            "a head goes back",
            Some(Refused::Keys((0..KEYS).collect())),
            [
                save(1, (10, 20), SAVED),
                head(2, (30, 40), SAVED, 0),
                head(2, (50, 60), 0x77, 0),
            ],
        ),
        two_transactions(
            "write skew: two transactions read what the other writes, and both are merged",
            None,
            (1, Came::Made(0x33)),
            Some(two(C, D)),
        ),
        two_transactions(
            "a lost update: two transactions write one key, and both are merged",
            first_key(),
            (0, Came::Made(0x33)),
            Some(two(D, B)),
        ),
        two_transactions(
            "the second of two that write one key is a conflict",
            None,
            (0, Came::Conflicts(vec![0])),
            None,
        ),
        two_transactions(
            "a merge loses what the branch had",
            first_key(),
            (1, Came::Made(0x33)),
            Some(two(A, D)),
        ),
        two_transactions(
            "a conflict is claimed where there is none",
            first_key(),
            (1, Came::Conflicts(vec![0])),
            None,
        ),
    ]
}

fn of_crashes() -> Vec<Planted> {
    let crash = |at| op(9, MAIN, (at, at + 1), What::Crash);
    vec![
        planted(
            "an acknowledged write is gone after a crash",
            first_key(),
            [put(1, (10, 20), 0, C), crash(30), get(2, (40, 50), 0, A)],
        ),
        planted(
            "a write that was never answered is there after a crash",
            None,
            [
                maybe(put(1, (10, 29), 0, C)),
                crash(30),
                get(2, (40, 50), 0, C),
            ],
        ),
        planted(
            "a write that was never answered is gone after a crash",
            None,
            [
                maybe(put(1, (10, 29), 0, C)),
                crash(30),
                get(2, (40, 50), 0, A),
            ],
        ),
        planted(
            "a write that a crash cut off is done later",
            first_key(),
            [
                maybe(put(1, (10, 29), 0, C)),
                crash(30),
                get(2, (40, 50), 0, A),
                get(2, (60, 70), 0, C),
            ],
        ),
        planted(
            "what was read before a crash is gone after it",
            first_key(),
            [
                maybe(put(1, (10, 29), 0, C)),
                get(2, (15, 20), 0, C),
                crash(30),
                get(2, (40, 50), 0, A),
            ],
        ),
        planted(
            "a crash keeps the second of two pairs only",
            Some(Refused::Together),
            [
                maybe(pair(1, (10, 29), C, D)),
                crash(30),
                all(2, (40, 50), two(A, D)),
            ],
        ),
    ]
}
