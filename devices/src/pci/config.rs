//! The 256 bytes of configuration space of one function, header type 0.
//!
//! Problem: software reads and writes any byte of it in any width, and few bits take a write. Scheme:
//! three arrays side by side: the value, the bits that a write changes, the bits that writing one
//! clears. Sizing a base address register by writing all ones needs no code: address bits below the
//! size take no write. Invariants: offsets are masked into the space; a BAR's address is a multiple
//! of its size. Called by [`super::root`] with the function's lock held. Any thread.
//!
//! Source: PCI Local Bus Specification 3.0, §6.1 "Configuration Space Organization", §6.2.5 "Base
//! Addresses" with the expansion ROM's, §6.7 "Capabilities List".

use bitflags::bitflags;

pub const VENDOR_ID: usize = 0x00;
pub const COMMAND: usize = 0x04;
pub const STATUS: usize = 0x06;
pub const HEADER_TYPE: usize = 0x0e;
pub const BAR0: usize = 0x10;
pub const CAPABILITIES: usize = 0x34;
/// Expansion ROM base address.
pub const ROM_BAR: usize = 0x30;
pub const INTERRUPT_LINE: usize = 0x3c;
pub const INTERRUPT_PIN: usize = 0x3d;

/// Base address registers of a header type 0.
pub const BARS: usize = 6;
/// Expansion ROM base address: the ROM decodes.
const ROM_ENABLE: u32 = 1 << 0;
/// End of the standard header, where capabilities begin.
const HEADER_END: usize = 0x40;
const SIZE: usize = 256;

bitflags! {
    /// Command register.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Command: u16 {
        const IO = 1 << 0;
        const MEMORY = 1 << 1;
        const BUS_MASTER = 1 << 2;
        const PARITY = 1 << 6;
        const SERR = 1 << 8;
        const INTX_DISABLE = 1 << 10;
    }
}

/// Status register: INTx is asserted, and there is a capability list.
pub const STATUS_INTX: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Status register: the error bits, cleared by writing ones.
const STATUS_ERRORS: u16 = 0xf900;

/// Address space of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    Io,
    Memory32,
    /// Takes two registers. Prefetchable.
    Memory64,
}

/// A base address register that the device implements.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    pub kind: BarKind,
    /// Power of two.
    pub size: u64,
}

/// Identification registers of a function.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    /// Class, subclass, programming interface.
    pub class: u32,
    pub revision: u8,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// Configuration space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    value: [u8; SIZE],
    writable: [u8; SIZE],
    clears: [u8; SIZE],
    bars: [Option<Bar>; BARS],
    /// Size of the expansion ROM; 0 if there is none.
    rom_size: u64,
    /// Where the next capability goes.
    free: usize,
    /// The byte that points to the next capability.
    link: usize,
}

impl ConfigSpace {
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut config = Self {
            value: [0; SIZE],
            writable: [0; SIZE],
            clears: [0; SIZE],
            bars: [None; BARS],
            rom_size: 0,
            free: HEADER_END,
            link: CAPABILITIES,
        };
        config.set_u16(VENDOR_ID, identity.vendor);
        config.set_u16(0x02, identity.device);
        config.set_u32(0x08, identity.class << 8 | u32::from(identity.revision));
        config.set_u16(0x2c, identity.subsystem_vendor);
        config.set_u16(0x2e, identity.subsystem);
        config.set_writable(COMMAND, &Command::all().bits().to_le_bytes());
        config.clears[STATUS..STATUS + 2].copy_from_slice(&STATUS_ERRORS.to_le_bytes());
        // Cache line size and latency timer are plain storage on real devices too.
        config.set_writable(0x0c, &[0xff, 0xff]);
        config.set_writable(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Adds base address register `index`.
    ///
    /// # Panics
    /// If the size isn't a power of two of at least 16 bytes or the register is taken: a mistake in
    /// the device model.
    pub fn add_bar(&mut self, index: usize, bar: Bar) {
        assert!(bar.size.is_power_of_two() && bar.size >= 16, "BAR size {:#x}", bar.size);
        assert!(self.bars[index].is_none(), "BAR {index} given twice");
        let register = BAR0 + 4 * index;
        let mask = !(bar.size - 1);
        let flags = match bar.kind {
            BarKind::Io => 0b0001,
            BarKind::Memory32 => 0b0000,
            BarKind::Memory64 => 0b1100,
        };
        self.set_u32(register, flags);
        self.set_writable(register, &low_u32(mask).to_le_bytes());
        if bar.kind == BarKind::Memory64 {
            assert!(index + 1 < BARS && self.bars[index + 1].is_none(), "BAR {index} has no pair");
            self.set_writable(register + 4, &low_u32(mask >> 32).to_le_bytes());
        }
        self.bars[index] = Some(bar);
    }

    /// Adds the expansion ROM base address register, for a ROM of `size` bytes.
    ///
    /// # Panics
    /// If the size isn't a power of two of at least 2 KiB: a mistake in the device model.
    pub fn add_rom(&mut self, size: u64) {
        assert!(size.is_power_of_two() && size >= 2048, "ROM size {size:#x}");
        self.set_writable(ROM_BAR, &(low_u32(!(size - 1)) | ROM_ENABLE).to_le_bytes());
        self.rom_size = size;
    }

    /// Size of the expansion ROM, and where it decodes, if there is one and it is enabled.
    #[must_use]
    pub fn rom(&self) -> Option<(u64, u64)> {
        let register = self.u32(ROM_BAR);
        let start = u64::from(register & !0x7ff);
        let enabled = register & ROM_ENABLE != 0 && self.command().contains(Command::MEMORY);
        let fits = start != 0 && start + self.rom_size <= u64::from(u32::MAX);
        (self.rom_size != 0 && enabled && fits).then_some((self.rom_size, start))
    }

    /// Appends a capability; `body` follows the ID and next-pointer bytes. Returns its offset.
    ///
    /// # Panics
    /// If the space is full: a mistake in the device model.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.free;
        let end = at + 2 + body.len();
        assert!(end <= SIZE, "capabilities overflow the configuration space");
        self.value[at] = id;
        self.value[at + 2..end].copy_from_slice(body);
        self.value[self.link] = at.to_le_bytes()[0];
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        let status = self.u16(STATUS) | STATUS_CAPABILITIES;
        self.set_u16(STATUS, status);
        at
    }

    /// Makes the bits of `mask` writable, from `offset` on.
    pub fn set_writable(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// The device's own change of a byte.
    pub fn set_u8(&mut self, offset: usize, value: u8) {
        self.value[offset % SIZE] = value;
    }

    /// The device's own change of a word.
    pub fn set_u16(&mut self, offset: usize, value: u16) {
        self.value[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// The device's own change of a double word.
    pub fn set_u32(&mut self, offset: usize, value: u32) {
        self.value[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[must_use]
    pub fn u8(&self, offset: usize) -> u8 {
        self.value[offset % SIZE]
    }

    #[must_use]
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.u8(offset), self.u8(offset + 1)])
    }

    #[must_use]
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    #[must_use]
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.u16(COMMAND))
    }

    /// A byte as software writes it.
    pub fn write_u8(&mut self, offset: usize, value: u8) {
        let at = offset % SIZE;
        let writable = self.writable[at];
        let kept = self.value[at] & !writable & !(value & self.clears[at]);
        self.value[at] = kept | value & writable;
    }

    #[must_use]
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// Address in base address register `index`, enabled or not.
    #[must_use]
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let register = BAR0 + 4 * index;
        let low = u64::from(self.u32(register));
        Some(match bar.kind {
            BarKind::Io => low & !0x3,
            BarKind::Memory32 => low & !0xf,
            BarKind::Memory64 => low & !0xf | u64::from(self.u32(register + 4)) << 32,
        })
    }

    /// Programs base address register `index`, as firmware does.
    pub fn set_bar_address(&mut self, index: usize, address: u64) {
        let Some(bar) = self.bar(index) else { return };
        let bytes = address.to_le_bytes();
        let len = if bar.kind == BarKind::Memory64 { 8 } else { 4 };
        for (i, byte) in bytes[..len].iter().enumerate() {
            self.write_u8(BAR0 + 4 * index + i, *byte);
        }
    }

    /// Where register `index` decodes now: `None` when its space is disabled in the command
    /// register, at address 0, or past the end of the space (as in the middle of sizing).
    #[must_use]
    pub fn decoded(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let (enable, limit) = match bar.kind {
            BarKind::Io => (Command::IO, 0xffff),
            BarKind::Memory32 => (Command::MEMORY, 0xffff_ffff),
            BarKind::Memory64 => (Command::MEMORY, u64::MAX),
        };
        let address = self.bar_address(index)?;
        let last = address.checked_add(bar.size - 1)?;
        // The very top of the space is what sizing leaves there for a moment.
        (self.command().contains(enable) && address != 0 && last < limit).then_some(address)
    }

    /// Power-on state of what software may have changed in the header.
    pub fn reset(&mut self) {
        self.set_u16(COMMAND, 0);
        self.set_u8(INTERRUPT_LINE, 0);
        for index in 0..BARS {
            self.set_bar_address(index, 0);
        }
        self.set_u32(ROM_BAR, 0);
    }
}

/// The low half of `value`.
fn low_u32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
