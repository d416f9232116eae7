//! The local APIC's timer: one-shot, periodic and TSC-deadline.
//!
//! Problem: a counter that runs at a bus frequency, and a deadline in guest TSC ticks. Scheme: nothing
//! counts; the expiry time is kept and the count computed from it. The bus runs at [`BUS_HZ`], so a
//! bus tick is a nanosecond (as under QEMU and KVM). Invariants: `expiry_ns` and `deadline` are never
//! both set; a period is at least 1 ns; a periodic expiry moves by whole periods, so it does not
//! drift, and those that a late host missed are one. Thread: any, under the local APIC's lock.
//! Source: SDM vol. 3, "APIC Timer", "TSC-Deadline Mode".

use crate::clock::Clock;

/// Frequency of the bus clock that the timer divides: 1 GHz. A CPUID leaf 0x15 that gives a crystal
/// frequency must give this one.
pub const BUS_HZ: u64 = 1_000_000_000;

const NS_PER_S: u64 = 1_000_000_000;

/// LVT timer bits 17-18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub(super) fn of(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// An armed TSC deadline.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    /// In guest ticks, as written.
    guest: u64,
    /// Guest ticks less raw ticks.
    tsc_offset: u64,
}

impl Deadline {
    /// Guest ticks left; 0 if it has passed.
    fn left(self, clock: &dyn Clock) -> u64 {
        self.guest.saturating_sub(clock.tsc().wrapping_add(self.tsc_offset))
    }
}

#[derive(Clone, Debug)]
pub(super) struct LvtTimer {
    initial: u32,
    divide: u32,
    expiry_ns: Option<u64>,
    deadline: Option<Deadline>,
}

impl LvtTimer {
    pub(super) fn new() -> Self {
        Self { initial: 0, divide: 0, expiry_ns: None, deadline: None }
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// The divide configuration register.
    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// Nanoseconds in a count.
    fn unit_ns(&self) -> u64 {
        match (self.divide >> 1 & 4) | (self.divide & 3) {
            7 => 1,
            shift => 2 << shift,
        }
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial) * self.unit_ns()
    }

    /// The current count register.
    pub(super) fn current(&self, now_ns: u64) -> u32 {
        let left_ns = self.expiry_ns.map_or(0, |ns| ns.saturating_sub(now_ns));
        u32::try_from(left_ns.div_ceil(self.unit_ns())).unwrap_or(u32::MAX)
    }

    /// Initial count register: starts the counter, or stops it with 0.
    pub(super) fn set_initial(&mut self, mode: Mode, count: u32, now_ns: u64) {
        if matches!(mode, Mode::OneShot | Mode::Periodic) {
            self.initial = count;
            self.expiry_ns = (count != 0).then(|| now_ns.saturating_add(self.period_ns()));
        }
    }

    /// Divide configuration register; a running counter goes on from its count.
    pub(super) fn set_divide(&mut self, value: u32, now_ns: u64) {
        let current = self.current(now_ns);
        self.divide = value & 0xb;
        if self.expiry_ns.is_some() {
            let left_ns = u64::from(current) * self.unit_ns();
            self.expiry_ns = Some(now_ns.saturating_add(left_ns));
        }
    }

    /// LVT timer mode bits changed: going to or from TSC-deadline disarms.
    pub(super) fn change_mode(&mut self, from: Mode, to: Mode) {
        if from != to && (from == Mode::TscDeadline || to == Mode::TscDeadline) {
            self.expiry_ns = None;
            self.deadline = None;
        }
    }

    /// IA32_TSC_DEADLINE as read.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.deadline.map_or(0, |deadline| deadline.guest)
    }

    /// Writes IA32_TSC_DEADLINE; 0 disarms.
    pub(super) fn set_tsc_deadline(&mut self, mode: Mode, guest: u64, tsc_offset: u64) {
        if mode == Mode::TscDeadline {
            self.deadline = (guest != 0).then_some(Deadline { guest, tsc_offset });
        }
    }

    /// Whether the timer has expired since it was last asked, and moves it on.
    pub(super) fn expired(&mut self, mode: Mode, clock: &dyn Clock) -> bool {
        if let Some(deadline) = self.deadline {
            let due = deadline.left(clock) == 0;
            if due {
                self.deadline = None;
            }
            return due;
        }
        let Some(expiry_ns) = self.expiry_ns else { return false };
        let now_ns = clock.now_ns();
        if expiry_ns > now_ns {
            return false;
        }
        let period_ns = self.period_ns();
        self.expiry_ns = (mode == Mode::Periodic && period_ns > 0).then(|| {
            let periods = (now_ns - expiry_ns) / period_ns + 1;
            expiry_ns.saturating_add(periods.saturating_mul(period_ns))
        });
        true
    }

    /// When to look at [`LvtTimer::expired`] again.
    pub(super) fn wake_ns(&self, clock: &dyn Clock) -> Option<u64> {
        let Some(deadline) = self.deadline else { return self.expiry_ns };
        let now_ns = clock.now_ns();
        let hz = clock.tsc_hz().max(1);
        let left_ns = (u128::from(deadline.left(clock)) * u128::from(NS_PER_S)).div_ceil(hz.into());
        // Later than a century from now is never.
        let left_ns = u64::try_from(left_ns).ok().filter(|&ns| ns < 1 << 62)?;
        Some(now_ns.saturating_add(left_ns))
    }
}
