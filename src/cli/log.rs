//! `helios log`: the history behind a revision, and what a checkpoint looks like in print.
//!
//! Floor 5.

use std::collections::HashMap;
use std::io;
use std::process::ExitCode;

use helios::client::{Lane, LogEntry};
use helios::id::ObjectId;
use serde::Serialize;

use super::out::{Bytes, Out, counted, date, hex, text};
use super::place::PlaceArgs;
use super::revision::{HELP, branches, find, tags};

/// Show the checkpoints behind a revision, each before those that it follows.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose history
    agent: String,
    /// Where to begin
    #[arg(default_value = "HEAD")]
    revision: String,
    /// Stop after so many
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let place = args.place.open()?;
    let mut lane = place.agent(&args.agent)?;
    let from = find(&mut lane, &args.revision)?;
    let names = names(&mut lane)?;
    let mut out = Out::new(args.place.json);
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut page = lane.log(from.revision(), asked(left))?;
    loop {
        for entry in &page.entries {
            print(&mut out, entry, &names)?;
        }
        left -= page.entries.len() as u64;
        if left == 0 || page.next.is_empty() {
            break;
        }
        page = lane.log_after(&page, asked(left))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// A limit as calls take it.
fn asked(left: u64) -> u32 {
    u32::try_from(left).unwrap_or(0)
}

/// What points at checkpoints: branches, and tags as `tag:NAME`.
pub(super) type Names = HashMap<ObjectId, Vec<String>>;

pub(super) fn names(lane: &mut Lane) -> anyhow::Result<Names> {
    let mut names = Names::new();
    for branch in branches(lane)? {
        if let Some(head) = branch.head {
            names.entry(head).or_default().push(branch.name);
        }
    }
    for (tag, target) in tags(lane)? {
        names.entry(target).or_default().push(format!("tag:{tag}"));
    }
    Ok(names)
}

/// A checkpoint for programs.
#[derive(Debug, Serialize)]
struct Logged<'a> {
    id: String,
    tree: String,
    parents: Vec<String>,
    agent: &'a str,
    keys: u64,
    sequence: u64,
    wall_ms: u64,
    metadata: &'a [(String, String)],
    opaque: Bytes,
    names: &'a [String],
}

/// Prints a checkpoint: a block of lines, or an object.
pub(super) fn print(out: &mut Out, entry: &LogEntry, names: &Names) -> anyhow::Result<()> {
    let names = names.get(&entry.id).map_or(&[][..], |names| names);
    if out.json {
        return out.object(&Logged {
            id: entry.id.to_string(),
            tree: entry.tree.to_string(),
            parents: entry.parents.iter().map(ObjectId::to_string).collect(),
            agent: &entry.agent,
            keys: entry.keys,
            sequence: entry.sequence,
            wall_ms: entry.wall_ms,
            metadata: &entry.pairs,
            opaque: Bytes::of(&entry.opaque),
            names,
        });
    }
    Ok(block(out, entry, names)?)
}

fn block(out: &mut Out, entry: &LogEntry, names: &[String]) -> io::Result<()> {
    let points = match names {
        [] => String::new(),
        names => format!(" ({})", names.join(", ")),
    };
    out.line(format_args!("checkpoint {}{points}", entry.id))?;
    for parent in &entry.parents {
        out.line(format_args!("  parent   {parent}"))?;
    }
    out.line(format_args!("  tree     {}", entry.tree))?;
    let keys = counted(entry.keys, "key");
    out.line(format_args!(
        "  by       {}, {keys}",
        text(entry.agent.as_bytes())
    ))?;
    let (date, sequence) = (date(entry.wall_ms), entry.sequence);
    out.line(format_args!("  at       {date}, sequence {sequence}"))?;
    for (name, value) in &entry.pairs {
        let (name, value) = (text(name.as_bytes()), text(value.as_bytes()));
        out.line(format_args!("  meta     {name} = {value}"))?;
    }
    if !entry.opaque.is_empty() {
        const SHOWN: usize = 32;
        let (bytes, more) = (entry.opaque.len(), entry.opaque.len() > SHOWN);
        let begin = hex(&entry.opaque[..bytes.min(SHOWN)]);
        let dots = if more { "..." } else { "" };
        out.line(format_args!("  opaque   {bytes} bytes: {begin}{dots}"))?;
    }
    Ok(())
}
