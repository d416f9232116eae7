//! MSI-X as drivers program it (PCI Local Bus Specification 3.0, §6.8.2 "MSI-X Capability and Table Structures").

use std::sync::Arc;

use super::{Interrupts, Rig};

const SLOT: u8 = 3;
const VECTORS: u16 = 40;
const TABLE: u64 = 0xe000_0000;
const PENDING: u64 = TABLE + 0x800;
const GSI: u32 = 19;

/// Memory, ports and bus mastering; INTx as it is.
const COMMAND: u64 = 7;

struct Driver {
    rig: Rig,
    interrupts: Arc<Interrupts>,
    /// Offset of the capability.
    at: u64,
}

impl Driver {
    fn new() -> Self {
        let rig = Rig::new();
        let interrupts = rig.add_with_vectors(SLOT, VECTORS);
        let at = rig.read(SLOT, 0x34, 1);
        assert_eq!(rig.read(SLOT, at, 2), 0x0011, "the only capability is MSI-X");
        rig.write(SLOT, 0x18, 4, TABLE);
        rig.write(SLOT, 4, 2, COMMAND);
        Self { rig, interrupts, at }
    }

    fn control(&self, value: u64) {
        self.rig.write(SLOT, self.at + 2, 2, value);
    }

    /// Aims a vector at an address of its own, with its number as data.
    fn aim(&self, vector: u64, masked: bool) {
        let entry = TABLE + 16 * vector;
        self.rig.memory.write(entry, 8, 0xfee0_0000 + 0x1000 * vector);
        self.rig.memory.write(entry + 8, 4, vector);
        self.mask(vector, masked);
    }

    fn mask(&self, vector: u64, masked: bool) {
        self.rig.memory.write(TABLE + 16 * vector + 12, 4, u64::from(masked));
    }

    fn pending(&self) -> u64 {
        self.rig.memory.read(PENDING, 8)
    }

    fn messages(&self) -> Vec<(u64, u32)> {
        self.rig.lines.messages_taken()
    }
}

const ENABLE: u64 = 0x8000;
const FUNCTION_MASK: u64 = 0x4000;

#[test]
fn the_capability_tells_of_table_and_pending_bits() {
    let driver = Driver::new();
    let rig = &driver.rig;
    assert_eq!(rig.read(SLOT, driver.at + 2, 2), u64::from(VECTORS - 1));
    assert_eq!(rig.read(SLOT, driver.at + 4, 4), 2, "the table is at the start of BAR 2");
    assert_eq!(rig.read(SLOT, driver.at + 8, 4), 0x802);
    driver.control(0xffff);
    assert_eq!(rig.read(SLOT, driver.at + 2, 2), ENABLE | FUNCTION_MASK | u64::from(VECTORS - 1));
    for vector in [0, u64::from(VECTORS - 1)] {
        assert_eq!(rig.memory.read(TABLE + 16 * vector + 12, 4), 1, "masked at first");
        rig.memory.write(TABLE + 16 * vector, 4, 0xfee0_0003);
        rig.memory.write(TABLE + 16 * vector + 4, 4, 5);
        rig.memory.write(TABLE + 16 * vector + 12, 4, 0xffff_fffe);
        assert_eq!(rig.memory.read(TABLE + 16 * vector, 8), 0x5_fee0_0000, "double words only");
        assert_eq!(rig.memory.read(TABLE + 16 * vector + 12, 4), 0, "reserved bits stay 0");
    }
    rig.memory.write(PENDING, 8, u64::MAX);
    assert_eq!(driver.pending(), 0, "pending bits are for reading");
}

#[test]
fn a_masked_vector_is_pending_and_sent_as_it_is_aimed_then() {
    let driver = Driver::new();
    driver.control(ENABLE);
    driver.aim(0, false);
    driver.aim(33, true);
    driver.interrupts.signal(33);
    driver.interrupts.signal(33);
    driver.interrupts.signal(0);
    assert_eq!(driver.messages(), [(0xfee0_0000, 0)]);
    assert_eq!(driver.pending(), 1 << 33);
    assert_eq!(driver.rig.memory.read(PENDING + 4, 4), 0b10);
    driver.rig.memory.write(TABLE + 16 * 33, 4, 0xfee0_7000);
    driver.rig.memory.write(TABLE + 16 * 33 + 8, 4, 0x4455);
    assert_eq!(driver.messages(), []);
    driver.mask(33, false);
    assert_eq!(driver.messages(), [(0xfee0_7000, 0x4455)], "once, however often it was signalled");
    assert_eq!(driver.pending(), 0);
    driver.interrupts.signal(VECTORS);
    driver.interrupts.signal(u16::MAX);
    assert_eq!((driver.messages(), driver.pending()), (vec![], 0), "there are no such vectors");
}

#[test]
fn the_function_mask_holds_all_vectors_back() {
    let driver = Driver::new();
    driver.control(ENABLE | FUNCTION_MASK);
    driver.aim(1, false);
    driver.aim(2, true);
    driver.aim(39, false);
    for vector in [39, 2, 1] {
        driver.interrupts.signal(vector);
    }
    assert_eq!(driver.messages(), []);
    assert_eq!(driver.pending(), 1 << 39 | 0b110);
    driver.control(ENABLE);
    assert_eq!(driver.messages(), [(0xfee0_1000, 1), (0xfee2_7000, 39)]);
    assert_eq!(driver.pending(), 0b100);
    driver.control(ENABLE | FUNCTION_MASK);
    driver.mask(2, false);
    assert_eq!(driver.messages(), [], "both masks count");
    driver.control(ENABLE);
    assert_eq!(driver.messages(), [(0xfee0_2000, 2)]);
}

#[test]
fn the_pin_is_low_while_msix_is_on() {
    let driver = Driver::new();
    driver.aim(0, false);
    driver.interrupts.signal(0);
    assert_eq!((driver.messages(), driver.pending()), (vec![], 0), "off: no messages");
    driver.interrupts.set_intx(true);
    assert_eq!(driver.rig.lines.taken(), [(GSI, true)]);
    driver.control(ENABLE | FUNCTION_MASK);
    assert_eq!(driver.rig.lines.taken(), [(GSI, false)], "masked counts as on");
    assert_eq!(driver.rig.read(SLOT, 6, 2) & 8, 0);
    driver.interrupts.set_intx(false);
    driver.interrupts.set_intx(true);
    driver.control(ENABLE);
    assert_eq!((driver.rig.lines.taken(), driver.messages()), (vec![], vec![]));
    driver.control(0);
    assert_eq!(driver.rig.lines.taken(), [(GSI, true)]);
    assert_eq!(driver.rig.read(SLOT, 6, 2) & 8, 8);
}

#[test]
fn without_bus_mastering_nothing_is_written_to_memory() {
    let driver = Driver::new();
    driver.control(ENABLE);
    driver.aim(0, false);
    driver.rig.write(SLOT, 4, 2, 3);
    driver.interrupts.signal(0);
    assert_eq!(driver.messages(), []);
    driver.rig.write(SLOT, 4, 2, COMMAND);
    driver.interrupts.signal(0);
    assert_eq!(driver.messages().len(), 1);
}

#[test]
fn the_table_moves_with_its_register_and_is_gone_without_decoding() {
    let driver = Driver::new();
    let memory = &driver.rig.memory;
    driver.control(ENABLE);
    driver.aim(5, false);
    driver.rig.write(SLOT, 0x18, 4, 0xe100_0000);
    assert_eq!(memory.read(TABLE + 16 * 5 + 8, 4), 0xffff_ffff);
    assert_eq!(memory.read(TABLE + 0x100_0000 + 16 * 5 + 8, 4), 5);
    driver.rig.write(SLOT, 4, 2, COMMAND & !2);
    assert_eq!(memory.read(TABLE + 0x100_0000 + 16 * 5 + 8, 4), 0xffff_ffff);
    memory.write(TABLE + 0x100_0000 + 16 * 5 + 8, 4, 9);
    driver.interrupts.signal(5);
    assert_eq!(driver.messages(), [(0xfee0_5000, 5)], "the function needs no decoding for it");
    crate::clock::lock(&driver.rig.root).reset();
    driver.rig.write(SLOT, 0x18, 4, TABLE);
    driver.rig.write(SLOT, 4, 2, COMMAND);
    assert_eq!(memory.read(TABLE + 16 * 5 + 8, 8), 1 << 32, "empty and masked");
    assert_eq!(driver.rig.read(SLOT, driver.at + 2, 2), u64::from(VECTORS - 1));
}
