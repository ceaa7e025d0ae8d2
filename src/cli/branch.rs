//! `helios branch`: lists, makes, deletes and renames branches.
//!
//! Floor 5.

use std::process::ExitCode;

use helios::client::{BranchInfo, ClientError, Revision};
use helios::id::Retention;
use serde::Serialize;

use super::out::{Out, counted, text};
use super::place::PlaceArgs;
use super::revision::{HELP, branches, find};

/// List, create, delete and rename branches.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List an agent's branches, what they point at, and how many changes no checkpoint holds
    List {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose branches
        agent: String,
    },
    /// Make a branch
    Create {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose branch
        agent: String,
        /// What it is to be called
        name: String,
        /// Where it begins
        #[arg(default_value = "HEAD")]
        revision: String,
        /// That is a public tag of this other agent (`helios tag set --public` makes one)
        #[arg(long, value_name = "AGENT", requires = "revision")]
        of: Option<String>,
    },
    /// Delete a branch that nobody is on; its checkpoints stay as long as something else reaches them
    Delete {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose branch
        agent: String,
        /// Which
        name: String,
        /// Even if it has changes that no checkpoint holds
        #[arg(long)]
        force: bool,
    },
    /// Give a branch another name
    Rename {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose branch
        agent: String,
        /// What it is called
        name: String,
        /// What it is to be called
        new: String,
    },
    /// Say how much of a branch's history collections keep; its head stays in any case
    Retain {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose branch
        agent: String,
        /// Which
        name: String,
        /// `all`, `last:N` checkpoints, or `days:N`: those at most so old
        #[arg(value_parser = rule)]
        rule: Retention,
    },
}

/// Another agent has no such public tag.
#[derive(Debug, thiserror::Error)]
#[error(
    "agent \"{agent}\" has no public tag \"{name}\"; `helios tag list {agent}` lists what it has, `helios tag set {agent} {name} REVISION --public` makes one"
)]
struct NotPublic {
    agent: String,
    name: String,
}

/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Reads a rule as people write it.
fn rule(text: &str) -> Result<Retention, String> {
    let numbered = text.split_once(':').and_then(|(what, number)| {
        let number: u64 = number.parse().ok()?;
        match what {
            "last" => Some(Retention::Last(number)),
            "days" => Some(Retention::Newer(number.checked_mul(DAY_MS)?)),
            _ => None,
        }
    });
    match text {
        "all" => Ok(Retention::All),
        _ => numbered.ok_or_else(|| "a rule is `all`, `last:N` or `days:N`".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::List { place, agent } => list(place, agent)?,
        Action::Create {
            place,
            agent,
            name,
            revision,
            of,
        } => {
            let mut lane = place.open_server()?.agent(agent)?;
            let made = match of {
                Some(agent) => {
                    let name_there = revision;
                    lane.branch(
                        name,
                        Revision::Published {
                            agent,
                            name: name_there,
                        },
                    )
                }
                None => {
                    let from = find(&mut lane, revision)?;
                    lane.branch(name, from.revision())
                }
            };
            let made = made.map_err(|error| match (error, of) {
                (ClientError::NoSuchRevision | ClientError::NoSuchAgent, Some(of)) => {
                    anyhow::Error::new(NotPublic {
                        agent: of.clone(),
                        name: revision.clone(),
                    })
                }
                (error, _) => error.into(),
            })?;
            tell(place, &made)?;
        }
        Action::Delete {
            place,
            agent,
            name,
            force,
        } => {
            let mut lane = place.open_server()?.agent(agent)?;
            lane.delete_branch(name, *force)?;
        }
        Action::Rename {
            place,
            agent,
            name,
            new,
        } => {
            let mut lane = place.open_server()?.agent(agent)?;
            lane.switch(name)?;
            let renamed = lane.rename_branch(new)?;
            tell(place, &renamed)?;
        }
        Action::Retain {
            place,
            agent,
            name,
            rule,
        } => {
            let mut lane = place.open_server()?.agent(agent)?;
            lane.retain(name, *rule)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(place: &PlaceArgs, agent: &str) -> anyhow::Result<()> {
    let opened = place.open()?;
    let mut lane = opened.agent(agent)?;
    let mut out = Out::new(place.json);
    for branch in branches(&mut lane)? {
        print(&mut out, &branch)?;
    }
    Ok(out.finish()?)
}

fn tell(place: &PlaceArgs, branch: &BranchInfo) -> anyhow::Result<()> {
    let mut out = Out::new(place.json);
    print(&mut out, branch)?;
    Ok(out.finish()?)
}

/// A branch, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Branch<'a> {
    name: &'a str,
    head: Option<String>,
    /// The tree below its unsaved changes.
    tree: String,
    /// Keys that are changed and in no checkpoint.
    changes: u64,
}

impl<'a> Branch<'a> {
    pub(super) fn of(branch: &'a BranchInfo) -> Self {
        Self {
            name: &branch.name,
            head: branch.head.map(|head| head.to_string()),
            tree: branch.base.to_string(),
            changes: branch.changes,
        }
    }
}

fn print(out: &mut Out, branch: &BranchInfo) -> anyhow::Result<()> {
    if out.json {
        return out.object(&Branch::of(branch));
    }
    let name = text(branch.name.as_bytes());
    let head = match branch.head {
        Some(head) => head.to_string(),
        None => "no checkpoint yet".to_owned(),
    };
    let changes = match branch.changes {
        0 => String::new(),
        some => format!(", {} not in it", counted(some, "changed key")),
    };
    out.line(format_args!("{name}  {head}{changes}"))?;
    Ok(())
}
