//! The socket in the wall: two bounded queues of frames between a card and the network's thread.
//!
//! Scheme: whoever finds a queue empty or full and would go on says so by looking (`ready`, `pending`,
//! [`Port::room`]); the other side then wakes it when that has changed: the card by its callback, the
//! thread by an event descriptor that it polls. Invariants: the queues hold [`FRAMES_MAX`] frames each;
//! the callback is called without a lock of ours but that on itself. Any thread.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use xenolith_devices::clock::lock;
use xenolith_devices::net::NetBackend;

/// Frames in each queue.
pub const FRAMES_MAX: usize = 256;

type Changed = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Queues {
    from_card: VecDeque<Vec<u8>>,
    to_card: VecDeque<Vec<u8>>,
    /// The card was told that there is no room.
    card_waits: bool,
    /// The network found no room.
    network_waits: bool,
    stopped: bool,
}

/// See the module.
pub struct Port {
    queues: Mutex<Queues>,
    changed: Mutex<Option<Changed>>,
    wake: OwnedFd,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = lock(&self.queues);
        f.debug_struct("Port")
            .field("from_card", &queues.from_card.len())
            .field("to_card", &queues.to_card.len())
            .finish_non_exhaustive()
    }
}

impl Port {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { queues: Mutex::default(), changed: Mutex::new(None), wake })
    }

    fn wake(&self) {
        // Full means that it is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Readable when the network's thread has something to do.
    pub(crate) fn wakes(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Ends the network's thread.
    pub(crate) fn stop(&self) {
        lock(&self.queues).stopped = true;
        self.wake();
    }

    /// All frames from the card; `None` when the thread is to end.
    pub(crate) fn take(&self) -> Option<VecDeque<Vec<u8>>> {
        let mut count = [0; 8];
        // Nothing to read means that nobody woke us.
        let _ = rustix::io::read(&self.wake, &mut count);
        let mut queues = lock(&self.queues);
        if queues.stopped {
            return None;
        }
        let frames = std::mem::take(&mut queues.from_card);
        let card_waits = std::mem::take(&mut queues.card_waits);
        drop(queues);
        if card_waits {
            self.tell();
        }
        Some(frames)
    }

    /// How many frames the card's queue takes. After an answer of few the thread is woken when there is room.
    pub(crate) fn room(&self) -> usize {
        let mut queues = lock(&self.queues);
        let room = FRAMES_MAX.saturating_sub(queues.to_card.len());
        queues.network_waits = room < FRAMES_MAX / 4;
        room
    }

    /// Puts frames before the card, as many as there is room for, and tells it.
    pub(crate) fn give(&self, frames: impl Iterator<Item = Vec<u8>>) {
        let mut queues = lock(&self.queues);
        let before = queues.to_card.len();
        let room = FRAMES_MAX.saturating_sub(before);
        queues.to_card.extend(frames.take(room));
        let tell = queues.to_card.len() > before;
        drop(queues);
        if tell {
            self.tell();
        }
    }

    fn tell(&self) {
        let changed = lock(&self.changed).clone();
        if let Some(changed) = changed {
            changed();
        }
    }
}

impl NetBackend for Port {
    fn takes_segments(&self) -> bool {
        // The guest's TCP ends here: nobody needs them cut.
        true
    }

    fn ready(&self, frames: usize) -> bool {
        let mut queues = lock(&self.queues);
        let ready = queues.from_card.len() + frames <= FRAMES_MAX;
        queues.card_waits |= !ready;
        ready
    }

    fn send(&self, frame: &[u8]) {
        let mut queues = lock(&self.queues);
        if queues.from_card.len() < FRAMES_MAX {
            let first = queues.from_card.is_empty();
            queues.from_card.push_back(frame.to_vec());
            drop(queues);
            if first {
                self.wake();
            }
        }
    }

    fn pending(&self) -> bool {
        !lock(&self.queues).to_card.is_empty()
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut queues = lock(&self.queues);
        let frame = queues.to_card.pop_front();
        // Half of the queue at a time, so that the two don't wake each other for each frame.
        if queues.network_waits && queues.to_card.len() <= FRAMES_MAX / 2 {
            queues.network_waits = false;
            drop(queues);
            self.wake();
        }
        frame
    }

    fn plug(&self, changed: Box<dyn Fn() + Send + Sync>) {
        *lock(&self.changed) = Some(changed.into());
    }
}
