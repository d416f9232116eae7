//! ACPI: the fixed hardware ([`pm`]) and the tables that describe the machine (`tables`).

pub mod pm;
