//! Models of a lane, of bells and of both sides' sleep: the product's code over loom's words.
//!
//! Floor 1, room `agent`; only there with `--cfg helios_loom`. What loom doesn't model is listed in
//! `shared/model.rs`. Rings have two slots, and all counts start where tags wrap.
//!
//! Each model is followed by the bugs that it must notice. Orders that are not among them are
//! those that another one makes redundant: the release of a bell's place and slot, which a fence of
//! `ClientLane::notify` precedes, and the acquire of the slot, which comes behind that of `tail`; the
//! one of `consumed`, which loom can't get wrong.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use super::layout::{ARENA_BYTES_MIN, LaneSizes};
use super::*;
use crate::id::{LaneNo, ShardNo};
use crate::shared::SharedMemory;
use crate::shared::model::Fault::{Blind, Relaxed, Skipped, Stale};
use crate::shared::model::{Fault, Plant, Sleeper, caught, explore, fails};

const CLIENT: &str = "src/agent/client_lane.rs";
const SERVER: &str = "src/agent/server_lane.rs";
const BELLS: &str = "src/agent/bell.rs";

/// The tags of entries 2 and later begin again at 0.
const START: u64 = (1 << 31) - 2;
const LONG: Duration = Duration::from_secs(1 << 40);

const fn bug(file: &'static str, text: &'static str, fault: Fault) -> Plant {
    Plant { file, text, fault }
}

fn lane(no: u32, position: u64) -> (ClientLane, ServerLane) {
    let sizes = LaneSizes::new(2, ARENA_BYTES_MIN, ARENA_BYTES_MIN).unwrap();
    let (mut server, fds) = ServerLane::create(sizes).unwrap();
    let mut client =
        ClientLane::map(&fds.client, &fds.server, sizes, LaneNo(no), ShardNo(0)).unwrap();
    client.start_at(position);
    server.start_at(position);
    (client, server)
}

fn session(position: u64) -> (ClientBells, ServerBells, StatusPage) {
    let (region, fd): (Arc<SharedMemory>, _) = ServerBells::create_session(1).unwrap();
    let (status, status_fd) = StatusPage::create().unwrap();
    let client = ClientBells::map(&fd, &[status_fd]).unwrap();
    let mut server = ServerBells::new(region, ShardNo(0));
    client.start_at(position);
    server.start_at(position);
    (client, server, status)
}

/// A request with eight bytes of input and as many of reply.
fn request(client: &mut ClientLane, no: u64) -> Block {
    let input = client.alloc_input(8).unwrap();
    let mut submission = Submission::new(Op::MultiGet, no);
    submission.value = input.first(8);
    submission.reply = input.first(8);
    client.write_input(input.first(8), &no.to_le_bytes());
    client.submit(&submission).unwrap();
    input
}

/// The answer to it: the reply is the input, negated.
fn answer(client: &mut ClientLane, input: Block, no: u64, completion: Completion) {
    assert_eq!(
        completion.user_data, no,
        "the completion of another request"
    );
    let mut reply = [0; 8];
    client.read_output(input.first(8), &mut reply);
    assert_eq!(u64::from_le_bytes(reply), !no, "bytes of another reply");
    client.free_input(input);
}

/// Serves what is there; how many.
fn serve(server: &mut ServerLane) -> usize {
    let mut served = 0;
    while let Some(submission) = server.take().expect("a client that keeps the rules") {
        let mut input = [0; 8];
        server.copy_in(submission.value, &mut input);
        let no = u64::from_le_bytes(input);
        assert_eq!(no, submission.user_data, "bytes of another input");
        server.write_reply(submission.reply, 0, &(!no).to_le_bytes());
        server.complete(&Completion::new(no, Status::Ok));
        served += 1;
    }
    served
}

/// Polls until `count` requests are served, waking the client after each batch.
fn serve_polling(server: &mut ServerLane, count: usize) {
    let mut served = 0;
    while served < count {
        let batch = serve(server);
        served += batch;
        if batch == 0 {
            thread::yield_now();
        } else {
            assert_ne!(server.wake_if_waiting(), WakeKind::SocketByte);
        }
    }
}

// ---- the rings --------------------------------------------------------------------------------

/// Three requests through two slots, so that a slot is used again: the client keeps both full,
/// and sleeps for every answer.
fn rings() {
    let (mut client, mut server) = lane(0, START);
    let shard = thread::spawn(move || {
        serve_polling(&mut server, 3);
        server
    });
    let mut under_way = [1, 2].map(|no| (no, request(&mut client, no))).into_iter();
    let (no, input) = under_way.next().unwrap();
    let completion = client.wait(Duration::ZERO, LONG).unwrap().unwrap();
    answer(&mut client, input, no, completion);
    let third = (3, request(&mut client, 3));
    for (no, input) in under_way.chain([third]) {
        let completion = client.wait(Duration::ZERO, LONG).unwrap().unwrap();
        answer(&mut client, input, no, completion);
    }
    drop(shard.join().unwrap());
}

/// The client believes that the server knows of one free slot more than it does.
fn rings_told_late() {
    let (mut client, mut server) = lane(0, START);
    let shard = thread::spawn(move || {
        serve_polling(&mut server, 3);
        server
    });
    for no in 1..4 {
        let input = request(&mut client, no);
        if no == 1 {
            client.tell_late();
        }
        let completion = client.wait(Duration::ZERO, LONG).unwrap().unwrap();
        answer(&mut client, input, no, completion);
    }
    drop(shard.join().unwrap());
}

#[test]
fn loom_rings() {
    explore("rings", 3, rings);
}

#[test]
fn loom_rings_with_bugs() {
    let tag_stored = "self.client.word(at).store(words[0], Ordering::Release);";
    let tag_loaded = "let head = self.client.word(at).load(Ordering::Acquire);";
    let answer_stored = "self.server.word(at).store(words[0], Ordering::Release);";
    let consumed = "word.store(self.consumed, Ordering::Release);";
    caught(
        "rings",
        2,
        &[
            bug(CLIENT, tag_stored, Relaxed),
            bug(SERVER, tag_loaded, Relaxed),
            bug(SERVER, answer_stored, Relaxed),
            bug(CLIENT, consumed, Skipped),
            // Asleep for ever.
            bug(
                CLIENT,
                "fence(Ordering::SeqCst); // Partner: the fence in `ServerLane::wake",
                Skipped,
            ),
            bug(
                SERVER,
                "fence(Ordering::SeqCst); // Partner: the fence in `ClientLane::say_waiting`.",
                Skipped,
            ),
            bug(
                CLIENT,
                "word.store(self.waits << 2 | waiting as u32, Ordering::Relaxed);",
                Blind,
            ),
            bug(
                CLIENT,
                "let slept = self.server.wait(S_WAKES, wakes, left);",
                Skipped,
            ),
            bug(
                SERVER,
                "word.store(self.wakes, Ordering::Release);",
                Skipped,
            ),
            bug(SERVER, "self.server.wake(S_WAKES);", Skipped),
        ],
        rings,
    );
}

#[test]
fn loom_rings_off_by_one() {
    fails("rings told late", 2, "Overfull", rings_told_late);
}

// ---- waiting for a frame ----------------------------------------------------------------------

/// The client arms its socket and sleeps on that.
fn armed() {
    let (mut client, mut server) = lane(0, START);
    let socket = Arc::new(Sleeper::new().unwrap());
    let waker = Arc::clone(&socket);
    let shard = thread::spawn(move || {
        while serve(&mut server) == 0 {
            thread::yield_now();
        }
        if server.wake_if_waiting() == WakeKind::SocketByte {
            waker.ring();
        }
        server
    });
    let input = request(&mut client, 7);
    let completion = loop {
        if let Some(found) = client.poll_completion().unwrap() {
            break found;
        }
        if !client.arm_event() {
            socket.sleep(None);
        }
    };
    answer(&mut client, input, 7, completion);
    drop(shard.join().unwrap());
}

#[test]
fn loom_armed_socket() {
    explore("armed socket", 3, armed);
}

#[test]
fn loom_armed_socket_with_bugs() {
    caught(
        "armed socket",
        3,
        &[
            bug(
                CLIENT,
                "word.store(self.waits << 2 | waiting as u32, Ordering::Relaxed);",
                Blind,
            ),
            bug(
                CLIENT,
                "fence(Ordering::SeqCst); // Partner: the fence in `ServerLane::wake",
                Skipped,
            ),
            bug(
                SERVER,
                "fence(Ordering::SeqCst); // Partner: the fence in `ClientLane::say_waiting`.",
                Skipped,
            ),
        ],
        armed,
    );
}

// ---- bells, attention and the shard's sleep ---------------------------------------------------

/// As `Turner` and `Shard` do it: looks at lanes it polls, then at bells; stops polling; sleeps.
struct ModelShard {
    lanes: Vec<ServerLane>,
    bells: ServerBells,
    status: StatusPage,
    socket: Arc<Sleeper>,
    served: usize,
}

impl ModelShard {
    fn look(&mut self) -> bool {
        let before = self.served;
        loop {
            match self.bells.next_bell() {
                Bell::Quiet => break,
                Bell::Lane(LaneNo(no)) => self.served += serve(&mut self.lanes[no as usize]),
                Bell::Overrun => self.scan(),
            }
        }
        self.served != before
    }

    fn scan(&mut self) {
        self.served += self.lanes.iter_mut().map(serve).sum::<usize>();
    }

    /// Sleeps with nothing polled, until `count` requests are served.
    fn run(mut self, count: usize) -> Self {
        while self.served < count {
            if self.look() {
                continue;
            }
            self.status.set_sleeping(true);
            if self.bells.settled() {
                self.socket.sleep(None);
            }
            self.status.set_sleeping(false);
        }
        self
    }
}

/// The shard stops polling the lane, then sleeps, while the client submits.
fn falling_asleep() {
    let (mut client, mut server) = lane(0, START);
    let (client_bells, bells, status) = session(START);
    let socket = Arc::new(Sleeper::new().unwrap());
    let frames = Arc::clone(&socket);
    assert!(!server.set_attention(Attention::Polled));
    let shard = thread::spawn(move || {
        let mut served = serve(&mut server);
        if server.set_attention(Attention::Bell) {
            served += serve(&mut server);
        }
        let lanes = vec![server];
        ModelShard {
            lanes,
            bells,
            status,
            socket,
            served,
        }
        .run(1)
    });
    let input = request(&mut client, 5);
    if client.notify(&client_bells) == Notify::SendBell {
        frames.ring();
    }
    let shard = shard.join().unwrap();
    let completion = client.poll_completion().unwrap().unwrap();
    answer(&mut client, input, 5, completion);
    drop(shard);
}

#[test]
fn loom_falling_asleep() {
    explore("falling asleep", 3, falling_asleep);
}

#[test]
fn loom_falling_asleep_with_bugs() {
    caught(
        "falling asleep",
        3,
        &[
            bug(
                CLIENT,
                "fence(Ordering::SeqCst); // Partner: the fence in `ServerLane::set_attention`.",
                Skipped,
            ),
            bug(
                SERVER,
                "fence(Ordering::SeqCst); // Partner: the first fence of `ClientLane::notify`.",
                Skipped,
            ),
            bug(
                SERVER,
                "let found = self.client.word(at).load(Ordering::Acquire) as u32;",
                Stale,
            ),
            bug(
                CLIENT,
                "fence(Ordering::SeqCst); // Partner: the fence in `StatusPage::set_sleeping`.",
                Skipped,
            ),
            bug(
                BELLS,
                "fence(Ordering::SeqCst); // Partner: the second fence of `ClientLane::notify`.",
                Skipped,
            ),
            bug(
                BELLS,
                "word.store(u32::from(sleeping), Ordering::Relaxed);",
                Blind,
            ),
            bug(
                BELLS,
                "page.half(STATUS_SLEEPING).load(Ordering::Relaxed) != 0",
                Stale,
            ),
        ],
        falling_asleep,
    );
}

/// Two threads of one session ring. One may stop between taking its place and writing it: the
/// shard gives the place up, and looks at every lane.
fn two_ring() {
    let (mut first, first_server) = lane(0, START);
    let (mut second, second_server) = lane(1, START);
    let (client_bells, bells, status) = session(START);
    let socket = Arc::new(Sleeper::new().unwrap());
    let client_bells = Arc::new(client_bells);
    let (frames, others) = (Arc::clone(&socket), Arc::clone(&client_bells));
    let other_frames = Arc::clone(&socket);
    let other = thread::spawn(move || {
        let _input = request(&mut second, 2);
        if second.notify(&others) == Notify::SendBell {
            other_frames.ring();
        }
        second
    });
    let shard = thread::spawn(move || {
        let lanes = vec![first_server, second_server];
        ModelShard {
            lanes,
            bells,
            status,
            socket,
            served: 0,
        }
        .run(2)
    });
    let _input = request(&mut first, 1);
    if first.notify(&client_bells) == Notify::SendBell {
        frames.ring();
    }
    drop(shard.join().unwrap());
    drop(other.join().unwrap());
}

#[test]
fn loom_two_ring() {
    explore("two ring", 2, two_ring);
}

#[test]
fn loom_two_ring_with_bugs() {
    caught(
        "two ring",
        2,
        &[
            // The load of `tail`.
            bug(BELLS, ".load(Ordering::Acquire)", Relaxed),
            bug(
                BELLS,
                "word.store(u32::from(sleeping), Ordering::Relaxed);",
                Blind,
            ),
        ],
        two_ring,
    );
}

// ---- the end of a lane ------------------------------------------------------------------------

/// The shard answers one of two requests and ends, while the client waits for both.
fn teardown() {
    let (mut client, mut server) = lane(0, START);
    let inputs = [1, 2].map(|no| request(&mut client, no));
    let shard = thread::spawn(move || {
        let first = server.take().unwrap().unwrap();
        server.write_reply(first.reply, 0, &(!first.user_data).to_le_bytes());
        server.complete(&Completion::new(first.user_data, Status::Ok));
        // Nobody wakes the client but the drop.
    });
    let [first, _second] = inputs;
    let completion = client.wait(Duration::ZERO, LONG).unwrap().unwrap();
    answer(&mut client, first, 1, completion);
    let end = client.wait(Duration::ZERO, LONG);
    assert!(matches!(
        end,
        Err(LaneError::Closed(CloseReason::ShuttingDown))
    ));
    shard.join().unwrap();
}

#[test]
fn loom_teardown() {
    explore("teardown", 3, teardown);
}

#[test]
fn loom_teardown_with_bugs() {
    caught(
        "teardown",
        3,
        &[
            bug(
                SERVER,
                "word.store(reason.to_code(), Ordering::Release);",
                Relaxed,
            ),
            bug(
                CLIENT,
                "let code = self.server.half(S_CLOSED).load(Ordering::Acquire);",
                Relaxed,
            ),
            // The last completions are not looked for once more.
            bug(
                CLIENT,
                "let code = self.server.half(S_CLOSED).load(Ordering::Acquire);",
                Blind,
            ),
            bug(
                SERVER,
                "word.store(self.wakes, Ordering::Release);",
                Skipped,
            ),
            bug(SERVER, "self.server.wake(S_WAKES);", Skipped),
            bug(
                CLIENT,
                "let slept = self.server.wait(S_WAKES, wakes, left);",
                Skipped,
            ),
        ],
        teardown,
    );
}
