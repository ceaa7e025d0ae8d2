//! Files of an export: any bytes are one that can be imported, or an error with its place.
//!
//! Each frame carries a check over all before it, which no fuzzer guesses. So a script that begins with 0 says
//! frames, whose checks are put right here, as are the ids of checkpoints whose bytes were changed wherever a later
//! frame names them; any other script is the file itself.
#![no_main]

#[path = "program.rs"]
mod program;

use std::collections::HashMap;

use helios::id::ObjectId;

const HEADER: &[u8; 16] = b"HELIOSXP\x01\0\0\0\0\0\0\0";
const FRAME_HEADER_BYTES: usize = 8;
const CHECK_BYTES: usize = 16;
const KIND_CHECKPOINT: u8 = 2;

/// The file that a script says: kind, length of the body, of a checkpoint the id that it had, the body.
fn build(mut script: &[u8]) -> Vec<u8> {
    let mut file = HEADER.to_vec();
    let mut last = *HEADER;
    let mut renamed: HashMap<[u8; 32], [u8; 32]> = HashMap::new();
    while let Some((&[kind, low, high], rest)) = script.split_first_chunk() {
        let (claimed, rest) = match rest.split_first_chunk::<32>() {
            Some((claimed, rest)) if kind == KIND_CHECKPOINT => (Some(*claimed), rest),
            _ => (None, rest),
        };
        let count = usize::from(u16::from_le_bytes([low, high]));
        let (body, rest) = rest.split_at(count.min(rest.len()));
        script = rest;
        let mut body = body.to_vec();
        for at in 0..body.len().saturating_sub(31) {
            if let Some(id) = body[at..]
                .first_chunk::<32>()
                .and_then(|id| renamed.get(id))
            {
                body[at..at + 32].copy_from_slice(id);
            }
        }
        if let (Some(claimed), Some(bytes)) = (claimed, body.get(32..)) {
            renamed.insert(claimed, *ObjectId::of_checkpoint(bytes).as_bytes());
        }
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend(body);
        let covered = [&last[..], &frame].concat();
        last.copy_from_slice(&ObjectId::of_blob(&covered).as_bytes()[..CHECK_BYTES]);
        file.extend(frame);
        file.extend(last);
    }
    file
}

/// The script of a good file.
fn take_apart(file: &[u8]) -> Vec<u8> {
    let mut script = vec![0];
    let mut rest = &file[HEADER.len()..];
    while let Some(header) = rest.first_chunk::<FRAME_HEADER_BYTES>() {
        let count = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let body = &rest[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + count];
        script.extend([header[0], count as u8, (count >> 8) as u8]);
        if header[0] == KIND_CHECKPOINT {
            script.extend(ObjectId::of_checkpoint(&body[32..]).as_bytes());
        }
        script.extend(body);
        rest = &rest[FRAME_HEADER_BYTES + count + CHECK_BYTES..];
    }
    script
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let file = program::small_export();
    let script = take_apart(&file);
    assert_eq!(build(&script[1..]), file, "a script says its file");
    let half = file[..file.len() / 2].to_vec();
    [("export", file), ("half", half), ("script", script)]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .to_vec()
}

libfuzzer_sys::fuzz_target!(
    init: helios::fuzzing::write_if_asked("import", &seeds()),
    |bytes: &[u8]| match bytes.split_first() {
        Some((0, script)) => program::read_export(&build(script)),
        _ => program::read_export(bytes),
    }
);
