//! Architectural state and rules of an x86 processor, and the reference interpreter.
//!
//! This crate makes no host calls and does no I/O: memory, devices and time come through the traits
//! in [`env`].

pub mod addr;
pub mod cpuid;
pub mod env;
pub mod exception;
pub mod host_code;
pub mod interp;
pub mod state;
pub mod vector;

pub use addr::{Gpa, Gva, PAGE_SIZE};
pub use state::CpuState;

/// Bytes of the longest instruction (SDM vol. 2, "Instruction Format").
pub const INSN_BYTES_MAX: usize = 15;
