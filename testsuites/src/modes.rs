//! The same work in every mode: `guests/modes`.
//!
//! Problem: a mode that the translator makes no blocks for works all the same, by the interpreter, and nobody
//! notices but by the clock. Scheme: one guest does the same work in a mode of choice and prints a checksum; an
//! engine's counters say how much of it was interpreted, and its time stands beside QEMU's. Needs NASM.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xenolith_machine::{Config, End, Engine, Machine, Making, Report};

use crate::asm::assemble::{Scratch, nasm};
use crate::asm::engine::Console;

/// Modes by the names that the guest has for them; `bios` is real mode with interrupts and far calls.
/// `watched` is flat 32-bit mode with hardware breakpoints that are met now and then, `leftover` the same mode with
/// code that is no longer used in the page of the data, `upper64` 64-bit user code in the upper half of the addresses.
pub const MODES: [&str; 12] = [
    "real", "bios", "v86", "pm16", "pm32", "flat32", "watched", "leftover", "compat16", "compat32",
    "long64", "upper64",
];

const PATIENCE: Duration = Duration::from_secs(120);

/// The guest for a mode, which does `rounds` rounds of some 800 instructions.
///
/// # Errors
/// No NASM.
pub fn image(mode: &str, rounds: u32) -> Result<Vec<u8>> {
    let scratch = Scratch::new("modes")?;
    let source = scratch.path().join("modes.asm");
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/modes/modes.asm");
    let text =
        format!("%define MODE_{mode}\n%define ROUNDS {rounds}\n%include \"{}\"\n", guest.display());
    std::fs::write(&source, text)?;
    nasm(&source, &scratch.path().join("image"))
}

/// What a run of a guest came to.
#[derive(Debug)]
pub struct Run {
    /// What it printed.
    pub output: String,
    pub took: Duration,
    /// Guest instructions, and how many of them were interpreted; zeros where nobody counted.
    pub instructions: (u64, u64),
    /// Accesses that shadow windows couldn't help; zero where nobody counted.
    pub window_misses: u64,
}

/// Runs a guest on one of our engines. `counts`: instructions are counted, which takes time.
///
/// # Errors
/// The machine can't be built, or ends otherwise than by the guest's wish.
pub fn run(image: &[u8], engine: Engine, making: impl Into<Making>, counts: bool) -> Result<Run> {
    let scratch = Scratch::new("modes")?;
    let kernel = scratch.path().join("image");
    std::fs::write(&kernel, image)?;
    let report = Arc::new(Report::default());
    let config = Config {
        memory_bytes: 64 << 20,
        engine,
        making: making.into(),
        kernel,
        timeout: Some(PATIENCE),
        no_reboot: true,
        report: counts.then(|| Arc::clone(&report)),
        ..Config::default()
    };
    let console = Console::default();
    let start = Instant::now();
    let end = Machine::new(config, Box::new(console.clone()))?.run();
    let took = start.elapsed();
    match end {
        End::DebugExit(0) => {}
        End::TripleFault { dump } => bail!("triple fault\n{dump}"),
        other => bail!("{other:?}"),
    }
    let output = console.0.lock().unwrap_or_else(PoisonError::into_inner);
    let output = String::from_utf8(output.clone()).context("the guest prints text")?;
    let (instructions, window_misses) = (report.instructions(), report.window_misses());
    Ok(Run { output, took, instructions, window_misses })
}
