//! What firmware is told about the machine.
//!
//! Problem: the same facts as everywhere else, in the files that SeaBIOS and other firmware read. Scheme:
//! one function makes the items of the configuration device: memory map, ACPI and SMBIOS tables, where a
//! serial console is, what to boot from, disks' geometry. Invariant: what is said here is what the board has.
//! Source: QEMU, docs/specs/fw_cfg; SeaBIOS, docs/Runtime_config.

use xenolith_devices::acpi::loader;
use xenolith_devices::acpi::tables::{AcpiConfig, AcpiError};
use xenolith_devices::fw_cfg::Items;
use xenolith_devices::legacy::uart;
use xenolith_devices::smbios;

use crate::drives::ForFirmware;
use crate::geometry::Geometry;
use crate::memory_map::{HIGH_START, Kind, MemoryMap};

/// The items for a machine with this memory, these tables and drives.
///
/// # Errors
/// The tables can't be made.
pub fn items(
    map: &MemoryMap,
    vcpus: u32,
    acpi: &AcpiConfig,
    drives: &ForFirmware,
) -> Result<Items, AcpiError> {
    let high_bytes = map.high_end() - HIGH_START;
    let vcpus = u16::try_from(vcpus).unwrap_or(u16::MAX);
    let mut items = Items::new(map.low_end() + high_bytes, vcpus);

    // RAM as it is wired; what firmware reserves of it is its own affair.
    let mut ram = Vec::new();
    for (start, bytes) in [(0, map.low_end()), (HIGH_START, high_bytes)] {
        if bytes > 0 {
            ram.extend(start.to_le_bytes());
            ram.extend(bytes.to_le_bytes());
            ram.extend((Kind::Ram as u32).to_le_bytes());
        }
    }
    items.file("etc/e820", ram);

    let files = loader::files(acpi)?;
    items.file(loader::TABLES_FILE, files.tables);
    items.file(loader::RSDP_FILE, files.rsdp);
    items.file(loader::SCRIPT_FILE, files.script);

    let (anchor, structures) = smbios::parts();
    items.file("etc/smbios/smbios-anchor", anchor);
    items.file("etc/smbios/smbios-tables", structures);

    if !drives.boot.is_empty() {
        items.file("bootorder", drives.boot.join("\n").into_bytes());
    }
    if !drives.geometry.is_empty() {
        let line = |(path, known): &(String, Geometry)| {
            format!("{path} {} {} {}", known.cylinders, known.heads, known.sectors)
        };
        let lines: Vec<_> = drives.geometry.iter().map(line).collect();
        items.file("bios-geometry", lines.join("\n").into_bytes());
    }

    // Text that is drawn on the screen by the firmware's services shows on COM1 as well.
    items.file("etc/sercon-port", u64::from(uart::COM[0].0).to_le_bytes().to_vec());
    Ok(items)
}
