//! `helios verify`: whatever is damaged is reported, with what it means, and nothing is repaired.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use helios::Runtime;
use helios::client::{Lane, NewCheckpoint, Revision};
use helios::config::{Choice, Config, Io};
use helios::id::ObjectId;
use helios::runtime::{DataDirError, Finding, RuntimeError, Verified, verify_data_dir};
use helios::segment::format::{SEGMENT_HEADER_BYTES, decode};
use helios::segment::header::SegmentHeader;
use helios::segment::verify::FaultKind;
use helios::shard::verify::Lost;

mod common;

use common::Random;

fn config(dir: &Path) -> Config {
    Config {
        shards: Choice::Fixed(1),
        segment_bytes: 1 << 20,
        memory_max: 64 << 20,
        io: Io::Threads,
        ..Config::at(dir)
    }
}

fn checkpoint(lane: &mut Lane) -> ObjectId {
    lane.checkpoint(&NewCheckpoint::default()).unwrap().id
}

/// Two agents with histories, branches, tags, large values and changes that no checkpoint holds, in
/// several segments; the checkpoints of the first.
fn populate(runtime: &Runtime) -> Vec<ObjectId> {
    let mut random = Random(11);
    let mut made = Vec::new();
    for agent in ["planner", "critic"] {
        let mut lane = runtime.agent(agent).unwrap();
        let mut checkpoints = Vec::new();
        for round in 0..6 {
            for no in 0..60 {
                let bytes = 20 + random.below(1500) as usize;
                let key = format!("{agent}/{no}");
                lane.put(key.as_bytes(), &random.bytes(bytes)).unwrap();
            }
            lane.put(b"large", &random.bytes(90_000 + round)).unwrap();
            checkpoints.push(checkpoint(&mut lane));
        }
        lane.put(
            b"marked",
            format!(
                "the marked value of {agent}, more than is stored inline: {}",
                "x".repeat(300)
            )
            .as_bytes(),
        )
        .unwrap();
        checkpoints.push(checkpoint(&mut lane));
        lane.tag(
            "v1",
            Revision::Checkpoint(*checkpoints[1].as_bytes()),
            false,
        )
        .unwrap();
        lane.branch("try", Revision::Tag("v1")).unwrap();
        lane.put(
            b"unsaved",
            format!("the unsaved value of {agent}").as_bytes(),
        )
        .unwrap();
        if made.is_empty() {
            made = checkpoints;
        }
    }
    made
}

/// A populated directory, sealed in order or as a kill leaves it.
fn populated(sealed: bool) -> (tempfile::TempDir, Vec<ObjectId>) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let made = populate(&runtime);
    match sealed {
        true => runtime.shutdown().unwrap(),
        false => drop(runtime),
    }
    (dir, made)
}

fn verify(dir: &Path) -> (Verified, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut last = (0, 0);
    let verified = verify_data_dir(
        dir,
        // Not kept as they are: what is found is lent.
        &mut |finding| findings.push(copied(finding)),
        &mut |done, total| last = (done, total),
    )
    .unwrap();
    assert_eq!(last.0, last.1, "all bytes were gone through");
    (verified, findings)
}

fn copied(finding: &Finding) -> Finding {
    match finding {
        Finding::Log { shard, error } => Finding::Log {
            shard: *shard,
            error: error.clone(),
        },
        Finding::Tables { shard, error } => Finding::Tables {
            shard: *shard,
            error: error.clone(),
        },
        Finding::Fault { shard, fault } => Finding::Fault {
            shard: *shard,
            fault: fault.clone(),
        },
        Finding::Loss { shard, loss } => Finding::Loss {
            shard: *shard,
            loss: loss.clone(),
        },
        other => panic!("{other:?}"),
    }
}

/// Segments that hold records.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(dir.join("shard-000")).unwrap();
    let mut paths: Vec<_> = found.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let is_segment = path.extension().is_some_and(|extension| extension == "seg");
        is_segment && std::fs::read(path).unwrap().iter().any(|byte| *byte != 0)
    });
    paths.sort();
    paths
}

/// Where the padding behind records lies in a segment, which no checksum covers; and its data's end.
fn padding(bytes: &[u8]) -> (Vec<std::ops::Range<usize>>, usize) {
    let header = SegmentHeader::decode(bytes.first_chunk().unwrap()).unwrap();
    let (mut seed, mut at) = (header.checksum(), SEGMENT_HEADER_BYTES);
    let mut ranges = Vec::new();
    while let Ok(record) = decode(&bytes[at..], seed) {
        let end = record.head_bytes + record.payload_bytes.unwrap_or(0);
        ranges.push(at + end as usize..at + record.record_bytes as usize);
        at += record.record_bytes as usize;
        seed = record.checksum;
    }
    (ranges, at)
}

fn times(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let found = std::fs::read_dir(dir.join("shard-000")).unwrap();
    let known = |path: PathBuf| {
        let known = path.metadata().unwrap();
        (path, (known.modified().unwrap(), known.len()))
    };
    found.map(|entry| known(entry.unwrap().path())).collect()
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_whole_is_found_whole_sealed_or_not() {
    for sealed in [true, false] {
        let (dir, made) = populated(sealed);
        let before = times(dir.path());
        let (verified, findings) = verify(dir.path());
        assert!(findings.is_empty(), "{findings:?}");
        assert_eq!((verified.damaged, verified.looked.agents), (0, 2));
        assert_eq!(verified.looked.checkpoints, 2 * made.len() as u64);
        assert!(verified.read.segments > 1 && verified.read.records > 800);
        assert!(verified.looked.nodes > 20 && verified.looked.keys > 120);
        assert_eq!(times(dir.path()), before);
    }
}

#[test]
fn every_flipped_bit_is_reported_and_none_is_repaired() {
    for sealed in [true, false] {
        let (dir, _) = populated(sealed);
        let mut random = Random(if sealed { 5 } else { 6 });
        let segments = segments(dir.path());
        assert!(segments.len() > 1);
        let (mut reported, mut in_padding) = (0, 0);
        for round in 0..60 {
            let path = &segments[random.below(segments.len() as u64) as usize];
            let whole = std::fs::read(path).unwrap();
            let (padding, data_end) = padding(&whole);
            // A third of them into footers, headers, and what is behind.
            let at = match round % 3 {
                0 if data_end < whole.len() => {
                    data_end + random.below((whole.len() - data_end) as u64) as usize
                }
                1 if round % 2 == 0 => random.below(SEGMENT_HEADER_BYTES as u64) as usize,
                _ => random.below(data_end as u64) as usize,
            };
            flip(path, at, random.below(8) as u8);
            let before = times(dir.path());
            let damaged = std::fs::read(path).unwrap();
            let (_, findings) = verify(dir.path());
            if padding.iter().any(|range| range.contains(&at)) {
                in_padding += 1;
                assert!(findings.is_empty(), "{at}: {findings:?}");
            } else {
                reported += 1;
                assert!(!findings.is_empty(), "byte {at} of {}", path.display());
                let places = findings.iter().filter_map(|finding| match finding {
                    Finding::Fault { fault, .. } => Some(fault),
                    _ => None,
                });
                for fault in places.filter(|fault| fault.kind == FaultKind::Payload) {
                    let payload = fault.offset..fault.offset + fault.bytes;
                    assert!(payload.contains(&(at as u64)), "{at}: {fault:?}");
                    assert_eq!(fault.file, *path);
                }
            }
            assert_eq!(std::fs::read(path).unwrap(), damaged, "nothing is repaired");
            assert_eq!(times(dir.path()), before);
            std::fs::write(path, &whole).unwrap();
        }
        assert!(
            reported > 40,
            "{reported} reported, {in_padding} in padding"
        );
    }
}

/// Where some text lies in a directory's segments.
fn find(dir: &Path, text: &[u8]) -> (PathBuf, usize) {
    let found = segments(dir).into_iter().find_map(|path| {
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(text.len()).position(|some| some == text)?;
        Some((path, at))
    });
    found.expect("the text is stored")
}

#[test]
fn damage_is_told_by_what_it_means() {
    let (dir, made) = populated(true);
    let (path, at) = find(dir.path(), b"the marked value of planner");
    flip(&path, at + 4, 0);
    let (file, unsaved) = find(dir.path(), b"the unsaved value of critic");
    flip(&file, unsaved, 0);
    let (verified, findings) = verify(dir.path());
    let losses: Vec<_> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Loss { loss, .. } => Some(loss),
            _ => None,
        })
        .collect();
    assert_eq!((verified.damaged, losses.len()), (4, 2), "{findings:?}");
    let marked = losses.iter().find(|loss| loss.agent == "planner").unwrap();
    assert_eq!(
        (marked.what, marked.key.as_deref()),
        (Lost::Value, Some(&b"marked"[..]))
    );
    assert_eq!(
        (&*marked.from, marked.checkpoint),
        ("branch main", made.last().copied())
    );
    let unsaved = losses.iter().find(|loss| loss.agent == "critic").unwrap();
    assert_eq!(
        (unsaved.checkpoint, unsaved.key.as_deref()),
        (None, Some(&b"unsaved"[..]))
    );

    // The same for people and for programs.
    let helios = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_helios");
        let command = Command::new(program)
            .arg("verify")
            .arg("--data")
            .arg(dir.path())
            .args(args)
            .output();
        let output = command.unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = helios(&[]);
    assert!(
        text.contains("agent planner, branch main, checkpoint"),
        "{text}"
    );
    assert!(
        text.contains("the value of key marked can't be read"),
        "{text}"
    );
    assert!(
        text.contains(&format!("{}, byte ", path.display())),
        "{text}"
    );
    assert!(text.contains("4 findings of damage"), "{text}");
    let objects: Vec<serde_json::Value> = helios(&["--json"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of_kind = |kind: &str| {
        objects
            .iter()
            .filter(|object| object["kind"] == kind)
            .count()
    };
    assert_eq!(
        (of_kind("payload"), of_kind("value"), of_kind("summary")),
        (2, 2, 1)
    );
    let payload = objects
        .iter()
        .find(|object| object["kind"] == "payload")
        .unwrap();
    assert_eq!(payload["damage"], true);
    assert!(payload["offset"].as_u64().unwrap() > 0 && payload["id"].as_str().unwrap().len() == 64);
    assert_eq!(objects.last().unwrap()["damaged"], 4);
}

#[test]
fn a_lost_checkpoint_and_a_lost_node_are_told_once() {
    let (dir, made) = populated(true);
    // The second checkpoint of six: its id is in the head of its record, right before its bytes.
    let (path, at) = find(dir.path(), made[1].as_bytes());
    flip(&path, at + 32, 1);
    let (_, findings) = verify(dir.path());
    let lost: Vec<_> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Loss { loss, .. } => Some(loss),
            _ => None,
        })
        .collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert_eq!((lost[0].what, lost[0].id), (Lost::Checkpoint, made[1]));
}

#[test]
fn a_torn_end_is_told_and_is_no_damage() {
    let (dir, _) = populated(false);
    let path = segments(dir.path()).pop().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (_, data_end) = padding(&bytes);
    let mut torn = bytes.clone();
    torn[data_end..data_end + 100].fill(0x5a);
    std::fs::write(&path, torn).unwrap();
    let (verified, findings) = verify(dir.path());
    assert_eq!(verified.damaged, 0, "{findings:?}");
    assert!(
        matches!(&findings[..], [Finding::Fault { fault, .. }]
            if fault.kind == FaultKind::Behind && fault.offset == data_end as u64 && fault.bytes == 100),
        "{findings:?}"
    );
}

#[test]
fn a_directory_that_is_served_is_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::start(config(dir.path())).unwrap();
    let refused = verify_data_dir(dir.path(), &mut |_| {}, &mut |_, _| {});
    assert!(
        matches!(
            refused,
            Err(RuntimeError::DataDir(DataDirError::Served { .. }))
        ),
        "{refused:?}"
    );
    runtime.shutdown().unwrap();
}
