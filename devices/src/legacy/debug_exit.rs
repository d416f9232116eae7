//! The ISA debug-exit port.
//!
//! Problem: a test guest wants to end with a verdict. Scheme: any write to the four ports at 0xf4
//! raises [`PowerEvent::DebugExit`] with the value; the program's exit status is made from it by
//! [`exit_status`]. Invariants: none; the device has no state. Any thread.
//! Source: QEMU's `isa-debug-exit` (iobase 0xf4, iosize 4), as test guests expect it.

use crate::bus::BusDevice;
use crate::power::{PowerEvent, PowerEvents};

pub const PORT: u64 = 0xf4;
pub const PORTS: u64 = 4;

/// The debug-exit device.
#[derive(Debug)]
pub struct DebugExit {
    power: PowerEvents,
}

impl DebugExit {
    #[must_use]
    pub fn new(power: PowerEvents) -> Self {
        Self { power }
    }
}

/// The program's exit status for a written value: never 0, and cut to what the host keeps of it.
#[must_use]
pub fn exit_status(value: u32) -> u8 {
    (value << 1 | 1) as u8
}

impl BusDevice for DebugExit {
    fn read(&mut self, _: u64, _: u8) -> u64 {
        0
    }
    fn write(&mut self, _: u64, _: u8, value: u64) {
        self.power.raise(PowerEvent::DebugExit((value & 0xffff_ffff) as u32));
    }
    fn width(&self) -> u8 {
        4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_any_width_ends_the_machine_with_its_value() {
        for (offset, size, value, status) in
            [(0, 1, 0, 1), (0, 4, 0x10, 0x21), (0, 2, 0x180, 1), (3, 1, 0x7f, 0xff)]
        {
            let power = PowerEvents::new();
            let mut device = DebugExit::new(power.clone());
            assert_eq!(device.read(offset, size), 0);
            assert!(!power.is_raised());
            device.write(offset, size, value);
            assert_eq!(power.get(), Some(PowerEvent::DebugExit(value as u32)));
            assert_eq!(exit_status(value as u32), status);
        }
    }
}
