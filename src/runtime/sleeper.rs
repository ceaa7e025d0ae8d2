//! What a shard's thread sleeps on in the kernel: an eventfd for threads that ring, in an epoll
//! beside the sockets of its sessions.
//!
//! Floor 4. When to sleep and when to ring is the doorbell's (`shard_thread.rs`).
//!
//! Cost: one system call to ring, two for a sleep that a ring ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll};

/// Rung before or during the sleep, it ends it.
#[derive(Debug)]
pub(super) struct Sleeper {
    event: OwnedFd,
    epoll: OwnedFd,
}

impl Sleeper {
    pub(super) fn new() -> rustix::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &event, data, epoll::EventFlags::IN)?;
        Ok(Self { event, epoll })
    }

    /// Ends the sleep, or the next one.
    pub(super) fn ring(&self) {
        // The counter can't be full: it is read at every wake.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Lets what comes on a socket end a sleep, once for each arrival.
    pub(super) fn watch(&self, socket: impl AsFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(1);
        match epoll::add(&self.epoll, socket, data, flags) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sleeps until it is rung, something comes, or the time is over.
    pub(super) fn sleep(&self, timeout: Option<Duration>) {
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 16];
        // An interruption is as good as a wake.
        let woken = epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()).unwrap_or(0);
        if events[..woken].iter().any(|event| event.data.u64() == 0) {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
    }
}
