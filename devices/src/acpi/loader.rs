//! How firmware places the ACPI tables: the files and the script that it is given.
//!
//! Problem: firmware decides where tables go, but can't read them. Scheme: the tables are built for address
//! 0, so that every pointer in them is an offset in their file; the script tells firmware to allocate the
//! files, to add their address to each pointer, and then to make the checksums right. Invariants: each
//! pointer is relocated once; a checksum comes after the pointers that it covers. Runs once, at build
//! time. Source: QEMU, hw/acpi/bios-linker-loader.c, interface comment; ACPI 6.5 §5.2 "ACPI System
//! Description Tables".

use super::tables::{AcpiConfig, AcpiError, RSDP_BYTES, RSDP_V1_BYTES, build};

/// Names that the script uses.
pub const TABLES_FILE: &str = "etc/acpi/tables";
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
pub const SCRIPT_FILE: &str = "etc/table-loader";

const COMMAND_BYTES: usize = 128;
const NAME_BYTES: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Zones: anywhere below 4 GiB, and the segment that is scanned for the RSDP.
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;
/// FACS wants the most.
const TABLES_ALIGN: u32 = 64;
const RSDP_ALIGN: u32 = 16;

/// Offset of the checksum in a table's header, and of the FADT's pointers: size with each.
const HEADER_CHECKSUM: u32 = 9;
const HEADER_BYTES: usize = 36;
const FADT_POINTERS: [(u32, u8); 3] = [(36, 4), (40, 4), (140, 8)];

/// What firmware is given, by the names above.
#[derive(Clone, Debug)]
pub struct LoaderFiles {
    pub tables: Vec<u8>,
    pub rsdp: Vec<u8>,
    pub script: Vec<u8>,
}

#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, kind: u32, names: &[&str], rest: &[&[u8]]) {
        let start = self.0.len();
        self.0.extend(kind.to_le_bytes());
        for name in names {
            let mut field = name.as_bytes().to_vec();
            field.resize(NAME_BYTES, 0);
            self.0.extend(field);
        }
        rest.iter().for_each(|bytes| self.0.extend(*bytes));
        self.0.resize(start + COMMAND_BYTES, 0);
    }

    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.command(ALLOCATE, &[file], &[&align.to_le_bytes(), &[zone]]);
    }

    /// Adds the tables' address to the pointer of `bytes` bytes at `offset` in `file`.
    fn pointer(&mut self, file: &str, offset: u32, bytes: u8) {
        self.command(ADD_POINTER, &[file, TABLES_FILE], &[&offset.to_le_bytes(), &[bytes]]);
    }

    /// Makes the byte at `at` the checksum of `start..start + len`.
    fn checksum(&mut self, file: &str, at: u32, start: u32, len: u32) {
        let fields = [at, start, len].map(u32::to_le_bytes);
        self.command(ADD_CHECKSUM, &[file], &[&fields[0], &fields[1], &fields[2]]);
    }
}

/// The tables that `config` describes, for firmware to place.
///
/// # Errors
/// [`AcpiError`] if the configuration can't be described.
pub fn files(config: &AcpiConfig) -> Result<LoaderFiles, AcpiError> {
    let built = build(&AcpiConfig { load_gpa: 0, ..config.clone() })?;
    let rsdp = built.rsdp().to_vec();
    let tables = built.bytes;
    let word = |at: u32| {
        let at = at as usize;
        u32::from_le_bytes([tables[at], tables[at + 1], tables[at + 2], tables[at + 3]])
    };
    let mut script = Script::default();
    script.allocate(RSDP_FILE, RSDP_ALIGN, ZONE_FSEG);
    script.allocate(TABLES_FILE, TABLES_ALIGN, ZONE_HIGH);
    let root_at =
        |at: usize| u32::from_le_bytes([rsdp[at], rsdp[at + 1], rsdp[at + 2], rsdp[at + 3]]);
    let (rsdt, xsdt) = (root_at(16), root_at(24));
    let mut finish = |table: u32, pointers: &[(u32, u8)]| {
        for &(offset, bytes) in pointers {
            script.pointer(TABLES_FILE, table + offset, bytes);
        }
        script.checksum(TABLES_FILE, table + HEADER_CHECKSUM, table, word(table + 4));
    };
    let entries = |table: u32, bytes: u8| {
        let end = word(table + 4);
        (HEADER_BYTES as u32..end).step_by(usize::from(bytes)).map(move |at| (at, bytes))
    };
    let listed: Vec<(u32, u8)> = entries(rsdt, 4).collect();
    for &(at, _) in &listed {
        let table = word(rsdt + at);
        if tables[table as usize..].starts_with(b"FACP") {
            finish(table, &FADT_POINTERS);
        }
    }
    finish(rsdt, &listed);
    finish(xsdt, &entries(xsdt, 8).collect::<Vec<_>>());
    script.pointer(RSDP_FILE, 16, 4);
    script.pointer(RSDP_FILE, 24, 8);
    script.checksum(RSDP_FILE, 8, 0, RSDP_V1_BYTES as u32);
    script.checksum(RSDP_FILE, 32, 0, RSDP_BYTES as u32);
    Ok(LoaderFiles { tables, rsdp, script: script.0 })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Does what firmware does, with the files at these addresses.
    fn obey(files: &LoaderFiles, at: &HashMap<&str, u64>) -> HashMap<String, Vec<u8>> {
        let mut placed: HashMap<String, Vec<u8>> = HashMap::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
        assert!(files.script.len().is_multiple_of(COMMAND_BYTES));
        for command in files.script.chunks(COMMAND_BYTES) {
            let u32_at = |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap());
            let file = text(&command[4..60]);
            match u32_at(0) {
                ALLOCATE => {
                    assert_eq!(at[&*file] % u64::from(u32_at(60)), 0);
                    let bytes = if file == RSDP_FILE { &files.rsdp } else { &files.tables };
                    assert!(placed.insert(file, bytes.clone()).is_none(), "allocated twice");
                }
                ADD_POINTER => {
                    let base = at[&*text(&command[60..116])];
                    let (offset, len) = (u32_at(116) as usize, usize::from(command[120]));
                    let field = &mut placed.get_mut(&file).unwrap()[offset..offset + len];
                    let mut value = [0; 8];
                    value[..len].copy_from_slice(field);
                    let value = u64::from_le_bytes(value) + base;
                    field.copy_from_slice(&value.to_le_bytes()[..len]);
                }
                ADD_CHECKSUM => {
                    let (at, start, len) = (u32_at(60), u32_at(64), u32_at(68));
                    let bytes = placed.get_mut(&file).unwrap();
                    let range = start as usize..(start + len) as usize;
                    let sum = bytes[range].iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
                    bytes[at as usize] = bytes[at as usize].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
        placed
    }

    #[test]
    fn the_placed_tables_are_those_built_for_their_place() {
        let config = AcpiConfig { vcpus: 3, ..AcpiConfig::default() };
        let files = files(&config).expect("a good configuration");
        let place = 0xe_0000;
        let at = HashMap::from([(TABLES_FILE, place), (RSDP_FILE, 0xf_5000)]);
        let placed = obey(&files, &at);
        let built = build(&AcpiConfig { load_gpa: place, ..config }).expect("the same");
        let bytes = &placed[TABLES_FILE];
        assert_eq!(bytes[RSDP_BYTES..], built.bytes[RSDP_BYTES..]);
        assert_eq!(placed[RSDP_FILE], built.rsdp());
    }
}
