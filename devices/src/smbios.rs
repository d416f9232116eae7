//! SMBIOS (DMI) tables: what the machine is called.
//!
//! Problem: guests print, match and sometimes insist on a system's identity, which firmware leaves in
//! the BIOS segment. Scheme: [`build`] makes the entry point with its structures behind it, for
//! [`LOAD_GPA`], where the legacy scan finds it. Invariants: both checksums are right, the structure
//! count and sizes match; the firmware's date is 2014 on purpose: Linux takes later machines with an
//! HPET for ones whose RTC alarm comes by ACPI event. Runs once, at build time.
//! Source: DMTF DSP0134 SMBIOS 2.8, §5.2.1 "SMBIOS 2.1 Entry Point", §7 "Structure definitions".

use crate::acpi::tables::checksum;

/// Where the bytes must be: the start of the area that is scanned for the anchor.
pub const LOAD_GPA: u64 = 0xf_0000;

const ENTRY_BYTES: usize = 0x1f;
/// Structures start here, aligned.
const TABLE_OFFSET: usize = 0x20;
const TABLE_GPA: u32 = 0xf_0000 + TABLE_OFFSET as u32;

const MANUFACTURER: &str = "Xenolith";
const PRODUCT: &str = "Standard PC";
const FIRMWARE_DATE: &str = "04/01/2014";
const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    largest: u16,
}

impl Structures {
    /// Appends a structure: type, the fields after its handle, its strings (numbered from 1).
    fn add(&mut self, kind: u8, fields: &[u8], strings: &[&str]) {
        let start = self.bytes.len();
        let length = u8::try_from(4 + fields.len()).expect("fixed fields below 256 bytes");
        self.bytes.extend([kind, length]);
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend(fields);
        for string in strings {
            self.bytes.extend(string.bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.count += 1;
        let size = u16::try_from(self.bytes.len() - start).expect("short constant strings");
        self.largest = self.largest.max(size);
    }
}

/// The entry point and its structures for firmware to place, which fills in their address.
#[must_use]
pub fn parts() -> (Vec<u8>, Vec<u8>) {
    let bytes = build();
    (bytes[..ENTRY_BYTES].to_vec(), bytes[TABLE_OFFSET..].to_vec())
}

/// The bytes to be placed at [`LOAD_GPA`].
#[must_use]
pub fn build() -> Vec<u8> {
    let mut table = Structures::default();
    // Firmware: segment 0xe800, 64 KiB, characteristics "not supported"; extension: virtual machine.
    let mut firmware = vec![1, 2, 0x00, 0xe8, 3, 0];
    firmware.extend((1u64 << 3).to_le_bytes());
    firmware.extend([0, 0x14, 0, 0, 0xff, 0xff]);
    table.add(0, &firmware, &[MANUFACTURER, VERSION, FIRMWARE_DATE]);
    // System: manufacturer, product, version; no serial number, no UUID; woken by the power switch.
    let mut system = vec![1, 2, 3, 0];
    system.extend([0; 16]);
    system.extend([6, 0, 0]);
    table.add(1, &system, &[MANUFACTURER, PRODUCT, VERSION]);
    // Chassis: other; states safe; no security.
    let mut chassis = vec![1, 1, 0, 0, 0, 3, 3, 3, 2];
    chassis.extend([0; 9]);
    table.add(3, &chassis, &[MANUFACTURER]);
    // Boot status: no errors.
    table.add(32, &[0; 7], &[]);
    table.add(127, &[], &[]);

    let size = u16::try_from(table.bytes.len()).expect("a few hundred bytes");
    let mut bytes = vec![0; TABLE_OFFSET];
    bytes[..4].copy_from_slice(b"_SM_");
    bytes[5] = ENTRY_BYTES as u8;
    bytes[6..8].copy_from_slice(&[2, 8]);
    bytes[8..10].copy_from_slice(&table.largest.to_le_bytes());
    bytes[16..21].copy_from_slice(b"_DMI_");
    bytes[22..24].copy_from_slice(&size.to_le_bytes());
    bytes[24..28].copy_from_slice(&TABLE_GPA.to_le_bytes());
    bytes[28..30].copy_from_slice(&table.count.to_le_bytes());
    bytes[30] = 0x28;
    bytes[21] = checksum(&bytes[16..ENTRY_BYTES]);
    bytes[4] = checksum(&bytes[..ENTRY_BYTES]);
    bytes.extend(table.bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    #[test]
    fn entry_point_and_structures_agree() {
        let bytes = build();
        assert_eq!((&bytes[..4], &bytes[16..21]), (&b"_SM_"[..], &b"_DMI_"[..]));
        assert_eq!(sum(&bytes[..ENTRY_BYTES]), 0);
        assert_eq!(sum(&bytes[16..ENTRY_BYTES]), 0);
        let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let (mut at, mut kinds, mut largest) = (TABLE_OFFSET, Vec::new(), 0);
        while at < bytes.len() {
            let start = at;
            kinds.push(bytes[at]);
            at += usize::from(bytes[at + 1]);
            at += 2 + bytes[at..].windows(2).position(|pair| pair == [0, 0]).expect("an end");
            largest = largest.max(at - start);
        }
        assert_eq!(kinds, [0, 1, 3, 32, 127]);
        assert_eq!((word(28), word(22), word(8)), (5, bytes.len() - TABLE_OFFSET, largest));
        // Lengths that SMBIOS 2.8 gives for types 0 and 1.
        assert_eq!(bytes[TABLE_OFFSET + 1], 24);
    }

    /// dmidecode reads it as a guest's tool would. Needs dmidecode; the other test needs nothing.
    #[test]
    fn dmidecode_reads_it() {
        use std::process::Command;
        let path = std::env::temp_dir().join(format!("xenolith-smbios-{}", std::process::id()));
        let mut dump = build();
        // A dump has the table at the offset that its entry point names.
        dump[24..28].copy_from_slice(&(TABLE_OFFSET as u32).to_le_bytes());
        dump[21] = 0;
        dump[21] = checksum(&dump[16..ENTRY_BYTES]);
        dump[4] = 0;
        dump[4] = checksum(&dump[..ENTRY_BYTES]);
        std::fs::write(&path, &dump).expect("a temporary file");
        let output = Command::new("dmidecode").arg("--from-dump").arg(&path).output();
        std::fs::remove_file(&path).expect("still there");
        let Ok(output) = output else {
            eprintln!("SKIPPED: dmidecode is not installed (apt install dmidecode)");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Product Name: Standard PC"), "{text}");
        assert!(!text.contains("TRUNCATED") && !text.contains("roken"), "{text}");
    }
}
