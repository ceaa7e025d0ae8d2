//! `helios serve`: a thin host around the runtime.
//!
//! It ends by a signal, or because a part of the runtime failed: then it says the reason and its
//! number, lets the other parts end in order, and exits with [`FAILED`], so that whatever watches
//! it starts it again and recovery brings everything back.

use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};

use anyhow::Context;
use helios::Runtime;
use helios::runtime::{Failure, Health};

use super::ConfigArgs;

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    // Blocked before any thread is started, so that all of them inherit the mask and the signals
    // wait for `wait_for_signal`.
    let signals = Signals::block().context("blocking signals")?;
    let runtime = Runtime::start(args.load()?)?;
    println!(
        "helios: {} shard(s), io {}, listening on {}",
        runtime.shards(),
        runtime.io_backend(),
        runtime.socket().display()
    );
    let (end, ends) = channel();
    watch(runtime.health(), end.clone())?;
    signals.watch(end)?;
    // Both ends are held by threads that wait as long as the runtime runs.
    match ends.recv().context("waiting for an end")? {
        End::Signal(signal) => {
            let signal = signal.context("waiting for a signal")?;
            println!("helios: {signal}, shutting down");
            runtime.shutdown()?;
            println!("helios: everything is on the device; bye");
            Ok(ExitCode::SUCCESS)
        }
        End::Failure(failure) => {
            eprintln!("{}", farewell(failure));
            // What failed can't end in order; the others do, and said why where they could not.
            if let Err(error) = runtime.shutdown() {
                eprintln!("helios: {error}");
            }
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// The exit code after a failure of a part of the runtime.
const FAILED: u8 = 3;

/// Why `serve` ends.
enum End {
    Signal(std::io::Result<&'static str>),
    Failure(Failure),
}

fn farewell(failure: Failure) -> String {
    let number = failure.number();
    format!("helios: stops for reason {number}: {failure}")
}

/// Waits for a failure on a thread of its own, which ends with the runtime.
fn watch(health: Health, end: Sender<End>) -> anyhow::Result<()> {
    let wait = move || {
        if let Some(failure) = health.wait() {
            // Another end may have come first.
            let _ = end.send(End::Failure(failure));
        }
    };
    let thread = std::thread::Builder::new().name("helios-health".into());
    thread.spawn(wait).context("starting a thread")?;
    Ok(())
}

/// SIGINT and SIGTERM, taken one at a time.
struct Signals(libc::sigset_t);

#[expect(
    unsafe_code,
    reason = "signal sets have no safe interface in the dependencies we have"
)]
impl Signals {
    fn block() -> std::io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before use; the calls touch it only.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(Self(set)),
                errno => Err(std::io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// Waits for a signal on a thread of its own, which ends with the process.
    fn watch(self, end: Sender<End>) -> anyhow::Result<()> {
        let wait = move || {
            // Another end may have come first.
            let _ = end.send(End::Signal(self.wait()));
        };
        let thread = std::thread::Builder::new().name("helios-signals".into());
        thread.spawn(wait).context("starting a thread")?;
        Ok(())
    }

    fn wait(&self) -> std::io::Result<&'static str> {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right types.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 if signal == libc::SIGINT => Ok("SIGINT"),
            0 => Ok("SIGTERM"),
            errno => Err(std::io::Error::from_raw_os_error(errno)),
        }
    }
}
