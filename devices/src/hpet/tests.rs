//! The timers from the driver's side.

use super::*;
use crate::fake::{FakeClock, FakeIrqs, Random};

struct Bench {
    clock: Arc<FakeClock>,
    timers: Arc<TimerQueue>,
    irqs: Arc<FakeIrqs>,
    gate: Arc<LegacyGate>,
    memory: Bus,
}

/// Offsets of timer `n`'s registers.
const fn config(n: u64) -> u64 {
    0x100 + 0x20 * n
}
const fn comparator(n: u64) -> u64 {
    0x108 + 0x20 * n
}

impl Bench {
    fn new() -> Self {
        let clock = FakeClock::new();
        let timers = TimerQueue::new();
        let irqs = FakeIrqs::new();
        let gate = LegacyGate::new(Arc::clone(&irqs) as _);
        let hpet =
            Hpet::new(Arc::clone(&clock) as _, &timers, Arc::clone(&irqs) as _, Arc::clone(&gate));
        let mut memory = Bus::new();
        Hpet::attach(&hpet, &mut memory).expect("the bus is empty");
        Self { clock, timers, irqs, gate, memory }
    }
    fn write(&self, offset: u64, value: u64) {
        self.memory.write(HPET_BASE + offset, 4, value);
    }
    fn read(&self, offset: u64) -> u64 {
        self.memory.read(HPET_BASE + offset, 4)
    }
    fn counter(&self) -> u64 {
        self.memory.read(HPET_BASE + REG_COUNTER, 8)
    }
    /// As a timer thread that is never late. Returns how often it woke.
    fn run(&self, ns: u64) -> u64 {
        let end_ns = self.clock.now_ns() + ns;
        let mut wakes = 0;
        while let Some(ns) = self.timers.earliest_ns().filter(|&ns| ns <= end_ns) {
            self.clock.advance(ns.saturating_sub(self.clock.now_ns()));
            self.timers.run_due(self.clock.now_ns());
            wakes += 1;
        }
        self.clock.advance(end_ns - self.clock.now_ns());
        wakes
    }
}

#[test]
fn identity_and_counter() {
    let bench = Bench::new();
    assert_eq!(bench.memory.read(HPET_BASE, 8), 0x0098_9680_8086_a201);
    assert_eq!(bench.memory.read(HPET_BASE + config(1), 8), 0x00ff_0104_0000_0030);
    bench.run(1000);
    assert_eq!(bench.counter(), 0, "halted");
    bench.memory.write(HPET_BASE + REG_COUNTER, 8, 0x1_ffff_fff0);
    bench.write(REG_CONFIG, CONFIG_ENABLE);
    bench.run(1000);
    assert_eq!(bench.counter(), 0x2_0000_0054);
    assert_eq!((bench.read(0xf0), bench.read(0xf4)), (0x54, 2));
    bench.write(REG_COUNTER, 7);
    assert_eq!(bench.counter(), 0x2_0000_0054, "not written while it runs");
    bench.write(REG_CONFIG, 0);
    bench.run(1000);
    assert_eq!(bench.counter(), 0x2_0000_0054);
}

#[test]
fn one_shot_edge() {
    let bench = Bench::new();
    bench.write(REG_CONFIG, CONFIG_ENABLE);
    bench.write(config(2), 20 << 9 | TIMER_INTERRUPT);
    bench.write(comparator(2), 1000);
    bench.write(comparator(2) + 4, 0);
    bench.run(9_999);
    assert_eq!(bench.irqs.edges(20), 0);
    bench.run(1);
    assert_eq!(bench.irqs.edges(20), 1);
    // Behind the counter: not before the wrap.
    bench.write(comparator(2), 500);
    assert!(bench.timers.earliest_ns().is_none_or(|ns| ns > 1 << 60));
    // In 32-bit mode the wrap comes after 43 s.
    bench.write(config(2), 20 << 9 | TIMER_INTERRUPT | TIMER_32_BIT);
    bench.run(43_000_000_000);
    assert_eq!(bench.irqs.edges(20), 2);
    assert_eq!(bench.read(REG_STATUS), 0, "edges leave no status");
}

#[test]
fn periodic_with_linux_order_of_writes() {
    let bench = Bench::new();
    bench.write(REG_CONFIG, CONFIG_ENABLE | CONFIG_LEGACY);
    bench.run(123_456);
    let now = bench.read(REG_COUNTER);
    bench.write(config(0), TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BIT);
    bench.write(comparator(0), now + 100_000);
    assert_eq!(bench.read(config(0)) & TIMER_SET_VALUE, 0);
    bench.write(comparator(0), 100_000);
    bench.run(100 * 1_000_000 - 1_000);
    assert_eq!(bench.irqs.edges(0), 99);
    bench.run(10 * 1_000_000);
    assert_eq!(bench.irqs.edges(0), 109);
    // A late host: those that were missed, then on in step.
    bench.clock.advance(5_400_000);
    bench.timers.run_due(bench.clock.now_ns());
    assert_eq!(bench.irqs.edges(0), 115);
    assert_eq!(bench.read(comparator(0)), now + 100_000 * 116);
    bench.run(602_000);
    assert_eq!(bench.irqs.edges(0), 116);
    bench.run(10 * 1_000_000);
    assert_eq!(bench.irqs.edges(0), 126);
    // Programmed anew, nothing is owed.
    let before = bench.irqs.forgotten(0);
    bench.write(config(0), TIMER_INTERRUPT);
    assert!(bench.irqs.forgotten(0) > before);
}

/// A vCPU's thread waits for a processor between any two of the guest's accesses.
#[test]
fn a_late_host_stops_no_periodic_timer() {
    const PERIOD: u64 = 400_000;
    // Nanoseconds that pass before the first write of the comparator, and between the two.
    for (before, between) in
        [(0, 0), (5_000_000, 0), (0, 5_000_000), (30_000_000, 0), (50_000_000, 30_000_000)]
    {
        let bench = Bench::new();
        bench.write(REG_CONFIG, CONFIG_ENABLE | CONFIG_LEGACY);
        // Beyond 32 bits.
        bench.run(50_000_000_000);
        let first = (bench.read(REG_COUNTER) + PERIOD) & 0xffff_ffff;
        bench.write(config(0), TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BIT);
        bench.run(before);
        bench.write(comparator(0), first);
        bench.run(between);
        bench.write(comparator(0), PERIOD);
        bench.run(10 * PERIOD * TICK_NS);
        let found = bench.irqs.edges(0);
        let passed = (before + between) / (PERIOD * TICK_NS);
        assert!((9..=10 + passed).contains(&(found as u64)), "{before} {between}: {found}");
        assert_eq!((bench.read(comparator(0)) - first) % PERIOD, 0, "in step");
        bench.run(100 * PERIOD * TICK_NS);
        assert_eq!(bench.irqs.edges(0), found + 100, "{before} {between}");
    }
}

#[test]
fn level_triggered_until_the_status_is_cleared() {
    let bench = Bench::new();
    bench.write(REG_CONFIG, CONFIG_ENABLE);
    bench.write(config(1), 17 << 9 | TIMER_INTERRUPT | TIMER_LEVEL);
    bench.memory.write(HPET_BASE + comparator(1), 8, 100);
    bench.run(1000);
    assert!(bench.irqs.level(17));
    assert_eq!(bench.read(REG_STATUS), 2);
    bench.write(REG_STATUS, 5);
    assert!(bench.irqs.level(17));
    bench.write(REG_STATUS, 2);
    assert!(!bench.irqs.level(17));
    // Without interrupt enable there is the status alone; enabling raises the line.
    bench.write(config(1), 17 << 9 | TIMER_LEVEL);
    bench.memory.write(HPET_BASE + comparator(1), 8, 300);
    bench.clock.advance(2000);
    assert_eq!(bench.read(REG_STATUS), 2);
    assert!(!bench.irqs.level(17));
    bench.write(config(1), 17 << 9 | TIMER_LEVEL | TIMER_INTERRUPT);
    assert!(bench.irqs.level(17));
    // Another route takes the level along; one that isn't offered is not taken.
    bench.write(config(1), 18 << 9 | TIMER_LEVEL | TIMER_INTERRUPT);
    assert!(!bench.irqs.level(17) && bench.irqs.level(18));
    bench.write(config(1), 5 << 9 | TIMER_LEVEL | TIMER_INTERRUPT);
    assert_eq!(bench.read(config(1)) >> 9 & 31, 18);
}

#[test]
fn legacy_replacement_takes_the_lines() {
    let bench = Bench::new();
    bench.gate.set_level(0, true);
    assert!(bench.irqs.level(0));
    bench.write(REG_CONFIG, CONFIG_ENABLE | CONFIG_LEGACY);
    assert!(!bench.irqs.level(0));
    bench.gate.set_level(8, true);
    assert!(!bench.irqs.level(8));
    bench.write(config(1), TIMER_INTERRUPT);
    bench.write(comparator(1), 100);
    bench.write(comparator(1) + 4, 0);
    bench.run(2000);
    assert_eq!(bench.irqs.edges(8), 1);
    bench.write(REG_CONFIG, CONFIG_ENABLE);
    assert!(bench.irqs.level(0) && bench.irqs.level(8), "the old devices are back");
    bench.gate.set_level(4, true);
    assert!(bench.irqs.level(4));
}

#[test]
fn a_comparator_that_equals_the_counter_matches() {
    let bench = Bench::new();
    bench.write(config(0), 16 << 9 | TIMER_INTERRUPT);
    bench.memory.write(HPET_BASE + comparator(0), 8, 0);
    bench.write(REG_CONFIG, CONFIG_ENABLE);
    assert_eq!(bench.irqs.edges(16), 1);
}

#[test]
fn random_accesses_never_panic_and_bound_the_timer_thread() {
    let bench = Bench::new();
    let mut random = Random(0xfeed_0000_dead_1234);
    for _ in 0..50_000 {
        let r = random.next();
        let value = random.next() >> (r >> 40 & 63);
        let offset = match r & 7 {
            0 => REG_CONFIG,
            1 | 2 => config(r >> 8 & 3),
            3 => comparator(r >> 8 & 3) + (r >> 10 & 4),
            _ => r >> 8 & 0x3ff,
        };
        match r >> 20 & 3 {
            0 | 1 => bench.memory.write(HPET_BASE + offset, 1 << (r >> 24 & 3), value),
            2 => _ = bench.memory.read(HPET_BASE + offset, 1 << (r >> 24 & 3)),
            _ => bench.clock.advance(value & 0xfff_ffff_ffff),
        }
        bench.timers.run_due(bench.clock.now_ns());
    }
    let bench = Bench::new();
    for n in 0..3 {
        bench.write(config(n), 16 << 9 | TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE);
        bench.memory.write(HPET_BASE + comparator(n), 8, 1);
    }
    bench.write(REG_CONFIG, CONFIG_ENABLE);
    assert!(bench.run(10_000_000) <= 10_000_000 / WAKE_NS_MIN + 2);
}
