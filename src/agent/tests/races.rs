//! The three races of sleeping, run head-on: two threads start a round at the same moment, one
//! says "I sleep" and looks, the other does something and looks whether anyone sleeps.
//!
//! Floor 1, room `agent`. In every round at least one of the two must have noticed the other; a
//! missing fence, or a missing second look, shows within the bounded rounds on most machines.

use std::sync::atomic::AtomicBool;

use super::*;

const ROUNDS: u32 = 20_000;

/// Lets two threads leave at nearly the same time.
#[derive(Default)]
struct Gate {
    arrived: AtomicU64,
    failed: AtomicBool,
}

impl Gate {
    /// Returns when both threads have come here `turn` times. Turns count from 1.
    fn meet(&self, turn: u64) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut looks = 0u32;
        while self.arrived.load(Ordering::Acquire) < 2 * turn {
            looks += 1;
            if looks.is_multiple_of(256) {
                assert!(
                    !self.failed.load(Ordering::Relaxed),
                    "the other thread failed"
                );
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// Tells the other thread of a panic, which would wait for ever.
struct Failed<'a>(&'a AtomicBool);

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Runs `client` and `shard` of each round at once; what they return is whether they noticed.
fn head_on(
    both: Both,
    mut before: impl FnMut(&mut Shard<'_>),
    client: impl Fn(&mut ClientLane, &ClientBells) -> bool + Sync,
    shard: impl Fn(&mut ServerLane, &mut ServerBells, &StatusPage) -> bool,
) {
    let Both {
        client: mut lane,
        bells,
        mut server,
        mut server_bells,
        status,
        ..
    } = both;
    let gate = Gate::default();
    let noticed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (gate, noticed, client) = (&gate, &noticed, &client);
        scope.spawn(move || {
            let _failed = Failed(&gate.failed);
            for round in 0..u64::from(ROUNDS) {
                gate.meet(4 * round + 1);
                gate.meet(4 * round + 2);
                // With what it will read in its cache, only a fence keeps the read behind.
                let _ = (lane.closed(), bells.sleeping(ShardNo(0)));
                gate.meet(4 * round + 3);
                let found = client(&mut lane, &bells);
                noticed.store(found, Ordering::Relaxed);
                gate.meet(4 * round + 4);
                while lane.poll_completion().unwrap().is_some() {}
            }
        });
        let _failed = Failed(&gate.failed);
        for round in 0..u64::from(ROUNDS) {
            gate.meet(4 * round + 1);
            before(&mut Shard {
                server: &mut server,
                bells: &mut server_bells,
                status: &status,
            });
            gate.meet(4 * round + 2);
            let _ = server_bells.settled();
            server.prefetch();
            gate.meet(4 * round + 3);
            // The client has more to do before its look: the two meet somewhere in here.
            for _ in 0..round % 509 {
                std::hint::black_box(round);
            }
            let found = shard(&mut server, &mut server_bells, &status);
            gate.meet(4 * round + 4);
            let other = noticed.load(Ordering::Relaxed);
            assert!(found || other, "round {round}: both would sleep");
        }
    });
}

/// The shard's things between rounds.
struct Shard<'a> {
    server: &'a mut ServerLane,
    bells: &'a mut ServerBells,
    status: &'a StatusPage,
}

impl Shard<'_> {
    /// Answers what is there and hears every bell.
    fn clear(&mut self) {
        while let Some(taken) = self.server.take().unwrap() {
            let done = Completion::new(taken.user_data, Status::Ok);
            self.server.complete(&done);
        }
        while !self.bells.settled() {
            self.bells.next_bell();
        }
        self.status.set_sleeping(false);
    }
}

fn submit(lane: &mut ClientLane) {
    // Answers to earlier rounds may still come: the ring is larger than what is under way.
    while lane.poll_completion().unwrap().is_some() {}
    lane.submit(&Submission::new(Op::Sync, 0)).unwrap();
}

#[test]
fn a_shard_that_stops_polling_is_rung_or_sees_the_entry() {
    head_on(
        both(small(), 0),
        |shard| {
            shard.clear();
            shard.server.set_attention(Attention::Polled);
        },
        |lane, bells| {
            submit(lane);
            // Without a bell the client has seen `Polled`. (Nobody sleeps in this race: the frame
            // is never asked for, so the ring itself is looked at.)
            let before = bells.rung(ShardNo(0));
            let _ = lane.notify(bells);
            bells.rung(ShardNo(0)) != before
        },
        |server, _, _| server.set_attention(Attention::Bell),
    );
}

#[test]
fn a_shard_that_goes_to_sleep_gets_a_frame_or_sees_the_bell() {
    head_on(
        both(small(), 0),
        |shard| shard.clear(),
        |lane, bells| {
            submit(lane);
            lane.notify(bells) == Notify::SendBell
        },
        |_, bells, status| {
            status.set_sleeping(true);
            !bells.settled()
        },
    );
}

#[test]
fn a_client_that_goes_to_sleep_is_woken_or_sees_the_completion() {
    let mut both = both(small(), 0);
    both.client.submit(&Submission::new(Op::Sync, 0)).unwrap();
    head_on(
        both,
        |_| (),
        |lane, _| {
            let ready = lane.arm_event();
            // For the next round; the shard has taken this round's before it completes it.
            lane.submit(&Submission::new(Op::Sync, 0)).unwrap();
            ready
        },
        |server, _, _| {
            let taken = server.take().unwrap().expect("sent a round ago");
            server.complete(&Completion::new(taken.user_data, Status::Ok));
            server.wake_if_waiting() != WakeKind::None
        },
    );
}
