//! Wakes a device's worker.
//!
//! Problem: vCPUs notify queues, the host brings input, and a reset must end the worker, whatever it
//! waits for. Scheme: a set of event bits and a stop flag under one lock with a condition variable.
//! Invariants: an event rung before or during a wait is seen by it; after [`Doorbell::stop`] every wait
//! says to stop until [`Doorbell::open`]. Any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::clock::lock;

/// What rang: queues by number, or one of the host's two events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(u64);

impl Events {
    /// Data from the host.
    pub const INPUT: Self = Self(1 << 62);
    /// The device's configuration changed.
    pub const CONFIG: Self = Self(1 << 63);
    const ALL: Self = Self(u64::MAX);

    /// Notification of queue `index`.
    #[must_use]
    pub fn queue(index: u16) -> Self {
        Self(if index < 62 { 1 << index } else { 0 })
    }

    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// See the module.
#[derive(Debug)]
pub struct Doorbell {
    rung: Mutex<u64>,
    wake: Condvar,
    /// Written under `rung`'s lock, read without it in the middle of long requests.
    stopped: AtomicBool,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self { rung: Mutex::new(0), wake: Condvar::new(), stopped: AtomicBool::new(true) }
    }
}

impl Doorbell {
    pub fn ring(&self, events: Events) {
        *lock(&self.rung) |= events.0;
        self.wake.notify_one();
    }

    /// Sleeps until something rings. `None`: the worker must end.
    pub fn wait(&self) -> Option<Events> {
        let mut rung = lock(&self.rung);
        loop {
            if self.stopped() {
                return None;
            }
            if *rung != 0 {
                return Some(Events(std::mem::take(&mut *rung)));
            }
            rung = self.wake.wait(rung).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells the worker to end.
    pub fn stop(&self) {
        let _rung = lock(&self.rung);
        self.stopped.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }

    /// Readies the doorbell for a new worker, whose first wait reports everything.
    pub fn open(&self) {
        let mut rung = lock(&self.rung);
        *rung = Events::ALL.0;
        self.stopped.store(false, Ordering::SeqCst);
    }

    /// Whether the worker must end.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}
