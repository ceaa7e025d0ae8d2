//! The subcommands of the `helios` program.
//!
//! Floor 5: arguments in, text and exit codes out. Exit codes: 0 good, 1 the answer is no, or it
//! failed, 2 the configuration or the arguments are wrong, 3 a part of the runtime failed while it
//! served.
//!
//! In this room: `serve`, `replay` and `doctor` are about runtimes; the others about agents, which they
//! find through `place`, name with `revision`, and print with `out`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use helios::config::{Config, ConfigError};
use helios::runtime::RuntimeError;

mod agents;
mod branch;
mod diff;
mod doctor;
mod export;
mod export_file;
mod gc;
mod import;
mod log;
mod merge;
mod out;
mod place;
mod replay;
mod restore;
mod revision;
mod serve;
mod show;
mod tag;
mod verify;

#[derive(Parser)]
#[command(
    name = "helios",
    version,
    about = "A storage runtime for the state of many AI agents"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a runtime until it is told to stop (SIGINT or SIGTERM).
    Serve(ConfigArgs),
    Replay(replay::Args),
    #[command(hide = true)]
    ReplayWorker(replay::worker::Args),
    /// Show the machine, the placement, and what is degraded, with its cure.
    Doctor {
        #[command(flatten)]
        config: ConfigArgs,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    Agents(agents::Args),
    Gc(gc::Args),
    Log(log::Args),
    Show(show::Args),
    Diff(diff::Args),
    Branch(branch::Args),
    Tag(tag::Args),
    Merge(merge::Args),
    Restore(restore::Args),
    Export(export::Args),
    Import(import::Args),
    Verify(verify::Args),
}

impl Command {
    /// Whether it runs for long, so that its log is worth reading along.
    fn is_runtime(&self) -> bool {
        matches!(
            self,
            Self::Serve(_) | Self::Replay(_) | Self::ReplayWorker(_) | Self::Doctor { .. }
        )
    }
}

/// Where the configuration comes from.
#[derive(clap::Args, Clone)]
struct ConfigArgs {
    /// The configuration file; without it, the defaults hold.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn load(&self) -> anyhow::Result<Config> {
        load(self.config.as_deref())
    }
}

fn load(path: Option<&Path>) -> anyhow::Result<Config> {
    Ok(path.map_or_else(|| Ok(Config::default()), Config::load)?)
}

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let level = match std::env::var("HELIOS_LOG").as_deref() {
        Ok("trace") => tracing::Level::TRACE,
        Ok("debug") => tracing::Level::DEBUG,
        Ok("warn") => tracing::Level::WARN,
        Ok("error") => tracing::Level::ERROR,
        Ok("info") => tracing::Level::INFO,
        _ if args.command.is_runtime() => tracing::Level::INFO,
        _ => tracing::Level::WARN,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let outcome = match args.command {
        Command::Replay(args) => replay::run(args),
        Command::ReplayWorker(args) => replay::worker::run(args),
        Command::Serve(config) => serve::run(&config),
        Command::Doctor { config, json } => {
            config.load().and_then(|config| doctor::run(&config, json))
        }
        Command::Agents(args) => agents::run(&args),
        Command::Gc(args) => gc::run(&args),
        Command::Log(args) => log::run(&args),
        Command::Show(args) => show::run(args),
        Command::Diff(args) => diff::run(&args),
        Command::Branch(args) => branch::run(&args),
        Command::Tag(args) => tag::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Verify(args) => verify::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        if out::is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("helios: {}", told(&error));
        ExitCode::from(if is_config(&error) { 2 } else { 1 })
    })
}

/// Reads NAME=TEXT.
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, text) = text.split_once('=').ok_or("write NAME=TEXT")?;
    Ok((name.to_owned(), text.to_owned()))
}

/// An error and its causes; many name their cause themselves, which then is not said twice.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether the operator has to change the configuration.
fn is_config(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(
                cause.downcast_ref::<RuntimeError>(),
                Some(RuntimeError::Config(_))
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let io = || std::io::Error::from_raw_os_error(libc::ENOENT);
        let path = PathBuf::from("x.sock");
        let listen = helios::runtime::ListenError::Os { path, source: io() };
        let no_such_file = "No such file or directory (os error 2)";
        let cases = [
            (
                anyhow::Error::new(listen),
                format!("socket x.sock: {no_such_file}"),
            ),
            (
                anyhow::Error::new(io()).context("opening"),
                format!("opening: {no_such_file}"),
            ),
        ];
        for (error, text) in cases {
            assert_eq!(told(&error), text);
        }
    }
}
