//! The controllers as a kernel's drivers see them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::super::local::{MSR_APIC_BASE, MSR_TSC_DEADLINE, reg};
use super::*;
use crate::clock::WAKE_NS_MIN;
use crate::fake::{FakeClock, Random};

/// One processor's pins.
#[derive(Default)]
struct Pins {
    intr: AtomicBool,
    nmis: AtomicU32,
    inits: AtomicU32,
    sipi: AtomicU32,
}

impl CpuSignals for Pins {
    fn intr(&self, level: bool) {
        self.intr.store(level, Ordering::SeqCst);
    }
    fn nmi(&self) {
        self.nmis.fetch_add(1, Ordering::SeqCst);
    }
    fn init(&self) {
        self.inits.fetch_add(1, Ordering::SeqCst);
    }
    fn sipi(&self, vector: u8) {
        self.sipi.store(u32::from(vector), Ordering::SeqCst);
    }
}

struct Bench {
    clock: Arc<FakeClock>,
    timers: Arc<TimerQueue>,
    pins: Vec<Arc<Pins>>,
    router: Arc<InterruptRouter>,
    ports: Bus,
    memory: Bus,
}

const LVT_LINT0: u8 = 0x35;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;

impl Bench {
    fn new(cpus: usize) -> Self {
        let clock = FakeClock::new();
        let timers = TimerQueue::new();
        let pins: Vec<Arc<Pins>> = (0..cpus).map(|_| Arc::default()).collect();
        let signals = pins.iter().map(|pins| Arc::clone(pins) as _).collect();
        let as_clock: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let router = InterruptRouter::new(signals, ApicFeatures::default(), &as_clock, &timers);
        let (mut ports, mut memory) = (Bus::new(), Bus::new());
        router.attach(&mut ports, &mut memory).expect("the buses are empty");
        Self { clock, timers, pins, router, ports, memory }
    }
    /// All APICs software-enabled, in flat logical mode with one bit each.
    fn enabled(cpus: usize) -> Self {
        let bench = Self::new(cpus);
        for cpu in 0..cpus {
            bench.write(cpu, reg::SVR, 0x1ff);
            bench.write(cpu, reg::LDR, 0x0100_0000 << cpu);
        }
        bench
    }
    fn x2apic(cpus: usize) -> Self {
        let bench = Self::enabled(cpus);
        for cpu in 0..cpus {
            let base = bench.rdmsr(cpu, MSR_APIC_BASE);
            bench.wrmsr(cpu, MSR_APIC_BASE, base | BASE_X2APIC).expect("from xAPIC mode");
        }
        bench
    }
    fn write(&self, cpu: usize, number: u8, value: u32) {
        self.router.mmio_write(cpu, u64::from(number) << 4, 4, value.into());
    }
    fn read(&self, cpu: usize, number: u8) -> u32 {
        self.router.mmio_read(cpu, u64::from(number) << 4, 4) as u32
    }
    fn rdmsr(&self, cpu: usize, msr: u32) -> u64 {
        self.router.msr_read(cpu, msr).expect("readable")
    }
    fn wrmsr(&self, cpu: usize, msr: u32, value: u64) -> Result<(), Refused> {
        self.router.msr_write(cpu, msr, value, 0)
    }
    fn intr(&self, cpu: usize) -> bool {
        self.pins[cpu].intr.load(Ordering::SeqCst)
    }
    fn io_write(&self, number: u8, value: u32) {
        self.memory.write(IO_APIC_BASE, 4, number.into());
        self.memory.write(IO_APIC_BASE + 0x10, 4, value.into());
    }
    fn io_read(&self, number: u8) -> u32 {
        self.memory.write(IO_APIC_BASE, 4, number.into());
        self.memory.read(IO_APIC_BASE + 0x10, 4) as u32
    }
    /// Writes a redirection entry.
    fn redirect(&self, pin: u8, low: u32, destination: u8) {
        self.io_write(0x11 + 2 * pin, u32::from(destination) << 24);
        self.io_write(0x10 + 2 * pin, low);
    }
    fn advance(&self, ns: u64) {
        self.clock.advance(ns);
        self.timers.run_due(self.clock.now_ns());
    }
}

#[test]
fn virtual_wire_delivers_the_8259_through_lint0() {
    let bench = Bench::new(2);
    bench.router.firmware_defaults();
    bench.router.set_level(1, true);
    assert!(bench.intr(0) && !bench.intr(1));
    assert_eq!(bench.router.acknowledge(0), Some(0x09));
    assert!(!bench.intr(0));
    assert_eq!(bench.router.acknowledge(0), None);
    bench.router.set_level(0, true);
    assert!(bench.intr(0), "timer is above the keyboard");
    // Masking LINT0, as the kernel does when it changes to the I/O APIC.
    bench.write(0, LVT_LINT0, MASKED | 0x700);
    assert!(!bench.intr(0));
    bench.write(0, LVT_LINT0, 0x700);
    assert_eq!(bench.router.acknowledge(0), Some(0x08));
    bench.router.nmi();
    assert_eq!(bench.pins[0].nmis.load(Ordering::SeqCst), 1);
    assert_eq!(bench.pins[1].nmis.load(Ordering::SeqCst), 0, "LINT1 is masked there");
}

#[test]
fn with_the_apic_off_the_8259_is_wired_straight() {
    let bench = Bench::new(1);
    bench.router.firmware_defaults();
    bench.wrmsr(0, MSR_APIC_BASE, 0xfee0_0100).expect("to disabled");
    assert_eq!(bench.router.local_offset(0, 0xfee0_0020), None);
    bench.router.set_level(4, true);
    assert!(!bench.intr(0), "masked at the 8259");
    bench.ports.write(0x21, 1, 0);
    assert_eq!(bench.router.acknowledge(0), Some(0x0c));
    bench.ports.write(0x20, 1, 0x20);
    bench.router.set_level(4, false);
    bench.router.set_level(4, true);
    bench.router.set_level(3, true);
    assert_eq!(bench.router.acknowledge(0), Some(0x0b));
    assert!(!bench.intr(0));
    bench.ports.write(0x20, 1, 0x20);
    assert!(bench.intr(0));
}

#[test]
fn priorities_nest_by_class_and_tpr() {
    let bench = Bench::enabled(1);
    for vector in [0x31, 0x45, 0x42] {
        bench.router.message(0xfee0_0000, vector);
    }
    assert_eq!(bench.read(0, reg::IRR + 2), 0x24);
    assert_eq!(bench.router.acknowledge(0), Some(0x45));
    assert_eq!(bench.read(0, reg::PPR), 0x40);
    assert!(!bench.intr(0), "0x42 is of the same class");
    bench.write(0, reg::EOI, 0);
    assert_eq!(bench.router.acknowledge(0), Some(0x42));
    bench.write(0, reg::EOI, 0);
    bench.router.set_tpr(0, 3);
    assert!(!bench.intr(0));
    assert_eq!((bench.router.acknowledge(0), bench.read(0, reg::TPR)), (None, 0x30));
    bench.write(0, reg::TPR, 0x2f);
    assert_eq!(bench.router.tpr(0), 2);
    assert_eq!(bench.router.acknowledge(0), Some(0x31));
    assert_eq!(bench.read(0, reg::ISR + 1), 0x2_0000);
}

#[test]
fn io_apic_edges_and_levels() {
    let bench = Bench::enabled(1);
    assert_eq!(bench.io_read(1), 0x0017_0020);
    // The ISA timer comes in at pin 2.
    bench.redirect(2, 0x30, 0);
    bench.router.set_level(0, true);
    assert_eq!(bench.router.acknowledge(0), Some(0x30));
    bench.write(0, reg::EOI, 0);
    bench.router.set_level(0, true);
    assert!(!bench.intr(0), "no edge");
    // A level-triggered, low-active pin.
    bench.redirect(17, 0x51 | LEVEL | 1 << 13, 0);
    bench.router.set_level(17, true);
    assert_eq!(bench.router.acknowledge(0), Some(0x51));
    assert_eq!(bench.io_read(0x10 + 34), 0x51 | LEVEL | 1 << 13 | 1 << 14);
    assert_eq!(bench.read(0, reg::TMR + 2), 1 << 17);
    bench.write(0, reg::EOI, 0);
    assert_eq!(bench.router.acknowledge(0), Some(0x51), "still asserted");
    bench.router.set_level(17, false);
    bench.write(0, reg::EOI, 0);
    assert!(!bench.intr(0));
    assert_eq!(bench.io_read(0x10 + 34) & 1 << 14, 0);
    // With the broadcast off, the driver writes the EOI register.
    bench.write(0, reg::SVR, 0x11ff);
    bench.router.set_level(17, true);
    assert_eq!(bench.router.acknowledge(0), Some(0x51));
    bench.router.set_level(17, false);
    bench.write(0, reg::EOI, 0);
    assert_ne!(bench.io_read(0x10 + 34) & 1 << 14, 0);
    bench.memory.write(IO_APIC_BASE + 0x40, 4, 0x51);
    assert_eq!(bench.io_read(0x10 + 34) & 1 << 14, 0);
    // An edge on a masked pin is lost; a level is not.
    bench.redirect(5, 0x55 | MASKED, 0);
    bench.router.set_level(5, true);
    bench.redirect(5, 0x55, 0);
    assert!(!bench.intr(0));
    bench.redirect(5, 0x55 | LEVEL, 0);
    assert_eq!(bench.router.acknowledge(0), Some(0x55));
}

#[test]
fn remote_irr_waits_for_somebody_to_accept() {
    let bench = Bench::new(1);
    bench.redirect(9, 0x61 | LEVEL, 0);
    bench.router.set_level(9, true);
    assert_eq!(bench.io_read(0x10 + 18) & 1 << 14, 0);
    bench.write(0, reg::SVR, 0x1ff);
    bench.redirect(9, 0x61 | LEVEL, 0);
    assert_eq!(bench.router.acknowledge(0), Some(0x61));
}

#[test]
fn ext_int_through_the_io_apic() {
    let bench = Bench::enabled(2);
    bench.router.firmware_defaults();
    bench.write(0, LVT_LINT0, MASKED);
    // The 8259A's output is at pin 0; give it to processor 1.
    bench.redirect(0, 0x700, 1);
    bench.router.set_level(1, true);
    assert!(bench.intr(1) && !bench.intr(0));
    bench.router.set_level(0, true);
    assert_eq!(bench.router.acknowledge(1), Some(0x08));
    assert_eq!(bench.router.acknowledge(1), None, "the keyboard waits for the EOI");
    bench.ports.write(0x20, 1, 0x20);
    assert_eq!(bench.router.acknowledge(1), Some(0x09));
}

#[test]
fn inter_processor_interrupts() {
    let bench = Bench::enabled(4);
    let who = |vector: u8| -> Vec<usize> {
        (0..4).filter(|&cpu| bench.router.acknowledge(cpu) == Some(vector)).collect()
    };
    let send = |high: u32, low: u32| {
        bench.write(1, reg::ICR_HIGH, high);
        bench.write(1, reg::ICR_LOW, low);
    };
    send(0x0200_0000, 0x4041);
    assert_eq!(who(0x41), [2]);
    send(0x0d00_0000, 0x4851);
    assert_eq!(who(0x51), [0, 2, 3], "logical");
    send(0, 0x4_4061);
    assert_eq!(who(0x61), [1], "self");
    send(0, 0xc_4071);
    assert_eq!(who(0x71), [0, 2, 3], "all but self");
    send(0, 0x8_4081);
    assert_eq!(who(0x81), [0, 1, 2, 3]);
    send(0xff00_0000, 0x4091);
    assert_eq!(who(0x91), [0, 1, 2, 3], "broadcast by destination");
    // Lowest priority: processors 1 to 3 have interrupts in service, 0 has none left.
    for _ in 0..6 {
        bench.write(0, reg::EOI, 0);
    }
    send(0x0f00_0000, 0x49a1);
    assert_eq!(who(0xa1), [0]);
    // INIT, its de-assertion, start-up, NMI.
    send(0x0300_0000, 0xc500);
    send(0x0300_0000, 0x8500);
    send(0x0300_0000, 0x469a);
    send(0x0300_0000, 0x4400);
    assert_eq!(bench.pins[3].inits.load(Ordering::SeqCst), 1);
    assert_eq!(bench.pins[3].sipi.load(Ordering::SeqCst), 0x9a);
    assert_eq!(bench.pins[3].nmis.load(Ordering::SeqCst), 1);
    // Nobody has ID 9, and vector 5 is illegal.
    send(0x0900_0000, 0x40b1);
    send(0x0100_0000, 0x4005);
    assert_eq!(bench.read(1, reg::ESR), 0);
    bench.write(1, reg::ESR, 0);
    assert_eq!(bench.read(1, reg::ESR), 1 << 5);
    bench.write(1, reg::ESR, 0);
    assert_eq!(bench.read(1, reg::ESR), 0);
}

#[test]
fn cluster_and_x2apic_logical_addresses() {
    let bench = Bench::enabled(2);
    for (cpu, ldr) in [(0, 0x1100_0000), (1, 0x2300_0000)] {
        bench.write(cpu, reg::DFR, 0x0fff_ffff);
        bench.write(cpu, reg::LDR, ldr);
    }
    bench.router.message(0xfee2_2004, 0x41);
    assert!(!bench.intr(0) && bench.intr(1));
    bench.router.message(0xfee1_2004, 0x41);
    assert!(!bench.intr(0), "bit 1 of cluster 1 is nobody");
    bench.router.message(0xfeef_1004, 0x41);
    assert!(bench.intr(0), "cluster 15 is all clusters");

    let bench = Bench::x2apic(18);
    assert_eq!(bench.rdmsr(17, 0x802), 17);
    assert_eq!(bench.rdmsr(17, 0x80d), 0x0001_0002);
    bench.wrmsr(0, 0x830, 0x0001_0003_0000_4841).expect("ICR");
    let got: Vec<usize> = (0..18).filter(|&cpu| bench.intr(cpu)).collect();
    assert_eq!(got, [16, 17]);
    bench.wrmsr(3, 0x83f, 0x77).expect("self IPI");
    assert_eq!(bench.router.acknowledge(3), Some(0x77));
    bench.wrmsr(3, 0x80b, 0).expect("EOI");
    assert_eq!(bench.rdmsr(3, 0x813), 0);
}

#[test]
fn base_transitions_and_refusals() {
    let bench = Bench::new(2);
    let base = bench.rdmsr(0, MSR_APIC_BASE);
    assert_eq!((base, bench.rdmsr(1, MSR_APIC_BASE)), (0xfee0_0900, 0xfee0_0800));
    assert_eq!(bench.wrmsr(0, 0x808, 0), Err(Refused), "not in x2APIC mode");
    assert_eq!(bench.wrmsr(0, MSR_APIC_BASE, base & !BASE_ENABLE | BASE_X2APIC), Err(Refused));
    assert_eq!(bench.wrmsr(0, MSR_APIC_BASE, base | 1), Err(Refused));
    assert_eq!(bench.wrmsr(0, MSR_APIC_BASE, base | 1 << 46), Err(Refused));
    bench.wrmsr(0, MSR_APIC_BASE, base | BASE_X2APIC).expect("xAPIC to x2APIC");
    assert_eq!(bench.router.local_offset(0, 0xfee0_0000), None);
    assert_eq!(bench.wrmsr(0, MSR_APIC_BASE, base), Err(Refused), "and not back");
    bench.wrmsr(0, 0x80f, 0x1ff).expect("SVR");
    for (msr, value) in
        [(0x802, 0), (0x803, 0), (0x80a, 0), (0x80b, 1), (0x80d, 0), (0x80e, 0), (0x828, 1)]
    {
        assert_eq!(bench.wrmsr(0, msr, value), Err(Refused), "{msr:#x}");
    }
    for (msr, value) in
        [(0x808, 0x100), (0x830, 1 << 20), (0x831, 0), (0x832, 1 << 8), (0x82f, 0), (0x8ff, 0)]
    {
        assert_eq!(bench.wrmsr(0, msr, value), Err(Refused), "{msr:#x}");
    }
    for msr in [0x80b, 0x80e, 0x831, 0x83f, 0x800, 0x840] {
        assert_eq!(bench.router.msr_read(0, msr), Err(Refused), "{msr:#x}");
    }
    bench.wrmsr(0, MSR_APIC_BASE, base & !BASE_ENABLE).expect("to disabled");
    assert_eq!(bench.wrmsr(0, MSR_APIC_BASE, base | BASE_X2APIC), Err(Refused), "in one step");
    bench.wrmsr(0, MSR_APIC_BASE, base).expect("to xAPIC");
    assert_eq!(bench.read(0, reg::SVR), 0xff, "as after power-up");
    // The page moves.
    bench.wrmsr(0, MSR_APIC_BASE, 0xd000_0900).expect("another address");
    assert_eq!(bench.router.local_offset(0, 0xd000_0320), Some(0x320));
    assert_eq!(bench.router.local_offset(0, 0xfee0_0320), None);
}

#[test]
fn init_keeps_the_mode_and_reset_does_not() {
    let bench = Bench::x2apic(1);
    bench.wrmsr(0, 0x808, 0x20).expect("TPR");
    bench.router.message(0xfee0_0000, 0x41);
    assert!(bench.intr(0));
    bench.router.init_cpu(0);
    assert!(!bench.intr(0));
    assert_eq!((bench.rdmsr(0, 0x808), bench.rdmsr(0, 0x80f)), (0, 0xff));
    bench.router.reset_cpu(0);
    assert_eq!(bench.rdmsr(0, MSR_APIC_BASE), 0xfee0_0900);
    assert_eq!(bench.read(0, reg::DFR), u32::MAX);
    assert_eq!(bench.read(0, LVT_LINT0), MASKED);
}

#[test]
fn software_disabled_masks_the_lvt_and_accepts_nothing() {
    let bench = Bench::enabled(1);
    bench.write(0, reg::LVT_TIMER, 0x40);
    bench.write(0, reg::SVR, 0xff);
    assert_eq!(bench.read(0, reg::LVT_TIMER), MASKED | 0x40);
    bench.write(0, reg::LVT_TIMER, 0x41);
    assert_eq!(bench.read(0, reg::LVT_TIMER), MASKED | 0x41);
    bench.router.message(0xfee0_0000, 0x50);
    assert!(!bench.intr(0));
    bench.router.message(0xfee0_0000, 0x400);
    assert_eq!(bench.pins[0].nmis.load(Ordering::SeqCst), 1);
}

#[test]
fn errors_interrupt_and_illegal_registers_are_errors() {
    let bench = Bench::enabled(1);
    bench.write(0, reg::LVT_ERROR, 0xfe);
    bench.router.message(0xfee0_0000, 0x0f);
    assert_eq!(bench.router.acknowledge(0), Some(0xfe));
    bench.write(0, 0x3a, 1);
    bench.write(0, reg::ESR, 0);
    assert_eq!(bench.read(0, reg::ESR), 0xc0);
    bench.write(0, reg::LVT_ERROR, 0x01);
    bench.router.message(0xfee0_0000, 0x0f);
}

#[test]
fn one_shot_and_periodic_timers() {
    let bench = Bench::enabled(1);
    bench.write(0, reg::TIMER_DIVIDE, 0x3); // by 16
    bench.write(0, reg::LVT_TIMER, 0x40);
    bench.write(0, reg::TIMER_INITIAL, 1000);
    assert_eq!(bench.read(0, reg::TIMER_CURRENT), 1000);
    bench.advance(8000);
    assert_eq!(bench.read(0, reg::TIMER_CURRENT), 500);
    bench.write(0, reg::TIMER_DIVIDE, 0xb); // by 1
    assert_eq!(bench.read(0, reg::TIMER_CURRENT), 500);
    bench.advance(499);
    assert!(!bench.intr(0));
    bench.advance(1);
    assert_eq!(bench.router.acknowledge(0), Some(0x40));
    assert_eq!((bench.read(0, reg::TIMER_CURRENT), bench.timers.earliest_ns()), (0, None));
    bench.write(0, reg::EOI, 0);

    bench.write(0, reg::LVT_TIMER, PERIODIC | 0x50);
    bench.write(0, reg::TIMER_INITIAL, 1_000_000);
    let start = bench.clock.now_ns();
    for tick in 1..=100u64 {
        // Each wake-up is late by another bit; periods don't drift.
        let due = bench.timers.earliest_ns().expect("armed");
        assert_eq!(due, start + tick * 1_000_000);
        bench.advance(due + tick * 7_000 - bench.clock.now_ns());
        assert_eq!(bench.router.acknowledge(0), Some(0x50));
        bench.write(0, reg::EOI, 0);
    }
    // Without the timer thread, reading the count is enough to see the interrupt.
    bench.clock.advance(5_000_000);
    assert!(bench.read(0, reg::TIMER_CURRENT) <= 1_000_000);
    assert!(bench.intr(0));
    // Masked, it counts but asks for no wake-up.
    assert_eq!(bench.router.acknowledge(0), Some(0x50));
    bench.write(0, reg::EOI, 0);
    bench.write(0, reg::LVT_TIMER, PERIODIC | MASKED | 0x50);
    bench.advance(10_000_000);
    assert_eq!(bench.timers.earliest_ns(), None);
    assert_ne!(bench.read(0, reg::TIMER_CURRENT), 0);
    bench.write(0, reg::LVT_TIMER, PERIODIC | 0x50);
    assert!(!bench.intr(0), "what expired under the mask is lost");
    bench.write(0, reg::TIMER_INITIAL, 0);
    assert_eq!(bench.timers.earliest_ns(), None);
}

#[test]
fn tsc_deadline() {
    let bench = Bench::enabled(1);
    // Not in this mode: ignored, reads 0.
    bench.wrmsr(0, MSR_TSC_DEADLINE, 5000).expect("exists");
    assert_eq!(bench.rdmsr(0, MSR_TSC_DEADLINE), 0);
    bench.write(0, reg::LVT_TIMER, DEADLINE | 0x40);
    bench.write(0, reg::TIMER_INITIAL, 100);
    assert_eq!(bench.read(0, reg::TIMER_CURRENT), 0, "the counter is off");
    bench.advance(100_000);
    // The guest's counter was set back to 0 at this moment.
    let offset = 100_000u64.wrapping_neg();
    bench.router.msr_write(0, MSR_TSC_DEADLINE, 5000, offset).expect("exists");
    assert_eq!(bench.rdmsr(0, MSR_TSC_DEADLINE), 5000);
    bench.advance(4999);
    assert!(!bench.intr(0));
    bench.advance(1);
    assert_eq!(bench.router.acknowledge(0), Some(0x40));
    assert_eq!(bench.rdmsr(0, MSR_TSC_DEADLINE), 0);
    bench.write(0, reg::EOI, 0);
    // The past fires at once, without a timer thread.
    bench.router.msr_write(0, MSR_TSC_DEADLINE, 1, offset).expect("exists");
    assert_eq!(bench.router.acknowledge(0), Some(0x40));
    bench.write(0, reg::EOI, 0);
    // Zero disarms, and so does another mode. The end of time is no deadline.
    bench.wrmsr(0, MSR_TSC_DEADLINE, 1 << 40).expect("exists");
    assert!(bench.timers.earliest_ns().is_some());
    bench.wrmsr(0, MSR_TSC_DEADLINE, 0).expect("exists");
    assert_eq!(bench.timers.earliest_ns(), None);
    bench.wrmsr(0, MSR_TSC_DEADLINE, 1 << 40).expect("exists");
    bench.write(0, reg::LVT_TIMER, 0x40);
    assert_eq!((bench.timers.earliest_ns(), bench.rdmsr(0, MSR_TSC_DEADLINE)), (None, 0));
    bench.write(0, reg::LVT_TIMER, DEADLINE | 0x40);
    bench.wrmsr(0, MSR_TSC_DEADLINE, u64::MAX).expect("exists");
    assert!(!bench.intr(0));
}

#[test]
fn a_tiny_period_does_not_occupy_the_timer_thread() {
    let bench = Bench::enabled(1);
    bench.write(0, reg::TIMER_DIVIDE, 0xb);
    bench.write(0, reg::LVT_TIMER, PERIODIC | 0x40);
    bench.write(0, reg::TIMER_INITIAL, 1);
    let mut wakes = 0;
    while let Some(ns) = bench.timers.earliest_ns().filter(|&ns| ns < 10_000_000) {
        bench.advance(ns.saturating_sub(bench.clock.now_ns()));
        wakes += 1;
    }
    assert!(wakes <= 10_000_000 / WAKE_NS_MIN + 2, "{wakes}");
}

/// INTR must be what the registers say, whatever was done to them.
fn check_intr(bench: &Bench) {
    for cpu in 0..bench.pins.len() {
        let level = bench.intr(cpu);
        if let Some(vector) = bench.router.acknowledge(cpu) {
            assert!(level, "vector {vector:#x} without INTR");
        } else {
            assert!(!bench.intr(cpu), "INTR with nothing to acknowledge");
        }
    }
}

#[test]
fn random_traffic_never_panics_and_keeps_intr_true() {
    let bench = Bench::enabled(3);
    let mut random = Random(0x0123_4567_89ab_cdef);
    for round in 0..300_000u32 {
        let r = random.next();
        let value = random.next();
        let cpu = (r >> 8) as usize % 3;
        match r % 16 {
            0..=3 => bench.router.mmio_write(cpu, r >> 16 & 0xfff, 4, value >> (r >> 40 & 31)),
            4 => bench.write(cpu, (r >> 16) as u8 & 0x3f, value as u32 & 0x7_ffff),
            5 => _ = bench.router.mmio_read(cpu, r >> 16 & 0xfff, 1 << (r >> 30 & 3)),
            6 => _ = bench.wrmsr(cpu, 0x800 + (r >> 16 & 0x3f) as u32, value & 0xf_ffff),
            7 => _ = bench.router.msr_read(cpu, 0x800 + (r >> 16 & 0xff) as u32),
            8 => bench.router.set_level((r >> 16) as u32 % 26, value & 1 != 0),
            9 => bench.router.message(0xfee0_0000 | (r >> 16 & 0xf_ffff), value as u32),
            10 => bench.io_write((r >> 16) as u8 & 0x3f, value as u32 & 0xff01_ffff),
            11 => bench.memory.write(IO_APIC_BASE + (r >> 16 & 0x7f), 1 << (r >> 30 & 3), value),
            12 => bench.ports.write(
                [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][(r >> 16) as usize % 6],
                1,
                value,
            ),
            13 => _ = bench.router.msr_write(cpu, MSR_TSC_DEADLINE, value >> (r >> 40 & 63), r),
            14 => bench.advance(r >> 16 & 0xf_ffff),
            _ if r & 0x1000 != 0 => bench.router.set_tpr(cpu, value as u8),
            _ => {
                let modes = [0, BASE_ENABLE, BASE_ENABLE | BASE_X2APIC, BASE_X2APIC];
                let base = 0xfee0_0000 | modes[(r >> 16) as usize & 3];
                let _ = bench.wrmsr(cpu, MSR_APIC_BASE, base);
            }
        }
        if round % 8 == 0 {
            check_intr(&bench);
        }
    }
}

#[test]
fn threads_do_not_deadlock_and_lose_no_level() {
    let bench = Bench::enabled(2);
    bench.redirect(20, 0x60 | LEVEL, 0);
    bench.redirect(21, 0x70 | LEVEL, 1);
    let rounds = 3_000u32;
    let start = std::time::Instant::now();
    let check = || assert!(start.elapsed().as_secs() < 120, "stuck");
    std::thread::scope(|scope| {
        for cpu in 0..2usize {
            let router = &bench.router;
            let line = 20 + cpu as u32;
            let served = Arc::new(AtomicU32::new(0));
            let count = Arc::clone(&served);
            // The vCPU: serves its line, and pesters the other processor.
            let check = &check;
            scope.spawn(move || {
                while count.load(Ordering::SeqCst) < rounds {
                    check();
                    router.mmio_write(cpu, 0x310, 4, u64::from(1 - cpu as u32) << 24);
                    router.mmio_write(cpu, 0x300, 4, 0x4030);
                    while let Some(vector) = router.acknowledge(cpu) {
                        if vector == 0x60 + 0x10 * cpu as u8 {
                            router.set_level(line, false);
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                        router.mmio_write(cpu, 0xb0, 4, 0);
                    }
                }
            });
            // The device: raises its line again as soon as it was served.
            scope.spawn(move || {
                for round in 0..rounds {
                    router.set_level(line, true);
                    router.set_level(1, round & 1 != 0);
                    while served.load(Ordering::SeqCst) <= round {
                        check();
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
}

#[test]
fn messages_written_by_a_processor_arrive() {
    let bench = Bench::enabled(2);
    bench.memory.write(0xfee0_1000, 4, 0x51);
    assert_eq!((bench.router.acknowledge(0), bench.router.acknowledge(1)), (None, Some(0x51)));
    // A register of an APIC that is off is no message.
    bench.memory.write(0xfee0_0300, 4, 0x51);
    assert_eq!(bench.router.acknowledge(0), None);
    assert_eq!(bench.memory.read(0xfee0_1000, 4), 0xffff_ffff);
}

#[test]
fn the_8254_ticks_through_the_virtual_wire_and_through_pin_2() {
    use crate::clock::Timed;
    use crate::irq::IrqLine;
    use crate::legacy::pit::Pit;
    let bench = Bench::new(1);
    let line = IrqLine::new(Arc::clone(&bench.router) as _, 0);
    let pit = Pit::new(Arc::clone(&bench.clock) as _, &bench.timers, line);
    bench.router.firmware_defaults();
    lock(&pit).firmware_defaults();
    let _ = bench.router.acknowledge(0);
    bench.ports.write(0x20, 1, 0x20);
    for _ in 0..3 {
        bench.advance(54_927_000);
        assert_eq!(bench.router.acknowledge(0), Some(0x08));
        bench.ports.write(0x20, 1, 0x20);
        assert_eq!(bench.router.acknowledge(0), None);
    }
    bench.ports.write(0x21, 1, 0xff);
    bench.redirect(2, 0x30, 0);
    for _ in 0..3 {
        bench.advance(54_927_000);
        assert_eq!(bench.router.acknowledge(0), Some(0x30));
        bench.write(0, reg::EOI, 0);
    }
    // An early wake-up is harmless.
    let now_ns = bench.clock.now_ns();
    lock(&pit).run(now_ns);
    assert_eq!(bench.router.acknowledge(0), None);
}

/// Ticks while the vCPU's thread waits for a processor of the host: all are interrupts, as soon as they can be.
#[test]
fn edges_that_would_merge_come_when_the_one_before_is_taken() {
    let bench = Bench::enabled(1);
    bench.redirect(2, 0x30, 0);
    let take = || {
        assert!(bench.intr(0));
        assert_eq!(bench.router.acknowledge(0), Some(0x30));
        assert!(!bench.intr(0), "in service");
        bench.write(0, reg::EOI, 0);
    };
    for count in [1, 2, 1] {
        bench.router.edges(0, count);
        bench.router.set_level(0, false);
    }
    (0..4).for_each(|_| take());
    assert!(!bench.intr(0));
    // After a host's sleep, a few.
    bench.router.edges(0, 1_000_000);
    bench.router.edges(0, 1);
    (0..=OWED_MAX).for_each(|_| take());
    assert!(!bench.intr(0));
    // Forgotten.
    bench.router.edges(0, 3);
    bench.router.forget_edges(0);
    take();
    assert!(!bench.intr(0));
    // Masked with some to come: those are lost, as any edge on a masked pin.
    bench.router.edges(0, 3);
    bench.redirect(2, MASKED | 0x30, 0);
    take();
    bench.redirect(2, 0x30, 0);
    bench.router.edges(0, 1);
    take();
    assert!(!bench.intr(0));
}

#[test]
fn edges_through_the_8259_are_owed_too_and_a_pair_that_nobody_listens_to_holds_none_up() {
    let bench = Bench::new(1);
    bench.router.firmware_defaults();
    let take = |vector: u8, port: u16| {
        assert_eq!(bench.router.acknowledge(0), Some(vector));
        assert_eq!(bench.router.acknowledge(0), None, "in service");
        bench.ports.write(0xa0, 1, 0x20);
        bench.ports.write(port.into(), 1, 0x20);
    };
    bench.router.edges(0, 2);
    bench.router.edges(0, 1);
    (0..3).for_each(|_| take(0x08, 0x20));
    assert!(!bench.intr(0));
    bench.ports.write(0xa1, 1, 0x8e & !1);
    bench.router.edges(8, 2);
    (0..2).for_each(|_| take(0x70, 0x20));
    assert!(!bench.intr(0));
    // The pair's line 0 is open and latched, but LINT0 is masked.
    bench.write(0, LVT_LINT0, MASKED);
    bench.redirect(2, 0x30, 0);
    for _ in 0..3 {
        bench.router.edges(0, 1);
        assert_eq!(bench.router.acknowledge(0), Some(0x30));
        bench.write(0, reg::EOI, 0);
        assert!(!bench.intr(0));
    }
}
