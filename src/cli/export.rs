//! `helios export`: an agent's whole history in one file.
//!
//! Floor 5. Checkpoints go out with their parents before them, each as the difference to one that is in
//! the file already; their values pass through one by one. Memory: some 80 bytes for each checkpoint, and the
//! largest value.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use helios::client::{BranchInfo, KeyDifference, Lane, Revision};
use helios::id::ObjectId;
use serde::Serialize;

use super::export_file::{Counts, Frame, Writer};
use super::out::{Out, counted, size};
use super::place::PlaceArgs;
use super::revision::{branches, each, tags};

/// Values that are read together have at most so many bytes.
const SMALL_BYTES_MAX: u64 = 2 << 10;
/// How many are read together.
const READ_TOGETHER_MAX: usize = 32;

/// Write an agent's checkpoints, branches and tags to one file, for `helios import`.
///
/// Changes that are in no checkpoint are not part of it; how many there are is said.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose history
    agent: String,
    /// The file to make
    file: PathBuf,
    /// Replace a file of that name
    #[arg(long)]
    force: bool,
}

/// A file is in the way.
#[derive(Debug, thiserror::Error)]
#[error("{} is there already: choose another name, or replace it with --force", path.display())]
struct Exists {
    path: PathBuf,
}

/// A checkpoint that can't be written out.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint {id} says what this program does not know; use the newer program")]
struct Unknown {
    id: ObjectId,
}

#[derive(Debug, Serialize)]
struct Exported {
    file: String,
    #[serde(flatten)]
    counts: Counts,
    branches: usize,
    tags: usize,
    file_bytes: u64,
    /// Branches with changes that are in no checkpoint, and how many.
    unsaved: Vec<(String, u64)>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.force && args.file.symlink_metadata().is_ok() {
        let path = args.file.clone();
        return Err(Exists { path }.into());
    }
    let place = args.place.open()?;
    let mut lane = place.agent(&args.agent)?;
    let mut partial = args.file.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write(&mut lane, &args.agent, &partial).and_then(|exported| {
        std::fs::rename(&partial, &args.file)
            .with_context(|| format!("can't rename to {}", args.file.display()))?;
        Ok(exported)
    });
    let exported = written.inspect_err(|_| {
        // What is there of it is of no use to anybody.
        let _ = std::fs::remove_file(&partial);
    })?;
    let exported = Exported {
        file: args.file.display().to_string(),
        ..exported
    };
    let mut out = Out::new(args.place.json);
    if out.json {
        out.object(&exported)?;
    } else {
        for (branch, changes) in &exported.unsaved {
            eprintln!(
                "helios: branch {branch} has {} in no checkpoint: not exported",
                counted(*changes, "changed key")
            );
        }
        let checkpoints = counted(exported.counts.checkpoints, "checkpoint");
        let (changes, bytes) = (exported.counts.changes, size(exported.file_bytes));
        let file = args.file.display();
        out.line(format_args!(
            "{checkpoints}, {changes} changes, {bytes} in {file}"
        ))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn write(lane: &mut Lane, agent: &str, path: &Path) -> anyhow::Result<Exported> {
    let mut made = OpenOptions::new();
    // What an agent stored is its owner's, here as in the data directory.
    let made = made.write(true).create(true).truncate(true).mode(0o600);
    let to = made.open(path);
    let to = to.with_context(|| format!("can't write {}", path.display()))?;
    let mut file = Writer::new(BufWriter::with_capacity(1 << 20, to))?;
    file.push(&Frame::Agent { name: agent })?;
    let (branches, tags) = (branches(lane)?, tags(lane)?);
    let heads = branches.iter().filter_map(|branch| branch.head);
    let heads = heads
        .chain(tags.iter().map(|(_, target)| *target))
        .collect();
    let mut ids = Vec::new();
    each(lane, heads, |entry| {
        ids.push((entry.sequence, entry.id));
        Ok(())
    })?;
    // A parent's sequence is below its child's.
    ids.sort_unstable();
    let mut there = HashSet::with_capacity(ids.len());
    for (_, id) in &ids {
        checkpoint(lane, &mut file, &there, id)?;
        there.insert(*id);
    }
    for branch in &branches {
        let (name, head) = (&*branch.name, branch.head);
        file.push(&Frame::Branch { name, head })?;
    }
    for (name, target) in &tags {
        let target = *target;
        file.push(&Frame::Tag { name, target })?;
    }
    let (to, counts, file_bytes) = file.finish()?;
    let to = to
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    to.sync_all()
        .with_context(|| format!("can't sync {}", path.display()))?;
    Ok(Exported {
        file: String::new(),
        counts,
        branches: branches.len(),
        tags: tags.len(),
        file_bytes,
        unsaved: unsaved(&branches),
    })
}

fn unsaved(branches: &[BranchInfo]) -> Vec<(String, u64)> {
    let changed = branches.iter().filter(|branch| branch.changes > 0);
    changed
        .map(|branch| (branch.name.clone(), branch.changes))
        .collect()
}

/// Writes a checkpoint, and what changed since one of its parents that the file holds.
fn checkpoint(
    lane: &mut Lane,
    file: &mut Writer<BufWriter<File>>,
    there: &HashSet<ObjectId>,
    id: &ObjectId,
) -> anyhow::Result<()> {
    let this = Revision::Checkpoint(*id.as_bytes());
    let page = lane.log(this, 1)?;
    let entry = page.entries.first();
    let bytes = entry.and_then(|entry| entry.to_bytes());
    let (Some(entry), Some(bytes)) = (entry, bytes) else {
        return Err(Unknown { id: *id }.into());
    };
    let base = entry.parents.iter().find(|parent| there.contains(parent));
    let base = base.copied();
    let bytes = &*bytes;
    file.push(&Frame::Checkpoint { base, bytes })?;
    let before = base.map(|base| *base.as_bytes());
    let before = before.map_or(Revision::Empty, Revision::Checkpoint);
    let fork = lane.fork(this)?;
    let mut from: Option<Vec<u8>> = None;
    loop {
        let page = lane.diff(before, this, from.as_deref(), 0)?;
        let mut rest = &*page.items;
        while !rest.is_empty() {
            let taken = changes(&mut lane.on(fork.no), file, rest)?;
            rest = &rest[taken..];
        }
        match page.items.into_iter().next_back() {
            Some(last) if page.more => from = Some(last.key),
            _ => break,
        }
    }
    lane.discard(fork.no)?;
    Ok(())
}

/// A value that a checkpoint names could not be read.
#[derive(Debug, thiserror::Error)]
#[error("a checkpoint's value can't be found; `helios verify` says what is damaged")]
struct Lost;

/// Writes the first of these changes, or the first few of which the values are small; how many.
fn changes(
    lane: &mut Lane,
    file: &mut Writer<BufWriter<File>>,
    changes: &[KeyDifference],
) -> anyhow::Result<usize> {
    let is_small = |change: &&KeyDifference| {
        let value = change.after.as_ref();
        value.is_some_and(|value| value.bytes <= SMALL_BYTES_MAX)
    };
    let small = changes.iter().take_while(is_small).take(READ_TOGETHER_MAX);
    let keys: Vec<_> = small.map(|change| &*change.key).collect();
    if !keys.is_empty() {
        for (key, value) in keys.iter().zip(lane.multi_get(&keys)?) {
            file.put(key, &value.ok_or(Lost)?)?;
        }
        return Ok(keys.len());
    }
    let key = &*changes[0].key;
    if changes[0].after.is_none() {
        file.push(&Frame::Delete { key })?;
        return Ok(1);
    }
    let mut value = Vec::new();
    lane.get(key, &mut value)?.ok_or(Lost)?;
    file.put(key, &value)?;
    Ok(1)
}
