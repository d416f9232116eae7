//! Ending a run and holding it, from any thread.
//!
//! Problem: power events come from vCPU threads under device locks, timeouts from the waiting thread,
//! quits from the terminal, triple faults and our own panics from anywhere; the first must win and all
//! vCPUs must stop. Who wants to look at the machine needs them at rest for a while, between two
//! instructions. Scheme: one cell behind a mutex, with the pins of the running board. A hold raises REST;
//! each vCPU leaves its state in the cell and waits there. Time stands still from the moment that the last has
//! come until there is no hold any more. Invariants: once there is a cause, every vCPU of the board has STOP
//! raised or will get it when it registers, and none rests; a vCPU's state is in the cell exactly while it
//! rests. Lock order: any device lock, then this one; nothing is called with it held but `Pins::raise` and
//! `Clock::set_running`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use xenolith_cpu::CpuState;
use xenolith_cpu::env::attention;
use xenolith_devices::clock::{Clock, lock};
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

/// How long a vCPU may take to its rest: one may be in a device that waits for the host.
const REST_WAIT_MAX: Duration = Duration::from_secs(5);

/// The vCPUs can't be held now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrest {
    #[error("the machine does not run")]
    NotRunning,
    #[error("processor {0} does not come to rest: it waits for this computer")]
    Busy(usize),
}

#[derive(Default)]
struct Inner {
    cause: Option<Cause>,
    pins: Vec<Arc<Pins>>,
    clock: Option<Arc<dyn Clock>>,
    /// How many want the vCPUs to rest.
    holds: u32,
    /// The states of those that do.
    resting: Vec<Option<Box<CpuState>>>,
    /// Instructions retired by the vCPUs of earlier boards.
    retired_before: u64,
}

impl Inner {
    fn retired(&self) -> u64 {
        self.pins.iter().map(|pins| pins.retired()).fold(self.retired_before, u64::wrapping_add)
    }

    fn all_rest(&self) -> bool {
        self.resting.iter().all(Option::is_some)
    }

    fn set_time_running(&self, running: bool) {
        if let Some(clock) = &self.clock {
            clock.set_running(running);
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("cause", &self.cause)
            .field("holds", &self.holds)
            .finish_non_exhaustive()
    }
}

/// The cell; lives as long as the machine, over all its resets.
#[derive(Debug, Default)]
pub struct Control {
    inner: Mutex<Inner>,
    /// There is a cause, a vCPU rests, or the last hold is gone.
    changed: Condvar,
}

/// As long as it lives the vCPUs rest.
#[derive(Debug)]
pub struct Hold(Arc<Control>);

impl Hold {
    /// The vCPUs' states; empty if the run has ended meanwhile.
    #[must_use]
    pub fn states(&self) -> Vec<CpuState> {
        let inner = lock(&self.0.inner);
        let states = inner.resting.iter().map(|state| state.as_deref().cloned());
        states.collect::<Option<_>>().unwrap_or_default()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.release();
    }
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
            self.stop(&inner);
        }
    }

    fn stop(&self, inner: &Inner) {
        raise(&inner.pins, attention::STOP);
        self.changed.notify_all();
    }

    /// Brings all vCPUs to rest.
    ///
    /// # Errors
    /// There are none, or one takes too long.
    pub fn hold(self: &Arc<Self>) -> Result<Hold, Unrest> {
        self.wait_for_start();
        let deadline = Instant::now() + REST_WAIT_MAX;
        let mut inner = lock(&self.inner);
        inner.holds += 1;
        // From here on a way out releases.
        let hold = Hold(Arc::clone(self));
        if inner.holds == 1 {
            raise(&inner.pins, attention::REST);
        }
        let unrest = loop {
            // After a reset there will be another board.
            let resets = matches!(inner.cause, Some(Cause::Power(PowerEvent::Reset)));
            if inner.pins.is_empty() || (inner.cause.is_some() && !resets) {
                break Unrest::NotRunning;
            }
            let busy = inner.resting.iter().position(Option::is_none);
            let Some(busy) = busy.or(resets.then_some(0)) else {
                // Also where they have not gone on yet after another hold.
                inner.set_time_running(false);
                drop(inner);
                return Ok(hold);
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Unrest::Busy(busy);
            }
            inner = self.wait_for_change(inner, Some(left));
        };
        drop(inner);
        Err(unrest)
    }

    /// Waits until there is a board, or a cause that there won't be one: who asks something of a machine at once may be
    /// quicker than its start.
    pub fn wait_for_start(&self) {
        let deadline = Instant::now() + REST_WAIT_MAX;
        let mut inner = lock(&self.inner);
        while inner.pins.is_empty() && inner.cause.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.wait_for_change(inner, Some(left));
        }
    }

    fn release(&self) {
        let mut inner = lock(&self.inner);
        inner.holds -= 1;
        if inner.holds == 0 {
            inner.set_time_running(true);
            self.changed.notify_all();
        }
    }

    /// vCPU `index` comes to rest in `state` for as long as there is a hold and no cause.
    pub fn rest(&self, index: usize, state: &CpuState) {
        let mut inner = lock(&self.inner);
        if inner.holds > 0 && inner.cause.is_none() {
            inner.resting[index] = Some(Box::new(state.clone()));
            if inner.all_rest() {
                inner.set_time_running(false);
            }
            self.changed.notify_all();
            while inner.holds > 0 && inner.cause.is_none() {
                inner = self.wait_for_change(inner, None);
            }
            inner.resting[index] = None;
        }
        if let Some(pins) = inner.pins.get(index) {
            pins.take(attention::REST);
        }
    }

    fn wait_for_change<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, Inner> {
        match limit {
            None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout(inner, limit);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Instructions of all vCPUs over all boards, as far as they have told.
    #[must_use]
    pub fn retired(&self) -> u64 {
        lock(&self.inner).retired()
    }

    /// Begins a run of a new board with these vCPUs and this clock.
    pub fn begin(&self, pins: Vec<Arc<Pins>>, clock: Arc<dyn Clock>) {
        let mut inner = lock(&self.inner);
        inner.retired_before = inner.retired();
        inner.resting = pins.iter().map(|_| None).collect();
        inner.pins = pins;
        inner.clock = Some(clock);
        if inner.holds > 0 {
            raise(&inner.pins, attention::REST);
        }
        self.changed.notify_all();
        if inner.cause.is_some() {
            self.stop(&inner);
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
            if left.is_some_and(|left| left.is_zero()) {
                inner.cause = Some(Cause::Timeout);
                self.stop(&inner);
            } else {
                inner = self.wait_for_change(inner, left);
            }
        }
    }

    /// Takes the cause out, so that the machine can run again.
    pub fn take(&self) -> Option<Cause> {
        lock(&self.inner).cause.take()
    }
}

fn raise(pins: &[Arc<Pins>], bits: u32) {
    for pins in pins {
        pins.raise(bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::CountedClock;

    #[test]
    fn the_first_cause_wins_and_stops_everybody() {
        let control = Control::new();
        let pins = vec![Pins::new(), Pins::new()];
        control.begin(pins.clone(), Arc::new(CountedClock::new()));
        control.end(Cause::Quit);
        control.end(Cause::Timeout);
        assert!(pins.iter().all(|pins| pins.has(attention::STOP)));
        assert_eq!(control.wait(None), Cause::Quit);
        let late = vec![Pins::new()];
        control.begin(late.clone(), Arc::new(CountedClock::new()));
        assert!(late[0].has(attention::STOP), "quit before the start");
        assert_eq!(control.take(), Some(Cause::Quit));
        control.end(Cause::Power(PowerEvent::Reset));
        control.end(Cause::Quit);
        assert_eq!(control.take(), Some(Cause::Quit), "quit overtakes a reset");
    }

    #[test]
    fn who_is_quicker_than_the_start_waits_for_it() {
        let control = Control::new();
        let pins = Pins::new();
        let vcpu = Arc::clone(&pins);
        let machine = Arc::clone(&control);
        let runs = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            machine.begin(vec![Arc::clone(&vcpu)], Arc::new(CountedClock::new()));
            while !vcpu.has(attention::STOP) {
                if vcpu.has(attention::REST) {
                    machine.rest(0, &CpuState::reset(0));
                }
                std::thread::yield_now();
            }
        });
        let hold = control.hold().expect("the machine is about to start");
        assert_eq!(hold.states().len(), 1);
        control.end(Cause::Quit);
        drop(hold);
        runs.join().expect("no panic");
    }

    #[test]
    fn the_deadline_is_a_cause() {
        let control = Control::new();
        let deadline = Instant::now() + Duration::from_millis(10);
        assert_eq!(control.wait(Some(deadline)), Cause::Timeout);
        assert!(Instant::now() >= deadline);
    }
}
