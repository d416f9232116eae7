//! The parts of a PC that were there before PCI.

pub mod debug_exit;
pub mod debugcon;
pub mod dma;
pub mod i8042;
pub mod pic;
pub mod pit;
pub mod reset;
pub mod rtc;
pub mod serial_io;
pub mod testdev;
pub mod uart;
