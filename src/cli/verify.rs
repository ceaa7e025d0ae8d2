//! `helios verify`: reads everything in a data directory and says what is damaged.
//!
//! Floor 5.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use helios::config::Config;
use helios::runtime::{Finding, Verified, verify_data_dir};
use helios::segment::verify::{Fault, FaultKind};
use helios::shard::verify::{Loss, Lost};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::out::{Bytes, Out, counted, size, text};

/// Read everything in a data directory, compare it with its checksums and ids, and say what is damaged: by
/// file and offset, and by agent, checkpoint and key. Nothing is changed, and no server may run on it.
///
/// Ends with 1 if something is damaged. With --json, each finding is an object on a line, and the last is
/// the summary.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data directory
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data: Option<PathBuf>,
    /// Take the data directory from this configuration; without it, the default holds
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match &args.data {
        Some(data) => Config::at(data),
        None => super::load(args.config.as_deref())?,
    };
    let mut out = Out::new(args.json);
    let bar = bar();
    let mut printed = Ok(());
    let verified = verify_data_dir(
        &config.data_dir,
        &mut |finding| {
            if printed.is_ok() {
                printed = bar.suspend(|| print(&mut out, finding));
            }
        },
        &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        },
    )?;
    bar.finish_and_clear();
    printed?;
    summary(&mut out, &verified)?;
    out.finish()?;
    Ok(match verified.damaged {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("verifying {bytes}/{total_bytes} {wide_bar} {eta}");
    // The template is a constant.
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A finding, for programs.
#[derive(Debug, Default, Serialize)]
struct Found<'a> {
    /// `log`, `tables`, `header`, `head`, `payload`, `record`, `footer`, `behind`, `checkpoint`, `node` or
    /// `value`.
    kind: &'a str,
    /// Whether it is damage; else it is only told.
    damage: bool,
    shard: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// The object that is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    /// The branch or tag that leads there.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

fn print(out: &mut Out, finding: &Finding) -> anyhow::Result<()> {
    let damage = finding.is_damage();
    let found = match finding {
        Finding::Log { shard, error } => said("log", shard.0, error),
        Finding::Tables { shard, error } => said("tables", shard.0, error),
        Finding::Fault { shard, fault } => {
            if !out.json {
                return Ok(out.line(fault_text(fault))?);
            }
            Found {
                kind: kind(fault.kind),
                shard: shard.0,
                file: Some(fault.file.display().to_string()),
                offset: Some(fault.offset),
                bytes: Some(fault.bytes),
                id: fault.id.map(|id| id.to_string()),
                ..Found::default()
            }
        }
        Finding::Loss { shard, loss } => {
            if !out.json {
                return Ok(out.line(loss_text(loss))?);
            }
            Found {
                kind: match loss.what {
                    Lost::Checkpoint => "checkpoint",
                    Lost::Node => "node",
                    _ => "value",
                },
                shard: shard.0,
                id: Some(loss.id.to_string()),
                agent: Some(&loss.agent),
                from: Some(&loss.from),
                checkpoint: loss.checkpoint.map(|id| id.to_string()),
                key: loss.key.as_deref().map(Bytes::of),
                ..Found::default()
            }
        }
        other => said("other", 0, &format!("{other:?}")),
    };
    if out.json {
        return out.object(&Found { damage, ..found });
    }
    let text = found.text.unwrap_or_default();
    Ok(out.line(format_args!("shard {}: {text}", found.shard))?)
}

fn said<'a>(kind: &'a str, shard: u16, text: &impl ToString) -> Found<'a> {
    Found {
        kind,
        shard,
        text: Some(text.to_string()),
        ..Found::default()
    }
}

fn kind(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Header => "header",
        FaultKind::Head => "head",
        FaultKind::Payload => "payload",
        FaultKind::Record => "record",
        FaultKind::Footer => "footer",
        _ => "behind",
    }
}

fn fault_text(fault: &Fault) -> String {
    let what = match fault.kind {
        FaultKind::Header => "the segment's header is damaged".to_owned(),
        FaultKind::Head => {
            "the head of a record is damaged; its copy in the footer is good".to_owned()
        }
        FaultKind::Payload => match fault.id {
            Some(id) => format!("the stored bytes of object {id} are damaged"),
            None => "the stored bytes of a record are damaged".to_owned(),
        },
        FaultKind::Record => {
            "no record is here, where one has to be; what follows can't be read".to_owned()
        }
        FaultKind::Footer => "the footer is damaged; the records before it are good".to_owned(),
        _ => "bytes behind the end of the log, as a power cut may leave them; the next start keeps them aside".to_owned(),
    };
    let (file, offset) = (fault.file.display(), fault.offset);
    match fault.bytes {
        0 => format!("{file}, byte {offset}: {what}"),
        bytes => format!("{file}, byte {offset}, {bytes} bytes: {what}"),
    }
}

fn loss_text(loss: &Loss) -> String {
    let agent = text(loss.agent.as_bytes());
    let place = match loss.checkpoint {
        Some(id) => format!("agent {agent}, {}, checkpoint {id}", loss.from),
        None => format!("agent {agent}, {}, not in a checkpoint", loss.from),
    };
    match (&loss.what, &loss.key) {
        (Lost::Checkpoint, _) => format!("{place}: it can't be read, nor what is before it"),
        (Lost::Node, _) => format!("{place}: keys under node {} can't be read", loss.id),
        (_, Some(key)) => format!("{place}: the value of key {} can't be read", text(key)),
        _ => format!("{place}: a value can't be read"),
    }
}

#[derive(Debug, Serialize)]
struct Summary {
    kind: &'static str,
    shards: u64,
    segments: u64,
    records: u64,
    bytes: u64,
    agents: u64,
    checkpoints: u64,
    nodes: u64,
    keys: u64,
    damaged: u64,
    seconds: f64,
    bytes_per_second: f64,
}

fn summary(out: &mut Out, verified: &Verified) -> anyhow::Result<()> {
    let (read, looked) = (verified.read, verified.looked);
    let seconds = verified.elapsed.as_secs_f64();
    let bytes_per_second = read.bytes as f64 / seconds.max(1e-9);
    if out.json {
        return out.object(&Summary {
            kind: "summary",
            shards: verified.shards,
            segments: read.segments,
            records: read.records,
            bytes: read.bytes,
            agents: looked.agents,
            checkpoints: looked.checkpoints,
            nodes: looked.nodes,
            keys: looked.keys,
            damaged: verified.damaged,
            seconds,
            bytes_per_second,
        });
    }
    let (segments, records) = (
        counted(read.segments, "segment"),
        counted(read.records, "record"),
    );
    let (bytes, speed) = (size(read.bytes), size(bytes_per_second as u64));
    out.line(format_args!(
        "{segments}, {records}, {bytes} in {seconds:.2} s, {speed}/s"
    ))?;
    let (agents, checkpoints) = (
        counted(looked.agents, "agent"),
        counted(looked.checkpoints, "checkpoint"),
    );
    let nodes = counted(looked.nodes, "node");
    out.line(format_args!(
        "{agents}, {checkpoints}, {nodes} of trees, {} keys in them",
        looked.keys
    ))?;
    match verified.damaged {
        0 => out.line("nothing is damaged")?,
        some => out.line(format_args!("{} of damage", counted(some, "finding")))?,
    }
    Ok(())
}
