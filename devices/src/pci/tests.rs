//! Placement and interrupt lines, with a device that does nothing.

mod msix;

use std::sync::{Arc, Mutex};

use super::config::{Bar, BarKind, ConfigSpace, Identity};
use super::{Function, Interrupts, PciDevice, PciError, PciRoot};
use crate::bus::Bus;
use crate::clock::lock;
use crate::irq::IrqSink;

/// Reads as its slot in the top byte and the offset below.
struct Echo(u8);

impl PciDevice for Echo {
    fn bar_read(&mut self, bar: u8, offset: u64, _: u8) -> u64 {
        u64::from(self.0) << 24 | u64::from(bar) << 16 | offset
    }
}

/// Levels of lines, and messages.
#[derive(Default)]
struct Lines(Mutex<Vec<(u32, bool)>>, Mutex<Vec<(u64, u32)>>);

impl IrqSink for Lines {
    fn set_level(&self, gsi: u32, level: bool) {
        lock(&self.0).push((gsi, level));
    }
    fn edges(&self, gsi: u32, _: u64) {
        self.set_level(gsi, true);
    }
    fn forget_edges(&self, _: u32) {}
    fn message(&self, address: u64, data: u32) {
        lock(&self.1).push((address, data));
    }
}

impl Lines {
    fn taken(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut lock(&self.0))
    }

    fn messages_taken(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut lock(&self.1))
    }
}

struct Rig {
    memory: Bus,
    ports: Bus,
    root: Arc<Mutex<PciRoot>>,
    lines: Arc<Lines>,
}

impl Rig {
    fn new() -> Self {
        let (memory, mut ports) = (Bus::new(), Bus::new());
        let lines = Arc::new(Lines::default());
        let root =
            PciRoot::new(&memory, &mut ports, Arc::clone(&lines) as _, Box::new(())).expect("free");
        Self { memory, ports, root, lines }
    }

    /// Fits a device with one 4 KiB memory BAR and one I/O BAR of 32 ports.
    fn add(&self, slot: u8) -> Arc<Interrupts> {
        self.add_with_vectors(slot, 0)
    }

    /// The same with MSI-X in BAR 2.
    fn add_with_vectors(&self, slot: u8, vectors: u16) -> Arc<Interrupts> {
        self.add_made(slot, vectors, |function| function)
    }

    fn add_made(
        &self,
        slot: u8,
        vectors: u16,
        make: impl FnOnce(Function) -> Function,
    ) -> Arc<Interrupts> {
        let mut root = lock(&self.root);
        let interrupts = root.interrupts(slot, vectors);
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 0x5678,
            class: 0xff_0000,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        config.add_bar(0, Bar { kind: BarKind::Memory32, size: 0x1000 });
        config.add_bar(1, Bar { kind: BarKind::Io, size: 32 });
        let function = Function::new(config, Box::new(Echo(slot)));
        let function = function.with_interrupts(Arc::clone(&interrupts), 2);
        root.add(slot, make(function)).expect("free slot");
        interrupts
    }

    fn write(&self, slot: u8, offset: u64, size: u8, value: u64) {
        let at = 1 << 31 | u64::from(slot) << 11 | offset & !3;
        self.ports.write(0xcf8, 4, at);
        self.ports.write(0xcfc + (offset & 3), size, value);
    }

    fn read(&self, slot: u8, offset: u64, size: u8) -> u64 {
        let at = 1 << 31 | u64::from(slot) << 11 | offset & !3;
        self.ports.write(0xcf8, 4, at);
        self.ports.read(0xcfc + (offset & 3), size)
    }
}

#[test]
fn pins_that_share_a_line_are_ored() {
    let rig = Rig::new();
    let (a, b) = (rig.add(3), rig.add(11));
    a.set_intx(true);
    assert_eq!(rig.lines.taken(), [(19, true)], "not routed to ISA before firmware does");
    b.set_intx(true);
    a.set_intx(true);
    a.set_intx(false);
    assert_eq!(rig.lines.taken(), []);
    b.set_intx(false);
    assert_eq!(rig.lines.taken(), [(19, false)]);
}

#[test]
fn pirq_routing_moves_an_asserted_line() {
    let rig = Rig::new();
    // Slot 3, INTA#: PIRQC.
    let a = rig.add(3);
    a.set_intx(true);
    rig.lines.taken();
    rig.write(1, 0x62, 1, 11);
    assert_eq!(rig.lines.taken(), [(11, true)]);
    rig.write(1, 0x62, 1, 5);
    assert_eq!(rig.lines.taken(), [(11, false), (5, true)]);
    rig.write(1, 0x62, 1, 0x80);
    assert_eq!(rig.lines.taken(), [(5, false)]);
}

#[test]
fn intx_disable_lowers_the_pin_but_not_the_status() {
    let rig = Rig::new();
    let a = rig.add(3);
    a.set_intx(true);
    rig.lines.taken();
    rig.write(3, 4, 2, 0x400);
    assert_eq!(rig.lines.taken(), [(19, false)]);
    assert_eq!(rig.read(3, 6, 2) & 8, 8);
    rig.write(3, 4, 2, 0);
    assert_eq!(rig.lines.taken(), [(19, true)]);
    lock(&rig.root).reset();
    assert_eq!(rig.lines.taken(), [(19, false)]);
    assert_eq!(rig.read(3, 6, 2) & 8, 0);
}

#[test]
fn a_message_takes_the_pins_place() {
    let rig = Rig::new();
    let a = rig.add_made(3, 0, Function::with_message);
    let capability = rig.read(3, 0x34, 1);
    assert_eq!(rig.read(3, capability, 1), 5);
    // One vector, 64-bit addresses; only the enable bit can be written.
    assert_eq!(rig.read(3, capability + 2, 2), 0x80);
    rig.write(3, capability + 4, 4, 0xfee0_1003);
    rig.write(3, capability + 8, 4, 0x12);
    rig.write(3, capability + 12, 2, 0x4041);
    a.set_intx(true);
    assert_eq!(rig.lines.taken(), [(19, true)]);
    assert!(rig.lines.messages_taken().is_empty());
    // The request that is there already is sent, but not without bus mastering.
    rig.write(3, capability + 2, 2, 0xffff);
    assert_eq!(rig.read(3, capability + 2, 2), 0x81);
    assert_eq!(rig.lines.taken(), [(19, false)]);
    assert!(rig.lines.messages_taken().is_empty());
    rig.write(3, 4, 2, 4);
    assert_eq!(rig.read(3, 6, 2) & 8, 0);
    a.set_intx(false);
    a.set_intx(true);
    a.set_intx(true);
    let message = (0x12_fee0_1000, 0x4041);
    assert_eq!(rig.lines.messages_taken(), [message]);
    rig.write(3, capability + 2, 2, 0);
    assert_eq!(rig.lines.taken(), [(19, true)]);
    rig.write(3, capability + 2, 2, 1);
    assert_eq!(rig.lines.taken(), [(19, false)]);
    assert_eq!(rig.lines.messages_taken(), [message]);
    lock(&rig.root).reset();
    assert_eq!(rig.read(3, capability + 2, 2), 0x80);
    a.set_intx(true);
    assert_eq!(rig.lines.taken(), [(19, true)]);
    assert!(rig.lines.messages_taken().is_empty());
}

#[test]
fn resources_are_assigned_and_answer() {
    let rig = Rig::new();
    rig.add(3);
    rig.add(4);
    assert_eq!(rig.ports.read(0xc000, 4), 0xffff_ffff);
    lock(&rig.root).assign_resources(0xe000_0000..0xe001_0000, 0xc000..0xc040).expect("fits");
    assert_eq!(rig.read(3, 0x10, 4), 0xe000_0000);
    assert_eq!(rig.read(4, 0x10, 4), 0xe000_1000);
    assert_eq!(rig.read(4, 0x14, 4), 0xc021);
    assert_eq!(rig.memory.read(0xe000_1ffc, 4), 0x0400_0ffc);
    assert_eq!(rig.ports.read(0xc020, 4), 0x0401_0000);
    assert_eq!(rig.read(3, 0x3c, 2), 0x010b, "line 11, INTA#");
    // The other one's place: who was there first answers, and the other comes back.
    rig.write(4, 0x10, 4, 0xe000_0000);
    assert_eq!(rig.memory.read(0xe000_0000, 4) >> 24, 3);
    rig.write(3, 4, 2, 1);
    assert_eq!(rig.memory.read(0xe000_0000, 4) >> 24, 4);
    rig.write(3, 4, 2, 3);
    rig.write(4, 0x10, 4, 0xe000_4000);
    assert_eq!(rig.memory.read(0xe000_0000, 4) >> 24, 3);
}

#[test]
fn resources_that_do_not_fit_are_an_error() {
    let rig = Rig::new();
    rig.add(3);
    rig.add(4);
    let mut root = lock(&rig.root);
    let small = root.assign_resources(0xe000_0000..0xe000_1000, 0xc000..0xd000);
    assert!(matches!(small, Err(PciError::NoSpace(0x1000))));
    assert!(root.assign_resources(0xe000_0000..0xf000_0000, 0xc000..0xc020).is_err());
    assert!(root.assign_resources(u64::MAX - 0x100..u64::MAX, 0..u16::MAX).is_err());
    let extra = Function::new(
        ConfigSpace::new(Identity {
            vendor: 0,
            device: 0,
            class: 0,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        }),
        Box::new(Echo(0)),
    );
    assert!(matches!(root.add(3, extra), Err(PciError::Slot(3))));
}

#[test]
fn read_only_and_write_one_to_clear_bits_of_the_header_hold() {
    let rig = Rig::new();
    rig.add(3);
    rig.write(3, 0, 4, 0);
    assert_eq!(rig.read(3, 0, 4), 0x5678_1234);
    rig.write(3, 4, 4, 0xffff_ffff);
    assert_eq!(rig.read(3, 4, 4), 0x0000_0547);
    rig.write(3, 0x14, 4, 0xffff_ffff);
    assert_eq!(rig.read(3, 0x14, 4), 0xffff_ffe1);
    rig.write(3, 0x18, 4, 0xffff_ffff);
    assert_eq!(rig.read(3, 0x18, 4), 0, "no such BAR");
    // Over the end of a double word: nobody's bytes.
    rig.ports.write(0xcf8, 4, 0x8000_1800);
    assert_eq!(rig.ports.read(0xcff, 2), 0xff56);
}
