//! `helios tag`: lists, sets, publishes and deletes names of checkpoints.
//!
//! Floor 5.

use std::process::ExitCode;

use helios::id::ObjectId;
use serde::Serialize;

use super::out::{Out, text};
use super::place::PlaceArgs;
use super::revision::{HELP, checkpoint, published, tags};

/// List, set, publish and delete tags: names that stay with a checkpoint.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List an agent's tags, and which of them every agent may read
    List {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose tags
        agent: String,
    },
    /// Let a tag name a checkpoint
    Set {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose tag
        agent: String,
        /// What it is called
        name: String,
        /// What it is to name
        #[arg(default_value = "HEAD")]
        revision: String,
        /// Let every agent read that checkpoint by the tag; without this, a tag that was public is no more
        #[arg(long)]
        public: bool,
        /// Even if it names another checkpoint
        #[arg(long)]
        force: bool,
    },
    /// Delete a tag
    Delete {
        #[command(flatten)]
        place: PlaceArgs,
        /// Whose tag
        agent: String,
        /// Which
        name: String,
    },
}

/// The agent has no such tag.
#[derive(Debug, thiserror::Error)]
#[error("there is no tag \"{name}\"; `helios tag list {agent}` lists those that there are")]
struct NoSuchTag {
    agent: String,
    name: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::List { place, agent } => {
            let opened = place.open()?;
            let mut lane = opened.agent(agent)?;
            let mut out = Out::new(place.json);
            let published = published(&mut lane)?;
            for (name, target) in tags(&mut lane)? {
                let public = published.iter().any(|(other, _)| *other == name);
                let tag = Tag::of(&name, &target, public);
                print(&mut out, &tag)?;
            }
            out.finish()?;
        }
        Action::Set {
            place,
            agent,
            name,
            revision,
            public,
            force,
        } => {
            let mut lane = place.open_server()?.agent(agent)?;
            let target = checkpoint(&mut lane, revision)?.id;
            let named = helios::client::Revision::Checkpoint(*target.as_bytes());
            match public {
                true => lane.publish(name, named, *force)?,
                false => lane.tag(name, named, *force)?,
            }
            let mut out = Out::new(place.json);
            print(&mut out, &Tag::of(name, &target, *public))?;
            out.finish()?;
        }
        Action::Delete { place, agent, name } => {
            let mut lane = place.open_server()?.agent(agent)?;
            lane.untag(name).map_err(|error| match error {
                helios::client::ClientError::NoSuchRevision => anyhow::Error::new(NoSuchTag {
                    agent: agent.clone(),
                    name: name.clone(),
                }),
                error => error.into(),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A tag, for programs.
#[derive(Debug, Serialize)]
struct Tag<'a> {
    name: &'a str,
    target: String,
    /// Whether every agent may read it.
    public: bool,
}

impl<'a> Tag<'a> {
    fn of(name: &'a str, target: &ObjectId, public: bool) -> Self {
        let target = target.to_string();
        Self {
            name,
            target,
            public,
        }
    }
}

fn print(out: &mut Out, tag: &Tag<'_>) -> anyhow::Result<()> {
    if out.json {
        return out.object(tag);
    }
    let public = if tag.public { "  public" } else { "" };
    let name = text(tag.name.as_bytes());
    out.line(format_args!("{name}  {}{public}", tag.target))?;
    Ok(())
}
