//! The interpreter on a small machine of its own: see [`bench`] for what is where, [`native`] for the
//! comparison with the host's processor.

mod bench;
mod blocks;
mod coverage;
mod debug;
mod far;
mod garbage;
mod generate;
mod interrupt;
mod memory;
mod native;
mod system;
mod task;
