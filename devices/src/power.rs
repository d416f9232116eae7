//! What devices tell the machine about its own life: power off, reset, exit with a value.
//!
//! Problem: a register write deep in a device ends or restarts the whole machine, while vCPUs run on
//! several threads and the device's lock is held. Scheme: [`PowerEvents`] is a shared cell that keeps
//! the first event; the machine polls it, waits on it, or is called back. Invariants: the first event
//! wins until [`PowerEvents::take`]; raising never waits for anybody; the callback runs under the
//! raising device's lock, so it only sets flags and kicks threads. Any thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::clock::lock;

/// Why the machine should stop running guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// ACPI S5 or an equivalent.
    PowerOff,
    /// Any of the PC's reset lines: port 0xcf9, port 0x92, the keyboard controller's pulse, ...
    Reset,
    /// A guest wrote this value to the ISA debug-exit port: process status `(value << 1) | 1`.
    DebugExit(u32),
}

type Callback = Box<dyn Fn(PowerEvent) + Send + Sync>;

#[derive(Default)]
struct Shared {
    /// Mirrors `first.is_some()`, for the vCPU loop's cheap check.
    raised: AtomicBool,
    first: Mutex<Option<PowerEvent>>,
    changed: Condvar,
    callback: Mutex<Option<Callback>>,
}

/// The shared cell; clones name the same one.
#[derive(Clone, Default)]
pub struct PowerEvents(Arc<Shared>);

impl fmt::Debug for PowerEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PowerEvents").field(&self.get()).finish()
    }
}

impl PowerEvents {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what to do at once when an event wins. It runs on the raising thread, under the device's
    /// lock: no device calls, no waiting.
    pub fn on_event(&self, callback: Callback) {
        *lock(&self.0.callback) = Some(callback);
    }

    /// Reports an event. Ignored if one is already there.
    pub fn raise(&self, event: PowerEvent) {
        {
            let mut first = lock(&self.0.first);
            if first.is_some() {
                return;
            }
            *first = Some(event);
            self.0.raised.store(true, Ordering::Release);
        }
        self.0.changed.notify_all();
        if let Some(callback) = lock(&self.0.callback).as_ref() {
            callback(event);
        }
    }

    /// Whether there is an event: one relaxed-cost load, for loops.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn get(&self) -> Option<PowerEvent> {
        *lock(&self.0.first)
    }

    /// Takes the event out, so that the next one can win: the machine does so after it has reset.
    pub fn take(&self) -> Option<PowerEvent> {
        let mut first = lock(&self.0.first);
        self.0.raised.store(false, Ordering::Release);
        first.take()
    }

    /// Waits for an event, at most `limit` if given. The event stays.
    #[must_use]
    pub fn wait(&self, limit: Option<Duration>) -> Option<PowerEvent> {
        // A limit past the end of time is no limit.
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut first = lock(&self.0.first);
        while first.is_none() {
            first = match end {
                None => {
                    self.0.changed.wait(first).unwrap_or_else(std::sync::PoisonError::into_inner)
                }
                Some(end) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.0
                        .changed
                        .wait_timeout(first, left)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0
                }
            };
        }
        *first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn the_first_event_wins_until_it_is_taken() {
        let events = PowerEvents::new();
        let calls = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&calls);
        events.on_event(Box::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(!events.is_raised());
        events.raise(PowerEvent::DebugExit(7));
        events.raise(PowerEvent::PowerOff);
        assert!(events.is_raised());
        assert_eq!(events.get(), Some(PowerEvent::DebugExit(7)));
        assert_eq!(events.take(), Some(PowerEvent::DebugExit(7)));
        assert!(!events.is_raised());
        events.raise(PowerEvent::Reset);
        assert_eq!(events.wait(None), Some(PowerEvent::Reset));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn waiting_ends_by_event_or_limit() {
        let events = PowerEvents::new();
        assert_eq!(events.wait(Some(Duration::from_millis(1))), None);
        let raiser = events.clone();
        let thread = std::thread::spawn(move || raiser.raise(PowerEvent::PowerOff));
        assert_eq!(events.wait(Some(Duration::MAX)), Some(PowerEvent::PowerOff));
        thread.join().expect("raising does not panic");
    }
}
