//! High precision event timer: a 100 MHz counter with three comparators.
//!
//! Problem: a counter that guests read often, and interrupts when it equals a comparator. Scheme: the counter is
//! computed from the clock, and a comparator's matches from the distance that the counter has gone since they were
//! last computed. With legacy replacement, timers 0 and 1 take ISA lines 0 and 8 from the 8254 and the RTC, whose
//! lines lead through a [`LegacyGate`]. Invariants: a match is at the counter's passing the comparator, so a
//! comparator behind the counter waits for the wrap, but a periodic timer's is taken for one that the host let come
//! late: time passes between two accesses of a vCPU whose thread waits for a processor, and a wrap is minutes away.
//! Every edge of a periodic timer is an interrupt, also those that a late host missed ([`IrqSink::edges`]); a periodic
//! timer wakes at most once in [`WAKE_NS_MIN`], however short its period. Lock order: this device,
//! the gate, the interrupt router. Thread: any, under the device's lock. Source: IA-PC HPET Specification 1.0a,
//! "Register Overview", "Theory of Operation".

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::{Clock, Timed, Timer, TimerQueue, WAKE_NS_MIN, lock};
use crate::irq::IrqSink;

#[cfg(test)]
mod tests;

/// Where the registers are.
pub const HPET_BASE: u64 = 0xfed0_0000;
/// Length of the register block.
pub const HPET_BYTES: u64 = 0x400;
/// Event timer block ID, also for the ACPI table: revision 1, three comparators, 64 bits, legacy
/// replacement, Intel.
pub const HPET_BLOCK_ID: u32 = 0x8086_a201;

const TIMERS: usize = 3;
const TICK_NS: u64 = 10;
const FS_PER_NS: u64 = 1_000_000;

const REG_ID: u64 = 0x000;
const REG_CONFIG: u64 = 0x010;
const REG_STATUS: u64 = 0x020;
const REG_COUNTER: u64 = 0x0f0;
const REG_TIMERS: u64 = 0x100;
const TIMER_BYTES: u64 = 0x20;
const REG_TIMER_CONFIG: u64 = 0x00;
const REG_TIMER_COMPARATOR: u64 = 0x08;

const CONFIG_ENABLE: u64 = 1 << 0;
const CONFIG_LEGACY: u64 = 1 << 1;

const TIMER_LEVEL: u64 = 1 << 1;
const TIMER_INTERRUPT: u64 = 1 << 2;
const TIMER_PERIODIC: u64 = 1 << 3;
const TIMER_SET_VALUE: u64 = 1 << 6;
const TIMER_32_BIT: u64 = 1 << 8;
const TIMER_ROUTE: u64 = 0x1f << 9;
const TIMER_WRITABLE: u64 =
    TIMER_LEVEL | TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_VALUE | TIMER_32_BIT | TIMER_ROUTE;
/// Can be periodic, is 64 bits wide, and may use I/O APIC pins 2, 8, 16-23.
const TIMER_CAPABILITIES: u64 = 1 << 4 | 1 << 5 | (ROUTES as u64) << 32;
const ROUTES: u32 = 0x00ff_0104;

/// Counts by which a busy host may have made a periodic timer's first match late, between the guest's reading the
/// counter and its writing the comparator: a second's.
const LATE_MAX: u64 = 1_000_000_000 / TICK_NS;

/// Stands between the devices that legacy replacement cuts off, the 8254 and the RTC, and the
/// interrupt router. Levels set while it is closed are passed on when it opens.
pub struct LegacyGate {
    sink: Arc<dyn IrqSink>,
    state: Mutex<Gate>,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// Lines 0 and 8.
    levels: [bool; 2],
}

const LEGACY_LINES: [u32; 2] = [0, 8];

impl fmt::Debug for LegacyGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LegacyGate").field("closed", &lock(&self.state).closed).finish()
    }
}

impl LegacyGate {
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>) -> Arc<Self> {
        Arc::new(Self { sink, state: Mutex::default() })
    }

    fn set_closed(&self, closed: bool) {
        let mut state = lock(&self.state);
        if state.closed == closed {
            return;
        }
        state.closed = closed;
        if closed {
            LEGACY_LINES.into_iter().for_each(|gsi| self.sink.forget_edges(gsi));
        }
        for (gsi, level) in LEGACY_LINES.into_iter().zip(state.levels) {
            if level {
                self.sink.set_level(gsi, !closed);
            }
        }
    }
}

impl IrqSink for LegacyGate {
    fn set_level(&self, gsi: u32, level: bool) {
        let Some(line) = LEGACY_LINES.iter().position(|&line| line == gsi) else {
            return self.sink.set_level(gsi, level);
        };
        let mut state = lock(&self.state);
        state.levels[line] = level;
        if !state.closed {
            self.sink.set_level(gsi, level);
        }
    }

    fn edges(&self, gsi: u32, count: u64) {
        let Some(line) = LEGACY_LINES.iter().position(|&line| line == gsi) else {
            return self.sink.edges(gsi, count);
        };
        let mut state = lock(&self.state);
        state.levels[line] |= count > 0;
        if !state.closed {
            self.sink.edges(gsi, count);
        }
    }

    fn forget_edges(&self, gsi: u32) {
        let state = lock(&self.state);
        if !state.closed || !LEGACY_LINES.contains(&gsi) {
            self.sink.forget_edges(gsi);
        }
    }

    fn message(&self, address: u64, data: u32) {
        self.sink.message(address, data);
    }
}

#[derive(Clone, Debug)]
struct Comparator {
    config: u64,
    value: u64,
    period: u64,
    /// Matches up to this counter value are done.
    seen: u64,
    /// The first match that was set, as long as no period was written behind it: the period is this value until then.
    first: Option<u64>,
    /// The line that this timer holds up, level-triggered.
    asserted: Option<u32>,
}

impl Comparator {
    fn new() -> Self {
        let (value, asserted) = (u64::MAX, None);
        Self { config: 0, value, period: 0, seen: 0, first: None, asserted }
    }

    fn periodic(&self) -> bool {
        self.config & TIMER_PERIODIC != 0
    }

    fn mask(&self) -> u64 {
        if self.config & TIMER_32_BIT != 0 { u32::MAX.into() } else { u64::MAX }
    }

    /// Counts from `seen` to the next match, at least 1; `None` is a whole turn of 64 bits.
    fn distance(&self) -> Option<u64> {
        match self.value.wrapping_sub(self.seen) & self.mask() {
            0 if self.mask() == u64::MAX => None,
            0 => Some(self.mask() + 1),
            counts => Some(counts),
        }
    }

    /// Sets the next match.
    fn set(&mut self, value: u64, counter: u64) {
        self.value = value;
        self.seen = counter.wrapping_sub(1);
        self.first = self.periodic().then_some(value);
        let late = counter.wrapping_sub(value) & self.mask();
        if self.periodic() && late <= LATE_MAX {
            self.seen = counter.wrapping_sub(late + 1);
        }
    }

    /// Sets the period. A first match that has come before counts in it.
    fn set_period(&mut self, period: u64, counter: u64) {
        self.period = period;
        let Some(first) = self.first.take() else { return };
        let late = counter.wrapping_sub(first) & self.mask();
        if self.value != first && period != 0 {
            let periods = late / period + 1;
            self.value = first.wrapping_add(periods.wrapping_mul(period)) & self.mask();
            self.seen = counter;
        }
    }

    /// How many matches there were on the counter's way to `counter`.
    fn advance(&mut self, counter: u64) -> u64 {
        let gone = counter.wrapping_sub(self.seen);
        let distance = self.distance();
        self.seen = counter;
        let Some(past) = distance.and_then(|distance| gone.checked_sub(distance)) else {
            return 0;
        };
        if !self.periodic() || self.period == 0 {
            return 1;
        }
        let periods = past / self.period + 1;
        let value = self.value.wrapping_add(periods.wrapping_mul(self.period));
        self.value = value & self.mask();
        periods
    }
}

/// The timer block.
pub struct Hpet {
    clock: Arc<dyn Clock>,
    timer: Timer,
    sink: Arc<dyn IrqSink>,
    gate: Arc<LegacyGate>,
    config: u64,
    status: u64,
    /// The counter at `since_ns`, or at all times while it is halted.
    counter: u64,
    since_ns: u64,
    comparators: [Comparator; TIMERS],
    woken_ns: Option<u64>,
}

impl fmt::Debug for Hpet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hpet")
            .field("config", &self.config)
            .field("comparators", &self.comparators)
            .finish_non_exhaustive()
    }
}

impl Hpet {
    /// Timers that interrupt through `sink`; `gate` is what the 8254's and the RTC's lines go
    /// through.
    pub fn new(
        clock: Arc<dyn Clock>,
        timers: &Arc<TimerQueue>,
        sink: Arc<dyn IrqSink>,
        gate: Arc<LegacyGate>,
    ) -> Arc<Mutex<Self>> {
        let timer = timers.timer();
        let hpet = Arc::new(Mutex::new(Self {
            clock,
            timer: timer.clone(),
            sink,
            gate,
            config: 0,
            status: 0,
            counter: 0,
            since_ns: 0,
            comparators: std::array::from_fn(|_| Comparator::new()),
            woken_ns: None,
        }));
        timer.attach(&hpet);
        hpet
    }

    /// Puts the registers at [`HPET_BASE`].
    ///
    /// # Errors
    /// [`Overlap`] if an address is taken.
    pub fn attach(this: &Arc<Mutex<Self>>, memory: &mut Bus) -> Result<(), Overlap> {
        memory.insert(HPET_BASE, HPET_BYTES, Arc::clone(this) as _)
    }

    /// RESET: halted at 0, lines low, the legacy devices connected.
    pub fn reset(&mut self) {
        self.status = 0;
        for n in 0..TIMERS {
            self.update_line(n);
            self.comparators[n] = Comparator::new();
        }
        self.config = 0;
        self.counter = 0;
        self.gate.set_closed(false);
        self.timer.arm(None);
    }

    fn enabled(&self) -> bool {
        self.config & CONFIG_ENABLE != 0
    }

    fn counter_at(&self, now_ns: u64) -> u64 {
        if self.enabled() {
            self.counter.wrapping_add(now_ns.saturating_sub(self.since_ns) / TICK_NS)
        } else {
            self.counter
        }
    }

    /// When the counter will have gone `counts` beyond `from`.
    fn ns_of(&self, from: u64, counts: u64) -> Option<u64> {
        let counts = from.wrapping_sub(self.counter).checked_add(counts)?;
        self.since_ns.checked_add(counts.checked_mul(TICK_NS)?)
    }

    /// The line of timer `n`, if it has one.
    fn line(&self, n: usize) -> Option<u32> {
        if self.config & CONFIG_LEGACY != 0 && n < LEGACY_LINES.len() {
            return Some(LEGACY_LINES[n]);
        }
        let route = (self.comparators[n].config & TIMER_ROUTE) >> 9;
        (u64::from(ROUTES) >> route & 1 != 0).then_some(u32::try_from(route).unwrap_or(0))
    }

    /// Sets the level that timer `n` gives its line.
    fn update_line(&mut self, n: usize) {
        let config = self.comparators[n].config;
        let wanted = config & (TIMER_LEVEL | TIMER_INTERRUPT) == TIMER_LEVEL | TIMER_INTERRUPT
            && self.status & 1 << n != 0;
        let line = if wanted { self.line(n) } else { None };
        let before = std::mem::replace(&mut self.comparators[n].asserted, line);
        if before == line {
            return;
        }
        if let Some(gsi) = before
            && self.comparators.iter().all(|other| other.asserted != before)
        {
            self.sink.set_level(gsi, false);
        }
        if let Some(gsi) = line {
            self.sink.set_level(gsi, true);
        }
    }

    /// Delivers what has matched until `now_ns`, and arms the timer for the next match.
    fn sync(&mut self, now_ns: u64) {
        if !self.enabled() {
            self.timer.arm(None);
            return;
        }
        let counter = self.counter_at(now_ns);
        let mut wake: Option<u64> = None;
        for n in 0..TIMERS {
            let matches = self.comparators[n].advance(counter);
            if matches > 0 {
                self.fire(n, matches);
            }
            let comparator = &self.comparators[n];
            if comparator.config & (TIMER_INTERRUPT | TIMER_LEVEL) == 0 {
                // Neither an interrupt nor a status bit comes of it.
                continue;
            }
            let due = comparator.distance().and_then(|counts| self.ns_of(counter, counts));
            let earliest = match self.woken_ns {
                Some(ns) if comparator.periodic() => ns.saturating_add(WAKE_NS_MIN),
                _ => 0,
            };
            if let Some(due) = due.map(|ns| ns.max(earliest)) {
                wake = Some(wake.map_or(due, |wake| wake.min(due)));
            }
        }
        self.timer.arm(wake);
    }

    /// Timer `n` has matched so many times.
    fn fire(&mut self, n: usize, matches: u64) {
        let config = self.comparators[n].config;
        if config & TIMER_LEVEL != 0 {
            self.status |= 1 << n;
            self.update_line(n);
        } else if config & TIMER_INTERRUPT != 0
            && let Some(gsi) = self.line(n)
        {
            if self.comparators[n].periodic() {
                self.sink.edges(gsi, matches);
            } else {
                self.sink.set_level(gsi, true);
            }
            self.sink.set_level(gsi, false);
        }
    }

    /// Timer `n` is programmed anew: what was missed before doesn't come any more.
    fn forget_edges(&self, n: usize) {
        if self.comparators[n].config & TIMER_LEVEL == 0
            && let Some(gsi) = self.line(n)
        {
            self.sink.forget_edges(gsi);
        }
    }

    fn write_config(&mut self, value: u64, now_ns: u64) {
        let counter = self.counter_at(now_ns);
        let starts = value & CONFIG_ENABLE != 0 && !self.enabled();
        self.config = value & (CONFIG_ENABLE | CONFIG_LEGACY);
        self.counter = counter;
        self.since_ns = now_ns;
        if starts {
            for comparator in &mut self.comparators {
                // A comparator that equals the counter matches at once.
                comparator.seen = counter.wrapping_sub(1);
            }
        }
        // A line changes hands low: whoever gives it up does so first.
        let legacy = value & CONFIG_LEGACY != 0;
        if legacy {
            self.gate.set_closed(true);
        }
        for n in 0..TIMERS {
            self.update_line(n);
        }
        if !legacy {
            self.gate.set_closed(false);
        }
    }

    /// Writes the bits `lanes` of timer `n`'s register `register`.
    fn write_timer(&mut self, n: usize, register: u64, value: u64, lanes: u64, now_ns: u64) {
        let counter = self.counter_at(now_ns);
        if matches!(register, REG_TIMER_CONFIG | REG_TIMER_COMPARATOR) {
            self.forget_edges(n);
        }
        let comparator = &mut self.comparators[n];
        match register {
            REG_TIMER_CONFIG => {
                let mut config = merge(comparator.config, value, lanes) & TIMER_WRITABLE;
                let route = (config & TIMER_ROUTE) >> 9;
                if u64::from(ROUTES) >> route & 1 == 0 {
                    // "The value read back will not match what was written."
                    config = (config & !TIMER_ROUTE) | (comparator.config & TIMER_ROUTE);
                }
                comparator.config = config;
                let mask = comparator.mask();
                comparator.value &= mask;
                comparator.period &= mask;
                if config & TIMER_LEVEL == 0 {
                    self.status &= !(1 << n);
                }
                self.update_line(n);
            }
            REG_TIMER_COMPARATOR => {
                let mask = comparator.mask();
                // "Increased by the value that was last written to the register."
                let period = merge(comparator.period, value, lanes) & mask;
                if !comparator.periodic() || comparator.config & TIMER_SET_VALUE != 0 {
                    comparator.set(merge(comparator.value, value, lanes) & mask, counter);
                    comparator.period = period;
                } else {
                    comparator.set_period(period, counter);
                }
                comparator.config &= !TIMER_SET_VALUE;
            }
            _ => {}
        }
    }

    fn read_register(&mut self, register: u64) -> u64 {
        let now_ns = self.clock.now_ns();
        match register {
            REG_ID => u64::from(HPET_BLOCK_ID) | (TICK_NS * FS_PER_NS) << 32,
            REG_CONFIG => self.config,
            REG_STATUS => {
                self.sync(now_ns);
                self.status
            }
            REG_COUNTER => self.counter_at(now_ns),
            _ => match timer_register(register) {
                Some((n, REG_TIMER_CONFIG)) => self.comparators[n].config | TIMER_CAPABILITIES,
                Some((n, REG_TIMER_COMPARATOR)) => {
                    self.sync(now_ns);
                    self.comparators[n].value
                }
                _ => 0,
            },
        }
    }
}

/// The bits `lanes` of `new`, the others of `old`.
fn merge(old: u64, new: u64, lanes: u64) -> u64 {
    (old & !lanes) | (new & lanes)
}

/// Timer and register within it of a register's offset.
fn timer_register(register: u64) -> Option<(usize, u64)> {
    let offset = register.checked_sub(REG_TIMERS)?;
    let n = usize::try_from(offset / TIMER_BYTES).ok().filter(|&n| n < TIMERS)?;
    Some((n, offset % TIMER_BYTES))
}

impl BusDevice for Hpet {
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        self.read_register(offset & !7) >> (8 * (offset & 7))
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let shift = 8 * (offset & 7);
        let lanes = (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))) << shift;
        let value = value << shift;
        let register = offset & !7;
        let now_ns = self.clock.now_ns();
        // What has matched so far did so under the old settings.
        self.sync(now_ns);
        match register {
            REG_CONFIG => self.write_config(merge(self.config, value, lanes), now_ns),
            REG_STATUS => {
                self.status &= !(value & lanes);
                for n in 0..TIMERS {
                    self.update_line(n);
                }
            }
            REG_COUNTER => {
                // The result of writing it while it runs is undefined: nothing happens.
                if !self.enabled() {
                    self.counter = merge(self.counter, value, lanes);
                }
            }
            _ => {
                if let Some((n, register)) = timer_register(register) {
                    self.write_timer(n, register, value, lanes, now_ns);
                }
            }
        }
        self.sync(now_ns);
    }

    fn width(&self) -> u8 {
        8
    }
}

impl Timed for Hpet {
    fn run(&mut self, now_ns: u64) {
        self.woken_ns = Some(now_ns);
        self.sync(now_ns);
    }
}
