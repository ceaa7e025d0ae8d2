//! The scripts that the fuzzer begins with, made of what the real code does.

use std::fs;
use std::path::Path;

/// Says where to write seeds, and that nothing else is wanted.
const ASKED: &str = "HELIOS_FUZZ_SEEDS";

/// Writes the seeds of a target and ends the process, if that was asked for; `own` are those that the target
/// knows itself.
pub fn write_if_asked(target: &str, own: &[(String, Vec<u8>)]) {
    let Some(folder) = std::env::var_os(ASKED) else {
        return;
    };
    let made = match target {
        "lanes" => crate::shard::fuzzing::lanes::seeds(),
        "segments" => crate::runtime::fuzzing::segment_seeds(),
        "handshake" => crate::runtime::fuzzing::handshake_seeds(),
        _ => own.to_vec(),
    };
    let folder = Path::new(&folder).join(target);
    fs::create_dir_all(&folder).expect("a folder for seeds");
    for (name, bytes) in &made {
        fs::write(folder.join(name), bytes).expect("a seed is written");
    }
    println!("{target}: {} seeds", made.len());
    std::process::exit(0);
}
