//! `helios restore`: puts a branch back to the state of a checkpoint.
//!
//! Floor 5.

use std::process::ExitCode;

use helios::client::ClientError;
use serde::Serialize;

use super::out::{Out, counted, text};
use super::place::PlaceArgs;
use super::revision::{HELP, Named, checkpoint, find};

/// Put a branch's state back to that of a checkpoint. Its head stays: the next checkpoint follows it.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose state
    agent: String,
    /// The state to go back to
    revision: String,
    /// The branch
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    branch: String,
    /// Drop changes that no checkpoint holds
    #[arg(long)]
    force: bool,
}

/// Changes would be lost.
#[derive(Debug, thiserror::Error)]
#[error(
    "branch \"{branch}\" has {} in no checkpoint, which would be lost: make a checkpoint first, or \
     drop them with --force",
    counted(*changes, "changed key")
)]
struct Unsaved {
    branch: String,
    changes: u64,
}

#[derive(Debug, Serialize)]
struct Restored<'a> {
    branch: &'a str,
    /// The checkpoint whose state it has; none: the empty state.
    restored: Option<String>,
    /// Changed keys that no checkpoint held.
    dropped: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let place = args.place.open_server()?;
    let mut lane = place.agent(&args.agent)?;
    let dropped = lane.switch(&args.branch)?.changes;
    let to = find(&mut lane, &args.revision)?;
    let restored = match to {
        Named::Empty => None,
        _ => Some(checkpoint(&mut lane, &args.revision)?),
    };
    let restore = lane.restore(to.revision(), args.force);
    restore.map_err(|error| match error {
        ClientError::Unsaved { changes } => anyhow::Error::new(Unsaved {
            branch: args.branch.clone(),
            changes,
        }),
        error => error.into(),
    })?;
    let mut out = Out::new(args.place.json);
    let branch = &*args.branch;
    let restored = restored.map(|entry| entry.id.to_string());
    if out.json {
        out.object(&Restored {
            branch,
            restored,
            dropped,
        })?;
    } else {
        let state = restored.unwrap_or_else(|| "no keys".to_owned());
        let lost = match dropped {
            0 => String::new(),
            some => format!("; {} dropped", counted(some, "changed key")),
        };
        let branch = text(branch.as_bytes());
        out.line(format_args!("{branch} has the state of {state}{lost}"))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}
