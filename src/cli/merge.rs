//! `helios merge`: brings a checkpoint's changes into a branch, or says what stands against it.
//!
//! Floor 5.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use helios::client::{ClientError, MergeConflict, Merged, NewCheckpoint, Policy, ValueRef};
use serde::Serialize;

use super::diff::{Value, told};
use super::out::{Bytes, Out, counted, size, text};
use super::place::PlaceArgs;
use super::revision::{HELP, find};

/// Merge a checkpoint into a branch; where both changed a key, print the conflicts and end with 1.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose state
    agent: String,
    /// What to merge
    from: String,
    /// The branch that it is merged into
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    into: String,
    /// Keep the branch's value of keys that begin so and were changed by both; "" is every key. Of several
    /// prefixes the longest counts
    #[arg(long, value_name = "PREFIX")]
    ours: Vec<OsString>,
    /// Take the other's value of keys that begin so
    #[arg(long, value_name = "PREFIX")]
    theirs: Vec<OsString>,
    /// Refuse conflicts in keys that begin so, whatever shorter prefixes say
    #[arg(long, value_name = "PREFIX")]
    fail: Vec<OsString>,
    /// Attach this to the checkpoint that is made
    #[arg(long, value_name = "NAME=TEXT", value_parser = super::pair)]
    meta: Vec<(String, String)>,
}

/// What came of it, for programs.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// `nothing`, `fast_forward`, `merged` or `conflicts`.
    outcome: &'static str,
    head: Option<String>,
    tree: Option<String>,
    keys: Option<u64>,
    conflicts: Vec<Conflict>,
    /// There are more conflicts than these.
    more: bool,
}

#[derive(Debug, Serialize)]
struct Conflict {
    key: Bytes,
    base: Option<Value>,
    ours: Option<Value>,
    theirs: Option<Value>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let place = args.place.open_server()?;
    let mut lane = place.agent(&args.agent)?;
    lane.switch(&args.into)?;
    let from = find(&mut lane, &args.from)?;
    let of = |policy: Policy| move |prefix: &'_ OsString| (prefix.clone(), policy);
    let rules = args.ours.iter().map(of(Policy::Ours));
    let rules = rules.chain(args.theirs.iter().map(of(Policy::Theirs)));
    let rules: Vec<_> = rules
        .chain(args.fail.iter().map(of(Policy::Fail)))
        .collect();
    let rules: Vec<_> = rules
        .iter()
        .map(|(prefix, policy)| (prefix.as_bytes(), *policy))
        .collect();
    let pairs: Vec<_> = args
        .meta
        .iter()
        .map(|(name, text)| (&**name, &**text))
        .collect();
    let new = NewCheckpoint {
        pairs: &pairs,
        ..NewCheckpoint::default()
    };
    let mut out = Out::new(args.place.json);
    let code = match lane.merge(from.revision(), &rules, &new) {
        Ok(merged) => {
            print(&mut out, &merged, args)?;
            ExitCode::SUCCESS
        }
        Err(ClientError::Conflicts { listed, more }) => {
            conflicts(&mut out, listed, more)?;
            ExitCode::FAILURE
        }
        Err(error) => return Err(error.into()),
    };
    out.finish()?;
    Ok(code)
}

fn print(out: &mut Out, merged: &Merged, args: &Args) -> anyhow::Result<()> {
    let outcome = match merged {
        Merged::Nothing => Outcome {
            outcome: "nothing",
            ..Outcome::default()
        },
        Merged::FastForward { head } => Outcome {
            outcome: "fast_forward",
            head: Some(head.to_string()),
            ..Outcome::default()
        },
        Merged::Merged(made) => Outcome {
            outcome: "merged",
            head: Some(made.id.to_string()),
            tree: Some(made.tree.to_string()),
            keys: Some(made.keys),
            ..Outcome::default()
        },
    };
    if out.json {
        return out.object(&outcome);
    }
    let (into, from) = (text(args.into.as_bytes()), text(args.from.as_bytes()));
    match merged {
        Merged::Nothing => out.line(format_args!("{into} holds all of {from} already"))?,
        Merged::FastForward { head } => {
            out.line(format_args!(
                "{into} had nothing of its own: it points at {head} now"
            ))?;
        }
        Merged::Merged(made) => {
            let keys = counted(made.keys, "key");
            out.line(format_args!("{into} points at {} now, {keys}", made.id))?;
        }
    }
    Ok(())
}

fn conflicts(out: &mut Out, listed: Vec<MergeConflict>, more: bool) -> anyhow::Result<()> {
    if out.json {
        let conflicts = listed.into_iter().map(|found| Conflict {
            key: Bytes::of(&found.key),
            base: Value::of(found.base),
            ours: Value::of(found.ours),
            theirs: Value::of(found.theirs),
        });
        return out.object(&Outcome {
            outcome: "conflicts",
            conflicts: conflicts.collect(),
            more,
            ..Outcome::default()
        });
    }
    let cell = |value: Option<ValueRef>| value.map_or("-".to_owned(), told);
    let width = size(u64::MAX).len() + 18;
    out.line(format_args!(
        "{:width$}  {:width$}  {:width$}  KEY",
        "BASE", "OURS", "THEIRS"
    ))?;
    let count = listed.len() as u64;
    for found in listed {
        let (base, ours, theirs) = (cell(found.base), cell(found.ours), cell(found.theirs));
        let key = text(&found.key);
        out.line(format_args!(
            "{base:width$}  {ours:width$}  {theirs:width$}  {key}"
        ))?;
    }
    let least = if more { "at least " } else { "" };
    eprintln!(
        "helios: {least}{}, and nothing was changed: decide with --ours PREFIX or --theirs PREFIX, or \
         change one side",
        counted(count, "conflict")
    );
    Ok(())
}
