//! `helios show`: a checkpoint, its keys, or one of its values.
//!
//! Floor 5. The state at a checkpoint is read through a fork of it, which ends with the command.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use helios::client::{Lane, ScannedKey};
use helios::id::ObjectId;
use serde::Serialize;

use super::log::{names, print};
use super::out::{Bytes, Out, short, size, text};
use super::place::PlaceArgs;
use super::revision::{HELP, checkpoint, find};

/// Show a checkpoint; with a key, its value there; with --keys, the keys that it holds.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose state
    agent: String,
    /// Which checkpoint
    #[arg(default_value = "HEAD")]
    revision: String,
    /// Print the value of this key
    key: Option<OsString>,
    /// List keys, of those that begin with PREFIX
    #[arg(long, value_name = "PREFIX", num_args = 0..=1, default_missing_value = "", conflicts_with = "key")]
    keys: Option<OsString>,
    /// Print the bytes of the value and nothing else
    #[arg(long, requires = "key", conflicts_with = "json")]
    raw: bool,
}

/// The checkpoint has no such key.
#[derive(Debug, thiserror::Error)]
#[error(
    "{revision} has no key {key}; `helios show {agent} {revision} --keys` lists those that it has"
)]
struct NoSuchKey {
    agent: String,
    revision: String,
    key: String,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let place = args.place.open()?;
    let mut lane = place.agent(&args.agent)?;
    let mut out = Out::new(args.place.json);
    match (args.key, args.keys) {
        (Some(key), _) => {
            let key = key.into_vec();
            let value = read(&mut lane, &args.revision, &key)?;
            let Some((id, value)) = value else {
                return Err(NoSuchKey {
                    agent: args.agent,
                    revision: args.revision,
                    key: text(&key).into_owned(),
                }
                .into());
            };
            if args.raw {
                out.bytes(&value)?;
            } else {
                print_value(&mut out, &key, id, &value)?;
            }
        }
        (None, Some(prefix)) => {
            let named = find(&mut lane, &args.revision)?;
            let fork = lane.fork(named.revision())?;
            list(&mut lane.on(fork.no), &prefix.into_vec(), &mut out)?;
        }
        (None, None) => {
            let entry = checkpoint(&mut lane, &args.revision)?;
            print(&mut out, &entry, &names(&mut lane)?)?;
        }
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// A value at a revision, and its id.
fn read(
    lane: &mut Lane,
    revision: &str,
    key: &[u8],
) -> anyhow::Result<Option<(Option<ObjectId>, Vec<u8>)>> {
    let named = find(lane, revision)?;
    let fork = lane.fork(named.revision())?;
    let mut value = Vec::new();
    let found = lane.on(fork.no).get(key, &mut value)?;
    Ok(found.map(|found| (found.id, value)))
}

/// A key for programs.
#[derive(Debug, Serialize)]
struct Key {
    key: Bytes,
    bytes: u64,
    id: String,
}

fn list(lane: &mut Lane, prefix: &[u8], out: &mut Out) -> anyhow::Result<()> {
    let mut after = Vec::new();
    loop {
        let page = lane.scan(prefix, &after, 0)?;
        for ScannedKey {
            key,
            value_bytes,
            id,
        } in &page.keys
        {
            if out.json {
                out.object(&Key {
                    key: Bytes::of(key),
                    bytes: *value_bytes,
                    id: id.to_string(),
                })?;
            } else {
                let (id, bytes) = (short(id), size(*value_bytes));
                out.line(format_args!("{id}  {bytes:>10}  {}", text(key)))?;
            }
        }
        match page.keys.into_iter().next_back() {
            Some(last) if page.more => after = last.key,
            _ => return Ok(()),
        }
    }
}

/// A value for programs.
#[derive(Debug, Serialize)]
struct Value {
    key: Bytes,
    bytes: u64,
    id: Option<String>,
    value: Bytes,
}

/// Bytes of a value that is no text that are shown.
const DUMP_BYTES: usize = 256;
/// Bytes on a line.
const DUMP_LINE_BYTES: usize = 16;

fn print_value(
    out: &mut Out,
    key: &[u8],
    id: Option<ObjectId>,
    value: &[u8],
) -> anyhow::Result<()> {
    if out.json {
        return out.object(&Value {
            key: Bytes::of(key),
            bytes: value.len() as u64,
            id: id.map(|id| id.to_string()),
            value: Bytes::of(value),
        });
    }
    if let Ok(text) = std::str::from_utf8(value) {
        out.line(text)?;
        return Ok(());
    }
    let shown = &value[..value.len().min(DUMP_BYTES)];
    for (no, line) in shown.chunks(DUMP_LINE_BYTES).enumerate() {
        let digits: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain = |byte: &u8| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        };
        let (at, digits) = (no * DUMP_LINE_BYTES, digits.join(" "));
        let plain: String = line.iter().map(plain).collect();
        out.line(format_args!("{at:08x}  {digits:<47}  {plain}"))?;
    }
    if shown.len() < value.len() {
        let bytes = value.len();
        out.line(format_args!("... {bytes} bytes in all; --raw prints them"))?;
    }
    Ok(())
}
