//! Stand-ins for the machine's side, for the devices' unit tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::clock::{Clock, lock};
use crate::irq::{IrqLine, IrqSink};

/// A clock that moves when told: its time, and how far into a second it starts.
#[derive(Default)]
pub struct FakeClock(AtomicU64, i64);

impl FakeClock {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    /// One that starts so much later in its second.
    pub fn into_second(ns: i64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(0), ns))
    }
    pub fn advance(&self, ns: u64) {
        self.0.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn tsc(&self) -> u64 {
        self.now_ns()
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
    fn start_unix_ns(&self) -> i64 {
        1_700_000_000_000_000_000 + self.1
    }
}

/// More edges at once are recorded as so many.
const EDGES_MAX: u64 = 100;

/// Records line levels as they change.
#[derive(Default)]
pub struct FakeIrqs(Mutex<Vec<(u32, bool)>>, Mutex<Vec<u32>>);

impl FakeIrqs {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(Arc::clone(self) as _, gsi)
    }
    /// The last level that `gsi` was set to.
    pub fn level(&self, gsi: u32) -> bool {
        lock(&self.0).iter().rev().find(|change| change.0 == gsi).is_some_and(|change| change.1)
    }
    /// How often `gsi` was told that it is owed nothing.
    pub fn forgotten(&self, gsi: u32) -> usize {
        lock(&self.1).iter().filter(|&&forgotten| forgotten == gsi).count()
    }
    /// How often `gsi` has risen.
    pub fn edges(&self, gsi: u32) -> usize {
        let changes = lock(&self.0);
        let mut level = false;
        let mut edges = 0;
        for change in changes.iter().filter(|change| change.0 == gsi) {
            edges += usize::from(change.1 && !level);
            level = change.1;
        }
        edges
    }
}

impl IrqSink for FakeIrqs {
    fn set_level(&self, gsi: u32, level: bool) {
        lock(&self.0).push((gsi, level));
    }
    fn edges(&self, gsi: u32, count: u64) {
        for _ in 0..count.min(EDGES_MAX) {
            lock(&self.0).extend([(gsi, false), (gsi, true)]);
        }
    }
    fn forget_edges(&self, gsi: u32) {
        lock(&self.1).push(gsi);
    }
    fn message(&self, _: u64, _: u32) {}
}

/// Repeatable pseudo-random numbers (xorshift64) for random register traffic.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
