//! The PC's physical address space as a guest is told of it.
//!
//! Problem: RAM, the firmware's areas and the PCI hole must look the same to the loaders, the E820
//! map, CMOS and the memory bus. Scheme: one value computed from the RAM size. Low RAM ends at most
//! where the PCI hole begins; the rest follows from 4 GiB. Invariants: entries are sorted and don't
//! overlap. Source: ACPI Specification, "System Address Map Interfaces"; Intel 440FX datasheet,
//! "System Address Map".

use xenolith_cpu::Gpa;

/// The extended BIOS data area, the top KiB of conventional memory: reserved, but RAM.
pub const EBDA_START: u64 = 0x9_fc00;
/// What leads to the MultiProcessor configuration table, behind the area's length.
pub const MP_POINTER: u64 = EBDA_START + 0x10;
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// The firmware's segments, where the ACPI tables are: reserved, but RAM.
pub const FIRMWARE_START: u64 = 0xe_0000;
/// End of the tables in the firmware's segments. Linkers put a kernel's ELF headers into the page below
/// its code, which is the last of these segments for code at 1 MiB.
pub const FIRMWARE_TABLES_END: u64 = 0xf_1000;
pub const EXTENDED_START: u64 = 0x10_0000;
/// First address of the PCI hole, which reaches to 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
pub const HIGH_START: u64 = 1 << 32;

/// E820 types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// One E820 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub start: u64,
    pub len: u64,
    pub kind: Kind,
}

/// The map of a machine.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    low_end: u64,
    high_end: u64,
    e820: Vec<Entry>,
}

impl MemoryMap {
    /// The map of a machine with `memory_bytes` of RAM, at least 2 MiB.
    #[must_use]
    pub fn new(memory_bytes: u64) -> Self {
        let low_end = memory_bytes.min(HOLE_START);
        let high_end = HIGH_START + (memory_bytes - low_end);
        let mut e820 = Vec::new();
        let mut span = |start: u64, end: u64, kind| {
            if end > start {
                e820.push(Entry { start, len: end - start, kind });
            }
        };
        span(0, EBDA_START, Kind::Ram);
        span(EBDA_START, CONVENTIONAL_END, Kind::Reserved);
        span(FIRMWARE_START, EXTENDED_START, Kind::Reserved);
        span(EXTENDED_START, low_end, Kind::Ram);
        // Where a BIOS would have its flash; tells kernels that nothing may be put there.
        span(0xfffc_0000, HIGH_START, Kind::Reserved);
        span(HIGH_START, high_end, Kind::Ram);
        Self { low_end, high_end, e820 }
    }

    /// End of RAM below the PCI hole.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.low_end
    }

    /// End of RAM above 4 GiB; 4 GiB if there is none.
    #[must_use]
    pub fn high_end(&self) -> u64 {
        self.high_end
    }

    #[must_use]
    pub fn e820(&self) -> &[Entry] {
        &self.e820
    }

    /// Whether all of `start..start + len` is usable RAM, one piece.
    #[must_use]
    pub fn is_ram(&self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else { return false };
        self.e820.iter().any(|entry| {
            entry.kind == Kind::Ram && entry.start <= start && end <= entry.start + entry.len
        })
    }

    /// Whether a kernel's part may lie in all of `start..start + len`: usable RAM, or the firmware's
    /// segments behind its tables and low RAM that follows them.
    #[must_use]
    pub fn is_loadable(&self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else { return false };
        self.is_ram(start, len) || (FIRMWARE_TABLES_END <= start && end <= self.low_end)
    }
}

/// Where the ACPI tables begin.
pub const ACPI_TABLES: Gpa = Gpa(FIRMWARE_START);

#[cfg(test)]
mod tests {
    use xenolith_devices::acpi::tables::{self, AcpiConfig};
    use xenolith_devices::mp::{self, MpConfig};
    use xenolith_devices::smbios;

    use super::*;

    #[test]
    fn ram_splits_around_the_hole() {
        let map = MemoryMap::new(4 << 30);
        assert_eq!((map.low_end(), map.high_end()), (0xc000_0000, 0x1_4000_0000));
        assert!(map.is_ram(0x10_0000, 0xbff0_0000));
        assert!(!map.is_ram(0x10_0000, 0xbff0_0001));
        assert!(map.is_ram(1 << 32, 1 << 30));
        assert!(!map.is_ram(0x9_f000, 0x1000), "the EBDA is reserved");
        assert!(!map.is_ram(u64::MAX, 2));
        assert!(!map.is_loadable(u64::MAX, 2));
        let ram: u64 =
            map.e820().iter().filter(|it| it.kind == Kind::Ram).map(|entry| entry.len).sum();
        assert_eq!(ram, (4 << 30) - (EXTENDED_START - EBDA_START));
        let small = MemoryMap::new(64 << 20);
        assert_eq!((small.low_end(), small.high_end()), (64 << 20, 1 << 32));
        assert!(small.e820().iter().all(|entry| entry.len > 0));
    }
    #[test]
    fn kernels_may_reach_into_the_page_below_1_mib_but_not_into_the_tables() {
        let map = MemoryMap::new(64 << 20);
        assert!(map.is_loadable(0xf_f000, 0xd4));
        assert!(map.is_loadable(0xf_f000, 0x5000));
        assert!(!map.is_loadable(FIRMWARE_TABLES_END - 1, 2));
        assert!(!map.is_loadable(0xa_0000, 1));
        assert!(!map.is_loadable(0xf_f000, 64 << 20));
        let acpi = AcpiConfig { vcpus: 64, ..AcpiConfig::default() };
        let tables = tables::build(&acpi).expect("the most processors");
        assert!(tables.load_gpa + tables.bytes.len() as u64 <= FIRMWARE_TABLES_END);
        let mp = MpConfig { vcpus: 64, signature: 0, features: 0, io_apic_id: 0 };
        let mp_table = u64::from(mp::TABLE_GPA);
        assert!(smbios::LOAD_GPA + smbios::build().len() as u64 <= mp_table);
        assert!(mp_table + mp::build(&mp).len() as u64 <= FIRMWARE_TABLES_END);
    }
}
