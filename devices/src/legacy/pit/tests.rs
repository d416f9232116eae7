//! The timer from the driver's side.

use super::*;
use crate::clock::lock;
use crate::fake::{FakeClock, FakeIrqs, Random};

struct Bench {
    clock: Arc<FakeClock>,
    timers: Arc<TimerQueue>,
    irqs: Arc<FakeIrqs>,
    pit: Arc<Mutex<Pit>>,
}

impl Bench {
    fn new() -> Self {
        let clock = FakeClock::new();
        let timers = TimerQueue::new();
        let irqs = FakeIrqs::new();
        let pit = Pit::new(Arc::clone(&clock) as _, &timers, irqs.line(0));
        Self { clock, timers, irqs, pit }
    }
    fn out(&self, offset: u64, value: u64) {
        lock(&self.pit).write(offset, 1, value);
    }
    fn inb(&self, offset: u64) -> u64 {
        lock(&self.pit).read(offset, 1)
    }
    fn word(&self, offset: u64) -> u64 {
        let low = self.inb(offset);
        low | self.inb(offset) << 8
    }
    /// To the first nanosecond of a tick.
    fn ticks(&self, ticks: u64) {
        let now = self.clock.now_ns();
        self.clock.advance(ns_of(tick_at(now) + ticks) - now);
    }
    /// As a timer thread that is never late.
    fn run_until(&self, end_ns: u64) {
        while let Some(ns) = self.timers.earliest_ns().filter(|&ns| ns <= end_ns) {
            self.clock.advance(ns.saturating_sub(self.clock.now_ns()));
            self.timers.run_due(self.clock.now_ns());
        }
        self.clock.advance(end_ns - self.clock.now_ns());
    }
}

#[test]
fn rate_generator_does_not_drift() {
    let bench = Bench::new();
    bench.out(3, 0x34);
    bench.out(0, 11_932 & 0xff);
    bench.out(0, 11_932 >> 8);
    let before = bench.irqs.edges(0);
    bench.run_until(100 * NS_PER_S);
    // 100 s of 1193182 ticks are 9999.84 periods of 11932.
    assert_eq!(bench.irqs.edges(0) - before, 9999);
}

#[test]
fn who_is_held_up_while_it_waits_for_channel_2_measures_no_time_too_short() {
    let high = |bench: &Bench| bench.inb(OFFSET_0X61) & 0x20 != 0;
    let count = |bench: &Bench| {
        bench.out(OFFSET_0X61, 1);
        bench.out(3, 0xb0);
        bench.out(2, 11_932 & 0xff);
        bench.out(2, 11_932 >> 8);
    };
    // Looks each microsecond, and is held up for 20 ms after two: the time at the last look that was in vain counts.
    let bench = Bench::new();
    count(&bench);
    let start = bench.clock.now_ns();
    let (mut looks, mut last) = (0, 0);
    while !high(&bench) {
        last = bench.clock.now_ns() - start;
        looks += 1;
        bench.clock.advance(if looks == 2000 { 20_000_000 } else { 1000 });
    }
    assert!(last >= 10_000_000, "10 ms took {last} ns");
    // Without a hole it is on time.
    count(&bench);
    let start = bench.clock.now_ns();
    while !high(&bench) {
        bench.clock.advance(1000);
    }
    let taken = bench.clock.now_ns() - start;
    assert!((10_000_000..10_003_000).contains(&taken), "{taken} ns");
    // Who looks seldom sees it at once.
    count(&bench);
    assert!(!high(&bench));
    bench.clock.advance(20_000_000);
    assert!(high(&bench));
}

#[test]
fn a_late_host_misses_no_edge() {
    let bench = Bench::new();
    bench.out(3, 0x34);
    bench.out(0, 11_932 & 0xff);
    bench.out(0, 11_932 >> 8);
    bench.ticks(11_932 * 5 + 1);
    let before = bench.irqs.edges(0);
    bench.timers.run_due(bench.clock.now_ns());
    assert_eq!(bench.irqs.edges(0) - before, 5);
    bench.run_until(bench.clock.now_ns() + 20_001_000);
    assert_eq!(bench.irqs.edges(0) - before, 7);
    let before = bench.irqs.forgotten(0);
    bench.out(3, 0x34);
    assert!(bench.irqs.forgotten(0) > before, "programmed anew, nothing is owed");
}

#[test]
fn interrupt_on_terminal_count() {
    let bench = Bench::new();
    bench.out(3, 0x30);
    bench.out(0, 100);
    bench.out(0, 0);
    bench.run_until(ns_of(100) - 1);
    assert_eq!(bench.irqs.edges(0), 0);
    bench.run_until(NS_PER_S);
    assert_eq!(bench.irqs.edges(0), 1);
    assert!(bench.irqs.level(0));
    bench.out(0, 50);
    assert!(!bench.irqs.level(0), "the first byte of a new count lowers OUT");
}

#[test]
fn channel_2_as_linux_calibrates_with_it() {
    let bench = Bench::new();
    bench.out(OFFSET_0X61, 0x01);
    bench.out(3, 0xb0);
    bench.out(2, 0xff);
    bench.out(2, 0xff);
    assert_eq!(bench.inb(OFFSET_0X61) & 0x21, 0x01);
    bench.ticks(0x100 + 1);
    assert_eq!(bench.word(2), 0xfeff);
    bench.ticks(0xff00);
    assert_eq!(bench.inb(OFFSET_0X61) & 0x20, 0x20);
    // The gate stops and resumes mode 0.
    bench.out(3, 0xb0);
    bench.out(2, 0x00);
    bench.out(2, 0x10);
    bench.ticks(0x11);
    bench.out(OFFSET_0X61, 0);
    bench.ticks(0x5000);
    assert_eq!(bench.word(2), 0x0ff0);
    assert_eq!(bench.inb(OFFSET_0X61) & 0x20, 0);
    bench.out(OFFSET_0X61, 1);
    bench.ticks(0xff0);
    assert_eq!(bench.inb(OFFSET_0X61) & 0x20, 0x20);
}

#[test]
fn retriggerable_one_shot_and_strobes_follow_the_gate() {
    let bench = Bench::new();
    let out2 = || bench.inb(OFFSET_0X61) & 0x20 != 0;
    bench.out(3, 0xb2);
    bench.out(2, 10);
    bench.out(2, 0);
    bench.ticks(50);
    assert!(out2(), "waits for a trigger");
    bench.out(OFFSET_0X61, 1);
    bench.ticks(5);
    assert!(!out2());
    bench.out(OFFSET_0X61, 0);
    bench.out(OFFSET_0X61, 1);
    bench.ticks(10);
    assert!(!out2(), "triggered again");
    bench.ticks(1);
    assert!(out2());

    for (control, retrigger) in [(0xb8, false), (0xba, true)] {
        bench.out(3, control);
        bench.out(2, 4);
        bench.out(2, 0);
        if retrigger {
            bench.out(OFFSET_0X61, 0);
            bench.out(OFFSET_0X61, 1);
        }
        bench.ticks(4);
        assert!(out2());
        bench.ticks(1);
        assert!(!out2(), "strobe of one tick");
        bench.ticks(1);
        assert!(out2());
    }
}

#[test]
fn square_wave_counts_by_two() {
    let bench = Bench::new();
    bench.out(OFFSET_0X61, 1);
    bench.out(3, 0xb6);
    bench.out(2, 5);
    bench.out(2, 0);
    bench.ticks(1);
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push((bench.word(2), bench.inb(OFFSET_0X61) >> 5 & 1));
        bench.ticks(1);
    }
    assert_eq!(seen, [(4, 1), (2, 1), (0, 1), (4, 0), (2, 0), (4, 1)]);
}

#[test]
fn a_new_count_waits_for_the_end_of_the_period() {
    let bench = Bench::new();
    bench.out(3, 0x34);
    bench.out(0, 100);
    bench.out(0, 0);
    bench.ticks(11);
    bench.out(0, 50);
    bench.out(0, 0);
    bench.out(3, 0xe2);
    assert_eq!(bench.inb(0) & 0x40, 0x40, "null count");
    assert_eq!(bench.word(0), 90);
    bench.ticks(90);
    assert_eq!(bench.word(0), 50);
    bench.out(3, 0xe2);
    assert_eq!(bench.inb(0), 0xb4);
}

#[test]
fn latches_read_back_and_bcd() {
    let bench = Bench::new();
    bench.out(3, 0x35);
    bench.out(0, 0x34);
    bench.out(0, 0x12);
    bench.ticks(35 + 1);
    bench.out(3, 0x00);
    bench.ticks(7);
    bench.out(3, 0x00);
    assert_eq!(bench.word(0), 0x1199, "the first latch holds until it is read");
    assert_eq!(bench.word(0), 0x1192);
    bench.out(3, 0xc2);
    bench.ticks(3);
    assert_eq!(bench.inb(0), 0xb5, "status first");
    assert_eq!(bench.word(0), 0x1192);
    assert_eq!(bench.word(0), 0x1189);
}

#[test]
fn refresh_bit_toggles() {
    let bench = Bench::new();
    let mut toggles = 0;
    let mut last = bench.inb(OFFSET_0X61) & 0x10;
    for _ in 0..1000 {
        bench.clock.advance(1_000);
        let now = bench.inb(OFFSET_0X61) & 0x10;
        toggles += u32::from(now != last);
        last = now;
    }
    assert_eq!(toggles, 66, "each 15.085 us");
}

#[test]
fn random_accesses_never_panic_and_bound_the_timer_thread() {
    let bench = Bench::new();
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..50_000 {
        let r = random.next();
        match r & 3 {
            0 | 1 => bench.out(r >> 8 & 7, r >> 16),
            2 => drop(bench.inb(r >> 8 & 7)),
            _ => bench.clock.advance(r >> (16 + (r >> 8 & 47)) & 0xff_ffff_ffff),
        }
        let mut runs = 0;
        let now = bench.clock.now_ns();
        while bench.timers.earliest_ns().is_some_and(|ns| ns <= now) {
            bench.timers.run_due(now);
            runs += 1;
            assert!(runs < 3, "runs again and again at one time");
        }
    }
    // The shortest period there is.
    bench.out(3, 0x14);
    bench.out(0, 1);
    let mut runs = 0;
    let end = bench.clock.now_ns() + 10_000_000;
    while let Some(ns) = bench.timers.earliest_ns().filter(|&ns| ns <= end) {
        bench.clock.advance(ns.saturating_sub(bench.clock.now_ns()));
        bench.timers.run_due(bench.clock.now_ns());
        runs += 1;
    }
    assert!(runs <= 10_000_000 / WAKE_NS_MIN + 1);
}
