//! The adapter on PCI: frame buffer, registers in memory, option ROM.
//!
//! BAR 0 is the video memory, which the [`super::VideoHost`] shows where it decodes; BAR 2 has the ports 0x3c0 to
//! 0x3df at 0x400, the display interface's registers at 0x500 and the byte order at 0x604. Firmware finds
//! its video services in the expansion ROM. Invariants: the function and the ports share one [`Vga`]. Any
//! thread. Source: QEMU, docs/specs/standard-vga.

use std::sync::{Arc, Mutex};

use super::{BYTES, Vga, dispi};
use crate::clock::lock;
use crate::pci::config::{Bar, BarKind, ConfigSpace, Identity};
use crate::pci::{Function, PciDevice, PciError, PciRoot, ROM};

const FRAME_BUFFER: usize = 0;
const REGISTERS: usize = 2;
/// Largest option ROM.
pub const ROM_BYTES_MAX: usize = 64 << 10;

/// Registers after the two areas: their size, and the byte order of the frame buffer.
const EXTENSION: u64 = 0x600;
const EXTENSION_BYTES: u64 = 8;
const LITTLE_ENDIAN: u64 = 0x1e1e_1e1e;

struct Display {
    vga: Arc<Mutex<Vga>>,
    rom: Vec<u8>,
}

/// Fits `vga` into a free slot of the bus with `rom` as its option ROM, which may be empty. Gives the slot.
///
/// # Errors
/// There is no free slot.
pub fn add(root: &mut PciRoot, vga: &Arc<Mutex<Vga>>, mut rom: Vec<u8>) -> Result<u8, PciError> {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x1234,
        device: 0x1111,
        class: 0x03_0000,
        revision: 2,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    config.add_bar(FRAME_BUFFER, Bar { kind: BarKind::Memory32, size: BYTES as u64 });
    // Prefetchable: reads have no effects.
    config.set_u8(0x10, 0x08);
    config.add_bar(REGISTERS, Bar { kind: BarKind::Memory32, size: 0x1000 });
    if !rom.is_empty() {
        rom.truncate(ROM_BYTES_MAX);
        rom.resize(rom.len().next_power_of_two().max(2048), 0xff);
        config.add_rom(rom.len() as u64);
    }
    let device = Display { vga: Arc::clone(vga), rom };
    let slot = root.free_slot().ok_or(PciError::Full)?;
    root.add(slot, Function::new(config, Box::new(device)))?;
    Ok(slot)
}

impl PciDevice for Display {
    fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        if bar == ROM {
            let byte = |n| self.rom.get((offset + n) as usize).copied().unwrap_or(0xff);
            return (0..u64::from(size)).fold(0, |all, n| all | u64::from(byte(n)) << (8 * n));
        }
        if usize::from(bar) == FRAME_BUFFER {
            // Reached while a processor still holds another translation.
            let mut bytes = [0; 8];
            lock(&self.vga).host.copy_out(offset as usize, &mut bytes[..usize::from(size.min(8))]);
            return u64::from_le_bytes(bytes);
        }
        let mut vga = lock(&self.vga);
        match offset {
            0x400..=0x41f => (0..u64::from(size)).fold(0, |all, n| {
                all | u64::from(vga.read_port(0x3c0 + (offset - 0x400) + n)) << (8 * n)
            }),
            0x500..=0x5ff => {
                let index = (offset - 0x500) / 2;
                if index < dispi::REGISTERS as u64 {
                    u64::from(vga.dispi_at(index as u16))
                } else {
                    0
                }
            }
            EXTENSION => EXTENSION_BYTES,
            0x604 => LITTLE_ENDIAN,
            // No EDID: its header is missing.
            _ => 0,
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        if usize::from(bar) != REGISTERS {
            return;
        }
        let mut vga = lock(&self.vga);
        match offset {
            0x400..=0x41f => {
                for n in 0..u64::from(size) {
                    let byte = (value >> (8 * n) & 0xff) as u8;
                    vga.write_port(0x3c0 + (offset - 0x400) + n, byte);
                }
            }
            0x500..=0x5ff if (offset - 0x500) / 2 < dispi::REGISTERS as u64 => {
                vga.set_dispi_at(((offset - 0x500) / 2) as u16, (value & 0xffff) as u16);
            }
            _ => {}
        }
    }

    fn moved(&mut self, config: &ConfigSpace) {
        lock(&self.vga).place(config.decoded(FRAME_BUFFER));
    }
}

impl Vga {
    /// A register of the display interface, by its number.
    fn dispi_at(&mut self, index: u16) -> u16 {
        let old = self.dispi.index();
        self.dispi.set_index(index);
        let value = self.dispi.read();
        self.dispi.set_index(old);
        value
    }

    fn set_dispi_at(&mut self, index: u16, value: u16) {
        let old = self.dispi.index();
        self.dispi.set_index(index);
        self.write_dispi(1, value);
        self.dispi.set_index(old);
    }
}
