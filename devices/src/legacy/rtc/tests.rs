//! The clock from the driver's side. The fake machine starts at 2023-11-14 22:13:20, a Tuesday.

use super::*;
use crate::clock::lock;
use crate::fake::{FakeClock, FakeIrqs, Random};

struct Bench {
    clock: Arc<FakeClock>,
    timers: Arc<TimerQueue>,
    irqs: Arc<FakeIrqs>,
    rtc: Arc<Mutex<Rtc>>,
}

impl Bench {
    fn new() -> Self {
        Self::on(FakeClock::new())
    }
    fn on(clock: Arc<FakeClock>) -> Self {
        let timers = TimerQueue::new();
        let irqs = FakeIrqs::new();
        let rtc = Rtc::new(Arc::clone(&clock) as _, &timers, irqs.line(8));
        Self { clock, timers, irqs, rtc }
    }
    fn write(&self, index: u8, value: u8) {
        let mut rtc = lock(&self.rtc);
        rtc.write(0, 1, index.into());
        rtc.write(1, 1, value.into());
    }
    fn read(&self, index: u8) -> u8 {
        let mut rtc = lock(&self.rtc);
        rtc.write(0, 1, index.into());
        rtc.read(1, 1).to_le_bytes()[0]
    }
    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index))
    }
    /// As a timer thread that is never late and a guest that reads register C at once.
    fn run(&self, ns: u64) -> Vec<(u64, u8)> {
        let end_ns = self.clock.now_ns() + ns;
        let mut seen = Vec::new();
        while let Some(ns) = self.timers.earliest_ns().filter(|&ns| ns <= end_ns) {
            self.clock.advance(ns.saturating_sub(self.clock.now_ns()));
            self.timers.run_due(self.clock.now_ns());
            if self.irqs.level(8) {
                seen.push((self.clock.now_ns(), self.read(REG_C)));
                assert!(!self.irqs.level(8), "reading register C lowers the line");
            }
        }
        self.clock.advance(end_ns - self.clock.now_ns());
        seen
    }
}

#[test]
fn shows_the_time_in_every_format() {
    let bench = Bench::new();
    assert_eq!(bench.time(), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
    bench.write(REG_B, B_BINARY | B_24H);
    assert_eq!(bench.time(), [20, 23, 11, 14, 3, 22, 13, 20]);
    bench.write(REG_B, 0);
    assert_eq!(bench.read(REG_HOURS), 0x90);
    bench.clock.advance(2 * 3600 * NS_PER_S);
    assert_eq!(bench.time(), [0x20, 0x23, 0x11, 0x15, 4, 0x12, 0x13, 0x20]);
    assert_eq!((bench.read(REG_D), bench.read(REG_A)), (0x80, 0x26));
}

#[test]
fn seconds_begin_when_the_computers_do() {
    let bench = Bench::on(FakeClock::into_second(750_000_000));
    bench.clock.advance(249_000_000);
    assert_eq!(bench.read(REG_SECONDS), 0x20);
    bench.clock.advance(1_000_000);
    assert_eq!(bench.read(REG_SECONDS), 0x21);
    // A board that is built at another point of a second goes on by the same seconds.
    let after = Bench::on(FakeClock::into_second(100_000_000));
    lock(&after.rtc).restore(&lock(&bench.rtc).battery());
    after.clock.advance(899_000_000);
    assert_eq!(after.read(REG_SECONDS), 0x20);
    after.clock.advance(1_000_000);
    assert_eq!(after.read(REG_SECONDS), 0x21);
}

#[test]
fn setting_the_time_shifts_it() {
    let bench = Bench::new();
    bench.clock.advance(700_000_000);
    bench.write(REG_B, B_SET | B_24H);
    for (index, value) in
        [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (6, 6), (4, 0x23), (2, 0x59), (0, 0x59)]
    {
        bench.write(index, value);
    }
    bench.clock.advance(5 * NS_PER_S);
    assert_eq!(bench.time(), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59], "stands still");
    assert_eq!(bench.read(REG_A) & A_UIP, 0);
    bench.write(REG_B, B_24H);
    bench.clock.advance(299_000_000);
    assert_eq!(bench.read(REG_SECONDS), 0x59, "the divider kept its phase");
    bench.clock.advance(1_000_000);
    assert_eq!(bench.time(), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
    // Without SET a single register can be written too.
    bench.write(REG_MINUTES, 0x30);
    assert_eq!(bench.time(), [0x20, 0x00, 0x01, 0x01, 7, 0, 0x30, 0]);
}

#[test]
fn a_divider_reset_makes_the_next_update_come_half_a_second_later() {
    let bench = Bench::new();
    bench.clock.advance(123_456_789);
    bench.write(REG_A, 0x76);
    bench.clock.advance(10 * NS_PER_S);
    assert_eq!(bench.read(REG_SECONDS), 0x20);
    bench.write(REG_A, 0x26);
    bench.clock.advance(499_999_999);
    assert_eq!(bench.read(REG_SECONDS), 0x20);
    bench.clock.advance(1);
    assert_eq!(bench.read(REG_SECONDS), 0x21);
}

#[test]
fn update_in_progress_precedes_the_second() {
    let bench = Bench::new();
    bench.clock.advance(NS_PER_S - UIP_NS - 1);
    assert_eq!(bench.read(REG_A), 0x26);
    bench.clock.advance(1);
    assert_eq!(bench.read(REG_A), 0xa6);
    assert_eq!(bench.read(REG_SECONDS), 0x20);
    bench.clock.advance(UIP_NS);
    assert_eq!(bench.read(REG_A), 0x26);
    assert_eq!(bench.read(REG_SECONDS), 0x21);
}

#[test]
fn update_ended_and_periodic_interrupts() {
    let bench = Bench::new();
    bench.write(REG_B, B_24H | B_UIE);
    let seen = bench.run(3 * NS_PER_S);
    assert_eq!(
        seen.iter().map(|event| event.0).collect::<Vec<_>>(),
        [1, 2, 3].map(|s| s * NS_PER_S)
    );
    assert!(seen.iter().all(|event| event.1 & !C_PF == C_IRQF | C_UF));
    bench.write(REG_B, B_24H | B_PIE);
    let seen = bench.run(10 * NS_PER_S);
    assert_eq!(seen.len(), 10_240);
    // Read late, the line rises anew for those that came in the meantime.
    bench.clock.advance((5 * NS_PER_S).div_ceil(1024));
    bench.timers.run_due(bench.clock.now_ns());
    for n in (1..=5).rev() {
        assert!(bench.irqs.level(8), "{n} to come");
        let before = bench.irqs.edges(8);
        assert_eq!(bench.read(REG_C) & (C_IRQF | C_PF), C_IRQF | C_PF);
        assert_eq!(bench.irqs.edges(8) - before, usize::from(n > 1));
    }
    assert_eq!(bench.read(REG_C), 0);
    // Unread, the line stays up and no more timers run.
    bench.clock.advance(NS_PER_S);
    bench.timers.run_due(bench.clock.now_ns());
    assert!(bench.irqs.level(8));
    assert_eq!(bench.timers.earliest_ns(), None);
    // Turning it off lowers the line; the flag stays for who polls.
    bench.write(REG_B, B_24H);
    assert!(!bench.irqs.level(8));
    assert_eq!(bench.read(REG_C), C_PF | C_UF);
    assert_eq!(bench.read(REG_C), 0);
}

#[test]
fn alarms_match_and_ignore() {
    let bench = Bench::new();
    for (index, value) in [(5, 0x22), (3, 0x14), (1, 0x05), (REG_B, B_24H | B_AIE)] {
        bench.write(index, value);
    }
    let seen = bench.run(SECONDS_PER_DAY.unsigned_abs() * 2 * NS_PER_S);
    assert_eq!(seen.iter().map(|event| event.0 / NS_PER_S).collect::<Vec<_>>(), [45, 45 + 86_400],);
    assert_eq!(seen[0].1 & (C_IRQF | C_AF), C_IRQF | C_AF);
    // Each minute.
    let bench = Bench::new();
    for (index, value) in [(5, 0xff), (3, 0xff), (1, 0), (REG_B, B_24H | B_AIE)] {
        bench.write(index, value);
    }
    assert_eq!(bench.run(3600 * NS_PER_S).len(), 60);
    // Never.
    bench.write(3, 0x77);
    assert_eq!(bench.timers.earliest_ns(), None);
}

/// The power management block's RTC_STS.
#[test]
fn each_alarm_that_interrupts_is_told_once() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let bench = Bench::new();
    let told = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&told);
    lock(&bench.rtc).set_alarm_event(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let told = || told.load(Ordering::Relaxed);
    // Each minute; its interrupt isn't wanted yet.
    for (index, value) in [(5, 0xff), (3, 0xff), (1, 0), (REG_B, B_24H)] {
        bench.write(index, value);
    }
    bench.run(3600 * NS_PER_S);
    assert_eq!(told(), 0);
    // What has come before interrupts at once.
    bench.write(REG_B, B_24H | B_AIE);
    assert_eq!((told(), bench.irqs.level(8)), (1, true));
    bench.read(REG_C);
    bench.run(3600 * NS_PER_S);
    assert_eq!(told(), 61);
    // While another interrupt is up and nobody reads register C, too.
    bench.write(REG_B, B_24H | B_AIE | B_UIE);
    bench.clock.advance(NS_PER_S);
    bench.timers.run_due(bench.clock.now_ns());
    assert_eq!((told(), bench.irqs.level(8)), (61, true));
    while let Some(ns) = bench.timers.earliest_ns() {
        bench.clock.advance(ns - bench.clock.now_ns());
        bench.timers.run_due(ns);
    }
    assert_eq!(told(), 62);
    // And if it is found by who reads register C.
    bench.read(REG_C);
    bench.clock.advance(60 * NS_PER_S);
    assert_eq!(bench.read(REG_C) & C_AF, C_AF);
    assert_eq!(told(), 63);
}

#[test]
fn the_battery_keeps_memory_and_time_but_no_interrupts() {
    let bench = Bench::new();
    for (index, value) in [(0x32, 0x19), (9, 0x99), (0x60, 0xab), (REG_B, B_24H | B_PIE | B_AIE)] {
        bench.write(index, value);
    }
    // A board that is built later starts at the computer's time then, which is the same here.
    let after = Bench::new();
    lock(&after.rtc).restore(&lock(&bench.rtc).battery());
    assert_eq!(after.time(), bench.time());
    assert_eq!((after.read(0x60), after.read(REG_B)), (0xab, B_24H));
    assert_eq!(after.timers.earliest_ns(), None);
    // Two seconds that the first one ran are in the computer's time already.
    bench.clock.advance(2 * NS_PER_S);
    lock(&after.rtc).restore(&lock(&bench.rtc).battery());
    assert_eq!(after.read(0), 0x20);
    after.clock.advance(2 * NS_PER_S);
    assert_eq!(after.time(), bench.time());
    // A clock that is being set stays so.
    bench.write(REG_B, B_24H | B_SET);
    bench.write(0, 0x07);
    lock(&after.rtc).restore(&lock(&bench.rtc).battery());
    after.clock.advance(10 * NS_PER_S);
    assert_eq!(after.read(0), 0x07);
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let bench = Bench::new();
    lock(&bench.rtc).set_memory(3 << 30, 5 << 30);
    let word = |index| u16::from_le_bytes([bench.read(index), bench.read(index + 1)]);
    assert_eq!((word(0x15), word(0x17), word(0x30)), (640, 0xffff, 0xffff));
    assert_eq!(word(0x34), (((3 << 30) - (16 << 20)) >> 16) as u16);
    assert_eq!((word(0x5b), bench.read(0x5d)), (0x4000, 1));
    lock(&bench.rtc).set_memory(8 << 20, 0);
    assert_eq!((word(0x15), word(0x17), word(0x34)), (640, 7168, 0));
    bench.write(0xf5, 0x77);
    assert!(lock(&bench.rtc).nmi_masked());
    assert_eq!(bench.read(0x75), 0x77);
}

#[test]
fn random_accesses_never_panic_and_bound_the_timer_thread() {
    let bench = Bench::new();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..50_000 {
        let r = random.next();
        let index = if r & 0x40 != 0 { (r >> 8 & 15) as u8 } else { (r >> 8) as u8 };
        match r & 3 {
            0 | 1 => bench.write(index, (r >> 16) as u8),
            2 => drop(bench.read(index)),
            _ => bench.clock.advance(r >> (16 + (r >> 8 & 47)) & 0xff_ffff_ffff_ffff),
        }
        let now = bench.clock.now_ns();
        bench.timers.run_due(now);
        assert!(bench.timers.earliest_ns().is_none_or(|ns| ns > now), "asks for the past");
    }
}
