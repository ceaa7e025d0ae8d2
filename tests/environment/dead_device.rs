//! A device that fails under a runtime: a file system on a loop device, whose image lies on a file system that
//! was shut down, so that every read and every write of the device is an I/O error, with whatever the kernel
//! makes of it: write-backs that fail, a journal that gives up.
//!
//! Needs root and loop devices; skipped with a line elsewhere.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{Random, Served, attach, memory_dir, value_of, wait_for};
use crate::device::{Kind, LoopDevice, Machine, Mounted};
use crate::{Model, check, forget, put_some};
use helios::client::{Attach, ClientError, Lane, PutOptions};
use helios::config::Durability;

const IMAGE_BYTES: u64 = 40 << 20;
const EIO: i32 = 5;

/// A file system on a device that can fail.
struct Fragile {
    // In the order in which they go.
    upper: Option<(Mounted, LoopDevice)>,
    lower: Machine,
    place: tempfile::TempDir,
}

impl Fragile {
    fn new() -> Option<Self> {
        let lower = Machine::new(Kind::Ext4)?;
        let place = memory_dir();
        std::fs::create_dir(place.path().join("upper")).unwrap();
        let mut fragile = Self {
            upper: None,
            lower,
            place,
        };
        let image = fragile.lower.path().join("image");
        File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        assert!(
            Kind::Ext4.make(&image),
            "no file system can be made on a file"
        );
        fragile.mount();
        Some(fragile)
    }

    fn mount(&mut self) {
        let device = LoopDevice::on(&self.lower.path().join("image")).expect("a second device");
        let mounted = Mounted::new(Kind::Ext4, device.path(), &self.path());
        self.upper = Some((mounted.expect("it mounts"), device));
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("upper")
    }

    fn fail(&self) {
        self.lower.cut();
    }

    /// The device is there again, with what had reached it. Nobody may have a file open any more.
    fn repair(&mut self) {
        drop(self.upper.take());
        self.lower.restart();
        self.mount();
    }
}

fn put_power(lane: &mut Lane, key: &[u8], value: &[u8]) -> Result<(), ClientError> {
    let durability = Some(Durability::Power);
    let options = PutOptions {
        durability,
        ..PutOptions::default()
    };
    lane.put_with(key, value, options).map(drop)
}

/// Writes numbers as power-safe until that is refused; what was acknowledged last.
fn count_up(mut lane: Lane, acked: &AtomicU64) -> (Lane, ClientError) {
    for number in 1_u64.. {
        match put_power(&mut lane, b"number", &number.to_le_bytes()) {
            Ok(()) => acked.store(number, Ordering::SeqCst),
            Err(error) => return (lane, error),
        }
    }
    unreachable!("there are more numbers than a device takes")
}

#[test]
fn when_the_device_fails_nothing_more_is_durable_and_reads_go_on() {
    for io in ["threads", "auto"] {
        let Some(mut fragile) = Fragile::new() else {
            return;
        };
        let place = memory_dir();
        std::fs::create_dir(fragile.path().join("data")).unwrap();
        std::os::unix::fs::symlink(fragile.path().join("data"), place.path().join("data")).unwrap();
        let lines =
            format!("shards = 1\nsegment_bytes = \"1MiB\"\nmemory_max = \"16MiB\"\nio = \"{io}\"");
        let mut served = Served::start(place.path(), &lines);
        let session = served.session();
        let (mut random, mut model) = (Random(8), Model::new());
        let mut lane = attach(&session, "kept");
        assert!(put_some(&mut lane, &mut random, &mut model, 500).is_none());
        lane.sync(Durability::Power).unwrap();
        // Some are in the runtime's own memory.
        for (key, value) in model.iter().take(60).chain(model.iter().take(60)) {
            assert!(value_of(&mut lane, key).unwrap().as_ref() == Some(value));
        }
        let acked: Vec<AtomicU64> = (0..3).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            let counting = acked.iter().enumerate().map(|(no, acked)| {
                let lane = attach(&session, &format!("counter {no}"));
                scope.spawn(move || count_up(lane, acked))
            });
            let counting: Vec<_> = counting.collect();
            wait_for("some are acknowledged", || {
                acked
                    .iter()
                    .all(|acked| acked.load(Ordering::SeqCst) > 20)
                    .then_some(())
            });
            assert!(forget(&fragile.path().join("data")) > 8);
            fragile.fail();
            for (counter, acked) in counting.into_iter().zip(&acked) {
                let (mut lane, error) = counter.join().unwrap();
                println!("io {io}: {error:?} after {acked:?}");
                let refused = matches!(
                    error,
                    ClientError::IoFailed { errno: EIO } | ClientError::ReadOnly
                );
                assert!(refused, "{error:?}");
                // Nothing is taken any more, of any durability.
                for durability in [Durability::Volatile, Durability::Process, Durability::Power] {
                    let durability = Some(durability);
                    let options = PutOptions {
                        durability,
                        ..PutOptions::default()
                    };
                    let refused = lane.put_with(b"number", b"late", options).unwrap_err();
                    assert!(matches!(refused, ClientError::ReadOnly), "{refused:?}");
                }
                let number = value_of(&mut lane, b"number").unwrap().unwrap();
                assert!(
                    u64::from_le_bytes(number.try_into().unwrap()) >= acked.load(Ordering::SeqCst)
                );
            }
        });
        // What the kernel or the runtime has in memory is read; the rest is an error that says so.
        let (mut read, mut lost) = (0, 0);
        for _ in 0..2 {
            for (key, value) in &model {
                match value_of(&mut lane, key) {
                    Ok(found) => {
                        assert!(found.as_ref() == Some(value));
                        read += 1;
                    }
                    Err(ClientError::IoFailed { errno: EIO }) => lost += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
        println!("io {io}: {read} reads went on, {lost} were refused");
        assert!(read > 20 && lost > 20);
        drop(session.attach("kept", Attach::default()).unwrap());
        let refused = session.attach("new", Attach::default()).unwrap_err();
        assert!(refused.to_string().contains("read-only"), "{refused}");
        served.assert_alive();
        let log = served.log();
        assert_eq!(
            log.matches("takes no writes until the next start").count(),
            1,
            "{log}"
        );
        drop((lane, session));
        served.kill();
        // On a device that works again everything acknowledged is there, and it goes on.
        fragile.repair();
        let served = Served::start(place.path(), &lines);
        let session = served.session();
        check(&mut attach(&session, "kept"), &model);
        for (no, acked) in acked.iter().enumerate() {
            let mut lane = attach(&session, &format!("counter {no}"));
            let number = value_of(&mut lane, b"number").unwrap().unwrap();
            let number = u64::from_le_bytes(number.try_into().unwrap());
            let acked = acked.load(Ordering::SeqCst);
            assert!(
                number == acked || number == acked + 1,
                "{number}, acknowledged {acked}"
            );
            put_power(&mut lane, b"number", b"goes on").unwrap();
        }
        drop(session);
        served.stop();
    }
}
