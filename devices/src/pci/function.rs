//! One PCI function: its configuration space, its interrupts, its device.
//!
//! Problem: every device would repeat command register, MSI-X and BAR plumbing. Scheme: [`Function`]
//! owns the configuration space and answers the MSI-X table by itself; a [`PciDevice`] sees accesses
//! to its other BARs. One [`BusDevice`] serves all BARs: the BAR's number is in the upper bits of the
//! bus offset. Invariants: the device never sees an access to the MSI-X BAR; interrupts hear of every
//! change to command and message control. Any thread, under the function's lock.
//!
//! Source: PCI Local Bus Specification 3.0, §6.2 "Configuration Space Functions".

use std::fmt;
use std::sync::Arc;

use super::config::{
    Bar, BarKind, COMMAND, Command, ConfigSpace, INTERRUPT_PIN, ROM_BAR, STATUS, STATUS_INTX,
};
use super::interrupts::{ENTRY_LEN, Interrupts, Message};
use crate::bus::BusDevice;

/// The number by which a device knows accesses to its expansion ROM.
pub const ROM: u8 = 6;

/// The part of a function that is particular to it.
pub trait PciDevice: Send {
    /// Reads `size` bytes (1, 2 or 4) at `offset` in BAR `bar`, or in the expansion [`ROM`].
    fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        let _ = (bar, offset, size);
        u64::MAX
    }
    /// Writes the low `size` bytes of `value`.
    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        let _ = (bar, offset, size, value);
    }
    /// Software is about to read `size` bytes of configuration space: bring them up to date.
    fn config_read(&mut self, config: &mut ConfigSpace, offset: usize, size: usize) {
        let _ = (config, offset, size);
    }
    /// Software wrote `size` bytes of configuration space.
    fn config_written(&mut self, config: &mut ConfigSpace, offset: usize, size: usize) {
        let _ = (config, offset, size);
    }
    /// BARs may decode elsewhere now.
    fn moved(&mut self, config: &ConfigSpace) {
        let _ = config;
    }
    /// Power-on state, also of what is not the header's in `config`. What the device had under way has
    /// ended when this returns.
    fn reset(&mut self, config: &mut ConfigSpace) {
        let _ = config;
    }
}

/// The bits of a bus offset that are the offset in a BAR; the BAR's number is above them.
const BAR_SHIFT: u32 = 56;

/// Bus offset of the first byte of a BAR.
pub(super) fn bar_base(bar: usize) -> u64 {
    (bar as u64) << BAR_SHIFT
}

const CAPABILITY_MSI: u8 = 0x05;
const MSI_ENABLE: u16 = 1 << 0;
const MSI_64_BIT: u16 = 1 << 7;
const CAPABILITY_MSIX: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

/// Where MSI-X lives.
struct Msix {
    bar: u8,
    /// Offset of message control in configuration space.
    control: usize,
    pending_at: u64,
}

/// A function on the bus.
pub struct Function {
    pub(super) config: ConfigSpace,
    device: Box<dyn PciDevice>,
    interrupts: Option<Arc<Interrupts>>,
    msix: Option<Msix>,
    /// Offset of MSI's message control in configuration space.
    msi: Option<usize>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("id", &format_args!("{:08x}", self.config.u32(0)))
            .field("interrupts", &self.interrupts)
            .finish_non_exhaustive()
    }
}

impl Function {
    /// A function without interrupts.
    #[must_use]
    pub fn new(config: ConfigSpace, device: Box<dyn PciDevice>) -> Self {
        Self { config, device, interrupts: None, msix: None, msi: None }
    }

    /// Gives the function its interrupt pin and, if `interrupts` has vectors, MSI-X with table and
    /// pending bits in BAR `msix_bar`, which it makes.
    #[must_use]
    pub fn with_interrupts(mut self, interrupts: Arc<Interrupts>, msix_bar: u8) -> Self {
        self.config.set_u8(INTERRUPT_PIN, interrupts.pin() + 1);
        let vectors = interrupts.vectors();
        if let Some(last) = vectors.checked_sub(1) {
            let pending_at = (u64::from(vectors) * ENTRY_LEN).next_multiple_of(0x800);
            let size = (pending_at + 0x800).next_power_of_two().max(0x1000);
            self.config.add_bar(usize::from(msix_bar), Bar { kind: BarKind::Memory32, size });
            let pending_low = u32::try_from(pending_at).expect("at most 2048 vectors of 16 bytes");
            let mut body = [0; 10];
            body[..2].copy_from_slice(&(last & 0x7ff).to_le_bytes());
            body[2..6].copy_from_slice(&u32::from(msix_bar).to_le_bytes());
            body[6..].copy_from_slice(&(pending_low | u32::from(msix_bar)).to_le_bytes());
            let control = self.config.add_capability(CAPABILITY_MSIX, &body) + 2;
            let writable = MSIX_ENABLE | MSIX_FUNCTION_MASK;
            self.config.set_writable(control, &writable.to_le_bytes());
            self.msix = Some(Msix { bar: msix_bar, control, pending_at });
        }
        self.interrupts = Some(interrupts);
        self
    }

    /// Gives the function MSI with one message to any address, which can't be masked.
    #[must_use]
    pub fn with_message(mut self) -> Self {
        let mut body = [0; 12];
        body[..2].copy_from_slice(&MSI_64_BIT.to_le_bytes());
        let control = self.config.add_capability(CAPABILITY_MSI, &body) + 2;
        let mut writable = [0xff; 12];
        writable[..2].copy_from_slice(&MSI_ENABLE.to_le_bytes());
        // Messages are double words.
        writable[2] = 0xfc;
        self.config.set_writable(control, &writable);
        self.msi = Some(control);
        self
    }

    #[must_use]
    pub fn interrupts(&self) -> Option<&Arc<Interrupts>> {
        self.interrupts.as_ref()
    }

    /// Reads configuration space as software does. `offset + size` is within a double word.
    pub fn config_read(&mut self, offset: usize, size: usize) -> u32 {
        if let Some(interrupts) = &self.interrupts {
            let bit = if interrupts.intx_requested() { STATUS_INTX } else { 0 };
            let status = self.config.u16(STATUS) & !STATUS_INTX | bit;
            self.config.set_u16(STATUS, status);
        }
        self.device.config_read(&mut self.config, offset, size);
        (0..size).fold(0, |word, i| word | u32::from(self.config.u8(offset + i)) << (8 * i))
    }

    /// Writes configuration space as software does. True if BARs may now decode elsewhere.
    pub fn config_write(&mut self, offset: usize, size: usize, value: u32) -> bool {
        for i in 0..size {
            self.config.write_u8(offset + i, (value >> (8 * i)) as u8);
        }
        self.tell_interrupts();
        self.device.config_written(&mut self.config, offset, size);
        offset < COMMAND + 2
            || (0x10..0x28).contains(&offset)
            || (ROM_BAR..ROM_BAR + 4).contains(&offset)
    }

    /// Brings the interrupts up to date with command register and message control.
    pub(super) fn tell_interrupts(&self) {
        if let Some(interrupts) = &self.interrupts {
            let command = self.config.command();
            let control = self.msix.as_ref().map_or(0, |msix| self.config.u16(msix.control));
            interrupts.configure(
                control & MSIX_ENABLE != 0,
                control & MSIX_FUNCTION_MASK != 0,
                command.contains(Command::BUS_MASTER),
                command.contains(Command::INTX_DISABLE),
            );
            let enabled = self.msi.filter(|&control| self.config.u16(control) & MSI_ENABLE != 0);
            interrupts.configure_msi(enabled.map(|control| {
                let [low, high] = [2, 6].map(|at| u64::from(self.config.u32(control + at)));
                let data = u32::from(self.config.u16(control + 10));
                Message { address: high << 32 | low, data }
            }));
        }
    }

    /// Tells the device that its BARs may have moved.
    pub(super) fn tell_moved(&mut self) {
        self.device.moved(&self.config);
    }

    /// Power-on state.
    pub fn reset(&mut self) {
        self.device.reset(&mut self.config);
        self.config.reset();
        if let Some(msix) = &self.msix {
            let control = self.config.u16(msix.control);
            self.config.set_u16(msix.control, control & !(MSIX_ENABLE | MSIX_FUNCTION_MASK));
        }
        if let Some(control) = self.msi {
            self.config.set_u16(control, MSI_64_BIT);
        }
        if let Some(interrupts) = &self.interrupts {
            interrupts.reset();
        }
    }
}

impl BusDevice for Function {
    fn name(&self, offset: u64) -> String {
        let id = self.config.u32(0);
        let (vendor, device, bar) = (id & 0xffff, id >> 16, offset >> BAR_SHIFT);
        match u8::try_from(bar) {
            Ok(ROM) => format!("PCI {vendor:04x}:{device:04x} ROM"),
            _ => format!("PCI {vendor:04x}:{device:04x} BAR {bar}"),
        }
    }

    fn read(&mut self, offset: u64, size: u8) -> u64 {
        let bar = (offset >> BAR_SHIFT) as u8;
        let offset = offset & ((1 << BAR_SHIFT) - 1);
        match (&self.msix, &self.interrupts) {
            (Some(msix), Some(interrupts)) if msix.bar == bar => {
                if offset < msix.pending_at {
                    interrupts.read_table(offset, size)
                } else {
                    interrupts.read_pending(offset - msix.pending_at, size)
                }
            }
            _ => self.device.bar_read(bar, offset, size),
        }
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        let bar = (offset >> BAR_SHIFT) as u8;
        let offset = offset & ((1 << BAR_SHIFT) - 1);
        match (&self.msix, &self.interrupts) {
            (Some(msix), Some(interrupts)) if msix.bar == bar => {
                if offset < msix.pending_at {
                    interrupts.write_table(offset, size, value);
                }
            }
            _ => self.device.bar_write(bar, offset, size, value),
        }
    }

    fn width(&self) -> u8 {
        4
    }
}
