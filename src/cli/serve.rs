//! `helios serve`: a thin host around the runtime.

use std::process::ExitCode;

use anyhow::Context;
use helios::Runtime;

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
    let signal = signals.wait().context("waiting for a signal")?;
    println!("helios: {signal}, shutting down");
    runtime.shutdown()?;
    println!("helios: everything is on the device; bye");
    Ok(ExitCode::SUCCESS)
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
