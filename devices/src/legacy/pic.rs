//! 8259A pair: the PC's first interrupt controller.
//!
//! Problem: fifteen ISA lines become one INTR signal and a vector. Scheme: two chips of plain state;
//! [`Pic::intr`] is derived from it on demand, and the slave's output is the master's level input 2.
//! Pins are edge-latched or level as ELCR says; like the chipsets that integrate the 8259A, ICW1's
//! LTIM bit has no effect, and a latched edge outlives the line's fall. Invariants: the slave is on
//! pin 2; ELCR can't make pins 0, 1, 2, 8 and 13 level-sensitive; an unfinished ICW sequence requests
//! nothing. Thread: any, under the lock of the interrupt router that owns the pair.
//! Source: Intel 8259A data sheet (231468), "Programming the 8259A"; PIIX3 data sheet (290550),
//! "Edge and Level Triggered Modes".

use crate::irq::Acceptance;

/// Offsets of [`Pic::read`] and [`Pic::write`]: one for each port.
pub mod port {
    /// 0x20: master ICW1, OCW2, OCW3; status.
    pub const MASTER_COMMAND: u64 = 0;
    /// 0x21: master ICW2-4, OCW1.
    pub const MASTER_DATA: u64 = 1;
    /// 0xa0: slave ICW1, OCW2, OCW3; status.
    pub const SLAVE_COMMAND: u64 = 2;
    /// 0xa1: slave ICW2-4, OCW1.
    pub const SLAVE_DATA: u64 = 3;
    /// 0x4d0: edge/level control, lines 0-7.
    pub const ELCR_MASTER: u64 = 4;
    /// 0x4d1: edge/level control, lines 8-15.
    pub const ELCR_SLAVE: u64 = 5;
}

/// The master's pin that the slave drives.
const CASCADE: u8 = 2;
/// Lines that can be level-sensitive: neither timer, keyboard, cascade, RTC nor FPU.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// Which word the data port takes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Debug)]
struct Chip {
    /// Edges seen and not yet acknowledged.
    latched: u8,
    pins: u8,
    /// Pins that are level-sensitive.
    level: u8,
    imr: u8,
    isr: u8,
    vector_base: u8,
    /// The pin with the lowest priority at present.
    lowest: u8,
    expect: Expect,
    /// ICW1 announced an ICW4.
    icw4: bool,
    /// ICW1 said that there is no slave, hence no ICW3.
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    poll: bool,
    read_isr: bool,
}

impl Chip {
    fn new() -> Self {
        Self {
            latched: 0,
            pins: 0,
            level: 0,
            imr: 0xff,
            isr: 0,
            vector_base: 0,
            lowest: 7,
            expect: Expect::Ocw1,
            icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            poll: false,
            read_isr: false,
        }
    }

    fn irr(&self) -> u8 {
        (self.latched & !self.level) | (self.pins & self.level)
    }

    fn set_pin(&mut self, pin: u8, level: bool) {
        let bit = 1 << pin;
        if level {
            self.latched |= bit & !self.pins;
            self.pins |= bit;
        } else {
            self.pins &= !bit;
        }
    }

    /// A rising edge of `pin`, which is high afterwards.
    fn edge(&mut self, pin: u8) -> Acceptance {
        let bit = 1 << pin;
        let is_latched = self.latched & bit != 0;
        self.latched |= bit;
        self.pins |= bit;
        match () {
            () if self.imr & bit != 0 || self.expect != Expect::Ocw1 => Acceptance::Refused,
            () if is_latched => Acceptance::Merged,
            () => Acceptance::Accepted,
        }
    }

    /// The pin of highest priority in `set`, with its distance from the top.
    fn top(&self, set: u8) -> Option<(u8, u32)> {
        if set == 0 {
            return None;
        }
        let first = self.lowest.wrapping_add(1) & 7;
        let rank = set.rotate_right(u32::from(first)).trailing_zeros();
        Some(((first + u8::try_from(rank & 7).unwrap_or(0)) & 7, rank))
    }

    /// The pin to acknowledge next: the highest request above what is in service.
    fn request(&self) -> Option<u8> {
        if self.expect != Expect::Ocw1 {
            return None;
        }
        let (pin, rank) = self.top(self.irr() & !self.imr)?;
        let serving = if self.special_mask { self.isr & !self.imr } else { self.isr };
        match self.top(serving) {
            None => Some(pin),
            Some((_, busy)) if rank < busy => Some(pin),
            // A second request of the slave that is being served: only this mode lets it through.
            Some((busy, _)) if self.special_fully_nested && pin == CASCADE && busy == pin => {
                Some(pin)
            }
            _ => None,
        }
    }

    /// INTA for `pin`.
    fn accept(&mut self, pin: u8) {
        self.latched &= !(1 << pin);
        if !self.auto_eoi {
            self.isr |= 1 << pin;
        } else if self.rotate_on_auto_eoi {
            self.lowest = pin;
        }
    }

    fn read_data(&self) -> u8 {
        self.imr
    }

    fn read_status(&self) -> u8 {
        if self.read_isr { self.isr } else { self.irr() }
    }

    /// Answers a poll command: acts as an INTA.
    fn polled(&mut self) -> u8 {
        self.poll = false;
        match self.request() {
            None => 0,
            Some(pin) => {
                self.accept(pin);
                0x80 | pin
            }
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    /// "The edge sense circuit is reset, IMR is cleared, IR7 gets priority 7, special mask mode is
    /// cleared, status read is IRR", and without ICW4 its functions are off.
    fn icw1(&mut self, value: u8) {
        self.latched = 0;
        self.imr = 0;
        self.isr = 0;
        self.lowest = 7;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.auto_eoi = false;
        self.rotate_on_auto_eoi = false;
        self.special_fully_nested = false;
        self.icw4 = value & 1 != 0;
        self.single = value & 2 != 0;
        self.expect = Expect::Icw2;
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            command @ (1 | 5) => {
                let serving = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some((pin, _)) = self.top(serving) {
                    self.isr &= !(1 << pin);
                    if command == 5 {
                        self.lowest = pin;
                    }
                }
            }
            3 => self.isr &= !(1 << level),
            6 => self.lowest = level,
            7 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Ocw1 => {
                self.imr = value;
                Expect::Ocw1
            }
            Expect::Icw2 => {
                self.vector_base = value & 0xf8;
                if !self.single {
                    Expect::Icw3
                } else if self.icw4 {
                    Expect::Icw4
                } else {
                    Expect::Ocw1
                }
            }
            // The wiring is fixed: what ICW3 claims about it changes nothing.
            Expect::Icw3 if self.icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Ocw1,
            Expect::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                Expect::Ocw1
            }
        };
    }
}

/// The pair.
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Out of reset: everything masked, no vectors programmed.
    #[must_use]
    pub fn new() -> Self {
        let mut master = Chip::new();
        // The cascade input follows the slave's output, so that no request of the slave is lost
        // while another of its requests is in service.
        master.level = 1 << CASCADE;
        Self { master, slave: Chip::new() }
    }

    /// The registers for people, a line for each chip.
    #[must_use]
    pub fn describe(&self) -> String {
        let chip = |n: usize, chip: &Chip| {
            format!(
                "pic{n}: irr={:02x} imr={:02x} isr={:02x} hprio={} irq_base={:02x} rr_sel={} elcr={:02x} \
                 fnm={}\n",
                chip.irr(),
                chip.imr,
                chip.isr,
                chip.lowest.wrapping_add(1) & 7,
                chip.vector_base,
                u8::from(chip.read_isr),
                chip.level & ELCR_WRITABLE[n],
                u8::from(chip.special_fully_nested)
            )
        };
        chip(0, &self.master) + &chip(1, &self.slave)
    }

    /// RESET: everything but the levels of the pins.
    pub fn reset(&mut self) {
        let (master_pins, slave_pins) = (self.master.pins, self.slave.pins);
        *self = Self::new();
        self.master.pins = master_pins & !(1 << CASCADE);
        self.slave.pins = slave_pins;
        self.cascade();
    }

    /// What SeaBIOS leaves: vectors 0x08 and 0x70; timer, keyboard, cascade, floppy, RTC, mouse,
    /// FPU and disk lines open.
    pub fn firmware_defaults(&mut self) {
        for (port, value) in [
            (port::MASTER_COMMAND, 0x11),
            (port::SLAVE_COMMAND, 0x11),
            (port::MASTER_DATA, 0x08),
            (port::SLAVE_DATA, 0x70),
            (port::MASTER_DATA, 1 << CASCADE),
            (port::SLAVE_DATA, CASCADE),
            (port::MASTER_DATA, 0x01),
            (port::SLAVE_DATA, 0x01),
            (port::MASTER_DATA, 0xb8),
            (port::SLAVE_DATA, 0x8e),
        ] {
            self.write(port, value);
        }
    }

    /// Sets the level of ISA line `irq`; 2 and numbers above 15 don't exist.
    pub fn set_pin(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.master.set_pin(irq, level),
            8..16 => {
                self.slave.set_pin(irq - 8, level);
                self.cascade();
            }
            _ => {}
        }
    }

    /// A rising edge of ISA line `irq`, which is high afterwards.
    pub(crate) fn edge(&mut self, irq: u8) -> Acceptance {
        match irq {
            CASCADE => Acceptance::Refused,
            0..8 => self.master.edge(irq),
            8..16 => {
                let acceptance = self.slave.edge(irq - 8);
                self.cascade();
                if self.master.imr & 1 << CASCADE == 0 { acceptance } else { Acceptance::Refused }
            }
            _ => Acceptance::Refused,
        }
    }

    /// The INTR output.
    #[must_use]
    pub fn intr(&self) -> bool {
        self.master.request().is_some()
    }

    /// The INTA cycles: the vector. With no request left it is that of line 7 (or 15, if it was
    /// the slave's request that went away), and no in-service bit is set there.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(pin) = self.master.request() else {
            return self.master.vector_base | 7;
        };
        self.master.accept(pin);
        if pin != CASCADE {
            return self.master.vector_base | pin;
        }
        let vector = match self.slave.request() {
            None => self.slave.vector_base | 7,
            Some(pin) => {
                self.slave.accept(pin);
                self.slave.vector_base | pin
            }
        };
        self.cascade();
        vector
    }

    /// Reads the port at `offset` (see [`port`]).
    pub fn read(&mut self, offset: u64) -> u8 {
        let value = match offset {
            port::MASTER_COMMAND | port::MASTER_DATA if self.master.poll => self.master.polled(),
            port::SLAVE_COMMAND | port::SLAVE_DATA if self.slave.poll => self.slave.polled(),
            port::MASTER_COMMAND => self.master.read_status(),
            port::MASTER_DATA => self.master.read_data(),
            port::SLAVE_COMMAND => self.slave.read_status(),
            port::SLAVE_DATA => self.slave.read_data(),
            port::ELCR_MASTER => self.master.level & ELCR_WRITABLE[0],
            port::ELCR_SLAVE => self.slave.level,
            _ => 0xff,
        };
        self.cascade();
        value
    }

    /// Writes the port at `offset` (see [`port`]).
    pub fn write(&mut self, offset: u64, value: u8) {
        match offset {
            port::MASTER_COMMAND => self.master.write_command(value),
            port::MASTER_DATA => self.master.write_data(value),
            port::SLAVE_COMMAND => self.slave.write_command(value),
            port::SLAVE_DATA => self.slave.write_data(value),
            port::ELCR_MASTER => self.master.level = (value & ELCR_WRITABLE[0]) | (1 << CASCADE),
            port::ELCR_SLAVE => self.slave.level = value & ELCR_WRITABLE[1],
            _ => {}
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let level = self.slave.request().is_some();
        self.master.set_pin(CASCADE, level);
    }
}

#[cfg(test)]
mod tests {
    use super::port::*;
    use super::*;

    fn linux_like() -> Pic {
        let mut pic = Pic::new();
        pic.firmware_defaults();
        for (port, value) in [
            (MASTER_COMMAND, 0x11),
            (MASTER_DATA, 0x30),
            (MASTER_DATA, 4),
            (MASTER_DATA, 1),
            (SLAVE_COMMAND, 0x11),
            (SLAVE_DATA, 0x38),
            (SLAVE_DATA, 2),
            (SLAVE_DATA, 1),
            (MASTER_DATA, 0),
            (SLAVE_DATA, 0),
        ] {
            pic.write(port, value);
        }
        pic
    }

    fn pulse(pic: &mut Pic, irq: u8) {
        pic.set_pin(irq, true);
        pic.set_pin(irq, false);
    }

    #[test]
    fn fixed_priority_nests_and_eoi_ends_the_highest() {
        let mut pic = linux_like();
        pulse(&mut pic, 5);
        assert!(pic.intr());
        assert_eq!(pic.acknowledge(), 0x35);
        assert!(!pic.intr());
        pulse(&mut pic, 6);
        assert!(!pic.intr(), "6 is below 5, which is in service");
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.write(MASTER_COMMAND, 0x0b);
        assert_eq!(pic.read(MASTER_COMMAND), 0x22);
        pic.write(MASTER_COMMAND, 0x20);
        assert_eq!(pic.read(MASTER_COMMAND), 0x20);
        pic.write(MASTER_COMMAND, 0x65);
        assert_eq!(pic.acknowledge(), 0x36);
    }

    #[test]
    fn slave_requests_go_through_the_cascade() {
        let mut pic = linux_like();
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x3c);
        assert!(!pic.intr());
        pulse(&mut pic, 8);
        assert!(!pic.intr(), "the cascade pin is in service");
        pic.write(SLAVE_COMMAND, 0x20);
        pic.write(MASTER_COMMAND, 0x20);
        assert_eq!(pic.acknowledge(), 0x38);
        pic.write(SLAVE_COMMAND, 0x20);
        pic.write(MASTER_COMMAND, 0x20);
        assert!(!pic.intr());
    }

    #[test]
    fn special_fully_nested_mode_lets_a_better_slave_request_through() {
        let mut pic = linux_like();
        for (port, value) in
            [(MASTER_COMMAND, 0x11), (MASTER_DATA, 0x30), (MASTER_DATA, 4), (MASTER_DATA, 0x11)]
        {
            pic.write(port, value);
        }
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x3c);
        pulse(&mut pic, 4);
        assert!(!pic.intr(), "4 is below the cascade");
        pulse(&mut pic, 9);
        assert_eq!(pic.acknowledge(), 0x39);
    }

    #[test]
    fn level_lines_request_again_until_they_fall() {
        let mut pic = linux_like();
        pic.write(ELCR_SLAVE, 0xff);
        pic.write(ELCR_MASTER, 0xff);
        assert_eq!((pic.read(ELCR_MASTER), pic.read(ELCR_SLAVE)), (0xf8, 0xde));
        pic.set_pin(11, true);
        assert_eq!(pic.acknowledge(), 0x3b);
        pic.write(SLAVE_COMMAND, 0x20);
        pic.write(MASTER_COMMAND, 0x20);
        assert!(pic.intr());
        pic.set_pin(11, false);
        assert!(!pic.intr());
        // Nothing left: the INTA that comes too late gets the spurious vector and no service bit.
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(MASTER_COMMAND, 0x0b);
        assert_eq!(pic.read(MASTER_COMMAND), 0);
    }

    #[test]
    fn a_request_lost_in_the_slave_is_spurious_irq_15() {
        let mut pic = linux_like();
        pic.write(ELCR_SLAVE, 0x08);
        pic.set_pin(11, true);
        // The slave's request goes away between the two INTA cycles.
        pic.slave.set_pin(3, false);
        assert_eq!(pic.acknowledge(), 0x3f);
        pic.write(MASTER_COMMAND, 0x0b);
        assert_eq!(pic.read(MASTER_COMMAND), 4, "the master does need an EOI");
        pic.write(SLAVE_COMMAND, 0x0b);
        assert_eq!(pic.read(SLAVE_COMMAND), 0);
    }

    #[test]
    fn rotation_special_mask_auto_eoi_and_poll() {
        let mut pic = linux_like();
        pic.write(MASTER_COMMAND, 0xc3); // 3 is lowest, so 4 is highest
        pulse(&mut pic, 3);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.write(MASTER_COMMAND, 0xa0); // rotate on EOI: 4 is lowest
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x33);
        pic.write(MASTER_COMMAND, 0x68); // special mask mode
        pic.write(MASTER_DATA, 0x08);
        assert_eq!(pic.acknowledge(), 0x34, "masked 3 no longer blocks");
        pic.write(MASTER_COMMAND, 0x64);
        pic.write(MASTER_COMMAND, 0x63);

        let mut pic = linux_like();
        for (port, value) in
            [(MASTER_COMMAND, 0x11), (MASTER_DATA, 0x30), (MASTER_DATA, 4), (MASTER_DATA, 3)]
        {
            pic.write(port, value);
        }
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x31);
        pulse(&mut pic, 7);
        assert_eq!(pic.acknowledge(), 0x37, "automatic EOI leaves nothing in service");

        let mut pic = linux_like();
        pic.write(MASTER_COMMAND, 0x0c);
        assert_eq!(pic.read(MASTER_COMMAND), 0);
        pulse(&mut pic, 6);
        pic.write(MASTER_COMMAND, 0x0c);
        assert_eq!(pic.read(MASTER_COMMAND), 0x86);
        assert!(!pic.intr(), "polling acknowledges");
    }

    #[test]
    fn an_unfinished_initialisation_requests_nothing() {
        let mut pic = linux_like();
        pic.write(MASTER_COMMAND, 0x11);
        pulse(&mut pic, 1);
        assert!(!pic.intr());
        pic.write(MASTER_DATA, 0x47);
        pic.write(MASTER_DATA, 4);
        pic.write(MASTER_DATA, 1);
        assert_eq!(pic.acknowledge(), 0x41);
    }

    #[test]
    fn random_accesses_never_panic() {
        let mut pic = Pic::new();
        let mut seed = 1u64;
        for _ in 0..200_000 {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let [op, port, value, irq, ..] = (seed >> 32).to_le_bytes();
            match op & 3 {
                0 => pic.write(u64::from(port % 7), value),
                1 => drop(pic.read(u64::from(port % 7))),
                2 => pic.set_pin(irq % 20, value & 1 != 0),
                _ if pic.intr() => drop(pic.acknowledge()),
                _ => assert_eq!(pic.acknowledge() & 7, 7),
            }
        }
    }
}
