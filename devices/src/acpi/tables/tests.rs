//! The tables as a guest reads them, and as ACPICA's compiler does.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::*;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn table(tables: &Tables, gpa: u64) -> &[u8] {
    let start = (gpa - tables.load_gpa) as usize;
    let length = u32_at(&tables.bytes, start + 4) as usize;
    &tables.bytes[start..start + length]
}

/// Follows RSDP, RSDT and XSDT; checks signatures, lengths, checksums and alignment on the way.
fn walk(config: &AcpiConfig) -> BTreeMap<String, Vec<u8>> {
    let tables = build(config).expect("a good configuration");
    assert!(tables.load_gpa + tables.bytes.len() as u64 <= LOAD_GPA_END);
    assert_eq!(tables.rsdp_gpa % 16, 0);
    let rsdp = tables.rsdp();
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(rsdp[15], 2);
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(rsdp), 0);
    let rsdt = table(&tables, u32_at(rsdp, 16).into());
    let xsdt = table(&tables, u64_at(rsdp, 24));
    assert_eq!((&rsdt[..4], &xsdt[..4]), (&b"RSDT"[..], &b"XSDT"[..]));
    let from_rsdt: Vec<u64> =
        (36..rsdt.len()).step_by(4).map(|at| u32_at(rsdt, at).into()).collect();
    let from_xsdt: Vec<u64> = (36..xsdt.len()).step_by(8).map(|at| u64_at(xsdt, at)).collect();
    assert_eq!(from_rsdt, from_xsdt);

    let mut found = BTreeMap::new();
    let mut keep = |bytes: &[u8]| {
        let name = String::from_utf8_lossy(&bytes[..4]).into_owned();
        assert_eq!(sum(bytes), 0, "checksum of {name}");
        assert!(found.insert(name, bytes.to_vec()).is_none());
    };
    keep(rsdt);
    keep(xsdt);
    for &at in &from_xsdt {
        keep(table(&tables, at));
    }
    let fadt = from_xsdt
        .iter()
        .map(|&at| table(&tables, at))
        .find(|bytes| &bytes[..4] == b"FACP")
        .expect("a FADT");
    let dsdt = u32_at(fadt, 40);
    assert_eq!(u64_at(fadt, 140), u64::from(dsdt));
    keep(table(&tables, dsdt.into()));
    let facs = u32_at(fadt, 36);
    assert_eq!(facs % 64, 0);
    assert_eq!(&table(&tables, facs.into())[..4], b"FACS");
    assert_eq!(table(&tables, facs.into()).len(), 64);
    found
}

fn vcpus(vcpus: u32) -> AcpiConfig {
    AcpiConfig { vcpus, ..AcpiConfig::default() }
}

#[test]
fn all_tables_are_reachable_and_sum_to_zero() {
    for count in [1, 4, 255, 300, 1024] {
        let found = walk(&vcpus(count));
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["APIC", "DSDT", "FACP", "HPET", "RSDT", "WAET", "XSDT"]);
    }
    let found = walk(&AcpiConfig { hpet: false, ..AcpiConfig::default() });
    assert!(!found.contains_key("HPET"));
}

#[test]
fn fadt_names_the_registers_of_the_pm_block() {
    let found = walk(&AcpiConfig::default());
    let fadt = &found["FACP"];
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16_at(fadt, 46), 9);
    assert_eq!((u32_at(fadt, 48), fadt[52], fadt[53]), (0xb2, 0xf1, 0xf0));
    assert_eq!((u32_at(fadt, 56), fadt[88]), (0x600, 4));
    assert_eq!((u32_at(fadt, 64), fadt[89]), (0x604, 2));
    assert_eq!((u32_at(fadt, 76), fadt[91]), (0x608, 4));
    assert_eq!((u32_at(fadt, 80), fadt[92]), (0xafe0, 4));
    // ACPICA complains where a block's 64-bit form has another address or width.
    for (old, length, new) in [(56, 88, 148), (64, 89, 172), (76, 91, 208), (80, 92, 220)] {
        assert_eq!(fadt[new], 1, "I/O space");
        assert_eq!(fadt[new + 1], fadt[length] * 8);
        assert_eq!(u64_at(fadt, new + 4), u64::from(u32_at(fadt, old)));
    }
    // Reset register.
    assert_eq!(fadt[116], 1);
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0xcf9, 6));
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    assert_ne!(flags & 1 << 10, 0, "reset register");
    assert_eq!(flags & 1 << 8, 0, "24-bit timer");
    assert_eq!(flags & 1 << 4, 0, "power button is a fixed feature");
}

/// Entries of the MADT by type.
fn madt_entries(config: &AcpiConfig) -> BTreeMap<u8, Vec<Vec<u8>>> {
    let found = walk(config);
    let madt = &found["APIC"];
    assert_eq!(u32_at(madt, 36), LOCAL_APIC_GPA);
    assert_eq!(u32_at(madt, 40), 1);
    let mut entries: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
    let mut at = 44;
    while at < madt.len() {
        let length = usize::from(madt[at + 1]);
        entries.entry(madt[at]).or_default().push(madt[at..at + length].to_vec());
        at += length;
    }
    assert_eq!(at, madt.len());
    entries
}

#[test]
fn madt_lists_processors_and_overrides() {
    let entries = madt_entries(&vcpus(3));
    assert_eq!(entries[&0].len(), 3);
    assert_eq!(entries[&0][2], [0, 8, 2, 2, 1, 0, 0, 0]);
    assert_eq!(entries[&1], [[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]]);
    assert_eq!(entries[&2], [[2, 10, 0, 0, 2, 0, 0, 0, 0, 0], [2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]]);
    assert_eq!(entries[&4], [[4, 6, 0xff, 0, 0, 1]]);
    assert!(!entries.contains_key(&9));

    let entries = madt_entries(&vcpus(300));
    assert_eq!(entries[&0].len(), 255);
    assert_eq!(entries[&9].len(), 45);
    assert_eq!(u32_at(&entries[&9][0], 4), 255);
    assert_eq!(u32_at(&entries[&9][44], 12), 299);
    assert_eq!(entries[&10].len(), 1);
}

#[test]
fn what_cannot_be_described_is_an_error() {
    for config in [
        vcpus(0),
        vcpus(VCPUS_MAX + 1),
        vcpus(u32::MAX),
        AcpiConfig { pci_hole: (0, u32::MAX), ..AcpiConfig::default() },
        AcpiConfig { pci_hole: (2, 1), ..AcpiConfig::default() },
        AcpiConfig { pci_hole64: Some((0, u64::MAX)), ..AcpiConfig::default() },
        AcpiConfig { load_gpa: 0xe_0010, ..AcpiConfig::default() },
        AcpiConfig { load_gpa: 0xf_ffc0, ..AcpiConfig::default() },
        AcpiConfig { load_gpa: !63, ..AcpiConfig::default() },
    ] {
        assert!(build(&config).is_err(), "{config:?}");
    }
}

/// A folder of this test process, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xenolith-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// ACPICA reads every table without a complaint, and what it wrote down compiles back to the same
/// AML. Needs `iasl` (Debian: acpica-tools), which the test set-up installs.
#[test]
fn iasl_disassembles_and_recompiles() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl is not installed (apt install acpica-tools)");
        return;
    }
    let scratch = Scratch::new("acpi");
    let iasl = |arguments: &[&str]| {
        let output = Command::new("iasl")
            .args(arguments)
            .current_dir(&scratch.0)
            .output()
            .expect("iasl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "iasl {arguments:?}: {text}");
        text
    };
    let config = AcpiConfig {
        serial_ports: 4,
        pci_hole64: Some((0x80_0000_0000, 0xff_ffff_ffff)),
        ..vcpus(3)
    };
    for (name, bytes) in walk(&config) {
        let (aml, dsl) = (format!("{name}.dat"), format!("{name}.dsl"));
        fs::write(scratch.0.join(&aml), &bytes).expect("a temporary file");
        let text = iasl(&["-d", &aml]);
        let complaint = ["rror", "arning", "nvalid", "ncorrect", "nknown"]
            .iter()
            .find(|word| text.contains(**word));
        assert_eq!(complaint, None, "disassembly of {name}: {text}");
        if name == "DSDT" {
            let source = fs::read_to_string(scratch.0.join(&dsl)).expect("iasl wrote the source");
            let routes = source.split("Name (PRTL").nth(1).expect("routing for the 8259s");
            let routes = routes.split("Method (_PRT").next().expect("a first part");
            let links: String = routes.split("LNK").skip(1).map(|link| &link[..1]).collect();
            assert_eq!(links, ["DABC", "ABCD", "BCDA", "CDAB"].concat().repeat(8));
            // Unoptimised, so that every opcode comes back as it was.
            let text = iasl(&["-oa", "-on", "-vr", &dsl]);
            assert!(text.contains(" 0 Errors, 0 Warnings"), "recompilation: {text}");
            let again = fs::read(scratch.0.join("DSDT.aml")).expect("iasl wrote the AML");
            // Past the header, where iasl signs as the compiler.
            assert!(again[36..] == bytes[36..], "recompiled AML differs");
        }
    }
}

/// ACPICA's interpreter routes PCI pins as the board wires them.
#[test]
fn acpiexec_evaluates_pci_routing() {
    if Command::new("acpiexec").arg("-v").output().is_err() {
        eprintln!("SKIPPED: acpiexec is not installed (apt install acpica-tools)");
        return;
    }
    let scratch = Scratch::new("acpiexec");
    let found = walk(&AcpiConfig::default());
    for name in ["DSDT", "FACP", "APIC"] {
        fs::write(scratch.0.join(name), &found[name]).expect("a temporary file");
    }
    // (Its result buffer is too small for the package of the 8259s' mode.)
    let output = Command::new("acpiexec")
        .args(["-b", "execute \\_PIC 1;execute \\_SB.PCI0._PRT;quit", "DSDT", "FACP", "APIC"])
        .current_dir(&scratch.0)
        .output()
        .expect("acpiexec runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("[Integer] = "))
        .map(|hex| u64::from_str_radix(hex.trim(), 16).expect("a number"))
        .collect();
    let expected: Vec<u64> = (0..128u64)
        .map(|i| (i / 4, i % 4))
        .flat_map(|(slot, pin)| [slot << 16 | 0xffff, pin, 0, 16 + (slot + pin) % 8])
        .collect();
    assert_eq!(numbers, expected, "{text}");
}
