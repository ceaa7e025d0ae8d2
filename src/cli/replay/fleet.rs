//! The workers as the replay sees them: started, told, listened to, and never left behind.
//!
//! Floor 5, part of `replay`.
//!
//! Invariants
//! - a worker that ends before it is told to is an error, with what it ended of.
//! - a fleet that is dropped has no processes left.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::messages::{Answer, Order, Progress};

/// Name of the hidden subcommand.
const SUBCOMMAND: &str = "replay-worker";
/// Silence of all workers that can't be work: they report several times a second, but for the time
/// it takes to read a long trace or to sync what was written at first.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A replay whose workers failed it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum FleetError {
    #[error("can't start a worker: {source}")]
    Start { source: io::Error },
    #[error("worker {worker}: can't be told what to do: {source}")]
    Told { worker: usize, source: io::Error },
    #[error("{message}")]
    Failed { worker: usize, message: String },
    #[error("worker {worker} ended before its work was done ({status})")]
    Ended { worker: usize, status: ExitStatus },
    #[error("worker {worker} ended before its work was done")]
    Lost { worker: usize },
    #[error("no worker has said anything for {SILENCE_MAX:?}; the runtime does not answer them")]
    Silence,
    #[error("worker {worker} said what can't be understood: {line:?}")]
    Gibberish { worker: usize, line: String },
}

/// Some workers.
#[derive(Debug)]
pub(super) struct Fleet {
    workers: Vec<Worker>,
    heard: Receiver<(usize, Option<String>)>,
}

#[derive(Debug)]
struct Worker {
    process: Child,
    orders: Option<ChildStdin>,
}

impl Fleet {
    /// Starts so many, as copies of this program.
    pub(super) fn start(count: u32) -> Result<Self, FleetError> {
        let start = |source| FleetError::Start { source };
        let program = env::current_exe().map_err(start)?;
        let (sender, heard) = mpsc::channel();
        let mut fleet = Self {
            workers: Vec::new(),
            heard,
        };
        for index in 0..count as usize {
            let mut process = Command::new(&program)
                .arg(SUBCOMMAND)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(start)?;
            listen(index, &mut process, sender.clone());
            let orders = process.stdin.take();
            fleet.workers.push(Worker { process, orders });
        }
        Ok(fleet)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    /// Tells each worker what to do and waits until all have done it. Returns their answers in
    /// order; `progress` hears the sum of what they report before.
    pub(super) fn order(
        &mut self,
        order: impl Fn(usize) -> Order,
        mut progress: impl FnMut(u64),
    ) -> Result<Vec<Answer>, FleetError> {
        for worker in 0..self.len() {
            self.tell(worker, &order(worker))?;
        }
        let mut answers: Vec<Option<Answer>> = vec![None; self.len()];
        let mut done = vec![0; self.len()];
        while answers.contains(&None) {
            match self.hear()? {
                (worker, Answer::Progress(Progress { done: count })) => {
                    done[worker] = count;
                    progress(done.iter().sum());
                }
                (worker, Answer::Failed { message }) => {
                    return Err(FleetError::Failed { worker, message });
                }
                (worker, answer) => answers[worker] = Some(answer),
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Lets all end and waits for it.
    pub(super) fn finish(mut self) -> Result<(), FleetError> {
        for worker in 0..self.len() {
            self.tell(worker, &Order::Finish)?;
        }
        for worker in 0..self.len() {
            match self.workers[worker].process.wait() {
                Ok(status) if status.success() => {}
                Ok(status) => return Err(FleetError::Ended { worker, status }),
                Err(_) => return Err(FleetError::Lost { worker }),
            }
        }
        Ok(())
    }

    fn tell(&mut self, worker: usize, order: &Order) -> Result<(), FleetError> {
        let failed = |source| FleetError::Told { worker, source };
        let mut line = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        let orders = self.workers[worker].orders.as_mut();
        let told = orders.map_or(Ok(()), |orders| orders.write_all(&line));
        match told {
            // It has ended: what of is the better message.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(self.ended(worker)),
            told => told.map_err(failed),
        }
    }

    fn hear(&mut self) -> Result<(usize, Answer), FleetError> {
        // Every worker's listener says None before it goes.
        match self.heard.recv_timeout(SILENCE_MAX) {
            Ok((worker, Some(line))) => match serde_json::from_str(&line) {
                Ok(answer) => Ok((worker, answer)),
                Err(_) => Err(FleetError::Gibberish { worker, line }),
            },
            Ok((worker, None)) => Err(self.ended(worker)),
            Err(RecvTimeoutError::Timeout) => Err(FleetError::Silence),
            Err(RecvTimeoutError::Disconnected) => Err(FleetError::Lost { worker: 0 }),
        }
    }

    fn ended(&mut self, worker: usize) -> FleetError {
        // Its own last words, if there are any, say more than a status.
        for (worker, line) in self.heard.try_iter() {
            let answer = line.and_then(|line| serde_json::from_str(&line).ok());
            if let Some(Answer::Failed { message }) = answer {
                return FleetError::Failed { worker, message };
            }
        }
        match self.workers[worker].process.wait() {
            Ok(status) => FleetError::Ended { worker, status },
            Err(_) => FleetError::Lost { worker },
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.orders = None;
            // Fails only where there is nothing left to kill.
            let _ = worker.process.kill();
            let _ = worker.process.wait();
        }
    }
}

/// Passes on what a worker says, line by line, and `None` when it has ended.
fn listen(index: usize, process: &mut Child, heard: Sender<(usize, Option<String>)>) {
    let Some(output) = process.stdout.take() else {
        return;
    };
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if heard.send((index, Some(line))).is_err() {
                return;
            }
        }
        let _ = heard.send((index, None));
    });
}
