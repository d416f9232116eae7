//! The functions every i440FX machine has: host bridge, ISA bridge, power management.
//!
//! Problem: guests look for a host bridge to believe in configuration mechanism #1, firmware switches its
//! ROM to RAM through it, and interrupts and power management are set up in the other two. Scheme: the
//! host bridge tells a [`MemorySwitch`] what its attribute registers say; the ISA bridge drives
//! [`IntxRouter`]; the power management function puts [`PmBlock`] at the ports that its base register
//! names. System management mode does not exist here: SMI generation shows as set up already, which keeps
//! firmware from waiting for one. Invariants: the switch hears of every register at the start and of every
//! change. Any thread, under the function's lock.
//!
//! Source: Intel 82441FX (PMC) datasheet, "Register Description"; Intel 82371FB/SB (PIIX/PIIX3)
//! datasheet, "PCI Configuration Registers"; Intel 82371AB (PIIX4) datasheet, "Power Management PCI
//! Configuration Registers".

use std::sync::{Arc, Mutex};

use super::config::{ConfigSpace, HEADER_TYPE, INTERRUPT_PIN, Identity};
use super::function::{Function, PciDevice};
use super::interrupts::IntxRouter;
use crate::acpi::pm::{PM_PORT, PM_PORTS, PmBlock};
use crate::bus::{BusDevice, MovingRanges};

/// First of the four PIRQ route control registers.
pub(super) const PIRQRC: usize = 0x60;
const PIRQ_DISABLED: u8 = 0x80;

/// Programmable attribute maps: seven registers of two halves.
pub(super) const PAM: usize = 0x59;
pub(super) const PAMS: usize = 7;
/// Both halves: reads and writes go to RAM.
pub(super) const PAM_RAM: u8 = 0x33;
const PAM_READ: u8 = 1 << 0;
const PAM_WRITE: u8 = 1 << 1;
/// System management RAM control.
const SMRAM: usize = 0x72;
const SMRAM_GLOBAL: u8 = 1 << 3;
const SMRAM_LOCK: u8 = 1 << 4;
const SMRAM_OPEN: u8 = 1 << 6;
/// Where compatible SMRAM is; the base's code is hardwired.
const SMRAM_BASE: u8 = 0x02;
const SMRAM_WRITABLE: u8 = 0x78;

/// A part of the first MiB whose accesses the host bridge directs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub bytes: u64,
    /// Reads, and writes, go to RAM; else to the bus, where a ROM may be.
    pub reads_ram: bool,
    pub writes_ram: bool,
}

/// Who directs processors' accesses as the host bridge says.
pub trait MemorySwitch: Send {
    fn set(&mut self, segment: Segment);
}

/// Nothing is switched: for a bus without processors.
impl MemorySwitch for () {
    fn set(&mut self, _: Segment) {}
}

struct HostBridge {
    switch: Box<dyn MemorySwitch>,
    /// What the switch was told last. The display switches the same range while it is closed.
    smram_open: Option<bool>,
}

impl HostBridge {
    /// Tells the switch what register `index` of the attribute maps says.
    fn tell_attributes(&mut self, index: usize, value: u8) {
        let mut tell = |start, bytes, bits: u8| {
            let (reads_ram, writes_ram) = (bits & PAM_READ != 0, bits & PAM_WRITE != 0);
            self.switch.set(Segment { start, bytes, reads_ram, writes_ram });
        };
        match index as u64 {
            // The lower half is reserved.
            0 => tell(0xf_0000, 0x1_0000, value >> 4),
            n => {
                let start = 0xc_0000 + (n - 1) * 0x8000;
                tell(start, 0x4000, value);
                tell(start + 0x4000, 0x4000, value >> 4);
            }
        }
    }

    /// The video memory's range is RAM while SMRAM is open.
    fn tell_smram(&mut self, value: u8) {
        let open = value & SMRAM_GLOBAL != 0 && value & SMRAM_OPEN != 0;
        if self.smram_open.replace(open) == Some(open) {
            return;
        }
        let (start, bytes) = (0xa_0000, 0x2_0000);
        self.switch.set(Segment { start, bytes, reads_ram: open, writes_ram: open });
    }
}

impl PciDevice for HostBridge {
    fn config_written(&mut self, config: &mut ConfigSpace, offset: usize, size: usize) {
        for index in 0..PAMS {
            if (offset..offset + size).contains(&(PAM + index)) {
                self.tell_attributes(index, config.u8(PAM + index));
            }
        }
        if (offset..offset + size).contains(&SMRAM) {
            let mut value = config.u8(SMRAM);
            if value & SMRAM_LOCK != 0 {
                // Closed for good: until the machine starts again.
                value &= !SMRAM_OPEN;
                config.set_u8(SMRAM, value);
                config.set_writable(SMRAM, &[0]);
            }
            self.tell_smram(value);
        }
    }

    fn reset(&mut self, config: &mut ConfigSpace) {
        for index in 0..PAMS {
            config.set_u8(PAM + index, 0);
            self.tell_attributes(index, 0);
        }
        config.set_writable(SMRAM, &[SMRAM_WRITABLE]);
        config.set_u8(SMRAM, SMRAM_BASE);
        self.tell_smram(SMRAM_BASE);
    }
}

/// 82441FX: 00:00.0.
pub(super) fn host_bridge(switch: Box<dyn MemorySwitch>) -> Function {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x1237,
        class: 0x06_0000,
        revision: 2,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    config.set_writable(PAM, &[0xff; PAMS]);
    let mut function = Function::new(config, Box::new(HostBridge { switch, smram_open: None }));
    function.reset();
    function
}

struct IsaBridge {
    router: Arc<IntxRouter>,
}

impl PciDevice for IsaBridge {
    fn config_written(&mut self, config: &mut ConfigSpace, offset: usize, size: usize) {
        if offset < PIRQRC + 4 && offset + size > PIRQRC {
            for index in 0..4 {
                self.router.set_route(index, config.u8(PIRQRC + index));
            }
        }
    }

    fn reset(&mut self, config: &mut ConfigSpace) {
        for index in 0..4 {
            config.set_u8(PIRQRC + index, PIRQ_DISABLED);
            self.router.set_route(index, PIRQ_DISABLED);
        }
    }
}

/// 82371SB function 0: 00:01.0.
pub(super) fn isa_bridge(router: Arc<IntxRouter>) -> Function {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x7000,
        class: 0x06_0100,
        revision: 0,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    // Multi-function: its USB function is not fitted.
    config.set_u8(HEADER_TYPE, 0x80);
    config.set_writable(PIRQRC, &[0x8f; 4]);
    // X-bus chip select: what is decoded doesn't change with it.
    config.set_writable(0x4e, &[0xff, 0x01]);
    // Deterministic latency control: Linux turns passive release on, and looks whether it is.
    config.set_writable(0x82, &[0x0f]);
    let mut function = Function::new(config, Box::new(IsaBridge { router }));
    function.reset();
    function
}

/// Timing registers of the IDE function, two bytes a channel.
pub const IDE_TIMING: usize = 0x40;
/// Both channels decode their ports.
const IDE_TIMING_ENABLE: u32 = 0x8000_8000;

/// Switches both channels of the IDE function on, as firmware does.
pub(super) fn enable_ide(function: &mut Function) {
    function.config_write(IDE_TIMING, 4, IDE_TIMING_ENABLE);
}

/// Power management base address: bit 0 reads as one (I/O), bits 6 to 15 are the address.
pub(super) const PMBA: usize = 0x40;
/// Power management region miscellaneous: bit 0 enables decoding.
pub(super) const PMREGMISC: usize = 0x80;
const PMREGMISC_ENABLE: u8 = 1 << 0;
/// Device activity B, its top byte; bit 1: the SMI command port generates SMIs.
const DEVACTB_HIGH: usize = 0x5b;
const DEVACTB_HIGH_APMC_ENABLE: u8 = 1 << 1;
/// SMBus base address and host configuration, which only keep what is written: there is no SMBus.
const SMBBA: usize = 0x90;
const SMBHSTCFG: usize = 0xd2;

struct PowerManagement {
    block: Arc<Mutex<PmBlock>>,
    ports: Arc<MovingRanges>,
    mapped: Option<u64>,
}

impl PowerManagement {
    fn map(&mut self, config: &ConfigSpace) {
        let start = u64::from(config.u16(PMBA) & !0x3f);
        let decodes = config.u8(PMREGMISC) & PMREGMISC_ENABLE != 0 && start != 0;
        let wanted = decodes.then_some(start);
        if wanted == self.mapped {
            return;
        }
        let block: Arc<Mutex<dyn BusDevice>> = Arc::clone(&self.block) as _;
        self.ports.unmap(0, &block);
        if let Some(start) = wanted {
            self.ports.map(start, u64::from(PM_PORTS), 0, block);
        }
        self.mapped = wanted;
    }
}

impl PciDevice for PowerManagement {
    fn config_written(&mut self, config: &mut ConfigSpace, _: usize, _: usize) {
        self.map(config);
    }

    fn reset(&mut self, config: &mut ConfigSpace) {
        config.set_u32(PMBA, 1);
        config.set_u8(PMREGMISC, 0);
        config.set_u8(DEVACTB_HIGH, DEVACTB_HIGH_APMC_ENABLE);
        config.set_u32(SMBBA, 1);
        config.set_u8(SMBHSTCFG, 0);
        self.map(config);
    }
}

/// 82371AB function 3: 00:01.3.
pub(super) fn power_management(block: Arc<Mutex<PmBlock>>, ports: Arc<MovingRanges>) -> Function {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x8086,
        device: 0x7113,
        class: 0x06_8000,
        revision: 3,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    // The SCI, which is wired to IRQ 9 whatever the interrupt line register says.
    config.set_u8(INTERRUPT_PIN, 1);
    config.set_writable(PMBA, &[0xc0, 0xff]);
    config.set_writable(PMREGMISC, &[PMREGMISC_ENABLE]);
    config.set_writable(SMBBA, &[0xf0, 0xff]);
    config.set_writable(SMBHSTCFG, &[0x0f]);
    let device = PowerManagement { block, ports, mapped: None };
    let mut function = Function::new(config, Box::new(device));
    function.reset();
    function
}

/// Puts the power management block where the ACPI tables say, as firmware does.
pub(super) fn enable_power_management(function: &mut Function) {
    function.config_write(PMBA, 2, u32::from(PM_PORT));
    function.config_write(PMREGMISC, 1, u32::from(PMREGMISC_ENABLE));
}
