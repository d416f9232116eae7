//! Boards, boot loaders and the vCPU loop: the crate that puts a machine together and runs it.
//!
//! [`Config`] says what to build, [`Machine::new`] builds it and [`Machine::run`] runs it to its
//! [`End`]. Everything a guest does wrong ends in the guest; everything a person does wrong ends in a
//! [`ConfigError`] of one line.

pub mod boot;
pub mod clock;
pub mod config;
mod machine;
pub mod memory_map;
pub mod signal;
pub mod vcpu;

pub use config::{Config, ConfigError, DiskConfig, Engine};
pub use machine::{End, Handle, Machine, SerialInput};
