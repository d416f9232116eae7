//! The chip set's reset controls: ports 0xcf9 and 0x92, and the A20 gate that 0x92 shares with the
//! keyboard controller.
//!
//! Problem: three generations of PC each found a way to reset the processor. Scheme: each raises
//! [`PowerEvent::Reset`] on the written bit's rising edge. [`A20Gate`] is one latch, last writer wins.
//! Invariants: the gate starts open, as after any firmware; whoever ties the processors' line hears of each
//! change. Any thread.
//! Source: Intel 82371SB (PIIX3) datasheet, "RC: Reset Control Register" (0xcf9); IBM PS/2 technical
//! reference, "System Control Port A" (0x92).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;
use crate::power::{PowerEvent, PowerEvents};

/// Port of [`ResetControl`]: one byte in the middle of PCI's configuration address register, which
/// takes only 32-bit accesses at its own start.
pub const RESET_CONTROL_PORT: u64 = 0xcf9;
/// Port of [`SystemControlA`].
pub const SYSTEM_CONTROL_A_PORT: u64 = 0x92;
/// What software writes to 0xcf9 for a full reset; named by ACPI's FADT.
pub const RESET_CONTROL_FULL: u8 = RC_RESET_CPU | RC_SYSTEM_RESET;

const RC_SYSTEM_RESET: u8 = 1 << 1;
const RC_RESET_CPU: u8 = 1 << 2;

const PORT92_RESET: u8 = 1 << 0;
const PORT92_A20: u8 = 1 << 1;
/// Bits without a meaning that keep what is written.
const PORT92_STORED: u8 = 0xfc;

type OnChange = dyn Fn(bool) + Send + Sync;

/// Whether address line 20 is passed on.
#[derive(Clone)]
pub struct A20Gate {
    open: Arc<AtomicBool>,
    changed: Arc<OnChange>,
}

impl fmt::Debug for A20Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("A20Gate").field(&self.is_open()).finish()
    }
}

impl A20Gate {
    /// An open gate that tells `changed` of each change. That runs under the lock of the device that made
    /// it: no device calls, no waiting.
    #[must_use]
    pub fn new(changed: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self { open: Arc::new(AtomicBool::new(true)), changed: Arc::new(changed) }
    }
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }
    pub fn set(&self, open: bool) {
        if self.open.swap(open, Ordering::Relaxed) != open {
            (self.changed)(open);
        }
    }
}

/// Port 0xcf9.
#[derive(Debug)]
pub struct ResetControl {
    value: u8,
    power: PowerEvents,
}

impl ResetControl {
    #[must_use]
    pub fn new(power: PowerEvents) -> Self {
        Self { value: 0, power }
    }

    /// Clears the register, which a reset does.
    pub fn reset(&mut self) {
        self.value = 0;
    }
}

impl BusDevice for ResetControl {
    fn read(&mut self, _: u64, _: u8) -> u64 {
        self.value.into()
    }
    fn write(&mut self, _: u64, _: u8, value: u64) {
        let value = (value & 0xff) as u8;
        // Soft or hard (bit 1) makes no difference: memory contents survive neither.
        if value & !self.value & RC_RESET_CPU != 0 {
            self.power.raise(PowerEvent::Reset);
        }
        self.value = value & (RC_SYSTEM_RESET | RC_RESET_CPU);
    }
}

/// Port 0x92.
#[derive(Debug)]
pub struct SystemControlA {
    value: u8,
    a20: A20Gate,
    power: PowerEvents,
}

impl SystemControlA {
    #[must_use]
    pub fn new(a20: A20Gate, power: PowerEvents) -> Self {
        Self { value: 0, a20, power }
    }

    /// Clears the reset bit and opens the gate.
    pub fn reset(&mut self) {
        self.value = 0;
        self.a20.set(true);
    }
}

impl BusDevice for SystemControlA {
    fn read(&mut self, _: u64, _: u8) -> u64 {
        let a20 = if self.a20.is_open() { PORT92_A20 } else { 0 };
        u64::from(self.value | a20)
    }
    fn write(&mut self, _: u64, _: u8, value: u64) {
        let value = (value & 0xff) as u8;
        self.a20.set(value & PORT92_A20 != 0);
        if value & !self.value & PORT92_RESET != 0 {
            self.power.raise(PowerEvent::Reset);
        }
        self.value = value & (PORT92_STORED | PORT92_RESET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cf9_resets_on_the_rising_edge_of_bit_2() {
        let power = PowerEvents::new();
        let mut port = ResetControl::new(power.clone());
        port.write(0, 1, 0x02);
        assert_eq!(port.read(0, 1), 0x02);
        assert!(!power.is_raised());
        port.write(0, 1, 0x06);
        assert_eq!(power.take(), Some(PowerEvent::Reset));
        port.write(0, 1, 0x06);
        assert!(!power.is_raised());
        port.reset();
        port.write(0, 1, u64::from(RESET_CONTROL_FULL));
        assert!(power.is_raised());
    }

    #[test]
    fn port_92_gates_a20_and_resets() {
        let power = PowerEvents::new();
        let told = Arc::new(AtomicBool::new(true));
        let a20 = {
            let told = Arc::clone(&told);
            A20Gate::new(move |open| told.store(open, Ordering::Relaxed))
        };
        let mut port = SystemControlA::new(a20.clone(), power.clone());
        assert_eq!(port.read(0, 1), 0x02);
        port.write(0, 1, 0x00);
        assert!(!a20.is_open() && !told.load(Ordering::Relaxed));
        assert_eq!(port.read(0, 1), 0x00);
        a20.set(true);
        assert!(told.load(Ordering::Relaxed));
        assert_eq!(port.read(0, 1), 0x02, "the keyboard controller's change shows");
        assert!(!power.is_raised());
        port.write(0, 1, 0x03);
        assert_eq!(power.take(), Some(PowerEvent::Reset));
        port.reset();
        assert_eq!(port.read(0, 1), 0x02);
    }
}
