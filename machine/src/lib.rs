//! Boards, boot loaders and the vCPU loop: the crate that puts a machine together and runs it.
//!
//! [`Config`] says what to build, [`Machine::new`] builds it and [`Machine::run`] runs it to its
//! [`End`]. Everything a guest does wrong ends in the guest; everything a person does wrong ends in a
//! [`ConfigError`] of one line.

mod boot;
mod bt;
mod builder;
pub mod clock;
pub mod config;
mod console;
mod control;
mod cpu_time;
pub mod diff;
pub mod disasm;
mod drives;
mod engine;
mod env;
mod firmware;
pub mod fuzz;
mod geometry;
pub mod inspect;
mod machine;
mod memory_map;
mod random;
mod run;
pub mod screen;
mod signal;
pub mod snippet;
mod switch;
mod vcpu;
mod video;

pub use bt::Report;
pub use bt::probe;
pub use config::{
    Attachment, Config, ConfigError, DiskConfig, Engine, Making, Mmu, NetConfig, NetModel, Unpacker,
};
pub use inspect::Inspector;
pub use machine::{End, Handle, Machine, SerialInput};
pub use screen::Screen;
pub use xenolith_net::{Forward, Settings as NetSettings};
