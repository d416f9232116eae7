//! Ending a run, from any thread.
//!
//! Problem: power events come from vCPU threads under device locks, timeouts from the waiting thread,
//! quits from the terminal, triple faults and our own panics from anywhere; the first must win and all
//! vCPUs must stop. Scheme: one cell behind a mutex, with the pins of the running board. Invariants: once
//! there is a cause, every vCPU of the board has STOP raised or will get it when it registers. Lock
//! order: any device lock, then this one; nothing is called with it held but `Pins::raise`.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use xenolith_cpu::env::attention;
use xenolith_devices::clock::lock;
use xenolith_devices::power::PowerEvent;

use crate::vcpu::Pins;

/// Why the vCPUs are to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Power(PowerEvent),
    TripleFault { dump: String },
    Timeout,
    Quit,
    Failed { message: String },
}

#[derive(Debug, Default)]
struct Inner {
    cause: Option<Cause>,
    pins: Vec<Arc<Pins>>,
    /// Instructions retired by the vCPUs of earlier boards.
    retired_before: u64,
}

impl Inner {
    fn retired(&self) -> u64 {
        self.pins.iter().map(|pins| pins.retired()).fold(self.retired_before, u64::wrapping_add)
    }
}

/// The cell; lives as long as the machine, over all its resets.
#[derive(Debug, Default)]
pub struct Control {
    inner: Mutex<Inner>,
    ended: Condvar,
}

impl Control {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Stops the vCPUs for this cause, unless there is one already. Only a quit takes the place of a
    /// reset: a guest that resets all the time must not keep its user from leaving.
    pub fn end(&self, cause: Cause) {
        let mut inner = lock(&self.inner);
        let resets = matches!(inner.cause, Some(Cause::Power(PowerEvent::Reset)));
        if inner.cause.is_none() || (resets && cause == Cause::Quit) {
            inner.cause = Some(cause);
            stop(&inner.pins);
            self.ended.notify_all();
        }
    }

    /// Instructions of all vCPUs over all boards, as far as they have told.
    #[must_use]
    pub fn retired(&self) -> u64 {
        lock(&self.inner).retired()
    }

    /// Begins a run of a new board with these vCPUs.
    pub fn begin(&self, pins: Vec<Arc<Pins>>) {
        let mut inner = lock(&self.inner);
        inner.retired_before = inner.retired();
        inner.pins = pins;
        if inner.cause.is_some() {
            stop(&inner.pins);
        }
    }

    /// Waits for a cause; [`Cause::Timeout`] at the deadline. It stays until [`Control::take`].
    pub fn wait(&self, deadline: Option<Instant>) -> Cause {
        let mut inner = lock(&self.inner);
        loop {
            if let Some(cause) = &inner.cause {
                return cause.clone();
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            inner = match left {
                None => self.ended.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    inner.cause = Some(Cause::Timeout);
                    stop(&inner.pins);
                    continue;
                }
                Some(left) => {
                    self.ended.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Takes the cause out, so that the machine can run again.
    pub fn take(&self) -> Option<Cause> {
        lock(&self.inner).cause.take()
    }
}

fn stop(pins: &[Arc<Pins>]) {
    for pins in pins {
        pins.raise(attention::STOP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_first_cause_wins_and_stops_everybody() {
        let control = Control::new();
        let pins = vec![Pins::new(), Pins::new()];
        control.begin(pins.clone());
        control.end(Cause::Quit);
        control.end(Cause::Timeout);
        assert!(pins.iter().all(|pins| pins.has(attention::STOP)));
        assert_eq!(control.wait(None), Cause::Quit);
        let late = vec![Pins::new()];
        control.begin(late.clone());
        assert!(late[0].has(attention::STOP), "quit before the start");
        assert_eq!(control.take(), Some(Cause::Quit));
        control.end(Cause::Power(PowerEvent::Reset));
        control.end(Cause::Quit);
        assert_eq!(control.take(), Some(Cause::Quit), "quit overtakes a reset");
    }

    #[test]
    fn the_deadline_is_a_cause() {
        let control = Control::new();
        let deadline = Instant::now() + Duration::from_millis(10);
        assert_eq!(control.wait(Some(deadline)), Cause::Timeout);
        assert!(Instant::now() >= deadline);
    }
}
