//! ACPI: the fixed hardware ([`pm`]), and the tables ([`tables`], [`dsdt`]) that describe the machine.

pub mod dsdt;
pub mod loader;
pub mod pm;
pub mod tables;
