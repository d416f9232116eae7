//! The two guest clocks.
//!
//! Problem: people want guest time to pass as their own does; record, replay and lockstep want it to
//! depend on nothing but the guest's instructions. Scheme: [`HostClock`] takes the host's time stamp
//! counter as master, scaled once to nanoseconds, so that a guest's TSC and its timers come from one
//! number and can't drift apart; [`CountedClock`] takes the vCPU's retired instructions, one
//! nanosecond each, plus what was skipped while everything slept. Invariants: neither ever goes back,
//! seen from any thread. Source: SDM vol. 3, "Time-Stamp Counter", "Invariant TSC".

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use xenolith_devices::clock::{Clock, Scale};

/// How long the host's TSC is measured at least: reading two clocks one after the other errs by some tens of
/// nanoseconds, which this makes a few parts per million.
const MEASURE: Duration = Duration::from_millis(20);
/// From here on a measurement may have been through a suspension of the host.
const MEASURE_MAX: Duration = Duration::from_secs(5);
/// No time that is ever reached.
const RUNNING: u64 = u64::MAX;

/// Where the measurement of the host's TSC began.
static MEASURED_FROM: OnceLock<(Instant, u64)> = OnceLock::new();

/// Begins to measure the host's TSC, so that the first [`HostClock`] needn't wait for it.
pub fn begin_measuring() {
    MEASURED_FROM.get_or_init(read_both);
}

/// Guest time is host time.
#[derive(Debug)]
pub struct HostClock {
    /// The raw counter when time was 0; later by what time has stood still since.
    start_ticks: AtomicU64,
    /// The time at which it stands still, or [`RUNNING`].
    stands_at: AtomicU64,
    ticks_hz: u64,
    /// From ticks to nanoseconds.
    scale: Scale,
    /// Stands in for a host TSC that isn't invariant.
    fallback: Option<Instant>,
    /// Latest time handed out: two cores' counters may differ by a few ticks.
    latest_tick: AtomicU64,
    start_unix_ns: i64,
}

impl HostClock {
    #[must_use]
    pub fn new() -> Self {
        if !has_invariant_tsc() {
            return Self {
                start_ticks: AtomicU64::new(0),
                stands_at: AtomicU64::new(RUNNING),
                ticks_hz: 1_000_000_000,
                scale: Scale::of(1_000_000_000),
                fallback: Some(Instant::now()),
                latest_tick: AtomicU64::new(0),
                start_unix_ns: unix_ns(),
            };
        }
        let begun = MEASURED_FROM.get().filter(|(start, _)| start.elapsed() < MEASURE_MAX);
        let (start, start_ticks) = begun.copied().unwrap_or_else(read_both);
        std::thread::sleep(MEASURE.saturating_sub(start.elapsed()));
        let (end, end_ticks) = read_both();
        let start_unix_ns = unix_ns();
        let ns = end.duration_since(start).as_nanos().max(1);
        let ticks = u128::from(end_ticks.wrapping_sub(start_ticks).max(1));
        // A frequency in whole kilohertz, as real ones are given.
        let khz = ((ticks * 1_000_000 + ns / 2) / ns).max(1) as u64;
        Self {
            start_ticks: AtomicU64::new(end_ticks),
            stands_at: AtomicU64::new(RUNNING),
            ticks_hz: khz * 1000,
            scale: Scale::of(khz * 1000),
            fallback: None,
            latest_tick: AtomicU64::new(0),
            start_unix_ns,
        }
    }

    /// The counter that guest time follows.
    fn raw(&self) -> u64 {
        self.fallback.map_or_else(rdtsc, |start| start.elapsed().as_nanos() as u64)
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        self.scale.ns(self.tsc())
    }

    fn tsc(&self) -> u64 {
        let stands_at = self.stands_at.load(Ordering::Acquire);
        if stands_at != RUNNING {
            return stands_at;
        }
        let ticks = self.raw().wrapping_sub(self.start_ticks.load(Ordering::Relaxed));
        // A reading from before the start is a core that lags: it must not become a huge number.
        let ticks = if ticks > u64::MAX / 2 { 0 } else { ticks };
        ticks.max(self.latest_tick.fetch_max(ticks, Ordering::Relaxed))
    }

    fn tsc_hz(&self) -> u64 {
        self.ticks_hz
    }

    fn tsc_base(&self) -> Option<u64> {
        let start_ticks = self.start_ticks.load(Ordering::Relaxed);
        self.fallback.is_none().then_some(start_ticks.wrapping_neg())
    }

    fn set_running(&self, running: bool) {
        let stands_at = self.stands_at.load(Ordering::Acquire);
        match (running, stands_at) {
            (false, RUNNING) => self.stands_at.store(self.tsc(), Ordering::Release),
            (true, at) if at != RUNNING => {
                self.start_ticks.store(self.raw().wrapping_sub(at), Ordering::Relaxed);
                self.stands_at.store(RUNNING, Ordering::Release);
            }
            _ => {}
        }
    }

    fn start_unix_ns(&self) -> i64 {
        self.start_unix_ns
    }
}

/// A time stamp and the counter at about the same moment: the pair read closest together of a few.
fn read_both() -> (Instant, u64) {
    let mut best = (Instant::now(), rdtsc());
    let mut best_gap = u64::MAX;
    for _ in 0..16 {
        let before = rdtsc();
        let now = Instant::now();
        let after = rdtsc();
        let gap = after.wrapping_sub(before);
        if gap < best_gap {
            best_gap = gap;
            best = (now, before + gap / 2);
        }
    }
    best
}

fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux leaves CR4.TSD clear.
    unsafe { _rdtsc() }
}

/// The counter runs at one rate whatever the core does.
fn has_invariant_tsc() -> bool {
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
}

fn unix_ns() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}

/// Guest time is counted in instructions of the one vCPU.
#[derive(Debug, Default)]
pub struct CountedClock {
    /// Instructions retired, as last told.
    retired: AtomicU64,
    /// Nanoseconds jumped over while the vCPU slept.
    skipped_ns: AtomicU64,
}

impl CountedClock {
    /// Nanoseconds since 1970 at which every counted run starts, 2026-01-01: a run must not depend on the
    /// day it is made.
    pub const START_UNIX_NS: i64 = 1_767_225_600_000_000_000;

    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The vCPU has retired so many instructions.
    pub fn set_retired(&self, retired: u64) {
        self.retired.fetch_max(retired, Ordering::Relaxed);
    }

    /// Jumps to `ns`, if that is in the future.
    pub fn skip_to(&self, ns: u64) {
        let ahead = ns.saturating_sub(self.now_ns());
        self.skipped_ns.fetch_add(ahead, Ordering::Relaxed);
    }
}

impl Clock for CountedClock {
    fn now_ns(&self) -> u64 {
        self.retired.load(Ordering::Relaxed) + self.skipped_ns.load(Ordering::Relaxed)
    }

    fn tsc(&self) -> u64 {
        self.now_ns()
    }

    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }

    fn start_unix_ns(&self) -> i64 {
        Self::START_UNIX_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn host_time_follows_the_host() {
        let clock = HostClock::new();
        // Between reading the two clocks any time may pass.
        let first = (Instant::now(), clock.now_ns(), Instant::now());
        std::thread::sleep(Duration::from_millis(100));
        let last = (Instant::now(), clock.now_ns(), Instant::now());
        let (least, most) = (last.0 - first.2, last.2 - first.0);
        let guest = Duration::from_nanos(last.1 - first.1);
        let good = least - least / 200..most + most / 200;
        assert!(good.contains(&guest), "host {least:?} to {most:?}, guest {guest:?}");
    }

    #[test]
    fn host_tsc_and_nanoseconds_are_one_clock() {
        let clock = HostClock::new();
        for seconds in [1u64, 3600, 10 * 365 * 86400] {
            let ns = clock.scale.ns(seconds * clock.tsc_hz());
            assert!(ns.abs_diff(seconds * 1_000_000_000) <= seconds, "{seconds} s: {ns} ns");
        }
    }

    #[test]
    fn host_time_never_goes_back() {
        let clock = Arc::new(HostClock::new());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let clock = Arc::clone(&clock);
                std::thread::spawn(move || {
                    let mut last = 0;
                    for _ in 0..100_000 {
                        let now = clock.tsc();
                        assert!(now >= last);
                        last = now;
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("time went on");
        }
    }

    #[test]
    fn host_time_can_stand_still() {
        let clock = HostClock::new();
        clock.set_running(false);
        let (at, base) = (clock.tsc(), clock.tsc_base());
        std::thread::sleep(Duration::from_millis(50));
        clock.set_running(false);
        assert_eq!(clock.tsc(), at);
        let start = Instant::now();
        clock.set_running(true);
        let after = clock.tsc();
        assert!(after >= at, "{at} {after}");
        assert!(base.is_none() || clock.tsc_base() != base, "what was kept of it is void");
        // Time that stood still is not made up for.
        std::thread::sleep(Duration::from_millis(20));
        let passed_ns = clock.now_ns() - clock.scale.ns(at);
        assert!(passed_ns <= start.elapsed().as_nanos() as u64 + 10_000_000, "{passed_ns} ns");
    }

    #[test]
    fn counted_time_counts_and_skips() {
        let clock = CountedClock::new();
        clock.set_retired(100);
        clock.set_retired(90);
        assert_eq!(clock.now_ns(), 100);
        clock.skip_to(1000);
        clock.skip_to(500);
        assert_eq!(clock.now_ns(), 1000);
        clock.set_retired(150);
        assert_eq!((clock.now_ns(), clock.tsc()), (1050, 1050));
    }
}
