//! A round: lanes of several agents at once, then their records put together, one history per agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use helios::client::{ClientError, Lane, Revision, Session};
use helios::id::{ObjectId, ShardNo};

use crate::history::{
    Branch, Came, Checkpoint, Graph, History, MAIN, Name, Operation, THREADS_PER_LANE, What, now,
    short,
};
use crate::workload::{Made, Plan, Record, Worker, contents, observe, quiet_lane};

/// The lane that looks at everything in the end has this number.
const OBSERVER: u32 = 1 << 16;

/// Runs these lanes of the plan, each in a thread; they are attached until all have ended.
pub fn run(session: &Session, plan: &Plan, lanes: &[u32]) -> Vec<Record> {
    thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter()
            .map(|&no| scope.spawn(move || Some(Worker::attach(session, plan, no)?.run())))
            .collect();
        let ended: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        ended
            .into_iter()
            .flatten()
            .map(|(record, _lane)| record)
            .collect()
    })
}

/// Moves the plan's agents from shard to shard, and collects, while `work` runs; how many moves ended.
pub fn disturbed<T>(
    session: &Session,
    plan: &Plan,
    shards: u16,
    work: impl FnOnce() -> T,
) -> (T, u64) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let moving = scope.spawn(|| {
            let (mut round, mut moves) = (0, 0);
            while !over.load(Ordering::Acquire) {
                let agent = &plan.agents[round % plan.agents.len()];
                let to = ShardNo((round / plan.agents.len()) as u16 % shards);
                match session.migrate_agent(agent, to) {
                    Ok(()) => moves += 1,
                    // Not made yet, or there already.
                    Err(ClientError::Refused { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                if round % 8 == 7 {
                    session.collect().unwrap();
                }
                thread::sleep(Duration::from_millis(20));
                round += 1;
            }
            moves
        });
        let done = work();
        over.store(true, Ordering::Release);
        (done, moving.join().unwrap())
    })
}

/// When a runtime was killed: its lanes' last questions were answered before, or never.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    pub at: u64,
    /// Lanes below this number were its.
    pub lanes_end: u32,
}

/// The histories of a plan's agents, with what a last look at each finds.
pub fn histories(
    session: &Session,
    agents: &[String],
    records: Vec<Record>,
    deaths: &[Death],
) -> Vec<History> {
    let mut operations = vec![Vec::new(); agents.len()];
    let mut made = vec![Vec::new(); agents.len()];
    for record in records {
        for (agent, op) in record.operations {
            operations[agent].push(op);
        }
        for (agent, checkpoint) in record.made {
            made[agent].push(checkpoint);
        }
    }
    let parts = agents.iter().zip(operations).zip(made);
    parts
        .map(|((agent, mut operations), made)| {
            let mut lane = quiet_lane(session, agent);
            operations.extend(observe(&mut lane, OBSERVER));
            let (graph, tokens) = graph(&mut lane, &made);
            operations = resolved(operations, deaths, &tokens);
            operations.extend(deaths.iter().map(crash));
            operations.sort_by_key(|op| (op.thread, op.invoked));
            History { operations, graph }
        })
        .collect()
}

fn crash(death: &Death) -> Operation {
    Operation {
        thread: (OBSERVER + 1) * THREADS_PER_LANE,
        on: MAIN,
        invoked: death.at + 1,
        returned: death.at + 2,
        maybe: false,
        what: What::Crash,
    }
}

/// Reads every checkpoint that was made, and all that they follow; and which of them carries which token.
fn graph(lane: &mut Lane, made: &[Made]) -> (Graph, BTreeMap<u64, Checkpoint>) {
    let (mut graph, mut tokens) = (Graph::default(), BTreeMap::new());
    let known: BTreeMap<[u8; 32], &Made> = made.iter().map(|made| (made.id, made)).collect();
    let heads = lane.branches("").unwrap().items.into_iter();
    let heads = heads.filter_map(|info| info.head.map(|head| *head.as_bytes()));
    let mut left: Vec<[u8; 32]> = known.keys().copied().chain(heads).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = left.pop() {
        if !seen.insert(id) {
            continue;
        }
        let name = short(&ObjectId::from_bytes(id));
        let of = Revision::Checkpoint(id);
        match lane.log(of, 1) {
            Ok(page) => {
                let entry = &page.entries[0];
                if let Some(token) = entry.opaque.get(4..).and_then(<[u8]>::first_chunk) {
                    tokens.insert(u64::from_le_bytes(*token), name);
                }
                left.extend(entry.parents.iter().map(|parent| *parent.as_bytes()));
                let parents = entry.parents.iter().map(short).collect();
                let fork = lane.fork(of).unwrap().no;
                let held = contents(&mut lane.on(fork), name.is_multiple_of(2)).unwrap();
                lane.discard(fork).unwrap();
                if let Some(then) = known.get(&id).and_then(|made| made.contents) {
                    graph.add(name, Vec::new(), then);
                }
                graph.add(name, parents, held);
            }
            // Collected: only its maker knew of it, and read it.
            Err(ClientError::NoSuchRevision) => {
                let made = known[&id];
                let held = made.contents.expect("what is lost was a fork's");
                graph.add(name, made.parents.clone(), held);
            }
            Err(error) => panic!("{error}"),
        }
    }
    (graph, tokens)
}

/// What was never answered ends where its runtime did, and learns what became of it.
fn resolved(
    operations: Vec<Operation>,
    deaths: &[Death],
    tokens: &BTreeMap<u64, Checkpoint>,
) -> Vec<Operation> {
    let listed = operations.iter().rev().find_map(|op| match &op.what {
        What::List { branches } => Some(branches.clone()),
        _ => None,
    });
    let number = |name: Name| -> Option<Branch> {
        let found = listed.iter().flatten().find(|branch| branch.name == name);
        found.map(|branch| branch.no)
    };
    let resolve = |mut op: Operation| -> Option<Operation> {
        if !op.maybe {
            return Some(op);
        }
        let death = deaths.iter().find(|death| op.lane() < death.lanes_end);
        op.returned = death.expect("only a runtime that died gives no answer").at;
        match &mut op.what {
            // What is in no branch's history was not done: branches of these rounds only grow.
            What::Checkpoint { made, .. } => *made = *tokens.get(made)?,
            What::Merge { came, .. } => {
                let Came::Made(token) = came else {
                    unreachable!("asked with a token");
                };
                *came = tokens
                    .get(token)
                    .map_or(Came::Unknown, |made| Came::Made(*made));
            }
            What::Create { name, no, .. } | What::Keep { name, no } => *no = number(*name)?,
            _ => {}
        }
        Some(op)
    };
    operations.into_iter().filter_map(resolve).collect()
}

/// The moment, for [`Death::at`].
pub fn dead_now() -> u64 {
    now()
}
