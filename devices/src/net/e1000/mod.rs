//! The Intel 82540EM ("e1000"), a gigabit card that nearly every system has a driver for.
//!
//! Problem: an unmodified image must find a card that it knows, and firmware one that it can boot from.
//! Scheme: [`Card`] has the registers; writes to a ring's tail send (`transmit`), the network's call
//! receives (`receive`), each on the thread that it happens on, since no frame waits for anything but room in the
//! network or in the guest's ring. The PCI function is a thin wrapper that shares the card with the network's
//! callback. Invariants: one access goes through a ring at most once; what a frame gathers is bounded;
//! INTA# is asserted exactly while a cause is set and not masked; the guest's memory is touched only as bus
//! master. Lock order: function, card, then the network's queues and interrupts. Any thread.
//!
//! ```text
//! BAR 0 (32-bit, 128 KiB)  registers      BAR 2 (ports, 64)  IOADDR at 0, IODATA at 4      ROM  iPXE, if given
//! ```
//!
//! Interrupts are not delayed (RDTR, RADV, TIDV, TADV and ITR are kept and don't count), received checksums
//! are left to the driver (IXSM), flow control and power management do nothing.
//!
//! Source: Intel, PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453),
//! ch. 3 "Receive and Transmit Description", ch. 5 "EEPROM Interface", ch. 13 "Register Descriptions".

mod eeprom;
mod phy;
mod receive;
mod registers;
mod transmit;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use self::eeprom::Eeprom;
use self::phy::Phy;
use self::registers as reg;
use super::{Mac, NetBackend};
use crate::clock::lock;
use crate::pci::config::{Bar, BarKind, COMMAND, Command, ConfigSpace, Identity};
use crate::pci::{Function, Interrupts, PciDevice, PciError, PciRoot, ROM};

const REGISTERS_BAR: u8 = 0;
const REGISTERS_BYTES: u64 = 128 << 10;
const IO_BAR: u8 = 2;
const IO_BYTES: u64 = 64;
/// Ports of the I/O window: a register's offset, and the register.
const IO_ADDRESS: u64 = 0;
const IO_DATA: u64 = 4;
/// Largest option ROM.
pub const ROM_BYTES_MAX: usize = 256 << 10;

/// Bytes of a descriptor of either ring.
const DESCRIPTOR: u64 = 16;

/// See the module.
struct Card<M: GuestAddressSpace> {
    memory: M,
    backend: Arc<dyn NetBackend>,
    interrupts: Arc<Interrupts>,
    bus_master: bool,
    /// Registers that are what was written to them, and statistics, by offset / 4.
    regs: Box<[u32]>,
    /// Interrupt causes and their mask.
    causes: u32,
    mask: u32,
    eeprom: Eeprom,
    phy: Phy,
    /// Register that the I/O window shows.
    io_address: u32,
    sending: transmit::Sending,
}

/// A ring's registers: base, length, head, tail.
#[derive(Clone, Copy)]
struct Ring {
    base_low: u32,
    base_high: u32,
    len: u32,
    head: u32,
    tail: u32,
}

impl<M: GuestAddressSpace> Card<M> {
    fn new(memory: M, backend: Arc<dyn NetBackend>, mac: Mac, interrupts: Arc<Interrupts>) -> Self {
        let mut card = Self {
            memory,
            backend,
            interrupts,
            bus_master: false,
            regs: vec![0; (reg::END / 4) as usize].into(),
            causes: 0,
            mask: 0,
            eeprom: Eeprom::new(mac),
            phy: Phy::default(),
            io_address: 0,
            sending: transmit::Sending::default(),
        };
        card.reset();
        card
    }

    /// What CTRL.RST and power-on do.
    fn reset(&mut self) {
        self.regs.fill(0);
        self.causes = 0;
        self.mask = 0;
        self.phy = Phy::default();
        self.eeprom.reset();
        self.sending = transmit::Sending::default();
        self.put(reg::CTRL, reg::CTRL_FD | reg::CTRL_SPEED_1000);
        self.put(reg::TIPG, 0x0060_200a);
        self.put(reg::VET, 0x8100);
        self.put(reg::PBA, 0x0010_0030);
        self.put(reg::LEDCTL, 0x0706_8302);
        self.put(reg::RAL, u32::from(self.eeprom.word(1)) << 16 | u32::from(self.eeprom.word(0)));
        self.put(reg::RAL + 4, reg::RAH_VALID | u32::from(self.eeprom.word(2)));
        self.update_interrupt();
    }

    fn get(&self, register: u32) -> u32 {
        self.regs.get((register / 4) as usize).copied().unwrap_or(0)
    }

    fn put(&mut self, register: u32, value: u32) {
        if let Some(slot) = self.regs.get_mut((register / 4) as usize) {
            *slot = value;
        }
    }

    /// Counts in a statistics register, which stays at its largest value.
    fn count(&mut self, register: u32, n: u32) {
        let value = self.get(register).saturating_add(n);
        self.put(register, value);
    }

    /// The same in a pair of registers.
    fn count_long(&mut self, low: u32, n: u32) {
        let value = u64::from(self.get(low + 4)) << 32 | u64::from(self.get(low));
        let value = value.saturating_add(u64::from(n));
        self.put(low, value as u32);
        self.put(low + 4, (value >> 32) as u32);
    }

    fn raise(&mut self, causes: u32) {
        self.causes |= causes;
        self.update_interrupt();
    }

    fn update_interrupt(&self) {
        self.interrupts.set_intx(self.causes & self.mask != 0);
    }

    /// Address of descriptor `index` and the number of descriptors; `None` for a ring without any.
    fn ring(&self, ring: Ring) -> Option<(u64, u32)> {
        let base = u64::from(self.get(ring.base_high)) << 32 | u64::from(self.get(ring.base_low));
        let count = self.get(ring.len) / DESCRIPTOR as u32;
        (count > 0).then_some((base, count))
    }

    /// The descriptor at the head of `ring`, if the card owns it: its address and its bytes.
    fn descriptor(&mut self, ring: Ring) -> Option<(u64, [u8; DESCRIPTOR as usize])> {
        let (base, count) = self.ring(ring)?;
        if self.get(ring.head) >= count {
            self.put(ring.head, 0);
        }
        let head = self.get(ring.head);
        let tail = self.get(ring.tail);
        // A tail outside the ring would never be reached.
        if head == tail || tail >= count {
            return None;
        }
        let at = base.wrapping_add(u64::from(head) * DESCRIPTOR);
        let mut bytes = [0; DESCRIPTOR as usize];
        self.memory.memory().read_slice(&mut bytes, GuestAddress(at)).ok()?;
        Some((at, bytes))
    }

    /// The descriptor at the head is done with.
    fn advance(&mut self, ring: Ring) {
        let count = self.ring(ring).map_or(1, |(_, count)| count);
        let next = self.get(ring.head) + 1;
        self.put(ring.head, if next >= count { 0 } else { next });
    }

    /// Reads guest memory; what isn't there is zeroes.
    fn load(&self, at: u64, bytes: &mut [u8]) {
        if self.memory.memory().read_slice(bytes, GuestAddress(at)).is_err() {
            bytes.fill(0);
        }
    }

    /// Writes guest memory; what isn't there swallows it.
    fn store(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.memory().write_slice(bytes, GuestAddress(at));
    }

    fn read(&mut self, register: u32) -> u32 {
        match register {
            reg::STATUS => reg::STATUS_VALUE,
            reg::EECD => self.eeprom.read_pins(),
            reg::EERD => self.eeprom.read_register(),
            reg::MDIC => self.phy.read_access(),
            reg::ICR => {
                let causes = std::mem::take(&mut self.causes);
                self.update_interrupt();
                causes
            }
            reg::IMS => self.mask,
            reg::STATISTICS..reg::STATISTICS_END => {
                let value = self.get(register);
                self.put(register, 0);
                value
            }
            _ => self.get(register),
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        match register {
            reg::CTRL => {
                if value & reg::CTRL_RST != 0 {
                    self.reset();
                    return;
                }
                if value & reg::CTRL_PHY_RST != 0 {
                    self.phy = Phy::default();
                }
                self.put(reg::CTRL, value & !reg::CTRL_PHY_RST);
            }
            reg::CTRL_EXT => {
                if value & reg::CTRL_EXT_EE_RST != 0 {
                    self.eeprom.reset();
                }
                self.put(register, value & !reg::CTRL_EXT_EE_RST);
            }
            reg::EECD => self.eeprom.write_pins(value),
            reg::EERD => self.eeprom.write_register(value),
            reg::MDIC => {
                if self.phy.access(value) {
                    self.raise(reg::CAUSE_LSC);
                }
                if value & reg::MDIC_INTERRUPT != 0 {
                    self.raise(reg::CAUSE_MDAC);
                }
            }
            reg::ICR => {
                self.causes &= !value;
                self.update_interrupt();
            }
            reg::ICS => self.raise(value & reg::CAUSES),
            reg::IMS => {
                self.mask |= value & reg::CAUSES;
                self.update_interrupt();
            }
            reg::IMC => {
                self.mask &= !value;
                self.update_interrupt();
            }
            reg::RCTL => {
                self.put(register, value);
                self.receive();
            }
            reg::RDT => {
                self.put(register, value & 0xffff);
                self.receive();
            }
            reg::TCTL => {
                self.put(register, value);
                self.transmit();
            }
            reg::TDT => {
                self.put(register, value & 0xffff);
                self.transmit();
            }
            reg::RDBAL | reg::TDBAL => self.put(register, value & !0xf),
            reg::RDLEN | reg::TDLEN => self.put(register, value & 0xf_ff80),
            reg::RDH | reg::TDH => self.put(register, value & 0xffff),
            _ if reg::is_plain(register) => self.put(register, value),
            _ => {}
        }
    }
}

/// The function on the bus.
struct E1000<M: GuestAddressSpace> {
    card: Arc<Mutex<Card<M>>>,
    rom: Vec<u8>,
}

/// Fits a card into a free slot of the bus, plugged into `backend`; `rom`, which may be empty, is its
/// option ROM. Returns the slot.
///
/// # Errors
/// [`PciError::Full`] if the bus is.
pub fn add<M>(
    root: &mut PciRoot,
    memory: M,
    backend: Arc<dyn NetBackend>,
    mac: Mac,
    mut rom: Vec<u8>,
) -> Result<u8, PciError>
where
    M: GuestAddressSpace + Send + Sync + 'static,
{
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: eeprom::DEVICE,
        class: 0x02_0000,
        revision: 3,
        subsystem_vendor: eeprom::SUBSYSTEM_VENDOR,
        subsystem: eeprom::SUBSYSTEM,
    });
    let registers = Bar { kind: BarKind::Memory32, size: REGISTERS_BYTES };
    config.add_bar(usize::from(REGISTERS_BAR), registers);
    config.add_bar(usize::from(IO_BAR), Bar { kind: BarKind::Io, size: IO_BYTES });
    if !rom.is_empty() {
        rom.truncate(ROM_BYTES_MAX);
        rom.resize(rom.len().next_power_of_two().max(2048), 0xff);
        config.add_rom(rom.len() as u64);
    }
    let slot = root.free_slot().ok_or(PciError::Full)?;
    let interrupts = root.interrupts(slot, 0);
    let card = Card::new(memory, Arc::clone(&backend), mac, Arc::clone(&interrupts));
    let card = Arc::new(Mutex::new(card));
    let called = Arc::downgrade(&card);
    backend.plug(Box::new(move || {
        if let Some(card) = called.upgrade() {
            let mut card = lock(&card);
            card.receive();
            card.transmit();
        }
    }));
    let function = Function::new(config, Box::new(E1000 { card, rom }));
    // Without vectors no BAR is taken for a table.
    root.add(slot, function.with_interrupts(interrupts, 0).with_message())?;
    Ok(slot)
}

/// The register at `offset`; accesses are to the double word that holds them.
fn register(offset: u64) -> u32 {
    (offset & 0x1_fffc) as u32
}

impl<M: GuestAddressSpace + Send + Sync + 'static> PciDevice for E1000<M> {
    fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64 {
        if bar == ROM {
            let byte = |n| self.rom.get((offset + n) as usize).copied().unwrap_or(0xff);
            return (0..u64::from(size)).fold(0, |all, n| all | u64::from(byte(n)) << (8 * n));
        }
        let mut card = lock(&self.card);
        let value = match (bar, offset & !3) {
            (REGISTERS_BAR, _) => card.read(register(offset)),
            (IO_BAR, IO_ADDRESS) => card.io_address,
            (IO_BAR, IO_DATA) => {
                let at = card.io_address;
                card.read(register(at.into()))
            }
            _ => 0,
        };
        u64::from(value) >> (8 * (offset & 3))
    }

    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64) {
        // "All writes must be 32 bits wide."
        if size != 4 || !offset.is_multiple_of(4) {
            return;
        }
        let mut card = lock(&self.card);
        match (bar, offset) {
            (REGISTERS_BAR, _) => card.write(register(offset), value as u32),
            (IO_BAR, IO_ADDRESS) => card.io_address = value as u32,
            (IO_BAR, IO_DATA) => {
                let at = card.io_address;
                card.write(register(at.into()), value as u32);
            }
            _ => {}
        }
    }

    fn config_written(&mut self, config: &mut ConfigSpace, offset: usize, _: usize) {
        if (COMMAND..COMMAND + 2).contains(&offset) {
            let mut card = lock(&self.card);
            card.bus_master = config.command().contains(Command::BUS_MASTER);
            if card.bus_master {
                card.receive();
                card.transmit();
            }
        }
    }

    fn reset(&mut self, _: &mut ConfigSpace) {
        let mut card = lock(&self.card);
        card.bus_master = false;
        card.io_address = 0;
        card.reset();
    }
}
