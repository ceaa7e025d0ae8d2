//! `helios import`: an agent's history out of a file that `helios export` made.
//!
//! Floor 5. The file is read twice: first to check all of it, before the server hears of anything; then
//! each state is rebuilt in a fork and made a checkpoint of with the bytes it had, so that it gets the id it
//! had or is refused. Branches and tags come last: until then nothing of it can be seen.
//!
//! Memory: 32 bytes for each checkpoint, and the largest value.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use helios::client::{Attach, BranchInfo, ClientError, Lane, NewCheckpoint, Revision};
use helios::config::Durability;
use helios::id::{BranchNo, ObjectId, VALUE_BYTES_MAX};
use helios::state::checkpoint::Checkpoint;
use serde::Serialize;

use super::export_file::{Counts, Frame, Reader};
use super::out::{Out, counted, text};
use super::place::PlaceArgs;
use super::revision::{branches, tags};

/// Bytes of keys and values that are put together, about.
const PUT_TOGETHER_BYTES: usize = 32 << 10;
/// How many are put together.
const PUT_TOGETHER_MAX: usize = 256;
/// How long a busy server is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bring an agent's checkpoints, branches and tags in from a file of `helios export`.
///
/// The file is checked as a whole before anything is done. Checkpoints keep their ids. Branches and tags
/// that the agent has already must not be in the way.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// The file
    file: PathBuf,
    /// Import it as this agent, instead of the one that it was exported from
    #[arg(long = "as", value_name = "AGENT")]
    name: Option<String>,
    /// Only check the file: no server is needed
    #[arg(long)]
    check: bool,
}

/// What a file says beside its checkpoints.
#[derive(Debug, Default)]
pub(super) struct Contents {
    agent: String,
    counts: Counts,
    branches: Vec<(String, Option<ObjectId>)>,
    tags: Vec<(String, ObjectId)>,
}

#[derive(Debug, Serialize)]
struct Imported<'a> {
    agent: &'a str,
    #[serde(flatten)]
    counts: Counts,
    /// Checkpoints that were there already.
    known: u64,
    branches: usize,
    tags: usize,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(
        "agent \"{agent}\" has a {what} \"{name}\" with something else in it: rename or delete that first, or import as another agent with --as"
    )]
    InTheWay {
        agent: String,
        what: &'static str,
        name: String,
    },
    #[error(
        "the file holds a checkpoint {id} that is not the state which the file builds: it was forged or made by a faulty program"
    )]
    Forged { id: ObjectId },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = &args.file;
    let file = || format!("can't import {}", path.display());
    let contents = check(path).with_context(file)?;
    let name = args.name.as_deref().unwrap_or(&contents.agent);
    let mut out = Out::new(args.place.json);
    let known = if args.check {
        0
    } else {
        let place = args.place.open_server()?;
        if let Ok(mut lane) = place.agent(name) {
            refuse_taken(&mut lane, name, &contents)?;
        }
        let mut lane = place.attach(name, Attach::default())?;
        let known = build(&mut lane, path).with_context(file)?;
        name_them(&mut lane, name, &contents)?;
        lane.sync(Durability::Power)?;
        known
    };
    if out.json {
        out.object(&Imported {
            agent: name,
            counts: contents.counts,
            known,
            branches: contents.branches.len(),
            tags: contents.tags.len(),
        })?;
    } else {
        let agent = text(name.as_bytes());
        let checkpoints = counted(contents.counts.checkpoints, "checkpoint");
        let done = match (args.check, known) {
            (true, _) => " can be imported".to_owned(),
            (false, 0) => String::new(),
            (false, known) => format!(", {known} of them there already"),
        };
        let changes = contents.counts.changes;
        out.line(format_args!(
            "{agent}: {checkpoints}, {changes} changes{done}"
        ))?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn open(path: &Path) -> anyhow::Result<Reader<BufReader<File>>> {
    let file = File::open(path)?;
    Ok(Reader::new(BufReader::with_capacity(1 << 20, file))?)
}

/// Reads all of the file, and finds it good.
fn check(path: &Path) -> anyhow::Result<Contents> {
    check_frames(open(path)?)
}

/// Reads all frames, and finds them good.
pub(super) fn check_frames<R: Read>(mut reader: Reader<R>) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    let mut counts = Counts::default();
    let mut there = HashSet::new();
    // Bytes of a value that are still to come.
    let mut due = 0_u64;
    loop {
        let frame = reader.next()?;
        let is_first = contents.agent.is_empty();
        let is_change = matches!(frame, Frame::Put { .. } | Frame::Delete { .. });
        let what = match frame {
            Frame::Agent { name } if is_first => {
                name.clone_into(&mut contents.agent);
                None
            }
            _ if is_first => Some("it does not begin with an agent"),
            Frame::Part { part } if !part.is_empty() && part.len() as u64 <= due => {
                due -= part.len() as u64;
                counts.value_bytes += part.len() as u64;
                None
            }
            _ if due > 0 => Some("a value ends too soon"),
            _ if is_change && counts.checkpoints == 0 => Some("a change belongs to no checkpoint"),
            Frame::Checkpoint { base, bytes } => {
                counts.checkpoints += 1;
                check_checkpoint(base, bytes, &mut there)
            }
            Frame::Put {
                value_bytes, part, ..
            } => {
                counts.changes += 1;
                counts.value_bytes += part.len() as u64;
                let left = u64::from(value_bytes).checked_sub(part.len() as u64);
                due = left.unwrap_or(0);
                let fits = u64::from(value_bytes) <= VALUE_BYTES_MAX;
                (left.is_none() || !fits).then_some("a value has another length")
            }
            Frame::Delete { .. } => {
                counts.changes += 1;
                None
            }
            Frame::Branch { name, head } => {
                contents.branches.push((name.to_owned(), head));
                let known = head.is_none_or(|head| there.contains(&head));
                (!known).then_some("a branch points at no checkpoint of the file")
            }
            Frame::Tag { name, target } => {
                contents.tags.push((name.to_owned(), target));
                (!there.contains(&target)).then_some("a tag names no checkpoint of the file")
            }
            Frame::End(said) => {
                contents.counts = said;
                (said != counts).then_some("its frames are not as many as it says")
            }
            Frame::Agent { .. } | Frame::Part { .. } => Some("a frame is out of place"),
        };
        let is_last = matches!(frame, Frame::End(_));
        if let Some(what) = what {
            return Err(reader.damaged(what).into());
        }
        if is_last {
            return match reader.is_at_end()? {
                true => Ok(contents),
                false => Err(reader.damaged("there are bytes behind its end").into()),
            };
        }
    }
}

/// What is wrong with a checkpoint's frame.
fn check_checkpoint(
    base: Option<ObjectId>,
    bytes: &[u8],
    there: &mut HashSet<ObjectId>,
) -> Option<&'static str> {
    let Ok(found) = Checkpoint::decode(bytes) else {
        return Some("a checkpoint's bytes are none");
    };
    let follows = base.is_none_or(|base| {
        there.contains(&base) && found.parents.iter().any(|parent| parent == base)
    });
    let new = there.insert(ObjectId::of_checkpoint(bytes));
    match (follows, new) {
        (false, _) => Some("a checkpoint comes before the one that it follows"),
        (_, false) => Some("a checkpoint comes twice"),
        _ => None,
    }
}

/// Refuses an import whose names would hide what the agent has.
fn refuse_taken(lane: &mut Lane, agent: &str, contents: &Contents) -> anyhow::Result<()> {
    let taken = |what, name: &String| Refused::InTheWay {
        agent: agent.to_owned(),
        what,
        name: name.clone(),
    };
    let known = branches(lane)?;
    for (name, head) in &contents.branches {
        let found = known.iter().find(|branch| branch.name == *name);
        if found.is_some_and(|found| found.head != *head && !is_fresh(found)) {
            return Err(taken("branch", name).into());
        }
    }
    let known = tags(lane)?;
    for (name, target) in &contents.tags {
        if known.iter().any(|(tag, of)| tag == name && of != target) {
            return Err(taken("tag", name).into());
        }
    }
    Ok(())
}

/// Whether a branch is as every agent has it from the start.
fn is_fresh(branch: &BranchInfo) -> bool {
    branch.head.is_none() && branch.changes == 0 && branch.base == helios::state::tree::EMPTY_TREE
}

/// The fork in which states are rebuilt, and the checkpoint whose state it has.
#[derive(Debug, Clone, Copy)]
struct Workbench {
    fork: BranchNo,
    state: Option<ObjectId>,
}

/// A checkpoint whose changes are being read.
struct Wanted {
    id: ObjectId,
    bytes: Vec<u8>,
}

/// Makes every checkpoint of the file that is not there yet; how many were.
fn build(lane: &mut Lane, path: &Path) -> anyhow::Result<u64> {
    let mut reader = open(path)?;
    let mut bench: Option<Workbench> = None;
    let mut wanted: Option<Wanted> = None;
    let mut batch = Batch::default();
    let mut known = 0;
    loop {
        let frame = reader.next()?;
        let ends = !matches!(
            frame,
            Frame::Put { .. } | Frame::Part { .. } | Frame::Delete { .. }
        );
        if ends && let (Some(done), Some(at)) = (wanted.take(), &mut bench) {
            batch.flush(&mut lane.on(at.fork))?;
            make(&mut lane.on(at.fork), &done)?;
            at.state = Some(done.id);
        }
        match frame {
            Frame::Checkpoint { base, bytes } => {
                let id = ObjectId::of_checkpoint(bytes);
                if is_there(lane, &id)? {
                    known += 1;
                    continue;
                }
                let fits = bench.filter(|at| at.state == base && base.is_some());
                bench = Some(match fits {
                    Some(at) => at,
                    None => open_fork(lane, bench, base)?,
                });
                let bytes = bytes.to_vec();
                wanted = Some(Wanted { id, bytes });
            }
            Frame::End(_) => return Ok(known),
            frame => {
                if let (Some(_), Some(at)) = (&wanted, &bench) {
                    batch.take(&mut lane.on(at.fork), &frame)?;
                }
            }
        }
    }
}

fn is_there(lane: &mut Lane, id: &ObjectId) -> anyhow::Result<bool> {
    match lane.log(Revision::Checkpoint(*id.as_bytes()), 1) {
        Ok(_) => Ok(true),
        Err(ClientError::NoSuchRevision) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A fork with the state of `base`, for one that is dropped.
fn open_fork(
    lane: &mut Lane,
    before: Option<Workbench>,
    base: Option<ObjectId>,
) -> anyhow::Result<Workbench> {
    if let Some(before) = before {
        lane.discard(before.fork)?;
    }
    let from = base.map(|base| *base.as_bytes());
    let from = from.map_or(Revision::Empty, Revision::Checkpoint);
    let fork = patiently(|| lane.fork(from))?.no;
    Ok(Workbench { fork, state: base })
}

fn make(fork: &mut Lane, wanted: &Wanted) -> anyhow::Result<()> {
    match patiently(|| fork.checkpoint_as(&wanted.bytes)) {
        Ok(made) if made.id == wanted.id => Ok(()),
        Ok(_) | Err(ClientError::WrongState) => Err(Refused::Forged { id: wanted.id }.into()),
        Err(error) => Err(error.into()),
    }
}

/// Changes on their way into a fork.
#[derive(Default)]
struct Batch {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    /// A large value of which parts are still to come: its key, what is there, its length.
    large: Option<(Vec<u8>, Vec<u8>, usize)>,
}

impl Batch {
    fn take(&mut self, fork: &mut Lane, frame: &Frame<'_>) -> anyhow::Result<()> {
        match *frame {
            Frame::Put {
                key,
                value_bytes,
                part,
            } if part.len() == value_bytes as usize && part.len() < PUT_TOGETHER_BYTES => {
                let bytes = key.len() + part.len();
                if self.pairs.len() == PUT_TOGETHER_MAX || self.bytes + bytes > PUT_TOGETHER_BYTES {
                    self.flush(fork)?;
                }
                self.bytes += bytes;
                self.pairs.push((key.to_vec(), part.to_vec()));
            }
            Frame::Put {
                key,
                value_bytes,
                part,
            } => {
                self.large = Some((key.to_vec(), part.to_vec(), value_bytes as usize));
                self.put_large(fork)?;
            }
            Frame::Part { part } => {
                if let Some((_, value, _)) = &mut self.large {
                    value.extend_from_slice(part);
                }
                self.put_large(fork)?;
            }
            Frame::Delete { key } => {
                patiently(|| fork.delete(key))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Puts the large value if all of it is there.
    fn put_large(&mut self, fork: &mut Lane) -> anyhow::Result<()> {
        let whole = |(_, value, bytes): &mut (Vec<u8>, Vec<u8>, usize)| value.len() == *bytes;
        if let Some((key, value, _)) = self.large.take_if(whole) {
            patiently(|| fork.put(&key, &value))?;
        }
        Ok(())
    }

    fn flush(&mut self, fork: &mut Lane) -> anyhow::Result<()> {
        let pairs: Vec<_> = self
            .pairs
            .iter()
            .map(|(key, value)| (&**key, &**value))
            .collect();
        patiently(|| fork.multi_put(&pairs, None))?;
        self.pairs.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// Does something again while the server is busy.
fn patiently<T>(mut ask: impl FnMut() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let start = Instant::now();
    loop {
        match ask() {
            Err(ClientError::Busy { .. }) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

/// Lets branches and tags point at what was made.
fn name_them(lane: &mut Lane, agent: &str, contents: &Contents) -> anyhow::Result<()> {
    // Looked at again: it took a while.
    refuse_taken(lane, agent, contents)?;
    let known = branches(lane)?;
    for (name, head) in &contents.branches {
        let to = head.map(|head| *head.as_bytes());
        let to = to.map_or(Revision::Empty, Revision::Checkpoint);
        match known.iter().find(|branch| branch.name == *name) {
            Some(found) if found.head == *head => {}
            Some(found) => {
                lane.on(found.no)
                    .merge(to, &[], &NewCheckpoint::default())?;
            }
            None => {
                patiently(|| lane.branch(name, to))?;
            }
        }
    }
    for (name, target) in &contents.tags {
        let target = Revision::Checkpoint(*target.as_bytes());
        patiently(|| lane.tag(name, target, false))?;
    }
    Ok(())
}
