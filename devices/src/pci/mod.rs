//! The PCI bus: configuration mechanism #1, functions with base address registers and MSI-X, and the
//! i440FX pair of bridges.
//!
//! Problem: guests find, place and drive devices through configuration space. Scheme: [`PciRoot`]
//! answers ports 0xcf8 and 0xcfc and keeps each function's BARs mapped where its registers say, in the
//! [`crate::bus::MovingRanges`] of both buses; no firmware runs for a direct kernel boot, so
//! [`PciRoot::assign_resources`] does what firmware would. Invariants: functions hold neither the root
//! nor the buses, so dropping root and buses drops them (and ends their threads). Lock order: root,
//! function, [`Interrupts`], interrupt controllers. Any thread.
//!
//! Source: PCI Local Bus Specification 3.0, §3.2.2.3 "Configuration Space Decoding".

mod chipset;
pub mod config;
mod function;
mod interrupts;
pub mod rom;
mod root;

#[cfg(test)]
mod tests;

pub use chipset::{IDE_TIMING, MemorySwitch, Segment};
pub use function::{Function, PciDevice, ROM};
pub use interrupts::{INTX_GSI_BASE, INTX_PINS, Interrupts, IntxRouter, intx_gsi};
pub use root::{PciError, PciRoot, SLOTS};
