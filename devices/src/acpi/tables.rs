//! The ACPI tables, as bytes to be put into guest memory.
//!
//! Problem: with no firmware, somebody must leave the tables where a guest looks. Scheme: [`build`]
//! makes one blob for a fixed address in the legacy BIOS area, RSDP first, so that both the scan of
//! 0xe0000-0xfffff and a boot protocol's pointer find it. Invariants: all addresses point into the
//! blob; every checksum is right; FACS is 64-byte aligned; FADT's 32-bit and 64-bit fields agree; the
//! register blocks are those of [`super::pm`], and interrupts those of the MADT: ISA lines are edge,
//! active high, IRQ 0 on GSI 2, except SCI on GSI 9, which is level, active high. Runs once, at build
//! time. Source: ACPI 6.5 §5.2 "ACPI System Description Tables"; IA-PC HPET specification 1.0a §3.2.4
//! "The ACPI 2.0 HPET Description Table"; Windows ACPI Emulated Devices Table specification.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use super::{dsdt, pm};
use crate::legacy::reset;

/// Where the blob goes unless told otherwise: the start of the area that is scanned for the RSDP.
pub const LOAD_GPA: u64 = 0xe_0000;
/// The blob must end below this, the top of that area.
pub const LOAD_GPA_END: u64 = 0x10_0000;
pub const LOCAL_APIC_GPA: u32 = 0xfee0_0000;
pub const IO_APIC_GPA: u32 = 0xfec0_0000;
pub const HPET_GPA: u32 = 0xfed0_0000;
pub const HPET_BYTES: u32 = 0x400;
/// The HPET's capabilities register, low half: vendor 0x8086, legacy routes, 64 bits, 3 comparators.
pub const HPET_BLOCK_ID: u32 = 0x8086_a201;
/// Names of four characters hold as many.
pub const VCPUS_MAX: u32 = 0x1000;

const OEM_ID: [u8; 6] = *b"XENLTH";
const OEM_TABLE_ID: [u8; 8] = *b"XENOLITH";
/// CMOS byte that holds the century.
const RTC_CENTURY: u8 = 0x32;
const HEADER_BYTES: u32 = 36;
pub(super) const RSDP_BYTES: usize = 36;
pub(super) const RSDP_V1_BYTES: usize = 20;

/// What the tables say.
#[derive(Clone, Debug)]
pub struct AcpiConfig {
    /// Processors; their local APIC ids count from 0.
    pub vcpus: u32,
    /// First and last address of the window for PCI memory below 4 GiB.
    pub pci_hole: (u32, u32),
    /// The same above 4 GiB, if there is one.
    pub pci_hole64: Option<(u64, u64)>,
    /// How many of COM1-COM4 there are.
    pub serial_ports: usize,
    pub hpet: bool,
    pub io_apic_id: u8,
    /// Where the blob will be put: a multiple of 64 below 1 MiB.
    pub load_gpa: u64,
}

impl Default for AcpiConfig {
    fn default() -> Self {
        Self {
            vcpus: 1,
            pci_hole: (0xc000_0000, 0xfebf_ffff),
            pci_hole64: None,
            serial_ports: 2,
            hpet: true,
            io_apic_id: 0,
            load_gpa: LOAD_GPA,
        }
    }
}

/// Tables to place: `bytes` at `load_gpa`, all of it outside what the guest gets as usable RAM.
#[derive(Clone, Debug)]
pub struct Tables {
    pub load_gpa: u64,
    /// The RSDP's address, for `boot_params.acpi_rsdp_addr` and PVH's `rsdp_paddr`.
    pub rsdp_gpa: u64,
    pub bytes: Vec<u8>,
}

impl Tables {
    #[must_use]
    pub fn rsdp(&self) -> &[u8] {
        let start = (self.rsdp_gpa - self.load_gpa) as usize;
        &self.bytes[start..start + RSDP_BYTES]
    }
}

/// The machine can't be described.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    #[error("{0} vCPUs: ACPI names are made for 1 to {VCPUS_MAX}")]
    Vcpus(u32),
    #[error("PCI window {0:#x}-{1:#x} is empty, or all of the address space")]
    Window(u64, u64),
    #[error("ACPI tables at {0:#x} are misaligned or don't end below {LOAD_GPA_END:#x}")]
    Load(u64),
}

/// The blob as it grows: each table's address is known when the next one names it.
struct Blob {
    base: u32,
    bytes: Vec<u8>,
}

impl Blob {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// Appends a table, returns its address.
    fn place(&mut self, table: &dyn Aml, align: usize) -> u32 {
        self.align(align);
        let at = self.next();
        table.to_aml_bytes(&mut self.bytes);
        at
    }

    fn next(&self) -> u32 {
        // Lengths are bounded by VCPUS_MAX: some hundred KiB.
        self.base + self.bytes.len() as u32
    }
}

fn sdt(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, 1);
    table.append_slice(body);
    table
}

fn io_gas(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into())
}

fn fadt(facs: u32, dsdt: u32) -> impl Aml {
    use AccessSize::{ByteAccess, DwordAccess, WordAccess};
    let event = pm::PM_PORT + pm::PM1A_EVENT_OFFSET;
    let control = pm::PM_PORT + pm::PM1A_CONTROL_OFFSET;
    let timer = pm::PM_PORT + pm::PM_TIMER_OFFSET;
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, 1)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Set means: no fixed-feature button. The power button is one.
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::UsePlatformClock);
    // FACS and DSDT lie below 4 GiB: the 32-bit field alone (both at once is an error since ACPI 5).
    table.firmware_ctrl = facs.into();
    table.dsdt = dsdt.into();
    table.x_dsdt = u64::from(dsdt).into();
    table.sci_int = u16::from(pm::SCI_IRQ).into();
    table.smi_cmd = u32::from(pm::SMI_COMMAND_PORT).into();
    table.acpi_enable = pm::ACPI_ENABLE;
    table.acpi_disable = pm::ACPI_DISABLE;
    table.pm1a_evt_blk = u32::from(event).into();
    table.pm1a_cnt_blk = u32::from(control).into();
    table.pm_tmr_blk = u32::from(timer).into();
    table.gpe0_blk = u32::from(pm::GPE0_PORT).into();
    table.pm1_evt_len = pm::PM1A_EVENT_BYTES;
    table.pm1_cnt_len = pm::PM1A_CONTROL_BYTES;
    table.pm_tmr_len = pm::PM_TIMER_BYTES;
    table.gpe0_blk_len = pm::GPE0_BYTES;
    // Latencies above 100 and 1000 us say: no C2, no C3.
    table.p_lvl2_lat = 0xfff.into();
    table.p_lvl3_lat = 0xfff.into();
    table.century = RTC_CENTURY;
    // Bit 0: devices on ISA; bit 1: 8042.
    table.iapc_boot_arch = 0x0003.into();
    table.reset_reg = io_gas(reset::RESET_CONTROL_PORT as u16, 1, ByteAccess);
    table.reset_value = reset::RESET_CONTROL_FULL;
    table.x_pm1a_evt_blk = io_gas(event, pm::PM1A_EVENT_BYTES, WordAccess);
    table.x_pm1a_cnt_blk = io_gas(control, pm::PM1A_CONTROL_BYTES, WordAccess);
    table.x_pm_tmr_blk = io_gas(timer, pm::PM_TIMER_BYTES, DwordAccess);
    table.x_gpe0_blk = io_gas(pm::GPE0_PORT, pm::GPE0_BYTES, ByteAccess);
    table.finalize()
}

fn madt(config: &AcpiConfig) -> Sdt {
    let mut body = Vec::new();
    body.extend(LOCAL_APIC_GPA.to_le_bytes());
    body.extend(1u32.to_le_bytes()); // PCAT_COMPAT: there are 8259s, too.
    let mut x2apic = false;
    for id in 0..config.vcpus {
        match u8::try_from(id) {
            // Local APIC; id 255 is the broadcast.
            Ok(byte) if byte < 0xff => body.extend([0, 8, byte, byte, 1, 0, 0, 0]),
            _ => {
                x2apic = true;
                body.extend([9, 16, 0, 0]);
                for field in [id, 1, id] {
                    body.extend(field.to_le_bytes());
                }
            }
        }
    }
    body.extend([1, 12, config.io_apic_id, 0]);
    body.extend(IO_APIC_GPA.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    let sci = pm::SCI_IRQ;
    for (irq, gsi, flags) in [(0, 2u32, 0u16), (sci, sci.into(), 0x000d)] {
        body.extend([2, 10, 0, irq]);
        body.extend(gsi.to_le_bytes());
        body.extend(flags.to_le_bytes());
    }
    // NMI on LINT1 of all processors.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    if x2apic {
        body.extend([0x0a, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    sdt(*b"APIC", 4, &body)
}

fn hpet() -> Sdt {
    let mut body = Vec::new();
    body.extend(HPET_BLOCK_ID.to_le_bytes());
    // Memory space, otherwise unspecified, as the specification's example.
    body.extend([0, 0, 0, 0]);
    body.extend(u64::from(HPET_GPA).to_le_bytes());
    body.extend([0, 0, 0, 0]); // Block 0, no minimum tick, no page protection.
    sdt(*b"HPET", 1, &body)
}

/// What makes the bytes of a table of firmware's add up to 0, where it is 0 so far.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

fn rsdp(rsdt: u32, xsdt: u32) -> [u8; RSDP_BYTES] {
    let mut bytes = [0; RSDP_BYTES];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(&OEM_ID);
    bytes[15] = 2;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[8] = checksum(&bytes[..RSDP_V1_BYTES]);
    bytes[20] = RSDP_BYTES as u8;
    bytes[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    bytes[32] = checksum(&bytes);
    bytes
}

fn check(config: &AcpiConfig) -> Result<u32, AcpiError> {
    if !(1..=VCPUS_MAX).contains(&config.vcpus) {
        return Err(AcpiError::Vcpus(config.vcpus));
    }
    let low = (u64::from(config.pci_hole.0), u64::from(config.pci_hole.1));
    if low.0 > low.1 || low == (0, u64::from(u32::MAX)) {
        return Err(AcpiError::Window(low.0, low.1));
    }
    if let Some((first, last)) = config.pci_hole64
        && (first > last || (first, last) == (0, u64::MAX))
    {
        return Err(AcpiError::Window(first, last));
    }
    match u32::try_from(config.load_gpa) {
        Ok(base) if base.is_multiple_of(64) && config.load_gpa < LOAD_GPA_END => Ok(base),
        _ => Err(AcpiError::Load(config.load_gpa)),
    }
}

/// Builds all tables.
///
/// # Errors
/// [`AcpiError`] if the configuration can't be described.
pub fn build(config: &AcpiConfig) -> Result<Tables, AcpiError> {
    let base = check(config)?;
    let mut blob = Blob { base, bytes: vec![0; RSDP_BYTES] };
    let facs = blob.place(&FACS::new(), 64);
    // Revision 2: integers of 64 bits.
    let dsdt = blob.place(&sdt(*b"DSDT", 2, &dsdt::body(config)), 16);
    let mut tables = vec![blob.place(&fadt(facs, dsdt), 16), blob.place(&madt(config), 16)];
    if config.hpet {
        tables.push(blob.place(&hpet(), 16));
    }
    // WAET bit 1: one read of the PM timer is enough.
    tables.push(blob.place(&sdt(*b"WAET", 1, &2u32.to_le_bytes()), 16));
    let entries: Vec<u8> = tables.iter().flat_map(|at| at.to_le_bytes()).collect();
    let rsdt = blob.place(&sdt(*b"RSDT", 1, &entries), 16);
    let entries: Vec<u8> = tables.iter().flat_map(|&at| u64::from(at).to_le_bytes()).collect();
    let xsdt = blob.place(&sdt(*b"XSDT", 1, &entries), 16);
    if u64::from(blob.next()) > LOAD_GPA_END {
        return Err(AcpiError::Load(config.load_gpa));
    }
    let mut bytes = blob.bytes;
    bytes[..RSDP_BYTES].copy_from_slice(&rsdp(rsdt, xsdt));
    Ok(Tables { load_gpa: config.load_gpa, rsdp_gpa: config.load_gpa, bytes })
}

#[cfg(test)]
mod tests;
