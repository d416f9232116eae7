//! How fast each mode is, beside the interpreter and QEMU's emulator.
//!
//! ```text
//! cargo run --release -p xenolith-testsuites --bin modes [ROUNDS]
//! ```
//!
//! Nanoseconds a round, by the difference of a long run and one of a hundredth of it, so that starting up doesn't count.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xenolith_machine::{Engine, Mmu};
use xenolith_testsuites::asm::case::Maker;
use xenolith_testsuites::asm::qemu;
use xenolith_testsuites::modes::{MODES, image, run};

const ROUNDS: u32 = 100_000;

/// Nanoseconds a round.
fn time(mode: &str, rounds: u32, run: impl Fn(&[u8]) -> Result<Duration>) -> Result<f64> {
    let few = (rounds / 100).max(1);
    let short = run(&image(mode, few)?)?;
    let long = run(&image(mode, rounds)?)?;
    Ok(long.saturating_sub(short).as_nanos() as f64 / f64::from(rounds.saturating_sub(few).max(1)))
}

fn table() -> Result<()> {
    let rounds = match std::env::args().nth(1) {
        Some(text) => text.parse().with_context(|| format!("rounds: {text}"))?,
        None => ROUNDS,
    };
    println!("{:<10} {:>10} {:>10} {:>10} {:>10}", "ns a round", "interp", "bt soft", "bt", "QEMU");
    for mode in MODES {
        let ours =
            |engine, mmu| time(mode, rounds, |image| Ok(run(image, engine, mmu, false)?.took));
        let qemu = time(mode, rounds, |image| {
            let start = Instant::now();
            qemu::boot(image, Maker::Intel)?;
            Ok(start.elapsed())
        })?;
        println!(
            "{mode:<10} {:>10.0} {:>10.0} {:>10.0} {qemu:>10.0}",
            ours(Engine::Interp, Mmu::default())?,
            ours(Engine::Bt, Mmu::Soft)?,
            ours(Engine::Bt, Mmu::default())?,
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    match table() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("modes: {error:#}");
            ExitCode::FAILURE
        }
    }
}
