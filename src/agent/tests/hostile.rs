//! Clients that break every rule: what the shard's half must survive.
//!
//! Floor 1, room `agent`. Each test writes the shared regions as no client half would.

use std::sync::atomic::AtomicBool;

use super::*;

#[test]
fn counts_that_run_backwards_or_ahead_end_the_session() {
    let fill = |client: &mut ClientLane, server: &mut ServerLane| {
        for _ in 0..4 {
            client.submit(&Submission::new(Op::Sync, 0)).unwrap();
            server.take().unwrap().unwrap();
            server.complete(&Completion::new(0, Status::Ok));
            client.poll_completion().unwrap().unwrap();
        }
    };
    let consumed = |second: u64| {
        let Both {
            mut client,
            mut server,
            ..
        } = both(small(), 0);
        fill(&mut client, &mut server);
        fill(&mut client, &mut server);
        client.submit(&Submission::new(Op::Sync, 0)).unwrap();
        client
            .region()
            .word(C_CONSUMED)
            .store(second, Ordering::Release);
        server.take().map(|taken| taken.is_some())
    };
    assert_eq!(consumed(8), Ok(true));
    let ahead = Malformed::Consumed {
        from: 4,
        posted: 8,
        found: 9,
    };
    assert_eq!(consumed(9), Err(ahead));
    assert!(matches!(consumed(3), Err(Malformed::Consumed { .. })));
    assert!(matches!(
        consumed(u64::MAX),
        Err(Malformed::Consumed { .. })
    ));
    assert_eq!(consumed(4), Err(Malformed::Overfull { ring_slots: 4 }));

    let Both {
        mut client,
        mut server,
        ..
    } = both(small(), 0);
    client.report_hit(1, 1);
    server.hits(|_, _| ()).unwrap();
    client.region().word(C_HIT_TAIL).store(0, Ordering::Release);
    assert_eq!(
        server.hits(|_, _| ()),
        Err(Malformed::Hits { from: 1, found: 0 })
    );
}

#[test]
fn a_tag_from_elsewhere_ends_the_session_and_one_from_before_does_not() {
    let Both {
        client, mut server, ..
    } = both(small(), STARTS[1]);
    let at = small().submissions_at() + (STARTS[1] % 4) as usize * ENTRY_BYTES;
    let mut take = |tag: u32| {
        client.region().half(at).store(tag, Ordering::Release);
        server.take().map(|taken| taken.is_some())
    };
    assert_eq!(take(0), Ok(false));
    assert_eq!(take(tag(STARTS[1] - 4)), Ok(false));
    for wrong in [
        tag(STARTS[1] + 4),
        tag(STARTS[1] + 1),
        tag(STARTS[1] - 8),
        1,
    ] {
        assert!(
            matches!(take(wrong), Err(Malformed::Tag { .. })),
            "{wrong:#x}"
        );
    }
    assert_eq!(take(tag(STARTS[1])), Err(Malformed::Op { found: 0 }));
}

#[test]
fn zeroed_pages_are_an_empty_ring_or_malformed() {
    use rustix::fs::FallocateFlags;
    let Both {
        mut client,
        mut server,
        client_fd,
        ..
    } = both(small(), 0);
    let zero = || {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let bytes = small().client_bytes() as u64;
        rustix::fs::fallocate(&client_fd, punch, 0, bytes).unwrap();
    };
    client.submit(&Submission::new(Op::Sync, 0)).unwrap();
    zero();
    assert_eq!(
        server.take(),
        Ok(None),
        "what the client erased was never sent"
    );
    for _ in 0..8 {
        let at = small().submissions_at() + server.in_flight() as usize % 4 * ENTRY_BYTES;
        let words = Submission::new(Op::Sync, 0).encode(tag(server.in_flight().into()));
        for (index, word) in words.into_iter().enumerate() {
            let shared = client.region().word(at + 8 * index);
            shared.store(word, Ordering::Release);
        }
        match server.take() {
            Ok(Some(_)) => assert!(server.in_flight() <= 4),
            other => {
                assert_eq!(other, Err(Malformed::Overfull { ring_slots: 4 }));
                assert_eq!(server.in_flight(), 4);
            }
        }
        zero();
    }
}

#[test]
fn regions_that_are_not_what_was_promised_are_refused() {
    let (_server, fds) = ServerLane::create(small()).unwrap();
    let map = |client: &OwnedFd, server: &OwnedFd, sizes| {
        ClientLane::map(client, server, sizes, LaneNo(0), ShardNo(0))
    };
    let other = LaneSizes::new(8, 4096, 4096).unwrap();
    let wrong = map(&fds.client, &fds.server, other).unwrap_err();
    assert!(
        matches!(wrong, LaneError::Header { index: 2, .. }),
        "{wrong}"
    );
    let swapped = map(&fds.server, &fds.client, small()).unwrap_err();
    assert!(
        matches!(swapped, LaneError::Shared(_)),
        "region S can't be mapped for writing"
    );
    let larger = LaneSizes::new(4, 65536, 4096).unwrap();
    let size = map(&fds.client, &fds.server, larger).unwrap_err();
    assert!(matches!(size, LaneError::Shared(_)), "{size}");

    let (_region, session) = ServerBells::create_session(1).unwrap();
    let (_status, page) = StatusPage::create().unwrap();
    let none = ClientBells::map(&session, &[]).unwrap_err();
    assert!(matches!(none, BadSession::Shards { found: 0 }));
    let (_other, plain) = SharedMemory::create("test", 4096, Access::ReadWrite).unwrap();
    let magic = ClientBells::map(&session, &[plain]).unwrap_err();
    assert!(matches!(magic, BadSession::Status { magic: 0, .. }));
    let two = ClientBells::map(
        &session,
        &[page.as_fd().try_clone_to_owned().unwrap(), page],
    );
    assert!(
        matches!(two, Err(BadSession::Shared(_))),
        "a page for each shard"
    );
}

/// Small steps of a seeded generator: the same bytes on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }
}

/// One step of a shard that meets whatever is in the regions.
fn shard_step(server: &mut ServerLane, bells: &mut ServerBells, under_way: &mut Vec<Submission>) {
    match server.take() {
        Ok(Some(submission)) => {
            let mut bytes = vec![0; submission.payload().len as usize];
            server.copy_in(submission.payload(), &mut bytes);
            let mut key = vec![0; submission.key.len as usize];
            server.copy_in(submission.key, &mut key);
            let _ = packed::Keys::parse(&bytes).map(Iterator::count);
            let _ = packed::Pairs::parse(&bytes).map(Iterator::count);
            let fits = bytes.len().min(submission.reply.len as usize);
            server.write_reply(submission.reply, 0, &bytes[..fits]);
            under_way.push(submission);
        }
        Ok(None) | Err(_) => {
            if let Some(submission) = under_way.pop() {
                server.complete(&Completion::new(submission.user_data, Status::Ok));
            }
        }
    }
    assert!(server.in_flight() <= server.sizes().ring_slots());
    let _ = server.wake_if_waiting();
    let _ = server.hits(|_, _| ());
    let _ = server.set_attention(Attention::Bell);
    let _ = (bells.next_bell(), bells.settled());
}

#[test]
fn scribbled_regions_never_panic_the_shard() {
    let mut dice = Dice(0x5eed_0001);
    let mut taken = 0;
    for round in 0..200u64 {
        let start = STARTS[round as usize % 4];
        let Both {
            client,
            mut server,
            mut server_bells,
            session,
            ..
        } = both(small(), start);
        let region = client.region();
        let mut under_way = Vec::new();
        for step in 0..200u64 {
            for _ in 0..dice.below(8) {
                let at = 8 * dice.below(region.bytes() / 8);
                region.word(at).store(dice.roll(), Ordering::Relaxed);
                let at = 8 * dice.below(64);
                session
                    .word(at)
                    .store(dice.roll() >> dice.below(64), Ordering::Relaxed);
            }
            // Near misses: an entry that is valid but for one bit.
            let position = server.position();
            let mut entry = Submission::new(Op::ALL[dice.below(12)], step);
            entry.key = Extent {
                offset: dice.below(4096) as u32,
                len: 1,
            };
            entry.value = Extent {
                offset: 0,
                len: dice.below(100) as u32,
            };
            let mut words = entry.encode(tag(position));
            if dice.below(2) == 0 {
                words[dice.below(8)] ^= 1 << dice.below(64);
            }
            let at = small().submissions_at() + (position % 4) as usize * ENTRY_BYTES;
            for (index, word) in words.into_iter().enumerate() {
                region.word(at + 8 * index).store(word, Ordering::Release);
            }
            let before = under_way.len();
            shard_step(&mut server, &mut server_bells, &mut under_way);
            taken += usize::from(under_way.len() > before);
        }
    }
    assert!(
        taken > 100,
        "only {taken} entries got through: nothing was tested"
    );
}

#[test]
fn a_scribbler_at_full_speed_never_panics_the_shard() {
    let Both {
        client,
        mut server,
        mut server_bells,
        session,
        ..
    } = both(small(), 0);
    let stop = Arc::new(AtomicBool::new(false));
    let (ends, mut under_way) = (Arc::clone(&stop), Vec::new());
    let scribbler = std::thread::spawn(move || {
        let mut dice = Dice(0x5eed_0002);
        let region = client.region();
        while !ends.load(Ordering::Relaxed) {
            let at = 8 * dice.below(region.bytes() / 8);
            region
                .word(at)
                .store(dice.roll() >> dice.below(64), Ordering::Relaxed);
            let slot = dice.below(4);
            let words = Submission::new(Op::ALL[dice.below(12)], 1).encode(tag(slot as u64));
            region
                .word(small().submissions_at() + slot * ENTRY_BYTES)
                .store(words[0], Ordering::Relaxed);
            let at = 8 * dice.below(layout::SESSION_PAGE_BYTES / 8);
            session.word(at).store(dice.roll(), Ordering::Relaxed);
        }
    });
    for _ in 0..30_000 {
        shard_step(&mut server, &mut server_bells, &mut under_way);
    }
    stop.store(true, Ordering::Relaxed);
    scribbler.join().unwrap();
}
