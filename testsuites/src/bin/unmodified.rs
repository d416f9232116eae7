//! How long guests as Debian ships them take to what a person waits for, here and on QEMU's emulator.
//!
//! ```text
//! cargo run --release -p xenolith-testsuites --bin unmodified -- [--runs N] [GUEST...]
//! ```
//!
//! Seconds from the start to the last step's end, medians of the runs, which the two take by turns.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use xenolith_testsuites::peer::Qemu;
use xenolith_testsuites::screen::{Seat, Watched};
use xenolith_testsuites::unmodified::{GUESTS, Unmodified, named};

/// Where packages are kept, unless XENOLITH_CACHE says it: as for the tests.
const SCRATCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp");
const RUNS: usize = 3;

/// Seconds of one run.
fn seconds(guest: Unmodified, here: bool) -> Result<f64> {
    let (config, _files) = (guest.config)(SCRATCH)?;
    let start = Instant::now();
    let seat: Box<dyn Seat> = if here {
        Box::new(Watched::start(config, Box::new(std::io::sink()))?)
    } else {
        Box::new(Qemu::start(&config)?)
    };
    (guest.steps)(&*seat)?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn table() -> Result<()> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let mut runs = RUNS;
    if let Some(at) = names.iter().position(|name| name == "--runs") {
        let text = names.get(at + 1).context("--runs: how many?")?;
        runs =
            text.parse().ok().filter(|&runs| runs > 0).with_context(|| format!("--runs {text}"))?;
        names.drain(at..at + 2);
    }
    let guests = if names.is_empty() {
        GUESTS.to_vec()
    } else {
        names.iter().map(|name| named(name)).collect::<Result<_>>()?
    };
    println!("{:<16} {:>8} {:>8} {:>8}", "seconds", "tcg", "bt", "tcg/bt");
    for guest in guests {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            here.push(seconds(guest, true).with_context(|| guest.name)?);
            there.push(seconds(guest, false).with_context(|| format!("{} on QEMU", guest.name))?);
        }
        let (here, there) = (median(&mut here), median(&mut there));
        println!("{:<16} {there:>8.1} {here:>8.1} {:>8.2}", guest.name, there / here);
    }
    Ok(())
}

fn main() -> ExitCode {
    match table() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unmodified: {error:#}");
            ExitCode::FAILURE
        }
    }
}
