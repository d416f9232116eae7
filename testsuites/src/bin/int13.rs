//! How fast the firmware reads 8 MiB of a disk, here and on QEMU's emulator.
//!
//! ```text
//! cargo run --release -p xenolith-testsuites --bin int13 [RUNS]
//! ```
//!
//! Milliseconds by the guest's clock, medians of the runs, which the two take by turns; each run reads eight times.

use std::process::ExitCode;

use anyhow::{Context, Result};
use xenolith_machine::Attachment;
use xenolith_testsuites::int13::Disk;

const RUNS: usize = 5;

fn median_ms(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2] * 1000.0
}

fn table() -> Result<()> {
    let runs = match std::env::args().nth(1) {
        Some(text) => {
            text.parse().ok().filter(|&runs| runs > 0).with_context(|| format!("runs: {text}"))?
        }
        None => RUNS,
    };
    let disk = Disk::new()?;
    println!("{:<10} {:>8} {:>8} {:>8}", "ms", "tcg", "bt", "tcg/bt");
    for (name, attachment) in [("virtio", Attachment::Virtio), ("ide", Attachment::Ide)] {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            here.extend(disk.here(attachment).with_context(|| name)?);
            there.extend(disk.there(attachment).with_context(|| format!("{name} on QEMU"))?);
        }
        let (here, there) = (median_ms(&mut here), median_ms(&mut there));
        println!("{name:<10} {there:>8.1} {here:>8.1} {:>8.2}", there / here);
    }
    Ok(())
}

fn main() -> ExitCode {
    match table() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("int13: {error:#}");
            ExitCode::FAILURE
        }
    }
}
