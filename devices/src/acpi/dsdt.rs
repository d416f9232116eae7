//! The DSDT: the machine in AML.
//!
//! Problem: devices that can't be probed are found through the namespace, and PCI pins are routed by
//! it. Scheme: the namespace is built bottom up as bytes; in ASL it is
//!
//! ```text
//! Name (PICF, 0)   Method (_PIC, 1) { PICF = Arg0 }   Name (_S5, Package () { 0, 0, 0, 0 })
//! Scope (_SB) {
//!   Device (C000) ...                     processors, ACPI0007, _UID as in the MADT
//!   Device (HPET)  Device (PMRS)          PNP0103; the ports of the PM block
//!   Device (FWCF)                         QEMU0002: the firmware configuration device
//!   Device (PCI0) {                       PNP0A03: bus 0-255, windows, _PRT by PICF
//!     Device (ISA)  { PRQ0..PRQ3; RTC, KBD, MOU, COM1.. }         00:01.0
//!     Device (LNKA) .. (LNKD)             PNP0C0F over PRQ0..PRQ3
//!   } }
//! ```
//!
//! Invariants: with the I/O APIC (PICF is 1) pin `p` of slot `s` is GSI `16 + (s + p) % 8`; with the
//! 8259s it is PIRQ link `(s + p - 1) % 4`, both as `pci::IntxRouter` wires them. Lines are logical:
//! "asserted" is what counts, so a guest may program either polarity. Runs once, at build time.
//! Source: ACPI 6.5 §5.2.11.1 "DSDT", §6 "Device Configuration", §20 "AML Specification".

use acpi_tables::{Aml, AmlSink, aml};

use super::pm;
use super::tables::{AcpiConfig, HPET_BYTES, HPET_GPA};
use crate::fw_cfg;
use crate::legacy::uart;
use crate::pci;

/// Interrupt lines that a PCI link may be routed to, when the 8259s are in use.
const LINK_IRQS: [u32; 3] = [5, 10, 11];
const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];

/// Finished AML.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn raw(object: &dyn Aml) -> Raw {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    Raw(bytes)
}

fn name(path: &str, value: &dyn Aml) -> Raw {
    raw(&aml::Name::new(path.into(), value))
}

fn method(path: &str, args: u8, body: Vec<&dyn Aml>) -> Raw {
    raw(&aml::Method::new(path.into(), args, true, body))
}

fn device(path: &str, children: &[Raw]) -> Raw {
    let children = children.iter().map(|child| child as &dyn Aml).collect();
    raw(&aml::Device::new(path.into(), children))
}

fn resources(items: &[Raw]) -> Raw {
    raw(&aml::ResourceTemplate::new(items.iter().map(|item| item as &dyn Aml).collect()))
}

fn eisa(id: &str) -> Raw {
    raw(&aml::EISAName::new(id))
}

fn io(port: u16, ports: u8) -> Raw {
    raw(&aml::IO::new(port, port, 1, ports))
}

/// `IRQNoFlags () { irq }`: edge triggered, active high, exclusive (small resource item 0x4).
fn irq(irq: u32) -> Raw {
    let [low, high, ..] = (1u32 << (irq & 15)).to_le_bytes();
    Raw(vec![0x22, low, high])
}

/// `Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { gsis }` (large resource item 0x9).
fn shared_level_interrupts(gsis: &[u32]) -> Raw {
    let count = u8::try_from(gsis.len()).expect("a handful of alternatives");
    let [low, high] = (2 + 4 * u16::from(count)).to_le_bytes();
    let mut bytes = vec![0x89, low, high, 0x09, count];
    bytes.extend(gsis.iter().flat_map(|gsi| gsi.to_le_bytes()));
    Raw(bytes)
}

/// A device that only has an identity and fixed resources.
fn fixed_device(path: &str, id: &str, uid: u32, items: &[Raw]) -> Raw {
    device(path, &[name("_HID", &eisa(id)), name("_UID", &uid), name("_CRS", &resources(items))])
}

fn processors(vcpus: u32) -> Vec<Raw> {
    (0..vcpus)
        .map(|uid| device(&format!("C{uid:03X}"), &[name("_HID", &"ACPI0007"), name("_UID", &uid)]))
        .collect()
}

/// One of the ISA bridge's PIRQ routers as a link device.
fn link(index: u32, path: &str) -> Raw {
    let register = aml::Path::new(&format!("\\_SB_.PCI0.ISA_.PRQ{index}"));
    let (value, buffer) = (aml::Path::new("IRQV"), aml::Path::new("BUF0"));
    let present = raw(&aml::Return::new(&0x0bu8));
    let disabled = raw(&aml::Return::new(&0x09u8));
    let off = aml::And::new(&aml::ZERO, &register, &0x80u8);
    let at = 5u8; // The number's offset in an extended interrupt descriptor.
    device(
        path,
        &[
            name("_HID", &eisa("PNP0C0F")),
            name("_UID", &index),
            name("_PRS", &resources(&[shared_level_interrupts(&LINK_IRQS)])),
            method("_STA", 0, vec![&aml::If::new(&off, vec![&disabled]), &present]),
            method("_DIS", 0, vec![&aml::Or::new(&register, &register, &0x80u8)]),
            method(
                "_CRS",
                0,
                vec![
                    &name("BUF0", &resources(&[shared_level_interrupts(&[0])])),
                    &aml::CreateDWordField::new(&value, &buffer, &at),
                    &aml::And::new(&value, &register, &0x0fu8),
                    &aml::Return::new(&buffer),
                ],
            ),
            method(
                "_SRS",
                1,
                vec![
                    &aml::CreateDWordField::new(&value, &aml::Arg(0), &at),
                    &aml::Store::new(&register, &value),
                ],
            ),
        ],
    )
}

/// A `_PRT` package; `source` gives the third and fourth element for slot and pin.
fn routing(path: &str, source: impl Fn(u8, u8) -> (Raw, u32)) -> Raw {
    let mut table = aml::PackageBuilder::new();
    for slot in 0..pci::SLOTS {
        for pin in 0..pci::INTX_PINS {
            let (link, index) = source(slot, pin);
            let address = u32::from(slot) << 16 | 0xffff;
            table.add_element(&aml::Package::new(vec![&address, &pin, &link, &index]));
        }
    }
    name(path, &table)
}

fn isa_bridge(config: &AcpiConfig) -> Raw {
    use aml::{FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, OpRegionSpace};
    let fields = (b'0'..=b'3').map(|n| FieldEntry::Named([b'P', b'R', b'Q', n], 8)).collect();
    let mut children = vec![
        name("_ADR", &0x0001_0000u32),
        raw(&aml::OpRegion::new("P40C".into(), OpRegionSpace::PCIConfig, &0x60u8, &4u8)),
        raw(&aml::Field::new(
            "P40C".into(),
            FieldAccessType::Byte,
            FieldLockRule::NoLock,
            FieldUpdateRule::Preserve,
            fields,
        )),
        fixed_device("RTC_", "PNP0B00", 0, &[io(0x70, 2), irq(8)]),
        fixed_device("KBD_", "PNP0303", 0, &[io(0x60, 1), io(0x64, 1), irq(1)]),
        fixed_device("MOU_", "PNP0F13", 0, &[irq(12)]),
    ];
    for (number, &(port, line)) in (1u32..).zip(uart::COM.iter().take(config.serial_ports)) {
        let items = [io(port, 8), irq(line)];
        children.push(fixed_device(&format!("COM{number}"), "PNP0501", number, &items));
    }
    device("ISA_", &children)
}

fn pci_root(config: &AcpiConfig) -> Raw {
    use aml::{AddressSpace, AddressSpaceCacheable::NotCacheable};
    let (low, high) = config.pci_hole;
    let mut windows = vec![
        raw(&AddressSpace::new_bus_number(0u16, 0xff)),
        io(0xcf8, 8),
        raw(&AddressSpace::new_io(0u16, 0xcf7, None)),
        raw(&AddressSpace::new_io(0xd00u16, 0xffff, None)),
        raw(&AddressSpace::new_memory(NotCacheable, true, 0xa_0000u32, 0xb_ffff, None)),
        raw(&AddressSpace::new_memory(NotCacheable, true, low, high, None)),
    ];
    if let Some((low, high)) = config.pci_hole64 {
        windows.push(raw(&AddressSpace::new_memory(NotCacheable, true, low, high, None)));
    }
    let apic = aml::Path::new("PICF");
    let (pins, links) = (aml::Path::new("PRTA"), aml::Path::new("PRTL"));
    let mut children = vec![
        name("_HID", &eisa("PNP0A03")),
        name("_UID", &0u32),
        name("_BBN", &0u32),
        name("_CRS", &resources(&windows)),
        isa_bridge(config),
    ];
    children.extend((0u32..).zip(LINKS).map(|(index, path)| link(index, path)));
    children.push(routing("PRTA", |slot, pin| (raw(&aml::ZERO), pci::intx_gsi(slot, pin))));
    children.push(routing("PRTL", |slot, pin| {
        let link = usize::from(slot) + usize::from(pin) + LINKS.len() - 1;
        (raw(&aml::Path::new(LINKS[link % LINKS.len()])), 0)
    }));
    children.push(method(
        "_PRT",
        0,
        vec![&aml::If::new(&apic, vec![&aml::Return::new(&pins)]), &aml::Return::new(&links)],
    ));
    device("PCI0", &children)
}

/// The AML that follows the DSDT's header.
pub(super) fn body(config: &AcpiConfig) -> Vec<u8> {
    let mut system_bus = processors(config.vcpus);
    if config.hpet {
        let block = raw(&aml::Memory32Fixed::new(false, HPET_GPA, HPET_BYTES));
        system_bus.push(fixed_device("HPET", "PNP0103", 0, &[block]));
    }
    let pm_ports = [
        io(pm::PM_PORT, 0x40),
        io(pm::GPE0_PORT, pm::GPE0_BYTES),
        io(pm::SMI_COMMAND_PORT, 2),
        io(0x92, 1),
    ];
    system_bus.push(fixed_device("PMRS", "PNP0A06", 0, &pm_ports));
    let fw_cfg_ports = io(fw_cfg::PORT as u16, fw_cfg::PORTS as u8);
    system_bus.push(device(
        "FWCF",
        &[
            name("_HID", &"QEMU0002"),
            // There and working, but nothing for a person to see.
            name("_STA", &0x0bu8),
            name("_CRS", &resources(&[fw_cfg_ports])),
        ],
    ));
    system_bus.push(pci_root(config));

    let picf = aml::Path::new("PICF");
    let s5 = u32::from(pm::SLEEP_TYPE_S5);
    let mut bytes = Vec::new();
    name("PICF", &0u32).to_aml_bytes(&mut bytes);
    method("_PIC", 1, vec![&aml::Store::new(&picf, &aml::Arg(0))]).to_aml_bytes(&mut bytes);
    name("_S5_", &aml::Package::new(vec![&s5, &s5, &0u32, &0u32])).to_aml_bytes(&mut bytes);
    let children = system_bus.iter().map(|child| child as &dyn Aml).collect();
    aml::Scope::new("_SB_".into(), children).to_aml_bytes(&mut bytes);
    bytes
}
