//! Models of a shard's doorbell, of the mesh's use of it, and of the end: the product's code over
//! loom's words.
//!
//! Floor 4; only there with `--cfg helios_loom`. What loom doesn't model is listed in
//! `shared/model.rs`.
//!
//! The rings of the mesh are another crate's, and no loom's: to it each of their calls is a step
//! that nothing divides. So that it tries what lies between the steps, a message is seen here
//! through a count with the orders that the rings have, stored behind each push with release and
//! loaded before each look with acquire.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::thread;

use super::shard_thread::Doorbell;
use crate::id::ShardNo;
use crate::mesh::{Port, mesh};
use crate::shared::AtomicU32;
use crate::shared::model::Fault::{Blind, Skipped, Stale};
use crate::shared::model::{Fault, Plant, caught, explore};

const DOORBELL: &str = "src/runtime/shard_thread.rs";

const fn bug(file: &'static str, text: &'static str, fault: Fault) -> Plant {
    Plant { file, text, fault }
}

/// What the shard looks at, as `Turner` does.
struct Looked {
    port: Port<u32>,
    pushed: Arc<AtomicU32>,
    stop: Arc<AtomicU32>,
    received: u32,
    stopped: bool,
}

impl Looked {
    fn look(&mut self) -> bool {
        let before = self.received;
        while self.received < self.pushed.load(Ordering::Acquire) {
            let message = self.port.receive();
            assert_eq!(message, Some((ShardNo(0), self.received)));
            self.received += 1;
        }
        self.received != before
    }

    fn is_told_to_stop(&mut self) -> bool {
        // Once: who was told and still has something to do sleeps for that.
        !self.stopped && {
            self.stopped = self.stop.load(Ordering::Acquire) == 1;
            self.stopped
        }
    }
}

/// A shard that falls asleep, another that sends to it, and a host that tells it to stop.
fn sent_and_stopped() {
    let mut ports = mesh::<u32>(2, 2);
    let (port, mut sender) = (ports.pop().unwrap(), ports.pop().unwrap());
    let doorbell = Arc::new(Doorbell::new().unwrap());
    let pushed = Arc::new(AtomicU32::new(0));
    let stop = Arc::new(AtomicU32::new(0));
    let mut looked = Looked {
        port,
        pushed: Arc::clone(&pushed),
        stop: Arc::clone(&stop),
        received: 0,
        stopped: false,
    };
    let own = Arc::clone(&doorbell);
    let shard = thread::spawn(move || {
        while looked.received < 1 || !looked.stopped {
            if looked.look() {
                continue;
            }
            own.rest(|| {
                let work = looked.is_told_to_stop() || looked.look();
                (!work).then_some(None)
            });
        }
    });
    let others = Arc::clone(&doorbell);
    let other = thread::spawn(move || {
        sender.send(ShardNo(1), 0).unwrap();
        pushed.store(1, Ordering::Release);
        while let Some(to) = sender.take_notified() {
            assert_eq!(to, ShardNo(1));
            others.ring();
        }
        sender
    });
    stop.store(1, Ordering::Release);
    doorbell.ring();
    drop(other.join().unwrap());
    shard.join().unwrap();
}

/// One ringer only: no second ring hides the loss of the first.
fn sent() {
    let mut ports = mesh::<u32>(2, 2);
    let (port, mut sender) = (ports.pop().unwrap(), ports.pop().unwrap());
    let doorbell = Arc::new(Doorbell::new().unwrap());
    let pushed = Arc::new(AtomicU32::new(0));
    let mut looked = Looked {
        port,
        pushed: Arc::clone(&pushed),
        stop: Arc::new(AtomicU32::new(0)),
        received: 0,
        stopped: false,
    };
    let own = Arc::clone(&doorbell);
    let shard = thread::spawn(move || {
        while looked.received < 2 {
            own.rest(|| (!looked.look()).then_some(None));
        }
    });
    for no in 0..2 {
        sender.send(ShardNo(1), no).unwrap();
        pushed.store(no + 1, Ordering::Release);
        while sender.take_notified().is_some() {
            doorbell.ring();
        }
    }
    shard.join().unwrap();
}

#[test]
fn loom_doorbell() {
    explore("doorbell", 3, sent);
}

#[test]
fn loom_doorbell_with_bugs() {
    let sleeping = "word.store(u32::from(sleeping), Ordering::Relaxed);";
    caught(
        "doorbell",
        3,
        &[
            bug(
                DOORBELL,
                "fence(Ordering::SeqCst); // Partner: the fence in `fall_asleep`.",
                Skipped,
            ),
            bug(
                DOORBELL,
                "if self.sleeping.load(Ordering::Relaxed) {",
                Stale,
            ),
            bug(
                DOORBELL,
                "self.sleeping.store(true, Ordering::Relaxed);",
                Skipped,
            ),
            bug(DOORBELL, "self.sleeper.ring();", Skipped),
            // No look after the flags are up.
            bug("src/agent/bell.rs", sleeping, Blind),
        ],
        sent,
    );
}

#[test]
fn loom_shutdown() {
    explore("shutdown", 2, sent_and_stopped);
}

#[test]
fn loom_shutdown_with_bugs() {
    let sleeping = "word.store(u32::from(sleeping), Ordering::Relaxed);";
    caught(
        "shutdown",
        2,
        &[
            bug(
                DOORBELL,
                "fence(Ordering::SeqCst); // Partner: the fence in `fall_asleep`.",
                Skipped,
            ),
            bug("src/agent/bell.rs", sleeping, Blind),
        ],
        sent_and_stopped,
    );
}
