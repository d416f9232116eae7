//! The driver's side of the UART, step by step as Linux's 8250 driver and simple guests do it.

use std::io::Write;
use std::time::Duration;

use super::*;
use crate::fake::{FakeClock, FakeIrqs, Random};

const IRQ: u32 = 4;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Rig {
    uart: Arc<Mutex<Uart>>,
    input: SerialInput,
    irqs: Arc<FakeIrqs>,
    clock: Arc<FakeClock>,
    timers: Arc<TimerQueue>,
    sink: Sink,
    output: SerialOutput,
}

impl Rig {
    fn new() -> Self {
        let (irqs, clock, timers) = (FakeIrqs::new(), FakeClock::new(), TimerQueue::new());
        let sink = Sink::default();
        let output = SerialOutput::new(Box::new(sink.clone())).expect("a thread");
        let uart = Uart::new(irqs.line(IRQ), Arc::clone(&clock) as _, &timers, output.clone());
        let input = Uart::input(&uart);
        Self { uart, input, irqs, clock, timers, sink, output }
    }

    fn r(&self, register: u64) -> u8 {
        (lock(&self.uart).read(register, 1) & 0xff) as u8
    }

    fn w(&self, register: u64, value: u8) {
        lock(&self.uart).write(register, 1, value.into());
    }

    fn irq(&self) -> bool {
        self.irqs.level(IRQ)
    }

    fn pass(&self, ns: u64) {
        self.clock.advance(ns);
        self.timers.run_due(self.clock.now_ns());
    }
}

#[test]
fn linux_autoconfig_finds_a_16550a() {
    let rig = Rig::new();
    // IER keeps its four bits only.
    rig.w(1, 0);
    assert_eq!(rig.r(1), 0);
    rig.w(1, 0xff);
    assert_eq!(rig.r(1), 0x0f);
    rig.w(1, 0);
    // Loopback: OUT2 and RTS come back as DCD and CTS.
    rig.w(4, MCR_LOOP | 0x0a);
    assert_eq!(rig.r(6) & 0xf0, 0x90);
    rig.w(4, 0);
    assert_eq!(rig.r(6) & 0xf0, 0xb0);
    // FIFOs enabled show in IIR; no 16750 (bit 5), no enhanced registers.
    assert_eq!(rig.r(2), 0x01);
    rig.w(2, 0x21);
    assert_eq!(rig.r(2), 0xc1);
    rig.w(3, 0xbf);
    assert_eq!(rig.r(2), 0xc1);
    rig.w(3, 0);
    rig.w(7, 0x5a);
    assert_eq!(rig.r(7), 0x5a);
    assert_eq!(rig.r(5), 0x60);
}

#[test]
fn divisor_latch_overlays_the_first_two_registers() {
    let rig = Rig::new();
    rig.w(3, 0x83);
    rig.w(0, 0x34);
    rig.w(1, 0x12);
    assert_eq!((rig.r(0), rig.r(1)), (0x34, 0x12));
    rig.w(3, 0x03);
    assert_eq!(rig.r(1), 0, "the divisor must not have reached IER");
    assert_eq!(rig.r(3), 0x03);
    assert_eq!(lock(&rig.uart).divisor, 0x1234);
}

#[test]
fn thre_interrupt_is_reasserted_on_enabling() {
    // serial8250_do_startup's test: else Linux polls by a backup timer.
    let rig = Rig::new();
    rig.w(4, 0x08);
    for _ in 0..2 {
        rig.w(1, IER_THRE);
        assert!(rig.irq());
        assert_eq!(rig.r(2), IIR_THRE);
        assert!(!rig.irq(), "reading IIR acknowledges");
        assert_eq!(rig.r(2), IIR_NONE);
        rig.w(1, 0);
    }
}

#[test]
fn every_transmitted_byte_brings_the_thre_interrupt_back_with_an_edge() {
    let rig = Rig::new();
    rig.w(4, 0x08);
    rig.w(1, IER_THRE);
    let before = rig.irqs.edges(IRQ);
    rig.w(0, b'a');
    assert!(rig.irq());
    rig.w(0, b'b');
    assert!(rig.irq());
    assert_eq!(rig.irqs.edges(IRQ), before + 2);
    assert_eq!(rig.r(5) & 0x60, 0x60);
    assert!(rig.output.flush(Duration::from_secs(60)));
    assert_eq!(*lock(&rig.sink.0), b"ab");
}

#[test]
fn out2_gates_the_interrupt() {
    let rig = Rig::new();
    rig.w(1, IER_THRE);
    assert!(!rig.irq());
    rig.w(4, MCR_OUT2);
    assert!(rig.irq());
    rig.w(4, MCR_OUT2 | MCR_LOOP);
    assert!(!rig.irq());
}

#[test]
fn trigger_level_then_character_timeout() {
    let rig = Rig::new();
    rig.w(4, 0x08);
    rig.w(3, 0x83);
    rig.w(0, 1);
    rig.w(1, 0);
    rig.w(3, 0x03);
    rig.w(2, 0x81); // trigger at 8
    rig.w(1, IER_RDA);
    rig.input.send(b"1234567");
    assert!(!rig.irq());
    assert_eq!(rig.r(5) & LSR_DR, LSR_DR);
    // Ten bits at 115200 take 86,806 ns; four characters 347,222 ns.
    rig.pass(347_000);
    assert!(!rig.irq());
    rig.pass(1_000);
    assert!(rig.irq());
    assert_eq!(rig.r(2), 0xcc);
    assert_eq!(rig.r(2), 0xcc, "IIR does not acknowledge a timeout");
    assert_eq!(rig.r(0), b'1');
    assert!(!rig.irq(), "a read does");
    rig.input.send(b"89");
    assert_eq!(rig.r(2), 0xc4);
    assert!(rig.irq());
    assert_eq!(rig.r(0), b'2');
    assert!(!rig.irq());
}

#[test]
fn host_input_waits_and_nothing_is_lost() {
    let rig = Rig::new();
    rig.w(4, 0x08);
    rig.w(2, 0x01);
    rig.w(1, IER_RDA);
    let sent: Vec<u8> = (0..=255).cycle().take(1000).collect();
    rig.input.send(&sent);
    assert_eq!(rig.input.pending(), 1000 - 16);
    let mut got = Vec::new();
    while rig.r(5) & LSR_DR != 0 {
        assert!(rig.irq());
        got.push(rig.r(0));
        assert!(got.len() <= 1000);
    }
    assert_eq!(got, sent);
    assert!(!rig.irq());
    assert_eq!(rig.r(5) & LSR_OE, 0);
    assert_eq!(rig.r(0), 0, "an empty receiver");
}

#[test]
fn without_fifos_each_byte_is_an_edge() {
    let rig = Rig::new();
    rig.w(4, 0x08);
    rig.w(1, IER_RDA);
    rig.input.send(b"abc");
    for (count, &byte) in b"abc".iter().enumerate() {
        assert_eq!(rig.irqs.edges(IRQ), count + 1);
        assert_eq!(rig.r(2), IIR_RDA);
        assert_eq!(rig.r(0), byte);
    }
    assert!(!rig.irq());
}

#[test]
fn fifo_reset_empties_and_changing_enable_does_too() {
    let rig = Rig::new();
    rig.w(2, 0x01);
    rig.input.send(b"abc");
    rig.w(2, 0x03);
    assert_eq!(rig.r(5) & LSR_DR, 0);
    rig.input.send(b"abc");
    rig.w(2, 0x00);
    assert_eq!(rig.r(5) & LSR_DR, 0);
    assert_eq!(rig.r(2) & 0xc0, 0);
}

#[test]
fn loopback_data_overrun_and_word_length() {
    let rig = Rig::new();
    rig.w(3, 0x00); // five bits
    rig.w(4, MCR_LOOP);
    rig.w(0, 0xff);
    assert_eq!(rig.r(0), 0x1f);
    rig.w(3, 0x03);
    rig.w(0, b'x');
    rig.w(0, b'y');
    assert_eq!(rig.r(5) & (LSR_OE | LSR_DR), LSR_OE | LSR_DR);
    assert_eq!(rig.r(5) & LSR_OE, 0, "a read clears");
    assert_eq!(rig.r(0), b'y', "without FIFO the new one stays");
    rig.w(2, 0x01);
    for byte in 0..17 {
        rig.w(0, byte);
    }
    assert_eq!(rig.r(5) & LSR_OE, LSR_OE);
    let got: Vec<u8> = (0..16).map(|_| rig.r(0)).collect();
    assert_eq!(got, (0..16).collect::<Vec<u8>>(), "with FIFO the old ones stay");
    assert!(rig.output.flush(Duration::from_secs(60)));
    assert!(lock(&rig.sink.0).is_empty(), "loopback must not reach the line");
}

#[test]
fn line_status_has_priority_and_break_reaches_the_top_in_turn() {
    let rig = Rig::new();
    rig.w(4, 0x08);
    rig.w(2, 0x01);
    rig.w(1, 0x0f);
    rig.r(2);
    rig.input.send(b"a");
    rig.input.send_break();
    assert_eq!(rig.r(2), 0xc4, "the break is still behind 'a'");
    assert_eq!(rig.r(5), 0xe1, "but bit 7 tells that an error is in the FIFO");
    assert_eq!(rig.r(0), b'a');
    assert_eq!(rig.r(2), 0xc6);
    assert_eq!(rig.r(5) & (LSR_BI | LSR_FE), LSR_BI | LSR_FE);
    assert_eq!(rig.r(2), 0xc4);
    assert_eq!(rig.r(0), 0);
    assert_eq!(rig.r(5), 0x60);
}

#[test]
fn modem_deltas_interrupt_until_read() {
    let rig = Rig::new();
    rig.w(4, MCR_LOOP);
    rig.r(6);
    rig.w(1, IER_MS);
    rig.w(4, MCR_LOOP | MCR_OUT1);
    assert_eq!(rig.r(2), IIR_NONE, "a rising ring indicator is no event");
    rig.w(4, MCR_LOOP | MCR_DTR);
    assert_eq!(rig.r(2), IIR_MS);
    assert_eq!(rig.r(6), MSR_DSR | 0x02 | MSR_TERI);
    assert_eq!(rig.r(2), IIR_NONE);
    assert_eq!(rig.r(6), MSR_DSR);
}

#[test]
fn a_busy_host_shows_as_thre_low_and_comes_back() {
    struct Gate(std::sync::mpsc::Receiver<()>);
    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // Opens for good when the sender is dropped.
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (open, gate) = std::sync::mpsc::channel();
    let (irqs, timers) = (FakeIrqs::new(), TimerQueue::new());
    let output = SerialOutput::new(Box::new(Gate(gate))).expect("a thread");
    let uart = Uart::new(irqs.line(IRQ), FakeClock::new(), &timers, output.clone());
    lock(&uart).write(4, 1, 0x08);
    lock(&uart).write(1, 1, IER_THRE.into());
    let mut sent = 0;
    while lock(&uart).read(5, 1) & 0x60 != 0 {
        lock(&uart).write(0, 1, 0x55);
        sent += 1;
        assert!(sent < 1 << 20, "THRE never fell");
    }
    assert!(!irqs.level(IRQ));
    drop(open);
    assert!(output.flush(Duration::from_secs(60)));
    let start = std::time::Instant::now();
    while !irqs.level(IRQ) {
        assert!(start.elapsed() < Duration::from_secs(60), "no THRE interrupt");
        std::thread::yield_now();
    }
    assert_eq!(lock(&uart).read(5, 1), 0x60);
}

#[test]
fn input_outlives_its_uart() {
    let rig = Rig::new();
    let input = rig.input.clone();
    drop(rig);
    input.send(b"gone");
    assert_eq!(input.pending(), 0);
}

#[test]
fn random_register_traffic_is_harmless() {
    let rig = Rig::new();
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..200_000 {
        let n = random.next();
        match n & 7 {
            0..=3 => rig.w(n >> 8 & 0xf, (n >> 16) as u8),
            4 | 5 => drop(rig.r(n >> 8 & 0xf)),
            6 => rig.input.send(&[(n >> 8) as u8; 3]),
            _ => rig.pass(n >> 8 & 0xf_ffff),
        }
        let uart = lock(&rig.uart);
        assert!(uart.rx.len() <= FIFO_BYTES);
        assert_eq!(uart.line, rig.irq());
    }
}
