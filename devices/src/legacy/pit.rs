//! 8254 programmable interval timer, and the port 0x61 that sits around its channel 2.
//!
//! Problem: three counters run on at 1.19 MHz whether anybody looks or not. Scheme: nothing counts.
//! A channel remembers at which tick it was loaded; count, OUT and the next rising edge are computed
//! from the tick of the moment. Channel 0 drives ISA line 0 from the timer queue: deadlines are whole
//! ticks since the machine's start, so no error builds up. Every period's edge is an interrupt, also
//! those that a late host missed ([`IrqSink::edges`](crate::irq::IrqSink::edges)).
//! Invariants: two timer wake-ups are at least [`WAKE_NS_MIN`] apart, however short the period that the guest asked for; a loaded count is
//! 1 to 65536. Gates 0 and 1 are tied high. Thread: any, under the device's lock.
//! Source: Intel 8254 data sheet (231164), "Programming the 8254", "Mode Definitions".

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::{Clock, Timed, Timer, TimerQueue, WAKE_NS_MIN};
use crate::irq::IrqLine;

#[cfg(test)]
mod tests;

/// Input clock: a twelfth of four times the NTSC colour carrier, as the field rounds it.
pub const PIT_HZ: u64 = 1_193_182;

const NS_PER_S: u64 = 1_000_000_000;
/// Channel 1 asks for a memory refresh each 18 ticks; port 0x61 bit 4 toggles with it.
const REFRESH_TICKS: u64 = 18;

/// Who looks so often, so many times in a row, waits for channel 2, and was held up by the host if there is such a
/// hole.
const POLL_NS: u64 = 50_000;
const POLLS: u32 = 64;
const HELD_UP_NS: u64 = 200_000;
/// Offset of port 0x61 in the device; 0-3 are ports 0x40-0x43.
const OFFSET_0X61: u64 = 4;

/// The tick that time `ns` is in.
fn tick_at(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(PIT_HZ) / u128::from(NS_PER_S)).unwrap_or(u64::MAX)
}

/// When tick `tick` begins, rounded up: `tick_at` of it is `tick`.
fn ns_of(tick: u64) -> u64 {
    let ns = (u128::from(tick) * u128::from(NS_PER_S)).div_ceil(u128::from(PIT_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[derive(Clone, Debug)]
struct Channel {
    /// 0-5.
    mode: u8,
    bcd: bool,
    /// Control word bits 4-5: 1 low byte, 2 high byte, 3 both.
    access: u8,
    /// Counts per period, 1-65536.
    reload: u64,
    /// The tick at which `reload` was (or will be) loaded; `None` while waiting for it or a trigger.
    start: Option<u64>,
    /// Ticks counted when the gate stopped the counter.
    paused: Option<u64>,
    /// Modes 2 and 3: count that takes over at this tick, the end of a period.
    next: Option<(u64, u64)>,
    /// Modes 1 and 5: count that the next trigger loads.
    triggered: Option<u64>,
    gate: bool,
    low_byte: Option<u8>,
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: 3,
            reload: 0x1_0000,
            start: None,
            paused: None,
            next: None,
            triggered: None,
            gate,
            low_byte: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Ticks counted since the load.
    fn elapsed(&self, tick: u64) -> Option<u64> {
        let start = self.start?;
        Some(self.paused.unwrap_or(tick.saturating_sub(start)))
    }

    /// Lets a waiting count take over if its period has begun.
    fn settle(&mut self, tick: u64) {
        if let Some((reload, at)) = self.next
            && self.paused.is_none()
            && tick >= at
        {
            self.next = None;
            self.reload = reload;
            self.start = Some(at);
        }
    }

    /// OUT at `tick`, settled.
    fn out(&self, tick: u64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else { return self.mode != 0 };
        let loaded = self.start.is_some_and(|start| tick >= start);
        match self.mode {
            0 => loaded && elapsed >= self.reload,
            1 => !loaded || elapsed >= self.reload,
            2 => self.paused.is_some() || elapsed % self.reload != self.reload - 1,
            3 => self.paused.is_some() || elapsed % self.reload < self.reload.div_ceil(2),
            _ => !loaded || elapsed != self.reload,
        }
    }

    /// The first tick after `tick` at which OUT rises, settled.
    fn next_rise(&self, tick: u64) -> Option<u64> {
        let start = self.start?;
        if self.paused.is_some() {
            return None;
        }
        let rise = match self.mode {
            2 | 3 => match self.next {
                Some((_, at)) => at,
                None => {
                    let periods = tick.saturating_sub(start) / self.reload + 1;
                    start.saturating_add(periods.saturating_mul(self.reload))
                }
            },
            0 | 1 => start + self.reload,
            _ => start + self.reload + 1,
        };
        (rise > tick).then_some(rise)
    }

    /// How often OUT rose after `from`, up to and including `to`; settles.
    fn rises(&mut self, mut from: u64, to: u64) -> u64 {
        let mut rises = 0;
        if let Some((_, at)) = self.next
            && at <= to
            && self.paused.is_none()
        {
            rises += self.rises_unsettled(from, at);
            from = at;
            self.settle(to);
        }
        rises + self.rises_unsettled(from, to)
    }

    fn rises_unsettled(&self, from: u64, to: u64) -> u64 {
        let (Some(start), None) = (self.start, self.paused) else { return 0 };
        if self.periodic() {
            let periods = |tick: u64| tick.saturating_sub(start) / self.reload;
            periods(to).saturating_sub(periods(from))
        } else {
            u64::from(self.next_rise(from).is_some_and(|rise| rise <= to))
        }
    }

    /// The counting element as the data port shows it.
    fn count(&self, tick: u64) -> u16 {
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let elapsed = self.elapsed(tick).unwrap_or(0);
        let value = match self.mode {
            2 => self.reload - elapsed % self.reload,
            3 => {
                let at = elapsed % self.reload;
                let high = self.reload.div_ceil(2);
                let into = if at < high { at } else { at - high };
                (self.reload & !1).saturating_sub(2 * into)
            }
            _ => (self.reload + modulus - elapsed % modulus) % modulus,
        } % modulus;
        let value = u16::try_from(value).unwrap_or(0);
        if self.bcd {
            (value / 1000 % 10) << 12
                | (value / 100 % 10) << 8
                | (value / 10 % 10) << 4
                | (value % 10)
        } else {
            value
        }
    }

    /// Status byte: bit 6 says that the last count written can't be read yet.
    fn status(&self, tick: u64) -> u8 {
        let null = self.next.is_some()
            || self.triggered.is_some()
            || self.start.is_none_or(|start| tick < start);
        u8::from(self.out(tick)) << 7
            | u8::from(null) << 6
            | self.access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn control(&mut self, value: u8) {
        let mode = (value >> 1) & 7;
        *self = Self {
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: value & 1 != 0,
            access: (value >> 4) & 3,
            reload: self.reload,
            ..Self::new(self.gate)
        };
    }

    fn latch(&mut self, tick: u64, count: bool, status: bool) {
        if count && self.latched_count.is_none() {
            self.latched_count = Some(self.count(tick));
        }
        if status && self.latched_status.is_none() {
            self.latched_status = Some(self.status(tick));
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(tick)).to_le_bytes();
        let (byte, done) = match self.access {
            1 => (low, true),
            2 => (high, true),
            _ => {
                self.high_next = !self.high_next;
                if self.high_next { (low, false) } else { (high, true) }
            }
        };
        if done {
            self.latched_count = None;
        }
        byte
    }

    fn write(&mut self, tick: u64, value: u8) {
        match (self.access, self.low_byte.take()) {
            (1, _) => self.load(tick, u16::from(value)),
            (2, _) => self.load(tick, u16::from(value) << 8),
            (_, Some(low)) => self.load(tick, u16::from_le_bytes([low, value])),
            (_, None) => {
                self.low_byte = Some(value);
                if self.mode == 0 {
                    // "Writing the first byte disables counting. OUT is set low immediately."
                    self.start = None;
                    self.paused = None;
                }
            }
        }
    }

    /// A whole count was written.
    fn load(&mut self, tick: u64, value: u16) {
        let digits = u64::from(value);
        let count = if self.bcd {
            (digits >> 12) * 1000
                + (digits >> 8 & 15) * 100
                + (digits >> 4 & 15) * 10
                + (digits & 15)
        } else {
            digits
        };
        let max = if self.bcd { 10_000 } else { 0x1_0000 };
        let count = if count == 0 { max } else { count };
        match (self.mode, self.start) {
            (1 | 5, _) => self.triggered = Some(count),
            (2 | 3, Some(start)) if self.paused.is_none() && tick >= start => {
                let periods = (tick - start) / self.reload + 1;
                self.next = Some((count, start + periods * self.reload));
            }
            _ => {
                self.reload = count;
                self.next = None;
                // The next clock pulse loads it.
                self.start = Some(tick + 1);
                self.paused = (!self.gate).then_some(0);
            }
        }
    }

    fn set_gate(&mut self, tick: u64, level: bool) {
        if level == self.gate {
            return;
        }
        self.settle(tick);
        self.gate = level;
        match (self.mode, level) {
            (1 | 5, true) => {
                if let Some(count) = self.triggered.take() {
                    self.reload = count;
                    self.start = Some(tick + 1);
                } else if self.start.is_some() {
                    self.start = Some(tick + 1);
                }
            }
            (1 | 5, false) => {}
            (_, false) => self.paused = self.elapsed(tick),
            (2 | 3, true) => {
                if let Some((count, _)) = self.next.take() {
                    self.reload = count;
                }
                if self.start.is_some() {
                    self.start = Some(tick + 1);
                }
                self.paused = None;
            }
            (_, true) => {
                if let Some(elapsed) = self.paused.take() {
                    self.start = Some(tick.saturating_sub(elapsed));
                }
            }
        }
    }
}

/// The timer.
pub struct Pit {
    clock: Arc<dyn Clock>,
    timer: Timer,
    irq: IrqLine,
    channels: [Channel; 3],
    /// Edges of channel 0 up to this tick are delivered.
    seen_tick: u64,
    woken_ns: Option<u64>,
    /// Port 0x61 bits 0-3 as written: gate 2, speaker, and two enables of parity checks.
    port_0x61: u8,
    /// When port 0x61 was last read, and how often in a row by one who waits for channel 2.
    looked_ns: u64,
    polls: u32,
}

impl fmt::Debug for Pit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pit").field("channels", &self.channels).finish_non_exhaustive()
    }
}

impl Pit {
    /// Channel 2's output, as port 0x61 shows it. Systems measure their processor's clock by looking until it is high,
    /// and take the time before the last look. Had the host held the processor up between the last two, that would
    /// be too short, and the shortest of several measurements is what counts (Linux: clocks at a multiple of
    /// their speed). So after such a hole it is high one look later, which makes that measurement too long.
    fn look_at_out_2(&mut self, now_ns: u64, tick: u64) -> bool {
        let since_ns = now_ns.saturating_sub(std::mem::replace(&mut self.looked_ns, now_ns));
        let held_up = self.polls >= POLLS && since_ns > HELD_UP_NS;
        let out = self.channels[2].out(tick) && !held_up;
        self.polls = if out || since_ns > POLL_NS { 0 } else { self.polls.saturating_add(1) };
        out
    }

    /// A timer that raises `irq` (ISA line 0) from `timers`.
    pub fn new(clock: Arc<dyn Clock>, timers: &Arc<TimerQueue>, irq: IrqLine) -> Arc<Mutex<Self>> {
        let timer = timers.timer();
        let pit = Arc::new(Mutex::new(Self {
            clock,
            timer: timer.clone(),
            irq,
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            seen_tick: 0,
            woken_ns: None,
            port_0x61: 0,
            looked_ns: 0,
            polls: 0,
        }));
        timer.attach(&pit);
        pit
    }

    /// Puts the timer at its ports.
    ///
    /// # Errors
    /// [`Overlap`] if one of them is taken.
    pub fn attach(this: &Arc<Mutex<Self>>, ports: &mut Bus) -> Result<(), Overlap> {
        ports.insert(0x40, 4, Arc::clone(this) as _)?;
        ports.insert_at(0x61, 1, OFFSET_0X61, Arc::clone(this) as _)
    }

    /// Power-on state: no channel counts.
    pub fn reset(&mut self) {
        self.channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        self.port_0x61 = 0;
        self.irq.forget_edges();
        self.irq.set(false);
        self.timer.arm(None);
    }

    /// What SeaBIOS leaves: channel 0 at 18.2 Hz, channel 1 as if for refresh.
    pub fn firmware_defaults(&mut self) {
        for (offset, value) in [(3, 0x34), (0, 0), (0, 0), (3, 0x54), (1, 18)] {
            self.write(offset, 1, value);
        }
    }

    /// Brings line 0 up to `now_ns` and arms the timer for what comes next.
    fn sync(&mut self, now_ns: u64) {
        let tick = tick_at(now_ns);
        let rises = self.channels[0].rises(self.seen_tick, tick);
        self.seen_tick = tick;
        let channel = &self.channels[0];
        if channel.periodic() {
            self.irq.edges(rises);
        } else if rises > 0 {
            self.irq.set(false);
            self.irq.set(true);
        }
        self.irq.set(channel.out(tick));
        let next = channel.next_rise(tick).map(ns_of);
        let earliest = self.woken_ns.map_or(0, |ns| ns.saturating_add(WAKE_NS_MIN));
        self.timer.arm(next.map(|ns| ns.max(earliest)));
    }

    fn control(&mut self, tick: u64, value: u8) {
        let select = usize::from(value >> 6);
        if select == 3 {
            // Read-back: the bits are active low.
            for (n, channel) in self.channels.iter_mut().enumerate() {
                if value & (2 << n) != 0 {
                    channel.latch(tick, value & 0x20 == 0, value & 0x10 == 0);
                }
            }
        } else if value & 0x30 == 0 {
            self.channels[select].latch(tick, true, false);
        } else {
            self.channels[select].control(value);
            if select == 0 {
                self.irq.forget_edges();
            }
        }
    }
}

impl BusDevice for Pit {
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        let now_ns = self.clock.now_ns();
        let tick = tick_at(now_ns);
        match offset {
            0 => {
                self.sync(now_ns);
                self.channels[0].read(tick).into()
            }
            1 | 2 => {
                let channel = &mut self.channels[if offset == 1 { 1 } else { 2 }];
                channel.settle(tick);
                channel.read(tick).into()
            }
            OFFSET_0X61 => {
                self.channels[2].settle(tick);
                let refresh = u8::from((tick / REFRESH_TICKS) & 1 != 0);
                let out = u8::from(self.look_at_out_2(now_ns, tick));
                (self.port_0x61 | refresh << 4 | out << 5).into()
            }
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u64, _: u8, value: u64) {
        let value = value.to_le_bytes()[0];
        let now_ns = self.clock.now_ns();
        let tick = tick_at(now_ns);
        for channel in &mut self.channels[1..] {
            channel.settle(tick);
        }
        self.sync(now_ns);
        match offset {
            0..=2 => self.channels[if offset > 1 { 2 } else { usize::from(offset == 1) }]
                .write(tick, value),
            3 => self.control(tick, value),
            OFFSET_0X61 => {
                self.port_0x61 = value & 0x0f;
                self.channels[2].set_gate(tick, value & 1 != 0);
            }
            _ => {}
        }
        if matches!(offset, 0 | 3) {
            self.sync(now_ns);
        }
    }
}

impl Timed for Pit {
    fn run(&mut self, now_ns: u64) {
        self.woken_ns = Some(now_ns);
        self.sync(now_ns);
    }
}
