//! NS16550A serial port.
//!
//! Problem: the first thing that a guest talks to, probed by drivers in every corner, and the console
//! of most tests. Scheme: registers and both FIFOs as in the datasheet; the line's far end is
//! [`SerialOutput`] and [`SerialInput`]. The transmitter takes no time: a byte written to THR is gone
//! at once and the THRE interrupt is back, unless the host is far behind (then THRE stays low until
//! there is room, and a guest that writes nevertheless loses nothing). Host input waits in a queue
//! outside, and enters the receive FIFO as the guest makes room: no overrun is possible but in loopback.
//! Bytes that the guest throws away (FIFO reset, reads before its driver is up) are gone, as on a wire.
//! Invariants: the interrupt line is the function of state in `update`, gated by MCR.OUT2 as on the
//! PC; every cause that begins anew gives a rising edge, also if another one was still pending before.
//! Threads: vCPUs, the timer thread (character timeout), the writer, whoever sends input; each under
//! the device's mutex. Source: National PC16550D datasheet (TL/C/8652), section 8 "Registers".

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use super::serial_io::SerialOutput;
use crate::bus::BusDevice;
use crate::clock::{Clock, Timed, Timer, TimerQueue, lock};
use crate::irq::IrqLine;

/// Ports of the four PC serial lines, with their interrupt lines.
pub const COM: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
/// Ports that a UART takes.
pub const PORTS: u64 = 8;

const FIFO_BYTES: usize = 16;
/// The crystal, divided by 16: the baud rate at divisor 1.
const BASE_BAUD: u64 = 115_200;

const IER_RDA: u8 = 1 << 0;
const IER_THRE: u8 = 1 << 1;
const IER_RLS: u8 = 1 << 2;
const IER_MS: u8 = 1 << 3;

const IIR_NONE: u8 = 0x01;
const IIR_MS: u8 = 0x00;
const IIR_THRE: u8 = 0x02;
const IIR_RDA: u8 = 0x04;
const IIR_RLS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;

const LCR_STOP: u8 = 1 << 2;
const LCR_PARITY: u8 = 1 << 3;
const LCR_BREAK: u8 = 1 << 6;
const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

const LSR_DR: u8 = 1 << 0;
const LSR_OE: u8 = 1 << 1;
const LSR_FE: u8 = 1 << 3;
const LSR_BI: u8 = 1 << 4;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;
const LSR_FIFO_ERROR: u8 = 1 << 7;
/// The bits that a read of LSR clears and that raise the line status interrupt.
const LSR_ERRORS: u8 = 0x1e;

const MSR_TERI: u8 = 1 << 2;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
const MSR_DELTAS: u8 = 0x0f;
/// What the far end of the cable asserts: someone is there, and ready.
const MSR_FAR_END: u8 = MSR_DCD | MSR_DSR | MSR_CTS;

/// What the host's side sends, before it enters the receive FIFO.
#[derive(Clone, Copy, Debug)]
enum Incoming {
    Byte(u8),
    Break,
}

type InputQueue = Arc<Mutex<VecDeque<Incoming>>>;

/// The host's end of the receive line. Cheap to clone; outlives its UART (then it swallows).
///
/// Policy: [`SerialInput::send`] never waits and never loses, so the queue has no bound of its own: its
/// size is what the host program chose to send. Who copies from an endless source looks at
/// [`SerialInput::pending`] before reading on.
#[derive(Clone)]
pub struct SerialInput {
    queue: InputQueue,
    uart: Weak<Mutex<Uart>>,
}

impl fmt::Debug for SerialInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialInput").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

impl SerialInput {
    /// Sends bytes to the guest, after all that was sent before.
    pub fn send(&self, bytes: &[u8]) {
        lock(&self.queue).extend(bytes.iter().copied().map(Incoming::Byte));
        self.wake();
    }

    /// Sends a break condition (Linux: SysRq on a console).
    pub fn send_break(&self) {
        lock(&self.queue).push_back(Incoming::Break);
        self.wake();
    }

    /// Bytes that have not yet entered the guest's receive FIFO.
    #[must_use]
    pub fn pending(&self) -> usize {
        lock(&self.queue).len()
    }

    fn wake(&self) {
        match self.uart.upgrade() {
            Some(uart) => lock(&uart).input_arrived(),
            None => lock(&self.queue).clear(),
        }
    }
}

/// A received character with its LSR error bits.
type Received = (u8, u8);

/// One serial port: 8 byte-wide registers.
pub struct Uart {
    ier: u8,
    /// FCR bits that stay: enable and trigger level.
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: u16,
    /// Error bits of LSR: of the character on top of the FIFO once it got there, and overrun.
    errors: u8,
    /// MSR as last shown: lines, and deltas since the last read.
    msr: u8,
    rx: VecDeque<Received>,
    /// The THRE interrupt: set when THR empties or the interrupt gets enabled while it is empty,
    /// cleared by a write to THR and by the IIR read that reports it.
    thre_pending: bool,
    timeout_pending: bool,
    /// When the character timeout comes; four character times after the last FIFO movement.
    timeout_ns: Option<u64>,
    /// The host is behind: THR is not empty.
    busy: bool,
    line: bool,
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    timer: Timer,
    output: SerialOutput,
    input: InputQueue,
}

impl fmt::Debug for Uart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart")
            .field("ier", &self.ier)
            .field("fcr", &self.fcr)
            .field("lcr", &self.lcr)
            .field("mcr", &self.mcr)
            .field("divisor", &self.divisor)
            .field("received", &self.rx.len())
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

impl Drop for Uart {
    fn drop(&mut self) {
        self.output.close();
    }
}

impl Uart {
    /// A port after reset. Keep a clone of `output` to finish it before the process ends.
    #[must_use]
    pub fn new(
        irq: IrqLine,
        clock: Arc<dyn Clock>,
        timers: &Arc<TimerQueue>,
        output: SerialOutput,
    ) -> Arc<Mutex<Self>> {
        let timer = timers.timer();
        let uart = Arc::new(Mutex::new(Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            divisor: 12,
            errors: 0,
            msr: MSR_FAR_END,
            rx: VecDeque::with_capacity(FIFO_BYTES),
            thre_pending: false,
            timeout_pending: false,
            timeout_ns: None,
            busy: false,
            line: false,
            irq,
            clock,
            timer: timer.clone(),
            output: output.clone(),
            input: InputQueue::default(),
        }));
        timer.attach(&uart);
        let weak = Arc::downgrade(&uart);
        output.on_room(Box::new(move || {
            if let Some(uart) = weak.upgrade() {
                lock(&uart).transmitter_empties();
            }
        }));
        uart
    }

    /// The host's end of `uart`'s receive line.
    #[must_use]
    pub fn input(uart: &Arc<Mutex<Self>>) -> SerialInput {
        SerialInput { queue: Arc::clone(&lock(uart).input), uart: Arc::downgrade(uart) }
    }

    /// The MR (master reset) pin. What the host has sent stays queued; the divisor keeps its value.
    pub fn reset(&mut self) {
        (self.ier, self.fcr, self.lcr, self.mcr) = (0, 0, 0, 0);
        self.errors = 0;
        self.thre_pending = false;
        self.clear_receiver();
        self.msr = MSR_FAR_END;
        self.update();
    }

    fn fifos(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn thr_empty(&self) -> bool {
        !self.busy || self.loopback()
    }

    fn capacity(&self) -> usize {
        if self.fifos() { FIFO_BYTES } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifos(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Duration of one character at the programmed rate and format.
    fn character_ns(&self) -> u64 {
        let data = 5 + u64::from(self.lcr & 3);
        let parity = u64::from(self.lcr & LCR_PARITY != 0);
        let stop = 1 + u64::from(self.lcr & LCR_STOP != 0);
        // A divisor of 0 stops a real chip's clock; here it counts as the slowest.
        let divisor = if self.divisor == 0 { 0x1_0000 } else { u64::from(self.divisor) };
        (1 + data + parity + stop) * divisor * 1_000_000_000 / BASE_BAUD
    }

    fn lsr(&self) -> u8 {
        let mut value = self.errors;
        if !self.rx.is_empty() {
            value |= LSR_DR;
        }
        if self.thr_empty() {
            value |= LSR_THRE | LSR_TEMT;
        }
        if self.fifos() && (value & LSR_ERRORS & !LSR_OE != 0 || self.rx.iter().any(|c| c.1 != 0)) {
            value |= LSR_FIFO_ERROR;
        }
        value
    }

    /// The pending interrupt of highest priority, as IIR's low bits.
    fn cause(&self) -> u8 {
        if self.ier & IER_RLS != 0 && self.errors & LSR_ERRORS != 0 {
            IIR_RLS
        } else if self.ier & IER_RDA != 0 && self.rx.len() >= self.trigger() {
            IIR_RDA
        } else if self.ier & IER_RDA != 0 && self.timeout_pending {
            IIR_TIMEOUT
        } else if self.ier & IER_THRE != 0 && self.thre_pending {
            IIR_THRE
        } else if self.ier & IER_MS != 0 && self.msr & MSR_DELTAS != 0 {
            IIR_MS
        } else {
            IIR_NONE
        }
    }

    /// Drives the interrupt line. On the PC, OUT2 gates it, and loopback disconnects OUT2.
    fn update(&mut self) {
        let gate = self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        let level = gate && self.cause() != IIR_NONE;
        if level != self.line {
            self.line = level;
            self.irq.set(level);
        }
    }

    /// Lines as the modem (or the loopback) drives them, with deltas against the last state.
    fn update_modem_lines(&mut self) {
        let lines = if self.loopback() {
            let bit = |mask, line| if self.mcr & mask != 0 { line } else { 0 };
            bit(MCR_DTR, MSR_DSR)
                | bit(MCR_RTS, MSR_CTS)
                | bit(MCR_OUT1, MSR_RI)
                | bit(MCR_OUT2, MSR_DCD)
        } else {
            MSR_FAR_END
        };
        let changed = (lines ^ self.msr) >> 4;
        // The ring indicator's delta is its trailing edge only.
        let ring_ended = self.msr & !lines & MSR_RI != 0;
        let deltas = changed & !MSR_TERI | if ring_ended { MSR_TERI } else { 0 };
        self.msr = lines | self.msr & MSR_DELTAS | deltas;
    }

    /// A character reaches the receiver.
    fn receive(&mut self, character: Received) {
        if self.rx.len() >= self.capacity() {
            // FIFO: the new one is lost. Without: it replaces the unread one.
            self.errors |= LSR_OE;
            if !self.fifos() {
                self.rx.clear();
            }
        }
        if self.rx.len() < self.capacity() {
            if self.rx.is_empty() {
                self.errors |= character.1;
            }
            self.rx.push_back(character);
        }
        self.restart_timeout();
    }

    fn restart_timeout(&mut self) {
        let running = self.fifos() && !self.rx.is_empty() && !self.timeout_pending;
        let deadline_ns =
            running.then(|| self.clock.now_ns().saturating_add(4 * self.character_ns()));
        if deadline_ns.is_some() || self.timeout_ns.is_some() {
            self.timeout_ns = deadline_ns;
            self.timer.arm(deadline_ns);
        }
    }

    fn clear_receiver(&mut self) {
        self.rx.clear();
        self.timeout_pending = false;
        self.restart_timeout();
    }

    /// Moves queued host input into the receiver while there is room.
    fn pull_input(&mut self) {
        if self.loopback() {
            return;
        }
        let room = self.capacity().saturating_sub(self.rx.len());
        if room == 0 {
            return;
        }
        let arrived: Vec<Incoming> = {
            let mut queue = lock(&self.input);
            let count = room.min(queue.len());
            queue.drain(..count).collect()
        };
        for item in arrived {
            self.receive(match item {
                Incoming::Byte(byte) => (byte, 0),
                Incoming::Break => (0, LSR_BI | LSR_FE),
            });
        }
    }

    fn input_arrived(&mut self) {
        self.pull_input();
        self.update();
    }

    /// THR has emptied by itself, after the host was behind.
    fn transmitter_empties(&mut self) {
        if self.busy {
            self.busy = false;
            self.thre_pending = true;
            self.update();
        }
    }

    fn read_rbr(&mut self) -> u8 {
        let Some((byte, _)) = self.rx.pop_front() else { return 0 };
        if let Some(&(_, errors)) = self.rx.front() {
            self.errors |= errors;
        }
        self.timeout_pending = false;
        self.restart_timeout();
        // The fall below the trigger level is shown before the next characters arrive.
        self.update();
        self.pull_input();
        self.update();
        byte
    }

    fn write_thr(&mut self, byte: u8) {
        // A write ends the interrupt, the byte's departure begins a new one: a falling and a rising edge.
        self.thre_pending = false;
        self.update();
        if self.loopback() {
            let mask = 0x1f | 0x1f << (self.lcr & 3);
            self.receive((byte & mask, 0));
        } else {
            self.busy = self.output.push(byte);
        }
        self.thre_pending = self.thr_empty();
        self.update();
    }

    fn write_ier(&mut self, value: u8) {
        let value = value & 0x0f;
        if value & !self.ier & IER_THRE != 0 && self.thr_empty() {
            self.thre_pending = true;
        }
        self.ier = value;
        self.update();
    }

    fn write_fcr(&mut self, value: u8) {
        let enable = value & FCR_ENABLE;
        if (value ^ self.fcr) & FCR_ENABLE != 0 || enable != 0 && value & FCR_CLEAR_RX != 0 {
            // (The transmit FIFO has nothing to clear: bytes leave as they come.)
            self.clear_receiver();
        }
        // Other bits are only taken together with the enable bit.
        self.fcr = if enable != 0 { value & 0xc1 } else { 0 };
        self.update();
        self.pull_input();
        self.update();
    }

    fn write_lcr(&mut self, value: u8) {
        let begins = value & !self.lcr & LCR_BREAK != 0;
        self.lcr = value;
        if begins && self.loopback() {
            self.receive((0, LSR_BI | LSR_FE));
            self.update();
        }
    }

    fn write_mcr(&mut self, value: u8) {
        self.mcr = value & 0x1f;
        self.update_modem_lines();
        self.pull_input();
        self.update();
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_THRE {
            self.thre_pending = false;
            self.update();
        }
        cause | if self.fifos() { IIR_FIFOS } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let value = self.lsr();
        self.errors = 0;
        if let Some(top) = self.rx.front_mut() {
            top.1 = 0;
        }
        self.update();
        value
    }

    fn read_msr(&mut self) -> u8 {
        let value = self.msr;
        self.msr &= !MSR_DELTAS;
        self.update();
        value
    }
}

impl BusDevice for Uart {
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        let dlab = self.lcr & LCR_DLAB != 0;
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        u64::from(match offset {
            0 if dlab => divisor_low,
            0 => self.read_rbr(),
            1 if dlab => divisor_high,
            1 => self.ier,
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.read_lsr(),
            6 => self.read_msr(),
            7 => self.scr,
            _ => 0xff,
        })
    }

    fn write(&mut self, offset: u64, _: u8, value: u64) {
        let value = (value & 0xff) as u8;
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset {
            0 if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.write_thr(value),
            1 if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            1 => self.write_ier(value),
            2 => self.write_fcr(value),
            3 => self.write_lcr(value),
            4 => self.write_mcr(value),
            7 => self.scr = value,
            // LSR and MSR are for reading (their write is the factory's test mode).
            _ => {}
        }
    }
}

impl Timed for Uart {
    fn run(&mut self, now_ns: u64) {
        match self.timeout_ns {
            Some(deadline_ns) if deadline_ns <= now_ns => {
                self.timeout_ns = None;
                self.timeout_pending = self.fifos() && !self.rx.is_empty();
                self.update();
            }
            deadline_ns => self.timer.arm(deadline_ns),
        }
    }
}

#[cfg(test)]
mod tests;
