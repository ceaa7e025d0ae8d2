//! The mesh: one SPSC ring each way between every two shards.
//!
//! Floor 0. Messages cross from core to core without a lock; a full ring gives the message back.
//! The receiver is woken by whoever drives the sender: [`Port::take_notified`] says whom.
//!
//! Invariants
//! - messages from one shard to another arrive in order, each once.
//! - no ring connects a shard with itself.

use ringbuf::traits::{Consumer, Observer, Producer, Split};
use ringbuf::{HeapCons, HeapProd, HeapRb};

use crate::id::ShardNo;

/// One shard's ends of the mesh.
pub struct Port<M> {
    own: ShardNo,
    to: Vec<Option<HeapProd<M>>>,
    from: Vec<Option<HeapCons<M>>>,
    next: usize,
    notify: Vec<bool>,
}

/// Makes the ports of `shards` shards, with room for `messages` in each ring.
#[must_use]
pub fn mesh<M>(shards: usize, messages: usize) -> Vec<Port<M>> {
    let mut ports: Vec<Port<M>> = (0..shards)
        .map(|own| Port {
            own: ShardNo(own as u16),
            to: (0..shards).map(|_| None).collect(),
            from: (0..shards).map(|_| None).collect(),
            next: 0,
            notify: vec![false; shards],
        })
        .collect();
    for sender in 0..shards {
        for receiver in (0..shards).filter(|&receiver| receiver != sender) {
            let (producer, consumer) = HeapRb::new(messages).split();
            ports[sender].to[receiver] = Some(producer);
            ports[receiver].from[sender] = Some(consumer);
        }
    }
    ports
}

impl<M> Port<M> {
    /// The shard that owns this port.
    #[must_use]
    pub fn own(&self) -> ShardNo {
        self.own
    }

    /// Shards in the mesh, this one included.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.to.len()
    }

    /// Sends to another shard; the message comes back where the ring is full or the other end is
    /// gone.
    pub fn send(&mut self, to: ShardNo, message: M) -> Result<(), M> {
        match self.to.get_mut(usize::from(to.0)) {
            Some(Some(ring)) if ring.read_is_held() => {
                ring.try_push(message)?;
                self.notify[usize::from(to.0)] = true;
                Ok(())
            }
            _ => Err(message),
        }
    }

    /// The next message, from each sender in turn.
    pub fn receive(&mut self) -> Option<(ShardNo, M)> {
        for _ in 0..self.from.len() {
            let sender = self.next;
            self.next = (self.next + 1) % self.from.len();
            if let Some(ring) = &mut self.from[sender]
                && let Some(message) = ring.try_pop()
            {
                return Some((ShardNo(sender as u16), message));
            }
        }
        None
    }

    /// Whether no message waits here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.from.iter().flatten().all(Observer::is_empty)
    }

    /// A shard that was sent to since it was last named here.
    pub fn take_notified(&mut self) -> Option<ShardNo> {
        let index = self.notify.iter().position(|&notify| notify)?;
        self.notify[index] = false;
        Some(ShardNo(index as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_from_every_sender() {
        let mut ports = mesh::<(u16, u32)>(4, 64);
        let mut last = ports.pop().unwrap();
        let senders: Vec<_> = ports
            .into_iter()
            .map(|mut port| {
                std::thread::spawn(move || {
                    for no in 0..10_000 {
                        let mut message = (port.own().0, no);
                        while let Err(back) = port.send(ShardNo(3), message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                    assert_eq!(port.take_notified(), Some(ShardNo(3)));
                    assert_eq!(port.take_notified(), None);
                    port
                })
            })
            .collect();
        let mut next = [0; 3];
        while next != [10_000; 3] {
            match last.receive() {
                Some((from, (own, no))) => {
                    assert_eq!(from.0, own);
                    assert_eq!(next[usize::from(own)], no);
                    next[usize::from(own)] += 1;
                }
                None => std::thread::yield_now(),
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
        assert!(last.is_empty());
    }

    #[test]
    fn a_full_ring_and_a_missing_shard_give_the_message_back() {
        let mut ports = mesh::<u8>(2, 1);
        assert_eq!(ports[0].send(ShardNo(1), 1), Ok(()));
        assert_eq!(ports[0].send(ShardNo(1), 2), Err(2));
        assert_eq!(ports[0].send(ShardNo(0), 3), Err(3));
        assert_eq!(ports[0].send(ShardNo(9), 4), Err(4));
        ports.remove(1);
        assert_eq!(ports[0].send(ShardNo(1), 5), Err(5));
    }
}
