//! `helios diff`: the keys in which two checkpoints differ.
//!
//! Floor 5. Page by page: what is printed is forgotten.

use std::process::ExitCode;

use helios::client::{KeyDifference, Lane, ValueRef};
use serde::Serialize;

use super::out::{Bytes, Out, short, size, text};
use super::place::PlaceArgs;
use super::revision::{HELP, Named, find};

/// Show the keys in which two checkpoints differ: + added, - removed, ~ changed.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose state
    agent: String,
    /// The one
    before: String,
    /// The other
    #[arg(default_value = "HEAD")]
    after: String,
    /// Only count them
    #[arg(long)]
    stat: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let place = args.place.open()?;
    let mut lane = place.agent(&args.agent)?;
    let before = find(&mut lane, &args.before)?;
    let after = find(&mut lane, &args.after)?;
    let mut out = Out::new(args.place.json);
    if args.stat {
        count(&mut lane, &before, &after, &mut out)?;
    } else {
        list(&mut lane, &before, &after, &mut out)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Counts {
    added: u64,
    removed: u64,
    changed: u64,
}

fn count(lane: &mut Lane, before: &Named, after: &Named, out: &mut Out) -> anyhow::Result<()> {
    let counts = lane.diff_counts(before.revision(), after.revision())?;
    let counts = Counts {
        added: counts.added,
        removed: counts.removed,
        changed: counts.changed,
    };
    if out.json {
        return out.object(&counts);
    }
    let Counts {
        added,
        removed,
        changed,
    } = counts;
    out.line(format_args!(
        "{added} added, {removed} removed, {changed} changed"
    ))?;
    Ok(())
}

fn list(lane: &mut Lane, before: &Named, after: &Named, out: &mut Out) -> anyhow::Result<()> {
    let mut from: Option<Vec<u8>> = None;
    loop {
        let page = lane.diff(before.revision(), after.revision(), from.as_deref(), 0)?;
        for difference in &page.items {
            print(out, difference)?;
        }
        match page.items.into_iter().next_back() {
            Some(last) if page.more => from = Some(last.key),
            _ => return Ok(()),
        }
    }
}

/// A value, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Value {
    id: String,
    bytes: u64,
}

impl Value {
    pub(super) fn of(value: Option<ValueRef>) -> Option<Self> {
        value.map(|ValueRef { id, bytes }| Self {
            id: id.to_string(),
            bytes,
        })
    }
}

/// A difference, for programs.
#[derive(Debug, Serialize)]
struct Difference {
    change: &'static str,
    key: Bytes,
    before: Option<Value>,
    after: Option<Value>,
}

fn print(out: &mut Out, found: &KeyDifference) -> anyhow::Result<()> {
    let (sign, change) = match (&found.before, &found.after) {
        (None, _) => ('+', "added"),
        (_, None) => ('-', "removed"),
        _ => ('~', "changed"),
    };
    if out.json {
        return out.object(&Difference {
            change,
            key: Bytes::of(&found.key),
            before: Value::of(found.before),
            after: Value::of(found.after),
        });
    }
    let key = text(&found.key);
    let values = [found.before, found.after].into_iter().flatten();
    let values: Vec<_> = values.map(told).collect();
    out.line(format_args!("{sign} {key}  {}", values.join(" -> ")))?;
    Ok(())
}

/// A value in a table.
pub(super) fn told(value: ValueRef) -> String {
    format!("{} ({})", short(&value.id), size(value.bytes))
}
