//! Guest time.
//!
//! Problem: timers must run on host time for people and on counted instructions for record, replay
//! and lockstep. Scheme: every device reads time through [`Clock`] and asks to be woken through
//! [`TimerQueue`]; none reads a host clock by itself. The machine implements `Clock` (host time or
//! counted time) and drives the queue: a thread under host time, the vCPU loop under counted time.
//! Invariants: `now_ns` never goes back; a device's `run` may be called early or late, so it compares
//! with `now_ns` and re-arms itself. Any thread.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// Least distance of two wake-ups of one periodic device. A guest may program any period; the timer
/// thread has others to serve.
pub const WAKE_NS_MIN: u64 = 20_000;

/// The one source of time for devices.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the machine started.
    fn now_ns(&self) -> u64;
    /// Raw time stamp counter, in step with `now_ns`.
    fn tsc(&self) -> u64;
    /// Ticks of the raw time stamp counter in a second.
    fn tsc_hz(&self) -> u64;
    /// What has to be added to the host's time stamp counter to get [`Self::tsc`]; nothing if that isn't all.
    fn tsc_base(&self) -> Option<u64> {
        None
    }
    /// Lets time stand still, or go on from where it stood. Only while no vCPU runs: one that has [`Self::tsc_base`]
    /// must ask for it again.
    fn set_running(&self, running: bool) {
        let _ = running;
    }
    /// Nanoseconds since 1970-01-01 UTC at machine start, for clocks that know the date.
    fn start_unix_ns(&self) -> i64;
}

/// How a counter's ticks become nanoseconds, in 32-bit arithmetic that guests know too (Linux,
/// arch/x86/include/asm/pvclock.h): shifted, then multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Bits to shift ticks to the left; to the right if it is negative.
    pub shift: i8,
    /// Nanoseconds in a shifted tick, with 32 fraction bits.
    pub factor: u32,
}

impl Scale {
    /// The scale of a counter of `hz` ticks a second, at most 2^40. Its nanoseconds are never ahead, and are behind by
    /// less than a part in 10^9.
    #[must_use]
    pub fn of(hz: u64) -> Self {
        // Nanoseconds in a tick, with 64 fraction bits: below 2^94, from 2^53 on.
        let exact = (1_000_000_000_u128 << 64) / u128::from(hz.clamp(1, 1 << 40));
        let bits = exact.ilog2() as i32 + 1;
        // The factor gets 32 bits, but a shift to the right would lose ticks: up to 4 GHz 31 bits do without.
        let shift = if bits >= 64 { bits - 64 } else { (bits - 63).min(0) };
        Self { shift: shift as i8, factor: (exact >> (32 + shift)) as u32 }
    }

    /// Nanoseconds that `ticks` take.
    #[must_use]
    pub fn ns(self, ticks: u64) -> u64 {
        let shift = u32::from(self.shift.unsigned_abs());
        let shifted = if self.shift < 0 { ticks >> shift } else { ticks << shift };
        ((u128::from(shifted) * u128::from(self.factor)) >> 32) as u64
    }
}

/// A device that wants to be called at a time.
pub trait Timed: Send {
    /// Time has reached (about) the armed deadline. `now_ns` as [`Clock::now_ns`].
    fn run(&mut self, now_ns: u64);
}

/// Timers of all devices, ordered by deadline.
pub struct TimerQueue {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Called, without the queue's lock, when the earliest deadline moves closer.
    on_earlier: Mutex<Option<Box<dyn Fn() + Send>>>,
}

#[derive(Default)]
struct Inner {
    armed: BTreeSet<(u64, usize)>,
    slots: Vec<Slot>,
    stopped: bool,
}

struct Slot {
    device: Weak<Mutex<dyn Timed>>,
    deadline_ns: Option<u64>,
}

/// A device's handle for (re-)arming its one timer. Safe to use under the device's own lock.
#[derive(Clone)]
pub struct Timer {
    queue: Arc<TimerQueue>,
    id: usize,
}

impl fmt::Debug for TimerQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerQueue").field("armed", &self.lock().armed).finish_non_exhaustive()
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TimerQueue {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            changed: Condvar::new(),
            on_earlier: Mutex::new(None),
        })
    }

    /// Reserves a timer before its device exists; `attach` names the device.
    pub fn timer(self: &Arc<Self>) -> Timer {
        let mut inner = self.lock();
        inner.slots.push(Slot { device: Weak::<Mutex<Never>>::new(), deadline_ns: None });
        Timer { queue: Arc::clone(self), id: inner.slots.len() - 1 }
    }

    /// Sets what to do when the earliest deadline moves closer (counted time cuts its budget).
    pub fn on_earlier(&self, action: Box<dyn Fn() + Send>) {
        *lock(&self.on_earlier) = Some(action);
    }

    /// The earliest deadline.
    #[must_use]
    pub fn earliest_ns(&self) -> Option<u64> {
        self.lock().armed.first().map(|&(ns, _)| ns)
    }

    /// Runs every timer due at `now_ns`.
    pub fn run_due(&self, now_ns: u64) {
        loop {
            let device = {
                let mut inner = self.lock();
                match inner.armed.first().copied() {
                    Some((ns, id)) if ns <= now_ns => {
                        inner.armed.remove(&(ns, id));
                        inner.slots[id].deadline_ns = None;
                        inner.slots[id].device.upgrade()
                    }
                    _ => return,
                }
            };
            if let Some(device) = device {
                lock(&device).run(now_ns);
            }
        }
    }

    /// Body of the timer thread under host time: runs timers until [`TimerQueue::stop`].
    pub fn serve(&self, clock: &dyn Clock) {
        loop {
            self.run_due(clock.now_ns());
            let inner = self.lock();
            if inner.stopped {
                return;
            }
            // The lock is held from reading the deadline until the wait begins, so no arming is lost.
            match inner.armed.first() {
                None => drop(self.changed.wait(inner)),
                Some(&(ns, _)) => {
                    let now_ns = clock.now_ns();
                    if ns > now_ns {
                        let wait = Duration::from_nanos(ns - now_ns);
                        drop(self.changed.wait_timeout(inner, wait));
                    }
                }
            }
        }
    }

    /// Ends [`TimerQueue::serve`].
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Timer {
    /// Names the device to run.
    pub fn attach<T: Timed + 'static>(&self, device: &Arc<Mutex<T>>) {
        let device: Arc<Mutex<dyn Timed>> = Arc::clone(device) as _;
        self.queue.lock().slots[self.id].device = Arc::downgrade(&device);
    }

    /// Sets or clears the deadline.
    pub fn arm(&self, deadline_ns: Option<u64>) {
        let mut inner = self.queue.lock();
        let before = inner.armed.first().copied();
        if let Some(old) = inner.slots[self.id].deadline_ns.take() {
            inner.armed.remove(&(old, self.id));
        }
        if let Some(ns) = deadline_ns {
            inner.slots[self.id].deadline_ns = Some(ns);
            inner.armed.insert((ns, self.id));
        }
        let earlier = match (before, inner.armed.first()) {
            (Some(old), Some(new)) => *new < old,
            (None, Some(_)) => true,
            _ => false,
        };
        drop(inner);
        if earlier {
            self.queue.changed.notify_all();
            if let Some(action) = lock(&self.queue.on_earlier).as_ref() {
                action();
            }
        }
    }
}

/// The device of a timer that has none yet.
enum Never {}

impl Timed for Never {
    fn run(&mut self, _: u64) {
        match *self {}
    }
}

/// Locks, also after another thread panicked: device state is plain data.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Random;

    #[test]
    fn scales_are_good_to_a_nanosecond_and_a_part_in_a_thousand_million() {
        let mut random = Random(1);
        let known = [1000, 1_000_000_000, 2_000_000_000, 2_596_152_000, 1 << 32, 10_000_000_000];
        let drawn = (0..20_000).map(|_| 1000 + random.next() % 9_999_999_001);
        let hzs: Vec<u64> = known.into_iter().chain(drawn).collect();
        for hz in hzs {
            let scale = Scale::of(hz);
            for seconds in [1, 7, 3600, 86_400] {
                let ticks = hz * seconds + random.next() % hz;
                let exact = u128::from(ticks) * 1_000_000_000 / u128::from(hz);
                let (exact, ns) = (exact as u64, scale.ns(ticks));
                let behind = exact.checked_sub(ns).expect("never ahead");
                assert!(behind <= 1 + exact / 1_000_000_000, "{hz} Hz, {ticks}: {behind} ns");
            }
        }
    }

    #[test]
    fn scales_lose_nothing_where_nothing_need_be_lost() {
        assert_eq!(Scale::of(1_000_000_000), Scale { shift: 1, factor: 1 << 31 });
        // Linux takes the frequency in kHz from the factor.
        for khz in [1_000_001, 2_596_152, 2_999_999, 3_999_999] {
            let Scale { shift, factor } = Scale::of(khz * 1000);
            assert_eq!((shift, (1_000_000_u64 << 32) / u64::from(factor)), (0, khz));
        }
        for hz in [0, 1, u64::MAX] {
            let _ = Scale::of(hz).ns(u64::MAX);
        }
    }
}
