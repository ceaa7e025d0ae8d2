//! Those parts of the program that read files, compiled into targets: what they need of the rest is there too.
#![allow(
    dead_code,
    unused_imports,
    reason = "a target calls little of what these files hold"
)]

#[path = "../../src/cli/export_file.rs"]
pub mod export_file;
#[path = "../../src/cli/import.rs"]
mod import;
#[path = "../../src/cli/out.rs"]
mod out;
#[path = "../../src/cli/place.rs"]
mod place;
#[path = "../../src/cli/revision.rs"]
mod revision;
#[path = "../../src/cli/replay/trace.rs"]
mod trace;

use std::path::Path;

use helios::config::Config;
use helios::id::ObjectId;
use helios::state::checkpoint::{Checkpoint, Metadata, NewCheckpoint, encode};

fn load(path: Option<&Path>) -> anyhow::Result<Config> {
    Ok(path.map_or_else(|| Ok(Config::default()), Config::load)?)
}

/// Reads a trace and goes through it.
pub fn read_trace(bytes: &[u8]) {
    let folder = Path::new("trace.csv");
    let read = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => trace::Trace::read(flate2::bufread::MultiGzDecoder::new(bytes), folder),
        false => trace::Trace::read(bytes, folder),
    };
    match read {
        Ok(trace) => {
            let accesses = trace.processes.iter().flatten();
            let mut count = 0;
            for access in accesses {
                let key = trace.keys.get(access.key);
                assert!((1..=trace::KEY_BYTES_MAX).contains(&key.len()));
                count += 1;
            }
            assert!(count > 0 && count == trace.access_count());
            assert!(trace.processes.iter().all(|process| !process.is_empty()));
        }
        Err(error) => assert!(error.to_string().starts_with("trace.csv: "), "{error}"),
    }
}

/// Reads the file of an export as an import does before it asks a server for anything.
pub fn read_export(bytes: &[u8]) {
    let checked = export_file::Reader::new(bytes)
        .map_err(Into::into)
        .and_then(import::check_frames);
    match checked {
        Ok(contents) => assert!(!format!("{contents:?}").is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// An export of two checkpoints.
pub fn small_export() -> Vec<u8> {
    use export_file::Frame;
    let mut writer = export_file::Writer::new(Vec::new()).expect("memory");
    let metadata = Metadata::new(b"opaque", b"").expect("metadata");
    let mut parent = None;
    writer
        .push(&Frame::Agent { name: "planner" })
        .expect("memory");
    for sequence in 1..3 {
        let mut bytes = Vec::new();
        let parents: Vec<ObjectId> = parent.into_iter().collect();
        let tree = ObjectId::of_node(&[sequence as u8]);
        let checkpoint = NewCheckpoint {
            tree,
            keys: 2,
            parents: &parents,
            agent: b"planner",
            sequence,
            wall_ms: 5,
            metadata,
        };
        encode(&checkpoint, &mut bytes);
        assert!(Checkpoint::decode(&bytes).is_ok());
        let (base, bytes) = (parent, &bytes[..]);
        writer
            .push(&Frame::Checkpoint { base, bytes })
            .expect("memory");
        writer.put(b"key", b"value").expect("memory");
        writer.put(b"other", &[7; 300]).expect("memory");
        writer
            .push(&Frame::Delete { key: b"gone" })
            .expect("memory");
        parent = Some(ObjectId::of_checkpoint(bytes));
    }
    let (head, target) = (parent, parent.expect("a checkpoint was made"));
    writer
        .push(&Frame::Branch { name: "main", head })
        .expect("memory");
    writer
        .push(&Frame::Branch {
            name: "empty",
            head: None,
        })
        .expect("memory");
    writer
        .push(&Frame::Tag { name: "v1", target })
        .expect("memory");
    let (file, ..) = writer.finish().expect("memory");
    file
}
