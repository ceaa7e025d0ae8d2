//! Model of a read in the window beside a restore: the view of the lane, the completion, the slot.
//!
//! Floor 2, room `client`; only there with `--cfg helios_loom`. What loom doesn't model is listed in
//! `shared/model.rs`. Lane and window are the product's; the line that reads, view first, is
//! `AgentLane::get_window`'s, and the order of the shard's steps that of `shard/lifecycle.rs`.

use std::time::Duration;

use loom::thread;

use crate::agent::{ClientLane, Completion, LaneSizes, Op, ServerLane, Status, Submission};
use crate::cache::{WindowReader, WindowWriter};
use crate::id::{LaneNo, ShardNo, View};
use crate::shared::model::{explore, fails};
use crate::shared::{Access, SharedMemory};

const KEY: [u8; 8] = *b"the key ";
const WINDOW_BYTES: usize = crate::cache::window::WINDOW_BYTES_MIN;
const ARENA_BYTES: u32 = crate::agent::layout::ARENA_BYTES_MIN;

const WRONG: &str = "a value of before the restore";

/// Who does two steps in the wrong order.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nobody,
    /// The shard posts the completion before it changes the view.
    Shard,
    /// The client keeps the view that it read before it heard of the restore.
    Client,
}

/// A branch is restored; whoever has heard of it finds nothing of before in the window.
fn restore(wrong: Wrong) {
    let sizes = LaneSizes::new(2, ARENA_BYTES, ARENA_BYTES).unwrap();
    let (mut server, fds) = ServerLane::create(sizes).unwrap();
    let mut client =
        ClientLane::map(&fds.client, &fds.server, sizes, LaneNo(0), ShardNo(0)).unwrap();
    let (memory, fd) =
        SharedMemory::create("helios-window", WINDOW_BYTES, Access::ReadOnly).unwrap();
    let reader = SharedMemory::map(&fd, WINDOW_BYTES, Access::ReadOnly).unwrap();
    let reader = WindowReader::open(reader).unwrap();
    let mut writer = WindowWriter::new(memory).unwrap();
    let (before, after) = (View(1), View(2));
    assert!(writer.insert(before, &KEY, &[1; 8]));
    server.set_view(before);
    let kept = client.view();

    let shard = thread::spawn(move || {
        let taken = loop {
            match server.take().unwrap() {
                Some(taken) => break taken,
                None => thread::yield_now(),
            }
        };
        let done = Completion::new(taken.user_data, Status::Ok);
        if wrong == Wrong::Shard {
            server.complete(&done);
        }
        server.set_view(after);
        if wrong != Wrong::Shard {
            server.complete(&done);
        }
        let _ = server.wake_if_waiting();
        assert!(writer.insert(after, &KEY, &[2; 8]));
        server
    });
    let input = client.alloc_input(8).unwrap();
    let mut submission = Submission::new(Op::MultiGet, 1);
    submission.value = input.first(8);
    submission.reply = input.first(8);
    client.submit(&submission).unwrap();
    let heard = client.wait(Duration::ZERO, Duration::from_secs(1 << 40));
    assert_eq!(heard.unwrap().unwrap().user_data, 1);
    client.free_input(input);
    let view = if wrong == Wrong::Client {
        kept
    } else {
        client.view()
    };
    let mut out = Vec::new();
    if reader.get_into(view, &KEY, &mut out).is_some() {
        assert_eq!(out, [2; 8], "{WRONG}");
    }
    drop(shard.join().unwrap());
}

#[test]
fn loom_view() {
    explore("view", 3, || restore(Wrong::Nobody));
}

#[test]
fn loom_view_after_the_completion() {
    fails("view after the completion", 3, WRONG, || {
        restore(Wrong::Shard)
    });
}

#[test]
fn loom_view_of_before() {
    fails("view of before", 3, WRONG, || restore(Wrong::Client));
}
