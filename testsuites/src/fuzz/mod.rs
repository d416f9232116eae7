//! Hostile guests.
//!
//! Problem: a guest that executes garbage, jumps into a hole, loops on triple faults or writes random
//! device registers must never make the program panic, hang, crash or grow. Scheme: [`HostileGuest`] draws
//! a whole guest from a seed, [`Stage`] runs it on a machine in this process and judges how it ended,
//! `src/bin/fuzz.rs` does so for as long as it is told, in worker processes that it watches. Invariants: the
//! same seed makes the same guest; a guest with one processor runs in counted time, so unless it uses
//! virtio (whose workers are threads) it also does the same every time.

mod chunks;
mod guest;
mod instructions;
mod places;
mod plan;
mod rng;
mod stage;
mod tables;
mod virtio;
mod world;

pub use guest::HostileGuest;
pub use stage::{Defect, Run, Stage};
