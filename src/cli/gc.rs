//! `helios gc`: has a server give up what nothing needs, and says what came of it.
//!
//! Floor 5.

use std::process::ExitCode;

use helios::shard::collect::CollectEnd;
use serde::Serialize;

use super::out::{Out, counted, size};
use super::place::PlaceArgs;

/// Have the server give up what no branch, tag or fork needs, and remove the files that held little else.
///
/// What a branch keeps of its history is its rule's to say. Ends with 1 where nothing could be given up.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: PlaceArgs,
}

/// What a collection did, for programs.
#[derive(Debug, Serialize)]
struct Outcome {
    /// `done`, `stopped`, `no_room`, `unreadable` or `damaged`.
    end: &'static str,
    objects: u64,
    segments: u64,
    bytes: u64,
    moved_bytes: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let place = args.place.open_server()?;
    let did = place.session().collect()?;
    let (end, advice) = match did.end {
        CollectEnd::Done => ("done", None),
        CollectEnd::Stopped => (
            "stopped",
            Some("a shard stops, or takes no writes; see the server's log"),
        ),
        CollectEnd::NoRoom => ("no_room", Some("the disk is full; free space and retry")),
        CollectEnd::Unreadable => (
            "unreadable",
            Some("the device could not be read; see the server's log"),
        ),
        _ => (
            "damaged",
            Some(
                "something that is needed is damaged; stop the server, and `helios verify` says what",
            ),
        ),
    };
    let mut out = Out::new(args.place.json);
    if out.json {
        out.object(&Outcome {
            end,
            objects: did.objects,
            segments: did.segments,
            bytes: did.bytes,
            moved_bytes: did.moved_bytes,
        })?;
    } else {
        let (segments, objects) = (
            counted(did.segments, "segment"),
            counted(did.objects, "object"),
        );
        let (bytes, moved) = (size(did.bytes), size(did.moved_bytes));
        out.line(format_args!(
            "{objects} given up; {segments} of {bytes} removed, {moved} moved"
        ))?;
    }
    out.finish()?;
    Ok(match advice {
        None => ExitCode::SUCCESS,
        Some(advice) => {
            eprintln!("helios: not everything was collected: {advice}");
            ExitCode::FAILURE
        }
    })
}
