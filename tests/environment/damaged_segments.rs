//! Segments that are damaged on the disk while a runtime serves, and are damaged still when the next one starts:
//! whatever is read is right or an error, what lies elsewhere is served, and a start that can't be is refused
//! with the place, so that a copy of the file brings all of it back.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Model;
use crate::common::{Random, Served, attach, memory_dir, value_of};
use helios::Runtime;
use helios::client::{ClientError, Session};
use helios::config::{Choice, Config, Durability};
use helios::runtime::RuntimeError;

const LINES: &str = "shards = 2\nsegment_bytes = \"1MiB\"\nmemory_max = \"16MiB\"";
const AGENTS: usize = 6;

type Models = BTreeMap<String, Model>;

/// What happens to a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Harm {
    Bits,
    Truncated,
    Zeros,
    /// Some of another segment's bytes.
    Patched,
    /// All of another's bytes, of the same shard or the other one.
    Overwritten,
    OverwrittenByOther,
    /// Another file under its name, and it under the other's.
    Swapped,
    SwappedWithOther,
}

const HARMS: [Harm; 8] = [
    Harm::Bits,
    Harm::Truncated,
    Harm::Zeros,
    Harm::Patched,
    Harm::Overwritten,
    Harm::OverwrittenByOther,
    Harm::Swapped,
    Harm::SwappedWithOther,
];

/// The segments of a shard, in order.
fn segments(data: &Path, shard: usize) -> Vec<PathBuf> {
    let files = std::fs::read_dir(data.join(format!("shard-{shard:03}"))).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    files
}

/// Up to where a segment has something in it.
fn used(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1)
}

/// Harms a file, in place where a name says nothing; the other file that took part.
fn harm(harm: Harm, data: &Path, file: &Path, random: &mut Random) -> Option<PathBuf> {
    let into = File::options().write(true).open(file).unwrap();
    let bytes = std::fs::read(file).unwrap();
    let used = used(file);
    let of = |shard| {
        segments(data, shard)
            .into_iter()
            .find(|other| other != file)
            .unwrap()
    };
    let middle = used / 2;
    match harm {
        Harm::Bits => {
            for _ in 0..40 {
                let at = 4_096 + random.below(used as u64 - 4_096) as usize;
                into.write_all_at(&[bytes[at] ^ 1 << random.below(8)], at as u64)
                    .unwrap();
            }
            None
        }
        Harm::Truncated => {
            into.set_len(middle as u64).unwrap();
            None
        }
        Harm::Zeros => {
            into.write_all_at(&[0; 20_000], middle as u64).unwrap();
            None
        }
        Harm::Patched => {
            let other = std::fs::read(of(0)).unwrap();
            into.write_all_at(&other[middle..][..20_000], middle as u64)
                .unwrap();
            None
        }
        Harm::Overwritten | Harm::OverwrittenByOther => {
            let from = of(usize::from(harm == Harm::OverwrittenByOther));
            into.write_all_at(&std::fs::read(from).unwrap(), 0).unwrap();
            None
        }
        Harm::Swapped | Harm::SwappedWithOther => {
            let other = of(usize::from(harm == Harm::SwappedWithOther));
            let aside = file.with_extension("aside");
            std::fs::rename(file, &aside).unwrap();
            std::fs::rename(&other, file).unwrap();
            std::fs::rename(&aside, &other).unwrap();
            Some(other)
        }
    }
}

/// Every agent writes so many values, which the device has then.
fn write(session: &Session, models: &mut Models, random: &mut Random, count: usize) {
    for no in 0..AGENTS {
        let agent = format!("agent-{no}");
        let mut lane = attach(session, &agent);
        let model = models.entry(agent).or_default();
        for _ in 0..count {
            let (key, value) = (random.next().to_le_bytes(), random.bytes(6_000));
            lane.put(&key, &value).unwrap();
            model.insert(key.to_vec(), value);
        }
        lane.sync(Durability::Power).unwrap();
        // Says in the log that it was synced.
        lane.put(b"said", b"so").unwrap();
        model.insert(b"said".to_vec(), b"so".to_vec());
    }
}

/// What a reading of everything found, by agent: never wrong bytes.
#[derive(PartialEq, Eq, Debug, Default)]
struct Found {
    damaged: Vec<(String, Vec<u8>)>,
    absent: usize,
}

fn read(session: &Session, models: &Models) -> Found {
    let mut found = Found::default();
    for (agent, model) in models {
        let mut lane = attach(session, agent);
        for (key, value) in model {
            match value_of(&mut lane, key) {
                Ok(Some(bytes)) => assert!(bytes == *value, "{agent}: wrong bytes"),
                Ok(None) => found.absent += 1,
                Err(ClientError::Corrupt) => found.damaged.push((agent.clone(), key.clone())),
                Err(error) => panic!("{agent}: {error:?}"),
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    let mut cp = std::process::Command::new("cp");
    assert!(cp.arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn start(data: &Path) -> Result<Runtime, RuntimeError> {
    Runtime::start(Config {
        shards: Choice::Fixed(2),
        segment_bytes: 1 << 20,
        memory_max: 16 << 20,
        ..Config::at(data)
    })
}

/// One harm, to a segment that is full or to the one that is written.
fn under_a_runtime(what: Harm, sealed: bool, random: &mut Random) {
    let dir = memory_dir();
    let data = dir.path().join("data");
    let mut models = Models::new();
    let mut served = Served::start(dir.path(), LINES);
    let session = served.session();
    write(&session, &mut models, random, 120);
    let files = segments(&data, 0);
    assert!(files.len() > 3, "{files:?}");
    // The last one is made ahead.
    let written = files.iter().rev().find(|file| used(file) > 0).unwrap();
    let victim = if sealed { &files[1] } else { written };
    let (whole, models_before) = (dir.path().join("whole"), models.clone());
    copy(&data, &whole);
    let other = harm(what, &data, victim, random);
    let Found { damaged, absent } = read(&session, &models);
    assert_eq!(absent, 0, "{what:?}, sealed: {sealed}");
    // What is open goes by its descriptor, whatever its name.
    let swapped = other.is_some();
    assert!(
        swapped || !damaged.is_empty(),
        "{what:?}, sealed: {sealed}: nothing was noticed"
    );
    assert!(damaged.len() < 1_000, "{what:?}: {} values", damaged.len());
    let log = served.log();
    if !damaged.is_empty() {
        assert!(
            log.contains("the value is quarantined") && log.contains("offset="),
            "{log}"
        );
        let again = read(&session, &models);
        assert_eq!(again.damaged, damaged, "quarantined");
        let mut lane = attach(&session, &damaged[0].0);
        assert!(lane.stats().unwrap().corrupt >= damaged.len() as u64);
        // Another value cures a key; the same bytes do, too.
        for (no, (agent, key)) in damaged.iter().enumerate().take(20) {
            let model = models.get_mut(agent).unwrap();
            if no % 2 == 0 {
                model.insert(key.clone(), random.bytes(2_000));
            }
            attach(&session, agent).put(key, &model[key]).unwrap();
        }
        assert_eq!(
            read(&session, &models).damaged.len(),
            damaged.len().saturating_sub(20)
        );
    }
    served.assert_alive();
    let before = damaged.len();
    drop(session);
    served.kill();
    // The next start finds it as it is: damage costs its values, or the start, and then says where.
    match start(&data) {
        Ok(runtime) => {
            let found = read(runtime.session(), &models);
            let (damaged, absent) = (found.damaged.len(), found.absent);
            println!(
                "{what:?}, sealed: {sealed}: {before} values, then {damaged}, {absent} absent"
            );
            // A file that ends early ends the log there: what said that there was more was behind it.
            assert!(
                absent == 0 || (what, sealed) == (Harm::Truncated, false),
                "{what:?}"
            );
            runtime.shutdown().unwrap();
        }
        Err(error) => {
            let text = error.to_string();
            println!("{what:?}, sealed: {sealed}: {before} values, then {text}");
            let names = |path: &PathBuf| text.contains(path.to_str().unwrap());
            assert!(names(victim) || other.as_ref().is_some_and(names), "{text}");
            if sealed {
                // What it says helps: the file from a copy.
                for file in other.iter().chain([victim]) {
                    std::fs::copy(whole.join(file.strip_prefix(&data).unwrap()), file).unwrap();
                }
                let runtime = start(&data).unwrap();
                assert_eq!(read(runtime.session(), &models), Found::default());
            }
        }
    }
    let runtime = start(&whole).unwrap();
    assert_eq!(read(runtime.session(), &models_before), Found::default());
}

#[test]
fn damage_under_a_runtime_is_an_error_with_its_place_and_never_wrong_bytes() {
    let mut random = Random(0xda3a6e);
    for what in HARMS {
        for sealed in [true, false] {
            under_a_runtime(what, sealed, &mut random);
        }
    }
}
