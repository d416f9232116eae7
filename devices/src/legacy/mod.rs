//! The parts of a PC that were there before PCI.

pub mod serial_io;
pub mod uart;
