//! Emulated PC hardware behind small traits: [`bus`], [`irq`], [`clock`].
//!
//! Devices know neither the MMU nor the translator: they see guest memory through `vm-memory`, and
//! interrupts and time through the traits here.

pub mod acpi;
pub mod apic;
pub mod bus;
pub mod clock;
pub mod disk;
pub mod floppy;
pub mod fw_cfg;
pub mod hpet;
pub mod ide;
pub mod irq;
pub mod kvmclock;
pub mod legacy;
pub mod mp;
pub mod net;
pub mod pci;
pub mod power;
pub mod smbios;
pub mod vga;
pub mod virtio;

#[cfg(test)]
mod fake;
