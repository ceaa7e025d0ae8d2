//! `helios agents`: which agents there are, and what is known of each.
//!
//! Floor 5.

use std::process::ExitCode;

use helios::agent::frame::RefusalCode;
use helios::client::{AgentInfo, ClientError};
use helios::id::ObjectId;
use serde::Serialize;

use super::out::{Out, counted, short, size, text};
use super::place::PlaceArgs;

/// List the agents: their branches, keys and memory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// Only names, which is quick where there are many
    #[arg(long)]
    names: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let place = args.place.open()?;
    let session = place.session();
    let mut out = Out::new(args.place.json);
    let mut after = String::new();
    loop {
        let page = session.agents(&after, 0)?;
        for item in &page.items {
            if args.names {
                name(&mut out, &item.name)?;
                continue;
            }
            match session.describe_agent(&item.name) {
                Ok(info) => print(&mut out, &info)?,
                // Terminated since.
                Err(ClientError::Refused {
                    code: RefusalCode::NoSuchAgent,
                    ..
                }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn name(out: &mut Out, name: &str) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Name<'a> {
        name: &'a str,
    }
    match out.json {
        true => out.object(&Name { name }),
        false => Ok(out.line(text(name.as_bytes()))?),
    }
}

/// An agent, for programs.
#[derive(Debug, Serialize)]
struct Agent<'a> {
    name: &'a str,
    shard: u16,
    public: bool,
    suspended: bool,
    moving_to: Option<u16>,
    lanes: u32,
    branches: u32,
    forks: u32,
    tags: u32,
    published: u32,
    /// The first few of its branches.
    heads: Vec<Head<'a>>,
    /// Memory that it takes.
    window_bytes: u64,
    l2_bytes: u64,
    index_bytes: u64,
}

/// A branch, for programs.
#[derive(Debug, Serialize)]
struct Head<'a> {
    name: &'a str,
    head: Option<String>,
    /// Keys that its changes lie on; none where telling takes the device.
    keys: Option<u64>,
    changes: u64,
}

fn print(out: &mut Out, info: &AgentInfo) -> anyhow::Result<()> {
    let heads = info.heads.iter();
    let id = |head: &[u8; 32]| ObjectId::from_bytes(*head);
    if out.json {
        return out.object(&Agent {
            name: &info.name,
            shard: info.shard,
            public: info.public,
            suspended: info.suspended,
            moving_to: info.moving_to,
            lanes: info.lanes,
            branches: info.branches,
            forks: info.forks,
            tags: info.tags,
            published: info.published,
            heads: heads
                .map(|branch| Head {
                    name: &branch.name,
                    head: branch.head.as_ref().map(|head| id(head).to_string()),
                    keys: branch.keys,
                    changes: branch.changes,
                })
                .collect(),
            window_bytes: info.window_bytes,
            l2_bytes: info.l2_bytes,
            index_bytes: info.index_bytes,
        });
    }
    let of = |flag: bool, word: &str| {
        if flag {
            format!(", {word}")
        } else {
            String::new()
        }
    };
    let (public, suspended) = (of(info.public, "public"), of(info.suspended, "suspended"));
    let tags = counted(info.tags.into(), "tag");
    let branches = match info.branches {
        1 => "1 branch".to_owned(),
        some => format!("{some} branches"),
    };
    let memory = size(info.window_bytes + info.l2_bytes + info.index_bytes);
    let (name, shard, lanes) = (
        text(info.name.as_bytes()),
        info.shard,
        counted(info.lanes.into(), "lane"),
    );
    out.line(format_args!(
        "{name}  shard {shard}, {branches}, {tags}, {lanes}, {memory} of memory{public}{suspended}"
    ))?;
    for branch in heads {
        let head = branch
            .head
            .as_ref()
            .map_or("no checkpoint".to_owned(), |head| short(&id(head)));
        let keys = branch
            .keys
            .map_or(String::new(), |keys| format!("  {}", counted(keys, "key")));
        let changes = match branch.changes {
            0 => String::new(),
            some => format!(", {} not in it", counted(some, "changed key")),
        };
        out.line(format_args!(
            "  {}  {head}{keys}{changes}",
            text(branch.name.as_bytes())
        ))?;
    }
    let more = u64::from(info.branches).saturating_sub(info.heads.len() as u64);
    if more > 0 {
        out.line(format_args!("  and {more} more: helios branch list {name}"))?;
    }
    Ok(())
}
