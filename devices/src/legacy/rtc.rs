//! MC146818 real-time clock with its CMOS memory, ports 0x70 and 0x71.
//!
//! Problem: a calendar that the guest may read, set, freeze and get interrupts from, at no cost while
//! nobody looks. Scheme: the clock is a distance from [`Clock`]; registers are computed when read, and
//! flags when register C is read or an enabled interrupt's time comes. Setting the time shifts the
//! distance. Invariants: years 0 to 9999, whatever is written; `events_ns` never passes the clock;
//! IRQ 8 is high exactly while register C bit 7 would read as one. Periodic interrupts that came while register C
//! was yet to be read for the last are owed, a few at most: systems that count them would fall behind on a busy host. The divider's phase belongs to the
//! calendar: periodic interrupts keep step with seconds. Thread: any, under the device's lock.
//! Source: Motorola MC146818A data sheet, "Address Map", "Update Cycle", "Interrupts".

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::{Clock, Timed, Timer, TimerQueue};
use crate::irq::IrqLine;

mod calendar;
#[cfg(test)]
mod tests;

use calendar::{Fields, SECONDS_PER_DAY, days_from_date};

const NS_PER_S: u64 = 1_000_000_000;
/// The oscillator that the divider starts from.
const CRYSTAL_HZ: u64 = 32_768;
/// "UIP goes high 244 us before the update cycle begins"; the update itself takes no time here.
const UIP_NS: u64 = 8 * NS_PER_S / CRYSTAL_HZ;

const REG_SECONDS: u8 = 0;
const REG_SECONDS_ALARM: u8 = 1;
const REG_MINUTES: u8 = 2;
const REG_MINUTES_ALARM: u8 = 3;
const REG_HOURS: u8 = 4;
const REG_HOURS_ALARM: u8 = 5;
const REG_WEEKDAY: u8 = 6;
const REG_DAY: u8 = 7;
const REG_MONTH: u8 = 8;
const REG_YEAR: u8 = 9;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
/// Where PC firmware and the FADT say that the century is.
pub const REG_CENTURY: u8 = 0x32;

const A_UIP: u8 = 0x80;
/// Divider bits for a 32.768 kHz crystal, running.
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_RUNS: u8 = 0x20;

const B_SET: u8 = 0x80;
const B_PIE: u8 = 0x40;
const B_AIE: u8 = 0x20;
const B_UIE: u8 = 0x10;
const B_SQWE: u8 = 0x08;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;

const C_IRQF: u8 = 0x80;
const C_PF: u8 = 0x40;
const C_AF: u8 = 0x20;
const C_UF: u8 = 0x10;

/// RAM and time are valid.
const D_VRT: u8 = 0x80;

/// Periodic interrupts that are made up for at most; more would be a storm after a host's sleep.
const OWED_MAX: u64 = 16;

/// Alarm bytes from here on match anything.
const ALARM_ANY: u8 = 0xc0;

/// What the battery keeps while everything else is reset: memory and time.
#[derive(Clone, Debug)]
pub struct Battery {
    cmos: [u8; 128],
    /// How far the guest has set the clock from the computer's.
    shift_ns: i128,
    weekday_shift: u8,
    frozen: Option<Fields>,
}

/// Seconds since 1970, within what the calendar can show, and nanoseconds into the second.
fn in_seconds(unix_ns: i128) -> (i64, u64) {
    let second = i128::from(NS_PER_S);
    let seconds = i64::try_from(unix_ns.div_euclid(second)).unwrap_or(i64::MAX);
    (calendar::clamp(seconds), unix_ns.rem_euclid(second) as u64)
}

/// The clock.
pub struct Rtc {
    clock: Arc<dyn Clock>,
    timer: Timer,
    irq: IrqLine,
    /// Who else is to know that an alarm interrupts.
    on_alarm: Option<Box<dyn Fn() + Send>>,
    /// The alarm's interrupt is asserted, and that was told.
    alarms: bool,
    /// Last write to port 0x70: register in bits 0-6, NMI mask in bit 7.
    index: u8,
    /// Everything that isn't computed.
    cmos: [u8; 128],
    /// Seconds since 1970 at `phase_ns` before the machine's start.
    base_s: i64,
    phase_ns: u64,
    /// Days to add to the weekday that the date has.
    weekday_shift: u8,
    /// Time registers while the calendar stands still.
    frozen: Option<Fields>,
    /// Flags are computed up to here.
    events_ns: u64,
    flags: u8,
    /// Periodic interrupts that are yet to come besides the one that `flags` tells of.
    owed: u64,
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc")
            .field("index", &self.index)
            .field("a", &self.cmos[usize::from(REG_A)])
            .field("b", &self.cmos[usize::from(REG_B)])
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

impl Rtc {
    /// A clock that raises `irq` (ISA line 8) from `timers`, set to the machine's start time.
    pub fn new(clock: Arc<dyn Clock>, timers: &Arc<TimerQueue>, irq: IrqLine) -> Arc<Mutex<Self>> {
        let timer = timers.timer();
        let (base_s, phase_ns) = in_seconds(clock.start_unix_ns().into());
        let mut cmos = [0; 128];
        cmos[usize::from(REG_A)] = A_DIVIDER_RUNS | 6;
        cmos[usize::from(REG_B)] = B_24H;
        cmos[usize::from(REG_D)] = D_VRT;
        let rtc = Arc::new(Mutex::new(Self {
            base_s,
            clock,
            timer: timer.clone(),
            irq,
            on_alarm: None,
            alarms: false,
            index: 0,
            cmos,
            phase_ns,
            weekday_shift: 0,
            frozen: None,
            events_ns: 0,
            flags: 0,
            owed: 0,
        }));
        timer.attach(&rtc);
        rtc
    }

    /// Puts the clock at its ports.
    ///
    /// # Errors
    /// [`Overlap`] if one of them is taken.
    pub fn attach(this: &Arc<Mutex<Self>>, ports: &mut Bus) -> Result<(), Overlap> {
        ports.insert(0x70, 2, Arc::clone(this) as _)
    }

    /// Calls `tell` whenever an alarm's interrupt begins, under the clock's lock.
    pub fn set_alarm_event(&mut self, tell: impl Fn() + Send + 'static) {
        self.on_alarm = Some(Box::new(tell));
    }

    /// RESET: interrupts off, flags clear. Time and memory live on, as they have a battery.
    pub fn reset(&mut self) {
        self.cmos[usize::from(REG_B)] &= !(B_PIE | B_AIE | B_UIE | B_SQWE);
        self.flags = 0;
        self.owed = 0;
        self.index = 0;
        self.sync(self.clock.now_ns());
    }

    /// What lives on when this board goes.
    #[must_use]
    pub fn battery(&self) -> Battery {
        let start_ns = i128::from(self.base_s) * i128::from(NS_PER_S) + i128::from(self.phase_ns);
        let shift_ns = start_ns - i128::from(self.clock.start_unix_ns());
        let weekday_shift = self.weekday_shift;
        Battery { cmos: self.cmos, shift_ns, weekday_shift, frozen: self.frozen }
    }

    /// Goes on from what a board before had, with a RESET between.
    pub fn restore(&mut self, battery: &Battery) {
        let start_ns = i128::from(self.clock.start_unix_ns()) + battery.shift_ns;
        (self.base_s, self.phase_ns) = in_seconds(start_ns);
        self.cmos = battery.cmos;
        self.weekday_shift = battery.weekday_shift;
        self.frozen = battery.frozen;
        self.reset();
    }

    /// Puts `value` where firmware and guests look for a configuration byte.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.cmos.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    /// Reports RAM the way PC firmware does: bytes below the PCI hole (the first MiB included) and
    /// bytes from 4 GiB up.
    pub fn set_memory(&mut self, below_4g: u64, above_4g: u64) {
        let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        let base = word((below_4g >> 10).min(640));
        let extended = word((below_4g >> 10).saturating_sub(1024));
        let above_16m = word(below_4g.saturating_sub(16 << 20) >> 16);
        let high = (above_4g >> 16).min(0xff_ffff).to_le_bytes();
        for (index, bytes) in [
            (0x15, &base[..]),
            (0x17, &extended[..]),
            (0x30, &extended[..]),
            (0x34, &above_16m[..]),
            (0x5b, &high[..3]),
        ] {
            self.cmos[index..index + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Reports floppy drives the way PC firmware does, by their types (0: none), and that there are a
    /// coprocessor and a mouse.
    pub fn set_floppies(&mut self, types: [u8; 2]) {
        let count = types.iter().filter(|&&kind| kind != 0).count() as u8;
        let floppies = if count > 0 { 1 | (count - 1) << 6 } else { 0 };
        self.cmos[0x10] = types[0] << 4 | types[1];
        self.cmos[0x14] = floppies | 0b110;
    }

    /// Tells for which IDE disks, by their positions, firmware is to translate sector numbers to cylinders, heads and
    /// sectors, instead of using the drive's own. Source: SeaBIOS, "get_translation".
    pub fn set_translated(&mut self, disks: [bool; 4]) {
        let lba = |position: usize| u8::from(disks[position]) << (2 * position);
        self.cmos[0x39] = (0..4).map(lba).sum();
    }

    /// Whether port 0x70 bit 7 keeps NMIs from the processor.
    #[must_use]
    pub fn nmi_masked(&self) -> bool {
        self.index & 0x80 != 0
    }

    fn reg(&self, index: u8) -> u8 {
        self.cmos[usize::from(index & 0x7f)]
    }

    /// The calendar advances.
    fn runs(&self) -> bool {
        self.reg(REG_B) & B_SET == 0 && self.divider_runs()
    }

    fn divider_runs(&self) -> bool {
        self.reg(REG_A) & A_DIVIDER <= A_DIVIDER_RUNS
    }

    /// Seconds since 1970 and nanoseconds into the second.
    fn time(&self, now_ns: u64) -> (i64, u64) {
        let ns = now_ns.saturating_add(self.phase_ns);
        let seconds = i64::try_from(ns / NS_PER_S).unwrap_or(i64::MAX);
        (self.base_s.saturating_add(seconds), ns % NS_PER_S)
    }

    fn fields(&self, now_ns: u64) -> Fields {
        self.frozen.unwrap_or_else(|| {
            let mut fields = Fields::from_unix(self.time(now_ns).0);
            fields.weekday = (fields.weekday + self.weekday_shift) % 7;
            fields
        })
    }

    /// Makes the calendar show `fields`, and go on from there.
    fn set_fields(&mut self, now_ns: u64, fields: Fields) {
        let seconds = fields.to_unix();
        self.base_s = calendar::clamp(seconds).saturating_sub(self.time(now_ns).0 - self.base_s);
        let natural = Fields::from_unix(seconds).weekday;
        self.weekday_shift = (fields.weekday % 7 + 7 - natural) % 7;
    }

    /// Encodes a number as registers hold it.
    fn encode(&self, value: u8) -> u8 {
        if self.reg(REG_B) & B_BINARY != 0 {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.reg(REG_B) & B_BINARY != 0 {
            value
        } else {
            (value >> 4).saturating_mul(10).saturating_add(value & 15)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.reg(REG_B) & B_24H != 0 {
            return self.encode(hour);
        }
        let of_12 = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(of_12) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.reg(REG_B) & B_24H != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & 0x7f) % 12;
        if value & 0x80 != 0 { hour + 12 } else { hour }
    }

    fn read_time(&self, index: u8, now_ns: u64) -> u8 {
        let fields = self.fields(now_ns);
        match index {
            REG_SECONDS => self.encode(fields.second),
            REG_MINUTES => self.encode(fields.minute),
            REG_HOURS => self.encode_hour(fields.hour),
            REG_WEEKDAY => self.encode(fields.weekday + 1),
            REG_DAY => self.encode(fields.day),
            REG_MONTH => self.encode(fields.month),
            REG_YEAR => self.encode(u8::try_from(fields.year % 100).unwrap_or(0)),
            _ => self.encode(u8::try_from(fields.year / 100).unwrap_or(0)),
        }
    }

    fn write_time(&mut self, index: u8, value: u8, now_ns: u64) {
        let mut fields = self.fields(now_ns);
        let number = self.decode(value);
        match index {
            REG_SECONDS => fields.second = number,
            REG_MINUTES => fields.minute = number,
            REG_HOURS => fields.hour = self.decode_hour(value),
            REG_WEEKDAY => fields.weekday = number.wrapping_sub(1) % 7,
            REG_DAY => fields.day = number,
            REG_MONTH => fields.month = number,
            REG_YEAR => fields.year = fields.year / 100 * 100 + u16::from(number % 100),
            _ => fields.year = u16::from(number % 100) * 100 + fields.year % 100,
        }
        if self.frozen.is_some() {
            self.frozen = Some(fields);
        } else {
            self.set_fields(now_ns, fields);
        }
    }

    /// Registers A and B: the calendar may stop or go on.
    fn write_control(&mut self, index: u8, value: u8, now_ns: u64) {
        let ran = self.runs();
        let divider_ran = self.divider_runs();
        let fields = self.fields(now_ns);
        if index == REG_A {
            self.cmos[usize::from(REG_A)] = value & !A_UIP;
        } else {
            // "A one written to SET clears UIE."
            let mask = if value & B_SET != 0 { !B_UIE } else { !0 };
            self.cmos[usize::from(REG_B)] = value & mask;
        }
        if self.divider_runs() && !divider_ran {
            // "The first update cycle begins one-half second later."
            let (_, into) = self.time(now_ns);
            self.phase_ns = (self.phase_ns + NS_PER_S + NS_PER_S / 2 - into) % NS_PER_S;
        }
        if ran && !self.runs() {
            self.frozen = Some(fields);
        } else if self.runs()
            && let Some(fields) = self.frozen.take()
        {
            self.set_fields(now_ns, fields);
        }
    }

    /// Period of the rate that register A selects.
    fn periodic(&self) -> Option<Rate> {
        let rate = u32::from(self.reg(REG_A) & 15);
        if rate == 0 || !self.divider_runs() {
            return None;
        }
        // Rates 1 and 2 repeat 8 and 9 with this crystal.
        let shift = if rate < 3 { rate + 6 } else { rate - 1 };
        Some(Rate { hz: CRYSTAL_HZ >> shift })
    }

    /// The first second after `after_s` that matches the alarm.
    fn next_alarm(&self, after_s: i64) -> Option<i64> {
        let wanted = |index: u8, decode: &dyn Fn(u8) -> u8, limit: u8| {
            let value = self.reg(index);
            if value >= ALARM_ANY {
                return Some(None);
            }
            let value = decode(value);
            (value < limit).then_some(Some(i64::from(value)))
        };
        let hour = wanted(REG_HOURS_ALARM, &|value| self.decode_hour(value), 24)?;
        let minute = wanted(REG_MINUTES_ALARM, &|value| self.decode(value), 60)?;
        let second = wanted(REG_SECONDS_ALARM, &|value| self.decode(value), 60)?;
        let mut at = after_s.saturating_add(1);
        // At most a day's hours, an hour's minutes and a minute's seconds are passed over.
        for _ in 0..24 + 60 + 60 + 3 {
            let of_day = at.rem_euclid(SECONDS_PER_DAY);
            if hour.is_some_and(|hour| hour != of_day / 3600) {
                at += 3600 - of_day % 3600;
            } else if minute.is_some_and(|minute| minute != of_day / 60 % 60) {
                at += 60 - of_day % 60;
            } else if second.is_some_and(|second| second != of_day % 60) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// Sets the flags of what happened since `events_ns`.
    fn collect(&mut self, now_ns: u64) {
        let (from_s, _) = self.time(self.events_ns);
        let (to_s, _) = self.time(now_ns);
        if self.runs() && to_s > from_s {
            self.flags |= C_UF;
            if self.next_alarm(from_s).is_some_and(|at| at <= to_s) {
                self.flags |= C_AF;
            }
        }
        if let Some(rate) = self.periodic() {
            let ticks = |ns: u64| rate.ticks(ns.saturating_add(self.phase_ns));
            let periods = ticks(now_ns).saturating_sub(ticks(self.events_ns));
            if self.reg(REG_B) & B_PIE != 0 {
                let first = u64::from(self.flags & C_PF == 0);
                self.owed = self.owed.saturating_add(periods.saturating_sub(first)).min(OWED_MAX);
            }
            if periods > 0 {
                self.flags |= C_PF;
            }
        }
        self.events_ns = now_ns;
        self.tell_alarm();
    }

    /// Tells of an alarm's interrupt, once.
    fn tell_alarm(&mut self) {
        let alarms = self.flags & self.reg(REG_B) & C_AF != 0;
        if alarms
            && !self.alarms
            && let Some(tell) = &self.on_alarm
        {
            tell();
        }
        self.alarms = alarms;
    }

    fn irqf(&self) -> bool {
        self.flags & self.reg(REG_B) & (C_PF | C_AF | C_UF) != 0
    }

    /// When a second begins.
    fn second_ns(&self, seconds: i64) -> Option<u64> {
        let distance = u64::try_from(seconds.saturating_sub(self.base_s)).ok()?;
        distance.checked_mul(NS_PER_S)?.checked_sub(self.phase_ns)
    }

    /// When the next alarm interrupts.
    fn next_alarm_ns(&self, now_ns: u64) -> Option<u64> {
        if !self.runs() || self.reg(REG_B) & B_AIE == 0 {
            return None;
        }
        let at = self.next_alarm(self.time(now_ns).0)?;
        self.second_ns(at)
    }

    /// When the next flag whose interrupt is enabled goes up.
    fn next_event_ns(&self, now_ns: u64) -> Option<u64> {
        let b = self.reg(REG_B);
        let (now_s, _) = self.time(now_ns);
        let update = (self.runs() && b & B_UIE != 0).then(|| self.second_ns(now_s + 1)).flatten();
        let alarm = self.next_alarm_ns(now_ns);
        let periodic = if b & B_PIE != 0 { self.periodic() } else { None };
        let periodic = periodic.map(|rate| rate.next_ns(now_ns.saturating_add(self.phase_ns)));
        let periodic = periodic.map(|ns| ns.saturating_sub(self.phase_ns));
        [update, alarm, periodic].into_iter().flatten().min()
    }

    /// Brings the interrupt line and the timer in line with the flags.
    fn sync(&mut self, now_ns: u64) {
        let irqf = self.irqf();
        self.irq.set(irqf);
        self.tell_alarm();
        // While the line is up nothing more can happen to it: the rest is collected with register C. Only of an alarm
        // others are told.
        self.timer.arm(match irqf {
            false => self.next_event_ns(now_ns),
            true if self.on_alarm.is_some() && !self.alarms => self.next_alarm_ns(now_ns),
            true => None,
        });
    }

    fn read_register(&mut self, index: u8) -> u8 {
        let now_ns = self.clock.now_ns();
        match index {
            REG_SECONDS | REG_MINUTES | REG_HOURS | REG_WEEKDAY..=REG_YEAR | REG_CENTURY => {
                self.read_time(index, now_ns)
            }
            REG_A => {
                let (_, into) = self.time(now_ns);
                let uip = self.runs() && into >= NS_PER_S - UIP_NS;
                self.reg(REG_A) | if uip { A_UIP } else { 0 }
            }
            REG_C => {
                self.collect(now_ns);
                let irqf = if self.irqf() { C_IRQF } else { 0 };
                let value = self.flags | irqf;
                self.flags = 0;
                self.irq.set(false);
                if self.owed > 0 {
                    self.owed -= 1;
                    self.flags = C_PF;
                }
                self.sync(now_ns);
                value
            }
            _ => self.reg(index),
        }
    }

    fn write_register(&mut self, index: u8, value: u8) {
        let now_ns = self.clock.now_ns();
        match index {
            REG_C | REG_D => return,
            REG_A | REG_B => {
                self.collect(now_ns);
                self.owed = 0;
                self.write_control(index, value, now_ns);
            }
            REG_SECONDS | REG_MINUTES | REG_HOURS | REG_WEEKDAY..=REG_YEAR | REG_CENTURY => {
                self.collect(now_ns);
                self.write_time(index, value, now_ns);
            }
            REG_SECONDS_ALARM | REG_MINUTES_ALARM | REG_HOURS_ALARM => {
                self.collect(now_ns);
                self.cmos[usize::from(index)] = value;
            }
            _ => {
                self.cmos[usize::from(index & 0x7f)] = value;
                return;
            }
        }
        self.sync(now_ns);
    }
}

/// A periodic interrupt's rate.
#[derive(Clone, Copy)]
struct Rate {
    hz: u64,
}

impl Rate {
    fn ticks(self, ns: u64) -> u64 {
        // Whole seconds apart, so that nothing overflows.
        (ns / NS_PER_S).saturating_mul(self.hz) + ns % NS_PER_S * self.hz / NS_PER_S
    }
    /// The first tick after `ns`.
    fn next_ns(self, ns: u64) -> u64 {
        let into = ns % NS_PER_S * self.hz / NS_PER_S + 1;
        (ns - ns % NS_PER_S).saturating_add((into * NS_PER_S).div_ceil(self.hz))
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, _: u8) -> u64 {
        match offset {
            1 => self.read_register(self.index & 0x7f).into(),
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u64, _: u8, value: u64) {
        let value = value.to_le_bytes()[0];
        match offset {
            0 => self.index = value,
            1 => self.write_register(self.index & 0x7f, value),
            _ => {}
        }
    }
}

impl Timed for Rtc {
    fn run(&mut self, now_ns: u64) {
        self.collect(now_ns);
        self.sync(now_ns);
    }
}

/// Seconds since 1970 at midnight UTC of a date, for tests and boards that start at a fixed time.
#[must_use]
pub fn unix_midnight(year: u16, month: u8, day: u8) -> i64 {
    days_from_date(year.into(), month.into(), day.into()) * SECONDS_PER_DAY
}
