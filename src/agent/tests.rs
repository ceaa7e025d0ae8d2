//! Both halves of the boundary together: through two mappings, two threads, and hostile hands.
//!
//! Floor 1, room `agent`. A client half is driven against a server half over real shared memory;
//! waits have generous limits that only a lost wake reaches.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::layout::{self, BELL_TAIL, BELLS, C_CONSUMED, C_HIT_TAIL, ENTRY_BYTES, tag};
use super::*;
use crate::id::{LaneNo, ObjectId, ShardNo};
use crate::shared::{Access, SharedMemory};

mod hostile;
mod races;
mod timing;

/// Only a wake that never comes takes so long.
const LOST: Duration = Duration::from_secs(60);

/// A session of one lane and one shard, both sides.
struct Both {
    client: ClientLane,
    bells: ClientBells,
    server: ServerLane,
    server_bells: ServerBells,
    status: StatusPage,
    client_fd: OwnedFd,
    /// The session region mapped once more, to write it wrongly.
    session: SharedMemory,
}

fn both(sizes: LaneSizes, position: u64) -> Both {
    let (region, session_fd) = ServerBells::create_session(1).unwrap();
    let (status, status_fd) = StatusPage::create().unwrap();
    let bells = ClientBells::map(&session_fd, &[status_fd]).unwrap();
    let session = SharedMemory::map(&session_fd, layout::SESSION_PAGE_BYTES, Access::ReadWrite);
    let (mut server, fds) = ServerLane::create(sizes).unwrap();
    let mut client =
        ClientLane::map(&fds.client, &fds.server, sizes, LaneNo(0), ShardNo(0)).unwrap();
    let mut server_bells = ServerBells::new(region, ShardNo(0));
    server.start_at(position);
    client.start_at(position);
    server_bells.start_at(position);
    bells.start_at(position);
    Both {
        client,
        bells,
        server,
        server_bells,
        status,
        client_fd: fds.client,
        session: session.unwrap(),
    }
}

fn small() -> LaneSizes {
    LaneSizes::new(4, 4096, 4096).unwrap()
}

/// Positions around which tags, or their halves, wrap.
const STARTS: [u64; 4] = [
    0,
    (1 << 31) - 6,
    u32::MAX as u64 - 5,
    (1 << 40) + (1 << 31) - 3,
];

/// Sends bytes; the answer will be the same, reversed.
fn submit_echo(client: &mut ClientLane, user_data: u64, bytes: &[u8]) -> [Block; 2] {
    let len = bytes.len() as u32;
    let input = client.alloc_input(len).unwrap();
    let output = client.alloc_output(len).unwrap();
    let mut submission = Submission::new(Op::MultiGet, user_data);
    submission.value = input.first(len);
    submission.reply = output.first(len);
    client.write_input(submission.value, bytes);
    client.submit(&submission).unwrap();
    [input, output]
}

fn answer_echo(server: &mut ServerLane, submission: &Submission) {
    let mut bytes = vec![0; submission.value.len as usize];
    server.copy_in(submission.value, &mut bytes);
    bytes.reverse();
    let (first, rest) = bytes.split_at(bytes.len() / 3);
    server.write_reply(submission.reply, 0, first);
    server.write_reply(submission.reply, first.len() as u32, rest);
    let mut completion = Completion::new(submission.user_data, Status::Ok);
    completion.reply_bytes = bytes.len() as u32;
    completion.id = ObjectId::of_blob(&bytes);
    server.complete(&completion);
}

fn check_echo(client: &mut ClientLane, done: &Completion, blocks: [Block; 2], sent: &[u8]) {
    let [input, output] = blocks;
    let mut bytes = vec![0; done.reply_bytes as usize];
    client.read_output(output.first(done.reply_bytes), &mut bytes);
    assert_eq!(done.id, ObjectId::of_blob(&bytes));
    bytes.reverse();
    assert_eq!(bytes, sent);
    client.free_input(input);
    client.free_output(output);
}

proptest! {
    /// Any interleaving of both halves, answers in any order, against a map of what was asked.
    #[test]
    fn every_request_has_one_answer(
        start in 0..STARTS.len(),
        steps in prop::collection::vec((0u8..3, any::<u8>(), 1usize..300), 1..200),
    ) {
        let Both { mut client, mut server, .. } = both(small(), STARTS[start]);
        let (mut asked, mut taken) = (HashMap::new(), Vec::new());
        let mut next = 0u64;
        for (what, byte, len) in steps {
            match what {
                0 if asked.len() == 4 => {
                    let full = client.submit(&Submission::new(Op::Sync, 0));
                    prop_assert_eq!(full, Err(SubmitError::Full { ring_slots: 4 }));
                }
                0 => {
                    let bytes: Vec<u8> = (0..len).map(|at| byte ^ at as u8).collect();
                    let blocks = submit_echo(&mut client, next, &bytes);
                    asked.insert(next, (blocks, bytes));
                    next += 1;
                }
                1 => match server.take().unwrap() {
                    Some(submission) => taken.push(submission),
                    None => prop_assert_eq!(asked.len(), server.in_flight() as usize
                        + (client.in_flight() - taken.len() as u32) as usize),
                },
                _ => {
                    if !taken.is_empty() {
                        let submission = taken.swap_remove(usize::from(byte) % taken.len());
                        answer_echo(&mut server, &submission);
                    }
                    if byte % 2 == 0 {
                        while let Some(done) = client.poll_completion().unwrap() {
                            let (blocks, sent) = asked.remove(&done.user_data).unwrap();
                            check_echo(&mut client, &done, blocks, &sent);
                        }
                    }
                }
            }
            prop_assert_eq!(client.in_flight() as usize, asked.len());
        }
        while let Some(submission) = server.take().unwrap() {
            taken.push(submission);
        }
        for submission in taken.drain(..) {
            answer_echo(&mut server, &submission);
        }
        while let Some(done) = client.poll_completion().unwrap() {
            let (blocks, sent) = asked.remove(&done.user_data).unwrap();
            check_echo(&mut client, &done, blocks, &sent);
        }
        prop_assert!(asked.is_empty());
        prop_assert!(client.alloc_input(4096).is_some() && client.alloc_output(4096).is_some());
    }

    /// Threads that ring are taken apart into their two steps, which come in any order; whoever
    /// took a place is heard: by name, or by a scan after it.
    #[test]
    fn no_bell_is_lost(
        start in 0..STARTS.len(),
        steps in prop::collection::vec((0u8..8, any::<u8>(), 1u32..200), 1..120),
    ) {
        let Both { mut server_bells, session, .. } = both(small(), STARTS[start]);
        let (mut unwritten, mut unheard) = (Vec::new(), VecDeque::new());
        let write = |place: u64, lane: u32| {
            let slot = session.word(BELLS + 8 * (place % 256) as usize);
            slot.store(u64::from(tag(place)) << 32 | u64::from(lane), Ordering::Release);
        };
        let look = |bells: &mut ServerBells, unheard: &mut VecDeque<u32>| match bells.next_bell() {
            Bell::Quiet => false,
            Bell::Overrun => {
                unheard.clear();
                true
            }
            Bell::Lane(LaneNo(lane)) => {
                unheard.retain(|each| *each != lane);
                true
            }
        };
        for (index, (what, pick, count)) in steps.into_iter().enumerate() {
            let lane = index as u32;
            match what {
                0 | 1 => {
                    let place = session.word(BELL_TAIL).fetch_add(1, Ordering::AcqRel);
                    unheard.push_back(lane);
                    unwritten.push((place, lane));
                    if what == 0 {
                        let (place, lane) = unwritten.pop().unwrap();
                        write(place, lane);
                    }
                }
                2 if !unwritten.is_empty() => {
                    let (place, lane) = unwritten.swap_remove(usize::from(pick) % unwritten.len());
                    write(place, lane);
                }
                3 => for _ in 0..count {
                    let place = session.word(BELL_TAIL).fetch_add(1, Ordering::AcqRel);
                    unheard.push_back(lane);
                    write(place, lane);
                },
                _ => for _ in 0..count {
                    look(&mut server_bells, &mut unheard);
                },
            }
            if server_bells.settled() {
                prop_assert!(unheard.is_empty(), "settled with {unheard:?} unheard");
            }
        }
        // Even if nobody ever writes the rest, the shard comes to an end and has heard all.
        let mut looks = 0;
        while !server_bells.settled() {
            look(&mut server_bells, &mut unheard);
            looks += 1;
            prop_assert!(looks < 100_000, "a hole that never ends");
        }
        prop_assert!(unheard.is_empty(), "{unheard:?}");
        prop_assert_eq!(server_bells.next_bell(), Bell::Quiet);
    }
}

#[test]
fn a_lapped_ring_is_an_overrun_and_then_goes_on() {
    for start in STARTS {
        let Both {
            bells,
            mut server_bells,
            ..
        } = both(small(), start);
        for lane in 0..256 {
            bells.ring(ShardNo(0), LaneNo(lane));
        }
        for lane in 0..256 {
            assert_eq!(server_bells.next_bell(), Bell::Lane(LaneNo(lane)));
        }
        for lane in 0..257 {
            bells.ring(ShardNo(0), LaneNo(lane));
        }
        assert!(!server_bells.settled());
        assert_eq!(server_bells.next_bell(), Bell::Overrun);
        assert!(server_bells.settled());
        assert_eq!(server_bells.next_bell(), Bell::Quiet);
        bells.ring(ShardNo(0), LaneNo(9));
        assert_eq!(server_bells.next_bell(), Bell::Lane(LaneNo(9)));
    }
}

#[test]
fn threads_that_ring_at_once_are_all_heard() {
    const THREADS: usize = 4;
    const ROUNDS: u64 = 5_000;
    let Both {
        bells,
        mut server_bells,
        ..
    } = both(small(), STARTS[2]);
    let work: [AtomicU64; THREADS] = Default::default();
    let mut seen = [0; THREADS];
    std::thread::scope(|scope| {
        for (lane, mine) in work.iter().enumerate() {
            let bells = &bells;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    // Relaxed on purpose: the bell alone makes it visible.
                    mine.store(mine.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    bells.ring(ShardNo(0), LaneNo(lane as u32));
                }
            });
        }
        // Ends only when every last store was seen through a bell or a scan.
        while seen != [ROUNDS; THREADS] {
            match server_bells.next_bell() {
                Bell::Quiet => std::thread::yield_now(),
                Bell::Lane(lane) => {
                    let lane = lane.0 as usize;
                    seen[lane] = work[lane].load(Ordering::Relaxed);
                }
                Bell::Overrun => {
                    for (seen, work) in seen.iter_mut().zip(&work) {
                        *seen = work.load(Ordering::Relaxed);
                    }
                }
            }
        }
    });
    while !server_bells.settled() {
        server_bells.next_bell();
    }
}

/// Set when dropped, so that a failed assertion doesn't leave the other thread running.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn two_threads_exchange_every_byte() {
    for start in STARTS {
        let Both {
            mut client,
            mut server,
            ..
        } = both(LaneSizes::DEFAULT, start);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    match server.take().unwrap() {
                        Some(submission) => answer_echo(&mut server, &submission),
                        None => std::thread::yield_now(),
                    }
                    let _ = server.wake_if_waiting();
                }
            });
            let _stop = Stop(&stop);
            let mut under_way = HashMap::new();
            for round in 0..3_000usize {
                let len = 1 + round * 37 % 1500;
                let bytes: Vec<u8> = (0..len).map(|at| (at ^ round) as u8).collect();
                let blocks = submit_echo(&mut client, round as u64, &bytes);
                under_way.insert(round as u64, (blocks, bytes));
                // Sometimes one at a time, sometimes a full ring; nothing is left at the end.
                let keep = if round % 300 < 150 { 63 } else { 0 };
                while under_way.len() > keep {
                    let done = client.wait(Duration::from_micros(20), LOST).unwrap();
                    let done = done.expect("a completion");
                    let (blocks, sent) = under_way.remove(&done.user_data).unwrap();
                    check_echo(&mut client, &done, blocks, &sent);
                }
            }
            assert!(under_way.is_empty());
        });
    }
}

fn readable(socket: &FrameSocket, timeout: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}

/// A shard that sleeps whenever it has nothing to do, in each of the ways it can be reached.
fn sleepy_shard(both: ServerSide, rounds: u64) {
    let ServerSide {
        mut server,
        mut bells,
        status,
        socket,
    } = both;
    let mut buffer = [0; frame::FRAME_BYTES_MAX];
    let mut answered = 0;
    let mut turn = 0u64;
    while answered < rounds {
        // Poll for a while that differs from turn to turn.
        let mut again = server.set_attention(Attention::Polled);
        for _ in 0..turn % 5 * 40 {
            std::hint::spin_loop();
            again |= serve(&mut server, &socket, &mut answered);
        }
        turn += 1;
        if again {
            continue;
        }
        if server.set_attention(Attention::Bell) {
            serve(&mut server, &socket, &mut answered);
            continue;
        }
        status.set_sleeping(true);
        if bells.settled() {
            assert!(
                answered == rounds || readable(&socket, LOST),
                "a bell was lost"
            );
        }
        status.set_sleeping(false);
        while readable(&socket, Duration::ZERO) {
            match socket.receive(&mut buffer).unwrap().frame {
                Frame::Bell { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        loop {
            match bells.next_bell() {
                Bell::Quiet if bells.settled() => break,
                Bell::Quiet => std::thread::yield_now(),
                Bell::Lane(LaneNo(lane)) => assert_eq!(lane, 0),
                Bell::Overrun => {}
            }
        }
        serve(&mut server, &socket, &mut answered);
    }
}

struct ServerSide {
    server: ServerLane,
    bells: ServerBells,
    status: StatusPage,
    socket: FrameSocket,
}

fn serve(server: &mut ServerLane, socket: &FrameSocket, answered: &mut u64) -> bool {
    let before = *answered;
    while let Some(submission) = server.take().unwrap() {
        server.complete(&Completion::new(submission.user_data, Status::Ok));
        *answered += 1;
    }
    if *answered > before && server.wake_if_waiting() == WakeKind::SocketByte {
        let lane = LaneNo(0);
        socket.send(0, &Frame::Wake { lane }, &[]).unwrap();
    }
    *answered > before
}

#[test]
fn nobody_sleeps_for_ever() {
    const ROUNDS: u64 = 6_000;
    let Both {
        mut client,
        bells,
        server,
        server_bells,
        status,
        ..
    } = both(small(), STARTS[2]);
    let (ours, theirs) = FrameSocket::pair().unwrap();
    let side = ServerSide {
        server,
        bells: server_bells,
        status,
        socket: theirs,
    };
    let shard = std::thread::spawn(move || sleepy_shard(side, ROUNDS));
    let mut buffer = [0; frame::FRAME_BYTES_MAX];
    let (mut sent, mut answered, mut frames) = (0, 0, 0);
    while answered < ROUNDS {
        let batch = (1 + sent % 4).min(ROUNDS - sent);
        for _ in 0..batch {
            client.submit(&Submission::new(Op::Sync, sent)).unwrap();
            sent += 1;
        }
        for _ in 0..sent % 7 * 30 {
            std::hint::spin_loop();
        }
        if client.notify(&bells) == Notify::SendBell {
            let shard = ShardNo(0);
            ours.send(0, &Frame::Bell { shard }, &[]).unwrap();
            frames += 1;
        }
        while answered < sent {
            if sent % 2 == 0 {
                let done = client.wait(Duration::ZERO, LOST).unwrap();
                assert!(done.is_some(), "a futex wake was lost");
            } else {
                while client.poll_completion().unwrap().is_none() {
                    if client.arm_event() {
                        continue;
                    }
                    assert!(readable(&ours, LOST), "a wake frame was lost");
                    let got = ours.receive(&mut buffer).unwrap();
                    assert!(matches!(got.frame, Frame::Wake { .. }));
                }
            }
            answered += 1;
        }
    }
    shard.join().unwrap();
    assert!(frames > 0, "the shard never slept: nothing was tested");
}

#[test]
fn one_wait_costs_one_wake() {
    let Both {
        mut client,
        mut server,
        ..
    } = both(small(), 0);
    let mut complete = |client: &mut ClientLane| {
        client.submit(&Submission::new(Op::Sync, 0)).unwrap();
        server.take().unwrap().unwrap();
        server.complete(&Completion::new(0, Status::Ok));
        server.wake_if_waiting()
    };
    assert_eq!(complete(&mut client), WakeKind::None);
    assert!(client.arm_event(), "one is there already");
    client.poll_completion().unwrap().unwrap();
    assert!(!client.arm_event());
    assert_eq!(complete(&mut client), WakeKind::SocketByte);
    assert_eq!(
        complete(&mut client),
        WakeKind::None,
        "asked once, told once"
    );
    client.poll_completion().unwrap().unwrap();
    client.poll_completion().unwrap().unwrap();
    assert!(!client.arm_event());
    client.disarm();
    assert_eq!(complete(&mut client), WakeKind::None);
}

#[test]
fn a_closed_lane_gives_its_completions_and_then_the_reason() {
    let Both {
        mut client,
        mut server,
        ..
    } = both(small(), 0);
    for user_data in 0..2 {
        let sync = Submission::new(Op::Sync, user_data);
        client.submit(&sync).unwrap();
    }
    server.take().unwrap().unwrap();
    server.complete(&Completion::new(0, Status::Ok));
    server.close(CloseReason::ShuttingDown);
    assert!(client.wait(Duration::ZERO, LOST).unwrap().is_some());
    assert!(client.arm_event());
    let closed = client.wait(Duration::ZERO, LOST).unwrap_err();
    assert!(matches!(
        closed,
        LaneError::Closed(CloseReason::ShuttingDown)
    ));
}

#[test]
fn a_sleeping_client_hears_that_its_lane_is_closed() {
    let Both {
        mut client,
        mut server,
        ..
    } = both(small(), 0);
    client.submit(&Submission::new(Op::Sync, 0)).unwrap();
    let waiter = std::thread::spawn(move || client.wait(Duration::ZERO, LOST));
    std::thread::yield_now();
    server.close(CloseReason::Malformed);
    let closed = waiter.join().unwrap().unwrap_err();
    assert!(matches!(closed, LaneError::Closed(CloseReason::Malformed)));
}

#[test]
fn a_change_of_attention_tells_of_entries_that_are_there() {
    let Both {
        mut client,
        mut server,
        ..
    } = both(small(), STARTS[2]);
    for _ in 0..9 {
        assert!(!server.set_attention(Attention::Bell));
        client.submit(&Submission::new(Op::Sync, 0)).unwrap();
        assert!(server.set_attention(Attention::Bell));
        server.take().unwrap().unwrap();
        assert!(!server.set_attention(Attention::Polled));
        server.complete(&Completion::new(0, Status::Ok));
        client.poll_completion().unwrap().unwrap();
    }
}

#[test]
fn waiting_ends_with_its_time() {
    let mut both = both(small(), 0);
    let client = &mut both.client;
    let spun = client.wait(Duration::from_secs(3600), Duration::from_millis(2));
    assert!(spun.unwrap().is_none());
    let slept = client.wait(Duration::ZERO, Duration::from_millis(2));
    assert!(slept.unwrap().is_none());
}

#[test]
fn hits_are_reported_and_the_oldest_are_lost() {
    let Both {
        mut client,
        mut server,
        ..
    } = both(small(), 0);
    let mut drain = || {
        let mut hits = Vec::new();
        let lost = server.hits(|slot, tag| hits.push((slot, tag))).unwrap();
        (hits, lost)
    };
    assert_eq!(drain(), (vec![], 0));
    client.report_hit(3, 70);
    client.report_hit(u32::MAX, 0);
    assert_eq!(drain(), (vec![(3, 70), (u32::MAX, 0)], 0));
    for slot in 0..300 {
        client.report_hit(slot, slot + 1);
    }
    let (hits, lost) = drain();
    assert_eq!(lost, 44);
    assert!(hits.into_iter().eq((44..300).map(|slot| (slot, slot + 1))));
}

/// The page that strangers implement from shows the bytes that we write.
#[test]
fn the_example_in_the_protocol_is_what_is_written() {
    let page = include_str!("PROTOCOL.md");
    let shown: Vec<u8> = page
        .split("```")
        .skip(1)
        .step_by(2)
        .flat_map(str::lines)
        .flat_map(|line| line.split("   ").next().unwrap_or("").split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let mut written = Vec::new();
    let frame = |request, frame: Frame<'_>, written: &mut Vec<u8>| {
        let mut out = [0; frame::FRAME_BYTES_MAX];
        let bytes = frame.encode(request, &mut out).unwrap();
        written.extend(&out[..bytes]);
    };
    let flags = frame::ATTACH_CREATE;
    frame(7, Frame::Attach { flags, agent: "a" }, &mut written);
    let attached = Frame::Attached {
        lane: LaneNo(3),
        agent: crate::id::AgentNo(4),
        shard: ShardNo(1),
        sizes: LaneSizes::DEFAULT,
        window_bytes: 0,
    };
    frame(7, attached, &mut written);
    let mut put = Submission::new(Op::Put, 42);
    put.durability = Some(crate::config::Durability::Process);
    put.key = Extent { offset: 0, len: 1 };
    put.value = Extent { offset: 1, len: 5 };
    put.check(&LaneSizes::DEFAULT).unwrap();
    written.extend(put.encode(tag(0)).into_iter().flat_map(u64::to_le_bytes));
    let Both { bells, session, .. } = both(small(), 0);
    bells.ring(ShardNo(0), LaneNo(3));
    written.extend(session.word(BELLS).load(Ordering::Relaxed).to_le_bytes());
    let shard = ShardNo(1);
    frame(0, Frame::Bell { shard }, &mut written);
    let mut done = Completion::new(42, Status::Ok);
    done.durability = put.durability;
    done.value_bytes = 9;
    done.id = ObjectId::of_blob(b"hello");
    written.extend(done.encode(tag(0)).into_iter().flat_map(u64::to_le_bytes));
    assert_eq!(shown, written);
    // Numbers in the prose.
    let sizes = LaneSizes::DEFAULT;
    assert_eq!(
        (sizes.client_bytes(), sizes.server_bytes()),
        (266_240, 266_240)
    );
    assert_eq!(
        (sizes.submissions_at(), sizes.completions_at()),
        (262_144, 262_144)
    );
    assert_eq!(frame::FRAME_MAGIC, 0x494c_4548);
    assert_eq!(
        (layout::STATUS_MAGIC, layout::LANE_MAGIC),
        (0x5453_4c48, 0x5353_4c48)
    );
    assert_eq!((layout::C_ARENA, layout::S_ARENA), (2240, 192));
}
