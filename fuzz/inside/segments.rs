//! Segment files: recovery, verification, and a shard over whatever they hold.
//!
//! Compiled into the room `runtime`. A script says the files (`loose_log`), and whether recovery is cut off. Whatever
//! they are: nothing panics, looking changes nothing, an interrupted recovery ends where one that was not does, a
//! shard that starts serves what its bytes say or says why not, and a restart finds what it left.

use crate::fuzzing::input::Input;
use crate::id::ShardNo;
use crate::segment::fuzzing::{build, take_apart};
use crate::segment::memory::MemoryDisk;
use crate::segment::{read_only, recover};
use crate::shard::fuzzing::Rig;
use crate::shard::fuzzing::state::{enrich, read_all, work};

use super::verify::verify_shard;

pub use super::listener::fuzzing::run as handshake;
pub(crate) use super::listener::fuzzing::seeds as handshake_seeds;

/// Runs one script.
pub fn segments(bytes: &[u8]) {
    let mut script = Input(bytes);
    let calls = script.u8();
    let disk = build(&mut script);
    look(&disk);
    let Ok(mut rig) = started(disk.clone(), calls) else {
        return;
    };
    let found = read_all(&mut rig);
    let mut rig = Rig::over(rig.killed()).expect("what was only read starts again");
    assert_eq!(read_all(&mut rig), found, "a restart finds the same");
    work(&mut rig);
    let left = read_all(&mut rig);
    let disk = rig.killed();
    look(&disk);
    let mut rig = Rig::over(disk).expect("what a shard wrote starts");
    assert_eq!(read_all(&mut rig), left, "a restart finds what was written");
}

/// Reads all of it without a shard.
fn look(disk: &MemoryDisk) {
    let mut looked = disk.clone();
    let mut said = 0;
    let verified = verify_shard(
        ShardNo(0),
        &mut looked,
        &mut |finding| said += format!("{finding:?}").len(),
        &mut |_| (),
    );
    assert!(
        verified.is_ok(),
        "a disk that can be read is looked at: {verified:?}"
    );
    let names = |disk: &MemoryDisk| (disk.segments(), disk.tails.len(), disk.orphans.len());
    assert_eq!(names(&looked), names(disk), "looking changes nothing");
}

/// A shard over a disk, with a recovery that was cut off at the `calls`th call of it, and before.
fn started(disk: MemoryDisk, calls: u8) -> Result<Rig, String> {
    let mut looked = Vec::new();
    let by_looking = read_only(&mut disk.clone(), ShardNo(0), &mut |record| {
        looked.push((record.sequence, record.payload, record.damaged));
    });
    let mut cut = disk.clone();
    for step in [calls, calls / 2] {
        cut.faults.files_call = Some(step.into());
        let _ = recover(&mut cut, ShardNo(0), &mut |_| ());
        cut.kill();
    }
    let mut visited = Vec::new();
    let by_recovery = recover(&mut cut.clone(), ShardNo(0), &mut |record| {
        visited.push((record.sequence, record.payload, record.damaged));
    });
    match (&by_looking, &by_recovery) {
        (Ok(looked_at), Ok(recovered)) => {
            assert_eq!(looked_at.start.last, recovered.start.last);
            assert_eq!(looked, visited, "recovery visits what looking does");
        }
        (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
        (one, other) => panic!("looking {one:?}, recovery {other:?}"),
    }
    Rig::over(cut)
}

/// Scripts to begin with: logs of real shards.
pub(crate) fn segment_seeds() -> Vec<(String, Vec<u8>)> {
    let seed = |variant: usize| {
        let mut rig = Rig::new();
        let made = enrich(&mut rig, variant);
        assert!(made.is_ok(), "{made:?}");
        let mut script = vec![variant as u8 * 40];
        script.extend(take_apart(&mut rig.killed()));
        (format!("log-{variant}"), script)
    };
    let mut seeds: Vec<_> = (0..5).map(seed).collect();
    let (_, plain) = seeds[0].clone();
    for (name, more) in [
        ("damaged", &[2, 0, 200, 0, 0, 0, 1, 2, 0, 0, 2, 0, 0, 9][..]),
        ("cut", &[3, 0, 0, 2, 0, 0]),
        ("tail", &[4, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("rollback", &[5, 1, 0, 6, 0, 3, 0]),
    ] {
        let mut script = plain.clone();
        script.extend(more);
        seeds.push((name.to_owned(), script));
    }
    seeds
}
