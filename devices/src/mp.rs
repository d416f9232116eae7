//! The MultiProcessor configuration table: processors and interrupt wiring for guests that don't read ACPI's.
//!
//! Problem: kernels without ACPI, or told not to use it, find processors and the I/O APIC by this table only; and those
//! that do use ACPI look for it all the same, at each paragraph of the BIOS segment if it isn't there. Scheme: [`build`]
//! makes the table, and [`pointer`] what leads to it, for the extended BIOS data area, where a guest looks first.
//! Invariants: both checksums are right; the wiring is that of the ACPI tables: ISA lines on the inputs of their numbers
//! but IRQ 0 on input 2, SCI level and active high, PCI pins where [`intx_gsi`] says. Runs once, at build time.
//! Source: Intel MultiProcessor Specification 1.4, §4 "MP Configuration Table", §D "Multiple I/O APIC Multiple PCI Bus
//! Systems".

use crate::acpi::pm::SCI_IRQ;
use crate::acpi::tables::{IO_APIC_GPA, LOCAL_APIC_GPA, checksum};
use crate::apic;
use crate::pci::{INTX_PINS, SLOTS, intx_gsi};

/// Where the table must be: behind SMBIOS's.
pub const TABLE_GPA: u32 = 0xf_0400;

const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
/// Version 1.4.
const REVISION: u8 = 4;

/// What the table says.
#[derive(Clone, Copy, Debug)]
pub struct MpConfig {
    /// Processors; their local APIC ids count from 0.
    pub vcpus: u8,
    /// EAX and EDX of CPUID leaf 1.
    pub signature: u32,
    pub features: u32,
    pub io_apic_id: u8,
}

const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;

/// Types of entries.
mod entry {
    pub const PROCESSOR: u8 = 0;
    pub const BUS: u8 = 1;
    pub const IO_APIC: u8 = 2;
    pub const IO_INTERRUPT: u8 = 3;
    pub const LOCAL_INTERRUPT: u8 = 4;
}

/// Types of interrupts.
mod interrupt {
    pub const VECTORED: u8 = 0;
    pub const NMI: u8 = 1;
    pub const EXTERNAL: u8 = 3;
}

/// Polarity and trigger: as the bus has them; active high, level.
const AS_THE_BUS: u8 = 0;
const HIGH_LEVEL: u8 = 0b1101;
const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;
const ALL_APICS: u8 = 0xff;
/// The input that has IRQ 0, and the IRQ that is a cascade.
const TIMER_INPUT: u8 = 2;
const CASCADE_IRQ: u8 = 2;

/// The floating pointer structure, for a multiple of 16 in the first KiB of the extended BIOS data area.
#[must_use]
pub fn pointer() -> [u8; POINTER_BYTES] {
    let mut bytes = [0; POINTER_BYTES];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&TABLE_GPA.to_le_bytes());
    bytes[8] = (POINTER_BYTES / 16) as u8;
    bytes[9] = REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// The bytes to be placed at [`TABLE_GPA`].
#[must_use]
pub fn build(config: &MpConfig) -> Vec<u8> {
    let mut table = vec![0; HEADER_BYTES];
    let mut entries = 0u16;
    let mut add = |parts: &[&[u8]]| {
        table.extend(parts.concat());
        entries += 1;
    };
    for id in 0..config.vcpus {
        let flags = if id == 0 { ENABLED | BOOTSTRAP } else { ENABLED };
        add(&[
            &[entry::PROCESSOR, id, apic::LOCAL_VERSION as u8, flags],
            &config.signature.to_le_bytes(),
            &config.features.to_le_bytes(),
            &[0; 8],
        ]);
    }
    add(&[&[entry::BUS, PCI_BUS], b"PCI   "]);
    add(&[&[entry::BUS, ISA_BUS], b"ISA   "]);
    let io_apic = config.io_apic_id;
    add(&[&[entry::IO_APIC, io_apic, apic::IO_VERSION as u8, ENABLED], &IO_APIC_GPA.to_le_bytes()]);
    let mut wire = |kind: u8, what: u8, flags: u8, from: [u8; 2], to: [u8; 2]| {
        add(&[&[kind, what, flags, 0], &from, &to]);
    };
    for slot in 0..SLOTS {
        for pin in 0..INTX_PINS {
            let input = intx_gsi(slot, pin) as u8;
            let from = [PCI_BUS, slot << 2 | pin];
            wire(entry::IO_INTERRUPT, interrupt::VECTORED, AS_THE_BUS, from, [io_apic, input]);
        }
    }
    for irq in (0..16).filter(|&irq| irq != CASCADE_IRQ) {
        let input = if irq == 0 { TIMER_INPUT } else { irq };
        let flags = if irq == SCI_IRQ { HIGH_LEVEL } else { AS_THE_BUS };
        wire(entry::IO_INTERRUPT, interrupt::VECTORED, flags, [ISA_BUS, irq], [io_apic, input]);
    }
    let isa = [ISA_BUS, 0];
    wire(entry::LOCAL_INTERRUPT, interrupt::EXTERNAL, AS_THE_BUS, isa, [0, 0]);
    wire(entry::LOCAL_INTERRUPT, interrupt::NMI, AS_THE_BUS, isa, [ALL_APICS, 1]);

    let length = u16::try_from(table.len()).expect("at most 255 processors");
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&length.to_le_bytes());
    table[6] = REVISION;
    table[8..16].copy_from_slice(b"XENOLITH");
    table[16..28].copy_from_slice(b"Standard PC ");
    table[34..36].copy_from_slice(&entries.to_le_bytes());
    table[36..40].copy_from_slice(&LOCAL_APIC_GPA.to_le_bytes());
    table[7] = checksum(&table);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    #[test]
    fn entries_are_as_many_and_as_long_as_the_header_says() {
        let config = MpConfig { vcpus: 3, signature: 0x6_0f00, features: 1 << 9, io_apic_id: 0 };
        let table = build(&config);
        assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
        let word = |at: usize| usize::from(u16::from_le_bytes([table[at], table[at + 1]]));
        let (mut at, mut kinds) = (HEADER_BYTES, [0usize; 5]);
        while at < table.len() {
            kinds[usize::from(table[at])] += 1;
            at += if table[at] == entry::PROCESSOR { 20 } else { 8 };
        }
        assert_eq!((at, word(4)), (table.len(), table.len()));
        assert_eq!(kinds, [3, 2, 1, 32 * 4 + 15, 2]);
        assert_eq!(word(34), kinds.iter().sum::<usize>());
        let wired = |bus: u8, irq: u8| {
            let entries = table[HEADER_BYTES + 3 * 20..].chunks_exact(8);
            let found = entries.filter(|it| it[0] == 3 && it[4..6] == [bus, irq]);
            found.map(|it| (it[2], it[7])).collect::<Vec<_>>()
        };
        // INTD# of slot 31, the timer, COM1 and SCI.
        assert_eq!(wired(0, 31 << 2 | 3), [(0, 16 + 34 % 8)]);
        assert_eq!([wired(1, 0), wired(1, 4), wired(1, 9)], [[(0, 2)], [(0, 4)], [(0b1101, 9)]]);
        let pointer = pointer();
        assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
    }
}
