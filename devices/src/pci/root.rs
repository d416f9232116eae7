//! Configuration mechanism #1, and the mapping of base address registers.
//!
//! Problem: a guest moves BARs at will while other vCPUs access them. Scheme: after each write that
//! can change decoding, the root compares where the function's BARs decode with where they are mapped,
//! and moves those that differ. Invariants: a BAR is mapped at most once; a function's lock is not held
//! while the root maps. Any thread, under the root's lock.
//!
//! Source: PCI Local Bus Specification 3.0, §3.2.2.3.2 "Software Generation of Configuration
//! Transactions"; Intel 82441FX datasheet, "CONFADD" and "CONFDATA".

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::chipset::{self, MemorySwitch};
use super::config::{BARS, BarKind, COMMAND, Command, INTERRUPT_LINE};
use super::function::{Function, ROM, bar_base};
use super::interrupts::{Interrupts, IntxRouter};
use crate::acpi::pm::PmBlock;
use crate::bus::{Bus, BusDevice, MovingRanges, Overlap};
use crate::clock::lock;
use crate::irq::IrqSink;

const CONFADD: u64 = 0xcf8;
const CONFDATA: u64 = 0xcfc;
const CONFADD_ENABLE: u32 = 1 << 31;
/// The bits of CONFADD that are kept.
const CONFADD_BITS: u32 = 0x80ff_fffc;

/// The chip set's functions.
const HOST_BRIDGE: u8 = 0;
const ISA_BRIDGE: u8 = 1 << 3;
const IDE: u8 = 1 << 3 | 1;
const POWER_MANAGEMENT: u8 = 1 << 3 | 3;

/// Slots of a bus.
/// Devices on a bus at most.
pub const SLOTS: u8 = 32;

/// What firmware writes into the PIRQ route control registers; also the interrupt line registers.
const PIRQ_ROUTES: [u8; 4] = [10, 10, 11, 11];

/// A device can't be put on the bus, or the bus can't be laid out.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    #[error("PCI slot {0} doesn't exist or is taken")]
    Slot(u8),
    #[error("all {} slots of the PCI bus are taken", SLOTS)]
    Full,
    #[error("PCI devices need more than the {0:#x} bytes of address space left for them")]
    NoSpace(u64),
}

struct Fitted {
    function: Arc<Mutex<Function>>,
    bars: [Option<u64>; BARS],
    rom: Option<u64>,
}

/// The root of PCI bus 0.
pub struct PciRoot {
    address: u32,
    /// By device and function number.
    functions: BTreeMap<u8, Fitted>,
    memory: Arc<MovingRanges>,
    ports: Arc<MovingRanges>,
    router: Arc<IntxRouter>,
    sink: Arc<dyn IrqSink>,
}

impl std::fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciRoot").field("functions", &self.functions.keys()).finish_non_exhaustive()
    }
}

impl PciRoot {
    /// Makes the bus with its two bridges and puts its ports on `ports`. BARs appear on `memory` and
    /// `ports`. The host bridge switches memory below 1 MiB by `switch`.
    ///
    /// # Errors
    /// [`Overlap`] if 0xcf8 or 0xcfc is taken.
    pub fn new(
        memory: &Bus,
        ports: &mut Bus,
        sink: Arc<dyn IrqSink>,
        switch: Box<dyn MemorySwitch>,
    ) -> Result<Arc<Mutex<Self>>, Overlap> {
        let router = IntxRouter::new(Arc::clone(&sink));
        let mut root = Self {
            address: 0,
            functions: BTreeMap::new(),
            memory: memory.moving(),
            ports: ports.moving(),
            router: Arc::clone(&router),
            sink,
        };
        root.fit(HOST_BRIDGE, chipset::host_bridge(switch));
        root.fit(ISA_BRIDGE, chipset::isa_bridge(router));
        let root = Arc::new(Mutex::new(root));
        // One byte long: only an access that starts here reaches CONFADD, and the byte at 0xcf9 is
        // free for the reset control register.
        ports.insert_at(CONFADD, 1, 0, Arc::clone(&root) as _)?;
        ports.insert_at(CONFDATA, 4, CONFDATA - CONFADD, Arc::clone(&root) as _)?;
        Ok(root)
    }

    /// A free slot.
    #[must_use]
    pub fn free_slot(&self) -> Option<u8> {
        (2..SLOTS).find(|slot| !self.functions.contains_key(&(slot << 3)))
    }

    /// Interrupts for function 0 of `slot`, with `vectors` MSI-X vectors (at most 2048) and INTA#.
    #[must_use]
    pub fn interrupts(&self, slot: u8, vectors: u16) -> Arc<Interrupts> {
        let router = Arc::clone(&self.router);
        Interrupts::new(Arc::clone(&self.sink), router, slot, 0, vectors.min(2048))
    }

    /// Fits `function` as function 0 of `slot`. Its BARs have no addresses yet.
    ///
    /// # Errors
    /// [`PciError::Slot`] if there is no such slot or it is taken.
    pub fn add(&mut self, slot: u8, function: Function) -> Result<(), PciError> {
        if slot >= SLOTS || self.functions.contains_key(&(slot << 3)) {
            return Err(PciError::Slot(slot));
        }
        self.fit(slot << 3, function);
        Ok(())
    }

    /// Fits the chip set's power management function, which puts `block` on the ports.
    pub fn add_power_management(&mut self, block: &Arc<Mutex<PmBlock>>) {
        let function = chipset::power_management(Arc::clone(block), Arc::clone(&self.ports));
        self.fit(POWER_MANAGEMENT, function);
    }

    /// Fits the chip set's IDE function.
    ///
    /// # Errors
    /// [`PciError::Slot`] if it is there already.
    pub fn add_ide(&mut self, function: Function) -> Result<(), PciError> {
        if self.functions.contains_key(&IDE) {
            return Err(PciError::Slot(IDE >> 3));
        }
        self.fit(IDE, function);
        Ok(())
    }

    fn fit(&mut self, devfn: u8, function: Function) {
        let function = Arc::new(Mutex::new(function));
        self.functions.insert(devfn, Fitted { function, bars: [None; BARS], rom: None });
    }

    /// Does what firmware does before a kernel starts: places every BAR in `hole` or `io`, enables
    /// decoding, routes the PIRQs to ISA lines 10 and 11 (which the board makes level-triggered), puts
    /// the power management block where ACPI says, and turns all of the ROM area to RAM.
    ///
    /// # Errors
    /// [`PciError::NoSpace`] if they don't fit.
    pub fn assign_resources(&mut self, hole: Range<u64>, io: Range<u16>) -> Result<(), PciError> {
        let mut wanted = Vec::new();
        for (&devfn, fitted) in &self.functions {
            let function = lock(&fitted.function);
            for index in 0..BARS {
                if let Some(bar) = function.config.bar(index) {
                    wanted.push((bar.size, bar.kind == BarKind::Io, devfn, index));
                }
            }
        }
        // Largest first: each is aligned to its size, so none leaves a gap. The sort is stable.
        wanted.sort_by_key(|&(size, ..)| std::cmp::Reverse(size));
        // Port 0 and address 0 are taken to mean "no address".
        let mut next = hole.start.max(1);
        let mut next_port = u64::from(io.start).max(1);
        for (size, is_io, devfn, index) in wanted {
            let (next, range) = if is_io {
                (&mut next_port, u64::from(io.start)..u64::from(io.end))
            } else {
                (&mut next, hole.clone())
            };
            let no_space = PciError::NoSpace(range.end.saturating_sub(range.start));
            let Some(start) = next.checked_next_multiple_of(size) else { return Err(no_space) };
            match start.checked_add(size) {
                Some(end) if end <= range.end => *next = end,
                _ => return Err(no_space),
            }
            if let Some(fitted) = self.functions.get(&devfn) {
                lock(&fitted.function).config.set_bar_address(index, start);
            }
        }
        for (&devfn, fitted) in &self.functions {
            let mut function = lock(&fitted.function);
            let command = function.config.command() | Command::IO | Command::MEMORY;
            function.config_write(COMMAND, 2, u32::from(command.bits()));
            if let Some(interrupts) = function.interrupts() {
                let pirq = usize::from(devfn >> 3) + usize::from(interrupts.pin()) + 3;
                let line = PIRQ_ROUTES[pirq % PIRQ_ROUTES.len()];
                function.config_write(INTERRUPT_LINE, 1, u32::from(line));
            }
            match devfn {
                HOST_BRIDGE => {
                    for index in 0..chipset::PAMS {
                        function.config_write(chipset::PAM + index, 1, chipset::PAM_RAM.into());
                    }
                }
                ISA_BRIDGE => {
                    function.config_write(chipset::PIRQRC, 4, u32::from_le_bytes(PIRQ_ROUTES));
                }
                IDE => chipset::enable_ide(&mut function),
                POWER_MANAGEMENT => chipset::enable_power_management(&mut function),
                _ => {}
            }
        }
        let all: Vec<u8> = self.functions.keys().copied().collect();
        all.into_iter().for_each(|devfn| self.remap(devfn));
        Ok(())
    }

    /// Power-on state of the whole bus: devices have ended what they had under way, BARs have no
    /// addresses.
    pub fn reset(&mut self) {
        self.address = 0;
        let all: Vec<u8> = self.functions.keys().copied().collect();
        for devfn in all {
            if let Some(fitted) = self.functions.get(&devfn) {
                lock(&fitted.function).reset();
            }
            self.remap(devfn);
        }
    }

    /// Maps the BARs of `devfn` where its registers say.
    fn remap(&mut self, devfn: u8) {
        let Some(fitted) = self.functions.get_mut(&devfn) else { return };
        for index in 0..BARS {
            let (bar, wanted) = {
                let function = lock(&fitted.function);
                (function.config.bar(index), function.config.decoded(index))
            };
            let Some(bar) = bar else { continue };
            if fitted.bars[index] == wanted {
                continue;
            }
            let ranges = if bar.kind == BarKind::Io { &self.ports } else { &self.memory };
            let device: Arc<Mutex<dyn BusDevice>> = Arc::clone(&fitted.function) as _;
            if fitted.bars[index].is_some() {
                ranges.unmap(bar_base(index), &device);
            }
            if let Some(start) = wanted {
                ranges.map(start, bar.size, bar_base(index), device);
            }
            fitted.bars[index] = wanted;
        }
        let rom = {
            let mut function = lock(&fitted.function);
            function.tell_moved();
            function.config.rom()
        };
        let start = rom.map(|(_, start)| start);
        if fitted.rom != start {
            let device: Arc<Mutex<dyn BusDevice>> = Arc::clone(&fitted.function) as _;
            self.memory.unmap(bar_base(usize::from(ROM)), &device);
            if let Some((size, start)) = rom {
                self.memory.map(start, size, bar_base(usize::from(ROM)), device);
            }
            fitted.rom = start;
        }
    }

    /// The selected function and the offset of the selected double word.
    fn selected(&self) -> Option<(u8, usize)> {
        let bus = self.address >> 16 & 0xff;
        let devfn = (self.address >> 8 & 0xff) as u8;
        let present = self.address & CONFADD_ENABLE != 0 && bus == 0;
        (present && self.functions.contains_key(&devfn))
            .then_some((devfn, (self.address & 0xfc) as usize))
    }

    fn config_read(&self, byte: usize, size: usize) -> u32 {
        let Some((devfn, offset)) = self.selected() else { return u32::MAX };
        let Some(fitted) = self.functions.get(&devfn) else { return u32::MAX };
        lock(&fitted.function).config_read(offset + byte, size)
    }

    fn config_write(&mut self, byte: usize, size: usize, value: u32) {
        let Some((devfn, offset)) = self.selected() else { return };
        let Some(fitted) = self.functions.get(&devfn) else { return };
        let moved = lock(&fitted.function).config_write(offset + byte, size, value);
        if moved {
            self.remap(devfn);
        }
    }
}

impl BusDevice for PciRoot {
    fn read(&mut self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (0, 4) => u64::from(self.address),
            (4..=7, _) => {
                let byte = (offset - 4) as usize;
                // An access over the end of the double word: the bytes past it are nobody's.
                let len = usize::from(size).min(4 - byte);
                u64::MAX << (8 * len) | u64::from(self.config_read(byte, len))
            }
            _ => u64::MAX,
        }
    }

    fn write(&mut self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (0, 4) => self.address = (value & u64::from(CONFADD_BITS)) as u32,
            (4..=7, _) => {
                let byte = (offset - 4) as usize;
                let len = usize::from(size).min(4 - byte);
                self.config_write(byte, len, (value & 0xffff_ffff) as u32);
            }
            _ => {}
        }
    }

    fn width(&self) -> u8 {
        4
    }
}
