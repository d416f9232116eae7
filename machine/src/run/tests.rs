//! The loop with engines that follow a script.

use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xenolith_devices::clock::{Timed, Timer, lock};
use xenolith_devices::irq::CpuSignals;

use crate::clock::HostClock;

/// Runs a closure for each call of `run`.
struct Script<F> {
    state: CpuState,
    step: F,
}

impl<F: FnMut(&mut CpuState, u64) -> Exit + Send> Engine for Script<F> {
    fn run(&mut self, budget: u64) -> Exit {
        (self.step)(&mut self.state, budget)
    }
    fn state(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn state_changed(&mut self) {}
    fn dump(&self) -> String {
        "the registers".to_owned()
    }
}

fn vcpu(index: u32, step: impl FnMut(&mut CpuState, u64) -> Exit + Send + 'static) -> Vcpu {
    let mut state = CpuState::reset(0x306c3);
    state.rflags |= Rflags::IF.bits();
    if index > 0 {
        state.activity = Activity::WaitForSipi;
    }
    Vcpu {
        index,
        signature: 0x306c3,
        engine: Box::new(Script { state, step }),
        pins: Pins::new(),
        devices_init: Box::new(|| ()),
    }
}

fn go(vcpus: Vec<Vcpu>, time: &Time, timers: &TimerQueue) -> Cause {
    let deadline = Instant::now() + Duration::from_secs(120);
    run(vcpus, time, timers, &Control::new(), Some(deadline), |_| ())
}

fn host() -> Time {
    Time::Host(Arc::new(HostClock::new()))
}

#[test]
fn a_panic_ends_the_run() {
    let bad = vcpu(0, |_, _| panic!("a defect"));
    let sleeper = vcpu(1, |_, _| Exit::Halted);
    let cause = go(vec![bad, sleeper], &host(), &TimerQueue::new());
    assert_eq!(cause, Cause::Failed { message: "a defect".to_owned() });
}

#[test]
fn a_triple_fault_brings_its_registers() {
    let cause = go(vec![vcpu(0, |_, _| Exit::Shutdown)], &host(), &TimerQueue::new());
    let Cause::TripleFault { dump } = cause else { panic!("{cause:?}") };
    assert!(dump.contains("the registers"));
}

#[test]
fn application_processors_start_where_the_sipi_says() {
    let started = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&started);
    let second = vcpu(1, move |state, _| {
        *lock(&seen) = Some((state.seg[sreg::CS].base, state.rip));
        Exit::Shutdown
    });
    let pins = Arc::clone(&second.pins);
    let mut step = 0;
    let first = vcpu(0, move |_, _| {
        step += 1;
        match step {
            // A start-up IPI alone is enough; the INIT before it must not lose it.
            1 => pins.init(),
            2 => {
                while pins.has(attention::INIT) {
                    thread::yield_now();
                }
                pins.sipi(0x9a);
            }
            _ => return Exit::Halted,
        }
        Exit::Budget
    });
    go(vec![first, second], &host(), &TimerQueue::new());
    assert_eq!(*lock(&started), Some((0x9_a000, 0)));
}

#[test]
fn init_of_the_boot_processor_resets_the_machine() {
    let mut only = vcpu(0, |_, _| Exit::Attention);
    only.pins.init();
    only.engine.state().gpr = [5; 16];
    assert_eq!(go(vec![only], &host(), &TimerQueue::new()), Cause::Power(PowerEvent::Reset));
}

/// Raises INTR and re-arms itself.
struct Ticker {
    timer: Timer,
    pins: Arc<Pins>,
    period_ns: u64,
    ran_at: Vec<u64>,
}

impl Timed for Ticker {
    fn run(&mut self, now_ns: u64) {
        self.ran_at.push(now_ns);
        self.timer.arm(Some(now_ns + self.period_ns));
        self.pins.intr(true);
    }
}

fn ticker(timers: &Arc<TimerQueue>, pins: &Arc<Pins>, period_ns: u64) -> Arc<Mutex<Ticker>> {
    let timer = timers.timer();
    let pins = Arc::clone(pins);
    let device = Ticker { timer: timer.clone(), pins, period_ns, ran_at: Vec::new() };
    let device = Arc::new(Mutex::new(device));
    timer.attach(&device);
    timer.arm(Some(period_ns));
    device
}

#[test]
fn halted_vcpus_sleep_until_the_timer() {
    let wakes = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&wakes);
    let pins = Pins::new();
    let own = Arc::clone(&pins);
    let mut only = vcpu(0, move |_, _| {
        own.intr(false);
        if count.fetch_add(1, Ordering::Relaxed) == 10 { Exit::Shutdown } else { Exit::Halted }
    });
    only.pins = Arc::clone(&pins);
    let timers = TimerQueue::new();
    let device = ticker(&timers, &pins, 5_000_000);
    let start = Instant::now();
    go(vec![only], &host(), &timers);
    assert!(start.elapsed() >= Duration::from_millis(45), "it didn't sleep");
    assert_eq!(wakes.load(Ordering::Relaxed), 11, "it woke without reason");
    drop(device);
}

#[test]
fn hlt_without_interrupts_ignores_them() {
    let pins = Pins::new();
    let mut runs = 0;
    let mut only = vcpu(0, move |state, _| {
        runs += 1;
        assert!(runs < 3, "woken by an interrupt that it can't take");
        state.rflags &= !Rflags::IF.bits();
        Exit::Halted
    });
    only.pins = Arc::clone(&pins);
    pins.intr(true);
    let deadline = Instant::now() + Duration::from_millis(50);
    let control = Control::new();
    let timers = TimerQueue::new();
    assert_eq!(run(vec![only], &host(), &timers, &control, Some(deadline), |_| ()), Cause::Timeout);
}

const COUNTED_PERIOD_NS: u64 = 5_000_007;

/// Ten ticks of a counted clock, half of them slept through.
fn counted_run() -> (Vec<u64>, u64) {
    let clock = Arc::new(CountedClock::new());
    let pins = Pins::new();
    let own = Arc::clone(&pins);
    let mut ticks = 0;
    let mut only = vcpu(0, move |state, budget| {
        if own.take(attention::INTR) != 0 {
            ticks += 1;
        }
        if ticks == 10 {
            return Exit::Shutdown;
        }
        if ticks % 2 == 0 {
            state.retired += 100;
            return Exit::Halted;
        }
        state.retired += budget.min(1_000_000);
        Exit::Budget
    });
    only.pins = Arc::clone(&pins);
    let timers = TimerQueue::new();
    let device = ticker(&timers, &pins, COUNTED_PERIOD_NS);
    go(vec![only], &Time::Counted(Arc::clone(&clock)), &timers);
    let ran_at = lock(&device).ran_at.clone();
    (ran_at, clock.now_ns())
}

#[test]
fn counted_time_is_the_same_every_time() {
    let start = Instant::now();
    let first = counted_run();
    assert_eq!(first.0.len(), 10);
    assert!(first.0.iter().enumerate().all(|(n, &ns)| ns == (n as u64 + 1) * COUNTED_PERIOD_NS));
    assert!(start.elapsed() >= Duration::from_nanos(4 * COUNTED_PERIOD_NS), "it didn't sleep");
    assert_eq!(counted_run(), first);
}
