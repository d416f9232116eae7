//! What tests that cross crates share.
//!
//! Problem: conformance cases, peers (QEMU, the host CPU) and consoles of guests are needed by more than
//! one test. Scheme: one module each; the tests themselves are in `tests/`.

pub mod asm;
pub mod console;
pub mod debian;
pub mod debootstrap;
pub mod disk;
pub mod dmesg;
pub mod fuzz;
pub mod guest;
pub mod int13;
pub mod login;
pub mod modes;
pub mod multiboot;
pub mod packages;
pub mod peer;
pub mod program;
pub mod report;
pub mod screen;
pub mod unmodified;
pub mod xen;

pub use console::{Console, Dialogue};
pub use guest::Guest;
pub use program::Program;
