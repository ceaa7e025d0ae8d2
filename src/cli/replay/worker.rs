//! A worker: a process with its share of the agents, told what to do by the replay that started it.
//!
//! Floor 5, part of `replay`; the hidden subcommand `replay-worker`. One thread makes all calls;
//! another reads the orders, and ends the process when they end, so that no worker outlives its
//! replay, whatever that died of.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{self, ExitCode};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use helios::client::Session;
use helios::topology::{self, CoreId};

use super::drive::{Drive, Port};
use super::messages::{Answer, Loaded, Order};
use super::port;
use super::port::Seat;
use super::scenario::{Deal, Scenario};
use super::trace::Trace;

/// The worker takes all it needs from its standard input.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What [`Order::Load`] has settled.
struct Plan {
    scenario: Scenario,
    deal: Deal,
    worker: u32,
    think: f64,
}

/// Carries out orders until there are no more.
pub(crate) fn run(_: Args) -> anyhow::Result<ExitCode> {
    let orders = orders();
    if let Err(error) = work(&orders) {
        let message = format!("{error:#}");
        return match answer(&Answer::Failed { message }) {
            Ok(()) => Ok(ExitCode::FAILURE),
            // Nobody is left to be told.
            Err(_) => Err(error),
        };
    }
    Ok(ExitCode::SUCCESS)
}

fn work(orders: &Receiver<Order>) -> anyhow::Result<()> {
    // Orders come in a fixed sequence; the reader has ended the process if there is none.
    let Order::Load {
        trace,
        deal,
        worker,
        think,
    } = orders.recv()?
    else {
        anyhow::bail!("the first order must be to load a trace");
    };
    let (plan, loaded) = load(&trace, deal, worker, think)?;
    answer(&Answer::Loaded(loaded))?;
    let Order::Attach { socket, core } = orders.recv()? else {
        anyhow::bail!("the second order must be to attach");
    };
    if let Some(core) = core {
        // Refused, the kernel chooses the core: slower, not wrong.
        let _ = topology::pin_current_thread(CoreId(core));
    }
    let _ = topology::raise_file_limit();
    let session = Session::connect(&socket)
        .with_context(|| format!("can't connect to {}", socket.display()))?;
    let lanes = port::attach(&session, &plan.scenario).context("can't attach the agents")?;
    answer(&Answer::Attached)?;
    walk(orders, &plan, &session, lanes)
}

fn load(path: &Path, deal: Deal, worker: u32, think: f64) -> anyhow::Result<(Plan, Loaded)> {
    let trace = Trace::load(path)?;
    let scenario = Scenario::new(&trace, &deal, worker);
    let slots = || scenario.agents.iter().flat_map(|agent| &agent.slots);
    let preload = || slots().filter(|slot| slot.preload);
    let bytes = |slot: &super::scenario::Slot| u64::from(slot.key.bytes);
    let of_commons = |key| scenario.name(key).len() as u64 + u64::from(key.bytes);
    let loaded = Loaded {
        processes: trace.processes.len() as u64,
        accesses: trace.access_count() as u64,
        commons: scenario.commons.len() as u64,
        commons_bytes: scenario.commons.iter().map(of_commons).sum(),
        preload_keys: preload().count() as u64,
        preload_bytes: preload().map(bytes).sum(),
        footprint_bytes: slots().map(bytes).sum(),
    };
    let plan = Plan {
        scenario,
        deal,
        worker,
        think,
    };
    Ok((plan, loaded))
}

fn walk(
    orders: &Receiver<Order>,
    plan: &Plan,
    session: &Session,
    lanes: Vec<Seat>,
) -> anyhow::Result<()> {
    let mut drive = Drive::new(&plan.scenario, &plan.deal, plan.think, lanes);
    loop {
        match orders.recv()? {
            Order::Preload => {
                // One worker is enough for what all of them read.
                let mut commons = match plan.worker {
                    0 => Some(port::attach_commons(session).context("can't attach the commons")?),
                    _ => None,
                };
                preload(&mut drive, commons.as_mut())?;
            }
            Order::Walk { seconds } => {
                let duration = Duration::from_secs_f64(seconds);
                let walked =
                    drive.walk(duration, |progress| answer(&Answer::Progress(progress)))?;
                answer(&Answer::Walked(Box::new(walked)))?;
            }
            Order::Finish => return Ok(()),
            Order::Load { .. } | Order::Attach { .. } => {
                anyhow::bail!("an order came twice");
            }
        }
    }
}

fn preload<P: Port>(drive: &mut Drive<P>, commons: Option<&mut P>) -> anyhow::Result<()> {
    drive
        .preload(commons, |progress| answer(&Answer::Progress(progress)))
        .context("can't write the initial values")?;
    answer(&Answer::Preloaded)
}

/// Reads orders on a thread of its own, which ends the process when they end.
fn orders() -> Receiver<Order> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let order = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            if order.is_none_or(|order| sender.send(order).is_err()) {
                break;
            }
        }
        process::exit(1);
    });
    receiver
}

fn answer(answer: &Answer) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    Ok(output.flush()?)
}
