//! ACPI fixed hardware, as in the PIIX4: PM1a event and control blocks, power management timer, a
//! general purpose event block, and the SMI command port that hands over from legacy to ACPI mode.
//!
//! Problem: guests power off, take power-button events and keep time through these registers. Scheme:
//! registers are bytes of three ranges of one device; the timer counts [`Clock`] time and its overflow
//! status is worked out when looked at, so a host timer only runs while its interrupt is enabled.
//! There is no firmware: the SMI command port switches SCI_EN itself. Invariants: the SCI line is a
//! level, the function of state in `update`; it is IRQ 9, active high (the MADT says so); nothing
//! interrupts before SCI_EN. Threads: vCPUs, the timer thread, whoever presses the button; under the
//! device's mutex. Source: ACPI 6.5 §4.8 "ACPI Hardware Features"; Intel 82371AB (PIIX4) datasheet,
//! "Power Management I/O Space Registers".

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::{Clock, Timed, Timer, TimerQueue};
use crate::irq::IrqLine;
use crate::power::{PowerEvent, PowerEvents};

/// Where firmware puts the PM register block; its parts are at these offsets.
pub const PM_PORT: u16 = 0x600;
pub const PM1A_EVENT_OFFSET: u16 = 0;
pub const PM1A_EVENT_BYTES: u8 = 4;
pub const PM1A_CONTROL_OFFSET: u16 = 4;
pub const PM1A_CONTROL_BYTES: u8 = 2;
pub const PM_TIMER_OFFSET: u16 = 8;
pub const PM_TIMER_BYTES: u8 = 4;
/// Ports that the block takes.
pub const PM_PORTS: u16 = 0x40;
/// Start of the general purpose event block: two bytes of status, two of enable.
pub const GPE0_PORT: u16 = 0xafe0;
pub const GPE0_BYTES: u8 = 4;
/// The SMI command port; the byte after it is scratch.
pub const SMI_COMMAND_PORT: u16 = 0xb2;
pub const SMI_COMMAND_PORTS: u16 = 2;
pub const ACPI_ENABLE: u8 = 0xf1;
pub const ACPI_DISABLE: u8 = 0xf0;
/// The system control interrupt.
pub const SCI_IRQ: u8 = 9;
/// SLP_TYP that means S5, soft off.
pub const SLEEP_TYPE_S5: u8 = 0;
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// The counter is 24 bits wide: FADT's TMR_VAL_EXT is clear.
const PM_TIMER_MASK: u64 = 0xff_ffff;
/// Ticks after which the counter's top bit has changed.
const PM_TIMER_HALF: u64 = 0x80_0000;

const PM1_TIMER: u16 = 1 << 0;
const PM1_GLOBAL: u16 = 1 << 5;
const PM1_POWER_BUTTON: u16 = 1 << 8;
const PM1_SLEEP_BUTTON: u16 = 1 << 9;
const PM1_RTC: u16 = 1 << 10;
const PM1_WAKE: u16 = 1 << 15;
/// Events that have an enable bit and raise SCI.
const PM1_EVENTS: u16 = PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC;

const CONTROL_SCI_ENABLE: u16 = 1 << 0;
/// Bits that keep what is written: bus master reload and sleep type. SCI_EN is the SMI handler's.
const CONTROL_WRITABLE: u16 = 1 << 1 | 7 << 10;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;

/// Device offsets of the second and third range.
const GPE0_BASE: u64 = 0x100;
const SMI_BASE: u64 = 0x200;

/// The fixed hardware.
pub struct PmBlock {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    smi_command: u8,
    smi_scratch: u8,
    /// Timer tick at which TMR_STS next becomes set.
    overflow_tick: u64,
    line: bool,
    sci: IrqLine,
    power: PowerEvents,
    clock: Arc<dyn Clock>,
    timer: Timer,
}

impl fmt::Debug for PmBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PmBlock")
            .field("status", &self.status)
            .field("enable", &self.enable)
            .field("control", &self.control)
            .field("gpe_status", &self.gpe_status)
            .field("gpe_enable", &self.gpe_enable)
            .finish_non_exhaustive()
    }
}

fn ns_to_ticks(ns: u64) -> u64 {
    // Fits: the product is below 2^86, the quotient below 2^56.
    (u128::from(ns) * u128::from(PM_TIMER_HZ) / 1_000_000_000) as u64
}

/// The first nanosecond at which `tick` is reached.
fn ticks_to_ns(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(PM_TIMER_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

impl PmBlock {
    /// The block after reset, in legacy mode. `sci` is the line of [`SCI_IRQ`].
    #[must_use]
    pub fn new(
        sci: IrqLine,
        power: PowerEvents,
        clock: Arc<dyn Clock>,
        timers: &Arc<TimerQueue>,
    ) -> Arc<Mutex<Self>> {
        let timer = timers.timer();
        let mut block = Self {
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: 0,
            gpe_enable: 0,
            smi_command: 0,
            smi_scratch: 0,
            overflow_tick: 0,
            line: false,
            sci,
            power,
            clock,
            timer: timer.clone(),
        };
        block.overflow_tick = block.next_overflow();
        let block = Arc::new(Mutex::new(block));
        timer.attach(&block);
        block
    }

    /// Puts `block`'s general purpose events and SMI command port at their ports. The register block itself
    /// is where the chip set's configuration space says ([`crate::pci`]).
    ///
    /// # Errors
    /// [`Overlap`] if one is taken.
    pub fn attach(block: &Arc<Mutex<Self>>, ports: &mut Bus) -> Result<(), Overlap> {
        ports.insert_at(GPE0_PORT.into(), GPE0_BYTES.into(), GPE0_BASE, Arc::clone(block) as _)?;
        ports.insert_at(
            SMI_COMMAND_PORT.into(),
            SMI_COMMAND_PORTS.into(),
            SMI_BASE,
            Arc::clone(block) as _,
        )
    }

    /// Back to legacy mode with nothing enabled. The timer counts on.
    pub fn reset(&mut self) {
        (self.status, self.enable, self.control) = (0, 0, 0);
        (self.gpe_status, self.gpe_enable) = (0, 0);
        (self.smi_command, self.smi_scratch) = (0, 0);
        self.overflow_tick = self.next_overflow();
        self.update();
    }

    /// Someone presses the power button. False if the guest has not asked to be told (no ACPI driver):
    /// then only taking the power away will end it.
    pub fn press_power_button(&mut self) -> bool {
        self.status |= PM1_POWER_BUTTON;
        self.update();
        self.control & CONTROL_SCI_ENABLE != 0 && self.enable & PM1_POWER_BUTTON != 0
    }

    /// The clock's alarm interrupts.
    pub fn alarm(&mut self) {
        self.status |= PM1_RTC;
        self.update();
    }

    /// General purpose event `number` (0-15) has happened.
    pub fn raise_gpe(&mut self, number: u8) {
        self.gpe_status |= 1u16.checked_shl(number.into()).unwrap_or(0);
        self.update();
    }

    fn tick(&self) -> u64 {
        ns_to_ticks(self.clock.now_ns())
    }

    /// The next tick at which the counter's top bit changes.
    fn next_overflow(&self) -> u64 {
        (self.tick() / PM_TIMER_HALF + 1) * PM_TIMER_HALF
    }

    /// Brings TMR_STS up to date, drives SCI, and arms the timer if its overflow would interrupt.
    fn update(&mut self) {
        if self.tick() >= self.overflow_tick {
            self.status |= PM1_TIMER;
        }
        let events =
            self.status & self.enable & PM1_EVENTS != 0 || self.gpe_status & self.gpe_enable != 0;
        let sci_enabled = self.control & CONTROL_SCI_ENABLE != 0;
        let level = sci_enabled && events;
        if level != self.line {
            self.line = level;
            self.sci.set(level);
        }
        let wanted = sci_enabled && self.enable & !self.status & PM1_TIMER != 0;
        self.timer.arm(wanted.then(|| ticks_to_ns(self.overflow_tick)));
    }

    fn clear_status(&mut self, bits: u16) {
        self.status &= !bits;
        if bits & PM1_TIMER != 0 {
            self.overflow_tick = self.next_overflow();
        }
    }

    fn sleep(&mut self) {
        if (self.control >> 10 & 7) as u8 == SLEEP_TYPE_S5 {
            self.power.raise(PowerEvent::PowerOff);
        } else {
            // No other state is on offer: as if something had woken the machine at once.
            self.status |= PM1_WAKE;
        }
    }

    fn read_byte(&self, offset: u64, tick: u64) -> u8 {
        let byte = |value: u64, from: u64| (value >> (8 * (offset - from)) & 0xff) as u8;
        match offset {
            0..=1 => byte(self.status.into(), 0),
            2..=3 => byte(self.enable.into(), 2),
            4..=5 => byte(self.control.into(), 4),
            8..=11 => byte(tick & PM_TIMER_MASK, 8),
            GPE0_BASE..=0x101 => byte(self.gpe_status.into(), GPE0_BASE),
            0x102..=0x103 => byte(self.gpe_enable.into(), 0x102),
            SMI_BASE => self.smi_command,
            0x201 => self.smi_scratch,
            _ => 0,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let high = offset & 1 != 0;
        let (bits, kept) =
            if high { (u16::from(value) << 8, 0x00ff) } else { (u16::from(value), 0xff00) };
        match offset {
            0..=1 => self.clear_status(bits),
            2..=3 => self.enable = self.enable & kept | bits & PM1_EVENTS,
            4..=5 => {
                self.control =
                    self.control & (kept | !CONTROL_WRITABLE) | bits & CONTROL_WRITABLE & !kept;
                if bits & CONTROL_SLEEP_ENABLE != 0 {
                    self.sleep();
                }
            }
            GPE0_BASE..=0x101 => self.gpe_status &= !bits,
            0x102..=0x103 => self.gpe_enable = self.gpe_enable & kept | bits,
            SMI_BASE => {
                self.smi_command = value;
                match value {
                    ACPI_ENABLE => self.control |= CONTROL_SCI_ENABLE,
                    ACPI_DISABLE => self.control &= !CONTROL_SCI_ENABLE,
                    _ => {}
                }
            }
            0x201 => self.smi_scratch = value,
            _ => {}
        }
    }
}

impl BusDevice for PmBlock {
    fn read(&mut self, offset: u64, size: u8) -> u64 {
        if offset < 2 {
            self.update();
        }
        // One look at the clock for all bytes of the timer.
        let tick = self.tick();
        (0..u64::from(size).min(4))
            .map(|i| u64::from(self.read_byte(offset.wrapping_add(i), tick)) << (8 * i))
            .sum()
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        for (i, &byte) in (0..u64::from(size).min(4)).zip(&bytes) {
            self.write_byte(offset.wrapping_add(i), byte);
        }
        self.update();
    }

    fn width(&self) -> u8 {
        4
    }
}

impl Timed for PmBlock {
    fn run(&mut self, _: u64) {
        self.update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::lock;
    use crate::fake::{FakeClock, FakeIrqs, Random};

    const STATUS: u64 = 0x600;
    const ENABLE: u64 = 0x602;
    const CONTROL: u64 = 0x604;
    const TIMER: u64 = 0x608;

    struct Rig {
        ports: Bus,
        block: Arc<Mutex<PmBlock>>,
        irqs: Arc<FakeIrqs>,
        clock: Arc<FakeClock>,
        timers: Arc<TimerQueue>,
        power: PowerEvents,
    }

    impl Rig {
        fn new() -> Self {
            let (irqs, clock, timers) = (FakeIrqs::new(), FakeClock::new(), TimerQueue::new());
            let power = PowerEvents::new();
            let sci = irqs.line(SCI_IRQ.into());
            let block = PmBlock::new(sci, power.clone(), Arc::clone(&clock) as _, &timers);
            let mut ports = Bus::new();
            PmBlock::attach(&block, &mut ports).expect("an empty bus");
            ports.moving().map(PM_PORT.into(), PM_PORTS.into(), 0, Arc::clone(&block) as _);
            Self { ports, block, irqs, clock, timers, power }
        }
        fn sci(&self) -> bool {
            self.irqs.level(SCI_IRQ.into())
        }
        fn pass(&self, ns: u64) {
            self.clock.advance(ns);
            self.timers.run_due(self.clock.now_ns());
        }
    }

    #[test]
    fn handshake_switches_sci_en() {
        let rig = Rig::new();
        assert_eq!(rig.ports.read(CONTROL, 2) & 1, 0);
        rig.ports.write(0xb2, 1, ACPI_ENABLE.into());
        assert_eq!(rig.ports.read(CONTROL, 2) & 1, 1);
        rig.ports.write(CONTROL, 2, 0);
        assert_eq!(rig.ports.read(CONTROL, 2) & 1, 1, "the driver's writes keep SCI_EN");
        rig.ports.write(0xb2, 1, ACPI_DISABLE.into());
        assert_eq!(rig.ports.read(CONTROL, 2) & 1, 0);
    }

    #[test]
    fn soft_off_and_no_other_sleep() {
        let rig = Rig::new();
        rig.ports.write(CONTROL, 2, 0x0400);
        rig.ports.write(CONTROL, 2, 0x2400);
        assert!(!rig.power.is_raised());
        assert_ne!(rig.ports.read(STATUS, 2) & u64::from(PM1_WAKE), 0);
        assert_eq!(rig.ports.read(CONTROL, 2), 0x0400, "SLP_EN reads as zero");
        // ACPICA writes SLP_TYP first, then both.
        rig.ports.write(CONTROL, 2, 0x0001);
        rig.ports.write(CONTROL, 2, 0x2001);
        assert_eq!(rig.power.get(), Some(PowerEvent::PowerOff));
    }

    #[test]
    fn timer_counts_at_its_rate_and_wraps_at_24_bits() {
        let rig = Rig::new();
        assert_eq!(rig.ports.read(TIMER, 4), 0);
        rig.clock.advance(1_000_000_000);
        assert_eq!(rig.ports.read(TIMER, 4), 3_579_545);
        rig.clock.advance(9_000_000_000);
        assert_eq!(rig.ports.read(TIMER, 4), 35_795_450 & 0xff_ffff);
        rig.ports.write(TIMER, 4, 0);
        assert_eq!(rig.ports.read(TIMER, 4), 35_795_450 & 0xff_ffff, "read only");
    }

    #[test]
    fn timer_overflow_is_status_and_sci() {
        let rig = Rig::new();
        let half_ns = ticks_to_ns(PM_TIMER_HALF);
        rig.clock.advance(half_ns - 1);
        assert_eq!(rig.ports.read(STATUS, 2), 0);
        rig.clock.advance(1);
        assert_eq!(rig.ports.read(STATUS, 2), 1);
        assert_eq!(rig.timers.earliest_ns(), None, "no host timer for a masked event");
        rig.ports.write(STATUS, 2, 1);
        assert_eq!(rig.ports.read(STATUS, 2), 0);
        rig.ports.write(0xb2, 1, ACPI_ENABLE.into());
        rig.ports.write(ENABLE, 2, 1);
        assert!(!rig.sci());
        rig.pass(half_ns);
        assert!(rig.sci());
        rig.ports.write(STATUS, 2, 1);
        assert!(!rig.sci());
        rig.pass(half_ns);
        assert!(rig.sci());
    }

    #[test]
    fn power_button_tells_whether_anybody_listens() {
        let rig = Rig::new();
        assert!(!lock(&rig.block).press_power_button());
        assert!(!rig.sci());
        rig.ports.write(0xb2, 1, ACPI_ENABLE.into());
        rig.ports.write(STATUS, 2, 0xffff);
        rig.ports.write(ENABLE, 2, PM1_POWER_BUTTON.into());
        assert!(!rig.sci());
        assert!(lock(&rig.block).press_power_button());
        assert!(rig.sci());
        rig.ports.write(STATUS, 2, PM1_POWER_BUTTON.into());
        assert!(!rig.sci());
    }

    #[test]
    fn an_alarm_is_status_and_sci() {
        let rig = Rig::new();
        rig.ports.write(0xb2, 1, ACPI_ENABLE.into());
        lock(&rig.block).alarm();
        assert_eq!(rig.ports.read(STATUS, 2), u64::from(PM1_RTC));
        assert!(!rig.sci());
        rig.ports.write(ENABLE, 2, PM1_RTC.into());
        assert!(rig.sci());
        rig.ports.write(STATUS, 2, PM1_RTC.into());
        assert!(!rig.sci());
        assert_eq!(rig.ports.read(STATUS, 2), 0);
        lock(&rig.block).alarm();
        assert!(rig.sci());
    }

    #[test]
    fn only_real_enable_bits_stick_and_gpe_raises_sci() {
        let rig = Rig::new();
        rig.ports.write(ENABLE, 2, 0xffff);
        assert_eq!(rig.ports.read(ENABLE, 2), u64::from(PM1_EVENTS));
        rig.ports.write(ENABLE, 2, 0);
        rig.ports.write(0xb2, 1, ACPI_ENABLE.into());
        rig.ports.write(0xafe2, 2, 0x0202);
        lock(&rig.block).raise_gpe(2);
        assert!(!rig.sci());
        lock(&rig.block).raise_gpe(9);
        lock(&rig.block).raise_gpe(200);
        assert!(rig.sci());
        assert_eq!(rig.ports.read(0xafe0, 4), 0x0202_0204);
        rig.ports.write(0xafe1, 1, 0x02);
        assert!(!rig.sci());
        lock(&rig.block).reset();
        assert_eq!(rig.ports.read(0xafe0, 4), 0);
    }

    #[test]
    fn random_register_traffic_is_harmless() {
        let rig = Rig::new();
        let mut random = Random(0xdead_beef);
        for _ in 0..100_000 {
            let n = random.next();
            let base = [0x600, 0x600, 0xafe0, 0xb2][(n & 3) as usize];
            let (port, size) = (base + (n >> 8 & 0xf), 1 << (n >> 4 & 3));
            if n & 4 == 0 {
                rig.ports.write(port, size, n >> 16);
            } else {
                let _ = rig.ports.read(port, size);
            }
            rig.pass(n >> 40);
            assert_eq!(lock(&rig.block).line, rig.sci());
        }
    }
}
